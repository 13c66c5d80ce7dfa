"""Vocabulary: blocks of ids, and the bijection between codes and tokens."""

from dataclasses import replace

import numpy as np
import pytest

from chameleon_lab.vocabulary import CHAMELEON, Modality, Vocabulary

SMALL = Vocabulary.layout(7, 5)
SHUFFLED = replace(SMALL, permutation=(3, 0, 6, 2, 5, 1, 4))


@pytest.mark.parametrize("vocabulary", [SMALL, SHUFFLED, CHAMELEON], ids=["identity", "permuted", "chameleon"])
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
