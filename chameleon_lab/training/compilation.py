"""Compiled training: `torch.compile` for what stands between a step's products.

A step on a GPU spends a third of its time on small kernels around the products: norms, rotation, SwiGLU, casts,
residual sums, the losses of logits. Compiled they are a few. Hooks inside compiled code go unheard, and monitors hook
taps: so each of these is compiled for itself, and while somebody listens within one, it is called as it is: a block as
a whole, then its two methods `Attention.project` and `Block.join`, and the objective's losses (`Objective.compiled`).
All blocks share their code, so it is compiled once and not once a layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from chameleon_lab import native_ops
from chameleon_lab.by_modality import ByModality
from chameleon_lab.transformer import Attention, Block, Context, Transformer


def compile_blocks(model: Transformer) -> int:
    """Has the blocks and their methods compiled, at their first step in training; the number of methods that will be.

    Evaluation and decoding go on without: they come in many shapes. Left as they are: an attention of one's own, parts
    that send tokens of each modality their own way, and all where this torch does not say who listens.
    """
    # Of `Causal._mask`, whose value is the same with its cache and without.
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
    project, join, forward = torch.compile(Attention.project), torch.compile(Block.join), torch.compile(Block.forward)

    def projected(attention: Attention, x_BTD: Tensor, turns_BT1K: Tensor) -> Any:
        return project(attention, x_BTD, _real(turns_BT1K))

    def whole(block: Block, x_BTD: Tensor, turns_BT1K: Tensor, context: Context) -> Tensor:
        return forward(block, x_BTD, _real(turns_BT1K), context)

    count = 0
    for block in model.blocks:
        if type(block) is not Block:
            continue
        slots = ("attention_post_norm", "attention_scale", "attention_dropout")
        slots += ("ffn_pre_norm", "feed_forward", "ffn_post_norm", "ffn_scale", "ffn_dropout")
        count += _replace(block, "join", join, [getattr(block, slot) for slot in slots])
        attention = block.attention
        if type(attention) is Attention:
            within = [attention.qkv, attention.query_norm, attention.key_norm, attention.rotation]
            count += _replace(attention, "project", projected, within)
            count += _replace(block, "forward", whole, list(block.children()))
    return count


def _real(turns_BT1K: Tensor) -> Tensor:
    """Turns as pairs of real numbers, since compilers take no complex ones; what a `Placement` has, as it is."""
    return torch.view_as_real(turns_BT1K) if turns_BT1K.is_complex() else turns_BT1K


def _replace(owner: nn.Module, name: str, compiled: Callable[..., Any], within: list[nn.Module]) -> bool:
    """Puts the compiled method before the owner's own, for steps of training in which nobody listens `within`."""
    modules = [each for part in within for each in part.modules()]
    hooks = native_ops.listeners(nn.ModuleList(within))
    if not within or hooks is None or any(isinstance(each, ByModality) for each in modules):
        return False
    plain = getattr(owner, name)

    def method(*inputs: Any) -> Any:
        if owner.training and torch.is_grad_enabled() and not any(hooks):
            return compiled(owner, *inputs)
        return plain(*inputs)

    setattr(owner, name, method)
    return True
