"""What a chat cell sends to its views. `js/src/chat/messages.d.ts` declares the same for the scripts."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class ReplyState(TypedDict):
    """What is going on with a reply; a picture being drawn says how far it is."""

    name: Literal["reading", "writing", "drawing", "done", "stopped", "error"]
    row: NotRequired[int]
    rows: NotRequired[int]


class PartNews(TypedDict):
    """What is new of one part: text to be put after `start` characters, or the number of a buffer with a picture."""

    at: int
    start: NotRequired[int]
    text: NotRequired[str]
    picture: NotRequired[int]
    row: NotRequired[int]
    rows: NotRequired[int]


class ExchangeNews(TypedDict):
    """What is new of an exchange: only the fields that changed."""

    key: int
    state: NotRequired[ReplyState]
    running: NotRequired[bool]
    about: NotRequired[str]
    seed: NotRequired[int | None]
    error: NotRequired[str]
    user: NotRequired[list[PartNews]]
    reply: NotRequired[list[PartNews]]


class ConversationUpdate(TypedDict):
    """What is new, or everything where it is `whole`. `busy`: a message has not been replied to yet."""

    kind: Literal["update"]
    number: int
    busy: bool
    whole: bool
    order: list[int]
    changed: list[ExchangeNews]


class ConversationExport(TypedDict):
    """The conversation as JSON."""

    kind: Literal["export"]
    text: str


ChatMessage = ConversationUpdate | ConversationExport
