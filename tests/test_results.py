"""Two models' values are compared item by item, only where they were measured alike; prompts of one's own; GenEval."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import failed

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.commands.main import main
from chameleon_lab.corpora.scenes import arrange
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.evaluation.geneval import export_geneval
from chameleon_lab.evaluation.own_prompts import OwnPrompt, evaluate_own_prompts, read_own_prompts
from chameleon_lab.evaluation.results import Result, difference, evaluation_card, result_table
from chameleon_lab.evaluation.scenes import evaluate, scene_results
from chameleon_lab.pictures import open_picture
from chameleon_lab.records import MetricValue


@pytest.fixture(scope="module")
def tiny() -> Chameleon:
    return Chameleon.load("tiny")


def result(lab: Chameleon, scores, metric: str = "right", definition: str = "exact match") -> Result:
    items = [str(place) for place in range(len(scores))]
    return Result.of(scores, evaluation_card(metric, definition, "toy", items, n=len(scores), lab=lab))


def test_what_is_hard_for_both_is_no_noise(tiny):
    """400 items: one model is right where the other is, and on one in twenty besides. Each interval alone spans ten
    points, and the difference is clear."""
    rng = np.random.default_rng(0)
    other = (rng.random(400) < 0.5).astype(float)
    one = np.maximum(other, rng.random(400) < 0.1)
    better = difference(result(tiny, one), result(tiny, other))
    assert better.verdict == "better" and better.mean is not None and better.mean.low > 0
    assert difference(result(tiny, other), result(tiny, one)).verdict == "worse"
    assert result(tiny, one).mean.low < result(tiny, other).mean.high  # unpaired, they overlap
    assert better.unequal == int((one != other).sum())


def test_chance_is_called_no_difference_about_nineteen_times_in_twenty(tiny):
    rng, calls = np.random.default_rng(1), 0
    for _ in range(200):
        one, other = (result(tiny, (rng.random(80) < 0.6).astype(float)) for _ in range(2))
        calls += difference(one, other, draws=300).verdict != "no difference excluded"
    assert 2 <= calls <= 22


def test_all_right_of_few_is_not_sure(tiny):
    mean = result(tiny, np.ones(20)).mean
    assert mean.value == pytest.approx(100) and 80 < mean.low < 90 and mean.n == 20


def test_few_items_that_all_go_one_way_say_nothing(tiny):
    assert difference(result(tiny, np.ones(5)), result(tiny, np.zeros(5))).verdict == "no difference excluded"
    assert difference(result(tiny, np.ones(6)), result(tiny, np.zeros(6))).verdict == "better"


def test_what_was_not_measured_alike_is_marked_and_not_compared(tiny):
    one, other = result(tiny, [1, 0, 1]), result(tiny, [1, 0, 0], definition="another")
    gap = difference(one, other)
    assert gap.verdict == "not measured alike" and set(gap.apart) == {"definition"} and gap.mean is None
    assert difference(one, other, despite=["definition"]).verdict == "no difference excluded"
    with pytest.raises(ValueError, match="A card has no field 'definitoin'"):
        result_table({"a": [one], "b": [other]}, despite=["definitoin"])
    table = result_table({"a": [one], "b": [other]})
    assert "not measured alike: definition" in table and "another formula" in table
    assert "n, reference_hash" not in table
    shorter = difference(one, result(tiny, [1, 0]))
    assert shorter.verdict == "not measured alike" and {"n", "reference_hash"} <= set(shorter.apart)
    with pytest.raises(ValueError, match="no metric in common"):
        result_table({"a": [one], "b": [result(tiny, [1], "else")]})
    with pytest.raises(ValueError, match="no right of no items"):
        result(tiny, [])
    for scores in ([[1, 0], [0, 1]], [1, float("inf")]):
        with pytest.raises(ValueError, match="one finite number an item"):
            result(tiny, scores)


def test_a_table_has_a_row_a_metric_and_the_difference_of_two(tiny):
    ours = [result(tiny, [1, 1, 1, 0] * 10), result(tiny, [0.5] * 40, "partly")]
    theirs = [result(tiny, [1, 0, 1, 0] * 10), result(tiny, [0.5] * 40, "partly")]
    lines = result_table({"ours": ours, "theirs": theirs}).split("\n")
    assert lines[0] == "| metric | n | ours | theirs | ours less theirs |" and len(lines) == 4
    assert re.fullmatch(r"\| right \| 40 \| 75\.0 \(.*\) % \| 50\.0 .* % \| \+25\.0 \(\+.*\), better \|", lines[2])
    assert lines[3].endswith("| +0.0, no difference excluded: they differ on 0 of 40 |")


def test_scenes_scores_are_results_with_their_protocol(tiny):
    results = list(scene_results(tiny, ["questions"], n=6))
    scores = dict(evaluate(tiny, ["questions"], n=6))
    assert [each.value.card.metric for each in results] == list(scores)
    assert all(each.scores.mean() == scores[each.value.card.metric].share for each in results)
    card = results[0].value.card
    assert card.n == 6 and card.seed == 2026 and "temperature 0.0" in card.definition
    assert MetricValue.from_json(results[0].value.to_json()) == results[0].value


# Prompts of one's own


@pytest.fixture
def own(tmp_path) -> Path:
    arrange([("star", "blue", "large")], "single", "tan").picture().save(tmp_path / "star.png")
    rows = [
        {"prompt": "draw a red circle", "shows": ["red circle"], "pictures": 1, "category": "drawing"},
        {"prompt": "draw a red circle", "shows": ["blue star"], "category": "drawing"},
        {"prompt": "describe the picture", "images": ["star.png"], "contains": ["Blue", "star"], "category": "words"},
        {"prompt": "describe the picture", "images": "star.png", "regex": r"^a (large|small)\b", "pictures": 0},
        {"prompt": "describe the picture", "images": ["star.png"], "check": "few_words", "limit": 40},
        {"prompt": "describe the picture", "images": ["star.png"], "check": "few_words", "limit": 2, "exact": "x"},
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "checks.py").write_text(
        "def few_words(reply, line):\n    return min(1, line['limit'] / len(reply.text.split()))\n"
    )
    return tmp_path


def test_prompts_of_ones_own_are_asked_and_checked(own, tiny):
    prompts = read_own_prompts(own / "own.jsonl", own / "checks.py")
    outcome = evaluate_own_prompts(tiny, prompts, seed=3, batch=4)
    assert outcome.scores == [1, 0, 1, 1, 1, 0]
    assert {name: each.value.value for name, each in outcome.results.items()} == pytest.approx(
        {"all": 400 / 6, "drawing": 50, "words": 100}
    )
    outcome.write(own / "out.jsonl")
    first, *_, last = (own / "out.jsonl").read_text().splitlines()
    assert MetricValue.from_json(first) == outcome.results["all"].value
    assert json.loads(last)["score"] == 0 and "star" in json.loads(last)["reply"]


def test_the_command_asks_and_compares_two_models(own, tiny, capsys, monkeypatch):
    monkeypatch.setattr("chameleon_lab.commands.evaluate.load_named", lambda name, options: tiny)
    asked = ["evaluate", "--prompts", own / "own.jsonl", "--checks", own / "checks.py", "--out", own / "out.jsonl"]
    assert main([*map(str, asked), "--against", "tiny"]) == 0
    assert (own / "out.jsonl").is_file() and not list(own.glob("*.replies*"))
    (own / "valid.jsonl").write_text('{"goal": "Do", "sol1": "x", "sol2": "y"}\n')
    benchmark = ["evaluate", "--benchmark", "PIQA", "--data", str(own)]
    monkeypatch.setattr("chameleon_lab.commands.evaluate.load_model", lambda options: tiny)
    assert "valid-labels.lst" in failed(capsys, *benchmark)
    (own / "valid-labels.lst").write_text("1\n")
    assert main(benchmark) == 0
    assert "--benchmark takes --data" in failed(capsys, *benchmark, "--kind", "edits")
    assert "exact" in failed(capsys, "evaluate", "--prompts", own / "own.jsonl", "--kind", "edits")


BAD_LINES = {
    "no object": ("[1]", "no object with a prompt"),
    "no prompt": ('{"exact": "a"}', "no object with a prompt"),
    "no check": ('{"prompt": "a"}', "it has no check of the reply"),
    "unknown": ('{"prompt": "a", "exact": "a", "moood": 1}', "'moood' is neither a check"),
    "expression": ('{"prompt": "a", "regex": "("}', "no regular expression"),
    "a number": ('{"prompt": "a", "contains": 3}', "a text or a list of texts, not '3'"),
    "count": ('{"prompt": "a", "pictures": true}', "how many pictures"),
    "thing": ('{"prompt": "a", "shows": "red banana"}', "'red banana' is no thing of a scene"),
    "function": ('{"prompt": "a", "check": "magic"}', "no function 'magic' among the checks"),
    "picture": ('{"prompt": "a", "exact": "a", "images": ["no.png"]}', "no.png"),
    "nothing asked": ('{"prompt": " ", "exact": "a", "images": []}', "asks nothing"),
    "nothing sought": ('{"prompt": "a", "contains": ["a", ""]}', "'contains': an empty text is found in every reply"),
    "which field": ('{"prompt": "a", "exact": "a", "regex": null}', "'regex': it wants a text"),
    "a list as category": ('{"prompt": "a", "exact": "a", "category": ["x"]}', "its category is no text"),
    "the category of all": ('{"prompt": "a", "exact": "a", "category": "all"}', "may be called 'all'"),
    "a name twice": ('{"prompt": "a", "exact": "a", "name": "first"}', "line 1 is called 'first', too"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_line_that_cannot_be_asked_is_named(kind, tmp_path):
    line, why = BAD_LINES[kind]
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "a", "exact": "b", "name": "first"}\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"own\.jsonl, line 2.*{re.escape(why)}"):
        read_own_prompts(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_own_prompts(path)


@pytest.mark.parametrize("score", [2, -0.5, float("nan"), "yes", None])
def test_a_check_that_gives_no_share_is_named(score):
    def mine(reply, line):
        return score

    with pytest.raises(ValueError, match=r"'mine' says .* a truth, or a number from 0 to 1"):
        OwnPrompt(Document.of("hello", EndTurn()), {}, (mine,)).score(Document.of("hi"))


# GenEval


def test_drawings_lie_as_genevals_program_reads_them(tiny, tmp_path):
    lines = [
        {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a red circle"},
        {"tag": "colors", "include": [{"class": "star", "count": 1, "color": "blue"}], "prompt": "a blue star"},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = tmp_path / "out"
    export = export_geneval(tiny, tmp_path / "prompts.jsonl", folder, samples=2, request="draw {prompt}")
    next(export)
    del export  # interrupted: the same call goes on
    first = (folder / "00000" / "samples" / "0001.png").read_bytes()
    list(export_geneval(tiny, tmp_path / "prompts.jsonl", folder, samples=2, request="draw {prompt}"))
    # what the program does: folders of digits, one JSON value, samples of digits and .png
    for name in sorted(os.listdir(folder)):
        assert name.isdigit()
        with open(folder / name / "metadata.jsonl") as file:
            assert json.load(file) == lines[int(name)]
        names = sorted(os.listdir(folder / name / "samples"))
        assert names == ["0000.png", "0001.png"] and all(re.match(r"\d+\.png", each) for each in names)
        assert open_picture(folder / name / "samples" / names[0]).size == (64, 64)
    assert (folder / "00000" / "samples" / "0001.png").read_bytes() == first
    (tmp_path / "prompts.jsonl").write_text(json.dumps(lines[1]) + "\n")
    with pytest.raises(ValueError, match="is of another prompt than 'a blue star'"):
        list(export_geneval(tiny, tmp_path / "prompts.jsonl", folder))
    with pytest.raises(ValueError, match="where the prompt stands"):
        list(export_geneval(tiny, tmp_path / "prompts.jsonl", folder, request="draw it"))
    (tmp_path / "prompts.jsonl").write_text('{"tag": "x"}\n')
    with pytest.raises(ValueError, match="no prompt at entry 1"):
        list(export_geneval(tiny, tmp_path / "prompts.jsonl", folder))


def test_the_prompts_beside_the_models_can_be_asked_and_their_own_answers_are_right():
    folder = Path(__file__).parent.parent / "data" / "prompts"
    prompts = read_own_prompts(folder / "prompts.jsonl", folder / "checks.py")
    assert len(prompts) == 209 and {each.category for each in prompts} >= {"in German", "captions", "small talk"}
    for prompt in prompts:
        line = prompt.line
        if "shows" not in line:
            words = line.get("exact") or " and a ".join(line.get("things", ["good day"]))
            assert prompt.score(Document.of(words)) == 1 > prompt.score(Document.of("")), line


def test_what_cannot_be_asked_or_checked_says_so_before_the_other_replies_are_made(tiny, tmp_path, monkeypatch, caplog):
    asked = list[int]()

    def generate(engine, documents, settings, seeds):
        asked.append(len(documents))
        return [Document.of("hi") for _ in documents]

    monkeypatch.setattr(type(tiny.engine), "generate", generate)
    path, line = tmp_path / "own.jsonl", '{"prompt": "hello", "check": "mine", "category": null, "images": null}\n'
    path.write_text(line * 5 + json.dumps({"prompt": "word " * 3000, "exact": "a"}))
    prompts = read_own_prompts(path, {"mine": lambda reply, line: 2})
    with pytest.raises(ValueError, match=r"Prompt 6 \('word word.* tokens, and the model's context has room for"):
        evaluate_own_prompts(tiny, prompts)
    assert not asked
    with pytest.raises(ValueError, match="a truth, or a number from 0 to 1"):
        evaluate_own_prompts(tiny, prompts[:5], batch=2)
    assert asked == [2]
    kept = tmp_path / "kept.jsonl"
    with pytest.raises(ValueError, match="a truth, or a number from 0 to 1"):
        evaluate_own_prompts(tiny, prompts[:5], batch=2, reply_file=kept)
    with kept.open("ab") as file:
        file.write('[{"text": "ü'.encode()[:-1])  # as a kernel leaves it that dies
    mended = [replace(each, checks=(lambda reply, line: 1,)) for each in prompts[:5]]
    outcome = evaluate_own_prompts(tiny, mended, batch=2, reply_file=kept)
    assert asked == [2, 2, 2, 1] and outcome.scores == [1] * 5 and len(kept.read_text().splitlines()) == 6
    assert outcome.replies == [Document.of("hi")] * 5
    with pytest.raises(ValueError, match=r"kept\.jsonl holds other things than these replies, or those of another"):
        evaluate_own_prompts(tiny, mended, seed=1, reply_file=kept)

    left = iter([None])  # the head of the file fits

    def full(descriptor: int) -> None:
        if next(left, "none") == "none":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # while replies are made
    assert evaluate_own_prompts(tiny, mended, batch=2, seed=2, reply_file=tmp_path / "full.jsonl").scores == [1] * 5
    assert [each.getMessage() for each in caplog.records] == [
        "Replies are not kept as they are made: [Errno 28] No space left on device"
    ]


def test_a_file_of_checks_that_ends_the_program_is_named(own):
    (own / "checks.py").write_text("import sys\n\nsys.exit(3)\n")
    with pytest.raises(ValueError, match=r"checks\.py fails: SystemExit: 3"):
        read_own_prompts(own / "own.jsonl", own / "checks.py")


def test_a_check_of_one_s_own_that_fails_is_named():
    def few(reply):
        return 1.0

    prompt = OwnPrompt(Document.of("two", EndTurn()), {}, (few,))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"'few' failed on the reply to 'two': TypeError.*Mend the check"):
        prompt.score(Document.of("2"))
