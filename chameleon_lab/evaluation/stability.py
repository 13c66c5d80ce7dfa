"""What the stability presets do over seeds: how runs end, and how early and how truly the alarms sound."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from chameleon_lab.evaluation.additions import Additions, ReadOnlyMonitor
from chameleon_lab.evaluation.competition import competition
from chameleon_lab.evaluation.intervals import Mean, Share
from chameleon_lab.files import intact, read_json_lines
from chameleon_lab.history import History, RecordedRun, lr_sensitivity
from chameleon_lab.measures import MEASURES, measure_of
from chameleon_lab.monitors.alarms import RULES, Beyond, DivergenceDetector, Rule, Saturation, Spike
from chameleon_lab.parts import require_fields
from chameleon_lab.training.experiments import PRESETS, RATES, SANE_RATES, Experiment, scale, sensitivity, variations
from chameleon_lab.training.folder import locks_folder

NOTHING = Additions()
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


def preset(name: str, seed: int, additions: Additions = NOTHING) -> dict[tuple[str, str], Experiment]:
    """The runs of a preset for one seed, by (setting, variation), a person's own fixes among the variations.

    Raises ValueError for an unknown name.
    """
    fixes = additions.fixes
    if name in PRESETS:
        return {(name, kind): each for kind, each in variations(PRESETS[name], seed, fixes).items()}
    if name in ("sensitivity", "sane"):
        grid = sensitivity(RATES if name == "sensitivity" else SANE_RATES, seed, fixes)
        return {(f"{rate:g}", kind): each for kind, rates in grid.items() for rate, each in rates.items()}
    if name == "scale":
        pair = ("baseline", "query_key_norm", *fixes)
        grid = scale(seed=seed, fixes=fixes).items()
        return {(shape, kind): kinds[kind] for shape, kinds in grid for kind in pair}
    if name == "competition":
        return competition(seed, fixes)
    raise ValueError(f"No preset is called {name!r}; there are {', '.join(NAMES)}.")


NAMES = (*PRESETS, "sane", "sensitivity", "scale", "competition")


@dataclass(frozen=True)
class PresetOutcome:
    """How one run of a preset ended. Losses are means of 20 steps, nats a token, but for the held-out one.

    `start` is the loss at initialisation, that of the first batch before any step. `blow_up`: the first step from where
    the loss stood more than 0.5 above its minimum for 20 steps. `damage`: the first from where it stood more than 0.1
    above that of the run with query/key norm on the same data, for 30 steps. `first_alarms`: the step at which each
    rule first sounded. What was not recorded, as the log-partition of images in a corpus without any, is nan. `corpus`
    is empty for the lab's own. `readings`: the worst of each measure that a person's own monitors read.
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
    corpus: str = ""
    output_norm: float = math.nan
    gradient_cosine: float = math.nan
    readings: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """JSON has no nan, which stands as null."""
        return json.dumps(
            {
                name: None if isinstance(each, float) and math.isnan(each) else each
                for name, each in asdict(self).items()
            }
        )


@locks_folder
def outcomes(
    folder: Path | str,
    names: Sequence[str] = NAMES,
    seeds: Sequence[int] = (0, 1, 2),
    additions: Additions = NOTHING,
) -> Iterator[PresetOutcome]:
    """Trains what is not trained yet, each run in a folder of its own below `folder`, and says how it ended.

    What has been trained is read again, so the same call goes on where it was stopped. Runs with a fix, a corpus or a
    monitor of one's own lie in folders that are marked by what they are: an edited fix trains anew. Raises ValueError,
    before any training, for a corpus that sets nothing apart.
    """
    for name, source in additions.corpora.items():
        if not source.open(seeds[0], None).held_out:
            raise ValueError(
                f"{name} sets no documents apart, and the presets are compared by their held-out losses: give it some, "
                "as Corpora(..., held_out=FOLDER) and ListedDocuments(..., held_out=0.1) have."
            )
    monitors = tuple(map(ReadOnlyMonitor, additions.monitors.values()))
    rules = {**COMPARED, **additions.rules}
    for name in names:
        for seed, corpus in itertools.product(seeds, additions.corpora or ("",)):
            histories: dict[tuple[str, str], History] = {}
            for (setting, kind), experiment in preset(name, seed, additions).items():
                place = Path(folder) / f"{experiment.name}-{seed}"
                if corpus:
                    experiment = replace(experiment, data=additions.corpora[corpus])
                if monitors:
                    experiment = replace(experiment, monitors=(*experiment.monitors, *monitors))
                if corpus or monitors or kind in additions.fixes:
                    place = place.with_name(f"{place.name}-{experiment.fingerprint}")
                histories[setting, kind] = _history(experiment, place)
            for (setting, kind), history in histories.items():
                twin = None if kind == "query_key_norm" else histories.get((setting, "query_key_norm"))
                labels = {"preset": name, "setting": setting, "variation": kind, "seed": seed, "corpus": corpus}
                yield preset_outcome(history, twin, rules, **labels)


def _history(experiment: Experiment, place: Path) -> History:
    if (place / "state.json").exists():
        run = RecordedRun(place)
        if run.state.status == "finished":
            return run.history
    return experiment.run(place).wait()


def preset_outcome(
    history: History, twin: History | None, rules: Mapping[str, Rule] = COMPARED, **labels: Any
) -> PresetOutcome:
    losses = np.array(history.series("loss")[1])
    smooth = _means(losses)
    damage = None
    if twin is not None:
        gap = _means(losses - np.array(twin.series("loss")[1]))
        damage = _onset(gap > 0.1, 30)
    names = history.names

    def worst(name: str) -> float:
        return float(measure_of(name).worst(history.series(name)[1])) if name in names else math.nan

    def last(name: str) -> float:
        return history.last(name) if name in names else math.nan

    own = [name for name in names if measure_of(name).base not in MEASURES]
    return PresetOutcome(
        **labels,
        held_out_loss=history.held_out_loss,
        start=history.initial_loss,
        lowest=float(smooth.min()),
        end=float(smooth[-1]),
        max_attention_logit=worst("max_attention_logit"),
        attention_entropy=worst("attention_entropy"),
        residual_norm=worst("residual_norm"),
        log_partition=last("image_log_partition"),
        output_norm=last("output_norm"),
        gradient_cosine=last("gradient_cosine"),
        readings={each: worst(each) for each in own if math.isfinite(worst(each))},
        blow_up=_onset(smooth > np.minimum.accumulate(smooth) + 0.5, 20),
        damage=damage,
        first_alarms=first_alarms(history, rules),
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
    """The outcomes of a file that `chameleon-lab stability` wrote.

    Before December 2026 it said `heard` for `first_alarms`, and `all` for the variation that has three fixes.
    """
    with intact(path):
        return [_outcome_of(each) for each in read_json_lines(path)]


def _outcome_of(line: dict[str, Any]) -> PresetOutcome:
    line = {"first_alarms": line.pop("heard", {}), **line}
    line["variation"] = "norms_and_z_loss" if line["variation"] == "all" else line["variation"]
    measured = {each.name for each in fields(PresetOutcome) if each.type == "float"}
    line |= {key: math.nan for key in measured & line.keys() if line[key] is None}
    outcome = PresetOutcome(**line)
    unmeasured = {
        name for name in measured if isinstance(value := getattr(outcome, name), float) and not math.isfinite(value)
    }
    require_fields(replace(outcome, **dict.fromkeys(unmeasured, 0.0)))
    return outcome


def by_rate(outcomes: Sequence[PresetOutcome]) -> dict[str, dict[float, list[float]]]:
    """Held-out losses of the runs at several rates: by variation (and corpus, where one is not the lab's), by rate."""
    losses: dict[str, dict[float, list[float]]] = {}
    for each in outcomes:
        if each.preset == "sensitivity":
            name = f"{each.variation} on {each.corpus}" if each.corpus else each.variation
            losses.setdefault(name, {}).setdefault(float(each.setting), []).append(each.held_out_loss)
    return losses


def loss_at_start(outcomes: Sequence[PresetOutcome]) -> float:
    """The mean loss at initialisation of the runs at several rates, the most that counts in an LR sensitivity."""
    starts = [each.start for each in outcomes if each.preset == "sensitivity" and math.isfinite(each.start)]
    return float(np.mean(starts)) if starts else math.inf


def preset_tables(outcomes: Sequence[PresetOutcome], rules: Iterable[str] = tuple(COMPARED)) -> str:
    """The outcomes, what fixes changed, and the alarms' record as tables; intervals are 95 % ones."""
    loss, *watched = (
        measure_of(name).words
        for name in ("held_out_loss", "max_attention_logit", "residual_norm", "image_log_partition")
    )
    lines = [
        f"| preset | variation | seeds | {loss} | lowest to end | blow-up | {' | '.join(watched)} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (place, kind), members in _by_place(outcomes).items():
        blown = [each.blow_up for each in members if each.blow_up is not None]
        cells = [
            place,
            kind,
            str(len(members)),
            _mean(members, "held_out_loss", ".3f"),
            f"{_mean(members, 'lowest', brief=True)} to {_mean(members, 'end', brief=True)}",
            f"{Share(len(blown), len(members))}" + (f", step {', '.join(map(str, blown))}" if blown else ""),
            _mean(members, "max_attention_logit", ".3g"),
            _mean(members, "residual_norm", ".3g"),
            _mean(members, "log_partition", brief=True),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_reading_table(outcomes), "", *_difference_table(outcomes), "", *_growth_table(outcomes)]
    if losses := by_rate(outcomes):
        start = loss_at_start(outcomes)
        values = ", ".join(f"{kind} {lr_sensitivity(rates, start):.3f}" for kind, rates in losses.items())
        lines += [
            "",
            f"Sensitivity to the learning rate (lower is flatter; at most the loss at initialisation, {start:.2f}, "
            f"counts): {values}.",
        ]
    text = "\n".join([*lines, "", *_alarm_table(outcomes, rules), ""])
    return re.sub(r"\n{3,}", "\n\n", text)


def _by_place(outcomes: Sequence[PresetOutcome]) -> dict[tuple[str, str], list[PresetOutcome]]:
    """The runs that differ in their seed alone, by where they were trained and by variation."""
    groups: dict[tuple[str, str], list[PresetOutcome]] = {}
    for each in outcomes:
        place = each.preset if each.preset == each.setting else f"{each.preset} {each.setting}"
        groups.setdefault((f"{place} on {each.corpus}" if each.corpus else place, each.variation), []).append(each)
    return groups


def _reading_table(outcomes: Sequence[PresetOutcome]) -> list[str]:
    """The worst of what a person's own monitors read in each run, means over seeds."""
    if not (names := sorted({name for each in outcomes for name in each.readings})):
        return []
    heads = " | ".join(measure_of(name).words for name in names)
    lines = [f"| preset | variation | seeds | {heads} |", "|---" * (3 + len(names)) + "|"]
    for (place, kind), members in _by_place(outcomes).items():
        if any(each.readings for each in members):
            cells = [_mean(members, name, ".3g") for name in names]
            lines.append(f"| {place} | {kind} | {len(members)} | {' | '.join(cells)} |")
    return lines


def _difference_table(outcomes: Sequence[PresetOutcome]) -> list[str]:
    """Held-out loss less the bare run's of the same seed, which sees the same data in the same order."""
    groups = _by_place(outcomes)
    lines = [
        "| preset | variation | seeds | held-out loss less the baseline's | so many seeds say |",
        "|---|---|---|---|---|",
    ]
    for (place, kind), members in groups.items():
        bare = {each.seed: each.held_out_loss for each in groups.get((place, "baseline"), [])}
        gaps = [each.held_out_loss - bare[each.seed] for each in members if each.seed in bare]
        gaps = [gap for gap in gaps if math.isfinite(gap)]
        if kind == "baseline" or not gaps:
            continue
        mean = Mean.of_seeds(gaps)
        verdict = "better" if mean.value < 0 else "worse"
        if not mean.excludes(0):
            verdict = "nothing: one seed" if mean.n == 1 else "no difference excluded"
        lines.append(f"| {place} | {kind} | {mean.n} | {mean.within('+.3f')} | {verdict} |")
    return lines if len(lines) > 2 else []


GROWTH = {"output_norm": "output norm", "max_attention_logit": "max attention logit"}
"""What grows in the preset `competition`, and the words for it."""


def intervals_of(outcomes: Sequence[PresetOutcome]) -> dict[str, dict[str, Mean]]:
    """The held-out loss by variation and by where it was trained, as `figures.interval_figure` draws it."""
    means: dict[str, dict[str, Mean]] = {}
    for (place, kind), members in _by_place(outcomes).items():
        if values := [each.held_out_loss for each in members if math.isfinite(each.held_out_loss)]:
            means.setdefault(kind, {})[place] = Mean.of_seeds(values)
    return means


def growth_of(outcomes: Sequence[PresetOutcome], name: str) -> dict[str, Mean]:
    """Of the preset `competition`: how many times as far a measure of `GROWTH` came in each arm as in the first, which
    has both modalities and shares all weights; geometric means of the ratios by seed."""
    arms = _by_place([each for each in outcomes if each.preset == "competition" and not each.corpus])
    together = {each.seed: each for each in arms.pop(("competition text and images", "baseline"), [])}
    means: dict[str, Mean] = {}
    for (_, kind), members in arms.items():
        ratios = [getattr(each, name) / getattr(together[each.seed], name) for each in members if each.seed in together]
        if ratios:
            setting = members[0].setting
            means[setting if kind == "baseline" else f"{setting}, {kind}"] = Mean.of_seeds(ratios, log=True)
    return means


def _growth_table(outcomes: Sequence[PresetOutcome]) -> list[str]:
    growth = {name: growth_of(outcomes, name) for name in GROWTH}
    heads = " | ".join(f"{words}, times as far" for words in GROWTH.values())
    lines = [f"| trained on | seeds | {heads} |", "|---|---|---|---|"]
    for arm, mean in growth["output_norm"].items():
        cells = [each[arm].within(".2f") for each in growth.values()]
        lines.append(f"| {arm} | {mean.n} | {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


def _alarm_table(outcomes: Sequence[PresetOutcome], rules: Iterable[str]) -> list[str]:
    bare = [each for each in outcomes if each.variation == "baseline"]
    damaged = [each for each in bare if each.damage is not None]
    blown = [each for each in bare if each.blow_up is not None]
    best = {_pair(each): each.held_out_loss for each in outcomes if each.variation == "query_key_norm"}
    unfixed = [each for each in bare if _pair(each) in best and each.held_out_loss - best[_pair(each)] < 0.03]
    fixed = [each for each in outcomes if each.variation != "baseline"]
    lines = [
        "| rule | sounds in damaged runs | steps before damage | steps before blow-up | false, healthy without fixes "
        "| sounds with fixes |",
        "|---|---|---|---|---|---|",
    ]
    for rule in rules:
        early = [(each.damage or 0) - each.first_alarms[rule] for each in damaged if rule in each.first_alarms]
        ahead = [(each.blow_up or 0) - each.first_alarms[rule] for each in blown if rule in each.first_alarms]
        false = [Share(sum(rule in each.first_alarms for each in runs), len(runs)) for runs in (unfixed, fixed)]
        cells = [rule, str(Share(len(early), len(damaged))), _range(early), _range(ahead), *map(str, false)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _pair(outcome: PresetOutcome) -> tuple[str, str, str, int]:
    return outcome.preset, outcome.setting, outcome.corpus, outcome.seed


def _mean(members: Sequence[PresetOutcome], name: str, form: str = ".2f", *, brief: bool = False) -> str:
    """Mean and interval over seeds, of the logarithms where the measure's axis is one; `brief`: the mean alone."""
    readings = [each.readings[name] if name in each.readings else getattr(each, name, math.nan) for each in members]
    values = [value for value in readings if math.isfinite(value)]
    if not values:
        return "no number"
    log = not brief and measure_of(name).axis == "log" and min(values) > 0
    mean = Mean.of_seeds(values, log=log)
    return f"{mean.value:{form}}" if brief else mean.within(form)


def _range(steps: Sequence[int]) -> str:
    return f"{median(steps):.0f} ({min(steps)} to {max(steps)})" if steps else "-"
