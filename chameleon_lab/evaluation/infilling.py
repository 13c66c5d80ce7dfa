"""Scores of infilling on held-out scenes: what is hidden is filled by a model, and judged against ground truth.

- a thing, named by the caption: the checker reads the whole filled picture, and all of it must be right
- a thing put on bare ground, or in the place of another one, named by the caption: the same. Codes beside a hole know
  of what was there, and here they know of something else
- a word of the caption, beside the picture: the caption must come out exactly
- a thing without a caption: the checker must read one to three things, each with a sure shape; that there are as many
  as before is counted apart, since bare ground is a filling, too

`python -m chameleon_lab.evaluation.infilling MODEL` prints them; `--write` puts them into the model's card.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from chameleon_lab.chameleon import Chameleon, find
from chameleon_lab.checkpoints import native
from chameleon_lab.corpora.checker import SceneReading, compare_scenes, read_scene
from chameleon_lab.corpora.holes import cells_of_thing, telling_words, with_another_thing, without_thing
from chameleon_lab.corpora.scenes import Scene, sample_where
from chameleon_lab.documents import Blank, Document, Image
from chameleon_lab.evaluation.results import Result, evaluation_card, item_words, settings_words
from chameleon_lab.evaluation.scenes import Score
from chameleon_lab.signals import exit_code

log = logging.getLogger(__name__)

SURE_OVERLAP = 0.8
"""Of a thing's coverage with that of the shape it is read as, from which on it is well-formed: 99 % of things that went
through the tiny image tokenizer and back have it (tests/test_infill.py)."""

WORD_TOKENS = 4
"""Tokens that a word of a caption may have."""


@dataclass(frozen=True)
class HoleTask:
    """A document with something hidden, and what is right about a filled one: measure to verdict."""

    document: Document
    verdicts: Callable[[Document], dict[str, bool]]


def well_formed(reading: SceneReading) -> bool:
    """Whether a picture shows one to three things, each surely of one shape."""
    return 1 <= len(reading.things) <= 3 and all(thing.overlap >= SURE_OVERLAP for thing in reading.things)


def _masked(scene: Scene, rng: np.random.Generator, grid: tuple[int, int]) -> Image:
    thing = scene.things[int(rng.integers(len(scene.things)))]
    return Image(scene.picture(), mask=cells_of_thing(thing, grid))


def _changed_scene(bare: bool, measure: str) -> Callable[[Scene, np.random.Generator, tuple[int, int]], HoleTask]:
    """A picture of something else, with a caption of what is to be there."""

    def task(scene: Scene, rng: np.random.Generator, grid: tuple[int, int]) -> HoleTask:
        place = int(rng.integers(len(scene.things)))
        before, hidden_RC = without_thing(scene, place), cells_of_thing(scene.things[place], grid)
        if not bare:
            before = with_another_thing(scene, place, rng)
            hidden_RC = hidden_RC | cells_of_thing(before.things[place], grid)

        def verdicts(filled: Document) -> dict[str, bool]:
            return {measure: compare_scenes(scene, read_scene(filled.pictures[0]))["all"]}

        return HoleTask(Document.of(scene.caption(), Image(before.picture(), mask=hidden_RC)), verdicts)

    return task


def _named_thing(scene: Scene, rng: np.random.Generator, grid: tuple[int, int]) -> HoleTask:
    def verdicts(filled: Document) -> dict[str, bool]:
        return {NAMED: compare_scenes(scene, read_scene(filled.pictures[0]))["all"]}

    return HoleTask(Document.of(scene.caption(), _masked(scene, rng, grid)), verdicts)


def _unnamed_thing(scene: Scene, rng: np.random.Generator, grid: tuple[int, int]) -> HoleTask:
    def verdicts(filled: Document) -> dict[str, bool]:
        reading = read_scene(filled.pictures[0])
        formed = well_formed(reading)
        return {UNNAMED: formed, AS_MANY: formed and len(reading.things) == len(scene.things)}

    return HoleTask(Document.of(_masked(scene, rng, grid)), verdicts)


def _word(scene: Scene, rng: np.random.Generator, grid: tuple[int, int]) -> HoleTask:
    words = scene.caption().split(" ")
    place = telling_words(words)[int(rng.integers(len(telling_words(words))))]
    before, after = " ".join(words[:place]), " ".join(words[place + 1 :])
    document = Document.of(Image(scene.picture()), f"{before} ", Blank(WORD_TOKENS), f" {after}")
    return HoleTask(document, lambda filled: {WORD: filled.text == scene.caption()})


NAMED, WORD = "a hidden thing, named by the caption", "a hidden word of the caption"
UNNAMED, AS_MANY = "a hidden thing without a caption, well-formed", "... and as many things as before"
PUT, REPLACED = "a thing put on bare ground, named", "a thing in the place of another, named"
HOLE_TASKS: dict[str, Callable[[Scene, np.random.Generator, tuple[int, int]], HoleTask]] = {
    "named": _named_thing,
    "word": _word,
    "unnamed": _unnamed_thing,
    "put": _changed_scene(True, PUT),
    "replaced": _changed_scene(False, REPLACED),
}


def hole_tasks(kind: str, n: int, seed: int, grid: tuple[int, int], where: str = "held_out") -> list[HoleTask]:
    """The first `n` tasks of a kind, on a side of the split."""
    rng = np.random.default_rng([seed, 18, list(HOLE_TASKS).index(kind)])
    return [HOLE_TASKS[kind](sample_where(rng, where), rng, grid) for _ in range(n)]


def evaluate_infilling(
    lab: Chameleon, kinds: Sequence[str] = tuple(HOLE_TASKS), n: int = 200, seed: int = 2026, batch: int = 50
) -> Iterator[tuple[str, Score]]:
    """(measure, score) pairs: `n` of each of `HOLE_TASKS`, filled with the lab's settings."""
    for result in infilling_results(lab, kinds, n, seed, batch):
        yield result.value.card.metric, Score.of(result)


def infilling_results(
    lab: Chameleon, kinds: Sequence[str] = tuple(HOLE_TASKS), n: int = 200, seed: int = 2026, batch: int = 50
) -> Iterator[Result]:
    """What `evaluate_infilling` gives, each with its protocol and its tasks' verdicts."""
    for kind in kinds:
        tasks, verdicts = hole_tasks(kind, n, seed, lab.tokenizer.grid), dict[str, list[bool]]()
        for start in range(0, n, batch):
            some = tasks[start : start + batch]
            seeds = [seed + start + place for place in range(len(some))]
            documents = lab.engine.infill([task.document for task in some], lab.settings, seeds)
            for task, document in zip(some, documents, strict=True):
                for measure, right in task.verdicts(document).items():
                    verdicts.setdefault(measure, []).append(right)
        items = [f"{item_words(task.document)}\n{words_behind_blanks(task.document)}" for task in tasks]
        for measure, rights in verdicts.items():
            card = evaluation_card(
                measure,
                f"words by exact match, pictures by corpora.checker; {settings_words(lab.settings)}",
                f"held-out scenes with something hidden, {kind}",
                items,
                n=len(rights),
                lab=lab,
                pictures=True,
                seed=seed,
            )
            yield Result.of(rights, card)


def words_behind_blanks(document: Document) -> str:
    """What of a document is hidden: cells of its pictures by number."""
    masks = [part.mask for part in document if isinstance(part, Image) and part.mask is not None]
    hidden = [np.flatnonzero(mask) if isinstance(mask, np.ndarray) else sorted(mask) for mask in masks]
    return "\n".join(" ".join(map(str, cells)) for cells in hidden)


def evaluate_infilling_command(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or name of a model")
    parser.add_argument("--kinds", nargs="+", choices=HOLE_TASKS, default=tuple(HOLE_TASKS), help="(default: all)")
    parser.add_argument("-n", type=int, default=200, help="tasks of each kind (default: 200)")
    parser.add_argument("--guidance", type=float, help="how strongly pictures follow the words (default: the model's)")
    parser.add_argument("--write", action="store_true", help="put the scores into the model's card")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    lab = Chameleon.load(options.model)
    lab.settings = lab.settings.changed(guidance=options.guidance)
    for kind, score in evaluate_infilling(lab, options.kinds, options.n):
        log.info("%-48s %s", kind, score)
        if options.write:  # at once: to measure all takes minutes
            folder = find(options.model)
            card = native.read_model_card(folder)
            measured = card.get("infilling", {}) | {kind: [score.share, score.n]}
            native.write_card(folder, {**card, "infilling": measured})


if __name__ == "__main__":
    raise SystemExit(exit_code(evaluate_infilling_command))
