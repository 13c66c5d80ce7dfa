# type: ignore - numba compiles Python of its own kind, and is not installed where types are checked
"""Sums of single rows for the compiled step: exponentials, softmax, gates, norms, rotations, rounding to 16 bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from chameleon_lab.generation.compiled_memory import (
    BRAIN,
    F32,
    FAST,
    FLOAT,
    FLOAT_FLAGS,
    I8,
    I16,
    I32,
    I64,
    LANES,
    emit_loop,
    float_at,
    gain,
    lanes_of,
    of_code,
    pointer,
    put_float,
    spread_number,
    times_power_of_two,
    weights_vector,
)

NO_NORM, RMS, LAYER = range(3)  # kinds of norms

LOG2E, LN2_HIGH, LN2_LOW = np.float32(math.log2(math.e)), np.float32(0.693359375), np.float32(-2.12194440e-4)
MAGIC = np.float32(1.5 * 2**23)  # added, it leaves a whole number in the low bits
HIGHEST, LOWEST, ONE = np.float32(88), np.float32(-87), np.float32(1)
TERMS = tuple(np.float32(1 / math.factorial(power)) for power in range(8))
C2, C3, C4, C5, C6, C7 = TERMS[2:]


@njit(fastmath=False, nogil=True, error_model="numpy")  # else its callers' flags: `MAGIC` would be reordered away
def exponential(x):
    """e^x to the last bits of float32, without a branch; of a NaN a NaN."""
    x = HIGHEST if x > HIGHEST else x
    x = LOWEST if x < LOWEST else x
    shifted = x * LOG2E + MAGIC
    whole = shifted - MAGIC
    r = x - whole * LN2_HIGH - whole * LN2_LOW
    sum_ = ONE + r * (ONE + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * (C6 + r * C7))))))
    return times_power_of_two(sum_, shifted)


def _exponentials(builder: Any, x: Any) -> Any:
    """`exponential` of all lanes: the compiler makes no vectors of it by itself. No sum is without a flag, since numba
    gives those its own, by which `MAGIC` would be reordered away."""
    whole = ir.VectorType(I32, LANES)

    def fused(one: Any, factor: Any, more: Any) -> Any:
        return builder.fadd(builder.fmul(one, factor, flags=["contract"]), more, flags=["contract"])

    x = builder.select(builder.fcmp_ordered(">", x, lanes_of(HIGHEST)), lanes_of(HIGHEST), x)
    x = builder.select(builder.fcmp_ordered("<", x, lanes_of(LOWEST)), lanes_of(LOWEST), x)
    shifted = fused(x, lanes_of(LOG2E), lanes_of(MAGIC))
    power = builder.fsub(shifted, lanes_of(MAGIC), flags=["contract"])
    r = fused(power, lanes_of(-LN2_LOW), fused(power, lanes_of(-LN2_HIGH), x))
    sum_ = lanes_of(C7)
    for term in (C6, C5, C4, C3, C2, ONE, ONE):
        sum_ = fused(sum_, r, lanes_of(term))
    exponent = builder.add(builder.bitcast(shifted, whole), ir.Constant(whole, [127] * LANES))
    scale = builder.shl(exponent, ir.Constant(whole, [23] * LANES))
    return builder.fmul(sum_, builder.bitcast(scale, sum_.type))


@of_code(types.none, types.int64, types.int64, types.int64, types.int64)
def gate_products(builder, gates, ups, y, count):
    """y = silu(gates) ups, of a multiple of sixteen numbers."""

    def body(place, _):
        at = builder.mul(place, I64(4))
        gate, up = (weights_vector(builder, builder.add(each, at), FLOAT) for each in (gates, ups))
        below = builder.fadd(lanes_of(1), _exponentials(builder, builder.fsub(lanes_of(-0.0), gate)))
        product = builder.fmul(builder.fdiv(gate, below), up)
        builder.store(product, pointer(builder, builder.add(y, at), product.type), align=4)
        return []

    emit_loop(builder, I64(0), count, LANES, [], body)
    return ir.Constant(I8.as_pointer(), None)


@of_code(types.float32, types.int64, types.int64)
def largest(builder, x, count):
    """Of a multiple of sixteen numbers, of which a NaN is none; -inf of none."""

    def body(place, most):
        numbers = weights_vector(builder, builder.add(x, builder.mul(place, I64(4))), FLOAT)
        return [builder.select(builder.fcmp_ordered(">", numbers, most[0]), numbers, most[0])]

    [most] = emit_loop(builder, I64(0), count, LANES, [lanes_of(-math.inf)], body)
    kind = ir.FunctionType(F32, [most.type])
    name = f"llvm.vector.reduce.fmax.v{LANES}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [most])


@of_code(types.float32, types.int64, types.int64, types.float32)
def exponentials(builder, x, count, most):
    """x = e^(x - most) in place, of a multiple of sixteen numbers: their sum."""

    def body(place, sums):
        at = pointer(builder, builder.add(x, builder.mul(place, I64(4))), many)
        powers = _exponentials(builder, builder.fsub(builder.load(at, align=4), spread))
        builder.store(powers, at, align=4)
        return [builder.fadd(sums[0], powers, flags=FLOAT_FLAGS)]

    many, spread = ir.VectorType(F32, LANES), spread_number(builder, most)
    [sums] = emit_loop(builder, I64(0), count, LANES, [lanes_of(0)], body)
    kind = ir.FunctionType(F32, [F32, many])
    add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
    return builder.call(add, [F32(0.0), sums], fastmath=FLOAT_FLAGS)


@njit(**FAST)
def softmax_of(x, count):
    """x = e^(x - the largest), and their sum."""
    whole = count // LANES * LANES
    most = largest(x, whole)
    for at in range(whole, count):
        number = float_at(x + 4 * at)
        most = number if number > most else most
    sum_ = exponentials(x, whole, most)
    for at in range(whole, count):
        share = exponential(float_at(x + 4 * at) - most)
        put_float(x + 4 * at, share)
        sum_ += share
    return sum_


@of_code(types.none, types.int64, types.int64, types.int64, types.int64, types.int64)
def round_row(builder, x, count, target, scale, levels):
    """A multiple of sixteen numbers as 16-bit ones, the largest of which is `levels`, and by what to multiply those: no
    number where one of the row is none."""
    many, whole, short = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES), ir.VectorType(I16, LANES)

    def numbers(place):
        return builder.load(pointer(builder, builder.add(x, builder.mul(place, I64(4))), many), align=4)

    def largest_bits(place, most):  # whose order is that of the numbers, and a NaN's are the largest
        bits = builder.and_(builder.bitcast(numbers(place), whole), ir.Constant(whole, [0x7FFFFFFF] * LANES))
        return [builder.select(builder.icmp_signed(">", bits, most[0]), bits, most[0])]

    [most] = emit_loop(builder, I64(0), count, LANES, [ir.Constant(whole, [0] * LANES)], largest_bits)
    kind = ir.FunctionType(I32, [whole])
    name = f"llvm.vector.reduce.smax.v{LANES}i32"
    most = builder.bitcast(builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [most]), F32)
    most = builder.select(builder.fcmp_unordered(">", most, F32(1e-30)), most, F32(1e-30))
    top = builder.sitofp(levels, F32)
    builder.store(builder.fdiv(most, top, flags=["contract"]), pointer(builder, scale, F32), align=4)
    factor = spread_number(builder, builder.fdiv(top, most, flags=["contract"]))

    def rounded(place, _):
        shifted = builder.fmul(numbers(place), factor, flags=["contract"])
        shifted = builder.fadd(shifted, lanes_of(MAGIC), flags=["contract"])
        at = pointer(builder, builder.add(target, builder.mul(place, I64(2))), short)
        builder.store(builder.trunc(builder.bitcast(shifted, whole), short), at, align=2)
        return []

    emit_loop(builder, I64(0), count, LANES, [], rounded)
    return ir.Constant(I8.as_pointer(), None)


def _scaled_of(kind: int):
    """A multiple of sixteen numbers times their scales and a factor, in place."""
    size = (4, 2)[kind]

    def scaled(builder, y, scales, factor, count):
        def body(place, _):
            at = pointer(builder, builder.add(y, builder.mul(place, I64(4))), many)
            gains = weights_vector(builder, builder.add(scales, builder.mul(place, I64(size))), kind)
            builder.store(builder.fmul(builder.fmul(builder.load(at, align=4), spread), gains), at, align=4)
            return []

        many, spread = ir.VectorType(F32, LANES), spread_number(builder, factor)
        emit_loop(builder, I64(0), count, LANES, [], body)
        return ir.Constant(I8.as_pointer(), None)

    return of_code(types.none, types.int64, types.int64, types.float32, types.int64)(scaled)


scaled_floats, scaled_brains = _scaled_of(FLOAT), _scaled_of(BRAIN)


@njit(**FAST)
def scale_outputs(y, scales, brain, factor, count):
    """Outputs times their scales, of float32 or bfloat16, and times that of their row."""
    whole = count // LANES * LANES
    if brain:
        scaled_brains(y, scales, factor, whole)
    else:
        scaled_floats(y, scales, factor, whole)
    for place in range(whole, count):
        put_float(y + 4 * place, float_at(y + 4 * place) * factor * gain(scales, place, brain))


def _mix_of(kind: int, parts: int):
    """So many times sixteen channels of the rows of values, each times its share, summed, and times a factor."""
    size = (4, 2)[kind]

    def mix(builder, shares, values, stride, reach, target, factor):
        def body(place, sums):
            share = builder.load(pointer(builder, builder.add(shares, builder.mul(place, I64(4))), F32), align=4)
            share, row = spread_number(builder, share), builder.add(values, builder.mul(place, stride))
            return [
                builder.fadd(sum_, builder.fmul(share, numbers, flags=FLOAT_FLAGS), flags=FLOAT_FLAGS)
                for part, sum_ in enumerate(sums)
                for numbers in [weights_vector(builder, builder.add(row, I64(size * LANES * part)), kind)]
            ]

        sums = emit_loop(builder, I64(0), reach, 1, [lanes_of(0)] * parts, body)
        for part, sum_ in enumerate(sums):
            scaled = builder.fmul(sum_, spread_number(builder, factor))
            builder.store(scaled, pointer(builder, builder.add(target, I64(4 * LANES * part)), scaled.type), align=4)
        return ir.Constant(I8.as_pointer(), None)

    return of_code(types.none, *[types.int64] * 5, types.float32)(mix)


mix_f1, mix_f2 = (_mix_of(FLOAT, parts) for parts in (1, 2))
mix_b1, mix_b2 = (_mix_of(BRAIN, parts) for parts in (1, 2))


@njit(**FAST)
def mix(brain, shares, values, target, reach, width, factor):
    """The rows of values, each times its share, summed, and times a factor."""
    channel, size = 0, 2 if brain else 4
    while channel < width:
        at, to = values + size * channel, target + 4 * channel
        if width - channel >= 2 * LANES:
            if brain:
                mix_b2(shares, at, size * width, reach, to, factor)
            else:
                mix_f2(shares, at, size * width, reach, to, factor)
            channel += 2 * LANES
        else:
            if brain:
                mix_b1(shares, at, size * width, reach, to, factor)
            else:
                mix_f1(shares, at, size * width, reach, to, factor)
            channel += LANES


@njit(**FAST)
def normed(x, y, count, kind, weight, bias, eps, brain):
    """y = norm(x), both addresses of float32 numbers; they may be one."""
    sum_, squares = np.float32(0), np.float32(0)
    if kind == LAYER:
        for place in range(count):
            sum_ += float_at(x + 4 * place)
        sum_ /= np.float32(count)
    for place in range(count):
        off = float_at(x + 4 * place) - sum_
        squares += off * off
    factor = ONE / np.float32(math.sqrt(squares / np.float32(count) + eps))
    for place in range(count):
        number = (float_at(x + 4 * place) - sum_) * factor
        if weight:
            number *= gain(weight, place, brain)
        if bias:
            number += gain(bias, place, brain)
        put_float(y + 4 * place, number)


@njit(**FAST)
def normed_rows(x, y, rows, count, norm, eps, brain):
    for row in range(rows):
        xs, ys = x + 4 * row * count, y + 4 * row * count
        if norm[0] == NO_NORM:
            for place in range(count):
                put_float(ys + 4 * place, float_at(xs + 4 * place))
        else:
            normed(xs, ys, count, norm[0], norm[1], norm[2], eps, brain)


@njit(**FAST)
def add_branch(x, branch, rows, count, norm, eps, scale, brain):
    """x += scale(norm(branch))."""
    if norm[0] != NO_NORM:
        normed_rows(branch, branch, rows, count, norm, eps, brain)
    for row in range(rows):
        for place in range(count):
            at = 4 * (row * count + place)
            number = float_at(branch + at)
            if scale:
                number *= gain(scale, place, brain)
            put_float(x + at, float_at(x + at) + number)


@njit(**FAST)
def turn_pairs(x, turns, width, factor):
    """Pairs of a head times unit complex numbers, and all times a factor, in place."""
    for pair in range(width // 2):
        first, second = float_at(x + 8 * pair), float_at(x + 8 * pair + 4)
        cosine, sine = float_at(turns + 8 * pair), float_at(turns + 8 * pair + 4)
        put_float(x + 8 * pair, (first * cosine - second * sine) * factor)
        put_float(x + 8 * pair + 4, (first * sine + second * cosine) * factor)
