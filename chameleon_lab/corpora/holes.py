"""Scenes with something hidden, as people hide it: a thing, a rectangle, what a brush painted, words of the caption."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from chameleon_lab.corpora.conversations import Choice
from chameleon_lab.corpora.infilling import Span, cell_spans, code_places, move_spans
from chameleon_lab.corpora.packing import TokenizedDocument
from chameleon_lab.corpora.scenes import COLOURS, LATTICE_STEP, NOVEL_PAIRS, SHAPES, SIZES, Scene, Thing
from chameleon_lab.documents import Image
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer


def cells_of_thing(thing: Thing, grid: tuple[int, int]) -> np.ndarray:
    """The cells that a thing covers: rows x columns booleans."""
    hidden_RC, reach = np.zeros(grid, bool), -(-SIZES[thing.size] // LATTICE_STEP)
    column, row = thing.x // LATTICE_STEP, thing.y // LATTICE_STEP
    hidden_RC[max(0, row - reach) : row + reach, max(0, column - reach) : column + reach] = True
    return hidden_RC


def without_thing(scene: Scene, place: int) -> Scene:
    """The scene with one of its things taken away."""
    return replace(scene, things=tuple(thing for at, thing in enumerate(scene.things) if at != place))


def with_another_thing(scene: Scene, place: int, rng: Choice) -> Scene:
    """The scene with one of its things replaced by another one: shape, colour and, but in rows, size drawn anew."""
    before = scene.things[place]
    while True:
        size = before.size if len(scene.things) == 3 else list(SIZES)[int(rng.integers(len(SIZES)))]
        shape, colour = SHAPES[int(rng.integers(len(SHAPES)))], list(COLOURS)[int(rng.integers(len(COLOURS)))]
        thing = Thing(shape, colour, size, before.x, before.y)
        if thing.pair not in NOVEL_PAIRS and all(thing.pair != other.pair for other in scene.things):
            return replace(scene, things=tuple(thing if at == place else each for at, each in enumerate(scene.things)))


def _around_thing(scene: Scene, rng: Choice, grid: tuple[int, int]) -> np.ndarray:
    """A thing's cells, or some more."""
    return widened(cells_of_thing(scene.things[int(rng.integers(len(scene.things)))], grid), rng)


def widened(hidden_RC: np.ndarray, rng: Choice) -> np.ndarray:
    """A rectangle of cells, more often than not as it is, else with up to two more rows or columns on any side."""
    if rng.random() < 0.6:
        return hidden_RC
    rows, columns = np.flatnonzero(hidden_RC.any(1)), np.flatnonzero(hidden_RC.any(0))
    top, left, below, right = rng.integers(0, 3, 4)
    hidden_RC[max(0, rows[0] - top) : rows[-1] + 1 + below, max(0, columns[0] - left) : columns[-1] + 1 + right] = True
    return hidden_RC


def _rectangle(scene: Scene, rng: Choice, grid: tuple[int, int]) -> np.ndarray:
    hidden_RC = np.zeros(grid, bool)
    height, width = (int(rng.integers(1, side + 1)) for side in grid)
    top, left = int(rng.integers(grid[0] - height + 1)), int(rng.integers(grid[1] - width + 1))
    hidden_RC[top : top + height, left : left + width] = True
    return hidden_RC


def _brush(scene: Scene, rng: Choice, grid: tuple[int, int]) -> np.ndarray:
    """What a person paints: strokes of one to three cells' width, or scattered cells."""
    hidden_RC = np.zeros(grid, bool)
    if rng.random() < 0.3:
        return rng.random(grid) < rng.uniform(0.03, 0.5)
    for _ in range(int(rng.integers(1, 3))):
        row, column, wide = int(rng.integers(grid[0])), int(rng.integers(grid[1])), int(rng.integers(1, 4))
        for _ in range(int(rng.integers(1, 7))):
            hidden_RC[max(0, row) : row + wide, max(0, column) : column + wide] = True
            row, column = (int(np.clip(at + rng.integers(-1, 2), 0, 7)) for at in (row, column))
    return hidden_RC


HIDDEN_CELLS: Mapping[Callable[[Scene, Choice, tuple[int, int]], np.ndarray], float] = {
    _around_thing: 0.5,
    _rectangle: 0.25,
    _brush: 0.25,
}
"""What of a picture is hidden, and how often."""

DETAILS = frozenset(("a", "an", "the", "of", "in", "on", "and", "background"))
"""Words of captions that say nothing of the picture."""


def telling_words(words: list[str]) -> list[int]:
    """The places of the words that say something of the picture."""
    return [place for place, word in enumerate(words) if word.strip(",") not in DETAILS]


def hidden_words(caption: str, rng: Choice) -> tuple[list[str], int, int]:
    """The words of a caption, and from which to before which they are hidden: mostly one that says something."""
    words = caption.split(" ")
    if rng.random() < 0.6:
        telling = telling_words(words)
        start = telling[int(rng.integers(len(telling)))]
        return words, start, start + 1
    length = min(len(words), int(rng.integers(1, 7)) if rng.random() < 0.8 else len(words))
    start = int(rng.integers(len(words) - length + 1))
    return words, start, start + length


HOLE_KINDS: Mapping[str, float] = {"picture": 0.55, "words": 0.3, "both": 0.15}


def hole_document(
    scene: Scene,
    image: Image,
    tokenizer: MixedModalTokenizer,
    rng: Choice,
    hidden_RC: np.ndarray | None = None,
) -> TokenizedDocument:
    """A scene's picture and caption, or the picture alone, with something hidden: rearranged for infilling.

    `hidden_RC`: the cells that are hidden, where that is not to be drawn.
    """
    kind = str(rng.choice(list(HOLE_KINDS), p=list(HOLE_KINDS.values())))
    if hidden_RC is not None and kind == "words":
        kind = "picture"
    vocabulary, most = tokenizer.vocabulary, tokenizer.vocabulary.sentinels
    spans = list[Span]()
    parts = list[tuple[np.ndarray, list[Span]]]()  # tokens, and the spans in them
    if kind != "picture" or rng.random() < 0.7:
        words, start, stop = hidden_words(scene.caption(), rng)
        runs = [tokenizer.text.encode(" ".join(part)) for part in (words[:start], words[start:stop], words[stop:])]
        hidden = [Span(len(runs[0]), len(runs[0]) + len(runs[1]))] if kind != "picture" else []
        runs = runs if hidden else [tokenizer.text.encode(scene.caption())]
        pieces = [piece for run in runs for piece in run]
        parts.append((np.array([vocabulary.token_of_piece(piece) for piece in pieces], np.int64), hidden))
        most -= len(hidden)
    picture, hidden = tokenizer.encode_segment(image), list[Span]()
    if kind != "words":
        hide = list(HIDDEN_CELLS)[int(rng.choice(len(HIDDEN_CELLS), p=list(HIDDEN_CELLS.values())))]
        hidden_RC = hide(scene, rng, tokenizer.grid) if hidden_RC is None else hidden_RC
        if not hidden_RC.any():
            hidden_RC[tuple(rng.integers(tokenizer.grid))] = True
        hidden = cell_spans(code_places(picture, 0, tokenizer.grid, vocabulary), hidden_RC, most)
    parts.insert(int(rng.random() < 0.6) * len(parts), (picture, hidden))
    tokens = [np.array([vocabulary.begin_document])]
    length = 1
    for part, hidden in parts:
        spans += [Span(span.start + length, span.stop + length) for span in hidden]
        tokens.append(part)
        length += len(part)
    whole = np.concatenate([*tokens, [vocabulary.end_document]])
    learn = np.ones(len(whole), bool)
    learn[0] = False
    return move_spans(TokenizedDocument(whole, learn), spans, vocabulary)
