"""Intervals at 95 %: of means and of shares. One rule a kind, so that two tables never mean different things by one.

- `Mean.of`: many values (scenes, pictures): bootstrap
- `Mean.of_seeds`: a handful of runs: Student's t, since a bootstrap of three values is far too narrow
- `Share`: events among a handful of runs: exact (Clopper-Pearson); where all or none happened, the one-sided bound
- `wilson_interval`: a share of hundreds of prompts
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Mean(NamedTuple):
    """A mean of `n` values with its 95 % interval; without one (nan) where there is a single value."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray, seed: int = 0, draws: int = 2000) -> Mean:
        """By bootstrap, for which one value is too few. Raises ValueError for no values, or what is no number."""
        values_N = _numbers(values)
        if len(values_N) == 1:
            return cls(float(values_N[0]), math.nan, math.nan, 1)
        places = np.random.default_rng(seed).integers(0, len(values_N), (draws, len(values_N)))
        low, high = np.quantile(values_N[places].mean(1), (0.025, 0.975))
        return cls(float(values_N.mean()), float(low), float(high), len(values_N))

    @classmethod
    def of_seeds(cls, values: Sequence[float] | np.ndarray, *, log: bool = False) -> Mean:
        """By Student's t; `log`: of the logarithms, so that value and interval are of the geometric mean.

        Raises ValueError for no values, what is no number, and, of logarithms, what is not above 0.
        """
        values_N = _numbers(values)
        if log and (values_N <= 0).any():
            raise ValueError(f"A geometric mean is of numbers above 0, not of {values_N}.")
        scaled_N = np.log(values_N) if log else values_N
        middle, count = float(scaled_N.mean()), len(scaled_N)
        half = math.nan if count < 2 else t_quantile(count - 1) * float(scaled_N.std(ddof=1)) / math.sqrt(count)
        value, low, high = (math.exp(each) if log else each for each in (middle, middle - half, middle + half))
        return cls(value, low, high, count)

    def excludes(self, value: float) -> bool:
        """Whether so many values say that the mean is another one."""
        return not math.isnan(self.low) and not self.low <= value <= self.high

    def within(self, form: str = ".3f") -> str:
        """`2.250 (2.068 to 2.432)`, or the value alone."""
        if math.isnan(self.low):
            return f"{self.value:{form}}"
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"

    def __str__(self) -> str:
        bounds = "" if math.isnan(self.low) else f"{self.low:.2f} to {self.high:.2f}, "
        return f"{self.value:.2f} ({bounds}n = {self.n})"


@dataclass(frozen=True)
class Share:
    """How many of `n` runs something happened in; `str` says what so many runs can exclude.

    `0 of 6 (≤ 39 % at 95 %)`: up to 39 % of all such runs may, and none of six would have shown it one time in twenty.
    """

    count: int
    n: int

    def __post_init__(self) -> None:
        """Raises ValueError for more than all, and less than none."""
        if not 0 <= self.count <= self.n:
            raise ValueError(f"A share is 0 to all of n, not {self.count} of {self.n}.")

    @property
    def interval(self) -> tuple[float, float]:
        """Shares that the count does not exclude at 95 %, 0 to 1; all of them where n is 0."""
        from scipy.special import betaincinv  # comes with scikit-learn

        if not self.n:
            return 0.0, 1.0
        if self.count in (0, self.n):
            edge = 0.05 ** (1 / self.n)  # the exact one-sided bound, of which 3 / n is the rule of three
            return (edge, 1.0) if self.count else (0.0, 1 - edge)
        low = betaincinv(self.count, self.n - self.count + 1, 0.025)
        high = betaincinv(self.count + 1, self.n - self.count, 0.975)
        return float(low), float(high)

    def __str__(self) -> str:
        if not self.n:
            return "0 of 0"
        low, high = (f"{100 * each:.0f}" for each in self.interval)
        bounds = {0: f"≤ {high} % at 95 %", self.n: f"≥ {low} % at 95 %"}
        return f"{self.count} of {self.n} ({bounds.get(self.count, f'{low} to {high} %')})"


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Of a share of `n` trials, by Wilson's formula: good from dozens on."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with so many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def _numbers(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values_N = np.asarray(values, np.float64)
    if not len(values_N) or not np.isfinite(values_N).all():
        raise ValueError(f"A mean is of one or more numbers, not of {values_N}.")
    return values_N
