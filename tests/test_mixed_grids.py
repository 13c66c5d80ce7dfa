"""Images of any grid: documents to Lumina-mGPT's tokens and back, whole and as a stream."""

import copy
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.records import ImagePiece, TextPiece
from chameleon_lab.tokenizers.grids import AreaGrid
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer, PieceReader
from chameleon_lab.tokenizers.preparation import CentreCrop, HuggingFaceCrop
from chameleon_lab.tokenizers.text import ByteTokenizer
from chameleon_lab.vocabulary import Vocabulary

LARGEST = 8


@pytest.fixture(scope="module")
def grids(image_tokenizer: ImageTokenizer) -> MixedModalTokenizer:
    """Bytes and grids of up to 8x8 codes, of 12, permuted."""
    order = tuple(int(offset) for offset in np.random.default_rng(5).permutation(12))
    words = replace(Vocabulary.layout(12, 256, largest_side=LARGEST), permutation=order)
    return MixedModalTokenizer(ByteTokenizer(), image_tokenizer, words)


def random_image(rng: np.random.Generator, tokenizer: MixedModalTokenizer) -> Image:
    codes = rng.integers(0, tokenizer.image.codes, 2 * rng.integers(1, LARGEST // 2 + 1, 2))
    return Image(tokenizer.image.decode(codes), codes)


def random_document(rng: np.random.Generator, tokenizer: MixedModalTokenizer) -> Document:
    parts = list[Text | Image | EndTurn]()
    for kind in rng.integers(0, 3, rng.integers(0, 7)):
        if kind == 0:
            parts.append(random_image(rng, tokenizer))
        elif kind == 1 or (parts and isinstance(parts[-1], Text)):
            parts.append(EndTurn())
        else:
            parts.append(Text("".join(map(chr, rng.integers(1, 0xD800, 5)))))
    return Document(tuple(parts))


def test_decoding_undoes_encoding_for_any_document(grids):
    rng = np.random.default_rng(0)
    for _ in range(60):
        document = random_document(rng, grids)
        tokens = grids.encode(document)
        assert tokens.dtype == np.int64 and grids.decode(tokens) == document
        assert len(tokens) == 1 + sum(grids.length(part) for part in document)


def test_an_image_tells_its_grid_and_ends_its_rows(grids, picture):
    codes, words = np.array([[0, 1, 2, 3], [4, 5, 6, 7]]), grids.vocabulary
    tokens = grids.encode_segment(Image(picture, codes)).tolist()
    first, second = words.tokens_of_codes(codes).tolist()
    told = [words.token_of_side(2), words.token_of_side(4)]
    assert tokens == [words.begin_image, *told, *first, words.new_line, *second, words.new_line, words.end_image]
    assert len(tokens) == grids.form.length(2, 4) == grids.length(Image(picture, codes))


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (0, 2), (10, 2), (2, 10)])
def test_a_grid_that_cannot_be_told_is_refused(grids, picture, shape):
    with pytest.raises(ValueError, match="has no token: sides are even and at most 8 codes"):
        grids.encode(Document.of(Image(picture, np.zeros(shape, int))))


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2), ()])
def test_codes_that_are_no_grid_are_refused(grids, picture, shape):
    with pytest.raises(ValueError, match=r"have a grid of .* codes; this one has"):
        grids.encode(Document.of(Image(picture, np.zeros(shape, int))))


@pytest.mark.parametrize("size", [(16, 16), (40, 20), (20, 45), (7, 3), (300, 10)])
def test_a_picture_keeps_its_shape_and_its_length_is_known_before(grids, size):
    rng = np.random.default_rng(2)
    shown = PIL.Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    tokens = grids.tokens_of_picture(shown)
    rows, columns = AreaGrid(8, 4).grid(*size)
    assert len(tokens) == grids.length(Image(shown)) == grids.form.length(2 * rows, 2 * columns)
    again = grids.picture_of_tokens(tokens)
    assert again.size == (8 * columns, 8 * rows)
    assert again.tobytes() == grids.image.decode(grids.image.encode(shown, AreaGrid(8, 4))).tobytes()


def test_a_turned_photograph_has_the_length_of_the_upright_one(grids):
    turned = PIL.Image.new("RGB", (40, 20), "red")
    turned.getexif()[0x0112] = 6
    assert grids.length(Image(turned)) == len(grids.tokens_of_picture(turned))
    shown = grids.picture_of_tokens(grids.tokens_of_picture(turned))
    assert shown.height > shown.width


@pytest.mark.parametrize("kind", ["grids", "mixed"])
def test_tokens_and_pictures_in_one_call_each(kind, request):
    tokenizer, rng = request.getfixturevalue(kind), np.random.default_rng(3)
    for _ in range(20):
        shown = PIL.Image.fromarray(rng.integers(0, 256, (*rng.integers(1, 40, 2), 3), np.uint8))
        tokens = tokenizer.tokens_of_picture(shown)
        assert np.array_equal(tokens, tokenizer.encode(Document.of(shown))[1:])
        drawn = tokenizer.picture_of_tokens(tokens)
        (image,) = tokenizer.decode(tokens).segments
        assert isinstance(image, Image) and drawn.tobytes() == image.picture.tobytes()
        assert tokenizer.picture_of_tokens(tokens[1:-1]).tobytes() == drawn.tobytes()
        assert tokenizer.picture_of_tokens(tokens[1:].tolist()).tobytes() == drawn.tobytes()
        assert tokenizer.picture_of_tokens(tokens[:-1]).tobytes() == drawn.tobytes()


def test_new_lines_tell_a_grid_that_no_token_tells(grids):
    rng = np.random.default_rng(4)
    for _ in range(20):
        image = random_image(rng, grids)
        tokens = grids.encode_segment(image)
        assert grids.picture_of_tokens(tokens[3:-1]).tobytes() == image.picture.tobytes()
        assert grids.picture_of_tokens([tokens[0], *tokens[3:]]).tobytes() == image.picture.tobytes()


def test_what_is_not_one_image_is_no_picture(grids, mixed, picture):
    tokens = grids.tokens_of_picture(picture).tolist()
    lines, words = tokens[3:-1], grids.vocabulary
    cases = {
        "ends before its grid is given": [],
        "stands inside an image, after 15": [*tokens[:20], *tokens[21:]],
        "begins with two tokens that tell its grid": [words.first_text],
        "tokens of 2 segments": [*tokens, *tokens],
        "must lie in": [words.size],
        "A side of 3 codes has no token": lines[:15],
        "tokens of 3 segments": [*tokens, words.end_turn, *tokens],
    }
    for why, broken in cases.items():
        with pytest.raises(ValueError, match=why):
            grids.picture_of_tokens(broken)
    whole = mixed.tokens_of_picture(picture).tolist()
    for broken in ([], whole[:9], whole + whole, [mixed.vocabulary.first_text], [*whole, mixed.vocabulary.end_turn]):
        with pytest.raises(ValueError, match=r"image"):
            mixed.picture_of_tokens(broken)


def test_ill_formed_tokens_are_refused_wherever_they_are_changed(grids):
    rng, words = np.random.default_rng(6), grids.vocabulary
    for _ in range(150):
        tokens = grids.encode_segment(random_image(rng, grids))
        place = rng.integers(len(tokens))
        whole_image = words.modality[tokens[place]] == 1
        for broken in (np.delete(tokens, place), np.insert(tokens, place, tokens[place]), tokens[:place]):
            if len(broken):
                with pytest.raises(ValueError, match=r"image|grid|row|new line"):
                    grids.decode(broken)
        other = int(rng.integers(words.size))
        changed = tokens.copy()
        changed[place] = other
        still = other == tokens[place] or (whole_image and words.modality[other] == 1)
        if not still:
            with pytest.raises(ValueError, match=r"image|grid|row|new line"):
                grids.decode(changed)


def test_each_error_says_what_was_wrong(grids, picture):
    words, tokens = grids.vocabulary, grids.tokens_of_picture(picture).tolist()  # begin, 4, 4, four rows of 4, end
    side, code, line = tokens[1], tokens[3], words.new_line
    cases = {
        f"two tokens that tell its grid; token {code} tells none": [tokens[0], side, code],
        f"two tokens that tell its grid; token {words.first_grid} tells none": [tokens[0], words.first_grid],
        f"A row of 4 codes goes on with token {code} instead of a new line": [*tokens[:7], code],
        f"Token {line} stands inside an image, after 3": [*tokens[:6], line],
        f"Token {words.first_text} stands inside an image, after 4": [*tokens[:7], words.first_text],
        f"Token {line} stands inside an image, after 16": [*tokens[:-1], line],
        f"goes on after its 16 codes, with token {code}": [*tokens[:-1], code],
        "ends after 15 codes instead of 16": [*tokens[:-3], tokens[-1]],
        "ends after 3 new lines instead of 4": [*tokens[:-2], tokens[-1]],
        "ends before its grid is given": [tokens[0], side, tokens[-1]],
        f"Token {line}, part of an image, stands outside": [line],
        f"Token {side}, part of an image, stands outside": [side],
        "The tokens end inside an image, after 3 of its codes": tokens[:6],
    }
    for why, broken in cases.items():
        with pytest.raises(ValueError, match=why):
            grids.decode(broken)


def test_a_grid_too_large_for_any_picture_is_refused_before_it_is_drawn(image_tokenizer):
    words = Vocabulary.layout(12, 256, largest_side=8000)
    tokenizer = MixedModalTokenizer(ByteTokenizer(), image_tokenizer, words)
    reader = PieceReader(tokenizer)
    side = words.token_of_side(8000)
    list(reader.read(words.begin_image))
    list(reader.read(side))
    with pytest.raises(ValueError, match="8000 x 8000 codes would be a picture of 32000 x 32000 pixels"):
        list(reader.read(side))


def test_pieces_add_up_to_the_document_row_by_row(grids):
    rng = np.random.default_rng(1)
    for _ in range(10):
        document = random_document(rng, grids)
        reader, pieces = PieceReader(grids), []
        for token in grids.encode(document):
            pieces += reader.read(int(token))
        pieces += reader.close()
        assert reader.document() == document and not reader.in_image
        told = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
        assert told == "".join(part.text for part in document if isinstance(part, Text))
        shown = iter([piece for piece in pieces if isinstance(piece, ImagePiece)])
        for image in (part for part in document if isinstance(part, Image)):
            assert image.codes is not None
            rows, columns = image.codes.shape
            for row in range(1, rows + 1):
                piece = next(shown)
                assert piece.rows == rows and piece.complete == (row == rows)
                assert np.array_equal(piece.codes, image.codes[:row])
                assert piece.picture.size == (4 * columns, 4 * rows)
            assert piece.picture.tobytes() == image.picture.tobytes()
        assert next(shown, None) is None


def test_a_picture_is_the_same_whether_partial_ones_are_shown_or_not(grids):
    rng = np.random.default_rng(8)
    for _ in range(20):
        image, reader, shown = random_image(rng, grids), PieceReader(grids), []
        for token in grids.encode_segment(image):
            shown += reader.read(int(token), pictures=bool(rng.random() < 0.9))
        (read,) = reader.document().segments
        assert read == image and isinstance(read, Image) and read.picture.tobytes() == image.picture.tobytes()
        assert all(isinstance(piece, ImagePiece) for piece in shown)


def test_fixed_grids_stay_without_grid_tokens(mixed, picture):
    assert mixed.preparation is None and mixed.image_tokens == 18
    assert mixed.length(Image(picture.resize((40, 20)))) == 18


def test_pictures_go_through_the_preparation_that_is_asked_for(image_tokenizer):
    rng = np.random.default_rng(7)
    shown = PIL.Image.fromarray(rng.integers(0, 256, (37, 61, 3), np.uint8))
    words = Vocabulary.layout(12, 256, largest_side=LARGEST)
    tokens = {}
    for name, policy in {"crop": CentreCrop(16), "port": HuggingFaceCrop(16), "wide": AreaGrid(8, 9)}.items():
        tokenizer = MixedModalTokenizer(ByteTokenizer(), image_tokenizer, words, preparation=policy)
        (image,) = tokenizer.decode(tokenizer.tokens_of_picture(shown)).segments
        assert isinstance(image, Image) and image.codes is not None
        assert np.array_equal(image.codes, image_tokenizer.encode(shown, policy))
        tokens[name] = tokenizer.tokens_of_picture(shown).tolist()
        assert len(tokens[name]) == tokenizer.length(Image(shown))
    assert tokens["crop"] != tokens["port"] != tokens["wide"]


def test_trap_13_transparency_shows_white_in_every_grid(grids):
    clear, white = PIL.Image.new("RGBA", (40, 20), (255, 0, 0, 0)), PIL.Image.new("RGB", (40, 20), "white")
    assert np.array_equal(grids.tokens_of_picture(clear), grids.tokens_of_picture(white))


def test_a_missing_image_tokenizer_says_what_is_missing_once_it_is_needed(picture):
    words = Vocabulary.layout(12, 256)
    tokenizer = MixedModalTokenizer(ByteTokenizer(), None, words, grid=(4, 4), source="/models/chameleon-7b")
    assert tokenizer.can_spell and not tokenizer.can_read and not tokenizer.can_draw
    tokens = tokenizer.encode(Document.of("hello", Image(picture, np.zeros((4, 4), int)), EndTurn()))
    assert len(tokens) == 1 + 5 + 18 + 1
    assert tokenizer.decode(tokenizer.encode(Document.of("hello"))) == Document.of("hello")
    why = r"/models/chameleon-7b holds no image tokenizer, so pictures cannot become codes, and codes cannot become "
    uses = (lambda: tokenizer.tokens_of_picture(picture), lambda: tokenizer.decode(tokens), lambda: tokenizer.image)
    for use in uses:
        with pytest.raises(ValueError, match=why + r"pictures\. Put .*vqgan\.ckpt .*tokenizer='data/tokenizer'"):
            use()
    with pytest.raises(ValueError, match=r"say how many .* codes an image has"):
        MixedModalTokenizer(ByteTokenizer(), None, words)


GAPS = ("no text tokenizer", "no image tokenizer", "no picture decoder")


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("images", ["whole", "no picture decoder", "no image tokenizer"])
def test_what_is_lacking_is_a_question_and_only_what_needs_it_is_refused(image_tokenizer, picture, text, images):
    image = copy.deepcopy(image_tokenizer)
    whole = MixedModalTokenizer(ByteTokenizer(), image_tokenizer, Vocabulary.layout(12, 256))
    if images == "no picture decoder":
        image.decoder = None
    tokenizer = whole.with_parts(whole.text if text else None, None if images == "no image tokenizer" else image)
    lacking = [gap for gap in GAPS if (gap == images or (gap == GAPS[0] and not text))]
    assert [words.split(":")[0] for words in tokenizer.missing] == lacking
    able = {"can_spell": text, "can_read": images != "no image tokenizer", "can_draw": images == "whole"}
    assert {name: getattr(tokenizer, name) for name in able} == able
    words, drawn = whole.encode(Document.of("abc")), whole.tokens_of_picture(picture)
    for ability, use in {
        "can_spell": lambda: (tokenizer.encode(Document.of("abc")), tokenizer.decode(words)),
        "can_read": lambda: tokenizer.tokens_of_picture(picture),
        "can_draw": lambda: tokenizer.decode(drawn),
    }.items():
        if able[ability]:
            use()
        else:
            with pytest.raises(ValueError, match="|".join(lacking)):
                use()
    codes = np.zeros((4, 4), int)
    assert len(tokenizer.encode(Document.of("", Image(picture, codes), EndTurn()))) == 1 + 18 + 1


def test_a_missing_image_tokenizer_has_room_for_any_grid(picture):
    tokenizer = MixedModalTokenizer(
        ByteTokenizer(), None, Vocabulary.layout(12, 256, largest_side=LARGEST), grid=(4, 6)
    )
    assert tokenizer.grid == (4, 6) and tokenizer.image_tokens == 4 * 7 + 4
    image = Image(picture, np.zeros((8, 2), int))
    assert len(tokenizer.encode_segment(image)) == tokenizer.length(image) == 8 * 3 + 4
