"""The lab's own metrics: equal to the programs that papers use, on cases whose values those programs made."""

from __future__ import annotations

import json
from pathlib import Path

import metric_references as references
import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from chameleon_lab.evaluation.answers import boxed_answer, last_number, majority_answer, ndcg, vqa_accuracy, vqa_normal
from chameleon_lab.evaluation.captions import caption_words, cider

MADE = json.loads(Path(references.__file__).with_suffix(".json").read_text())


@pytest.mark.parametrize("place", range(len(references.CAPTIONS)))
def test_words_are_those_of_stanfords_tokenizer(place):
    assert caption_words(references.CAPTIONS[place]) == MADE["words"][place]


def test_cider_is_that_of_cocos_evaluation():
    captions, people = zip(*references.PICTURES, strict=True)
    scores = cider(captions, people)
    assert scores == pytest.approx(MADE["cider"], abs=1e-9) and 0 < scores.mean() < 10
    assert cider(captions[::-1], people[::-1]) == pytest.approx(scores[::-1])
    best = cider([some[0] for some in people], people)
    assert (best >= scores - 1e-9).all()


def test_vqas_accuracy_is_that_of_its_program():
    accuracies = [vqa_accuracy(*case) for case in references.answer_cases()]
    assert accuracies == pytest.approx(MADE["vqa"], abs=1e-9)
    assert 0.2 < np.mean(accuracies) < 0.8 and len(set(accuracies)) > 5  # the cases are of many kinds


@pytest.mark.parametrize(
    ("answers", "accuracy"), [((10, 0), 1), ((3, 7), 0.9), ((2, 8), 0.6), ((1, 9), 0.3), ((0, 10), 0)]
)
def test_an_answer_is_right_where_three_of_the_other_nine_give_it(answers, accuracy):
    said, other = answers
    assert vqa_accuracy("Two dogs", ["2 dogs"] * said + ["a cat"] * other) == pytest.approx(
        accuracy if other else 0  # where all say the same, nothing is normalised, as in the program
    )
    assert vqa_accuracy("2 dogs", ["2 dogs"] * said + ["a cat"] * other) == pytest.approx(accuracy)


def test_an_answer_loses_what_does_not_count():
    assert vqa_normal("The two T-shirts, dont!") == "2 t shirts don't"
    assert vqa_normal("1,000 people") == "1000 people" and vqa_normal("3.5.") == "3.5"


def test_ndcg_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(50):
        relevance = rng.choice([0, 0, 0.2, 0.4, 1], size=20)
        relevance[rng.integers(20)] = 0.6
        scores, relevant = rng.standard_normal(20), int((relevance > 0).sum())
        expected = ndcg_score([relevance], [scores], k=relevant)
        assert ndcg(scores, relevance.tolist()) == pytest.approx(expected)
    assert ndcg([3, 2, 1], [1, 0.5, 0]) == 1 and ndcg([1, 2, 3], [1, 0, 0]) == 0


@pytest.mark.parametrize(
    ("text", "number"),
    {
        "She has 3 + 4 = 7 apples. #### 1,234": "1234",
        "The answer is $18.50. I counted 2 times.": "18.5",
        "It is -3": "-3",
        "first 10, then 20.0": "20",
        "the answer is unknown, 5 at most": "5",
        "none": None,
        "#### .5": ".5",
    }.items(),
)
def test_what_a_reply_comes_to_is_its_last_number(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "answer"),
    {
        r"so \boxed{1} or rather \boxed{\frac12}.": r"\frac{1}{2}",
        r"\boxed{ \left( 3, \dfrac{4}{5} \right) }": r"(3,\frac{4}{5})",
        r"\boxed{\$1{,}000 \text{ dollars}}": "1{,}000",
        r"\boxed{3/4}": r"\frac{3}{4}",
        r"\boxed{-.5}": "-0.5",
        r"\boxed{\sqrt{2}": None,
        "7": None,
    }.items(),
)
def test_what_a_solution_comes_to_is_in_its_last_box(text, answer):
    assert boxed_answer(text) == answer


def test_most_replies_decide_and_those_without_an_answer_have_no_vote():
    replies = ["so 3", "no idea", "4", "4.0", "no", "none", "3"]
    assert majority_answer(replies, last_number) == "3"  # the first of two with two votes each
    assert majority_answer([*replies, "#### 4"], last_number) == "4"
    assert majority_answer(["no idea"], last_number) is None


@pytest.mark.parametrize(
    ("call", "words"),
    {
        "no captions": (lambda: cider([], []), "0 captions and 0 lists"),
        "unequal": (lambda: cider(["a"], []), "1 captions and 0 lists"),
        "no reference": (lambda: cider(["a", "b"], [["a"], []]), "at place 1 has no reference"),
        "no people": (lambda: vqa_accuracy("a", []), "there are none"),
        "nothing relevant": (lambda: ndcg([1, 2], [0, 0]), "found relevant"),
        "no replies": (lambda: majority_answer([], last_number), "one reply or more"),
    }.values(),
)
def test_what_has_no_score_is_one_clear_error(call, words):
    with pytest.raises(ValueError, match=words):
        call()
