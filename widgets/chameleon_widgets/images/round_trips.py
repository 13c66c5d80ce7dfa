"""Round trips: what image tokenizers made of one picture, as values, as figures for the screen, and as a still."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image

from chameleon_lab.records import Reconstruction
from chameleon_widgets import stills
from chameleon_widgets.images.messages import TripFacts
from chameleon_widgets.line import paragraph
from chameleon_widgets.pictures import data_uri

ZOOM = "<style>.chameleon-still .zoomed img{image-rendering:pixelated}</style>"


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """One picture through one image tokenizer: the reconstruction, or the error that came instead.

    `policy` names the preparation, empty for the tokenizer's own; `codebook` is the number of codes there are, where
    that is known.
    """

    tokenizer: str
    policy: str
    codebook: int | None
    result: Reconstruction | Exception

    @property
    def pictures(self) -> tuple[PIL.Image.Image, ...]:
        """Original and reconstruction; none where there is an error."""
        result = self.result
        return (result.original, result.picture) if isinstance(result, Reconstruction) else ()

    @property
    def bits(self) -> int | None:
        """Bits of one code."""
        return None if self.codebook is None else max(1, math.ceil(math.log2(self.codebook)))

    def facts(self) -> TripFacts:
        """What the screen shows of it: plain values."""
        facts = TripFacts(
            tokenizer=self.tokenizer,
            policy=self.policy,
            error="",
            codes=[],
            codebook=self.codebook,
            bits=self.bits,
            psnr=None,
            ssim=None,
            width=0,
            height=0,
        )
        if not isinstance(result := self.result, Reconstruction):
            facts["error"] = paragraph(result)
            return facts
        facts["codes"], (facts["width"], facts["height"]) = result.codes.tolist(), result.original.size
        facts["psnr"] = None if math.isinf(result.psnr) else result.psnr
        facts["ssim"] = None if math.isnan(result.ssim) else result.ssim
        return facts

    def summary(self) -> str:
        """One line: how many codes, of how many bits, and how close the picture came back."""
        if not isinstance(result := self.result, Reconstruction):
            return paragraph(result)
        count = result.codes.size
        size = f" × {self.bits} bits = {count * self.bits} bits" if self.bits else ""
        psnr_text = "equal" if math.isinf(result.psnr) else f"PSNR {result.psnr:.1f} dB"
        ssim_text = "" if math.isnan(result.ssim) else f", SSIM {result.ssim:.3f}"
        return f"{count} codes{size}, {psnr_text}{ssim_text}"


def refusal_words(trips: Sequence[RoundTrip], *, named: bool) -> str:
    """The words where no tokenizer took the picture: each reason once, with the tokenizer's name where `named`."""
    reasons = {trip.tokenizer: paragraph(trip.result) for trip in trips if isinstance(trip.result, Exception)}
    if len(set(reasons.values())) == 1 and (len(reasons) > 1 or not named):
        return next(iter(reasons.values()))
    return " ".join(f"{who}: {reason}" for who, reason in reasons.items())


def finest(trips: Sequence[RoundTrip]) -> RoundTrip:
    """The trip whose original has most pixels: the one that is shown where there is room for one."""
    return max(trips, key=lambda trip: trip.pictures[0].width * trip.pictures[0].height if trip.pictures else 0)


def still(name: str, trips: Sequence[RoundTrip]) -> tuple[str, str]:
    """(HTML body, plain text) of round trips of the picture called `name`, safe to put into a page."""
    if not trips:
        empty = "A reconstruction viewer without a picture. Run the cell to use it."
        return f"<p>{empty}</p>", empty
    several = len(trips) > 1
    sides = [("Original", finest(trips).pictures[0])]
    sides += [(trip.tokenizer if several else "Reconstruction", trip.pictures[1]) for trip in trips if trip.pictures]
    body = ZOOM + "".join(_side(who, picture, 256 if len(sides) < 3 else 192) for who, picture in sides)
    lines = [f"{trip.tokenizer}: {trip.summary()}" if several else trip.summary() for trip in trips]
    if trips[0].policy:
        lines.append(f"Prepared by {trips[0].policy}")
    lines[0] = f"{name}: {lines[0]}" if name and not several else lines[0]
    if name and several:
        lines.insert(0, name)
    notes = "".join(f'<p class="note">{stills.escape(line)}</p>' for line in lines)
    return body + notes, "Reconstruction. " + "; ".join(lines)


def _side(who: str, picture: PIL.Image.Image, side: int) -> str:
    """A picture with its name, `side` pixels long in the page, or the whole multiple of its own length below that."""
    longest = max(picture.size)
    times = side // longest or side / longest
    image = stills.image(data_uri(picture, stills.STILL_SIDE), who, max(1, round(times * picture.width)))
    return f'<span class="side{" zoomed" if times > 1 else ""}"><b>{stills.escape(who)}</b>{image}</span>'
