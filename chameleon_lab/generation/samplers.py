"""Samplers: logits to one token a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """In this order: the penalty on words already said, temperature (0 takes the likeliest), top-k, top-p, min-p.

    `top_k` keeps that many of the likeliest tokens (0: all); `top_p` the fewest that hold this share of what top-k
    left; `min_p` those at least this share as likely as the likeliest (arXiv 2407.01082). `repetition` divides the
    positive logits of tokens already said and multiplies the negative ones (CTRL, arXiv 1909.05858, section 4.1).

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

    def pick(self, logits_RV: Tensor, draws: Sequence[float], said_RV: Tensor | None = None) -> Tensor:
        """A token a row: that at the quantile `draws[row]`, uniform in [0, 1), of the row's tokens, likeliest first.

        -inf logits are never taken; `said_RV` marks what the penalty is about. One draw a token makes a row's result
        depend on its own seed only, whatever the batch. Nothing here waits for the device.
        """
        if said_RV is not None and self.repetition != 1:
            softer_RV = torch.where(logits_RV > 0, logits_RV / self.repetition, logits_RV * self.repetition)
            logits_RV = torch.where(said_RV, softer_RV, logits_RV)
        if self.temperature == 0:
            return logits_RV.argmax(-1)
        # The largest goes to 0 first, so that a tiny temperature cannot overflow.
        shares_RV = torch.softmax((logits_RV - logits_RV.amax(-1, keepdim=True)) / self.temperature, -1)
        if 0 < self.top_k < shares_RV.shape[-1]:
            shares_RV, order_RV = shares_RV.topk(self.top_k)
        else:
            shares_RV, order_RV = shares_RV.sort(dim=-1, descending=True, stable=True)
        totals_RV = shares_RV.cumsum(-1)
        last_R1 = torch.searchsorted(totals_RV, self.top_p * totals_RV[:, -1:]).clamp_max(totals_RV.shape[-1] - 1)
        if self.min_p:
            likely_RV = shares_RV >= self.min_p * shares_RV[:, :1]
            last_R1 = torch.minimum(last_R1, likely_RV.sum(-1, keepdim=True) - 1)
        draws_R1 = torch.tensor(draws, dtype=totals_RV.dtype, device=totals_RV.device)[:, None]
        place_R1 = torch.searchsorted(totals_RV, draws_R1 * totals_RV.gather(-1, last_R1), right=True)
        return order_RV.gather(-1, torch.minimum(place_R1, last_R1))[:, 0]
