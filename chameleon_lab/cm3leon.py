"""CM3Leon's block (arXiv 2309.02591, section 2.3), as fixes that fill a transformer's slots. Facts:

- the decoder of OPT and GPT-3, norms before branches, without biases, without dropout, LayerNorm without parameters
- absolute positions are learned and added to the embedding; queries and keys are not rotated
- weights are drawn from a normal distribution of deviation 0.006, cut off at three deviations; positions with 0.0002;
  what ends a branch begins at 0, so that a model begins as its embedding and its head
- the paper names no activation; ReLU is OPT's, which it says it follows, and what the launchers of its public branches
  have (facebookresearch/metaseq), as well as four times the width in the feed-forward, and a tied head

`CM3LEON_BLOCK` is all of it, for `ModelConfig.fixes`. No format but the lab's own can hold such a model, and the
kernels for one compiled step a token do not know it: the model's own methods decode it, by the lean twin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab.parts import require_fields
from chameleon_lab.stability.slots import BRANCHES, attentions, blocks
from chameleon_lab.transformer import ModelConfig, Transformer

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
ActivationName = Literal["relu", "gelu", "silu"]


@dataclass(frozen=True)
class LearnedPositions:
    """A learned vector for each place of the context, added to the embedding; queries and keys are not rotated.

    In rows of several documents places begin anew with each, as attention does. (The public code has it so wherever
    attention stops at documents, and runs on where it does not.) There is no place beyond the context: ValueError.

    Slot: `positions` of the model and `rotation` of each attention.
    """

    std: float = 2e-4

    def __post_init__(self) -> None:
        require_fields(self, std=(0, 10))

    def install(self, model: Transformer) -> None:
        model.fill(model, "positions", PositionTable(model.config.context, model.config.width, self.std), self)
        for attention in attentions(model):
            model.fill(attention, "rotation", Unrotated(), self)

    def placed(self, places_BT: Tensor, config: ModelConfig) -> Tensor:
        """The places as they are, B, T, 1, 1. Raises ValueError for those beyond the context."""
        if places_BT.shape[-1] > config.context and (last := int(places_BT.max())) >= config.context:
            raise ValueError(
                f"Place {last} lies beyond the {config.context} positions that this model learned: its context cannot "
                "be extended as rotary positions can. Shorten the document, or train with a larger `context`."
            )
        return places_BT[..., None, None]


@dataclass(frozen=True)
class BareNorms:
    """LayerNorm without weights and biases before each branch and behind the last block.

    Slot: `pre_norm` of both branches of each block, and `norm` of the model.
    """

    eps: float = 1e-5

    def __post_init__(self) -> None:
        require_fields(self, eps=(0, 1))

    def install(self, model: Transformer) -> None:
        owners = [(block, f"{branch}_pre_norm") for block in blocks(model) for branch in BRANCHES]
        for owner, slot in (*owners, (model, "norm")):
            model.fill(owner, slot, nn.LayerNorm(model.config.width, self.eps, elementwise_affine=False), self)


@dataclass(frozen=True)
class UngatedFeedForward:
    """A feed-forward of two matrices with an activation between them, without a gate.

    Slot: `feed_forward` of each block.
    """

    activation: ActivationName = "relu"

    def __post_init__(self) -> None:
        require_fields(self)

    def install(self, model: Transformer) -> None:
        for block in blocks(model):
            model.fill(block, "feed_forward", TwoMatrices(model.config, self.activation), self)


@dataclass(frozen=True)
class TruncatedNormal:
    """Weights drawn anew from a normal distribution that is cut off; 0 in the matrices that end a branch.

    It fills no slot, and comes after the fixes that do. Positions keep what they were drawn with.
    """

    std: float = 0.006
    deviations: float = 3.0
    wraps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_fields(self, std=(0, 10), deviations=(0, 100))

    def install(self, model: Transformer) -> None:
        for name, module in model.named_modules():
            if isinstance(module, PositionTable) or not isinstance(module, nn.Linear | nn.Embedding):
                continue
            if name.endswith(("attention.out", "feed_forward.down")):
                nn.init.zeros_(module.weight)
            else:
                draw_truncated(module.weight, self.std, self.deviations)


CM3LEON_BLOCK = BareNorms(), LearnedPositions(), UngatedFeedForward(), TruncatedNormal()


class PositionTable(nn.Embedding):
    """A vector for each place of a context, added to what stands there."""

    def __init__(self, context: int, width: int, std: float) -> None:
        super().__init__(context, width)
        draw_truncated(self.weight, std)

    def forward(self, x_BTD: Tensor, turns_BT1K: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x_BTD + F.embedding(turns_BT1K[..., 0, 0], self.weight)


class Unrotated(nn.Module):
    """Queries or keys as they are."""

    def forward(self, x_BTHK: Tensor, turns_BT1K: Tensor) -> Tensor:
        return x_BTHK


class TwoMatrices(nn.Module):
    """down(activation(up x))."""

    def __init__(self, config: ModelConfig, activation: ActivationName = "relu") -> None:
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(ACTIVATIONS[self.activation](self.up(x_BTD)))

    def extra_repr(self) -> str:
        return self.activation


def draw_truncated(weight: Tensor, std: float, deviations: float = 3.0) -> None:
    """Fills a tensor with numbers of a normal distribution of deviation `std`, cut off at so many deviations."""
    edge = math.erf(deviations / math.sqrt(2))
    with torch.no_grad():  # call by call: torch's own rejects and draws again, and of a tensor on "meta" nothing at all
        weight.uniform_(-edge, edge).erfinv_().mul_(std * math.sqrt(2)).clamp_(-deviations * std, deviations * std)
