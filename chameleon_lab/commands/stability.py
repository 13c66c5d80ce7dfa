"""`chameleon-lab stability`."""

from __future__ import annotations

import argparse
import logging

from chameleon_lab.evaluation import stability
from chameleon_lab.storage import write_file

log = logging.getLogger(__name__)


def stability_command(options: argparse.Namespace) -> None:
    """Trains the stability presets over seeds, each run kept, and tells how they end and how early alarms sound."""
    if options.seeds < 1:
        raise ValueError(f"--seeds must be 1 or more, not {options.seeds}.")
    ended: list[stability.PresetOutcome] = []
    for outcome in stability.outcomes(options.folder, options.preset or stability.NAMES, range(options.seeds)):
        ended.append(outcome)
        log.info(
            "%-24s %-16s seed %d: held-out loss %.3f, largest attention logit %.4g",
            *(outcome.setting, outcome.variation, outcome.seed),
            *(outcome.held_out_loss, outcome.max_attention_logit),
        )
        write_file(options.folder / "outcomes.jsonl", "".join(each.to_json() + "\n" for each in ended))
    write_file(options.folder / "outcomes.md", stability.preset_tables(ended))
    log.info("The outcomes are in %s.", options.folder / "outcomes.md")
