"""Scores of instructions: each task by what can be measured of its answers, beside what the image tokenizer allows.

- scenes of the held-out side; words by exact match; drawn scenes by `corpora.checker` from their pixels (everything
  must be right); segmentations and silhouettes by intersection over union, outlines by the boundary F-measure, read
  alike from the answer and from the right picture
- the *bound* of a measure is what the right answer has after a round trip through the image tokenizer: no model that
  draws with these codes can be expected to have more. The *ratio* is the score's share of it
- intervals at 95 %: a share's is Wilson's, and its ratio's is that over the bound; of means both are a bootstrap of
  examples, the score and the bound of an example drawn together

`python -m chameleon_lab.evaluation.instructions MODEL` prints them; `--write` puts them into the model's card and page.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from chameleon_lab.chameleon import Chameleon, find
from chameleon_lab.checkpoints import native
from chameleon_lab.corpora.checker import compare_scenes, read_scene
from chameleon_lab.corpora.instructions import (
    BRIEF,
    CUTOUT_GROUND,
    EDGES,
    EDIT,
    GREY,
    OBJECTS,
    SCENE_TASKS,
    SEGMENTATION,
    SEGMENTS,
    Example,
    InstructionPair,
    Templates,
    cutouts,
    scene_segmentation,
)
from chameleon_lab.corpora.scenes import BACKGROUNDS
from chameleon_lab.corpora.structure import (
    CUTOUT_PALETTE,
    edge_agreement,
    mean_overlap,
    outlines,
    read_segmentation,
    silhouette,
)
from chameleon_lab.documents import Document, Image
from chameleon_lab.evaluation.intervals import Mean, wilson_interval
from chameleon_lab.signals import exit_code
from chameleon_lab.storage import write_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskScore:
    """A measure of a task's answers: the score, its bound by the image tokenizer's round trip, and the ratio."""

    measure: str
    score: Mean
    bound: Mean
    ratio: Mean

    def __str__(self) -> str:
        ratio = f"{self.ratio.value:.2f} ({self.ratio.low:.2f} to {self.ratio.high:.2f})"
        return f"{self.score}   bound {self.bound.value:.2f}   ratio {ratio}"


def task_score(measure: str, values: Sequence[float], bounds: Sequence[float]) -> TaskScore:
    """From the values of all examples, and those of their right answers after the round trip.

    Raises ValueError where nothing survives the round trip, so that there is no ratio.
    """
    values_N, bounds_N = np.asarray(values, np.float64), np.asarray(bounds, np.float64)
    middle = float(bounds_N.mean())
    if not middle > 0:
        raise ValueError(f"The image tokenizer loses all of {measure!r}: a score has no bound to be compared with.")
    if np.isin(values_N, (0, 1)).all():
        share, n = float(values_N.mean()), len(values_N)
        score = Mean(share, *wilson_interval(share, n), n)
        ratio = Mean(score.value / middle, score.low / middle, score.high / middle, n)
        return TaskScore(measure, score, Mean(middle, *wilson_interval(middle, n), n), ratio)
    places = np.random.default_rng(0).integers(0, len(values_N), (2000, len(values_N)))
    low, high = np.quantile(values_N[places].mean(1) / bounds_N[places].mean(1), (0.025, 0.975))
    ratio = Mean(float(values_N.mean()) / middle, float(low), float(high), len(values_N))
    return TaskScore(measure, Mean.of(values_N), Mean.of(bounds_N), ratio)


PictureMeasure = Callable[[Example, PIL.Image.Image], float]
"""How right the picture of an answer is, 0 to 1."""


def _everything_right(example: Example, picture: PIL.Image.Image) -> float:
    return float(compare_scenes(example.scene, read_scene(picture))["all"])


def _covered(picture: PIL.Image.Image) -> np.ndarray:
    """1 where a picture is not its ground, which the checker names."""
    return silhouette(picture, BACKGROUNDS[read_scene(picture).background]).astype(np.uint8)


def _silhouettes_agree(example: Example, picture: PIL.Image.Image) -> float:
    return mean_overlap(_covered(picture), _covered(example.scene.picture()))


def _edges_agree(example: Example, picture: PIL.Image.Image) -> float:
    return edge_agreement(outlines(_covered(picture)), outlines(_covered(example.scene.picture())))


def _segmentation_agrees(example: Example, picture: PIL.Image.Image) -> float:
    return mean_overlap(read_segmentation(picture), read_segmentation(scene_segmentation(example.scene)))


EVERYTHING, SILHOUETTES = "everything right", "silhouettes, IoU"
PICTURE_MEASURES: Mapping[str, Mapping[str, PictureMeasure]] = {
    EDIT: {EVERYTHING: _everything_right},
    SEGMENTS: {EVERYTHING: _everything_right, SILHOUETTES: _silhouettes_agree},
    EDGES: {EVERYTHING: _everything_right, "outlines, F": _edges_agree},
    GREY: {EVERYTHING: _everything_right, SILHOUETTES: _silhouettes_agree},
    SEGMENTATION: {"classes, IoU": _segmentation_agrees},
    OBJECTS: {EVERYTHING: _everything_right, SILHOUETTES: _silhouettes_agree},
}
"""What is measured of the pictures of each task; words are compared with the right ones."""

EXACT = "exact"


def instruction_examples(task: str, n: int, seed: int = 2026, where: str = "held_out") -> list[Example]:
    """The first `n` examples of a task, of scenes on a side of the split."""
    if task not in SCENE_TASKS:
        raise ValueError(f"No task is called {task!r}; the tasks are {', '.join(SCENE_TASKS)}.")
    rng = np.random.default_rng([seed, 34, list(SCENE_TASKS).index(task)])
    return [SCENE_TASKS[task](rng, where) for _ in range(n)]


def judge_answer(example: Example, answer: Document) -> dict[str, float]:
    """How right an answer is: measure to 0..1. One that is not of the task's kind is not at all."""
    pair = example.pair
    if isinstance(pair.answer, str):
        return {EXACT: float(answer.text == pair.answer and not answer.pictures)}
    measures = PICTURE_MEASURES[pair.task]
    if len(answer.pictures) != 1:
        return dict.fromkeys(measures, 0.0)
    return {name: measure(example, answer.pictures[0]) for name, measure in measures.items()}


def round_trip(lab: Chameleon, example: Example) -> Document:
    """The right answer as the image tokenizer shows it."""
    answer = example.pair.answer
    if not isinstance(answer, Image):
        return Document.of(answer or "")
    image = lab.tokenizer.image
    return Document.of(image.decode(image.encode(answer.picture)))


def evaluate_instructions(
    lab: Chameleon,
    tasks: Sequence[str] = tuple(SCENE_TASKS),
    n: int = 100,
    seed: int = 2026,
    batch: int = 50,
    templates: Templates = BRIEF,
) -> Iterator[TaskScore]:
    """The scores of `n` held-out examples of each task, answered with the lab's settings."""
    for task in tasks:
        examples = instruction_examples(task, n, seed)
        values, bounds = dict[str, list[float]](), dict[str, list[float]]()
        for start in range(0, n, batch):
            some = examples[start : start + batch]
            requests = [templates.request(each.pair) for each in some]
            answers = lab.engine.generate(requests, lab.settings, [seed + start + at for at in range(len(some))])
            for example, answer in zip(some, answers, strict=True):
                for name, value in judge_answer(example, answer).items():
                    values.setdefault(name, []).append(value)
                for name, value in judge_answer(example, round_trip(lab, example)).items():
                    bounds.setdefault(name, []).append(value)
        yield from (task_score(f"{task}: {name}", values[name], bounds[name]) for name in values)


def evaluate_cutouts(
    lab: Chameleon, folder: Path | str, n: int = 100, seed: int = 2026, batch: int = 50, templates: Templates = BRIEF
) -> Iterator[TaskScore]:
    """The scores of tasks of pictures with alpha: of `n` pictures of a folder, each in every task that draws.

    The silhouette of an answer is read from its pixels, and so is the right one: in a segmentation by its two colours,
    in a picture as what is not its ground. The bound is the right answer's after the round trip, as elsewhere. Raises
    ValueError for a folder without such pictures.
    """
    by_task = dict[str, list[InstructionPair]]()
    for pair in cutouts(folder):
        if isinstance(pair, InstructionPair) and isinstance(pair.answer, Image):
            by_task.setdefault(pair.task, []).append(pair)
    if not by_task:
        raise ValueError(f"{folder} holds no picture with alpha, of which a silhouette could be read.")
    for task, pairs in by_task.items():
        places = np.random.default_rng([seed, 36]).permutation(len(pairs))[:n]
        some = [pairs[place] for place in places]
        values, bounds = list[float](), list[float]()
        for start in range(0, len(some), batch):
            part = some[start : start + batch]
            seeds = [seed + start + at for at in range(len(part))]
            answers = lab.engine.generate([templates.request(each) for each in part], lab.settings, seeds)
            for pair, answer in zip(part, answers, strict=True):
                assert isinstance(pair.answer, Image)
                right = lab.tokenizer.image.prepare(pair.answer.picture, lab.tokenizer.preparation)
                labels_HW = _cutout_labels(task, right)
                drawn = [each for each in answer.pictures if each.size == right.size]
                alone = len(answer.pictures) == len(drawn) == 1
                values.append(mean_overlap(_cutout_labels(task, drawn[0]), labels_HW) if alone else 0.0)
                again = lab.tokenizer.image.decode(lab.tokenizer.image.encode(right))
                bounds.append(mean_overlap(_cutout_labels(task, again), labels_HW))
        yield task_score(f"{task}, alpha: silhouettes, IoU", values, bounds)


def _cutout_labels(task: str, picture: PIL.Image.Image) -> np.ndarray:
    if task == SEGMENTATION:
        return read_segmentation(picture, CUTOUT_PALETTE)
    return silhouette(picture, CUTOUT_GROUND).astype(np.uint8)


def instructions_page(card: Mapping[str, Any]) -> str:
    """The model's card as a page to read."""
    facts = {name: card.get(name, 0) for name in ("steps", "tokens", "minutes", "machine")}
    lines = [
        "# Model card: instructions",
        "",
        INTRO.format(notes="\n- ".join(card.get("notes", [])), **facts),
        "",
        "| task and measure | score | bound | score / bound |",
        "|---|---|---|---|",
    ]
    for measure, row in card["instructions"].items():
        score, bound, ratio = (
            Mean(row[name][0], row[name][1], row[name][2], row["n"]) for name in ("score", "bound", "ratio")
        )
        lines.append(f"| {measure} | {score} | {bound.within('.2f')} | {ratio.within('.2f')} |")
    return "\n".join([*lines, ""])


def plain_score(score: TaskScore) -> dict[str, Any]:
    """A score as it stands in a model's card: [value, low, high] of each, and the number of examples."""
    parts = {"score": score.score, "bound": score.bound, "ratio": score.ratio}
    return {name: [round(each, 4) for each in mean[:3]] for name, mean in parts.items()} | {"n": score.score.n}


INTRO = """The tiny model, trained on for eight tasks at once, each in a template of `corpora/instructions.py`:
`Chameleon.load("instructions")`. It keeps the tiny model's tokenizers, and knows its scenes only. Apache-2.0, like the
lab.

- commands: `python -m chameleon_lab.training.instructions FOLDER`, then
  `python -m chameleon_lab.evaluation.instructions FOLDER/model --write`
- {steps:,} steps, {tokens:,} tokens, {minutes} minutes on {machine}
- {notes}

Held-out scenes; drawn scenes by `corpora/checker.py` from their pixels, words by exact match; 95 % intervals. The bound
is what the right answer has after a round trip through the image tokenizer. With maps and objects, things stand where
no scene of the tiny model's training has them."""


def evaluate_instructions_command(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or name of a model")
    parser.add_argument("--tasks", nargs="+", choices=SCENE_TASKS, default=tuple(SCENE_TASKS), help="(default: all)")
    parser.add_argument("-n", type=int, default=100, help="examples of each task (default: 100)")
    parser.add_argument("--cutouts", type=Path, metavar="FOLDER", help="of pictures with alpha, instead of scenes")
    parser.add_argument("--guidance", type=float, help="how strongly pictures follow the words (default: the model's)")
    parser.add_argument("--write", action="store_true", help="put the scores into the model's card and page")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    lab = Chameleon.load(options.model)
    lab.settings = lab.settings.changed(guidance=options.guidance)
    scores = evaluate_instructions(lab, options.tasks, options.n)
    if options.cutouts is not None:
        scores = evaluate_cutouts(lab, options.cutouts, options.n)
    for score in scores:
        log.info("%-44s %s", score.measure, score)
        if options.write:  # at once: to measure all takes minutes
            folder = find(options.model)
            card = native.read_model_card(folder)
            measured = card.get("instructions", {}) | {score.measure: plain_score(score)}
            card = {**card, "instructions": measured}
            native.write_card(folder, card)
            write_file(folder / "README.md", instructions_page(card))


if __name__ == "__main__":
    raise SystemExit(exit_code(evaluate_instructions_command))
