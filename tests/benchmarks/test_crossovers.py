"""Where one kernel overtakes another on this machine, beside the present value of each fitted constant in `crossovers`.

python -m pytest -m slow tests/benchmarks/test_crossovers.py -s

Prints; asserts no time. Each line has the constant, its value, and the ratio of the two ways (above 1: the way that the
constant turns on is the faster) at sizes around it. Fit a constant anew where the ratio crosses 1 elsewhere, on a quiet
machine only, and write machine and date into `crossovers.py`. One thread, by its own clock, the best of several turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chameleon_lab import crossovers, native_ops
from chameleon_lab.attention import attention, attention_to_earlier
from chameleon_lab.generation.kernels import attention_of_one
from chameleon_lab.generation.samplers import Sampler
from chameleon_lab.quantization import byte_product

pytestmark = pytest.mark.slow

HELD = 100_000_000  # bytes that are worked on in turn, so that no cache holds them


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def ratio(plain: Callable[[int], object], special: Callable[[int], object], copies: int, turns: int = 4) -> float:
    """How many times as fast the special way is, on so many copies of what it works on, the ways taking turns."""
    best = [float("inf"), float("inf")]
    for turn in range(turns + 1):
        for index, work in enumerate((plain, special)):
            started = time.process_time()
            for copy in range(copies):
                work(copy)
            if turn:
                best[index] = min(best[index], time.process_time() - started)
    return best[0] / best[1]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str, object, Iterable[tuple[object, float]]], None]:
    def line(name: str, value: object, measured: Iterable[tuple[object, float]]) -> None:
        with capsys.disabled():
            print(f"\n{name} = {value}; " + ", ".join(f"{size}: {times:.2f}" for size, times in measured), flush=True)

    return line


def copies_of(make: Callable[[], Tensor]) -> list[Tensor]:
    first = make()
    return [first, *(make() for _ in range(min(60, max(1, HELD // first.nbytes))))]


def test_attention_of_whole_sequences(say) -> None:
    def times(length: int) -> float:
        q, k, v = torch.randn(3, 1, 8, length, 32)
        mask_TT = torch.full((length, length), -torch.inf).triu(1)
        return ratio(lambda _: attention(q, k, v, None), lambda _: attention_to_earlier(q, k, v, mask_TT), 8)

    value = crossovers.PLAIN_POSITIONS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossovers, "PLAIN_POSITIONS", 10**9)
        say("PLAIN_POSITIONS", value, [(length, times(length)) for length in (128, 256, 512, 768, 1024)])

    def blocks(size: int) -> float:
        q, k, v = torch.randn(3, 1, 8, 512, 32)
        mask_TT = torch.full((512, 512), -torch.inf).triu(1)

        def in_blocks(_: int) -> None:
            crossovers.QUERY_BLOCK = size
            attention_to_earlier(q, k, v, mask_TT)

        return ratio(lambda _: attention(q, k, v, mask_TT), in_blocks, 8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossovers, "QUERY_BLOCK", crossovers.QUERY_BLOCK)
        measured = [(size, blocks(size)) for size in (32, 64, 128, 256)]
    say("QUERY_BLOCK", crossovers.QUERY_BLOCK, measured)


def test_attention_of_one_query(say) -> None:
    def times(length: int) -> float:
        q_BH1K = torch.randn(1, 8, 1, 32)
        pairs = [(pair[0], pair[1]) for pair in copies_of(lambda: torch.randn(2, 1, 8, length, 32))]
        return ratio(
            lambda n: attention_of_one(q_BH1K, *pairs[n], None),
            lambda n: F.scaled_dot_product_attention(q_BH1K, *pairs[n]),
            len(pairs),
        )

    value, each = crossovers.FUSED_NUMBERS, 8 * 32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossovers, "FUSED_NUMBERS", 0)
        say("FUSED_NUMBERS", value, [(each * length, times(length)) for length in (64, 128, 256, 512, 2048)])


def test_products_of_bytes(say) -> None:
    weights = copies_of(lambda: torch.randint(-127, 128, (3072, 1024), dtype=torch.int8))
    scales_O = torch.rand(3072).bfloat16()

    def unpacked(n: int, x_NI: Tensor) -> Tensor:
        return F.linear(x_NI, weights[n].bfloat16()).mul_(scales_O)

    def kernel(rows: int) -> float:
        x_NI = torch.randn(rows, 1024).bfloat16()
        few = [native_ops.int8_product(x_NI, weights[0], scales_O)]
        if few == [None]:
            return float("nan")
        work = (lambda n: unpacked(n, x_NI), lambda n: native_ops.int8_product(x_NI, weights[n], scales_O))
        return ratio(*work, len(weights))

    say("INT8_ROWS", crossovers.INT8_ROWS, [(rows, kernel(rows)) for rows in (1, 4, 8, 12, 16, 24)])
    if native_ops.multiplies_bytes():
        ordered, halves = (
            [native_ops.ByteMatrix(each, scales_O) for each in weights],
            [w.bfloat16() for w in weights[:8]],
        )

        def in_bytes(rows: int) -> float:
            x_NI = torch.randn(rows, 1024).bfloat16()
            return ratio(lambda n: F.linear(x_NI, halves[n]), lambda n: byte_product(ordered[n], x_NI), len(halves))

        say("BYTE_ROWS", crossovers.BYTE_ROWS, [(rows, in_bytes(rows)) for rows in (1, 8, 32, 128, 256)])


def test_sorting_a_part_first(say) -> None:
    sampler = Sampler(0.9, top_p=0.95)

    def times(size: int, **constants: object) -> float:
        logits = [3.0 * torch.randn(1, size) for _ in range(40)]  # each once: a processor learns a sort's comparisons

        def work(n: int, least: int) -> None:
            crossovers.SORTED_SIZE = least
            sampler.pick(logits[n], [0.3])

        return ratio(lambda n: work(n, 10**9), lambda n: work(n, 0), len(logits))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossovers, "SORTED_SIZE", value := crossovers.SORTED_SIZE)
        say("SORTED_SIZE", value, [(size, times(size)) for size in (1024, 2048, 4096, 8192, 65_536)])
        for parts in ((256, 16), (256,), (64, 8), (16,)):
            patch.setattr(crossovers, "SORTED_PARTS", parts)
            say("SORTED_PARTS", parts, [(size, times(size)) for size in (4096, 65_536)])
