"""Legibility: the same lines for every tokenizer, at their places, and the share of them that is read back."""

import random
import sys

import PIL.Image
import pytest

from chameleon_lab.evaluation.legibility import (
    FONT_SIZES,
    LETTERED_SIDE,
    RapidReader,
    characters_read,
    legibility,
    lettered_pictures,
)
from chameleon_lab.records import Reconstruction


def by_letter(text: str, reading: str) -> float:
    """Edit distance by its recursion, for short words."""

    def distance(one: str, other: str) -> int:
        if not one or not other:
            return len(one) + len(other)
        substituted = distance(one[1:], other[1:]) + (one[0] != other[0])
        return min(substituted, distance(one[1:], other) + 1, distance(one, other[1:]) + 1)

    return max(0.0, 1 - distance(text, reading) / len(text))


def test_characters_read_is_one_less_the_edit_distance():
    rng = random.Random(0)
    for _ in range(60):
        text, reading = ("".join(rng.choices("abc", k=rng.randint(low, 5))) for low in (1, 0))
        assert characters_read(text, reading) == pytest.approx(by_letter(text, reading))
    assert characters_read("Amber 42", " aMBER42 ") == 1 and characters_read("a", "bcdef") == 0


def test_the_pictures_are_the_same_at_each_call_and_their_lines_lie_apart_inside():
    pictures = lettered_pictures()
    lettered_pictures.cache_clear()
    again = lettered_pictures()
    assert [each.size for each in pictures] == sorted(FONT_SIZES * 3)
    for one, other in zip(pictures, again, strict=True):
        assert one.lines == other.lines and one.picture.tobytes() == other.picture.tobytes()
        previous = 0
        for text, (left, top, right, bottom) in one.lines:
            assert text and 0 <= left < right <= LETTERED_SIDE and previous <= top < bottom <= LETTERED_SIDE
            line = one.picture.crop((left, top, right, bottom))
            assert len(line.getcolors(2**16) or ()) > 2, f"{text} is drawn inside its box"
            previous = bottom


def test_what_is_read_is_the_line_s_place_in_the_reconstruction():
    """A reader that knows each line by its pixels reads the originals whole, and nothing of what is gone."""
    by_pixels = {
        each.picture.crop(box).tobytes(): text for each in lettered_pictures() for text, box in each.lines
    }  # fmt: skip

    def reader(line: PIL.Image.Image) -> str:
        return by_pixels.get(line.tobytes(), "")

    assert legibility(None, reader).share == 1

    def keeps_the_large(picture: PIL.Image.Image, policy: object) -> Reconstruction:
        large = next(each.size for each in lettered_pictures() if each.picture.tobytes() == picture.tobytes()) > 16
        back = picture if large else PIL.Image.new("RGB", picture.size)
        return Reconstruction(picture, None, back)  # pyright: ignore[reportArgumentType]

    outcome = legibility(keeps_the_large, reader)
    assert outcome.by_size == {8: 0, 12: 0, 16: 0, 24: 1, 36: 1} and outcome.share == pytest.approx(0.4)
    assert outcome.summary.startswith("40% of characters read back (8 px 0%")


def test_any_image_tokenizer_is_read_whatever_its_side(image_tokenizer):
    pictures = lettered_pictures()[:2]
    outcome = legibility(image_tokenizer.reconstruct, lambda line: "", pictures)
    assert outcome.by_size == {8: 0}


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ValueError, match=r"needs RapidOCR.*pip install 'chameleon-lab\[ocr\]'"):
        RapidReader()


def test_the_recogniser_reads_the_originals():
    pytest.importorskip("rapidocr", reason="the extra ocr is not installed")
    assert legibility(None, RapidReader(), lettered_pictures()[::4]).share > 0.97
