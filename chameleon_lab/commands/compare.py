"""`chameleon-lab compare`."""

from __future__ import annotations

import argparse
import logging

from chameleon_lab.evaluation.comparison import compare_quantizers

log = logging.getLogger(__name__)


def compare_command(options: argparse.Namespace) -> None:
    """Trains small image tokenizers that differ in their quantizer alone, and measures each; goes on where it ended."""
    if min(options.steps, options.seeds) < 1:
        raise ValueError(f"--steps and --seeds must be 1 or more, not {options.steps} and {options.seeds}.")
    for outcome in compare_quantizers(options.folder, steps=options.steps, seeds=range(options.seeds)):
        figures = ", ".join(value.summary for value in outcome.values.values())
        log.info("%-22s seed %d: %s", outcome.name, outcome.seed, figures)
    log.info("The outcomes are in %s.", options.folder / "outcomes.jsonl")
