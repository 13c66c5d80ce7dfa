"""What inspection says of a model is what the model does: rows, lenses, knock-outs, attributions written out."""

import copy
import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from chameleon_lab import planner
from chameleon_lab.attention import SOFTMAX, UNCAPPED
from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.generation.engine import Engine
from chameleon_lab.generation.grammar import Grammar
from chameleon_lab.generation.guidance import ThreeWay
from chameleon_lab.generation.settings import Settings
from chameleon_lab.inspection import Inspection, add, effects, put, rollout, silence, trace
from chameleon_lab.quantization import quantize
from chameleon_lab.stability import (
    AttentionSink,
    AttentionSoftCap,
    LayerScale,
    NormReordering,
    OutputSoftCap,
    QueryKeyNorm,
    Sandwich,
    SigmaReparam,
    Softpick,
)
from chameleon_lab.taps import Tap, change, record
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import ByteTokenizer
from chameleon_lab.transformer import CAUSAL, ModelConfig, Transformer
from chameleon_lab.vocabulary import Modality, Vocabulary

KINDS = {
    "plain": {},
    "multi-head": {"kv_heads": 4},
    "query/key norm": {"fixes": (QueryKeyNorm(),)},
    "caps": {"fixes": (AttentionSoftCap(5.0), OutputSoftCap(3.0))},
    "re-ordered": {"fixes": (NormReordering(), QueryKeyNorm())},
    "sandwich": {"fixes": (Sandwich(), LayerScale(0.5))},
    "sigma": {"fixes": (SigmaReparam(),)},
    "softpick": {"fixes": (Softpick(),)},
    "sink": {"fixes": (AttentionSink(),)},
    "int8": {},
    "int4": {"width": 128, "ffn_width": 128, "head_width": 32},
    "bfloat16": {},
}
ROUGH = {"int8": 1e-3, "int4": 0.05, "bfloat16": 0.05}
"""Nats that a sum in another order may differ by, where products are rounded; elsewhere 0.0001."""


@pytest.fixture(params=KINDS, ids=str)
def kind(request) -> str:
    return request.param


@pytest.fixture
def tokens(mixed) -> np.ndarray:
    """begin, words, an image of 4 x 4, words."""
    vocabulary, rng = mixed.vocabulary, np.random.default_rng(5)
    words = [vocabulary.token_of_piece(int(piece)) for piece in rng.integers(0, 256, 9)]
    codes = vocabulary.tokens_of_codes(rng.integers(0, 12, 16))
    return np.array(
        [0, *words[:5], vocabulary.begin_image, *codes, vocabulary.end_image, vocabulary.end_turn, *words[5:]]
    )


@pytest.fixture
def model(mixed, kind) -> Transformer:
    torch.manual_seed(4)
    config = ModelConfig(mixed.vocabulary.size, 32, 3, 4, 2, 8, 48, 160)
    model = Transformer(dataclasses.replace(config, **KINDS[kind])).eval()
    if kind == "bfloat16":
        return model.to(torch.bfloat16)
    return quantize(model, int(kind[-1])) if kind in ("int8", "int4") else model


@pytest.fixture
def near(kind) -> float:
    return ROUGH.get(kind, 1e-4)


@pytest.fixture
def look(model, mixed, tokens) -> Inspection:
    return Inspection(model, mixed, tokens)


def plain_logits(model, tokens, hidden_TT=None, layer=None, head=None):
    """logits_TV of a forward pass whose attention is written out, with edges hidden."""

    class Plain:
        def turns(self, tokens_BT, config):
            return CAUSAL.turns(tokens_BT, config)

        def attend(self, at, q, k, v, cap=UNCAPPED, softmax=SOFTMAX):
            shared = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
            scores = cap(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1).expand(scores.shape).clone()
            if hidden_TT is not None and layer in (None, at):
                mask[:, slice(None) if head is None else head] |= hidden_TT
            return softmax(scores.masked_fill(mask, -torch.inf)) @ v

    with torch.inference_mode():
        return model(torch.as_tensor(tokens)[None], Plain())[0]


def test_probabilities_ranks_and_entropies_are_those_of_the_logits(model, look, tokens, near):
    logs_TV = plain_logits(model, tokens).double().log_softmax(-1)
    own = logs_TV[:-1].gather(-1, torch.as_tensor(tokens[1:, None]))
    assert np.isnan(look.log_probabilities[0]) and look.ranks[0] == -1
    np.testing.assert_allclose(look.log_probabilities[1:], own[:, 0], atol=near)
    np.testing.assert_allclose(look.entropies[1:], torch.special.entr(logs_TV[:-1].exp()).sum(-1), atol=near)
    for position in (1, 8, len(tokens) - 1):
        (first, share), *rest = look.alternatives(position, 4)
        assert len(rest) == 3 and share >= rest[0][1]
        np.testing.assert_allclose(share, logs_TV[position - 1].exp().max(), atol=near / 10)
        assert first == int(logs_TV[position - 1].argmax())
    best = [position for position in range(1, len(tokens)) if look.alternatives(position, 1)[0][0] == tokens[position]]
    assert best == np.flatnonzero(look.ranks == 0).tolist()


def test_all_rollouts_are_each_one(look):
    rows_TT = look.rollouts()
    for position in (0, 7, len(look) - 1):
        np.testing.assert_allclose(rows_TT[position, : position + 1], look.rollout(position), atol=1e-6)
    assert not np.triu(rows_TT, 1).any()


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_rollout_is_the_product_of_all_layers_in_blocks_of_any_size_or_a_row_at_a_time(look, rows, monkeypatch):
    monkeypatch.setattr(trace, "WEIGHTS_AT_ONCE", rows * len(look) * look.depth[1])
    monkeypatch.setattr(rollout, "COLUMNS_AT_ONCE", 4 * rows)
    want_TT = np.eye(len(look))
    for layer in range(look.depth[0]):
        mean_TT = np.stack([np.pad(look.heads(layer, at).mean(0), (0, len(look) - at - 1)) for at in range(len(look))])
        want_TT = (want_TT + mean_TT @ want_TT) / 2
    shares, first_TT = list[float](), np.eye(len(look))
    assert look.rollout_so_far(3)[1] == 0 and look.rollout_so_far(3)[0].tolist() == [0, 0, 0, 1]
    for share in look.rollout_steps():
        shares.append(share)
        if share * look.depth[0] == 1:  # the first layer is done, and nothing of the second
            first_TT += np.stack(
                [np.pad(look.heads(0, at).mean(0), (0, len(look) - at - 1)) for at in range(len(look))]
            )
            for position in (0, 4):
                row, column = look.rollout_so_far(position), look.rollout_so_far(position, readers=True)
                assert row[1] == column[1] == 1
                np.testing.assert_allclose(row[0], first_TT[position, : position + 1] / 2, atol=1e-5)
                np.testing.assert_allclose(column[0], first_TT[position:, position] / 2, atol=1e-5)
    assert len(shares) == look.depth[0] * -(-len(look) // rows) and shares == sorted(shares) and shares[-1] == 1
    assert not [*look.rollout_steps()]
    np.testing.assert_allclose(look.rollouts(), want_TT, atol=1e-5)
    monkeypatch.setattr("chameleon_lab.inspection.rows.SQUARE_BYTES", 0)
    alone = Inspection(look.model, look.tokenizer, look.tokens)
    for position in (0, 4, len(look) - 1):
        for each in (look, alone):
            np.testing.assert_allclose(each.rollout(position), want_TT[position, : position + 1], atol=1e-5)
            np.testing.assert_allclose(each.rollout_readers(position), want_TT[position:, position], atol=1e-5)
    with pytest.raises(ValueError, match=r"all of \d+ positions take too much memory"):
        alone.rollouts()


def test_images_and_codes_have_their_look(look, mixed, tokens):
    codes = mixed.vocabulary.codes_of_tokens(tokens[look.modalities == Modality.IMAGE]).reshape(4, 4)
    np.testing.assert_array_equal(look.image(), mixed.image.decode(codes))
    begin, decode = list(tokens).index(mixed.vocabulary.begin_image), mixed.image.decode
    codes[2, 3] = 5
    token = int(mixed.vocabulary.tokens_of_codes(np.array(5)))
    picture = decode(codes)
    width, height = picture.width // 4, picture.height // 4
    box = (3 * width, 2 * height, 4 * width, 3 * height)
    np.testing.assert_array_equal(look.swatch(token, begin + 12), picture.crop(box))
    np.testing.assert_array_equal(look.swatch(token, 2), decode(np.full((2, 2), 5)))
    assert look.swatch(tokens[1], 2) is None and look.depth == (3, 4)
    with pytest.raises(ValueError, match="no image 1"):
        look.image(1)


def test_attention_rows_are_those_of_an_explicit_softmax(model, look, tokens):
    with record(model, "blocks.*.attention.query_tap", "blocks.*.attention.key_tap") as taps, torch.inference_mode():
        model(torch.as_tensor(tokens)[None])
    for layer in range(3):
        attention = model.blocks[layer].attention
        q_THK, k_TGK = (taps[f"blocks.{layer}.attention.{which}_tap"][0].double() for which in ("query", "key"))
        for head, position in ((0, 0), (1, 5), (3, len(tokens) - 1)):
            keys = k_TGK[: position + 1, head // (attention.heads // attention.kv_heads)]
            scores = attention.cap((keys @ q_THK[position, head]) / attention.head_width**0.5).float()
            row = attention.softmax(scores.expand(1, 4, 1, -1))[0, head, 0].detach()
            np.testing.assert_allclose(look.attention(layer, head, position), row, atol=1e-5)
            assert look.readers(layer, head, position)[0] == pytest.approx(row[-1].item(), abs=1e-5)
    whole = [look.attention(1, 2, position) for position in range(len(tokens))]
    np.testing.assert_allclose(look.readers(1, 2, 4), [row[4] for row in whole[4:]], atol=1e-6)


def test_shares_sum_over_words_patches_and_sinks(look, tokens, mixed):
    shares, row = look.shares(2, 1, 20), look.attention(2, 1, 20)
    assert sum(dataclasses.astuple(shares)) == pytest.approx(row.sum(), abs=1e-5)
    assert shares.sinks == pytest.approx(row[0] + row[6], abs=1e-6)
    assert shares.words == pytest.approx(row[1:6].sum(), abs=1e-6)
    assert shares.patches == pytest.approx(row[7:21].sum(), abs=1e-6)


def test_the_last_layers_lens_is_the_output_and_others_read_the_stream(model, look, tokens, mixed):
    with torch.inference_mode():
        np.testing.assert_allclose(look.lens(2), model(torch.as_tensor(tokens)[None])[0], atol=1e-5)
    with record(model, "blocks.0") as taps, torch.inference_mode():
        model(torch.as_tensor(tokens)[None])
        expected = model.logits(model.norm(taps["blocks.0"]))[0]
    np.testing.assert_allclose(look.lens(0), expected, atol=1e-5)
    np.testing.assert_array_equal(look.lens(0, slice(4, 6)), look.lens(0)[4:6])
    layers = look.lens_alternatives(9, 3)
    assert len(layers) == 3 and layers[0][0][0] == look.lens(0)[8].argmax()
    last, alternatives = ([share for _, share in each] for each in (layers[-1], look.alternatives(9, 3)))
    np.testing.assert_allclose(last, alternatives, rtol=1e-3)
    first, count = mixed.vocabulary.first_image, mixed.vocabulary.codes
    best = look.lens(1)[6:22, first : first + count].argmax(-1)
    assert np.array_equal(look.codes(1).ravel(), mixed.vocabulary.codes_of_tokens(best + first))
    assert look.picture(1).size == (16, 16)


def test_a_knock_out_is_a_fresh_forward_pass_with_the_token_masked(model, look, tokens, near):
    of = 20
    for position in (0, 3, 6, 12, of - 1):
        hidden = torch.zeros(of, of, dtype=torch.bool)
        hidden[:, position] = True
        hidden[position, position] = False
        log = plain_logits(model, tokens[:of], hidden)[-1].double().log_softmax(-1)[tokens[of]].item()
        assert look.without(position, of=of) == pytest.approx(log - look.log_probabilities[of], abs=near)
    assert look.effects(of).shape == (of,)
    assert look.effects(of, [3, 12])[1] == pytest.approx(look.without(12, of=of), abs=1e-5)
    assert look.without(of + 2, of=of) == pytest.approx(0, abs=near)


def test_tokens_knocked_out_together_are_hidden_together_for_every_token_after_them(model, look, tokens, near):
    together = [2, 4, 9]
    hidden = torch.zeros(20, 20, dtype=torch.bool)
    hidden[:, together] = True
    hidden[together, together] = False
    log = plain_logits(model, tokens[:20], hidden)[-1].double().log_softmax(-1)[tokens[20]].item()
    expected = log - look.log_probabilities[20]
    assert look.without(together, of=20) == pytest.approx(expected, abs=near)
    changes_GT = look.knock_outs([together, 5, [12, 13]])
    assert changes_GT.shape == (3, len(tokens)) and np.isnan(changes_GT[:, 0]).all()
    assert changes_GT[0, 20] == pytest.approx(expected, abs=near)
    for of in (6, 14, len(tokens) - 1):
        np.testing.assert_allclose(changes_GT[:, of], look.effects(of, [together, 5, [12, 13]]), atol=2 * near)
    assert np.abs(changes_GT[1, 1:6]).max() < near  # nothing before it changes


def test_batches_of_any_size_knock_out_alike(look, near, monkeypatch):
    at_once = look.effects(20), look.knock_outs([3, [4, 5], 6])
    monkeypatch.setattr(effects, "EDGES_AT_ONCE", 900)
    np.testing.assert_allclose(look.effects(20), at_once[0], atol=2 * near)
    np.testing.assert_allclose(look.knock_outs([3, [4, 5], 6]), at_once[1], atol=2 * near)


def test_a_silent_head_is_one_whose_part_of_the_output_matrix_is_nought(model, mixed, look, tokens, near, kind):
    quiet = Inspection(model, mixed, tokens, changes=silence((1, 2), (1, 0), (2, 3)))
    if look.quantized or kind == "sigma":  # packed, or computed anew from other weights
        assert np.abs(quiet.log_probabilities[1:] - look.log_probabilities[1:]).max() > 0
        return
    other, width = copy.deepcopy(model), model.config.head_width
    with torch.no_grad():
        for layer, head in ((1, 2), (1, 0), (2, 3)):
            other.blocks[layer].attention.out.weight[:, head * width : (head + 1) * width] = 0
    expected = Inspection(other, mixed, tokens)
    np.testing.assert_allclose(quiet.log_probabilities[1:], expected.log_probabilities[1:], atol=near)


def test_patching_puts_one_vector_of_the_stream_in_place_of_another(model, mixed, look, tokens, near):
    changed_words = tokens.copy()
    changed_words[3] += 1
    other, of = Inspection(model, mixed, changed_words), 20
    changes_LP = look.patching(other, of)
    assert changes_LP.shape == (3, of)
    assert np.abs(changes_LP[0, :3]).max() < near  # what came before the other word is the same
    for layer, place in ((0, 3), (1, 3), (1, 12), (2, of - 1)):
        patch = {f"blocks.{layer}": put(other.stream(layer), {place: place})}
        there = Inspection(model, mixed, tokens, changes=patch).log_probabilities[of]
        assert changes_LP[layer, place] == pytest.approx(there - look.log_probabilities[of], abs=near)
    # From a patch to a word, and read at another token
    crossed = look.patching(other, of, token=int(tokens[4]), places={3: 12})
    patch = {"blocks.1": put(other.stream(1), {3: 12})}
    logits_V = torch.as_tensor(Inspection(model, mixed, tokens, changes=patch).lens(2)[of - 1]).log_softmax(-1)
    before_V = torch.as_tensor(look.lens(2)[of - 1]).log_softmax(-1)
    assert crossed[1, 0] == pytest.approx((logits_V - before_V)[tokens[4]].item(), abs=near)
    assert look.patching(look, of, places={}).shape == (3, 0)


def test_a_cut_edge_is_a_fresh_forward_pass_with_that_edge_masked(model, look, tokens, near):
    hidden = torch.zeros(20, 20, dtype=torch.bool)
    hidden[19, 4] = True
    log = plain_logits(model, tokens[:20], hidden, layer=1, head=2)[-1].double().log_softmax(-1)[tokens[20]].item()
    assert look.cut(1, 2, 4, 19, of=20) == pytest.approx(log - look.log_probabilities[20], abs=near)


def test_a_joint_knock_out_is_a_fresh_forward_pass_with_all_those_tokens_masked(model, look, tokens, near):
    for out in ([3], [4, 12, 5], [0, 20]):
        hidden = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
        hidden[:, out] = True
        hidden.fill_diagonal_(False)
        logs_TV = plain_logits(model, tokens, hidden).double().log_softmax(-1)
        want = logs_TV[np.arange(len(tokens) - 1), tokens[1:]].numpy() - look.log_probabilities[1:]
        want[: min(out)] = 0
        changes = look.knock_out(out)
        assert np.isnan(changes[0])
        np.testing.assert_allclose(changes[1:], want, atol=near)
        (token, share), *_ = look.alternatives(22, 3, without=out)
        assert share == pytest.approx(logs_TV[21].exp().max().item(), abs=near)
        assert share == pytest.approx(logs_TV[21, token].exp().item(), abs=near)
    assert look.knock_out([7])[25] == pytest.approx(look.without(7, of=25), abs=near)


def test_contributions_sum_to_the_logit(model, look, tokens, near):
    logits_TV = plain_logits(model, tokens)
    for position, token in ((1, None), (9, None), (25, 3)):
        parts = look.contributions(position, token)
        logit = logits_TV[position - 1, tokens[position] if token is None else token].item()
        assert sum(part.logit for part in parts) == pytest.approx(logit, abs=1e-3 if near < 1e-3 else near)
        assert len([part for part in parts if part.part != "rest"]) == 1 + 3 * (4 + 1)
        own = look.lens(2)[position - 1, tokens[position] if token is None else token]
        assert sum(part.logit for part in parts) == pytest.approx(own, abs=1e-4)
        layers = look.contributions(position, token, by_head=False)
        assert sum(part.logit for part in layers) == pytest.approx(own, abs=1e-4)
        for layer, part in enumerate(each for each in layers if each.part == "attention"):
            heads = sum(each.logit for each in parts if each.layer == layer and each.part == "head")
            assert part.logit == pytest.approx(heads, abs=1e-4 if near < 1e-3 else near)


def test_rollout_sums_to_one_and_relevance_follows_gradients(look, kind):
    assert look.rollout(20).shape == (21,)
    assert look.rollout(20).sum() == pytest.approx(1, abs=1e-4) or kind in ("softpick", "sink")
    if look.quantized:
        with pytest.raises(ValueError, match="no gradients"):
            look.relevance(20)
    else:
        relevance = look.relevance(20)
        assert relevance.shape == (20,) and np.isfinite(relevance).all() and (relevance >= 0).all()


@pytest.mark.parametrize("kind", ["plain"])
def test_the_gradient_of_a_weight_is_that_of_autograd(model, look, tokens):
    """Through one layer, relevance is the positive part of weight times gradient, written out with autograd."""
    alone = Transformer(dataclasses.replace(model.config, layers=1)).eval()
    look = Inspection(alone, look.tokenizer, tokens)
    weights: list[torch.Tensor] = []

    class Kept:
        def turns(self, tokens_BT, config):
            return CAUSAL.turns(tokens_BT, config)

        def attend(self, at, q, k, v, cap=UNCAPPED, softmax=SOFTMAX):
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            weights.append(
                scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
            )
            return weights[-1] @ v

    logits_TV = alone(torch.as_tensor(tokens[:20])[None], Kept())[0]
    (slope,) = torch.autograd.grad(logits_TV[-1].log_softmax(-1)[tokens[20]], weights)
    expected = (weights[0] * slope).clamp_min(0)[0, :, -1].mean(0).detach()
    expected[-1] += 1
    np.testing.assert_allclose(look.relevance(20), expected, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"int8", "int4", "bfloat16"}))
def test_relevance_is_what_autograd_through_all_layers_at_once_gives(model, look, tokens):
    weights: list[torch.Tensor] = []

    class Weighed:
        def turns(self, tokens_BT, config):
            return CAUSAL.turns(tokens_BT, config)

        def attend(self, at, q, k, v, cap=UNCAPPED, softmax=SOFTMAX):
            shared = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
            mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
            weights.append(softmax(cap(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(mask, -torch.inf)))
            return weights[-1] @ v

    logits_TV = model(torch.as_tensor(tokens[:20])[None], Weighed())[0]
    slopes = torch.autograd.grad(logits_TV[-1].log_softmax(-1)[tokens[20]], weights)
    relevance_TS = torch.eye(20)
    for weight_1HTS, slope_1HTS in zip(weights, slopes, strict=True):
        relevance_TS = relevance_TS + (weight_1HTS * slope_1HTS).clamp_min(0)[0].mean(0).detach() @ relevance_TS
    np.testing.assert_allclose(look.relevance(20), relevance_TS[-1], atol=1e-5)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["plain", "query/key norm"])
def test_a_packed_row_is_seen_as_its_documents(model, mixed, tokens):
    short = np.concatenate([tokens, tokens[:15]])
    documents = np.repeat([0, 1], [len(tokens), 15])
    look, alone = Inspection(model, mixed, short, documents_T=documents), Inspection(model, mixed, tokens[:15])
    start = len(tokens)
    np.testing.assert_allclose(look.log_probabilities[start + 1 :], alone.log_probabilities[1:], atol=1e-4)
    row = look.attention(1, 0, start + 9)
    assert row[:start].max() == 0
    np.testing.assert_allclose(row[start:], alone.attention(1, 0, 9), atol=1e-5)
    assert look.without(start + 4, of=start + 9) == pytest.approx(alone.without(4, of=9), abs=1e-4)
    assert look.without(4, of=start + 9) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["plain"])
def test_readings_name_every_word_and_cell(look, tokens, mixed):
    readings = look.readings
    assert [each.position for each in readings] == list(range(len(tokens)))
    cells = [(each.image, each.row, each.column) for each in readings if each.modality == Modality.IMAGE]
    assert cells == [(0, *divmod(at, 4)) for at in range(16)]
    assert (
        readings[6].words == "begin_image"
        and readings[7].words == f"code {mixed.vocabulary.codes_of_tokens(tokens[7:8])[0]}"
    )
    assert readings[0].log_probability is None and readings[1].rank == look.ranks[1]


@pytest.mark.parametrize("kind", ["plain"])
def test_steering_and_patching_change_what_follows(model, mixed, tokens, look):
    direction = np.random.default_rng(0).normal(size=32).astype(np.float32)
    steered = Inspection(model, mixed, tokens, changes={"blocks.0": add(direction, slice(4, 5))})
    np.testing.assert_array_equal(steered.log_probabilities[1:5], look.log_probabilities[1:5])
    assert np.abs(steered.log_probabilities[5:] - look.log_probabilities[5:]).max() > 1e-4
    other = Inspection(model, mixed, np.concatenate([tokens[:4], tokens[5:]]))
    streams = {f"blocks.{layer}": put(look.stream(layer), {at: at for at in range(len(tokens) - 1)}) for layer in (2,)}
    patched = Inspection(model, mixed, other.tokens, changes=streams)
    np.testing.assert_allclose(patched.lens(2), look.lens(2)[:-1], atol=1e-5)
    with change(model, {"blocks.*.attention.out": torch.zeros_like}), torch.inference_mode():
        alone = model(torch.as_tensor(tokens[3:4])[None])
        assert torch.allclose(model(torch.as_tensor(tokens)[None])[:, 3], alone[:, 0], atol=1e-5)


def _look_under(look: Inspection, changed) -> Inspection:
    return Inspection(look.model, look.tokenizer, look.tokens, changes={"blocks.0": changed})


def _look_of_width(look: Inspection, width: int) -> Inspection:
    return Inspection(
        Transformer(dataclasses.replace(look.model.config, width=width)).eval(), look.tokenizer, look.tokens
    )


@pytest.mark.parametrize("kind", ["plain"])
@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda look: look.alternatives(0), "nothing comes before"),
        (lambda look: look.attention(3, 0, 1), "layer lies in 0..2"),
        (lambda look: look.attention(0, 4, 1), "head lies in 0..3"),
        (lambda look: look.attention(0, 0, 99), "position lies in"),
        (lambda look: look.lens(-1), "layer lies in"),
        (lambda look: look.picture(0, 1), "There is no image 1"),
        (lambda look: look.cut(0, 0, 5, 3, of=9), "An edge goes from an earlier"),
        (lambda look: look.cut(0, 0, [], 3, of=9), "An edge goes from an earlier"),
        (lambda look: look.cut(0, 7, 1, 3, of=9), "head lies in 0..3, not at 7"),
        (lambda look: look.without([2, 40], of=9), "position lies in 0..28, not at 40"),
        (lambda look: look.without(2, of=0), "nothing comes before"),
        (lambda look: look.knock_outs([-1]), "position lies in 0..28, not at -1"),
        (lambda look: look.alternatives(5, 0), "k is how many alternatives"),
        (lambda look: look.lens_alternatives(5, -2), "k is how many alternatives"),
        (lambda look: look.contributions(29), "position lies in 1..28, not at 29"),
        (lambda look: look.relevance(0), "nothing comes before"),
        (lambda look: look.patching(look, 9, places={9: 2}), "A place goes from 0..8 here to 0..28"),
        (lambda look: look.guided(9), "No guidance"),
        (lambda look: look.attention(0, 0, 2.5), "position is an integer, not 2.5"),
        (lambda look: look.attention("1", 0, 2), "layer is an integer, not '1'"),
        (lambda look: look.alternatives(5, 2.0), "k is an integer, not 2.0"),
        (lambda look: look.picture(0, 0.5), "image is an integer, not 0.5"),
        (lambda look: look.without(2.7, of=9), "Positions are integers, not 2.7"),
        (lambda look: look.knock_outs([np.arange(29) < 3]), "Positions are integers.* of bool"),
        (lambda look: look.patching(look, 9, places={2.5: 2}), "place is an integer, not 2.5"),
        (lambda look: look.patching(look, 9, token=-1), "Token ids must lie in"),
        (lambda look: look.patching(_look_of_width(look, 16), 9), r"\(3, 16\), does not fit into one of \(3, 32\)"),
        (lambda look: look.contributions(9, -1), "Token ids must lie in"),
        (lambda look: look.words(9999), "Token ids must lie in"),
        (lambda look: look.swatch(-1, 9), "Token ids must lie in"),
        (lambda look: put(look.stream(0), {2: -1}), "not from 2 to -1"),
        (lambda look: put(look.stream(0), {-1: 2}), "not from -1 to 2"),
        (lambda look: _look_under(look, add(np.ones(7))), r"\[7\] numbers do not fit into a stream of width 32"),
        (lambda look: _look_under(look, put(np.ones((9, 5)), {2: 2})), "do not fit into a stream of width 32"),
        (lambda look: Inspection(look.model, look.tokenizer, [0] * 161), "A document of 161 tokens.*1 to 160"),
        (lambda look: Inspection(look.model, look.tokenizer, []), "A document of 0 tokens"),
        (lambda look: Inspection(look.model, look.tokenizer, [0, 9999]), "9999"),
        (lambda look: Inspection(look.model, look.tokenizer, [0, 1], documents_T=np.zeros(3)), "has 3 numbers"),
        (lambda look: Inspection(look.model, look.tokenizer, [0, 1], changes=silence((0, 4))), "head lies in 0..3"),
        (lambda look: Inspection(look.model, look.tokenizer, [0, 1], changes=silence((9, 0))), "No submodule matches"),
    ],
)
def test_what_is_not_there_is_said(look, ask, words):
    with pytest.raises(ValueError, match=words):
        ask(look)


@pytest.mark.parametrize("guidance", [2.5, ThreeWay(3.0, 1.5)], ids=["two-way", "three-way"])
def test_guidance_is_what_the_engine_drew_from(make_lab, mixed, guidance):
    """The first code of a reply with temperature 0 is the likeliest with guidance, cell by cell."""
    lab = make_lab(mixed)
    session = lab.begin(
        Document.of("a b", EndTurn()),
        temperature=0.0,
        guidance=guidance,
        grammar=Grammar(mixed.vocabulary, mixed.grid[0] * mixed.grid[1], text=False, min_images=1),
    )
    list(session.stream())
    look = lab.inspect(session)
    cells = [each for each in look.readings if each.image is not None]
    assert len(cells) >= 16
    for cell in cells[:16]:
        token, with_it, without_it = look.guided(cell.position, 1)[0]
        assert token == cell.token and 0 <= without_it <= 1 and 0 < with_it <= 1
    with pytest.raises(ValueError, match="k is how many"):
        look.guided(cells[0].position, -3)


def test_a_document_is_inspected_as_it_is_scored(lab):
    document = Document.of("a red circle", EndTurn())
    look = lab.inspect(document)
    assert np.array_equal(look.tokens, lab.encode(document))
    np.testing.assert_allclose(look.log_probabilities[1:], lab.score(document).logs_T, atol=1e-5)


def test_scores_by_modality_are_those_of_the_lab(lab):
    document = Document.of("a red circle", EndTurn())
    look = lab.inspect(document)
    assert look.scores.mean == pytest.approx(lab.score(document).mean, abs=1e-5)
    assert look.scores.of(Modality.TEXT).total == pytest.approx(lab.score(document).of(Modality.TEXT).total, abs=1e-4)
    np.testing.assert_allclose(look.probabilities[1:], np.exp(lab.score(document).logs_T), atol=1e-5)


@pytest.mark.parametrize("document", [Document(), Document.of("a"), Document.of(EndTurn())], ids=["0", "1", "end"])
def test_a_document_of_a_token_or_two_answers_everything_or_says_why_not(lab, document):
    look = lab.inspect(document)
    last = len(look) - 1
    assert look.rollout(last).shape == (last + 1,) and look.rollout(last).sum() == pytest.approx(1)
    assert look.rollout_readers(0).shape == (len(look),) and look.attention(1, 3, 0).tolist() == [1.0]
    assert look.lens(1).shape == (len(look), lab.vocabulary.size) and look.grids == []
    assert look.knock_outs([0]).shape == (1, len(look)) and len(look.readings) == len(look)
    asks = (look.alternatives, look.contributions, look.relevance, look.effects, look.lens_alternatives)
    if last == 0:
        for ask in asks:
            with pytest.raises(ValueError, match=r"has 1 token\(s\): none of them comes after another"):
                ask(0)
    else:
        assert all(len(ask(1)) for ask in asks) and look.effects(1, []).shape == (0,)


def test_an_image_under_way_is_shown_as_far_as_it_is(lab, mixed):
    codes = np.random.default_rng(2).integers(0, 12, 16)
    tokens = lab.encode(Document.of("a b"))
    tokens = np.concatenate([tokens, [mixed.vocabulary.begin_image], mixed.vocabulary.tokens_of_codes(codes)])
    for count in range(1, 17):
        look = Inspection(lab.model, mixed, tokens[: len(tokens) - 16 + count])
        expected = codes.copy()
        for cell in range(count, 16):
            expected[cell] = expected[cell - 4] if cell >= 4 else expected[cell - 1]
        np.testing.assert_array_equal(look.image(), mixed.image.decode(expected.reshape(4, 4)))
        whole, part = Inspection(lab.model, mixed, tokens).codes(1).ravel(), look.codes(1).ravel()
        np.testing.assert_array_equal(part[:count], whole[:count])
        swatch = look.swatch(int(tokens[-1]), len(look) - 1)
        assert look.picture(1).size == (16, 16) and swatch is not None and swatch.size == (4, 4)
    with pytest.raises(ValueError, match="has none of its 16 codes yet"):
        Inspection(lab.model, mixed, tokens[:-16]).image()


def test_images_of_different_grids_have_their_own_cells_and_lenses(make_lab, image_tokenizer):
    words = Vocabulary.layout(12, 256, largest_side=8)
    tokenizer, rng = MixedModalTokenizer(ByteTokenizer(), image_tokenizer, words), np.random.default_rng(0)
    lab, grids = make_lab(tokenizer), [(2, 4), (4, 2), (6, 8)]
    parts = [rng.integers(0, 12, grid) for grid in grids]
    document = Document.of("a", *(Image(image_tokenizer.decode(codes), codes) for codes in parts))
    look = lab.inspect(document)
    assert look.grids == grids
    for image, (codes, (rows, columns)) in enumerate(zip(parts, grids, strict=True)):
        np.testing.assert_array_equal(look.image(image), image_tokenizer.decode(codes))
        assert look.codes(0, image).shape == codes.shape and look.picture(1, image).size == (columns * 4, rows * 4)
        cells = [(each.row, each.column) for each in look.readings if each.image == image]
        assert cells == [(row, column) for row in range(rows) for column in range(columns)]
        best_TV = look.lens(1)[look.cells(image) - 1, words.first_image : words.first_image + 12]
        np.testing.assert_array_equal(look.codes(1, image).ravel(), best_TV.argmax(-1))


def test_a_session_is_inspected_as_far_as_it_is_written_and_as_its_window_showed_it(make_lab, mixed):
    lab = make_lab(mixed)
    turns = [part for word in ("aa", "bb", "cc", "dd") for part in (word, EndTurn())]
    document = Document.of(*turns, "ee", EndTurn())
    session = lab.begin(document, temperature=0.0, window=8, max_tokens=5)
    next(session.stream())
    look = lab.inspect(session)
    assert np.array_equal(look.tokens, session.tokens)
    recent = lab.encode(lab.recent(document, session.settings))
    assert len(recent) < len(lab.encode(document)) and np.array_equal(look.tokens[: len(recent)], recent)


class OwnAttention(nn.Module):
    """Two heads without an output matrix, over the average of a query and a key alone."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.kv_heads, self.head_width = layer, 2, 2, 16
        self.query_tap, self.key_tap, self.cap, self.softmax = Tap(), Tap(), nn.Identity(), nn.Softmax(dim=-1)

    def forward(self, x_BTD, turns_BT1K, context):
        q, k, v = (each(x_BTD.unflatten(-1, (2, 16))).transpose(1, 2) for each in (self.query_tap, self.key_tap, Tap()))
        return context.attend(self.layer, q, k, v, self.cap, self.softmax).transpose(1, 2).flatten(2)


@dataclasses.dataclass(frozen=True)
class OwnParts:
    """An attention and a feed-forward of one's own, in block 1."""

    def install(self, model: Transformer) -> None:
        model.fill(model.blocks[1], "attention", OwnAttention(1), self)
        model.fill(model.blocks[1], "feed_forward", nn.Sequential(nn.Linear(32, 32), nn.Tanh()), self)


def test_parts_of_ones_own_are_inspected_and_what_cannot_be_taken_apart_says_so(mixed, tokens):
    model = Transformer(ModelConfig(mixed.vocabulary.size, 32, 3, 2, 2, 16, 48, 160, fixes=(OwnParts(),))).eval()
    look = Inspection(model, mixed, tokens)
    q_HTK, k_HTK, _ = look.heads_of(1)
    np.testing.assert_allclose(look.attention(1, 1, 7), (q_HTK[1, 7] @ k_HTK[1, :8].T / 4).softmax(-1), atol=1e-5)
    assert look.relevance(9).shape == (9,) and look.rollout(9).sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match=r"attention of layer 1, a OwnAttention, has no matrix `out`.*by_head=False"):
        look.contributions(9)
    parts = look.contributions(9, by_head=False)
    assert len(parts) == 7 and sum(part.logit for part in parts) == pytest.approx(look.lens(2)[8, tokens[9]], abs=1e-3)
    model.blocks[0].attention_scale = nn.Tanh()
    with pytest.raises(ValueError, match=r"blocks.0.attention_scale holds a Tanh, which is no multiplication"):
        Inspection(model, mixed, tokens).contributions(9)


LONG = ModelConfig(300, 16, 2, 4, 2, 4, 16, 4096)


@pytest.mark.parametrize(
    "fixes",
    [pytest.param((), id="plain"), pytest.param((AttentionSoftCap(5.0),), id="cap", marks=pytest.mark.slow)],
)
def test_a_look_at_4096_positions_never_holds_the_attention_of_all_layers(fixes, mixed):
    """Whatever is asked for: at most the weights of a layer's heads, counted by following every tensor's storage."""
    config = dataclasses.replace(LONG, vocabulary=mixed.vocabulary.size, fixes=fixes)
    model, length = Transformer(config).eval(), config.context
    tokens = np.random.default_rng(0).integers(4, 16, length)
    of_layer = 4 * config.heads * length**2
    CAUSAL._mask(length, torch.device("cpu"))  # one for all models
    with planner._Ledger() as ledger:
        look = Inspection(model, mixed, tokens)
        held = ledger.now
        mask = 4 * length**2 * bool(fixes)  # the model's own, one for all layers and heads
        assert held - mask < 2 * 4 * (config.layers + 2) * length * config.width  # the streams, and little else
        for ask in (
            lambda: look.attention(1, 2, length - 1),
            lambda: look.readers(1, 2, 0),
            lambda: look.rollout(length - 1),
            lambda: look.lens(1, slice(-256, None)),
            lambda: look.without([5, 9], of=length - 1),
            lambda: look.contributions(length - 1),
            lambda: look.alternatives(length - 1),
        ):
            ledger.peak = ledger.now
            ask()
            assert ledger.peak - ledger.now < of_layer
        assert ledger.now < held + trace.BLOCK_BYTES + 1.1 * 4 * length**2  # rollout's one square
        if not fixes:
            ledger.peak = ledger.now
            assert look.relevance(length - 1).shape == (length - 1,) and ledger.peak - ledger.now < of_layer


@pytest.fixture
def talk(make_lab, mixed) -> Inspection:
    """begin, a user's turn of words and a picture, the reply drawn to it, and a second turn of the user's."""
    lab = make_lab(mixed)
    prompt = Document.of("a b", Image(PIL.Image.new("RGB", (16, 16), "red")), "c", EndTurn())
    settings = Settings(temperature=1.0, guidance=2.0, max_tokens=30)
    reply = lab.begin(prompt, settings=settings, seed=3)
    list(reply.stream())
    end = [] if reply.tokens[-1] == mixed.vocabulary.end_turn else [mixed.vocabulary.end_turn]
    tokens = np.array([*reply.tokens, *end, *lab.encode(Document.of("d e", EndTurn()))[1:]])
    return Inspection(lab.model, lab.tokenizer, tokens, guide=settings.guide, settings=settings)


def test_a_branch_keeps_what_was_before_and_is_what_the_engine_would_write(talk, mixed):
    """In any turn, at any token: `branch` is the engine's own reply to the prompt, with the prefix in front of it."""
    vocabulary, rng = mixed.vocabulary, np.random.default_rng(0)
    ends = np.flatnonzero(talk.tokens == vocabulary.end_turn)
    engine = Engine(talk.model, talk.tokenizer)
    for position in range(int(ends[0]) + 2, min(int(ends[0]) + 12, len(talk) - 1)):
        seed = int(rng.integers(99))
        branch = talk.branch(position, seed=seed)
        assert np.array_equal(branch.tokens[:position], talk.tokens[:position])
        start = int(ends[ends < position][-1]) + 1
        if (ends < position).sum() % 2:
            steps = engine.tokens([talk.tokens[:start]], talk.settings, [seed], prefix=talk.tokens[start:position])
            want = [token for _, token, _ in steps if token is not None]
            assert branch.tokens[position:].tolist()[: len(want)] == want and len(branch) - position - len(want) <= 1
        assert branch.settings == talk.settings and branch.guide == talk.guide


def test_a_token_forced_in_a_users_turn_leaves_the_rest_of_the_turn(talk, mixed):
    vocabulary = mixed.vocabulary
    stop = int(np.flatnonzero(talk.tokens == vocabulary.end_turn)[0])
    words = [at for at in range(1, stop) if talk.modalities[at] == Modality.TEXT]
    token = vocabulary.token_of_piece(90)
    want = talk.tokens[: stop + 1].copy()
    want[words[1]] = token
    branch = talk.branch(words[1], token, seed=5)
    assert np.array_equal(branch.tokens[: stop + 1], want)
    assert np.array_equal(branch.tokens, talk.branch(words[1], token, seed=5).tokens), "the same seed, the same reply"
    cell = int(np.flatnonzero(talk.modalities == Modality.IMAGE)[2])
    code = int(vocabulary.tokens_of_codes(np.array(7)))
    assert talk.branch(cell, code).tokens[cell] == code
    assert np.array_equal(talk.branch(words[0]).tokens[: stop + 1], talk.tokens[: stop + 1])
    less = talk.branch(words[2], without=words[1:3]).tokens
    assert np.array_equal(less[: stop - 1], np.delete(talk.tokens[: stop + 1], words[1:3]))
    short = talk.branch(words[1], vocabulary.end_turn).tokens
    assert np.array_equal(short[: words[1] + 1], [*talk.tokens[: words[1]], vocabulary.end_turn])


def test_a_branch_in_a_picture_goes_on_with_that_picture(make_lab, mixed):
    lab, vocabulary = make_lab(mixed), mixed.vocabulary
    rows, columns = mixed.grid
    codes = vocabulary.tokens_of_codes(np.arange(rows * columns) % 12)
    tokens = [0, vocabulary.token_of_piece(70), vocabulary.end_turn, vocabulary.begin_image, *codes]
    look = Inspection(lab.model, mixed, [*tokens, vocabulary.end_image, vocabulary.end_turn])
    for position in (4, 9, len(tokens) - 1):
        forced = int(vocabulary.tokens_of_codes(np.array(11)))
        branch = look.branch(position, forced, seed=1)
        assert branch.tokens[: position + 1].tolist() == [*tokens[:position], forced]
        assert (branch.modalities[4 : 4 + len(codes)] == Modality.IMAGE).all()
        assert branch.tokens[4 + len(codes)] == vocabulary.end_image
    with pytest.raises(ValueError, match="lies within a picture"):
        look.branch(9, vocabulary.end_turn)
    with pytest.raises(ValueError, match="cannot begin with this prefix"):
        look.branch(9, vocabulary.token_of_piece(70))
    with pytest.raises(ValueError, match="Only words can be left out"):
        look.branch(9, without=[5])
    ended = look.branch(len(tokens) + 1, vocabulary.end_document)
    assert ended.tokens.tolist() == [*tokens, vocabulary.end_image, vocabulary.end_document]


def test_a_branch_counts_its_tokens_and_stops_when_its_caller_does(talk):
    counts: list[int] = []

    def each(count: int) -> None:
        counts.append(count)
        if count == 3:
            raise KeyboardInterrupt

    position = int(np.flatnonzero(talk.tokens == talk.tokenizer.vocabulary.end_turn)[0]) + 1
    with pytest.raises(KeyboardInterrupt):
        talk.branch(position, each=each)
    assert counts == [1, 2, 3]
    steered = Inspection(talk.model, talk.tokenizer, talk.tokens, changes={"blocks.0": lambda x_BTD: x_BTD})
    with pytest.raises(ValueError, match="without `changes`"):
        steered.branch(4)
    with pytest.raises(TypeError, match="No setting is called heat"):
        talk.branch(4, heat=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("seed", range(4))
def test_a_branch_is_drawn_from_the_turns_that_the_window_leaves_and_holds_them_all(make_lab, mixed, seed):
    """From the reply's first token on, a branch is what the lab writes to the same conversation, window or none."""
    lab, rng = make_lab(mixed), np.random.default_rng(seed)
    parts = [part for _ in range(2 * int(rng.integers(1, 4)) + 1) for part in ("ab "[: rng.integers(1, 4)], EndTurn())]
    prompt = Document.of(*parts)
    length = len(lab.encode(prompt))
    for window in (None, 1, *rng.integers(2, length + 2, 3).tolist()):
        settings = Settings(temperature=1.0, window=window, max_tokens=6)
        reply = lab.begin(prompt, settings=settings, seed=seed)
        list(reply.stream())
        look = Inspection(lab.model, mixed, [*lab.encode(prompt), 70, 71], settings=settings)
        branch = look.branch(length, seed=seed)
        assert np.array_equal(branch.tokens[:length], lab.encode(prompt))
        written = reply.tokens[len(lab.encode(lab.recent(prompt, settings))) :]
        assert np.array_equal(branch.tokens[length:], written)


def test_the_labs_settings_and_its_licence_hold_for_branches(lab):
    look = lab.inspect(Document.of("a red circle", EndTurn()), guidance=3.0)
    assert look.settings == lab.settings.changed(guidance=3.0) and look.guide == look.settings.guide
    silent = Chameleon(lab.model, lab.tokenizer, card={"licence": "Chameleon Research License"})
    assert look.images and not silent.inspect(Document.of("a", EndTurn())).images


def test_outputs_are_those_of_the_thread_that_asked():
    """Two threads of a notebook, a widget's and a cell's, may look into one model at the same time."""
    model = Chameleon.load("tiny").model
    name, part = next(each for each in model.named_modules() if isinstance(each[1], nn.Linear))
    assert isinstance(part, nn.Linear)
    with torch.no_grad(), trace.outputs_of(model, [name]) as outputs:
        own = part(torch.ones(1, part.in_features))
        other = threading.Thread(target=lambda: part(torch.zeros(2, part.in_features)))
        other.start()
        other.join()
    assert outputs[name] is own


def test_two_threads_that_ask_for_heads_at_once_run_each_block_once_and_get_the_same(monkeypatch: pytest.MonkeyPatch):
    """Room for one block alone: what one thread asks for is what the other's answer pushes out."""
    monkeypatch.setattr(trace, "BLOCK_BYTES", 1)
    look = Chameleon.load("tiny").inspect(Document.of("draw a red circle left of a blue square", EndTurn()))
    alone = [look.heads_of(layer) for layer in range(look.depth[0])]
    runs, together, most, gate = 0, 0, 0, threading.Lock()
    again = look._heads_again

    def watched(layer: int) -> trace.HeadValues:
        nonlocal runs, together, most
        with gate:
            runs, together = runs + 1, together + 1
            most = max(most, together)
        time.sleep(0.001)  # the others come meanwhile
        heads = again(layer)
        with gate:
            together -= 1
        return heads

    monkeypatch.setattr(look, "_heads_again", watched)
    with ThreadPoolExecutor(4) as threads:
        asked = [layer for _ in range(6) for layer in (0, 1, 1, 0, 2)]
        heads = [*threads.map(look.heads_of, asked)]
    for layer, one in zip(asked, heads, strict=True):
        assert all(torch.equal(mine, own) for mine, own in zip(one, alone[layer], strict=True))
    assert most == 1 and runs <= len(asked)
    monkeypatch.setattr(trace, "BLOCK_BYTES", 2**26)
    look.heads_of(3)
    runs = 0
    with ThreadPoolExecutor(4) as threads:
        assert len({id(each) for each in threads.map(look.heads_of, [3] * 8)}) == 1
    assert runs == 0
