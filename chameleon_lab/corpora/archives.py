"""Readers of pictures that lie in one file with their words: Parquet, WebDataset tars, Hugging Face datasets on disk.

A row with lists `images` and `texts` is a document of OBELICS, as published: its pictures are called by address. Of any
other, a row's picture is its bytes, or a struct of them (`{"bytes": ..., "path": ...}`, as `datasets` stores it), or
several of them in a list; its words are a string or a list. Nothing is unpacked onto the disk. Parquet and Arrow need
pyarrow: `pip install "chameleon-lab[datasets]"`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image

from chameleon_lab.corpora.folders import PICTURE_SUFFIXES, listing, picture_listing
from chameleon_lab.corpora.readers import (
    CAPTION_SUFFIXES,
    LARGEST_DOCUMENT,
    READERS,
    FindPicture,
    Reader,
    Skipped,
    obelics_document,
)
from chameleon_lab.documents import Document
from chameleon_lab.files import GET_ANEW, intact, parse_json, reason_of, require_regular
from chameleon_lab.pictures import LARGEST_AREA, read_picture

LARGEST_MEMBER = 8 * LARGEST_AREA
"""Bytes of a picture's file, as of one that lies in a folder."""

IMAGE_KEYS = ("image", "images", "picture", "img", "jpg", "jpeg", "png", "webp")
TEXT_KEYS = ("captions", "caption", "text", "txt", "sentences", "prompt", "label_text")
"""Columns that hold pictures and words, in the order in which they are looked for."""

LARGEST_ROW = 2**30
"""Bytes of a row, all its pictures and words together. Rows are read one at a time: two kilobytes may hold gigabytes of
equal ones."""

LARGEST_HEADER = 2**20
"""Bytes of a header in a tar, of which names and times take a few hundred."""


INTERLEAVED = {"images", "texts"}
"""Columns of OBELICS."""


def row_documents(row: Mapping[str, Any], find: FindPicture) -> Iterator[Document]:
    """The pairs of a row: each of its pictures with each of its captions. Raises ValueError where one is lacking."""
    images = next((row[key] for key in IMAGE_KEYS if row.get(key) is not None), None)
    words = next((row[key] for key in TEXT_KEYS if row.get(key) is not None), None)
    captions = [text.strip() for text in (words if isinstance(words, list) else [words]) if isinstance(text, str)]
    captions = [text for text in captions if text]
    if images is None or not captions:
        there = ", ".join(sorted(map(str, row)))[:200]
        lack = "a picture" if images is None else "words"
        raise ValueError(f"it has no {lack} among its columns ({there})")
    for image in images if isinstance(images, list) else [images]:
        picture = _picture_of(image, find)
        yield from (Document.of(caption, picture) for caption in captions)


def _picture_of(value: Any, find: FindPicture) -> PIL.Image.Image:
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str):
        return find(value)
    if not isinstance(value, bytes):
        raise ValueError(f"its picture is {type(value).__name__}, and bytes or a path are read")
    if len(value) > LARGEST_MEMBER:
        raise ValueError(f"its picture has {len(value):,} bytes, and at most {LARGEST_MEMBER:,} are read")
    return read_picture(value)


def _skipping(name: str, row: Mapping[str, Any], find: FindPicture) -> Iterator[Document | Skipped]:
    try:
        if row.keys() >= INTERLEAVED:
            yield from obelics_document(name, row, find)
        else:
            yield from row_documents(row, find)
    except (ValueError, OSError, TypeError, LookupError) as error:
        yield Skipped(name, reason_of(error))


def parquet(path: Path | str, find: FindPicture) -> Iterator[Document | Skipped]:
    """The pairs in a Parquet file, or in all of a folder's. Raises ValueError without pyarrow and for damaged files."""
    _arrow(Path(path))  # now, not when the first row is asked for
    return _parquet_rows(Path(path), find)


def _parquet_rows(path: Path, find: FindPicture) -> Iterator[Document | Skipped]:
    from pyarrow.parquet import ParquetFile  # pyright: ignore[reportMissingImports]

    for file in _archive_files(path, ".parquet"):
        with _foreign(file), ParquetFile(require_regular(file)) as table:
            columns = [name for name in table.schema_arrow.names if name in (*IMAGE_KEYS, *TEXT_KEYS, *INTERLEAVED)]
            for number, batch in enumerate(table.iter_batches(1, columns=columns or None), 1):
                yield from _row(f"{file.name}, row {number}", batch, find)


def dataset_on_disk(path: Path | str, find: FindPicture) -> Iterator[Document | Skipped]:
    """The pairs in a folder that `datasets` wrote with `save_to_disk`: its Arrow files, of all splits."""
    _arrow(Path(path))
    return _arrow_rows(Path(path), find)


def _arrow_rows(path: Path, find: FindPicture) -> Iterator[Document | Skipped]:
    from pyarrow import ipc, memory_map  # pyright: ignore[reportMissingImports]

    for file in _archive_files(path, ".arrow"):
        with _foreign(file), memory_map(str(require_regular(file))) as mapped:
            number = 0
            for batch in ipc.open_stream(mapped):
                for place in range(batch.num_rows):
                    number += 1
                    yield from _row(f"{file.name}, row {number}", batch.slice(place, 1), find)


def _row(name: str, batch: Any, find: FindPicture) -> Iterator[Document | Skipped]:
    """The pairs of a table's one row, if it is no larger than a row may be."""
    if batch.nbytes > LARGEST_ROW:
        yield Skipped(name, f"it has {batch.nbytes:,} bytes, and at most {LARGEST_ROW:,} are read")
    else:
        yield from _skipping(name, batch.to_pylist()[0], find)


@contextmanager
def _foreign(file: Path) -> Iterator[None]:
    """As `intact`, for programs that call a damaged file an error of the system."""
    try:
        with intact(file):
            yield
    except OSError as error:
        if error.errno is not None or type(error) is not OSError:
            raise
        raise ValueError(f"{file} is damaged: {reason_of(error).rstrip('.')}. {GET_ANEW}") from error


def _arrow(path: Path) -> None:
    try:
        import pyarrow  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f'{path} needs pyarrow to be read: pip install pyarrow, or pip install "chameleon-lab[datasets]".'
        ) from error


def webdataset(path: Path | str, find: FindPicture) -> Iterator[Document | Skipped]:
    """The pairs in a WebDataset tar, or in all of a folder's: members of one name, picture, words, or both in a JSON.

    Only regular members are read, into memory, one sample at a time.
    """
    for file in _archive_files(Path(path), ".tar", ".tar.gz", ".tgz"):
        sample, key = dict[str, Any](), ""
        with intact(file), tarfile.open(require_regular(file), tarinfo=_Member) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if f"{folder}/{stem}" != key and sample:
                    yield from _skipping(f"{file.name}, {key.lstrip('/')}", sample, find)
                    sample = {}
                key = f"{folder}/{stem}"
                try:
                    sample |= _member(archive, member, f".{suffix.lower()}")
                except ValueError as error:
                    yield Skipped(f"{file.name}, {member.name}", reason_of(error))
            if sample:
                yield from _skipping(f"{file.name}, {key.lstrip('/')}", sample, find)


class _Member(tarfile.TarInfo):
    """A member whose headers are of a size that somebody can mean: Python reads those of names and of attributes into
    memory, and a packed tar of some megabytes may hold gigabytes of them."""

    def _proc_member(self, tarfile: tarfile.TarFile) -> Any:
        headers = (b"L", b"K", b"x", b"g", b"X")  # GNU's long names and links, and attributes
        if self.type in headers and self.size > LARGEST_HEADER:
            raise ValueError(f"a header has {self.size:,} bytes, and at most {LARGEST_HEADER:,} are read")
        return super()._proc_member(tarfile)  # pyright: ignore[reportAttributeAccessIssue]


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> dict[str, Any]:
    """What one member adds to its sample. Raises ValueError for one that is too large or no JSON."""
    picture = suffix in PICTURE_SUFFIXES
    if not picture and suffix not in (".txt", ".caption", ".json"):
        return {}
    largest = LARGEST_MEMBER if picture else LARGEST_DOCUMENT
    if member.size > largest:
        raise ValueError(f"it has {member.size:,} bytes, and at most {largest:,} are read")
    data = archive.extractfile(member)
    assert data is not None
    content = data.read()
    if picture:
        return {"image": content}
    if suffix == ".json":
        plain = parse_json(content, member.name, "")
        return {key: plain[key] for key in TEXT_KEYS if key in plain} if isinstance(plain, dict) else {}
    return {"txt": content.decode("utf-8", "replace")}


def _archive_files(path: Path, *suffixes: str) -> list[Path]:
    if path.is_file():
        return [path]
    files = [file for name, file in listing(path).files.items() if name.lower().endswith(suffixes)]
    if not files:
        raise ValueError(f"{path} holds no file that ends in {' or '.join(suffixes)}.")
    return files


ALL_READERS: Mapping[str, Callable[[Path, FindPicture], Reader]] = {
    **READERS,
    "parquet": parquet,
    "webdataset": webdataset,
    "datasets": dataset_on_disk,
}
"""Every reader as the command line names it."""


def expected_entries(kind: str, path: Path) -> int | None:
    """About how many entries a reader will give, where that is known before all is read."""
    if kind == "captions":
        return len(picture_listing(path, *CAPTION_SUFFIXES, ".json", ".jsonl").files)
    if kind == "parquet":
        from pyarrow.parquet import ParquetFile  # pyright: ignore[reportMissingImports]

        rows = 0
        for file in _archive_files(path, ".parquet"):
            with _foreign(file), ParquetFile(require_regular(file)) as table:
                rows += table.metadata.num_rows
        return rows
    if kind in ("jsonl", "obelics", "mmc4") and path.suffix == ".jsonl" and path.is_file():
        lines, last = 0, b"\n"
        with path.open("rb") as file:
            for chunk in iter(lambda: file.read(2**20), b""):
                lines, last = lines + chunk.count(b"\n"), chunk
        return lines + (not last.endswith(b"\n"))
    return None
