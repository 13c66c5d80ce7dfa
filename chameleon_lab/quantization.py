"""Matrices in 8 or 4 bits: weight-only quantization of a transformer that is to be used, not trained.

Products of few rows, which is what decoding is, go to the kernels that torch itself brings, because they read the
packed weights once and nothing else. (torchao 0.18 was measured on a CPU and left:
without torch.compile its int8 unpacks the whole matrix for every product, which is slower than bfloat16, and its int4
wants another package on a GPU and is not there for a CPU; it takes 2.5 s to import.)
"""

from __future__ import annotations

import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab.transformer import Transformer

aten = torch.ops.aten

BITS = {"int8": 8, "int4": 4}
"""How many bits a weight has, by the name that `Chameleon.load(weights=...)` takes."""

GROUP = 32  # neighbours in a row that share an int4 scale: the finest the kernels know
ROWS = 128  # multiplied in bytes at a time, which is never much slower than bfloat16, and for few rows much faster
FEW = 12  # rows up to which, where bytes cannot be had, torch's kernel beats a product with the unpacked matrix
STRIDE = 32  # inputs that torch's kernel reads at a time; where they are no multiple it reads beyond the matrix
AT_ONCE = 2**22  # weights packed at a time
UNPACKED = 2**24  # weights unpacked at a time for more rows
MATRICES = ("attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down")  # of a block


class QuantizedLinear(nn.Module, ABC):
    """A linear layer without bias whose weights are packed integers: (..., in_features) to (..., out_features).

    Made on the meta device, to be filled from `pack`. Answers in its input's dtype. Raises ValueError where a gradient
    is wanted, because the weights have none.
    """

    packed: Tensor
    scales: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features

    @abstractmethod
    def pack(self, weight_OI: Tensor) -> dict[str, Tensor]:
        """What `packed` and `scales` hold of a matrix, made on its device."""

    @abstractmethod
    def product(self, x_NI: Tensor) -> Tensor:
        """x W^T, in any floating dtype: outputs_NO."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(
                f"A quantised model ({type(self).__name__}) cannot be trained: load it without `weights`; or, to "
                "compute a loss alone, do it under torch.no_grad()."
            )
        x_NI = x.reshape(-1, self.in_features)
        return self.product(x_NI).reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def take(self, packed: dict[str, Tensor]) -> None:
        """Puts in place what `pack` gave."""
        self.packed, self.scales = packed["packed"], packed["scales"]

    def _buffers_of(self, packed: dict[str, Tensor]) -> None:
        for name, tensor in packed.items():
            self.register_buffer(name, tensor)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class Int8Linear(QuantizedLinear):
    """Symmetric int8, a scale for each output: 1 byte a weight.

    On a CPU that multiplies bytes without saturation (AVX-512 VNNI, AMX) the matrix is brought into the order of
    oneDNN's kernel when it is first used, and `packed` is then empty. The other factor is rounded to 16 bits, which
    are two rows of bytes: finer than bfloat16, and the sums are exact.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self._buffers_of(self.pack(torch.empty(out_features, in_features, device="meta")))
        self._ordered: _Ordered | None = None

    def pack(self, weight_OI: Tensor) -> dict[str, Tensor]:
        greatest_O = torch.maximum(weight_OI.amax(1), -weight_OI.amin(1)).float()
        scales_O = (greatest_O / 127).clamp_min(1e-12).to(torch.bfloat16)  # rounded first, so that it costs no accuracy
        packed_OI = torch.empty_like(weight_OI, dtype=torch.int8)
        for rows in _slices(weight_OI, AT_ONCE):
            ratios = weight_OI[rows].float() / scales_O[rows, None].float()
            packed_OI[rows] = ratios.round_().clamp_(-127, 127).to(torch.int8)
        return {"packed": packed_OI, "scales": scales_O}

    def product(self, x_NI: Tensor) -> Tensor:
        on_cpu = x_NI.device.type == "cpu"
        if on_cpu and type(x_NI) is Tensor and multiplies_bytes():  # others, as the planner's, have no numbers
            ordered = self._ordered or self._order()
            if len(x_NI) <= ROWS:
                return ordered.product(x_NI)
            return torch.cat([ordered.product(rows_RI).to(x_NI.dtype) for rows_RI in x_NI.split(ROWS)])
        if self._ordered is not None:
            self._disorder()
        x_NI, scales_O = x_NI.to(torch.bfloat16), self.scales.to(torch.bfloat16)
        if on_cpu and len(x_NI) <= FEW and self.in_features % STRIDE == 0:
            return aten._weight_int8pack_mm(x_NI.contiguous(), self.packed, scales_O)
        parts = [F.linear(x_NI, self.packed[rows].to(torch.bfloat16)) for rows in _slices(self.packed, UNPACKED)]
        return torch.cat(parts, dim=-1).mul_(scales_O)

    def _order(self) -> _Ordered:
        with ORDERING, torch.inference_mode(False):
            if self._ordered is None:
                self._ordered = _Ordered.of(self.packed, self.scales)
                self.packed = self.packed.new_empty(0, self.in_features)
            return self._ordered

    def _disorder(self) -> None:
        """Brings the matrix back, for whoever copies, moves or looks."""
        with ORDERING, torch.inference_mode(False):
            if self._ordered is not None:
                self.packed, self._ordered = self._ordered.plain().contiguous(), None

    def take(self, packed: dict[str, Tensor]) -> None:
        self._disorder()
        super().take(packed)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._disorder()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, *arguments: Any) -> None:
        self._disorder()
        super()._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._disorder()
        super()._load_from_state_dict(*arguments)

    def __getstate__(self) -> dict[str, Any]:
        self._disorder()
        return {**self.__dict__, "_buffers": dict(self._buffers)}  # of its own, since its use empties `packed`


ORDERING = threading.Lock()
NEARLY_NOUGHT = torch.tensor(1e-30)
MIDDLE = torch.tensor(128 * 256 + 128.5)  # of the unsigned steps; a half, since they are then cut off


@dataclass(frozen=True)
class _Ordered:
    """A matrix in the order of oneDNN's kernel for products of bytes, with its scales."""

    packed_IO: Tensor
    scales_O: Tensor
    zeros_O: Tensor

    @staticmethod
    def of(packed_OI: Tensor, scales_O: Tensor) -> _Ordered:
        ordered_IO = torch.ops.onednn.qlinear_prepack(packed_OI, [8, packed_OI.shape[1]])
        return _Ordered(ordered_IO, scales_O.float(), torch.zeros(len(packed_OI), dtype=torch.int64))

    def plain(self) -> Tensor:
        return self.packed_IO.to_dense().t()

    def product(self, x_NI: Tensor) -> Tensor:
        """A row is steps of 1/32,512 of its largest number; a step is 256 times one signed byte plus another."""
        rows, width = x_NI.shape
        x_NI = x_NI.float().contiguous()
        step_N1 = torch.add(NEARLY_NOUGHT, x_NI.abs().amax(-1, keepdim=True), alpha=1 / (127 * 256))
        steps_NI = torch.addcdiv(MIDDLE, x_NI, step_N1).to(torch.uint16)
        bytes_2NI = steps_NI.view(torch.uint8).view(rows, width, 2).permute(2, 0, 1).reshape(-1, width)
        if rows == 1:
            bytes_2NI = torch.cat((bytes_2NI, bytes_2NI))  # four rows take no longer than two
        parts_2NO = self.products(bytes_2NI)
        return torch.add(parts_2NO[:rows], parts_2NO[rows : 2 * rows], alpha=256).mul_(step_N1)

    def products(self, bytes_NI: Tensor) -> Tensor:
        """With rows of numbers from -128 to 127, each written as an unsigned byte, 128 for 0."""
        scales_O, zeros_O, no_bias = self.scales_O, self.zeros_O, None
        return torch.ops.onednn.qlinear_pointwise(
            bytes_NI, 1.0, 128, self.packed_IO, scales_O, zeros_O, no_bias, 1.0, 0, torch.float32, "none", [], ""
        )


@functools.cache
def multiplies_bytes() -> bool:
    """Whether oneDNN here multiplies unsigned by signed bytes exactly: older CPUs saturate, other builds cannot."""
    largest, width = torch.full((4, 64), 255, dtype=torch.uint8), 64
    try:
        products = _Ordered.of(torch.full((16, width), 127, dtype=torch.int8), torch.ones(16)).products(largest)
    except (AttributeError, RuntimeError):
        return False
    return bool((products == 127 * 127 * width).all())


class Int4Linear(QuantizedLinear):
    """Asymmetric int4, a scale and a zero for each `GROUP` of a row: 5 bits a weight, scales included.

    The packing is that of the kernel on `kind`, "cpu" or "cuda". Raises ValueError for other kinds of device and where
    `in_features` is no multiple of the group.
    """

    def __init__(self, in_features: int, out_features: int, kind: str) -> None:
        super().__init__(in_features, out_features)
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"int4 weights are for cpu and cuda, not for {kind}: take int8 there.")
        if in_features % GROUP:
            raise ValueError(f"int4 shares a scale among {GROUP} weights and {in_features} is no multiple: take int8.")
        self.kind = kind
        self._buffers_of(self.pack(torch.empty(out_features, in_features, device="meta")))

    def pack(self, weight_OI: Tensor) -> dict[str, Tensor]:
        rows, groups = len(weight_OI), self.in_features // GROUP
        padded = rows + -rows % 16  # the kernels' outputs come in sixteens
        scales_GO2 = weight_OI.new_zeros((groups, padded, 2), dtype=torch.bfloat16)
        pieces: list[Tensor] = []
        for part in _slices(weight_OI, AT_ONCE, 64):  # the kernels' packing goes by as many rows at most
            weight_OGg = weight_OI[part].float().unflatten(1, (groups, GROUP))
            low_OG1, high_OG1 = weight_OGg.amin(-1, True), weight_OGg.amax(-1, True)
            scale_OG1 = _rounded(((high_OG1 - low_OG1) / 15).clamp_min(1e-12))
            zero_OG1 = _rounded(low_OG1 + 8 * scale_OG1)  # a level q stands for (q - 8) scale + zero
            levels_OGg = ((weight_OGg - zero_OG1) / scale_OG1).round_().add_(8).clamp_(0, 15)
            scales_GO2[:, part] = torch.cat([scale_OG1, zero_OG1], -1).transpose(0, 1).to(torch.bfloat16)
            levels_OI = levels_OGg.flatten(1).to(torch.int32)
            pieces.append(self._packed(F.pad(levels_OI, (0, 0, 0, -len(levels_OI) % 16))))
        return {"packed": torch.cat(pieces), "scales": scales_GO2}

    def _packed(self, levels_OI: Tensor) -> Tensor:
        if self.kind == "cpu":
            return aten._convert_weight_to_int4pack_for_cpu(levels_OI, 1)
        pairs = (levels_OI[:, ::2] << 4 | levels_OI[:, 1::2]).to(torch.uint8)
        return aten._convert_weight_to_int4pack(pairs, 8 if self.in_features % 128 == 0 else 2)

    def product(self, x_NI: Tensor) -> Tensor:
        multiply = aten._weight_int4pack_mm_for_cpu if self.kind == "cpu" else aten._weight_int4pack_mm
        outputs_NO = multiply(x_NI.to(torch.bfloat16).contiguous(), self.packed, GROUP, self.scales.to(torch.bfloat16))
        return outputs_NO[:, : self.out_features]

    def _apply(self, fn, recurse: bool = True):
        kind = fn(self.scales.new_empty(0)).device.type
        if kind not in (self.kind, "meta"):
            raise ValueError(
                f"These int4 weights are packed for {self.kind} and cannot move to {kind}: load them there, "
                f'Chameleon.load(folder, device="{kind}", weights="int4").'
            )
        return super()._apply(fn, recurse)


def quantize(model: Transformer, bits: int, device: torch.device | str | None = None) -> Transformer:
    """The same model with the blocks' matrices in 8 or 4 bits and the head in 8; embedding and norms stay as they are.

    In place, one matrix after the other, so that both copies of the whole are never held; a tied head becomes a matrix
    of its own. (In 4 bits the head alone did more harm to the tiny model than all the others together.) A model on
    the meta device is only prepared: for `checkpoints.packed` to fill, or to be measured; `device` is then where it is
    going to be. Raises ValueError, before anything is changed, for other bits, for matrices that a fix made its own,
    and for shapes or devices that 4 bits do not fit.
    """
    kind = (torch.device(device) if device is not None else model.embedding.weight.device).type
    if bits not in BITS.values():
        raise ValueError(f"Weights come in 8 or 4 bits, not in {bits}.")
    places = [f"blocks.{number}.{name}" for number in range(len(model.blocks)) for name in MATRICES] + ["head"]
    made: dict[str, QuantizedLinear] = {}
    for place in places:
        layer = model.get_submodule(place)
        if isinstance(layer, QuantizedLinear):
            raise ValueError(f"{place} is quantised already: quantise a model once, from its own weights.")
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                f"{model.filled.get(place)} holds the matrix {place} in a form of its own, which cannot be quantised: "
                "load the model without `weights`."
            )
        shape = layer.in_features, layer.out_features
        made[place] = Int8Linear(*shape) if bits == 8 or place == "head" else Int4Linear(*shape, kind)
    for place, quantized in made.items():
        owner, _, name = place.rpartition(".")
        layer = model.get_submodule(place)
        assert isinstance(layer, nn.Linear)
        if not layer.weight.is_meta:
            quantized.take(quantized.pack(layer.weight.detach()))
        quantized.train(layer.training)
        setattr(model.get_submodule(owner), name, quantized)
    return model.requires_grad_(False)


def require_plain(model: nn.Module) -> None:
    """Raises ValueError for a quantised model, where the weights themselves are needed."""
    held = next((module for module in model.modules() if isinstance(module, QuantizedLinear)), None)
    if held is not None:
        raise ValueError(
            f"A quantised model ({type(held).__name__}) cannot be saved, since no format holds its packed weights: "
            "save the model it was made from, and quantise when loading, Chameleon.load(folder, weights=...)."
        )


def _slices(matrix: Tensor, numbers: int, multiple: int = 1) -> Iterator[slice]:
    """Rows of a matrix, about so many numbers at a time, in multiples of so many rows."""
    rows = max(1, numbers // matrix.shape[1] // multiple) * multiple
    yield from (slice(start, min(start + rows, len(matrix))) for start in range(0, len(matrix), rows))


def _rounded(x: Tensor) -> Tensor:
    """As bfloat16 will hold it, so that what is computed from it fits what is stored."""
    return x.to(torch.bfloat16).float()
