"""Rewards for scenes, and the training that asks whether reward teaches what data did not.

The tiny model's training never shows the pairs of colour and shape in `NOVEL_PAIRS`, and asked for one it draws it one
time in six. Here it draws half of these pairs, `REWARDED_PAIRS`, and the checker judges what it drew; it is never shown
one. Of the other half, `UNREWARDED_PAIRS`, it hears nothing: what it learns of them is binding, and no pair by heart.
A pair may be asked for alone, or in a relation to a thing that the data have (`RelationRequests`).

`python -m chameleon_lab.training.rewards FOLDER` trains it; called again, it goes on.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from chameleon_lab.candidates import request_and_picture
from chameleon_lab.corpora.checker import compare_scenes, read_scene
from chameleon_lab.corpora.conversations import draw_request
from chameleon_lab.corpora.requests import requested_scene
from chameleon_lab.corpora.scenes import NOVEL_PAIRS, Scene, sample_scene
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.history import StepRecord
from chameleon_lab.signals import exit_code
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.reinforcement import GRPO, RewardExperiment

log = logging.getLogger(__name__)

REWARDED_PAIRS = tuple(sorted(NOVEL_PAIRS)[::2])
UNREWARDED_PAIRS = tuple(sorted(NOVEL_PAIRS)[1::2])


@dataclass(frozen=True)
class PairRequests:
    """Full requests for one thing, its colour and shape one of `pairs`; arrangements of the `held_out` side or not."""

    pairs: tuple[tuple[str, str], ...] = REWARDED_PAIRS
    held_out: bool = False

    def __call__(self, rng: np.random.Generator) -> Document:
        return Document.of(draw_request(self.scene(rng), rng, full=True), EndTurn())

    def scene(self, rng: np.random.Generator) -> Scene:
        while True:
            scene = sample_scene(rng, 1)
            if scene.things[0].pair in self.pairs and scene.held_out == self.held_out:
                return scene


@dataclass(frozen=True)
class RelationRequests(PairRequests):
    """Full requests for two things beside or above one another: one's colour and shape one of `pairs`, the other's
    shown in the tiny model's training."""

    def scene(self, rng: np.random.Generator) -> Scene:
        while True:
            scene = sample_scene(rng, 2)
            novel = [thing.pair for thing in scene.things if thing.pair in NOVEL_PAIRS]
            if len(novel) == 1 and novel[0] in self.pairs and scene.held_out == self.held_out:
                return scene


def scene_reward(document: Document) -> float:
    """The share of a requested scene's attributes that the picture has right, as the checker reads it; 0 without one.

    Colours, shapes and both together count each, so that half a pair is worth something. 1 is all of it.
    """
    words, image = request_and_picture(document)
    if image is None:
        return 0.0
    verdicts = compare_scenes(requested_scene(words), read_scene(image.picture))
    return sum(verdicts.values()) / len(verdicts)


def pair_reward(document: Document) -> float:
    """1 where colour and shape are right, and nothing else is asked: neither the size nor the place."""
    words, image = request_and_picture(document)
    if image is None:
        return 0.0
    return float(compare_scenes(requested_scene(words), read_scene(image.picture))["binding"])


REWARDED = RewardExperiment(
    "rewarded",
    scene_reward,
    PairRequests(),
    Budget(steps=120),
    grpo=GRPO(inner_steps=2),
    checkpoints=5,
)
"""The tiny model, rewarded for all of a scene: 60 rounds of 64 drawings, about 8 minutes of one core."""

REWARDED_FOR_PAIRS = replace(REWARDED, name="rewarded-for-pairs", reward=pair_reward)
"""The same, rewarded for colour and shape alone."""

REWARDED_RELATIONS = replace(REWARDED, name="rewarded-relations", prompts=RelationRequests())
"""The same, asked for the rewarded pairs in relations alone."""


def train_rewards_command(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the run goes")
    parser.add_argument("--steps", type=int, default=120, help="of training, in all (default: 120)")
    arm = parser.add_mutually_exclusive_group()
    arm.add_argument("--pairs-only", action="store_true", help="reward colour and shape alone")
    arm.add_argument("--relations", action="store_true", help="ask for two things in a relation, and not for one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arms = {"pairs_only": REWARDED_FOR_PAIRS, "relations": REWARDED_RELATIONS}
    experiment = next((each for name, each in arms.items() if getattr(options, name)), REWARDED)
    experiment = replace(experiment, budget=Budget(steps=options.steps), seed=options.seed)
    experiment.run(options.folder).wait(report=say_reward)
    log.info("The run is in %s.", options.folder)


def say_reward(record: StepRecord) -> None:
    """A line for a record."""
    names = [name for name in ("reward", "right_share", "kl", "distinct_share") if name in record.values]
    figures = "  ".join(f"{name} {record.values[name]:.3f}" for name in names)
    log.info("%6.2f min  step %d  %s", record.seconds / 60, record.step + 1, figures)


if __name__ == "__main__":
    # By its own name: what an experiment names in `__main__` counts as a person's own, and as another one.
    from chameleon_lab.training.rewards import train_rewards_command as command

    raise SystemExit(exit_code(command))
