"""A history on its way to the browser: what is new of it, as columns of binary numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from chameleon_lab.history import Alarm, History, Intervention, StepRecord
from chameleon_lab.measures import measure_of, measures_of
from chameleon_widgets.runs.comparison import mark_of, with_worst
from chameleon_widgets.runs.messages import (
    AlarmFacts,
    ChangeFacts,
    LayersColumn,
    MeasureFacts,
    MilestoneFacts,
    RecordColumns,
    RunNews,
)

RECORDS_A_MESSAGE = 4096  # records in one message
LAYER_ROWS = 512  # rows of a layers' measure in one message; what is new at 30 messages a second are a few
CELLS = 256  # values in such a row up to which every head is sent, and not only the worst of each layer


class RunFeed:
    """What of a growing history has been sent, as a count of records and of events.

    Each message says from which record on it goes (`start`), so that a view drops what it has, and asks again where
    something is missing. `epoch` grows when views have to begin anew: the history was written anew, as by a run that
    went back to a checkpoint, or measures are wanted that were not sent before.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._measures: frozenset[str] | None = None
        self.rewind()

    def rewind(self) -> None:
        """Everything is to be sent again."""
        self._records = self._alarms = self._changes = self._milestones = 0
        self._described = set[str]()
        self._last: tuple[int, float] | None = None

    def news(
        self,
        history: History,
        measures: Iterable[str] | None = None,
        run: int = 0,
        thresholds: Mapping[str, Mapping[str, float]] | None = None,
    ) -> Iterator[tuple[RunNews, list[bytes]]]:
        """Messages with what is new, up to `RECORDS_A_MESSAGE` records each, and their buffers; none when all was sent.

        `measures`: only these are sent, those of layers as the worst of them; left out, all, and layers as they are.
        `thresholds`: of the run's rules, by measure and level; left out, those of the default rules.
        """
        chosen = None if measures is None else frozenset(measures)
        more = chosen is not None and self._measures is not None and not chosen <= self._measures
        if more or self._rewritten(history):
            self.epoch += 1
            self.rewind()
        self._measures = chosen
        while True:
            records = history.records[self._records : self._records + RECORDS_A_MESSAGE]
            alarms, changes = history.alarms[self._alarms :], history.interventions[self._changes :]
            milestones = history.milestones[self._milestones :]
            if not (records or alarms or changes or milestones):
                return
            columns, buffers = record_columns(records, chosen)
            names = [column["name"] for column in (*columns["measures"], *columns["layers"])]
            facts = measure_facts(names, thresholds)
            message = RunNews(
                kind="records",
                run=run,
                epoch=self.epoch,
                start=self._records,
                about=[each for each in facts if each["name"] not in self._described],
                records=columns,
                alarms={"start": self._alarms, "list": [alarm_facts(each) for each in alarms]},
                changes={"start": self._changes, "list": [change_facts(each) for each in changes]},
                milestones={
                    "start": self._milestones,
                    "list": [MilestoneFacts(step=each.step, message=each.message) for each in milestones],
                },
            )
            self._described |= set(names)
            self._records += len(records)
            self._alarms, self._changes = len(history.alarms), len(history.interventions)
            self._milestones = len(history.milestones)
            if records:
                self._last = mark_of(records[-1])
            yield message, buffers

    def _rewritten(self, history: History) -> bool:
        records = history.records
        fewer = len(records) < self._records or len(history.alarms) < self._alarms
        if fewer or len(history.interventions) < self._changes or len(history.milestones) < self._milestones:
            return True
        return self._last is not None and mark_of(records[self._records - 1]) != self._last


def record_columns(
    records: Sequence[StepRecord], measures: frozenset[str] | None = None
) -> tuple[RecordColumns, list[bytes]]:
    """Records as columns: a header, and buffers of steps (float64), places (uint32) and values (float32).

    The header lists each measure with how many records have it and, for those of layers, the shape of one row; places
    say which records, where not all have it. Places and values stand in the order of the header, layers last.
    `measures`: only these, those of layers as the worst of them.
    """
    places, values = list[np.ndarray](), list[np.ndarray]()
    columns: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    layered: dict[str, list[tuple[int, Any]]] = defaultdict(list)
    for at, record in enumerate(records):
        for name, value in (record.values if measures is None else with_worst(record)).items():
            if measures is None or name in measures:
                where, what = columns[name]
                where.append(at)
                what.append(value)
        for name, row in record.layers.items() if measures is None else ():
            layered[name].append((at, row))
    header = RecordColumns(count=len(records), measures=[], layers=[])
    for name, (where, what) in sorted(columns.items()):
        whole = len(where) == len(records)
        header["measures"].append({"name": name, "count": len(where), "whole": whole})
        if not whole:
            places.append(np.array(where, "<u4"))
        values.append(_single(what))
    for name, rows in sorted(layered.items()):
        where, what, newest = _layer_rows(name, rows)
        if not len(where):
            continue
        column = LayersColumn(name=name, count=len(where), shape=list(what.shape[1:]))
        header["layers"].append(column)
        places.append(where.astype("<u4"))
        values.append(what.ravel())
        if newest is not None:
            column["heads"] = list(newest.shape)
            values.append(newest.ravel())
    steps = np.array([record.step for record in records], "<f8")
    return header, [
        steps.tobytes(),
        b"".join(map(np.ndarray.tobytes, places)),
        b"".join(map(np.ndarray.tobytes, values)),
    ]


def _layer_rows(name: str, rows: list[tuple[int, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(places, rows, the newest row by head where heads were folded): thinned so that the worst of them stays."""
    matrices = [(at, matrix) for at, row in rows if (matrix := _matrix(row)) is not None]
    matrices = [(at, matrix) for at, matrix in matrices if matrix.shape == matrices[-1][1].shape]
    if not matrices:
        return np.zeros(0), np.zeros(0, "<f4"), None
    where, stacked = np.array([at for at, _ in matrices]), np.stack([matrix for _, matrix in matrices])
    measure, newest = measure_of(name), None
    if stacked[0].ndim == 2 and stacked[0].size > CELLS:
        newest, stacked = stacked[-1], measure.worst(stacked, axis=2)
    if (every := math.ceil(len(where) / LAYER_ROWS)) > 1:
        starts = np.arange(0, len(where), every)
        where = where[starts]
        stacked = np.stack([measure.worst(stacked[start : start + every], axis=0) for start in starts])
    return where, stacked, newest


def _matrix(row: Any) -> np.ndarray | None:
    """One value a layer, or layers x heads; None for what is neither."""
    try:
        matrix = _single(row)
    except (ValueError, TypeError):
        return None
    return matrix if matrix.ndim in (1, 2) and matrix.size else None


def _single(values: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float32 is infinite on the screen
        return np.asarray(values, np.float64).astype("<f4")


def measure_facts(
    names: Iterable[str], thresholds: Mapping[str, Mapping[str, float]] | None = None
) -> list[MeasureFacts]:
    """The facts about a run's measures, with the thresholds of its own rules, or of the default ones."""
    own = dict[str, Any]() if thresholds is None else {name: thresholds.get(name, {}) for name in names}
    return [MeasureFacts(**each.to_plain(own.get(name))) for name, each in measures_of(names).items()]


def alarm_facts(alarm: Alarm) -> AlarmFacts:
    return AlarmFacts(step=alarm.step, level=alarm.level, rule=alarm.rule, message=alarm.message)


def change_facts(change: Intervention) -> ChangeFacts:
    """An intervention in words."""
    return ChangeFacts(
        step=change.step,
        name=change.name.replace("_", " "),
        before=setting_words(change.before),
        after=setting_words(change.after),
        reason=change.reason,
    )


def setting_words(value: Any) -> str:
    """A setting's value as it reads on a screen."""
    match value:
        case None:
            return "none"
        case bool():
            return "on" if value else "off"
        case float():
            return f"{value:g}"
        case Mapping():
            return ", ".join(f"{key} {setting_words(part)}" for key, part in value.items())
    return str(value)


def json_value(value: Any) -> Any:
    """A value as JSON can hold it: numbers, words, yes or no, and mappings of them; others as text, nan too."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {str(key): json_value(part) for key, part in value.items()}
    return str(value)


def worst_alarm(alarms: Sequence[Alarm]) -> Alarm | None:
    """The newest of the worst."""
    order = {"WARN": 0, "ALARM": 1, "CRITICAL": 2}
    return max(alarms, key=lambda alarm: (order.get(alarm.level, 0), alarm.step), default=None)
