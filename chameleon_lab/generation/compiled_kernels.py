# type: ignore - numba compiles Python of its own kind, and is not installed where types are checked
"""The sums of one token a row, compiled by numba: this module is imported only where numba is (`compiled_step`).

- a whole step of all layers is one call, `run`, and the product with a head another
- weights are read where they lie, in float32, bfloat16, 8 or 4 bits (`compiled_products`); inputs of float32 become
  16-bit numbers for products with 8 and 4 bits, so that those are exact sums of whole numbers
- products fall into pieces, which whoever is free takes: the caller, and helpers that wait in `help_out` for pieces
- no flag lets the compiler assume that numbers are finite: a NaN has to reach the logits
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
from numba import cfunc, njit

from chameleon_lab.generation.compiled_memory import (
    BRAIN,
    BYTE,
    FAST,
    FLOAT,
    FLOAT_FLAGS,
    LANES,
    NIBBLE,
    OUTPUTS,
    add_to,
    call_piece,
    field,
    float_at,
    gain,
    look_at,
    pause,
    put_at,
    put_brain,
    put_float,
    rest,
    swap_at,
)
from chameleon_lab.generation.compiled_products import (
    GROUP,
    NIBBLE_BLOCK,
    group_sums,
    multiply_floats,
    multiply_nibbles,
    round_rows,
)
from chameleon_lab.generation.compiled_sampler import (
    DRAWN,
    FIRST_KEY,
    FIRST_SHARE,
    LIVE,
    LIVE_ROWS,
    RUN_BATCH,
    RUN_CODES,
    RUN_PLACES,
    STREAMS,
    pick_code,
)
from chameleon_lab.generation.compiled_vectors import (
    LAYER,
    NO_NORM,
    ONE,
    RMS,
    add_branch,
    gate_products,
    mix,
    normed,
    normed_rows,
    scale_outputs,
    softmax_of,
    turn_pairs,
)

__all__ = [
    "BRAIN",
    "BYTE",
    "FIRST_KEY",
    "FIRST_SHARE",
    "FLOAT",
    "GROUP",
    "LANES",
    "LAYER",
    "NIBBLE",
    "NIBBLE_BLOCK",
    "NO_NORM",
    "OUTPUTS",
    "RMS",
]
"""Names of the plan, which `compiled_step` makes, beside those below."""

# The columns of a layer's row in the table of addresses: four matrices of four numbers, then the vectors
QKV, OUT, GATE_UP, DOWN = 0, 4, 8, 12  # kind, address, address of scales, groups of heads or padded outputs
ATTENTION_PRE, ATTENTION_POST, FFN_PRE, FFN_POST, QUERY, KEY = 16, 20, 24, 28, 32, 36  # kind, weight, bias, groups
ATTENTION_SCALE, FFN_SCALE = 40, 41
COLUMNS = 42
# The columns of a layer's row in the table of numbers
EPS, CAP = 0, 6  # of the six norms; of attention's logits, 0 without one
LAYER_NUMBERS = 7
# Places in what the threads share, each in a line of the processor's cache of its own
TICKET, LIMIT, DONE, PIECE, BASE, FUNCTION = 0, 8, 16, 24, 46, 47
SHARED_NUMBERS = 48
PIECE_WEIGHTS = 2**15  # of a product that one thread takes at a time
ROUNDING_ROOM = 32  # numbers more for a row's inputs in 16 bits: their scale, and what aligns them
IDLE = 20_000  # looks of a helper for a piece before it goes to sleep, about a millisecond


KERNEL_FILES = "memory", "vectors", "products", "sampler", "kernels"
SOURCES = zlib.crc32(b"".join(Path(__file__).with_name(f"compiled_{name}.py").read_bytes() for name in KERNEL_FILES))
"""What the machine code was made of. numba's cache on disk looks at the time of this file alone, but compares what a
function takes from a function around it: so `run` and `do_piece` take this."""


# Work in pieces


@njit(**FAST)
def _product_piece(work, place):
    """Some outputs of a product."""
    kind, w, scales, extra, count = field(work, 1), field(work, 2), field(work, 3), field(work, 4), field(work, 5)
    outputs, x, sums, y, rows, per = (
        field(work, 6),
        field(work, 7),
        field(work, 8),
        field(work, 9),
        field(work, 10),
        field(work, 11),
    )
    x_scales = field(work, 12)
    begin = place * per
    left = outputs - begin
    here = (
        per if left - per >= OUTPUTS else left
    )  # fewer would be none of their own: outputs are computed four at a time
    if kind == NIBBLE:
        groups = count // GROUP
        multiply_nibbles(w, scales, extra, x, 2 * count, sums, 4 * groups, count, y, 4 * outputs, begin, here, rows)
        for row in range(rows):
            for output in range(begin, begin + here):
                at = y + 4 * (row * outputs + output)
                put_float(at, float_at(x_scales + 4 * row) * float_at(at))
        return
    w_stride, x_stride = count * (4 if kind == FLOAT else 2 if kind == BRAIN else 1), count * (2 if kind == BYTE else 4)
    multiply_floats(kind, w + begin * w_stride, w_stride, x, x_stride, count, y + 4 * begin, 4 * outputs, here, rows)
    if kind == BYTE:
        for row in range(rows):
            factor, at = float_at(x_scales + 4 * row), y + 4 * (row * outputs + begin)
            scale_outputs(at, scales + begin * (2 if extra else 4), extra, factor, here)


@njit(**FAST)
def _attention_piece(work, place):
    """One row's queries that share a head of keys; the cache has at least four positions."""
    q, out, keys, values, lengths = field(work, 1), field(work, 2), field(work, 3), field(work, 4), field(work, 5)
    heads, kv_heads, width, brain = field(work, 6), field(work, 7), field(work, 8), field(work, 9)
    row_stride, head_stride, q_stride, room = field(work, 10), field(work, 11), field(work, 12), field(work, 13)
    cap, scores = float_at(field(work, 14)), field(work, 15)
    row, head = place // kv_heads, place % kv_heads
    each, size, first = heads // kv_heads, 2 if brain else 4, head * (heads // kv_heads)
    keys += row * row_stride + head * head_stride
    values += row * row_stride + head * head_stride
    reach = min(field(lengths, row), room) + 1
    scores += 4 * (row * heads + first) * (room + 1)
    q += row * q_stride + 4 * first * width
    wide = max(reach, OUTPUTS)
    multiply_floats(
        BRAIN if brain else FLOAT, keys, width * size, q, 4 * width, width, scores, 4 * (room + 1), wide, each
    )
    for query in range(each):
        shares, target = scores + 4 * query * (room + 1), out + 4 * (row * heads + first + query) * width
        if cap > 0:
            for at in range(reach):
                put_float(shares + 4 * at, cap * np.float32(math.tanh(float_at(shares + 4 * at) / cap)))
        mix(brain, shares, values, target, reach, width, ONE / softmax_of(shares, reach))


def _compile_piece(sources):
    @cfunc("void(int64, int64)", cache=True, fastmath=set(FLOAT_FLAGS), error_model="numpy")
    def do_piece(work, place):
        if field(work, 0) == 0 and sources >= 0:
            _product_piece(work, place)
        else:
            _attention_piece(work, place)

    return do_piece


do_piece = _compile_piece(SOURCES)


@njit(**FAST)
def _take(shared):
    """The number of a piece that is now the caller's, or -1."""
    while True:
        ticket = look_at(shared + 8 * TICKET)
        if ticket >= look_at(shared + 8 * LIMIT):
            return -1
        if swap_at(shared + 8 * TICKET, ticket, ticket + 1):
            return ticket


@njit(**FAST)
def _share_out(array, pieces, alone):
    """All pieces of the work that `shared` describes: none is under way any more when this returns."""
    shared = array.ctypes.data
    work = shared + 8 * PIECE
    if alone or pieces == 1:
        for place in range(pieces):
            call_piece(array[FUNCTION], work, place)
        return
    limit = look_at(shared + 8 * LIMIT)
    array[BASE] = limit
    put_at(shared + 8 * LIMIT, limit + pieces)
    while True:
        ticket = _take(shared)
        if ticket < 0:
            break
        call_piece(array[FUNCTION], work, ticket - limit)
        add_to(shared + 8 * DONE, 1)
    looks = 0
    while look_at(shared + 8 * DONE) < limit + pieces:
        looks += 1
        if looks > 1000:  # whoever has the last piece may have lost its core
            rest()
        else:
            pause()


@njit(**FAST)
def _help_out(array):
    """Takes pieces until there have been none for about a millisecond."""
    shared, looks = array.ctypes.data, 0
    while looks < IDLE:
        ticket = _take(shared)
        if ticket < 0:
            looks += 1
            pause()
        else:
            call_piece(array[FUNCTION], shared + 8 * PIECE, ticket - array[BASE])
            add_to(shared + 8 * DONE, 1)
            looks = 0


@njit(**FAST)
def _multiply(shared, alone, matrix, count, outputs, x, y, rows, room):
    """y = x W^T for rows of inputs, float32 both; `room`: for inputs in 16 bits, their scales, and sums of groups."""
    per = max(8, PIECE_WEIGHTS // count // OUTPUTS * OUTPUTS)
    room = (room + 63) // 64 * 64
    x_scales = room + 2 * rows * count
    sums = x_scales + 4 * rows
    if matrix[0] == BYTE or matrix[0] == NIBBLE:
        round_rows(x, rows, count, room, x_scales)
        x = room
    if matrix[0] == NIBBLE:
        per = max(NIBBLE_BLOCK, per // NIBBLE_BLOCK * NIBBLE_BLOCK)
        group_sums(x, rows * count // GROUP, sums)
    shared[PIECE] = 0
    shared[PIECE + 1 : PIECE + 5] = matrix
    shared[PIECE + 5] = count
    shared[PIECE + 6] = outputs
    shared[PIECE + 7] = x
    shared[PIECE + 8] = sums
    shared[PIECE + 9] = y
    shared[PIECE + 10] = rows
    shared[PIECE + 11] = per
    shared[PIECE + 12] = x_scales
    _share_out(shared, max(1, (outputs + per - OUTPUTS) // per), alone)


# Names of the plan's sizes
LAYERS, WIDTH, HEADS, KV_HEADS, WIDTH_OF_HEAD, FFN, IS_BRAIN, KEYS, VALUES, LAYER_STRIDE, ROW_STRIDE, HEAD_STRIDE = (
    range(12)
)
ROOM, TURNS, EMBEDDING, VOCABULARY, HEAD, FIRST_NORM, LAST_NORM = 12, 13, 14, 15, 16, 20, 24
PLAN_SIZES = 28
HELP, STEP, LOGITS, DRAW_RUN = range(4)  # what `run` is asked for


@njit(**FAST)
def _step(shared, alone, sizes, table, numbers, tokens, lengths, outputs, scratch):
    """A new token of each row through all layers: its keys and values go to the cache, its normed output to `outputs`.

    `numbers` has the eps of the first and the last norm in a row behind those of the layers.
    """
    width, heads, kv_heads, head_width, ffn = (
        sizes[WIDTH],
        sizes[HEADS],
        sizes[KV_HEADS],
        sizes[WIDTH_OF_HEAD],
        sizes[FFN],
    )
    brain, layers, room, rows = sizes[IS_BRAIN] != 0, sizes[LAYERS], sizes[ROOM], len(tokens)
    size, every = 2 if brain else 4, heads + 2 * kv_heads
    xs = scratch.ctypes.data
    ns = xs + 4 * rows * width
    hs = ns + 4 * rows * width
    ms = hs + 4 * rows * every * head_width
    gs = ms + 4 * rows * heads * head_width
    fs = gs + 8 * rows * ffn
    sums = fs + 4 * rows * ffn
    scores = sums + 4 * rows * (max(width, ffn, heads * head_width) + ROUNDING_ROOM)
    for row in range(rows):
        for place in range(width):
            put_float(xs + 4 * (row * width + place), gain(sizes[EMBEDDING] + tokens[row] * width * size, place, brain))
    first = sizes[FIRST_NORM : FIRST_NORM + 4]
    if first[0] != NO_NORM:
        normed_rows(xs, xs, rows, width, first, numbers[layers, 0], brain)
    factor = ONE / np.float32(math.sqrt(head_width))
    for layer in range(layers):
        parts, eps = table[layer], numbers[layer]
        normed_rows(xs, ns, rows, width, parts[ATTENTION_PRE : ATTENTION_PRE + 4], eps[0], brain)
        _multiply(shared, alone, parts[QKV : QKV + 4], width, every * head_width, ns, hs, rows, sums)
        keys = sizes[KEYS] + layer * sizes[LAYER_STRIDE]
        values = sizes[VALUES] + layer * sizes[LAYER_STRIDE]
        for row in range(rows):
            place = min(lengths[row], room)
            turns = sizes[TURNS] + place * 4 * head_width
            for head in range(every):
                at = hs + 4 * (row * every + head) * head_width
                if head < heads + kv_heads:
                    is_query = head < heads
                    column = QUERY if is_query else KEY
                    if parts[column] != NO_NORM:
                        among, number = (heads, head) if is_query else (kv_heads, head - heads)
                        shift = number // (among // parts[column + 3]) * head_width * size
                        weight = parts[column + 1] + shift if parts[column + 1] else 0
                        bias = parts[column + 2] + shift if parts[column + 2] else 0
                        normed(at, at, head_width, parts[column], weight, bias, eps[4 if is_query else 5], brain)
                    turn_pairs(at, turns, head_width, factor if is_query else ONE)
                if head >= heads:
                    memory, number = (
                        (keys, head - heads) if head < heads + kv_heads else (values, head - heads - kv_heads)
                    )
                    target = memory + row * sizes[ROW_STRIDE] + number * sizes[HEAD_STRIDE] + place * head_width * size
                    for channel in range(head_width):
                        if brain:
                            put_brain(target + 2 * channel, float_at(at + 4 * channel))
                        else:
                            put_float(target + 4 * channel, float_at(at + 4 * channel))
        shared[PIECE] = 1
        shared[PIECE + 1] = hs
        shared[PIECE + 2] = ms
        shared[PIECE + 3] = keys
        shared[PIECE + 4] = values
        shared[PIECE + 5] = lengths.ctypes.data
        shared[PIECE + 6] = heads
        shared[PIECE + 7] = kv_heads
        shared[PIECE + 8] = head_width
        shared[PIECE + 9] = brain
        shared[PIECE + 10] = sizes[ROW_STRIDE]
        shared[PIECE + 11] = sizes[HEAD_STRIDE]
        shared[PIECE + 12] = 4 * every * head_width
        shared[PIECE + 13] = room
        shared[PIECE + 14] = eps[CAP:].ctypes.data
        shared[PIECE + 15] = scores
        _share_out(shared, rows * kv_heads, alone)
        _multiply(shared, alone, parts[OUT : OUT + 4], heads * head_width, width, ms, ns, rows, sums)
        add_branch(
            xs, ns, rows, width, parts[ATTENTION_POST : ATTENTION_POST + 4], eps[1], parts[ATTENTION_SCALE], brain
        )
        normed_rows(xs, ns, rows, width, parts[FFN_PRE : FFN_PRE + 4], eps[2], brain)
        _multiply(shared, alone, parts[GATE_UP : GATE_UP + 4], width, 2 * ffn, ns, gs, rows, sums)
        for row in range(rows):
            at = gs + 8 * row * ffn
            gate_products(at, at + 4 * ffn, fs + 4 * row * ffn, ffn)
        _multiply(shared, alone, parts[DOWN : DOWN + 4], ffn, width, fs, ns, rows, sums)
        add_branch(xs, ns, rows, width, parts[FFN_POST : FFN_POST + 4], eps[3], parts[FFN_SCALE], brain)
    normed_rows(xs, outputs.ctypes.data, rows, width, sizes[LAST_NORM : LAST_NORM + 4], numbers[layers, 1], brain)


@njit(**FAST)
def _picked(sizes, order, shares, place, tokens, logits):
    """Codes of the rows that draw, for this place of a run, to all streams of theirs; False where logits are not
    finite."""
    for number in range(order[LIVE_ROWS]):
        at = place * order[LIVE_ROWS] + number
        code = pick_code(logits.ctypes.data, sizes[VOCABULARY], order, shares, 4 * at, number)
        if code < 0:
            return False
        put_at(order[RUN_CODES] + 8 * at, code)
        for stream in range(order[STREAMS]):
            tokens[stream * order[RUN_BATCH] + field(order[LIVE], number)] = code
    order[DRAWN] = place + 1
    return True


def _compile_run(sources):
    @njit(
        "boolean(int64, int64[::1], boolean, int64[::1], int64[:, ::1], float32[:, ::1], int64[::1], int64[::1], "
        "float32[:, ::1], float32[:, ::1], float32[::1], int64[::1], float32[::1])",
        cache=True,
        **FAST,
    )
    def run(work, shared, alone, sizes, table, numbers, tokens, lengths, outputs, logits, scratch, order, shares):
        """A step, the logits of its outputs, a run of codes, or help: one function, so that all of it is compiled once.

        False, and nothing computed, for a token that the vocabulary does not have.
        """
        if work == HELP and sources >= 0:
            _help_out(shared)
            return True
        for token in tokens:
            if not 0 <= token < sizes[VOCABULARY]:
                return False
        places = order[RUN_PLACES] if work == DRAW_RUN else 1
        for place in range(places):
            if work == DRAW_RUN and (not _picked(sizes, order, shares, place, tokens, logits) or place + 1 == places):
                break
            if work != LOGITS:
                _step(shared, alone, sizes, table, numbers, tokens, lengths, outputs, scratch)
            if work != STEP:
                xs, ys, room = outputs.ctypes.data, logits.ctypes.data, scratch.ctypes.data
                head = sizes[HEAD : HEAD + 4]
                _multiply(shared, alone, head, sizes[WIDTH], sizes[VOCABULARY], xs, ys, len(outputs), room)
            if work == DRAW_RUN:
                for number in range(order[LIVE_ROWS]):
                    for stream in range(order[STREAMS]):
                        lengths[stream * order[RUN_BATCH] + field(order[LIVE], number)] += 1
        return True

    return run


run = _compile_run(SOURCES)
