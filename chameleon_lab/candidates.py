"""The best of several replies: drawn in whatever ways, ranked by whatever gives a document a number.

```python
mixed = lab.settings, lab.settings.changed(guidance=Contrastive(k=4))  # half by top-p, half by CD-K
ranking = lab.candidates(Document.of("draw a red circle", EndTurn()), 8, scorer=CaptionScore(lab.engine), mixture=mixed)
ranking[0].reply  # the best; `ChatCell(lab.stream, choose=BestBy(scorer))` has the same in a chat
```
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import PIL.Image

from chameleon_lab.corpora.checker import compare_scenes, read_scene
from chameleon_lab.corpora.scenes import Scene
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.generation.engine import Engine
from chameleon_lab.generation.settings import Settings
from chameleon_lab.parts import require

Scorer = Callable[[Document], float]
"""How good a document is, the request and a reply to it: any function; the larger the better, -inf for the worst."""


@dataclass(frozen=True)
class Candidate:
    """A reply, what it was drawn with, and its score."""

    reply: Document
    score: float
    settings: Settings
    seed: int


def score_of(scorer: Scorer, document: Document) -> float:
    """A scorer's number. Raises ValueError for what is none."""
    score, number = scorer(document), math.nan
    if isinstance(score, int | float | np.integer | np.floating) and not isinstance(score, bool):
        with suppress(OverflowError):  # of a whole number with more than 308 digits
            number = float(score)
    if math.isnan(number):
        raise ValueError(f"A scorer gives a number, the larger the better, not {str(score)[:80]!r}: {scorer!r}.")
    return number


def ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The best first; of equally good ones, those that were drawn first."""
    return sorted(candidates, key=lambda each: -each.score)


@dataclass(frozen=True)
class BestBy:
    """Chooses among documents, each a request and a reply, for `ChatCell(choose=...)`: the place of the best."""

    scorer: Scorer

    def __post_init__(self) -> None:
        require(self.scorer, "a scorer", "__call__")

    def __call__(self, documents: Sequence[Document]) -> int:
        if not documents:
            raise ValueError("There is no reply to choose among.")
        return int(np.argmax([score_of(self.scorer, document) for document in documents]))


def request_and_picture(document: Document) -> tuple[str, Image | None]:
    """The words of the turn that the document's last image answers, and that image; words around it do not count."""
    parts = [*document]
    images = [(place, part) for place, part in enumerate(parts) if isinstance(part, Image)]
    if not images:
        return "", None
    place, image = images[-1]
    ends = [end for end, part in enumerate(parts[:place]) if isinstance(part, EndTurn)]
    begin, stop = (ends[-2] + 1 if len(ends) > 1 else 0, ends[-1]) if ends else (0, place)
    return "".join(part.text for part in parts[begin:stop] if isinstance(part, Text)).strip(), image


@dataclass(frozen=True)
class CaptionScore:
    """The model's own judgement of its picture: log p of a caption given the picture, in nats a token.

    `caption` makes it of the request's words, by default they are it. It stands behind the picture as in a pair, or
    where the model learned to answer, as the answer to a `question`. -inf without a picture or without words.
    """

    engine: Engine
    caption: Callable[[str], str] = str.strip
    question: str = ""

    def __call__(self, document: Document) -> float:
        words, image = request_and_picture(document)
        caption = self.caption(words)
        if image is None or not caption:
            return -math.inf
        context = Document((image, Text(self.question), EndTurn()) if self.question else (image,))
        return self.engine.score([Document((Text(caption),))], context)[0].mean


@dataclass(frozen=True)
class CheckerScore:
    """The share of a scene's attributes that a picture has right, read from its pixels; -inf without a picture."""

    scene: Scene

    def __call__(self, document: Document) -> float:
        _, image = request_and_picture(document)
        if image is None:
            return -math.inf
        return float(np.mean([*compare_scenes(self.scene, read_scene(image.picture)).values()]))


class PairEncoder(Protocol):
    """Words and pictures as vectors of one space, a row each: CLIP, or any other that was trained on pairs."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray: ...

    def encode_pictures(self, pictures: Sequence[PIL.Image.Image]) -> np.ndarray: ...


@dataclass(frozen=True)
class SimilarityScore:
    """The cosine between a request's words and the picture, in [-1, 1]: CLIP's where `encoder` is one.

    -inf without a picture or without words.
    """

    encoder: PairEncoder
    caption: Callable[[str], str] = str.strip

    def __post_init__(self) -> None:
        require(self.encoder, "an encoder", "encode_text", "encode_pictures")

    def __call__(self, document: Document) -> float:
        words, image = request_and_picture(document)
        caption = self.caption(words)
        if image is None or not caption:
            return -math.inf
        text_D, picture_D = self.encoder.encode_text([caption])[0], self.encoder.encode_pictures([image.picture])[0]
        return float(text_D @ picture_D / max(float(np.linalg.norm(text_D) * np.linalg.norm(picture_D)), 1e-12))
