"""A conversation as files: all of its tree as JSON and back, the path shown as Markdown with pictures."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from chameleon_lab.documents import Blank, Document, Image, Text
from chameleon_lab.records import ImagePiece
from chameleon_widgets.chat.conversation import Conversation, faded
from chameleon_widgets.chat.exchange import Exchange, Message, ReplyPart, Words, describe
from chameleon_widgets.line import paragraph
from chameleon_widgets.pictures import png

FORMAT = "chameleon chat"
PLAIN_TYPES = (str, int, float, bool, type(None))
REASONS = ("", "end_turn", "end_document", "length", "stopped", "ill_formed")


class SavedError(ValueError):
    """What a stream raised in an earlier session, as it was read."""


def tree_to_json(conversation: Conversation) -> str:
    """All exchanges with what made them. Settings that are no plain values (a grammar of one's own) are only named."""
    with conversation.lock:
        exchanges, path = conversation.exchanges, [each.key for each in conversation.path]
        messages = {id(each.message): each.message for each in exchanges}
        places = {key: place for place, key in enumerate(messages)}
        plain = {
            "format": FORMAT,
            "version": 1,
            "messages": [_to_list(Document(message.parts)) for message in messages.values()],
            "exchanges": [
                {
                    "key": each.key,
                    "parent": each.parent.key if each.parent and each.parent.key else None,
                    "message": places[id(each.message)],
                    "reply": [_part_to_plain(part) for part in each.reply],
                    "settings": {
                        name: value for name, value in each.settings.items() if isinstance(value, PLAIN_TYPES)
                    },
                    "other_settings": [
                        name for name, value in each.settings.items() if not isinstance(value, PLAIN_TYPES)
                    ],
                    "choices": list(each.choices),
                    "prefix": list(each.prefix),
                    "tokens": list(each.tokens),
                    "origin": each.origin,
                    "reason": each.reason,
                    "seconds": round(each.seconds, 3),
                    "error": None if each.error is None else paragraph(each.error),
                }
                for each in exchanges
            ],
            "path": path,
        }
    return json.dumps(plain, ensure_ascii=False)


def exchanges_from_json(text: str | bytes) -> tuple[list[Exchange], list[Exchange]]:
    """(exchanges, each after its parent, and those among them that were shown, in order), of which the first ones have
    no parent. Reads what `tree_to_json` wrote, and a document's JSON. Raises ValueError in one line for anything else.
    """
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"This is no conversation: the file is not JSON ({str(error)[:80]}).") from error
    if isinstance(plain, list):
        conversation = Conversation(Document.from_json(json.dumps(plain)))
        path = conversation.path
        for each in path:
            each.parent = each.parent if each.parent is not conversation.root else None
            each.children, each.choice = [], None
        return path, path
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise ValueError("This is no conversation: expected a file that a chat cell saved, or a document's JSON.")
    if plain.get("version") != 1:
        raise ValueError(f"The conversation is of version {str(plain.get('version'))[:20]}; this lab reads version 1.")
    by_key: dict[int, Exchange] = {}
    try:
        messages = [Message(Document.from_json(json.dumps(each)).segments) for each in _list(plain, "messages")]
        if any(isinstance(part, Blank) for message in messages for part in message.parts):
            raise ValueError("a message has blanks, which lab.infill fills and no model answers")
        for entry in _list(plain, "exchanges"):
            key, parent = _whole(entry["key"]), entry["parent"]
            if key in by_key or (parent is not None and parent not in by_key):
                raise ValueError(f"it stands twice or before its parent {str(parent)[:20]}")
            by_key[key] = _exchange_of(entry, messages, None if parent is None else by_key[parent])
        path = [by_key[key] for key in _list(plain, "path")]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        place = f"exchange {len(by_key) + 1}" if "messages" in plain else "the file"
        raise ValueError(f"The conversation is damaged at {place}: {' '.join(str(error).split())[:160]}.") from error
    return list(by_key.values()), path


def markdown_archive(conversation: Conversation) -> bytes:
    """The path shown as a zip: `conversation.md`, and the pictures beside it as PNG files."""
    lines, pictures = ["# Conversation\n"], list[bytes]()
    with conversation.lock:
        for each in conversation.path:
            for who, parts in (("You", each.user), ("Model", tuple(each.reply))):
                if not parts:
                    continue
                lines.append(f"**{who}**\n")
                for part in parts:
                    if isinstance(part, Text | Words):
                        lines.append(quoted(part.text.strip()) + "\n")
                    elif isinstance(part, Image | ImagePiece):
                        unfinished = part if isinstance(part, ImagePiece) and not part.complete else None
                        pictures.append(png(faded(unfinished) if unfinished else part.picture))
                        lines.append(f"![Picture of the {who.lower()}](picture-{len(pictures)}.png)\n")
            note = describe(each) + (f" · error: {paragraph(each.error)}" if each.error is not None else "")
            lines.append(f"*{quoted(note)}*\n")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversation.md", "\n".join(lines))
        for number, picture in enumerate(pictures, 1):
            archive.writestr(f"picture-{number}.png", picture, zipfile.ZIP_STORED)
    return out.getvalue()


def quoted(text: str) -> str:
    """Text in which nothing is Markdown or HTML."""
    marks = "\\`*_{}[]()#+-.!|<>&~"
    return "".join("\\" + letter if letter in marks else letter for letter in text).replace("\n", "\\\n")


def _to_list(document: Document) -> list[Any]:
    return json.loads(document.to_json())


def _part_to_plain(part: ReplyPart) -> dict[str, Any]:
    if isinstance(part, Words):
        return {"text": part.text}
    if isinstance(part, Image):
        return _to_list(Document((part,)))[0]
    return _to_list(Document((Image(part.picture, part.codes),)))[0] | {
        "rows": part.rows,
        "columns": part.codes.shape[1],
    }


def _part_of(entry: Mapping[str, Any]) -> ReplyPart:
    (segment,) = Document.from_json(json.dumps([entry])).segments
    if isinstance(segment, Text):
        return Words(segment.text)
    if not isinstance(segment, Image):
        raise ValueError("a reply holds an end of turn")
    if "rows" not in entry:
        return segment
    rows, columns = _whole(entry["rows"]), _whole(entry["columns"])
    codes = np.asarray([] if segment.codes is None else segment.codes, np.int64).reshape(-1, columns)
    if len(codes) > rows:
        raise ValueError(f"a picture has {len(codes)} of {rows} rows")
    return ImagePiece(segment.picture, codes, rows)


def _exchange_of(entry: Mapping[str, Any], messages: list[Message], parent: Exchange | None) -> Exchange:
    settings, choices = entry["settings"], entry["choices"]
    if not isinstance(settings, dict) or not all(isinstance(value, PLAIN_TYPES) for value in settings.values()):
        raise ValueError("its settings are no plain values")
    if entry["reason"] not in REASONS or not isinstance(entry["error"], str | None):
        raise ValueError("how it ended is unreadable")
    seconds = float(entry["seconds"])
    return Exchange(
        messages[_whole(entry["message"])],
        parent,
        "import",
        prefix=tuple(map(_whole, _list(entry, "prefix"))),
        tokens=[*map(_whole, _list(entry, "tokens"))],
        reply=[_part_of(part) for part in _list(entry, "reply")],
        settings={str(name): value for name, value in settings.items()},
        choices=tuple(str(name) for name in choices),
        reason=entry["reason"],
        error=None if entry["error"] is None else SavedError(entry["error"]),
        seconds=seconds if 0 <= seconds < 1e9 else 0.0,
    )


def _list(entry: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(value := entry[name], list):
        raise ValueError(f"{name} is no list")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{str(value)[:20]!r} is no whole number, 0 or more")
    return value
