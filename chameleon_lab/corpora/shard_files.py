"""The files in a folder of shards: their layout, their writing, and the check that a folder is whole.

```
card.json           counts, tokenizers, vocabulary; sizes and sha256 of all other files
tokens-00000.bin    tokens, two bytes each, or four where the vocabulary has more than 65,536
learn-00000.bin     their learn flags, one bit each
index-00000.bin     for each document where it ends, and its kind
tokens-00001.bin    ... the next shard
skipped.jsonl       documents left out, and why
```
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_lab.corpora.packing import TokenizedDocument
from chameleon_lab.corpora.readers import Skipped
from chameleon_lab.files import LARGEST_JSON, absence, intact, read_table, require_place, require_regular
from chameleon_lab.storage import write_file
from chameleon_lab.vocabulary import Vocabulary, id_dtype

log = logging.getLogger(__name__)

SHARDS_FORMAT, SHARDS_VERSION = "chameleon-lab shards", 2
"""Version 2 has tokens of four bytes; where two do, version 1 is written, which older labs read."""

FLAGS, INDEX = np.dtype("u1"), np.dtype([("end", "<i8"), ("kind", "u1")])
SHARD_PARTS = ("tokens", "learn", "index")
SKIPPED, PROGRESS = "skipped.jsonl", "progress.json"


DOCUMENT_KINDS = ("text", "pair", "interleaved", "conversation")
"""Kinds of documents; the index holds a place in this tuple."""


def file_name(part: str, number: int) -> str:
    """The file of one of `SHARD_PARTS` of the shard with this number."""
    return f"{part}-{number:05d}.bin"


def read_card(folder: Path) -> tuple[dict[str, Any], Vocabulary]:
    """The card of a folder of shards, and the vocabulary in it."""
    path = folder / "card.json"
    if fault := absence(path):
        raise ValueError(
            f"{folder} holds no shards: its card.json {fault}, which is written last. "
            "Write them with `chameleon-lab tokenize`."
        )
    with intact(path, "Copy the corpus again, or write it anew."):
        card = read_table(path)
        if card["format"] != SHARDS_FORMAT or card["version"] > SHARDS_VERSION:
            ours = f"{SHARDS_FORMAT} {SHARDS_VERSION}"
            raise ValueError(f"it is of {card['format']} {card['version']}, and this lab reads {ours}")
        plain = card["vocabulary"]
        vocabulary = Vocabulary(**plain | {"permutation": tuple(plain["permutation"])})
        for number, shard in enumerate(card["shards"]):
            tokens, documents = shard["tokens"], shard["documents"]
            sizes = {
                "tokens": id_dtype(vocabulary.size).itemsize * tokens,
                "learn": (tokens + 7) // 8,
                "index": INDEX.itemsize * documents,
            }
            if any(card["files"][file_name(name, number)]["bytes"] != size for name, size in sizes.items()):
                raise ValueError(f"its sizes and counts of shard {number} contradict each other")
        names = {file_name(part, number) for part in SHARD_PARTS for number in range(len(card["shards"]))}
        if any(type(each["bytes"]) is not int or len(each["sha256"]) != 64 for each in card["files"].values()):
            raise ValueError("it says no sizes and sums of its files")
        if not card["shards"] or set(card["files"]) != names | {SKIPPED}:
            raise ValueError("it names other files than its shards have")
        return card | {"tokens": int(card["tokens"]), "tokenizers": dict(card["tokenizers"])}, vocabulary


class Writer:
    """Writes shards of a vocabulary's tokens one after another into a folder, and the card last.

    What it has written up to a `mark` can be gone on with, byte by byte, by a `Writer` that is given the mark.
    """

    def __init__(
        self, folder: Path, vocabulary: Vocabulary, shard_tokens: int, mark: Mapping[str, Any] | None = None
    ) -> None:
        mark = mark or {}
        self.folder, self.shard_tokens, self._kind = folder, shard_tokens, id_dtype(vocabulary.size)
        self.documents, self.skipped, self.reason = (mark.get(name, 0) for name in ("documents", "skipped", "reason"))
        self.kinds = Counter[str](mark.get("kinds", {}))
        self._shards: list[dict[str, int]] = list(mark.get("shards", []))
        self._checksums: dict[str, dict[str, Any]] = dict(mark.get("checksums", {}))
        self._end, self._in_shard = mark.get("end", 0), mark.get("in_shard", 0)
        self._flags = np.array(mark.get("flags", []), bool)
        sizes = dict(mark.get("sizes", {}))
        paths = {part: folder / (SKIPPED if part == "skips" else self._name(part)) for part in sizes}
        for part, path in paths.items():
            if sizes[part] and (not path.is_file() or path.stat().st_size < sizes[part]):
                raise ValueError(f"{path} is shorter than it was")
        for name, written in self._checksums.items():  # of the shards that are whole
            with require_regular(folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != written["sha256"]:
                    raise ValueError(f"{folder / name} has changed since it was written")
        self._skips = _File(folder / SKIPPED, sizes.get("skips", 0))
        self._files = {part: _File(paths[part], sizes[part]) for part in SHARD_PARTS if part in sizes}
        for part, digest in dict(mark.get("digests", {})).items():
            if (self._skips if part == "skips" else self._files[part]).digest != digest:
                self.close()
                raise ValueError(f"{paths[part]} has changed since it was written")

    def add(self, document: TokenizedDocument, kind: str) -> None:
        if not self._files:
            self._files = {part: _File(self.folder / self._name(part)) for part in SHARD_PARTS}
        self._end += len(document.tokens)
        self._files["tokens"].write(document.tokens.astype(self._kind).tobytes())
        self._files["index"].write(np.array((self._end, DOCUMENT_KINDS.index(kind)), INDEX).tobytes())
        flags = np.concatenate([self._flags, document.learn])
        whole = len(flags) // 8 * 8
        self._files["learn"].write(np.packbits(flags[:whole]).tobytes())
        self._flags = flags[whole:]
        self.documents, self._in_shard = self.documents + 1, self._in_shard + 1
        self.kinds[kind] += 1
        if self._end >= self.shard_tokens:
            self._end_shard()

    def skip(self, skipped: Skipped) -> None:
        self.skipped += 1
        self.reason = self.reason or f"{skipped.name}: {skipped.reason}"
        if self.skipped <= 20:
            log.warning("Skipped %s: %s", skipped.name, skipped.reason)
        elif self.skipped == 21:
            log.warning("Further skipped documents are listed in skipped.jsonl only.")
        self._skips.write((json.dumps(skipped, ensure_ascii=True) + "\n").encode())

    def mark(self) -> dict[str, Any]:
        """How far it is, as plain values."""
        return {
            "documents": self.documents,
            "skipped": self.skipped,
            "reason": self.reason,
            "kinds": dict(self.kinds),
            "shards": list(self._shards),
            "checksums": dict(self._checksums),
            "end": self._end,
            "in_shard": self._in_shard,
            "flags": self._flags.astype(int).tolist(),
            "sizes": {"skips": self._skips.size} | {part: file.size for part, file in self._files.items()},
            "digests": {"skips": self._skips.digest} | {part: file.digest for part, file in self._files.items()},
        }

    def save(self, progress: Mapping[str, Any]) -> None:
        """Writes a mark, and what belongs to it, once all that it counts is on the disk."""
        for file in (self._skips, *self._files.values()):
            file.sync()
        text = json.dumps(progress)
        write_file(self.folder / PROGRESS, json.dumps({**progress, "sum": _sum(text)}) + "\n")

    def finish(self, card: dict[str, Any]) -> None:
        self._end_shard()
        self._checksums[SKIPPED] = self._skips.close()
        card |= {
            "format": SHARDS_FORMAT,
            "version": 1 if self._kind.itemsize == 2 else SHARDS_VERSION,
            "documents": self.documents,
            "tokens": sum(shard["tokens"] for shard in self._shards),
            "skipped": self.skipped,
            "shards": self._shards,
            "files": self._checksums,
        }
        write_file(self.folder / "card.json", json.dumps(card, indent=2) + "\n")
        (self.folder / PROGRESS).unlink(missing_ok=True)

    def close(self) -> None:
        for file in (self._skips, *self._files.values()):
            file.close()

    def _name(self, part: str) -> str:
        return file_name(part, len(self._shards))

    def _end_shard(self) -> None:
        if not self._files:
            return
        self._files["learn"].write(np.packbits(self._flags).tobytes())
        self._checksums |= {self._name(part): file.close() for part, file in self._files.items()}
        self._shards.append({"documents": self._in_shard, "tokens": self._end})
        self._files, self._end, self._in_shard, self._flags = {}, 0, 0, np.empty(0, bool)


class _File:
    """A file being written, its size and sha256 on the way; one begun earlier is cut to the size that it had."""

    def __init__(self, path: Path, size: int = 0) -> None:
        self.size, self._digest = size, hashlib.sha256()
        self._file = require_place(path).open("r+b" if size else "wb")
        self._file.truncate(size)
        while data := self._file.read(2**24) if size else b"":
            self._digest.update(data)

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> dict[str, Any]:
        self._file.close()
        return {"bytes": self.size, "sha256": self._digest.hexdigest()}


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_progress(folder: Path, begun: Mapping[str, Any]) -> dict[str, Any]:
    """What was saved in a folder whose writing ended early; empty where nothing was.

    Raises ValueError where what was begun there is not this.
    """
    path = folder / PROGRESS
    if not path.is_file():
        return {}
    remedy = f"Delete {folder} to begin anew."
    with intact(path, remedy):
        progress = read_table(path, LARGEST_JSON, remedy)
        if progress.pop("sum", None) != _sum(json.dumps(progress)):
            raise ValueError("it is not as it was written, or of an earlier version")
        differing = [name for name in begun if progress["begun"].get(name) != begun[name]]
    if differing:
        raise ValueError(f"{folder} was begun with another {' and another '.join(differing)}. {remedy}")
    return progress
