"""The CM3 objective: spans of a document move to its end, so that next-token loss also teaches to fill holes.

```
<s> a red <sentinel:0> left of a blue square </s> <sentinel:0> circle <eoss>
```

Each span leaves a sentinel in its place, and follows at the end behind the same sentinel, ended by `<eoss>` (CM3, arXiv
2201.07520; RA-CM3, 2211.12561; CM3Leon, 2309.02591, section 2.2). Which spans move is a law's business: `Spans` is the
papers', and whoever hides cells of a picture has `cell_spans`. How they move, and move back, is the same for all.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import numpy as np

from chameleon_lab.corpora.packing import TokenizedDocument
from chameleon_lab.parts import plain_number
from chameleon_lab.vocabulary import Modality, Vocabulary


class Span(NamedTuple):
    """The tokens of a document from place `start` to before `stop`."""

    start: int
    stop: int


class SpanLaw(Protocol):
    """Which spans of a document move: rising, none empty, none overlapping, none across a break."""

    def draw(self, tokens: np.ndarray, rng: np.random.Generator, vocabulary: Vocabulary) -> list[Span]: ...


ATTEMPTS = 64  # draws of a number of spans, before one less is drawn


@dataclass(frozen=True)
class Spans:
    """CM3's law of spans, as Meta's public code has it.

    The number of spans is Poisson of `mean`, at most one less than there are sentinels; none, in 37 % of all cases,
    leaves a plain document. The ends of a span are two uniform numbers between place 1 and the length, the lower one
    rounded down, the other to the nearest; a span that runs across a break is clipped to the segment that it covers
    most of. Breaks are the two delimiters of an image, and both ends of a document, which no attention of ours passes.
    Place 0 never moves, and nothing is lost.

    `per`: the number is drawn for a whole array of tokens (the public code's block of packed documents), or, as the
    papers say it, for each "document" in it. `exact`: several spans are drawn until none overlap or are empty, so that
    their number is the one drawn; otherwise n squared are drawn once, and of these at most n stay that overlap none
    before them (the public code's: of two drawn, only one stays in a third of all cases). `learn_sentinels`: loss is
    taken on sentinels (RA-CM3's code), or not (CM3's of 2022); on `<eoss>` always, since it ends a filling.
    """

    mean: float = 1.0
    per: Literal["block", "document"] = "block"
    exact: bool = True
    learn_sentinels: bool = True

    def __post_init__(self) -> None:
        if plain_number(self.mean, "the mean number of spans") < 0:
            raise ValueError(f"The mean number of spans must be 0 or more, not {self.mean}.")
        if self.per not in ("block", "document"):
            raise ValueError(f"Spans are drawn per 'block' or per 'document', not {self.per!r}.")

    def draw(self, tokens: np.ndarray, rng: np.random.Generator, vocabulary: Vocabulary) -> list[Span]:
        """The spans of one block. Raises ValueError for a vocabulary with fewer than two sentinels."""
        vocabulary.require_sentinels(2)
        count = min(int(rng.poisson(min(self.mean, 2.0**32))), vocabulary.sentinels - 1)
        if not count:
            return []  # before anything is looked at: a third of all documents
        between = segments(tokens, vocabulary)
        count = min(count, sum(segment.stop - segment.start for segment in between))
        if not self.exact and count > 1:
            spans = list[Span]()
            for ends in rng.uniform(1, len(tokens), (count * count, 2)).tolist():
                span = _clipped(min(ends), max(ends), between)
                if span and all(span.stop <= other.start or span.start >= other.stop for other in spans):
                    spans += [span] * (len(spans) < count)
            return sorted(spans)
        while count:
            for _ in range(ATTEMPTS):
                # Uniform pairs, given that none overlap, are the neighbours among as many sorted uniform numbers.
                ends = sorted(rng.uniform(1, len(tokens), 2 * count).tolist())
                pairs = zip(ends[::2], ends[1::2], strict=True)
                spans = [span for start, stop in pairs if (span := _clipped(start, stop, between))]
                if len(spans) == count and all(one.stop <= other.start for one, other in pairwise(spans)):
                    return spans
            count -= 1
        return []

    def rearrange(self, tokens: np.ndarray, rng: np.random.Generator, vocabulary: Vocabulary) -> np.ndarray:
        """A 1-D array of tokens with some spans moved to its end, or to the ends of its documents: what `restore` takes
        back. Raises ValueError for a vocabulary without sentinels, and tokens that hold some already."""
        tokens = vocabulary.check(tokens)
        document = TokenizedDocument(tokens, np.ones(len(tokens), bool))
        return self.rearrange_document(document, rng, vocabulary).tokens

    def rearrange_document(
        self, document: TokenizedDocument, rng: np.random.Generator, vocabulary: Vocabulary, room: int | None = None
    ) -> TokenizedDocument:
        """The same with the learn flags, which move with their tokens. Spans that would make the document more than
        `room` tokens longer are left where they are, the last ones first."""
        moved = list[TokenizedDocument]()
        for tokens, learn in packed_documents(document, vocabulary) if self.per == "document" else [document]:
            spans = self.draw(tokens, rng, vocabulary)
            if room is not None:
                spans = spans[: max(0, room) // SPAN_GROWTH]
                room -= SPAN_GROWTH * len(spans)
            part = TokenizedDocument(tokens, learn)
            moved.append(move_spans(part, spans, vocabulary, self.learn_sentinels))
        return moved[0] if len(moved) == 1 else TokenizedDocument(*map(np.concatenate, zip(*moved, strict=True)))


CM3LEON_SPANS = Spans()
"""The law with its defaults."""

SPAN_GROWTH = 3
"""Tokens that a span adds: two sentinels and the end of its filling."""


def segments(tokens: np.ndarray, vocabulary: Vocabulary) -> list[Span]:
    """The stretches between breaks, none empty; place 0 is a break."""
    places = [0, *np.flatnonzero(vocabulary.is_break[tokens]).tolist(), len(tokens)]
    return [Span(one + 1, other) for one, other in pairwise(places) if other > one + 1]


def _clipped(start: float, stop: float, between: Sequence[Span]) -> Span | None:
    """A pair of numbers as a span within the segment that it covers most of; None where it covers none."""
    first, last = math.floor(start), round(stop)
    begin = bisect_right(between, first, key=lambda segment: segment.start) - 1
    best, most = None, 0
    for place in range(max(0, begin), len(between)):
        segment = between[place]
        if segment.start >= last:
            break
        span = Span(max(first, segment.start), min(last, segment.stop))
        if span.stop - span.start > most:
            best, most = span, span.stop - span.start
    return best


def move_spans(
    document: TokenizedDocument, spans: Sequence[Span], vocabulary: Vocabulary, learn_sentinels: bool = True
) -> TokenizedDocument:
    """A document with these spans moved to its end, in their order.

    Sentinels, where they are learned at all, and the ends of fillings are learned where something of their span is.
    Raises ValueError for more spans than sentinels, spans that overlap, and tokens that hold sentinels already.
    """
    tokens, learn = document
    if holds_sentinels(tokens, vocabulary):
        raise ValueError("These tokens hold sentinels already: `restore` them before they are rearranged anew.")
    if not spans:
        return document
    vocabulary.require_sentinels(len(spans))
    ends = [0, *(end for span in spans for end in span), len(tokens)]
    if any(one > other for one, other in pairwise(ends)):
        raise ValueError(f"Spans must rise and not overlap within 0..{len(tokens)}; these are {list(spans)}.")
    body, tail, body_learn, tail_learn, last = [], [], [], [], 0
    end_span = np.array([vocabulary.end_image])
    for number, (start, stop) in enumerate(spans):
        sentinel, span_learn = np.array([vocabulary.first_sentinel + number]), learn[start:stop]
        any_learn = np.array([bool(span_learn.any())])
        body += [tokens[last:start], sentinel]
        tail += [sentinel, tokens[start:stop], end_span]
        body_learn += [learn[last:start], any_learn & learn_sentinels]
        tail_learn += [any_learn & learn_sentinels, span_learn, any_learn]
        last = stop
    return TokenizedDocument(
        np.concatenate([*body, tokens[last:], *tail]), np.concatenate([*body_learn, learn[last:], *tail_learn])
    )


def cell_spans(places_RC: np.ndarray, hidden_RC: np.ndarray, most: int) -> list[Span]:
    """The cells of an image that are hidden, as spans: each run in a row is one.

    `places_RC`: the place of each cell's code in the document (`code_places`). Where that makes more than `most`, the
    nearest become one span, with the cells between them.
    """
    rows_X, edges_X = np.nonzero(np.diff(hidden_RC, axis=1, prepend=False, append=False))
    firsts_S, lasts_S = places_RC[rows_X[::2], edges_X[::2]], places_RC[rows_X[1::2], edges_X[1::2] - 1]
    spans = [Span(first, last + 1) for first, last in zip(firsts_S.tolist(), lasts_S.tolist(), strict=True)]
    while len(spans) > max(1, most):
        gaps = [other.start - one.stop for one, other in pairwise(spans)]
        place = int(np.argmin(gaps))
        spans[place : place + 2] = [Span(spans[place].start, spans[place + 1].stop)]
    return spans


def code_places(tokens: np.ndarray, begin: int, grid: tuple[int, int], vocabulary: Vocabulary) -> np.ndarray:
    """The places of the codes, rows x columns, of the image whose `begin_image` stands at `begin`."""
    inside = vocabulary.modality[tokens[begin:]] == Modality.IMAGE
    return begin + np.flatnonzero(inside)[: grid[0] * grid[1]].reshape(grid)


def restore(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The document that was rearranged, whatever law drew its spans; tokens without sentinels are returned as they are.

    Raises ValueError for what no rearrangement gives: a sentinel without its filling, a filling without its end.
    """
    tokens = vocabulary.check(tokens)
    parts = [part.tokens for part in packed_documents(TokenizedDocument(tokens, tokens), vocabulary)]
    if len(parts) > 1 and all(_is_balanced(part, vocabulary) for part in parts):
        return np.concatenate([_restored(part, vocabulary) for part in parts])
    return _restored(tokens, vocabulary)


def _restored(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    places, numbers = _numbers_of_sentinels(tokens, vocabulary)
    if not len(places):
        return tokens
    if not _is_balanced(tokens, vocabulary):
        raise ValueError(
            f"These tokens are no rearranged document: their sentinels are {numbers.tolist()[:16]}, and each, from 0 "
            "on, must stand once in the document and then once before its filling."
        )
    holes, ends = np.split(places, 2)
    fillings = np.split(tokens[ends[0] :], ends[1:] - ends[0])
    for number, filling in enumerate(fillings):
        if filling[-1] != vocabulary.end_image:
            raise ValueError(f"The filling of sentinel {number} has no end: its last token is {int(filling[-1])}.")
    body = np.split(tokens[: ends[0]], holes)
    pairs = zip(body[1:], fillings, strict=True)
    return np.concatenate([body[0], *(part for rest, filling in pairs for part in (filling[1:-1], rest[1:]))])


def _is_balanced(tokens: np.ndarray, vocabulary: Vocabulary) -> bool:
    """Whether all sentinels stand once in order, and then once more."""
    numbers = _numbers_of_sentinels(tokens, vocabulary)[1]
    return np.array_equal(numbers, np.tile(np.arange(len(numbers) // 2), 2))


def holds_sentinels(tokens: np.ndarray, vocabulary: Vocabulary) -> bool:
    """Whether tokens are rearranged already, or were written with blanks."""
    return bool(len(_numbers_of_sentinels(tokens, vocabulary)[0]))


def _numbers_of_sentinels(tokens: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """The places of sentinels, and which they are."""
    numbers = tokens - vocabulary.first_sentinel
    places = np.flatnonzero((numbers >= 0) & (numbers < vocabulary.sentinels))
    return places, numbers[places]


def packed_documents(document: TokenizedDocument, vocabulary: Vocabulary) -> list[TokenizedDocument]:
    """Packed documents one by one; what stands before the first begin is a part, too."""
    cuts = np.flatnonzero(document.tokens == vocabulary.begin_document)
    pairs = zip(*(np.split(array, cuts[cuts > 0]) for array in document), strict=True)
    return [TokenizedDocument(*pair) for pair in pairs]
