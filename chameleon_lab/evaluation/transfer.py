"""Which task helps which: the model of many tasks is trained with all of them, and without each one, seed after seed.

- without a task a step has as many fewer tokens as the task's share, so that every other task has as many documents as
  before: what is measured is whether the task's documents helped the others, and nothing else was changed
- a task's *loss* is that of its right answers, held out, in nats a token; what a task *gives* another one is the loss
  without it less the loss with all, the mean of seeds, each seed paired with itself (`Mean.of_seeds`)
- outcomes are lines of a file; a training whose line is there is not done again

`python -m chameleon_lab.evaluation.transfer FOLDER` trains what is lacking and prints the table.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.instructions import BRIEF, SCENE_TASKS, TASK_SHARES, sample_examples
from chameleon_lab.corpora.packing import Batch, bucket, tokenize
from chameleon_lab.evaluation.intervals import Mean
from chameleon_lab.files import intact, read_json_lines
from chameleon_lab.parts import require_fields
from chameleon_lab.signals import exit_code
from chameleon_lab.storage import write_file
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import Instructions
from chameleon_lab.training.experiments import INSTRUCTIONS
from chameleon_lab.training.folder import locks_folder
from chameleon_lab.training.instructions import without_tasks

log = logging.getLogger(__name__)

ALL_TASKS = "all tasks"


@dataclass(frozen=True)
class TransferOutcome:
    """One training: the task it went without (or `ALL_TASKS`), its seed and steps, and each task's held-out loss."""

    without: str
    seed: int
    steps: int
    losses: dict[str, float]

    def __post_init__(self) -> None:
        """Raises ValueError for what is no outcome."""
        require_fields(self, seed=(0, math.inf), steps=(1, math.inf))


def task_batches(tokenizer: MixedModalTokenizer, n: int, seed: int = 2026) -> dict[str, list[Batch]]:
    """By task, `n` held-out documents in batches."""
    batches = dict[str, list[Batch]]()
    for number, task in enumerate(SCENE_TASKS):
        rng = np.random.default_rng([seed, 35, number])
        examples = sample_examples(rng, n, {task: 1.0}, "held_out")
        documents = tokenize([BRIEF.document(each.pair) for each in examples], tokenizer)
        batches[task] = bucket(documents, max(1, n // 16), tokenizer.vocabulary, rng)
    return batches


@locks_folder
def measure_transfer(
    folder: Path | str,
    seeds: int = 3,
    steps: int = 60,
    tokens: int = 1024,
    n: int = 32,
    tasks: Sequence[str] = tuple(SCENE_TASKS),
) -> Iterator[TransferOutcome]:
    """The outcome of each training, with all tasks and without each of these, kept in `folder/outcomes.jsonl`.

    Each begins from the tiny model. Raises ValueError for a task that there is not, and for outcomes of other steps.
    """
    from chameleon_lab.training.modules import held_out_losses  # Lightning is slow to import

    if unknown := sorted(set(tasks) - SCENE_TASKS.keys()):
        raise ValueError(f"No task is called {unknown[0]!r}; the tasks are {', '.join(SCENE_TASKS)}.")
    folder, lab = Path(folder), Chameleon.load("tiny", device="cpu")
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = read_transfer(folder / "outcomes.jsonl")
    if other := next((each for each in outcomes if each.steps != steps), None):
        raise ValueError(f"{folder} holds outcomes of {other.steps} steps, not of {steps}: give it another folder.")
    held_out = task_batches(lab.tokenizer, n)
    for seed in range(seeds):
        for without in (ALL_TASKS, *tasks):
            outcome = next((each for each in outcomes if (each.without, each.seed) == (without, seed)), None)
            if outcome is None:
                shares = without_tasks(TASK_SHARES, [] if without == ALL_TASKS else [without])
                share = sum(shares.values()) / sum(TASK_SHARES.values())
                data = Instructions(lab.tokenizer, round(tokens * share), shares, earlier=0.0)
                experiment = replace(INSTRUCTIONS, data=data, budget=Budget(steps=steps), seed=seed)
                run = experiment.run(folder / f"{without.replace(' ', '-')}-{seed}")
                run.wait()
                model = run.result().cpu()
                losses = {
                    task: held_out_losses(model, INSTRUCTIONS.objective, batches)["loss"]
                    for task, batches in held_out.items()
                }
                outcome = TransferOutcome(without, seed, steps, losses)
                outcomes.append(outcome)
                lines = [json.dumps(vars(each)) for each in outcomes]
                write_file(folder / "outcomes.jsonl", "\n".join([*lines, ""]))
            yield outcome


def read_transfer(path: Path | str) -> list[TransferOutcome]:
    """The outcomes in a file; none where there is no file. Raises ValueError for a damaged one, and for outcomes of
    different tasks, which cannot be compared."""
    if not Path(path).is_file():
        return []
    with intact(path, "Move it away."):
        outcomes = [TransferOutcome(**plain) for plain in read_json_lines(Path(path))]
        if any(each.losses.keys() != outcomes[0].losses.keys() for each in outcomes):
            raise ValueError("its outcomes are of different tasks")
        return outcomes


def task_gains(outcomes: Sequence[TransferOutcome]) -> dict[str, dict[str, Mean]]:
    """What each task gives each (itself too): loss without it less loss with all, nats a token, the mean of seeds.

    Raises ValueError where no training with all tasks is there to compare with.
    """
    whole = {each.seed: each.losses for each in outcomes if each.without == ALL_TASKS}
    gains = dict[str, dict[str, Mean]]()
    for without in dict.fromkeys(each.without for each in outcomes if each.without != ALL_TASKS):
        arms = [each for each in outcomes if each.without == without and each.seed in whole]
        if not arms:
            raise ValueError(f"Nothing was trained with all tasks and a seed of those without {without!r}.")
        gains[without] = {
            task: Mean.of_seeds([arm.losses[task] - whole[arm.seed][task] for arm in arms]) for task in arms[0].losses
        }
    return gains


def transfer_command(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where trainings and outcomes go")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--steps", type=int, default=60, help="of each training (default: 60)")
    parser.add_argument("--tokens", type=int, default=1024, help="a step (default: 1024)")
    parser.add_argument("-n", type=int, default=32, help="held-out documents of each task (default: 32)")
    parser.add_argument("--tasks", nargs="+", choices=SCENE_TASKS, default=tuple(SCENE_TASKS), help="left out in turn")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    outcomes = list[TransferOutcome]()
    for each in measure_transfer(
        options.folder, options.seeds, options.steps, options.tokens, options.n, options.tasks
    ):
        outcomes.append(each)
        losses = "  ".join(f"{task} {loss:.3f}" for task, loss in each.losses.items())
        log.info("without %-24s seed %d   %s", each.without, each.seed, losses)
    for task, gains in task_gains(outcomes).items():
        for other, gain in gains.items():
            log.info("%-24s gives %-24s %s nats a token", task, other, gain.within("+.3f"))


if __name__ == "__main__":
    # By its own name: what an experiment names in `__main__` counts as a person's own, and as another one.
    from chameleon_lab.evaluation.transfer import transfer_command as command

    raise SystemExit(exit_code(command))
