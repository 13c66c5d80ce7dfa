"""What the arena sends to its views. `js/src/judge/messages.d.ts` declares the same for the scripts."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class ShownPart(TypedDict):
    """Words, or a picture: its place among the message's buffers."""

    text: NotRequired[str]
    picture: NotRequired[int]


class AskedQuestion(TypedDict):
    """A question, and its answers as (name, words) in the order in which they stand on the page."""

    name: str
    words: str
    answers: list[tuple[str, str]]


class ArenaItem(TypedDict):
    """What is judged now: the item's number among all, from 0; `before`: what was answered to it. None of it, and the
    number of all, where all are judged."""

    kind: Literal["item"]
    study: str
    annotator: str
    number: int
    total: int
    judged: int
    prompt: list[ShownPart]
    replies: list[list[ShownPart]]
    questions: list[AskedQuestion]
    before: dict[str, str]
    journal: str
