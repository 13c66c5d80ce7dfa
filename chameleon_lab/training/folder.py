"""A run's folder, as the run itself writes it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from chameleon_lab.history import Answer, Event, History, StepRecord, event_line
from chameleon_lab.storage import write_file


class RunFolder:
    """A run on disk, as its owner writes it; `history.RecordedRun` is how others read it.

    The folder holds `config.json` (what is trained), `state.json` (how it stands), `metrics.jsonl` (a `StepRecord` a
    line), `events.jsonl` (alarms, interventions, answers to orders), `orders.jsonl` (orders of other processes),
    `checkpoints/last.ckpt`, and the checkpoints that were kept on the way as `checkpoints/step-00000123.ckpt`.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.ledger = Ledger(self.folder)
        self._lock = 0  # the lock file's inode while it is held

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The checkpoints that were kept on the way, by the step they go on with."""
        files = self.checkpoint.parent.glob("step-*.ckpt")
        return {int(path.stem.removeprefix("step-")): path for path in sorted(files)}

    @property
    def history(self) -> History:
        """What was recorded so far."""
        lines = [read_lines(self.folder / name) for name in ("metrics.jsonl", "events.jsonl")]
        return History.from_jsonl(*lines)

    def write(self, name: str, value: object) -> None:
        """A JSON file of the folder, atomically."""
        write_file(self.folder / name, json.dumps(value, indent=2) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps others out. Raises ValueError when another process trains here; the lock dies with its process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as file:
            try:
                import fcntl
            except ImportError:  # no such locks on Windows
                yield
                return
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(
                    f"Another process trains in {self.folder}: stop it there, or give this run another folder."
                ) from error
            self._lock = os.fstat(file.fileno()).st_ino
            yield

    @property
    def deleted(self) -> bool:
        """Whether the folder was taken away from who locked it; another may be there in its place."""
        try:
            return self._lock not in (0, (self.folder / "lock").stat().st_ino)
        except OSError:
            return self._lock != 0


class Ledger:
    """What a run records, in memory for those who watch it and on disk for those who come later."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.records: list[StepRecord] = []
        self.events: list[Event] = []
        self._metrics: IO[str] | None = None
        self._flushed = 0.0

    @property
    def history(self) -> History:
        return History.of(self.records.copy(), self.events.copy())

    def open(self, step: int, write: bool = True) -> None:
        """Begins, or goes on before `step`: later records and alarms are forgotten, since they will come again;
        interventions are not, since they will be carried out again. Of several processes one may `write`."""
        recorded = History.from_jsonl(*(read_lines(self._folder / name) for name in ("metrics.jsonl", "events.jsonl")))
        before = recorded.until(step)
        self.records[:] = before.records
        self.events[:] = sorted((*before.alarms, *recorded.interventions), key=lambda event: event.step)
        if write:
            write_file(self._folder / "metrics.jsonl", before.to_jsonl())
            write_file(self._folder / "events.jsonl", "".join(map(event_line, self.events)))

    def add(self, record: StepRecord) -> None:
        if self._metrics is None:
            self._metrics = (self._folder / "metrics.jsonl").open("a")
        self._metrics.write(record.to_json() + "\n")
        self.records.append(record)
        if time.monotonic() - self._flushed > 0.5:
            self.flush()

    def note(self, event: Event | Answer) -> None:
        with (self._folder / "events.jsonl").open("a") as file:
            file.write(event_line(event))
        if not isinstance(event, Answer):
            self.events.append(event)

    def flush(self) -> None:
        if self._metrics is not None:
            self._metrics.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None


def read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
