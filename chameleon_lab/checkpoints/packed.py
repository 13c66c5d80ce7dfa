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
    found = dict(tensors)
    for name, layer in model.named_modules():
        if not isinstance(layer, QuantizedLinear):
            continue
        weight = found.pop(f"{name}.weight", None)
        if weight is None and name == "head" and model.config.tied:
            weight = found.get("embedding.weight")
        if weight is not None and weight.shape == (layer.out_features, layer.in_features):
            found |= _parts(name, layer, weight, device)
        elif weight is not None:
            found[f"{name}.weight"] = weight  # for the error that names it
    return found


def _parts(name: str, layer: QuantizedLinear, weight: LazyTensor, device: str) -> dict[str, LazyTensor]:
    """The two tensors of a layer; whichever is read first packs the matrix and keeps the other till it is asked for."""
    kept: dict[str, Tensor] = {}

    def reading(part: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            if part not in kept:
                kept.update(layer.pack(weight.read().to(device)))
            return kept.pop(part)

        return read

    return {
        f"{name}.{part}": LazyTensor(tuple(buffer.shape), buffer.dtype, reading(part))
        for part, buffer in layer.named_buffers(recurse=False)
    }
