"""Stability fixes, each a frozen dataclass: `install(model)` fills slots, or `penalty(logits)` joins the loss.

A fix of your own is one more such class; list it in `ModelConfig.fixes` or `Objective.penalties`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chameleon_lab.transformer import Attention, Block, ModelConfig, Transformer


@dataclass(frozen=True)
class QueryKeyNorm:
    """LayerNorm of queries and keys before rotation, as in the released Chameleon (arXiv 2405.09818, section 2.3).

    Weight and bias of the head's width, shared by all heads.
    """

    eps: float = 1e-5

    def install(self, model: Transformer) -> None:
        for attention in attentions(model):
            for slot in ("query_norm", "key_norm"):
                model.fill(attention, slot, nn.LayerNorm(attention.head_width, self.eps), self)


@dataclass(frozen=True)
class QueryKeyRMSNorm:
    """RMSNorm of queries and keys before rotation, weight of the head's width (the form of OLMo 2 and Gemma 3)."""

    eps: float = 1e-5

    def install(self, model: Transformer) -> None:
        for attention in attentions(model):
            for slot in ("query_norm", "key_norm"):
                model.fill(attention, slot, nn.RMSNorm(attention.head_width, self.eps), self)


@dataclass(frozen=True)
class NormReordering:
    """Norms after each branch instead of before (Chameleon-34B, section 2.3; Swin v2, arXiv 2111.09883)."""

    def install(self, model: Transformer) -> None:
        for block in blocks(model):
            for branch in ("attention", "ffn"):
                model.fill(block, f"{branch}_post_norm", rms_norm(model.config), self)
                model.fill(block, f"{branch}_pre_norm", nn.Identity(), self)


@dataclass(frozen=True)
class Dropout:
    """Dropout of each branch before it joins the residual stream (0.1 for Chameleon-7B, none for 34B)."""

    rate: float = 0.1

    def install(self, model: Transformer) -> None:
        for block in blocks(model):
            for branch in ("attention", "ffn"):
                model.fill(block, f"{branch}_dropout", nn.Dropout(self.rate), self)


@dataclass(frozen=True)
class ZLoss:
    """The squared log-partition, weighted: keeps log Z near 0 (arXiv 2405.09818, section 2.3: 1e-5; PaLM: 1e-4)."""

    weight: float = 1e-5

    def penalty(self, logits_XV: Tensor) -> Tensor:
        """For each of X positions: weight * log(Z)^2."""
        return self.weight * torch.logsumexp(logits_XV, -1).square()


def attentions(model: Transformer) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


def blocks(model: Transformer) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]


def rms_norm(config: ModelConfig) -> nn.RMSNorm:
    return nn.RMSNorm(config.width, config.norm_eps)
