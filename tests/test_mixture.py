"""Packing and mixtures: every token once, no document seen by another, and data order that is arithmetic."""

import re
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise

import numpy as np
import pytest
import torch
from support import same

from chameleon_lab.corpora import shards
from chameleon_lab.corpora.infilling import holds_sentinels
from chameleon_lab.corpora.mixture import SCENE_WEIGHTS, Mixture, Stage, sample_documents, scene_pairs, two_stages
from chameleon_lab.corpora.packing import (
    Batch,
    TokenizedDocument,
    bucket,
    collate,
    fit,
    lay_out,
    pack,
    split_document,
    tokenize,
)
from chameleon_lab.objective import Objective
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.training.data import Corpora
from chameleon_lab.vocabulary import Vocabulary

VOCABULARY = Vocabulary.layout(12, 4000)
IMAGE = [VOCABULARY.begin_image, *[VOCABULARY.first_image + 1] * 16, VOCABULARY.end_image]


def build(rng: np.random.Generator, *parts: int | str) -> TokenizedDocument:
    """A document of so many text tokens, or an image for "image"; learn flags at random but for the first."""
    tokens = [VOCABULARY.begin_document]
    for part in parts:
        tokens += (
            rng.integers(VOCABULARY.first_text, VOCABULARY.size, part).tolist() if isinstance(part, int) else IMAGE
        )
    tokens.append(VOCABULARY.end_document)
    learn = rng.random(len(tokens)) < 0.7
    learn[[0, -1]] = False, True
    return TokenizedDocument(np.array(tokens), learn)


def assorted(rng: np.random.Generator, count: int) -> list[TokenizedDocument]:
    """Documents short and long, of text and images in any order."""
    kinds = ("image", "image", 1, 3, 9, 20, 70)
    return [
        build(rng, *(kinds[index] for index in rng.integers(len(kinds), size=rng.integers(1, 6)))) for _ in range(count)
    ]


def pieces(batch: Batch) -> list[TokenizedDocument]:
    """What stands in a batch, row by row, padding left out: read back from the numbers of its documents."""
    assert batch.documents_BT is not None
    batched = []
    for row, numbers in enumerate(batch.documents_BT):
        for number in range(int(numbers.max()) + 1):
            (places,) = torch.where(numbers == number)
            inputs, targets = batch.inputs_BT[row, places], batch.targets_BT[row, places]
            if len(places) and int(inputs[0]) != VOCABULARY.pad:
                assert torch.equal(places, torch.arange(int(places[0]), int(places[-1]) + 1))
                assert torch.equal(inputs[1:], targets[:-1])
                tokens = torch.cat([inputs, targets[-1:]]).numpy()
                batched.append(TokenizedDocument(tokens, np.array([False, *batch.learned_BT[row, places].tolist()])))
            else:
                assert (targets == VOCABULARY.pad).all() and not batch.learned_BT[row, places].any()
    return batched


def targets(documents: list[TokenizedDocument]) -> Counter:
    """(token, the one after it, whether that is learned) of each position, counted."""
    return Counter(
        (one, other, bool(learned))
        for tokens, learn in documents
        for (one, other), learned in zip(pairwise(tokens.tolist()), learn[1:], strict=True)
    )


# Packing


@pytest.mark.parametrize("context", [17, 40, 128])
def test_packing_keeps_every_token_once_with_its_flag_and_modality(context):
    documents = assorted(np.random.default_rng(context), 120)
    batches = pack(documents, context, VOCABULARY, rows=5)
    assert {tuple(batch.inputs_BT.shape) for batch in batches[:-1]} == {(5, context)}
    batched = [piece for batch in batches for piece in pieces(batch)]
    assert targets(batched) == targets(documents)
    assert len(batched) > 120 if context < 70 else len(batched) >= 120
    for batch in batches:
        kinds = torch.from_numpy(VOCABULARY.modality)[batch.targets_BT]
        assert torch.equal(batch.modality_BT, kinds) and batch.modality_BT.shape == batch.learned_BT.shape
        assert batch.real_tokens == sum(len(piece.tokens) for piece in pieces(batch))


@pytest.mark.parametrize("context", [17, 18, 19, 40])
def test_an_image_is_never_cut(context):
    rng = np.random.default_rng(0)
    documents = [
        *assorted(rng, 60),
        build(rng, *["image"] * 9),
        build(rng, 1, "image", 17, "image"),
        build(rng, 70, 20),
    ]
    for document in documents:
        cut = split_document(document, context, VOCABULARY)
        assert max(len(piece.tokens) for piece in cut) <= context + 1
        assert np.array_equal(
            np.concatenate([document.tokens[:1], *(piece.tokens[1:] for piece in cut)]), document.tokens
        )
        for piece in cut:
            letters = "".join("tis"[VOCABULARY.modality[token]] for token in piece.tokens)
            for run in re.finditer("i+", letters):
                assert len(run[0]) == 16
                assert piece.tokens[run.start() - 1] == VOCABULARY.begin_image and run.start() > 0
                assert piece.tokens[run.end()] == VOCABULARY.end_image


def test_a_document_that_fits_is_never_split():
    rng = np.random.default_rng(0)
    whole, longer = build(rng, 38), build(rng, 39)
    assert [len(piece.tokens) for piece in split_document(whole, 39, VOCABULARY)] == [40]
    assert [len(piece.tokens) for piece in split_document(longer, 39, VOCABULARY)] == [40, 2]


def test_an_image_longer_than_the_context_is_an_error_that_says_how_much_it_takes():
    document = build(np.random.default_rng(0), 5, "image", 5)
    with pytest.raises(ValueError, match=r"An image takes 17 positions and the context has 16.* make the context 17"):
        pack([document], 16, VOCABULARY)
    assert pack([document], 17, VOCABULARY)


def naive_rows(positions: list[int], context: int) -> int:
    """Rows that best fit, longest first, opens: one piece at a time."""
    rooms: list[int] = []
    for length in sorted(positions, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(context - length)
    return len(rooms)


@pytest.mark.parametrize("longest", [12, 40, 70, 100])
def test_rows_are_as_few_as_best_fit_makes_them_and_none_is_too_full(longest):
    rng = np.random.default_rng(longest)
    for count in (1, 2, 50, 700):
        positions = rng.integers(1, longest + 1, count)
        rows = fit(positions, 100)
        assert np.bincount(rows, positions).max() <= 100
        assert int(rows.max()) + 1 == naive_rows(positions.tolist(), 100)


def test_rows_are_numbered_by_the_first_piece_in_each():
    rows = fit(np.random.default_rng(0).integers(3, 40, 400), 48)
    row_numbers, first = np.unique(rows, return_index=True)
    assert row_numbers.tolist() == list(range(len(row_numbers))) and len(row_numbers) > 100
    assert (np.diff(first) > 0).all()


def test_documents_of_many_lengths_leave_little_padding():
    positions = np.minimum(np.random.default_rng(0).geometric(1 / 90, 20_000), 256)
    assert 1 - positions.sum() / (256 * (int(fit(positions, 256).max()) + 1)) < 0.005


def test_pieces_that_cannot_stand_in_a_row_are_refused():
    with pytest.raises(ValueError, match=r"must have 1\.\.10 positions; these have 3\.\.11"):
        fit(np.array([3, 11]), 10)
    document = build(np.random.default_rng(0), 5)
    with pytest.raises(ValueError, match="more than its 10 positions"):
        lay_out([[document, document]], 10, VOCABULARY)
    with pytest.raises(ValueError, match=r"Token ids must lie in 0\.\."):
        lay_out([[TokenizedDocument(np.array([0, 99_999]), np.array([False, True]))]], 10, VOCABULARY)
    for documents in ([], [TokenizedDocument(np.array([0]), np.array([False]))]):
        with pytest.raises(ValueError, match="no documents to pack"):
            pack(documents, 10, VOCABULARY)
    with pytest.raises(ValueError, match="1 or more, not 0 and 10"):
        pack([document], 10, VOCABULARY, rows=0)


BATCHINGS = {
    "collate": lambda documents: [collate(documents, VOCABULARY)],
    "bucket": lambda documents: bucket(documents, 3, VOCABULARY, np.random.default_rng(0)),
    "pack": lambda documents: pack(documents, 100, VOCABULARY, rows=5),
}


@pytest.mark.parametrize("batching", BATCHINGS.values(), ids=list(BATCHINGS))
def test_trap_08_padding_and_what_is_not_learned_are_ids_of_the_vocabulary_never_minus_100(batching):
    batches = batching(assorted(np.random.default_rng(0), 40))
    assert any((batch.inputs_BT == VOCABULARY.pad).any() for batch in batches)
    for batch in batches:
        assert not batch.learned_BT[batch.targets_BT == VOCABULARY.pad].any()
        for ids_BT in (batch.inputs_BT, batch.targets_BT):
            assert ids_BT.min() >= 0 and ids_BT.max() < VOCABULARY.size


@pytest.mark.parametrize("batching", BATCHINGS.values(), ids=list(BATCHINGS))
def test_trap_08_minus_100_among_tokens_is_refused(batching):
    documents = assorted(np.random.default_rng(0), 9)
    documents[4].tokens[2] = -100
    with pytest.raises(ValueError, match=r"Token ids must lie in 0\.\..*got -100\.\."):
        batching(documents)


def test_a_packed_batch_has_the_loss_of_its_documents_alone(mixed, lab):
    documents = tokenize(sample_documents(np.random.default_rng(0), SCENE_WEIGHTS, 6), mixed)
    context = max(len(document.tokens) for document in documents)
    (packed,) = pack(documents, context, mixed.vocabulary, rows=99)
    assert packed.documents_BT is not None and len(packed.inputs_BT) < 6
    alone, together = (Objective()(lab.model, batch) for batch in (collate(documents, mixed.vocabulary), packed))
    for name, value in alone.items():
        assert float(together[name].detach()) == pytest.approx(float(value.detach()), rel=1e-5), name


# Mixtures


def marked(part: int, count: int) -> list[TokenizedDocument]:
    """Documents whose text tokens say which part and which document they are of."""
    rng, first = np.random.default_rng(part), VOCABULARY.first_text
    runs = [[0, first + part, *[first + 10 + number] * int(rng.integers(1, 12)), 2] for number in range(count)]
    return [TokenizedDocument(np.array(run), np.arange(len(run)) > 0) for run in runs]


PARTS = {"text": marked(0, 40), "pairs": marked(1, 70), "code": marked(2, 9)}


STEADY = (Stage({"text": 3, "pairs": 2}),)


def mixture(stages: Sequence[Stage] = STEADY, seed: int = 0, rows: int = 4) -> Mixture:
    return Mixture(PARTS, stages, VOCABULARY, context=24, rows=rows, seed=seed)


def places_of(batch: Batch) -> list[tuple[str, int]]:
    """(part, document) of each document in a batch."""
    first = VOCABULARY.first_text
    return [(list(PARTS)[piece.tokens[1] - first], int(piece.tokens[2]) - first - 10) for piece in pieces(batch)]


def rows_of(batch: Batch) -> Counter[str]:
    """How many rows each part has."""
    return Counter(list(PARTS)[int(row[1]) - VOCABULARY.first_text] for row in batch.inputs_BT)


def test_a_batch_is_a_pure_function_of_seed_and_step():
    stages = two_stages({"text": 1, "pairs": 1}, {"code": 1}, steps=50)
    straight = mixture(stages)
    in_order = [straight(step) for step in range(60)]
    again = mixture(stages)
    assert all(same(again(step), in_order[step]) for step in reversed(range(60)))
    assert all(same(mixture(stages)(step), in_order[step]) for step in (0, 39, 40, 41, 59))
    assert not any(same(one, other) for one, other in pairwise(in_order))
    assert not any(same(mixture(stages, seed=1)(step), in_order[step]) for step in range(20))


def test_a_step_far_on_is_as_near_as_the_first():
    far = mixture(two_stages({"text": 1, "pairs": 1}, {"code": 1}, steps=10**9))
    assert same(far(999_999_999), far(999_999_999)) and sum(rows_of(far(10**8)).values()) == 4
    assert far.epochs(10**9)["code"] > 10**6


def test_each_part_is_gone_through_whole_before_any_of_it_comes_again():
    alone = mixture((Stage({"pairs": 1}),), rows=1)
    each = round(1 / alone.epochs(1)["pairs"])
    epochs = [[places_of(alone(step)) for step in range(start, start + each)] for start in (0, each, 2 * each)]
    for epoch in epochs:
        assert sorted(document for row in epoch for document in row) == [("pairs", number) for number in range(70)]
    assert epochs[0] != epochs[1] != epochs[2] and alone.padding["pairs"] < 0.15


def test_rows_come_in_the_shares_of_the_weights():
    blocks = mixture(rows=64)
    counts = sum((rows_of(blocks(step)) for step in range(64)), Counter[str]())  # 4,096 rows: one block
    assert counts == {"text": round(4096 * 0.6), "pairs": 4096 - round(4096 * 0.6)}
    first = sum((rows_of(blocks(step)) for step in range(8)), Counter[str]())
    assert 0.5 < first["text"] / 512 < 0.7
    assert blocks.shares(0) == {"text": 0.6, "pairs": 0.4, "code": 0.0}


def test_a_part_of_the_smallest_weight_still_comes():
    rare = Mixture(PARTS, (Stage({"text": 1, "pairs": 1e-9}),), VOCABULARY, context=24, rows=64)
    assert sum(rows_of(rare(step))["pairs"] for step in range(64)) == 1


def test_a_row_is_of_one_part_and_its_count_is_known_without_looking(monkeypatch):
    stages = (Stage({"text": 1, "pairs": 3}), Stage({"code": 1}, 7), Stage({"code": 1, "text": 2}, 21))
    drawn, totals = mixture(stages), Counter[str]()
    for step in range(40):
        counts = drawn.epochs(step)
        assert {name: round(counts[name] * len(drawn._parts[name])) for name in PARTS} == {
            name: totals[name] for name in PARTS
        }
        batch = drawn(step)
        per_row = [{name for name, _ in places_of(_row(batch, row))} for row in range(4)]
        assert all(len(names) == 1 for names in per_row)
        totals += rows_of(batch)
        assert not 7 <= step < 21 or set(rows_of(batch)) == {"code"}


def _row(batch: Batch, row: int) -> Batch:
    assert batch.documents_BT is not None
    only = slice(row, row + 1)
    return Batch(
        batch.inputs_BT[only],
        batch.targets_BT[only],
        batch.learned_BT[only],
        batch.modality_BT[only],
        0,
        batch.documents_BT[only],
    )


def test_chameleons_second_stage_halves_the_first_and_gives_the_other_half_to_its_own():
    first, second = two_stages({"text": 6, "pairs": 2}, {"code": 1}, steps=1000)
    both = mixture((first, second))
    assert second.start == 800 and both.shares(799) == {"text": 0.75, "pairs": 0.25, "code": 0}
    assert both.shares(800) == {"text": 0.375, "pairs": 0.125, "code": 0.5} == both.shares(10**6)
    _, overlapping = two_stages({"text": 1}, {"text": 1, "code": 1}, steps=10)
    assert dict(overlapping.weights) == {"text": 0.75, "code": 0.25}
    for steps, share in ((1, 0.8), (100, 1.0), (100, 0.0)):
        with pytest.raises(ValueError, match="leave a stage without any"):
            two_stages({"text": 1}, {"code": 1}, steps=steps, share=share)


def test_new_weights_hold_from_their_step_on_and_no_document_is_lost_or_repeated():
    before = mixture(two_stages({"text": 1, "pairs": 1}, {"code": 1}, steps=100))
    after = before.reweighted({"pairs": 1}, step=5)
    assert all(same(before(step), after(step)) for step in range(5))
    assert set(rows_of(after(5))) == {"pairs"} == set(rows_of(after(90)))  # the second stage does not come either
    assert set(rows_of(before(90))) != {"pairs"}
    batches = [(before if step < 5 else after)(step) for step in range(100)]
    drawn = [row for batch in batches for row in map(places_of, (_row(batch, row) for row in range(4)))]
    epoch = [number for row in drawn if row[0][0] == "pairs" for _, number in row][:70]
    assert sorted(epoch) == list(range(70))
    twice = after.reweighted({"text": 1}, step=9).reweighted({"code": 1}, step=3)
    assert [stage.start for stage in twice.stages] == [0, 3] and set(rows_of(twice(9))) == {"code"}
    assert same(before.reweighted({"code": 1})(0), mixture((Stage({"code": 1}),))(0))


def test_shards_mix_as_the_documents_in_them_do(mixed, tmp_path):
    documents = list(scene_pairs(40))
    corpus = shards.write_shards(tmp_path / "pairs", documents, mixed, shard_tokens=500)
    for context in (64, 200):
        mapped, in_memory = (
            Mixture({"pairs": part}, (Stage({"pairs": 1}),), mixed.vocabulary, context=context, rows=3)
            for part in (corpus, tokenize(documents, mixed))
        )
        assert {tuple(batch.inputs_BT.shape) for batch in map(mapped, range(9))} == {(3, context)}
        assert all(same(mapped(step), in_memory(step)) for step in range(30)) and mapped.padding == in_memory.padding


def test_what_has_nothing_to_learn_is_left_out_so_that_no_batch_is_empty():
    quiet = TokenizedDocument(np.arange(30, 130), np.arange(100) >= 90)  # the first pieces of a long prompt
    mute = TokenizedDocument(np.arange(30, 40), np.zeros(10, bool))
    single = Mixture({"a": [quiet, mute]}, (Stage({"a": 1}),), VOCABULARY, context=20, rows=1)
    assert len(single._parts["a"]) == 1 and all(single(step).learned_BT.any() for step in range(5))
    with pytest.raises(ValueError, match="'a' of the mixture has no token to learn in its 1 documents"):
        Mixture({"a": [mute]}, (Stage({"a": 1}),), VOCABULARY, context=20, rows=1)


def test_scene_pairs_keep_to_their_side_of_the_split():
    sides = [{document.text for document in scene_pairs(200, 3, side)} for side in ("trainable", "held_out")]
    assert len(sides[0]) > 150 and not sides[0] & sides[1]
    assert sides[0] == {document.text for document in scene_pairs(200, 3)}


def test_documents_longer_than_the_context_are_split_and_counted():
    rng = np.random.default_rng(0)
    documents = [build(rng, 70, 70), build(rng, 9), build(rng, "image", "image", 9)]
    documents = [TokenizedDocument(tokens, np.arange(len(tokens)) > 0) for tokens, _ in documents]
    single = Mixture({"a": documents, "b": documents[1:2]}, (Stage({"a": 1}),), VOCABULARY, context=30, rows=1)
    assert single.longer == {"a": 2, "b": 0}
    epoch = [piece for step in range(len(single._parts["a"])) for piece in pieces(single(step))]
    assert targets(epoch) == targets(documents)


def test_a_stage_may_rearrange_another_share_and_keeps_it_when_weights_change():
    rng = np.random.default_rng(0)
    documents = [
        TokenizedDocument(tokens, np.ones(len(tokens), bool)) for tokens, _ in (build(rng, 10) for _ in range(40))
    ]
    stages = Stage({"a": 1}, infill=1.0), Stage({"a": 1}, 20, infill=0.0)
    mixture = Mixture({"a": documents}, stages, VOCABULARY, context=60, rows=2)
    for each in (mixture, mixture.reweighted({"a": 2}, 5), mixture.reweighted({"a": 2}, 25)):
        holes = [any(holds_sentinels(piece.tokens, VOCABULARY) for piece in pieces(each(step))) for step in range(30)]
        assert sum(holes[:20]) > 15 and not any(holes[20:])
    assert str(stages[1]) == "a 100%, 0% rearranged" and str(Stage({"a": 1})) == "a 100%"


def test_a_training_says_how_many_documents_are_split(caplog):
    Corpora({"pairs": "pairs/held_out"}, rows=1, context=80).open(0, 1)
    assert re.fullmatch(r"\d+ of the \d+ documents of 'pairs' are longer than the 80 positions .*", *caplog.messages)
    caplog.clear()
    Corpora({"pairs": "pairs/held_out"}, rows=1, context=88).open(0, 1)
    assert not caplog.messages


# What is refused


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        ((Stage({"text": 1, "songs": 1}),), "no part songs; its parts are text, pairs, code"),
        ((Stage({"text": -1, "pairs": 2}),), r"0 or more and not all 0; these are \{'text': -1"),
        ((Stage({"text": 0}),), "not all 0"),
        ((Stage({}),), "not all 0"),
        ((Stage({"text": float("nan")}),), "0 or more"),
        ((Stage({"text": float("inf")}),), "0 or more"),
        ((), r"Stages must start at step 0 .* these start at \[\]"),
        ((Stage({"text": 1}, 3),), r"these start at \[3\]"),
        ((Stage({"text": 1}), Stage({"text": 1})), r"these start at \[0, 0\]"),
    ],
)
def test_stages_that_make_no_sense_are_refused(stages, why):
    with pytest.raises(ValueError, match=why):
        mixture(stages)


def test_empty_parts_foreign_tokens_and_impossible_sizes_are_refused(mixed, spelled, tmp_path):
    with pytest.raises(ValueError, match="'nothing' of the mixture is empty"):
        Mixture({"nothing": []}, (Stage({"nothing": 1}),), VOCABULARY, context=24, rows=1)
    with pytest.raises(ValueError, match="at least one part"):
        Mixture({}, (Stage({"text": 1}),), VOCABULARY, context=24, rows=1)
    for context, rows in ((0, 1), (24, 0)):
        with pytest.raises(ValueError, match="must be 1 or more"):
            Mixture(PARTS, (Stage({"text": 1}),), VOCABULARY, context=context, rows=rows)
    corpus = shards.write_shards(tmp_path / "pairs", scene_pairs(3), mixed)
    with pytest.raises(ValueError, match="was written for another vocabulary"):
        Mixture({"pairs": corpus}, (Stage({"pairs": 1}),), spelled.vocabulary, context=200, rows=1)
    other = MixedModalTokenizer(mixed.text, deepcopy(mixed.image), mixed.vocabulary)
    other.image.quant_conv.weight.data.neg_()
    parts = {"pairs": corpus, "others": shards.write_shards(tmp_path / "others", scene_pairs(3), other)}
    with pytest.raises(ValueError, match="'pairs' and 'others' were written with different tokenizers"):
        Mixture(parts, (Stage({"pairs": 1}),), mixed.vocabulary, context=200, rows=1)
    with pytest.raises(ValueError, match="An image takes 17 positions and the context has 12"):
        Mixture({"pairs": corpus}, (Stage({"pairs": 1}),), mixed.vocabulary, context=12, rows=1)
    for weights in ({"songs": 1}, {"text": -1}):
        with pytest.raises(ValueError, match=r"no part songs|0 or more"):
            mixture().reweighted(weights, step=3)
    with pytest.raises(ValueError, match="no step -1"):
        mixture()(-1)
