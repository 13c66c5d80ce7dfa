"""Documents that a person's own data becomes: each pair asked for, named, told and shown, in turns and without.

`compose` draws one document of a kind; pictures stand in it as the codes of one of their views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image

from chameleon_lab.corpora.conversations import Choice
from chameleon_lab.documents import Document, EndTurn, Image, Segment, Text

PAIR_WEIGHTS: Mapping[str, float] = {
    "drawing": 0.42,
    "naming": 0.22,
    "two_turns": 0.08,
    "caption_first": 0.09,
    "picture_first": 0.09,
    "picture_alone": 0.10,
}
"""Shares of the documents that pairs become. A tenth are pictures without words, with which guidance compares."""

DRAW_WORDS = ("draw {}",) * 7 + ("Draw {}", "please draw {}", "{}")
QUESTION_WORDS = ("what is this?",) * 3 + ("What is this?", "what do you see?", "describe the picture")

_BLANK = PIL.Image.new("RGB", (1, 1))  # codes stand for the picture, which nobody looks at

CodesOf = Callable[[int, Choice], np.ndarray]
"""The codes (rows x columns) of one view of the picture with this number."""


def draw_words(caption: str, rng: Choice | None = None) -> str:
    """How a person asks for a picture; without `rng` the usual way."""
    return (DRAW_WORDS[0] if rng is None else str(rng.choice(DRAW_WORDS))).format(caption)


def compose(entry: Mapping[str, Any], kind: str, rng: Choice, codes: CodesOf, other: Mapping[str, Any]) -> Document:
    """One document of an entry; `other` is the second pair of two turns. An entry that is no pair has one kind only."""
    if "segments" in entry:
        return Document(tuple(_segment(each, rng, codes) for each in entry["segments"]))
    caption, image = str(rng.choice(entry["captions"])), Image(_BLANK, codes(entry["picture"], rng))
    match kind:
        case "drawing":
            return Document((*_request(Text(draw_words(caption, rng))), image, EndTurn()))
        case "naming":
            return Document((*_request(image, Text(str(rng.choice(QUESTION_WORDS)))), Text(caption), EndTurn()))
        case "two_turns":
            first, second = (compose(each, _either(rng), rng, codes, each) for each in (entry, other))
            return first + second
        case "caption_first":
            return Document((Text(caption), image))
        case "picture_first":
            return Document((image, Text(caption)))
    return Document((image,))


def _either(rng: Choice) -> str:
    return "drawing" if rng.random() < 0.6 else "naming"


def _request(*parts: Segment) -> tuple[Segment, ...]:
    """A person's turn, on which training takes no loss."""
    return tuple(replace(part, learn=False) for part in (*parts, EndTurn()))


def _segment(plain: Mapping[str, Any], rng: Choice, codes: CodesOf) -> Segment:
    learn = plain.get("learn", True)
    if "picture" in plain:
        return Image(_BLANK, codes(plain["picture"], rng), learn)
    return Text(plain["text"], learn) if "text" in plain else EndTurn(learn)
