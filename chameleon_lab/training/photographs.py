"""Trainings of tokenizers of photographs, at three rates and by two losses: `chameleon_lab.evaluation.photographs`
runs them side by side and compares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from chameleon_lab.corpora.sources import CropsAtSizes, PictureFiles, picture_files
from chameleon_lab.optimization import CoolDown, Recipe
from chameleon_lab.tokenizers.image import ImageTokenizerConfig
from chameleon_lab.tokenizers.losses import ReconstructionObjective
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.image_experiments import PHOTOGRAPHS, ImageExperiment, Pixels, Source

Perceptual = Literal["edges", "efficientnet"]
LOSSES: tuple[Perceptual, ...] = ("efficientnet", "edges")
BATCH = 32
PHOTOGRAPH_RATES = {4: 6e-4, 8: 1.5e-3, 16: 1.5e-3}  # the book of 4 learns better at the lower one
CROP = 128  # pixels: half of what is read later, where twice as many different ones teach more

PHOTOGRAPH_TOKENIZER = ImageTokenizerConfig(
    side=256,
    codes=2**14,
    code_width=5,
    widths=(96, 128),
    latent_width=32,
    blocks=1,
    patch=4,
    groups=8,
    middle=False,
    quantizer="finite_scalar",
)
"""256 x 256 pixels to 32 x 32 codes of 16,384, Chameleon's grid at half its side: 1.8 M parameters."""

PHOTOGRAPH_TOKENIZERS = {
    4: replace(PHOTOGRAPHS.tokenizer, side=256, codes=4096),
    8: PHOTOGRAPH_TOKENIZER,
    16: replace(PHOTOGRAPH_TOKENIZER, widths=(64, 96, 120)),
}
"""By their factor, pixels along each side of a code's cell: 0.75, 0.22 and 0.05 bits a pixel.

The two coarse ones have levels instead of a book, of which a third to a half is in use in the end. Short trials came
too late for them: in 420 steps of 8 crops of 64 pixels, levels gave 20.0 dB on the photographs held out, a learned book
of 8,192 codes of width 8 21.1, and that at half the rate 21.5.
"""


@dataclass(frozen=True)
class Variant:
    """One tokenizer to be trained: its factor, its perceptual loss, and the seed of weights and crops."""

    factor: int
    perceptual: Perceptual
    seed: int

    @property
    def name(self) -> str:
        return f"f{self.factor}-{self.perceptual}-{self.seed}"


VARIANTS = tuple(
    Variant(factor, perceptual, seed)
    for seed, factors in ((0, (8, 16, 4)), (1, (8, 16)), (2, (8, 16)))
    for factor in factors
    for perceptual in LOSSES
)
"""Fourteen: both losses three times over at factors 8 and 16, and once at 4."""


def photographs_at_sizes(path: Path | str) -> Source:
    """The pictures of a folder at several sizes in memory, as random crops."""
    return partial(_crops_at_sizes, path=path)


def _crops_at_sizes(experiment: ImageExperiment, path: Path | str) -> Pixels:
    pictures = PictureFiles(picture_files(path), shortest=1024, cached=1)
    return CropsAtSizes(pictures, experiment.side, experiment.seed, experiment.batch)


def experiment_of(variant: Variant, corpus: Path | str, budget: Budget) -> ImageExperiment:
    """The training of a variant, on a GPU in bfloat16."""
    return ImageExperiment(
        name=variant.name,
        tokenizer=PHOTOGRAPH_TOKENIZERS[variant.factor],
        recipe=Recipe(
            rate=PHOTOGRAPH_RATES[variant.factor],
            betas=(0.9, 0.99),
            eps=1e-8,
            weight_decay=1e-4,
            warm_up=100,
            schedule=CoolDown(0.4),
        ),
        budget=budget,
        objective=ReconstructionObjective(variant.perceptual, square=2.0, adversary=None),
        source=photographs_at_sizes(Path(corpus) / "trained"),
        batch=BATCH,
        crop=CROP,
        precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        seed=variant.seed,
    )
