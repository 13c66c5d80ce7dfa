"""What the inspector sends to its views. `js/src/inspect/messages.d.ts` declares the same for the scripts.

`branch` numbers the documents: 0 is the one that the inspector was made with; others were drawn from a token of one.
"""

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
    """The document. Buffers: log-probabilities and entropies as float32 (nan: none). Its images come as `LensPicture`.
    `branches`: whether others can be drawn from it."""

    kind: Literal["document"]
    branch: int
    tokens: list[TokenFacts]
    images: int
    layers: int
    heads: int
    branches: bool


class BranchFacts(TypedDict):
    """A document and what made it, in words; `parent` and `position` say from which token of which it was drawn."""

    parent: int | None
    position: int | None
    words: str


class BranchTree(TypedDict):
    """All documents, and which of them is looked at."""

    kind: Literal["branches"]
    branches: list[BranchFacts]
    visible: int


class Selection(TypedDict):
    """The chosen position."""

    kind: Literal["selection"]
    branch: int
    position: int | None


class InspectorState(TypedDict):
    """What goes on, and what went wrong, in words. `drawing`: number of tokens of the branch under way, None without
    one."""

    kind: Literal["state"]
    doing: str
    trouble: str
    drawing: int | None


class HeadRows(TypedDict):
    """Rows of attention, a float32 buffer for each head: over positions 0 to `position` ("from"), or from there to the
    last ("by"). Layer -1 is rollout, through `through` layers so far; -2 is attention times gradient."""

    kind: Literal["rows"]
    branch: int
    layer: int
    through: int
    heads: list[int]
    position: int
    way: Literal["from", "by"]


class Rollouts(TypedDict):
    """Rollout of all positions. Buffers: each row's greatest weight as float32, then the rows (that of position p has
    p + 1 numbers) as bytes: 255 times the root of the weight's share in the greatest."""

    kind: Literal["rollouts"]
    branch: int


class Alternative(TypedDict):
    """What could have stood at a position: its probability, that under guidance (None where there is none), that before
    a knock-out (None without one), and whether it stands there. `swatch`: whether a buffer with its look comes
    along."""

    token: int
    words: str
    probability: float
    guided: float | None
    before: float | None
    chosen: bool
    swatch: bool


class LayerReading(TypedDict):
    """What a layer would have written at a position: its likeliest token, and how likely it holds the one that stands
    there. `swatch`: whether a buffer with its look comes along."""

    token: int
    words: str
    probability: float
    own: float
    swatch: bool


class TokenDetail(TypedDict):
    """A position. `shares`: of each layer and head, how much of its row falls on words, patches, sinks, and other
    special tokens. `layers`: what each would have written. Buffers: looks of codes as PNG, of the alternatives and then
    of the layers; it comes once without them, and again when they are drawn."""

    kind: Literal["detail"]
    branch: int
    position: int
    alternatives: list[Alternative]
    shares: list[list[list[float]]]
    layers: list[LayerReading]


class LensPicture(TypedDict):
    """An image as the stream after a layer would draw it, or, after the last, as it stands. Buffer: a PNG, empty for an
    image that is not whole."""

    kind: Literal["lens"]
    branch: int
    image: int
    layer: int


class PartSums(TypedDict):
    """What the embedding, each head and each feed-forward add to a token's logit. `trouble`: why they cannot be told
    apart."""

    kind: Literal["parts"]
    branch: int
    position: int
    embedding: float
    heads: list[list[float]]
    feed_forwards: list[float]
    trouble: str


class KnockOut(TypedDict):
    """The change, in nats, of every token's log-probability when no other token sees any of `positions`. Buffer: as
    float32."""

    kind: Literal["knockout"]
    branch: int
    positions: list[int]


class KnockedAlternatives(TypedDict):
    """What could have stood at a position, likeliest first, when no other token sees any of `positions`. Buffers: looks
    of codes as PNG."""

    kind: Literal["knocked"]
    branch: int
    positions: list[int]
    position: int
    alternatives: list[Alternative]


class EdgeCut(TypedDict):
    """The change, in nats, of the log-probability of the token at `of` when one head cannot read `source` to choose
    it."""

    kind: Literal["cut"]
    branch: int
    layer: int
    head: int
    source: int
    of: int
    nats: float


class SavedPage(TypedDict):
    """A page of what was looked up, for a browser to save. Buffer: the page."""

    kind: Literal["page"]
    name: str


InspectorMessage = (
    InspectedDocument
    | BranchTree
    | Selection
    | InspectorState
    | HeadRows
    | Rollouts
    | TokenDetail
    | LensPicture
    | PartSums
    | KnockOut
    | KnockedAlternatives
    | EdgeCut
    | SavedPage
)
