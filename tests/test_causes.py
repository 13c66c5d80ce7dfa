"""Questions over many prompts: what they compare is what they say they compare; on the tiny model, a few of each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.scenes import COLOURS, SHAPES, arrange
from chameleon_lab.evaluation import causes
from chameleon_lab.evaluation.causes import (
    WORD_KINDS,
    Drawing,
    Mean,
    answers,
    attributes,
    contradictions,
    contrasts,
    drawings,
    lens_verdicts,
    request,
    single_scenes,
    with_attribute,
    word_effects,
    word_positions,
)
from chameleon_lab.inspection import Inspection, silence


@pytest.fixture(scope="module")
def tiny() -> Chameleon:
    return Chameleon.load("tiny")


@pytest.fixture(scope="module")
def drawn(tiny: Chameleon) -> list[Drawing]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests themselves
    try:
        return list(drawings(tiny, single_scenes(4)))
    finally:
        torch.set_num_threads(threads)


def test_a_mean_has_the_interval_of_its_bootstrap():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    mean = Mean.of(values)
    assert mean.value == pytest.approx(values.mean()) and mean.n == 400 and Mean.of(values) == mean
    half = 1.96 * values.std() / 20
    assert mean.value - mean.low == pytest.approx(half, rel=0.15)
    assert mean.high - mean.value == pytest.approx(half, rel=0.15)
    assert Mean.of([2.0]).value == 2.0 and np.isnan(Mean.of([2.0]).low) and np.isnan(Mean.of([2.0]).high)
    for wrong in ([], [1.0, np.nan]):
        with pytest.raises(ValueError, match="A mean is of one or more numbers"):
            Mean.of(wrong)


def test_words_of_each_kind_are_where_the_request_spells_them(tiny: Chameleon):
    for scene in [*single_scenes(20), arrange([("ring", "red", "small")], "single", "gray", (16, 48))]:
        tokens, positions = tiny.encode(request(scene)), word_positions(tiny, scene)
        pieces = [int(token) - tiny.vocabulary.first_text for token in tokens]
        assert list(positions) == list(WORD_KINDS)
        for kind, value in attributes(scene).items():
            assert tiny.tokenizer.text.decode([pieces[at] for at in positions[kind]]).strip() == value
        every = [at for kind in WORD_KINDS for at in positions[kind]]
        assert len(every) == len(set(every))


def test_an_attribute_is_changed_alone():
    for scene in single_scenes(5):
        for kind in WORD_KINDS:
            for value in causes.CHOICES[kind]:
                changed = attributes(with_attribute(scene, kind, value))
                assert changed == attributes(scene) | {kind: value}


def test_a_drawing_has_its_cells_and_is_judged_by_its_pixels(tiny: Chameleon, drawn: list[Drawing]):
    assert len(drawn) == 4 and [each.scene for each in drawn] == single_scenes(4)
    for each in drawn:
        codes = tiny.vocabulary.codes_of_tokens(each.tokens[each.cells])
        picture = np.asarray(tiny.tokenizer.image.decode(codes), np.int16)
        assert np.abs(picture - np.asarray(each.picture, np.int16)).max() <= 1  # rounded with others in a batch
        assert replace(each, picture=each.scene.picture()).verdicts() == dict.fromkeys(WORD_KINDS, True)
        inside = 4 if each.scene.things[0].size == "small" else 16
        assert 1 <= each.on_thing.sum() <= inside and each.on_thing.shape == (8, 8)
    one = replace(drawn[0], scene=with_attribute(drawn[0].scene, "colour", "red"))
    assert replace(one, picture=with_attribute(one.scene, "colour", "blue").picture()).verdicts()["colour"] is False


def test_effects_of_words_are_knock_outs_of_all_words_of_a_kind(tiny: Chameleon, drawn: list[Drawing]):
    effects = word_effects(tiny, drawn[:2], ("colour", "place"))
    assert effects.shape == (2, 2, 8, 8)
    look = Inspection(tiny.model, tiny.tokenizer, drawn[1].tokens)
    of = int(drawn[1].cells[3, 4])
    assert effects[1, 1, 3, 4] == pytest.approx(look.without(drawn[1].words["place"], of=of), abs=1e-3)


@pytest.mark.parametrize("kind", ["colour", "shape"])
def test_a_contrast_stands_at_the_first_cell_that_both_draw_differently(
    kind: str, tiny: Chameleon, drawn: list[Drawing]
):
    contrast = contrasts(tiny, drawn, kind)
    odds, twins = contrast.odds(tiny.model), contrast.odds(tiny.model, twins=True)
    assert len(contrast) == len(odds) == 4 and (odds > 0).all() and (twins < 0).all()
    for at in range(len(contrast)):
        position, each = int(contrast.positions_N[at]), drawn[at]
        assert position + 1 == each.cells.ravel()[contrast.cells_N[at]]
        differ = np.flatnonzero(contrast.tokens_NT[at, : position + 1] != contrast.twins_NT[at, : position + 1])
        assert set(differ) <= set(each.words[kind])  # nothing but the word, and no earlier cell
        logs_V = Inspection(tiny.model, tiny.tokenizer, each.tokens).lens(5)[position]
        assert odds[at] == pytest.approx(logs_V[contrast.own_N[at]] - logs_V[contrast.other_N[at]], abs=1e-3)
        early_V = Inspection(tiny.model, tiny.tokenizer, each.tokens).lens(2)[position]
        early = early_V[contrast.own_N[at]] - early_V[contrast.other_N[at]]
        assert contrast.lens_odds(tiny.model)[2, at] == pytest.approx(early, abs=1e-3)
    np.testing.assert_allclose(contrast[1:3].odds(tiny.model), odds[1:3], atol=1e-4)
    quiet = contrast.odds(tiny.model, silence((2, 3), (3, 2)))
    assert np.abs(quiet - odds).max() > 0.1
    assert len(contrast.heads(tiny.model)) == 36
    np.testing.assert_allclose(contrast.odds(tiny.model), odds)  # the heads speak again


def test_what_cannot_be_contrasted_says_so(tiny: Chameleon, drawn: list[Drawing], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="kind is one of size, colour"):
        contrasts(tiny, drawn, "mood")
    monkeypatch.setattr(causes, "_other", lambda rng, kind, scene: attributes(scene)[kind])
    with pytest.raises(ValueError, match="No drawing differs from its twin of another shape"):
        contrasts(tiny, drawn, "shape")
    with pytest.raises(ValueError, match="kind is one of size, colour, shape, background, not 'place'"):
        contradictions(1, "place")


def test_the_lens_is_read_at_every_layer_and_ends_in_what_is_drawn(tiny: Chameleon, drawn: list[Drawing]):
    for each, verdicts in zip(drawn[:2], lens_verdicts(tiny, drawn[:2]), strict=True):
        assert {kind: len(layers) for kind, layers in verdicts.items()} == dict.fromkeys(WORD_KINDS, 6)
        assert {kind: bool(layers[-1]) for kind, layers in verdicts.items()} == each.verdicts()


@pytest.mark.parametrize("words_last", [False, True])
def test_a_contradiction_has_two_answers_and_the_model_one(words_last: bool, tiny: Chameleon):
    cases = contradictions(3, "colour", words_last=words_last)
    for case in cases:
        assert case.picture_answer in COLOURS and case.words_answer in COLOURS
        assert case.picture_answer != case.words_answer and len(case.document.pictures) == 1
        assert case.words_answer in case.document.text and case.document.text.count("what color is the") == 1
        assert any(shape in case.document.text for shape in SHAPES)
    verdicts = list(answers(tiny, cases))
    assert len(verdicts) == 3 and set(verdicts) <= {"picture", "words", "neither"}


def test_a_changed_model_draws_otherwise_and_is_itself_again(tiny: Chameleon, drawn: list[Drawing]):
    scenes = [each.scene for each in drawn[:2]]
    changed = list(drawings(tiny, scenes, changes={"blocks.*.attention.out": torch.zeros_like}))
    assert not np.array_equal(changed[0].tokens, drawn[0].tokens)
    (again,) = drawings(tiny, scenes[:1])
    np.testing.assert_array_equal(again.tokens, drawn[0].tokens)
