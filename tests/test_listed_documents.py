"""A person's documents as a training's data: each round has all of them once, what is held out is never trained on."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import support
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.packing import TokenizedDocument, pack
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.optimization import Constant, Recipe
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import ListedDocuments, Scenes
from chameleon_lab.training.experiments import Experiment
from chameleon_lab.training.fine_tuning import fine_tune
from chameleon_lab.transformer import Transformer

DOCUMENTS = [
    Document.of(f"what is {number}?", EndTurn(), f"it is {number} and {number * number}") for number in range(40)
]


def texts(tokenizer, batch) -> list[str]:
    """What stands in a batch's rows."""
    vocabulary = tokenizer.vocabulary
    rows = [[token for token in row if token != vocabulary.pad] for row in batch.inputs_BT.tolist()]
    return [tokenizer.decode(row).text for row in rows]


def test_each_round_has_all_documents_once_and_none_that_is_held_out(mixed):
    corpus = ListedDocuments(DOCUMENTS, mixed, tokens=300, held_out=0.25).open(0, None)
    apart = [text for batch in corpus.held_out for text in texts(mixed, batch)]
    assert len(apart) == 10
    rounds = corpus.batches.batches_a_round  # pyright: ignore[reportFunctionMemberAccess]
    first, second = (
        [text for place in range(start, start + rounds) for text in texts(mixed, corpus.batches(place))]
        for start in (0, rounds)
    )
    assert Counter(first) == Counter(second) and first != second and len(set(first)) == 30
    assert not set(first) & set(apart) and {*first, *apart} == {document.text for document in DOCUMENTS}
    again = ListedDocuments(DOCUMENTS, mixed, tokens=300, held_out=0.25).open(0, None)
    assert all(torch.equal(corpus.batches(place).inputs_BT, again.batches(place).inputs_BT) for place in (5, 0, 3))
    other = ListedDocuments(DOCUMENTS, mixed, tokens=300, held_out=0.25).open(1, None)
    assert texts(mixed, other.held_out[0]) != apart


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.8])
def test_a_share_of_the_batches_is_of_what_stands_beside_and_both_go_on_where_they_were(mixed, share):
    beside = Scenes(mixed, tokens=236)
    corpus = ListedDocuments(DOCUMENTS, mixed, tokens=300, beside=beside, beside_share=share).open(0, None)
    own, scenes = ListedDocuments(DOCUMENTS, mixed, tokens=300).open(0, None).batches, beside.open(0, None).batches
    counts = [0, 0]
    for place in range(20):
        batch = corpus.batches(place)
        source = int("what is" not in texts(mixed, batch)[0])
        assert torch.equal(batch.inputs_BT, (own, scenes)[source](counts[source]).inputs_BT)
        counts[source] += 1
    assert counts[1] == round(20 * share)


def test_what_the_documents_say_is_part_of_what_the_experiment_is(mixed):
    def fingerprint(documents: list[Document]) -> str:
        return Experiment("own", support.MODEL, Budget(steps=1), ListedDocuments(documents, mixed)).fingerprint

    assert fingerprint(DOCUMENTS) == fingerprint(list(DOCUMENTS)) != fingerprint([*DOCUMENTS[1:], Document.of("x")])


@pytest.mark.parametrize(
    ("documents", "change", "words"),
    [
        (["what is 1?"] * 3, {}, "each a Document"),
        (DOCUMENTS[0], {}, "each a Document"),
        (3, {}, "each a Document"),
        (DOCUMENTS[:1], {}, "needs two or more"),
        (DOCUMENTS, {"held_out": 1.0}, "shares from 0 to below 1"),
        (DOCUMENTS, {"beside_share": -0.1}, "shares from 0 to below 1"),
    ],
)
def test_what_is_no_data_is_refused(documents, change, words):
    with pytest.raises(ValueError, match=words):
        ListedDocuments(documents, **change)


def test_data_beside_of_another_vocabulary_is_refused(mixed, lettered):
    with pytest.raises(ValueError, match="another vocabulary"):
        ListedDocuments(DOCUMENTS, mixed, beside=Scenes(lettered)).open(0, None)


def test_a_model_is_fine_tuned_on_them_in_one_cell(mixed, tmp_path):
    torch.manual_seed(11)
    config = replace(support.MODEL, context=500, vocabulary=mixed.vocabulary.size)
    base, recipe = Chameleon(Transformer(config), mixed), Recipe(rate=1e-2, warm_up=0, schedule=Constant())
    mine = ListedDocuments(DOCUMENTS, mixed, tokens=300)
    experiment = Experiment(
        "mine", config, Budget(steps=10), mine, recipe, monitors=(), checkpoints=0, begins_from=base
    )
    done = fine_tune(experiment, tmp_path, earlier=Scenes(mixed, tokens=236, held_out=3))
    assert done.after["new"]["loss"] < done.before["new"]["loss"] - 0.3 and "earlier" in str(done)


def test_documents_longer_than_the_context_end_there_and_are_counted(mixed, caplog):
    documents = [*DOCUMENTS, Document.of("a" * 300), Document.of("b" * 200)]
    config = replace(support.MODEL, context=120)
    data = ListedDocuments(documents, mixed, tokens=100_000, held_out=0.0)
    module = Experiment("long", config, Budget(steps=1), data).build()
    (words,) = caplog.messages
    assert words.startswith("2 of 42 documents are longer than the model's context of 120 tokens, the longest has 301")
    batch = module.batches(0)
    within = module.extend(batch)
    assert (batch.inputs_BT.shape[1], within.inputs_BT.shape[1]) == (301, 120)
    assert within.inputs_BT.equal(batch.inputs_BT[:, :120]) and within.learned_BT.equal(batch.learned_BT[:, :120])
    assert within.real_tokens == batch.real_tokens - 181 - 81
    assert module.extend(within) is within and len(caplog.messages) == 1


def test_of_packed_documents_what_lies_behind_the_context_is_not_learned_and_it_is_said_once(mixed, caplog):
    tokens = [np.arange(4, 4 + length) for length in (12, 8, 30)]
    documents = [TokenizedDocument(each, np.ones(len(each), bool)) for each in tokens]
    batch = pack(documents, 50, mixed.vocabulary, rows=1)[0]
    experiment = Experiment("rows", replace(support.MODEL, context=10), Budget(steps=1), Scenes(mixed, tokens=100))
    module = experiment.build()
    within = module.extend(batch)
    assert within.learned_BT.sum() == 10 + 7 + 10 and batch.learned_BT.sum() == 11 + 7 + 29
    assert within.inputs_BT.equal(batch.inputs_BT) and batch.within(29) is batch
    module.extend(batch)
    assert [words[:52] for words in caplog.messages] == ["Documents longer than the model's context of 10 toke"]
