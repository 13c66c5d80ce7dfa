"""The infill canvas in a bare page: painting, words, fillings side by side, by pointer and by keyboard."""

from collections.abc import Iterator

import fakes
import numpy as np
import pytest
from playwright.sync_api import expect

from chameleon_lab.documents import Blank, Document, Image, Text
from chameleon_lab.records import FilledSegment
from chameleon_widgets.infill.infill_canvas import InfillCanvas

CODEC = fakes.Codec()
CAPTION = "a red circle left of a blue square"


def fill(document: Document, *, seed: int = 0) -> Iterator[FilledSegment]:
    """Hidden cells become the picture's first code, a blank the seed's colour; seed 13 raises."""
    for place, segment in enumerate(document):
        if seed == 13:
            raise ValueError("13 brings <b>bad luck</b>.")
        if isinstance(segment, Blank):
            yield FilledSegment(place, Text(["green", "<i>pink</i>", "grey"][seed % 3]), True)
        elif isinstance(segment, Image) and segment.mask is not None and segment.codes is not None:
            codes = np.where(np.asarray(segment.mask), segment.codes[0, 0], segment.codes)
            yield FilledSegment(place, Image(CODEC.decode(codes), codes), True)


@pytest.fixture
def canvas(mounted):
    return mounted(lambda: InfillCanvas(fill, CODEC, Document.of(CAPTION, fakes.scene()), fillings=4))


def settled(canvas):
    for _ in range(3):
        canvas.settle(lambda: not canvas.widget._worker.busy)
        canvas.drawn()


def point(canvas, row, column):
    box = canvas.page.get_by_role("grid", name="Cells of the picture").bounding_box()
    return box["x"] + (column + 0.5) * box["width"] / 8, box["y"] + (row + 0.5) * box["height"] / 8


def drag(canvas, *cells):
    mouse = canvas.page.mouse
    mouse.move(*point(canvas, *cells[0]))
    mouse.down()
    for cell in cells[1:]:
        mouse.move(*point(canvas, *cell), steps=4)
    mouse.up()
    settled(canvas)


def hidden(canvas):
    return [sorted(each) for each in canvas.widget._now.hidden]


def test_cells_are_painted_words_clicked_and_a_filling_is_taken_and_undone(canvas, screenshots):
    page = canvas.page
    fill_button = page.get_by_role("button", name="Fill", exact=True)
    expect(fill_button).to_be_disabled()
    drag(canvas, (2, 0), (2, 3))
    assert hidden(canvas)[1] == [16, 17, 18, 19]
    drag(canvas, (2, 3), (2, 2))  # begun on a hidden cell, it uncovers
    assert hidden(canvas)[1] == [16, 17]
    page.get_by_role("button", name="Paint rectangles").click()
    drag(canvas, (4, 1), (6, 3), (5, 2))
    assert hidden(canvas)[1] == [16, 17, 33, 34, 41, 42]
    page.get_by_role("button", name="red", exact=True).click()
    settled(canvas)
    assert hidden(canvas)[0] == [1]
    page.screenshot(path=screenshots / "infill-painted.png")
    fill_button.click()
    settled(canvas)
    cards = page.locator(".chm-filling")
    expect(cards).to_have_count(4)
    expect(cards.nth(1)).to_contain_text("a <i>pink</i> circle left of")  # as text
    for width in (600, 1900):
        page.set_viewport_size({"width": width, "height": 900})
        page.screenshot(path=screenshots / f"infill-{width}.png")
    page.evaluate("document.body.classList.add('dark')")
    page.wait_for_timeout(100)
    page.screenshot(path=screenshots / "infill-dark.png")
    cards.nth(2).get_by_role("button", name="Take").click()
    settled(canvas)
    assert canvas.widget.document.segments[0] == Text("a grey circle left of a blue square")
    expect(page.locator(".chm-words")).to_contain_text("grey")
    expect(cards.nth(2).get_by_role("button")).to_have_text("Taken")
    page.get_by_role("button", name="Undo").click()
    settled(canvas)
    assert hidden(canvas) == [[1], [16, 17, 33, 34, 41, 42]]
    expect(page.get_by_role("button", name="red", exact=True)).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Hide nothing").click()
    settled(canvas)
    assert hidden(canvas) == [[], []]


def test_all_of_it_by_keyboard(canvas):
    page = canvas.page
    grid = page.get_by_role("grid", name="Cells of the picture")
    grid.focus()
    for key in ("ArrowRight", "Space", "ArrowDown", "Shift+ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
        settled(canvas)
    assert hidden(canvas)[1] == [1, 9, 10, 17, 18]
    page.keyboard.press("Control+z")
    settled(canvas)
    assert hidden(canvas)[1] == [1, 9, 10]
    page.get_by_role("button", name="circle").focus()
    page.keyboard.press("Enter")
    settled(canvas)
    page.get_by_role("button", name="Change the words").focus()
    page.keyboard.press("Enter")
    field = page.get_by_role("textbox", name="The text")
    expect(field).to_be_focused()
    field.fill("a <script>alert(1)</script> circle")
    page.keyboard.press("Enter")
    settled(canvas)
    assert canvas.widget.document.segments[0] == Text("a <script>alert(1)</script> circle")
    grid.focus()
    page.keyboard.press("Control+Enter")
    settled(canvas)
    expect(page.locator(".chm-filling[data-state=whole]")).to_have_count(4)
    assert all(each.segments[1].codes[0, 1] == each.segments[1].codes[0, 0] for each in canvas.widget.fillings)


def test_an_error_is_said_as_text_and_a_page_that_comes_late_has_all(canvas):
    page = canvas.page
    page.get_by_role("button", name="red", exact=True).click()
    page.get_by_role("spinbutton", name="Seed").fill("13")
    page.get_by_role("button", name="Fill", exact=True).click()
    settled(canvas)
    expect(page.get_by_role("alert")).to_have_text("13 brings <b>bad luck</b>.")
    page.get_by_role("spinbutton", name="Seed").fill("1")
    page.get_by_role("button", name="Fill", exact=True).click()
    settled(canvas)
    expect(page.get_by_role("alert")).to_be_hidden()
    page.evaluate("dispose()")
    canvas.widget.comm.sent.queue.clear()
    canvas.page.evaluate("document.getElementById('el').replaceChildren()")
    canvas.widget._handle_custom_msg({"kind": "hello", "mark": "late-1"}, [])
    canvas.widget._line.settle()
    sent = [data["content"] for kind, data, _ in list(canvas.widget.comm.sent.queue) if kind == "comm_msg"]
    fillings = next(each for each in sent if each["kind"] == "fillings")
    assert fillings["count"] == 4 and len(fillings["changed"]) == 4


def test_a_silent_kernel_is_told_and_what_was_painted_stays_on_the_page(canvas):
    canvas.alive = False
    drag_without_answer(canvas, (1, 1), (1, 4))
    expect(canvas.page.locator(".chm-lamp")).to_contain_text("Disconnected")
    expect(canvas.page.locator(".chm-hint")).to_contain_text("4 hidden")


def drag_without_answer(canvas, *cells):
    mouse = canvas.page.mouse
    mouse.move(*point(canvas, *cells[0]))
    mouse.down()
    for cell in cells[1:]:
        mouse.move(*point(canvas, *cell), steps=4)
    mouse.up()
