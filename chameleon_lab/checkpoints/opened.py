"""What a checkpoint holds, whatever its format: `Parts`, and `Opened`, whose transformer is not read yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from chameleon_lab.checkpoints.adapters import has_adapter
from chameleon_lab.checkpoints.packed import pack_tensors
from chameleon_lab.checkpoints.tensors import Tensors, fill, tensors_of
from chameleon_lab.generation.settings import Settings
from chameleon_lab.outlines import outline
from chameleon_lab.quantization import BITS, quantize, require_plain
from chameleon_lab.tokenizers.image import ImageTokenizerConfig
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.quantizers import Quantizer
from chameleon_lab.transformer import ModelConfig, Transformer


@dataclass
class Parts:
    """What a checkpoint holds: a model, its tokenizer, its generation defaults, and its card (plain values)."""

    model: Transformer
    tokenizer: MixedModalTokenizer
    settings: Settings = field(default_factory=Settings)
    card: dict[str, Any] = field(default_factory=dict)


QuantizerClass = Callable[[int, int], Quantizer]


@dataclass(frozen=True)
class ReadOptions:
    """How a checkpoint is to be read.

    `fixes` and `quantizers` are classes of the user's own that it was trained with, `licence` that of the weights where
    the folder does not tell, `dtype` (None: as in the files) and `device` those that its tensors are to have.
    `tokenizer` is where the user says that a tokenizer lies.
    """

    fixes: tuple[type, ...] = ()
    quantizers: tuple[QuantizerClass, ...] = ()
    licence: str | None = None
    dtype: torch.dtype | None = None
    device: torch.device | str = "cpu"
    tokenizer: Path | None = None


def require_layers(config: ModelConfig, tensors: Tensors, source: Path, file: str = "config.json") -> None:
    """Raises ValueError for a config of far more layers than the tensors under our names have, before any is made."""
    layers = len({name.split(".")[1] for name in tensors if name.startswith("blocks.") and name.count(".") > 1})
    if config.layers > layers + 64:
        raise ValueError(f"{source} contradicts the folder's {file}: {layers:,} layers instead of {config.layers:,}.")


def require_blocks(config: ImageTokenizerConfig, tensors: Tensors, source: Path, file: str = "config.json") -> None:
    """Raises ValueError for a config of far more residual blocks than there are tensors of an image tokenizer."""
    blocks = len(config.widths) * config.blocks
    if blocks > len(tensors) + 64:
        fault = f"{len(tensors):,} tensors, and {blocks:,} residual blocks"
        raise ValueError(f"{source} contradicts the folder's {file}: {fault}.")


@dataclass(frozen=True)
class Opened:
    """A checkpoint that can be loaded, or written in another format: its transformer's tensors, under our names, are
    read when asked for.

    `source` is where the weights are, and `layout` what its format is called (see `formats`).
    """

    config: ModelConfig
    tensors: Tensors
    tokenizer: MixedModalTokenizer
    settings: Settings
    card: dict[str, Any]
    source: Path
    layout: str = "native"

    @classmethod
    def of(cls, parts: Parts, source: Path) -> Opened:
        """A model at hand as one that was opened. Raises ValueError for a quantised one, whose weights are gone."""
        require_plain(parts.model)
        if has_adapter(parts.model):
            raise ValueError("The model has an adapter: merge_adapter(model) of checkpoints.adapters, and save that.")
        return cls(
            parts.model.config, tensors_of(parts.model), parts.tokenizer, parts.settings, parts.card, source, "model"
        )

    @property
    def folder(self) -> Path:
        """The folder of the weights."""
        return self.source if self.source.is_dir() else self.source.parent

    def read(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", weights: str | None = None
    ) -> Parts:
        """Everything, a tensor at a time, to where it is wanted; `weights` "int8" or "int4" are packed then."""
        require_layers(self.config, self.tensors, self.source)
        with outline():
            model = Transformer(self.config)
        tensors = dict(self.tensors)
        if weights is not None:
            if weights not in BITS:
                raise ValueError(f"No weights are called {weights!r}; there are {', '.join(BITS)}.")
            quantize(model, BITS[weights], device)
            tensors = pack_tensors(tensors, model, str(device))
        config = {"meta": "params.json", "gguf": "header"}.get(self.layout, "config.json")
        fill(model, tensors, self.source, dtype=dtype, device=device, config=config)
        return Parts(model.eval(), self.tokenizer, self.settings, self.card)
