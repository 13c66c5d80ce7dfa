"""The lean twin: a model's own methods on plain functions, for what a small token costs, which is mostly calls.

It gives a model's own `forward` other things to call: one source of truth for the maths, and slots filled by anything
work as before. At a width of 256 a token of the model makes some five hundred calls of a few microseconds; half are
modules and their hooks, norms of many kernels, and empty slots (docs/speed.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from chameleon_lab.attention import rotate
from chameleon_lab.by_modality import ByModality
from chameleon_lab.generation.kernels import Call, linear_call, rms_norm_call
from chameleon_lab.taps import Tap
from chameleon_lab.transformer import Attention, Block, FeedForward, Rotation, Transformer, Unplaced


class LeanTwin:
    """A model's `trunk` and `logits` in fewer calls, without hooks and gradients: the same numbers but for rounding.

    Modules of the types `through` keep their methods, on a copy whose children are lean. Norms and products that are
    in `CALLS` are computed by functions; everything else stays the module that it is. Parameters are shared, and may
    be changed in place.
    """

    def __init__(
        self,
        model: nn.Module,
        through: tuple[type[nn.Module], ...] = (Transformer, Block, Attention, FeedForward, ByModality),
    ) -> None:
        self._through = through
        self.model: Any = self._copy(model)

    def _copy(self, module: nn.Module) -> Any:
        twin = copy.copy(module)
        for name, child in module.named_children():
            twin.__dict__[name] = self._call(child)  # attributes come before what nn.Module keeps children in
        return twin

    def _call(self, module: nn.Module) -> Any:
        if isinstance(module, nn.ModuleList):
            return [self._call(child) for child in module]
        forward = type(module).forward
        if "forward" in vars(module) or forward is not FORWARDS.get(type(module), forward):
            return module  # somebody has put another function in its place
        if isinstance(module, self._through):
            return self._copy(module).forward
        return CALLS.get(type(module), lambda module: module)(module)


class EmptySlot(nn.Identity):
    """An empty slot, called without the machinery of modules."""

    def __call__(self, x: Tensor) -> Tensor:
        return x


class DirectSoftmax(nn.Softmax):
    """The softmax of an empty slot, called likewise."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


EMPTY, DIRECT = EmptySlot(), DirectSoftmax(dim=-1)  # one each: to make a module takes longer than to call it


def _empty(_module: nn.Module) -> Call:
    return EMPTY


def _softmax(module: nn.Softmax) -> Call:
    return DIRECT if module.dim == -1 else module


def _embedding(module: nn.Embedding) -> Call:
    weight_VD = module.weight
    return module if module.max_norm else lambda tokens_BT: torch.embedding(weight_VD, tokens_BT)


def _dropout(module: nn.Dropout) -> Call:
    return lambda x: module(x) if module.training else x


def _as_embedded(x_BTD: Tensor, turns_BT1K: Tensor) -> Tensor:
    return x_BTD


def _layer_norm(module: nn.LayerNorm) -> Call:
    shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


CALLS: dict[type[nn.Module], Callable[[Any], Callable[..., Tensor]]] = {
    nn.Identity: _empty,
    Tap: _empty,
    nn.Softmax: _softmax,
    nn.Embedding: _embedding,
    nn.Dropout: _dropout,
    nn.LayerNorm: _layer_norm,
    nn.Linear: linear_call,
    nn.RMSNorm: rms_norm_call,
    Rotation: lambda module: rotate,
    Unplaced: lambda module: _as_embedded,
}
"""What stands in for a module of exactly this type."""

FORWARDS = {kind: kind.forward for kind in CALLS}
"""Their methods when this was imported."""
