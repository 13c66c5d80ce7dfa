"""Samplers: logits to one token a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chameleon_lab import crossovers
from chameleon_lab.generation.recording import upload


@dataclass(frozen=True)
class Sampler:
    """In this order: the penalty on words already written, temperature (0 takes the likeliest), top-k, top-p, min-p.

    `top_k` keeps that many of the likeliest tokens (0: all); `top_p` the fewest that hold this share of what top-k
    left; `min_p` those at least this share as likely as the likeliest (arXiv 2407.01082). `repetition` divides the
    positive logits of tokens already written and multiplies the negative ones (CTRL, arXiv 1909.05858, section 4.1).

    Raises ValueError on what cannot be.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, not {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}.")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise ValueError(f"top_k must be a whole number, 0 (all) or more, not {self.top_k}.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie in [0, 1], not {self.min_p}.")
        if not self.repetition > 0:
            raise ValueError(f"repetition must be above 0 (1 is no penalty), not {self.repetition}.")

    def pick(self, logits_RV: Tensor, draws: Sequence[float], written_RV: Tensor | None = None) -> Tensor:
        """A token a row: that at the quantile `draws[row]`, uniform in [0, 1), of the row's tokens, likeliest first.

        Of equally likely ones the lower id comes first. -inf logits are never taken; `written_RV` marks what the
        penalty is about. One draw a token makes a row's result depend on its own seed only, whatever the batch. Nothing
        here waits for a GPU.
        """
        if written_RV is not None and self.repetition != 1:
            softer_RV = torch.where(logits_RV > 0, logits_RV / self.repetition, logits_RV * self.repetition)
            logits_RV = torch.where(written_RV, softer_RV, logits_RV)
        if self.temperature == 0:
            return logits_RV.argmax(-1)
        # The largest goes to 0 first, so that a tiny temperature cannot overflow.
        shares_RV = torch.softmax((logits_RV - logits_RV.amax(-1, keepdim=True)) / self.temperature, -1, torch.float32)
        draws_R1 = upload(draws, shares_RV.device, shares_RV.dtype)[:, None]
        keys_RV, size = _sort_keys(shares_RV), shares_RV.shape[-1]
        # To ask whether a part is enough would be to wait for a GPU, which sorts the whole in little time.
        in_parts = shares_RV.is_cpu and size >= crossovers.SORTED_SIZE and not 0 < self.top_k < size
        if in_parts and (total_R1 := _total(shares_RV)) is not None:
            for count in (size // part for part in crossovers.SORTED_PARTS):
                order_RN = _likeliest(keys_RV, count)
                place_R1 = self._place(shares_RV.gather(-1, order_RN), draws_R1, total_R1)
                if bool((place_R1 < count).all()):
                    return order_RN.gather(-1, place_R1)[:, 0]
        order_RN = _likeliest(keys_RV, min(self.top_k or size, size))
        place_R1 = self._place(shares_RV.gather(-1, order_RN), draws_R1)
        return order_RN.gather(-1, place_R1.clamp_max(order_RN.shape[-1] - 1))[:, 0]

    def _place(self, shares_RN: Tensor, draws_R1: Tensor, total_R1: Tensor | None = None) -> Tensor:
        """Where each row's token stands among its N likeliest: place_R1, N if it lies among the rest.

        `total_R1` is the sum of all that top-p has to do with, unless it is these N.
        """
        totals_RN, count = shares_RN.cumsum(-1), shares_RN.shape[-1]
        total_R1 = totals_RN[:, -1:] if total_R1 is None else total_R1
        last_R1 = torch.searchsorted(totals_RN, self.top_p * total_R1)
        if self.min_p:
            likely_RN = shares_RN >= self.min_p * shares_RN[:, :1]
            less_R1 = torch.minimum(last_R1, (likely_RN.sum(-1, keepdim=True) - 1).clamp_min(0))
            last_R1 = torch.where(likely_RN[:, -1:], last_R1, less_R1)
        if self.top_p == 1 and not self.min_p:  # a draw among the N needs no more than the total
            return torch.minimum(torch.searchsorted(totals_RN, draws_R1 * total_R1, right=True), last_R1)
        share_R1 = totals_RN.gather(-1, last_R1.clamp_max(count - 1))
        place_R1 = torch.minimum(torch.searchsorted(totals_RN, draws_R1 * share_R1, right=True), last_R1)
        return torch.where(last_R1 < count, place_R1, count)


def _sort_keys(shares_RV: Tensor) -> Tensor:
    """Whole numbers in the order of float32 shares, the largest first, equal ones by their ids: a key's lower half.

    No two are equal. So whatever sorts them, in whole or in part, their order is that of a stable sort of the shares.
    """
    # Floating-point numbers that are not negative are ordered as their bits are.
    ids_V = torch.arange(shares_RV.shape[-1], device=shares_RV.device)
    return torch.sub(ids_V, shares_RV.view(torch.int32), alpha=2**32)


def _likeliest(keys_RV: Tensor, count: int) -> Tensor:
    """The ids of the `count` smallest keys, in their order."""
    if count < keys_RV.shape[-1]:
        keys_RN = keys_RV.topk(count, largest=False).values
    elif keys_RV.is_cpu:
        keys_RN = torch.from_numpy(np.sort(keys_RV.numpy()))  # in half the time that torch takes
    else:
        keys_RN = keys_RV.sort().values
    return keys_RN & 0xFFFF_FFFF


def _total(shares_RV: Tensor) -> Tensor | None:
    """The last cumulative sum of sorted shares without sorting; None where the order of addition might show in one."""
    total_R1 = shares_RV.sum(-1, keepdim=True, dtype=torch.float64)
    slack = shares_RV.shape[-1] * 2**-50  # twice the rounding error of as many additions, and more
    low_R1, high_R1 = (total_R1 * (1 - slack)).float(), (total_R1 * (1 + slack)).float()
    return low_R1 if torch.equal(low_R1, high_R1) else None
