"""Packing: documents of tokens into batches.

A document of n tokens has n - 1 *positions*, each with the token to read and the next one, the target. `collate`
gives each document a row of its own; `pack` lays several into rows of one length, where none attends to another.
"""

from __future__ import annotations

import copy
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self, overload

import numpy as np
import torch
from torch import Tensor

from chameleon_lab.documents import Document, Image
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.vocabulary import Vocabulary


class TokenizedDocument(NamedTuple):
    """A document as tokens, with its learn flag for each of them."""

    tokens: np.ndarray
    learn: np.ndarray


class DocumentColumn(Sequence[TokenizedDocument]):
    """Documents end to end in two rows of bytes: 2 to 5 bytes a token and 8 a document, where a list of arrays takes 9
    a token and almost a kilobyte a document."""

    def __init__(self, vocabulary_size: int) -> None:
        self._kind = np.min_scalar_type(vocabulary_size - 1)
        self._tokens, self._learn, self._ends = bytearray(), bytearray(), array("q", [0])
        self._places: np.ndarray | None = None  # all of them, in their order

    def append(self, document: TokenizedDocument) -> None:
        self._tokens += document.tokens.astype(self._kind).tobytes()
        self._learn += document.learn.astype(bool).tobytes()
        self._ends.append(len(self._learn))

    def chosen(self, places: Sequence[int] | np.ndarray) -> DocumentColumn:
        """Some of the documents, by their places, in the same bytes."""
        some = copy.copy(self)
        some._places = np.asarray(places, np.int64)
        return some

    def __len__(self) -> int:
        return len(self._ends) - 1 if self._places is None else len(self._places)

    @overload
    def __getitem__(self, index: int) -> TokenizedDocument: ...
    @overload
    def __getitem__(self, index: slice) -> DocumentColumn: ...
    def __getitem__(self, index: int | slice) -> TokenizedDocument | DocumentColumn:
        places = range(len(self))[index]  # an IndexError where there is none, and from the end where it is negative
        if isinstance(places, range):
            return self.chosen(places if self._places is None else self._places[index])
        place = places if self._places is None else int(self._places[places])
        start, stop = self._ends[place], self._ends[place + 1]
        tokens = np.frombuffer(self._tokens, self._kind, stop - start, start * self._kind.itemsize)
        learn = np.frombuffer(self._learn, bool, stop - start, start)
        return TokenizedDocument(tokens.astype(np.int64), learn.copy())


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, padded on the right: one document a row, or several where `documents_BT` numbers them.

    `targets_BT` are the tokens one position on; `learned_BT` says on which of them training takes loss, `modality_BT`
    holds their `Modality`; `weights_BT`, where given, multiplies each one's share of the loss.
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    learned_BT: Tensor
    modality_BT: Tensor
    real_tokens: int
    documents_BT: Tensor | None = None
    weights_BT: Tensor | None = None

    def to(self, device: torch.device | str) -> Self:
        tensors = {each.name: getattr(self, each.name) for each in fields(self)}
        moved = {name: tensor.to(device) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
        return replace(self, **moved)

    def within(self, context: int) -> Self:
        """The batch with documents that end at `context` positions; itself, where none is longer.

        Rows of several documents stay as wide as they are, and what lies behind is not learned.
        """
        if self.inputs_BT.shape[1] <= context:
            return self
        if self.documents_BT is None:
            lost = int((self.targets_BT[:, context:] != Vocabulary.pad).sum())
            tensors = {each.name: getattr(self, each.name) for each in fields(self)}
            cut = {name: tensor[:, :context] for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
            return replace(self, **cut, real_tokens=self.real_tokens - lost)
        places_BT = torch.arange(self.inputs_BT.shape[1], device=self.inputs_BT.device).expand_as(self.documents_BT)
        first_BT = torch.ones_like(self.documents_BT, dtype=torch.bool)
        first_BT[:, 1:] = self.documents_BT[:, 1:] != self.documents_BT[:, :-1]
        begins_BT = torch.where(first_BT, places_BT, 0).cummax(1).values
        learned_BT = self.learned_BT & (places_BT - begins_BT < context)
        return self if learned_BT.equal(self.learned_BT) else replace(self, learned_BT=learned_BT)


def encode_images(images: Sequence[Image], tokenizer: MixedModalTokenizer) -> dict[int, Image]:
    """Those of the images that have no codes yet, by `id`, with codes; pictures are encoded 64 at a time."""
    bare, coded = [image for image in images if image.codes is None], dict[int, Image]()
    for start in range(0, len(bare), 64):
        chunk = bare[start : start + 64]
        codes = tokenizer.image.encode_batch([image.picture for image in chunk])
        coded |= {id(image): replace(image, codes=grid) for image, grid in zip(chunk, codes, strict=True)}
    return coded


def tokenize(documents: list[Document], tokenizer: MixedModalTokenizer) -> list[TokenizedDocument]:
    """Documents to tokens from `begin_document` to `end_document`."""
    coded = encode_images([part for document in documents for part in document if isinstance(part, Image)], tokenizer)
    begin, end = [tokenizer.vocabulary.begin_document], [tokenizer.vocabulary.end_document]
    tokenized: list[TokenizedDocument] = []
    for document in documents:
        runs = [tokenizer.encode_segment(coded.get(id(segment), segment)) for segment in document]
        flags = [np.full(len(run), segment.learn) for run, segment in zip(runs, document, strict=True)]
        last = [document.segments[-1].learn if len(document) else False]
        tokenized.append(
            TokenizedDocument(np.concatenate([begin, *runs, end]), np.concatenate([[False], *flags, last]))
        )
    return tokenized


def collate(documents: list[TokenizedDocument], vocabulary: Vocabulary) -> Batch:
    """One document a row. Raises ValueError on tokens outside the vocabulary."""
    width = max(len(document.tokens) for document in documents)
    tokens_BT = np.full((len(documents), width), vocabulary.pad, np.int64)
    learn_BT = np.zeros((len(documents), width), bool)
    for row, document in enumerate(documents):
        tokens_BT[row, : len(document.tokens)] = vocabulary.check(document.tokens)
        learn_BT[row, : len(document.tokens)] = document.learn
    return Batch(
        inputs_BT=torch.from_numpy(tokens_BT[:, :-1].copy()),
        targets_BT=torch.from_numpy(tokens_BT[:, 1:].copy()),
        learned_BT=torch.from_numpy(learn_BT[:, 1:].copy()),
        modality_BT=torch.from_numpy(vocabulary.modality[tokens_BT[:, 1:]]),
        real_tokens=sum(len(document.tokens) for document in documents),
    )


def bucket(
    documents: list[TokenizedDocument], batches: int, vocabulary: Vocabulary, rng: np.random.Generator
) -> list[Batch]:
    """Documents into `batches` batches of about as many tokens each, like lengths together, in random order."""
    ordered = sorted(documents, key=lambda document: len(document.tokens))
    ends = np.cumsum([len(document.tokens) for document in ordered])
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, batches) / batches)
    groups = np.split(np.arange(len(ordered)), cuts)
    filled = [collate([ordered[index] for index in group], vocabulary) for group in groups if len(group)]
    return [filled[index] for index in rng.permutation(len(filled))]


def split_document(document: TokenizedDocument, context: int, vocabulary: Vocabulary) -> list[TokenizedDocument]:
    """A document in pieces of at most `context` positions, no image cut in two; a document that fits is one piece.

    A piece begins with the last token of the one before, so that each target stands in one piece, with its learn flag;
    attention reaches no further back. Raises ValueError when an image alone is longer than the context.
    """
    spans, start, last = list[tuple[int, int]](), 0, len(document.tokens) - 1
    if last > context:
        cuts = np.flatnonzero(~vocabulary.within_images[document.tokens])
        while last - start > context:
            stop = int(cuts[np.searchsorted(cuts, start + context, "right") - 1])
            if stop <= start:
                span = int(cuts[np.searchsorted(cuts, start, "right")]) - start
                raise ValueError(
                    f"An image takes {span} positions and the context has {context}: an image is never cut, so make "
                    f"the context {span} or more."
                )
            spans.append((start, stop))
            start = stop
    spans += [(start, last)] * (last > start)
    return [TokenizedDocument(*(array[start : stop + 1] for array in document)) for start, stop in spans]


def fit(positions_N: np.ndarray, context: int) -> np.ndarray:
    """The row of each of N pieces, given how many positions they have: rows_N, numbered by the first piece in each.

    Best fit, longest pieces first: a piece goes where it leaves least room. Pieces of one length are placed together,
    so that millions take seconds. Raises ValueError on a piece without positions or with more than a row has.
    """
    if len(positions_N) and not 1 <= positions_N.min() <= positions_N.max() <= context:
        raise ValueError(
            f"Pieces must have 1..{context} positions; these have {positions_N.min()}..{positions_N.max()}: "
            "`split_document` them first."
        )
    rows_N = np.empty(len(positions_N), np.int64)
    open_rows: dict[int, np.ndarray] = {}  # room to the rows that have it
    rooms: list[int] = []  # its keys, in order
    count = 0

    def keep(room: int, rows: np.ndarray) -> None:
        if not room or not len(rows):
            return
        if room in open_rows:
            rows = np.concatenate([open_rows[room], rows])
        else:
            rooms.insert(bisect_left(rooms, room), room)
        open_rows[room] = rows

    longest_first = np.argsort(-positions_N, kind="stable")
    changes = np.flatnonzero(np.diff(positions_N[longest_first])) + 1
    for alike in np.split(longest_first, changes) if len(positions_N) else ():
        length = int(positions_N[alike[0]])
        while len(alike) and (place := bisect_left(rooms, length)) < len(rooms):
            room = rooms.pop(place)
            rows = open_rows.pop(room)
            fitting, rest = rows[: len(alike)], rows[len(alike) :]
            rows_N[alike[: len(fitting)]] = fitting
            alike = alike[len(fitting) :]
            keep(room, rest)
            keep(room - length, fitting)
        each = context // length
        rows_N[alike] = count + np.arange(len(alike)) // each
        whole, over = divmod(len(alike), each)
        keep(context - each * length, np.arange(count, count + whole))
        keep(context - over * length, np.arange(count + whole, count + whole + (over > 0)))
        count += whole + (over > 0)
    first_R = np.empty(count, np.int64)
    first_R[rows_N[::-1]] = np.arange(len(rows_N))[::-1]  # the last assignment wins: a row's first piece
    return np.argsort(np.argsort(first_R))[rows_N]


def lay_out(rows: Sequence[Sequence[TokenizedDocument]], context: int, vocabulary: Vocabulary) -> Batch:
    """Rows of `context` positions, each of the pieces given for it in their order, padded at its end.

    `documents_BT` numbers the pieces of a row from 0; its padding has a number of its own. Raises ValueError on a row
    that is too full and on tokens outside the vocabulary.
    """
    shape = (len(rows), context)
    inputs_BT, targets_BT = np.full(shape, vocabulary.pad, np.int64), np.full(shape, vocabulary.pad, np.int64)
    learned_BT, documents_BT = np.zeros(shape, bool), np.zeros(shape, np.int64)
    for row, pieces in enumerate(rows):
        start = 0
        for number, piece in enumerate(pieces):
            tokens, stop = vocabulary.check(piece.tokens), start + len(piece.tokens) - 1
            if stop > context:
                raise ValueError(f"The pieces of row {row} have more than its {context} positions: `fit` them first.")
            inputs_BT[row, start:stop], targets_BT[row, start:stop] = tokens[:-1], tokens[1:]
            learned_BT[row, start:stop], documents_BT[row, start:stop] = piece.learn[1:], number
            start = stop
        documents_BT[row, start:] = len(pieces)
    return Batch(
        inputs_BT=torch.from_numpy(inputs_BT),
        targets_BT=torch.from_numpy(targets_BT),
        learned_BT=torch.from_numpy(learned_BT),
        modality_BT=torch.from_numpy(vocabulary.modality[targets_BT]),
        real_tokens=sum(len(piece.tokens) for pieces in rows for piece in pieces),
        documents_BT=torch.from_numpy(documents_BT),
    )


def pack(documents: Iterable[TokenizedDocument], context: int, vocabulary: Vocabulary, rows: int = 8) -> list[Batch]:
    """All documents in batches of `rows` rows of `context` positions (the last may have fewer), with little padding.

    No document attends to another (`Batch.documents_BT`); one longer than the context is split. Raises ValueError when
    there is nothing to pack, or an image longer than the context.
    """
    if min(context, rows) < 1:
        raise ValueError(f"Rows and their context must be 1 or more, not {rows} and {context}.")
    pieces = [piece for document in documents for piece in split_document(document, context, vocabulary)]
    if not pieces:
        raise ValueError("There are no documents to pack.")
    row_of = fit(np.array([len(piece.tokens) - 1 for piece in pieces]), context)
    contents: list[list[TokenizedDocument]] = [[] for _ in range(int(row_of.max()) + 1)]
    for piece, row in zip(pieces, row_of, strict=True):
        contents[row].append(piece)
    return [lay_out(contents[start : start + rows], context, vocabulary) for start in range(0, len(contents), rows)]
