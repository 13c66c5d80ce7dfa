"""Attention: rotary positions and softmax products, by whichever kernel is fastest. Measured on a CPU (docs/speed.md):

- up to some hundred positions plain products beat torch's fused kernel, which is better for large masks and long rows
- a soft-cap, or another softmax, needs explicit logits, which the fused kernel does not give
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab import crossovers

UNCAPPED, SOFTMAX = nn.Identity(), nn.Softmax(dim=-1)
"""What the slots `cap` and `softmax` of an attention hold while no fix fills them."""


def rotations(positions_BT: Tensor, head_width: int, theta: float) -> Tensor:
    """Unit complex numbers that turn each pair of a head at each position: B, T, 1, K/2 (B may be 1)."""
    pairs = torch.arange(0, head_width, 2, device=positions_BT.device, dtype=torch.float32)
    angles = positions_BT[..., None, None].float() * theta ** (-pairs / head_width)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x_BTHK: Tensor, turns_BT1K: Tensor) -> Tensor:
    """Turns adjacent pairs of each head (RoFormer, arXiv 2104.09864).

    Turns may come as pairs of real numbers, `torch.view_as_real` of them, for compilers that take no complex ones.
    """
    if not turns_BT1K.is_complex():
        (cosines, sines), (first, second) = turns_BT1K.unbind(-1), x_BTHK.float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = first * cosines - second * sines, first * sines + second * cosines
        return torch.stack(turned, -1).flatten(-2).type_as(x_BTHK)
    if x_BTHK.stride(-1) == 1 and not torch.is_grad_enabled():
        # The same in five calls, or in float32 three, instead of seven.
        return (x_BTHK.float().view(torch.complex64) * turns_BT1K).view(torch.float32).type_as(x_BTHK)
    pairs = torch.view_as_complex(x_BTHK.float().view(*x_BTHK.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns_BT1K).flatten(-2).type_as(x_BTHK)


def plain_softmax(cap: nn.Module, softmax: nn.Module) -> bool:
    """Whether attention's logits go through no cap and an ordinary softmax, as in the fused kernels."""
    return isinstance(cap, nn.Identity) and isinstance(softmax, nn.Softmax)


def uses_fused(x_BHSK: Tensor, cap: nn.Module, softmax: nn.Module) -> bool:
    """Whether attention to these keys is left to torch's kernel."""
    long = x_BHSK.device.type != "cpu" or x_BHSK.shape[2] > crossovers.PLAIN_POSITIONS
    return long and plain_softmax(cap, softmax)


def attention(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSK: Tensor,
    mask_TS: Tensor | None,
    cap: nn.Module = UNCAPPED,
    softmax: nn.Module = SOFTMAX,
) -> Tensor:
    """Attention; `mask` is 0 where a query may look and -inf where not, broadcast over heads.

    Without a mask, which only the fused kernel can do, each of T positions sees itself and those before it. Keys and
    values may differ in heads, of which those of the queries are multiples, and in width.
    """
    heads, width = q_BHTK.shape[1], q_BHTK.shape[-1]
    if k_BHSK.shape[1] != heads:
        k_BHSK = k_BHSK.repeat_interleave(heads // k_BHSK.shape[1], dim=1)
    if v_BHSK.shape[1] != heads:
        v_BHSK = v_BHSK.repeat_interleave(heads // v_BHSK.shape[1], dim=1)
    if mask_TS is None:
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, is_causal=True)
    if uses_fused(k_BHSK, cap, softmax):
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=mask_TS.to(q_BHTK.dtype))
    scores_BHTS = cap((q_BHTK * width**-0.5) @ k_BHSK.transpose(-1, -2)) + mask_TS.to(q_BHTK.dtype)
    return softmax(scores_BHTS) @ v_BHSK


def attention_to_earlier(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    mask_TT: Tensor,
    cap: nn.Module = UNCAPPED,
    softmax: nn.Module = SOFTMAX,
) -> Tensor:
    """Attention whose mask hides all that is later: plain products then spare a block of queries the keys after it."""
    length, step = q_BHTK.shape[2], crossovers.QUERY_BLOCK
    if length <= step or uses_fused(k_BHTK, cap, softmax):
        return attention(q_BHTK, k_BHTK, v_BHTK, mask_TT, cap, softmax)
    blocks: list[Tensor] = []
    for start in range(0, length, step):
        end = min(start + step, length)
        keys, values, mask = k_BHTK[:, :, :end], v_BHTK[:, :, :end], mask_TT[..., start:end, :end]
        blocks.append(attention(q_BHTK[:, :, start:end], keys, values, mask, cap, softmax))
    return torch.cat(blocks, dim=2)


def hiding(places_BT: Tensor, reach: int) -> Tensor:
    """0 where a token at one of these places may look, -inf at what is later; B, 1, T, reach."""
    later_BTS = torch.arange(reach, device=places_BT.device) > places_BT[..., None]
    return torch.zeros(later_BTS.shape, device=places_BT.device).masked_fill_(later_BTS, -torch.inf)[:, None]
