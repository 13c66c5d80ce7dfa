"""`chameleon-lab stability`."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace

from chameleon_lab.evaluation import stability
from chameleon_lab.evaluation.additions import Additions, read_additions
from chameleon_lab.storage import write_file

log = logging.getLogger(__name__)


def stability_command(options: argparse.Namespace) -> None:
    """Trains the stability presets over seeds, each run kept, and tells how they end and how early alarms sound."""
    additions = Additions()
    if options.own is not None:
        log.info("%s is executed, since you named it.", options.own)
        additions = read_additions(options.own)
        log.info("It brings %s.", additions)
        if not replace(additions, quantizers={}):
            raise ValueError(f"{options.own} has quantizers alone: `chameleon-lab compare --from` takes these.")
    ended: list[stability.PresetOutcome] = []
    names = options.preset or stability.NAMES
    for outcome in stability.outcomes(options.folder, names, options.seeds, additions):
        ended.append(outcome)
        log.info(
            "%-24s %-16s seed %d: held-out loss %.3f, largest attention logit %.4g",
            *(f"{outcome.setting} on {outcome.corpus}" if outcome.corpus else outcome.setting, outcome.variation),
            *(outcome.seed, outcome.held_out_loss, outcome.max_attention_logit),
        )
        write_file(options.folder / "outcomes.jsonl", "".join(each.to_json() + "\n" for each in ended))
    rules = (*stability.COMPARED, *additions.rules)
    write_file(options.folder / "outcomes.md", stability.preset_tables(ended, rules))
    log.info("The outcomes are in %s.", options.folder / "outcomes.md")
