"""What a terminal shows of a run, and the runs that a command awaits."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from chameleon_lab.history import StepRecord
from chameleon_lab.training.run import Run

AWAITED: list[Run] = []
"""The runs whose end the command awaits."""

log = logging.getLogger(__name__)

LINE_MEASURES = ("loss", "text_loss", "image_loss", "held_out_loss", "psnr", "usage", "pieces", "letters_per_piece")
"""What a line has room for; the run's folder, and a panel on it, have all."""


BAR = "{desc:15s} {percentage:5.1f}% |{bar:20}| {postfix}"


@contextmanager
def entries_progress(stage: str, expected: int | None, every: float = 10.0) -> Iterator[Callable[[int], None]]:
    """What is to be told how many entries are done: it says how many, how fast and, where that is known, how long yet.

    The pace is that of this call: what an earlier one did is only read.
    """
    terminal, last = sys.stdout.isatty(), time.monotonic()
    bar = tqdm(total=expected, desc=stage, unit=" documents", disable=not terminal, file=sys.stdout, dynamic_ncols=True)
    first: tuple[int, float] | None = None

    def report(read: int) -> None:
        nonlocal last, first
        now = time.monotonic()
        if first is None:
            first = read, now
            bar.initial = bar.n = read
        bar.update(read - bar.n)
        if terminal or now - last < every:
            return
        last = now
        pace = (read - first[0]) / max(now - first[1], 1e-9)
        words = [f"{stage}: {read:,}{f' of about {expected:,}' if expected else ''} documents"]
        if pace:
            words.append(f"{pace:,.1f} a second")
            if expected and expected > read:
                words.append(f"{tqdm.format_interval((expected - read) / pace)} left")
        log.info(", ".join(words))

    with bar, logging_redirect_tqdm() if terminal else nullcontext():
        yield report


def await_run(stage: str, run: Run, every: float = 10.0) -> None:
    """Until the run is over: a bar where there is a terminal, elsewhere a line every ten seconds; then its forks.

    Both say how far it is, how long yet, at what pace and how well. Raises ValueError where somebody stopped it through
    its folder.
    """
    last, held_out = -math.inf, {}
    terminal = sys.stdout.isatty()
    bar = tqdm(total=100.0, desc=stage, bar_format=BAR, disable=not terminal, file=sys.stdout, dynamic_ncols=True)

    def report(record: StepRecord) -> None:
        nonlocal last
        held_out.update({name: value for name, value in record.values.items() if name == "held_out_loss"})
        now, progress = time.monotonic(), run.state.progress
        if not terminal and now - last < every and progress < 1:
            return
        last = now
        left, pace = record.seconds * (1 / max(progress, 1e-9) - 1), run.state.tokens_per_second
        values = {name: value for name, value in {**record.values, **held_out}.items() if name in LINE_MEASURES}
        words = [f"{pace:,.0f} tokens/s"] * bool(pace) + [f"{name} {value:.3g}" for name, value in values.items()]
        if terminal:
            bar.n = round(100 * progress, 1)
            bar.set_postfix_str(f"step {record.step + 1}, {tqdm.format_interval(left)} left, {', '.join(words)}")
            return
        figures = "  ".join(words)
        log.info("%-15s %5.1f %%  step %d  %.0f s left  %s", stage, 100 * progress, record.step + 1, left, figures)

    AWAITED.append(run)
    try:
        with bar, logging_redirect_tqdm() if terminal else nullcontext():
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
