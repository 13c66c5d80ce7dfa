"""The comparison of runs without a browser: what it tells of runs of any kind, and what it sends to the screen."""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import traitlets
from test_run_panel import unpacked
from widget_support import eventually, recorder

from chameleon_lab.history import Alarm, Event, History, Intervention, RecordedRun, RunState, StepRecord, event_line
from chameleon_widgets import ComparePanel
from chameleon_widgets.runs.comparison import (
    CURVE_COLOURS,
    Columns,
    differences,
    flattened,
    outcomes_by_rate,
    seed_groups,
    worded,
)
from chameleon_widgets.stills import WIDGET_VIEW

pytestmark = pytest.mark.usefixtures("comms")
CONFIG = {"name": "a", "seed": 0, "model": {"fixes": []}, "recipe": {"rate": 0.1, "betas": [0.9, 0.95]}}


class Trained:
    """A run that stands still until told to go on."""

    def __init__(self, name: str = "a", steps: int = 4, config: dict[str, Any] | None = None, **state: Any) -> None:
        self.config = {**CONFIG, "name": name, **(config or {})}
        self.state = replace(RunState(name, "finished", tokens_per_second=500.0), **state)
        self.records = [record(step) for step in range(steps)]
        self.events: list[Event] = []

    @property
    def history(self) -> History:
        return History.of(self.records, self.events)


def record(step: int, **values: float) -> StepRecord:
    held_out = {"held_out_loss": 3.0 - 0.1 * step} if step % 2 else {}
    return StepRecord(step, float(step), {"loss": 4.0 - step} | held_out | values, {"residual_norm": [1.0, 2.0 + step]})


def says(panel: ComparePanel, kind: str, **content: Any) -> None:
    panel._handle_custom_msg({"kind": kind, **content}, [])


def sent(panel: ComparePanel, kind: str) -> list[tuple[dict[str, Any], list[bytes]]]:
    return [(content, buffers) for content, buffers in recorder(panel).custom if content["kind"] == kind]


def received(panel: ComparePanel) -> dict[tuple[int, str], tuple[list[float], list[float]]]:
    """(steps, values) by run and measure, put together as the page does."""
    series: dict[tuple[int, str], tuple[list[float], list[float]]] = {}
    epochs, counts = dict[int, int](), dict[int, int]()
    for content, buffers in sent(panel, "records"):
        run = content["run"]
        if content["epoch"] != epochs.get(run) or not content["start"]:
            epochs[run], counts[run] = content["epoch"], 0
            series = {key: value for key, value in series.items() if key[0] != run}
        assert content["start"] == counts[run], "no record twice, and none left out"
        counts[run] += content["records"]["count"]
        for name, points in unpacked([(content, buffers)]).items():
            steps, values = series.setdefault((run, name), ([], []))
            steps += [step for step, _ in points]
            values += [value for _, value in points]
    return series


def settled(panel: ComparePanel) -> ComparePanel:
    assert panel._line.settle() and panel._worker.wait(120)
    return panel


def test_a_finished_run_is_opened_from_its_folder_and_no_thread_stays(tmp_path):
    folder = tmp_path / "baseline"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps(asdict(RunState("from its state", "finished"))))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "metrics.jsonl").write_text(History(tuple(map(record, range(4)))).to_jsonl())
    (folder / "events.jsonl").write_text(event_line(Alarm(2, "WARN", "logits", "max logit 60")))
    panel = settled(ComparePanel([folder, str(folder), RecordedRun(folder)]))
    assert [row["run"] for row in panel.table] == ["from its state", "from its state 2", "from its state 3"]
    assert panel.table[0]["alarms"] == 1 and panel.table[0]["steps"] == 4
    says(panel, "hello", mark="x-1")
    eventually(lambda: received(panel).get((0, "loss")) == ([0, 1, 2, 3], [4, 3, 2, 1]))
    eventually(lambda: not any(thread.name.startswith("compare panel") for thread in threading.enumerate()))


def test_the_table_says_what_each_run_came_to_and_what_it_did_not_record():
    bare = Trained("bare", 0, status="failed", error="ValueError: no data", tokens_per_second=0.0)
    whole = Trained("whole")
    whole.records[2] = record(2, max_attention_logit=60.0, loss=math.nan)
    one, other = ComparePanel({"whole": whole, "bare": bare}).table
    expected = {"status": "finished", "steps": 4, "loss": 1.0, "lowest_loss": 1.0, "max_attention_logit": 60.0}
    expected |= {"run": "whole", "alarms": 0, "tokens_per_second": 500.0, "error": ""}
    assert one.pop("held_out_loss") == pytest.approx(2.7) and one == expected
    assert other["steps"] == 0 and other["error"] == "ValueError: no data"
    for key in ("held_out_loss", "loss", "lowest_loss", "max_attention_logit", "tokens_per_second"):
        assert other[key] is None


def test_a_fork_says_where_it_came_from():
    fork = Trained("fork", parent="a", forked_at=1200, difference="+ QueryKeyNorm()")
    panel = settled(ComparePanel([Trained(), fork]))
    assert panel.table[1]["parent"] == "a" and panel.table[1]["forked_at"] == 1200
    assert "parent" not in panel.table[0]
    words = sent(panel, "state")[-1][0]["runs"][1]["forked"]
    assert words == "forked from a at step 1,200: + QueryKeyNorm()"
    assert words in " ".join(panel.figure().get_supxlabel().split())


def test_only_settings_that_differ_are_told_flat_and_in_words():
    fixed = {**CONFIG, "model": {"fixes": [{"is": "QueryKeyNorm", "eps": 1e-5}, {"is": "Reordering"}], "width": 64}}
    configs = {"a": CONFIG, "b": fixed, "silent": {}}
    found = differences(configs)
    assert found == {"model.fixes": {"a": [], "b": fixed["model"]["fixes"]}, "model.width": {"b": 64}}
    words = [worded(value) for value in found["model.fixes"].values()]
    assert words == ["none", "QueryKeyNorm(eps=1e-05), Reordering()"]
    assert differences({"a": CONFIG, "silent": {}}) == {} == differences({})
    assert flattened({"a": {"b": {"c": 1}}, "d": {}}) == {"a.b.c": 1}
    values = {True: "yes", None: "none", 0.30000000001: "0.3", 3: "3", "x": "x", (1, 2): "1, 2"}
    assert [worded(value) for value in values] == [*values.values()]


def test_differences_come_back_and_go_to_the_screen():
    panel = settled(ComparePanel({"a": Trained(), "b": Trained(config={"seed": 3})}))
    assert panel.differences == {"seed": {"a": 0, "b": 3}}
    assert sent(panel, "state")[-1][0]["differences"] == [{"key": "seed", "values": ["0", "3"]}]
    assert "They differ in seed 0 (a), 3 (b)." in " ".join(panel.figure().get_supxlabel().split())


def test_runs_that_differ_by_seed_alone_are_groups_and_nothing_else_is():
    def config(seed=0, rate=0.1, **more):
        return {"name": f"n{seed}", "seed": seed, "recipe": {"rate": rate}} | more

    runs = {f"base seed {seed}": config(seed) for seed in (1, 2, 3)} | {"base fast": config(4, 0.2), "none": {}}
    assert seed_groups(runs) == {"base seed": ["base seed 1", "base seed 2", "base seed 3"]}
    assert seed_groups({"a": config(1), "b": config(1)}) == {}, "the same run twice is no sample of seeds"
    assert seed_groups({"a": config(1, data={"seed": 1}), "b": config(1, data={"seed": 2})}) == {"a": ["a", "b"]}
    two = {f"x {seed} {rate}": config(seed, rate) for rate in (0.1, 0.2) for seed in (1, 2)}
    assert seed_groups(two) == {"x": ["x 1 0.1", "x 2 0.1"], "x (x 1 0.2)": ["x 1 0.2", "x 2 0.2"]}


def test_seeds_are_one_line_in_a_band_of_the_figure_until_they_are_opened():
    runs = {f"a {seed}": Trained(config={**CONFIG, "seed": seed}) for seed in (0, 1, 2)}
    for at, run in enumerate(runs.values()):
        run.records[:] = [StepRecord(step, 1.0 * step, {"loss": 2.0 + at}) for step in range(at, 9)]
        run.events += [Alarm(3 + at, "WARN", "logits", "words")]
    panel = settled(ComparePanel(runs, measures=["loss"]))
    assert sent(panel, "state")[-1][0]["groups"] == [{"name": "a", "runs": [0, 1, 2]}]
    (line,) = [each for each in panel.figure().axes[0].lines if each.get_gid() == "a"]
    assert np.array_equal(line.get_xydata(), [(step, 3.0) for step in range(2, 9)])
    (band,) = panel.figure().axes[0].collections
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert (heights.min(), heights.max()) == (2.0, 4.0)
    alarms = lambda: [each for each in panel.figure().axes[0].lines if each.get_gid() == "alarm"]  # noqa: E731
    assert {each.get_color() for each in alarms()} == {line.get_color()} and len(alarms()) == 3
    panel.opened = ["a"]
    lines = {each.get_gid(): each.get_color() for each in panel.figure().axes[0].lines if each.get_gid() != "alarm"}
    assert list(lines) == ["a 0", "a 1", "a 2"] and list(lines.values()) == [each.get_color() for each in alarms()]
    assert not panel.figure().axes[0].collections


def test_a_growing_run_is_followed_with_each_value_sent_once():
    run = Trained(status="running", steps=2)
    panel = ComparePanel({"live": run}, measures=["loss", "residual_norm"])
    eventually(lambda: received(panel).get((0, "loss")) == ([0, 1], [4, 3]))
    run.records += [record(2, loss=math.nan), record(3, loss=math.inf)]
    run.events += [Alarm(3, "CRITICAL", "logits", "words"), Intervention(2, "rate", 0.1, 0.05)]
    eventually(lambda: len(received(panel)[0, "loss"][0]) == 4)
    steps, values = received(panel)[0, "loss"]
    assert steps == [0, 1, 2, 3] and math.isnan(values[2]) and values[3] == math.inf
    assert received(panel)[0, "residual_norm"][1] == [2, 3, 4, 5]
    run.state = replace(run.state, status="finished")
    eventually(lambda: sent(panel, "state")[-1][0]["runs"][0]["over"])
    events = [content for content, _ in sent(panel, "records") if content["alarms"]["list"]][-1]
    assert events["alarms"]["list"] == [{"step": 3, "level": "CRITICAL", "rule": "logits", "message": "words"}]
    change = {"step": 2, "name": "rate", "before": "0.1", "after": "0.05", "reason": ""}
    assert events["changes"]["list"] == [change]
    assert sent(panel, "state")[-1][0]["runs"][0]["row"]["loss"] == "inf", "JSON has no such number"
    settled(panel)
    eventually(lambda: not any(thread.name.startswith("compare panel") for thread in threading.enumerate()))


def test_a_run_that_went_back_to_a_checkpoint_is_sent_anew():
    run = Trained(status="running")
    panel = ComparePanel([run], measures=["loss"])
    eventually(lambda: len(received(panel).get((0, "loss"), ((),))[0]) == 4)
    run.records = [*run.records[:2], replace(record(2, loss=7.0), seconds=9.0)]
    eventually(lambda: received(panel)[0, "loss"] == ([0, 1, 2], [4, 3, 7]))
    panel.close()


def test_measures_are_chosen_when_there_are_some_and_can_be_changed():
    run = Trained(status="running", steps=0)
    panel = ComparePanel([run])
    assert panel.measures == []
    run.records.append(record(1, gradient_norm=1.0, image_log_partition=6.0, other=2.0))
    eventually(lambda: panel.measures == ["loss", "residual_norm", "image_log_partition", "gradient_norm"])
    panel.measures = ["other", "nothing"]
    eventually(lambda: received(panel).get((0, "other")) == ([1], [2]))
    assert [axis.get_title(loc="left") for axis in panel.figure().axes] == ["other"]
    panel.measures = []
    run.records.append(record(2))
    time.sleep(0.5)
    assert panel.measures == [], "a choice of none stays"
    panel.close()


def test_a_second_page_gets_everything_from_the_start():
    panel = settled(ComparePanel([Trained()]))
    recorder(panel).custom.clear()
    says(panel, "hello", mark="other-1")
    eventually(lambda: sent(panel, "line"))
    assert [content["kind"] for content, _ in recorder(panel).custom] == ["state", "records", "line"]
    assert received(panel)[0, "loss"][0] == [0, 1, 2, 3]
    assert sent(panel, "line")[-1][0]["requests"] == {"other": 1}


def test_a_run_that_cannot_be_read_is_told_in_its_row_and_the_others_go_on():
    class Broken(Trained):
        broken = False

        @property
        def history(self) -> History:
            if self.broken:
                raise OSError("the disk is gone")
            return super().history

    broken = Broken("broken")
    panel = ComparePanel([broken, Trained("whole")])
    broken.broken = True
    one, other = panel.table
    assert one["error"] == "This run cannot be read: OSError: the disk is gone" and one["steps"] == 4
    assert other["error"] == "" and other["steps"] == 4
    broken.broken = False
    assert panel.table[0]["error"] == ""


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        ComparePanel([tmp_path])
    with pytest.raises(TypeError, match=r"compares runs, which have a state and a history.*not a dict"):
        ComparePanel({"config": {"rate": 1}})  # pyright: ignore[reportArgumentType]
    with pytest.raises(traitlets.TraitError):
        ComparePanel([], smoothing=1.5)
    panel = settled(ComparePanel())
    says(panel, "export", format="exe")
    says(panel, "nonsense")
    settled(panel)
    assert panel.table == [] and not sent(panel, "figure") and not sent(panel, "trouble")


def sweep() -> dict[str, Trained]:
    runs = {}
    for fixes, losses in (([], {0.1: 2.0, 0.3: math.nan}), (["QueryKeyNorm()"], {0.1: 2.0, 0.3: 2.5})):
        for rate, loss in losses.items():
            for seed in (0, 1):
                name = f"{'fixed' if fixes else 'baseline'} {rate:g} seed {seed}"
                config = {"seed": seed, "model": {"fixes": fixes}, "recipe": {**CONFIG["recipe"], "rate": rate}}
                runs[name] = Trained(name, 3, config)
                runs[name].records.append(StepRecord(3, 3.0, {"loss": 1.0, "held_out_loss": loss + 0.1 * seed}))
    return runs


def test_runs_of_several_rates_give_a_sensitivity_by_configuration():
    panel = settled(ComparePanel(sweep()))
    assert panel.sensitivity == pytest.approx({"baseline": (2.05 + 4) / 2 - 2.05, "fixed": 0.25})
    rates = sent(panel, "state")[-1][0]["rates"]
    assert rates["start"] == 4.0 and [group["name"] for group in rates["groups"]] == ["baseline", "fixed"]
    assert rates["groups"][0]["losses"] == [[0.1, [2.0, 2.1]], [0.3, ["nan", "nan"]]]
    panel.view = "rates"
    assert panel.figure().axes[0].get_xscale() == "log"
    panel.hidden = [name for name in sweep() if name.startswith("baseline")]
    assert list(panel.sensitivity) == ["fixed"]
    assert len(panel.figure("curves").axes) == len(panel.measures)


def test_configurations_without_common_words_are_called_by_what_sets_them_apart():
    runs = [*sweep().values()]
    configs = {f"run {chr(97 + at)}": run.config for at, run in enumerate(runs)}
    columns = {name: Columns(run.history) for name, run in zip(configs, runs, strict=True)}
    found, start = outcomes_by_rate(configs, columns)
    assert list(found) == ["model.fixes: none", "model.fixes: QueryKeyNorm()"] and start == 4
    same = {name: {**config, "recipe": {"rate": 0.1}} for name, config in configs.items()}
    assert outcomes_by_rate(same, columns) == ({}, math.inf) == outcomes_by_rate({}, {})


def test_a_figure_is_what_the_panel_shows():
    panel = settled(ComparePanel({"a": Trained(), "b": Trained()}, measures=["loss"], smoothing=0.5))
    panel.hidden = ["a"]
    (axis,) = panel.figure().axes
    assert {line.get_gid() for line in axis.lines} == {"b", "recorded"}
    assert {line.get_color() for line in axis.lines} == {CURVE_COLOURS[1]}, "as on screen"


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_figures_are_exported_to_the_browser(kind: str, start: bytes):
    panel = settled(ComparePanel([Trained()], measures=["loss"]))
    says(panel, "export", format=kind, mark="x-1")
    settled(panel)
    ((content, (data,)),) = sent(panel, "figure")
    assert content["format"] == kind and data.startswith(start)


def test_a_failed_export_is_told(monkeypatch):
    panel = settled(ComparePanel([Trained()]))

    def broken() -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(panel, "figure", broken)
    says(panel, "export", format="png")
    settled(panel)
    assert sent(panel, "trouble")[0][0]["error"] == "The figure could not be drawn: MemoryError: no room"


def test_the_still_shows_a_figure_and_each_run_in_words_and_no_live_html():
    script = Trained("<script>alert(1)</script>", status="failed", error="<b>boom</b>")
    panel = settled(ComparePanel([script], measures=["loss"]))
    bundle = panel._line.mimebundle()
    assert WIDGET_VIEW in bundle and '<img src="data:image/png;base64,' in bundle["text/html"]
    assert "<script" not in bundle["text/html"] and "<b>boom" not in bundle["text/html"]
    assert "failed, 4 steps, held-out loss 2.7. <b>boom</b>" in bundle["text/plain"]
    assert settled(ComparePanel())._line.mimebundle()["text/plain"] == "A comparison without runs."


@pytest.mark.parametrize("view", ["curves", "rates"])
def test_hidden_runs_leave_a_figure_and_a_still_whichever_they_are(view):
    """Each set of hidden runs, among runs that do not record the same."""
    runs = {"a": Trained(), "b": Trained(), "c": Trained(config={"recipe": {"rate": 0.2}})}
    runs["b"].records = [StepRecord(step, float(step), {"own": 1.0}) for step in range(3)]
    for hidden in ([], ["a"], ["b"], ["a", "c"], ["a", "b", "c"], ["nobody"]):
        panel = ComparePanel(runs, measures=["loss", "own"])
        panel.hidden, panel.view = hidden, view
        figure = panel.figure()
        html, words = panel._still()
        assert "data:image/png" in html and words.startswith("Comparison.")
        if len(hidden) == 3 and view == "curves":
            assert not figure.axes and "All runs are hidden" in " ".join(text.get_text() for text in figure.texts)


def test_a_run_added_later_joins():
    panel = settled(ComparePanel([Trained()], measures=["loss"]))
    panel.add(Trained("a"))
    eventually(lambda: (1, "loss") in received(panel))
    assert [row["run"] for row in panel.table] == ["a", "a 2"]
