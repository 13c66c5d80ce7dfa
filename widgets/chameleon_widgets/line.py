"""The kernel's end of the line between a widget and its views in the browser.

A widget has a `Line` and gives it what it shows (`flush`, `still`) and what it does (`handlers`, `end`). The line keeps
views and kernel together: it greets a view that comes late, says which requests have arrived, remembers under one lock
what is due and sends it at a steady rate, shows the widget and its still, and ends with the cell or the widget.

A message arrives by one of two roads, and `Line._receive` is where they meet. On most versions of ipykernel a comm's
messages wait until the main shell is done with its cell: under Run All, a click would be answered after the last. The
control channel has a thread of its own on all versions, busy with interrupts and shutdowns only, so the page sends
there where it can (`on_control`), and by the comm elsewhere. A handler may so run in the thread of the control channel,
of the main shell, or of a subshell.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import anywidget
import traitlets
from IPython.core.getipython import get_ipython

from chameleon_widgets import colab
from chameleon_widgets.stills import WIDGET_VIEW, Still
from chameleon_widgets.threads import Pump, Worker, claim, log

STILL_SECONDS = 60.0  # between two stills of what goes on
CONTROL_MESSAGE = "chameleon_line"  # type of the messages that a page sends on the kernel's control channel

Part = str | int
Handler = Callable[[dict[str, Any], Sequence[memoryview]], object]


class LineMessage(TypedDict):
    """What the line itself says, for every widget: the views' last requests, the still, a handler's error.

    `control`: views whose requests have come on the control channel. `traits`: what views have set, for the others.
    """

    kind: Literal["line"]
    requests: dict[str, int]
    control: list[str]
    traits: dict[str, object]
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
    `title` stands for the widget in plain text, where nothing can be displayed; its class's name where left out.
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
        title: str = "",
    ) -> None:
        self.ended = False
        self._title = title
        self._widget, self._flush, self._handlers, self._end = widget, flush, handlers, end
        self._lock = threading.Lock()  # of all that follows; nobody waits for anything while holding it
        self._due: set[Part] = set()
        self._marks: dict[str, int] = {}  # of each view, the number of its last request that was not answered yet
        self._arrivals: dict[str, int] = {}  # of each view, the number of its last request
        self._on_control: set[str] = set()  # views
        self._traits: dict[str, Any] = {}  # set by views, and not yet passed on to the others
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
        own = widget.traits(sync=True).keys() - anywidget.AnyWidget.class_traits().keys()
        self._settable = {name for name in own if not name.startswith("_")}  # by a page
        for name in self._settable:
            widget.traits()[name].tag(echo_update=False)  # the line's own word of it says which request it answers
        widget.add_traits(control_comm=traitlets.Unicode(on_control(self, widget)).tag(sync=True))
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

    def _receive(self, road: object, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        kind, trouble, awaited = str(content.get("kind", "")), "", False
        view, _, number = str(content.get("mark", "")).rpartition("-")
        number = number if re.fullmatch("[0-9]{1,15}", number) else ""  # "²" is a digit, too, and no number
        if number:
            with self._lock:
                if road == CONTROL_MESSAGE:
                    self._on_control.add(view)
                if int(number) <= self._arrivals.get(view, 0):
                    return  # until a view knows that the control channel works, it sends by both roads
                self._arrivals[view] = int(number)
        handler = self._set_traits if kind == "set" else self._handlers.get(kind)
        if handler is not None:
            try:
                awaited = handler(content, buffers) is True
            except Exception as error:  # raised here, it would show nowhere in the notebook
                log.exception("“%s” could not be handled", kind)
                trouble = paragraph(error)
        with self._lock:  # after the handler: what a flush sends beside a mark contains what its request did
            self._trouble = trouble or self._trouble
            if kind == "hello":
                self._due.add(kind)
            if number:
                self._marks[view] = max(int(number), self._marks.get(view, 0))  # the roads may overtake each other
        if kind == "still":
            self._artist.submit(self._give_bundle)
        if not awaited:
            self._pump.ring()

    def _set_traits(self, content: dict[str, Any], _: object) -> None:
        """A view has changed what the widget and its views share. Raises TraitError for what cannot be that."""
        traits = dict(content["traits"])
        if strangers := traits.keys() - self._settable:
            raise ValueError(f"This widget has no {', '.join(sorted(strangers))} for a page to set.")
        self._widget.set_state(traits)
        with self._lock:
            self._traits.update({name: self._widget.get_state(name)[name] for name in traits})

    def _pumped(self) -> None:
        with self._lock:
            due, self._due = frozenset(self._due), set()
            marks, self._marks = self._marks, {}
            traits, self._traits = self._traits, {}
            control = sorted(self._on_control & marks.keys())
            trouble, self._trouble = self._trouble, ""
            bundle, self._bundle = self._bundle, None
        try:
            self._again = self._flush(due) is True
        except Exception as error:  # the widget says so, and goes on
            log.exception("%s could not send what is new", type(self._widget).__name__)
            trouble = paragraph(error)
        if marks or trouble or bundle or due & {"hello", "revision"}:
            message = LineMessage(
                kind="line",
                requests=marks,
                control=control,
                traits=traits,
                still=self._still.name,
                revision=self._still.revision,
            )
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
        if sentence := colab.note():
            print(sentence)
        self._still.show(self._view(), self._title or type(self._widget).__name__)

    def mimebundle(self, **_: Any) -> dict[str, Any]:
        return {**self._view(), **self._still.bundle()}


def on_control(line: Line, widget: anywidget.AnyWidget) -> str:
    """The widget's comm, by which its page names it in messages on the control channel; empty where there is none.

    These run in the channel's own thread, and, unlike a comm's, trigger none of IPython's events: a click in the middle
    of a cell that draws must not have its half-made figure displayed.
    """
    handlers = getattr(getattr(get_ipython(), "kernel", None), "control_handlers", None)
    if not isinstance(handlers, dict):
        return ""  # no kernel, or one of another make: the comm is the only road
    handlers[CONTROL_MESSAGE] = _take_control_message
    _living_lines[widget.model_id] = line
    return widget.model_id


def _take_control_message(_stream: object, _ident: object, message: dict[str, Any]) -> None:
    content = message["content"]
    if (line := _living_lines.get(content.get("comm_id"))) is not None:
        line._receive(CONTROL_MESSAGE, content.get("content") or {}, message.get("buffers") or ())


_living_lines: weakref.WeakValueDictionary[str, Line] = weakref.WeakValueDictionary()
"""Those that a page can reach on the control channel, by their widget's comm."""


def paragraph(error: BaseException) -> str:
    """An error as one paragraph. A ValueError is written for users and stands alone; others say what they are."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
