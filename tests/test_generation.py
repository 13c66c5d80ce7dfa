"""Generation: never ill-formed, the same in any batch, guided as the formulas say, nothing computed twice."""

import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import CODES, WARM, WORDS

from chameleon_lab.documents import Blank, Document, EndTurn, Image
from chameleon_lab.generation import continuation, decoder
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.generation.engine import Engine, Settings
from chameleon_lab.generation.grammar import Grammar, Rules, Unrestricted
from chameleon_lab.generation.guidance import (
    Linear,
    Negative,
    ThreeWay,
    TwoWay,
    from_begin_image,
    image_alone,
    masked_words,
)
from chameleon_lab.generation.samplers import Sampler
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.vocabulary import Modality, Vocabulary


def shape(tokens) -> str:
    """One letter a token, from the ids alone: t text, ( begin, i code, ) end, e turn, E document, ? other."""
    special = {WORDS.begin_image: "(", WORDS.end_image: ")", WORDS.end_turn: "e", WORDS.end_document: "E", 0: "^"}
    kinds = {Modality.TEXT: "t", Modality.IMAGE: "i", Modality.SPECIAL: "?"}
    return "".join(special.get(int(token)) or kinds[Modality(WORDS.modality[token])] for token in tokens)


WELL_FORMED = re.compile(rf"([te]|\(i{{{CODES}}}\))*E?")


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
    engine: Engine, tokens: list[np.ndarray], settings: Settings, seeds, grammar: Rules | None = None
) -> list[tuple[list[int], str]]:
    """(new tokens, why it ended) of each row."""
    made, ends = [[] for _ in tokens], [""] * len(tokens)
    for row, token, state in engine.tokens(tokens, settings, seeds, grammar):
        made[row] += [] if token is None else [token]
        ends[row] = state.ended or ends[row]
    return list(zip(made, ends, strict=True))


@pytest.mark.usefixtures("pace")
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
        left = limit - len(prompt) - len(tokens)  # at an end for "length" none, or too few for the image that came next
        assert left >= 0 and (ended != "length" or left == 0 or (text and images and left < CODES + 2))
        assert (text or "t" not in shape(tokens)) and (images or "(" not in shape(tokens))
        assert most is None or most >= CODES + 2 or "(" not in shape(tokens)
        engine.tokenizer.decode([0, *tokens])


@pytest.mark.usefixtures("pace")
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


# Without cache, batch and twins


def logits_after(engine: Engine, tokens) -> torch.Tensor:
    return engine.model(torch.tensor([[int(token) for token in tokens]]))[0, -1]


def images_only(tokens: list[int]) -> list[int]:
    return [t for t in tokens if t in (0, WORDS.begin_image, WORDS.end_image) or 4 <= t < 16]


def this_image(tokens: list[int]) -> list[int]:
    return tokens[len(tokens) - 1 - tokens[::-1].index(WORDS.begin_image) :]


def masked(tokens: list[int]) -> list[int]:
    words = [t >= WORDS.first_text for t in tokens]
    runs = [WORDS.first_sentinel if word else t for word, t in zip(words, tokens, strict=True)]
    return [t for place, t in enumerate(runs) if not (words[place] and place and words[place - 1])]


def two_way(scale: float, seen=images_only):
    """u + scale (f - u), written out."""

    def formula(engine: Engine, tokens: list[int], share: float) -> torch.Tensor:
        full_V, without_V = logits_after(engine, tokens), logits_after(engine, seen(tokens))
        return without_V + scale * (full_V - without_V)

    return formula


def three_way(engine: Engine, tokens: list[int], share: float) -> torch.Tensor:
    f, i, u = (logits_after(engine, each) for each in (tokens, images_only(tokens), [0, *this_image(tokens)]))
    return u + 1.2 * (i - u) + 3.0 * (f - i)


def falling(engine: Engine, tokens: list[int], share: float) -> torch.Tensor:
    return two_way(4.0 - 3.0 * share)(engine, tokens, share)


NEGATIVE = Document.of("dcb", EndTurn())
NEGATIVE_TOKENS = [0, *(WORDS.first_text + "abcd".index(letter) for letter in "dcb"), WORDS.end_turn]
GUIDES = {
    "none": (1.0, lambda engine, tokens, share: logits_after(engine, tokens)),
    "nothing of the words": (0.0, two_way(0.0)),
    "two-way": (2.0, two_way(2.0)),
    "two-way, strong": (TwoWay(4.0), two_way(4.0)),
    "three-way": (ThreeWay(), three_way),
    "Chameleon's [<s>, begin_image]": (TwoWay(3.0, image_alone), two_way(3.0, lambda t: [0, *this_image(t)])),
    "Lumina's": (TwoWay(3.0, from_begin_image), two_way(3.0, this_image)),
    "CM3Leon's": (TwoWay(3.0, masked_words), two_way(3.0, masked)),
    "negative": (TwoWay(3.0, Negative(NEGATIVE)), two_way(3.0, lambda t: NEGATIVE_TOKENS + images_only(t)[1:])),
    "schedule": (TwoWay(Linear(4.0, 1.0)), falling),
}


@torch.no_grad()
def by_hand(engine: Engine, prompt: np.ndarray, settings: Settings, seed: int, grammar: Grammar, formula) -> list[int]:
    """One row from whole forward passes: no cache, no batch, no twin that is kept."""
    tokens, rng, limit = [int(token) for token in prompt], np.random.default_rng(seed), engine.model.config.context
    state = grammar.start(prompt, limit - len(prompt))
    while len(tokens) < limit:
        if state.place is not None and state.place < CODES:
            logits_V, sampler = formula(engine, tokens, state.place / CODES), settings.image_sampler
        else:
            logits_V, sampler = logits_after(engine, tokens), settings.text_sampler
        hidden_V = torch.from_numpy(~grammar.allowed(state, limit - len(tokens)).allowed_V)
        token = int(sampler.pick(logits_V.masked_fill(hidden_V, -torch.inf)[None], [rng.random()]))
        state = grammar.advance(state, token)
        if state.ended:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("guide", GUIDES)
def test_the_engine_equals_the_formula_without_cache(engine, guide):
    guidance, formula = GUIDES[guide]
    settings, told = replace(WARM, guidance=guidance, image_temperature=0.7), prompts(engine, 4)
    grammar = Grammar(engine.tokenizer.vocabulary, CODES, text=False, max_images=3, min_images=1)
    rows = run(engine, told, settings, range(4), grammar)
    for index, (tokens, _) in enumerate(rows):
        assert tokens == by_hand(engine, told[index], settings, index, grammar, formula)
    drawn = [shape(tokens).count("(") for tokens, _ in rows]
    assert min(drawn) >= 1 and max(drawn) >= 2


@pytest.mark.parametrize("guide", ["none", "two-way", "three-way", "negative"])
def test_cached_logits_equal_uncached_ones(engine, guide, monkeypatch):
    guidance, formula = GUIDES[guide]
    seen: list[torch.Tensor] = []
    pick = Sampler.pick

    def watched(sampler, logits_RV, draws, said_RV=None):
        seen.append(logits_RV.clone())
        return pick(sampler, logits_RV, draws, said_RV)

    monkeypatch.setattr(Sampler, "pick", watched)
    prompt = prompts(engine, 3)[2]
    grammar = Grammar(engine.tokenizer.vocabulary, CODES, text=False, min_images=2)
    ((tokens, _),) = run(engine, [prompt], replace(WARM, guidance=guidance), [3], grammar)
    drawn = [logits_RV[0] for logits_RV in seen if logits_RV.shape[-1] == 12]  # the codes' alone
    places = [place for place, token in enumerate(tokens, len(prompt)) if 4 <= token < 16]
    assert len(drawn) == len(places) >= 2 * CODES
    with torch.no_grad():
        for logits_V, place in zip(drawn, places, strict=True):
            so_far = [*prompt.tolist(), *tokens][:place]
            wanted_V = formula(engine, so_far, (len(this_image(so_far)) - 1) / CODES)[4:16]
            assert torch.allclose(logits_V, wanted_V, atol=2e-5)


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("guide", ["none", "two-way", "three-way", "negative"])
def test_rows_in_different_states_go_on_together(engine, guide):
    guidance, formula = GUIDES[guide]
    settings, rng = replace(WARM, guidance=guidance), np.random.default_rng(1)
    image = [WORDS.begin_image, *rng.integers(4, 16, CODES), WORDS.end_image]
    told = [np.array([0, WORDS.first_text, *image[:cut]]) for cut in (0, 1, 2, 9, CODES + 1, CODES + 2)]
    grammar = Grammar(engine.tokenizer.vocabulary, CODES)
    rows = run(engine, told, settings, range(6), grammar)
    for index, (prompt, (tokens, _)) in enumerate(zip(told, rows, strict=True)):
        assert WELL_FORMED.fullmatch(shape([*prompt[1:], *tokens]))
        assert tokens == by_hand(engine, prompt, settings, index, grammar, formula)


@pytest.mark.usefixtures("pace")
def test_a_long_twin_may_catch_up_beside_one_that_is_almost_full(engine):
    rng = np.random.default_rng(0)
    image = [WORDS.begin_image, *rng.integers(4, 16, CODES), WORDS.end_image]
    full, late = np.array([0, *image * 7, *image[:1]]), np.array([0, *image * 5, WORDS.first_text, WORDS.end_turn])
    grammar = Grammar(engine.tokenizer.vocabulary, CODES, text=False)
    settings, hand = replace(WARM, guidance=2.0), two_way(2.0)
    seed = next(s for s in range(50) if shape(by_hand(engine, late, settings, s, grammar, hand)).startswith("("))
    rows = run(engine, [full, late], settings, [seed, seed], grammar)
    for prompt, (tokens, _) in zip((full, late), rows, strict=True):
        assert tokens == by_hand(engine, prompt, settings, seed, grammar, hand)


# Any grid


def grid(image: Image) -> tuple[int, ...]:
    assert image.codes is not None
    return image.codes.shape


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("guidance", [1.0, TwoWay(2.0, from_begin_image), ThreeWay()])
def test_images_of_any_grid_are_drawn_read_and_told(make_lab, lettered, guidance):
    vocabulary = Vocabulary.layout(12, 4, largest_side=6)
    lab = make_lab(MixedModalTokenizer(lettered.text, lettered.image, vocabulary))
    grammar, prompt = Grammar(vocabulary, text=False, min_images=1), Document.of("abc", EndTurn())
    settings = replace(WARM, guidance=guidance)
    replies = lab.engine.generate([prompt] * 8, settings, range(8), grammar)
    grids = {grid(image) for reply in replies for image in reply if isinstance(image, Image)}
    assert len(grids) >= 4 and all(side in (2, 4, 6) for grid in grids for side in grid)
    for seed in range(3):
        assert lab.engine.generate([prompt], settings, [seed], grammar) == [replies[seed]]
    (sized,) = lab.engine.generate([prompt], settings, [1], replace(grammar, max_images=1, grid=(2, 6)))
    assert [grid(image) for image in sized if isinstance(image, Image)] == [(2, 6)]


# Traps of mixed-modal decoding


class Counting(Decoder):
    """A decoder that counts how often each position of each row was computed, and likes tokens by `liking_V`."""

    liking_V: torch.Tensor
    rows_fed: dict[tuple[int, int], list[int]]

    def trunk(self, tokens_BT: torch.Tensor, start: int = 0) -> torch.Tensor:
        for row, tokens in enumerate(tokens_BT.tolist(), start):
            for place, token in enumerate(tokens, int(self.cache.lengths[row])):
                if token != WORDS.pad:
                    self.rows_fed.setdefault((row, place), []).append(token)
        return torch.zeros(*tokens_BT.shape, 1)

    def logits(self, outputs_BTD: torch.Tensor) -> torch.Tensor:
        return self.liking_V.expand(len(outputs_BTD), -1)

    @classmethod
    def row(cls, row: int) -> list[int]:
        """What a row was fed, in order of places. Raises AssertionError where a place was computed twice."""
        places = sorted(place for each, place in cls.rows_fed if each == row)
        assert places == list(range(len(places))) and all(len(cls.rows_fed[row, place]) == 1 for place in places)
        return [cls.rows_fed[row, place][0] for place in places]


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Callable[[torch.Tensor], type[Counting]]:
    """Has continuations decode with a `Counting` that likes tokens so."""

    def like(liking_V: torch.Tensor) -> type[Counting]:
        kind = type("Counting", (Counting,), {"liking_V": liking_V, "rows_fed": {}})
        monkeypatch.setattr(continuation, "Decoder", kind)
        return kind

    return like


def liking(**by_kind: float) -> torch.Tensor:
    """Logits that like words, images (their begin and codes) and ends so much."""
    liking_V = torch.full((WORDS.size,), -5.0)
    liking_V[WORDS.first_text :] = by_kind.get("words", 0.0)
    liking_V[4:16] = 1.0
    liking_V[WORDS.begin_image] = by_kind.get("images", 0.0)
    liking_V[WORDS.end_turn] = by_kind.get("ends", -5.0)
    return liking_V


@pytest.mark.usefixtures("pace")
def test_trap_16_rows_that_end_early_leave_the_others_as_they_are(engine):
    told, most = prompts(engine, 8), replace(WARM, max_tokens=60)
    together = run(engine, told, most, range(8))
    ends = [len(tokens) for tokens, _ in together]
    assert min(ends) <= 5 and max(ends) >= 30
    for index in range(8):
        assert run(engine, [told[index]], most, [index]) == [together[index]]


def test_trap_17_an_end_of_turn_is_given_to_the_model_exactly_where_the_document_has_one(engine, counting):
    for document in (Document.of("abc"), Document.of("abc", EndTurn())):
        model = counting(liking(words=1.0))
        engine.generate([document], Settings(max_tokens=4), [0])
        prompt = engine.tokenizer.encode(document).tolist()
        assert model.row(0)[: len(prompt)] == prompt
        assert WORDS.end_turn not in model.row(0)[len(prompt) :]
        assert (WORDS.end_turn in prompt) == (len(document) == 2)


def test_trap_18_an_image_begun_ends_no_reply(engine, counting):
    counting(liking(words=0.0, images=0.5))
    rows = run(engine, prompts(engine, 4), WARM, range(4), None)
    assert any(re.search(r"t\(i+\)t", shape(tokens)) for tokens, _ in rows)
    assert {ended for _, ended in rows} == {"length"}


@pytest.mark.parametrize("guidance", [1.0, 2.0, TwoWay(3.0, masked_words)])
def test_trap_19_nothing_is_computed_twice_at_a_switch(engine, counting, guidance):
    model = counting(liking(words=0.0, images=1.0))
    told = prompts(engine, 3)
    rows = run(engine, told, replace(WARM, guidance=guidance), range(3))
    for row, (prompt, (tokens, _)) in enumerate(zip(told, rows, strict=True)):
        assert shape(tokens).count("(") >= 2 and "t" in shape(tokens)
        whole = [*prompt.tolist(), *tokens]  # the last is drawn and not yet fed, but where an image found no room
        assert model.row(row) in (whole, whole[:-1])
        if guidance == 2.0:
            seen = images_only([*prompt.tolist(), *tokens])
            assert model.row(3 + row) == seen[: len(model.row(3 + row))] and len(model.row(3 + row)) >= len(seen) - 2


def test_trap_19_a_twin_that_sees_only_its_image_keeps_what_all_its_images_share(engine, counting):
    model = counting(liking(images=1.0))
    grammar = Grammar(WORDS, CODES, text=False, max_images=3, min_images=3)
    ((tokens, _),) = run(engine, prompts(engine, 1), replace(WARM, guidance=ThreeWay()), [0], grammar)
    assert shape(tokens).count("(") == 3
    fed = {place: len(each) for (row, place), each in model.rows_fed.items() if row == 2}
    assert fed[0] == 1  # begin_document; begin_image is fed anew, since what follows it is asked anew
    assert set(fed) == set(range(CODES + 1)) and max(fed.values()) == 3


def test_trap_21_the_penalty_spares_image_tokens(engine):
    grammar = Grammar(engine.tokenizer.vocabulary, CODES, text=False, min_images=2)
    told = prompts(engine, 4)
    plain = run(engine, told, WARM, range(4), grammar)
    assert run(engine, told, replace(WARM, repetition=50.0), range(4), grammar) == plain
    assert max(shape(tokens).count("(") for tokens, _ in plain) >= 2


@pytest.mark.usefixtures("pace")
def test_trap_21_the_penalty_spares_the_prompt_and_strikes_the_reply(engine, counting):
    liking_V = torch.full((WORDS.size,), -5.0)
    liking_V[WORDS.first_text :] = torch.tensor([4.0, 3.9, 3.8, 3.7])
    cold = Settings(temperature=0.0, max_tokens=6)
    counting(liking_V)
    prompt = Document.of("aaaa", EndTurn())
    told = [engine.generate([prompt], replace(cold, repetition=penalty), [0])[0].text for penalty in (1.0, 1.5)]
    assert told == ["aaaaaa", "abcdaa"]  # once all are struck alike the likeliest comes again
    assert engine.generate([prompt, Document.of("b")], replace(cold, repetition=1.5), [0, 0])[1].text == "abcdaa"


# Bad input


def test_a_prompt_too_long_is_refused_with_its_length(engine):
    long = np.array([0] + [WORDS.first_text] * 159)
    with pytest.raises(ValueError, match="The prompt has 160 tokens and the model's context holds 160"):
        run(engine, [long], WARM, [0])
    assert run(engine, [long[:-1]], WARM, [0])[0][1] in ("length", "end_turn", "end_document")


@pytest.mark.parametrize("prompt", [[0, WORDS.size], [0, -1], [0, 10**9]])
def test_unknown_ids_in_a_prompt_are_refused(engine, prompt):
    with pytest.raises(ValueError, match=rf"Token ids must lie in 0..{WORDS.size - 1}; got"):
        run(engine, [np.array(prompt)], WARM, [0])


def test_an_empty_prompt_is_refused(engine):
    with pytest.raises(ValueError, match="at least one token, begin_document"):
        run(engine, [np.array([], np.int64)], WARM, [0])


def test_an_image_begun_in_the_prompt_needs_room_to_be_finished(engine):
    prompt = np.array([0, WORDS.begin_image, *[4] * 5])
    left = CODES - 5 + 1
    with pytest.raises(ValueError, match="no room to finish it"):
        run(engine, [prompt], replace(WARM, max_tokens=left - 1), [0])
    ((tokens, _),) = run(engine, [prompt], replace(WARM, max_tokens=left), [0])
    assert shape(tokens) == "i" * 11 + ")"


def test_an_unfinished_image_in_a_text_only_grammar_is_refused(engine):
    with pytest.raises(ValueError, match="ends inside an image and this grammar allows text only"):
        run(engine, [np.array([0, WORDS.begin_image, 4])], WARM, [0], Grammar(WORDS, CODES, images=False))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_no_memory_for_the_cache_is_told_in_numbers(engine, monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(decoder, "KVCache", refuse)
    position = 2 * 2 * 2 * 8 * 4  # keys and values, layers, key heads, their width, bytes
    with pytest.raises(ValueError, match=f"6 rows x 160 positions x {position} bytes = .* Take fewer documents"):
        run(engine, prompts(engine, 2), replace(WARM, guidance=ThreeWay()), [0, 1])


def test_no_memory_for_a_real_cache_is_told_too(make_lab, lettered):
    lab = make_lab(lettered, context=2**31)
    with pytest.raises(ValueError, match=r"Out of memory: the cache takes 1 rows x 2147483648 positions"):
        lab.generate(Document.of("a"))


def test_another_error_of_the_cache_is_not_hidden(engine, monkeypatch):
    def refuse(*_):
        raise RuntimeError("a broken kernel")

    monkeypatch.setattr(decoder, "KVCache", refuse)
    with pytest.raises(RuntimeError, match="a broken kernel"):
        run(engine, prompts(engine, 1), WARM, [0])


@pytest.mark.usefixtures("pace")
def test_a_negative_prompt_beyond_the_cache_is_refused(engine):
    grammar = Grammar(WORDS, CODES, text=False, min_images=1)
    long = TwoWay(2.0, Negative(Document.of("a" * 150)))
    with pytest.raises(ValueError, match=r"Guidance needs 1\d\d positions beside the document .*: shorten the neg"):
        run(engine, prompts(engine, 1), replace(WARM, guidance=long), [0], grammar)
    fits = TwoWay(2.0, Negative(Document.of("a" * 100)))  # more than the document and its reply
    assert run(engine, prompts(engine, 1), replace(WARM, guidance=fits, max_tokens=20), [0], grammar)


@pytest.mark.usefixtures("pace")
def test_left_alone_a_row_tells_that_it_was_ill_formed(engine, counting):
    counting(torch.zeros(WORDS.size))
    rows = run(engine, prompts(engine, 9), WARM, range(9), Unrestricted(WORDS, CODES))
    assert "ill_formed" in {ended for _, ended in rows}


def test_a_guidance_that_breaks_its_word_is_refused(engine):
    class Broken(TwoWay):
        twins = 2

    with pytest.raises(ValueError, match=r"Broken has 2 twins and gave streams of \[2\] tokens: one for each"):
        run(engine, [np.array([0, WORDS.first_text])], replace(WARM, guidance=Broken(2.0)), [0])
    empty = TwoWay(2.0, lambda tokens, tokenizer: tokens[:0])
    with pytest.raises(ValueError, match=r"TwoWay has 1 twins and gave streams of \[0\] tokens"):
        run(engine, prompts(engine, 1), replace(WARM, guidance=empty), [0])


def test_no_documents_have_no_replies(engine):
    assert engine.generate([], WARM, []) == []


@pytest.mark.gpu
@pytest.mark.parametrize("guidance", [1.0, 2.0, ThreeWay()])
def test_an_image_waits_for_a_gpu_once(engine, guidance):
    lab_engine = Engine(engine.model.cuda(), engine.tokenizer)
    grammar = Grammar(WORDS, CODES, text=False, max_images=1, min_images=1)
    asked = [np.array([0, WORDS.first_text, WORDS.begin_image])]
    run(lab_engine, asked, replace(WARM, guidance=guidance), [0], grammar)  # recorded
    with pytest.warns(UserWarning, match="synchroniz") as warned:
        torch.cuda.set_sync_debug_mode("warn")  # which warns of itself
        try:
            run(lab_engine, asked, replace(WARM, guidance=guidance), [0], grammar)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [each for each in warned if "called a synchronizing" in str(each.message)]
    assert 0 < len(waits) < CODES


@pytest.mark.parametrize("call", ["generate", "stream", "begin", "walk", "infill"])
def test_a_seed_that_is_none_is_refused_at_once_and_large_ones_are_taken(call, lab):
    document = Document.of("a", *[Blank(2)] * (call == "infill"))
    for seed in (-1, 1.5, "x", True, None, math.nan, math.inf, [1], 10**400):
        with pytest.raises(ValueError, match="seed must be"):
            getattr(lab, call)(document, seed=seed)
    for seed in (2**64, np.int64(3), 7.0):
        getattr(lab, call)(document, seed=seed)
