"""Vocabulary: blocks of ids, and the bijection between codes and tokens."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from chameleon_lab.vocabulary import CHAMELEON, LUMINA, Modality, Vocabulary

SMALL = Vocabulary.layout(7, 5)
SHUFFLED = replace(SMALL, permutation=(3, 0, 6, 2, 5, 1, 4))
GRIDS = Vocabulary.layout(7, 5, largest_side=8)


def table(vocabulary: Vocabulary) -> dict[str, int]:
    """What a file of names would say of a vocabulary; some pieces of text begin with `<`."""
    names = [vocabulary.spelling(token) for token in range(vocabulary.first_text)]
    names += [("</", "<=", "<div", "<", "<p>")[n] if n < 5 else f"p{n}" for n in range(vocabulary.pieces)]
    return {name: token for token, name in enumerate(names)}


@pytest.mark.parametrize(
    "vocabulary", [SMALL, SHUFFLED, CHAMELEON, GRIDS], ids=["identity", "permuted", "chameleon", "grids"]
)
def test_codes_and_image_tokens_are_a_bijection(vocabulary):
    codes = np.arange(vocabulary.codes)
    tokens = vocabulary.tokens_of_codes(codes)
    assert sorted(tokens) == list(np.flatnonzero(vocabulary.modality == Modality.IMAGE))
    assert np.array_equal(vocabulary.codes_of_tokens(tokens), codes)
    grid = codes[: vocabulary.codes // 2 * 2].reshape(2, -1)
    assert np.array_equal(vocabulary.codes_of_tokens(vocabulary.tokens_of_codes(grid)), grid)


def test_a_permutation_moves_each_code_to_its_offset():
    assert list(SHUFFLED.tokens_of_codes(np.arange(7))) == [7, 4, 10, 6, 9, 5, 8]
    assert SHUFFLED.spelling(7) == "IMGIMGAZ"


def test_the_released_ids_and_spellings():
    assert CHAMELEON.size == 65536
    assert (CHAMELEON.begin_document, CHAMELEON.pad, CHAMELEON.end_document, CHAMELEON.unknown) == (0, 1, 2, 3)
    spelled = {
        0: "<s>",
        1: "<pad>",
        2: "</s>",
        3: "<unk>",
        4: "IMGIMGAZ",
        4 + 53: "IMGIMGFDZ",
        8195: "IMGIMGIBJBZ",
        8196: "<eoss>",
        8197: "<racm3:break>",
        8198: "<sentinel:0>",
        8709: "<sentinel:511>",
        8710: "<reserved08706>",
        8711: "<reserved08707>",
        8803: "<reserved08799>",
        16233: "<reserved16229>",
    }
    assert {token: CHAMELEON.spelling(token) for token in spelled} == spelled
    assert (CHAMELEON.end_image, CHAMELEON.begin_image, CHAMELEON.end_turn) == (8196, 8197, 8710)
    assert list(CHAMELEON.tokens_of_codes(np.array([0, 8191]))) == [4, 8195]


def test_spellings_are_unique():
    spellings = [CHAMELEON.spelling(token) for token in range(CHAMELEON.first_text)]
    assert len(set(spellings)) == len(spellings)


def test_modality_follows_from_blocks_alone():
    kinds = SMALL.modality
    assert len(kinds) == SMALL.size == 4 + 7 + 2 + 8 + 1 + 5
    assert [int((kinds == kind).sum()) for kind in Modality] == [5, 7, 4 + 2 + 8 + 1]
    for token in (SMALL.begin_document, SMALL.pad, SMALL.begin_image, SMALL.end_image, SMALL.end_turn):
        assert kinds[token] == Modality.SPECIAL
    assert kinds[SMALL.token_of_piece(0)] == kinds[SMALL.token_of_piece(SMALL.pieces - 1)] == Modality.TEXT
    assert SMALL.token_of_piece(SMALL.pieces - 1) == SMALL.size - 1


@pytest.mark.parametrize(
    "change",
    [
        {"codes": 0},
        {"codes": 8},
        {"end_turn": SMALL.first_text},
        {"first_text": SMALL.size + 1},
        {"begin_image": SMALL.end_image},
        {"begin_image": SMALL.first_sentinel},
        {"sentinels": 9},
    ],
    ids=str,
)
def test_overlapping_blocks_are_refused(change):
    with pytest.raises(ValueError, match="overlap"):
        replace(SMALL, **change)


@pytest.mark.parametrize("permutation", [(0, 1, 2), (0, 0, 1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 6, 7)])
def test_a_permutation_that_is_no_bijection_is_refused(permutation):
    with pytest.raises(ValueError, match=r"each of 0\.\.6 exactly once"):
        replace(SMALL, permutation=permutation)


@pytest.mark.parametrize("codes", [[7], [-1], [0.5]])
def test_codes_outside_the_codebook_are_refused(codes):
    with pytest.raises(ValueError, match="codes must"):
        SMALL.tokens_of_codes(np.array(codes))


@pytest.mark.parametrize("token", [3, 11, 200])
def test_tokens_that_are_not_images_have_no_code(token):
    with pytest.raises(ValueError, match=r"Image tokens lie in 4\.\.10"):
        SMALL.codes_of_tokens(np.array([token]))


@pytest.mark.parametrize("tokens", [[[1, 2]], [1.0], [True], ["a"], [SMALL.size], [-1], 5])
def test_ill_typed_and_unknown_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match="must"):
        SMALL.check(tokens)


def test_any_integers_pass_the_check_as_int64():
    for kind in (np.uint8, np.int32, np.uint16):
        checked = SMALL.check(np.array([0, SMALL.size - 1], kind))
        assert checked.dtype == np.int64 and list(checked) == [0, SMALL.size - 1]
    assert SMALL.check([]).size == 0


@pytest.mark.parametrize("token", [SMALL.first_text, SMALL.size, -1])
def test_only_special_and_image_tokens_are_spelled(token):
    with pytest.raises(ValueError, match=r"text|Token ids"):
        SMALL.spelling(token)


# The names of a file


@pytest.mark.parametrize("vocabulary", [SMALL, SHUFFLED, CHAMELEON], ids=["identity", "permuted", "chameleon"])
def test_a_table_of_names_gives_the_vocabulary_back(vocabulary):
    assert Vocabulary.from_pieces(table(vocabulary)) == vocabulary


def test_any_layout_and_any_permutation_is_read_from_its_names_in_any_order():
    rng = np.random.default_rng(0)
    for _ in range(100):
        codes, pieces, sentinels, side = (int(number) for number in rng.integers([1, 0, 0, 0], [300, 9, 12, 5]))
        vocabulary = Vocabulary.layout(codes, pieces, sentinels, 2 * side)
        permutation = tuple(int(offset) for offset in rng.permutation(codes))
        vocabulary = replace(vocabulary, permutation=() if permutation == tuple(range(codes)) else permutation)
        pieces_in_disorder = dict(rng.permutation(np.array(list(table(vocabulary).items()), object)))
        ids = {name: int(token) for name, token in pieces_in_disorder.items()}
        read = Vocabulary.from_pieces(ids)
        assert read == replace(vocabulary, new_line=None, first_grid=None)
        assert all(ids[read.spelling(token)] == token for token in range(read.first_text))


def test_trap_11_a_code_is_no_token_and_names_tell_which_is_whose():
    vocabulary = Vocabulary.from_pieces(table(SHUFFLED))
    codes = np.arange(7)
    tokens = vocabulary.tokens_of_codes(codes)
    assert [table(SHUFFLED)["IMGIMG" + "ABCDEFG"[code] + "Z"] for code in codes] == list(tokens)
    assert sorted(tokens) == list(range(4, 11)) and list(tokens) != list(4 + codes)
    with pytest.raises(ValueError, match="Image tokens lie in"):
        vocabulary.codes_of_tokens(np.array([0]))


def test_text_begins_after_the_last_special_name_however_pieces_are_spelled():
    names = table(SMALL)
    kinds = Vocabulary.from_pieces(names).modality
    for piece in ("</", "<=", "<div", "<", "<p>"):
        assert kinds[names[piece]] == Modality.TEXT
    assert kinds[names["<reserved00017>"]] == Modality.SPECIAL


def test_names_of_transformers_are_known():
    names = table(CHAMELEON)
    names["<image>"] = names.pop("<reserved08707>")
    assert Vocabulary.from_pieces(names) == CHAMELEON
    small = {("<image>" if token == GRIDS.first_text - 1 else name): token for name, token in table(GRIDS).items()}
    assert Vocabulary.from_pieces(small) == replace(GRIDS, new_line=None, first_grid=None)


def test_a_piece_of_text_may_be_spelled_as_transformers_spells_its_placeholder():
    names = {("<image>" if token == SMALL.size - 1 else name): token for name, token in table(SMALL).items()}
    assert Vocabulary.from_pieces(names) == SMALL


def test_codes_become_the_ids_that_transformers_gives_them():
    from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

    for vocabulary in (SMALL, SHUFFLED, CHAMELEON):
        codes = np.random.default_rng(0).integers(0, vocabulary.codes, (4, 6))
        theirs = ChameleonImageVocabularyMapping(table(vocabulary)).convert_img2bpe(torch.from_numpy(codes))
        assert np.array_equal(Vocabulary.from_pieces(table(vocabulary)).tokens_of_codes(codes), theirs.numpy())


def test_a_renamed_reserved_token_stays_special():
    names = table(CHAMELEON)
    names["<my-cat>"] = names.pop("<reserved16000>")
    assert Vocabulary.from_pieces(names) == CHAMELEON


def without(*names: str, **changed: int) -> dict[str, int]:
    return {name: token for name, token in table(SMALL).items() if name not in names} | changed


def renamed(*names: str) -> dict[str, int]:
    """The small table with each other name for the one before it."""
    fresh = dict(zip(names[::2], names[1::2], strict=True))
    return {fresh.get(name, name): token for name, token in table(SMALL).items()}


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ({}, "there are 0"),
        ({"<s>": 0, "<pad>": 1, "</s>": 2}, "there are 3"),
        ({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4}, "has no image tokens .* a text model's"),
        (without("<eoss>"), "1 names are missing, first for 11"),
        (without("<="), "1 names are missing, first for 23"),
        (without("<s>", "<pad>", "</"), "3 names are missing, first for 0, 1, 22"),
        (without(more=SMALL.size + 10**9), "1000000000 names are missing"),
        (without(twice=5), "gives id 5 twice, to 'IMGIMGBZ' and 'twice'"),
        (without(minus=-1), "from 0 on"),
        ({**without(), "half": 0.5}, "'half' .* 0.5, not an integer"),
        ({**without(), "yes": True}, "True, not an integer"),
        (renamed("<pad>", "a"), r"Ids 0\.\.3 must be .* has <s>, a, </s>, <unk>"),
        (renamed("IMGIMGDZ", "abc"), "Of 6 image tokens the name IMGIMGDZ is missing"),
        (renamed("IMGIMGGZ", "IMGIMGAAAZ"), "the name IMGIMGGZ is missing"),
        (renamed("IMGIMGGZ", "</", "</", "IMGIMGGZ"), r"must be one block from id 4 on; these 7 stand at 4\.\.22"),
        (renamed("<eoss>", "<unused>"), "has no <eoss>"),
        (renamed("<racm3:break>", "<unused>"), "has no <racm3:break>"),
        (renamed("<reserved00017>", "<unused>"), "has no <reserved08706>"),
        (renamed("<sentinel:0>", "<sentinel:1>", "<sentinel:1>", "<sentinel:0>"), "Sentinels must be one block"),
        (renamed("<sentinel:0>", "<unused>"), "Sentinels must be one block"),
        (renamed("<sentinel:7>", "<sentinel:07>"), "Sentinels must be one block"),
        (renamed("<sentinel:3>", "hello", "</", "<sentinel:3>"), "Id 16 is the text 'hello', before the special"),
        (renamed("<=", "<reserved08706>"), "Id 22 is the text '</', before the special <reserved08706> at 23"),
    ],
    ids=range(23),
)
def test_a_table_that_is_not_the_family_s_is_refused(names, why):
    with pytest.raises(ValueError, match=why):
        Vocabulary.from_pieces(names)


# Grids


def test_the_ids_of_lumina():
    assert (LUMINA.new_line, LUMINA.first_grid) == (8803, 8804)
    assert LUMINA.token_of_side(32) == 8820 and LUMINA.spelling(8820) == "<reserved08816>"
    assert LUMINA.modality[[8803, 8804, 8820]].tolist() == [Modality.SPECIAL] * 3


def test_sides_and_grid_tokens_are_a_bijection():
    sides = range(2, GRIDS.largest_side + 1, 2)
    assert GRIDS.largest_side == 8 and list(sides) == [GRIDS.side_of_token(GRIDS.token_of_side(side)) for side in sides]
    grid_tokens = [token for token in range(GRIDS.size) if GRIDS.is_grid(token)]
    assert grid_tokens == [GRIDS.token_of_side(side) for side in sides]
    assert (GRIDS.modality[grid_tokens] == Modality.SPECIAL).all() and grid_tokens[-1] + 1 == GRIDS.first_text


def test_codes_sides_and_new_lines_stand_within_images_alone():
    within = np.flatnonzero(GRIDS.within_images).tolist()
    assert within == [*range(4, 11), GRIDS.new_line, *map(GRIDS.token_of_side, (2, 4, 6, 8))]
    assert np.flatnonzero(SMALL.within_images).tolist() == list(range(4, 11))


@pytest.mark.parametrize("codes", [-2, 0, 1, 3, 10])
def test_a_side_without_a_token_is_refused(codes):
    with pytest.raises(ValueError, match=f"A side of {codes} codes has no token: .* at most 8"):
        GRIDS.token_of_side(codes)


def test_a_vocabulary_of_one_grid_has_no_grid_tokens():
    assert SMALL.largest_side == 0 and not any(SMALL.is_grid(token) for token in range(SMALL.size))
    with pytest.raises(ValueError, match="all its images have one grid"):
        SMALL.token_of_side(4)
    for vocabulary, token in ((SMALL, SMALL.end_turn), (GRIDS, 22), (GRIDS, 23), (GRIDS, GRIDS.first_text)):
        with pytest.raises(ValueError, match=f"Token {token} tells no side"):
            vocabulary.side_of_token(token)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"new_line": None}, "need both new_line and first_grid; got None and 23"),
        ({"first_grid": None}, "got 22 and None"),
        ({"new_line": GRIDS.end_turn}, "new_line is 21, grid tokens start at 23"),
        ({"new_line": GRIDS.first_image}, "overlap"),
        ({"new_line": GRIDS.first_grid}, "overlap"),
        ({"first_grid": GRIDS.end_turn}, "overlap"),
        ({"first_grid": GRIDS.first_text - 1}, "overlap"),
        ({"first_grid": GRIDS.first_text}, "overlap"),
        ({"first_grid": GRIDS.size + 5}, "overlap"),
    ],
    ids=str,
)
def test_grid_tokens_that_are_not_their_own_are_refused(change, why):
    with pytest.raises(ValueError, match=why):
        replace(GRIDS, **change)


def test_a_config_saved_before_there_were_grids_still_loads():
    plain = asdict(SMALL)
    del plain["new_line"], plain["first_grid"]
    assert Vocabulary(**plain) == SMALL
    assert Vocabulary(**asdict(GRIDS)) == GRIDS
