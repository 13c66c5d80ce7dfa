"""Flags: pictures of which there are too many to learn, each with an invented name that only a document explains.

- a flag is four fields of `scenes.COLOURS`: 4,096 of them, on any background of `scenes.BACKGROUNDS`
- each document draws its names and flags anew, so that no name can be learned: the one way to draw "the flag of dax" is
  to look it up in what comes before
- one flag in four and one name in four are held out of all training, by their hash
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import PIL.Image

from chameleon_lab.corpora.conversations import draw_request, drawing
from chameleon_lab.corpora.scene_codes import image_of_scene
from chameleon_lab.corpora.scenes import BACKGROUNDS, COLOURS, SIDE, sample_where
from chameleon_lab.documents import Document, EndTurn

FIELD = 24
"""Pixels along a field: three cells of the tiny image tokenizer, which keeps all four colours of 97 flags in 100."""

RIM = (SIDE - 2 * FIELD) // 2
CONSONANTS, VOWELS = "bdfgklmnprstvwy", "aeiou"  # of which the tiny text tokenizer has pieces


@dataclass(frozen=True)
class Flag:
    """A name, and the colours of its fields: top left, top right, bottom left, bottom right."""

    name: str
    colours: tuple[str, str, str, str]

    def picture(self, background: str) -> PIL.Image.Image:
        """The flag on a background: RGB, `scenes.SIDE` pixels square."""
        picture = PIL.Image.new("RGB", (SIDE, SIDE), BACKGROUNDS[background])
        for number, colour in enumerate(self.colours):
            row, column = divmod(number, 2)
            left, top = RIM + column * FIELD, RIM + row * FIELD
            picture.paste(COLOURS[colour], (left, top, left + FIELD, top + FIELD))
        return picture

    def caption(self, background: str) -> str:
        return f"the flag of {self.name} on a {background} background"

    def document(self, background: str) -> Document:
        """What a bank holds of it: its caption, and its picture."""
        return Document.of(self.caption(background), self.picture(background))

    def request(self, background: str) -> Document:
        return Document.of(f"draw {self.caption(background)}", EndTurn())


def read_flag(picture: PIL.Image.Image) -> tuple[tuple[str, ...], str]:
    """The colours of the four fields and the background in a picture, whatever it shows: of each part the palette's
    colour that is nearest to the median of its inner pixels."""
    pixels_HWC = np.asarray(picture.convert("RGB").resize((SIDE, SIDE)), np.float32)
    colours = list[str]()
    for row in range(2):
        for column in range(2):
            top, left = RIM + row * FIELD + 2, RIM + column * FIELD + 2
            colours.append(_palette_colour(pixels_HWC[top : top + FIELD - 4, left : left + FIELD - 4], COLOURS))
    rim = np.ones((SIDE, SIDE), bool)
    rim[RIM - 2 : 2 - RIM, RIM - 2 : 2 - RIM] = False
    return tuple(colours), _palette_colour(pixels_HWC[rim], BACKGROUNDS)


def _palette_colour(pixels: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    median_C = np.median(pixels.reshape(-1, 3), axis=0)
    distances = [np.linalg.norm(median_C - np.array(colour)) for colour in palette.values()]
    return list(palette)[int(np.argmin(distances))]


def is_held_out(words: str) -> bool:
    """Whether training never has this name, or these colours: one in four."""
    return hashlib.sha256(words.encode()).digest()[0] < 64


def sample_name(rng: np.random.Generator, held_out: bool = False) -> str:
    """A word of one or two syllables, of one side of the split; none of the words of scenes is among them."""
    while True:
        count = int(rng.integers(1, 3))
        letters = [source[int(rng.integers(len(source)))] for source in (CONSONANTS, VOWELS) * count + (CONSONANTS,)]
        name = "".join(letters)
        if is_held_out(name) == held_out and name not in (*COLOURS, *BACKGROUNDS):
            return name


def sample_flags(rng: np.random.Generator, count: int, held_out: bool = False) -> list[Flag]:
    """So many flags of one side of the split, no two of one name or of the same colours."""
    flags = list[Flag]()
    while len(flags) < count:
        first, second, third, last = (str(colour) for colour in rng.choice(list(COLOURS), 4))
        colours = first, second, third, last
        name = sample_name(rng, held_out)
        if is_held_out(" ".join(colours)) == held_out and all(
            name != flag.name and colours != flag.colours for flag in flags
        ):
            flags.append(Flag(name, colours))
    return flags


def sample_background(rng: np.random.Generator) -> str:
    return list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]


def looked_up(rng: np.random.Generator, queries: int = 3, two_flags: float = 0.4) -> tuple[list[Document], Document]:
    """Documents to be put before a document, and that document: `queries` requests for flags that they explain.

    One document, two of one flag (half as often), or two of two flags (the share `two_flags`). One time in twelve the
    requests are for scenes, to which what stands before is of no use; one time in twelve nothing stands before one.
    """
    kind = rng.random()
    if kind < 1 / 12:
        return [], drawing(rng)
    flags = sample_flags(rng, 2 if rng.random() < two_flags else 1)
    sources = flags * 2 if len(flags) == 1 and rng.random() < 1 / 3 else flags
    retrieved = [flag.document(sample_background(rng)) for flag in sources]
    document = Document()
    for _ in range(queries):
        if kind < 1 / 6:
            scene = sample_where(rng, "trainable", 1)
            request, picture = Document.of(draw_request(scene, rng, full=True), EndTurn()), image_of_scene(scene)
        else:
            flag, background = flags[int(rng.integers(len(flags)))], sample_background(rng)
            request, picture = flag.request(background), flag.picture(background)
        document += request.learning(False) + Document.of(picture, EndTurn())
    return retrieved, document
