"""The fine-tuned 7B's table of text tasks in CM3Leon's paper (arXiv 2309.02591): six benchmarks, none with shots.

`unknown`: what the paper does not print. Prompts are in the words that the paper's examples have; the picture comes
first, as in the mode of its code that puts it before the words.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from chameleon_lab.evaluation.benchmark_items import LARGEST_FILE, Benchmark, BenchmarkItem
from chameleon_lab.evaluation.chameleon_table import COCO_SOURCE, karpathy_captions, vqa_items
from chameleon_lab.evaluation.prompting import IMAGE_MARK
from chameleon_lab.files import read_json, read_table

MODEL = "7B, fine-tuned"
UNKNOWN = ("the prompt's words", "the split")


def _vizwiz(folder: Path) -> Iterator[BenchmarkItem]:
    for row in read_json(folder / "val.json", LARGEST_FILE):
        answers = tuple(each["answer"] for each in row["answers"])
        text = f"{IMAGE_MARK}\nQuestion: {row['question']}\nAnswer:"
        yield BenchmarkItem(text, f" {answers[0]}", answers=answers, picture=folder / "val" / Path(row["image"]).name)


def _paragraphs(folder: Path) -> Iterator[BenchmarkItem]:
    split = set(read_json(folder / "test_split.json", LARGEST_FILE))
    for row in read_json(folder / "paragraphs_v1.json", LARGEST_FILE):
        if row["image_id"] in split:
            *_, place, name = PurePosixPath(row["url"]).parts
            if place not in ("VG_100K", "VG_100K_2"):
                raise ValueError(f"the picture of {row['image_id']} is in {place}, no folder of Visual Genome")
            words = row["paragraph"].strip()
            text = f"{IMAGE_MARK}\nDescribe the picture in very fine detail:"
            yield BenchmarkItem(text, f" {words}", answers=(words,), picture=folder / place / name)


def _dialogues(folder: Path) -> Iterator[BenchmarkItem]:
    """The rounds whose hundred candidates people have judged, one of each dialogue, with the rounds before."""
    data = read_table(folder / "visdial_1.0_val.json", LARGEST_FILE)["data"]
    ratings = read_json(folder / "visdial_1.0_val_dense_annotations.json", LARGEST_FILE)
    relevance = {each["image_id"]: (each["round_id"], each["gt_relevance"]) for each in ratings}
    questions, answers = data["questions"], data["answers"]
    for row in data["dialogs"]:
        if row["image_id"] not in relevance:
            continue
        rounds, values = relevance[row["image_id"]]
        *before, last = row["dialog"][:rounds]
        lines = [IMAGE_MARK, row["caption"]]
        for each in before:
            lines.append(f"Question: {questions[each['question']]}? Answer: {answers[each['answer']]}")
        yield BenchmarkItem(
            "\n".join([*lines, f"Question: {questions[last['question']]}? Answer:"]),
            f" {answers[last['answer']]}",
            choices=tuple(f" {answers[each]}" for each in last["answer_options"]),
            relevance=_as_many(values, last["answer_options"]),
            picture=folder / "VisualDialog_val2018" / f"VisualDialog_val2018_{row['image_id']:012d}.jpg",
        )


def _as_many(values: list[float], options: list[Any]) -> tuple[float, ...]:
    if len(values) != len(options):
        raise ValueError(f"{len(values)} values of relevance are given for {len(options)} candidates")
    return tuple(float(each) for each in values)


CM3LEON_ROWS = (
    Benchmark(
        "CM3Leon COCO",
        "caption",
        karpathy_captions("dataset_coco.json", "", "test", f"{IMAGE_MARK}\nDescribe the picture:"),
        ("dataset_coco.json", "val2014"),
        source=COCO_SOURCE,
        paper={MODEL: 61.6},
        longest=30,
        unknown=UNKNOWN,
    ),
    Benchmark(
        "CM3Leon VQA2",
        "vqa",
        vqa_items("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json", "val2014"),
        ("val2014", "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
        source="https://visualqa.org/download.html",
        paper={MODEL: 47.6},
        unknown=("the prompt's words", "the split (here val2014; test-dev is judged by a server)"),
    ),
    Benchmark(
        *("VizWiz", "vqa", _vizwiz, ("val.json", "val")),
        source="https://vizwiz.org/tasks-and-datasets/vqa",
        paper={MODEL: 37.6},
        unknown=("the prompt's words", "the split (here val; test-dev is judged by a server)"),
    ),
    Benchmark(
        "OKVQA",
        "vqa",
        vqa_items("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json", "val2014"),
        ("val2014", "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
        source="https://okvqa.allenai.org/download.html",
        paper={MODEL: 23.8},
        unknown=UNKNOWN,
    ),
    Benchmark(
        *("Image paragraphs", "caption", _paragraphs, ("paragraphs_v1.json", "test_split.json", "VG_100K*")),
        source="https://cs.stanford.edu/people/ranjaykrishna/im2p, and Visual Genome's pictures",
        paper={MODEL: 10.5},
        longest=120,
        unknown=(*UNKNOWN, "how long a paragraph may be"),
    ),
    Benchmark(
        "VisDial",
        "ranking",
        _dialogues,
        ("visdial_1.0_val.json", "visdial_1.0_val_dense_annotations.json", "VisualDialog_val2018"),
        source="https://visualdialog.org/data",
        paper={MODEL: 22.6},
        unknown=(*UNKNOWN, "how candidates are ranked"),
    ),
)
"""CIDEr is printed times 100 there as elsewhere."""
