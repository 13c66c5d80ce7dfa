"""`chameleon-lab train`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Set
from dataclasses import replace
from pathlib import Path

import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.commands.parsers import train_folder
from chameleon_lab.commands.progress import await_run
from chameleon_lab.training.alignment import ALIGNMENTS, alignment_on, conversation_sources, in_portions, save_aligned
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.experiments import EXPERIMENTS
from chameleon_lab.training.image_experiments import IMAGE_EXPERIMENTS, ImageExperiment, folder_of_pictures
from chameleon_lab.training.own.card import own_summary
from chameleon_lab.training.own.training import OwnTraining
from chameleon_lab.training.pipeline import MODELS, Pipeline
from chameleon_lab.training.run import Run

log = logging.getLogger(__name__)


def experiment_names() -> Set[str]:
    """What can be trained by name."""
    return {*MODELS, *IMAGE_EXPERIMENTS, *EXPERIMENTS, *ALIGNMENTS}


def train_command(options: argparse.Namespace) -> None:
    """Trains a model (BPE, image tokenizer, transformer), a transformer or an image tokenizer; called again, goes on.

    Meanwhile its folder can be watched, and the run steered, from a notebook: RunPanel(FOLDER).
    """
    if options.minutes is not None and options.minutes <= 0:
        raise ValueError(f"--minutes must be more than 0, not {options.minutes}.")
    if options.threads is not None and options.threads < 1:
        raise ValueError(f"--threads must be 1 or more, not {options.threads}.")
    if options.processes < 1:
        raise ValueError(f"--processes must be 1 or more, not {options.processes}.")
    if options.data and options.experiment not in ALIGNMENTS:
        _train_own(options)
        return
    if options.experiment is None:
        raise ValueError("Give an experiment's name (see train --help), or your own data: --data FOLDER.")
    name, minutes = options.experiment, options.minutes
    if options.pictures is not None and name not in IMAGE_EXPERIMENTS:
        raise ValueError(f"--pictures is for image tokenizers ({', '.join(IMAGE_EXPERIMENTS)}).")
    if options.processes > 1 and name in IMAGE_EXPERIMENTS:
        raise ValueError("--processes is for transformers: an image tokenizer is trained by one.")
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = train_folder(options)
    if name in MODELS:
        model = MODELS[name] if minutes is None else MODELS[name].lasting(minutes)
        for stage, run in Pipeline(model, folder, options.processes).stages():
            await_run(stage, run)
        model_folder = folder / "model"
        log.info("The model is in %s. Try: chameleon-lab generate --model %s 'draw a red circle'", *[model_folder] * 2)
        return
    experiment = {**IMAGE_EXPERIMENTS, **EXPERIMENTS, **ALIGNMENTS}[name]
    if name in ALIGNMENTS and (options.data or options.begins_from):
        sources, weights = conversation_sources(options.data or [])
        experiment = alignment_on(sources, options.begins_from or "tiny", weights=weights, seed=options.seed)
    if minutes is not None:
        experiment = replace(experiment, budget=Budget(minutes=minutes))
    trainer = {}
    if name in ALIGNMENTS and not torch.cuda.is_available():  # a step is of as many rows, but of few at once
        experiment, trainer = in_portions(experiment)
    if isinstance(experiment, ImageExperiment):
        if options.pictures is not None:
            experiment = replace(experiment, source=folder_of_pictures(options.pictures))
        await_run("image tokenizer", experiment.run(folder))
        tokenizer = folder / "tokenizer"
        log.info(
            "The image tokenizer is in %s. Try: chameleon-lab reconstruct --model %s PICTURE", tokenizer, tokenizer
        )
        return
    if experiment.data is None:
        raise ValueError(
            f"{name} has no data of its own. Write some with `chameleon-lab tokenize`, and give it that in Python: "
            f"replace(EXPERIMENTS[{name!r}], data=Corpora(...)).run(FOLDER)."
        )
    run = Run(experiment, folder, processes=options.processes, trainer=trainer).start()
    await_run("transformer", run)
    if name in ALIGNMENTS:
        save_aligned(run.result(), experiment, folder / "model")
        log.info("The model is in %s. Try: chameleon-lab generate --model %s 'hello'", *[folder / "model"] * 2)
    log.info("The run is in %s, its weights in %s.", folder, folder / "checkpoints" / "last.ckpt")


OWN_OPTIONS = ("size", "side", "grid", "codes", "pieces", "width", "layers", "context", "stop")


def _train_own(options: argparse.Namespace) -> None:
    """A model of a person's own data; a finished one says so."""
    if options.experiment is not None or options.pictures is not None:
        raise ValueError("--data trains a model of your own data: leave the experiment's name and --pictures out.")
    if options.processes > 1:
        raise ValueError("--processes is for experiments by name: a model of your own data is trained by one.")
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = train_folder(options)
    training = OwnTraining(
        options.data,
        folder,
        10.0 if options.minutes is None else options.minutes,
        image_tokenizer=options.image_tokenizer,
        begins_from=options.begins_from,
        critic=options.critic,
        seed=options.seed,
        say=log.info,
        started=options.started,
        **{name: getattr(options, name) for name in OWN_OPTIONS},
    )
    model, before = folder / "model", _written(folder)
    for stage, run in training.stages():
        await_run(stage, run)
    if before == _written(folder):
        log.info("%s was finished already, and nothing is left to do: with more --minutes it goes on.", model)
    log.info("%s", own_summary(Chameleon.load(model).card))
    log.info("The model is in %s. Try: chameleon-lab generate --model %s 'draw ...'", model, model)


def _written(folder: Path) -> float | None:
    """When the model in a run's folder was written."""
    config = folder / "model" / "config.json"
    return config.stat().st_mtime if config.exists() else None
