"""How an image's codes lie among its tokens: on the one grid of all images, or on a grid that the image's tokens give.

```
FixedGrid       begin_image, codes row by row, end_image
GridInTokens    begin_image, rows, columns, rows of codes each with its new_line, end_image
```
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import PIL.Image
import PIL.ImageOps
from torch import Tensor

from chameleon_lab.pictures import rgb
from chameleon_lab.tokenizers.preparation import LANCZOS, pixels_of
from chameleon_lab.vocabulary import Modality, Vocabulary


class SlotKind(enum.Enum):
    """What stands at a place of an image."""

    SIDE = "a side of the grid"
    CODE = "a code"
    NEW_LINE = "new_line"
    END = "end_image"


class Slot(NamedTuple):
    """A place of an image: what stands there, and how many of the image's codes before it, of how many in all (0 while
    its grid is not known)."""

    kind: SlotKind
    codes: int
    total: int

    @property
    def share(self) -> float | None:
        """How much of the image is drawn, from 0 to below 1 while codes of it are missing, else None."""
        return self.codes / self.total if self.codes < self.total else None


class ImageForm(Protocol):
    """How an image is written between `begin_image` and `end_image`.

    A *place* counts the tokens since `begin_image`, and *sides* are (rows, columns) as far as the image has given them:
    all that a grammar has to remember of an image. `sides`: those of every image, () where each has its own. `ids`:
    which tokens may stand in a slot of each kind, booleans a token.
    """

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def sides(self) -> tuple[int, ...]: ...

    @property
    def ids(self) -> Mapping[SlotKind, np.ndarray]: ...

    def length(self, *sides: int) -> int:
        """Tokens of an image, delimiters included; a side not given is the smallest there is."""
        ...

    def slot(self, place: int, sides: tuple[int, ...]) -> Slot:
        """What stands at a place."""
        ...

    def advance(self, place: int, sides: tuple[int, ...], token: int) -> tuple[int, ...]:
        """The sides that are known after the token at a place."""
        ...

    def read(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """The codes, rows x columns, of the whole rows among an image's first tokens, delimiters left out."""
        ...

    def write(self, codes: np.ndarray) -> np.ndarray:
        """The tokens of codes, delimiters left out: what `read` reads. Raises ValueError for another shape."""
        ...


class FixedGrid:
    """An `ImageForm` of `rows` x `columns` codes and nothing else, which no token gives."""

    def __init__(self, vocabulary: Vocabulary, rows: int, columns: int) -> None:
        if rows * columns < 1:
            raise ValueError(f"An image has at least 1 code, not {rows * columns}.")
        self.vocabulary, self.ids, self.sides = vocabulary, _ids(vocabulary), (rows, columns)

    def length(self, *sides: int) -> int:
        return self.sides[0] * self.sides[1] + 2

    def slot(self, place: int, sides: tuple[int, ...]) -> Slot:
        rows, columns = self.sides
        return _slot(place, rows, columns, columns)

    def advance(self, place: int, sides: tuple[int, ...], token: int) -> tuple[int, ...]:
        return sides

    def read(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        return _rows_of(self.vocabulary.codes_of_tokens(np.asarray(tokens, np.int64)), self.sides[1])

    def write(self, codes: np.ndarray) -> np.ndarray:
        if codes.shape != self.sides:
            raise ValueError(f"Images of this model have a grid of {self.sides} codes; this one has {codes.shape}.")
        return self.vocabulary.tokens_of_codes(codes).ravel()


class GridInTokens:
    """An `ImageForm` whose first two tokens give its sides, even ones, and whose rows end in new lines (Lumina-mGPT,
    arXiv 2408.02657)."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.ids, self.sides = vocabulary, _ids(vocabulary), ()

    def length(self, *sides: int) -> int:
        rows, columns = (*sides, 2, 2)[:2]
        return rows * (columns + 1) + 4

    def slot(self, place: int, sides: tuple[int, ...]) -> Slot:
        if place < 2:
            return Slot(SlotKind.SIDE, 0, 0)
        rows, columns = sides
        return _slot(place - 2, rows, columns, columns + 1)

    def advance(self, place: int, sides: tuple[int, ...], token: int) -> tuple[int, ...]:
        return (*sides, self.vocabulary.side_of_token(token)) if place < 2 else sides

    def read(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        (_, columns), inner = tokens[:2], np.asarray(tokens[2:], np.int64)
        codes = self.vocabulary.codes_of_tokens(inner[inner != self.vocabulary.new_line])
        return _rows_of(codes, self.vocabulary.side_of_token(int(columns)))

    def write(self, codes: np.ndarray) -> np.ndarray:
        if codes.ndim != 2:
            raise ValueError(f"Images of this model have a grid of (rows, columns) codes; this one has {codes.shape}.")
        sides = [self.vocabulary.token_of_side(side) for side in codes.shape]
        tokens = self.vocabulary.tokens_of_codes(codes)
        lines = np.full(len(tokens), self.vocabulary.new_line)
        return np.concatenate([sides, np.column_stack([tokens, lines]).ravel()])


def image_form(vocabulary: Vocabulary, rows: int, columns: int) -> ImageForm:
    """How a vocabulary writes images: with their grids where it has tokens for them, else all of `rows` x `columns`."""
    return FixedGrid(vocabulary, rows, columns) if vocabulary.first_grid is None else GridInTokens(vocabulary)


@lru_cache(maxsize=2**14)  # a grammar asks twice a token, and most images have one of a few grids
def _slot(place: int, rows: int, columns: int, line: int) -> Slot:
    """What stands at a place, counted from the first code, where each row has `line` tokens."""
    row, column = divmod(place, line)
    kind = SlotKind.END if row == rows else SlotKind.NEW_LINE if column == columns else SlotKind.CODE
    return Slot(kind, row * columns + column, rows * columns)


def _ids(vocabulary: Vocabulary) -> dict[SlotKind, np.ndarray]:
    ids = {SlotKind.CODE: vocabulary.modality == Modality.IMAGE, SlotKind.END: np.zeros(vocabulary.size, bool)}
    ids[SlotKind.END][vocabulary.end_image] = True
    if vocabulary.first_grid is not None:
        ids |= {kind: np.zeros(vocabulary.size, bool) for kind in (SlotKind.SIDE, SlotKind.NEW_LINE)}
        ids[SlotKind.SIDE][vocabulary.first_grid + 1 : vocabulary.first_text] = True
        ids[SlotKind.NEW_LINE][vocabulary.new_line] = True
    return ids


def _rows_of(codes: np.ndarray, columns: int) -> np.ndarray:
    return codes[: len(codes) // columns * columns].reshape(-1, columns)


@dataclass(frozen=True)
class AreaGrid:
    """A preparation: of the grids of about `cells` squares in all, the one whose shape is nearest the picture's.

    The picture covers the grid by LANCZOS, and what stands over is cropped, as much on either side. `unit` is the side
    of a square in pixels: two codes, so that both sides of the grid are even. The grids are those that Lumina-mGPT was
    trained on (arXiv 2408.02657): down the stairs of at most `cells` squares, from the tallest to the widest, with
    sides at most `ratio` to 1.
    """

    unit: int
    cells: int
    ratio: float = 4

    def __post_init__(self) -> None:
        if self.unit < 1 or self.cells < 1 or self.ratio < 1:
            raise ValueError(f"unit, cells and ratio must be 1 or more; got {self.unit}, {self.cells}, {self.ratio}.")

    @cached_property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """All (rows, columns) of squares that pictures are given, from tall to wide."""
        stairs = [
            (rows, columns)
            for columns in range(1, self.cells + 1)
            for rows in range(self.cells // columns, max(1, self.cells // (columns + 1)) - 1, -1)
        ]
        return tuple(grid for grid in stairs if max(grid) <= self.ratio * min(grid))

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of squares for a picture of so many pixels."""

        def coverage(grid: tuple[int, int]) -> float:
            """The share of the picture that is not cropped."""
            rows, columns = grid
            return min(columns * height, rows * width) / max(columns * height, rows * width)

        return max(self.grids, key=coverage)

    def picture(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        picture = rgb(picture)
        rows, columns = self.grid(*picture.size)
        return PIL.ImageOps.fit(picture, (columns * self.unit, rows * self.unit), LANCZOS)

    def pixels(self, prepared: PIL.Image.Image) -> Tensor:
        return pixels_of(prepared)
