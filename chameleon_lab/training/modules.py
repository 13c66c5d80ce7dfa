"""Thin LightningModules: what a step is, for the image tokenizer and for the transformer."""

from __future__ import annotations

import logging
import math
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from chameleon_lab.corpora.mixture import Mixture
from chameleon_lab.corpora.packing import Batch
from chameleon_lab.history import Milestone
from chameleon_lab.monitors.watch import Moment, Monitor, Readout, watching
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import FrozenRows, Recipe
from chameleon_lab.stability import ZLoss
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.losses import ReconstructionLoss, ReconstructionObjective
from chameleon_lab.tokenizers.quantizers import MovingAverageQuantizer
from chameleon_lab.training.budget import Budget as Budget
from chameleon_lab.training.compilation import compile_blocks
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Modality


class Steps(IterableDataset):
    """Which batches one of several processes takes, from a step on: data order is arithmetic, so resuming is exact."""

    def __init__(self, start: int = 0, processes: int = 1, rank: int = 0) -> None:
        self.start, self.processes, self.rank = start, processes, rank

    def __iter__(self) -> Iterator[int]:
        return count(self.start * self.processes + self.rank, self.processes)


log = logging.getLogger(__name__)

STARVING_SECONDS = 30.0
"""How long a loader is watched before the log says that it starves."""

SKIP_LIMIT = 10
"""Steps in a row whose loss or gradient is no number before a training gives up."""

FLOAT16 = ("16-mixed", "16-true", "transformer-engine-float16")
"""Lightning's precisions of too small a range. Scaling the loss does not help: gradients are clipped as they are
scaled, and the objective finds those of the head before any scale reaches it."""


class PacedModule(lightning.LightningModule, ABC):
    """A module that trains to a budget on `batches(place)`, with its own clock and schedule and a record of each step.

    A subclass gives `loss_and_values(batch)`. `values` and `layers` hold what the last step recorded. A step whose loss
    or gradient is not a number changes nothing, `books` included, and says `skipped`; `SKIP_LIMIT` of them in a row are
    a FloatingPointError.
    """

    def __init__(self, recipe: Recipe, budget: Budget) -> None:
        super().__init__()
        self.recipe, self.budget = recipe, budget
        self._has_muon = recipe.muon_rate > 0  # and keeps it where its rate is set to 0
        self.automatic_optimization = False
        self.batches: Callable[[int], Any] = lambda place: None
        self.frozen_rows = FrozenRows()
        self.seconds, self.step = 0.0, 0
        self.values: dict[str, float] = {}
        self.layers: dict[str, list[Any]] = {}
        self.warned = False
        self.enough = False  # set by a report that saw that nothing more is to be learned
        self._skipped = 0
        self._random: Tensor | None = None
        self._random_cuda: Tensor | None = None  # a GPU has its own, of which dropout there is made
        self._waits: list[tuple[float, float]] = []  # when batches were asked for, and how long they took

    @abstractmethod
    def loss_and_values(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """What to descend, and what to record, of a batch."""

    def books(self) -> Iterator[Tensor]:
        """What a step may change before anybody knows whether its loss is a number: running means, counts."""
        yield from self.buffers()

    @contextmanager
    def watched(self, batch: Any) -> Iterator[Readout]:
        """The step stands inside; what monitors read of it is recorded."""
        yield Readout()

    def aside(self) -> dict[str, float]:
        """Further values to record, measured after the step and off its clock."""
        return {}

    @property
    def progress(self) -> float:
        return 1.0 if self.enough else self.budget.progress(self.step, self.seconds)

    @property
    def milestones(self) -> tuple[Milestone, ...]:
        """The steps from which on the plan does something else."""
        return ()

    @property
    def processes(self) -> int:
        """How many share the training."""
        return self.trainer.world_size if self._trainer else 1

    @property
    def settings(self) -> dict[str, Any]:
        """What can be changed between two steps, as it is now."""
        rates = {"muon_rate": self.recipe.muon_rate} if self._has_muon else {}
        return {"rate": self.recipe.rate, **rates, "weight_decay": self.recipe.weight_decay, "clip": self.recipe.clip}

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError for a setting that there is not, and for an impossible value."""
        if name not in self.settings:
            raise ValueError(
                f"{name!r} cannot be changed while a run goes on; {', '.join(self.settings) or 'nothing'} can. For "
                "anything else, QK-norm and the order of norms above all, fork the run: run.fork(QueryKeyNorm())."
            )
        if name == "weights":
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ValueError(f"{name} must be a number of at least 0, not {value!r}.")
        if value > sys.float_info.max and (name != "clip" or value < math.inf):
            raise ValueError(f"{name} must be a finite number, below 1.8e308.")
        if hasattr(self.recipe, name):
            replace(self.recipe, **{name: float(value)})  # which raises for what no recipe may have

    def change(self, name: str, value: Any, since: int | None = None) -> None:
        """Changes a setting, from now on or as it was changed at an earlier step. Raises ValueError as `check` does."""
        self.check(name, value)
        self._change(name, value, self.step if since is None else since)

    def _change(self, name: str, value: Any, since: int) -> None:
        self.recipe = replace(self.recipe, **{name: float(value)})

    def setup(self, stage: str) -> None:
        """Raises ValueError for a training in float16, which may stand still or be no number instead of learning."""
        if self.trainer.precision in FLOAT16:
            raise ValueError(
                f"There is no training in {self.trainer.precision}: float16 reaches from 6e-8 to 65504, and gradients "
                'and activations do not stay within. Take precision="bf16-mixed", which has the range of float32.'
            )

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return self.recipe.optimizers(self)

    def training_step(self, place: int, index: int) -> None:
        started = time.perf_counter()  # what a batch is waited for counts, too: minutes are the person's
        batch = self.batches(place).to(self.device)
        self._waits.append((started, time.perf_counter() - started))
        if self._random is not None:  # only now: setting up the training has drawn random numbers of its own
            torch.set_rng_state(self._random)
            if self._random_cuda is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(self._random_cuda, self.device)
            self._random, self._random_cuda = None, None
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        multiplier = self.recipe.multiplier(self.step, self.progress)
        before = [book.detach().clone() for book in self.books()]
        with self.watched(batch) as readout:
            loss, values = self.loss_and_values(batch)
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss)
            self.frozen_rows.clear_gradients()
            norm = nn.utils.clip_grad_norm_(self.parameters(), self.recipe.clip)
            sound = bool(torch.isfinite(loss) & torch.isfinite(norm))
            if sound:
                with self.frozen_rows.fixed():
                    for optimizer in optimizers:
                        self.recipe.pace(optimizer, multiplier)  # pyright: ignore[reportArgumentType]
                        optimizer.step()
            else:
                with torch.no_grad():
                    for book, saved in zip(self.books(), before, strict=True):
                        book.copy_(saved)
        own = {name: float(value.detach()) for name, value in values.items()}
        own |= {"gradient_norm": float(norm), "rate": self.recipe.rate * multiplier}
        self.values, self.layers = readout.beside(own), readout.layers
        self.step += 1
        spent = torch.tensor(time.perf_counter() - started, dtype=torch.float64, device=loss.device)
        self.seconds += float(self.trainer.strategy.reduce(spent, reduce_op="mean"))  # one clock for all processes
        self._count_skipped(sound)
        self.values |= self.aside()
        self._say_starving()

    def _say_starving(self) -> None:
        """Once in half a minute, where most of it went by waiting for batches, the log says so."""
        now = time.perf_counter()
        if now - self._waits[0][0] < STARVING_SECONDS:
            return
        share = sum(wait for _, wait in self._waits) / (now - self._waits[0][0])
        if share > 0.5:
            log.warning(
                "The loader starves: %.0f %% of the last %.0f s were spent waiting for batches, which counts as "
                "training time. Smaller pictures, a quicker disk or more CPU cores help.",
                100 * share,
                now - self._waits[0][0],
            )
        self._waits.clear()
        self._waits.append((now, 0.0))

    def _count_skipped(self, sound: bool) -> None:
        self._skipped = 0 if sound else self._skipped + 1
        if self._skipped:
            self.values["skipped"] = 1.0
        if self._skipped >= SKIP_LIMIT:
            raise FloatingPointError(
                f"The loss or its gradient was not a number in {SKIP_LIMIT} steps in a row, up to step "
                f"{self.step - 1}; these steps changed no weights. Go back to an earlier checkpoint with a lower rate "
                "or a fix: run.fork(..., at=STEP)."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        on_gpu = self._random is None and self.device.type == "cuda"
        checkpoint["paced"] = {
            "step": self.step,
            "seconds": self.seconds,
            "random": torch.get_rng_state() if self._random is None else self._random,
            "random_cuda": torch.cuda.get_rng_state(self.device) if on_gpu else self._random_cuda,
            "skipped": self._skipped,
            "names": [self.names(optimizer) for optimizer in self.trainer.optimizers],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        paced = checkpoint["paced"]
        self.step, self.seconds = paced["step"], paced["seconds"]
        self._skipped = paced.get("skipped", 0)
        self._random, self._random_cuda = paced["random"], paced.get("random_cuda")

    def names(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """An optimizer's kind, then the names of its parameters in the order of its state."""
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        members = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        return [type(optimizer).__name__, *members]


class CodebookWatch(nn.Module):
    """Which codes the last `span` batches used: `watch(codes_BHW)` gives usage, perplexity and dead codes as values.

    The perplexity of one batch misleads, being bounded by its number of codes; this one forgets by half in `span / 2`
    batches.
    """

    def __init__(self, codes: int, span: int = 100) -> None:
        super().__init__()
        self.span = span
        self.register_buffer("idle_N", torch.full((codes,), span))
        self.register_buffer("counts_N", torch.zeros(codes))
        self.idle_N: Tensor
        self.counts_N: Tensor

    @torch.no_grad()
    def forward(self, codes_BHW: Tensor) -> dict[str, Tensor]:
        counts_N = torch.bincount(codes_BHW.flatten(), minlength=len(self.idle_N))
        self.idle_N = torch.where(counts_N > 0, 0, self.idle_N + 1)
        self.counts_N = self.counts_N * 0.5 ** (2 / self.span) + counts_N
        used_N = self.idle_N < self.span
        share_N = self.counts_N / self.counts_N.sum()
        entropy = -(share_N * share_N.clamp_min(1e-12).log()).sum()
        return {"usage": used_N.float().mean(), "dead_codes": (~used_N).sum(), "perplexity": entropy.exp()}


class ImageTokenizerModule(PacedModule):
    """Trains an image tokenizer on pixels_BCHW in [-1, 1]. The reference recipe is the default objective's.

    `warm_up_share`: of the budget, after which a quantizer's warm-up ends that its own count of steps has not ended: a
    short training would else end before its codebook begins.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        recipe: Recipe,
        budget: Budget,
        objective: ReconstructionObjective | None = None,
        warm_up_share: float | None = None,
    ) -> None:
        super().__init__(recipe, budget)
        self.warm_up_share = warm_up_share
        self.tokenizer = tokenizer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportArgumentType]
        self.loss = ReconstructionLoss(objective or ReconstructionObjective())
        self.watch = CodebookWatch(tokenizer.codes)

    def books(self) -> Iterator[Tensor]:
        """Besides, codebooks that learn without a gradient."""
        yield from super().books()
        yield from (each for each in self.tokenizer.quantize.parameters() if not each.requires_grad)

    def loss_and_values(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        quantize, due = self.tokenizer.quantize, self.warm_up_share is not None and self.progress >= self.warm_up_share
        if due and isinstance(quantize, MovingAverageQuantizer):  # the others quantize from their first step on
            quantize.end_warm_up()
        pixels_BCHW = batch.contiguous(memory_format=torch.channels_last)
        rebuilt_BCHW, quantized = self.tokenizer(pixels_BCHW)
        judged = self.loss(pixels_BCHW, rebuilt_BCHW, quantized, self.tokenizer.last_layer, self.step, self.progress)
        return judged.loss, {"loss": judged.loss, **judged.values, **self.watch(quantized.codes_BHW)}

    @property
    def milestones(self) -> tuple[Milestone, ...]:
        adversary, warm_up = self.loss.objective.adversary, int(getattr(self.tokenizer.quantize, "warm_up", 0))
        critic = (Milestone(adversary.start_step, "the critic begins"),) if adversary else ()
        book = (Milestone(warm_up, "the codebook begins: from here on latents are quantized"),) if warm_up else ()
        return (*book, *critic)


class LanguageModule(PacedModule):
    """Trains a transformer on batches of documents, watched by monitors.

    The loss on the `held_out` batches is measured every `held_out_every` steps, where given, and at the end. `compiled`
    has the model's blocks compiled (see `compilation`). `frozen_rows` of embedding and head stand still.
    """

    def __init__(
        self,
        model: Transformer,
        objective: Objective,
        recipe: Recipe,
        budget: Budget,
        *,
        monitors: Sequence[Monitor] = (),
        held_out: Sequence[Batch] = (),
        held_out_every: int | None = None,
        compiled: bool = False,
        frozen_rows: Sequence[int] = (),
    ) -> None:
        super().__init__(recipe, budget)
        if compiled:
            compile_blocks(model)
        self.frozen_rows = FrozenRows((model.embedding, model.head), frozen_rows)
        self.model, self.objective, self.monitors = model, objective, monitors
        self.held_out, self.held_out_every = held_out, held_out_every

    def loss_and_values(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        measures = self.objective(self.model, batch)
        tokens = torch.tensor(float(batch.real_tokens) * self.trainer.world_size)
        return measures.pop("loss_with_penalties"), {**measures, "tokens": tokens}

    @property
    def milestones(self) -> tuple[Milestone, ...]:
        stages = self.batches.stages[1:] if isinstance(self.batches, Mixture) else ()
        words = "another stage of the mixture begins: "
        return tuple(Milestone(-(-stage.start // self.processes), f"{words}{stage}") for stage in stages)

    @contextmanager
    def watched(self, batch: Batch) -> Iterator[Readout]:
        with watching(self.monitors, Moment(self.step, self.model, batch, self.objective, self.warned)) as readout:
            yield readout

    def aside(self) -> dict[str, float]:
        due = self.progress >= 1 or (self.held_out_every is not None and self.step % self.held_out_every == 0)
        if not (due and self.held_out):
            return {}
        return {
            f"held_out_{name}": value
            for name, value in held_out_losses(self.model, self.objective, self.held_out).items()
        }

    @property
    def settings(self) -> dict[str, Any]:
        z_loss = [term.weight for term in self.objective.penalties if isinstance(term, ZLoss)]
        dropout = [module.p for module in self._dropouts]
        mixture = self.batches.shares(self.step * self.processes) if isinstance(self.batches, Mixture) else {}
        return {
            **super().settings,
            "z_loss": z_loss[0] if z_loss else 0.0,
            **({"dropout": dropout[0]} if dropout else {}),
            "text_weight": self.objective.text_weight,
            "image_weight": self.objective.image_weight,
            **({"weights": mixture} if mixture else {}),
        }

    @property
    def _dropouts(self) -> list[nn.Dropout]:
        return [module for module in self.model.modules() if isinstance(module, nn.Dropout)]

    def check(self, name: str, value: Any) -> None:
        super().check(name, value)
        if name == "dropout" and value >= 1:
            raise ValueError(f"dropout must lie below 1, not at {value}.")
        if name == "weights":
            if not isinstance(value, Mapping):
                raise ValueError(f"weights must be a mapping from a part of the mixture to its weight, not {value!r}.")
            self._reweighted(value, self.step)

    def _change(self, name: str, value: Any, since: int) -> None:
        match name:
            case "z_loss":
                others = tuple(term for term in self.objective.penalties if not isinstance(term, ZLoss))
                self.objective = replace(self.objective, penalties=(*others, ZLoss(float(value))))
            case "dropout":
                for module in self._dropouts:
                    module.p = float(value)
            case "text_weight" | "image_weight":
                self.objective = replace(self.objective, **{name: float(value)})
            case "weights":
                self.batches = self._reweighted(value, since)
            case _:
                super()._change(name, value, since)

    def _reweighted(self, weights: Mapping[str, float], since: int) -> Mixture:
        assert isinstance(self.batches, Mixture)
        return self.batches.reweighted(weights, since * self.processes)


@torch.no_grad()
def held_out_losses(model: Transformer, objective: Objective, batches: Sequence[Batch]) -> dict[str, float]:
    """`loss` and that of each modality, means over all learned tokens of the batches, in nats; the model evaluates
    meanwhile, and then trains again if it did."""
    training, device = model.training, model.embedding.weight.device
    model.eval()
    torch.clear_autocast_cache()  # which may hold the weights as they were before the step
    sums, counts = defaultdict[str, float](float), Counter[str]()
    for batch in batches:
        batch = batch.to(device)
        measures = objective(model, batch)
        kinds = Counter({f"{kind.name.lower()}_loss": _learned(batch, kind) for kind in Modality})
        kinds["loss"] = kinds.total()
        for name in measures.keys() & kinds.keys():
            counts[name] += kinds[name]
            sums[name] += float(measures[name]) * kinds[name]
    model.train(training)
    return {name: sums[name] / counts[name] for name in sorted(counts) if counts[name]}


def _learned(batch: Batch, kind: Modality) -> int:
    return int((batch.learned_BT & (batch.modality_BT == kind)).sum())
