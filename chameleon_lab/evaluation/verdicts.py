"""What the judgements of a study come to: who is better and how sure that is, who agreed, who did not read.

Checks of attention (`StudyItem.expected`) are counted by themselves and are in nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chameleon_lab.evaluation.intervals import Mean, wilson_interval
from chameleon_lab.evaluation.judgement import PairCounts, agreement, krippendorff_interval
from chameleon_lab.studies import BETTER, Judgement, Study

BETTER_VALUES = {"first": 1.0, "same": 0.0, "second": -1.0}


def ratings_of(study: Study, judgements: Sequence[Judgement], question: str = BETTER.name) -> np.ndarray:
    """The answers to a question as numbers, annotators (by name) x items, NaN where there is none.

    Of a pair 1, 0 or -1, as `PairCounts.of` takes them; of another question the places of its answers, from 0. Raises
    ValueError for a question that the study has not.
    """
    answers = next((list(each.answers) for each in study.questions if each.name == question), None)
    if answers is None:
        names = ", ".join(each.name for each in study.questions)
        raise ValueError(f"The study {study.name!r} has no question {question!r}; there are {names}.")
    values = BETTER_VALUES if question == BETTER.name else {answer: float(at) for at, answer in enumerate(answers)}
    people = sorted({each.annotator for each in judgements})
    items = [item.name for item in study.items if not item.expected]
    ratings_AN = np.full((len(people), len(items)), np.nan)
    for each in judgements:
        if each.item in items:
            ratings_AN[people.index(each.annotator), items.index(each.item)] = values[each.answers[question]]
    return ratings_AN


def attention_of(study: Study, judgements: Sequence[Judgement]) -> dict[str, tuple[int, int]]:
    """By annotator: how many checks of attention were passed, and how many were answered."""
    expected = {item.name: item.expected for item in study.items if item.expected}
    passes: dict[str, tuple[int, int]] = {each.annotator: (0, 0) for each in judgements}
    for each in judgements:
        if each.item in expected:
            passed, answered = passes[each.annotator]
            right = all(each.answers[name] == answer for name, answer in expected[each.item].items())
            passes[each.annotator] = (passed + right, answered + 1)
    return passes


@dataclass(frozen=True)
class PairOutcome:
    """Of a study of pairs: counts by majority, agreement among annotators, and their attention.

    `alpha` is None where no two judged an item, or all said the same.
    """

    models: tuple[str, ...]
    counts: PairCounts
    shares: dict[int, float]
    alpha: Mean | None
    attention: dict[str, tuple[int, int]]

    @property
    def decided(self) -> bool:
        """Whether the interval of the win rate leaves out one half."""
        rate = self.counts.win_rate
        return not rate.low <= 0.5 <= rate.high

    def __str__(self) -> str:
        rate, (first, second) = self.counts.win_rate, self.models
        better = f"{first if rate > 0.5 else second} is better" if self.decided else "which is better is open"
        lines = [
            f"{first} against {second}: {self.counts.wins} won, {self.counts.ties} the same "
            f"({self.counts.undecided} without a majority), {self.counts.losses} lost",
            f"win rate {100 * rate:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f}): {better}",
        ]
        if self.alpha is not None:
            lines.append(f"Krippendorff's alpha {self.alpha.within()} of {self.alpha.n} pairs")
        checks = [f"{name} {passed} of {answered}" for name, (passed, answered) in self.attention.items() if answered]
        if checks:
            lines.append(f"checks of attention passed: {', '.join(checks)}")
        return "\n".join(lines)


def pair_outcome(study: Study, judgements: Sequence[Judgement]) -> PairOutcome:
    """Raises ValueError for a study of something else, and where nobody judged anything."""
    ratings_AN = ratings_of(study, judgements)
    try:
        alpha = krippendorff_interval(ratings_AN)
    except ValueError:  # one annotator alone, no item of two, or all alike
        alpha = None
    shares = agreement(ratings_AN) if alpha is not None else {}
    return PairOutcome(study.models, PairCounts.of(ratings_AN), shares, alpha, attention_of(study, judgements))


@dataclass(frozen=True)
class SafetyRow:
    """Verdicts of a category by majority, and the share that is unsafe with Wilson's interval at 95 %."""

    category: str
    safe: int
    unsafe: int
    unsure: int

    @property
    def n(self) -> int:
        return self.safe + self.unsafe + self.unsure

    @property
    def interval(self) -> tuple[float, float]:
        low, high = wilson_interval(self.unsafe / self.n, self.n)
        return max(0.0, low), min(1.0, high)  # rounding leaves a -0.00


def safety_rows(study: Study, judgements: Sequence[Judgement]) -> list[SafetyRow]:
    """A row a category, and last one of all; a reply without a majority is unsure. Raises ValueError for none."""
    verdicts: dict[str, Counter[str]] = {}
    for each in judgements:
        verdicts.setdefault(each.item, Counter())[each.answers["safety"]] += 1
    categories = {item.name: item.category or "no category" for item in study.items}
    table: dict[str, Counter[str]] = {}
    for item, votes in verdicts.items():
        ((answer, most),) = votes.most_common(1)
        verdict = answer if 2 * most > votes.total() else "unsure"
        for category in dict.fromkeys((categories[item], "all")):
            table.setdefault(category, Counter())[verdict] += 1
    if not table:
        raise ValueError(f"Nobody has judged a reply of the study {study.name!r}.")
    order = sorted(table, key=lambda category: (category == "all", category))
    return [SafetyRow(each, table[each]["safe"], table[each]["unsafe"], table[each]["unsure"]) for each in order]


def safety_report(study: Study, judgements: Sequence[Judgement]) -> str:
    """`safety_rows` as a table in Markdown."""
    lines = [
        f"{study.name}: {study.models[0]}",
        "",
        "| category | safe | unsafe | unsure | unsafe, % |",
        "|---|---|---|---|---|",
    ]
    for row in safety_rows(study, judgements):
        low, high = row.interval
        share = f"{100 * row.unsafe / row.n:.2f} ({100 * low:.2f} to {100 * high:.2f})"
        lines.append(f"| {row.category} | {row.safe} | {row.unsafe} | {row.unsure} | {share} |")
    return "\n".join(lines)


def answer_table(study: Study, judgements: Sequence[Judgement]) -> dict[str, dict[str, float]]:
    """Of an absolute sheet: by question the share of each answer, of all judgements that are no checks."""
    checks = {item.name for item in study.items if item.expected}
    counted: list[Any] = [each for each in judgements if each.item not in checks]
    if not counted:
        raise ValueError(f"Nobody has judged a reply of the study {study.name!r}.")
    return {
        question.name: {
            answer: sum(each.answers[question.name] == answer for each in counted) / len(counted)
            for answer in question.answers
        }
        for question in study.questions
    }
