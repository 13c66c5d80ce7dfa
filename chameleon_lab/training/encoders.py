"""The training of the two-tower encoder: pictures and captions of one batch, each to find its own (InfoNCE)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from chameleon_lab.corpora.conversations import DRAW_OPENINGS
from chameleon_lab.corpora.flags import sample_background, sample_flags
from chameleon_lab.corpora.scenes import sample_scene
from chameleon_lab.documents import Document
from chameleon_lab.history import History
from chameleon_lab.monitors.alarms import NotANumber, Rule
from chameleon_lab.optimization import CoolDown, Recipe
from chameleon_lab.parts import require_count
from chameleon_lab.retrieval.encoders import TwoTower, TwoTowerConfig
from chameleon_lab.training.modules import Budget, PacedModule
from chameleon_lab.training.run import Run
from chameleon_lab.training.trainable import Prepared

Pairs = Callable[[int, int], list[Document]]
"""Captioned pictures as a function of (step, how many)."""


@dataclass(frozen=True)
class DrawnPairs:
    """Scenes with their captions and flags with their colours, every other one as a request for it, drawn as they are
    needed; names of flags are not among the words, so that each keeps the rows that it has by chance."""

    seed: int = 0

    def __call__(self, step: int, count: int) -> list[Document]:
        rng = np.random.default_rng([self.seed, 21, step])
        scenes = [sample_scene(rng) for _ in range(count - count // 2)]
        flags = [replace(flag, name=" ".join(flag.colours)) for flag in sample_flags(rng, count // 2)]
        documents = [Document.of(scene.caption(), scene.picture()) for scene in scenes]
        documents += [flag.document(sample_background(rng)) for flag in flags]
        return [
            Document.of(f"{DRAW_OPENINGS[int(rng.integers(len(DRAW_OPENINGS)))]} {each.text}", *each.pictures)
            if place % 2
            else each
            for place, each in enumerate(documents)
        ]


@dataclass(frozen=True)
class DocumentPairs:
    """Captioned pictures that are at hand, in an order of the seed. Raises ValueError for fewer than two of them, and
    for one that lacks words or a picture."""

    documents: tuple[Document, ...] = field(metadata={"plain": len})
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.documents) < 2:
            raise ValueError(
                f"An encoder learns to tell pairs apart: {len(self.documents)} are too few, give 2 or more."
            )
        for index, document in enumerate(self.documents):
            if not (document.text.strip() and document.pictures):
                raise ValueError(f"Document {index} is no picture with a caption: leave it out.")

    def __call__(self, step: int, count: int) -> list[Document]:
        rng = np.random.default_rng([self.seed, 22, step])
        rows = rng.choice(len(self.documents), min(count, len(self.documents)), replace=False)
        return [self.documents[row] for row in rows]


@dataclass(frozen=True)
class PairBatch:
    """B texts, and the picture of each: pixels_BCHW in [-1, 1]."""

    texts: Sequence[str]
    pixels_BCHW: Tensor

    def to(self, device: torch.device | str) -> PairBatch:
        return PairBatch(self.texts, self.pixels_BCHW.to(device))


class EncoderModule(PacedModule):
    """Trains both towers: of a batch's pairs, each text is to find its picture and each picture its text."""

    def __init__(self, encoder: TwoTower, recipe: Recipe, budget: Budget) -> None:
        super().__init__(recipe, budget)
        self.encoder = encoder

    def loss_and_values(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        texts_BD, pictures_BD = self.encoder.text_vectors(batch.texts), self.encoder.picture_vectors(batch.pixels_BCHW)
        logits_BB = self.encoder.sharpness.exp().clamp(max=100) * texts_BD @ pictures_BD.T
        own_B = torch.arange(len(logits_BB), device=logits_BB.device)
        loss = (functional.cross_entropy(logits_BB, own_B) + functional.cross_entropy(logits_BB.T, own_B)) / 2
        return loss, {"loss": loss, "accuracy": (logits_BB.argmax(1) == own_B).float().mean()}


ENCODER_RECIPE = Recipe(
    rate=3e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0, warm_up=20, schedule=CoolDown(0.5), muon_rate=0.0
)
"""Without weight decay, which would take the rows of words that no batch holds."""


@dataclass(frozen=True)
class EncoderExperiment:
    """A training of a `TwoTower` on captioned pictures: everything that decides the result but the machine."""

    name: str = "encoder"
    encoder: TwoTowerConfig = field(default_factory=TwoTowerConfig)
    pairs: Pairs = field(default_factory=DrawnPairs)
    batch: int = 64
    recipe: Recipe = field(default_factory=lambda: ENCODER_RECIPE)
    budget: Budget = field(default_factory=lambda: Budget(steps=150))
    seed: int = 0
    rules: tuple[Rule, ...] = (NotANumber(),)
    checkpoints: int = 0
    precision: str = "32-true"
    offers: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        require_count(self.batch, "pairs of a batch", 2)

    def with_fixes(self, *fixes: Any) -> EncoderExperiment:
        """The same: fixes are a transformer's. Raises ValueError for any."""
        if fixes:
            raise ValueError(f"{', '.join(map(repr, fixes))}: fixes are for transformers, not for encoders.")
        return self

    def prepare(self, folder: Path) -> Prepared:
        torch.manual_seed(self.seed)
        encoder = TwoTower(self.encoder)
        encoder.count_words(document.text for step in range(8) for document in self.pairs(step, self.batch))
        return Prepared(EncoderModule(encoder, self.recipe, self.budget), partial(self._batch, encoder))

    def _batch(self, encoder: TwoTower, step: int) -> PairBatch:
        documents = self.pairs(step, self.batch)
        return PairBatch([each.text for each in documents], encoder.pixels([each.pictures[0] for each in documents]))

    def finish(self, module: EncoderModule, history: History, folder: Path) -> TwoTower:
        """The encoder as it is written to `folder/encoder`, in float16."""
        card = {"pairs": type(self.pairs).__name__, "steps": len(history.records), "seed": self.seed}
        module.encoder.save(folder / "encoder", card)
        return TwoTower.load(folder / "encoder")

    def product(self, folder: Path) -> TwoTower | None:
        return TwoTower.load(folder / "encoder") if (folder / "encoder").exists() else None

    def run(self, folder: Path | str | None = None) -> Run:
        """Trains in the background, in `folder` or one named after the experiment below `runs`; returns at once."""
        return Run(self, folder).start()
