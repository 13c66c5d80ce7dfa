"""What a decoded token asks of a CPU: products of few rows, norms, attention of one query. Measured (docs/speed.md):

- products are torch's own, called as functions
- keys are read row by row, with the queries as columns, up to three times as fast as the other way round
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab import crossovers
from chameleon_lab.attention import SOFTMAX, UNCAPPED, plain_softmax

Call = Callable[[Tensor], Tensor]


def on_cpu(weight: Tensor) -> bool:
    """Ordinary numbers in a CPU's memory (not quantized, not sharded, not fake)."""
    ordinary = type(weight) is nn.Parameter and weight.dtype in (torch.float32, torch.bfloat16)
    return ordinary and weight.device.type == "cpu"


def rms_norm_call(module: nn.RMSNorm) -> Call:
    """On a CPU `F.rms_norm` is many kernels; a single row needs two and a number, several need a few more."""
    (width,) = module.normalized_shape if len(module.normalized_shape) == 1 else (0,)
    weight = module.weight
    if not width or not on_cpu(weight):
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


def linear_call(module: nn.Linear) -> Call:
    """The product with a layer's matrix."""
    weight_OI = module.weight
    return module if module.bias is not None or not on_cpu(weight_OI) else lambda x: F.linear(x, weight_OI)


def attention_of_one(
    q_BH1K: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask_B1TS: Tensor | None,
    cap: nn.Module = UNCAPPED,
    softmax: nn.Module = SOFTMAX,
) -> Tensor:
    """Attention of one query a row; heads that share keys are columns of one product, so that no key is copied.

    Queries stand in columns because keys are then read row by row, up to three times as fast on a CPU as the other way
    round. With few keys and a single row torch's kernel is a little faster. Values may have other heads and widths.
    """
    (rows, heads, _, width), groups, length = q_BH1K.shape, k_BGSK.shape[1], k_BGSK.shape[2]
    alike = v_BGSK.shape[1] == groups
    little = rows == 1 and groups == heads and heads * length * width <= crossovers.FUSED_NUMBERS
    if alike and (q_BH1K.device.type != "cpu" or little) and plain_softmax(cap, softmax):
        mask = None if mask_B1TS is None else mask_B1TS.to(q_BH1K.dtype)
        return F.scaled_dot_product_attention(q_BH1K, k_BGSK, v_BGSK, mask, enable_gqa=groups != heads)
    q_BGRK = (q_BH1K * width**-0.5).reshape(rows, groups, heads // groups, width)
    scores_BGSR = k_BGSK @ q_BGRK.transpose(-1, -2)
    scores_BH1S = cap(scores_BGSR.transpose(-1, -2).reshape(rows, heads, 1, length))
    if mask_B1TS is not None:
        scores_BH1S = scores_BH1S + mask_B1TS.to(q_BH1K.dtype)
    shares_BGRS = softmax(scores_BH1S).view(rows, v_BGSK.shape[1], -1, length)
    return (shares_BGRS @ v_BGSK).view(rows, heads, 1, -1)
