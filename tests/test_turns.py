"""Conversations of each style that people have become the same document, and a fault in one is one reason."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import pytest

from chameleon_lab.corpora.readers import Skipped, jsonl
from chameleon_lab.corpora.turns import conversation_of
from chameleon_lab.documents import Document, EndTurn, Image, Text


@pytest.fixture
def folder(tmp_path):
    for name, grey in (("a.png", 10), ("b.png", 20)):
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
    for _ in range(3000):
        record = copy.deepcopy(rng.choice([*STYLES.values(), *FAULTS.values()]))
        for _ in range(rng.randint(1, 2)):
            *way, last = rng.choice(list(places_in(record)))
            part: Any = record
            for key in way:
                part = part[key]
            part[last] = copy.deepcopy(rng.choice(ODD))
        try:
            document = conversation_of(record, lambda name: picture)
            kinds.add(type(document))
            assert [segment.learn for segment in document].count(True), "nothing is learned of it"
        except ValueError as error:
            kinds.add(type(error))
            assert str(error).strip()
    assert kinds == {Document, ValueError}
