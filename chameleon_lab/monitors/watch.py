"""What a monitor is, and the step it watches.

A monitor is one small class. What its `watch` does before `yield` comes before the step's forward pass, what it does
after it when the weights have changed and the gradients are still there:

```python
@dataclass(frozen=True)
class EmbeddingNorm:
    every: int = 10

    def watch(self, moment):
        outputs = moment.record("embedding")
        yield
        return {"embedding_norm": outputs["embedding"].square().mean().sqrt()}
```

What comes by layer, and what a head looks at, has a helper: `on_attention` hands on each layer's rotated queries and
keys as the forward pass comes to them, so that none need be kept:

```python
from chameleon_lab.monitors.attention import on_attention


@dataclass(frozen=True)
class KeyLength:
    every: int = 10

    def watch(self, moment):
        lengths = []
        on_attention(moment, lambda layer, q_BTHK, k_BTHK: lengths.append(k_BTHK[moment.real_BT].norm(dim=-1).mean()))
        yield
        return {"key_length_norm": (max(lengths), torch.stack(lengths))}
```

A screen treats a measure of your own like the one of `measures.MEASURES` that ends its name: this one like `norm`, on
a log axis, the highest of several values as the worst.

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
from chameleon_lab.measures import measure_of
from chameleon_lab.objective import Objective
from chameleon_lab.parts import require_each
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
    """One training step as monitors and fixes of the step see it.

    Before `yield` the forward pass is still to come: ask for its values here, by `record` (kept till the step is over),
    `keep` (the same for one), `on_output` (handed on at once, and not kept) or `attention.on_attention` (each layer's
    queries and keys). After `yield` weights have changed, and `model` has the gradients of the step in `.grad`. `aside`
    is for passes of one's own, `generator` for random numbers, `real_BT` tells padding from the rest.
    """

    step: int
    """Which step it is, from 0 on."""
    model: Transformer
    """What is trained, as it stands: before `yield` with the weights from before the step."""
    batch: Batch
    """What it is trained on: `inputs_BT`, `targets_BT`, which of them are learned, their modality, their documents."""
    objective: Objective
    """The loss as it is now: `objective(model, batch)` gives it by modality."""
    warned: bool = False
    """Whether an alarm stands, so that a closer look is worth its price."""
    _hooks: ExitStack = field(default_factory=ExitStack, repr=False)
    _muted: bool = field(default=False, repr=False)

    def record(self, *patterns: str) -> dict[str, Tensor]:
        """Outputs of submodules by name, as `taps.record` gives them; filled by the step's forward pass."""
        return self._hooks.enter_context(record(self.model, *patterns))

    def keep(self, name: str, outputs: dict[str, Tensor]) -> None:
        """Has the output of the submodule of that name put into `outputs`, under its name."""

        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if not self._muted:
                outputs[name] = output.detach()

        self._hooks.callback(self.model.get_submodule(name).register_forward_hook(hook).remove)

    def on_output(self, name: str, read: Callable[[Tensor], None]) -> None:
        """Has `read` called with the output of the submodule of that name as soon as it is computed.

        So the output need not be kept until the step is over. No gradient is recorded, and autocast is off.
        """

        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if self._muted:
                return
            kind = output.device.type
            full = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
            self._muted = True
            try:
                with torch.no_grad(), full:
                    read(output.detach())
            finally:
                self._muted = False

        self._hooks.callback(self.model.get_submodule(name).register_forward_hook(hook).remove)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """For passes of a monitor's own: they do not reach `on_output`, and leave random generators and the model's
        buffers as they were."""
        device = self.batch.inputs_BT.device
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self._muted = True
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
                yield
        finally:
            self._muted = False
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])

    def generator(self) -> torch.Generator:
        """Random numbers for a monitor, the same ones whenever this step is run."""
        return torch.Generator().manual_seed(self.step)

    @cached_property
    def real_BT(self) -> Tensor:
        """Which positions are not padding: those up to a row's last token."""
        return (self.batch.inputs_BT != Vocabulary.pad).flip(1).cummax(1).values.flip(1)


def whole(tensor: Tensor) -> Tensor:
    """A tensor as it is, or put together where processes hold parts of it; then all of them have to ask."""
    put_together = getattr(tensor, "full_tensor", None)
    return put_together() if put_together else tensor


@dataclass
class Readout:
    """What the monitors due at a step read: plain values, and values of layers or heads; `readers` of the values.

    Where two monitors read one measure, the later one's reading stands.
    """

    values: dict[str, float] = field(default_factory=dict)
    layers: dict[str, list[Any]] = field(default_factory=dict)
    readers: dict[str, Monitor] = field(default_factory=dict)

    def add(self, readings: Readings | None, monitor: Monitor) -> None:
        """Takes a monitor's readings in. Raises ValueError, naming it, for what are none."""
        if not isinstance(readings, Mapping | None):
            raise ValueError(f"{monitor} returned {readings!r}; a monitor returns its readings by name, in a mapping.")
        for name, reading in (readings or {}).items():
            if not isinstance(name, str) or not name:
                raise ValueError(f"{monitor} calls a reading {name!r}; its name is a word.")
            for part in reading if isinstance(reading, tuple) else (reading,):
                part = whole(part) if isinstance(part, Tensor) else part
                if isinstance(part, Tensor) and part.ndim:
                    self.layers[name] = part.detach().float().cpu().tolist()
                    continue
                try:
                    self.values[name] = float(part)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{monitor} read {part!r} as {name!r}, which is no number.") from error
                self.readers[name] = monitor

    def beside(self, own: Mapping[str, float]) -> dict[str, float]:
        """The step's own values, and the monitors' after them.

        Raises ValueError where a monitor would overwrite one, or one that the step records at other times.
        """
        for name, monitor in self.readers.items():
            if name in own or measure_of(name).of_step:
                raise ValueError(
                    f"{monitor} reads {name!r}, which the step itself records; call its reading otherwise."
                )
        return {**own, **self.values}


def check_monitors(monitors: Any) -> None:
    """Raises ValueError for what is no monitor, and for one that is due at no step."""
    require_each(monitors, "a monitor", "every", "watch")
    for monitor in monitors:
        if isinstance(monitor.every, bool) or not isinstance(monitor.every, int) or monitor.every < 1:
            raise ValueError(f"{monitor} is to watch every {monitor.every!r} steps; give it a whole number from 1 on.")


@contextmanager
def watching(monitors: Iterable[Monitor], moment: Moment) -> Iterator[Readout]:
    """The step stands inside: the readout is filled when it is over. Raises ValueError as a monitor's mistake shows."""
    due: list[tuple[Monitor, Generator[None, None, Readings]]] = []
    readout = Readout()
    with moment._hooks:
        with torch.no_grad():
            for monitor in monitors:
                if moment.step % monitor.every == 0:
                    watch = monitor.watch(moment)
                    if not isinstance(watch, Generator):
                        raise ValueError(
                            f"The watch of {monitor} returned {watch!r} at once; it must `yield` once, where the step "
                            "stands, and then return its readings."
                        )
                    if not _ended(watch, monitor, readout):
                        due.append((monitor, watch))
        yield readout
    with torch.no_grad():
        for monitor, watch in due:
            if not _ended(watch, monitor, readout):
                watch.close()
                raise ValueError(f"{monitor} yields twice; a monitor yields once, where the step stands.")


def _ended(watch: Generator[None, None, Readings], monitor: Monitor, readout: Readout) -> bool:
    """Lets a monitor go on; if that is its end, its readings are taken in."""
    try:
        next(watch)
    except StopIteration as end:
        readout.add(end.value, monitor)
        return True
    return False
