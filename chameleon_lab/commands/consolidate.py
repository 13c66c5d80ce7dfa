"""`chameleon-lab consolidate`."""

from __future__ import annotations

import argparse
import logging

from chameleon_lab.commands.loading import WEIGHT_DTYPES
from chameleon_lab.evaluation.additions import module_of_file
from chameleon_lab.training.alignment import ALIGNMENTS
from chameleon_lab.training.consolidation import consolidate
from chameleon_lab.training.experiments import EXPERIMENTS, Experiment

log = logging.getLogger(__name__)


def consolidate_command(options: argparse.Namespace) -> None:
    """Makes a model of a run's checkpoint, in any format, a tensor at a time."""
    if (options.own is None) == (options.experiment is None):
        raise ValueError("Say what was trained: --experiment NAME, or --from FILE.py, such as the folder's train.py.")
    if options.own is None:
        named = {**EXPERIMENTS, **ALIGNMENTS}
        if options.experiment not in named:
            raise ValueError(f"No transformer is called {options.experiment!r}; there are {', '.join(named)}.")
        experiment = named[options.experiment]
    else:
        experiment = vars(module_of_file(options.own)).get("experiment")
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{options.own} has no Experiment under the name `experiment`.")
    target = consolidate(
        experiment,
        options.run,
        options.target,
        options.format,
        dtype=options.dtype and WEIGHT_DTYPES[options.dtype],
        shards=options.shards,
        pictures=not options.without_pictures,
    )
    log.info("%s is %s.", target, options.format)
