"""Rules of retrieval: which of the documents near a query are taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chameleon_lab.documents import Document
from chameleon_lab.parts import require_fields
from chameleon_lab.retrieval.bank import Bank, document_vectors
from chameleon_lab.retrieval.encoders import Encoder

MOST_RETRIEVED = 3


@dataclass(frozen=True)
class Hit:
    """A document that was retrieved: its place in the bank, the cosine of its vector and the query's, and which of the
    query's vectors that was."""

    document: Document
    score: float
    place: int | None = None
    by: Literal["text", "picture", "hand"] = "text"


@dataclass(frozen=True)
class RetrievalRules:
    """Which documents are taken for a query; by default CM3Leon's rules for training (arXiv 2309.02591, section 2.1).

    Of the documents nearest to the query's words `by_text` become candidates, and of those nearest to its pictures
    `by_picture`; a query without one of the two has all of them by the other. Skipped are those with a score above
    `cap` and those that are as like the whole query, which would say all and leave nothing to learn; and those more
    like an earlier candidate than `alike`. `count` are taken, 0 to 3: in a random order where `shuffled`, otherwise the
    best. Each of the query's words is left out with probability `query_dropout`.
    """

    count: int = 2
    by_text: int = 2
    by_picture: int = 2
    cap: float | None = 0.9
    alike: float = 0.9
    query_dropout: float = 0.2
    shuffled: bool = True

    def __post_init__(self) -> None:
        most = float(MOST_RETRIEVED)
        require_fields(self, count=(0, most), by_text=(0, 64), by_picture=(0, 64), cap=(-1, 1), alike=(-1, 1),
                       query_dropout=(0, 1))  # fmt: skip
        if self.by_text + self.by_picture < 1:
            raise ValueError("by_text and by_picture are both 0: no document could be a candidate.")

    def choose(self, bank: Bank, encoder: Encoder, query: Document, seed: int = 0) -> list[Hit]:
        """The documents for one query, best first or shuffled. Deterministic by seed."""
        return self.choose_each(bank, encoder, [query], [seed])[0]

    def choose_each(
        self, bank: Bank, encoder: Encoder, queries: Sequence[Document], seeds: Sequence[int]
    ) -> list[list[Hit]]:
        """The documents for each of several queries, each by its own seed alone. Raises ValueError for a bank of
        another encoder, and for a query with neither words nor pictures."""
        bank.require_encoder(encoder)
        if not self.count or not queries:
            return [[] for _ in queries]
        whole_QD = document_vectors(queries, encoder, "query")
        rngs = [np.random.default_rng([seed, 20]) for seed in seeds]
        texts = [self._some_words(query.text, rng) for query, rng in zip(queries, rngs, strict=True)]
        text_QD = encoder.encode_text(texts)
        first_of = np.cumsum([0, *(len(query.pictures) for query in queries)])
        picture_XD = encoder.encode_pictures([picture for query in queries for picture in query.pictures])
        chosen = list[list[Hit]]()
        for index, rng in enumerate(rngs):
            pictures = picture_XD[first_of[index] : first_of[index + 1]]
            ways = {"text": (text_QD[index], self.by_text), "picture": (pictures.sum(0), self.by_picture)}
            ways = {by: way for by, way in ways.items() if way[0].any()}
            if len(ways) == 1:
                ways = {by: (vector, self.by_text + self.by_picture) for by, (vector, _) in ways.items()}
            hits = list(self._candidates(bank, whole_QD[index], ways))
            order = rng.permutation(len(hits)) if self.shuffled else np.argsort([-hit.score for hit in hits])
            chosen.append([hits[int(place)] for place in order[: self.count]])
        return chosen

    def _some_words(self, text: str, rng: np.random.Generator) -> str:
        words = text.split()
        stays = rng.random(len(words)) >= self.query_dropout
        return " ".join(word for word, stay in zip(words, stays, strict=True) if stay) if stays.any() else text

    def _candidates(self, bank: Bank, whole_D: np.ndarray, ways: dict[str, tuple[np.ndarray, int]]) -> Iterator[Hit]:
        picks = list[int]()
        for by, (vector_D, count) in ways.items():
            yielded = 0
            unit_D = vector_D / np.linalg.norm(vector_D)
            for score, place in _nearest_first(bank, unit_D):
                if yielded == count:
                    break
                vector = bank.vectors_ND[place]
                if self.cap is not None and max(score, float(vector @ whole_D)) > self.cap:
                    continue
                if place in picks or (picks and float((bank.vectors_ND[picks] @ vector).max()) > self.alike):
                    continue
                picks.append(place)
                yielded += 1
                yield Hit(bank.documents[place], score, place, "text" if by == "text" else "picture")


def _nearest_first(bank: Bank, query_D: np.ndarray) -> Iterator[tuple[float, int]]:
    """(score, place) of all documents, nearest first; of few of them at a time, since mostly the first will do."""
    done, count = 0, 32
    while done < len(bank):
        scores_QK, places_QK = bank.search(query_D[None], count)
        yield from zip(scores_QK[0, done:].tolist(), places_QK[0, done:].tolist(), strict=True)
        done, count = scores_QK.shape[1], count * 8


CM3LEON_RULES = RetrievalRules()
"""For training: what says all is left out, and the rest is varied."""

LOOKUP = RetrievalRules(cap=None, query_dropout=0.0, shuffled=False)
"""For generation: the best documents there are, by all words of the query."""
