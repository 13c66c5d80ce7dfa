"""Pictures on their way between a browser and the lab."""

from __future__ import annotations

import base64
import io
import warnings

import PIL.Image
import PIL.ImageOps

LARGEST_SIDE = 8192


def read_picture(data: bytes | bytearray | memoryview) -> PIL.Image.Image:
    """The RGB picture in an image file's bytes, upright, transparency over white.

    Raises ValueError, in words for the person who chose the file, when it holds no picture that can be read.
    """
    data = bytes(data)
    if not data:
        raise ValueError("The picture is empty: the file holds no bytes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            picture = PIL.Image.open(io.BytesIO(data))
            if max(picture.size) > LARGEST_SIDE:
                raise ValueError(f"it is {picture.width} x {picture.height} pixels, more than {LARGEST_SIDE} on a side")
            picture.load()
    except PIL.UnidentifiedImageError as error:
        raise ValueError(
            f"This is not a picture: {len(data)} bytes in no known format. Use a PNG, JPEG, WebP or GIF file."
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombWarning) as error:
        raise ValueError(f"The picture cannot be read: {error}. Try to save it again as PNG or JPEG.") from error
    return upright(picture)


def upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture as RGB, turned as its camera says, transparent parts over white."""
    picture = PIL.ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = PIL.Image.new("RGBA", layer.size, "white")
        picture.alpha_composite(layer)
    return picture.convert("RGB")


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
