"""The parts of torch that torch calls private, each with what is done where a torch has it no longer.

Nothing else in the lab names them. `tests/test_native_ops.py` takes them away one by one and compares the results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INT4_GROUP = 32  # neighbours in a row that share an int4 scale: the finest that the kernels offer
INT8_STRIDE = 32  # inputs that torch's int8 kernel reads at a time: where they are no multiple it reads past the matrix


def operator(name: str) -> Callable[..., Any] | None:
    """`torch.ops.<namespace>.<name>`, or None where this torch has none of that name."""
    namespace, _, short = name.partition(".")
    return getattr(getattr(torch.ops, namespace), short, None)


def listeners(module: nn.Module) -> list[dict] | None:
    """The hooks on outputs and inputs of a module and of all below it, and the global ones, as living dicts.

    None where this torch keeps them elsewhere: then nobody can say that no one listens.
    """
    everywhere = vars(nn.modules.module)
    try:
        hooks = [everywhere["_global_forward_hooks"], everywhere["_global_forward_pre_hooks"]]
        return hooks + [each for part in module.modules() for each in (part._forward_hooks, part._forward_pre_hooks)]
    except (KeyError, AttributeError):
        return None


def mark_dynamic(tensor: Tensor, dimension: int) -> None:
    """Tells compilers that a tensor comes in many sizes of a dimension: else each size is compiled anew."""
    mark = getattr(torch._dynamo, "mark_dynamic", None)
    if mark is not None:
        mark(tensor, dimension)


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place, except through `.data`; 0 where nobody counts."""
    return 0 if tensor.is_inference() else getattr(tensor, "_version", 0)


class ByteMatrix:
    """A matrix of signed bytes in the order of oneDNN's products of bytes, with a scale for each output.

    Raises AttributeError or RuntimeError where this torch, or this CPU, has none: ask `multiplies_bytes` first.
    """

    def __init__(self, packed_OI: Tensor, scales_O: Tensor) -> None:
        order, multiply = operator("onednn.qlinear_prepack"), operator("onednn.qlinear_pointwise")
        if order is None or multiply is None:
            raise AttributeError("This torch has no products of bytes.")
        self._multiply = multiply
        self._packed_IO = order(packed_OI, [8, packed_OI.shape[1]])
        self._scales_O, self._zeros_O = scales_O.float(), torch.zeros(len(packed_OI), dtype=torch.int64)

    def plain(self) -> Tensor:
        """The matrix in its first order: packed_OI."""
        return self._packed_IO.to_dense().t()

    def products(self, bytes_NI: Tensor) -> Tensor:
        """With rows of numbers from -128 to 127, each written as an unsigned byte, 128 for 0: float32 outputs_NO."""
        order = bytes_NI, 1.0, 128, self._packed_IO, self._scales_O, self._zeros_O, None
        return self._multiply(*order, 1.0, 0, torch.float32, "none", [], "")


@functools.cache
def multiplies_bytes() -> bool:
    """Whether oneDNN here multiplies unsigned by signed bytes exactly: older CPUs saturate, other builds cannot."""
    largest, width = torch.full((4, 64), 255, dtype=torch.uint8), 64
    try:
        products = ByteMatrix(torch.full((16, width), 127, dtype=torch.int8), torch.ones(16)).products(largest)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool((products == 127 * 127 * width).all())


def int8_product(x_NI: Tensor, packed_OI: Tensor, scales_O: Tensor) -> Tensor | None:
    """x W^T by torch's kernel for bfloat16 rows and int8 weights on a CPU; None where it cannot."""
    multiply = operator("aten._weight_int8pack_mm")
    if multiply is None or x_NI.shape[1] % INT8_STRIDE:
        return None
    return multiply(x_NI.contiguous(), packed_OI, scales_O)


INT4 = {
    "cpu": ("aten._convert_weight_to_int4pack_for_cpu", "aten._weight_int4pack_mm_for_cpu"),
    "cuda": ("aten._convert_weight_to_int4pack", "aten._weight_int4pack_mm"),
}
"""What packs and what multiplies, by kind of device."""


def pack_int4(levels_OI: Tensor, kind: str) -> Tensor:
    """Levels 0..15 (int32) in the kernel's order; without a kernel two to a byte, the first in the upper half."""
    pairs_OI = (levels_OI[:, ::2] << 4 | levels_OI[:, 1::2]).to(torch.uint8)
    pack, multiply = map(operator, INT4[kind])
    if pack is None or multiply is None:
        return pairs_OI
    return pack(levels_OI, 1) if kind == "cpu" else pack(pairs_OI, 8 if levels_OI.shape[1] % 128 == 0 else 2)


@functools.cache
def packs_int4_in_blocks() -> bool:
    """Whether the packing for a CPU is the one that `generation.compiled_kernels` reads: each 64 outputs by themselves,
    32 bytes for an input, of which the lower halves are the first 32 outputs."""
    levels_OI = torch.arange(128 * 32, dtype=torch.int32).mul(7).bitwise_right_shift(2).bitwise_and(15).view(128, 32)
    packed = pack_int4(levels_OI, "cpu")
    lower_BOI, upper_BOI = levels_OI.view(2, 2, 32, 32).unbind(1)
    expected = (upper_BOI << 4 | lower_BOI).transpose(1, 2).to(torch.uint8)
    return packed.dtype == torch.uint8 and torch.equal(packed.reshape(-1), expected.reshape(-1))


def int4_product(x_NI: Tensor, packed: Tensor, scales_GO2: Tensor, kind: str) -> Tensor:
    """x W^T with bfloat16 rows and what `pack_int4` gave; scales and zeros of each group as the kernels want them."""
    pack, multiply = map(operator, INT4[kind])
    if pack is not None and multiply is not None:
        return multiply(x_NI.contiguous(), packed, INT4_GROUP, scales_GO2)
    levels_OI = torch.stack((packed >> 4, packed & 15), -1).flatten(1)
    scales_OG1, zeros_OG1 = scales_GO2.float().transpose(0, 1).split(1, -1)
    weight_OGg = (levels_OI.unflatten(1, (len(scales_GO2), -1)).float() - 8) * scales_OG1 + zeros_OG1
    return F.linear(x_NI, weight_OGg.flatten(1).to(x_NI.dtype))
