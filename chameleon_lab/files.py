"""Files that somebody else wrote, opened with care: what they are and how large comes first, and one error names them.

- only regular files are read: a pipe or a device would wait for ever, or never end
- sizes, depths and aliases have limits, so that a small file cannot fill the memory
- whatever a parser raises is one ValueError with the file's name, its reason and what to do: see `intact`
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import yaml

LARGEST_JSON = 256 * 2**20
"""Bytes: beyond any index, tokenizer or table of names. What a parser makes of a byte takes ten or more."""

LARGEST_SETTINGS = 16 * 2**20
"""Bytes of a file of settings, such as a model's `config.json` with its vocabulary's names."""

LARGEST_YAML = 256 * 2**10
"""Bytes: its parser takes seconds for so many."""

DEEPEST_NESTING = 64
"""How deep lists and objects may lie in one another."""

GET_ANEW = "Get or save it anew."

_HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
"""Where a JSON text may hold half of a surrogate pair: an escape of one, which may have its other half, or itself."""

_HALF_BYTES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")


@contextmanager
def intact(name: Path | str, remedy: str = GET_ANEW) -> Iterator[None]:
    """Turns whatever reading or understanding a file raises into one ValueError that names the file.

    An error that names it already, and what the system says of a file (OSError), stay as they are.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, OSError):
        raise
    except BaseException as error:  # a panic of Rust code is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, ValueError) and str(name) in str(error):
            raise
        raise ValueError(f"{name} is damaged: {reason_of(error).rstrip('.')}. {remedy}") from error


def reason_of(error: BaseException) -> str:
    """An error's reason in at most 300 letters of one line, whatever it is."""
    words = " ".join(str(error).split())[:300]
    match error:
        case RecursionError():
            return "it is nested too deep"
        case MemoryError():
            return "it asks for more memory than there is"
        case KeyError():
            return f"it lacks {words}"
        case ValueError() | OSError() if words:
            return words
    return f"{words} ({type(error).__name__})" if words else type(error).__name__


KINDS_OF_PLACES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def absence(path: Path | str) -> str:
    """What is there instead of a regular file, as a sentence goes on after its name; "" where there is one.

    A pipe or a device is never opened to find out: it would wait, or never end.
    """
    try:
        return _other_kind(os.stat(path))
    except OSError:
        return "is a link to what is not there" if os.path.islink(path) else "is missing"


def _other_kind(status: os.stat_result) -> str:
    """What else it is than a regular file; "" for one."""
    kind = stat.S_IFMT(status.st_mode)
    return "" if kind == stat.S_IFREG else f"is {KINDS_OF_PLACES.get(kind, 'something else')}, not a file"


def require_place(path: Path | str) -> Path:
    """The path, if a file may be opened there to be written on, which is made where there is none.

    Raises FileExistsError, an OSError, where something else lies there: to open a pipe would wait for its reader.
    """
    path = Path(path)
    if os.path.lexists(path) and (fault := absence(path)):
        raise FileExistsError(errno.EEXIST, f"{path} {fault}: move it away")
    return path


def require_regular(path: Path | str, largest: int | None = None) -> Path:
    """The path, if a regular file of at most `largest` bytes lies there.

    Raises FileNotFoundError where there is none, ValueError for anything else.
    """
    path = Path(path)
    try:
        status = os.stat(path)  # once: another process may put a file there at any time
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        raise FileNotFoundError(f"There is no file {path}.") from error
    if fault := _other_kind(status):
        raise ValueError(f"{path} {fault}.")
    size = status.st_size
    if largest is not None and size > largest:
        raise ValueError(f"{path} has {size:,} bytes, and of its kind at most {largest:,} are read.")
    return path


def read_bytes(path: Path | str, largest: int = LARGEST_JSON) -> bytes:
    """All of a regular file. Errors: see `require_regular`."""
    size = require_regular(path, largest).stat().st_size
    with Path(path).open("rb") as file:
        data = file.read(size + 1)
        while len(data) <= largest and (more := file.read(2**20)):  # as those below /proc say that they are empty
            data += more
    if len(data) > largest:
        raise ValueError(f"{path} has more than {largest:,} bytes, and of its kind no more are read.")
    if data.startswith(LFS_POINTER):
        raise ValueError(f"{path} is Git LFS's pointer to a file, not the file: fetch it with `git lfs pull`.")
    return data


LFS_POINTER = b"version https://git-lfs"
"""How a file begins that stands in a copy of a repository for one that was not downloaded."""


def checksum(path: Path | str) -> str:
    """A file's digest (xxh3): a change is noticed, but not one that somebody wants to go unnoticed."""
    digest = xxhash.xxh3_64()
    with require_regular(path).open("rb") as file:
        while chunk := file.read(2**24):
            digest.update(chunk)
    return digest.hexdigest()


def text_of_file(path: Path | str, largest: int = LARGEST_JSON) -> str:
    """The text of a UTF-8 file, a mark of its byte order left out. Raises ValueError when it is something else."""
    data = read_bytes(path, largest)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{Path(path)} is no UTF-8 text ({error.reason} at byte {error.start}).") from error


def parse_json(text: str | bytes, name: Path | str, remedy: str = GET_ANEW) -> Any:
    """The value of a JSON text.

    Raises ValueError, naming what `name` says, for what is none, nested too deep, or holds halves of characters: no
    text of these can be written or tokenized.
    """
    try:
        value = json.loads(text)
        if _HALF_BYTES.search(text) if isinstance(text, bytes) else _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"{name} holds half a character, {half!r}: take it out. {remedy}") from error
    except RecursionError as error:
        raise ValueError(f"{name} is not JSON that can be read: it is nested too deep. {remedy}") from error
    except (ValueError, MemoryError) as error:
        raise ValueError(f"{name} is not JSON: {reason_of(error)}. {remedy}") from error
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(DEEPEST_NESTING):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [below for each in inner for below in each if isinstance(below, list | dict)]
        if not level:
            return value
    raise ValueError(f"{name} is nested more than {DEEPEST_NESTING} deep. {remedy}")


def read_json_lines(path: Path | str, largest: int = LARGEST_JSON, remedy: str = GET_ANEW) -> list[Any]:
    """The values of a file with one JSON text a line, empty lines left out. Errors: see `read_json`.

    Lines end in a newline and in nothing else: JSON may hold what Python's `splitlines` takes for an end besides, such
    as U+2028.
    """
    lines = text_of_file(path, largest).split("\n")
    return [parse_json(line, f"{path}, line {number},", remedy) for number, line in enumerate(lines, 1) if line.strip()]


def read_json(path: Path | str, largest: int = LARGEST_SETTINGS, remedy: str = GET_ANEW) -> Any:
    """The value of a JSON file. Raises FileNotFoundError for none, ValueError, naming the file, for any other fault."""
    return parse_json(read_bytes(path, largest), path, remedy)


def read_table(path: Path | str, largest: int = LARGEST_SETTINGS, remedy: str = GET_ANEW) -> dict[str, Any]:
    """The object of a JSON file. Errors: see `read_json`; a value of another kind is one, too."""
    value = read_json(path, largest, remedy)
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no object, but {type(value).__name__}. {remedy}")
    return value


def read_yaml(path: Path | str, remedy: str = GET_ANEW) -> Any:
    """The value of a small YAML file without aliases, of which few bytes can make gigabytes.

    Errors: see `read_json`.
    """
    text = text_of_file(path, LARGEST_YAML)
    with intact(path, remedy):
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > DEEPEST_NESTING:
                fault = (
                    "uses aliases (*name)"
                    if depth <= DEEPEST_NESTING
                    else f"is nested more than {DEEPEST_NESTING} deep"
                )
                raise ValueError(f"{path} {fault}, which the lab does not read. {remedy}")
        return yaml.safe_load(text)


def read_array(path: Path | str, *shape: int | None, remedy: str = GET_ANEW) -> np.ndarray:
    """The whole numbers in a .npy file, as they lie on the disk: its bytes are not read before they are asked for.

    `shape`: the length of each axis, None for any. Raises FileNotFoundError for none, ValueError, naming the file, for
    one that is damaged, of other numbers or another shape.
    """
    path = require_regular(path)
    with intact(path, remedy):
        with path.open("rb") as file:
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            lengths, columns_first, kind = read_header[np.lib.format.read_magic(file)](file)
            start = file.tell()
        if kind.kind not in "iu" or columns_first:
            raise ValueError(f"it holds {kind}, where rows of whole numbers are wanted")
        if len(lengths) != len(shape) or any(b not in (None, a) for a, b in zip(lengths, shape, strict=True)):
            raise ValueError(f"its shape is {lengths}, and {shape} is wanted")
        size, there = math.prod(lengths) * kind.itemsize, path.stat().st_size - start
        if min(lengths, default=0) < 0 or size != there:
            raise ValueError(f"{lengths} numbers of {kind.itemsize} bytes take {size:,} bytes, and it has {there:,}")
        if not size:  # nothing cannot be mapped
            return np.empty(lengths, kind)
        return np.memmap(path, kind, "r", start, lengths)


def require_numbers(plain: dict[str, Any], name: Path | str, **limits: tuple[type, float, float]) -> None:
    """Raises ValueError, naming file, entry and value, unless each entry that is there is a number within limits.

    `limits`: of each entry the type, int or float, the least and the most. For float any finite number will do.
    """
    for key, (kind, least, most) in limits.items():
        if key not in plain:
            continue
        value = plain[key]
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        if not (number and least <= value <= most):
            what = "a whole number" if kind is int else "a number"
            raise ValueError(
                f"{name} is damaged: {key} must be {what} in {least:g}..{most:g}, not {str(value)[:40]!r}."
            )
