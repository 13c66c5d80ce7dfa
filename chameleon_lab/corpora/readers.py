"""Readers: documents out of a person's files, whatever lies among them.

A reader is anything that yields `Document`s, and a `Skipped` for what it leaves out: most are generator functions, and
one written in a notebook cell is as good as these. A fault in one entry skips that entry; a fault in the whole (no such
folder) raises ValueError.
"""

from __future__ import annotations

import gzip
import json
import logging
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, TypeVar, cast

import numpy as np
import PIL.Image

from chameleon_lab.corpora.folders import FolderListing, lies_within, listing, picture_listing
from chameleon_lab.corpora.turns import conversation_of, is_conversation
from chameleon_lab.documents import Document, Image, Segment, Text
from chameleon_lab.files import LARGEST_JSON, absence, parse_json, read_json, read_table, reason_of, text_of_file
from chameleon_lab.pictures import open_picture

log = logging.getLogger(__name__)


class Skipped(NamedTuple):
    """Something that a reader left out: which file, line or picture, and why."""

    name: str
    reason: str


Reader = Iterable[Document | Skipped]
Entry = TypeVar("Entry")
FindPicture = Callable[[str], PIL.Image.Image]
"""The picture that a document calls by this name. Raises ValueError or OSError when there is none."""


class PictureFolder:
    """Finds pictures in a folder by their path in it, or by an address that the folder's `addresses.json` leads there.

    `addresses.json` is an object, address to path: the web's documents name their pictures by address, and nothing is
    downloaded here. `shortest`: see `pictures.open_picture`.
    """

    def __init__(self, folder: Path | str, shortest: int | None = None) -> None:
        self.folder, self.shortest = Path(folder), shortest
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is no folder: give one that holds the documents' pictures.")
        self._addresses: dict[str, str] = {}
        path = self.folder / "addresses.json"
        if path.exists():
            if not lies_within(path, self.folder):
                raise ValueError(f"{path} is a link out of the folder, where nothing is read: put a copy there.")
            try:
                self._addresses = {name: str(place) for name, place in read_table(path, LARGEST_JSON).items()}
            except ValueError as error:
                raise ValueError(f"{path} is no JSON object of addresses and paths: {error}.") from error

    def __call__(self, name: str) -> PIL.Image.Image:
        place = self._addresses.get(name, name)
        if "://" in place:
            raise ValueError(f"{name} is not among the addresses of {self.folder / 'addresses.json'}.")
        path = self.folder / place
        if "\\" in place and not path.exists():  # as Windows writes it
            path = self.folder / place.replace("\\", "/")
        if not lies_within(path, self.folder):
            raise ValueError(f"{name} lies outside {self.folder}.")
        return open_picture(path, self.shortest)


CAPTION_SUFFIXES = (".txt", ".caption")
"""Endings of caption files: of `cat.jpg` it is `cat.txt`, `cat.jpg.txt`, `cat.caption` or `cat.jpg.caption`."""

METADATA = ("metadata.jsonl", "metadata.json")


def captioned_pictures(
    folder: Path | str, shortest: int | None = None, bare: bool = False
) -> Iterator[Document | Skipped]:
    """Pairs, caption first: each picture of a folder and below, with the text beside it.

    The caption of `cat.jpg` is in a file (see `CAPTION_SUFFIXES`), or the entry {"file_name": "cat.jpg", "text": ...}
    in a `metadata.jsonl` or `metadata.json` of the folder; "captions", a list, makes a pair of each. A picture without
    a caption, unless `bare` makes a document of it alone, and a caption without a picture are skipped; what lies in the
    folder besides is skipped by reason: see `corpora.folders`.
    """
    folder = Path(folder)
    captions: dict[str, list[str]] = {}

    def described(name: str, entry: Any) -> Iterator[Document | Skipped]:
        keys = ("text", "caption", "captions")
        caption = next((entry[key] for key in keys if key in entry), None) if isinstance(entry, dict) else None
        several = [caption] if isinstance(caption, str) else caption
        if not isinstance(several, list) or not several or not all(isinstance(each, str) for each in several):
            raise ValueError("it has no file_name with a text")
        place = next((entry[key] for key in ("file_name", "image") if isinstance(entry.get(key), str)), None)
        if place is None:
            raise ValueError("it has no file_name with a text")
        captions.setdefault(place, []).extend(several)
        yield from ()

    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one that holds pictures.")
    everything = listing(folder).files
    for name in METADATA:
        if name in everything:
            yield from each_entry(folder / name, described)
    pictures = picture_listing(folder, *CAPTION_SUFFIXES, ".json", ".jsonl")
    if not pictures.files:
        raise ValueError(f"{folder} holds no pictures: {pictures}.")
    log.info("%s.", pictures)
    yield from (Skipped(*each) for each in pictures.skips)
    for name in [each for each in captions if each not in pictures.files]:  # ./cat.jpg, or cats\1.jpg of Windows
        several = captions.pop(name)
        captions.setdefault(PurePosixPath(name.replace("\\", "/")).as_posix(), []).extend(several)
    beside = {path: name for name, path in everything.items() if path.suffix.lower() in CAPTION_SUFFIXES}
    by_spelling = {_spelling(path): path for path in beside}
    unused = dict(beside)
    for name, path in pictures.files.items():
        own = [each for suffix in CAPTION_SUFFIXES for each in (path.with_suffix(suffix), Path(f"{path}{suffix}"))]
        files = [by_spelling[each] for each in map(_spelling, own) if each in by_spelling]
        for each in files:
            unused.pop(each, None)
        try:
            several = captions.pop(name, None)
            if several is None and not files and bare:
                yield Document.of(open_picture(path, shortest))
                continue
            if several is None and not files:
                raise ValueError(f"a picture without a caption: write one to {path.with_suffix('.txt').name} beside it")
            several = [text_of_file(files[0], LARGEST_DOCUMENT)] if several is None else several
            if not any(caption.strip() for caption in several):
                raise ValueError("its caption is empty")
            picture = open_picture(path, shortest)
            yield from (Document.of(caption.strip(), picture) for caption in several if caption.strip())
        except (ValueError, OSError) as error:
            yield Skipped(name, str(error))
    yield from (Skipped(name, "a caption without a picture") for name in (*unused.values(), *captions))


def _spelling(path: Path) -> str:
    """A caption's path as all systems spell it: macOS keeps accents apart from their letters, Windows may say .TXT."""
    return unicodedata.normalize("NFC", str(path.with_suffix(path.suffix.lower())))


def jsonl(path: Path | str, find: FindPicture | None = None) -> Iterator[Document | Skipped]:
    """One document a line, or an entry of a JSON array: a list as `Document.to_json` writes it, or an object.

    ```
    {"text": ...}                          a text
    {"image": path, "caption": ...}        a pair; "file_name" and "text" do as well
    {"image": path, "captions": [...]}     a pair of each caption; a list of paths are alternatives
    {"images": [path, ...], "text": ...}   pictures where the text says <image>, or all of them behind it
    {"turns": [...]}, {"messages": [...]}  a conversation, in each of the styles of `corpora.turns`: Hugging Face's,
    {"conversations": [...], "image": ...} ShareGPT's, LLaVA's, Lumina-mGPT's
    {"instruction": ..., "output": ...}    one exchange: a prompt and its answer, by any of the usual names
    [{"image": path}, {"text": ...}, ...]  segments, with pictures by path instead of their bytes
    ```

    Of conversations the person's turns are not learned.

    Images are found in the file's own folder unless `find` is given; a pair comes caption first.
    """
    find = find or PictureFolder(Path(path).parent)

    def read(name: str, entry: Any) -> Iterator[Document | Skipped]:
        if isinstance(entry, list):
            if any(isinstance(each, dict) and is_conversation(each) for each in entry):
                raise ValueError("it is a list of conversations: write one a line, or name the file .json")
            yield _segments_of(entry, find)
            return
        record = _object(entry)
        if is_conversation(record):
            yield conversation_of(record, find)
            return
        words = [record[key] for key in ("caption", "text") if record.get(key) is not None]
        image = next((record[key] for key in ("image", "file_name") if record.get(key) is not None), None)
        images = record.get("images")
        if isinstance(captions := record.get("captions"), list) or isinstance(image, list):
            yield from _alternatives(image, captions if captions is not None else words, find)
            return
        if any(not isinstance(each, str) for each in (*words, *([image] if image is not None else []))):
            raise ValueError("its text, caption, image or file_name is no string")
        if images is not None:
            if not isinstance(images, list) or not all(isinstance(each, str) for each in images):
                raise ValueError("its images are no list of paths")
            yield Document.of(*_placed(words[0].strip() if words else "", [find(each) for each in images]))
        elif image is not None:
            if not words or not words[0].strip():
                raise ValueError("an image without a caption")
            yield Document.of(words[0].strip(), find(image))
        elif record.get("caption") is not None:
            raise ValueError("a caption without an image")
        elif words and words[0].strip():
            yield Document.of(words[0])
        elif words:
            raise ValueError("its text is empty")
        else:
            names = ", ".join(map(str, list(record)[:6]))[:80]
            raise ValueError(f"it has neither image and caption nor text, but {names or 'nothing'}")

    return each_entry(path, read)


def _alternatives(image: Any, captions: Any, find: FindPicture) -> Iterator[Document]:
    """A pair of each picture and each caption."""
    pictures = image if isinstance(image, list) else [image]
    if not pictures or not captions or any(not isinstance(each, str) for each in (*pictures, *captions)):
        raise ValueError("its image and captions are no strings, or lists of them")
    if not any(caption.strip() for caption in captions):
        raise ValueError("its captions are empty")
    for each in map(find, pictures):
        yield from (Document.of(caption.strip(), each) for caption in captions if caption.strip())


def _segments_of(entries: list[Any], find: FindPicture) -> Document:
    """The document in a list of segments; a picture's path has a dot, which no base64 has."""
    segments = list[Segment]()
    for entry in entries:
        image = entry.get("image") if isinstance(entry, dict) else None
        if isinstance(image, str) and "." in image:
            learn = entry.get("learn", True)
            if not isinstance(learn, bool):
                raise ValueError(f"learn must be true or false, not {str(learn)[:40]!r}")
            segments.append(Image(find(image), learn=learn))
        else:
            segments += Document.from_json(json.dumps([entry])).segments
    if not any(isinstance(each, Image) or (isinstance(each, Text) and each.text.strip()) for each in segments):
        raise ValueError("it holds neither words nor a picture")
    return Document(tuple(segments))


def _placed(text: str, pictures: list[PIL.Image.Image]) -> Iterator[str | PIL.Image.Image]:
    """A text with pictures where it says `<image>`, or all of them behind it."""
    parts = text.split("<image>")
    if len(parts) == 1:
        yield from ([text] if text else [])
        yield from pictures
        return
    if len(parts) != len(pictures) + 1:
        raise ValueError(f"its text says <image> {len(parts) - 1} times, and it has {len(pictures)} images")
    for place, part in enumerate(parts):
        yield from ([part.strip()] if part.strip() else [])
        yield from pictures[place : place + 1]


def obelics(path: Path | str, find: FindPicture) -> Iterator[Document | Skipped]:
    """OBELICS-style documents, one a line: see `obelics_document`."""
    return each_entry(path, lambda name, entry: obelics_document(name, _object(entry), find))


def obelics_document(name: str, entry: Mapping[str, Any], find: FindPicture) -> Iterator[Document | Skipped]:
    """The document of lists `images` and `texts` of one length, at each place one of the two.

    An image that `find` cannot give becomes a `Skipped`; the document goes on without it. Raises ValueError for lists
    that are not so.
    """
    images, texts = (entry.get(key) for key in ("images", "texts"))
    if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts):
        raise ValueError("it has no lists images and texts of one length")
    if any((image is None) == (text is None) for image, text in zip(images, texts, strict=True)):
        raise ValueError("at each place there must be either an image or a text")
    if any(not isinstance(each, str | None) for each in (*images, *texts)):
        raise ValueError("one of its images or texts is no string")
    parts = (Text(text) if image is None else image for image, text in zip(images, texts, strict=True))
    yield from _interleaved(name, parts, find)


def mmc4(path: Path | str, find: FindPicture) -> Iterator[Document | Skipped]:
    """MMC4-style documents, one a line: sentences in `text_list`; each of `image_info` before the sentence it matches.

    An image (`image_name`, or else `raw_url`) that `find` cannot give becomes a `Skipped`.
    """

    def read(name: str, entry: Any) -> Iterator[Document | Skipped]:
        sentences, infos = (_object(entry).get(key) for key in ("text_list", "image_info"))
        if not isinstance(sentences, list) or not isinstance(infos, list):
            raise ValueError("it has no lists text_list and image_info")
        if not all(isinstance(sentence, str) for sentence in sentences):
            raise ValueError("one of its sentences is no string")
        before: dict[int, list[str]] = {}
        for number, info in enumerate(infos):
            info = info if isinstance(info, dict) else {}
            place, image = info.get("matched_text_index"), info.get("image_name") or info.get("raw_url")
            if type(place) is int and 0 <= place < len(sentences) and image and isinstance(image, str):
                before.setdefault(place, []).append(image)
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

    return each_entry(path, read)


def plain_text(path: Path | str, suffixes: Iterable[str] = (".txt", ".md")) -> Iterator[Document | Skipped]:
    """A document of each text file of a folder and below, or of the one file given; UTF-8, hidden ones left alone."""
    path, suffixes = Path(path), frozenset(suffixes)
    if not path.exists():
        raise ValueError(f"There is no file or folder {path}.")
    whole = listing(path) if path.is_dir() else FolderListing(path.parent, {path.name: path})
    files = {name: file for name, file in whole.files.items() if file == path or file.suffix.lower() in suffixes}
    if not files:
        endings = ", ".join(sorted(suffixes))
        raise ValueError(f"{path} holds no text: no file there ends in {endings}. {whole}.")
    if whole.left_out:
        log.info("%s.", whole)
    yield from (Skipped(*each) for each in whole.skips)
    for name, file in files.items():
        try:
            text = text_of_file(file, LARGEST_DOCUMENT)
            if not text.strip():
                raise ValueError("it is empty")
            yield Document.of(text)
        except (ValueError, OSError) as error:
            yield Skipped(name, str(error))


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
    "captions": lambda path, find: captioned_pictures(path, find.shortest if isinstance(find, PictureFolder) else None),
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


LARGEST_DOCUMENT = 64 * 2**20
"""Bytes of a text, or of a line: pictures in it count. A longer one is skipped."""

LARGEST_RUN = 2**30
"""Bytes after which a line is none: an archive of little more than a megabyte may hold one without an end."""


def each_entry(path: Path | str, read: Callable[[str, Any], Iterator[Entry | Skipped]]) -> Iterator[Entry | Skipped]:
    """What `read(name, value)` makes of each line of a JSON Lines file, plain or in a .gz or .zip, or of each entry of
    a JSON array in a .json file.

    A line that is not JSON, and one that `read` cannot understand, is skipped.
    """
    path = Path(path)
    if fault := absence(path):
        raise ValueError(f"{path} {fault}.")
    if path.suffix == ".json" or _begins_array(path):
        entries = read_json(path, LARGEST_JSON)
        if not isinstance(entries, list):
            raise ValueError(f"{path} holds {type(entries).__name__}, where a JSON array of documents is wanted.")
        for number, entry in enumerate(entries, start=1):
            yield from _entry(f"{path.name}, entry {number}", entry, read)
        return
    name = path.name
    try:
        with _opened(path) as files:
            for number, line in enumerate(_lines(path, files), start=1):
                name = f"{path.name}, line {number}"
                if line is None:
                    yield Skipped(name, f"it has more than {LARGEST_DOCUMENT:,} bytes")
                elif line.strip():
                    try:
                        value = parse_json(line, "it", "")
                    except ValueError as error:
                        yield Skipped(name, str(error).strip())
                        continue
                    yield from _entry(name, value, read)
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged ({error}), after {name}. Get it anew.") from error


def _begins_array(path: Path) -> bool:
    """Whether a file is one JSON array over several lines, and no JSON Lines."""
    if path.suffix in (".gz", ".zip"):
        return False
    with path.open("rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").split(b"\n")[0].strip() == b"["


def _entry(name: str, value: Any, read: Callable[[str, Any], Iterator[Entry | Skipped]]) -> Iterator[Entry | Skipped]:
    try:
        yield from read(name, value)
    except (ValueError, OSError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        yield Skipped(name, reason_of(error))


@contextmanager
def _opened(path: Path) -> Iterator[Iterable[IO[bytes]]]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            yield (archive.open(member) for member in archive.namelist())
    elif path.suffix == ".gz":
        with gzip.open(path) as file:
            yield (cast(IO[bytes], file),)
    else:
        with path.open("rb") as file:
            yield (file,)


def _lines(path: Path, files: Iterable[IO[bytes]]) -> Iterator[bytes | None]:
    """The lines of files, None for one that is too long, of which no more is in memory than of another."""
    for file in files:
        while line := file.readline(LARGEST_DOCUMENT + 1):
            length = len(line)
            if length <= LARGEST_DOCUMENT:
                yield line
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(2**20)
                length += len(line)
                if length > LARGEST_RUN:
                    raise ValueError(f"{path} holds a line of more than {LARGEST_RUN:,} bytes, and is not read on.")
            yield None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value
