"""A run's folder, as the run itself writes it."""

from __future__ import annotations

import inspect
import json
import logging
import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

import torch

from chameleon_lab.files import require_place, require_regular
from chameleon_lab.history import (
    LARGEST_LINE,
    Alarm,
    Answer,
    Event,
    History,
    StepRecord,
    Tail,
    describe_gaps,
    event_line,
    in_order,
    parse_line,
    run_event,
    step_record,
    steps_missing,
)
from chameleon_lab.storage import hold_file, write_file

log = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


class RunFolder:
    """A run on disk, as its owner writes it; `history.RecordedRun` is how others read it.

    The folder holds `config.json` (what is trained), `state.json` (how it stands), `metrics.jsonl` (a `StepRecord` a
    line), `events.jsonl` (alarms, interventions, milestones, samples, answers to orders), `orders.jsonl` (orders of
    other processes), `samples/` (pictures of samples), `checkpoints/last.ckpt`, and the checkpoints that were kept on
    the way as `checkpoints/step-00000123.ckpt`. Where several processes share the training, `ranks/00001.jsonl` has
    what was each one's own of a step.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.ledger = Ledger(self.folder)
        self._lock = 0  # the lock file's inode since it was held
        self._locks = False  # whether it is held now

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def ranks(self) -> Path:
        return self.folder / "ranks"

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The checkpoints that were kept on the way, by the step they go on with."""
        files = sorted(self.checkpoint.parent.glob("step-*.ckpt"))
        return {int(path.stem[5:]): path for path in files if path.stem[5:].isdecimal()}

    @property
    def begun(self) -> bool:
        """Whether there is any checkpoint, whole or not."""
        return self.checkpoint.exists() or bool(self.checkpoints)

    def whole_checkpoint(self) -> tuple[Path | None, str]:
        """The newest checkpoint that is whole, and, where that is not `last.ckpt`, why not; (None, "") without any.

        Raises ValueError where there are checkpoints and none is whole.
        """
        steps, faults = self.checkpoints, list[str]()
        if not self.checkpoint.exists() and steps:
            faults.append(f"{self.checkpoint.name} is missing")
        for path in (self.checkpoint, *(steps[step] for step in sorted(steps, reverse=True))):
            if not path.exists():
                continue
            try:
                check_whole(path)
            except ValueError as error:
                faults.append(f"{path.name} is damaged ({error})")
                continue
            return path, "; ".join(faults)
        if not self.begun:
            return None, ""
        raise ValueError(
            f"{self.checkpoint.parent} holds no whole checkpoint: {'; '.join(faults)}. Put a copy of one there, or "
            "give this training another folder to start anew. Nothing was changed."
        )

    @property
    def history(self) -> History:
        """What was recorded so far."""
        records = Tail(self.folder / "metrics.jsonl", step_record).values()
        return History.of(in_order(records), Tail(self.folder / "events.jsonl", run_event).values())

    def write(self, name: str, value: object) -> None:
        """A JSON file of the folder, atomically."""
        write_file(self.folder / name, json.dumps(value, indent=2) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps others out; within, again, it does nothing more.

        Raises ValueError when another process trains here; the lock dies with its process.
        """
        if self._locks:
            yield
            return
        with _lock_file(self.folder) as file:
            self._lock = os.fstat(file.fileno()).st_ino
            self._locks = True
            try:
                yield
            finally:
                self._locks = False

    def require(self) -> None:
        """Raises ValueError where the folder was deleted while it was locked."""
        if self.deleted:
            raise ValueError(f"The folder {self.folder} was deleted while the run {self.folder.name!r} trained in it.")

    @property
    def deleted(self) -> bool:
        """Whether the folder was taken away from who locked it; another may be there in its place."""
        try:
            return self._lock not in (0, (self.folder / "lock").stat().st_ino)
        except OSError:
            return self._lock != 0


def locks_folder(work: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Work that makes several things in its argument `folder`, or in its owner's, as a function that keeps other
    processes out of the folder meanwhile: before anything is read or made there, until all is.

    A run locks its own folder alone, and only while it trains. Of this process each thread may come in: a cell that was
    interrupted may hold the folder still, and what trains in one process takes turns anyway. Raises ValueError where
    another process is at it.
    """
    signature = inspect.signature(work)

    def folder_of(*arguments: Any, **options: Any) -> Path:
        bound = signature.bind(*arguments, **options).arguments
        return Path(bound["folder"] if "folder" in bound else bound["self"].folder)

    if inspect.isgeneratorfunction(work):

        @wraps(work)
        def pieces(*arguments: Any, **options: Any) -> Any:
            with _locked_here(folder_of(*arguments, **options)):
                return (yield from work(*arguments, **options))

        return pieces  # pyright: ignore[reportReturnType]

    @wraps(work)
    def whole(*arguments: Any, **options: Any) -> Any:
        with _locked_here(folder_of(*arguments, **options)):
            return work(*arguments, **options)

    return whole


_locks_here: dict[Path, tuple[IO[str], int]] = {}
"""The locks of this process's `locks_folder`, by folder, and how often each is held."""

_locking = threading.Lock()


@contextmanager
def _locked_here(folder: Path) -> Iterator[None]:
    if shares_work():
        yield
        return
    place = folder.resolve()
    before = set(os.listdir(folder)) if folder.is_dir() else set[str]()
    with _locking:
        file, count = _locks_here.get(place) or (_lock_file(folder), 0)
        _locks_here[place] = file, count + 1
    try:
        yield
    except BaseException:
        alone = _locks_here[place][1] == 1 and folder.is_dir()
        if alone and "lock" not in before and set(os.listdir(folder)) == before | {"lock"}:
            (folder / "lock").unlink()  # refused before anything was made: a person's folder stays as it was
        raise
    finally:
        with _locking:
            file, count = _locks_here.pop(place)
            if count > 1:
                _locks_here[place] = file, count - 1
            else:
                file.close()


def _lock_file(folder: Path) -> IO[str]:
    """The open lock file of a folder, which is made; it holds until it is closed. Raises ValueError where another does
    hold it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = require_place(folder / "lock").open("a")
    if not hold_file(file.fileno()):
        file.close()
        raise ValueError(f"Another process trains in {folder}: stop it there, or give this run another folder.")
    return file


class Ledger:
    """What a run records, in memory for those who watch it and on disk for those who come later.

    A disk that takes no more ends no run: what could not be written waits, and an alarm says so.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.records: list[StepRecord] = []
        self.events: list[Event] = []
        self._metrics, self._events = Appender(folder / "metrics.jsonl"), Appender(folder / "events.jsonl")
        self._flushed, self._waits = 0.0, False

    @property
    def history(self) -> History:
        return History.of(self.records.copy(), self.events.copy())

    def open(self, step: int, write: bool = True) -> None:
        """Begins, or goes on before `step`: what was recorded later is forgotten, since it will come again;
        interventions are not, since they will be carried out again. Of several processes one may `write`.

        Lines that cannot be read stay as they are. An alarm says, once, what is damaged or missing before `step`.
        """
        metrics, events = (read_lines(self._folder / name) for name in ("metrics.jsonl", "events.jsonl"))
        parsed = [(line, parse_line(line, step_record)) for line in metrics]
        happened = [(line, parse_line(line, run_event)) for line in events]
        earlier = [record for _, record in parsed if record is not None and record.step < step]
        self.records[:] = in_order(earlier)
        recorded = History.of((), [event for _, event in happened if event is not None])
        before = recorded.until(step)
        self.events[:] = replace(before, interventions=recorded.interventions).events
        unreadable = sum(record is None for _, record in parsed)
        missing = steps_missing((record.step for record in self.records), step)
        words = " ".join(event.message for event in self.events if isinstance(event, Alarm) and event.rule == "records")
        if message := describe_gaps(unreadable, len(earlier) - len(self.records), missing, words):
            log.warning("%s: %s", self._folder, message)
            self.events.append(Alarm(step, "WARN", "records", message))
        if write:
            lines = {record.step: line for line, record in parsed if record is not None and record.step < step}
            strays = [line for line, record in parsed if record is None]
            write_file(self._folder / "metrics.jsonl", "".join(f"{line}\n" for line in (*lines.values(), *strays)))
            strays = [f"{line}\n" for line, event in happened if event is None]
            write_file(self._folder / "events.jsonl", "".join((*map(event_line, self.events), *strays)))
            self._metrics.open()
            self._events.open()

    def add(self, record: StepRecord) -> None:
        self._metrics.write(record.to_json() + "\n")
        self.records.append(record)
        if time.monotonic() - self._flushed > 0.5:
            self.flush()

    def note(self, event: Event | Answer) -> None:
        self._events.write(event_line(event))
        self._events.flush()
        if not isinstance(event, Answer):
            self.events.append(event)

    def flush(self) -> None:
        self._flushed = time.monotonic()
        waited, error = self._waits, self._metrics.flush()
        self._waits = bool(error)
        if error and not waited:
            message = f"records could not be written ({error}); the run goes on, and writes them when it can"
            log.warning("%s: %s", self._folder, message)
            self.note(Alarm(self.records[-1].step if self.records else 0, "WARN", "records", message))

    def close(self) -> None:
        for file in (self._metrics, self._events):
            if error := file.flush():
                log.warning("The last %d bytes of %s could not be written (%s).", file.waiting, file.path, error)
            file.close()


class Appender:
    """Lines at the end of a file, opened at the first one, or before. What the disk does not take waits for a `flush`.

    Of any thread: an order for a fork is answered in one of its own, while the run's notes what happens.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.error = path, ""
        self._file, self._pending, self._lock = -1, bytearray(), threading.Lock()

    @property
    def waiting(self) -> int:
        """Bytes not yet written."""
        return len(self._pending)

    def write(self, line: str) -> None:
        with self._lock:
            self._pending += line.encode()
            if self._file < 0:  # now, not when it is flushed: by then another folder may have this one's name
                self._open()

    def open(self) -> None:
        """Opens the file that has its name now: what is written later goes there, whoever takes the name meanwhile."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1
            self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        flags |= getattr(os, "O_NONBLOCK", 0)  # a pipe in its place would wait for a reader
        try:
            self._file, self.error = os.open(self.path, flags, 0o666), ""
        except OSError as error:
            self.error = error.strerror or type(error).__name__

    def flush(self) -> str:
        """Writes what waits; what went wrong, in words, or nothing."""
        with self._lock:
            if self._pending and self._file < 0:
                self._open()
            try:
                while self._pending and self._file >= 0:
                    del self._pending[: os.write(self._file, self._pending)]
                    self.error = ""
            except OSError as error:
                self.error = error.strerror or type(error).__name__
            return self.error

    def close(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file, self._pending = -1, bytearray()


def read_lines(path: Path) -> list[str]:
    """The lines of a file, whatever bytes they hold; one that a crash cut short, at the end, is none.

    Raises ValueError for a pipe or a device, and for a line that is too long to be kept.
    """
    lines: list[str] = []
    try:
        with require_regular(path).open("rb") as file:
            while line := file.readline(LARGEST_LINE + 1):
                if len(line) > LARGEST_LINE:
                    raise ValueError(
                        f"{path} holds a line of more than {LARGEST_LINE:,} bytes, which is no record: move the file "
                        "elsewhere to go on without it, or take the line out."
                    )
                if line.endswith(b"\n"):
                    lines.append(line[:-1].decode(errors="surrogateescape"))
    except FileNotFoundError:
        pass
    return lines


def check_whole(checkpoint: Path) -> None:
    """Raises ValueError, saying why, where a checkpoint's bytes are not those that were written: each of its parts
    carries a checksum (torch's files are zip archives)."""
    try:
        if checkpoint.is_dir():
            from chameleon_lab.training.sharded_files import check_sharded  # torch's checkpoints are slow to import

            check_sharded(checkpoint)
            return
        with zipfile.ZipFile(checkpoint) as archive:
            damaged = archive.testzip()
        torch.load(checkpoint, weights_only=True, map_location="cpu", mmap=True)  # which reads the table of contents
    except OSError as error:
        raise ValueError(error.strerror or type(error).__name__) from error
    except Exception as error:  # whatever a damaged archive makes them stumble over
        why = (str(error) or type(error).__name__).partition(". ")[0].splitlines()[0]
        raise ValueError(why if checkpoint.is_dir() or checkpoint.stat().st_size else "it is empty") from error
    if damaged is not None:
        raise ValueError(f"its part {damaged} has changed since it was written")


def shares_work() -> bool:
    """Whether this process only shares the work of the one that was started, which alone writes the folder.

    Lightning and torchrun say so by these names; a scheduler's own, such as SLURM's, may number trainings apart.
    torchrun numbers the processes of all nodes by `RANK`; those of each node begin at `LOCAL_RANK` 0 again.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return os.environ.get("RANK", "0") != "0"
    return any(os.environ.get(name, "0") != "0" for name in ("LOCAL_RANK", "NODE_RANK"))
