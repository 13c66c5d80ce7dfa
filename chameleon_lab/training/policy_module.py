"""The LightningModule of a training with rewards: rollouts are drawn where a step begins, and kept for inner steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chameleon_lab.generation.grammar import Mask
from chameleon_lab.monitors.watch import Monitor
from chameleon_lab.optimization import Recipe
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.modules import LanguageModule
from chameleon_lab.training.policy import GroupRollouts, PolicyObjective, PromptRows, RolloutBatch
from chameleon_lab.transformer import Transformer

POLICY_SETTINGS = ("epsilon", "beta")
"""What of the objective can be changed while it trains, besides what any training of a transformer can."""


class PolicyModule(LanguageModule):
    """Trains a transformer on its own rollouts: `inner_steps` steps on those of one round. `reference` stands still."""

    alone = "rollouts are drawn by one process"

    def __init__(
        self,
        model: Transformer,
        reference: Transformer,
        rollouts: GroupRollouts,
        recipe: Recipe,
        budget: Budget,
        *,
        inner_steps: int = 1,
        monitors: Sequence[Monitor] = (),
    ) -> None:
        super().__init__(model, rollouts.objective, recipe, budget, monitors=monitors)  # pyright: ignore[reportArgumentType]
        self.rollouts, self.inner_steps = rollouts, inner_steps
        self._reference = (reference.eval().requires_grad_(False),)  # in a tuple: no checkpoint is to hold it
        self._round: tuple[int, RolloutBatch] | None = None

    def extend(self, batch: PromptRows) -> RolloutBatch:
        """The rollouts of these prompts, or those of the round under way. The model does not notice."""
        number = self.step // self.inner_steps
        if self.inner_steps > 1 and self.batches_each > 1:
            raise ValueError(
                "accumulate_grad_batches does not go with inner_steps: give more prompts a step (GRPO(prompts=...))."
            )
        if self.inner_steps > 1 and self._round is not None and self._round[0] == number:
            return self._round[1].to(self.device)
        training, objective = self.model.training, self._policy
        self.model.eval()
        try:
            fresh = replace(self.rollouts, objective=objective)(self.model, batch).to(self.device)
            if self.inner_steps > 1:
                fresh = replace(fresh, drawn_logs_BT=objective.logs(self.model, fresh))
        finally:
            self.model.train(training)
        if objective.beta:
            reference = self._reference[0].to(self.device)
            fresh = replace(fresh, reference_logs_BT=objective.logs(reference, fresh))
        self._round = number, fresh
        return fresh

    @property
    def _policy(self) -> PolicyObjective:
        objective: Any = self.objective
        return objective

    def loss_and_values(self, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss, values = super().loss_and_values(batch)
        return loss, {**values, **{name: torch.tensor(value) for name, value in batch.figures.items()}}

    def _say_starving(self) -> None:
        """Rollouts are this training's own work, and no loader's."""

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, **{name: getattr(self._policy, name) for name in POLICY_SETTINGS}}

    def check(self, name: str, value: Any) -> None:
        super().check(name, value)
        if name == "epsilon" and not 0 < value < 1:
            raise ValueError(f"epsilon must lie between 0 and 1, not at {value}.")

    def _change(self, name: str, value: Any, since: int) -> None:
        if name in POLICY_SETTINGS:
            self.objective = replace(self._policy, **{name: float(value)})  # pyright: ignore[reportAttributeAccessIssue]
        else:
            super()._change(name, value, since)

    # A checkpoint within a round has its rollouts: the weights that drew them are gone.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self._round is not None and self.step % self.inner_steps:
            number, batch = self._round
            plain = {each.name: getattr(batch, each.name) for each in fields(batch)}
            plain |= {"masks": [torch.from_numpy(mask.allowed_V) for mask in batch.masks], "figures": {**batch.figures}}
            checkpoint["round"] = {"number": number, "batch": plain}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._round = None
        if (saved := checkpoint.get("round")) is not None:
            masks = tuple(Mask(np.asarray(allowed_V)) for allowed_V in saved["batch"]["masks"])
            self._round = saved["number"], RolloutBatch(**{**saved["batch"], "masks": masks})
