"""Pictures from anywhere: the right pixels, or a paragraph that says what to do."""

import ast
import base64
import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.EpsImagePlugin
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import PIL.PngImagePlugin
import pytest

from chameleon_lab.documents import Document
from chameleon_lab.pictures import LARGEST_AREA, PICTURE_FORMATS, decode_picture, open_picture, read_picture, rgb

RED = PIL.Image.new("RGB", (6, 4), (220, 40, 40))


def written(picture: PIL.Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "PA", "LA", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"])
def test_every_mode_becomes_rgb_of_the_same_size(mode):
    opaque = rgb(PIL.Image.new(mode, (9, 7)))
    assert (opaque.mode, opaque.size) == ("RGB", (9, 7))


def test_transparency_is_laid_on_white():
    layer = PIL.Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    layer.putpixel((1, 0), (200, 0, 0, 0))
    assert np.asarray(read_picture(written(layer)))[0].tolist() == [[200, 0, 0], [255, 255, 255]]


def test_a_palette_with_a_transparent_colour_is_laid_on_white():
    picture = PIL.Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 0, 0])
    picture.putpixel((1, 0), 1)
    pixels = np.asarray(read_picture(written(picture, transparency=0)))
    assert pixels[0].tolist() == [[255, 255, 255], [200, 0, 0]]


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    pixels = np.asarray(read_picture(written(PIL.Image.fromarray(ramp))))
    assert np.array_equal(pixels[..., 0], ramp >> 8)


def test_cmyk_is_converted():
    pixels = np.asarray(read_picture(written(PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")))
    assert pixels[4, 4, 0] > 200 and pixels[4, 4, 1:].max() < 60


@pytest.mark.parametrize(("mark", "corner"), [(1, (0, 0)), (3, (19, 29)), (6, (19, 0)), (8, (0, 29))])
def test_a_camera_held_on_its_side_is_turned_back(mark, corner):
    exif = PIL.Image.Exif()
    exif[0x0112] = mark
    picture = PIL.Image.new("RGB", (20, 30) if mark in (1, 3) else (30, 20), "white")
    picture.paste("black", (0, 0, 4, 4))
    opaque = read_picture(written(picture, "JPEG", exif=exif, quality=95))
    assert opaque.size == (20, 30) and max(opaque.getpixel(corner)) < 60  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_picture_is_taken(kind):
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    pixels = np.asarray(read_picture(written(frames[0], kind, save_all=True, append_images=frames[1:])))
    assert pixels[4, 4, 0] > 240 and pixels[4, 4, 1:].max() < 15


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_pictures_thin_as_a_thread_are_read(size):
    assert read_picture(written(PIL.Image.new("RGB", size))).size == size


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch):
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match=r"exceeds limit|more than"):
        read_picture(bomb)
    wide = PIL.Image.new("1", (2**13 + 1, 2**13))
    assert wide.width * wide.height > LARGEST_AREA
    data = written(wide)
    monkeypatch.setattr(PIL.Image.Image, "convert", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match="8193 x 8192 pixels, more than 67,108,864: make it smaller"):
        read_picture(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b"%PDF-1.7", "is not a picture: 8 bytes in no known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture"),
        (b"GIF89a", "is not a picture|cannot be read"),
        (written(PIL.Image.fromarray(noise(90, 90, 3)))[:2000], "cannot be read"),
        (written(PIL.Image.fromarray(noise(90, 90, 3)), "JPEG")[:2000], "cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "cannot be read|not a picture"),
    ],
)
def test_what_holds_no_picture_says_so_by_name(data, why, tmp_path):
    with pytest.raises(ValueError, match=f"holiday.*({why})"):
        read_picture(data, "holiday")
    (tmp_path / "holiday.png").write_bytes(data)
    with pytest.raises(ValueError, match=f"holiday.png.*({why})"):
        open_picture(tmp_path / "holiday.png")


def test_files_that_are_none_say_so(tmp_path):
    with pytest.raises(ValueError, match=r"There is no picture at .*nothing"):
        open_picture(tmp_path / "nothing")
    with pytest.raises(ValueError, match="but a folder"):
        open_picture(tmp_path)
    (tmp_path / "red.png").write_bytes(written(RED))
    assert open_picture(tmp_path / "red.png").tobytes() == RED.tobytes()


# One door


def ways_in(data: bytes, folder: Path) -> dict:
    """Each way in which an image file's bytes come into the lab."""
    (folder / "picture.png").write_bytes(data)
    address = base64.b64encode(data).decode()
    return {
        "bytes": lambda: read_picture(data),
        "file": lambda: open_picture(folder / "picture.png"),
        "document": lambda: Document.from_json(json.dumps([{"image": address}])),
        "segments": lambda: Document.from_segments([{"type": "image", "value": f"data:image/png;base64,{address}"}]),
        "address": lambda: Document.from_segments([{"type": "image", "value": f"file:{folder / 'picture.png'}"}]),
    }


WAYS = ("bytes", "file", "document", "segments", "address")


def test_pictures_are_opened_in_one_place():
    """No other module calls `Image.open`, so that formats and limits hold for every way in."""
    root = Path(__file__).parent.parent
    for folder in ("chameleon_lab", "widgets/chameleon_widgets"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text()
            for node in ast.walk(ast.parse(text)) if "open" in text else ():
                opens = (
                    isinstance(node, ast.Attribute) and node.attr == "open" and ast.unparse(node).endswith("Image.open")
                )
                assert not opens or path.name == "pictures.py", f"{path} opens a picture by itself"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "ICO", "SGI"])
def test_other_formats_are_never_opened_whatever_was_opened_before(way, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("ran a program"))
    PIL.Image.init()  # what a program does that opens one of them
    data = written(RED.convert("RGB"), kind)
    assert PIL.Image.open(io.BytesIO(data)).format == kind
    with pytest.raises(ValueError, match="is not a picture"):
        ways_in(data, tmp_path)[way]()
    if kind != "ICO":  # which Pillow unpacks when it is opened
        with pytest.raises(ValueError, match=f"is a file of {kind}, and the lab unpacks only"):
            rgb(PIL.Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("kind", PICTURE_FORMATS)
def test_each_format_of_the_list_is_opened_under_any_name(kind, tmp_path):
    picture = PIL.Image.fromarray(np.kron(noise(4, 4, 3), np.ones((16, 16, 1), np.uint8)))
    for way in ways_in(written(picture, kind), tmp_path).values():
        opened = way()
        opened = rgb(opened.pictures[0]) if isinstance(opened, Document) else opened
        apart = np.abs(np.asarray(opened, int) - np.asarray(picture, int))
        assert opened.size == picture.size and np.median(apart) <= (70 if kind == "GIF" else 8)


@pytest.mark.parametrize("way", WAYS)
def test_the_limit_holds_for_every_way_in(way, tmp_path, monkeypatch):
    data = written(PIL.Image.new("1", (2**13 + 1, 2**13)))
    monkeypatch.setattr(PIL.Image.core, "new", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match="8193 x 8192 pixels, more than 67,108,864: make it smaller"):
        ways_in(data, tmp_path)[way]()


def test_a_side_has_a_limit_of_its_own():
    with pytest.raises(ValueError, match="70000 x 1 pixels, and a side may have 65,535"):
        read_picture(written(PIL.Image.new("1", (70000, 1))))


class Panic(Exception):
    """Anything that a decoder may think of."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed"),
        struct.error("4 bytes"),
        SyntaxError("odd"),
        MemoryError(),
        RecursionError("deep"),
        Panic(),
    ]
    + [PIL.Image.DecompressionBombError("bomb"), KeyError(3), IndexError("list"), ZeroDivisionError("0"), OSError(5)],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_decoder_raises_is_a_picture_that_cannot_be_read(way, error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    for owner, name in ((PIL.Image, "open"), (PIL.PngImagePlugin.PngImageFile, "load")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(
                ValueError, match=r"(The picture|picture\.png) cannot be read: .*Open it in an image viewer"
            ):
                ways_in(written(RED), tmp_path)[way]()


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_pipes_and_devices_are_no_pictures(kind, tmp_path):
    path = Path("/dev/zero")
    if kind == "fifo":
        path = tmp_path / "cat.png"
        os.mkfifo(path)
    if not path.exists():
        pytest.skip("no such device")
    with pytest.raises(ValueError, match=r"is a (pipe|device), not a file"):
        open_picture(path)


def run_lengths(width: int, height: int, body: bytes) -> bytes:
    """A BMP of 8 bits in run lengths."""
    palette, start = bytes(4 * 256), 14 + 40 + 4 * 256
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + palette + body


def test_formats_that_python_unpacks_have_a_smaller_limit():
    """32 KB that end 8,192 lines of a BMP took half a minute."""
    with pytest.raises(ValueError, match=r"cannot be read: a BMP of this kind may have at most 4,194,304 pixels"):
        read_picture(run_lengths(8192, 8192, b"\1\0\0\0" * 8192))
    assert read_picture(run_lengths(64, 8, b"\1\0\0\0" * 8)).size == (64, 8)


# EXIF


def exif_of(*entries: bytes, order: str = ">", mark: int = 6) -> bytes:
    """EXIF whose first table has the rotation mark and further entries of 12 bytes."""
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "I", 8)
    table = [struct.pack(order + "HHIHH", 0x0112, 3, 1, mark, 0), *entries]
    return b"Exif\0\0" + head + struct.pack(order + "H", len(table)) + b"".join(table) + bytes(4)


ODD_ENTRIES = {
    "a resolution of a byte": struct.pack(">HHI4s", 282, 2, 1, b"H\0\0\0"),
    "a text for a number": struct.pack(">HHI4s", 0x8769, 2, 4, b"abcd"),
    "a table far away": struct.pack(">HHII", 0x8769, 4, 1, 2**31),
    "a table that is itself": struct.pack(">HHII", 0x8769, 4, 1, 8),
    "a value past the end": struct.pack(">HHII", 270, 2, 10**6, 4096),
    "an unknown kind": struct.pack(">HHII", 270, 99, 1, 4),
    "no denominator": struct.pack(">HHII", 283, 5, 1, 0),
}


@pytest.mark.parametrize("entry", ODD_ENTRIES)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_rotation_mark_is_followed_whatever_else_stands_in_exif(kind, entry):
    data = written(PIL.Image.new("RGB", (30, 20), "red"), kind, exif=exif_of(ODD_ENTRIES[entry]))
    picture = read_picture(data)
    assert picture.size == (20, 30) and not picture.info


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_never_ends_anything(kind):
    """Cut short at each place, and 60 times with bytes changed: the picture is there, on its side or not."""
    rng = np.random.default_rng(0)
    whole = exif_of(*ODD_ENTRIES.values())
    damaged = [whole[:length] for length in range(7, len(whole), 3)]
    for _ in range(60):
        changed = np.frombuffer(whole, np.uint8).copy()
        changed[rng.integers(6, len(changed), 4)] = rng.integers(0, 256, 4)
        damaged.append(changed.tobytes())
    for exif in damaged:
        picture = read_picture(written(PIL.Image.new("RGB", (30, 20), "red"), kind, exif=exif))
        assert sorted(picture.size) == [20, 30] and not picture.info


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("mark", range(10))
def test_each_rotation_mark_turns_as_pillow_does(mark, order):
    picture = PIL.Image.fromarray(noise(4, 6, 3))
    data = written(picture, "PNG", exif=exif_of(order=order, mark=mark))
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    upright = read_picture(data)
    assert upright.tobytes() == expected.tobytes()
    assert rgb(upright).tobytes() == upright.tobytes()  # what is upright is not turned again


XMP_SPELLINGS = ("<d tiff:Orientation='6'/>", "<tiff:Orientation> 6 </tiff:Orientation>", '<d tiff:Orientation = "6"/>')


@pytest.mark.parametrize("words", ['<d tiff:Orientation="6"/>', *XMP_SPELLINGS])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_the_rotation_mark_of_xmp_is_followed_however_xml_spells_it(kind, words):
    data = written(PIL.Image.new("RGB", (30, 20), "red"), kind, xmp=words.encode())
    assert read_picture(data).size == (20, 30)


def test_a_tiff_is_upright_once():
    picture = PIL.Image.fromarray(noise(4, 6, 3))
    data = written(picture, "TIFF", tiffinfo={274: 6})
    assert read_picture(data).tobytes() == picture.transpose(PIL.Image.Transpose.ROTATE_270).tobytes()


def test_an_avif_with_damaged_exif_is_a_picture_all_the_same():
    """Pillow writes its EXIF anew when it opens it."""
    entries = struct.pack(">HHI4s", 282, 3, 1, b"\0H\0\0")
    data = written(PIL.Image.new("RGB", (30, 20), "red"), "AVIF", exif=exif_of(entries))
    assert data.count(b"MM\0*") == 1
    for damage in (b"XX\0*", b"MM\0!"):
        assert sorted(read_picture(data.replace(b"MM\0*", damage)).size) == [20, 30]


# Greys, colours and transparency, as the file has them

RAMP = np.linspace(0, 1, 256, dtype=np.float64).reshape(16, 16)


@pytest.mark.parametrize(
    ("greys", "kind", "options"),
    [
        (RAMP.astype(np.float32), "TIFF", {}),
        ((255 * RAMP).astype(np.float32), "TIFF", {}),
        ((65535 * RAMP).astype(np.float32), "TIFF", {}),
        ((1000 * RAMP - 500).astype(np.float32), "TIFF", {"tiffinfo": {340: -500.0, 341: 500.0}}),
        ((255 * RAMP).round().astype(np.int32), "TIFF", {}),
        ((65535 * RAMP).round().astype(np.int32), "TIFF", {}),
        ((65535 * RAMP).round().astype(np.uint16), "TIFF", {}),
        ((65535 * RAMP).round().astype(np.uint16), "PNG", {}),
        ((65535 * RAMP).round().astype(np.uint16), "PNG", {"transparency": 65535}),
        ((65535 * RAMP).round().astype(np.uint16), "PPM", {}),
        ((65535 * RAMP).round().astype(np.uint16), "JPEG2000", {}),
    ],
    ids=lambda value: f"{value.dtype}-{value.max():g}" if isinstance(value, np.ndarray) else None,
)
def test_greys_of_every_kind_keep_their_levels(greys, kind, options):
    pixels = np.asarray(read_picture(written(PIL.Image.fromarray(greys), kind, **options)), int)
    assert np.abs(pixels - (255 * RAMP)[..., None]).max() <= 1


@pytest.mark.parametrize(
    "greys",
    [
        (RAMP - 0.5).astype(np.float32),
        (1e6 * RAMP).astype(np.float32),
        (np.nan * RAMP).astype(np.float32),
        (2**30 * RAMP).astype(np.int32),
        (-(2**30) * RAMP).astype(np.int32),
    ],
    ids=lambda greys: f"{greys.dtype} {greys.min():g}",
)
def test_greys_whose_black_and_white_nothing_tells_are_refused(greys):
    with pytest.raises(ValueError, match=r"The picture holds greys .* Save it with 8 or 16 bits"):
        read_picture(written(PIL.Image.fromarray(greys), "TIFF"))
    with pytest.raises(ValueError, match="The picture holds greys"):
        rgb(PIL.Image.fromarray(greys))


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.uint16])
def test_greys_of_any_scale_come_as_they_are_or_are_refused(kind):
    """Whatever the brightest is, a ramp from black to white never comes back as a dark picture."""
    bright = 0
    for most in (1e-3, 0.5, 1, 1.0001, 1.04, 2, 31, 100, 254, 255.5, 260, 300, 1000, 4095, 8000, 9000, 30000, 65535):
        for least in (0, 0.3 * most, 0.7 * most) if kind is np.uint16 else (0, -0.001 * most, -most):
            picture = PIL.Image.fromarray((least + (most - least) * RAMP).astype(kind))
            try:
                levels = np.asarray(rgb(picture))
            except ValueError:
                continue
            assert levels.max() >= 30 or not np.asarray(picture).any()
            assert np.all(np.diff(levels[..., 0].ravel().astype(int)) >= 0)
            bright += 1
    assert bright >= 9


@pytest.mark.parametrize("row", [0, 511, 512, 1100])
def test_a_grey_that_is_no_number_is_found_in_every_row(row):
    greys = np.zeros((1200, 2), np.float32)
    greys[row] = np.nan
    with pytest.raises(ValueError, match=r"The picture holds greys that are no numbers \(NaN\)"):
        rgb(PIL.Image.fromarray(greys))


def test_a_transparent_grey_of_sixteen_bits_becomes_white_alone():
    greys = np.array([[0, 1, 256, 40000]], np.uint16)
    for clear, expected in ((1, [0, 255, 1, 156]), (40000, [0, 0, 1, 255])):
        data = written(PIL.Image.fromarray(greys), transparency=clear)
        assert np.asarray(read_picture(data))[0, :, 0].tolist() == expected


def swapped_profile() -> bytes:
    """sRGB's profile with red and blue exchanged."""
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_colours_of_a_profile_become_srgb(mode, kind):
    picture = PIL.Image.new("RGB", (4, 4), (204, 51, 102)).convert(mode)
    pixel = np.asarray(read_picture(written(picture, kind, icc_profile=swapped_profile())), int)[0, 0]
    assert np.abs(pixel - (102, 51, 204)).max() <= 2


def test_srgb_itself_changes_no_pixel_and_a_broken_profile_counts_as_none():
    picture = PIL.Image.fromarray(noise(8, 8, 3))
    own = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    rng = np.random.default_rng(1)
    assert read_picture(written(picture, icc_profile=own)).tobytes() == picture.tobytes()
    for length in (1, 127, 128, 200, 400):
        assert read_picture(written(picture, icc_profile=own[:length])).size == picture.size
    for _ in range(40):
        changed = np.frombuffer(swapped_profile(), np.uint8).copy()
        changed[rng.integers(0, len(changed), 8)] = rng.integers(0, 256, 8)
        assert read_picture(written(picture, icc_profile=changed.tobytes())).size == picture.size


def test_a_grey_jpeg_with_a_profile_of_colours_is_left_as_it_is():
    picture = PIL.Image.new("L", (8, 8), 90)
    assert np.asarray(read_picture(written(picture, "PNG", icc_profile=swapped_profile()))).ravel()[0] == 90


def test_a_large_jpeg_is_decoded_smaller_only_where_enough_of_it_is_left():
    data = written(PIL.Image.fromarray(np.kron(noise(20, 30, 3), np.ones((32, 32, 1), np.uint8))), "JPEG")
    sizes = {}
    for shortest in (40, 80, 160, 320, 640):
        sizes[shortest] = decode_picture(io.BytesIO(data), shortest=shortest).size
    assert sizes == {40: (120, 80), 80: (240, 160), 160: (480, 320), 320: (960, 640), 640: (960, 640)}
