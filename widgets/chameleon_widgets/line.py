"""The kernel's end of the line between a widget and its views in the browser.

A widget has a `Line` and gives it what it shows (`flush`, `still`) and what it does (`handlers`, `end`). The line keeps
views and kernel together: it greets a view that comes late, says which requests have arrived, remembers under one lock
what is due and sends it at a steady rate, shows the widget and its still, and ends with the cell or the widget.

Which thread runs a handler is ipykernel's choice: the main shell's, or a subshell's. A main shell that is busy with a
cell (Run All) may run it only afterwards. `Line._receive` is the one place where every message arrives, and so the one
place where another way in would join.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import anywidget

from chameleon_widgets.stills import WIDGET_VIEW, Still
from chameleon_widgets.threads import Pump, Worker, claim, log

STILL_SECONDS = 60.0  # between two stills of what goes on

Part = str | int
Handler = Callable[[dict[str, Any], Sequence[memoryview]], object]


class LineMessage(TypedDict):
    """What the line itself says, for every widget: the views' last requests, the still, a handler's error."""

    kind: Literal["line"]
    requests: dict[str, int]
    still: str
    revision: int
    bundle: NotRequired[dict[str, str]]
    trouble: NotRequired[str]


def assets(name: str) -> tuple[Path, Path]:
    """The script and the style sheet of a widget: `_esm, _css = assets("chat_cell")`."""
    static = Path(__file__).parent / "static"
    return static / f"{name}.js", static / f"{name}.css"


class Line:
    """What a widget needs in order to live in the browser and in a saved notebook.

    `flush(due)` sends what is new with `send`. `due` holds the parts named by `tell` since the last call, and "hello"
    where a view has come that has nothing yet. One thread calls it, at most `rate` times a second; where it returns
    True it is called again although nothing rings, until the line has ended.
    `still()` is the widget's picture for a saved notebook: HTML body and plain text. Another thread calls it.
    `handlers` do what the browser asks, by the `kind` of the message. They flip flags and hand work over, and never
    compute. One that returns True has begun work that will `ring` soon, so that the answer goes out with the result.
    `end` ends the widget's work: when its notebook cell is run again, and when the widget is closed.
    """

    def __init__(
        self,
        widget: anywidget.AnyWidget,
        name: str,
        *,
        flush: Callable[[frozenset[Part]], object],
        still: Callable[[], tuple[str, str]],
        handlers: Mapping[str, Handler],
        end: Callable[[], object] = lambda: None,
        rate: float = 30.0,
    ) -> None:
        self.ended = False
        self._widget, self._flush, self._handlers, self._end = widget, flush, handlers, end
        self._lock = threading.Lock()  # of all that follows; nobody waits for anything while holding it
        self._due: set[Part] = set()
        self._marks: dict[str, int] = {}  # of each view, the number of its last request that was not answered yet
        self._trouble, self._again = "", False
        self._bundle: dict[str, str] | None = None  # the still, for a view that asked for it
        self._still_stale = False
        self._still_time = time.monotonic()
        self._still = Still(uuid.uuid4().hex, still)
        self._artist = Worker(f"{name} still")
        self._pump = Pump(self._pumped, f"{name} pump", rate)
        widget._ipython_display_ = self._display  # type: ignore[attr-defined]
        widget._repr_mimebundle_ = self.mimebundle  # type: ignore[method-assign]
        widget.on_msg(self._receive)
        widget.observe(lambda change: self.end() if change.new is None else None, "comm")  # it was closed
        claim(self.end)

    def tell(self, *parts: Part, later: bool = False) -> None:
        """Has these parts sent: the next `flush` finds them due. It comes soon; `later`: when something else rings."""
        with self._lock:
            self._due.update(parts)
        if not later:
            self._pump.ring()

    def ring(self) -> None:
        """Has `flush` called soon. From any thread."""
        self._pump.ring()

    def send(self, message: Mapping[str, Any], buffers: Iterable[bytes] = ()) -> None:
        """Sends a message to all views, in `flush` as a rule."""
        anywidget.AnyWidget.send(self._widget, dict(message), list(buffers))

    def renew_still(self, rest: float = 0.0) -> bool:
        """Has the still drawn anew, aside. False, and nothing else, less than `rest` seconds after the last time."""
        with self._lock:
            now = time.monotonic()
            if now - self._still_time < rest:
                return False
            stale, self._still_stale, self._still_time = self._still_stale, True, now
        if not stale:
            self._artist.submit(self._draw_still)
        return True

    def settle(self, timeout: float = 10.0) -> bool:
        """Blocks until all that is due has been sent and the still is drawn; False where that took too long."""
        return self._pump.drain(timeout) and self._artist.wait(timeout) and self._pump.drain(timeout)

    def end(self) -> None:
        """Ends the widget's work and follows nothing any more. Views are still answered."""
        self.ended = True
        self._end()

    def _receive(self, _: object, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        kind, trouble, awaited = str(content.get("kind", "")), "", False
        if (handler := self._handlers.get(kind)) is not None:
            try:
                awaited = handler(content, buffers) is True
            except Exception as error:  # raised here, it would show nowhere in the notebook
                log.exception("“%s” could not be handled", kind)
                trouble = paragraph(error)
        view, _, number = str(content.get("mark", "")).rpartition("-")
        with self._lock:  # after the handler: what a flush sends beside a mark contains what its request did
            self._trouble = trouble or self._trouble
            if kind == "hello":
                self._due.add(kind)
            if number.isdigit():
                self._marks[view] = int(number)
        if kind == "still":
            self._artist.submit(self._give_bundle)
        if not awaited:
            self._pump.ring()

    def _pumped(self) -> None:
        with self._lock:
            due, self._due = frozenset(self._due), set()
            marks, self._marks = self._marks, {}
            trouble, self._trouble = self._trouble, ""
            bundle, self._bundle = self._bundle, None
        try:
            self._again = self._flush(due) is True
        except Exception as error:  # the widget says so, and goes on
            log.exception("%s could not send what is new", type(self._widget).__name__)
            trouble = paragraph(error)
        if marks or trouble or bundle or due & {"hello", "revision"}:
            message = LineMessage(kind="line", requests=marks, still=self._still.name, revision=self._still.revision)
            if bundle:
                message["bundle"] = bundle
            if trouble:
                message["trouble"] = trouble
            self.send(message)
        if self._again and not self.ended:
            self._pump.ring()

    def _draw_still(self) -> None:
        with self._lock:
            self._still_stale = False  # what changes from now on needs another
        self._still.refresh()
        self.tell("revision")

    def _give_bundle(self) -> None:
        bundle = self._still.bundle()
        with self._lock:
            self._bundle = bundle
        self._pump.ring()

    def _view(self) -> dict[str, object]:
        return {WIDGET_VIEW: {"version_major": 2, "version_minor": 0, "model_id": self._widget.model_id}}

    def _display(self) -> None:
        self._still.show(self._view(), type(self._widget).__name__)

    def mimebundle(self, **_: Any) -> dict[str, Any]:
        return {**self._view(), **self._still.bundle()}


def paragraph(error: BaseException) -> str:
    """An error as one paragraph. A ValueError is written for users and stands alone; others say what they are."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
