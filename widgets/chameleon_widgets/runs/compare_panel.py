"""Runs and forks beside each other: curves aligned by step, what differs in their configs, what each came to."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anywidget
import traitlets

from chameleon_lab.history import lr_sensitivity
from chameleon_widgets import stills
from chameleon_widgets.runs.compared_runs import ComparedRuns, outcome_words
from chameleon_widgets.runs.comparison import CURVE_COLOURS, Columns, RunLike, first_measures
from chameleon_widgets.runs.messages import ComparisonFigure, ComparisonState, ComparisonTrouble
from chameleon_widgets.line import STILL_SECONDS, Line, Part, assets, paragraph
from chameleon_widgets.threads import FOLDER_ROUNDS, Worker

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_FORMATS = ("png", "svg")
VIEWS = ("curves", "rates")

Runs = Mapping[str, RunLike | Path | str] | Sequence[RunLike | Path | str]


class ComparePanel(anywidget.AnyWidget):
    """Any set of runs by step: measures in charts side by side, outcomes in a table, configs where they differ.

    `runs`: runs, or folders of such, by name or in a row (then they are called what their state says). Those that go on
    are followed; folders whose runs are over are looked at now and then, since others may take them up again. Those that differ by seed alone are one line, their mean, in a
    band from lowest to highest, until their row is opened. `measures`: what is charted, four worth a look first where
    left out. Where runs differ in `recipe.rate` there is a second view, of the held-out loss against it. Raises
    FileNotFoundError for a folder without a run and TypeError for what is none.
    """

    _esm, _css = assets("compare_panel")

    measures: Any = traitlets.List(traitlets.Unicode(), help="What is charted, in order.").tag(sync=True)
    smoothing: Any = traitlets.Float(0.0, min=0.0, max=0.99, help="Weight of the exponential mean.").tag(sync=True)
    hidden: Any = traitlets.List(traitlets.Unicode(), help="Names of runs that are not shown.").tag(sync=True)
    opened: Any = traitlets.List(traitlets.Unicode(), help="Groups of seeds whose runs are shown apart.").tag(sync=True)
    view: Any = traitlets.Enum(VIEWS, "curves", help="Curves, or the loss against learning rates.").tag(sync=True)

    def __init__(self, runs: Runs = (), *, measures: Sequence[str] | None = None, smoothing: float = 0.0) -> None:
        self._runs = ComparedRuns()
        for name, run in runs.items() if isinstance(runs, Mapping) else (("", each) for each in runs):
            self._runs.add(run, name)
        self._runs.look()
        chosen = first_measures(self._runs.measures) if measures is None else list(measures)
        self._undecided = measures is None and not chosen
        self._state: ComparisonState | None = None
        self._pictured: object = None  # what the still was made of
        self._worker = Worker("compare panel worker")
        super().__init__(measures=chosen, smoothing=smoothing)
        handlers = {"export": self._ask_figure}
        self._line = Line(self, "compare panel", flush=self._flush, still=self._still, handlers=handlers, rate=5.0)
        self.observe(lambda _: self._line.ring(), ["measures", "smoothing", "hidden", "opened", "view"])
        self._line.ring()

    def add(self, run: RunLike | Path | str, name: str = "") -> None:
        """Takes one more run, fork or folder into the comparison."""
        self._runs.add(run, name)
        self._line.ring()

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
        colours = {name: CURVE_COLOURS[at % len(CURVE_COLOURS)] for at, name in enumerate(histories)}
        visible = {name: history for name, history in histories.items() if name not in self.hidden}
        note = self._runs.note(self.hidden) if visible or not histories else "All runs are hidden."
        recorded = {name for history in visible.values() for name in Columns(history).names}
        charted = [name for name in self.measures if name in recorded]
        closed = {name: of for name, of in self._runs.groups.items() if name not in self.opened}
        return compare_figure(visible, charted, smoothing=self.smoothing, colours=colours, note=note, seeds=closed)

    # What the browser asks

    def _ask_figure(self, content: dict[str, Any], _: object) -> None:
        if content.get("format") in FIGURE_FORMATS:
            self._worker.submit(partial(self._export, content["format"]))

    # The worker's thread

    def _export(self, kind: Literal["png", "svg"]) -> None:
        out = io.BytesIO()
        try:
            self.figure().savefig(out, format=kind, dpi=200)
            self._line.send(ComparisonFigure(kind="figure", format=kind, view=self.view), [out.getvalue()])
        except Exception as error:  # shown in the panel
            words = f"The figure could not be drawn: {paragraph(error)}"
            self._line.send(ComparisonTrouble(kind="trouble", error=words))

    # The pump's thread

    def _flush(self, due: frozenset[Part]) -> bool:
        self._runs.look()
        if self._undecided and (names := self._runs.measures):
            self._undecided, self.measures = False, self.measures or first_measures(names)
        state = self._runs.facts(self.hidden)
        if state != self._state or "hello" in due:
            self._state = state
            self._line.send(state)
        for message, buffers in self._runs.news(self.measures, "hello" in due):
            self._line.send(message, buffers)
        pictured = (state, list(self.measures), self.smoothing, list(self.hidden), list(self.opened), self.view)
        if pictured != self._pictured and self._line.renew_still(0 if self._runs.over else STILL_SECONDS):
            self._pictured = pictured
        if self._runs.over:
            FOLDER_ROUNDS.join(self._look)
        return not self._runs.over

    def _look(self) -> bool:
        """Whether all is as it was when the last run was over; where it is not, the panel goes on."""
        changed = self._runs.changed
        if changed and not self._line.ended:
            self._line.ring()
        return not (changed or self._line.ended)

    def _still(self) -> tuple[str, str]:
        rows = self.table
        if not rows:
            empty = "A comparison without runs."
            return f"<p>{empty}</p>", empty
        from chameleon_widgets.figures import figure_uri

        figure = stills.image(figure_uri(self.figure()), "The runs by step", 720)
        lines = [outcome_words(row) for row in rows]
        notes = "".join(f'<p class="note">{stills.escape(line)}</p>' for line in lines)
        return figure + notes, "Comparison. " + "; ".join(lines)
