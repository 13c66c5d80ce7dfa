"""The chat cell in a bare page: what is seen, typed, spoken, and never run as HTML."""

import fakes
import pytest
from chameleon_widgets import ChatCell
from playwright.sync_api import expect


@pytest.fixture
def chat(mounted):
    fakes.gate.clear()
    fakes.closed.clear()
    bridge = mounted(lambda: ChatCell(fakes.stream, suggestions=["draw a red circle", "what can you do?"]))
    yield bridge
    fakes.gate.set()
    bridge.widget.stop()
    bridge.widget._worker.wait(10)


def box(chat):
    return chat.page.get_by_role("textbox", name="Message to the model")


def lamp(chat):
    return chat.page.locator(".chm-lamp")


def settled(chat, count=1):
    """The given number of replies is there and nothing is going on."""
    page = chat.page
    chat.until(lambda: page.locator(".chm-foot:visible, .chm-alert:visible").count() >= count and not chat.widget._pending)


def test_a_picture_grows_row_by_row(chat, screenshots):
    page = chat.page
    page.screenshot(path=screenshots / "chat-start.png")
    box(chat).click()
    page.keyboard.type("hold a red circle left of a blue square")
    page.keyboard.press("Enter")
    chat.until(lambda: "row 6/8" in page.locator(".chm-progress").all_inner_texts())
    expect(lamp(chat)).to_have_text("Drawing row 6 of 8")
    page.wait_for_timeout(300)
    page.screenshot(path=screenshots / "chat-drawing.png")
    fakes.gate.set()
    settled(chat)
    expect(page.get_by_role("img", name="Picture drawn by the model")).to_be_visible()
    expect(page.get_by_role("log")).to_contain_text("A red circle left of a blue square.")
    page.evaluate("document.body.classList.add('dark')")
    page.screenshot(path=screenshots / "chat-done-dark.png")
