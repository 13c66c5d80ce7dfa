"""The reconstruction viewer in a bare page."""

import base64

import fakes
import PIL.Image
import pytest
from playwright.sync_api import expect

from chameleon_widgets import ReconstructionViewer
from chameleon_widgets.pictures import png


@pytest.fixture
def viewer(mounted):
    samples = {"circle & square": fakes.scene(), "green": fakes.scene("#2e9e4f", "#e0b020")}
    return mounted(lambda: ReconstructionViewer(fakes.Codec(), samples=samples))


def test_it_shows_both_pictures_the_codes_and_the_error(viewer, screenshots):
    page = viewer.page
    viewer.until(lambda: page.locator(".chm-fact").count())
    page.get_by_role("button", name="Show the grid of codes").click()
    page.get_by_role("button", name="Show where the pictures differ").click()
    page.get_by_role("gridcell", name="Row 5, column 3, code").hover()
    expect(page.locator(".chm-readout")).to_contain_text("Row 5, column 3: code ")
    page.screenshot(path=screenshots / "viewer.png")
    page.evaluate("document.body.classList.add('dark')")
    page.wait_for_timeout(300)
    page.screenshot(path=screenshots / "viewer-dark.png")


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
    viewer.until(lambda: page.locator(".chm-fact").count())
    give(viewer, "paste", name, kind, data)
    viewer.until(lambda: message in page.get_by_role("alert").inner_text())
    expect(page.locator(".chm-lamp")).to_have_text("Error")
    expect(page.get_by_role("img", name="The picture rebuilt from its codes")).to_be_visible()
    page.screenshot(path=screenshots / "viewer-bad.png")


def test_the_codes_are_read_by_keyboard(viewer):
    page = viewer.page
    viewer.until(lambda: page.locator(".chm-fact").count())
    page.get_by_role("button", name="Show the grid of codes").press("Enter")
    page.get_by_role("gridcell", name="Row 1, column 1, code").focus()
    for key in ("ArrowDown", "ArrowDown", "End", "ArrowLeft"):
        page.keyboard.press(key)
    cell = page.get_by_role("gridcell", name="Row 3, column 7, code")
    expect(cell).to_be_focused()
    code = viewer.widget.reconstruction.codes[2, 6]
    expect(page.get_by_role("status").filter(has_text="Row 3")).to_contain_text(f"Row 3, column 7: code {code}")
