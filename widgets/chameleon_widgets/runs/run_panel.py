"""A run while it trains: its curves by modality, its layers and heads, its alarms, and the hands on it."""

from __future__ import annotations

import io
import logging
import threading
import time
import uuid
from base64 import b64encode
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import anywidget
import traitlets

from chameleon_lab.history import History, RecordedRun, RunState
from chameleon_widgets.chat.conversation import paragraph
from chameleon_widgets.runs.run_feed import RunFeed, plain, worst_alarm
from chameleon_widgets.stills import WIDGET_VIEW, Still, escape, image
from chameleon_widgets.threads import Pump, Worker, claim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("chameleon_widgets")

STATIC = Path(__file__).parents[1] / "static"
ETA_SECONDS = 30.0  # of training over which its pace is taken
STILL_SECONDS = 60.0  # between two stills of a run that goes on
COMMANDS = ("pause", "resume", "stop", "save")


class WatchedRun(Protocol):
    """What the panel asks of a run. `act` returns at once, and raises ValueError where a command makes no sense."""

    @property
    def state(self) -> RunState: ...

    @property
    def history(self) -> History: ...

    def act(self, command: str, **arguments: Any) -> Any: ...


class RunPanel(anywidget.AnyWidget):
    """A run that trains here, or the folder of one that trains or trained anywhere.

    A run given as an object is watched and acted upon. A folder is only read: the same picture without the controls,
    kept up to date while its state is not over, and then without any thread. Raises FileNotFoundError for a folder
    that holds no run.
    """

    _esm = STATIC / "run_panel.js"
    _css = STATIC / "run_panel.css"

    status = traitlets.Unicode("waiting", help="Of the run, as in RunState.").tag(sync=True)
    still_name = traitlets.Unicode(help="Class of the still that the view hides while it is alive.").tag(sync=True)

    def __init__(self, run: WatchedRun | str | Path) -> None:
        self._run: WatchedRun = RecordedRun(run) if isinstance(run, str | Path) else run
        self._recorded = isinstance(self._run, RecordedRun)
        self._feed = RunFeed()
        self._pace = deque[tuple[float, float]]()  # (seconds of training, progress)
        self._state: dict[str, Any] = {}
        self._heard, self._told, self._errors = "", "", 0
        self._due: set[str] = set()
        self._ended = self._more = False
        self._flushing = threading.Lock()
        self._still = Still(uuid.uuid4().hex, self._still_body)
        self._pump = Pump(self._flush, "run panel pump", rate=10.0 if self._recorded else 30.0)
        self._actor, self._stopper, self._artist = (Worker(f"run panel {what}") for what in ("worker", "stop", "still"))
        state = self._run.state
        self._still_at, self._still_of = time.monotonic(), state.status if state.over else ""
        super().__init__(still_name=self._still.name, status=state.status)
        self.on_msg(self._handle)
        claim(self._end)
        if not state.over:
            self._pump.ring()

    @property
    def history(self) -> History:
        """What the run told so far."""
        return self._run.history

    @property
    def state(self) -> RunState:
        """How the run stands."""
        return self._run.state

    def figure(self, **options: Any) -> Figure:
        """The run as a matplotlib figure with its caption, to be saved as PNG, SVG or PDF."""
        from chameleon_widgets.figures import run_figure

        return run_figure(self._run.history, self._run.state, **options)

    def close(self) -> None:
        self._end()
        super().close()

    def _end(self) -> None:
        """Looks at the run no more. The run goes on."""
        self._ended = True

    def _ipython_display_(self) -> None:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        self._still.show(view, f"RunPanel of {self._run.state.name}")

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {WIDGET_VIEW: view, **self._still.bundle()}

    # Messages of the browser: flags and hand-overs only

    def _handle(self, _: object, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        self._heard = str(content.get("mark", ""))
        self._due.add("state")
        match content.get("kind"):
            case "hello":
                self._due.add("everything")
            case "still":
                self._due.add("still asked for")
            case "act":
                command, arguments = str(content.get("command", "")), content.get("arguments")
                worker = self._stopper if command == "stop" else self._actor  # Stop overtakes whatever takes long
                worker.submit(partial(self._act, command, arguments if isinstance(arguments, dict) else {}))
        self._wake()

    def _wake(self) -> None:
        """Has the news sent: by the pump; of a folder's run that is over here and now, so that no thread is needed."""
        if self._recorded and self._run.state.over:
            self._flush()
            while self._more:
                self._flush()
        else:
            self._pump.ring()

    # The workers' threads

    def _act(self, command: str, arguments: dict[str, Any]) -> None:
        try:
            self._run.act(command, **self._checked(command, arguments))
            self._told = ""
        except Exception as error:  # shown in the widget
            self._told = paragraph(error)
            self._errors += 1
        self._due.add("state")
        self._wake()

    def _checked(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """What the run is asked, so that the browser can ask for nothing else."""
        state = self._run.state
        reason = {"reason": str(arguments.pop("reason", ""))}
        if command in COMMANDS and not arguments:
            return {}
        if command == "change" and arguments and arguments.keys() <= state.settings.keys():
            return arguments | reason
        if command == "fork" and arguments.keys() == {"fix"} and arguments["fix"] in state.offers:
            return arguments | reason
        known = ", ".join(state.settings if command == "change" else state.offers) or "nothing"
        what = ", ".join(f"{name} {value}" for name, value in arguments.items()) or "nothing"
        raise ValueError(f"This run cannot {command} {what}; it offers {known}.")

    # The pump's thread

    def _flush(self) -> None:
        with self._flushing:
            self._more = False
            if self._ended:
                return
            due = {self._due.pop() for _ in range(len(self._due))}  # what is added meanwhile waits for the next flush
            message: dict[str, Any] = {"kind": "update", "heard": self._heard}
            if "everything" in due:
                self._feed.rewind()
            try:
                state = self._run.state  # before the history, which is then whole when the state is over
                history = self._run.history
            except Exception as error:  # a folder may hold anything
                self.send(message | {"unreadable": paragraph(error)})
                return
            facts = self._facts(state, history)
            if "state" in due or facts != self._state:
                self._state = message["state"] = facts
                self.status = state.status
            news, buffers = self._feed.next(history) or ({}, [])
            if len(message | news) > 2:
                self.send(message | news, buffers)
            self._more = bool(news.get("more"))
            if not self._more:
                self._keep_still(state)
            if "still asked for" in due:
                self.send({"kind": "still", "revision": self._still.revision, "bundle": self._still.bundle()})
            if not state.over or (self._more and not self._recorded):
                self._pump.ring()

    def _keep_still(self, state: RunState) -> None:
        """Has the still drawn anew now and then, and at the end; aside, since a figure takes long."""
        due = state.over and self._still_of != state.status
        if (due or time.monotonic() - self._still_at > STILL_SECONDS) and not self._artist.busy:
            self._still_at, self._still_of = time.monotonic(), state.status
            self._artist.submit(self._draw_still)

    def _draw_still(self) -> None:
        self._still.refresh()
        self.send({"kind": "still", "revision": self._still.revision})

    def _facts(self, state: RunState, history: History) -> dict[str, Any]:
        last = history.records[-1] if history.records else None
        return {
            "name": state.name,
            "status": state.status,
            "over": state.over,
            "acts": not self._recorded,
            "progress": state.progress,
            "step": last.step if last else None,
            "steps": state.steps,
            "pace": plain(state.tokens_per_second),
            "left": None if state.over or last is None else self._left(last.seconds, state.progress),
            "error": state.error,
            "told": self._told,
            "errors": self._errors,
            "settings": plain(state.settings),
            "offers": list(state.offers),
            "parent": state.parent,
            "forked_at": state.forked_at,
            "difference": state.difference,
            "forks": list(state.forks),
        }

    def _left(self, seconds: float, progress: float) -> float | None:
        """Seconds of training left at the pace of late, None while it is not known."""
        pace = self._pace
        if pace and (progress < pace[-1][1] or seconds < pace[-1][0]):
            pace.clear()
        if not pace or progress > pace[-1][1]:
            pace.append((seconds, progress))
        while len(pace) > 2 and seconds - pace[1][0] > ETA_SECONDS:
            pace.popleft()
        (began, before), (now, here) = pace[0], pace[-1]
        return round((1 - here) * (now - began) / (here - before)) if here > before else None

    def _still_body(self) -> tuple[str, str]:
        state, history = self._run.state, self._run.history
        told = summary(state, history)
        if not history.records:
            return f"<p>{escape(told)}</p>", told
        picture = io.BytesIO()
        try:
            self.figure().savefig(picture, format="png", dpi=100)
        except Exception:  # whatever a run recorded, its panel goes on
            log.exception("the still of %s could not be drawn", state.name)
            return f"<p>{escape(told)}</p>", told
        uri = "data:image/png;base64," + b64encode(picture.getvalue()).decode()
        return f'{image(uri, told, 720)}<p class="note">{escape(told)}</p>', told


def summary(state: RunState, history: History) -> str:
    """The run in one sentence or two."""
    last = history.records[-1].step if history.records else None
    told = f"{state.name}: {state.status}" + (" before its first step" if last is None else f" at step {last:,}")
    if "loss" in history.names:
        told += f", loss {history.last('loss'):.3f}"
    told += "."
    if alarm := worst_alarm(history.alarms):
        count = len(history.alarms)
        told += f" {count} alarm{'s' * (count != 1)}, the worst at step {alarm.step:,}: {alarm.told}."
    return told + (f" {state.error}" if state.error else "")
