"""Readers: documents out of a person's files, whatever lies among them.

A reader is anything that yields `Document`s, and a `Skipped` for what it leaves out: most are generator functions, and
one written in a notebook cell is as good as these. A fault in one entry skips that entry; a fault in the whole (no such
folder) raises ValueError.
"""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from chameleon_lab.corpora.sources import picture_files
from chameleon_lab.documents import Document, Image, Segment, Text
from chameleon_lab.pictures import open_picture


class Skipped(NamedTuple):
    """Something that a reader left out: which file, line or picture, and why."""

    name: str
    reason: str


Reader = Iterable[Document | Skipped]
FindPicture = Callable[[str], PIL.Image.Image]
"""The picture that a document calls by this name. Raises ValueError or OSError when there is none."""


class PictureFolder:
    """Finds pictures in a folder by their path in it, or by an address that the folder's `addresses.json` leads there.

    `addresses.json` is an object, address to path: the web's documents name their pictures by address, and nothing is
    downloaded here.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is no folder: give one that holds the documents' pictures.")
        self._addresses: dict[str, str] = {}
        path = self.folder / "addresses.json"
        if path.exists():
            try:
                self._addresses = {name: str(place) for name, place in _object(json.loads(_read_text(path))).items()}
            except ValueError as error:
                raise ValueError(f"{path} is no JSON object of addresses and paths: {error}.") from error

    def __call__(self, name: str) -> PIL.Image.Image:
        place = self._addresses.get(name, name)
        if "://" in place:
            raise ValueError(f"{name} is not among the addresses of {self.folder / 'addresses.json'}.")
        path = self.folder / place
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{name} lies outside {self.folder}.")
        return open_picture(path)


def captioned_pictures(folder: Path | str) -> Iterator[Document | Skipped]:
    """Pairs, caption first: each picture of a folder and below, with the text beside it.

    The caption of `cat.jpg` is `cat.txt`, or the entry {"file_name": "cat.jpg", "text": ...} in a `metadata.jsonl` of
    the folder. A picture without a caption, and a caption without a picture, are skipped.
    """
    folder = Path(folder)
    captions: dict[str, str] = {}

    def described(name: str, entry: Any) -> Iterator[Document | Skipped]:
        caption = entry.get("text", entry.get("caption")) if isinstance(entry, dict) else None
        if not isinstance(caption, str) or not isinstance(entry.get("file_name"), str):
            raise ValueError("it has no file_name with a text")
        captions[entry["file_name"]] = caption
        yield from ()

    if (folder / "metadata.jsonl").exists():
        yield from _each(folder / "metadata.jsonl", described)
    pictures = picture_files(folder)
    for name, path in pictures.items():
        try:
            caption = captions.pop(name, None) or _read_text(path.with_suffix(".txt"))
            if not caption.strip():
                raise ValueError("its caption is empty")
            yield Document.of(caption.strip(), open_picture(path))
        except FileNotFoundError:
            yield Skipped(name, f"a picture without a caption: write one to {path.with_suffix('.txt').name} beside it")
        except (ValueError, OSError) as error:
            yield Skipped(name, str(error))
    used = {path.with_suffix(".txt") for path in pictures.values()}
    for path in sorted(folder.rglob("*.txt")):
        if path not in used and not path.name.startswith("."):
            yield Skipped(path.relative_to(folder).as_posix(), "a caption without a picture")
    yield from (Skipped(name, "a caption without a picture") for name in captions)


def jsonl(path: Path | str, find: FindPicture | None = None) -> Iterator[Document | Skipped]:
    """One document a line: a list as `Document.to_json` writes it, {"image": path, "caption": ...}, or {"text": ...}.

    Images are found in the file's own folder unless `find` is given; a pair comes caption first.
    """
    find = find or PictureFolder(Path(path).parent)

    def read(name: str, entry: Any) -> Iterator[Document | Skipped]:
        if isinstance(entry, list):
            yield Document.from_json(json.dumps(entry))
            return
        caption, image, text = (_object(entry).get(key) for key in ("caption", "image", "text"))
        if isinstance(image, str) and isinstance(caption, str) and caption.strip():
            yield Document.of(caption.strip(), find(image))
        elif image is not None:
            raise ValueError("an image without a caption")
        elif caption is not None:
            raise ValueError("a caption without an image")
        elif isinstance(text, str):
            yield Document.of(text)
        else:
            raise ValueError("it has neither image and caption nor text")

    return _each(path, read)


def obelics(path: Path | str, find: FindPicture) -> Iterator[Document | Skipped]:
    """OBELICS-style documents, one a line: lists `images` and `texts` of one length, at each place one of the two.

    An image that `find` cannot give becomes a `Skipped`; the document goes on without it.
    """

    def read(name: str, entry: Any) -> Iterator[Document | Skipped]:
        images, texts = (_object(entry).get(key) for key in ("images", "texts"))
        if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts):
            raise ValueError("it has no lists images and texts of one length")
        if any((image is None) == (text is None) for image, text in zip(images, texts, strict=True)):
            raise ValueError("at each place there must be either an image or a text")
        parts = (Text(str(text)) if image is None else str(image) for image, text in zip(images, texts, strict=True))
        yield from _interleaved(name, parts, find)

    return _each(path, read)


def mmc4(path: Path | str, find: FindPicture) -> Iterator[Document | Skipped]:
    """MMC4-style documents, one a line: sentences in `text_list`; each of `image_info` before the sentence it matches.

    An image (`image_name`, or else `raw_url`) that `find` cannot give becomes a `Skipped`.
    """

    def read(name: str, entry: Any) -> Iterator[Document | Skipped]:
        sentences, infos = (_object(entry).get(key) for key in ("text_list", "image_info"))
        if not isinstance(sentences, list) or not isinstance(infos, list):
            raise ValueError("it has no lists text_list and image_info")
        before: dict[int, list[str]] = {}
        for number, info in enumerate(infos):
            info = info if isinstance(info, dict) else {}
            place, image = info.get("matched_text_index"), info.get("image_name") or info.get("raw_url")
            if isinstance(place, int) and 0 <= place < len(sentences) and image:
                before.setdefault(place, []).append(str(image))
            else:
                yield Skipped(f"{name}, image {number}", f"it has no name, or matches no sentence ({place})")
        parts: list[Text | str] = []
        for place, sentence in enumerate(sentences):
            parts += before.get(place, [])
            last = parts[-1] if parts else ""
            if isinstance(last, Text):  # one run of text, as it was before it was cut into sentences
                parts[-1] = Text(f"{last.text} {sentence}")
            else:
                parts.append(Text(str(sentence)))
        yield from _interleaved(name, parts, find)

    return _each(path, read)


def plain_text(path: Path | str, suffixes: Iterable[str] = (".txt", ".md")) -> Iterator[Document | Skipped]:
    """A document of each text file of a folder and below, or of the one file given; UTF-8, hidden ones left alone."""
    path, suffixes = Path(path), frozenset(suffixes)
    if not path.exists():
        raise ValueError(f"There is no file or folder {path}.")
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.suffix in suffixes)
    if not files:
        raise ValueError(f"{path} holds no text: no file there ends in {', '.join(sorted(suffixes))}.")
    for file in files:
        inside = file.relative_to(path) if file != path else Path(file.name)
        if any(part.startswith(".") for part in inside.parts) or not file.is_file():
            continue
        try:
            text = _read_text(file)
            if not text.strip():
                raise ValueError("it is empty")
            yield Document.of(text)
        except (ValueError, OSError) as error:
            yield Skipped(inside.as_posix(), str(error))


CODE = frozenset(
    {".c", ".cc", ".cpp", ".cs", ".css", ".go", ".h", ".hpp", ".html", ".java", ".jl", ".js", ".json", ".kt", ".lua"}
    | {".m", ".php", ".pl", ".py", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".tex", ".toml", ".ts"}
    | {".yaml", ".yml"}
)
"""Endings of files of source code."""


def source_code(path: Path | str, suffixes: Iterable[str] = CODE) -> Iterator[Document | Skipped]:
    """A document of each source file of a folder and below, as `plain_text` reads them, white space and all."""
    return plain_text(path, suffixes)


READERS: Mapping[str, Callable[[Path, FindPicture], Reader]] = {
    "captions": lambda path, find: captioned_pictures(path),
    "jsonl": jsonl,
    "obelics": obelics,
    "mmc4": mmc4,
    "text": lambda path, find: plain_text(path),
    "code": lambda path, find: source_code(path),
}
"""The readers as the command line names them."""


def half_picture_first(documents: Reader, seed: int = 0) -> Iterator[Document | Skipped]:
    """The same documents, half of the pairs with their picture first (arXiv 2405.09818, section 2.2).

    Of each two pairs that follow one another, a coin decides which comes picture first: half to within one, whatever
    pattern the order of files has. Documents that are no pairs pass as they are.
    """
    pairs = 0
    for document in documents:
        if isinstance(document, Document) and is_pair(document):
            text, image = sorted(document.segments, key=lambda segment: isinstance(segment, Image))
            coin = int(np.random.default_rng([seed, pairs // 2]).integers(2))
            document = Document((image, text) if pairs % 2 == coin else (text, image))
            pairs += 1
        yield document


def is_pair(document: Document) -> bool:
    """Whether a document is one text and one image, in either order."""
    return {type(segment) for segment in document} == {Text, Image} and len(document) == 2


def _interleaved(name: str, parts: Iterable[Text | str], find: FindPicture) -> Iterator[Document | Skipped]:
    """The document of texts and of images called by name, after a `Skipped` for each image that `find` cannot give."""
    segments: list[Segment] = []
    for place, part in enumerate(parts):
        try:
            segments.append(part if isinstance(part, Text) else Image(find(part)))
        except (ValueError, OSError) as error:
            yield Skipped(f"{name}, place {place}", str(error))
    segments = [segment for segment in segments if not isinstance(segment, Text) or segment.text.strip()]
    yield Document(tuple(segments)) if segments else Skipped(name, "nothing is left of it")


def _each(path: Path | str, read: Callable[[str, Any], Iterator[Document | Skipped]]) -> Iterator[Document | Skipped]:
    """What `read(name, value)` makes of each line of a JSON Lines file, plain or in a .gz or .zip.

    A line that is not JSON, and one on which `read` raises ValueError or OSError, is skipped.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    name = path.name
    try:
        with _opened(path) as lines:
            for number, line in enumerate(lines, start=1):
                name = f"{path.name}, line {number}"
                if line.strip():
                    yield from _entry(name, line, read)
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}), after {name}. Get it anew.") from error


def _entry(
    name: str, line: bytes, read: Callable[[str, Any], Iterator[Document | Skipped]]
) -> Iterator[Document | Skipped]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # what is no JSON, or no UTF-8
        yield Skipped(name, f"it is not JSON ({error})")
        return
    try:
        yield from read(name, value)
    except (ValueError, OSError) as error:
        yield Skipped(name, str(error))


@contextmanager
def _opened(path: Path) -> Iterator[Iterable[bytes]]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            yield (line for member in archive.namelist() for line in archive.open(member))
    elif path.suffix == ".gz":
        with gzip.open(path) as file:
            yield file
    else:
        with path.open("rb") as file:
            yield file


def _read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises ValueError when it is something else, FileNotFoundError when it is not there."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is no UTF-8 text ({error.reason} at byte {error.start})") from error


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value
