"""How fast a run answers, and what running in the background costs beside a plain loop. Prints; asserts no time.

make benchmarks
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chameleon_lab.training.experiments import SIDE_BY_SIDE
from chameleon_lab.training.modules import Budget

pytestmark = pytest.mark.slow

BARE = replace(SIDE_BY_SIDE, monitors=(), checkpoints=0, budget=Budget(steps=150))


def plain_loop(steps: int) -> float:
    """Seconds a step of the same training without Lightning, records, or a thread."""
    corpus = BARE.open()
    module = BARE.build(corpus)
    (adam,) = module.configure_optimizers()
    times = []
    for step in range(steps):
        batch = corpus.batches(step)
        started = time.perf_counter()
        loss = module.objective(module.model, batch)["loss_with_penalties"]
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        adam.step()
        times.append(time.perf_counter() - started)
    return float(np.median(times[10:]))


def test_a_run_beside_a_plain_loop_and_its_answer_to_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = plain_loop(100)
    history = BARE.run(tmp_path / "bare").wait()
    wall = np.diff([record.seconds for record in history.records])
    waits = []
    for trial in range(5):
        run = replace(BARE, seed=trial, budget=Budget(steps=10_000)).run(tmp_path / str(trial))
        while len(run.history.records) < 10:
            time.sleep(0.01)
        started = time.perf_counter()
        run.stop()
        run.wait()
        waits.append(time.perf_counter() - started)
    with capsys.disabled():
        print(
            f"\na step: plain loop {1000 * plain:.1f} ms, in a run {1000 * float(np.median(wall[10:])):.1f} ms; "
            f"stopped, checkpoint written, thread ended: {1000 * float(np.median(waits)):.0f} ms "
            f"({1000 * min(waits):.0f} to {1000 * max(waits):.0f})"
        )
