"""Shards: a corpus tokenized once, in a folder of files that training maps into memory instead of reading."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

import numpy as np

from chameleon_lab.corpora.packing import TokenizedDocument
from chameleon_lab.corpora.readers import Reader, Skipped
from chameleon_lab.corpora.shard_files import (
    DOCUMENT_KINDS,
    FLAGS,
    INDEX,
    PROGRESS,
    SKIPPED,
    Writer,
    file_name,
    read_card,
    read_progress,
)
from chameleon_lab.corpora.tokenization import Done, tokenized_batches
from chameleon_lab.files import intact, read_json_lines
from chameleon_lab.storage import resumable_folder, whole_folder
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import SentencePieceTokenizer, TextTokenizer
from chameleon_lab.vocabulary import Vocabulary, id_dtype

SAVE_EVERY = 10.0
"""Seconds between two marks of a writing that can be gone on with."""


def write_shards(
    folder: Path | str,
    documents: Reader,
    tokenizer: MixedModalTokenizer,
    *,
    shard_tokens: int = 2**28,
    about: Mapping[str, Any] | None = None,
    processes: int = 0,
    resumable: bool = False,
    report: Callable[[int], None] = lambda read: None,
) -> Shards:
    """Tokenizes documents into a new folder of shards, each of at least `shard_tokens` tokens but the last.

    All or nothing: an interrupted call leaves no folder, at worst a hidden one that the next call removes; where it is
    `resumable` it leaves FOLDER.partial, and the next call goes on from its last mark to the same bytes (the documents
    up to there are read again, and not tokenized). At most a few hundred documents a process are in memory. Other
    `processes` tokenize where there are any, this one only reads. A document that the tokenizer refuses, an empty one,
    and one without a token to learn is skipped like those that the reader skips: `skipped.jsonl` says why. `about` goes
    into the card; `report` is told how many entries were read and are done.

    Raises ValueError when no document is left, when the folder is taken (a corpus is never overwritten), and when what
    was begun is not what is asked for now.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is taken: write into a new or empty folder, or delete it first.")
    about = dict(about or {})
    identity = {
        "grid": list(tokenizer.grid),
        "tokenizers": identities(tokenizer),
        "vocabulary": asdict(tokenizer.vocabulary),
    }
    begun = json.loads(json.dumps({**about, **identity, "shard_tokens": shard_tokens})) if resumable else {}
    with (resumable_folder if resumable else whole_folder)(folder) as partial:
        progress = read_progress(partial, begun) if resumable else {}
        with intact(partial / PROGRESS, f"Delete {partial} to begin anew."):
            done = Done(*progress.get("done", ()))
            writer = Writer(partial, tokenizer.vocabulary, shard_tokens, progress.get("mark"))
        with closing(writer):
            progress, last = {"begun": begun, "done": done, "mark": writer.mark()}, time.monotonic()
            with closing(tokenized_batches(documents, tokenizer, processes, done)) as batches:
                try:
                    for done, entries in batches:
                        for entry in entries:
                            if isinstance(entry, Skipped):
                                writer.skip(entry)
                            else:
                                writer.add(*entry)
                        progress |= {"done": done, "mark": writer.mark()}
                        report(done.read)
                        if resumable and time.monotonic() - last > SAVE_EVERY:
                            writer.save(progress)
                            last = time.monotonic()
                except BaseException:
                    if resumable:
                        writer.save(progress)
                    raise
            if not writer.documents:
                lost = f"; skipped were {writer.skipped}, the first for this: {writer.reason}" if writer.skipped else ""
                raise ValueError(f"There is nothing to write into {folder}: the corpus is empty{lost}.")
            writer.finish({**about, "kinds": dict(writer.kinds), **identity})
    return Shards(folder)


class Shards(Sequence[TokenizedDocument]):
    """The tokenized documents in a folder, by number: `shards[i]` reads one of them from disk.

    Raises ValueError, saying which file and what to do, when the folder is no whole corpus.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.card, self.vocabulary = read_card(self.folder)
        for name, checksum in self.card["files"].items():
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != checksum["bytes"]:
                fault = "is missing" if size is None else f"has {size:,} bytes instead of {checksum['bytes']:,}"
                raise ValueError(f"{path} {fault}: the corpus is damaged. Copy it again, or write it anew.")
        numbers = range(len(self.card["shards"]))
        self._tokens = [self._map("tokens", number, id_dtype(self.vocabulary.size)) for number in numbers]
        self._learn = [self._map("learn", number, FLAGS) for number in numbers]
        index = [self._map("index", number, INDEX) for number in numbers]
        self._ends, self._kinds = [each["end"] for each in index], [each["kind"] for each in index]
        self._firsts = np.cumsum([0, *(len(ends) for ends in self._ends)])

    def __reduce__(self) -> tuple[type[Shards], tuple[Path]]:
        return Shards, (self.folder,)  # another process maps the files itself

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @property
    def tokens(self) -> int:
        """How many tokens there are in all."""
        return self.card["tokens"]

    @property
    def tokenizers(self) -> dict[str, str]:
        """The fingerprints of the tokenizers that made these tokens, as `identities` gives them."""
        return self.card["tokenizers"]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document: int64."""
        return np.concatenate([np.diff(ends, prepend=0) for ends in self._ends])

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The documents that `write_shards` left out."""
        with intact(self.folder / SKIPPED, "Copy the corpus again, or write it anew."):
            return tuple(Skipped(*each) for each in read_json_lines(self.folder / SKIPPED))

    def kind(self, index: int) -> str:
        """Which of `DOCUMENT_KINDS` a document is."""
        shard, place = self._place(index)
        kind = int(self._kinds[shard][place])
        if kind >= len(DOCUMENT_KINDS):
            raise ValueError(f"Document {index} of {self.folder} is damaged. Copy it again, or write the corpus anew.")
        return DOCUMENT_KINDS[kind]

    @overload
    def __getitem__(self, index: int) -> TokenizedDocument: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedDocument]: ...
    def __getitem__(self, index: int | slice) -> TokenizedDocument | list[TokenizedDocument]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        shard, place = self._place(index)
        ends = self._ends[shard]
        start, stop = int(ends[place - 1]) if place else 0, int(ends[place])
        tokens = self._tokens[shard][max(start, 0) : stop].astype(np.int64)
        if not 0 <= start < stop <= len(self._tokens[shard]) or tokens.max() >= self.vocabulary.size:
            raise ValueError(f"Document {index} of {self.folder} is damaged. Copy it again, or write the corpus anew.")
        bits = np.unpackbits(self._learn[shard][start // 8 : (stop + 7) // 8])
        return TokenizedDocument(tokens, bits[start % 8 : start % 8 + stop - start].astype(bool))

    def require(self, vocabulary: Vocabulary) -> None:
        """Raises ValueError, naming what differs, unless these tokens are of this vocabulary."""
        ours, theirs = asdict(self.vocabulary), asdict(vocabulary)
        differing = [name for name in ours if ours[name] != theirs[name]]
        if differing:
            differences = ", ".join(
                name if name == "permutation" else f"{name} {ours[name]} instead of {theirs[name]}"
                for name in differing
            )
            raise ValueError(
                f"{self.folder} was written for another vocabulary ({differences}): tokenize the corpus for this one."
            )

    def require_tokenizer(self, tokenizer: MixedModalTokenizer) -> None:
        """Raises ValueError unless this tokenizer, or one with the same fingerprints, wrote these tokens."""
        self.require(tokenizer.vocabulary)
        now = identities(tokenizer)
        differing = [part for part in now if self.tokenizers.get(part) != now[part]]
        if differing:
            raise ValueError(
                f"{self.folder} was written with another {' and another '.join(differing)} tokenizer, whose tokens "
                "mean something else: tokenize the corpus with this one."
            )

    def verify(self) -> None:
        """Reads everything and raises ValueError, naming the file, when a byte is not what was written."""
        for name, checksum in self.card["files"].items():
            with (self.folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != checksum["sha256"]:
                    raise ValueError(
                        f"{self.folder / name} has changed since it was written. Copy it again, or write it anew."
                    )

    def _place(self, index: int) -> tuple[int, int]:
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"There is no document {index}: {self.folder} holds {len(self)}.")
        shard = int(np.searchsorted(self._firsts, number, "right")) - 1
        return shard, number - int(self._firsts[shard])

    def _map(self, part: str, number: int, kind: np.dtype) -> np.ndarray:
        return np.asarray(np.memmap(self.folder / file_name(part, number), kind, "r"))  # slices of it are quicker


def identities(tokenizer: MixedModalTokenizer) -> dict[str, str]:
    """A fingerprint of each tokenizer: sha256 of what decides its tokens.

    For sentencepiece its model; for the image tokenizer the weights of its encoding half, rounded to the float16 in
    which models are saved; for other text tokenizers how they cut a few lines, which is no proof of sameness.
    """
    text = _text_identity(tokenizer.text) if tokenizer.can_spell else "none"
    return {"text": text, "image": _image_identity(tokenizer.image) if tokenizer.can_read else "none"}


PROBES = ("", "a large red circle left of a small blue square", "x = [0, 12, 345]  # three", "naïve Grüße")


def _text_identity(text: TextTokenizer) -> str:
    if isinstance(text, SentencePieceTokenizer):
        return hashlib.sha256(text.model).hexdigest()
    cut: list[object] = [text.size]
    for probe in PROBES:
        try:
            cut.append(text.encode(probe))
        except (ValueError, KeyError):  # a tokenizer of few letters
            cut.append(None)
    return hashlib.sha256(repr(cut).encode()).hexdigest()


def _image_identity(image: ImageTokenizer) -> str:
    digest = hashlib.sha256(f"{image.config.side} {image.config.grid}".encode())
    for name, tensor in sorted(image.state_dict().items()):
        if not name.startswith(("decoder.", "post_quant_conv.")):
            plain = tensor.detach().cpu()
            digest.update(name.encode() + (plain.half() if plain.is_floating_point() else plain).numpy().tobytes())
    return digest.hexdigest()
