"""What the stability presets do over seeds: how runs end, and how early and how truly the alarms sound."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from chameleon_lab.files import intact, parse_json, text_of_file
from chameleon_lab.history import History, RecordedRun, lr_sensitivity
from chameleon_lab.measures import measure_of
from chameleon_lab.monitors.alarms import RULES, Beyond, DivergenceDetector, Rule, Saturation, Spike
from chameleon_lab.training.experiments import PRESETS, RATES, SANE_RATES, Experiment, scale, sensitivity, variations

SPAN = 20
"""Steps over which losses are averaged."""


COMPARED: dict[str, Rule] = {
    "logit > 30 and entropy < 0.2": Saturation("WARN", 30.0, 0.2),
    "WARN: logit > 50": RULES[0],
    "ALARM: logit > 50 and entropy < 0.1": RULES[1],
    "CRITICAL: logit > 100 and entropy < 0.1": RULES[2],
    "residual norm > 30": Beyond("residual_norm", 30.0),
    "gradient norm > 5 times its median": Spike(),
}
"""The rules that are held against each other; the three levels are the lab's defaults."""


def preset(name: str, seed: int) -> dict[tuple[str, str], Experiment]:
    """The runs of a preset for one seed, by (setting, variation). Raises ValueError for an unknown name."""
    if name in PRESETS:
        return {(name, kind): each for kind, each in variations(PRESETS[name], seed).items()}
    if name in ("sensitivity", "sane"):
        grid = sensitivity(RATES if name == "sensitivity" else SANE_RATES, seed)
        return {(f"{rate:g}", kind): each for kind, rates in grid.items() for rate, each in rates.items()}
    if name == "scale":
        grid = scale(seed=seed).items()
        return {(shape, kind): kinds[kind] for shape, kinds in grid for kind in ("baseline", "query_key_norm")}
    raise ValueError(f"No preset is called {name!r}; there are {', '.join(NAMES)}.")


NAMES = (*PRESETS, "sane", "sensitivity", "scale")


@dataclass(frozen=True)
class PresetOutcome:
    """How one run of a preset ended. Losses are means of 20 steps, nats a token, but for the held-out one.

    `blow_up`: the first step from where the loss stood more than 0.5 above its minimum for 20 steps. `damage`: the
    first from where it stood more than 0.1 above that of the run with query/key norm on the same data, for 30 steps.
    `first_alarms`: the step at which each of `COMPARED` first sounded.
    """

    preset: str
    setting: str
    variation: str
    seed: int
    held_out_loss: float
    start: float
    lowest: float
    end: float
    max_attention_logit: float
    attention_entropy: float
    residual_norm: float
    log_partition: float
    blow_up: int | None
    damage: int | None
    first_alarms: dict[str, int]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def outcomes(
    folder: Path | str, names: Sequence[str] = NAMES, seeds: Sequence[int] = (0, 1, 2)
) -> Iterator[PresetOutcome]:
    """Trains what is not trained yet, each run in a folder of its own below `folder`, and says how it ended.

    What has been trained is read again, so the same call goes on where it was stopped.
    """
    for name in names:
        for seed in seeds:
            histories: dict[tuple[str, str], History] = {}
            for key, experiment in preset(name, seed).items():
                place = Path(folder) / f"{experiment.name}-{seed}"
                histories[key] = _history(experiment, place)
            for (setting, kind), history in histories.items():
                twin = None if kind == "query_key_norm" else histories[setting, "query_key_norm"]
                yield preset_outcome(history, twin, preset=name, setting=setting, variation=kind, seed=seed)


def _history(experiment: Experiment, place: Path) -> History:
    if (place / "state.json").exists():
        run = RecordedRun(place)
        if run.state.status == "finished":
            return run.history
    return experiment.run(place).wait()


def preset_outcome(history: History, twin: History | None, **labels: Any) -> PresetOutcome:
    losses = np.array(history.series("loss")[1])
    smooth = _means(losses)
    damage = None
    if twin is not None:
        gap = _means(losses - np.array(twin.series("loss")[1]))
        damage = _onset(gap > 0.1, 30)
    return PresetOutcome(
        **labels,
        held_out_loss=history.held_out_loss,
        start=float(smooth[0]),
        lowest=float(smooth.min()),
        end=float(smooth[-1]),
        max_attention_logit=history.maximum("max_attention_logit"),
        attention_entropy=float(measure_of("attention_entropy").worst(history.series("attention_entropy")[1])),
        residual_norm=history.maximum("residual_norm"),
        log_partition=history.last("log_partition", "image"),
        blow_up=_onset(smooth > np.minimum.accumulate(smooth) + 0.5, 20),
        damage=damage,
        first_alarms=first_alarms(history),
    )


def first_alarms(history: History, rules: Mapping[str, Rule] = COMPARED) -> dict[str, int]:
    """The step at which each rule, alone, first sounded in a history; those that never did are left out."""
    steps = {}
    for name, rule in rules.items():
        detector = DivergenceDetector((rule,))
        for record in history.records:
            if detector.update(record):
                steps[name] = record.step
                break
    return steps


def _means(values: np.ndarray) -> np.ndarray:
    """Mean of the last `SPAN` values at each step, from the first whole span on."""
    return np.convolve(values, np.ones(SPAN) / SPAN, mode="valid")


def _onset(trouble: np.ndarray, steps: int) -> int | None:
    """The step at which a trouble of 20-step means began that lasted so many steps."""
    lasting = np.convolve(trouble, np.ones(steps), mode="valid") >= steps
    return int(np.flatnonzero(lasting)[0]) + SPAN - 1 if lasting.any() else None


def read_presets(path: Path | str) -> list[PresetOutcome]:
    """The outcomes of a file that `chameleon-lab stability` wrote; before December 2026 it said `heard`."""
    with intact(path):
        lines = [parse_json(line, path) for line in text_of_file(path).splitlines()]
        return [PresetOutcome(**{"first_alarms": line.pop("heard", {}), **line}) for line in lines]


def by_rate(outcomes: Sequence[PresetOutcome]) -> dict[str, dict[float, list[float]]]:
    """Held-out losses of the runs at several rates: by variation, then by rate."""
    losses: dict[str, dict[float, list[float]]] = {}
    for each in outcomes:
        if each.preset == "sensitivity":
            losses.setdefault(each.variation, {}).setdefault(float(each.setting), []).append(each.held_out_loss)
    return losses


def preset_tables(outcomes: Sequence[PresetOutcome]) -> str:
    """The outcomes and the alarms' record as tables."""
    loss, *watched = (
        measure_of(name).words
        for name in ("held_out_loss", "max_attention_logit", "residual_norm", "image_log_partition")
    )
    lines = [
        f"| preset | variation | seeds | {loss} | lowest to end | blow-up | {' | '.join(watched)} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, str], list[PresetOutcome]] = {}
    for each in outcomes:
        groups.setdefault((each.preset, each.setting, each.variation), []).append(each)
    for (name, setting, kind), members in groups.items():
        blown = [each.blow_up for each in members if each.blow_up is not None]
        cells = [
            name if name == setting else f"{name} {setting}",
            kind,
            str(len(members)),
            _spread([each.held_out_loss for each in members]),
            f"{_mean(members, 'lowest'):.2f} to {_mean(members, 'end'):.2f}",
            f"{len(blown)} of {len(members)}" + (f", step {', '.join(map(str, blown))}" if blown else ""),
            _spread([each.max_attention_logit for each in members], ".3g"),
            _spread([each.residual_norm for each in members], ".3g"),
            f"{_mean(members, 'log_partition'):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if losses := by_rate(outcomes):
        start = _mean([each for each in outcomes if each.preset == "sensitivity"], "start")
        values = ", ".join(f"{kind} {lr_sensitivity(rates, start):.3f}" for kind, rates in losses.items())
        lines += ["", f"Sensitivity to the learning rate (lower is flatter): {values}."]
    return "\n".join([*lines, "", *_alarm_table(outcomes), ""])


def _alarm_table(outcomes: Sequence[PresetOutcome]) -> list[str]:
    damaged = [each for each in outcomes if each.variation == "baseline" and each.damage is not None]
    blown = [each for each in outcomes if each.variation == "baseline" and each.blow_up is not None]
    best = {(o.preset, o.setting, o.seed): o.held_out_loss for o in outcomes if o.variation == "query_key_norm"}
    unfixed = [
        each
        for each in outcomes
        if each.variation == "baseline" and each.held_out_loss - best[each.preset, each.setting, each.seed] < 0.03
    ]
    fixed = [each for each in outcomes if each.variation != "baseline"]
    lines = [
        "| rule | heard in damaged runs | steps before damage | steps before blow-up | false, healthy without fixes "
        "| heard with fixes |",
        "|---|---|---|---|---|---|",
    ]
    for rule in COMPARED:
        early = [(each.damage or 0) - each.first_alarms[rule] for each in damaged if rule in each.first_alarms]
        ahead = [(each.blow_up or 0) - each.first_alarms[rule] for each in blown if rule in each.first_alarms]
        false = [sum(rule in each.first_alarms for each in runs) for runs in (unfixed, fixed)]
        cells = [rule, f"{len(early)} of {len(damaged)}", _range(early), _range(ahead)]
        cells += [f"{false[0]} of {len(unfixed)}", f"{false[1]} of {len(fixed)}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean(members: Sequence[PresetOutcome], name: str) -> float:
    return float(np.mean([getattr(each, name) for each in members]))


def _spread(values: Sequence[float], form: str = ".3f") -> str:
    sound = [value for value in values if math.isfinite(value)]
    if not sound:
        return "no number"
    low, high = min(sound), max(sound)
    return f"{low:{form}}" if len(sound) == 1 else f"{np.mean(sound):{form}} ({low:{form}} to {high:{form}})"


def _range(steps: Sequence[int]) -> str:
    return f"{median(steps):.0f} ({min(steps)} to {max(steps)})" if steps else "-"
