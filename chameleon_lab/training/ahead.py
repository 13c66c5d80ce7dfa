"""Batches made ahead of their steps by processes of their own, so that a GPU does not wait for one."""

from __future__ import annotations

import os
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from chameleon_lab.processes import PROCESS_ENDED, pool_of

Batches = Callable[[int], Any]
"""The batch of a step: a pure function."""


def spare_cores() -> int:
    """How many processes may work beside a training: none where it needs the cores itself, that is without a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(cores - 2, 12)) if torch.cuda.is_available() else 0


class Ahead:
    """The batches of `make()`, the same ones; each of so many `processes` makes `span` steps' at a time.

    `make` is called once in each process, so it has to be picklable, and what it makes a pure function.
    """

    def __init__(self, make: Callable[[], Batches], processes: int, span: int = 16) -> None:
        self.make, self.processes, self.span = make, processes, span
        self._spans: dict[int, Future[bytes]] = {}
        self._batches: tuple[int, list[Any]] = (-1, [])
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, step: int) -> Any:
        """Raises RuntimeError where a process ended, as one does that the system kills for its memory."""
        index, place = divmod(step, self.span)
        if self._batches[0] != index:
            self._batches = index, self._spanned(index)
        return self._batches[1][place]

    def _spanned(self, index: int) -> list[Any]:
        ahead = range(index, index + 2 * self.processes)
        for other in self._spans.keys() - set(ahead):
            self._spans.pop(other).cancel()
        for each in ahead:
            if each not in self._spans:
                self._spans[each] = self._workers().submit(_make_span, each, self.span)
        try:
            return pickle.loads(self._spans.pop(index).result())
        except BrokenProcessPool as error:
            raise RuntimeError(PROCESS_ENDED) from error

    def _workers(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = pool_of(self.processes, _open_batches, self.make)
            weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        return self._pool

    def __reduce__(self) -> tuple[type[Ahead], tuple[Any, ...]]:
        return Ahead, (self.make, self.processes, self.span)


def made_ahead(make: Callable[[], Batches]) -> Batches:
    """The batches of `make()`: from processes where a GPU trains and cores are free, else made when they are due."""
    processes = spare_cores()
    return Ahead(make, processes) if processes else make()


_worker_batches: Batches = lambda step: None  # noqa: E731 - a worker's, set when it begins


def _open_batches(make: Callable[[], Batches]) -> None:
    global _worker_batches
    _worker_batches = make()


def _make_span(index: int, span: int) -> bytes:
    """As bytes, by value: tensors that travel through shared memory take an open file each."""
    return pickle.dumps(
        [_worker_batches(step) for step in range(index * span, (index + 1) * span)], pickle.HIGHEST_PROTOCOL
    )
