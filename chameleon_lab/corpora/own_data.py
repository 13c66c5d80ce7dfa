"""A person's own data, gathered: looked at once, the pictures made small, a part held out, and what was seen said.

`gather` reads sources into a folder of the lab's own, and never writes into theirs. The folder holds `survey.json`
(what was seen), `documents.jsonl` (an entry a line, pictures by number), `pictures.bin` (bytes, pictures x span x span
x 3) and `skipped.jsonl`; a training that goes on needs nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from chameleon_lab.corpora.archives import ALL_READERS, expected_entries
from chameleon_lab.corpora.folders import listing, picture_listing
from chameleon_lab.corpora.readers import PictureFolder, Skipped, captioned_pictures, is_pair
from chameleon_lab.documents import Blank, Document, EndTurn, Image
from chameleon_lab.files import (
    absence,
    intact,
    read_json_lines,
    read_table,
    reason_of,
    require_numbers,
    require_regular,
)
from chameleon_lab.pictures import WRITTEN_SHORTEST
from chameleon_lab.storage import whole_folder
from chameleon_lab.tokenizers.preparation import CentreCrop

SPARE = 1.25
"""Pixels that are stored along a side, to each that the tokenizer sees: views shift and shrink within them."""

HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 256

SIDED = re.compile(
    r"\b(left|right|text|letters?|words?|written|numbers?|digits?|flags?|clocks?|maps?|arrows?|east|west|links?|rechts?"
    r"|linke[rs]?|rechte[rs]?|schrift|gauche|droite|texte|izquierda|derecha|texto|esquerda|direita|sinistra|destra)\b|\d",
    re.IGNORECASE,
)
"""Words of a caption under which a picture must not be mirrored."""


@dataclass(frozen=True)
class DataSource:
    """A file or folder to read, as one of `ALL_READERS` (None: by what lies there).

    `weight`: how often each of its documents is met, beside those of other sources.
    """

    path: Path
    kind: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(os.path.expanduser(self.path)))
        if not os.path.exists(self.path):  # whatever a path may be: too long a name is no error here
            raise ValueError(f"There is nothing at {self.path}: give a folder of pictures with captions, or a file.")
        if self.kind is not None and self.kind not in ALL_READERS:
            raise ValueError(f"No reader is called {self.kind!r}; there are {', '.join(ALL_READERS)}.")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"The weight of {self.path} must be more than 0, not {self.weight}.")

    @classmethod
    def of(cls, words: str | Path | DataSource) -> DataSource:
        """The source in `[KIND:]PATH[=WEIGHT]`, as the command line has it."""
        if isinstance(words, DataSource):
            return words
        if not str(words).strip():
            raise ValueError("The path of the data is empty: give a folder of pictures with captions, or a file.")
        if isinstance(words, Path) or os.path.exists(words):
            return cls(Path(words))
        path, _, weight = words.rpartition("=")
        path, weight = (path, weight) if path and re.fullmatch(r"\d+(\.\d*)?|\.\d+", weight) else (words, "1")
        kind, colon, rest = path.partition(":")
        if colon and kind in ALL_READERS:
            return cls(Path(rest), kind, float(weight))
        return cls(Path(path), None, float(weight))

    def documents(self, shortest: int | None = None, bare: bool = False) -> Iterator[Document | Skipped]:
        """What a reader makes of it, pictures decoded small for those who make them smaller anyway (see
        `pictures.open_picture`). `bare`: of a folder, pictures without captions are documents, too. Raises ValueError
        where nothing there can be read."""
        for kind, path in self._parts():
            beside = path if path.is_dir() else path.parent
            if kind == "captions" and bare:
                yield from captioned_pictures(path, shortest, bare)
            else:
                yield from ALL_READERS[kind](path, PictureFolder(beside, shortest))

    def expected(self) -> int | None:
        """About how many documents there are, where that is known before all is read."""
        try:
            counts = [expected_entries(kind, path) for kind, path in self._parts()]
        except (ValueError, OSError, ImportError):  # the reading says what is wrong
            return None
        numbers = [count for count in counts if count is not None]
        return sum(numbers) if len(numbers) == len(counts) else None

    def _parts(self) -> Iterable[tuple[str, Path]]:
        """(reader, path) of what it is read as."""
        return [(self.kind, self.path)] if self.kind else _kinds(self.path)

    def census(self) -> list[int]:
        """How many files there are, and their bytes: whether something has changed since."""
        files = listing(self.path).files.values() if self.path.is_dir() else [self.path]
        sizes = [file.stat().st_size for file in files]
        return [len(sizes), sum(sizes)]


ARCHIVES = {"parquet": (".parquet",), "webdataset": (".tar", ".tar.gz", ".tgz"), "datasets": (".arrow",)}
"""Endings of files that hold pictures and words, by their reader."""

TEXTS = (".txt", ".md")

LINES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zip")


def _kinds(path: Path) -> Iterator[tuple[str, Path]]:
    """(reader, path) of what lies at a path."""
    ends = path.name.lower()
    if path.is_file():
        archive = next((kind for kind, suffixes in ARCHIVES.items() if ends.endswith(suffixes)), None)
        if archive is not None:
            yield archive, path
        elif ends.endswith(LINES):
            yield "jsonl", path
        elif ends.endswith(TEXTS):
            yield "text", path
        else:
            raise ValueError(f"Nothing here reads {path.name}: name its reader, as in jsonl:{path}.")
        return
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} {absence(path)}.")
    if picture_listing(path).files:
        yield "captions", path
        return
    names = [name.lower() for name in listing(path).files]
    if archive := next(
        (kind for kind, suffixes in ARCHIVES.items() if any(each.endswith(suffixes) for each in names)), ""
    ):
        yield archive, path
        return
    lines = [file for name, file in listing(path).files.items() if name.lower().endswith(LINES)]
    if lines:
        yield from (("jsonl", file) for file in lines)
    elif any(name.endswith(TEXTS) for name in names):
        yield "text", path
    else:
        raise ValueError(
            f"Nothing can be read in {picture_listing(path)}. Put pictures there, each with its caption in a .txt file "
            "of the same name; or texts (.txt, .md), JSON lines, Parquet or tar files."
        )


GATHERED = ("survey.json", "documents.jsonl", "pictures.bin", "skipped.jsonl")
READ_ANEW = "Delete its folder to have the data read anew."
LARGEST_DOCUMENTS = 2**36
"""Bytes of a file of the lab's own, which is as large as a person's words are."""

SURVEY = {"sources": list, "documents": int, "held_out": int, "pairs": int, "pictures": int, "side": int, "span": int}


class GatheredData:
    """What `gather` wrote. `entries` are plain values: of a pair `captions` and `picture`, else `segments`."""

    def __init__(self, folder: Path | str) -> None:
        """Raises ValueError for what is no folder of gathered data."""
        self.folder = Path(folder)
        place = self.folder / "survey.json"
        self.survey: dict[str, Any] = read_table(place, remedy=READ_ANEW)
        with intact(place, READ_ANEW):
            for name, kind in SURVEY.items():
                if not isinstance(self.survey[name], kind):
                    raise TypeError(f"{name} must be of type {kind.__name__}, not {str(self.survey[name])[:40]!r}")
            counts = dict.fromkeys(("documents", "held_out", "pairs", "pictures"), (int, 0, 2.0**40))
            require_numbers(self.survey, place, span=(int, 1, 2**13), side=(int, 1, 2**13), **counts)
            for each in self.survey["sources"]:
                require_numbers(each, place, weight=(float, 1e-300, 1e300))
                if not isinstance(each["path"], str) or "weight" not in each:
                    raise TypeError(f"a source must have a path and a weight, not {str(each)[:60]!r}")
            if any(len(each) != 2 or sum(each) < 0 for each in self.survey.get("census", ())):
                raise ValueError("its census is none")
            list(survey_lines(self.survey))  # whatever else is said of it can be said

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        place = self.folder / "documents.jsonl"
        with intact(place, READ_ANEW):
            entries = read_json_lines(place, LARGEST_DOCUMENTS)
            for number, entry in enumerate(entries, 1):
                self._check(entry, number)
        return entries

    def _check(self, entry: Any, number: int) -> None:
        """Raises ValueError for an entry that `gather` does not write, by the number of its line."""
        parts = [entry] if "captions" in entry else entry["segments"]
        sound = isinstance(entry["held_out"], bool) and all(isinstance(part, dict) for part in parts)
        sound &= type(entry["source"]) is int and 0 <= entry["source"] < len(self.survey["sources"])
        if "captions" in entry:
            words = entry["captions"]
            sound &= isinstance(words, list) and bool(words) and "picture" in entry
            sound &= all(isinstance(each, str) for each in words) and isinstance(entry["mirrors"], bool)
        else:
            sound &= all(isinstance(part.get("text", ""), str) for part in parts)
        count = self.survey["pictures"]
        numbers = pictures_in(entry) if sound else []
        sound &= all(type(each) is int and 0 <= each < count for each in numbers)
        if not sound:
            raise ValueError(f"line {number} is no entry of {count} pictures: {str(entry)[:60]!r}")

    @cached_property
    def pixels(self) -> np.ndarray:
        """Pictures x span x span x 3 bytes, on disk."""
        span, count = self.survey["span"], self.survey["pictures"]
        if not count:
            return np.empty((0, span, span, 3), np.uint8)
        place, shape = self.folder / "pictures.bin", (count, span, span, 3)
        with intact(place, READ_ANEW):
            size = require_regular(place).stat().st_size
            if size != math.prod(shape):
                raise ValueError(
                    f"{count} pictures of {span} pixels take {math.prod(shape):,} bytes, and it has {size:,}"
                )
            return np.memmap(place, np.uint8, "r", shape=shape)

    def part(self, held_out: bool = False) -> list[dict[str, Any]]:
        """The entries of one side of the split."""
        return [entry for entry in self.entries if entry["held_out"] == held_out]

    def pairs(self, held_out: bool = False) -> list[dict[str, Any]]:
        return [entry for entry in self.part(held_out) if "captions" in entry]

    @cached_property
    def trained(self) -> list[int]:
        """The numbers of the pictures that are trained on."""
        return self.pictures_of()

    @cached_property
    def mirrors(self) -> dict[int, bool]:
        """Whether a picture, by its number, may be mirrored."""
        return {entry["picture"]: entry["mirrors"] for entry in self.entries if "captions" in entry}

    def pictures_of(self, held_out: bool = False) -> list[int]:
        """The numbers of the pictures on one side of the split."""
        numbers = {number for entry in self.part(held_out) for number in pictures_in(entry)}
        return sorted(numbers)

    @property
    def texts(self) -> list[str]:
        """All words that are trained on."""
        captions = [text for entry in self.pairs() for text in entry["captions"]]
        return captions + [
            part["text"] for entry in self.part() for part in entry.get("segments", ()) if "text" in part
        ]


def pictures_in(entry: dict[str, Any]) -> list[int]:
    return (
        [entry["picture"]]
        if "captions" in entry
        else [each["picture"] for each in entry["segments"] if "picture" in each]
    )


def gather(
    sources: Sequence[DataSource],
    folder: Path | str,
    side: int,
    *,
    seed: int = 0,
    anew: bool = False,
    progress: Callable[[int], object] = lambda count: None,
) -> GatheredData:
    """Reads all sources into a new folder, pictures as squares of `SPARE` times `side` pixels.

    Pictures of equal pixels are one, with all their captions, so that none is trained on and held out. A folder that
    was gathered from the same sources is taken as it is, one of others read `anew` where that is asked for. `progress`
    gets the number of documents read. Raises ValueError where nothing can be read, and for a folder of other sources.
    """
    folder = Path(folder)
    about = [{"path": str(each.path.resolve()), "kind": each.kind, "weight": each.weight} for each in sources]
    if (folder / "survey.json").is_file():
        gathered = GatheredData(folder)
        same = gathered.survey["sources"] == about and gathered.survey["side"] == side
        if same:
            return gathered
        if not anew:
            paths = ", ".join(each["path"] for each in gathered.survey["sources"])
            raise ValueError(
                f"{folder.parent} was begun with other data ({paths}, {gathered.survey['side']} pixels): give this "
                "training another folder."
            )
    started, span = time.monotonic(), round(SPARE * side)
    entries, numbers, sides, skips = list[dict[str, Any]](), dict[str, int](), list[int](), list[Skipped]()
    by_picture: dict[int, dict[str, Any]] = {}
    with whole_folder(folder, GATHERED) as hidden:
        with (hidden / "pictures.bin").open("wb") as file:

            def number_of(picture: PIL.Image.Image) -> int:
                square = np.asarray(CentreCrop(span).picture(picture), np.uint8).tobytes()
                mark = hashlib.sha256(square).hexdigest()
                if mark not in numbers:
                    numbers[mark] = len(numbers)
                    sides.append(picture.info.get(WRITTEN_SHORTEST, min(picture.size)))
                    file.write(square)
                return numbers[mark]

            count = 0
            for place, source in enumerate(sources):
                for document in source.documents(span):
                    count += 1
                    progress(count)
                    if isinstance(document, Skipped):
                        skips.append(document)
                        continue
                    try:
                        _require_learnable(document)
                        if is_pair(document):
                            number, words = number_of(document.pictures[0]), document.text.strip()
                            if number not in by_picture:
                                by_picture[number] = {"captions": [words], "picture": number, "source": place}
                                entries.append(by_picture[number])
                            elif words not in by_picture[number]["captions"]:
                                by_picture[number]["captions"].append(words)
                        else:
                            parts = [_plain_part(part, number_of) for part in document]
                            entries.append({"segments": parts, "source": place})
                    except (ValueError, OSError) as error:
                        skips.append(Skipped(f"document {count}", reason_of(error)))
        if not entries:
            why = f" The first that was skipped: {skips[0].name}: {skips[0].reason}" if skips else ""
            raise ValueError(f"{', '.join(str(each.path) for each in sources)} holds nothing to learn from.{why}")
        _hold_out(entries, seed)
        for entry in entries:
            if "captions" in entry:
                entry["mirrors"] = not any(SIDED.search(text) for text in entry["captions"])
        survey = _survey(entries, sides, skips) | {
            "sources": about, "census": [each.census() for each in sources],
            "side": side, "span": span, "pictures": len(numbers),
            "seconds": round(time.monotonic() - started, 2),
        }  # fmt: skip
        lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
        (hidden / "documents.jsonl").write_text("".join(lines), encoding="utf-8")
        (hidden / "skipped.jsonl").write_text("".join(json.dumps(each) + "\n" for each in skips), encoding="utf-8")
        (hidden / "survey.json").write_text(json.dumps(survey, indent=2) + "\n", encoding="utf-8")
    return GatheredData(folder)


def _require_learnable(document: Document) -> None:
    """Raises ValueError for a document with holes that only `lab.infill` fills, and for halves of characters."""
    if any(isinstance(part, Blank) or (isinstance(part, Image) and part.mask is not None) for part in document):
        raise ValueError("it has a blank or a mask, which lab.infill fills and no training learns")
    try:
        document.text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"its text holds half a character, {error.object[error.start]!r}") from error


def _plain_part(part: Any, number_of: Callable[[PIL.Image.Image], int]) -> dict[str, Any]:
    learn = {} if part.learn else {"learn": False}
    if isinstance(part, Image):
        return {"picture": number_of(part.picture), **learn}
    return {"end_turn": True, **learn} if isinstance(part, EndTurn) else {"text": part.text, **learn}


def _hold_out(entries: list[dict[str, Any]], seed: int) -> None:
    """Marks a part of the pairs, and of the other documents where there are many, whose pictures nobody else shows."""
    shows = Counter(number for entry in entries for number in set(pictures_in(entry)))
    rng = np.random.default_rng([seed, 9])
    for entry in entries:
        entry["held_out"] = False
    for pairs in (True, False):
        members = [entry for entry in entries if ("captions" in entry) == pairs]
        alone = [entry for entry in members if all(shows[number] == 1 for number in pictures_in(entry))]
        count = min(MOST_HELD_OUT, max(round(HELD_OUT_SHARE * len(members)), int(len(members) >= 8)))
        for place in rng.permutation(len(alone))[: count if pairs or len(members) >= 40 else 0]:
            alone[place]["held_out"] = True


def _survey(entries: list[dict[str, Any]], shortest: list[int], skips: list[Skipped]) -> dict[str, Any]:
    captions = [text for entry in entries for text in entry.get("captions", ())]
    texts = captions + [part["text"] for entry in entries for part in entry.get("segments", ()) if "text" in part]
    letters = Counter(unicodedata.name(letter, "?").split()[0] for text in texts for letter in text if letter.isalpha())
    total = max(1, sum(letters.values()))
    trained = {text for entry in entries if not entry["held_out"] for text in entry.get("captions", ())}
    apart = [entry["captions"] for entry in entries if entry["held_out"] and "captions" in entry]
    sides = np.array(shortest or [0])
    reasons = Counter(re.sub(r"\S*/\S*|\d[\d,.]*", "…", skip.reason)[:100] for skip in skips)
    return {
        "documents": len(entries),
        "pairs": sum("captions" in entry for entry in entries),
        "held_out": sum(entry["held_out"] for entry in entries),
        "held_out_pairs": len(apart),
        "held_out_words_seen": sum(any(text in trained for text in each) for each in apart),
        "captions": len(set(captions)),
        "conversations": sum(any("end_turn" in part for part in entry.get("segments", ())) for entry in entries),
        "mirrored": sum(entry.get("mirrors", False) for entry in entries),
        "words": len({word for text in texts for word in text.casefold().split()}),
        "letters": len({letter for text in texts for letter in text}),
        "scripts": {script.lower(): round(number / total, 3) for script, number in letters.most_common(5)},
        "shortest_side": {"least": int(sides.min()), "median": int(np.median(sides)), "most": int(sides.max())},
        "skipped": len(skips),
        "reasons": dict(reasons.most_common(8)),
    }


def survey_lines(survey: dict[str, Any]) -> Iterator[str]:
    """What was seen, in sentences."""
    others = survey["documents"] - survey["pairs"]
    kinds = [f"{survey['pairs']:,} captioned pictures"] * bool(survey["pairs"])
    kinds += [f"{others:,} other documents ({survey['conversations']:,} conversations)"] * bool(others)
    yield f"Data: {' and '.join(kinds)}, read in {survey['seconds']:.1f} s."
    if survey["pictures"]:
        sides = survey["shortest_side"]
        yield (
            f"Pictures: {survey['pictures']:,} different ones, shortest sides {sides['least']} to {sides['most']} "
            f"pixels (median {sides['median']}); they are learned at {survey['side']}."
        )
    scripts = ", ".join(f"{script} {share:.0%}" for script, share in survey["scripts"].items())
    yield f"Words: {survey['captions']:,} different captions, {survey['words']:,} different words; letters: {scripts}."
    if survey["held_out"]:
        yield (
            f"Held out: {survey['held_out']:,} documents, never trained on; of its {survey['held_out_pairs']} pictures "
            f"{survey['held_out_words_seen']} have a caption that is also trained on, with another picture."
        )
    if survey["pairs"]:
        yield (
            f"Mirrored at random: {survey['mirrored']:,} of {survey['pairs']:,} pictures; the captions of the others "
            "speak of sides, letters or numbers."
        )
    for reason, count in survey["reasons"].items():
        yield f"Skipped {count:,}: {reason}"
