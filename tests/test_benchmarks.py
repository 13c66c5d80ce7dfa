"""The paper's benchmarks as data: each reads its authors' files, runs, and says where to get what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.scenes import COLOURS, arrange
from chameleon_lab.evaluation.benchmark_items import Benchmark, BenchmarkItem, benchmark_items
from chameleon_lab.evaluation.benchmarks import BENCHMARKS, benchmark_table, run_benchmark
from chameleon_lab.evaluation.captions import cider


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


STEM = {"stem": "Which is it?", "choices": [{"text": "this", "label": "A"}, {"text": "that", "label": "B"}]}
GSM = [{"question": f"What is {n} + {n}?", "answer": f"Twice {n}. #### {2 * n}"} for n in range(10)]
VQA_QUESTIONS = {"questions": [{"question_id": 5, "image_id": 7, "question": "What is it?"}]}
VQA_ANNOTATIONS = {
    "annotations": [
        {
            "question_id": 5,
            "multiple_choice_answer": "star",
            "answers": [{"answer": "star"}] * 6 + [{"answer": "a"}] * 4,
        }
    ]
}
KARPATHY = {
    "images": [
        {
            "split": split,
            "filepath": "val2014",
            "filename": f"{split}.png",
            "sentences": [{"raw": f"A {split} picture. "}, {"raw": "another"}],
        }
        for split in ("train", "val", "val", "test", "test")
    ]
}
FILES: dict[str, dict[str, str]] = {
    "PIQA": {"valid.jsonl": lines({"goal": "Do", "sol1": "x", "sol2": "y"}), "valid-labels.lst": "1\n"},
    "SIQA": {
        "dev.jsonl": lines({"context": "A.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c"}),
        "dev-labels.lst": "2\n",
    },
    "HellaSwag": {
        "hellaswag_val.jsonl": lines(*[{"activity_label": "L", "ctx": "c", "endings": ["e", "f"], "label": 1}] * 12)
    },
    "WinoGrande": {
        "dev.jsonl": lines({"sentence": "Ann met Ben as _ waved.", "option1": "Ann", "option2": "Ben", "answer": "2"})
    },
    "ARC-E": {"ARC-Easy-Test.jsonl": lines({"question": STEM, "answerKey": "B"})},
    "ARC-C": {"ARC-Challenge-Test.jsonl": lines({"question": STEM, "answerKey": "A"})},
    "OBQA": {"test.jsonl": lines({"question": STEM, "answerKey": "B"})},
    "BoolQ": {"dev.jsonl": lines({"passage": "P", "question": "is it", "title": "t", "answer": True})},
    "MMLU": {
        **{f"dev/{topic}_dev.csv": f"{topic}?,1,2,3,4,C\n" * 6 for topic in ("art", "law")},
        "test/law_test.csv": '"Which, then?",1,2,3,4,B\n',
    },
    "GSM8K": {"test.jsonl": lines(*GSM[:2]), "train.jsonl": lines(*GSM)},
    "MATH": {
        "test/algebra/1.json": json.dumps({"problem": "1/2?", "solution": r"It is \boxed{\frac12}."}),
        **{f"train/algebra/{n}.json": json.dumps({"problem": "p", "solution": r"\boxed{3}"}) for n in range(5)},
    },
    "COCO": {"dataset_coco.json": json.dumps(KARPATHY)},
    "Flickr30k": {"dataset_flickr30k.json": json.dumps(KARPATHY)},
    "VQAv2": {
        f"v2_{name}_{split}_{kind}.json": json.dumps(content)
        for split in ("val2014", "train2014")
        for name, kind, content in (
            ("OpenEnded_mscoco", "questions", VQA_QUESTIONS),
            ("mscoco", "annotations", VQA_ANNOTATIONS),
        )
    },
}
DIALOGUES = {
    "questions": ["is it red", "how many"],
    "answers": ["yes", "no", "two"],
    "dialogs": [
        {
            "image_id": 7,
            "caption": "a star",
            "dialog": [
                {"question": 0, "answer": 0, "gt_index": 0, "answer_options": [0, 1]},
                {"question": 1, "answer": 2, "gt_index": 1, "answer_options": [1, 2]},
                {"question": 0, "answer": 1, "gt_index": 0, "answer_options": [1, 0]},
            ],
        },
        {"image_id": 8, "caption": "nobody judged this", "dialog": []},
    ],
}
PARAGRAPHS = [
    {"image_id": 5, "url": "https://example.org/VG_100K/5.jpg", "paragraph": "not in the split"},
    {"image_id": 7, "url": "https://example.org/VG_100K_2/7.jpg", "paragraph": " A star. It is red. "},
]
FILES |= {
    "CM3Leon COCO": FILES["COCO"],
    "CM3Leon VQA2": {name: text for name, text in FILES["VQAv2"].items() if "train" not in name},
    "VizWiz": {
        "val.json": json.dumps([{"image": "7.jpg", "question": "What is it?", "answers": [{"answer": "star"}] * 10}])
    },
    "OKVQA": {
        "OpenEnded_mscoco_val2014_questions.json": json.dumps(VQA_QUESTIONS),
        "mscoco_val2014_annotations.json": json.dumps(
            {"annotations": [{"question_id": 5, "answers": [{"answer": "a"}] + [{"answer": "star"}] * 9}]}
        ),
    },
    "Image paragraphs": {"paragraphs_v1.json": json.dumps(PARAGRAPHS), "test_split.json": "[7]"},
    "VisDial": {
        "visdial_1.0_val.json": json.dumps({"data": DIALOGUES}),
        "visdial_1.0_val_dense_annotations.json": json.dumps(
            [{"image_id": 7, "round_id": 2, "gt_relevance": [0.2, 1.0]}]
        ),
    },
}
FILES["HellaSwag, 10 shots"] = FILES["HellaSwag"] | {"hellaswag_train.jsonl": FILES["HellaSwag"]["hellaswag_val.jsonl"]}
PICTURES = {
    "COCO": ["val2014/val.png", "val2014/test.png"],
    "Flickr30k": ["flickr30k-images/val.png", "flickr30k-images/test.png"],
    "CM3Leon COCO": ["val2014/test.png"],
    "CM3Leon VQA2": ["val2014/COCO_val2014_000000000007.jpg"],
    "VizWiz": ["val/7.jpg"],
    "OKVQA": ["val2014/COCO_val2014_000000000007.jpg"],
    "Image paragraphs": ["VG_100K_2/7.jpg"],
    "VisDial": ["VisualDialog_val2018/VisualDialog_val2018_000000000007.jpg"],
    "VQAv2": [f"{split}/COCO_{split}_000000000007.jpg" for split in ("val2014", "train2014")],
}
FIRST: dict[str, tuple[str, tuple[str, ...] | str]] = {
    "PIQA": ("Do", (" x", " y")),
    "SIQA": ("A. Why?", (" a", " b", " c")),
    "HellaSwag": ("L: c", (" e", " f")),
    "WinoGrande": ("Ann met Ben as", (" Ann waved.", " Ben waved.")),
    "ARC-E": ("Question: Which is it?\nAnswer:", (" this", " that")),
    "OBQA": ("Which is it?", (" this", " that")),
    "BoolQ": ("P\nQuestion: is it?\nAnswer:", (" no", " yes")),
    "MMLU": ("Which, then?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", (" A", " B", " C", " D")),
    "GSM8K": ("Question: What is 0 + 0?\nAnswer:", "0"),
    "MATH": ("Problem:\n1/2?\n\nSolution:", r"\frac{1}{2}"),
    "COCO": ("<image>\nCaption:", "A test picture."),
    "VQAv2": ("<image>\nQuestion: What is it?\nAnswer:", "star"),
    "VizWiz": ("<image>\nQuestion: What is it?\nAnswer:", "star"),
    "OKVQA": ("<image>\nQuestion: What is it?\nAnswer:", "a"),
    "Image paragraphs": ("<image>\nDescribe the picture in very fine detail:", "A star. It is red."),
    "VisDial": (
        "<image>\na star\nQuestion: is it red? Answer: yes\nQuestion: how many? Answer:",
        (" no", " two"),
    ),
}
SOLUTIONS = {
    "PIQA": " y",
    "SIQA": " b",
    "WinoGrande": " Ben waved.",
    "ARC-C": " this",
    "BoolQ": " yes",
    "MMLU": " B",
    "OKVQA": " star",
    "VisDial": " two",
}


def filled(folder: Path, name: str) -> Path:
    for path, text in FILES[name].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    for path in PICTURES.get(name, []):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (8, 8), "red").save(folder / path)
    return folder


@pytest.fixture(scope="module")
def tiny() -> Chameleon:
    return Chameleon.load("tiny")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs_on_files_as_its_authors_publish_them(name, tiny, tmp_path):
    benchmark, folder = BENCHMARKS[name], filled(tmp_path, name)
    item = next(benchmark_items(benchmark, folder))
    if name in FIRST:
        text, answers = FIRST[name]
        assert item.text == text and answers == (item.choices or item.answers[0])
    assert item.solution == SOLUTIONS.get(name, item.solution)
    results = run_benchmark(tiny, benchmark, folder, limit=1)
    for metric, result in results.items():
        assert result.value.card.metric == f"{name} {metric}" and len(result.scores) == 1
        assert f"{benchmark.shots} shots" in result.value.card.definition


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_is_missing_is_named_with_where_to_get_it(name, tiny, tmp_path):
    folder = filled(tmp_path, name)
    gone = next(iter(FILES[name]))
    pattern = next(each for each in BENCHMARKS[name].files if (folder / gone) in folder.glob(each))
    for path in folder.glob(pattern):
        path.unlink()
    with pytest.raises(ValueError, match="Nothing is downloaded here") as caught:
        run_benchmark(tiny, name, folder)
    assert pattern in str(caught.value) and BENCHMARKS[name].source in str(caught.value)


@pytest.mark.parametrize(
    "name", ["PIQA", "BoolQ", "MMLU", "MATH", "COCO", "VQAv2", "VizWiz", "Image paragraphs", "VisDial"]
)
def test_files_that_are_not_as_published_are_one_clear_error(name, tiny, tmp_path):
    folder = filled(tmp_path, name)
    for path in folder.rglob("*"):
        if path.suffix in {".jsonl", ".json", ".csv"}:
            path.write_text('{"images": [{"split": "test"}]}\n')
    with pytest.raises(ValueError, match="anew"):
        run_benchmark(tiny, name, folder)


def test_shots_come_before_the_question_and_are_of_its_subject(tmp_path, tiny, monkeypatch):
    contexts: list[str] = []

    def replies(self, requests, progress=None):
        contexts.extend(context.text for context, _ in requests)
        return []

    monkeypatch.setattr("chameleon_lab.evaluation.prompting.Prompting.likelihoods", replies)
    with pytest.raises(StopIteration):
        run_benchmark(tiny, "MMLU", filled(tmp_path, "MMLU"))
    shot = "law?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: C\n\n"
    assert contexts[0] == shot * 5 + "Which, then?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:" and len(contexts) == 4


def scene_benchmark(kind, folder: Path) -> Benchmark:
    """One of the shipped model's world: what colour is the star?"""
    colours = list(COLOURS)[:4]
    for colour in colours:
        arrange([("star", colour, "large")], "single", "tan").picture().save(folder / f"{colour}.png")

    def read(place: Path):
        for at, colour in enumerate(colours):
            caption = arrange([("star", colour, "large")], "single", "tan").caption()
            yield BenchmarkItem(
                "describe the picture",
                caption,
                choices=tuple(f"a large {each} star" for each in colours) if kind == "choices" else (),
                right=at,
                answers=(caption, f"a {colour} star"),
                picture=place / f"{colour}.png",
            )

    return Benchmark(
        "stars", kind, read, ("*.png",), "here", {}, longest=40, answer_of=lambda text: text.split(" on ")[0]
    )


def test_the_shipped_model_is_right_about_its_own_world(tiny, tmp_path):
    choices = run_benchmark(tiny, scene_benchmark("choices", tmp_path), tmp_path, turns=True)
    assert choices["accuracy"].value.value == choices["accuracy, by byte"].value.value == 100
    captions = run_benchmark(tiny, scene_benchmark("caption", tmp_path), tmp_path, turns=True)["CIDEr-D"]
    items = list(scene_benchmark("caption", tmp_path).read(tmp_path))
    perfect = 100 * cider([item.answers[0] for item in items], [item.answers for item in items])
    assert captions.scores == pytest.approx(perfect) and captions.value.value == pytest.approx(perfect.mean())
    assert captions.value.card.crop == "centre crop 64" and "CIDEr-D" in captions.value.card.definition
    people = run_benchmark(tiny, scene_benchmark("vqa", tmp_path), tmp_path, turns=True)["accuracy"]
    # two people, of whom one says it: 1/3 beside the other, 0 beside oneself
    assert people.value.value == pytest.approx(100 / 6)
    majority = run_benchmark(tiny, scene_benchmark("answer", tmp_path), tmp_path, turns=True, votes=3)
    assert list(majority) == ["maj@3"] and "temperature 0.7" in majority["maj@3"].value.card.definition


def test_the_papers_values_are_those_of_its_tables():
    ancestor = {"CM3Leon COCO": 61.6, "CM3Leon VQA2": 47.6, "VizWiz": 37.6, "OKVQA": 23.8, "Image paragraphs": 10.5}
    for name, value in (ancestor | {"VisDial": 22.6}).items():
        assert dict(BENCHMARKS[name].paper) == {"7B, fine-tuned": value} and not BENCHMARKS[name].shots
    assert BENCHMARKS["COCO"].paper["34B"] == 120.2 and BENCHMARKS["GSM8K"].paper["34B maj@32"] == 77.0
    table = benchmark_table().split("\n")
    assert len(table) == len(BENCHMARKS) + 2
    assert all(each.unknown and each.paper for each in BENCHMARKS.values())
    assert all(0 < value < 150 for each in BENCHMARKS.values() for value in each.paper.values())


@pytest.mark.parametrize(
    ("call", "words"),
    {
        "name": (lambda lab, place: run_benchmark(lab, "GLUE", place), "No benchmark is called 'GLUE'; there are PIQA"),
        "votes": (lambda lab, place: run_benchmark(lab, "PIQA", place, votes=3), "PIQA has no majority of 3"),
        "limit": (lambda lab, place: run_benchmark(lab, "PIQA", place, limit=0), "items"),
        "right": (lambda _, __: BenchmarkItem.of_choices("a", ["b"], 1), "number 1 of 1"),
    }.values(),
)
def test_what_cannot_be_run_is_one_clear_error(call, words, tiny, tmp_path):
    with pytest.raises(ValueError, match=words):
        call(tiny, tmp_path)
