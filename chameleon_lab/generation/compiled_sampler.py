# type: ignore - numba compiles Python of its own kind, and is not installed where types are checked
"""Guidance and sampler of the compiled step, for a run of codes in one call.

The sums of `TwoWay`, `ThreeWay` and `Sampler`, one by one in the same types, so that the tokens are theirs but where
the last bit of an exponential decides.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from chameleon_lab.generation.compiled_memory import FAST, field, float_at, put_float
from chameleon_lab.generation.compiled_vectors import softmax_of

# Places of what a run of codes is drawn with, whole numbers and addresses; the sort's keys stand behind them
PLACES, LIVE_ROWS, LIVE, STREAMS, BATCH, IDS, CHOICES, STRENGTHS, QUANTILES, CODES, TOP_K, SHARES, DRAWN = range(13)
FIRST_KEY = 16
# Places of its numbers
TEMPERATURE, TOP_P, MIN_P, FIRST_SHARE = range(4)

STRICT = {"fastmath": False, "nogil": True, "error_model": "numpy"}


@njit(**STRICT)
def mixed_logits(logits, vocabulary, order, number, strengths, mixed):
    """A row's guided logits of what may come, as the guidance mixes them, to `mixed`: the largest; NaN where any that
    it looked at, or mixed, is not finite."""
    batch, streams, ids = order[BATCH], order[STREAMS], order[IDS]
    row = field(order[LIVE], number)
    most = np.float32(-math.inf)
    finite = True
    for place in range(order[CHOICES]):
        token = field(ids, place)
        logit = float_at(logits + 4 * (row * vocabulary + token))
        if streams > 1:
            last = float_at(logits + 4 * (((streams - 1) * batch + row) * vocabulary + token))
            finite &= math.isfinite(logit) and math.isfinite(last)
            if streams == 2:
                logit = last + float_at(strengths) * (logit - last)
            else:
                middle = float_at(logits + 4 * ((batch + row) * vocabulary + token))
                finite &= math.isfinite(middle)
                by_image = float_at(strengths + 4) * (middle - last)
                logit = last + by_image + float_at(strengths) * (logit - middle)
        finite &= math.isfinite(logit)
        put_float(mixed + 4 * place, logit)
        most = logit if logit > most else most
    return most if finite else np.float32(math.nan)


@njit(**STRICT)
def first_of(mixed, count, number):
    for place in range(count):
        if float_at(mixed + 4 * place) == number:
            return place
    return 0


@njit(**STRICT)
def cooled(mixed, count, most, temperature):
    for place in range(count):
        put_float(mixed + 4 * place, (float_at(mixed + 4 * place) - most) / temperature)


@njit(**STRICT)
def share_keys(mixed, count, sum_, keys):
    """Shares, and whole numbers in their order, the largest first, of equal ones the earlier."""
    bits = np.empty(1, np.float32)
    for place in range(count):
        bits[0] = float_at(mixed + 4 * place) / sum_
        keys[place] = place - (np.int64(bits.view(np.int32)[0]) << 32)


@njit(**STRICT)
def place_at(keys, count, quantile, top_p, min_p, totals):
    """Where the token at this quantile stands among the likeliest: `Sampler._place`, its sums in the same types."""
    bits, sum_ = np.empty(1, np.int32), 0.0
    likely, greatest = 0, np.float32(0)
    for place in range(count):
        bits[0] = np.int32(-(keys[place] >> 32))
        share = bits.view(np.float32)[0]
        greatest = share if place == 0 else greatest
        likely += 1 if share >= min_p * greatest else 0
        sum_ += share
        totals[place] = np.float32(sum_)
    last = np.searchsorted(totals[:count], top_p * totals[count - 1])
    if min_p > 0:
        last = min(last, max(likely - 1, 0))
    last = min(last, count - 1)
    return min(np.searchsorted(totals[:count], quantile * totals[last], side="right"), last)


@njit(**FAST)
def pick_code(logits, vocabulary, order, numbers, at, number):
    """The token of a row at one place of the run, `at` bytes from the first of its draws; -1 where its logits are not
    finite."""
    count, keys, shares = order[CHOICES], order[FIRST_KEY:], numbers[FIRST_SHARE:]
    mixed = shares.ctypes.data
    strengths = order[STRENGTHS] + 2 * at
    most = mixed_logits(logits, vocabulary, order, number, strengths, mixed)
    if not math.isfinite(most):
        return -1
    if numbers[TEMPERATURE] == 0:
        return field(order[IDS], first_of(mixed, count, most))
    cooled(mixed, count, most, numbers[TEMPERATURE])
    share_keys(mixed, count, softmax_of(mixed, count), keys)
    keys[:count].sort()
    considered = min(order[TOP_K], count) if order[TOP_K] else count
    quantile = float_at(order[QUANTILES] + at)
    place = place_at(keys, considered, quantile, numbers[TOP_P], numbers[MIN_P], shares)
    return field(order[IDS], keys[place] & 0xFFFFFFFF)
