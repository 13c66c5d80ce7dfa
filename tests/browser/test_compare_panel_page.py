"""The comparison of runs in a bare page: curves, tables, what differs, and what is told of runs that went wrong."""

import math

import fakes
import PIL.Image
import pytest
from playwright.sync_api import expect

from chameleon_lab.history import History, StepRecord
from chameleon_widgets import ComparePanel


def stress(**changes):
    return {kind: fakes.StressRun(kind, **changes) for kind in ("baseline", "query/key norm", "all")}


@pytest.fixture
def compared(mounted):
    """`compared(runs)` shows a panel of them, and waits until they are there."""
    panels = []

    def show(runs, **arguments):
        bridge = mounted(lambda: ComparePanel(runs, **arguments))
        words = f"{len(runs) or 'No'} run"
        bridge.until(lambda: bridge.page.locator(".chm-lamp").inner_text().startswith(words))
        panels.append(bridge.widget)
        return bridge

    yield show
    for panel in panels:
        panel.close()


def rows(panel):
    """The cells of each run's row, after its name."""
    found = panel.page.locator(".chm-compare-runs tbody tr").all()
    return [cells for row in found if len(cells := row.locator("td").all_inner_texts()) > 1]


def titles(panel):
    return panel.page.locator(".chm-compare-charts figcaption b").all_inner_texts()


def readout(panel, title):
    figure = panel.page.locator(".chm-compare-charts figure", has=panel.page.locator("b", has_text=title))
    return figure.locator(".chm-compare-readout output").all_inner_texts()


def test_runs_stand_side_by_side(compared, screenshots):
    runs = stress()
    panel = compared(runs)
    panel.until(lambda: len(titles(panel)) == 4)
    assert titles(panel) == ["loss", "max attention logit", "residual norm", "log-partition, image tokens"]
    expect(panel.page.locator(".chm-lamp")).to_have_text("3 runs, over")
    held_out = [f"{run.history.held_out_loss:.3f}" for run in runs.values()]
    assert [row[2] for row in rows(panel)] == held_out
    assert [row[6] for row in rows(panel)] == ["2", "0", "0"]
    panel.until(lambda: readout(panel, "log-partition") == ["9.943"] * 3)
    settings = panel.page.get_by_role("region", name="Settings that differ")
    cells = settings.locator("tbody tr th, tbody tr td").all_inner_texts()
    assert cells == ["model.fixes", "none", "QueryKeyNorm()", "QueryKeyNorm(), Reordering()"]
    panel.page.screenshot(path=screenshots / "compare.png", full_page=True)
    panel.page.evaluate("document.body.classList.add('dark')")
    panel.page.wait_for_timeout(600)
    panel.page.screenshot(path=screenshots / "compare-dark.png", full_page=True)


def test_seeds_are_one_row_and_one_line_until_they_are_opened(compared, screenshots):
    runs = {f"baseline seed {seed}": fakes.StressRun("baseline", seed=seed) for seed in (0, 1, 2)}
    runs["fixed"] = fakes.StressRun("all", seed=5)
    panel = compared({})
    for name, run in runs.items():
        panel.widget.add(run, name)
    keys = panel.page.locator(".chm-compare-key")
    names = lambda: ["".join(text.split("\n")) for text in keys.all_inner_texts()]  # noqa: E731
    panel.until(lambda: names() == ["▸baseline seed, 3 seeds", "fixed"] and len(readout(panel, "loss")) == 2)
    mean = sum(run.history.held_out_loss for run in list(runs.values())[:3]) / 3
    assert rows(panel)[0][2] == f"{mean:.3f}"
    assert "Mean of 3, from" in panel.page.locator(".chm-compare-group td").nth(2).get_attribute("title")
    panel.page.screenshot(path=screenshots / "compare-seeds.png", full_page=True)
    keys.first.click()
    panel.until(lambda: len(keys.all_inner_texts()) == 5 and len(readout(panel, "loss")) == 4)
    assert panel.widget.opened == ["baseline seed"]
    assert panel.page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    keys.nth(1).click()  # one seed is hidden
    panel.until(lambda: len(readout(panel, "loss")) == 3)
    keys.first.click()
    panel.until(lambda: len(readout(panel, "loss")) == 2)


def painted(panel, title):
    """The colours on a chart, by how many pixels have them, the paper left out."""
    panel.drawn()
    return panel.page.evaluate(
        """(title) => {
          const figures = [...document.querySelectorAll('.chm-compare-charts figure')];
          const canvas = figures.find(each => each.querySelector('b').textContent === title).querySelector('canvas');
          const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          const counts = {};
          for (let at = 0; at < data.length; at += 4) {
            if (data[at + 3] < 250) continue;
            const key = [...data.slice(at, at + 3)].join(' ');
            counts[key] = (counts[key] ?? 0) + 1;
          }
          return counts;
        }""",
        title,
    )


BLUE, ORANGE, GREEN = "59 130 214", "217 115 26", "42 157 111"


def test_a_run_is_hidden_and_shown_in_all_charts_by_its_name(compared):
    panel = compared(stress())
    panel.until(lambda: {BLUE, ORANGE, GREEN} <= set(painted(panel, "residual norm")))
    key = panel.page.get_by_role("button", name="query/key norm")
    key.focus()
    panel.page.keyboard.press("Enter")
    panel.until(lambda: panel.widget.hidden == ["query/key norm"])
    panel.until(lambda: ORANGE not in painted(panel, "residual norm"))
    expect(key).to_have_attribute("aria-pressed", "false")
    expect(key).to_be_focused()
    panel.until(lambda: BLUE in painted(panel, "residual norm") and len(readout(panel, "residual norm")) == 2)
    panel.widget.hidden = ["baseline"]
    panel.until(lambda: BLUE not in painted(panel, "loss") and ORANGE in painted(panel, "residual norm"))


def test_the_cursor_reads_all_charts_at_one_step(compared):
    runs = stress()
    panel = compared(runs)
    panel.until(lambda: len(titles(panel)) == 4 and readout(panel, "loss"))
    panel.page.locator(".chm-compare-charts .chm-curves-plot").first.focus()
    panel.page.keyboard.press("Home")
    at_first = [run.history.records[0] for run in runs.values()]
    panel.until(lambda: readout(panel, "residual norm") == ["4", "4", "4"])
    loss = [float(value) for value in readout(panel, "loss")]
    assert loss == pytest.approx([record.values["loss"] for record in at_first], abs=1e-3)
    panel.page.keyboard.press("Escape")
    panel.until(lambda: readout(panel, "residual norm")[2] == "28.72")


def test_smoothing_is_said_and_keeps_what_was_recorded(compared, screenshots):
    panel = compared(stress(), measures=["loss", "held_out_loss", "rate"])
    panel.until(lambda: {BLUE, ORANGE, GREEN} <= set(painted(panel, "loss")))
    recorded = painted(panel, "loss")
    slider = panel.page.get_by_role("slider", name="Smoothing")
    slider.fill("0.9")
    panel.until(lambda: panel.widget.smoothing == 0.9)
    units = panel.page.locator(".chm-curves-unit").all_inner_texts()
    assert units == ["nats a token, smoothed 0.90", "nats a token", "smoothed 0.90"]
    panel.until(lambda: painted(panel, "loss") != recorded)
    panel.page.screenshot(path=screenshots / "compare-smoothed.png", full_page=True)
    panel.widget.smoothing = 0.0
    panel.until(lambda: "smoothed" not in panel.page.locator(".chm-curves-unit").first.inner_text())
    panel.until(lambda: painted(panel, "loss") == recorded)


def test_measures_are_chosen_in_the_panel_and_from_python(compared, screenshots):
    panel = compared(stress(), measures=["loss"])
    panel.until(lambda: titles(panel) == ["loss"])
    panel.page.get_by_role("button", name="Measures").click()
    panel.page.get_by_role("checkbox", name="held-out loss").check()
    panel.until(lambda: titles(panel) == ["loss", "held-out loss"] and readout(panel, "held-out loss"))
    panel.page.screenshot(path=screenshots / "compare-measures.png")
    assert panel.widget.measures == ["loss", "held_out_loss"]
    panel.widget.measures = ["rate"]
    panel.until(lambda: titles(panel) == ["rate"])
    expect(panel.page.get_by_role("checkbox", name="held-out loss")).not_to_be_checked()
    panel.page.get_by_role("checkbox", name="rate").uncheck()
    panel.until(lambda: panel.widget.measures == [])
    expect(panel.page.get_by_text("No measure is chosen.")).to_be_visible()


def test_a_dragged_range_is_shown_in_all_charts(compared, screenshots):
    panel = compared(stress())
    panel.until(lambda: {BLUE, ORANGE, GREEN} <= set(painted(panel, "loss")))
    whole = painted(panel, "loss")
    box = panel.page.locator(".chm-compare-charts .chm-curves-plot").nth(1).bounding_box()
    panel.page.mouse.move(box["x"] + 150, box["y"] + 60)
    panel.page.mouse.down()
    panel.page.mouse.move(box["x"] + 250, box["y"] + 60, steps=3)
    panel.page.mouse.up()
    before = painted(panel, "loss")
    assert before != whole
    panel.page.screenshot(path=screenshots / "compare-zoomed.png", full_page=True)
    panel.page.mouse.dblclick(box["x"] + 100, box["y"] + 60)
    panel.page.mouse.move(2, 2)
    panel.until(lambda: painted(panel, "loss") == whole)


RATES = (0.01, 0.03, 0.1, 0.3)
SWEEP = {"baseline": (1.651, 1.911, 2.499, 3.297), "query/key norm": (1.602, 1.614, 1.695, 1.822)}


def sweep():
    """The measured sweep, two seeds of each rate."""
    runs = {}
    for kind, losses in SWEEP.items():
        for rate, loss in zip(RATES, losses, strict=True):
            for seed in (0, 1):
                run = fakes.StressRun(kind, 20, rate, seed)
                last = StepRecord(20, 1.0, {"loss": loss, "held_out_loss": loss + (0.08 * seed - 0.04) * loss})
                run.history = History((*run.history.records, last))
                runs[f"{kind} {rate:g} seed {seed}"] = run
    return runs


def test_the_loss_against_the_learning_rate_is_a_view_of_its_own(compared, screenshots):
    panel = compared(sweep())
    panel.page.get_by_role("radio", name="Learning rate").check()
    panel.until(lambda: panel.widget.view == "rates" and panel.page.locator(".chm-rates-dot").count() == 8)
    legend = panel.page.locator(".chm-rates-legend li").all_inner_texts()
    told = {name: f"sensitivity {number:.4g}" for name, number in panel.widget.sensitivity.items()}
    assert [text.split("\n") for text in legend] == [[name, number] for name, number in told.items()]
    assert told["baseline"] == "sensitivity 0.6885"
    expect(
        panel.page.get_by_role("img", name="Held-out loss against learning rate. baseline: 1.651 at 0.01")
    ).to_be_visible()
    expect(panel.page.get_by_role("slider", name="Smoothing")).to_be_hidden()
    settings = panel.page.locator(".chm-compare-settings thead th").all_inner_texts()
    assert settings == ["Run", "seed", "model.fixes", "recipe.rate"], "many runs are rows"
    panel.page.screenshot(path=screenshots / "compare-rates.png", full_page=True)
    panel.widget.view = "curves"
    panel.until(lambda: not panel.page.locator(".chm-rates").is_visible() and len(titles(panel)) == 4)


def test_runs_of_different_length_forks_failures_and_silence_are_told(compared, screenshots):
    runs = stress()
    runs["query/key norm"] = fakes.StressRun("query/key norm", 300, status="running")
    forked = {"parent": "baseline", "forked_at": 200, "difference": "+ QueryKeyNorm(), Reordering()"}
    runs["fork"] = fakes.StressRun("all", 500, status="interrupted", **forked)
    runs["fork"].history = History(runs["fork"].history.records[100:])
    words = "ValueError: the loss is not a number at step 12; <b>lower the rate</b>"
    runs["broken"] = fakes.StressRun("baseline", 0, status="failed", error=words)
    runs["broken"].config = {}
    runs["nan"] = fakes.StressRun("all", 200)
    records = runs["nan"].history.records
    bad = [StepRecord(each.step, each.seconds, {"loss": math.nan}) for each in records[60:]]
    runs["nan"].history = History((*records[:60], *bad))
    panel = compared(runs)
    panel.until(lambda: len(rows(panel)) == 6 and len(titles(panel)) == 4)
    page = panel.page
    expect(page.locator(".chm-lamp")).to_have_text("6 runs, 1 going on")
    assert [row[0] for row in rows(panel)] == [
        "finished",
        "running, 42 %",
        "finished",
        "interrupted",
        "failed",
        "finished",
    ]
    assert [row[1] for row in rows(panel)] == ["699", "299", "699", "499", "0", "199"]
    expect(page.get_by_text("forked from baseline at step 200: + QueryKeyNorm(), Reordering()")).to_be_visible()
    expect(page.locator(".chm-compare-runs").get_by_role("alert")).to_have_text(words)
    assert rows(panel)[5][3] == "not a number" and rows(panel)[4][2] == "–"
    expect(page.get_by_text("No config of broken.")).to_be_visible()
    page.screenshot(path=screenshots / "compare-mixed.png", full_page=True)
    runs["query/key norm"].state = fakes.StressRun("query/key norm", 300, status="stopped").state
    panel.until(lambda: page.locator(".chm-lamp").inner_text() == "6 runs, over")


def test_a_live_run_grows_on_screen(compared):
    run = fakes.GrowingRun(20)
    panel = compared({"live": run}, measures=["loss"])
    panel.until(lambda: readout(panel, "loss"))
    for _ in range(10):
        run.grow()
    loss = f"{run.records[-1].values['loss']:.4g}"
    panel.until(lambda: readout(panel, "loss") == [loss])
    panel.until(lambda: rows(panel)[0][:2] == ["running, 3 %", "30"])
    run.become(status="finished")
    panel.until(lambda: panel.page.locator(".chm-lamp").inner_text() == "1 run, over")


def test_names_and_settings_are_text_and_never_html(compared):
    name = "<img src=x onerror='window.hacked=1'>"
    run, other = fakes.StressRun("all", 50), fakes.StressRun("all", 50)
    run.config = {name: name, "deep": {name: [name]}}
    panel = compared({name: run, "$other$": other}, measures=["loss"])
    panel.until(lambda: readout(panel, "loss"))
    expect(panel.page.get_by_role("button", name=name)).to_be_visible()
    assert name in panel.page.locator(".chm-compare-settings tbody th").all_inner_texts()
    assert panel.page.locator(".chm img").count() == 0
    assert panel.page.evaluate("() => window.hacked === undefined")


@pytest.mark.parametrize("kind", ["PNG", "SVG"])
def test_the_figure_is_saved_as_a_file(compared, kind, tmp_path):
    panel = compared(stress(), measures=["loss"])
    saved = []
    panel.page.on("download", lambda download: saved.append(download))
    panel.page.get_by_role("button", name=f"Save as {kind}").click()
    panel.until(lambda: saved)
    assert saved[0].suggested_filename == f"runs.{kind.lower()}"
    saved[0].save_as(tmp_path / "figure")
    if kind == "PNG":
        with PIL.Image.open(tmp_path / "figure") as picture:
            assert picture.width > 800
    else:
        assert "<svg" in (tmp_path / "figure").read_text()


def test_a_panel_without_runs_says_what_to_do(compared, screenshots):
    panel = compared({})
    expect(panel.page.get_by_text("No runs to compare. Pass runs, or folders of runs, by name.")).to_be_visible()
    expect(panel.page.get_by_role("button", name="Save as PNG")).to_be_disabled()
    panel.widget.add(fakes.StressRun("baseline", 0, status="waiting"), "first")
    panel.until(lambda: "Nothing recorded yet." in panel.page.locator(".chm-compare-empty").inner_text())
    expect(panel.page.get_by_role("region", name="Settings that differ")).to_be_hidden()
    panel.page.screenshot(path=screenshots / "compare-empty.png")


def test_a_narrow_panel_keeps_its_page_narrow(compared, screenshots):
    panel = compared(stress())
    panel.until(lambda: len(titles(panel)) == 4)
    panel.page.set_viewport_size({"width": 480, "height": 900})
    panel.drawn()
    assert panel.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    panel.page.screenshot(path=screenshots / "compare-narrow.png", full_page=True)
