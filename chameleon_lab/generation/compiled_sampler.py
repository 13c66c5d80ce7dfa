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

# Places of what a run of codes is drawn with, whole numbers and addresses; the heap's keys stand behind them
RUN_PLACES, LIVE_ROWS, LIVE, STREAMS, RUN_BATCH, IDS, RUN_CHOICES = range(7)
STRENGTHS, QUANTILES, RUN_CODES, TOP_K, DRAWN = range(7, 12)
FIRST_KEY = 16
# Places of its numbers
TEMPERATURE, TOP_P, MIN_P, FIRST_SHARE = range(4)

STRICT = {"fastmath": False, "nogil": True, "error_model": "numpy"}


@njit(**STRICT)
def mixed_logits(logits, vocabulary, order, number, strengths, mixed):
    """A row's guided logits of what may come, as the guidance mixes them, to `mixed`: the largest; NaN where any that
    it looked at, or mixed, is not finite."""
    batch, streams, ids = order[RUN_BATCH], order[STREAMS], order[IDS]
    row = field(order[LIVE], number)
    most = np.float32(-math.inf)
    finite = True
    for place in range(order[RUN_CHOICES]):
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
def sift_down(keys, place, count):
    """The key at this place goes down to where the heap of so many is one again, the smallest first."""
    key = keys[place]
    while 2 * place + 1 < count:
        below = 2 * place + 1
        below += 1 if below + 1 < count and keys[below + 1] < keys[below] else 0
        if keys[below] >= key:
            break
        keys[place] = keys[below]
        place = below
    keys[place] = key


@njit(**STRICT)
def heap_of_shares(mixed, count, sum_, keys):
    """A heap of whole numbers in the order of shares, the largest first, of equal ones the earlier: the shares' sum."""
    bits, total = np.empty(1, np.float32), 0.0
    for place in range(count):
        bits[0] = float_at(mixed + 4 * place) / sum_
        total += bits[0]
        keys[place] = place - (np.int64(bits.view(np.int32)[0]) << 32)
    for place in range(count // 2 - 1, -1, -1):
        sift_down(keys, place, count)
    return np.float32(total)


@njit(**STRICT)
def share_of(key):
    bits = np.empty(1, np.int32)
    bits[0] = np.int32(-(key >> 32))
    return bits.view(np.float32)[0]


@njit(**STRICT)
def next_likeliest(keys, count, place):
    """Takes the key with this number in their order out of the heap, to behind it: its share."""
    left = count - place - 1
    key = keys[0]
    keys[0] = keys[left]
    sift_down(keys, 0, left)
    keys[left] = key
    return share_of(key)


@njit(**STRICT)
def likeliest_at(keys, count, top_k, quantile, top_p, min_p, total, totals):
    """Which of them stands at this quantile: `Sampler._place`, its sums in the same types, as far as it needs them."""
    sum_, considered, last = 0.0, top_k if top_k else count, 0
    for place in range(top_k):  # whose sum is the total
        sum_ += next_likeliest(keys, count, place)
        totals[place] = total = np.float32(sum_)
    for last in range(considered):
        if last >= top_k:
            sum_ += next_likeliest(keys, count, last)
            totals[last] = np.float32(sum_)
        if totals[last] >= top_p * total:
            break
    while min_p > 0 and last > 0 and share_of(keys[count - 1 - last]) < min_p * totals[0]:
        last -= 1
    for place in range(last):
        if totals[place] > quantile * totals[last]:
            return keys[count - 1 - place] & 0xFFFFFFFF
    return keys[count - 1 - last] & 0xFFFFFFFF


@njit(**FAST)
def pick_code(logits, vocabulary, order, numbers, at, number):
    """The token of a row at one place of the run, `at` bytes from the first of its draws; -1 where its logits are not
    finite."""
    count, keys, shares = order[RUN_CHOICES], order[FIRST_KEY:], numbers[FIRST_SHARE:]
    mixed = shares.ctypes.data
    strengths = order[STRENGTHS] + 2 * at
    most = mixed_logits(logits, vocabulary, order, number, strengths, mixed)
    if not math.isfinite(most):
        return -1
    if numbers[TEMPERATURE] == 0:
        return field(order[IDS], first_of(mixed, count, most))
    cooled(mixed, count, most, numbers[TEMPERATURE])
    total = heap_of_shares(mixed, count, softmax_of(mixed, count), keys)
    top_k = order[TOP_K] if order[TOP_K] < count else 0
    quantile = float_at(order[QUANTILES] + at)
    place = likeliest_at(keys, count, top_k, quantile, numbers[TOP_P], numbers[MIN_P], total, shares)
    return field(order[IDS], place)
