"""What is known of a measure is said once, and holds for the measures of a run and for those of one's own."""

import json
from pathlib import Path

import numpy as np
import pytest

from chameleon_lab.history import LEVELS, RunState, StepRecord
from chameleon_lab.measures import (
    DATA_PARTS,
    MEASURES,
    Measure,
    default_thresholds,
    measure_of,
    measures_of,
    threshold_lines,
)
from chameleon_lab.monitors.alarms import RULES, Beyond, NotANumber, Saturation, Spike, thresholds_of


@pytest.mark.parametrize(
    ("name", "words", "base", "part", "axis", "worse"),
    [
        ("loss", "loss", "loss", "", "linear", "higher"),
        ("held_out_loss", "held-out loss", "loss", "held out", "linear", "higher"),
        ("held_out_image_loss", "held-out loss, image tokens", "loss", "held out image", "linear", "higher"),
        ("image_log_partition", "log-partition, image tokens", "log_partition", "image", "linear", "higher"),
        ("text_logit_norm", "logit norm, text tokens", "logit_norm", "text", "log", "higher"),
        ("special_gradient_share", "gradient share, special tokens", "gradient_share", "special", "linear", "neither"),
        ("attention_entropy", "attention entropy", "attention_entropy", "", "linear", "lower"),
        ("embedding_norm", "embedding norm", "embedding_norm", "", "log", "higher"),
        ("value_attention_entropy", "value attention entropy", "value_attention_entropy", "", "linear", "lower"),
        ("accuracy", "accuracy", "accuracy", "", "linear", "higher"),
        ("image_", "image ", "image_", "", "linear", "higher"),
    ],
)
def test_a_name_says_its_words_its_chart_and_which_direction_is_worse(name, words, base, part, axis, worse):
    measure = measure_of(name)
    assert (measure.words, measure.base, measure.part, measure.axis, measure.worse) == (words, base, part, axis, worse)
    plain = json.loads(json.dumps(measure.to_plain()))
    assert measure.name == name and plain["log"] == (axis == "log")
    assert plain["title"] == measure_of(base).words == words.removeprefix("held-out ").split(",")[0]


def test_only_the_labs_own_measure_has_its_thresholds_and_is_the_steps_own():
    for name, measure in MEASURES.items():
        assert measure_of(name) == measure
        other = measure_of(f"my_{name}")
        assert not other.thresholds and not other.of_step and other.base == f"my_{name}"
    assert all(measure_of(name).of_step for name in ("loss", "image_loss", "held_out_text_loss", "rate"))


def test_the_worst_of_values_is_on_the_measures_own_side_and_keeps_what_is_no_number():
    values = np.random.default_rng(0).standard_normal((5, 3)).astype("<f4")
    for worse, pick in (("lower", np.min), ("higher", np.max), ("neither", np.max)):
        measure = Measure("x", worse=worse)  # pyright: ignore[reportArgumentType]
        assert (
            np.array_equal(measure.worst(values, axis=0), pick(values, axis=0)) and measure.worst(values).dtype == "<f4"
        )
        assert np.isnan(measure.worst([[1.0, np.nan]]))


def test_the_default_rules_sound_where_their_measures_say():
    assert thresholds_of(RULES) == default_thresholds() == RunState("x", "running").thresholds
    assert thresholds_of(RULES)["max_attention_logit"] == {"WARN": 50.0, "ALARM": 50.0, "CRITICAL": 100.0}
    for name, levels in default_thresholds().items():
        assert list(levels) == sorted(levels, key=LEVELS.index)
        low, quiet = MEASURES[name].worse == "lower", {"max_attention_logit": 1e9, "attention_entropy": 0.0}
        for limit in levels.values():
            for side, sounds in ((1, not low), (-1, low)):
                record = StepRecord(0, 0.0, quiet | {name: limit + side * 1e-3})
                assert any(rule.judge(record, ()) for rule in RULES if rule.level in levels) == sounds or not sounds


def test_thresholds_of_rules_are_the_mildest_of_a_level_on_the_side_that_is_worse():
    rules = (
        *(Saturation("CRITICAL", 80.0, 0.1), Saturation("WARN", 30.0), Saturation("WARN", 20.0), NotANumber(), Spike()),
        *(Beyond("attention_entropy", 0.2), Beyond("attention_entropy", 0.3), Beyond("image_loss", 9.0, "ALARM")),
    )
    assert thresholds_of(rules) == {
        "max_attention_logit": {"WARN": 20.0, "CRITICAL": 80.0},
        "attention_entropy": {"WARN": 0.3, "CRITICAL": 0.1},
        "image_loss": {"ALARM": 9.0},
    }
    assert thresholds_of(()) == {}
    for rule in rules[5:]:
        low = rule.measure == "attention_entropy"
        assert bool(rule.judge(StepRecord(0, 0.0, {rule.measure: rule.limit - 0.01}), ())) == low
        assert bool(rule.judge(StepRecord(0, 0.0, {rule.measure: rule.limit + 0.01}), ())) != low
        assert not rule.judge(StepRecord(0, 0.0, {rule.measure: rule.limit}), ())


def test_a_chart_draws_each_threshold_once_by_its_mildest_level():
    assert threshold_lines({"WARN": 50.0, "ALARM": 50.0, "CRITICAL": 100.0}) == [(50.0, "WARN"), (100.0, "CRITICAL")]
    assert measure_of("max_attention_logit").to_plain({"WARN": 7.0})["thresholds"] == [(7.0, "WARN")]
    assert measure_of("max_attention_logit").to_plain({})["thresholds"] == []


def test_losses_are_nats_a_token_but_for_an_image_tokenizer():
    text = measures_of(["loss", "held_out_image_loss", "rate"])
    assert [each.unit for each in text.values()] == ["nats a token", "nats a token", ""]
    pixels = measures_of(["loss", "pixel_loss", "psnr", "held_out_loss"])
    assert [each.unit for each in pixels.values()] == ["", "", "dB", ""]


def test_each_of_the_labs_measures_says_what_it_is_and_with_what_it_is_looked_at():
    for name, measure in MEASURES.items():
        assert measure.about.endswith(".") and measure.family != "own", name
        assert measure_of(f"held_out_{name}").about == measure.about
        own = measure_of(f"my_{name}")
        assert not own.about, "of a measure of one's own nobody knows what it is"
    assert measure_of("accuracy").family == "own" and measure_of("my_norm").family == "norms"
    assert measures_of(["loss", "pixel_loss"])["loss"].about != MEASURES["loss"].about


def test_every_measure_that_the_lab_records_has_a_row():
    """Names recorded by monitors and steps, as their sources spell them."""
    root = Path(__file__).parent.parent / "chameleon_lab"
    text = "".join(path.read_text() for folder in ("monitors", "training") for path in (root / folder).glob("*.py"))
    names = {name for name, each in MEASURES.items() if not each.by_modality and name != "norm"}
    learned = "".join(
        path.read_text()
        for path in (root / "tokenizers/losses.py", root / "stability/watches.py", root / "objective.py")
    )
    assert {name for name in names if f'"{name}"' not in text + learned} == set()
    assert DATA_PARTS[1:] == ("text", "image", "special")
