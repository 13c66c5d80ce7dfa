"""The inspector in a bare page, on the tiny model: rows are painted, tokens chosen and knocked out, layers seen."""

import re

import numpy as np
import pytest
from browser.conftest import MOUNT, Bridge
from playwright.sync_api import expect

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.inspection import Inspection
from chameleon_widgets import Inspector

WORDS = "draw a red circle left of a blue square"


@pytest.fixture(scope="module")
def document():
    request = Document.of(WORDS, EndTurn())
    return request + Chameleon.load("tiny").generate(request, seed=7)


@pytest.fixture(scope="module")
def look(document):
    return Chameleon.load("tiny").inspect(document)


@pytest.fixture
def inspector(mounted, look):
    bridge = mounted(lambda: Inspector(look))
    bridge.until(lambda: bridge.page.locator(".chm-lamp").inner_text() == "Ready" and words(bridge).count() > 5)
    yield bridge
    bridge.widget.close()


def words(inspector):
    return inspector.page.locator(".chm-inspect-word")


def cells(inspector):
    return inspector.page.locator(".chm-inspect-cell")


def readout(inspector):
    return inspector.page.locator(".chm-inspect-readout").inner_text()


def beside(bridge, widget):
    """A second widget below the first, on the same page, with roads of its own to this process."""
    other = Bridge(bridge.page, widget)
    bridge.page.expose_function("toKernelToo", other._to_kernel)
    script = MOUNT.replace("toKernel(", "toKernelToo(").replace("document.getElementById('el')", "second")
    script = script.replace("window.fromKernel", "window.fromKernelToo").replace(
        "=> {\n", "=> {\n  const second = document.body.appendChild(document.createElement('main'));\n", 1
    )
    state = {name: value for name, value in widget.get_state().items() if not name.startswith("_")}
    bridge.page.evaluate(script, {"esm": widget._esm, "css": widget._css, "state": state})
    other.road = "fromKernelToo"
    return other


HEAT = """() => {
  const words = [...document.querySelectorAll('.chm-inspect-word')].map(node => {
    const [, , , opacity = 1] = getComputedStyle(node).backgroundColor.match(/[\\d.]+/g).map(Number);
    return opacity / 0.62;
  });
  const cells = [...document.querySelectorAll('.chm-inspect-heat')].flatMap(canvas => {
    const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return Array.from({length: data.length / 4}, (_, at) => data[4 * at + 3] / 255 / 0.88);
  });
  return {words, cells};
}"""  # how strongly each is painted, of all that is no cell and of all cells


def painted_as(inspector, look, row, first=0):
    """The tokens are painted as this row says: all that is not a sink in proportion to its weight."""
    plain = np.ones(len(look), bool)
    vocabulary = look.tokenizer.vocabulary
    plain[np.isin(look.tokens, (vocabulary.begin_document, vocabulary.begin_image))] = False
    weights = np.zeros(len(look))
    weights[first : first + len(row)] = row
    want = np.minimum(1, weights / max(1e-3, weights[plain].max()))
    return painted(inspector, look, np.where(want < 0.02, 0, want))


def painted(inspector, look, want):
    have, cells = inspector.page.evaluate(HEAT), np.array([each.image is not None for each in look.readings])
    return np.allclose(have["words"], want[~cells], atol=0.006) and np.allclose(have["cells"], want[cells], atol=0.006)


def test_a_row_arrives_and_is_painted_over_words_and_cells(inspector, look):
    first = next(each.position for each in look.readings if each.image == 0)
    point(inspector, cells(inspector).nth(20), lambda: painted_as(inspector, look, look.rollout(first + 20)))
    expect(cells(inspector).nth(20)).to_have_attribute(
        "aria-label", re.compile(r"^code \d+, row 3, column 5, probability (under )?[\d.]+ %$")
    )
    inspector.page.get_by_role("gridcell", name="Layer 3, head 1", exact=True).click()
    point(inspector, cells(inspector).nth(30), lambda: painted_as(inspector, look, look.attention(3, 1, first + 30)))
    assert re.search(r"Layer 3, head 1, looked at from code \d+: words .*%", readout(inspector))
    inspector.page.get_by_role("radio", name="chosen from").check()
    point(inspector, cells(inspector).nth(30), lambda: painted_as(inspector, look, look.attention(3, 1, first + 29)))
    inspector.page.get_by_role("radio", name="read by").check()
    point(inspector, words(inspector).nth(3), lambda: painted_as(inspector, look, look.readers(3, 1, 3), first=3))


def test_arrow_keys_move_between_words_and_cells(inspector, look):
    page = inspector.page
    words(inspector).nth(0).focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(words(inspector).nth(3)).to_be_focused()
    inspector.until(lambda: "red" in readout(inspector))
    cells(inspector).nth(0).focus()
    page.keyboard.press("ArrowDown")
    expect(cells(inspector).nth(8)).to_be_focused()
    page.keyboard.press("Enter")
    inspector.until(lambda: inspector.widget.selected == look.readings.index(cell(look, 8)))
    page.keyboard.press("Home")
    expect(words(inspector).nth(0)).to_be_focused()
    assert page.locator(".chm-inspect-flow [tabindex='0']").count() == 1


def point(inspector, node, condition):
    """Points at a node until `condition` holds: what comes meanwhile may move it away from under the pointer."""

    def pointed():
        node.hover()
        return condition()

    inspector.until(pointed)


def cell(look, at):
    return [each for each in look.readings if each.image == 0][at]


def test_a_click_brings_alternatives_with_their_looks(inspector, look):
    cells(inspector).nth(21).click()
    position = cell(look, 21).position
    bars = inspector.page.get_by_role("list", name="What could have stood there")
    inspector.until(lambda: bars.get_by_role("listitem").count() >= 6)
    token, *_ = look.guided(position, 1)[0]
    expect(bars.get_by_role("listitem").first).to_contain_text(look.words(token))
    inspector.until(lambda: bars.locator("img").count() >= 6 and bars.get_by_text("with guidance").count() >= 6)
    expect(inspector.page.locator(".chm-inspect-facts")).to_contain_text(f"rank {look.ranks[position] + 1}")
    words(inspector).nth(3).click()
    inspector.until(
        lambda: bars.get_by_role("listitem").first.inner_text().startswith(look.words(look.alternatives(3)[0][0]))
    )
    assert bars.locator("img").count() == 0


TURNS = """() => {
  window.turns = [];
  const words = document.querySelector('.chm-inspect-picture output');
  const note = () => words.textContent !== window.turns.at(-1) && window.turns.push(words.textContent);
  new MutationObserver(note).observe(words, {childList: true});
}"""  # notes each layer that is shown: one stands for a third of a second, in which nobody may look


def test_the_slider_shows_the_image_as_each_layer_has_it(inspector, look):
    slider, image = (
        inspector.page.get_by_label("Image 1 as it is after layer"),
        inspector.page.locator(".chm-inspect-stage img"),
    )
    inspector.until(lambda: image.is_visible() and slider.is_enabled())
    whole = image.get_attribute("src")
    slider.focus()
    for _ in range(4):
        inspector.page.keyboard.press("ArrowLeft")
    inspector.until(lambda: image.get_attribute("src") != whole and "after layer 2" in figure(inspector))
    read = """() => {
      const canvas = Object.assign(document.createElement('canvas'), {width: 64, height: 64});
      const pen = canvas.getContext('2d');
      pen.drawImage(document.querySelector('.chm-inspect-stage img'), 0, 0);
      return [...pen.getImageData(0, 0, 64, 64).data];
    }"""
    want = np.asarray(look.picture(2).convert("RGBA"))
    inspector.until(lambda: np.array_equal(np.reshape(inspector.page.evaluate(read), (64, 64, 4)), want))
    slider.press("End")
    assert image.get_attribute("src") == whole
    inspector.page.evaluate(TURNS)
    inspector.page.get_by_role("button", name="Play the layers").click()
    played = [*(f"after layer {layer}" for layer in range(look.depth[0])), "as it stands"]
    inspector.until(lambda: inspector.page.evaluate("window.turns") == played)
    assert slider.input_value() == str(look.depth[0]) and figure(inspector) == "as it stands"


def test_who_wants_less_motion_turns_the_layers_by_hand_and_nothing_moves_by_itself(mounted, look, bare_page):
    bare_page.emulate_media(reduced_motion="reduce")
    bridge = mounted(lambda: Inspector(look))
    slider = bridge.page.get_by_label("Image 1 as it is after layer")
    bridge.until(lambda: slider.count() == 1 and slider.is_enabled())
    for layer in ("0", "1", "2"):
        bridge.page.get_by_role("button", name="Next layer").click()
        assert slider.input_value() == layer
    bridge.page.wait_for_timeout(500)  # longer than a layer of the animation
    assert slider.input_value() == "2"
    assert bridge.page.evaluate("() => document.getAnimations().length") == 0
    bridge.widget.close()


def test_two_inspectors_of_one_document_on_one_page_do_not_disturb_each_other(mounted, look):
    """Each its own direction, choice, knock-out, branch and lens, while both ask one look at the same time."""
    one = mounted(lambda: Inspector(look))
    other = beside(one, Inspector(look))
    left, right = (one.page.locator(".chm-inspect").nth(at) for at in (0, 1))
    settle(
        one, other, lambda: right.locator(".chm-lamp").inner_text() == left.locator(".chm-lamp").inner_text() == "Ready"
    )
    left.get_by_role("radio", name="read by").check()
    assert right.get_by_role("radio", name="looked at").is_checked()
    right.get_by_role("gridcell", name="Layer 3, head 1", exact=True).click()
    assert left.get_by_role("button", name="all", exact=True).get_attribute("aria-pressed") == "true"
    left.locator(".chm-inspect-word").nth(3).click()
    right.locator(".chm-inspect-cell").nth(21).click()
    position = cell(look, 21).position
    settle(one, other, lambda: (one.widget.selected, other.widget.selected) == (3, position))
    listed = [each.get_by_role("list", name="What could have stood there") for each in (left, right)]
    settle(one, other, lambda: all(each.get_by_role("listitem").count() >= 6 for each in listed))
    expect(listed[0].get_by_role("listitem").first).to_contain_text(look.words(look.alternatives(3)[0][0]).strip())
    expect(listed[1].get_by_role("listitem").first).to_contain_text(look.words(look.guided(position, 1)[0][0]))
    left.locator(".chm-inspect-word").nth(3).press("k")
    settle(one, other, lambda: left.locator(".chm-inspect-word.chm-inspect-out").count() == 1)
    assert right.locator(".chm-inspect-word.chm-inspect-out").count() == 0
    assert right.get_by_role("button", name="Knock out").get_attribute("aria-pressed") == "false"
    listed[1].locator("button:enabled").first.click()
    settle(one, other, lambda: len(other.widget._branches) == 2 and other.widget._desk.drawing is None)
    settle(one, other, lambda: (one.widget.selected, other.widget.selected) == (3, position))
    assert len(one.widget._branches) == 1 and one.widget.look is look and other.widget.look is not look
    other.widget.close()  # the one that stays goes on
    other.alive = False
    left.get_by_role("button", name="Knock out").click()
    left.locator(".chm-inspect-word").nth(4).click()
    one.until(lambda: one.widget.selected == 4 and "Ready" in left.locator(".chm-lamp").inner_text())
    one.widget.close()


def settle(one, other, condition):
    """Carries the messages of both until `condition` holds."""

    def both():
        other.deliver()
        return condition()

    one.until(both)


def figure(inspector):
    return inspector.page.locator(".chm-inspect-picture output").inner_text()


def test_knocking_tokens_out_shows_what_changes_everywhere(inspector, look):
    page, change = inspector.page, inspector.page.locator(".chm-inspect-change")
    position = cell(look, 21).position
    cells(inspector).nth(21).click()
    page.get_by_role("button", name="Knock out").click()
    words(inspector).nth(3).click()
    words(inspector).nth(4).focus()
    page.keyboard.press("k")
    changes = look.knock_out([3, 4])
    inspector.until(lambda: nats(changes[position]) in change.inner_text() and "without them" in change.inner_text())
    strongest = np.nanmax(np.abs(changes))
    want = np.abs(np.nan_to_num(changes)) / strongest
    inspector.until(lambda: painted(inspector, look, np.where(want < 0.02, 0, want)))
    worst = int(np.nanargmin(changes))
    assert f"−{strongest:.1f}" in page.locator(".chm-inspect-signedscale").inner_text()
    point(
        inspector,
        page.locator(".chm-inspect-word, .chm-inspect-cell").nth(worst),
        lambda: nats(changes[worst]) in readout(inspector),
    )
    expect(words(inspector).nth(3)).to_have_class(re.compile("chm-inspect-out"))
    bars = page.get_by_role("list", name="What could have stood there")
    token, share = look.alternatives(position, 1, without=[3, 4])[0]
    inspector.until(lambda: bars.get_by_text("knocked out").count() >= 6)
    expect(bars.get_by_role("button", name=re.compile(look.words(token))).first).to_contain_text(percentage(share))
    page.get_by_role("button", name="Restore red").click()
    alone = look.knock_out([4])[position]
    inspector.until(lambda: nats(alone) in change.inner_text() and "without it" in change.inner_text())
    words(inspector).nth(4).focus()
    page.keyboard.press("Escape")
    expect(page.locator(".chm-inspect-knock")).to_be_hidden()


def nats(change):
    return f"{'−' if change < 0 else '+'}{abs(change):.2f} nats"


def percentage(share):
    return f"{100 * share:.{1 if share < 0.0995 else 0}f} %"


def test_an_edge_of_one_head_is_cut(inspector, look):
    page, position = inspector.page, cell(look, 21).position
    words(inspector).nth(3).focus()
    page.keyboard.press("x")
    expect(page.get_by_role("alert")).to_contain_text("Lock a head first")
    page.get_by_role("gridcell", name="Layer 3, head 1", exact=True).click()
    cells(inspector).nth(21).click()
    page.get_by_role("button", name="Cut an edge").click()
    words(inspector).nth(3).click()
    change = look.cut(3, 1, 3, position - 1, of=position)
    edges = page.get_by_role("list", name="Edges that were cut")
    inspector.until(lambda: f"layer 3, head 1 cannot read red: {nats(change)}" in edges.inner_text())


def test_forced_and_drawn_tokens_are_branches_that_one_walks_back_through(inspector, look):
    page, position = inspector.page, cell(look, 21).position
    cells(inspector).nth(21).click()
    choices = page.locator(".chm-inspect-choice:not(:disabled)")
    inspector.until(lambda: choices.count() >= 5)
    name = choices.first.locator(".chm-inspect-name").first.inner_text()
    choices.first.click()
    tree = page.get_by_role("tree")
    inspector.until(lambda: tree.get_by_role("treeitem").count() == 2)
    expect(tree.get_by_role("treeitem", selected=True)).to_contain_text(f"“{name}” forced")
    branch = inspector.widget.look
    assert branch.words(branch.tokens[position]) == name
    assert np.array_equal(branch.tokens[:position], look.tokens[:position])
    inspector.until(lambda: name in cells(inspector).nth(21).get_attribute("aria-label"))
    inspector.until(lambda: inspector.widget.selected == position)
    cells(inspector).nth(30).focus()
    page.keyboard.press("r")
    inspector.until(lambda: tree.get_by_role("treeitem").count() == 3)
    expect(tree.get_by_role("treeitem", selected=True)).to_contain_text("drawn anew, seed 1")
    tree.get_by_role("treeitem", selected=True).focus()
    for key in ("ArrowLeft", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    inspector.until(lambda: inspector.widget.look is look)
    expect(tree.get_by_role("treeitem").first).to_be_focused()
    expect(cells(inspector).nth(21)).not_to_have_attribute("aria-label", re.compile(f"^{name},"))
    inspector.until(lambda: painted_as(inspector, look, look.rollout(inspector.widget.selected)))
    page.get_by_role("button", name="Knock out").click()
    words(inspector).nth(3).click()
    page.get_by_role("button", name="Answer without them").click()
    inspector.until(lambda: tree.get_by_role("treeitem").count() == 4)
    expect(tree.get_by_role("treeitem", selected=True)).to_contain_text("without “red”")
    inspector.until(lambda: words(inspector).nth(3).inner_text() == "circle")


def test_layers_and_parts_of_the_chosen_token(inspector, look):
    page, position = inspector.page, cell(look, 21).position
    cells(inspector).nth(21).click()
    page.get_by_role("tab", name="Alternatives").focus()
    page.keyboard.press("ArrowRight")
    rows = page.get_by_role("tabpanel", name="Layer by layer").locator("tbody tr")
    inspector.until(lambda: rows.count() == look.depth[0] and rows.locator("img").count() == look.depth[0])
    for layer in range(look.depth[0]):
        best = int(look.lens(layer, slice(position - 1, position))[0].argmax())
        expect(rows.nth(look.depth[0] - 1 - layer)).to_contain_text(look.words(best))
    page.keyboard.press("ArrowRight")
    feed = [each for each in look.contributions(position) if each.part == "feed_forward"][2].logit
    panel = page.get_by_role("tabpanel", name="What adds up")
    inspector.until(lambda: panel.locator("td").count() == look.depth[0] * (look.depth[1] + 1))
    expect(panel.get_by_label(f"Layer 2, feed-forward: {'−' if feed < 0 else '+'}{abs(feed):.2f}")).to_be_visible()
    page.get_by_role("button", name="Attention times gradient").click()
    relevance = look.relevance(position)
    inspector.until(lambda: painted_as(inspector, look, relevance))
    page.get_by_role("button", name="Lines").click()
    inspector.until(lambda: page.locator(".chm-inspect-lines path").count() > 3)


def test_surprise_lies_under_words_over_cells_and_in_the_ribbon(inspector, look, screenshots):
    page = inspector.page
    surest, oddest = (fun(range(64), key=lambda at: -cell(look, at).log_probability) for fun in (min, max))
    canvas = page.locator(".chm-inspect-surprises")
    expect(canvas).to_be_hidden()
    page.get_by_role("button", name="Surprise").click()
    expect(canvas).to_be_visible()
    read = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 8, 8).data].filter((_, at) => at % 4 === 3)"
    want = [min(1, -cell(look, at).log_probability / 8) for at in (surest, oddest)]
    shades = lambda: (np.array(canvas.evaluate(read)) / 255 / 0.88)[[surest, oddest]]  # noqa: E731
    inspector.until(lambda: np.allclose(shades(), want, rtol=0, atol=3e-3))
    mean = -np.nanmean(look.log_probabilities)
    ribbon = page.locator(".chm-inspect-ribbon canvas")
    expect(ribbon).to_have_attribute("aria-label", re.compile(f"{len(look)} tokens, {mean:.2f} nats on average"))
    ribbon.click(position={"x": ribbon.bounding_box()["width"] * 33.5 / len(look), "y": 20})
    inspector.until(lambda: inspector.widget.selected == 33)
    page.screenshot(path=str(screenshots / "inspector-surprise.png"))


def test_a_page_answers_without_a_kernel_and_without_a_network(inspector, look, tmp_path):
    """The page that the browser saves: hovers, choices and branches that were looked up; what was not, it says."""
    page = inspector.page
    cells(inspector).nth(21).click()
    inspector.until(lambda: page.locator(".chm-inspect-choice img").count() >= 6)
    page.locator(".chm-inspect-choice:not(:disabled)").first.click()
    inspector.until(lambda: page.get_by_role("treeitem").count() == 2)
    inspector.widget.wait(120)
    page.get_by_role("treeitem").first.click()
    inspector.until(lambda: inspector.widget.look is look)
    downloads = []
    page.on("download", lambda download: downloads.append(download))
    page.get_by_role("button", name="Save as a page").click()
    inspector.until(lambda: downloads)
    downloads[0].save_as(tmp_path / "page.html")
    saved, requests, errors = page.context.new_page(), [], []
    saved.on("request", lambda request: requests.append(request.url))
    saved.on("console", lambda message: errors.append(message.text))
    saved.on("pageerror", lambda error: errors.append(str(error)))
    saved.goto(f"file://{tmp_path / 'page.html'}")
    there = SavedView(saved)
    expect(saved.locator(".chm-lamp")).to_have_text("A saved page, without a kernel")
    expect(saved.get_by_role("treeitem")).to_have_count(2)
    expect(saved.locator(".chm-inspect-choice img").nth(5)).to_be_visible()
    cells(there).nth(30).hover()
    expect(saved.locator(".chm-inspect-readout")).to_contain_text("All layers, looked at from code")
    want = look.rollout(cell(look, 30).position)
    plain = [
        at for at, each in enumerate(look.readings[: len(want)]) if each.words not in ("begin_document", "begin_image")
    ]
    first = cell(look, 0).position
    weights = np.array(saved.evaluate(HEAT)["cells"][:31]) * want[plain].max()
    np.testing.assert_allclose(weights, np.where(weights, want[first : first + 31], 0), atol=0.01 * want.max())
    saved.get_by_role("gridcell", name="Layer 3, head 1", exact=True).click()
    cells(there).nth(30).hover()
    expect(saved.locator(".chm-inspect-readout")).to_contain_text("not looked up before this page was saved")
    cells(there).nth(3).click()
    expect(saved.get_by_role("tabpanel", name="Alternatives")).to_contain_text(
        "not looked up before this page was saved"
    )
    saved.get_by_role("treeitem").nth(1).click()
    expect(saved.get_by_role("treeitem", selected=True)).to_contain_text("forced")
    assert not errors, errors
    blocked = saved.evaluate("() => fetch('https://example.org').then(() => 'answered', () => 'blocked')")
    assert blocked == "blocked" and all(url.startswith(("file:", "blob:", "data:")) for url in requests), requests
    saved.close()


class SavedView:
    """A saved page, for the helpers that look at a mounted one."""

    def __init__(self, page):
        self.page = page


def test_text_is_never_html(mounted):
    look = Chameleon.load("tiny").inspect(Document.of("<img src=x onerror=alert(1)> a <b>bold</b> word", EndTurn()))
    bridge = mounted(lambda: Inspector(look))
    bridge.until(lambda: words(bridge).count() == len(look))
    assert bridge.page.locator(".chm-inspect img, .chm-inspect-flow b").count() == 0
    bridge.widget.close()


def test_an_image_under_way_is_its_cells_upon_a_look_that_is_filled_up(mounted, look):
    early = Inspection(look.model, look.tokenizer, look.tokens[:30])
    bridge = mounted(lambda: Inspector(early))
    drawn = sum(each.image == 0 for each in early.readings)
    bridge.until(lambda: cells(bridge).count() == drawn > 0)
    picture, slider = bridge.page.locator(".chm-inspect-stage img"), bridge.page.get_by_label("Image 1 as it is after")
    bridge.until(lambda: picture.is_visible() and slider.is_enabled())
    whole = picture.get_attribute("src")
    slider.fill("0")
    bridge.until(lambda: picture.get_attribute("src") != whole)
    cells(bridge).last.click()
    bridge.until(lambda: bridge.widget.selected == 29 and "code" in readout(bridge))
    bridge.widget.close()


@pytest.mark.parametrize(("theme", "width"), [("dark", 600), ("light", 1920)])
def test_it_fits_narrow_and_wide_pages(inspector, look, screenshots, width, theme):
    page = inspector.page
    page.set_viewport_size({"width": width, "height": 1000})
    page.evaluate("theme => document.body.classList.toggle('dark', theme === 'dark')", theme)
    cells(inspector).nth(21).click()
    bars = page.get_by_role("list", name="What could have stood there")
    inspector.until(lambda: bars.get_by_role("listitem").count() >= 6)
    words(inspector).nth(3).focus()
    page.keyboard.press("k")
    inspector.until(lambda: "nats without it" in page.locator(".chm-inspect-change").inner_text())
    page.screenshot(path=str(screenshots / f"inspector-knock-out-{theme}-{width}.png"))
    page.get_by_role("button", name="Knock out").click()
    position = cell(look, 36).position
    point(inspector, cells(inspector).nth(36), lambda: painted_as(inspector, look, look.rollout(position)))
    page.screenshot(path=str(screenshots / f"inspector-{theme}-{width}.png"))
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


HOVERS = """async (targets) => {
  const nodes = [...document.querySelectorAll('.chm-inspect-word, .chm-inspect-cell')];
  const readout = document.querySelector('.chm-inspect-readout');
  const times = [];
  for (const at of targets) {
    readout.textContent = '';
    const start = performance.now();
    nodes[at].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
    while (!readout.textContent && performance.now() - start < 5000)
      await new Promise((resolve) => requestAnimationFrame(resolve));
    times.push(performance.now() - start);
  }
  return (window.times = times);
}"""
