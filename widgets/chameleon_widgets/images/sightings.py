"""Where codes were seen: pictures beside their codes, the patches that became a code, and how often each was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import PIL.Image

from chameleon_lab.records import CodebookUsage


@dataclass(frozen=True, eq=False)
class Sighting:
    """A picture as the encoder saw it, and its codes (rows x columns)."""

    name: str
    picture: PIL.Image.Image
    codes: np.ndarray


class Place(NamedTuple):
    """A cell in the pictures seen: the picture's index, and the cell's row and column."""

    picture: int
    row: int
    column: int


class Sightings:
    """Pictures and their codes as they come in; `usage` counts them all, a point of its curve each picture."""

    def __init__(self, size: int) -> None:
        self.pictures: tuple[Sighting, ...] = ()
        self.usage = CodebookUsage(np.zeros(size, np.int64))

    def add(self, name: str, picture: PIL.Image.Image, codes: np.ndarray) -> None:
        """Raises ValueError when the codes are no rows x columns of codes of the book."""
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.dtype.kind not in "iu" or not codes.size:
            raise ValueError(
                f"Codes of a picture are a rows x columns array of integers; got {codes.dtype} {codes.shape}."
            )
        before = self.usage
        counts_N = before.counts_N + CodebookUsage.of([codes], len(before.counts_N)).counts_N
        point = (int(counts_N.sum()), int((counts_N > 0).sum()))
        self.pictures = (*self.pictures, Sighting(name, picture, codes))
        self.usage = CodebookUsage(counts_N, (*before.curve, point))

    def places(self, code: int, most: int) -> tuple[list[Place], int]:
        """Up to `most` places of a code, spread evenly over all there are, and how many there are."""
        cells = [np.argwhere(sighting.codes == code) for sighting in self.pictures]
        pictures = np.repeat(np.arange(len(cells)), [len(each) for each in cells])
        places = np.concatenate(cells) if cells else np.empty((0, 2), int)
        picks = np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)
        return [Place(int(pictures[pick]), *places[pick].tolist()) for pick in picks], len(places)

    def patch(self, place: Place) -> PIL.Image.Image:
        """The pixels of a place."""
        sighting = self.pictures[place.picture]
        rows, columns = sighting.codes.shape
        return cell(sighting.picture, rows, columns, place.row, place.column)


def cell(picture: PIL.Image.Image, rows: int, columns: int, row: int, column: int) -> PIL.Image.Image:
    """The part of a picture that one cell of a grid over it covers; at least a pixel."""
    left, top = column * picture.width // columns, row * picture.height // rows
    right, bottom = (column + 1) * picture.width // columns, (row + 1) * picture.height // rows
    return picture.crop((left, top, max(left + 1, right), max(top + 1, bottom)))


def named(pictures: Mapping[str, PIL.Image.Image] | Sequence[PIL.Image.Image]) -> dict[str, PIL.Image.Image]:
    """Pictures by name; those of a sequence are called by their number. Raises TypeError for what is no PIL picture."""
    if not isinstance(pictures, Mapping):
        pictures = {f"picture {number}": picture for number, picture in enumerate(pictures, 1)}
    for name, picture in pictures.items():
        if not isinstance(picture, PIL.Image.Image):
            raise TypeError(f"“{name}” is a {type(picture).__name__}, not a PIL picture; open it with PIL.Image.open.")
    return {str(name): picture for name, picture in pictures.items()}
