"""The chat cell in a real JupyterLab with a real kernel."""

import base64
import json

import fakes
import pytest
from playwright.sync_api import Page, expect

from chameleon_lab.commands.demo import demo_notebook
from chameleon_widgets.pictures import png

CHAT = "from chameleon_widgets import ChatCell\ncell = ChatCell(fakes.stream, suggestions=['draw a red circle'])\ncell"


def say(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message to the model").click()
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def lamp(page: Page):
    return page.locator(".chm-lamp span")


@pytest.fixture
def chat(open_notebook):
    notebook = open_notebook(["import fakes", CHAT])
    notebook.run_all()
    expect(lamp(notebook.page)).to_have_text("Ready")
    return notebook


def test_a_picture_grows_stops_and_leaves_a_still_that_outlives_the_kernel(chat, open_notebook, screenshots):
    page = chat.page
    say(page, "hold a red circle left of a blue square")
    expect(lamp(page)).to_have_text("Drawing row 6 of 8")
    page.screenshot(path=screenshots / "lab-drawing.png")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(lamp(page)).to_have_text("Stopped")
    chat.kernel("fakes.gate.set()\nNone")
    expect(page.locator(".chm-about")).to_contain_text("stopped")
    chat.expect("pass\nfakes.closed", ["closed early"])

    say(page, "draw it again")
    expect(page.get_by_role("img", name="Picture drawn by the model")).to_be_visible()
    expect(lamp(page)).to_have_text("Ready")
    page.screenshot(path=screenshots / "lab-chat.png")
    chat.theme("JupyterLab Dark")
    page.screenshot(path=screenshots / "lab-chat-dark.png")
    chat.theme("JupyterLab Light")

    still = page.locator(".chameleon-still")
    expect(still).to_contain_text("draw it again")  # it is brought up to date behind the live view
    expect(still).to_be_hidden()
    chat.save()
    chat.shutdown()

    later = open_notebook(chat.path).page  # with a new kernel, which knows nothing of the widget
    still = later.locator(".chameleon-still")
    expect(still.get_by_text("draw it again")).to_be_visible()
    expect(still.locator("img")).to_have_count(2)
    expect(later.get_by_text("model not found")).to_have_count(1)
    expect(later.get_by_text("model not found")).to_be_hidden()
    later.screenshot(path=screenshots / "lab-still.png")


def test_the_notebook_of_a_demo_opens_a_chat_that_answers_and_a_look_at_pictures(open_notebook, tmp_path, screenshots):
    (tmp_path / "chat.ipynb").write_text(json.dumps(demo_notebook("tiny")))
    notebook = open_notebook(tmp_path / "chat.ipynb")
    notebook.run_all()
    page = notebook.page
    expect(lamp(page).first).to_have_text("Ready")
    say(page, "Draw a red circle.")
    expect(page.get_by_role("img", name="Picture drawn by the model")).to_be_visible()
    expect(lamp(page).first).to_have_text("Ready")
    page.screenshot(path=screenshots / "lab-demo.png", full_page=True)


def test_pictures_errors_and_keys_in_jupyterlab(chat, screenshots):
    page = chat.page
    for count, how in enumerate(("paste", "drop"), 1):
        page.get_by_role("textbox", name="Message to the model").click()
        page.evaluate(
            """([how, text]) => {
              const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
              const data = new DataTransfer();
              data.items.add(new File([bytes], 'scene.png', {type: 'image/png'}));
              const target = document.querySelector('.chm-input');
              const [type, make] = how === 'paste' ? ['clipboardData', ClipboardEvent] : ['dataTransfer', DragEvent];
              target.dispatchEvent(new make(how, {[type]: data, bubbles: true, cancelable: true}));
            }""",
            [how, base64.b64encode(png(fakes.scene())).decode()],
        )
        expect(page.locator(".chm-chip")).to_have_count(1)
        page.keyboard.type("what is it?")
        page.keyboard.press("Enter")
        expect(page.locator(".chm-chip")).to_have_count(0)
        expect(page.locator(".chm-foot:visible")).to_have_count(count)  # the lamp may be of before
        expect(lamp(page)).to_have_text("Ready")
    expect(page.get_by_role("img", name="Your picture")).to_have_count(2)
    sizes = "[s.picture.size for s in cell.document if hasattr(s, 'picture')]"
    chat.expect(f"pass\n{sizes}", [[64, 64], [64, 64]])

    say(page, "fail now")
    expect(page.locator(".chm-alert:visible")).to_contain_text("RuntimeError: the model broke")
    expect(lamp(page)).to_have_text("Error")
    page.screenshot(path=screenshots / "lab-error.png")

    cells = page.locator(".jp-Notebook .jp-Cell")
    page.get_by_role("button", name="Settings").focus()
    for key in ("d", "d", "b", "x", "Enter", "Escape"):  # JupyterLab would delete and insert cells at these
        page.keyboard.press(key)
    expect(cells).to_have_count(2)
    expect(page.get_by_role("button", name="Settings")).to_be_focused()


def test_a_cell_run_again_leaves_no_worker_and_a_reloaded_page_finds_the_conversation(chat, screenshots):
    page = chat.page
    say(page, "hold it")
    expect(lamp(page)).to_have_text("Drawing row 6 of 8")
    chat.kernel("first = cell\nNone")
    chat.run_all()
    expect(page.get_by_text("Ask for a picture, or show one.")).to_be_visible()
    chat.kernel("fakes.gate.set(); first._worker.wait(100)\nNone")
    chat.expect("pass\n[fakes.closed, first.status]", [["closed early"], "stopped"])

    say(page, "draw it")
    expect(page.get_by_role("img", name="Picture drawn by the model")).to_be_visible()
    expect(lamp(page)).to_have_text("Ready")
    chat.save()
    chat.reload()
    expect(page.get_by_role("img", name="Picture drawn by the model")).to_be_visible()
    expect(lamp(page)).to_have_text("Ready")
    say(page, "and after a reload?")
    expect(page.locator(".chm-reply").last).to_contain_text("You said: and after a reload?")
    expect(page.locator(".chameleon-still")).to_contain_text("and after a reload?")
    page.screenshot(path=screenshots / "lab-reloaded.png")
