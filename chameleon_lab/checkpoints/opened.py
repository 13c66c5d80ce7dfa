"""What a checkpoint holds, whatever its format: `Parts`, and `Opened`, whose transformer is not read yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from chameleon_lab.checkpoints.packed import packed
from chameleon_lab.checkpoints.tensors import Tensors, fill, tensors_of
from chameleon_lab.generation.engine import Settings
from chameleon_lab.quantization import BITS, quantize, require_plain
from chameleon_lab.tokenizers.image import NoDecoder, NoImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import NoTextTokenizer
from chameleon_lab.transformer import ModelConfig, Transformer


@dataclass
class Parts:
    """What a checkpoint holds: a model, its tokenizer, its generation defaults, and its card (plain values)."""

    model: Transformer
    tokenizer: MixedModalTokenizer
    settings: Settings = field(default_factory=Settings)
    card: dict[str, Any] = field(default_factory=dict)


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
        return cls(
            parts.model.config, tensors_of(parts.model), parts.tokenizer, parts.settings, parts.card, source, "model"
        )

    @property
    def missing(self) -> tuple[str, ...]:
        """What the folder lacks, in words."""
        text, image = self.tokenizer.text, self.tokenizer.image
        no_image = isinstance(image, NoImageTokenizer)
        no_decoder = not no_image and isinstance(image.decoder, NoDecoder)
        gaps = {
            "no text tokenizer: text can neither be read nor written": isinstance(text, NoTextTokenizer),
            "no image tokenizer: pictures can neither be read nor written": no_image,
            "no picture decoder: pictures can be read, not written": no_decoder,
        }
        return tuple(words for words, missing in gaps.items() if missing)

    def read(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", weights: str | None = None
    ) -> Parts:
        """Everything, a tensor at a time, to where it is wanted; `weights` "int8" or "int4" are packed then."""
        with torch.device("meta"):
            model = Transformer(self.config)
        tensors = dict(self.tensors)
        if weights is not None:
            if weights not in BITS:
                raise ValueError(f"No weights are called {weights!r}; there are {', '.join(BITS)}.")
            quantize(model, BITS[weights], device)
            tensors = packed(tensors, model, str(device))
        config = "params.json" if self.layout == "meta" else "config.json"
        fill(model, tensors, self.source, dtype=dtype, device=device, config=config)
        return Parts(model.eval(), self.tokenizer, self.settings, self.card)
