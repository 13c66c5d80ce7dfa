"""What the explainer sends to its views. `js/src/teach/messages.d.ts` declares the same for the scripts."""

from __future__ import annotations

from typing import Literal, TypedDict


class VocabularyBlock(TypedDict):
    """Neighbouring ids of one kind, from `first` to before `stop`."""

    name: str
    first: int
    stop: int
    modality: int


class LessonFacts(TypedDict):
    """What stays the same: every token in words, the blocks of the vocabulary. Buffer: the code of each image token, as
    int32."""

    kind: Literal["facts"]
    names: list[str]
    blocks: list[VocabularyBlock]
    codes: int
    layers: int
    heads: int


class WalkToken(TypedDict):
    """A token of the document, its `Modality`, and which cell of which image it is."""

    token: int
    modality: int
    image: int | None
    row: int | None
    column: int | None


class WalkStep(TypedDict):
    """Where the walk stands. `tokens` stand from position `start` on, where the document is another than before;
    `grid`: rows and columns of the picture under way; `reasons`: (first id, id behind the last, why none of these may
    come). Buffers: logits of the row and of each twin, float32, and whether each token may come, a byte each."""

    kind: Literal["step"]
    start: int
    tokens: list[WalkToken]
    prompt: int
    text: str
    state: str
    ended: str | None
    drawing: bool
    grid: tuple[int, int] | None
    streams: int
    reasons: list[tuple[int, int, str]]
    samplers: dict[str, dict[str, float]]
    strengths: list[float]
    draw: float
    seed: int


class HeadScores(TypedDict):
    """A row of attention of all heads of a layer. Buffers: scores before the softmax, and weights, float32, each heads
    x positions 0 to `position`."""

    kind: Literal["scores"]
    layer: int
    position: int


class CodeLooks(TypedDict):
    """What codes look like: one PNG, from left to right."""

    kind: Literal["looks"]
    codes: list[int]


class WholePicture(TypedDict):
    """An image of the document, as PNG."""

    kind: Literal["picture"]
    image: int


class ExplainerState(TypedDict):
    """What goes on, and what went wrong, in words."""

    kind: Literal["state"]
    doing: str
    trouble: str


ExplainerMessage = LessonFacts | WalkStep | HeadScores | CodeLooks | WholePicture | ExplainerState
