"""What a command does when it is told to end: Ctrl+C, a scheduler's signals, a terminal that is closed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
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
