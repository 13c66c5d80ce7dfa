"""The codebook atlas without a browser: where codes lie on the map, what pictures tell of them, and what is sent."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageColor
import pytest
from widget_support import browser_says, eventually, recorder

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.records import CodebookUsage
from chameleon_widgets import threads
from chameleon_widgets.images import codebook_map
from chameleon_widgets.images.codebook_atlas import CodebookAtlas
from chameleon_widgets.stills import WIDGET_VIEW

pytestmark = pytest.mark.usefixtures("comms")
SIDE = 4  # pixels of a cell
JS = Path(__file__).parents[1] / "widgets" / "js"


class Levels:
    """A tokenizer of grey levels: 16 codes, a code for each 4x4 cell. Each decoded cell tells where it stood."""

    def __init__(self) -> None:
        self.codebook: Any = np.stack([np.arange(16.0), np.zeros(16)], 1)
        self.decoded: list[list[list[int]]] = []
        self.broken: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def hold(self) -> None:
        assert self.gate.wait(120)

    def encode(self, picture: PIL.Image.Image) -> np.ndarray:
        self.hold()
        if picture.width == 13:
            raise RuntimeError("thirteen pixels\nare <unlucky>")
        size = (picture.width // SIDE, picture.height // SIDE)
        return np.asarray(picture.convert("L").resize(size, PIL.Image.Resampling.BOX), np.int64) // 16

    def decode(self, codes: np.ndarray) -> PIL.Image.Image:
        self.decoded.append(codes.tolist())
        if self.broken is not None:
            raise self.broken
        row, column = np.indices(codes.shape)
        cells = np.stack([codes * 10, row * 50, column * 70], -1).astype(np.uint8)
        return PIL.Image.fromarray(cells.repeat(SIDE, 0).repeat(SIDE, 1))


def grey(*rows: list[int]) -> PIL.Image.Image:
    """A picture whose cells have these codes."""
    cells = np.array(rows, np.uint8) * 16 + 8
    return PIL.Image.fromarray(cells.repeat(SIDE, 0).repeat(SIDE, 1)).convert("RGB")


TWO = {"dark": grey([0, 0, 1], [0, 2, 1]), "light": grey([14, 14], [14, 0])}


def sent(atlas: CodebookAtlas, kind: str) -> list[tuple[dict[str, Any], list[bytes]]]:
    return [(content, buffers) for content, buffers in recorder(atlas).custom if content["kind"] == kind]


def opened(data: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(data))


def sheet(size: int, width: int, seed: int = 0) -> np.ndarray:
    """Codes on a curved sheet in a space of `width` dimensions."""
    rng = np.random.default_rng(seed)
    return np.sin(rng.uniform(-3, 3, (size, 2)) @ rng.normal(size=(2, width)) + rng.normal(size=width))


def nearness(book_NC: np.ndarray) -> float:
    """The mean distance of neighbours on the map, as a share of that of random pairs."""
    order_N, columns = codebook_map.layout(book_NC), codebook_map.columns_of(len(book_NC))
    at = np.arange(len(book_NC))
    right, below = at[(at + 1) % columns > 0][:-1], at[: len(at) - columns]
    pairs = np.concatenate([np.stack([right, right + 1]), np.stack([below, below + columns])], 1)
    rng = np.random.default_rng(0)
    first, second = (
        np.linalg.norm(np.diff(book_NC[each], axis=0)[0], axis=1).mean()
        for each in (order_N[pairs], rng.integers(len(book_NC), size=(2, 5000)))
    )
    return float(first / second)


def test_neighbours_on_the_map_are_much_nearer_in_the_codebook_than_random_pairs():
    assert nearness(sheet(1000, 24)) < 0.4
    assert nearness(np.asarray(Chameleon.load("tiny").tokenizer.image.codebook)) < 0.25
    clusters = np.random.default_rng(0).normal(size=(20, 32)).repeat(50, 0) * 3
    assert nearness(clusters + np.random.default_rng(1).normal(size=clusters.shape)) < 0.6


@pytest.mark.parametrize("size", [2, 3, 5, 12, 97, 1000])
@pytest.mark.parametrize("width", [1, 2, 40])
def test_every_code_has_one_cell_of_a_map_wider_than_high(size: int, width: int):
    order_N = codebook_map.layout(np.random.default_rng(0).normal(size=(size, width)).astype(np.float32))
    assert sorted(order_N) == list(range(size))
    columns = codebook_map.columns_of(size)
    rows = -(-size // columns)
    assert columns * (rows - 1) < size <= columns * rows and rows <= columns * 1.01


def test_a_line_of_codes_is_laid_out_in_its_order():
    order_N = codebook_map.layout(np.arange(100.0)[:, None] ** 2)
    columns = codebook_map.columns_of(100)
    means = [order_N[np.arange(100) % columns == column].mean() for column in range(columns)]
    assert means == sorted(means) or means == sorted(means, reverse=True)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e37])
def test_codes_that_are_equal_tiny_or_huge_still_get_their_cells(scale: float):
    book_NC = (np.random.default_rng(0).normal(size=(50, 8)) * scale).astype(np.float32)
    assert sorted(codebook_map.layout(book_NC)) == list(range(50))


def test_the_nearest_codes_are_those_of_least_distance_without_the_code_itself():
    book_NC = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    book_NC[7] = book_NC[3]
    near = codebook_map.nearest_codes(book_NC, 3, 8)
    assert near[0] == (7, 0.0) and 3 not in [code for code, _ in near]
    distances = sorted(float(np.linalg.norm(each - book_NC[3])) for code, each in enumerate(book_NC) if code != 3)
    assert [distance for _, distance in near] == pytest.approx(distances[:8])
    assert len(codebook_map.nearest_codes(book_NC[:3], 0, 8)) == 2


@pytest.mark.parametrize(
    ("codebook", "words"),
    [
        (None, "None"),
        (np.zeros(8), r"shape \(8,\)"),
        (np.zeros((1, 8)), "two codes"),
        (np.zeros((4, 0)), r"\(4, 0\)"),
        ([["a", "b"]], "array of floats"),
        (np.array([[0.0, 1], [np.nan, 1], [0, np.inf]]), "2 of 3 codes, code 1 first"),
    ],
)
def test_a_codebook_that_is_none_is_refused_with_the_reason(codebook: Any, words: str):
    tokenizer = Levels()
    tokenizer.codebook = codebook
    with pytest.raises(ValueError, match=words):
        CodebookAtlas(tokenizer)


def test_a_tokenizer_without_a_codebook_and_a_usage_of_another_size_are_refused():
    with pytest.raises(ValueError, match="codebook is None"):
        CodebookAtlas(object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="counts 9 codes, and the codebook has 16"):
        CodebookAtlas(Levels(), usage=CodebookUsage(np.ones(9, np.int64)))
    with pytest.raises(TypeError, match=r"“picture 2” is a str.*PIL\.Image\.open"):
        CodebookAtlas(Levels(), pictures=[TWO["dark"], "light.png"])  # type: ignore[list-item]


def test_shades_darken_with_counts_and_dead_codes_alone_are_crossed_out():
    shades = codebook_map.shades(np.array([1, 2, 10, 100, 5000])).astype(int)
    assert (np.diff(shades @ [299, 587, 114]) < 0).all()
    counts_N = np.array([0, 1, 9, 0, 30, 2])
    picture = np.asarray(codebook_map.draw(np.arange(6), counts_N))
    side = picture.shape[1] // codebook_map.columns_of(6)
    dead = np.array(PIL.ImageColor.getrgb(codebook_map.DEAD))
    for code, count in enumerate(counts_N):
        row, column = divmod(code, codebook_map.columns_of(6))
        cell = picture[row * side : (row + 1) * side, column * side : (column + 1) * side]
        assert (cell == dead).all(-1).any() == (count == 0)
    blank = np.asarray(codebook_map.draw(np.arange(6), np.zeros(6, int)))
    assert not (blank == dead).all(-1).any(), "where nothing was looked at, nothing is dead"


def test_pictures_give_the_usage_of_their_codes():
    tokenizer = Levels()
    atlas = CodebookAtlas(tokenizer, pictures=TWO)
    atlas.wait()
    expected = CodebookUsage.of([tokenizer.encode(each) for each in TWO.values()], 16)
    assert atlas.usage.counts_N.tolist() == expected.counts_N.tolist()
    assert atlas.usage.curve == expected.curve == ((6, 3), (10, 4))
    facts, (counts,) = sent(atlas, "usage")[-1]
    assert np.frombuffer(counts, "<f8").tolist() == expected.counts_N.tolist()
    assert (facts["dead"], facts["tokens"], facts["names"]) == (12, 10, ["dark", "light"])
    assert facts["measured"] == [[6, 3 / 16], [10, 4 / 16]]
    assert facts["even"] == facts["evenly"][-1][1] == expected.uniform_usage() and atlas.status == "idle"


def test_a_usage_measured_elsewhere_takes_the_place_of_the_pictures():
    usage = CodebookUsage(np.arange(16) * 10**10)
    atlas = CodebookAtlas(Levels(), pictures=list(TWO.values()), usage=usage)
    atlas.wait()
    assert atlas.usage is usage
    facts, (counts,) = sent(atlas, "usage")[-1]
    assert facts["external"] and np.frombuffer(counts, "<f8").tolist() == usage.counts_N.tolist()
    assert facts["names"] == ["picture 1", "picture 2"], "they still show where a code is"


def test_nothing_seen_is_no_error_and_nothing_is_called_dead_by_its_still():
    atlas = CodebookAtlas(Levels())
    atlas.selected = 3
    atlas.wait()
    assert sent(atlas, "usage")[-1][0]["perplexity"] == 0
    assert sent(atlas, "code")[-1][0]["count"] == 0
    assert atlas._line.mimebundle()["text/plain"] == "Codebook atlas. 16 codes, none seen yet."


def test_two_codes_are_enough():
    tokenizer = Levels()
    tokenizer.codebook = tokenizer.codebook[:2]
    atlas = CodebookAtlas(tokenizer, pictures=[grey([0, 1])])
    atlas.selected = 1
    atlas.wait()
    assert sent(atlas, "code")[-1][0]["near"] == [[0, 1.0]]


def test_the_detail_of_a_code_has_its_nearest_codes_real_patches_and_decoded_middle():
    atlas = CodebookAtlas(Levels(), pictures=TWO)
    atlas.wait()
    atlas.selected = np.int64(0)
    atlas.wait()
    detail, patches = sent(atlas, "code")[-1]
    assert [code for code, _ in detail["near"]] == [1, 2, 3, 4, 5, 6, 7, 8] and detail["count"] == 4
    assert detail["places"] == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 1, 1]]
    for (picture, row, column), data in zip(detail["places"], patches, strict=True):
        box = (column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE)
        assert opened(data).tobytes() == list(TWO.values())[picture].crop(box).tobytes()
    shown = {
        code: data
        for content, buffers in sent(atlas, "patches")
        for code, data in zip(content["codes"], buffers, strict=True)
    }
    assert sorted(shown) == list(range(9))
    assert opened(shown[4]).size == (SIDE, SIDE) and opened(shown[4]).getpixel((0, 0)) == (40, 50, 70)


def test_of_many_places_a_dozen_from_all_the_pictures_are_shown():
    atlas = CodebookAtlas(Levels(), pictures=[grey([5] * 10) for _ in range(30)])
    atlas.selected = 5
    atlas.wait()
    detail, patches = sent(atlas, "code")[-1]
    assert len(patches) == 12 and detail["count"] == 300
    assert len({picture for picture, _, _ in detail["places"]}) == 12


def test_pictures_are_cut_as_the_tokenizer_prepares_them():
    class Preparing(Levels):
        def prepare(self, picture: PIL.Image.Image) -> PIL.Image.Image:
            return picture.resize((2 * SIDE, 2 * SIDE), PIL.Image.Resampling.NEAREST)

    atlas = CodebookAtlas(Preparing(), pictures={"one": PIL.Image.new("L", (99, 51), 120)})
    atlas.selected = 7
    atlas.wait()
    content, (picture, codes) = sent(atlas, "picture")[-1]
    assert (content["rows"], content["columns"]) == (2, 2) and opened(picture).size == (8, 8)
    assert np.frombuffer(codes, "<u4").tolist() == [7] * 4
    assert sent(atlas, "code")[-1][0]["count"] == 4


@pytest.mark.parametrize(("value", "error"), [(16, ValueError), (-1, ValueError), ("3", TypeError), (2.5, TypeError)])
def test_what_is_no_code_cannot_be_selected(value: Any, error: type[Exception]):
    atlas = CodebookAtlas(Levels())
    with pytest.raises(error):
        atlas.selected = value
    assert atlas.selected is None


def test_the_browser_selects_and_what_it_cannot_mean_is_left_alone():
    atlas = CodebookAtlas(Levels(), pictures=TWO)
    atlas.wait()
    chosen: list[int] = []
    atlas.observe(lambda change: chosen.append(change["new"]), "selected")
    for value in (14, 16, -1, "2", None):
        browser_says(atlas, {"kind": "select", "value": value})
    for value in (1, 2, -1, None):
        browser_says(atlas, {"kind": "picture", "value": value})
    atlas.wait()
    assert atlas.selected == 14 and chosen == [14]
    assert sent(atlas, "code")[-1][0]["code"] == 14 and sent(atlas, "picture")[-1][0]["at"] == 1


def test_a_choice_can_be_taken_back():
    atlas = CodebookAtlas(Levels(), pictures=TWO)
    atlas.selected = 3
    atlas.selected = None
    atlas.wait()
    assert sent(atlas, "code")[-1][0] == {"kind": "code", "code": None, "near": [], "places": [], "count": 0}


def test_a_click_sends_nothing_the_size_of_the_codebook():
    tokenizer = Levels()
    tokenizer.codebook = np.random.default_rng(0).normal(size=(2000, 4))
    atlas = CodebookAtlas(tokenizer, pictures=TWO)
    browser_says(atlas, {"kind": "hello"})
    atlas.wait()
    assert [len(buffers[0]) for _, buffers in sent(atlas, "map")][-1] == 4 * 2000
    recorder(atlas).custom.clear()
    browser_says(atlas, {"kind": "select", "value": 3, "mark": "me-2"})
    atlas.wait()
    assert {content["kind"] for content, _ in recorder(atlas).custom} == {"code", "patches", "line"}
    assert sum(len(data) for _, buffers in recorder(atlas).custom for data in buffers) < 4000


def test_colours_are_decoded_only_when_asked_for_and_a_choice_comes_in_between(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("chameleon_widgets.images.codebook_study.SLICE", 0.0)
    tokenizer = Levels()
    atlas = CodebookAtlas(tokenizer, pictures=TWO)
    atlas.wait()
    assert not tokenizer.decoded
    tokenizer.gate.clear()
    atlas._worker.submit(tokenizer.hold)
    browser_says(atlas, {"kind": "colours", "value": True})
    browser_says(atlas, {"kind": "colours", "value": True})  # asked twice, done once
    browser_says(atlas, {"kind": "select", "value": 9})
    tokenizer.gate.set()
    atlas.wait()
    order = [codes[1][1] for codes in tokenizer.decoded]
    assert all(codes == [[codes[0][0]] * 3] * 3 for codes in tokenizer.decoded)
    assert sorted(order) == list(range(16)), "none is decoded twice"
    assert order.index(9) <= 2, "the chosen code did not wait for the colours"
    colours = np.frombuffer(sent(atlas, "colours")[-1][1][0], np.uint8).reshape(16, 4)
    assert colours.tolist() == [[code * 10, 50, 70, 255] for code in range(16)]


def test_colours_no_longer_looked_at_are_not_decoded_until_they_are_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("chameleon_widgets.images.codebook_study.SLICE", 0.0)
    tokenizer = Levels()
    atlas = CodebookAtlas(tokenizer)
    tokenizer.gate.clear()
    atlas._worker.submit(tokenizer.hold)
    for wanted in (True, False):
        browser_says(atlas, {"kind": "colours", "value": wanted})
    tokenizer.gate.set()
    atlas.wait()
    assert len(tokenizer.decoded) < 16 and atlas.status == "idle"
    browser_says(atlas, {"kind": "colours", "value": True})
    atlas.wait()
    assert len(tokenizer.decoded) == 16


def test_a_picture_that_cannot_be_encoded_is_named_and_the_others_count():
    pictures = {"bad": PIL.Image.new("RGB", (13, 8)), "empty": PIL.Image.new("RGB", (0, 5)), **TWO}
    atlas = CodebookAtlas(Levels(), pictures=pictures)
    with pytest.raises(RuntimeError, match="thirteen"):
        atlas.wait()
    assert atlas.usage.tokens == 10 and atlas.status == "error"
    trouble = sent(atlas, "state")[-1][0]["trouble"]
    assert trouble[0] == "“bad” could not be encoded: RuntimeError: thirteen pixels are <unlucky>"
    assert trouble[1].startswith("“empty” could not be encoded: “empty” is empty")


@pytest.mark.parametrize("codes", [np.full((2, 2), 16), np.zeros(4, int), np.zeros((2, 2)), np.zeros((0, 3), int)])
def test_codes_that_are_none_are_told(codes: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    tokenizer = Levels()
    monkeypatch.setattr(tokenizer, "encode", lambda picture: codes)
    atlas = CodebookAtlas(tokenizer, pictures=TWO)
    with pytest.raises(ValueError, match="odes"):
        atlas.wait()
    assert atlas.usage.tokens == 0


def test_a_tokenizer_that_cannot_decode_says_so_and_the_rest_works_until_it_can():
    tokenizer = Levels()
    tokenizer.broken = ValueError("There is no decoder here.")
    atlas = CodebookAtlas(tokenizer, pictures=TWO)
    atlas.selected = 0
    browser_says(atlas, {"kind": "colours", "value": True})
    with pytest.raises(ValueError, match="no decoder"):
        atlas.wait()
    assert sent(atlas, "state")[-1][0]["trouble"] == ["A code could not be decoded: There is no decoder here."]
    assert sent(atlas, "code")[-1][0]["count"] == 4 and not sent(atlas, "patches")
    tokenizer.broken = None
    browser_says(atlas, {"kind": "select", "value": 0})
    atlas.wait()
    assert sent(atlas, "patches") and atlas.status == "idle"


def test_a_view_that_comes_late_gets_everything():
    atlas = CodebookAtlas(Levels(), pictures=TWO)
    atlas.selected = 2
    browser_says(atlas, {"kind": "colours", "value": True})
    atlas.wait()
    recorder(atlas).custom.clear()
    browser_says(atlas, {"kind": "hello", "mark": "me-1"})
    atlas.wait()
    kinds = [content["kind"] for content, _ in recorder(atlas).custom]
    assert kinds == ["state", "map", "usage", "picture", "code", "patches", "colours", "line"]
    assert recorder(atlas).custom[-1][0]["requests"] == {"me": 1}
    order = np.frombuffer(sent(atlas, "map")[-1][1][0], "<u4")
    assert order.tolist() == codebook_map.layout(np.asarray(Levels().codebook, np.float32)).tolist()


def test_handlers_return_while_the_tokenizer_is_busy_and_only_the_pump_sends():
    tokenizer = Levels()
    tokenizer.gate.clear()
    atlas = CodebookAtlas(tokenizer, pictures=TWO)
    for kind in ("hello", "select", "colours", "picture", "still", "nonsense"):
        browser_says(atlas, {"kind": kind, "value": 1})  # would hang here
    atlas._line.settle()
    assert atlas.status == "working" and sent(atlas, "state")[-1][0]["doing"]
    eventually(lambda: "Encoding" in atlas._study.doing)  # the map is laid out, and the gate is shut
    with pytest.raises(TimeoutError, match="Encoding picture 1 of 2"):
        atlas.wait(0.01)
    tokenizer.gate.set()
    atlas.wait()
    assert recorder(atlas).threads == {"codebook atlas pump"}


def test_running_a_notebook_cell_again_ends_what_its_last_run_began(monkeypatch: pytest.MonkeyPatch):
    run = {"run": "run-1"}
    monkeypatch.setattr(threads, "_running_cell", lambda: ("cell-1", run["run"]))
    tokenizer = Levels()
    tokenizer.gate.clear()
    first = CodebookAtlas(tokenizer, pictures=[TWO["dark"]] * 50)
    run["run"] = "run-2"
    second = CodebookAtlas(Levels(), pictures=TWO)
    tokenizer.gate.set()
    first.wait()
    second.wait()
    assert first.usage.tokens <= 6 and second.usage.tokens == 10


def test_the_still_is_the_map_with_its_facts_and_stands_alone():
    atlas = CodebookAtlas(Levels(), pictures=TWO)
    atlas.wait()
    bundle = atlas._line.mimebundle()
    assert bundle[WIDGET_VIEW]["model_id"] == atlas.model_id
    assert bundle["text/html"].count('<img src="data:image/png;base64,') == 1
    assert "4 of 16 codes used (25.0%), 12 dead, perplexity 4, over 10 tokens" in bundle["text/plain"]
    assert sent(atlas, "line")[-1][0]["revision"] > 0


def test_traits_hold_little():
    atlas = CodebookAtlas(Levels(), pictures=TWO)
    atlas.wait()
    state = {name: value for name, value in atlas.get_state().items() if name not in ("_esm", "_css", "layout")}
    assert len(json.dumps(state, default=str)) < 1000
