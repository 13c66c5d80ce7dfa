"""What a chat cell sends to its views. `js/src/chat/messages.d.ts` declares the same for the scripts."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class ReplyState(TypedDict):
    """What is going on with a reply. A picture being drawn says how far it is, in rows, and in codes where they are
    known; `room`: tokens that may still come."""

    name: Literal["reading", "writing", "drawing", "done", "stopped", "error"]
    row: NotRequired[int]
    rows: NotRequired[int]
    codes: NotRequired[tuple[int, int]]
    room: NotRequired[int]


class PartNews(TypedDict):
    """What is new of one part: text to be put after `start` characters, or the number of a buffer with a picture, or of
    one with the picture as the image tokenizer gives it back."""

    at: int
    start: NotRequired[int]
    text: NotRequired[str]
    picture: NotRequired[int]
    row: NotRequired[int]
    rows: NotRequired[int]
    reconstruction: NotRequired[int]


class ExchangeNews(TypedDict):
    """What is new of an exchange: only the fields that changed. `facts`: all that made the reply, in names and values;
    `resumable`: the reply can be continued; `inspector`: the model id of the inspector open under it, "" for none,
    "…" while it is being made."""

    key: int
    state: NotRequired[ReplyState]
    running: NotRequired[bool]
    about: NotRequired[str]
    facts: NotRequired[list[tuple[str, str]]]
    seed: NotRequired[int | None]
    error: NotRequired[str]
    resumable: NotRequired[bool]
    inspector: NotRequired[str]
    user: NotRequired[list[PartNews]]
    reply: NotRequired[list[PartNews]]


class Variants(TypedDict):
    """What stands beside an exchange of the path: an exchange for each other wording of its message, and one for each
    other reply to the same wording, itself among them. A list of one is left empty."""

    key: int
    messages: list[int]
    replies: list[int]


class TreeNode(TypedDict):
    """An exchange of the whole tree: its parent (0: none), the first words of its message, and how its reply ended."""

    key: int
    parent: int
    words: str
    origin: str


class ConversationShape(TypedDict):
    """The tree around the path. `strip`: the replies that wait to be chosen from."""

    variants: list[Variants]
    tree: list[TreeNode]
    strip: list[int]


class ConversationUpdate(TypedDict):
    """What is new, or everything where it is `whole`: `order` is the path shown, `shape` comes when it changed. `busy`:
    a message has not been replied to yet."""

    kind: Literal["update"]
    number: int
    busy: bool
    whole: bool
    order: list[int]
    changed: list[ExchangeNews]
    shape: NotRequired[ConversationShape]


class ConversationExport(TypedDict):
    """A file of the conversation, in the only buffer, and what the browser does with it."""

    kind: Literal["export"]
    name: str
    type: str
    use: Literal["save", "copy"]


class ConversationNotice(TypedDict):
    """Something the cell has to say in one line: what was wrong with a file, or with a document to look into."""

    kind: Literal["notice"]
    text: str


ChatMessage = ConversationUpdate | ConversationExport | ConversationNotice
