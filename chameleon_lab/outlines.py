"""Modules with shapes and no values, for whom values come from a file or are not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def outline() -> Iterator[None]:
    """Modules made within lie on torch's meta device, and no initial weights are drawn for them.

    torch draws on the meta device, too: `normal_` goes through a Python reference there, whose first call imports
    `torch._dynamo`, which took 1.3 of the 1.4 seconds of the shipped model's first load.
    """
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """What `torch.nn.init` would fill on the meta device stays as it is; tensors elsewhere are filled as always."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        arguments = kwargs or {}
        if getattr(func, "__module__", "") == torch.nn.init.__name__:
            tensor = args[0] if args else arguments.get("tensor")
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **arguments)
