"""Scores: what the model says without cache or batch, summed as it should be, grammar honoured."""

import math

import numpy as np
import pytest
import torch
from support import CODES

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.generation.grammar import Grammar
from chameleon_lab.records import TokenScores
from chameleon_lab.vocabulary import Modality


@pytest.fixture
def lab(make_lab, lettered) -> Chameleon:
    return make_lab(lettered)


def picture(lab: Chameleon, seed: int) -> Image:
    codes = np.random.default_rng(seed).integers(0, 12, (4, 4))
    return Image(lab.tokenizer.image.decode(codes), codes)


def documents(lab: Chameleon) -> list[Document]:
    return [
        Document.of("abcd", EndTurn(), picture(lab, 0), "ba", EndTurn()),
        Document.of("a"),
        Document.of(picture(lab, 1)),
        Document.of("d" * 40, EndTurn()),
    ]


@torch.no_grad()
def naive(lab: Chameleon, tokens: np.ndarray, hidden=None) -> np.ndarray:
    """The log-probability of each token after the first, one forward pass each."""
    logs = []
    for place in range(1, len(tokens)):
        logits_V = lab.model(torch.from_numpy(tokens[None, :place]))[0, -1]
        if hidden is not None:
            logits_V = logits_V.masked_fill(hidden[place - 1], -torch.inf)
        logs.append(float(logits_V.log_softmax(-1)[tokens[place]]))
    return np.array(logs)


def test_a_score_equals_the_naive_computation(lab):
    for document in documents(lab):
        tokens, score = lab.encode(document), lab.score(document)
        assert np.array_equal(score.tokens_T, tokens[1:])
        assert np.allclose(score.logs_T, naive(lab, tokens), atol=1e-4)
        assert score.total == pytest.approx(naive(lab, tokens).sum(), abs=1e-3)


def test_modalities_share_out_the_whole(lab):
    score = lab.score(documents(lab)[0])
    parts = {modality: score.of(modality) for modality in Modality}
    assert {modality.name: len(part) for modality, part in parts.items()} == {"TEXT": 6, "IMAGE": 16, "SPECIAL": 4}
    assert sum(part.total for part in parts.values()) == pytest.approx(score.total)
    chosen = (score.tokens_T >= 4) & (score.tokens_T < 16)
    assert np.array_equal(parts[Modality.IMAGE].logs_T, score.logs_T[chosen])
    assert parts[Modality.TEXT].mean == pytest.approx(parts[Modality.TEXT].total / 6)
    assert parts[Modality.TEXT].perplexity == pytest.approx(math.exp(-parts[Modality.TEXT].mean))


def test_a_batch_scores_as_its_documents_do_alone(lab):
    together = lab.engine.score(documents(lab))
    for document, score in zip(documents(lab), together, strict=True):
        assert np.allclose(score.logs_T, lab.score(document).logs_T, atol=1e-5)
    assert lab.engine.score([]) == []


def test_a_score_given_a_prompt_is_what_the_prompt_leaves_over(lab):
    prompt, answer = Document.of("ab", picture(lab, 2), EndTurn()), Document.of("cc", EndTurn())
    given, whole, before = lab.score(answer, given=prompt), lab.score(prompt + answer), lab.score(prompt)
    assert np.array_equal(given.tokens_T, lab.encode(answer)[1:])
    assert given.total == pytest.approx(whole.total - before.total, abs=1e-4)
    assert len(lab.score(Document(), given=prompt)) == 0


def test_chunks_of_logits_change_nothing(lab, monkeypatch):
    wanted = lab.engine.score(documents(lab))
    monkeypatch.setattr("chameleon_lab.generation.engine.SCORED_AT_ONCE", 3)
    for score, other in zip(wanted, lab.engine.score(documents(lab)), strict=True):
        assert np.allclose(score.logs_T, other.logs_T, atol=1e-6)


def test_with_a_grammar_tokens_compete_only_with_those_it_allows(lab):
    grammar, document = Grammar(lab.vocabulary, CODES), documents(lab)[0]
    tokens, state, hidden = lab.encode(document), grammar.start(np.array([0]), 159), []
    for place in range(1, len(tokens)):
        hidden.append(torch.from_numpy(~grammar.allowed(state, 160 - place).allowed_V))
        state = grammar.syntax.read(tokens[: place + 1])
    score = lab.score(document, grammar=grammar)
    assert np.allclose(score.logs_T, naive(lab, tokens, hidden), atol=1e-4)
    forced = score.tokens_T == lab.vocabulary.end_image
    assert np.all(score.logs_T[forced] == 0) and np.all(score.logs_T >= lab.score(document).logs_T - 1e-6)


@pytest.mark.parametrize(("index", "place"), [(0, 6), (2, 1)])
def test_an_image_in_a_text_only_grammar_is_refused(lab, index, place):
    grammar = Grammar(lab.vocabulary, CODES, images=False)
    with pytest.raises(ValueError, match=f"forbids token {lab.vocabulary.begin_image} at position {place} "):
        lab.score(documents(lab)[index], grammar=grammar)
    asked = (
        Document.of(picture(lab, 0), "what is this", EndTurn()) if False else Document.of(picture(lab, 0), EndTurn())
    )
    assert lab.score(Document.of("abc"), given=asked, grammar=grammar).total < 0


def test_a_document_beyond_the_context_is_refused(lab):
    with pytest.raises(ValueError, match="A document has 202 tokens and the model's context holds 160"):
        lab.score(Document.of("a" * 200, EndTurn()))
    assert len(lab.score(Document.of("a" * 159))) == 159


def test_a_score_prints_its_parts_and_none_is_nan():
    score = TokenScores(np.array([5, 30]), np.array([-1.0, -2.5]), np.array([Modality.IMAGE, Modality.TEXT]))
    assert str(score) == "log-probability -3.50 nats: text -2.50 (1 tokens), image -1.00 (1 tokens)"
    empty = score.of(Modality.SPECIAL)
    assert math.isnan(empty.mean) and math.isnan(empty.perplexity) and empty.total == 0
    assert TokenScores(score.tokens_T, np.array([-np.inf, 0.0]), score.modality_T).perplexity == math.inf
