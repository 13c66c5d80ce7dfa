"""Scenes: a small drawn world with ground truth, and the split that keeps parts of it from the transformer.

- 8 shapes x 8 colours x 2 sizes over 6 backgrounds, 64x64 pixels, drawn at 4x and averaged down (antialiased)
- things sit on the 8-pixel lattice of the tiny image tokenizer: a small thing covers 2x2 cells, a large one 4x4
- one thing in 9 places, two side by side or one above the other, three in a row or a column; or all of them anywhere on
  the lattice ("free"), which no conversation has and instructions do
- `NOVEL_PAIRS`, one colour of each shape, never meet in the transformer's training; one arrangement in ten is held out
  besides, chosen by a hash of its things, so that the split depends on no seed
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import PIL.Image
import PIL.ImageDraw

SIDE = 64
"""Pixels along each side of a scene."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (252, 221, 40),
    "green": (34, 139, 58),
    "blue": (30, 80, 210),
    "purple": (128, 40, 160),
    "black": (22, 22, 26),
    "brown": (122, 70, 34),
}
BACKGROUNDS = {
    "gray": (158, 162, 168),
    "cyan": (140, 214, 232),
    "mint": (168, 230, 190),
    "pink": (250, 186, 206),
    "tan": (214, 184, 140),
    "lavender": (196, 182, 236),
}
SIZES = {"small": 7, "large": 14}
"""Radius in pixels."""

NOVEL_PAIRS = frozenset(
    {
        ("purple", "circle"),
        ("orange", "square"),
        ("blue", "triangle"),
        ("green", "star"),
        ("yellow", "heart"),
        ("black", "diamond"),
        ("red", "cross"),
        ("brown", "ring"),
    }
)

PLACES = {
    (x, y): name
    for (x, y), name in zip(
        ((x, y) for y in (16, 32, 48) for x in (16, 32, 48)),
        (
            *("in the top left", "at the top", "in the top right"),
            *("on the left", "in the center", "on the right"),
            *("in the bottom left", "at the bottom", "in the bottom right"),
        ),
        strict=True,
    )
}
"""Where a single thing can be: centre in pixels to the words for it."""

Arrangement = Literal["single", "beside", "above", "row", "column", "free"]
LATTICE_STEP = 8
"""Pixels from one point of the lattice to the next: a cell of the tiny image tokenizer."""
_CENTRES: dict[Arrangement, tuple[tuple[int, int], ...]] = {
    "beside": ((16, 32), (48, 32)),
    "above": ((32, 16), (32, 48)),
    "row": ((8, 32), (32, 32), (56, 32)),
    "column": ((32, 8), (32, 32), (32, 56)),
}


@dataclass(frozen=True)
class Thing:
    """One drawn object; (x, y) is its centre in pixels."""

    shape: str
    colour: str
    size: str
    x: int
    y: int

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape

    def phrase(self, size: bool = True) -> str:
        """ "a large red circle", or "a red circle"."""
        words = f"{self.size} {self.colour} {self.shape}" if size else f"{self.colour} {self.shape}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Scene:
    """Ground truth of one picture. Things are listed left to right, or top to bottom."""

    things: tuple[Thing, ...]
    background: str
    layout: Arrangement

    @property
    def place(self) -> str:
        """The words for a single thing's place."""
        return PLACES[self.things[0].x, self.things[0].y]

    @property
    def novel(self) -> bool:
        """Whether it shows a colour-shape pair of `NOVEL_PAIRS`, which the transformer's training never does."""
        return any(thing.pair in NOVEL_PAIRS for thing in self.things)

    @property
    def held_out(self) -> bool:
        """Whether this arrangement is kept from the transformer's training: one in ten, on any background."""
        return hashlib.sha256(repr(self.things).encode()).digest()[0] < 26

    @property
    def trainable(self) -> bool:
        return not (self.novel or self.held_out)

    def caption(self) -> str:
        """The one full caption of the scene; two scenes with the same caption look the same."""
        phrases = [thing.phrase() for thing in self.things]
        match self.layout:
            case "single":
                content = f"{phrases[0]} {self.place}"
            case "beside":
                content = f"{phrases[0]} left of {phrases[1]}"
            case "above":
                content = f"{phrases[0]} above {phrases[1]}"
            case "free":
                content = " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))
            case _:
                content = f"{', '.join(phrases[:-1])} and {phrases[-1]} in a {self.layout}"
        return f"{content} on a {self.background} background"

    def picture(self) -> PIL.Image.Image:
        """The scene drawn: RGB, `SIDE` pixels square, averaged down from 4 times the size (antialiased)."""
        scale, behind = 4, BACKGROUNDS[self.background]
        canvas = PIL.Image.new("RGB", (SIDE * scale, SIDE * scale), behind)
        for thing in self.things:
            _draw_thing(PIL.ImageDraw.Draw(canvas), thing, behind, scale)
        return canvas.resize((SIDE, SIDE), PIL.Image.Resampling.BOX)


def _draw_thing(draw: PIL.ImageDraw.ImageDraw, thing: Thing, behind: tuple[int, int, int], scale: int) -> None:
    colour = COLOURS[thing.colour]
    x, y, r = thing.x * scale, thing.y * scale, SIZES[thing.size] * scale

    def disc(radius: float, fill: tuple[int, int, int]) -> None:
        draw.ellipse((x - radius, y - radius, x + radius - 1, y + radius - 1), fill=fill)

    match thing.shape:
        case "circle":
            disc(r, colour)
        case "ring":
            disc(r, colour)
            disc(r * 0.55, behind)
        case "square":
            side = r * 0.86
            draw.rectangle((x - side, y - side, x + side - 1, y + side - 1), fill=colour)
        case "cross":
            arm = r * 0.33
            draw.rectangle((x - r, y - arm, x + r - 1, y + arm - 1), fill=colour)
            draw.rectangle((x - arm, y - r, x + arm - 1, y + r - 1), fill=colour)
        case shape:
            draw.polygon([(x + r * u, y + r * v) for u, v in _outline(shape)], fill=colour)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a polygon shape in a [-1, 1] square, y downwards."""
    match shape:
        case "triangle":
            return [(0, -1), (1, 0.85), (-1, 0.85)]
        case "diamond":
            return [(0, -1), (0.72, 0), (0, 1), (-0.72, 0)]
        case "star":
            radii = [1.08 if corner % 2 == 0 else 0.44 for corner in range(10)]
            angles = [math.pi * corner / 5 - math.pi / 2 for corner in range(10)]
            return [(r * math.cos(a), r * math.sin(a) + 0.06) for r, a in zip(radii, angles, strict=True)]
        case "heart":
            angles = [2 * math.pi * step / 48 for step in range(48)]
            return [
                (
                    math.sin(a) ** 3,
                    -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 15.5 - 0.08,
                )
                for a in angles
            ]
    raise ValueError(f"No shape is called {shape!r}; the shapes are {', '.join(SHAPES)}.")


def arrange(
    specs: list[tuple[str, str, str]], layout: Arrangement, background: str, place: tuple[int, int] = (32, 32)
) -> Scene:
    """A scene from (shape, colour, size) triples; `place` is the centre of a single thing."""
    centres = (place,) if layout == "single" else _CENTRES[layout]
    things = tuple(Thing(*spec, *centre) for spec, centre in zip(specs, centres, strict=True))
    return Scene(things, background, layout)


def sample_scene(rng: np.random.Generator, count: int | None = None) -> Scene:
    """Any scene at all; `count` things (1 to 3), or 35 % one, 50 % two, 15 % three."""
    if count is None:
        count = int(rng.choice((1, 2, 3), p=(0.35, 0.5, 0.15)))
    layouts: tuple[Arrangement, ...] = {1: ("single",), 2: ("beside", "above"), 3: ("row", "column")}[count]
    layout = layouts[rng.integers(len(layouts))]
    colours, sizes = tuple(COLOURS), tuple(SIZES)
    specs: list[tuple[str, str, str]] = []
    while len(specs) < count:
        shape, colour = SHAPES[rng.integers(len(SHAPES))], colours[rng.integers(len(colours))]
        size = "small" if count == 3 else sizes[rng.integers(2)]
        if all((shape, colour) != spec[:2] for spec in specs):
            specs.append((shape, colour, size))
    place = tuple(PLACES)[rng.integers(len(PLACES))]
    return arrange(specs, layout, tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))], place)


def sample_free(rng: np.random.Generator, count: int | None = None) -> Scene:
    """One to three things (30, 45, 25 %) anywhere on the lattice, none in the square of another; three are small."""
    if count is None:
        count = int(rng.choice((1, 2, 3), p=(0.3, 0.45, 0.25)))
    colours, sizes, things = tuple(COLOURS), tuple(SIZES), list[Thing]()
    while len(things) < count:
        size = "small" if count == 3 else sizes[rng.integers(2)]
        reach = square_reach(size) // LATTICE_STEP
        x, y = (LATTICE_STEP * int(rng.integers(reach, SIDE // LATTICE_STEP - reach + 1)) for _ in range(2))
        thing = Thing(SHAPES[rng.integers(len(SHAPES))], colours[rng.integers(len(colours))], size, x, y)
        if all(thing.pair != other.pair and _apart(thing, other) for other in things):
            things.append(thing)
        elif rng.random() < 0.02:
            things.clear()  # two large things may leave no room
    ordered = tuple(sorted(things, key=lambda thing: (thing.x, thing.y)))
    return Scene(ordered, tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))], "free")


def square_reach(size: str) -> int:
    """Pixels from a thing's centre to the edges of the square of whole cells that holds it."""
    return -(-SIZES[size] // LATTICE_STEP) * LATTICE_STEP


def _apart(one: Thing, other: Thing) -> bool:
    return max(abs(one.x - other.x), abs(one.y - other.y)) >= square_reach(one.size) + square_reach(other.size)


def sample_where(
    rng: np.random.Generator,
    where: str,
    count: int | None = None,
    sample: Callable[[np.random.Generator, int | None], Scene] = sample_scene,
) -> Scene:
    """A scene of one side of the split: "trainable"; "held_out" (no novel pair); or "novel" (at least one)."""
    while True:
        scene = sample(rng, count)
        side = "novel" if scene.novel else "held_out" if scene.held_out else "trainable"
        if side == where:
            return scene
