"""The explainer without a browser: what is sent of a walk, what the page may ask for, and what is refused."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import PIL.Image
import pytest
from widget_support import browser_says, recorder

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.vocabulary import Vocabulary
from chameleon_lab.walk import Walk
from chameleon_widgets.pictures import png
from chameleon_widgets.teach.explainer import Explainer, vocabulary_blocks

pytestmark = pytest.mark.usefixtures("comms")
PROMPT = Document.of("draw a <b>red</b> circle", EndTurn())


@pytest.fixture(scope="module")
def tiny() -> Chameleon:
    return Chameleon.load("tiny")


@pytest.fixture
def drawer(make_lab, lettered) -> Chameleon:
    return make_lab(lettered)


@pytest.fixture
def explainer(drawer: Chameleon) -> Explainer:
    return widget(drawer.walk(Document.of("abcd"), seed=1, temperature=1.0, top_p=1.0, guidance=2.0))


def walk_of(explainer: Explainer) -> Walk:
    assert isinstance(explainer.walk, Walk)
    return explainer.walk


def widget(walk: Walk) -> Explainer:
    explainer = Explainer(walk)
    browser_says(explainer, {"kind": "hello"})
    explainer.wait(60)
    return explainer


def answers(explainer: Explainer, kind: str) -> list[tuple[dict[str, Any], list[bytes]]]:
    explainer.wait(60)
    return [(content, buffers) for content, buffers in recorder(explainer).custom if content["kind"] == kind]


def ask(explainer: Explainer, kind: str, *buffers: bytes, **content: object) -> None:
    browser_says(explainer, {"kind": kind, **content}, *buffers)


def tokens_of(explainer: Explainer) -> list[int]:
    """The document as a view that came first has put it together."""
    tokens = list[int]()
    for content, _ in answers(explainer, "step"):
        tokens = [*tokens[: content["start"]], *(each["token"] for each in content["tokens"])]
    return tokens


def test_a_view_is_told_the_vocabulary_and_where_the_walk_stands(explainer: Explainer):
    walk = explainer.walk
    facts, (codes,) = answers(explainer, "facts")[-1]
    assert len(facts["names"]) == walk.vocabulary.size and facts["names"][0] == "begin_document"
    assert [facts["layers"], facts["heads"]] == [*walk.depth]
    assert np.frombuffer(codes, "<i4").tolist() == list(range(walk.vocabulary.codes))
    step, (logits, allowed) = answers(explainer, "step")[-1]
    assert tokens_of(explainer) == walk.tokens and step["prompt"] == len(walk.tokens)
    np.testing.assert_array_equal(np.frombuffer(logits, "<f4"), walk.next.logits_SV.ravel())
    np.testing.assert_array_equal(np.frombuffer(allowed, np.uint8), walk.next.allowed_V)
    assert step["samplers"]["words"]["temperature"] == 1.0 and step["strengths"] == [2.0]


@pytest.mark.parametrize("largest_side", [0, 4])
def test_the_blocks_are_the_whole_vocabulary_once(largest_side: int):
    vocabulary = Vocabulary.layout(12, 5, largest_side=largest_side)
    blocks = vocabulary_blocks(vocabulary)
    assert [each["first"] for each in blocks] == [0, *(each["stop"] for each in blocks[:-1])]
    assert blocks[-1]["stop"] == vocabulary.size
    for each in blocks:
        assert set(vocabulary.modality[each["first"] : each["stop"]]) == {each["modality"]}


def test_a_draw_takes_the_step_that_the_library_takes_and_back_takes_it_back(drawer: Chameleon, explainer: Explainer):
    walk, count = explainer.walk, len(explainer.walk.tokens)
    twin = drawer.walk(Document.of("abcd"), seed=1, temperature=1.0, top_p=1.0, guidance=2.0)
    ask(explainer, "take", token=twin.step(walk.vocabulary.begin_image))  # else its reply ends after two letters
    for _ in range(6):
        ask(explainer, "draw")
        twin.step()
    explainer.wait(60)
    assert walk.tokens == twin.tokens == tokens_of(explainer) and len(walk.tokens) == count + 7
    assert len(answers(explainer, "step")[-1][0]["tokens"]) <= 7, "of a step only what is new is sent"
    ask(explainer, "back")
    explainer.wait(60)
    assert walk.tokens == twin.tokens[:-1] == tokens_of(explainer)
    ask(explainer, "restart")
    explainer.wait(60)
    assert walk.tokens == twin.tokens[:count] == tokens_of(explainer)


def test_a_token_of_the_readers_choice_and_a_seed_of_theirs(explainer: Explainer):
    walk = explainer.walk
    ask(explainer, "take", token=walk.vocabulary.begin_image)
    explainer.wait(60)
    assert walk.tokens[-1] == walk.vocabulary.begin_image
    step, _ = answers(explainer, "step")[-1]
    assert step["state"] == "picture 0/16" and step["grid"] == [4, 4] and step["streams"] == 2 and step["drawing"]
    ask(explainer, "seed", seed=9)
    step, _ = answers(explainer, "step")[-1]
    assert step["seed"] == 9 and step["draw"] == np.random.default_rng(9).random(2)[1]


def test_what_the_page_has_moved_goes_with_the_draw(explainer: Explainer):
    walk = walk_of(explainer)
    ask(explainer, "take", token=walk.vocabulary.begin_image)
    step, _ = answers(explainer, "step")[-1]
    samplers = step["samplers"]
    samplers["words"]["top_k"], samplers["pictures"]["temperature"], samplers["pictures"]["min_p"] = 3, 0.0, 0.5
    ask(explainer, "draw", samplers=samplers, strengths=[4.0])
    explainer.wait(60)
    settings = walk.settings
    assert (settings.text_sampler.top_k, settings.image_sampler.temperature, settings.image_sampler.min_p) == (
        3,
        0,
        0.5,
    )
    assert walk.strengths == (4.0,) and answers(explainer, "step")[-1][0]["strengths"] == [4.0]


def test_a_prompt_of_the_readers_own_with_a_picture(tiny: Chameleon):
    explainer = widget(tiny.walk(PROMPT))
    red = PIL.Image.new("RGB", (80, 70), (200, 0, 0))
    ask(explainer, "prompt", png(red), text=" what do you see? ", keep=True)
    explainer.wait(60)
    picture, *_ = explainer.walk.document.pictures
    assert picture.size == red.size and explainer.walk.document.text == "what do you see?"
    content, (look,) = answers(explainer, "picture")[-1]
    assert content["image"] == 0 and PIL.Image.open(io.BytesIO(look)).size == (64, 64)
    ask(explainer, "prompt", text="and now?", keep=True)
    explainer.wait(60)
    assert len(explainer.walk.document.pictures) == 1 and explainer.walk.document.text == "and now?"
    before = list(explainer.walk.tokens)
    ask(explainer, "prompt", b"no picture", text="see this", keep=False)
    assert "not a picture" in answers(explainer, "state")[-1][0]["trouble"] and explainer.walk.tokens == before
    ask(explainer, "prompt", text="   ", keep=False)
    assert "prompt is empty" in answers(explainer, "state")[-1][0]["trouble"]
    ask(explainer, "draw")
    assert answers(explainer, "state")[-1][0]["trouble"] == "", "what goes well takes the trouble away"


def test_rows_of_attention_and_looks_come_when_asked_for(explainer: Explainer):
    walk = explainer.walk
    ask(explainer, "scores", layer=1, position=3)
    content, (scores, weights) = answers(explainer, "scores")[-1]
    assert (content["layer"], content["position"]) == (1, 3)
    for buffer, rows in zip((scores, weights), walk.weights(1, 3), strict=True):
        np.testing.assert_array_equal(np.frombuffer(buffer, "<f4").reshape(rows.shape), rows)
    codes = [code for content, _ in answers(explainer, "looks") for code in content["codes"]]
    assert sorted(set(codes)) == list(range(walk.vocabulary.codes)), "a small codebook is drawn ahead of time"
    for content, (sheet,) in answers(explainer, "looks"):
        picture = PIL.Image.open(io.BytesIO(sheet))
        assert picture.width == len(content["codes"]) * picture.height


def test_an_image_comes_as_a_picture_after_each_cell_and_one_taken_back_no_longer_counts(explainer: Explainer):
    walk = explainer.walk

    def newest_is_the_walks() -> bool:
        content, (look,) = answers(explainer, "picture")[-1]
        assert content["image"] == 0
        return look == png(walk.image(0))

    ask(explainer, "take", token=walk.vocabulary.begin_image)
    assert not answers(explainer, "picture"), "an image without a cell has no look"
    for _ in range(16):
        ask(explainer, "draw")
        assert newest_is_the_walks()
    ask(explainer, "back")
    assert newest_is_the_walks(), "the cell that was taken back is filled up again"
    for _ in range(15):
        ask(explainer, "back")
    count = len(answers(explainer, "picture"))
    browser_says(explainer, {"kind": "hello"})
    assert len(answers(explainer, "picture")) == count, "a view that comes now is sent no picture of it"
    ask(explainer, "take", token=int(np.flatnonzero(walk.next.allowed_V)[0]))
    assert len(answers(explainer, "picture")) == count + 1 and newest_is_the_walks()


@pytest.mark.parametrize(
    "request_",
    [
        {"kind": "take", "token": -1},
        {"kind": "take", "token": 10**9},
        {"kind": "take", "token": "<img>"},
        {"kind": "seed", "seed": 1.5},
        {"kind": "scores", "layer": 99, "position": 0},
        {"kind": "scores", "layer": 0},
        {"kind": "looks", "codes": "all"},
        {"kind": "looks", "codes": [-1]},
        {"kind": "prompt", "text": None},
    ],
    ids=str,
)
def test_what_there_is_not_is_refused_in_words(explainer: Explainer, request_: dict[str, Any]):
    count, tokens = len(recorder(explainer).custom), list(explainer.walk.tokens)
    browser_says(explainer, request_)
    explainer.wait(60)
    (line,) = [content for content, _ in recorder(explainer).custom[count:]]
    assert line["kind"] == "line" and re.match("There is no|Looks are asked|A prompt's words", line["trouble"])
    assert explainer.walk.tokens == tokens


def test_a_token_that_may_not_come_is_refused_with_the_reason(explainer: Explainer):
    tokens = list(explainer.walk.tokens)
    ask(explainer, "take", token=explainer.walk.vocabulary.end_image)
    trouble = answers(explainer, "state")[-1][0]["trouble"]
    assert "No picture is under way" in trouble and explainer.walk.tokens == tokens


def test_the_still_shows_words_as_text_the_image_and_what_may_come(tiny: Chameleon):
    red = PIL.Image.new("RGB", (64, 64), (200, 0, 0))
    explainer = widget(tiny.walk(Document.of(Image(red), "<b>red</b>?", EndTurn())))
    bundle = explainer._line.mimebundle()
    first = int(explainer.walk.tokens[2])
    code = int(tiny.vocabulary.codes_of_tokens(np.array(first)))
    assert f"code {code}, token {first}" in bundle["text/html"] and bundle["text/html"].count("data:image/png") == 1
    assert "<b>red" not in bundle["text/html"] and "likeliest" in bundle["text/html"]
    assert bundle["text/plain"].startswith("Explainer. A walk of")


def test_one_that_has_ended_moves_no_more_and_still_shows_the_walk(explainer: Explainer):
    explainer._line.end()
    tokens = list(explainer.walk.tokens)
    ask(explainer, "draw")
    explainer.wait(60)
    assert explainer.walk.tokens == tokens
    count = len(answers(explainer, "facts"))
    ask(explainer, "hello")
    assert len(answers(explainer, "facts")) == count + 1


def test_a_model_without_a_picture_decoder_has_codes_without_looks(drawer: Chameleon, monkeypatch: pytest.MonkeyPatch):
    def refuse(_: object) -> list[PIL.Image.Image]:
        raise ValueError("no decoder")

    walk = drawer.walk(Document.of("ab"))
    monkeypatch.setattr(walk, "swatches", refuse)
    explainer = widget(walk)
    assert not answers(explainer, "looks") and answers(explainer, "state")[-1][0]["trouble"] == ""
