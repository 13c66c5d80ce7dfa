"""The codebook atlas in a bare page, with the shipped tokenizer and scenes: what is seen, typed and told."""

import re

import numpy as np
import pytest
from playwright.sync_api import expect

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.scenes import sample_scene
from chameleon_lab.records import CodebookUsage
from chameleon_widgets.images.codebook_atlas import CodebookAtlas
from chameleon_widgets.images.codebook_map import columns_of

CELL = """([code, columns, order]) => {
  const canvas = document.querySelector('.chm-atlas-map canvas');
  const side = canvas.width / columns;
  const at = order.indexOf(code);
  const box = [(at % columns) * side, Math.floor(at / columns) * side];
  const inner = side - 2;
  const data = canvas.getContext('2d').getImageData(box[0], box[1], inner, inner).data;
  return Array.from({length: data.length / 4}, (_, at) => data.slice(4 * at, 4 * at + 3).join(' '));
}"""


@pytest.fixture(scope="module")
def tokenizer():
    return Chameleon.load("tiny").tokenizer.image


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(4)
    return {f"scene {number}": sample_scene(rng).picture() for number in range(1, 41)}


@pytest.fixture
def atlas(mounted, tokenizer, scenes):
    bridge = mounted(lambda: CodebookAtlas(tokenizer, pictures=scenes))
    ready(bridge)
    yield bridge
    bridge.widget.close()


def ready(bridge):
    """The atlas has counted and laid out all codes, and the page shows it."""
    bridge.settle(lambda: not bridge.widget._worker.busy)
    bridge.until(lambda: lamp(bridge) == "Ready")


def lamp(atlas):
    return atlas.page.locator(".chm-lamp").inner_text()


def title(atlas):
    return atlas.page.locator(".chm-atlas-code").inner_text()


def shown(atlas, code):
    """The code's detail is whole: its patch and its nearest codes are decoded."""
    atlas.until(
        lambda: (
            title(atlas).startswith(f"Code {code}\n")
            and atlas.page.locator(".chm-atlas-chip img:visible").count() == 8
            and atlas.page.get_by_role("img", name=f"What code {code} decodes to").is_visible()
        )
    )


def places(atlas):
    """The codes by cell of the map, and how many columns it has."""
    order_N = atlas.widget._study.order_N
    return order_N.tolist(), columns_of(len(order_N))


def pixels(atlas, code):
    """The colours inside a code's cell of the map."""
    order, columns = places(atlas)
    atlas.drawn()
    return atlas.page.evaluate(CELL, [code, columns, order])


def over(atlas, code):
    """Where on the page a code's cell is."""
    order, columns = places(atlas)
    box = atlas.page.locator(".chm-atlas-map").bounding_box()
    at, side = order.index(code), box["width"] / columns
    return box["x"] + (at % columns + 0.5) * side, box["y"] + (at // columns + 0.5) * side


def test_it_shows_the_map_the_use_and_the_chosen_code(atlas, screenshots):
    page = atlas.page
    page.screenshot(path=screenshots / "atlas-start.png")
    facts = page.get_by_label("Use of the codebook").inner_text()
    usage = atlas.widget.usage
    for value in (512 - len(usage.dead), f"{100 * usage.usage:.1f} %", len(usage.dead), "2,560"):
        assert re.search(rf"(^|\n){value}\n", facts), value
    assert f"{100 * usage.uniform_usage():.1f} % if even" in facts
    page.mouse.click(*over(atlas, 311))
    shown(atlas, 311)
    assert atlas.widget.selected == 311
    rank = 1 + int((usage.counts_N > usage.counts_N[311]).sum())
    assert title(atlas) == f"Code 311\nseen {usage.counts_N[311]} times, rank {rank} of 512"
    page.mouse.move(5, 5)
    page.screenshot(path=screenshots / "atlas.png")
    page.evaluate("document.body.classList.add('dark')")
    page.wait_for_timeout(600)
    page.screenshot(path=screenshots / "atlas-dark.png")


def test_pointing_tells_the_code_and_its_count(atlas):
    usage = atlas.widget.usage
    for code in (int(usage.dead[0]), int(usage.counts_N.argmax())):
        atlas.page.mouse.move(*over(atlas, code))
        count = usage.counts_N[code]
        expect(atlas.page.locator(".chm-atlas-map .chm-cursor-tip")).to_have_text(
            f"Code {code}, seen {count} times" if count else f"Code {code}, never seen"
        )
    assert atlas.widget.selected is None


def assert_dead_codes_are_marked(atlas):
    """Otherwise than by their colour."""
    usage = atlas.widget.usage
    dead, used = int(usage.dead[0]), int(usage.counts_N.argmax())
    assert len(set(pixels(atlas, used))) == 1 and len(set(pixels(atlas, dead))) > 2


def test_the_map_is_painted_anew_when_the_theme_changes_and_marks_dead_codes_in_both(atlas):
    code = int(atlas.widget.usage.counts_N.argmax())
    assert_dead_codes_are_marked(atlas)
    light = pixels(atlas, code)
    atlas.page.evaluate("document.body.classList.add('dark')")
    atlas.until(lambda: pixels(atlas, code) != light)
    assert_dead_codes_are_marked(atlas)
    brightness = [sum(map(int, each[0].split())) for each in (light, pixels(atlas, code))]
    assert brightness[0] < brightness[1], "the most seen stands out from the paper in either theme"


def test_codes_can_be_seen_in_their_decoded_colours_with_dead_ones_marked(atlas, screenshots):
    page = atlas.page
    page.get_by_role("radio", name="decoded colour").check()
    code = int(atlas.widget.usage.counts_N.argmax())
    colours_N4 = atlas.widget._study.colours_N4
    atlas.until(lambda: colours_N4[:, 3].all() and pixels(atlas, code)[0] == " ".join(map(str, colours_N4[code, :3])))
    assert_dead_codes_are_marked(atlas)
    page.screenshot(path=screenshots / "atlas-colours.png")
    for width in (600, 760, 900, 1920):  # the legend stays below its map, and pushes nothing aside
        page.set_viewport_size({"width": width, "height": 900})
        atlas.drawn()
        legend, chart = (page.locator(f".chm-atlas-{part}").bounding_box() for part in ("legend", "map"))
        least = max(chart["width"], 272)
        assert legend["y"] >= chart["y"] + chart["height"] and legend["width"] <= least + 1, width
        parts = [each.bounding_box() for each in page.locator(".chm-atlas-legend > span").all()]
        assert all(part["x"] + part["width"] <= legend["x"] + least + 1 for part in parts), width
    page.set_viewport_size({"width": 900, "height": 900})
    page.evaluate("document.body.classList.add('dark')")
    page.wait_for_timeout(600)
    assert_dead_codes_are_marked(atlas)
    page.screenshot(path=screenshots / "atlas-colours-dark.png")


def test_the_map_is_walked_and_a_code_chosen_by_keyboard(atlas, screenshots):
    page = atlas.page
    order, columns = places(atlas)
    grid = page.get_by_role("grid", name="Map of the codebook")
    page.get_by_role("spinbutton", name="Go to code").focus()
    page.keyboard.press("Tab")
    expect(grid).to_be_focused()
    for key in ("ArrowDown", "ArrowDown", "End", "ArrowLeft"):
        page.keyboard.press(key)
    code = order[3 * columns - 2]
    cell = grid.get_by_role("gridcell")
    expect(cell).to_have_accessible_name(re.compile(rf"Code {code}, (never )?seen"))
    assert cell.get_attribute("id") == grid.get_attribute("aria-activedescendant")
    page.screenshot(path=screenshots / "atlas-keyboard.png")
    page.keyboard.press("Enter")
    shown(atlas, code)
    for key in ("PageDown", "End", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    expect(cell).to_have_accessible_name(re.compile(f"Code {order[-1]},"))


def test_a_code_is_gone_to_by_number_and_a_wrong_one_told(atlas):
    page = atlas.page
    number = page.get_by_role("spinbutton", name="Go to code")
    number.fill("27")
    number.press("Enter")
    shown(atlas, 27)
    for wrong in ("512", "-1", "1.5"):
        number.fill(wrong)
        number.press("Enter")
        expect(page.get_by_role("alert")).to_have_text(f"There is no code {wrong}: they go from 0 to 511.")
    assert atlas.widget.selected == 27
    number.fill("28")
    number.press("Enter")
    shown(atlas, 28)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_what_python_selects_is_shown(atlas):
    atlas.widget.selected = 400
    shown(atlas, 400)
    expect(atlas.page.get_by_role("spinbutton", name="Go to code")).to_have_value("400")


def test_a_nearest_code_leads_on_and_a_real_patch_to_its_picture(atlas):
    page = atlas.page
    code = int(atlas.widget.usage.counts_N.argmax())
    atlas.widget.selected = code
    shown(atlas, code)
    patch = page.get_by_role("group", name="Real patches").get_by_role("button").last
    (name, row, column) = re.findall(r"^(.+), row (\d+), column (\d+)$", patch.get_attribute("aria-label"))[0]
    patch.click()
    picture = page.get_by_role("combobox", name="Picture")
    atlas.until(lambda: picture.evaluate("node => node.selectedOptions[0].text") == name)
    outline, cell = page.locator("path.chm-atlas-outline"), f"M{int(column) - 1} {int(row) - 1}h1v1h-1z"
    expect(outline).to_have_attribute("d", re.compile(cell))
    outline = outline.get_attribute("d")
    expect(page.get_by_text(f"{outline.count('M')} of 64 cells")).to_be_visible()
    chip = page.get_by_role("group", name="Nearest codes").get_by_role("button").first
    (near,) = re.findall(r"^Code (\d+), .*seen.*, at distance [\d.]+$", chip.get_attribute("aria-label"))
    chip.click()
    shown(atlas, near)


def test_a_cell_of_the_picture_leads_to_its_code_by_mouse_and_keyboard(atlas):
    page = atlas.page
    page.get_by_role("combobox", name="Picture").select_option("scene 7")
    atlas.until(lambda: page.get_by_role("img", name="scene 7, as the encoder sees it").is_visible())
    codes = atlas.widget._study.sightings.pictures[6].codes
    box = page.locator(".chm-atlas-picture").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 2.5 / 8, box["y"] + box["height"] * 6.5 / 8)
    shown(atlas, codes[6, 2])
    grid = page.get_by_role("grid", name="Codes of the picture")
    grid.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    expect(grid.get_by_role("gridcell")).to_have_accessible_name(f"Row 6, column 1: code {codes[5, 0]}")
    page.keyboard.press("Enter")
    shown(atlas, codes[5, 0])


def test_trouble_is_told_in_words_and_leaves_the_map_of_use(mounted, tokenizer, scenes, screenshots):
    class Half:
        codebook = tokenizer.codebook
        encode = staticmethod(tokenizer.encode)

        def decode(self, codes):
            raise RuntimeError("no decoder <b>here</b>")

    bridge = mounted(lambda: CodebookAtlas(Half(), pictures=scenes))
    ready(bridge)
    bridge.page.mouse.click(*over(bridge, 100))
    alert = bridge.page.get_by_role("alert")
    expect(alert).to_have_text("A code could not be decoded: RuntimeError: no decoder <b>here</b>")
    bridge.until(lambda: lamp(bridge) == "Error" and bridge.widget.selected == 100)
    bridge.page.screenshot(path=screenshots / "atlas-error.png")


def test_without_an_answer_it_says_so_and_recovers(atlas):
    atlas.alive = False
    atlas.page.mouse.click(*over(atlas, 5))
    atlas.until(lambda: lamp(atlas).startswith("Disconnected"))
    expect(atlas.page.get_by_role("alert")).to_contain_text("The kernel has not answered")
    atlas.alive = True
    atlas.until(lambda: lamp(atlas) in ("Ready", "Error"))
    atlas.page.mouse.click(*over(atlas, 6))
    shown(atlas, 6)
    atlas.until(lambda: lamp(atlas) == "Ready")


def test_eight_thousand_codes_are_few_elements_and_any_of_them_is_hit(mounted, screenshots):
    class Wide:
        codebook = np.sin(np.random.default_rng(0).uniform(-3, 3, (8192, 2)) @ np.ones((2, 6)) * np.arange(1, 7))

        def encode(self, picture):
            raise NotImplementedError

        def decode(self, codes):
            raise ValueError("This one only lays out.")

    weights = np.random.default_rng(1).pareto(0.9, 8192) * 3
    bridge = mounted(lambda: CodebookAtlas(Wide(), usage=CodebookUsage(weights.astype(np.int64))))
    ready(bridge)
    assert bridge.page.locator("*").count() < 250
    bridge.page.screenshot(path=screenshots / "atlas-8192.png")
    for code in (0, 8191, 4000):
        bridge.page.mouse.click(*over(bridge, code))
        bridge.until(lambda code=code: bridge.widget.selected == code)


@pytest.mark.parametrize("size", [2, 3])
def test_the_smallest_codebooks_fit(mounted, size, screenshots):
    class Small:
        codebook = np.eye(3)[:size]

        def encode(self, picture):
            return (np.asarray(picture.convert("L").resize((4, 3))) > 127).astype(int)

        def decode(self, codes):
            raise ValueError("This one only encodes.")

    rng = np.random.default_rng(0)
    bridge = mounted(lambda: CodebookAtlas(Small(), pictures={"<i>one</i>": sample_scene(rng).picture()}))
    ready(bridge)
    bridge.page.set_viewport_size({"width": 560, "height": 900})
    bridge.page.mouse.click(*over(bridge, 1))
    bridge.until(lambda: bridge.widget.selected == 1)
    expect(bridge.page.get_by_role("combobox", name="Picture")).to_contain_text("<i>one</i>")
    bridge.page.screenshot(path=screenshots / f"atlas-{size}-codes.png")
