"""How much of a text can still be read after an image tokenizer's round trip: the share of characters read back.

- a fixed set of pictures of 256 pixels, with lines of words and numbers at five sizes in several fonts and colours
- a text recogniser that a package ships (PP-OCRv6 in RapidOCR, Apache-2.0; the extra `ocr`) reads each line, whose
  place is known, from the original and from the reconstruction; it never looks for lines itself
- the recogniser reads even 8 pixels of the originals almost without a fault, so that what is lost is the tokenizer's
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from chameleon_lab.records import Reconstruction
from chameleon_lab.tokenizers.preparation import CentreCrop, Preparation

FONT_SIZES = (8, 12, 16, 24, 36)
"""In pixels: a capital letter is about 0.7 of it high."""

LETTERED_SIDE = 256
LINES_OF_A_PICTURE = 3
MARGIN = 3  # pixels around a line that the recogniser sees

WORDS_TO_READ = """
Amber anchor basket bridge candle carbon copper cotton dragon ember falcon forest garden ginger guitar hammer harbour
island jacket kettle ladder lantern marble meadow needle ocean orchid paper pepper pillow quartz ribbon river saddle
silver tunnel velvet violin walnut window
"""

INK_AND_PAPER = (
    ((20, 20, 24), (248, 246, 240)),
    ((250, 250, 245), (30, 60, 90)),
    ((120, 20, 30), (236, 214, 150)),
)
"""Taken in turn."""

DEJAVU = ("DejaVuSans.ttf", "DejaVuSerif-Bold.ttf")
"""Fonts of matplotlib, which is not imported for them; Pillow has one of its own."""

LineReader = Callable[[PIL.Image.Image], str]
"""What a text recogniser reads in a picture of one line."""


@dataclass(frozen=True)
class LetteredPicture:
    """A picture with lines of text of one font size in pixels; `lines` are the texts and their boxes."""

    picture: PIL.Image.Image
    size: int
    lines: tuple[tuple[str, tuple[int, int, int, int]], ...]


@lru_cache(maxsize=1)
def lettered_pictures() -> tuple[LetteredPicture, ...]:
    """The fixed set: each font at each size. Where matplotlib is not installed, Pillow's font stands for its two."""
    rng = np.random.default_rng(5)
    spec = find_spec("matplotlib")
    folder = Path(spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else "")
    files = [folder / "mpl-data" / "fonts" / "ttf" / name for name in DEJAVU]
    pictures = list[LetteredPicture]()
    for size in FONT_SIZES:
        for number, file in enumerate([None, *files]):
            own = file is None or not file.is_file()
            font = PIL.ImageFont.load_default(size) if own else PIL.ImageFont.truetype(str(file), size)
            pictures.append(_lettered(font, size, INK_AND_PAPER[(number + size // 4) % len(INK_AND_PAPER)], rng))
    return tuple(pictures)


def _lettered(
    font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont,
    size: int,
    colours: tuple[tuple[int, int, int], tuple[int, int, int]],
    rng: np.random.Generator,
) -> LetteredPicture:
    (ink, paper), words = colours, WORDS_TO_READ.split()
    picture = PIL.Image.new("RGB", (LETTERED_SIDE, LETTERED_SIDE), paper)
    drawing, lines = PIL.ImageDraw.Draw(picture), list[tuple[str, tuple[int, int, int, int]]]()
    band = LETTERED_SIDE // LINES_OF_A_PICTURE
    for line in range(LINES_OF_A_PICTURE):
        text = f"{rng.choice(words)} {rng.integers(10, 100)}"
        if drawing.textlength(f"{text} {words[-1]}", font) < LETTERED_SIDE - 4 * MARGIN:
            text = f"{text} {rng.choice(words)}"
        left, top, right, bottom = map(round, drawing.textbbox((0, 0), text, font))
        x = rng.integers(MARGIN, max(MARGIN + 1, LETTERED_SIDE - MARGIN - (right - left)))
        y = band * line + rng.integers(MARGIN, max(MARGIN + 1, band - MARGIN - (bottom - top)))
        drawing.text((int(x - left), int(y - top)), text, ink, font)
        corner = int(x - MARGIN), int(y - MARGIN)
        box = (*corner, int(x + right - left + MARGIN), int(y + bottom - top + MARGIN))
        lines.append((text, box))
    return LetteredPicture(picture, size, tuple(lines))


def characters_read(text: str, reading: str) -> float:
    """The share of a text's characters that a reading has in the same order: 1 - edit distance / length, 0 at least.

    Spaces do not count, and capitals are read as small letters.
    """
    text, reading = ("".join(each.split()).casefold() for each in (text, reading))
    row = list(range(len(reading) + 1))
    for above, letter in enumerate(text, 1):
        corner, row[0] = row[0], above
        for place, other in enumerate(reading, 1):
            corner, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, corner + (letter != other))
    return max(0.0, 1 - row[-1] / max(1, len(text)))


class RapidReader:
    """The recogniser of RapidOCR, for lines of Latin letters and Chinese: a `LineReader`, 0.1 s a line on a core."""

    def __init__(self) -> None:
        """Raises ValueError without the extra `ocr`."""
        try:
            from rapidocr import RapidOCR  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(
                f"Reading text in pictures needs RapidOCR, which cannot be loaded here ({error}): "
                "pip install 'chameleon-lab[ocr]'."
            ) from error
        logging.getLogger("RapidOCR").setLevel(logging.ERROR)  # it warns of each line in which it reads nothing
        self._engine = RapidOCR(params={"Global.log_level": "error"})

    def __call__(self, line: PIL.Image.Image) -> str:
        bgr = np.asarray(line.convert("RGB"))[:, :, ::-1]
        outcome = self._engine(np.ascontiguousarray(bgr), use_det=False, use_cls=False, use_rec=True)
        return " ".join(outcome.txts or ())


@dataclass(frozen=True)
class Legibility:
    """The share of characters read back, by font size in pixels; `share` is the mean over the sizes."""

    by_size: Mapping[int, float]

    @property
    def share(self) -> float:
        return mean(self.by_size.values())

    @property
    def summary(self) -> str:
        sizes = ", ".join(f"{size} px {share:.0%}" for size, share in self.by_size.items())
        return f"{self.share:.0%} of characters read back ({sizes})"


def legibility(
    reconstruct: Callable[[PIL.Image.Image, Preparation], Reconstruction] | None,
    reader: LineReader,
    pictures: Sequence[LetteredPicture] | None = None,
) -> Legibility:
    """How much a recogniser reads of `pictures`, the fixed set unless given, after a round trip.

    `reconstruct`: an image tokenizer's method of that name; None reads the originals. Every tokenizer gets the same
    256 x 256 pixels, whatever its own side.
    """
    shares: dict[int, list[float]] = {}
    for each in lettered_pictures() if pictures is None else pictures:
        policy = CentreCrop(each.picture.width)
        picture = each.picture if reconstruct is None else reconstruct(each.picture, policy).picture
        scores = [characters_read(text, reader(picture.crop(box))) for text, box in each.lines]
        shares.setdefault(each.size, []).extend(scores)
    return Legibility({size: mean(values) for size, values in sorted(shares.items())})
