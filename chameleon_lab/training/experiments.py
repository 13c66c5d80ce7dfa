"""Named experiments: what is trained, on what, and how; each a base and its difference."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from chameleon_lab.checkpoints.adapters import LoRA, add_adapter, apply_adapter, merge_adapter, write_adapter
from chameleon_lab.corpora.mixture import SceneBatches
from chameleon_lab.history import History
from chameleon_lab.monitors.alarms import RULES, NotANumber, Rule, check_rules
from chameleon_lab.monitors.default import MONITORS
from chameleon_lab.monitors.watch import Monitor, check_monitors
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import Constant, CoolDown, Cosine, Exponential, Recipe, freeze, tuned
from chameleon_lab.outlines import outline
from chameleon_lab.parts import require, require_count, require_each
from chameleon_lab.plain import fingerprint
from chameleon_lab.published import PUBLISHED
from chameleon_lab.stability import FIXES, Dropout, NormReordering, QueryKeyNorm, QueryKeyRMSNorm, ZLoss, kind
from chameleon_lab.training.beginning import WeightSource, begin, require_source, weights_identity
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import PAIRS, Corpus, Data, Instructions, Scenes
from chameleon_lab.training.run import Run
from chameleon_lab.training.samples import Drawings, first_halves, scene_requests
from chameleon_lab.training.trainable import Prepared
from chameleon_lab.transformer import ForVocabulary, ModelConfig, Transformer
from chameleon_lab.vocabulary import Vocabulary

if TYPE_CHECKING:
    from chameleon_lab.training.modules import LanguageModule


FrozenChoice = Literal["words", "codes"] | Sequence[int] | np.ndarray


def _token_rows(rows: Sequence[int] | np.ndarray) -> tuple[int, ...]:
    """Tokens, each once and in order, of an array of them or of a yes or no for each token."""
    rows_X = np.asarray(rows)
    if rows_X.size and (rows_X.ndim != 1 or rows_X.dtype.kind not in "iub"):
        raise ValueError(
            f"frozen_rows are 'words', 'codes', tokens, or a yes or no for each token, not an array of {rows_X.dtype} "
            f"of {rows_X.ndim} dimensions."
        )
    tokens_X = np.flatnonzero(rows_X) if rows_X.dtype.kind == "b" else np.unique(rows_X)
    return tuple(int(token) for token in tokens_X)


def _frozen_tokens(choice: FrozenChoice, vocabulary: Vocabulary, size: int) -> tuple[int, ...]:
    """Rows of the embedding. Raises ValueError for those that it does not have, and where none is left to train."""
    codes = range(vocabulary.first_image, vocabulary.first_image + vocabulary.codes)
    match choice:
        case "codes":
            rows = tuple(codes)
        case "words":
            rows = tuple(token for token in range(size) if token not in codes)
        case _:
            rows = tuple(map(int, choice))
    if rows and not 0 <= rows[0] <= rows[-1] < size:
        raise ValueError(f"frozen_rows are tokens from 0 to {size - 1}, and these reach from {rows[0]} to {rows[-1]}.")
    return rows


def sketch(model: ModelConfig) -> None:
    """Builds a model's slots, of two layers and without memory. Raises ValueError where two fixes want one of them."""
    try:
        refusal = _refusal(model)
    except TypeError:  # a fix of a person's own that cannot be hashed
        refusal = _refusal.__wrapped__(model)
    if refusal:
        raise ValueError(refusal)


@lru_cache(maxsize=512)
def _refusal(model: ModelConfig) -> str:
    """Why a sketch of a model cannot be built, or "". A run asks it of a dozen fixes, a tenth of a second in all."""
    try:
        with outline():
            Transformer(replace(model, vocabulary=model.vocabulary or 2, layers=min(2, model.layers)))
    except ValueError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class Experiment:
    """What to train: everything that decides the result but the machine.

    `model.vocabulary` 0 is filled in from the data. `rules` sound alarms. The held-out loss is measured at the end, and
    every `held_out_every` steps where given; so many `checkpoints` stay for forks, evenly over the budget. `compiled`
    has torch compile the blocks (see `training.compilation`): quicker on a GPU, and equal but for rounding. With
    `recompute` a block keeps what enters it and makes the rest again for its gradients (see `training.recomputation`).

    `begins_from`: a model of this shape, its folder or its name, whose weights are trained on; otherwise they are drawn
    from the seed. Of it `frozen` parameters are not trained: patterns of their names, `"blocks.[0-3].*"`, where `*`
    stands for any letters, dots too. `frozen_rows` of embedding and head stand still to the bit while the others are
    trained: those of image "codes", of "words" (all but the codes), or of these tokens. An `adapter` is trained in
    place of all else; it is written to the run's folder `adapter`, and what comes of the run has it merged.
    """

    name: str
    model: ModelConfig
    budget: Budget
    data: Data | None = None
    recipe: Recipe = field(default_factory=Recipe)
    objective: Objective = field(default_factory=lambda: Objective(penalties=(ZLoss(1e-5),)))
    monitors: tuple[Monitor, ...] = MONITORS
    rules: tuple[Rule, ...] = RULES
    held_out_every: int | None = None
    checkpoints: int = 8
    precision: str = "32-true"
    seed: int = 0
    compiled: bool = field(default=False, metadata={"later": True})
    begins_from: WeightSource | None = field(default=None, metadata={"later": True, "plain": weights_identity})
    frozen: str | tuple[str, ...] = field(default=(), metadata={"later": True})
    frozen_rows: FrozenChoice = field(default=(), metadata={"later": True})
    adapter: LoRA | None = field(default=None, metadata={"later": True})
    recompute: bool = field(default=False, metadata={"later": True})

    def __post_init__(self) -> None:
        """Raises ValueError for a part that lacks what its place asks for, or a class where an instance belongs."""
        require(self.model, "a model's config", "fixes", "vocabulary")
        require_each(self.model.fixes, "a fix of the model", "install")
        require(self.budget, "a budget", "progress")
        if self.data is not None:
            require(self.data, "a data source", "open")
        require(self.recipe, "a recipe", "optimizers", "pace", "multiplier")
        require(
            self.objective, "an objective", "__call__", "penalties", "text_weight", "image_weight", "special_weight"
        )
        check_monitors(self.monitors)
        check_rules(self.rules)
        require_count(self.checkpoints, "checkpoints", 0)
        require_count(self.seed, "the seed", 0)
        require_source(self.begins_from)
        if not isinstance(self.frozen_rows, str):  # a tuple can be compared, an array cannot
            object.__setattr__(self, "frozen_rows", _token_rows(self.frozen_rows))
        elif self.frozen_rows not in ("words", "codes"):
            raise ValueError(f"frozen_rows are 'words', 'codes' or an array of tokens, not {self.frozen_rows!r}.")
        if self.held_out_every is not None:
            require_count(self.held_out_every, "steps from one held-out loss to the next", 1)

    def with_fixes(self, *fixes: Any) -> Experiment:
        """The experiment with stability fixes, each where its kind belongs (see `stability`).

        A penalty takes the place of one of its kind. Raises ValueError for what is no fix, and for two fixes of the
        model that want one slot.
        """
        changed = replace(self, recipe=tuned(self.recipe, [fix for fix in fixes if kind(fix) == "recipe"]))
        for fix in fixes:
            model, objective = changed.model, changed.objective
            match kind(fix):
                case "model":
                    changed = replace(changed, model=replace(model, fixes=(*model.fixes, fix)))
                case "loss":
                    others = [term for term in objective.penalties if type(term) is not type(fix)]
                    changed = replace(changed, objective=replace(objective, penalties=(*others, fix)))
                case "step":
                    changed = replace(changed, monitors=(*changed.monitors, fix))
        if changed.model is not self.model:
            sketch(changed.model)
        return changed

    def build(self, corpus: Corpus | None = None, begins: bool = True) -> LanguageModule:
        """The module that trains, on this corpus or its own data; without `begins`, its weights are those of the seed.

        It brings its batches, so that a `lightning.Trainer` of a person's own takes it as it is:
        `Trainer(max_steps=100).fit(experiment.build())`.

        Raises ValueError when the vocabularies differ, for what `begin` and `freeze` refuse, and for rows that are not
        there.
        """
        from chameleon_lab.training.modules import LanguageModule  # Lightning is slow to import
        from chameleon_lab.training.recomputation import recompute_blocks
        from chameleon_lab.training.sharding import drawn_model

        corpus = self.open() if corpus is None else corpus
        config = self.config(corpus.vocabulary)
        torch.manual_seed(self.seed)
        make = partial(Transformer, config)
        model = drawn_model(make) if self.begins_from is None and self.adapter is None else make()
        if begins and self.begins_from is not None:
            begin(model, self.begins_from, corpus)
        if self.adapter is not None:
            add_adapter(model, self.adapter)
        freeze(model, (self.frozen,) if isinstance(self.frozen, str) else self.frozen)
        module = LanguageModule(
            model,
            self.objective,
            self.recipe,
            self.budget,
            monitors=self.monitors,
            held_out=corpus.held_out,
            held_out_every=self.held_out_every,
            compiled=self.compiled,
            frozen_rows=_frozen_tokens(self.frozen_rows, corpus.vocabulary, config.vocabulary),
        )
        module.batches = corpus.batches
        module.said_longer = corpus.say_longer(config.context) > 0
        if self.recompute:
            recompute_blocks(model)
        return module

    def config(self, vocabulary: Vocabulary) -> ModelConfig:
        """The model's shape on data of a vocabulary. Raises ValueError for one that is larger than the model's."""
        size = self.model.vocabulary or vocabulary.size
        if size < vocabulary.size:
            raise ValueError(f"The data has a vocabulary of {vocabulary.size}, the model one of {size}.")
        fixes = tuple(
            fix.for_vocabulary(vocabulary) if isinstance(fix, ForVocabulary) else fix for fix in self.model.fixes
        )
        return replace(self.model, vocabulary=size, fixes=fixes)

    def open(self) -> Corpus:
        if self.data is None:
            raise ValueError(f"The experiment {self.name!r} has no data: replace(experiment, data=...) gives it some.")
        return self.data.open(self.seed, self.budget.steps)

    @property
    def offers(self) -> tuple[str, ...]:
        """Fixes of the model that fit beside its own, by name."""
        return tuple(name for name, fix in FIXES.items() if kind(fix) == "model" and self._takes(fix))

    def _takes(self, fix: Any) -> bool:
        try:
            self.with_fixes(fix)
        except ValueError:
            return False
        return True

    def prepare(self, folder: Path) -> Prepared:
        corpus = self.open()
        packed = self.adapter is not None and self.adapter.base != "float"  # of weights that have to be there first
        module = self.build(corpus, begins=packed)
        source = None if packed else self.begins_from
        scenes = isinstance(corpus.batches, SceneBatches)
        prompts = scene_requests if scenes else first_halves(lambda: corpus.held_out or [corpus.batches(0)])
        sampler = Drawings(module.model, corpus.tokenizer, prompts)
        start = partial(begin, module.model, source, corpus) if source is not None else None
        return Prepared(module, corpus.batches, sampler=sampler, begin=start)

    def finish(self, module: LanguageModule, history: History, folder: Path) -> Transformer:
        """The transformer, its adapter merged and written; otherwise its weights are in the checkpoint already."""
        if self.adapter is None:
            return module.model.eval()
        base = str(self.begins_from) if isinstance(self.begins_from, str | Path) else ""
        write_adapter(module.model, folder / "adapter", self.adapter, base)
        if self.adapter.base != "float":
            return apply_adapter(replace(self, adapter=None).build().model, folder / "adapter").eval()
        return merge_adapter(copy.deepcopy(module.model)).eval()

    def product(self, folder: Path) -> None:
        return None

    @property
    def fingerprint(self) -> str:
        """Eight letters that are the same for equal experiments."""
        return fingerprint(self)

    def run(self, folder: Path | str | None = None, trainer: Mapping[str, Any] = MappingProxyType({})) -> Run:
        """Trains in the background, in `folder` or one named after the experiment below `runs`; returns at once.

        A folder where this experiment was stopped goes on; where it ended, the run is over at once. `trainer`:
        arguments of `lightning.Trainer` (see `training.trainer_arguments`).
        """
        return Run(self, folder, trainer=trainer).start()


VARIATIONS: Mapping[str, Sequence[Any]] = {
    "baseline": (),
    "query_key_norm": (QueryKeyRMSNorm(),),
    "norms_and_z_loss": (QueryKeyRMSNorm(), NormReordering(), ZLoss(1e-2)),
}
"""Fixes by variation. The third has what Chameleon-34B has, its z-loss a thousand times as strong as there: norms of
queries and keys, norms after the branches, and the z-loss."""


def variations(
    experiment: Experiment, seed: int = 0, fixes: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Experiment]:
    """The experiment with each of `VARIATIONS`, and with `fixes` of one's own by name: the same data in the same order.

    A name stands for a fix, or for several in a list or tuple. Raises ValueError for a name that the lab's have.
    """
    if clash := fixes.keys() & VARIATIONS.keys():
        raise ValueError(f"{', '.join(sorted(clash))} is a variation of the lab's own: call yours otherwise.")
    return {
        name: replace(experiment, name=f"{experiment.name}-{name}", seed=seed).with_fixes(
            *(chosen if isinstance(chosen, Sequence) else (chosen,))
        )
        for name, chosen in {**VARIATIONS, **fixes}.items()
    }


CHAMELEON_7B = Experiment(
    name="chameleon-7b",
    model=replace(PUBLISHED["7b"], fixes=(QueryKeyNorm(), Dropout(0.1))),
    budget=Budget(steps=1_090_000),
    precision="bf16-mixed",
)
"""arXiv 2405.09818, table 1: 9.2 T tokens in batches of 8.4 M. Data of that kind is yours to bring."""

CHAMELEON_34B = replace(
    CHAMELEON_7B,
    name="chameleon-34b",
    model=PUBLISHED["34b"],
    budget=Budget(steps=730_000),
)
"""Norms re-ordered and no dropout (section 2.3). 34,293,448,704 parameters; the 7B has 7,013,158,912. The released one
stood in four shards as it was trained, each with a query/key norm of its own: `QueryKeyNorm(groups=4)`, 73,728 more."""


CM3LEON_TOKENS = 2048 * 4096
"""Of a batch: the paper's 8 M, in rows of its context."""


def _cm3leon(name: str, rate: float, tokens: float) -> Experiment:
    return Experiment(
        name,
        PUBLISHED[name],
        Budget(steps=round(tokens / CM3LEON_TOKENS)),
        recipe=Recipe(rate=rate, eps=1e-8, warm_up=1500, schedule=CoolDown(share=1.0, floor=0.1)),
        objective=Objective(),
        precision="bf16-mixed",
    )


CM3LEON_350M = _cm3leon("cm3leon-350m", 6e-4, 1.4e12)
"""CM3Leon's block, rates, warm-up and tokens (arXiv 2309.02591, sections 2.2 and 2.3, table of sizes), plain next-token
loss on documents rearranged by `CM3LEON_DATA`. Of the optimizer the paper says no more: AdamW's betas, eps and decay,
the clip and the linear fall to a tenth are those of OPT's launcher in the public code. 8 M tokens a step."""
CM3LEON_760M = _cm3leon("cm3leon-760m", 5e-4, 1.9e12)
CM3LEON_7B = _cm3leon("cm3leon-7b", 1.2e-4, 2.4e12)

CM3LEON_DATA = MappingProxyType({"rows": 2048, "context": 4096, "infill": 1.0})
"""What CM3Leon's batches are, of your own shards: `replace(CM3LEON_350M, data=Corpora(folders, **CM3LEON_DATA))`. All
documents go through the law of spans, which leaves 37 % of them as they are."""

TINY = Experiment(
    name="tiny",
    model=ModelConfig(
        vocabulary=0,
        width=192,
        layers=6,
        heads=6,
        kv_heads=6,
        head_width=32,
        ffn_width=512,
        context=1024,
        tied=True,
        fixes=(QueryKeyNorm(),),
    ),
    data=Scenes("tiny", tokens=2048),
    recipe=Recipe(
        rate=3e-3,
        betas=(0.9, 0.98),
        eps=1e-8,
        weight_decay=0.01,
        warm_up=60,
        schedule=CoolDown(0.3),
        muon_rate=0.02,
    ),
    budget=Budget(minutes=175),
    objective=Objective(text_weight=2.0, penalties=(ZLoss(1e-4),)),
    checkpoints=0,
)
"""The shipped model's transformer, 2.9 M parameters, about 3 h on two cores."""

SMALL = replace(
    TINY,
    name="small",
    model=replace(TINY.model, width=512, layers=12, heads=8, kv_heads=8, head_width=64, ffn_width=1408),
    recipe=replace(TINY.recipe, rate=1e-3, warm_up=500),
    budget=Budget(steps=20_000),
)
"""The same at 38 M parameters, for one GPU."""

GENTLER = replace(
    TINY.recipe, rate=TINY.recipe.rate / 2, muon_rate=TINY.recipe.muon_rate / 2, schedule=CoolDown(0.4), warm_up=30
)
"""The tiny model's recipe for a training that begins from its weights."""

INSTRUCTIONS = replace(
    TINY,
    name="instructions",
    begins_from="tiny",
    data=Instructions(),
    budget=Budget(steps=1200),
    recipe=GENTLER,
    monitors=(),  # time is what this training has least of
    rules=(NotANumber(),),
)
"""The tiny model trained on, on all tasks of `corpora.instructions` at once: about 40 minutes of one shared core.
`python -m chameleon_lab.training.instructions` makes a model of it."""

LAB = Experiment(
    name="lab",
    model=ModelConfig(vocabulary=0, width=64, layers=4, heads=2, kv_heads=2, head_width=32, ffn_width=176, context=176),
    budget=Budget(steps=600),
    data=PAIRS,
    recipe=Recipe(rate=0.01, eps=1e-8, weight_decay=1e-4, independent=True, warm_up=60, schedule=Cosine(1e-3)),
    objective=Objective(),
)
"""What the stability presets have in common: 240k parameters and an embedding, no fixes, seconds to minutes of one
core. Trouble at this size needs rates 2 to 30 times the best (Wortsman et al., arXiv 2309.14322); say so beside any
figure."""

STRESS_RAMP = replace(
    LAB,
    name="stress_ramp",
    budget=Budget(steps=700),
    recipe=replace(LAB.recipe, rate=0.3, warm_up=0, schedule=Exponential(end=1.0, start=1 / 300)),
)
"""P1: the rate rises from 0.001 to 0.3 in 700 steps. Bare, the loss blows up; with query/key norm it ends higher than
it was; with all fixes it hardly does."""

SIDE_BY_SIDE = replace(LAB, name="side_by_side", recipe=replace(LAB.recipe, rate=0.1))
"""P2: 600 steps at a peak rate of 0.1, ten times the best. Bare, attention logits grow by thousands."""

SILENT_GROWTH = replace(
    LAB,
    name="silent_growth",
    budget=Budget(steps=900),
    recipe=replace(LAB.recipe, rate=0.02, warm_up=200, schedule=Constant()),
)
"""P3: a constant rate of 0.02. The loss falls and looks healthy; the attention logits grow without end."""

RATES = (0.01, 0.03, 0.1, 0.3)
SANE_RATES = (0.001, 0.003)
"""At and below the best rate of the bare model, where alarms would be false."""


def sensitivity(
    rates: Sequence[float] = RATES, seed: int = 0, fixes: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, dict[float, Experiment]]:
    """P4: each of `variations` at each peak rate: what the rate does to the loss, and what the fixes do to that."""
    return {
        name: {
            rate: replace(each, name=f"{each.name}-{rate:g}", recipe=replace(each.recipe, rate=rate)) for rate in rates
        }
        for name, each in variations(replace(LAB, name="sensitivity"), seed, fixes).items()
    }


SCALE_SHAPES = ((32, 4), (64, 2), (64, 4), (64, 6), (128, 4), (256, 2))


def scale(
    shapes: Sequence[tuple[int, int]] = SCALE_SHAPES, seed: int = 0, fixes: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, dict[str, Experiment]]:
    """P5: widths and depths at one rate, 0.03, for 300 steps: `scale()["64x4"]["baseline"]`."""
    base = replace(LAB, budget=Budget(steps=300), recipe=replace(LAB.recipe, rate=0.03))
    experiments = {}
    for width, layers in shapes:
        heads = max(1, width // 32)
        shape = replace(
            base.model, width=width, layers=layers, heads=heads, kv_heads=heads, ffn_width=8 * round(width / 3)
        )
        sized = replace(base, name=f"scale-{width}x{layers}", model=shape)
        experiments[f"{width}x{layers}"] = variations(sized, seed, fixes)
    return experiments


PRESETS = {each.name: each for each in (STRESS_RAMP, SIDE_BY_SIDE, SILENT_GROWTH)}
EXPERIMENTS = {
    each.name: each
    for each in (
        *(TINY, SMALL, INSTRUCTIONS, CHAMELEON_7B, CHAMELEON_34B, CM3LEON_350M, CM3LEON_760M, CM3LEON_7B),
        *PRESETS.values(),
    )
}
"""By name. Those of published sizes have no data of their own."""
