"""The emoji corpus: pinned artwork, splits by construction, documents of every kind."""

import base64
import hashlib
import io
import json
import tarfile
from dataclasses import asdict, replace

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from chameleon_lab.corpora import emoji_artwork
from chameleon_lab.corpora.emoji import KINDS_OF_SKETCH, Emoji
from chameleon_lab.corpora.emoji_artwork import ARTWORK_SIDE, FAMILIES, LANGUAGES, PACKAGES, STYLES, TONES, Drawn, Hand
from chameleon_lab.training.emoji import EmojiImages


def drawing(number: int) -> PIL.Image.Image:
    picture = PIL.Image.new("RGBA", (ARTWORK_SIDE, ARTWORK_SIDE), (0, 0, 0, 0))
    colour = tuple(int(each) for each in np.random.default_rng(number).integers(0, 256, 3))
    PIL.ImageDraw.Draw(picture).ellipse((20, 20, 70, 70), fill=(*colour, 255))
    return picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of 12 ideas of each family and three gestures in all tones, as `build` writes it."""
    path, ideas = tmp_path_factory.mktemp("emoji") / "corpus", list[Drawn]()
    for family in FAMILIES:
        for number in range(12):
            names = {language: f"{family} {number} ({language})" for language in LANGUAGES}
            parts = (f"hand-{number // 4}", [*TONES][number % 4]) if family == "gesture" else None
            ideas.append(Drawn(f"{family}-{number}", family, names, parts, STYLES[: 4 + number % 2]))
    for number, idea in enumerate(ideas):
        for style in idea.styles:
            target = path / "pictures" / style / f"{idea.idea}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            drawing(number).save(target)
    path.joinpath("ideas.jsonl").write_text("".join(json.dumps(asdict(each)) + "\n" for each in ideas))
    path.joinpath("sources.json").write_text("[]")
    return path


def test_a_drawing_is_on_one_side_of_the_split_and_a_combination_in_no_style_is_trained_on(folder):
    emoji = Emoji(folder)
    sides = {where: set(map(repr, emoji.drawings(where))) for where in ("trainable", "drawing", "combination")}
    assert all(sides.values()) and sum(map(len, sides.values())) == sum(len(idea.styles) for idea in emoji.ideas)
    for idea in emoji.ideas:
        where = {emoji.where(idea, style) for style in idea.styles}
        assert "combination" not in where or where == {"combination"}


@pytest.mark.parametrize("kind", list(Emoji.KINDS))
def test_documents_show_only_what_is_trainable_and_are_the_same_for_a_seed(folder, kind, monkeypatch):
    shown, read = list[tuple[str, str]](), Emoji._read
    monkeypatch.setattr(Emoji, "_read", lambda *names: shown.append(names[1:]) or read(*names))
    emoji = Emoji(folder)
    documents = [emoji.kinds[kind](np.random.default_rng(seed)) for seed in range(40)]
    assert [Emoji(folder).kinds[kind](np.random.default_rng(seed)) for seed in range(40)] == documents
    trainable = {(idea.idea, style) for idea, style in emoji.drawings()}
    assert shown and set(shown) <= trainable
    assert all(document.pictures for document in documents)
    assert {picture.size for document in documents for picture in document.pictures} == {(64, 64)}


@pytest.mark.parametrize("kind", KINDS_OF_SKETCH)
def test_a_sketch_lies_where_its_drawing_lies_and_has_no_colour(folder, kind):
    emoji = Emoji(folder)
    idea = emoji.ideas[0]
    sketch = np.asarray(emoji.sketch(idea, "noto", kind, np.random.default_rng(1)), int)
    whole = np.asarray(emoji.picture(idea, "noto", np.random.default_rng(1)), int)
    assert np.ptp(sketch, axis=-1).max() == 0 and sketch.min() < 200
    ink, paint = (np.argwhere(each.min(-1) < 235) for each in (sketch, whole))
    assert np.abs(ink.min(0) - paint.min(0)).max() <= 1 and np.abs(ink.max(0) - paint.max(0)).max() <= 1
    assert np.asarray(sketch)[0].min() == 255  # no frame


def test_pixels_for_the_tokenizer_depend_on_the_step_alone(folder):
    images = EmojiImages(folder, 0, 6, 64)
    assert images(3).shape == (6, 3, 64, 64) and images(3).equal(EmojiImages(folder, 0, 6, 64)(3))
    assert not images(3).equal(images(4)) and images(3).abs().max() <= 1


def package(files: dict[str, bytes], style: str = "noto") -> tuple[emoji_artwork.Package, bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    content = buffer.getvalue()
    integrity = base64.b64encode(hashlib.sha512(content).digest()).decode()
    return replace(PACKAGES[0], style=style, integrity=integrity), content


def icons(names: list[str]) -> dict[str, bytes]:
    plain = {
        "icons": {"prefix": "x", "icons": {name: {"body": '<circle cx="8" cy="8" r="6"/>'} for name in names}},
        "chars": {f"{0x1F600 + number:x}": name for number, name in enumerate(names)},
        "metadata": {"categories": {"Smileys & Emotion": names, "Animals & Nature": [], "Food & Drink": []}},
    }
    return {f"{name}.json": json.dumps(each).encode() for name, each in plain.items()}


def test_a_package_of_other_bytes_is_refused(monkeypatch):
    pinned, content = package(icons(["grinning-face"]))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(content + b"and more"))
    with pytest.raises(ValueError, match="was pinned"):
        pinned.fetch()


def test_ideas_are_those_of_the_lists_that_are_drawn(monkeypatch):
    pinned, content = package(icons(["grinning-face", "red-heart", "thumbs-up", "speech-balloon", "no-such-idea"]))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(content))
    hand = Hand(pinned, {})
    ideas = list(emoji_artwork.ideas_of(hand))
    assert ("1f601", "heart", ("red", "heart")) in ideas and ("1f600", "face", None) in ideas
    assert [parts for points, family, parts in ideas if family == "gesture"] == [
        None, *(("thumbs-up", tone) for tone in TONES),
    ]  # fmt: skip
    assert "1f603" not in [points for points, *_ in ideas]  # a balloon shows no idea


def test_without_a_corpus_the_error_says_how_to_build_one(tmp_path):
    with pytest.raises(ValueError, match="emoji_artwork"):
        Emoji(tmp_path)
