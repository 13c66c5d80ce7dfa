"""The chat cell in a real JupyterLab with a real kernel."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

FAKES = Path(__file__).with_name("fakes.py").read_text()
CHAT = "from chameleon_widgets import ChatCell\ncell = ChatCell(stream, suggestions=['draw a red circle'])\ncell"


def notebook_of(*sources: str) -> dict:
    cells = [
        {"cell_type": "code", "id": f"cell-{n}", "metadata": {}, "source": source, "outputs": [], "execution_count": None}
        for n, source in enumerate(sources)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def say(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message to the model").click()
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def lamp(page: Page):
    return page.locator(".chm-lamp span")


@pytest.fixture
def chat(open_notebook):
    notebook = open_notebook(notebook_of(FAKES, CHAT))
    notebook.run_all()
    expect(lamp(notebook.page)).to_have_text("Ready")
    return notebook


def test_a_conversation_outlives_its_kernel(chat, open_notebook, screenshots):
    page = chat.page
    say(page, "draw a red circle")
    expect(page.get_by_role("img", name="Picture drawn by the model")).to_be_visible()
    expect(lamp(page)).to_have_text("Ready")
    expect(page.locator(".chameleon-still")).to_have_count(1)
    expect(page.locator(".chameleon-still")).to_be_hidden()
    page.wait_for_function("() => document.querySelector('.chameleon-still')?.textContent.includes('draw a red circle')")
    page.screenshot(path=screenshots / "lab-chat.png")
    chat.theme("JupyterLab Dark")
    page.screenshot(path=screenshots / "lab-chat-dark.png")
    chat.save()
    page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")

    later = open_notebook(chat.path, start_kernel=False).page
    still = later.locator(".chameleon-still")
    expect(still).to_be_visible()
    expect(still).to_contain_text("draw a red circle")
    expect(still.locator("img")).to_be_visible()
    later.wait_for_timeout(3000)
    later.screenshot(path=screenshots / "lab-still.png")
    expect(later.get_by_text("model not found")).to_have_count(0)
