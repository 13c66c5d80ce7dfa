"""CIDEr-D: how far a caption says what people say of a picture, in the words that few other pictures' captions have.

- Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", 2015, section 4; what COCO's evaluation prints
- words are `caption_words`, after the Penn Treebank's rules as Stanford's tokenizer applies them, in small letters and
  without COCO's list of punctuation; captions of other tokenizers have other scores, so a card names this one
- a word's weight depends on how many pictures' captions have it: a caption has no score without the others
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

LONGEST_PHRASE = 4  # words
LENGTH_SPREAD = 6.0
"""Words: how far lengths may differ, as a Gaussian's standard deviation."""

CIDER_DEFINITION = (
    "CIDEr-D x 100, 1 to 4 words, sigma 6, phrases weighed by these pictures' references; words by Treebank's rules in "
    "small letters without punctuation (evaluation.captions.caption_words)"
)

_ABBREVIATIONS = r"(?:mr|mrs|ms|dr|st|jr|sr|vs|etc|inc|co|corp|ltd|mt|prof|ave|blvd)\."
_WORDS = re.compile(
    "|".join(
        (
            r"<[^<>\s]+>",
            r"[\w.+-]+@[\w-]+\.[\w.]+",  # addresses
            r"https?://\S+",
            rf"\b{_ABBREVIATIONS}",
            r"no\.(?=\s*\d)",
            r"(?:\b[a-z]\.)+(?!\w)",  # u.s., p.m.
            r"y'(?=all\b)",
            r"'(?:\d0s|em\b|n'|t(?=is\b|was\b))",
            r"'(?:s|m|d|re|ve|ll|n)\b",
            r"\w+(?=n't\b)",
            r"n't\b",
            r"(?:o|d)'\w+",
            r"[#@]\w*[a-z]\w*",
            r"\d+(?:[.,:/]\d+)+(?:-\w+)*",
            r"\w+(?:[/.-]\w+)*",  # well-known, and/or
            r"!+\?*|\?+!*",
            r"[^\w\s]",
        )
    )
)
_SPLITS = {
    **{"cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta", "gimme": "gim me"},
    **{"lemme": "lem me"},
}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SILENT = frozenset("\"'`.?!,:;-–—…")
_TYPED = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "½": "1/2", "¼": "1/4", "¾": "3/4"})


def caption_words(caption: str) -> list[str]:
    """A caption's words, in small letters: "A man's dog isn't here." is a, man, 's, dog, is, n't, here.

    Brackets stay, as `-lrb-` and the like, since COCO's list of punctuation has them in capitals alone.
    """
    words: list[str] = []
    for word in _WORDS.findall(caption.lower().translate(_TYPED)):
        words += (_SPLITS.get(word) or _BRACKETS.get(word) or word).split()
    return [word for word in words if word not in _SILENT]


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each caption, 0 to 10, against its picture's references; the mean is that of all (papers print 100
    times it). Of a single picture it is 0.

    Raises ValueError for no captions, unequal numbers of captions and references, and a picture without a reference.
    """
    if not captions or len(captions) != len(references):
        raise ValueError(
            f"CIDEr-D compares captions with a list of references each; there are {len(captions)} captions and "
            f"{len(references)} lists."
        )
    if bare := [place for place, each in enumerate(references) if not each]:
        raise ValueError(f"The picture at place {bare[0]} has no reference caption: leave it out.")
    phrases = [[_phrases(caption_words(each)) for each in some] for some in references]
    pictures_with = Counter(phrase for some in phrases for phrase in set().union(*some))
    logs = {phrase: np.log(len(captions)) - np.log(count) for phrase, count in pictures_with.items()}
    rarest, scores = float(np.log(len(captions))), list[float]()
    for caption, some in zip(captions, phrases, strict=True):
        counts = _phrases(caption_words(caption))
        scores.append(10 * float(np.mean([_likeness(counts, each, logs, rarest) for each in some])))
    return np.array(scores)


def _phrases(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    """How often each run of 1 to `LONGEST_PHRASE` words occurs."""
    sizes = range(1, LONGEST_PHRASE + 1)
    return Counter(tuple(words[at : at + size]) for size in sizes for at in range(len(words) - size + 1))


def _likeness(
    ours: Counter[tuple[str, ...]],
    theirs: Counter[tuple[str, ...]],
    logs: dict[tuple[str, ...], float],
    rarest: float,
) -> float:
    """The mean over sizes of the cosine between two captions' weighed phrases, ours clipped at theirs. A phrase of no
    reference weighs as one of a single picture (`rarest`)."""

    def weighed(counts: Counter[tuple[str, ...]], size: int) -> dict[tuple[str, ...], float]:
        return {each: count * logs.get(each, rarest) for each, count in counts.items() if len(each) == size}

    total = 0.0
    for size in range(1, LONGEST_PHRASE + 1):
        mine, other = weighed(ours, size), weighed(theirs, size)
        product = sum(min(weight, other.get(each, 0.0)) * other.get(each, 0.0) for each, weight in mine.items())
        norms = float(np.linalg.norm(list(mine.values())) * np.linalg.norm(list(other.values())))
        total += product / norms if norms else product
    # Lengths are in pairs of words, as the published program counts them.
    gap = sum(count * (len(each) == 2) for each, count in ours.items())
    gap -= sum(count * (len(each) == 2) for each, count in theirs.items())
    return total / LONGEST_PHRASE * float(np.exp(-(gap**2) / (2 * LENGTH_SPREAD**2)))
