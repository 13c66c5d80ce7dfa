"""A model that is no model: it replies in words, draws when asked to, and can be told to fail or to wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import PIL.Image
import PIL.ImageDraw

from chameleon_lab.documents import Document
from chameleon_lab.records import ImagePiece, Piece, StopPiece, TextPiece

ROWS = 8
closed: list[str] = []  # how each stream ended
gate = threading.Event()  # held pictures go on when it is set


def scene(first: str = "#d8413a", second: str = "#2f6fd6") -> PIL.Image.Image:
    """A circle left of a square, 64 x 64."""
    big = PIL.Image.new("RGB", (256, 256), "#f3efe4")
    draw = PIL.ImageDraw.Draw(big)
    draw.ellipse((28, 80, 120, 172), fill=first)
    draw.rectangle((150, 86, 232, 168), fill=second)
    return big.resize((64, 64), PIL.Image.Resampling.LANCZOS)


def partial(picture: PIL.Image.Image, rows: int) -> PIL.Image.Image:
    """The picture down to a row of the grid; noise, as of a decoder that guesses, below it."""
    pixels = np.asarray(picture).copy()
    edge = rows * picture.height // ROWS
    rough = np.random.default_rng(rows).integers(90, 220, (8, 8, 3), np.uint8)
    noise = PIL.Image.fromarray(rough).resize(picture.size, PIL.Image.Resampling.BICUBIC)
    pixels[edge:] = np.asarray(noise)[edge:]
    return PIL.Image.fromarray(pixels)


def stream(
    document: Document,
    *,
    temperature: float = 0.9,
    top_p: float = 0.95,
    guidance: float = 3.0,
    seed: int | None = None,
    pause: float = 0.02,
) -> Iterator[Piece]:
    """Replies to the last message: "draw ..." draws, "hold ..." draws half until `gate` is set, "fail ..." raises."""
    said = next(turn.text for role, turn in reversed(document.turns) if role == "user")
    ended = "closed early"
    try:
        if said.startswith("fail"):
            yield TextPiece("I was about to say ")
            raise RuntimeError("the model broke\nin the middle of a word <b>bold</b>")
        if said.startswith("wait"):
            gate.wait(20)
        words = "Here it is." if said.startswith(("draw", "hold")) else f"You said: {said}. There is a picture in it."
        if said.startswith("long"):
            words = " ".join(f"This is sentence number {number}." for number in range(60))
        for word in words.split(" "):
            time.sleep(pause)
            yield TextPiece(word + " ")
        if said.startswith(("draw", "hold")):
            whole = scene()
            for row in range(ROWS + 1):
                if row == 6 and said.startswith("hold"):
                    gate.wait(20)
                time.sleep(pause)
                yield ImagePiece(partial(whole, row), np.arange(row * 8).reshape(row, 8), ROWS)
            yield TextPiece(" A red circle left of a blue square.")
        ended = "end_turn"
        yield StopPiece("end_turn")
    finally:
        closed.append(ended)


class Codec:
    """An image tokenizer that is none: each cell of the 8 x 8 grid keeps one of 512 colours."""

    codes = 512

    def prepare(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        if picture.width < 4:
            raise ValueError(f"The picture is only {picture.width} pixels wide; use one of 4 or more.")
        return picture.convert("RGB").resize((64, 64))

    def encode(self, picture: PIL.Image.Image) -> np.ndarray:
        cells = np.asarray(picture.resize((8, 8), PIL.Image.Resampling.BOX), np.int64) // 32
        return cells[..., 0] * 64 + cells[..., 1] * 8 + cells[..., 2]

    def decode(self, codes: np.ndarray) -> PIL.Image.Image:
        cells = np.stack([codes // 64, codes // 8 % 8, codes % 8], -1) * 32 + 16
        return PIL.Image.fromarray(cells.astype(np.uint8)).resize((64, 64), PIL.Image.Resampling.BICUBIC)
