"""Prompts as other programs write them are understood or refused at once; what cannot be shown is not begun."""

import base64
import json
import logging

import numpy as np
import PIL.Image
import pytest
import torch
from support import WARM
from test_formats import make_lab

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.generation.grammar import Grammar
from chameleon_lab.records import StopPiece

RED = PIL.Image.new("RGB", (6, 4), "red")


@pytest.fixture
def file(tmp_path):
    RED.save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (4, 6, 4)], ids=["greys", "colours", "transparent"])
def test_an_array_of_bytes_is_a_picture(shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    assert np.array_equal(np.asarray(Image(array).picture), array)  # pyright: ignore[reportArgumentType]
    assert Document.of(array, "what is it?").pictures[0].size == (6, 4)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (np.zeros((4, 6, 3)), r"float64 \(4, 6, 3\) is no picture.*astype\('uint8'\)"),
        (np.zeros((3, 4, 6), np.uint8), r"uint8 \(3, 4, 6\) is no picture.*channels last"),
        (torch.zeros(3, 4, 6), "not a Tensor: pass a PIL picture"),
        ("red.png", r"not a str: pass open_picture\('red\.png'\)"),
        (None, "not a NoneType"),
    ],
    ids=["floats", "channels first", "tensor", "path", "nothing"],
)
def test_what_is_no_picture_is_refused_with_what_to_pass(source, why):
    with pytest.raises(TypeError, match=why):
        Image(source)


def test_a_path_object_is_opened_and_a_path_as_text_is_refused(lab, file):
    assert Document.of(file, "what is it?").pictures[0].size == (6, 4)
    for words in (str(file), f" {file}\n", f"file:{file}", f'"{file}"'):
        with pytest.raises(ValueError, match=r"is the path of a picture.*open_picture"):
            lab.generate(Document.of(words, EndTurn()), max_tokens=1)
    for words in ("data:image/png;base64,iVBORw0KGgo=", "https://example.org/a/cat.JPG\n", "http://x/y.png"):
        with pytest.raises(ValueError, match="is the address of a picture"):
            lab.generate(Document.of(words, EndTurn()), max_tokens=1)
    for words in (
        "https://example.org is no picture",
        "see https://x/y.png",
        "red.png",
        "what is red.png?",
        f"look at {file}",
    ):  # words, as far as anybody can tell
        lab.generate(Document.of(words, EndTurn()), max_tokens=1)


@pytest.mark.parametrize("call", ["generate", "stream", "begin"])
def test_transformers_word_for_a_picture_is_refused_at_once(call, lab):
    with pytest.raises(ValueError, match=r"holds '<image>'.*Document\.of\('see ', picture"):
        getattr(lab, call)(Document.of("see <image> and tell", EndTurn()))
    for word in ("<|image|>", "<image_1>", "<|image_1|>", "<|image_pad|>"):
        with pytest.raises(ValueError, match="another program's word for a picture"):
            getattr(lab, call)(Document.of(f"see {word} and tell", EndTurn()))


def test_other_programs_lists_are_named_where_a_document_is_asked_for(lab):
    messages = [{"role": "user", "content": "hello"}]
    for call in (lab.generate, Document.of):
        with pytest.raises(TypeError, match=r"Document\.from_messages"):
            call(messages)  # pyright: ignore
        with pytest.raises(TypeError, match=r"Document\.from_segments"):
            call([{"type": "image", "content": "red.png"}])  # pyright: ignore
        for one, whose in ((messages[0], "messages"), ({"type": "image", "content": "red.png"}, "segments")):
            with pytest.raises(TypeError, match=rf"Document\.from_{whose}"):
                call(one)  # pyright: ignore


def test_messages_of_hugging_face_are_a_document(file):
    document = Document.from_messages(
        [
            {"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "what is it?"}]},
            {"role": "assistant", "content": "a red picture"},
            {"role": "user", "content": [{"type": "image", "url": str(file)}, {"type": "image", "path": str(file)}]},
        ]
    )
    wanted = Document.of(RED, "what is it?", EndTurn(), "a red picture", EndTurn(), RED, RED, EndTurn())
    assert document == wanted and [role for role, _ in document.turns] == ["user", "model", "user"]


def test_parts_of_messages_as_other_programs_write_them_are_a_document(file):
    data = base64.b64encode(file.read_bytes()).decode()
    address = f"data:image/png;base64,{data}"
    pictures = [
        *({"type": "image", key: source} for key in ("image", "path", "url") for source in (str(file), f"file:{file}")),
        *({"type": "image", "path": file}, {"type": "image", "base64": data}, {"type": "image", "content": str(file)}),
        *({"type": kind, "image_url": address} for kind in ("image_url", "input_image")),
        *({"type": "image_url", "image_url": {"url": address, "detail": "low"}},),
        *({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},),
    ]
    for kind, picture in zip(["text", "input_text"] * len(pictures), pictures, strict=False):
        content = [picture, {"type": kind, "text": "what is it?"}]
        assert Document.from_messages([{"role": "user", "content": content}]) == Document.of(
            RED, "what is it?", EndTurn()
        )


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([{"role": "system", "content": "be brief"}], "no system turn: put its words before the user's"),
        ([{"role": "assistant", "content": "hi"}], "roles alternate, the user first: 'user' is next, not 'assistant'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "neither a text with its words nor an image"),
        ([{"role": "user", "content": [{"type": "image", "url": "https://a.b/c.png"}]}], "nothing is fetched"),
        ([{"role": "user", "content": [{"type": "image", "source": {"url": "https://a.b/c"}}]}], "nothing is fetched"),
        ([{"role": "user", "content": [{"type": "image", "base64": "#"}]}], "no base64"),
        ([{"role": "user", "content": [{"type": "video", "path": "a.mp4"}]}], "neither a text with its words nor"),
        ([{"role": "user", "content": None}], "neither a string nor a list of parts"),
        ([{"role": "user"}], "no object with a role and a content"),
        ([{"role": "user", "content": [{"type": "image", "image": "nowhere.png"}]}], "no picture at nowhere"),
        ({"role": "user", "content": "x"}, "a list of roles and contents, not a dict"),
    ],
    ids=[
        *("system", "order", "no picture", "address", "address of a source", "no base64", "video", "nothing"),
        *("no content", "no file", "no list"),
    ],
)
def test_messages_that_cannot_be_a_document_say_which_and_why(messages, why):
    with pytest.raises(ValueError, match=why):
        Document.from_messages(messages)


def test_anoles_segments_are_a_document(file):
    plain = [{"type": "text", "content": "what is it?"}, {"type": "image", "content": str(file)}]
    assert Document.from_segments(json.loads(json.dumps(plain))) == Document.of("what is it?", RED)


# What cannot be shown, and what has no room


def without_decoder() -> Chameleon:
    lab = make_lab()
    lab.tokenizer.image.decoder = None
    with torch.no_grad():  # so that it would draw at once
        lab.model.head.weight.zero_()
        lab.model.head.weight[lab.vocabulary.begin_image] = 1e3 * lab.model.norm.weight.sign()
    return lab


def test_a_model_without_picture_decoder_answers_in_words():
    lab = without_decoder()
    for seed in range(5):
        *_, last = lab.stream(Document.of("draw", EndTurn()), seed=seed, max_tokens=20, settings=WARM)
        assert isinstance(last, StopPiece)
        assert not lab.generate(Document.of("draw", EndTurn()), seed=seed, max_tokens=20, settings=WARM).pictures
    grammar = Grammar(lab.vocabulary, 64)
    with pytest.raises(ValueError, match="holds no picture decoder"):
        lab.stream(Document.of("draw", EndTurn()), grammar=grammar)


def test_a_reply_too_short_for_the_picture_that_comes_next_ends_and_says_so(lettered, make_lab, caplog):
    lab = make_lab(lettered)
    room, begin = lab.tokenizer.image_tokens, lab.vocabulary.begin_image
    ends = 0
    for seed in range(12):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            session = lab.begin(Document.of("ab"), seed=seed, settings=WARM, max_tokens=room - 1)
            *pieces, last = session.stream()
        assert isinstance(last, StopPiece) and begin not in session.tokens and not session.reply.pictures
        said = f"it takes {room} tokens" in caplog.text
        assert last.reason == "length" if said else len(pieces) < room
        ends += said
        if said:  # what was written stays, and the reply can be gone on with
            session.append(Document.of(Text("a")))
    assert ends > 2


def test_float8_is_refused_where_nothing_could_be_computed(lab, tmp_path):
    lab.save(tmp_path / "there")
    with pytest.raises(ValueError, match=r"would be torch\.float8_e4m3fn, in which nothing can be computed"):
        Chameleon.load(tmp_path / "there", dtype=torch.float8_e4m3fn, device="cpu")
