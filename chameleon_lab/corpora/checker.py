"""The checker: reads a scene's attributes back out of pixels, knowing nothing of models or tokenizers.

- the background is the palette colour that most pixels are nearest to
- connected pixels that differ from it are a thing, whose colour is the palette colour nearest to its inner pixels
- its coverage (how much of each pixel is thing) is compared with every shape's at both sizes: the best overlap names it
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import PIL.Image

from chameleon_lab.corpora.scenes import BACKGROUNDS, COLOURS, LATTICE_STEP, PLACES, SHAPES, SIZES, Scene, Thing
from chameleon_lab.pictures import require_size

COVERAGE_SIDE = 36
"""Side of the square in which coverages are compared, pixels."""


@dataclass(frozen=True)
class ThingReading:
    """One thing as read: its centre in pixels, and how well its coverage overlaps the named shape's (0 to 1)."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    overlap: float


@dataclass(frozen=True)
class SceneReading:
    """The background and the things that the checker read from a picture.

    Things go left to right, or top to bottom where they spread further down than across.
    """

    background: str
    things: tuple[ThingReading, ...]


def read_scene(picture: PIL.Image.Image) -> SceneReading:
    """The things and the background in a picture of `scenes.SIDE` pixels square."""
    require_size(picture)
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    background = _nearest(pixels.reshape(-1, 3), BACKGROUNDS)
    behind = np.array(BACKGROUNDS[background], np.float32)
    differs = np.linalg.norm(pixels - behind, axis=-1) > 40
    things = [thing for mask in _connected_parts(differs) if (thing := _read_thing(pixels, mask, behind))]
    wide = np.ptp([thing.x for thing in things]) >= np.ptp([thing.y for thing in things]) if things else True
    return SceneReading(background, tuple(sorted(things, key=lambda thing: thing.x if wide else thing.y)))


def compare_scenes(scene: Scene, reading: SceneReading) -> dict[str, bool]:
    """Which attributes of a scene a reading has right: attribute to verdict.

    `count`, `colours`, `shapes`, `binding` (colours with their shapes), `sizes` (bound as well), `background`, and
    `layout` (the place of one thing, or of each where they stand free; the relation or order of several). With another
    count of things `binding`, `sizes` and `layout` are wrong. "all" is everything together.
    """
    real, read = scene.things, reading.things
    same_count = len(real) == len(read)
    verdicts = {
        "count": same_count,
        "background": scene.background == reading.background,
        "colours": Counter(t.colour for t in real) == Counter(t.colour for t in read),
        "shapes": Counter(t.shape for t in real) == Counter(t.shape for t in read),
        "binding": Counter(t.pair for t in real) == Counter((t.colour, t.shape) for t in read),
        "sizes": Counter((*t.pair, t.size) for t in real) == Counter((t.colour, t.shape, t.size) for t in read),
        "layout": same_count and _same_layout(scene, read),
    }
    return {**verdicts, "all": all(verdicts.values())}


def _same_layout(scene: Scene, read: tuple[ThingReading, ...]) -> bool:
    if scene.layout == "single":
        nearest = min(PLACES, key=lambda place: np.hypot(place[0] - read[0].x, place[1] - read[0].y))
        return PLACES[nearest] == scene.place
    if scene.layout == "free":
        return all(any(_stands_at(thing, each) for each in read) for thing in scene.things)
    across, along = np.ptp([t.x for t in read]), np.ptp([t.y for t in read])
    sideways = scene.layout in ("beside", "row")
    in_order = [t.pair for t in scene.things] == [(t.colour, t.shape) for t in read]
    return in_order and bool(across > along if sideways else along > across)


def _stands_at(thing: Thing, reading: ThingReading) -> bool:
    """Whether this is that thing, at the same point of the lattice."""
    near = max(abs(reading.x - thing.x), abs(reading.y - thing.y)) < LATTICE_STEP / 2
    return near and (reading.colour, reading.shape) == thing.pair


def _nearest(pixels_X3: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """The palette colour nearest to most pixels; pixels far from all of the palette do not count."""
    colours = np.array(list(palette.values()), np.float32)
    distances = np.linalg.norm(pixels_X3[:, None] - colours, axis=-1)
    voices = np.bincount(distances.argmin(1)[distances.min(1) < 60], minlength=len(palette))
    return list(palette)[int(voices.argmax() if voices.any() else distances.sum(0).argmin())]


def _connected_parts(mask: np.ndarray) -> list[np.ndarray]:
    """Connected parts of a mask (4 neighbours), specks left out."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = np.where(mask, np.maximum.reduce(_around(labels)), 0)
        if np.array_equal(spread, labels):
            break
        labels = spread
    return [labels == label for label in np.unique(labels[labels > 0]) if (labels == label).sum() >= 20]


def _read_thing(pixels: np.ndarray, mask: np.ndarray, behind: np.ndarray) -> ThingReading | None:
    inner = np.logical_and.reduce(_around(mask))
    if not inner.any():
        return None
    colour = _nearest(np.median(pixels[inner], axis=0, keepdims=True), COLOURS)
    coverage = np.where(np.logical_or.reduce(_around(mask)), _coverage(pixels, behind, colour), 0)
    solid = np.argwhere(coverage > 0.5)
    if not len(solid):
        return None
    (top, left), (bottom, right) = solid.min(0), solid.max(0)
    window = _window(coverage, (top + bottom) / 2, (left + right) / 2)
    overlap, shape, size = max((_overlap(window, template), *name) for name, template in _templates().items())
    return ThingReading(shape, colour, size, (left + right + 1) / 2, (top + bottom + 1) / 2, overlap)


def _coverage(pixels: np.ndarray, behind: np.ndarray, colour: str) -> np.ndarray:
    """The share of each pixel that the thing covers, 0 to 1, taking its colour and the background for the only two."""
    step = np.array(COLOURS[colour], np.float32) - behind
    return np.clip((pixels - behind) @ step / (step @ step), 0, 1)


def _around(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """The values themselves and, for each pixel, those of its 4 neighbours; 0 outside the picture."""
    padded = np.pad(values, 1)
    return values, padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]


def _window(coverage: np.ndarray, row: float, column: float) -> np.ndarray:
    padded = np.pad(coverage, COVERAGE_SIDE // 2)
    top, left = round(row + 0.01), round(column + 0.01)
    return padded[top : top + COVERAGE_SIDE, left : left + COVERAGE_SIDE]


def _overlap(window: np.ndarray, template: np.ndarray) -> float:
    """Intersection over union of two coverages, at the best of nine shifts of up to a pixel."""
    shifts = [np.roll(window, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return max(float(np.minimum(s, template).sum() / np.maximum(s, template).sum()) for s in shifts)


@cache
def _templates() -> dict[tuple[str, str], np.ndarray]:
    """Coverage of every shape at every size, as drawn in black in the middle of a gray scene."""
    behind = np.array(BACKGROUNDS["gray"], np.float32)
    templates = {}
    for shape in SHAPES:
        for size in SIZES:
            picture = Scene((Thing(shape, "black", size, 32, 32),), "gray", "single").picture()
            coverage = _coverage(np.asarray(picture, np.float32), behind, "black")
            (top, left), (bottom, right) = (f(np.argwhere(coverage > 0.5), axis=0) for f in (np.min, np.max))
            templates[shape, size] = _window(coverage, (top + bottom) / 2, (left + right) / 2)
    return templates
