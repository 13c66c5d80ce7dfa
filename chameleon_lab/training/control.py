"""Orders to a run in training: given at any time from any thread, carried out between two steps."""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

GLANCE = 0.25
"""Seconds between two looks at what comes from outside this process."""


@dataclass(frozen=True)
class Order:
    """One setting to be changed."""

    name: str
    value: Any
    reason: str = ""


_queue: list[Turn] = []
_moved = threading.Condition()


class Turn:
    """A run's turn on the machine: in one process one run trains at a time, for they share random numbers and cores.

    The others wait in line, in the order in which they came to it. `name`: the run's, for those behind it.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name

    def come(self) -> None:
        """Stands in line from now on."""
        with _moved:
            if self not in _queue:
                _queue.append(self)

    @property
    def behind(self) -> str:
        """Who has the machine while this one waits for it; empty where it does not wait."""
        with _moved:
            return _queue[0].name if self in _queue[1:] else ""

    @property
    def active(self) -> bool:
        with _moved:
            return _queue[:1] == [self]

    def take(self, give_up: Callable[[], bool]) -> bool:
        """Waits in line; whether the turn came before `give_up` said so."""
        self.come()
        while not give_up():
            with _moved:
                if _moved.wait_for(lambda: _queue[0] is self, 0.05):
                    return True
        return False

    def leave(self) -> None:
        with _moved:
            if self in _queue:
                _queue.remove(self)
            _moved.notify_all()


class Control:
    """What was ordered and is not done yet. One training takes orders; anyone may give them.

    `attend` is called between two steps and while the run stands still, at least every `GLANCE` seconds.
    """

    def __init__(self, attend: Callable[[], None] = lambda: None, name: str = "") -> None:
        self.attend = attend
        self._changed = threading.Condition()
        self._orders: deque[Order] = deque()
        self.stopping = self.paused = self._saving = False
        self._saves = 0
        self.turn = Turn(name)

    def stop(self) -> None:
        self._set(stopping=True)

    def pause(self) -> None:
        self._set(paused=True)

    def resume(self) -> None:
        self._set(paused=False)

    def save(self, wait: float = 0.0) -> None:
        """Asks for a checkpoint, and waits for it at most so many seconds."""
        before = self._saves
        self._set(_saving=True)
        with self._changed:
            self._changed.wait_for(lambda: self._saves > before or self.stopping, wait)

    def saved(self) -> None:
        self._set(_saves=self._saves + 1)

    def change(self, order: Order) -> None:
        with self._changed:
            self._orders.append(order)
            self._changed.notify_all()

    def _set(self, **flags: Any) -> None:
        with self._changed:
            vars(self).update(flags)
            self._changed.notify_all()

    def take(self) -> tuple[list[Order], bool, bool, bool]:
        """The orders given since the last time; whether to save, to stop, to pause."""
        self.attend()
        with self._changed:
            orders, saving = list(self._orders), self._saving
            self._orders.clear()
            self._saving = False
            return orders, saving, self.stopping, self.paused

    def idle(self, seconds: float = math.inf) -> None:
        """Waits while the run is paused and nothing is ordered, at most so long; meanwhile the machine is another's."""
        trains, random = self.turn.active, torch.get_rng_state()
        self.turn.leave()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.attend()
            with self._changed:
                if self._changed.wait_for(
                    lambda: not self.paused or self.stopping or self._saving or bool(self._orders), GLANCE
                ):
                    break
        if trains:
            self.turn.take(self.give_up)
            torch.set_rng_state(random)

    def give_up(self) -> bool:
        """Whether to wait no longer; asked while the run waits for its turn."""
        self.attend()
        return self.stopping


def release_workers() -> None:
    """Lets go of the OpenMP workers that the calling thread keeps; its next work makes new ones.

    GNU's OpenMP counts the workers of all threads together, and where they outnumber the cores it puts them to sleep
    between any two products: a step in another thread then takes more than twice as long where they would spin.
    """
    for library in Path(torch.__file__).parent.glob("lib/libgomp*"):
        if pause := getattr(ctypes.CDLL(str(library)), "omp_pause_resource_all", None):
            pause(1)  # omp_pause_soft
