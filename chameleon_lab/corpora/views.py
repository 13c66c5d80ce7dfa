"""Views of a picture: the same thing a little elsewhere, a little larger or smaller, perhaps mirrored."""

from __future__ import annotations

import numpy as np
import PIL.Image

from chameleon_lab.tokenizers.preparation import LANCZOS

SMALLEST, FARTHEST_SHIFT = 0.88, 0.03
"""The least scale, and the farthest shift as a share of the side: mild, so that a view still is the picture."""

PLAIN_BORDER = 12.0
"""Standard deviation, of 255, up to which a picture's border is of one colour: there is room around the thing."""


def view_of(
    pixels: np.ndarray, side: int, rng: np.random.Generator | None = None, mirrors: bool = False
) -> PIL.Image.Image:
    """A square picture (span x span x 3 bytes) as `side` x `side` pixels; with `rng` a view of it, else all of it.

    On a plain ground the thing shrinks and shifts, the ground goes on; otherwise the view is a crop.
    """
    picture, span = PIL.Image.fromarray(np.asarray(pixels)), len(pixels)
    if rng is None:
        return picture.resize((side, side), LANCZOS)
    scale, shift = rng.uniform(SMALLEST, 1.0), rng.uniform(-1, 1, 2)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).reshape(-1, 3)
    if border.std(axis=0).max() <= PLAIN_BORDER:
        margin, window = span // 4, span / scale
        ground = PIL.Image.new(
            "RGB", (span + 2 * margin, span + 2 * margin), tuple(np.median(border, axis=0).astype(int).tolist())
        )
        ground.paste(picture, (margin, margin))
        picture, (left, top) = ground, margin - (window - span) / 2 - shift * FARTHEST_SHIFT * span
    else:
        window = span * scale
        left, top = (span - window) / 2 * (1 + shift)
    view = picture.resize((side, side), LANCZOS, box=(left, top, left + window, top + window))
    return view.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if mirrors and rng.random() < 0.5 else view
