"""What people's judgements add up to: win rates, agreement, Krippendorff's alpha, Bradley-Terry strengths.

- ratings are annotators x items, numbers, NaN where an annotator did not rate an item; each value is a category, and
  "ordinal" says that their order counts
- of two models' replies a rating is 1 (the first is better), 0 (the same) or -1 (the second is better)
- all intervals are at 95 %, and each says what it was drawn over
- `PAPER_PAIRS`: what Chameleon's paper printed, and `misprints`: where its tables and its text differ
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from chameleon_lab.evaluation.intervals import Mean
from chameleon_lab.parts import require_count

RatingLevel = Literal["nominal", "ordinal"]

Z = 1.959963984540054
"""The 97.5 % quantile of a normal distribution."""


# Agreement


def krippendorff_alpha(ratings: Any, level: RatingLevel = "nominal") -> float:
    """How far annotators agree beyond chance: 1 entirely, 0 as by chance, below 0 less than by chance.

    `ratings`: annotators x items, NaN where missing; items with fewer than two ratings do not count. "nominal": two
    categories are the same or not; "ordinal": they are as far apart as there are ratings between them (Krippendorff,
    "Computing Krippendorff's Alpha-Reliability", 2011). Raises ValueError for an unknown level, for ratings that are
    no numbers, of one annotator, of no item, where no item has two ratings, and where all are the same, since then
    nothing could have been disagreed about.
    """
    counts_NV = _counts(_ratings(ratings), _level(level))
    alpha = _alpha(counts_NV, np.ones(len(counts_NV)), level)
    if math.isnan(alpha):
        raise ValueError(
            "All ratings of items that two or more annotators rated are the same, so alpha is 0 / 0: it says how far "
            "annotators agree beyond chance, and by chance they would agree here, too. Report the share agreed on."
        )
    return alpha


def krippendorff_interval(ratings: Any, level: RatingLevel = "nominal", draws: int = 1000, seed: int = 0) -> Mean:
    """Alpha with its interval, by bootstrap over items; `n` is how many items two or more annotators rated.

    Draws of items in which all ratings are the same have no alpha, and are left out. Where all others have one alpha,
    as those of a single item have, or of items that all agree on, nothing says how sure it is: the bounds are NaN.
    Errors are `krippendorff_alpha`'s, and no draws.
    """
    require_count(draws, "draws", 1)
    value, counts_NV = krippendorff_alpha(ratings, level), _counts(_ratings(ratings), level)
    items, rng = len(counts_NV), np.random.default_rng(seed)
    alphas = [
        _alpha(counts_NV, np.bincount(rng.integers(0, items, items), minlength=items), level) for _ in range(draws)
    ]
    varied = np.array(alphas)[~np.isnan(alphas)]
    if not len(varied) or np.isclose(varied.min(), varied.max()):
        return Mean(value, math.nan, math.nan, items)
    low, high = np.quantile(varied, (0.025, 0.975))
    return Mean(value, float(low), float(high), items)


def agreement(ratings: Any) -> dict[int, float]:
    """How many of an item's annotators gave its most frequent rating, to the share of items where so many did.

    Of three annotators: 3 all, 2 two, 1 none; largest first. Items with fewer ratings than most are among the others.
    Errors are `krippendorff_alpha`'s, but that all ratings may be the same.
    """
    most_N = _counts(_ratings(ratings), "nominal").max(1).astype(int)
    return {size: float((most_N == size).mean()) for size in range(int(most_N.max()), 0, -1)}


def pairwise_agreement(ratings: Any) -> np.ndarray:
    """Share of items that two annotators rated the same, annotators x annotators; NaN where no item has both ratings.

    Raises ValueError as `krippendorff_alpha` does for what are no ratings.
    """
    ratings_AN = _ratings(ratings)
    both_AAN = ~np.isnan(ratings_AN[:, None] + ratings_AN[None])
    equal_AA = (both_AAN & (ratings_AN[:, None] == ratings_AN[None])).sum(2)
    common_AA = both_AAN.sum(2)
    return np.where(common_AA > 0, equal_AA / np.maximum(common_AA, 1), np.nan)


def _level(level: str) -> RatingLevel:
    if level not in (levels := get_args(RatingLevel)):
        raise ValueError(f"Ratings have no level {level!r}; there are {' and '.join(levels)}.")
    return level  # pyright: ignore[reportReturnType]


def _ratings(ratings: Any, annotators: int = 2) -> np.ndarray:
    """Annotators x items as numbers."""
    try:
        if np.iscomplexobj(ratings):
            raise ValueError("they are complex")
        ratings_AN = np.ma.filled(np.ma.asarray(ratings, np.float64), np.nan)  # what an array masks is missing
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Ratings are numbers, annotators x items with a row as long as the next, and NaN where one is missing: "
            f"{error}. Number the categories, in their order."
        ) from None
    if ratings_AN.ndim != 2:
        raise ValueError(f"Ratings are annotators x items, two dimensions, and not {ratings_AN.ndim}.")
    if np.isinf(ratings_AN).any():
        raise ValueError("A rating is a finite number, or NaN where it is missing.")
    if not ratings_AN.shape[1]:
        raise ValueError(f"There are no items among the ratings, whose shape is {ratings_AN.shape}.")
    if len(ratings_AN) < annotators:
        raise ValueError(f"Agreement is among two annotators or more, and these are ratings of {len(ratings_AN)}.")
    return ratings_AN


def _counts(ratings_AN: np.ndarray, level: RatingLevel) -> np.ndarray:
    """How often each item got each category, in their order, of items with two ratings or more."""
    categories = np.unique(ratings_AN[~np.isnan(ratings_AN)])
    counts_NV = (ratings_AN[:, :, None] == categories).sum(0)
    counts_NV = counts_NV[counts_NV.sum(1) > 1]
    if not len(counts_NV):
        raise ValueError("No item was rated by two annotators or more, so nobody can have agreed.")
    return counts_NV.astype(np.float64)


def _alpha(counts_NV: np.ndarray, times_N: np.ndarray, level: RatingLevel) -> float:
    """Alpha of items that occur so many times; NaN where all ratings are the same."""
    weights_N = times_N / (counts_NV.sum(1) - 1)
    observed_VV = (counts_NV * weights_N[:, None]).T @ counts_NV - np.diag(weights_N @ counts_NV)
    totals_V = observed_VV.sum(0)
    if level == "nominal":
        apart_VV = 1.0 - np.eye(len(totals_V))
    else:  # ratings from one category to the other, of both ends a half
        middles_V = totals_V.cumsum() - totals_V / 2
        apart_VV = (middles_V[:, None] - middles_V) ** 2
    expected = (np.outer(totals_V, totals_V) * apart_VV).sum() / (totals_V.sum() - 1)
    return 1.0 - float((observed_VV * apart_VV).sum() / expected) if expected > 0 else math.nan


# Pairs


class WinRate(float):
    """Wins and half of the ties, as a share of all `n` comparisons, 0 to 1, with its interval: `low` to `high`."""

    low: float
    high: float
    n: int

    def __new__(cls, value: float, low: float, high: float, n: int) -> WinRate:
        rate = super().__new__(cls, value)
        rate.low, rate.high, rate.n = low, high, n
        return rate

    def __getnewargs__(self) -> tuple[float, float, float, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return float(self), self.low, self.high, self.n

    def __str__(self) -> str:
        return f"{100 * self:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f} at 95 %, n = {self.n})"

    __repr__ = __str__


def win_rate(*, wins: int, ties: int, losses: int) -> WinRate:
    """Wins + half of the ties, as a share of all comparisons; 0.5 where neither is better.

    Its interval is over comparisons, as if each were of another prompt: Tango's score interval of a paired difference
    (Statistics in Medicine 17, 1998), since twice the rate less 1 is wins less losses, as a share. It knows that ties
    vary less than wins and losses, is Wilson's where there are no ties, and has a width where all went one way. Raises
    ValueError for what is no count, and for no comparison.
    """
    n = _comparisons(wins=wins, ties=ties, losses=losses)
    wins, ties, losses = int(wins), int(ties), int(losses)  # a sum of NumPy's int8 wraps around
    low, high = (_tango_bound(wins, losses, n, z) for z in (Z, -Z))
    return WinRate((wins + ties / 2) / n, (1 + low) / 2, (1 + high) / 2, n)


def _comparisons(**counts: int) -> int:
    """How many comparisons were made. Raises ValueError for what is no count, and for none."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
            raise ValueError(f"{name} is a count, a whole number of 0 or more, and not {count!r}.")
    if not (n := sum(map(int, counts.values()))):
        raise ValueError("There is no win rate of no comparisons: wins, ties and losses are all 0.")
    return n


def _tango_bound(wins: int, losses: int, n: int, z: float) -> float:
    """The difference of shares, -1 to 1, from which what was counted lies `z` standard deviations away."""
    from scipy.optimize import brentq

    def distance(difference: float) -> float:
        # the share of losses that is likeliest if this were the difference, and the variance that it implies
        b = -wins - losses + (2 * n - wins + losses) * difference
        c = -losses * difference * (1 - difference)
        lost = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * (2 * lost + difference * (1 - difference))
        return wins - losses - n * difference - z * math.sqrt(max(0.0, variance))

    edge = -1.0 if z > 0 else 1.0
    middle = (wins - losses) / n
    if math.isclose(middle, edge):
        return edge
    beside = middle + 1e-9 * (
        edge - middle
    )  # where all went one way, what was counted is a root itself, of no variance
    return float(brentq(distance, edge, beside, xtol=1e-12))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class PairCounts:
    """How often the first of two was better, neither, and the second; `undecided` of the ties had no majority."""

    wins: int
    ties: int
    losses: int
    undecided: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for what is no count, for no comparison, and for more undecided than ties."""
        _comparisons(wins=self.wins, ties=self.ties, losses=self.losses)  # no rate: SciPy is slow to import
        if not 0 <= self.undecided <= self.ties:
            raise ValueError(f"Undecided ones are among the ties, 0 to {self.ties}, and not {self.undecided}.")

    @classmethod
    def of(cls, ratings: Any) -> PairCounts:
        """Of ratings 1, 0 and -1, annotators x items: what more than half of an item's annotators said.

        An item without a majority is a tie, as in Chameleon's paper; one that nobody rated does not count. Raises
        ValueError for other ratings, and where nobody rated anything.
        """
        ratings_AN = _ratings(ratings, annotators=1)
        rated_AN = ~np.isnan(ratings_AN)
        if strange := sorted(set(ratings_AN[rated_AN].tolist()) - {-1.0, 0.0, 1.0}):
            raise ValueError(
                "A rating of a pair is 1 (the first is better), 0 (the same) or -1 (the second is better), and not "
                f"{strange[0]:g}."
            )
        if not rated_AN.any():
            raise ValueError("Nobody rated any of the pairs.")
        votes = {value: (ratings_AN == value).sum(0) * 2 > rated_AN.sum(0) for value in (1, 0, -1)}
        wins, same, losses = (int(votes[value].sum()) for value in (1, 0, -1))
        undecided = int(rated_AN.any(0).sum()) - wins - same - losses
        return cls(wins, same + undecided, losses, undecided)

    @property
    def win_rate(self) -> WinRate:
        return win_rate(wins=self.wins, ties=self.ties, losses=self.losses)


# More than two


@dataclass(frozen=True)
class BradleyTerry:
    """Strengths of several from comparisons of two (Bradley and Terry, 1952): the chance that one beats another is
    1 / (1 + exp(the other's strength - its own)). They are logarithms of odds, and their mean is 0."""

    names: tuple[str, ...]
    strengths: np.ndarray
    covariance: np.ndarray

    def strength(self, name: str) -> Mean:
        """Its strength and interval; `n` is of how many. Raises ValueError for an unknown name."""
        place = self._place(name)
        return self._within(float(self.strengths[place]), float(self.covariance[place, place]), float)

    def chance(self, first: str, second: str) -> Mean:
        """The chance that the first beats the second, of ties a half, with its interval. Raises ValueError as above."""
        difference = np.zeros(len(self.names))
        difference[self._place(first)] += 1
        difference[self._place(second)] -= 1
        variance = float(difference @ self.covariance @ difference)
        return self._within(float(difference @ self.strengths), variance, lambda odds: 1 / (1 + math.exp(-odds)))

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise ValueError(f"None is called {name!r}; there are {', '.join(self.names)}.")
        return self.names.index(name)

    def _within(self, value: float, variance: float, scale: Callable[[float], float]) -> Mean:
        half = Z * math.sqrt(max(0.0, variance))
        return Mean(scale(value), scale(value - half), scale(value + half), len(self.names))


def bradley_terry(pairs: Mapping[tuple[str, str], PairCounts]) -> BradleyTerry:
    """Strengths from counts of (first, second); a tie is half a win of each. The fit is scikit-learn's.

    Their covariance is the robust one (the spread of the scores, between the inverse of the curvature twice), because
    ties vary less than the model says. A pair that only tied has scores without a spread; it is taken to vary as by two
    wins of each, so that no interval is a point. Intervals are over comparisons. Raises ValueError for no pairs, for
    one that is compared with itself, and where the strengths have no end: some never lost to the others, or never met
    them.
    """
    from scipy.sparse.csgraph import connected_components

    names = tuple(dict.fromkeys(name for pair in pairs for name in pair))
    if not names:
        raise ValueError("There are no comparisons to find strengths of.")
    place = {name: index for index, name in enumerate(names)}
    scores_MM, ties_MM = np.zeros((2, len(names), len(names)))  # row beats column, of ties a half
    for (first, second), counts in pairs.items():
        if first == second:
            raise ValueError(f"{first!r} is compared with itself.")
        i, j = place[first], place[second]
        scores_MM[i, j] += counts.wins + counts.ties / 2
        scores_MM[j, i] += counts.losses + counts.ties / 2
        ties_MM[i, j] += counts.ties
        ties_MM[j, i] += counts.ties
    parts, part_M = connected_components(scores_MM > 0, directed=True, connection="strong")
    if parts > 1:
        groups = [[name for name, part in zip(names, part_M, strict=True) if part == each] for each in range(parts)]
        raise ValueError(
            "These strengths have no end, since between some nobody ever lost, or nobody was compared: "
            f"{' | '.join(', '.join(group) for group in groups)}. Compare more, or leave some out."
        )
    games_MM, strengths_M = scores_MM + scores_MM.T, _logistic_strengths(scores_MM)
    chances_MM = 1 / (1 + np.exp(strengths_M - strengths_M[:, None]))
    wins_MM = scores_MM - ties_MM / 2
    votes_MM = np.where((ties_MM > 0) & (wins_MM + wins_MM.T == 0), 2.0, wins_MM)
    squares_MM = votes_MM * (1 - chances_MM) ** 2 + votes_MM.T * chances_MM**2 + ties_MM * (0.5 - chances_MM) ** 2
    inverse_MM = np.linalg.pinv(_laplacian(games_MM * chances_MM * chances_MM.T))
    return BradleyTerry(names, strengths_M - strengths_M.mean(), inverse_MM @ _laplacian(squares_MM) @ inverse_MM)


def _logistic_strengths(scores_MM: np.ndarray) -> np.ndarray:
    """The likeliest strengths, the first 0: a logistic regression of who won on who met, without a constant.

    A row is a pair that met, 1 for the one and -1 for the other, once as won and once as lost, weighed by how often.
    """
    from sklearn.linear_model import LogisticRegression

    i_P, j_P = np.nonzero(scores_MM)
    met_PM = np.zeros((len(i_P), len(scores_MM)))
    met_PM[np.arange(len(i_P)), i_P] += 1
    met_PM[np.arange(len(i_P)), j_P] -= 1
    # each win counts half as the winner's success and half as the loser's failure: a regression needs both outcomes
    rows, outcomes = np.concatenate([met_PM, -met_PM]), np.repeat([1, 0], len(i_P))
    weights = np.tile(scores_MM[i_P, j_P] / 2, 2)
    fit = LogisticRegression(C=np.inf, fit_intercept=False, solver="newton-cholesky", tol=1e-12, max_iter=200)
    return np.concatenate([[0.0], fit.fit(rows[:, 1:], outcomes, weights).coef_[0]])


def _laplacian(weights_MM: np.ndarray) -> np.ndarray:
    return np.diag(weights_MM.sum(1)) - weights_MM


# The paper


@dataclass(frozen=True)
class PaperPair:
    """Chameleon-34B against another, as printed: counts, and the win rate of the text, in per cent."""

    counts: PairCounts
    rate: float


PAPER_PAIRS: Mapping[str, PaperPair] = MappingProxyType(
    {
        "Gemini+": PaperPair(PairCounts(435, 362, 251), 60.4),
        "GPT-4V+": PaperPair(PairCounts(375, 331, 342), 51.6),
        "Gemini": PaperPair(PairCounts(561, 327, 160), 69.1),
        "GPT-4V": PaperPair(PairCounts(482, 329, 237), 61.7),
    }
)
"""Human judgements on 1,048 prompts (arXiv 2405.09818, section 4.3). Counts are of the printed shares, which have one
digit too few for more than one count each; "+" is a baseline whose captions DALL-E 3 drew.

The paper contradicts itself once among these: 435 wins and 362 ties of 1,048 are 58.8 %, as its table 11 says, and its
text says 60.4 %, which that table has for mixed-modal prompts alone. It does so again about how many tasks
are fulfilled: its text says 55.2 %, and table 10's two rows, weighed by their 441 and 607 prompts, come to 56.7 %."""


def misprints(pairs: Mapping[str, PaperPair] = PAPER_PAIRS) -> dict[str, tuple[float, float]]:
    """Where a printed rate is not that of its counts: name to (printed, of the counts), in per cent to one digit."""
    rates = {name: round(100 * pair.counts.win_rate, 1) for name, pair in pairs.items()}
    return {name: (pair.rate, rates[name]) for name, pair in pairs.items() if abs(pair.rate - rates[name]) > 0.051}
