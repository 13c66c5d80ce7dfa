"""Which kernel is fastest for what a decoded token asks: one matrix, one layer's attention. Prints; asserts no time.

make benchmarks
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab.generation.kernels import attention_of_one
from chameleon_lab.generation.lean import LeanTwin
from chameleon_lab.quantization import Int8Linear

pytestmark = pytest.mark.slow

BYTES = 200_000_000  # of what is multiplied in turn, so that no cache holds it


def microseconds(work: Callable[..., object], given: Sequence[tuple[object, ...]]) -> float:
    """The best of four turns over all that is given, a piece."""
    best = float("inf")
    for _ in range(5):
        started = time.process_time()
        for each in given:
            work(*each)
        best = min(best, (time.process_time() - started) / len(given))
    return 1e6 * best


class Holder(nn.Module):
    """A module with a layer, of which a lean stand-in is made."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@torch.inference_mode()
def test_products_of_a_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    outputs, inputs = 3072, 1024
    with torch.inference_mode(False):
        plain = [nn.Linear(inputs, outputs, bias=False) for _ in range(BYTES // (4 * outputs * inputs))]
        half = [nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16) for _ in plain]
    ours, ours_half = ([(LeanTwin(Holder(layer), (Holder,)).model.layer,) for layer in each] for each in (plain, half))
    packed = [Int8Linear(inputs, outputs) for _ in plain]
    for made, layer in zip(packed, plain, strict=True):
        made.take(made.pack(layer.weight))
    raw = [(made.packed, made.scales) for made in packed]
    lines = [f"{outputs}x{inputs}, microseconds: F.linear, ours; in bfloat16 F.linear, ours; in int8 torch's, ours"]
    for rows in (1, 2, 3, 8):
        x_N1I = torch.randn(rows, 1, inputs)
        half_N1I = x_N1I.bfloat16()
        spent = [
            microseconds(lambda layer, x=x_N1I: F.linear(x, layer.weight), [(layer,) for layer in plain]),
            microseconds(lambda product, x=x_N1I: product(x), ours),
            microseconds(lambda layer, x=half_N1I: F.linear(x, layer.weight), [(layer,) for layer in half]),
            microseconds(lambda product, x=half_N1I: product(x), ours_half),
            microseconds(lambda w, s, x=half_N1I[:, 0]: torch.ops.aten._weight_int8pack_mm(x, w, s), raw),
        ]
        lines.append(f"{rows} row(s) " + " ".join(f"{each:6.0f}" for each in spent))
    for index, rows in enumerate((1, 2, 3, 8), 1):  # its matrices are brought into another order here
        x_N1I = torch.randn(rows, 1, inputs).bfloat16()
        lines[index] += f" {microseconds(lambda made, x=x_N1I: made(x), [(made,) for made in packed]):6.0f}"
    with capsys.disabled():
        print("\n" + "\n".join(lines))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_attention_of_one_query(dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    def in_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v

    lines = [f"{dtype}, microseconds: torch's kernel, queries in rows, ours (in columns)"]
    for heads, width, length in ((8, 32, 128), (8, 32, 4032), (32, 128, 128), (32, 128, 4032)):
        q_1H1K = torch.randn(1, heads, 1, width, dtype=dtype)
        room = 1, heads, length + 64, width  # as in a cache, which is not full
        count = max(2, min(60, BYTES // (2 * heads * length * width * dtype.itemsize)))
        held = [torch.randn(2, *room, dtype=dtype)[:, :, :, :length] for _ in range(count)]
        given = [(keys, values) for keys, values in held]
        spent = [
            microseconds(lambda k, v, q=q_1H1K: F.scaled_dot_product_attention(q, k, v), given),
            microseconds(lambda k, v, q=q_1H1K: in_rows(q, k, v), given),
            microseconds(lambda k, v, q=q_1H1K: attention_of_one(q, k, v, None), given),
        ]
        lines.append(f"{heads} heads of {width}, {length:4d} positions " + " ".join(f"{each:6.0f}" for each in spent))
    with capsys.disabled():
        print("\n" + "\n".join(lines))
