"""Ctrl+C at any instruction of a reply: nothing of it is lost, told twice, or another."""

import itertools
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
from support import CODES, WARM, WORDS

import chameleon_lab
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.generation.engine import Engine
from chameleon_lab.generation.grammar import Grammar
from chameleon_lab.generation.guidance import ThreeWay
from chameleon_lab.generation.session import Session
from chameleon_lab.generation.settings import Settings
from chameleon_lab.records import ImagePiece, Piece, StopPiece

ASKED, HOUSE = Document.of("abc", EndTurn()), str(Path(chameleon_lab.__file__).parent)
PURE = "weights.py"  # it only compares, but visits so much that its lines would be most of all
GRAMMAR = Grammar(WORDS, CODES, min_images=1, max_images=2)


class Interrupts:
    """Raises KeyboardInterrupt in the lab's own code where `due` says so, of an instruction or a line, as Ctrl+C may.

    `due` gets the code, the place in it, and how often that place was come by.
    """

    def __init__(self, due: Callable[[CodeType, int, int], bool], opcodes: bool) -> None:
        self.due, self.opcodes, self.count = due, opcodes, 0
        self._visits: dict[tuple[CodeType, int], int] = {}

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(HOUSE) or frame.f_code.co_filename.endswith(PURE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = self.opcodes, not self.opcodes
        return self._local

    def _local(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if event in ("opcode", "line"):
            key = frame.f_code, frame.f_lasti
            visits = self._visits[key] = self._visits.get(key, 0) + 1
            if self.due(*key, visits):
                self.count += 1
                raise KeyboardInterrupt
        return self._local


def plain(piece: Piece) -> tuple[object, ...]:
    if isinstance(piece, ImagePiece):
        return piece.codes.tolist(), piece.rows, piece.picture.tobytes()
    return (piece,)


def read_on(
    session: Session, interrupts: Interrupts, read: Callable[[Iterable[Piece], list[Piece]], None]
) -> list[Piece]:
    """The pieces of a reply that is interrupted again and again, until its last."""
    pieces = list[Piece]()
    while not (pieces and isinstance(pieces[-1], StopPiece)):
        try:
            with interrupts:
                read(session.stream(), pieces)
        except KeyboardInterrupt:
            pass
    return pieces


def everything(stream: Iterable[Piece], pieces: list[Piece]) -> None:
    pieces.extend(stream)  # in C: what it was handed is in the list


def a_few(stream: Iterable[Piece], pieces: list[Piece]) -> None:
    pieces.extend(itertools.islice(stream, 2))


REPLIES: dict[str, tuple[Settings, list[int]]] = {
    "words and pictures": (replace(WARM, max_tokens=30), []),
    "guidance, repetition": (replace(WARM, guidance=2.0, repetition=1.3, max_tokens=30), []),
    "three-way guidance": (replace(WARM, guidance=ThreeWay(), max_tokens=30), []),
    "a prefix within a picture": (
        replace(WARM, guidance=1.5, repetition=1.2, max_tokens=40),
        [WORDS.first_text, WORDS.begin_image, *WORDS.tokens_of_codes(np.arange(6)).tolist()],
    ),
}


def begun(engine: Engine, name: str) -> Session:
    """Not a lasting session: that compares all weights at each of a thousand beginnings."""
    settings, prefix = REPLIES[name]
    prompt = engine.tokenizer.encode(ASKED)
    return Session(engine._continuation([prompt], settings, [3], GRAMMAR, prefix=prefix), len(prefix))


def check_interrupted(engine: Engine, name: str, interrupts: Interrupts, read: Any) -> None:
    """Raises AssertionError unless a reply that is interrupted so is the one that nobody interrupts."""
    whole = begun(engine, name)
    pieces = list(whole.stream())
    session = begun(engine, name)
    interrupted = read_on(session, interrupts, read)
    assert any(isinstance(piece, ImagePiece) and piece.complete for piece in pieces)
    assert list(map(plain, interrupted)) == list(map(plain, pieces))
    assert np.array_equal(session.tokens, whole.tokens) and session.reply == whole.reply


@pytest.mark.parametrize(  # each at one of the paces
    ("pace", "name"), [*zip(itertools.cycle(["ahead", "step by step"]), REPLIES, strict=False)], indirect=["pace"]
)
def test_a_reply_interrupted_at_every_line_goes_on_bitwise(engine, pace, name):
    visit = 1 + 2 * list(REPLIES).index(name)
    interrupts = Interrupts(lambda code, place, visits: visits == visit, opcodes=False)
    check_interrupted(engine, name, interrupts, everything if visit < 5 else a_few)
    assert interrupts.count > 200, "a line of the lab's each"
