"""Pictures from anywhere: files, bytes and PIL pictures of any mode become upright, opaque RGB.

- transparency is laid on white (Chameleon's choice); 16-bit greys are scaled, not clipped; CMYK is converted
- a camera's rotation mark is followed; of an animation, the current frame is taken
- a picture of more than `LARGEST_AREA` pixels is refused before it is unpacked
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

LARGEST_AREA = 64 * 2**20
"""Pixels: about a 64-megapixel camera's."""


def open_picture(path: Path | str) -> PIL.Image.Image:
    """The upright RGB picture in a file. Raises ValueError when there is none that can be read."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no picture at {path}" + (", but a folder." if path.is_dir() else "."))
    if path.stat().st_size > 16 * LARGEST_AREA:
        raise ValueError(f"{path} cannot be read: it is larger than any picture of {LARGEST_AREA:,} pixels.")
    return read_picture(path.read_bytes(), str(path))


def read_picture(data: bytes | bytearray | memoryview, name: str = "The picture") -> PIL.Image.Image:
    """The upright RGB picture in an image file's bytes.

    Raises ValueError, in words for the person who chose the file, when it holds no picture that can be read.
    """
    data = bytes(data)
    if not data:
        raise ValueError(f"{name} is empty: the file holds no bytes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # our own limit is below
            picture = PIL.Image.open(io.BytesIO(data))
    except PIL.UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is not a picture: {len(data)} bytes in no known format. Use a PNG, JPEG, WebP or GIF file."
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise _unreadable(name, error) from error
    return rgb(picture, name)


def rgb(picture: PIL.Image.Image, name: str = "The picture") -> PIL.Image.Image:
    """A PIL picture of any mode as upright RGB. Raises ValueError when it is broken, empty or too large."""
    if picture.width * picture.height > LARGEST_AREA:
        raise ValueError(
            f"{name} is {picture.width} x {picture.height} pixels, more than {LARGEST_AREA:,}: make it smaller first."
        )
    if picture.width * picture.height == 0:
        raise ValueError(f"{name} is empty: {picture.width} x {picture.height} pixels.")
    try:
        picture = PIL.ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):  # 16 bits, which PIL would clip to bytes instead of scaling them
            scaled = np.asarray(picture).astype(np.int64).clip(0, 65535) >> 8
            picture = PIL.Image.fromarray(scaled.astype(np.uint8))
        if picture.has_transparency_data:
            layer = picture.convert("RGBA")
            picture = PIL.Image.new("RGBA", layer.size, "white")
            picture.alpha_composite(layer)
        return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name} cannot be read: {error}. Open it in an image viewer and save it anew as PNG or JPEG.")
