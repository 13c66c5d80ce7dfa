"""What a run told survives its files, and says what it did not record."""

import json
import math
import os
import random
import re
import socket
import time
from dataclasses import asdict, replace

import numpy as np
import pytest

from chameleon_lab.history import (
    HEARTBEAT,
    SILENCE,
    Alarm,
    Answer,
    History,
    Intervention,
    RecordedRun,
    RunState,
    StepRecord,
    event_line,
)
from chameleon_lab.measures import default_thresholds

HISTORY = History((StepRecord(0, 0.5, {"loss": 3.25}), StepRecord(1, 1.0, {"loss": 1 / 3, "norm": float("inf")})))


def test_a_history_survives_its_file():
    assert History.from_jsonl(HISTORY.to_jsonl().splitlines()) == HISTORY
    assert History.from_jsonl([]) == History()


def test_every_cut_of_a_file_gives_the_records_before_it():
    text = HISTORY.to_jsonl()
    first = text.index("\n")
    for end in range(len(text)):
        read = History.from_jsonl(text[:end].splitlines()).records
        assert read == HISTORY.records[: (end >= first) + (end >= len(text) - 1)]


def test_a_series_has_the_steps_where_it_was_recorded():
    assert HISTORY.series("loss") == ([0, 1], [3.25, 1 / 3])
    assert HISTORY.series("norm")[0] == [1]


def test_an_unknown_series_names_the_known_ones():
    with pytest.raises(KeyError, match="No record of 'accuracy'; this run recorded loss, norm"):
        HISTORY.series("accuracy")
    with pytest.raises(KeyError, match="recorded nothing"):
        History().series("loss")


def test_a_modality_has_its_own_series():
    history = History((StepRecord(3, 1.0, {"loss": 2.0, "image_loss": 3.0}), StepRecord(4, 1.0, {"image_loss": 5.0})))
    assert history.series("loss", modality="image") == ([3, 4], [3.0, 5.0])
    assert history.maximum("loss", "image") == history.last("loss", "image") == 5.0
    with pytest.raises(KeyError, match="No record of 'text_loss'; this run recorded image_loss, loss"):
        history.series("loss", modality="text")
    assert math.isnan(history.held_out_loss), "a run that was stopped has none, and a lesson goes on"


def test_a_maximum_does_not_hide_what_is_no_number():
    history = History((StepRecord(0, 0.0, {"loss": math.nan}), StepRecord(1, 0.0, {"loss": 5.0})))
    assert math.isnan(history.maximum("loss"))


def test_layers_are_arrays_of_steps_by_layers_by_heads():
    heads = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]
    records = [StepRecord(5 * at, 0.0, {}, {"max_attention_logit": each}) for at, each in enumerate(heads)]
    history = History.from_jsonl(History(tuple(records)).to_jsonl().splitlines())
    steps, values = history.layers("max_attention_logit")
    assert steps == [0, 5] and values.shape == (2, 2, 2) and values.tolist() == heads
    with pytest.raises(KeyError, match="No record of 'residual_norm' by layer; this run recorded max_attention_logit"):
        history.layers("residual_norm")


def test_a_spike_is_far_from_the_mean_of_what_came_before():
    rng = np.random.default_rng(0)
    values = 2 + 0.1 * rng.standard_normal(300)
    calm = History(tuple(StepRecord(at, 0.0, {"loss": float(value)}) for at, value in enumerate(values)))
    assert calm.spike_score(window=100) == 0
    spiked = [replace(each, values={"loss": 9.0}) if each.step in (150, 220) else each for each in calm.records]
    assert History(tuple(spiked)).spike_score(window=100) == pytest.approx(100 * 2 / 290)
    assert History(tuple(spiked)).spike_score(window=20) == pytest.approx(100 * 2 / 298)
    assert History(tuple(StepRecord(at, 0.0, {"loss": 1.0}) for at in range(50))).spike_score(window=10) == 0


EVENTS = (Alarm(4, "WARN", "attention", "head 1 of block 3"), Intervention(6, "rate", 0.1, 0.05, "by hand"))


def test_events_survive_their_file_and_belong_to_steps():
    lines = [event_line(each) for each in EVENTS]
    history = History.from_jsonl(HISTORY.to_jsonl().splitlines(), lines)
    assert history.alarms == EVENTS[:1] and history.interventions == EVENTS[1:]
    assert history == History.of(HISTORY.records, EVENTS)
    before = history.until(6)
    assert before == history and not history.until(5).interventions
    assert history.until(1).records == HISTORY.records[:1] and not history.until(4).alarms


@pytest.fixture
def folder(tmp_path):
    state = RunState("here", "running", process=os.getpid(), host=socket.gethostname(), offers=("QueryKeyNorm",))
    state = replace(state, settings={"rate": 0.2})
    (tmp_path / "state.json").write_text(json.dumps(asdict(state)))
    (tmp_path / "metrics.jsonl").write_text(HISTORY.to_jsonl())
    return tmp_path


def test_a_recorded_run_grows_with_its_files(folder):
    run = RecordedRun(folder)
    assert run.history == HISTORY and run.state.status == "running" and run.state.offers == ("QueryKeyNorm",)
    later = StepRecord(2, 2.0, {"loss": 0.5})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(later.to_json() + "\n" + StepRecord(3, 3.0).to_json()[:9])
    (folder / "events.jsonl").write_text("".join(map(event_line, EVENTS)))
    assert run.history == History.of((*HISTORY.records, later), EVENTS)
    (folder / "new").write_text(later.to_json() + "\n")
    (folder / "new").replace(folder / "metrics.jsonl")  # a run that went back to an earlier checkpoint
    assert run.history.records == (later,)


@pytest.mark.parametrize("seed", range(20))
def test_a_folder_that_is_being_copied_shows_what_is_there_and_more_as_it_comes(folder, tmp_path_factory, seed):
    (folder / "events.jsonl").write_text("".join(map(event_line, EVENTS)))
    (folder / "config.json").write_text('{"recipe": {"rate": 0.2}}')
    copy, rng = tmp_path_factory.mktemp("copy"), random.Random(seed)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    (copy / "state.json").write_bytes(content["state.json"][: rng.randint(1, len(content["state.json"]))])
    run, lengths = RecordedRun(copy), dict.fromkeys(content, 0)
    records = 0
    while lengths != {name: len(data) for name, data in content.items()}:
        name = rng.choice(list(content))
        lengths[name] = min(len(content[name]), lengths[name] + rng.randint(1, 200))
        (copy / name).write_bytes(content[name][: lengths[name]])
        assert run.state.status in ("running", "interrupted", "finished")
        assert run.config in ({}, {"recipe": {"rate": 0.2}})
        assert records <= (records := len(run.history.records))
    assert run.history == RecordedRun(folder).history and run.config == RecordedRun(folder).config


def test_a_run_whose_process_is_gone_was_interrupted(folder):
    plain = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(plain | {"process": 2**22 + 1}))
    assert RecordedRun(folder).state.status == "interrupted" and RecordedRun(folder).state.over
    (folder / "state.json").write_text(json.dumps(plain | {"process": 2**22 + 1, "host": "another machine"}))
    assert RecordedRun(folder).state.status == "running"
    (folder / "state.json").write_text("{")
    assert RecordedRun(folder).state.status == "interrupted"


@pytest.mark.parametrize("skew", [-3600.0, 0.0, 3600.0])
def test_a_process_of_another_machine_counts_as_gone_after_silence_whatever_its_clock_says(folder, monkeypatch, skew):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: 1.8e9 + now[0])
    plain = json.loads((folder / "state.json").read_text()) | {"host": "another machine", "process": 7}

    def beat() -> None:
        (folder / "state.json").write_text(json.dumps(plain | {"beat": time.time() + skew}))

    beat()
    run = RecordedRun(folder)
    assert run.state.status == ("interrupted" if skew < 0 else "running")  # the first look has that clock alone
    now[0] += HEARTBEAT
    beat()
    assert run.state.status == "running"
    now[0] += SILENCE - 1
    assert run.state.status == "running"
    now[0] += 2
    assert run.state.status == "interrupted"
    assert "Process 7 on another machine has given no sign of life for 3 minutes" in run.state.error
    with pytest.raises(ValueError, match="is interrupted: no process here trains it"):
        run.act("stop")
    beat()
    assert run.state.status == "running" and run.state.error == ""
    (folder / "state.json").write_text(json.dumps(plain | {"status": "finished"}))
    assert run.state.status == "finished"


def test_an_order_is_a_line_and_its_answer_is_read_from_the_events(folder):
    run = RecordedRun(folder)
    orders = [run.act("change", rate=0.1, reason="by hand"), run.act("fork", fix="QueryKeyNorm")]
    lines = [json.loads(line) for line in (folder / "orders.jsonl").read_text().splitlines()]
    assert lines == [
        {"order": orders[0], "command": "change", "arguments": {"rate": 0.1, "reason": "by hand"}},
        {"order": orders[1], "command": "fork", "arguments": {"fix": "QueryKeyNorm"}},
    ]
    assert run.answers == {}
    answer = Answer(7, orders[0], "change", "no")
    (folder / "events.jsonl").write_text("".join(map(event_line, (*EVENTS, answer))))
    assert run.answers == {orders[0]: answer}
    assert run.history == History.of(HISTORY.records, EVENTS)  # answers are no part of what was learned


@pytest.mark.parametrize(
    ("changes", "command", "arguments", "message"),
    [
        ({}, "explode", {}, "has no command 'explode'; it has pause, resume, stop, save, change, fork"),
        ({}, "change", {"query_key_norm": 1}, "cannot change query_key_norm; it offers rate"),
        ({}, "change", {"rate": object()}, "travels as JSON, and this cannot"),
        ({}, "fork", {"fix": "magic"}, "no fix 'magic' to offer; it offers QueryKeyNorm"),
        ({}, "fork", {}, "no fix None to offer"),
        ({"settings": {}}, "change", {"rate": 1}, "it offers nothing as yet"),
        ({"status": "finished"}, "pause", {}, "is finished: no process here trains it, so it cannot pause"),
        ({"status": "finished"}, "fork", {"fix": "QueryKeyNorm"}, "so it cannot fork. Start it again in its"),
        ({"process": 2**22 + 1}, "stop", {}, "is interrupted: no process here trains it"),
    ],
)
def test_what_no_run_can_do_is_refused_at_once_and_not_written(folder, changes, command, arguments, message):
    plain = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(plain | changes))
    with pytest.raises(ValueError, match=re.escape(message)):
        RecordedRun(folder).act(command, **arguments)
    assert not (folder / "orders.jsonl").exists()


def test_a_folder_without_a_run_says_so_and_names_those_below_it(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no run: neither state.json nor metrics.jsonl is there\.$"):
        RecordedRun(tmp_path / "empty")
    for name in ("text", "image"):
        (tmp_path / "empty" / name).mkdir()
        (tmp_path / "empty" / name / "metrics.jsonl").touch()
    with pytest.raises(FileNotFoundError, match="Below it there are image, text: name one of these"):
        RecordedRun(tmp_path / "empty")
    assert RecordedRun(folder).config == {}


def losses(*values: float) -> History:
    return History(tuple(StepRecord(at, 0.0, {"loss": value}) for at, value in enumerate(values)))


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_one_spike_and_hides_no_other(lost):
    values = (2 + 0.1 * np.random.default_rng(0).standard_normal(300)).tolist()
    values[150] = lost
    assert losses(*values).spike_score(window=100) == pytest.approx(100 / 290)
    values[152] = 9.0
    assert losses(*values).spike_score(window=100) == pytest.approx(200 / 290)
    assert losses(*[lost] * 50).spike_score(window=10) == 100


@pytest.mark.parametrize("level", [1.0, 0.1, 1e-30, -7.3])
def test_after_values_that_are_all_equal_any_other_is_a_spike(level):
    flat = [level] * 50
    assert losses(*flat).spike_score(window=10) == 0
    for jump in (level + 5.0, np.nextafter(level, 10.0)):
        assert losses(*flat, float(jump)).spike_score(window=10) == pytest.approx(100 / 49)


def test_spikes_are_those_of_olmo_wherever_values_are_numbers_that_differ():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = rng.standard_normal(120) * (1 + 20 * (rng.random(120) > 0.95))
        window = int(rng.integers(4, 60))
        first = max(2, window // 10)
        spikes = 0
        for at in range(first, 120):
            before = values[max(0, at - window) : at]
            spikes += abs(values[at] - before.mean()) >= 3 * before.std()
        assert losses(*values).spike_score(window=window, deviations=3) == pytest.approx(100 * spikes / (120 - first))


def test_events_of_before_messages_were_called_so_are_read():
    old = '{"kind": "alarm", "step": 4, "level": "WARN", "rule": "attention", "told": "head 1 of block 3"}'
    assert History.from_jsonl([], [old]).alarms == EVENTS[:1]
    assert json.loads(event_line(EVENTS[0]))["message"] == "head 1 of block 3"


def test_a_state_of_before_thresholds_has_the_default_ones_and_one_without_rules_none(folder):
    path = folder / "state.json"
    plain = json.loads(path.read_text())
    assert RecordedRun(folder).state.thresholds == plain.pop("thresholds")
    path.write_text(json.dumps(plain))
    assert RecordedRun(folder).state.thresholds == default_thresholds()
    path.write_text(json.dumps(plain | {"thresholds": {}}))
    assert RecordedRun(folder).state.thresholds == {}
