"""Classifier-free guidance: pushing image logits away from what would be drawn without the words.

A guided row has *twins*, further streams in the same batch and cache that see less of the document, and whose logits
are mixed with the row's own while it draws. A guidance of your own is a frozen dataclass with the two methods of
`Guidance`; what a twin sees is any function like `without_words`; how strong it is may follow a `GuidanceSchedule`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from chameleon_lab.documents import Document
from chameleon_lab.generation.recording import upload
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.vocabulary import Modality


class Guidance(Protocol):
    """How many `twins` a row has, what they see, and how all their logits become one.

    `streams` is asked once an image, when its first code is due, with all tokens of the row so far: one stream a twin.
    What is drawn from there on, all streams take alike. Of what a twin saw before, the common beginning is not
    computed again. `mix` gets the logits of the rows that draw, their own first (streams x rows x what may come there,
    which is the codes), and how much of its image each has drawn, in [0, 1).
    """

    @property
    def twins(self) -> int: ...

    def streams(self, tokens: np.ndarray, tokenizer: MixedModalTokenizer) -> Sequence[np.ndarray]: ...

    def mix(self, logits_SRV: Tensor, shares: Sequence[float]) -> Tensor: ...


class GuidanceSchedule(Protocol):
    """How strong guidance is when a share, in [0, 1), of the image is drawn."""

    def scale(self, share: float) -> float: ...


class Unconditional(Protocol):
    """What a twin sees in place of the row's tokens, which end in the image being drawn."""

    def __call__(self, tokens: np.ndarray, tokenizer: MixedModalTokenizer) -> np.ndarray: ...


def without_words(tokens: np.ndarray, tokenizer: MixedModalTokenizer) -> np.ndarray:
    """The document's begin and all its images, nothing said.

    It only grows as the document grows, so that twins never begin anew.
    """
    vocabulary = tokenizer.vocabulary
    delimiters = vocabulary.begin_document, vocabulary.begin_image, vocabulary.end_image
    return tokens[vocabulary.within_images[tokens] | np.isin(tokens, delimiters)]


def image_alone(tokens: np.ndarray, tokenizer: MixedModalTokenizer) -> np.ndarray:
    """The document's begin and the image being drawn: Chameleon's unconditional stream, [<s>, begin_image]."""
    return np.concatenate([[tokenizer.vocabulary.begin_document], from_begin_image(tokens, tokenizer)])


def from_begin_image(tokens: np.ndarray, tokenizer: MixedModalTokenizer) -> np.ndarray:
    """The image being drawn and not even a begin: Lumina-mGPT's, whose image gives its grid first."""
    return tokens[np.flatnonzero(tokens == tokenizer.vocabulary.begin_image)[-1] :]


def masked_words(tokens: np.ndarray, tokenizer: MixedModalTokenizer) -> np.ndarray:
    """A mask, the first sentinel, in place of each run of words: CM3Leon's (arXiv 2309.02591, section 3.2).

    Raises ValueError for a vocabulary without sentinels.
    """
    vocabulary = tokenizer.vocabulary
    if not vocabulary.sentinels:
        raise ValueError("This vocabulary has no sentinels to mask words with: use without_words.")
    words = vocabulary.modality[tokens] == Modality.TEXT
    masked = np.where(words, vocabulary.first_sentinel, tokens)
    return masked[~words | np.diff(words, prepend=False)]


@dataclass(frozen=True)
class Negative:
    """A negative prompt: another document in place of the words, which guidance then leads away from.

    Where the model was trained on turns, let it end as a request does: `Negative(Document.of("blurry", EndTurn()))`.
    The images of the row stay, or with `images=False` only the one being drawn.
    """

    document: Document
    images: bool = True

    def __call__(self, tokens: np.ndarray, tokenizer: MixedModalTokenizer) -> np.ndarray:
        rest = without_words(tokens, tokenizer)[1:] if self.images else from_begin_image(tokens, tokenizer)
        return np.concatenate([tokenizer.encode(self.document), rest])


@dataclass(frozen=True)
class TwoWay:
    """u + scale (c - u): 1 leaves the row's logits as they are (arXiv 2309.02591, section 3.2)."""

    scale: float | GuidanceSchedule = 3.0
    without: Unconditional = without_words

    twins = 1

    def __post_init__(self) -> None:
        _check_scale("guidance", self.scale)

    def streams(self, tokens: np.ndarray, tokenizer: MixedModalTokenizer) -> Sequence[np.ndarray]:
        return [self.without(tokens, tokenizer)]

    def mix(self, logits_SRV: Tensor, shares: Sequence[float]) -> Tensor:
        full_RV, without_RV = logits_SRV
        return without_RV + _scales(self.scale, shares, full_RV) * (full_RV - without_RV)


@dataclass(frozen=True)
class ThreeWay:
    """u + image (i - u) + text (f - i): words and earlier images pull each with a strength of their own.

    f sees all, i only images, u only the image being drawn. It is InstructPix2Pix's (arXiv 2211.09800, section 3.2.1)
    as Chameleon's released code has it, its defaults included.
    """

    text: float | GuidanceSchedule = 3.0
    image: float | GuidanceSchedule = 1.2
    without: Unconditional = image_alone  # what u sees

    twins = 2

    def __post_init__(self) -> None:
        _check_scale("text guidance", self.text)
        _check_scale("image guidance", self.image)

    def streams(self, tokens: np.ndarray, tokenizer: MixedModalTokenizer) -> Sequence[np.ndarray]:
        return [without_words(tokens, tokenizer), self.without(tokens, tokenizer)]

    def mix(self, logits_SRV: Tensor, shares: Sequence[float]) -> Tensor:
        full_RV, images_RV, without_RV = logits_SRV
        by_image_RV = _scales(self.image, shares, full_RV) * (images_RV - without_RV)
        return without_RV + by_image_RV + _scales(self.text, shares, full_RV) * (full_RV - images_RV)


@dataclass(frozen=True)
class Linear:
    """A schedule from `first`, at an image's first code, towards `last`."""

    first: float
    last: float

    def scale(self, share: float) -> float:
        return self.first + (self.last - self.first) * share


@dataclass(frozen=True)
class Between:
    """A schedule that guides by `strength` from share `start` of an image until `stop`, and not at all elsewhere."""

    strength: float
    start: float = 0.0
    stop: float = 1.0

    def scale(self, share: float) -> float:
        return self.strength if self.start <= share < self.stop else 1.0


def _check_scale(name: str, scale: float | GuidanceSchedule) -> None:
    if isinstance(scale, int | float) and not scale >= 0:
        raise ValueError(f"{name} must be 0 or more (1 is none), not {scale}.")


def _scales(scale: float | GuidanceSchedule, shares: Sequence[float], like: Tensor) -> float | Tensor:
    """One number for all rows, or a column of a scheduled one for each."""
    if isinstance(scale, int | float):
        return scale
    return upload([scale.scale(share) for share in shares], like.device, like.dtype)[:, None]
