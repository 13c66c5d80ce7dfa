"""Is it the mix of modalities that makes norms grow? The same model on both, on either alone, and with towers.

Chameleon's authors explain the growth by modalities that compete: sharing all weights, each raises its norms a little
to be heard (arXiv 2405.09818, section 2.3). Then growth should be less on one modality alone, and less where weights
are not shared (`MixtureOfTransformers`). `chameleon-lab stability competition` trains the arms; docs/stability.md says
what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from chameleon_lab.corpora.mixture import Mixture, Stage
from chameleon_lab.corpora.packing import Batch, TokenizedDocument, pack
from chameleon_lab.corpora.shards import Shards
from chameleon_lab.evaluation.additions import several
from chameleon_lab.monitors.attention import AttentionBound, AttentionRows
from chameleon_lab.monitors.gradients import GradientBalance
from chameleon_lab.monitors.outputs import OutputLogits, ResidualNorm
from chameleon_lab.optimization import Constant
from chameleon_lab.stability import MixtureOfTransformers
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import PAIRS, Corpora, Corpus, opened_shards
from chameleon_lab.training.experiments import LAB, Experiment
from chameleon_lab.vocabulary import Modality, Vocabulary


@dataclass(frozen=True)
class OneModality:
    """A corpus of which one modality is left, and what delimits it; rows are as full as before.

    Documents without any of it are left out.
    """

    modality: Literal["text", "image"]
    corpora: Corpora = PAIRS

    def open(self, seed: int, steps: int | None) -> Corpus:
        """Raises ValueError for an unknown modality."""
        if self.modality not in ("text", "image"):
            raise ValueError(f"One modality is text or image, not {self.modality!r}.")
        source = self.corpora
        parts = {name: opened_shards(folder) for name, folder in source.folders.items()}
        vocabulary = next(iter(parts.values())).vocabulary
        left = {name: self._documents(part, vocabulary) for name, part in parts.items()}
        stages = source.stages or (Stage(dict.fromkeys(left, 1.0)),)
        mixture = Mixture(left, stages, vocabulary, context=source.context, rows=source.rows, seed=seed)
        held_out: list[Batch] = []
        if source.held_out is not None:
            apart = self._documents(opened_shards(source.held_out), vocabulary)
            held_out = pack(apart, source.context, vocabulary, source.rows)[: max(1, source.apart // source.rows)]
        return Corpus(vocabulary, mixture, held_out)

    def _documents(self, shards: Shards, vocabulary: Vocabulary) -> list[TokenizedDocument]:
        own, other = (Modality.TEXT, Modality.IMAGE) if self.modality == "text" else (Modality.IMAGE, Modality.TEXT)
        documents: list[TokenizedDocument] = []
        for document in shards:
            kinds = vocabulary.modality[document.tokens]
            stays = kinds != other
            if self.modality == "text":
                stays &= ~np.isin(document.tokens, (vocabulary.begin_image, vocabulary.end_image))
            if (kinds == own).any():
                documents.append(TokenizedDocument(document.tokens[stays], document.learn[stays]))
        return documents


COMPETITION = replace(
    LAB,
    name="competition",
    budget=Budget(steps=600),
    recipe=replace(LAB.recipe, rate=0.02, warm_up=100, schedule=Constant()),
    monitors=(AttentionBound(), AttentionRows(), ResidualNorm(), OutputLogits(), GradientBalance(every=100)),
    checkpoints=0,
)
"""A constant rate of 0.02, at which norms and logits grow for as long as one trains."""


def competition(seed: int = 0, fixes: Mapping[str, Any] = MappingProxyType({})) -> dict[tuple[str, str], Experiment]:
    """The arms, by what is trained on and what is shared; all begin with the same weights.

    `fixes` of one's own, a name each, are tried on both modalities together.
    """
    together = replace(COMPETITION, seed=seed)
    arms = {
        ("text and images", "baseline"): together,
        ("text and images", "mixture_of_transformers"): together.with_fixes(MixtureOfTransformers()),
        ("images alone", "baseline"): replace(together, data=OneModality("image")),
        ("text alone", "baseline"): replace(together, data=OneModality("text")),
        **{("text and images", name): together.with_fixes(*several(fix)) for name, fix in fixes.items()},
    }
    return {
        (setting, kind): replace(each, name=f"competition-{setting.replace(' ', '-')}-{kind}")
        for (setting, kind), each in arms.items()
    }
