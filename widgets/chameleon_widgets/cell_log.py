"""What the lab's log says in a notebook: a notice as an ordinary line of the cell, a warning in red.

Without this Python writes both to stderr, which a notebook shows in red.
"""

from __future__ import annotations

import logging
import sys

from IPython.core.getipython import get_ipython

from chameleon_lab.notices import NOTICE


class CellLog(logging.Handler):
    """Says what Python says unasked; nothing where a person has set up a log, which says it."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers:
            return
        ordinary = record.levelno == NOTICE and get_ipython() is not None
        (sys.stdout if ordinary else sys.stderr).write(f"{self.format(record)}\n")


def show_log() -> None:
    """Shows the lab's notices and warnings in cells, once however often it is called."""
    log = logging.getLogger("chameleon_lab")
    if not any(isinstance(each, CellLog) for each in log.handlers):
        log.addHandler(CellLog(logging.WARNING))
