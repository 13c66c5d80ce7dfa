"""How weights are changed: the recipe, its schedules, what tunes it, and the optimizers made from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Schedule(Protocol):
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


@dataclass(frozen=True)
class Recipe:
    """Optimizer settings; by default Chameleon's (arXiv 2405.09818, section 2.3), whose decay's end is unpublished.

    AdamW, with `weight_decay` on matrices only: each step takes away rate * weight_decay of a weight. `update_clipping`
    makes it a `StableAdamW`. `muon_rate` > 0 gives the blocks' matrices to Muon (torch's own), which takes away
    muon_rate * muon_weight_decay. Where decay is `independent` of rates, a step takes the schedule's multiplier *
    weight_decay of either's. The rate warms up linearly over `warm_up` steps and follows the schedule.

    Raises ValueError for a decay that is to be independent of a rate of 0, since torch multiplies the two.
    """

    rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5
    weight_decay: float = 0.1
    independent: bool = False
    clip: float = 1.0
    warm_up: int = 4000
    schedule: Schedule = Exponential()
    update_clipping: bool = False
    muon_rate: float = 0.0
    muon_weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.independent and not self.rate > 0:
            raise ValueError(f"A weight decay independent of the rate needs a rate above 0, not {self.rate}.")

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

    @property
    def paces(self) -> list[tuple[float, float]]:
        """(rate, weight decay) of each of the optimizers."""
        return [(self.rate, self.decay)] + ([(self.muon_rate, self.muon_decay)] if self.muon_rate else [])

    def optimizers(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> list[torch.optim.Optimizer]:
        """AdamW of matrices (decayed) and vectors (not), in this order of groups; then Muon, where there is any."""
        matrices, vectors, muon = [], [], []
        for name, parameter in parameters:
            if not parameter.requires_grad:
                continue
            if self.muon_rate and ".blocks." in f".{name}" and parameter.ndim == 2:
                muon.append(parameter)
            else:
                (matrices if parameter.ndim > 1 else vectors).append(parameter)
        groups = [
            {"params": matrices, "weight_decay": self.decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        kind = StableAdamW if self.update_clipping else torch.optim.AdamW
        made: list[torch.optim.Optimizer] = [kind(groups, lr=self.rate, betas=self.betas, eps=self.eps, fused=True)]
        if muon:
            made.append(torch.optim.Muon(muon, lr=self.muon_rate, momentum=0.95, weight_decay=self.muon_decay))
        return made


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


class Tuning(Protocol):
    """What makes another recipe of a recipe: a fix on the optimizer's side (see `stability`)."""

    def tune(self, recipe: Recipe) -> Recipe: ...


def tuned(recipe: Recipe, tunings: Iterable[Tuning]) -> Recipe:
    """The recipe with each tuning applied in order. Raises ValueError when two change one setting, naming both."""
    changed: dict[str, Tuning] = {}
    for tuning in tunings:
        after = tuning.tune(recipe)
        for name in (field.name for field in fields(Recipe)):
            if getattr(after, name) == getattr(recipe, name):
                continue
            if name in changed:
                raise ValueError(f"{tuning} and {changed[name]} both set the recipe's {name}; keep one of them.")
            changed[name] = tuning
        recipe = after
    return recipe
