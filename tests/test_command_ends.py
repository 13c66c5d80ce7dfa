"""How the commands that write for long end when they are told to, or cannot write: an exit code and one line."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
import pytest
import torch

from chameleon_lab import storage
from chameleon_lab.chameleon import Chameleon
from chameleon_lab.commands.main import main
from chameleon_lab.tokenizers.networks import FeatureNetwork


@pytest.fixture
def commands(tmp_path, lab, monkeypatch) -> Iterator[dict[str, list[str]]]:
    """A command line of each, small, that writes into `tmp_path/out`; and the signals as at a prompt."""
    lab.save(tmp_path / "model")
    data, out = tmp_path / "data", tmp_path / "out"
    (data / "val2014").mkdir(parents=True)
    (data / "annotations").mkdir()
    names = [f"{number}.png" for number in range(3)]
    for name in names:
        PIL.Image.new("RGB", (16, 16), "red").save(data / "val2014" / name)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    captions = [{"image_id": number, "caption": "a cat"} for number in range(3)]
    plain = {"images": images, "annotations": captions}
    (data / "annotations" / "captions_val2014.json").write_text(json.dumps(plain))
    (data / "texts.jsonl").write_text(json.dumps({"text": "some words"}) + "\n")
    (data / "asked.jsonl").write_text(json.dumps({"prompt": "a", "pictures": 0}) + "\n")
    monkeypatch.setattr(
        "chameleon_lab.commands.coco.inception", lambda: FeatureNetwork("none", torch.nn.Identity(), "cpu")
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    model = ["--model", str(tmp_path / "model")]
    yield {
        "tokenize": ["tokenize", "jsonl", str(data / "texts.jsonl"), "--out", str(out / "corpus"), *model],
        "coco": [
            *("coco", "--data", str(data), "--out", str(out), "-n", "3", "--tries", "1", "--documents", "0"), *model
        ],
        "evaluate": ["evaluate", "--prompts", str(data / "asked.jsonl"), "--out", str(out / "replies.jsonl"), *model],
        "launch": [
            *("launch", "side_by_side", "--folder", str(out), "--dry-run", "--processes", "1", "--accelerator", "cpu"),
        ],
    }  # fmt: skip
    signal.signal(signal.SIGINT, before)


WORK = {
    "tokenize": "chameleon_lab.corpora.shards.tokenized_batches",
    "coco": "chameleon_lab.evaluation.coco._replies",
    "evaluate": "chameleon_lab.evaluation.own_prompts.item_words",
    "launch": "chameleon_lab.training.launch.python_of",
}
"""What each calls in the middle of its work."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", WORK)
def test_told_to_end_it_ends_with_the_signal_s_code_and_one_line(commands, name, number, monkeypatch, capsys):
    def told(*_arguments, **_options):
        os.kill(os.getpid(), number)
        return iter(())

    monkeypatch.setattr(WORK[name], told)
    assert main(commands[name]) == 128 + number
    cause = "" if number == signal.SIGINT else " by SIGTERM"
    assert capsys.readouterr().err.splitlines()[-1] == f"chameleon-lab: stopped{cause}."


def full(folder: Path) -> Callable[..., int]:
    """A disk that has no room for what is written into a folder."""
    write = Path.write_bytes

    def refuse(path: Path, content: bytes) -> int:
        if path.is_relative_to(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    return refuse


@pytest.mark.parametrize("name", WORK)
def test_on_a_full_disk_it_says_which_file_and_leaves_no_half_of_one(commands, name, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Path, "write_bytes", full(tmp_path / "out"))
    assert main(commands[name]) == 2
    words = capsys.readouterr().err.strip().splitlines()[-1]
    assert words.startswith("chameleon-lab: [Errno 28] No space left on device: '") and str(tmp_path / "out") in words
    assert not [each for each in tmp_path.rglob("*.partial") if each.is_file()]


@pytest.mark.parametrize("name", ["tokenize", "coco", "launch"])
def test_a_folder_that_is_deleted_meanwhile_is_one_line(commands, name, monkeypatch, capsys, tmp_path):
    written, name_file = list[Path](), storage.name_file

    def delete(partial: Path, path: Path) -> None:
        shutil.rmtree(path.parent)
        written.append(path)
        name_file(partial, path)

    monkeypatch.setattr(storage, "name_file", delete)
    assert main(commands[name]) == 2
    assert written and str(written[0].parent) in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_full_disk_costs_no_answers(commands, monkeypatch, capsys, caplog, tmp_path):
    monkeypatch.setattr(Path, "write_bytes", full(tmp_path / "out"))
    caplog.set_level("INFO")
    assert main(commands["evaluate"]) == 2 and "right: all" in caplog.text
    assert isinstance(Chameleon.load(tmp_path / "model", device="cpu"), Chameleon)
