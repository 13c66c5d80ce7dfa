"""Code surgery without a browser: what strokes do to codes, what is decoded and when, and what is never lost."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from widget_support import RED, browser_says, eventually, recorder, updates

from chameleon_widgets.images import code_surgery, edits
from chameleon_widgets.images.code_surgery import CodeSurgery
from chameleon_widgets.images.edits import Grid, grid_of
from chameleon_widgets.pictures import png
from chameleon_widgets.stills import WIDGET_VIEW
from chameleon_widgets.undo import STEPS, UndoHistory

pytestmark = pytest.mark.usefixtures("comms")

ROOT = Path(__file__).parents[1]
START = np.arange(12).reshape(3, 4)


class Blocks:
    """A tokenizer of 64 greys, one in a cell of 2 x 2 pixels; it holds, counts and fails when told to."""

    codes = 64

    def __init__(self, rows: int = 3, columns: int = 4) -> None:
        self.rows, self.columns = rows, columns
        self.decoded: list[np.ndarray] = []
        self.threads: set[str] = set()
        self.error: Exception | None = None
        self.gate, self.reached = threading.Event(), threading.Event()
        self.gate.set()

    def encode(self, picture: PIL.Image.Image) -> np.ndarray:
        small = picture.convert("L").resize((self.columns, self.rows), PIL.Image.Resampling.BOX)
        return np.asarray(small).astype(np.int64) // 4

    def decode(self, codes: np.ndarray) -> PIL.Image.Image:
        self.threads.add(threading.current_thread().name)
        self.reached.set()
        assert self.gate.wait(120)
        self.decoded.append(codes.copy())
        if self.error is not None:
            raise self.error
        return PIL.Image.fromarray((codes * 4).astype(np.uint8).repeat(2, 0).repeat(2, 1))

    def strokes(self) -> list[np.ndarray]:
        """What was decoded, swatches left out."""
        return [codes for codes in self.decoded if codes.shape == (self.rows, self.columns)]


def grid(surgery: CodeSurgery) -> Grid:
    now = surgery._surgery.history.now
    assert now is not None
    return now


class Painter:
    """The view's side of painting."""

    def __init__(self, surgery: CodeSurgery, view: str = "view-1") -> None:
        self.surgery, self.view, self.number = surgery, view, 0

    def __call__(self, cells: Any, codes: Any, stroke: str = "", key: int | None = None) -> dict[str, Any]:
        self.number += 1
        content = {"kind": "edit", "view": self.view, "number": self.number, "cells": cells, "codes": codes}
        content |= {"stroke": stroke or f"stroke {self.number}", "key": grid(self.surgery).key if key is None else key}
        browser_says(self.surgery, content)
        return content


@pytest.fixture
def tokenizer() -> Blocks:
    return Blocks()


@pytest.fixture
def surgery(tokenizer: Blocks) -> CodeSurgery:
    surgery = CodeSurgery(tokenizer, START)
    surgery.wait()
    return surgery


def move(surgery: CodeSurgery, steps: int) -> list[int]:
    browser_says(surgery, {"kind": "move", "steps": steps})
    return surgery.codes.ravel().tolist()


def test_what_is_painted_comes_back_as_an_ordinary_array_and_as_its_picture(surgery: CodeSurgery):
    Painter(surgery)([0, 5], 63)
    surgery.wait()
    expected = START.copy()
    expected.flat[[0, 5]] = 63
    assert surgery.codes.dtype == np.int64 and np.array_equal(surgery.codes, expected)
    assert np.array_equal(surgery.original, START)
    assert np.array_equal(np.asarray(surgery.picture)[::2, ::2] // 4, expected)
    surgery.codes[:] = 0
    surgery.original[:] = 0
    assert np.array_equal(surgery.codes, expected), "what is given out is a copy"


def test_a_stroke_of_many_messages_is_one_step_there_and_back(surgery: CodeSurgery):
    paint = Painter(surgery)
    for cell in range(5):
        paint([cell], 40, "long stroke")
    paint([11], 41)
    painted = surgery.codes.ravel().tolist()
    assert move(surgery, -1) == [40] * 5 + list(range(5, 12))
    assert move(surgery, -1) == list(range(12))
    assert move(surgery, -1) == list(range(12)), "further back there is nothing"
    assert move(surgery, 2) == painted
    move(surgery, -2)
    paint([3], 9)
    assert move(surgery, 5) == [0, 1, 2, 9, *range(4, 12)], "what was undone is forgotten after a new stroke"


def test_an_edit_that_changes_nothing_is_no_step(surgery: CodeSurgery, tokenizer: Blocks):
    count = len(tokenizer.decoded)
    Painter(surgery)([3, 4], [3, 4])
    surgery.wait()
    assert surgery._surgery.history.ways == (0, 0) and len(tokenizer.decoded) == count


def test_while_the_decoder_is_busy_only_the_newest_codes_wait_for_it(surgery: CodeSurgery, tokenizer: Blocks):
    paint, before = Painter(surgery), len(tokenizer.decoded)
    tokenizer.gate.clear()
    tokenizer.reached.clear()
    paint([0], 1)
    assert tokenizer.reached.wait(120)
    for code in range(60):
        paint([code % 12], code)  # would hang here if a handler decoded
    assert surgery._surgery.history.now is not None
    newest = grid(surgery).codes
    tokenizer.gate.set()
    surgery.wait()
    assert len(tokenizer.decoded) - before == 2
    assert np.array_equal(tokenizer.decoded[-1], newest)


def test_the_decoder_runs_in_the_worker_and_messages_come_from_the_pump(surgery: CodeSurgery, tokenizer: Blocks):
    handler = threading.Thread(target=Painter(surgery), args=([1], 2), name="subshell-1")
    handler.start()
    handler.join()
    surgery.wait()
    assert tokenizer.threads == {"code surgery worker"}
    assert recorder(surgery).threads == {"code surgery pump"}
    eventually(lambda: not surgery._worker.busy)


def test_an_edit_that_comes_twice_is_made_once(surgery: CodeSurgery):
    paint = Painter(surgery)
    first = paint([0], 30)
    paint([0], 31)
    browser_says(surgery, first)  # a view that had no answer sends again
    assert surgery.codes[0, 0] == 31
    Painter(surgery, "view-2")([0], 32)
    assert surgery.codes[0, 0] == 32
    surgery.wait()
    assert updates(surgery)[-1][0]["applied"] == {"view-1": 2, "view-2": 1}


def test_what_is_painted_on_a_picture_no_longer_open_is_ignored(surgery: CodeSurgery):
    old = grid(surgery).key
    surgery.show(RED)
    red = surgery.codes
    Painter(surgery)([0], 5, key=old)
    assert np.array_equal(surgery.codes, red)
    assert move(surgery, -1) == START.ravel().tolist(), "what was open before is a step away"


@pytest.mark.parametrize(
    ("cells", "codes", "message"),
    [
        ([0], 64, r"lie in 0\.\.63; got 64\.\.64"),
        ([0], -1, r"lie in 0\.\.63"),
        ([0], 1.5, "whole numbers"),
        ([0], "7", "whole numbers"),
        ([0], None, "whole numbers"),
        ([12], 1, r"cells must lie in 0\.\.11"),
        ([-1], 1, "cells must lie"),
        ([0, 1], [1, 2, 3], "shape mismatch"),
    ],
)
def test_a_strange_edit_is_told_and_changes_nothing(surgery: CodeSurgery, cells: Any, codes: Any, message: str):
    Painter(surgery)(cells, codes)
    with pytest.raises(ValueError, match=message):
        surgery.wait()
    assert np.array_equal(surgery.codes, START)
    update, buffers = updates(surgery)[-1]
    assert re.search(message, update["error"]) and surgery.status == "error"
    assert np.frombuffer(buffers[0], "<i4").tolist() == list(range(12)), "the view learns what the codes are"
    Painter(surgery, "view-2")([0], 1)
    surgery.wait()
    assert updates(surgery)[-1][0]["error"] == "" and surgery.status == "idle"


def test_codes_of_the_same_shape_are_an_edit_and_others_a_new_start(surgery: CodeSurgery):
    surgery.codes = START[::-1]
    assert np.array_equal(surgery.codes, START[::-1]) and np.array_equal(surgery.original, START)
    assert "8 of 12 cells changed" in surgery._line.mimebundle()["text/plain"]
    surgery.codes = np.zeros((2, 5), np.uint16)
    assert surgery.codes.tolist() == surgery.original.tolist() == [[0] * 5] * 2
    assert surgery.picture.size == (10, 4)
    assert move(surgery, -1) == START[::-1].ravel().tolist()
    assert surgery.picture.size == (8, 6)
    assert move(surgery, -1) == START.ravel().tolist()


@pytest.mark.parametrize(
    "codes",
    [
        START + 0.5,
        START - 1,
        START + 60,
        START[None],
        START[0],
        START[:0],
        [[1, 2], [3]],
        [["a"]],
        START > 3,
        None,
        "codes",
        np.zeros((1, 129), int),
        np.full((2, 2), 2**63, np.uint64),
    ],
)
def test_what_are_no_codes_is_refused_and_nothing_is_lost(surgery: CodeSurgery, codes: Any):
    with pytest.raises(ValueError, match=r"The codes must"):
        surgery.codes = codes
    assert np.array_equal(surgery.codes, START)
    surgery.wait()
    if codes is not None:
        with pytest.raises(ValueError, match=r"The codes must"):
            CodeSurgery(Blocks(), codes)


def test_without_the_size_of_the_codebook_any_code_goes():
    class Plain:
        def encode(self, picture: PIL.Image.Image) -> np.ndarray:
            return np.zeros((1, 1), int)

        def decode(self, codes: np.ndarray) -> PIL.Image.Image:
            return PIL.Image.new("L", (codes.shape[1], codes.shape[0]))

    surgery = CodeSurgery(Plain(), [[100_000, 1]])  # type: ignore[arg-type]
    assert surgery.codes.tolist() == [[100_000, 1]]
    browser_says(surgery, {"kind": "hello"})
    surgery.wait()
    (codebook,) = (update["codebook"] for update, _ in updates(surgery) if "codebook" in update)
    assert codebook is None
    with pytest.raises(ValueError, match=r"0\.\.9"):
        CodeSurgery(Plain(), [[10]], codebook=10)  # type: ignore[arg-type]


def test_what_cannot_be_decoded_is_not_opened(surgery: CodeSurgery, tokenizer: Blocks):
    tokenizer.error = RuntimeError("this grid\nis too large")
    for start in (RED, np.zeros((5, 5), int)):
        with pytest.raises(RuntimeError, match="this grid"):
            surgery.show(start)
    surgery._line.settle()
    assert np.array_equal(surgery.codes, START) and surgery._surgery.history.ways == (0, 0)
    assert updates(surgery)[-1][0]["error"] == "RuntimeError: this grid is too large"


def test_a_stroke_that_cannot_be_decoded_keeps_its_codes_and_the_last_picture(surgery: CodeSurgery, tokenizer: Blocks):
    before = surgery.picture
    tokenizer.error = RuntimeError("not this code")
    Painter(surgery)([0], 13)
    with pytest.raises(RuntimeError, match="not this code"):
        surgery.wait()
    assert surgery.codes[0, 0] == 13 and surgery.status == "error"
    with pytest.raises(RuntimeError, match="not this code"):
        _ = surgery.picture
    update, buffers = updates(surgery)[-1]
    assert update["picture"]["fresh"] is False
    shown = np.asarray(PIL.Image.open(io.BytesIO(buffers[-1])))
    assert np.array_equal(shown, np.asarray(before))
    tokenizer.error = None
    assert move(surgery, -1)[0] == 0
    surgery.wait()
    assert updates(surgery)[-1][0]["error"] == ""


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda picture: np.ones((2, 2)), "The tokenizer's codes must be whole numbers"),
        (lambda picture: np.full((2, 2), 64), r"The tokenizer's codes must lie in 0\.\.63"),
        (lambda picture: np.zeros(4, int), "The tokenizer's codes must fill"),
    ],
)
def test_a_tokenizer_that_gives_no_codes_is_named(tokenizer: Blocks, encode: Callable[..., Any], message: str):
    tokenizer.encode = encode  # type: ignore[method-assign]
    surgery = CodeSurgery(tokenizer, RED)
    with pytest.raises(ValueError, match=message):
        _ = surgery.codes
    with pytest.raises(ValueError, match=message):
        surgery.wait()


def test_a_tokenizer_that_gives_no_pictures_is_named(tokenizer: Blocks):
    tokenizer.decode = lambda codes: codes  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(TypeError, match="decode gave a ndarray"):
        CodeSurgery(tokenizer, START).wait()


def test_a_decoder_that_writes_to_its_codes_does_no_harm(tokenizer: Blocks):
    decode = tokenizer.decode

    def careless(codes: np.ndarray) -> PIL.Image.Image:
        picture = decode(codes)
        codes[:] = 0
        return picture

    tokenizer.decode = careless  # type: ignore[method-assign]
    surgery = CodeSurgery(tokenizer, START)
    surgery.wait()
    Painter(surgery)([0], 7)
    surgery.wait()
    assert surgery.codes.ravel().tolist() == [7, *range(1, 12)] and np.array_equal(surgery.original, START)


def test_nothing_open_is_said_so(tokenizer: Blocks):
    surgery = CodeSurgery(tokenizer)
    surgery.wait()
    for name in ("codes", "original", "picture"):
        with pytest.raises(ValueError, match="Nothing is open yet"):
            getattr(surgery, name)
    browser_says(surgery, {"kind": "hello"})
    browser_says(surgery, {"kind": "move", "steps": -1})
    browser_says(surgery, {"kind": "edit", "view": "v", "number": 1, "key": 1, "cells": [0], "codes": 1, "stroke": "s"})
    surgery.wait()
    assert "without a picture" in surgery._line.mimebundle()["text/plain"]


def test_the_first_sample_is_open_at_the_start_and_others_by_name(tokenizer: Blocks):
    samples = {"dark": PIL.Image.new("L", (9, 9), 0), "light": PIL.Image.new("RGBA", (9, 9), "white")}
    surgery = CodeSurgery(tokenizer, samples=samples)
    assert set(surgery.codes.ravel()) == {0}
    browser_says(surgery, {"kind": "sample", "name": "light"})
    assert set(surgery.codes.ravel()) == {63}
    browser_says(surgery, {"kind": "sample", "name": "no such"})
    surgery.wait()
    assert grid(surgery).name == "light"


def test_a_broken_file_is_told_and_loses_nothing(surgery: CodeSurgery):
    Painter(surgery)([0], 50)
    browser_says(surgery, {"kind": "picture", "name": "notes.txt"}, b"not a picture at all")
    with pytest.raises(ValueError, match="not a picture"):
        surgery.wait()
    assert surgery.codes[0, 0] == 50
    browser_says(surgery, {"kind": "picture", "name": "red.png"}, png(RED))
    surgery.wait()
    assert grid(surgery).name == "red.png" and surgery.status == "idle"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"codes": [[0, 64]], "codebook": 64}, r"codes in “a\.json” must lie in 0\.\.63; got 0\.\.64"),
        ({"codes": [[0, 1]], "codebook": 8192}, r"“a\.json” holds codes of a codebook of 8192, and this one has 64"),
        ({"codes": [[0, 1], [2]]}, r"codes in “a\.json” must be whole numbers"),
        ({"codes": [[0, 1.5]]}, r"codes in “a\.json” must be whole numbers"),
        ({"codes": []}, r"codes in “a\.json” must be whole numbers"),
        ({}, r"codes in “a\.json” must be whole numbers"),
    ],
)
def test_codes_from_a_file_are_checked_and_the_file_is_named(surgery: CodeSurgery, content: Any, message: str):
    browser_says(surgery, {"kind": "codes", "name": "a.json", **content})
    with pytest.raises(ValueError, match=message):
        surgery.wait()
    assert np.array_equal(surgery.codes, START)
    assert "\n" not in updates(surgery)[-1][0]["error"]


def test_codes_from_a_file_may_have_any_grid(surgery: CodeSurgery):
    browser_says(surgery, {"kind": "codes", "name": "a.json", "codes": [[1, 2, 3]], "codebook": 64})
    assert surgery.codes.tolist() == surgery.original.tolist() == [[1, 2, 3]]
    browser_says(surgery, {"kind": "codes", "name": "b.json", "codes": [[1, 2, 4]], "codebook": None})
    assert surgery.codes.tolist() == [[1, 2, 4]] and surgery.original.tolist() == [[1, 2, 3]]


def test_a_view_that_comes_late_gets_everything_in_one_message(surgery: CodeSurgery):
    Painter(surgery)([1], 60)
    surgery.wait()
    recorder(surgery).custom.clear()
    browser_says(surgery, {"kind": "hello", "mark": "me-1"})
    surgery._line.settle()
    (update, buffers), *_ = updates(surgery)
    assert (update["samples"], update["codebook"]) == ([], 64)
    assert recorder(surgery).custom[-1][0]["requests"] == {"me": 1}
    now = {key: update["grid"][key] for key in ("rows", "columns", "undo", "redo")}
    assert now == {"rows": 3, "columns": 4, "undo": 1, "redo": 0}
    codes, original = (np.frombuffer(each, "<i4").reshape(3, 4) for each in buffers[:2])
    assert np.array_equal(codes, surgery.codes) and np.array_equal(original, START)
    assert update["picture"] == {"fresh": True, "before": True, "width": 8, "height": 6}
    after, before = (np.asarray(PIL.Image.open(io.BytesIO(each)))[::2, ::2] // 4 for each in buffers[2:])
    assert np.array_equal(after, surgery.codes) and np.array_equal(before, START)


def test_the_picture_before_is_sent_once(surgery: CodeSurgery):
    paint = Painter(surgery)
    for code in range(20, 25):
        paint([0], code)
        surgery.wait()
    carried = [update["picture"]["before"] for update, _ in updates(surgery) if "picture" in update]
    assert carried[0] and sum(carried) == 1
    surgery.show(RED)
    surgery.wait()
    assert updates(surgery)[-1][0].get("picture", {"before": True})["before"]


def test_swatches_are_decoded_when_asked_for_once_and_behind_strokes(
    surgery: CodeSurgery, tokenizer: Blocks, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(code_surgery, "SWATCH_SECONDS", 0.0)
    assert all(codes.shape == START.shape for codes in tokenizer.decoded), "none is decoded before"
    tokenizer.gate.clear()
    tokenizer.reached.clear()
    browser_says(surgery, {"kind": "swatches", "codes": list(range(64))})
    assert tokenizer.reached.wait(120)
    Painter(surgery)([0], 63)
    tokenizer.gate.set()
    surgery.wait()
    order = [codes.shape for codes in tokenizer.decoded]
    assert order.count(START.shape) == 2 and order.index(edits.SWATCH_GRID) < order.index(START.shape, 1) < 5
    assert order.count(edits.SWATCH_GRID) == 64
    browser_says(surgery, {"kind": "swatches", "codes": [3, 3]})
    surgery.wait()
    assert len(tokenizer.decoded) == len(order)
    made = [update["swatches"] for update, _ in updates(surgery) if "swatches" in update]
    assert sorted({code for codes in made for code in codes}) == list(range(64)) and made[-1] == [3]


def test_a_decoder_of_one_shape_only_gives_swatches_of_that_shape_and_a_stubborn_one_none(tokenizer: Blocks):
    decode = tokenizer.decode

    def one_shape(codes: np.ndarray) -> PIL.Image.Image:
        if codes.shape != START.shape or (codes == 9).all():
            raise ValueError("only 3 x 4")
        return decode(codes)

    tokenizer.decode = one_shape  # type: ignore[method-assign]
    surgery = CodeSurgery(tokenizer, START)
    surgery.wait()
    browser_says(surgery, {"kind": "swatches", "codes": [8, 9]})
    surgery.wait()
    update, buffers = next(each for each in reversed(updates(surgery)) if each[0].get("swatches"))
    assert update["swatches"][-1] == 9 and buffers[-1] == b""
    assert surgery.status == "idle", "a code without a swatch is no error"
    asked = [buffer for update, buffers in updates(surgery) if update.get("swatches") for buffer in buffers]
    assert any(buffer.startswith(b"\x89PNG") for buffer in asked)


def test_the_still_has_both_pictures_and_no_html_of_a_name_is_alive(surgery: CodeSurgery):
    surgery.show(RED, '<img src=x onerror="alert(1)">')
    Painter(surgery)([0, 1, 2], 1)
    surgery.wait()
    bundle = surgery._line.mimebundle()
    page = bundle["text/html"]
    assert page.count("<img ") == 2 and "onerror=&quot;" in page
    assert not re.search(r'(?:src|href)="(?!data:image/png;base64,)', page), "the page stands alone"
    assert bundle["text/plain"].endswith(": 3 of 12 cells changed")
    assert bundle[WIDGET_VIEW]["model_id"] == surgery.model_id


def test_the_still_is_made_at_rest_and_not_with_each_stroke(surgery: CodeSurgery):
    lines = lambda: [content for content, _ in recorder(surgery).custom if content["kind"] == "line"]  # noqa: E731
    count = lines()[-1]["revision"]
    paint = Painter(surgery)
    for code in range(30):
        paint([0], code)
        surgery._worker.wait(120)
        surgery._line.settle()
    assert lines()[-1]["revision"] == count
    browser_says(surgery, {"kind": "rest"})
    surgery._line.settle()
    assert lines()[-1]["revision"] == count + 1
    browser_says(surgery, {"kind": "still"})
    surgery._line.settle()
    assert "1 of 12" in lines()[-1]["bundle"]["text/plain"]


def test_quick_strokes_are_answered_once_each(surgery: CodeSurgery):
    paint = Painter(surgery)
    recorder(surgery).custom.clear()
    for code in range(10):
        paint([0], code + 20)
        surgery._worker.wait(120)
        surgery._line.settle()
    assert [update["grid"]["undo"] for update, _ in updates(surgery)] == list(range(1, 11))


def test_a_slow_decoder_is_announced_and_the_view_heard_meanwhile(surgery: CodeSurgery, tokenizer: Blocks):
    surgery._seconds = 60.0  # as if the last picture had taken so long
    tokenizer.gate.clear()
    Painter(surgery)([0], 3)
    eventually(lambda: surgery.status == "working")
    assert updates(surgery)[-1][0]["applied"] == {"view-1": 1}
    with pytest.raises(TimeoutError, match=r"not decoded after 0\.05 s"):
        surgery.wait(0.05)
    tokenizer.gate.set()
    surgery.wait()
    assert surgery.status == "idle"


def test_traits_hold_little(surgery: CodeSurgery):
    state = {name: value for name, value in surgery.get_state().items() if name not in ("_esm", "_css", "layout")}
    assert len(json.dumps(state, default=str)) < 1000


def test_the_history_forgets_its_oldest_steps_and_holds_its_place():
    history = UndoHistory[Grid]()
    assert history.now is None and history.ways == (0, 0)
    history.move(-1)
    codes = grid_of([[1]], None)
    for number in range(STEPS + 20):
        history.put(Grid(codes, codes, str(number)))
    assert history.ways == (STEPS, 0)
    history.move(-10_000)
    assert history.now is not None and history.now.name == "19" and history.ways == (0, STEPS)
