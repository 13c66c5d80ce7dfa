"""The walk: the tokens that the engine writes, one at a time, and what decides each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from support import LetterTokenizer

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.generation.grammar import Grammar, Unrestricted
from chameleon_lab.generation.guidance import Between, Negative, ThreeWay, TwoWay, without_words
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.vocabulary import Vocabulary
from chameleon_lab.walk import strengths_of

PROMPT = Document.of("draw a red circle", EndTurn())


@dataclass(frozen=True)
class Clipped:
    """A guidance of a reader's own."""

    twins = 1

    def streams(self, tokens, tokenizer):
        return [without_words(tokens, tokenizer)]

    def mix(self, logits_SRV, shares):
        full_RV, without_RV = logits_SRV
        return full_RV + (full_RV - without_RV).clamp(-4, 4)


SETTINGS = {
    "the model's own": {},
    "warm": {"temperature": 1.0, "top_p": 0.9},
    "few": {"temperature": 1.3, "top_k": 40, "min_p": 0.02},
    "without guidance": {"temperature": 0.9, "guidance": 1.0},
    "three-way": {"guidance": ThreeWay(), "temperature": 0.8},
    "on a schedule": {"guidance": TwoWay(Between(4.0, stop=0.5))},
    "away from blue": {"guidance": TwoWay(2.0, Negative(Document.of("a blue square", EndTurn())))},
    "clipped": {"guidance": Clipped()},
    "no word twice": {"temperature": 1.0, "repetition": 3.0},
    "short": {"max_tokens": 70},
}


@pytest.fixture(scope="module")
def tiny() -> Chameleon:
    return Chameleon.load("tiny")


@pytest.fixture
def drawer(make_lab, lettered) -> Chameleon:
    """A random model of four letters, which draws often."""
    return make_lab(lettered)


def reply_of(lab: Chameleon, document: Document, seed: int, grammar=None, **changes) -> list[int]:
    settings = lab.settings.changed(**changes)
    steps = lab.engine.tokens([lab.encode(document)], settings, [seed], grammar)
    return [token for _, token, _ in steps if token is not None]


def steps_of(walk, most: int = 1000) -> list[int]:
    while walk.step() is not None and len(walk.tokens) < len(walk.prompt) + most:
        pass
    return walk.tokens[len(walk.prompt) :]


@pytest.mark.parametrize("name", SETTINGS)
def test_it_takes_the_steps_that_the_engine_takes(tiny: Chameleon, name: str):
    walk = tiny.walk(PROMPT, seed=5, **SETTINGS[name])
    assert steps_of(walk, 12) == reply_of(tiny, PROMPT, 5, **SETTINGS[name])[:12]
    if name == "the model's own":  # to the end, and what it then says
        assert steps_of(walk) == reply_of(tiny, PROMPT, 5) and walk.next.ended == "end_turn"
        assert walk.step() is None and walk.image(0).size == (64, 64)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["free", "words only", "pictures only", "unrestricted"])
def test_it_keeps_to_any_grammar(drawer, seed: int, kind: str):
    lab = drawer
    free = lab.engine.default_grammar()
    grammar = {
        "free": free,
        "words only": replace(free, images=False),
        "pictures only": replace(free, text=False, min_images=1, max_images=2),
        "unrestricted": Unrestricted(lab.vocabulary, free.image_codes),
    }[kind]
    document, changes = Document.of("abcd"), {"temperature": 1.0, "top_p": 1.0, "guidance": 2.0, "max_tokens": 45}
    walk = lab.walk(document, seed=seed, grammar=grammar, **changes)
    assert steps_of(walk) == reply_of(lab, document, seed, grammar, **changes)
    assert walk.next.ended is not None


def test_each_token_that_may_not_come_has_a_reason_and_no_other(drawer):
    walk = drawer.walk(Document.of("abcd"), seed=1, temperature=1.0, top_p=1.0, max_tokens=60)
    walk.step(walk.vocabulary.begin_image)
    states = set()
    while not walk.next.ended:
        states.add(walk.next.state.split()[0])
        for token in range(walk.vocabulary.size):
            assert bool(walk.next.reason(token)) is not bool(walk.next.allowed_V[token])
        refused = int(np.flatnonzero(~walk.next.allowed_V)[0])
        count = len(walk.tokens)
        with pytest.raises(ValueError, match=f"Token {refused} cannot come here: ."):
            walk.step(refused)
        assert len(walk.tokens) == count
        walk.step()
    assert states == {"words", "picture", "picture:"}
    assert "no such token" in walk.next.reason(-1)


def test_the_reasons_name_the_limits_of_the_grammar(drawer):
    grammar = drawer.engine.default_grammar()
    vocabulary = drawer.vocabulary
    begin, word, end = vocabulary.begin_image, vocabulary.first_text, vocabulary.end_turn
    for change, token, words in (
        ({"images": False}, begin, "words only"),
        ({"max_images": 0}, begin, "allows 0 pictures"),
        ({"text": False}, word, "draws only"),
        ({"min_images": 2}, end, "2 pictures have to come"),
    ):
        here = drawer.walk(Document.of("ab"), grammar=replace(grammar, **change)).next
        assert words in here.reason(token)
    # beside words, the wish for a picture without room stays allowed, and ends the reply
    assert drawer.walk(Document.of("ab"), max_tokens=5).next.reason(begin) == ""


def test_one_may_go_back_choose_and_draw_again(tiny: Chameleon):
    walk = tiny.walk(PROMPT, seed=3, temperature=1.0)
    first, draws = steps_of(walk, 5), []
    for _ in range(3):
        walk.back()
        draws.append(walk.next.draw)
    assert steps_of(walk, 5) == first and len(set(draws)) == 3
    walk.restart()
    assert walk.tokens == tiny.encode(PROMPT).tolist() and walk.next.prompt == len(walk.tokens)
    walk.back()  # there is nothing to take off
    word = tiny.vocabulary.first_text + 300
    assert walk.step(word) == word and walk.tokens[-1] == word
    walk.start(Document.of("what do you see?", EndTurn()))
    assert walk.tokens == tiny.encode(walk.document).tolist()


def test_an_end_is_not_part_of_the_document_and_can_be_taken_back(tiny: Chameleon):
    walk = tiny.walk(PROMPT)
    count = len(walk.tokens)
    assert walk.step(tiny.vocabulary.end_turn) == tiny.vocabulary.end_turn
    assert walk.next.ended == "end_turn" and "complete" in walk.next.state and len(walk.tokens) == count
    walk.back()
    assert walk.next.ended is None and len(walk.tokens) == count


def test_another_seed_draws_other_numbers_and_other_settings_another_token(tiny: Chameleon):
    walk = tiny.walk(PROMPT, seed=3)
    walk.step(tiny.vocabulary.begin_image)
    before = walk.next.draw
    walk.seed = 4
    assert walk.next.draw == np.random.default_rng(4).random(2)[1] != before
    walk.change(image_temperature=5.0, strengths=(1.0,))
    tokens = set()
    for seed in range(20):
        walk.seed = seed
        tokens.add(walk.draw())
    walk.change(image_temperature=0.0)
    assert len(tokens) > 10 and walk.next.samplers["pictures"]["temperature"] == 0
    assert walk.draw() == walk.next.logits_SV[0].argmax()
    impossible: list[dict[str, Any]]
    impossible = [{"temperature": -1}, {"strengths": (1.0, 2.0)}, {"strengths": (-1.0,)}, {"guidance": 2.0}]
    for wrong in impossible:
        with pytest.raises(ValueError):
            walk.change(**wrong)
    assert walk.strengths == (1.0,) and walk.settings.image_temperature == 0
    with pytest.raises(ValueError, match="seed must be 0 or more"):
        walk.seed = -1


def test_strengths_are_those_of_guidance_that_has_numbers():
    table = {None: (1.0,), TwoWay(2.5): (2.5,), ThreeWay(3, 1.2): (3.0, 1.2), TwoWay(Between(2.0)): (), Clipped(): ()}
    assert {guide: strengths_of(guide) for guide in table} == table


def test_logits_are_the_models_and_rows_of_attention_are_the_softmax_of_their_scores(tiny: Chameleon):
    walk = tiny.walk(PROMPT)
    walk.step()
    logits_V = tiny.model(torch.tensor([walk.tokens]))[0, -1].detach().numpy()
    np.testing.assert_allclose(walk.next.logits_SV[0], logits_V, atol=1e-4)
    assert walk.next.logits_SV.shape[0] == 2  # the twin's, too, since a picture is under way
    position = len(walk.tokens) - 1
    scores_HT, weights_HT = walk.weights(2, position)
    np.testing.assert_allclose(torch.from_numpy(scores_HT).softmax(-1).numpy(), weights_HT, atol=1e-6)


def test_swatches_are_alike_one_by_one_or_all_at_once(tiny: Chameleon):
    walk = tiny.walk(PROMPT)
    together = walk.swatches(range(70))
    assert len(together) == 70 and all(each.size == (8, 8) for each in together)
    for code in (0, 22, 69):
        (alone,) = walk.swatches([code])
        assert np.abs(np.asarray(alone, int) - np.asarray(together[code], int)).max() <= 1


def test_a_prompt_that_leaves_no_room_is_refused_and_changes_nothing(drawer):
    walk = drawer.walk(Document.of("ab"))
    with pytest.raises(ValueError, match="context holds"):
        walk.start(Document.of("a" * 500))
    assert walk.document == Document.of("ab") and isinstance(walk.grammar, Grammar)


@pytest.fixture
def any_grid(make_lab, image_tokenizer) -> Chameleon:
    """A random model whose pictures have any grid of up to 4 x 4 codes, which stand in an order of their own."""
    order = tuple(int(place) for place in np.random.default_rng(5).permutation(12))
    vocabulary = replace(Vocabulary.layout(12, LetterTokenizer.size, largest_side=4), permutation=order)
    return make_lab(MixedModalTokenizer(LetterTokenizer(), image_tokenizer, vocabulary))


@pytest.mark.parametrize("seed", range(3))
def test_pictures_of_any_grid_give_their_sides_first(any_grid: Chameleon, seed: int):
    changes = {"temperature": 1.0, "top_p": 1.0, "guidance": 2.0, "max_tokens": 40}
    grammar = replace(any_grid.engine.default_grammar(), text=False, min_images=1, max_images=1)
    walk = any_grid.walk(Document.of("ab"), seed=seed, grammar=grammar, **changes)
    states, grids = list[str](), set()
    while not walk.next.ended:
        states.append(walk.next.state)
        grids.add(walk.next.grid)
        for token in np.flatnonzero(~walk.next.allowed_V).tolist():
            assert walk.next.reason(token)
        walk.step()
    rows, columns = grids.pop() or grids.pop()
    assert states[:4] == ["words", *["picture: a side of the grid comes next"] * 2, f"picture 0/{rows * columns}"]
    assert "picture: new_line comes next" in states and "picture: end_image comes next" in states
    assert walk.tokens[len(walk.prompt) :] == reply_of(any_grid, Document.of("ab"), seed, grammar, **changes)
