"""Plain, frozen values that cross to a screen or a disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import PIL.Image

StopReason = Literal["end_turn", "end_document", "length", "stopped"]


@dataclass(frozen=True)
class TextPiece:
    """Newly generated text, to be appended to what came before."""

    text: str


@dataclass(frozen=True, eq=False)
class ImagePiece:
    """A picture as far as it is drawn: it replaces the earlier pieces of the same picture.

    `codes` has one row for each finished row of the grid; `complete` when `len(codes) == rows`. The rest of `picture`
    is the decoder's guess from the codes so far.
    """

    picture: PIL.Image.Image
    codes: np.ndarray
    rows: int

    @property
    def complete(self) -> bool:
        return len(self.codes) == self.rows


@dataclass(frozen=True)
class StopPiece:
    """The last piece of a stream: why it ended."""

    reason: StopReason


Piece = TextPiece | ImagePiece | StopPiece


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """One picture through an image tokenizer: what the encoder saw, its codes (rows x columns), and what came out.

    Raises ValueError when the two pictures differ in size.
    """

    original: PIL.Image.Image
    codes: np.ndarray
    picture: PIL.Image.Image

    def __post_init__(self) -> None:
        if self.original.size != self.picture.size:
            (width, height), (old_width, old_height) = self.picture.size, self.original.size
            raise ValueError(
                f"The reconstruction is {width} x {height} pixels and the original {old_width} x {old_height}."
            )

    @cached_property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in dB over RGB in [0, 255]; infinite where nothing was lost."""
        before, after = (np.asarray(each.convert("RGB"), np.float64) for each in (self.original, self.picture))
        error = np.mean((before - after) ** 2)
        return math.inf if error == 0 else float(10 * math.log10(255**2 / error))


@dataclass(frozen=True, eq=False)
class CodebookUsage:
    """How often each code of a codebook was seen.

    `counts_N`: sightings of each code, int64. `curve`: (tokens seen, codes used so far) on the way, rising.
    """

    counts_N: np.ndarray
    curve: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, grids: Iterable[np.ndarray], codes: int) -> CodebookUsage:
        """Usage over grids of codes of any shape, one point of the curve each. Raises ValueError on a strange code."""
        counts_N, curve = np.zeros(codes, np.int64), list[tuple[int, int]]()
        for grid in grids:
            flat = np.asarray(grid).ravel()
            if flat.size and not 0 <= flat.min() <= flat.max() < codes:
                raise ValueError(f"Codes must lie in 0..{codes - 1}; got {flat.min()}..{flat.max()}.")
            counts_N += np.bincount(flat, minlength=codes)
            curve.append((int(counts_N.sum()), int((counts_N > 0).sum())))
        return cls(counts_N, tuple(curve))

    @property
    def tokens(self) -> int:
        """Codes seen in all."""
        return int(self.counts_N.sum())

    @property
    def usage(self) -> float:
        """Share of the codebook seen at least once, 0 to 1. It can only rise with `tokens`: see `uniform_usage`."""
        return float((self.counts_N > 0).mean())

    @property
    def perplexity(self) -> float:
        """exp(entropy) of the codes seen, 1 to the size of the codebook; 0 when nothing was seen."""
        share_N = self.counts_N[self.counts_N > 0] / max(1, self.tokens)
        return float(np.exp(-(share_N * np.log(share_N)).sum())) if self.tokens else 0.0

    @property
    def dead(self) -> np.ndarray:
        """The codes never seen."""
        return np.flatnonzero(self.counts_N == 0)

    def uniform_usage(self, tokens: int | None = None) -> float:
        """The usage that drawing `tokens` codes evenly at random would show: what few tokens can reach at best."""
        size = len(self.counts_N)
        return 1 - (1 - 1 / size) ** (self.tokens if tokens is None else tokens)


@dataclass(frozen=True)
class StepRecord:
    """What was seen at one optimizer step. `values` maps a measure's name to a plain float."""

    step: int
    seconds: float
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """All step records of one run, in order."""

    records: tuple[StepRecord, ...] = ()

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """(steps, values) of one measure, where it was recorded. Raises KeyError naming the measures there are."""
        found = [(record.step, record.values[name]) for record in self.records if name in record.values]
        if not found:
            known = sorted({key for record in self.records for key in record.values})
            raise KeyError(f"No record of {name!r}; this run recorded {', '.join(known) or 'nothing'}.")
        return [step for step, _ in found], [value for _, value in found]

    def to_jsonl(self) -> str:
        return "".join(json.dumps(asdict(record)) + "\n" for record in self.records)

    @classmethod
    def from_jsonl(cls, lines: Iterable[str]) -> History:
        """The history that `to_jsonl` wrote; a last line cut short by a crash is left out."""
        records = []
        for line in lines:
            try:
                records.append(StepRecord(**json.loads(line)))
            except (json.JSONDecodeError, TypeError):
                break
        return cls(tuple(records))
