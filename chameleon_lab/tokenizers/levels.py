"""Quantizers of fixed geometry, with nothing to learn: a few levels a channel, or its sign, behind the same protocol.

A code is a number whose digits, 0..level-1, are read off the channels; a sign is one of two levels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab.tokenizers.quantizers import Quantized, straight_through


def codes_of(digits_BCHW: Tensor, levels: tuple[int, ...]) -> Tensor:
    """The numbers that digits write, the first channel counting ones: codes_BHW."""
    places = (math.prod(levels[:channel]) for channel in range(len(levels)))
    return torch.stack([digits_BCHW[:, i].long() * place for i, place in enumerate(places)]).sum(0)


def digits_of(codes_BHW: Tensor, levels: tuple[int, ...]) -> Tensor:
    """The digits of codes, `codes_of` undone: digits_BCHW."""
    places = (math.prod(levels[:channel]) for channel in range(len(levels)))
    return torch.stack([codes_BHW // place % level for place, level in zip(places, levels, strict=True)], 1)


def even_levels(size: int, width: int) -> tuple[int, ...]:
    """`width` powers of two, as even as possible, whose product is `size`. Raises ValueError where there are none."""
    bits = max(1, size.bit_length() - 1)
    if size != 2**bits:
        raise ValueError(f"Channels cannot share {size} codes: take a power of two, {2**bits} or {2 ** (bits + 1)}.")
    if not 1 <= width <= bits:
        raise ValueError(f"{size} codes are {bits} bits, which {width} channels cannot share: widths 1 to {bits} fit.")
    return tuple(2 ** (bits // width + (channel < bits % width)) for channel in range(width))


class FiniteScalarQuantizer(nn.Module):
    """Each channel squashed by tanh and rounded to a few levels (FSQ, arXiv 2309.15505, section 3.1, appendix A.1).

    `levels`, one a channel, multiply to `size`; unless given they are `even_levels`. Loss: 0. There is no book that
    could collapse; a level is lost only where the encoder avoids it.
    """

    def __init__(self, size: int, width: int, *, levels: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.size, self.levels = size, even_levels(size, width) if levels is None else tuple(levels)
        if (math.prod(self.levels), len(self.levels)) != (size, width) or min(self.levels) < 2:
            raise ValueError(
                f"Levels {self.levels} do not make {size} codes of width {width}: give {width} levels of 2 or more "
                f"whose product is {size}."
            )
        # A buffer, and one that is saved: it goes where the model goes, and gives latents the model's dtype.
        self.register_buffer("half_C", torch.tensor([float(level // 2) for level in self.levels]))
        self.half_C: Tensor

    def codes(self, latents_BCHW: Tensor) -> Tensor:
        # NaN of a bad step, which changes nothing, is a digit all the same: as a whole number it would be any at all
        return codes_of(self._squashed(latents_BCHW).nan_to_num().round(), self.levels)

    def latents(self, codes_BHW: Tensor) -> Tensor:
        """Evenly spaced levels in [-1, 1], 0 among them: latents_BCHW."""
        return self._level(digits_of(codes_BHW, self.levels))

    def forward(self, latents_BCHW: Tensor) -> Quantized:
        smooth_BCHW = self._level(self._squashed(latents_BCHW)).to(latents_BCHW.dtype)
        codes_BHW = self.codes(latents_BCHW)
        return Quantized(straight_through(smooth_BCHW, self.latents(codes_BHW)), codes_BHW, latents_BCHW.new_zeros(()))

    def _level(self, digits_BCHW: Tensor) -> Tensor:
        half_C11 = self.half_C[:, None, None]
        return (digits_BCHW - half_C11) / half_C11

    def _squashed(self, latents_BCHW: Tensor) -> Tensor:
        """Digits before rounding, 0..level-1. Latent 0 falls on the level of value 0; with two levels, each gets half
        of the line instead."""
        last_C11 = torch.tensor(self.levels, device=latents_BCHW.device)[:, None, None] - 1.0
        shift_C11 = torch.where(last_C11 > 1, torch.atanh(last_C11 % 2 / last_C11), 0.0)
        return ((latents_BCHW.float() + shift_C11).tanh() + 1) * last_C11 / 2


class LookupFreeQuantizer(nn.Module):
    """The signs of the channels, a bit each (LFQ, arXiv 2310.05737, section 3): 2^width codes and no book.

    Loss: `entropy` times `entropy_penalty`, which keeps it from collapsing, plus `commitment` times the pull of latents
    to -1 and 1.
    """

    def __init__(
        self, size: int, width: int, *, entropy: float = 0.1, commitment: float = 0.25, temperature: float = 1.0
    ) -> None:
        super().__init__()
        if size != 2**width or width < 1:
            bits = max(1, size.bit_length() - 1)
            raise ValueError(
                f"{width} signs do not make {size} codes: {2**bits} codes have a width of {bits}, {2 ** (bits + 1)} "
                f"of {bits + 1}."
            )
        self.size, self.levels = size, (2,) * width
        self.entropy, self.commitment, self.temperature = entropy, commitment, temperature
        self.register_buffer("corner", torch.tensor(1.0))  # a buffer as in `FiniteScalarQuantizer`
        self.corner: Tensor

    def codes(self, latents_BCHW: Tensor) -> Tensor:
        return codes_of(latents_BCHW > 0, self.levels)

    def latents(self, codes_BHW: Tensor) -> Tensor:
        return (2 * digits_of(codes_BHW, self.levels) - 1) * self.corner

    def forward(self, latents_BCHW: Tensor) -> Quantized:
        codes_BHW = self.codes(latents_BCHW)
        chosen_BCHW = self.latents(codes_BHW)
        pull = self.commitment * F.mse_loss(latents_BCHW, chosen_BCHW)
        loss = pull + self.entropy * entropy_penalty(latents_BCHW, self.temperature)
        return Quantized(straight_through(latents_BCHW, chosen_BCHW), codes_BHW, loss)


class BinarySphericalQuantizer(nn.Module):
    """The signs of a latent of length 1 (BSQ, arXiv 2406.07548, section 4): `LookupFreeQuantizer` on the sphere.

    Loss: `entropy` times `entropy_penalty`, which keeps it from collapsing. On the sphere no latent is far from its
    corner, so there is no commitment.
    """

    def __init__(self, size: int, width: int, *, entropy: float = 0.1, temperature: float = 1.0) -> None:
        super().__init__()
        self.signs = LookupFreeQuantizer(size, width, entropy=entropy, commitment=0.0, temperature=temperature)
        self.size, self.radius = size, math.sqrt(width)  # of the sphere through the corners at -1 and 1

    def codes(self, latents_BCHW: Tensor) -> Tensor:
        return self.signs.codes(latents_BCHW)

    def latents(self, codes_BHW: Tensor) -> Tensor:
        return self.signs.latents(codes_BHW) / self.radius

    def forward(self, latents_BCHW: Tensor) -> Quantized:
        large_BCHW, codes_BHW, loss = self.signs(F.normalize(latents_BCHW, dim=1) * self.radius)
        return Quantized(large_BCHW / self.radius, codes_BHW, loss)


def entropy_penalty(latents_BCHW: Tensor, temperature: float, together: int = 8) -> Tensor:
    """Mean entropy of a latent's code minus entropy of the mean, in nats (arXiv 2310.05737, section 3): from 0 down to
    -width log 2, where every latent is sure of its code and all codes are as frequent.

    A code's chance is softmax(-|z - e|^2 / temperature) over all corners e, hence a bit's sigmoid(4z / temperature).
    Groups of `together` bits are enumerated, and count as independent of each other (arXiv 2406.07548, section 4).
    """
    logits_XC = 4 * latents_BCHW.float().movedim(1, -1).flatten(0, 2) / temperature
    penalty = (F.softplus(logits_XC) - logits_XC * logits_XC.sigmoid()).sum(1).mean()
    for group_XC in logits_XC.split(together, 1):
        chances_XN = group_XC.new_ones(len(group_XC), 1)
        for bit_X1 in group_XC.split(1, 1):
            chances_XN = torch.cat([chances_XN * (-bit_X1).sigmoid(), chances_XN * bit_X1.sigmoid()], 1)
        mean_N = chances_XN.mean(0)
        penalty = penalty + (mean_N * mean_N.clamp_min(1e-12).log()).sum()
    return penalty
