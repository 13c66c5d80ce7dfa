"""Quantizers: each keeps the protocol, each does what its paper says, and others' modules plug in."""

import math
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab.checkpoints.native import fill
from chameleon_lab.tokenizers import quantizers
from chameleon_lab.tokenizers.image import QUANTIZERS, ImageTokenizer
from chameleon_lab.tokenizers.levels import FiniteScalarQuantizer
from chameleon_lab.tokenizers.quantizers import (
    Adapted,
    CosineQuantizer,
    GumbelQuantizer,
    MovingAverageQuantizer,
    Quantized,
    Quantizer,
    SimQuantizer,
    VectorQuantizer,
    nearest,
    rotate_to,
    spread_book,
    straight_through,
)

SIZES = {"finite_scalar": (64, 3), "lookup_free": (16, 4), "binary_spherical": (16, 4)}
LEARNED = {
    "vector": VectorQuantizer,
    "moving_average": partial(MovingAverageQuantizer, warm_up=0),
    "cosine": CosineQuantizer,
    "sim": SimQuantizer,
}


def size_of(name: str) -> tuple[int, int]:
    return SIZES.get(name, (24, 4))


def built(name: str) -> nn.Module:
    """The quantizer of a name at a size that fits it, quantizing from the first step, the entries of a book random."""
    quantizer = QUANTIZERS[name](*size_of(name))
    assert isinstance(quantizer, nn.Module) and isinstance(quantizer, Quantizer)
    if isinstance(quantizer, MovingAverageQuantizer):
        quantizer.warm_up = 0
    if hasattr(quantizer, "embedding"):
        nn.init.normal_(quantizer.embedding.weight)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return quantizer


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(params=QUANTIZERS)
def name(request) -> str:
    return request.param


@pytest.fixture
def quantizer(name):
    return built(name)


@pytest.fixture
def latents_BCHW(name) -> Tensor:
    return torch.randn(2, size_of(name)[1], 5, 3)


# What all keep


def test_a_quantizer_gives_a_code_in_range_to_every_cell_of_any_grid(name, quantizer):
    size, width = size_of(name)
    assert quantizer.size == size
    for rows, columns in ((1, 1), (5, 3), (1, 40)):
        latents_BCHW = 3 * torch.randn(2, width, rows, columns)
        for training in (True, False):
            quantizer.train(training)
            quantized = quantizer(latents_BCHW)
            codes_BHW = quantizer.codes(latents_BCHW)
            assert quantized.latents_BCHW.shape == latents_BCHW.shape
            assert quantized.codes_BHW.shape == codes_BHW.shape == (2, rows, columns)
            assert codes_BHW.dtype == torch.long and 0 <= codes_BHW.min() <= codes_BHW.max() < size
            assert quantized.loss.shape == () and quantized.loss.isfinite()
        assert torch.equal(quantized.codes_BHW, codes_BHW)  # pyright: ignore[reportPossiblyUnboundVariable]
        stood_for = quantizer.latents(codes_BHW)
        assert torch.allclose(quantized.latents_BCHW, stood_for, atol=1e-5)  # pyright: ignore[reportPossiblyUnboundVariable]


def test_the_latents_of_every_code_are_given_that_code_again(name, quantizer):
    every = torch.arange(size_of(name)[0]).view(1, 1, -1)
    latents_BCHW = quantizer.latents(every)
    assert len(latents_BCHW[0, :, 0].T.unique(dim=0)) == every.numel()
    # FSQ's latents are squashed, and would be squashed once more; Gumbel's scores are not distances to its entries.
    if name not in ("finite_scalar", "gumbel"):
        assert torch.equal(quantizer.codes(latents_BCHW), every)


def test_latents_that_are_no_numbers_have_codes_in_range(quantizer, latents_BCHW):
    """They come of one bad batch, whose step changes nothing: no code may end the training first."""
    for bad in (float("nan"), float("inf"), -float("inf")):
        for training in (True, False):
            latents_BCHW[..., 1:3] = bad
            codes_BHW = quantizer.train(training)(latents_BCHW).codes_BHW
            assert 0 <= codes_BHW.min() <= codes_BHW.max() < quantizer.size


def test_a_gumbel_quantizer_draws_while_it_trains_and_takes_the_likeliest_otherwise(latents_BCHW):
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(6, latents_BCHW.shape[1], temperature=1.0, divergence=1.0)
    likeliest_BHW = quantizer.eval()(latents_BCHW).codes_BHW
    assert torch.equal(likeliest_BHW, quantizer.codes(latents_BCHW))
    shares_BNHW = quantizer.proj(latents_BCHW).softmax(1)
    expected = (shares_BNHW * (shares_BNHW * 6).log()).sum(1).mean()
    assert torch.allclose(quantizer(latents_BCHW).loss, expected, atol=1e-5)
    quantizer.train()
    drawn_XBHW = torch.stack([quantizer(latents_BCHW).codes_BHW for _ in range(400)])
    counts_BNHW = F.one_hot(drawn_XBHW, 6).float().mean(0).movedim(3, 1)
    assert (counts_BNHW - shares_BNHW).abs().max() < 0.12  # five standard errors of 400 draws


def test_a_gradient_reaches_the_latents(quantizer, latents_BCHW):
    latents_BCHW.requires_grad_()
    quantized = quantizer(latents_BCHW)
    upstream = torch.randn_like(latents_BCHW)
    (through,) = torch.autograd.grad((quantized.latents_BCHW * upstream).sum(), latents_BCHW, retain_graph=True)
    assert through.isfinite().all() and (through.abs().sum(1) > 0).all()
    if quantized.loss.requires_grad:
        (pull,) = torch.autograd.grad(quantized.loss, latents_BCHW)
        assert pull.isfinite().all() and pull.abs().sum() > 0
    else:
        assert isinstance(quantizer, FiniteScalarQuantizer) and quantized.loss == 0


def test_outside_training_nothing_changes_and_asking_for_codes_never_does(quantizer, latents_BCHW):
    before, drawn = state(quantizer), torch.random.get_rng_state()
    for training in (True, False):
        quantizer.train(training)
        quantizer.latents(quantizer.codes(latents_BCHW))
    quantizer(latents_BCHW)
    assert same(state(quantizer), before) and torch.equal(torch.random.get_rng_state(), drawn)


def test_a_tokenizer_with_it_comes_back_from_its_tensors(name, image_config):
    size, width = size_of(name)
    config = replace(image_config, codes=size, code_width=width, quantizer=name)
    tokenizer, pixels_BCHW = ImageTokenizer(config), torch.rand(2, 3, 16, 24) * 2 - 1
    tokenizer(pixels_BCHW)
    with torch.device("meta"):
        again = ImageTokenizer(config)
    fill(again, tokenizer.state_dict(), Path("memory"))
    assert not any(tensor.is_meta for tensor in [*again.parameters(), *again.buffers()])
    with torch.no_grad():
        codes_BHW = tokenizer.eval().encode_pixels(pixels_BCHW)
        assert torch.equal(again.eval().encode_pixels(pixels_BCHW), codes_BHW)
        assert torch.equal(again.decode_pixels(codes_BHW), tokenizer.decode_pixels(codes_BHW))
    assert again.codebook.shape == (size, width)


def test_an_autoencoder_of_a_few_points_learns_through_it(name, quantizer):
    width, points_XC = size_of(name)[1], torch.randn(8, 6)
    encoder, decoder = nn.Conv2d(6, width, 1), nn.Conv2d(width, 6, 1)
    optimizer = torch.optim.Adam([*encoder.parameters(), *quantizer.parameters(), *decoder.parameters()], lr=0.03)
    errors, losses = [], []
    for _ in range(80):
        scattered_BCHW = (points_XC.repeat(16, 1) + 0.05 * torch.randn(128, 6)).T.reshape(1, 6, 8, 16)
        quantized = quantizer(encoder(scattered_BCHW))
        error = F.mse_loss(decoder(quantized.latents_BCHW), scattered_BCHW)
        optimizer.zero_grad()
        (error + quantized.loss).backward()
        optimizer.step()
        errors.append(error.item())
        losses.append((error + quantized.loss).item())
    assert sum(errors[-5:]) < 0.5 * sum(errors[:5])
    assert sum(losses[-5:]) < sum(losses[:5]) - 1


def test_half_precision_latents_get_the_codes_of_their_values(quantizer, latents_BCHW):
    half_BCHW = latents_BCHW.bfloat16().requires_grad_()
    quantized = quantizer.eval()(half_BCHW)
    assert quantized.latents_BCHW.dtype == torch.bfloat16 and quantized.loss.isfinite()
    (quantized.latents_BCHW.sum() + quantized.loss).backward()
    assert half_BCHW.grad is not None and half_BCHW.grad.isfinite().all()
    if not isinstance(quantizer, CosineQuantizer):  # which rounds once more where it normalises
        assert torch.equal(quantized.codes_BHW, quantizer.codes(half_BCHW.detach().float()))
    quantizer.train()(half_BCHW)
    whole = quantizer.eval().bfloat16()
    codes_BHW = whole.codes(half_BCHW)
    assert 0 <= codes_BHW.min() <= codes_BHW.max() < whole.size
    assert whole.latents(codes_BHW).dtype == whole(half_BCHW).latents_BCHW.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_nearest_is_found_in_full_precision_whatever_the_model_runs_in(dtype):
    quantizer, latents_BCHW = VectorQuantizer(64, 8), (10 + torch.randn(1, 8, 9, 9)).to(dtype)
    quantizer.embedding.weight.data = (10 + torch.randn(64, 8)).to(dtype)
    apart = (latents_BCHW.movedim(1, -1)[..., None, :].double() - quantizer.embedding.weight.double()).square().sum(-1)
    assert torch.equal(quantizer.codes(latents_BCHW), apart.argmin(-1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.codes(latents_BCHW), apart.argmin(-1))


@pytest.mark.parametrize("size", [(0, 4), (-8, 4), (16, 0), (16, -1)])
def test_a_quantizer_of_nothing_is_refused(name, size):
    with pytest.raises(ValueError, match=rf"{size[0]}|{size[1]}"):
        QUANTIZERS[name](*size)


def test_a_quantizer_of_your_own_needs_no_more_than_the_protocol(image_config):
    class Brightest(nn.Module):
        """The channel that is largest, as a code."""

        def __init__(self, size: int, width: int) -> None:
            super().__init__()
            self.size, self.width = size, width

        def codes(self, latents_BCHW: Tensor) -> Tensor:
            return latents_BCHW.argmax(1)

        def latents(self, codes_BHW: Tensor) -> Tensor:
            return F.one_hot(codes_BHW, self.width).movedim(-1, 1).float()

        def forward(self, latents_BCHW: Tensor) -> Quantized:
            codes_BHW = self.codes(latents_BCHW)
            return Quantized(straight_through(latents_BCHW, self.latents(codes_BHW)), codes_BHW, torch.zeros(()))

    tokenizer = ImageTokenizer(replace(image_config, codes=4, code_width=4, quantizer=Brightest))
    rebuilt_BCHW, quantized = tokenizer(torch.rand(1, 3, 8, 16))
    assert rebuilt_BCHW.shape == (1, 3, 8, 16) and quantized.codes_BHW.shape == (1, 2, 4)
    assert isinstance(tokenizer.quantize, Quantizer)


# Learned books


def test_the_nearest_code_is_the_nearest_code():
    quantizer = VectorQuantizer(9, 3)
    nn.init.normal_(quantizer.embedding.weight)
    latents_BCHW = torch.randn(2, 3, 4, 5)
    apart = (latents_BCHW.movedim(1, -1)[..., None, :] - quantizer.embedding.weight).square().sum(-1)
    codes_BHW = quantizer.codes(latents_BCHW)
    assert torch.equal(codes_BHW, apart.argmin(-1))
    assert torch.equal(quantizer.latents(codes_BHW)[1, :, 2, 3], quantizer.embedding.weight[codes_BHW[1, 2, 3]])


@pytest.mark.parametrize("distances", [1, 700, 10**4])
def test_the_search_for_the_nearest_is_the_same_in_parts(monkeypatch, distances):
    latents_BCHW, book_NC = torch.randn(3, 5, 7, 11), torch.randn(50, 5)
    at_once = nearest(latents_BCHW, book_NC)
    monkeypatch.setattr(quantizers, "DISTANCES", distances)
    assert torch.equal(nearest(latents_BCHW, book_NC), at_once)
    assert nearest(latents_BCHW[:0], book_NC).shape == (0, 7, 11)


@pytest.mark.parametrize("build", [VectorQuantizer, lambda n, c: MovingAverageQuantizer(n, c, warm_up=0)])
def test_gradients_pass_a_quantizer_straight_through(build):
    quantizer = build(9, 3)
    latents_BCHW = torch.randn(2, 3, 4, 4, requires_grad=True)
    quantized = quantizer(latents_BCHW)
    assert torch.allclose(quantized.latents_BCHW, quantizer.latents(quantizer.codes(latents_BCHW)), atol=1.0)
    upstream = torch.randn_like(latents_BCHW)
    (through,) = torch.autograd.grad((quantized.latents_BCHW * upstream).sum(), latents_BCHW, retain_graph=True)
    assert torch.equal(through, upstream)
    (pull,) = torch.autograd.grad(quantized.loss, latents_BCHW)
    assert pull.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name not in ("vector_rotation", "gumbel")])
def test_what_comes_before_the_choice_alone_bends_the_gradient(name, quantizer, latents_BCHW):
    """Nothing (learned books, LFQ), the length (cosine, BSQ) or tanh (FSQ): all else is straight through."""
    latents_BCHW.requires_grad_()
    before = {
        "cosine": lambda z: F.normalize(z, dim=1),
        "binary_spherical": lambda z: F.normalize(z, dim=1),
        "finite_scalar": lambda z: (z + math.atanh(1 / 3)).tanh() * 3 / 4,  # 4 levels, 2 of them on a side
    }.get(name, lambda z: z)
    upstream = torch.randn_like(latents_BCHW)
    quantized = quantizer(latents_BCHW)
    (through,) = torch.autograd.grad((quantized.latents_BCHW * upstream).sum(), latents_BCHW)
    (expected,) = torch.autograd.grad((before(latents_BCHW) * upstream).sum(), latents_BCHW)
    assert torch.allclose(through, expected, atol=1e-6)


def rotation(here: Tensor, there: Tensor) -> Tensor:
    """The rotation in the plane of two vectors that turns the one to the other's direction, written out."""
    first = here / here.norm()
    second = there - (there @ first) * first
    second = second / second.norm()
    cosine, sine = there @ first / there.norm(), there @ second / there.norm()
    plane = torch.outer(first, first) + torch.outer(second, second)
    turn = cosine * plane + sine * (torch.outer(second, first) - torch.outer(first, second))
    return torch.eye(len(here), dtype=here.dtype) - plane + turn


def test_the_rotation_trick_turns_and_scales_the_gradient_as_the_latent_was():
    latents_BCHW = torch.randn(2, 5, 3, 2, dtype=torch.double, requires_grad=True)
    chosen_BCHW, upstream = torch.randn(2, 2, 5, 3, 2, dtype=torch.double)
    turned_BCHW = rotate_to(latents_BCHW, chosen_BCHW)
    assert torch.allclose(turned_BCHW, chosen_BCHW)
    (through,) = torch.autograd.grad((turned_BCHW * upstream).sum(), latents_BCHW)
    for b, h, w in product(range(2), range(3), range(2)):
        here, there = latents_BCHW[b, :, h, w].detach(), chosen_BCHW[b, :, h, w]
        matrix, scale = rotation(here, there), there.norm() / here.norm()
        assert torch.allclose(matrix @ matrix.T, torch.eye(5, dtype=torch.double)) and torch.det(matrix) > 0
        assert torch.allclose(scale * matrix @ here, there)
        assert torch.allclose(through[b, :, h, w], scale * matrix.T @ upstream[b, :, h, w])
        before = F.cosine_similarity(there, upstream[b, :, h, w], 0)
        assert torch.isclose(F.cosine_similarity(here, through[b, :, h, w], 0), before)


def test_the_rotation_trick_holds_where_no_rotation_is_defined():
    latents_BCHW = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [1e-20, 0.0]]).T[None, :, None].requires_grad_()
    chosen_BCHW = torch.tensor([[1.0, 2.0], [-6.0, -8.0], [0.0, 0.0], [0.0, 1e-20]]).T[None, :, None]
    upstream = torch.randn(1, 2, 1, 4)
    turned_BCHW = rotate_to(latents_BCHW, chosen_BCHW)
    assert torch.allclose(turned_BCHW, chosen_BCHW)
    (through,) = torch.autograd.grad((turned_BCHW * upstream).sum(), latents_BCHW)
    assert through.isfinite().all()
    assert torch.allclose(through[..., 0], upstream[..., 0])  # a latent of no length
    assert torch.isclose(through[..., 1].norm(), 2 * upstream[..., 1].norm())  # a code on the other side, twice as far
    assert through[..., 2].abs().sum() == 0  # a code of no length


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_book_takes_either_gradient_and_the_same_codes(name, latents_BCHW):
    outputs, gradients = [], []
    latents_BCHW.requires_grad_()
    for gradient in (straight_through, rotate_to):
        torch.manual_seed(0)
        quantized = LEARNED[name](24, 4, gradient=gradient)(latents_BCHW)
        outputs.append(quantized)
        gradients += torch.autograd.grad(quantized.latents_BCHW.square().sum(), latents_BCHW)
    assert torch.equal(outputs[0].codes_BHW, outputs[1].codes_BHW) and torch.equal(outputs[0].loss, outputs[1].loss)
    assert torch.allclose(outputs[0].latents_BCHW, outputs[1].latents_BCHW, atol=1e-5)
    assert not torch.allclose(gradients[0], gradients[1], atol=1e-3)


def test_a_codebook_learns_by_gradient_and_commitment_weighs_the_pull():
    latents_BCHW = torch.randn(2, 3, 4, 4)
    losses = {}
    for commitment in (0.0, 1.0):
        torch.manual_seed(0)
        quantizer = VectorQuantizer(9, 3, commitment=commitment)
        losses[commitment] = quantizer(latents_BCHW).loss
        losses[commitment].backward()
        assert quantizer.embedding.weight.grad is not None and quantizer.embedding.weight.grad.abs().sum() > 0
    assert torch.isclose(losses[1.0], 2 * losses[0.0])


@pytest.mark.parametrize("name", LEARNED)
def test_trap_23_beta_weighs_the_pull_of_latents_and_never_what_the_book_learns(name):
    latents_BCHW = torch.randn(2, 4, 3, 3, requires_grad=True)
    gradients_of_loss = []
    for commitment in (0.25, 0.5):
        torch.manual_seed(0)
        quantizer = LEARNED[name](24, 4, commitment=commitment)
        learned = [parameter for parameter in quantizer.parameters() if parameter.requires_grad]
        gradients_of_loss.append(torch.autograd.grad(quantizer(latents_BCHW).loss, [latents_BCHW, *learned]))
    (pull, *learn), (pull_of_twice, *learn_of_twice) = gradients_of_loss
    assert pull.any() and torch.allclose(pull_of_twice, 2 * pull)
    assert all(one.any() and torch.equal(one, other) for one, other in zip(learn, learn_of_twice, strict=True))
    torch.manual_seed(0)
    assert torch.equal(torch.autograd.grad(LEARNED[name](24, 4)(latents_BCHW).loss, latents_BCHW)[0], pull)


def test_trap_23_the_legacy_book_alone_has_the_two_weights_exchanged():
    latents_BCHW = torch.randn(2, 4, 3, 3, requires_grad=True)
    gradients = {}
    for name in ("vector", "vector_legacy"):
        torch.manual_seed(0)
        quantizer = built(name)
        inputs = (latents_BCHW, quantizer.get_parameter("embedding.weight"))
        gradients[name] = torch.autograd.grad(quantizer(latents_BCHW).loss, inputs)
    (pull, learn), (legacy_pull, legacy_learn) = gradients["vector"], gradients["vector_legacy"]
    assert torch.allclose(legacy_pull, 4 * pull) and torch.allclose(4 * legacy_learn, learn)
    assert pull.abs().sum() > 0 and learn.abs().sum() > 0


def test_the_moving_average_book_starts_at_the_k_means_of_what_it_sees():
    centres_XC = torch.tensor([[x, y] for x in (0.0, 5.0, 10.0) for y in (0.0, 5.0, 10.0)])
    latents_XC = centres_XC.repeat(50, 1) + 0.01 * torch.randn(450, 2)
    quantizer = MovingAverageQuantizer(40, 2, warm_up=2)
    latents_BCHW = latents_XC.T.reshape(1, 2, 1, -1)
    for _ in range(2):
        assert torch.equal(quantizer(latents_BCHW).latents_BCHW, latents_BCHW)  # not quantized before
    quantized = quantizer(latents_BCHW)
    assert (quantized.latents_BCHW - latents_BCHW).abs().max() < 0.1
    assert len(quantized.codes_BHW.unique()) >= 9


def test_a_moving_average_book_follows_the_mean_of_what_it_catches():
    quantizer = MovingAverageQuantizer(2, 1, warm_up=0, decay=0.5)
    near, far = torch.full((1, 1, 1, 8), -1.0), torch.full((1, 1, 1, 8), 1.0)
    quantizer(torch.cat([near, far], -1))
    for _ in range(30):
        quantizer(torch.cat([near - 0.5, far + 1.0], -1))
    assert torch.allclose(quantizer.embedding.weight.sort(0).values.flatten(), torch.tensor([-1.5, 2.0]), atol=0.01)


def test_dead_codes_restart_where_latents_are():
    corner_BCHW = 0.01 * torch.randn(1, 2, 8, 8)
    wide_BCHW = 50 + 20 * torch.randn(1, 2, 8, 8)
    used = {}
    for patience in (5, 10**9):
        torch.manual_seed(0)
        quantizer = MovingAverageQuantizer(16, 2, warm_up=0, patience=patience)
        for step in range(120):
            quantizer(corner_BCHW if step < 3 else wide_BCHW)
        used[patience] = len(quantizer.eval().codes(wide_BCHW).unique())
    assert used[10**9] <= 3
    assert used[5] >= 12


def test_a_moving_average_book_keeps_the_names_that_checkpoints_know():
    quantizer = MovingAverageQuantizer(8, 2)
    assert set(quantizer.state_dict()) == {"embedding.weight", "counts_N", "sums_NC", "idle_N", "steps"}
    assert set(VectorQuantizer(8, 2).state_dict()) == {"embedding.weight"}
    assert not any(parameter.requires_grad for parameter in quantizer.parameters())


def test_on_clustered_latents_the_plain_book_dies_and_k_means_with_restarts_keeps_nearly_all_codes():
    centres_XC = 3 * torch.randn(32, 2)
    latents_BCHW = (centres_XC.repeat(16, 1) + 0.05 * torch.randn(512, 2)).T.reshape(1, 2, 16, 32)
    used = {}
    for name, quantizer in (("plain", VectorQuantizer(32, 2)), ("ema", MovingAverageQuantizer(32, 2, warm_up=0))):
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.1)
        for _ in range(200):
            loss = quantizer(latents_BCHW).loss
            if loss.requires_grad:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        used[name] = len(quantizer.eval().codes(latents_BCHW).unique())
    assert used["plain"] <= 20 and used["ema"] >= 28


def test_cosine_codes_do_not_see_lengths():
    quantizer, latents_BCHW = CosineQuantizer(24, 4), torch.randn(2, 4, 5, 3)
    codes_BHW = quantizer.codes(latents_BCHW)
    assert torch.equal(quantizer.codes(latents_BCHW * torch.rand(2, 1, 5, 3) * 100 + 1e-3 * latents_BCHW), codes_BHW)
    likeness = torch.einsum("bchw,nc->bhwn", F.normalize(latents_BCHW, dim=1), F.normalize(quantizer.embedding.weight))
    assert torch.equal(codes_BHW, likeness.argmax(-1))
    assert torch.allclose(quantizer.latents(codes_BHW).norm(dim=1), torch.ones(2, 5, 3))


def test_one_step_of_the_sim_layer_moves_entries_that_nothing_chose():
    quantizer, every = SimQuantizer(24, 4), torch.arange(24).view(1, 1, -1)
    optimizer, latents_BCHW = torch.optim.SGD(quantizer.parameters(), lr=0.1), torch.ones(1, 4, 1, 1)
    book, before = quantizer.embedding.weight.clone(), quantizer.latents(every).detach()
    quantizer(latents_BCHW).loss.backward()
    optimizer.step()
    assert torch.equal(quantizer.embedding.weight, book) and quantizer.embedding.weight.grad is None
    assert ((quantizer.latents(every) - before).norm(dim=1) > 1e-4).all()


# Other packages'


THEIRS = {
    "VectorQuantize": lambda package: package.VectorQuantize(dim=4, codebook_size=16, threshold_ema_dead_code=2),
    "VectorQuantize of maps": lambda package: package.VectorQuantize(dim=4, codebook_size=16, accept_image_fmap=True),
    "VectorQuantize of width 2": lambda package: package.VectorQuantize(dim=4, codebook_size=16, codebook_dim=2),
    "VectorQuantize by cosine": lambda package: package.VectorQuantize(dim=4, codebook_size=16, use_cosine_sim=True),
    "FSQ": lambda package: package.FSQ(levels=[4, 4], dim=4),
    "FSQ of maps": lambda package: package.FSQ(levels=[4, 4], dim=4, channel_first=True),
    "LFQ": lambda package: package.LFQ(codebook_size=16),
    "LFQ of maps": lambda package: package.LFQ(codebook_size=16, channel_first=True),
    "BSQ": lambda package: package.LFQ(codebook_size=16, spherical=True),
    "SimVQ": lambda package: package.SimVQ(dim=4, codebook_size=16),
    "SimVQ of maps": lambda package: package.SimVQ(dim=4, codebook_size=16, channel_first=True),
}


@pytest.fixture(params=THEIRS)
def theirs(request) -> nn.Module:
    import vector_quantize_pytorch

    return THEIRS[request.param](vector_quantize_pytorch)


def test_a_module_of_the_package_keeps_the_protocol_once_adapted(theirs):
    quantizer, latents_BCHW = Adapted(theirs, 16), torch.randn(2, 4, 5, 3, requires_grad=True)
    assert isinstance(quantizer, Quantizer) and quantizer.size == 16
    quantized = quantizer(latents_BCHW)
    (through,) = torch.autograd.grad((quantized.latents_BCHW + quantized.loss).exp().sum(), latents_BCHW)
    assert through.isfinite().all() and (through.abs().sum(1) > 0).all()
    before = state(quantizer)
    codes_BHW = quantizer.codes(latents_BCHW)
    assert same(state(quantizer), before) and quantizer.training and theirs.training
    assert codes_BHW.shape == (2, 5, 3) and codes_BHW.dtype == torch.long
    assert 0 <= codes_BHW.min() <= codes_BHW.max() < 16 and len(codes_BHW.unique()) > 2
    quantized = quantizer.eval()(latents_BCHW)
    assert torch.equal(quantized.codes_BHW, codes_BHW) and quantized.loss.shape == ()
    assert torch.equal(quantizer.codes(latents_BCHW), codes_BHW) and not theirs.training
    assert torch.allclose(quantized.latents_BCHW, quantizer.latents(codes_BHW), atol=1e-5)
    again = Adapted(theirs, 16)
    again.load_state_dict(state(quantizer))
    assert torch.equal(again.eval().codes(latents_BCHW), codes_BHW)


def test_a_module_of_the_package_gives_a_cell_the_same_code_wherever_it_stands(theirs):
    quantizer, latents_BCHW = Adapted(theirs, 16).eval(), torch.randn(2, 4, 4, 4)  # as many channels as columns
    codes_BHW = quantizer.codes(latents_BCHW)
    assert torch.equal(quantizer.codes(latents_BCHW.mT), codes_BHW.mT)
    assert torch.equal(quantizer.codes(latents_BCHW[1:, :, 2:3, 1:]), codes_BHW[1:, 2:3, 1:])


def test_a_tokenizer_learns_through_a_module_of_the_package(theirs, image_config):
    config = replace(image_config, codes=16, quantizer=lambda size, width: Adapted(theirs, size))
    tokenizer, pixels_BCHW = ImageTokenizer(config), torch.rand(2, 3, 8, 16) * 2 - 1
    rebuilt_BCHW, quantized = tokenizer(pixels_BCHW)
    (F.mse_loss(rebuilt_BCHW, pixels_BCHW) + quantized.loss).backward()
    assert tokenizer.quant_conv.weight.grad is not None and tokenizer.quant_conv.weight.grad.abs().sum() > 0
    with torch.no_grad():
        codes_BHW = tokenizer.eval().encode_pixels(pixels_BCHW)
        assert codes_BHW.shape == (2, 2, 4) and tokenizer.decode_pixels(codes_BHW).shape == pixels_BCHW.shape
    assert tokenizer.codebook.shape == (16, 4)


class Silent(nn.Module):
    """A quantizer of several codes a cell that has no attribute to say so."""

    def indices_to_codes(self, codes: torch.Tensor) -> torch.Tensor:
        return codes

    def forward(self, latents_BNC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return latents_BNC, torch.zeros(*latents_BNC.shape[:2], 2, dtype=torch.long)


def test_modules_that_no_grid_of_codes_fits_are_refused():
    from vector_quantize_pytorch import FSQ, GroupedResidualVQ, LatentQuantize, ResidualVQ, VectorQuantize

    several = "several codes a cell, and a picture's grid has room for one"
    cases: list[tuple[nn.Module, int, str]] = [
        (ResidualVQ(dim=4, codebook_size=16, num_quantizers=1), 16, f"ResidualVQ gives {several}"),
        (
            GroupedResidualVQ(dim=4, codebook_size=16, num_quantizers=2, groups=2),
            16,
            f"GroupedResidualVQ gives {several}",
        ),
        (VectorQuantize(dim=4, codebook_size=16, heads=2), 16, f"VectorQuantize gives {several}"),
        (FSQ(levels=[4, 4], num_codebooks=2), 16, f"FSQ gives {several}"),
        (LatentQuantize(levels=[4, 4], dim=4, num_codebooks=2), 16, several),
        (VectorQuantize(dim=4, codebook_size=16), 32, "VectorQuantize has 16 codes, not 32"),
        (VectorQuantize(dim=4, codebook_size=16, channel_last=False), 16, "build it with accept_image_fmap=True"),
    ]
    for module, size, why in cases:
        with pytest.raises(ValueError, match=why):
            Adapted(module, size)
    with pytest.raises(ValueError, match=r"Silent gives codes of shape \(1, 6, 2\) for 1 grids of 2x3 cells"):
        Adapted(Silent(), 16)(torch.randn(1, 4, 2, 3))


def test_the_package_and_we_turn_gradients_alike():
    from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to as their_rotate_to

    latents_BCHW, chosen_BCHW, upstream = torch.randn(3, 2, 4, 9, 7)
    gradients = []
    for turn in (rotate_to, lambda z, e: their_rotate_to(z.movedim(1, -1), e.movedim(1, -1)).movedim(-1, 1)):
        leaf = latents_BCHW.clone().requires_grad_()
        gradients += torch.autograd.grad((turn(leaf, chosen_BCHW) * upstream).sum(), leaf)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-4)


class Shifted(nn.Module):
    """A quantizer whose codes become other latents than those that it gives beside them."""

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__()
        self.book = nn.Embedding(codebook_size, dim)

    def indices_to_codes(self, codes: torch.Tensor) -> torch.Tensor:
        return self.book(codes)

    def forward(self, latents_BNC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = torch.cdist(latents_BNC, self.book.weight[None]).argmin(-1)
        return self.book(codes) + latents_BNC.mean(), codes


def test_modules_that_cannot_be_adapted_are_refused_where_they_are_given():
    import vector_quantize_pytorch as theirs
    from torch import nn

    book: dict[str, Any] = {"dim": 8, "codebook_size": 16}
    cases = {
        "affine_param=True": theirs.VectorQuantize(**book, affine_param=True),
        "several codes a cell": theirs.ResidualVQ(**book, num_quantizers=2),
        "no codes": theirs.FSQ([4, 4], return_indices=False),
        "has no indices_to_codes": nn.Sequential(nn.Identity(), theirs.VectorQuantize(**book)),
        "is a module of torch, made": theirs.VectorQuantize,
        "several codes": theirs.VectorQuantize(**book, heads=2, separate_codebook_per_head=True),
    }
    for why, module in cases.items():
        with pytest.raises(ValueError, match=why):
            Adapted(module, 16)
    for module in (Shifted(**book), theirs.FSQ([4, 4], dim=8, channel_first=False, projection_has_bias=False)):
        vars(module)["dim"] = 8 if isinstance(module, Shifted) else 6  # of which it knows nothing
        with pytest.raises(ValueError, match=r"(Shifted|FSQ) cannot quantize latents of width [68] as grids"):
            Adapted(module, 16)
    unfilled = theirs.VectorQuantize(**book, kmeans_init=True)
    before = state(unfilled)
    assert same(state(Adapted(unfilled, 16).module), before) and unfilled.training
    with pytest.raises(ValueError, match=r"several codes a cell|no indices_to_codes"):
        Adapted(theirs.GroupedResidualVQ(**book, num_quantizers=1, groups=2), 16)
    Adapted(theirs.VectorQuantize(**book), 16)


@pytest.mark.parametrize("seed", range(4))
def test_a_spread_book_spends_few_entries_where_latents_are_dense(seed):
    """Nine tenths of the latents lie in a cloud a hundredth as wide as the rest."""
    generator = torch.Generator().manual_seed(seed)
    dense = 0.01 * torch.randn(1800, 4, generator=generator)
    latents_XC = torch.cat([dense, torch.randn(200, 4, generator=generator) + 3])
    book_NC = spread_book(latents_XC, 32, seed)
    assert book_NC.shape == (32, 4) and torch.equal(book_NC, spread_book(latents_XC, 32, seed))
    near_dense = book_NC.norm(dim=1) < 0.5
    assert 1 <= int(near_dense.sum()) <= 3
    spread = torch.cdist(latents_XC, book_NC).min(1).values.square().mean()
    by_chance = latents_XC[torch.randperm(len(latents_XC), generator=generator)[:32]]
    assert spread < 0.5 * torch.cdist(latents_XC, by_chance).min(1).values.square().mean()


def test_a_book_needs_as_many_latents_as_entries():
    with pytest.raises(ValueError, match="more pictures"):
        spread_book(torch.zeros(3, 4), 4)
    assert spread_book(torch.zeros(6, 4), 4).isfinite().all()  # all alike
