"""Quantizers with nothing to learn: digits and codes are one, levels lie evenly, signs are bits.

What all quantizers keep, these too, is in test_quantizers.
"""

import math
from itertools import product

import pytest
import torch

from chameleon_lab.tokenizers.image import QUANTIZERS
from chameleon_lab.tokenizers.levels import (
    BinarySphericalQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    codes_of,
    digits_of,
    entropy_penalty,
    even_levels,
)
from chameleon_lab.tokenizers.quantizers import Adapted


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 2, 2), (3,), (4, 2, 7)])
def test_codes_and_digits_are_one_to_one(levels):
    every = torch.arange(math.prod(levels)).view(1, 1, -1)
    digits_BCHW = digits_of(every, levels)
    assert torch.equal(codes_of(digits_BCHW, levels), every)
    assert {tuple(digits) for digits in digits_BCHW[0, :, 0].T.tolist()} == set(product(*map(range, levels)))


@pytest.mark.parametrize(
    ("size", "width", "levels"),
    [(512, 3, (8, 8, 8)), (8192, 5, (8, 8, 8, 4, 4)), (16, 4, (2, 2, 2, 2)), (512, 1, (512,)), (2, 1, (2,))],
)
def test_levels_are_powers_of_two_as_even_as_possible(size, width, levels):
    assert even_levels(size, width) == FiniteScalarQuantizer(size, width).levels == levels


@pytest.mark.parametrize("level", [2, 3, 4, 5, 8, 512])
def test_every_level_of_a_channel_is_reached_in_order_and_evenly_spaced(level):
    quantizer = FiniteScalarQuantizer(level, 1, levels=(level,))
    latents_BCHW = torch.linspace(-9, 9, 40001).view(1, 1, 1, -1)
    codes = quantizer.codes(latents_BCHW).flatten()
    assert codes.unique_consecutive().tolist() == list(range(level))
    values = quantizer.latents(torch.arange(level).view(1, 1, -1)).flatten()
    assert values[0] == -1 and values[-1] <= 1 and 0 in values
    assert torch.allclose(values.diff(), torch.full((level - 1,), 1 / (level // 2)))
    around = quantizer(torch.tensor([-1e-4, 1e-4]).view(1, 1, 1, 2)).latents_BCHW.flatten()
    assert around.tolist() == ([-1, 0] if level == 2 else [0, 0])


@pytest.mark.parametrize(
    ("size", "width", "why"),
    [
        (512, 10, "512 codes are 9 bits, which 10 channels cannot share: widths 1 to 9 fit"),
        (500, 3, "cannot share 500 codes: take a power of two, 256 or 512"),
        (1, 1, "take a power of two, 2 or 4"),
    ],
)
def test_sizes_that_no_levels_fit_are_refused(size, width, why):
    with pytest.raises(ValueError, match=why):
        QUANTIZERS["finite_scalar"](size, width)


@pytest.mark.parametrize(("size", "levels"), [(1000, (8, 5, 5)), (999, (8, 5, 5, 5)), (8, (8, 1, 1, 1)), (1, ())])
def test_levels_that_do_not_make_the_codes_are_refused(size, levels):
    with pytest.raises(ValueError, match=f"do not make {size} codes of width 4"):
        FiniteScalarQuantizer(size, 4, levels=levels)
    assert FiniteScalarQuantizer(1000, 4, levels=(8, 5, 5, 5)).size == 1000


@pytest.mark.parametrize("name", ["lookup_free", "binary_spherical"])
@pytest.mark.parametrize(
    ("size", "width", "why"),
    [(512, 3, "3 signs do not make 512 codes: 512 codes have a width of 9"), (12, 3, "8 codes .* of 3, 16 of 4")],
)
def test_sizes_that_no_signs_fit_are_refused(name, size, width, why):
    with pytest.raises(ValueError, match=why):
        QUANTIZERS[name](size, width)


def test_signs_are_bits_and_the_sphere_has_radius_one():
    latents_BCHW = torch.tensor([[0.3, -2.0, 5.0], [-0.1, -0.1, -7.0]]).T[None, :, None]
    for quantizer, corner in ((LookupFreeQuantizer(8, 3), 1.0), (BinarySphericalQuantizer(8, 3), 3**-0.5)):
        assert quantizer.codes(latents_BCHW).flatten().tolist() == [0b101, 0b000]
        output_BCHW = quantizer(latents_BCHW).latents_BCHW
        assert torch.allclose(output_BCHW[0, :, 0, 0], corner * torch.tensor([1.0, -1.0, 1.0]))


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_the_entropy_penalty_is_that_of_the_chances_of_all_codes(temperature):
    latents_BCHW, every = torch.randn(2, 4, 3, 5), torch.arange(16).view(1, 1, -1)
    corners_NC = LookupFreeQuantizer(16, 4).latents(every)[0, :, 0].T
    apart_XN = torch.cdist(latents_BCHW.movedim(1, -1).flatten(0, 2), corners_NC).square()
    chances_XN = (-apart_XN / temperature).softmax(1)
    sure = torch.special.entr(chances_XN).sum(1).mean()
    spread = torch.special.entr(chances_XN.mean(0)).sum()
    assert torch.isclose(entropy_penalty(latents_BCHW, temperature), sure - spread, atol=1e-5)
    # Of bits that never agree but by chance, groups say the same; of bits that always agree, they see too much spread.
    for bits_BCHW, differs in ((10 * corners_NC, False), (10 * corners_NC[:, :1].expand(16, 4), True)):
        bits_BCHW = bits_BCHW.T[None, :, None]
        jointly, apart = entropy_penalty(bits_BCHW, temperature), entropy_penalty(bits_BCHW, temperature, together=2)
        assert (apart < jointly - 0.5) == differs


def test_the_entropy_penalty_lies_between_nothing_and_all_codes_alike():
    corners_BCHW = 50 * LookupFreeQuantizer(1024, 10).latents(torch.arange(1024).view(1, 32, 32))
    assert math.isclose(entropy_penalty(corners_BCHW, 1.0).item(), -10 * math.log(2), rel_tol=1e-5)
    assert abs(entropy_penalty(corners_BCHW[:, :, :1, :1], 1.0)) < 1e-5  # sure, but of one code
    assert abs(entropy_penalty(0 * corners_BCHW, 1.0)) < 1e-5  # all codes, but never sure


def test_the_package_and_we_agree_on_levels_and_bits():
    from vector_quantize_pytorch import FSQ, LFQ

    latents_BCHW, every = torch.randn(2, 4, 9, 7), torch.arange(1000).view(1, 10, 100)
    ours, theirs = FiniteScalarQuantizer(1000, 4, levels=(8, 5, 5, 5)), Adapted(FSQ(levels=[8, 5, 5, 5]), 1000)
    assert torch.allclose(ours.latents(every), theirs.latents(every), atol=1e-6)
    assert (ours.codes(latents_BCHW) == theirs.codes(latents_BCHW)).float().mean() > 0.97  # they add a margin of 0.1%
    _, indices, penalty = LFQ(codebook_size=16, entropy_loss_weight=1.0)(latents_BCHW.flip(1), inv_temperature=1.0)
    assert torch.equal(LookupFreeQuantizer(16, 4).codes(latents_BCHW), indices)  # their first bit is the highest
    assert torch.isclose(entropy_penalty(latents_BCHW, 1.0), penalty, atol=1e-4)
