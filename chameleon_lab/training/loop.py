"""One trainer's work: from a folder's last checkpoint to the end of the budget. `Run` is who calls it."""

from __future__ import annotations

import logging
import math
import os
import pickle
import re
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed.checkpoint.api import CheckpointException

from chameleon_lab.by_modality import dense_names
from chameleon_lab.history import Alarm, Intervention, StepRecord
from chameleon_lab.monitors.alarms import DivergenceDetector
from chameleon_lab.training.control import Control, Order
from chameleon_lab.training.folder import Appender, RunFolder, check_whole, shares_work
from chameleon_lab.training.modules import PacedModule
from chameleon_lab.training.samples import SampleBook
from chameleon_lab.training.sharded_files import (
    checksums,
    link_checkpoint,
    name_checkpoint,
    remove_checkpoint,
    rest_of,
    seal,
)
from chameleon_lab.training.trainable import Prepared, Report

log = logging.getLogger(__name__)
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it tells of itself and its maker's services

# Lightning 2.6 walks its loaders with a name that torch 2.13 is retiring: nothing a user could mend.
warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
# On any machine of a SLURM cluster it advises srun, which a run in a notebook there has no use for.
warnings.filterwarnings("ignore", r"The `srun` command is available on your system but is not used")


def train(
    prepared: Prepared,
    folder: RunFolder,
    report: Report = lambda module, record: None,
    *,
    detector: DivergenceDetector | None = None,
    control: Control | None = None,
    origin: Path | None = None,
    checkpoints: int = 0,
    save_minutes: float = 3.0,
    precision: str = "32-true",
    processes: int = 1,
    save_steps: int = 0,
    trainer: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Trains to the end of the budget, or until `control` says stop.

    `report` is called after each step; `detector` sounds alarms.

    A folder with a checkpoint goes on from it, with the same data order and the same interventions at the same steps.
    `origin` is another run's checkpoint to begin from: what has the same name and shape is taken over, weights and
    optimizer's state, the rest begins anew. `checkpoints/last.ckpt` is written atomically every `save_minutes` of
    training and at the end; of the budget's course, so many `checkpoints` stay, evenly spread. Of those that
    `save_steps` adds, one in so many steps, the newest three stay. Where `last.ckpt` is damaged or missing, the newest
    whole one of those takes its place, and an alarm says so. Raises ValueError where none is whole,
    where another process trains in the folder, and where it was deleted meanwhile.

    With `processes` > 1, each takes its own batches of a step and gradients are averaged (Lightning's DDP): the command
    that called is started again once a process, and for all but the first this ends in SystemExit. Under torchrun the
    processes are those that it started. `trainer`: further arguments of `lightning.Trainer` (see `trainer_arguments`).
    With a logger or callbacks among them, what a step recorded is sent to them, too.
    """
    with nullcontext() if shares_work() else folder.locked():
        _train_in(
            prepared,
            folder,
            report,
            detector,
            control or Control(),
            origin,
            checkpoints,
            save_minutes,
            precision,
            {"devices": processes, **_torchrun(), **trainer},
            save_steps,
        )


def _train_in(
    prepared: Prepared,
    folder: RunFolder,
    report: Report,
    detector: DivergenceDetector | None,
    control: Control,
    origin: Path | None,
    checkpoints: int,
    save_minutes: float,
    precision: str,
    arguments: dict[str, Any],
    save_steps: int,
) -> None:
    module = prepared.module
    folder.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    module.batches = prepared.batches
    resumed, fault = folder.whole_checkpoint()
    in_parts = shards(arguments.get("strategy"))
    if resumed is not None and resumed.is_dir() and not in_parts:
        raise ValueError(
            f"{resumed} is a checkpoint in parts, as strategy='fsdp' writes it: go on with trainer={{'strategy': "
            "'fsdp'}, with any number of processes, or make a model of it (chameleon-lab consolidate)."
        )
    if in_parts and origin is not None and resumed is None:
        raise ValueError("A fork begins with whole weights: strategy='fsdp' cannot take over a parent's.")
    if resumed is not None:
        _restore(module, resumed, in_parts)
    elif origin is not None:
        graft(module, origin)
    elif prepared.begin is not None:
        prepared.begin()
    if fault:
        fault = f"{fault}: the run goes on from {resumed.name if resumed else 'its beginning'}, at step {module.step}"
        log.warning("%s: %s.", folder.checkpoint.parent, fault)
    if (resumed or origin is not None) and module.progress >= 1:
        return
    origin = None if resumed else origin
    keeper = _Keeper(folder, prepared, report, control, detector, origin, checkpoints, save_minutes, save_steps, fault)
    each = arguments.pop("accumulate_grad_batches", None)
    callbacks, plugins = (_listed(arguments.pop(name, None)) for name in ("callbacks", "plugins"))
    module.logs = bool(arguments.get("logger") or callbacks)
    if not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        plugins.append(_environment(arguments))
    if arguments.get("strategy") == "fsdp":
        world = int(arguments["devices"]) * int(arguments.get("num_nodes", 1))
        arguments["strategy"] = ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
    usual = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "precision": precision}
    trainer = lightning.Trainer(
        **{**usual, **arguments},
        max_epochs=-1,  # the budget ends it, so that a run that ended can go on with a larger budget
        limit_val_batches=0,  # the module measures the held-out loss itself
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        callbacks=[*callbacks, keeper],
        default_root_dir=folder.checkpoint.parent,
        plugins=plugins,
    )
    if module.alone and trainer.world_size > 1:
        raise ValueError(f"{trainer.world_size} processes were to share this training, but {module.alone}.")
    loader = module.loader(trainer.world_size, trainer.global_rank, each)
    try:
        trainer.fit(module, loader, ckpt_path=resumed, weights_only=True)
    except RuntimeError as error:
        if trainer.world_size > 1 and LOST_PEER.search(str(error)):
            why = re.sub(SOURCE_LINE, "", str(error)).split(". ")[0]
            raise ValueError(
                f"A process that shared this training has ended ({why}). "
                f"{_last_words(folder)}Start it again in its folder: it goes on from the last good checkpoint, written "
                f"{keeper.last_save}."
            ) from error
        raise
    finally:
        folder.ledger.close()
        if keeper.own is not None:
            keeper.own.flush()
            keeper.own.close()
    if not trainer.is_global_zero:
        raise SystemExit(0)  # a helping process has nothing more to do


LOST_PEER = re.compile(r"(closed|reset) by peer|[Bb]roken pipe|[Tt]ime(d )?out|remote process|NCCL|ncclRemote")
"""What gloo and NCCL say where another process is not there any more."""

SOURCE_LINE = r"^\[\S*\] "
"""Where in gloo that was said."""


def _last_words(folder: RunFolder) -> str:
    """What the process that failed said of it in the folder, where it could; it writes about now."""
    for _ in range(10):
        alarms = [alarm for alarm in folder.history.alarms if alarm.rule == "process"]
        if alarms:
            return f"{alarms[-1].message[:1].upper()}{alarms[-1].message[1:]}. "
        time.sleep(0.2)
    return "It left no word in the folder; its output may say why. "


def shards(strategy: Any) -> bool:
    """Whether a strategy of Lightning's keeps weights in parts. Raises ValueError for FSDP of the older kind."""
    if isinstance(strategy, FSDPStrategy) or (isinstance(strategy, str) and strategy.startswith("fsdp_")):
        raise ValueError(f"{strategy} is FSDP of the older kind, which this lab's objective passes by: take 'fsdp'.")
    return strategy == "fsdp" or isinstance(strategy, ModelParallelStrategy)


def _torchrun() -> dict[str, int]:
    """How many processes torchrun started on each of how many nodes, where it started this one."""
    if not TorchElasticEnvironment.detect():
        return {}
    here, everywhere = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    return {"devices": here, "num_nodes": everywhere // here}


def _environment(arguments: Mapping[str, Any]) -> ClusterEnvironment:
    """Who started this training's processes.

    A scheduler's own ways of resuming stay out of it: with them Lightning would take any checkpoint that lies in the
    working directory, another folder's too, and leave one there on a signal.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    several = arguments["devices"] != 1 or arguments.get("num_nodes", 1) != 1
    if several and SLURMEnvironment.detect():
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()


def _listed(value: Any) -> list[Any]:
    """What is given for an argument that takes one thing or several."""
    return [] if value is None else [*value] if isinstance(value, list | tuple) else [value]


class _Keeper(lightning.Callback):
    """Between two steps: records, sounds alarms, carries out orders, saves, and ends the run when its time has come."""

    def __init__(
        self,
        folder: RunFolder,
        prepared: Prepared,
        report: Report,
        control: Control,
        detector: DivergenceDetector | None,
        origin: Path | None,
        checkpoints: int,
        save_minutes: float,
        save_steps: int,
        fault: str,
    ) -> None:
        self.folder, self.control, self.detector, self.origin = folder, control, detector, origin
        self.reports, self.samples = (report, prepared.report), SampleBook(folder, prepared.sampler)
        self.checkpoints, self.save_minutes, self.fault = checkpoints, save_minutes, fault
        self.saved_at, self.kept_at, self.saved_seconds = 0.0, 0.0, 0.0
        self.save_steps, self.rolling = save_steps, list[int]()
        self.rolled_at, self.saving_seconds = 0.0, 0.0
        self.coming: list[Intervention] = []
        self.own: Appender | None = None  # where several share the training: this process's own records
        self.faults = set[str]()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        module = _paced(pl_module)
        self.saved_at = module.seconds
        self.kept_at = module.progress
        self.folder.ledger.open(module.step, write=trainer.is_global_zero)
        if trainer.is_global_zero:
            for partial in self.folder.checkpoint.parent.glob("*.partial"):  # a killed process's
                remove_checkpoint(partial)
            if unwatched := getattr(module, "unwatched", None):
                message = "not read, since weights are in parts (FSDP2), nor are samples drawn"
                message = f"{', '.join(map(repr, unwatched))}: {message}"
                self.folder.ledger.note(Alarm(module.step, "WARN", "monitors", message))
            if self.fault:
                self.folder.ledger.note(Alarm(module.step, "WARN", "checkpoint", self.fault))
        if self.origin is not None:
            graft_optimizers(module, trainer.optimizers, self.origin)
        self.coming = [event for event in self.folder.ledger.events if isinstance(event, Intervention)]
        if self.detector is not None:
            for record in self.folder.ledger.records:
                self.detector.update(record)
            module.warned = self.detector.standing is not None
        if trainer.is_global_zero:
            self.note_milestones(module)
        self.carry_out(trainer, module)
        if (self.checkpoints or self.save_steps) and (not module.step or self.origin is not None):
            self.try_to_save(trainer, module, keep=True)  # so that a fork can begin where the run began

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module = _paced(pl_module)
        record = StepRecord(module.step - 1, module.seconds, module.values, module.layers)
        if trainer.is_global_zero:
            self.folder.ledger.add(record)
        if trainer.world_size > 1:
            self.keep_own(trainer, module, record)
        if self.detector is not None:
            for alarm in self.detector.update(record):
                if trainer.is_global_zero:
                    self.folder.ledger.note(alarm)
            module.warned = self.detector.standing is not None
        if trainer.is_global_zero:
            for report in self.reports:
                report(module, record)
            if not shards(trainer.strategy):
                self.samples.turn(module)
            self.note_milestones(module)
        if module.progress >= 1:
            trainer.should_stop = True
            return
        self.carry_out(trainer, module)
        share = 1 / (self.checkpoints + 1)
        if self.checkpoints and module.progress - self.kept_at >= share:
            self.kept_at += share * ((module.progress - self.kept_at) // share)
            self.try_to_save(trainer, module, keep=True)
        elif self.save_steps and module.step % self.save_steps == 0:
            self.roll(trainer, module)
        elif module.seconds - self.saved_at > 60 * self.save_minutes:
            self.try_to_save(trainer, module)

    def keep_own(self, trainer: lightning.Trainer, module: PacedModule, record: StepRecord) -> None:
        """Records what was this process's own of the step; the first notes, once, whose disk takes no more."""
        if self.own is None:
            path = self.folder.ranks / f"{trainer.global_rank:05d}.jsonl"
            path.parent.mkdir(exist_ok=True)
            self.own = Appender(path)
        self.own.write(replace(record, values=module.own_values, layers={}).to_json() + "\n")
        error = self.own.flush()  # now: nobody asks a process that is killed
        module.fault = f"process {trainer.global_rank} could not write {self.own.path} ({error})" if error else ""
        for fault in (each for each in module.faults if each not in self.faults):
            self.faults.add(fault)
            if trainer.is_global_zero:
                self.folder.ledger.note(Alarm(record.step, "WARN", "records", f"{fault}; the run goes on"))

    def note_milestones(self, module: PacedModule) -> None:
        """Those of this step, but for a change of the mixture that was ordered, and so stands as an intervention."""
        for milestone in module.milestones:
            if milestone.step == module.step:
                changes = (event for event in self.folder.ledger.events if isinstance(event, Intervention))
                if not any((change.step, change.name) == (module.step, "weights") for change in changes):
                    self.folder.ledger.note(milestone)

    def carry_out(self, trainer: lightning.Trainer, module: PacedModule) -> None:
        """Everything that was ordered, and what was ordered for this step before the run was taken up again."""
        while self.coming and self.coming[0].step <= module.step:
            past = self.coming.pop(0)
            module.change(past.name, past.after, since=past.step)
        while True:
            # What the first process was ordered, all do at the same step: one that stops alone leaves the others
            # waiting for its gradients.
            orders, saving, stopping, paused = trainer.strategy.broadcast(self.control.take())
            for order in orders:
                self.obey(trainer, module, order)
            if saving:
                self.try_to_save(trainer, module, keep=True)
                self.control.saved()
            if stopping:
                trainer.should_stop = True
            if trainer.should_stop or not paused:
                return
            self.folder.ledger.flush()
            self.control.idle(math.inf if trainer.world_size == 1 else 60.0)  # others wait for this one with a limit

    def obey(self, trainer: lightning.Trainer, module: PacedModule, order: Order) -> None:
        before = module.settings.get(order.name)
        try:
            module.change(order.name, order.value)
        except ValueError as error:  # what was wrong already when it was ordered was refused then
            log.warning("Not changed: %s", error)
            return
        if trainer.is_global_zero:
            after = module.settings[order.name]
            self.folder.ledger.note(Intervention(module.step, order.name, before, after, order.reason))

    def try_to_save(self, trainer: lightning.Trainer, module: PacedModule, keep: bool = False) -> None:
        """Saves; when the disk does not take it, the last good checkpoint stays, and the run goes on and says so."""
        self.saved_at = module.seconds
        try:
            self.save(trainer)
            if keep and trainer.is_global_zero:
                copy = self.folder.checkpoint.with_name(f"step-{module.step:08d}.ckpt")
                link_checkpoint(self.folder.checkpoint, copy)
        except (OSError, RuntimeError) as error:
            if trainer.is_global_zero:
                message = f"no checkpoint could be written ({error}); the last good one is kept"
                self.folder.ledger.note(Alarm(module.step, "WARN", "checkpoint", message))

    def roll(self, trainer: lightning.Trainer, module: PacedModule) -> None:
        """Keeps a checkpoint of here, and lets go of the fourth last; where saving takes long, not each time."""
        early = module.seconds - self.rolled_at < 10 * self.saving_seconds
        if early or module.step in self.folder.checkpoints:
            return
        began = time.perf_counter()
        self.try_to_save(trainer, module, keep=True)
        self.rolled_at = module.seconds
        # All processes save together, so all take the time of the first.
        self.saving_seconds = trainer.strategy.broadcast(time.perf_counter() - began)
        self.rolling.append(module.step)
        for step in self.rolling[:-3]:
            if trainer.is_global_zero and step in self.folder.checkpoints:
                remove_checkpoint(self.folder.checkpoints[step])
        self.rolling = self.rolling[-3:]

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        try:
            self.save(trainer)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"{self.folder.checkpoint} could not be written at the end ({error}): make room on its disk, and start "
                f"the run again. It goes on from the last good checkpoint, written {self.last_save}."
            ) from error

    @property
    def last_save(self) -> str:
        return f"after {self.saved_seconds:.0f} s of training" if self.saved_seconds else "before it was started"

    def save(self, trainer: lightning.Trainer) -> None:
        self.folder.require()
        self.folder.ledger.flush()
        partial = self.folder.checkpoint.with_suffix(".partial")
        try:
            sums = _save_together(trainer, partial)
            if trainer.is_global_zero:
                if shards(trainer.strategy):
                    seal(partial, sums)
                name_checkpoint(partial, self.folder.checkpoint)
            self.saved_seconds = _paced(trainer.lightning_module).seconds
        except BaseException:
            remove_checkpoint(partial)
            raise


def _save_together(trainer: lightning.Trainer, path: Path) -> list[dict[str, str]]:
    """Writes a checkpoint, and gives the checksums of each process's files where it is in parts. Where one process
    cannot write, all raise OSError: one that went on alone would meet the others at another place of their work."""
    fault, sums = "", dict[str, str]()
    try:
        trainer.save_checkpoint(path)
    except CheckpointException as error:  # torch has told all processes of it already
        faults = (f"process {rank}: {why[0]}" for rank, why in error.failures.items())
        raise OSError("; ".join(faults)) from None
    except (OSError, RuntimeError) as error:
        if trainer.world_size == 1:
            raise
        fault = str(error)
        trainer.strategy.barrier("Trainer.save_checkpoint")  # where the others wait
    if trainer.world_size == 1 and not shards(trainer.strategy):
        return []
    if not fault and shards(trainer.strategy):
        try:
            sums = checksums(path, trainer.global_rank)
        except OSError as error:
            fault = str(error)
    each = _paced(trainer.lightning_module).gathered((fault, sums))
    if faults := [f"process {rank}: {why}" for rank, (why, _) in enumerate(each) if why]:
        raise OSError("; ".join(faults))
    return [of for _, of in each]


def _restore(module: PacedModule, checkpoint: Path, in_parts: bool = False) -> None:
    """Weights, clock and random numbers; those in parts Lightning reads itself, when each process has its own."""
    try:
        if in_parts:
            rest = rest_of(checkpoint) if checkpoint.is_dir() else torch.load(checkpoint, weights_only=True, mmap=True)
            module.on_load_checkpoint(rest)
            return
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        module.load_state_dict(state["state_dict"])
        module.on_load_checkpoint(state)
    except (RuntimeError, KeyError, OSError, EOFError, pickle.UnpicklingError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{checkpoint} does not fit this training or is damaged ({why}). Give this training another folder."
        ) from error


def graft(module: PacedModule, checkpoint: Path) -> list[str]:
    """Takes over what another module's checkpoint has by the same name and shape, its clock, and its random numbers.

    Returns the names that begin anew. Raises ValueError when nothing fits, or the checkpoint is damaged.
    """
    try:
        check_whole(checkpoint)
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        saved, own = state["state_dict"], module.state_dict()
        saved |= {
            name: saved[dense] for name, dense in dense_names(module).items() if name not in saved and dense in saved
        }
        fitting = {name: saved[name] for name in own if name in saved and saved[name].shape == own[name].shape}
        module.load_state_dict(fitting, strict=False)
        module.on_load_checkpoint(state)
    except (RuntimeError, KeyError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{checkpoint} is damaged: {str(error).splitlines()[0]}. Fork from another one.") from error
    if not fitting:
        raise ValueError(f"Nothing in {checkpoint} fits this model: a fork shares most of its parent's shape.")
    return sorted(own.keys() - fitting.keys())


def graft_optimizers(module: PacedModule, optimizers: list[torch.optim.Optimizer], checkpoint: Path) -> None:
    """Takes over the optimizer's state of each parameter whose name and shape another checkpoint has."""
    saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
    states, dense = dict[str, dict[str, Any]](), dense_names(module)
    for state, (kind, *names) in zip(saved["optimizer_states"], saved["paced"]["names"], strict=True):
        states |= {f"{kind} {name}": state["state"][at] for at, name in enumerate(names) if at in state["state"]}
    for optimizer in optimizers:
        current = optimizer.state_dict()
        kind, *names = module.names(optimizer)
        for at, (name, parameter) in enumerate(zip(names, _parameters(optimizer), strict=True)):
            state = states.get(f"{kind} {name}") or states.get(f"{kind} {dense.get(name, name)}")
            if state and all(value.shape in ((), parameter.shape) for value in state.values()):
                current["state"][at] = state
        optimizer.load_state_dict(current)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _paced(module: lightning.LightningModule) -> PacedModule:
    assert isinstance(module, PacedModule)
    return module
