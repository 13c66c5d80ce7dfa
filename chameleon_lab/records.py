"""Plain, frozen values that cross to a screen or a disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Literal

import numpy as np
import PIL.Image
from numpy.lib.stride_tricks import sliding_window_view

from chameleon_lab.documents import Image, Text
from chameleon_lab.files import parse_json, reason_of
from chameleon_lab.vocabulary import Modality

StopReason = Literal["end_turn", "end_document", "length", "stopped", "ill_formed"]


@dataclass(frozen=True)
class TextPiece:
    """Newly generated text, to be appended to what came before."""

    text: str


@dataclass(frozen=True, eq=False)
class ImagePiece:
    """A picture as far as it is drawn: it replaces the earlier pieces of the same picture.

    `codes` has one row for each finished row of the grid: none when the image starts, `complete` when
    `len(codes) == rows`. The rest of `picture` is the decoder's guess from the codes so far, grey while there are none.
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


@dataclass(frozen=True)
class FilledSegment:
    """The segment at `place` of a document with blanks, as it stands now: it replaces the earlier ones of its place.

    Of words the blank alone; an image whole, cells not yet filled being the decoder's guess. `complete`: nothing of it
    is missing any more.
    """

    place: int
    segment: Text | Image
    complete: bool


@dataclass(frozen=True)
class ReplyProgress:
    """Where a reply stands after one more of its tokens.

    `token` is its id; `image`: within an image, how many of its codes there are, of how many in all (0 while its
    grid is not known), None outside. `room` counts the tokens that may still come in this reply, `context` the
    positions left in the model.
    """

    token: int
    room: int
    context: int
    image: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class TokenScores:
    """How likely a document is to a model: log-probabilities in nats, of each token given all tokens before it.

    `tokens_T`, `logs_T` and `modality_T` (a `Modality` each) run in parallel.
    """

    tokens_T: np.ndarray
    logs_T: np.ndarray
    modality_T: np.ndarray

    def of(self, modality: Modality) -> TokenScores:
        """The tokens of one modality, each still given all before it."""
        chosen_T = self.modality_T == modality
        return TokenScores(self.tokens_T[chosen_T], self.logs_T[chosen_T], self.modality_T[chosen_T])

    def __len__(self) -> int:
        return len(self.tokens_T)

    @property
    def total(self) -> float:
        """The log-probability of all tokens together, in nats."""
        return float(self.logs_T.sum())

    @property
    def mean(self) -> float:
        """Nats a token, 0 or below; nan for no tokens."""
        return float(self.logs_T.mean()) if len(self) else math.nan

    @property
    def perplexity(self) -> float:
        """exp(-mean), the number of equally likely tokens that would leave as much doubt; nan for no tokens."""
        return math.exp(-self.mean) if self.mean > -700 else math.inf if len(self) else math.nan

    def __str__(self) -> str:
        parts = [(modality.name.lower(), self.of(modality)) for modality in Modality]
        shares = [f"{name} {part.total:.2f} ({len(part)} tokens)" for name, part in parts if len(part)]
        return f"log-probability {self.total:.2f} nats: {', '.join(shares) or 'no tokens'}"


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """One picture through an image tokenizer: the encoder's input, its codes (rows x columns), the decoder's output.

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

    @cached_property
    def ssim(self) -> float:
        """Structural similarity over RGB in [0, 255], at most 1, which is equality; nan under 11 pixels a side.

        Wang et al. 2004: a Gaussian window of 11 pixels, sigma 1.5, wherever it fits whole; K1 0.01, K2 0.03.
        """
        before, after = (np.asarray(each.convert("RGB")) for each in (self.original, self.picture))
        return structural_similarity(before, after)


SSIM_WINDOW = 11
"""Side of the Gaussian window, pixels."""


def structural_similarity(before_HWC: np.ndarray, after_HWC: np.ndarray) -> float:
    """SSIM of two pictures in [0, 255], over channels; nan under 11 pixels a side (`Reconstruction.ssim`)."""
    if min(before_HWC.shape[:2]) < SSIM_WINDOW:
        return math.nan
    before_HWC, after_HWC = before_HWC.astype(np.float64), after_HWC.astype(np.float64)
    window = np.exp(-(((np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2) / 1.5) ** 2) / 2)
    window /= window.sum()

    def mean(values_HWC: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            values_HWC = sliding_window_view(values_HWC, SSIM_WINDOW, axis) @ window
        return values_HWC

    mean_before, mean_after = mean(before_HWC), mean(after_HWC)
    covariance = mean(before_HWC * after_HWC) - mean_before * mean_after
    variances = mean(before_HWC**2 + after_HWC**2) - mean_before**2 - mean_after**2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_before * mean_after + c1) * (2 * covariance + c2)
    return float(np.mean(above / ((mean_before**2 + mean_after**2 + c1) * (variances + c2))))


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


def _why(reason: str) -> dict[str, str]:
    """A field's metadata: why numbers whose cards differ in it do not compare."""
    return {"why": reason}


@dataclass(frozen=True)
class MetricCard:
    """The protocol of a number: all that two measurements must share before their difference means anything.

    It names no tokenizer, so two tokenizers measured alike have equal cards. `reference` names the set and its split,
    `definition` is the formula, `crop` the preparation with its settings, `resize` its filter, `dtype` the tokenizer's
    precision; `network` and `seed` are None where there was none. Hashes are SHA-256.
    """

    metric: str = field(metadata=_why("another quantity"))
    definition: str = field(metadata=_why("another formula"))
    reference: str = field(metadata=_why("another set, or another split"))
    reference_hash: str = field(metadata=_why("other pictures or prompts"))
    crop: str = field(metadata=_why("other parts of the pictures"))
    resize: str = field(metadata=_why("originals of another sharpness"))
    n: int = field(metadata=_why("FID and dead codes fall as n grows, usage rises"))
    dtype: str = field(metadata=_why("other rounding"))
    network: str | None = field(default=None, metadata=_why("other features"))
    network_hash: str | None = field(default=None, metadata=_why("other weights"))
    seed: int | None = field(default=None, metadata=_why("other draws"))

    def differences(self, other: MetricCard, despite: Iterable[str] = ()) -> dict[str, str]:
        """The fields in which two cards differ, but for those to overlook, each with both values and why it matters.

        Raises ValueError for a field to overlook that no card has.
        """
        overlooked, names = set(despite), [each.name for each in fields(self)]
        if strange := sorted(overlooked - set(names)):
            raise ValueError(f"A card has no field {', '.join(map(repr, strange))}; its fields are {', '.join(names)}.")
        return {
            each.name: f"{getattr(self, each.name)} and {getattr(other, each.name)} ({each.metadata['why']})"
            for each in fields(self)
            if each.name not in overlooked and getattr(self, each.name) != getattr(other, each.name)
        }


@dataclass(frozen=True)
class MetricValue:
    """A number and its protocol. It compares only with numbers that were measured alike.

    `a < b` and `a - b` are about the numbers, `a.better_than(b)` knows their direction. All raise ValueError where the
    cards differ, and name each field that does; `despite` says which fields to overlook. A unit or a direction is
    never overlooked. Raises ValueError on a value that is not a number.
    """

    value: float
    unit: str
    higher_is_better: bool
    card: MetricCard

    def __post_init__(self) -> None:
        if math.isnan(self.value):
            raise ValueError(f"{self.card.metric} came out as not a number: nothing can be compared with it.")

    def compare(self, other: MetricValue, despite: Iterable[str] = ()) -> float:
        """This value minus the other; 0 for equal ones, infinite ones among them."""
        apart = self.card.differences(other.card, despite)
        if (self.unit, self.higher_is_better) != (other.unit, other.higher_is_better):
            raise ValueError(f"{self.summary} and {other.summary} are no values of one kind, so nothing compares them.")
        if apart:
            differences = self.card.differences(other.card)
            lines = [f"\n- {name}: {why}" for name, why in apart.items()]
            raise ValueError(
                f"{self.summary} and {other.summary} were not measured alike:{''.join(lines)}\nMeasure both under one "
                f"protocol, or say what to overlook: a.compare(b, despite={tuple(differences)})."
            )
        return 0.0 if self.value == other.value else self.value - other.value

    def better_than(self, other: MetricValue, despite: Iterable[str] = ()) -> bool:
        difference = self.compare(other, despite)
        return difference > 0 if self.higher_is_better else difference < 0

    def __sub__(self, other: MetricValue) -> float:
        return self.compare(other)

    def __lt__(self, other: MetricValue) -> bool:
        return self.compare(other) < 0

    def __le__(self, other: MetricValue) -> bool:
        return self.compare(other) <= 0

    @property
    def summary(self) -> str:
        """The number without its protocol, such as "PSNR 31.20 dB"."""
        number = self.value
        rounded = f"{number:,}" if isinstance(number, int) else f"{number:,.2f}" if number >= 10 else f"{number:.4g}"
        return f"{self.card.metric} {rounded} {self.unit}".rstrip()

    def __str__(self) -> str:
        card = self.card
        parts = [f"n = {card.n}", card.crop, card.resize, f"{card.reference} {card.reference_hash[:8]}", card.dtype]
        if card.network is not None:
            parts.append(f"{card.network} {(card.network_hash or '')[:8]}".rstrip())
        if card.seed is not None:
            parts.append(f"seed {card.seed}")
        return f"{self.summary} ({', '.join(parts)})"

    def to_json(self) -> str:
        """One line of JSON; an infinite value is the string "inf", which strict readers of JSON accept too."""
        value = self.value if math.isfinite(self.value) else str(self.value)
        return json.dumps(asdict(self) | {"value": value}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> MetricValue:
        """The value that `to_json` wrote. Raises ValueError on anything else."""
        try:
            read = parse_json(text, "it", "")
            value = float(read["value"]) if isinstance(read["value"], str) else read["value"]
            return cls(**read | {"value": value, "card": MetricCard(**read["card"])})
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise ValueError(f"This is no metric value written by to_json ({reason_of(error)}): {text[:80]}") from error


@dataclass(frozen=True, eq=False)
class Measurements:
    """The metrics of one pass over a reference set.

    `values` by metric, codebook usage among them; `scores`: of the metrics that judge each picture alone, one score a
    picture, in the order of the pictures; `usage`, whose curve has a point for each picture.
    """

    values: dict[str, MetricValue]
    scores: dict[str, np.ndarray]
    usage: CodebookUsage

    def __getitem__(self, metric: str) -> MetricValue:
        """One value by its metric. Raises KeyError naming the metrics there are."""
        if metric not in self.values:
            raise KeyError(f"No value of {metric!r}; measured were {', '.join(self.values)}.")
        return self.values[metric]

    def __str__(self) -> str:
        return "\n".join(map(str, self.values.values()))
