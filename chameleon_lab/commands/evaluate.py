"""`chameleon-lab evaluate`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from chameleon_lab.checkpoints import native
from chameleon_lab.commands.loading import load_model, settings_of
from chameleon_lab.evaluation.card import markdown
from chameleon_lab.evaluation.scenes import PROMPT_KINDS, evaluate
from chameleon_lab.storage import write_file
from chameleon_lab.training.own.card import own_summary

log = logging.getLogger(__name__)


def evaluate_command(options: argparse.Namespace) -> None:
    """Scores a model on held-out scenes: words by exact match, pictures by a checker that reads their pixels."""
    if options.n < 1:
        raise ValueError(f"-n must be 1 or more, not {options.n}.")
    changes = settings_of(options)
    if options.write and (options.kind or changes):
        raise ValueError(
            "--write takes a whole evaluation with the model's own settings: leave out --kind and the others."
        )
    lab = load_model(options)
    if "survey" in lab.card and not options.kind:
        log.info("This model knows a person's own data, and no scenes. What was measured when it was trained:")
        log.info("%s", own_summary(lab.card))
        return
    lab.settings = lab.settings.changed(**changes)
    scores: dict[str, dict[str, float]] = {}
    for measure, score in evaluate(lab, options.kind or tuple(PROMPT_KINDS), options.n, options.seed):
        log.info("%-48s %s", measure, score)
        scores[measure] = {"share": round(score.share, 4), "n": score.n}
    if options.write:
        card = lab.card | {"scores": scores, "scores_seed": options.seed}
        native.write_card(options.model, card)
        write_file(Path(options.model) / "README.md", markdown(card))
