"""`chameleon-lab compare`."""

from __future__ import annotations

import argparse
import logging

from chameleon_lab.evaluation.additions import read_additions
from chameleon_lab.evaluation.comparison import Contender, compare_quantizers

log = logging.getLogger(__name__)


def compare_command(options: argparse.Namespace) -> None:
    """Trains small image tokenizers that differ in their quantizer alone, and measures each; goes on where it ended."""
    if min(options.steps, options.width) < 1:
        raise ValueError(f"--steps and --width must be 1 or more, not {options.steps} and {options.width}.")
    own: dict[str, Contender] = {}
    if options.own is not None:
        log.info("%s is executed, since you named it.", options.own)
        additions = read_additions(options.own)
        if not additions.quantizers:
            raise ValueError(
                f"{options.own} has no quantizer: a class of nn.Module with codes and latents, a partial of "
                "one, or a function that says `-> Quantizer`."
            )
        own = {name: Contender(build, options.width) for name, build in additions.quantizers.items()}
        log.info("It brings %s.", ", ".join(own))
    for outcome in compare_quantizers(options.folder, steps=options.steps, seeds=options.seeds, own=own):
        figures = ", ".join(value.summary for value in outcome.values.values())
        log.info("%-22s seed %d: %s", outcome.name, outcome.seed, figures)
    log.info("The outcomes are in %s.", options.folder / "outcomes.jsonl")
