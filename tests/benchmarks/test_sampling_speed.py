"""What picking a token costs, beside a plain sort of the whole vocabulary in one run. Prints; asserts nothing of time.

make benchmarks

One thread, by its own clock; the two take turns on the same logits, each seen once only, as a processor learns to
foresee the comparisons of a sort that it has done before. The median counts.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor

from chameleon_lab.generation.samplers import Sampler

pytestmark = pytest.mark.slow

SCALES = {"peaked": 5.0, "between": 3.0, "flat": 0.5}
"""Of normal logits. Of 65,536 ids the share 0.95 is held by some 70, 3,300 and 56,000."""


def by_sorting_all(sampler: Sampler, logits_RV: Tensor, draws: list[float]) -> Tensor:
    """What `Sampler.pick` says, for top-p alone, in as many words."""
    shares_RV = torch.softmax((logits_RV - logits_RV.amax(-1, keepdim=True)) / sampler.temperature, -1)
    shares_RV, order_RV = shares_RV.sort(dim=-1, descending=True, stable=True)
    totals_RV = shares_RV.cumsum(-1)
    last_R1 = torch.searchsorted(totals_RV, sampler.top_p * totals_RV[:, -1:])
    targets_R1 = torch.tensor(draws)[:, None] * totals_RV.gather(-1, last_R1)
    place_R1 = torch.searchsorted(totals_RV, targets_R1, right=True)
    return order_RV.gather(-1, torch.minimum(place_R1, last_R1))[:, 0]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("size", [1024, 8192, 16_384, 65_536])
def test_picking_beside_sorting_all(size: int, rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    lines = [f"{size} ids, {rows} row(s), ms a step: plain sort, sampler, ratio"]
    for name, scale in SCALES.items():
        for kind, sampler in (("top-p 0.95", Sampler(0.9, top_p=0.95)), ("all", Sampler(0.9))):
            plain, ours = _milliseconds(sampler, scale, rows, size)
            lines.append(f"{name:8s} {kind:10s} {plain:7.3f} {ours:7.3f} {plain / ours:6.1f}")
    torch.set_num_threads(before)
    with capsys.disabled():
        print("\n" + "\n".join(lines))


def _milliseconds(sampler: Sampler, scale: float, rows: int, size: int, steps: int = 40) -> tuple[float, float]:
    """Of the plain way and of ours, which have to agree."""
    numbers, times = np.random.default_rng(0), []
    for _ in range(steps):
        logits_RV, draws = scale * torch.randn(rows, size), numbers.random(rows).tolist()
        started = time.thread_time()
        wanted_R = by_sorting_all(sampler, logits_RV, draws)
        between = time.thread_time()
        found_R = sampler.pick(logits_RV, draws)
        times.append((between - started, time.thread_time() - between))
        assert torch.equal(found_R, wanted_R)
    plain, ours = 1e3 * np.median(times[3:], axis=0)
    return float(plain), float(ours)
