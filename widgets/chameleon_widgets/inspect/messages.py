"""What the inspector sends to its views. `js/src/inspect/messages.d.ts` declares the same for the scripts."""

from __future__ import annotations

from typing import Literal, TypedDict


class TokenFacts(TypedDict):
    """A token, its `Modality`, and which cell of which image it is. `sink`: heads rest there that read nothing."""

    words: str
    modality: int
    sink: bool
    image: int | None
    row: int | None
    column: int | None
    rank: int | None


class InspectedDocument(TypedDict):
    """The document. Buffers: log-probabilities and entropies as float32 (nan: none), then each image as PNG, empty
    where it is not whole."""

    kind: Literal["document"]
    tokens: list[TokenFacts]
    images: int
    layers: int
    heads: int


class InspectorState(TypedDict):
    """What goes on, and what went wrong, in words."""

    kind: Literal["state"]
    doing: str
    trouble: str


class HeadRows(TypedDict):
    """Rows of attention, a float32 buffer for each head: over positions 0 to `position` ("from"), or from there to the
    last ("by"). Layer -1 is rollout, through all layers."""

    kind: Literal["rows"]
    layer: int
    heads: list[int]
    position: int
    way: Literal["from", "by"]


class Alternative(TypedDict):
    """What could have stood at a position: its probability, that under guidance (None where there is none), and whether
    it stands there. `swatch`: whether a buffer with its look comes along."""

    words: str
    probability: float
    guided: float | None
    chosen: bool
    swatch: bool


class TokenDetail(TypedDict):
    """The chosen position. `shares`: of each layer and head, how much of its row falls on words, patches, sinks, and
    other special tokens. Buffers: looks of codes as PNG."""

    kind: Literal["detail"]
    position: int | None
    alternatives: list[Alternative]
    shares: list[list[list[float]]]


class LensPicture(TypedDict):
    """An image as the stream after a layer would draw it, as PNG."""

    kind: Literal["lens"]
    image: int
    layer: int


class KnockOut(TypedDict):
    """The change, in nats, of the log-probability of the token at `of` when no other token sees `position`."""

    kind: Literal["knockout"]
    position: int
    of: int
    nats: float


InspectorMessage = InspectedDocument | InspectorState | HeadRows | TokenDetail | LensPicture | KnockOut
