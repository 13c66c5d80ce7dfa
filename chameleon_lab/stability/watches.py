"""Fixes that act around a step: `watch(moment)`, in the form of a monitor."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from chameleon_lab.corpora.packing import Batch
from chameleon_lab.stability.slots import attentions
from chameleon_lab.transformer import Attention, Transformer
from chameleon_lab.vocabulary import Vocabulary


class WatchedStep(Protocol):
    """One step of a training as a watch sees it; `monitors` gives these."""

    @property
    def model(self) -> Transformer: ...

    @property
    def batch(self) -> Batch: ...

    def record(self, *patterns: str) -> Mapping[str, Tensor]: ...


class Watch(Protocol):
    """Acts every so many steps: before `yield` comes the forward pass, after it the weights have changed."""

    @property
    def every(self) -> int: ...

    def watch(self, moment: WatchedStep) -> Generator[None, None, Mapping[str, float | Tensor]]: ...


@dataclass(frozen=True)
class QKClip:
    """After a step, heads whose greatest attention logit passed the threshold have queries and keys scaled back to it.

    Half of the factor goes to the query's rows, half to the key's. A key that several heads share takes only what the
    mildest of them needs and the queries the rest, so that no head loses for another's sake. Tells `clipped_heads`.

    Slot: around a step; rows of `qkv.weight` of each attention. Raises ValueError where a query or key norm, or another
    matrix, would undo it.
    Source: Kimi K2 (arXiv 2507.20534, section 2.1), 100, with Muon; a shared key left alone as its rotary one is.
    Trial: one seed each, an extreme learning-rate ramp with AdamW: last loss 2.92 at 30 and 3.57 at 100, without 3.92.
    """

    threshold: float = 100.0
    every: int = 1
    changes_weights: ClassVar[bool] = True
    """By rows, which weights in parts (FSDP2) do not allow."""

    def watch(self, moment: WatchedStep) -> Generator[None, None, Mapping[str, float | Tensor]]:
        self._require_free(moment.model)
        outputs = moment.record("blocks.*.attention.query_tap", "blocks.*.attention.key_tap")
        yield
        places = [f"blocks.{attention.layer}.attention" for attention in attentions(moment.model)]
        taps = [(outputs[f"{place}.query_tap"], outputs[f"{place}.key_tap"]) for place in places]
        greatest_LH = torch.stack([greatest_logits(q, k, moment.batch, self.threshold) for q, k in taps])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(greatest_LH, dist.ReduceOp.MAX)  # each process has other documents
        over_LH = (greatest_LH > self.threshold) & greatest_LH.isfinite()
        for attention, factor_H in zip(
            attentions(moment.model), torch.where(over_LH, self.threshold / greatest_LH, 1.0), strict=True
        ):
            shrink(attention, factor_H)
        return {"clipped_heads": float(over_LH.sum())}

    def _require_free(self, model: Transformer) -> None:
        for place, fix in model.filled.items():
            if place.endswith((".query_norm", ".key_norm", ".qkv")):
                raise ValueError(f"{self} scales queries and keys, and {fix} in {place} undoes it; keep one of them.")


@torch.no_grad()
def shrink(attention: Attention, factor_H: Tensor) -> None:
    """Multiplies each head's logits by its factor, by way of the weights of queries and keys."""
    key_G = factor_H.view(attention.kv_heads, -1).amax(1).sqrt()
    query_H = factor_H / key_G.repeat_interleave(attention.heads // attention.kv_heads)
    rows_R = torch.cat([query_H, key_G, torch.ones_like(key_G)]).repeat_interleave(attention.head_width)
    attention.qkv.weight.mul_(rows_R[:, None].to(attention.qkv.weight.dtype))


@torch.no_grad()
def greatest_logits(q_BTHK: Tensor, k_BTGK: Tensor, batch: Batch, worth: float) -> Tensor:
    """For each head, the greatest logit of a real query and a key that it sees; a bound, where all are under `worth`.

    Queries come in chunks, so that memory grows with the length and not its square.
    """
    _, length, heads, width = q_BTHK.shape
    documents_BT, real_BT = batch.documents_BT, batch.inputs_BT != Vocabulary.pad
    q_BTHK, k_BTHK = q_BTHK.float() * width**-0.5, k_BTGK.float().repeat_interleave(heads // k_BTGK.shape[2], dim=2)
    bound_H = q_BTHK.norm(dim=-1).amax((0, 1)) * k_BTHK.norm(dim=-1).amax((0, 1))
    if bool((bound_H < worth).all()):
        return bound_H
    places_T = torch.arange(length, device=q_BTHK.device)
    greatest = []
    for start in range(0, length, 256):
        rows = slice(start, start + 256)
        visible_BRT = (places_T[rows, None] >= places_T) & real_BT[:, rows, None]
        if documents_BT is not None:
            visible_BRT = visible_BRT & (documents_BT[:, rows, None] == documents_BT[:, None])
        with torch.autocast(q_BTHK.device.type, enabled=False):
            logits_BHRT = torch.einsum("brhk,bthk->bhrt", q_BTHK[:, rows], k_BTHK)
        greatest.append(logits_BHRT.masked_fill_(~visible_BRT[:, None], -torch.inf).amax((0, 2, 3)))
    return torch.stack(greatest).amax(0)
