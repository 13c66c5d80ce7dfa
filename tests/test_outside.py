"""A foreign model in a plain loop: one line reads what the lab's own monitors read, attention too."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_monitors import EVERY_STEP, OBJECTIVE, batch_of, make
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from chameleon_lab.monitors.outside import OutsideWatch
from chameleon_lab.monitors.watch import Moment, watching


def llama(kind: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    config._attn_implementation = kind
    return LlamaForCausalLM(config)


def masked_rows() -> dict[str, torch.Tensor]:
    tokens_BT = torch.randint(0, 60, (2, 15), generator=torch.Generator().manual_seed(1))
    mask_BT = torch.ones_like(tokens_BT)
    mask_BT[1, :4] = 0
    return {"input_ids": tokens_BT, "attention_mask": mask_BT, "labels": tokens_BT}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_a_llama_of_transformers_is_read_as_it_says_of_itself(kind, padded):
    model, batch = llama(kind), masked_rows()
    if not padded:
        del batch["attention_mask"]
    watch = OutsideWatch(model, every=1, rows=None)
    with watch:
        output = model(**batch)
        output.loss.backward()
    (record,) = watch.history.records
    assert record.values["loss"] == pytest.approx(output.loss.item())
    assert record.values["log_partition"] == pytest.approx(output.logits.logsumexp(-1).mean().item(), rel=1e-4)
    attentions = llama("eager")(**batch, output_attentions=True).attentions
    places_T = torch.arange(15)
    for layer, shares_BHTT in enumerate(attentions):
        visible_BT = batch.get("attention_mask", torch.ones(2, 15, dtype=torch.long)).bool()
        counts_BT = (visible_BT[:, None, :] & (places_T[:, None] >= places_T)).sum(-1)
        long_BT = counts_BT > 1
        entropy_BHT = -torch.special.xlogy(shares_BHTT, shares_BHTT).sum(-1) / counts_BT.clamp_min(2).log()[:, None]
        expected_H = (entropy_BHT * long_BT[:, None]).sum((0, 2)) / long_BT.sum()
        read_H = torch.tensor(record.layers["attention_entropy"][layer])
        torch.testing.assert_close(read_H, expected_H.detach(), atol=1e-4, rtol=1e-3)
    assert len(record.layers["max_attention_logit"]) == 3 and len(record.layers["max_attention_logit"][0]) == 4
    streams = llama(kind)(**batch, output_hidden_states=True).hidden_states  # the last one is behind the final norm
    norms = [each.detach().square().mean().sqrt().item() for each in streams[1:-1]]
    assert record.layers["residual_norm"][:-1] == pytest.approx(norms, rel=1e-4)
    assert record.values["max_attention_logit"] == pytest.approx(max(map(max, record.layers["max_attention_logit"])))


def test_of_the_lab_s_own_model_it_reads_what_the_lab_s_monitors_read():
    model, batch = make(), batch_of()
    watch = OutsideWatch(model, every=1, rows=None)
    with watching(EVERY_STEP, Moment(0, model, batch, OBJECTIVE)) as readout, watch:
        model(batch.inputs_BT)
    values = watch.history.records[0].values
    for name in ("max_attention_logit", "attention_entropy", "residual_norm"):
        assert values[name] == pytest.approx(readout.values[name], rel=1e-4), name


def test_sampled_rows_are_never_above_all_and_draw_from_nobody_s_generator():
    model, batch = llama("sdpa"), masked_rows()
    every, some = OutsideWatch(model, every=1, rows=None), OutsideWatch(model, every=1, rows=3)
    torch.manual_seed(5)
    with some:
        model(**batch)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    with every:
        model(**batch)
    assert torch.equal(drawn, torch.rand(3))
    most, least = (watch.history.maximum("max_attention_logit") for watch in (every, some))
    assert 0 < least <= most


def test_training_is_the_same_and_alarms_sound_in_it():
    losses = []
    for watched in (False, True):
        model = llama("sdpa")
        adam = torch.optim.AdamW(model.parameters(), lr=3e-3)
        watch = OutsideWatch(model, every=2)
        for _ in range(6):
            with watch:
                loss = model(**masked_rows()).loss
                adam.zero_grad()
                loss.backward()
                adam.step()
            losses.append(loss.item())
        assert [record.step for record in watch.history.records] == [0, 2, 4]
        if not watched:
            continue
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    parameter.mul_(60)
        for _ in range(8):
            with watch:
                model(**masked_rows())
        assert watch.alarms and watch.alarms[0].rule == "attention"
    assert losses[:6] == losses[6:]


class Plain(nn.Module):
    """A module list, torch's own attention, and a tensor for an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x_BTD):
        for layer in self.layers:
            x_BTD = layer(x_BTD)
            x_B1TD = x_BTD[:, None]
            mask_TT = torch.ones(x_BTD.shape[1], x_BTD.shape[1], dtype=torch.bool).tril()
            x_BTD = F.scaled_dot_product_attention(x_B1TD, x_B1TD, x_B1TD, attn_mask=mask_TT, scale=0.5)[:, 0]
        return x_BTD


def test_boolean_masks_scales_and_failures():
    model, x_BTD = Plain(), torch.randn(2, 5, 8)
    watch = OutsideWatch(model, every=1, rows=None)
    with watch:
        model(x_BTD)
    inner_BTD = model.layers[0](x_BTD)
    logits_BTT = (0.5 * inner_BTD @ inner_BTD.mT).masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -math.inf)
    assert watch.history.records[0].layers["max_attention_logit"][0] == pytest.approx(
        [logits_BTT.max().item()], rel=1e-4
    )
    with pytest.raises(ZeroDivisionError), watch:
        raise ZeroDivisionError
    assert len(watch.history.records) == 1 and not model._forward_hooks and not model.layers[0]._forward_hooks
    with pytest.raises(ValueError, match="1 or more"):
        OutsideWatch(model, every=0)
