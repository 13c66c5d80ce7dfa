"""Attention: rotary positions and softmax products, by whichever kernel is fastest. Measured on a CPU (docs/speed.md):

- up to some hundred positions plain products beat torch's fused kernel, which has the large masks and the long rows
- a decoded token is one query: keys are then read row by row, with the queries as columns
- a cap of the logits needs them in hand, which the fused kernel cannot give
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab.decoding import same

SHORT = 512  # positions up to which, on a CPU, plain products beat the fused kernel about twofold
BLOCK = 128  # queries at a time there
LITTLE = 2**16  # numbers in a layer's keys up to which the fused kernel is faster for a single query

UNCAPPED = nn.Identity()


def rotations(positions_BT: Tensor, head_width: int, theta: float) -> Tensor:
    """Unit complex numbers that turn each pair of a head at each position: B, T, 1, K/2 (B may be 1)."""
    pairs = torch.arange(0, head_width, 2, device=positions_BT.device, dtype=torch.float32)
    angles = positions_BT[..., None, None].float() * theta ** (-pairs / head_width)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x_BTHK: Tensor, turns_BT1K: Tensor) -> Tensor:
    """Turns adjacent pairs of each head (RoFormer, arXiv 2104.09864)."""
    if x_BTHK.stride(-1) == 1 and not torch.is_grad_enabled():
        # The same in five calls, or in float32 three, instead of seven.
        return (x_BTHK.float().view(torch.complex64) * turns_BT1K).view(torch.float32).type_as(x_BTHK)
    pairs = torch.view_as_complex(x_BTHK.float().view(*x_BTHK.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns_BT1K).flatten(-2).type_as(x_BTHK)


def capped(cap: nn.Module) -> bool:
    return not (cap is same or isinstance(cap, nn.Identity))


def fused(x_BHSK: Tensor, cap: nn.Module) -> bool:
    """Whether attention to these keys is left to torch's kernel; a `cap` of the logits needs them in hand."""
    return not capped(cap) and (x_BHSK.device.type != "cpu" or x_BHSK.shape[2] > SHORT)


def attention(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask_TS: Tensor | None, cap: nn.Module = UNCAPPED
) -> Tensor:
    """Softmax attention; `mask` is 0 where a query may look and -inf where not, broadcast over heads.

    Without a mask, which only the fused kernel can do, each of T positions sees itself and those before it.
    """
    heads, kv_heads, width = q_BHTK.shape[1], k_BHSK.shape[1], q_BHTK.shape[-1]
    if kv_heads != heads:
        k_BHSK = k_BHSK.repeat_interleave(heads // kv_heads, dim=1)
        v_BHSK = v_BHSK.repeat_interleave(heads // kv_heads, dim=1)
    if mask_TS is None:
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, is_causal=True)
    if fused(k_BHSK, cap):
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=mask_TS.to(q_BHTK.dtype))
    scores_BHTS = cap((q_BHTK * width**-0.5) @ k_BHSK.transpose(-1, -2)) + mask_TS.to(q_BHTK.dtype)
    return scores_BHTS.softmax(-1) @ v_BHSK


def attention_of_one(
    q_BH1K: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask_B1TS: Tensor | None, cap: nn.Module = UNCAPPED
) -> Tensor:
    """Attention of one query a row; heads that share keys are columns of one product, so that no key is copied.

    Queries stand in columns because keys are then read row by row, up to three times as fast on a CPU as the other way
    round. With few keys and a single row torch's kernel is a little faster.
    """
    (rows, heads, _, width), groups, length = q_BH1K.shape, k_BGSK.shape[1], k_BGSK.shape[2]
    quick = q_BH1K.device.type != "cpu" or (rows == 1 and groups == heads and heads * length * width <= LITTLE)
    if quick and not capped(cap):
        mask = None if mask_B1TS is None else mask_B1TS.to(q_BH1K.dtype)
        return F.scaled_dot_product_attention(q_BH1K, k_BGSK, v_BGSK, mask, enable_gqa=groups != heads)
    q_BGRK = (q_BH1K * width**-0.5).reshape(rows, groups, heads // groups, width)
    scores_BGSR = k_BGSK @ q_BGRK.transpose(-1, -2)
    scores_BH1S = cap(scores_BGSR.transpose(-1, -2).reshape(rows, heads, 1, length))
    if mask_B1TS is not None:
        scores_BH1S = scores_BH1S + mask_B1TS.to(q_BH1K.dtype)
    shares_BGRS = scores_BH1S.softmax(-1).view(rows, groups, heads // groups, length)
    return (shares_BGRS @ v_BGSK).view(rows, heads, 1, width)


def attention_to_earlier(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask_TT: Tensor, cap: nn.Module = UNCAPPED
) -> Tensor:
    """Attention whose mask hides all that is later: plain products then spare a block of queries the keys after it."""
    length = q_BHTK.shape[2]
    if length <= BLOCK or fused(k_BHTK, cap):
        return attention(q_BHTK, k_BHTK, v_BHTK, mask_TT, cap)
    spans = [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
    blocks = [
        attention(q_BHTK[:, :, start:end], k_BHTK[:, :, :end], v_BHTK[:, :, :end], mask_TT[..., start:end, :end], cap)
        for start, end in spans
    ]
    return torch.cat(blocks, dim=2)


def hiding(places_BT: Tensor, reach: int) -> Tensor:
    """0 where a token at one of these places may look, -inf at what is later; B, 1, T, reach."""
    later_BTS = torch.arange(reach, device=places_BT.device) > places_BT[..., None]
    return torch.zeros(later_BTS.shape, device=places_BT.device).masked_fill_(later_BTS, -torch.inf)[:, None]
