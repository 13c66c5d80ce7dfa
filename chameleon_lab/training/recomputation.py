"""Activation recomputing: a block's forward pass is made again in the backward pass, and is not kept until then."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from chameleon_lab.transformer import Block, Context, Transformer


class RecomputedBlock(Block):
    """A block that keeps only what enters it while it trains, and makes the rest again where gradients ask for it."""

    def forward(self, x_BTD: Tensor, turns_BT1K: Tensor, context: Context) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x_BTD, turns_BT1K, context)
        return checkpoint(super().forward, x_BTD, turns_BT1K, context, use_reentrant=False)  # pyright: ignore[reportReturnType]


def recompute_blocks(model: Transformer) -> None:
    """Has the model's blocks recomputed: losses and gradients are the same to the bit, for a third more arithmetic.

    What hooks read of a block's inside is read again as it is made again, and is the same both times: dropout's random
    numbers come again, too.
    """
    for block in model.blocks:
        block.__class__ = RecomputedBlock
