"""A conversation with a model in a notebook cell: words stream, pictures appear row by row, Stop works at once."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import PIL.Image
import traitlets

from chameleon_lab.documents import Document, Image, Segment, Text
from chameleon_lab.pictures import read_picture
from chameleon_lab.records import Piece, ReplyProgress
from chameleon_widgets.chat.archive import exchanges_from_json, tree_to_json
from chameleon_widgets.chat.arguments import LARGEST_SEED, MODALITY_LABELS, StreamArguments
from chameleon_widgets.chat.conversation import Conversation
from chameleon_widgets.chat.exchange import Exchange, Message, message_of
from chameleon_widgets.chat.exports import EXPORTS, ChatExport
from chameleon_widgets.chat.feed import ConversationFeed
from chameleon_widgets.chat.messages import ConversationExport, ConversationNotice
from chameleon_widgets.chat.turn_inspectors import TurnInspectors
from chameleon_widgets.line import Line, Part, assets, paragraph
from chameleon_widgets.threads import Worker, log

BEST = 4
LARGEST_IMPORT = 2**28  # bytes

MessageParts = tuple[tuple[Segment, ...], ValueError | None]  # what was said, and what of it could not be read


class ChatCell(anywidget.AnyWidget):
    """A chat in a notebook cell with any callable `(Document, *, seed, temperature, ...) -> iterator of pieces`.

    The conversation is a tree: whatever is edited, drawn again, continued or forced becomes a branch, the others stay,
    and `document` is the path shown. Each reply keeps what made it, and `replay` makes it again.

    `defaults` are passed with each reply; settings that the callable takes can be changed in the cell, where a slider
    shows the callable's own value (seed: a new one for each reply). `document` continues an earlier conversation, and
    `note` is a line on what the model knows. Where the callable takes `prefix` and `progress`, a reply that was stopped
    can be continued; where it takes `modality`, what a reply holds can be chosen. `inspect`, a callable of a document
    (and its `guidance`), opens a turn in an `Inspector`; `tokens` gives a document's token ids, for export; `see` gives
    a picture back as the model sees it. A default that the callable does not take raises ValueError.
    """

    _esm, _css = assets("chat_cell")

    status = traitlets.Unicode("idle", help="idle, reading, writing, drawing, stopped or error.").tag(sync=True)
    settings = traitlets.Dict(help="What the next reply is made with; None leaves it to the stream.").tag(sync=True)
    suggestions = traitlets.List(traitlets.Unicode(), help="Prompts offered while nothing is said.").tag(sync=True)
    ranges = traitlets.Dict(help="Label, limits, step and own value of each setting with a slider.").tag(sync=True)
    offers = traitlets.Dict(help="Which acts the cell offers, and in which words.").tag(sync=True)

    def __init__(
        self,
        stream: Callable[..., Iterable[Piece]],
        *,
        defaults: Mapping[str, Any] | None = None,
        suggestions: Sequence[str] = (),
        document: Document | None = None,
        inspect: Callable[..., Any] | None = None,
        tokens: Callable[[Document], Sequence[int] | np.ndarray] | None = None,
        see: Callable[[PIL.Image.Image], PIL.Image.Image] | None = None,
        note: str = "",
    ) -> None:
        self._arguments = StreamArguments(stream, defaults or {})
        self._stream, self._see = stream, see
        self._conversation = Conversation(document)
        self._worker, self._clerk = Worker("chat cell worker"), Worker("chat cell files")
        self._pending: list[threading.Event] = []  # one for each message not yet replied to, set to give it up
        self._latest: Exchange | None = None  # the reply that was made last
        self._outbox: list[tuple[ConversationExport | ConversationNotice, list[bytes]]] = []
        self._upload = bytearray()
        self._inspectors = TurnInspectors(self._conversation, inspect, self._branch)
        self._export = ChatExport(self._conversation, tokens, self._inspectors)
        self._feed = ConversationFeed(self._conversation, self._pending, self._inspectors.ids, self._arguments.resumes)
        offers = {
            "modalities": MODALITY_LABELS if "modality" in self._arguments.settings else {},
            "inspect": inspect is not None,
            "exports": {name: label for name, (label, _, _) in EXPORTS.items() if self._export.offers(name)},
            "best": BEST if "seed" in self._arguments.settings else 0,
            "note": note,
        }
        super().__init__(
            settings=dict(self._arguments.settings),
            ranges=self._arguments.ranges,
            suggestions=list(suggestions),
            offers=offers,
        )
        handlers = {
            "send": lambda content, buffers: self._read(content, buffers, None),
            "edit": lambda content, buffers: self._read(content, buffers, self._named(content)),
            "again": lambda content, _: self._again(self._named(content)),
            "best": lambda content, _: self._best(self._named(content), content.get("count", BEST)),
            "proceed": lambda content, _: self._proceed(self._named(content)),
            "walk": lambda content, _: self._walk(self._named(content)),
            "inspect": lambda content, _: self._look_inside(self._named(content), content.get("open") is not False),
            "stop": lambda *_: self.stop(),
            "clear": lambda *_: self.clear(),
            "export": lambda content, _: self._clerk.submit(partial(self._give_file, content)),
            "load": self._take_file,
        }
        still = self._conversation.still
        self._line = Line(self, "chat cell", flush=self._flush, still=still, handlers=handlers, end=self._end)

    @property
    def document(self) -> Document:
        """The path shown: user turn, EndTurn, model turn, EndTurn, ... An unanswered message only if it is last."""
        return self._conversation.document_to()

    def send(self, *parts: str | PIL.Image.Image | Segment | Document) -> None:
        """Says something to the model, as the browser does; returns at once. ValueError when it is empty."""
        self._submit(Exchange(Message(message_of(parts)), self._conversation.tip))

    def stop(self) -> None:
        """Ends the reply in progress, and those waiting behind it; what was drawn and written stays."""
        for stopping in tuple(self._pending):
            stopping.set()
        self._line.ring()

    def regenerate(self) -> None:
        """Makes another reply beside the last one; returns at once."""
        self._again(self._conversation.find(None))

    def best(self, count: int = BEST) -> None:
        """Makes `count` replies to the last message, each of its own seed, to choose from; returns at once."""
        self._best(self._conversation.find(None), count)

    def proceed(self) -> None:
        """Goes on, in a reply beside it, with the last one, which was stopped or cut off; returns at once. Raises
        ValueError where it was neither, or where the stream takes no `prefix`."""
        self._proceed(self._conversation.find(None))

    def clear(self) -> None:
        """Ends the reply in progress and shows an empty conversation; what was said stays a branch."""
        self.stop()
        self._conversation.clear()
        self._line.renew_still()
        self._line.ring()

    def replay(self, key: int | None = None) -> Iterator[Piece]:
        """The pieces of a reply made again with what made it: those of the last one, or of the one with this key.

        Raises ValueError where there is no such reply.
        """
        exchange = self._conversation.find(key)
        if exchange is None or not exchange.user:
            raise ValueError(f"There is no reply {'yet' if key is None else key!r} to make again.")
        return iter(self._open(exchange))

    def save(self, path: Path | str) -> None:
        """Writes all branches, with the settings and seeds of each reply, as JSON that `load` reads."""
        path = Path(path)
        partial_file = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            partial_file.write_text(tree_to_json(self._conversation), encoding="utf-8")
            os.replace(partial_file, path)
        finally:
            partial_file.unlink(missing_ok=True)

    def load(self, path: Path | str) -> None:
        """Puts the branches in a file beside those there are, and shows its path. Raises ValueError for a file that is
        no conversation, and then changes nothing."""
        self._merge(Path(path).read_bytes())

    def wait(self, timeout: float | None = None) -> None:
        """Blocks until everything sent is replied to, for scripts and for notebooks run without a browser.

        Raises what the last reply's stream raised; TimeoutError after `timeout` seconds. An interrupt of the kernel
        stops the reply and goes on as KeyboardInterrupt.
        """
        try:
            if not self._worker.wait(timeout):
                raise TimeoutError(f"The reply was not done after {timeout:g} s. It goes on; stop() ends it.")
            self._line.settle()
        except KeyboardInterrupt:
            self.stop()
            raise
        if self._latest is not None and self._latest.error is not None:
            raise self._latest.error

    # What the browser asks

    def _named(self, content: Mapping[str, Any]) -> Exchange:
        if (exchange := self._conversation.find(content.get("key", ""))) is None:
            raise ValueError(f"There is no message {str(content.get('key'))[:20]!r} in this conversation any more.")
        return exchange

    def _read(self, content: dict[str, Any], buffers: Sequence[memoryview], old: Exchange | None) -> None:
        parent = self._conversation.tip if old is None else old.parent
        if old is not None:
            self.stop()
        exchange = Exchange(parent=parent, origin="send" if old is None else "edit")
        self._submit(exchange, partial(message_parts, content, buffers, old))

    def _again(self, old: Exchange | None) -> None:
        if old is not None and old.user:
            self.stop()
            self._submit(Exchange(old.message, old.parent, "regenerate"))

    def _best(self, old: Exchange | None, count: object) -> None:
        if not isinstance(count, int) or isinstance(count, bool) or not 2 <= count <= 64:
            raise ValueError(f"The best is chosen of 2 to 64 replies, not of {str(count)[:20]!r}.")
        if old is None or not old.user:
            return
        self.stop()
        first = self.settings.get("seed")
        strip = [Exchange(old.message, old.parent, "best") for _ in range(count)]
        for place, exchange in enumerate(strip):
            seed = {"seed": (first + place) % LARGEST_SEED} if isinstance(first, int) else {}
            self._submit(exchange, changes=seed, show=not place, strip=strip)

    def _proceed(self, old: Exchange | None) -> None:
        if old is None or not (old.resumable and self._arguments.resumes):
            raise ValueError(
                "Only a reply that was stopped or cut off can be continued, where the stream takes prefix."
            )
        exchange = Exchange(old.message, old.parent, "continue", tuple(old.tokens))
        limit = old.settings.get("max_tokens")  # counts the prefix too
        keywords = {} if old.reason == "stopped" or not limit else {"max_tokens": limit + len(old.tokens)}
        changes = {"modality": old.settings.get("modality")} if "modality" in self._arguments.settings else {}
        self._submit(exchange, changes=changes, keywords=keywords)

    def _branch(self, old: Exchange, prefix: Sequence[int], forced: bool, seed: int) -> None:
        """A reply beside another that begins with tokens of it, made with the same settings and another seed."""
        exchange = Exchange(old.message, old.parent, "force" if forced else "resample", tuple(prefix))
        exchange.choices = old.choices
        self._submit(exchange, keywords=old.settings | ({"seed": seed} if "seed" in old.settings else {}), anew=False)

    def _walk(self, exchange: Exchange) -> None:
        with self._conversation.lock:
            self._conversation.strip = []
            self._conversation.walk(exchange)
        self._line.renew_still()

    def _look_inside(self, exchange: Exchange, opens: bool) -> None:
        if not opens:
            return self._inspectors.close(exchange)
        self._inspectors.prepare(exchange)
        self._worker.submit(partial(self._inspectors.open, exchange, self._done_looking))

    def _done_looking(self, trouble: str) -> None:
        if trouble:
            self._outbox.append((ConversationNotice(kind="notice", text=trouble), []))
        self._line.ring()

    def _submit(
        self,
        exchange: Exchange,
        read: Callable[[], MessageParts] | None = None,
        *,
        changes: Mapping[str, Any] | None = None,
        keywords: Mapping[str, Any] | None = None,
        anew: bool = True,
        show: bool = True,
        strip: Sequence[Exchange] = (),
    ) -> None:
        """Has a reply made. `changes` are made to the cell's settings, `keywords` to what is passed to the stream, all
        of which they are unless `anew`."""
        settings = dict(self.settings) | dict(changes or {}) if anew else {}
        self._pending.append(exchange.stopping)
        exchange.running = True
        with self._conversation.lock:
            self._conversation.add(exchange, show)
            self._conversation.strip = [*strip]
        self._line.ring()
        self._worker.submit(partial(self._reply, exchange, read, settings, dict(keywords or {}), anew))

    # The worker's thread

    def _reply(
        self,
        exchange: Exchange,
        read: Callable[[], MessageParts] | None,
        settings: dict[str, Any],
        keywords: dict[str, Any],
        anew: bool,
    ) -> None:
        failure = None
        self._latest = exchange
        try:
            trouble = None
            if read is not None:
                exchange.message.parts, trouble = read()
            if exchange.origin == "best" and exchange.stopping.is_set():
                self._conversation.remove(exchange)  # it never began, and others of the strip have
                return
            if anew:
                chosen = tuple(name for name, value in settings.items() if value is not None and name != "seed")
                keywords = self._arguments.keywords(settings, secrets.randbelow(LARGEST_SEED)) | keywords
                exchange.choices = chosen
            exchange.begin(keywords)
            self._line.ring()
            if trouble is not None:
                raise trouble
            self._reconstruct(exchange.message)
            if not exchange.stopping.is_set():
                for piece in until_stopped(self._open(exchange, self._progress(exchange)), exchange.stopping):
                    with self._conversation.lock:
                        exchange.take(piece)
                    self._line.ring()
        except ReplyStop:
            pass
        except Exception as error:  # whatever the model's code raises is shown in the cell, and raised by wait()
            failure = error
        finally:
            with self._conversation.lock:
                exchange.finish(failure)
                self._pending.remove(exchange.stopping)
            self._line.renew_still()
            self._line.ring()

    def _open(self, exchange: Exchange, progress: Callable[[ReplyProgress], None] | None = None) -> Iterable[Piece]:
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
            self._line.ring()
            if exchange.stopping.is_set():  # a row of a picture is one piece: a stop need not wait for it
                raise ReplyStop

        return note

    def _reconstruct(self, message: Message) -> None:
        for at, part in enumerate(message.parts if self._see is not None else ()):
            if isinstance(part, Image) and at not in message.reconstructions:
                try:
                    message.reconstructions[at] = self._see(part.picture)  # type: ignore[misc]
                except Exception:  # the reply will say what is wrong with the picture
                    log.info("a picture could not be shown as the model sees it", exc_info=True)

    # Files

    def _give_file(self, content: Mapping[str, Any]) -> None:
        name = str(content.get("format", "json"))
        try:
            data, kind, file = self._export.file(name)
        except Exception as error:
            log.exception("the conversation could not be exported")
            self._outbox.append((ConversationNotice(kind="notice", text=paragraph(error)), []))
        else:
            use = "copy" if content.get("use") == "copy" else "save"
            self._outbox.append((ConversationExport(kind="export", name=file, type=kind, use=use), [data]))
        self._line.ring()

    def _take_file(self, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> None:
        """One part of a file to load; the last one has it read."""
        if content.get("first"):
            self._upload = bytearray()
        for each in buffers:
            if len(self._upload) + each.nbytes > LARGEST_IMPORT:
                self._upload = bytearray()
                raise ValueError(
                    f"The file is larger than {LARGEST_IMPORT >> 20} MB: load it in Python, cell.load(PATH)."
                )
            self._upload += each
        if content.get("last"):
            data, self._upload = bytes(self._upload), bytearray()
            self._clerk.submit(partial(self._merge_or_say, data))

    def _merge_or_say(self, data: bytes) -> None:
        try:
            self._merge(data)
        except Exception as error:
            self._outbox.append((ConversationNotice(kind="notice", text=paragraph(error)), []))
            self._line.ring()

    def _merge(self, data: bytes) -> None:
        exchanges, path = exchanges_from_json(data)
        with self._conversation.lock:
            for exchange in exchanges:
                self._conversation.add(exchange, show=False)
            self._conversation.strip = []
            for exchange in path[-1:]:
                self._conversation.walk(exchange)
        self._line.renew_still()
        self._line.ring()

    # The pump's thread

    def _flush(self, due: frozenset[Part]) -> None:
        if (update := self._feed.update("hello" in due)) is not None:
            self._line.send(*update)
        self.status = self._conversation.state
        for _ in range(len(self._outbox)):
            message, buffers = self._outbox.pop(0)
            self._line.send(message, buffers)

    def _end(self) -> None:
        self.stop()
        self._inspectors.end()


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
    for part in content.get("parts", ()):
        if "text" in part:
            if str(part["text"]).strip():
                segments.append(Text(str(part["text"])))
        elif "keep" in part and old is not None:
            segments.append(old.user[int(part["keep"])])
        else:
            try:
                segments.append(Image(read_picture(buffers[int(part["picture"])])))
            except (ValueError, IndexError, KeyError) as error:
                trouble = ValueError(f"{error}" if isinstance(error, ValueError) else "A picture did not arrive.")
    if not segments and trouble is None:
        trouble = ValueError("The message is empty: write something, or add a picture.")
    return tuple(segments), trouble
