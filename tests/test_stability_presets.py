"""The stability presets, and how their runs are judged."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chameleon_lab.commands.main import main
from chameleon_lab.evaluation import stability
from chameleon_lab.evaluation.competition import OneModality
from chameleon_lab.history import History, StepRecord
from chameleon_lab.monitors.alarms import Bounding
from chameleon_lab.optimization import Exponential
from chameleon_lab.stability import QueryKeyRMSNorm
from chameleon_lab.training.data import PAIRS
from chameleon_lab.training.experiments import (
    CHAMELEON_7B,
    CHAMELEON_34B,
    LAB,
    PRESETS,
    SIDE_BY_SIDE,
    STRESS_RAMP,
    scale,
    sensitivity,
    variations,
)
from chameleon_lab.training.modules import Budget
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Modality


def history(losses, **measures) -> History:
    """A history of these losses, and of measures at every step."""
    each = {"attention_entropy": 0.5, "residual_norm": 1.0, "image_log_partition": 7.0, "max_attention_logit": 5.0}
    columns = {name: measures.get(name, np.full(len(losses), base)) for name, base in each.items()} | {"loss": losses}
    values = [{name: float(column[at]) for name, column in columns.items()} for at in range(len(losses))]
    values[-1]["held_out_loss"] = float(losses[-1])
    return History(tuple(StepRecord(at, 0.0, value) for at, value in enumerate(values)))


def judged(found: History, twin: History | None = None) -> stability.PresetOutcome:
    return stability.preset_outcome(found, twin, preset="p", setting="p", variation="baseline", seed=0)


# Presets


def test_the_published_sizes_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        counts = [
            sum(parameter.numel() for parameter in Transformer(each.model).parameters())
            for each in (CHAMELEON_7B, CHAMELEON_34B)
        ]
    assert counts[0] == 7_013_158_912 and 34.2e9 < counts[1] < 34.4e9


def test_the_default_recipe_is_the_paper_s():
    recipe, objective = CHAMELEON_7B.recipe, CHAMELEON_7B.objective
    assert (recipe.rate, recipe.betas, recipe.eps, recipe.weight_decay) == (1e-4, (0.9, 0.95), 1e-5, 0.1)
    assert (recipe.clip, recipe.warm_up, recipe.schedule) == (1.0, 4000, Exponential())
    assert [repr(term) for term in objective.penalties] == ["ZLoss(weight=1e-05)"]


def test_the_ramp_rises_from_a_thousandth_to_three_tenths():
    recipe = STRESS_RAMP.recipe
    rates = [recipe.rate * recipe.multiplier(step, step / 700) for step in (0, 350, 700)]
    assert rates == pytest.approx([1e-3, math.sqrt(3e-4), 0.3])


def test_presets_differ_where_they_say_and_see_the_same_data():
    for name, seed in (("sensitivity", 1), ("scale", 0), *((name, 2) for name in PRESETS)):
        runs = stability.preset(name, seed)
        assert len({each.fingerprint for each in runs.values()}) == len(runs)
        assert {each.seed for each in runs.values()} == {seed} and all(each.data == LAB.data for each in runs.values())
        for (setting, kind), each in runs.items():
            assert (QueryKeyRMSNorm() in each.model.fixes) == (kind != "baseline")
            assert (setting, "query_key_norm") in runs
    assert {rate for (rate, _), _ in stability.preset("sensitivity", 0).items()} == {"0.01", "0.03", "0.1", "0.3"}
    assert sensitivity()["norms_and_z_loss"][0.3].recipe.rate == 0.3
    assert scale()["128x4"]["baseline"].model.heads == 4
    with pytest.raises(ValueError, match="No preset is called 'p1'; there are stress_ramp"):
        stability.preset("p1", 0)


def test_attention_logits_grow_without_query_key_norm_and_not_with_it(tmp_path):
    """A tenth of the preset: the ordering that the whole of it, which is slow, shows with far larger margins."""
    largest = {}
    for name, each in variations(replace(SIDE_BY_SIDE, budget=Budget(steps=60)), 0).items():
        if name != "norms_and_z_loss":
            run = replace(each, checkpoints=0).run(tmp_path / name)
            largest[name] = run.wait().maximum("max_attention_logit")
    assert largest["baseline"] > 10 * largest["query_key_norm"]


@pytest.mark.slow
def test_side_by_side_ends_in_the_order_of_the_fixes(tmp_path):
    for seed in (0, 1):
        runs = {name: each.run(tmp_path / f"{name}-{seed}") for name, each in variations(SIDE_BY_SIDE, seed).items()}
        seen = {name: run.wait() for name, run in runs.items()}
        loss = {name: each.held_out_loss for name, each in seen.items()}
        logit = {name: each.maximum("max_attention_logit") for name, each in seen.items()}
        assert loss["baseline"] - loss["query_key_norm"] > 0.2 and loss["baseline"] - loss["norms_and_z_loss"] > 0.2
        assert logit["baseline"] > 100 * logit["query_key_norm"]
        assert seen["norms_and_z_loss"].maximum("residual_norm") < 100 < seen["baseline"].maximum("residual_norm")
        assert abs(seen["norms_and_z_loss"].last("log_partition", "image")) < 1.5
        assert any(alarm.level == "CRITICAL" for alarm in seen["baseline"].alarms)


# Judging


def test_a_blow_up_rises_and_stays_up():
    falling = np.linspace(5, 2, 200)
    risen = np.concatenate([falling, np.full(100, 3.5)])
    told = judged(history(risen))
    assert told.blow_up is not None and 200 <= told.blow_up <= 220
    assert told.lowest == pytest.approx(falling[-20:].mean()) and told.end == pytest.approx(3.5)
    spike = np.concatenate([falling, [9.0], np.full(100, 2.0)])
    assert judged(history(falling)).blow_up is None and judged(history(spike)).blow_up is None


def test_damage_is_measured_against_the_twin_on_the_same_data():
    twin = np.linspace(5, 2, 300)
    worse = twin + np.where(np.arange(300) >= 150, 0.3, 0.0)
    told = judged(history(worse), history(twin))
    assert told.damage is not None and 150 <= told.damage <= 165
    assert judged(history(twin), history(twin)).damage is None and judged(history(worse)).damage is None


def test_each_rule_is_heard_when_it_first_holds():
    steps = np.arange(100)
    seen = history(
        np.linspace(5, 2, 100),
        max_attention_logit=np.where(steps >= 30, 60.0, 5.0) + np.where(steps >= 60, 60.0, 0.0),
        attention_entropy=np.where(steps >= 50, 0.05, 0.5),
    )
    assert judged(seen).first_alarms == {
        "WARN: logit > 50": 31,
        "logit > 30 and entropy < 0.2": 51,
        "ALARM: logit > 50 and entropy < 0.1": 51,
        "CRITICAL: logit > 100 and entropy < 0.1": 61,
    }
    assert not judged(history(np.linspace(5, 2, 100))).first_alarms


def outcomes_of(rates: dict[float, float], variation: str, start: float = 6.0) -> list[stability.PresetOutcome]:
    base = judged(history(np.linspace(start, 2, 60)))
    return [
        replace(base, preset="sensitivity", setting=f"{rate:g}", variation=variation, held_out_loss=loss, start=start)
        for rate, loss in rates.items()
    ]


def test_tables_say_how_runs_ended_and_when_alarms_sounded(tmp_path):
    found = [
        *outcomes_of({0.01: 2.0, 0.1: 8.0}, "baseline"),
        *outcomes_of({0.01: 2.0, 0.1: 2.5}, "query_key_norm"),
        *outcomes_of({0.01: 2.0, 0.1: 2.0}, "norms_and_z_loss"),
    ]
    found[1] = replace(found[1], damage=40, blow_up=50, first_alarms={"WARN: logit > 50": 30})
    text = stability.preset_tables(found)
    assert (
        "baseline 2.000, query_key_norm 0.250, norms_and_z_loss 0.000" in text
    )  # a loss above the start counts as the start
    assert "| sensitivity 0.1 | baseline | 1 | 8.000 | 2.64 to 2.64 | 1 of 1 (≥ 5 % at 95 %), step 50 |" in text
    assert "| WARN: logit > 50 | 1 of 1 (≥ 5 % at 95 %) | 10 (10 to 10) | 20 (20 to 20) | 0 of 1 (≤ 95 % at 95 %) "
    assert "| 0 of 4 (≤ 53 % at 95 %) |" in text
    path = tmp_path / "outcomes.jsonl"
    path.write_text("".join(each.to_json() + "\n" for each in found))
    assert stability.read_presets(path) == found


def test_the_command_trains_what_is_not_trained_and_writes_tables(tmp_path, monkeypatch, capsys):
    for name, each in PRESETS.items():
        monkeypatch.setitem(PRESETS, name, replace(each, budget=Budget(steps=12), checkpoints=0))
    arguments = ["stability", "stress_ramp", "--seeds", "1", "--folder", str(tmp_path)]
    assert main(arguments) == 0
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/metrics.jsonl")}
    assert len(written) == 3 and len(stability.read_presets(tmp_path / "outcomes.jsonl")) == 3
    assert "| stress_ramp | baseline | 1 |" in (tmp_path / "outcomes.md").read_text()
    assert main(arguments) == 0
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/metrics.jsonl")}
    capsys.readouterr()
    assert main(["stability", "p9", "--folder", str(tmp_path)]) == 2
    assert "No preset is called 'p9'" in capsys.readouterr().err


def test_compared_rules_are_called_by_their_thresholds():
    for name, rule in stability.COMPARED.items():
        if isinstance(rule, Bounding):
            numbers = [float(each) for each in re.findall(r"[<>] ([\d.]+)", name)]
            assert sorted(numbers) == sorted(rule.thresholds.values()), name
    assert sum(isinstance(rule, Bounding) for rule in stability.COMPARED.values()) == 5


ROOT = Path(__file__).parent.parent


def test_the_page_s_tables_are_those_of_the_recorded_outcomes():
    page = (ROOT / "docs" / "stability.md").read_text()
    presets, competition = (
        stability.read_presets(ROOT / "data" / f"{name}.jsonl") for name in ("stability", "competition")
    )
    assert stability.preset_tables(presets).strip() in page
    growth = [
        line for line in stability.preset_tables(competition).splitlines() if line.startswith(("| text", "| images"))
    ]
    assert len(growth) == 3 and all(line in page for line in growth)
    assert {each.seed for each in competition} == set(range(5)) and len(competition) == 20
    first = {name: stability.growth_of(competition, name)["images alone"] for name in stability.GROWTH}
    assert not any(mean.excludes(1) for mean in first.values())
    assert stability.growth_of(competition, "output_norm")["text and images, mixture_of_transformers"].low > 1


def test_one_modality_s_rows_hold_nothing_of_the_other():
    corpora = {kind: OneModality(kind, PAIRS).open(0, None) for kind in ("text", "image")}
    for kind, corpus in corpora.items():
        kinds = set(np.unique(corpus.vocabulary.modality[corpus.batches(3).inputs_BT.numpy()]).tolist())
        own, other = (Modality.TEXT, Modality.IMAGE) if kind == "text" else (Modality.IMAGE, Modality.TEXT)
        assert own in kinds and other not in kinds and corpus.held_out
        assert (corpus.batches(3).inputs_BT != corpus.vocabulary.pad).float().mean() > 0.7
    with pytest.raises(ValueError, match="text or image, not 'sound'"):
        OneModality("sound").open(0, None)  # pyright: ignore[reportArgumentType]


def test_the_loss_at_initialisation_is_that_of_the_first_step():
    run = history(np.linspace(7, 2, 60))
    assert run.initial_loss == 7 == judged(run).start
    assert math.isnan(History(run.records[1:]).initial_loss) and math.isnan(History().initial_loss)
    several = [*outcomes_of({0.1: 3.0}, "baseline", 6.0), *outcomes_of({0.1: 3.0}, "baseline", 7.0)]
    assert stability.loss_at_start(several) == 6.5 and stability.loss_at_start([]) == math.inf


def test_a_difference_is_called_one_only_where_seeds_exclude_none():
    def runs(kind: str, losses: list[float]) -> list[stability.PresetOutcome]:
        (base,) = outcomes_of({0.1: 3.0}, kind)
        return [replace(base, preset="p", setting="p", seed=at, held_out_loss=loss) for at, loss in enumerate(losses)]

    bare = runs("baseline", [3.0, 3.4, 3.2])
    better, same = runs("better", [2.0, 2.4, 2.19]), runs("same", [2.5, 3.9, 3.1])
    text = stability.preset_tables([*bare, *better, *same])
    assert re.search(r"\| p \| better \| 3 \| -1\.003 .* \| better \|", text)
    assert re.search(r"\| p \| same \| 3 \| .* \| no difference excluded \|", text)
