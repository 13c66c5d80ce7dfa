"""Who does the work: one worker and one pump for each widget, and nothing left over when a cell is run again, or when
the process ends.

Handlers of browser messages run in the kernel's main thread or in a subshell's, by ipykernel's version and mood. They
only hand work to a `Worker`, set an event, or ring a `Pump`, which is right in either.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

log = logging.getLogger("chameleon_widgets")

LOOK_SECONDS = 0.25  # seconds between two looks of an idle pump at whether the process ends
EXIT_SECONDS = 4.0  # that the end of the process waits for work under way; a notebook server waits for five

_closing = threading.Event()  # set when the interpreter ends: a thread begun from then on would never run
_threads = weakref.WeakSet[threading.Thread]()


def _begin(work: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    _threads.add(thread)
    thread.start()
    return thread


class Worker:
    """Does the work submitted to it in order, on one daemon thread that lives only while there is some."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], None]) -> None:
        with self._changed:
            if _closing.is_set():
                return
            self._queue.append(work)
            if self._thread is None:
                self._thread = _begin(self._run, self._name)

    @property
    def busy(self) -> bool:
        return self._thread is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until all submitted work is done; False when `timeout` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None, timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._queue or _closing.is_set():
                    self._thread = None
                    self._changed.notify_all()
                    return
                work = self._queue.popleft()
            try:
                work()
            except Exception:  # the work catches its own errors; whatever is left must not end the thread
                log.exception("%s failed", self._name)


class Pump:
    """Calls `flush` soon after `ring`, on one daemon thread, at most `rate` times a second.

    However often it is rung between two calls, there is one call: this is what coalesces thousands of tokens into a few
    messages. The first ring after a pause is answered at once.
    """

    def __init__(self, flush: Callable[[], None], name: str, rate: float = 30.0, linger: float = 2.0) -> None:
        self._flush = flush
        self._name = name
        self._period = 1.0 / rate
        self._linger = linger
        self._changed = threading.Condition()
        self._rung = False
        self._flushing = False
        self._thread: threading.Thread | None = None

    def ring(self) -> None:
        with self._changed:
            if _closing.is_set():
                return
            self._rung = True
            self._changed.notify_all()
            if self._thread is None:
                self._thread = _begin(self._run, self._name)

    def drain(self, timeout: float = 10.0) -> bool:
        """Blocks until everything rung for so far has been flushed."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._rung or self._flushing), timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                ends = time.monotonic() + self._linger
                while not (self._rung or _closing.is_set()) and time.monotonic() < ends:
                    self._changed.wait(LOOK_SECONDS)
                if not self._rung or _closing.is_set():
                    self._thread = None
                    self._rung = False
                    self._changed.notify_all()
                    return
                self._rung, self._flushing = False, True
            started = time.monotonic()
            try:
                self._flush()
            except Exception:
                log.exception("%s failed", self._name)
            with self._changed:
                self._flushing = False
                self._changed.notify_all()
            time.sleep(max(0.0, self._period - (time.monotonic() - started)))


class Rounds:
    """Calls bound methods every `seconds`, all on one daemon thread that lives only while there are some: each until it
    returns False, or its owner is gone."""

    def __init__(self, name: str, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self._name = name
        self._looks: list[weakref.WeakMethod] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def join(self, look: Callable[[], bool]) -> None:
        """Takes it in; once is enough."""
        with self._lock:
            if _closing.is_set() or any(each() == look for each in self._looks):
                return
            self._looks.append(weakref.WeakMethod(look))
            if self._thread is None:
                self._thread = _begin(self._run, self._name)

    def _run(self) -> None:
        while not _closing.wait(self.seconds):
            for each in self._looks.copy():
                look = each()
                try:
                    goes_on = look is not None and look()
                except Exception:
                    log.exception("%s failed", self._name)
                    goes_on = False
                del look  # nobody lives longer for it
                if not goes_on:
                    with self._lock:
                        self._looks.remove(each)
            with self._lock:
                if not self._looks:
                    self._thread = None
                    return


FOLDER_ROUNDS = Rounds("folder rounds")
"""Of all panels on folders whose runs are over: another process may take a run up again."""

_ends = list[weakref.WeakMethod]()
"""What ends the work of each widget of this process."""


@atexit.register
def _let_go() -> None:
    """Ends all work before the interpreter takes itself apart: a thread that is then in the middle of a computation of
    torch's aborts the process, and one that is begun then waits for ever."""
    for end in filter(None, (reference() for reference in _ends)):
        try:
            end()
        except Exception:
            log.exception("a widget could not be ended")
    _closing.set()
    _join(EXIT_SECONDS / 2)
    for thread in list(_threads):  # what somebody's callable does between two of its pieces may take minutes
        if thread.ident is not None and thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    _join(EXIT_SECONDS / 2)


def _join(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for thread in list(_threads):
        thread.join(max(0.0, deadline - time.monotonic()))


_claims: dict[str, tuple[str, list[weakref.WeakMethod]]] = {}


def claim(end: Callable[[], None]) -> None:
    """Registers a bound method that ends work started by the notebook cell now running.

    What an earlier run of the same cell registered is called first, so that a cell run again leaves no worker behind.
    Outside a notebook it ends with the process.
    """
    _ends[:] = [each for each in _ends if each() is not None]
    _ends.append(weakref.WeakMethod(end))
    cell, run = _running_cell()
    if not cell:
        return
    known_run, ends = _claims.get(cell, (run, []))
    if known_run != run:
        for reference in ends:
            earlier = reference()
            if earlier is not None:
                earlier()
        ends = []
    ends.append(weakref.WeakMethod(end))
    _claims[cell] = (run, ends)


def _running_cell() -> tuple[str, str]:
    """(id of the notebook cell, id of this execution of it), empty where there is none."""
    from IPython.core.getipython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    parent = kernel.get_parent() if kernel is not None else {}
    return parent.get("metadata", {}).get("cellId", ""), parent.get("header", {}).get("msg_id", "")
