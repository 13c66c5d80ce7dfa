"""The recipe as fixes tune it, and AdamW with update clipping."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from chameleon_lab.optimization import Constant, Recipe, StableAdamW, tuned
from chameleon_lab.stability import (
    AdamEps,
    IndependentWeightDecay,
    LayerScale,
    MuonForMatrices,
    SigmaReparam,
    UpdateClipping,
)
from chameleon_lab.tokenizers.quantizers import SimQuantizer
from chameleon_lab.transformer import ModelConfig, Transformer

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
CONFIG = ModelConfig(
    vocabulary=20, width=16, layers=2, heads=2, kv_heads=1, head_width=8, ffn_width=24, context=12, fixes=()
)


def pair() -> tuple[nn.Parameter, nn.Parameter]:
    torch.manual_seed(1)
    return nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(7))


def walk(optimizer: torch.optim.Optimizer, parameters: tuple[nn.Parameter, ...], sizes: list[list[float]]) -> None:
    """Steps with random gradients, those of each parameter of the sizes given."""
    rng = torch.Generator().manual_seed(2)
    for row in sizes:
        for parameter, size in zip(parameters, row, strict=True):
            parameter.grad = size * torch.randn(parameter.shape, generator=rng)
        optimizer.step()


# Update clipping


def test_stable_adamw_is_adamw_while_gradients_do_not_grow():
    ours, theirs = pair(), pair()
    sizes = [[0.5**step, 0.3**step] for step in range(12)]
    walk(StableAdamW(ours, **SETTINGS), ours, sizes)
    walk(torch.optim.AdamW(theirs, **SETTINGS), theirs, sizes)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-7)  # the first step's ratio is 1 but for rounding


def test_stable_adamw_divides_the_step_of_a_tensor_whose_gradient_jumps_and_of_no_other():
    ours, theirs = pair(), pair()
    stable, adam = StableAdamW(ours, **SETTINGS), torch.optim.AdamW(theirs, **SETTINGS)
    quiet, jump = [[0.9**step, 0.9**step] for step in range(20)], [[100.0, 0.01]]
    walk(stable, ours, quiet)
    adam.load_state_dict(deepcopy(stable.state_dict()))  # torch would share the tensors
    before = [parameter.detach().clone() for parameter in ours]
    for parameter, start in zip(theirs, before, strict=True):
        parameter.data.copy_(start)
    walk(stable, ours, jump)
    walk(adam, theirs, jump)
    assert torch.equal(ours[1], theirs[1])
    moment = adam.state[theirs[0]]["exp_avg_sq"] / (1 - 0.95**21)
    assert theirs[0].grad is not None
    ratio = float((theirs[0].grad ** 2 / moment).mean().sqrt())
    assert ratio > 3
    assert torch.allclose(ours[0] - before[0], (theirs[0] - before[0]) / ratio, rtol=1e-3, atol=1e-7)


def test_stable_adamw_goes_on_from_adamws_state_and_the_other_way():
    ours, theirs = pair(), pair()
    adam = torch.optim.AdamW(theirs, **SETTINGS)
    walk(adam, theirs, [[1.0, 1.0]] * 3)
    stable = StableAdamW(ours, **SETTINGS)
    stable.load_state_dict(deepcopy(adam.state_dict()))
    for one, other in zip(ours, theirs, strict=True):
        one.data.copy_(other.detach())
        assert stable.state[one]["step"] == 3 and torch.equal(
            stable.state[one]["exp_avg"], adam.state[other]["exp_avg"]
        )
    back = torch.optim.AdamW(ours, **SETTINGS)
    walk(stable, ours, [[0.1, 0.1]])
    back.load_state_dict(deepcopy(stable.state_dict()))
    walk(back, ours, [[0.1, 0.1]])
    walk(adam, theirs, [[0.1, 0.1]])
    walk(adam, theirs, [[0.1, 0.1]])
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_stable_adamw_passes_over_what_has_no_gradient_and_hands_on_the_closures_loss():
    parameters = pair()
    start = parameters[1].detach().clone()
    stable = StableAdamW(parameters, **SETTINGS)

    def closure() -> Tensor:
        stable.zero_grad()
        loss = parameters[0].square().sum()
        loss.backward()
        return loss

    losses = [stable.step(closure).detach() for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]
    assert torch.equal(parameters[1], start)


def test_a_gradient_of_nought_moves_nothing_but_by_decay():
    parameters = pair()
    start = [parameter.detach().clone() for parameter in parameters]
    walk(StableAdamW(parameters, **SETTINGS), parameters, [[0.0, 0.0]])
    for parameter, before in zip(parameters, start, strict=True):
        assert torch.allclose(parameter, before * (1 - 1e-2 * 0.1))


def test_the_recipe_gives_stable_adamw_where_update_clipping_is_asked_for():
    (plain,) = Recipe().optimizers([("weight", nn.Parameter(torch.ones(2, 2)))])
    (clipping,) = tuned(Recipe(), [UpdateClipping()]).optimizers([("weight", nn.Parameter(torch.ones(2, 2)))])
    assert type(plain) is torch.optim.AdamW and type(clipping) is StableAdamW


# Weight decay


def shares(recipe: Recipe) -> dict[str, float]:
    """Which share of each parameter a step without gradient takes away."""
    model = Transformer(CONFIG)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in recipe.optimizers(model.named_parameters()):
        optimizer.step()
    after = dict(model.named_parameters())
    return {name: 1 - float(after[name].detach().norm() / before[name].norm()) for name in before}


@pytest.mark.parametrize("tuning", [(), (MuonForMatrices(0.5),)], ids=["adamw", "muon too"])
@pytest.mark.parametrize("rate", [1e-4, 1e-2, 1.0])
def test_independent_decay_takes_the_same_share_of_matrices_whatever_the_rate(rate, tuning):
    recipe = Recipe(rate=rate, schedule=Constant())
    for name, share in shares(tuned(recipe, [IndependentWeightDecay(1e-2), *tuning])).items():
        assert share == pytest.approx(0.0 if "norm" in name else 1e-2, abs=1e-5)
    for name, share in shares(recipe).items():
        assert share == pytest.approx(0.0 if "norm" in name else rate * 0.1, abs=1e-5)


def test_decay_that_is_independent_of_a_rate_of_nought_is_refused():
    with pytest.raises(ValueError, match=r"independent of the rate needs a rate above 0, not 0\.0"):
        replace(Recipe(independent=True), rate=0.0)
    assert Recipe(rate=0.0).decay == 0.1


@pytest.mark.parametrize(
    "tunings",
    [(), (UpdateClipping(),), (MuonForMatrices(0.5),), (IndependentWeightDecay(0.1),)],
    ids=["adamw", "update clipping", "muon", "independent decay"],
)
def test_trap_10_what_is_frozen_is_not_moved_by_decay_either(tunings):
    model, book = Transformer(CONFIG), SimQuantizer(8, 4)  # whose book is random and stays so
    model.embedding.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    parts = nn.ModuleDict({"model": model, "book": book})
    before = {name: parameter.detach().clone() for name, parameter in parts.named_parameters()}
    for parameter in parts.parameters():
        parameter.grad = torch.zeros_like(parameter)  # left over from before it was frozen
    for optimizer in tuned(Recipe(rate=0.5), tunings).optimizers(parts.named_parameters()):
        optimizer.step()
    for name, parameter in parts.named_parameters():
        decayed = parameter.requires_grad and parameter.ndim > 1
        assert torch.equal(parameter, before[name]) != decayed, name


# Tuning


def test_muon_moves_the_matrices_of_blocks_and_adamw_all_else():
    fixes = (LayerScale(), SigmaReparam())
    model = Transformer(replace(CONFIG, fixes=fixes))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    adam, muon = tuned(Recipe(), [MuonForMatrices()]).optimizers(model.named_parameters())
    moved = {names[id(parameter)] for group in muon.param_groups for parameter in group["params"]}
    assert moved == {
        f"blocks.{layer}.{matrix}.weight"
        for layer in range(2)
        for matrix in ("attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down")
    }
    matrices, vectors = ({names[id(parameter)] for parameter in group["params"]} for group in adam.param_groups)
    assert matrices == {"embedding.weight", "head.weight"}
    assert moved | matrices | vectors == set(names.values()) and not vectors & (moved | matrices)
    assert "blocks.0.ffn_scale.weight_D" in vectors and "blocks.0.attention.qkv.scalar_P" in vectors
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(torch.arange(12)[None]).square().mean().backward()
    muon.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in moved)


def test_muon_steps_have_nearly_equal_singular_values():
    matrix = nn.Parameter(torch.zeros(12, 12))
    (_, muon) = Recipe(muon_rate=1.0, muon_weight_decay=0.0).optimizers([("blocks.0.weight", matrix)])
    matrix.grad = torch.diag(torch.logspace(-1, 1, 12))
    muon.step()
    values = torch.linalg.svdvals(matrix.detach())
    assert values.max() / values.min() < 3


def test_eps_is_what_a_tuning_says_and_holds_back_weights_of_small_gradients():
    moved = []
    for recipe in (Recipe(rate=1e-2, eps=1e-5), tuned(Recipe(rate=1e-2, eps=1e-5), [AdamEps(1e-8)])):
        parameter = nn.Parameter(torch.zeros(4))
        (adam,) = recipe.optimizers([("bias", parameter)])
        parameter.grad = torch.full((4,), 1e-6)
        adam.step()
        moved.append(-float(parameter.detach()[0]))
    assert moved[0] == pytest.approx(1e-2 / 11, rel=1e-3) and moved[1] == pytest.approx(1e-2 / 1.01, rel=1e-3)


def test_tunings_of_different_settings_go_together_in_any_order():
    tunings = [IndependentWeightDecay(), UpdateClipping(), AdamEps(), MuonForMatrices()]
    recipe = tuned(Recipe(), tunings)
    assert recipe == tuned(Recipe(), reversed(tunings))
    assert recipe.independent and recipe.update_clipping and recipe.eps == 1e-8 and recipe.muon_rate == 0.02
    assert all(repr(value) in repr(recipe) for value in (1e-4, 1e-8, 0.02))
    assert Recipe() == tuned(Recipe(), [])


@pytest.mark.parametrize(
    ("one", "other", "setting"),
    [
        (AdamEps(1e-8), AdamEps(1e-10), "eps"),
        (MuonForMatrices(0.02), MuonForMatrices(0.1), "muon_rate"),
        (IndependentWeightDecay(1e-4), IndependentWeightDecay(1e-3), "weight_decay"),
    ],
)
def test_two_tunings_of_one_setting_are_an_error_that_names_both(one, other, setting):
    with pytest.raises(ValueError) as caught:
        tuned(Recipe(), [one, other])
    assert all(told in str(caught.value) for told in (repr(one), repr(other), f"recipe's {setting}"))
