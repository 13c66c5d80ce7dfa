"""Guidance: each formula as published, each unconditional stream as its authors define it, and one of your own."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from support import WORDS

from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.generation.grammar import Grammar
from chameleon_lab.generation.guidance import (
    Between,
    Linear,
    Negative,
    ThreeWay,
    TwoWay,
    from_begin_image,
    image_alone,
    masked_words,
    without_words,
)
from chameleon_lab.vocabulary import Modality, Vocabulary


def shape(tokens, vocabulary=WORDS) -> str:
    """One letter a token: ^ begin, t text, ( begin image, i code, ) end image, e turn, m sentinel, g grid, n line."""
    v = vocabulary
    special = {0: "^", v.begin_image: "(", v.end_image: ")", v.end_turn: "e", v.first_sentinel: "m", v.new_line: "n"}
    kinds = {Modality.TEXT: "t", Modality.IMAGE: "i", Modality.SPECIAL: "g"}
    return "".join(special.get(int(token)) or kinds[Modality(v.modality[int(token)])] for token in tokens)


def image(codes: int, start: int = 4) -> list[int]:
    return [WORDS.begin_image, *range(start, start + codes), WORDS.end_image]


SAID = [WORDS.first_text] * 2
DRAWING = np.array([0, *SAID, *image(3), *SAID, WORDS.end_turn, *image(5, 8)[:4]])  # three codes of its second image
"""^tt(iii)tte(iii"""


@pytest.mark.parametrize(
    ("stream", "seen"),
    [
        (without_words, "^(iii)(iii"),
        (image_alone, "^(iii"),
        (from_begin_image, "(iii"),
        (masked_words, "^m(iii)me(iii"),
    ],
)
def test_trap_22_each_definition_of_the_unconditional_stream(lettered, stream, seen):
    assert shape(DRAWING) == "^tt(iii)tte(iii"
    found = stream(DRAWING, lettered)
    assert shape(found) == seen
    assert found[-4:].tolist() == DRAWING[-4:].tolist()  # the image being drawn, not an earlier one


def test_trap_22_luminas_stream_keeps_the_size_that_the_image_tells(make_lab, image_tokenizer, lettered):
    vocabulary = Vocabulary.layout(12, 4, largest_side=8)
    tokenizer = type(lettered)(lettered.text, image_tokenizer, vocabulary)
    sides = [vocabulary.token_of_side(2), vocabulary.token_of_side(4)]
    tokens = np.array([0, vocabulary.first_text, vocabulary.begin_image, *sides, 4, 5, 6, 7, vocabulary.new_line, 8])
    assert shape(from_begin_image(tokens, tokenizer), vocabulary) == "(ggiiiini"
    assert shape(without_words(tokens, tokenizer), vocabulary) == "^(ggiiiini"


def test_masking_words_needs_a_mask(lettered):
    bare = type(lettered)(lettered.text, lettered.image, Vocabulary.layout(12, 4, sentinels=0))
    with pytest.raises(ValueError, match="no sentinels to mask words with"):
        masked_words(np.array([0, bare.vocabulary.first_text, bare.vocabulary.begin_image]), bare)


def test_a_negative_prompt_stands_where_the_words_stood(lettered):
    negative = Document.of("dcb", EndTurn())
    assert shape(Negative(negative)(DRAWING, lettered)) == "^ttte(iii)(iii"
    assert shape(Negative(negative, images=False)(DRAWING, lettered)) == "^ttte(iii"
    assert Negative(negative)(DRAWING, lettered)[:5].tolist() == lettered.encode(negative).tolist()


def test_the_stream_without_words_only_grows(lettered):
    told = [without_words(DRAWING[:length], lettered).tolist() for length in range(1, len(DRAWING) + 1)]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in pairwise(told))


# Formulas


def test_two_way_guidance_is_the_published_formula():
    full, without = torch.randn(2, 3, 9)
    logits_SRV = torch.stack([full, without])
    for scale in (0.0, 0.5, 1.0, 2.0, 7.5):
        mixed = TwoWay(scale).mix(logits_SRV, [0.0, 0.5, 0.9])
        assert torch.allclose(mixed, (1 - scale) * without + scale * full, atol=1e-5)
    assert torch.equal(TwoWay(0.0).mix(logits_SRV, [0.0] * 3), without)


def test_three_way_guidance_is_the_published_formula():
    full, images, without = torch.randn(3, 4, 9)
    logits_SRV, shares = torch.stack([full, images, without]), [0.0] * 4
    wanted = without + 1.2 * (images - without) + 3.0 * (full - images)
    assert torch.allclose(ThreeWay().mix(logits_SRV, shares), wanted, atol=1e-5)
    assert torch.allclose(ThreeWay(1.0, 1.0).mix(logits_SRV, shares), full, atol=1e-5)
    assert torch.allclose(ThreeWay(0.0, 1.0).mix(logits_SRV, shares), images, atol=1e-5)
    # one scale for both is two-way guidance away from the image alone
    pair = torch.stack([full, without])
    assert torch.allclose(ThreeWay(2.5, 2.5).mix(logits_SRV, shares), TwoWay(2.5).mix(pair, shares), atol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "scales"),
    [
        (Linear(4.0, 1.0), [4.0, 2.5, 1.75]),
        (Between(3.0, 0.25, 0.75), [1.0, 3.0, 1.0]),
        (Between(3.0), [3.0, 3.0, 3.0]),
    ],
)
def test_a_schedule_scales_each_row_by_how_much_of_its_image_is_drawn(schedule, scales):
    logits_SRV, shares = torch.randn(2, 3, 9), [0.0, 0.5, 0.75]
    assert [schedule.scale(share) for share in shares] == scales
    mixed = TwoWay(schedule).mix(logits_SRV, shares)
    for row, scale in enumerate(scales):
        assert torch.allclose(mixed[row], TwoWay(scale).mix(logits_SRV[:, row : row + 1], [0.0])[0], atol=1e-6)
    both = ThreeWay(schedule, schedule).mix(torch.randn(3, 3, 9), shares)
    assert both.shape == (3, 9)


@pytest.mark.parametrize(
    "make", [lambda: TwoWay(-1.0), lambda: ThreeWay(text=-1), lambda: ThreeWay(image=float("nan"))]
)
def test_impossible_scales_are_refused(make):
    with pytest.raises(ValueError, match="guidance must be 0 or more"):
        make()


@dataclass(frozen=True)
class Contrast:
    """A guidance of a user's own, as it would be written in a cell: CM3Leon's contrastive decoding."""

    weight: float = 0.1
    twins = 1

    def streams(self, tokens, tokenizer):
        return [masked_words(tokens, tokenizer)]

    def mix(self, logits_SRV, shares):
        full_RV, without_RV = logits_SRV.log_softmax(-1)
        likely = full_RV >= full_RV.amax(-1, keepdim=True) + np.log(self.weight)
        return (full_RV - without_RV).masked_fill(~likely, -torch.inf)


def test_a_guidance_of_ones_own_draws(make_lab, lettered):
    lab = make_lab(lettered)
    grammar = Grammar(lab.vocabulary, 16, text=False, min_images=1, max_images=1)
    prompt = Document.of("abcd", EndTurn())
    drawn = [lab.generate(prompt, seed=1, temperature=1.0, grammar=grammar, guidance=g) for g in (1.0, Contrast(1e-9))]
    assert [len(reply.pictures) for reply in drawn] == [1, 1] and drawn[0] != drawn[1]
