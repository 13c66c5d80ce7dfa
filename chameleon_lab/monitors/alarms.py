"""Alarms: rules over what monitors read, and the detector that sounds when one begins to hold.

A rule of your own is one more frozen dataclass with a `judge`; `replace(RULES[0], logit=30.0)` is one of these with
another threshold. Where a rule has `thresholds`, the run's panel draws them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple, Protocol, runtime_checkable

from chameleon_lab.history import LEVELS, Alarm, Level, StepRecord
from chameleon_lab.measures import MEASURES, measure_of
from chameleon_lab.parts import require_each


class Rule(Protocol):
    """What is an alarm: trouble at `checks` records in a row. Rules of one `name` are levels of one trouble."""

    @property
    def name(self) -> str: ...

    @property
    def level(self) -> Level: ...

    @property
    def checks(self) -> int: ...

    def judge(self, record: StepRecord, before: Sequence[StepRecord]) -> str | None:
        """What was measured, in words, if it is trouble; "" if it is none; None if the record lacks the measure.

        `before`: the records that came before, the last few hundred of them.
        """
        ...


@runtime_checkable
class Bounding(Protocol):
    """A rule that can say beyond which value of which measure it holds."""

    @property
    def thresholds(self) -> Mapping[str, float]: ...


class Head(NamedTuple):
    """A head's largest logit and its mean entropy, which may be unknown (nan)."""

    logit: float
    entropy: float
    name: str = "a head"

    def __str__(self) -> str:
        return f"max logit {self.logit:.0f}" + ("" if math.isnan(self.entropy) else f", entropy {self.entropy:.2f}")


@dataclass(frozen=True)
class Saturation:
    """An attention logit above `logit` while some head's mean entropy is below `entropy` (0 to 1), where one is given.

    It says that heads saturate, not that the run will diverge.
    """

    level: Level
    logit: float
    entropy: float = math.inf
    checks: int = 2
    name: str = "attention"

    @property
    def thresholds(self) -> Mapping[str, float]:
        limits = {"max_attention_logit": self.logit, "attention_entropy": self.entropy}
        return {measure: limit for measure, limit in limits.items() if math.isfinite(limit)}

    def judge(self, record: StepRecord, before: Sequence[StepRecord]) -> str | None:
        values = record.values
        whole = Head(values.get("max_attention_logit", math.nan), values.get("attention_entropy", math.nan))
        if math.isnan(whole.logit) or (math.isnan(whole.entropy) and self.entropy < math.inf):
            return None
        if not whole.logit > self.logit or whole.entropy >= self.entropy:
            return ""
        heads = heads_of(record) or [whole]
        most, least = max(heads, key=lambda each: each.logit), min(heads, key=lambda each: each.entropy)
        if self.entropy == math.inf:
            return f"{most.name} reaches {most}"
        both = [each for each in heads if each.logit > self.logit and each.entropy < self.entropy]
        if both:
            worst = min(both, key=lambda each: each.entropy)
            return f"{worst.name} saturates: {worst}"
        return f"max logit {most.logit:.0f} in {most.name}, entropy {least.entropy:.2f} in {least.name}"


def heads_of(record: StepRecord) -> list[Head]:
    """Each head's largest logit and mean entropy, where the record has both."""
    both = (record.layers.get(name, []) for name in ("max_attention_logit", "attention_entropy"))
    return [
        Head(logit, entropy, f"head {head} of block {layer}")
        for layer, pairs in enumerate(zip(*both, strict=False))
        for head, (logit, entropy) in enumerate(zip(*pairs, strict=True))
    ]


@dataclass(frozen=True)
class NotANumber:
    """A loss or a gradient norm that is infinite or no number."""

    level: Level = "CRITICAL"
    checks: int = 1
    name: str = "numbers"
    measures: tuple[str, ...] = ("loss", "gradient_norm")

    def judge(self, record: StepRecord, before: Sequence[StepRecord]) -> str | None:
        values = {name: record.values[name] for name in self.measures if name in record.values}
        if not values:
            return None
        return ", ".join(
            f"{measure_of(name).words} is {value}" for name, value in values.items() if not math.isfinite(value)
        )


@dataclass(frozen=True)
class Spike:
    """A measure more than `times` its median over the `window` records before, of which a fifth must be there.

    Not among the default rules: of gradient norms it lags behind the damage, since clipping hides it.
    """

    measure: str = "gradient_norm"
    times: float = 5.0
    window: int = 100
    level: Level = "WARN"
    checks: int = 1

    @property
    def name(self) -> str:
        return f"{self.measure} spike"

    def judge(self, record: StepRecord, before: Sequence[StepRecord]) -> str | None:
        value = record.values.get(self.measure)
        past = [each.values[self.measure] for each in before[-self.window :] if self.measure in each.values]
        if value is None or len(past) < max(1, self.window // 5):
            return None
        usual = median(past)
        if not value > self.times * usual:
            return ""
        words = measure_of(self.measure).words
        return f"{words} {value:.3g} is {value / usual:.0f} times its median of the last {len(past)} steps"


@dataclass(frozen=True)
class Beyond:
    """A measure worse than a limit, on the side on which it is worse (see `measures`), whatever the rest."""

    measure: str
    limit: float
    level: Level = "WARN"
    checks: int = 2

    @property
    def name(self) -> str:
        return f"{self.measure} {'<' if self._low else '>'} {self.limit:g}"

    @property
    def thresholds(self) -> Mapping[str, float]:
        return {self.measure: self.limit}

    @property
    def _low(self) -> bool:
        return measure_of(self.measure).worse == "lower"

    def judge(self, record: StepRecord, before: Sequence[StepRecord]) -> str | None:
        value = record.values.get(self.measure)
        if value is None:
            return None
        beyond = value < self.limit if self._low else value > self.limit
        return f"{measure_of(self.measure).words} {value:.3g}" if beyond else ""


_LOGIT, _ENTROPY = (MEASURES[name].thresholds for name in ("max_attention_logit", "attention_entropy"))

RULES = (
    Saturation("WARN", _LOGIT["WARN"]),
    Saturation("ALARM", _LOGIT["ALARM"], _ENTROPY["ALARM"]),
    Saturation("CRITICAL", _LOGIT["CRITICAL"], _ENTROPY["CRITICAL"]),
    NotANumber(),
)
"""The default rules. Their lead on damage, and their false alarms, are in docs/stability.md."""


def check_rules(rules: Any) -> None:
    """Raises ValueError for what is no rule, for one of an unknown level, and for one that needs no check."""
    require_each(rules, "a rule", "name", "level", "checks", "judge")
    for rule in rules:
        if rule.level not in LEVELS:
            raise ValueError(f"{rule} is of level {rule.level!r}; there are {', '.join(LEVELS)}.")
        if isinstance(rule.checks, bool) or not isinstance(rule.checks, int) or rule.checks < 1:
            raise ValueError(f"{rule} would sound without a check; give it checks of 1 or more.")


def thresholds_of(rules: Sequence[Rule]) -> dict[str, dict[str, float]]:
    """By measure and level, beyond which value the first of the rules sounds."""
    limits: dict[str, dict[str, float]] = {}
    for rule in sorted(rules, key=lambda rule: LEVELS.index(rule.level)):
        for name, limit in (rule.thresholds if isinstance(rule, Bounding) else {}).items():
            first = max if measure_of(name).worse == "lower" else min
            levels = limits.setdefault(name, {})
            levels[rule.level] = first(limit, levels.get(rule.level, limit))
    return limits


MEMORY = 500
"""How many records rules can look back on."""


class DivergenceDetector:
    """Feeds records to rules, and sounds an alarm when a trouble begins or gets worse.

    A rule stands once it has found trouble `rule.checks` times in a row, and until it has found none `release` times in
    a row; records that lack its measure count for neither. Its state comes from records alone: a run that is taken up
    again feeds it those it has. Raises ValueError as `check_rules` does.
    """

    def __init__(self, rules: Iterable[Rule] = RULES, release: int = 10) -> None:
        self.rules, self.release = tuple(rules), release
        check_rules(self.rules)
        self._troubled, self._calm = [0] * len(self.rules), [0] * len(self.rules)
        self._stands = [False] * len(self.rules)
        self._before: list[StepRecord] = []

    @property
    def standing(self) -> Level | None:
        """The worst level that stands now."""
        return max(self._levels().values(), key=LEVELS.index, default=None)

    def update(self, record: StepRecord) -> list[Alarm]:
        """The alarms that this record sounds: one for each trouble that begins, or that reaches a worse level."""
        before, words = self._levels(), dict[tuple[str, Level], str]()
        for index, rule in enumerate(self.rules):
            trouble = rule.judge(record, self._before)
            if trouble is None:
                continue
            self._troubled[index] = self._troubled[index] + 1 if trouble else 0
            self._calm[index] = 0 if trouble else self._calm[index] + 1
            if self._troubled[index] >= rule.checks:
                self._stands[index] = True
                words[rule.name, rule.level] = trouble
            elif self._calm[index] >= self.release:
                self._stands[index] = False
        self._before = [*self._before[1 - MEMORY :], record]
        return [
            Alarm(record.step, level, name, words[name, level])
            for name, level in self._levels().items()
            if name not in before or LEVELS.index(level) > LEVELS.index(before[name])
        ]

    def _levels(self) -> dict[str, Level]:
        """The worst level that stands, by name of trouble."""
        worst: dict[str, Level] = {}
        standing = (rule for rule, stands in zip(self.rules, self._stands, strict=True) if stands)
        for rule in sorted(standing, key=lambda rule: LEVELS.index(rule.level)):
            worst[rule.name] = rule.level
        return worst
