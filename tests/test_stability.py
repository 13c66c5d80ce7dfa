"""Stability fixes: they fill slots, say when they quarrel, and do what the paper says."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from chameleon_lab import stability
from chameleon_lab.stability import Dropout, NormReordering, QueryKeyNorm, QueryKeyRMSNorm, ZLoss
from chameleon_lab.taps import record
from chameleon_lab.transformer import ModelConfig, Transformer

CONFIG = ModelConfig(
    vocabulary=50, width=32, layers=3, heads=4, kv_heads=2, head_width=8, ffn_width=48, context=24, fixes=()
)
TOKENS_BT = torch.arange(24).view(2, 12)
SLOTS = ("attention_post_norm", "attention_dropout", "ffn_post_norm", "ffn_dropout")


def build(*fixes) -> Transformer:
    return Transformer(replace(CONFIG, fixes=fixes))


def test_without_fixes_every_optional_slot_is_an_identity():
    model = build()
    for block in stability.blocks(model):
        assert all(type(getattr(block, slot)) is nn.Identity for slot in SLOTS)
        assert type(block.attention.query_norm) is type(block.attention.key_norm) is nn.Identity
    assert len(stability.blocks(model)) == len(stability.attentions(model)) == 3


@pytest.mark.parametrize(("fix", "kind"), [(QueryKeyNorm(), nn.LayerNorm), (QueryKeyRMSNorm(), nn.RMSNorm)])
def test_query_key_norms_bound_every_attention_logit(fix, kind):
    model = build(fix)
    for attention in stability.attentions(model):
        assert type(attention.query_norm) is type(attention.key_norm) is kind
        assert attention.query_norm is not attention.key_norm
        assert attention.query_norm.weight.shape == (8,)
        nn.init.normal_(attention.qkv.weight, std=100.0)
    with record(model, "blocks.*.attention.*_tap") as seen:
        model(TOKENS_BT)
    assert all(value.norm(dim=-1).max() <= 8**0.5 + 1e-4 for value in seen.values())


def test_layer_norm_of_queries_takes_out_the_mean_and_rms_norm_does_not():
    for fix, centred in ((QueryKeyNorm(), True), (QueryKeyRMSNorm(), False)):
        with record(model := build(fix), "blocks.*.attention.query_norm") as seen:
            model(TOKENS_BT)
        assert all((value.mean(-1).abs().max() < 1e-5) == centred for value in seen.values())


def test_re_ordering_moves_the_norms_behind_the_branches():
    model = build(NormReordering())
    for block in stability.blocks(model):
        assert type(block.attention_pre_norm) is type(block.ffn_pre_norm) is nn.Identity
        assert type(block.attention_post_norm) is type(block.ffn_post_norm) is nn.RMSNorm
    nn.init.normal_(model.blocks[0].feed_forward.down.weight, std=1000.0)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    with record(model, "blocks.0", "blocks.0.ffn_post_norm") as seen:
        model(TOKENS_BT)
    assert torch.allclose(seen["blocks.0.ffn_post_norm"].square().mean(-1), torch.ones(2, 12), atol=1e-3)
    assert seen["blocks.0"].abs().max() < 20  # a branch adds at most a normed vector, however large its weights
    count = [sum(parameter.numel() for parameter in m.parameters()) for m in (build(), model)]
    assert count[0] == count[1]


def test_dropout_acts_in_training_only():
    model = build(Dropout(0.5)).eval()
    once_BTV = model(TOKENS_BT)
    assert torch.equal(once_BTV, model(TOKENS_BT))
    assert torch.equal(once_BTV, same_weights(build(), model)(TOKENS_BT))
    model.train()
    assert not torch.equal(model(TOKENS_BT), model(TOKENS_BT))


def test_dropout_keeps_the_mean_of_a_branch_and_never_touches_the_residual():
    model = build(Dropout(0.3)).train()
    with record(model, "blocks.1.feed_forward", "blocks.1.ffn_dropout") as seen:
        model(TOKENS_BT)
    before, after = seen["blocks.1.feed_forward"], seen["blocks.1.ffn_dropout"]
    kept = after != 0
    assert 0.6 < kept.float().mean() < 0.8
    assert torch.allclose(after[kept], before[kept] / 0.7)
    with record(model, "embedding", "blocks.0", "blocks.0.*_dropout") as seen:
        model(TOKENS_BT)
    whole = seen["embedding"] + seen["blocks.0.attention_dropout"] + seen["blocks.0.ffn_dropout"]
    assert torch.allclose(seen["blocks.0"], whole, atol=1e-6)


def same_weights(model: Transformer, other: Transformer) -> Transformer:
    model.load_state_dict(other.state_dict())
    return model.eval()


def test_z_loss_is_the_squared_log_partition():
    logits_XV = torch.randn(5, 7, requires_grad=True)
    penalty_X = ZLoss(1e-2).penalty(logits_XV)
    log_z_X = logits_XV.exp().sum(-1).log()
    assert torch.allclose(penalty_X, 1e-2 * log_z_X**2)
    (gradient_XV,) = torch.autograd.grad(penalty_X.sum(), logits_XV)
    assert torch.allclose(gradient_XV, 2e-2 * log_z_X[:, None] * logits_XV.softmax(-1), atol=1e-6)
    assert torch.allclose(ZLoss().penalty(torch.zeros(1, 7) - torch.log(torch.tensor(7.0))), torch.zeros(1), atol=1e-12)


@pytest.mark.parametrize(
    ("one", "other", "slot"),
    [
        (QueryKeyNorm(), QueryKeyRMSNorm(), "attention.query_norm"),
        (Dropout(0.1), Dropout(0.2), "attention_dropout"),
        (NormReordering(), NormReordering(), "attention_post_norm"),
    ],
)
def test_two_fixes_on_one_slot_are_an_error_that_names_both(one, other, slot):
    with pytest.raises(ValueError) as caught:
        build(one, other)
    assert repr(one) in str(caught.value) and repr(other) in str(caught.value) and slot in str(caught.value)


def test_fixes_on_different_slots_live_together():
    fixes = (QueryKeyNorm(), NormReordering(), Dropout(0.1))
    assert build(*fixes).config.fixes == fixes
    assert torch.isfinite(build(*fixes)(TOKENS_BT)).all()


@dataclass(frozen=True)
class ScaledBranches:
    """A fix as a user would write one in a notebook cell."""

    scale: float = 0.5

    def install(self, model: Transformer) -> None:
        for block in stability.blocks(model):
            model.fill(block, "ffn_post_norm", nn.RMSNorm(model.config.width), self)


def test_a_users_own_fix_is_installed_like_ours():
    model = build(ScaledBranches())
    assert all(type(block.ffn_post_norm) is nn.RMSNorm for block in stability.blocks(model))
    with pytest.raises(ValueError, match=r"ScaledBranches\(scale=0.5\) and NormReordering"):
        build(NormReordering(), ScaledBranches())
