"""Monitors: what they read is what a plain computation finds, and the training they watch never notices."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chameleon_lab.corpora.packing import Batch
from chameleon_lab.measures import MEASURES, measure_of
from chameleon_lab.monitors.attention import AttentionBound, AttentionRows
from chameleon_lab.monitors.default import MONITORS
from chameleon_lab.monitors.gradients import GradientBalance, UpdateRatio
from chameleon_lab.monitors.outputs import OutputLogits, ResidualNorm
from chameleon_lab.monitors.watch import Moment, watching
from chameleon_lab.objective import Objective
from chameleon_lab.stability import AttentionSoftCap, Dropout, NormReordering, QKClip, QueryKeyNorm, SigmaReparam, ZLoss
from chameleon_lab.taps import record
from chameleon_lab.training.experiments import LAB
from chameleon_lab.training.modules import Budget
from chameleon_lab.transformer import CAUSAL, ModelConfig, Packed, Transformer
from chameleon_lab.vocabulary import Modality

CONFIG = ModelConfig(
    vocabulary=40, width=24, layers=3, heads=4, kv_heads=2, head_width=6, ffn_width=32, context=64, fixes=()
)
OBJECTIVE = Objective(text_weight=2.0, penalties=(ZLoss(1e-2),))
EVERY_STEP = tuple(replace(monitor, every=1) for monitor in MONITORS)
PACKED = torch.tensor([[0] * 7 + [1] * 10 + [2] * 6, [0] * 1 + [1] * 21 + [2] * 1])


def make(*fixes, **changes) -> Transformer:
    model = Transformer(replace(CONFIG, fixes=fixes, **changes))
    for name, weight in model.named_parameters():
        if name.endswith("qkv.weight"):
            weight.data *= 4  # heads that differ, and logits that are worth watching
    return model


def batch_of(rows: int = 2, positions: int = 23, documents_BT: Tensor | None = None, seed: int = 0) -> Batch:
    """Random tokens: text, image and special targets, some of them not learned."""
    random = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(4, CONFIG.vocabulary, (rows, positions + 1), generator=random)
    return Batch(
        inputs_BT=tokens_BT[:, :-1],
        targets_BT=tokens_BT[:, 1:],
        learned_BT=torch.rand((rows, positions), generator=random) < 0.8,
        modality_BT=torch.randint(0, 3, (rows, positions), generator=random).to(torch.uint8),
        real_tokens=tokens_BT.numel(),
        documents_BT=documents_BT,
    )


def padded(batch: Batch, places: int) -> Batch:
    """The batch with so many places of padding behind each row, and a row of nothing but padding below."""

    def pad(values_BT: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(values_BT, (0, places, 0, 1), value=value)

    return replace(
        batch,
        inputs_BT=pad(batch.inputs_BT, 1),
        targets_BT=pad(batch.targets_BT, 1),
        learned_BT=pad(batch.learned_BT, 0),
        modality_BT=pad(batch.modality_BT, int(Modality.SPECIAL)),
        documents_BT=None if batch.documents_BT is None else pad(batch.documents_BT, 9),
    )


def watch(model: Transformer, batch: Batch, *monitors, step: int = 0, rate: float = 0.0, **moment):
    """One step of gradient descent as monitors see it."""
    with watching(monitors, Moment(step, model, batch, OBJECTIVE, **moment)) as readout:
        OBJECTIVE(model, batch)["loss_with_penalties"].backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad
    return readout


def plain_attention(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Largest logits and mean normalised entropies (layers x heads), query by query and head by head."""
    with record(model, "*query_tap", "*key_tap") as seen, torch.no_grad():
        model.trunk(batch.inputs_BT, CAUSAL if batch.documents_BT is None else Packed(batch.documents_BT))
    logits, entropies = [], []
    for layer in range(CONFIG.layers):
        q_BTHK, k_BTHK = (seen[f"blocks.{layer}.attention.{kind}_tap"].double() for kind in ("query", "key"))
        for head in range(CONFIG.heads):
            key_head = head // (CONFIG.heads // k_BTHK.shape[2])
            tops, shares = [], []
            for row in range(len(q_BTHK)):
                for place in range(q_BTHK.shape[1]):
                    own = slice(0, place + 1)
                    scores = k_BTHK[row, own, key_head] @ q_BTHK[row, place, head] / CONFIG.head_width**0.5
                    if batch.documents_BT is not None:
                        scores = scores[batch.documents_BT[row, own] == batch.documents_BT[row, place]]
                    tops.append(scores.max())
                    if len(scores) > 1:
                        p = scores.softmax(0)
                        shares.append(-(p * p.log()).nansum() / math.log(len(scores)))
            logits.append(torch.stack(tops).max())
            entropies.append(torch.stack(shares).mean())
    shape = CONFIG.layers, CONFIG.heads
    return torch.stack(logits).view(shape), torch.stack(entropies).view(shape)


@pytest.mark.parametrize("documents_BT", [None, PACKED], ids=["one document", "packed"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_exact_attention_is_what_a_plain_computation_finds(kv_heads, documents_BT):
    model, batch = make(kv_heads=kv_heads), batch_of(documents_BT=documents_BT)
    logits_LH, entropy_LH = plain_attention(model, batch)
    seen = watch(model, batch, AttentionRows())
    assert torch.allclose(torch.tensor(seen.layers["max_attention_logit"]), logits_LH.float(), atol=1e-4)
    assert torch.allclose(torch.tensor(seen.layers["attention_entropy"]), entropy_LH.float(), atol=1e-5)
    assert seen.values["max_attention_logit"] == pytest.approx(float(logits_LH.max()), abs=1e-4)
    assert seen.values["attention_entropy"] == pytest.approx(float(entropy_LH.min()), abs=1e-5)


def test_a_cap_keeps_heads_open_while_what_goes_into_it_is_seen_to_grow():
    bare, capped = make(), make(AttentionSoftCap(0.01))
    assert [each for each, _ in capped.named_parameters()] == [each for each, _ in bare.named_parameters()]
    capped.load_state_dict(bare.state_dict())
    before, after = (watch(model, batch_of(), AttentionRows()).layers for model in (bare, capped))
    assert after["max_attention_logit"][0] == pytest.approx(before["max_attention_logit"][0], rel=1e-5)
    assert max(before["max_attention_logit"][0]) > 1
    assert min(after["attention_entropy"][0]) > 0.999 > max(before["attention_entropy"][0])


class Sink(nn.Module):
    """A softmax with a logit of its own for each head, which takes shares from all positions alike."""

    def forward(self, logits_BHTS: Tensor) -> Tensor:
        sink_BHT1 = torch.arange(4.0)[:, None, None].expand(*logits_BHTS.shape[:-1], 1)
        return torch.cat([logits_BHTS, sink_BHT1], -1).softmax(-1)[..., :-1]


class Picked(nn.Module):
    """Shares of logits above 0 alone, after softpick (arXiv 2504.20966): none where there is no such logit."""

    def forward(self, logits_BHTS: Tensor) -> Tensor:
        gains_BHTS = torch.expm1(logits_BHTS)
        return torch.relu(gains_BHTS) / gains_BHTS.abs().sum(-1, keepdim=True)


def with_softmax(softmax: nn.Module) -> Transformer:
    torch.manual_seed(0)
    model = make()
    for layer in range(CONFIG.layers):
        setattr(model.get_submodule(f"blocks.{layer}.attention"), "softmax", softmax)  # noqa: B010
    return model


@pytest.mark.parametrize("documents_BT", [None, PACKED], ids=["one document", "packed"])
def test_of_another_softmax_the_entropy_is_of_its_shares_proportions(documents_BT):
    batch, models = (
        batch_of(documents_BT=documents_BT),
        [with_softmax(each) for each in (nn.Softmax(-1), Sink(), Picked())],
    )
    plain, sink, picked = (watch(model, batch, AttentionRows()).layers for model in models)
    # Of the first block, since what later ones read has gone through the softmax before them.
    assert picked["max_attention_logit"][0] == sink["max_attention_logit"][0] == plain["max_attention_logit"][0]
    entropy_H = torch.tensor(plain["attention_entropy"][0])
    assert torch.allclose(torch.tensor(sink["attention_entropy"][0]), entropy_H, atol=1e-5)
    taps = [f"blocks.0.attention.{tap}" for tap in ("query_tap", "key_tap")]
    with record(models[0], *taps) as outputs, torch.no_grad():
        models[0](batch.inputs_BT, CAUSAL if documents_BT is None else Packed(documents_BT))
    q_BTHK, k_BTHK = outputs[taps[0]], outputs[taps[1]].repeat_interleave(2, 2)
    entropies = []
    for row in range(len(q_BTHK)):
        for place in range(q_BTHK.shape[1]):
            begin = 0 if documents_BT is None else int((documents_BT[row] == documents_BT[row, place]).nonzero()[0])
            if place == begin:
                continue
            logits_HS = torch.einsum("hk,shk->hs", q_BTHK[row, place], k_BTHK[row, begin : place + 1])
            gains_HS = torch.expm1(logits_HS / CONFIG.head_width**0.5).clamp_min(0)
            shares_HS = gains_HS / gains_HS.sum(-1, keepdim=True)
            picked_H = -(shares_HS * shares_HS.log()).nansum(-1) / math.log(place + 1 - begin)
            entropies.append(torch.where(gains_HS.sum(-1) > 0, picked_H, 1.0))
    assert any((each == 1).any() for each in entropies)  # rows without shares are among them
    assert torch.allclose(torch.tensor(picked["attention_entropy"][0]), torch.stack(entropies).mean(0), atol=1e-5)


def test_exact_attention_in_small_portions_is_the_same(monkeypatch):
    model, batch = make(), batch_of(documents_BT=PACKED)
    whole = watch(model, batch, AttentionRows())
    monkeypatch.setattr("chameleon_lab.monitors.attention.SCORES", 2 * 23 * 4 * 5)  # five queries at once
    parts = watch(model, batch, AttentionRows())
    for name in whole.layers:
        assert torch.allclose(torch.tensor(whole.layers[name]), torch.tensor(parts.layers[name]), atol=1e-5)


@pytest.mark.parametrize("documents_BT", [None, PACKED], ids=["one document", "packed"])
def test_sampled_logits_are_never_above_the_exact_ones_and_the_bound_never_under(documents_BT):
    sampled, bound = AttentionRows(every=1, rows=3), AttentionBound()
    for step in range(1, 25):
        model, batch = make(), batch_of(documents_BT=documents_BT, seed=step)
        exact = watch(model, batch, sampled, warned=True)
        seen = watch(model, batch, sampled, bound, step=step)
        exact_LH, seen_LH = (torch.tensor(each.layers["max_attention_logit"]) for each in (exact, seen))
        assert (seen_LH <= exact_LH + 1e-4).all() and (seen_LH < exact_LH - 1e-4).any()
        bound_L = torch.tensor(seen.layers["attention_logit_bound"])
        assert (bound_L >= exact_LH.amax(1) - 1e-4).all()
        assert seen.values["attention_logit_bound"] == pytest.approx(float(bound_L.max()))


def test_rows_are_sampled_between_exact_looks_and_all_read_under_a_warning():
    model, batch, monitor = make(), batch_of(), AttentionRows(every=5, rows=2, exact_every=10)
    exact = watch(model, batch, monitor, step=10).layers
    assert watch(model, batch, monitor, step=5).layers != exact
    assert watch(model, batch, monitor, step=5, warned=True).layers == exact
    assert not watch(model, batch, monitor, step=7, warned=True).values


def test_query_key_norm_bounds_the_bound():
    seen = watch(make(QueryKeyNorm()), batch_of(), AttentionBound())
    assert seen.values["attention_logit_bound"] <= CONFIG.head_width**0.5 + 1e-4


def test_uniform_attention_has_entropy_1_and_attention_to_one_place_0():
    model, batch = make(), batch_of()
    qkv = dict(model.named_parameters())["blocks.1.attention.qkv.weight"].data
    qkv[: CONFIG.heads * CONFIG.head_width] *= 1e4
    qkv[:6] = 0
    seen = watch(model, batch, AttentionRows())
    entropy_H = seen.layers["attention_entropy"][1]
    assert entropy_H[0] == pytest.approx(1, abs=1e-6) and max(entropy_H[1:]) < 0.02
    assert seen.layers["max_attention_logit"][1][0] == 0
    assert seen.values["attention_entropy"] == min(min(heads) for heads in seen.layers["attention_entropy"])


def test_documents_of_one_token_have_no_entropy():
    seen = watch(make(), batch_of(positions=4, documents_BT=torch.arange(4).expand(2, 4)), AttentionRows())
    assert "attention_entropy" not in seen.values and seen.values["max_attention_logit"] > 0


@pytest.mark.parametrize("documents_BT", [None, PACKED], ids=["one document", "packed"])
def test_padding_changes_no_reading(documents_BT):
    batch = batch_of(documents_BT=documents_BT)
    assert (batch.inputs_BT != 1).all()
    model = make()
    model.embedding.weight.data[1] = 50.0  # padding that would be seen from afar
    for monitors in (EVERY_STEP, (AttentionRows(every=1),)):
        for step in (0, 1):
            bare, behind = (watch(model, each, *monitors, step=step) for each in (batch, padded(batch, 6)))
            assert bare.values.keys() == behind.values.keys() and len(bare.values) >= 2
            for name in bare.values.keys() - {"update_ratio"}:
                assert behind.values[name] == pytest.approx(bare.values[name], rel=1e-4, abs=1e-5), name
            for name in bare.layers.keys() - {"update_ratio"}:
                assert torch.allclose(torch.tensor(bare.layers[name]), torch.tensor(behind.layers[name]), rtol=1e-4)


def test_packed_documents_read_as_documents_apart():
    model, one, other = make(), batch_of(1, 9), batch_of(1, 9, seed=1)
    apart = [watch(model, each, AttentionRows()) for each in (one, other)]
    pair = {
        name: torch.cat([getattr(one, name), getattr(other, name)], 1)
        for name in ("inputs_BT", "targets_BT", "learned_BT", "modality_BT")
    }
    together = watch(
        model, Batch(**pair, real_tokens=20, documents_BT=torch.arange(2).repeat_interleave(9)[None]), AttentionRows()
    )
    logits, entropies = (
        [torch.tensor(each.layers[name]) for each in apart] for name in ("max_attention_logit", "attention_entropy")
    )
    assert torch.allclose(torch.tensor(together.layers["max_attention_logit"]), torch.maximum(*logits), atol=1e-4)
    assert torch.allclose(torch.tensor(together.layers["attention_entropy"]), torch.stack(entropies).mean(0), atol=1e-5)


@pytest.mark.parametrize("fixes", [(), (NormReordering(),)])
def test_residual_norms_are_root_mean_squares_after_each_block(fixes):
    model, batch = make(*fixes), batch_of()
    with record(model, "blocks.?") as inner:
        seen = watch(model, batch, ResidualNorm())
    expected = [float(inner[f"blocks.{layer}"].square().mean().sqrt()) for layer in range(3)]
    assert seen.layers["residual_norm"] == pytest.approx(expected, rel=1e-5)
    assert seen.values["residual_norm"] == pytest.approx(max(expected), rel=1e-5)
    assert seen.values["output_norm"] == pytest.approx(expected[-1], rel=1e-5)


def test_outputs_by_modality_are_those_of_the_whole_logits_where_all_are_sampled():
    model, batch = make(), batch_of()
    logits_BTV = model(batch.inputs_BT).detach()
    seen = watch(model, batch, OutputLogits(rows=100), rate=0.5).values
    for kind in (Modality.TEXT, Modality.IMAGE):
        logits_XV = logits_BTV[batch.learned_BT & (batch.modality_BT == kind)]
        name = kind.name.lower()
        assert seen[f"{name}_log_partition"] == pytest.approx(float(torch.logsumexp(logits_XV, -1).mean()), rel=1e-5)
        entropy = torch.distributions.Categorical(logits=logits_XV).entropy().mean()
        assert seen[f"{name}_entropy"] == pytest.approx(float(entropy), rel=1e-5)
        assert seen[f"{name}_logit_norm"] == pytest.approx(float(logits_XV.square().mean().sqrt()), rel=1e-5)
    assert len(seen) == 6


def test_sampled_outputs_are_within_the_range_of_all_and_of_learned_positions_only():
    model, batch = make(), batch_of()
    logs_BT = model(batch.inputs_BT).detach().logsumexp(-1)
    one = OutputLogits(every=1, rows=1)
    seen = {step: watch(model, batch, one, step=step).values["text_log_partition"] for step in range(12)}
    chosen = set(logs_BT[batch.learned_BT & (batch.modality_BT == Modality.TEXT)].tolist())
    assert len(set(seen.values())) > 3
    assert all(min(abs(value - each) for each in chosen) < 1e-5 for value in seen.values())
    assert watch(model, batch, one, step=3).values["text_log_partition"] == seen[3]


def test_a_modality_that_is_not_there_is_left_out():
    batch = replace(batch_of(), modality_BT=torch.full((2, 23), int(Modality.TEXT), dtype=torch.uint8))
    seen = watch(make(), batch, OutputLogits(), GradientBalance()).values
    assert not any(name.startswith(("image", "special")) for name in seen) and "gradient_cosine" not in seen
    assert seen["text_gradient_share"] == pytest.approx(1)


def test_gradient_shares_are_those_of_the_steps_own_gradient():
    model, batch = make(QueryKeyNorm()), batch_of(documents_BT=PACKED)
    seen = watch(model, batch, GradientBalance()).values
    whole = flat_gradient(model)
    counts = {kind: int((batch.learned_BT & (batch.modality_BT == kind)).sum()) for kind in Modality}
    counts[Modality.TEXT] *= 2  # as the objective weighs it
    parts = {}
    for kind in Modality:
        others = {f"{each.name.lower()}_weight": 0.0 for each in Modality if each != kind}
        model.zero_grad()
        replace(OBJECTIVE, **others)(model, batch)["loss_with_penalties"].backward()
        parts[kind] = flat_gradient(model) * counts[kind] / sum(counts.values())
    assert torch.allclose(sum(parts.values()), whole, atol=1e-6)  # pyright: ignore[reportArgumentType]
    for kind, part in parts.items():
        share = float(part @ whole / (whole @ whole))
        assert seen[f"{kind.name.lower()}_gradient_share"] == pytest.approx(share, abs=1e-4)
    assert sum(seen[f"{kind.name.lower()}_gradient_share"] for kind in Modality) == pytest.approx(1, abs=1e-6)
    cosine = torch.cosine_similarity(parts[Modality.TEXT], parts[Modality.IMAGE], dim=0)
    assert seen["gradient_cosine"] == pytest.approx(float(cosine), abs=1e-5)


def flat_gradient(model: Transformer) -> Tensor:
    return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


def test_modalities_that_want_the_same_have_cosine_1_and_equal_shares():
    batch = batch_of(positions=1)
    same = {name: getattr(batch, name)[:1].expand(2, 1) for name in ("inputs_BT", "targets_BT")}
    kinds_BT = torch.tensor([[int(Modality.TEXT)], [int(Modality.IMAGE)]], dtype=torch.uint8)
    batch = replace(batch, **same, modality_BT=kinds_BT, learned_BT=torch.ones(2, 1, dtype=torch.bool))
    seen = watch(make(), batch, GradientBalance())
    assert seen.values["gradient_cosine"] == pytest.approx(1, abs=1e-5)
    assert seen.layers["gradient_cosine"] == pytest.approx([1, 1, 1], abs=1e-5)
    assert seen.values["text_gradient_share"] == pytest.approx(2 / 3, abs=1e-5)  # text weighs twice


def test_update_ratios_are_those_computed_by_hand():
    model, batch = make(), batch_of()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    seen = watch(model, batch, UpdateRatio(), rate=0.3)
    after = dict(model.named_parameters())
    expected = []
    for layer in range(CONFIG.layers):
        names = [name for name in before if name.startswith(f"blocks.{layer}.")]
        change = torch.cat([(after[name].detach() - before[name]).flatten() for name in names])
        weights = torch.cat([before[name].flatten() for name in names])
        expected.append(float(change.square().mean().sqrt() / weights.square().mean().sqrt()))
    assert seen.layers["update_ratio"] == pytest.approx(expected, rel=1e-4) and min(expected) > 0
    assert seen.values["update_ratio"] == pytest.approx(max(expected), rel=1e-4)
    assert watch(model, batch, UpdateRatio()).values["update_ratio"] == 0


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("fixes", [(Dropout(0.3),), (SigmaReparam(),)], ids=["dropout", "sigma"])
def test_training_is_bitwise_the_same_with_and_without_monitors(fixes, autocast):
    def train(monitors) -> tuple[list[float], list[Tensor]]:
        torch.manual_seed(5)
        model = make(*fixes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for step in range(6):
            batch = batch_of(seed=step, documents_BT=PACKED if step % 2 else None)
            moment = Moment(step, model, batch, OBJECTIVE, warned=step > 3)
            with torch.autocast("cpu", torch.bfloat16, autocast), watching(monitors, moment):
                optimizer.zero_grad()
                measures = OBJECTIVE(model, batch)
                measures["loss_with_penalties"].backward()
                optimizer.step()
            losses.append(float(measures["loss"]))
        return losses, [torch.rand(3), *model.parameters()]

    (plain, end), (watched, watched_end) = train(()), train(EVERY_STEP)
    assert plain == watched
    assert all(torch.equal(one, other) for one, other in zip(end, watched_end, strict=True))


def test_readings_of_halved_precision_are_made_in_full_precision():
    model, batch = make(), batch_of()
    with torch.autocast("cpu", torch.bfloat16), record(model, "norm", "*_tap") as inner:
        seen = watch(model, batch, OutputLogits(rows=100), AttentionRows())
    text_BT = batch.learned_BT & (batch.modality_BT == Modality.TEXT)
    logs_X = model.logits(inner["norm"].float()[text_BT]).detach().logsumexp(-1)
    assert seen.values["text_log_partition"] == pytest.approx(float(logs_X.mean()), rel=1e-5)
    q_BTK, k_BTK = (inner[f"blocks.0.attention.{kind}_tap"][:, :, 0].float() for kind in ("query", "key"))
    logits_BTS = q_BTK @ k_BTK.transpose(1, 2) / CONFIG.head_width**0.5
    largest = float(logits_BTS[:, *torch.tril_indices(23, 23)].max())
    assert seen.layers["max_attention_logit"][0][0] == pytest.approx(largest, rel=1e-5)


def test_every_default_measure_is_a_number_and_hooks_are_gone():
    model = make(QueryKeyNorm())
    seen = watch(model, batch_of(), *MONITORS)
    assert all(math.isfinite(value) for value in seen.values.values())
    assert seen.values.keys() >= {
        *("attention_logit_bound", "max_attention_logit", "attention_entropy", "residual_norm", "output_norm"),
        *("image_log_partition", "text_logit_norm", "image_entropy", "gradient_cosine", "update_ratio"),
    }
    assert {name: torch.tensor(values).shape for name, values in seen.layers.items()} == {
        "attention_logit_bound": (3,),
        "max_attention_logit": (3, 4),
        "attention_entropy": (3, 4),
        "residual_norm": (3,),
        "gradient_cosine": (3,),
        "update_ratio": (3,),
    }
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_gone_after_a_step_that_failed():
    model = make()
    with pytest.raises(RuntimeError, match="disk"), watching(EVERY_STEP, Moment(0, model, batch_of(), OBJECTIVE)):
        raise RuntimeError("disk full")
    assert not any(module._forward_hooks for module in model.modules())


@dataclass(frozen=True)
class EmbeddingNorm:
    every: int = 10

    def watch(self, moment):
        seen = moment.record("embedding", "blocks.*.feed_forward")
        yield
        norms_L = torch.stack([seen[f"blocks.{layer}.feed_forward"].norm() for layer in range(3)])
        gradient = moment.model.embedding.weight.grad.norm()
        return {"embedding_norm": seen["embedding"].norm(), "ffn_norm": norms_L, "embedding_gradient": gradient}


def test_a_monitor_written_in_a_cell_joins_the_others():
    model, batch = make(), batch_of()
    seen = watch(model, batch, *MONITORS, EmbeddingNorm(), step=10)
    assert seen.values["embedding_norm"] == pytest.approx(float(model.embedding(batch.inputs_BT).detach().norm()))
    assert len(seen.layers["ffn_norm"]) == 3 and "ffn_norm" not in seen.values
    assert seen.values["embedding_gradient"] > 0 and seen.values["max_attention_logit"] > 0
    assert not watch(model, batch, EmbeddingNorm(), step=11).values


def test_a_monitor_may_end_early_and_must_not_yield_twice():
    @dataclass(frozen=True)
    class Early:
        every: int = 1
        times: int = 0

        def watch(self, moment):
            for _ in range(self.times):
                yield
            return {"early": 1.0}

    assert watch(make(), batch_of(), Early()).values == watch(make(), batch_of(), Early(times=1)).values == {"early": 1}
    with pytest.raises(ValueError, match=r"Early\(every=1, times=2\) yields twice"):
        watch(make(), batch_of(), Early(times=2))


@dataclass(frozen=True)
class Named:
    """A monitor that reads 1 under any name."""

    name: str
    every: int = 1

    def watch(self, moment):
        yield
        return {self.name: 1.0}


@pytest.mark.parametrize(
    "name",
    [
        *("loss", "image_loss", "text_loss", "special_loss", "held_out_loss", "held_out_image_loss"),
        *("gradient_norm", "rate", "tokens", "skipped", "margin"),
    ],
)
def test_what_the_step_records_no_monitor_overwrites(name):
    readout = watch(make(), batch_of(), Named("mine"), Named(name))
    with pytest.raises(ValueError, match=rf"Named\(name='{name}', every=1\) reads '{name}', which the step itself"):
        readout.beside({"loss": 2.0, "margin": 3.0})
    mine = watch(make(), batch_of(), Named("mine"), Named("probe_loss"))
    assert mine.beside({"loss": 2.0}) == {"loss": 2.0, "mine": 1.0, "probe_loss": 1.0}


def test_a_training_refuses_a_monitor_that_would_overwrite_its_loss(tmp_path):
    run = replace(LAB, budget=Budget(steps=2), monitors=(Named("loss"),)).run(tmp_path / "run")
    with pytest.raises(ValueError, match="reads 'loss', which the step itself records"):
        run.wait()


class Hasty:
    """Monitors whose watch is none: it returns at once, or returns what are no readings."""

    every = 1

    def __init__(self, watch) -> None:
        self.watch = watch

    def __repr__(self) -> str:
        return "Hasty()"


def ending_with(value):
    def watch(moment):
        yield
        return value

    return watch


@pytest.mark.parametrize(
    ("watch_of", "message"),
    [
        (lambda moment: {"early": 1.0}, r"watch of Hasty\(\) returned \{'early': 1.0\} at once; it must `yield` once"),
        (lambda moment: None, r"Hasty\(\) returned None at once"),
        (ending_with(3.0), r"Hasty\(\) returned 3.0; a monitor returns its readings by name"),
        (ending_with({"name": "much"}), r"Hasty\(\) read 'much' as 'name', which is no number"),
        (ending_with({"name": (1.0, None)}), r"Hasty\(\) read None as 'name', which is no number"),
    ],
)
def test_a_watch_that_is_none_is_named(watch_of, message):
    with pytest.raises(ValueError, match=message):
        watch(make(), batch_of(), Hasty(watch_of))


def test_what_is_said_of_each_measure_is_what_its_monitor_reads():
    """All that the default monitors read has a row in the table, with the right grain, and by modality or not."""
    readout = watch(make(), batch_of(), *EVERY_STEP, QKClip(every=1))
    for name in readout.values.keys() | readout.layers.keys():
        measure = measure_of(name)
        assert measure.base in MEASURES, name
        assert measure.by_modality == (measure.part in ("text", "image", "special")), name
        grain = np.ndim(readout.layers.get(name, 0.0))
        assert measure.per == ("step", "layer", "head")[grain], name
    by_modality = {measure_of(name).base for name in readout.values if measure_of(name).part}
    assert by_modality == {"logit_norm", "log_partition", "entropy", "gradient_share"}
