"""A training with a reward: what there is before it, what decides it, and what comes of it.

```python
def reward(document):  # a request and a reply, in a cell
    return float(len(document.pictures) == 1)

experiment = RewardExperiment("mine", reward, prompts=requests, budget=Budget(steps=100))
RunPanel(experiment.run())
```
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from chameleon_lab.candidates import Scorer
from chameleon_lab.chameleon import Chameleon, ModalityChoice
from chameleon_lab.checkpoints import provenance
from chameleon_lab.documents import Document
from chameleon_lab.generation.grammar import MODALITY_SWITCHES
from chameleon_lab.history import History
from chameleon_lab.monitors.alarms import RULES, Rule, check_rules
from chameleon_lab.monitors.default import MONITORS
from chameleon_lab.monitors.watch import Monitor, check_monitors
from chameleon_lab.optimization import Constant, Recipe, tuned
from chameleon_lab.parts import plain_number, require, require_count, require_each
from chameleon_lab.plain import fingerprint
from chameleon_lab.stability import Penalty, kind
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.training.beginning import require_source, weights_identity
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.policy import GroupRollouts, PolicyObjective, PromptBatches, PromptSource
from chameleon_lab.training.run import Run
from chameleon_lab.training.samples import Drawings
from chameleon_lab.training.trainable import Prepared
from chameleon_lab.transformer import Transformer

if TYPE_CHECKING:
    from chameleon_lab.training.policy_module import PolicyModule


@dataclass(frozen=True)
class GRPO:
    """How rollouts are drawn and learned from (see `training.policy`): `group` rollouts of each of `prompts` prompts.

    `inner_steps` gradient steps are taken on them, in which a token's ratio counts within `epsilon` of 1. `beta` weighs
    the KL to the model that the training began from. Without `scale_rewards` advantages are not divided by the group's
    standard deviation. A reply is of one `modality`, at `temperature`, and of at most `max_tokens`: by default what one
    picture and its end take, or for words what the context holds.
    """

    group: int = 8
    prompts: int = 8
    inner_steps: int = 1
    epsilon: float = 0.2
    beta: float = 0.02
    scale_rewards: bool = True
    temperature: float = 1.0
    modality: ModalityChoice = "picture"
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for groups of one, which are never better than their mean, and for impossible numbers."""
        require_count(self.group, "rollouts of a group", 2)
        require_count(self.prompts, "prompts of a step", 1)
        require_count(self.inner_steps, "steps on the same rollouts", 1)
        for name, least, most in (("epsilon", 0, 1), ("temperature", 0, np.inf)):
            if not least < plain_number(getattr(self, name), name) < most:
                raise ValueError(f"{name} must lie above {least} and below {most}, not at {getattr(self, name)}.")
        if not plain_number(self.beta, "beta") >= 0:
            raise ValueError(f"beta must be 0 (no KL) or more, not {self.beta}.")
        if self.modality not in MODALITY_SWITCHES:
            raise ValueError(f"modality is one of {', '.join(MODALITY_SWITCHES)}, not {self.modality!r}.")
        if self.max_tokens is not None:
            require_count(self.max_tokens, "tokens of a reply", 1)


GENTLE = Recipe(5e-4, eps=1e-8, weight_decay=0.0, warm_up=5, schedule=Constant())
"""A sixth of the rate that the tiny model was trained with, as it is: what is learned is all that moves the weights."""


@dataclass(frozen=True)
class RewardExperiment:
    """A training with a reward: everything that decides the result but the machine.

    `reward` is a function of a document, the prompt and a reply behind it, the larger the better; a reply whose reward
    reaches `right` counts as right in what is recorded. `prompts` draws a prompt with a random generator. The source of
    both, where a person wrote them, is part of what the experiment is. `begins_from`: a model, its folder or its name,
    which is both where the weights begin and the reference of the KL. It trains without dropout, since the ratio of two
    passes would be noise.
    """

    name: str
    reward: Scorer
    prompts: PromptSource
    budget: Budget
    begins_from: str | Path | Chameleon = field(default="tiny", metadata={"plain": weights_identity})
    grpo: GRPO = GRPO()
    recipe: Recipe = field(
        default_factory=lambda: Recipe(2e-4, eps=1e-8, weight_decay=0.0, warm_up=5, schedule=Constant())
    )
    right: float = 1.0
    penalties: tuple[Penalty, ...] = ()
    monitors: tuple[Monitor, ...] = MONITORS
    rules: tuple[Rule, ...] = RULES
    checkpoints: int = 4
    precision: str = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a part that lacks what its place asks for, or a class where an instance belongs."""
        require(self.reward, "a reward", "__call__")
        require(self.prompts, "a source of prompts", "__call__")
        require(self.budget, "a budget", "progress")
        require(self.grpo, "a GRPO", "group", "inner_steps")
        require(self.recipe, "a recipe", "optimizers", "pace", "multiplier")
        require_each(self.penalties, "a penalty", "penalty")
        check_monitors(self.monitors)
        check_rules(self.rules)
        require_count(self.checkpoints, "checkpoints", 0)
        require_count(self.seed, "the seed", 0)
        require_source(self.begins_from, draws=True)
        plain_number(self.right, "the reward of what is right")

    @property
    def offers(self) -> tuple[str, ...]:
        return ()

    def with_fixes(self, *fixes: Any) -> RewardExperiment:
        """The experiment with fixes of the loss, the recipe or the step. Raises ValueError for one of the model, which
        is that of the weights."""
        kinds = [kind(fix) for fix in fixes]
        if "model" in kinds:
            raise ValueError(f"{fixes[kinds.index('model')]} changes the model, which is that of the weights here.")
        chosen = {each: [fix for fix, of in zip(fixes, kinds, strict=True) if of == each] for each in set(kinds)}
        others = [term for term in self.penalties if all(type(term) is not type(fix) for fix in chosen.get("loss", ()))]
        return replace(
            self,
            recipe=tuned(self.recipe, chosen.get("recipe", [])),
            penalties=(*others, *chosen.get("loss", ())),
            monitors=(*self.monitors, *chosen.get("step", ())),
        )

    def prepare(self, folder: Path) -> Prepared:
        """Raises LicenceError, which is a ValueError, for weights whose licence forbids them to draw."""
        from chameleon_lab.training.policy_module import PolicyModule  # Lightning is slow to import

        lab = self._lab()
        draws = MODALITY_SWITCHES[self.grpo.modality].get("images", True)
        if draws and provenance.forbids_drawing(lab.card) and not lab.acknowledge_licence:
            raise provenance.licence_refusal(lab.card)
        model, reference = (undropped(copy.deepcopy(lab.model).float()).train() for _ in range(2))
        module = PolicyModule(
            model,
            reference,
            self.rollouts(lab),
            self.recipe,
            self.budget,
            inner_steps=self.grpo.inner_steps,
            monitors=self.monitors,
        )
        batches = PromptBatches(self.prompts, self.seed, self.grpo.prompts)
        return Prepared(module, batches, sampler=Drawings(module.model, lambda: lab.tokenizer, self._exhibits))

    def rollouts(self, lab: Chameleon) -> GroupRollouts:
        """What draws and judges replies of this model."""
        grpo = self.grpo
        most = lab.tokenizer.image_tokens + 1 if grpo.modality == "picture" else None
        return GroupRollouts(
            lab.tokenizer,
            lab.engine.grammar_of(MODALITY_SWITCHES[grpo.modality]),
            self.reward,
            PolicyObjective(grpo.temperature, grpo.epsilon, grpo.beta, penalties=self.penalties),
            grpo.group,
            grpo.max_tokens or most,
            grpo.scale_rewards,
            self.right,
        )

    def _lab(self) -> Chameleon:
        source = self.begins_from
        return source if isinstance(source, Chameleon) else Chameleon.load(source, device="cpu")

    def _exhibits(self, tokenizer: MixedModalTokenizer) -> list[tuple[Document, bool]]:
        """The same few prompts each time, none of which is rewarded by its own draw."""
        rng = np.random.default_rng([self.seed, 24])
        return [(self.prompts(rng), self.grpo.modality != "words") for _ in range(4)]

    def finish(self, module: PolicyModule, history: History, folder: Path) -> Chameleon:
        """The model as a `Chameleon`, with the tokenizer and settings of the one that it began from."""
        lab = self._lab()
        return Chameleon(
            module.model.eval(), lab.tokenizer, lab.settings, lab.card, acknowledge_licence=lab.acknowledge_licence
        )

    def product(self, folder: Path) -> None:
        return None

    @property
    def fingerprint(self) -> str:
        """Eight letters that are the same for equal experiments."""
        return fingerprint(self)

    def run(self, folder: Path | str | None = None, trainer: Mapping[str, Any] = MappingProxyType({})) -> Run:
        """Trains in the background, as `Experiment.run` does; returns at once."""
        return Run(self, folder, trainer=trainer).start()


def undropped(model: Transformer) -> Transformer:
    """The model with all dropout off, whatever its state."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model
