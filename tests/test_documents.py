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
    moded = picture.convert("L").convert(mode) if mode in ("I;16", "F") else picture.convert(mode)
    document = Document.of(*texts, Image(moded, learn=False), Image(picture, codes), EndTurn(), EndTurn(learn=False))
    text = document.to_json()
    again = Document.from_json(text)
    assert "\n" not in text
    assert again == document
    image = again.segments[-3]
    assert isinstance(image, Image) and image.codes is not None and np.array_equal(image.codes, codes)


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


def png_address(picture: PIL.Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_segments_of_meta_s_viewer_become_a_document(picture, tmp_path):
    picture.save(tmp_path / "a picture.png")
    segments = [
        {"type": "text", "value": "what is <b>this</b>?"},
        {"type": "image", "value": f"file:{tmp_path / 'a picture.png'}"},
        {"type": "image", "value": f"file://{tmp_path / 'a picture.png'}"},
        {"type": "image", "value": png_address(picture)},
        {"type": "image", "value": picture},
        {"type": "sentinel", "value": "<END-OF-TURN>"},
        {"type": "ids", "value": [5, 6]},
    ]
    document = Document.from_segments(segments, decode=lambda tokens: Document.of(f"{sum(tokens)}", EndTurn()))
    assert document == Document.of("what is <b>this</b>?", *[picture] * 4, EndTurn(), "11", EndTurn())
    assert Document.from_segments(json.loads(json.dumps(segments[:4]))) == Document(document.segments[:4])
    assert Document.from_segments([]) == Document()


def test_what_a_segment_s_text_spells_stays_text():
    spelled = [{"type": "text", "value": "<END-OF-TURN>"}]
    assert Document.from_segments(spelled) == Document.of("<END-OF-TURN>")


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("hello", "no object with a type and a value, but 'hello'"),
        ({"type": "text"}, "no object with a type and a value"),
        ({"type": "text", "value": 3}, "'text' with a value of '3' is none of"),
        ({"type": "sound", "value": "a"}, "'sound' with a value of 'a' is none of"),
        ({"type": ["text"], "value": "a"}, "is none of"),
        ({"type": "image", "value": ["a"]}, "'image' with a value of"),
        ({"type": "image", "value": "https://example.org/a.png"}, "nothing is fetched"),
        ({"type": "image", "value": "/a.png"}, "neither file:... nor data:"),
        ({"type": "image", "value": ""}, "neither file:... nor data:"),
        ({"type": "image", "value": "file:/not/here.png"}, "There is no picture at /not/here.png"),
        ({"type": "image", "value": "file:\0"}, "There is no picture"),
        ({"type": "image", "value": "file:" + 5000 * "a"}, "too long"),
        ({"type": "image", "value": "data:image/png;base64,%%%"}, "no base64"),
        ({"type": "image", "value": "data:image/png;base64,ä"}, "no base64"),
        ({"type": "image", "value": "data:image/png;base64,aGVsbG8="}, "not a picture"),
        ({"type": "image", "value": "data:image/png;base64,"}, "holds no bytes"),
        ({"type": "image", "value": "data:image/png,abc"}, "neither file:... nor data:"),
        ({"type": "sentinel", "value": "<START-OF-IMAGE>"}, "grammar of images alone"),
        ({"type": "sentinel", "value": "<s>"}, "'sentinel' with a value of '<s>'"),
        ({"type": "ids", "value": [4]}, "pass decode=lab.decode"),
        ({"type": "ids", "value": 4}, "'ids' with a value of '4'"),
    ],
)
def test_a_segment_that_is_none_is_refused_with_its_place_and_the_reason(entry, why):
    with pytest.raises(ValueError, match=f"Segment 1 of the document cannot be read: .*{why}"):
        Document.from_segments([{"type": "text", "value": "a"}, entry])


def test_a_list_of_segments_that_is_none_is_refused():
    for segments in ("[]", {"type": "text", "value": "a"}, None):
        with pytest.raises(ValueError, match="expected a list of segments"):
            Document.from_segments(segments)  # pyright: ignore[reportArgumentType]


def test_ids_that_the_tokenizer_refuses_name_their_segment(mixed, picture):
    tokens = mixed.encode_segment(Image(picture)).tolist()
    whole = Document.from_segments([{"type": "ids", "value": tokens}], decode=mixed.decode)
    assert len(whole.pictures) == 1
    for broken in (tokens[:-1], [mixed.vocabulary.size], [0.5]):
        with pytest.raises(ValueError, match="Segment 0 of the document cannot be read"):
            Document.from_segments([{"type": "ids", "value": broken}], decode=mixed.decode)


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
    page = Document.of("<script>alert(1)</script>", EndTurn(), PIL.Image.new("RGB", (3, 2)))._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count('src="data:image/png;base64,') == 1
    assert "3 by 2 pixels" in page
