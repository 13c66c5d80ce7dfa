"""The trainings of the emoji model: its image tokenizer and its transformer, on a corpus that was built in a folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chameleon_lab.corpora.emoji import KINDS_OF_SKETCH, Emoji
from chameleon_lab.tokenizers.preparation import pixels_of
from chameleon_lab.training.image_experiments import TINY_PICTURES, ImageExperiment, Pixels
from chameleon_lab.training.budget import Budget

SKETCHES = 0.1  # share of pictures that are outlines, silhouettes and greys

opened = lru_cache(maxsize=4)(Emoji)


@dataclass(frozen=True)
class EmojiImages:
    """Pixels of the trainable drawings and some sketches, each freshly shifted, a pure function of (seed, step)."""

    folder: Path | str
    seed: int
    batch: int
    side: int

    def __call__(self, step: int) -> Tensor:
        rng = np.random.default_rng([self.seed, 8, step])
        return torch.stack([pixels_of(self._picture(rng)) for _ in range(self.batch)])

    def _picture(self, rng: np.random.Generator):
        emoji = opened(self.folder)
        idea, style = emoji.any(rng)
        if rng.random() < SKETCHES:
            return emoji.sketch(idea, style, str(rng.choice(KINDS_OF_SKETCH)), rng, self.side)
        return emoji.picture(idea, style, rng, self.side)


def _pixels(experiment: ImageExperiment, folder: Path | str) -> Pixels:
    return EmojiImages(folder, experiment.seed, experiment.batch, experiment.side)


def emoji_images(folder: Path | str) -> ImageExperiment:
    """The image tokenizer of the emoji model: 64 x 64 pixels to 8 x 8 codes of 2048.

    3.0 M parameters, half as wide again as the tiny model's; its perceptual loss needs the extra `features`.
    """
    return replace(
        TINY_PICTURES,
        name="emoji",
        tokenizer=replace(TINY_PICTURES.tokenizer, codes=2048, widths=(96, 192)),
        objective=replace(TINY_PICTURES.objective, perceptual="efficientnet"),
        budget=Budget(minutes=30),
        source=partial(_pixels, folder=folder),
        precision="bf16-mixed",
    )
