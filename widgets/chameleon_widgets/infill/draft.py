"""A document under the brush: what of it is hidden, the document with blanks that this makes, and a filling's place."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chameleon_lab.documents import Blank, Document, Image, Text
from chameleon_widgets.images.edits import Codec, whole_numbers

_draft_keys = itertools.count(1)


def split_words(text: str) -> list[str]:
    """The words of a text, each with the space before it; together they are the text."""
    words = re.findall(r"\s*\S+", text)
    if not words:
        return [text] if text else []
    return [*words[:-1], words[-1] + text[sum(map(len, words)) :]]


@dataclass(frozen=True)
class BlankOrigin:
    """Where a segment of the document with blanks comes from: segment `source`, and of a text, the words from `first`
    to before `stop`."""

    source: int
    first: int = 0
    stop: int = 0


@dataclass(frozen=True, eq=False)
class CanvasDraft:
    """A document without blanks, whose images have codes, and what of each segment is hidden: words of a text, cells of
    an image row by row. Each document has its own `key`."""

    document: Document
    hidden: tuple[frozenset[int], ...]
    key: int = field(default_factory=lambda: next(_draft_keys))

    @classmethod
    def of(cls, document: Document, codec: Codec) -> CanvasDraft:
        """A document to be painted on: its images are encoded where they bring no codes, and shown as the tokenizer
        draws these; cells that their masks hide are hidden from the beginning. Raises ValueError for a mask of another
        grid, and for `Blank`s, since here one clicks on words."""
        segments, hidden = list[Any](), list[frozenset[int]]()
        for segment in document:
            if isinstance(segment, Blank):
                raise ValueError(
                    "The canvas takes a document without Blank(): its words are hidden by a click on them."
                )
            cells = frozenset[int]()
            if isinstance(segment, Image):
                codes = segment.codes if segment.codes is not None else np.asarray(codec.encode(segment.picture))
                if segment.mask is not None:
                    cells = _cells(segment.mask, (codes.shape[0], codes.shape[1]))
                segment = Image(codec.decode(codes), codes, segment.learn)
            segments.append(segment)
            hidden.append(cells)
        return cls(Document(tuple(segments)), tuple(hidden))

    def size(self, number: int) -> int:
        """How many words or cells a segment has."""
        segment = self.document.segments[number]
        if isinstance(segment, Image):
            assert segment.codes is not None
            return segment.codes.size
        return len(split_words(segment.text)) if isinstance(segment, Text) else 0

    def hide(self, number: object, parts: Sequence[int]) -> CanvasDraft:
        """The draft of which exactly these parts of a segment are hidden. Raises ValueError for what is not there."""
        number = int(whole_numbers(number, len(self.hidden), "The segment's number"))
        chosen = whole_numbers(parts, self.size(number), "The hidden parts") if len(parts) else np.empty(0, np.int64)
        hidden = list(self.hidden)
        hidden[number] = frozenset(chosen.ravel().tolist())
        return replace(self, hidden=tuple(hidden))

    def reword(self, number: object, text: str) -> CanvasDraft:
        """The draft with another text for a segment, nothing of which is hidden. Raises ValueError where it is none."""
        number = int(whole_numbers(number, len(self.hidden), "The segment's number"))
        segments, hidden = list(self.document.segments), list(self.hidden)
        segment = segments[number]
        if not isinstance(segment, Text) or not text.strip():
            raise ValueError("A text's words can be changed, and to no less than one word.")
        segments[number], hidden[number] = replace(segment, text=text), frozenset()
        return replace(self, document=Document(tuple(segments)), hidden=tuple(hidden), key=next(_draft_keys))

    def blanked(self) -> tuple[Document, tuple[BlankOrigin, ...]]:
        """The document with a `Blank` for each run of hidden words and a mask for hidden cells, and where its segments
        come from. Raises ValueError where nothing is hidden."""
        if not any(self.hidden):
            raise ValueError("Nothing is hidden yet: paint over a part of the picture, or click on words.")
        parts, places = list[Any](), list[BlankOrigin]()
        for number, (segment, hidden) in enumerate(zip(self.document, self.hidden, strict=True)):
            if isinstance(segment, Text) and hidden:
                words = split_words(segment.text)
                runs = itertools.groupby(range(len(words)), hidden.__contains__)
                for blank, run in [(blank, list(run)) for blank, run in runs]:
                    text = "".join(words[run[0] : run[-1] + 1])
                    parts.append(Blank(learn=segment.learn) if blank else replace(segment, text=text))
                    places.append(BlankOrigin(number, run[0], run[-1] + 1))
                continue
            if isinstance(segment, Image) and hidden:
                assert segment.codes is not None
                mask = np.isin(np.arange(segment.codes.size), list(hidden)).reshape(segment.codes.shape)
                segment = replace(segment, mask=mask)
            parts.append(segment)
            places.append(BlankOrigin(number))
        return Document(tuple(_spaced(parts))), tuple(places)

    def filled(self, places: Sequence[BlankOrigin], fillings: Mapping[int, Text | Image]) -> CanvasDraft:
        """The draft that a filling makes of this one, nothing of it hidden; `fillings` by segment of the document with
        blanks. Words are joined by the spaces that were between them."""
        segments = list[Any](self.document.segments)
        for number, segment in enumerate(self.document):
            own = [(at, place) for at, place in enumerate(places) if place.source == number]
            if isinstance(segment, Image) and own and own[0][0] in fillings:
                segments[number] = fillings[own[0][0]]
            elif isinstance(segment, Text) and len(own) + bool(self.hidden[number]) > 1:
                segments[number] = replace(segment, text="".join(text for text, _ in self.pieces(own, fillings)))
        return CanvasDraft(Document(tuple(segments)), tuple(frozenset() for _ in segments))

    def pieces(
        self, own: Sequence[tuple[int, BlankOrigin]], fillings: Mapping[int, Text | Image]
    ) -> list[tuple[str, bool]]:
        """A text in pieces, and whether the model wrote them: `own` are its places in the document with blanks."""
        segment = self.document.segments[own[0][1].source]
        assert isinstance(segment, Text)
        words, out = split_words(segment.text), list[tuple[str, bool]]()
        for at, place in own:
            if place.first not in self.hidden[place.source]:
                out.append(("".join(words[place.first : place.stop]) if place.stop else segment.text, False))
            elif isinstance(filling := fillings.get(at), Text):
                space = re.match(r"\s*", words[place.first])
                out.append(((space.group() if space else "") + filling.text.strip(), True))
        return out


def _spaced(parts: Sequence[Any]) -> list[Any]:
    """A text before a blank ends in the space that the hidden word began with."""
    pairs = itertools.pairwise([*parts, None])
    return [
        replace(part, text=part.text + " ") if isinstance(part, Text) and isinstance(after, Blank) else part
        for part, after in pairs
    ]


def _cells(mask: np.ndarray | Collection[tuple[int, int]], grid: tuple[int, int]) -> frozenset[int]:
    if isinstance(mask, np.ndarray):
        if mask.shape != grid:
            raise ValueError(
                f"The mask has {mask.shape} fields, and the picture {grid} cells; give a field for each cell."
            )
        return frozenset(np.flatnonzero(mask).tolist())
    if outside := [cell for cell in mask if cell[0] >= grid[0] or cell[1] >= grid[1]]:
        raise ValueError(f"The mask hides cell {outside[0]}, and the picture has {grid[0]} x {grid[1]} cells.")
    return frozenset(row * grid[1] + column for row, column in mask)
