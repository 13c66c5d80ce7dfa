"""The infill canvas without a browser: what hiding makes of a document, and what fillings make of it."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator

import numpy as np
import PIL.Image
import pytest
from widget_support import RED, browser_says, eventually, recorder

from chameleon_lab.documents import Blank, Document, EndTurn, Image, Text, rectangle
from chameleon_lab.records import FilledSegment
from chameleon_widgets import InfillCanvas
from chameleon_widgets.infill.draft import CanvasDraft, split_words
from chameleon_widgets.pictures import png

pytestmark = pytest.mark.usefixtures("comms")

CODES = np.arange(64).reshape(8, 8)


class Codec:
    """Every picture has the codes 0 to 63; a grid of codes is drawn in one colour, its sum's."""

    def encode(self, picture: PIL.Image.Image) -> np.ndarray:
        return CODES

    def decode(self, codes: np.ndarray) -> PIL.Image.Image:
        return PIL.Image.new("RGB", (64, 64), (int(codes.sum()) % 256, 80, 80))


class Filler:
    """Fills a blank with a word of its seed, and hidden cells with the code 7; waits where it is told to."""

    def __init__(self) -> None:
        self.gate, self.reached = threading.Event(), threading.Event()
        self.gate.set()
        self.documents: list[Document] = []

    def __call__(self, document: Document, *, seed: int = 0) -> Iterator[FilledSegment]:
        self.documents.append(document)
        for place, segment in enumerate(document):
            if isinstance(segment, Blank):
                yield FilledSegment(place, Text(f" <b>word{seed}</b> "), True)
                self.reached.set()
                self.gate.wait(120)
            elif isinstance(segment, Image) and segment.mask is not None:
                assert segment.codes is not None
                codes = np.where(np.asarray(segment.mask), 7, segment.codes)
                yield FilledSegment(place, Image(Codec().decode(codes), codes), True)


def canvas_of(*parts: object, fill: Filler | None = None, **options: int) -> InfillCanvas:
    return InfillCanvas(fill or Filler(), Codec(), Document.of(*parts), **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_hidden_the_rest_stays_and_a_filling_of_the_same_gives_the_document_back(seed: int):
    chance = random.Random(seed)
    spaces = ["", " ", "  ", "\n"]
    texts = ["".join(chance.choice(spaces[1:]) + "x" * chance.randint(1, 3) for _ in range(chance.randint(1, 6)))[1:]]
    draft = CanvasDraft.of(Document.of(texts[0] or "x", RED, EndTurn()), Codec())
    words, cells = draft.size(0), draft.size(1)
    hidden = [number for number in range(words) if chance.random() < 0.5] or [0]
    painted = chance.sample(range(cells), chance.randint(0, cells))
    draft = draft.hide(0, hidden).hide(1, painted)
    document, places = draft.blanked()
    assert len(places) == len(document)
    originals = split_words(texts[0] or "x")
    fillings: dict[int, Text | Image] = {}
    for at, (segment, place) in enumerate(zip(document, places, strict=True)):
        if isinstance(segment, Blank):
            assert set(range(place.first, place.stop)) <= set(hidden)
            fillings[at] = Text("".join(originals[place.first : place.stop]).strip())
        elif isinstance(segment, Image):
            assert (
                segment.mask is None
                if not painted
                else sorted(np.flatnonzero(np.asarray(segment.mask))) == sorted(painted)
            )
            fillings[at] = Image(segment.picture, segment.codes)
        elif isinstance(segment, Text):
            assert not set(range(place.first, place.stop)) & set(hidden)
    again = draft.filled(places, fillings)
    assert [type(each) for each in again.document] == [type(each) for each in draft.document]
    assert again.document.segments[0].text.split() == draft.document.segments[0].text.split()  # type: ignore[union-attr]
    assert not any(again.hidden)


def test_words_of_a_text_are_the_text():
    for text in ("", "a", " a  b ", "one\ntwo ", "   "):
        assert "".join(split_words(text)) == text


def test_the_document_with_blanks_is_what_infill_takes():
    canvas = canvas_of("a large red circle on mint", RED)
    browser_says(canvas, {"kind": "hide", "key": canvas._now.key, "segment": 0, "parts": [2, 3]})
    browser_says(canvas, {"kind": "hide", "key": canvas._now.key, "segment": 1, "parts": [9, 10]})
    before, blank, after, image = canvas.blanked
    assert (before, blank, after) == (Text("a large "), Blank(), Text(" on mint"))
    assert isinstance(image, Image) and image.mask is not None
    assert sorted(map(tuple, np.argwhere(np.asarray(image.mask)).tolist())) == [(1, 1), (1, 2)]


def test_a_mask_that_is_brought_is_painted_already_and_blanks_are_refused():
    masked = Image(RED, CODES, mask=rectangle((0, 2), (0, 1)))
    assert canvas_of(masked)._now.hidden == (frozenset({0, 8}),)
    with pytest.raises(ValueError, match=r"hides cell \(1, 8\), and the picture has 8 x 8"):
        canvas_of(Image(RED, CODES, mask=[(1, 8)]))  # which is not the first of the next row
    with pytest.raises(ValueError, match="without Blank"):
        canvas_of("a ", Blank())
    with pytest.raises(ValueError, match="number of fillings"):
        canvas_of("a", fillings=13)


def test_fillings_are_made_taken_and_undone():
    canvas = canvas_of("a red circle", RED, fillings=2, seed=5)
    browser_says(canvas, {"kind": "hide", "key": canvas._now.key, "segment": 0, "parts": [1]})
    browser_says(canvas, {"kind": "hide", "key": canvas._now.key, "segment": 1, "parts": [0]})
    first, second = canvas.fill()
    assert [each.segments[0] for each in (first, second)] == [Text(f"a <b>word{seed}</b> circle") for seed in (5, 6)]
    assert first.segments[1].codes[0, 0] == 7  # type: ignore[union-attr]
    before = canvas.document
    browser_says(canvas, {"kind": "take", "number": 1})
    assert canvas.document.segments[0] == second.segments[0]
    browser_says(canvas, {"kind": "move", "steps": -1})
    assert canvas.document is before and canvas.blanked
    for wrong in (7, -1, "x"):
        browser_says(canvas, {"kind": "take", "number": wrong})
        assert canvas._error is not None and canvas.document is before


def test_what_a_page_asks_wrongly_is_said_and_changes_nothing():
    canvas = canvas_of("a red circle", RED)
    before = canvas._now
    for content in (
        {"kind": "hide", "key": before.key, "segment": 0, "parts": [3]},
        {"kind": "hide", "key": before.key, "segment": 2, "parts": [0]},
        {"kind": "hide", "key": before.key, "segment": 1, "parts": [64]},
        {"kind": "hide", "key": before.key, "segment": 1, "parts": "all"},
        {"kind": "words", "segment": 1, "text": "words"},
        {"kind": "words", "segment": 0, "text": "  "},
        {"kind": "fill", "count": 2, "seed": 0},  # nothing is hidden
        {"kind": "fill", "count": 99, "seed": 0},
        {"kind": "fill", "count": 1, "seed": -1},
        {"kind": "hide"},
    ):
        browser_says(canvas, content)
        assert canvas._error is not None and canvas._now is before, content
    browser_says(canvas, {"kind": "hide", "key": before.key - 1, "segment": 1, "parts": [0]})  # of an older document
    assert canvas._error is None and canvas._now is before
    browser_says(canvas, {"kind": "picture", "segment": 1}, b"no picture")
    eventually(lambda: canvas._error is not None)
    assert canvas._now is before


def test_another_picture_and_other_words_are_steps():
    canvas = canvas_of("a red circle", RED)
    browser_says(canvas, {"kind": "picture", "segment": 1}, png(PIL.Image.new("RGB", (90, 60))))
    canvas.wait()
    browser_says(canvas, {"kind": "words", "segment": 0, "text": "a <script>"})
    assert canvas.document.segments[0] == Text("a <script>") and canvas._steps.ways == (2, 0)
    body, _ = canvas._still()
    assert "<script>" not in body and "&lt;script&gt;" in body


def test_a_filling_is_stopped_and_the_next_request_counts():
    fill = Filler()
    fill.gate.clear()
    canvas = canvas_of("a red circle", fill=fill, fillings=3)
    browser_says(canvas, {"kind": "hide", "key": canvas._now.key, "segment": 0, "parts": [1]})
    browser_says(canvas, {"kind": "fill", "count": 3, "seed": 0})
    assert fill.reached.wait(120)
    browser_says(canvas, {"kind": "stop"})
    fill.gate.set()
    canvas.wait()
    assert len(canvas.fillings) <= 1 and len(fill.documents) == 1  # the one under way was at its last segment
    assert len(canvas.fill(count=2, seed=9)) == 2


def test_a_model_that_raises_is_told_and_the_draft_stays():
    def fill(document: Document, *, seed: int = 0) -> Iterator[FilledSegment]:
        raise ValueError("The document has 99 tokens too many.")

    canvas = InfillCanvas(fill, Codec(), Document.of("a red circle"))
    browser_says(canvas, {"kind": "hide", "key": canvas._now.key, "segment": 0, "parts": [1]})
    before = canvas._now
    with pytest.raises(ValueError, match="too many"):
        canvas.fill()
    assert canvas._now is before and canvas.status == "error"
    canvas._line.settle()
    assert any("too many" in content.get("error", "") for content, _ in recorder(canvas).custom)


def test_pictures_are_sent_once_and_again_to_a_view_that_comes_late():
    canvas = canvas_of("a red circle", RED)
    browser_says(canvas, {"kind": "hello", "mark": "a-1"})
    canvas._line.settle()
    browser_says(canvas, {"kind": "hide", "key": canvas._now.key, "segment": 1, "parts": [0], "mark": "a-2"})
    canvas._line.settle()
    browser_says(canvas, {"kind": "hello", "mark": "b-1"})
    canvas._line.settle()
    sent = [len(buffers) for content, buffers in recorder(canvas).custom if content["kind"] == "canvas"]
    assert sent[0] == 1 and sent[-1] == 1 and 0 in sent
    state = {name: value for name, value in canvas.get_state().items() if name not in ("_esm", "_css", "layout")}
    assert len(json.dumps(state, default=str)) < 1000
