"""Tensors in files, read when asked for, one at a time.

A format of checkpoints is a function between mappings of lazy tensors: to load is `fill(model, ours(open(files)))`, to
convert is `write(theirs(ours(open(files))))`, and only the tensor at hand is ever in memory. Files are mapped, never
read whole. Torch's own files are read with `weights_only`, so that nothing in them is executed.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from chameleon_lab.files import LARGEST_JSON, LFS_POINTER, absence, read_table, reason_of
from chameleon_lab.storage import name_file

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What safetensors calls the dtypes that checkpoints have."""

NAMES_OF_DTYPES = {dtype: name for name, dtype in DTYPES.items()}

ELEMENTS_AT_ONCE = 2**22
"""Elements of float8 that are looked at together for NaN."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when asked for: each call of `read` reads it anew, and keeps nothing."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


Tensors = Mapping[str, LazyTensor]


def lazy(tensor: Tensor) -> LazyTensor:
    """A tensor at hand, as one that is read."""
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def tensors_of(module: nn.Module) -> dict[str, LazyTensor]:
    """The state dict of a module, a tied tensor only once."""
    return {name: lazy(tensor.detach()) for name, tensor in _state(module)[0].items()}


def size(tensors: Tensors) -> int:
    """Bytes that the tensors take."""
    return sum(tensor.nbytes for tensor in tensors.values())


# Reading


def open_safetensors(
    path: Path | str, stem: str | None = None, belongs: Callable[[str], bool] | None = None
) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file, or of a folder's: all shards, and with `stem` only those so called.

    Where a folder has an index, the index says which files count, and one called `model` before any other. `belongs`
    says of a tensor's name whether it can be one of a model: then files count that are called `model`, or else those
    that hold such a name. Raises ValueError for a file that is damaged or no
    safetensors, for shards that are missing, and for a name that stands in two of them.
    """
    path = Path(path)
    index: dict[str, str] = {}
    if path.is_dir():
        files, index = _shard_files(path, stem, belongs)
    else:
        files = [path]
    tensors: dict[str, LazyTensor] = {}
    where: dict[str, str] = {}
    for file in files:
        for name, tensor in _one_safetensors(file).items():
            if name in tensors:
                raise ValueError(
                    f"{name} stands both in {where[name]} and in {file.name} of {path}: files of two models, or "
                    "two variants of one, are mixed there. Keep those of one."
                )
            tensors[name], where[name] = tensor, file.name
    misplaced = [name for name, file in index.items() if where.get(name) != file]
    if misplaced:
        raise ValueError(
            f"The index of {path} is at odds with its files: {misplaced[0]} is not in {index[misplaced[0]]}. "
            "Get or save the checkpoint anew."
        )
    return tensors


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder by name, hidden ones left out: macOS puts a `._NAME` beside each file that it copies."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if not file.name.startswith(".") and file.is_file())


def _shard_files(
    folder: Path, stem: str | None, belongs: Callable[[str], bool] | None
) -> tuple[list[Path], dict[str, str]]:
    """The files of a folder that count, and which names its index has in which of them."""
    own = [file for file in visible_files(folder) if ".safetensors" in file.name]
    candidates = own if stem is None else [file for file in own if _is_named(file, stem)]
    indices = [file for file in candidates if file.name.endswith(".safetensors.index.json")]
    files = [file for file in candidates if file.suffix == ".safetensors"]
    main = [file for file in indices if file.name == MAIN_INDEX]
    if len(indices) > 1 and not (main and belongs):
        raise ValueError(
            f"{folder} holds several indices, {', '.join(file.name for file in indices)}: keep the one of the model "
            "you mean."
        )
    if indices:
        path = (main or indices)[0]
        index = read_index(path)
        named = {folder / name for name in index.values()}
        if absent := sorted(named - set(files)):
            raise ValueError(
                f"The checkpoint is incomplete: {absent[0]} {absence(absent[0])}, and {path.name} speaks of it. "
                "Get it again."
            )
        return sorted(named), index
    if not files:
        kinds = ("*.bin", "*.pt", "*.pth", "*.ckpt")
        pickled = sorted(file.name for kind in kinds for file in folder.glob(kind))
        pickle = f", and {pickled[0]}, a pickle, is not opened for it: save it as safetensors" if pickled else ""
        usual = folder / f"{stem or 'model'}.safetensors"
        place = usual if stem or os.path.lexists(usual) else folder / "*.safetensors"
        raise ValueError(f"The checkpoint is incomplete: {place} {absence(place)}{pickle}.")
    files = _main_files(files, belongs)
    for file in files:
        if match := re.fullmatch(r"(.+)-\d+-of-(\d+)\.safetensors", file.name):
            like = re.compile(rf"{re.escape(match[1])}-\d+-of-{match[2]}\.safetensors")
            present = sum(bool(like.fullmatch(other.name)) for other in files)
            if present != int(match[2]):
                raise ValueError(
                    f"The checkpoint is incomplete: {folder} holds {present} of the {int(match[2])} shards that "
                    f"{file.name} is one of. Get the others."
                )
    return files, {}


MAIN_INDEX = "model.safetensors.index.json"


def _main_files(files: list[Path], belongs: Callable[[str], bool] | None) -> list[Path]:
    """Of several files of weights those of the model: the usual names before any others, which have to hold a name that
    `belongs` to one."""
    if belongs is None or len(files) < 2:
        return files
    whole = [file for file in files if file.name == "model.safetensors"]
    shards = [file for file in files if re.fullmatch(r"model-\d+-of-\d+\.safetensors", file.name)]
    if whole or shards:
        return whole or shards
    return [file for file in files if any(map(belongs, _one_safetensors(file)))] or files


def read_index(path: Path) -> dict[str, str]:
    """In which file each tensor is, as an index says. Raises ValueError for one that is damaged."""
    table = read_table(path, LARGEST_JSON)
    try:
        index = table["weight_map"]
        plain = all(isinstance(file, str) and Path(file).name == file for file in index.values())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no index of shards: {reason_of(error)}. Get or save the checkpoint anew."
        ) from error
    if not plain or not index:
        raise ValueError(f"{path} is no index of shards: it must name files beside it. Get the checkpoint anew.")
    return index


def _one_safetensors(path: Path) -> dict[str, LazyTensor]:
    if fault := absence(path):
        raise ValueError(f"The checkpoint is incomplete: {path} {fault}.")
    check_fetched(path)
    try:
        file: Any = safe_open(path, framework="pt")  # stays open as long as a lazy tensor is about
        tensors: dict[str, LazyTensor] = {}
        for name in list(file.keys()):
            about = file.get_slice(name)
            dtype = DTYPES.get(about.get_dtype())
            if dtype is None:
                raise ValueError(f"{path} holds {name} as {about.get_dtype()}, which the lab does not read.")
            tensors[name] = LazyTensor(tuple(about.get_shape()), dtype, lambda name=name: file.get_tensor(name))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file: {error}. Get or save the checkpoint anew."
        ) from error
    return tensors


def check_fetched(path: Path) -> None:
    """Raises ValueError for what a download that did not happen leaves in place of weights."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{path} is empty. Get it anew.")
    if start.startswith(LFS_POINTER):
        raise ValueError(f"{path} is Git LFS's pointer to weights, not the weights: fetch them with `git lfs pull`.")


# Into a module


def fill(
    module: nn.Module,
    tensors: Mapping[str, LazyTensor | Tensor],
    source: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    finite: bool = True,
    config: str = "config.json",
) -> None:
    """Puts tensors into a module made on the meta device, one at a time: all of them or, on an error, none.

    `dtype` is for floating-point tensors, and by default the file's own; `config` is the file that the module was made
    by. Raises ValueError for what does not fit (see `check`), naming the first tensor that holds NaN or infinity where
    `finite`, and where memory runs out.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(
            f"dtype is a floating-point one of torch's, such as torch.bfloat16, not {dtype!r}. Fewer bits are packed: "
            "Chameleon.load(folder, weights='int8')."
        )
    check(module, tensors, source, config)
    expected, twins = _state(module)
    filled: dict[str, Tensor] = {}
    for name in expected:
        tensor = tensors[name]
        target = dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype
        if target.is_floating_point and target.itemsize == 1:
            raise ValueError(
                f"{source}: {name} would be {target}, in which nothing can be computed here: take "
                "dtype=torch.bfloat16, or have it packed as it is read, Chameleon.load(folder, weights='int8')."
            )
        try:
            filled[name] = torch.empty(tuple(tensor.shape), dtype=target, device=device)
            filled[name].copy_(tensor.read() if isinstance(tensor, LazyTensor) else tensor.detach())
        except RuntimeError as error:
            if not re.search("memory|overflow", str(error)):
                raise
            filled.clear()
            raise ValueError(
                f"{source} does not fit into the memory of {device} as {target}: at {name} there was no more. Take a "
                "smaller dtype, fewer bits, or another device."
            ) from error
        if finite and not all_finite(filled[name]):
            raise ValueError(
                f"{source}: {name} holds NaN or infinity{'' if target == tensor.dtype else f' as {target}'}, and a "
                "model with it computes nothing else. Get or save the checkpoint anew."
            )
    module.load_state_dict(filled, assign=True, strict=not twins)
    for name, twin in twins.items():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, module.get_parameter(twin))


def check(
    module: nn.Module, tensors: Mapping[str, LazyTensor | Tensor], source: Path | str, config: str = "config.json"
) -> None:
    """Raises ValueError naming what is missing, unknown or misshapen among the tensors of a module."""
    expected, _ = _state(module)
    missing, strange = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    misshapen = [
        f"{name} {_shape(tensors[name])} instead of {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in tensors and _shape(tensors[name]) != _shape(tensor)
    ]
    if missing or strange or misshapen:
        more = f" and {len(missing) - 3} more of {len(expected)}: get the rest" if len(missing) > 3 else ""
        faults = [f"missing {missing[:3]}{more}"] * bool(missing)
        faults += [f"unknown {strange[:3]}"] * bool(strange) + misshapen[:3]
        raise ValueError(f"{source} contradicts the folder's {config}: {'; '.join(faults)}.")


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite, found with little memory."""
    if not tensor.dtype.is_floating_point or not tensor.numel():
        return True
    small = tensor.dtype.itemsize == 1  # float8 knows no extremes
    parts = (part.float() for part in tensor.reshape(-1).split(ELEMENTS_AT_ONCE)) if small else (tensor,)
    return all(bool(torch.stack(torch.aminmax(part)).isfinite().all()) for part in parts)  # NaN is its own extreme


def _state(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state of a module, each tensor under its first name, and the other names of tied ones."""
    first: dict[int, str] = {}
    state: dict[str, Tensor] = {}
    twins: dict[str, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if (twin := first.setdefault(id(tensor), name)) == name:
            state[name] = tensor
        else:
            twins[name] = twin
    return state, twins


def _shape(tensor: LazyTensor | Tensor) -> str:
    """Shape, and whether integers: what a file must agree in with its config. Any floating-point dtype will do."""
    return f"{tuple(tensor.shape)}" + ("" if tensor.dtype.is_floating_point else " of integers")


# Writing


def write_safetensors(tensors: Tensors, folder: Path | str, stem: str = "model", largest: int = 5 * 10**9) -> None:
    """Writes tensors one at a time: `stem.safetensors`, or shards of at most `largest` bytes and their index.

    All of it or nothing: what was there under that name is replaced at the end. Raises ValueError before anything is
    written where the disk has no room, OSError when it fills up meanwhile.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _cut_into_shards(tensors, largest)
    check_room(folder, size(tensors))
    several = len(shards) > 1
    endings = [f"-{n:05d}-of-{len(shards):05d}" if several else "" for n in range(1, len(shards) + 1)]
    names = [f"{stem}{ending}.safetensors" for ending in endings]
    index = folder / f"{stem}.safetensors.index.json"
    written = [folder / name for name in names] + [index] * several
    with all_or_nothing(written) as partials:
        for shard, partial in zip(shards, partials, strict=False):
            with partial.open("wb") as file:
                _write_one(shard, file)
        if several:
            weight_map = {tensor: name for shard, name in zip(shards, names, strict=True) for tensor in shard}
            about = {"metadata": {"total_size": size(tensors)}, "weight_map": weight_map}
            partials[-1].write_text(json.dumps(about, indent=2) + "\n")
    for file in files_of(folder, stem):
        if file not in written:
            file.unlink()


def files_of(folder: Path, stem: str) -> list[Path]:
    """The files of that name in a folder: one, or shards and their index."""
    return sorted(file for file in folder.iterdir() if _is_named(file, stem))


def _is_named(file: Path, stem: str) -> bool:
    return bool(re.fullmatch(rf"{re.escape(stem)}(-\d+-of-\d+)?\.safetensors(\.index\.json)?", file.name))


def _cut_into_shards(tensors: Tensors, largest: int) -> list[dict[str, LazyTensor]]:
    shards: list[dict[str, LazyTensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > largest:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    return shards


def _write_one(tensors: Tensors, file: BinaryIO) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES_OF_DTYPES:
            raise ValueError(f"{name} is of {tensor.dtype}, which safetensors here does not hold: convert it first.")
        end = place + tensor.nbytes
        header[name] = {"dtype": NAMES_OF_DTYPES[tensor.dtype], "shape": tensor.shape, "data_offsets": [place, end]}
        place = end
    plain = json.dumps(header).encode()
    plain += b" " * (-len(plain) % 8)
    file.write(struct.pack("<Q", len(plain)) + plain)
    for tensor in tensors.values():
        file.write(bytes_of(tensor))


def bytes_of(tensor: LazyTensor) -> memoryview:
    """The bytes of a tensor in row-major order."""
    plain = tensor.read().detach()
    assert (tuple(plain.shape), plain.dtype) == (tensor.shape, tensor.dtype), f"{tensor} came otherwise"
    content: Any = plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(content)


def check_room(folder: Path, needed: int) -> None:
    """Raises ValueError where a folder's disk has less free than is needed; the folder need not be there yet."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    needed += 2**20  # names and settings take a little too
    if needed > free:
        raise ValueError(
            f"{folder} needs {size_in_words(needed)}, and its disk has {size_in_words(free)} free: make room, or write "
            "somewhere else."
        )


def size_in_words(count: int) -> str:
    """A number of bytes with its unit."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@contextmanager
def all_or_nothing(files: list[Path]) -> Iterator[list[Path]]:
    """Gives a `.partial` for each file, and puts them in place together at the end; on an error they go."""
    partials = [file.with_name(file.name + ".partial") for file in files]
    try:
        yield partials
        for partial, file in zip(partials, files, strict=True):
            name_file(partial, file)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
