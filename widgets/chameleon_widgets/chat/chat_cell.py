"""A conversation with a model in a notebook cell: words stream, pictures appear row by row, Stop works at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import PIL.Image
import traitlets

from chameleon_lab.documents import Document, Segment
from chameleon_lab.files import read_bytes
from chameleon_lab.records import Piece
from chameleon_lab.storage import write_file
from chameleon_widgets.chat.archive import exchanges_from_json, tree_to_json
from chameleon_widgets.chat.arguments import LARGEST_SEED, MODALITY_LABELS, StreamArguments
from chameleon_widgets.chat.conversation import Conversation
from chameleon_widgets.chat.exchange import Exchange, Message, message_of
from chameleon_widgets.chat.exports import EXPORTS, ChatExport
from chameleon_widgets.chat.feed import ConversationFeed
from chameleon_widgets.chat.messages import ConversationExport, ConversationNotice
from chameleon_widgets.chat.replying import MessageParts, ReplyMaker, ReplyPlan, message_parts
from chameleon_widgets.chat.turn_inspectors import TurnInspectors
from chameleon_widgets.line import Line, Part, assets, paragraph
from chameleon_widgets.threads import Worker, log

BEST = 4
BEST_BY_CHOICE = 8  # where nobody need look at them all
LARGEST_IMPORT = 2**28  # bytes


class ChatCell(anywidget.AnyWidget):
    """A chat in a notebook cell with any callable `(Document, *, seed, temperature, ...) -> iterator of pieces`.

    The conversation is a tree: whatever is edited, drawn again, continued or forced becomes a branch, the others stay,
    and `document` is the path shown. Each reply keeps what made it, and `replay` makes it again.

    `defaults` are passed with each reply; settings that the callable takes can be changed in the cell, where a slider
    shows the callable's own value (seed: a new one for each reply). `document` continues an earlier conversation, and
    `note` is a line on what the model knows. Where the callable takes `prefix` and `progress`, a reply that was stopped
    can be continued; where it takes `modality`, what a reply holds can be chosen. `inspect`, a callable of a document
    (and its `guidance`), opens a turn in an `Inspector`; `tokens` gives a document's token ids, for export; `see` gives
    a picture back as the model sees it. `choose`, a callable of several documents, each the message and a reply to it,
    gives the place of the best, which is shown once all of `best` are there. A default that the callable does not take
    raises ValueError.
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
        choose: Callable[[Sequence[Document]], int] | None = None,
        note: str = "",
    ) -> None:
        self._choose = choose
        self._arguments = StreamArguments(stream, defaults or {})
        self._conversation = Conversation(document)
        self._worker, self._clerk = Worker("chat cell worker"), Worker("chat cell files")
        self._maker = ReplyMaker(stream, self._arguments, self._conversation, see, lambda: self._line.ring())
        self._pending = self._maker.pending
        self._outbox: list[tuple[ConversationExport | ConversationNotice, list[bytes]]] = []
        self._upload = bytearray()
        self._inspectors = TurnInspectors(self._conversation, inspect, self._branch)
        self._export = ChatExport(self._conversation, tokens, self._inspectors)
        self._feed = ConversationFeed(self._conversation, self._pending, self._inspectors.ids, self._arguments.resumes)
        offers = {
            "modalities": MODALITY_LABELS if "modality" in self._arguments.settings else {},
            "inspect": inspect is not None,
            "exports": {name: label for name, (label, _, _) in EXPORTS.items() if self._export.offers(name)},
            "best": (BEST if choose is None else BEST_BY_CHOICE) if "seed" in self._arguments.settings else 0,
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
        self._submit(Exchange(Message(message_of(parts)), self._conversation.tip), self._plan())

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

    @property
    def tree(self) -> list[dict[str, Any]]:
        """All replies, each after its parent: `key`, `parent` (None for a first one), `origin` (the act it came from),
        `settings` with the seed, `prefix`, `tokens` where the stream tells them, how it ended (`reason`), and whether
        it is on the path shown (`visible`)."""
        with self._conversation.lock:
            path = {each.key for each in self._conversation.path}
            return [
                {
                    "key": each.key,
                    "parent": each.parent.key if each.parent and each.parent.key else None,
                    "origin": each.origin,
                    "settings": dict(each.settings),
                    "prefix": each.prefix,
                    "tokens": tuple(each.tokens),
                    "reason": each.reason,
                    "visible": each.key in path,
                }
                for each in self._conversation.exchanges
            ]

    def walk(self, key: int) -> None:
        """Shows the path through a reply of `tree`, and on to what was last shown after it."""
        self._walk(self._named({"key": key}))

    def replay(self, key: int | None = None) -> Iterator[Piece]:
        """The pieces of a reply made again with what made it: those of the last one, or of the one with this key.

        Raises ValueError where there is no such reply.
        """
        exchange = self._conversation.find(key)
        if exchange is None or not exchange.user:
            raise ValueError(f"There is no reply {'yet' if key is None else key!r} to make again.")
        return iter(self._maker.open(exchange))

    def save(self, path: Path | str) -> None:
        """Writes all branches, with the settings and seeds of each reply, as JSON that `load` reads."""
        write_file(Path(path), tree_to_json(self._conversation))

    def load(self, path: Path | str) -> None:
        """Puts the branches in a file beside those there are, and shows its path. Raises ValueError for a file that is
        no conversation, and then changes nothing."""
        self._merge(read_bytes(path))

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
        if (latest := self._maker.latest) is not None and latest.error is not None:
            raise latest.error

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
        self._submit(exchange, self._plan(read=partial(message_parts, content, buffers, old)))

    def _again(self, old: Exchange | None) -> None:
        if old is not None and old.user:
            self.stop()
            self._submit(Exchange(old.message, old.parent, "regenerate"), self._plan())

    def _best(self, old: Exchange | None, count: object) -> None:
        if not isinstance(count, int) or isinstance(count, bool) or not 2 <= count <= 64:
            raise ValueError(f"The best is chosen of 2 to 64 replies, not of {str(count)[:20]!r}.")
        if old is None or not old.user:
            return
        self.stop()
        first = self.settings.get("seed")
        strip = [Exchange(old.message, old.parent, "best") for _ in range(count)]
        for place, exchange in enumerate(strip):
            seed = (first + place) % LARGEST_SEED if isinstance(first, int) else first
            changes = {} if seed is None else {"seed": seed}
            self._submit(exchange, ReplyPlan(dict(self.settings) | changes), show=not place, strip=strip)
        if self._choose is not None:
            self._worker.submit(partial(self._show_best, strip, self._choose))

    def _show_best(self, strip: list[Exchange], choose: Callable[[Sequence[Document]], int]) -> None:
        """Shows the reply that `choose` prefers, unless somebody has gone elsewhere, or stopped one of them."""
        whole = [each for each in strip if each.reply and each.error is None and not each.stopping.is_set()]
        if len(whole) < len(strip) or self._conversation.strip != strip or self._conversation.tip is not strip[0]:
            return
        place = choose([Document(each.segments) for each in whole])
        self._conversation.walk(whole[place])
        self._line.renew_still()
        self._line.ring()

    def _proceed(self, old: Exchange | None) -> None:
        if old is None or not (old.resumable and self._arguments.resumes):
            raise ValueError(
                "Only a reply that was stopped or cut off can be continued, where the stream takes prefix."
            )
        exchange = Exchange(old.message, old.parent, "continue", tuple(old.tokens))
        limit = old.settings.get("max_tokens")  # counts the prefix too
        keywords = {} if old.reason == "stopped" or not limit else {"max_tokens": limit + len(old.tokens)}
        changes = {"modality": old.settings.get("modality")} if "modality" in self._arguments.settings else {}
        self._submit(exchange, ReplyPlan(dict(self.settings) | changes, keywords))

    def _branch(self, old: Exchange, prefix: Sequence[int], forced: bool, seed: int) -> None:
        """A reply beside another that begins with tokens of it, made with the same settings and another seed."""
        exchange = Exchange(old.message, old.parent, "force" if forced else "resample", tuple(prefix))
        exchange.choices = old.choices
        self._submit(exchange, ReplyPlan(None, old.settings | ({"seed": seed} if "seed" in old.settings else {})))

    def _walk(self, exchange: Exchange) -> None:
        with self._conversation.lock:
            self._conversation.strip = []
            self._conversation.walk(exchange)
        self._line.renew_still()
        self._line.ring()

    def _look_inside(self, exchange: Exchange, opens: bool) -> None:
        if not opens:
            return self._inspectors.close(exchange)
        self._inspectors.prepare(exchange)
        self._worker.submit(partial(self._inspectors.open, exchange, self._done_looking))

    def _done_looking(self, trouble: str) -> None:
        if trouble:
            self._outbox.append((ConversationNotice(kind="notice", text=trouble), []))
        self._line.ring()

    def _plan(self, read: Callable[[], MessageParts] | None = None) -> ReplyPlan:
        """A reply made with the cell's settings as they are now."""
        return ReplyPlan(dict(self.settings), read=read)

    def _submit(
        self, exchange: Exchange, plan: ReplyPlan, *, show: bool = True, strip: Sequence[Exchange] = ()
    ) -> None:
        """Puts an exchange into the tree, and has its reply made in its turn."""
        self._pending.append(exchange.stopping)
        exchange.running = True
        with self._conversation.lock:
            self._conversation.add(exchange, show)
            self._conversation.strip = [*strip]
        self._line.ring()
        self._worker.submit(partial(self._make, exchange, plan))

    # The worker's thread

    def _make(self, exchange: Exchange, plan: ReplyPlan) -> None:
        self._maker.make(exchange, plan)
        self._line.renew_still()
        self._line.ring()

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
