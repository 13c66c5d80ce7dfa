"""What a fine-tuning teaches and what it costs: the lesson is what it says, and its figures are those of the docs."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.scenes import PLACES, arrange
from chameleon_lab.documents import EndTurn, Image, Text
from chameleon_lab.evaluation.forgetting import (
    FINE_TUNINGS,
    GERMAN,
    forgetting_outcome,
    german_lesson,
    outcome_rows,
    outcome_table,
    read_fine_tunings,
)
from chameleon_lab.evaluation.results import Result, evaluation_card

OUTCOMES = Path(__file__).parent.parent / "data" / "forgetting.jsonl"


def test_a_lesson_s_words_say_what_its_pictures_show():
    english = {german: word for word, german in GERMAN.items()}
    assert len(english) == len(GERMAN), "each word has one meaning"
    places = {name: place for place, name in PLACES.items()}
    for document in german_lesson(20):
        verb, *words = document.text.split()
        size, colour, shape, place, background = *words[:3], " ".join(words[3:-2]), words[-1]
        thing = (english[shape], english[colour], english[size])
        scene = arrange([thing], "single", english[background], places[english[place]])
        assert verb == "male" and (np.asarray(scene.picture()) == np.asarray(document.pictures[0])).all()
        assert all(part.learn == (place > 1) for place, part in enumerate(document))
        assert [type(part) for part in document] == [Text, EndTurn, Image, EndTurn]


def test_new_words_alone_are_learned_and_nothing_else_moves():
    lab = Chameleon.load("tiny", device="cpu")
    before = {name: value.clone() for name, value in lab.model.state_dict().items()}
    method = replace(FINE_TUNINGS["new words alone"], steps=2)
    taught, figures = forgetting_outcome(method, lab, tokens=100, documents=10)
    assert figures["new loss"][0] != figures["new loss"][1] and figures["earlier loss"][0] == figures["earlier loss"][1]
    for name, value in taught.model.state_dict().items():
        assert torch.equal(value[: len(before[name])], before[name]), name
    assert taught.vocabulary.size > lab.vocabulary.size
    assert len(taught.tokenizer.text.encode("male gross rot kreis oben links auf grau")) == 8


def test_outcomes_are_counted_over_seeds_and_a_damaged_file_is_named(tmp_path):
    lab = Chameleon.load("tiny", device="cpu")
    card = evaluation_card("captions exact", "", "", ["a"], n=8, lab=lab)
    before = Result.of([True] * 6 + [False] * 2, card)
    rows = list(outcome_rows("before", 0, [before]))
    assert rows[0]["scores"] == "11111100"
    for method, scores in (("worse", [False] * 8), ("the same", [True] * 4 + [False] * 2 + [True] * 2)):
        for seed in (0, 1):
            figures = {"seconds": 60 + seed, "steps": 9}
            rows += outcome_rows(method, seed, [Result.of(scores, card)], {"captions exact": "11111100"}, figures)
    table = outcome_table(rows)
    assert "| before | 75.0 % (41 to 93, n = 8) |  |" in table
    assert "| worse | 0.0 % (0 to 19, n = 16); seeds 0, 0; less | 9, 60 |" in table
    assert "| the same | 75.0 % (51 to 90, n = 16); seeds 75, 75 | 9, 60 |" in table, (
        "four of sixteen each way is noise"
    )
    (tmp_path / "rows.jsonl").write_text('{"method": "half beside"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1, is no outcome"):
        read_fine_tunings(tmp_path / "rows.jsonl")


def test_the_recorded_outcomes_show_what_the_docs_say():
    rows, right = read_fine_tunings(OUTCOMES), Counter[tuple[str, str]]()
    for row in rows:
        right[row["method"], row["measure"]] += row["right"]
    assert {(row["seed"], row["n"]) for row in rows} == {(0, 100), (1, 100), (2, 100)}
    german, english = "asked in German: everything right", "one thing, everything right"
    assert right["new words alone", german] == 215 and not right["before", german]
    for measure in (english, "captions exact", "questions right"):
        assert right["new words alone", measure] >= right["before", measure] - 4
        assert right["half beside", measure] >= 0.9 * right["before", measure]
    assert right["nothing beside", english] < 0.85 * right["before", english]
