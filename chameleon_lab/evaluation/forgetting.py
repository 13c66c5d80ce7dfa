"""What a fine-tuning teaches, and what the model forgets of what it could do: the tiny model is taught to be asked in
German, in several ways.

- the lesson: 200 requests for one thing, each with its picture; no word of them stood in the model's training
- *taught*: drawings asked for in German, of held-out arrangements, judged by the checker from their pixels
- *still there*: drawings asked for in English, captions and questions of `evaluation.scenes`, on held-out scenes

`python -m chameleon_lab.evaluation.forgetting OUT.jsonl --seeds 0 1 2` trains by each of `FINE_TUNINGS`, says what
differs from before beyond chance, and adds the figures to the file; `--show` prints what is there.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints.adapters import LoRA
from chameleon_lab.checkpoints.text_files import with_words
from chameleon_lab.corpora.checker import compare_scenes, read_scene
from chameleon_lab.corpora.scenes import Scene, sample_where
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.evaluation.intervals import Mean
from chameleon_lab.evaluation.results import FEWEST_DIFFERENT, Result, evaluation_card, item_words, settings_words
from chameleon_lab.evaluation.scenes import Score, scene_results
from chameleon_lab.files import read_json_lines
from chameleon_lab.signals import exit_code
from chameleon_lab.storage import write_file
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import ListedDocuments, Scenes
from chameleon_lab.training.experiments import TINY, Experiment
from chameleon_lab.training.fine_tuning import fine_tune

log = logging.getLogger(__name__)

FINE_TOKENS = 512
"""Of a step."""

GERMAN: Mapping[str, str] = MappingProxyType(
    {
        **{"circle": "kreis", "square": "quadrat", "triangle": "dreieck", "star": "stern", "heart": "herz"},
        **{"diamond": "raute", "cross": "kreuz", "ring": "reif", "small": "klein", "large": "gross"},
        **{"red": "rot", "orange": "apricot", "yellow": "gelb", "green": "gruen", "blue": "blau", "purple": "lila"},
        **{"black": "schwarz", "brown": "braun", "gray": "grau", "cyan": "tuerkis", "mint": "minze", "pink": "rosa"},
        **{"tan": "beige", "lavender": "flieder", "in the center": "mittig"},
        **{"in the top left": "oben links", "at the top": "oben", "in the top right": "oben rechts"},
        **{"on the left": "links", "on the right": "rechts"},
        **{"in the bottom left": "unten links", "at the bottom": "unten", "in the bottom right": "unten rechts"},
    }
)
"""The words of a scene of one thing: English to German, in ASCII as one types them."""

GERMAN_WORDS = tuple(sorted({word for words in GERMAN.values() for word in words.split()} | {"male", "auf"}))


def german_request(scene: Scene) -> str:
    """A scene of one thing, asked for with all that it has."""
    (thing,) = scene.things
    words = [thing.size, thing.colour, thing.shape, scene.place]
    return f"male {' '.join(GERMAN[word] for word in words)} auf {GERMAN[scene.background]}"


def german_lesson(count: int = 200, seed: int = 0) -> list[Document]:
    """Requests with their pictures, of which the pictures are learned."""
    rng = np.random.default_rng([seed, 51])
    scenes = [sample_where(rng, "trainable", 1) for _ in range(count)]
    return [
        Document(
            (
                Text(german_request(scene), learn=False),
                EndTurn(learn=False),
                Image(scene.picture()),
                EndTurn(),
            )
        )
        for scene in scenes
    ]


# The ways


@dataclass(frozen=True)
class Method:
    """A way of fine-tuning: the share of batches of what the model could do already, a factor of the rates that the
    tiny model was trained with, an adapter, and whether the German words become tokens, which alone are trained.

    `steps`: as many as take half a minute of one core, so that methods are compared by what they cost."""

    beside: float = 0.5
    rates: float = 1 / 3
    steps: int = 110
    adapter: LoRA | None = None
    words: bool = False

    def experiment(self, lab: Chameleon, lesson: Sequence[Document], steps: int, tokens: int, seed: int) -> Experiment:
        tokenizer, changes = lab.tokenizer, dict[str, Any]()
        if self.words:
            pieces = lab.tokenizer.text
            tokenizer = with_words(tokenizer, [word for word in GERMAN_WORDS if len(pieces.encode(word)) > 1])
            changes = {"frozen": ("blocks.*", "norm.*"), "frozen_rows": range(lab.vocabulary.size)}
        beside = Scenes(tokenizer, tokens) if self.beside else None
        recipe = replace(
            TINY.recipe, rate=self.rates * TINY.recipe.rate, muon_rate=self.rates * TINY.recipe.muon_rate, warm_up=10
        )
        return replace(
            TINY,
            name="forgetting",
            begins_from=lab,
            data=ListedDocuments(lesson, tokenizer, tokens, beside=beside, beside_share=self.beside),
            recipe=recipe,
            budget=Budget(steps=steps),
            adapter=self.adapter,
            monitors=(),
            rules=(),
            seed=seed,
            **changes,
        )


FINE_TUNINGS: Mapping[str, Method] = MappingProxyType(
    {
        "nothing beside": Method(0.0),
        "half beside": Method(0.5),
        "four fifths beside": Method(0.8),
        "half beside, a tenth of the rates": Method(0.5, 1 / 30),
        "half beside, LoRA": Method(0.5, steps=180, adapter=LoRA(rank=8)),
        "new words alone": Method(0.0, 10.0, steps=240, words=True),
    }
)


# What came of it


def german_results(lab: Chameleon, n: int = 100, seed: int = 2026) -> Iterator[Result]:
    """Drawings asked for in German, of held-out arrangements: everything right, and each attribute."""
    rng = np.random.default_rng([seed, 52])
    scenes = [sample_where(rng, "held_out", 1) for _ in range(n)]
    documents = [Document.of(german_request(scene), EndTurn()) for scene in scenes]
    replies = list[Document]()
    for start in range(0, n, 50):
        some = documents[start : start + 50]
        replies += lab.engine.generate(some, lab.settings, range(seed + start, seed + start + len(some)))
    verdicts = [
        compare_scenes(scene, read_scene(reply.pictures[0])) if len(reply.pictures) == 1 else {}
        for scene, reply in zip(scenes, replies, strict=True)
    ]
    for measure in ("all", "colours", "shapes", "background"):
        card = evaluation_card(
            f"asked in German: {'everything right' if measure == 'all' else measure}",
            f"pictures by corpora.checker; {settings_words(lab.settings)}",
            "held-out scenes of one thing, in German",
            [item_words(document) for document in documents],
            n=n,
            lab=lab,
            seed=seed,
        )
        yield Result.of([each.get(measure, False) for each in verdicts], card)


EARLIER = ("one thing, everything right", "captions exact", "questions right")
"""What is looked at of what the model could do before, by the names of `evaluation.scenes`."""


def forgetting_results(lab: Chameleon, n: int = 100, seed: int = 2026) -> list[Result]:
    """What was taught and what is still there, guidance off, so that it is the model that is judged."""
    lab.settings = lab.settings.changed(guidance=1.0)
    earlier = scene_results(lab, ("one thing", "captions", "questions"), n, seed)
    return [*german_results(lab, n, seed), *(each for each in earlier if each.value.card.metric in EARLIER)]


def forgetting_outcome(
    method: Method,
    lab: Chameleon,
    *,
    tokens: int = FINE_TOKENS,
    documents: int = 200,
    seed: int = 0,
    folder: Path | None = None,
) -> tuple[Chameleon, dict[str, Any]]:
    """The model after a lesson, and what it cost: seconds of training, and held-out losses before and after. `folder`
    is where the run goes; one that was stopped there goes on."""
    experiment = method.experiment(lab, german_lesson(documents, seed), method.steps, tokens, seed)
    tokenizer = experiment.open().tokenizer()
    assert tokenizer is not None
    run = experiment.run(folder)
    run.wait()
    done = fine_tune(experiment, run.folder, earlier=Scenes(tokenizer, held_out=64))
    figures: dict[str, Any] = {
        f"{name} loss": [round(losses["loss"], 3), round(done.after[name]["loss"], 3)]
        for name, losses in done.before.items()
    }
    figures |= {"seconds": round(run.history.records[-1].seconds), "steps": method.steps}
    return Chameleon(done.model.eval(), tokenizer, lab.settings, lab.card), figures


def read_fine_tunings(path: Path | str) -> list[dict[str, Any]]:
    """Rows of figures: method ("before": untrained), seed, measure, right of n; before, the `scores` of the prompts; of
    a method its seconds and losses, and on how many of the n it is right and before was not (`gained`), or the reverse.

    Raises ValueError for a row that lacks one of the first.
    """
    rows = read_json_lines(path)
    for number, row in enumerate(rows, 1):
        kinds = {"method": str, "seed": int, "measure": str, "right": int, "n": int}
        if not isinstance(row, dict) or not all(type(row.get(name)) is kind for name, kind in kinds.items()):
            raise ValueError(f"{path}, line {number}, is no outcome: it lacks method, seed, measure, right or n.")
    return rows


def change_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """How one measure of a method differs from before, by a paired bootstrap over the prompts of all seeds: "more" or
    "less" where that is beyond chance, otherwise nothing."""
    if not all({"gained", "lost"} <= row.keys() for row in rows):
        return ""
    gained, lost, n = (sum(row[key] for row in rows) for key in ("gained", "lost", "n"))
    gap = Mean.of([1.0] * gained + [-1.0] * lost + [0.0] * (n - gained - lost))
    if gained + lost < FEWEST_DIFFERENT or not gap.excludes(0):
        return ""
    return "more" if gap.value > 0 else "less"


def outcome_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row a method, a column a measure where all must be right, in Markdown: 95 % intervals over all prompts of all
    seeds, each seed's own share, and whether it is more or less than before beyond chance; steps and seconds."""
    measures = [
        name for name in ("asked in German: everything right", *EARLIER) if name in {r["measure"] for r in rows}
    ]
    lines = [f"| method | {' | '.join(measures)} | steps, seconds |", "|---" * (len(measures) + 2) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        cells = [method]
        for measure in measures:
            chosen = sorted((row for row in mine if row["measure"] == measure), key=lambda row: row["seed"])
            right, n = (sum(row[key] for row in chosen) for key in ("right", "n"))
            parts = [str(Score(right / n, n)).strip()] if n else []
            if len(chosen) > 1:
                shares = [f"{100 * row['right'] / row['n']:.0f}" for row in chosen]
                parts.append(f"seeds {', '.join(shares)}")
            cells.append("; ".join(filter(None, [*parts, change_words(chosen)])))
        seconds = [row["seconds"] for row in mine if "seconds" in row]
        steps = " and ".join(map(str, sorted({row["steps"] for row in mine if "steps" in row})))
        cells.append(f"{steps}, {np.mean(seconds):.0f}" if seconds else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def forgetting_command(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="JSON Lines to add outcomes to; those that are there are not made again")
    parser.add_argument("--method", action="append", choices=FINE_TUNINGS, help="only this; repeatable (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of lessons, trainings and prompts")
    parser.add_argument("--runs", type=Path, help="a folder to keep the runs in; one that was stopped there goes on")
    parser.add_argument("--steps", type=int, help="of each training (default: what takes half a minute of one core)")
    parser.add_argument("-n", type=int, default=100, help="prompts of each measure of a new seed (default: 100)")
    parser.add_argument("--show", action="store_true", help="print the table of what is there, and train nothing")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = read_fine_tunings(options.out) if options.out.exists() else []
    for seed in options.seeds if not options.show else ():
        rows = [row for row in rows if row["method"] != "before" or "scores" in row]  # some files have none
        done = {row["method"] for row in rows if row["seed"] == seed}
        missing = [name for name in options.method or FINE_TUNINGS if name not in done]
        if missing and "before" not in done:
            before = forgetting_results(Chameleon.load("tiny", device="cpu"), options.n, 2026 + seed)
            rows += outcome_rows("before", seed, before)
            write_file(options.out, "".join(json.dumps(row) + "\n" for row in rows))
        for name in missing:
            folder = options.runs / f"{name}-{seed}".replace(" ", "-") if options.runs else None
            method = replace(FINE_TUNINGS[name], steps=options.steps or FINE_TUNINGS[name].steps)
            lab, figures = forgetting_outcome(method, Chameleon.load("tiny", device="cpu"), seed=seed, folder=folder)
            scores = {row["measure"]: row["scores"] for row in rows if (row["method"], row["seed"]) == ("before", seed)}
            after = forgetting_results(lab, len(next(iter(scores.values()))), 2026 + seed)
            rows += outcome_rows(name, seed, after, scores, figures)
            write_file(options.out, "".join(json.dumps(row) + "\n" for row in rows))
            log.info("%s, seed %d: %s", name, seed, figures)
    log.info("%s", outcome_table(rows))


def outcome_rows(
    method: str,
    seed: int,
    results: Sequence[Result],
    before: Mapping[str, str] = MappingProxyType({}),
    figures: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[dict[str, Any]]:
    """The rows of one model; with `before`, by measure a 0 or 1 for each of the same prompts, what it gained and lost,
    and otherwise these `scores`."""
    for result in results:
        measure, scores = result.value.card.metric, "".join(str(int(score)) for score in result.scores)
        row = {"method": method, "seed": seed, "measure": measure, "right": scores.count("1"), "n": len(scores)}
        if before:
            pairs = list(zip(scores, before[measure], strict=True))
            yield row | {"gained": pairs.count(("1", "0")), "lost": pairs.count(("0", "1")), **figures}
        else:
            yield row | {"scores": scores, **figures}


if __name__ == "__main__":
    raise SystemExit(exit_code(forgetting_command))
