"""Intervals hold what they promise, and say what so many runs can exclude."""

import math

import numpy as np
import pytest

from chameleon_lab.evaluation.intervals import Mean, Share, wilson_interval


def test_none_of_six_allows_thirty_nine_per_cent():
    assert str(Share(0, 6)) == "0 of 6 (≤ 39 % at 95 %)" and str(Share(6, 6)) == "6 of 6 (≥ 61 % at 95 %)"
    assert str(Share(0, 0)) == "0 of 0" and Share(0, 0).interval == (0.0, 1.0)
    for n in (30, 100, 300):
        assert Share(0, n).interval[1] == pytest.approx(3 / n, rel=0.06)  # the rule of three


def test_exact_shares_are_those_of_the_binomial_distribution():
    def at_most(count: int, n: int, share: float) -> float:
        return sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(count + 1))

    for count, n in ((1, 6), (3, 7), (33, 35), (6, 72)):
        low, high = Share(count, n).interval
        assert at_most(count, n, high) == pytest.approx(0.025) and at_most(count - 1, n, low) == pytest.approx(0.975)
    with pytest.raises(ValueError, match="not 7 of 6"):
        Share(7, 6)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_an_interval_of_seeds_holds_the_mean_nineteen_times_in_twenty(count):
    rng = np.random.default_rng(count)
    means = [Mean.of_seeds(rng.normal(2.0, 0.3, count)) for _ in range(2000)]
    assert 0.93 < np.mean([mean.low <= 2.0 <= mean.high for mean in means]) < 0.97
    assert np.mean([mean.excludes(2.0) for mean in means]) == pytest.approx(0.05, abs=0.02)


def test_of_a_log_axis_the_mean_is_geometric_and_one_seed_has_no_interval():
    mean = Mean.of_seeds([10.0, 1000.0], log=True)
    assert mean.value == pytest.approx(100) and mean.low * mean.high == pytest.approx(100**2)
    for alone in (Mean.of_seeds([3.0]), Mean.of([3.0])):
        assert math.isnan(alone.low) and alone.within() == "3.000" and not alone.excludes(0)
        assert str(alone) == "3.00 (n = 1)"
    for wrong, log in (([], False), ([math.nan], False), ([0.0, 1.0], True)):
        with pytest.raises(ValueError, match="mean is of"):
            Mean.of_seeds(wrong, log=log)


def test_wilson_agrees_with_the_exact_interval_where_there_are_hundreds():
    exact, quick = Share(170, 200).interval, wilson_interval(0.85, 200)
    assert quick == pytest.approx(exact, abs=0.01)
