"""What the canvas sends to its views. `js/src/infill/messages.d.ts` declares the same for the scripts."""

from __future__ import annotations

from typing import Literal, TypedDict


class CanvasSegment(TypedDict):
    """A picture of `rows` x `columns` cells, or a text in words with the spaces before them (no rows, then).

    `hidden`: numbers of cells, row by row, or of words. `picture`: the buffer that holds it as PNG; -1 for a text, and
    for a picture that the views have.
    """

    words: list[str]
    rows: int
    columns: int
    hidden: list[int]
    picture: int


class CanvasUpdate(TypedDict):
    """What is on the canvas. `key` is another when the document is, and not when more or less of it is hidden.

    `fillings` and `seed` are what was asked for last.
    """

    kind: Literal["canvas"]
    key: int
    segments: list[CanvasSegment]
    undo: int
    redo: int
    fillings: int
    seed: int


class FilledPart(TypedDict):
    """A piece of text, or a picture (`picture`: its buffer), which has neither words; `filled`: the model wrote it."""

    text: str
    filled: bool
    picture: int


class FillingFacts(TypedDict):
    """One filling, as far as it has come: parts as they are now. `on_canvas`: it was taken."""

    seed: int
    state: Literal["waiting", "filling", "whole"]
    on_canvas: bool
    parts: list[FilledPart]


class FillingsUpdate(TypedDict):
    """The fillings of the last request that have changed, by number, of `count`."""

    kind: Literal["fillings"]
    count: int
    error: str
    changed: dict[str, FillingFacts]


CanvasMessage = CanvasUpdate | FillingsUpdate
