"""The codebook atlas in a real JupyterLab, with 8,192 codes: what it shows is right, and how soon is printed."""

import json

import numpy as np
import pytest
from playwright.sync_api import expect

BOOK = """import time
import numpy as np, torch
from chameleon_lab.corpora.scenes import sample_scene
from chameleon_lab.records import CodebookUsage
from chameleon_lab.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from chameleon_widgets.images.codebook_atlas import CodebookAtlas
torch.manual_seed(0)
torch.set_num_threads(1)
config = ImageTokenizerConfig(side=64, codes=8192, code_width=256, widths=(8, 16), latent_width=16, blocks=1,
                              patch=4, groups=4, middle=False)
tokenizer = ImageTokenizer(config).eval()
rng = np.random.default_rng(0)
at = rng.uniform(-3, 3, (8192, 2))
with torch.no_grad():
    tokenizer.quantize.embedding.weight.copy_(torch.tensor(np.sin(at @ rng.normal(size=(2, 256)))))
tokenizer.encode(sample_scene(rng).picture())  # torch has warmed up
weights = rng.pareto(0.9, 8192) * np.exp(-((at - 1) ** 2).sum(1) / 4)
seen = rng.choice(8192, (200, 1024), p=weights / weights.sum())
usage = CodebookUsage.of(seen, 8192)
pictures = [sample_scene(rng).picture() for _ in range(40)]"""

SHOW = """began = time.time()
atlas = CodebookAtlas(tokenizer, pictures=pictures, usage=usage)
atlas"""

PAINTED = """() => { window.painted = new Promise(done => {
  const look = () => document.querySelector('.chm-atlas-map canvas')?.width > 300
    ? requestAnimationFrame(() => setTimeout(() => done(Date.now()))) : requestAnimationFrame(look);
  look(); }) }"""

CLICK = """([x, y, code]) => new Promise(done => {
  const grid = document.querySelector('.chm-atlas-map .chm-cursor-grid');
  const box = grid.getBoundingClientRect();
  const began = performance.now();
  grid.dispatchEvent(new MouseEvent('click', {clientX: box.left + x * box.width, clientY: box.top + y * box.height,
    bubbles: true}));
  const look = () => {
    const large = document.querySelector('.chm-atlas-large');
    const chips = [...document.querySelectorAll('.chm-atlas-chip img')];
    const whole = large.alt === `What code ${code} decodes to` && [large, ...chips].every(each => !each.hidden &&
      each.complete) && chips.length === 8;
    if (whole) requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
    else requestAnimationFrame(look);
  };
  look(); })"""


@pytest.mark.slow
def test_any_of_8192_codes_is_a_click_away(open_notebook, screenshots, capsys):
    notebook = open_notebook([BOOK, SHOW])
    notebook.theme("JupyterLab Light")
    page = notebook.page
    page.evaluate(PAINTED)
    notebook.run_all()
    expect(page.locator(".chm-atlas .chm-lamp")).to_have_text("Ready", timeout=120_000)
    first = page.evaluate("() => window.painted") / 1000 - notebook.kernel("pass\nbegan")
    order, columns = notebook.kernel(
        "from chameleon_widgets.images.codebook_map import columns_of\n"
        "(atlas._study.order_N.tolist(), columns_of(8192))"
    )
    rows = -(-8192 // columns)
    seconds = []
    for at in np.random.default_rng(1).integers(8192, size=60).tolist():
        place = [(at % columns + 0.5) / columns, (at // columns + 0.5) / rows, order[at]]
        seconds.append(page.evaluate(CLICK, place) / 1000)
        notebook.expect("pass\natlas.selected", order[at])
    with capsys.disabled():
        figures = {"first paint": first, "click p50": np.median(seconds), "click p95": np.quantile(seconds, 0.95)}
        print("\n" + json.dumps({name: f"{1000 * value:.0f} ms" for name, value in figures.items()}))
    page.get_by_role("region", name="Codebook atlas").screenshot(path=screenshots / "atlas-lab.png")
    page.get_by_role("radio", name="decoded colour").check()
    notebook.theme("JupyterLab Dark")
    page.screenshot(path=screenshots / "atlas-lab-dark.png")
    page.get_by_role("spinbutton", name="Go to code").fill("77")
    page.keyboard.press("Enter")
    expect(page.locator(".chm-atlas-code")).to_contain_text("Code 77")
    expect(page.get_by_role("img", name="What code 77 decodes to")).to_be_visible()
    expect(page.locator(".chameleon-still")).to_contain_text("of 8,192 codes used")
