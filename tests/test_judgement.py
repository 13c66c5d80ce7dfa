"""Judgements add up as the packages and papers say, and to one clear error where they cannot."""

import math
import pickle

import numpy as np
import pytest

from chameleon_lab.evaluation.intervals import wilson_interval
from chameleon_lab.evaluation.judgement import (
    PAPER_PAIRS,
    PairCounts,
    agreement,
    bradley_terry,
    krippendorff_alpha,
    krippendorff_interval,
    misprints,
    pairwise_agreement,
    win_rate,
)

ALPHAS = {
    (0, 2, 12, 2, 0.0): (0.671428571429, 0.671428571429),
    (1, 3, 20, 3, 0.2): (0.033816425121, -0.129126864421),
    (2, 3, 40, 5, 0.5): (0.355450236967, 0.547337784626),
    (3, 5, 15, 4, 0.7): (0.040697674419, -0.021875),
    (4, 4, 100, 7, 0.1): (0.240571338273, 0.217452063912),
    (5, 2, 30, 3, 0.3): (0.321070234114, 0.505037593985),
}
"""(seed, annotators, items, categories, share missing) of `random_ratings` to alpha, nominal and ordinal, by
krippendorff 0.9.0 from PyPI: `krippendorff.alpha(ratings, level_of_measurement=...)`."""


def random_ratings(seed: int, annotators: int, items: int, categories: int, missing: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    truth_N, shape = rng.integers(0, categories, items), (annotators, items)
    ratings_AN = np.where(rng.random(shape) < 0.5, truth_N, rng.integers(0, categories, shape)).astype(float)
    ratings_AN[rng.random(shape) < missing] = np.nan
    return ratings_AN


@pytest.mark.parametrize("case", ALPHAS)
def test_alpha_is_the_packages(case):
    ratings_AN = random_ratings(*case)
    assert krippendorff_alpha(ratings_AN) == pytest.approx(ALPHAS[case][0], abs=1e-11)
    assert krippendorff_alpha(ratings_AN.tolist(), level="ordinal") == pytest.approx(ALPHAS[case][1], abs=1e-11)


def test_alpha_is_one_for_one_mind_and_knows_categories_only_by_their_order():
    ratings_AN = random_ratings(6, 3, 50, 4, 0.3)
    for level in ("nominal", "ordinal"):
        alpha = krippendorff_alpha(ratings_AN, level)
        assert krippendorff_alpha(np.exp(ratings_AN) - 7, level) == pytest.approx(alpha)
        assert krippendorff_alpha(ratings_AN[::-1, ::-1], level) == pytest.approx(alpha)
        assert krippendorff_alpha(np.tile(np.arange(5.0), (3, 1)), level) == pytest.approx(1)
    swapped_AN = np.where(ratings_AN == 0, 9, ratings_AN)
    assert krippendorff_alpha(swapped_AN) == pytest.approx(krippendorff_alpha(ratings_AN))
    assert krippendorff_alpha(swapped_AN, "ordinal") != pytest.approx(krippendorff_alpha(ratings_AN, "ordinal"))


def test_alphas_interval_is_narrower_for_more_items_and_holds_the_truth():
    """Items are drawn from 4,000, whose alpha is the truth."""
    population_AN = random_ratings(7, 3, 4000, 3, 0.2)
    truth = krippendorff_alpha(population_AN, "ordinal")
    rng, hits, widths = np.random.default_rng(0), 0, []
    for count in [60] * 50 + [600]:
        mean = krippendorff_interval(population_AN[:, rng.integers(0, 4000, count)], "ordinal", draws=100)
        hits += mean.low <= truth <= mean.high
        widths.append(mean.high - mean.low)
    assert 43 <= hits <= 51 and widths[-1] < min(widths[:-1])
    assert krippendorff_interval(population_AN[:, :60]) == krippendorff_interval(population_AN[:, :60])


@pytest.mark.parametrize("ratings", [[[1], [2]], [[1, math.nan], [2, 1]], [[1, 2] * 10, [1, 2] * 10]])
def test_where_no_draw_differs_alpha_has_no_interval(ratings):
    mean = krippendorff_interval(ratings)
    assert mean.value == krippendorff_alpha(ratings) and math.isnan(mean.low) and math.isnan(mean.high)
    assert "to" not in mean.within() + str(mean)
    with pytest.raises(ValueError, match="number of draws must be a whole number from 1"):
        krippendorff_interval(ratings, draws=0)


def test_agreement_counts_how_many_said_what_most_did():
    nan = math.nan
    ratings_AN = np.array([[1, 1, 0, nan], [1, 0, 1, 1], [1, 1, -1, nan]])
    assert agreement(ratings_AN) == {3: 1 / 3, 2: 1 / 3, 1: 1 / 3}  # the last item has one rating, and does not count
    assert agreement([[1, 1], [1, 1]]) == {2: 1.0, 1: 0.0}
    table_AA = pairwise_agreement(ratings_AN)
    assert np.diag(table_AA).tolist() == [1, 1, 1] and (table_AA == table_AA.T).all()
    assert table_AA[0, 1] == pytest.approx(1 / 3) and table_AA[0, 2] == pytest.approx(2 / 3)
    assert np.isnan(pairwise_agreement([[1, nan], [nan, 1]])[0, 1])


@pytest.mark.parametrize(
    ("ratings", "words"),
    {
        "one annotator": ([[1, 0, 1]], "two annotators or more, and these are ratings of 1"),
        "no items": (np.zeros((3, 0)), r"no items.*\(3, 0\)"),
        "one row": ([1, 0, 1], "two dimensions, and not 1"),
        "rows of two lengths": ([[1, 0], [1]], "a row as long as the next"),
        "words": ([["safe", "unsafe"], ["safe", "safe"]], "numbers.*Number the categories"),
        "an infinite one": ([[1, math.inf], [1, 0]], "finite"),
        "no item twice": ([[1, math.nan], [math.nan, 0]], "No item was rated by two"),
        "complex ones": (np.ones((2, 3)) * 1j, "they are complex"),
        "nothing": (np.full((2, 3), math.nan), "No item was rated by two"),
        "all the same": ([[1, 1], [1, 1]], "All ratings .* are the same"),
    }.values(),
)
def test_what_has_no_alpha_is_one_clear_error(ratings, words):
    for function in (krippendorff_alpha, krippendorff_interval):
        with pytest.raises(ValueError, match=words):
            function(ratings)


def test_an_unknown_level_is_named():
    with pytest.raises(ValueError, match="no level 'interval'; there are nominal and ordinal"):
        krippendorff_alpha([[1, 0], [1, 1]], level="interval")  # pyright: ignore[reportArgumentType]


# Win rates


def test_the_papers_counts_give_its_rates_but_for_the_one_it_contradicts_itself_about():
    for name, pair in PAPER_PAIRS.items():
        counts = pair.counts
        assert counts.wins + counts.ties + counts.losses == 1048
        if name != "Gemini+":
            assert round(100 * counts.win_rate, 1) == pair.rate
    assert misprints() == {"Gemini+": (60.4, 58.8)}
    rate = win_rate(wins=435, ties=362, losses=251)
    assert rate == pytest.approx(0.5878, abs=5e-5) and rate.low < rate < rate.high < 0.604 + 0.01
    assert not PAPER_PAIRS["GPT-4V+"].counts.win_rate.low > 0.5  # 51.6 % is no better than even


@pytest.mark.parametrize(("wins", "losses"), [(0, 7), (3, 4), (90, 10), (500, 500), (12, 0)])
def test_without_ties_the_interval_is_wilsons(wins, losses):
    rate = win_rate(wins=wins, ties=0, losses=losses)
    assert (rate.low, rate.high) == pytest.approx(wilson_interval(wins / rate.n, rate.n), abs=1e-4)


@pytest.mark.parametrize(("wins", "ties", "losses"), [(0, 9, 0), (5, 0, 0), (0, 3, 4), (1, 100, 2), (40, 30, 20)])
def test_the_interval_holds_the_rate_narrows_with_ties_and_turns_with_the_sides(wins, ties, losses):
    rate = win_rate(wins=wins, ties=ties, losses=losses)
    assert 0 <= rate.low <= rate <= rate.high <= 1 and rate.low < rate.high and rate.n == wins + ties + losses
    turned = win_rate(wins=losses, ties=ties, losses=wins)
    assert (1 - turned, 1 - turned.high, 1 - turned.low) == pytest.approx((rate, rate.low, rate.high))
    assert rate.high - rate.low <= np.diff(wilson_interval(float(rate), rate.n))[0] + 1e-4
    assert str(pickle.loads(pickle.dumps(rate))) == str(rate)  # with its interval


@pytest.mark.parametrize("shares", [(0.5, 0.2, 0.3), (0.2, 0.7, 0.1), (0.85, 0.1, 0.05)])
@pytest.mark.parametrize("n", [25, 150])
def test_the_interval_holds_the_truth_nineteen_times_in_twenty(shares, n):
    truth, draws = shares[0] + shares[1] / 2, np.random.default_rng(n).multinomial(n, shares, 1000)
    rates = [win_rate(wins=int(w), ties=int(t), losses=int(ls)) for w, t, ls in draws]
    assert 0.93 <= np.mean([rate.low <= truth <= rate.high for rate in rates]) <= 0.975


@pytest.mark.parametrize(
    ("counts", "words"),
    [((-1, 2, 3), "wins .* not -1"), ((1, 2.5, 3), "ties .* not 2.5"), ((1, 2, True), "losses .* not True")],
)
def test_what_is_no_count_is_named(counts, words):
    with pytest.raises(ValueError, match=words):
        win_rate(wins=counts[0], ties=counts[1], losses=counts[2])


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int64, np.uint64])
def test_counts_of_numpy_are_counts_of_any_size(kind):
    counts = {"wins": kind(100), "ties": kind(90), "losses": kind(80)}
    rate = win_rate(**counts)
    assert str(rate) == str(win_rate(wins=100, ties=90, losses=80)) and rate.n == 270
    assert PairCounts(**counts).win_rate == rate


def test_what_an_array_masks_is_missing():
    ratings_AN = random_ratings(8, 3, 20, 3, 0.3)
    masked_AN = np.ma.masked_array(np.nan_to_num(ratings_AN, nan=7.0), np.isnan(ratings_AN))
    assert krippendorff_alpha(masked_AN, "ordinal") == krippendorff_alpha(ratings_AN, "ordinal")


def test_no_comparison_has_no_rate_and_undecided_ones_are_ties():
    with pytest.raises(ValueError, match="all 0"):
        win_rate(wins=0, ties=0, losses=0)
    with pytest.raises(ValueError, match="0 to 2, and not 3"):
        PairCounts(1, 2, 0, undecided=3)


def test_a_majority_decides_and_none_is_a_tie():
    nan = math.nan
    ratings_AN = [
        [1, 1, 1, 0, -1, 1, 1, nan, nan],
        [1, 0, 0, 0, -1, -1, nan, -1, nan],
        [0, -1, 0, 0, -1, nan, nan, -1, nan],
    ]
    assert PairCounts.of(ratings_AN) == PairCounts(wins=2, ties=4, losses=2, undecided=2)
    assert PairCounts.of(ratings_AN[:1]) == PairCounts(wins=5, ties=1, losses=1)  # one annotator's word
    with pytest.raises(ValueError, match=r"1 .* 0 .* -1 .* and not 2"):
        PairCounts.of([[1, 2], [0, 0]])
    with pytest.raises(ValueError, match="Nobody rated"):
        PairCounts.of([[nan, nan]])


# Strengths


def test_strengths_are_those_of_the_package():
    """choix 0.4.1 from PyPI: `choix.ilsr_pairwise_dense([[0, 7, 12], [5, 0, 9.5], [3, 4.5, 0]])`."""
    pairs = {("a", "b"): PairCounts(7, 0, 5), ("c", "a"): PairCounts(2, 2, 11), ("b", "c"): PairCounts(8, 3, 3)}
    model = bradley_terry(pairs)
    assert model.names == ("a", "b", "c")
    assert model.strengths == pytest.approx([0.56892987, 0.13572859, -0.70465845], abs=1e-7)
    assert model.strength("a").low < 0.5689 < model.strength("a").high


def test_of_two_the_chance_is_the_win_rate_and_ties_narrow_it():
    for counts in (PairCounts(60, 0, 40), PairCounts(435, 362, 251), PairCounts(0, 50, 1)):
        chance = bradley_terry({("a", "b"): counts}).chance("a", "b")
        assert chance.value == pytest.approx(counts.win_rate)
        if counts.wins > 10:
            assert (chance.low, chance.high) == pytest.approx((counts.win_rate.low, counts.win_rate.high), abs=0.004)


@pytest.mark.parametrize("ties", [1, 7, 300])
def test_ties_alone_are_no_certainty(ties):
    counts = PairCounts(0, ties, 0)
    chance = bradley_terry({("a", "b"): counts}).chance("a", "b")
    assert chance.value == counts.win_rate
    assert 0 < chance.low < counts.win_rate.low and counts.win_rate.high < chance.high < 1


def test_the_intervals_of_strengths_hold_the_truth():
    truth, rng, hits = np.array([0.8, 0.1, -0.9]), np.random.default_rng(1), 0
    for _ in range(300):
        pairs = {}
        for i, j in ((0, 1), (1, 2), (0, 2)):
            wins = int(rng.binomial(40, 1 / (1 + math.exp(truth[j] - truth[i]))))
            pairs[str(i), str(j)] = PairCounts(wins, 0, 40 - wins)
        strength = bradley_terry(pairs).strength("0")
        hits += strength.low <= 0.8 <= strength.high
    assert 0.92 < hits / 300 < 0.98


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ({}, "no comparisons"),
        ({("a", "a"): PairCounts(1, 1, 1)}, "'a' is compared with itself"),
        ({("a", "b"): PairCounts(3, 0, 0)}, "no end.*a | b|b | a"),
        ({("a", "b"): PairCounts(1, 0, 1), ("c", "d"): PairCounts(1, 0, 1)}, r"no end.*a, b \| c, d|c, d \| a, b"),
    ],
)
def test_strengths_without_an_end_are_one_clear_error(pairs, words):
    with pytest.raises(ValueError, match=words):
        bradley_terry(pairs)


def test_a_name_that_was_not_compared_is_named():
    with pytest.raises(ValueError, match="None is called 'c'; there are a, b"):
        bradley_terry({("a", "b"): PairCounts(1, 1, 1)}).chance("a", "c")
