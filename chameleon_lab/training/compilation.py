"""Compiled blocks: `torch.compile` for what stands between attention's taps, in training alone.

A step on a GPU spends a third of its time on small kernels around the products: norms, rotation, SwiGLU, casts,
residual sums. Compiled they are a few. Not the whole model is compiled, because monitors hook its taps and its blocks
at every step, and hooks inside compiled code go unheard: two methods of each block are, `Attention.project` and
`Block.join`, and while somebody listens within one of them, it is called as it is. All blocks share their code, so it
is compiled once and not once a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from chameleon_lab import native_ops
from chameleon_lab.by_modality import ByModality
from chameleon_lab.transformer import Attention, Block, Transformer


def compile_blocks(model: Transformer) -> int:
    """Has the blocks' methods compiled, at their first step in training; the number of methods that will be.

    Evaluation and decoding go on without: they come in many shapes. Left as they are: an attention of one's own, parts
    that send tokens of each modality their own way, and all where this torch does not say who listens.
    """
    project, join, count = torch.compile(Attention.project), torch.compile(Block.join), 0

    def real_turns(attention: Attention, x_BTD: torch.Tensor, turns_BT1K: torch.Tensor) -> Any:
        turns = torch.view_as_real(turns_BT1K) if turns_BT1K.is_complex() else turns_BT1K  # a `Placement` has its own
        return project(attention, x_BTD, turns)

    for block in model.blocks:
        if type(block) is not Block:
            continue
        attention, within = block.attention, list[nn.Module]()
        if type(attention) is Attention:
            within = [attention.qkv, attention.query_norm, attention.key_norm, attention.rotation]
        count += _replace(attention, "project", real_turns, within)
        slots = ("attention_post_norm", "attention_scale", "attention_dropout")
        slots += ("ffn_pre_norm", "feed_forward", "ffn_post_norm", "ffn_scale", "ffn_dropout")
        count += _replace(block, "join", join, [getattr(block, slot) for slot in slots])
    return count


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
