"""Conversations of each style that people have become the same document, and a fault in one is one reason."""

import base64
import copy
import io
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import pytest

from chameleon_lab.corpora.readers import Skipped, jsonl
from chameleon_lab.corpora.turns import conversation_of, is_conversation
from chameleon_lab.documents import Document, EndTurn, Image, Text


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "below").mkdir()
    for name, grey in (("a.png", 10), ("b.png", 20), ("below/b.png", 20)):
        PIL.Image.new("RGB", (8, 8), (grey, grey, grey)).save(tmp_path / name)
    return tmp_path


def read(folder, *entries):
    (folder / "chats.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return list(jsonl(folder / "chats.jsonl"))


def plain(document: Document | Skipped) -> list:
    """Words, shades and "|" for an end of turn, each with a star where it is learned."""
    assert isinstance(document, Document), document
    names = {
        Text: lambda part: part.text,
        Image: lambda part: np.asarray(part.picture)[0, 0, 0],
        EndTurn: lambda _: "|",
    }
    return [f"{names[type(part)](part)}{'*' * part.learn}" for part in document]


WHOLE = ["see", "10", "and what?", "|", "it is grey*", "20*", "|*", "thanks", "|", "bye*", "|*"]

STYLES = {
    "turns": {
        "turns": [["see", {"image": "a.png"}, "and what?"], ["it is grey", {"image": "b.png"}], "thanks", "bye"],
    },
    "turns that mark pictures": {
        "turns": ["see <image> and what?", "it is grey <image>", "thanks", "bye"],
        "images": ["a.png", "b.png"],
    },
    "Hugging Face's messages": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "see"},
                    {"type": "image", "path": "a.png"},
                    {"type": "text", "text": "and what?"},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "it is grey"}, {"type": "image", "url": "b.png"}],
            },
            {"role": "user", "content": "thanks"},
            {"role": "assistant", "content": "bye"},
        ]
    },
    "messages with pictures beside them": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "see <image> and what?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "it is grey"}, {"type": "image"}]},
            {"role": "user", "content": "thanks"},
            {"role": "assistant", "content": "bye"},
        ],
        "images": [{"path": "a.png", "bytes": None}, "b.png"],
    },
    "an image_url": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "see"},
                    {"type": "image_url", "image_url": {"url": "a.png"}},
                    {"type": "text", "text": "and what?"},
                ],
            },
            {"role": "assistant", "content": [{"text": "it is grey"}, {"image": "b.png"}]},
            {"role": "user", "content": "thanks"},
            {"role": "assistant", "content": "bye"},
        ]
    },
    "LLaVA": {
        "id": "7",
        "image": ["a.png", "b.png"],
        "conversations": [
            {"from": "human", "value": "see\n<image>\nand what?"},
            {"from": "gpt", "value": "it is grey <image>"},
            {"from": "human", "value": "thanks"},
            {"from": "gpt", "value": "bye"},
        ],
    },
    "Lumina-mGPT": {
        "image": ["a.png", "b.png"],
        "conversations": [
            {"from": "human", "value": "see <|image|> and what?"},
            {"from": "gpt", "value": "it is grey <|image|>"},
            {"from": "human", "value": "thanks"},
            {"from": "gpt", "value": "bye"},
        ],
    },
}


@pytest.mark.parametrize("style", STYLES)
def test_a_conversation_of_each_style_is_the_same_document(folder, style):
    (document,) = read(folder, STYLES[style])
    assert plain(document) == WHOLE
    assert isinstance(document, Document)
    assert [role for role, _ in document.turns] == ["user", "model", "user", "model"]


@pytest.mark.parametrize(
    "entry",
    [
        {"system": "be brief", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {
            "conversations": [
                {"from": "system", "value": "be brief"},
                {"from": "user", "value": "hi"},
                {"from": "chatgpt", "value": "hello"},
            ]
        },
        {
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "hello"},
            ]
        },
    ],
    ids=["ShareGPT's field", "ShareGPT's turn", "messages"],
)
def test_what_the_system_says_stands_before_the_users_first_words(folder, entry):
    (document,) = read(folder, entry)
    assert plain(document) == ["be brief\n\nhi", "|", "hello*", "|*"]


USER, ANSWER = {"role": "user", "content": "draw"}, {"role": "assistant", "content": "no"}
GREY_ANSWER = {"role": "assistant", "content": "grey"}
SHORT = ["draw", "|", "no*", "|*"]
ABOUT = ["10", "what?", "|", "grey*", "|*"]
PIL.Image.new("RGB", (8, 8), (10, 10, 10)).save(PNG := io.BytesIO(), "PNG")
GREY = base64.b64encode(PNG.getvalue()).decode()

SHAPES = {
    "bing answers": ({"conversations": [{"from": "user", "value": "draw"}, {"from": "bing", "value": "no"}]}, SHORT),
    "a prompter and a bot": (
        {"messages": [{"role": "prompter", "text": "draw"}, {"role": "Bot", "text": "no"}]},
        SHORT,
    ),
    "Gemini's parts": (
        {"messages": [{"role": "user", "parts": [{"text": "draw"}]}, {"role": "model", "parts": [{"text": "no"}]}]},
        SHORT,
    ),
    "a developer's words": (
        {"messages": [{"role": "developer", "content": "be brief"}, USER, ANSWER]},
        ["be brief\n\ndraw", *SHORT[1:]],
    ),
    "Anthropic's system": (
        {"system": [{"type": "text", "text": "be brief"}], "messages": [USER, ANSWER]},
        ["be brief\n\ndraw", *SHORT[1:]],
    ),
    "two of the system's": (
        {"messages": [{"role": "system", "content": "x"}, {"role": "system", "content": "y"}, USER, ANSWER]},
        ["x", "y\n\ndraw", *SHORT[1:]],
    ),
    **{
        f"a silent system: {words!r}": ({"messages": [{"role": "system", "content": words}, USER, ANSWER]}, SHORT)
        for words in ("", " \n", None, [])
    },
    **{
        f"an answer that is not learned: {name}": (
            {"messages": [USER, {**ANSWER, name: value}, USER, ANSWER]},
            ["draw", "|", "no", "|", *SHORT],
        )
        for name, value in {"weight": 0, "train": False, "loss": 0.0}.items()
    },
    "an answer that is learned": ({"messages": [USER, {**ANSWER, "weight": 1.0, "train": True}]}, SHORT),
    "an exchange": ({"prompt": "draw", "completion": "no"}, SHORT),
    "Alpaca": ({"instruction": "draw", "input": "", "output": "no", "text": "### all of it"}, SHORT),
    "Alpaca's input": ({"instruction": "draw", "input": "a cat", "output": "no"}, ["draw\n\na cat", *SHORT[1:]]),
    "Dolly": ({"instruction": "draw", "context": "a cat", "response": "no"}, ["draw\n\na cat", *SHORT[1:]]),
    "a history": (
        {"query": "draw", "response": "no", "history": [["hi", "hello"]]},
        ["hi", "|", "hello*", "|*", *SHORT],
    ),
    "messages, parted": ({"prompt": [USER], "completion": [ANSWER]}, SHORT),
    "a question about a picture": ({"image": "a.png", "question": "what?", "answer": "grey"}, ABOUT),
    "a marked picture": ({"images": ["a.png"], "query": "<image>what?", "response": "grey"}, ABOUT),
    "a picture drawn": ({"image": "b.png", "prompt": "draw", "response": "<image>"}, ["draw", "|", "20*", "|*"]),
    "a caption beside": ({"image": "a.png", "caption": "grey", "question": "what?", "answer": "x"}, ["grey*", "10*"]),
    **{
        f"a picture, {name}": (
            {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}, GREY_ANSWER]},
            ABOUT,
        )
        for name, part in {
            "OpenAI's": {"type": "input_image", "image_url": "a.png"},
            "OpenAI's data": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{GREY}"}},
            "Anthropic's": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": GREY}},
            "in base64": {"type": "image", "base64": GREY},
            "with empty columns": {"type": "image", "text": None, "image": "a.png"},
        }.items()
    },
    "bytes beside": (
        {"messages": [{"role": "user", "content": "<image>what?"}, GREY_ANSWER], "images": [{"bytes": GREY}]},
        ABOUT,
    ),
    "Qwen-VL's mark": ({"turns": ["<img>a.png</img>what?", "grey"]}, ABOUT),
    "LLaVA's empty image": ({"image": "", "turns": ["draw", "no"]}, SHORT),
    "no image, but images": ({"image": None, "images": ["a.png"], "turns": ["<image>what?", "grey"]}, ABOUT),
    "a way of Windows": ({"image": "below\\b.png", "turns": ["draw", "<image>"]}, ["draw", "|", "20*", "|*"]),
    "a way with dots": ({"image": "./below/b.png", "turns": ["draw", "<image>"]}, ["draw", "|", "20*", "|*"]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_other_peoples_shapes_are_read_as_their_programs_mean_them(folder, shape):
    entry, whole = SHAPES[shape]
    (document,) = read(folder, entry)
    assert plain(document) == whole


def test_a_file_address_and_a_whole_path_lead_to_a_picture_of_the_folder_and_nowhere_else(folder):
    turns = {"turns": ["<image>what?", "grey"]}
    for name in (str(folder / "a.png"), f"file://{folder / 'a.png'}"):
        (document,) = read(folder, {"image": name, **turns})
        assert plain(document) == ABOUT
    for name in ("/etc/passwd", "file:///etc/passwd", "..\\a.png"):
        (skipped,) = read(folder / "below", {"image": name, **turns})
        assert isinstance(skipped, Skipped) and "lies outside" in skipped.reason


FAULTS = {
    "an answer without a prompt": {"messages": [ANSWER, USER]},
    "a prompt without an answer": {"messages": [USER]},
    "turn 2 is the user's, as is the one before": {"messages": [USER, USER, ANSWER]},
    "turn 3 is the assistant's, as is the one before": {"messages": [USER, ANSWER, ANSWER]},
    "nobody speaks as 'tool' .turn 2.": {"messages": [USER, {"role": "tool", "content": "x"}]},
    "nobody speaks in turn 1": {"messages": ["draw", "no"]},
    "turn 3 is the system's": {"messages": [USER, ANSWER, {"role": "system", "content": "x"}]},
    "a turn says nothing that can be read: turn 2": {"messages": [USER, {"role": "assistant", "content": " "}]},
    "turn 1 has a part of type 'audio'": {"messages": [{"role": "user", "content": [{"type": "audio"}]}, ANSWER]},
    "the text of turn 1 is no string": {"messages": [{"role": "user", "content": [{"text": 3}]}, ANSWER]},
    "There is no picture at .*gone.png": {"turns": [["what?", {"image": "gone.png"}], "nothing"]},
    "lies outside": {"turns": [["what?", {"image": "../a.png"}], "nothing"]},
    "is not among the addresses": {"turns": [["what?", {"image": "https://there/a.png"}], "nothing"]},
    "a picture has no name, but '7'": {"turns": [["what?", {"image": 7}], "nothing"]},
    "more often than it has images": {"turns": ["what is <image> and <image>?", "grey"], "image": "a.png"},
    "it has 1 images that no turn speaks of": {"turns": ["what is it?", "grey"], "image": "a.png"},
    "its images are no list of paths": {"turns": ["what is it?", "grey"], "image": 7},
    "its turns are no list of turns": {"turns": {}},
    "it has both image and images": {"turns": ["<image>?", "grey"], "image": "a.png", "images": ["b.png"]},
    "none of its answers is to be learned": {"messages": [USER, {**ANSWER, "train": False}]},
    "its history is no list of prompts": {"prompt": "draw", "answer": "no", "history": ["hi"]},
    "it has neither .* but chosen, rejected": {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
    "it is a list of conversations": [{"messages": [USER, ANSWER]}],
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_fault_skips_its_conversation_with_one_reason_and_no_other(folder, reason):
    before, skipped, after = read(folder, STYLES["turns"], FAULTS[reason], STYLES["LLaVA"])
    assert plain(before) == plain(after) == WHOLE
    assert isinstance(skipped, Skipped) and skipped.name == "chats.jsonl, line 2"
    with pytest.raises(ValueError, match=reason):
        raise ValueError(skipped.reason)


ODD = [
    *(None, True, -1, float("nan"), "", "\0", "\ud800", "<image><|image|>", "data:image/png;base64,@@", [], {}, [[]]),
    *(
        [None],
        {"image": None},
        {"image": ["a.png"]},
        {"type": "image_url", "image_url": {"url": 3}},
        {"type": ["text"]},
    ),
    *({"type": "text", "text": ["a"]}, {"role": ["user"]}, {"from": {}}, {"bytes": "abc"}, "x" * 5000),
]


def places_in(value: Any, before: tuple = ()) -> Iterator[tuple]:
    """The way to each value within lists and objects."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*before, key)
        yield from places_in(part, (*before, key))


def test_whatever_stands_in_a_record_it_is_a_conversation_or_one_value_error():
    rng, picture, kinds = random.Random(0), PIL.Image.new("RGB", (8, 8)), set()
    entries = [*STYLES.values(), *FAULTS.values(), *(entry for entry, _ in SHAPES.values())]
    records = [entry for entry in entries if isinstance(entry, dict) and is_conversation(entry)]
    for _ in range(3000):
        record = copy.deepcopy(rng.choice(records))
        for _ in range(rng.randint(1, 2)):
            *way, last = rng.choice(list(places_in(record)))
            part: Any = record
            for key in way:
                part = part[key]
            part[last] = copy.deepcopy(rng.choice(ODD))
        if not is_conversation(record):
            continue
        try:
            document = conversation_of(record, lambda name: picture)
            kinds.add(type(document))
            assert [segment.learn for segment in document].count(True), "nothing is learned of it"
        except ValueError as error:
            kinds.add(type(error))
            assert str(error).strip()
    assert kinds == {Document, ValueError}
