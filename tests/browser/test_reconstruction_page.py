"""The reconstruction viewer in a bare page."""

import base64

import fakes
import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import expect

from chameleon_lab.corpora.hard_cases import hard_cases
from chameleon_lab.pictures import open_picture
from chameleon_lab.tokenizers.preparation import CentreCrop, FitToGrid
from chameleon_widgets import ReconstructionViewer
from chameleon_widgets.pictures import png

BOX = PIL.Image.Resampling.BOX


class Cells(fakes.Codec):
    """As the fake, on any grid of 8 pixels a cell, on a square of `side` pixels where no policy is given."""

    def __init__(self, side: int = 64) -> None:
        self.side = side

    def prepare(self, picture, policy=None):
        return (policy or CentreCrop(self.side)).picture(picture)

    def encode(self, picture, policy=None):
        if picture.width % 8 or picture.height % 8:
            raise ValueError(f"{picture.width} x {picture.height} pixels are no cells of 8.")
        cells = np.asarray(picture.resize((picture.width // 8, picture.height // 8), BOX), np.int64) // 32
        return cells[..., 0] * 64 + cells[..., 1] * 8 + cells[..., 2]

    def decode(self, codes):
        cells = np.stack([codes // 64, codes // 8 % 8, codes % 8], -1) * 32 + 16
        rows, columns = codes.shape
        return PIL.Image.fromarray(cells.astype(np.uint8)).resize((8 * columns, 8 * rows), BOX)


@pytest.fixture
def viewer(mounted):
    samples = {"circle & square": fakes.scene(), "green": fakes.scene("#2e9e4f", "#e0b020")}
    return mounted(lambda: ReconstructionViewer(fakes.Codec(), samples=samples))


def settled(viewer):
    """The page shows a picture, and has heard all that there is to say of it."""
    viewer.until(lambda: viewer.page.locator(".chm-fact").count())
    viewer.settle(lambda: not viewer.widget._worker.busy)


def test_it_shows_both_pictures_the_codes_and_the_error(viewer, screenshots):
    page = viewer.page
    settled(viewer)
    page.get_by_role("button", name="Show the grid of codes").click()
    page.get_by_role("button", name="Show where the pictures differ").click()
    page.get_by_role("gridcell", name="Row 5, column 3, code").hover()
    expect(page.locator(".chm-readout")).to_contain_text("Row 5, column 3: code ")
    page.screenshot(path=screenshots / "viewer.png")
    page.evaluate("document.body.classList.add('dark')")
    page.wait_for_timeout(300)
    page.screenshot(path=screenshots / "viewer-dark.png")


@pytest.mark.parametrize("width", [600, 900, 1920])
def test_pictures_fill_the_pane_and_a_caption_that_is_cut_says_all_of_it(mounted, screenshots, width):
    name = "a very long name of a sample that nobody can read in so little room"
    viewer = mounted(lambda: ReconstructionViewer(fakes.Codec(), samples={name: fakes.scene(), "b": fakes.scene()}))
    page = viewer.page
    page.set_viewport_size({"width": width, "height": 1000})
    settled(viewer)
    tallest = 640
    room = (min(width - 32, 1344) - 34 - 16) / 2

    def filled():
        boxes = [each.bounding_box() for each in page.locator(".chm-trip-frame:visible").all()]
        return len(boxes) == 2 and all(0.88 * min(room, tallest) <= box["width"] <= room + 2 for box in boxes)

    viewer.until(filled)
    page.screenshot(path=screenshots / f"viewer-{width}.png")
    caption = page.locator(".chm-sample-name").first
    assert not caption.get_attribute("title")
    caption.hover()
    expect(caption).to_have_attribute("title", name)
    whole = page.locator(".chm-sample-name").nth(1)
    whole.hover()
    assert not whole.get_attribute("title"), "what is whole needs no more words"


def give(viewer, how, name, kind, data):
    """Pastes or drops a file, or pastes text where there is no name."""
    viewer.page.evaluate(
        """([how, name, kind, text]) => {
          const data = new DataTransfer();
          const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
          if (name) data.items.add(new File([bytes], name, {type: kind}));
          else data.setData('text/plain', 'words');
          const target = document.querySelector('.chm');
          target.dispatchEvent(how === 'paste'
            ? new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})
            : new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        [how, name, kind, base64.b64encode(data).decode()],
    )


@pytest.mark.parametrize("how", ["paste", "drop"])
def test_a_picture_can_be_pasted_and_dropped(viewer, how):
    give(viewer, how, "wide.png", "image/png", png(PIL.Image.new("RGB", (200, 100), (240, 16, 16))))
    facts = viewer.page.locator(".chm-facts")
    viewer.until(lambda: "1 of 512 codes used" in facts.inner_text())
    assert viewer.widget.reconstruction.codes.tolist() == [[448] * 8] * 8


def test_samples_are_chosen_by_name_and_say_which_is_shown(viewer):
    page = viewer.page
    first, second = (page.get_by_role("button", name=name) for name in ("circle & square", "green"))
    viewer.until(lambda: first.get_attribute("aria-pressed") == "true")
    second.click()
    viewer.until(lambda: second.get_attribute("aria-pressed") == "true")
    expect(first).to_have_attribute("aria-pressed", "false")


@pytest.mark.parametrize(
    ("name", "kind", "data", "message"),
    [
        ("notes.txt", "text/plain", b"words", "“notes.txt” is not a picture"),
        ("broken.png", "image/png", b"words", "“broken.png” is not a picture"),
        ("", "", b"", "no picture on the clipboard"),
        ("thin.png", "image/png", png(PIL.Image.new("RGB", (2, 9))), "only 2 pixels wide"),
    ],
)
def test_a_bad_picture_is_told_in_the_widget_and_the_last_one_stays(viewer, name, kind, data, message, screenshots):
    page = viewer.page
    settled(viewer)
    give(viewer, "paste", name, kind, data)
    viewer.until(lambda: message in page.get_by_role("alert").inner_text())
    expect(page.locator(".chm-lamp")).to_have_text("Error")
    expect(page.get_by_role("img", name="The picture rebuilt from its codes")).to_be_visible()
    page.screenshot(path=screenshots / "viewer-bad.png")


def test_the_codes_are_read_by_keyboard(viewer):
    page = viewer.page
    settled(viewer)
    page.get_by_role("button", name="Show the grid of codes").press("Enter")
    page.get_by_role("gridcell", name="Row 1, column 1, code").focus()
    for key in ("ArrowDown", "ArrowDown", "End", "ArrowLeft"):
        page.keyboard.press(key)
    cell = page.get_by_role("gridcell", name="Row 3, column 7, code")
    expect(cell).to_be_focused()
    code = viewer.widget.reconstruction.codes[2, 6]
    expect(page.get_by_role("status").filter(has_text="Row 3")).to_contain_text(f"Row 3, column 7: code {code}")


def wiped(page):
    """Percent of the original that each slider says is shown, and that its picture shows."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.chm-handle')].filter(each => !each.hidden).map(each => [
          Number(each.getAttribute('aria-valuenow')),
          100 - parseFloat(getComputedStyle(each.parentNode.querySelector('.chm-cover')).clipPath.split(' ')[1])])"""
    )


def test_the_wipe_is_moved_by_keyboard(viewer, screenshots):
    page = viewer.page
    settled(viewer)
    page.get_by_role("button", name="Wipe between").click()
    expect(page.get_by_role("img", name="The picture as the encoder sees it")).to_be_hidden()
    slider = page.get_by_role("slider", name="Wipe between original and reconstruction")
    expect(slider).to_have_attribute("aria-valuetext", "50 % original")
    slider.focus()
    keys = {
        "ArrowLeft": 49,
        "ArrowDown": 48,
        "ArrowRight": 49,
        "Shift+ArrowUp": 59,
        "PageDown": 49,
        "Home": 0,
        "End": 100,
    }
    for key, share in keys.items():
        page.keyboard.press(key)
        assert wiped(page) == [[share, share]], key
    page.keyboard.press("PageDown")
    page.screenshot(path=screenshots / "viewer-wipe.png")
    page.get_by_role("button", name="Wipe between").click()
    expect(slider).to_be_hidden()
    expect(page.get_by_role("img", name="The picture as the encoder sees it")).to_be_visible()


def test_the_wipe_follows_the_pointer_even_over_the_grid(viewer):
    page = viewer.page
    settled(viewer)
    page.get_by_role("button", name="Wipe between").click()
    page.get_by_role("button", name="Show the grid of codes").click()
    box = page.locator(".chm-wiping").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.25 * box["width"], middle)
    assert wiped(page)[0][0] == 50, "a pointer that is not pressed moves nothing"
    expect(page.locator(".chm-readout")).to_contain_text("Row 5, column 3: code ")
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], middle)
    (said, seen), *_ = wiped(page)
    assert said == 75 and seen == pytest.approx(75, abs=0.5)
    page.mouse.move(box["x"] - 50, middle)
    assert wiped(page) == [[0, 0]]
    page.mouse.up()
    page.mouse.move(box["x"] + 0.5 * box["width"], middle)
    assert wiped(page) == [[0, 0]]
    expect(page.get_by_role("slider")).to_be_focused()


@pytest.fixture
def compared(mounted):
    samples = {"circle & square": fakes.scene(), **hard_cases(96)}
    bridge = mounted(lambda: ReconstructionViewer({"coarse": Cells(64), "fine": Cells(256)}, samples=samples))
    page = bridge.page
    settled(bridge)
    page.get_by_role("combobox", name="Compare with").select_option("fine")
    bridge.until(lambda: page.locator(".chm-column").count() == 3)
    settled(bridge)
    return bridge


def test_a_tokenizer_is_chosen_and_names_its_reconstruction(mounted):
    viewer = mounted(
        lambda: ReconstructionViewer({"coarse": Cells(), "fine": Cells(128)}, samples={"a": fakes.scene()})
    )
    page = viewer.page
    viewer.until(lambda: "from 64 codes of coarse" in page.locator(".chm-stage").inner_text())
    expect(page.get_by_role("combobox", name="Preparation")).to_be_hidden()
    page.get_by_role("combobox", name="Tokenizer").select_option("fine")
    viewer.until(lambda: "from 256 codes of fine" in page.locator(".chm-stage").inner_text())
    assert viewer.widget.reconstruction.codes.shape == (16, 16)
    expect(page.locator(".chm-facts")).to_contain_text("256 × 9 bits = 288 bytes")


def test_one_tokenizer_without_policies_offers_no_choice(viewer):
    settled(viewer)
    expect(viewer.page.get_by_role("combobox")).to_have_count(0)


def test_two_tokenizers_of_different_sides_line_up_with_both_sets_of_figures(compared, screenshots):
    page = compared.page
    pictures = page.locator(".chm-trip-frame > img:visible")
    expect(pictures).to_have_count(3)
    boxes = lambda: [pictures.nth(at).bounding_box() for at in range(3)]  # noqa: E731
    lines = lambda: {(box["y"], box["width"], box["height"]) for box in boxes()}  # noqa: E731
    compared.until(lambda: lines() == {(boxes()[0]["y"], 256, 256)})
    expect(page.locator(".chm-facts")).to_contain_text(["64 × 9 bits", "1024 × 9 bits"])
    expect(page.locator(".chm-facts")).to_contain_text(["SSIM", "SSIM"])
    expect(page.locator(".chm-stage")).to_contain_text("256 × 256, as fine sees it")
    page.get_by_role("button", name="faces").click()
    compared.until(lambda: page.get_by_role("button", name="faces").get_attribute("aria-pressed") == "true")
    settled(compared)
    page.get_by_role("button", name="Show where the pictures differ").click()
    page.get_by_role("button", name="Show the grid of codes").click()
    expect(page.get_by_role("img", name="Where original and reconstruction differ")).to_have_count(2)
    scales = [text.split(", mean")[0] for text in page.locator(".chm-side", has_text="mean").all_inner_texts()]
    assert scales[0] == scales[1], "errors that are compared share one scale"
    page.get_by_role("gridcell", name="Row 5, column 3, code").first.hover()
    expect(page.locator(".chm-readout")).to_contain_text("coarse: Row 5, column 3: code ")
    page.screenshot(path=screenshots / "viewer-compared.png")


def test_the_wipes_of_compared_tokenizers_move_together(compared, screenshots):
    page = compared.page
    page.get_by_role("button", name="Wipe between").click()
    page.get_by_role("slider").nth(1).press("Shift+ArrowRight")
    compared.until(lambda: wiped(page) == [[60, 60], [60, 60]])
    page.evaluate("document.body.classList.add('dark')")
    page.wait_for_timeout(300)
    page.screenshot(path=screenshots / "viewer-compared-wipe-dark.png")
    page.get_by_role("combobox", name="Compare with").select_option("nothing")
    compared.until(lambda: page.get_by_role("slider").count() == 1)
    compared.until(lambda: list(compared.widget.reconstructions) == ["coarse"])


def test_a_policy_is_chosen_and_its_grid_may_be_wider_than_high(mounted, screenshots):
    policies = {"centre crop": CentreCrop(64), "fit to grid": FitToGrid(8, 64)}
    wide = fakes.scene().crop((0, 16, 64, 40)).resize((320, 120))
    viewer = mounted(lambda: ReconstructionViewer(Cells(), samples={"wide": wide}, policies=policies))
    page = viewer.page
    viewer.until(lambda: "64 × 64, centre crop" in page.locator(".chm-stage").inner_text())
    page.get_by_role("combobox", name="Preparation").select_option("fit to grid")
    viewer.until(lambda: ", fit to grid" in page.locator(".chm-stage").inner_text())
    rows, columns = viewer.widget.reconstruction.codes.shape
    assert 2 * rows < columns
    page.get_by_role("button", name="Show the grid of codes").click()
    cell = page.get_by_role("gridcell", name=f"Row {rows}, column {columns}, code").bounding_box()
    assert cell["width"] == pytest.approx(cell["height"], abs=0.1)
    page.screenshot(path=screenshots / "viewer-wide.png")


def test_a_tokenizer_that_refuses_the_policy_says_so_in_its_place_and_alone_keeps_the_last(mounted, screenshots):
    class Fussy(Cells):
        def encode(self, picture, policy=None):
            raise ValueError("Both sides must be multiples of <b>16</b>.")

    viewer = mounted(lambda: ReconstructionViewer({"good": Cells(), "fussy": Fussy()}, samples={"a": fakes.scene()}))
    page = viewer.page
    settled(viewer)
    page.get_by_role("combobox", name="Compare with").select_option("fussy")
    viewer.until(lambda: page.get_by_role("alert").count())
    expect(page.get_by_role("alert")).to_have_text("Both sides must be multiples of <b>16</b>.")
    expect(page.get_by_role("img", name="The picture rebuilt from its codes")).to_have_count(1)
    page.screenshot(path=screenshots / "viewer-refused.png")
    page.get_by_role("combobox", name="Compare with").select_option("nothing")
    viewer.until(lambda: page.get_by_role("alert").count() == 0)
    page.get_by_role("combobox", name="Tokenizer").select_option("fussy")
    viewer.until(lambda: page.get_by_role("alert").count())
    expect(page.get_by_role("alert")).to_have_text("fussy: Both sides must be multiples of <b>16</b>.")
    expect(page.locator(".chm-stage")).to_contain_text("from 64 codes of good")


@pytest.mark.parametrize(
    ("side", "shown", "rendering"), [(64, 384, "pixelated"), (144, None, "pixelated"), (512, None, "auto")]
)
def test_pictures_are_magnified_by_whole_numbers_where_that_nearly_fills_their_room_and_else_fill_it(
    mounted, side, shown, rendering
):
    viewer = mounted(lambda: ReconstructionViewer(Cells(side), samples={"a": fakes.scene()}))
    page = viewer.page
    settled(viewer)
    picture = page.get_by_role("img", name="The picture rebuilt from its codes")
    room = (page.locator(".chm-stage").evaluate("each => each.clientWidth") - 32 - 16) // 2
    rendered = "each => [each.getBoundingClientRect().width, getComputedStyle(each).imageRendering]"
    viewer.until(lambda: picture.evaluate(rendered) == [shown or room, rendering])


def test_the_reconstruction_is_saved_as_it_is(viewer):
    page = viewer.page
    settled(viewer)
    expect(page.get_by_role("button", name="circle & square")).to_have_attribute("aria-pressed", "true")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the reconstruction as PNG").press("Enter")
    assert download.value.suggested_filename == "circle-square.png"
    saved = open_picture(download.value.path())
    assert saved.tobytes() == viewer.widget.reconstruction.picture.tobytes()
    page.get_by_role("button", name="Copy the reconstruction").click()
    expect(page.get_by_role("alert")).to_contain_text("Save the picture instead")  # a bare page has no clipboard


def test_all_of_it_can_be_reached_by_keyboard(compared):
    page = compared.page
    for name in ("Wipe between", "Show the grid of codes"):
        page.get_by_role("button", name=name).press("Enter")
    page.locator(".chm").focus()
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.title"))
    for name in (
        *("Show the grid of codes", "Show where the pictures differ", "Tokenizer", "Compare with", "text sizes"),
        *("Copy the reconstruction", "Save the reconstruction as PNG", "Wipe between original and reconstruction"),
        f"Row 1, column 1, code {compared.widget.reconstruction.codes[0, 0]}",
    ):
        assert name in reached, (name, reached)
