"""Guidance: pushing logits away from what would come without the words that were asked, or the pictures shown.

A guided row has *twins*, further streams in the same batch and cache that see less of the document, and whose logits
are mixed with the row's own, while it draws or while it writes. Classifier-free guidance (`TwoWay`, `ThreeWay`) and
contrastive decoding (`Contrastive`) differ in the formula alone. A guidance of your own is a frozen dataclass with the
two methods of `Guidance`; what a twin sees is any function like `without_words`; how strong it is may follow a
`GuidanceSchedule`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from chameleon_lab.documents import Document
from chameleon_lab.generation.recording import upload
from chameleon_lab.parts import plain_number, require, require_count
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.vocabulary import Modality


class Guidance(Protocol):
    """How many `twins` a row has, what they see, and how all their logits become one.

    `streams` is asked once an image, when its first code is due, with all tokens of the row so far: one stream a twin.
    What is drawn from there on, all streams take alike. Of what a twin saw before, the common beginning is not
    computed again. `mix` gets the logits of the rows that draw, their own first (streams x rows x what may come there,
    which is the codes), and how much of its image each has drawn, in [0, 1). A guidance of words is asked likewise,
    where the reply or its next stretch of words begins; the share is 0 there. -inf rules a token out; one must stay.
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
    """The image being drawn and not even a begin: Lumina-mGPT's, whose image gives its grid first.

    Raises ValueError where no image was begun, as in a reply of words.
    """
    begins = np.flatnonzero(tokens == tokenizer.vocabulary.begin_image)
    if not len(begins):
        raise ValueError("No image was begun that this could see: to guide words take turn_alone or without_images.")
    return tokens[begins[-1] :]


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


def turn_alone(tokens: np.ndarray, tokenizer: MixedModalTokenizer) -> np.ndarray:
    """The document's begin and the turn under way, nothing asked and nothing shown before it: for words.

    Of a document without turns, what stands behind its last image; without either, all of it.
    """
    vocabulary = tokenizer.vocabulary
    ends = np.flatnonzero(tokens == vocabulary.end_turn)
    ends = ends if len(ends) else np.flatnonzero(tokens == vocabulary.end_image)
    return np.concatenate([[vocabulary.begin_document], tokens[1 + (ends[-1] if len(ends) else 0) :]])


def without_images(tokens: np.ndarray, tokenizer: MixedModalTokenizer) -> np.ndarray:
    """The document without its images: what would be said of them unseen (arXiv 2311.16922, section 3, with nothing
    in place of its noise). It only grows as the document grows."""
    vocabulary = tokenizer.vocabulary
    return tokens[~vocabulary.within_images[tokens] & ~np.isin(tokens, (vocabulary.begin_image, vocabulary.end_image))]


@dataclass(frozen=True)
class Negative:
    """A negative prompt: another document in place of the words, which guidance then leads away from.

    Where the model was trained on turns, let it end as a request does: `Negative(Document.of("blurry", EndTurn()))`.
    The images of the row stay, or with `images=False` only the one being drawn.
    """

    document: Document
    images: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.document, Document):
            raise ValueError(
                f"A negative prompt is a Document, not {self.document!r}: Negative(Document.of('blurry'))."
            )

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
        object.__setattr__(self, "scale", _checked_scale("guidance", self.scale))
        require(self.without, "a view of the tokens", "__call__")

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
        object.__setattr__(self, "text", _checked_scale("text guidance", self.text))
        object.__setattr__(self, "image", _checked_scale("image guidance", self.image))
        require(self.without, "a view of the tokens", "__call__")

    def streams(self, tokens: np.ndarray, tokenizer: MixedModalTokenizer) -> Sequence[np.ndarray]:
        return [without_words(tokens, tokenizer), self.without(tokens, tokenizer)]

    def mix(self, logits_SRV: Tensor, shares: Sequence[float]) -> Tensor:
        full_RV, images_RV, without_RV = logits_SRV
        by_image_RV = _scales(self.image, shares, full_RV) * (images_RV - without_RV)
        return without_RV + by_image_RV + _scales(self.text, shares, full_RV) * (full_RV - images_RV)


def linear_strengths(guide: Guidance | None, share: float) -> tuple[float, float] | None:
    """The strengths of the two guidances above, of text and of earlier images, and (0, 0) without one; None of others,
    whose mix nobody knows but they."""
    if guide is None:
        return 0.0, 0.0
    scales = (guide.scale, 0.0) if type(guide) is TwoWay else None
    scales = (guide.text, guide.image) if type(guide) is ThreeWay else scales
    if scales is None:
        return None
    text, image = (scale if isinstance(scale, int | float) else scale.scale(share) for scale in scales)
    return text, image


WEAKEST = -1e4
"""In nats: what a twin holds less likely than this counts as this likely, so that no contrast is infinite."""


@dataclass(frozen=True)
class Contrastive:
    """Contrastive decoding, CD-K: log p_strong - log p_weak where p_strong >= alpha x its k-th largest, else -inf.

    Strong is the row's own stream, or with a `scale` other than 1 that stream as `TwoWay` guides it; weak is a twin,
    the same model that sees less, its logits divided by `student_temperature` first (arXiv 2309.02591, section 3.2;
    arXiv 2210.15097). The sampler's temperature and shares come after, on this score. `k` of 1 is the largest: there an
    `alpha` near 1 leaves the likeliest token alone. The paper prints neither `k` nor `alpha`; `alpha`, the student's
    temperature and the missing k are those of the public scripts, which sample at temperature 0.8.
    """

    alpha: float = 0.5
    k: int = 1
    student_temperature: float = 0.5
    scale: float | GuidanceSchedule = 1.0
    without: Unconditional = without_words

    twins = 1

    def __post_init__(self) -> None:
        for name in ("alpha", "student_temperature"):
            object.__setattr__(self, name, plain_number(getattr(self, name), name))
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], not {self.alpha}.")
        if not self.student_temperature > 0:
            raise ValueError(f"student_temperature must be above 0, not {self.student_temperature}.")
        require_count(self.k, "the probability that alpha is a share of, counted from the largest,", 1)
        object.__setattr__(self, "scale", _checked_scale("guidance", self.scale))
        require(self.without, "a view of the tokens", "__call__")

    def streams(self, tokens: np.ndarray, tokenizer: MixedModalTokenizer) -> Sequence[np.ndarray]:
        return [self.without(tokens, tokenizer)]

    def mix(self, logits_SRV: Tensor, shares: Sequence[float]) -> Tensor:
        full_RV, without_RV = logits_SRV
        if self.scale != 1:
            full_RV = without_RV + _scales(self.scale, shares, full_RV) * (full_RV - without_RV)
        strong_RV = full_RV.log_softmax(-1)
        weak_RV = (without_RV / self.student_temperature).log_softmax(-1).clamp_min(WEAKEST)
        kth_R1 = strong_RV.topk(min(self.k, strong_RV.shape[-1])).values[:, -1:]
        # Compared as logarithms; the second condition keeps out what has no probability where the k-th has none either.
        least = math.log(self.alpha) if self.alpha else -math.inf
        likely_RV = (strong_RV >= kth_R1 + least) & (strong_RV > -math.inf)
        return torch.where(likely_RV, strong_RV - weak_RV, -math.inf)


@dataclass(frozen=True)
class Linear:
    """A schedule from `first`, at an image's first code, towards `last`."""

    first: float
    last: float

    def __post_init__(self) -> None:
        _ = plain_number(self.first, "first"), plain_number(self.last, "last")

    def scale(self, share: float) -> float:
        return self.first + (self.last - self.first) * share


@dataclass(frozen=True)
class Between:
    """A schedule that guides by `strength` from share `start` of an image until `stop`, and not at all elsewhere."""

    strength: float
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        for name in ("strength", "start", "stop"):
            plain_number(getattr(self, name), name)

    def scale(self, share: float) -> float:
        return self.strength if self.start <= share < self.stop else 1.0


def _checked_scale(name: str, scale: float | GuidanceSchedule) -> float | GuidanceSchedule:
    """A plain number, or a schedule. Raises ValueError for what is neither."""
    if callable(getattr(scale, "scale", None)):
        require(scale, "a schedule", "scale")
        return scale
    number = plain_number(scale, name)
    if number < 0:
        raise ValueError(f"{name} must be 0 or more (1 is none), not {scale}.")
    return number


def _scales(scale: float | GuidanceSchedule, shares: Sequence[float], like: Tensor) -> float | Tensor:
    """One number for all rows, or a column of a scheduled one for each."""
    if isinstance(scale, int | float):
        return scale
    return upload([scale.scale(share) for share in shares], like.device, like.dtype)[:, None]
