"""A history on its way to the browser: what is new of it, as columns of binary numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from chameleon_lab.history import Alarm, History, Intervention, StepRecord

CHUNK = 4096  # records in one message
ROWS = 512  # rows of a layers' measure in one message; what is new at 30 messages a second are a few
CELLS = 256  # values in such a row up to which every head is sent, and not only the worst of each layer

Message = tuple[dict[str, Any], list[bytes]]


class RunFeed:
    """What of a growing history was sent, as a count of records and of events.

    Each message says from which record on it tells (`from`), so that a view drops what it has and asks again where
    something is missing. `epoch` grows when the history was written anew, as by a run rewound: views begin afresh.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.rewind()

    def rewind(self) -> None:
        """Everything is to be sent again."""
        self._records = self._alarms = self._changes = 0
        self._last: tuple[int, float] | None = None

    def next(self, history: History) -> Message | None:
        """The next message, None when all was sent. A long history takes several."""
        records = history.records
        if self._rewritten(history):
            self.epoch += 1
            self.rewind()
        new = records[self._records : self._records + CHUNK]
        alarms, changes = history.alarms[self._alarms :], history.interventions[self._changes :]
        if not new and not alarms and not changes:
            return None
        columns, buffers = packed(new)
        message: dict[str, Any] = {"epoch": self.epoch, "from": self._records, "records": columns}
        message["more"] = self._records + len(new) < len(records)
        message["alarms"] = {"from": self._alarms, "list": [asdict(each) for each in alarms]}
        message["changes"] = {"from": self._changes, "list": [told_change(each) for each in changes]}
        self._records += len(new)
        self._alarms, self._changes = len(history.alarms), len(history.interventions)
        if new:
            self._last = _mark(new[-1])
        return message, buffers

    def _rewritten(self, history: History) -> bool:
        records = history.records
        fewer = len(records) < self._records or len(history.alarms) < self._alarms
        if fewer or len(history.interventions) < self._changes:
            return True
        return self._last is not None and _mark(records[self._records - 1]) != self._last


def _mark(record: StepRecord) -> tuple[int, float]:
    return record.step, record.seconds


def packed(records: Sequence[StepRecord]) -> Message:
    """Records as columns: a header, and buffers of steps (float64), places (uint32) and values (float32).

    The header lists each measure with how many records have it and, for those of layers, the shape of one row; places
    say which records, where not all have it. Places and values stand in the order of the header, layers last.
    """
    places, values = list[np.ndarray](), list[np.ndarray]()
    measures = []
    columns: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    layered: dict[str, list[tuple[int, Any]]] = defaultdict(list)
    for at, record in enumerate(records):
        for name, value in record.values.items():
            where, what = columns[name]
            where.append(at)
            what.append(value)
        for name, row in record.layers.items():
            layered[name].append((at, row))
    for name, (where, what) in sorted(columns.items()):
        whole = len(where) == len(records)
        measures.append({"name": name, "count": len(where), "whole": whole})
        if not whole:
            places.append(np.array(where, "<u4"))
        values.append(_single(what))
    layers = []
    for name, rows in sorted(layered.items()):
        where, what, newest = _rows(name, rows)
        if not len(where):
            continue
        layers.append({"name": name, "count": len(where), "shape": list(what.shape[1:])})
        places.append(where.astype("<u4"))
        values.append(what.ravel())
        if newest is not None:
            layers[-1]["heads"] = list(newest.shape)
            values.append(newest.ravel())
    steps = np.array([record.step for record in records], "<f8")
    header = {"count": len(records), "measures": measures, "layers": layers}
    return header, [
        steps.tobytes(),
        b"".join(map(np.ndarray.tobytes, places)),
        b"".join(map(np.ndarray.tobytes, values)),
    ]


def _rows(name: str, rows: list[tuple[int, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(places, rows, the newest row by head where heads were folded): thinned so that the worst of them stays."""
    found = [(at, matrix) for at, row in rows if (matrix := _matrix(row)) is not None]
    found = [(at, matrix) for at, matrix in found if matrix.shape == found[-1][1].shape]
    if not found:
        return np.zeros(0), np.zeros(0, "<f4"), None
    where, stacked = np.array([at for at, _ in found]), np.stack([matrix for _, matrix in found])
    worst = np.minimum if "entropy" in name else np.maximum  # both keep what is not a number
    newest = None
    if stacked[0].ndim == 2 and stacked[0].size > CELLS:
        newest, stacked = stacked[-1], worst.reduce(stacked, axis=2)
    if (every := math.ceil(len(where) / ROWS)) > 1:
        starts = np.arange(0, len(where), every)
        where, stacked = where[starts], worst.reduceat(stacked, starts, axis=0)
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


def told_change(change: Intervention) -> dict[str, Any]:
    """An intervention in words."""
    return {
        "step": change.step,
        "name": change.name.replace("_", " "),
        "before": told(change.before),
        "after": told(change.after),
        "reason": change.reason,
    }


def told(value: Any) -> str:
    """A setting's value as it reads on a screen."""
    match value:
        case None:
            return "none"
        case bool():
            return "on" if value else "off"
        case float():
            return f"{value:g}"
        case Mapping():
            return ", ".join(f"{key} {told(part)}" for key, part in value.items())
    return str(value)


def plain(value: Any) -> Any:
    """A setting for the browser's form: numbers, words, yes or no, and mappings of them; others as text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {str(key): plain(part) for key, part in value.items()}
    return str(value)


def worst_alarm(alarms: Sequence[Alarm]) -> Alarm | None:
    """The newest of the worst."""
    order = {"WARN": 0, "ALARM": 1, "CRITICAL": 2}
    return max(alarms, key=lambda alarm: (order.get(alarm.level, 0), alarm.step), default=None)
