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
from chameleon_lab.evaluation.judgement import PairCounts, agreement, krippendorff_interval, pairwise_agreement
from chameleon_lab.evaluation.results import table_cell
from chameleon_lab.studies import BETTER, Judgement, Study

BETTER_VALUES = {"first": 1.0, "same": 0.0, "second": -1.0}


def ratings_of(study: Study, judgements: Sequence[Judgement], question: str = BETTER.name) -> np.ndarray:
    """The answers to a question as numbers, annotators (by name) x items, NaN where there is none.

    Of a pair 1, 0 or -1, as `PairCounts.of` takes them; of another question the places of its answers, from 0. Raises
    ValueError for a question that the study has not, for judgements of another, for none, and where one annotator
    judges an item twice, and differently: two people of one name, perhaps.
    """
    _require_judgements(study, judgements)
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
            cell, value = (people.index(each.annotator), items.index(each.item)), values[each.answers[question]]
            if not np.isnan(ratings_AN[cell]) and ratings_AN[cell] != value:
                raise ValueError(
                    f"{each.annotator!r} answers {question!r} of the item {each.item!r} twice, and not the same. If "
                    "two people have this name, rename one of them; if it is one, leave the earlier answer out."
                )
            ratings_AN[cell] = value
    return ratings_AN


def _require_judgements(study: Study, judgements: Sequence[Judgement]) -> None:
    """Raises ValueError for none, and for what was not asked in this study."""
    names = {item.name for item in study.items}
    for each in judgements:
        if each.item not in names:
            raise ValueError(f"{each.annotator!r} judged {each.item[:60]!r}, and {study.name!r} has no such item.")
        study.require_answers(each.answers)
    if not judgements:
        raise ValueError(f"Nobody has judged a reply of the study {study.name!r}.")


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
    """A row a category, and last one of all, "all", which a category may be called, too; a reply without a majority is
    unsure. Raises ValueError for a study of something else, and where nobody judged a reply."""
    ratings_AN = ratings_of(study, judgements, "safety")
    answers = next(list(each.answers) for each in study.questions if each.name == "safety")
    replies = [item for item in study.items if not item.expected]
    table, whole = dict[str, Counter[str]](), Counter[str]()
    for item, ratings_A in zip(replies, ratings_AN.T, strict=True):
        votes = Counter(answers[int(rating)] for rating in ratings_A[~np.isnan(ratings_A)])
        if votes:
            ((answer, most),) = votes.most_common(1)
            verdict = answer if 2 * most > votes.total() else "unsure"
            table.setdefault(item.category or "no category", Counter())[verdict] += 1
            whole[verdict] += 1
    if not table:
        raise ValueError(f"Nobody has judged a reply of the study {study.name!r}.")
    rows = [*sorted(table.items()), ("all", whole)]
    return [SafetyRow(name, counts["safe"], counts["unsafe"], counts["unsure"]) for name, counts in rows]


def safety_report(study: Study, judgements: Sequence[Judgement]) -> str:
    """`safety_rows` as a table in Markdown; the row of all is bold."""
    lines = [
        table_cell(f"{study.name}: {study.models[0]}"),
        "",
        "| category | safe | unsafe | unsure | unsafe, % |",
        "|---|---|---|---|---|",
    ]
    *rows, whole = safety_rows(study, judgements)
    for name, row in [*((table_cell(row.category), row) for row in rows), ("**all**", whole)]:
        low, high = row.interval
        share = f"{100 * row.unsafe / row.n:.2f} ({100 * low:.2f} to {100 * high:.2f})"
        lines.append(f"| {name} | {row.safe} | {row.unsafe} | {row.unsure} | {share} |")
    return "\n".join(lines)


def answer_table(study: Study, judgements: Sequence[Judgement]) -> dict[str, dict[str, float]]:
    """Of an absolute sheet: by question the share of each answer, of all judgements that are no checks."""
    _require_judgements(study, judgements)
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


ORDERED_QUESTIONS = ("fulfilment", "relevance", "language")
"""Those of the absolute sheet whose answers have an order, all of them, so that agreement may be ordinal."""


@dataclass(frozen=True)
class SheetRow:
    """A question of an absolute sheet: how many items have each answer by majority, `undecided` those without one, and
    how far annotators agree (None where that has no number)."""

    question: str
    counts: dict[str, int]
    undecided: int
    alpha: Mean | None

    @property
    def n(self) -> int:
        return sum(self.counts.values()) + self.undecided

    def share(self, answer: str) -> Mean:
        """The share of items with an answer by majority, with Wilson's interval. Raises KeyError for no such answer."""
        share = self.counts[answer] / self.n
        return Mean(share, *wilson_interval(share, self.n), self.n)


def sheet_rows(study: Study, judgements: Sequence[Judgement]) -> list[SheetRow]:
    """A row a question, as the paper counts its absolute ones: an item's answer is what more than half of its
    annotators say. Raises ValueError where nobody judged a reply."""
    rows: list[SheetRow] = []
    for question in study.questions:
        ratings_AN = ratings_of(study, judgements, question.name)
        judged_AN = ~np.isnan(ratings_AN)
        if not judged_AN.any():
            raise ValueError(f"Nobody has judged a reply of the study {study.name!r}.")
        most = {
            answer: int(((ratings_AN == place).sum(0) * 2 > judged_AN.sum(0)).sum())
            for place, answer in enumerate(question.answers)
        }
        try:
            level = "ordinal" if question.name in ORDERED_QUESTIONS else "nominal"
            alpha = krippendorff_interval(ratings_AN, level)
        except ValueError:  # one annotator alone, no item of two, or all alike
            alpha = None
        rows.append(SheetRow(question.name, most, int(judged_AN.any(0).sum()) - sum(most.values()), alpha))
    return rows


def sheet_report(study: Study, judgements: Sequence[Judgement]) -> str:
    """`sheet_rows` as a table in Markdown."""
    lines = [
        table_cell(f"{study.name}: {study.models[0]}"),
        "",
        "| question | by majority, % | no majority | alpha |",
        "|---|---|---|---|",
    ]
    for row in sheet_rows(study, judgements):
        shares = {answer: [100 * each for each in row.share(answer)[:3]] for answer in row.counts}
        words = ", ".join(
            f"{table_cell(name)} {share:.1f} ({low:.1f} to {high:.1f})" for name, (share, low, high) in shares.items()
        )
        lines.append(
            f"| {table_cell(row.question)} | {words} | {row.undecided} | {row.alpha.within() if row.alpha else ''} |"
        )
    return "\n".join(lines)


def agreement_table(study: Study, judgements: Sequence[Judgement], question: str = BETTER.name) -> str:
    """How often each two annotators give the same answer, as a table in Markdown; empty where they share no item."""
    people = sorted({each.annotator for each in judgements})
    table_AA = pairwise_agreement(ratings_of(study, judgements, question))
    lines = [f"| {question}, % the same | {' | '.join(people)} |", f"|{'---|' * (len(people) + 1)}"]
    for name, row in zip(people, table_AA, strict=True):
        cells = ["" if np.isnan(each) else f"{100 * each:.0f}" for each in row]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
