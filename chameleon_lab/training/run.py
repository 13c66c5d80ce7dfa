"""A run: one training that goes on in the background, and what can be asked of it meanwhile."""

from __future__ import annotations

import atexit
import glob
import json
import logging
import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from chameleon_lab.files import read_table
from chameleon_lab.history import (
    HEARTBEAT,
    LARGEST_STEP,
    LEVELS,
    ORDERS,
    Alarm,
    Answer,
    History,
    Level,
    PostedOrder,
    RunState,
    Status,
    StepRecord,
    Tail,
    event_line,
    process_start,
)
from chameleon_lab.monitors.alarms import DivergenceDetector, thresholds_of
from chameleon_lab.notices import NOTICE
from chameleon_lab.parts import require_fields
from chameleon_lab.plain import described, discrepancies, fingerprint, plain_values
from chameleon_lab.stability import FIXES, kind
from chameleon_lab.storage import write_file
from chameleon_lab.training.control import GLANCE, Control, Order, release_workers
from chameleon_lab.training.folder import RunFolder, shares_work
from chameleon_lab.training.launch import Launch, launch
from chameleon_lab.training.trainable import Trainable
from chameleon_lab.training.trainer_arguments import check_trainer
from chameleon_lab.transformer import Transformer

if TYPE_CHECKING:
    from chameleon_lab.training.modules import PacedModule

log = logging.getLogger(__name__)

FREE = ("budget", "rules", "held_out_every", "checkpoints", "kept")
"""What of an experiment has no say in what is learned, so that a run may go on with another."""


_own_start = cache(process_start)  # of this process, which a panel asks for thirty times a second


@dataclass(frozen=True)
class Rescue:
    """What to do when an alarm of `level` sounds: go back at least `back` steps to a checkpoint and fork with `fixes`,
    the rate times `cool`; at most `times` times, then stop and say so.

    A run with a rescue keeps a checkpoint every `back` steps, so that it goes back less than twice as far; where saving
    is slow, it keeps fewer.
    """

    fixes: tuple[Any, ...] = ()
    cool: float = 1.0
    level: Level = "ALARM"
    back: int = 50
    times: int = 2

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown level, for what is no fix, and for numbers that lead nowhere."""
        if self.level not in LEVELS:
            raise ValueError(f"{self} waits for the level {self.level!r}; there are {', '.join(LEVELS)}.")
        require_fields(self, cool=(1e-6, 1e6), back=(1, LARGEST_STEP), times=(0, LARGEST_STEP))
        for fix in self.fixes:
            kind(fix)


@dataclass(frozen=True)
class Origin:
    """Where a fork begins: its parent's name and folder, the step, the checkpoint, and the difference in words."""

    parent: str
    folder: Path
    step: int
    checkpoint: Path
    difference: str


class Run:
    """One training of anything trainable, in a folder: a transformer, an image tokenizer, a text tokenizer.

    `start` returns at once; the work is done by a thread of this process, one run at a time, others wait for their
    turn. A paused run leaves its turn to them. Orders are carried out between two steps, and each is recorded; other
    processes give theirs through the folder (`history.RecordedRun.act`). Starting a run in a folder where this process
    trains already stops that one first and goes on from its checkpoint; where another process does, it is refused.
    `processes` share the training (see `loop.train`). `trainer`: arguments of `lightning.Trainer`, such as devices,
    strategy, logger, callbacks, profiler, accumulate_grad_batches; ValueError for those that would break what a run
    promises (see `trainer_arguments`). Its precision is the experiment's from then on.
    """

    def __init__(
        self,
        experiment: Trainable,
        folder: Path | str | None = None,
        *,
        origin: Origin | None = None,
        rescue: Rescue | None = None,
        processes: int = 1,
        trainer: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.trainer = check_trainer(trainer)
        if "precision" in self.trainer and any(each.name == "precision" for each in fields(experiment)):
            experiment = replace(experiment, precision=self.trainer["precision"])  # which the config is to say
        self.experiment, self.origin, self.rescue, self.processes = experiment, origin, rescue, processes
        self.folder = Path(folder or Path("runs") / f"{experiment.name}-{experiment.seed}-{fingerprint(experiment)}")
        self.config: dict[str, Any] = plain_values(experiment)
        self.forks: list[Run] = []
        self._place = RunFolder(self.folder)
        self._control = Control(self._attend, self.name)
        self._thread: threading.Thread | None = None
        self._over = threading.Event()  # a `join` that Ctrl+C interrupts takes the thread for dead from then on
        self._status: Status = "waiting"
        self._error: BaseException | None = None
        self._message = ""
        self._trigger: Alarm | None = None
        self._module: PacedModule | None = None
        self._product: Any = None
        self._speed: deque[tuple[float, float]] = deque(maxlen=50)  # (when, tokens) of the last steps
        self._orders = Tail(self.folder / "orders.jsonl", PostedOrder.of)
        self._orders_taken = set[str]()
        self._attended = self._written = 0.0
        self._state_written: RunState | None = None
        self._writing = threading.Lock()

    # What is asked of it

    def start(self) -> Run:
        """Begins, or goes on where this folder ended; returns this run at once."""
        if self._thread is not None and not self._over.is_set():
            return self
        before = _live.get(self.folder.resolve())
        _live[self.folder.resolve()] = self
        if self._thread is not None:
            self._control = Control(self._attend, self.name)
            self._error, self._message, self._trigger = None, "", None
            self._status, self._product = "waiting", None
        self._over.clear()
        release_workers()
        self._control.turn.come()  # here and not in the thread: runs train in the order in which they were started
        self._thread = threading.Thread(target=self._work, args=(before,), name=f"run {self.name}", daemon=True)
        self._thread.start()
        return self

    def join(self) -> Run:
        """The run of this process that trains the same in this folder already, where one does; else this one, begun.

        `start` would stop that one and take its place, and whoever watches it would see it stopped.
        """
        going = _live.get(self.folder.resolve())
        if going is None or going._over.is_set() or going._control.stopping or going.config != self.config:
            return self.start()
        return going

    def launch(self, **places: Any) -> Launch:
        """Trains it in processes of their own instead: `processes`, or `nodes` x `devices`, and a `strategy` (see
        `training.launch`). `RunPanel(folder)` watches and steers them. Raises ValueError where it trains here."""
        if self._thread is not None and not self._over.is_set():
            raise ValueError(f"The run {self.name!r} trains in this process: stop it first.")
        return launch(self.experiment, self.folder, trainer=self.trainer, **places)

    def wait(self, timeout: float | None = None, report: Callable[[StepRecord], Any] | None = None) -> History:
        """Blocks until the run is over. Raises what it failed with, and TimeoutError after `timeout` seconds.

        `report` is called here with the newest record, several times a second. An interrupt (Ctrl+C, the kernel's stop
        button) stops the run, its checkpoint written, and is raised again.
        """
        if self._thread is None:
            raise ValueError(f"The run {self.name!r} was not started: call start() first.")
        ends = None if timeout is None else time.monotonic() + timeout
        records, reported = self._place.ledger.records, None
        try:
            while True:
                over = self._over.is_set()
                if report is not None and records and records[-1] is not reported:
                    report(reported := records[-1])
                if over:
                    break
                if not self._over.wait(0.1) and ends is not None and time.monotonic() > ends:
                    raise TimeoutError(f"The run {self.name!r} is {self.state.status} after {timeout:g} seconds.")
        except KeyboardInterrupt:
            self.stop()
            self._over.wait()
            raise
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.history

    def result(self, timeout: float | None = None) -> Any:
        """Waits, and returns what was trained: the transformer, or the tokenizer as it lies in the folder.

        Raises as `wait` does, and ValueError when the run was stopped before its budget was spent.
        """
        self.wait(timeout)
        if self._status != "finished":
            raise ValueError(f"The run {self.name!r} is {self._status}: nothing came of it yet. start() goes on.")
        return self._product

    def pause(self) -> None:
        """Stands still after the step it is at, until `resume` or `stop`; meanwhile other runs have the machine."""
        self._control.pause()

    def resume(self) -> None:
        self._control.resume()

    def stop(self) -> None:
        """Ends the run after the step it is at, its checkpoint written."""
        self._control.stop()

    def save(self) -> None:
        """Has a checkpoint written between two steps, and kept."""
        self._control.save()

    def change(self, reason: str = "", **settings: Any) -> None:
        """Changes settings (see `settings`) between two steps. Raises ValueError for what cannot be changed so."""
        if self._module is None:
            raise ValueError(f"The run {self.name!r} has not begun: change the experiment instead.")
        for name, value in settings.items():
            self._module.check(name, value)
        for name, value in settings.items():
            self._control.change(Order(name, value, str(reason)))

    def fork(
        self,
        *fixes: Any,
        at: int | None = None,
        name: str = "",
        folder: Path | str | None = None,
        reason: str = "",
        rescue: Rescue | None = None,
        **settings: Any,
    ) -> Run:
        """Starts another run from a checkpoint of this one, with fixes added and settings changed; this one goes on.

        It begins at the newest checkpoint whose step is at most `at`, or now: weights and optimizer's state of all that
        both have, clock, random numbers and data order. Raises ValueError when there is no such checkpoint.
        """
        experiment = self.experiment.with_fixes(*fixes)
        if at is None and not self.state.over:
            self._control.save(wait=30.0)
        step, checkpoint = self._checkpoint(at)
        changes = [repr(fix) for fix in fixes] + [f"{key} {value:g}" for key, value in settings.items()]
        difference = ", ".join(changes) or "nothing changed"
        number = len(self.forks) + 1
        experiment = replace(experiment, name=name or f"{self.name}-fork-{number}")
        origin = Origin(self.name, self.folder, step, checkpoint, difference)
        place = folder or self.folder.with_name(f"{self.folder.name}-fork-{number}-{fingerprint(experiment)}")
        forked = Run(experiment, place, origin=origin, rescue=rescue)
        for key, value in settings.items():
            forked._control.change(Order(key, value, reason or "fork"))
        self.forks.append(forked)
        self._write_state()
        return forked.start()

    def act(self, command: str, **arguments: Any) -> None:
        """One of the commands of a panel, `history.ORDERS`. Raises ValueError for another."""
        if command not in ORDERS:
            raise ValueError(f"A run has no command {command!r}; it has {', '.join(ORDERS)}.")
        if self.state.over and command != "fork":
            raise ValueError(f"The run {self.name!r} is {self.state.status}: it cannot {command}. A fork can go on.")
        (self._fork_by_name if command == "fork" else getattr(self, command))(**arguments)

    def _fork_by_name(self, fix: str, reason: str = "") -> None:
        if not isinstance(fix, str) or fix not in FIXES:
            raise ValueError(f"No fix is called {fix!r}; there are {', '.join(FIXES)}.")
        self.fork(FIXES[fix], reason=str(reason))

    # How it stands

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def history(self) -> History:
        """All that was recorded so far."""
        return self._place.ledger.history if self._place.ledger.records else self._place.history

    @property
    def settings(self) -> dict[str, Any]:
        """What can be changed while it runs, as it is now."""
        return self._module.settings if self._module is not None else {}

    @property
    def model(self) -> Transformer:
        """The transformer, in training or trained. Raises ValueError before there is one."""
        if self._module is None:
            raise ValueError(f"The run {self.name!r} has no model yet: it is {self._status}.")
        from chameleon_lab.training.modules import LanguageModule

        if not isinstance(self._module, LanguageModule):
            raise ValueError(f"The run {self.name!r} trains no transformer: result() gives what it makes.")
        return self._module.model

    @property
    def state(self) -> RunState:
        module, origin = self._module, self.origin
        status, behind = self._status, self._control.turn.behind
        if status in ("running", "waiting"):
            status = "paused" if self._control.paused else "waiting" if behind else status
        return RunState(
            self.name,
            status,
            progress=module.progress if module is not None else float(self._status == "finished"),
            steps=self.experiment.budget.steps,
            tokens_per_second=self._tokens_per_second(),
            error=self._message,
            settings=self.settings,
            offers=self._offers,
            parent=origin.parent if origin else "",
            forked_at=origin.step if origin else None,
            difference=origin.difference if origin else "",
            forks=tuple(fork.name for fork in self.forks),
            process=os.getpid(),
            process_start=_own_start(os.getpid()),
            host=socket.gethostname(),
            thresholds=self._thresholds,
            behind=behind if status == "waiting" else "",
        )

    @cached_property
    def _offers(self) -> tuple[str, ...]:
        return tuple(self.experiment.offers)  # found by building sketches, and `state` is asked thirty times a second

    @cached_property
    def _thresholds(self) -> dict[str, dict[str, float]]:
        return thresholds_of(self.experiment.rules)

    def _tokens_per_second(self) -> float:
        pace = list(self._speed)
        if len(pace) < 2 or pace[-1][0] == pace[0][0]:
            return 0.0
        return sum(tokens for _, tokens in pace[1:]) / (pace[-1][0] - pace[0][0])

    def _checkpoint(self, at: int | None) -> tuple[int, Path]:
        checkpoints = self._place.checkpoints
        if self.state.over and self._place.checkpoint.exists():
            last = self.history.records[-1].step + 1 if self.history.records else 0
            checkpoints[last] = self._place.checkpoint
        fitting = [step for step in checkpoints if at is None or step <= at]
        if not fitting:
            there = ", ".join(map(str, sorted(checkpoints))) or "none yet"
            raise ValueError(
                f"The run {self.name!r} has no checkpoint{'' if at is None else f' at or before step {at}'}; its "
                f"checkpoints: {there}. run.save() writes one."
            )
        return max(fitting), checkpoints[max(fitting)]

    # The thread

    def _work(self, before: Run | None) -> None:
        try:
            if before is not None and before is not self and before._thread is not None:
                before.stop()
                before._over.wait()
            with nullcontext() if shares_work() else self._place.locked():
                self._claim()
                with self._signs_of_life():
                    try:
                        if self._control.turn.take(self._control.give_up):
                            self._train()
                        else:
                            self._status = "stopped"
                    except BaseException as error:
                        self._fail(error)
                    finally:
                        self._control.turn.leave()
                        self._attend(last=True)
                        self._write_state()
            if self._trigger is not None:
                self._rescue(self._trigger)
        except BaseException as error:  # refused: the folder is another run's, and stays as it is
            self._fail(error)
        finally:
            self._control.turn.leave()
            self._over.set()

    def _fail(self, error: BaseException) -> None:
        """For panels to show, and for `wait` to raise."""
        self._error, self._status, self._message = error, "failed", f"{type(error).__name__}: {error}"
        if not isinstance(error, SystemExit):  # how a helping process ends
            log.warning("The run %s failed: %s", self.name, self._message)

    def _claim(self) -> None:
        """Writes what is trained here, and reads what came of it already, unless the budget has changed since.

        Raises ValueError where the folder holds another experiment's run.
        """
        path = self.folder / "config.json"
        before = _description(path)
        if before is None:
            raise ValueError(
                f"{path} is damaged, so that nobody can say whose run this is. Give this one another folder; or, if it "
                "is this one's, move that file out of the folder."
            )
        now = json.loads(json.dumps(self.config))
        product = self.experiment.product(self.folder)
        if product is not None and not path.exists() and not self._place.begun:
            raise ValueError(
                f"What {self.name} is to write is there already, and no run in {self.folder} wrote it: it is "
                "somebody's. Give this one another folder."
            )
        if self._place.begun or product is not None:
            old, new = ({key: value for key, value in each.items() if key not in FREE} for each in (before, now))
            # What earlier versions wrote of image tokenizers and pipelines does not say what it is.
            if before.get("is") not in (None, "SceneModel") and (apart := discrepancies(old, new)):
                raise ValueError(
                    f"{self.folder} holds a run of another experiment: {', '.join(apart)} differ. Give this one "
                    "another folder."
                )
        elif not path.exists():
            self._tell_of_edits(now)
        budgets = [{**(each.get("budget") or {}), "is": "Budget"} for each in (before, now)]
        # Of a folder without its config nobody knows what it was to become: its checkpoint goes on.
        grown = not path.exists() or ("budget" in before and budgets[0] != budgets[1])
        if grown and product is not None and not self._place.begun:
            raise ValueError(
                f"{self.folder} holds what a run of another budget made, and no checkpoint from which it could go on: "
                "ask for that budget, or give this one another folder."
            )
        if not shares_work():
            (self.folder / "orders.jsonl").unlink(missing_ok=True)  # they were an earlier process's
            self._orders = Tail(self.folder / "orders.jsonl", PostedOrder.of)
            self._place.write("config.json", described(self.experiment))
            self._write_state()
        self._product = None if grown else product

    def _tell_of_edits(self, now: dict[str, Any]) -> None:
        """Says so where the same was trained before with other code, as after a cell was edited."""
        same_name = f"{glob.escape(f'{self.name}-{self.experiment.seed}')}-*/config.json"
        for path in sorted(self.folder.parent.glob(same_name)):
            apart = discrepancies(_description(path) or {}, now)
            if apart and all("(the source of " in each for each in apart):
                log.log(NOTICE, "%s trains anew in %s: %s was edited.", self.name, self.folder, ", ".join(apart))
                return

    def _train(self) -> None:
        if self._product is not None:
            self._status = "finished"
            return
        self._status = "running"
        self._write_state()
        from chameleon_lab.training.loop import shards, train  # Lightning is slow to import: here, while panels say so
        from chameleon_lab.training.sharding import weights_later

        with weights_later(shards(self.trainer.get("strategy"))):
            prepared = self.experiment.prepare(self.folder)
        self._module = module = prepared.module
        if self.origin is not None and not self._place.begun:
            self._inherit(self.origin)
        train(
            prepared,
            self._place,
            self._report,
            control=self._control,
            detector=DivergenceDetector(self.experiment.rules),
            origin=self.origin.checkpoint if self.origin else None,
            checkpoints=self.experiment.checkpoints,
            precision=self.experiment.precision,
            processes=self.processes,
            trainer=self.trainer,
            save_steps=self.rescue.back if self.rescue else 0,
        )
        self._place.require()
        if module.progress >= 1:
            self._product = self.experiment.finish(module, self.history, self.folder)
        self._status = "finished" if module.progress >= 1 else "stopped"

    def _inherit(self, origin: Origin) -> None:
        """The parent's records and samples up to the fork are this run's too, so that its curves are whole."""
        before = RunFolder(origin.folder).history.until(origin.step)
        for sample in before.samples:
            for name in filter(None, (sample.picture, sample.original)):
                with suppress(OSError):  # a picture that is gone is no reason not to train
                    write_file(self.folder / name, (origin.folder / name).read_bytes())
        write_file(self.folder / "metrics.jsonl", before.to_jsonl())
        write_file(self.folder / "events.jsonl", "".join(map(event_line, before.events)))

    def _report(self, module: PacedModule, record: StepRecord) -> None:
        now = time.monotonic()
        self._speed.append((now, record.values.get("tokens", 0.0)))
        if now - self._written > 2.0:
            self._write_state()
        if self.rescue is not None and self._trigger is None:
            loud = LEVELS[LEVELS.index(self.rescue.level) :]
            for event in reversed(self._place.ledger.events):
                if event.step < record.step:
                    break
                if isinstance(event, Alarm) and event.level in loud:
                    self._trigger = event
                    self.stop()

    def _rescue(self, alarm: Alarm) -> None:
        rescue = self.rescue
        assert rescue is not None
        reason = f"{alarm.level} at step {alarm.step}: {alarm.message}"
        if rescue.times < 1 or not (rescue.fixes or rescue.cool != 1):
            self._message = f"Stopped by {reason}. Nothing is left to be tried."
        else:
            left = replace(rescue, fixes=(), times=rescue.times - 1)
            cooler = {"rate": self.settings["rate"] * rescue.cool} if rescue.cool != 1 else {}
            fork = self.fork(*rescue.fixes, at=max(0, alarm.step - rescue.back), reason=reason, rescue=left, **cooler)
            start = fork.origin.step if fork.origin else 0
            self._message = f"Stopped by {reason}. {fork.name} goes on from step {start}."
        log.warning("%s: %s", self.name, self._message)
        self._write_state()

    # For onlookers in other processes

    def _attend(self, last: bool = False) -> None:
        """Takes the orders that came through the folder, and has the folder show how the run stands."""
        now = time.monotonic()
        if shares_work() or (now - self._attended < GLANCE and not last):
            return
        self._attended = now
        self._place.require()
        for posted in self._orders.values():
            if posted.order in self._orders_taken:
                continue
            self._orders_taken.add(posted.order)
            if posted.command == "fork" and not last:  # it waits for a checkpoint, which this thread writes
                threading.Thread(target=self._take, args=(posted,), name=f"fork of {self.name}", daemon=True).start()
            else:
                self._take(posted)
        before, state = self._state_written, self.state
        if before is None or (before.status, before.settings) != (state.status, state.settings):
            self._write_state()

    def _take(self, posted: PostedOrder) -> None:
        records, refusal = self._place.ledger.records, ""
        try:
            if self._status not in ("running", "waiting"):
                raise ValueError(f"The run {self.name!r} is {self._status}: it cannot {posted.command}.")
            if not isinstance(posted.arguments, dict):
                raise ValueError(f"An order names its arguments, and this one does not: {posted.arguments!r:.80}.")
            self.act(posted.command, **posted.arguments)
        except Exception as error:  # whatever others write there, the run goes on
            refusal = str(error) or type(error).__name__
        step = records[-1].step + 1 if records else 0
        self._place.ledger.note(Answer(step, posted.order, posted.command, refusal))

    @contextmanager
    def _signs_of_life(self) -> Iterator[None]:
        """Meanwhile the folder's state is written now and then: a step, a compilation or a checkpoint may take longer
        than onlookers of another machine wait before they take this process for gone."""
        over = threading.Event()

        def write() -> None:
            while not over.wait(HEARTBEAT):
                self._write_state()

        thread = threading.Thread(target=write, name=f"signs of life of {self.name}", daemon=True)
        if not shares_work():
            thread.start()
        try:
            yield
        finally:
            over.set()
            if thread.ident is not None:
                thread.join()

    def _write_state(self) -> None:
        if shares_work() or self._place.deleted:
            return
        with self._writing:
            self._written, self._state_written = time.monotonic(), self.state
            try:
                self._place.write("state.json", asdict(self._state_written) | {"beat": time.time()})
            except OSError as error:
                log.warning("%s: state.json could not be written (%s)", self.name, error)


def _description(path: Path) -> dict[str, Any] | None:
    """What a `config.json` says: nothing where there is none, None where it is damaged."""
    try:
        return read_table(path)
    except FileNotFoundError:
        return {}
    except ValueError:
        return None


_live: weakref.WeakValueDictionary[Path, Run] = weakref.WeakValueDictionary()
"""The runs of this process, by folder."""

LAST_SECONDS = 30.0  # that the end of the process waits for the steps under way, and for their checkpoints


@atexit.register
def _stop_at_exit() -> None:
    """A script that ends stops its runs as Ctrl+C does: a thread that is left in a computation of torch's aborts."""
    going = [run for run in _live.values() if run._thread is not None and not run._over.is_set()]
    for run in going:
        run.stop()
    deadline = time.monotonic() + LAST_SECONDS
    for run in going:
        if run._over.wait(max(0.0, deadline - time.monotonic())) and run._status == "stopped":
            log.warning("The run %s is stopped, for its process ends: run.start() goes on.", run.name)
