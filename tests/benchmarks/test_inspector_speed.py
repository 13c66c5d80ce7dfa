"""How soon the inspector paints, in Chromium, at a thousand positions and at 4,096. Prints; asserts no time.

pytest -m slow tests/benchmarks/test_inspector_speed.py -s
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

import comm
import numpy as np
import pytest
from browser.conftest import (  # noqa: F401
    Bridge,
    FakeComm,
    bare_context,
    bare_page,
    browser,
    lab,
    lab_context,
    mounted,
    open_notebook,
)
from browser.test_inspector_lab import LONG, MAKE
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
    tiny = Chameleon.load("tiny")
    request = Document.of("draw a red circle left of a blue square", EndTurn())
    scene = tiny.encode(request + tiny.generate(request, seed=7))[1:].tolist()
    tokens = np.array([0, *(scene * (1 + positions // len(scene)))[: positions - 1]])
    model = tiny.model
    if positions > model.config.context:
        model = Transformer(replace(model.config, context=positions)).eval()
    return Inspection(model, tiny.tokenizer, tokens, guide=tiny.settings.guide)


def percentiles(times: list[float]) -> str:
    return f"p50 {np.median(times):.0f} ms, p95 {np.percentile(times, 95):.0f} ms"


FIRST = "() => document.querySelectorAll('.chm-inspect-word').length > 5"
PAINTED = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"


@pytest.mark.parametrize("positions", [1000, 4096])
def test_how_soon_a_document_is_on_the_screen(positions: int, bare_context, monkeypatch):  # noqa: F811
    """Each time a widget and a page of their own; the machine's load stands beside the figures."""
    look, times = inspection(positions), list[list[float]]()
    monkeypatch.setattr(comm, "create_comm", FakeComm)
    for _ in range(12):
        page, start = bare_context.new_page(), time.monotonic()
        bridge = Bridge(page, Inspector(look))
        made = time.monotonic()
        bridge.mount()
        mounted_at = time.monotonic()
        bridge.until(lambda: page.evaluate(FIRST))  # noqa: B023
        page.evaluate(PAINTED)
        times.append([each - start for each in (made, mounted_at, time.monotonic())])
        bridge.widget.close()
        page.close()
    for name, seconds in zip(("made", "mounted", "painted"), zip(*times, strict=True), strict=True):
        print(f"\n{positions} positions, {name}: {percentiles([1000 * each for each in seconds])}", end="")
    print(f"; first {1000 * times[0][-1]:.0f} ms; load {os.getloadavg()[0]:.1f}")


AGAIN = """async (times) => {
  const {content} = jupyterapp.shell.currentWidget, seconds = [];
  for (let time = 0; time < times; time += 1) {
    await jupyterapp.commands.execute('notebook:clear-all-cell-outputs');
    await new Promise((done) => setTimeout(done, 500));
    const start = performance.now();
    content.activeCellIndex = content.widgets.length - 1;
    jupyterapp.commands.execute('notebook:run-cell');
    while (document.querySelectorAll('.chm-inspect-word').length < 6) {
      await new Promise(requestAnimationFrame);
      if (performance.now() - start > 20000) throw new Error('nothing was painted');
    }
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    seconds.push(performance.now() - start);
  }
  return seconds;
}"""  # from the cell's start to the frame


def test_how_soon_a_document_is_on_the_screen_in_jupyterlab(open_notebook):  # noqa: F811
    """From Shift+Enter to the frame that shows a thousand tokens: the cell, the widget, its script, its first draw."""
    notebook = open_notebook([MAKE, LONG, "look = lab.inspect(document)", "Inspector(look)"])
    notebook.run_all()
    times = notebook.page.evaluate(AGAIN, 12)
    print(f"\nJupyterLab, 1,000 positions, first paint: {percentiles(times)}; load {os.getloadavg()[0]:.1f}")


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
    bridge.until(lambda: not (bridge.widget._desk.busy or bridge.widget._rolling), 120)
    print(f"all images drawn, rollout of all positions there, after {time.monotonic() - start:.2f} s")
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


OTHER = """import anywidget
class Other(anywidget.AnyWidget):
    _esm = "export default {render({el}) { el.innerHTML = '<p class=chm-inspect-word></p>'.repeat(6); }};"
"""

LAST = "(source) => jupyterapp.shell.currentWidget.content.widgets.at(-1).model.sharedModel.setSource(source)"


@pytest.mark.parametrize("first", ["look", "other"])
def test_where_the_first_paint_in_a_page_of_jupyterlab_goes(first: str, open_notebook):  # noqa: F811
    """The first widget of a page, and the same again: an inspector, or six letters of nobody's. What the two first
    share is JupyterLab fetching what shows any widget."""
    show = {"look": "Inspector(look)", "other": "Other()"}
    notebook = open_notebook([MAKE, LONG, OTHER, "look = lab.inspect(document)", "pass"])
    notebook.run_all()
    for name in (first, *(show.keys() - {first}), first):
        notebook.page.evaluate(LAST, show[name])
        (milliseconds,) = notebook.page.evaluate(AGAIN, 1)
        print(f"\n{first} first, {name}: {milliseconds:.0f} ms; load {os.getloadavg()[0]:.1f}", end="")
