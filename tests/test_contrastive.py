"""Contrastive decoding: the formula in plain numpy, its edges, words and pictures guided, and how it is written."""

import json
import math

import numpy as np
import pytest
import torch
from support import CODES, WORDS

from chameleon_lab.commands import loading
from chameleon_lab.commands.parsers import command_parser
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.generation.grammar import Grammar
from chameleon_lab.generation.guidance import (
    Contrastive,
    Linear,
    Negative,
    ThreeWay,
    TwoWay,
    from_begin_image,
    masked_words,
    turn_alone,
    without_images,
    without_words,
)
from chameleon_lab.generation.samplers import Sampler
from chameleon_lab.generation.settings import Settings, parse_guidance
from chameleon_lab.vocabulary import Modality

inf = math.inf


def reference(strong_V: np.ndarray, weak_V: np.ndarray, alpha: float, k: int, student: float) -> np.ndarray:
    """arXiv 2309.02591, section 3.2, token by token."""

    def shares(logits: np.ndarray) -> list[float]:
        powers = [math.exp(each - logits.max()) for each in logits]
        return [each / sum(powers) for each in powers]

    strong, weak = shares(strong_V), shares(weak_V / student)
    kth = sorted(strong, reverse=True)[min(k, len(strong)) - 1]
    return np.array(
        [math.log(p / q) if p > 0 and p >= alpha * kth else -inf for p, q in zip(strong, weak, strict=True)]
    )


@pytest.mark.parametrize("student", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("k", [1, 2, 7, 40])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.999])
def test_the_score_is_the_papers_formula(alpha, k, student):
    logits_SRV = 2 * torch.randn(2, 5, 23)
    scores_RV = Contrastive(alpha, k, student).mix(logits_SRV, [0.0] * 5)
    for row in range(5):
        strong_V, weak_V = logits_SRV[:, row].double().numpy()
        wanted_V = reference(strong_V, weak_V, alpha, k, student)
        np.testing.assert_allclose(scores_RV[row].numpy(), wanted_V, atol=1e-4)


def test_what_has_no_probability_is_never_taken_and_scores_are_never_infinite_above():
    strong_V, weak_V = torch.tensor([0.0, 1.0, -inf, -inf, -3.0]), torch.tensor([2.0, -inf, 0.0, -inf, 0.0])
    for alpha in (0.0, 0.5, 1.0):
        for k in (1, 3, 5, 99):  # three tokens have any probability: k counts beyond them, and beyond all five
            scores_V = Contrastive(alpha, k).mix(torch.stack([strong_V, weak_V])[:, None], [0.0])[0]
            assert (scores_V[2:4] == -inf).all() and not (scores_V == inf).any() and not scores_V.isnan().any()
            assert math.isfinite(scores_V[1]) and scores_V.argmax() == 1  # the weak one rules it out: as good as can be
            assert torch.isfinite(scores_V[[0, 4]]).all() == (alpha == 0 or k >= 3)


def test_alpha_of_one_with_the_largest_is_greedy_and_with_the_kth_keeps_k():
    logits_SRV = torch.randn(2, 9, 31)
    for k in (1, 2, 5, 31):
        kept_RV = Contrastive(1.0, k).mix(logits_SRV, [0.0] * 9).isfinite()
        assert (kept_RV.sum(-1) == k).all()
        assert kept_RV.gather(-1, logits_SRV[0].topk(k).indices).all()
    assert Contrastive(0.0).mix(logits_SRV, [0.0] * 9).isfinite().all()


def test_the_strong_stream_may_be_guided():
    logits_SRV, shares = torch.randn(2, 3, 17), [0.0, 0.5, 0.9]
    for scale in (5.0, Linear(4.0, 1.0)):
        strong_RV = TwoWay(scale).mix(logits_SRV, shares)
        wanted_RV = Contrastive(0.2, 3).mix(torch.stack([strong_RV, logits_SRV[1]]), shares)
        assert torch.allclose(Contrastive(0.2, 3, scale=scale).mix(logits_SRV, shares), wanted_RV, atol=1e-5)


@pytest.mark.parametrize(
    "keywords",
    [{"alpha": -0.1}, {"alpha": 1.1}, {"alpha": "x"}, {"k": 0}, {"k": 1.5}, {"student_temperature": 0}]
    + [{"scale": -1.0}, {"without": None}, {"student_temperature": float("nan")}],
    ids=str,
)
def test_what_cannot_be_is_refused_when_it_is_made(keywords):
    with pytest.raises(ValueError, match=r"alpha|k-th|counted from|student|guidance must|view of the tokens"):
        Contrastive(**keywords)


# The streams of words


def test_the_streams_of_words(lettered):
    image, said = [WORDS.begin_image, *range(4, 7), WORDS.end_image], [WORDS.first_text, WORDS.first_text + 1]
    asked = np.array([0, *image, *said, WORDS.end_turn, *said])
    assert without_images(asked, lettered).tolist() == [0, *said, WORDS.end_turn, *said]
    assert turn_alone(asked, lettered).tolist() == [0, *said]
    assert turn_alone(asked[:-2], lettered).tolist() == [0]
    assert turn_alone(np.array([0, *said, *image, *said]), lettered).tolist() == [0, *said]  # no turn: behind its image
    assert turn_alone(np.array([0, *said]), lettered).tolist() == [0, *said]
    with pytest.raises(ValueError, match="No image was begun that this could see: to guide words take turn_"):
        from_begin_image(np.array([0, *said]), lettered)


# In the engine


PROMPT = Document.of("abcd", EndTurn())
WARM = Settings(1.0, 1.0, 1.0, max_tokens=45)
SETTINGS = {
    "pictures": WARM.changed(guidance=Contrastive(0.1, 3)),
    "words": WARM.changed(text_guidance=Contrastive(0.2, 2, without=turn_alone)),
    "words, a number": WARM.changed(text_guidance=3.0),
    "words without pictures": WARM.changed(text_guidance=TwoWay(2.5, without_images), guidance=1.7),
    "both": WARM.changed(guidance=Contrastive(0.5, 2, without=masked_words), text_guidance=2.0),
    "of unlike many twins": WARM.changed(guidance=ThreeWay(), text_guidance=Contrastive(1e-3, without=turn_alone)),
    "with a penalty": WARM.changed(text_guidance=3.0, repetition=1.5),
    "narrow": WARM.changed(guidance=Contrastive(1.0, 1), text_guidance=Contrastive(1.0, 1, without=turn_alone)),
}


def _drawn(lab, settings, seeds=(0, 1, 2)) -> list[list[int]]:
    """Replies of several rows at once, of which some write while others draw."""
    rows: dict[int, list[int]] = {place: [] for place in range(len(seeds))}
    for row, token, _ in lab.engine.tokens([lab.encode(PROMPT)] * len(seeds), settings, seeds, GRAMMAR):
        if token is not None:
            rows[row].append(token)
    return list(rows.values())


GRAMMAR = Grammar(WORDS, CODES, min_images=1)


@pytest.mark.parametrize("name", SETTINGS)
def test_rows_do_not_meddle_with_one_another(name, make_lab, lettered, pace):
    lab, settings = make_lab(lettered), SETTINGS[name]
    together = _drawn(lab, settings)
    assert any(WORDS.modality[token] == Modality.IMAGE for row in together for token in row)
    assert together == [_drawn(lab, settings, [seed])[0] for seed in (0, 1, 2)]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_walk_takes_the_same_tokens_as_the_engine(name, make_lab, lettered):
    lab, settings = make_lab(lettered), SETTINGS[name]
    walk = lab.walk(PROMPT, seed=0, settings=settings, grammar=GRAMMAR)
    walked = []
    while not walk.next.ended and len(walked) < 23:
        token = walk.step()
        if not walk.next.ended:
            walked.append(token)
    assert walked == _drawn(lab, settings, [0])[0][: len(walked)] and len(walked) > 10


def test_guided_words_differ_and_unguided_ones_do_not(make_lab, lettered):
    lab = make_lab(lettered)
    plain = _drawn(lab, WARM)
    assert _drawn(lab, WARM.changed(text_guidance=1.0)) == plain
    assert _drawn(lab, SETTINGS["words"]) != plain


def test_no_token_that_the_grammar_forbids_and_none_without_share(make_lab, lettered):
    """The mask is applied before the k-th largest is looked for: what may not come does not count."""
    lab, settings = make_lab(lettered), SETTINGS["narrow"]
    tokens = np.array([0, *lab.encode(PROMPT)[1:]])
    state, room = GRAMMAR.start(tokens, 45), 45
    for token in _drawn(lab, settings, [5])[0]:
        assert GRAMMAR.allowed(state, room).allowed_V[token]
        state, room = GRAMMAR.advance(state, token), room - 1


def test_ruling_tokens_out_is_no_trouble_and_ruling_all_out_is(make_lab, lettered):
    class Nothing(Contrastive):
        def mix(self, logits_SRV, shares):
            return torch.full_like(logits_SRV[0], -inf)

    lab = make_lab(lettered)
    with pytest.raises(FloatingPointError, match="mixes them into such"):
        lab.generate(PROMPT, settings=WARM, guidance=Nothing(), grammar=GRAMMAR)


def test_a_session_with_contrast_is_left_and_goes_on(make_lab, lettered):
    lab = make_lab(lettered)
    settings = SETTINGS["both"]
    whole = lab.generate(PROMPT, settings=settings, seed=4, grammar=GRAMMAR)
    session = lab.begin(PROMPT, settings=settings, seed=4, grammar=GRAMMAR)
    stream = session.stream()
    for _ in range(5):
        next(stream)
    stream.close()
    for _ in session.stream():
        pass
    assert session.reply == whole
    session.append(Document.of(EndTurn(), "ab", EndTurn()))
    assert list(session.stream())


def test_an_answer_about_a_picture_is_guided_away_from_one_unseen(make_lab, lettered, picture):
    lab = make_lab(lettered)
    asked = Document.of(Image(picture), "ab", EndTurn())
    grammar = Grammar(WORDS, CODES, images=False)
    replies = [
        lab.generate(asked, temperature=1.0, text_guidance=guidance, grammar=grammar, max_tokens=20)
        for guidance in (1.0, TwoWay(6.0, without_images), Contrastive(0.0, without=without_images))
    ]
    assert len({reply.text for reply in replies}) > 1


# How it is written


WRITTEN = {
    "3": 3.0,
    "Contrastive": Contrastive(),
    " Contrastive(alpha=0.1, k=8, without=masked_words)": Contrastive(0.1, 8, without=masked_words),
    "TwoWay(Linear(4, 1))": TwoWay(Linear(4.0, 1.0)),
    "TwoWay(2, Negative('blurry', images=False))": TwoWay(2.0, Negative(Document.of("blurry"), images=False)),
    "ThreeWay(3, image=1.5)": ThreeWay(3.0, 1.5),
    "Contrastive(scale=5.0, without=without_words)": Contrastive(scale=5.0, without=without_words),
}


@pytest.mark.parametrize("words", WRITTEN)
def test_a_guidance_is_read_from_a_command_line_and_survives_json(words):
    options = command_parser().parse_args(["generate", "draw", f"--guidance={words}", "--text-guidance", words])
    settings = Settings().changed(**loading.settings_of(options))
    assert settings.guidance == settings.text_guidance == WRITTEN[words] == parse_guidance(words)
    assert Settings.from_plain(json.loads(json.dumps(settings.to_plain()))) == settings


@pytest.mark.parametrize(
    "words",
    ["", "x", "Contrastiv", "Contrastive(", "Contrastive(alpha=2)", "Contrastive(beta=1)", "__import__('os')", "[1]"]
    + ["Contrastive(**{})", "Linear(1, 2)", "without_words", "TwoWay(lambda: 1)", "(" * 3000, "nan", "Negative('x')"]
    + ["Contrastive(alpha=True)", "Contrastive(k=1e400)", "TwoWay(-1)", "Contrastive.mix", "TwoWay('x')"],
    ids=lambda words: words[:20],
)
def test_what_is_no_guidance_is_an_error_that_says_so(words):
    with pytest.raises(ValueError, match=r"[Gg]uidance|alpha|counted from|view|schedule|finite"):
        parse_guidance(words)


def test_a_sampler_after_the_score_takes_shares_of_it():
    logits_SRV = torch.randn(2, 1, 9)
    scores_1V = Contrastive(0.3).mix(logits_SRV, [0.0])
    picks = {int(Sampler(0.8, 0.9).pick(scores_1V, [draw])) for draw in np.linspace(0, 0.999, 60)}
    assert picks <= set(np.flatnonzero(scores_1V[0].isfinite()).tolist())


def test_settings_without_guided_words_are_saved_as_they_were_before_there_were_such():
    assert "text_guidance" not in Settings().to_plain() and "text_guidance" in Settings(text_guidance=2.0).to_plain()
