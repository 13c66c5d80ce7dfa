"""Classifier-free guidance: pushing image logits away from what would be drawn without the words."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from chameleon_lab.vocabulary import Modality, Vocabulary


def guided(conditional_V: Tensor, unconditional_V: Tensor, scale: float) -> Tensor:
    """u + scale (c - u): 1 leaves the conditional logits as they are (arXiv 2309.02591, section 3.2)."""
    return unconditional_V + scale * (conditional_V - unconditional_V)


def without_words(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The unconditional stream: the document's begin and its images, nothing said.

    It only grows as the document grows, so what was computed of it stays valid.
    """
    kept = vocabulary.modality[tokens] == Modality.IMAGE
    kept |= np.isin(tokens, (vocabulary.begin_document, vocabulary.begin_image, vocabulary.end_image))
    return tokens[kept]
