"""The files in a folder of shards: their layout, their writing, and the check that a folder is whole.

```
card.json           counts, tokenizers, vocabulary; sizes and sha256 of all other files
tokens-00000.bin    tokens, two bytes each
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
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_lab.corpora.packing import TokenizedDocument
from chameleon_lab.corpora.readers import Skipped
from chameleon_lab.files import intact, read_table
from chameleon_lab.vocabulary import Vocabulary

log = logging.getLogger(__name__)

SHARDS_FORMAT, SHARDS_VERSION = "chameleon-lab shards", 1
TOKEN, FLAGS, INDEX = np.dtype("<u2"), np.dtype("u1"), np.dtype([("end", "<i8"), ("kind", "u1")])
SHARD_PARTS = ("tokens", "learn", "index")
SKIPPED = "skipped.jsonl"


def file_name(part: str, number: int) -> str:
    """The file of one of `SHARD_PARTS` of the shard with this number."""
    return f"{part}-{number:05d}.bin"


def read_card(folder: Path) -> tuple[dict[str, Any], Vocabulary]:
    """The card of a folder of shards, and the vocabulary in it."""
    path = folder / "card.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no shards: there is no card.json, which is written last. "
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
            sizes = {"tokens": 2 * tokens, "learn": (tokens + 7) // 8, "index": INDEX.itemsize * documents}
            if any(card["files"][file_name(name, number)]["bytes"] != size for name, size in sizes.items()):
                raise ValueError(f"its sizes and counts of shard {number} contradict each other")
        names = {file_name(part, number) for part in SHARD_PARTS for number in range(len(card["shards"]))}
        if any(type(each["bytes"]) is not int or len(each["sha256"]) != 64 for each in card["files"].values()):
            raise ValueError("it says no sizes and sums of its files")
        if not card["shards"] or set(card["files"]) != names | {SKIPPED}:
            raise ValueError("it names other files than its shards have")
        return card | {"tokens": int(card["tokens"]), "tokenizers": dict(card["tokenizers"])}, vocabulary


class Writer:
    """Writes shards one after another into a folder, and the card last."""

    def __init__(self, folder: Path, shard_tokens: int) -> None:
        self.folder, self.shard_tokens = folder, shard_tokens
        self.documents = self.skipped = 0
        self.reason = ""
        self._shards, self._checksums = list[dict[str, int]](), dict[str, dict[str, Any]]()
        self._skips = _File(folder / SKIPPED)
        self._files: dict[str, _File] = {}
        self._end = self._in_shard = 0
        self._flags = np.empty(0, bool)

    def add(self, document: TokenizedDocument, kind: int) -> None:
        if not self._files:
            number = len(self._shards)
            self._files = {name: _File(self.folder / file_name(name, number)) for name in SHARD_PARTS}
        self._end += len(document.tokens)
        self._files["tokens"].write(document.tokens.astype(TOKEN).tobytes())
        self._files["index"].write(np.array((self._end, kind), INDEX).tobytes())
        flags = np.concatenate([self._flags, document.learn])
        whole = len(flags) // 8 * 8
        self._files["learn"].write(np.packbits(flags[:whole]).tobytes())
        self._flags = flags[whole:]
        self.documents, self._in_shard = self.documents + 1, self._in_shard + 1
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

    def finish(self, card: dict[str, Any]) -> None:
        self._end_shard()
        self._checksums[SKIPPED] = self._skips.close()
        card |= {
            "format": SHARDS_FORMAT,
            "version": SHARDS_VERSION,
            "documents": self.documents,
            "tokens": sum(shard["tokens"] for shard in self._shards),
            "skipped": self.skipped,
            "shards": self._shards,
            "files": self._checksums,
        }
        (self.folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")

    def close(self) -> None:
        for file in (self._skips, *self._files.values()):
            file.close()

    def _end_shard(self) -> None:
        if not self._files:
            return
        self._files["learn"].write(np.packbits(self._flags).tobytes())
        self._checksums |= {file_name(name, len(self._shards)): file.close() for name, file in self._files.items()}
        self._shards.append({"documents": self._in_shard, "tokens": self._end})
        self._files, self._end, self._in_shard, self._flags = {}, 0, 0, np.empty(0, bool)


class _File:
    """A file being written, its size and sha256 on the way."""

    def __init__(self, path: Path) -> None:
        self._file, self._digest, self._bytes = path.open("wb"), hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)

    def close(self) -> dict[str, Any]:
        self._file.close()
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}
