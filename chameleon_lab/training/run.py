"""A run: one training that goes on in the background, and what can be asked of it meanwhile."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chameleon_lab.history import LEVELS, Alarm, History, Level, RunState, Status, StepRecord, event_line
from chameleon_lab.monitors.alarms import thresholds_of
from chameleon_lab.stability import FIXES, kind
from chameleon_lab.training.control import Control, Order, release_workers
from chameleon_lab.training.experiments import Experiment, plain
from chameleon_lab.training.folder import RunFolder, write_text
from chameleon_lab.training.modules import LanguageModule, PacedModule
from chameleon_lab.transformer import Transformer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rescue:
    """What to do when an alarm of `level` sounds: go back at least `back` steps to a checkpoint and fork with `fixes`,
    the rate times `cool`; at most `times` times, then stop and say so."""

    fixes: tuple[Any, ...] = ()
    cool: float = 1.0
    level: Level = "ALARM"
    back: int = 50
    times: int = 2

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown level, and for what is no fix."""
        if self.level not in LEVELS:
            raise ValueError(f"{self} waits for the level {self.level!r}; there are {', '.join(LEVELS)}.")
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
    """One training of an experiment, in a folder.

    `start` returns at once; the work is done by a thread of this process, one run at a time, others wait for their
    turn. A paused run leaves its turn to them. Orders are carried out between two steps, and each is recorded.
    Starting a run in a folder where this process trains already stops that one first and goes on from its checkpoint;
    where another process does, it is refused.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Path | str | None = None,
        *,
        origin: Origin | None = None,
        rescue: Rescue | None = None,
    ) -> None:
        self.experiment, self.origin, self.rescue = experiment, origin, rescue
        self.folder = Path(folder or Path("runs") / f"{experiment.name}-{experiment.seed}-{experiment.fingerprint}")
        self.forks: list[Run] = []
        self._place = RunFolder(self.folder, kept=experiment.kept, precision=experiment.precision)
        self._control = Control()
        self._thread: threading.Thread | None = None
        self._status: Status = "waiting"
        self._error: BaseException | None = None
        self._told = ""
        self._sounded: Alarm | None = None
        self._module: LanguageModule | None = None
        self._speed: deque[tuple[float, float]] = deque(maxlen=50)  # (when, tokens) of the last steps
        self._written = 0.0

    # What is asked of it

    def start(self) -> Run:
        """Begins, or goes on where this folder ended; returns this run at once."""
        if self._thread is not None and self._thread.is_alive():
            return self
        before = _live.get(self.folder.resolve())
        _live[self.folder.resolve()] = self
        if self._thread is not None:
            self._control, self._error, self._told, self._sounded = Control(), None, "", None
            self._status = "waiting"
        release_workers()
        self._thread = threading.Thread(target=self._work, args=(before,), name=f"run {self.name}", daemon=True)
        self._thread.start()
        return self

    def wait(self, timeout: float | None = None) -> History:
        """Blocks until the run is over. Raises what it failed with, and TimeoutError after `timeout` seconds.

        An interrupt (Ctrl+C, the kernel's stop button) stops the run, its checkpoint written, and is raised again.
        """
        if self._thread is None:
            raise ValueError(f"The run {self.name!r} was not started: call start() first.")
        try:
            ends = None if timeout is None else time.monotonic() + timeout
            while self._thread.is_alive():
                self._thread.join(0.1)
                if ends is not None and time.monotonic() > ends and self._thread.is_alive():
                    raise TimeoutError(f"The run {self.name!r} is {self.state.status} after {timeout:g} seconds.")
        except KeyboardInterrupt:
            self.stop()
            self._thread.join()
            raise
        if self._error is not None:
            raise self._error
        return self.history

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
            self._control.change(Order(name, value, reason))

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
        told = [repr(fix) for fix in fixes] + [f"{key} {value:g}" for key, value in settings.items()]
        difference = ", ".join(told) or "nothing changed"
        number = len(self.forks) + 1
        experiment = replace(experiment, name=name or f"{self.name}-fork-{number}")
        origin = Origin(self.name, self.folder, step, checkpoint, difference)
        place = folder or self.folder.with_name(f"{self.folder.name}-fork-{number}-{experiment.fingerprint}")
        forked = Run(experiment, place, origin=origin, rescue=rescue)
        for key, value in settings.items():
            forked._control.change(Order(key, value, reason or "fork"))
        self.forks.append(forked)
        self._tell()
        return forked.start()

    def act(self, command: str, **arguments: Any) -> None:
        """One of the commands of a panel: pause, resume, stop, save, change, fork. Raises ValueError for another."""
        commands: dict[str, Callable[..., Any]] = {
            "pause": self.pause,
            "resume": self.resume,
            "stop": self.stop,
            "save": self.save,
            "change": self.change,
            "fork": self._fork_by_name,
        }
        if command not in commands:
            raise ValueError(f"A run knows no command {command!r}; it knows {', '.join(commands)}.")
        if self.state.over and command != "fork":
            raise ValueError(f"The run {self.name!r} is {self.state.status}: it cannot {command}. A fork can go on.")
        commands[command](**arguments)

    def _fork_by_name(self, fix: str, reason: str = "") -> None:
        if fix not in FIXES:
            raise ValueError(f"No fix is called {fix!r}; there are {', '.join(FIXES)}.")
        if not self.state.over:
            self.pause()  # the fork is what is to be seen now
        self.fork(FIXES[fix], reason=reason)

    # What it tells

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def history(self) -> History:
        """All that was recorded so far."""
        return self._place.ledger.history if self._place.ledger.records else self._place.history

    @property
    def config(self) -> dict[str, Any]:
        """The experiment as plain values."""
        return plain(self.experiment)

    @property
    def settings(self) -> dict[str, Any]:
        """What can be changed while it runs, as it is now."""
        return self._module.settings if self._module is not None else {}

    @property
    def model(self) -> Transformer:
        """The transformer, in training or trained. Raises ValueError before there is one."""
        if self._module is None:
            raise ValueError(f"The run {self.name!r} has no model yet: it is {self._status}.")
        return self._module.model

    @property
    def state(self) -> RunState:
        module, origin = self._module, self.origin
        installed = {type(fix).__name__ for fix in self.experiment.model.fixes}
        offers = [
            name for name, fix in FIXES.items() if hasattr(fix, "install") and type(fix).__name__ not in installed
        ]
        paused = self._control.paused and self._status in ("running", "waiting")
        return RunState(
            self.name,
            "paused" if paused else self._status,
            progress=module.progress if module is not None else 0.0,
            steps=self.experiment.budget.steps,
            tokens_per_second=self._tokens_per_second(),
            error=self._told,
            settings=self.settings,
            offers=tuple(offers),
            parent=origin.parent if origin else "",
            forked_at=origin.step if origin else None,
            difference=origin.difference if origin else "",
            forks=tuple(fork.name for fork in self.forks),
            process=os.getpid(),
            host=socket.gethostname(),
            thresholds=thresholds_of(getattr(self.experiment, "rules", ())),
        )

    def _tokens_per_second(self) -> float:
        seen = list(self._speed)
        if len(seen) < 2 or seen[-1][0] == seen[0][0]:
            return 0.0
        return sum(tokens for _, tokens in seen[1:]) / (seen[-1][0] - seen[0][0])

    def _checkpoint(self, at: int | None) -> tuple[int, Path]:
        known = self._place.checkpoints
        if self.state.over and self._place.checkpoint.exists():
            last = self.history.records[-1].step + 1 if self.history.records else 0
            known[last] = self._place.checkpoint
        fitting = [step for step in known if at is None or step <= at]
        if not fitting:
            there = ", ".join(map(str, sorted(known))) or "none yet"
            raise ValueError(
                f"The run {self.name!r} has no checkpoint{'' if at is None else f' at or before step {at}'}; its "
                f"checkpoints: {there}. run.save() writes one."
            )
        return max(fitting), known[max(fitting)]

    # The thread

    def _work(self, before: Run | None) -> None:
        try:
            if before is not None and before is not self and before._thread is not None:
                before.stop()
                before._thread.join()
            with self._place.locked():
                self._begin()
                if self._control.turn.take(lambda: self._control.stopping):
                    self._train()
                else:
                    self._status = "stopped"
        except BaseException as error:  # shown by panels, raised by `wait`
            self._error, self._status = error, "failed"
            self._told = f"{type(error).__name__}: {error}"
            log.warning("The run %s failed: %s", self.name, self._told)
        finally:
            self._control.turn.leave()
            self._tell()
        if self._sounded is not None:
            self._rescue(self._sounded)

    def _begin(self) -> None:
        path = self.folder / "config.json"
        if path.exists() and self._place.checkpoint.exists():
            known = json.loads(path.read_text())
            free = ("budget", "rules", "held_out_every", "kept")  # without a say in what is learned
            apart = [key for key, value in self.config.items() if key not in free and known.get(key) != value]
            if apart:
                raise ValueError(
                    f"{self.folder} holds a run of another experiment: {', '.join(apart)} differ. Give this one "
                    "another folder, or delete that one."
                )
        self._place.write("config.json", self.config)
        self._tell()

    def _train(self) -> None:
        self._status = "running"
        corpus = self.experiment.open()
        self._module = module = self.experiment.build(corpus)
        if self.origin is not None and not self._place.checkpoint.exists():
            self._inherit(self.origin)
        origin = self.origin.checkpoint if self.origin else None
        detector = self.experiment.detector()
        self._place.fit(module, corpus.batches, self._report, control=self._control, detector=detector, origin=origin)
        self._status = "finished" if module.progress >= 1 else "stopped"

    def _inherit(self, origin: Origin) -> None:
        """The parent's records up to the fork are this run's too, so that its curves are whole."""
        before = RunFolder(origin.folder).history.until(origin.step)
        write_text(self.folder / "metrics.jsonl", before.to_jsonl())
        write_text(self.folder / "events.jsonl", "".join(map(event_line, (*before.alarms, *before.interventions))))

    def _report(self, module: PacedModule, record: StepRecord) -> None:
        now = time.monotonic()
        self._speed.append((now, record.values.get("tokens", 0.0)))
        if now - self._written > 2.0:
            self._tell()
        if self.rescue is not None and self._sounded is None:
            loud = LEVELS[LEVELS.index(self.rescue.level) :]
            for event in reversed(self._place.ledger.events):
                if event.step < record.step:
                    break
                if isinstance(event, Alarm) and event.level in loud:
                    self._sounded = event
                    self.stop()

    def _rescue(self, alarm: Alarm) -> None:
        rescue = self.rescue
        assert rescue is not None
        seen = f"{alarm.level} at step {alarm.step}: {alarm.message}"
        if rescue.times < 1 or not (rescue.fixes or rescue.cool != 1):
            self._told = f"Stopped by {seen}. Nothing is left to be tried."
        else:
            left = replace(rescue, fixes=(), times=rescue.times - 1)
            cooler = {"rate": self.settings["rate"] * rescue.cool} if rescue.cool != 1 else {}
            fork = self.fork(*rescue.fixes, at=max(0, alarm.step - rescue.back), reason=seen, rescue=left, **cooler)
            self._told = f"Stopped by {seen}. {fork.name} goes on from step {fork.origin.step if fork.origin else 0}."
        log.warning("%s: %s", self.name, self._told)
        self._tell()

    def _tell(self) -> None:
        """Writes how the run stands, for those who look at its folder."""
        self._written = time.monotonic()
        try:
            self._place.write("state.json", asdict(self.state))
        except OSError as error:
            log.warning("%s: state.json could not be written (%s)", self.name, error)


_live: weakref.WeakValueDictionary[Path, Run] = weakref.WeakValueDictionary()
"""The runs of this process, by folder."""
