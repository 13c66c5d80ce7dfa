"""Alarms: told once when trouble begins or worsens, in words that are true of what was seen."""

import math
from dataclasses import dataclass, replace

import pytest

from chameleon_lab.history import Alarm, History, Level, StepRecord
from chameleon_lab.monitors.alarms import RULES, DivergenceDetector, Saturation, Spike

CALM = ([[3.0, 4.0], [2.0, 5.0]], [[0.9, 0.8], [0.7, 0.6]])


def reading(step: int, logits=CALM[0], entropies=CALM[1], **values: float) -> StepRecord:
    values |= {"max_attention_logit": max(map(max, logits)), "attention_entropy": min(map(min, entropies))}
    return StepRecord(step, 0.0, values, {"max_attention_logit": logits, "attention_entropy": entropies})


def hot(step: int, logit: float, entropy: float = 0.5) -> StepRecord:
    """Head 1 of block 0 as given, the others calm."""
    return reading(step, [[3.0, logit], [2.0, 5.0]], [[0.9, entropy], [0.7, 0.6]])


def levels(detector: DivergenceDetector, *records: StepRecord) -> list[tuple[int, str]]:
    return [(alarm.step, alarm.level) for record in records for alarm in detector.update(record)]


def test_a_warning_needs_two_checks_in_a_row_and_is_told_once():
    detector = DivergenceDetector()
    assert not levels(detector, hot(0, 60), hot(5, 49), hot(10, 60)) and detector.standing is None
    assert levels(detector, *(hot(step, 60) for step in range(15, 100, 5))) == [(15, "WARN")]
    assert detector.standing == "WARN"


def test_steps_without_a_check_count_for_neither_side():
    detector = DivergenceDetector()
    steps = [StepRecord(step, 0.0, {"loss": 2.0, "attention_logit_bound": 500.0}) for step in range(1, 5)]
    assert levels(detector, hot(0, 60), *steps, hot(5, 60)) == [(5, "WARN")]
    assert levels(detector, *(replace(steps[0], step=step) for step in range(6, 100))) == []
    assert detector.standing == "WARN"


def test_levels_rise_as_heads_saturate_and_the_worst_is_told():
    detector = DivergenceDetector()
    assert levels(detector, hot(0, 60), hot(5, 60), hot(10, 60, 0.05), hot(15, 87, 0.06)) == [
        (5, "WARN"),
        (15, "ALARM"),
    ]
    assert levels(detector, hot(20, 120, 0.06), hot(25, 130, 0.05)) == [(25, "CRITICAL")]
    assert detector.standing == "CRITICAL"
    at_once = DivergenceDetector()
    assert levels(at_once, hot(0, 120, 0.05), hot(5, 120, 0.05)) == [(5, "CRITICAL")]


def test_thresholds_themselves_are_no_trouble():
    for logit, entropy, level in ((50, 0.0, None), (51, 0.1, "WARN"), (100, 0.05, "ALARM"), (101, 0.09, "CRITICAL")):
        detector = DivergenceDetector()
        levels(detector, hot(0, logit, entropy), hot(5, logit, entropy))
        assert detector.standing == level


def test_a_trouble_that_comes_and_goes_stands_until_ten_calm_checks():
    detector = DivergenceDetector()
    restless = [hot(5 * at, 60 if at % 4 < 2 else 40) for at in range(40)]
    assert levels(detector, *restless) == [(5, "WARN")]
    levels(detector, *(hot(step, 40) for step in range(200, 235, 5)))  # two calm ones before, seven here
    assert detector.standing == "WARN"
    levels(detector, hot(235, 40))
    assert detector.standing is None
    assert levels(detector, hot(240, 60), hot(245, 60)) == [(245, "WARN")]


def test_a_level_that_falls_and_rises_again_is_told_again():
    detector = DivergenceDetector(release=2)
    levels(detector, hot(0, 60, 0.05), hot(5, 60, 0.05))
    assert detector.standing == "ALARM"
    assert levels(detector, hot(10, 60), hot(15, 60)) == [] and detector.standing == "WARN"
    assert levels(detector, hot(20, 60, 0.05), hot(25, 60, 0.05)) == [(25, "ALARM")]


def words(*rules, logits, entropies) -> str:
    detector = DivergenceDetector(rules)
    (alarm,) = [each for step in (0, 5) for each in detector.update(reading(step, logits, entropies))]
    assert (alarm.step, alarm.rule) == (5, "attention")
    return alarm.message


def test_alarms_say_which_head_and_what_was_seen():
    logits, entropies = [[3.0, 55.0], [2.0, 86.7]], [[0.9, 0.8], [0.7, 0.061]]
    assert (
        words(RULES[1], logits=logits, entropies=entropies) == "head 1 of block 1 saturates: max logit 87, entropy 0.06"
    )
    entropies = [[0.9, 0.05], [0.7, 0.4]]  # head 1 of block 0, at 55, looks at one place
    assert (
        words(RULES[1], logits=logits, entropies=entropies) == "head 1 of block 0 saturates: max logit 55, entropy 0.05"
    )
    assert words(RULES[0], logits=logits, entropies=entropies) == "head 1 of block 1 reaches max logit 87, entropy 0.40"


def test_an_alarm_of_two_heads_does_not_speak_of_one():
    logits, entropies = [[3.0, 4.0], [2.0, 87.0]], [[0.05, 0.8], [0.7, 0.4]]
    assert words(RULES[1], logits=logits, entropies=entropies) == (
        "max logit 87 in head 1 of block 1, entropy 0.05 in head 0 of block 0"
    )


def test_without_layers_the_words_name_no_head():
    rule, values = RULES[1], {"max_attention_logit": 87.0, "attention_entropy": 0.06}
    assert rule.judge(StepRecord(0, 0.0, values), ()) == "a head saturates: max logit 87, entropy 0.06"
    assert RULES[0].judge(StepRecord(0, 0.0, {"max_attention_logit": 87.0}), ()) == "a head reaches max logit 87"
    assert rule.judge(StepRecord(0, 0.0, {"max_attention_logit": 87.0}), ()) is None
    assert rule.judge(StepRecord(0, 0.0, {"max_attention_logit": math.nan, "attention_entropy": 0.0}), ()) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_critical_at_once(value):
    detector = DivergenceDetector()
    assert not detector.update(StepRecord(6, 0.0, {"loss": 2.0, "gradient_norm": 1.0}))
    assert detector.update(StepRecord(7, 0.0, {"loss": value, "gradient_norm": 1.0})) == [
        Alarm(7, "CRITICAL", "numbers", f"loss is {value}")
    ]
    assert not detector.update(StepRecord(8, 0.0, {"loss": value, "gradient_norm": value}))
    assert detector.standing == "CRITICAL"


def test_a_gradient_norm_that_is_no_number_is_told_before_the_loss_is():
    (alarm,) = DivergenceDetector().update(StepRecord(7, 0.0, {"loss": 2.0, "gradient_norm": math.inf}))
    assert alarm.message == "gradient norm is inf"


def test_different_troubles_are_told_apart():
    detector = DivergenceDetector()
    levels(detector, hot(0, 120, 0.05), hot(5, 120, 0.05))
    assert levels(detector, StepRecord(6, 0.0, {"loss": math.nan})) == [(6, "CRITICAL")]


def test_a_spike_is_told_by_a_rule_that_is_not_among_the_default_ones():
    norms = [1.0 + 0.1 * (step % 3) for step in range(100)] + [12.0, 1.0]
    records = [StepRecord(step, 0.0, {"loss": 2.0, "gradient_norm": norm}) for step, norm in enumerate(norms)]
    assert levels(DivergenceDetector(), *records) == []
    detector = DivergenceDetector([*RULES, Spike()])
    (alarm,) = [alarm for record in records for alarm in detector.update(record)]
    assert (alarm.step, alarm.level, alarm.rule) == (100, "WARN", "gradient_norm spike")
    assert alarm.message == "gradient norm 12 is 11 times its median of the last 100 steps"
    early = DivergenceDetector([Spike(window=100)])
    assert levels(early, *records[:10], *records[100:]) == []  # too few steps to know what is usual


def test_rules_are_edited_and_written_in_a_cell():
    @dataclass(frozen=True)
    class Wide:
        limit: float
        level: Level = "WARN"
        checks: int = 1
        name: str = "residual"

        def judge(self, record, before):
            norm = record.values.get("residual_norm")
            return None if norm is None else f"residual norm {norm:.0f}" if norm > self.limit else ""

    detector = DivergenceDetector([replace(RULES[0], logit=4.5, checks=1), Wide(30.0)])
    assert [alarm.message for alarm in detector.update(reading(0, residual_norm=31.0))] == [
        "head 1 of block 1 reaches max logit 5, entropy 0.60",
        "residual norm 31",
    ]


def test_a_detector_is_made_again_from_a_history():
    records = [hot(5 * at, 40 + 4 * at, 0.5 - 0.03 * at) for at in range(25)]
    for cut in range(len(records)):
        whole, resumed = DivergenceDetector(), DivergenceDetector()
        for record in records[:cut]:
            whole.update(record)
        kept = History.from_jsonl(History(tuple(records[:cut])).to_jsonl().splitlines())
        for record in kept.records:
            resumed.update(record)
        assert resumed.standing == whole.standing
        assert levels(resumed, *records[cut:]) == levels(whole, *records[cut:])


def test_a_rule_without_a_check_is_refused():
    with pytest.raises(ValueError, match=r"Saturation.* would sound without a check; give it checks of 1 or more"):
        DivergenceDetector([Saturation("WARN", 50.0, checks=0)])
