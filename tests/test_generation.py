"""Generation: never ill-formed, the same in any batch, guided as the formula says."""

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.generation.engine import Engine, Settings
from chameleon_lab.generation.grammar import Grammar, State
from chameleon_lab.generation.guidance import guided, without_words
from chameleon_lab.generation.samplers import Sampler
from chameleon_lab.records import ImagePiece, StopPiece, TextPiece
from chameleon_lab.vocabulary import Modality, Vocabulary

WORDS = Vocabulary.layout(12, 4)
CODES = 16
WARM = Settings(temperature=1.0, image_temperature=1.0, top_p=1.0)


def shape(tokens) -> str:
    """One letter a token, from the ids alone: t text, ( begin, i code, ) end, e turn, E document, ? other."""
    special = {WORDS.begin_image: "(", WORDS.end_image: ")", WORDS.end_turn: "e", WORDS.end_document: "E", 0: "^"}
    kinds = {Modality.TEXT: "t", Modality.IMAGE: "i", Modality.SPECIAL: "?"}
    return "".join(special.get(int(token)) or kinds[Modality(WORDS.modality[token])] for token in tokens)


WELL_FORMED = re.compile(rf"([te]|\(i{{{CODES}}}\))*E?")


# Grammar


def walk(grammar: Grammar, state: State, room: int, rng: np.random.Generator, eager: bool) -> tuple[list[int], State]:
    """Allowed tokens at random until the row ends or has no room; `eager` begins an image wherever it may."""
    tokens: list[int] = []
    while not state.ended and len(tokens) < room:
        allowed = grammar.allowed(state, room - len(tokens))
        assert allowed.shape == (WORDS.size,) and allowed.any()
        token = WORDS.begin_image if eager and allowed[WORDS.begin_image] else int(rng.choice(np.flatnonzero(allowed)))
        tokens.append(token)
        state = grammar.advance(state, token)
    return tokens, state


@pytest.mark.parametrize(("text", "images"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("most", [1, 2, 10**6])
def test_whatever_is_allowed_is_well_formed(text, images, most):
    grammar, rng = Grammar(WORDS, CODES, text=text, images=images, max_images=most), np.random.default_rng(0)
    seen = Counter()
    for trial in range(150):
        room = int(rng.integers(1, 80))
        tokens, state = walk(grammar, grammar.start(np.array([0])), room, rng, eager=trial % 2 == 0)
        told = shape(tokens)
        assert WELL_FORMED.fullmatch(told), told
        assert told.count("(") <= most * images and (text or "t" not in told)
        assert len(tokens) == room or state.ended
        assert re.search("[eE]", told[:-1]) is None  # nothing after an end
        seen.update(told)
    assert ("t" in seen) == text and ("i" in seen) == images and seen["e"] and seen["E"] and not seen["?"]


def test_every_state_can_be_a_prompt_and_goes_on_well_formed():
    grammar, rng = Grammar(WORDS, CODES), np.random.default_rng(0)
    whole = [0, WORDS.first_text, WORDS.begin_image, *rng.integers(4, 16, CODES), WORDS.end_image, WORDS.end_turn]
    for length in range(1, len(whole) + 1):
        state = grammar.start(np.array(whole[:length]))
        assert state.ended is None and state.images == 0
        assert state.codes == (length - 3 if 3 <= length < 3 + CODES + 1 else None)
        tokens, _ = walk(grammar, state, 60, rng, eager=False)
        assert WELL_FORMED.fullmatch(shape(whole[1:length] + tokens))


def test_an_image_starts_only_where_it_fits_whole():
    grammar = Grammar(WORDS, CODES)
    for room in range(1, 40):
        assert grammar.allowed(State(), room)[WORDS.begin_image] == (room >= CODES + 2)


def test_an_image_of_the_prompt_does_not_count_towards_the_most():
    grammar = Grammar(WORDS, CODES, max_images=1)
    prompt = np.array([0, WORDS.begin_image, *[4] * CODES, WORDS.end_image])
    state = grammar.start(prompt)
    assert grammar.allowed(state, 99)[WORDS.begin_image]
    for token in prompt[1:]:
        state = grammar.advance(state, int(token))
    assert not grammar.allowed(state, 99)[WORDS.begin_image]


def test_masks_follow_ids_and_not_spellings():
    allowed = Grammar(WORDS, CODES).allowed(State(), 99)
    never = {
        WORDS.begin_document,
        WORDS.pad,
        WORDS.unknown,
        WORDS.end_image,
        *range(WORDS.first_sentinel, WORDS.end_turn),
    }
    assert not allowed[list(never)].any() and allowed[WORDS.first_text :].all()
    inside = Grammar(WORDS, CODES).allowed(State(codes=3), 99)
    assert np.flatnonzero(inside).tolist() == list(range(4, 16))
    assert np.flatnonzero(Grammar(WORDS, CODES).allowed(State(codes=CODES), 1)).tolist() == [WORDS.end_image]


def test_a_grammar_that_allows_nothing_is_refused():
    with pytest.raises(ValueError, match="allows nothing"):
        Grammar(WORDS, CODES, text=False, images=False)


@pytest.mark.parametrize(
    ("prompt", "place"),
    [([0, 4], 1), ([0, WORDS.end_image], 1), ([0, WORDS.begin_image, WORDS.end_image], 2)]
    + [([0, WORDS.begin_image, 4, WORDS.first_text], 3), ([0, WORDS.begin_image, *[4] * (CODES + 1)], 2 + CODES)]
    + [([0, WORDS.begin_image, WORDS.begin_image], 2)],
)
def test_an_ill_formed_prompt_is_refused_with_its_place(prompt, place):
    with pytest.raises(ValueError, match=rf"ill-formed: token {prompt[place]} at position {place} "):
        Grammar(WORDS, CODES).start(np.array(prompt))


# Samplers


def test_no_temperature_takes_the_likeliest():
    logits_XV = torch.randn(50, 9)
    assert [Sampler(0.0).pick(row, 0.99) for row in logits_XV] == logits_XV.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_are_distributed_as_the_softmax_says(temperature):
    logits_V = torch.tensor([2.0, -1.0, 0.5, -torch.inf, 0.0, 1.0])
    rng, count = np.random.default_rng(0), 4000
    picks = np.array([Sampler(temperature).pick(logits_V, rng.random()) for _ in range(count)])
    wanted = count * torch.softmax(logits_V / temperature, -1).numpy()
    found = np.bincount(picks, minlength=6)
    assert found[3] == 0
    chosen = wanted > 0
    assert ((found - wanted)[chosen] ** 2 / wanted[chosen]).sum() < 18.5  # chi-square, 4 degrees of freedom, p = 0.001


def test_top_p_keeps_the_fewest_likeliest_tokens_that_reach_it():
    shares = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    for top_p, kept in (
        (1e-9, {1}),
        (0.39, {1}),
        (0.41, {1, 3}),
        (0.69, {1, 3}),
        (0.71, {1, 3, 4}),
        (1.0, set(range(5))),
    ):
        picks = [Sampler(1.0, top_p).pick(shares.log(), draw) for draw in np.linspace(0, 1, 400, endpoint=False)]
        assert set(picks) == kept
        found = np.bincount(picks, minlength=5) / 400
        for token in kept:
            assert found[token] == pytest.approx(float(shares[token] / shares[list(kept)].sum()), abs=0.01)


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("draw", [0.0, 0.5, 1 - 2**-53])
def test_a_hidden_token_is_never_taken(temperature, draw):
    for trial in range(50):
        logits_V = 30 * torch.randn(9, generator=torch.Generator().manual_seed(trial))
        logits_V[torch.arange(9) % 3 != trial % 3] = -torch.inf
        assert Sampler(temperature, 0.95 if trial % 2 else 1.0).pick(logits_V, draw) % 3 == trial % 3


@pytest.mark.parametrize(
    "settings", [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}]
)
def test_impossible_samplers_are_refused(settings):
    with pytest.raises(ValueError, match="must"):
        Sampler(**settings)
    with pytest.raises(ValueError, match="must"):
        Settings(**settings)


@pytest.mark.parametrize("settings", [{"guidance": -1}, {"max_tokens": 0}, {"image_temperature": -1}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="must"):
        Settings(**settings)


def test_changed_settings_keep_what_is_not_given():
    base = Settings(0.1, 0.2, 0.3, 4.0, 5)
    assert base.changed() == base
    assert base.changed(temperature=0.0) == replace(base, temperature=0.0, image_temperature=0.0)
    assert base.changed(top_p=0.9, guidance=0.0, max_tokens=7) == Settings(0.1, 0.2, 0.9, 0.0, 7)


# The engine


@pytest.fixture
def engine(make_lab, lettered) -> Engine:
    """A random model of four letters, which often draws."""
    return make_lab(lettered).engine


def prompts(engine: Engine, count: int) -> list[np.ndarray]:
    """Prompts of different lengths, some with pictures."""
    rng = np.random.default_rng(9)
    made = []
    for index in range(count):
        codes = rng.integers(0, 12, (4, 4))
        image = [Image(engine.tokenizer.image.decode(codes), codes)] * (index % 3 == 2)
        made.append(engine.tokenizer.encode(Document.of("abcd"[: 1 + index % 4], *image, "dd", EndTurn())))
    return made


def run(
    engine: Engine, tokens: list[np.ndarray], settings: Settings, seeds, grammar=None
) -> list[tuple[list[int], str]]:
    """(new tokens, why it ended) of each row."""
    made, ends = [[] for _ in tokens], [""] * len(tokens)
    for row, token, state in engine.tokens(tokens, settings, seeds, grammar):
        made[row] += [] if token is None else [token]
        ends[row] = state.ended or ends[row]
    return list(zip(made, ends, strict=True))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(("text", "images"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("most", [1, CODES + 1, CODES + 2, 50, None])
def test_a_random_model_writes_well_formed_documents(engine, guidance, text, images, most):
    grammar = Grammar(engine.tokenizer.vocabulary, CODES, text=text, images=images)
    settings = replace(WARM, guidance=guidance, max_tokens=most)
    told = prompts(engine, 6)
    rows = run(engine, told, settings, range(6), grammar)
    for prompt, (tokens, ended) in zip(told, rows, strict=True):
        assert WELL_FORMED.fullmatch(shape(tokens)), shape(tokens)
        assert ended in ("end_turn", "end_document", "length")
        limit = min(engine.model.config.context, len(prompt) + (most or 10**6))
        assert len(prompt) + len(tokens) <= limit and (ended != "length" or len(prompt) + len(tokens) == limit)
        assert (text or "t" not in shape(tokens)) and (images or "(" not in shape(tokens))
        assert most is None or most >= CODES + 2 or "(" not in shape(tokens)
        engine.tokenizer.decode([0, *tokens])


@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.5])
def test_a_row_is_the_same_alone_and_in_any_batch(engine, guidance):
    settings, told = replace(WARM, guidance=guidance), prompts(engine, 7)
    together = run(engine, told, settings, range(7))
    shapes = [shape(tokens) for tokens, _ in together]
    assert sum("(" in one for one in shapes) >= 2 and sum("t" in one for one in shapes) >= 2
    for index in range(7):
        assert run(engine, [told[index]], settings, [index]) == [together[index]]
    assert run(engine, told[::-1], settings, range(6, -1, -1)) == together[::-1]


def test_seeds_reproduce_and_differ(engine):
    told, seeds = prompts(engine, 1) * 10, [0, 1, 2, 3, 4, 5, 6, 7, 2, 5]  # the last two again
    rows = run(engine, told, WARM, seeds)
    assert rows == run(engine, told, WARM, seeds)
    assert rows[8:] == [rows[2], rows[5]]
    assert len({tuple(tokens) for tokens, _ in rows}) >= 4


def test_without_temperature_the_seed_does_not_matter(engine):
    rows = run(engine, prompts(engine, 1) * 3, Settings(temperature=0.0, image_temperature=0.0), [1, 2, 3])
    assert rows[0] == rows[1] == rows[2]


@torch.no_grad()
def by_hand(engine: Engine, prompt: np.ndarray, settings: Settings, seed: int, grammar: Grammar) -> list[int]:
    """One row from whole forward passes: no cache, no batch, no twin that is kept."""
    tokens, rng = [int(token) for token in prompt], np.random.default_rng(seed)
    state, limit = grammar.start(prompt), engine.model.config.context
    while len(tokens) < limit:
        logits_V = engine.model(torch.tensor([tokens]))[0, -1]
        drawing = state.codes is not None and state.codes < CODES
        if drawing and settings.guidance != 1:
            kept = [t for t in tokens if t in (0, WORDS.begin_image, WORDS.end_image) or 4 <= t < 16]
            without_V = engine.model(torch.tensor([kept]))[0, -1]
            logits_V = without_V + settings.guidance * (logits_V - without_V)
        hidden_V = torch.from_numpy(~grammar.allowed(state, limit - len(tokens)))
        sampler = settings.image_sampler if drawing else settings.text_sampler
        token = sampler.pick(logits_V.masked_fill(hidden_V, -torch.inf), rng.random())
        state = grammar.advance(state, token)
        if state.ended:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.0, 4.0])
def test_the_engine_equals_the_formula_without_cache(engine, guidance):
    settings, told = replace(WARM, guidance=guidance, image_temperature=0.7), prompts(engine, 8)
    grammar = Grammar(engine.tokenizer.vocabulary, CODES, text=False, max_images=3)
    rows = run(engine, told, settings, range(8), grammar)
    for index, (tokens, _) in enumerate(rows):
        assert tokens == by_hand(engine, told[index], settings, index, grammar)
    drawn = [shape(tokens).count("(") for tokens, _ in rows]
    assert max(drawn) >= 2 and sum(drawn) >= 3


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_rows_in_different_states_go_on_together(engine, guidance):
    settings, rng = replace(WARM, guidance=guidance), np.random.default_rng(1)
    image = [WORDS.begin_image, *rng.integers(4, 16, CODES), WORDS.end_image]
    told = [np.array([0, WORDS.first_text, *image[:cut]]) for cut in (0, 1, 2, 9, CODES + 1, CODES + 2)]
    grammar = Grammar(engine.tokenizer.vocabulary, CODES)
    rows = run(engine, told, settings, range(6), grammar)
    for index, (prompt, (tokens, _)) in enumerate(zip(told, rows, strict=True)):
        assert WELL_FORMED.fullmatch(shape([*prompt[1:], *tokens]))
        assert tokens == by_hand(engine, prompt, settings, index, grammar)


def test_a_long_twin_may_catch_up_beside_one_that_is_almost_full(engine):
    rng = np.random.default_rng(0)
    image = [WORDS.begin_image, *rng.integers(4, 16, CODES), WORDS.end_image]
    full, late = np.array([0, *image * 7, *image[:1]]), np.array([0, *image * 5, WORDS.first_text, WORDS.end_turn])
    grammar = Grammar(engine.tokenizer.vocabulary, CODES, text=False)
    settings = replace(WARM, guidance=2.0)
    seeds = next((s, s) for s in range(50) if shape(by_hand(engine, late, settings, s, grammar)).startswith("("))
    rows = run(engine, [full, late], settings, seeds, grammar)
    for prompt, (tokens, _) in zip((full, late), rows, strict=True):
        assert tokens == by_hand(engine, prompt, settings, seeds[0], grammar)


def test_no_guidance_is_guidance_of_one():
    conditional_V, unconditional_V = torch.randn(9), torch.randn(9)
    assert torch.allclose(guided(conditional_V, unconditional_V, 1.0), conditional_V, atol=1e-6)
    assert torch.equal(guided(conditional_V, unconditional_V, 0.0), unconditional_V)
    twice_V = 2 * conditional_V - unconditional_V
    assert torch.allclose(guided(conditional_V, unconditional_V, 2.0), twice_V, atol=1e-6)


def test_the_stream_without_words_only_grows(engine):
    (*_, prompt) = prompts(engine, 3)
    tokens = np.array([*prompt, *run(engine, [prompt], WARM, [4])[0][0]])
    told = [without_words(tokens[:length], WORDS).tolist() for length in range(1, len(tokens) + 1)]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in pairwise(told))
    assert set(shape(told[-1])) <= set("^(i)") and "i" in shape(told[-1])


@pytest.mark.parametrize("seed", range(6))
def test_streaming_equals_generating(engine, seed):
    document = Document.of("abc", EndTurn())
    settings = replace(WARM, guidance=1.5)
    (reply,) = engine.generate([document], settings, [seed])
    *pieces, stop = engine.stream(document, settings, seed)
    assert isinstance(stop, StopPiece) and stop.reason in ("end_turn", "end_document", "length")
    assert not any(isinstance(piece, StopPiece) for piece in pieces)
    told = []
    for piece in pieces:
        if isinstance(piece, ImagePiece) and piece.complete:
            told.append(Image(piece.picture, piece.codes))
        elif isinstance(piece, TextPiece):
            last = told.pop().text if told and isinstance(told[-1], Text) else ""
            told.append(Text(last + piece.text))
    assert Document(tuple(told)) == reply


def test_a_picture_is_told_row_by_row(engine):
    grammar = Grammar(engine.tokenizer.vocabulary, CODES, text=False, max_images=1)
    told = [list(engine.stream(Document.of("a"), WARM, seed, grammar)) for seed in range(12)]
    drawn = next(pieces for pieces in told if len(pieces) > 1)
    images = [piece for piece in drawn if isinstance(piece, ImagePiece)]
    assert [len(piece.codes) for piece in images] == [1, 2, 3, 4]
    assert [piece.complete for piece in images] == [False, False, False, True]
    assert all(np.array_equal(images[-1].codes[: len(piece.codes)], piece.codes) for piece in images)


def test_a_stream_can_be_left_at_any_piece(engine):
    stream = engine.stream(Document.of("abc"), WARM, 3)
    next(stream)
    stream.close()
    assert list(stream) == []


def test_a_prompt_too_long_is_refused_with_its_length(engine):
    long = np.array([0] + [WORDS.first_text] * 159)
    with pytest.raises(ValueError, match="The prompt has 160 tokens and the model's context holds 160"):
        run(engine, [long], WARM, [0])
    assert run(engine, [long[:-1]], WARM, [0])[0][1] in ("length", "end_turn", "end_document")


def test_an_image_begun_in_the_prompt_needs_room_to_be_finished(engine):
    prompt = np.array([0, WORDS.begin_image, *[4] * 5])
    left = CODES - 5 + 1
    with pytest.raises(ValueError, match="no room to finish it"):
        run(engine, [prompt], replace(WARM, max_tokens=left - 1), [0])
    ((tokens, _),) = run(engine, [prompt], replace(WARM, max_tokens=left), [0])
    assert shape(tokens) == "i" * 11 + ")"
