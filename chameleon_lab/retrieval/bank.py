"""`Bank`: documents and a vector of each, in which those nearest to a query are looked up; a memory bank.

A folder of one holds

```
bank.json                  format version, number of documents, encoder, image tokenizer, checksums
documents.jsonl            a document a line (`Document.to_json`), pictures and codes included
vectors.safetensors        vectors_ND, float32
```
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chameleon_lab.checkpoints.tensors import lazy, open_safetensors, write_safetensors
from chameleon_lab.corpora.own_data import DataSource
from chameleon_lab.corpora.packing import encode_images
from chameleon_lab.corpora.readers import Skipped
from chameleon_lab.corpora.shards import identities
from chameleon_lab.documents import Blank, Document, Image
from chameleon_lab.files import checksum, intact, read_bytes, read_table
from chameleon_lab.parts import require
from chameleon_lab.retrieval.encoders import Encoder
from chameleon_lab.storage import whole_folder, write_file
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer

BANK_FORMAT, BANK_FILES = "chameleon-lab-bank", ("bank.json", "documents.jsonl", "vectors.safetensors")
FILL_ANEW = "Copy the bank again, or fill it anew: Bank.of(documents, encoder).save(folder)."

LARGEST_BANK = 4 * 2**30
"""Bytes of a bank's documents that are read."""

QUERIES_AT_ONCE = 256
"""Queries that are compared with all documents in one product."""


class Bank:
    """Documents with a vector of length 1 each, vectors_ND, and how they came to be.

    Search is exact at any size, by one product with all vectors (docs/retrieval.md has the measured pace). `encoder` is
    name and identity of what made the vectors, `tokenizer` the identity of the image tokenizer whose codes the
    documents' images carry, "" where they carry none. `skipped` are those of a folder that could not be read.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        vectors_ND: np.ndarray,
        encoder: tuple[str, str],
        tokenizer: str = "",
        skipped: Sequence[Skipped] = (),
    ) -> None:
        if not len(documents):
            first = ": ".join(skipped[0]).rstrip(".") if skipped else ""
            some = f" {len(skipped):,} could not be read, such as {first}." if skipped else ""
            raise ValueError(
                f"The bank is empty: there is nothing to look up.{some} Give Bank.of documents, or a folder of "
                "pictures with captions."
            )
        vectors_ND = np.ascontiguousarray(vectors_ND, np.float32)
        if vectors_ND.ndim != 2 or len(vectors_ND) != len(documents) or not np.isfinite(vectors_ND).all():
            raise ValueError(
                f"A bank of {len(documents):,} documents has as many rows of finite numbers, not {vectors_ND.shape}."
            )
        self.documents, self.vectors_ND, self.encoder = documents, vectors_ND, encoder
        self.tokenizer, self.skipped = tokenizer, tuple(skipped)
        self._vectors_ND = torch.from_numpy(vectors_ND)

    @classmethod
    def of(
        cls,
        source: Iterable[Document | Skipped] | Path | str,
        encoder: Encoder,
        tokenizer: MixedModalTokenizer | None = None,
    ) -> Bank:
        """The bank of some documents, or of a folder or file of them (a folder of pictures with captions, say; see
        `corpora.own_data.DataSource`).

        With a `tokenizer`, pictures are encoded once and for all, and the bank serves models of that image tokenizer.
        Raises ValueError where there is no document, and for one that has neither words nor pictures; TypeError for
        what is neither documents nor a place.
        """
        if isinstance(source, Document) or not isinstance(source, Iterable | Path | str):
            raise TypeError(
                f"A bank is filled from a list of documents, or from a folder or file of them, not from "
                f"{'one Document' if isinstance(source, Document) else repr(source)}: Bank.of([document], encoder)."
            )
        entries = DataSource.of(source).documents(bare=True) if isinstance(source, Path | str) else source
        documents, skipped = list[Document](), list[Skipped]()
        for entry in entries:
            if isinstance(entry, Skipped):
                skipped.append(entry)
            else:
                documents.append(require_whole(entry))
        if tokenizer is not None:
            documents = with_codes(documents, tokenizer)
        vectors_ND = document_vectors(documents, encoder) if documents else np.empty((0, 1))
        image = identities(tokenizer)["image"] if tokenizer is not None else ""
        return cls(documents, vectors_ND, (encoder.name, encoder.identity), image, skipped)

    def __len__(self) -> int:
        return len(self.documents)

    def __repr__(self) -> str:
        codes = ", with codes" if self.tokenizer else ""
        return f"Bank({len(self):,} documents{codes}, {self.vectors_ND.shape[1]} numbers each by {self.encoder[0]})"

    def search(self, queries_QD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """scores_QK and places_QK of the `count` documents nearest to each query, or of all, nearest first: a score is
        the cosine, -1 to 1. Raises ValueError for queries of another width."""
        if queries_QD.ndim != 2 or queries_QD.shape[1] != self.vectors_ND.shape[1]:
            raise ValueError(
                f"Queries are rows of {self.vectors_ND.shape[1]} numbers, as this bank's documents are, not an array "
                f"of shape {queries_QD.shape}."
            )
        groups = torch.from_numpy(np.ascontiguousarray(queries_QD, np.float32)).split(QUERIES_AT_ONCE)
        parts = [(each_BD @ self._vectors_ND.T).topk(min(count, len(self))) for each_BD in groups]
        scores_QK, places_QK = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        return scores_QK.numpy(), places_QK.numpy()

    def require_encoder(self, encoder: Encoder) -> None:
        """Raises ValueError unless this encoder made the vectors."""
        require(encoder, "an encoder", "name", "identity", "encode_text", "encode_pictures")
        if (encoder.name, encoder.identity) != self.encoder:
            raise ValueError(
                f"The bank was filled by the encoder {' '.join(self.encoder)}, and {encoder.name} {encoder.identity} "
                "puts words and pictures elsewhere: search with the first, or fill it anew, "
                "Bank.of(bank.documents, encoder)."
            )

    def require_tokenizer(self, tokenizer: MixedModalTokenizer) -> None:
        """Raises ValueError where the documents' codes are another image tokenizer's."""
        image = identities(tokenizer)["image"]
        if self.tokenizer and self.tokenizer != image:
            raise ValueError(
                f"The bank's images carry codes of the image tokenizer {self.tokenizer[:8]}, and this model's is "
                f"{image[:8]}, to which they mean other pictures: take bank.with_codes(lab.tokenizer)."
            )

    def with_codes(self, tokenizer: MixedModalTokenizer) -> Bank:
        """The same bank with this tokenizer's codes of each picture."""
        bare = [
            Document(tuple(replace(part, codes=None) if isinstance(part, Image) else part for part in document))
            for document in self.documents
        ]
        image = identities(tokenizer)["image"]
        return Bank(with_codes(bare, tokenizer), self.vectors_ND, self.encoder, image, self.skipped)

    def save(self, folder: Path | str) -> None:
        """Writes the bank to a new folder, or in place of an old bank, whole or not at all."""
        lines = "".join(document.to_json() + "\n" for document in self.documents).encode()
        with whole_folder(Path(folder), BANK_FILES) as hidden:
            write_file(hidden / "documents.jsonl", lines)
            write_safetensors({"vectors": lazy(self._vectors_ND)}, hidden, "vectors")
            card = {
                "format": BANK_FORMAT,
                "version": 1,
                "documents": len(self),
                "encoder": list(self.encoder),
                "tokenizer": self.tokenizer,
                "checksums": {name: checksum(hidden / name) for name in BANK_FILES[1:]},
            }
            write_file(hidden / "bank.json", json.dumps(card, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> Bank:
        """The bank in a folder. Raises FileNotFoundError for none, ValueError, naming the file, for a damaged one."""
        folder = Path(folder)
        place = folder / "bank.json"
        if not os.path.lexists(place):
            raise FileNotFoundError(
                f"{folder} holds no bank: there is no bank.json. Fill one: Bank.of(documents, encoder).save(folder)."
            )
        card = read_table(place, remedy=FILL_ANEW)
        if card.get("format") != BANK_FORMAT:
            raise ValueError(f"{folder} holds no bank: bank.json says {card.get('format')!r}. {FILL_ANEW}")
        with intact(place, FILL_ANEW):
            count, checksums = card["documents"], dict[str, Any](card["checksums"])
            encoder, tokenizer = tuple(map(str, card["encoder"])), str(card["tokenizer"])
            if len(encoder) != 2 or type(count) is not int:
                raise ValueError("it names no encoder, or no number of documents")
        for name in BANK_FILES[1:]:
            if checksum(folder / name) != checksums.get(name):
                raise ValueError(f"{folder / name} has changed since it was written. {FILL_ANEW}")
        lines = read_bytes(folder / "documents.jsonl", LARGEST_BANK).splitlines()
        with intact(folder / "vectors.safetensors", FILL_ANEW):
            vectors_ND = open_safetensors(folder / "vectors.safetensors")["vectors"].read().float().numpy()
            if len(lines) != count:
                raise ValueError(f"documents.jsonl has {len(lines):,} lines, and bank.json says {count:,}")
            return cls(_Lines(lines), vectors_ND, (encoder[0], encoder[1]), tokenizer)


class _Lines(Sequence[Document]):
    """Documents of JSON, each read when it is asked for: most are never looked up."""

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines
        self._read = lru_cache(maxsize=256)(lambda index: Document.from_json(lines[index].decode()))

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return self._read(range(len(self))[index])


def with_codes(documents: Sequence[Document], tokenizer: MixedModalTokenizer) -> list[Document]:
    """The documents with codes for each picture that has none."""
    images = [part for document in documents for part in document if isinstance(part, Image)]
    coded = encode_images(images, tokenizer)
    return [Document(tuple(coded.get(id(part), part) for part in document)) for document in documents]  # type: ignore[misc]


def require_whole(document: Document) -> Document:
    """The document, as one that may stand before another. Raises TypeError for what is none, ValueError for blanks,
    which are not filled there."""
    if not isinstance(document, Document):
        raise TypeError(
            f"What is retrieved is a Document, not a {type(document).__name__}: Document.of('a red circle', picture)."
        )
    if any(isinstance(part, Blank) or (isinstance(part, Image) and part.mask is not None) for part in document):
        raise ValueError("A document with blanks cannot be retrieved: fill it first, with lab.infill.")
    return document


def document_vectors(documents: Sequence[Document], encoder: Encoder, noun: str = "document") -> np.ndarray:
    """vectors_ND of length 1: of each document the mean of its words' vector and of its pictures' (arXiv 2309.02591,
    section 2.1). Raises ValueError for a document, or whatever it is called, without either."""
    texts = [document.text for document in documents]
    wordy = [index for index, text in enumerate(texts) if text.strip()]
    owners = [index for index, document in enumerate(documents) for _ in document.pictures]
    by_text = encoder.encode_text([texts[index] for index in wordy])
    by_picture = encoder.encode_pictures([picture for document in documents for picture in document.pictures])
    pictures_ND = np.zeros((len(documents), by_picture.shape[1]), np.float32)
    np.add.at(pictures_ND, owners, by_picture)
    vectors_ND = _unit(pictures_ND)
    vectors_ND[wordy] += by_text
    if len(bare := np.flatnonzero(~vectors_ND.any(1))):
        raise ValueError(
            f"The {noun} {bare[0]}, {texts[bare[0]][:40]!r}, has neither words nor pictures that the encoder can read: "
            f"{'ask in words, or show a picture' if noun == 'query' else 'leave it out'}."
        )
    return _unit(vectors_ND)


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
