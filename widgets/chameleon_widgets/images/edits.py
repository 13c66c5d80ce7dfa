"""Edits of a picture's codes: grids before and after, the way back, and what a tokenizer makes of them."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL.Image

from chameleon_widgets import stills
from chameleon_widgets.pictures import data_uri, png
from chameleon_widgets.undo import UndoHistory

LARGEST_GRID = 128  # rows or columns
SWATCH_GRID, SWATCH_SIDE = (2, 2), 32  # cells of one code, enough to show what it paints and cheap; pixels

_grid_keys = itertools.count(1)


class Codec(Protocol):
    """What surgery asks of an image tokenizer."""

    def encode(self, picture: PIL.Image.Image) -> np.ndarray: ...

    def decode(self, codes: np.ndarray) -> PIL.Image.Image: ...


@dataclass(frozen=True, eq=False)
class Grid:
    """Codes as edited and as they came: both rows x columns, int64, read-only. Each original has its own `key`."""

    codes: np.ndarray
    original: np.ndarray
    name: str = ""
    key: int = field(default_factory=lambda: next(_grid_keys))

    @property
    def changed(self) -> int:
        """Cells that differ from the original."""
        return int((self.codes != self.original).sum())


class Decoded(NamedTuple):
    """A grid, and the pictures of its original and of its codes."""

    grid: Grid
    before: PIL.Image.Image
    after: PIL.Image.Image


class Surgery:
    """Codes under edit with one tokenizer, and the newest of them decoded. It knows no screen.

    Edits and moves are quick and come from any thread; `open` and `redraw` use the tokenizer and belong to one thread.
    All that is public may be read at any time; `lock` is for reading several things of one moment.
    """

    def __init__(self, tokenizer: Codec, codebook: int | None = None) -> None:
        size = getattr(tokenizer, "codes", None) if codebook is None else codebook
        self.codebook = int(size) if isinstance(size, int | np.integer) else None
        self.history = UndoHistory[Grid]()
        self.decoded: Decoded | None = None
        self.lock = threading.RLock()
        self._tokenizer = tokenizer

    def edit(self, key: int, cells: object, codes: object, stroke: str) -> bool:
        """Writes codes (one, or one for each) to `cells`, counted row by row; whether that changed anything.

        What was painted on a grid that is no longer open is ignored. Raises ValueError on strange cells or codes.
        """
        with self.lock:
            grid = self.history.now
            if grid is None or grid.key != key:
                return False
            painted = grid.codes.copy()
            written = whole_numbers(codes, self.codebook, "The codes")
            painted.reshape(-1)[whole_numbers(cells, painted.size, "The cells")] = written
            painted.setflags(write=False)
            if np.array_equal(painted, grid.codes):
                return False
            self.history.put(replace(grid, codes=painted), stroke)
            return True

    def open(self, grid: Grid) -> None:
        """Puts a grid on the table once it is decoded: what cannot be decoded is not opened."""
        decoded = self._decode_both(grid)
        with self.lock:
            self.history.put(grid)
            self.decoded = decoded

    def redraw(self) -> None:
        """Decodes the newest codes."""
        if (grid := self.history.now) is not None:
            self.decoded = self._decode_both(grid)

    def of_picture(self, picture: PIL.Image.Image, name: str) -> Grid:
        codes = grid_of(self._tokenizer.encode(picture), self.codebook, "The tokenizer's codes")
        return Grid(codes, codes, name)

    def of_codes(self, codes: np.ndarray, name: str) -> Grid:
        """Checked codes as an edit of what is open if the shapes agree, else as a new original."""
        now = self.history.now
        return replace(now, codes=codes) if now and now.codes.shape == codes.shape else Grid(codes, codes, name)

    def imported(self, content: Mapping[str, Any], name: str) -> np.ndarray:
        """The codes in a file's content, `{"codes": [[...]], "codebook": N}`. Raises ValueError naming the file."""
        codes = grid_of(content.get("codes"), self.codebook, f"The codes in “{name}”")
        theirs = content.get("codebook")
        if None not in (theirs, self.codebook) and theirs != self.codebook:
            raise ValueError(
                f"“{name}” holds codes of a codebook of {theirs}, and this one has {self.codebook}: they would mean "
                "other things here. Use the tokenizer they were made with."
            )
        return codes

    def swatch(self, code: int) -> bytes:
        """What a small grid of nothing but this code decodes to, as PNG; empty where the decoder refuses."""
        now = self.history.now
        for shape in (SWATCH_GRID, now.codes.shape if now else SWATCH_GRID):  # some decoders know one shape only
            try:
                return png(self._decode(np.full(shape, code)), SWATCH_SIDE)
            except Exception:
                continue
        return b""

    def still(self) -> tuple[str, str]:
        """(HTML body, plain text) of both pictures, safe to put into a page."""
        if self.decoded is None:
            empty = "Code surgery without a picture. Run the cell to use it."
            return f"<p>{empty}</p>", empty
        grid, *pictures = self.decoded
        facts = f"{grid.changed} of {grid.codes.size} cells changed"
        facts = f"{grid.name}: {facts}" if grid.name else facts
        body = ""
        for when, picture in zip(("Before", "After"), pictures, strict=True):
            image = stills.image(
                data_uri(picture, stills.STILL_SIDE), when, max(picture.width, min(256, 4 * picture.width))
            )
            body += f'<span class="side"><b>{when}</b>{image}</span>'
        return f'{body}<p class="note">{stills.escape(facts)}</p>', f"Code surgery. {facts}"

    def _decode_both(self, grid: Grid) -> Decoded:
        last = self.decoded
        before = last.before if last and last.grid.original is grid.original else self._decode(grid.original)
        return Decoded(grid, before, self._decode(grid.codes) if grid.changed else before)

    def _decode(self, codes: np.ndarray) -> PIL.Image.Image:
        picture = self._tokenizer.decode(codes.copy())
        if not isinstance(picture, PIL.Image.Image):
            raise TypeError(f"The tokenizer's decode gave a {type(picture).__name__}; surgery needs PIL pictures.")
        return picture


class Swatches:
    """Pictures of single codes: wanted by one thread, made a few at a time by another, taken away by a third."""

    def __init__(self, swatch: Callable[[int], bytes]) -> None:
        self._swatch = swatch
        self._pictures: dict[int, bytes] = {}
        self._queue, self._fresh = deque[int](), deque[int]()

    def want(self, codes: Iterable[int]) -> None:
        self._queue.extend(codes)

    def forget(self) -> None:
        """Makes none of those that are still wanted."""
        self._queue.clear()

    def make(self, seconds: float) -> bool:
        """Makes swatches for so long, one at least; whether more may be wanted."""
        until = time.monotonic() + seconds
        while True:
            try:
                code = self._queue.popleft()
            except IndexError:
                return False
            if code not in self._pictures:
                self._pictures[code] = self._swatch(code)
            self._fresh.append(code)
            if time.monotonic() > until:
                return True

    def take(self) -> dict[int, bytes]:
        """Those made since the last call."""
        return {code: self._pictures[code] for code in [self._fresh.popleft() for _ in range(len(self._fresh))]}


def whole_numbers(values: object, end: int | None, whose: str) -> np.ndarray:
    """Whole numbers in 0..end - 1 of any shape as int64. Raises ValueError, in words for whoever they come from."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        array = np.asarray(values, object)
    if array.dtype.kind not in "iu" or not array.size:
        raise ValueError(
            f"{whose} must be whole numbers in rows of one length, such as [[3, 1], [2, 3]]; got {array.dtype} of "
            f"shape {array.shape}."
        )
    low, high, last = int(array.min()), int(array.max()), (end or 2**31) - 1
    if not 0 <= low <= high <= last:
        raise ValueError(f"{whose} must lie in 0..{last}; got {low}..{high}.")
    return array.astype(np.int64)


def grid_of(codes: object, codebook: int | None, whose: str = "The codes") -> np.ndarray:
    """Codes as a read-only array of their own, rows x columns, int64. Raises ValueError for what cannot be edited."""
    grid = whole_numbers(codes, codebook, whose)
    if grid.ndim != 2 or max(grid.shape) > LARGEST_GRID:
        raise ValueError(f"{whose} must fill up to {LARGEST_GRID} rows and columns; got the shape {grid.shape}.")
    grid.setflags(write=False)
    return grid
