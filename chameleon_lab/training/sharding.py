"""Weights in parts: torch's FSDP2 under Lightning's `ModelParallelStrategy`, and a model that is never whole anywhere.

Each process holds its part of every weight, gradient and optimizer's state. A block's weights are put together when it
is due, and let go of after it; embedding, last norm and head stay together from the forward pass to the backward pass,
since the objective makes logits, and their gradients, between the two.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from chameleon_lab.transformer import Transformer

_later: ContextVar[bool] = ContextVar("weights that come later", default=False)


@contextlib.contextmanager
def weights_later(later: bool = True) -> Iterator[None]:
    """Experiments that are built within get a model without memory, where they can: `shard_model` draws its weights."""
    token = _later.set(later)
    try:
        yield
    finally:
        _later.reset(token)


def drawn_model(make: Callable[[], Transformer]) -> Transformer:
    """The model that `make` gives; within `weights_later` one on the meta device, whose `draws` say how its weights are
    to be drawn: the same ones, tensor by tensor. A model that is not only drawn is made at once all the same."""
    if not _later.get():
        return make()
    state = torch.get_rng_state()
    draws = _Draws()
    with torch.device("meta"), draws:
        model = make()
    try:
        if any(True for _ in model.buffers()):  # made of weights, or by parts that look whether these are there
            raise LookupError("buffers")
        vars(model)["draws"] = [(name, draws.of(tensor)) for name, tensor in _named_tensors(model)]
    except LookupError:
        torch.set_rng_state(state)
        return make()
    return model


@dataclass
class _Draw:
    """What filled a tensor last: the random numbers that stood there before, what was called, and what changed its
    numbers one by one since."""

    state: Tensor
    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    changes: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def tensor(self, like: Tensor) -> Tensor:
        tensor = torch.empty(like.shape, dtype=like.dtype)
        torch.set_rng_state(self.state)
        for call, arguments, named in [(self.call, self.arguments, self.named), *self.changes]:
            call(tensor, *arguments, **named)
        return tensor


class _Draws(TorchDispatchMode):
    """Watches how tensors without memory are filled. The generator moves on as if they had some, at the price of one
    tensor at a time."""

    FILLS = ("normal_", "uniform_", "fill_", "zero_")

    CHANGES = ("erfinv_", "mul_", "add_", "clamp_")  # by which a uniform distribution becomes a truncated normal one

    CONSTANTS: ClassVar[dict[str, float]] = {"full": math.nan, "ones": 1.0, "zeros": 0.0}

    def __init__(self) -> None:
        super().__init__()
        self._draws: dict[int, _Draw | None] = {}
        self._alive: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.is_meta and func._schema.is_mutable:
            place = self._place(first)
            whole = first.untyped_storage().nbytes() == first.nbytes
            whole = whole and not any(isinstance(each, Tensor) for each in args[1:])
            drawn = self._draws.get(place)
            if drawn is not None and whole and name in self.CHANGES:
                drawn.changes.append((func, tuple(args[1:]), dict(kwargs)))
                return first
            if name in self.FILLS and whole:
                draw = _Draw(torch.get_rng_state(), func, tuple(args[1:]), dict(kwargs))
                draw.tensor(first)  # leaves the generator behind it
                self._draws[place] = draw
                return first
            self._draws[place] = None  # what was done here cannot be done again tensor by tensor
        if isinstance(out := kwargs.get("out"), Tensor):
            self._draws[self._place(out)] = None
        result = func(*args, **kwargs)
        if name in self.CONSTANTS and isinstance(result, Tensor) and result.is_meta:
            constant = self.CONSTANTS[name] if name != "full" else args[1]
            self._draws[self._place(result)] = _Draw(torch.get_rng_state(), Tensor.fill_, (constant,), {})
        return result

    def _place(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        self._alive.append(storage)  # so that no other gets its address
        return storage._cdata

    def of(self, tensor: Tensor) -> _Draw:
        draw = self._draws.get(tensor.untyped_storage()._cdata)
        if draw is None:
            raise LookupError("not drawn")
        return draw


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def require_shardable(module: Any) -> None:
    """Raises ValueError for what cannot be done with weights in parts."""
    recipe, fixes = module.recipe, [each for each in module.monitors if getattr(each, "changes_weights", False)]
    adapter = any(".lora_" in name for name, _ in module.model.named_parameters())
    reasons = {
        "frozen_rows": len(module.frozen_rows._rows_R) and "single rows of a table are nobody's alone",
        "muon_rate": recipe.muon_rate and "Muon takes whole matrices: muon_rate=0 trains all by AdamW",
        "update_clipping": recipe.update_clipping and "a tensor's step is judged as a whole",
        "an adapter": adapter and "it is merged as a whole",
        ", ".join(map(repr, fixes)): bool(fixes) and "it changes rows of weights",
    }
    for name, why in reasons.items():
        if why:
            raise ValueError(f'strategy="fsdp" keeps weights in parts, and {name} needs them whole ({why}).')


def begin_states(optimizers: list[torch.optim.Optimizer]) -> None:
    """AdamW's states of before the first step. torch makes them by a step of its own when they are first saved, which
    AdamW counts: all its later steps would be corrected for one step too many."""
    for optimizer in optimizers:
        for parameter in (each for group in optimizer.param_groups for each in group["params"]):
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def shard_model(model: Transformer, mesh: Any, device: torch.device) -> None:
    """Leaves each process of the mesh its part of the weights: cut from those that it has, or drawn now."""
    if isinstance(model, FSDPModule):
        return
    draws = vars(model).pop("draws", None)
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "trunk")
    if draws is None:
        return
    model.to_empty(device=device)
    random, places = torch.get_rng_state(), dict(_named_tensors(model))
    with torch.no_grad():
        for name, draw in draws:
            place = places[name]
            tensor = draw.tensor(place)
            if isinstance(place, DTensor):
                tensor = distribute_tensor(tensor.to(device), place.device_mesh, place.placements, src_data_rank=None)
            place.copy_(tensor)
    torch.set_rng_state(random)
