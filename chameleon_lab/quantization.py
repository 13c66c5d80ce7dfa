"""Matrices in 8 or 4 bits: weight-only quantization of a transformer that is to be used, not trained.

Products of few rows, which is what decoding is, go to the kernels that torch itself brings, because they read the
packed weights once and nothing else. (torchao 0.18 was measured on a CPU and left:
without torch.compile its int8 unpacks the whole matrix for every product, which is slower than bfloat16, and its int4
wants another package on a GPU and is not there for a CPU; it takes 2.5 s to import.)
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab import crossovers, native_ops
from chameleon_lab.by_modality import places_of
from chameleon_lab.native_ops import INT4_GROUP, ByteMatrix
from chameleon_lab.transformer import Transformer

BITS = {"int8": 8, "int4": 4}
"""How many bits a weight has, by the name that `Chameleon.load(weights=...)` takes."""

MATRICES = ("attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down")  # of a block


class QuantizedLinear(nn.Module, ABC):
    """A linear layer without bias whose weights are packed integers: (..., in_features) to (..., out_features).

    Made on the meta device, to be filled from `pack`. Answers in its input's dtype. Raises ValueError where a gradient
    is wanted, because the weights have none.
    """

    packed: Tensor
    scales: Tensor
    passes_gradients = False
    """Whether a gradient goes through to what is before it: to adapters, of which `adapters` sets it."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.fillings = 0  # how often weights were put in: a decoder need not read them to see others

    @property
    def qweight(self) -> Tensor:
        """What `peft` asks packed weights for: on which device an adapter belongs."""
        return self.packed

    @abstractmethod
    def pack(self, weight_OI: Tensor) -> dict[str, Tensor]:
        """What `packed` and `scales` hold of a matrix, made on its device."""

    @abstractmethod
    def product(self, x_NI: Tensor) -> Tensor:
        """x W^T, in any floating dtype: outputs_NO."""

    def forward(self, x: Tensor) -> Tensor:
        x_NI = x.reshape(-1, self.in_features)
        if torch.is_grad_enabled() and x.requires_grad:
            if not self.passes_gradients:
                raise ValueError(
                    f"A quantised model ({type(self).__name__}) cannot be trained: load it without `weights`; or, to "
                    "compute a loss alone, do it under torch.no_grad()."
                )
            outputs_NO: Tensor = ThroughPacked.apply(x_NI, self)  # pyright: ignore[reportAssignmentType]
        else:
            outputs_NO = self.product(x_NI)
        return outputs_NO.reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The matrix that is multiplied by, as numbers: weight_OI. Raises ValueError for a kind that has none."""
        raise ValueError(f"{type(self).__name__} gives no gradient: put an adapter on a base in 8 bits.")

    def take(self, packed: dict[str, Tensor]) -> None:
        """Puts in place what `pack` gave."""
        self.fillings += 1
        self.packed, self.scales = packed["packed"], packed["scales"]

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.fillings += 1
        super()._load_from_state_dict(*arguments)

    def _buffers_of(self, packed: dict[str, Tensor]) -> None:
        for name, tensor in packed.items():
            self.register_buffer(name, tensor)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class ThroughPacked(torch.autograd.Function):
    """A product with packed weights, and the gradient of its input; the weights themselves have none."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x_NI.dtype
        return layer.product(x_NI)

    @staticmethod
    def backward(ctx: Any, upstream_NO: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return upstream_NO.to(ctx.dtype) @ ctx.layer.unpacked(ctx.dtype), None


class Int8Linear(QuantizedLinear):
    """Symmetric int8, a scale for each output: 1 byte a weight.

    On a CPU that multiplies bytes without saturation (AVX-512 VNNI, AMX) the matrix is brought into the order of
    oneDNN's kernel when it is first used, and `packed` is then empty. The other factor is rounded to 16 bits, which
    are two rows of bytes: finer than bfloat16, and the sums are exact.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self._buffers_of(self.pack(torch.empty(out_features, in_features, device="meta")))
        self._ordered: ByteMatrix | None = None
        self._stays = False  # whether `packed` keeps its first order

    def pack(self, weight_OI: Tensor) -> dict[str, Tensor]:
        greatest_O = torch.maximum(weight_OI.amax(1), -weight_OI.amin(1)).float()
        scales_O = (greatest_O / 127).clamp_min(1e-12).to(torch.bfloat16)  # rounded first, so that it costs no accuracy
        packed_OI = torch.empty_like(weight_OI, dtype=torch.int8)
        for rows in _slices(weight_OI, crossovers.PACKED_AT_ONCE):
            ratios = weight_OI[rows].float() / scales_O[rows, None].float()
            packed_OI[rows] = ratios.round_().clamp_(-127, 127).to(torch.int8)
        return {"packed": packed_OI, "scales": scales_O}

    def product(self, x_NI: Tensor) -> Tensor:
        on_cpu = x_NI.device.type == "cpu"
        if (
            on_cpu and type(x_NI) is Tensor and not self._stays and native_ops.multiplies_bytes()
        ):  # the planner's fakes have no numbers
            ordered = self._ordered or self._order()
            if len(x_NI) <= crossovers.BYTE_ROWS:
                return byte_product(ordered, x_NI)
            parts = x_NI.split(crossovers.BYTE_ROWS)
            return torch.cat([byte_product(ordered, rows_RI).to(x_NI.dtype) for rows_RI in parts])
        if self._ordered is not None:
            self._disorder()
        x_NI, scales_O = x_NI.to(torch.bfloat16), self.scales.to(torch.bfloat16)
        few = on_cpu and len(x_NI) <= crossovers.INT8_ROWS
        if few and (outputs_NO := native_ops.int8_product(x_NI, self.packed, scales_O)) is not None:
            return outputs_NO
        slices = _slices(self.packed, crossovers.UNPACKED_AT_ONCE)
        parts = [F.linear(x_NI, self.packed[rows].to(torch.bfloat16)) for rows in slices]
        return torch.cat(parts, dim=-1).mul_(scales_O)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        return self.in_first_order().to(dtype) * self.scales[:, None].to(dtype)

    def in_first_order(self) -> Tensor:
        """`packed`, row by row, which is its order from now on: for kernels that read it so (`compiled_step`)."""
        self._stays = True
        self._disorder()
        return self.packed

    def _order(self) -> ByteMatrix:
        with ORDERING, torch.inference_mode(False):
            if self._ordered is None:
                self._ordered = ByteMatrix(self.packed, self.scales)
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


def byte_product(matrix: ByteMatrix, x_NI: Tensor) -> Tensor:
    """x W^T, a row in steps of 1/32,512 of its largest number; a step is 256 times one signed byte plus another."""
    rows, width = x_NI.shape
    x_NI = x_NI.float().contiguous()
    step_N1 = torch.add(NEARLY_NOUGHT, x_NI.abs().amax(-1, keepdim=True), alpha=1 / (127 * 256))
    steps_NI = torch.addcdiv(MIDDLE, x_NI, step_N1).to(torch.uint16)
    bytes_2NI = steps_NI.view(torch.uint8).view(rows, width, 2).permute(2, 0, 1).reshape(-1, width)
    if rows == 1:
        bytes_2NI = torch.cat((bytes_2NI, bytes_2NI))  # four rows take no longer than two
    parts_2NO = matrix.products(bytes_2NI)
    return torch.add(parts_2NO[:rows], parts_2NO[rows : 2 * rows], alpha=256).mul_(step_N1)


class Int4Linear(QuantizedLinear):
    """Asymmetric int4, a scale and a zero for each `INT4_GROUP` of a row: 5 bits a weight, scales included.

    The packing is that of the kernel on `kind`, "cpu" or "cuda". Raises ValueError for other kinds of device and where
    `in_features` is no multiple of the group.
    """

    def __init__(self, in_features: int, out_features: int, kind: str) -> None:
        super().__init__(in_features, out_features)
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"int4 weights are for cpu and cuda, not for {kind}: take int8 there.")
        if in_features % INT4_GROUP:
            raise ValueError(
                f"int4 shares a scale among {INT4_GROUP} weights and {in_features} is no multiple: take int8."
            )
        self.kind = kind
        self._buffers_of(self.pack(torch.empty(out_features, in_features, device="meta")))

    def pack(self, weight_OI: Tensor) -> dict[str, Tensor]:
        rows, groups = len(weight_OI), self.in_features // INT4_GROUP
        padded = rows + -rows % 16  # the kernels' outputs come in sixteens
        scales_GO2 = weight_OI.new_zeros((groups, padded, 2), dtype=torch.bfloat16)
        pieces: list[Tensor] = []
        for part in _slices(
            weight_OI, crossovers.PACKED_AT_ONCE, 64
        ):  # the kernels' packing goes by as many rows at most
            weight_OGg = weight_OI[part].float().unflatten(1, (groups, INT4_GROUP))
            low_OG1, high_OG1 = weight_OGg.amin(-1, True), weight_OGg.amax(-1, True)
            scale_OG1 = _rounded(((high_OG1 - low_OG1) / 15).clamp_min(1e-12))
            zero_OG1 = _rounded(low_OG1 + 8 * scale_OG1)  # a level q stands for (q - 8) scale + zero
            levels_OGg = ((weight_OGg - zero_OG1) / scale_OG1).round_().add_(8).clamp_(0, 15)
            scales_GO2[:, part] = torch.cat([scale_OG1, zero_OG1], -1).transpose(0, 1).to(torch.bfloat16)
            levels_OI = levels_OGg.flatten(1).to(torch.int32)
            padded_OI = F.pad(levels_OI, (0, 0, 0, -len(levels_OI) % 16))
            pieces.append(native_ops.pack_int4(padded_OI, self.kind))
        return {"packed": torch.cat(pieces), "scales": scales_GO2}

    def product(self, x_NI: Tensor) -> Tensor:
        scales_GO2 = self.scales.to(torch.bfloat16)
        return native_ops.int4_product(x_NI.to(torch.bfloat16), self.packed, scales_GO2, self.kind)[
            :, : self.out_features
        ]

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

    In place, one matrix after the other, so that memory never has both copies of the whole; a tied head becomes a
    matrix of its own. (In 4 bits the head alone did more harm to the tiny model than all the others together.) A model
    on the meta device is only prepared: for `checkpoints.packed` to fill, or to be measured; `device` is then where it
    is going to be. Raises ValueError, before anything is changed, for other bits, for matrices that a fix made its own,
    and for shapes or devices that 4 bits do not fit.
    """
    kind = (torch.device(device) if device is not None else model.embedding.weight.device).type
    if bits not in BITS.values():
        raise ValueError(f"Weights come in 8 or 4 bits, not in {bits}.")
    places = [f"blocks.{number}.{name}" for number in range(len(model.blocks)) for name in MATRICES] + ["head"]
    places = [each for place in places for each in places_of(model, place)]
    layers: dict[str, QuantizedLinear] = {}
    for place in places:
        layer = dict(model.named_modules()).get(place)  # an attention of one's own may have none
        if isinstance(layer, QuantizedLinear):
            raise ValueError(f"{place} is quantised already: quantise a model once, from its own weights.")
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                f"{model.filled.get(place) or model.filled.get(place.rpartition('.')[0])} holds the matrix {place} in "
                "a form of its own, which cannot be quantised: "
                "load the model without `weights`."
            )
        shape = layer.in_features, layer.out_features
        layers[place] = Int8Linear(*shape) if bits == 8 or place == "head" else Int4Linear(*shape, kind)
    for place, quantized in layers.items():
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
    quantized = next((module for module in model.modules() if isinstance(module, QuantizedLinear)), None)
    if quantized is not None:
        raise ValueError(
            f"A quantised model ({type(quantized).__name__}) cannot be saved: no format holds its packed weights. "
            "Save the model it was made from, and quantise when loading, Chameleon.load(folder, weights=...)."
        )


def _slices(matrix: Tensor, numbers: int, multiple: int = 1) -> Iterator[slice]:
    """Rows of a matrix, about so many numbers at a time, in multiples of so many rows; all at once on the meta device,
    where nothing is held and each slice only takes time."""
    if matrix.device.type == "meta":
        numbers = matrix.numel()
    rows = max(1, numbers // matrix.shape[1] // multiple) * multiple
    yield from (slice(start, min(start + rows, len(matrix))) for start in range(0, len(matrix), rows))


def _rounded(x: Tensor) -> Tensor:
    """As bfloat16 will hold it, so that what is computed from it fits what is stored."""
    return x.to(torch.bfloat16).float()
