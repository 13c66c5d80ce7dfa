"""Mixtures: which documents come, in what shares, step after step.

Everything here is arithmetic on (seed, step): a training that resumes at any step asks for that step's batch, and
nothing is replayed.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from chameleon_lab.corpora.conversations import SCENE_KINDS
from chameleon_lab.corpora.infilling import CM3LEON_SPANS, SPAN_GROWTH, Spans, holds_sentinels
from chameleon_lab.corpora.packing import Batch, TokenizedDocument, bucket, fit, lay_out, split_document, tokenize
from chameleon_lab.corpora.scenes import sample_where
from chameleon_lab.corpora.shards import Shards
from chameleon_lab.documents import Document
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.vocabulary import Vocabulary

SCENE_WEIGHTS = {
    "caption_first": 0.10,
    "picture_first": 0.10,
    "drawing": 0.26,
    "asking": 0.16,
    "editing": 0.22,
    "conversation": 0.12,
    "story": 0.02,
    "plain_text": 0.02,
}
"""Shares of documents. Captions and pictures come first equally often."""


def sample_documents(rng: np.random.Generator, weights: dict[str, float], count: int) -> list[Document]:
    """`count` documents of the kinds of `conversations.SCENE_KINDS`, in these shares."""
    kinds = rng.choice(list(weights), size=count, p=np.array(list(weights.values())) / sum(weights.values()))
    return [SCENE_KINDS[str(kind)](rng) for kind in kinds]


def scene_pairs(count: int, seed: int = 0, where: str = "trainable") -> Iterator[Document]:
    """`count` scenes with their captions, caption first; `where` is a side of the split (`scenes.sample_where`)."""
    rng = np.random.default_rng([seed, 5])
    for _ in range(count):
        scene = sample_where(rng, where)
        yield Document.of(scene.caption(), scene.picture())


@dataclass
class SceneBatches:
    """Batches of scene documents, a pure function of (seed, step): `batches(step) -> Batch`.

    Documents are made `pool` batches at a time, so that like lengths share a batch; about `tokens` tokens in each. The
    share `infill` of them is rearranged by `spans`, to learn to fill holes.
    """

    tokenizer: MixedModalTokenizer
    seed: int = 0
    tokens: int = 2048
    pool: int = 16
    weights: dict[str, float] = field(default_factory=lambda: dict(SCENE_WEIGHTS))
    infill: float = 0.0
    spans: Spans = CM3LEON_SPANS

    MEAN_LENGTH = 114
    """Tokens of an average document under `SCENE_WEIGHTS`, measured by tests/test_corpora.py."""

    def __post_init__(self) -> None:
        _check_infill(self.infill, self.tokenizer.vocabulary)
        self._pool_index, self._batches = -1, list[Batch]()

    def __call__(self, step: int) -> Batch:
        index, place = divmod(step, self.pool)
        if index != self._pool_index:
            rng = np.random.default_rng([self.seed, index])
            count = self.pool * max(1, self.tokens // self.MEAN_LENGTH)
            documents = tokenize(sample_documents(rng, self.weights, count), self.tokenizer)
            vocabulary = self.tokenizer.vocabulary
            documents = infilled(documents, self.infill, self.spans, vocabulary, (self.seed, 14, index))
            self._batches = bucket(documents, self.pool, vocabulary, rng)
            self._pool_index = index
        return self._batches[place % len(self._batches)]


def infilled(
    documents: list[TokenizedDocument],
    share: float,
    spans: Spans,
    vocabulary: Vocabulary,
    seed: Sequence[int],
    room: int | None = None,
) -> list[TokenizedDocument]:
    """The documents, a share of them rearranged for infilling; those that hold sentinels already stay as they are.

    All together get at most `room` tokens longer: what spans that takes are left out.
    """
    if not share:
        return documents
    rng, result = np.random.default_rng(seed), list[TokenizedDocument]()
    for document in documents:
        if rng.random() < share and not holds_sentinels(document.tokens, vocabulary):
            length = len(document.tokens)
            document = spans.rearrange_document(document, rng, vocabulary, room)
            room = None if room is None else room - (len(document.tokens) - length)
        result.append(document)
    return result


def _check_infill(share: float, vocabulary: Vocabulary) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"infill is the share of documents that are rearranged, 0 to 1, not {share}.")
    if share:
        vocabulary.require_sentinels(2)


@dataclass(frozen=True)
class Stage:
    """Weights of a mixture's parts from the step `start` on; only their ratios count. A part not named has none.

    `infill`: the share of documents that are rearranged meanwhile; None for the mixture's.
    """

    weights: Mapping[str, float]
    start: int = 0
    infill: float | None = field(default=None, metadata={"later": True})

    def __str__(self) -> str:
        parts = [f"{name} {share:.0%}" for name, share in _shares(self.weights).items()]
        return ", ".join(parts + ([] if self.infill is None else [f"{self.infill:.0%} rearranged"]))


def two_stages(
    first: Mapping[str, float], second: Mapping[str, float], steps: int, share: float = 0.8
) -> tuple[Stage, Stage]:
    """Chameleon's schedule (arXiv 2405.09818, section 2.2): after 80 % of the steps, the weights of stage one are
    halved, and the sources of stage two take the other half.

    A part that both name has both its shares. Raises ValueError when either stage would have no step.
    """
    start = round(share * steps)
    if not 0 < start < steps:
        raise ValueError(f"{share:.0%} of {steps} steps leave a stage without any: {start} and {steps - start}.")
    halves = Counter[str]()
    for weights in (first, second):
        for name, weight in _shares(weights).items():
            halves[name] += weight / 2  # pyright: ignore[reportArgumentType]
    return Stage(dict(first)), Stage(dict(halves), start)


class Mixture:
    """Batches of `rows` rows of `context` positions, a pure function of (seed, step): `mixture(step) -> Batch`.

    A step is a batch here: processes that share a training take one each, and a stage's start counts them all.

    Each part (shards, or any sequence of tokenized documents) is laid out in rows once, with little padding; a row is
    of one part. Weights are therefore shares of rows, and so, rows being about full, of tokens. A part goes through
    all its rows, then through all again in another order; a change of weights loses and repeats none. Documents longer
    than the context are split, images never cut; pieces without a token to learn are left out.

    With `infill`, that share of the pieces is rearranged by `spans`, anew in every epoch; a stage may have another
    share. Rows then leave room for the spans to be expected and two standard deviations more; where that is not enough,
    the last spans are left out.

    Raises ValueError on an empty part, tokens of another vocabulary, and weights that are unknown, negative or all 0.
    """

    def __init__(
        self,
        parts: Mapping[str, Sequence[TokenizedDocument]],
        stages: Sequence[Stage],
        vocabulary: Vocabulary,
        *,
        context: int,
        rows: int,
        seed: int = 0,
        infill: float = 0.0,
        spans: Spans = CM3LEON_SPANS,
    ) -> None:
        _check_infill(infill, vocabulary)
        if min(context, rows) < 1:
            raise ValueError(f"Rows and their context must be 1 or more, not {rows} and {context}.")
        if not parts:
            raise ValueError("A mixture needs at least one part.")
        marks = {name: part.tokenizers for name, part in parts.items() if isinstance(part, Shards)}
        for one, other in pairwise(marks):
            if marks[one] != marks[other]:
                raise ValueError(f"Parts {one!r} and {other!r} were written with different tokenizers: use one.")
        self.vocabulary, self.context, self.rows, self.seed = vocabulary, context, rows, seed
        self.infill, self.spans = infill, spans
        self.stages = _check_stages(stages, list(parts))
        for stage in self.stages:
            _check_infill(stage.infill or 0.0, vocabulary)
        most = max(self._infill(stage) for stage in self.stages)
        self._parts = {
            name: _Rows(name, documents, vocabulary, context, seed, _spare(documents, context, most, spans))
            for name, documents in parts.items()
        }
        self._order = lru_cache(maxsize=2)(self._draw)

    def __call__(self, step: int) -> Batch:
        if step < 0:
            raise ValueError(f"Steps are counted from 0; there is no step {step}.")
        counts, names = self._rows_before(step * self.rows), list(self._parts)
        infill = self._infill(self._stage(step))
        contents: list[list[TokenizedDocument]] = []
        for row in range(step * self.rows, (step + 1) * self.rows):
            name = names[self._part(row)]
            pieces = self._parts[name][counts[name]]
            room = self.context - sum(len(piece.tokens) - 1 for piece in pieces)
            contents.append(infilled(pieces, infill, self.spans, self.vocabulary, (self.seed, 15, row), room))
            counts[name] += 1
        return lay_out(contents, self.context, self.vocabulary)

    def shares(self, step: int) -> dict[str, float]:
        """The weights at a step, scaled to sum to 1."""
        return dict.fromkeys(self._parts, 0.0) | _shares(self._stage(step).weights)

    def epochs(self, step: int) -> dict[str, float]:
        """How many epochs of each part lie before a step."""
        return {name: count / len(self._parts[name]) for name, count in self._rows_before(step * self.rows).items()}

    @property
    def padding(self) -> dict[str, float]:
        """The share of positions in each part's rows that are padding."""
        return {name: part.padding for name, part in self._parts.items()}

    @property
    def longer(self) -> dict[str, int]:
        """How many documents of each part are longer than the context, so that they are split."""
        return {name: part.longer for name, part in self._parts.items()}

    def reweighted(self, weights: Mapping[str, float], step: int = 0) -> Mixture:
        """The same mixture up to `step`, and from there on these weights: they replace those of every later stage.

        Each part goes on with its next row.
        """
        before = [stage for stage in self.stages if stage.start < step]
        now = Stage(dict(weights), step, self._stage(step).infill)
        later = [stage for stage in self.stages if stage.start > step and stage.infill is not None]
        changed = copy.copy(self)
        changed.stages = _check_stages(
            [*before, now, *(replace(stage, weights=dict(weights)) for stage in later)], list(self._parts)
        )
        changed._order = lru_cache(maxsize=2)(changed._draw)
        return changed

    BLOCK = 4096
    """Rows over which shares are exact: within a block the parts come in random order."""

    def _stage(self, step: int) -> Stage:
        return [stage for stage in self.stages if stage.start <= step][-1]

    def _infill(self, stage: Stage) -> float:
        return self.infill if stage.infill is None else stage.infill

    def _part(self, row: int) -> int:
        """The number of the part that this row, counted from step 0, is of."""
        start = self._stage(row // self.rows).start
        block, place = divmod(row - start * self.rows, self.BLOCK)
        return int(self._order(start, block)[place])

    def _rows_before(self, row: int) -> Counter[str]:
        """How many rows of each part stand before this one."""
        names, counts = list(self._parts), np.zeros(len(self._parts), np.int64)
        starts = [stage.start * self.rows for stage in self.stages]
        for stage, start, stop in zip(self.stages, starts, [*starts[1:], row], strict=True):
            blocks, rest = divmod(max(0, min(stop, row) - start), self.BLOCK)
            counts += blocks * self._quota(stage)
            if rest:
                counts += np.bincount(self._order(stage.start, blocks)[:rest], minlength=len(names))
        return Counter(dict(zip(names, counts.tolist(), strict=True)))

    def _draw(self, start: int, block: int) -> np.ndarray:
        """The parts of a block's rows, by number, in the stage that starts at this step."""
        rng = np.random.default_rng([self.seed, 6, start, block])
        return rng.permutation(np.repeat(np.arange(len(self._parts)), self._quota(self._stage(start))))

    def _quota(self, stage: Stage) -> np.ndarray:
        """How many rows of a block each part has: its share rounded to whole numbers, but at least one."""
        shares = dict.fromkeys(self._parts, 0.0) | _shares(stage.weights)
        exact = self.BLOCK * np.array(list(shares.values()))
        quota = np.maximum(np.floor(exact), exact > 0).astype(np.int64)
        left = self.BLOCK - int(quota.sum())
        quota[np.argsort(quota - exact, kind="stable")[: max(left, 0)]] += 1
        quota[quota.argmax()] += min(left, 0)
        return quota


def _spare(documents: Sequence[TokenizedDocument], context: int, infill: float, spans: Spans) -> int:
    """Positions of a row that its spans, on their way to the end, will take."""
    if not infill or not len(documents):
        return 0
    lengths = documents.lengths if isinstance(documents, Shards) else [len(each.tokens) for each in documents]
    count = infill * spans.mean * max(1.0, context / max(1.0, float(np.mean(lengths))))
    return SPAN_GROWTH * math.ceil(count + 2 * math.sqrt(count * (1 + spans.mean)))


class _Rows:
    """One part laid out in rows: the pieces of row `i`, for any `i`, epoch after epoch. Of each row's positions as many
    stay free as `spare` says."""

    def __init__(
        self,
        name: str,
        documents: Sequence[TokenizedDocument],
        vocabulary: Vocabulary,
        context: int,
        seed: int,
        spare: int = 0,
    ) -> None:
        if isinstance(documents, Shards):
            documents.require(vocabulary)
        if not len(documents):
            raise ValueError(f"Part {name!r} of the mixture is empty: it has no documents.")
        if spare >= context:
            raise ValueError(
                f"Rows of {context} positions have no room to rearrange anything: {spare} would stay free."
            )
        self.documents, self.vocabulary, self.context = documents, vocabulary, context - spare
        self._key = (seed, 7, zlib.crc32(name.encode()))
        self._pieces_P3 = self._cut()
        if not len(self._pieces_P3):
            raise ValueError(f"Part {name!r} of the mixture has no token to learn in its {len(documents)} documents.")
        positions_P = self._pieces_P3[:, 2] - self._pieces_P3[:, 1]
        shuffled = np.random.default_rng([*self._key, 0]).permutation(len(positions_P))
        row_of = np.empty(len(positions_P), np.int64)
        row_of[shuffled] = fit(positions_P[shuffled], self.context)
        self._order = np.argsort(row_of, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(row_of))])
        self.longer = len(np.unique(self._pieces_P3[self._pieces_P3[:, 1] > 0, 0]))
        self.padding = 1 - float(positions_P.sum()) / (len(self) * context)
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> list[TokenizedDocument]:
        epoch, place = divmod(index, len(self))
        row = self._epoch(epoch)[place]
        pieces = self._pieces_P3[self._order[self._starts[row] : self._starts[row + 1]]]
        return [
            TokenizedDocument(*(array[start : stop + 1] for array in self.documents[int(number)]))
            for number, start, stop in pieces
        ]

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([*self._key, 1 + epoch]).permutation(len(self))

    def _cut(self) -> np.ndarray:
        """(document, first position, position after the last) of each piece that has a token to learn."""
        documents, whole = self.documents, np.empty(0, np.int64)
        positions = np.empty(0, np.int64)
        if isinstance(documents, Shards):  # each of its documents has a token to learn
            positions = documents.lengths - 1
            whole = np.flatnonzero(positions <= self.context)
        cut: list[tuple[int, int, int]] = []
        for number in np.setdiff1d(np.arange(len(documents)), whole).tolist():
            start = 0
            for piece in split_document(documents[number], self.context, self.vocabulary):
                stop = start + len(piece.tokens) - 1
                if piece.learn[1:].any():
                    cut.append((number, start, stop))
                start = stop
        pieces_P3 = np.concatenate(
            [np.stack([whole, 0 * whole, positions[whole]], 1), np.array(cut, np.int64).reshape(-1, 3)]
        )
        return pieces_P3[np.lexsort((pieces_P3[:, 1], pieces_P3[:, 0]))]


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    wrong = {name: weight for name, weight in weights.items() if not 0 <= weight < float("inf")}
    if wrong or not total > 0:
        raise ValueError(f"Weights must be 0 or more and not all 0; these are {dict(weights)}.")
    return {name: weight / total for name, weight in weights.items()}


def _check_stages(stages: Sequence[Stage], names: Sequence[str]) -> tuple[Stage, ...]:
    starts = [stage.start for stage in stages]
    if not starts or starts[0] != 0 or any(one >= other for one, other in pairwise(starts)):
        raise ValueError(f"Stages must start at step 0 and later ones later; these start at {starts}.")
    for stage in stages:
        unknown = sorted(set(_shares(stage.weights)) - set(names))
        if unknown:
            raise ValueError(f"The mixture has no part {', '.join(unknown)}; its parts are {', '.join(names)}.")
    return tuple(stages)
