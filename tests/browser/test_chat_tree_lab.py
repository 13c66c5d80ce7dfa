"""The chat's tree in a real JupyterLab with the shipped model: looking inside, branches from there, files, restart."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

MAKE = """from chameleon_lab.chameleon import Chameleon
from chameleon_widgets import ChatCell
lab = Chameleon.load("tiny")
see = lambda picture: lab.tokenizer.image.decode(lab.tokenizer.image.encode(picture))
cell = ChatCell(lab.stream, inspect=lab.inspect, tokens=lab.encode, see=see, note="It knows drawn shapes.",
                suggestions=["draw a red circle left of a blue square"])
cell"""


@pytest.fixture(scope="module")
def sizes() -> tuple[int, ...]:
    return 600, 1920


def test_a_turn_is_looked_into_branched_from_and_saved_as_a_page_that_lives_without_a_kernel(
    open_notebook, bare_page, screenshots, tmp_path, sizes
):
    notebook = open_notebook([MAKE])
    page = notebook.page
    notebook.theme("JupyterLab Light")
    notebook.run_all()
    lamp = page.locator(".chm-chat > .chm-head .chm-lamp span")
    expect(lamp).to_have_text("Ready")
    expect(page.locator(".chm-note")).to_have_text("It knows drawn shapes.")

    # The sliders tell what will be used
    page.get_by_role("button", name="Settings").click()
    for name, value in (("e, words", "0"), ("e, pictures", "0.7"), ("Top-p", "0.95"), ("Guidance", "1.5")):
        expect(page.get_by_role("slider", name=re.compile(name))).to_have_value(value)
    page.screenshot(path=screenshots / "tree-settings.png")
    page.keyboard.press("Escape")

    page.get_by_role("button", name="draw a red circle").click()
    expect(page.get_by_role("img", name="Picture drawn by the model")).to_have_count(1)
    expect(lamp).to_have_text("Ready")
    page.get_by_role("button", name="Look inside").click()
    cells = page.locator(".chm-inside .chm-inspect-cell")
    expect(cells.nth(63)).to_be_visible()
    cells.nth(21).click()
    force = page.locator(".chm-inside").get_by_role("button", name=re.compile("Force|force")).first
    expect(force).to_be_visible()
    for width in sizes:
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(400)
        page.screenshot(path=screenshots / f"tree-inside-{width}.png")
    page.set_viewport_size({"width": 1180, "height": 1000})
    force.click()
    expect(page.get_by_role("group", name="reply 2 of 2")).to_be_visible()
    expect(page.locator(".chm-about")).to_contain_text("branched after")
    expect(lamp).to_have_text("Ready")
    tokens = notebook.kernel("[list(each.tokens) for each in cell._conversation.exchanges]")
    prefix = notebook.kernel("list(cell._conversation.exchanges[1].prefix)")
    assert prefix[:-1] == tokens[0][: len(prefix) - 1] and prefix[-1] != tokens[0][len(prefix) - 1]
    notebook.theme("JupyterLab Dark")
    page.screenshot(path=screenshots / "tree-branch-dark.png")

    page.get_by_role("button", name="Earlier reply").click()
    expect(cells.nth(63)).to_be_visible()  # its inspector is still open
    for width in sizes:
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(400)
        page.screenshot(path=screenshots / f"tree-inside-dark-{width}.png")
    page.set_viewport_size({"width": 1180, "height": 1000})
    page.get_by_role("button", name="Save and load").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Web page (HTML)").click()
    download.value.save_as(tmp_path / "conversation.html")
    page.get_by_role("button", name="Close the inspector").click()
    expect(cells).to_have_count(0)

    bare_page.goto((tmp_path / "conversation.html").as_uri())
    expect(bare_page.get_by_text("draw a red circle left of a blue square").first).to_be_visible()
    bare_page.locator(".chm-inspect-cell").nth(20).hover()
    expect(bare_page.locator(".chm-inspect-readout")).to_contain_text("looked at from")
    bare_page.screenshot(path=screenshots / "tree-page.png", full_page=True)


def test_keys_walk_and_after_a_restart_the_cell_says_what_to_do(open_notebook, screenshots):
    notebook = open_notebook([MAKE])
    page = notebook.page
    notebook.run_all()
    lamp = page.locator(".chm-chat > .chm-head .chm-lamp span")
    expect(lamp).to_have_text("Ready")
    box = page.get_by_role("textbox", name="Message to the model")
    box.click()
    page.keyboard.type("what can you do?")
    page.keyboard.press("Enter")
    expect(page.locator(".chm-about:visible")).to_have_count(1)
    expect(lamp).to_have_text("Ready")
    page.get_by_label("What the reply may hold").select_option(label="A picture only")
    page.get_by_role("button", name="Draw 4 to choose from").focus()
    page.keyboard.press("Enter")
    strip = page.get_by_role("group", name="Replies to choose from")
    expect(strip.get_by_role("img", name="Picture drawn by the model")).to_have_count(4)
    expect(lamp).to_have_text("Ready")
    page.screenshot(path=screenshots / "tree-strip-lab.png")
    page.get_by_role("button", name="Choose 2").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("group", name="reply 3 of 5")).to_be_visible()
    tree = page.get_by_role("tree", name=re.compile("Branches"))
    tree.focus()
    for _ in range(2):
        page.keyboard.press("ArrowUp")
    expect(page.get_by_role("group", name="reply 1 of 5")).to_be_visible()
    expect(page.locator(".jp-Notebook .jp-Cell")).to_have_count(1)
    notebook.expect("len(cell._conversation.exchanges)", 5)

    notebook.restart()
    notebook.ready()
    box.click()
    page.keyboard.type("are you there?")
    page.keyboard.press("Enter")
    alert = page.locator(".chm-chat > .chm-alert")
    expect(alert).to_contain_text("run the cell again")
    expect(box).to_have_text("are you there?")
    page.screenshot(path=screenshots / "tree-restarted.png")


RATE_CELL = """import time
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.records import ReplyProgress, StopPiece, TextPiece
from chameleon_widgets import ChatCell
times = []
def stream(document, *, rate=1000, count=5000, progress=None):
    times.clear()
    began = time.time()
    for number in range(count):
        if rate:
            time.sleep(max(0, began + number / rate - time.time()))
        if progress:
            progress(ReplyProgress(number, count - number, count - number))
        times.append(time.time())
        yield TextPiece(f"w{number} " if number % 12 else f"w{number}. ")
    yield StopPiece("end_turn")
talk = Document.of(*[each for turn in range(200) for each in ("some words " * 25, EndTurn())])
cell = ChatCell(stream, document=talk)
cell"""

WATCH = """() => {
  window.paints = [];
  const look = () => {
    const last = [...document.querySelectorAll('.chm-reply')].at(-1);
    const text = last ? last.lastElementChild?.lastElementChild?.textContent || last.textContent.slice(-40) : '';
    const number = Number(text.match(/w(\\d+)\\.? ?$/)?.[1] ?? -1);
    if (number !== (window.paints.at(-1)?.[1] ?? -1)) window.paints.push([Date.now(), number]);
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}"""


@pytest.mark.slow
def test_how_soon_a_token_is_painted_after_ten_thousand_and_none_of_a_hundred_thousand_is_lost(open_notebook):
    """Prints what passes from a token to its paint, at 1,000 tokens a second; asserts only that every token came."""
    notebook = open_notebook([RATE_CELL])
    page = notebook.page
    notebook.run_all()
    expect(page.locator(".chm-exchange")).to_have_count(100)
    page.evaluate(WATCH)
    notebook.kernel("cell.send('go')\nNone")
    expect(page.locator(".chm-reply").last).to_contain_text("w4999")
    expect(page.locator(".chm-chat .chm-lamp span")).to_have_text("Ready")
    times, paints = notebook.kernel("times"), page.evaluate("window.paints")
    waits, at = [], 0
    for moment, number in paints:
        while at <= number:
            waits.append(moment - 1000 * times[at])
            at += 1
    waits.sort()
    seconds = times[-1] - times[0]
    print(f"\n{len(times) / seconds:.0f} tokens/s, {len(paints)} paints, from token to paint: "
          f"p50 {waits[len(waits) // 2]:.0f} ms, p95 {waits[int(0.95 * len(waits))]:.0f} ms")  # fmt: skip
    assert at == 5000
    notebook.kernel("cell._arguments._fixed.update(rate=0, count=100_000); cell.send('more')\nNone")
    expect(page.locator(".chm-reply").last).to_contain_text("w99999", timeout=120_000)
    text = page.locator(".chm-reply").last.inner_text()
    assert [int(number) for number in re.findall(r"w(\d+)", text)] == list(range(100_000))
