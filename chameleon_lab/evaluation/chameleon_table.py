"""The tables of Chameleon's paper (arXiv 2405.09818, section 5): each benchmark's files, shots, prompt and values.

`unknown`: what the paper does not print. Prompts of text tasks are the lab's, in the usual wording; shots are the first
items of the split that they come from.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chameleon_lab.evaluation.answers import boxed_answer, last_number
from chameleon_lab.evaluation.benchmark_items import LARGEST_FILE, Benchmark, BenchmarkItem, ItemReader
from chameleon_lab.evaluation.prompting import IMAGE_MARK
from chameleon_lab.files import read_json, read_json_lines, read_table, text_of_file

LETTERS = "ABCDEFGH"


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


def karpathy_captions(name: str, pictures: str, split: str, prompt: str = f"{IMAGE_MARK}\nCaption:") -> ItemReader:
    """Of a file of Karpathy's splits; `pictures`: the folder, or "" for the one that each entry names."""

    def read(folder: Path) -> Iterator[BenchmarkItem]:
        for row in read_table(folder / name, LARGEST_FILE)["images"]:
            if row["split"] == split:
                captions = tuple(each["raw"].strip() for each in row["sentences"])
                picture = folder / (pictures or row["filepath"]) / row["filename"]
                yield BenchmarkItem(prompt, f" {captions[0]}", answers=captions, picture=picture)

    return read


def vqa_items(questions: str, annotations: str, split: str) -> ItemReader:
    """Of two files in VQA's format, whose pictures are COCO's of a split."""

    def read(folder: Path) -> Iterator[BenchmarkItem]:
        rows = read_json(folder / annotations, LARGEST_FILE)["annotations"]
        by_question = {each["question_id"]: each for each in rows}
        for row in read_json(folder / questions, LARGEST_FILE)["questions"]:
            people = by_question[row["question_id"]]
            answers = tuple(each["answer"] for each in people["answers"])
            common = people.get("multiple_choice_answer") or Counter(answers).most_common(1)[0][0]
            picture = folder / split / f"COCO_{split}_{row['image_id']:012d}.jpg"
            text = f"{IMAGE_MARK}\nQuestion: {row['question']}\nAnswer:"
            yield BenchmarkItem(text, f" {common}", answers=answers, picture=picture)

    return read


def _vqa2(split: str) -> ItemReader:
    return vqa_items(f"v2_OpenEnded_mscoco_{split}_questions.json", f"v2_mscoco_{split}_annotations.json", split)


_ARC = "https://allenai.org/data/arc"
COCO_SOURCE = "https://cocodataset.org (val2014), and Karpathy's splits, cs.stanford.edu/people/karpathy/deepimagesent"
_HELLASWAG = "https://github.com/rowanz/hellaswag/tree/master/data"
_GSM8K = "https://github.com/openai/grade-school-math"
_MATH = "https://github.com/hendrycks/math"
_UNKNOWN_SHOTS = ("the prompt's words", "the split", "which shots")
_UNKNOWN_VOTES = (*_UNKNOWN_SHOTS, "how replies are sampled for a majority")
_UNKNOWN_CAPTIONS = ("the prompt's words: other models' published prompts", "which shots")

CHAMELEON_ROWS = (
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
        karpathy_captions("dataset_coco.json", "", "test"),
        ("dataset_coco.json", "val2014"),
        source=COCO_SOURCE,
        paper={"34B": 120.2, "34B SFT, 0 shots": 140.8, "34B MultiTask": 139.1},
        shots=2,
        shots_from=karpathy_captions("dataset_coco.json", "", "val"),
        longest=30,
        unknown=_UNKNOWN_CAPTIONS,
    ),
    Benchmark(
        "Flickr30k",
        "caption",
        karpathy_captions("dataset_flickr30k.json", "flickr30k-images", "test"),
        ("dataset_flickr30k.json", "flickr30k-images"),
        source="https://shannon.cs.illinois.edu/DenotationGraph, and Karpathy's splits",
        paper={"34B": 74.7, "34B SFT": 82.3, "34B MultiTask": 76.2},
        shots=2,
        shots_from=karpathy_captions("dataset_flickr30k.json", "flickr30k-images", "val"),
        longest=30,
        unknown=_UNKNOWN_CAPTIONS,
    ),
    Benchmark(
        "VQAv2",
        "vqa",
        _vqa2("val2014"),
        tuple(
            name.format(split)
            for split in ("val2014", "train2014")
            for name in ("{}", "v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json")
        ),
        source="https://visualqa.org/download.html",
        paper={"34B": 66.0, "34B MultiTask": 69.6},
        shots=2,
        shots_from=_vqa2("train2014"),
        unknown=("the prompt's words", "the split (here val2014; test-dev is judged by a server)", "which shots"),
    ),
)
"""The paper has no quantitative metric of pictures that are drawn, and none of its image tokenizer."""
