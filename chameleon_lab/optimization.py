"""How weights are changed: the recipe, its schedules, what tunes it, and its optimizers."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from chameleon_lab.by_modality import TOWERS, ByModality, tower_of
from chameleon_lab.parts import require
from chameleon_lab.transformer import Attention, Block, FeedForward

MuonScale = Literal["original", "match_rms_adamw"]


class RateSchedule(Protocol):
    """What the rate is multiplied by at a share of the budget, 0 to 1."""

    def multiplier(self, progress: float) -> float: ...


@dataclass(frozen=True)
class Constant:
    def multiplier(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class CoolDown:
    """Holds, and falls linearly to `floor` over the last `share` of the budget."""

    share: float = 0.25
    floor: float = 0.02

    def multiplier(self, progress: float) -> float:
        return min(1.0, self.floor + (1 - self.floor) * (1.0 - progress) / self.share)


@dataclass(frozen=True)
class Cosine:
    """Falls to `floor` along half a cosine."""

    floor: float = 0.0

    def multiplier(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Exponential:
    """From `start` to `end` by equal factors; a ramp where it ends higher."""

    end: float = 0.01
    start: float = 1.0

    def multiplier(self, progress: float) -> float:
        return self.start * (self.end / self.start) ** progress


Role = Literal["matrix", "table", "gain"]


def role_of(path: str, owner: nn.Module, name: str) -> Role:
    """What the parameter `name` of the module `owner` at `path` is, and so how it is trained.

    A *matrix* multiplies what passes through it: the weight of an `nn.Linear`. It is decayed, and inside the blocks
    Muon may have it. A *gain* scales or shifts single channels, and is not decayed: whatever has one dimension, and
    the parameters of norms and of other modules in the slots `..._norm` and `..._scale`. A *table* is any other
    parameter of two dimensions or more (embeddings, codebooks, convolutions): decayed, and never Muon's.

    A module of your own says otherwise by a class attribute: `roles = {"weight": "matrix"}`.
    """
    declared: Mapping[str, Role] = getattr(owner, "roles", {})
    if name in declared:
        return declared[name]
    if getattr(owner, name).ndim < 2:
        return "gain"
    if ".lora_" in path:  # an adapter's factor: its size means something, and Muon's steps have all one size
        return "table"
    if isinstance(owner, nn.Linear):
        return "matrix"
    slots = path.split(".")
    normed = isinstance(owner, nn.LayerNorm | nn.RMSNorm) or any(slot.endswith(("norm", "scale")) for slot in slots)
    return "gain" if normed and not isinstance(owner, nn.Embedding) else "table"


@dataclass(frozen=True)
class Recipe:
    """Optimizer settings; by default Chameleon's (arXiv 2405.09818, section 2.3), whose decay's end is unpublished.

    AdamW, with `weight_decay` on matrices and tables (see `role_of`): each step takes away rate * weight_decay of a
    weight. `update_clipping` makes it a `StableAdamW`. Where decay is `independent` of rates, a step takes away the
    schedule's multiplier * weight_decay. The rate warms up linearly over `warm_up` steps and follows the schedule.

    `muon_rate` > 0 gives the blocks' matrices to torch's Muon, which takes away muon_rate * muon_weight_decay.
    `muon_scale` is what multiplies its rate for a matrix of so many rows and columns: "original", sqrt(max(1, rows /
    columns)), as Keller Jordan's, or "match_rms_adamw", 0.2 sqrt(max(rows, columns)), with which AdamW's rates and
    decay can be kept (arXiv 2502.16982). `muon_by_parts` orthogonalises query, key and value, and gate and up, each
    for itself, though each group is one matrix (see `PartwiseMuon`).

    `text_rate` and `image_rate` multiply the rates of parts that are one modality's own (see `by_modality`); 0 leaves
    them as they are.

    Raises ValueError for a decay that is to be independent of a rate of 0, since torch multiplies the two, for an
    unknown scale, and for a modality's rate below 0.
    """

    rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5
    weight_decay: float = 0.1
    independent: bool = False
    clip: float = 1.0
    warm_up: int = 4000
    schedule: RateSchedule = Exponential()
    update_clipping: bool = False
    muon_rate: float = 0.0
    muon_weight_decay: float = 0.01
    muon_scale: MuonScale = "original"
    muon_by_parts: bool = False
    text_rate: float = field(default=1.0, metadata={"later": True})
    image_rate: float = field(default=1.0, metadata={"later": True})

    def __post_init__(self) -> None:
        for tower in TOWERS:
            if not 0 <= (factor := getattr(self, f"{tower}_rate")) < math.inf:
                raise ValueError(f"{tower}_rate multiplies the rates of {tower} parts: 0 or more, not {factor}.")
        if self.independent and not self.rate > 0:
            raise ValueError(f"A weight decay independent of the rate needs a rate above 0, not {self.rate}.")
        if self.muon_scale not in (scales := get_args(MuonScale)):
            raise ValueError(f"Muon knows no scale {self.muon_scale!r}; there are {' and '.join(scales)}.")
        require(self.schedule, "a schedule", "multiplier")

    def multiplier(self, step: int, progress: float) -> float:
        """What the rates are multiplied by at a step."""
        return min(1.0, (step + 1) / max(1, self.warm_up)) * self.schedule.multiplier(progress)

    @property
    def decay(self) -> float:
        """The weight decay as torch counts it, which multiplies it by the rate."""
        return self.weight_decay / self.rate if self.independent else self.weight_decay

    @property
    def muon_decay(self) -> float:
        """The same for Muon's matrices."""
        return self.weight_decay / self.muon_rate if self.independent else self.muon_weight_decay

    def optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """AdamW of what is decayed and of what is not, in this order of groups; then Muon, where it has anything.

        What needs no gradient is left out. `pace` sets the rates of each step.
        """
        in_blocks = {each for block in model.modules() if isinstance(block, Block) for each in block.parameters()}
        groups: dict[str, list[nn.Parameter]] = {"decayed": [], "gains": [], "muon": []}
        towers = tower_of(model) if (self.text_rate, self.image_rate) != (1.0, 1.0) else {}
        members = set[nn.Parameter]()  # a tied matrix is what it is where it comes first
        for path, owner in model.named_modules():
            for name, parameter in owner.named_parameters(recurse=False):
                if not parameter.requires_grad or parameter in members:
                    continue
                members.add(parameter)
                role = role_of(path, owner, name)
                muon = self.muon_rate and role == "matrix" and parameter.ndim == 2 and parameter in in_blocks
                group = "muon" if muon else "gains" if role == "gain" else "decayed"
                groups.setdefault(f"{group} {towers.get(parameter, '')}".strip(), []).append(parameter)
        muon = [
            {"params": parameters, "kind": name}
            for name in [name for name in groups if name.startswith("muon")]
            if (parameters := groups.pop(name))
        ]
        adam = StableAdamW if self.update_clipping else torch.optim.AdamW
        pair = [{"params": parameters, "kind": kind} for kind, parameters in groups.items()]
        optimizers: list[torch.optim.Optimizer] = [adam(pair, lr=self.rate, betas=self.betas, eps=self.eps, fused=True)]
        if muon:
            settings = {"lr": self.muon_rate, "momentum": 0.95, "adjust_lr_fn": self.muon_scale}
            parts = fused_rows(model) if self.muon_by_parts else {}
            optimizers.append(PartwiseMuon(muon, parts, **settings) if parts else torch.optim.Muon(muon, **settings))
        for optimizer in optimizers:
            self.pace(optimizer)
        return optimizers

    def pace(self, optimizer: torch.optim.Optimizer, multiplier: float = 1.0) -> None:
        """Sets rates and decays of an optimizer's groups for a step.

        Groups that this recipe did not make keep their own decay and their rate's ratio to the recipe's, as it was
        when they were paced first.
        """
        paces = {
            "decayed": (self.rate, self.decay),
            "gains": (self.rate, 0.0),
            "muon": (self.muon_rate, self.muon_decay if self.muon_rate else 0.0),
        }
        for index, group in enumerate(optimizer.param_groups):
            if "kind" not in group:
                group["kind"] = _unnamed(optimizer, index)
                group["own_rate"], group["recipe_rate"] = float(group["lr"]), self.rate
            kind, _, tower = group["kind"].partition(" ")
            if kind in paces:
                factor = getattr(self, f"{tower}_rate") if tower else 1.0
                rate, decay = paces[kind]
                rate *= factor
                # torch multiplies decay by the rate, of which an independent one is to know nothing
                group["weight_decay"] = decay / (factor or 1.0) if self.independent else decay
            else:
                rate = group["own_rate"] * (self.rate / group["recipe_rate"] if group["recipe_rate"] else 1.0)
            group["lr"] = rate * multiplier


def _unnamed(optimizer: torch.optim.Optimizer, index: int) -> str:
    """The kind of a group without one: a person's own, but for those of checkpoints that were written before groups
    had kinds, whose optimizers have steps behind them; there, all were the recipe's."""
    if not optimizer.state:
        return "own"
    return "muon" if isinstance(optimizer, torch.optim.Muon) else "gains" if index else "decayed"


def fused_rows(model: nn.Module) -> dict[Tensor, tuple[int, ...]]:
    """How many rows of each fused matrix belong to which part: query, key, value; gate, up."""
    rows: dict[Tensor, tuple[int, ...]] = {}
    for module in model.modules():
        if isinstance(module, Attention):
            queries, keys = (heads * module.head_width for heads in (module.heads, module.kv_heads))
            sizes = queries, keys, keys
            towers = (module.qkv.text, module.qkv.image) if isinstance(module.qkv, ByModality) else (module.qkv,)
        elif isinstance(module, FeedForward):
            fused = module.gate_up
            towers = (fused,)
            sizes = (fused.out_features // 2,) * 2 if isinstance(fused, nn.Linear) else getattr(fused, "parts", ())
        else:
            continue
        for each in towers:
            weight = getattr(each, "weight", None)
            if isinstance(weight, Tensor) and sum(sizes) == len(weight):  # else a module of one's own: left whole
                rows[weight] = sizes
    return rows


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Has parameters whose names match one of the patterns not trained; a tied one has two names.

    Raises ValueError for a pattern that matches nothing, and where nothing is left to train.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            some = ", ".join([*names][:4])
            raise ValueError(
                f"No parameter's name matches the pattern {pattern!r} of what is frozen; there are {some}, ..."
            )
        for name in matches:
            names[name].requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in names.values()):
        raise ValueError(f"Everything is frozen by {', '.join(patterns)}, so that nothing is left to train.")


class FrozenRows:
    """Rows of tables that stand still to the bit while the others are trained, whatever the optimizer.

    A gradient of 0 is not enough: weight decay and momentum move a row all the same. So their gradients are cleared,
    that they count neither in the clipped norm nor in the optimizer's state, and after a step the rows are put back.
    """

    def __init__(self, owners: Iterable[nn.Embedding | nn.Linear] = (), rows: Sequence[int] = ()) -> None:
        self._owners, self._rows_R = tuple(owners), torch.tensor(rows, dtype=torch.long)

    def clear_gradients(self) -> None:
        for table_VD, rows_R in self._tables():
            if table_VD.grad is not None:
                table_VD.grad[rows_R] = 0.0

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """The optimizers step inside."""
        with torch.no_grad():
            before = [(table_VD, rows_R, table_VD[rows_R]) for table_VD, rows_R in self._tables()]
        yield
        with torch.no_grad():
            for table_VD, rows_R, values_RD in before:
                table_VD[rows_R] = values_RD

    def _tables(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each table once, also where embedding and head are tied."""
        if not len(self._rows_R):
            return
        for table_VD in {id(owner.weight): owner.weight for owner in self._owners}.values():
            if table_VD.requires_grad:
                yield table_VD, self._rows_R.to(table_VD.device)


class StableAdamW(torch.optim.AdamW):
    """AdamW whose step on a tensor is divided by max(1, RMS of gradient / sqrt(second moment)).

    A tensor whose gradients outgrow what Adam remembers of them would move too far; this holds it back (update
    clipping; arXiv 2304.13013, section 3, after Adafactor, arXiv 1804.04235). The weight decay is divided with the
    step. State and settings are AdamW's, so that either goes on from the other's. Needs room for one more copy of the
    weights during a step.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step. `closure`: as in torch."""
        with torch.enable_grad():
            loss = closure() if closure else None
        before = {p: p.clone() for group in self.param_groups for p in group["params"] if p.grad is not None}
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter not in before:
                    continue
                excess = self._excess(parameter, group["betas"][1], group["eps"])
                parameter.copy_(torch.lerp(before[parameter], parameter, excess.clamp_min(1.0).reciprocal()))
        return loss

    def _excess(self, parameter: Tensor, beta: float, eps: float) -> Tensor:
        """The root mean square of a tensor's gradient over the root of its second moment, bias corrected."""
        state = self.state[parameter]
        moment = state["exp_avg_sq"] / (1 - beta ** state["step"].to(parameter.device))
        return (parameter.grad.square() / moment.clamp_min(eps**2)).mean().sqrt()  # pyright: ignore[reportOptionalMemberAccess]


class PartwiseMuon(torch.optim.Muon):
    """Muon that orthogonalises each part of a fused matrix for itself.

    `parts`: of some of its parameters, how many rows each part has. Momentum is kept as torch's Muon keeps it, one
    tensor a parameter, so that either goes on from the other's state.
    """

    def __init__(self, params: Any, parts: Mapping[Tensor, tuple[int, ...]], **settings: Any) -> None:
        super().__init__(params, **settings)
        self._parts = dict(parts)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step. `closure`: as in torch."""
        with torch.enable_grad():
            loss = closure() if closure else None
        whole = [group["params"] for group in self.param_groups]
        views: list[Tensor] = []
        try:  # torch's own step, on views that share the memory of weights, gradients and momentum
            for group in self.param_groups:
                group["params"] = [view for parameter in group["params"] for view in self._views(parameter)]
                views += group["params"]
            super().step()
        finally:
            for group, parameters in zip(self.param_groups, whole, strict=True):
                group["params"] = parameters
            for view in views:
                if not isinstance(view, nn.Parameter):
                    self.state.pop(view, None)
        return loss

    def _views(self, parameter: Tensor) -> list[Tensor]:
        if parameter not in self._parts or parameter.grad is None:
            return [parameter]
        sizes, state = self._parts[parameter], self.state[parameter]
        momentum = state.setdefault("momentum_buffer", torch.zeros_like(parameter.grad))
        views = list(parameter.detach().split(sizes))
        for view, gradient, past in zip(views, parameter.grad.split(sizes), momentum.split(sizes), strict=True):
            view.grad = gradient
            self.state[view] = {"momentum_buffer": past}
        return views


class Tuning(Protocol):
    """What makes another recipe of a recipe: a fix on the optimizer's side (see `stability`)."""

    def tune(self, recipe: Recipe) -> Recipe: ...


def tuned(recipe: Recipe, tunings: Iterable[Tuning]) -> Recipe:
    """The recipe with each tuning applied in order. Raises ValueError when two change one setting, naming both."""
    changed: dict[str, Tuning] = {}
    for tuning in tunings:
        after = tuning.tune(recipe)
        for name in (each.name for each in fields(Recipe)):
            if getattr(after, name) == getattr(recipe, name):
                continue
            if name in changed:
                raise ValueError(f"{tuning} and {changed[name]} both set the recipe's {name}; keep one of them.")
            changed[name] = tuning
        recipe = after
    return recipe
