"""Drafted codes: the pictures of plain sampling in fewer passes, their distribution, and that this test can fail."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from support import CODES, WORDS

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Blank, Document, EndTurn, Image
from chameleon_lab.generation import continuation
from chameleon_lab.generation.continuation import Continuation
from chameleon_lab.generation.drafts import agreement_length, guess
from chameleon_lab.generation.grammar import Grammar, Mask, Unrestricted
from chameleon_lab.generation.guidance import Contrastive, Linear, Negative, ThreeWay, TwoWay, turn_alone
from chameleon_lab.generation.settings import Settings
from chameleon_lab.vocabulary import Vocabulary

PROMPT = Document.of("abcd", EndTurn())
WARM = Settings(1.0, 1.0, 1.0, max_tokens=60)
GRAMMAR = Grammar(WORDS, CODES, min_images=1)
SETTINGS = {
    "warm": WARM,
    "usual": Settings(max_tokens=60),
    "greedy": Settings(0.0, 0.0, max_tokens=60),
    "narrow": WARM.changed(top_k=4, min_p=0.05, top_p=0.9, repetition=1.4),
    "guided": WARM.changed(guidance=2.5),
    "guided by a schedule": WARM.changed(guidance=TwoWay(Linear(4.0, 1.0))),
    "guided in three ways, words too": WARM.changed(guidance=ThreeWay(), text_guidance=2.0),
    "contrast": WARM.changed(guidance=Contrastive(0.1, 3), text_guidance=Contrastive(0.1, 2, without=turn_alone)),
    "a longer twin": WARM.changed(guidance=TwoWay(2.0, Negative(Document.of("dcbadcba", EndTurn())))),
}


def drawn(lab: Chameleon, settings: Settings, seeds: Any = (0, 1, 2), grammar: Any = GRAMMAR) -> tuple[list, int]:
    """The tokens of several rows, and the passes of the model that they took."""
    prompts = [lab.encode(PROMPT)] * len(seeds)
    under_way = Continuation(lab.model, lab.tokenizer, prompts, settings, seeds, grammar)
    rows: list[list[int]] = [[] for _ in seeds]
    for row, token, _ in under_way.tokens():
        rows[row] += [] if token is None else [token]
    return rows, under_way.passes


@pytest.mark.parametrize(("name", "drafts"), [*product(SETTINGS, [3]), *product(["usual", "contrast"], [1, 40])])
def test_drafts_change_no_token_whatever_else_is_set(name, drafts, make_lab, lettered):
    """Rows of which some write while others draw, in the same batch and alone."""
    lab = make_lab(lettered)
    plain, passes = drawn(lab, SETTINGS[name])
    drafted, fewer = drawn(lab, replace(SETTINGS[name], drafts=drafts))
    assert drafted == plain and fewer <= passes
    assert [drawn(lab, replace(SETTINGS[name], drafts=drafts), [seed])[0][0] for seed in (0, 1)] == plain[:2]


def test_drafts_go_with_pictures_that_tell_their_grids_and_without_a_grammar(make_lab, lettered, image_tokenizer):
    vocabulary = Vocabulary.layout(12, 4, largest_side=8)
    lab = make_lab(type(lettered)(lettered.text, image_tokenizer, vocabulary))
    for grammar in (Grammar(vocabulary, min_images=1), Unrestricted(vocabulary)):
        for settings in (WARM, WARM.changed(guidance=2.0)):
            plain, _ = drawn(lab, settings, range(4), grammar)
            assert drawn(lab, replace(settings, drafts=5), range(4), grammar)[0] == plain


def test_drafts_go_with_infilling(make_lab, lettered, picture):
    lab = make_lab(lettered)
    mask = np.random.default_rng(2).random((4, 4)) < 0.6
    document = Document.of("abcd", Blank(2), Image(picture, mask=mask))
    for guidance in (1.0, 4.0):
        plain = [lab.infill(document, seed=seed, guidance=guidance) for seed in range(3)]
        assert [lab.infill(document, seed=seed, guidance=guidance, drafts=4) for seed in range(3)] == plain


def test_a_session_with_drafts_is_left_anywhere_goes_on_and_is_appended_to(make_lab, lettered):
    """What a refused draft left in the caches is gone before anything is put behind the last token."""
    lab, more = make_lab(lettered), Document.of(EndTurn(), "ab", EndTurn())
    settings = WARM.changed(guidance=2.0, max_tokens=30)
    for pieces in range(1, 9):
        replies = []
        for drafts in (0, 6):
            session = lab.begin(PROMPT, settings=settings, seed=4, grammar=GRAMMAR, drafts=drafts)
            stream = session.stream()
            for _ in range(pieces):
                next(stream, None)
            stream.close()
            session.append(more)
            for _ in session.stream():
                pass
            replies.append((session.tokens.tolist(), session.reply))
        assert replies[0] == replies[1], pieces


def test_weights_that_are_not_finite_are_named(make_lab, lettered):
    lab = make_lab(lettered)
    with torch.no_grad():
        lab.model.blocks[1].attention.out.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        drawn(lab, WARM.changed(drafts=5), grammar=Grammar(WORDS, CODES, text=False, min_images=1, max_images=1))


# Its parts


def test_what_stands_is_one_more_than_the_drafts_that_hold():
    assert agreement_length([1, 2, 3], [1, 2, 3, 4]) == 4 and agreement_length([1, 2, 3], [1, 2, 9, 4]) == 3
    assert agreement_length([1, 2, 3], [9, 2, 3, 4]) == 1 and agreement_length([], [5]) == 1


def test_a_guess_may_come_and_is_what_was_picked_before_or_the_code_beside():
    mask = Mask(np.array([False, True, False, True]))
    assert [guess(mask, 3, 1), guess(mask, 2, 3), guess(mask, None, 0), guess(mask, None, 3)] == [3, 3, 1, 3]


@pytest.mark.parametrize("drafts", [-1, 1.5, "x", True], ids=repr)
def test_impossible_drafts_are_refused(drafts):
    with pytest.raises(ValueError, match="drafts must be a"):
        Settings(drafts=drafts)


# The distribution


ALONE = Grammar(WORDS, CODES, text=False, min_images=1, max_images=1)
DRAWN = 1200  # pictures of each way


def pictures(lab: Chameleon, settings: Settings, first: int, count: int = DRAWN) -> np.ndarray:
    """Codes of pictures from as many seeds: N x CODES."""
    codes = []
    for start in range(first, first + count, 400):
        rows, _ = drawn(lab, settings, range(start, start + 400), ALONE)
        codes += [row[1 : 1 + CODES] for row in rows]
    return np.array(codes)


def least_p(one: np.ndarray, other: np.ndarray) -> float:
    """The smallest p-value, times the number of tests, that both are of one distribution: chi-square of the codes of
    each position, and of the pairs at neighbouring ones, rare ones put together."""
    places = [*one.T], [*other.T]
    pairs = [[1000 * first + second for first, second in pairwise(side)] for side in places]
    values = []
    for a, b in zip([*places[0], *pairs[0]], [*places[1], *pairs[1]], strict=True):
        counts = Counter(a.tolist()), Counter(b.tolist())
        table = np.array([[count[kind] for kind in set(a) | set(b)] for count in counts])
        rare = table.sum(0) < 20
        table = np.column_stack([table[:, ~rare], table[:, rare].sum(1)])
        values.append(scipy.stats.chi2_contingency(table[:, table.sum(0) > 0])[1])
    return min(values) * len(values)


def test_the_distribution_is_plain_samplings_and_a_wrong_rule_of_acceptance_is_seen(make_lab, lettered, monkeypatch):
    """Other seeds for the drafts, so that equal tokens prove nothing here; then each broken rule is caught."""
    lab = make_lab(lettered)
    with torch.no_grad():  # a random model hardly minds what came before; here each code hangs on the one before it
        lab.model.head.weight *= 6
    settings = WARM.changed(guidance=1.5, top_p=0.9)
    plain, drafts = pictures(lab, settings, 0), replace(settings, drafts=5)
    assert least_p(plain, pictures(lab, drafts, 10_000)) > 0.01

    broken = {
        "a draft always holds": lambda drafts, picked: len(picked),
        "the place behind a refused draft stands, too": lambda drafts, picked: min(
            agreement_length(drafts, picked) + 1, len(picked)
        ),
    }
    for name, rule in broken.items():
        monkeypatch.setattr(continuation, "agreement_length", rule)
        p = least_p(plain, pictures(lab, drafts, 10_000, 400))
        print("HOUSE", p)
        assert p < 1e-6, name
