"""The training of the model that fills blanks: the tiny model's weights, trained on with the CM3 objective on scenes.

`python -m chameleon_lab.training.infilling FOLDER` writes it to `FOLDER/model`; called again, it goes on. A GPU takes
about half a minute to encode most scenes there are, and then `--minutes` to train.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.conversations import SCENE_KINDS, Choice
from chameleon_lab.corpora.holes import cells_of_thing, hole_document, widened, with_another_thing, without_thing
from chameleon_lab.corpora.infilling import CM3LEON_SPANS
from chameleon_lab.corpora.mixture import SCENE_WEIGHTS
from chameleon_lab.corpora.packing import Batch, TokenizedDocument, bucket, encode_images, tokenize
from chameleon_lab.corpora.scene_codes import (
    ENCODE_ANEW,
    SceneCodes,
    drawn_with,
    image_of_scene,
    numbered_scene,
    scene_range,
)
from chameleon_lab.corpora.scenes import Scene, sample_where
from chameleon_lab.corpora.shards import identities
from chameleon_lab.documents import Image
from chameleon_lab.files import read_table
from chameleon_lab.history import StepRecord
from chameleon_lab.monitors.alarms import NotANumber
from chameleon_lab.optimization import CoolDown
from chameleon_lab.processes import in_processes
from chameleon_lab.signals import exit_code
from chameleon_lab.storage import whole_folder, write_file
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.training.ahead import made_ahead, spare_cores
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import Corpus
from chameleon_lab.training.experiments import TINY
from chameleon_lab.training.fine_tuning import save_result
from chameleon_lab.training.folder import locks_folder
from chameleon_lab.vocabulary import id_dtype

log = logging.getLogger(__name__)

INFILL_SHARES: Mapping[str, float] = {"holes": 0.65, "spans": 0.1, "plain": 0.25}
"""Shares of documents: scenes with something hidden; the tiny model's documents, rearranged by `Spans` or as they were,
so that it stays what it is."""


@dataclass(frozen=True)
class InfillDocuments:
    """What the model trains on, drawn as it is needed: `tokens` tokens a step, of documents in these `shares`.

    `scenes`: the folder of scenes' codes (`SceneCodes`); scenes that are not there are drawn and encoded. Fillings
    weigh `filling_weight` times what the rest does.

    Codes beside a hidden thing know of it, since an encoder sees further than a cell. So of the scenes with something
    hidden, the share `changed` was something else before: bare ground there, or another thing, whose codes are those
    around the hole.
    """

    scenes: Path
    tokenizer: MixedModalTokenizer
    tokens: int = 2048
    shares: Mapping[str, float] = field(default_factory=lambda: dict(INFILL_SHARES))
    filling_weight: float = 2.0
    changed: float = 0.4

    def open(self, seed: int, steps: int | None) -> Corpus:
        batches = made_ahead(partial(InfillBatches, self, seed))
        return Corpus(self.tokenizer.vocabulary, batches)


class InfillBatches:
    """Batches of documents, a pure function of (seed, step), made `POOL` at a time, so that like lengths share one."""

    POOL = 16
    MEAN_LENGTH = 104
    """Tokens of an average document under `INFILL_SHARES`."""

    def __init__(self, data: InfillDocuments, seed: int) -> None:
        self.data, self.seed = data, seed
        self.codes = SceneCodes(data.scenes)
        self._index, self._batches = -1, list[Batch]()

    def __call__(self, step: int) -> Batch:
        index, place = divmod(step, self.POOL)
        if index != self._index:
            rng, vocabulary = np.random.default_rng([self.seed, 16, index]), self.data.tokenizer.vocabulary
            count = self.POOL * max(1, round(self.data.tokens / self.MEAN_LENGTH))
            with drawn_with(self.codes), torch.autocast("cpu", enabled=False):  # a training step asks for this
                documents = self._documents(rng, count)
            batches = bucket(documents, self.POOL, vocabulary, rng)
            self._batches = [self._weighted(batch) for batch in batches]
            self._index = index
        return self._batches[place % len(self._batches)]

    def _documents(self, rng: Choice, count: int) -> list[TokenizedDocument]:
        tokenizer, vocabulary = self.data.tokenizer, self.data.tokenizer.vocabulary
        names, shares = list(self.data.shares), np.array(list(self.data.shares.values()))
        numbers = dict(zip(names, rng.multinomial(count, shares / shares.sum()), strict=True))
        scenes = [self._scene(rng) for _ in range(numbers.get("holes", 0))]
        images = [image_of_scene(scene) for scene in scenes]
        befores = [self._before(scene, rng) if rng.random() < self.data.changed else None for scene in scenes]
        coded = encode_images([*images, *(each[0] for each in befores if each is not None)], tokenizer)
        documents = list[TokenizedDocument]()
        for scene, image, before in zip(scenes, images, befores, strict=True):
            image, hidden_RC = coded.get(id(image), image), None
            if before is not None:
                around, hidden_RC = coded.get(id(before[0]), before[0]), before[1]
                assert image.codes is not None and around.codes is not None
                image = replace(image, codes=np.where(hidden_RC, image.codes, around.codes))
            documents.append(hole_document(scene, image, tokenizer, rng, hidden_RC))
        kinds, weights = list(SCENE_WEIGHTS), np.array(list(SCENE_WEIGHTS.values()))
        for name in ("spans", "plain"):
            drawn = rng.choice(kinds, numbers.get(name, 0), p=weights / weights.sum())
            some = tokenize([SCENE_KINDS[str(kind)](rng) for kind in drawn], tokenizer)
            if name == "spans":
                some = [CM3LEON_SPANS.rearrange_document(each, rng, vocabulary) for each in some]
            documents += some
        return documents

    def _scene(self, rng: Choice) -> Scene:
        """A trainable scene; one of three things from those that have codes, of all too many."""
        scene, threes = sample_where(rng, "trainable"), self.codes.scenes_of(3)
        if len(scene.things) == 3 and len(threes):
            return numbered_scene(int(self.codes.numbers_S[threes[int(rng.integers(len(threes)))]]))
        return scene

    def _before(self, scene: Scene, rng: Choice) -> tuple[Image, np.ndarray]:
        """What a scene was before a thing was put there, and the cells that hide both."""
        place, grid = int(rng.integers(len(scene.things))), self.data.tokenizer.grid
        bare = rng.random() < 0.4
        before = without_thing(scene, place) if bare else with_another_thing(scene, place, rng)
        hidden_RC = cells_of_thing(scene.things[place], grid)
        if not bare:
            hidden_RC |= cells_of_thing(before.things[place], grid)
        return image_of_scene(before), widened(hidden_RC, rng)

    def _weighted(self, batch: Batch) -> Batch:
        """The batch with weights on what stands behind a document's end."""
        ended_BT = batch.inputs_BT == self.data.tokenizer.vocabulary.end_document
        weights_BT = torch.where(ended_BT.cumsum(1) > 0, self.data.filling_weight, 1.0)
        return replace(batch, weights_BT=weights_BT.float())


# Codes of scenes, before the training

CHUNK = 512
"""Scenes that a process draws at a time."""


def scenes_to_encode(threes: int, seed: int = 0) -> np.ndarray:
    """The numbers of all scenes of one and two things, and of so many of three."""
    first, last = scene_range(3)
    some = first + np.random.default_rng([seed, 17]).choice(last - first, min(threes, last - first), replace=False)
    return np.concatenate([np.arange(first), some])


def encode_scenes(tokenizer: MixedModalTokenizer, folder: Path, numbers: np.ndarray) -> SceneCodes:
    """The codes of the trainable ones among these scenes, in a folder; what it holds already is not made again.

    Raises ValueError for a folder that holds the codes of other scenes, or those of another image tokenizer.
    """
    about = {"tokenizer": identities(tokenizer)["image"], "scenes": f"{zlib.crc32(numbers.tobytes()):08x}"}
    if (folder / "numbers.npy").is_file():
        there = read_table(folder / "card.json", remedy=ENCODE_ANEW)
        if there != about:
            raise ValueError(f"{folder} holds codes of other scenes, or another image tokenizer's. {ENCODE_ANEW}")
        return SceneCodes(folder)
    began, image, device = time.monotonic(), tokenizer.image, "cuda" if torch.cuda.is_available() else "cpu"
    kind = id_dtype(image.codes)
    rows, codes = [np.empty(0, np.int64)], [np.empty((0, *tokenizer.grid), kind)]
    chunks = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
    image.to(device)
    with whole_folder(folder, ("codes.npy", "numbers.npy", "card.json")) as hidden:
        for some, pixels_BHWC in in_processes(draw_trainable, chunks, spare_cores(), logging.basicConfig):
            if len(some):
                pixels_BCHW = torch.from_numpy(pixels_BHWC).to(device).movedim(-1, 1).contiguous().float() / 255 * 2 - 1
                with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
                    codes.append(image.encode_pixels(pixels_BCHW).cpu().numpy().astype(kind))
                rows.append(some)
        whole = np.concatenate(rows)
        order = np.argsort(whole)
        np.save(hidden / "codes.npy", np.concatenate(codes)[order])
        np.save(hidden / "numbers.npy", whole[order])
        write_file(hidden / "card.json", json.dumps(about) + "\n")
    image.to("cpu")
    log.info("Encoded %s scenes in %.0f s.", f"{len(whole):,}", time.monotonic() - began)
    return SceneCodes(folder)


def draw_trainable(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The trainable ones of some scenes, each once, and their pixels: B x rows x columns x 3 bytes."""
    scenes = [(number, numbered_scene(int(number))) for number in numbers]
    scenes = [(number, scene) for number, scene in scenes if scene.trainable and _is_sampled(scene)]
    pixels = [np.asarray(scene.picture()) for _, scene in scenes]
    return np.array([number for number, _ in scenes], np.int64), np.array(pixels, np.uint8)


def _is_sampled(scene: Scene) -> bool:
    """Whether no two of its things have one shape and colour."""
    return len({thing.pair for thing in scene.things}) == len(scene.things)


# All of it

INFILLING = replace(
    TINY,
    name="infilling",
    begins_from="tiny",
    budget=Budget(minutes=60),
    recipe=replace(TINY.recipe, schedule=CoolDown(0.4), warm_up=200),
    monitors=(),  # time is what this training has least of
    rules=(NotANumber(),),
)
"""The tiny model's shape, from its weights on."""

CONTINUED = replace(
    INFILLING.recipe, rate=INFILLING.recipe.rate / 4, muon_rate=INFILLING.recipe.muon_rate / 4, warm_up=20
)

GPU_TOKENS, CPU_TOKENS = 32768, 2048
"""Tokens a step: what an H100 takes in little more time than fewer."""

GPU_THREES = 300_000
"""Scenes of three things that are encoded beforehand where there is a GPU."""


@locks_folder
def train_infilling(
    folder: Path | str,
    minutes: float = 7.0,
    tokens: int | None = None,
    threes: int | None = None,
    begins_from: str = "tiny",
    every: float = 20.0,
) -> Chameleon:
    """The model that fills blanks, written to `folder/model`. Called again with more minutes, it goes on.

    `begins_from`: folder or name of a model of the tiny model's shape, whose weights are trained on; one that is not
    the tiny model fills already, and is trained on with a quarter of the rates.

    `tokens` a step, and how many scenes of three things are encoded beforehand, depend on whether there is a GPU;
    without one scenes are encoded as they are needed. Every so many seconds the log says how far it is.
    """
    folder, lab, gpu = Path(folder), Chameleon.load("tiny", device="cpu"), torch.cuda.is_available()
    if gpu or threes is not None:
        numbers = scenes_to_encode(GPU_THREES if threes is None else threes)
    else:
        numbers = np.empty(0, np.int64)
    encode_scenes(lab.tokenizer, folder / "scenes", numbers)
    data = InfillDocuments(folder / "scenes", lab.tokenizer, tokens or (GPU_TOKENS if gpu else CPU_TOKENS))
    experiment = replace(
        INFILLING,
        begins_from=begins_from,
        recipe=INFILLING.recipe if begins_from == "tiny" else CONTINUED,
        data=data,
        budget=Budget(minutes=minutes),
        precision="bf16-mixed" if gpu else "32-true",
    )
    run = experiment.run(folder / "transformer")
    run.wait(report=InfillProgress(every))
    shares = data.shares
    holes = 1 - shares.get("plain", 0.0) / sum(shares.values())
    return save_result(run, experiment, lab, folder / "model", without=("scenes", "tokenizer"), infill=holes)


class InfillProgress:
    """Says now and then how far the run is."""

    def __init__(self, every: float) -> None:
        self.every, self.last = every, time.monotonic()

    def __call__(self, record: StepRecord) -> None:
        if time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            names = [name for name in ("text_loss", "image_loss", "rate") if name in record.values]
            losses = "  ".join(f"{name} {record.values[name]:.3g}" for name in names)
            log.info("%6.2f min  step %d  %s", record.seconds / 60, record.step + 1, losses)


def train_infilling_command(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the run and the model go")
    parser.add_argument("--minutes", type=float, default=7, help="of training, in all (default: 7)")
    parser.add_argument("--tokens", type=int, help=f"a step (default: {CPU_TOKENS}, on a GPU {GPU_TOKENS})")
    parser.add_argument("--threes", type=int, help="scenes of three things to encode beforehand (on a GPU 300,000)")
    parser.add_argument("--from", dest="begins_from", default="tiny", help="a model whose weights it begins from")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train_infilling(options.folder, options.minutes, options.tokens, options.threes, options.begins_from)
    log.info("The model is in %s.", options.folder / "model")


if __name__ == "__main__":
    # By its own name: what an experiment names in `__main__` counts as a person's own, and as another one.
    from chameleon_lab.training.infilling import train_infilling_command as command

    raise SystemExit(exit_code(command))
