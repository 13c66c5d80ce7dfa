"""The explainer in a real JupyterLab: a draw, sliders, and the still that outlives the kernel."""

import json

from playwright.sync_api import expect

MAKE = """from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn
from chameleon_widgets import Explainer
lab = Chameleon.load("tiny")
walk = lab.walk(Document.of("draw a red circle left of a blue square", EndTurn()), seed=7)"""


def test_a_draw_a_slider_and_the_still_in_jupyterlab(open_notebook):
    notebook = open_notebook([MAKE, "explainer = Explainer(walk)\nexplainer"])
    notebook.run_all()
    page = notebook.page
    tokens = page.locator(".chm-teach-token")
    expect(tokens.nth(10)).to_be_visible()
    count = tokens.count()
    for more in (1, 2, 3):
        page.get_by_role("button", name="Draw the next token").click()
        expect(tokens).to_have_count(count + more)
    page.get_by_role("tab", name="Next token").click()
    page.get_by_role("slider", name="Temperature").fill("0")
    expect(page.locator(".chm-teach-result")).to_contain_text("100 %")
    page.get_by_role("button", name="Draw it, and round again").click()
    expect(tokens).to_have_count(count + 4)
    notebook.expect("explainer.wait(60)\nlen(walk.tokens)", count + 4)
    best = notebook.kernel("walk.back()\nint(walk.draw())")
    assert best == notebook.kernel("walk.step()\nwalk.tokens[-1]")
    expect(page.locator(".chameleon-still")).to_contain_text("begin_image517")
    notebook.save()
    outputs = json.loads(notebook.path.read_text())["cells"][1]["outputs"]
    still = next("".join(each["data"]["text/html"]) for each in outputs if "text/html" in each["data"])
    assert "begin_image<sub>517</sub>" in still and "square<sub>" in still
