"""What a run panel knows of measures comes from the lab: their words, and the thresholds of the run's own rules."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from chameleon_lab.history import History, RecordedRun, RunState, StepRecord
from chameleon_lab.monitors.alarms import Beyond, Saturation, thresholds_of
from chameleon_widgets import RunPanel
from chameleon_widgets.runs.run_feed import RunFeed

RECORDS = tuple(
    StepRecord(step, 0.1 * step, {"loss": 2.0, "max_attention_logit": 30.0, "image_log_partition": 7.0})
    for step in range(3)
)
OWN = thresholds_of((Saturation("WARN", 20.0), Saturation("CRITICAL", 80.0), Beyond("loss", 9.0)))


def about(feed: RunFeed, history: History, **options) -> list[dict]:
    return [dict(each) for message, _ in feed.news(history, **options) for each in message["about"]]


def test_each_measure_is_described_once_and_again_to_a_new_view():
    feed, history = RunFeed(), History(RECORDS)
    facts = {each["name"]: each for each in about(feed, history)}
    assert list(facts) == ["image_log_partition", "loss", "max_attention_logit"]
    assert facts["image_log_partition"]["words"] == "log-partition, image tokens"
    assert facts["loss"]["unit"] == "nats a token" and facts["max_attention_logit"]["log"]
    more = replace(history, records=(*RECORDS, StepRecord(3, 0.3, {"loss": 2.0, "rate": 0.1}, {"norm": [1.0, 2.0]})))
    assert [each["name"] for each in about(feed, more)] == ["rate", "norm"]
    feed.rewind()
    assert {each["name"] for each in about(feed, more)} == {*facts, "rate", "norm"}


def test_thresholds_are_those_of_the_runs_own_rules():
    lines = {each["name"]: each["thresholds"] for each in about(RunFeed(), History(RECORDS), thresholds=OWN)}
    assert lines["max_attention_logit"] == [(20.0, "WARN"), (80.0, "CRITICAL")]
    assert lines["loss"] == [(9.0, "WARN")] and lines["image_log_partition"] == []
    assert not any(each["thresholds"] for each in about(RunFeed(), History(RECORDS), thresholds={}))
    default = {each["name"]: each["thresholds"] for each in about(RunFeed(), History(RECORDS))}
    assert default["max_attention_logit"] == [(50.0, "WARN"), (100.0, "CRITICAL")]


@pytest.mark.parametrize("thresholds", [OWN, {}, None], ids=["own", "no rules", "a state of before"])
def test_a_panel_on_a_folder_draws_what_the_folder_says(tmp_path, thresholds):
    state = asdict(RunState("run", "finished", thresholds=thresholds or {}))
    if thresholds is None:
        del state["thresholds"]
    (tmp_path / "state.json").write_text(json.dumps(state))
    (tmp_path / "metrics.jsonl").write_text(History(RECORDS).to_jsonl())
    panel = RunPanel(tmp_path)
    axis = next(each for each in panel.figure().axes if each.get_title(loc="left") == "max attention logit")
    limits = [
        float(np.ravel(line.get_ydata())[0]) for line in axis.lines if str(line.get_gid()).startswith("threshold")
    ]
    drawn = {"WARN": 50.0, "CRITICAL": 100.0} if thresholds is None else thresholds.get("max_attention_logit", {})
    assert limits == list(drawn.values())
    lines = about(RunFeed(), RecordedRun(tmp_path).history, thresholds=panel.state.thresholds)
    (logit,) = [each for each in lines if each["base"] == "max_attention_logit"]
    assert [limit for limit, _ in logit["thresholds"]] == limits
    panel.close()
