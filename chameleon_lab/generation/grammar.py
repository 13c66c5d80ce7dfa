"""The modality grammar: which tokens may come next. A finite-state machine a row, without a model in it."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from chameleon_lab.records import StopReason
from chameleon_lab.vocabulary import Modality, Vocabulary


@dataclass(frozen=True)
class State:
    """Where one row stands: `place` counts the tokens since `begin_image`, None outside an image; `grid` is what that
    image has told of its rows and columns of codes; `images` were begun; `ended` says why it ended, if it has."""

    place: int | None = None
    grid: tuple[int, ...] = ()
    images: int = 0
    ended: StopReason | None = None


class Mask:
    """Which tokens may come: `allowed_V`, a boolean a token. One mask serves all states of a kind."""

    def __init__(self, allowed_V: np.ndarray) -> None:
        self.allowed_V = allowed_V
        self._usual: int | None = None
        self._kept: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def ids(self, device: torch.device) -> Tensor:
        """The tokens that may come, rising, as a tensor that stays on its device."""
        return self._on(device)[0]

    def hidden(self, device: torch.device) -> Tensor:
        """Which tokens may not come: hidden_V, a tensor that stays on its device."""
        return self._on(device)[1]

    def usual(self, vocabulary: Vocabulary) -> int:
        """A token that may come, such that its row goes on as it does: a word where one may come."""
        if self._usual is None:
            words_V = self.allowed_V & (vocabulary.modality == Modality.TEXT)
            self._usual = int((words_V if words_V.any() else self.allowed_V).argmax())
        return self._usual

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._kept:
            ids, hidden_V = np.flatnonzero(self.allowed_V), ~self.allowed_V
            self._kept[device] = torch.from_numpy(ids).to(device), torch.from_numpy(hidden_V).to(device)
        return self._kept[device]


class Rules(Protocol):
    """What the engine asks of a grammar, which remembers nothing but what is in the `State`. `room` counts the tokens
    that may still come; `images`: whether any are drawn.

    `start` is the state after a prompt, ValueError for one that cannot be continued; `share` is how much of an image is
    drawn, from 0 to below 1 while codes of it are missing, None everywhere else.
    """

    @property
    def images(self) -> bool: ...

    def start(self, tokens: np.ndarray, room: int) -> State: ...

    def allowed(self, state: State, room: int) -> Mask: ...

    def advance(self, state: State, token: int) -> State: ...

    def share(self, state: State) -> float | None: ...


class Slot(enum.Enum):
    """What stands at a place of an image."""

    SIDE = "a grid token"
    CODE = "a code"
    NEW_LINE = "new_line"
    END = "end_image"


@dataclass(frozen=True)
class ImageForm:
    """How an image is written: begin_image, exactly `codes` codes, end_image; or, where the vocabulary has grid and row
    tokens, begin_image, rows, columns, rows of codes each with its new_line, end_image, and `codes` is not asked.

    Raises ValueError when neither says how many codes there are.
    """

    vocabulary: Vocabulary
    codes: int | None = None

    def __post_init__(self) -> None:
        if self.codes is None and not self.vocabulary.any_grid:
            raise ValueError("Images of this vocabulary tell no grid: say how many codes they have (image_codes).")
        if self.codes is not None and self.codes < 1:
            raise ValueError(f"An image has at least 1 code, not {self.codes}.")

    def slot(self, state: State) -> Slot:
        """What comes next inside an image."""
        assert state.place is not None
        if not self.vocabulary.any_grid:
            return Slot.CODE if state.place < (self.codes or 0) else Slot.END
        if state.place < 2:
            return Slot.SIDE
        rows, columns = state.grid
        row, column = divmod(state.place - 2, columns + 1)
        return Slot.END if row == rows else Slot.NEW_LINE if column == columns else Slot.CODE

    def share(self, state: State) -> float | None:
        """How much of an image is drawn while codes of it are missing; None elsewhere."""
        if state.place is None or (self.vocabulary.any_grid and state.place < 2):
            return None
        if not self.vocabulary.any_grid:
            share = state.place / (self.codes or 1)
        else:
            rows, columns = state.grid
            row, column = divmod(state.place - 2, columns + 1)
            share = (row * columns + column) / (rows * columns)
        return share if share < 1 else None

    def left(self, state: State) -> int:
        """Tokens until this image is done, its smallest where its grid is not told yet."""
        assert state.place is not None
        rows, columns = (*state.grid, 2, 2)[:2] if self.vocabulary.any_grid else (1, self.codes or 0)
        return self.vocabulary.image_length(rows, columns) - 1 - state.place

    def follows(self, state: State, token: int) -> bool:
        """Whether a document may go on so, all modalities granted."""
        vocabulary = self.vocabulary
        coded = vocabulary.modality[token] == Modality.IMAGE
        side = vocabulary.is_grid(token)
        if state.place is None:
            return not (coded or side or token in (vocabulary.end_image, vocabulary.new_line))
        fits = {Slot.SIDE: side, Slot.CODE: coded, Slot.NEW_LINE: token == vocabulary.new_line}
        return bool(fits.get(self.slot(state), token == vocabulary.end_image))

    def advance(self, state: State, token: int) -> State:
        """The state after one more token that follows."""
        vocabulary = self.vocabulary
        if state.place is not None:
            if token == vocabulary.end_image:
                return State(images=state.images)
            told = vocabulary.any_grid and state.place < 2
            grid = (*state.grid, vocabulary.side_of_token(token)) if told else state.grid
            return State(state.place + 1, grid, state.images)
        if token == vocabulary.begin_image:
            return State(0, (), state.images + 1)
        if token == vocabulary.end_turn:
            return State(images=state.images, ended="end_turn")
        if token == vocabulary.end_document:
            return State(images=state.images, ended="end_document")
        return state

    def read(self, tokens: Iterable[int], state: State | None = None) -> State:
        """The state after tokens that need not be of one turn. Raises ValueError, with the place, where one cannot
        stand."""
        state = state or State()
        for place, token in enumerate(tokens):
            if not self.follows(state, int(token)):
                raise ValueError(f"The prompt is ill-formed: token {token} at position {place} cannot stand there.")
            state = self.advance(state, int(token))
        return State(state.place, state.grid)


@dataclass(frozen=True)
class Grammar:
    """Documents are text and images in any order, images as `ImageForm` says, none begun that does not fit whole.

    `text` and `images` switch the modalities: without images a reply is text only, without text images only. At least
    `min_images` and at most `max_images` are drawn before the reply ends; what stands in the prompt does not count.
    `image_codes` is how many codes an image has; where tokens tell its grid that is not asked, and `grid` may say
    which one all images of the reply shall have (None: any that fits). Masks come from blocks of ids, never from how a
    piece is spelled.

    Raises ValueError for settings that contradict one another.
    """

    vocabulary: Vocabulary
    image_codes: int | None = None
    text: bool = True
    images: bool = True
    max_images: int = 1_000_000
    min_images: int = 0
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not (self.text or self.images):
            raise ValueError("A grammar without text and without images allows nothing: switch one of them on.")
        if not 0 <= self.min_images <= self.max_images or (self.min_images and not self.images):
            raise ValueError(
                f"At least {self.min_images} and at most {self.max_images} images, with images={self.images}: "
                "no reply can be so."
            )
        for side in self.grid or ():
            self.vocabulary.token_of_side(side)
        _ = self.form

    @cached_property
    def form(self) -> ImageForm:
        return ImageForm(self.vocabulary, self.image_codes)

    def start(self, tokens: np.ndarray, room: int) -> State:
        """The state after a prompt. Raises ValueError for a prompt that is ill-formed or cannot be finished."""
        state = self.form.read(tokens)
        missing = self.form.left(state) if state.place is not None else 0
        if missing and not self.images:
            raise ValueError(
                "The prompt ends inside an image and this grammar allows text only: finish the image, or let the "
                "grammar draw (images=True)."
            )
        if room < missing:
            raise ValueError(
                f"The prompt ends inside an image, and there is no room to finish it: {missing} tokens are missing and "
                f"{room} may come."
            )
        if room < missing + self.min_images * self._smallest:
            raise ValueError(
                f"The reply shall hold {self.min_images} images of at least {self._smallest} tokens, and {room} may "
                "come: shorten the prompt or raise max_tokens."
            )
        return state

    def allowed(self, state: State, room: int) -> Mask:
        """Which tokens may come next, at least one."""
        owed = max(0, self.min_images - state.images)
        if state.place is None:
            begin = self.images and state.images < self.max_images and room >= max(1, owed) * self._smallest
            words = self.text and room > owed * self._smallest  # a word leaves room for the images owed
            return self._outside(words, begin, not owed or not (words or begin))
        slot = self.form.slot(state)
        return self._sides(state, room - owed * self._smallest) if slot is Slot.SIDE else self._inside[slot]

    def advance(self, state: State, token: int) -> State:
        """The state after one more token."""
        return self.form.advance(state, token)

    def share(self, state: State) -> float | None:
        """How much of an image is drawn while codes of it are missing; None elsewhere."""
        return self.form.share(state)

    @cached_property
    def _smallest(self) -> int:
        """Tokens of the smallest image that may be begun."""
        return self.vocabulary.image_length(
            *(self.grid or ((2, 2) if self.vocabulary.any_grid else (1, self.form.codes or 0)))
        )

    def _sides(self, state: State, room: int) -> Mask:
        """Grid tokens of images that fit. An image that the prompt began may have any grid."""
        vocabulary = self.vocabulary
        if self.grid and state.images:
            return self._only(vocabulary.token_of_side(self.grid[len(state.grid)]))
        left = room + 1 + len(state.grid)  # for the whole image, what is there of it included
        fits = takewhile(
            lambda side: vocabulary.image_length(*(*state.grid, side, 2)[:2]) <= left,
            range(2, vocabulary.largest_side + 1, 2),
        )
        return self._only(*map(vocabulary.token_of_side, fits))

    def _outside(self, words: bool, begin: bool, end: bool) -> Mask:
        if (words, begin, end) not in self._masks:
            allowed_V = (self.vocabulary.modality == Modality.TEXT) & words
            allowed_V[self.vocabulary.begin_image] = begin
            allowed_V[[self.vocabulary.end_turn, self.vocabulary.end_document]] = end
            self._masks[words, begin, end] = Mask(allowed_V)
        return self._masks[words, begin, end]

    def _only(self, *tokens: int) -> Mask:
        if tokens not in self._masks:
            self._masks[tokens] = Mask(np.isin(np.arange(self.vocabulary.size), tokens))
        return self._masks[tokens]

    @cached_property
    def _inside(self) -> dict[Slot, Mask]:
        inside = {
            Slot.CODE: Mask(self.vocabulary.modality == Modality.IMAGE),
            Slot.END: self._only(self.vocabulary.end_image),
        }
        return inside | (
            {} if self.vocabulary.new_line is None else {Slot.NEW_LINE: self._only(self.vocabulary.new_line)}
        )

    @cached_property
    def _masks(self) -> dict[Hashable, Mask]:
        """One for each kind of state met so far."""
        return {}


@dataclass(frozen=True)
class Unrestricted:
    """A grammar that masks nothing: what a model does left to itself, as when its training is watched.

    A reply ends, with the reason "ill_formed", before the first token that cannot stand where it is; one cut off by
    "length" may leave an image unfinished.
    """

    vocabulary: Vocabulary
    image_codes: int | None = None

    images = True

    @cached_property
    def form(self) -> ImageForm:
        return ImageForm(self.vocabulary, self.image_codes)

    def start(self, tokens: np.ndarray, room: int) -> State:
        """The state after a prompt. Raises ValueError for one that is ill-formed."""
        return self.form.read(tokens)

    def allowed(self, state: State, room: int) -> Mask:
        """Everything."""
        return self._everything

    def advance(self, state: State, token: int) -> State:
        """The state after one more token, whatever it is."""
        if self.form.follows(state, token):
            return self.form.advance(state, token)
        return State(state.place, state.grid, state.images, "ill_formed")

    def share(self, state: State) -> float | None:
        """How much of an image is drawn while codes of it are missing; None elsewhere."""
        return self.form.share(state)

    @cached_property
    def _everything(self) -> Mask:
        return Mask(np.ones(self.vocabulary.size, bool))
