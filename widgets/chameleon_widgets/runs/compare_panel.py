"""Runs and forks beside each other: curves aligned by step, what differs in their configs, what each came to."""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from chameleon_lab.history import lr_sensitivity
from chameleon_widgets import stills
from chameleon_widgets.runs.compared_runs import ComparedRuns, summary
from chameleon_widgets.runs.comparison import COLOURS, RunLike, first_measures
from chameleon_widgets.chat.conversation import paragraph
from chameleon_widgets.stills import WIDGET_VIEW, Still
from chameleon_widgets.threads import Pump, Worker, claim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATIC = Path(__file__).parents[1] / "static"
RATE = 5.0  # updates a second while a run goes on
STILL_SECONDS = 60.0  # between two stills while a run goes on
FORMATS = ("png", "svg")
VIEWS = ("curves", "rates")

Runs = Mapping[str, RunLike | Path | str] | Sequence[RunLike | Path | str]


class ComparePanel(anywidget.AnyWidget):
    """Any set of runs by step: measures in charts side by side, outcomes in a table, configs where they differ.

    `runs`: runs, or folders of such, by name or in a row (then they are called what their state says). Those that go on
    are followed; where all are over they are read once. `measures`: what is charted, four worth a look first where left
    out. Where runs differ in `recipe.rate` there is a second view, of the held-out loss against it. Raises
    FileNotFoundError for a folder without a run and TypeError for what is none.
    """

    _esm = STATIC / "compare_panel.js"
    _css = STATIC / "compare_panel.css"

    measures: Any = traitlets.List(traitlets.Unicode(), help="What is charted, in order.").tag(sync=True)
    smoothing: Any = traitlets.Float(0.0, min=0.0, max=0.99, help="Weight of the exponential mean.").tag(sync=True)
    hidden: Any = traitlets.List(traitlets.Unicode(), help="Names of runs that are not shown.").tag(sync=True)
    view: Any = traitlets.Enum(VIEWS, "curves", help="Curves, or the loss against learning rates.").tag(sync=True)
    still_name = traitlets.Unicode(help="Class of the still that the view hides while it is alive.").tag(sync=True)

    def __init__(self, runs: Runs = (), *, measures: Sequence[str] | None = None, smoothing: float = 0.0) -> None:
        self._runs = ComparedRuns()
        for name, run in runs.items() if isinstance(runs, Mapping) else (("", each) for each in runs):
            self._runs.add(run, name)
        self._runs.look()
        chosen = first_measures(self._runs.measures) if measures is None else list(measures)
        self._undecided = measures is None and not chosen
        self._heard, self._ended = "", False
        self._due: set[str] = set()
        self._state: dict[str, Any] = {}
        self._pictured: object = None  # what the still was made of, and when
        self._pictured_at = time.monotonic()
        self._still = Still(uuid.uuid4().hex, self._still_body)
        self._worker = Worker("compare panel worker")
        self._pump = Pump(self._flush, "compare panel pump", rate=RATE, linger=0.5)
        super().__init__(still_name=self._still.name, measures=chosen, smoothing=smoothing)
        self.observe(self._changed, ["measures", "smoothing", "hidden", "view"])
        self.on_msg(self._handle)
        claim(self._end)
        self._pump.ring()

    def add(self, run: RunLike | Path | str, name: str = "") -> None:
        """Takes one more run, fork or folder into the comparison."""
        self._runs.add(run, name)
        self._pump.ring()

    @property
    def table(self) -> list[dict[str, Any]]:
        """What each run came to so far, a row each; None for what it did not record."""
        self._runs.look()
        return self._runs.table

    @property
    def differences(self) -> dict[str, dict[str, Any]]:
        """The settings in which the runs' configs differ, by dotted name, each with its value by run."""
        self._runs.look()
        return self._runs.differences

    @property
    def sensitivity(self) -> dict[str, float]:
        """LR sensitivity by configuration (`history.lr_sensitivity`); empty where all rates are equal."""
        self._runs.look()
        outcomes, start = self._runs.by_rate(self.hidden)
        return {name: lr_sensitivity(losses, start) for name, losses in outcomes.items()}

    def figure(self, view: str | None = None) -> Figure:
        """What the panel shows ("curves" or "rates"; as it stands where left out) by matplotlib, with a caption."""
        from chameleon_widgets.figures import compare_figure, sensitivity_figure  # slow to import, and seldom needed

        self._runs.look()
        outcomes, start = self._runs.by_rate(self.hidden)
        if (view or self.view) == "rates" and (outcomes or view):
            return sensitivity_figure(outcomes, start=start)
        histories = self._runs.histories
        colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(histories)}
        shown = {name: history for name, history in histories.items() if name not in self.hidden}
        note = self._runs.note(self.hidden)
        return compare_figure(shown, self._charted, smoothing=self.smoothing, colours=colours, note=note)

    def close(self) -> None:
        self._end()
        super().close()

    @property
    def _charted(self) -> list[str]:
        known = self._runs.measures
        return [name for name in self.measures if name in known]

    def _end(self) -> None:
        """Follows the runs no longer."""
        self._ended = True

    def _ipython_display_(self) -> None:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        self._still.show(view, "ComparePanel")

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {WIDGET_VIEW: view, **self._still.bundle()}

    def _changed(self, _: object) -> None:
        self._pump.ring()

    # Messages of the browser: flags and hand-overs only

    def _handle(self, _: object, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        self._heard = str(content.get("mark", ""))
        match content.get("kind"):
            case "hello":
                self._due.add("all")
            case "still":
                self._due.add("still")
            case "export" if content.get("format") in FORMATS:
                self._worker.submit(partial(self._export, content["format"]))
        self._pump.ring()

    # The worker's thread

    def _export(self, kind: str) -> None:
        out = io.BytesIO()
        try:
            self.figure().savefig(out, format=kind, dpi=200)
            self.send({"kind": "figure", "format": kind, "view": self.view}, [out.getvalue()])
        except Exception as error:  # told in the panel
            self.send({"kind": "trouble", "told": f"The figure could not be drawn: {paragraph(error)}"})

    def _picture(self, seen: object) -> None:
        if seen is self._pictured:  # else a newer one stands behind this
            self._still.refresh()
            self.send({"kind": "still", "revision": self._still.revision})

    def _send_still(self) -> None:
        self.send({"kind": "still", "revision": self._still.revision, "bundle": self._still.bundle()})

    # The pump's thread

    def _flush(self) -> None:
        due = {self._due.pop() for _ in range(len(self._due))}  # what is added meanwhile waits for the next flush
        self._runs.look()
        if self._undecided and (known := self._runs.measures):
            self._undecided, self.measures = False, self.measures or first_measures(known)
        told = self._runs.told(self.hidden)
        state = {"kind": "state", "heard": self._heard, **told}
        if state != self._state or "all" in due:
            self._state = state
            self.send(state)
        parts, buffers = self._runs.news(self.measures, "all" in due)
        if parts:
            self.send({"kind": "values", "parts": parts}, buffers)
        seen = (told, list(self.measures), self.smoothing, list(self.hidden), self.view)
        rested = time.monotonic() - self._pictured_at > STILL_SECONDS
        if seen != self._pictured and (self._runs.over or rested):
            self._pictured, self._pictured_at = seen, time.monotonic()
            self._worker.submit(partial(self._picture, seen))
        if "still" in due:
            self._worker.submit(self._send_still)
        if not self._runs.over and not self._ended:
            self._pump.ring()

    def _still_body(self) -> tuple[str, str]:
        rows = self.table
        if not rows:
            empty = "A comparison without runs."
            return f"<p>{empty}</p>", empty
        from chameleon_widgets.figures import data_uri

        shown = stills.image(data_uri(self.figure()), "The runs by step", 720)
        lines = [summary(row) for row in rows]
        notes = "".join(f'<p class="note">{stills.escape(line)}</p>' for line in lines)
        return shown + notes, "Comparison. " + "; ".join(lines)
