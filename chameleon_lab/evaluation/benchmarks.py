"""Benchmarks of the papers of Chameleon and CM3Leon as data, and how they run: prompt, metric, the papers' values.

- nothing is downloaded: a benchmark runs once its files lie in a folder as their authors publish them, and until then
  says which are missing and where they are
- a candidate's likelihood is counted whole and by byte, since the papers do not say which

```python
results = run_benchmark(lab, "PIQA", "data/piqa")
print(result_table({"mine": list(results.values())}), BENCHMARKS["PIQA"].paper)
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import numpy as np

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.evaluation.answers import NDCG_DEFINITION, VQA_DEFINITION, majority_answer, ndcg, vqa_accuracy
from chameleon_lab.evaluation.benchmark_items import Benchmark, BenchmarkItem, benchmark_items
from chameleon_lab.evaluation.captions import CIDER_DEFINITION, cider
from chameleon_lab.evaluation.chameleon_table import CHAMELEON_ROWS
from chameleon_lab.evaluation.cm3leon_table import CM3LEON_ROWS
from chameleon_lab.evaluation.prompting import Progress, PromptContext, Prompting
from chameleon_lab.evaluation.results import Result, evaluation_card, settings_words
from chameleon_lab.parts import require_count

BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({each.name: each for each in (*CHAMELEON_ROWS, *CM3LEON_ROWS)})
"""By name."""


def benchmark_table() -> str:
    """The benchmarks as a table in Markdown."""
    lines = ["| benchmark | scored by | shots | its paper's values | not known |", "|---|---|---|---|---|"]
    words = {
        "choices": "the likeliest candidate",
        "ranking": "NDCG of the candidates by their likelihood",
        "answer": "the answer, or the majority's of N",
        "caption": "CIDEr-D x 100, 30 tokens",
        "vqa": "VQA accuracy",
    }
    for each in BENCHMARKS.values():
        values = ", ".join(f"{model} {value}" for model, value in each.paper.items())
        lines.append(f"| {each.name} | {words[each.kind]} | {each.shots} | {values} | {'; '.join(each.unknown)} |")
    return "\n".join(lines)


# Running


def run_benchmark(
    lab: Chameleon,
    benchmark: Benchmark | str,
    folder: Path | str,
    *,
    limit: int | None = None,
    votes: int = 1,
    turns: bool = False,
    seed: int = 0,
    batch: int = 16,
    progress: Progress | None = None,
) -> dict[str, Result]:
    """A model's values on a benchmark whose files lie in a folder, by metric.

    `limit`: only so many items, which the card then says. `votes`: replies a question, whose majority counts (maj@N);
    one is the likeliest words, several are sampled at the lab's temperature, or at 0.7 where that is 0. `turns`:
    whether each context is a user's turn. Raises ValueError for an unknown name and for missing files.
    """
    if isinstance(benchmark, str):
        if benchmark not in BENCHMARKS:
            raise ValueError(f"No benchmark is called {benchmark!r}; there are {', '.join(BENCHMARKS)}.")
        benchmark = BENCHMARKS[benchmark]
    for name, count in (("items", limit), ("votes", votes)):
        if count is not None:
            require_count(count, name, 1)
    if votes > 1 and benchmark.kind != "answer":
        raise ValueError(f"{benchmark.name} has no majority of {votes}: votes are for GSM8K and MATH.")
    folder = benchmark.require_files(folder)
    shots = _shots_of(benchmark, folder)
    items = list(islice(benchmark_items(benchmark, folder), limit))
    contexts = [_context_of(shots.get(item.group, ()), item) for item in items]
    prompting = Prompting(lab, batch, turns)
    if benchmark.kind in ("choices", "ranking"):
        scores = _choice_scores(prompting, contexts, items, progress)
        definition = "share of items whose right candidate is the likeliest"
        if benchmark.kind == "ranking":
            definition = NDCG_DEFINITION
    else:
        scores, definition = _reply_scores(prompting, benchmark, contexts, items, votes, seed, progress)
    results: dict[str, Result] = {}
    for metric, values in scores.items():
        part = "" if limit is None else f", the first {limit}"
        card = evaluation_card(
            f"{benchmark.name} {metric}",
            f"{definition}; {benchmark.shots} shots" + ("; each context a user's turn" if turns else ""),
            f"{benchmark.name}{part}",
            [
                f"{context.text}\0{'|'.join((*item.choices, *item.answers))}"
                for context, item in zip(contexts, items, strict=True)
            ],
            n=len(items),
            lab=lab,
            pictures=any(item.picture for item in items),
            seed=seed if votes > 1 else None,
        )
        results[metric] = Result.of(values, card, "" if benchmark.kind == "caption" else "%")
    return results


def _shots_of(benchmark: Benchmark, folder: Path) -> dict[str, list[BenchmarkItem]]:
    """The first items of each group of the split that shots come from."""
    groups: dict[str, list[BenchmarkItem]] = {}
    if benchmark.shots and benchmark.shots_from:
        for item in benchmark_items(benchmark, folder, benchmark.shots_from):
            some = groups.setdefault(item.group, [])
            if len(some) < benchmark.shots:
                some.append(item)
            elif not item.group:
                break
    return groups


def _context_of(shots: Sequence[BenchmarkItem], item: BenchmarkItem) -> PromptContext:
    text = "".join(f"{shot.text}{shot.solution}\n\n" for shot in shots) + item.text
    return PromptContext(text, [each.picture for each in (*shots, item) if each.picture is not None])


def _choice_scores(
    prompting: Prompting, contexts: Sequence[PromptContext], items: Sequence[BenchmarkItem], progress: Progress | None
) -> dict[str, np.ndarray]:
    requests = [(context, each) for context, item in zip(contexts, items, strict=True) for each in item.choices]
    logs = iter([answer.log for answer in prompting.likelihoods(requests, progress)])
    scores: dict[str, list[float]] = {}
    for item in items:
        whole = np.array([next(logs) for _ in item.choices])
        for by, some in {"": whole, ", by byte": whole / [len(each.encode()) for each in item.choices]}.items():
            if item.relevance:
                scores.setdefault(f"NDCG{by}", []).append(ndcg(some, item.relevance))
            else:
                scores.setdefault(f"accuracy{by}", []).append(int(some.argmax()) == item.right)
    return {metric: np.array(values) for metric, values in scores.items()}


def _reply_scores(
    prompting: Prompting,
    benchmark: Benchmark,
    contexts: Sequence[PromptContext],
    items: Sequence[BenchmarkItem],
    votes: int,
    seed: int,
    progress: Progress | None,
) -> tuple[dict[str, np.ndarray], str]:
    settings = None
    if votes > 1:
        own = prompting.lab.settings
        settings = own.changed(temperature=own.temperature or 0.7)
    several = [
        prompting.replies(
            contexts,
            until=[benchmark.stop],
            max_tokens=benchmark.longest,
            settings=settings,
            seed=seed + vote * len(contexts),
            progress=progress,
        )
        for vote in range(votes)
    ]
    if benchmark.kind == "caption":
        values = 100 * cider(several[0], [item.answers for item in items])
        return {"CIDEr-D": values}, CIDER_DEFINITION
    if benchmark.kind == "vqa":
        pairs = zip(several[0], items, strict=True)
        return {"accuracy": np.array([vqa_accuracy(reply, item.answers) for reply, item in pairs])}, VQA_DEFINITION
    majority = [majority_answer(replies, benchmark.answer_of) for replies in zip(*several, strict=True)]
    rights = np.array([answer == item.answers[0] for answer, item in zip(majority, items, strict=True)])
    sampled = f"; {settings_words(settings)}" if settings else ""
    return {
        f"maj@{votes}": rights
    }, f"share of items whose answer, by {benchmark.answer_of.__name__}, is equal{sampled}"
