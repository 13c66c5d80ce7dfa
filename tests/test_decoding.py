"""Decoding: the lean stand-in computes what the model computes, whatever stands in its slots."""

from dataclasses import dataclass, replace

import pytest
import torch
from support import CONFIG
from test_transformer import feed, tokens
from torch import Tensor, nn

from chameleon_lab import decoding
from chameleon_lab.decoding import lean
from chameleon_lab.kv_cache import KVCache
from chameleon_lab.stability import (
    AttentionSoftCap,
    Dropout,
    EmbeddingNorm,
    LayerScale,
    NormReordering,
    OutputSoftCap,
    QueryKeyNorm,
    QueryKeyRMSNorm,
    Sandwich,
    SigmaReparam,
)
from chameleon_lab.taps import record
from chameleon_lab.transformer import Attention, Block, FeedForward, ModelConfig, Transformer

SHAPES = {
    "pre-norm": CONFIG,
    "bare": replace(CONFIG, fixes=()),
    "re-ordered": replace(CONFIG, fixes=(QueryKeyNorm(), NormReordering())),
    "grouped": replace(CONFIG, kv_heads=2),
    "grouped, without norms": replace(CONFIG, kv_heads=2, fixes=()),
    "one key head": replace(CONFIG, kv_heads=1, fixes=(QueryKeyRMSNorm(),)),
    "RMS norms of queries and keys": replace(CONFIG, fixes=(QueryKeyRMSNorm(),)),
    "capped": replace(CONFIG, fixes=(QueryKeyNorm(), AttentionSoftCap(2.0), OutputSoftCap(1.0))),
    "capped and grouped": replace(CONFIG, kv_heads=2, fixes=(AttentionSoftCap(2.0),)),
    "everything else": replace(
        CONFIG, fixes=(EmbeddingNorm(), Sandwich(), LayerScale(), Dropout(0.5), SigmaReparam(), QueryKeyNorm())
    ),
    "tied": replace(CONFIG, tied=True),
    "wider than what is paired": replace(CONFIG, width=2052, fixes=()),
}


def shaken(config: ModelConfig) -> Transformer:
    """A model whose norms and scales are no longer ones and zeros."""
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


@pytest.fixture(params=SHAPES.values(), ids=list(SHAPES))
def model(request) -> Transformer:
    return shaken(request.param)


def stepwise(model: Transformer, rows: list[Tensor], prompts: list[int]) -> list[Tensor]:
    """Logits of all positions: prompts at once, then a token a row and step, rows that are done standing still."""
    cache = KVCache(model.config, len(rows), model.head.weight)
    seen = [[logits_TV] for logits_TV in feed(model, cache, [row[:n] for row, n in zip(rows, prompts, strict=True)])]
    while any(length < len(row) for length, row in zip(cache.lengths, rows, strict=True)):
        news = [row[length : length + 1] for length, row in zip(cache.lengths.tolist(), rows, strict=True)]
        for kept, logits_TV in zip(seen, feed(model, cache, news), strict=True):
            kept.append(logits_TV)
    return [torch.cat(kept) for kept in seen]


@pytest.mark.parametrize("spare", [2**30, 0], ids=["repacked", "as they are"])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
@torch.inference_mode()
def test_steps_equal_the_whole_for_rows_of_one_length(model, count, spare, monkeypatch):
    monkeypatch.setattr(decoding, "SPARE", spare)
    rows = list(tokens(count, 14))
    for ours_TV, row in zip(stepwise(model, rows, [5] * count), rows, strict=True):
        torch.testing.assert_close(ours_TV, model(row[None])[0], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_steps_equal_the_whole_for_rows_of_any_lengths(model):
    rows = [tokens(1, length)[0] for length in (24, 3, 13, 20, 9)]
    for ours_TV, row in zip(stepwise(model, rows, [4, 1, 2, 6, 1]), rows, strict=True):
        torch.testing.assert_close(ours_TV, model(row[None])[0], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_steps_in_bfloat16_are_as_near_as_its_rounding(model):
    model = model.to(torch.bfloat16)
    rows = list(tokens(2, 10))
    for ours_TV, row in zip(stepwise(model, rows, [4, 4]), rows, strict=True):
        whole_TV = model(row[None])[0]
        assert (ours_TV - whole_TV).abs().max() < 0.05 * whole_TV.abs().max()


@torch.inference_mode()
def test_long_contexts_take_another_kernel_to_the_same_logits():
    model = shaken(replace(CONFIG, context=1100))
    row_T = tokens(1, 1100)[0]
    cache = KVCache(model.config, 1, model.head.weight)
    feed(model, cache, [row_T[:1020]])
    ours = [feed(model, cache, [row_T[place : place + 1]])[0] for place in range(1020, 1030)]  # 1024 lies between
    torch.testing.assert_close(torch.cat(ours), model(row_T[None])[0, 1020:1030], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_row_that_goes_back_forgets(model):
    row_T, other_T = tokens(1, 12)[0], tokens(1, 3)[0]
    cache = KVCache(model.config, 2, model.head.weight)
    feed(model, cache, [row_T, row_T[:4]])
    cache.rewind(0, 7)
    ours_TV = feed(model, cache, [other_T, row_T[4:7]])
    torch.testing.assert_close(ours_TV[0], model(torch.cat((row_T[:7], other_T))[None])[0, 7:], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(ours_TV[1], model(row_T[None])[0, 4:7], atol=2e-5, rtol=1e-4)
    for length in (-1, 11):
        with pytest.raises(ValueError, match=f"A row of 10 positions cannot go back to {length}"):
            cache.rewind(0, length)


@torch.inference_mode()
def test_taps_hear_decoding_and_change_nothing(model):
    row_T = tokens(1, 6)[0]
    cache = KVCache(model.config, 1, model.head.weight)
    feed(model, cache, [row_T[:4]])
    with record(model, "blocks.1.attention.query_tap", "head") as seen:
        heard_TV = feed(model, cache, [row_T[4:5]])[0]
    assert seen["blocks.1.attention.query_tap"].shape == (1, 1, 4, 8)
    assert torch.equal(seen["head"].flatten(), heard_TV.flatten()) or not isinstance(model.cap, nn.Identity)
    seen.clear()
    after_TV = feed(model, cache, [row_T[5:]])[0]
    assert not seen
    torch.testing.assert_close(torch.cat((heard_TV, after_TV)), model(row_T[None])[0, 4:], atol=2e-5, rtol=1e-4)


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@dataclass(frozen=True)
class Odd:
    """Fills slots with a module that nobody here knows."""

    def install(self, model: Transformer) -> None:
        for block in (module for module in model.modules() if isinstance(module, Block)):
            for slot in ("attention_post_norm", "ffn_pre_norm"):
                model.fill(block, slot, Halved(), self)
            model.fill(block.attention, "query_norm", Halved(), self)
            model.fill(block.feed_forward, "down", nn.Linear(model.config.ffn_width, model.config.width), self)


@torch.inference_mode()
def test_modules_that_are_not_known_are_called_as_they_are():
    model = shaken(replace(CONFIG, fixes=(Odd(),)))
    row_T = tokens(1, 9)[0]
    torch.testing.assert_close(stepwise(model, [row_T], [3])[0], model(row_T[None])[0], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_step_runs_no_module_but_those_that_are_not_known(monkeypatch):
    called = []
    plain = nn.Module.__call__
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *given: called.append(type(self)) or plain(self, *given))
    model = shaken(replace(CONFIG, fixes=(QueryKeyNorm(), LayerScale())))
    cache = KVCache(model.config, 1, model.head.weight)
    outputs_BTD = model.trunk(tokens(1, 1), cache)
    model.logits(outputs_BTD, cache)
    assert {kind.__name__ for kind in called} == {"Scale"}


def test_training_is_not_touched_by_a_stand_in():
    model = shaken(CONFIG)
    sample_BT = tokens(2, 7)
    modules = list(model.modules())
    lean(model, through=(Transformer, Block, Attention, FeedForward))
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    model(sample_BT).square().mean().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    cache = KVCache(model.config, 2, model.head.weight)
    assert model(sample_BT, cache).requires_grad  # the model itself computes where gradients are on
    assert not cache.keys.requires_grad


@pytest.mark.parametrize("rows", [1, 2, 5])  # the products are different ones
@torch.no_grad()
def test_weights_changed_in_place_are_seen_by_a_cache_that_lives(rows):
    model = shaken(CONFIG)
    sample_BT = tokens(rows, 1)
    cache = KVCache(model.config, rows, model.head.weight)
    before_BTV = model(sample_BT, cache)
    for parameter in model.parameters():
        parameter.mul_(1.5)
    after_BTV = model(sample_BT, cache)
    torch.testing.assert_close(after_BTV, model(sample_BT), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(before_BTV, after_BTV, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_an_optimizers_steps_are_seen_by_old_and_new_caches(rows, dtype):
    model = shaken(CONFIG).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, fused=True)
    sample_BT = tokens(rows, 1)
    cache = KVCache(model.config, rows, model.head.weight)
    for _ in range(3):
        with torch.inference_mode():
            for seen in (cache, KVCache(model.config, rows, model.head.weight)):
                whole_BTV, near = model(sample_BT), 1e-4 if dtype == torch.float32 else 0.05
                assert (model(sample_BT, seen) - whole_BTV).abs().max() < near * whole_BTV.abs().max()
        model(sample_BT).logsumexp(-1).mean().backward()
        optimizer.step()
        assert not torch.allclose(model(sample_BT), whole_BTV, atol=0.2)


@pytest.mark.parametrize("rows", [1, 2, 5])
@torch.no_grad()
def test_weights_that_were_moved_and_changed_are_seen_by_a_cache_that_lives(rows):
    model = shaken(CONFIG)
    sample_BT = tokens(rows, 1)
    cache = KVCache(model.config, rows, model.head.weight)
    model(sample_BT, cache)
    model.to(torch.float64).to(torch.float32)
    for parameter in model.parameters():
        parameter.mul_(1.5)
    torch.testing.assert_close(model(sample_BT, cache), model(sample_BT), atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_dropout_that_is_on_drops_while_decoding_too():
    model = shaken(replace(CONFIG, fixes=(Dropout(0.9),)))
    cache = KVCache(model.config, 1, model.head.weight)
    steady_TV = feed(model, cache, [tokens(1, 3)[0]])[0]
    assert torch.isfinite(steady_TV).all()
    row_T = tokens(1, 3)[0]
    model.train()
    draws = []
    for _ in range(2):
        cache.rewind(0, 0)
        draws.append(feed(model, cache, [row_T])[0])
    assert not torch.allclose(*draws)
