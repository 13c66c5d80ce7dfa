"""Torch's own files (.pth, .ckpt, .bin, .pt) as lazy tensors, with nothing in them executed.

The format, since torch 1.6: a zip archive, uncompressed, of a pickled table of names (`data.pkl`) and the bytes of
every tensor (`data/0`, `data/1`, ...), aligned so that they can be mapped. `torch.load` reads it, with `weights_only`.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import threading
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.serialization
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

from chameleon_lab.checkpoints.tensors import (
    LazyTensor,
    Tensors,
    all_or_nothing,
    bytes_of,
    check_fetched,
    check_room,
    lazy,
    size,
)
from chameleon_lab.files import absence

WRAPPERS = ("state_dict", "ema", "model", "module", "model_state_dict")
"""Keys under which training programs put a model's tensors, averaged ones before others."""

DEEPEST = 4

BOOKKEEPING = (
    "pytorch_lightning.",
    "lightning.",
    "lightning_fabric.",
    "omegaconf.",
    "argparse.Namespace",
    "numpy.",
    "pathlib.",
    "typing.",
    "collections.",
)
"""Beginnings of the names that training programs put beside the weights: best scores, arguments, settings. An `Inert`
stands for each of them, so that nothing of theirs is imported or called; any other name refuses the file."""


class Inert(dict[Any, Any]):
    """What stands in a file's table for an object of another program: it takes whatever it is given and does nothing.

    A dict, since torch's reader sets the items of what was pickled as one.
    """

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]


_NAMES_OF_INERT = threading.Lock()
"""Held while torch knows names as `Inert`: it keeps one list of them for all threads."""


def _load_table(path: Path) -> Any:
    """What torch reads of a file, mapped, with `weights_only`. Errors: torch's."""
    strange = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    inert = [(Inert, name) for name in strange if name.startswith(BOOKKEEPING)]
    with _NAMES_OF_INERT, torch.serialization.safe_globals(inert):  # pyright: ignore[reportArgumentType]
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def open_torch(path: Path | str) -> dict[str, LazyTensor]:
    """The tensors of a file of torch's own (.pth, .ckpt, .bin, .pt), mapped; those under one of `WRAPPERS` inside it.

    Raises ValueError, with nothing executed, for a file that is damaged, of before torch 1.6, or more than weights.
    """
    path = Path(path)
    if fault := absence(path):
        raise ValueError(f"The checkpoint is incomplete: {path} {fault}.")
    check_fetched(path)
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if not zipped:
        raise ValueError(
            f"{path} is no weights file of torch 1.6 or later, and is not opened: a bare pickle can run code. Where "
            "you trust it, load it with torch and save its tensors anew, or get them as safetensors."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed")
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch 2.14 warns of what it checks in a sparse tensor, which is refused below
            loaded = _load_table(path)
    except pickle.UnpicklingError as error:
        strange = re.search(r"GLOBAL ([\w.]+)", str(error))
        if strange is None:
            raise ValueError(f"{path} is damaged: its table of names cannot be read. Get or save it anew.") from error
        raise ValueError(
            f"{path} holds more than weights (it asks for {strange[1]}), and is not opened: a pickle can run code. "
            "Where you trust it, load it with torch and save its tensors anew, or get them as safetensors."
        ) from error
    except Exception as error:  # what a damaged archive raises is anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged or no weights file: {first}. Get or save it anew.") from error
    for _ in range(DEEPEST):  # not for ever: a pickle may hold itself
        key = next((key for key in WRAPPERS if isinstance(loaded, dict) and isinstance(loaded.get(key), dict)), None)
        if key is None or any(isinstance(value, Tensor) for value in loaded.values()):
            break
        loaded = loaded[key]
    named = loaded.items() if isinstance(loaded, dict) else ()
    tensors = {name: value.detach() for name, value in named if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no named tensors: it is no checkpoint of a model.")
    strange = [name for name, tensor in tensors.items() if not _is_plain(tensor)]
    if strange:
        raise ValueError(
            f"{path} holds {strange[0]} as a sparse, nested, complex or quantized tensor, which the lab does not read."
        )
    _require_bytes(tensors, path)
    return {name: lazy(tensor) for name, tensor in tensors.items()}


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is numbers in rows, as a model's are."""
    special = tensor.is_nested or tensor.is_quantized or tensor.is_complex() or tensor.is_neg()
    return tensor.layout == torch.strided and not special


SHARED = 4
"""How many times the bytes of a file its tensors may be: a tied matrix stands under two names, and little else does."""


def _require_bytes(tensors: dict[str, Tensor], path: Path) -> None:
    """Raises ValueError for tensors that are not in the file, or that a few of its bytes stand for many times over:
    read, a small file would fill the memory."""
    absent = [name for name, tensor in tensors.items() if tensor.device.type != "cpu"]
    if absent:
        raise ValueError(f"{path} names {absent[0]} without its content: save the model from where its weights are.")
    repeated = [name for name, tensor in tensors.items() if tensor.nbytes > tensor.untyped_storage().nbytes()]
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    if not repeated and sum(tensor.nbytes for tensor in tensors.values()) > SHARED * sum(stored.values()) + 2**20:
        repeated = list(tensors)
    if repeated:
        raise ValueError(
            f"{path} holds {repeated[0]}, which repeats a part of what the file stores: the lab reads what is stored. "
            "Save it anew with each tensor cloned."
        )


def write_torch(tensors: Tensors, path: Path | str) -> None:
    """Writes tensors one at a time into a file that `torch.load(path, weights_only=True)` reads, mapped too.

    The format is torch's own since 1.6: an archive of a pickled name table and the bytes of every tensor, uncompressed
    and aligned. All of it or nothing; errors as in `write_safetensors`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    check_room(path.parent, size(tensors))
    pickled = io.BytesIO()
    table = _NameTable(pickled)
    table.dump(dict(tensors))
    with all_or_nothing([path]) as (partial,), partial.open("wb") as file, zipfile.ZipFile(file, "w") as archive:

        def put(name: str, content: memoryview) -> None:
            """Adds an entry whose bytes begin at a multiple of 64, as mapped tensors must."""
            entry = zipfile.ZipInfo(f"{path.stem}/{name}")
            entry.file_size = content.nbytes
            large = content.nbytes * 1.05 > zipfile.ZIP64_LIMIT  # zipfile's own rule: its header has 20 bytes more
            padding = -(file.tell() + 34 + len(entry.filename.encode()) + 20 * large) % 64
            entry.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding
            with archive.open(entry, "w") as opened:
                opened.write(content)

        put("data.pkl", memoryview(pickled.getvalue()))
        put("byteorder", memoryview(b"little"))
        for key, stored in enumerate(table.stored):
            put(f"data/{key}", bytes_of(stored.tensor))
        put("version", memoryview(b"3\n"))


@dataclass(frozen=True)
class _Stored:
    """A tensor whose bytes stand in the archive under a key."""

    key: int
    tensor: LazyTensor


class _NameTable(pickle.Pickler):
    """Pickles lazy tensors as torch.save pickles tensors: as calls of the one function that puts bytes into shape."""

    STORAGES = {  # noqa: RUF012
        torch.float64: torch.DoubleStorage,
        torch.float32: torch.FloatStorage,
        torch.float16: torch.HalfStorage,
        torch.bfloat16: torch.BFloat16Storage,
        torch.int64: torch.LongStorage,
        torch.int32: torch.IntStorage,
        torch.int16: torch.ShortStorage,
        torch.int8: torch.CharStorage,
        torch.uint8: torch.ByteStorage,
        torch.bool: torch.BoolStorage,
    }

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, protocol=2)
        self.stored: list[_Stored] = []

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, LazyTensor):
            return NotImplemented
        self.stored.append(_Stored(len(self.stored), value))
        strides = torch.empty(value.shape, device="meta").stride()
        return _rebuild_tensor_v2, (self.stored[-1], 0, value.shape, strides, False, {})

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Stored):
            return None
        if value.tensor.dtype not in self.STORAGES:
            raise ValueError(f"{value.tensor.dtype} cannot be written to torch's files here: convert it first.")
        elements = math.prod(value.tensor.shape)
        return ("storage", self.STORAGES[value.tensor.dtype], str(value.key), "cpu", elements)
