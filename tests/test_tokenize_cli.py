"""`chameleon-lab tokenize`: files of any kind into shards, from the shell."""

import json
import logging
import shutil
from functools import partial

import numpy as np
import pytest
from support import failed

from chameleon_lab.commands import progress
from chameleon_lab.commands import tokenize as command
from chameleon_lab.commands.main import main
from chameleon_lab.corpora import shards, tokenization
from chameleon_lab.corpora.readers import READERS
from chameleon_lab.corpora.shards import Shards
from chameleon_lab.documents import Document


@pytest.fixture
def model(lab, tmp_path) -> str:
    lab.save(tmp_path / "model")
    return str(tmp_path / "model")


def written(model: str, tmp_path, *arguments: str) -> Shards:
    assert main(["tokenize", *arguments, "--out", str(tmp_path / "out"), "--model", model]) == 0
    return Shards(tmp_path / "out" / "train" if arguments[0] == "scenes" else tmp_path / "out")


def orders(corpus: Shards, mixed) -> list[bool]:
    """Whether each document begins with its picture."""
    return [int(document.tokens[1]) == mixed.vocabulary.begin_image for document in corpus]


def test_scenes_are_written_in_both_orders_with_what_is_held_out_beside_them(model, mixed, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train = written(model, tmp_path, "scenes", "-n", "20", "--held-out", "6", "--seed", "3")
    held_out = Shards(tmp_path / "out" / "held_out")
    assert (len(train), len(held_out)) == (20, 6)
    assert train.card["kinds"] == {"pair": 20} and train.card["source"] == "scenes" and train.card["seed"] == 3
    assert sum(orders(train, mixed)) == 10 and sum(orders(held_out, mixed)) == 3
    train.require_tokenizer(mixed)
    texts = [{mixed.decode(document.tokens).text for document in corpus} for corpus in (train, held_out)]
    assert not texts[0] & texts[1]
    assert any("20 documents (pair 20)" in record.message for record in caplog.records)


def test_the_same_command_writes_the_same_bytes(model, tmp_path):
    first = written(model, tmp_path / "a", "scenes", "-n", "9")
    again = written(model, tmp_path / "b", "scenes", "-n", "9")
    assert first.card["files"] == again.card["files"]
    other = written(model, tmp_path / "c", "scenes", "-n", "9", "--seed", "1")
    assert first.card["files"] != other.card["files"]


@pytest.mark.parametrize("kind", READERS)
def test_every_kind_of_files_can_be_written(model, mixed, picture, tmp_path, kind):
    folder = tmp_path / "source"
    folder.mkdir()
    for name in "abcd":
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"caption of {name}")
        (folder / f"{name}.py").write_text(f"{name} = 1\n")
    entries = {
        "jsonl": [{"image": f"{name}.png", "caption": f"caption of {name}"} for name in "abcd"],
        "obelics": [{"images": ["a.png", None], "texts": [None, "x"]}] * 4,
        "mmc4": [{"text_list": ["x"], "image_info": [{"image_name": "a.png", "matched_text_index": 0}]}] * 4,
    }
    path = folder
    if kind in entries:
        path = folder / "made.jsonl"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries[kind]))
    corpus = written(model, tmp_path, kind, str(path))
    assert len(corpus) == 4 and corpus.card["source"] == kind and corpus.card["skipped"] == 0
    assert sum(orders(corpus, mixed)) == (0 if kind in ("text", "code") else 2)


def test_documents_written_by_the_lab_can_be_left_in_their_order(model, mixed, picture, tmp_path):
    path = tmp_path / "made.jsonl"
    path.write_text(4 * (Document.of(picture, "a caption").to_json() + "\n"))
    corpus = written(model, tmp_path, "jsonl", str(path), "--as-written")
    assert orders(corpus, mixed) == [True] * 4
    assert np.array_equal(corpus[0].tokens[1:19], mixed.encode(Document.of(picture))[1:])


def test_pictures_may_lie_in_another_folder(model, picture, tmp_path):
    (tmp_path / "pictures").mkdir()
    picture.save(tmp_path / "pictures" / "a.png")
    (tmp_path / "made.jsonl").write_text('{"images": ["a.png", null], "texts": [null, "x"]}\n')
    arguments = ("obelics", str(tmp_path / "made.jsonl"), "--pictures", str(tmp_path / "pictures"))
    assert written(model, tmp_path, *arguments).card["kinds"] == {"pair": 1}


def test_mistakes_are_told_in_one_line_and_leave_nothing(model, picture, tmp_path, capsys):
    out = ("--out", str(tmp_path / "out"), "--model", model)
    (tmp_path / "empty").mkdir()
    picture.save(tmp_path / "empty" / "a.png")
    assert "Give a path to read jsonl from." in failed(capsys, "tokenize", "jsonl", *out)
    assert "Scenes take no path." in failed(capsys, "tokenize", "scenes", str(tmp_path), *out)
    assert "There is nothing at" in failed(capsys, "tokenize", "text", str(tmp_path / "gone" / "x.txt"), *out)
    assert "--held-out is for scenes" in failed(capsys, "tokenize", "text", str(tmp_path), "--held-out", "3", *out)
    assert "-n must be 1 or more" in failed(capsys, "tokenize", "scenes", "-n", "0", *out)
    error = failed(capsys, "tokenize", "captions", str(tmp_path / "empty"), *out)
    assert "the corpus is empty; skipped were 1, the first for this: a.png: a picture without a caption" in error
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    assert "is taken" in failed(capsys, "tokenize", "text", str(tmp_path / "out" / "mine"), *out)


def test_what_was_stopped_goes_on_and_says_how_far_it_is(model, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tokenization, "BATCH_DOCUMENTS", 4)
    monkeypatch.setattr(command, "entries_progress", partial(progress.entries_progress, every=-1.0))
    whole = written(model, tmp_path / "whole", "scenes", "-n", "30", "--held-out", "10")
    real, ends = shards.Writer.add, [13, 25]

    def stopped(self, *document):
        if ends and self.documents == ends[0]:
            ends.pop(0)
            raise KeyboardInterrupt
        real(self, *document)

    monkeypatch.setattr(shards.Writer, "add", stopped)
    arguments = ("scenes", "-n", "30", "--held-out", "10")
    for _ in range(2):
        with pytest.raises(AssertionError, match="130"):
            written(model, tmp_path, *arguments)
        assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "train.partial"]
    with caplog.at_level(logging.INFO):
        corpus = written(model, tmp_path, *arguments)
    assert corpus.card["files"] == whole.card["files"]
    words = [record.getMessage() for record in caplog.records]
    assert any("of about 10 documents, " in each and " a second, " in each and each.endswith(" left") for each in words)
    assert any("a million take" in each for each in words)
    shutil.rmtree(tmp_path / "out" / "held_out")  # killed between the two
    written(model, tmp_path, *arguments)
    assert (
        (Shards(tmp_path / "out" / "held_out").card["files"])
        == Shards(tmp_path / "whole" / "out" / "held_out").card["files"]
    )
