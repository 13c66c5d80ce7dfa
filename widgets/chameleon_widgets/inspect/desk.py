"""Who does an inspector's work: one thread, which answers in turn, and goes on with longer work while nobody asks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

from chameleon_widgets.line import Line, paragraph
from chameleon_widgets.threads import Worker, log

PROGRESS_SECONDS = 0.1  # between two messages on how far a branch is
PAINT_SECONDS = 1.0  # that spare work waits for a page to paint; where there is none, it begins then


class BranchStop(Exception):
    """Somebody stopped a branch under way."""


class AnswerDesk:
    """Questions in the order in which they come, a branch under way between whose tokens they are answered, and spare
    work, a step at a time, which waits until a page has painted its first picture.

    `doing` says what is being done (at first, what will be submitted first), `trouble` what the last work raised,
    `drawing` how many tokens the branch under way has. Whatever changes these tells the line, which the widget sets
    before anything is submitted.
    """

    line: Line

    def __init__(self, name: str, doing: str) -> None:
        self.trouble, self._doing, self._idle_words = "", doing, ""
        self.drawing: int | None = None
        self._stop = self._free = False
        self._questions: deque[tuple[str, Callable[[], object]]] = deque()
        self._spare: deque[Iterator[str]] = deque()
        self._worker = Worker(name)
        self._timer = threading.Timer(PAINT_SECONDS, self.begin_spare)
        self._timer.daemon = True
        self._timer.start()

    @property
    def doing(self) -> str:
        return self._doing or self._idle_words

    @property
    def busy(self) -> bool:
        return self._worker.busy

    def wait(self, timeout: float | None) -> bool:
        """Blocks until everything is done, spare work too; False where that took too long."""
        self.begin_spare()
        return self._worker.wait(timeout)

    def submit(self, doing: str, work: Callable[[], object]) -> None:
        """Has short work done in its turn; in between two tokens, where a branch is being drawn."""
        self._questions.append((doing, work))
        self._worker.submit(self._answer_next)

    def branch(self, doing: str, draw: Callable[[Callable[[int], None]], object]) -> None:
        """Has a branch drawn behind all that was asked. `draw` gets what it calls after each token, which answers what
        is asked meanwhile, and raises to stop. Raises ValueError while another branch is drawn."""
        if self.drawing is not None:
            raise ValueError("A branch is being drawn: stop it, or wait for it.")

        def run() -> None:
            self.drawing, self._stop = 0, False
            draw(self._progress())

        self._worker.submit(partial(self._do, doing, run))

    def stop(self) -> None:
        """Ends the branch under way, if there is one, behind its next token."""
        self._stop = self.drawing is not None

    def spare(self, work: Iterator[str]) -> None:
        """Has longer work done while nobody asks; each step says in words what is being done, or nothing. Called on the
        worker's thread."""
        self._spare.append(work)
        if self._free and len(self._spare) == 1:
            self._worker.submit(self._go_on)

    def begin_spare(self) -> None:
        """Lets spare work begin: a page has painted, or nobody watches."""

        def begin() -> None:
            if not self._free:
                self._free = True
                self._go_on()

        if not self._free:
            self._timer.cancel()
            self._worker.submit(begin)

    def aside(self, work: Callable[[], Any]) -> Any:
        """The result of work that is done behind all that was begun, after the end of the cell too."""
        result: Future[Any] = Future()

        def run() -> None:
            while self._questions:  # a branch chooses its position only once it is there
                self._answer_next()
            try:
                result.set_result(work())
            except BaseException as error:
                result.set_exception(error)

        self._worker.submit(run)
        return result.result()

    # The worker's thread

    def _answer_next(self) -> None:
        if self._questions:
            self._do(*self._questions.popleft())

    def _do(self, doing: str, work: Callable[[], object]) -> None:
        """Does work. What it raises is what the widget says, until other work is done; work that had nothing to do says
        False."""
        if self.line.ended:
            return
        before, outer = self._doing, self.drawing
        if doing:
            self._doing = doing
            self.line.tell("state")
        try:
            if work() is not False:
                self.trouble = ""
        except BranchStop:
            log.info("A branch was stopped")
        except Exception as error:
            log.exception("%s failed", doing or "An answer")
            self.trouble = paragraph(error)
        if outer is None:
            self.drawing = None
        self._doing = before if self.drawing is not None else ""
        self.line.tell("state")

    def _go_on(self) -> None:
        """A step of the spare work that had its turn longest ago."""
        if not self._spare or self.line.ended:
            return
        words = ""
        try:
            words = next(self._spare[0])
            self._spare.rotate(-1)  # of two kinds of work, neither waits for the whole of the other
        except StopIteration:
            self._spare.popleft()
        except Exception as error:
            self._spare.popleft()
            log.exception("Work aside failed")
            self.trouble = paragraph(error)
            self.line.tell("state")
        words = words or (self._idle_words if self._spare else "")
        if words != self._idle_words:
            self._idle_words = words
            self.line.tell("state")
        if self._spare:
            self._worker.submit(self._go_on)

    def _progress(self) -> Callable[[int], None]:
        latest = 0.0

        def step(count: int) -> None:
            nonlocal latest
            self.drawing = count
            if self._stop or self.line.ended:
                raise BranchStop
            while self._questions:
                self._answer_next()
            if (now := time.monotonic()) - latest > PROGRESS_SECONDS:
                latest = now
                self.line.tell("state")

        return step
