"""The reconstruction viewer in a bare page."""

import fakes
import pytest
from chameleon_widgets import ReconstructionViewer
from playwright.sync_api import expect


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
