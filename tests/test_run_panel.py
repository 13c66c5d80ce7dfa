"""The run panel without a browser: what is sent and how often, who acts on the run, and which threads are left."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import socket
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import pytest
from browser.fakes import GrowingRun, step_record
from widget_support import browser_says, eventually, recorder

from chameleon_lab.history import Alarm, History, Intervention, RecordedRun, RunState, StepRecord, event_line
from chameleon_widgets import ComparePanel, threads
from chameleon_widgets.runs.run_feed import LAYER_ROWS, RECORDS_A_MESSAGE, RunFeed, record_columns, setting_words
from chameleon_widgets.runs.run_panel import RunPanel, summary
from chameleon_widgets.stills import WIDGET_VIEW

pytestmark = pytest.mark.usefixtures("comms")
nan = math.nan


@pytest.fixture
def shown():
    """`shown(run)` makes a panel and lets a browser say hello; panels are closed at the end."""
    panels: list[RunPanel] = []

    def show(run: Any) -> RunPanel:
        panels.append(RunPanel(run))
        browser_says(panels[-1], {"kind": "hello", "mark": "me-1"})
        return panels[-1]

    yield show
    for panel in panels:
        panel.close()


def losses(messages: list[tuple[dict[str, Any], list[bytes]]]) -> list[tuple[float, Any]]:
    """(step, loss) of those that have come."""
    return unpacked(messages).get("loss", [])


def unpacked(messages: list[tuple[dict[str, Any], list[bytes]]]) -> dict[str, list[tuple[float, Any]]]:
    """What a browser makes of messages: (step, value) of each measure, and (step, row) of each of layers."""
    seen: dict[str, list[tuple[float, Any]]] = {}
    for message, buffers in messages:
        if "records" not in message:
            continue
        steps, places, values = (
            np.frombuffer(each, kind) for each, kind in zip(buffers, ("<f8", "<u4", "<f4"), strict=True)
        )
        count, place, value = message["records"]["count"], 0, 0
        assert len(steps) == count
        for column in message["records"]["measures"] + message["records"]["layers"]:
            rows, size = column["count"], math.prod(column.get("shape", ()))
            where = np.arange(count)
            if not column.get("whole"):
                where, place = places[place : place + rows], place + rows
            what, value = (
                values[value : value + rows * size].reshape(rows, *column.get("shape", ())),
                value + rows * size,
            )
            seen.setdefault(column["name"], []).extend(zip(steps[where].tolist(), what.tolist(), strict=True))
            value += math.prod(column.get("heads", (0,)))
        assert (place, value) == (len(places), len(values))
    return seen


def message(records: list[StepRecord]) -> tuple[dict[str, Any], list[bytes]]:
    header, buffers = record_columns(records)
    return {"records": header}, buffers


def write(folder: Path, state: RunState, history: History) -> Path:
    """A run's folder."""
    folder.mkdir(exist_ok=True)
    (folder / "state.json").write_text(json.dumps(asdict(state)))
    (folder / "metrics.jsonl").write_text(history.to_jsonl())
    (folder / "events.jsonl").write_text("".join(map(event_line, (*history.alarms, *history.interventions))))
    return folder


def sent(panel: RunPanel, kind: str = "records") -> list[tuple[dict[str, Any], list[bytes]]]:
    return [(content, buffers) for content, buffers in recorder(panel).custom if content["kind"] == kind]


def state_of(panel: RunPanel) -> dict[str, Any]:
    """The newest state that was sent; empty before the first."""
    return next((content for content, _ in reversed(sent(panel, "state"))), {})


def news(
    feed: RunFeed, history: History, measures: list[str] | None = None
) -> list[tuple[dict[str, Any], list[bytes]]]:
    return [({**message}, buffers) for message, buffers in feed.news(history, measures)]


def panel_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("run panel")]


def test_every_record_arrives_once_with_the_values_it_has():
    records = [
        StepRecord(0, 0.1, {"loss": 3.5}, {"norm": [1.0, 2.0]}),
        StepRecord(2, 0.2, {"loss": 3.0, "held_out_loss": 4.0}),
    ]
    feed = RunFeed()
    messages = news(feed, History(tuple(records[:1])))
    assert not news(feed, History(tuple(records[:1])))
    messages += news(feed, History(tuple(records)))
    assert [each["start"] for each, _ in messages] == [0, 1]
    assert unpacked(messages) == {
        "loss": [(0, 3.5), (2, 3.0)],
        "held_out_loss": [(2, 4.0)],
        "norm": [(0, [1.0, 2.0])],
    }


def test_what_is_not_a_number_arrives_as_such_and_what_is_missing_does_not():
    records = [StepRecord(0, 0, {"loss": nan}), StepRecord(1, 0, {"loss": math.inf, "rate": 1e300}), StepRecord(2, 0)]
    seen = unpacked([message(records)])
    assert math.isnan(seen["loss"][0][1]) and seen["loss"][1:] == [(1, math.inf)]
    assert seen["rate"] == [(1, math.inf)], "beyond single precision"


def test_events_arrive_once_and_changes_are_told_in_words():
    history = History(
        (StepRecord(0, 0, {"loss": 1.0}),),
        (Alarm(0, "WARN", "rule", "head <1>"),),
        (Intervention(0, "weights", {"pairs": 0.8}, {"pairs": 0.5}, "why"), Intervention(0, "z_loss", None, 1e-5)),
    )
    feed = RunFeed()
    ((first, _),) = news(feed, history)
    assert not news(feed, history)
    assert first["alarms"]["list"] == [{"step": 0, "level": "WARN", "rule": "rule", "message": "head <1>"}]
    assert [(each["name"], each["before"], each["after"]) for each in first["changes"]["list"]] == [
        ("weights", "pairs 0.8", "pairs 0.5"),
        ("z loss", "none", "1e-05"),
    ]
    ((later, _),) = news(feed, replace(history, alarms=(*history.alarms, Alarm(3, "ALARM", "rule", "again"))))
    assert later["alarms"]["start"] == 1 and len(later["alarms"]["list"]) == 1
    assert later["changes"]["list"] == [] and later["records"]["count"] == 0


@pytest.mark.parametrize("after", [5, 8])
def test_a_history_written_anew_is_sent_from_its_start_in_another_epoch(after: int):
    feed = RunFeed()
    news(feed, History(tuple(StepRecord(step, step, {"loss": 1.0}) for step in range(8))))
    ((again, _),) = news(feed, History(tuple(StepRecord(step, 100 + step, {"loss": 2.0}) for step in range(after))))
    assert (again["epoch"], again["start"], again["records"]["count"]) == (1, 0, after)


def test_chosen_measures_are_sent_alone_and_a_new_choice_begins_another_epoch():
    history = History(
        tuple(StepRecord(at, at, {"loss": float(at)}, {"logit": [[1.0, at], [0.0, 0.5]]}) for at in range(3))
    )
    feed = RunFeed()
    assert unpacked(news(feed, history, ["loss"])) == {"loss": [(0, 0), (1, 1), (2, 2)]}
    assert not news(feed, history, []), "fewer measures need nothing sent again"
    ((wider, buffers),) = news(feed, history, ["loss", "logit"])
    assert wider["epoch"] == 1
    assert unpacked([(wider, buffers)])["logit"] == [(0, 1), (1, 1), (2, 2)], "of layers and heads, the worst"
    assert not news(feed, history, ["logit"]) and not wider["records"]["layers"]


def test_a_long_history_comes_in_chunks_and_its_layers_keep_the_worst():
    count = 2 * RECORDS_A_MESSAGE + 10
    rng = np.random.default_rng(0)
    logits, entropies = rng.random((count, 2, 3)), 0.5 + rng.random((count, 2))
    logits[RECORDS_A_MESSAGE + 77, 1, 2] = 1e4
    entropies[501, 0] = 1e-3
    logits[40, 0, 0] = nan
    history = History(
        tuple(
            StepRecord(at, at, {"loss": float(at)}, {"logit": logits[at].tolist(), "entropy": entropies[at].tolist()})
            for at in range(count)
        )
    )
    messages = news(RunFeed(), history)
    assert [each["start"] for each, _ in messages] == [0, RECORDS_A_MESSAGE, 2 * RECORDS_A_MESSAGE]
    seen = unpacked(messages)
    assert seen["loss"] == [(at, at) for at in range(count)]
    rows = np.array([row for _, row in seen["logit"]])
    assert len(rows) <= 3 * LAYER_ROWS and rows.shape[1:] == (2, 3)
    assert np.nanmax(rows) == 1e4 and np.isnan(rows[:, 0, 0]).sum() == 1
    assert np.array([row for _, row in seen["entropy"]]).min() == pytest.approx(1e-3)


def test_many_heads_are_folded_to_the_worst_of_each_layer_and_the_newest_are_sent_whole():
    rows = np.arange(2 * 32 * 32, dtype=float).reshape(2, 32, 32)
    header, (_, _, values) = record_columns([StepRecord(at, at, {}, {"logit": rows[at].tolist()}) for at in range(2)])
    (column,) = header["layers"]
    assert (column["shape"], column.get("heads"), column["count"]) == ([32], [32, 32], 2)
    sent = np.frombuffer(values, "<f4")
    assert np.array_equal(sent[:64].reshape(2, 32), rows.max(-1)) and np.array_equal(sent[64:], rows[1].ravel())


@pytest.mark.parametrize("row", [[[1.0], [1.0, 2.0]], ["a", "b"], [], [[[1.0]]], None])
def test_rows_that_are_neither_layers_nor_heads_are_left_out(row: Any):
    records = [StepRecord(0, 0, {"loss": 1.0}, {"odd": row}), StepRecord(1, 0, {"loss": 2.0}, {"odd": [1.0, 2.0]})]
    assert unpacked([message(records)]) == {"loss": [(0, 1.0), (1, 2.0)], "odd": [(1, [1.0, 2.0])]}
    assert record_columns(records[:1])[0]["layers"] == []


def test_a_hello_is_answered_with_everything_so_far(shown):
    run = GrowingRun(40)
    panel = shown(run)
    eventually(lambda: len(losses(sent(panel))) >= 40)
    recorder(panel).custom.clear()
    browser_says(panel, {"kind": "hello", "mark": "other-1"})
    eventually(lambda: sent(panel, "line"))
    state, records, answer = (content for content, _ in recorder(panel).custom)
    assert (records["start"], records["epoch"], answer["requests"]) == (0, 0, {"other": 1})
    assert state["name"] == "baseline" and state["settings"]["weights"] == {"pairs": 0.8, "text": 0.2}


def test_a_fast_run_is_told_in_few_messages_by_one_thread_and_none_is_lost(shown):
    run = GrowingRun()
    panel = shown(run)
    began = time.monotonic()
    for _ in range(600):
        run.grow()
        time.sleep(0.001)
    run.become(status="finished")
    eventually(lambda: len(losses(sent(panel))) == 600)
    seconds = time.monotonic() - began
    assert len(sent(panel)) <= 30 * seconds + 8
    assert [step for step, _ in unpacked(sent(panel))["loss"]] == list(range(600))
    assert recorder(panel).threads == {"run panel pump"}


def test_no_thread_is_left_when_the_run_is_over(shown, monkeypatch: pytest.MonkeyPatch):
    run = GrowingRun(20)
    panel = shown(run)
    monkeypatch.setattr(panel._line._pump, "_linger", 0.01)
    assert "run panel pump" in panel_threads()
    run.become(status="finished")
    eventually(lambda: not panel_threads())
    assert state_of(panel)["status"] == "finished" and panel.status == "finished"


def test_a_cell_run_again_leaves_no_thread_of_the_earlier_panel(shown, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threads, "_running_cell", lambda: ("cell", "first"))
    earlier = shown(GrowingRun(20))
    monkeypatch.setattr(earlier._line._pump, "_linger", 0.01)
    monkeypatch.setattr(threads, "_running_cell", lambda: ("cell", "second"))
    later = shown(GrowingRun(20))
    eventually(lambda: panel_threads() == ["run panel pump"])
    assert later._line._pump._thread is not None and earlier._line._pump._thread is None


def test_commands_reach_the_run_and_their_outcome_the_browser(shown):
    run = GrowingRun(20)
    panel = shown(run)
    arguments = {"rate": 0.003, "weights": {"pairs": 0.5, "text": 0.5}, "reason": "cooler"}
    browser_says(panel, {"kind": "act", "command": "change", "arguments": arguments})
    eventually(lambda: any(content["changes"]["list"] for content, _ in sent(panel)))
    browser_says(panel, {"kind": "act", "command": "fork", "arguments": {"fix": "query_key_norm", "reason": ""}})
    eventually(lambda: state_of(panel).get("forks") == ["baseline query_key_norm"])
    browser_says(panel, {"kind": "act", "command": "stop", "arguments": {}})
    eventually(lambda: panel.status == "stopped")
    assert run.asked == [("change", arguments), ("fork", {"fix": "query_key_norm", "reason": ""}), ("stop", {})]


def test_stop_overtakes_a_command_that_takes_long(shown):
    gate, begun = threading.Event(), threading.Event()

    class Slow(GrowingRun):
        def act(self, command: str, **arguments: Any) -> None:
            if command == "save":
                begun.set()
                assert gate.wait(120)
            super().act(command, **arguments)

    panel = shown(Slow(20))
    browser_says(panel, {"kind": "act", "command": "save"})
    assert begun.wait(120)
    browser_says(panel, {"kind": "act", "command": "stop"})
    eventually(lambda: panel.status == "stopped")
    gate.set()


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("stop", {"process": 1}, "cannot stop process 1"),
        ("change", {"colour": 3}, "cannot change colour 3; it offers rate"),
        ("change", {"reason": "none"}, "cannot change nothing"),
        ("fork", {"fix": "rm -rf"}, "cannot fork fix rm -rf; it offers query_key_norm"),
        ("__init__", {}, "cannot __init__"),
    ],
)
def test_what_the_run_does_not_offer_is_refused_before_it_is_asked(shown, command: str, arguments: dict, words: str):
    run = GrowingRun(20)
    panel = shown(run)
    browser_says(panel, {"kind": "act", "command": command, "arguments": arguments})
    eventually(lambda: words in state_of(panel).get("refusal", ""))
    assert run.asked == []


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (ValueError("The rate must be above 0, not -1."), "The rate must be above 0, not -1."),
        (OSError("disk full"), "OSError: disk full"),
    ],
)
def test_a_refused_command_is_explained_and_the_next_one_clears_it(shown, refusal: Exception, words: str):
    run = GrowingRun(20)
    run.refusal = refusal
    panel = shown(run)
    browser_says(panel, {"kind": "act", "command": "save"})
    eventually(lambda: state_of(panel).get("refusal") == words)
    browser_says(panel, {"kind": "act", "command": "save"})
    eventually(lambda: state_of(panel).get("refusals") == 2)
    run.refusal = None
    browser_says(panel, {"kind": "act", "command": "save"})
    eventually(lambda: state_of(panel).get("refusal") == "")


def test_a_failed_run_shows_its_error(shown):
    run = GrowingRun(20)
    panel = shown(run)
    run.become(status="failed", error="The loss was not a number in 5 steps in a row.")
    eventually(lambda: panel.status == "failed")
    assert state_of(panel)["error"] == "The loss was not a number in 5 steps in a row."


def test_a_finished_run_opens_from_its_folder_without_controls_and_no_thread_stays(tmp_path: Path, shown):
    run = GrowingRun(5000)
    run.events.append(Alarm(3, "WARN", "rule", "seen"))
    folder = write(tmp_path / "run", replace(run.state, status="finished"), run.history)
    panel = shown(folder)
    eventually(lambda: len(losses(sent(panel))) == 5000)
    state = state_of(panel)
    assert (state["acts"], state["folder"], state["over"], state["status"]) == (False, True, True, "finished")
    assert panel.history.alarms == (Alarm(3, "WARN", "rule", "seen"),)
    eventually(lambda: not panel_threads())
    browser_says(panel, {"kind": "act", "command": "stop"})
    eventually(lambda: state_of(panel).get("note") == "it was finished before Stop arrived")


def test_the_folder_of_a_run_that_goes_on_has_controls_where_it_takes_orders(tmp_path: Path, shown):
    class Obedient(RecordedRun):
        orders: ClassVar[list[tuple[str, dict[str, Any]]]] = []

        def act(self, command: str, **arguments: Any) -> None:
            if command == "save":
                raise ValueError("The disk of that process is full.")
            self.orders.append((command, arguments))

    run = GrowingRun(10)
    state = replace(run.state, process=os.getpid(), host=socket.gethostname())
    panel = shown(Obedient(write(tmp_path / "run", state, run.history)))
    eventually(lambda: state_of(panel).get("acts"))
    browser_says(panel, {"kind": "act", "command": "save"})
    eventually(lambda: state_of(panel).get("refusal") == "The disk of that process is full.")
    browser_says(panel, {"kind": "act", "command": "change", "arguments": {"rate": 0.1, "reason": "why"}})
    eventually(lambda: Obedient.orders == [("change", {"rate": 0.1, "reason": "why"})])
    write(tmp_path / "run", replace(state, settings={}, offers=()), run.history)
    eventually(lambda: not state_of(panel)["acts"])


def test_a_folder_that_another_process_fills_is_followed_until_it_is_over_and_when_it_goes_on(
    tmp_path: Path, shown, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(threads.FOLDER_ROUNDS, "seconds", 0.05)
    run = GrowingRun(10)
    state = replace(run.state, process=os.getpid(), host=socket.gethostname())
    folder = write(tmp_path / "run", state, run.history)
    panel = shown(str(folder))
    eventually(lambda: len(losses(sent(panel))) == 10)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(step_record(10).to_json() + "\n" + step_record(11).to_json()[:30])
    eventually(lambda: len(losses(sent(panel))) == 11)
    write(folder, replace(state, status="finished"), History(tuple(step_record(step) for step in range(12))))
    eventually(lambda: panel.status == "finished" and not panel._line._pump._rung)
    eventually(lambda: [step for step, _ in losses(sent(panel))][-1:] == [11])
    comparison = ComparePanel([folder])
    for went_away in ("failed", "interrupted", "stopped", "finished"):  # and another process goes on, some steps back
        write(folder, replace(state, status=went_away, error="it went away"), History((step_record(0),)))
        eventually(lambda away=went_away: panel.status == away and state_of(panel)["status"] == away)
        assert state_of(panel)["acts"] is False and state_of(panel)["error"] == "it went away"
        eventually(lambda away=went_away: comparison._state and comparison._state["runs"][0]["row"]["status"] == away)
        count = len(sent(panel))
        write(folder, state, History(tuple(step_record(step) for step in range(5))))
        eventually(lambda: panel.status == "running" and state_of(panel)["acts"] and not state_of(panel)["error"])
        eventually(lambda: [step for step, _ in losses(sent(panel)[count:])][-1:] == [4])  # noqa: B023
        eventually(lambda: comparison._state and comparison._state["runs"][0]["row"]["status"] == "running")
    for each in (panel, comparison):
        each.close()
    mine = (panel._look, comparison._look)  # other tests' panels may still be looked after
    eventually(lambda: not any(look() in mine for look in threads.FOLDER_ROUNDS._looks))


def test_a_folder_without_a_run_is_an_error_and_one_with_nonsense_says_so(tmp_path: Path, shown):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        RunPanel(tmp_path)
    run = GrowingRun(2)
    folder = write(tmp_path / "run", replace(run.state, status="finished"), run.history)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "colour": "red"}\n')
    panel = shown(folder)
    eventually(lambda: [step for step, _ in losses(sent(panel))] == [0, 1])
    alarms = [alarm for content, _ in sent(panel) for alarm in content["alarms"]["list"] if alarm["rule"] == "records"]
    assert ["1 of its lines cannot be read" in alarm["message"] for alarm in alarms] == [True]


def test_what_is_sent_of_the_state_is_plain_json(shown):
    run = GrowingRun(3)
    settings = {"rate": nan, "betas": (0.9, 0.95), "weights": {"pairs": math.inf}, "on": True, "none": None}
    run.become(tokens_per_second=nan, settings=settings)
    panel = shown(run)
    eventually(lambda: state_of(panel))
    state = state_of(panel)
    json.dumps(state, allow_nan=False)
    assert state["settings"]["on"] is True and state["settings"]["betas"] == "(0.9, 0.95)"


def test_the_time_left_follows_the_pace_of_late(shown):
    panel = RunPanel(GrowingRun())
    assert panel._left(10.0, 0.0) is None
    for second in range(11, 100):
        panel._left(float(second), (second - 10) / 1000)
    assert panel._left(100.0, 0.09) == pytest.approx(910, rel=0.02)
    assert panel._left(101.0, 0.05) is None, "the run was rewound"
    assert panel._left(101.0, 0.5) is None, "its checkpoint was read"
    assert panel._left(111.0, 0.6) == pytest.approx(40)
    panel.close()


def test_the_still_is_a_figure_and_a_sentence(tmp_path: Path):
    run = GrowingRun(60)
    run.events.append(Alarm(40, "WARN", "rule", "head <1> saturates"))
    panel = RunPanel(write(tmp_path / "run", replace(run.state, status="stopped"), run.history))
    bundle = panel._line.mimebundle()
    assert WIDGET_VIEW in bundle
    assert "data:image/png;base64," in bundle["text/html"] and "head &lt;1&gt; saturates" in bundle["text/html"]
    (png,) = re.findall('data:image/png;base64,([^"]+)', bundle["text/html"])
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
    assert picture.getpixel((2, 2))[3] == 0, "no slab of white on a dark page"  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
    assert bundle["text/plain"].startswith("baseline: stopped at step 59, loss ")
    assert panel.figure().axes
    assert summary(RunState("new", "waiting"), History()) == "new: waiting before its first step."
    panel.close()


def test_settings_read_as_a_person_writes_them():
    assert [setting_words(each) for each in (None, True, 1e-5, 3, {"a": 0.5}, "x")] == [
        "none",
        "on",
        "1e-05",
        "3",
        "a 0.5",
        "x",
    ]
