"""The runs that a comparison follows: how they stand, as plain values, and what of them is new for the screen."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chameleon_lab.history import History, RecordedRun, RunState, lr_sensitivity
from chameleon_lab.measures import measure_of
from chameleon_widgets.runs.comparison import (
    Columns,
    RunLike,
    differences,
    outcome_row,
    outcomes_by_rate,
    seed_groups,
    worded,
)
from chameleon_widgets.line import paragraph
from chameleon_widgets.runs.messages import ComparedFacts, ComparisonState, OutcomeColumn, RateGroup, RunNews
from chameleon_widgets.runs.run_feed import RunFeed, json_value, measure_facts

SHOWN_DIFFERENCES = 4  # in a caption


@dataclass
class ComparedRun:
    """One of the runs as it was when it was looked at last."""

    run: RunLike
    state: RunState
    config: Mapping[str, Any] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)
    feed: RunFeed = field(default_factory=RunFeed)
    trouble: str = ""
    revision: object = None

    def look(self) -> None:
        """Reads how the run stands. What went wrong with that is kept for its row."""
        self.revision = getattr(self.run, "revision", None)  # before the state, so that no newer one is missed
        try:
            self.state = self.run.state
            self.columns.take(self.run.history)
            self.config = self.config or getattr(self.run, "config", {})
            self.trouble = ""
        except Exception as error:  # a folder that is damaged must not blind the panel to the other runs
            self.trouble = f"This run cannot be read: {paragraph(error)}"

    @property
    def forked(self) -> str:
        """What sets a fork apart, in words; empty where it is none."""
        if not self.state.parent:
            return ""
        at = "" if self.state.forked_at is None else f" at step {self.state.forked_at:,}"
        return f"forked from {self.state.parent}{at}" + (f": {self.state.difference}" if self.state.difference else "")


class ComparedRuns:
    """Runs by name, safe to ask from any thread. Everything asked is as of the last `look`."""

    def __init__(self) -> None:
        self._runs: dict[str, ComparedRun] = {}
        self._lock = threading.RLock()

    def add(self, run: RunLike | Path | str, name: str = "") -> None:
        """One more, or the folder of one; called `name`, else what its state says, with a number where that is taken.

        Raises FileNotFoundError for a folder without a run and TypeError for what is none.
        """
        run = RecordedRun(run) if isinstance(run, str | Path) else run
        state = getattr(run, "state", None)
        if not isinstance(state, RunState) or not isinstance(getattr(run, "history", None), History):
            raise TypeError(
                f"A panel compares runs, which have a state and a history, and folders of such; not a "
                f"{type(run).__name__}."
            )
        name = name or state.name or "run"
        with self._lock:
            names = itertools.chain([name], (f"{name} {number}" for number in itertools.count(2)))
            self._runs[next(each for each in names if each not in self._runs)] = ComparedRun(run, state)

    def look(self) -> None:
        with self._lock:
            for each in self._runs.values():
                each.look()

    @property
    def over(self) -> bool:
        return all(each.state.over for each in self._runs.values())

    @property
    def changed(self) -> bool:
        """Whether a folder was written anew since it was looked at, as by a process that takes its run up."""
        return any(getattr(each.run, "revision", None) != each.revision for each in [*self._runs.values()])

    @property
    def measures(self) -> list[str]:
        """What any of them recorded."""
        with self._lock:
            return sorted({name for each in self._runs.values() for name in each.columns.names})

    @property
    def histories(self) -> dict[str, History]:
        with self._lock:
            return {name: each.columns.history for name, each in self._runs.items()}

    @property
    def table(self) -> list[dict[str, Any]]:
        """What each came to, a row each; None for what it did not record."""
        with self._lock:
            return [self._row(name, each) for name, each in self._runs.items()]

    @property
    def differences(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            return differences({name: each.config for name, each in self._runs.items()})

    @property
    def groups(self) -> dict[str, list[str]]:
        """`comparison.seed_groups` of all but forks, which share a past with another run."""
        with self._lock:
            return seed_groups({name: each.config for name, each in self._runs.items() if not each.state.parent})

    def by_rate(self, hidden: Sequence[str] = ()) -> tuple[dict[str, dict[float, list[float]]], float]:
        """`comparison.outcomes_by_rate` of all that are not hidden."""
        with self._lock:
            visible = {name: each for name, each in self._runs.items() if name not in hidden}
            configs = {name: each.config for name, each in visible.items()}
            return outcomes_by_rate(configs, {name: each.columns for name, each in visible.items()})

    def note(self, hidden: Sequence[str] = ()) -> str:
        """What a caption says of forks and of configs: the first few of the settings that differ."""
        with self._lock:
            visible = {name: each for name, each in self._runs.items() if name not in hidden}
            apart = differences({name: each.config for name, each in visible.items()})
            forks = [f"{name} {each.forked}." for name, each in visible.items() if each.forked]
        parts = [
            f"{key} " + ", ".join(f"{worded(value)} ({name})" for name, value in of.items())
            for key, of in itertools.islice(apart.items(), SHOWN_DIFFERENCES)
        ]
        more = len(apart) - len(parts)
        settings = f"They differ in {'; '.join(parts)}{f'; and {more} more settings' if more else ''}." if parts else ""
        return " ".join([*forks, settings])

    # What goes to the screen

    def facts(self, hidden: Sequence[str] = ()) -> ComparisonState:
        """All but the curves, as JSON can hold it."""
        held_out = measure_of("held_out_loss")
        with self._lock:
            outcomes, start = self.by_rate(hidden)
            groups = [
                RateGroup(
                    name=name,
                    number=json_value(lr_sensitivity(losses, start)),
                    losses=[(rate, [json_value(loss) for loss in of]) for rate, of in losses.items()],
                )
                for name, losses in outcomes.items()
            ]
            return ComparisonState(
                kind="state",
                columns=outcome_columns(),
                runs=[self._facts(name, each) for name, each in self._runs.items()],
                measures=measure_facts(self.measures),
                groups=[
                    {"name": name, "runs": [[*self._runs].index(each) for each in members]}
                    for name, members in self.groups.items()
                ],
                differences=[
                    {"key": key, "values": [worded(of[name]) if name in of else None for name in self._runs]}
                    for key, of in self.differences.items()
                ],
                rates={"words": held_out.words, "unit": held_out.unit, "start": json_value(start), "groups": groups},
            )

    def news(self, measures: Sequence[str], anew: bool = False) -> Iterator[tuple[RunNews, list[bytes]]]:
        """Messages with what is new of these measures, run by run; with all of it when `anew`."""
        with self._lock:
            for at, each in enumerate(self._runs.values()):
                if anew:
                    each.feed.rewind()
                yield from each.feed.news(each.columns.history, measures, at)

    def _row(self, name: str, each: ComparedRun) -> dict[str, Any]:
        state = each.state
        row = {"run": name, **outcome_row(state, each.columns), "error": each.trouble or state.error}
        forked = {"parent": state.parent, "forked_at": state.forked_at, "difference": state.difference}
        return row | (forked if state.parent else {})

    def _facts(self, name: str, each: ComparedRun) -> ComparedFacts:
        return ComparedFacts(
            row={key: json_value(value) for key, value in self._row(name, each).items()},
            progress=each.state.progress,
            over=each.state.over,
            configured=bool(each.config),
            forked=each.forked,
        )


def outcome_columns() -> list[OutcomeColumn]:
    """The columns of the table on the screen."""
    loss, held_out, logit = (measure_of(name) for name in ("loss", "held_out_loss", "max_attention_logit"))
    columns = (
        ("steps", "steps", "Optimizer steps so far"),
        ("held_out_loss", held_out.words, f"On held-out documents, {held_out.unit}, as measured last"),
        ("loss", f"last {loss.words}", f"Training {loss.words} at the last step, {loss.unit}"),
        ("lowest_loss", f"lowest {loss.words}", f"Lowest training {loss.words} of any step, {loss.unit}"),
        ("max_attention_logit", logit.words, "The largest over all steps"),
        ("alarms", "alarms", "How often an alarm sounded"),
        ("tokens_per_second", "tokens/s", "Of the last steps"),
    )
    return [OutcomeColumn(key=key, heading=words[0].upper() + words[1:], hint=hint) for key, words, hint in columns]


def outcome_words(row: Mapping[str, Any]) -> str:
    """A row of the table in a line of words."""
    parts = [f"{row['run']}: {row['status']}, {row['steps']:,} steps"]
    for key in ("held_out_loss", "max_attention_logit"):
        if row[key] is not None:
            parts.append(f"{measure_of(key).words} {row[key]:.4g}")
    if row["alarms"]:
        parts.append(f"{row['alarms']} alarm{'s' if row['alarms'] > 1 else ''}")
    return ", ".join(parts) + (f". {row['error']}" if row["error"] else "")
