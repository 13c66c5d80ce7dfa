"""What an experiment trains on, said in a few values, and opened when it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from chameleon_lab.chameleon import SHIPPED, Chameleon
from chameleon_lab.corpora.mixture import SCENE_WEIGHTS, Mixture, SceneBatches, Stage, sample_documents
from chameleon_lab.corpora.packing import Batch, bucket, pack, tokenize
from chameleon_lab.corpora.shards import Shards, identities
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.vocabulary import Vocabulary


@dataclass(frozen=True)
class Corpus:
    """Data opened for one training: `batches(place)` is a pure function, `held_out` is not trained on.

    `tokenizer` gives the one that it was written with, None where nobody knows it; it may take a moment.
    """

    vocabulary: Vocabulary
    batches: Callable[[int], Batch]
    held_out: Sequence[Batch] = ()
    tokenizer: Callable[[], MixedModalTokenizer | None] = lambda: None


class Data(Protocol):
    """What an experiment trains on, said in a few values."""

    def open(self, seed: int, steps: int | None) -> Corpus: ...


@dataclass(frozen=True)
class Scenes:
    """Documents about scenes, drawn as they are needed, in about `tokens` tokens a step.

    `tokenizer`: a tokenizer, or the folder or name of a model that has one. `held_out`: so many documents, drawn apart.
    `infill`: the share of documents that are rearranged to learn to fill holes (`corpora.infilling`).
    """

    tokenizer: str | Path | MixedModalTokenizer = "tiny"
    tokens: int = 2048
    weights: Mapping[str, float] = field(default_factory=lambda: dict(SCENE_WEIGHTS))
    held_out: int = 0
    infill: float = field(default=0.0, metadata={"later": True})

    def open(self, seed: int, steps: int | None) -> Corpus:
        tokenizer = self.tokenizer
        if not isinstance(tokenizer, MixedModalTokenizer):
            tokenizer = Chameleon.load(tokenizer).tokenizer
        batches = SceneBatches(tokenizer, seed, self.tokens, weights=dict(self.weights), infill=self.infill)
        rng = np.random.default_rng([seed, 3])
        apart: list[Batch] = []
        if self.held_out:
            documents = tokenize(sample_documents(rng, dict(self.weights), self.held_out), tokenizer)
            apart = bucket(documents, max(1, self.held_out // 16), tokenizer.vocabulary, rng)
        return Corpus(tokenizer.vocabulary, batches, apart, lambda: tokenizer)


@dataclass(frozen=True)
class Corpora:
    """Shards of documents, tokenized once, mixed by weights and packed into `rows` rows of `context` positions a step.

    `folders`: each part of the mixture, a folder or a shipped one's name; `stages`: the weights, equal ones unless
    given. `held_out`: shards that are not trained on, of which at most `apart` rows are looked at. `infill`: the share
    of documents that are rearranged to learn to fill holes (`corpora.infilling`).
    """

    folders: Mapping[str, Path | str]
    rows: int
    context: int
    stages: tuple[Stage, ...] = ()
    held_out: Path | str | None = None
    apart: int = 64
    infill: float = field(default=0.0, metadata={"later": True})

    def open(self, seed: int, steps: int | None) -> Corpus:
        parts = {name: opened_shards(folder) for name, folder in self.folders.items()}
        vocabulary = next(iter(parts.values())).vocabulary
        stages = self.stages or (Stage(dict.fromkeys(parts, 1.0)),)
        mixture = Mixture(
            parts, stages, vocabulary, context=self.context, rows=self.rows, seed=seed, infill=self.infill
        )
        held_out: list[Batch] = []
        if self.held_out is not None:
            apart = opened_shards(self.held_out)
            apart.require(vocabulary)
            held_out = pack(apart, self.context, vocabulary, self.rows)[: max(1, self.apart // self.rows)]
        return Corpus(vocabulary, mixture, held_out, partial(_shipped_tokenizer, next(iter(parts.values()))))


def _shipped_tokenizer(part: Shards) -> MixedModalTokenizer | None:
    """The shipped tokenizer, where the shards were written with that one."""
    tokenizer = Chameleon.load("tiny", device="cpu").tokenizer
    return tokenizer if identities(tokenizer) == part.tokenizers else None


def opened_shards(folder: Path | str) -> Shards:
    shipped = [shelf / folder for shelf in SHIPPED if (shelf / folder / "card.json").is_file()]
    return Shards(shipped[0] if shipped and not Path(folder).exists() else folder)


PAIRS = Corpora({"pairs": "pairs/train"}, rows=3, context=176, held_out="pairs/held_out")
"""The shipped pairs of scenes and captions, as tokens of the tiny model, half of them picture first."""
