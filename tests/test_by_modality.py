"""Parts of their own by modality: a dense model's numbers at first, each position through its own part, everywhere."""

import copy
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support import CODES, CONFIG, WORDS
from test_transformer import feed

from chameleon_lab.by_modality import ByModality, ModalityOf, active_parameters, dense_names, places_of, tower_of
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.inspection.trace import Trace
from chameleon_lab.optimization import Recipe, fused_rows
from chameleon_lab.planner import plan
from chameleon_lab.quantization import QuantizedLinear, quantize
from chameleon_lab.stability import (
    LayerScale,
    MixtureOfTransformers,
    NormReordering,
    QueryKeyNorm,
    SigmaReparam,
    warm_start,
)
from chameleon_lab.training.experiments import LAB
from chameleon_lab.training.modules import Budget
from chameleon_lab.transformer import ModelConfig, Packed, Transformer

FIRST = 4
TOWERS = MixtureOfTransformers(first_image=FIRST, codes=CODES)
OTHERS = {
    "bare": (),
    "norms of queries and keys": (QueryKeyNorm(),),
    "norms after": (QueryKeyNorm(groups=4), NormReordering(), LayerScale()),
    "spectral": (SigmaReparam(),),
}
DENSE = replace(CONFIG, kv_heads=2, fixes=())


def dense(*fixes, config: ModelConfig = DENSE) -> Transformer:
    torch.manual_seed(3)
    return Transformer(replace(config, fixes=fixes)).eval()


def apart(model: Transformer) -> Transformer:
    """Towers that differ."""
    with torch.no_grad():
        for parameter, tower in tower_of(model).items():
            parameter.mul_(1.3 if tower == "image" else 0.8)
    return model


def mixed_tokens(rows: int = 3, length: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, FIRST + 2 * CODES, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fixes", OTHERS.values(), ids=list(OTHERS))
@torch.inference_mode()
def test_a_warm_start_computes_what_the_dense_model_does(fixes):
    model = dense(*fixes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    towers = warm_start(model, TOWERS)
    tokens_BT = mixed_tokens()
    torch.testing.assert_close(towers(tokens_BT), model(tokens_BT), atol=2e-6, rtol=1e-5)
    documents_BT = torch.tensor([[0] * 7 + [1] * 13, [0] * 20, [0] * 1 + [1] * 19])
    context = Packed(documents_BT)
    torch.testing.assert_close(towers(tokens_BT, context), model(tokens_BT, context), atol=2e-6, rtol=1e-5)
    assert not torch.allclose(apart(towers)(tokens_BT), model(tokens_BT), atol=1e-2)


def test_the_first_step_s_gradient_is_the_dense_one_s_in_parts():
    """What a dense weight's gradient is, its two towers' sum to."""
    model = dense(QueryKeyNorm()).train()
    towers = warm_start(model, TOWERS)
    for each in (model, towers):
        each(mixed_tokens()).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in towers.named_parameters() if parameter.grad is not None}
    sums: dict[str, torch.Tensor] = {}
    for name, source in dense_names(towers).items():
        sums[source] = sums.get(source, torch.zeros(())) + gradients[name]
    assert len(sums) == 10 * DENSE.layers  # qkv, out, gate_up, down; two norms; weight and bias for queries, for keys
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(sums.get(name, gradients.get(name)), parameter.grad, atol=1e-6, rtol=1e-4)


@torch.inference_mode()
def test_no_part_sees_a_position_of_the_other_modality():
    """Changing one tower changes, in the first layer's feed-forward, the positions of its modality alone."""
    model = warm_start(dense(), MixtureOfTransformers(attention=False, norms=False, first_image=FIRST, codes=CODES))
    tokens_BT = mixed_tokens()
    image_BT = (tokens_BT >= FIRST) & (tokens_BT < FIRST + CODES)
    assert 0.1 < image_BT.float().mean() < 0.9
    part: Any = model.get_submodule("blocks.0.feed_forward")
    x_BTD = torch.randn(*tokens_BT.shape, DENSE.width)
    model.turns(tokens_BT, Packed(torch.zeros_like(tokens_BT)))
    before_BTD = part(x_BTD)
    part.image.down.weight.mul_(2)
    changed_BT = (part(x_BTD) - before_BTD).abs().amax(-1) > 0
    assert torch.equal(changed_BT, image_BT)


@pytest.mark.parametrize("bits", [None, 8])
@torch.inference_mode()
def test_a_token_at_a_time_computes_what_the_whole_does_in_8_bits_too(bits):
    model = apart(warm_start(dense(QueryKeyNorm()), TOWERS))
    if bits:
        model = quantize(model, bits)
        matrices = [name for name, each in model.named_modules() if isinstance(each, QuantizedLinear)]
        assert len(matrices) == 8 * DENSE.layers + 1 and "blocks.0.feed_forward.image.down" in matrices
    row_T = mixed_tokens(1, 20)[0]
    decoder = Decoder(model, 1)
    parts = [feed(decoder, [row_T[:6]])[0], *(feed(decoder, [row_T[at : at + 1]])[0] for at in range(6, 20))]
    assert decoder.worker == "lean"
    most = 0.02 if bits else 2e-5
    torch.testing.assert_close(torch.cat(parts), model(row_T[None])[0], atol=most, rtol=1e-3)


def test_where_nobody_can_count_positions_both_parts_run_and_the_mask_chooses(monkeypatch):
    """As while a GPU's work is recorded."""
    model = apart(warm_start(dense(), TOWERS))
    tokens_BT = mixed_tokens()
    with torch.inference_mode():
        expected_BTV = model(tokens_BT)
        split: Any = model.modality._noted
        original = ModalityOf.forward

        def blind(self, tokens_BT):
            original(self, tokens_BT)
            split.split = split.split._replace(order_X=None, inverse_X=None, texts=0)
            return tokens_BT

        monkeypatch.setattr(ModalityOf, "forward", blind)
        torch.testing.assert_close(model(tokens_BT), expected_BTV, atol=2e-6, rtol=1e-5)


@torch.inference_mode()
def test_threads_that_use_a_model_at_once_do_not_take_each_other_s_modalities():
    model = apart(warm_start(dense(), TOWERS))
    batches = [mixed_tokens(2, 12 + at, at) for at in range(4)]
    expected = [model(tokens_BT) for tokens_BT in batches]
    wrong: list[int] = []

    def work(at: int) -> None:
        with torch.inference_mode():
            for _ in range(15):
                if not torch.allclose(model(batches[at]), expected[at], atol=1e-5):
                    wrong.append(at)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    twin = copy.deepcopy(model)
    part: Any = twin.get_submodule("blocks.0.feed_forward")
    assert part._of[0] is twin.modality is not model.modality
    assert torch.equal(twin(batches[0]), model(batches[0]))


def test_a_look_reruns_blocks_with_the_modality_of_their_positions():
    model = apart(warm_start(dense(QueryKeyNorm()), TOWERS))
    tokens_T = mixed_tokens(1, 16)[0].numpy()
    trace = Trace(model, tokens_T)
    other = torch.from_numpy(np.roll(tokens_T, 3))[None]
    with torch.inference_mode():
        model(other)  # whatever passed through the model meanwhile
        weights_HTT = trace.weights(0, slice(None))
        torch.testing.assert_close(weights_HTT.sum(-1), torch.ones(weights_HTT.shape[:2]))
        x_1TD = model.blocks[1](trace.streams[1][None], trace.turns(16), trace.context)
        torch.testing.assert_close(x_1TD[0], trace.streams[2], atol=2e-6, rtol=1e-5)
        with pytest.raises(ValueError, match="must know the modality of each position"):
            model.blocks[1](trace.streams[1][None, :5], trace.turns(16)[:, :5], trace.context)


def test_parameters_are_counted_whole_and_as_a_token_meets_them():
    config = replace(DENSE, fixes=(TOWERS,))
    model, bare = Transformer(config), Transformer(DENSE)
    count = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, bare)]
    shared = sum(p.numel() for name, p in bare.named_parameters() if not name.startswith("blocks."))
    assert count[0] == 2 * count[1] - shared and active_parameters(model) == count[1] == active_parameters(bare)
    uses: tuple[dict[str, Any], ...] = ({}, {"training": Recipe()}, {"weights": "int8"})
    for use in uses:
        towers, plain = plan(config, **use), plan(DENSE, **use)
        assert (towers.parameters, towers.active, plain.active) == (*count, count[1])
        assert f"of which a token meets {count[1]:,}" in str(towers) and "token meets" not in str(plain)
        assert towers.cache == plain.cache and towers.weights > plain.weights
        assert towers.activations < 2 * plain.activations + 10**6
    assert places_of(model, "blocks.0.feed_forward.down") == [
        "blocks.0.feed_forward.text.down",
        "blocks.0.feed_forward.image.down",
    ]
    assert places_of(bare, "blocks.0.feed_forward.down") == ["blocks.0.feed_forward.down"]


@pytest.mark.parametrize("muon", [0.0, 0.02])
def test_each_modality_s_parts_learn_at_their_own_rate(muon):
    recipe = Recipe(rate=1e-2, warm_up=0, muon_rate=muon, image_rate=0.0, text_rate=0.5)
    model = warm_start(dense(), TOWERS).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizers = recipe.optimizers(model)
    model(mixed_tokens()).square().mean().backward()
    for optimizer in optimizers:
        recipe.pace(optimizer)
        optimizer.step()
    moved = {name: not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters()}
    assert not any(each for name, each in moved.items() if ".image." in name)
    assert all(each for name, each in moved.items() if ".image." not in name)
    rates = {group["kind"]: group["lr"] for optimizer in optimizers for group in optimizer.param_groups}
    assert rates["gains text"] == 0.5 * recipe.rate and rates["decayed"] == rates["gains"] == recipe.rate
    assert rates["muon text" if muon else "decayed text"] == 0.5 * (muon or recipe.rate)
    plain = Recipe(rate=1e-2).optimizers(model)
    assert [group["kind"] for optimizer in plain for group in optimizer.param_groups] == ["decayed", "gains"]
    independent = replace(recipe, independent=True, weight_decay=1e-3, muon_rate=0.0)
    for group in independent.optimizers(model)[0].param_groups:
        if group["kind"].startswith("decayed") and group["lr"]:
            assert group["lr"] * group["weight_decay"] == pytest.approx(1e-3)
    with pytest.raises(ValueError, match="image_rate multiplies"):
        Recipe(image_rate=-1.0)


def test_muon_by_parts_knows_the_parts_of_both_towers_fused_matrices():
    model = warm_start(dense(), TOWERS)
    rows = fused_rows(model)
    names = {name for name, parameter in model.named_parameters() if parameter in rows}
    assert len(names) == len(rows) == 4 * DENSE.layers and "blocks.0.attention.qkv.image.weight" in names
    assert all(sum(parts) == len(weight) for weight, parts in rows.items())


def test_the_order_of_fixes_does_not_matter_to_one_that_wraps():
    models = [dense(*fixes) for fixes in ((TOWERS, QueryKeyNorm()), (QueryKeyNorm(), TOWERS))]
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    assert isinstance(models[0].get_submodule("blocks.0.attention.query_norm"), ByModality)
    with pytest.raises(ValueError, match=r"both want the slot modality"):
        dense(TOWERS, replace(TOWERS, norms=False))
    unknown = dense(MixtureOfTransformers())
    with pytest.raises(ValueError, match="does not know which tokens are image codes"):
        unknown(mixed_tokens())
    assert MixtureOfTransformers().for_vocabulary(WORDS).codes == WORDS.codes
    assert TOWERS.for_vocabulary(WORDS) is TOWERS


def test_a_run_forks_into_towers_that_go_on_from_its_weights_and_its_optimizer(tmp_path):
    base = replace(LAB, budget=Budget(steps=12), checkpoints=3, monitors=())
    run = base.run(tmp_path / "dense")
    run.wait()
    fork = run.fork(MixtureOfTransformers(), at=8)
    histories = run.history, fork.wait()
    losses = [dict(zip(*history.series("loss"), strict=True)) for history in histories]
    assert fork.origin is not None
    first = fork.origin.step
    assert 0 < first <= 8
    assert losses[1][first] == pytest.approx(losses[0][first], abs=1e-5)  # the same weights
    assert losses[1][first + 1] == pytest.approx(losses[0][first + 1], rel=0.05)  # and moments
    model = fork.result()
    assert isinstance(model.get_submodule("blocks.0.feed_forward"), ByModality) and model.modality.codes == 512
    text, image = (model.get_submodule(place) for place in places_of(model, "blocks.0.feed_forward.down"))
    assert not torch.equal(text.get_parameter("weight"), image.get_parameter("weight"))


def test_a_batch_of_one_modality_leaves_no_weight_without_a_gradient():
    model = warm_start(dense(), TOWERS).train()
    tokens_BT = torch.full((2, 9), FIRST + CODES + 1)
    model(tokens_BT).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
