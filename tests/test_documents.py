"""Documents: plain, ordered, and the same after a trip through JSON."""

import base64
import io
import json
import warnings

import numpy as np
import PIL.Image
import pytest

from chameleon_lab.documents import Document, EndTurn, Image, Text


def test_parts_become_segments_and_documents_are_spliced_in(picture):
    inner = Document.of("b", EndTurn(learn=False))
    document = Document.of("a", picture, inner, Text("c", learn=False))
    kinds = (Text("a"), Image(picture), Text("b"), EndTurn(learn=False), Text("c", learn=False))
    assert document.segments == kinds
    assert Document.of("a") + Document.of("b") == Document.of("a", "b")
    assert len(document) == 5 and list(document) == list(kinds)


def test_a_part_of_another_kind_is_named_in_the_error():
    with pytest.raises(TypeError, match="Part 1 of the document is a int"):
        Document.of("a", 3)  # pyright: ignore[reportArgumentType]


def test_turns_alternate_between_user_and_model():
    document = Document.of("hi", EndTurn(), "hello", EndTurn(), "draw", EndTurn())
    turns = [("user", Document.of("hi")), ("model", Document.of("hello")), ("user", Document.of("draw"))]
    assert document.turns == tuple(turns)
    assert (document + Document.of("a", "b")).turns == (*turns, ("model", Document.of("a", "b")))
    assert Document().turns == ()


def test_text_and_pictures_can_be_told_apart(picture):
    document = Document.of("a", picture, "b", EndTurn())
    assert document.text == "a b"
    assert document.pictures == (picture,)


def test_learning_sets_every_flag(picture):
    document = Document.of("a", picture, EndTurn())
    assert [part.learn for part in document.learning(False)] == [False] * 3
    assert document.learning(False).learning(True) == document


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "F"])
def test_json_keeps_every_document(mode, picture, texts):
    codes = np.arange(6).reshape(2, 3)
    shown = picture.convert("L").convert(mode) if mode in ("I;16", "F") else picture.convert(mode)
    document = Document.of(*texts, Image(shown, learn=False), Image(picture, codes), EndTurn(), EndTurn(learn=False))
    text = document.to_json()
    again = Document.from_json(text)
    assert "\n" not in text
    assert again == document
    kept = again.segments[-3]
    assert isinstance(kept, Image) and kept.codes is not None and np.array_equal(kept.codes, codes)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        ('{"text": "a"}', "expected a JSON list"),
        ("[3]", "Segment 0 of the document is not an object"),
        ('[{"text": "a"}, {"sound": "b"}]', "Segment 1 of the document has neither"),
        ('[{"image": "%%%"}]', "Segment 0 of the document cannot be read"),
        ('[{"image": "aGVsbG8="}]', "Segment 0 of the document cannot be read"),
        ('[{"image": 3}]', "Segment 0 of the document cannot be read"),
    ],
)
def test_json_that_is_no_document_is_refused_with_the_reason(text, why):
    with pytest.raises(ValueError, match=why):
        Document.from_json(text)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_a_broken_picture_in_json_gives_a_picture_or_a_value_error(kind, picture):
    file = io.BytesIO()
    picture.resize((40, 40)).save(file, kind)
    whole, rng = file.getvalue(), np.random.default_rng(0)
    refused = 0
    for trial in range(60):
        broken = np.frombuffer(whole, np.uint8).copy()
        broken[rng.integers(0, len(whole), 8)] = rng.integers(0, 256, 8)
        cut = bytes(broken[: len(whole) if trial % 2 else rng.integers(len(whole))])
        plain = json.dumps([{"image": base64.b64encode(cut).decode()}])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's own, about what it could not read
            try:
                Document.from_json(plain)
            except ValueError:
                refused += 1
    assert refused > 5


def test_images_are_equal_by_codes_where_both_have_them_and_by_pixels_otherwise(picture):
    black, codes = PIL.Image.new("RGB", (16, 16)), np.zeros((2, 2), int)
    assert Image(picture, codes) == Image(black, codes) != Image(black, codes + 1)
    assert Image(picture) == Image(picture.copy(), codes)
    assert Image(picture) != Image(black, codes)
    assert Image(picture) != Image(picture, learn=False)
    assert Image(picture) != "picture"


def test_equal_documents_have_equal_hashes(picture):
    codes = np.zeros((2, 2), int)
    one, other = Document.of("a", Image(picture, codes)), Document.of("a", Image(picture.resize((8, 8)), codes))
    assert one == other and hash(one) == hash(other)


def test_a_notebook_shows_text_escaped_and_pictures_inline() -> None:
    shown = Document.of("<script>alert(1)</script>", EndTurn(), PIL.Image.new("RGB", (3, 2)))._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert shown.count('src="data:image/png;base64,') == 1
    assert "3 by 2 pixels" in shown
