"""What the widgets of images send to their views. `js/src/images/messages.d.ts` declares the same for the scripts."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

# ReconstructionViewer


class TripFacts(TypedDict):
    """A round trip; where `error` is not empty, the figures are empty. None: an infinite PSNR, an undefined SSIM."""

    tokenizer: str
    policy: str
    error: str
    codes: list[list[int]]
    codebook: int | None
    bits: int | None
    psnr: float | None
    ssim: float | None
    width: int
    height: int


class ViewerOffers(TypedDict):
    """What can be chosen; a buffer with a picture for each sample."""

    kind: Literal["offers"]
    tokenizers: list[str]
    policies: list[str]
    samples: list[str]


class ViewerResult(TypedDict):
    """What is shown; original and reconstruction as buffers for each trip without an error."""

    kind: Literal["result"]
    error: str
    name: str
    chosen: list[str]
    policy: str
    trips: list[TripFacts]


ViewerMessage = ViewerOffers | ViewerResult

# CodebookAtlas


class AtlasState(TypedDict):
    """What goes on, and what went wrong, in words."""

    kind: Literal["state"]
    doing: str
    trouble: list[str]


class AtlasMap(TypedDict):
    """The layout; the code of each cell as uint32. `block`: side of the block that is decoded for one code."""

    kind: Literal["map"]
    columns: int
    scale: list[str]
    block: int


class AtlasUsage(TypedDict):
    """How the codes are used; their counts as float64. The curves are (tokens, share of the codes used)."""

    kind: Literal["usage"]
    names: list[str]
    external: bool
    tokens: int
    usage: float
    perplexity: float
    dead: int
    even: float
    measured: list[tuple[int, float]]
    evenly: list[tuple[int, float]]


class AtlasPicture(TypedDict):
    """A picture as PNG, and its codes as uint32."""

    kind: Literal["picture"]
    at: int
    rows: int
    columns: int
    width: int
    height: int


class AtlasCode(TypedDict):
    """The chosen code: its nearest codes with their distances, and places in the pictures, a patch as PNG for each."""

    kind: Literal["code"]
    code: int | None
    near: list[tuple[int, float]]
    places: list[tuple[int, int, int]]
    count: int


class AtlasPatches(TypedDict):
    """What codes decode to, as PNG."""

    kind: Literal["patches"]
    codes: list[int]


class AtlasColours(TypedDict):
    """The mean decoded colour of each code: RGB, and 255 where it is decoded already."""

    kind: Literal["colours"]


AtlasMessage = AtlasState | AtlasMap | AtlasUsage | AtlasPicture | AtlasCode | AtlasPatches | AtlasColours

# CodeSurgery


class GridFacts(TypedDict):
    """The codes as edited and as they came, int32 each; steps that can be taken back and forth."""

    key: int
    name: str
    rows: int
    columns: int
    undo: int
    redo: int


class PictureFacts(TypedDict):
    """The decoded picture, and the original's where `before`. `fresh`: it is of the codes sent last."""

    fresh: bool
    before: bool
    width: int
    height: int


class SurgeryUpdate(TypedDict):
    """What is new. `applied`: number of the last edit of each view. Buffers in the order of the fields."""

    kind: Literal["update"]
    applied: dict[str, int]
    samples: NotRequired[list[str]]
    codebook: NotRequired[int | None]
    grid: NotRequired[GridFacts]
    error: NotRequired[str]
    picture: NotRequired[PictureFacts]
    swatches: NotRequired[list[int]]
