"""A conversation with a model in a notebook cell: words stream, pictures appear row by row, Stop works at once."""

from __future__ import annotations

import inspect
import secrets
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import anywidget
import PIL.Image
import traitlets

from chameleon_lab.documents import Document, Image, Segment, Text
from chameleon_lab.pictures import read_picture
from chameleon_lab.records import Piece
from chameleon_widgets.chat.conversation import Conversation, ConversationFeed, Exchange, message_of
from chameleon_widgets.chat.messages import ConversationExport
from chameleon_widgets.line import Line, Part, assets
from chameleon_widgets.threads import Worker

SETTINGS: dict[str, dict[str, Any]] = {
    "temperature": {"label": "Temperature", "min": 0.0, "max": 2.0, "step": 0.05, "hint": "0 takes the likeliest"},
    "top_p": {"label": "Top-p", "min": 0.05, "max": 1.0, "step": 0.05, "hint": "share of probability kept"},
    "guidance": {"label": "Guidance", "min": 1.0, "max": 10.0, "step": 0.25, "hint": "pull of the words on a picture"},
}


Message = tuple[tuple[Segment, ...], ValueError | None]  # what was said, and what of it could not be read


class ChatCell(anywidget.AnyWidget):
    """A chat in a notebook cell with any callable `(Document, *, seed, temperature, ...) -> iterator of pieces`.

    `defaults` are passed to the callable with each reply; temperature, top_p, guidance and seed can be changed in the
    cell (seed None draws a new one for each reply). `document` continues an earlier conversation. Only settings that
    the callable takes are shown and passed; a default that it does not take raises ValueError.
    """

    _esm, _css = assets("chat_cell")

    status = traitlets.Unicode("idle", help="idle, reading, writing, drawing, stopped or error.").tag(sync=True)
    settings = traitlets.Dict(help="What the next reply is made with; seed None draws a new one.").tag(sync=True)
    suggestions = traitlets.List(traitlets.Unicode(), help="Prompts offered while nothing is said.").tag(sync=True)
    ranges = traitlets.Dict(help="Label, limits and step of each setting that has a slider.").tag(sync=True)

    def __init__(
        self,
        stream: Callable[..., Iterable[Piece]],
        *,
        defaults: Mapping[str, Any] | None = None,
        suggestions: Sequence[str] = (),
        document: Document | None = None,
    ) -> None:
        settings, ranges, self._fixed = settings_of(stream, defaults or {})
        self._stream = stream
        self._conversation = Conversation(document)
        self._worker = Worker("chat cell worker")
        self._pending: list[threading.Event] = []  # one for each message not yet replied to, set to give it up
        self._feed = ConversationFeed(self._conversation, self._pending)
        super().__init__(settings=settings, ranges=ranges, suggestions=list(suggestions))
        handlers = {
            "send": lambda content, buffers: self._submit(partial(read_message, content, buffers, None)),
            "edit": self._edit,
            "again": lambda content, _: self._again(self._conversation.find(content.get("key"))),
            "stop": lambda *_: self.stop(),
            "clear": lambda *_: self.clear(),
            "export": lambda *_: self._line.tell("export"),
        }
        still = self._conversation.still
        self._line = Line(self, "chat cell", flush=self._flush, still=still, handlers=handlers, end=self.stop)

    @property
    def document(self) -> Document:
        """The conversation: user turn, EndTurn, model turn, EndTurn, ... An unanswered message only if it is last."""
        return self._conversation.document_to()

    def send(self, *parts: str | PIL.Image.Image | Segment | Document) -> None:
        """Says something to the model, as the browser does; returns at once. ValueError when it is empty."""
        message = message_of(parts)
        self._submit(lambda: (message, None))

    def stop(self) -> None:
        """Ends the reply in progress, and those waiting behind it; what was drawn and written stays."""
        for stopping in tuple(self._pending):
            stopping.set()
        self._line.ring()

    def regenerate(self) -> None:
        """Replaces the last reply by a new one; returns at once."""
        self._again(self._conversation.find(None))

    def clear(self) -> None:
        """Ends the reply in progress and forgets the conversation; returns at once."""
        self.stop()
        self._worker.submit(self._forget)

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
        last = self._conversation.find(None)
        if last is not None and last.error is not None:
            raise last.error

    # What the browser asks

    def _edit(self, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        if (old := self._conversation.find(content.get("key"))) is not None:
            self.stop()
            self._submit(partial(read_message, content, buffers, old), replaces=old)

    def _again(self, old: Exchange | None) -> None:
        if old is not None and old.user:
            self.stop()
            self._submit(lambda: (old.user, None), replaces=old)

    def _submit(self, message: Callable[[], Message], replaces: Exchange | None = None) -> None:
        stopping = threading.Event()
        self._pending.append(stopping)
        self._worker.submit(partial(self._reply, message, replaces, stopping))

    # The worker's thread

    def _reply(self, message: Callable[[], Message], replaces: Exchange | None, stopping: threading.Event) -> None:
        exchange, failure = Exchange(stopping), None
        try:
            exchange.user, trouble = message()
            exchange.begin(self._settings_now())
            self._conversation.put(exchange, replaces)
            self._line.ring()
            if trouble is not None:
                raise trouble
            if not stopping.is_set():
                stream = self._stream(self._conversation.document_to(exchange), **self._fixed, **exchange.settings)
                for piece in until_stopped(stream, stopping):
                    with self._conversation.lock:
                        exchange.take(piece)
                    self._line.ring()
        except Exception as error:  # whatever the model's code raises is shown in the cell, and raised by wait()
            failure = error
        finally:
            with self._conversation.lock:
                exchange.finish(failure)
                self._pending.remove(stopping)
            self._line.renew_still()
            self._line.ring()

    def _settings_now(self) -> dict[str, Any]:
        settings = {name: value for name, value in self.settings.items() if value is not None}
        if "seed" in self.settings:
            settings["seed"] = int(settings.get("seed", secrets.randbelow(2**31)))
        return settings

    def _forget(self) -> None:
        self._conversation.clear()
        self._line.renew_still()
        self._line.ring()

    # The pump's thread

    def _flush(self, due: frozenset[Part]) -> None:
        if (update := self._feed.update("hello" in due)) is not None:
            self._line.send(*update)
        self.status = self._conversation.state
        if "export" in due:
            self._line.send(ConversationExport(kind="export", text=self.document.to_json()))


def settings_of(
    stream: Callable[..., Iterable[Piece]], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(settings that the cell can change, ranges of its sliders, defaults passed on as they are).

    A setting is offered when the callable takes an argument of its name. Its value is the one in `defaults`, else the
    callable's own default, else None: left to the callable. ValueError names a default that the callable cannot take.
    """
    takes, open_ended = _arguments(stream)
    strange = [name for name in defaults if name not in takes and not open_ended]
    if strange:
        names = ", ".join(takes) or "no settings"
        raise ValueError(f"The stream does not take {', '.join(strange)}; it takes {names}.")
    settings: dict[str, Any] = {}
    for name in (*SETTINGS, "seed"):
        value = defaults.get(name, None if name == "seed" else takes.get(name))
        if (name in takes or open_ended) and (value is None or _is_number(value)):
            settings[name] = value
    ranges = {name: dict(SETTINGS[name]) for name in settings if name in SETTINGS}
    for name, limits in ranges.items():
        if settings[name] is not None:
            limits["min"], limits["max"] = min(limits["min"], settings[name]), max(limits["max"], settings[name])
    return settings, ranges, {name: value for name, value in defaults.items() if name not in settings}


def _arguments(stream: Callable[..., object]) -> tuple[dict[str, Any], bool]:
    """Names that can be passed by keyword after the document, with their defaults; whether any name will do."""
    try:
        parameters = list(inspect.signature(stream).parameters.values())
    except (TypeError, ValueError):  # some callables written in C tell nothing
        return {}, True
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    takes = {
        each.name: None if each.default is inspect.Parameter.empty else each.default
        for index, each in enumerate(parameters)
        if each.kind in named and (index or each.kind is inspect.Parameter.KEYWORD_ONLY)
    }
    return takes, any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def until_stopped(stream: Iterable[Piece], stopping: threading.Event) -> Iterator[Piece]:
    """The pieces of a stream until `stopping` is set. A generator is closed in any case, so that it stops computing."""
    try:
        for piece in stream:
            if stopping.is_set():
                return
            yield piece
    finally:
        if isinstance(stream, Generator):
            stream.close()


def read_message(content: Mapping[str, Any], buffers: Sequence[memoryview], old: Exchange | None) -> Message:
    """The message in a request of the browser: text, pictures as files in `buffers`, parts kept from an `old` message.

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
