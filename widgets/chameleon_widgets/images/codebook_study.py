"""What is found out about a codebook, a little at a time: its map, how pictures use it, what its codes decode to.

Each step here is short, so that whoever takes them can turn to something more urgent in between.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import PIL.Image

from chameleon_lab.pictures import rgb
from chameleon_lab.records import CodebookUsage
from chameleon_widgets.images import codebook_map
from chameleon_widgets.images.messages import AtlasCode
from chameleon_widgets.images.sightings import Sightings, cell, named
from chameleon_widgets.line import paragraph

DECODED_BLOCK = 3  # a code is decoded as the middle of so many by so many of it, away from the decoder's edges
NEAR, PATCHES = 8, 12  # nearest codes and real patches shown of a code
SLICE = 0.05  # seconds of decoding at a stretch
POINTS = 200  # of each drawn curve


class CodebookTokenizer(Protocol):
    """What the atlas asks of an image tokenizer; where it has `prepare` too, pictures are shown as that leaves them."""

    @property
    def codebook(self) -> np.ndarray: ...

    def encode(self, picture: PIL.Image.Image) -> np.ndarray: ...

    def decode(self, codes: np.ndarray) -> PIL.Image.Image: ...


class CodebookStudy:
    """A codebook and what is known of it so far; `trouble` keeps what went wrong, by what was tried.

    `order_N` is the map, None until `arrange` was called. `colours_N4`: the mean decoded colour of each code, and 255
    where it is known. Raises ValueError for a codebook that is missing, misshapen or not finite, and for a usage of
    another size; TypeError for pictures that are none.
    """

    def __init__(
        self,
        tokenizer: CodebookTokenizer,
        pictures: Mapping[str, PIL.Image.Image] | Sequence[PIL.Image.Image],
        usage: CodebookUsage | None,
    ) -> None:
        self.book_NC = codebook_map.checked(getattr(tokenizer, "codebook", None))
        self.size = len(self.book_NC)
        if usage is not None and len(usage.counts_N) != self.size:
            raise ValueError(f"The usage counts {len(usage.counts_N)} codes, and the codebook has {self.size}.")
        self.external_usage = usage
        self.sightings = Sightings(self.size)
        self.order_N: np.ndarray | None = None
        self.colours_N4 = np.zeros((self.size, 4), np.uint8)
        self.trouble: dict[str, Exception] = {}
        self._tokenizer = tokenizer
        self._pictures = named(pictures)
        self._unseen = deque(self._pictures.items())
        self._patches: dict[int, PIL.Image.Image] = {}
        self._spread_N = np.random.default_rng(0).permutation(self.size)

    @property
    def usage(self) -> CodebookUsage:
        """The usage given, else that of the pictures encoded so far."""
        return self.sightings.usage if self.external_usage is None else self.external_usage

    @property
    def doing(self) -> str:
        """What of the map and the pictures is unfinished, in words; empty when nothing is."""
        if self.order_N is None:
            return "Laying out the map"
        if self._unseen:
            return f"Encoding picture {len(self._pictures) - len(self._unseen) + 1} of {len(self._pictures)}"
        return ""

    def arrange(self) -> None:
        self.order_N = codebook_map.layout(self.book_NC)

    def encode_next(self) -> bool:
        """Encodes the next picture; whether there are more."""
        if not self._unseen:
            return False
        name, picture = self._unseen[0]
        try:
            prepared = getattr(self._tokenizer, "prepare", rgb)(rgb(picture, f"“{name}”"))
            self.sightings.add(name, prepared, self._tokenizer.encode(prepared))
        except Exception as error:  # one picture's trouble is not that of the others
            self.trouble[f"“{name}” could not be encoded: "] = error
        self._unseen.popleft()
        return bool(self._unseen)

    def decode(self, codes: deque[int]) -> list[int]:
        """Decodes codes from the left of the queue for a slice of time; those whose patches are there now.

        What the decoder raises goes to `trouble` and empties the queue.
        """
        done: list[int] = []
        begun = time.monotonic()
        while codes and (not done or time.monotonic() - begun < SLICE):
            try:
                self._decode(codes[0])
                self.trouble.pop("A code could not be decoded: ", None)
            except Exception as error:  # shown in the widget
                self.trouble["A code could not be decoded: "] = error
                codes.clear()
                break
            done.append(codes.popleft())
        return done

    def _decode(self, code: int) -> None:
        if code not in self._patches:
            block = rgb(self._tokenizer.decode(np.full((DECODED_BLOCK, DECODED_BLOCK), code, np.int64)))
            self._patches[code] = patch = cell(
                block, DECODED_BLOCK, DECODED_BLOCK, DECODED_BLOCK // 2, DECODED_BLOCK // 2
            )
            self.colours_N4[code] = (*np.asarray(patch).mean((0, 1)).round(), 255)

    def decoded(self, code: int) -> PIL.Image.Image | None:
        """What a code decodes to, where that is known."""
        return self._patches.get(code)

    def colour_next(self) -> bool:
        """Decodes some more of all codes, here and there on the map; whether it should be called again."""
        unknown = self._spread_N[self.colours_N4[self._spread_N, 3] == 0].tolist()
        return 0 < len(self.decode(deque(unknown))) < len(unknown)

    def detail(self, code: int) -> tuple[AtlasCode, list[PIL.Image.Image]]:
        """The nearest codes with their distances, places in the pictures and how many there are; patches of those."""
        places, count = self.sightings.places(code, PATCHES)
        near = codebook_map.nearest_codes(self.book_NC, code, NEAR)
        message = AtlasCode(
            kind="code", code=code, near=near, places=[(at, row, column) for at, row, column in places], count=count
        )
        return message, [self.sightings.patch(place) for place in places]

    def complaints(self) -> list[str]:
        """The trouble, a paragraph each."""
        return [what + paragraph(error) for what, error in tuple(self.trouble.items())]

    def summary(self) -> str:
        """The facts in one line."""
        usage = self.usage
        if not usage.tokens:
            return f"{self.size:,} codes, none seen yet."
        return (
            f"{self.size - len(usage.dead):,} of {self.size:,} codes used ({usage.usage:.1%}), {len(usage.dead):,} "
            f"dead, perplexity {usage.perplexity:,.0f}, over {usage.tokens:,} tokens; as many drawn evenly would use "
            f"{usage.uniform_usage():.1%}."
        )


def facts(usage: CodebookUsage) -> dict[str, Any]:
    """The figures of a codebook's use, and curves of (tokens, share used): as measured, and as drawn evenly."""
    size, measured = len(usage.counts_N), usage.curve or ((usage.tokens, len(usage.counts_N) - len(usage.dead)),)
    picks = np.unique(np.linspace(0, len(measured) - 1, min(POINTS, len(measured))).round().astype(int))
    evenly = np.unique(np.linspace(0, usage.tokens, 64).round().astype(int)).tolist()
    return {
        "tokens": usage.tokens,
        "usage": usage.usage,
        "perplexity": usage.perplexity,
        "dead": len(usage.dead),
        "even": usage.uniform_usage(),
        "measured": [(measured[pick][0], measured[pick][1] / size) for pick in picks],
        "evenly": [(tokens, usage.uniform_usage(tokens)) for tokens in evenly],
    }
