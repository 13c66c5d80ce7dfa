"""Values with their protocol and the score of each item behind them, and how far two models' differ beyond chance.

```python
ours, theirs = (list(scene_results(lab)) for lab in (one, other))
print(result_table({"one": ours, "other": theirs}))
```
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, Image, Text
from chameleon_lab.evaluation.intervals import Mean, wilson_interval
from chameleon_lab.evaluation.metrics import content_hash, preparation_words
from chameleon_lab.generation.settings import Settings
from chameleon_lab.records import MetricCard, MetricValue
from chameleon_lab.tokenizers.preparation import LANCZOS

FEWEST_DIFFERENT = 6
"""Items on which two models must differ at all before one is called better: of five that all go one way, chance has
one case in sixteen."""

Verdict = Literal["better", "worse", "no difference excluded", "not measured alike"]


def evaluation_card(
    metric: str,
    definition: str,
    reference: str,
    items: Iterable[str],
    *,
    n: int,
    lab: Chameleon,
    pictures: bool = False,
    seed: int | None = None,
) -> MetricCard:
    """The protocol of a model's value: `items` are what was asked, by whose hash others see whether they were asked the
    same; `pictures`: whether some are among them, which the model's own policy prepares."""
    digest, tokenizer = hashlib.sha256("\0".join(items).encode()).hexdigest(), lab.tokenizer
    policy = tokenizer.preparation or tokenizer.image.preparations["centre crop"] if pictures else None
    crop, resize = (preparation_words(policy), LANCZOS.name) if policy else ("none", "none")
    dtype = str(lab.model.embedding.weight.dtype).removeprefix("torch.")
    return MetricCard(metric, definition, reference, digest, crop, resize, n, dtype, seed=seed)


def item_words(document: Document) -> str:
    """A document as `evaluation_card` tells it from others: its words, and its pictures by their pixels."""
    parts: list[str] = []
    for segment in document:
        if isinstance(segment, Image):
            parts.append(content_hash([segment.picture.convert("RGB")]))
        else:
            parts.append(segment.text if isinstance(segment, Text) else type(segment).__name__)
    return "\n".join(parts)


def settings_words(settings: Settings) -> str:
    """How was sampled, for a card: the temperatures, and what else differs from the settings' defaults."""
    usual, values = Settings(), {each.name: getattr(settings, each.name) for each in fields(Settings)}
    parts = [
        f"{name} {value}" for name, value in values.items() if "temperature" in name or value != getattr(usual, name)
    ]
    return f"sampled with {', '.join(parts)}"


@dataclass(frozen=True, eq=False)
class Result:
    """A value, and the score of each item, in the order of the items, whose mean it is (of per cents, 100 times it)."""

    value: MetricValue
    scores: np.ndarray

    @classmethod
    def of(cls, scores: Sequence[float] | np.ndarray, card: MetricCard, unit: str = "%") -> Result:
        """The mean of scores, as a percentage of 1 where the unit is one. Raises ValueError for no scores, and for what
        is no finite number an item."""
        scores_N = np.asarray(scores, np.float64)
        if not scores_N.size:
            raise ValueError(f"There is no {card.metric} of no items.")
        if scores_N.ndim != 1 or not np.isfinite(scores_N).all():
            raise ValueError(f"{card.metric} is of one finite number an item, and not of {str(scores)[:80]}.")
        return cls(MetricValue(float(scores_N.mean()) * (100 if unit == "%" else 1), unit, True, card), scores_N)

    @property
    def scale(self) -> float:
        return 100.0 if self.value.unit == "%" else 1.0

    @property
    def mean(self) -> Mean:
        """The value with its interval: Wilson's where items are right or wrong, otherwise by bootstrap over items."""
        share, n = float(self.scores.mean()), len(self.scores)
        if not set(np.unique(self.scores)) <= {0.0, 1.0}:
            return Mean.of(self.scale * self.scores)
        low, high = wilson_interval(share, n)
        return Mean(self.scale * share, self.scale * low, self.scale * high, n)

    def __str__(self) -> str:
        return f"{self.value.card.metric} {self.mean.within('.1f')} {self.value.unit}, n = {len(self.scores)}"


@dataclass(frozen=True)
class Difference:
    """How much larger the first of two values is, with its interval by paired bootstrap, and what that comes to.

    `unequal`: how many items the two differ on; `apart`: in which fields of their cards they differ, and why it
    matters; the verdict is then that they were not measured alike.
    """

    metric: str
    mean: Mean | None
    unequal: int
    verdict: Verdict
    apart: Mapping[str, str]

    def __str__(self) -> str:
        if self.mean is None:
            return self.verdict
        low, high = self.mean.low, self.mean.high
        if self.unequal < FEWEST_DIFFERENT:  # so few draws make no interval
            return f"{self.mean.value:+.1f}, {self.verdict}: they differ on {self.unequal} of {self.mean.n}"
        return f"{self.mean.value:+.1f} ({low:+.1f} to {high:+.1f}), {self.verdict}"


def difference(one: Result, other: Result, despite: Iterable[str] = (), draws: int = 2000) -> Difference:
    """Of two results of the same items: both models' scores of an item are drawn together, so that what makes an item
    hard for both is no noise.

    `despite`: fields of their cards in which they may differ, such as "dtype". A verdict also needs
    `FEWEST_DIFFERENT` items on which they differ.
    """
    metric, apart = one.value.card.metric, one.value.card.differences(other.value.card, despite)
    if one.value.unit != other.value.unit:
        apart["unit"] = f"{one.value.unit} and {other.value.unit}"
    if apart or len(one.scores) != len(other.scores):
        return Difference(metric, None, 0, "not measured alike", apart or {"n": "other numbers of items"})
    gaps_N = one.scale * (one.scores - other.scores)
    mean, unequal = Mean.of(gaps_N, draws=draws), int((gaps_N != 0).sum())
    verdict: Verdict = "no difference excluded"
    if unequal >= FEWEST_DIFFERENT and mean.excludes(0):
        verdict = "better" if (mean.value > 0) == one.value.higher_is_better else "worse"
    return Difference(metric, mean, unequal, verdict, {})


def table_cell(words: str) -> str:
    """Words as a cell of a table in Markdown that shows them and nothing else: no further cell, link or HTML."""
    return re.sub(r"[|<\[`]", r"\\\g<0>", " ".join(words.split()))


def result_table(models: Mapping[str, Sequence[Result]], despite: Iterable[str] = ()) -> str:
    """A table in Markdown: a row a metric, a column a model, and of two models the first less the second.

    Where the cards differ in a row, the last column says in what, and nothing is compared. Raises ValueError for models
    without a metric in common.
    """
    by_metric = {name: {each.value.card.metric: each for each in results} for name, results in models.items()}
    metrics = [each.value.card.metric for each in next(iter(models.values()), ())]
    shared = [metric for metric in metrics if all(metric in results for results in by_metric.values())]
    if not shared:
        raise ValueError(f"{', '.join(models) or 'No models'} have no metric in common: there is nothing to compare.")
    pair, despite = list(by_metric.values()) if len(by_metric) == 2 else None, tuple(despite)
    names = [table_cell(name) for name in models]
    heads = ["metric", "n", *names, *([f"{names[0]} less {names[1]}"] if pair else [])]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    notes: dict[str, str] = {}
    for metric in shared:
        rows = [results[metric] for results in by_metric.values()]
        counts = sorted({len(row.scores) for row in rows})
        cells = [table_cell(metric), " / ".join(map(str, counts))]
        cells += [f"{row.mean.within('.1f')} {row.value.unit}".rstrip() for row in rows]
        if pair:
            gap = difference(pair[0][metric], pair[1][metric], despite)
            cells.append(str(gap) + (f": {', '.join(gap.apart)}" if gap.apart else ""))
            notes |= gap.apart
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"- {name}: {why}" for name, why in notes.items()]
    return "\n".join([*lines[: len(shared) + 2], *([""] if notes else []), *lines[len(shared) + 2 :]])
