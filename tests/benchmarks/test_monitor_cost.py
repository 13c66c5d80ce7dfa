"""What monitors cost beside the same training steps without them. Prints; asserts nothing of time.

A monitor's own CPU time is clocked around its hooks and around what comes before and after the step: on a machine that
others use too, the difference of two steps is no measure of one per cent.

make benchmarks
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from chameleon_lab.corpora.packing import Batch
from chameleon_lab.monitors.attention import AttentionRows
from chameleon_lab.monitors.default import MONITORS
from chameleon_lab.monitors.watch import Moment, Monitor, watching
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import Recipe
from chameleon_lab.stability import QueryKeyNorm, ZLoss
from chameleon_lab.transformer import ModelConfig, Transformer

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Shape:
    """A model and the batches it is trained on."""

    width: int
    layers: int
    heads: int
    rows: int
    positions: int
    vocabulary: int
    muon_rate: float = 0.0


SHAPES = {
    "tiny, 16 rows of 125": Shape(192, 6, 6, 16, 125, 1047, 0.02),
    "64x4, 2 rows of 512": Shape(64, 4, 2, 2, 512, 299),
    "128x4, 2 rows of 512": Shape(128, 4, 4, 2, 512, 1047),
    "128x4, 1 row of 1024": Shape(128, 4, 4, 1, 1024, 1047),
}


class Training:
    """Steps on one batch, half of whose targets are image tokens."""

    def __init__(self, shape: Shape) -> None:
        torch.manual_seed(0)
        head_width = shape.width // shape.heads
        self.model = Transformer(
            ModelConfig(
                vocabulary=shape.vocabulary,
                width=shape.width,
                layers=shape.layers,
                heads=shape.heads,
                kv_heads=shape.heads,
                head_width=head_width,
                ffn_width=shape.width * 8 // 3,
                context=shape.positions,
                fixes=(QueryKeyNorm(),),
            )
        )
        tokens_BT = torch.randint(4, shape.vocabulary, (shape.rows, shape.positions + 1))
        kinds_BT = (torch.arange(shape.positions) >= shape.positions // 2).to(torch.uint8)
        self.batch = Batch(
            inputs_BT=tokens_BT[:, :-1],
            targets_BT=tokens_BT[:, 1:],
            learned_BT=torch.ones(shape.rows, shape.positions, dtype=torch.bool),
            modality_BT=kinds_BT.expand(shape.rows, -1),
            real_tokens=tokens_BT.numel(),
        )
        self.objective = Objective(penalties=(ZLoss(1e-5),))
        self.optimizers = Recipe(rate=1e-4, muon_rate=shape.muon_rate).optimizers(self.model)

        self.clocking = 0.0  # what it takes to clock one hook
        self.clocking = median(self.step([Nothing()], step, idle=True).monitors for step in range(9)) / 2 / shape.layers

    def step(self, monitors: Sequence[Monitor], step: int, warned: bool = False, idle: bool = False) -> Seconds:
        started = time.process_time()
        moment = ClockedMoment(step, self.model, self.batch, self.objective, warned, idle=idle)
        watch = watching(monitors, moment)
        with moment.clock:
            watch.__enter__()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.objective(self.model, self.batch)["loss_with_penalties"].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        with moment.clock:
            watch.__exit__(None, None, None)
        own = moment.clock.seconds - moment.hooks * self.clocking
        return Seconds(own, time.process_time() - started)


class Seconds(NamedTuple):
    """CPU time of a step: of its monitors, and all of it."""

    monitors: float
    step: float


class Clock:
    """Adds up the CPU time between entering and leaving it."""

    def __init__(self) -> None:
        self.seconds, self.started = 0.0, 0.0

    def __enter__(self, *_: object) -> None:
        self.started = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self.started


@dataclass
class ClockedMoment(Moment):
    """Runs a clock from before each hook to after it; if `idle`, with nothing between: what clocking itself takes."""

    clock: Clock = field(default_factory=Clock)
    idle: bool = False
    hooks: int = 0

    def on_output(self, name: str, see: Callable[[Tensor], None]) -> None:
        module = self.model.get_submodule(name)
        self.hooks += 1
        self._hooks.callback(module.register_forward_hook(lambda *_: self.clock.__enter__()).remove)
        if not self.idle:
            super().on_output(name, see)
        self._hooks.callback(module.register_forward_hook(lambda *_: self.clock.__exit__()).remove)


@dataclass(frozen=True)
class Nothing:
    """Hooks each query and key, and reads nothing."""

    every: int = 1

    def watch(self, moment: Moment) -> Generator[None, None, dict[str, float]]:
        for layer in range(len(moment.model.blocks)):
            for tap in ("query_tap", "key_tap"):
                moment.on_output(f"blocks.{layer}.attention.{tap}", lambda output: None)
        yield
        return {}


@pytest.mark.parametrize("name", SHAPES)
def test_what_monitors_cost(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    training = Training(SHAPES[name])
    training.step(MONITORS, 0)
    plain, own = list[float](), dict[str, tuple[int, float]]()
    for monitor in MONITORS:
        paces = {type(monitor).__name__: (monitor.every, False)}
        if isinstance(monitor, AttentionRows):
            paces |= {"AttentionRows, all": (monitor.exact_every, True)}
        for label, (every, warned) in paces.items():
            spent = []
            for step in range(1, 9 if every < 100 else 4):
                spent.append(training.step([replace(monitor, every=1)], step, warned).monitors)
                plain.append(training.step((), step).step)
            own[label] = every, median(spent)
    torch.set_num_threads(threads)
    usual = median(plain)
    with capsys.disabled():
        print(f"\n{name}: a step without monitors takes {1000 * usual:.1f} ms of CPU time")
        for label, (every, seconds) in own.items():
            print(f"  {label:18s} {1000 * seconds:8.2f} ms every {every:3d} steps: {seconds / every / usual:6.2%}")
        print(f"  all of them by default: {sum(seconds / every for every, seconds in own.values()) / usual:.2%}")
