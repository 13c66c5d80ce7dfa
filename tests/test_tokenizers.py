"""Tokenizers: text without loss, pictures on any grid, documents there and back."""

import io
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.records import ImagePiece, TextPiece
from chameleon_lab.tokenizers.image import CHAMELEON, TINY, ImageTokenizer, ImageTokenizerConfig
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer, PieceReader
from chameleon_lab.tokenizers.preparation import picture_of, pixels_of
from chameleon_lab.tokenizers.quantizers import MovingAverageQuantizer, VectorQuantizer
from chameleon_lab.tokenizers.text import ByteTokenizer, SentencePieceTokenizer
from chameleon_lab.vocabulary import Vocabulary

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


# Quantizers


def test_the_nearest_code_is_the_nearest_code():
    quantizer = VectorQuantizer(9, 3)
    nn.init.normal_(quantizer.embedding.weight)
    latents_BCHW = torch.randn(2, 3, 4, 5)
    apart = (latents_BCHW.movedim(1, -1)[..., None, :] - quantizer.embedding.weight).square().sum(-1)
    codes_BHW = quantizer.codes(latents_BCHW)
    assert torch.equal(codes_BHW, apart.argmin(-1))
    assert torch.equal(quantizer.latents(codes_BHW)[1, :, 2, 3], quantizer.embedding.weight[codes_BHW[1, 2, 3]])


@pytest.mark.parametrize("build", [VectorQuantizer, lambda n, c: MovingAverageQuantizer(n, c, warm_up=0)])
def test_gradients_pass_a_quantizer_straight_through(build):
    quantizer = build(9, 3)
    latents_BCHW = torch.randn(2, 3, 4, 4, requires_grad=True)
    quantized = quantizer(latents_BCHW)
    assert torch.allclose(quantized.latents_BCHW, quantizer.latents(quantizer.codes(latents_BCHW)), atol=1.0)
    upstream = torch.randn_like(latents_BCHW)
    (through,) = torch.autograd.grad((quantized.latents_BCHW * upstream).sum(), latents_BCHW, retain_graph=True)
    assert torch.equal(through, upstream)
    (pull,) = torch.autograd.grad(quantized.loss, latents_BCHW)
    assert pull.abs().sum() > 0


def test_a_codebook_learns_by_gradient_and_commitment_weighs_the_pull():
    latents_BCHW = torch.randn(2, 3, 4, 4)
    losses = {}
    for commitment in (0.0, 1.0):
        torch.manual_seed(0)
        quantizer = VectorQuantizer(9, 3, commitment=commitment)
        losses[commitment] = quantizer(latents_BCHW).loss
        losses[commitment].backward()
        assert quantizer.embedding.weight.grad is not None and quantizer.embedding.weight.grad.abs().sum() > 0
    assert torch.isclose(losses[1.0], 2 * losses[0.0])


def test_the_moving_average_book_starts_at_the_k_means_of_what_it_sees():
    centres_XC = torch.tensor([[x, y] for x in (0.0, 5.0, 10.0) for y in (0.0, 5.0, 10.0)])
    latents_XC = centres_XC.repeat(50, 1) + 0.01 * torch.randn(450, 2)
    quantizer = MovingAverageQuantizer(40, 2, warm_up=2)
    latents_BCHW = latents_XC.T.reshape(1, 2, 1, -1)
    for _ in range(2):
        assert torch.equal(quantizer(latents_BCHW).latents_BCHW, latents_BCHW)  # not quantized before
    quantized = quantizer(latents_BCHW)
    assert (quantized.latents_BCHW - latents_BCHW).abs().max() < 0.1
    assert len(quantized.codes_BHW.unique()) >= 9


def test_a_moving_average_book_follows_the_mean_of_what_it_catches():
    quantizer = MovingAverageQuantizer(2, 1, warm_up=0, decay=0.5)
    near, far = torch.full((1, 1, 1, 8), -1.0), torch.full((1, 1, 1, 8), 1.0)
    quantizer(torch.cat([near, far], -1))
    for _ in range(30):
        quantizer(torch.cat([near - 0.5, far + 1.0], -1))
    assert torch.allclose(quantizer.embedding.weight.sort(0).values.flatten(), torch.tensor([-1.5, 2.0]), atol=0.01)


def test_dead_codes_restart_where_latents_are():
    corner_BCHW = 0.01 * torch.randn(1, 2, 8, 8)
    wide_BCHW = 50 + 20 * torch.randn(1, 2, 8, 8)
    used = {}
    for patience in (5, 10**9):
        torch.manual_seed(0)
        quantizer = MovingAverageQuantizer(16, 2, warm_up=0, patience=patience)
        for step in range(120):
            quantizer(corner_BCHW if step < 3 else wide_BCHW)
        used[patience] = len(quantizer.eval().codes(wide_BCHW).unique())
    assert used[10**9] <= 3
    assert used[5] >= 12


def test_a_moving_average_book_stands_still_outside_training():
    quantizer = MovingAverageQuantizer(8, 2, warm_up=0).eval()
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer(torch.randn(1, 2, 4, 4))
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())


# Pictures


def test_the_published_settings_have_exactly_the_published_parameters():
    with torch.device("meta"):
        tokenizer = ImageTokenizer(CHAMELEON)
    counted = {name: parameter.numel() for name, parameter in tokenizer.named_parameters()}
    assert (sum(counted.values()), len(counted)) == (68_718_467, 293)
    for part, parameters, tensors in (("encoder.", 27_194_880, 124), ("decoder.", 39_294_851, 164)):
        inside = [count for name, count in counted.items() if name.startswith(part)]
        assert (sum(inside), len(inside)) == (parameters, tensors)
    assert CHAMELEON.factor == 16 and CHAMELEON.grid == (32, 32)
    assert TINY.factor == 8 and TINY.grid == (8, 8)


def test_the_encoder_equals_the_one_in_transformers():
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    config = ChameleonVQVAEConfig(
        embed_dim=16,
        num_embeddings=64,
        latent_channels=16,
        resolution=32,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
    )
    theirs = ChameleonVQVAE(config).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    ours = ImageTokenizer(
        ImageTokenizerConfig(side=32, codes=64, code_width=16, widths=(32, 64), latent_width=16, blocks=1)
    ).eval()
    weights = {name.replace(".downsample.", ".resample."): tensor for name, tensor in theirs.state_dict().items()}
    told = ours.load_state_dict(weights, strict=False)
    assert not told.unexpected_keys and all(name.startswith("decoder.") for name in told.missing_keys)
    pixels_BCHW = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        seen = theirs.encode(pixels_BCHW)  # pyright: ignore[reportArgumentType]: they annotate pixels as long
        assert seen.last_hidden_state is not None and seen.image_tokens is not None
        assert torch.allclose(ours.encoder(pixels_BCHW), seen.last_hidden_state, atol=1e-4)
        codes_BHW = ours.encode_pixels(pixels_BCHW)
    assert torch.equal(codes_BHW.flatten(), seen.image_tokens.flatten())
    assert len(codes_BHW.unique()) > 3


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


def test_transparency_shows_white(image_tokenizer):
    clear = PIL.Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    half = PIL.Image.new("RGBA", (16, 16), (255, 0, 0, 128))
    palette = clear.convert("P", palette=PIL.Image.Palette.ADAPTIVE)
    palette.info["transparency"] = 0
    gray = PIL.Image.new("LA", (16, 16), (0, 0))
    for picture in (clear, palette, gray):
        assert image_tokenizer.prepare(picture).getcolors() == [(256, (255, 255, 255))]
    assert image_tokenizer.prepare(half).getpixel((0, 0)) == (255, 127, 127)


@pytest.mark.parametrize("mode", ["1", "L", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"])
def test_a_picture_of_any_mode_is_encoded(image_tokenizer, mode):
    assert image_tokenizer.encode(PIL.Image.new(mode, (9, 7))).shape == (4, 4)


def test_sixteen_bit_gray_is_scaled_not_clipped(image_tokenizer):
    ramp = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    file = io.BytesIO()
    PIL.Image.fromarray(ramp).save(file, "PNG")
    shown = np.asarray(image_tokenizer.prepare(PIL.Image.open(file)))
    assert np.array_equal(shown[..., 0], ramp >> 8)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (1, 60000), (60000, 1), (3, 1000)])
def test_pictures_thin_as_a_thread_are_encoded(image_tokenizer, size):
    assert image_tokenizer.encode(PIL.Image.new("RGB", size, "blue")).shape == (4, 4)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_an_empty_picture_is_refused(image_tokenizer, size):
    with pytest.raises(ValueError, match="The picture is empty: "):
        image_tokenizer.encode(PIL.Image.new("RGB", size))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_cut_short_is_refused(image_tokenizer, kind):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    PIL.Image.fromarray(noise).save(file, kind)
    with pytest.raises(ValueError, match="The picture cannot be read"):
        image_tokenizer.encode(PIL.Image.open(io.BytesIO(file.getvalue()[:2000])))


def test_decoding_clamps_and_truncates_to_bytes():
    wanted = torch.tensor([-7.0, -1.0, 2 * 100.9 / 255 - 1, 2 * 100.1 / 255 - 1, 1.0, 7.0])
    shown = np.asarray(picture_of(wanted.view(1, 1, 6).expand(3, 1, 6)))
    assert shown[0, :, 0].tolist() == [0, 0, 100, 100, 255, 255]


def test_pixels_keep_the_picture(picture):
    pixels_CHW = pixels_of(picture)
    assert pixels_CHW.min() >= -1 and pixels_CHW.max() <= 1
    bright_CHW = pixels_CHW + 0.5 / 255  # truncation needs the value a little above the byte
    assert picture_of(bright_CHW).tobytes() == picture.tobytes()


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
        "ends after 0 codes": [words.end_image],
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


def test_a_character_is_told_only_once_it_is_whole(mixed):
    reader = PieceReader(mixed)
    told = [list(reader.read(int(token))) for token in mixed.encode(Document.of("é👧"))]
    assert told == [[], [], [TextPiece("é")], [], [], [], [TextPiece("👧")]]
    assert list(reader.read(int(mixed.encode(Document.of("é"))[1]))) == []
    assert list(reader.close()) == [TextPiece("\ufffd")]
