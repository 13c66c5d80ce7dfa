"""Runs beside each other, as plain values: where configs differ, what each came to, and how much the rate matters.

A measure is read from a run's values; one that it only has by layer or head is read as the worst of them.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from chameleon_lab.history import History, RunState, StepRecord
from chameleon_lab.measures import measure_of

CURVE_COLOURS = ("#3b82d6", "#d9731a", "#2a9d6f", "#b05bc4", "#b08a00", "#1498a6", "#d6558a", "#8a7a6a")
"""Of runs in order: what `--curve-1` to `--curve-8` are on screen."""

FIRST = ("loss", "max_attention_logit", "residual_norm", "image_log_partition", "gradient_norm", "held_out_loss")
"""Measures that are looked at first, where a run has them."""

RATE_KEY = "recipe.rate"

Config = Mapping[str, Any]


class RunLike(Protocol):
    """What is asked of a run: how it stands, and what it recorded. Where it has a `config`, that is compared too."""

    @property
    def state(self) -> RunState: ...

    @property
    def history(self) -> History: ...


class Columns:
    """A history by measure. `take` reads on where the last call ended, so that a run can be followed as it grows.

    A history that was written anew, as by a run that went back to a checkpoint, is read anew.
    """

    def __init__(self, history: History = History()) -> None:  # noqa: B008 (frozen)
        self.history = history
        self._columns: dict[str, tuple[array[float], array[float]]] = {}
        self._read, self._last = 0, StepRecord(-1, 0.0)
        self.take(history)

    def take(self, history: History) -> None:
        records = history.records
        if self._read and (len(records) < self._read or mark_of(records[self._read - 1]) != mark_of(self._last)):
            self._columns, self._read = {}, 0
        for record in records[self._read :]:
            for name, value in with_worst(record).items():
                steps, values = self._columns.setdefault(name, (array("d"), array("d")))
                steps.append(record.step)
                values.append(value)
        self.history, self._read = history, len(records)
        self._last = records[-1] if records else self._last

    @property
    def names(self) -> list[str]:
        return sorted(self._columns)

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of a measure, float64: of one recorded by layer or head the worst. Empty where it was not
        recorded; what is no number stays so."""
        steps, values = self._columns.get(name, (array("d"), array("d")))
        return np.array(steps, np.float64), np.array(values, np.float64)


def mark_of(record: StepRecord) -> tuple[int, float]:
    """What tells a record from one that was written anew in its place."""
    return record.step, record.seconds


def with_worst(record: StepRecord) -> dict[str, float]:
    """The values of a record, and of each measure that it has only by layer or head the worst of them."""
    return record.values | {
        name: float(measure_of(name).worst(values))
        for name, values in record.layers.items()
        if values and name not in record.values
    }


def first_measures(names: Sequence[str], count: int = 4) -> list[str]:
    """Those of the names that are worth a look first."""
    return [*(name for name in FIRST if name in names), *(name for name in names if name not in FIRST)][:count]


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """The exponential mean, in which each value weighs `weight` times as much as the next; unbiased from the first.

    What is no number stays in its place and out of the mean. `weight` in [0, 1); 0 changes nothing.
    """
    if not 0 <= weight < 1:
        raise ValueError(f"Smoothing is from 0, none, to below 1; got {weight:g}.")
    if not weight:
        return values
    out, mean, share = np.array(values, np.float64), 0.0, 0.0
    for at, value in enumerate(out):
        if math.isfinite(value):
            mean, share = weight * mean + (1 - weight) * value, weight * share + (1 - weight)
            out[at] = mean / share
    return out


# Configs


def flattened(config: Config, above: str = "") -> dict[str, Any]:
    """A nested config with dotted names: `recipe.rate`. Lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flattened(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return flat


def differences(configs: Mapping[str, Config]) -> dict[str, dict[str, Any]]:
    """The settings, by dotted name, in which the runs differ: each with the value of every run that has it.

    A run whose config is empty says nothing, and takes no part.
    """
    flat = {name: flattened(config) for name, config in configs.items() if config}
    keys = dict.fromkeys(key for each in flat.values() for key in each)
    values = {key: {name: each[key] for name, each in flat.items() if key in each} for key in keys}
    return {
        key: of
        for key, of in values.items()
        if key != "name" and (len(of) < len(flat) or len({_key(value) for value in of.values()}) > 1)
    }


def worded(value: Any) -> str:
    """A setting in few words."""
    if isinstance(value, Mapping):
        kind = next((key for key in ("is", "fix", "kind", "type") if key in value), "")
        rest = ", ".join(f"{key}={worded(each)}" for key, each in value.items() if key != kind)
        return f"{value[kind]}({rest})" if kind else rest
    if isinstance(value, list | tuple):
        return ", ".join(map(worded, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def seed_groups(configs: Mapping[str, Config]) -> dict[str, list[str]]:
    """The names of runs that differ in nothing but seeds, which all differ, by what the names have in common.

    Only where there are two or more.
    """
    alike: dict[str, dict[str, str]] = {}  # by all but seeds and name: the runs, and the seeds of each
    for name, config in configs.items():
        flat = {key: value for key, value in flattened(config).items() if key != "name"}
        seeds = {key: value for key, value in flat.items() if key.split(".")[-1] == "seed"}
        if seeds:
            rest = {key: value for key, value in flat.items() if key not in seeds}
            alike.setdefault(_key(rest), {})[name] = _key(seeds)
    groups: dict[str, list[str]] = {}
    for seeds in alike.values():
        if len(seeds) > 1 and len({*seeds.values()}) == len(seeds):
            members = list(seeds)
            label = _common(members) or members[0]
            groups[label if label not in groups else f"{label} ({members[0]})"] = members
    return groups


def band_of(columns: Sequence[Columns], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values of runs x steps) of a measure at the steps that all runs recorded it at."""
    series = [each.series(name) for each in columns]
    steps = series[0][0]
    for others, _ in series[1:]:
        steps = np.intersect1d(steps, others)
    return steps, np.stack([values[np.searchsorted(own, steps)] for own, values in series])


# Outcomes


def outcome_row(state: RunState, columns: Columns) -> dict[str, Any]:
    """What a run came to, as a row of a table; None for what it did not record."""
    held_out, loss, logit = (columns.series(name)[1] for name in ("held_out_loss", "loss", "max_attention_logit"))
    history = columns.history
    return {
        "status": state.status,
        "steps": history.records[-1].step + 1 if history.records else 0,
        "held_out_loss": float(held_out[-1]) if len(held_out) else None,
        "loss": float(loss[-1]) if len(loss) else None,
        "lowest_loss": _lowest(loss),
        "max_attention_logit": float(np.max(logit)) if len(logit) else None,
        "alarms": len(history.alarms),
        "tokens_per_second": state.tokens_per_second or None,
    }


def _lowest(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.min()) if len(finite) else None


def outcomes_by_rate(
    configs: Mapping[str, Config], runs: Mapping[str, Columns]
) -> tuple[dict[str, dict[float, list[float]]], float]:
    """({configuration: {rate: held-out losses, one a seed}}, loss at the start) of runs that differ in `recipe.rate`.

    Runs are of one configuration when nothing but rate, seed and name differs; it is called by what its runs' names
    have in common, else by what sets it apart. No configurations where all rates are equal. The start is the mean of
    the first losses, infinite where none was recorded.
    """
    groups: dict[str, list[str]] = {}
    flat = {name: flattened(config) for name, config in configs.items() if config}
    for name, config in flat.items():
        if isinstance(config.get(RATE_KEY), int | float):
            rest = {key: value for key, value in config.items() if not _free(key)}
            groups.setdefault(_key(rest), []).append(name)
    if len({flat[name][RATE_KEY] for members in groups.values() for name in members}) < 2:
        return {}, math.inf
    apart = {key: of for key, of in differences({name: configs[name] for name in flat}).items() if not _free(key)}
    labels = [_common(members) for members in groups.values()]
    if len({*labels, ""}) <= len(labels):
        labels = [
            "; ".join(f"{key}: {worded(of[members[0]])}" for key, of in apart.items() if members[0] in of) or "all runs"
            for members in groups.values()
        ]
    outcomes: dict[str, dict[float, list[float]]] = {}
    starts = []
    for label, members in zip(labels, groups.values(), strict=True):
        by_rate: dict[float, list[float]] = {}
        for name in members:
            held_out, loss = (runs[name].series(each)[1] for each in ("held_out_loss", "loss"))
            if len(held_out):
                by_rate.setdefault(float(flat[name][RATE_KEY]), []).append(float(held_out[-1]))
            starts += [value for value in loss[:1].tolist() if math.isfinite(value)]
        if by_rate:
            outcomes[label] = dict(sorted(by_rate.items()))
    return outcomes, float(np.mean(starts)) if starts else math.inf


def _free(key: str) -> bool:
    """Whether a setting may differ within a configuration."""
    return key in (RATE_KEY, "name") or key.split(".")[-1] == "seed"


def _common(names: Sequence[str]) -> str:
    """The words with which all names begin."""
    split = [name.replace("_", " ").replace("-", " ").split() for name in names]
    common = []
    for together in zip(*split, strict=False):
        if len(set(together)) > 1:
            break
        common.append(together[0])
    return " ".join(common)
