"""A document: text, images and ends of turn in any order, the unit that every part of the lab takes and gives."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from chameleon_lab.files import parse_json, reason_of
from chameleon_lab.parts import require_count
from chameleon_lab.pictures import decode_picture, open_picture, read_picture, require_size


@dataclass(frozen=True)
class Text:
    """A run of text. `learn` says whether training takes loss on it."""

    text: str
    learn: bool = True


@dataclass(frozen=True, eq=False)
class Image:
    """A picture, and, once a tokenizer has encoded it, its codes (rows x columns integers).

    Codes that are present are used as they are: a picture drawn by a model is never tokenized a second time. An array
    of rows x columns bytes, with or without 3 or 4 channels, becomes a picture; anything else is a TypeError.

    `mask`: what of the picture is missing and to be filled by `lab.infill`: cells of the grid of codes, as rows x
    columns booleans or as (row, column) pairs (`rectangle` gives those of one), or booleans of the picture's own
    height x width, as painted: a cell is then missing where anything of it is.
    """

    picture: PIL.Image.Image
    codes: np.ndarray | None = None
    learn: bool = True
    mask: np.ndarray | Collection[tuple[int, int]] | None = None

    def __post_init__(self) -> None:
        if self.mask is not None:
            object.__setattr__(self, "mask", _checked_mask(self.mask))
        if isinstance(self.picture, np.ndarray):
            object.__setattr__(self, "picture", _picture_of_array(self.picture))
        elif not isinstance(self.picture, PIL.Image.Image):
            how = f"open_picture({str(self.picture)!r})" if isinstance(self.picture, str | Path) else "a PIL picture"
            raise TypeError(f"An Image holds a PIL picture, not a {type(self.picture).__name__}: pass {how}.")
        if all(self.picture.size):  # an empty one is skipped where it is tokenized, with its reason
            require_size(self.picture)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image):
            return NotImplemented
        if self.codes is not None and other.codes is not None:
            same = np.array_equal(self.codes, other.codes)
        else:
            same = np.array_equal(np.asarray(self.picture.convert("RGB")), np.asarray(other.picture.convert("RGB")))
        return same and self.learn == other.learn and _same_mask(self.mask, other.mask)

    def __hash__(self) -> int:
        return hash(self.learn)  # all that equal images are sure to share: codes may stand in for the picture

    def __repr__(self) -> str:
        codes = "" if self.codes is None else f", {' x '.join(map(str, self.codes.shape))} codes"
        codes += "" if self.mask is None else ", masked"
        return (
            f"Image({self.picture.width} x {self.picture.height} pixels{codes}{'' if self.learn else ', learn=False'})"
        )


@dataclass(frozen=True)
class EndTurn:
    """The end of one speaker's turn. Roles alternate, the user first."""

    learn: bool = True


@dataclass(frozen=True)
class Blank:
    """Words that are missing, to be filled by `lab.infill` with at most `length` tokens. Raises ValueError below 1."""

    length: int = 16
    learn: bool = True

    def __post_init__(self) -> None:
        require_count(self.length, "tokens of a blank", 1)


Segment = Text | Image | EndTurn | Blank


def rectangle(rows: tuple[int, int], columns: tuple[int, int]) -> frozenset[tuple[int, int]]:
    """The cells of some rows and columns, each from the first to before the last: a `mask` of an `Image`."""
    return frozenset(itertools.product(range(*rows), range(*columns)))


@dataclass(frozen=True)
class Document:
    """An ordered tuple of segments."""

    segments: tuple[Segment, ...] = ()

    @classmethod
    def of(cls, *parts: Segment | str | PIL.Image.Image | Document) -> Document:
        """A document from its parts: strings, PIL pictures, arrays of pixels and paths of pictures (a `Path`, not a
        string) become segments, documents are spliced in.

        Raises TypeError, naming the part, for anything else.
        """
        return cls(tuple(_segments(parts)))

    def __add__(self, other: Document) -> Document:
        return Document(self.segments + other.segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __len__(self) -> int:
        return len(self.segments)

    @property
    def turns(self) -> tuple[tuple[str, Document], ...]:
        """(role, document) of each turn; roles are "user" and "model" in alternation, ends of turn left out."""
        turns: list[tuple[str, Document]] = []
        run: list[Segment] = []
        for segment in (*self.segments, EndTurn()):
            if not isinstance(segment, EndTurn):
                run.append(segment)
            else:
                turns.append(("model" if len(turns) % 2 else "user", Document(tuple(run))))
                run = []
        return tuple(turns if turns[-1][1] else turns[:-1])

    @property
    def text(self) -> str:
        """All text, images left out."""
        return " ".join(segment.text for segment in self.segments if isinstance(segment, Text))

    @property
    def pictures(self) -> tuple[PIL.Image.Image, ...]:
        """All pictures, in order."""
        return tuple(segment.picture for segment in self.segments if isinstance(segment, Image))

    def learning(self, learn: bool) -> Document:
        """The same document with the *learn* flag of every segment set."""
        return Document(tuple(replace(segment, learn=learn) for segment in self.segments))

    def _repr_html_(self) -> str:
        """The document as a notebook shows it: text escaped, pictures enlarged, a line between turns."""
        segments = "".join(_to_html(segment) for segment in self.segments)
        return f'<div style="display:flex;flex-direction:column;gap:6px;max-width:40em">{segments}</div>'

    def to_json(self) -> str:
        """The document as one line of JSON; pictures as PNG in base64, codes beside them."""
        return json.dumps([_to_plain(segment) for segment in self.segments], ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Document:
        """The document that `to_json` wrote. Raises ValueError, saying which segment and why, for anything else."""
        plain = parse_json(text, "Not a document: the text", "Write documents with to_json.")
        if not isinstance(plain, list):
            raise ValueError(f"Not a document: expected a JSON list of segments, got {type(plain).__name__}.")
        return cls(tuple(_from_plain(index, entry) for index, entry in enumerate(plain)))

    @classmethod
    def from_messages(cls, messages: Sequence[Mapping[str, Any]]) -> Document:
        """The document in a list of messages as Hugging Face's chat templates take them, each ending its turn.

        A message has a `role`, "user" and "assistant" (or "model") in alternation, the user first, and a `content`: a
        string, or a list of `{"type": "text", "text": ...}` and `{"type": "image", ...}` with a PIL picture, a path or
        a data address under "image", "path" or "url", or in base64. Parts as OpenAI's and Anthropic's programs write
        them are read too. Nothing is fetched. Raises ValueError, saying which message and why, for anything else; there
        are no system turns.
        """
        if not isinstance(messages, list | tuple):
            raise ValueError(f"Messages are a list of roles and contents, not a {type(messages).__name__}.")
        parts: list[Segment | Document] = []
        for index, message in enumerate(messages):
            try:
                parts += [*_of_message(message, index), EndTurn()]
            except (ValueError, TypeError, OSError) as error:
                raise ValueError(f"Message {index} cannot be read: {error}") from error
        return cls.of(*parts)

    @classmethod
    def from_segments(
        cls, segments: Sequence[Mapping[str, Any]], decode: Callable[[Sequence[int]], Document] | None = None
    ) -> Document:
        """The document in a list of segments as Meta's viewer for Chameleon writes them, each a `type` and a `value`
        (Anole's programs call it `content`, and an image's is a plain path there).

        ```
        text      a string
        image     "file:/a/path", "data:image/png;base64,...", or a PIL picture; nothing is ever fetched
        sentinel  "<END-OF-TURN>"
        ids       a list of tokens, for which `decode` is needed, such as a tokenizer's
        ```

        Raises ValueError, saying which segment and why, for anything else.
        """
        if not isinstance(segments, list | tuple):
            raise ValueError(f"Not a document: expected a list of segments, got {type(segments).__name__}.")
        parts: list[Segment | Document] = []
        for index, entry in enumerate(segments):
            try:
                parts.append(_from_entry(entry, decode))
            except (ValueError, OSError) as error:
                raise ValueError(f"Segment {index} of the document cannot be read: {error}") from error
        return cls.of(*parts)


def _segments(parts: Iterable[object]) -> Iterator[Segment]:
    for index, part in enumerate(parts):
        if isinstance(part, Text | Image | EndTurn | Blank):
            yield part
        elif isinstance(part, Document):
            yield from part.segments
        elif isinstance(part, str):
            yield Text(part)
        elif isinstance(part, PIL.Image.Image | np.ndarray):
            yield Image(part)  # pyright: ignore[reportArgumentType], an array becomes a picture there
        elif isinstance(part, Path):
            yield Image(open_picture(part))
        else:
            first = part[0] if isinstance(part, list | tuple) and part else part
            whose = "from_messages" if isinstance(first, Mapping) and "role" in first else "from_segments"
            others = f" Lists of others' programs are read by Document.{whose}." if isinstance(first, Mapping) else ""
            raise TypeError(
                f"Part {index} of the document is a {type(part).__name__}; "
                f"use strings, PIL pictures, Text, Image, EndTurn or Document.{others}"
            )


def _checked_mask(mask: Any) -> np.ndarray | frozenset[tuple[int, int]]:
    """Booleans of two dimensions, or pairs of whole numbers. Raises ValueError for anything else."""
    if isinstance(mask, np.ndarray) and mask.dtype == bool and mask.ndim == 2:
        return mask
    cells: list[Any] = list(mask) if isinstance(mask, Collection) and not isinstance(mask, str | np.ndarray) else [None]
    whole = all(
        isinstance(cell, tuple) and len(cell) == 2 and all(isinstance(at, int | np.integer) and at >= 0 for at in cell)
        for cell in cells
    )
    if not whole:
        what = f"an array of {mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else f"{str(mask)[:60]!r}"
        raise ValueError(
            f"A mask is booleans of rows x columns, or (row, column) pairs from 0 on, not {what}: such as mask > 0, or "
            "rectangle((2, 5), (3, 6))."
        )
    return frozenset((int(row), int(column)) for row, column in cells)


def _same_mask(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return type(one) is type(other) and np.array_equal(one, other)  # pyright: ignore[reportArgumentType]
    return one == other


LARGEST_CODE = 2**31
"""No codebook is as large."""


def _picture_of_array(array: np.ndarray) -> PIL.Image.Image:
    """Bytes of rows x columns pixels as a picture. Raises TypeError for arrays of any other kind."""
    if (
        array.dtype != np.uint8
        or not array.size
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
    ):
        raise TypeError(
            f"An array of {array.dtype} {array.shape} is no picture: give uint8 of rows x columns x 3, such as "
            "(array * 255).astype('uint8') for values of 0 to 1, channels last."
        )
    return PIL.Image.fromarray(array)


PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Kinds of pixels that a PNG file keeps; others are written as RGB."""


def _to_plain(segment: Segment) -> dict[str, object]:
    learn = {} if segment.learn else {"learn": False}
    if isinstance(segment, Text):
        return {"text": segment.text, **learn}
    if isinstance(segment, EndTurn):
        return {"end_turn": True, **learn}
    if isinstance(segment, Blank):
        return {"blank": segment.length, **learn}
    codes = {} if segment.codes is None else {"codes": np.asarray(segment.codes).tolist()}
    mask = {}
    if isinstance(segment.mask, np.ndarray):
        mask = {"mask": segment.mask.astype(int).tolist()}
    elif segment.mask is not None:
        mask = {"cells": sorted(map(list, segment.mask))}
    return {"image": png_base64(segment.picture), **codes, **mask, **learn}


def _to_html(segment: Segment) -> str:
    if isinstance(segment, Text):
        return f'<span style="white-space:pre-wrap">{html.escape(segment.text)}</span>'
    if isinstance(segment, EndTurn):
        return '<hr style="width:100%;margin:0;opacity:.3">'
    if isinstance(segment, Blank):
        return '<span aria-label="blank" style="border-bottom:2px solid;width:4em;height:1em"></span>'
    size = f"{segment.picture.width} by {segment.picture.height} pixels"
    style = "width:128px;image-rendering:pixelated;border-radius:6px"
    return f'<img alt="picture, {size}" style="{style}" src="data:image/png;base64,{png_base64(segment.picture)}">'


def png_base64(picture: PIL.Image.Image) -> str:
    """A picture as PNG in base64."""
    written = io.BytesIO()
    (picture if picture.mode in PNG_MODES else picture.convert("RGB")).save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def _from_plain(index: int, entry: object) -> Segment:
    if not isinstance(entry, dict):
        raise ValueError(f"Segment {index} of the document is not an object: {str(entry)[:40]!r}.")
    try:
        learn = entry.get("learn", True)
        if not isinstance(learn, bool):
            raise ValueError(f"learn must be true or false, not {str(learn)[:40]!r}")
        if "text" in entry:
            if not isinstance(entry["text"], str):
                raise ValueError(f"text must be a string, not {str(entry['text'])[:40]!r}")
            return Text(entry["text"], learn)
        if "end_turn" in entry:
            return EndTurn(learn)
        if "blank" in entry:
            return Blank(entry["blank"], learn)
        if "image" not in entry:
            raise KeyError("image")
        written = base64.b64decode(entry["image"], validate=True)
        picture = decode_picture(io.BytesIO(written), "The picture")
        mask: Any = None
        if "mask" in entry:
            mask = _grid_of(entry["mask"]).astype(bool)
        elif "cells" in entry:
            cells: Any = entry["cells"]
            mask = [tuple(cell) if isinstance(cell, list) else cell for cell in cells]
        return Image(picture, _grid_of(entry["codes"]) if "codes" in entry else None, learn, mask)
    except KeyError as error:
        raise ValueError(f"Segment {index} of the document has neither text, end_turn, blank nor image.") from error
    except (TypeError, ValueError) as error:
        reason = reason_of(error).rstrip(".")
        raise ValueError(f"Segment {index} of the document cannot be read: {reason}.") from error


def _grid_of(plain: object) -> np.ndarray:
    """A grid of codes. Raises ValueError for what is no table of whole numbers that an image can have."""
    rows = plain if isinstance(plain, list) else []
    whole = all(isinstance(row, list) and len(row) == len(rows[0]) and len(row) > 0 for row in rows)
    flat = [code for row in rows for code in row] if whole else []
    if not flat or not all(type(code) is int and 0 <= code < LARGEST_CODE for code in flat):
        raise ValueError(f"codes must be rows of whole numbers from 0, all rows of one length; got {str(plain)[:40]}")
    return np.array(rows, np.int64)


def _from_entry(entry: object, decode: Callable[[Sequence[int]], Document] | None) -> Segment | Document:
    if not isinstance(entry, Mapping) or "type" not in entry or not {"value", "content"} & entry.keys():
        raise ValueError(f"it is no object with a type and a value, but {str(entry)[:40]!r}.")
    kind, value = entry["type"], entry.get("value", entry.get("content"))
    if kind == "image" and "value" not in entry and isinstance(value, str) and ":" not in value:
        return Image(open_picture(value))
    if kind == "text" and isinstance(value, str):
        return Text(value)
    if kind == "image" and isinstance(value, str | PIL.Image.Image):
        return Image(value if isinstance(value, PIL.Image.Image) else _picture_at(value))
    if kind == "sentinel" and value == "<END-OF-TURN>":
        return EndTurn()
    if kind == "sentinel" and value == "<START-OF-IMAGE>":
        raise ValueError(
            "<START-OF-IMAGE> asks for a picture, and a document holds what is there: leave it out and generate with a "
            "grammar of images alone."
        )
    if kind == "ids" and isinstance(value, list | tuple):
        if decode is None:
            raise ValueError("ids are words of one tokenizer: pass decode=lab.decode.")
        return decode(value)
    raise ValueError(
        f"{str(kind)[:40]!r} with a value of {str(value)[:40]!r} is none of text, image, sentinel and ids with theirs."
    )


ROLES = (("user", "human"), ("assistant", "model", "gpt"))


def _of_message(message: object, index: int) -> Iterator[Segment]:
    """The segments of one message, whose place says whose turn it is."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise ValueError(f"it is no object with a role and a content, but {str(message)[:40]!r}.")
    role, content = message["role"], message["content"]
    if role == "system":
        raise ValueError("this family has no system turn: put its words before the user's.")
    if role not in ROLES[index % 2]:
        raise ValueError(f"roles alternate, the user first: {ROLES[index % 2][0]!r} is next, not {str(role)[:40]!r}.")
    if not isinstance(content, str | list | tuple):
        raise ValueError(f"its content is neither a string nor a list of parts, but {str(content)[:40]!r}.")
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        kind = str(part.get("type")) if isinstance(part, Mapping) else ""
        if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            yield Text(part["text"])
            continue
        source = picture_source(part) if kind in ("image", "image_url", "input_image") else None
        if source is None:
            raise ValueError(
                f"{str(part)[:60]!r} is neither a text with its words nor an image with its picture: "
                '{"type": "image", "image": picture}.'
            )
        if isinstance(source, str) and ":" in source[:6]:
            yield Image(_picture_at(source))
        else:
            yield Image(open_picture(source) if isinstance(source, str | Path) else source)


def picture_source(part: Mapping[str, Any]) -> Any:
    """What stands for the picture in a part of a message: a picture, a path or an address; None where nothing does.

    Hugging Face's parts have it under `image`, `path`, `url` or `base64`, Anole's under `content`, OpenAI's under
    `image_url`, as an address or an object with a `url`; Anthropic's under `source`, whose `data` is base64.
    """
    keys = ("image", "path", "url", "base64", "image_url", "source", "content")
    key, source = next(((key, part[key]) for key in keys if part.get(key) is not None), ("", None))
    if isinstance(source, Mapping):
        key, source = next(((key, source[key]) for key in ("url", "data") if source.get(key) is not None), ("", None))
    return f"data:image;base64,{source}" if key in ("base64", "data") else source


def _picture_at(address: str) -> PIL.Image.Image:
    """The picture in a file or a data address."""
    scheme, _, rest = address.partition(":")
    if scheme == "file":
        return open_picture(rest.removeprefix("//"))
    header, comma, data = rest.partition(",")
    if scheme == "data" and comma and header.endswith(";base64"):
        try:
            written = base64.b64decode(data, validate=True)
        except ValueError as error:
            raise ValueError(f"the picture's data is no base64: {error}.") from error
        return read_picture(written)
    raise ValueError(
        f"{address[:40]!r} is neither file:... nor data:...;base64,... and nothing is fetched: save the picture first."
    )
