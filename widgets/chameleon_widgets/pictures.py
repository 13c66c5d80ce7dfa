"""Pictures on their way between a browser and the lab."""

from __future__ import annotations

import base64
import io

import PIL.Image


def png(picture: PIL.Image.Image, side: int | None = None) -> bytes:
    """The picture as PNG, made smaller where a side is longer than `side` pixels."""
    if side is not None and max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side))
    if picture.mode not in ("L", "RGB", "RGBA", "P"):
        picture = picture.convert("RGB")
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=3)
    return out.getvalue()


def data_uri(picture: PIL.Image.Image, side: int | None = None) -> str:
    """The picture inside a `data:` address, for pages that must stand alone."""
    return "data:image/png;base64," + base64.b64encode(png(picture, side)).decode()
