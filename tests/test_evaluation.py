"""Scores: an oracle gets everything, nonsense gets nothing, and prompts are held out and reproducible."""

from __future__ import annotations

import numpy as np
import pytest

from chameleon_lab.corpora.scenes import NOVEL_PAIRS, arrange
from chameleon_lab.documents import Document, Image
from chameleon_lab.evaluation.card import markdown
from chameleon_lab.evaluation.scenes import PROMPT_KINDS, Prompt, Score, judge, prompts


def _oracle(prompt: Prompt) -> Document:
    if prompt.scene is not None:
        return Document.of(prompt.scene.picture())
    if prompt.kind == "routing: picture":
        return Document.of(arrange([("ring", "red", "large")], "single", "gray").picture())
    return Document.of(prompt.words or "words")


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_an_oracle_is_right_in_everything(kind: str) -> None:
    for prompt in prompts(kind, 20, seed=5):
        verdict = judge(kind, prompt, _oracle(prompt))
        assert verdict
        assert all(verdict.values()), (prompt, verdict)


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_nonsense_is_right_in_nothing_that_names_the_kind(kind: str) -> None:
    wrong = {
        True: Document.of("no"),
        False: Document.of(arrange([("ring", "red", "small")], "single", "gray").picture()),
    }
    for prompt in prompts(kind, 10, seed=6):
        wants_picture = prompt.scene is not None or prompt.kind == "routing: picture"
        assert not any(judge(kind, prompt, wrong[wants_picture]).values())


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_prompts_are_a_function_of_kind_and_seed(kind: str) -> None:
    one, same, other = (prompts(kind, 8, seed) for seed in (1, 1, 2))
    assert [p.document for p in one] == [p.document for p in same]
    assert [p.document for p in one] != [p.document for p in other]


def test_drawing_prompts_are_held_out_from_training() -> None:
    for kind in ("one thing", "two things", "two things, short"):
        for prompt in prompts(kind, 30, seed=7):
            assert prompt.scene is not None
            assert prompt.scene.held_out
            assert not prompt.scene.novel
    for prompt in prompts("novel pair", 30, seed=7):
        assert prompt.scene is not None
        assert prompt.scene.things[0].pair in NOVEL_PAIRS


def test_two_pictures_are_not_one() -> None:
    prompt = prompts("one thing", 1, seed=1)[0]
    assert prompt.scene is not None
    twice = Document.of(prompt.scene.picture(), prompt.scene.picture())
    assert not judge("one thing", prompt, twice)["one thing, everything right"]
    assert all(isinstance(part, Image) for part in twice)


def test_the_interval_is_wilsons() -> None:
    low, high = Score(0.5, 100).interval
    assert np.allclose((low, high), (0.4038, 0.5962), atol=1e-4)


def test_the_card_tells_what_is_in_it() -> None:
    card = {
        "experiment": {"name": "small", "settings": {"guidance": 1.5}},
        "minutes": {"image tokenizer": 1.5, "transformer": 8.0},
        "trained": "2026-11-22",
        "machine": "a machine",
        "steps": 1234,
        "tokens": 5_000_000,
        "notes": ["resumed once"],
        "scores": {"captions exact": {"share": 0.5, "n": 100}},
        "curve": {"minutes": [1.0, 2.0], "text_loss": [None, 0.25], "image_loss": [2.0, 1.5]},
    }
    page = markdown(card)
    for part in (
        "chameleon-lab train small",
        "5,000,000 tokens",
        "resumed once",
        "50.0 % (40 to 60, n = 100)",
        "| 1 |  | 2 |",
    ):
        assert part in page
