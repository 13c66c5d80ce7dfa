"""Documents before a document: how what was retrieved becomes part of a prompt or of what is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from chameleon_lab.documents import Document, EndTurn, Image, Segment
from chameleon_lab.generation.guidance import Guidance
from chameleon_lab.parts import require
from chameleon_lab.retrieval.bank import require_whole
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer


def as_retrieved(document: Document, learn: bool = False) -> Document:
    """A document as it stands before another one: without ends of turn, and closed by a break.

    Delimiters of an image are breaks (`Vocabulary.breaks`; its begin is RA-CM3's), so a caption with its picture behind
    it is CM3Leon's `text <break> image <break>` as it is. A document that ends in words is closed by an end of turn.
    Raises TypeError and ValueError as `require_whole` does.
    """
    segments: list[Segment] = [
        replace(segment, learn=learn) for segment in require_whole(document) if not isinstance(segment, EndTurn)
    ]
    if segments and not isinstance(segments[-1], Image):
        segments.append(EndTurn(learn))
    return Document(tuple(segments))


@dataclass(frozen=True)
class Precedents:
    """A document behind those that were retrieved for it.

    `document` holds all; its first `segments` segments, `tokens` tokens with the document's begin, are the retrieved
    ones, which are the numbers `places` of those there were. `left_out` says in words what had no room.
    """

    document: Document
    segments: int
    tokens: int
    places: tuple[int, ...]
    left_out: tuple[str, ...] = ()


def put_before(
    document: Document,
    retrieved: Sequence[Document],
    tokenizer: MixedModalTokenizer,
    context: int,
    room: int = 0,
    learn: bool = False,
) -> Precedents:
    """The document with the retrieved ones before it, in their order, as far as the context holds them.

    Each goes in that has room in `context` tokens, less `room` for what follows, behind those before it; the others are
    left out whole. The document is never cut: one that is longer alone is a ValueError. `learn`: whether training takes
    loss on them.
    """
    ready = [as_retrieved(each, learn) for each in retrieved]
    lengths = [sum(map(tokenizer.length, each)) for each in ready]
    own = 1 + sum(map(tokenizer.length, document))
    if own + room > context:
        raise ValueError(
            f"The document has {own} tokens, {room} are to follow, and the context holds {context}: nothing retrieved "
            "would fit before it. Shorten the document."
        )
    left_out, places = list[str](), list[int]()
    free = context - room - own
    for place, length in enumerate(lengths):
        if length <= free:
            places.append(place)
            free -= length
        else:
            left_out.append(
                f"retrieved document {place} ({_beginning(retrieved[place])}), of {length} tokens: {free} were free of "
                f"{context} behind a document of {own}"
            )
    before = sum((ready[place] for place in places), Document())
    tokens = 1 + sum(lengths[place] for place in places)
    return Precedents(before + document, len(before), tokens, tuple(places), tuple(left_out))


def _beginning(document: Document) -> str:
    return repr(document.text[:40]) if document.text else "without words"


@dataclass(frozen=True)
class WithoutQuery:
    """Guidance whose twins see the retrieved documents as the row does, and of the rest what `guide` lets them see.

    So words that are left out are the query's alone, and guidance leads to what the query asks of these documents
    (arXiv 2309.02591, section 3.2). `tokens`: how many of a row's tokens are its begin and the retrieved documents.
    """

    guide: Guidance
    tokens: int

    def __post_init__(self) -> None:
        require(self.guide, "a guidance", "twins", "streams", "mix")

    @property
    def twins(self) -> int:
        return self.guide.twins

    def streams(self, tokens: np.ndarray, tokenizer: MixedModalTokenizer) -> Sequence[np.ndarray]:
        begin = tokenizer.vocabulary.begin_document
        rest = np.concatenate([tokens[:1], tokens[self.tokens :]])
        views = [np.asarray(view) for view in self.guide.streams(rest, tokenizer)]
        return [np.concatenate([tokens[: self.tokens], view[int(view[0] == begin) :]]) for view in views]

    def mix(self, logits_SRV: Tensor, shares: Sequence[float]) -> Tensor:
        return self.guide.mix(logits_SRV, shares)
