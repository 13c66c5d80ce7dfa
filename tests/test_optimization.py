"""The recipe as fixes tune it, and AdamW with update clipping."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from chameleon_lab.by_modality import places_of
from chameleon_lab.optimization import Constant, Exponential, Recipe, StableAdamW, tuned
from chameleon_lab.stability import (
    FIXES,
    AdamEps,
    EmbeddingNorm,
    IndependentWeightDecay,
    LayerScale,
    MuonForMatrices,
    QueryKeyNorm,
    Sandwich,
    SigmaReparam,
    UpdateClipping,
    kind,
)
from chameleon_lab.tokenizers.quantizers import SimQuantizer
from chameleon_lab.training.experiments import LAB
from chameleon_lab.training.modules import Budget
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
    (plain,) = Recipe().optimizers(nn.Linear(2, 2))
    (clipping,) = tuned(Recipe(), [UpdateClipping()]).optimizers(nn.Linear(2, 2))
    assert type(plain) is torch.optim.AdamW and type(clipping) is StableAdamW


# Weight decay


def shares(recipe: Recipe) -> dict[str, float]:
    """Which share of each parameter a step without gradient takes away."""
    model = Transformer(CONFIG)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in recipe.optimizers(model):
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
    for optimizer in tuned(Recipe(rate=0.5), tunings).optimizers(parts):
        optimizer.step()
    for name, parameter in parts.named_parameters():
        decayed = parameter.requires_grad and parameter.ndim > 1
        assert torch.equal(parameter, before[name]) != decayed, name


# Tuning


def test_muon_moves_the_matrices_of_blocks_and_adamw_all_else():
    fixes = (LayerScale(), SigmaReparam())
    model = Transformer(replace(CONFIG, fixes=fixes))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    adam, muon = tuned(Recipe(), [MuonForMatrices()]).optimizers(model)
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
    model = Transformer(CONFIG)
    (_, muon) = Recipe(muon_rate=1.0, muon_weight_decay=0.0).optimizers(model)
    matrix = model.get_parameter("blocks.0.attention.out.weight")
    nn.init.zeros_(matrix)
    matrix.grad = torch.diag(torch.logspace(-1, 1, 16))
    muon.step()
    values = torch.linalg.svdvals(matrix.detach())
    assert values.max() / values.min() < 3


def test_eps_is_what_a_tuning_says_and_holds_back_weights_of_small_gradients():
    moved = []
    for recipe in (Recipe(rate=1e-2, eps=1e-5), tuned(Recipe(rate=1e-2, eps=1e-5), [AdamEps(1e-8)])):
        parameter = nn.Parameter(torch.zeros(4))
        (adam,) = recipe.optimizers(nn.ParameterList([parameter]))
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


# What a parameter is


def roles(model: nn.Module, recipe: Recipe = Recipe(muon_rate=0.02)) -> dict[str, str]:  # noqa: B008 (frozen)
    """The kind of group in which each parameter is trained."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group["kind"]
        for optimizer in recipe.optimizers(model)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


MATRICES = ("attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down")


@pytest.mark.parametrize("fix", [*FIXES.values(), QueryKeyNorm(groups=2), QueryKeyNorm(groups=4)], ids=repr)
def test_of_every_fix_muon_has_the_blocks_matrices_adamw_decays_the_tables_and_gains_are_left_alone(fix):
    fixes = (fix,) if kind(fix) == "model" else ()
    model = Transformer(replace(CONFIG, heads=4, kv_heads=4, fixes=fixes))
    kinds = roles(model)
    assert kinds.keys() == dict(model.named_parameters()).keys()
    places = [f"blocks.{layer}.{name}" for layer in range(2) for name in MATRICES]
    matrices = {f"{each}.weight" for place in places for each in places_of(model, place)}
    assert {name for name, role in kinds.items() if role == "muon"} == matrices
    assert {name for name, role in kinds.items() if role == "decayed"} == {"embedding.weight", "head.weight"}
    without = roles(model, Recipe())
    assert {name for name, role in without.items() if role == "decayed"} == matrices | {
        "embedding.weight",
        "head.weight",
    }


def test_every_gain_of_the_lab_is_at_rest_under_decay_alone():
    fixes = (QueryKeyNorm(groups=2), EmbeddingNorm(), LayerScale(), Sandwich(), SigmaReparam())
    model = Transformer(replace(CONFIG, heads=4, kv_heads=4, fixes=fixes))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in Recipe(rate=0.5, weight_decay=0.5, muon_rate=0.5, muon_weight_decay=0.5).optimizers(model):
        optimizer.step()
    norms = ("norm", "scale", "scalar_P", "bias")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == any(word in name for word in norms), name


def test_a_module_of_ones_own_is_trained_by_its_slot_and_says_otherwise_where_it_is_wrong():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.turn = nn.Parameter(torch.ones(2, 8)), nn.Parameter(torch.eye(8))
            self.inner = nn.Linear(8, 8)

        def forward(self, x_BTHK: Tensor) -> Tensor:
            return self.inner(x_BTHK @ self.turn) * self.weight

    class Declared(Own):
        roles: ClassVar = {"turn": "matrix", "weight": "table"}

    @dataclass(frozen=True)
    class Fill:
        module: type[nn.Module]
        slot: str

        def install(self, model: Transformer) -> None:
            for block in model.blocks:
                owner = block.attention if hasattr(block.attention, self.slot) else block
                model.fill(owner, self.slot, self.module(), self)  # pyright: ignore[reportArgumentType]

    def own(module: type[nn.Module], slot: str) -> list[str]:
        model = Transformer(replace(CONFIG, fixes=(Fill(module, slot),)))
        place = next(name for name in model.filled)
        return [roles(model)[f"{place}.{name}"] for name in ("weight", "turn", "inner.weight", "inner.bias")]

    assert own(Own, "query_norm") == ["gains", "gains", "muon", "gains"]
    assert own(Own, "ffn_dropout") == ["decayed", "decayed", "muon", "gains"]
    assert own(Declared, "query_norm") == ["decayed", "muon", "muon", "gains"]


def test_muon_is_only_for_blocks_and_a_tied_matrix_is_a_table():
    model = nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 4), nn.Conv2d(2, 2, 3), nn.LayerNorm([2, 4]))
    assert list(roles(model).values()) == ["decayed", "decayed", "decayed", "gains", "gains", "gains", "gains"]
    tied = Transformer(replace(CONFIG, tied=True))
    assert roles(tied)["embedding.weight"] == "decayed" and "head.weight" not in roles(tied)


# Muon


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_muons_steps_are_of_the_scale_that_the_recipe_names(scale):
    """A step on a matrix of 16 columns: singular values near 1, times the named scale of its rows and columns."""
    model = Transformer(replace(CONFIG, heads=1, kv_heads=1, head_width=16))
    (_, muon) = Recipe(muon_rate=1.0, muon_weight_decay=0.0, muon_scale=scale).optimizers(model)
    square, tall = (model.get_parameter(f"blocks.0.attention.{name}.weight") for name in ("out", "qkv"))
    for matrix in (square, tall):
        nn.init.zeros_(matrix)
        matrix.grad = torch.linalg.qr(torch.randn(matrix.shape)).Q
    muon.step()
    factors = {16: 1.0, 48: 3**0.5} if scale == "original" else {16: 0.2 * 4, 48: 0.2 * 48**0.5}
    for matrix in (square, tall):
        sizes = torch.linalg.svdvals(matrix.detach()) / factors[matrix.shape[0]]
        assert sizes.min() > 0.6 and sizes.max() < 1.3


def test_a_scale_that_muon_does_not_know_is_named():
    with pytest.raises(ValueError, match="Muon knows no scale 'kimi'; there are original and match_rms_adamw"):
        tuned(Recipe(), [MuonForMatrices(scale="kimi")])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("fixes", [(), (SigmaReparam(),)], ids=["plain", "sigma reparam"])
@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_by_parts_each_part_moves_as_a_matrix_of_its_own_would(fixes, scale):
    """Against torch's Muon on copies of the parts, over several steps, and the rest against whole matrices."""
    recipe = Recipe(muon_rate=0.1, muon_weight_decay=0.3, muon_scale=scale, muon_by_parts=True)
    torch.manual_seed(0)
    model = Transformer(replace(CONFIG, fixes=fixes))
    (_, muon) = recipe.optimizers(model)
    sizes = {"attention.qkv": (16, 8, 8), "feed_forward.gate_up": (24, 24)}
    names = {parameter: name for name, parameter in model.named_parameters()}
    copies: dict[str, list[nn.Parameter]] = {}
    for parameter in muon.param_groups[0]["params"]:
        rows = next((each for key, each in sizes.items() if key in names[parameter]), (len(parameter),))
        copies[names[parameter]] = [nn.Parameter(part.clone()) for part in parameter.detach().split(rows)]
    theirs = torch.optim.Muon(
        [part for parts in copies.values() for part in parts],
        lr=0.1, momentum=0.95, weight_decay=0.3, adjust_lr_fn=scale,
    )  # fmt: skip
    named = dict(model.named_parameters())
    for _ in range(4):
        for name, parts in copies.items():
            named[name].grad = whole = torch.randn_like(named[name])
            for part, gradient in zip(parts, whole.split([len(each) for each in parts]), strict=True):
                part.grad = gradient.clone()
        muon.step()
        theirs.step()
        for name, parts in copies.items():
            assert torch.equal(named[name], torch.cat([*parts])), name
    assert set(muon.state) == {named[name] for name in copies}
    assert all(isinstance(each, nn.Parameter) for each in muon.param_groups[0]["params"])
    back = torch.optim.Muon([named[name] for name in copies], lr=0.1)
    back.load_state_dict(deepcopy(muon.state_dict()))
    for name, parts in copies.items():
        past = torch.cat([theirs.state[part]["momentum_buffer"] for part in parts])
        assert torch.equal(back.state[named[name]]["momentum_buffer"], past)


def test_by_parts_passes_over_what_has_no_gradient_and_leaves_no_view_behind_when_a_step_fails(monkeypatch):
    model = Transformer(CONFIG)
    (_, muon) = Recipe(muon_rate=0.1, muon_by_parts=True).optimizers(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    muon.step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)

    def fails(*_args: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(torch.optim.Muon, "_init_group", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        muon.step()
    assert all(isinstance(each, nn.Parameter) for each in [*muon.state, *muon.param_groups[0]["params"]])


# Rates


def own_groups(model: Transformer) -> torch.optim.Optimizer:
    """The head at a tenth of the recipe's rate, and decayed more; the rest as it is."""
    head = [{"params": [model.head.weight], "lr": 1e-3, "weight_decay": 0.5}]
    rest = [{"params": [model.embedding.weight], "lr": 1e-2, "weight_decay": 0.0}]
    return torch.optim.AdamW(head + rest)


def test_groups_of_ones_own_keep_their_ratio_of_rates_and_their_decay():
    recipe, optimizer = Recipe(rate=1e-2, weight_decay=0.1), own_groups(Transformer(CONFIG))
    for rate, decay in ((1e-2, 0.1), (4e-2, 0.3), (0.0, 0.3), (1e-2, 0.1)):
        for multiplier in (0.25, 1.0, 0.5):
            replace(recipe, rate=rate, weight_decay=decay).pace(optimizer, multiplier)
            rates = [group["lr"] for group in optimizer.param_groups]
            assert rates == pytest.approx([0.1 * rate * multiplier, rate * multiplier])
            assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    kept = own_groups(Transformer(CONFIG))
    kept.load_state_dict(deepcopy(optimizer.state_dict()))  # as a run that is taken up again
    recipe.pace(kept, 1.0)
    assert [group["lr"] for group in kept.param_groups] == pytest.approx([1e-3, 1e-2])


def test_the_recipes_own_groups_follow_it_wherever_it_goes():
    model = Transformer(CONFIG)
    adam, muon = Recipe(rate=1e-2, muon_rate=0.02).optimizers(model)
    changed = Recipe(rate=3e-2, weight_decay=0.7, muon_rate=0.05, muon_weight_decay=0.2)
    for optimizer in (adam, muon):
        changed.pace(optimizer, 0.5)
    pairs = [(group["lr"], group["weight_decay"]) for each in (adam, muon) for group in each.param_groups]
    assert pairs == [(1.5e-2, 0.7), (1.5e-2, 0.0), (0.025, 0.2)]
    replace(changed, muon_rate=0.0, independent=True).pace(muon)
    assert muon.param_groups[0]["lr"] == 0


def test_a_checkpoint_of_before_groups_had_kinds_goes_on_as_it_was():
    model, recipe = Transformer(CONFIG), Recipe(rate=1e-2, muon_rate=0.02)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in recipe.optimizers(model):
        optimizer.step()
        state = deepcopy(optimizer.state_dict())
        for group in state["param_groups"]:
            del group["kind"]
            group["lr"] *= 0.3  # as a schedule left it
        optimizer.load_state_dict(state)
        recipe.pace(optimizer)
        kinds = ["muon"] if isinstance(optimizer, torch.optim.Muon) else ["decayed", "gains"]
        assert [group["kind"] for group in optimizer.param_groups] == kinds
        assert {group["lr"] for group in optimizer.param_groups} == {0.02 if "muon" in kinds else 1e-2}


class Recorded(torch.optim.AdamW):
    """AdamW that keeps the rates and decays of its steps."""

    paces: ClassVar[list[list[tuple[float, float]]]] = []

    def step(self, closure=None):
        self.paces.append([(group["lr"], group["weight_decay"]) for group in self.param_groups])
        return super().step(closure)


@dataclass(frozen=True)
class OwnGroups(Recipe):
    """The head at a tenth of the rate, without decay."""

    def optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        head = [each for name, each in model.named_parameters() if "head" in name]
        rest = [each for name, each in model.named_parameters() if "head" not in name]
        groups = [{"params": head, "lr": self.rate / 10, "weight_decay": 0.0}, {"params": rest, "lr": self.rate}]
        return [Recorded(groups, weight_decay=0.2)]


def test_a_training_follows_the_schedule_with_groups_of_ones_own(tmp_path):
    recipe = OwnGroups(rate=1e-2, warm_up=2, schedule=Exponential(0.25))
    Recorded.paces.clear()
    run = replace(LAB, budget=Budget(steps=4), recipe=recipe, monitors=(), checkpoints=0).run(tmp_path / "run")
    rates = run.wait().series("rate")[1]
    assert rates == pytest.approx([1e-2 * recipe.multiplier(step, step / 4) for step in range(4)])
    assert Recorded.paces == [[(pytest.approx(rate / 10), 0.0), (pytest.approx(rate), 0.2)] for rate in rates]
