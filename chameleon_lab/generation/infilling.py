"""Infilling: a document with blanks is rearranged as the CM3 objective does, and the fillings are written at its end.

A blank among words is one hole, and each run of masked cells in a row of a picture is one. The grammar lets a hole of a
picture have exactly its codes, and words at most the blank's length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import PIL.Image

from chameleon_lab.corpora.infilling import Span, cell_spans, code_places, move_spans
from chameleon_lab.corpora.packing import TokenizedDocument
from chameleon_lab.documents import Blank, Document, Image, Text
from chameleon_lab.generation.continuation import Continuation
from chameleon_lab.generation.grammar import Mask, State
from chameleon_lab.generation.guidance import Contrastive, TwoWay, without_words
from chameleon_lab.generation.settings import Settings
from chameleon_lab.records import FilledSegment
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Modality, Vocabulary

MISSING = -1
"""In place of a code that is to be filled."""


@dataclass(frozen=True)
class Hole:
    """One span to fill, in the document's segment `segment`: words of at most `length` tokens, or of a picture
    `tokens`, of which those that are `MISSING` are to be filled and the others stand there already."""

    segment: int
    length: int
    tokens: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class InfillPrompt:
    """A document with blanks as a prompt: `prompt` ends where the fillings begin, each hole of `holes` with a sentinel.

    `parts` are the tokens of each segment, None for a blank, `codes` of each masked image those that are there and
    `MISSING`, by segment.
    """

    document: Document
    prompt: np.ndarray
    holes: tuple[Hole, ...]
    parts: tuple[np.ndarray | None, ...]
    codes: dict[int, np.ndarray]

    @property
    def need(self) -> int:
        """The most tokens that the fillings can take."""
        return sum(hole.length + 2 for hole in self.holes)

    @cached_property
    def shares(self) -> tuple[float | None, ...]:
        """How much of its picture is filled when a hole begins; None for words."""
        missing = [0 if hole.tokens is None else hole.tokens.count(MISSING) for hole in self.holes]
        totals = {hole.segment: 0 for hole in self.holes}
        before = list[int]()
        for hole, count in zip(self.holes, missing, strict=True):
            before.append(totals[hole.segment])
            totals[hole.segment] += count
        return tuple(
            None if hole.tokens is None else done / totals[hole.segment]
            for hole, done in zip(self.holes, before, strict=True)
        )


def infill_prompt(document: Document, tokenizer: MixedModalTokenizer) -> InfillPrompt:
    """A document with blanks as a prompt.

    Raises ValueError for a document without blanks, a mask of another grid, and more blanks than the vocabulary has
    sentinels. The runs of a picture's cells never are too many: the nearest become one hole, in which the cells between
    are as they were.
    """
    vocabulary, segments = tokenizer.vocabulary, list(document)
    masks = {
        place: hidden_cells(segment, tokenizer)
        for place, segment in enumerate(segments)
        if isinstance(segment, Image) and segment.mask is not None
    }
    masks = {place: hidden_RC for place, hidden_RC in masks.items() if hidden_RC.any()}
    blanks = [place for place, segment in enumerate(segments) if isinstance(segment, Blank)]
    if not masks and not blanks:
        raise ValueError(
            "This document has no blank: put Blank() among its words, or give an Image a mask with at least one cell, "
            "such as Image(picture, mask=rectangle((2, 5), (3, 6)))."
        )
    vocabulary.require_sentinels(len(blanks) + len(masks))
    tokens, spans, holes = [np.array([vocabulary.begin_document])], list[Span](), list[Hole]()
    parts, codes, length = list[np.ndarray | None](), dict[int, np.ndarray](), 1
    pictures_left, words_left = len(masks), len(blanks)
    for place, segment in enumerate(segments):
        if isinstance(segment, Blank):
            # A place holder: the span is moved, and then left out of the prompt.
            part = np.array([vocabulary.first_text])
            spans.append(Span(length, length + 1))
            holes.append(Hole(place, segment.length))
            words_left -= 1
            parts.append(None)
        elif isinstance(segment, Text):
            part = _words_beside(segments, place, tokenizer)
            parts.append(part)
        else:
            part = tokenizer.encode_segment(replace(segment, mask=None) if isinstance(segment, Image) else segment)
            parts.append(part)
        if place in masks:
            pictures_left -= 1
            places_RC = code_places(part, 0, masks[place].shape, vocabulary)
            most = vocabulary.sentinels - len(spans) - words_left - pictures_left
            hidden = part.copy()
            hidden[places_RC[masks[place]]] = MISSING
            codes[place] = np.where(masks[place], MISSING, vocabulary.codes_of_tokens(part[places_RC]))
            for start, stop in cell_spans(places_RC, masks[place], most):
                spans.append(Span(length + start, length + stop))
                holes.append(Hole(place, stop - start, tuple(hidden[start:stop].tolist())))
        tokens.append(part)
        length += len(part)
    whole = np.concatenate([*tokens, [vocabulary.end_document]])
    moved = move_spans(TokenizedDocument(whole, np.ones(len(whole), bool)), spans, vocabulary).tokens
    first = len(whole) - sum(span.stop - span.start for span in spans) + len(spans)
    return InfillPrompt(document, moved[:first], tuple(holes), tuple(parts), codes)


def hidden_cells(image: Image, tokenizer: MixedModalTokenizer) -> np.ndarray:
    """The cells that an image's mask hides: booleans, rows x columns of its grid. Raises ValueError for a mask of
    another grid."""
    if image.codes is not None:
        grid = np.shape(image.codes)
    else:
        size, side = tokenizer.image.prepare(image.picture, tokenizer.preparation).size, tokenizer.image.config.factor
        grid = size[1] // side, size[0] // side
    if not isinstance(image.mask, np.ndarray):
        hidden_RC = np.zeros(grid, bool)
        for row, column in image.mask or ():
            if row >= grid[0] or column >= grid[1]:
                raise ValueError(f"The mask hides cell ({row}, {column}), and the image has {_times(grid)} cells.")
            hidden_RC[row, column] = True
        return hidden_RC
    if image.mask.shape == grid:
        return image.mask
    picture = image.picture
    if image.mask.shape != (picture.height, picture.width):
        raise ValueError(
            f"The mask has {_times(image.mask.shape)} fields; it must have a field for each of the image's "
            f"{_times(grid)} cells, or for each of its {picture.height} x {picture.width} pixels."
        )
    side = 8 if image.codes is not None else tokenizer.image.config.factor
    painted = PIL.Image.fromarray(_thickened(image.mask, (side * grid[0], side * grid[1])) * 255).convert("RGB")
    if image.codes is not None:
        painted = painted.resize((side * grid[1], side * grid[0]), PIL.Image.Resampling.BOX)
    else:
        painted = tokenizer.image.prepare(painted, tokenizer.preparation)  # cropped and scaled as the picture is
    pixels = np.asarray(painted)[..., 0] > PAINTED
    hidden_RC = np.asarray(pixels.reshape(grid[0], side, grid[1], side).any((1, 3)))
    if image.mask.any() and not hidden_RC.any():
        raise ValueError(
            f"What the mask hides of {picture.height} x {picture.width} pixels lies outside what the model is shown of "
            f"the picture, which is cropped to {_times(grid)} cells: paint nearer to its middle, or mask cells, such "
            "as rectangle((2, 5), (3, 6))."
        )
    return hidden_RC


def _thickened(mask_HW: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A mask whose strokes are as wide as a pixel of the smaller picture, so that scaling loses none: 0 and 1."""
    block = math.ceil(min(whole / part for whole, part in zip(mask_HW.shape, shape, strict=True)))
    if block < 2:
        return mask_HW.astype(np.uint8)
    padded = np.pad(mask_HW, [(0, -length % block) for length in mask_HW.shape])
    blocks = padded.reshape(padded.shape[0] // block, block, -1, block).any((1, 3)).astype(np.uint8)
    return blocks.repeat(block, 0).repeat(block, 1)[: mask_HW.shape[0], : mask_HW.shape[1]]


PAINTED = 32  # of 255, from which on a pixel of a mask that was scaled counts


def _times(grid: Sequence[int]) -> str:
    return " x ".join(map(str, grid))


def _words_beside(segments: Sequence[object], place: int, tokenizer: MixedModalTokenizer) -> np.ndarray:
    """The tokens of a text as they are in the whole text, of which a blank beside it hides whole words.

    The space between them belongs to the word behind it, as pieces have it: to the filling, or to the text after it,
    which may leave it out before a letter.
    """
    segment, encode = segments[place], tokenizer.text.encode
    assert isinstance(segment, Text)
    text, blanks = segment.text, [isinstance(each, Blank) for each in segments]
    if place + 1 < len(segments) and blanks[place + 1]:
        text = text.removesuffix(" ")
    pieces = encode(text) if text else []
    if place and blanks[place - 1] and text:
        # Behind another word: some tokenizers begin whatever they are given with a space of their own.
        spaced = text if not text[0].isalnum() else f" {text}"
        behind, alone = encode(f"a{spaced}"), encode("a")
        pieces = behind[len(alone) :] if behind[: len(alone)] == alone else pieces
    return np.array([tokenizer.vocabulary.token_of_piece(piece) for piece in pieces], np.int64)


@dataclass(frozen=True)
class FillState(State):
    """Where a row stands: in hole number `hole`, of which `written` tokens are there; -1 before its sentinel."""

    plan: InfillPrompt | None = field(default=None, compare=False)
    hole: int = 0
    written: int = -1


class InfillRules:
    """The grammar of fillings: each hole's sentinel, what it may hold, and its end."""

    images = True

    def __init__(self, vocabulary: Vocabulary, plans: Sequence[InfillPrompt]) -> None:
        self.vocabulary = vocabulary
        self._plans = {tuple(plan.prompt.tolist()): plan for plan in plans}
        self._masks: dict[object, Mask] = {}

    def start(self, tokens: np.ndarray, room: int) -> FillState:
        """The state after a prompt. Raises ValueError where there is no room for its fillings."""
        plan = self._plans[tuple(np.asarray(tokens).tolist())]
        if room < plan.need:
            words = [hole.length for hole in plan.holes if hole.tokens is None]
            advice = "Shorten the document, or mask fewer cells."
            if words and room >= plan.need - sum(words):
                advice = f"Give its blanks fewer tokens: Blank(length=...), now {', '.join(map(str, words))}."
            raise ValueError(
                f"The document has {len(tokens)} tokens and its fillings may take {plan.need} more, and there is room "
                f"for {max(0, room)}. {advice}"
            )
        return FillState(plan=plan)

    def allowed(self, state: State, room: int) -> Mask:
        _, hole, number, written = self._at(state)
        if written < 0:
            return self._only(self.vocabulary.first_sentinel + number)
        if written == hole.length:
            return self._only(self.vocabulary.end_image)
        if hole.tokens is None:
            return self._words(written > 0)
        token = hole.tokens[written]
        return self._codes if token == MISSING else self._only(token)

    def advance(self, state: State, token: int) -> FillState:
        plan, _, number, written = self._at(state)
        if written >= 0 and token == self.vocabulary.end_image:
            last = number + 1 == len(plan.holes)
            return FillState(ended="end_document" if last else None, plan=plan, hole=number + (not last))
        return FillState(plan=plan, hole=number, written=written + 1)

    def share(self, state: State) -> float | None:
        """How much of its picture is filled, while a picture is; None elsewhere."""
        if state.ended:
            return None
        plan, hole, number, written = self._at(state)
        share = plan.shares[number]
        if share is None or hole.tokens is None:
            return None
        total = sum(
            other.tokens.count(MISSING) for other in plan.holes if other.segment == hole.segment and other.tokens
        )
        return min(share + hole.tokens[: max(0, written)].count(MISSING) / total, 1 - 1 / (total + 1))

    def _at(self, state: State) -> tuple[InfillPrompt, Hole, int, int]:
        assert isinstance(state, FillState) and state.plan is not None
        return state.plan, state.plan.holes[state.hole], state.hole, state.written

    def _only(self, token: int) -> Mask:
        if token not in self._masks:
            self._masks[token] = Mask(np.arange(self.vocabulary.size) == token)
        return self._masks[token]

    def _words(self, end: bool) -> Mask:
        if ("words", end) not in self._masks:
            allowed_V = self.vocabulary.modality == Modality.TEXT
            allowed_V[self.vocabulary.end_image] = end
            self._masks["words", end] = Mask(allowed_V)
        return self._masks["words", end]

    @cached_property
    def _codes(self) -> Mask:
        return Mask(self.vocabulary.modality == Modality.IMAGE)


def without_caption(tokens: np.ndarray, tokenizer: MixedModalTokenizer) -> np.ndarray:
    """The document with its words left out, its blanks and what was filled of pictures not: what guidance leads away
    from. A blank among words stays as the mask that it is."""
    return tokens[tokenizer.vocabulary.modality[tokens] != Modality.TEXT]


class Infilling:
    """Several documents with blanks, filled at once; each depends on its own seed only.

    To iterate is to fill: (document's index, segment as it stands now), words with each token, pictures with each run
    of cells. `documents` are they as far as they are filled. Raises ValueError as `infill_prompt` and `InfillRules` do.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: MixedModalTokenizer,
        documents: Sequence[Document],
        settings: Settings,
        seeds: Sequence[int],
    ) -> None:
        plans, context = [infill_prompt(document, tokenizer) for document in documents], model.config.context
        if longest := max((len(plan.prompt) for plan in plans if len(plan.prompt) >= context), default=0):
            raise ValueError(
                f"The document has {longest} tokens and the model's context holds {context}: there is no room for its "
                "fillings. Shorten it."
            )
        guide = settings.guide
        if isinstance(guide, TwoWay | Contrastive) and guide.without is without_words:  # nor sentinels
            guide = replace(guide, without=without_caption)
        most = max((plan.need for plan in plans), default=1)
        settings = replace(settings, max_tokens=most, guidance=1.0 if guide is None else guide)
        rules = InfillRules(tokenizer.vocabulary, plans)
        prompts = [plan.prompt for plan in plans]
        self._continuation = Continuation(model, tokenizer, prompts, settings, seeds, rules)
        self._fillings = [_Filling(plan, tokenizer) for plan in plans]

    @property
    def documents(self) -> list[Document]:
        return [filling.document() for filling in self._fillings]

    def __iter__(self) -> Iterator[tuple[int, FilledSegment]]:
        for row, token, _ in self.tokens():
            if segment := self._fillings[row].segment(token):
                yield row, segment

    def tokens(self) -> Iterator[tuple[int, int, Hole]]:
        """(document, token, its hole) as they are written; what a document holds is read on the way."""
        end = self._continuation.tokenizer.vocabulary.end_image
        states = [row.state for row in self._continuation.rows]
        for row, token, state in self._continuation.tokens():
            before, states[row] = states[row], state
            assert isinstance(before, FillState)
            written = end if token is None else token  # the last hole's end ends the reply
            self._fillings[row].read(before, written)
            yield row, written, self._fillings[row].plan.holes[before.hole]


class _Filling:
    """One document's fillings as far as they were read."""

    def __init__(self, plan: InfillPrompt, tokenizer: MixedModalTokenizer) -> None:
        self.plan, self.tokenizer = plan, tokenizer
        self._words: dict[int, list[int]] = {}
        self._codes = {place: codes_RC.copy() for place, codes_RC in plan.codes.items()}
        self._last: tuple[FillState, int] | None = None

    def read(self, before: FillState, token: int) -> None:
        """Takes one more token, which came in this state."""
        hole, vocabulary = self.plan.holes[before.hole], self.tokenizer.vocabulary
        self._last = before, token
        if before.written < 0 or token == vocabulary.end_image:
            return
        if hole.tokens is None:
            self._words.setdefault(hole.segment, []).append(token)
        elif hole.tokens[before.written] == MISSING:
            flat = self._codes[hole.segment].ravel()  # a view: holes are in reading order
            flat[np.flatnonzero(flat == MISSING)[0]] = vocabulary.codes_of_tokens(np.array(token))

    def segment(self, token: int) -> FilledSegment | None:
        """The segment that the last token changed, as it stands now; None where it changed none, or of an image a cell
        whose run goes on."""
        assert self._last is not None
        before, ends = self._last[0], token == self.tokenizer.vocabulary.end_image
        hole = self.plan.holes[before.hole]
        if before.written < 0 or (hole.tokens is not None and not ends):
            return None
        if hole.tokens is not None:
            whole = bool((self._codes[hole.segment] != MISSING).all())
            return FilledSegment(hole.segment, self._image(hole.segment), whole)
        words = [word - self.tokenizer.vocabulary.first_text for word in self._words[hole.segment]]
        return FilledSegment(hole.segment, Text(self.tokenizer.text.decode(words)), ends)

    def document(self) -> Document:
        """The document with its blanks filled as far as they were read; words beside a blank become one text."""
        parts, run, vocabulary = list[object](), list[int](), self.tokenizer.vocabulary
        learn = True

        def close() -> None:
            nonlocal run
            if run:
                parts.append(Text(self.tokenizer.text.decode([token - vocabulary.first_text for token in run]), learn))
                run = []

        segments = list(self.plan.document)
        for place, segment in enumerate(segments):
            beside = any(isinstance(other, Blank) for other in segments[max(0, place - 1) : place + 2])
            if isinstance(segment, Text | Blank) and beside:
                tokens = self._words.get(place, []) if isinstance(segment, Blank) else self.plan.parts[place]
                learn = segment.learn if not run else learn
                run = [*run, *map(int, tokens if tokens is not None else ())]
                continue
            close()
            parts.append(self._image(place) if place in self._codes else self._unmasked(segment))
        close()
        return Document.of(*parts)  # pyright: ignore[reportArgumentType]

    def _unmasked(self, segment: object) -> object:
        return replace(segment, mask=None) if isinstance(segment, Image) else segment

    def _image(self, place: int) -> Image:
        """A masked image as it stands now: in place of codes still missing stand those before them."""
        image, codes_RC = self.plan.document.segments[place], self._codes[place]
        assert isinstance(image, Image)
        flat = codes_RC.ravel()
        last = np.maximum.accumulate(np.where(flat >= 0, np.arange(len(flat)), -1))
        visible = np.flatnonzero(flat >= 0)
        first = visible[0] if len(visible) else 0
        guess = np.maximum(flat[np.where(last >= 0, last, first)], 0).reshape(codes_RC.shape)
        return Image(self.tokenizer.image.decode(guess), guess, image.learn)
