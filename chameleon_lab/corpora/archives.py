"""Readers of pictures that lie in one file with their words: Parquet, WebDataset tars, Hugging Face datasets on disk.

A row's picture is its bytes, or a struct of them (`{"bytes": ..., "path": ...}`, as `datasets` stores it), several of
them in a list; its words are a string or a list. Nothing is unpacked onto the disk. Parquet and Arrow need pyarrow:
`pip install "chameleon-lab[datasets]"`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import PIL.Image

from chameleon_lab.corpora.folders import PICTURE_SUFFIXES, listing
from chameleon_lab.corpora.readers import LARGEST_DOCUMENT, READERS, FindPicture, Reader, Skipped
from chameleon_lab.documents import Document
from chameleon_lab.files import intact, parse_json, reason_of
from chameleon_lab.pictures import LARGEST_AREA, read_picture

LARGEST_MEMBER = 8 * LARGEST_AREA
"""Bytes of a picture's file, as of one that lies in a folder."""

IMAGE_KEYS = ("image", "images", "picture", "img", "jpg", "jpeg", "png", "webp")
TEXT_KEYS = ("captions", "caption", "text", "txt", "sentences", "prompt", "label_text")
"""Columns that hold pictures and words, in the order in which they are looked for."""

ROWS_AT_A_TIME = 64


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
        with intact(file), ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches(ROWS_AT_A_TIME):
                for row in batch.to_pylist():
                    number += 1
                    yield from _skipping(f"{file.name}, row {number}", row, find)


def dataset_on_disk(path: Path | str, find: FindPicture) -> Iterator[Document | Skipped]:
    """The pairs in a folder that `datasets` wrote with `save_to_disk`: its Arrow files, of all splits."""
    _arrow(Path(path))
    return _arrow_rows(Path(path), find)


def _arrow_rows(path: Path, find: FindPicture) -> Iterator[Document | Skipped]:
    from pyarrow import ipc, memory_map  # pyright: ignore[reportMissingImports]

    for file in _archive_files(path, ".arrow"):
        with intact(file), memory_map(str(file)) as mapped:
            number = 0
            for batch in ipc.open_stream(mapped):
                for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
                    for row in batch.slice(start, ROWS_AT_A_TIME).to_pylist():
                        number += 1
                        yield from _skipping(f"{file.name}, row {number}", row, find)


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
        with intact(file), tarfile.open(file) as archive:
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
