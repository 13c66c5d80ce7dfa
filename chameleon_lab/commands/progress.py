"""What a terminal shows of a run, and the runs that a command awaits."""

from __future__ import annotations

import logging
import math
import sys
import time

from chameleon_lab.history import StepRecord
from chameleon_lab.training.run import Run

AWAITED: list[Run] = []
"""The runs whose end the command awaits."""

log = logging.getLogger(__name__)


def await_run(stage: str, run: Run, every: float = 10.0) -> None:
    """Until the run is over, a line every ten seconds: how far, how long yet, how well; then its forks.

    Raises ValueError where somebody stopped it through its folder.
    """
    last = -math.inf

    def report(record: StepRecord) -> None:
        nonlocal last
        now, progress = time.monotonic(), run.state.progress
        if now - last < every and progress < 1:
            return
        last = now
        left = record.seconds * (1 / max(progress, 1e-9) - 1)
        measures = [f"{key} {value:.3g}" for key, value in record.values.items() if key not in ("rate", "tokens")]
        values = "  ".join(measures)
        log.info("%-15s %5.1f %%  step %d  %.0f s left  %s", stage, 100 * progress, record.step + 1, left, values)

    AWAITED.append(run)
    try:
        run.wait(report=report)
    except KeyboardInterrupt:
        if run.state.status == "failed":  # the last checkpoint could not be written, say
            sys.stderr.write(f"chameleon-lab: {run.state.error}\n")
        raise
    finally:
        AWAITED.remove(run)
    for fork in run.forks:
        await_run(f"{stage}, {fork.name}", fork, every)
    run.result()
