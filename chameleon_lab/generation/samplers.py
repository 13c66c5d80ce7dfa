"""Samplers: logits to one token a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """Temperature, then top-p. A temperature of 0 takes the likeliest token.

    Raises ValueError on a negative temperature or a top_p outside (0, 1].
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, not {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}.")

    def pick(self, logits_V: Tensor, draw: float) -> int:
        """The token at quantile `draw`, a uniform number in [0, 1); -inf logits are never taken.

        One draw a token makes a row's result depend on its own seed only, whatever the batch.
        """
        if self.temperature == 0:
            return int(logits_V.argmax())
        # The largest goes to 0 first, so that a tiny temperature cannot overflow.
        shares_V, order_V = torch.softmax((logits_V - logits_V.max()) / self.temperature, -1).sort(descending=True)
        totals_V = shares_V.cumsum(-1)
        kept = int(torch.searchsorted(totals_V, self.top_p * totals_V[-1], right=False)) + 1
        kept = min(kept, len(totals_V))
        place = int(torch.searchsorted(totals_V[:kept], draw * totals_V[kept - 1], right=True))
        return int(order_V[min(place, kept - 1)])
