"""`chameleon-lab convert`: any format to any other from the shell, bit for bit, or nothing written and a clear word."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from support import failed

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints import formats
from chameleon_lab.checkpoints.tensors import open_safetensors, write_safetensors
from chameleon_lab.commands.main import main
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.vocabulary import Vocabulary


@pytest.fixture
def lab(make_lab, mixed) -> Chameleon:
    """A model that can be cut into two shards: its vocabulary is even."""
    vocabulary = Vocabulary.layout(mixed.image.codes, mixed.text.size, sentinels=9)
    return make_lab(MixedModalTokenizer(mixed.text, mixed.image, vocabulary))


@pytest.fixture
def source(lab, tmp_path) -> Path:
    lab.save(tmp_path / "source")
    return tmp_path / "source"


def convert(*arguments: object) -> None:
    assert main(["convert", *map(str, arguments), "--without-pictures"]) == 0


def weights(folder: Path) -> dict[str, bytes]:
    tensors = formats.open_folder(folder).tensors
    return {name: tensor.read().contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def test_every_format_goes_into_the_next_and_back_bit_for_bit(source, tmp_path):
    before, place = weights(source), source
    for format in (*formats.FORMATS, "native"):
        place, last = tmp_path / f"{format} of {place.name}", place
        convert(last, place, "--format", format)
        assert weights(place) == before, f"{last.name} to {format}"


def test_what_was_found_and_what_was_written_is_told(source, tmp_path, caplog, lab):
    with caplog.at_level(logging.INFO):
        convert(source, tmp_path / "meta", "--format", "meta", "--shards", "2")
        convert(tmp_path / "meta", tmp_path / "port", "--format", "huggingface", "--dtype", "bfloat16")
        convert(tmp_path / "port", tmp_path / "native", "--format", "native")
    count = sum(parameter.numel() for parameter in lab.model.parameters())
    assert f"source is native: {count:,} parameters, float32, {4 * count / 1e6:.1f} MB." in caplog.text
    assert f"meta is meta: {count:,} parameters, float32" in caplog.text
    assert f"port is huggingface: {count:,} parameters, bfloat16, {2 * count / 1e6:.1f} MB." in caplog.text
    assert "port has no image tokenizer" in caplog.text
    files = sum(file.is_file() for file in (tmp_path / "meta").rglob("*"))
    assert f"meta is meta: {files} files, " in caplog.text
    assert sorted(file.name for file in (tmp_path / "meta").glob("*.pth")) == [
        "consolidated.00.pth",
        "consolidated.01.pth",
    ]
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in lab.model.state_dict().items()}
    found = Chameleon.load(tmp_path / "native", device="cpu", dtype=torch.bfloat16).model.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_shipped_model_is_known_by_its_name(tmp_path):
    convert("tiny", tmp_path / "port", "--format", "huggingface")
    assert json.loads((tmp_path / "port" / "config.json").read_text())["model_type"] == "chameleon"


def test_nothing_is_overwritten(source, tmp_path, capsys):
    for target in (source, source / "config.json"):
        before = {file.name: file.read_bytes() for file in source.iterdir()}
        told = failed(capsys, "convert", source, target, "--format", "native")
        assert f"{target} is there already: convert into a new or empty folder." in told
        assert {file.name: file.read_bytes() for file in source.iterdir()} == before
    (tmp_path / "empty").mkdir()
    convert(source, tmp_path / "empty", "--format", "native")
    assert weights(tmp_path / "empty") == weights(source)


def test_a_disk_without_room_is_told_before_anything_is_written(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10, 10))
    told = failed(capsys, "convert", source, tmp_path / "a" / "b", "--format", "native")
    assert "b needs 1.2 MB, and its disk has 0.0 MB free" in told
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_cannot_be_converted_leaves_nothing(source, tmp_path, capsys):
    port = tmp_path / "port"
    error = failed(capsys, "convert", source, port, "--format", "huggingface")
    assert "cannot express an image tokenizer with" in error
    error = failed(capsys, "convert", source, port, "--format", "meta", "--shards", 3, "--without-pictures")
    assert "cannot be cut into 3 shards: heads 4" in error
    error = failed(capsys, "convert", tmp_path / "nowhere", port, "--format", "native")
    assert "is no model folder" in error
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[:-1])
    assert "model.safetensors is damaged" in failed(capsys, "convert", source, tmp_path / "port", "--format", "native")
    (source / "model.safetensors").write_bytes(whole)
    tensors = open_safetensors(source, "model")
    write_safetensors({name: tensor for name, tensor in tensors.items() if name != "norm.weight"}, source)
    for format in ("native", "meta"):
        told = failed(capsys, "convert", source, tmp_path / "port", "--format", format, "--without-pictures")
        assert "contradicts the folder's config.json: missing ['norm.weight']" in told
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_folder_of_two_layouts_wants_to_be_told_which(source, tmp_path, capsys):
    convert(source, tmp_path / "both", "--format", "meta")
    for file in source.iterdir():
        shutil.copy(file, tmp_path / "both")
    assert "is ambiguous" in failed(capsys, "convert", tmp_path / "both", tmp_path / "out", "--format", "native")
    convert(tmp_path / "both", tmp_path / "out", "--format", "native", "--layout", "meta")
    assert weights(tmp_path / "out") == weights(source)
