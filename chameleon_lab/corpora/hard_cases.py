"""Hard cases: drawn pictures that show where an image tokenizer gives way, each for a reason of its own.

- `text sizes`, `page of text`: letters are strokes of a pixel or two, and a wrong one makes another letter. Text is
  what the paper's tokenizer rebuilds worst, which bounds what a model on top of it can read (Chameleon, section 2.1)
- `faces`: two differ by a corner of an eye or a mouth, which is smaller than a cell, and which people notice
- `thin lines`: few codes hold a line of just this angle and place, so it breaks, thickens, or turns into stairs
- `gradients`: neighbouring codes must agree to a level or two, or the borders of the cells show
- `noise`: it cannot be compressed; what comes back is the texture that the decoder puts in its place
- `checkerboards`: near the period of the cells they come back shifted, or as an even grey
- `colour contrasts`: discs and stripes a few levels from their ground, most of them as light as it
"""

from __future__ import annotations

import math

import numpy as np
import PIL.Image
from PIL.ImageDraw import Draw, ImageDraw
from PIL.ImageFont import load_default

Colour = tuple[int, int, int]

OVERSAMPLE = 4
"""Shapes are drawn at this multiple of the size and averaged down (antialiased)."""

INK_RGB, PAPER_RGB = (28, 30, 36), (250, 248, 242)
LINE = "Sphinx of black quartz, judge my vow 0123456789"
PAGE = (
    "Each word here is a few strokes, and each stroke a pixel or two wide. Whoever rounds them to the nearest of a few "
    "thousand patches keeps the grey of the page and loses the letters: rn becomes m, 8 becomes 6, a comma a stop. "
    "Read it again after the round trip. Where it can still be read, the codes hold text; where it only looks like "
    "text, they hold the look of it. 1,299.00 and 1,289.00 differ by one digit; l, I and 1 by less."
)


def hard_cases(side: int = 256) -> dict[str, PIL.Image.Image]:
    """All hard cases by name: RGB, `side` pixels square, the same at every call. ValueError under 32 pixels."""
    if side < 32:
        raise ValueError(f"Hard cases can be drawn with 32 pixels a side or more; got {side}.")
    return {
        "text sizes": _text_sizes(side),
        "page of text": _page(side),
        "faces": _faces(side),
        "thin lines": _thin_lines(side),
        "gradients": _gradients(side),
        "noise": _noise(side),
        "checkerboards": _checkerboards(side),
        "colour contrasts": _colour_contrasts(side),
    }


def _text_sizes(side: int) -> PIL.Image.Image:
    """One line again and again, from a sixth of the picture's height down to a fortieth; then light on dark."""
    picture = PIL.Image.new("RGB", (side, side), PAPER_RGB)
    draw, top = Draw(picture), 0.02 * side
    for share in (6, 8, 11, 14, 18, 23, 30, 40):
        draw.text((side / 32, top), LINE, INK_RGB, load_default(side / share))
        top += 1.2 * side / share
    top += 0.02 * side
    draw.rectangle((0, top, side, side), INK_RGB)
    for share in (14, 20, 30):
        draw.text((side / 32, top), LINE, PAPER_RGB, load_default(side / share))
        top += 1.25 * side / share
    return picture


def _page(side: int) -> PIL.Image.Image:
    """Small print, a heading above it."""
    picture = PIL.Image.new("RGB", (side, side), PAPER_RGB)
    draw, margin, body = Draw(picture), side / 20, load_default(side / 24)
    draw.text((margin, margin / 2), "SMALL PRINT", INK_RGB, load_default(side / 13))
    draw.line((margin, 0.14 * side, side - margin, 0.14 * side), INK_RGB)
    line, top = "", 0.16 * side
    for word in PAGE.split() * 2:
        longer = f"{line} {word}".strip()
        if draw.textlength(longer, body) > side - 2 * margin:
            draw.text((margin, top), line, INK_RGB, body)
            longer, top = word, top + 0.052 * side
        if top > 0.92 * side:
            break
        line = longer
    return picture


def _faces(side: int) -> PIL.Image.Image:
    """One face large, two smaller, and a row of six that differ in little."""
    canvas = PIL.Image.new("RGB", (side * OVERSAMPLE, side * OVERSAMPLE), (196, 212, 220))
    draw = Draw(canvas)
    looks = [  # (x, y, radius), skin, hair, smile
        ((0.33, 0.37, 0.27), (236, 192, 164), (84, 50, 34), 0.6),
        ((0.78, 0.25, 0.15), (141, 92, 62), (26, 20, 20), 1.0),
        ((0.80, 0.60, 0.10), (246, 214, 190), (196, 130, 50), -0.6),
        *(
            ((0.1 + 0.16 * place, 0.87, 0.06), skin, hair, 0.4 * place - 1)
            for place, (skin, hair) in enumerate(
                (
                    ((236, 192, 164), (30, 24, 24)),
                    ((120, 76, 50), (20, 18, 18)),
                    ((246, 214, 190), (190, 84, 44)),
                    ((196, 142, 104), (60, 40, 28)),
                    ((90, 58, 40), (16, 14, 14)),
                    ((224, 172, 140), (150, 150, 154)),
                )
            )
        ),
    ]
    for (x, y, radius), skin, hair, smile in looks:
        _face(draw, x * side * OVERSAMPLE, y * side * OVERSAMPLE, radius * side * OVERSAMPLE, skin, hair, smile)
    return _averaged(canvas)


def _face(draw: ImageDraw, x: float, y: float, r: float, skin: Colour, hair: Colour, smile: float) -> None:
    """A face of half-width `r` around (x, y); `smile` from -1, a frown, to 1."""

    def box(u: float, v: float, wide: float, high: float) -> tuple[float, float, float, float]:
        return x + r * (u - wide), y + r * (v - high), x + r * (u + wide), y + r * (v + high)

    shade = (skin[0] * 4 // 5, skin[1] * 4 // 5, skin[2] * 4 // 5)
    draw.ellipse(box(0, -0.2, 1, 1.05), hair)
    draw.ellipse(box(0, 0.24, 0.86, 0.94), skin)
    for eye in (-0.36, 0.36):
        draw.ellipse(box(eye, 0.05, 0.19, 0.12), (250, 250, 248))
        draw.ellipse(box(eye + 0.02, 0.05, 0.11, 0.12), (62, 92, 120))
        draw.ellipse(box(eye + 0.02, 0.05, 0.055, 0.06), (12, 12, 14))
        draw.ellipse(box(eye + 0.06, 0.01, 0.025, 0.025), (255, 255, 255))
        draw.arc(box(eye, -0.02, 0.25, 0.22), 210, 330, hair, round(0.07 * r))
    draw.line([(x, y + 0.12 * r), (x - 0.09 * r, y + 0.42 * r), (x + 0.07 * r, y + 0.42 * r)], shade, round(0.05 * r))
    bow = box(0, 0.75 - 0.25 * smile, 0.34, 0.25 * abs(smile))
    draw.arc(bow, *((20, 160) if smile > 0 else (200, 340)), (160, 56, 60), round(0.08 * r))


def _thin_lines(side: int) -> PIL.Image.Image:
    """Lines a pixel wide, five degrees apart, from two corners, and circles in the others."""
    canvas = PIL.Image.new("RGB", (side * OVERSAMPLE, side * OVERSAMPLE), PAPER_RGB)
    draw, unit = Draw(canvas), side * OVERSAMPLE
    for degrees in range(0, 95, 5):
        across, down = unit * math.cos(math.radians(degrees)), unit * math.sin(math.radians(degrees))
        draw.line((0.1 * across, 0.1 * down, 0.62 * across, 0.62 * down), INK_RGB, OVERSAMPLE)
        draw.line(
            (unit - 0.1 * across, unit - 0.1 * down, unit - 0.62 * across, unit - 0.62 * down), INK_RGB, OVERSAMPLE
        )
    for radius in (0.03, 0.06, 0.1, 0.15, 0.21):
        for x, y, colour in ((0.77, 0.23, (196, 40, 50)), (0.23, 0.77, (30, 80, 200))):
            box = ((x - radius) * unit, (y - radius) * unit, (x + radius) * unit, (y + radius) * unit)
            draw.ellipse(box, None, colour, OVERSAMPLE)
    return _averaged(canvas)


def _averaged(canvas: PIL.Image.Image) -> PIL.Image.Image:
    return canvas.resize((canvas.width // OVERSAMPLE, canvas.height // OVERSAMPLE), PIL.Image.Resampling.BOX)


def _gradients(side: int) -> PIL.Image.Image:
    """Four fields without edges: a shadow, a sky, hues, a glow."""
    v_HW, u_HW = np.mgrid[0:side, 0:side] / side * 2
    u_HW, v_HW, right_HW, below_HW = u_HW % 1, v_HW % 1, u_HW >= 1, v_HW >= 1
    glow_HW = np.exp(-5 * ((u_HW - 0.5) ** 2 + (v_HW - 0.5) ** 2))
    turn_HW3 = 2 * math.pi * (u_HW[..., None] + np.array([0, 1 / 3, 2 / 3]))
    pixels_HWC = np.where(
        below_HW[..., None],
        np.where(
            right_HW[..., None],
            _between((24, 14, 58), (255, 236, 190), glow_HW),
            200 + 50 * (1 - v_HW[..., None]) * np.cos(turn_HW3),
        ),
        np.where(
            right_HW[..., None],
            _between((70, 120, 200), (250, 206, 170), v_HW),
            _between((2, 2, 4), (58, 58, 62), (u_HW + v_HW) / 2),
        ),
    )
    return _picture(pixels_HWC)


def _between(start: Colour, end: Colour, share_HW: np.ndarray) -> np.ndarray:
    return np.array(start) + share_HW[..., None] * (np.array(end) - np.array(start))


def _noise(side: int) -> PIL.Image.Image:
    """Grey above, colour below; grains of one pixel on the left, of side / 64 pixels on the right."""
    rng = np.random.default_rng(0)
    grain, half = max(2, side // 64), side // 2
    pixels_HWC = rng.normal(128, 44, (side, side, 3))
    coarse_HWC = rng.normal(128, 44, (side // grain + 1, side // grain + 1, 3)).repeat(grain, 0).repeat(grain, 1)
    pixels_HWC[:, half:] = coarse_HWC[:side, : side - half]
    pixels_HWC[:half] = pixels_HWC[:half, :, :1]
    return _picture(pixels_HWC)


def _checkerboards(side: int) -> PIL.Image.Image:
    """Nine boards, with fields of 1, 2, 3; 4, 5, 6; 8, 12, 16 pixels."""
    y_HW, x_HW = np.mgrid[0:side, 0:side]
    board_HW = 3 * (3 * y_HW // side) + 3 * x_HW // side
    field_HW = np.array([1, 2, 3, 4, 5, 6, 8, 12, 16])[board_HW]
    light_HW = (y_HW // field_HW + x_HW // field_HW) % 2 == 0
    colours = np.array([[PAPER_RGB, INK_RGB], [(240, 196, 60), (40, 70, 160)], [(232, 90, 80), (50, 140, 130)]])
    return _picture(np.where(light_HW[..., None], colours[board_HW % 3, 0], colours[board_HW % 3, 1]))


def _colour_contrasts(side: int) -> PIL.Image.Image:
    """Discs 4, 8, 16 and 32 levels from their ground, in lightness, from red to green, and from blue to yellow; below,
    stripes from red to green, finer to the left."""
    v_HW, u_HW = np.mgrid[0:side, 0:side] / side * 4
    row_HW, column_HW = v_HW.astype(int), u_HW.astype(int)
    disc_HW = np.hypot(u_HW % 1 - 0.5, v_HW % 1 - 0.5) < 0.32
    stripe_HW = (u_HW % 1 * side / 4).astype(int) // 2**column_HW % 2 == 0
    grounds = np.array([(150, 150, 154), (150, 132, 120), (120, 140, 160), (140, 132, 120)])
    steps = np.array([(1, 1, 1), (1, -0.299 / 0.587, 0), (-0.114 / 0.886, -0.114 / 0.886, 1), (1, -0.299 / 0.587, 0)])
    levels_HW = np.where(row_HW < 3, disc_HW * 2.0 ** (column_HW + 2), stripe_HW * 48)
    return _picture(grounds[row_HW] + levels_HW[..., None] * steps[row_HW])


def _picture(pixels_HWC: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels_HWC.clip(0, 255).round().astype(np.uint8))
