"""The inspector without a browser: what is sent of a document, rows, a token and a knock-out, and what is refused."""

from __future__ import annotations

import io
import math
import re
import threading

import numpy as np
import PIL.Image
import pytest
from widget_support import browser_says, eventually, recorder

from chameleon_lab.readings import TokenReading
from chameleon_lab.vocabulary import Modality
from chameleon_widgets.inspect.inspector import Inspector

pytestmark = pytest.mark.usefixtures("comms")
LAYERS, HEADS = 2, 3


class Hall:
    """A look at a document that no model reads: begin, <b>, an image of 2 x 2 (codes 4 to 7), and a last word.

    Every answer says in its numbers what was asked for.
    """

    guide: object | None = None
    depth = (LAYERS, HEADS)

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken: Exception | None = None
        names = ["begin_document", "<b>", "begin_image", "code 4", "code 5", "code 6", "code 7", "end_image", "done"]
        kinds = [
            Modality.SPECIAL,
            Modality.TEXT,
            Modality.SPECIAL,
            *[Modality.IMAGE] * 4,
            Modality.SPECIAL,
            Modality.TEXT,
        ]
        self.readings = [
            TokenReading(at, self.token(at), kind, words, *self.cell(at), *self.measures(at))
            for at, (words, kind) in enumerate(zip(names, kinds, strict=True))
        ]

    @staticmethod
    def token(at: int) -> int:
        return 100 + at

    @staticmethod
    def cell(at: int) -> tuple[int | None, int | None, int | None]:
        return (0, *divmod(at - 3, 2)) if 3 <= at < 7 else (None, None, None)

    @staticmethod
    def measures(at: int) -> tuple[float | None, int | None, float | None]:
        return (-at / 2, at, 1.5) if at else (None, None, None)

    def words(self, token: int) -> str:
        return self.readings[token - 100].words

    def alternatives(self, position: int, k: int) -> list[tuple[int, float]]:
        return [(100 + at, 0.5 / (at + 1)) for at in range(3, 3 + k)][:4]

    def guided(self, position: int, k: int) -> list[tuple[int, float, float]]:
        return [(103, 0.75, 0.5), (104, 0.25, 0.125)]

    def heads(self, layer: int, position: int) -> np.ndarray:
        self.calls.append(("heads", layer, position))
        assert self.gate.wait(20)
        if self.broken:
            raise self.broken
        return np.full((HEADS, position + 1), 1 / (position + 1)) + np.arange(HEADS)[:, None] * 0

    def readers(self, layer: int, head: int, position: int) -> np.ndarray:
        return np.full(len(self.readings) - position, layer + head / 10)

    def rollout(self, position: int) -> np.ndarray:
        return np.eye(1, position + 1, position)[0]

    def rollout_readers(self, position: int) -> np.ndarray:
        return np.eye(1, len(self.readings) - position)[0]

    def image(self, image: int) -> PIL.Image.Image:
        return PIL.Image.new("RGB", (8, 8), (9, 9, 9))

    def picture(self, layer: int, image: int) -> PIL.Image.Image:
        return PIL.Image.new("RGB", (8, 8), (layer, image, 7))

    def swatch(self, token: int, position: int) -> PIL.Image.Image | None:
        return PIL.Image.new("RGB", (4, 4), (token, position, 0)) if 103 <= token < 107 else None

    def without(self, position: int, of: int) -> float:
        return position - of / 10


@pytest.fixture
def hall() -> Hall:
    return Hall()


@pytest.fixture
def inspector(hall: Hall) -> Inspector:
    inspector = Inspector(hall)
    inspector.wait(20)
    return inspector


def answers(inspector: Inspector, kind: str):
    inspector.wait(20)
    return [(content, buffers) for content, buffers in recorder(inspector).custom if content["kind"] == kind]


def ask(inspector: Inspector, kind: str, **content: object) -> None:
    browser_says(inspector, {"kind": kind, **content})


def pixel(png: bytes) -> object:
    return PIL.Image.open(io.BytesIO(png)).convert("RGB").getpixel((0, 0))


def test_a_view_is_given_the_document_whenever_it_comes(inspector: Inspector):
    before = len(answers(inspector, "document"))
    ask(inspector, "hello")
    content, (logs, entropies, picture) = answers(inspector, "document")[-1]
    assert len(answers(inspector, "document")) == before + 1
    assert [token["words"] for token in content["tokens"]][:2] == ["begin_document", "<b>"]
    assert [token["sink"] for token in content["tokens"]] == [True, False, True, *[False] * 6]
    assert [(token["row"], token["column"]) for token in content["tokens"] if token["image"] == 0] == [
        (0, 0), (0, 1), (1, 0), (1, 1)
    ]  # fmt: skip
    assert (content["layers"], content["heads"], content["images"]) == (LAYERS, HEADS, 1)
    np.testing.assert_array_equal(np.frombuffer(logs, "<f4"), [math.nan, *(-at / 2 for at in range(1, 9))])
    assert np.isnan(np.frombuffer(entropies, "<f4")[0]) and pixel(picture) == (9, 9, 9)


def test_rows_come_for_all_heads_of_a_layer_and_columns_for_one(inspector: Inspector):
    ask(inspector, "rows", way="from", layer=1, head=2, position=3)
    content, buffers = answers(inspector, "rows")[-1]
    assert (content["layer"], content["position"], content["heads"]) == (1, 3, [0, 1, 2])
    assert [np.frombuffer(row, "<f4").tolist() for row in buffers] == [[0.25] * 4] * HEADS
    ask(inspector, "rows", way="by", layer=1, head=2, position=6)
    content, (column,) = answers(inspector, "rows")[-1]
    assert content["heads"] == [2] and np.allclose(np.frombuffer(column, "<f4"), [1.2] * 3)
    for way, length in (("from", 5), ("by", 5)):
        ask(inspector, "rows", way=way, layer=-1, head=0, position=4)
        content, (row,) = answers(inspector, "rows")[-1]
        assert content["way"] == way and len(np.frombuffer(row, "<f4")) == length


def test_of_hovers_that_wait_only_the_newest_is_computed(hall: Hall, inspector: Inspector):
    hall.gate.clear()
    ask(inspector, "rows", way="from", layer=0, head=0, position=1)
    eventually(lambda: ("heads", 0, 1) in hall.calls)
    for position in (2, 3, 4, 5):
        ask(inspector, "rows", way="from", layer=0, head=0, position=position)
    hall.gate.set()
    assert [content["position"] for content, _ in answers(inspector, "rows")] == [1, 5]


def test_the_chosen_token_comes_with_its_alternatives_and_their_looks(hall: Hall, inspector: Inspector):
    ask(inspector, "select", position=8)
    content, looks = answers(inspector, "detail")[-1]
    assert inspector.selected == content["position"] == 8
    assert [each["words"] for each in content["alternatives"]] == ["code 4", "code 5", "code 6", "code 7", "done"]
    assert [each["chosen"] for each in content["alternatives"]] == [*[False] * 4, True]
    assert content["alternatives"][-1]["probability"] == pytest.approx(math.exp(-4))
    assert [pixel(look) for look in looks] == [(token, 8, 0) for token in (103, 104, 105, 106)]
    assert np.allclose(content["shares"], [[[2 / 9, 4 / 9, 2 / 9, 1 / 9]] * HEADS] * LAYERS, atol=1e-3)
    hall.guide = object()
    inspector.selected = 3
    content, looks = answers(inspector, "detail")[-1]
    assert [(each["probability"], each["guided"]) for each in content["alternatives"]] == [(0.5, 0.75), (0.125, 0.25)]
    inspector.selected = 0
    assert answers(inspector, "detail")[-1][0]["alternatives"] == []
    inspector.selected = None
    assert answers(inspector, "detail")[-1][0]["position"] is None


def test_the_lens_and_knock_outs_answer_with_what_was_asked(inspector: Inspector):
    ask(inspector, "lens", image=0, layer=1)
    ((content, (picture,)),) = answers(inspector, "lens")
    assert (content["image"], content["layer"], pixel(picture)) == (0, 1, (1, 0, 7))
    ask(inspector, "without", position=2, of=8)
    ((content, _),) = answers(inspector, "knockout")
    assert (content["position"], content["of"], content["nats"]) == (2, 8, pytest.approx(1.2))


@pytest.mark.parametrize(
    "request_",
    [
        {"kind": "rows", "way": "sideways", "layer": 0, "head": 0, "position": 1},
        {"kind": "rows", "way": "from", "layer": LAYERS, "head": 0, "position": 1},
        {"kind": "rows", "way": "from", "layer": -2, "head": 0, "position": 1},
        {"kind": "rows", "way": "from", "layer": 0, "head": HEADS, "position": 1},
        {"kind": "rows", "way": "from", "layer": 0, "head": 0, "position": 9},
        {"kind": "rows", "way": "from", "layer": 0, "head": 0},
        {"kind": "select", "position": -1},
        {"kind": "select", "position": "<img src=x>"},
        {"kind": "select", "position": True},
        {"kind": "lens", "image": 1, "layer": 0},
        {"kind": "lens", "image": 0, "layer": 0.5},
        {"kind": "without", "position": 4, "of": 4},
        {"kind": "without", "position": None, "of": 4},
    ],
    ids=str,
)
def test_what_there_is_not_is_refused_in_words_and_computed_by_nobody(hall, inspector, request_):
    calls, count = len(hall.calls), len(recorder(inspector).custom)
    browser_says(inspector, request_)
    inspector.wait(20)
    (line,) = [content for content, _ in recorder(inspector).custom[count:]]
    assert line["kind"] == "line" and re.match("There is no|Attention is read|A token depends", line["trouble"])
    assert len(hall.calls) == calls and inspector.selected is None


def test_a_look_that_raises_is_told_and_the_next_answer_takes_that_away(hall: Hall, inspector: Inspector):
    hall.broken = RuntimeError("no more memory")
    ask(inspector, "rows", way="from", layer=0, head=0, position=1)
    assert answers(inspector, "state")[-1][0]["trouble"] == "RuntimeError: no more memory"
    hall.broken = None
    ask(inspector, "rows", way="from", layer=0, head=0, position=1)
    assert answers(inspector, "state")[-1][0]["trouble"] == ""
    assert len(answers(inspector, "rows")) == 1


def test_an_inspector_that_has_ended_computes_nothing_and_still_shows_the_document(hall: Hall, inspector: Inspector):
    inspector._line.end()
    calls = len(hall.calls)
    ask(inspector, "rows", way="from", layer=0, head=0, position=1)
    ask(inspector, "without", position=1, of=4)
    assert not answers(inspector, "rows") and not answers(inspector, "knockout") and len(hall.calls) == calls
    count = len(answers(inspector, "document"))
    ask(inspector, "hello")
    assert len(answers(inspector, "document")) == count + 1


def test_only_positions_can_be_selected(inspector: Inspector):
    for value in (9, -1):
        with pytest.raises(ValueError, match=f"There is no position {value}: they go from 0 to 8"):
            inspector.selected = value
    with pytest.raises(TypeError):
        inspector.selected = "3"


def test_the_still_shows_words_as_text_and_the_image(inspector: Inspector):
    inspector._line.settle()
    bundle = inspector._line.mimebundle()
    assert "&lt;b&gt;" in bundle["text/html"] and "<b>" not in bundle["text/html"]
    assert bundle["text/html"].count("data:image/png") == 1 and "code 4" not in bundle["text/html"]
    assert bundle["text/plain"].startswith("Inspector. A document of 9 tokens, 2.25 nats a token")


def test_an_image_under_way_has_cells_without_a_look(hall: Hall, monkeypatch: pytest.MonkeyPatch):
    def refuse(image: int) -> PIL.Image.Image:
        raise ValueError(f"Image {image} has 3 of its 4 codes: it is not whole.")

    monkeypatch.setattr(hall, "image", refuse)
    inspector = Inspector(hall)
    content, (_, _, picture) = answers(inspector, "document")[-1]
    assert picture == b"" and sum(token["image"] == 0 for token in content["tokens"]) == 4
    assert "<img" not in inspector._line.mimebundle()["text/html"]
