"""The modality grammar: which tokens may come next. A finite-state machine a row, without a model in it."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from chameleon_lab.generation.recording import upload
from chameleon_lab.records import StopReason
from chameleon_lab.tokenizers.grids import ImageForm, Slot, SlotKind, image_form
from chameleon_lab.vocabulary import Modality, Vocabulary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """Where one row stands: `place` counts the tokens since `begin_image`, None outside an image; `grid` holds the
    sides that this image's tokens have given so far; `images` were begun; `ended` says why it ended, if it has; `left`:
    how many tokens may still come, None where nobody counts."""

    place: int | None = None
    grid: tuple[int, ...] = ()
    images: int = 0
    ended: StopReason | None = None
    left: int | None = field(default=None, compare=False)


class Mask:
    """Which tokens may come: `allowed_V`, a boolean a token. One mask serves all states of a kind."""

    def __init__(self, allowed_V: np.ndarray) -> None:
        self.allowed_V = allowed_V
        self._usual: int | None = None
        self._by_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

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
        if device not in self._by_device:
            ids, hidden_V = np.flatnonzero(self.allowed_V), ~self.allowed_V
            self._by_device[device] = upload(ids, device), upload(hidden_V, device)
        return self._by_device[device]


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


@dataclass(frozen=True)
class Syntax:
    """What a well-formed document is, all modalities granted: words and specials, and images as `form` has them."""

    vocabulary: Vocabulary
    form: ImageForm

    def slot(self, state: State) -> Slot | None:
        """What comes next inside an image; None outside."""
        return None if state.place is None else self.form.slot(state.place, state.grid)

    def share(self, state: State) -> float | None:
        """How much of an image is drawn while codes of it are missing; None elsewhere."""
        slot = self.slot(state)
        return None if slot is None else slot.share

    def missing(self, state: State) -> int:
        """Tokens until the image under way is done, its smallest where its grid is not known yet."""
        return 0 if state.place is None else self.form.length(*state.grid) - 1 - state.place

    def follows(self, state: State, token: int) -> bool:
        """Whether a document may go on so."""
        if (slot := self.slot(state)) is not None:
            return bool(self.form.ids[slot.kind][token])
        return token != self.vocabulary.end_image and not self.vocabulary.within_images[token]

    def advance(self, state: State, token: int) -> State:
        """The state after one more token that follows."""
        vocabulary = self.vocabulary
        if state.place is not None:
            if token == vocabulary.end_image:
                return State(images=state.images)
            return State(state.place + 1, self.form.advance(state.place, state.grid, token), state.images)
        if token == vocabulary.begin_image:
            return State(0, (), state.images + 1)
        if token == vocabulary.end_turn:
            return State(images=state.images, ended="end_turn")
        if token == vocabulary.end_document:
            return State(images=state.images, ended="end_document")
        return state

    def read(self, tokens: Iterable[int]) -> State:
        """The state after tokens that need not be of one turn. Raises ValueError, with the place, where one cannot
        stand."""
        state = State()
        for place, token in enumerate(tokens):
            if not self.follows(state, int(token)):
                raise ValueError(f"The prompt is ill-formed: token {token} at position {place} cannot stand there.")
            state = self.advance(state, int(token))
        return State(state.place, state.grid)


def _syntax(vocabulary: Vocabulary, image_codes: int | None) -> Syntax:
    """That of a vocabulary whose images have so many codes, unless their tokens give their grids."""
    if image_codes is None and not vocabulary.largest_side:
        raise ValueError("Images of this vocabulary tell no grid: say how many codes they have (image_codes).")
    return Syntax(vocabulary, image_form(vocabulary, 1, image_codes or 0))


@dataclass(frozen=True)
class Grammar:
    """Documents are text and images in any order, none of which is begun that does not fit whole: a reply that goes on
    with one ends there, with the reason "length", and the log says how many tokens it would have taken.

    `text` and `images` switch the modalities: without images a reply is text only, without text images only. At least
    `min_images` and at most `max_images` are drawn before the reply ends; what stands in the prompt does not count.
    `image_codes` is how many codes an image has; where tokens give its grid that is not asked, and `grid` may be the
    (rows, columns) that all images of the reply shall have (None: any that fits). Masks come from blocks
    of ids, never from how a piece is spelled.

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
        _ = self.syntax

    @cached_property
    def syntax(self) -> Syntax:
        return _syntax(self.vocabulary, self.image_codes)

    def start(self, tokens: np.ndarray, room: int) -> State:
        """The state after a prompt. Raises ValueError for a prompt that is ill-formed or cannot be finished."""
        state = self.syntax.read(tokens)
        missing = self.syntax.missing(state)
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
        return replace(state, left=room)

    def allowed(self, state: State, room: int) -> Mask:
        """Which tokens may come next, at least one."""
        missing = max(0, self.min_images - state.images)
        slot = self.syntax.slot(state)
        if slot is None:
            words = self.text and room > missing * self._smallest  # a word leaves room for the images missing
            fits = room >= max(1, missing) * self._smallest
            # Without room the wish for an image stays allowed beside words: masked, it would become a caption.
            begin = self.images and state.images < self.max_images and (fits or (words and state.left is not None))
            return self._outside(words, begin, not missing or not (words or begin))
        if slot.kind is SlotKind.SIDE:
            return self._sides(state, room - missing * self._smallest)
        if slot.kind not in self._masks:
            self._masks[slot.kind] = Mask(self.syntax.form.ids[slot.kind])
        return self._masks[slot.kind]

    def advance(self, state: State, token: int) -> State:
        """The state after one more token; that of an end, "length", for an image without room."""
        after = self.syntax.advance(state, token)
        if state.left is None:
            return after
        if after.place == 0 and state.left < self._smallest:
            log.warning(
                "The reply ends where a picture would begin: it takes %d tokens and %d may come. Raise max_tokens, or "
                "shorten the prompt.",
                *(self._smallest, state.left),
            )
            return State(images=state.images, ended="length", left=state.left)
        return replace(after, left=state.left - 1)

    def share(self, state: State) -> float | None:
        """How much of an image is drawn while codes of it are missing; None elsewhere."""
        return self.syntax.share(state)

    @cached_property
    def _smallest(self) -> int:
        """Tokens of the smallest image that may be begun."""
        return self.syntax.form.length(*(self.grid or ()))

    def _sides(self, state: State, room: int) -> Mask:
        """Grid tokens of images that fit. An image that the prompt began may have any grid."""
        vocabulary = self.vocabulary
        if self.grid and state.images:
            return self._only(vocabulary.token_of_side(self.grid[len(state.grid)]))
        left = room + 1 + len(state.grid)  # for the whole image, what is there of it included
        fits = takewhile(
            lambda side: self.syntax.form.length(*state.grid, side) <= left,
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
    def _masks(self) -> dict[Hashable, Mask]:
        """One for each kind of state met so far."""
        return {}


MODALITY_SWITCHES: dict[str, dict[str, Any]] = {
    "free": {},
    "words": {"images": False},
    "picture": {"text": False, "min_images": 1, "max_images": 1},
    "interleaved": {"min_images": 1},
}
"""What a reply is to hold, by name, as switches of a `Grammar`: whatever the model writes; words alone; one picture
alone; words around one picture or more."""


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
    def syntax(self) -> Syntax:
        return _syntax(self.vocabulary, self.image_codes)

    def start(self, tokens: np.ndarray, room: int) -> State:
        """The state after a prompt. Raises ValueError for one that is ill-formed."""
        return self.syntax.read(tokens)

    def allowed(self, state: State, room: int) -> Mask:
        """Everything."""
        return self._everything

    def advance(self, state: State, token: int) -> State:
        """The state after one more token, whatever it is."""
        if self.syntax.follows(state, token):
            return self.syntax.advance(state, token)
        return State(state.place, state.grid, state.images, "ill_formed")

    def share(self, state: State) -> float | None:
        """How much of an image is drawn while codes of it are missing; None elsewhere."""
        return self.syntax.share(state)

    @cached_property
    def _everything(self) -> Mask:
        return Mask(np.ones(self.vocabulary.size, bool))
