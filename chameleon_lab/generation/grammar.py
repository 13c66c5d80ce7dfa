"""The modality grammar: which tokens may come next. A finite-state machine a row, without a model in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from chameleon_lab.records import StopReason
from chameleon_lab.vocabulary import Modality, Vocabulary


@dataclass(frozen=True)
class State:
    """Where one row stands: `codes` of the image it is in, or None outside; images begun; why it ended, if it has."""

    codes: int | None = None
    images: int = 0
    ended: StopReason | None = None


@dataclass(frozen=True)
class Grammar:
    """Documents are text and images in any order; an image is begin_image, exactly `image_codes` codes, end_image.

    An image starts only where it fits whole: `room` counts the tokens that may still come. `text` and `images` switch
    the modalities; at most `max_images` images are begun. Masks come from id blocks, never from how a piece is spelled.
    Raises ValueError when both modalities are off.
    """

    vocabulary: Vocabulary
    image_codes: int
    text: bool = True
    images: bool = True
    max_images: int = 1_000_000

    def __post_init__(self) -> None:
        if not (self.text or self.images):
            raise ValueError("A grammar without text and without images allows nothing: switch one of them on.")

    def start(self, tokens: np.ndarray) -> State:
        """The state after a prompt. Raises ValueError for a prompt that is ill-formed."""
        state = State()
        for place, token in enumerate(tokens):
            inside = state.codes is not None
            kind = self.vocabulary.modality[token]
            full = state.codes == self.image_codes
            fits = (kind == Modality.IMAGE and not full) or (token == self.vocabulary.end_image and full)
            stray = kind == Modality.IMAGE or token == self.vocabulary.end_image
            if (inside and not fits) or (not inside and stray):
                raise ValueError(f"The prompt is ill-formed: token {token} at position {place} cannot stand there.")
            state = replace(self.advance(state, int(token)), ended=None)
        return replace(state, images=0)

    def allowed(self, state: State, room: int) -> np.ndarray:
        """Which tokens may come next: `vocabulary.size` booleans, at least one of them true."""
        if state.codes is not None:
            return self._end_image if state.codes == self.image_codes else self._codes
        may_draw = self.images and state.images < self.max_images and room >= self.image_codes + 2
        return self._outside[may_draw]

    def advance(self, state: State, token: int) -> State:
        """The state after one more token."""
        if token == self.vocabulary.begin_image:
            return replace(state, codes=0, images=state.images + 1)
        if token == self.vocabulary.end_image:
            return replace(state, codes=None)
        if state.codes is not None:
            return replace(state, codes=state.codes + 1)
        if token == self.vocabulary.end_turn:
            return replace(state, ended="end_turn")
        if token == self.vocabulary.end_document:
            return replace(state, ended="end_document")
        return state

    @cached_property
    def _codes(self) -> np.ndarray:
        return self.vocabulary.modality == Modality.IMAGE

    @cached_property
    def _end_image(self) -> np.ndarray:
        return np.arange(self.vocabulary.size) == self.vocabulary.end_image

    @cached_property
    def _outside(self) -> dict[bool, np.ndarray]:
        """Masks outside an image, by whether one may start."""
        without = (self.vocabulary.modality == Modality.TEXT) & self.text
        without[[self.vocabulary.end_turn, self.vocabulary.end_document]] = True
        with_image = without.copy()
        with_image[self.vocabulary.begin_image] = True
        return {False: without, True: with_image}
