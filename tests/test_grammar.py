"""The grammar: whatever it allows is well-formed, in every vocabulary, mode and room."""

import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
from support import CODES, WORDS

from chameleon_lab.generation.grammar import Grammar, Mask, State, Unrestricted
from chameleon_lab.vocabulary import CHAMELEON, LUMINA, Vocabulary

GRIDS = Vocabulary.layout(12, 4, largest_side=8)


def parsed(tokens: list[int], vocabulary: Vocabulary, image_codes: int | None) -> Counter[str]:
    """What a reply holds, read by its bare ids and knowing nothing of the grammar: counts of text, images and ends.

    Raises AssertionError at the first token that cannot stand where it does.
    """
    v, found, place = vocabulary, Counter[str](), 0

    def take(count: int, first: int, stop: int) -> list[int]:
        nonlocal place
        part = tokens[place : place + count]
        assert len(part) == count and all(first <= token < stop for token in part), (tokens, place)
        place += count
        return part

    while place < len(tokens):
        (token,) = take(1, 0, v.size)
        assert not found["end"], "something follows an end"
        if token == v.begin_image:
            found["image"] += 1
            if v.first_grid is None:
                assert image_codes is not None
                take(image_codes, 4, 4 + v.codes)
            else:
                rows, columns = (2 * (side - v.first_grid) for side in take(2, v.first_grid + 1, v.first_text))
                for _ in range(rows):
                    take(columns, 4, 4 + v.codes)
                    take(1, v.new_line or 0, (v.new_line or 0) + 1)
                found[f"{rows}x{columns}"] += 1
            take(1, v.end_image, v.end_image + 1)
        elif token in (v.end_turn, 2):
            found["end"] += 1
        else:
            assert token >= v.first_text, (token, place)
            found["text"] += 1
    return found


def some_vocabulary(rng: random.Random) -> Vocabulary:
    if rng.random() < 0.04:
        return rng.choice([CHAMELEON, LUMINA])
    side = rng.choice([0, 0, 2, 6, 12])
    return Vocabulary.layout(rng.randint(1, 30), rng.randint(1, 20), rng.randint(0, 5), side)


def some_grammar(rng: random.Random, vocabulary: Vocabulary) -> Grammar:
    text, images = rng.choice([(True, True), (True, False), (False, True)])
    least = rng.choice([0, 0, 1, 2]) if images else 0
    grid = None
    if vocabulary.largest_side and rng.random() < 0.3:
        most = min(6, vocabulary.largest_side // 2)
        grid = (2 * rng.randint(1, most), 2 * rng.randint(1, most))
    codes = rng.randint(1, 20) if not vocabulary.largest_side else None
    return Grammar(vocabulary, codes, text, images, least + rng.choice([0, 1, 10**6]), least, grid)


class Walker:
    """Takes allowed tokens at random until the row ends or has no room; `eager` begins images wherever it may."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self._ids = rng, dict[Mask, list[int]]()

    def walk(self, grammar: Grammar | Unrestricted, state: State, room: int, eager: bool) -> tuple[list[int], State]:
        tokens: list[int] = []
        while not state.ended and len(tokens) < room:
            mask = grammar.allowed(state, room - len(tokens))
            if mask not in self._ids:
                self._ids[mask] = np.flatnonzero(mask.allowed_V).tolist()
            assert self._ids[mask], "nothing is allowed"
            begin = grammar.vocabulary.begin_image
            token = begin if eager and mask.allowed_V[begin] else self.rng.choice(self._ids[mask])
            state = grammar.advance(state, token)
            if state.ended not in ("ill_formed", "length"):
                tokens.append(token)
        return tokens, state


def test_five_thousand_random_walks_are_well_formed():
    rng, walks, seen = random.Random(0), 0, Counter[str]()
    while walks < 5_000:
        vocabulary = some_vocabulary(rng)
        grammar, walker = some_grammar(rng, vocabulary), Walker(rng)
        for _ in range(40):
            room = rng.randint(1, 70)
            try:
                state = grammar.start(np.array([0]), room)
            except ValueError as error:
                assert grammar.min_images and "come: shorten" in str(error)
                continue
            tokens, state = walker.walk(grammar, state, room, eager=rng.random() < 0.5)
            found = parsed(tokens, vocabulary, grammar.image_codes)
            assert grammar.min_images <= found["image"] <= grammar.max_images * grammar.images
            assert grammar.text or not found["text"]
            assert bool(found["end"]) == (state.ended not in (None, "length"))
            assert state.ended or len(tokens) == room
            if grammar.grid:
                assert found[f"{grammar.grid[0]}x{grammar.grid[1]}"] == found["image"]
            seen += found
            walks += 1
    assert min(seen["image"], seen["text"], seen["end"]) > 1500
    assert min(seen["2x2"], seen["4x2"], seen["2x6"]) > 50


def test_walks_go_on_well_formed_from_any_prompt():
    rng = random.Random(1)
    for _ in range(300):
        vocabulary = some_vocabulary(rng)
        codes = None if vocabulary.largest_side else rng.randint(1, 9)
        free, walker = Grammar(vocabulary, codes), Walker(rng)
        before, _ = walker.walk(free, free.start(np.array([0]), 40), 40, eager=rng.random() < 0.7)
        before = before[: rng.randint(0, len(before))]
        state = free.start(np.array([0, *before]), 1000)
        assert state.ended is None and state.images == 0
        tokens, _ = walker.walk(free, state, 1000, eager=False)
        ends = (2, vocabulary.end_turn)  # those of the prompt are no ends of what comes
        parsed([*(token for token in before if token not in ends), *tokens], vocabulary, codes)


def test_left_alone_a_row_ends_before_the_first_ill_formed_token():
    rng, ends = random.Random(2), Counter[str]()
    for _ in range(400):
        vocabulary = Vocabulary.layout(rng.randint(5, 30), rng.randint(1, 9), 0, rng.choice([0, 4]))
        loose, walker = Unrestricted(vocabulary, None if vocabulary.largest_side else rng.randint(1, 3)), Walker(rng)
        tokens, state = walker.walk(loose, loose.start(np.array([0]), 30), 30, eager=False)
        idle = (0, 1, 3, vocabulary.first_grid)  # specials that mean nothing may stand anywhere
        kept = [token for token in tokens if token not in idle]
        if state.ended != "ill_formed" and state.place is None:
            parsed(kept, vocabulary, loose.image_codes)
        ends[state.ended or "length"] += 1
    assert ends["ill_formed"] > 100 and ends["end_turn"] and ends["end_document"]


@pytest.mark.parametrize("vocabulary", [WORDS, GRIDS])
def test_left_alone_nothing_is_masked(vocabulary):
    loose = Unrestricted(vocabulary, CODES)
    for state in (State(), State(0), State(3, (2, 2))):
        assert loose.allowed(state, 1).allowed_V.all()
    assert loose.advance(State(), 4) == State(ended="ill_formed")


# What may come


def allowed(grammar: Grammar, state: State, room: int = 10**6) -> list[int]:
    return np.flatnonzero(grammar.allowed(state, room).allowed_V).tolist()


def test_an_image_is_begin_exactly_its_codes_and_end():
    grammar = Grammar(WORDS, CODES, text=False)
    state = grammar.advance(State(), WORDS.begin_image)
    for place in range(CODES):
        assert allowed(grammar, state) == list(range(4, 16))
        assert grammar.share(state) == place / CODES
        state = grammar.advance(state, 4)
    assert allowed(grammar, state, 1) == [WORDS.end_image] and grammar.share(state) is None
    assert grammar.advance(state, WORDS.end_image) == State(images=1)


def test_an_image_of_any_grid_tells_it_and_ends_each_row():
    grammar = Grammar(GRIDS, text=False)
    sides = [GRIDS.token_of_side(side) for side in (2, 4, 6, 8)]
    state, wanted = grammar.advance(State(), GRIDS.begin_image), []
    assert allowed(grammar, state) == sides and grammar.share(state) is None
    state = grammar.advance(state, GRIDS.token_of_side(2))
    assert allowed(grammar, state) == sides and grammar.share(state) is None
    state = grammar.advance(state, GRIDS.token_of_side(4))
    for row in range(2):
        wanted += [(list(range(4, 16)), (4 * row + column) / 8) for column in range(4)]
        wanted += [([GRIDS.new_line], 0.5 if row == 0 else None)]
    for tokens, share in wanted:
        assert (allowed(grammar, state), grammar.share(state)) == (tokens, share)
        state = grammar.advance(state, tokens[0])
    assert allowed(grammar, state) == [GRIDS.end_image]


def test_trap_20_an_image_starts_only_where_it_fits_whole():
    for room in range(1, 40):
        assert (WORDS.begin_image in allowed(Grammar(WORDS, CODES), State(), room)) == (room >= CODES + 2)
        assert (GRIDS.begin_image in allowed(Grammar(GRIDS), State(), room)) == (room >= 10)  # 2x2: 4 + 2 x 3
        assert (GRIDS.begin_image in allowed(Grammar(GRIDS, grid=(2, 8)), State(), room)) == (room >= 22)
    paper = Grammar(CHAMELEON, 1024)  # the 1026 tokens of the released code
    assert [CHAMELEON.begin_image in allowed(paper, State(), room) for room in (1025, 1026)] == [False, True]


def test_a_grid_is_offered_only_where_it_fits():
    grammar = Grammar(GRIDS)
    rows = grammar.advance(State(), GRIDS.begin_image)
    for room in range(9, 60):
        sides = [GRIDS.side_of_token(token) for token in allowed(grammar, rows, room)]
        assert sides == [side for side in (2, 4, 6, 8) if 2 + side * 3 + 1 <= room]
        for side in sides:
            columns = grammar.advance(rows, GRIDS.token_of_side(side))
            offered = [GRIDS.side_of_token(token) for token in allowed(grammar, columns, room - 1)]
            assert offered == [each for each in (2, 4, 6, 8) if 1 + side * (each + 1) + 1 <= room - 1]


def test_luminas_vocabulary_keeps_to_the_room():
    grammar = Grammar(LUMINA)
    rows = grammar.advance(State(), LUMINA.begin_image)
    assert allowed(grammar, rows, 4095)[-1] == LUMINA.token_of_side(1364)  # 3 x 1364 + 3 = 4095
    columns = grammar.advance(rows, LUMINA.token_of_side(48))
    assert allowed(grammar, columns, 4094)[-1] == LUMINA.token_of_side(84)  # 48 x 85 + 2 = 4082


def test_images_owed_keep_their_room_from_words():
    grammar = Grammar(WORDS, CODES, min_images=2)
    both = 2 * (CODES + 2)
    assert allowed(grammar, State(), both) == [WORDS.begin_image]
    assert allowed(grammar, State(), both + 1) == sorted([WORDS.begin_image, *range(WORDS.first_text, WORDS.size)])
    assert WORDS.end_turn in allowed(grammar, State(images=2), 1)
    with pytest.raises(ValueError, match="shall hold 2 images of at least 18 tokens, and 35 may come"):
        grammar.start(np.array([0]), both - 1)


def test_an_image_of_the_prompt_does_not_count():
    prompt = np.array([0, WORDS.begin_image, *[4] * CODES, WORDS.end_image])
    for grammar in (Grammar(WORDS, CODES, max_images=1), Grammar(WORDS, CODES, max_images=1, min_images=1)):
        state = grammar.start(prompt, 99)
        assert WORDS.begin_image in allowed(grammar, state, 99)
        for token in prompt[1:].tolist():
            state = grammar.advance(state, token)
        assert WORDS.begin_image not in allowed(grammar, state, 99)
        assert WORDS.end_turn in allowed(grammar, state, 99)


def test_masks_follow_ids_and_not_spellings():
    always = set(allowed(Grammar(WORDS, CODES), State()))
    never = {WORDS.begin_document, WORDS.pad, WORDS.unknown, WORDS.end_image}
    never |= set(range(WORDS.first_sentinel, WORDS.end_turn))
    assert not always & never and set(range(WORDS.first_text, WORDS.size)) < always


def test_states_of_a_kind_share_a_mask_and_its_tensor():
    grammar = Grammar(WORDS, CODES)
    assert grammar.allowed(State(), 99) is grammar.allowed(State(images=3), 50)
    assert grammar.allowed(State(0), 99) is grammar.allowed(State(7), 50)
    mask, cpu = grammar.allowed(State(), 99), torch.device("cpu")
    assert mask.ids(cpu) is mask.ids(cpu) and mask.hidden(cpu) is mask.hidden(cpu)
    assert np.array_equal(mask.hidden(cpu).numpy(), ~mask.allowed_V)
    assert mask.ids(cpu).tolist() == np.flatnonzero(mask.allowed_V).tolist()


# What cannot be


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": False, "images": False}, "allows nothing: switch one of them on"),
        ({"min_images": 2, "max_images": 1}, "At least 2 and at most 1 images"),
        ({"min_images": 1, "images": False}, "with images=False: no reply can be so"),
        ({"min_images": -1}, "At least -1"),
        ({"image_codes": 0}, "at least 1 code, not 0"),
        ({"image_codes": None}, "say how many codes they have"),
        ({"grid": (4, 4)}, "no grid tokens: all its images have one grid"),
    ],
)
def test_impossible_grammars_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Grammar(**{"vocabulary": WORDS, "image_codes": CODES, **settings})


def test_a_grid_that_no_token_tells_is_refused():
    with pytest.raises(ValueError, match="A side of 3 codes has no token"):
        Grammar(GRIDS, grid=(2, 3))


@pytest.mark.parametrize(
    ("prompt", "place"),
    [([0, 4], 1), ([0, WORDS.end_image], 1), ([0, WORDS.begin_image, WORDS.end_image], 2)]
    + [([0, WORDS.begin_image, 4, WORDS.first_text], 3), ([0, WORDS.begin_image, *[4] * (CODES + 1)], 2 + CODES)]
    + [([0, WORDS.begin_image, WORDS.begin_image], 2)],
)
@pytest.mark.parametrize("kind", [Grammar, Unrestricted])
def test_an_ill_formed_prompt_is_refused_with_its_place(kind, prompt, place):
    with pytest.raises(ValueError, match=rf"ill-formed: token {prompt[place]} at position {place} "):
        kind(WORDS, CODES).start(np.array(prompt), 99)


def test_an_unfinished_image_in_a_text_only_grammar_is_refused():
    prompt = np.array([0, WORDS.begin_image, 4, 4])
    with pytest.raises(ValueError, match="ends inside an image and this grammar allows text only"):
        Grammar(WORDS, CODES, images=False).start(prompt, 99)
    whole = np.array([0, WORDS.begin_image, *[4] * CODES, WORDS.end_image])
    assert WORDS.begin_image not in allowed(Grammar(WORDS, CODES, images=False), State())
    assert Grammar(WORDS, CODES, images=False).start(whole, 99) == State()


@pytest.mark.parametrize(
    ("grammar", "prompt", "missing"),
    [
        (Grammar(WORDS, CODES), [0, WORDS.begin_image, 4, 4, 4, 4, 4], 12),
        (Grammar(GRIDS), [0, GRIDS.begin_image], 9),
        (Grammar(GRIDS), [0, GRIDS.begin_image, GRIDS.token_of_side(4)], 4 * 3 + 2),
        (Grammar(GRIDS), [0, GRIDS.begin_image, GRIDS.token_of_side(4), GRIDS.token_of_side(6), 4, 4], 4 * 7 + 1 - 2),
    ],
)
def test_an_unfinished_image_needs_room_to_be_finished(grammar, prompt, missing):
    with pytest.raises(ValueError, match=f"no room to finish it: {missing} tokens are missing and {missing - 1} may"):
        grammar.start(np.array(prompt), missing - 1)
    state = grammar.start(np.array(prompt), missing)
    tokens, state = Walker(random.Random(0)).walk(grammar, state, missing, eager=False)
    parsed([*prompt[1:], *tokens], grammar.vocabulary, CODES)
    assert len(tokens) == missing and state.place is None
