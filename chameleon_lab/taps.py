"""Taps: reading a model's inner values from outside."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class Tap(nn.Identity):
    """A named place where a value can be read that no submodule's output would show."""


@contextmanager
def record(model: nn.Module, *patterns: str) -> Iterator[dict[str, Tensor]]:
    """The outputs of all submodules whose names match a shell pattern, as they were at the last forward pass.

    ```python
    with record(lab.model, "blocks.*.attention.query_tap") as outputs:
        lab.model(tokens_BT)
    ```

    Values are detached; outputs that are no single tensor are skipped. Costs nothing outside the block. Raises
    ValueError on a pattern that matches nothing, naming some of the names there are.
    """
    modules = dict(model.named_modules())
    outputs: dict[str, Tensor] = {}
    chosen: dict[str, nn.Module] = {}
    for pattern in patterns:
        matched = fnmatch.filter(modules, pattern)
        if not matched:
            some = ", ".join(list(modules)[1:12])
            raise ValueError(f"No submodule matches {pattern!r}; the names begin {some}, ...")
        chosen.update((name, modules[name]) for name in matched)

    def reader(name: str):
        def read(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output.detach()

        return read

    handles = [module.register_forward_hook(reader(name)) for name, module in chosen.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
