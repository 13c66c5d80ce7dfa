"""Shards: what is written once reads back the same, and what is damaged, foreign or half written says so."""

import errno
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import weakref
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import pytest

from chameleon_lab.corpora import shard_files, shards, tokenization
from chameleon_lab.corpora.mixture import SCENE_WEIGHTS, sample_documents
from chameleon_lab.corpora.packing import tokenize
from chameleon_lab.corpora.readers import Skipped
from chameleon_lab.corpora.shards import Shards
from chameleon_lab.corpora.tokenization import document_kind
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import ByteTokenizer
from chameleon_lab.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return sample_documents(np.random.default_rng(0), SCENE_WEIGHTS, 30)


@pytest.fixture
def corpus(documents, mixed, tmp_path) -> Shards:
    """Thirty documents of all kinds in several shards."""
    return shards.write_shards(tmp_path / "corpus", documents, mixed, shard_tokens=700)


def leftovers(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is written


def test_documents_read_back_with_every_token_and_learn_flag(documents, mixed, corpus):
    tokenized = tokenize(documents, mixed)
    assert len(corpus) == len(tokenized) and len(corpus.card["shards"]) > 2
    assert corpus.tokens == sum(len(document.tokens) for document in tokenized)
    assert corpus.lengths.tolist() == [len(document.tokens) for document in tokenized]
    for index in (*range(len(tokenized)), -1, -30):
        document = corpus[index]
        assert document.tokens.dtype == np.int64 and document.learn.dtype == bool
        assert np.array_equal(document.tokens, tokenized[index].tokens)
        assert np.array_equal(document.learn, tokenized[index].learn)
    assert [each.tokens.tolist() for each in corpus[3:7]] == [each.tokens.tolist() for each in tokenized[3:7]]
    assert sum(1 for _ in corpus) == 30
    for index in (30, -31):
        with pytest.raises(IndexError, match=f"no document {index}: .* holds 30"):
            corpus[index]


def test_the_card_tells_what_is_in_the_folder_and_how_it_came_to_be(documents, mixed, tmp_path):
    corpus = shards.write_shards(tmp_path / "made", documents, mixed, about={"source": "scenes", "seed": 7})
    card = json.loads((tmp_path / "made" / "card.json").read_text())
    assert card["documents"] == 30 and card["source"] == "scenes" and card["seed"] == 7
    assert sum(card["kinds"].values()) == 30 and set(card["kinds"]) <= set(shard_files.DOCUMENT_KINDS)
    for index, document in enumerate(documents):
        assert corpus.kind(index) == document_kind(document)
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"card.json", *card["files"]}
    corpus.verify()


def test_the_kind_of_a_document_is_what_stands_in_it(picture):
    kinds = {
        "text": Document.of("a"),
        "pair": Document.of(picture, "a"),
        "interleaved": Document.of("a", picture, "b"),
        "conversation": Document.of("a", EndTurn(), picture, EndTurn()),
    }
    assert {name: document_kind(document) for name, document in kinds.items()} == {name: name for name in kinds}
    assert document_kind(Document.of(picture, picture)) == "interleaved"


def test_files_are_mapped_and_another_process_gets_the_folder_not_its_content(corpus):
    assert all(isinstance(array.base, np.memmap) for array in (*corpus._tokens, *corpus._learn))
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 2000 and np.array_equal(pickle.loads(pickled)[4].tokens, corpus[4].tokens)


def test_a_corpus_streams_through_a_bounded_memory(mixed, tmp_path):
    alive: weakref.WeakSet[Text] = weakref.WeakSet()
    most = 0

    def documents():
        nonlocal most
        for index in range(1200):
            text = Text(f"text {index}")
            alive.add(text)
            most = max(most, len(alive))
            yield Document((text,))
            del text

    assert len(shards.write_shards(tmp_path / "made", documents(), mixed)) == 1200
    assert 200 < most < 300


def test_large_pictures_wait_as_small_as_they_will_be_seen(mixed, tmp_path):
    pictures_alive: list[weakref.ref[PIL.Image.Image]] = []
    most = 0

    def documents():
        nonlocal most
        for _ in range(100):
            picture = PIL.Image.new("RGB", (400, 300))
            pictures_alive.append(weakref.ref(picture))
            most = max(most, sum(each() is not None for each in pictures_alive))
            yield Document.of(picture, "a", picture)
            del picture

    assert len(shards.write_shards(tmp_path / "made", documents(), mixed)) == 100
    assert most < 5


def test_few_pictures_wait_to_be_encoded_however_many_a_document_has(mixed, picture, tmp_path, monkeypatch):
    waited, real = [], tokenization.tokenize

    def watched(documents, tokenizer):
        waited.append(sum(len(document.pictures) for document in documents))
        return real(documents, tokenizer)

    monkeypatch.setattr(tokenization, "tokenize", watched)
    shards.write_shards(tmp_path / "made", [Document.of(*[picture] * 7)] * 40, mixed)
    assert sum(waited) == 280 and max(waited) < 64 + 7


# What is left out


def test_what_cannot_be_tokenized_is_skipped_with_its_reason_and_nothing_else_is(mixed, picture, tmp_path, caplog):
    documents = [
        Document.of("before"),
        Document.of("half a character \ud83d"),
        Skipped("cat.jpg", "a picture without a caption"),
        Document.of(),
        Document.of("what a user says", EndTurn()).learning(False),
        Document.of(PIL.Image.new("RGB", (0, 5)), "no pixels"),
        Document.of(Image(picture, np.zeros((2, 2), int)), "another grid"),
        Document.of("after"),
    ]
    with caplog.at_level(logging.WARNING):
        corpus = shards.write_shards(tmp_path / "made", documents, mixed)
    assert [mixed.decode(document.tokens).text for document in corpus] == ["before", "after"]
    skipped = dict(corpus.skipped)
    assert corpus.card["skipped"] == len(skipped) == 6 == len(caplog.records)
    assert skipped["cat.jpg"] == "a picture without a caption"
    assert "half a character" in skipped["document 2"] and "empty" in skipped["document 3"]
    assert "to be learned" in skipped["document 4"] and "(2, 2)" in skipped["document 6"]
    assert "is empty: 0 x 5" in skipped["document 5"]


def test_an_empty_corpus_is_an_error_that_says_what_was_skipped(mixed, tmp_path):
    with pytest.raises(ValueError, match=r"the corpus is empty\.$"):
        shards.write_shards(tmp_path / "made", [], mixed)
    with pytest.raises(ValueError, match=r"skipped were 2, the first for this: a\.jpg: no caption"):
        shards.write_shards(tmp_path / "made", [Skipped("a.jpg", "no caption"), Document.of()], mixed)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("ids", "itemsize", "version"), [(2**16, 2, 1), (2**16 + 1, 4, 2), (300_000, 4, 2)])
def test_the_largest_id_survives_in_two_bytes_and_in_four(image_tokenizer, tmp_path, ids, itemsize, version):
    class Last(ByteTokenizer):
        size = ids - 16 - image_tokenizer.codes + 1

        def encode(self, text: str) -> list[int]:
            return [self.size - 1 for _ in text]

    vocabulary = Vocabulary.layout(image_tokenizer.codes, Last.size)
    assert vocabulary.size == ids
    corpus = shards.write_shards(
        tmp_path / "m", [Document.of("ab")], MixedModalTokenizer(Last(), image_tokenizer, vocabulary)
    )
    assert corpus[0].tokens.tolist() == [0, ids - 1, ids - 1, 2]
    assert (tmp_path / "m" / "tokens-00000.bin").stat().st_size == 4 * itemsize
    assert corpus.card["version"] == version  # a lab of before reads what it can


# What goes wrong


def broken_off(documents):
    yield from documents
    raise OSError(errno.EIO, "the disk has gone")


@pytest.mark.parametrize("many", [3, 300])
def test_a_writing_that_fails_leaves_nothing_and_can_begin_anew(documents, mixed, tmp_path, many):
    with pytest.raises(OSError, match="the disk has gone"):
        shards.write_shards(tmp_path / "made", broken_off((documents * 10)[:many]), mixed, shard_tokens=500)
    assert leftovers(tmp_path) == []
    assert len(shards.write_shards(tmp_path / "made", documents, mixed)) == 30


def test_a_full_disk_leaves_nothing_that_looks_whole(documents, mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(
        shard_files._File, "write", lambda self, data: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left"))
    )
    with pytest.raises(OSError, match="No space left"):
        shards.write_shards(tmp_path / "made", documents, mixed)
    assert leftovers(tmp_path) == []


KILLED = """
import os, signal, sys
from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora import shard_files, shards
from chameleon_lab.documents import Document

def documents():
    for index in range(600):
        yield Document.of("some text")
    os.kill(os.getpid(), signal.SIGKILL)

shards.write_shards(sys.argv[1], documents(), Chameleon.load("tiny").tokenizer, shard_tokens=100)
"""


def test_a_killed_writing_looks_like_none_and_the_next_one_clears_it_away(documents, mixed, tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "made")], check=False)
    assert killed.returncode == -9
    (left,) = leftovers(tmp_path)
    assert left.startswith(".made.") and (tmp_path / left / "tokens-00001.bin").exists()
    with pytest.raises(ValueError, match=r"card\.json is missing"):
        Shards(tmp_path / left)
    assert len(shards.write_shards(tmp_path / "made", documents, mixed)) == 30
    assert leftovers(tmp_path) == ["made"]


def test_what_another_process_is_writing_is_left_alone(documents, mixed, tmp_path):
    shards.write_shards(tmp_path / "x", documents[:1], mixed)
    parent = f".made.{socket.gethostname()}.{os.getppid()}.abc.partial"
    elsewhere = ".made.another-machine.1.abc.partial"
    for name in (parent, elsewhere):
        (tmp_path / name).mkdir()
    shards.write_shards(tmp_path / "made", documents[:1], mixed)
    assert leftovers(tmp_path) == sorted([parent, elsewhere, "made", "x"])


def test_a_corpus_is_never_overwritten(documents, mixed, corpus, tmp_path):
    for folder in (corpus.folder, corpus.folder / "card.json"):
        with pytest.raises(ValueError, match="is taken: write into a new or empty folder"):
            shards.write_shards(folder, documents, mixed)
    (tmp_path / "empty").mkdir()
    assert len(shards.write_shards(tmp_path / "empty", documents, mixed)) == 30


@pytest.mark.parametrize("name", ["tokens-00001.bin", "learn-00000.bin", "index-00000.bin"])
def test_a_truncated_or_missing_file_is_named_with_what_to_do(corpus, name):
    path = corpus.folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        ValueError, match=rf"{name} has {len(whole) - 1:,} bytes instead of {len(whole):,}.*Copy it again"
    ):
        Shards(corpus.folder)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing: the corpus is damaged"):
        Shards(corpus.folder)


def test_a_changed_byte_is_found_by_verifying(corpus):
    path = corpus.folder / "learn-00001.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 16]) + path.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"learn-00001\.bin has changed since it was written"):
        Shards(corpus.folder).verify()


def test_tokens_that_no_vocabulary_wrote_are_never_handed_out(corpus):
    path = corpus.folder / "tokens-00000.bin"
    path.write_bytes(b"\xff\xff" + path.read_bytes()[2:])
    with pytest.raises(ValueError, match=r"Document 0 of .* is damaged"):
        Shards(corpus.folder)[0]


@pytest.mark.parametrize("damage", ["", "[1]", "{}", "card", "version", "counts", "none", "name", "vocabulary"])
def test_a_folder_without_a_whole_card_is_no_corpus(corpus, damage):
    path = corpus.folder / "card.json"
    card = json.loads(path.read_text())
    match damage:
        case "card":
            path.unlink()
        case "version":
            path.write_text(json.dumps(card | {"version": 3}))
        case "counts":
            first, *others = card["shards"]
            path.write_text(json.dumps(card | {"shards": [first | {"tokens": first["tokens"] + 1}, *others]}))
        case "none":
            path.write_text(json.dumps(card | {"shards": [], "files": {}}))
        case "name":
            path.write_text(json.dumps(card | {"files": card["files"] | {"../../secret": {"bytes": 0}}}))
        case "vocabulary":
            path.write_text(json.dumps(card | {"vocabulary": card["vocabulary"] | {"size": 3}}))
        case _:
            path.write_text(damage)
    with pytest.raises(ValueError, match=r"holds no shards|card\.json is (damaged|not JSON)"):
        Shards(corpus.folder)


def test_another_vocabulary_is_refused_by_what_differs(corpus, mixed, spelled):
    corpus.require(mixed.vocabulary)
    corpus.require(deepcopy(mixed.vocabulary))
    wider = Vocabulary.layout(12, 330)
    with pytest.raises(
        ValueError, match=rf"another vocabulary \(size {mixed.vocabulary.size} instead of {wider.size}\)"
    ):
        corpus.require(spelled.vocabulary)
    turned = replace(mixed.vocabulary, permutation=tuple(reversed(range(12))))
    with pytest.raises(ValueError, match=r"another vocabulary \(permutation\)"):
        corpus.require(turned)


def test_another_tokenizer_of_the_same_vocabulary_is_refused(corpus, mixed):
    corpus.require_tokenizer(mixed)
    halved = MixedModalTokenizer(mixed.text, deepcopy(mixed.image).half().float(), mixed.vocabulary)
    corpus.require_tokenizer(halved)  # a model is saved in float16: still the same one
    other = deepcopy(mixed.image)
    other.quant_conv.weight.data.mul_(1.5)
    with pytest.raises(ValueError, match="with another image tokenizer, whose tokens mean something else"):
        corpus.require_tokenizer(MixedModalTokenizer(mixed.text, other, mixed.vocabulary))

    class Backwards(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            return super().encode(text)[::-1]

    with pytest.raises(ValueError, match="with another text tokenizer"):
        corpus.require_tokenizer(MixedModalTokenizer(Backwards(), mixed.image, mixed.vocabulary))


# What goes on


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("seed", range(4))
def test_a_writing_that_ends_anywhere_goes_on_to_the_same_bytes(documents, mixed, tmp_path, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(tokenization, "BATCH_DOCUMENTS", int(rng.integers(1, 6)))
    monkeypatch.setattr(shards, "SAVE_EVERY", rng.choice([0.0, 1e9]))
    entries = [*documents, Document.of(), Skipped("a.jpg", "no caption")]
    entries = [entries[each] for each in rng.permutation(len(entries))]
    whole = shards.write_shards(tmp_path / "whole", entries, mixed, shard_tokens=700)
    ends = np.sort(rng.integers(0, len(entries), 3))
    for end in ends:
        with pytest.raises(OSError, match="the disk has gone"):
            shards.write_shards(tmp_path / "made", broken_off(entries[:end]), mixed, shard_tokens=700, resumable=True)
        assert not (tmp_path / "made").exists()
        with pytest.raises(ValueError, match=r"card\.json is missing"):
            Shards(tmp_path / "made.partial")
    reads = list[int]()
    corpus = shards.write_shards(
        tmp_path / "made", entries, mixed, shard_tokens=700, resumable=True, report=reads.append
    )
    assert content(corpus.folder) == content(whole.folder)
    assert leftovers(tmp_path) == ["made", "whole"]
    assert reads[-1] == len(entries) and reads == sorted(reads)
    assert not reads or reads[0] > ends[-1] - tokenization.BATCH_DOCUMENTS  # what was done is not tokenized again


def test_what_was_begun_goes_on_with_the_same_documents_tokenizer_and_words_alone(documents, mixed, tmp_path):
    def write(entries, **more):
        options: dict[str, Any] = {"shard_tokens": 700, **more}
        return shards.write_shards(tmp_path / "made", entries, mixed, resumable=True, **options)

    with pytest.raises(OSError, match="the disk has gone"):
        write(broken_off(documents * 10))
    before = content(tmp_path / "made.partial")
    with pytest.raises(ValueError, match=r"begun with another shard_tokens\. Delete .*made\.partial to begin anew"):
        write(documents * 10, shard_tokens=5)
    with pytest.raises(ValueError, match="begun with another source"):
        write(documents * 10, about={"source": "x"})
    with pytest.raises(ValueError, match=r"The first \d+ entries are not those of the time before.*has changed"):
        write([Document.of("another"), *(documents * 10)])
    with pytest.raises(ValueError, match=r"There are 30 entries, and \d+ were read the time before"):
        write(documents)
    assert content(tmp_path / "made.partial") == before
    changed = before["progress.json"].replace(b'"skipped": 0', b'"skipped": 1')
    damages = [("progress.json", damage) for damage in (b"{", b'{"begun": {}}', changed)]
    for part in ("tokens", "index", "learn"):  # of a shard that is whole, and of the one under way
        for name in (f"{part}-00000.bin", max(name for name in before if name.startswith(part))):
            damages += [(name, b""), (name, bytes([before[name][0] ^ 1]) + before[name][1:])]
    assert len({name for name, _ in damages}) == 7
    for name, damage in damages:
        (tmp_path / "made.partial" / name).write_bytes(damage)
        with pytest.raises(ValueError, match=r"made\.partial.*[Dd]elete|begun with another"):
            write(documents * 10)
        (tmp_path / "made.partial" / name).write_bytes(before[name])
    assert len(write(documents * 10)) == 300


def test_two_that_write_into_one_folder_do_not_meet(documents, mixed, tmp_path):
    def meets():
        yield documents[0]
        with pytest.raises(ValueError, match="Another process writes into"):
            shards.write_shards(tmp_path / "made", documents, mixed, resumable=True)

    assert len(shards.write_shards(tmp_path / "made", meets(), mixed, resumable=True)) == 1


def test_processes_write_the_same_bytes(documents, mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "BATCH_DOCUMENTS", 7)
    entries = [*documents, Skipped("a.jpg", "no caption"), Document.of("half a character \ud83d"), Document.of("end")]
    alone = shards.write_shards(tmp_path / "alone", entries, mixed, shard_tokens=700)
    together = shards.write_shards(tmp_path / "together", iter(entries), mixed, shard_tokens=700, processes=2)
    assert content(alone.folder) == content(together.folder)
