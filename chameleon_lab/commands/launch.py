"""`chameleon-lab launch`, and what the processes that it starts do."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from chameleon_lab.files import require_place
from chameleon_lab.history import Alarm, event_line
from chameleon_lab.signals import exit_code
from chameleon_lab.training.alignment import ALIGNMENTS
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.experiments import EXPERIMENTS
from chameleon_lab.training.folder import shares_work
from chameleon_lab.training.image_experiments import IMAGE_EXPERIMENTS
from chameleon_lab.training.launch import Launch, cannot_start, launch
from chameleon_lab.training.run import Run
from chameleon_lab.training.trainable import Trainable

log = logging.getLogger(__name__)

BASES: dict[str, tuple[str, str, Any]] = {
    name: (f"chameleon_lab.training.{module}", f"{table}[{name!r}]", experiment)
    for module, table, experiments in (
        ("image_experiments", "IMAGE_EXPERIMENTS", IMAGE_EXPERIMENTS),
        ("experiments", "EXPERIMENTS", EXPERIMENTS),
        ("alignment", "ALIGNMENTS", ALIGNMENTS),
    )
    for name, experiment in experiments.items()
}
"""What can be launched by name: the module and the expression that say it, and what it is."""


def launch_command(options: argparse.Namespace) -> None:
    """Writes a folder to be trained by processes of its own, starts them where this machine can, and waits."""
    experiment = BASES[options.experiment][2]
    if options.minutes is not None:
        experiment = replace(experiment, budget=Budget(minutes=options.minutes))
    trainer: dict[str, Any] = {"accelerator": options.accelerator} if options.accelerator else {}
    trainer |= {"precision": options.precision} if options.precision else {}
    launched = launch(
        experiment,
        options.folder,
        processes=options.processes,
        nodes=options.nodes,
        devices=options.devices,
        strategy=options.strategy,
        trainer=trainer,
        bases=BASES,
        start=False,
    )
    folder = launched.folder
    if launched.note:
        log.info("%s", launched.note)
    log.info("%s has train.py, start.sh, %s.sbatch and requirements.txt.", folder, experiment.name)
    why = cannot_start(launched.nodes, launched.devices)
    if getattr(experiment, "data", True) is None and not launched.note:
        why = f"{experiment.name} has no data of its own: give it some in {folder / 'train.py'}"
    if options.dry_run or why:
        log.info("%sType, where it is to train: %s", f"{why}. " if why else "", launched.line)
        log.info("From a notebook, watch and steer it by its folder: RunPanel(%r)", str(folder))
        return
    _follow(launched.start())


def _follow(launched: Launch, every: float = 10.0) -> None:
    """A line now and then until the processes end; Ctrl+C orders the run to stop with a checkpoint."""
    last = time.monotonic()
    try:
        while not launched.over:
            time.sleep(0.2)
            if time.monotonic() - last > every:
                last, state = time.monotonic(), launched.run.state
                log.info(
                    "%s  %5.1f %%  %s  %.0f tokens/s",
                    state.name,
                    100 * state.progress,
                    state.status,
                    state.tokens_per_second,
                )
    except KeyboardInterrupt:
        if not launched.run.state.over:
            launched.run.act("stop")
        launched.wait(600)
        raise
    log.info("The run in %s is %s.", launched.folder, launched.wait().status)


def take_part(experiment: Trainable, folder: Path, trainer: Mapping[str, Any] = MappingProxyType({})) -> int:
    """What each of torchrun's processes does: trains its part of the run, and returns an exit code.

    The first writes the folder and takes its orders. Of the others each says in the folder's `events.jsonl` what it
    failed with, before those that wait for it fail for want of it.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

    def work() -> None:
        try:
            Run(experiment, folder, trainer=trainer).start().wait()
        except Exception as error:
            if shares_work():
                _note_failure(folder, error)
            raise

    return exit_code(work)


def _note_failure(folder: Path, error: Exception) -> None:
    rank = os.environ.get("RANK", "?")
    message = f"process {rank} on {socket.gethostname()} failed: {type(error).__name__}: {str(error)[:500]}"
    place = require_place(folder / "events.jsonl")
    with place.open("a") as file:  # one write of one line: the first process writes there, too
        file.write(event_line(Alarm(0, "CRITICAL", "process", message)))
