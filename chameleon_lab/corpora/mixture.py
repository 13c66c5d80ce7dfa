"""Mixtures: which documents come, in what shares, step after step."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from chameleon_lab.corpora.conversations import KINDS
from chameleon_lab.corpora.packing import Batch, bucket, tokenize
from chameleon_lab.documents import Document
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer

SCENE_WEIGHTS = {
    "caption_first": 0.10,
    "picture_first": 0.10,
    "drawing": 0.26,
    "asking": 0.16,
    "editing": 0.22,
    "conversation": 0.12,
    "story": 0.02,
    "plain_text": 0.02,
}
"""Shares of documents. Captions and pictures come first equally often."""


def sample_documents(rng: np.random.Generator, weights: dict[str, float], count: int) -> list[Document]:
    """`count` documents of the kinds of `conversations.KINDS`, in these shares."""
    kinds = rng.choice(list(weights), size=count, p=np.array(list(weights.values())) / sum(weights.values()))
    return [KINDS[str(kind)](rng) for kind in kinds]


@dataclass
class SceneBatches:
    """Batches of scene documents, a pure function of (seed, step): `batches(step) -> Batch`.

    Documents are made `pool` batches at a time, so that like lengths share a batch; about `tokens` tokens in each.
    """

    tokenizer: MixedModalTokenizer
    seed: int = 0
    tokens: int = 2048
    pool: int = 16
    weights: dict[str, float] = field(default_factory=lambda: dict(SCENE_WEIGHTS))

    MEAN_LENGTH = 114
    """Tokens of an average document under `SCENE_WEIGHTS`, measured by tests/test_corpora.py."""

    def __post_init__(self) -> None:
        self._pool_index, self._made = -1, list[Batch]()

    def __call__(self, step: int) -> Batch:
        index, place = divmod(step, self.pool)
        if index != self._pool_index:
            rng = np.random.default_rng([self.seed, index])
            count = self.pool * max(1, self.tokens // self.MEAN_LENGTH)
            documents = tokenize(sample_documents(rng, self.weights, count), self.tokenizer)
            self._made = bucket(documents, self.pool, self.tokenizer.vocabulary, rng)
            self._pool_index = index
        return self._made[place % len(self._made)]
