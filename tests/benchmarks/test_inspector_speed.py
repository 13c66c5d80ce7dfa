"""How soon the inspector paints, in Chromium, at a thousand positions and at 4,096. Prints; asserts no time.

pytest -m slow tests/benchmarks/test_inspector_speed.py -s
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from browser.conftest import bare_context, bare_page, browser, mounted  # noqa: F401
from browser.test_inspector_page import HOVERS

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.inspection import Inspection
from chameleon_lab.transformer import Transformer
from chameleon_widgets import Inspector

pytestmark = pytest.mark.slow

HOVER_COST = """(targets) => {
  const nodes = [...document.querySelectorAll('.chm-inspect-word, .chm-inspect-cell')];
  return targets.map((at) => {
    const start = performance.now();
    nodes[at].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
    document.body.getBoundingClientRect();
    return performance.now() - start;
  });
}"""  # script, style and layout of a hover whose row is there, without waiting for a frame


def inspection(positions: int) -> Inspection:
    """Of the tiny model; beyond its context, of one of its shape with random weights."""
    lab = Chameleon.load("tiny")
    request = Document.of("draw a red circle left of a blue square", EndTurn())
    scene = lab.encode(request + lab.generate(request, seed=7))[1:].tolist()
    tokens = np.array([0, *(scene * (1 + positions // len(scene)))[: positions - 1]])
    model = lab.model
    if positions > model.config.context:
        model = Transformer(replace(model.config, context=positions)).eval()
    return Inspection(model, lab.tokenizer, tokens, guide=lab.settings.guide)


def percentiles(times: list[float]) -> str:
    return f"p50 {np.median(times):.0f} ms, p95 {np.percentile(times, 95):.0f} ms"


@pytest.mark.parametrize("positions", [1000, 4096])
def test_how_soon_the_inspector_paints(positions: int, request: pytest.FixtureRequest):
    look = inspection(positions)
    mount, starts = request.getfixturevalue("mounted"), list[float]()  # with Chromium, which is not the inspector's

    def make() -> Inspector:
        starts.append(time.monotonic())
        return Inspector(look)

    bridge = mount(make)
    (start,) = starts
    bridge.until(lambda: bridge.page.locator(".chm-inspect-word").count() > 5)
    print(f"\n{positions} positions: first paint {time.monotonic() - start:.2f} s after the widget was made")
    bridge.until(lambda: bridge.page.locator(".chm-lamp").inner_text() == "Ready", 120)
    print(f"ready, all images drawn, after {time.monotonic() - start:.2f} s")
    for head in (None, "Layer 3, head 1", "Layer 4, head 2"):
        if head:
            bridge.page.get_by_role("gridcell", name=head, exact=True).click()
        if head == "Layer 4, head 2":
            bridge.page.get_by_role("radio", name="read by").check()
        targets = np.random.default_rng(0 if head else 1).permutation(positions)[:100].tolist()
        for run in ("from the kernel", "again, from the page"):
            bridge.page.evaluate(f"targets => {{ window.times = null; ({HOVERS})(targets) }}", targets)
            bridge.until(lambda: bridge.page.evaluate("() => window.times !== null"), 300)
            times = bridge.page.evaluate("() => window.times")
            print(f"{head or 'Rollout'}, {run}, to the frame: {percentiles(times)}")
            assert max(times) < 5000, "a row did not come"
        costs = bridge.page.evaluate(HOVER_COST, targets)
        print(f"{head or 'Rollout'}, script and layout of a hover: p50 {np.median(costs):.1f} ms, "
              f"p95 {np.percentile(costs, 95):.1f} ms")  # fmt: skip
    bridge.widget.close()
