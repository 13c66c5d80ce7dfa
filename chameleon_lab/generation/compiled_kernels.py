# type: ignore - numba compiles Python of its own kind, and is not installed where types are checked
"""The sums of one token a row, compiled by numba: this module is imported only where numba is (`compiled_step`).

- a whole step of all layers is one call, `step`; the product with a head is another, `product`
- weights are read where they lie, in float32, bfloat16, 8 or 4 bits, and become float32 in registers (`dots`)
- products fall into pieces, which whoever is free takes: the caller, and helpers that wait in `help_out` for pieces
- no flag lets the compiler assume that numbers are finite: a NaN has to reach the logits

All is in one file, since numba's cache on disk looks at the time of that file alone.
"""

from __future__ import annotations

import inspect
import math
import platform
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

FLOAT, BRAIN, BYTE, NIBBLE = range(4)  # kinds of weights: float32, bfloat16, int8, int4
# The columns of a layer's row in the table of addresses: four matrices of four numbers, then the vectors
QKV, OUT, GATE_UP, DOWN = 0, 4, 8, 12  # kind, address, address of scales, groups of heads or padded outputs
ATTENTION_PRE, ATTENTION_POST, FFN_PRE, FFN_POST, QUERY, KEY = 16, 20, 24, 28, 32, 36  # kind, weight, bias, groups
ATTENTION_SCALE, FFN_SCALE = 40, 41
COLUMNS = 42
NO_NORM, RMS, LAYER = range(3)  # kinds of norms
# The columns of a layer's row in the table of numbers
EPS, CAP = 0, 6  # of the six norms; of attention's logits, 0 without one
LAYER_NUMBERS = 7
# Places in what the threads share, each in a line of the processor's cache of its own
TICKET, LIMIT, DONE, PIECE, BASE, FUNCTION = 0, 8, 16, 24, 46, 47
SHARED_NUMBERS = 48
AHEAD = 4096  # bytes: so far before they are needed weights are fetched
GROUP, NIBBLE_BLOCK = 32, 64  # weights of 4 bits that share a scale, and outputs that are packed together
LANES = 16  # numbers in a register: of all rows of weights the length is a multiple of it
OUTPUTS = 4  # rows of weights that are read at a time
PIECE_WEIGHTS = 2**15  # of a product that one thread takes at a time
IDLE = 20_000  # looks of a helper for a piece before it goes to sleep, about a millisecond

FLOAT_FLAGS = ("contract", "reassoc", "nsz", "arcp", "afn")
FAST = {"fastmath": set(FLOAT_FLAGS), "nogil": True, "error_model": "numpy"}
I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


# What numba has no words for: memory at an address, bits of numbers, atomic counters


def _of_code(result: Any, *arguments: Any):
    """A function of compiled code, from one that writes it in LLVM's language."""

    def wrapped(write):
        def typer(_context, *_arguments):
            return result(*arguments), lambda _, builder, __, values: write(builder, *values)

        names = ["context", *(f"a{place}" for place in range(len(arguments)))]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        typer.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])
        typer.__name__ = typer.__qualname__ = write.__name__
        return intrinsic(typer)

    return wrapped


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


@_of_code(types.float32, types.int64)
def brain_at(builder, address):
    wide = builder.zext(builder.load(_at(builder, address, I16), align=2), I32)
    return builder.bitcast(builder.shl(wide, I32(16)), F32)


@_of_code(types.float32, types.int64)
def float_at(builder, address):
    return builder.load(_at(builder, address, F32), align=4)


@_of_code(types.none, types.int64, types.float32)
def put_float(builder, address, value):
    builder.store(value, _at(builder, address, F32), align=4)
    return ir.Constant(I8.as_pointer(), None)


@_of_code(types.none, types.int64, types.float32)
def put_brain(builder, address, value):
    """To the nearest, ties to even, as torch rounds."""
    bits = builder.bitcast(value, I32)
    odd = builder.and_(builder.lshr(bits, I32(16)), I32(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, I32(0x7FFF))), I32(16))
    nan = builder.or_(builder.lshr(bits, I32(16)), I32(0x40))
    chosen = builder.select(builder.fcmp_unordered("uno", value, value), nan, rounded)
    builder.store(builder.trunc(chosen, I16), _at(builder, address, I16), align=2)
    return ir.Constant(I8.as_pointer(), None)


@_of_code(types.float32, types.float32, types.float32)
def times_power_of_two(builder, x, shifted):
    """x 2^k, with k in the low bits of the float `shifted`."""
    exponent = builder.shl(builder.add(builder.bitcast(shifted, I32), I32(127)), I32(23))
    return builder.fmul(x, builder.bitcast(exponent, F32))


@_of_code(types.int64, types.int64, types.int64)
def add_to(builder, address, number):
    return builder.atomic_rmw("add", _at(builder, address, I64), number, "seq_cst")


@_of_code(types.int64, types.int64)
def look_at(builder, address):
    return builder.load_atomic(_at(builder, address, I64), "seq_cst", 8)


@_of_code(types.none, types.int64, types.int64)
def put_at(builder, address, number):
    builder.store_atomic(number, _at(builder, address, I64), "seq_cst", 8)
    return ir.Constant(I8.as_pointer(), None)


@_of_code(types.int64, types.int64, types.int64)
def field(builder, address, place):
    """The whole number at a place of those that begin at an address."""
    return builder.load(_at(builder, builder.add(address, builder.shl(place, I64(3))), I64), align=8)


@_of_code(types.none, types.int64, types.int64, types.int64)
def call_piece(builder, function, work, place):
    """`do_piece`, by the address of its machine code, so that it is compiled once and not into each caller."""
    builder.call(_at(builder, function, ir.FunctionType(ir.VoidType(), [I64, I64])), [work, place])
    return ir.Constant(I8.as_pointer(), None)


@_of_code(types.boolean, types.int64, types.int64, types.int64)
def swap_at(builder, address, before, after):
    """Whether the number was as `before`: then it is changed."""
    return builder.extract_value(builder.cmpxchg(_at(builder, address, I64), before, after, "seq_cst"), 1)


@_of_code(types.none)
def pause(builder):
    """What a processor wants to be told while it looks at one place of memory again and again."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        name = "llvm.x86.sse2.pause"
        builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), []), name), [])
    return ir.Constant(I8.as_pointer(), None)


@_of_code(types.none)
def rest(builder):
    """Lets another thread have the core."""
    if sys.platform != "win32":
        builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, []), "sched_yield"), [])
    return ir.Constant(I8.as_pointer(), None)


def _fetch(builder: Any, address: Any) -> None:
    """Asks for the memory `AHEAD` of an address: by itself the processor follows no row into the next page."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(fetch, [_at(builder, builder.add(address, I64(AHEAD)), I8), I32(0), I32(3), I32(1)])


# Products: rows of weights with rows of inputs


def _weights(builder: Any, address: Any, kind: int) -> Any:
    """Sixteen neighbours of a row of weights as float32."""

    def many(scalar: Any) -> Any:
        return ir.VectorType(scalar, LANES)

    scalar, size = ((F32, 4), (I16, 2), (I8, 1))[kind]
    numbers = builder.load(_at(builder, address, many(scalar)), align=size)
    if kind == FLOAT:
        return numbers
    if kind == BYTE:
        return builder.sitofp(builder.sext(numbers, many(I32)), many(F32))
    sixteen = ir.Constant(many(I32), [16] * LANES)
    return builder.bitcast(builder.shl(builder.zext(numbers, many(I32)), sixteen), many(F32))


def _loop(builder: Any, begin: Any, end: Any, stride: int, sums: list[Any], body: Any) -> list[Any]:
    """`sums = body(place, sums)` from `begin` to `end`: the sums after it, in registers all the while."""
    before = builder.basic_block
    head, inner, after = (builder.append_basic_block(name) for name in ("head", "inner", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    place = builder.phi(I64)
    carried = [builder.phi(each.type) for each in sums]
    builder.cbranch(builder.icmp_signed("<", place, end), inner, after)
    builder.position_at_end(inner)
    new = body(place, carried)
    following = builder.add(place, I64(stride))
    for phi, first, later in zip([place, *carried], [begin, *sums], [following, *new], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, builder.basic_block)
    builder.branch(head)
    builder.position_at_end(after)
    return carried


def _totals(builder: Any, vectors: list[Any]) -> Any:
    """The sums of the lanes of four vectors, as one vector: halves of two are added at a time, so that half as many
    numbers change their lanes as where each is summed by itself."""

    def lanes_of(one: Any, other: Any, lanes: list[int]) -> Any:
        return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

    def sum_(one: Any, other: Any) -> Any:
        return builder.fadd(one, other, flags=FLOAT_FLAGS)

    def halves(one: Any, other: Any, part: int) -> Any:
        """Each run of 2 `part` lanes of both, its two halves added: those of the first vector come first."""
        runs = range(0, 2 * LANES, 2 * part)
        lower = [run + lane for run in runs for lane in range(part)]
        return sum_(lanes_of(one, other, lower), lanes_of(one, other, [lane + part for lane in lower]))

    one, other, third, fourth = vectors
    quarters = halves(halves(one, other, LANES // 2), halves(third, fourth, LANES // 2), LANES // 4)
    pairs = sum_(quarters, lanes_of(quarters, quarters, [lane ^ 2 for lane in range(LANES)]))
    singles = sum_(pairs, lanes_of(pairs, pairs, [lane ^ 1 for lane in range(LANES)]))
    return lanes_of(singles, singles, list(range(0, LANES, LANES // OUTPUTS)))


def _dots_of(kind: int, rows: int, outputs: int = OUTPUTS):
    """y[row, output] = sum of w[output] x[row], for four outputs and so many rows; strides in bytes."""
    size = (4, 2, 1)[kind]

    def dots(builder, w, w_stride, x, x_stride, count, y, y_stride):
        w_rows = [builder.add(w, builder.mul(w_stride, I64(place))) for place in range(outputs)]
        x_rows = [builder.add(x, builder.mul(x_stride, I64(place))) for place in range(rows)]

        def body(place, sums):
            w_at, x_at = builder.mul(place, I64(size)), builder.mul(place, I64(4))
            inputs = [_weights(builder, builder.add(row, x_at), FLOAT) for row in x_rows]
            new = []
            for output, row in enumerate(w_rows):
                at = builder.add(row, w_at)
                _fetch(builder, at)
                weights = _weights(builder, at, kind)
                for index, numbers in enumerate(inputs):
                    product = builder.fmul(weights, numbers, flags=FLOAT_FLAGS)
                    new.append(builder.fadd(sums[output * rows + index], product, flags=FLOAT_FLAGS))
            return new

        many = ir.VectorType(F32, LANES)
        sums = [ir.Constant(many, [0.0] * LANES)] * (outputs * rows)
        sums = _loop(builder, I64(0), count, LANES, sums, body)
        for row in range(rows):
            totals = _totals(builder, sums[row::rows])
            at = builder.add(y, builder.mul(y_stride, I64(row)))
            builder.store(totals, _at(builder, at, totals.type), align=4)
        return ir.Constant(I8.as_pointer(), None)

    return _of_code(types.none, *[types.int64] * 7)(dots)


def _nibbles_of(rows: int):
    """y[row, 64 outputs] of int4 weights as torch's kernel packs them: a place of a row is 32 bytes, of which the lower
    halves are outputs 0 to 31. Scales and zeros are bfloat16, two for each output and group; `sums` are those of x."""

    def nibbles(builder, w, scales, scales_stride, x, x_stride, sums, sums_stride, groups, y, y_stride):
        many, whole = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
        four, low = ir.Constant(whole, [4] * LANES), ir.Constant(whole, [15] * LANES)
        nought, upper = ir.Constant(many, [0.0] * LANES), ir.Constant(whole, [-65536] * LANES)
        sixteen = ir.Constant(whole, [16] * LANES)

        def spread(address):
            return _spread(builder, builder.load(_at(builder, address, F32), align=4))

        def row_at(base, stride, row, place):
            return builder.add(builder.add(base, builder.mul(stride, I64(row))), builder.mul(place, I64(4)))

        def group(number, totals):
            def one(place, partial):
                at, new = builder.add(w, builder.mul(place, I64(32))), list(partial)
                inputs = [spread(row_at(x, x_stride, row, place)) for row in range(rows)]
                _fetch(builder, at)
                for half in range(2):
                    packed = ir.VectorType(I8, LANES)
                    bytes_ = builder.load(_at(builder, builder.add(at, I64(16 * half)), packed), align=1)
                    wide = builder.zext(bytes_, whole)
                    for part, levels in ((half, builder.and_(wide, low)), (half + 2, builder.lshr(wide, four))):
                        numbers = builder.sitofp(levels, many)
                        for row in range(rows):
                            product = builder.fmul(numbers, inputs[row], flags=FLOAT_FLAGS)
                            new[row * 4 + part] = builder.fadd(new[row * 4 + part], product, flags=FLOAT_FLAGS)
                return new

            first = builder.mul(number, I64(GROUP))
            partial = _loop(builder, first, builder.add(first, I64(GROUP)), 1, [nought] * (4 * rows), one)
            new = []
            for row in range(rows):
                total = spread(row_at(sums, sums_stride, row, number))
                for part in range(4):
                    pair = builder.add(builder.add(scales, builder.mul(number, scales_stride)), I64(64 * part))
                    pairs = builder.load(_at(builder, pair, whole), align=2)
                    scale = builder.bitcast(builder.shl(pairs, sixteen), many)
                    zero = builder.bitcast(builder.and_(pairs, upper), many)
                    eight = ir.Constant(many, [8.0] * LANES)
                    zero = builder.fsub(zero, builder.fmul(scale, eight, flags=FLOAT_FLAGS), flags=FLOAT_FLAGS)
                    ours = builder.fmul(scale, partial[row * 4 + part], flags=FLOAT_FLAGS)
                    ours = builder.fadd(ours, builder.fmul(zero, total, flags=FLOAT_FLAGS), flags=FLOAT_FLAGS)
                    new.append(builder.fadd(totals[row * 4 + part], ours, flags=FLOAT_FLAGS))
            return new

        totals = _loop(builder, I64(0), groups, 1, [nought] * (4 * rows), group)
        for index, total in enumerate(totals):
            row, part = divmod(index, 4)
            at = builder.add(builder.add(y, builder.mul(y_stride, I64(row))), I64(64 * part))
            builder.store(total, _at(builder, at, many), align=4)
        return ir.Constant(I8.as_pointer(), None)

    return _of_code(types.none, *[types.int64] * 10)(nibbles)


dots_f1, dots_f2, dots_f3, dots_f4 = (_dots_of(FLOAT, rows) for rows in (1, 2, 3, 4))
dots_b1, dots_b2, dots_b3, dots_b4 = (_dots_of(BRAIN, rows) for rows in (1, 2, 3, 4))
dots_i1, dots_i2, dots_i3, dots_i4 = (_dots_of(BYTE, rows) for rows in (1, 2, 3, 4))
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
def _outputs(kind, w, w_stride, x, x_stride, count, y, y_stride, outputs, rows):
    """y[row, output] = w[output] . x[row]: strides in bytes. The last four outputs may be computed in part again."""
    output = 0
    while output < outputs:
        _four_outputs(kind, w + output * w_stride, w_stride, x, x_stride, count, y + 4 * output, y_stride, rows)
        output += OUTPUTS
        if outputs - OUTPUTS < output < outputs:
            output = outputs - OUTPUTS


@njit(**FAST)
def _nibble_outputs(w, scales, padded, x, x_stride, sums, sums_stride, count, y, y_stride, begin, outputs, rows):
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


# Sums of single rows

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


@njit(**FAST)
def gain(address, place, brain):
    return brain_at(address + 2 * place) if brain else float_at(address + 4 * place)


def _spread(builder: Any, number: Any) -> Any:
    """A number in all lanes."""
    many = ir.VectorType(number.type, LANES)
    first = builder.insert_element(ir.Constant(many, ir.Undefined), number, I32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def _constant(number: Any) -> Any:
    return ir.Constant(ir.VectorType(F32, LANES), [float(number)] * LANES)


def _exponentials(builder: Any, x: Any) -> Any:
    """`exponential` of all lanes: the compiler makes no vectors of it by itself. No sum is without a flag, since numba
    gives those its own, by which `MAGIC` would be reordered away."""
    whole = ir.VectorType(I32, LANES)

    def fused(one: Any, factor: Any, more: Any) -> Any:
        return builder.fadd(builder.fmul(one, factor, flags=["contract"]), more, flags=["contract"])

    x = builder.select(builder.fcmp_ordered(">", x, _constant(HIGHEST)), _constant(HIGHEST), x)
    x = builder.select(builder.fcmp_ordered("<", x, _constant(LOWEST)), _constant(LOWEST), x)
    shifted = fused(x, _constant(LOG2E), _constant(MAGIC))
    power = builder.fsub(shifted, _constant(MAGIC), flags=["contract"])
    r = fused(power, _constant(-LN2_LOW), fused(power, _constant(-LN2_HIGH), x))
    sum_ = _constant(C7)
    for term in (C6, C5, C4, C3, C2, ONE, ONE):
        sum_ = fused(sum_, r, _constant(term))
    exponent = builder.add(builder.bitcast(shifted, whole), ir.Constant(whole, [127] * LANES))
    scale = builder.shl(exponent, ir.Constant(whole, [23] * LANES))
    return builder.fmul(sum_, builder.bitcast(scale, sum_.type))


@_of_code(types.none, types.int64, types.int64, types.int64, types.int64)
def gate_products(builder, gates, ups, y, count):
    """y = silu(gates) ups, of a multiple of sixteen numbers."""

    def body(place, _):
        at = builder.mul(place, I64(4))
        gate, up = (_weights(builder, builder.add(each, at), FLOAT) for each in (gates, ups))
        below = builder.fadd(_constant(1), _exponentials(builder, builder.fsub(_constant(-0.0), gate)))
        product = builder.fmul(builder.fdiv(gate, below), up)
        builder.store(product, _at(builder, builder.add(y, at), product.type), align=4)
        return []

    _loop(builder, I64(0), count, LANES, [], body)
    return ir.Constant(I8.as_pointer(), None)


@_of_code(types.float32, types.int64, types.int64)
def largest(builder, x, count):
    """Of a multiple of sixteen numbers, of which a NaN is none; -inf of none."""

    def body(place, most):
        numbers = _weights(builder, builder.add(x, builder.mul(place, I64(4))), FLOAT)
        return [builder.select(builder.fcmp_ordered(">", numbers, most[0]), numbers, most[0])]

    [most] = _loop(builder, I64(0), count, LANES, [_constant(-math.inf)], body)
    kind = ir.FunctionType(F32, [most.type])
    name = f"llvm.vector.reduce.fmax.v{LANES}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [most])


@_of_code(types.float32, types.int64, types.int64, types.float32)
def exponentials(builder, x, count, most):
    """x = e^(x - most) in place, of a multiple of sixteen numbers: their sum."""

    def body(place, sums):
        at = _at(builder, builder.add(x, builder.mul(place, I64(4))), many)
        powers = _exponentials(builder, builder.fsub(builder.load(at, align=4), spread))
        builder.store(powers, at, align=4)
        return [builder.fadd(sums[0], powers, flags=FLOAT_FLAGS)]

    many, spread = ir.VectorType(F32, LANES), _spread(builder, most)
    [sums] = _loop(builder, I64(0), count, LANES, [_constant(0)], body)
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


def _mix_of(kind: int, parts: int):
    """So many times sixteen channels of the rows of values, each times its share, summed, and times a factor."""
    size = (4, 2)[kind]

    def mix(builder, shares, values, stride, reach, target, factor):
        def body(place, sums):
            share = builder.load(_at(builder, builder.add(shares, builder.mul(place, I64(4))), F32), align=4)
            share, row = _spread(builder, share), builder.add(values, builder.mul(place, stride))
            return [
                builder.fadd(sum_, builder.fmul(share, numbers, flags=FLOAT_FLAGS), flags=FLOAT_FLAGS)
                for part, sum_ in enumerate(sums)
                for numbers in [_weights(builder, builder.add(row, I64(size * LANES * part)), kind)]
            ]

        sums = _loop(builder, I64(0), reach, 1, [_constant(0)] * parts, body)
        for part, sum_ in enumerate(sums):
            scaled = builder.fmul(sum_, _spread(builder, factor))
            builder.store(scaled, _at(builder, builder.add(target, I64(4 * LANES * part)), scaled.type), align=4)
        return ir.Constant(I8.as_pointer(), None)

    return _of_code(types.none, *[types.int64] * 5, types.float32)(mix)


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
def _normed(x, y, count, kind, weight, bias, eps, brain):
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
def _normed_rows(x, y, rows, count, norm, eps, brain):
    for row in range(rows):
        xs, ys = x + 4 * row * count, y + 4 * row * count
        if norm[0] == NO_NORM:
            for place in range(count):
                put_float(ys + 4 * place, float_at(xs + 4 * place))
        else:
            _normed(xs, ys, count, norm[0], norm[1], norm[2], eps, brain)


@njit(**FAST)
def _add_branch(x, branch, rows, count, norm, eps, scale, brain):
    """x += scale(norm(branch))."""
    if norm[0] != NO_NORM:
        _normed_rows(branch, branch, rows, count, norm, eps, brain)
    for row in range(rows):
        for place in range(count):
            at = 4 * (row * count + place)
            number = float_at(branch + at)
            if scale:
                number *= gain(scale, place, brain)
            put_float(x + at, float_at(x + at) + number)


@njit(**FAST)
def _turned(x, turns, width, factor):
    """Pairs of a head times unit complex numbers, and all times a factor, in place."""
    for pair in range(width // 2):
        first, second = float_at(x + 8 * pair), float_at(x + 8 * pair + 4)
        cosine, sine = float_at(turns + 8 * pair), float_at(turns + 8 * pair + 4)
        put_float(x + 8 * pair, (first * cosine - second * sine) * factor)
        put_float(x + 8 * pair + 4, (first * sine + second * cosine) * factor)


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
    begin = place * per
    here = min(per, outputs - begin)
    if kind == NIBBLE:
        groups = count // GROUP
        _nibble_outputs(w, scales, extra, x, 4 * count, sums, 4 * groups, count, y, 4 * outputs, begin, here, rows)
        return
    if here < OUTPUTS:  # of which there are as many in all
        begin, here = outputs - OUTPUTS, OUTPUTS
    w_stride = count * (4 if kind == FLOAT else 2 if kind == BRAIN else 1)
    _outputs(kind, w + begin * w_stride, w_stride, x, 4 * count, count, y + 4 * begin, 4 * outputs, here, rows)
    if kind == BYTE:
        for row in range(rows):
            for output in range(begin, begin + here):
                at = y + 4 * (row * outputs + output)
                put_float(at, gain(scales, output, extra) * float_at(at))


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
    _outputs(BRAIN if brain else FLOAT, keys, width * size, q, 4 * width, width, scores, 4 * (room + 1), wide, each)
    for query in range(each):
        shares, target = scores + 4 * query * (room + 1), out + 4 * (row * heads + first + query) * width
        if cap > 0:
            for at in range(reach):
                put_float(shares + 4 * at, cap * np.float32(math.tanh(float_at(shares + 4 * at) / cap)))
        mix(brain, shares, values, target, reach, width, ONE / softmax_of(shares, reach))


@cfunc("void(int64, int64)", cache=True, fastmath=set(FLOAT_FLAGS), error_model="numpy")
def do_piece(work, place):
    if field(work, 0) == 0:
        _product_piece(work, place)
    else:
        _attention_piece(work, place)


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
def _multiply(shared, alone, matrix, count, outputs, x, y, rows, sums):
    """y = x W^T for rows of inputs, float32 both; `sums` is room for those of groups of inputs."""
    per = max(8, PIECE_WEIGHTS // count // OUTPUTS * OUTPUTS)
    if matrix[0] == NIBBLE:
        per = max(NIBBLE_BLOCK, per // NIBBLE_BLOCK * NIBBLE_BLOCK)
        for place in range(rows * count // GROUP):
            sum_ = np.float32(0)
            for at in range(GROUP):
                sum_ += float_at(x + 4 * (place * GROUP + at))
            put_float(sums + 4 * place, sum_)
    shared[PIECE] = 0
    shared[PIECE + 1 : PIECE + 5] = matrix
    shared[PIECE + 5] = count
    shared[PIECE + 6] = outputs
    shared[PIECE + 7] = x
    shared[PIECE + 8] = sums
    shared[PIECE + 9] = y
    shared[PIECE + 10] = rows
    shared[PIECE + 11] = per
    _share_out(shared, (outputs + per - 1) // per, alone)


# Names of the plan's sizes
LAYERS, WIDTH, HEADS, KV_HEADS, WIDTH_OF_HEAD, FFN, IS_BRAIN, KEYS, VALUES, LAYER_STRIDE, ROW_STRIDE, HEAD_STRIDE = (
    range(12)
)
ROOM, TURNS, EMBEDDING, VOCABULARY, HEAD, FIRST_NORM, LAST_NORM = 12, 13, 14, 15, 16, 20, 24
PLAN_SIZES = 28
HELP, STEP, LOGITS = range(3)  # what `run` is asked for


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
    scores = sums + 4 * rows * max(width, ffn, heads * head_width)
    for row in range(rows):
        for place in range(width):
            put_float(xs + 4 * (row * width + place), gain(sizes[EMBEDDING] + tokens[row] * width * size, place, brain))
    first = sizes[FIRST_NORM : FIRST_NORM + 4]
    if first[0] != NO_NORM:
        _normed_rows(xs, xs, rows, width, first, numbers[layers, 0], brain)
    factor = ONE / np.float32(math.sqrt(head_width))
    for layer in range(layers):
        parts, eps = table[layer], numbers[layer]
        _normed_rows(xs, ns, rows, width, parts[ATTENTION_PRE : ATTENTION_PRE + 4], eps[0], brain)
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
                        _normed(at, at, head_width, parts[column], weight, bias, eps[4 if is_query else 5], brain)
                    _turned(at, turns, head_width, factor if is_query else ONE)
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
        _add_branch(
            xs, ns, rows, width, parts[ATTENTION_POST : ATTENTION_POST + 4], eps[1], parts[ATTENTION_SCALE], brain
        )
        _normed_rows(xs, ns, rows, width, parts[FFN_PRE : FFN_PRE + 4], eps[2], brain)
        _multiply(shared, alone, parts[GATE_UP : GATE_UP + 4], width, 2 * ffn, ns, gs, rows, sums)
        for row in range(rows):
            at = gs + 8 * row * ffn
            gate_products(at, at + 4 * ffn, fs + 4 * row * ffn, ffn)
        _multiply(shared, alone, parts[DOWN : DOWN + 4], ffn, width, fs, ns, rows, sums)
        _add_branch(xs, ns, rows, width, parts[FFN_POST : FFN_POST + 4], eps[3], parts[FFN_SCALE], brain)
    _normed_rows(xs, outputs.ctypes.data, rows, width, sizes[LAST_NORM : LAST_NORM + 4], numbers[layers, 1], brain)


@njit(
    "boolean(int64, int64[::1], boolean, int64[::1], int64[:, ::1], float32[:, ::1], int64[::1], int64[::1], "
    "float32[:, ::1], float32[:, ::1], float32[::1])",
    cache=True,
    **FAST,
)
def run(work, shared, alone, sizes, table, numbers, tokens, lengths, outputs, logits, scratch):
    """A step, the logits of its outputs, or help: one function, so that all of it is compiled once.

    False, and nothing computed, for a token that the vocabulary does not have.
    """
    if work == HELP:
        _help_out(shared)
    elif work == STEP:
        for token in tokens:
            if not 0 <= token < sizes[VOCABULARY]:
                return False
        _step(shared, alone, sizes, table, numbers, tokens, lengths, outputs, scratch)
    else:
        xs, ys, sums = outputs.ctypes.data, logits.ctypes.data, scratch.ctypes.data
        head = sizes[HEAD : HEAD + 4]
        _multiply(shared, alone, head, sizes[WIDTH], sizes[VOCABULARY], xs, ys, len(outputs), sums)
    return True
