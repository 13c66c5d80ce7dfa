"""What an experiment trains on, said in a few values, and opened when it begins."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from chameleon_lab.chameleon import SHIPPED, Chameleon
from chameleon_lab.corpora.infilling import CM3LEON_SPANS, Spans
from chameleon_lab.corpora.instructions import (
    TASK_SHARES,
    TEMPLATES,
    InstructionBatches,
    Templates,
    check_shares,
    cutouts,
    instruction_documents,
    instruction_pairs,
    sample_examples,
)
from chameleon_lab.corpora.mixture import SCENE_WEIGHTS, Mixture, SceneBatches, Stage, sample_documents
from chameleon_lab.corpora.packing import Batch, TokenizedDocument, bucket, collate, pack, tokenize
from chameleon_lab.corpora.readers import Skipped
from chameleon_lab.corpora.shards import Shards, identities
from chameleon_lab.documents import Document
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.training.ahead import made_ahead
from chameleon_lab.vocabulary import Vocabulary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Data opened for one training: `batches(place)` is a pure function, `held_out` is not trained on.

    `tokenizer` gives the one that it was written with, None where nobody knows it; it may take a moment. `lengths`: the
    positions of each document, where they are listed, and not drawn as they are needed.
    """

    vocabulary: Vocabulary
    batches: Callable[[int], Batch]
    held_out: Sequence[Batch] = ()
    tokenizer: Callable[[], MixedModalTokenizer | None] = lambda: None
    lengths: Sequence[int] = ()

    def say_longer(self, context: int) -> int:
        """Warns of documents that are longer than a model's context, and how many they are."""
        if longer := [length for length in self.lengths if length > context]:
            log.warning(
                "%s of %s documents are longer than the model's context of %s tokens, the longest has %s: a training "
                "ends each there. Shorten them, or give the model a larger context.",
                *(f"{each:,}" for each in (len(longer), len(self.lengths), context, max(longer))),
            )
        return len(longer)


class Data(Protocol):
    """What an experiment trains on, said in a few values."""

    def open(self, seed: int, steps: int | None) -> Corpus: ...


@dataclass(frozen=True)
class Scenes:
    """Documents about scenes, drawn as they are needed, in about `tokens` tokens a step.

    `tokenizer`: a tokenizer, or the folder or name of a model that has one. `held_out`: so many documents, drawn apart.
    `infill`: the share of documents that are rearranged to learn to fill holes, by `spans` (`corpora.infilling`).
    """

    tokenizer: str | Path | MixedModalTokenizer = "tiny"
    tokens: int = 2048
    weights: Mapping[str, float] = field(default_factory=lambda: dict(SCENE_WEIGHTS))
    held_out: int = 0
    infill: float = field(default=0.0, metadata={"later": True})
    spans: Spans = field(default=CM3LEON_SPANS, metadata={"later": True})

    def open(self, seed: int, steps: int | None) -> Corpus:
        tokenizer = self.tokenizer
        if not isinstance(tokenizer, MixedModalTokenizer):
            tokenizer = Chameleon.load(tokenizer).tokenizer
        batches = SceneBatches(
            tokenizer, seed, self.tokens, weights=dict(self.weights), infill=self.infill, spans=self.spans
        )
        rng = np.random.default_rng([seed, 3])
        apart: list[Batch] = []
        if self.held_out:
            documents = tokenize(sample_documents(rng, dict(self.weights), self.held_out), tokenizer)
            apart = bucket(documents, max(1, self.held_out // 16), tokenizer.vocabulary, rng)
        return Corpus(tokenizer.vocabulary, batches, apart, lambda: tokenizer)


def _documents_identity(documents: Sequence[Document]) -> str:
    """How many documents there are, and eight letters of what they hold."""
    digest = hashlib.sha256("\n".join(document.to_json() for document in documents).encode())
    return f"{len(documents)} documents {digest.hexdigest()[:8]}"


@dataclass(frozen=True, eq=False)
class ListedDocuments:
    """A person's documents as they are: about `tokens` tokens a step, all of them once before any comes again.

    `tokenizer`: a tokenizer, or the folder or name of a model that has one. Of the documents the share `held_out` is
    not trained on, chosen by the seed. `beside`: data of what the model can do already, from which every so many steps
    a batch comes, the share `beside_share` of all: what keeps a fine-tuned model what it was.
    """

    documents: Sequence[Document] = field(metadata={"plain": _documents_identity})
    tokenizer: str | Path | MixedModalTokenizer = "tiny"
    tokens: int = 2048
    held_out: float = 0.1
    beside: Data | None = None
    beside_share: float = 0.5

    def __post_init__(self) -> None:
        """Raises ValueError for what are no documents, too few to hold one out, and shares beyond 0 and 1."""
        listed = isinstance(self.documents, Iterable) and not isinstance(self.documents, Document)
        if not listed or not all(isinstance(each, Document) for each in self.documents):
            raise ValueError(
                "Own documents come in a list, each a Document; `corpora.readers` has readers of files and folders."
            )
        if not (0 <= self.held_out < 1 and 0 <= self.beside_share < 1):
            raise ValueError(
                f"held_out and beside_share are shares from 0 to below 1, not {self.held_out} and {self.beside_share}."
            )
        if len(self.documents) < 2:
            raise ValueError(f"There are {len(self.documents)} documents, and a training needs two or more.")

    def open(self, seed: int, steps: int | None) -> Corpus:
        tokenizer = self.tokenizer
        if not isinstance(tokenizer, MixedModalTokenizer):
            tokenizer = Chameleon.load(tokenizer).tokenizer
        order = np.random.default_rng([seed, 41]).permutation(len(self.documents))
        documents = tokenize([self.documents[place] for place in order], tokenizer)
        count = round(self.held_out * len(documents))
        apart, rest = documents[:count], documents[count:]
        held_out = [collate(apart[start : start + 16], tokenizer.vocabulary) for start in range(0, count, 16)]
        own = ListedBatches(rest, tokenizer.vocabulary, seed, self.tokens)
        beside = None if self.beside is None else self.beside.open(seed, steps)
        if beside is not None and beside.vocabulary != tokenizer.vocabulary:
            raise ValueError("The data beside has another vocabulary than the documents: give both one tokenizer.")
        batches = own if beside is None else Alternating(own, beside.batches, self.beside_share)
        return Corpus(tokenizer.vocabulary, batches, held_out, lambda: tokenizer, _positions(documents))


def _positions(documents: Sequence[TokenizedDocument]) -> list[int]:
    return [len(each.tokens) - 1 for each in documents]


class ListedBatches:
    """Batches of listed documents, a pure function of (seed, place): each round goes through all in another order."""

    def __init__(self, documents: list[TokenizedDocument], vocabulary: Vocabulary, seed: int, tokens: int) -> None:
        self.documents, self.vocabulary, self.seed = documents, vocabulary, seed
        mean = sum(len(each.tokens) for each in documents) / len(documents)
        self.batches_a_round = max(1, round(mean * len(documents) / tokens))

    def __call__(self, place: int) -> Batch:
        number, at = divmod(place, self.batches_a_round)
        order = np.random.default_rng([self.seed, 42, number]).permutation(len(self.documents))
        part = np.array_split(order, self.batches_a_round)[at]
        return collate([self.documents[each] for each in part], self.vocabulary)


class Alternating:
    """Batches of two sources, of which the second gives a share of all, evenly spread; each goes on where it was."""

    def __init__(self, one: Callable[[int], Batch], other: Callable[[int], Batch], share: float) -> None:
        self.one, self.other, self.share = one, other, share

    def __call__(self, place: int) -> Batch:
        others, after = int(place * self.share + 1e-9), int((place + 1) * self.share + 1e-9)
        return self.other(others) if after > others else self.one(place - others)


@dataclass(frozen=True)
class Instructions:
    """Instructions of many tasks about scenes, drawn as they are needed, in about `tokens` tokens a step.

    `shares`: by task (`corpora.instructions.TASK_SHARES`). Of all documents, the share `earlier` are those that the
    tiny model was trained on, so that it stays what it is; where `pairs` are, a file of a person's own (see
    `instruction_pairs`) or a folder of pictures with alpha (`cutouts`), `own` are of these. `learn`: loss on "answer",
    or on "all" of a document as CM3Leon; `infill`: the share that is rearranged besides; `templates`: by their name
    there. `held_out`: so many documents, drawn apart.
    """

    tokenizer: str | Path | MixedModalTokenizer = "tiny"
    tokens: int = 2048
    shares: Mapping[str, float] = field(default_factory=lambda: dict(TASK_SHARES))
    earlier: float = 0.1
    pairs: str | Path | None = None
    own: float = 0.5
    learn: Literal["answer", "all"] = "answer"
    infill: float = 0.0
    held_out: int = 0
    templates: Literal["brief", "cm3leon"] = "brief"

    def __post_init__(self) -> None:
        """Raises ValueError for shares that are none, and templates that nobody knows."""
        check_shares(self.shares)
        if self.templates not in TEMPLATES:
            raise ValueError(f"No templates are called {self.templates!r}; there are {', '.join(TEMPLATES)}.")
        own = self.own if self.pairs is not None else 0.0
        if min(self.earlier, own) < 0 or self.earlier + own > 1:
            raise ValueError(f"Shares of earlier documents and own pairs are 0 to 1, not {self.earlier} and {own}.")
        if self.learn not in ("answer", "all"):
            raise ValueError(f"Loss is taken on the 'answer' or on 'all', not on {self.learn!r}.")

    def open(self, seed: int, steps: int | None) -> Corpus:
        """Raises ValueError for pairs of which none can be read, saying what is wrong with the first."""
        tokenizer = self.tokenizer
        if not isinstance(tokenizer, MixedModalTokenizer):
            tokenizer = Chameleon.load(tokenizer, device="cpu").tokenizer
        templates = TEMPLATES[self.templates]
        own = [] if self.pairs is None else tokenize(_documents_of_pairs(self.pairs, templates, self.learn), tokenizer)
        batches = partial(
            InstructionBatches,
            tokenizer,
            seed,
            self.tokens,
            dict(self.shares),
            earlier=self.earlier,
            own=0.0 if self.pairs is None else self.own,
            own_documents=own,
            learn=self.learn,
            infill=self.infill,
            templates=templates,
        )
        apart: list[Batch] = []
        if self.held_out:
            rng = np.random.default_rng([seed, 33])
            examples = sample_examples(rng, self.held_out, self.shares, "held_out")
            documents = tokenize([templates.document(each.pair) for each in examples], tokenizer)
            apart = bucket(documents, max(1, self.held_out // 16), tokenizer.vocabulary, rng)
        return Corpus(tokenizer.vocabulary, made_ahead(batches), apart, lambda: tokenizer, _positions(own))


def _documents_of_pairs(path: Path | str, templates: Templates, learn: Literal["answer", "all"]) -> list[Document]:
    documents, skips = list[Document](), list[Skipped]()
    pairs = cutouts(path) if Path(path).is_dir() else instruction_pairs(path, None, templates)
    for each in instruction_documents(pairs, templates, learn):
        (skips if isinstance(each, Skipped) else documents).append(each)  # pyright: ignore[reportArgumentType]
    for skip in skips:
        log.warning("Skipped: %s: %s", *skip)
    if not documents:
        why = f": {skips[0].name}: {skips[0].reason}" if skips else ", it is empty"
        raise ValueError(f"{path} holds no pair that can be read{why}.")
    return documents


@dataclass(frozen=True)
class Corpora:
    """Shards of documents, tokenized once, mixed by weights and packed into `rows` rows of `context` positions a step.

    `folders`: each part of the mixture, a folder or a shipped one's name; `stages`: the weights, equal ones unless
    given. `held_out`: shards that are not trained on, of which at most `apart` rows are looked at. `infill`: the share
    of documents that are rearranged to learn to fill holes, by `spans` (`corpora.infilling`).
    """

    folders: Mapping[str, Path | str]
    rows: int
    context: int
    stages: tuple[Stage, ...] = ()
    held_out: Path | str | None = None
    apart: int = 64
    infill: float = field(default=0.0, metadata={"later": True})
    spans: Spans = field(default=CM3LEON_SPANS, metadata={"later": True})

    def open(self, seed: int, steps: int | None) -> Corpus:
        parts = {name: opened_shards(folder) for name, folder in self.folders.items()}
        vocabulary = next(iter(parts.values())).vocabulary
        stages = self.stages or (Stage(dict.fromkeys(parts, 1.0)),)
        mixture = Mixture(
            parts,
            stages,
            vocabulary,
            context=self.context,
            rows=self.rows,
            seed=seed,
            infill=self.infill,
            spans=self.spans,
        )
        for name, count in mixture.longer.items():
            if count:
                log.warning(
                    "%s of the %s documents of %r are longer than the %s positions of a row: they are split there, "
                    "images never, and no piece sees the one before it.",
                    *(f"{count:,}", f"{len(parts[name]):,}", name, f"{self.context:,}"),
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
