"""The training of the model of many tasks: the tiny model's weights, trained on with instructions.

`python -m chameleon_lab.training.instructions FOLDER` writes it to `FOLDER/model`; called again with more steps, it
goes on. `--from data/instructions` goes on from that model in another folder, with documents of another seed and a
quarter of the rates. `chameleon-lab train instructions` is the same run without the model's folder.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.instructions import TEMPLATES
from chameleon_lab.signals import exit_code
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import Instructions
from chameleon_lab.training.experiments import GENTLER, INSTRUCTIONS
from chameleon_lab.training.fine_tuning import save_result
from chameleon_lab.training.folder import locks_folder
from chameleon_lab.training.infilling import InfillProgress

log = logging.getLogger(__name__)

CONTINUED_INSTRUCTIONS = replace(GENTLER, rate=GENTLER.rate / 4, muon_rate=GENTLER.muon_rate / 4)
"""The recipe for a model that has learned the tasks already."""


@locks_folder
def train_instructions(
    folder: Path | str,
    budget: Budget = INSTRUCTIONS.budget,
    data: Instructions | None = None,
    begins_from: str | Path = "tiny",
    every: float = 20.0,
) -> Chameleon:
    """The model of many tasks, written to `folder/model`. Called again with a larger budget, it goes on.

    `begins_from`: folder or name of a model whose weights are trained on, of any shape and tokenizers; one of many
    tasks is trained on gently, with documents that it has not met. Every so many seconds the log says how far it is.
    """
    folder, lab = Path(folder), Chameleon.load(begins_from, device="cpu")
    data = data or Instructions()
    experiment = replace(INSTRUCTIONS, begins_from=str(begins_from), data=data, budget=budget)
    earlier = lab.card.get("experiment", {})
    if earlier.get("name") == INSTRUCTIONS.name:
        experiment = replace(experiment, recipe=CONTINUED_INSTRUCTIONS, seed=earlier["seed"] + 1)
    if lab.tokenizer.vocabulary != Chameleon.load("tiny", device="cpu").tokenizer.vocabulary:
        data = replace(data, tokenizer=str(begins_from))
        experiment = replace(experiment, model=lab.model.config, data=data)
    run = experiment.run(folder / "transformer")
    run.wait(report=InfillProgress(every))
    settings = lab.settings.changed(image_temperature=0.0, guidance=1.0)  # a request determines its answer
    return save_result(
        run, experiment, lab, folder / "model", without=("tokenizer", "pairs"), settings=settings, infill=data.infill
    )


def train_instructions_command(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the run and the model go")
    parser.add_argument("--steps", type=int, default=1200, help="of training, in all (default: 1200)")
    parser.add_argument("--minutes", type=float, help="of training, in all, instead of steps")
    parser.add_argument("--tokens", type=int, default=2048, help="a step (default: 2048)")
    parser.add_argument("--from", dest="begins_from", default="tiny", help="a model whose weights it begins from")
    parser.add_argument("--without", nargs="+", default=(), metavar="TASK", help="tasks that are left out")
    parser.add_argument("--twice", nargs="+", default=(), metavar="TASK", help="tasks of twice the usual share")
    parser.add_argument(
        "--templates", choices=TEMPLATES, default="brief", help="how tasks are written (default: brief)"
    )
    parser.add_argument(
        "--pairs", type=Path, help="instructions of your own: a JSON Lines file, or a folder of pictures with alpha"
    )
    parser.add_argument("--own", type=float, default=0.5, help="share of documents that are your own (default: 0.5)")
    parser.add_argument("--learn", choices=("answer", "all"), default="answer", help="on what loss is taken")
    parser.add_argument("--infill", type=float, default=0.0, help="share of documents rearranged besides (default: 0)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    shares = doubled(without_tasks(Instructions().shares, options.without), options.twice)
    data = Instructions(
        tokens=options.tokens,
        shares=shares,
        pairs=options.pairs,
        earlier=min(Instructions.earlier, 1 - options.own),
        own=options.own,
        learn=options.learn,
        infill=options.infill,
        templates=options.templates,
    )
    budget = Budget(steps=options.steps) if options.minutes is None else Budget(minutes=options.minutes)
    train_instructions(options.folder, budget, data, options.begins_from)
    log.info("The model is in %s.", options.folder / "model")


def without_tasks(shares: Mapping[str, float], tasks: Sequence[str]) -> dict[str, float]:
    """The shares of the other tasks. Raises ValueError for a task that is not among them."""
    check_tasks(shares, tasks)
    return {task: share for task, share in shares.items() if task not in tasks}


def doubled(shares: Mapping[str, float], tasks: Sequence[str]) -> dict[str, float]:
    """The shares, those of some tasks doubled. Raises ValueError for a task that is not among them."""
    check_tasks(shares, tasks)
    return {task: 2 * share if task in tasks else share for task, share in shares.items()}


def check_tasks(shares: Mapping[str, float], tasks: Sequence[str]) -> None:
    if unknown := sorted(set(tasks) - shares.keys()):
        raise ValueError(f"No task is called {unknown[0]!r}; the tasks are {', '.join(shares)}.")


if __name__ == "__main__":
    # By its own name: what an experiment names in `__main__` counts as a person's own, and as another one.
    from chameleon_lab.training.instructions import train_instructions_command as command

    raise SystemExit(exit_code(command))
