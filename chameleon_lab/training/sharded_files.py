"""Checkpoints in parts: folders that torch's distributed checkpoint writes, one file a process, as a run keeps them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from chameleon_lab.checkpoints.tensors import LazyTensor
from chameleon_lab.files import absence, checksum, read_table
from chameleon_lab.storage import exchange, name_file, sync, write_file

CONTENTS = "contents.json"
"""Each file's checksum, written when all are there."""

REST = "meta.pt"
"""What Lightning keeps beside weights and optimizers' states."""


def checksums(folder: Path, rank: int) -> dict[str, str]:
    """Of the files that one process wrote."""
    return {path.name: checksum(path) for path in sorted(folder.glob(f"__{rank}_*.distcp"))}


def seal(folder: Path, each: Iterable[dict[str, str]]) -> None:
    """Says that a checkpoint is whole, once every process has written its part."""
    sums = {name: digest for one in each for name, digest in one.items()}
    sums |= {name: checksum(folder / name) for name in (".metadata", REST)}
    for name in sums:
        sync(folder / name)
    write_file(folder / CONTENTS, json.dumps(sums) + "\n")


def check_sharded(folder: Path) -> None:
    """Raises ValueError, saying why, for a checkpoint in parts that is not whole, and for one that does more when it is
    read than to hold tensors and plain values."""
    try:
        sums = read_table(folder / CONTENTS)
    except (OSError, ValueError) as error:
        raise ValueError(f"it has no readable {CONTENTS}, so not all of its parts were written") from error
    for name, digest in sums.items():
        path = folder / Path(name).name
        if fault := absence(path):
            raise ValueError(f"its part {name} {fault}")
        if checksum(path) != digest:
            raise ValueError(f"its part {name} has changed since it was written")
    metadata = read_metadata(folder)
    for index, place in (metadata.storage_data or {}).items():
        if isinstance(metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            with (folder / Path(place.relative_path).name).open("rb") as file:
                file.seek(place.offset)
                torch.load(BytesIO(file.read(place.length)), weights_only=True)


class _Careful(pickle.Unpickler):
    """Of torch's own classes for it, and nothing else."""

    MODULES = tuple(f"torch.distributed.checkpoint.{name}" for name in ("metadata", "filesystem", "storage"))
    NAMES = (("torch", "Size"), ("torch.serialization", "_get_layout"), ("collections", "OrderedDict"))
    NAMES += (("pathlib", "PosixPath"), ("pathlib._local", "PosixPath"))

    def find_class(self, module: str, name: str) -> Any:
        kinds = (torch.dtype, torch.layout, torch.memory_format)
        constant = module == "torch" and isinstance(getattr(torch, name, None), kinds)
        if not (constant or (module, name) in self.NAMES or module in self.MODULES):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a checkpoint")
        return super().find_class(module, name)


def read_metadata(folder: Path) -> Metadata:
    """What a checkpoint in parts holds, and where. Raises ValueError for a file that is damaged or wants to do more."""
    try:
        with (folder / ".metadata").open("rb") as file:
            return _Careful(file).load()
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, IndexError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"its .metadata cannot be read ({why})") from error


def rest_of(folder: Path) -> dict[str, Any]:
    """What stands beside weights and optimizers' states: the training's clock and random numbers."""
    return torch.load(folder / REST, weights_only=True, map_location="cpu")


@dataclass(frozen=True)
class PartOfCheckpoint:
    """A tensor of a checkpoint in parts, put together when it is called."""

    folder: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __call__(self) -> Tensor:
        state = {self.name: torch.empty(self.shape, dtype=self.dtype)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # which is what no_dist asks for
            load(state, storage_reader=FileSystemReader(self.folder), no_dist=True)
        return state[self.name]


def sharded_tensors(folder: Path, prefix: str = "state_dict.model.") -> dict[str, LazyTensor]:
    """The model's tensors by their names in it, each read, and put together, when it is asked for.

    Raises ValueError as `check_sharded` does.
    """
    check_sharded(folder)
    tensors = dict[str, LazyTensor]()
    for name, about in read_metadata(folder).state_dict_metadata.items():
        if name.startswith(prefix) and isinstance(about, TensorStorageMetadata):
            shape, dtype = tuple(about.size), about.properties.dtype
            tensors[name.removeprefix(prefix)] = LazyTensor(shape, dtype, PartOfCheckpoint(folder, name, shape, dtype))
    return tensors


# Files and folders alike


def name_checkpoint(partial: Path, path: Path) -> None:
    """Gives a checkpoint that is written its name; what had the name goes."""
    if partial.is_file() and not path.is_dir():
        name_file(partial, path)
        return
    sync(partial)
    if not os.path.lexists(path):
        os.replace(partial, path)
    elif not exchange(partial, path):
        os.replace(path, path.with_suffix(".old"))
        os.replace(partial, path)
        os.replace(path.with_suffix(".old"), partial)
    remove_checkpoint(partial)
    sync(path.parent)


def link_checkpoint(source: Path, target: Path) -> None:
    """The same checkpoint by another name, without a copy where the file system has links."""
    partial = target.with_suffix(".partial")
    remove_checkpoint(partial)
    if source.is_dir():
        shutil.copytree(source, partial, copy_function=_link_or_copy)
    else:
        _link_or_copy(source, partial)
    name_checkpoint(partial, target)


def _link_or_copy(source: Path | str, target: Path | str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def remove_checkpoint(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
