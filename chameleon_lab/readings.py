"""What was read of a model at a token, a head or a layer, as frozen plain values that cross to a screen or a disk."""

from __future__ import annotations

from dataclasses import dataclass

from chameleon_lab.vocabulary import Modality


@dataclass(frozen=True)
class TokenReading:
    """One token of a document and how the model held it, given all tokens before it.

    `words` is the token in words ("red", "code 22", "begin_image"); `image`, `row` and `column` say which cell of which
    image it is, None for what is no code. `log_probability` and `entropy` are in nats, `rank` is 0 for the likeliest;
    all three are None for the first token, which nothing comes before.
    """

    position: int
    token: int
    modality: Modality
    words: str
    image: int | None = None
    row: int | None = None
    column: int | None = None
    log_probability: float | None = None
    rank: int | None = None
    entropy: float | None = None


@dataclass(frozen=True)
class AttentionShares:
    """How one row of attention, which sums to 1, falls on kinds of positions.

    `sinks` are begin_document and begin_image, on which heads rest that have nothing to read; `special` is the rest of
    the special tokens.
    """

    words: float
    patches: float
    sinks: float
    special: float


@dataclass(frozen=True)
class Contribution:
    """What one part of the model adds to a token's logit: the embedding, a head or a feed-forward of a layer."""

    part: str
    layer: int | None
    head: int | None
    logit: float
