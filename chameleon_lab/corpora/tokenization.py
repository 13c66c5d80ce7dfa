"""Documents to tokens, some hundred at a time, here or in processes of their own; in their order either way."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from chameleon_lab.corpora.packing import TokenizedDocument, tokenize
from chameleon_lab.corpora.readers import Reader, Skipped, is_pair
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.files import reason_of
from chameleon_lab.processes import in_processes
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer

BATCH_DOCUMENTS, BATCH_PICTURES = 256, 64
"""Documents and pictures after which a batch is full."""

BAD_DOCUMENT = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, OSError)
"""What a document whose parts are of wrong types may raise, wherever it is used; not what a machine's faults raise."""

Tokenized = tuple[TokenizedDocument, str] | Skipped
"""A document's tokens and its kind, or why it was left out."""


class Done(NamedTuple):
    """How many entries of a reader are done, and a digest of what they were."""

    read: int = 0
    digest: str = ""


NONE_DONE = Done()


class _Batch(NamedTuple):
    done: Done
    entries: list[tuple[str, Document] | Skipped]


_CHANGED = "what lies there has changed. Put it back as it was, or delete what was begun to begin anew."


def document_kind(document: Document) -> str:
    """Which of `shard_files.DOCUMENT_KINDS`: turns make a conversation, one text with one image a pair."""
    kinds = {type(segment) for segment in document}
    if EndTurn in kinds:
        return "conversation"
    return "text" if Image not in kinds else "pair" if is_pair(document) else "interleaved"


def tokenized_batches(
    documents: Reader, tokenizer: MixedModalTokenizer, processes: int = 0, done: Done = NONE_DONE
) -> Generator[tuple[Done, list[Tokenized]]]:
    """A reader's entries as tokens, batch by batch, each with what is done after it; those that were `done` are only
    read. Batches begin and end at the same entries however often one goes on, whatever the processes.

    Raises ValueError where what is read is not what was done, or processes are to use a GPU's tokenizer, and
    RuntimeError where a process ended.
    """
    batches = _entry_batches(documents, tokenizer, done)
    if not processes:
        yield from map(partial(_tokenize_batch, tokenizer), batches)
        return
    if tokenizer.image.device.type != "cpu":
        raise ValueError(
            "Processes tokenize on the CPU: give one on a GPU all pictures, or load the model for the CPU."
        )
    yield from in_processes(_tokenize_in_process, batches, processes, _open_tokenizer, tokenizer)


def tokenized_documents(documents: Reader, tokenizer: MixedModalTokenizer) -> Iterator[Tokenized]:
    """Each of a reader's entries, in order, as its tokens and kind, or why it is left out."""
    for _, entries in tokenized_batches(documents, tokenizer):
        yield from entries


_process_tokenizer: MixedModalTokenizer  # set when a process begins


def _open_tokenizer(tokenizer: MixedModalTokenizer) -> None:
    global _process_tokenizer
    _process_tokenizer = tokenizer


def _tokenize_in_process(batch: _Batch) -> tuple[Done, list[Tokenized]]:
    return _tokenize_batch(_process_tokenizer, batch)


def _entry_batches(documents: Reader, tokenizer: MixedModalTokenizer, done: Done) -> Iterator[_Batch]:
    """Entries, pictures as small as the tokenizer will see them, in batches."""
    digest, read, number, pictures = "", 0, 0, 0
    waiting: list[tuple[str, Document] | Skipped] = []
    for entry in documents:
        read, number = read + 1, number + isinstance(entry, Document)
        digest = hashlib.sha256(f"{digest} {_summary(entry)}".encode(errors="surrogatepass")).hexdigest()
        if read <= done.read:
            if read == done.read and digest != done.digest:
                raise ValueError(f"The first {read:,} entries are not those of the time before: {_CHANGED}")
            continue
        if isinstance(entry, Skipped):
            waiting.append(entry)
        else:
            name = f"document {number}"
            try:
                waiting.append((name, _prepared(entry, tokenizer)))
                pictures += len(entry.pictures)
            except BAD_DOCUMENT as error:
                waiting.append(Skipped(name, reason_of(error)))
        if len(waiting) >= BATCH_DOCUMENTS or pictures >= BATCH_PICTURES:
            yield _Batch(Done(read, digest), waiting)
            waiting, pictures = [], 0
    if read < done.read:
        raise ValueError(f"There are {read:,} entries, and {done.read:,} were read the time before: {_CHANGED}")
    if waiting:
        yield _Batch(Done(read, digest), waiting)


def _summary(entry: Document | Skipped) -> str:
    """What a document is told by, without a look at its pixels."""
    if isinstance(entry, Skipped):
        return f"{entry}"
    parts = [f"{type(segment).__name__} {getattr(segment, 'text', '')} {segment.learn}" for segment in entry]
    return f"{parts} {[getattr(picture, 'size', None) for picture in entry.pictures]}"


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


def _tokenize_batch(tokenizer: MixedModalTokenizer, batch: _Batch) -> tuple[Done, list[Tokenized]]:
    named = [entry for entry in batch.entries if not isinstance(entry, Skipped)]
    tokens = iter(_tokenize_documents(named, tokenizer))
    return batch.done, [entry if isinstance(entry, Skipped) else next(tokens) for entry in batch.entries]


def _tokenize_documents(named: list[tuple[str, Document]], tokenizer: MixedModalTokenizer) -> Iterator[Tokenized]:
    try:
        documents = tokenize([document for _, document in named], tokenizer)
    except BAD_DOCUMENT as error:  # one document is at fault: which one shows when each goes alone
        if len(named) == 1:
            yield Skipped(named[0][0], reason_of(error))
            return
        for each in named:
            yield from _tokenize_documents([each], tokenizer)
        return
    for (name, document), tokenized in zip(named, documents, strict=True):
        if len(tokenized.tokens) <= 2:
            yield Skipped(name, "it is empty")
        elif not tokenized.learn[1:].any():
            yield Skipped(name, "no token in it is to be learned")
        else:
            yield tokenized, document_kind(document)
