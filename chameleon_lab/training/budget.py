"""How long to train, apart from what trains: what names experiments need not wait for Lightning's import."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Budget:
    """How long to train: so many steps, or so many minutes of training time, whichever is given."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("A budget is a number of steps or a number of minutes: give exactly one of them.")
        length: Any = self.minutes if self.steps is None else self.steps
        sound = isinstance(length, int | float) and not isinstance(length, bool) and 0 < length < math.inf
        if not sound or (self.steps is not None and length != int(length)):
            what = "a number of minutes" if self.steps is None else "a whole number of steps"
            raise ValueError(f"A budget must be {what}, finite and more than 0, not {length!r}.")

    def progress(self, step: int, seconds: float) -> float:
        """The share of the budget that is spent, 0 to 1."""
        share = step / self.steps if self.steps is not None else seconds / (60 * (self.minutes or 0))
        return min(1.0, share)
