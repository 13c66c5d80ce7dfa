"""A fuzz of everything that reads what others wrote: seeded cases in a child process that may take little.

    python tests/fuzz_readers.py --seconds 3600                  # all readers, for an hour
    python tests/fuzz_readers.py --reader pictures --case 17     # one case again, with its traceback

The child has a limit on its memory, and the parent one on the time of each case. A fault is: an exception that is not
the lab's own (`ValueError`, `OSError`), no answer in time, memory beyond 1 GiB, a program or a connection that is
opened, a file that is written outside the case's own folder. `tests/test_fuzz.py` runs some seconds of it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import math
import os
import queue
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

CASE_SECONDS = 20.0
"""How long a case may take: on a machine that others use, too."""

MEMORY = 2**30
"""Bytes that a case may take beside what is loaded."""

SCALARS = (None, True, False, 0, -1, 1, 7, 3.5, -0.0, 1e308, math.nan, math.inf, 10**30, 3_000_000, 2**40)
WORDS = ("", "x", "no", "\ud800", "\0", "../x", "/etc/passwd", "x" * 70_000, "1e400", "<image>", "[[[[")
NESTED: tuple[Any, ...] = ([], {}, [[]], [None], {"a": 1}, [[10**30]], [[1.9]], list(range(1000)), {"is": "x"})


# Damage


def damaged_json(rng: np.random.Generator, plain: Any) -> bytes:
    """A JSON value with one to three places replaced, deleted or doubled, or with its letters damaged."""
    plain = json.loads(json.dumps(plain))
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(plain))
        if not places:
            break
        owner, key = places[int(rng.integers(len(places)))]
        kind = rng.random()
        if kind < 0.15:
            del owner[key]
        elif kind < 0.25 and isinstance(owner, list):
            owner.insert(key, owner[key])
        elif kind < 0.3:
            owner[key] = [owner[key]]
        else:
            junk = [*SCALARS, *WORDS, *NESTED]
            owner[key] = json.loads(json.dumps(junk[int(rng.integers(len(junk)))]))
    text = json.dumps(plain)
    kind = rng.random()
    if kind < 0.03:
        depth = int(rng.choice([70, 900, 20_000, 200_000]))
        return (b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth)[int(rng.integers(3))]
    if kind < 0.05:
        return text.encode().replace(b"1", b"1" * 5000, 1)
    return damaged_bytes(rng, text.encode()) if kind < 0.2 else text.encode()


def _places(plain: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a nested value; of long lists the first few."""
    waiting = [plain]
    while waiting:
        value = waiting.pop()
        lists = enumerate(value) if isinstance(value, list) else ()
        pairs = list(value.items() if isinstance(value, dict) else lists)
        for key, inner in pairs[:40]:
            yield value, key
            waiting.append(inner)


def damaged_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Bytes with some changed, cut, doubled, or replaced by extreme numbers; the beginning more often than the rest."""
    changed = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 2, 4, 16]))):
        if not changed:
            break
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 512)
        at = int(rng.integers(end))
        match int(rng.integers(7)):
            case 0:
                changed[at] ^= 1 << int(rng.integers(8))
            case 1:
                changed[at] = int(rng.integers(256))
            case 2:
                del changed[at : None if rng.random() < 0.4 else at + int(rng.integers(1, 64))]
            case 3:
                changed[at:at] = rng.integers(0, 256, int(rng.integers(1, 64)), np.uint8).tobytes()
            case 4:
                number = int(rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000, 16384]))
                size, order = int(rng.choice([2, 4])), "big" if rng.random() < 0.5 else "little"
                changed[at : at + size] = (number % 256**size).to_bytes(size, order)
            case 5:
                changed[at:at] = changed[at : at + int(rng.integers(1, 256))]
            case 6:
                changed[at : at + 8] = b"\xff" * 8
    return bytes(changed)


def damaged_file(rng: np.random.Generator, path: Path) -> None:
    """Damages a file, or, seldom, has something in its place that is none; what is none already stays as it is."""
    from support import IN_PLACES, in_place_of

    if not path.is_file() or path.is_symlink():
        return
    if rng.random() < 0.04:
        in_place_of(path, str(rng.choice(IN_PLACES)))
        return
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and data and rng.random() < 0.85:
        lines = data.splitlines() if path.suffix == ".jsonl" else [data]
        at = int(rng.integers(len(lines)))
        lines[at] = damaged_json(rng, json.loads(lines[at]))
        data = b"\n".join(lines)
    elif path.suffix == ".yaml" and rng.random() < 0.7:
        lines = data.decode().splitlines()
        at = int(rng.integers(len(lines)))
        values = (
            "3000000",
            "-1",
            "1e10",
            "[]",
            "{}",
            "x",
            "null",
            "[1, 2]",
            "!!python/name:os.system",
            "*a",
            "&a [*a]",
        )
        lines[at] = f"{lines[at].split(':')[0]}: {rng.choice(values)}"
        data = "\n".join(lines).encode()
    else:
        data = damaged_bytes(rng, data)
    path.write_bytes(data)


# What is read


@dataclass(frozen=True)
class FuzzReader:
    """A reader under fuzz: `case(rng, folder)` damages something and reads it; `make` has made what it damages."""

    name: str
    case: Callable[[np.random.Generator, Path], None]
    make: tuple[Callable[[], object], ...]


@cache
def _pictures() -> tuple[bytes, ...]:
    import PIL.Image
    import PIL.ImageCms

    noise = np.kron(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8), np.ones((6, 6, 1), np.uint8))
    whole = PIL.Image.fromarray(noise)
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)
    exif = PIL.Image.Exif()
    exif[0x0112], exif[271] = 6, "maker"
    greys = PIL.Image.fromarray((np.arange(24 * 36).reshape(24, 36) * 70).astype(np.uint16))
    files: list[tuple[PIL.Image.Image, str, dict[str, Any]]] = [
        *((whole, kind, {}) for kind in ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")),
        *((whole, kind, {"exif": exif, "icc_profile": profile}) for kind in ("PNG", "JPEG", "WEBP", "AVIF", "TIFF")),
        *((whole.convert("RGBA"), kind, {}) for kind in ("PNG", "WEBP", "TIFF")),
        *((whole.convert("P"), kind, {}) for kind in ("PNG", "GIF", "BMP", "TIFF")),
        *((greys, kind, {}) for kind in ("PNG", "TIFF", "JPEG2000", "PPM")),
        (greys, "PNG", {"transparency": 70}),
        (whole.convert("P"), "PNG", {"transparency": 0}),
        (whole.convert("CMYK"), "JPEG", {}),
        (whole.convert("F"), "TIFF", {}),
        (whole, "JPEG", {"progressive": True}),
        *((whole, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
        *((whole, kind, {"save_all": True, "append_images": [whole] * 2}) for kind in ("GIF", "PNG", "WEBP", "TIFF")),
    ]
    written = []
    for picture, kind, options in files:
        out = io.BytesIO()
        picture.save(out, kind, **options)
        written.append(out.getvalue())
    return tuple(written)


def _picture_case(rng: np.random.Generator, folder: Path) -> None:
    from chameleon_lab.pictures import open_picture, read_picture

    files = _pictures()
    data = damaged_bytes(rng, files[int(rng.integers(len(files)))])
    (folder / "picture.jpg").write_bytes(data)
    for read in (lambda: read_picture(data), lambda: open_picture(folder / "picture.jpg", 8)):
        try:
            read()
        except ValueError as error:
            if not str(error).startswith(("The picture", str(folder))):
                raise TypeError(f"an error that does not name the picture: {error}") from error


@cache
def _document() -> str:
    import PIL.Image

    from chameleon_lab.documents import Document, EndTurn, Image, Text

    picture = PIL.Image.new("RGB", (8, 8), "red")
    codes = np.arange(16).reshape(4, 4) % 12
    return Document.of("draw", EndTurn(), Image(picture, codes), Image(picture), Text("x", learn=False)).to_json()


def _document_case(rng: np.random.Generator, folder: Path) -> None:
    from chameleon_lab.documents import Document

    data = damaged_json(rng, json.loads(_document())).decode(errors="surrogateescape")
    tokenizer = _toys()[1]
    tokenizer.encode(Document.from_json(Document.from_json(data).to_json()))


@cache
def _toys() -> Any:
    """A random model, its tokenizer, and the same with the family's text tokenizer."""
    from test_formats import IMAGE, make_lab
    from test_text_json import family_json

    from chameleon_lab.tokenizers.text import JsonTokenizer

    family = JsonTokenizer(family_json(IMAGE.codes))
    plain = make_lab()
    return plain, plain.tokenizer, make_lab(text=family, vocabulary=family.vocabulary)


@cache
def _checkpoints() -> Path:
    """Folders of every format, with either text tokenizer."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-checkpoints-", dir=os.environ.get("FUZZ_HOME")))
    for name, lab in (("bytes", _toys()[0]), ("family", _toys()[2])):
        for layout in ("native", "meta", "huggingface", "lumina", "anole"):
            try:
                lab.save(place / f"{layout}-{name}", format=layout)
            except ValueError:  # what a format cannot express
                shutil.rmtree(place / f"{layout}-{name}", ignore_errors=True)
    assert len(list(place.iterdir())) >= 4, list(place.iterdir())
    return place


def _checkpoint_case(rng: np.random.Generator, folder: Path) -> None:
    from chameleon_lab.chameleon import Chameleon
    from chameleon_lab.documents import Document, EndTurn

    folders = sorted(_checkpoints().iterdir())
    model = folder / "model"
    shutil.copytree(folders[int(rng.integers(len(folders)))], model)
    files = sorted(file for file in model.rglob("*") if file.is_file() and file.suffix != ".chk")
    if rng.random() < 0.6:  # settings decide more than weights
        files = [file for file in files if file.suffix in (".json", ".yaml")]
    damaged_file(rng, files[int(rng.integers(len(files)))])
    lab = Chameleon.load(model, device="cpu", acknowledge_licence=True)
    lab.generate(Document.of("a", EndTurn()), max_tokens=4)


@cache
def _vqgans() -> Path:
    """Folders of image tokenizers as others publish them."""
    import torch
    import yaml
    from test_vqgans import KINDS, Published

    place = Path(tempfile.mkdtemp(prefix="fuzz-vqgans-", dir=os.environ.get("FUZZ_HOME")))
    for number, kind in enumerate(KINDS.values()):
        published, folder = Published(**kind), place / str(number)
        folder.mkdir()
        if published.program == "llamagen":
            torch.save({"model": published.tensors, "args": argparse.Namespace(a=1)}, folder / "vq_ds8.pt")
        else:
            beside = {"callbacks": {"best": np.float64(1.5)}, "epoch": 3}
            torch.save({"state_dict": published.tensors, **beside}, folder / "model.ckpt")
            (folder / "config.yaml").write_text(yaml.safe_dump(published.config()))
    return place


def _vqgan_case(rng: np.random.Generator, folder: Path) -> None:
    import torch

    from chameleon_lab.chameleon import load_image_tokenizer

    folders = sorted(_vqgans().iterdir())
    place = folder / "vqgan"
    shutil.copytree(folders[int(rng.integers(len(folders)))], place)
    files = sorted(place.iterdir())
    damaged_file(rng, files[int(rng.integers(len(files)))])
    image = load_image_tokenizer(place, device="cpu")
    image.decode_pixels(image.encode_pixels(torch.zeros(1, 3, 32, 32)))


@cache
def _text_models() -> tuple[str, bytes]:
    from test_text_json import family_json

    from chameleon_lab.tokenizers.text import SentencePieceTokenizer

    texts = ["draw a red circle left of a blue square", "x = [0, 12, 345]"] * 40
    return family_json(), SentencePieceTokenizer.train(texts, 300).model


def _tokenizer_case(rng: np.random.Generator, folder: Path) -> None:
    from chameleon_lab.tokenizers.text import JsonTokenizer, SentencePieceTokenizer

    plain, model = _text_models()
    if rng.random() < 0.7:
        parts = json.loads(plain)
        key = str(rng.choice([key for key in parts if key != "model"]))
        if rng.random() < 0.3:
            written = damaged_json(rng, parts)
        else:
            rest = {name: value for name, value in parts["model"].items() if name not in ("vocab", "merges")}
            inner = damaged_json(rng, rest if rng.random() < 0.2 else [parts[key]])
            try:
                changed = json.loads(inner)
                parts["model"] |= changed if isinstance(changed, dict) else {}
                parts[key] = changed[0] if isinstance(changed, list) and changed else parts[key]
            except (ValueError, RecursionError):
                pass
            written = json.dumps(parts).encode()
        (folder / "text_tokenizer.json").write_bytes(written)
        tokenizer = JsonTokenizer.load(folder / "text_tokenizer.json")
    else:
        (folder / "text_tokenizer.model").write_bytes(damaged_bytes(rng, model))
        tokenizer = SentencePieceTokenizer.load(folder / "text_tokenizer.model")
    for text in ("draw a <b> x", "a" * 3000, "  \n\t" * 500):
        tokenizer.decode(tokenizer.encode(text))


@cache
def _gguf_file() -> bytes:
    from test_formats import make_lab

    path = Path(tempfile.mkdtemp(prefix="fuzz-gguf-", dir=os.environ.get("FUZZ_HOME"))) / "small.gguf"
    make_lab().save(path, format="gguf")
    return path.read_bytes()


def _gguf_case(rng: np.random.Generator, folder: Path) -> None:
    from chameleon_lab.checkpoints import formats

    path = folder / "small.gguf"
    path.write_bytes(_gguf_file())
    damaged_file(rng, path)
    formats.read_parts(path)


def _corpus_case(rng: np.random.Generator, folder: Path) -> None:
    from support import RECORDS

    from chameleon_lab.corpora import shards
    from chameleon_lab.corpora.readers import READERS, PictureFolder, Skipped
    from chameleon_lab.documents import Document

    tokenizer, place, kind = _toys()[1], folder / "corpus", str(rng.choice([*READERS, "shards"]))
    place.mkdir()
    (place / "a.png").write_bytes(_pictures()[0])
    (place / "a.txt").write_text("a caption")
    (place / "b.md").write_bytes(damaged_bytes(rng, b"text \xf0\x9f\x99\x82 of a file"))
    (place / "c.py").write_bytes(damaged_bytes(rng, b"x = 1"))
    if kind == "shards":
        shards.write_shards(folder / "shards", [Document.of("some text")] * 3, tokenizer)
        damaged_file(rng, sorted((folder / "shards").iterdir())[int(rng.integers(5))])
        corpus = shards.Shards(folder / "shards")
        _ = [corpus[index] for index in range(min(len(corpus), 10))], corpus.skipped, corpus.kind(0)
        corpus.require_tokenizer(tokenizer)
        return
    damaged_file(rng, place / "a.png" if rng.random() < 0.5 else place / "a.txt")
    path, records = place, RECORDS.get(kind)
    if records is not None:
        whole = [json.loads(_document())] if kind == "jsonl" else []
        several = [*records, *whole]
        entries = [damaged_json(rng, several[int(rng.integers(len(several)))]) for _ in range(4)]
        entries = [entry.replace(b"\n", b" ").strip() or b"{}" for entry in entries]
        good = json.dumps(records[0]).encode()
        path = place / "made.jsonl"
        path.write_bytes(b"\n".join([good, *entries, good]) + b"\n")
    documents = list(READERS[kind](path, PictureFolder(place)))
    if records is not None and len(documents) < 6:
        raise TypeError(f"{len(documents)} of 6 entries were answered")
    with_tokens = [each for each in documents if isinstance(each, Document | Skipped)]
    shards.write_shards(folder / "out", with_tokens, tokenizer)


@cache
def _run_files() -> dict[str, str]:
    from chameleon_lab.history import Alarm, Intervention, RunState, StepRecord, event_line

    layers = {"residual_norm": [1.0, 2.0]}
    records = [StepRecord(step, step / 2, {"loss": 3.0 - step / 10}, layers) for step in range(6)]
    config = {"is": "Experiment", "name": "a", "recipe": {"rate": 0.1, "betas": [0.9, 0.95]}, "sources": {"x": "y"}}
    events = [Alarm(2, "WARN", "loss", "it rose"), Intervention(3, "rate", 0.1, 0.2, "why")]
    return {
        "state.json": json.dumps(asdict(RunState("a", "finished", 1.0, settings={"rate": 0.1}))),
        "config.json": json.dumps(config),
        "metrics.jsonl": "".join(record.to_json() + "\n" for record in records),
        "events.jsonl": "".join(map(event_line, events)),
    }


def _run_case(rng: np.random.Generator, folder: Path) -> None:
    from chameleon_lab.history import RecordedRun
    from chameleon_lab.training.folder import RunFolder

    place = folder / "run"
    place.mkdir()
    for name, text in _run_files().items():
        (place / name).write_text(text)
    names = list(_run_files())
    for _ in range(int(rng.integers(1, 3))):
        path = place / names[int(rng.integers(len(names)))]
        try:
            damaged_file(rng, path)
        except (ValueError, RecursionError):  # no JSON any more
            path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    run = RecordedRun(place)
    _ = run.state, run.state.over, run.history.records, run.config, run.sources, run.answers, RunFolder(place).history


@cache
def _widgets() -> dict[str, Any]:
    """Every widget, whose page is this process."""
    import comm
    import PIL.Image
    from widget_support import Recorder

    comm.create_comm = Recorder
    from chameleon_lab.documents import Document, EndTurn
    from chameleon_lab.history import RecordedRun
    from chameleon_widgets import (
        Arena,
        ChatCell,
        CodebookAtlas,
        CodeSurgery,
        ComparePanel,
        Explainer,
        InfillCanvas,
        Inspector,
        ReconstructionViewer,
        RunPanel,
    )

    place = Path(tempfile.mkdtemp(prefix="fuzz-run-", dir=os.environ.get("FUZZ_HOME")))
    for name, text in _run_files().items():
        (place / name).write_text(text)
    judged = place / "judged"
    for name, content in _study().items():
        (judged / name).parent.mkdir(parents=True, exist_ok=True)
        (judged / name).write_bytes(content)
    lab, image, red = _toys()[0], _toys()[1].image, PIL.Image.new("RGB", (16, 16), "red")
    return {
        "chat": ChatCell(lambda document: iter(())),
        "reconstruction": ReconstructionViewer(image, samples={"red": red}),
        "surgery": CodeSurgery(image, red),
        "atlas": CodebookAtlas(image),
        "comparison": ComparePanel([place]),
        "run": RunPanel(RecordedRun(place)),
        "arena": Arena(judged, "Ben"),
        "canvas": InfillCanvas(lambda document, seed=0: iter(()), image, Document.of("some words", red)),
        "inspector": Inspector(lab.inspect(Document.of("a b", red))),
        "explainer": Explainer(lab.walk(Document.of("a b", EndTurn()))),
    }


MESSAGE: dict[str, Any] = {
    **{"kind": "hello", "mark": "view-3", "key": "1", "name": "red", "value": 3, "number": 1, "view": "v", "stroke": 1},
    **{"parts": [{"text": "a"}, {"picture": 0}, {"keep": 0}], "cells": [[0, 0]], "codes": [1], "steps": 1},
    **{"answers": {"better": "first"}},
    **{"command": "change", "arguments": {"rate": 0.1}, "settings": {"seed": 1}, "tokenizers": ["red"], "policy": "x"},
    **{"branch": 0, "position": 1, "positions": [1], "layer": 0, "head": 0, "way": "from", "of": 3, "source": 0},
    **{"image": 0, "token": 5, "text": "b", "keep": True, "seed": 1, "strengths": [1.0], "count": 1, "segment": 0},
    "samplers": {name: {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0} for name in ("words", "pictures")},
    **{"first": 0, "last": 1, "near": 0, "format": "png", "codebook": 0, "open": True, "traits": {"settings": {}}},
}
"""All that a page may say, in one message."""


def _message_case(rng: np.random.Generator, folder: Path) -> None:
    """Whatever a page has said, a widget goes on: the next page that comes is shown all there is."""
    widgets = _widgets()
    widget = widgets[str(rng.choice(list(widgets)))]
    try:
        content = json.loads(damaged_json(rng, MESSAGE))
    except (ValueError, RecursionError):
        content = dict(MESSAGE)
    if not isinstance(content, dict):
        content = {"kind": content}
    if rng.random() < 0.9:  # what the widget knows
        content["kind"] = str(rng.choice(["hello", "set", *widget._line._handlers]))
    if content.get("kind") == "set" and isinstance(traits := content.get("traits"), dict):
        name = str(rng.choice([*sorted(widget._line._settable), "layout"]))
        junk = [*SCALARS, *WORDS, *NESTED]
        content["traits"] = traits | {name: junk[int(rng.integers(len(junk)))]}
    files = _pictures()
    buffers = [damaged_bytes(rng, files[int(rng.integers(len(files)))]) for _ in range(int(rng.integers(3)))]
    if content.get("kind") in ("export", "still", "page"):  # figures take their time
        return
    widget._handle_custom_msg(content, [memoryview(each) for each in buffers])
    widget._line.settle()
    widget.comm.custom.clear()
    widget._handle_custom_msg({"kind": "hello"}, [])
    widget._line.settle()
    messages = [message for message, _ in widget.comm.custom]
    if len(messages) < 2 or any(message.get("trouble") and message["kind"] == "line" for message in messages):
        raise TypeError(f"after {content['kind']!r} a new page is greeted with {str(messages)[:300]}")


@cache
def _rooms() -> Path:
    """Folders that the lab wrote for itself, each as its own reader expects it: see `_room_case`."""
    import torch
    from test_emoji import write_emoji

    from chameleon_lab.corpora.own_data import GatheredData
    from chameleon_lab.training.own.documents import tokenize_views

    place = Path(tempfile.mkdtemp(prefix="fuzz-rooms-", dir=os.environ.get("FUZZ_HOME")))
    source = place / "pictures"
    source.mkdir()
    for number in range(10):
        (source / f"{number}.png").write_bytes(_pictures()[0])
        (source / f"{number}.txt").write_text(f"a caption, number {number}")
    own = place / "own"
    training = _own_training(place, own)
    training.say = lambda words: None
    tokenizer, plan = _toys()[1], training.prepare()
    training._transformer_minutes(plan)
    tokenize_views(GatheredData(own / "data"), tokenizer, own / "views", seconds=0.01)
    torch.save({"loss": 1.0, "place": 0.1, "state": {"a": torch.zeros(3)}}, own / "best.pt")
    write_emoji(place / "emoji")
    scenes, outcomes = place / "scenes", place / "outcomes"
    scenes.mkdir()
    np.save(scenes / "numbers.npy", np.arange(20))
    np.save(scenes / "codes.npy", np.zeros((20, 4, 4), np.uint16))
    outcomes.mkdir()
    for name in ("quantizers", "stability"):
        lines = (Path(__file__).parents[1] / "data" / f"{name}.jsonl").read_text().splitlines()[:3]
        (outcomes / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return place


def _own_training(rooms: Path, folder: Path) -> Any:
    from chameleon_lab.training.own import training
    from chameleon_lab.training.own.plan import seconds_of_steps

    training.seconds_of_steps = partial(seconds_of_steps, seconds=0.05)  # which are said, and nothing hangs on them

    small: dict[str, Any] = {"side": 16, "grid": 4, "codes": 32, "width": 64, "layers": 1, "tokens": 128}
    return training.OwnTraining(rooms / "pictures", folder, 0.2, **small)


def _room_case(rng: np.random.Generator, folder: Path) -> None:
    from chameleon_lab.corpora.emoji import Emoji
    from chameleon_lab.corpora.own_data import GatheredData
    from chameleon_lab.corpora.scene_codes import SceneCodes, numbered_scene
    from chameleon_lab.evaluation import comparison, stability
    from chameleon_lab.training.own.documents import OwnDocuments, tokenize_views
    from chameleon_lab.training.own.samples import BestWeights

    name, place = str(rng.choice(["own", "emoji", "scenes", "outcomes"])), folder / "room"
    shutil.copytree(_rooms() / name, place)
    files = sorted(file for file in place.rglob("*") if file.is_file() and file.name != "skipped.jsonl")
    if rng.random() < 0.7:  # of many drawings one is like the other
        files = [file for file in files if file.suffix != ".png"]
    damaged_file(rng, files[int(rng.integers(len(files)))])
    if name == "own":
        data = GatheredData(place / "data")
        tokenize_views(data, _toys()[1], place / "views", seconds=0.01)
        OwnDocuments(place / "data", place / "views", _toys()[1], 128).open(0, None).batches(0)
        training = _own_training(_rooms(), place)
        training._transformer_minutes(training.prepare())
        BestWeights(place / "best.pt", 0.3)
    elif name == "emoji":
        emoji = Emoji(place)
        for make in emoji.kinds.values():
            make(rng)
        for idea, style in emoji.drawings("drawing"):
            emoji.picture(idea, style)
    elif name == "scenes":
        codes = SceneCodes(place)
        _ = [codes[numbered_scene(number)] for number in range(20)], codes.scenes_of(1)
    else:
        presets = stability.read_presets(place / "stability.jsonl")
        stability.preset_tables(presets, stability.COMPARED)
        read = comparison.read_outcomes(place / "quantizers.jsonl")
        _ = [value.summary for outcome in read for value in outcome.values.values()]


@cache
def _folders() -> Path:
    """A folder of each of `FOLDER_READERS`, whole."""
    from fuzz_rooms import FOLDER_READERS

    place = Path(tempfile.mkdtemp(prefix="fuzz-folders-", dir=os.environ.get("FUZZ_HOME")))
    for name, reader in FOLDER_READERS.items():
        (place / name).mkdir()
        reader.make(place / name)
        reader.read(_copy(place / name))
    return place


def _copy(whole: Path) -> Path:
    from fuzz_rooms import copied

    place = whole.with_name(f"{whole.name}-read")
    copied(whole, place)
    return place


def _folder_case(rng: np.random.Generator, folder: Path) -> None:
    from fuzz_rooms import FOLDER_READERS, copied

    name = str(rng.choice([*FOLDER_READERS]))
    files = copied(_folders() / name, folder / "read")
    damaged_file(rng, files[int(rng.integers(len(files)))])
    FOLDER_READERS[name].read(folder / "read")


@cache
def _study() -> dict[str, bytes]:
    """A study's folder and what was written out of it, by name."""
    import PIL.Image

    from chameleon_lab.documents import Document
    from chameleon_lab.studies import BETTER, Journal, Judgement, Study, write_judgements

    prompts = [Document.of("a question"), Document.of(PIL.Image.new("RGB", (4, 4), "red"), "what?")]
    replies = {name: [Document.of(f"{name} {number}") for number in range(2)] for name in ("ours", "theirs")}
    place = Path(tempfile.mkdtemp(prefix="fuzz-study-", dir=os.environ.get("FUZZ_HOME")))
    study = Study.of_pairs("a study", prompts, replies, checks=1)
    study.write(place)
    journal = Journal(place, "Ann")
    for item in study.items:
        journal.add(Judgement("Ann", item.name, {BETTER.name: "first"}, 1.5))
    journal.close()
    for suffix in ("csv", "jsonl"):
        write_judgements(journal.judgements.values(), study, place / f"table.{suffix}")
    (place / "prompts.jsonl").write_text('{"id": 1, "prompt": "see <img>", "task_type": "x", "image_urls": ["u"]}\n')
    return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def _bytes_of(path: Path) -> bytes:
    """A file's bytes; none of what was put in its place, which may have no end."""
    return path.read_bytes() if path.is_file() and not path.is_symlink() else b""


def _study_case(rng: np.random.Generator, folder: Path) -> None:
    from chameleon_lab.evaluation.verdicts import answer_table, pair_outcome
    from chameleon_lab.studies import BETTER, Journal, Judgement, Study, all_judgements, read_judgements, read_prompts

    place, names = folder / "study", sorted(_study())
    for name, content in _study().items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    name = names[int(rng.integers(len(names)))]
    damaged_file(rng, place / name)
    if name == "prompts.jsonl":
        read_prompts(place / name)
    study = Study.read(place)
    ann = place / "judges" / "Ann.jsonl"
    before = _bytes_of(ann)
    try:
        journal = Journal(place, "Ann")
    except ValueError:
        if _bytes_of(ann) != before:
            raise TypeError("a journal was changed that could not be read") from None
        raise
    try:
        journal.add(Judgement("Ann", study.items[0].name, {BETTER.name: "second"}))
    finally:
        journal.close()
    if not _bytes_of(ann).startswith(before):
        raise TypeError("lines of a journal were lost")
    judgements = all_judgements(place)
    if {each.item: dict(each.answers) for each in judgements}[study.items[0].name] != {BETTER.name: "second"}:
        raise TypeError("the last answer does not count")
    _ = study.order("Ann"), pair_outcome(study, judgements), answer_table(study, judgements)
    for suffix in ("csv", "jsonl"):
        read_judgements(place / f"table.{suffix}", study)


FUZZ_READERS = (
    FuzzReader("pictures", _picture_case, (_pictures,)),
    FuzzReader("documents", _document_case, (_document, _toys)),
    FuzzReader("checkpoints", _checkpoint_case, (_toys, _checkpoints)),
    FuzzReader("vqgans", _vqgan_case, (_vqgans,)),
    *([FuzzReader("gguf", _gguf_case, (_gguf_file,))] if importlib.util.find_spec("gguf") else []),
    FuzzReader("tokenizers", _tokenizer_case, (_text_models,)),
    FuzzReader("corpora", _corpus_case, (_pictures, _document, _toys)),
    FuzzReader("rooms", _room_case, (_pictures, _toys, _rooms)),
    FuzzReader("folders", _folder_case, (_folders,)),
    FuzzReader("runs", _run_case, (_run_files,)),
    FuzzReader("studies", _study_case, (_study,)),
    FuzzReader("messages", _message_case, (_pictures, _toys, _run_files, _study, _widgets)),
)


# The child


def child(names: list[str], seed: int, first: int, seconds: float, home: Path, one: bool) -> None:
    """Runs cases, a line to stdout when each begins, and one for each fault."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    readers = [reader for reader in FUZZ_READERS if reader.name in names]
    scratch = home / "case"
    for reader in readers:  # all that a case needs is loaded before its memory is counted
        _warm(reader, scratch)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    deeds: list[str] = []
    watching = [False]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching[0]:
            return
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "os.fork"):
            deeds.append(f"{event} {str(arguments)[:100]}")
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, flags = os.fsdecode(arguments[0]), arguments[2] or 0
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes and not os.path.abspath(path).startswith((str(scratch), "/dev/")):
                deeds.append(f"wrote {path}")

    sys.addaudithook(hook)
    threading.excepthook = lambda caught: deeds.append(
        f"in a thread: {caught.exc_value!r} {_place_of(caught.exc_value)}"
    )
    logging.disable(logging.CRITICAL)
    peak = _peak()
    started, number = time.monotonic(), first
    while (number == first) if one else time.monotonic() - started < seconds:
        reader = readers[number % len(readers)]
        print(f"start {reader.name} {number}", flush=True)
        scratch.mkdir()
        deeds.clear()
        watching[0], fault = True, ""
        try:
            reader.case(np.random.default_rng([seed, number]), scratch)
        except (ValueError, OSError) as error:
            if one:
                traceback.print_exc()
            if isinstance(error, UnicodeError) and reader.name != "documents":
                fault = f"{type(error).__name__}: {error}"
        except BaseException as error:
            fault = f"{type(error).__name__}: {str(error)[:200]} {_place_of(error)}"
            if one:
                traceback.print_exc()
        watching[0] = False
        if deeds:
            fault = deeds[0]
        if _peak() - peak > MEMORY:
            fault = f"memory: {(_peak() - peak) / 2**20:.0f} MiB"
            peak = _peak()
        if fault:
            print(f"fault {reader.name} {number} {' '.join(fault.split())}", flush=True)
        shutil.rmtree(scratch, ignore_errors=True)
        number += 1
    print(f"end {number - first}", flush=True)


def _warm(reader: FuzzReader, scratch: Path) -> None:
    for make in reader.make:
        make()
    for number in range(3):
        scratch.mkdir()
        with contextlib.suppress(BaseException):
            reader.case(np.random.default_rng([10**6, number]), scratch)
        shutil.rmtree(scratch, ignore_errors=True)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _place_of(error: BaseException | None) -> str:
    frames = traceback.extract_tb(error.__traceback__ if error else None)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-5:]))


# The parent


@dataclass(frozen=True)
class FuzzOutcome:
    """How many cases of each reader ran, and the faults: reader, case and what happened."""

    cases: dict[str, int]
    faults: list[tuple[str, int, str]]


def fuzz(names: list[str], seconds: float, seed: int = 0) -> FuzzOutcome:
    """Runs cases of some readers in turn for so long, in child processes that are ended where a case hangs."""
    cases, faults = dict.fromkeys(names, 0), list[tuple[str, int, str]]()
    end, first = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as home:
        while (left := end - time.monotonic()) > 0 or not first:
            command = [sys.executable, __file__, "--child", home, "--seed", str(seed), "--case", str(first)]
            command += ["--seconds", str(max(1.0, left)), *(each for name in names for each in ("--reader", name))]
            environment = os.environ | {"FUZZ_HOME": home, "PYTHONDONTWRITEBYTECODE": "1", "MALLOC_ARENA_MAX": "2"}
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
            )  # decoders in C talk to stderr
            lines: queue.Queue[str] = queue.Queue()
            follower = threading.Thread(target=_follow, args=(process, lines), daemon=True)
            follower.start()
            reader, number, started, words = "", first, False, ["begin"]
            while words[0] not in ("end", ""):
                if (line := _next_line(lines, process.pid, CASE_SECONDS if started else 180.0)) is None:
                    process.kill()
                    faults.append((reader, number, f"no answer in {CASE_SECONDS:.0f} s"))
                    break
                words = line.split(" ", 3) if line else [""]
                if words[0] == "start":
                    reader, number, started = words[1], int(words[2]), True
                    cases[reader] += 1
                elif words[0] == "fault":
                    faults.append((words[1], int(words[2]), words[3].strip()))
                elif words[0] == "":
                    faults.append((reader, number, f"the process ended with {process.wait()}"))
            process.wait()
            follower.join()
            shutil.rmtree(Path(home) / "case", ignore_errors=True)
            first = number + 1
            if not started or words[0] == "end":
                break
    return FuzzOutcome(cases, faults)


def _next_line(lines: queue.Queue[str], process: int, seconds: float) -> str | None:
    """The child's next line. None where it waits for so long, or works for so long: one that waits for a processor,
    of a machine that others use too, does neither."""
    began = before = _worked(process)
    while True:
        try:
            return lines.get(timeout=seconds)
        except queue.Empty:
            now = _worked(process)
            if now - before < 0.05 or now - began > seconds:
                return None
            before = now


def _worked(process: int) -> float:
    """Seconds of a processor that a process had."""
    times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def _follow(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            lines.put(line)
    lines.put("")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", choices=[reader.name for reader in FUZZ_READERS])
    parser.add_argument("--case", type=int, help="one case alone, here, with its traceback")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.reader or [reader.name for reader in FUZZ_READERS]
    if options.child or options.case is not None:
        home = options.child or Path(tempfile.mkdtemp(prefix="fuzz-"))
        child(names, options.seed, options.case or 0, options.seconds, home, one=options.child is None)
        return 0
    outcome = fuzz(names, options.seconds, options.seed)
    for name, count in outcome.cases.items():
        faults = sum(reader == name for reader, _, _ in outcome.faults)
        print(f"{name:12} {count:8,} cases {faults:4} faults")
    for reader, number, fault in outcome.faults:
        print(f"{reader} {number}: {fault}")
    return bool(outcome.faults)


if __name__ == "__main__":
    raise SystemExit(main())
