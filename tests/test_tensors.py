"""Tensors in files: bit for bit, one at a time, all or nothing, and a clear word for every damage."""

import json
import pickle
import random
import resource
import shutil
import warnings
import weakref
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support import Trap
from torch import nn

from chameleon_lab.checkpoints import tensors as lazily
from chameleon_lab.checkpoints.tensors import (
    LazyTensor,
    fill,
    lazy,
    open_safetensors,
    size,
    tensors_of,
    write_safetensors,
)
from chameleon_lab.checkpoints.torch_files import open_torch, write_torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def every_bit(dtype: torch.dtype) -> torch.Tensor:
    """All sorts of values of a dtype: random bytes, NaN and infinities among them."""
    if dtype == torch.bool:
        return torch.rand(37, 16) > 0.5
    return torch.randint(0, 256, (37, 16 * dtype.itemsize), dtype=torch.uint8).view(dtype)


def tensors() -> dict[str, torch.Tensor]:
    shared = torch.randn(6, 8)
    return {
        **{str(dtype): every_bit(dtype) for dtype in DTYPES},
        "a scalar": torch.tensor(3.5),
        "nothing": torch.zeros(0, 4),
        "turned": torch.randn(4, 6).T,
        "a part": shared[1:3, 2:5],
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "ünïcode": torch.arange(5),
    }


class Net(nn.Module):
    """Tied matrices, a buffer of integers, a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight


def on_meta() -> Net:
    with torch.device("meta"):
        return Net()


# Bit for bit


def test_every_bit_of_every_dtype_comes_back(tmp_path):
    made = tensors()
    lazies = {name: lazy(tensor) for name, tensor in made.items()}
    write_torch(lazies, tmp_path / "weights.pth")
    write_safetensors(lazies, tmp_path / "one")
    write_safetensors(lazies, tmp_path / "shards", "weights", largest=700)
    for found in (
        open_torch(tmp_path / "weights.pth"),
        open_safetensors(tmp_path / "one" / "model.safetensors"),
        open_safetensors(tmp_path / "shards"),
        open_safetensors(tmp_path / "shards", "weights"),
    ):
        assert found.keys() == made.keys()
        for name, tensor in found.items():
            assert bits(tensor.read()) == bits(made[name]) == bits(tensor.read()), name
            assert (tensor.dtype, tensor.shape) == (made[name].dtype, tuple(made[name].shape))


def test_what_we_write_others_read_and_the_reverse(tmp_path):
    made = {name: tensor.contiguous() for name, tensor in tensors().items()}
    lazies = {name: lazy(tensor) for name, tensor in made.items()}
    write_torch(lazies, tmp_path / "ours.pth")
    write_safetensors(lazies, tmp_path, "ours")
    torch.save(made, tmp_path / "theirs.pth")
    safetensors.torch.save_file(made, tmp_path / "theirs.safetensors")
    for mapped in (False, True):
        theirs = torch.load(tmp_path / "ours.pth", weights_only=True, mmap=mapped)
        assert list(theirs) == list(made)
        assert all(bits(theirs[name]) == bits(tensor) for name, tensor in made.items())
        assert all(tensor.data_ptr() % 64 == 0 for tensor in theirs.values()), "not aligned"
    theirs = safetensors.torch.load_file(tmp_path / "ours.safetensors")
    assert all(bits(theirs[name]) == bits(tensor) for name, tensor in made.items())
    assert zipfile.ZipFile(tmp_path / "ours.pth").testzip() is None
    for found in (open_torch(tmp_path / "theirs.pth"), open_safetensors(tmp_path / "theirs.safetensors")):
        assert all(bits(found[name].read()) == bits(tensor) for name, tensor in made.items())


def test_tensors_of_more_than_four_gigabytes_are_aligned_too(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)  # as if these were
    made = {f"{n}": torch.randn(n, 7) for n in (1, 3, 40, 41)}
    write_torch({name: lazy(tensor) for name, tensor in made.items()}, tmp_path / "x.pth")
    theirs = torch.load(tmp_path / "x.pth", weights_only=True, mmap=True)
    assert all(torch.equal(theirs[name], made[name]) and theirs[name].data_ptr() % 64 == 0 for name in made)


def test_a_tensor_under_two_names_stands_in_a_torch_file_once(tmp_path):
    one = lazy(torch.randn(1000))
    write_torch({"a": one, "b": one}, tmp_path / "x.pth")
    assert (tmp_path / "x.pth").stat().st_size < 6000
    loaded = torch.load(tmp_path / "x.pth", weights_only=True)
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr() and torch.equal(loaded["b"], one.read())


def test_dtypes_that_a_file_does_not_hold_are_refused(tmp_path):
    for write in (lambda made: write_torch(made, tmp_path / "x.pth"), lambda made: write_safetensors(made, tmp_path)):
        with pytest.raises(ValueError, match=r"complex64"):
            write({"wave": lazy(torch.zeros(2, dtype=torch.complex64))})
    assert list(tmp_path.iterdir()) == []


# One at a time


class Watched:
    """Lazy tensors that count how many of what they read is still held."""

    def __init__(self, count: int) -> None:
        self.held = self.most = self.reads = 0
        self.tensors = {f"{n}": LazyTensor((50, 3), torch.float32, self.read) for n in range(count)}

    def read(self) -> torch.Tensor:
        tensor = torch.randn(50, 3)
        self.held, self.reads = self.held + 1, self.reads + 1
        self.most = max(self.most, self.held)
        weakref.finalize(tensor.untyped_storage(), self.release)
        return tensor

    def release(self) -> None:
        self.held -= 1


@pytest.mark.parametrize(
    "use",
    [
        lambda made, folder: write_torch(made, folder / "x.pth"),
        lambda made, folder: write_safetensors(made, folder),
        lambda made, folder: write_safetensors(made, folder, largest=1500),
        lambda made, folder: fill(_parameters(len(made)), made, "memory"),
        lambda made, folder: fill(_parameters(len(made)), made, "memory", dtype=torch.bfloat16),
    ],
    ids=["torch file", "safetensors", "shards", "module", "module in bfloat16"],
)
def test_only_the_tensor_at_hand_is_held(use, tmp_path):
    watched = Watched(7)
    use(watched.tensors, tmp_path)
    assert (watched.most, watched.held, watched.reads) == (1, 0, 7)


def _parameters(count: int) -> nn.Module:
    with torch.device("meta"):
        return nn.ParameterDict({f"{n}": nn.Parameter(torch.empty(50, 3)) for n in range(count)})


def test_opening_reads_no_tensor_and_a_mapped_one_is_the_files_own(tmp_path):
    write_torch({"a": lazy(torch.zeros(1000))}, tmp_path / "x.pth")
    write_safetensors({"a": lazy(torch.zeros(1000))}, tmp_path)
    for file, found in (
        (tmp_path / "x.pth", open_torch(tmp_path / "x.pth")),
        (tmp_path / "model.safetensors", open_safetensors(tmp_path)),
    ):
        place = file.read_bytes().index(bytes(4000))
        with file.open("r+b") as opened:
            opened.seek(place)
            opened.write(b"\x00\x00\x80\x3f")  # 1.0, written after the file was opened
        assert found["a"].read()[0] == 1


# Shards


def test_shards_are_no_larger_than_asked_and_a_larger_tensor_stands_alone(tmp_path):
    made = {f"{n}": lazy(torch.randn(n)) for n in (10, 20, 30, 500, 10, 90, 100)}
    write_safetensors(made, tmp_path, largest=400)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == size(made) == sum(tensor.nbytes for tensor in made.values())
    assert index["weight_map"].keys() == made.keys()
    sizes = Counter(dict.fromkeys(index["weight_map"].values(), 0))
    for name, file in index["weight_map"].items():
        sizes[file] += made[name].nbytes
    assert [size for size in sizes.values() if size > 400] == [2000]
    assert sorted(sizes) == sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert sorted(sizes)[0] == f"model-00001-of-{len(sizes):05d}.safetensors"


def test_writing_again_leaves_no_file_of_before_but_those_of_other_names(tmp_path):
    made = {f"{n}": lazy(torch.randn(10)) for n in range(5)}
    write_safetensors(made, tmp_path, "other")
    for largest, files in ((80, 4), (40, 6), (1000, 1), (100, 4), (1000, 1)):
        write_safetensors(made, tmp_path, largest=largest)
        assert len(list(tmp_path.iterdir())) == files + 1
        assert open_safetensors(tmp_path, "model").keys() == open_safetensors(tmp_path, "other").keys() == made.keys()


def refused(call, why: str, *arguments, **named) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)


@pytest.fixture
def shards(tmp_path) -> Path:
    write_safetensors({f"{n}": lazy(torch.full((10,), n)) for n in range(5)}, tmp_path, largest=160)
    return tmp_path


def test_a_missing_shard_is_named(shards):
    (shards / "model-00002-of-00003.safetensors").unlink()
    refused(open_safetensors, "incomplete: .*model-00002-of-00003.safetensors is missing", shards)
    (shards / "model.safetensors.index.json").unlink()
    refused(open_safetensors, "incomplete: .* holds 2 of the 3 shards", shards)
    for path in shards.iterdir():
        path.unlink()
    refused(open_safetensors, r"incomplete: .*/\*.safetensors is missing", shards)
    refused(open_safetensors, r"incomplete: .*/model.safetensors is missing", shards, "model")
    refused(open_safetensors, "incomplete: .*nowhere is missing", shards / "nowhere")


def test_shards_without_an_index_are_one_checkpoint(shards):
    (shards / "model.safetensors.index.json").unlink()
    assert [int(tensor.read()[0]) for _, tensor in sorted(open_safetensors(shards).items())] == [0, 1, 2, 3, 4]


def test_shards_of_two_models_are_counted_apart(shards):
    write_safetensors({f"other {n}": lazy(torch.zeros(10)) for n in range(5)}, shards, "other", largest=80)
    for index in shards.glob("*.index.json"):
        index.unlink()
    assert len(open_safetensors(shards)) == 10 and len(open_safetensors(shards, "model")) == 5
    (shards / "other-00001-of-00003.safetensors").unlink()
    refused(open_safetensors, "holds 2 of the 3 shards that other-00002-of-00003.safetensors is one of", shards)


def test_a_name_in_two_files_is_refused_naming_both(shards):
    write_safetensors({"3": lazy(torch.zeros(1))}, shards, "other")
    assert open_safetensors(shards)["3"].shape == (10,)  # the index speaks of one of them
    (shards / "model.safetensors.index.json").unlink()
    refused(open_safetensors, "3 stands both in model-00002-of-00003.safetensors and in other.safetensors", shards)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda index: "{", "index.json is not JSON"),
        (lambda index: "[]", "index.json is damaged: it holds no object"),
        (lambda index: json.dumps({"weight_map": [1]}), "no index of shards"),
        (lambda index: json.dumps({"weight_map": {}}), "no index of shards"),
        (lambda index: index.replace("model-00001", "../model-00001"), "must name files beside it"),
        (lambda index: index.replace('"4"', '"5"'), "5 is not in model-00003-of-00003.safetensors"),
        (lambda index: index.replace('"0": "model-00001', '"0": "model-00002'), "0 is not in model-00002-of-00003"),
    ],
)
def test_an_index_at_odds_with_its_shards_is_refused(shards, change, why):
    path = shards / "model.safetensors.index.json"
    path.write_text(change(path.read_text()))
    refused(open_safetensors, why, shards)


def test_two_indices_and_pickles_alone_are_refused(shards, tmp_path):
    write_safetensors({f"{n}": lazy(torch.zeros(10)) for n in "ab"}, shards, "other", largest=40)
    refused(open_safetensors, "several indices, model.safetensors.index.json, other.safetensors.index.json", shards)
    assert open_safetensors(shards, "other").keys() == {"a", "b"}
    (tmp_path / "pickled").mkdir()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    why = r"pytorch_model\.bin, a pickle, is not opened for it: save it as safetensors"
    refused(open_safetensors, why, tmp_path / "pickled")


# Into a module


def test_a_module_is_filled_with_its_dtypes_ties_and_modes(tmp_path):
    trained = Net()
    trained.norm(torch.randn(5, 4))
    trained.norm.weight.requires_grad_(False)
    assert tensors_of(trained).keys() == trained.state_dict().keys() - {"head.weight"}
    write_safetensors(tensors_of(trained), tmp_path)
    for dtype in (None, torch.bfloat16, torch.float64):
        module = on_meta()
        module.norm.weight.requires_grad_(False)
        fill(module, open_safetensors(tmp_path), tmp_path, dtype=dtype)
        assert module.head.weight is module.embedding.weight
        assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in trained.parameters()]
        for name, tensor in module.state_dict().items():
            expected = trained.state_dict()[name]
            target = dtype if dtype and expected.is_floating_point() else expected.dtype
            assert bits(tensor) == bits(expected.to(target)), name
    (tmp_path / "model.safetensors").unlink()  # what was filled stands on its own
    assert module.norm.running_mean is not None and module.norm.running_mean.isfinite().all()


def good() -> dict[str, torch.Tensor]:
    return {name: tensor.read() for name, tensor in tensors_of(Net()).items()}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda made: made.pop("norm.bias"), r"missing \['norm.bias'\]"),
        (lambda made: made.update(strange=torch.zeros(1)), r"unknown \['strange'\]"),
        (lambda made: made.update({"head.weight": torch.zeros(10, 4)}), r"unknown \['head.weight'\]"),
        (lambda made: made.update({"norm.bias": torch.zeros(5)}), r"norm.bias \(5,\) instead of \(4,\)"),
        (lambda made: made.update({"norm.bias": torch.zeros(4, dtype=torch.int8)}), "of integers instead of"),
        (lambda made: made["norm.running_var"].fill_(float("nan")), "norm.running_var holds NaN or infinity"),
        (lambda made: made["norm.running_var"].__setitem__(3, float("-inf")), "norm.running_var holds NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_named_and_the_module_left_alone(change, why):
    made = good()
    change(made)
    module = on_meta()
    refused(fill, f"somewhere.*{why}", module, {name: lazy(tensor) for name, tensor in made.items()}, "somewhere")
    assert all(tensor.is_meta for tensor in module.state_dict().values())
    assert module.head.weight is module.embedding.weight


def test_nan_can_be_allowed_and_overflow_of_a_smaller_dtype_is_told():
    made = good() | {"norm.bias": torch.tensor([1.0, float("nan"), float("inf"), 70_000.0])}
    module = on_meta()
    fill(module, made, "memory", finite=False)
    assert bits(module.norm.bias.detach()) == bits(made["norm.bias"])
    made["norm.bias"] = torch.tensor([1.0, 70_000.0, 0.0, 0.0])
    refused(fill, r"norm.bias holds NaN or infinity as torch.float16", on_meta(), made, "x", dtype=torch.float16)
    fill(on_meta(), made, "x", dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_one_nan_is_found_wherever_it_stands(dtype, monkeypatch):
    monkeypatch.setattr(lazily, "ELEMENTS_AT_ONCE", 8)
    for place in (0, 7, 8, 19):
        tensor = torch.ones(20)
        assert lazily.all_finite(tensor.to(dtype))
        tensor[place] = float("nan")
        assert not lazily.all_finite(tensor.to(dtype))
    assert lazily.all_finite(torch.zeros(0, dtype=dtype)) and lazily.all_finite(torch.ones(4, dtype=torch.int8))


def test_a_model_larger_than_memory_is_one_clear_error():
    with torch.device("meta"):
        module = nn.Embedding(2**40, 2**10)
    huge = LazyTensor((2**40, 2**10), torch.float32, lambda: torch.zeros(1))
    refused(
        fill, "big does not fit into the memory of cpu as torch.float32: at weight", module, {"weight": huge}, "big"
    )


# All or nothing


def fails() -> torch.Tensor:
    raise OSError("the disk went away")


@pytest.mark.parametrize("largest", [10**9, 100], ids=["one file", "shards"])
def test_a_failing_write_leaves_what_was_there(tmp_path, largest):
    before = {f"{n}": lazy(torch.full((10,), float(n))) for n in range(5)}
    write_safetensors(before, tmp_path, largest=largest)
    write_torch(before, tmp_path / "x.pth")
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    after = {"0": lazy(torch.zeros(10)), "1": lazy(torch.ones(30)), "2": LazyTensor((10,), torch.float32, fails)}
    for write in (
        lambda: write_safetensors(after, tmp_path, largest=largest),
        lambda: write_torch(after, tmp_path / "x.pth"),
    ):
        with pytest.raises(OSError, match="went away"):
            write()
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path):
    write_safetensors({"a": lazy(torch.ones(10))}, tmp_path)
    write_torch({"a": lazy(torch.ones(10))}, tmp_path / "x.pth")
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    large = {f"{n}": lazy(torch.zeros(10_000)) for n in range(9)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # writing past it fails as on a full disk
    try:
        for write in (lambda: write_safetensors(large, tmp_path), lambda: write_torch(large, tmp_path / "x.pth")):
            with pytest.raises(OSError, match="File too large"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    made = {"a": lazy(torch.zeros(500_000))}
    refused(write_safetensors, r"needs 3.0 MB, and its disk has 1.0 MB free", made, tmp_path)
    refused(write_torch, "make room, or write somewhere else", made, tmp_path / "x.pth")
    assert list(tmp_path.iterdir()) == []


# Damage and deceit


def test_pickles_are_refused_unread(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"weight": Trap()}))
    refused(open_torch, "x.pth is no weights file of torch 1.6 or later, and is not opened", path)
    torch.save({"weight": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    refused(open_torch, "x.pth is no weights file of torch 1.6 or later, and is not opened", path)
    torch.save({"weight": torch.zeros(3), "hook": Trap()}, path)
    refused(open_torch, r"x.pth holds more than weights \(it asks for .*exec\), and is not opened", path)
    refused(open_safetensors, "x.pth is damaged or no safetensors file", path)


@pytest.mark.parametrize("opening", [open_torch, open_safetensors])
def test_what_a_failed_download_leaves_is_called_by_its_name(opening, tmp_path):
    path = tmp_path / "x.weights"
    path.touch()
    refused(opening, "x.weights is empty", path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 14000000000\n")
    refused(opening, "x.weights is Git LFS's pointer .* `git lfs pull`", path)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int8], ids=str)
def test_a_module_is_filled_in_a_floating_point_dtype_or_not_at_all(dtype):
    with torch.device("meta"):
        module = nn.Linear(2, 2)
    refused(fill, "dtype is a floating-point one of torch's", module, {}, "there", dtype=dtype)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    refused(open_torch, "incomplete: .*x.pth is missing", path)
    for nothing in ({}, [torch.zeros(2)], torch.zeros(2), {"epoch": 3}, {1: torch.zeros(2)}):
        torch.save(nothing, path)
        refused(open_torch, "holds no named tensors", path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # each of these warns of what it may become
        nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
        scaled = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)
        kinds = (torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr(), nested, scaled, torch.eye(3) * 1j)
    for strange in kinds:
        torch.save({"weight": strange}, path)
        refused(open_torch, "weight as a sparse, nested, complex or quantized tensor", path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no tensors")
    refused(open_torch, "x.pth is damaged or no weights file", path)


def test_a_state_dict_inside_is_unwrapped_and_what_is_no_tensor_left(tmp_path):
    weights = {"a": torch.ones(2), "_metadata": "x"}
    torch.save({"state_dict": weights, "epoch": 3, "loops": {"b": torch.zeros(3)}}, tmp_path / "x.ckpt")
    assert {name: tensor.read().tolist() for name, tensor in open_torch(tmp_path / "x.ckpt").items()} == {"a": [1, 1]}


def test_a_compressed_archive_is_refused(tmp_path):
    write_torch({"a": lazy(torch.zeros(1000))}, tmp_path / "x.pth")
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as whole,
        zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    refused(open_torch, "y.pth is damaged or no weights file: it is compressed", tmp_path / "y.pth")


@pytest.mark.parametrize("write", ["ours", "torch", "safetensors"])
def test_tampered_and_truncated_files_load_whole_or_are_refused(write, tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    path = tmp_path / ("model.safetensors" if write == "safetensors" else "x.pth")
    if write == "ours":
        write_torch(tensors_of(model), path)
    elif write == "torch":
        torch.save(model.state_dict(), path)
    else:
        write_safetensors(tensors_of(model), tmp_path)
    whole, draw, outcomes = path.read_bytes(), random.Random(0), Counter()
    for _ in range(400):
        damaged = bytearray(whole)
        kind = draw.choice(("flip", "cut", "drop"))
        place = draw.randrange(len(whole))
        if kind == "flip":
            damaged[place] ^= draw.randrange(1, 256)
        elif kind == "cut":
            del damaged[place:]
        else:
            del damaged[place : place + draw.randrange(1, 20)]
        path.with_name("damaged").write_bytes(damaged)
        with torch.device("meta"):
            again = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        try:
            opened = (open_safetensors if write == "safetensors" else open_torch)(path.with_name("damaged"))
            fill(again, opened, path)
        except ValueError as error:
            assert "\n" not in str(error)
            assert all(tensor.is_meta for tensor in again.state_dict().values())
            outcomes["refused"] += 1
        else:
            assert {k: v.shape for k, v in again.state_dict().items()} == {
                k: v.shape for k, v in model.state_dict().items()
            }
            assert kind != "cut"
            outcomes["loaded"] += 1
    assert outcomes["refused"] > 200


SWELLING = {
    "one number for many": lambda: {"a": torch.zeros(1).expand(1000, 1000)},
    "a row for a matrix": lambda: {"a": torch.zeros(8).expand(3, 8)},
    "no content": lambda: {"a": torch.empty(3, 3, device="meta")},
    "one tensor under many names": lambda: dict.fromkeys(map(str, range(64)), torch.zeros(2**16)),
}


@pytest.mark.parametrize("kind", SWELLING)
def test_a_small_torch_file_does_not_stand_for_much_memory(kind, tmp_path):
    torch.save({"state_dict": SWELLING[kind]()}, tmp_path / "x.pth")
    refused(open_torch, "which repeats a part of what the file stores|without its content", tmp_path / "x.pth")


def test_tied_and_strided_tensors_are_read_as_they_are(tmp_path):
    whole = torch.arange(48.0).view(6, 8)
    tensors = {"a": whole, "b": whole, "rows": whole[2:4], "turned": whole.T, "steps": whole[::2, ::2]}
    torch.save(tensors, tmp_path / "x.pth")
    assert all(torch.equal(tensor.read(), tensors[name]) for name, tensor in open_torch(tmp_path / "x.pth").items())
