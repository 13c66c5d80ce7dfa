# type: ignore - numba compiles Python of its own kind, and is not installed where types are checked
"""What numba has no words for, in LLVM's language: memory at an address, atomic counters, and registers of numbers."""

from __future__ import annotations

import inspect
import platform
import sys
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

FLOAT, BRAIN, BYTE, NIBBLE = range(4)  # kinds of weights: float32, bfloat16, int8, int4
AHEAD = 4096  # bytes: so far before they are needed weights are fetched
LANES = 16  # numbers in a register: of all rows of weights the length is a multiple of it
OUTPUTS = 4  # rows of weights that are read at a time

FLOAT_FLAGS = ("contract", "reassoc", "nsz", "arcp", "afn")
FAST = {"fastmath": set(FLOAT_FLAGS), "nogil": True, "error_model": "numpy"}
I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def of_code(result: Any, *arguments: Any):
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


def pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


@of_code(types.float32, types.int64)
def brain_at(builder, address):
    wide = builder.zext(builder.load(pointer(builder, address, I16), align=2), I32)
    return builder.bitcast(builder.shl(wide, I32(16)), F32)


@of_code(types.float32, types.int64)
def float_at(builder, address):
    return builder.load(pointer(builder, address, F32), align=4)


@of_code(types.int64, types.int64)
def short_at(builder, address):
    return builder.sext(builder.load(pointer(builder, address, I16), align=2), I64)


@of_code(types.none, types.int64, types.float32)
def put_float(builder, address, value):
    builder.store(value, pointer(builder, address, F32), align=4)
    return ir.Constant(I8.as_pointer(), None)


@of_code(types.none, types.int64, types.float32)
def put_brain(builder, address, value):
    """To the nearest, ties to even, as torch rounds."""
    bits = builder.bitcast(value, I32)
    odd = builder.and_(builder.lshr(bits, I32(16)), I32(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, I32(0x7FFF))), I32(16))
    nan = builder.or_(builder.lshr(bits, I32(16)), I32(0x40))
    chosen = builder.select(builder.fcmp_unordered("uno", value, value), nan, rounded)
    builder.store(builder.trunc(chosen, I16), pointer(builder, address, I16), align=2)
    return ir.Constant(I8.as_pointer(), None)


@of_code(types.float32, types.float32, types.float32)
def times_power_of_two(builder, x, shifted):
    """x 2^k, with k in the low bits of the float `shifted`."""
    exponent = builder.shl(builder.add(builder.bitcast(shifted, I32), I32(127)), I32(23))
    return builder.fmul(x, builder.bitcast(exponent, F32))


@of_code(types.int64, types.int64, types.int64)
def add_to(builder, address, number):
    return builder.atomic_rmw("add", pointer(builder, address, I64), number, "seq_cst")


@of_code(types.int64, types.int64)
def look_at(builder, address):
    return builder.load_atomic(pointer(builder, address, I64), "seq_cst", 8)


@of_code(types.none, types.int64, types.int64)
def put_at(builder, address, number):
    builder.store_atomic(number, pointer(builder, address, I64), "seq_cst", 8)
    return ir.Constant(I8.as_pointer(), None)


@of_code(types.int64, types.int64, types.int64)
def field(builder, address, place):
    """The whole number at a place of those that begin at an address."""
    return builder.load(pointer(builder, builder.add(address, builder.shl(place, I64(3))), I64), align=8)


@of_code(types.none, types.int64, types.int64, types.int64)
def call_piece(builder, function, work, place):
    """`do_piece`, by the address of its machine code, so that it is compiled once and not into each caller."""
    builder.call(pointer(builder, function, ir.FunctionType(ir.VoidType(), [I64, I64])), [work, place])
    return ir.Constant(I8.as_pointer(), None)


@of_code(types.boolean, types.int64, types.int64, types.int64)
def swap_at(builder, address, before, after):
    """Whether the number was as `before`: then it is changed."""
    return builder.extract_value(builder.cmpxchg(pointer(builder, address, I64), before, after, "seq_cst"), 1)


@of_code(types.none)
def pause(builder):
    """What a processor wants to be told while it looks at one place of memory again and again."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        name = "llvm.x86.sse2.pause"
        builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), []), name), [])
    return ir.Constant(I8.as_pointer(), None)


@of_code(types.none)
def rest(builder):
    """Lets another thread have the core."""
    if sys.platform != "win32":
        builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, []), "sched_yield"), [])
    return ir.Constant(I8.as_pointer(), None)


def fetch_ahead(builder: Any, address: Any, distance: int = AHEAD) -> None:
    """Asks for the memory before it is needed: by itself the processor follows no row into the next page."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(fetch, [pointer(builder, builder.add(address, I64(distance)), I8), I32(0), I32(3), I32(1)])


# Sixteen numbers at a time


def weights_vector(builder: Any, address: Any, kind: int) -> Any:
    """Sixteen neighbours of a row of weights in float32 or bfloat16, as float32."""

    def many(scalar: Any) -> Any:
        return ir.VectorType(scalar, LANES)

    scalar, size = ((F32, 4), (I16, 2))[kind]
    numbers = builder.load(pointer(builder, address, many(scalar)), align=size)
    if kind == FLOAT:
        return numbers
    sixteen = ir.Constant(many(I32), [16] * LANES)
    return builder.bitcast(builder.shl(builder.zext(numbers, many(I32)), sixteen), many(F32))


def spread_number(builder: Any, number: Any) -> Any:
    """A number in all lanes."""
    many = ir.VectorType(number.type, LANES)
    first = builder.insert_element(ir.Constant(many, ir.Undefined), number, I32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def lanes_of(number: Any) -> Any:
    """A float32 constant in all lanes."""
    return ir.Constant(ir.VectorType(F32, LANES), [float(number)] * LANES)


def emit_loop(builder: Any, begin: Any, end: Any, stride: int, sums: list[Any], body: Any) -> list[Any]:
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


def lane_totals(builder: Any, vectors: list[Any]) -> Any:
    """The sums of the lanes of four vectors, as one vector: halves of two are added at a time, so that half as many
    numbers change their lanes as where each is summed by itself."""

    def shuffled(one: Any, other: Any, lanes: list[int]) -> Any:
        return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

    def sum_(one: Any, other: Any) -> Any:
        return builder.fadd(one, other, flags=FLOAT_FLAGS)

    def halves(one: Any, other: Any, part: int) -> Any:
        """Each run of 2 `part` lanes of both, its two halves added: those of the first vector come first."""
        runs = range(0, 2 * LANES, 2 * part)
        lower = [run + lane for run in runs for lane in range(part)]
        return sum_(shuffled(one, other, lower), shuffled(one, other, [lane + part for lane in lower]))

    one, other, third, fourth = vectors
    quarters = halves(halves(one, other, LANES // 2), halves(third, fourth, LANES // 2), LANES // 4)
    pairs = sum_(quarters, shuffled(quarters, quarters, [lane ^ 2 for lane in range(LANES)]))
    singles = sum_(pairs, shuffled(pairs, pairs, [lane ^ 1 for lane in range(LANES)]))
    return shuffled(singles, singles, list(range(0, LANES, LANES // OUTPUTS)))


@njit(**FAST)
def gain(address, place, brain):
    return brain_at(address + 2 * place) if brain else float_at(address + 4 * place)
