"""Plans for many devices: the parts sum up, the limits come in order, and the paper's hours are what they imply."""

from dataclasses import replace

import pytest

from chameleon_lab.commands.main import main
from chameleon_lab.devices import (
    PAPER_HOURS,
    PAPER_TOKENS,
    FleetPlan,
    flops_per_token,
    implied_mfu,
    plan_devices,
)
from chameleon_lab.optimization import Recipe
from chameleon_lab.planner import GB, plan
from chameleon_lab.published import PUBLISHED
from chameleon_lab.transformer import ModelConfig

SMALL = ModelConfig(512, 64, 6, 4, 4, 16, 176, 256)


@pytest.mark.parametrize(("name", "parameters", "least", "most"), [("7b", 7.0e9, 0.4, 0.5), ("34b", 34.3e9, 0.4, 0.5)])
def test_the_paper_s_hours_imply_the_use_that_such_trainings_make_of_a_gpu(name, parameters, least, most):
    assert least < implied_mfu(PUBLISHED[name], int(parameters), PAPER_TOKENS, PAPER_HOURS[name]) < most


PAPER_FLEETS = {"7b": (1024, 2**23, 0.55), "34b": (3072, 3 * 2**22, 0.80)}
"""Devices, tokens a step, and the share of the training that 600,000 steps are (arXiv 2405.09818, 2.2 and 2.3)."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER_FLEETS)
def test_the_paper_s_fleets_are_planned_and_as_quick_as_they_were_take_the_paper_s_hours(name):
    config, (devices, batch, share) = PUBLISHED[name], PAPER_FLEETS[name]
    assert pytest.approx(600_000 / share * batch, rel=0.03) == PAPER_TOKENS
    rows = batch // devices // config.context
    assert rows * devices * config.context == batch
    fleet = plan_devices(config, devices, 80, rows=rows, recompute=True, tokens=PAPER_TOKENS)
    assert fleet.fits and fleet.stands < 0.2 * GB and fleet.days
    # Weights that cross a link of 200 Gbit/s three times a step, whole and in float32, cost the 34B more than its sums.
    assert fleet.first_limit.startswith({"7b": "nothing here", "34b": "the link"}[name])
    assert fleet.days[0] * 24 * devices > PAPER_HOURS[name]
    mfu = implied_mfu(config, fleet.one.parameters, PAPER_TOKENS, PAPER_HOURS[name])
    compute = fleet.tokens_at_once * fleet.flops / (mfu * fleet.peak_flops)
    hidden = replace(fleet, compute=compute, exchange=0.0)
    assert hidden.days and hidden.days[0] * 24 * devices == pytest.approx(PAPER_HOURS[name])
    assert hidden.mfu == (pytest.approx(mfu), pytest.approx(mfu))


def test_one_device_takes_what_the_planner_says_and_many_share_what_stands():
    one = plan(SMALL, training=Recipe(), precision="bf16-mixed")
    alone = plan_devices(SMALL, 1)
    assert alone.peak == one.peak and alone.exchange == alone.gathered == 0
    for devices in (2, 8, 64):
        shared = plan_devices(SMALL, devices)
        assert shared.stands == -(-(one.weights + one.gradients + one.optimizer) // devices)
        assert 0 < shared.gathered <= one.weights + one.gradients and shared.activations == one.activations


def test_recomputing_takes_time_and_saves_activations():
    deep = replace(SMALL, layers=24)
    usual, again = (plan_devices(deep, 4, recompute=recompute, rate=1000) for recompute in (False, True))
    assert again.activations < usual.activations / 2 and again.stands == usual.stands
    assert again.compute == pytest.approx(usual.compute * 4 / 3)


def test_pace_days_and_limits_follow_from_rate_and_link():
    fast = plan_devices(SMALL, 8, rate=256.0, link=1e6, tokens=8 * 256.0 * 86400)
    assert fast.compute == 1.0 and fast.rates[1] == pytest.approx(8 * 256) and fast.days
    assert fast.days[0] == pytest.approx(1) and "hidden" in fast.first_limit
    slow = plan_devices(SMALL, 8, rate=256.0, link=1e-6)
    assert slow.exchange > slow.compute and slow.first_limit.startswith("the link: from ")
    assert slow.rates[0] < slow.rates[1] < fast.rates[0]
    assert plan_devices(SMALL, 8, 1e-3).first_limit.startswith("memory: ")
    flops = flops_per_token(SMALL, plan(SMALL).parameters, 256)
    assert plan_devices(SMALL, 1, peak_flops=1e9).mfu[1] == pytest.approx(0.4) and flops > 0


@pytest.mark.parametrize(
    ("name", "number"),
    [("devices", 0), ("devices", 1.5), ("devices", True), ("rate", -1), ("link", 0), ("tokens", 1e999)],
)
def test_impossible_numbers_are_named(name, number):
    with pytest.raises(ValueError, match=f"{name} must be"):
        plan_devices(SMALL, **({"devices": 2} | {name: number}))  # pyright: ignore[reportArgumentType]


def test_the_command_says_what_breaks_first(capsys):
    words = ["plan", "7b", "--devices", "256", "--device-memory", "80", "--recompute", "--tokens", "9.2e12"]
    assert main([*words, "--precision", "bf16-mixed"]) == 0
    answer = capsys.readouterr().out
    assert "256 devices, FSDP2" in answer and "fits 80 GB a device" in answer and "first limit: " in answer
    assert "9.2e+12 tokens in" in answer and isinstance(plan_devices(SMALL, 2), FleetPlan)
