"""The balance meter: counts are those of the tokens, rates those of the replies, and outcomes are read as written."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from chameleon_lab.corpora.alignment import answers_learned
from chameleon_lab.corpora.conversations import DRAW_OPENINGS
from chameleon_lab.corpora.packing import tokenize
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.evaluation import balance
from chameleon_lab.evaluation.balance import (
    BALANCES,
    EITHER,
    NEW_EITHER,
    PICTURE_PROMPTS,
    BalanceOutcome,
    Composition,
    balance_experiment,
    balance_outcomes,
    balance_prompts,
    chances_by_balance,
    picture_chances,
    picture_rates,
    rates_by_balance,
    read_balances,
)
from chameleon_lab.training.alignment import Conversations, SceneCategory
from chameleon_lab.training.budget import Budget

PICTURE = PIL.Image.new("RGB", (16, 16))


@pytest.fixture
def parts(mixed):
    draw = answers_learned(Document.of("draw", EndTurn(), PICTURE, EndTurn()))
    ask = answers_learned(Document.of(PICTURE, EndTurn(), "abcd", EndTurn(), "e", EndTurn(), "f", EndTurn()))
    return {"drawing": tokenize([draw] * 3, mixed), "asking": tokenize([ask], mixed)}


def test_a_composition_counts_documents_tokens_and_answers(parts, mixed):
    whole = Composition.of(parts, mixed.vocabulary)
    drawing, asking = whole.parts["drawing"], whole.parts["asking"]
    assert (drawing.documents, drawing.answers, drawing.drawn) == (3, 3, 3)
    assert (asking.documents, asking.answers, asking.drawn) == (1, 2, 0)
    assert drawing.tokens == {"text": 12, "image": 48, "special": 18}  # begin, two ends of turn, two of image, end
    assert drawing.learned == {"text": 0, "image": 48, "special": 12}
    assert asking.learned == {"text": 5, "image": 0, "special": 3}
    tokens = [sum(each.tokens.values()) for each in (drawing, asking)]
    assert whole.shares["drawing"] == pytest.approx(tokens[0] / sum(tokens))
    assert whole.drawn_answers == pytest.approx(3 / 5)
    assert whole.learned("image") == pytest.approx(48 / 68)
    assert Composition.of(parts, mixed.vocabulary, {"asking": 1.0}).drawn_answers == 0


def test_a_documents_without_turns_is_one_answer_and_tables_are_escaped(parts, mixed):
    pair = tokenize([Document.of("a", Image(PICTURE))], mixed)
    whole = Composition.of({"<b>": pair, **parts}, mixed.vocabulary)
    assert (whole.parts["<b>"].answers, whole.parts["<b>"].drawn) == (1, 1)
    assert "<b>" not in whole._repr_html_() and "&lt;b&gt;" in whole._repr_html_()
    assert len(str(whole).splitlines()) == 5 and "as mixed" in str(whole)
    with pytest.raises(ValueError, match="parts with tokens and weights"):
        Composition.of(parts, mixed.vocabulary, {"drawing": 0.0})


def test_prompts_are_the_same_each_time_and_of_their_kind():
    for kind in PICTURE_PROMPTS:
        one, other = (balance_prompts(kind, 30, seed=7) for _ in range(2))
        assert [each.text for each in one] == [each.text for each in other]
        assert all(isinstance(each.segments[-1], EndTurn) for each in one)
    open_words = " ".join(
        document.text for kind in ("either", "either, in new words") for document in balance_prompts(kind, 40)
    )
    assert not {words for words in DRAW_OPENINGS if f"{words} " in open_words}
    assert not set(EITHER) & set(NEW_EITHER)
    assert any(document.pictures for document in balance_prompts("not asked", 12))


def test_rates_count_replies_with_a_picture():
    kinds = {"asked": [Document.of(str(number), EndTurn()) for number in range(10)]}

    def replies(documents):
        return [Document.of("here", PICTURE) if int(each.text) < 3 else Document.of("no") for each in documents]

    ((kind, score),) = picture_rates(replies, kinds, batch=4)
    assert kind == "asked" and (score.share, score.n) == (0.3, 10)


def test_chances_are_what_the_model_holds_likely(make_lab, mixed):
    lab = make_lab(mixed)
    documents = [Document.of(words, EndTurn()) for words in ("draw", "say")]
    chances = picture_chances(lab, documents)
    scores = [lab.engine.score([Document.of(PICTURE)], given=document)[0] for document in documents]
    assert chances == pytest.approx([np.exp(each.logs_T[0]) for each in scores], rel=1e-4)


def test_balances_differ_in_the_share_of_drawings_alone():
    experiments = {name: balance_experiment(share) for name, share in BALANCES.items()}
    counts = {}
    for name, each in experiments.items():
        assert isinstance(each.data, Conversations)
        sources = each.data.sources.items()
        counts[name] = {kind: source.count for kind, source in sources if isinstance(source, SceneCategory)}
    total = balance.BALANCE_CONVERSATIONS
    for name, share in BALANCES.items():
        pictures = counts[name]["image generation"] + counts[name]["open, drawn"]
        assert total - 3 <= sum(counts[name].values()) <= total and abs(pictures - share * total) <= 1
    bare = [replace(each, name="", data=None) for each in experiments.values()]
    assert bare[0] == bare[1] == bare[2]
    with pytest.raises(ValueError, match="between 0 and 1, not 1"):
        balance_experiment(1.0)


def test_outcomes_are_trained_once_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(balance, "BALANCE_CONVERSATIONS", 8)
    monkeypatch.setattr(balance, "BALANCES", {"even": 0.5})
    small = balance.balance_experiment
    monkeypatch.setattr(
        balance, "balance_experiment", lambda share, seed: replace(small(share, seed), budget=Budget(steps=1))
    )
    outcomes = list(balance_outcomes(tmp_path, seeds=(0,), n=2))
    assert [each.balance for each in outcomes] == ["before", "even"]
    assert 0 < outcomes[1].drawn_answers < 1 and outcomes[0].n == 2
    monkeypatch.setattr(balance, "balance_experiment", None)  # nothing is trained again
    assert list(balance_outcomes(tmp_path, seeds=(0,), n=2)) == outcomes == read_balances(tmp_path / "outcomes.jsonl")
    rates, chances = rates_by_balance(outcomes), chances_by_balance(outcomes * 2)
    assert rates["even"]["asked"].n == 2 and chances["even"]["asked"].n == 2


def test_a_damaged_file_of_outcomes_is_named(tmp_path):
    path = tmp_path / "balance.jsonl"
    sound = BalanceOutcome(
        "even", 0, 0.5, 0.5, 4, dict.fromkeys(PICTURE_PROMPTS, 1), dict.fromkeys(PICTURE_PROMPTS, 0.5)
    )
    plain = json.loads(sound.to_json())
    for change in ({"n": "four"}, {"more": 1}, {"pictures": 3}, {"pictures": {}}, {"chances": {"asked": 0.5}}):
        path.write_text(json.dumps({**plain, **change}) + "\n")
        with pytest.raises(ValueError, match=r"balance\.jsonl"):
            read_balances(path)


def test_the_recorded_outcomes_are_whole_and_show_what_the_notebook_says():
    outcomes = read_balances(Path(__file__).parent.parent / "data" / "balance.jsonl")
    assert {(each.balance, each.seed) for each in outcomes} == {
        (name, seed) for name in ("before", *BALANCES) for seed in range(3)
    }
    chances = chances_by_balance(outcomes)
    for kind in PICTURE_PROMPTS:
        assert chances["few"][kind].value < chances["many"][kind].value
    assert chances["few"]["asked"].value < 0.5 * chances["before"]["asked"].value
