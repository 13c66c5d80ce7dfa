"""One message of the user's and one reply to it, as far as it goes: a node of the conversation's tree."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import PIL.Image

from chameleon_lab.documents import Blank, Document, EndTurn, Image, Segment, Text
from chameleon_lab.records import ImagePiece, Piece, ReplyProgress, StopPiece, TextPiece
from chameleon_widgets.chat.messages import ReplyState

ReplyOrigin = Literal["send", "edit", "regenerate", "continue", "best", "force", "resample", "import"]
"""The act that a reply came from."""

_exchange_keys = itertools.count(1)


class Words:
    """Text that grows by pieces, which are joined only when it is read: a reply may have a hundred thousand."""

    def __init__(self, text: str = "") -> None:
        self._pieces, self.length = [text], len(text)

    def add(self, text: str) -> None:
        self._pieces.append(text)
        self.length += len(text)

    @property
    def text(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0]


ReplyPart = Words | Image | ImagePiece


@dataclass(eq=False)
class Message:
    """What the user said. Replies to the same message share the object; an edited message is another.

    `reconstructions`: pictures among `parts`, by their place, as the image tokenizer gives them back.
    """

    parts: tuple[Segment, ...] = ()
    reconstructions: dict[int, PIL.Image.Image] = field(default_factory=dict)


@dataclass(eq=False, repr=False)  # it holds its parent and children: all of the tree
class Exchange:
    """A message and one reply to it. `parent` is the exchange before it, `choice` the child that is shown after it.

    What made the reply is kept with it: `settings`, all that was passed to the stream, its seed among them (`choices`
    names those that a person chose), and `prefix`, the tokens with which it began. `tokens` are those of the reply,
    where the stream tells them. `version` counts changes; `stopping` is set by whoever wants the reply to end.
    """

    message: Message = field(default_factory=Message)
    parent: Exchange | None = None
    origin: ReplyOrigin = "send"
    prefix: tuple[int, ...] = ()
    stopping: threading.Event = field(default_factory=threading.Event)
    children: list[Exchange] = field(default_factory=list)
    choice: Exchange | None = None
    reply: list[ReplyPart] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    progress: ReplyProgress | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    reason: str = ""
    error: BaseException | None = None
    started: float = 0.0
    seconds: float = 0.0
    running: bool = False
    version: int = 0
    key: int = field(default_factory=lambda: next(_exchange_keys))

    @property
    def user(self) -> tuple[Segment, ...]:
        return self.message.parts

    def begin(self, settings: dict[str, Any]) -> None:
        self.settings, self.running, self.started = settings, True, time.monotonic()
        self.tokens = list(self.prefix)
        self.version += 1

    def advance(self, progress: ReplyProgress) -> None:
        """Notes one more token of the reply."""
        self.tokens.append(progress.token)
        self.progress = progress
        self.version += 1

    def take(self, piece: Piece) -> None:
        """Adds a piece of the reply. Raises TypeError, naming it, for anything that is not a piece."""
        last = self.reply[-1] if self.reply else None
        if isinstance(piece, TextPiece):
            if isinstance(last, Words):
                last.add(piece.text)
            elif piece.text:
                self.reply.append(Words(piece.text))
        elif isinstance(piece, ImagePiece):
            if isinstance(last, ImagePiece) and not last.complete:
                self.reply[-1] = piece
            else:
                self.reply.append(piece)
        elif isinstance(piece, StopPiece):
            self.reason = piece.reason
        else:
            raise TypeError(
                f"The stream gave a {type(piece).__name__}; a chat cell takes TextPiece, ImagePiece and StopPiece."
            )
        self.version += 1

    def finish(self, error: BaseException | None = None) -> None:
        if self.running:
            self.seconds = time.monotonic() - self.started
        self.running, self.error = False, error
        if error is None and self.stopping.is_set():
            self.reason = self.reason or "stopped"
        self.version += 1

    @property
    def state(self) -> ReplyState:
        """What is going on: a name, and while the reply comes where it stands, in the picture and in the model."""
        if self.error is not None:
            return {"name": "error"}
        if not self.running:
            return {"name": "stopped" if self.reason == "stopped" else "done"}
        if self.stopping.is_set():
            return {"name": "stopped"}
        last, progress = self.reply[-1] if self.reply else None, self.progress
        state: ReplyState = {"name": "writing" if self.reply else "reading"}
        if isinstance(last, ImagePiece) and not last.complete:
            state = {"name": "drawing", "row": min(len(last.codes) + 1, last.rows), "rows": last.rows}
        if progress is not None:
            state["room"] = progress.room
            if progress.image is not None and progress.image[1]:
                state["name"], state["codes"] = "drawing", progress.image
        return state

    @property
    def resumable(self) -> bool:
        """Whether the reply was cut short, by a stop or for want of room, and there is room to go on."""
        room = self.progress is None or self.progress.context > 0
        return not self.running and bool(self.tokens) and self.reason in ("stopped", "length") and room

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The exchange as segments. A picture stopped half way is kept as pixels only, for its codes are no picture's;
        one of which nothing was drawn is left out."""
        reply: list[Segment] = []
        for part in self.reply:
            if isinstance(part, Words):
                reply.append(Text(part.text))
            elif not isinstance(part, ImagePiece):
                reply.append(part)
            elif len(part.codes):
                reply.append(Image(part.picture, part.codes if part.complete else None))
        if not reply and not self.user:
            return ()
        end = () if self.running or not reply else (EndTurn(),)
        return (*self.user, EndTurn(), *reply, *end)


ENDS = {"stopped": "stopped", "length": "cut off: no room left", "end_document": "the model ended the document"}


def title_of(name: str) -> str:
    """A setting's name as it is read: "top-p", "image temperature"."""
    return name.replace("top_", "top-").replace("min_", "min-").replace("_", " ")


def facts_of(exchange: Exchange) -> list[tuple[str, str]]:
    """How a reply was made and how it ended, in names and values: seed first, then settings."""
    settings = dict(exchange.settings)
    facts = [("seed", str(settings.pop("seed")))] if "seed" in settings else []
    for name, value in settings.items():
        number = isinstance(value, float | int) and not isinstance(value, bool)
        facts.append((title_of(name), f"{value:g}" if number else str(value)[:80]))
    if exchange.prefix:
        facts.append(("begins with", f"{len(exchange.prefix)} tokens"))
    if exchange.tokens:
        facts.append(("tokens", f"{len(exchange.tokens)}"))
    if exchange.seconds:
        facts.append(("time", f"{exchange.seconds:.1f} s"))
    return facts


def describe(exchange: Exchange) -> str:
    """One line on how a reply was made and how it ended; everything is in `facts_of`."""
    words = dict(facts_of(exchange))
    facts = [f"{name} {words[name]}" for name in ("seed", *map(title_of, exchange.choices)) if name in words]
    if exchange.origin in ("continue", "force", "resample") and exchange.prefix:
        count = f"{len(exchange.prefix)} tokens"
        facts.append({"continue": f"continued after {count}"}.get(exchange.origin, f"branched after {count}"))
    if "time" in words:
        facts.append(words["time"])
    if exchange.reason in ENDS:
        facts.append(ENDS[exchange.reason])
    return " · ".join(facts)


def message_of(parts: Iterable[object]) -> tuple[Segment, ...]:
    """A user's message from strings, PIL pictures, segments or documents. Raises ValueError when it is empty."""
    segments = tuple(
        part
        for part in Document.of(*parts)  # type: ignore[arg-type]
        if not (isinstance(part, Text) and not part.text.strip())
    )
    if any(isinstance(part, EndTurn) for part in segments):
        raise ValueError("A message is one turn: leave EndTurn out, the cell adds it.")
    if any(isinstance(part, Blank) for part in segments):
        raise ValueError("A message has no blanks: lab.infill(document) fills a document's.")
    if not segments:
        raise ValueError("The message is empty: write something, or add a picture.")
    return segments
