"""The loss of an image tokenizer: pixels, perception, and a critic (VQ-GAN, arXiv 2012.09841, section 3.1).

- `ReconstructionObjective` says which parts with what weights, `ReconstructionLoss` computes them
- a patch critic by hinge loss starts late; its weight is |gradient of the rest| / |gradient of the critic's|
- `Lpips` where its weights are on the machine; `EdgePyramid` needs none; `Features` come from a small package
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab.tokenizers import networks
from chameleon_lab.tokenizers.quantizers import Quantized

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adversary:
    """A patch critic: switched on at `start_step`, or after `start_share` of the budget where that is given; weighed by
    `weight` times the adaptive weight.

    The defaults are the reference recipe's (taming-transformers, custom data).
    """

    start_step: int = 10_000
    weight: float = 0.8
    width: int = 64
    layers: int = 3
    start_share: float | None = field(default=None, metadata={"later": True})

    def __post_init__(self) -> None:
        if self.start_share is not None and not 0 <= self.start_share < 1:
            raise ValueError(f"A critic begins after a share of 0 up to 1 of the budget, not {self.start_share}.")

    def begins(self, step: int, progress: float) -> bool:
        """Whether it is on at a step, of whose budget such a share is spent."""
        return step >= self.start_step if self.start_share is None else progress >= self.start_share


@dataclass(frozen=True)
class ReconstructionObjective:
    """L1 + `square` x L2 + `perceptual_weight` x a perceptual distance + the quantizer's loss + an adversary.

    `perceptual` is "lpips", "edges" (an `EdgePyramid` of `scales`), "efficientnet" (`Features` beside the edges) or
    "none"; without LPIPS's weights on the machine, "lpips" becomes "edges", and the log says so.
    """

    perceptual: Literal["lpips", "edges", "efficientnet", "none"] = "lpips"
    perceptual_weight: float = 1.0
    scales: int = 1
    square: float = 0.0
    adversary: Adversary | None = field(default_factory=Adversary)


class LossParts(NamedTuple):
    """A loss to descend, and the parts of it that a training records, by name."""

    loss: Tensor
    values: dict[str, Tensor]


class ReconstructionLoss(nn.Module):
    """An objective with its networks.

    One backward pass serves both sides: the tokenizer's loss does not reach the critic's parameters, nor the critic's
    the tokenizer's.
    """

    def __init__(self, objective: ReconstructionObjective) -> None:
        super().__init__()
        self.objective = objective
        adversary = objective.adversary
        self.critic = PatchCritic(adversary.width, adversary.layers) if adversary else None
        self.perceptual = None if objective.perceptual == "none" else self._perceptual()

    def _perceptual(self) -> nn.Module:
        if self.objective.perceptual == "lpips":
            try:
                return Lpips()
            except ValueError as error:
                log.warning("The perceptual loss is an edge pyramid, which needs no weights. %s", error)
        if self.objective.perceptual == "efficientnet":
            return Features(self.objective.scales)
        return EdgePyramid(self.objective.scales)

    def forward(
        self,
        pixels_BCHW: Tensor,
        rebuilt_BCHW: Tensor,
        quantized: Quantized,
        last_layer: Tensor,
        step: int,
        progress: float = 0.0,
    ) -> LossParts:
        error_BCHW = rebuilt_BCHW - pixels_BCHW
        square = error_BCHW.square().mean()
        loss = error_BCHW.abs().mean() + self.objective.square * square
        values = {"pixel_loss": loss, "psnr": 10 * torch.log10(4 / square)}
        if self.perceptual is not None:
            values["perceptual_loss"] = self.perceptual(rebuilt_BCHW, pixels_BCHW)
            loss = loss + self.objective.perceptual_weight * values["perceptual_loss"]
        values |= {"quantizer_loss": quantized.loss}
        adversary = self.objective.adversary
        if adversary is not None and self.critic is not None and adversary.begins(step, progress):
            with _frozen(self.critic):
                fooling = -self.critic(rebuilt_BCHW).mean()
            weight = adversary.weight * adaptive_weight(loss, fooling, last_layer)
            real_BHW, fake_BHW = self.critic(pixels_BCHW), self.critic(rebuilt_BCHW.detach())
            critic_loss = 0.5 * (F.relu(1 - real_BHW).mean() + F.relu(1 + fake_BHW).mean())
            values |= {"critic_loss": critic_loss, "fooling_loss": fooling, "critic_weight": weight}
            loss = loss + weight * fooling + critic_loss
        return LossParts(loss + quantized.loss, values)


def adaptive_weight(rest: Tensor, fooling: Tensor, last_layer: Tensor) -> Tensor:
    """|d rest| / (|d fooling| + 1e-4) at the last layer, at most 1e4: neither side's gradient drowns the other's."""
    (rest_gradient,) = torch.autograd.grad(rest, last_layer, retain_graph=True)
    (fooling_gradient,) = torch.autograd.grad(fooling, last_layer, retain_graph=True)
    return (rest_gradient.norm() / (fooling_gradient.norm() + 1e-4)).clamp(0, 1e4).detach()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Inside, gradients reach the module's inputs and not its parameters."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    yield
    for parameter in module.parameters():
        parameter.requires_grad_(True)


class PatchCritic(nn.Module):
    """Real or rebuilt, patch by patch: pixels_BCHW to logits_BHW (PatchGAN, arXiv 1611.07004)."""

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, layers + 1):
            incoming, outgoing = width * min(2 ** (level - 1), 8), width * min(2**level, 8)
            stride = 2 if level < layers else 1
            convolution = nn.Conv2d(incoming, outgoing, 4, stride=stride, padding=1, bias=False)
            parts += [convolution, nn.BatchNorm2d(outgoing), nn.LeakyReLU(0.2)]
        parts.append(nn.Conv2d(width * min(2**layers, 8), 1, 4, padding=1))
        self.parts = nn.Sequential(*parts)
        for module in self.parts:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    @staticmethod
    def least_side(layers: int) -> int:
        """Pixels along a side below which nothing is left of a picture to judge."""
        strides = [2, *(2 if level < layers else 1 for level in range(1, layers + 1)), 1]
        side = 1
        for stride in reversed(strides):
            side = (side - 1) * stride + 4 - 2
        return side

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        return self.parts(pixels_BCHW)[:, 0]


class Lpips(nn.Module):
    """LPIPS on VGG (arXiv 1801.03924), the mean over a batch. Raises ValueError without weights or torchvision.

    The network is no part of the state: a checkpoint does not carry it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = (networks.lpips("VGG").module,)

    def forward(self, rebuilt_BCHW: Tensor, pixels_BCHW: Tensor) -> Tensor:
        return self.network[0].to(pixels_BCHW.device)(rebuilt_BCHW, pixels_BCHW).mean()


class EdgePyramid(nn.Module):
    """A perceptual distance without weights: L1 of neighbouring differences, at `scales` resolutions.

    L1 alone is content with blur: a soft edge costs little. Differences of neighbours are what an edge is, and half the
    resolution sees the larger edges.
    """

    def __init__(self, scales: int = 1) -> None:
        super().__init__()
        self.scales = scales

    def forward(self, rebuilt_BCHW: Tensor, pixels_BCHW: Tensor) -> Tensor:
        error_BCHW = rebuilt_BCHW - pixels_BCHW  # differences are linear: those of the error are the error's
        total = error_BCHW.new_zeros(())
        for scale in range(self.scales):
            if scale:
                error_BCHW = F.avg_pool2d(error_BCHW, 2)
            total = total + error_BCHW.diff(dim=2).abs().mean() + error_BCHW.diff(dim=3).abs().mean()
        return total


class Features(nn.Module):
    """A perceptual distance by EfficientNet-Lite0's early features, beside an `EdgePyramid`. Not LPIPS.

    Features are compared as LPIPS compares them, scaled to length 1 at each place, but with equal weights: the mean of
    squared distances at three depths. Raises ValueError without the extra `features`. The network is no part of the
    state.
    """

    def __init__(self, scales: int = 1) -> None:
        super().__init__()
        self.edges = EdgePyramid(scales)
        self.network = (networks.EfficientNetLite0().to(memory_format=torch.channels_last),)  # pyright: ignore[reportCallIssue]

    def forward(self, rebuilt_BCHW: Tensor, pixels_BCHW: Tensor) -> Tensor:
        network = self.network[0].to(pixels_BCHW.device)
        with torch.no_grad():
            real = network.early(pixels_BCHW)
        pairs = zip(network.early(rebuilt_BCHW), real, strict=True)
        squares = [(F.normalize(ours) - F.normalize(theirs)).square().sum(1).mean() for ours, theirs in pairs]
        return self.edges(rebuilt_BCHW, pixels_BCHW) + torch.stack(squares).mean()
