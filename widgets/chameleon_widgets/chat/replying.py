"""Who makes the replies of a chat: reads the message, calls the stream, and keeps with the reply what made it."""

from __future__ import annotations

import operator
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import PIL.Image

from chameleon_lab.documents import Image, Segment, Text
from chameleon_lab.pictures import read_picture
from chameleon_lab.records import Piece, ReplyProgress
from chameleon_widgets.chat.arguments import LARGEST_SEED, StreamArguments
from chameleon_widgets.chat.conversation import Conversation
from chameleon_widgets.chat.exchange import Exchange, Message
from chameleon_widgets.threads import log

MessageParts = tuple[tuple[Segment, ...], ValueError | None]  # what was said, and what of it could not be read


@dataclass(frozen=True)
class ReplyPlan:
    """What a reply is to be made with: the cell's `settings` and `keywords` besides, or, where `settings` is None, just
    the `keywords`. `read` reads the message, where that is still to be done."""

    settings: Mapping[str, Any] | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[], MessageParts] | None = None


class ReplyMaker:
    """Makes replies on the thread that calls it, one after the other. `ring` is called when there is something new.

    `pending` holds an event for each message not yet replied to, set to give it up; `latest` is the reply made last.
    """

    def __init__(
        self,
        stream: Callable[..., Iterable[Piece]],
        arguments: StreamArguments,
        conversation: Conversation,
        see: Callable[[PIL.Image.Image], PIL.Image.Image] | None,
        ring: Callable[[], None],
    ) -> None:
        self._stream, self._arguments, self._conversation = stream, arguments, conversation
        self._see, self._ring = see, ring
        self.pending: list[threading.Event] = []
        self.latest: Exchange | None = None

    def make(self, exchange: Exchange, plan: ReplyPlan) -> None:
        """Fills an exchange of the conversation; whatever is raised is kept in it."""
        self.latest, failure = exchange, None
        try:
            exchange.message.parts, trouble = plan.read() if plan.read else (exchange.user, None)
            if exchange.origin == "best" and exchange.stopping.is_set():
                self._conversation.remove(exchange)  # it never began, and others of the strip have
                return
            keywords = dict(plan.keywords)
            if plan.settings is not None:
                names = [name for name, value in plan.settings.items() if value is not None and name != "seed"]
                keywords = self._arguments.keywords(plan.settings, secrets.randbelow(LARGEST_SEED)) | keywords
                exchange.choices = tuple(names)
            exchange.begin(keywords)
            self._ring()
            if trouble is not None:
                raise trouble
            self._reconstruct(exchange.message)
            if not exchange.stopping.is_set():
                for piece in until_stopped(self.open(exchange, self._progress(exchange)), exchange.stopping):
                    with self._conversation.lock:
                        exchange.take(piece)
                    self._ring()
        except ReplyStop:
            pass
        except Exception as error:  # whatever the model's code raises is shown in the cell, and raised by wait()
            failure = error
        finally:
            with self._conversation.lock:
                exchange.finish(failure)
                self.pending.remove(exchange.stopping)

    def open(self, exchange: Exchange, progress: Callable[[ReplyProgress], None] | None = None) -> Iterable[Piece]:
        """The stream of a reply, with what made it."""
        keywords = dict(exchange.settings)
        if exchange.prefix:
            keywords["prefix"] = list(exchange.prefix)
        if progress is not None and "progress" in self._arguments.names:
            keywords["progress"] = progress
        return self._stream(self._conversation.document_to(exchange, reply=False), **keywords)

    def _progress(self, exchange: Exchange) -> Callable[[ReplyProgress], None]:
        def note(progress: ReplyProgress) -> None:
            exchange.advance(progress)
            self._ring()
            if exchange.stopping.is_set():  # a row of a picture is one piece: a stop need not wait for it
                raise ReplyStop

        return note

    def _reconstruct(self, message: Message) -> None:
        if self._see is None:
            return
        for at, part in enumerate(message.parts):
            if isinstance(part, Image) and at not in message.reconstructions:
                try:
                    message.reconstructions[at] = self._see(part.picture)
                except Exception:  # the reply will say what is wrong with the picture
                    log.info("a picture could not be shown as the model sees it", exc_info=True)


class ReplyStop(Exception):
    """Ends a stream from within, at a token."""


def until_stopped(stream: Iterable[Piece], stopping: threading.Event) -> Iterator[Piece]:
    """The pieces of a stream until `stopping` is set. A generator is closed in any case, so that it stops computing."""
    try:
        for piece in stream:
            if stopping.is_set():
                return
            yield piece
    finally:
        if isinstance(stream, Iterator) and callable(close := getattr(stream, "close", None)):
            close()


def message_parts(content: Mapping[str, Any], buffers: Sequence[memoryview], old: Exchange | None) -> MessageParts:
    """The message in a request of the browser: text, pictures as files in `buffers`, parts of an `old` message.

    What can be read is kept even where a picture cannot; what was wrong comes beside it.
    """
    segments: list[Segment] = []
    trouble: ValueError | None = None
    parts: Any = content.get("parts")
    for part in parts if isinstance(parts, list) else [parts]:
        try:
            if isinstance(part, str) or "text" in part:
                text = str(part if isinstance(part, str) else part["text"])
                segments += [Text(text)] if text.strip() else []
            elif "keep" in part and old is not None:
                segments.append(old.user[operator.index(part["keep"])])
            else:
                segments.append(Image(read_picture(buffers[operator.index(part["picture"])])))
        except (IndexError, KeyError, TypeError):
            trouble = ValueError("A picture did not arrive." if isinstance(part, dict) else "A part did not arrive.")
        except ValueError as error:
            trouble = error
    if not segments and trouble is None:
        trouble = ValueError("The message is empty: write something, or add a picture.")
    return tuple(segments), trouble
