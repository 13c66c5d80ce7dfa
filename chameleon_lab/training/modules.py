"""Thin LightningModules: what a step is, for the image tokenizer and for the transformer."""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import count, pairwise
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, IterableDataset

from chameleon_lab.corpora.mixture import Mixture
from chameleon_lab.corpora.packing import Batch
from chameleon_lab.history import Milestone
from chameleon_lab.monitors.watch import Moment, Monitor, Readout, watching, whole
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import FrozenRows, Recipe
from chameleon_lab.stability import ZLoss
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.losses import ReconstructionLoss, ReconstructionObjective
from chameleon_lab.tokenizers.quantizers import MovingAverageQuantizer
from chameleon_lab.training.budget import Budget as Budget
from chameleon_lab.training.compilation import compile_blocks
from chameleon_lab.training.sharding import begin_states, require_shardable, shard_model
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Modality

# A checkpoint after a step has what the step made of the weights, which is what is wanted of it.
warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization and every_n_train_steps")


class Steps(IterableDataset):
    """Which batches one of several processes takes, from a step on: data order is arithmetic, so resuming is exact.

    Gives the place of a step's batch; where each process takes several (`each`) a step, a list of their places.
    `offset`: places to be added, where earlier steps took more or fewer batches.
    """

    def __init__(self, start: int = 0, processes: int = 1, rank: int = 0, each: int = 1, offset: int = 0) -> None:
        self.start, self.processes, self.rank, self.each, self.offset = start, processes, rank, each, offset

    def __iter__(self) -> Iterator[int | list[int]]:
        batches = self.processes * self.each
        firsts = count(self.offset + self.start * batches + self.rank, batches)
        if self.each == 1:
            return firsts
        return ([first + at * self.processes for at in range(self.each)] for first in firsts)


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

    alone = ""
    """Why one process trains it, and not several; nothing where several can."""

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
        self.logs = True  # sends what a step recorded to Lightning's loggers and callbacks
        self.batches_each = 1  # that each process takes a step
        self.shares: list[tuple[int, int]] = []  # (step, batches a step from there on), of all processes together
        self.own_values: dict[str, float] = {}  # `values` before those of other processes are averaged in
        self.fault, self.faults = "", list[str]()  # what this process, and any of them, has to complain of
        self._skipped = 0
        self._randoms: list[tuple[Tensor, Tensor | None]] = []  # of each process: the CPU's, and its GPU's own
        self._waits: list[tuple[float, float]] = []  # when batches were asked for, and how long they took

    @abstractmethod
    def loss_and_values(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """What to descend, and what to record, of a batch."""

    def extend(self, batch: Any) -> Any:
        """What the step learns from, made of a batch before anything is watched: the batch itself."""
        return batch

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

    # Which batches a step takes

    def share(self, processes: int, each: int | None = None) -> None:
        """Has each of so many processes take `each` batches a step from here on; the data order goes on where it is.

        Where that is not said, all together take as many as before: so a training that is taken up by more processes
        or fewer makes the same steps, to rounding. Raises ValueError where these cannot be shared evenly.
        """
        before = self.shares[-1][1] if self.shares else 0
        if each is None and before % processes:
            fitting = [str(number) for number in range(1, before + 1) if before % number == 0]
            raise ValueError(
                f"A step of this training takes {before} batches, which {processes} processes cannot share evenly: "
                f"start {' or '.join(fitting)} of them, or say trainer={{'accumulate_grad_batches': N}} to take N "
                "batches a process and step from now on, which changes the training."
            )
        self.batches_each = each or before // processes or self.batches_each
        batches = processes * self.batches_each
        if not self.shares:
            self.shares = [(0, batches)]
        elif batches != before:
            self.shares = [*(piece for piece in self.shares if piece[0] < self.step), (self.step, batches)]

    @property
    def _pieces(self) -> list[tuple[int, int]]:
        return self.shares or [(0, self.processes * self.batches_each)]

    def place_of(self, step: int) -> int:
        """The first batch that a step takes."""
        starts = [*self._pieces, (max(step, self._pieces[-1][0]), 0)]
        return sum(batches * max(0, min(step, stop) - start) for (start, batches), (stop, _) in pairwise(starts))

    def step_of(self, place: int) -> int:
        """The first step that takes no batch before `place`."""
        pieces = self._pieces
        start, batches = [piece for piece in pieces if self.place_of(piece[0]) <= place or piece == pieces[0]][-1]
        return start - (self.place_of(start) - place) // batches

    def loader(self, processes: int, rank: int, each: int | None = None) -> DataLoader:
        """Places of the batches that one of so many processes takes from the present step on, shared as by `share`."""
        self.share(processes, each)
        offset = self.place_of(self.step) - self.step * self.shares[-1][1]
        return DataLoader(Steps(self.step, processes, rank, self.batches_each, offset), batch_size=None)

    def train_dataloader(self) -> DataLoader:
        """What a `lightning.Trainer` of a person's own takes; a `Run` brings its own."""
        return self.loader(self.trainer.world_size, self.trainer.global_rank)

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

    def training_step(self, place: int | Sequence[int], index: int) -> None:
        started = time.perf_counter()  # what a batch is waited for counts, too: minutes are the person's
        places = [place] if isinstance(place, int) else list(place)
        batches = [self.batches(each).to(self.device) for each in places]
        self._waits.append((started, time.perf_counter() - started))
        if self._randoms:  # only now: setting up the training has drawn random numbers of its own
            random, random_cuda = self._randoms[self.trainer.global_rank if len(self._randoms) == self.processes else 0]
            torch.set_rng_state(random)
            if random_cuda is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(random_cuda, self.device)
            self._randoms = []
        batches = [self.extend(each) for each in batches]
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        multiplier = self.recipe.multiplier(self.step, self.progress)
        before = [book.detach().clone() for book in self.books()]
        measures = [self._add_gradient(batch, len(batches), not at) for at, batch in enumerate(batches[:-1])]
        with self.watched(batches[-1]) as readout:  # monitors read the last of a step's batches
            measures.append(self._add_gradient(batches[-1], len(batches), len(batches) == 1, last=True))
            self.frozen_rows.clear_gradients()
            norm = whole(nn.utils.clip_grad_norm_(self.parameters(), self.recipe.clip))
            sound = bool(torch.isfinite(norm)) and all(math.isfinite(loss) for loss, _ in measures)
            self.own_values = combined([values for _, values in measures])
            own = self.own_values
            if self.processes > 1:  # all take the step or none does
                of_all = self.gathered((sound, self.fault, [values for _, values in measures]))
                sound, self.faults = all(each[0] for each in of_all), [each[1] for each in of_all if each[1]]
                own = combined([values for each in of_all for values in each[2]])
            if sound:
                with self.frozen_rows.fixed():
                    for optimizer in optimizers:
                        self.recipe.pace(optimizer, multiplier)  # pyright: ignore[reportArgumentType]
                    first, *others = optimizers
                    first.step()
                    for optimizer in others:  # Lightning would count a step of the training for each
                        getattr(optimizer, "optimizer", optimizer).step()
            else:
                with torch.no_grad():
                    for book, saved in zip(self.books(), before, strict=True):
                        book.copy_(saved)
        own |= {"gradient_norm": float(norm), "rate": self.recipe.rate * multiplier}
        self.values, self.layers = readout.beside(own), readout.layers
        self.step += 1
        spent = torch.tensor(time.perf_counter() - started, dtype=torch.float64, device=norm.device)
        self.seconds += float(self.trainer.strategy.reduce(spent, reduce_op="mean"))  # one clock for all processes
        self._count_skipped(sound)
        aside = self.aside()
        self.values |= aside
        if self.logs:
            self.log_dict(self.values, logger=False)  # for callbacks, which look for the last value of a name
            self._send_values(bool(aside) or self.progress >= 1)
        self._say_starving()

    def _send_values(self, at_once: bool) -> None:
        """To Lightning's loggers, as often as the trainer says, or `at_once`. Lightning's own sending would repeat what
        is measured seldom at every later step, as if it had been measured there."""
        often: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if self.trainer.is_global_zero and often and (at_once or self.step % often == 0):
            for logger in self.trainer.loggers:
                logger.log_metrics(self.values, step=self.step - 1)
                logger.save()

    def _add_gradient(self, batch: Any, parts: int, first: bool, last: bool = False) -> tuple[float, dict[str, float]]:
        """Adds a batch's share, of so many `parts`, to the gradient; what there is to descend, and what to record."""
        loss, values = self.loss_and_values(batch)
        if first:
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad()
        apart = getattr(self.trainer.strategy, "block_backward_sync", nullcontext)
        with nullcontext() if last else apart():  # processes exchange gradients once a step
            self.manual_backward(loss if parts == 1 else loss / parts)
        return float(loss.detach()), {name: float(value.detach()) for name, value in values.items()}

    def gathered(self, own: Any) -> list[Any]:
        """What each process has, in their order."""
        every = [None] * self.processes
        torch.distributed.all_gather_object(every, own)
        return every

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
        if not (randoms := self._randoms):
            cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
            own = torch.get_rng_state(), cuda
            randoms = self.gathered(own) if self.processes > 1 else [own]
        checkpoint["paced"] = {
            "step": self.step,
            "seconds": self.seconds,
            "random": randoms[0][0],
            "random_cuda": randoms[0][1],
            "randoms": randoms,
            "skipped": self._skipped,
            "shares": [list(piece) for piece in self._pieces],
            "names": [self.names(optimizer) for optimizer in self.trainer.optimizers],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        paced = checkpoint["paced"]
        self.step, self.seconds = paced["step"], paced["seconds"]
        self._skipped = paced.get("skipped", 0)
        self.shares = [(start, batches) for start, batches in paced.get("shares", ())]
        self._randoms = paced.get("randoms") or [(paced["random"], paced.get("random_cuda"))]

    def names(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """An optimizer's kind, then the names of its parameters in the order of its state."""
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        members = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        return [type(optimizer).__name__, *members]


SUMS = ("tokens",)
"""Values of a step that batches add up to; of all others a step records the mean over its batches that have it."""


def combined(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What is recorded of a step, of what was of each of its batches; the same in whatever order these come."""
    columns = defaultdict[str, list[float]](list)
    for values in each:
        for name, value in values.items():
            columns[name].append(value)
    if len(each) == 1:
        return dict(each[0])
    return {
        name: math.fsum(column) / (1 if name in SUMS else len(column)) if all(map(math.isfinite, column)) else math.nan
        for name, column in columns.items()
    }


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

    alone = "an image tokenizer is trained by one process: its codebook learns from the pictures that it sees itself"

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
    has blocks and losses compiled (see `compilation`). `frozen_rows` of embedding and head stand still.
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
            objective = replace(objective, compiled=True)
        self.frozen_rows = FrozenRows((model.embedding, model.head), frozen_rows)
        self.model, self.objective, self.monitors = model, objective, monitors
        self.unwatched: list[Monitor] = []  # monitors that cannot read weights in parts
        self.held_out, self.held_out_every = [each.within(model.config.context) for each in held_out], held_out_every
        self.said_longer = False  # that documents end at the model's context

    def extend(self, batch: Batch) -> Batch:
        """The batch as far as the model's context reaches: it is never asked about what lies behind."""
        within = batch.within(self.model.config.context)
        if within is not batch and not self.said_longer:
            self.said_longer = True
            log.warning(
                "Documents longer than the model's context of %s tokens end there: what lies behind is not learned.",
                f"{self.model.config.context:,}",
            )
        return within

    def configure_model(self) -> None:
        """Under Lightning's `ModelParallelStrategy`, weights come in parts (FSDP2; see `sharding`)."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy):
            require_shardable(self)
            self.unwatched = [each for each in self.monitors if getattr(each, "needs_whole_weights", False)]
            self.monitors = [each for each in self.monitors if each not in self.unwatched]
            shard_model(self.model, strategy.device_mesh["data_parallel"], strategy.root_device)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        optimizers = super().configure_optimizers()
        if isinstance(self.model, FSDPModule):
            begin_states(optimizers)
        return optimizers

    def loss_and_values(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        measures = self.objective(self.model, batch)
        tokens = torch.tensor(float(batch.real_tokens))
        return measures.pop("loss_with_penalties"), {**measures, "tokens": tokens}

    @property
    def milestones(self) -> tuple[Milestone, ...]:
        stages = self.batches.stages[1:] if isinstance(self.batches, Mixture) else ()
        words = "another stage of the mixture begins: "
        return tuple(Milestone(self.step_of(stage.start), f"{words}{stage}") for stage in stages)

    @contextmanager
    def watched(self, batch: Batch) -> Iterator[Readout]:
        with watching(self.monitors, Moment(self.step, self.model, batch, self.objective, self.warned)) as readout:
            yield readout

    def val_dataloader(self) -> DataLoader:
        """One look at the held-out batches: for `Trainer.validate`, and for callbacks that wait for a validation."""
        return DataLoader([0], batch_size=None)  # pyright: ignore[reportArgumentType]

    def validation_step(self, batch: int, index: int) -> None:
        losses = held_out_losses(self.model, self.objective, self.held_out)
        self.log_dict({f"held_out_{name}": value for name, value in losses.items()}, batch_size=1)

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
        dropout = next((module.p for module in self._dropouts), None)  # the first: a panel asks thirty times a second
        mixture = self.batches.shares(self.place_of(self.step)) if isinstance(self.batches, Mixture) else {}
        return {
            **super().settings,
            "z_loss": z_loss[0] if z_loss else 0.0,
            **({} if dropout is None else {"dropout": dropout}),
            "text_weight": self.objective.text_weight,
            "image_weight": self.objective.image_weight,
            **({"weights": mixture} if mixture else {}),
        }

    @property
    def _dropouts(self) -> Iterator[nn.Dropout]:
        return (module for module in self.model.modules() if isinstance(module, nn.Dropout))

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
        return self.batches.reweighted(weights, self.place_of(since))


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
    if isinstance(model, FSDPModule):
        model.reshard()
    return {name: sums[name] / counts[name] for name in sorted(counts) if counts[name]}


def _learned(batch: Batch, kind: Modality) -> int:
    return int((batch.learned_BT & (batch.modality_BT == kind)).sum())
