"""Taps: reading a model's inner values from outside.

Several threads may use a model at once (a cell, and a chat beside it). `record` and `change` concern the passes of the
thread that asked for them: those of other threads are neither read nor changed.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


class Tap(nn.Identity):
    """A named place where a value can be read that no submodule's output would show."""


@contextmanager
def record(model: nn.Module, *patterns: str) -> Iterator[dict[str, Tensor]]:
    """The outputs of all submodules whose names match a shell pattern, as they were at this thread's last forward pass.

    ```python
    with record(lab.model, "blocks.*.attention.query_tap") as outputs:
        lab.model(tokens_BT)
    ```

    Values are detached; outputs that are no single tensor are skipped. Costs nothing outside the block. Raises
    ValueError on a pattern that matches nothing, naming some of the names there are.
    """
    outputs: dict[str, Tensor] = {}
    own = threading.get_ident()
    chosen = {name: module for pattern in patterns for name, module in _matching(model, pattern).items()}

    def reader(name: str):
        def read(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and threading.get_ident() == own:
                outputs[name] = output.detach()

        return read

    handles = [module.register_forward_hook(reader(name)) for name, module in chosen.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def change(model: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Has the outputs of submodules, by name or shell pattern, replaced by functions of them in this thread's passes.

    ```python
    with change(lab.model, {"blocks.3": lambda x_BTD: x_BTD + direction_D}):
        lab.generate(document)
    ```

    Raises ValueError on a pattern that matches nothing.
    """
    own = threading.get_ident()

    def changer(changed: Callable[[Tensor], Tensor]):
        # None leaves an output as it is.
        return lambda _module, _inputs, output: changed(output) if threading.get_ident() == own else None

    handles = [
        module.register_forward_hook(changer(changed))
        for pattern, changed in changes.items()
        for module in _matching(model, pattern).values()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _matching(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    names = [pattern] if pattern in modules else fnmatch.filter(modules, pattern)
    if not names:
        some = ", ".join(list(modules)[1:12])
        raise ValueError(f"No submodule matches {pattern!r}; the names begin {some}, ...")
    return {name: modules[name] for name in names}
