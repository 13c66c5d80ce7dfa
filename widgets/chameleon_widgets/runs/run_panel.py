"""A run while it trains: its curves by modality, its layers and heads, its alarms, and the hands on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import anywidget
import traitlets

from chameleon_lab.history import History, RecordedRun, RunState
from chameleon_widgets.line import STILL_SECONDS, Line, Part, assets, paragraph
from chameleon_widgets.runs.messages import PanelFork, PanelState, PanelUnreadable
from chameleon_widgets.runs.run_feed import RunFeed, json_value, worst_alarm
from chameleon_widgets.runs.sample_feed import SampleFeed
from chameleon_widgets.stills import escape, image
from chameleon_widgets.threads import FOLDER_ROUNDS, Worker, log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ETA_SECONDS = 30.0  # of training over which its pace is taken
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

    A run is watched and acted upon; so is the folder of a run that goes on in another process, where that takes
    orders. A folder whose run is over is looked at now and then: where another process takes the run up again, the
    panel goes on with it. Raises FileNotFoundError for a folder that holds no run.
    """

    _esm, _css = assets("run_panel")

    status = traitlets.Unicode("waiting", help="Of the run, as in RunState.").tag(sync=True)

    def __init__(self, run: WatchedRun | str | Path) -> None:
        self._run: WatchedRun = RecordedRun(run) if isinstance(run, str | Path) else run
        self._folder = isinstance(self._run, RecordedRun)
        self._feed, self._samples = RunFeed(), SampleFeed()
        self._pace = deque[tuple[float, float]]()  # (seconds of training, progress)
        self._facts_before: PanelState | None = None
        self._refusal, self._refusals, self._note = "", 0, ""
        self._children: dict[str, RunPanel] = {}  # panels of forks that were opened here, by name
        self._revision: object = None  # of the folder, when it was last read
        self._posted: str | None = None  # the last order to another process, until that has answered it
        self._actor, self._stopper = Worker("run panel worker"), Worker("run panel stop")
        state = self._run.state
        self._still_status = state.status if state.over else ""
        super().__init__(status=state.status)
        rate = 10.0 if self._folder else 30.0
        self._line = Line(
            self,
            "run panel",
            flush=self._flush,
            still=self._still,
            handlers={"act": self._order, "open": self._ask_fork},
            end=self._end,
            rate=rate,
            title=f"RunPanel of {state.name}",
        )
        if not state.over:
            self._line.ring()

    @property
    def history(self) -> History:
        """What the run recorded so far."""
        return self._run.history

    @property
    def state(self) -> RunState:
        """How the run stands."""
        return self._run.state

    def figure(self, **options: Any) -> Figure:
        """The run as a matplotlib figure with its caption, to be saved as PNG, SVG or PDF."""
        from chameleon_widgets.figures import run_figure

        return run_figure(self._run.history, self._run.state, **options)

    # What the browser asks

    def _order(self, content: dict[str, Any], _: object) -> None:
        command, arguments = str(content.get("command", "")), content.get("arguments")
        worker = self._stopper if command == "stop" else self._actor  # Stop overtakes whatever takes long
        worker.submit(partial(self._act, command, arguments if isinstance(arguments, dict) else {}))

    def _ask_fork(self, content: dict[str, Any], _: object) -> None:
        self._actor.submit(partial(self._open_fork, str(content.get("name", ""))))

    def _end(self) -> None:
        for child in self._children.values():
            child._line.end()

    # The workers' threads

    def _act(self, command: str, arguments: dict[str, Any]) -> None:
        self._note = self._refusal = ""
        try:
            checked = self._checked(command, arguments)
            self._posted = self._run.act(command, **checked)
        except Exception as error:  # shown in the widget
            state = self._run.state
            if state.over and command in COMMANDS:  # an order may meet the end on its way, which is nobody's fault
                self._note = f"it was {state.status} before {command.capitalize()} arrived"
            else:
                self._refusal = paragraph(error)
                self._refusals += 1
        self._line.tell("state")

    def _open_fork(self, name: str) -> None:
        fork = next((each for each in self._forks if each.state.name == name), None)
        if fork is None:
            return
        if name not in self._children:
            self._children[name] = RunPanel(fork)
        self._line.send(PanelFork(kind="fork", name=name, model=self._children[name].model_id))

    @property
    def _forks(self) -> Sequence[WatchedRun]:
        """The run's forks: those of this process, or those whose folders lie beside its own."""
        return getattr(self._run, "forks", ())

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
        offers = ", ".join(state.settings if command == "change" else state.offers) or "nothing"
        what = ", ".join(f"{name} {value}" for name, value in arguments.items()) or "nothing"
        raise ValueError(f"This run cannot {command} {what}; it offers {offers}.")

    # The pump's thread

    def _flush(self, due: frozenset[Part]) -> bool:
        if "hello" in due:
            self._feed.rewind()
            self._samples.rewind()
        self._revision = getattr(self._run, "revision", None)  # before the state, so that no newer one is missed
        try:
            state = self._run.state  # before the history, which is then whole when the state is over
            history = self._run.history
            self._hear_answer()
        except Exception as error:  # a folder may hold anything
            self._facts_before = None
            self._line.send(PanelUnreadable(kind="unreadable", error=paragraph(error)))
            FOLDER_ROUNDS.join(self._look)
            return False
        facts = self._facts(state, history)
        if due or facts != self._facts_before:
            self._facts_before = facts
            self.status = state.status
            self._line.send(facts)
        for message, buffers in self._feed.news(history, thresholds=state.thresholds):
            self._line.send(message, buffers)
        self._send_samples(history)
        if not state.over:
            self._still_status = ""
            self._line.renew_still(STILL_SECONDS)
        elif self._still_status != state.status:
            self._still_status = state.status
            self._line.renew_still()
        if state.over and self._folder:
            FOLDER_ROUNDS.join(self._look)
        return not state.over or any(not fork.state.over for fork in self._forks)

    def _look(self) -> bool:
        """Whether the folder is as it was when its run was over; where it is not, the panel goes on."""
        same = getattr(self._run, "revision", None) == self._revision
        if not (same or self._line.ended):
            self._line.ring()
        return same and not self._line.ended

    def _send_samples(self, history: History) -> None:
        """Those of this run, and of its forks from where they part."""
        histories, folders = dict[str, History](), dict[str, Path]()
        for run in (self._run, *self._forks):
            folder = getattr(run, "folder", None)
            if not isinstance(folder, Path):
                continue
            state = run.state
            name = "" if run is self._run else state.name
            recorded = history if run is self._run else run.history
            since = -1 if run is self._run or state.forked_at is None else state.forked_at
            histories[name] = replace(recorded, samples=tuple(each for each in recorded.samples if each.step >= since))
            folders[name] = folder
        for message, buffers in self._samples.news(histories, folders):
            self._line.send(message, buffers)

    def _hear_answer(self) -> None:
        """Takes in what another process said to the last order that went to it through its folder."""
        if self._posted is None or not isinstance(self._run, RecordedRun):
            return
        if answer := self._run.answers.get(self._posted):
            self._posted = None
            if answer.refusal:
                self._refusal, self._refusals = answer.refusal, self._refusals + 1

    def _facts(self, state: RunState, history: History) -> PanelState:
        last = history.records[-1] if history.records else None
        orderly = not self._folder or (not state.over and bool(state.settings or state.offers))
        return PanelState(
            kind="state",
            name=state.name,
            status=state.status,
            over=state.over,
            acts=orderly,
            folder=self._folder,
            progress=state.progress,
            step=last.step if last else None,
            steps=state.steps,
            pace=json_value(state.tokens_per_second),
            left=None if state.over or last is None else self._left(last.seconds, state.progress),
            error=state.error,
            refusal=self._refusal,
            refusals=self._refusals,
            note=self._note,
            behind=state.behind,
            settings=json_value(state.settings),
            offers=list(state.offers),
            parent=state.parent,
            forked_at=state.forked_at,
            difference=state.difference,
            forks=list(state.forks),
            panels=[fork.state.name for fork in self._forks],
        )

    def _left(self, seconds: float, progress: float) -> float | None:
        """Seconds of training left at the pace of late, None while it is not known."""
        pace = self._pace
        if pace and (progress < pace[-1][1] or seconds < pace[-1][0]):
            pace.clear()
        if pace and progress > pace[-1][1] and seconds == pace[-1][0]:
            pace.clear()  # a fork, or a run that goes on: what was spent before it began took no time here
        if not pace or progress > pace[-1][1]:
            pace.append((seconds, progress))
        while len(pace) > 2 and seconds - pace[1][0] > ETA_SECONDS:
            pace.popleft()
        (began, before), (now, here) = pace[0], pace[-1]
        return round((1 - here) * (now - began) / (here - before)) if here > before else None

    def _still(self) -> tuple[str, str]:
        state, history = self._run.state, self._run.history
        words = summary(state, history)
        if not history.records:
            return f"<p>{escape(words)}</p>", words
        from chameleon_widgets.figures import figure_uri

        try:
            uri = figure_uri(self.figure())  # without a ground, as pages have one of their own
        except Exception:  # whatever a run recorded, its panel goes on
            log.exception("the still of %s could not be drawn", state.name)
            return f"<p>{escape(words)}</p>", words
        return f'{image(uri, words, 720)}<p class="note">{escape(words)}</p>', words


def summary(state: RunState, history: History) -> str:
    """The run in one sentence or two."""
    last = history.records[-1].step if history.records else None
    words = f"{state.name}: {state.status}" + (" before its first step" if last is None else f" at step {last:,}")
    if "loss" in history.names:
        words += f", loss {history.last('loss'):.3f}"
    words += "."
    if alarm := worst_alarm(history.alarms):
        count = len(history.alarms)
        words += f" {count} alarm{'s' * (count != 1)}, the worst at step {alarm.step:,}: {alarm.message}."
    return words + (f" {state.error}" if state.error else "")
