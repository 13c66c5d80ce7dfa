"""Code surgery in a bare page: painting, picking, taking back, exporting, by pointer and by keyboard."""

import base64
import json

import fakes
import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import expect

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.scenes import sample_scene
from chameleon_widgets.images.code_surgery import CodeSurgery
from chameleon_widgets.pictures import png

CODEC = fakes.Codec()
START = CODEC.encode(fakes.scene())
BACKGROUND, RED = int(START[0, 0]), int(START[4, 2])


class Fragile(fakes.Codec):
    """Cannot decode the code 13."""

    def decode(self, codes):
        if (codes == 13).any():
            raise RuntimeError("13 brings\nbad luck")
        return super().decode(codes)


@pytest.fixture
def surgery(mounted):
    bridge = mounted(lambda: CodeSurgery(Fragile(), samples={"circle & square": fakes.scene(), "plain": plain()}))
    settled(bridge)
    return bridge


def plain():
    return PIL.Image.new("RGB", (64, 64), (40, 200, 40))


def settled(surgery):
    """Everything painted is decoded, and the page has heard of it."""
    for _ in range(3):
        surgery.settle(lambda: not surgery.widget._worker.busy)
        surgery.drawn()  # what is painted goes to the kernel once a frame


def board(surgery):
    return surgery.page.get_by_role("grid", name="Codes of the picture")


def place(surgery, row, column):
    """Where the middle of a cell is on the page."""
    box = board(surgery).bounding_box()
    rows, columns = surgery.widget.codes.shape
    return box["x"] + (column + 0.5) * box["width"] / columns, box["y"] + (row + 0.5) * box["height"] / rows


def click(surgery, row, column):
    board(surgery).element_handle().wait_for_element_state("stable")  # what stands above it may have grown
    surgery.page.mouse.click(*place(surgery, row, column))
    settled(surgery)


def drag(surgery, *cells):
    mouse = surgery.page.mouse
    mouse.move(*place(surgery, *cells[0]))
    mouse.down()
    for cell in cells[1:]:
        mouse.move(*place(surgery, *cell), steps=3)
    mouse.up()
    settled(surgery)


def use(surgery, name):
    surgery.page.get_by_role("button", name=name, exact=True).click()
    settled(surgery)


def set_code(surgery, code):
    surgery.page.get_by_role("spinbutton", name="Current code").fill(str(code))


def changed(surgery):
    """The cells that differ from the original, as a set of (row, column)."""
    return set(map(tuple, np.argwhere(surgery.widget.codes != surgery.widget.original).tolist()))


def shown(surgery):
    """Pixels of the edited picture in the page, and whether they are what the codes decode to."""
    data = surgery.page.evaluate(
        """async () => {
          const bytes = new Uint8Array(await (await fetch(document.querySelector('.chm-plate img').src)).arrayBuffer());
          return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(''));
        }"""
    )
    return base64.b64decode(data) == png(surgery.widget.picture)


def give(surgery, name, kind, data):
    """Drops a file on the widget, which reads it in its own time."""
    surgery.page.evaluate(
        """([name, kind, text]) => {
          const data = new DataTransfer();
          data.items.add(new File([Uint8Array.from(atob(text), letter => letter.charCodeAt(0))], name, {type: kind}));
          const drop = new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true});
          document.querySelector('.chm').dispatchEvent(drop);
        }""",
        [name, kind, base64.b64encode(data).decode()],
    )


def test_a_stroke_paints_the_current_code_without_gaps_and_the_picture_follows(surgery, screenshots):
    set_code(surgery, 63)
    drag(surgery, (1, 1), (1, 6), (4, 6))
    assert changed(surgery) == {(1, column) for column in range(1, 7)} | {(row, 6) for row in range(1, 5)}
    assert set(surgery.widget.codes[1, 1:7]) == {63}
    assert shown(surgery)
    expect(surgery.page.locator(".chm-facts")).to_contain_text("9 of 64 cells changed")
    surgery.page.screenshot(path=screenshots / "surgery-painted.png")


def test_a_whole_stroke_is_undone_and_redone_by_button_and_by_key(surgery):
    page = surgery.page
    undo, redo = (page.get_by_role("button", name=name) for name in ("Undo", "Redo"))
    expect(undo).to_be_disabled()
    set_code(surgery, 63)
    drag(surgery, (0, 0), (0, 5))
    click(surgery, 7, 7)
    assert len(changed(surgery)) == 7
    undo.click()
    settled(surgery)
    assert len(changed(surgery)) == 6
    board(surgery).focus()
    for keys, count in (("Control+z", 0), ("Control+Shift+z", 6), ("Control+y", 7), ("Control+z", 6)):
        page.keyboard.press(keys)
        settled(surgery)
        assert len(changed(surgery)) == count, keys
        assert shown(surgery)
    expect(redo).to_be_enabled()
    click(surgery, 7, 0)
    expect(redo).to_be_disabled()


@pytest.mark.parametrize(("size", "count"), [(1, 1), (2, 4), (3, 9)])
def test_the_brush_has_three_sizes(surgery, size, count):
    use(surgery, f"{size} × {size}")
    set_code(surgery, 63)
    click(surgery, 4, 4)
    assert len(changed(surgery)) == count and (4, 4) in changed(surgery)


def test_fill_takes_the_connected_cells_and_says_so_before(surgery):
    page = surgery.page
    use(surgery, "plain")
    green = surgery.widget.codes[0, 0]
    set_code(surgery, 63)
    drag(surgery, (0, 3), (7, 3))  # a wall
    use(surgery, "Fill")
    set_code(surgery, 7)
    page.mouse.move(*place(surgery, 5, 1))
    expect(page.locator(".chm-readout")).to_have_text(f"Row 6, column 2, code {green} → 7 in 24 cells")
    click(surgery, 5, 1)
    expected = np.full((8, 8), green)
    expected[:, :3], expected[:, 3] = 7, 63
    assert np.array_equal(surgery.widget.codes, expected)


def test_swap_replaces_a_code_everywhere(surgery):
    use(surgery, "Swap")
    set_code(surgery, 7)
    click(surgery, 0, 0)
    assert np.array_equal(surgery.widget.codes == 7, START == BACKGROUND)
    assert shown(surgery)


def test_a_code_is_picked_with_the_tool_or_with_alt_and_any_tool(surgery):
    page = surgery.page
    field = page.get_by_role("spinbutton", name="Current code")
    use(surgery, "Pick")
    click(surgery, 4, 2)
    expect(field).to_have_value(str(RED))
    use(surgery, "Fill")
    page.keyboard.down("Alt")
    click(surgery, 0, 0)
    page.keyboard.up("Alt")
    expect(field).to_have_value(str(BACKGROUND))
    assert not changed(surgery)


def test_tools_stay_inside_a_selection_until_escape(surgery, screenshots):
    page = surgery.page
    use(surgery, "Select")
    drag(surgery, (5, 5), (2, 4))
    expect(page.locator(".chm-facts")).to_contain_text("8 selected")
    inside = {(row, column) for row in range(2, 6) for column in (4, 5)}
    page.get_by_role("spinbutton", name="Seed").fill("7")
    use(surgery, "Random codes, in the selection or everywhere (R)")
    assert changed(surgery) and changed(surgery) <= inside
    first = surgery.widget.codes
    page.screenshot(path=screenshots / "surgery-selection.png")
    expect(page.get_by_role("spinbutton", name="Seed")).to_have_value("8")
    page.get_by_role("spinbutton", name="Seed").fill("7")
    use(surgery, "Undo")
    assert not changed(surgery)
    use(surgery, "Random codes, in the selection or everywhere (R)")
    assert np.array_equal(surgery.widget.codes, first), "the same seed gives the same codes"
    use(surgery, "Brush")
    drag(surgery, (0, 0), (7, 7))
    assert changed(surgery) <= inside
    use(surgery, "Reset")
    assert not changed(surgery)
    board(surgery).press("Escape")
    use(surgery, "Random codes, in the selection or everywhere (R)")
    assert len(changed(surgery)) > 50
    use(surgery, "Reset")
    assert not changed(surgery) and shown(surgery)


def test_the_palette_has_the_codes_of_the_picture_with_decoded_swatches(surgery):
    page = surgery.page
    chip = page.get_by_role("group", name="Codes in the picture").get_by_role("button", name=f"Code {RED}:")
    expect(chip).to_have_attribute("aria-label", f"Code {RED}: {int((START == RED).sum())} cells")
    surgery.until(lambda: "url" in (chip.locator("i").get_attribute("style") or ""))
    chip.hover()
    expect(page.locator(".chm-board .chm-layer-same")).to_have_attribute("d", "M2 3h1v1h-1zM2 4h1v1h-1z")
    chip.click()
    expect(chip).to_have_attribute("aria-pressed", "true")
    click(surgery, 0, 0)
    assert surgery.widget.codes[0, 0] == RED
    count = int((START == RED).sum())
    expect(chip).to_have_attribute("aria-label", f"Code {RED}: {count + 1} cells, {count} before")
    recent = page.get_by_role("group", name="Codes used last").get_by_role("button")
    expect(recent.first).to_have_attribute("aria-label", f"Code {RED}")
    assert len(surgery.widget._swatches._pictures) <= len(np.unique(START)) + 2, "never the whole codebook"


def test_a_number_that_is_no_code_is_told_and_not_taken(surgery):
    page = surgery.page
    field = page.get_by_role("spinbutton", name="Current code")
    before = field.input_value()
    for text in ("512", "-1", "1.5", ""):
        field.fill(text)
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(page.locator(".chm-readout")).to_have_text("Codes are whole numbers from 0 to 511.")
    page.keyboard.press("Tab")
    expect(field).to_have_value(before)
    expect(field).not_to_have_attribute("aria-invalid", "true")


def test_all_of_it_works_by_keyboard_and_no_key_leaves_the_widget(surgery):
    page = surgery.page
    page.evaluate("window.leaked = []; document.addEventListener('keydown', event => leaked.push(event.key))")
    page.get_by_role("button", name="Brush", exact=True).focus()
    for _ in range(5):
        page.keyboard.press("Tab")
    expect(board(surgery)).to_be_focused()
    set_code(surgery, 63)
    board(surgery).focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Space", "End", "Enter"):
        page.keyboard.press(key)
    settled(surgery)
    assert changed(surgery) == {(2, 1), (2, 7)}
    cell = page.get_by_role("gridcell")
    expect(cell).to_have_attribute("aria-label", f"Row 3, column 8, code 63, was {START[2, 7]}")
    expect(board(surgery)).to_have_attribute("aria-activedescendant", cell.get_attribute("id"))
    for key, name in (("f", "Fill"), ("s", "Swap"), ("i", "Pick"), ("m", "Select"), ("b", "Brush")):
        page.keyboard.press(key)
        expect(page.get_by_role("button", name=name, exact=True)).to_have_attribute("aria-pressed", "true")
    for key in ("Home", "Shift+ArrowUp", "Shift+ArrowRight"):
        page.keyboard.press(key)
    expect(page.locator(".chm-facts")).to_contain_text("4 selected")
    page.keyboard.press("3")
    page.keyboard.press("Space")
    settled(surgery)
    assert changed(surgery) == {(2, 1), (2, 7), (1, 0), (1, 1), (2, 0)}
    page.keyboard.press("Escape")
    page.keyboard.press("r")
    page.keyboard.press("d")
    expect(page.get_by_role("img", name="Where the pictures differ")).to_be_visible()
    for key in ("g", "n", "x", "Delete", "Control+z", "Control+z", "Control+z"):
        page.keyboard.press(key)
    settled(surgery)
    assert changed(surgery) == {(2, 1)}
    assert page.evaluate("leaked") == []


def test_grid_numbers_and_difference_are_shown_and_hidden(surgery, screenshots):
    page = surgery.page
    numbers = page.locator(".chm-board text")
    expect(numbers).to_have_count(0)
    use(surgery, "Numbers")
    expect(numbers).to_have_count(64)
    set_code(surgery, 63)
    click(surgery, 3, 3)
    expect(numbers.nth(27)).to_have_text("63")
    lines = page.locator(".chm-board .chm-layer-lines.chm-line")
    expect(lines).to_be_visible()
    use(surgery, "Grid")
    expect(lines).to_be_hidden()
    use(surgery, "Difference")
    expect(page.locator(".chm-pane").nth(1).locator("figcaption span")).to_contain_text("of 255, mean")
    use(surgery, "Undo")
    expect(page.locator(".chm-pane").nth(1).locator("figcaption span")).to_have_text("0 to 0 of 255, mean 0.0")
    use(surgery, "Before")
    expect(page.get_by_role("img", name="The picture before surgery")).to_be_visible()


def test_picture_and_codes_are_saved_and_the_codes_come_back_by_drop_and_choice(surgery, tmp_path):
    page = surgery.page
    downloads = []
    page.on("download", lambda download: downloads.append(download))
    set_code(surgery, 63)
    click(surgery, 0, 0)
    painted = surgery.widget.codes
    page.get_by_role("button", name="Save the picture as PNG").click()
    surgery.until(lambda: len(downloads) == 1)
    page.get_by_role("button", name="Save the codes as JSON").click()
    surgery.until(lambda: len(downloads) == 2)
    picture = PIL.Image.open(downloads[0].path())
    assert np.array_equal(np.asarray(picture), np.asarray(surgery.widget.picture))
    file = downloads[1].path().read_bytes()
    assert json.loads(file) == {"codes": painted.tolist(), "codebook": 512}
    use(surgery, "Reset")
    give(surgery, "codes.json", "application/json", file)
    surgery.until(lambda: np.array_equal(surgery.widget.codes, painted) and len(changed(surgery)) == 1)
    settled(surgery)
    (tmp_path / "wide.json").write_text(json.dumps([[0, 511, 3], [4, 5, 6]]))
    page.locator("input[type=file]").set_input_files(tmp_path / "wide.json")
    surgery.until(lambda: surgery.widget.codes.shape == (2, 3))
    settled(surgery)
    expect(page.locator(".chm-facts")).to_contain_text("0 of 6 cells changed")
    expect(board(surgery)).to_have_attribute("aria-colcount", "3")
    use(surgery, "Undo")
    assert np.array_equal(surgery.widget.codes, painted), "what was open before is a step away"
    expect(board(surgery)).to_have_attribute("aria-colcount", "8")


BAD_FILES = [
    ("notes.txt", "text/plain", "words", "“notes.txt” is not a picture"),
    ("broken.png", "image/png", "words", "“broken.png” is not a picture"),
    ("a.json", "application/json", "{", "“a.json” is not JSON"),
    ("b.json", "", '{"text": 3}', "“b.json” holds no codes"),
    ("c.json", "application/json", "[[0, 512]]", "The codes in “c.json” must lie in 0..511; got 0..512."),
    ("d.json", "application/json", '{"codes": [[0, 1.5]]}', "The codes in “d.json” must be whole numbers"),
    ("e.json", "application/json", '{"codes": [[13]]}', "RuntimeError: 13 brings bad luck"),
    ("f.json", "application/json", '{"codes": [[1]], "codebook": 8192}', "a codebook of 8192"),
    ("g.json", "application/json", " " * 2**21 + "[[1]]", "“g.json” is too large"),
]


def test_a_bad_file_is_told_in_one_paragraph_and_loses_nothing(surgery, screenshots):
    page = surgery.page
    set_code(surgery, 63)
    for column, (name, kind, text, message) in enumerate(BAD_FILES[:8]):
        click(surgery, 0, column)
        expect(page.get_by_role("alert")).to_be_hidden()
        expect(page.locator(".chm-lamp")).to_have_text("Ready")
        give(surgery, name, kind, text.encode())
        surgery.until(lambda message=message: message in page.get_by_role("alert").inner_text())
        expect(page.locator(".chm-lamp")).to_have_text("Error")
        assert changed(surgery) == {(0, each) for each in range(column + 1)}
    page.screenshot(path=screenshots / "surgery-bad-file.png")
    give(surgery, *BAD_FILES[8][:2], BAD_FILES[8][2].encode())
    surgery.until(lambda: BAD_FILES[8][3] in page.get_by_role("alert").inner_text())


def test_pictures_come_by_sample_and_by_drop(surgery):
    page = surgery.page
    first, second = (page.get_by_role("button", name=name) for name in ("circle & square", "plain"))
    expect(first).to_have_attribute("aria-pressed", "true")
    second.click()
    settled(surgery)
    expect(second).to_have_attribute("aria-pressed", "true")
    assert np.array_equal(surgery.widget.codes, CODEC.encode(plain()))
    give(surgery, "scene.png", "image/png", png(fakes.scene()))
    surgery.until(lambda: np.array_equal(surgery.widget.codes, START))
    settled(surgery)
    expect(second).to_have_attribute("aria-pressed", "false")


def test_an_error_of_the_decoder_is_told_and_undone(surgery):
    page = surgery.page
    set_code(surgery, 13)
    click(surgery, 0, 0)
    expect(page.get_by_role("alert")).to_have_text("RuntimeError: 13 brings bad luck")
    assert surgery.widget.codes[0, 0] == 13
    use(surgery, "Undo")
    expect(page.get_by_role("alert")).to_be_hidden()
    assert not changed(surgery) and shown(surgery)


def test_while_the_kernel_is_silent_one_can_paint_and_nothing_is_lost(surgery, screenshots):
    page = surgery.page
    set_code(surgery, 63)
    surgery.alive = False
    for row in range(3):
        page.mouse.click(*place(surgery, row, 0))
    lamp = page.locator(".chm-lamp")
    surgery.until(lambda: lamp.inner_text().startswith("Disconnected"))
    expect(page.get_by_role("alert")).to_contain_text("is kept here")
    expect(page.locator(".chm-facts")).to_contain_text("3 of 64 cells changed")
    page.screenshot(path=screenshots / "surgery-disconnected.png")
    assert not changed(surgery)
    surgery.alive = True
    surgery.until(lambda: lamp.inner_text() == "Ready")
    settled(surgery)
    assert changed(surgery) == {(0, 0), (1, 0), (2, 0)} and shown(surgery)
    expect(page.get_by_role("alert")).to_be_hidden()
    use(surgery, "Undo")
    assert changed(surgery) == {(0, 0), (1, 0)}, "each click is a step, although they came together"


def test_a_page_loaded_anew_finds_edits_and_history(surgery):
    set_code(surgery, 63)
    drag(surgery, (0, 0), (0, 3))
    again = type(surgery)(surgery.page.context.new_page(), surgery.widget)
    again.mount()
    settled(again)
    expect(again.page.locator(".chm-facts")).to_contain_text("4 of 64 cells changed")
    assert shown(again)
    use(again, "Undo")
    assert not changed(again)
    use(again, "Redo")
    click(again, 7, 7)
    assert len(changed(again)) == 5


def test_without_a_picture_it_asks_for_one(mounted):
    empty = mounted(lambda: CodeSurgery(CODEC))
    expect(empty.page.get_by_text("Paste, drop or open a picture")).to_be_visible()
    expect(board(empty)).to_be_hidden()
    give(empty, "scene.png", "image/png", png(fakes.scene()))
    empty.until(lambda: board(empty).is_visible())
    expect(empty.page.get_by_text("Paste, drop or open a picture")).to_be_hidden()


class Blocks:
    """Each cell is a block of one grey, on any grid; it does not say how many codes there are."""

    def encode(self, picture):
        raise ValueError("these pictures have no codes")

    def decode(self, codes):
        return PIL.Image.fromarray((codes % 256).astype(np.uint8).repeat(8, 0).repeat(8, 1))


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(4, 7), (1, 1), (12, 1), pytest.param(32, 32, marks=pytest.mark.slow)],  # slow: the same with more cells
)
def test_grids_of_any_shape_are_painted_cell_by_cell(mounted, rows, columns, screenshots):
    surgery = mounted(lambda: CodeSurgery(Blocks(), np.arange(rows * columns).reshape(rows, columns)))
    settled(surgery)
    page = surgery.page
    expect(page.locator(".chm-facts")).to_contain_text(f"0 of {rows * columns} cells changed")
    box = board(surgery).bounding_box()
    assert box["width"] / box["height"] == pytest.approx(columns / rows, rel=0.02)
    assert box["width"] < 620 and box["height"] < 620
    expect(page.get_by_role("button", name="Random codes")).to_be_disabled()
    set_code(surgery, 250)
    cells = {(row, columns // 2) for row in range(rows)}
    drag(surgery, *sorted(cells))
    assert changed(surgery) == cells and shown(surgery)
    expect(page.locator(".chm-lamp")).to_have_text("Ready")
    page.screenshot(path=screenshots / f"surgery-{rows}x{columns}.png")


def test_a_scene_under_the_knife_with_the_shipped_tokenizer(mounted, screenshots):
    images = Chameleon.load("tiny").tokenizer.image
    scenes = [sample_scene(np.random.default_rng(seed), 1) for seed in (2, 9, 11, 17)]
    surgery = mounted(lambda: CodeSurgery(images, samples={each.things[0].shape: each.picture() for each in scenes}))
    settled(surgery)
    page = surgery.page
    page.wait_for_timeout(300)
    settled(surgery)
    page.screenshot(path=screenshots / "surgery.png")
    row, column = 4, 4
    page.keyboard.down("Alt")
    click(surgery, row, column)
    page.keyboard.up("Alt")
    use(surgery, "2 × 2")
    drag(surgery, (1, 1), (1, 4))
    assert shown(surgery) and len(changed(surgery)) >= 4
    page.mouse.move(*place(surgery, 5, 2))
    page.screenshot(path=screenshots / "surgery-tiny.png")
    use(surgery, "Numbers")
    use(surgery, "Difference")
    page.evaluate("document.body.classList.add('dark')")
    page.wait_for_timeout(300)
    settled(surgery)
    page.screenshot(path=screenshots / "surgery-tiny-dark.png")
