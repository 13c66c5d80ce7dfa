"""Trainings of text tokenizers: a BPE, learned in one piece of work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chameleon_lab.corpora.mixture import SCENE_WEIGHTS, sample_documents
from chameleon_lab.documents import Text
from chameleon_lab.history import History
from chameleon_lab.monitors.alarms import Rule
from chameleon_lab.optimization import Recipe
from chameleon_lab.storage import write_file
from chameleon_lab.tokenizers.text import SentencePieceTokenizer
from chameleon_lab.training.modules import Budget, PacedModule
from chameleon_lab.training.run import Run
from chameleon_lab.training.samples import REQUESTS
from chameleon_lab.training.trainable import Exhibit, Prepared


def scene_texts(
    experiment: TextExperiment, weights: Mapping[str, float] = SCENE_WEIGHTS, documents: int = 6000
) -> list[str]:
    """The texts of documents about scenes."""
    drawn = sample_documents(np.random.default_rng([experiment.seed, 1]), dict(weights), documents)
    return [part.text for document in drawn for part in document if isinstance(part, Text)]


@dataclass(frozen=True)
class TextExperiment:
    """A training of a BPE of `pieces` pieces on the texts of `source`: everything that decides the result.

    It is one step, since SentencePiece learns all merges in one call: it can be stopped before that, and not within.
    """

    name: str
    pieces: int
    source: Callable[[TextExperiment], list[str]] = scene_texts
    seed: int = 0
    budget: Budget = field(default=Budget(steps=1), init=False)
    rules: tuple[Rule, ...] = field(default=(), init=False)
    checkpoints: int = field(default=0, init=False)
    precision: str = field(default="32-true", init=False)
    offers: tuple[str, ...] = field(default=(), init=False)

    def with_fixes(self, *fixes: Any) -> TextExperiment:
        """Raises ValueError, since between the beginning and the end there is nowhere to fork from."""
        raise ValueError(f"The text tokenizer {self.name!r} is learned in one step: train another one instead.")

    def prepare(self, folder: Path) -> Prepared:
        module = TextModule(self.pieces)
        return Prepared(module, lambda place: self.source(self), sampler=module.split_words)

    def finish(self, module: TextModule, history: History, folder: Path) -> SentencePieceTokenizer:
        """The tokenizer as it is written to `folder/text_tokenizer.model`."""
        write_file(folder / "text_tokenizer.model", module.model)
        return SentencePieceTokenizer(module.model)

    def product(self, folder: Path) -> SentencePieceTokenizer | None:
        path = folder / "text_tokenizer.model"
        return SentencePieceTokenizer.load(path) if path.exists() else None

    def run(self, folder: Path | str | None = None) -> Run:
        """Trains in the background, in `folder` or one named after the experiment below `runs`; returns at once."""
        return Run(self, folder).start()


class TextModule(PacedModule):
    """Learns a BPE in one step, of all texts at once. `model` is SentencePiece's file, empty until then."""

    def __init__(self, pieces: int) -> None:
        super().__init__(Recipe(), Budget(steps=1))
        self.pieces, self.model = pieces, b""

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return []

    def loss_and_values(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError("A BPE is counted, not descended.")

    def training_step(self, place: int, index: int) -> None:
        texts = self.batches(place)
        started = time.perf_counter()
        tokenizer = SentencePieceTokenizer.train(texts, self.pieces)
        self.seconds += time.perf_counter() - started
        self.step += 1
        self.model = tokenizer.model
        letters, pieces = sum(map(len, texts)), sum(len(tokenizer.encode(text)) for text in texts)
        self.values = {"pieces": float(tokenizer.size), "letters_per_piece": letters / max(1, pieces)}

    def split_words(self) -> list[Exhibit]:
        """A few sentences as the tokenizer cuts them."""
        tokenizer = SentencePieceTokenizer(self.model)
        return [Exhibit(text, None, " | ".join(map(tokenizer.spelling, tokenizer.encode(text)))) for text in REQUESTS]

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(self.model), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.model = bytes(state.tolist())
