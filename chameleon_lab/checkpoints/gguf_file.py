"""What a GGUF file says and holds, each size compared with the file's own before anything is made of it.

The package `gguf` brings the constants and takes packed numbers apart. Its reader is left: it believes what a header
says (a count of 2**60 keeps it busy until the memory is full), and takes a second for the names of 65,536 tokens.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chameleon_lab.checkpoints.tensors import LazyTensor, check_fetched
from chameleon_lab.files import intact, require_regular

GGUF_MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""How `struct` calls the numbers of a header; the number 8 is a text, and 9 an array."""

TEXT, ARRAY = 8, 9
MOST_ITEMS = 2**24
"""Of an array in a header: the largest vocabulary has as many tokens."""

UNPACKED_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
"""The types whose tensors are read as they are; what is packed becomes float32."""


def gguf_package() -> Any:
    """The package `gguf`. Raises ValueError where it is not installed."""
    try:
        import gguf  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "GGUF files are read and written by the package gguf, which is not installed: pip install "
            "'chameleon-lab[gguf]'."
        ) from None
    return gguf


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file: what its header says by key, and its tensors, read when asked for."""

    path: Path
    values: dict[str, Any]
    tensors: dict[str, LazyTensor]

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise ValueError(f"{self.path} is damaged: {key} must be a text, not {_in_brief(value)}. Get it anew.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number in float32, as the shortest decimal that gives it: what was 1e-5 before it was written is again."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self.path} is damaged: {key} must be a number, not {_in_brief(value)}. Get it anew.")
        return float(str(np.float32(value)))

    def count(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(
                f"{self.path} is damaged: {key} must be a whole number, not {_in_brief(value)}. Get it anew."
            )
        return value

    def texts(self, key: str) -> list[str]:
        """An array of texts; empty where there is none."""
        value = self.values.get(key, [])
        if not isinstance(value, list):
            raise ValueError(f"{self.path} is damaged: {key} must be an array of texts, not {_in_brief(value)}.")
        return value


def _in_brief(value: Any) -> str:
    return "nothing" if value is None else f"{str(value)[:40]!r}"


def read_gguf(path: Path) -> GgufFile:
    """The header of a file, and its tensors, not yet read.

    Raises ValueError, naming the file, where it is damaged or cut, of another version, packed in a way that the package
    does not take apart; and without the package.
    """
    package = gguf_package()
    require_regular(path)
    check_fetched(path)
    with intact(path), path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        if bytes(data[:4]) != GGUF_MAGIC:
            raise ValueError("it does not begin as a GGUF file")
        cursor.place = 4
        version = cursor.number("I")
        if version not in VERSIONS:
            kind = "of big-endian machines" if version & 0xFFFF == 0 else f"of version {version}"
            raise ValueError(f"{path} is a GGUF file {kind}, and the lab reads versions 2 and 3. Convert it anew.")
        tensors, entries = cursor.number("Q"), cursor.number("Q")
        cursor.require(13 * entries + 24 * tensors)  # what so many take at least
        values: dict[str, Any] = {}
        for _ in range(entries):
            key = cursor.text()
            if key in values:
                raise ValueError(f"{key[:80]!r} stands twice in its header")
            values[key] = cursor.value(cursor.number("I"))
        headers = [_TensorHeader.read(cursor) for _ in range(tensors)]
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment not in (2**n for n in range(3, 21)):
            raise ValueError(f"general.alignment is {_in_brief(alignment)}")
        start = -(-cursor.place // alignment) * alignment
        lazy: dict[str, LazyTensor] = {}
        for header in headers:
            if header.name in lazy:
                raise ValueError(f"the tensor {header.name[:80]!r} stands twice in it")
            lazy[header.name] = header.lazy(path, start, len(data), alignment, package)
    return GgufFile(path, values, lazy)


class _Cursor:
    """A place in a header; what would be read beyond the end is an error before it is read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, 0

    def require(self, count: int) -> None:
        if count > len(self.data) - self.place:
            raise ValueError(f"it ends after {len(self.data):,} bytes, and at {self.place:,} tells of {count:,} more")

    def number(self, code: str) -> Any:
        layout = struct.Struct(f"<{code}")
        self.require(layout.size)
        (value,) = layout.unpack_from(self.data, self.place)
        self.place += layout.size
        return value

    def text(self) -> str:
        length = self.number("Q")
        self.require(length)
        self.place += length
        return self.data[self.place - length : self.place].decode()

    def value(self, kind: int) -> Any:
        """A number, a text, a list of texts, or numbers as an array."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"its header holds a value of kind {kind}, which no version 3 has")
        inner, count = self.number("I"), self.number("Q")
        if count > MOST_ITEMS:
            raise ValueError(f"its header holds an array of {count:,} items, and at most {MOST_ITEMS:,} are read")
        if inner == TEXT:
            self.require(8 * count)
            return [self.text() for _ in range(count)]
        if inner not in SCALARS:
            raise ValueError(f"its header holds an array of kind {inner}, which is not read")
        item = np.dtype(SCALARS[inner]).newbyteorder("<")
        self.require(item.itemsize * count)
        numbers = np.frombuffer(self.data[self.place : self.place + item.itemsize * count], item)
        self.place += item.itemsize * count
        return numbers


@dataclass(frozen=True)
class _TensorHeader:
    name: str
    shape: tuple[int, ...]  # as torch has it: a file's is the other way round
    type: int
    offset: int

    @classmethod
    def read(cls, cursor: _Cursor) -> _TensorHeader:
        name, dimensions = cursor.text(), cursor.number("I")
        if not 1 <= dimensions <= 4:
            raise ValueError(f"the tensor {name[:80]!r} has {dimensions} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))
        return cls(name, shape[::-1], cursor.number("I"), cursor.number("Q"))

    def lazy(self, path: Path, start: int, end: int, alignment: int, package: Any) -> LazyTensor:
        """The tensor, if all of it lies in the file."""
        kinds = {int(each): each for each in package.GGMLQuantizationType}
        kind = kinds.get(self.type)
        try:
            unpack, dtype = _unpacker(kind, package)
        except (KeyError, NotImplementedError) as error:
            what = f"type {self.type}" if kind is None else kind.name
            raise ValueError(
                f"{path} holds {self.name[:80]!r} as {what}, which the package gguf does not take apart: get another "
                "packing of the model, such as Q8_0, or a newer gguf."
            ) from error
        block, size = package.GGML_QUANT_SIZES[kind]
        if min(self.shape) < 1 or self.shape[-1] % block:
            raise ValueError(f"the tensor {self.name[:80]!r} has the shape {self.shape}, in blocks of {block}")
        count = math.prod(self.shape) // block * size
        place = start + self.offset
        if self.offset % alignment or place + count > end:
            raise ValueError(
                f"the tensor {self.name[:80]!r} lies at {place:,}..{place + count:,}, and the file ends at {end:,}"
            )

        def read() -> Tensor:
            packed = np.array(np.memmap(path, np.uint8, "r", place, (count,)))
            return unpack(packed.reshape(*self.shape[:-1], -1)).reshape(self.shape)

        return LazyTensor(self.shape, dtype, read)


def _unpacker(kind: Any, package: Any) -> tuple[Callable[[np.ndarray], Tensor], torch.dtype]:
    """What makes numbers of a tensor's bytes, a row of them for each of its own, and in which dtype.

    Raises KeyError or NotImplementedError for a type that the package does not take apart.
    """
    size = package.GGML_QUANT_SIZES[kind][1]
    if (dtype := UNPACKED_TYPES.get(kind.name)) is not None:
        return lambda packed: torch.from_numpy(packed).view(dtype), dtype
    if package.GGML_QUANT_SIZES[kind][0] == 1:
        raise NotImplementedError(f"{kind.name} is no type of weights")
    package.quants.dequantize(np.zeros((1, size), np.uint8), kind)
    return lambda packed: torch.from_numpy(package.quants.dequantize(packed, kind)), torch.float32
