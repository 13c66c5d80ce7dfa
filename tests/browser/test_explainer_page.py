"""The explainer in a bare page, on the tiny model: what it shows is the library's, and sliders need no kernel."""

import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import expect

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn
from chameleon_widgets import Explainer

WORDS = "what do you see?"


@pytest.fixture(scope="module")
def tiny():
    return Chameleon.load("tiny")


@pytest.fixture(scope="module")
def scene(tiny):
    (picture,) = tiny.generate(Document.of("draw a red circle left of a blue square", EndTurn()), seed=7).pictures
    return picture


@pytest.fixture
def open_page(mounted):
    bridges = []

    def open_(walk):
        bridge = mounted(lambda: Explainer(walk))
        bridges.append(bridge)
        bridge.until(lambda: bridge.page.locator(".chm-teach-token").count() == len(walk.tokens) and ready(bridge))
        return bridge

    yield open_
    for bridge in bridges:
        bridge.widget.close()


def ready(bridge):
    return bridge.page.locator(".chm-lamp").inner_text() == "Ready"


def go(bridge, name):
    bridge.page.get_by_role("tab", name=name).click()


def settle(bridge, count):
    bridge.until(lambda: bridge.page.locator(".chm-teach-token").count() == count and ready(bridge))


def texts(bridge, selector):
    return bridge.page.locator(selector).all_inner_texts()


def test_that_a_cells_token_is_its_code_and_an_offset_can_be_seen(open_page, tiny, scene):
    walk = tiny.walk(Document.of(scene, WORDS, EndTurn()))
    explainer = open_page(walk)
    page, sum_ = explainer.page, explainer.page.locator(".chm-teach-sum").first
    cells = page.locator(".chm-teach-sequence .chm-teach-cell")
    expect(cells).to_have_count(64)
    codes = tiny.vocabulary.codes_of_tokens(np.array(walk.tokens[2:66]))
    for at in (0, 21, 63):
        cells.nth(at).hover()
        explainer.until(
            lambda at=at: sum_.inner_text() == f"code {codes[at]} + first image token 4 = token {codes[at] + 4}"
        )
        assert page.locator(".chm-teach-ruler .chm-teach-this span").all_inner_texts() == [
            str(codes[at]), str(codes[at] + 4)
        ]  # fmt: skip
    assert page.locator(".chm-teach-codes span").all_inner_texts() == [str(code) for code in codes]
    page.locator(".chm-teach-codes span").nth(9).hover()
    explainer.until(lambda: f"token {codes[9] + 4}" in sum_.inner_text())
    page.mouse.move(2, 2)
    page.locator(".chm-teach-sequence .chm-teach-word").first.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    expect(cells.first).to_be_focused()
    page.keyboard.press("End")
    explainer.until(lambda: sum_.inner_text() == f"end turn is a token of its own: token {tiny.vocabulary.end_turn}")
    page.keyboard.press("ArrowLeft")
    first = tiny.vocabulary.first_text
    piece = walk.tokens[-2] - first
    explainer.until(
        lambda: f"is piece {piece} + first text token {first} = token {walk.tokens[-2]}" in sum_.inner_text()
    )


def test_mask_and_attention_follow_the_position_and_the_head_that_are_chosen(open_page, tiny, scene):
    walk = tiny.walk(Document.of(scene, WORDS, EndTurn()))
    explainer = open_page(walk)
    page = explainer.page
    go(explainer, "Mask")
    page.locator(".chm-teach-sequence .chm-teach-cell").nth(20).click()
    expect(page.locator(".chm-teach-sequence .chm-teach-dim")).to_have_count(len(walk.tokens) - 23)
    expect(page.locator(".chm-teach-masking p")).to_contain_text("at position 22 may read positions 0 to 22")
    go(explainer, "Attention")
    page.get_by_label("Layer").select_option("4")
    page.get_by_label("Head").select_option("3")
    scores, weights = (rows[3] for rows in walk.weights(4, 22))
    best = int(weights.argmax())
    percent = f"{100 * weights[best]:.0f} %"
    explainer.until(lambda: percent in page.locator(".chm-teach-attention .chm-teach-sum").inner_text())
    line = page.locator(".chm-teach-attention .chm-teach-sum").inner_text()
    assert f"(position {best}): score {scores[best]:.2f}" in line
    heat = page.evaluate(
        "() => [...document.querySelectorAll('.chm-teach-sequence .chm-teach-token')]"
        ".map(node => Number(node.style.getPropertyValue('--heat') || 0))"
    )
    kinds = tiny.vocabulary.modality[np.array(walk.tokens[:23])]
    want = np.minimum(1, weights / max(1e-3, weights[kinds < 2].max()))
    np.testing.assert_allclose(heat[:23], np.where(want > 0.004, want, 0), atol=2e-3)
    assert not any(heat[23:])


def test_sliders_move_the_chart_as_the_librarys_sampler_would_and_ask_nobody(open_page, tiny):
    walk = tiny.walk(Document.of("draw a red circle left of a blue square", EndTurn()), seed=2, temperature=1.0)
    for _ in range(24):
        walk.step()
    twin = tiny.walk(walk.document, seed=2, temperature=1.0)
    for token in walk.tokens[len(walk.prompt) :]:
        twin.step(token)
    explainer = open_page(walk)
    page = explainer.page
    go(explainer, "Next token")
    requests = []
    handle = explainer.widget._handle_custom_msg
    explainer.widget._handle_custom_msg = lambda content, buffers: (
        requests.append(content["kind"]), handle(content, buffers)
    )  # fmt: skip
    table = [
        {"Guidance": 1.0, "Temperature": 1.0, "Top-k": 0, "Top-p": 1.0, "Min-p": 0.0},
        {"Guidance": 4.0, "Temperature": 1.5, "Top-k": 0, "Top-p": 1.0, "Min-p": 0.0},
        {"Guidance": 2.5, "Temperature": 2.5, "Top-k": 7, "Top-p": 0.9, "Min-p": 0.0},
        {"Guidance": 1.0, "Temperature": 3.0, "Top-k": 0, "Top-p": 1.0, "Min-p": 0.3},
        {"Guidance": 1.5, "Temperature": 0.0, "Top-k": 0, "Top-p": 0.95, "Min-p": 0.0},
    ]
    counts = set()
    for row in table:
        for name, value in row.items():
            page.get_by_role("slider", name=name, exact=True).fill(str(value))
        twin.change(
            strengths=[row["Guidance"]],
            image_temperature=row["Temperature"],
            image_top_k=row["Top-k"],
            image_top_p=row["Top-p"],
            image_min_p=row["Min-p"],
        )
        token = twin.draw()
        expect(page.locator(".chm-teach-result")).to_contain_text(f"(token {token},")
        words, _, _ = page.locator(".chm-teach-softmax > .chm-teach-note").inner_text().partition(" of ")
        count = int(words.replace(",", ""))
        draws = set()
        for draw in np.linspace(0, 1, 400, endpoint=False):
            twin.next.__dict__["draw"] = float(draw)
            draws.add(twin.draw())
        assert len(draws) <= count
        if row["Top-k"] or row["Temperature"] == 0:
            assert count == len(draws) <= 7
        counts.add(count)
        twin.seed = twin.seed
    assert len(counts) > 3 and not set(requests) - {"looks", "hello"}
    left = page.get_by_role("group", name="Left out")
    expect(left).to_contain_text("only codes fill cells.")
    expect(left).to_contain_text("temperature 0 takes the likeliest")
    expect(left.get_by_role("button", name="no", exact=False).first).to_be_disabled()
    page.get_by_role("button", name="Draw it, and round again").click()
    settle(explainer, len(twin.tokens) + 1)
    assert walk.tokens[-1] == token and walk.settings.image_temperature == 0
    page.get_by_role("button", name="As the model has it").click()


def test_the_walk_goes_on_and_back_by_keyboard_and_plays_to_its_end(open_page, tiny, scene):
    prompt = Document.of(scene, WORDS, EndTurn())
    walk, twin = tiny.walk(prompt, seed=4, max_tokens=9), tiny.walk(prompt, seed=4, max_tokens=9)
    explainer = open_page(walk)
    page, count = explainer.page, len(walk.tokens)
    page.get_by_role("tab", name="Tokens").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Softmax")).to_be_focused()
    logits = walk.next.logits_SV[0].astype(float)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    kinds = [shares[tiny.vocabulary.modality == kind].sum() for kind in range(3)]
    names = page.locator(".chm-teach-kinds").get_attribute("aria-label")
    largest = int(np.argmax(kinds))
    assert f"{['words', 'patches', 'special'][largest]} {100 * kinds[largest]:.0f} %" in names
    page.get_by_role("button", name="Draw the next token").press("Enter")
    settle(explainer, count + 1)
    page.get_by_role("button", name="Step back").press("Enter")
    settle(explainer, count)
    expect(page.get_by_role("button", name="Step back")).to_be_disabled()
    go(explainer, "Next token")
    page.get_by_role("spinbutton", name="Seed").fill("6")
    page.keyboard.press("Enter")
    twin.seed = 6
    expect(page.locator(".chm-teach-result")).to_be_visible()
    explainer.until(lambda: f"seed 6 is {twin.next.draw:.4f}" in page.locator(".chm-teach-result").inner_text())
    page.get_by_role("button", name="Play until the reply ends").press("Enter")
    explainer.until(lambda: walk.next.ended and "has ended" in page.locator(".chm-teach-result").inner_text())
    while twin.step() is not None:
        pass
    assert walk.tokens == twin.tokens and len(walk.tokens) > count + 6
    expect(page.get_by_role("button", name="Play until the reply ends")).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".chm-teach-picture img")).to_have_count(1)
    page.get_by_role("button", name="Back to the prompt").click()
    settle(explainer, count)
    go(explainer, "Sampling")
    row = page.get_by_role("group", name="Left out").get_by_role("button", disabled=False).first
    name = row.locator(".chm-teach-name").inner_text()
    row.click()
    settle(explainer, count + 1)
    assert walk.words(walk.tokens[-1]).replace("_", " ") == name


def test_who_wants_less_motion_sees_a_played_walk_where_it_stops(open_page, tiny, bare_page):
    bare_page.emulate_media(reduced_motion="reduce")
    walk = tiny.walk(Document.of("draw a red circle", EndTurn()), seed=5)
    explainer, count = open_page(walk), len(walk.tokens)
    page = explainer.page
    page.evaluate("""() => {
      window.counts = new Set();
      const look = () => window.counts.add(document.querySelectorAll('.chm-teach-token').length);
      new MutationObserver(look).observe(document.body, {subtree: true, childList: true});
    }""")
    play = page.get_by_role("button", name="Play until the reply ends")
    play.click()
    explainer.until(lambda: len(walk.tokens) > count + 5)
    play.click()  # stopped on the way: what is drawn so far is shown
    tokens = page.locator(".chm-teach-token")
    whole = lambda: not explainer.widget._worker.busy and tokens.count() == len(walk.tokens)  # noqa: E731
    explainer.until(lambda: whole() and ready(explainer))
    stops = len(walk.tokens)
    play.click()
    explainer.until(lambda: walk.next.ended and whole() and ready(explainer))
    assert len(page.evaluate("() => [...window.counts]")) <= 4, "tokens were shown one by one"
    assert stops < len(walk.tokens) and page.evaluate("() => document.getAnimations().length") == 0


def test_a_prompt_of_the_readers_own_and_text_that_is_never_html(open_page, tiny, tmp_path):
    explainer = open_page(tiny.walk(Document.of("hello", EndTurn())))
    page = explainer.page
    PIL.Image.new("RGB", (50, 40), (200, 0, 0)).save(tmp_path / "red.png")
    page.get_by_role("button", name="Your own prompt").click()
    page.locator("form input[type=file]").set_input_files(tmp_path / "red.png")
    expect(page.get_by_alt_text("The picture of the prompt")).to_be_visible()
    page.get_by_role("textbox", name="Words of the prompt").fill("<img src=x onerror=alert(1)> <b>bold</b>")
    page.get_by_role("button", name="Begin", exact=True).click()
    explainer.until(lambda: len(explainer.widget.walk.tokens) > 70)
    explainer.settle(lambda: not explainer.widget._worker.busy)
    settle(explainer, len(explainer.widget.walk.tokens))
    for name in ("Sequence", "Attention", "Softmax", "Sampling", "Next token"):
        go(explainer, name)
        explainer.until(lambda: ready(explainer))
        assert page.locator(".chm-teach b b, .chm-teach img[src=x]").count() == 0
    assert page.locator(".chm-teach-sequence .chm-teach-divider").count() == 0


def test_a_kernel_that_does_not_answer_is_named_and_the_page_can_still_be_read(open_page, tiny):
    explainer = open_page(tiny.walk(Document.of("draw a red circle", EndTurn())))
    explainer.alive = False
    page = explainer.page
    page.get_by_role("button", name="Play until the reply ends").click()
    expect(page.get_by_role("alert")).to_contain_text("is busy with another cell, or gone")
    expect(page.get_by_role("button", name="Play until the reply ends")).to_have_attribute("aria-pressed", "false")
    go(explainer, "Sampling")
    page.get_by_role("slider", name="Temperature").fill("2.0")
    page.get_by_role("slider", name="Top-p").fill("1")
    expect(page.get_by_role("group", name="Left, likeliest first").get_by_role("button")).to_have_count(10)


def test_every_station_fits_narrow_and_wide_pages_light_and_dark(open_page, tiny, scene, screenshots):
    walk = tiny.walk(Document.of(scene, "make the circle green", EndTurn()), seed=5)
    for _ in range(10):
        walk.step()
    explainer = open_page(walk)
    page = explainer.page
    for width, theme in ((600, "dark"), (1920, "light")):
        page.set_viewport_size({"width": width, "height": 1000})
        page.evaluate("theme => document.body.classList.toggle('dark', theme === 'dark')", theme)
        for tab in range(7):
            page.get_by_role("tab").nth(tab).click()
            explainer.until(lambda: ready(explainer))
            page.screenshot(path=str(screenshots / f"explainer-{tab + 1}-{width}-{theme}.png"), full_page=True)
            box = page.locator(".chm-teach")
            assert box.evaluate("node => node.scrollWidth <= node.clientWidth")
            assert box.evaluate("node => node.getBoundingClientRect().right <= innerWidth")
            stage = page.locator(".chm-teach-stage").bounding_box()
            assert stage["width"] > 400 and stage["height"] > 200
