# type: ignore - numba compiles Python of its own kind, and is not installed where types are checked
"""Products of rows of weights with rows of inputs for the compiled step, and of shares with values."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types

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
    OUTPUTS,
    emit_loop,
    fetch_ahead,
    lane_totals,
    of_code,
    pointer,
    put_float,
    short_at,
    spread_number,
    weights_vector,
)
from chameleon_lab.generation.compiled_vectors import round_row

GROUP, NIBBLE_BLOCK = 32, 64  # weights of 4 bits that share a scale, and outputs that are packed together
SHORT_LANES = 2 * LANES  # 16-bit numbers in a register
MOST_LEVELS, MOST_SUM = 32_767, 2**31 - 1  # of a 16-bit number, and of a 32-bit one


def _dots_of(kind: int, rows: int, outputs: int = OUTPUTS):
    """y[row, output] = sum of w[output] x[row], for four outputs and so many rows; strides in bytes."""
    size = (4, 2)[kind]

    def dots(builder, w, w_stride, x, x_stride, count, y, y_stride):
        w_rows = [builder.add(w, builder.mul(w_stride, I64(place))) for place in range(outputs)]
        x_rows = [builder.add(x, builder.mul(x_stride, I64(place))) for place in range(rows)]

        def body(place, sums):
            w_at, x_at = builder.mul(place, I64(size)), builder.mul(place, I64(4))
            inputs = [weights_vector(builder, builder.add(row, x_at), FLOAT) for row in x_rows]
            new = []
            for output, row in enumerate(w_rows):
                at = builder.add(row, w_at)
                fetch_ahead(builder, at)
                weights = weights_vector(builder, at, kind)
                for index, numbers in enumerate(inputs):
                    product = builder.fmul(weights, numbers, flags=FLOAT_FLAGS)
                    new.append(builder.fadd(sums[output * rows + index], product, flags=FLOAT_FLAGS))
            return new

        many = ir.VectorType(F32, LANES)
        sums = [ir.Constant(many, [0.0] * LANES)] * (outputs * rows)
        sums = emit_loop(builder, I64(0), count, LANES, sums, body)
        for row in range(rows):
            totals = lane_totals(builder, sums[row::rows])
            at = builder.add(y, builder.mul(y_stride, I64(row)))
            builder.store(totals, pointer(builder, at, totals.type), align=4)
        return ir.Constant(I8.as_pointer(), None)

    return of_code(types.none, *[types.int64] * 7)(dots)


def _pair_products(builder, weights, numbers, sums):
    """`sums` and, in each of its sixteen lanes, the products of two neighbours, all whole numbers: one instruction
    (VNNI) where the processor has it, two where it does not."""

    def part(first):
        lanes = ir.Constant(ir.VectorType(I32, LANES), list(range(first, SHORT_LANES, 2)))
        return builder.shuffle_vector(products, products, lanes)

    wide = ir.VectorType(I32, SHORT_LANES)
    products = builder.mul(builder.sext(weights, wide), builder.sext(numbers, wide))
    return builder.add(sums, builder.add(part(0), part(1)))


def _byte_dots_of(rows: int, outputs: int = OUTPUTS):
    """y[row, output] = sum of w[output] x[row], for int8 weights and rows rounded to 16 bits: exact sums of each lane,
    whose levels `levels_of` has kept from overflowing."""

    def dots(builder, w, w_stride, x, x_stride, count, y, y_stride):
        w_rows = [builder.add(w, builder.mul(w_stride, I64(place))) for place in range(outputs)]
        x_rows = [builder.add(x, builder.mul(x_stride, I64(place))) for place in range(rows)]

        def numbers(address, kind, lanes):
            """So many neighbours as 16-bit numbers, and zeros behind them."""
            loaded = builder.load(pointer(builder, address, ir.VectorType(kind, lanes)), align=1)
            loaded = loaded if kind == I16 else builder.sext(loaded, ir.VectorType(I16, lanes))
            if lanes == SHORT_LANES:
                return loaded
            order = ir.Constant(ir.VectorType(I32, SHORT_LANES), list(range(SHORT_LANES)))
            return builder.shuffle_vector(loaded, ir.Constant(loaded.type, [0] * lanes), order)

        def some(lanes):
            def body(place, sums):
                inputs = [numbers(builder.add(row, builder.mul(place, I64(2))), I16, lanes) for row in x_rows]
                new = []
                for output, row in enumerate(w_rows):
                    at = builder.add(row, place)
                    fetch_ahead(builder, at)
                    weights = numbers(at, I8, lanes)
                    for index, each in enumerate(inputs):
                        new.append(_pair_products(builder, weights, each, sums[output * rows + index]))
                return new

            return body

        whole = builder.and_(count, I64(-SHORT_LANES))
        sums = [ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)] * (outputs * rows)
        sums = emit_loop(builder, I64(0), whole, SHORT_LANES, sums, some(SHORT_LANES))
        sums = emit_loop(builder, whole, count, LANES, sums, some(LANES))
        sums = [builder.sitofp(each, ir.VectorType(F32, LANES)) for each in sums]
        for row in range(rows):
            totals = lane_totals(builder, sums[row::rows])
            at = builder.add(y, builder.mul(y_stride, I64(row)))
            builder.store(totals, pointer(builder, at, totals.type), align=4)
        return ir.Constant(I8.as_pointer(), None)

    return of_code(types.none, *[types.int64] * 7)(dots)


def _nibbles_of(rows: int):
    """y[row, 64 outputs] of int4 weights as torch's kernel packs them: a place of a row is 32 bytes, of which the lower
    halves are outputs 0 to 31. Scales and zeros are bfloat16, two for each output and group; rows are rounded to 16
    bits, `sums` are those of their groups."""

    many, whole = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
    packed, pairs_of_inputs = ir.VectorType(I8, 4 * LANES), ir.VectorType(I16, SHORT_LANES)

    def all_of(kind, number):
        return ir.Constant(kind, [number] * kind.count)

    def nibbles(builder, w, scales, scales_stride, x, x_stride, sums, sums_stride, groups, y, y_stride):
        def spread(address, kind):
            return spread_number(builder, builder.load(pointer(builder, address, kind), align=4))

        def row_at(base, stride, row, place, size):
            return builder.add(builder.add(base, builder.mul(stride, I64(row))), builder.mul(place, I64(size)))

        def group(number, totals):
            def two(place, partial):
                at, new = builder.add(w, builder.mul(place, I64(32))), list(partial)
                inputs = [spread(row_at(x, x_stride, row, place, 2), I32) for row in range(rows)]
                inputs = [builder.bitcast(each, pairs_of_inputs) for each in inputs]
                fetch_ahead(builder, at)
                bytes_ = builder.load(pointer(builder, at, packed), align=1)
                # The lower ones times 16: of what takes as long as the upper ones' shift the compiler makes the sums in
                # one instruction each, of a mask alone in two.
                lows, highs = (shift(bytes_, all_of(packed, 4)) for shift in (builder.shl, builder.lshr))
                for first, levels in ((0, lows), (2, highs)):
                    for half in range(2):  # an output's levels of both places side by side, a zero behind each
                        outputs = range(LANES * half, LANES * (half + 1))
                        order = [lane for output in outputs for lane in (output, 64, 32 + output, 64)]
                        order = ir.Constant(ir.VectorType(I32, 64), order)
                        beside = builder.shuffle_vector(levels, all_of(packed, 0), order)
                        numbers = builder.bitcast(beside, pairs_of_inputs)
                        for row in range(rows):
                            at = row * 4 + first + half
                            new[at] = _pair_products(builder, numbers, inputs[row], new[at])
                return new

            first = builder.mul(number, I64(GROUP))
            partial = emit_loop(builder, first, builder.add(first, I64(GROUP)), 2, [all_of(whole, 0)] * (4 * rows), two)
            new = []
            for row in range(rows):
                total = spread(row_at(sums, sums_stride, row, number, 4), F32)
                for part in range(4):
                    pair = builder.add(builder.add(scales, builder.mul(number, scales_stride)), I64(64 * part))
                    if not row:  # of the next outputs: those of this one's next group are far away
                        fetch_ahead(builder, pair, 4 * NIBBLE_BLOCK)
                    pairs = builder.load(pointer(builder, pair, whole), align=2)
                    scale = builder.bitcast(builder.shl(pairs, all_of(whole, 16)), many)
                    zero = builder.bitcast(builder.and_(pairs, all_of(whole, -65536)), many)
                    eight = all_of(many, 8.0)
                    zero = builder.fsub(zero, builder.fmul(scale, eight, flags=FLOAT_FLAGS), flags=FLOAT_FLAGS)
                    if part < 2:
                        scale = builder.fmul(scale, all_of(many, 1 / 16), flags=FLOAT_FLAGS)
                    ours = builder.fmul(scale, builder.sitofp(partial[row * 4 + part], many), flags=FLOAT_FLAGS)
                    ours = builder.fadd(ours, builder.fmul(zero, total, flags=FLOAT_FLAGS), flags=FLOAT_FLAGS)
                    new.append(builder.fadd(totals[row * 4 + part], ours, flags=FLOAT_FLAGS))
            return new

        totals = emit_loop(builder, I64(0), groups, 1, [all_of(many, 0.0)] * (4 * rows), group)
        for index, total in enumerate(totals):
            row, part = divmod(index, 4)
            at = builder.add(builder.add(y, builder.mul(y_stride, I64(row))), I64(64 * part))
            builder.store(total, pointer(builder, at, many), align=4)
        return ir.Constant(I8.as_pointer(), None)

    return of_code(types.none, *[types.int64] * 10)(nibbles)


dots_f1, dots_f2, dots_f3, dots_f4 = (_dots_of(FLOAT, rows) for rows in (1, 2, 3, 4))
dots_b1, dots_b2, dots_b3, dots_b4 = (_dots_of(BRAIN, rows) for rows in (1, 2, 3, 4))
dots_i1, dots_i2, dots_i3, dots_i4 = map(_byte_dots_of, (1, 2, 3, 4))
nibbles_1, nibbles_2, nibbles_3, nibbles_4 = map(_nibbles_of, (1, 2, 3, 4))


@njit(**FAST)
def _four_outputs(kind, w, w_stride, x, x_stride, count, y, y_stride, rows):
    row = 0
    while row < rows:
        xs, ys, left = x + row * x_stride, y + row * y_stride, rows - row
        if left >= 4:
            if kind == FLOAT:
                dots_f4(w, w_stride, xs, x_stride, count, ys, y_stride)
            elif kind == BRAIN:
                dots_b4(w, w_stride, xs, x_stride, count, ys, y_stride)
            else:
                dots_i4(w, w_stride, xs, x_stride, count, ys, y_stride)
            row += 4
        elif left == 3:
            if kind == FLOAT:
                dots_f3(w, w_stride, xs, x_stride, count, ys, y_stride)
            elif kind == BRAIN:
                dots_b3(w, w_stride, xs, x_stride, count, ys, y_stride)
            else:
                dots_i3(w, w_stride, xs, x_stride, count, ys, y_stride)
            row += 3
        elif left == 2:
            if kind == FLOAT:
                dots_f2(w, w_stride, xs, x_stride, count, ys, y_stride)
            elif kind == BRAIN:
                dots_b2(w, w_stride, xs, x_stride, count, ys, y_stride)
            else:
                dots_i2(w, w_stride, xs, x_stride, count, ys, y_stride)
            row += 2
        else:
            if kind == FLOAT:
                dots_f1(w, w_stride, xs, x_stride, count, ys, y_stride)
            elif kind == BRAIN:
                dots_b1(w, w_stride, xs, x_stride, count, ys, y_stride)
            else:
                dots_i1(w, w_stride, xs, x_stride, count, ys, y_stride)
            row += 1


@njit(**FAST)
def multiply_floats(kind, w, w_stride, x, x_stride, count, y, y_stride, outputs, rows):
    """y[row, output] = w[output] . x[row]: strides in bytes. The last four outputs may be computed in part again."""
    output = 0
    while output < outputs:
        _four_outputs(kind, w + output * w_stride, w_stride, x, x_stride, count, y + 4 * output, y_stride, rows)
        output += OUTPUTS
        if outputs - OUTPUTS < output < outputs:
            output = outputs - OUTPUTS


@njit(**FAST)
def multiply_nibbles(w, scales, padded, x, x_stride, sums, sums_stride, count, y, y_stride, begin, outputs, rows):
    """The same of int4 weights, from `begin` on, in blocks of 64."""
    for place in range(begin, begin + outputs, NIBBLE_BLOCK):
        row, at, scale, ys = 0, w + place * count // 2, scales + 4 * place, y + 4 * place
        while row < rows:
            left = rows - row
            xs, ss, yr = x + row * x_stride, sums + row * sums_stride, ys + row * y_stride
            if left >= 4:
                nibbles_4(at, scale, 4 * padded, xs, x_stride, ss, sums_stride, count // GROUP, yr, y_stride)
                row += 4
            elif left == 3:
                nibbles_3(at, scale, 4 * padded, xs, x_stride, ss, sums_stride, count // GROUP, yr, y_stride)
                row += 3
            elif left == 2:
                nibbles_2(at, scale, 4 * padded, xs, x_stride, ss, sums_stride, count // GROUP, yr, y_stride)
                row += 2
            else:
                nibbles_1(at, scale, 4 * padded, xs, x_stride, ss, sums_stride, count // GROUP, yr, y_stride)
                row += 1


@njit(**FAST)
def levels_of(count):
    """The largest 16-bit number to which inputs are rounded, so that no lane's sum with int8 weights overflows."""
    return min(MOST_LEVELS, MOST_SUM // (127 * (count // LANES + 1)))


@njit(**FAST)
def round_rows(x, rows, count, numbers, scales):
    """Rows of float32 as 16-bit numbers, and the scale of each."""
    for row in range(rows):
        round_row(x + 4 * row * count, count, numbers + 2 * row * count, scales + 4 * row, levels_of(count))


@njit(**FAST)
def group_sums(numbers, groups, sums):
    """The sums of the 16-bit inputs that share a scale."""
    for group in range(groups):
        sum_ = 0
        for place in range(GROUP * group, GROUP * (group + 1)):
            sum_ += short_at(numbers + 2 * place)
        put_float(sums + 4 * group, np.float32(sum_))
