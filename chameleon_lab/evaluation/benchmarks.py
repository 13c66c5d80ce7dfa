"""The benchmarks of Chameleon's paper (arXiv 2405.09818, section 5) as data: shots, prompt, metric, the paper's values.

- nothing is downloaded: a benchmark runs once its files lie in a folder as their authors publish them, and until then
  says which are missing and where they are
- `unknown`: what the paper does not print. Prompts of text tasks are the lab's, in the usual wording; shots are the
  first items of the split that they come from
- a candidate's likelihood is counted whole and by byte, since the paper does not say which

```python
results = run_benchmark(lab, "PIQA", "data/piqa")
print(result_table({"mine": list(results.values())}), BENCHMARKS["PIQA"].paper)
```
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.evaluation.answers import VQA_DEFINITION, boxed_answer, last_number, majority_answer, vqa_accuracy
from chameleon_lab.evaluation.captions import CIDER_DEFINITION, cider
from chameleon_lab.evaluation.prompting import IMAGE_MARK, Progress, PromptContext, Prompting
from chameleon_lab.evaluation.results import Result, evaluation_card, settings_words
from chameleon_lab.files import intact, read_json, read_json_lines, read_table, text_of_file
from chameleon_lab.parts import require_count

LARGEST_FILE = 2**31  # bytes: VQAv2's annotations are half of it
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class BenchmarkItem:
    """One question. Either `choices` and the place of the right one, or `answers`: people's, references, or the one
    that is right. `solution` is what a shot of it says after the context; shots are of the same `group`."""

    text: str
    solution: str
    choices: tuple[str, ...] = ()
    right: int = 0
    answers: tuple[str, ...] = ()
    picture: Path | None = None
    group: str = ""

    @classmethod
    def of_choices(cls, text: str, choices: Sequence[str], right: int, group: str = "") -> BenchmarkItem:
        """Raises ValueError where the right one is none of the choices."""
        if not 0 <= right < len(choices):
            raise ValueError(f"the right answer is number {right} of {len(choices)}")
        return cls(text, choices[right], tuple(choices), right, group=group)


ItemReader = Callable[[Path], Iterator[BenchmarkItem]]
"""The items in a folder, in the order of the files."""


@dataclass(frozen=True)
class Benchmark:
    """A row of the paper's tables.

    `kind`: how it is scored; `files`: what must lie in the folder; `source`: where its authors publish it; `paper`: the
    paper's values in per cent (captions: CIDEr times 100), by model; `shots_from`: what reads the shots, where there
    are any; `answer_of`: what a reply comes to.
    """

    name: str
    kind: Literal["choices", "answer", "caption", "vqa"]
    read: ItemReader
    files: tuple[str, ...]
    source: str
    paper: Mapping[str, float]
    shots: int = 0
    shots_from: ItemReader | None = None
    answer_of: Callable[[str], str | None] = last_number
    stop: str = "\n"
    longest: int = 16
    unknown: tuple[str, ...] = field(default=("the prompt's words", "the split"))

    def require_files(self, folder: Path | str) -> Path:
        """The folder, if the benchmark's files lie in it. Raises ValueError, naming those that lack and where to get
        them, otherwise."""
        folder = Path(folder)
        if missing := [name for name in self.files if not any(folder.glob(name))]:
            raise ValueError(
                f"{self.name} needs {', '.join(missing)} in {folder}. Its authors publish them: {self.source}. Nothing "
                "is downloaded here: put the files into the folder under these names, and run it again."
            )
        return folder


def benchmark_items(
    benchmark: Benchmark, folder: Path | str, read: ItemReader | None = None
) -> Iterator[BenchmarkItem]:
    """Items as they are read. Raises ValueError, naming the folder, for files that are not as published."""
    with intact(folder, f"Get the files of {benchmark.name} anew: {benchmark.source}."):
        yield from (read or benchmark.read)(Path(folder))


# Readers


def _items_of_lines(name: str, item: Callable[[dict[str, Any]], BenchmarkItem], labels: str = "") -> ItemReader:
    """Of a JSON Lines file; `labels`: of the file beside it, whose lines are the right answers, as "label"."""

    def read(folder: Path) -> Iterator[BenchmarkItem]:
        rows = read_json_lines(folder / name)
        right = text_of_file(folder / labels).split() if labels else [""] * len(rows)
        for row, label in zip(rows, right, strict=True):
            yield item(row | {"label": label} if labels else row)

    return read


def _piqa(row: dict[str, Any]) -> BenchmarkItem:
    return BenchmarkItem.of_choices(row["goal"], [f" {row['sol1']}", f" {row['sol2']}"], int(row["label"]))


def _siqa(row: dict[str, Any]) -> BenchmarkItem:
    choices = [f" {row[f'answer{letter}']}" for letter in "ABC"]
    return BenchmarkItem.of_choices(f"{row['context']} {row['question']}", choices, int(row["label"]) - 1)


def _hellaswag(row: dict[str, Any]) -> BenchmarkItem:
    context = f"{row['activity_label']}: {row['ctx']}"
    return BenchmarkItem.of_choices(context, [f" {each}" for each in row["endings"]], int(row["label"]))


def _winogrande(row: dict[str, Any]) -> BenchmarkItem:
    """The sentence up to the gap, then each name with the rest: the likelier sentence is chosen."""
    before, _, after = row["sentence"].partition("_")
    choices = [f" {row[name]}{after}" for name in ("option1", "option2")]
    return BenchmarkItem.of_choices(before.rstrip(), choices, int(row["answer"]) - 1)


def _stem(text: str) -> Callable[[dict[str, Any]], BenchmarkItem]:
    def item(row: dict[str, Any]) -> BenchmarkItem:
        choices = row["question"]["choices"]
        labels = [each["label"] for each in choices]
        words = [f" {each['text']}" for each in choices]
        return BenchmarkItem.of_choices(text.format(row["question"]["stem"]), words, labels.index(row["answerKey"]))

    return item


def _boolq(row: dict[str, Any]) -> BenchmarkItem:
    text = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return BenchmarkItem.of_choices(text, [" no", " yes"], int(row["answer"]))


def _gsm8k(row: dict[str, Any]) -> BenchmarkItem:
    answer = last_number(row["answer"])
    return BenchmarkItem(f"Question: {row['question']}\nAnswer:", f" {row['answer']}", answers=(str(answer),))


def _math(split: str) -> ItemReader:
    def read(folder: Path) -> Iterator[BenchmarkItem]:
        for path in sorted(folder.glob(f"{split}/*/*.json")):
            row = read_table(path)
            answer = boxed_answer(row["solution"])
            text = f"Problem:\n{row['problem']}\n\nSolution:"
            yield BenchmarkItem(text, f" {row['solution']}", answers=(str(answer),))

    return read


def _mmlu(split: str) -> ItemReader:
    def read(folder: Path) -> Iterator[BenchmarkItem]:
        for path in sorted(folder.glob(f"{split}/*_{split}.csv")):
            for question, *choices, letter in csv.reader(io.StringIO(text_of_file(path))):
                options = "".join(f"\n{name}. {each}" for name, each in zip(LETTERS, choices, strict=False))
                names = [f" {name}" for name in LETTERS[: len(choices)]]
                subject = path.name.removesuffix(f"_{split}.csv")
                yield BenchmarkItem.of_choices(f"{question}{options}\nAnswer:", names, LETTERS.index(letter), subject)

    return read


def _captions_of(name: str, pictures: str, split: str) -> ItemReader:
    """Of a file of Karpathy's splits; `pictures`: the folder, or "" for the one that each entry names."""

    def read(folder: Path) -> Iterator[BenchmarkItem]:
        for row in read_table(folder / name, LARGEST_FILE)["images"]:
            if row["split"] == split:
                captions = tuple(each["raw"].strip() for each in row["sentences"])
                picture = folder / (pictures or row["filepath"]) / row["filename"]
                yield BenchmarkItem(f"{IMAGE_MARK}\nCaption:", f" {captions[0]}", answers=captions, picture=picture)

    return read


def _vqa(split: str) -> ItemReader:
    def read(folder: Path) -> Iterator[BenchmarkItem]:
        questions = read_json(folder / f"v2_OpenEnded_mscoco_{split}_questions.json", LARGEST_FILE)["questions"]
        annotations = read_json(folder / f"v2_mscoco_{split}_annotations.json", LARGEST_FILE)["annotations"]
        by_question = {each["question_id"]: each for each in annotations}
        for row in questions:
            people = by_question[row["question_id"]]
            answers = tuple(each["answer"] for each in people["answers"])
            picture = folder / split / f"COCO_{split}_{row['image_id']:012d}.jpg"
            text = f"{IMAGE_MARK}\nQuestion: {row['question']}\nAnswer:"
            yield BenchmarkItem(text, f" {people['multiple_choice_answer']}", answers=answers, picture=picture)

    return read


_ARC = "https://allenai.org/data/arc"
_COCO = "https://cocodataset.org (val2014), and Karpathy's splits, cs.stanford.edu/people/karpathy/deepimagesent"
_HELLASWAG = "https://github.com/rowanz/hellaswag/tree/master/data"
_GSM8K = "https://github.com/openai/grade-school-math"
_MATH = "https://github.com/hendrycks/math"
_UNKNOWN_SHOTS = ("the prompt's words", "the split", "which shots")
_UNKNOWN_VOTES = (*_UNKNOWN_SHOTS, "how replies are sampled for a majority")
_UNKNOWN_CAPTIONS = ("the prompt's words: other models' published prompts", "which shots")

ROWS = (
    Benchmark(
        *(
            "PIQA",
            "choices",
            _items_of_lines("valid.jsonl", _piqa, "valid-labels.lst"),
            ("valid.jsonl", "valid-labels.lst"),
        ),
        source="https://yonatanbisk.com/piqa",
        paper={"7B": 79.6, "34B": 83.3},
    ),
    Benchmark(
        *("SIQA", "choices", _items_of_lines("dev.jsonl", _siqa, "dev-labels.lst"), ("dev.jsonl", "dev-labels.lst")),
        source="https://leaderboard.allenai.org/socialiqa",
        paper={"7B": 57.0, "34B": 63.3},
    ),
    Benchmark(
        *("HellaSwag", "choices", _items_of_lines("hellaswag_val.jsonl", _hellaswag), ("hellaswag_val.jsonl",)),
        source=_HELLASWAG,
        paper={"7B": 74.2, "34B": 82.7},
    ),
    Benchmark(
        "HellaSwag, 10 shots",
        "choices",
        _items_of_lines("hellaswag_val.jsonl", _hellaswag),
        ("hellaswag_val.jsonl", "hellaswag_train.jsonl"),
        source=_HELLASWAG,
        paper={"7B": 75.6, "34B": 85.1},
        shots=10,
        shots_from=_items_of_lines("hellaswag_train.jsonl", _hellaswag),
        unknown=_UNKNOWN_SHOTS,
    ),
    Benchmark(
        *("WinoGrande", "choices", _items_of_lines("dev.jsonl", _winogrande), ("dev.jsonl",)),
        source="https://winogrande.allenai.org",
        paper={"7B": 70.4, "34B": 78.5},
    ),
    Benchmark(
        "ARC-E",
        "choices",
        _items_of_lines("ARC-Easy-Test.jsonl", _stem("Question: {}\nAnswer:")),
        ("ARC-Easy-Test.jsonl",),
        source=_ARC,
        paper={"7B": 76.1, "34B": 84.1},
    ),
    Benchmark(
        "ARC-C",
        "choices",
        _items_of_lines("ARC-Challenge-Test.jsonl", _stem("Question: {}\nAnswer:")),
        ("ARC-Challenge-Test.jsonl",),
        source=_ARC,
        paper={"7B": 46.5, "34B": 59.7},
    ),
    Benchmark(
        *("OBQA", "choices", _items_of_lines("test.jsonl", _stem("{}")), ("test.jsonl",)),
        source="https://allenai.org/data/open-book-qa",
        paper={"7B": 51.0, "34B": 54.0},
    ),
    Benchmark(
        *("BoolQ", "choices", _items_of_lines("dev.jsonl", _boolq), ("dev.jsonl",)),
        source="https://github.com/google-research-datasets/boolean-questions",
        paper={"7B": 81.4, "34B": 86.0},
    ),
    Benchmark(
        *("MMLU", "choices", _mmlu("test"), ("test/*_test.csv", "dev/*_dev.csv")),
        source="https://github.com/hendrycks/test",
        paper={"7B": 52.1, "34B": 65.8},
        shots=5,
        shots_from=_mmlu("dev"),
        unknown=("the prompt's words", "how many shots: five of the subject are MMLU's own"),
    ),
    Benchmark(
        *("GSM8K", "answer", _items_of_lines("test.jsonl", _gsm8k), ("test.jsonl", "train.jsonl")),
        source=_GSM8K,
        paper={"7B": 41.6, "34B": 61.4, "7B maj@8": 50.9, "34B maj@32": 77.0},
        shots=8,
        shots_from=_items_of_lines("train.jsonl", _gsm8k),
        stop="\nQuestion:",
        longest=256,
        unknown=_UNKNOWN_VOTES,
    ),
    Benchmark(
        *("MATH", "answer", _math("test"), ("test/*/*.json", "train/*/*.json")),
        source=_MATH,
        paper={"7B": 11.5, "34B": 22.5, "7B maj@4": 12.9, "34B maj@4": 24.7},
        shots=4,
        shots_from=_math("train"),
        answer_of=boxed_answer,
        stop="\nProblem:",
        longest=512,
        unknown=_UNKNOWN_VOTES,
    ),
    Benchmark(
        "COCO",
        "caption",
        _captions_of("dataset_coco.json", "", "test"),
        ("dataset_coco.json", "val2014"),
        source=_COCO,
        paper={"34B": 120.2, "34B SFT, 0 shots": 140.8, "34B MultiTask": 139.1},
        shots=2,
        shots_from=_captions_of("dataset_coco.json", "", "val"),
        longest=30,
        unknown=_UNKNOWN_CAPTIONS,
    ),
    Benchmark(
        "Flickr30k",
        "caption",
        _captions_of("dataset_flickr30k.json", "flickr30k-images", "test"),
        ("dataset_flickr30k.json", "flickr30k-images"),
        source="https://shannon.cs.illinois.edu/DenotationGraph, and Karpathy's splits",
        paper={"34B": 74.7, "34B SFT": 82.3, "34B MultiTask": 76.2},
        shots=2,
        shots_from=_captions_of("dataset_flickr30k.json", "flickr30k-images", "val"),
        longest=30,
        unknown=_UNKNOWN_CAPTIONS,
    ),
    Benchmark(
        "VQAv2",
        "vqa",
        _vqa("val2014"),
        tuple(
            name.format(split)
            for split in ("val2014", "train2014")
            for name in ("{}", "v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json")
        ),
        source="https://visualqa.org/download.html",
        paper={"34B": 66.0, "34B MultiTask": 69.6},
        shots=2,
        shots_from=_vqa("train2014"),
        unknown=("the prompt's words", "the split (here val2014; test-dev is judged by a server)", "which shots"),
    ),
)
BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({each.name: each for each in ROWS})
"""By name. The paper has no quantitative metric of pictures that are drawn, and none of its image tokenizer."""


def benchmark_table() -> str:
    """The benchmarks as a table in Markdown."""
    lines = ["| benchmark | scored by | shots | the paper's values | not known |", "|---|---|---|---|---|"]
    words = {
        "choices": "the likeliest candidate",
        "answer": "the answer, or the majority's of N",
        "caption": "CIDEr-D x 100, 30 tokens",
        "vqa": "VQA accuracy",
    }
    for each in ROWS:
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
    if benchmark.kind == "choices":
        scores = _choice_scores(prompting, contexts, items, progress)
        definition = "share of items whose right candidate is the likeliest"
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
    whole, by_byte = list[bool](), list[bool]()
    for item in items:
        some = np.array([next(logs) for _ in item.choices])
        whole.append(int(some.argmax()) == item.right)
        by_byte.append(int((some / [len(each.encode()) for each in item.choices]).argmax()) == item.right)
    return {"accuracy": np.array(whole), "accuracy, by byte": np.array(by_byte)}


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
