"""Parts that a person wrote are checked where an experiment is made, by errors that name the part and what it lacks."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from chameleon_lab.history import Level, StepRecord
from chameleon_lab.monitors.alarms import DivergenceDetector, NotANumber, Spike
from chameleon_lab.monitors.attention import AttentionRows
from chameleon_lab.monitors.outputs import ResidualNorm
from chameleon_lab.monitors.watch import Readout
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import Cosine, Recipe
from chameleon_lab.parts import require, require_each
from chameleon_lab.stability import FIXES, QueryKeyNorm, ZLoss
from chameleon_lab.tokenizers.image import ImageTokenizerConfig
from chameleon_lab.training.data import PAIRS, Scenes
from chameleon_lab.training.experiments import LAB
from chameleon_lab.training.image_experiments import TINY_PICTURES
from chameleon_lab.training.modules import Budget
from chameleon_lab.training.run import Rescue
from chameleon_lab.transformer import ModelConfig

MODEL = LAB.model


@dataclass(frozen=True)
class Own:
    """A rule that is what the test makes of it."""

    judged: Any = ""
    name: Any = "own"
    thresholds: Any = field(default_factory=dict)
    level: Level = "WARN"
    checks: int = 1

    def judge(self, record, before):
        return self.judged


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"monitors": (AttentionRows,)}, r"AttentionRows is a class, where a monitor is wanted: .* AttentionRows\(\)"),
        ({"monitors": AttentionRows()}, "several of a monitor, in a tuple: got AttentionRows"),
        ({"monitors": "residual_norm"}, "in a tuple: got 'residual_norm'"),
        ({"monitors": ("residual_norm",)}, "'residual_norm' is no monitor: it lacks every, watch"),
        ({"monitors": (QueryKeyNorm(),)}, "QueryKeyNorm.* is no monitor: it lacks every, watch"),
        *(
            (
                {"monitors": (replace(ResidualNorm(), every=every),)},
                f"ResidualNorm.* every {every} steps; give it a whole",
            )
            for every in (0, -1, 2.5, True, None)
        ),
        ({"rules": (NotANumber,)}, "NotANumber is a class, where a rule is wanted"),
        ({"rules": (replace(Spike(), level="LOUD"),)}, "Spike.* is of level 'LOUD'; there are WARN, ALARM, CRITICAL"),
        ({"rules": (Spike(checks=0),)}, "Spike.* would sound without a check"),
        ({"rules": (replace(Spike(), checks=1.5),)}, "Spike.* would sound without a check"),
        ({"rules": (Own(name=3),)}, "Own.* is called 3; a rule's name is a word"),
        *(
            ({"rules": (Own(thresholds=limits),)}, "thresholds of Own.* are finite numbers by measure, not ")
            for limits in (
                None,
                5,
                [1],
                {"loss": "x"},
                {"loss": None},
                {"loss": math.nan},
                {"loss": math.inf},
                {3: 3.0},
            )
        ),
        ({"rules": (ResidualNorm(),)}, "is no rule: it lacks name, level, checks, judge"),
        ({"model": ModelConfig}, "ModelConfig is a class"),
        ({"model": replace(MODEL, fixes=(QueryKeyNorm,))}, "QueryKeyNorm is a class, where a fix of the model"),
        ({"model": replace(MODEL, fixes=(ZLoss(),))}, "ZLoss.* is no fix of the model: it lacks install"),
        ({"recipe": Recipe}, "Recipe is a class, where a recipe is wanted"),
        ({"recipe": Cosine()}, "is no recipe: it lacks optimizers, pace"),
        ({"objective": Objective}, "Objective is a class"),
        ({"objective": ZLoss()}, "is no objective: it lacks __call__, penalties"),
        ({"data": Scenes}, "Scenes is a class, where a data source is wanted"),
        ({"data": "scenes"}, "'scenes' is no data source: it lacks open"),
        ({"budget": Budget}, "Budget is a class"),
        ({"budget": 600}, "600 is no budget: it lacks progress"),
        ({"checkpoints": -1}, "checkpoints must be a whole number from 0 on, not -1"),
        ({"held_out_every": 0}, "steps from one held-out loss to the next must be a whole number from 1 on, not 0"),
    ],
)
def test_a_part_that_is_none_is_named_when_the_experiment_is_made(parts, message):
    with pytest.raises(ValueError, match=message):
        replace(LAB, **parts)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"rules": (NotANumber,)}, "NotANumber is a class, where a rule is wanted"),
        ({"rules": NotANumber()}, "several of a rule, in a tuple: got NotANumber"),
        ({"rules": (NotANumber("LOUD"),)}, "is of level 'LOUD'"),  # pyright: ignore[reportArgumentType]
        ({"budget": 5}, "5 is no budget"),
        ({"recipe": Recipe}, "Recipe is a class"),
        ({"source": None}, "source must be a function of the experiment"),
        ({"tokenizer": ImageTokenizerConfig}, "ImageTokenizerConfig is a class"),
        ({"objective": "edges"}, "'edges' is no objective of reconstruction"),
        ({"batch": 0}, "pictures of a batch must be a whole number from 1 on, not 0"),
        ({"checkpoints": -1}, "checkpoints must be a whole number from 0 on, not -1"),
    ],
)
def test_a_part_of_an_image_experiment_is_looked_at_too(parts, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY_PICTURES, **parts)


@pytest.mark.parametrize("judged", [True, 3.5, ["bad"], {}])
def test_a_judgement_that_is_no_words_is_named(judged):
    with pytest.raises(ValueError, match=r"Own.* judged .*; a rule says in words"):
        DivergenceDetector((Own(judged),)).update(StepRecord(0, 0.0))


@pytest.mark.parametrize("name", [3, "", None])
def test_a_reading_whose_name_is_no_word_is_named(name):
    with pytest.raises(ValueError, match=r"ResidualNorm.* calls a reading"):
        Readout().add({name: 1.0}, ResidualNorm())


@pytest.mark.parametrize("given", [0, -1, 2.5, math.nan, math.inf, "5", True])
def test_a_budget_is_a_whole_number_of_steps_or_a_number_of_minutes(given):
    with pytest.raises(ValueError, match="A budget must be a whole number of steps, finite and more than 0, not"):
        Budget(steps=given)
    if given != 2.5:
        with pytest.raises(ValueError, match="A budget must be a number of minutes, finite and more than 0, not"):
            Budget(minutes=given)


@pytest.mark.parametrize("fix", FIXES.values(), ids=repr)
def test_a_fixs_class_is_no_fix(fix):
    with pytest.raises(ValueError, match=f"{type(fix).__name__} is a class, where a fix is wanted"):
        LAB.with_fixes(type(fix))


def test_parts_of_parts_are_looked_at_where_those_are_made():
    with pytest.raises(ValueError, match="Cosine is a class, where a schedule is wanted"):
        replace(Recipe(), **{"schedule": Cosine})
    with pytest.raises(ValueError, match="ZLoss is a class, where a penalty is wanted"):
        replace(Objective(), **{"penalties": (ZLoss,)})
    with pytest.raises(ValueError, match="several of a penalty, in a tuple"):
        replace(Objective(), **{"penalties": ZLoss()})
    with pytest.raises(ValueError, match="waits for the level 'LOUD'; there are WARN, ALARM, CRITICAL"):
        replace(Rescue(), **{"level": "LOUD"})
    with pytest.raises(ValueError, match="QueryKeyNorm is a class, where a fix is wanted"):
        Rescue((QueryKeyNorm,))
    with pytest.raises(ValueError, match=r"Rescue.fixes must be of type tuple.*, not 'QueryKeyNorm"):
        Rescue(QueryKeyNorm())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="back must lie in 1"):
        Rescue(back=0)
    with pytest.raises(ValueError, match="NotANumber is a class"):
        DivergenceDetector([NotANumber])  # pyright: ignore[reportArgumentType]


def test_what_has_the_members_is_a_part_whatever_its_class():
    @dataclass(frozen=True)
    class Own:
        every: int = 3
        name: str = "own"
        level: str = "WARN"
        checks: int = 1

        def watch(self, moment):
            yield

        def judge(self, record, before):
            return ""

        def open(self, seed, steps):
            return PAIRS.open(seed, steps)

    own = Own()
    experiment = replace(LAB, monitors=[own], rules=[own], data=own)
    assert experiment.monitors == [own] and replace(experiment, data=None).data is None
    require(own, "a monitor", "every", "watch")
    require_each((), "a monitor", "every")
