"""A quantised model straight from a checkpoint: each matrix is packed as it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from chameleon_lab.checkpoints.tensors import LazyTensor
from chameleon_lab.quantization import QuantizedLinear
from chameleon_lab.transformer import Transformer


def pack_tensors(tensors: Mapping[str, LazyTensor], model: Transformer, device: str = "cpu") -> dict[str, LazyTensor]:
    """The tensors of a plain model as those of the quantised `model`, which was prepared on the meta device.

    They are packed on `device`, whose kind must be the one that the model was prepared for. What is missing is left
    to `tensors.fill` to find.
    """
    parts = dict(tensors)
    for name, layer in model.named_modules():
        if not isinstance(layer, QuantizedLinear):
            continue
        weight = parts.pop(f"{name}.weight", None)
        if weight is None and name == "head" and model.config.tied:
            weight = parts.get("embedding.weight")
        if weight is not None and weight.shape == (layer.out_features, layer.in_features):
            parts |= _parts(name, layer, weight, device)
        elif weight is not None:
            parts[f"{name}.weight"] = weight  # for the error that names it
    return parts


def _parts(name: str, layer: QuantizedLinear, weight: LazyTensor, device: str) -> dict[str, LazyTensor]:
    """The two tensors of a layer; whichever is read first packs the matrix and keeps the other till it is asked for."""
    waiting: dict[str, Tensor] = {}

    def reader(part: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            if part not in waiting:
                waiting.update(layer.pack(weight.read().to(device)))
            return waiting.pop(part)

        return read

    return {
        f"{name}.{part}": LazyTensor(tuple(buffer.shape), buffer.dtype, reader(part))
        for part, buffer in layer.named_buffers(recurse=False)
    }
