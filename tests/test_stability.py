"""Stability fixes: they fill slots, say when they quarrel, and do what the paper says."""

from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chameleon_lab import stability
from chameleon_lab.by_modality import dense_names, places_of
from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.packing import Batch
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.monitors.watch import Moment, watching
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import Recipe, tuned
from chameleon_lab.stability import (
    FIXES,
    AttentionSoftCap,
    Dropout,
    EmbeddingNorm,
    LayerScale,
    MaxZLoss,
    MixtureOfTransformers,
    NormReordering,
    OutputSoftCap,
    QKClip,
    QueryKeyNorm,
    QueryKeyRMSNorm,
    Sandwich,
    SigmaReparam,
    ZLoss,
    about,
    kind,
)
from chameleon_lab.taps import record
from chameleon_lab.transformer import ModelConfig, Transformer
from chameleon_lab.vocabulary import Vocabulary

CONFIG = ModelConfig(
    vocabulary=50, width=32, layers=3, heads=4, kv_heads=2, head_width=8, ffn_width=48, context=24, fixes=()
)
TOKENS_BT = torch.arange(24).view(2, 12)
SLOTS = [f"{branch}_{slot}" for branch in ("attention", "ffn") for slot in ("post_norm", "scale", "dropout")]
INSTALLED: dict[str, Any] = {name: fix for name, fix in FIXES.items() if kind(fix) == "model"}
INSTALLED["mixture_of_transformers"] = MixtureOfTransformers(first_image=4, codes=12)
installed = pytest.mark.parametrize("fix", INSTALLED.values(), ids=list(INSTALLED))


def build(*fixes) -> Transformer:
    return Transformer(replace(CONFIG, fixes=fixes))


def test_without_fixes_every_optional_slot_is_an_identity():
    model = build()
    for block in stack(model):
        assert all(type(getattr(block, slot)) is nn.Identity for slot in SLOTS)
        assert all(type(getattr(block.attention, slot)) is nn.Identity for slot in ("query_norm", "key_norm", "cap"))
    assert type(model.embedding_norm) is type(model.cap) is nn.Identity
    assert len(stability.blocks(model)) == len(attentions(model)) == 3


@pytest.mark.parametrize(("fix", "kind"), [(QueryKeyNorm(), nn.LayerNorm), (QueryKeyRMSNorm(), nn.RMSNorm)])
def test_query_key_norms_bound_every_attention_logit(fix, kind):
    model = build(fix)
    for attention in attentions(model):
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
    for block in stack(model):
        assert type(block.attention_pre_norm) is type(block.ffn_pre_norm) is nn.Identity
        assert type(block.attention_post_norm) is type(block.ffn_post_norm) is nn.RMSNorm
    nn.init.normal_(stack(model)[0].feed_forward.down.weight, std=1000.0)
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


def stack(model: Transformer) -> list[Any]:
    """The blocks, whatever fills their slots."""
    return list(stability.blocks(model))


def attentions(model: Transformer) -> list[Any]:
    return list(stability.attentions(model))


def same_weights(model: Transformer, other: Transformer, strict: bool = True) -> Transformer:
    model.load_state_dict(other.state_dict(), strict=strict)
    return model.eval()


def test_z_loss_is_the_squared_log_partition():
    logits_XV = torch.randn(5, 7, requires_grad=True)
    penalty_X = ZLoss(1e-2).penalty(logits_XV)
    log_z_X = logits_XV.exp().sum(-1).log()
    assert torch.allclose(penalty_X, 1e-2 * log_z_X**2)
    (gradient_XV,) = torch.autograd.grad(penalty_X.sum(), logits_XV)
    assert torch.allclose(gradient_XV, 2e-2 * log_z_X[:, None] * logits_XV.softmax(-1), atol=1e-6)
    assert torch.allclose(ZLoss().penalty(torch.zeros(1, 7) - torch.log(torch.tensor(7.0))), torch.zeros(1), atol=1e-12)


def test_max_z_loss_is_the_squared_greatest_logit_and_pulls_it_alone():
    logits_XV = torch.randn(5, 7, requires_grad=True)
    penalty_X = MaxZLoss(0.25).penalty(logits_XV)
    assert torch.allclose(penalty_X, 0.25 * logits_XV.max(-1).values ** 2)
    (gradient_XV,) = torch.autograd.grad(penalty_X.sum(), logits_XV)
    assert torch.equal(gradient_XV != 0, logits_XV == logits_XV.amax(-1, keepdim=True))
    falling_XV = logits_XV.detach() + 20
    for _ in range(200):
        falling_XV.requires_grad_()
        (gradient_XV,) = torch.autograd.grad(MaxZLoss(0.25).penalty(falling_XV).sum(), falling_XV)
        falling_XV = (falling_XV - gradient_XV).detach()
    assert falling_XV.max() < 2


def test_sandwich_norms_what_a_branch_takes_and_what_it_gives():
    model = build(Sandwich())
    for block in stack(model):
        norms = [getattr(block, f"{branch}_{side}_norm") for branch in ("attention", "ffn") for side in ("pre", "post")]
        assert all(type(norm) is nn.RMSNorm for norm in norms) and len({id(norm) for norm in norms}) == 4
        nn.init.normal_(block.feed_forward.down.weight, std=1000.0)
    with record(model, "embedding", "blocks.2", "blocks.*_pre_norm", "blocks.*_post_norm") as seen:
        model(TOKENS_BT)
    for name, value_BTD in seen.items():
        if name.endswith("_norm"):
            assert torch.allclose(value_BTD.square().mean(-1), torch.ones(2, 12), atol=1e-2)
    assert (seen["blocks.2"] - seen["embedding"]).norm(dim=-1).max() <= 6 * 32**0.5 + 1e-3


@pytest.mark.parametrize("start", [0.1, 1e-6])
def test_layer_scale_starts_small_so_that_blocks_hardly_change_the_residual(start):
    model, bare = build(LayerScale(start)), build()
    assert (stack(model)[1].ffn_scale.weight_D == start).all()
    with record(
        same_weights(model, bare, strict=False), "embedding", "blocks.0.feed_forward", "blocks.0.ffn_scale"
    ) as seen:
        model(TOKENS_BT)
    assert torch.allclose(seen["blocks.0.ffn_scale"], start * seen["blocks.0.feed_forward"])
    with record(model, "embedding", "blocks.2") as seen, record(bare, "embedding", "blocks.2") as without:
        model(TOKENS_BT)
        bare(TOKENS_BT)
    change, change_without = (each["blocks.2"] - each["embedding"] for each in (seen, without))
    assert change.norm() < 2 * start * change_without.norm()


def test_layer_scale_learns_each_channel_for_itself():
    model = build(LayerScale())
    model(TOKENS_BT).square().mean().backward()
    gradient_D = stack(model)[0].attention_scale.weight_D.grad
    assert gradient_D.shape == (32,) and len(set(gradient_D.tolist())) == 32


def test_dropouts_rate_can_change_in_a_running_model():
    model = build(Dropout(0.0)).train()
    assert torch.equal(model(TOKENS_BT), model(TOKENS_BT))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    assert not torch.equal(model(TOKENS_BT), model(TOKENS_BT))
    with pytest.raises(ValueError, match="between 0 and 1"):
        build(Dropout(1.5))


def test_embedding_norm_norms_what_the_first_block_gets_whatever_the_embedding():
    model = build(EmbeddingNorm())
    nn.init.normal_(model.embedding.weight, mean=3.0, std=50.0)
    with record(model, "embedding_norm") as seen:
        model(TOKENS_BT)
    assert seen["embedding_norm"].mean(-1).abs().max() < 1e-5
    assert torch.allclose(seen["embedding_norm"].square().mean(-1), torch.ones(2, 12), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("length", [12, 600], ids=["short", "beyond the plain product"])
def test_attention_soft_cap_bounds_every_logit(length):
    model, tokens_BT = build(AttentionSoftCap(5.0)), torch.arange(length)[None] % 50
    with record(model, "blocks.*.attention.cap") as seen:
        model(tokens_BT)
        assert len(seen) == 3 and all(value.abs().max() < 5 for value in seen.values())
        for attention in attentions(model):
            attention.qkv.weight *= 100
        model(tokens_BT)
        assert all(4.9 < value.abs().max() <= 5 for value in seen.values())


@torch.no_grad()
def test_soft_caps_of_no_reach_change_nothing():
    bare = build()
    for fix in (AttentionSoftCap(1e4), OutputSoftCap(1e4)):
        assert torch.allclose(same_weights(build(fix), bare)(TOKENS_BT), bare.eval()(TOKENS_BT), atol=1e-4)


@torch.no_grad()
def test_output_soft_cap_bounds_the_logits_and_keeps_their_order():
    model, bare = build(OutputSoftCap(3.0)), build()
    nn.init.normal_(bare.head.weight, std=1.0)
    capped_BTV, logits_BTV = same_weights(model, bare)(TOKENS_BT), bare.eval()(TOKENS_BT)
    assert logits_BTV.abs().max() > 10 and capped_BTV.abs().max() <= 3
    assert torch.allclose(capped_BTV, 3 * torch.tanh(logits_BTV / 3))
    assert torch.equal(model.logits(model.trunk(TOKENS_BT)), capped_BTV)  # what the objective and decoding call


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan")])
def test_a_soft_cap_that_is_not_above_nought_is_refused(cap):
    for fix in (AttentionSoftCap(cap), OutputSoftCap(cap)):
        with pytest.raises(ValueError, match="soft-cap must be above 0"):
            build(fix)


def matrices(module: nn.Module, width: int, parts: tuple[int, ...]) -> tuple[Tensor, ...]:
    """What a linear map does, as one matrix a part."""
    return module(torch.eye(width)).T.split(parts)


@torch.no_grad()
def test_each_matrixs_greatest_singular_value_is_its_scalar():
    model = build(SigmaReparam()).train()
    for _ in range(100):
        model(TOKENS_BT)
    block = stack(model)[1]
    for module, width, parts in (
        (block.attention.qkv, 32, (32, 16, 16)),
        (block.attention.out, 32, (32,)),
        (block.feed_forward.gate_up, 32, (48, 48)),
        (block.feed_forward.down, 48, (32,)),
    ):
        assert (module.scalar_P == 1).all() and module.scalar_P.shape == (len(parts),)
        for times in (1.0, 30.0):
            module.weight.mul_(times)  # the size of a matrix is its scalar's affair alone
            module.scalar_P.copy_(torch.arange(len(parts)) + 0.5)
            norms = [torch.linalg.matrix_norm(matrix, 2) for matrix in matrices(module.eval(), width, parts)]
            assert torch.allclose(torch.stack(norms), module.scalar_P, rtol=2e-3)


@torch.no_grad()
def test_the_spectral_norm_is_near_before_the_first_step_and_follows_the_weights_in_training():
    module = stack(build(SigmaReparam()))[0].attention.out
    assert torch.allclose(torch.linalg.matrix_norm(matrices(module, 32, (32,))[0], 2), torch.ones(()), rtol=0.02)
    module.eval()
    nn.init.normal_(module.weight)
    before = module.right_PD.clone()
    module(torch.zeros(1, 32))
    assert torch.equal(module.right_PD, before)
    module.train()
    for _ in range(200):
        module(torch.zeros(1, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(torch.zeros(1, 32))
        assert torch.allclose(module.greatest_P()[0], torch.linalg.matrix_norm(module.weight, 2), rtol=2e-3)


# Fixes that act around a step


def batch_of(tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Batch:
    all_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    return Batch(tokens_BT, tokens_BT, all_BT, all_BT.to(torch.int8), tokens_BT.numel(), documents_BT)


def step(model: Transformer, batch: Batch, *fixes, learn: bool = False) -> dict[str, float]:
    """One step as the training takes it, with a rate of 0 unless it learns; what the fixes tell."""
    objective = Objective()
    with watching(fixes, Moment(0, model, batch, objective)) as seen:
        loss = objective(model, batch)["loss_with_penalties"]
        loss.backward()
        if learn:
            torch.optim.SGD(model.parameters(), 1.0).step()
    return seen.values


def logits_by_head(model: Transformer, batch: Batch) -> Tensor:
    """The greatest attention logit of each layer and head, by hand."""
    with record(model, "blocks.*_tap") as seen, torch.no_grad():
        Objective()(model, batch)
    rows, length = batch.inputs_BT.shape
    found = []
    for layer in range(model.config.layers):
        q, k = (seen[f"blocks.{layer}.attention.{side}_tap"] for side in ("query", "key"))
        for head in range(model.config.heads):
            key = head // (model.config.heads // model.config.kv_heads)
            found.append(
                max(
                    float(q[row, place, head] @ k[row, before, key]) / model.config.head_width**0.5
                    for row in range(rows)
                    for place in range(length)
                    for before in range(place + 1)
                    if batch.inputs_BT[row, place] != Vocabulary.pad
                    if batch.documents_BT is None or batch.documents_BT[row, place] == batch.documents_BT[row, before]
                )
            )
    return torch.tensor(found).view(model.config.layers, -1)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("packed", [False, True], ids=["whole rows", "packed"])
def test_qk_clip_brings_heads_to_the_threshold_and_leaves_the_others_alone(kv_heads, packed):
    model = Transformer(replace(CONFIG, layers=1, kv_heads=kv_heads))
    nn.init.normal_(stack(model)[0].attention.qkv.weight, std=2.0)
    tokens_BT = torch.randint(5, 50, (2, 12))
    tokens_BT[1, 9:] = Vocabulary.pad
    batch = batch_of(tokens_BT, (torch.arange(12) // 5).expand(2, 12) if packed else None)
    (before_H,) = logits_by_head(model, batch)
    values = before_H.sort().values
    threshold = float(values[1:3].mean())  # two heads pass it, and two do not
    values_before = stack(model)[0].attention.qkv.weight[-kv_heads * 8 :].clone()
    assert step(model, batch, QKClip(threshold)) == {"clipped_heads": 2.0}
    (after_H,) = logits_by_head(model, batch)
    assert torch.allclose(after_H, before_H.clamp_max(threshold), rtol=1e-4)
    assert torch.equal(stack(model)[0].attention.qkv.weight[-kv_heads * 8 :], values_before)


def test_qk_clip_shares_the_factor_between_queries_and_keys_where_no_key_is_shared():
    model = Transformer(replace(CONFIG, layers=1, kv_heads=4))
    weight = stack(model)[0].attention.qkv.weight
    nn.init.normal_(weight, std=2.0)
    before = weight.detach().clone()
    batch = batch_of(TOKENS_BT)
    (greatest_H,) = logits_by_head(model, batch)
    step(model, batch, QKClip(1.0))
    shares_H = (1.0 / greatest_H).sqrt()
    rows = torch.cat([shares_H, shares_H, torch.ones(4)]).repeat_interleave(8)
    assert torch.allclose(weight, before * rows[:, None], rtol=1e-4)


def test_qk_clip_comes_after_the_step_and_under_the_threshold_is_not_there():
    torch.manual_seed(0)
    model, twin, batch = build(), build(), batch_of(TOKENS_BT)
    twin.load_state_dict(model.state_dict())
    assert step(model, batch, QKClip(1e3), learn=True) == {"clipped_heads": 0.0}
    step(twin, batch, learn=True)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), twin.parameters(), strict=True))
    step(model, batch, QKClip(1e-3), learn=True)
    step(twin, batch, learn=True)
    factors = stack(model)[0].attention.qkv.weight / stack(twin)[0].attention.qkv.weight
    assert (factors[:32] < 0.5).all() and torch.allclose(factors, factors[:, :1].expand_as(factors), rtol=1e-4)


def test_qk_clip_of_logits_that_are_no_numbers_does_nothing():
    model, batch = build(), batch_of(TOKENS_BT)
    nn.init.constant_(model.embedding.weight, torch.nan)
    before = [attention.qkv.weight.clone() for attention in attentions(model)]
    with watching([QKClip(1e-3)], Moment(0, model, batch, Objective())) as seen, torch.no_grad():
        model(TOKENS_BT)
    assert seen.values == {"clipped_heads": 0.0}
    assert all(torch.equal(one, attention.qkv.weight) for one, attention in zip(before, attentions(model), strict=True))


@pytest.mark.parametrize("fix", [QueryKeyNorm(), QueryKeyRMSNorm(), SigmaReparam()], ids=str)
def test_qk_clip_refuses_a_model_whose_fix_would_undo_it_and_names_both(fix):
    with pytest.raises(ValueError) as caught:
        step(build(fix), batch_of(TOKENS_BT), QKClip(30.0))
    assert repr(fix) in str(caught.value) and "QKClip(threshold=30.0" in str(caught.value)


# All of them


@installed
def test_a_fix_survives_saving_and_loading_and_is_seen_in_the_repr(make_lab, mixed, tmp_path, fix):
    lab = make_lab(mixed, fixes=(fix,))
    disturb(lab.model)
    lab.save(tmp_path / "model")
    again = Chameleon.load(tmp_path / "model", device="cpu").model
    assert again.config.fixes == (fix,) and repr(fix) in repr(again.config)
    assert eval(repr(fix), dict(vars(stability))) == fix
    state, saved = again.state_dict(), lab.model.state_dict()
    assert state.keys() == saved.keys() and all(torch.equal(state[name], saved[name]) for name in state)
    assert torch.allclose(again(TOKENS_BT), lab.model(TOKENS_BT), atol=1e-5)


def disturb(model: Transformer) -> None:
    """Moves every parameter a little, so that none is as it was made."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


@installed
@torch.no_grad()
def test_decoding_with_a_cache_equals_the_full_pass(fix):
    model = build(fix).eval()
    disturb(model)
    for attention in attentions(model):
        for place in places_of(attention, "qkv"):
            attention.get_submodule(place).weight *= 4  # so that caps have something to cap
    whole_BTV = model(TOKENS_BT)
    decoder = Decoder(model, 2)
    parts = []
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        parts.append(decoder.logits(decoder.feed(TOKENS_BT[:, start:stop], [stop - start] * 2)))
    assert torch.allclose(torch.cat(parts, 1), whole_BTV, atol=2e-4)
    state, plain = model.state_dict(), build().eval()
    plain.load_state_dict({dense: state[name] for name, dense in dense_names(model).items()} | state, strict=False)
    without_BTV = plain(TOKENS_BT)
    assert torch.allclose(whole_BTV, without_BTV, atol=1e-3) == isinstance(fix, Dropout)  # the others all take part


@installed
def test_gradient_flows_through_a_fix_and_to_its_parameters(fix):
    model = build(fix).train()
    own = dict(model.named_parameters()).keys() - dict(build().named_parameters()).keys()
    objective = Objective()
    objective(model, batch_of(TOKENS_BT))["loss_with_penalties"].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert all(gradients[name].any() for name in (*own, "embedding.weight"))
    assert all(gradients[f"{place}.weight"].any() for place in places_of(model, "blocks.0.attention.qkv"))


@installed
def test_a_seed_draws_the_same_weights_with_any_fix(fix):
    models = []
    for fixes in ((), (fix,)):
        torch.manual_seed(7)
        models.append(build(*fixes).state_dict())
    models[1] |= {dense: models[1][name] for name, dense in dense_names(build(fix)).items()}
    common = models[0].keys() & models[1].keys()
    assert "blocks.2.feed_forward.down.weight" in common and "head.weight" in common
    assert all(torch.equal(models[0][name], models[1][name]) for name in common)


@installed
def test_training_with_a_fix_lowers_the_loss(fix):
    model, batch, objective = build(fix).train(), batch_of(TOKENS_BT), Objective()
    (adam,) = Recipe(rate=3e-3).optimizers(model)
    losses = []
    for _ in range(30):
        adam.zero_grad()
        losses.append(objective(model, batch)["loss_with_penalties"])
        losses[-1].backward()
        adam.step()
    assert losses[-1] < 0.8 * losses[0]


def test_all_fixes_are_listed_with_what_a_page_wants_to_know():
    classes = {each for each in vars(stability).values() if isinstance(each, type) and is_dataclass(each)}
    assert {type(fix) for fix in FIXES.values()} == classes - {stability.About}
    for fix in FIXES.values():
        words = about(fix)
        assert words.fix == repr(fix) and words.kind in ("model", "loss", "recipe", "step")
        assert all(text and "\n" not in text for text in (words.what, words.slot, words.source, words.trial))
    assert about(ZLoss()).slot == "a penalty of the objective."
    assert {kind(fix) for fix in FIXES.values()} == {"model", "loss", "recipe", "step"}


def test_what_is_no_fix_is_told_so():
    class Both:
        install = penalty = print

    for thing in (3, Both(), CONFIG):
        with pytest.raises(ValueError, match=r"is no fix: it has (none|install and penalty) of the methods install"):
            kind(thing)


@pytest.mark.parametrize(
    ("one", "other", "slot"),
    [
        (QueryKeyNorm(), QueryKeyRMSNorm(), "attention.query_norm"),
        (Dropout(0.1), Dropout(0.2), "attention_dropout"),
        (NormReordering(), NormReordering(), "attention_post_norm"),
        (NormReordering(), Sandwich(), "blocks.0.attention_p"),
        (LayerScale(0.1), LayerScale(0.2), "blocks.0.attention_scale"),
        (EmbeddingNorm(), EmbeddingNorm(1e-6), "slot embedding_norm"),
        (AttentionSoftCap(20.0), AttentionSoftCap(50.0), "blocks.0.attention.cap"),
        (OutputSoftCap(20.0), OutputSoftCap(30.0), "slot cap"),
        (SigmaReparam(), SigmaReparam(2), "blocks.0.attention.qkv"),
    ],
)
def test_two_fixes_on_one_slot_are_an_error_that_names_both(one, other, slot):
    with pytest.raises(ValueError) as caught:
        build(one, other)
    assert repr(one) in str(caught.value) and repr(other) in str(caught.value) and slot in str(caught.value)


def test_fixes_on_different_slots_live_together():
    fixes = (
        *(QueryKeyNorm(), NormReordering(), LayerScale(), Dropout(0.1)),
        *(EmbeddingNorm(), AttentionSoftCap(), OutputSoftCap(), SigmaReparam()),
    )
    assert build(*fixes).config.fixes == fixes
    assert torch.isfinite(build(*fixes)(TOKENS_BT)).all()


def test_a_slot_that_is_not_there_is_refused_with_the_names_of_those_that_are():
    class Misspelt:
        def install(self, model: Transformer) -> None:
            model.fill(stack(model)[0], "attention_postnorm", nn.Identity(), self)

    with pytest.raises(ValueError, match=r"attention_postnorm, which is not there.*attention_post_norm"):
        build(Misspelt())


@dataclass(frozen=True)
class ScaledBranches:
    """A fix as a user would write one in a notebook cell."""

    scale: float = 0.5

    def install(self, model: Transformer) -> None:
        for block in stack(model):
            model.fill(block, "ffn_post_norm", nn.RMSNorm(model.config.width), self)


def test_a_users_own_fix_is_installed_like_ours():
    model = build(ScaledBranches())
    assert all(type(block.ffn_post_norm) is nn.RMSNorm for block in stability.blocks(model))
    with pytest.raises(ValueError, match=r"ScaledBranches\(scale=0.5\) and NormReordering"):
        build(NormReordering(), ScaledBranches())


@dataclass(frozen=True)
class CentredLogits:
    """A user's fix of the loss: the mean logit squared."""

    weight: float = 1.0

    def penalty(self, logits_XV: Tensor) -> Tensor:
        return self.weight * logits_XV.mean(-1).square()


@dataclass(frozen=True)
class ShortMemory:
    def tune(self, recipe: Recipe) -> Recipe:
        return replace(recipe, betas=(0.9, 0.9))


@dataclass(frozen=True)
class UnitRows:
    every: int = 2

    def watch(self, moment):
        yield
        rows_VD = moment.model.embedding.weight
        rows_VD /= rows_VD.norm(dim=-1, keepdim=True)


def test_users_own_fixes_of_the_other_kinds_work_like_ours():
    model, batch = build(), batch_of(TOKENS_BT)
    measures = Objective(penalties=(CentredLogits(2.0),))(model, batch)
    wanted = measures["loss"] + 2 * model(TOKENS_BT).mean(-1).square().mean()
    assert torch.allclose(measures["loss_with_penalties"], wanted, atol=1e-5)
    assert tuned(Recipe(), [ShortMemory()]) == Recipe(betas=(0.9, 0.9))
    step(model, batch, UnitRows(), learn=True)
    assert torch.allclose(model.embedding.weight.norm(dim=-1), torch.ones(50))
    assert [kind(fix) for fix in (ScaledBranches(), CentredLogits(), ShortMemory(), UnitRows())] == list(
        stability.KINDS.values()
    )
    assert about(ScaledBranches()).what == "A fix as a user would write one in a notebook cell."
    assert about(ScaledBranches()).source == ""
