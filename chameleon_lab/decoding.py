"""Decoding: what makes a token cheap. Facts, measured on a CPU (docs/speed.md):

- a token costs the reading of all weights, and at small widths as much again for the calls: modules and their hooks,
  norms of many kernels, empty slots
- `lean` gives a model's own `forward` other things to call: one source of truth for the maths, and slots filled by
  anything work as before
- which product is fastest depends on rows, width and type. A single row is multiplied with parts of the matrix in a
  batch, which reads the weights up to twice as fast as `F.linear` does
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from chameleon_lab.taps import Tap

Call = Callable[[Tensor], Tensor]

PARTS = 8  # into which a matrix falls at most for a single row, if its outputs let it: two do, or one a thread
WIDE = 4096  # inputs from which on, with one thread, that is slower than `F.linear` after all
NARROW = 2048  # inputs up to which, in float32, the transposed product of two rows is the fastest
FEW = 3  # rows up to which it beats `F.linear`, two to three times, where the weights are not repacked
LEAST, MANY = 4, 32  # rows with which oneDNN and weights in an order of its own are up to twice as fast
SPARE = 2**30  # bytes of a model up to which such a second copy of its matrices is made


def lean(module: nn.Module, through: tuple[type[nn.Module], ...]) -> Any:
    """A stand-in for `module` that computes the same, without hooks and gradients, in fewer calls.

    Modules of the types `through` keep their methods, on a copy whose children are lean. Norms and products that are
    known here are computed by functions; everything else stays the module that it is. Parameters are shared, and may be
    changed in place (not by way of `.data`, which hides it from copies in another order).
    """
    return _twin(module, through, sum(parameter.nbytes for parameter in module.parameters()) <= SPARE)


def hooks(module: nn.Module) -> list[dict]:
    """The hooks of a module and all below it, as living dicts: `any` of them says whether somebody listens."""
    return [found for part in module.modules() for found in (part._forward_hooks, part._forward_pre_hooks)]


def _twin(module: nn.Module, through: tuple[type[nn.Module], ...], spare: bool) -> Any:
    twin = copy.copy(module)
    for name, child in module.named_children():
        twin.__dict__[name] = _called(child, through, spare)  # found before nn.Module looks for children
    return twin


def _called(module: nn.Module, through: tuple[type[nn.Module], ...], spare: bool) -> Any:
    if isinstance(module, nn.ModuleList):
        return [_called(child, through, spare) for child in module]
    if isinstance(module, through):
        return _twin(module, through, spare).forward
    if type(module) is nn.Linear:
        return _linear(module, spare)
    return KNOWN.get(type(module), _itself)(module)


def _itself(module: nn.Module) -> Call:
    return module


def same(x: Tensor) -> Tensor:
    """What an empty slot does."""
    return x


def _same(_module: nn.Module) -> Call:
    return same


def _embedding(module: nn.Embedding) -> Call:
    weight_VD = module.weight
    return module if module.max_norm else lambda tokens_BT: torch.embedding(weight_VD, tokens_BT)


def _dropout(module: nn.Module) -> Call:
    return lambda x: module(x) if module.training else x


def _layer_norm(module: nn.LayerNorm) -> Call:
    shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _rms_norm(module: nn.RMSNorm) -> Call:
    """On a CPU `F.rms_norm` is many kernels; a single row needs two and a number, several need a few more."""
    (width,) = module.normalized_shape if len(module.normalized_shape) == 1 else (0,)
    weight = module.weight
    if not width or not plain(weight):
        return module
    eps, nought = module.eps or torch.finfo(torch.float32).eps, weight.new_zeros(())
    least = torch.tensor(eps)

    def normed(x: Tensor) -> Tensor:
        if x.dtype != weight.dtype:
            return F.rms_norm(x, (width,), weight, eps)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        if x.numel() == width:
            return torch.addcmul(nought, x, weight, value=(length.item() ** 2 / width + eps) ** -0.5)
        factor = torch.addcmul(least, length, length, value=1 / width).rsqrt_()
        return factor.mul(x).mul(weight).to(x.dtype)

    return normed


def _linear(module: nn.Linear, spare: bool) -> Call:
    weight_OI, width = module.weight, module.in_features
    if module.bias is not None or not plain(weight_OI):
        return module
    full = weight_OI.dtype == torch.float32
    follows = not weight_OI.is_inference()  # such tensors do not count their changes
    packs = None
    if spare and follows and torch.backends.mkldnn.is_available():
        _watch_optimizers()
        packs = PACKED.get(module)
        if packs is None or packs.weight_OI.data_ptr() != weight_OI.data_ptr():
            packs = PACKED[module] = _Packed(weight_OI)
    dtype, outputs, threads = weight_OI.dtype, len(weight_OI), torch.get_num_threads()
    parts = next((n for n in range(max(2, min(threads, PARTS)), 2 * PARTS) if outputs % n == 0), 0)
    alone = full and parts > 0 and torch.backends.mkl.is_available() and (width < WIDE or threads > 1)
    weight_POI = weight_OI.detach().unflatten(0, (parts, -1)) if alone else weight_OI
    column = (parts, width, 1), (0, 1, width)  # every part has the row as its column; MKL is fast with these strides

    def product(x: Tensor) -> Tensor:
        if x.dtype != dtype:
            return F.linear(x, weight_OI)
        if alone and x.numel() == width:
            products_PO1 = torch.bmm(weight_POI, x.contiguous().as_strided(*column))
            return products_PO1.view(1, 1, outputs) if x.dim() == 3 else products_PO1.view(*x.shape[:-1], outputs)
        rows = x.numel() // width
        few = full and width <= NARROW
        step = x.dim() < 3 or x.shape[-2] == 1  # a prompt comes once: not worth a second copy
        if packs and step and (1 if not full else 2 if not few else 3) <= rows <= MANY:
            return packs.product(x)
        if few and 2 <= rows <= FEW:
            return torch.mm(weight_OI, x.reshape(rows, width).t()).t().contiguous().view(*x.shape[:-1], -1)
        return F.linear(x, weight_OI)

    return product


class _Packed:
    """A second copy of a matrix, in the order that oneDNN likes; made when it is first wanted, and when it is stale."""

    def __init__(self, weight_OI: Tensor) -> None:
        self.weight_OI, self.packed, self.version = weight_OI.detach(), weight_OI, -1
        self.nought_RI = weight_OI.new_zeros(LEAST, weight_OI.shape[1])

    def product(self, x: Tensor) -> Tensor:
        if self.version != self.weight_OI._version:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight_OI, 8)
            self.version = self.weight_OI._version
        x_NI = x.reshape(-1, x.shape[-1])
        rows = len(x_NI)
        if rows < LEAST:  # so few take longer than some more
            x_NI = torch.cat((x_NI, self.nought_RI[rows:]))
        products_NO = torch.ops.mkldnn._linear_pointwise(x_NI, self.packed, None, "none", [], "")
        return products_NO[:rows].view(*x.shape[:-1], -1)


PACKED: weakref.WeakKeyDictionary[nn.Linear, _Packed] = weakref.WeakKeyDictionary()
"""Of layers that were given several rows: for all caches, as long as the layer lives."""


@functools.cache
def _watch_optimizers() -> None:
    """From the first second copy on, every optimizer's step counts as a change of its weights."""
    register_optimizer_step_post_hook(_stepped)


def _stepped(optimizer: torch.optim.Optimizer, *_arguments: Any) -> None:
    """Counts a step as a change of the optimizer's weights, which fused kernels do not tell of."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if plain(weight)]
    torch.autograd.graph.increment_version(weights)


def plain(weight: Tensor) -> bool:
    """Ordinary numbers in a CPU's memory (not quantized, not sharded, not on the way to being anything)."""
    ordinary = type(weight) is nn.Parameter and weight.dtype in (torch.float32, torch.bfloat16)
    return ordinary and weight.device.type == "cpu"


KNOWN: dict[type[nn.Module], Callable[[Any], Call]] = {
    nn.Identity: _same,
    Tap: _same,
    nn.Embedding: _embedding,
    nn.Dropout: _dropout,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
}
