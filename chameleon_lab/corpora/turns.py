"""Conversations as people have them in files: one entry to a `Document`, whichever program wrote it.

```
{"turns": ["draw a cat", [{"image": "cat.png"}]]}              turns alone, the user first; a turn is a string or a list
{"messages": [{"role": "user", "content": ...}, ...]}          Hugging Face's chat templates: content a string, or parts
{"conversations": [{"from": "human", "value": ...}, ...]}      ShareGPT; a "system" beside it, or as the first turn
{"conversations": [...], "image": "cat.png"}                   LLaVA: <image> where the picture stands
{"conversations": [...], "image": ["a.png", "b.png"]}          Lumina-mGPT: <|image|> where each picture stands
```

Nothing is learned of the user's turns. This family has no system turn: its words come before the user's first. What
cannot be a conversation is one ValueError, which says which turn and why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import PIL.Image

from chameleon_lab.documents import Document, EndTurn, Image, Segment, Text

TURN_KEYS = ("turns", "messages", "conversations")
"""What an entry that is a conversation has."""

SPEAKERS = {
    **{"system": "system", "human": "user", "user": "user"},
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt"), "assistant"),
}
"""Who speaks, by the names that programs give them."""

PICTURE_MARK = re.compile(r"<\|image\|>|<image>")


def conversation_of(record: Mapping[str, Any], find: Callable[[str], PIL.Image.Image]) -> Document:
    """The document of an entry that has one of `TURN_KEYS`; `find` gives the picture of a name. Raises ValueError."""
    key = next(key for key in TURN_KEYS if key in record)
    turns = record[key]
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"its {key} are no list of turns")
    images = record.get("image", record.get("images"))
    if not isinstance(images, str | dict | list | tuple | None):
        raise ValueError(f"its images are no list of paths: {str(images)[:40]!r}")
    pictures = _Pictures([images] if isinstance(images, str | dict) else list(images or ()), find)
    segments, last = list[Segment](), "assistant"
    system = list[Text | Image]()
    if isinstance(words := record.get("system"), str) and words.strip():
        system.append(Text(words.strip()))
    for number, turn in enumerate(turns, 1):
        if isinstance(turn, dict) and ("role" in turn or "from" in turn):
            speaker = _speaker(turn.get("role", turn.get("from")), number)
            content = turn.get("content", turn.get("value"))
        elif key == "turns":
            speaker, content = ("assistant" if last == "user" else "user"), turn
        else:
            raise ValueError(f"nobody speaks in turn {number}: {str(turn)[:40]!r} has neither role nor from")
        parts = list(_parts_of_turn(content, number, pictures))
        if speaker == "system":
            if number > 1:
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
        segments += whole.learning(speaker == "assistant")
        system = []
    if pictures.names:
        raise ValueError(f"it has {len(pictures.names)} images that no turn speaks of: write <image> where they stand")
    if not any(segment.learn for segment in segments):
        raise ValueError("a prompt without an answer: no turn is the assistant's")
    return Document(tuple(segments))


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
            name = next((name[key] for key in ("image", "path", "url") if isinstance(name.get(key), str)), None)
        if not isinstance(name, str):
            raise ValueError(f"a picture has no name, but {str(name)[:40]!r}")
        if name.startswith("data:"):
            part = {"type": "image", "image": name}
            return Image(Document.from_messages([{"role": "user", "content": [part]}]).pictures[0])
        return Image(self._find(name))


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
        if kind == "text":
            part = part.get("text")
        elif kind in ("image", "image_url"):
            name = next((part[key] for key in ("image", "path", "url", "image_url") if key in part), None)
            yield pictures.next() if name is None else pictures.named(name)
            return
        else:
            raise ValueError(f"turn {number} has a part of type {str(kind)[:40]!r}: there are text and image")
    if not isinstance(part, str):
        raise ValueError(f"the text of turn {number} is no string: {str(part)[:40]!r}")
    for place, words in enumerate(PICTURE_MARK.split(part)):
        if place:
            yield pictures.next()
        if words.strip():
            yield Text(words.strip())


def _prefaced(parts: list[Text | Image], system: list[Text | Image]) -> list[Text | Image]:
    """A turn with what the system said before it; words that meet are one text."""
    match system, parts:
        case [*before, Text(words)], [Text(more), *rest]:
            return [*before, Text(f"{words}\n\n{more}"), *rest]
    return [*system, *parts]
