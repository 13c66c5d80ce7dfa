"""Codes of scenes, each encoded once: a scene is always drawn alike, so a training need not draw it again.

`scene_number` counts all scenes there are: 6,912 of one thing, 196,608 of two, 3,145,728 of three.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import PIL.Image

from chameleon_lab.corpora.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Arrangement, Scene, arrange
from chameleon_lab.documents import Image
from chameleon_lab.files import read_array

LAYOUTS: tuple[tuple[Arrangement, ...], ...] = (("single",), ("beside", "above"), ("row", "column"))
"""By the number of things, less one."""

_PAIRS, _SPECS, _GROUNDS = len(SHAPES) * len(COLOURS), len(SHAPES) * len(COLOURS) * len(SIZES), len(BACKGROUNDS)
_STARTS = np.cumsum([0, _SPECS * len(PLACES) * _GROUNDS, _SPECS**2 * 2 * _GROUNDS, _PAIRS**3 * 2 * _GROUNDS]).tolist()


def scene_range(count: int) -> tuple[int, int]:
    """The first number of the scenes of so many things, and the one after their last."""
    return _STARTS[count - 1], _STARTS[count]


def scene_number(scene: Scene) -> int | None:
    """The number of a scene from 0 on; None for one that `sample_scene` never gives: bare ground, two things of a row,
    things that stand free.

    Things of three are small, so that their sizes do not count.
    """
    count, number = len(scene.things), 0
    if not count or scene.layout == "free" or (count > 1 and scene.layout not in LAYOUTS[count - 1]):
        return None
    for thing in scene.things:
        number = (number * len(SHAPES) + SHAPES.index(thing.shape)) * len(COLOURS) + list(COLOURS).index(thing.colour)
        if count < 3:
            number = number * len(SIZES) + list(SIZES).index(thing.size)
    places = list(PLACES)
    if count == 1:
        number = number * len(places) + places.index((scene.things[0].x, scene.things[0].y))
    else:
        number = number * 2 + LAYOUTS[count - 1].index(scene.layout)
    return _STARTS[count - 1] + number * _GROUNDS + list(BACKGROUNDS).index(scene.background)


def numbered_scene(number: int) -> Scene:
    """The scene of a number. Two things of it may be alike, which no sampled scene has."""
    count = 1 + sum(number >= start for start in _STARTS[1:3])
    number, ground = divmod(number - _STARTS[count - 1], _GROUNDS)
    number, place = divmod(number, len(PLACES) if count == 1 else 2)
    specs = list[tuple[str, str, str]]()
    for _ in range(count):
        size = 0
        if count < 3:
            number, size = divmod(number, len(SIZES))
        number, colour = divmod(number, len(COLOURS))
        number, shape = divmod(number, len(SHAPES))
        specs.insert(0, (SHAPES[shape], list(COLOURS)[colour], list(SIZES)[size]))
    layout = LAYOUTS[count - 1][0 if count == 1 else place]
    where = list(PLACES)[place] if count == 1 else (32, 32)
    return arrange(specs, layout, list(BACKGROUNDS)[ground], where)


ENCODE_ANEW = "Move its folder away to have the scenes encoded anew."


class SceneCodes:
    """The codes of many scenes in a folder, read from disk as they are asked for: `codes[scene]`, None where a scene is
    not among them. `numbers_S` are the scenes that are, rising. Raises ValueError for a damaged folder."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.numbers_S = read_array(self.folder / "numbers.npy", None, remedy=ENCODE_ANEW)
        self.codes_SHW = read_array(self.folder / "codes.npy", len(self.numbers_S), None, None, remedy=ENCODE_ANEW)
        if len(self.numbers_S) and not (
            self.numbers_S[0] >= 0 and (np.diff(self.numbers_S) > 0).all() and self.numbers_S[-1] < _STARTS[-1]
        ):
            raise ValueError(
                f"{self.folder / 'numbers.npy'} is damaged: it holds no rising numbers of scenes. {ENCODE_ANEW}"
            )

    def __getitem__(self, scene: Scene) -> np.ndarray | None:
        number = scene_number(scene)
        if number is None:
            return None
        row = int(np.searchsorted(self.numbers_S, number))
        there = row < len(self.numbers_S) and self.numbers_S[row] == number
        return self.codes_SHW[row].astype(np.int64) if there else None

    def scenes_of(self, count: int) -> range:
        """The rows of the scenes of so many things."""
        return range(*np.searchsorted(self.numbers_S, scene_range(count)).tolist())


_known_codes: ContextVar[SceneCodes | None] = ContextVar("scene codes", default=None)
_PLACEHOLDER = PIL.Image.new("RGB", (1, 1))  # codes are used instead


@contextmanager
def drawn_with(codes: SceneCodes) -> Iterator[None]:
    """Within, documents about scenes hold these codes in place of pictures, where there are some."""
    token = _known_codes.set(codes)
    try:
        yield
    finally:
        _known_codes.reset(token)


def image_of_scene(scene: Scene, learn: bool = True) -> Image:
    """The scene as a segment: its picture, or its codes alone where it is `drawn_with` some."""
    table = _known_codes.get()
    codes = None if table is None else table[scene]
    return Image(scene.picture(), learn=learn) if codes is None else Image(_PLACEHOLDER, codes, learn)
