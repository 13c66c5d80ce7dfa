"""What reward taught, and at what price: a rewarded model on what was rewarded, on what was not, and on what it could.

Drawings are judged twice: by the checker, which is also the reward, and by `NearestScene`, which is not and works
otherwise: it knows all scenes of one thing as they are drawn, and names the one whose pixels are nearest. What pleases
the checker alone, as a model that has found its weakness would, is told by their disagreement, and by how far a right
drawing is from the scene as it should look.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.checker import compare_scenes, read_scene
from chameleon_lab.corpora.requests import requested_scene
from chameleon_lab.corpora.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Scene, arrange
from chameleon_lab.documents import Document
from chameleon_lab.evaluation.scenes import evaluate, prompts
from chameleon_lab.files import read_json_lines, read_table
from chameleon_lab.generation.grammar import MODALITY_SWITCHES
from chameleon_lab.signals import exit_code
from chameleon_lab.storage import write_file
from chameleon_lab.training.folder import RunFolder
from chameleon_lab.training.rewards import REWARDED_PAIRS, UNREWARDED_PAIRS, PairRequests, RelationRequests

log = logging.getLogger(__name__)

THUMB = 32
"""Side in pixels at which pictures are compared."""


class NearestScene:
    """Names the scene of one thing whose drawing a picture's pixels are nearest to, among all 6,912."""

    @cached_property
    def scenes(self) -> list[Scene]:
        return [
            arrange([(shape, colour, size)], "single", background, place)
            for shape, colour, size, background, place in product(SHAPES, COLOURS, SIZES, BACKGROUNDS, PLACES)
        ]

    @cached_property
    def _pixels_SX(self) -> np.ndarray:
        return np.stack([thumbnail(scene.picture()) for scene in self.scenes])

    def names(self, pictures: Sequence[PIL.Image.Image]) -> list[Scene]:
        pixels_BX = np.stack([thumbnail(picture) for picture in pictures])
        squares_S = (self._pixels_SX**2).sum(1)
        nearest_B = (squares_S - 2 * pixels_BX @ self._pixels_SX.T).argmin(1)
        return [self.scenes[place] for place in nearest_B]


def thumbnail(picture: PIL.Image.Image) -> np.ndarray:
    """A picture's pixels at `THUMB` a side, 0 to 1, as one row of float32."""
    small = picture.convert("RGB").resize((THUMB, THUMB), PIL.Image.Resampling.BOX)
    return np.asarray(small, np.float32).ravel() / 255


def likeness(picture: PIL.Image.Image, scene: Scene) -> float:
    """PSNR of a picture to a scene as it is drawn, in dB."""
    apart = np.asarray(picture.convert("RGB"), np.float64) - np.asarray(scene.picture(), np.float64)
    return float(10 * np.log10(255**2 / max(1e-3, (apart**2).mean())))


def _requests(source: PairRequests, n: int, seed: int) -> list[Document]:
    rng = np.random.default_rng([seed, 31])
    return [source(rng) for _ in range(n)]


PROMPT_SETS: dict[str, Callable[[int, int], list[Document]]] = {
    "rewarded pairs": lambda n, seed: _requests(PairRequests(REWARDED_PAIRS, held_out=True), n, seed),
    "pairs never rewarded": lambda n, seed: _requests(PairRequests(UNREWARDED_PAIRS), n, seed),
    "rewarded pairs in relations": lambda n, seed: _requests(RelationRequests(REWARDED_PAIRS, held_out=True), n, seed),
    "others in relations": lambda n, seed: _requests(RelationRequests(UNREWARDED_PAIRS), n, seed),
    "one thing": lambda n, seed: [each.document for each in prompts("one thing", n, seed)],
    "two things": lambda n, seed: [each.document for each in prompts("two things", n, seed)],
}
"""Requests for drawings: of the rewarded pairs in arrangements that were not; of the others; both beside or
above a thing that data taught; and what data taught."""

OTHER_SKILLS = ("captions", "questions")
"""Kinds of `evaluation.scenes` in words, of which no reward says anything."""


@dataclass(frozen=True)
class JudgedDrawing:
    """A request, the picture that came of it, and what the two judges say."""

    request: Document
    scene: Scene
    picture: PIL.Image.Image
    verdicts: dict[str, bool]


def one_drawing_each(
    lab: Chameleon, requests: Sequence[Document], seed: int, batch: int = 50, **changes: Any
) -> list[JudgedDrawing]:
    """One picture a request, with the lab's settings and these changes to them."""
    grammar = lab.engine.grammar_of(MODALITY_SWITCHES["picture"])
    settings = lab.settings.changed(**{"max_tokens": lab.tokenizer.image_tokens + 1, **changes})
    drawings = list[JudgedDrawing]()
    for start in range(0, len(requests), batch):
        some = requests[start : start + batch]
        replies = lab.engine.generate(some, settings, range(seed + start, seed + start + len(some)), grammar)
        for request, reply in zip(some, replies, strict=True):
            scene, picture = requested_scene(request.text), reply.pictures[0]
            drawings.append(JudgedDrawing(request, scene, picture, compare_scenes(scene, read_scene(picture))))
    return drawings


def reward_outcomes(
    lab: Chameleon, n: int = 200, seed: int = 2026, sets: Sequence[str] = tuple(PROMPT_SETS), words: bool = True
) -> Iterator[dict[str, Any]]:
    """Rows of figures, one a measure: shares of `n`, with the number of right ones, and means.

    `guidance` is off, so that it is the model that is judged. Of "rewarded pairs", too: how many different pictures
    come of eight draws of a prompt, and by how many of their codes two of them differ.
    """
    nearest = NearestScene()
    for name in sets:
        drawings = one_drawing_each(lab, PROMPT_SETS[name](n, seed), seed, guidance=1.0)
        for measure in ("all", "binding", "sizes", "layout", "background"):
            yield {"set": name, "measure": measure, "right": sum(each.verdicts[measure] for each in drawings), "n": n}
        if len(drawings[0].scene.things) > 1:  # the second judge knows scenes of one thing
            continue
        named = nearest.names([each.picture for each in drawings])
        pairs = list(zip(drawings, named, strict=True))
        second = [scene.things[0].pair == each.scene.things[0].pair for each, scene in pairs]
        alike = [right == each.verdicts["binding"] for right, (each, _) in zip(second, pairs, strict=True)]
        yield {"set": name, "measure": "second judge: binding", "right": sum(second), "n": n}
        yield {"set": name, "measure": "judges agree", "right": sum(alike), "n": n}
        if right := [each for each in drawings if each.verdicts["all"]]:
            value = float(np.mean([likeness(each.picture, each.scene) for each in right]))
            yield {"set": name, "measure": "likeness of right ones", "value": value, "unit": "dB", "n": len(right)}
    if "rewarded pairs" in sets:
        requests = PROMPT_SETS["rewarded pairs"](12, seed)
        groups = [one_drawing_each(lab, [request] * 8, seed, guidance=1.0) for request in requests]
        different = np.mean([len({each.picture.tobytes() for each in group}) / 8 for group in groups])
        yield {"set": "rewarded pairs", "measure": "distinct of eight", "value": float(different), "n": len(groups)}
    for kind in OTHER_SKILLS if words else ():
        for measure, score in evaluate(lab, (kind,), n, seed):
            if measure in ("captions exact", "questions right"):
                yield {"set": kind, "measure": measure, "right": round(score.share * score.n), "n": score.n}


def judge_runs_command(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run with rewards")
    parser.add_argument("out", type=Path, help="JSON Lines to add outcomes to; those that are there are not made again")
    parser.add_argument("--arm", default="scene", help="what the arm is called in the file")
    parser.add_argument("--end", action="store_true", help="judge the end alone, and no checkpoint on the way")
    parser.add_argument("-n", type=int, default=200)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    judge_run(options.run, options.out, options.arm, options.n, options.end)


def judge_run(folder: Path, out: Path, arm: str, n: int, end: bool = False) -> None:
    """Judges where a run began (step 0, the same for all arms and seeds), each of its checkpoints unless the `end` is
    asked for alone, and its end; begin and end on all sets, checkpoints between them on pairs alone."""
    lab, run = Chameleon.load("tiny", device="cpu"), RunFolder(folder)
    records, seed = run.history.records, read_table(folder / "config.json")["seed"]
    rows = read_json_lines(out) if out.exists() else []
    places = {step: path for step, path in run.checkpoints.items() if step and not end}
    places |= {len(records): run.checkpoint}
    for step in dict.fromkeys((0, len(records), *sorted(places))):  # begin and end first, which say the most
        about = {"arm": arm if step else "start", "seed": seed if step else 0, "step": step}
        if any(about.items() <= row.items() for row in rows):
            continue
        if step:
            state = torch.load(places[step], weights_only=True, map_location="cpu")["state_dict"]
            lab.model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
        about["minutes"] = round(records[step - 1].seconds / 60, 2) if step else 0.0
        edge = step in (0, len(records))
        sets = tuple(PROMPT_SETS) if edge else ("rewarded pairs", "pairs never rewarded")
        rows += [about | row for row in reward_outcomes(lab, n, sets=sets, words=edge)]
        rows.sort(key=lambda row: (row["arm"] != "start", row["arm"], row["seed"], row["step"]))
        write_file(out, "".join(json.dumps(row) + "\n" for row in rows))
        log.info("Judged step %d of %s.", step, folder)


if __name__ == "__main__":
    raise SystemExit(exit_code(judge_runs_command))
