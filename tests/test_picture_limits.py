"""The limit on a picture's pixels holds for every way in: each refuses one that is too large, before it is unpacked."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from fuzz_rooms import _encoder, _lab
from widget_support import browser_says

from chameleon_lab import pictures
from chameleon_lab.commands.main import main
from chameleon_lab.corpora.archives import ALL_READERS
from chameleon_lab.corpora.checker import read_scene
from chameleon_lab.corpora.instructions import cutouts, instruction_pairs
from chameleon_lab.corpora.own_data import DataSource
from chameleon_lab.corpora.readers import PictureFolder
from chameleon_lab.corpora.sources import PictureFiles
from chameleon_lab.documents import Document, Image
from chameleon_lab.evaluation.own_prompts import read_own_prompts
from chameleon_lab.evaluation.prompting import opened_picture
from chameleon_lab.pictures import open_picture, read_picture, rgb
from chameleon_widgets import CodebookAtlas, CodeSurgery, InfillCanvas, ReconstructionViewer

SIDE, LIMIT = 100, 5000


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a picture, and the limit half of its pixels."""
    PIL.Image.new("RGB", (SIDE, SIDE), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a caption")
    monkeypatch.setattr(pictures, "LARGEST_AREA", LIMIT)
    return tmp_path


def opened(place: Path) -> PIL.Image.Image:
    """As somebody opens a file: nothing of it is unpacked yet."""
    return PIL.Image.open(io.BytesIO(data(place)))


def data(place: Path) -> bytes:
    return (place / "a.png").read_bytes()


def address(place: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(data(place)).decode()}"


def message(**part: Any) -> Document:
    return Document.from_messages([{"role": "user", "content": [{"type": "image", **part}]}])


def document(place: Path) -> Document:
    return Document.from_json(json.dumps([{"image": base64.b64encode(data(place)).decode()}]))


def lines(place: Path, entry: Any) -> Path:
    (place / "made.jsonl").write_text(json.dumps(entry) + "\n")
    return place / "made.jsonl"


def archive(place: Path) -> Path:
    with tarfile.open(place / "some.tar", "w") as tar:
        for name, content in (("1.png", data(place)), ("1.txt", b"words")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return place / "some.tar"


def table(place: Path) -> Path:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = pa.table({"image": [{"bytes": data(place), "path": "1.png"}], "text": ["words"]})
    parquet.write_table(rows, place / "some.parquet")
    return place / "some.parquet"


def read(kind: str, path: Path, place: Path) -> list[Any]:
    return list(ALL_READERS[kind](path, PictureFolder(place)))


CHAT = {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}]}]}

REFUSED: dict[str, Callable[[Path], object]] = {
    "a file": lambda place: open_picture(place / "a.png"),
    "a file, decoded small": lambda place: open_picture(place / "a.png", 8),
    "bytes": lambda place: read_picture(data(place)),
    "what was opened elsewhere": lambda place: rgb(opened(place)),
    "a document's picture": lambda place: Document.of(opened(place)),
    "a document's path": lambda place: Document.of(place / "a.png"),  # pyright: ignore[reportArgumentType]
    "a document's array": lambda place: Image(np.zeros((SIDE, SIDE, 3), np.uint8)),  # pyright: ignore[reportArgumentType]
    "a document's JSON": document,
    "a message's data": lambda place: message(image=address(place)),
    "a message's address of data": lambda place: message(image_url={"url": address(place)}),
    "a message's path": lambda place: message(path=str(place / "a.png")),
    "a message's picture": lambda place: message(image=opened(place)),
    "segments": lambda place: Document.from_segments([{"type": "image", "value": address(place)}]),
    "an image tokenizer": lambda place: _lab().tokenizer.image.encode(opened(place)),
    "a batch": lambda place: _lab().tokenizer.image.encode_batch([opened(place)]),
    "a reconstruction": lambda place: _lab().tokenizer.image.reconstruct(opened(place)),
    "an encoder": lambda place: _encoder().encode_pictures([opened(place)]),
    "the checker of scenes": lambda place: read_scene(opened(place)),
    "a harness's path": lambda place: opened_picture(str(place / "a.png")),
    "a harness's picture": lambda place: Document.of(opened_picture(opened(place))),
    "prompts of one's own": lambda place: read_own_prompts(
        lines(place, {"prompt": "x", "exact": "y", "images": ["a.png"]})
    ),
    "a viewer": lambda place: ReconstructionViewer(_lab().tokenizer.image).show(opened(place)),
    "samples of a viewer": lambda place: ReconstructionViewer(_lab().tokenizer.image, samples={"a": opened(place)}),
    "surgery": lambda place: CodeSurgery(_lab().tokenizer.image, opened(place)).wait(),
}


@pytest.mark.parametrize("way", REFUSED)
def test_a_way_in_refuses_a_picture_that_is_too_large(place, way, monkeypatch):
    monkeypatch.setattr(PIL.Image.Image, "convert", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match=rf"{SIDE} x {SIDE} pixels, more than 5,000: make it smaller"):
        REFUSED[way](place)


SKIPPED: dict[str, Callable[[Path], Any]] = {
    "captions": lambda place: read("captions", place, place),
    "jsonl": lambda place: read("jsonl", lines(place, {"image": "a.png", "caption": "c"}), place),
    "jsonl's own documents": lambda place: read(
        "jsonl", lines(place, [{"image": base64.b64encode(data(place)).decode()}]), place
    ),
    "conversations": lambda place: read("jsonl", lines(place, CHAT), place),
    "obelics": lambda place: read("obelics", lines(place, {"images": ["a.png"], "texts": [None]}), place),
    "mmc4": lambda place: read(
        "mmc4",
        lines(place, {"text_list": ["x"], "image_info": [{"image_name": "a.png", "matched_text_index": 0}]}),
        place,
    ),
    "webdataset": lambda place: read("webdataset", archive(place), place),
    "parquet": lambda place: read("parquet", table(place), place),
    "own data": lambda place: list(DataSource.of(place).documents()),
    "own pairs": lambda place: list(instruction_pairs(lines(place, {"input": "a.png", "output": "a.png"}))),
    "cut-outs": lambda place: list(cutouts(place)),
}


@pytest.mark.parametrize("way", SKIPPED)
def test_a_reader_skips_a_picture_that_is_too_large_and_says_so(place, way):
    reasons = [entry.reason for entry in SKIPPED[way](place) if hasattr(entry, "reason")]
    assert any(f"{SIDE} x {SIDE} pixels, more than 5,000" in reason for reason in reasons), reasons


def test_a_training_on_a_folder_s_pictures_skips_it(place):
    source = PictureFiles({"a.png": place / "a.png"}, 8)
    assert source.picture(0) is None and "more than 5,000" in source.skipped["a.png"]


@pytest.mark.parametrize("command", [["reconstruct"], ["generate", "x", "--out", "", "--image"]])
def test_a_command_refuses_it_in_one_line(place, command, capsys):
    words = [word or str(place / "out") for word in command]
    assert main([*words, str(place / "a.png")]) == 2
    assert "more than 5,000: make it smaller" in capsys.readouterr().err


def test_what_is_dropped_into_a_widget_is_refused_there(place):
    image = _lab().tokenizer.image
    canvas, surgery = InfillCanvas(lambda document, seed: iter(()), image, "words"), CodeSurgery(image)
    for widget in (canvas, surgery):
        browser_says(widget, {"kind": "picture", "name": "a.png", "segment": 0}, data(place))
    for widget in (canvas, surgery, CodebookAtlas(image, pictures=[opened(place)])):
        with pytest.raises(ValueError, match="more than 5,000"):
            widget.wait(60)
