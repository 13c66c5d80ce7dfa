"""Tokenizers: text without loss, pictures on any grid, documents there and back."""

import copy
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

from chameleon_lab.chameleon import load_image_tokenizer
from chameleon_lab.checkpoints.native import write_image_tokenizer
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.records import ImagePiece, TextPiece
from chameleon_lab.tokenizers.image import CHAMELEON_IMAGES, TINY_IMAGES, ImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer, PieceReader
from chameleon_lab.tokenizers.preparation import picture_of
from chameleon_lab.tokenizers.text import ByteTokenizer, SentencePieceTokenizer
from chameleon_lab.vocabulary import Modality, Vocabulary

# Text


def random_text(rng: np.random.Generator, length: int = 12) -> str:
    """Characters of any plane, most of them from the first 300."""
    points = np.where(rng.random(length) < 0.7, rng.integers(0, 300, length), rng.integers(0, 0x110000, length))
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


@pytest.fixture(params=["bytes", "sentencepiece"])
def text_tokenizer(request, sentencepiece):
    return ByteTokenizer() if request.param == "bytes" else sentencepiece


def test_any_text_survives_encoding_and_decoding(text_tokenizer, texts):
    rng = np.random.default_rng(0)
    for text in ("", " ", "  ", "▁", *texts, *(random_text(rng) for _ in range(300))):
        pieces = text_tokenizer.encode(text)
        assert text_tokenizer.decode(pieces) == text
        assert all(0 <= piece < text_tokenizer.size for piece in pieces)


def test_every_character_of_the_basic_plane_survives(text_tokenizer):
    for start in range(0, 0x10000, 64):
        text = "".join(chr(point) for point in range(start, start + 64) if not 0xD800 <= point < 0xE000)
        assert text_tokenizer.decode(text_tokenizer.encode(text)) == text


def test_a_trained_bpe_has_the_asked_size_and_never_an_unknown(sentencepiece, texts):
    assert sentencepiece.size == 330
    assert all(0 not in sentencepiece.encode(text) for text in texts)
    assert len(sentencepiece.encode("draw a red circle")) < len("draw a red circle") / 2
    assert sentencepiece.spelling(sentencepiece.encode("a red circle")[0]).startswith("▁")


def test_a_bpe_is_the_same_from_its_bytes(sentencepiece, texts, tmp_path):
    (tmp_path / "bpe").write_bytes(sentencepiece.model)
    again = SentencePieceTokenizer.load(tmp_path / "bpe")
    assert [again.encode(text) for text in texts] == [sentencepiece.encode(text) for text in texts]


@pytest.mark.parametrize("model", [b"", b"no model", b"\0" * 100])
def test_bytes_that_are_no_bpe_are_refused(model):
    with pytest.raises(ValueError, match="sentencepiece model"):
        SentencePieceTokenizer(model)


def test_a_bpe_larger_than_its_texts_allow_is_refused():
    with pytest.raises(ValueError, match="BPE of 9000 pieces cannot be learned"):
        SentencePieceTokenizer.train(["a few words"], 9000)


# Pictures


def test_the_published_settings_have_exactly_the_published_parameters():
    with torch.device("meta"):
        tokenizer = ImageTokenizer(CHAMELEON_IMAGES)
    counted = {name: parameter.numel() for name, parameter in tokenizer.named_parameters()}
    assert (sum(counted.values()), len(counted)) == (68_718_467, 293)
    for part, parameters, tensors in (("encoder.", 27_194_880, 124), ("decoder.", 39_294_851, 164)):
        inside = [count for name, count in counted.items() if name.startswith(part)]
        assert (sum(inside), len(inside)) == (parameters, tensors)
    assert CHAMELEON_IMAGES.factor == 16 and CHAMELEON_IMAGES.grid == (32, 32)
    assert TINY_IMAGES.factor == 8 and TINY_IMAGES.grid == (8, 8)


def test_cm3leons_geometry_is_a_config_away(picture):
    cm3leon = replace(CHAMELEON_IMAGES, side=256, widths=CHAMELEON_IMAGES.widths[1:])
    assert cm3leon.factor == 8 and cm3leon.grid == (32, 32) and cm3leon.codes == 8192  # arXiv 2309.02591, section 2
    slim = replace(cm3leon, widths=tuple(width // 16 for width in cm3leon.widths), latent_width=8, groups=4)
    assert ImageTokenizer(slim).encode(picture).shape == (32, 32)


@pytest.mark.parametrize("policy", ["centre crop", "border padding", "fit to grid", "Hugging Face's crop"])
def test_a_picture_of_any_shape_goes_through_under_every_policy(image_tokenizer, policy):
    wide = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 50, 3), np.uint8))
    seen = image_tokenizer.reconstruct(wide, image_tokenizer.preparations[policy])
    assert seen.codes.shape == ((2, 5) if policy == "fit to grid" else (4, 4))
    assert seen.picture.size == (4 * seen.codes.shape[1], 4 * seen.codes.shape[0])


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (4, 64), (40, 12)])
def test_any_grid_goes_through(image_tokenizer, height, width):
    pixels_BCHW = torch.rand(2, 3, height, width) * 2 - 1
    with torch.no_grad():
        codes_BHW = image_tokenizer.encode_pixels(pixels_BCHW)
        assert codes_BHW.shape == (2, height // 4, width // 4)
        assert image_tokenizer.decode_pixels(codes_BHW).shape == pixels_BCHW.shape
    assert image_tokenizer.decode(codes_BHW[0].numpy()).size == (width, height)


def test_pixels_that_fill_no_grid_are_refused(image_tokenizer):
    with pytest.raises(ValueError, match="Pixels of 16x18 do not fill a grid: both sides must be multiples of 4"):
        image_tokenizer.encode_pixels(torch.zeros(1, 3, 16, 18))


@pytest.mark.parametrize("codes", [[[12]], [[-1]], [[0.0]], [0, 1], [[[0]]]], ids=str)
def test_codes_that_are_none_are_refused(image_tokenizer, codes):
    with pytest.raises(ValueError, match="Codes"):
        image_tokenizer.decode(np.array(codes))


def test_a_batch_is_encoded_as_each_picture_alone(image_tokenizer, picture):
    pictures = [picture, picture.rotate(90), PIL.Image.new("RGB", (30, 20), "red")]
    together = image_tokenizer.encode_batch(pictures)
    assert together.shape == (3, 4, 4) and together.dtype == np.int64
    for one, alone in zip(together, pictures, strict=True):
        assert np.array_equal(one, image_tokenizer.encode(alone))
    assert len(np.unique(together)) > 2


def test_a_picture_of_the_right_size_is_not_touched_and_others_are_cropped_in_the_middle(image_tokenizer, picture):
    assert image_tokenizer.prepare(picture).tobytes() == picture.tobytes()
    wide = PIL.Image.new("RGB", (48, 16), "red")
    wide.paste(picture, (16, 0))
    assert image_tokenizer.prepare(wide).tobytes() == picture.tobytes()
    assert image_tokenizer.prepare(wide.rotate(90, expand=True)).tobytes() == picture.rotate(90).tobytes()


def test_trap_13_transparency_shows_white(image_tokenizer):
    clear = PIL.Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    half = PIL.Image.new("RGBA", (16, 16), (255, 0, 0, 128))
    palette = clear.convert("P", palette=PIL.Image.Palette.ADAPTIVE)
    palette.info["transparency"] = 0
    gray = PIL.Image.new("LA", (16, 16), (0, 0))
    for picture in (clear, palette, gray):
        assert image_tokenizer.prepare(picture).getcolors() == [(256, (255, 255, 255))]
    assert image_tokenizer.prepare(half).getpixel((0, 0)) == (255, 127, 127)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (1, 60000), (60000, 1), (3, 1000)])
def test_pictures_thin_as_a_thread_are_encoded(image_tokenizer, size):
    assert image_tokenizer.encode(PIL.Image.new("RGB", size, "blue")).shape == (4, 4)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_an_empty_picture_is_refused(image_tokenizer, size):
    with pytest.raises(ValueError, match="The picture is empty: "):
        image_tokenizer.encode(PIL.Image.new("RGB", size))


def test_trap_14_decoding_clamps_and_truncates_to_bytes():
    wanted = torch.tensor([-7.0, -1.0, 2 * 100.9 / 255 - 1, 2 * 100.1 / 255 - 1, 1.0, 7.0])
    shown = np.asarray(picture_of(wanted.view(1, 1, 6).expand(3, 1, 6)))
    assert shown[0, :, 0].tolist() == [0, 0, 100, 100, 255, 255]


def test_a_reconstruction_is_what_decoding_the_codes_gives(image_tokenizer, picture):
    seen = image_tokenizer.reconstruct(picture.resize((40, 50)))
    assert seen.picture.tobytes() == image_tokenizer.decode(seen.codes).tobytes()
    error = np.mean((np.asarray(seen.original, float) - np.asarray(seen.picture, float)) ** 2)
    assert seen.psnr == pytest.approx(10 * np.log10(255**2 / error))


def test_the_codebook_holds_the_code_vectors(image_tokenizer):
    book = image_tokenizer.codebook
    assert book.shape == (12, 4)
    assert np.array_equal(book, image_tokenizer.quantize.embedding.weight.detach().numpy())


@pytest.mark.parametrize(
    ("change", "why"), [({"quantizer": "magic"}, "No quantizer is called 'magic'"), ({"side": 18}, "no multiple")]
)
def test_an_impossible_config_is_refused(image_config, change, why):
    with pytest.raises(ValueError, match=why):
        replace(image_config, **change)


# Documents


def random_document(rng: np.random.Generator, tokenizer: MixedModalTokenizer, texts: tuple[str, ...]) -> Document:
    """Any segments in any order, but no empty text and no two in a row."""
    parts = []
    for kind in rng.integers(0, 3, rng.integers(0, 9)):
        if kind == 0:
            codes = rng.integers(0, tokenizer.image.codes, tokenizer.grid)
            parts.append(Image(tokenizer.image.decode(codes), codes))
        elif kind == 1 or (parts and isinstance(parts[-1], Text)):
            parts.append(EndTurn())
        else:
            parts.append(Text(random_text(rng) + texts[rng.integers(len(texts))]))
    return Document(tuple(parts))


@pytest.mark.parametrize("kind", ["mixed", "spelled"])
def test_decoding_undoes_encoding_for_any_document(kind, request, texts):
    tokenizer, rng = request.getfixturevalue(kind), np.random.default_rng(0)
    for _ in range(40):
        document = random_document(rng, tokenizer, texts)
        tokens = tokenizer.encode(document)
        assert tokens.dtype == np.int64 and tokens.ndim == 1 and tokens[0] == tokenizer.vocabulary.begin_document
        assert tokenizer.decode(tokens) == document
        assert tokenizer.decode(tokens.tolist()) == document
        assert np.array_equal(tokenizer.encode(tokenizer.decode(tokens)), tokens)


def test_a_permuted_vocabulary_changes_tokens_but_not_documents(mixed, texts):
    shuffled = tuple(int(offset) for offset in np.random.default_rng(5).permutation(12))
    other = MixedModalTokenizer(mixed.text, mixed.image, replace(mixed.vocabulary, permutation=shuffled))
    codes = np.arange(16).reshape(4, 4) % 12
    document = Document.of("a", Image(mixed.image.decode(codes), codes))
    assert not np.array_equal(other.encode(document), mixed.encode(document))
    assert other.decode(other.encode(document)) == document


def test_a_picture_without_codes_is_encoded_to_its_codes(mixed, picture):
    decoded = mixed.decode(mixed.encode(Document.of(picture))).segments[0]
    assert isinstance(decoded, Image) and decoded.codes is not None
    assert np.array_equal(decoded.codes, mixed.image.encode(picture))
    assert decoded.picture.tobytes() == mixed.image.decode(decoded.codes).tobytes()


def test_an_image_costs_its_codes_and_two_delimiters(mixed, picture):
    tokens = mixed.encode(Document.of(picture))[1:]
    assert len(tokens) == mixed.image_tokens == 18
    assert (tokens[0], tokens[-1]) == (mixed.vocabulary.begin_image, mixed.vocabulary.end_image)


@pytest.mark.parametrize("permutation", [(), (3, 0, 6, 2, 5, 1, 4, 11, 10, 9, 8, 7)], ids=["identity", "permuted"])
def test_trap_11_an_image_is_told_in_tokens_of_its_block_never_in_codes(mixed, picture, permutation):
    words = replace(mixed.vocabulary, permutation=permutation)
    tokens = MixedModalTokenizer(mixed.text, mixed.image, words).tokens_of_picture(picture)[1:-1]
    assert (words.modality[tokens] == Modality.IMAGE).all()
    codes = mixed.image.encode(picture).ravel()
    names = ["IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z" for code in codes]
    assert [words.spelling(token) for token in tokens] == names


def test_codes_of_another_grid_are_refused(mixed, picture):
    with pytest.raises(ValueError, match=r"grid of \(4, 4\) codes; this one has \(3, 3\)"):
        mixed.encode(Document.of(Image(picture, np.zeros((3, 3), int))))


@pytest.mark.parametrize("kind", ["mixed", "spelled"])
def test_half_a_surrogate_pair_is_refused(kind, request):
    with pytest.raises(ValueError, match="half a character"):
        request.getfixturevalue(kind).encode(Document.of("a\ud83d"))


def test_ill_formed_tokens_are_refused(mixed, picture):
    words = mixed.vocabulary
    whole = mixed.encode(Document.of(picture)).tolist()
    cases = {
        "end inside an image, after 3": whole[:5],
        "An image ends after 15 codes instead of 16": [*whole[:17], whole[-1]],
        "goes on after its 16 codes": [*whole[:-1], whole[5], whole[-1]],
        "stands outside an image": [whole[5]],
        f"Token {words.end_image}, part of an image, stands outside an image": [words.end_image],
        "stands inside an image, after 2": [*whole[:4], words.end_turn],
        "stands inside an image, after 0": [*whole[:2], words.begin_image],
        "must lie in": [words.size],
        "1-D array of integers": [0.5],
    }
    for why, tokens in cases.items():
        with pytest.raises(ValueError, match=why):
            mixed.decode(tokens)


def test_parts_of_different_sizes_are_refused(mixed):
    for codes, pieces in ((13, 256), (12, 255), (12, 300)):
        with pytest.raises(ValueError, match=f"room for {codes} codes and {pieces} pieces"):
            MixedModalTokenizer(mixed.text, mixed.image, Vocabulary.layout(codes, pieces))


@pytest.mark.parametrize("kind", ["mixed", "spelled"])
def test_pieces_add_up_to_the_document(kind, request, texts):
    tokenizer, rng = request.getfixturevalue(kind), np.random.default_rng(1)
    for _ in range(10):
        document = random_document(rng, tokenizer, texts)
        reader, pieces = PieceReader(tokenizer), []
        for token in tokenizer.encode(document):
            pieces += reader.read(int(token))
        pieces += reader.close()
        assert reader.document() == document
        told = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
        assert told == "".join(part.text for part in document if isinstance(part, Text))
        images = [part for part in document if isinstance(part, Image)]
        shown = [piece for piece in pieces if isinstance(piece, ImagePiece)]
        assert [len(piece.codes) for piece in shown] == [1, 2, 3, 4] * len(images)
        for image, whole in zip(images, (piece for piece in shown if piece.complete), strict=True):
            assert image.codes is not None and np.array_equal(whole.codes, image.codes)
            assert whole.picture.tobytes() == image.picture.tobytes()


@pytest.mark.parametrize("kind", ["mixed", "spelled"])
def test_a_long_text_is_told_without_a_gap(kind, request, texts):
    tokenizer, rng = request.getfixturevalue(kind), np.random.default_rng(2)
    for _ in range(10):
        text = "".join(rng.choice([random_text(rng), *texts]) for _ in range(rng.integers(1, 12)))
        reader = PieceReader(tokenizer)
        told = [piece for token in tokenizer.encode(Document.of(text))[1:] for piece in reader.read(int(token))]
        told += reader.close()
        assert "".join(piece.text for piece in told if isinstance(piece, TextPiece)) == text
        assert all(isinstance(piece, TextPiece) and piece.text for piece in told)


def test_a_piece_of_a_long_text_is_told_without_decoding_the_text_anew(mixed):
    decoded = list[int]()

    class Counting(ByteTokenizer):
        def decode(self, pieces):
            decoded.append(len(pieces))
            return super().decode(pieces)

    reader = PieceReader(MixedModalTokenizer(Counting(), mixed.image, mixed.vocabulary))
    for token in mixed.encode(Document.of("å" * 1000))[1:]:
        assert all(piece == TextPiece("å") for piece in reader.read(int(token)))
    assert max(decoded) < 50


def test_any_bytes_are_told_as_they_are_decoded(mixed):
    rng = np.random.default_rng(3)
    for _ in range(30):
        some = rng.choice([*range(256), *b"abc", 0xC3, 0xE2, 0x82, 0xF0], 200)
        tokens = [mixed.vocabulary.token_of_piece(int(byte)) for byte in some]
        reader = PieceReader(mixed)
        told = [piece for token in tokens for piece in reader.read(token)] + list(reader.close())
        text = "".join(piece.text for piece in told if isinstance(piece, TextPiece))
        assert Document.of(text) == mixed.decode(tokens) == reader.document()


def test_a_character_is_told_only_once_it_is_whole(mixed):
    reader = PieceReader(mixed)
    told = [list(reader.read(int(token))) for token in mixed.encode(Document.of("é👧"))]
    assert told == [[], [], [TextPiece("é")], [], [], [], [TextPiece("👧")]]
    assert list(reader.read(int(mixed.encode(Document.of("é"))[1]))) == []
    assert list(reader.close()) == [TextPiece("\ufffd")]


# Half precision


def test_a_tokenizer_too_large_for_float16_says_so_and_gives_no_code(tmp_path):
    """Its weights, or what it computes with weights that fit: both would else be NaN, and NaN is nearest to code 0."""
    torch.manual_seed(0)
    image, picture = ImageTokenizer(TINY_IMAGES).eval(), PIL.Image.effect_noise((64, 64), 90).convert("RGB")
    half = ImageTokenizer(TINY_IMAGES).half().eval()
    half.load_state_dict(image.state_dict())
    codes = half.decode(half.encode(picture))  # as it is, float16 will do
    assert codes.size == (64, 64)
    with torch.no_grad():
        image.quant_conv.weight *= 6e4 / image.quant_conv.weight.abs().max()
        image.post_quant_conv.weight *= 6e4 / image.post_quant_conv.weight.abs().max()
        book = image.get_parameter("quantize.embedding.weight")
        book *= 100 / book.abs().max()
    write_image_tokenizer(image, tmp_path / "large")
    for dtype in (torch.float32, torch.bfloat16):
        read = load_image_tokenizer(tmp_path / "large", dtype=dtype, device="cpu")
        assert read.decode(read.encode(picture)).size == (64, 64)
    read = load_image_tokenizer(tmp_path / "large", dtype=torch.float16, device="cpu")
    with pytest.raises(ValueError, match=r"its latents are beyond float16, .* Load it in dtype=torch\.bfloat16"):
        read.encode(picture)
    with pytest.raises(ValueError, match="its pixels are beyond float16"):
        read.decode(np.zeros((8, 8), int))
    with torch.no_grad():
        image.quant_conv.weight *= 2
    write_image_tokenizer(image, tmp_path / "larger")
    with pytest.raises(ValueError, match=r"quant_conv\.weight holds NaN or infinity as torch\.float16"):
        load_image_tokenizer(tmp_path / "larger", dtype=torch.float16, device="cpu")


@pytest.mark.gpu
def test_a_gpu_reads_and_draws_what_a_cpu_does(image_tokenizer, picture):
    there, codes = copy.deepcopy(image_tokenizer).cuda(), image_tokenizer.encode(picture)
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert np.array_equal(there.encode(picture), codes)
        drawn = [np.asarray(each.decode(codes)).astype(int) for each in (image_tokenizer, there)]
    assert abs(drawn[0] - drawn[1]).max() <= 1
    assert np.array_equal(there.codebook, image_tokenizer.codebook)
    half = there.to(torch.bfloat16)
    assert (half.encode(picture) == codes).mean() > 0.8 and half.decode(codes).size == (16, 16)
