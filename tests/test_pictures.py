"""Pictures from anywhere: the right pixels, or a paragraph that says what to do."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from chameleon_lab.pictures import LARGEST_AREA, open_picture, read_picture, rgb

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
