"""Pictures from anywhere: files, bytes and PIL pictures of any mode become upright, opaque RGB.

- files are opened by the list of `PICTURE_FORMATS`, never by their names; what a decoder raises is one ValueError
- a picture of more than `LARGEST_AREA` pixels is refused before it is unpacked, whichever way it comes
- a camera's rotation mark is followed, and EXIF and XMP are dropped then; of an animation, the current frame is taken
- colours of a profile (ICC) become sRGB; transparency is laid on white (Chameleon's choice); CMYK is converted
- greys of more than 8 bits and of floating point are scaled, not clipped: see `_to_bytes`
"""

from __future__ import annotations

import io
import math
import re
import threading
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageFile

from chameleon_lab.files import reason_of, require_regular

LARGEST_AREA = 64 * 2**20
"""Pixels: about a 64-megapixel camera's."""

LARGEST_SIDE = 2**16 - 1
"""Pixels: what JPEG and GIF can hold. Some decoders take memory by rows, not by area."""

LARGEST_SLOW_AREA = 2**22
"""Pixels of what Pillow unpacks in Python, byte by byte: run lengths of BMP, letters and odd levels of PPM."""

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
"""What files are opened as, in this order; a phone's MPO counts as JPEG.

EPS is never among them: it is a program, which Pillow hands to Ghostscript. Neither are kinds without a signature of
their own, which take any bytes for a picture.
"""

LARGEST_PROFILE = 4 * 2**20
"""Bytes: a printer's profile of colours takes one or two million."""

WRITTEN_SHORTEST = "shortest side as written"
"""What a picture's `info` says where it was decoded smaller than its file has it: pixels along the shortest side."""

ROWS_AT_ONCE = 512
"""Rows of a picture that are worked on together, so that a large one takes little more memory than its pixels."""

OVERSHOOT, DARKEST = 0.05, 1 / 8
"""Shares of white: by how much greys may lie beyond their scale, and how bright the brightest must be."""

_quiet = threading.RLock()
"""Held while Pillow's warnings are silenced, which is a setting of the whole process."""


def open_picture(path: Path | str, shortest: int | None = None) -> PIL.Image.Image:
    """The upright RGB picture in a file. Raises ValueError, naming the file, when there is none that can be read.

    `shortest`: for those who make it smaller anyway, a JPEG is decoded at a half, a quarter or an eighth of its size
    where that leaves twice as many pixels along its shortest side, or more.
    """
    path = Path(path)
    if not path.exists() or path.is_dir():
        raise ValueError(f"There is no picture at {path}" + (", but a folder." if path.is_dir() else "."))
    with require_regular(path, 8 * LARGEST_AREA).open("rb") as file:
        return rgb(decode_picture(file, str(path), shortest), str(path))


def read_picture(data: bytes | bytearray | memoryview, name: str = "The picture") -> PIL.Image.Image:
    """The upright RGB picture in an image file's bytes.

    Raises ValueError, in words for the person who chose the file, when it holds no picture that can be read.
    """
    return rgb(decode_picture(io.BytesIO(data), name), name)


def decode_picture(file: BinaryIO, name: str = "The picture", shortest: int | None = None) -> PIL.Image.Image:
    """The picture in an image file as it is written there: unpacked, of any mode, not turned upright.

    The one place where the lab opens pictures. Raises ValueError, naming the file, when it holds none that can be read.
    """
    start, size = file.read(16), file.seek(0, io.SEEK_END)
    if not size:
        raise ValueError(f"{name} is empty: the file holds no bytes.")
    if start[4:12] in (b"ftypheic", b"ftypheix", b"ftyphevc"):
        raise ValueError(f"{name} is a HEIC photograph, which the lab does not read. Export it as JPEG.")
    try:
        picture = _identify(file)
    except PIL.UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is not a picture: {size} bytes in no known format. Use a PNG, JPEG, WebP, AVIF or GIF file."
        ) from error
    except Exception as error:  # a decoder may raise anything
        raise _unreadable(name, error) from error
    require_size(picture, name)
    try:
        if shortest is not None and picture.format in ("JPEG", "MPO"):
            share, written = 2 * shortest / min(picture.size), picture.size
            picture.draft(None, (math.ceil(share * picture.width), math.ceil(share * picture.height)))
            if picture.size != written:
                picture.info[WRITTEN_SHORTEST] = min(written)
        _scale_transparent_colour(picture)
        _unpack(picture)
    except Exception as error:
        raise _unreadable(name, error) from error
    return picture


def rgb(picture: PIL.Image.Image, name: str = "The picture") -> PIL.Image.Image:
    """A PIL picture of any mode as upright RGB, of which no metadata is left but `WRITTEN_SHORTEST`.

    Raises ValueError when it is broken, empty or too large, and for greys whose black and white nothing tells.
    """
    if not isinstance(picture, PIL.Image.Image):
        raise ValueError(
            f"{name} must be a PIL picture, not {type(picture).__name__}: open a file with "
            "chameleon_lab.pictures.open_picture, make one of an array with PIL.Image.fromarray."
        )
    require_size(picture, name)
    written = picture.info.get(WRITTEN_SHORTEST)
    waiting = isinstance(picture, PIL.ImageFile.ImageFile) and (picture.tile or getattr(picture, "_im", 0) is None)
    if waiting and picture.format not in (*PICTURE_FORMATS, "MPO"):
        raise ValueError(
            f"{name} is a file of {picture.format}, and the lab unpacks only {', '.join(PICTURE_FORMATS)}. Where you "
            "trust it, call load() on it first, or save it as PNG."
        )
    try:
        _unpack(picture)
        picture = _upright(picture)
        if picture.mode.startswith(("I", "F")):
            picture = _to_bytes(picture, name)
        picture = _in_srgb(picture)
        opaque = on_white(picture) if picture.has_transparency_data else picture.convert("RGB")
    except Exception as error:
        raise _unreadable(name, error) from error
    opaque.info = {} if written is None else {WRITTEN_SHORTEST: written}
    return opaque


def require_size(picture: PIL.Image.Image, name: str = "The picture") -> None:
    """Raises ValueError for a picture that is empty or too large."""
    width, height = picture.size
    if width * height > LARGEST_AREA or max(width, height) > LARGEST_SIDE:
        raise ValueError(
            f"{name} is {width} x {height} pixels, more than {LARGEST_AREA:,}: make it smaller first."
            if width * height > LARGEST_AREA
            else f"{name} is {width} x {height} pixels, and a side may have {LARGEST_SIDE:,}: cut or make it smaller."
        )
    if width * height == 0:
        raise ValueError(f"{name} is empty: {width} x {height} pixels.")


def _identify(file: BinaryIO) -> PIL.Image.Image:
    """The picture of a file, not unpacked yet."""
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return PIL.Image.open(file, formats=PICTURE_FORMATS)
        except Exception:
            # Pillow writes an AVIF's EXIF anew and fails where it cannot: the item that holds it gets another name.
            file.seek(0)
            start = file.read(2**16)
            if b"ftypavi" not in start[:16] or b"Exif" not in start:
                raise
            return PIL.Image.open(io.BytesIO(start.replace(b"Exif", b"skip", 1) + file.read()), formats=PICTURE_FORMATS)


def _unpack(picture: PIL.Image.Image) -> None:
    """Unpacks a picture. Pillow reads all tags of a TIFF for it, where it warns of odd ones."""
    tiles = picture.tile if isinstance(picture, PIL.ImageFile.ImageFile) else []
    if any(tile.codec_name in PIL.Image.DECODERS for tile in tiles) and math.prod(picture.size) > LARGEST_SLOW_AREA:
        raise ValueError(f"a {picture.format} of this kind may have at most {LARGEST_SLOW_AREA:,} pixels")
    if picture.format != "TIFF":
        picture.load()
        return
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture.load()


def _unreadable(name: str, error: Exception) -> ValueError:
    if isinstance(error, ValueError) and str(error).startswith(name):
        return error
    why = reason_of(error).rstrip(".")
    return ValueError(f"{name} cannot be read: {why}. Open it in an image viewer and save it anew as PNG or JPEG.")


# The camera's rotation mark

_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture turned by its rotation mark. A TIFF's is followed by Pillow when it is unpacked."""
    info = picture.info
    exif = info.get("exif")
    if exif is None and isinstance(hexadecimal := info.get("Raw profile type exif"), str):  # ImageMagick's, in PNG
        digits = "".join(hexadecimal.split("\n")[3:])
        exif = bytes.fromhex(digits) if re.fullmatch(r"(?:[0-9A-Fa-f]{2}|\s)*", digits) else None
    mark = _mark_in_exif(exif) if isinstance(exif, bytes) else None
    if mark is None and exif is None:  # a program may have set one
        mark = getattr(picture, "_exif", None) and picture.getexif().get(0x0112)
    if mark is None:
        xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or ""
        text = xmp.decode("latin-1") if isinstance(xmp, bytes) else str(xmp)
        match = re.search(r"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([0-9])", text)
        mark = int(match[1]) if match else 1
    return picture.transpose(_TURNS[mark]) if mark in _TURNS else picture


def _mark_in_exif(exif: bytes) -> int | None:
    """The entry Orientation of EXIF's first table, found without reading the others; None where there is none.

    Cameras and editors leave EXIF of all kinds behind, cut short or with values of odd types.
    """
    body = exif.removeprefix(b"Exif\0\0")
    if body[:2] not in (b"II", b"MM"):
        return None

    def number(start: int, length: int) -> int:
        return int.from_bytes(body[start : start + length], "little" if body[:1] == b"I" else "big")

    table = number(4, 4)
    for entry in range(number(table, 2)):
        start = table + 2 + 12 * entry
        if start + 12 > len(body):
            return None
        if number(start, 2) == 0x0112:
            kind = number(start + 2, 2)
            return number(start + 8, 2) if kind == 3 else number(start + 8, 4) if kind == 4 else None
    return None


# Levels, colours, transparency


def _to_bytes(picture: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Greys of 16 bits, of 32, or of floating point as 8 bits, their transparent colour as alpha.

    16 bits are 16 bits (or the 12 that a TIFF may state). Of others a TIFF may say which is the least and the largest
    sample; else it is 0 to 1, 255 or 65,535, whichever of them holds all but an overshoot of 5 %, such as resizing
    leaves: for whole numbers the last two. Greys that would all be dark by that are refused, since they are of another
    scale: 0 to 4,095, say, or numbers of classes.
    """
    tags = getattr(picture, "tag_v2", {})
    clear = picture.info.get("transparency")
    bands = range(0, picture.height, ROWS_AT_ONCE)

    def rows(top: int) -> np.ndarray:
        bottom = min(top + ROWS_AT_ONCE, picture.height)
        return np.asarray(picture.crop((0, top, picture.width, bottom)))

    ends = [(float(band.min()), float(band.max())) for band in map(rows, bands)]
    least, most = float(np.min(ends)), float(np.max(ends))  # NaN, wherever it is
    black, white = _ends_of_scale(picture, least, most, name)
    grey, alpha = PIL.Image.new("L", picture.size), None
    if isinstance(clear, int):
        alpha = PIL.Image.new("L", picture.size)
    for top in bands:
        band = rows(top)
        if (black, white) == (0, 65535) and picture.mode != "F":
            bytes_HW = (band.astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        else:
            share_HW = (band.astype(np.float64) - black) / (white - black)
            bytes_HW = (255 * share_HW.clip(0, 1)).round().astype(np.uint8)
        if tags.get(262) == 0:  # white is zero, which Pillow follows for 8 bits only
            bytes_HW = 255 - bytes_HW
        grey.paste(PIL.Image.fromarray(bytes_HW), (0, top))
        if alpha is not None:
            alpha.paste(PIL.Image.fromarray(np.where(band == clear, 0, 255).astype(np.uint8)), (0, top))
    whole = grey if alpha is None else PIL.Image.merge("LA", (grey, alpha))
    whole.info = {key: value for key, value in picture.info.items() if key == "icc_profile"}
    return whole


def _ends_of_scale(picture: PIL.Image.Image, least: float, most: float, name: str) -> tuple[float, float]:
    """Which values are black and white, given the least and the most there are."""
    tags = getattr(picture, "tag_v2", {})
    stated = [np.ravel(tags[tag]) for tag in (340, 341) if tag in tags]
    if len(stated) == 2 and stated[0].size and stated[1].size:
        black, white = float(stated[0][0]), float(stated[1][0])
        if black <= least <= most <= white and black < white:
            return black, white
    if picture.format == "PPM" and picture.mode == "I":  # Pillow has scaled it
        return 0.0, 65535.0
    scales = (1.0, 255.0, 65535.0) if picture.mode == "F" else (255.0, 65535.0)
    if picture.mode.startswith("I;16"):
        bits = np.ravel(tags.get(258, 16))[0]
        scales = (float(2**bits - 1 if 8 < bits < 16 else 65535),)
    for white in scales:
        if -OVERSHOOT * white <= least <= most <= (1 + OVERSHOOT) * white:
            if 0 < most < DARKEST * white:
                break
            return 0.0, white
    if math.isnan(most):
        raise ValueError(f"{name} holds greys that are no numbers (NaN). Save it with 8 or 16 bits.")
    raise ValueError(
        f"{name} holds greys from {least:g} to {most:g}, and does not say which of them are black and white. Save it "
        "with 8 or 16 bits, black being 0 and white 255 or 65,535."
    )


def _scale_transparent_colour(picture: PIL.Image.Image) -> None:
    """Gives a PNG's transparent colour as many bits as Pillow gives its pixels."""
    clear = picture.info.get("transparency")
    if picture.format != "PNG" or not isinstance(picture, PIL.ImageFile.ImageFile) or not picture.tile:
        return
    raw = picture.tile[0].args
    if isinstance(clear, int) and raw in ("L;2", "L;4"):
        picture.info["transparency"] = clear * (85 if raw == "L;2" else 17) & 255
    elif isinstance(clear, tuple) and raw == "RGB;16B":
        picture.info["transparency"] = tuple(level >> 8 for level in clear)


def _in_srgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture with its colours from its profile's into sRGB; as it is without a profile, or with a broken one."""
    profile = picture.info.get("icc_profile")
    mode = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK", "RGB": "RGB", "RGBA": "RGB", "P": "RGB"}.get(picture.mode)
    if not isinstance(profile, bytes) or not 128 < len(profile) <= LARGEST_PROFILE or mode is None:
        return picture
    transform = _transform(profile, mode)
    if transform is None:
        return picture
    layer = picture.convert("RGBA") if picture.has_transparency_data else picture.convert(mode)
    colours = PIL.ImageCms.applyTransform(layer if layer.mode == mode else layer.convert(mode), transform)
    assert colours is not None
    if layer.mode == "RGBA":
        colours.putalpha(layer.getchannel("A"))
    return colours


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> PIL.ImageCms.ImageCmsTransform | None:
    """What turns colours of a profile into sRGB; None for a broken one, for one of another kind of colours, and for one
    within two levels of sRGB."""
    try:
        parsed: Any = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if parsed.profile.xcolor_space.strip() != {"L": "GRAY"}.get(mode, mode):
            return None
        transform = PIL.ImageCms.buildTransform(parsed, PIL.ImageCms.createProfile("sRGB"), mode, "RGB")
        levels = np.linspace(0, 255, 9).round().astype(np.uint8)
        cube = np.stack(np.meshgrid(*[levels] * 3), -1).reshape(27, 27, 3)
        probe = PIL.Image.fromarray(cube).convert(mode)
        colours = PIL.ImageCms.applyTransform(probe, transform)
    except Exception:  # a profile may be anything
        return None
    differs = np.abs(np.asarray(colours, np.int16) - np.asarray(probe.convert("RGB"), np.int16))
    return transform if differs.max() > 2 else None


def on_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    opaque = PIL.Image.new("RGB", picture.size)
    for top in range(0, picture.height, ROWS_AT_ONCE):
        band = picture.crop((0, top, picture.width, min(top + ROWS_AT_ONCE, picture.height)))
        layer = (band.convert("LA") if band.mode == "La" else band).convert("RGBA")
        white = PIL.Image.new("RGBA", layer.size, "white")
        opaque.paste(PIL.Image.alpha_composite(white, layer).convert("RGB"), (0, top))
    return opaque
