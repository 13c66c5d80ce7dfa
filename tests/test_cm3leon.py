"""CM3Leon: the published shapes with its own block, and traps of its public code that this lab does not have."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from scipy import stats
from support import CONFIG
from torch import nn

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.cm3leon import (
    CM3LEON_BLOCK,
    BareNorms,
    LearnedPositions,
    PositionTable,
    UngatedFeedForward,
    draw_truncated,
)
from chameleon_lab.corpora.infilling import Span, Spans, holds_sentinels, move_spans, restore, segments
from chameleon_lab.corpora.mixture import Mixture, Stage
from chameleon_lab.corpora.packing import TokenizedDocument
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.generation.guidance import Contrastive, TwoWay, masked_words
from chameleon_lab.optimization import Constant, Recipe
from chameleon_lab.outlines import outline
from chameleon_lab.planner import plan
from chameleon_lab.published import CM3LEON_SHAPES, CM3LEON_VOCABULARY
from chameleon_lab.quantization import quantize
from chameleon_lab.retrieval.prompts import WithoutQuery, put_before
from chameleon_lab.stability import NormReordering, SigmaReparam, blocks
from chameleon_lab.training.compilation import compile_blocks
from chameleon_lab.training.experiments import CM3LEON_DATA, EXPERIMENTS, LAB
from chameleon_lab.training.sharding import drawn_model, weights_later
from chameleon_lab.transformer import Packed, Transformer
from chameleon_lab.vocabulary import Vocabulary

ROOT = Path(__file__).parent.parent
REDUCED = replace(CONFIG, tied=True, ffn_width=128, fixes=CM3LEON_BLOCK)
"""The block at a width of 32, in a context of 24 tokens of 50."""


def awake(config=REDUCED) -> Transformer:
    """A model whose branches do something: as drawn they begin at 0, where all decoding would be equal."""
    torch.manual_seed(2)
    model = Transformer(config).eval()
    for name, weight in model.named_parameters():
        nn.init.normal_(weight, std=0.3 if name.startswith("positions") else weight.shape[-1] ** -0.5)
    return model


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 50, (rows, length))


# The block


@pytest.mark.parametrize(
    ("name", "millions", "blocks_only"),
    [("cm3leon-350m", 372, 302), ("cm3leon-760m", 785, 679), ("cm3leon-7b", 6723, 6442)],
)
def test_the_published_sizes_have_the_parameters_of_their_names(name, millions, blocks_only):
    """The table of docs/cm3leon.md; the paper's names are rounded, and leave open which matrices they count."""
    shape = CM3LEON_SHAPES[name]
    with outline():
        model = Transformer(shape)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert round(total / 1e6) == millions and round(12 * shape.layers * shape.width**2 / 1e6) == blocks_only
    assert total == 12 * shape.layers * shape.width**2 + (CM3LEON_VOCABULARY + shape.context) * shape.width
    printed = float(name.split("-")[1][:-1]) * (1e9 if name.endswith("b") else 1e6)
    assert total == pytest.approx(printed, rel=0.07) and EXPERIMENTS[name].model == shape
    assert f"{total:,}" in (ROOT / "docs" / "cm3leon.md").read_text()


def test_the_recipe_is_the_papers_where_it_says_one():
    for name, rate, steps in (("350m", 6e-4, 166_893), ("760m", 5e-4, 226_498), ("7b", 1.2e-4, 286_102)):
        experiment = EXPERIMENTS[f"cm3leon-{name}"]
        recipe = experiment.recipe
        assert (recipe.rate, recipe.warm_up, experiment.budget.steps) == (rate, 1500, steps)
        assert (recipe.betas, recipe.eps, recipe.weight_decay, recipe.clip) == ((0.9, 0.95), 1e-8, 0.1, 1.0)
        assert [recipe.schedule.multiplier(share) for share in (0, 0.5, 1)] == pytest.approx([1, 0.55, 0.1])
        assert experiment.objective.penalties == ()
    assert CM3LEON_DATA["rows"] * CM3LEON_DATA["context"] == 2**23 and CM3LEON_DATA["infill"] == 1


def test_the_block_has_no_biases_no_dropout_and_norms_without_parameters():
    model = Transformer(REDUCED)
    assert {name.rpartition(".")[2] for name, _ in model.named_parameters()} == {"weight"}
    names = {name for name, _ in model.named_parameters() if not name.startswith("blocks")}
    assert names == {"embedding.weight", "positions.weight"}  # the head is tied, and no norm has any
    kinds = {type(module) for module in model.modules()}
    assert nn.Dropout not in kinds and nn.RMSNorm not in kinds and nn.LayerNorm in kinds
    block: Any = blocks(model)[0]
    x_BTD = torch.randn(2, 3, 32)
    by_hand = torch.relu(x_BTD @ block.feed_forward.up.weight.T) @ block.feed_forward.down.weight.T
    torch.testing.assert_close(block.feed_forward(x_BTD), by_hand)
    assert blocks(Transformer(replace(REDUCED, fixes=(UngatedFeedForward("gelu"),))))[0].feed_forward(x_BTD).any()


def test_a_wrong_part_of_the_block_is_refused():
    with pytest.raises(ValueError, match=r"UngatedFeedForward.activation must be of type"):
        UngatedFeedForward("relu6")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"LearnedPositions.std must lie in 0..10; got -1"):
        LearnedPositions(std=-1.0)
    with pytest.raises(
        ValueError, match=r"BareNorms.* and NormReordering.*|NormReordering.* and BareNorms.* both want"
    ):
        Transformer(replace(REDUCED, fixes=(BareNorms(), NormReordering())))


@pytest.mark.parametrize("order", [1, -1])
def test_weights_are_drawn_from_a_normal_distribution_cut_off_at_three_deviations(order):
    """In whatever order the fixes are listed. The statistics can fail: they do for what is not cut off."""
    model = Transformer(
        replace(REDUCED, width=64, ffn_width=256, context=64, vocabulary=400, fixes=CM3LEON_BLOCK[::order])
    )
    for name, weight in model.named_parameters():
        if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
            assert not weight.any()  # "output layers are initialised as 0"
        else:
            std = 2e-4 if name.startswith("positions") else 0.006
            whole = stats.truncnorm(-3, 3, scale=std)
            assert weight.abs().max() <= 3 * std and stats.kstest(weight.detach().flatten(), whole.cdf).pvalue > 1e-4
    assert torch.equal(Transformer(REDUCED)(tokens(1, 5)), Transformer(REDUCED)(tokens(1, 5))) is False
    uncut = torch.empty(20_000).normal_(std=0.006)
    assert uncut.abs().max() > 3 * 0.006
    assert draw_truncated(uncut, 1.0, 0.5) is None and uncut.abs().max() <= 0.5


def test_a_model_of_this_block_begins_as_its_embedding_and_its_head():
    model, some_BT = Transformer(REDUCED), tokens(2, 7)
    embedded_BTD = model.embedding(some_BT) + model.positions.weight[:7]  # pyright: ignore[reportIndexIssue]
    torch.testing.assert_close(model.trunk(some_BT), nn.functional.layer_norm(embedded_BTD, (32,)))


def test_weights_that_are_drawn_later_are_those_that_would_have_been_drawn():
    """As FSDP does, where no process ever holds all of them."""
    torch.manual_seed(4)
    usual, after = Transformer(REDUCED).state_dict(), torch.rand(())
    torch.manual_seed(4)
    with weights_later():
        model = drawn_model(lambda: Transformer(REDUCED))
    assert torch.rand(()) == after
    draws = dict(vars(model)["draws"])
    for name, weight in model.named_parameters():
        assert weight.is_meta and torch.equal(draws[name].tensor(weight), usual[name])


# Positions


def test_the_same_words_at_another_place_mean_something_else_and_nothing_is_rotated():
    model = awake(replace(REDUCED, layers=1))  # two could tell the order from what the first sees at each place
    one_BT = tokens(1, 6)
    reordered_BT = one_BT[:, [2, 0, 1, 3, 4, 5]]
    assert not torch.allclose(model(one_BT)[0, -1], model(reordered_BT)[0, -1], atol=1e-3)
    with torch.no_grad():
        model.positions.weight.zero_()  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(model(one_BT)[0, -1], model(reordered_BT)[0, -1])  # a set of words, but for the last


def test_places_begin_anew_with_each_document_of_a_packed_row():
    model, first, second = awake(), tokens(1, 9), tokens(1, 8)
    documents_BT = torch.tensor([[0] * 9 + [1] * 8])
    packed_TV = model(torch.cat([first, second], 1), Packed(documents_BT))[0]
    torch.testing.assert_close(packed_TV, torch.cat([model(first)[0], model(second)[0]]))
    more_BT = torch.cat([first, second, first], 1)  # a row longer than the context, of documents that are not
    numbers_BT = torch.tensor([[0] * 9 + [1] * 8 + [2] * 9])
    torch.testing.assert_close(model(more_BT, Packed(numbers_BT))[0, 17:], model(first)[0])


@pytest.mark.parametrize("plain", [False, True])
@torch.inference_mode()
def test_a_cache_of_rows_at_different_places_gives_the_same_logits(plain):
    """In chunks and token by token, by the model itself and by its lean twin; the compiled step stands aside."""
    model, rows = awake(), [tokens(1, length)[0] for length in (24, 6, 17)]
    decoder, fed = Decoder(model, 3, plain=plain), [0, 0, 0]
    workers = set[str]()
    for width in (5, 1, 1, 4, 1, 6, 1, 1, 1, 1, 1, 1):
        news = [row[start : start + width] for row, start in zip(rows, fed, strict=True)]
        most = max(len(new) for new in news)
        padded_BT = torch.stack([torch.cat([new, torch.full((most - len(new),), 3)]) for new in news])
        logits_BTV = decoder.logits(decoder.feed(padded_BT, [len(new) for new in news]))
        workers.add(decoder.worker)
        for row, (new, start, logits_TV) in enumerate(zip(news, fed, logits_BTV, strict=True)):
            whole_TV = model(rows[row][None])[0, start : start + len(new)]
            torch.testing.assert_close(logits_TV[: len(new)], whole_TV, atol=2e-5, rtol=1e-4)
        fed = [start + len(new) for start, new in zip(fed, news, strict=True)]
    assert fed == [24, 6, 17] and workers == {"model" if plain else "lean"}
    decoder.rewind(0, 10)
    again_BT = torch.stack([rows[0][10:11], rows[1][:1], rows[2][:1]])
    logits_BTV = decoder.logits(decoder.trunk(again_BT[:1]))
    torch.testing.assert_close(logits_BTV[0, 0], model(rows[0][None])[0, 10], atol=2e-5, rtol=1e-4)


def test_beyond_the_learned_positions_there_is_one_clear_error(make_lab, lettered):
    model = awake()
    message = "lies beyond the 24 positions that this model learned"
    with pytest.raises(ValueError, match=f"Place 24 {message}"):
        model(tokens(1, 25))
    with pytest.raises(ValueError, match=f"Place 29 {message}"):
        Decoder(model, 1, room=30)
    with pytest.raises(ValueError, match=f"Place 24 {message}"):
        model(tokens(1, 26), Packed(torch.tensor([[0] + [1] * 25])))
    lab = make_lab(lettered, context=24, fixes=CM3LEON_BLOCK)
    with pytest.raises(ValueError, match="prompt has 25 tokens and the model's context holds 24"):
        lab.generate(Document.of("a" * 24))
    reply = lab.generate(Document.of("abca"), seed=1, modality="words")
    assert len(lab.encode(Document.of("abca") + reply)) <= 24  # the room ends where the positions do


# What else one does with a model


@pytest.fixture
def lab(make_lab, mixed) -> Chameleon:
    lab = make_lab(mixed, fixes=CM3LEON_BLOCK, tied=True)
    for name, weight in lab.model.named_parameters():
        nn.init.normal_(weight, std=0.3 if name.startswith("positions") else weight.shape[-1] ** -0.5)
    return lab


def test_a_reduced_model_trains(tmp_path):
    experiment = replace(
        LAB,
        model=replace(LAB.model, tied=True, fixes=CM3LEON_BLOCK),
        recipe=Recipe(rate=3e-3, eps=1e-8, warm_up=0, schedule=Constant()),
        budget=replace(LAB.budget, steps=15),
        checkpoints=0,
    )
    history = experiment.run(tmp_path / "run").wait()
    losses = history.series("loss")[1]
    assert losses[0] == pytest.approx(math.log(experiment.open().vocabulary.size), abs=0.5)
    assert np.mean(losses[-3:]) < 0.95 * losses[0]


def test_a_compiled_block_is_not_asked_to_turn_places(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)  # what it is given is what counts here
    plain, some_BT = awake(), tokens(2, 9)
    model: Any = awake().train()
    assert compile_blocks(model) == 3 * len(model.blocks)
    torch.testing.assert_close(model(some_BT), plain(some_BT))
    model(some_BT).logsumexp(-1).mean().backward()
    assert model.positions.weight.grad.any()


def test_a_saved_model_decodes_the_same_tokens(lab, tmp_path):
    lab.save(tmp_path / "model")
    again = Chameleon.load(tmp_path / "model")
    assert again.model.config == lab.model.config and isinstance(again.model.positions, PositionTable)

    def drawn(model: Chameleon, **settings) -> np.ndarray:
        request = Document.of("draw", EndTurn())
        return model.encode(model.generate(request, modality="picture", guidance=2.0, **settings))

    for seed in range(2):
        one, other = (drawn(each, seed=seed) for each in (lab, again))
        assert np.array_equal(one, other)
    with again.model.embedding.register_forward_hook(lambda *_: None):  # for a listener the model itself decodes
        assert np.array_equal(drawn(again, seed=1), one)
    assert np.array_equal(drawn(lab, seed=1, drafts=5), one)


def test_a_model_of_this_block_is_inspected(lab):
    look = lab.inspect(Document.of("a red circle"))
    last = len(look.tokens) - 1
    parts = look.contributions(last)
    logits_V = lab.model(torch.from_numpy(look.tokens[:last])[None])[0, -1].detach()
    assert sum(part.logit for part in parts) == pytest.approx(float(logits_V[look.tokens[last]]), abs=1e-3)
    assert not [part for part in parts if part.part == "rest"]
    assert look.scores.logs_T[-1] == pytest.approx(float(logits_V.log_softmax(-1)[look.tokens[last]]), abs=1e-4)


@pytest.mark.parametrize("format", ["huggingface", "meta", "lumina", "anole", "gguf"])
def test_a_format_that_cannot_hold_the_block_says_so(lab, format, tmp_path):
    target = tmp_path / ("model.gguf" if format == "gguf" else "model")
    with pytest.raises(ValueError, match=r"cannot express BareNorms.* or LearnedPositions.*Save it as 'native'"):
        lab.save(target, format=format)
    assert not target.exists()


def test_what_needs_a_gate_says_so_and_the_planner_needs_none():
    with pytest.raises(ValueError, match=r"UngatedFeedForward.* holds the matrix blocks\.0\.feed_forward\.gate_up"):
        quantize(awake(), 8)
    small = plan(REDUCED, training=Recipe(), context=16)
    assert small.parameters == sum(each.numel() for each in Transformer(REDUCED).parameters())
    assert plan(REDUCED, guidance="two-way").cache > 0
    with pytest.raises(
        ValueError, match=r"SigmaReparam.* divides the matrix gate_up, which a TwoMatrices has not: keep .* and Ungated"
    ):
        Transformer(replace(REDUCED, fixes=(*CM3LEON_BLOCK, SigmaReparam())))


# Traps of the public code, each of which this lab must not have (facebookresearch/metaseq; the branch in parentheses)

SMALL = Vocabulary.layout(12, 60)


def sentence(length: int, breaks: tuple[int, ...] = ()) -> np.ndarray:
    """A document of words, all different where there are enough, with a break at some places."""
    some = SMALL.first_text + np.arange(length) % (SMALL.size - SMALL.first_text)
    some[[0, *breaks]] = SMALL.begin_document, *[SMALL.begin_image] * len(breaks)
    return some


def spans_of(law: Spans, some: np.ndarray, count: int) -> list[list[Span]]:
    rng = np.random.default_rng(7)
    return [law.draw(some, rng, SMALL) for _ in range(count)]


def test_trap_no_span_between_breaks_is_a_plain_document_and_no_error():
    """(main: TypeError where none is drawn and spans must not cross a break)"""
    some = sentence(40, breaks=(10, 20))
    drawn = spans_of(Spans(), some, 300)
    assert 60 < sum(not spans for spans in drawn) < 170  # 1/e of them
    assert move_spans(TokenizedDocument(some, some > 0), [], SMALL).tokens is some
    assert not any(spans_of(Spans(mean=0), some, 20))


def test_trap_no_span_is_empty_and_no_token_is_lost():
    """(main: of several spans, empty ones stay, and each loses a token)"""
    rng = np.random.default_rng(1)
    for law in (Spans(mean=5), Spans(mean=5, exact=False)):
        for length in range(2, 40):
            some = sentence(length, breaks=(length // 2,) if length > 4 else ())
            for _ in range(5):
                rearranged = law.rearrange(some, rng, SMALL)
                assert np.array_equal(restore(rearranged, SMALL), some)
                assert sorted(rearranged[~np.isin(rearranged, added())].tolist()) == sorted(some.tolist())


def added() -> np.ndarray:
    """The tokens that rearranging adds."""
    return np.array([SMALL.end_image, *(SMALL.first_sentinel + np.arange(SMALL.sentinels))])


def test_trap_place_0_never_moves():
    """(the law itself, which a reader of the paper would not guess: a moved begin would be learned as a filling)"""
    assert all(span.start > 0 for spans in spans_of(Spans(mean=4), sentence(9), 400) for span in spans)


def test_trap_no_span_runs_from_a_picture_into_the_next_document():
    """(all branches: breaks are the only bounds, so that the next document's caption belongs to a picture's segment)"""
    one, other = sentence(20), sentence(20)
    block = np.concatenate([one, [SMALL.end_document], other, [SMALL.end_document]])
    ends = {int(place) for place in np.flatnonzero(np.isin(block, (SMALL.begin_document, SMALL.end_document)))}
    for spans in spans_of(Spans(mean=3), block, 300):
        assert not any(ends & set(range(*span)) for span in spans)
    assert all(not ends & set(range(*segment)) for segment in segments(block, SMALL))


def test_trap_what_has_no_room_is_left_where_it_was_and_never_cut():
    """(main cuts fillings, the CM3Leon branches the document's end: neither can be put back together)"""
    rng, longest = np.random.default_rng(3), 0
    document = TokenizedDocument(sentence(30), np.ones(30, bool))
    for room in (0, 1, 3, 7):
        for _ in range(40):
            moved = Spans(mean=6).rearrange_document(document, rng, SMALL, room)
            assert len(moved.tokens) <= 30 + room and np.array_equal(restore(moved.tokens, SMALL), document.tokens)
            longest = max(longest, len(moved.tokens))
    assert longest == 36
    rows = Mixture({"a": [document] * 40}, [Stage({"a": 1.0})], SMALL, context=40, rows=2, infill=1.0)
    assert all(rows(step).inputs_BT.shape == (2, 40) for step in range(10))


def test_trap_an_average_document_of_a_packed_row_is_rearranged_as_often_as_one_alone():
    """(all branches draw the number over 4,096 packed tokens, so that of 16 documents some 15 stay whole)"""
    documents = [TokenizedDocument(sentence(20), np.ones(20, bool)) for _ in range(64)]
    rows = Mixture({"a": documents}, [Stage({"a": 1.0})], SMALL, context=320, rows=1, infill=1.0)
    begins = sentinels = 0
    for step in range(12):
        inputs_T = rows(step).inputs_BT.numpy().ravel()
        begins += (inputs_T == SMALL.begin_document).sum()
        sentinels += (inputs_T == SMALL.first_sentinel).sum() / 2
    assert 0.5 < sentinels / begins < 0.75  # 1 - 1/e of them; drawn once a row, it would be a tenth of that


def test_trap_sentinels_are_learned_and_at_most_all_but_one_are_used():
    """(2022: the loss leaves them out, so that a model never learns where a filling is due)"""
    document = TokenizedDocument(sentence(200), np.ones(200, bool))
    rng = np.random.default_rng(5)
    moved = Spans(mean=3 * SMALL.sentinels).rearrange_document(document, rng, SMALL)
    sentinels = np.isin(moved.tokens, SMALL.first_sentinel + np.arange(SMALL.sentinels))
    assert 0 < sentinels.sum() / 2 <= SMALL.sentinels - 1 and moved.learn[sentinels].all()
    silent = Spans(mean=3, learn_sentinels=False).rearrange_document(document, rng, SMALL)
    sentinels = np.isin(silent.tokens, SMALL.first_sentinel + np.arange(SMALL.sentinels))
    assert sentinels.any() and not silent.learn[sentinels].any() and silent.learn[~sentinels].all()


def test_trap_words_that_look_like_image_codes_are_words(lab):
    """(image codes are written as words, "I12 ", and so is what a person writes like that)"""
    tokens_T = lab.encode(Document.of("I12 I7 <racm3:break> <sentinel:0> <eoss>"))
    vocabulary = lab.tokenizer.vocabulary
    assert not vocabulary.within_images[tokens_T].any() and not holds_sentinels(tokens_T, vocabulary)
    assert not vocabulary.is_break[tokens_T[1:]].any()


def test_trap_the_table_of_positions_has_a_row_for_each_place_and_no_more():
    """(places begin at 2, behind a row for padding, which a converter has to know)"""
    model: Any = Transformer(REDUCED)
    assert model.positions.weight.shape == (REDUCED.context, REDUCED.width)
    with torch.no_grad():
        model.positions.weight[0] += 1
    assert model.positions(torch.zeros(1, 2, 32), torch.arange(2)[None, :, None, None])[0, 0].mean() > 0.9


def test_trap_guidance_without_documents_masks_the_words_and_with_them_drops_the_query(lab):
    """(a branch of its own mends what the unconditional stream's prefix is)"""
    tokenizer, vocabulary = lab.tokenizer, lab.tokenizer.vocabulary
    query = lab.encode(Document.of("a red circle"))[1:].tolist()
    row = np.array([vocabulary.begin_document, *query, vocabulary.begin_image])
    (alone,) = TwoWay(3.0, masked_words).streams(row, tokenizer)
    assert alone.tolist() == [vocabulary.begin_document, vocabulary.first_sentinel, vocabulary.begin_image]
    document = lab.encode(Document.of("a blue square"))[1:].tolist()
    behind = np.array([vocabulary.begin_document, *document, vocabulary.end_turn, *query, vocabulary.begin_image])
    (rest,) = WithoutQuery(TwoWay(3.0), 2 + len(document)).streams(behind, tokenizer)
    assert rest.tolist() == [vocabulary.begin_document, *document, vocabulary.end_turn, vocabulary.begin_image]


def test_trap_contrastive_decoding_by_the_largest_share_is_greedy_and_by_the_kth_is_not():
    """(why the paper takes the k-th largest)"""
    strong_RV = torch.tensor([[4.0, 3.5, 3.0, -2.0]])
    logits_SRV = torch.stack([strong_RV, torch.zeros(1, 4)])
    greedy, wide = (Contrastive(alpha=1.0, k=k).mix(logits_SRV, [0.0]) for k in (1, 3))
    assert greedy.isfinite().sum() == 1 and greedy.argmax() == 0
    assert wide.isfinite()[0].tolist() == [True, True, True, False]


def test_trap_three_documents_and_a_query_exceed_the_context_and_it_is_said_what_is_left_out(lettered):
    """(four pictures of 1,024 tokens are the whole context, and the paper does not say what is cut)"""
    pair = Document.of("abc", Image(PIL.Image.new("RGB", (16, 16))))
    length = sum(map(lettered.length, pair))
    fits = put_before(pair, [pair] * 3, lettered, 4 * length)  # one token short: the document's begin
    assert fits.places == (0, 1) and "retrieved document 2 ('abc')" in fits.left_out[0]
    assert put_before(pair, [pair] * 3, lettered, 4 * length + 1).places == (0, 1, 2)
    assert CM3LEON_SHAPES["cm3leon-7b"].context < (3 + 1) * (1024 + 2)
    with pytest.raises(ValueError, match="nothing retrieved would fit before it"):
        put_before(pair, [pair], lettered, length)
