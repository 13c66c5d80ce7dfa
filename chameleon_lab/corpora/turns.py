"""Conversations as people have them in files: one entry to a `Document`, whichever program wrote it.

```
{"turns": ["draw a cat", [{"image": "cat.png"}]]}              turns alone, the user first; a turn is a string or a list
{"messages": [{"role": "user", "content": ...}, ...]}          Hugging Face's chat templates: content a string, or parts
{"conversations": [{"from": "human", "value": ...}, ...]}      ShareGPT; a "system" beside it, or as the first turn
{"conversations": [...], "image": "cat.png"}                   LLaVA: <image> where the picture stands
{"conversations": [...], "image": ["a.png", "b.png"]}          Lumina-mGPT: <|image|> where each picture stands
{"instruction": "draw a cat", "input": "", "output": ...}      one exchange, by any of the names in `EXCHANGE_KEYS`
```

Nothing is learned of the user's turns, nor of an answer that says so itself (`"weight": 0`, `"train": false`). This
family has no system turn: its words come before the user's first. What cannot be a conversation is one ValueError,
which says which turn and why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import PIL.Image

from chameleon_lab.documents import Document, EndTurn, Image, Segment, Text, picture_source

TURN_KEYS = ("turns", "messages", "conversations")
"""What an entry that is a conversation has."""

EXCHANGE_KEYS = {
    "user": ("instruction", "prompt", "query", "question"),
    "assistant": ("output", "completion", "response", "answer"),
}
"""What an entry that is one exchange has, one of each. What the prompt is about may stand beside it (`input` or
`context`), and the exchanges before it (`history`, pairs)."""

SPEAKERS = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "bot", "chatbot", "ai", "bing", "bard"), "assistant"),
}
"""Who speaks, by the names that programs give them."""

PICTURE_MARK = re.compile(r"<\|image\|>|<image>|<img>([^<>]+)</img>")
"""Where a picture stands in a text; Qwen-VL's names it there."""


def is_conversation(record: Mapping[str, Any]) -> bool:
    """Whether an entry is one that `conversation_of` reads."""
    if any(key in record for key in TURN_KEYS):
        return True
    exchange = all(any(record.get(key) is not None for key in keys) for keys in EXCHANGE_KEYS.values())
    return exchange and record.get("caption", record.get("captions")) is None


def conversation_of(record: Mapping[str, Any], find: Callable[[str], PIL.Image.Image]) -> Document:
    """The document of an entry that has `TURN_KEYS` or `EXCHANGE_KEYS`; `find` gives the picture of a name.

    Raises ValueError.
    """
    key = next((key for key in TURN_KEYS if key in record), None)
    pictures = _Pictures(_beside(record), find)
    turns = record[key] if key else _exchange(record, len(pictures.names))
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"its {key or 'prompt and completion'} are no list of turns")
    segments, last = list[Segment](), "assistant"
    system = list[Text | Image]()
    if not _silent(words := record.get("system")):
        system += _parts_of_turn(words, 0, pictures)
    for number, turn in enumerate(turns, 1):
        learn = True
        if isinstance(turn, dict) and ("role" in turn or "from" in turn):
            speaker = _speaker(turn.get("role", turn.get("from")), number)
            content = next((turn[name] for name in ("content", "value", "text", "parts") if name in turn), None)
            learn = not any(turn.get(name) in (0, False) for name in UNLEARNED)
        elif key == "turns":
            speaker, content = ("assistant" if last == "user" else "user"), turn
        else:
            raise ValueError(f"nobody speaks in turn {number}: {str(turn)[:40]!r} has neither role nor from")
        if speaker == "system" and _silent(content):
            continue
        parts = list(_parts_of_turn(content, number, pictures))
        if speaker == "system":
            if segments:
                raise ValueError(f"turn {number} is the system's, which may only come first")
            system += parts
            continue
        if speaker == last:
            raise ValueError(
                f"turn {number} is the {speaker}'s, as is the one before it: user and assistant take turns"
                if segments
                else f"an answer without a prompt: turn {number} is the assistant's, and no user's comes before it"
            )
        last = speaker
        whole = Document((*_prefaced(parts, system), EndTurn()))
        segments += whole.learning(learn and speaker == "assistant")
        system = []
    if pictures.names:
        raise ValueError(f"it has {len(pictures.names)} images that no turn speaks of: write <image> where they stand")
    if not any(segment.learn for segment in segments):
        raise ValueError(
            "none of its answers is to be learned: each says so itself"
            if any(isinstance(turn, dict) and not UNLEARNED.isdisjoint(turn) for turn in turns)
            else "a prompt without an answer: no turn is the assistant's"
        )
    return Document(tuple(segments))


UNLEARNED = frozenset({"weight", "train", "loss"})
"""Where a turn says 0 or false that it is not learned, as programs of fine-tuning take it."""


def _silent(content: Any) -> bool:
    """Whether a system's turn, which many programs write in any case, says nothing."""
    return content is None or content == [] or (isinstance(content, str) and not content.strip())


def _exchange(record: Mapping[str, Any], pictures: int) -> list[Any]:
    """The turns of an entry with `EXCHANGE_KEYS`. Its pictures come before the prompt where no text says otherwise.

    Raises ValueError for a history that is no list of pairs.
    """
    prompt, answer = (
        next(record[key] for key in keys if record.get(key) is not None) for keys in EXCHANGE_KEYS.values()
    )
    if isinstance(prompt, list) and isinstance(answer, list):  # messages, parted where the answer begins
        return [*prompt, *answer]
    history = record.get("history") or []
    if not isinstance(history, list) or any(not isinstance(each, list) or len(each) != 2 for each in history):
        raise ValueError(f"its history is no list of prompts with their answers: {str(history)[:40]!r}")
    about = next((record[key] for key in ("input", "context") if not _silent(record.get(key))), None)
    if isinstance(prompt, str):
        prompt = f"{prompt}\n\n{about}" if isinstance(about, str) else prompt
        if not PICTURE_MARK.search(str([*history, prompt, answer])):
            prompt = [*([{"type": "image"}] * pictures), prompt]
    pairs = [*history, [prompt, answer]]
    return [{"role": role, "content": words} for pair in pairs for role, words in zip(EXCHANGE_KEYS, pair, strict=True)]


def _beside(record: Mapping[str, Any]) -> list[Any]:
    """What stands for the pictures beside an entry's turns. Raises ValueError."""
    fields = [record[key] for key in ("image", "images") if record.get(key) not in (None, "", [])]
    if len(fields) > 1:
        raise ValueError("it has both image and images: say in one of them which pictures its turns have")
    images = fields[0] if fields else []
    if not isinstance(images, str | dict | list | tuple):
        raise ValueError(f"its images are no list of paths: {str(images)[:40]!r}")
    return [images] if isinstance(images, str | dict) else list(images)


class _Pictures:
    """The pictures of an entry: by name, or those that stand beside its turns, in their order."""

    def __init__(self, names: list[Any], find: Callable[[str], PIL.Image.Image]) -> None:
        self.names, self._find = names, find

    def next(self) -> Image:
        if not self.names:
            raise ValueError("its text says <image> more often than it has images")
        return self.named(self.names.pop(0))

    def named(self, name: Any) -> Image:
        if isinstance(name, dict):
            data = name.get("bytes")  # as exported data sets hold pictures
            name = f"data:image;base64,{data}" if isinstance(data, str) else picture_source(name)
        if not isinstance(name, str):
            raise ValueError(f"a picture has no name, but {str(name)[:40]!r}")
        if name.startswith("data:"):
            part = {"type": "image", "image": name}
            return Image(Document.from_messages([{"role": "user", "content": [part]}]).pictures[0])
        return Image(self._find(name.removeprefix("file://")))


def _speaker(name: Any, number: int) -> str:
    if not isinstance(name, str) or name.lower() not in SPEAKERS:
        raise ValueError(f"nobody speaks as {str(name)[:40]!r} (turn {number}); there are {', '.join(SPEAKERS)}")
    return SPEAKERS[name.lower()]


def _parts_of_turn(content: Any, number: int, pictures: _Pictures) -> Iterator[Text | Image]:
    """The segments of a turn. Raises ValueError where it says nothing."""
    empty = True
    for part in [content] if isinstance(content, str | dict) else content if isinstance(content, list) else []:
        for segment in _segments_of_part(part, number, pictures):
            empty = False
            yield segment
    if empty:
        raise ValueError(f"a turn says nothing that can be read: turn {number} is {str(content)[:40]!r}")


def _segments_of_part(part: Any, number: int, pictures: _Pictures) -> Iterator[Text | Image]:
    if isinstance(part, dict):
        kind = part.get("type", next((key for key in ("text", "image") if key in part), None))
        if kind in ("text", "input_text", "output_text"):
            part = part.get("text")
        elif kind in ("image", "image_url", "input_image"):
            name = picture_source(part)
            yield pictures.next() if name is None else pictures.named(name)
            return
        else:
            raise ValueError(f"turn {number} has a part of type {str(kind)[:40]!r}: there are text and image")
    if not isinstance(part, str):
        raise ValueError(f"the text of turn {number} is no string: {str(part)[:40]!r}")
    start = 0
    for mark in PICTURE_MARK.finditer(part):
        if words := part[start : mark.start()].strip():
            yield Text(words)
        yield pictures.named(mark[1].strip()) if mark[1] else pictures.next()
        start = mark.end()
    if words := part[start:].strip():
        yield Text(words)


def _prefaced(parts: list[Text | Image], system: list[Text | Image]) -> list[Text | Image]:
    """A turn with what the system said before it; words that meet are one text."""
    match system, parts:
        case [*before, Text(words)], [Text(more), *rest]:
            return [*before, Text(f"{words}\n\n{more}"), *rest]
    return [*system, *parts]
