"""What was said in a chat cell, and what of it the views do not have yet."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import PIL.Image

from chameleon_lab.documents import Document, EndTurn, Image, Segment, Text
from chameleon_lab.records import ImagePiece, Piece, StopPiece, TextPiece
from chameleon_widgets import stills
from chameleon_widgets.chat.messages import ConversationUpdate, ExchangeNews, PartNews, ReplyState
from chameleon_widgets.line import paragraph
from chameleon_widgets.pictures import data_uri, png

ReplyPart = Text | Image | ImagePiece

CHAT_SIDE = 512  # pixels: larger pictures are sent to the screen and to the still made smaller

_exchange_keys = itertools.count(1)


@dataclass(eq=False)
class Exchange:
    """One message of the user's and the model's reply to it, as far as it goes.

    `settings` are those the reply was made with, its seed among them; `stopping` is set by whoever wants it to end.
    """

    stopping: threading.Event = field(default_factory=threading.Event)
    user: tuple[Segment, ...] = ()
    reply: list[ReplyPart] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    error: BaseException | None = None
    started: float = 0.0
    seconds: float = 0.0
    running: bool = False
    key: int = field(default_factory=lambda: next(_exchange_keys))

    def begin(self, settings: dict[str, Any]) -> None:
        self.settings, self.running, self.started = settings, True, time.monotonic()

    def take(self, piece: Piece) -> None:
        """Adds a piece of the reply. Raises TypeError, naming it, for anything that is not a piece."""
        last = self.reply[-1] if self.reply else None
        if isinstance(piece, TextPiece):
            if isinstance(last, Text):
                self.reply[-1] = Text(last.text + piece.text)
            elif piece.text:
                self.reply.append(Text(piece.text))
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

    def finish(self, error: BaseException | None = None) -> None:
        self.running, self.error, self.seconds = False, error, time.monotonic() - self.started
        if error is None and self.stopping.is_set():
            self.reason = self.reason or "stopped"

    @property
    def state(self) -> ReplyState:
        """What is going on: `name` is one of reading, writing, drawing (with row and rows), done, stopped, error."""
        if self.error is not None:
            return {"name": "error"}
        if not self.running:
            return {"name": "stopped" if self.reason == "stopped" else "done"}
        if self.stopping.is_set():
            return {"name": "stopped"}
        last = self.reply[-1] if self.reply else None
        if isinstance(last, ImagePiece) and not last.complete:
            return {"name": "drawing", "row": min(len(last.codes) + 1, last.rows), "rows": last.rows}
        return {"name": "writing"} if self.reply else {"name": "reading"}

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The exchange as segments. A picture stopped half way is kept as pixels only, for its codes are no picture's;
        one of which nothing was drawn is left out."""
        reply = tuple(
            Image(part.picture, part.codes if part.complete else None) if isinstance(part, ImagePiece) else part
            for part in self.reply
            if not (isinstance(part, ImagePiece) and not len(part.codes))
        )
        end = () if self.running or not reply else (EndTurn(),)
        return (*self.user, EndTurn(), *reply, *end)


class Conversation:
    """Exchanges in order. Everything that reads or changes them holds `lock`."""

    def __init__(self, document: Document | None = None) -> None:
        self.lock = threading.RLock()
        self.exchanges: list[Exchange] = []
        for role, turn in document.turns if document is not None else ():
            if role == "user":
                self.exchanges.append(Exchange(user=turn.segments))
            else:
                self.exchanges[-1].reply = [part for part in turn if not isinstance(part, EndTurn)]

    def document_to(self, last: Exchange | None = None) -> Document:
        """The conversation up to `last`. A message that got no reply is left out unless it is the last one."""
        with self.lock:
            end = len(self.exchanges) if last is None else self.exchanges.index(last) + 1
            exchanges = [each for index, each in enumerate(self.exchanges[:end]) if each.reply or index == end - 1]
            return Document(tuple(segment for each in exchanges for segment in each.segments))

    def put(self, exchange: Exchange, replaces: Exchange | None = None) -> None:
        """Adds an exchange at the end, or in the place of an earlier one, after which everything is forgotten."""
        with self.lock:
            if replaces in self.exchanges:
                del self.exchanges[self.exchanges.index(replaces) :]
            self.exchanges.append(exchange)

    def clear(self) -> None:
        with self.lock:
            self.exchanges.clear()

    def find(self, key: object) -> Exchange | None:
        """The exchange with this key; the last one for None; None where there is no such exchange."""
        with self.lock:
            matches = [each for each in self.exchanges if key is None or each.key == key]
        return matches[-1] if matches else None

    @property
    def state(self) -> str:
        """One word for the whole cell: idle, reading, writing, drawing, stopped or error."""
        last = self.find(None)
        name = last.state["name"] if last is not None else "idle"
        return "idle" if name == "done" else name

    def still(self) -> tuple[str, str]:
        """(HTML body, plain text) of the conversation, safe to put into a page."""
        with self.lock:
            exchanges = [(each.user, tuple(each.reply), describe(each), each.error) for each in self.exchanges]
        if not exchanges:
            empty = "A chat cell, nothing said yet. Run the cell to talk to the model."
            return f"<p>{empty}</p>", empty
        body, lines = [], []
        for user, reply, description, error in exchanges:
            for who, parts in (("You", user), ("Model", reply)):
                body.append(f'<p class="who"><b>{who}</b></p>')
                for part in parts:
                    if isinstance(part, Text):
                        kind = ' class="user"' if who == "You" else ""
                        body.append(f"<p{kind}>{stills.escape(part.text.strip())}</p>")
                        lines.append(f"{who}: {part.text.strip()}")
                    elif not isinstance(part, EndTurn):
                        body.append(_still_picture(part, who))
                        lines.append(f"{who}: [picture, {part.picture.width} x {part.picture.height}]")
            body.append(f'<p class="note">{stills.escape(description)}</p>')
            if error is not None:
                body.append(f'<p class="note">Error: {stills.escape(paragraph(error))}</p>')
                lines.append(f"(error: {paragraph(error)})")
        return "".join(body), "\n".join(lines)


class ConversationFeed:
    """What the views have been sent, so that each message holds only what is new."""

    def __init__(self, conversation: Conversation, pending: list[threading.Event]) -> None:
        self._conversation = conversation
        self._pending = pending  # one event for each message not yet replied to, set when that was given up
        self._delivered: dict[int, tuple[list[Any], list[Any], dict[str, Any]]] = {}
        self._order: list[int] | None = None
        self._number = 0
        self._busy = False

    def update(self, whole: bool = False) -> tuple[ConversationUpdate, list[bytes]] | None:
        """The next message and its buffers, with everything where it is `whole`; None when there is nothing new."""
        with self._conversation.lock:
            if whole:
                self._delivered, self._order = {}, None
            pictures: list[PIL.Image.Image] = []
            changed = [news for each in self._conversation.exchanges if (news := self._news(each, pictures))]
            order = [each.key for each in self._conversation.exchanges]
            busy = not all(each.is_set() for each in tuple(self._pending))
        if not (whole or changed or order != self._order or busy != self._busy):
            return None
        self._order, self._number, self._busy = order, self._number + 1, busy
        self._delivered = {key: parts for key, parts in self._delivered.items() if key in order}
        message = ConversationUpdate(
            kind="update", number=self._number, busy=busy, whole=whole, order=order, changed=changed
        )
        return message, [png(picture, CHAT_SIDE) for picture in pictures]

    def _news(self, exchange: Exchange, pictures: list[PIL.Image.Image]) -> ExchangeNews | None:
        user, reply, meta = self._delivered.setdefault(exchange.key, ([], [], {}))
        news: ExchangeNews = {"key": exchange.key}
        now = {
            "state": exchange.state,
            "running": exchange.running,
            "about": "" if exchange.running else describe(exchange),
            "seed": exchange.settings.get("seed"),
            "error": paragraph(exchange.error) if exchange.error is not None else "",
        }
        if now != meta:
            news |= now  # type: ignore[assignment]
            meta.update(now)
        for name, parts, delivered in (("user", exchange.user, user), ("reply", exchange.reply, reply)):
            if fresh := _fresh(parts, delivered, pictures):
                news[name] = fresh
        return news if len(news) > 1 else None


def _fresh(parts: Sequence[object], delivered: list[Any], pictures: list[PIL.Image.Image]) -> list[PartNews]:
    """What of `parts` is not in `delivered` yet (text by length, pictures by identity), which is brought up to date."""
    fresh: list[PartNews] = []
    for at, part in enumerate(parts):
        before = delivered[at] if at < len(delivered) else None
        if isinstance(part, Text):
            start = before or 0
            if before is None or len(part.text) > start:
                fresh.append({"at": at, "start": start, "text": part.text[start:]})
            now: Any = len(part.text)
        else:
            if before is not part and isinstance(part, Image | ImagePiece):
                news: PartNews = {"at": at, "picture": len(pictures)}
                if isinstance(part, ImagePiece):
                    news["row"], news["rows"] = len(part.codes), part.rows
                fresh.append(news)
                pictures.append(part.picture)
            now = part
        delivered[at : at + 1] = [now]
    return fresh


def describe(exchange: Exchange) -> str:
    """One line on how a reply was made and how it ended."""
    words = {"top_p": "top-p"}
    facts = [
        f"{words.get(name, name)} {value:g}" if isinstance(value, float | int) else f"{words.get(name, name)} {value}"
        for name, value in exchange.settings.items()
        if name != "seed"
    ]
    if "seed" in exchange.settings:
        facts.insert(0, f"seed {exchange.settings['seed']}")
    if exchange.seconds:
        facts.append(f"{exchange.seconds:.1f} s")
    ends = {"stopped": "stopped", "length": "cut off: no room left", "end_document": "the model ended the document"}
    if exchange.reason in ends:
        facts.append(ends[exchange.reason])
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
    if not segments:
        raise ValueError("The message is empty: write something, or add a picture.")
    return segments


def _still_picture(part: Image | ImagePiece, who: str) -> str:
    picture, alt, width = part.picture, f"Picture: {who}", min(256, 4 * part.picture.width)
    if isinstance(part, ImagePiece) and not part.complete:
        alt = f"Picture, stopped after row {len(part.codes)} of {part.rows}"
        picture = picture.convert("RGBA")
        faint = PIL.Image.new("L", picture.size, 60)  # the decoder's guess at what was not drawn
        faint.paste(255, (0, 0, picture.width, round(picture.height * len(part.codes) / part.rows)))
        picture.putalpha(faint)
    return stills.image(data_uri(picture, CHAT_SIDE), alt, width)
