"""What was read of a model at a token, a head or a layer, as frozen plain values that cross to a screen or a disk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
class NextToken:
    """What may come behind the tokens of a document, and what decides it.

    `logits_SV`, float32: what the model says of every token and, where guidance pulls, what it says to each twin that
    sees less; nothing of them is masked or divided yet. `allowed_V`: which tokens the grammar lets come; `reasons`:
    (first id, id behind the last, why none of these may come), to be looked through in this order. `share`: how much of
    a picture is drawn, and `grid` its rows and columns, None outside one. `state` says in words where the reply stands;
    `ended` is why it ended, if it has. The reply begins behind `prompt` tokens. `samplers`: the settings of "words" and
    of "pictures", by name. `strengths`: of two-way guidance one number, of three-way those of text and image, () where
    `logits_SV` is mixed already. `draw`: the quantile, in [0, 1), of the token that will be drawn, of those left,
    likeliest first.
    """

    tokens: list[TokenReading]
    prompt: int
    state: str
    ended: str | None
    share: float | None
    grid: tuple[int, int] | None
    logits_SV: np.ndarray
    allowed_V: np.ndarray
    reasons: tuple[tuple[int, int, str], ...]
    samplers: dict[str, dict[str, float]]
    strengths: tuple[float, ...]
    draw: float

    def reason(self, token: int) -> str:
        """Why a token may not come; what it is allowed to be has no reason and gets an empty text."""
        if 0 <= token < len(self.allowed_V) and self.allowed_V[token]:
            return ""
        return next((why for first, stop, why in self.reasons if first <= token < stop), "There is no such token.")


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
