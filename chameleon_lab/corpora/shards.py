"""Shards: a corpus tokenized once, in a folder of files that training maps into memory instead of reading."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from chameleon_lab.corpora.packing import TokenizedDocument, tokenize
from chameleon_lab.corpora.readers import Reader, Skipped, is_pair
from chameleon_lab.corpora.shard_files import FLAGS, INDEX, SKIPPED, TOKEN, Writer, file_name, read_card
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.files import intact, read_json_lines, reason_of
from chameleon_lab.storage import whole_folder
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import SentencePieceTokenizer, TextTokenizer
from chameleon_lab.vocabulary import Vocabulary

DOCUMENT_KINDS = ("text", "pair", "interleaved", "conversation")
"""Kinds of documents; the index holds a place in this tuple."""


BAD_DOCUMENT = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, OSError)
"""What a document whose parts are of wrong types may raise, wherever it is used; not what a machine's faults raise."""


def document_kind(document: Document) -> str:
    """Which of `DOCUMENT_KINDS`: turns make a conversation, one text with one image a pair."""
    kinds = {type(segment) for segment in document}
    if EndTurn in kinds:
        return "conversation"
    return "text" if Image not in kinds else "pair" if is_pair(document) else "interleaved"


def write_shards(
    folder: Path | str,
    documents: Reader,
    tokenizer: MixedModalTokenizer,
    *,
    shard_tokens: int = 2**28,
    about: Mapping[str, Any] | None = None,
) -> Shards:
    """Tokenizes documents into a new folder of shards, each of at least `shard_tokens` tokens but the last.

    All or nothing: an interrupted call leaves no folder, at worst a hidden one that the next call removes. At most a
    few hundred documents are in memory. A document that the tokenizer refuses, an empty one, and one without a token to
    learn is skipped like those that the reader skips: `skipped.jsonl` says why. `about` goes into the card.

    Raises ValueError when the vocabulary is too large for two bytes, when no document is left, and when the folder is
    taken: a corpus is never overwritten.
    """
    folder = Path(folder)
    if tokenizer.vocabulary.size > 2**16:
        raise ValueError(
            f"Shards hold tokens in two bytes, up to id 65,535; this vocabulary has {tokenizer.vocabulary.size:,}."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is taken: write into a new or empty folder, or delete it first.")
    with whole_folder(folder) as hidden, closing(Writer(hidden, shard_tokens)) as writer:
        kinds = Counter[str]()
        for entry in tokenized_documents(documents, tokenizer):
            if isinstance(entry, Skipped):
                writer.skip(entry)
            else:
                document, kind = entry
                writer.add(document, DOCUMENT_KINDS.index(kind))
                kinds[kind] += 1
        if not kinds:
            skips = f"; skipped were {writer.skipped}, the first for this: {writer.reason}" if writer.skipped else ""
            raise ValueError(f"There is nothing to write into {folder}: the corpus is empty{skips}.")
        card = {"kinds": dict(kinds), "grid": list(tokenizer.grid), "tokenizers": identities(tokenizer)}
        writer.finish(dict(about or {}) | card | {"vocabulary": asdict(tokenizer.vocabulary)})
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
        self._tokens = [self._map("tokens", number, TOKEN) for number in numbers]
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


def tokenized_documents(
    documents: Reader, tokenizer: MixedModalTokenizer
) -> Iterator[tuple[TokenizedDocument, str] | Skipped]:
    """Each document's tokens and kind, or why it is skipped; 256 documents or 64 pictures are tokenized at once.

    Order is kept, except that a skipped document may come before its neighbours.
    """
    waiting: list[tuple[str, Document]] = []
    number = pictures = 0
    for document in documents:
        if isinstance(document, Skipped):
            yield document
            continue
        number += 1
        try:
            waiting.append((f"document {number}", _prepared(document, tokenizer)))
        except BAD_DOCUMENT as error:
            yield Skipped(f"document {number}", reason_of(error))
            continue
        pictures += len(document.pictures)
        if len(waiting) >= 256 or pictures >= 64:
            yield from _tokenize_waiting(waiting, tokenizer)
            waiting, pictures = [], 0
    yield from _tokenize_waiting(waiting, tokenizer)


def _prepared(document: Document, tokenizer: MixedModalTokenizer) -> Document:
    """The document with its pictures as small as the tokenizer will see them."""
    return Document(
        tuple(
            replace(segment, picture=tokenizer.image.prepare(segment.picture))
            if isinstance(segment, Image) and segment.codes is None
            else segment
            for segment in document
        )
    )


def _tokenize_waiting(
    named: list[tuple[str, Document]], tokenizer: MixedModalTokenizer
) -> Iterator[tuple[TokenizedDocument, str] | Skipped]:
    try:
        documents = tokenize([document for _, document in named], tokenizer)
    except BAD_DOCUMENT as error:  # one document is at fault: which one shows when each goes alone
        if len(named) == 1:
            yield Skipped(named[0][0], reason_of(error))
            return
        for each in named:
            yield from _tokenize_waiting([each], tokenizer)
        return
    for (name, document), tokenized in zip(named, documents, strict=True):
        if len(tokenized.tokens) <= 2:
            yield Skipped(name, "it is empty")
        elif not tokenized.learn[1:].any():
            yield Skipped(name, "no token in it is to be learned")
        else:
            yield tokenized, document_kind(document)
