"""Answers compared with people's: VQA's accuracy over ten of them, and the answer that most of N replies come to.

- `vqa_accuracy`: the rule and the normalisation of VQA's own evaluation program (visualqa.org), whose oddities are kept
- `ndcg`: how well candidates are ranked, beside people's relevance of each (VisDial's)
- `majority_answer`: of several replies the answer that most give (maj@N); of equally frequent ones the first
- `last_number`, `boxed_answer`: what a reply to GSM8K or MATH comes to
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

NDCG_DEFINITION = "NDCG over as many candidates as people found relevant, gains by relevance, as VisDial's"
VQA_DEFINITION = "VQA accuracy: mean over ten people of min(1, matches among the nine others / 3), as visualqa.org's"

_NUMBERS: dict[str, str] = dict(
    zip(
        ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
        ("0", *map(str, range(11))),
        strict=True,
    )
)
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're "
    "you've"
)


def _apostrophe_restored() -> dict[str, str]:
    """Contractions by what they are without one of their apostrophes, as the program's table has them."""
    table: dict[str, str] = {}
    for word in _CONTRACTIONS.split():
        parts = word.split("'")
        for place in range(len(parts) - 1):
            table["'".join([*parts[:place], parts[place] + parts[place + 1], *parts[place + 2 :]])] = word
    return table | {"somebody'd": "somebodyd"}  # the program has this one the wrong way round


_RESTORED = _apostrophe_restored()
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_COMMA = re.compile(r"\d,\d")


def vqa_accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """How right an answer is, 0 to 1: 1 where three of the other people say the same, over each way to leave one out.

    Where all people say the same, nothing is normalised, as in the program. Raises ValueError for no human answers.
    """
    if not human_answers:
        raise ValueError("VQA's accuracy is over people's answers, ten a question, and there are none.")
    ours, theirs = _one_line(answer), [_one_line(each) for each in human_answers]
    if len(set(theirs)) > 1:
        ours, theirs = vqa_normal(ours), [vqa_normal(each) for each in theirs]
    matches = sum(each == ours for each in theirs)
    return sum(min(1.0, (matches - (each == ours)) / 3) for each in theirs) / len(theirs)


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def vqa_normal(answer: str) -> str:
    """An answer as VQA's program compares it: small letters, no articles, digits for numbers, little punctuation."""
    words = answer
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer or _DIGITS_COMMA.search(answer)
        words = words.replace(mark, "" if beside_space else " ")
    words = re.sub(r"\.(?!\d)", "", words, count=32)  # the program passes a flag where the count stands: 32
    tokens = [_NUMBERS.get(word, word) for word in words.lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in tokens if word not in ("a", "an", "the"))


# Many replies, one answer


def majority_answer(replies: Sequence[str], answer_of: Callable[[str], str | None]) -> str | None:
    """The answer that most replies come to, the first of equally frequent ones; None where none comes to any.

    Raises ValueError for no replies.
    """
    if not replies:
        raise ValueError("A majority is of one reply or more.")
    votes = Counter(answer for reply in replies if (answer := answer_of(reply)) is not None)
    return votes.most_common(1)[0][0] if votes else None


def ndcg(scores: Sequence[float] | np.ndarray, relevance: Sequence[float]) -> float:
    """Normalized discounted cumulative gain, 0 to 1, at the number of candidates whose relevance is above 0.

    `scores`: higher is ranked first; of equal ones the earlier is. Raises ValueError where nothing is relevant.
    """
    gains = np.asarray(relevance, dtype=float)
    if not (gains > 0).any():
        raise ValueError("NDCG needs a candidate that people found relevant, and there is none.")
    discounts = 1 / np.log2(np.arange(2, 2 + int((gains > 0).sum())))
    ranked = gains[np.argsort(-np.asarray(scores, dtype=float), kind="stable")]
    return float(ranked[: len(discounts)] @ discounts / (np.sort(gains)[::-1][: len(discounts)] @ discounts))


_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")


def last_number(text: str) -> str | None:
    """The number after `####` or, without that, after "the answer is", or else the last one; digits alone: "1,234.50"
    is "1234.5"."""
    tail = re.split(r"####|answer is", text)[-1] if re.search(r"####|answer is", text) else None
    numbers = _NUMBER.findall(tail)[:1] if tail is not None else []
    numbers = numbers or _NUMBER.findall(text)[-1:]
    if not numbers:
        return None
    digits = numbers[0].replace(",", "").replace("$", "")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def boxed_answer(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds, in one spelling: without spaces, sizes of brackets, dollars and units."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed")
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return _one_spelling(text[begin + 1 : place])
    return None


def _one_spelling(formula: str) -> str:
    formula = re.sub(
        r"\\text\{\s[^{}]*\}|\\left|\\right|\\!|\\,|\\ |\\\$|\$|\\%|%|\^\\circ|\^\{\\circ\}|\s", "", formula
    )
    formula = re.sub(r"\\[dt]frac", r"\\frac", formula).rstrip(".")
    formula = re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", formula)
    formula = re.sub(r"^(-?\d+)/(\d+)$", r"\\frac{\1}{\2}", formula)
    return re.sub(r"^(-?)\.(\d)", r"\g<1>0.\2", formula)
