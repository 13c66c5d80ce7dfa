"""`chameleon-lab evaluate`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints import native
from chameleon_lab.commands.loading import WEIGHT_DTYPES, load_model, settings_of
from chameleon_lab.evaluation.benchmarks import BENCHMARKS, run_benchmark
from chameleon_lab.evaluation.card import markdown
from chameleon_lab.evaluation.own_prompts import OwnOutcome, evaluate_own_prompts, read_own_prompts
from chameleon_lab.evaluation.results import Result, result_table
from chameleon_lab.evaluation.scenes import PROMPT_KINDS, evaluate, scene_results
from chameleon_lab.storage import write_file
from chameleon_lab.training.own.card import own_summary

log = logging.getLogger(__name__)


def evaluate_command(options: argparse.Namespace) -> None:
    """Scores a model on held-out scenes, or on prompts of one's own, alone or against another model."""
    if options.n < 1:
        raise ValueError(f"-n must be 1 or more, not {options.n}.")
    changes = settings_of(options)
    if options.write and (options.kind or changes or options.prompts or options.against or options.benchmark):
        raise ValueError(
            "--write takes a whole evaluation with the model's own settings: leave out --kind and the others."
        )
    if options.prompts and options.kind:
        raise ValueError("--prompts brings prompts of your own, whose checks may be exact, contains, ...: no --kind.")
    if bool(options.benchmark) != bool(options.data) or (options.benchmark and (options.prompts or options.kind)):
        raise ValueError("--benchmark takes --data, the folder of its files, and neither --prompts nor --kind.")
    if (options.checks or options.out) and not options.prompts:
        raise ValueError("--checks and --out belong to prompts of your own: name their file with --prompts.")
    if options.out and options.out.is_dir():
        raise ValueError(f"--out {options.out} is a folder: name a file for the results.")
    lab = load_model(options)
    if "survey" in lab.card and not (options.kind or options.prompts or options.benchmark):
        log.info("This model knows a person's own data, and no scenes. What was measured when it was trained:")
        log.info("%s", own_summary(lab.card))
        return
    labs = {str(options.model): lab}
    if options.against:
        name = options.against if options.against != str(options.model) else f"{options.against} again"
        labs[name] = load_named(options.against, options)
    for each in labs.values():
        each.settings = each.settings.changed(**changes)
    if options.prompts or options.against or options.benchmark:
        outcomes, out = list[OwnOutcome](), options.out
        reply_files = [out.with_name(f"{out.name}.replies-{place}") if out else None for place, _ in enumerate(labs, 1)]
        results = {
            name: _results(each, options, outcomes, path)
            for (name, each), path in zip(labs.items(), reply_files, strict=True)
        }
        log.info("%s", result_table(results))
        if out:  # last: a disk that is full is to cost no answers
            outcomes[0].write(out)
            for path in filter(None, reply_files):
                path.unlink(missing_ok=True)
        if options.benchmark:
            log.info("The paper: %s", ", ".join(f"{k} {v}" for k, v in BENCHMARKS[options.benchmark].paper.items()))
        return
    scores: dict[str, dict[str, float]] = {}
    for measure, score in evaluate(lab, options.kind or tuple(PROMPT_KINDS), options.n, options.seed):
        log.info("%-48s %s", measure, score)
        scores[measure] = {"share": round(score.share, 4), "n": score.n}
    if options.write:
        card = lab.card | {"scores": scores, "scores_seed": options.seed}
        native.write_card(options.model, card)
        write_file(Path(options.model) / "README.md", markdown(card))


def load_named(name: str, options: argparse.Namespace) -> Chameleon:
    """The other model, in the numbers that the first is asked to be in."""
    return Chameleon.load(name, dtype=options.dtype and WEIGHT_DTYPES[options.dtype])


def _results(
    lab: Chameleon, options: argparse.Namespace, outcomes: list[OwnOutcome], reply_file: Path | None
) -> list[Result]:
    if options.benchmark:
        benchmark = run_benchmark(lab, options.benchmark, options.data, limit=options.limit, seed=options.seed)
        return list(benchmark.values())
    if not options.prompts:
        return list(scene_results(lab, options.kind or tuple(PROMPT_KINDS), options.n, options.seed))
    prompts = read_own_prompts(options.prompts, options.checks or {})
    outcome = evaluate_own_prompts(
        lab, prompts, reference=options.prompts.name, seed=options.seed, reply_file=reply_file
    )
    outcomes.append(outcome)
    return list(outcome.results.values())
