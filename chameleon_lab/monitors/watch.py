"""What a monitor is, and the step it watches.

A monitor is one small class. What its `watch` does before `yield` comes before the step's forward pass, what it does
after it when the weights have changed and the gradients are still there:

```python
@dataclass(frozen=True)
class EmbeddingNorm:
    every: int = 10

    def watch(self, moment):
        seen = moment.record("embedding")
        yield
        return {"embedding_norm": seen["embedding"].square().mean().sqrt()}
```

Monitors draw nothing from the global random generators, so that a run with them and one without are the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from chameleon_lab.corpora.packing import Batch
from chameleon_lab.objective import Objective
from chameleon_lab.taps import record
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Vocabulary

Reading = float | Tensor | tuple[float | Tensor, Tensor]
"""A number; or one a layer, or layers x heads; or a pair: the number that stands for all, and those of the layers."""

Readings = Mapping[str, Reading]


class Monitor(Protocol):
    """Reads something at steps divisible by `every` (see above). To end before `yield` is to have read nothing."""

    @property
    def every(self) -> int: ...

    def watch(self, moment: Moment) -> Generator[None, None, Readings]: ...


@dataclass
class Moment:
    """One training step as monitors see it. `warned`: whether an alarm stands, so that a closer look is worth its
    price."""

    step: int
    model: Transformer
    batch: Batch
    objective: Objective
    warned: bool = False
    _hooks: ExitStack = field(default_factory=ExitStack, repr=False)
    _deaf: bool = field(default=False, repr=False)

    def record(self, *patterns: str) -> dict[str, Tensor]:
        """Outputs of submodules by name, as `taps.record` gives them; filled by the step's forward pass."""
        return self._hooks.enter_context(record(self.model, *patterns))

    def keep(self, name: str, kept: dict[str, Tensor]) -> None:
        """Has the output of the submodule of that name put into `kept`, under its name."""

        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if not self._deaf:
                kept[name] = output.detach()

        self._hooks.callback(self.model.get_submodule(name).register_forward_hook(hook).remove)

    def on_output(self, name: str, see: Callable[[Tensor], None]) -> None:
        """Has `see` called with the output of the submodule of that name as soon as it is there.

        What a monitor takes from it there need not be kept until the step is over. No gradient is recorded, and
        autocast is off.
        """

        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if self._deaf:
                return
            kind = output.device.type
            full = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
            self._deaf = True
            try:
                with torch.no_grad(), full:
                    see(output.detach())
            finally:
                self._deaf = False

        self._hooks.callback(self.model.get_submodule(name).register_forward_hook(hook).remove)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """For passes of a monitor's own: `on_output` does not hear them, and they leave random generators and the
        model's buffers as they were."""
        device = self.batch.inputs_BT.device
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self._deaf = True
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
                yield
        finally:
            self._deaf = False
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])

    def generator(self) -> torch.Generator:
        """Random numbers for a monitor, the same ones whenever this step is run."""
        return torch.Generator().manual_seed(self.step)

    @cached_property
    def real_BT(self) -> Tensor:
        """Which positions are not padding: those up to a row's last token."""
        return (self.batch.inputs_BT != Vocabulary.pad).flip(1).cummax(1).values.flip(1)


@dataclass
class Seen:
    """What the monitors due at a step read: plain values, and values of layers or heads."""

    values: dict[str, float] = field(default_factory=dict)
    layers: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, readings: Readings) -> None:
        for name, reading in readings.items():
            for part in reading if isinstance(reading, tuple) else (reading,):
                if isinstance(part, Tensor) and part.ndim:
                    self.layers[name] = part.detach().float().cpu().tolist()
                else:
                    self.values[name] = float(part)


@contextmanager
def watching(monitors: Iterable[Monitor], moment: Moment) -> Iterator[Seen]:
    """The step stands inside: `seen` is filled when it is over."""
    due: list[tuple[Monitor, Generator[None, None, Readings]]] = []
    seen = Seen()
    with moment._hooks:
        with torch.no_grad():
            for monitor in monitors:
                if moment.step % monitor.every == 0:
                    watch = monitor.watch(moment)
                    if _ended(watch, seen):
                        continue
                    due.append((monitor, watch))
        yield seen
    with torch.no_grad():
        for monitor, watch in due:
            if not _ended(watch, seen):
                watch.close()
                raise ValueError(f"{monitor} yields twice; a monitor yields once, where the step stands.")


def _ended(watch: Generator[None, None, Readings], seen: Seen) -> bool:
    """Lets a monitor go on; if that is its end, its readings are seen."""
    try:
        next(watch)
    except StopIteration as end:
        seen.add(end.value or {})
        return True
    return False
