"""What a command does when it is told to end: Ctrl+C, a scheduler's signals, a terminal that is closed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""What ends a command: Ctrl+C, a scheduler, a terminal that is closed."""


class Termination(KeyboardInterrupt):
    """A signal that ends the command in order, as Ctrl+C does; its exit code is 128 and `number`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def end_at_once(number: int, _frame: Any) -> None:
    """While only imports are under way there is nothing to save, and an exception would end somewhere in them."""
    os.write(2, b"chameleon-lab: stopped before it began.\n")
    os._exit(128 + number)


def end_in_order(number: int, _frame: Any) -> None:
    """A second Ctrl+C is a person's, who waits no longer. Other signals come several times where several programs hand
    on the same one, as SLURM and torchrun do: they end nothing sooner, so that a checkpoint is written."""
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_IGN)
    raise Termination(number)


@contextmanager
def answering(answer: Callable[[int, Any], None], others: dict[int, Callable[[int, Any], None]]) -> Iterator[None]:
    """Has signals that end a command answered so, and others each by its own, where the system would else do it.

    What whoever started this process wants otherwise stays, such as nohup's; so do other threads' signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    answers = dict.fromkeys(SIGNALS, answer) | others
    own = (signal.SIG_DFL, signal.default_int_handler, end_at_once)
    before = {number: signal.getsignal(number) for number in answers}
    for number, each in answers.items():
        if before[number] in own:
            signal.signal(number, each)
    try:
        yield
    finally:
        for number, each in before.items():
            if each in own:
                signal.signal(number, each)


def exit_code(
    work: Callable[[], object],
    others: Mapping[int, Callable[[int, Any], None]] | None = None,
    prospect: Callable[[], str] = lambda: ".",
) -> int:
    """Carries out a command's work, and returns its exit code: 0; 2 with one line on stderr for what a person can mend;
    128 and the signal's number where one ended it, with what `prospect` then says will come of it."""
    try:
        with answering(end_in_order, dict(others or {})):
            work()
    except (ValueError, OSError) as error:
        sys.stderr.write(f"chameleon-lab: {error}\n")
        return 2
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Termination) else signal.SIGINT
        cause = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        sys.stderr.write(f"chameleon-lab: stopped{cause}{prospect()}\n")
        return 128 + number
    return 0
