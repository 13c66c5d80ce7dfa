"""Named trainings of image tokenizers: what to see, what to learn from it, and for how long."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from chameleon_lab.chameleon import load_image_tokenizer
from chameleon_lab.checkpoints import native
from chameleon_lab.corpora.scenes import sample_scene
from chameleon_lab.corpora.sources import (
    HELD_OUT_PHOTOGRAPHS,
    Crops,
    JoinedBatches,
    PictureFiles,
    photographs,
    picture_files,
)
from chameleon_lab.files import read_table
from chameleon_lab.history import History
from chameleon_lab.monitors.alarms import NotANumber, Rule, check_rules
from chameleon_lab.optimization import Constant, CoolDown, Recipe
from chameleon_lab.parts import require, require_count
from chameleon_lab.plain import fingerprint, plain_values
from chameleon_lab.storage import write_file
from chameleon_lab.tokenizers.image import CHAMELEON_IMAGES, TINY_IMAGES, ImageTokenizer, ImageTokenizerConfig
from chameleon_lab.tokenizers.losses import PatchCritic, ReconstructionObjective
from chameleon_lab.tokenizers.preparation import LANCZOS, pixels_of
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.run import Run
from chameleon_lab.training.samples import Reconstructions
from chameleon_lab.training.trainable import Prepared, Report

if TYPE_CHECKING:
    from chameleon_lab.training.modules import ImageTokenizerModule

log = logging.getLogger(__name__)

Pixels = Callable[[int], Tensor]
"""pixels_BCHW in [-1, 1] as a function of the step alone."""

Source = Callable[["ImageExperiment"], Pixels]
"""What an experiment sees."""


@dataclass(frozen=True)
class SceneImages:
    """Pixels of scenes, all colour-shape pairs among them, a pure function of (seed, step)."""

    seed: int
    batch: int
    side: int = 64

    def __post_init__(self) -> None:
        require_count(self.batch, "pictures of a batch", 1)
        require_count(self.side, "pixels along a side", 1)

    def __call__(self, step: int) -> Tensor:
        rng = np.random.default_rng([self.seed, 2, step])
        return torch.stack([pixels_of(self._picture(rng)) for _ in range(self.batch)])

    def _picture(self, rng: np.random.Generator) -> PIL.Image.Image:
        picture = sample_scene(rng).picture()
        return picture if picture.width == self.side else picture.resize((self.side, self.side), LANCZOS)


def scenes(experiment: ImageExperiment) -> Pixels:
    return SceneImages(experiment.seed, experiment.batch, experiment.side)


def photographs_and_scenes(experiment: ImageExperiment) -> Pixels:
    """Three crops of sample photographs to each scene, the held-out photographs not among them."""
    files = {name: path for name, path in photographs().items() if name not in HELD_OUT_PHOTOGRAPHS}
    if not files:
        raise ValueError(
            "This machine has no sample photographs: they come with scikit-image and scikit-learn "
            "(pip install scikit-image scikit-learn). Or give a folder of your own pictures."
        )
    few = max(1, experiment.batch // 4)
    crops = Crops(PictureFiles(files), experiment.side, experiment.seed, experiment.batch - few)
    return JoinedBatches((crops, SceneImages(experiment.seed, few, experiment.side)))


def folder_of_pictures(path: Path | str) -> Source:
    """The pictures of a person's folder, as random crops. The folder is found again from wherever a run goes on."""
    return partial(_crops_of_folder, path=Path(os.path.expanduser(path)).resolve())


def _crops_of_folder(experiment: ImageExperiment, path: Path | str) -> Pixels:
    return Crops(PictureFiles(picture_files(path)), experiment.side, experiment.seed, experiment.batch)


@dataclass(frozen=True)
class ImageExperiment:
    """A training of an image tokenizer: everything that decides the result but the machine.

    `crop`: pixels along each side of what it learns from, where that is less than the tokenizer's own side.
    `begins_from`: folder or name of an image tokenizer of this shape, whose weights are trained on; where it has
    another number of codes, the codebook alone begins anew. `warm_up_share`: see `ImageTokenizerModule`. `report` makes
    of the tokenizer what is called after each step. `rules` sound alarms; so many `checkpoints` stay for forks, evenly
    over the budget.
    """

    name: str
    tokenizer: ImageTokenizerConfig
    recipe: Recipe
    budget: Budget
    objective: ReconstructionObjective = field(default_factory=ReconstructionObjective)
    source: Source = scenes
    batch: int = 16
    crop: int | None = None
    begins_from: str | None = field(default=None, metadata={"later": True})
    warm_up_share: float | None = field(default=None, metadata={"later": True})
    report: Callable[[ImageTokenizer], Report] | None = field(default=None, metadata={"later": True})
    rules: tuple[Rule, ...] = (NotANumber(),)
    checkpoints: int = 0
    precision: str = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a part that lacks what its place asks for, or a class where an instance belongs."""
        require(self.tokenizer, "a tokenizer's config", "side", "patch", "codes", "quantizer")
        require(self.recipe, "a recipe", "optimizers", "pace", "multiplier")
        require(self.budget, "a budget", "progress")
        require(self.objective, "an objective of reconstruction", "perceptual", "adversary")
        if not callable(self.source):
            raise ValueError(f"source must be a function of the experiment that gives its pixels, not {self.source!r}.")
        check_rules(self.rules)
        require_count(self.batch, "pictures of a batch", 1)
        self._require_side()
        require_count(self.checkpoints, "checkpoints", 0)
        require_count(self.seed, "the seed", 0)

    def _require_side(self) -> None:
        """Raises ValueError for a crop that fills no grid, or that is too small for the critic or the edges."""
        if self.crop is not None:
            require_count(self.crop, "pixels along a crop's side", 1)
        factor, adversary = getattr(self.tokenizer, "factor", 1), self.objective.adversary
        if self.side % factor:
            raise ValueError(f"A crop of {self.side} pixels fills no grid: its side must be a multiple of {factor}.")
        least = PatchCritic.least_side(adversary.layers) if adversary else 1
        if self.side < least:
            raise ValueError(
                f"The critic judges pictures of {least} pixels a side or more, and a crop has {self.side}: give "
                f"crop={-(-least // factor) * factor}, a critic of fewer layers, or adversary=None."
            )
        if self.objective.perceptual in ("edges", "efficientnet") and self.side < 2**self.objective.scales:
            raise ValueError(
                f"Edges at {self.objective.scales} scales need {2**self.objective.scales} pixels a side, and a crop "
                f"has {self.side}: give a larger crop, or fewer scales."
            )

    @property
    def side(self) -> int:
        return self.tokenizer.side if self.crop is None else self.crop

    @property
    def offers(self) -> tuple[str, ...]:
        return ()

    def with_fixes(self, *fixes: Any) -> ImageExperiment:
        """The same: fixes are a transformer's. Raises ValueError for any."""
        if fixes:
            raise ValueError(f"{', '.join(map(repr, fixes))}: fixes are for transformers, not for image tokenizers.")
        return self

    def prepare(self, folder: Path) -> Prepared:
        native.plain_image_config(self.tokenizer)  # which raises for what could not be saved in the end
        torch.manual_seed(self.seed)
        from chameleon_lab.training.modules import ImageTokenizerModule  # Lightning is slow to import

        tokenizer = ImageTokenizer(self.tokenizer)
        if self.begins_from is not None:
            earlier = load_image_tokenizer(self.begins_from, device="cpu")
            own = {name: tensor for name, tensor in tokenizer.state_dict().items() if name.startswith("quantize.")}
            anew = own if earlier.codes != tokenizer.codes else {}
            tokenizer.load_state_dict(earlier.state_dict() | anew)
        module = ImageTokenizerModule(tokenizer, self.recipe, self.budget, self.objective, self.warm_up_share)
        batches = self.source(self)
        if isinstance(batches, Crops):
            _say_what_changed(batches.pictures, folder / "pictures.json")
        prepared = Prepared(module, batches, sampler=Reconstructions(module.tokenizer, batches))
        return prepared if self.report is None else replace(prepared, report=self.report(tokenizer))

    def finish(self, module: ImageTokenizerModule, history: History, folder: Path) -> ImageTokenizer:
        """The tokenizer as it is written to `folder/tokenizer`, in float16."""
        last, adversary = history.records[-1], self.objective.adversary
        if adversary is not None and not any("critic_loss" in record.values for record in history.records):
            log.warning(
                "The critic never began: it was to at step %d, and the training had %d. Adversary(start_share=0.5) "
                "begins at half of any budget.",
                *(adversary.start_step, last.step + 1),
            )
        card = {
            "experiment": plain_values(self),
            "trained": date.today().isoformat(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} CPU thread(s), torch {torch.__version__}",
            "minutes": round(last.seconds / 60, 1),
            "steps": last.step + 1,
        }
        native.write_image_tokenizer(_smallest(module.tokenizer.cpu().eval()), folder / "tokenizer", card)
        tokenizer = self.product(folder)
        assert tokenizer is not None
        return tokenizer

    def product(self, folder: Path) -> ImageTokenizer | None:
        own = () if isinstance(self.tokenizer.quantizer, str) else (self.tokenizer.quantizer,)
        written = folder / "tokenizer"
        return native.read_native_images(written, own).float() if written.exists() else None

    @property
    def fingerprint(self) -> str:
        """Eight letters that are the same for equal experiments."""
        return fingerprint(self)

    def run(self, folder: Path | str | None = None) -> Run:
        """Trains in the background, in `folder` or one named after the experiment below `runs`; returns at once.

        `run(...).result()` waits for the tokenizer. A folder where this experiment was stopped goes on; where it
        ended, the run is over at once.
        """
        return Run(self, folder).start()


def _say_what_changed(pictures: PictureFiles, place: Path) -> None:
    """Warns where a run goes on over other pictures than it began with, of which `place` holds the census."""
    before = read_table(place) if place.is_file() else pictures.census
    if before != pictures.census:
        log.warning(
            "The pictures are others than when this run began: %s files then, %s now. What is trained on is what lies "
            "there now; for a training of these alone give another folder.",
            *(before.get("files"), len(pictures)),
        )
    write_file(place, json.dumps(pictures.census))


def _smallest(tokenizer: ImageTokenizer) -> ImageTokenizer:
    """The tokenizer in float16, or as it is where its numbers are too large for that. Raises ValueError for one that
    nobody could read again, since some are none."""
    largest = max(float(tensor.abs().max()) for tensor in tokenizer.state_dict().values() if tensor.numel())
    if not math.isfinite(largest):
        raise ValueError(
            "The image tokenizer has weights that are not numbers, and is not written: train it with a lower rate, or "
            "fork it at an earlier checkpoint."
        )
    return tokenizer.half() if largest <= torch.finfo(torch.float16).max else tokenizer


REFERENCE = ImageExperiment(
    name="reference",
    tokenizer=replace(CHAMELEON_IMAGES, quantizer="vector_legacy"),
    recipe=Recipe(
        rate=4.5e-6 * 16,
        betas=(0.5, 0.9),
        eps=1e-8,
        weight_decay=0.0,
        clip=float("inf"),
        warm_up=1,
        schedule=Constant(),
    ),
    budget=Budget(steps=250_000),
    source=photographs_and_scenes,
)
"""Chameleon's architecture by the reference recipe (taming-transformers; Meta's own is unpublished).

The critic begins after 10,000 steps. For a GPU and many pictures: `chameleon-lab train reference --pictures FOLDER`.
"""

TINY_PICTURES = ImageExperiment(
    name="tiny",
    tokenizer=TINY_IMAGES,
    recipe=Recipe(rate=2e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=1e-4, warm_up=50, schedule=CoolDown(0.4)),
    budget=Budget(minutes=15),
    objective=ReconstructionObjective("edges", square=2.0, adversary=None),
)
"""The image tokenizer of the shipped model: 1.4 M parameters, 37 dB on scenes."""

PHOTOGRAPHS = ImageExperiment(
    name="photographs",
    tokenizer=replace(TINY_IMAGES, side=128, codes=1024, patch=4, widths=(128,)),
    recipe=TINY_PICTURES.recipe,
    budget=Budget(minutes=9),
    objective=TINY_PICTURES.objective,
    source=photographs_and_scenes,
    batch=8,
    crop=64,
)
"""`chameleon-lab train photographs`: 128 x 128 pixels to 32 x 32 codes of 1024, on sample photographs and scenes.

9 minutes of one core; about 24 dB on the held-out photographs, 26 at 256 x 256. What ships by this name has learned
more: `chameleon_lab.evaluation.photographs`.
"""

IMAGE_EXPERIMENTS = {"photographs": PHOTOGRAPHS, "reference": REFERENCE}
"""Those that are trained by name alone; `TINY_PICTURES` is a stage of the model of that name."""
