"""The cache of keys and values: the context in which a transformer decodes. Facts:

- keys and values of every position are kept, a row at a length of its own, and nothing is computed twice
- while nobody listens, a leaner stand-in does the sums (`decoding`), by the model's own methods; on a GPU a step of one
  token a row is one recorded graph (`recording`)
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chameleon_lab.attention import UNCAPPED, attention, attention_of_one, hiding
from chameleon_lab.decoding import hooks, lean
from chameleon_lab.recording import Recorded, replays, sent
from chameleon_lab.transformer import Attention, Block, FeedForward, ModelConfig, Transformer, turned_at

STRETCH = 512  # positions by which a replayed step sees farther
PATIENCE = 32  # steps before one is recorded, which costs as much as many: a short answer is not worth it


class KVCache:
    """The context of decoding: room for `context` keys and values a row, each row at a length of its own.

    Give the model new tokens right-padded to one width, then `advance` each row by how many of them were real. What is
    beyond a row's length is overwritten by its next tokens and never seen; padding beyond the room goes to a spare
    place. Keys and values are kept without their gradients. Raises ValueError when a row outgrows the room.
    """

    def __init__(self, config: ModelConfig, rows: int, like: Tensor, room: int | None = None) -> None:
        shape = (config.layers, rows, config.kv_heads, (room or config.context) + 1, config.head_width)
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)
        self.lengths = np.zeros(rows, np.int64)
        self._turns_T1K = turned_at(torch.arange(shape[3], device=like.device)[None], config)[0]
        self._stand_ins: list[_StandIn] = []  # one at most; the parts share it
        self._seen: list[tuple[Tensor, Tensor]] = []  # of each layer: keys and values that the new tokens look at
        self._into: list[tuple[Tensor, Tensor]] = []  # and where theirs go, if that is one place for all rows
        self._places: tuple[Tensor, slice, Tensor] | None = None  # if not: rows, all heads, positions
        self._mask_B1TS: Tensor | None = None

    @property
    def room(self) -> int:
        return self.keys.shape[3] - 1

    def stand_in(self, model: Transformer) -> Transformer:
        if torch.is_grad_enabled():
            return model
        if not self._stand_ins or not self._stand_ins[0].stands_for(model):
            twin = lean(model, through=(Transformer, Block, Attention, FeedForward))
            if replays(self.keys.device):
                twin = Replayed(twin)
            self._stand_ins[:] = [_StandIn(model, model.embedding.weight.detach(), twin, hooks(model))]
        return model if any(self._stand_ins[0].listeners) else self._stand_ins[0].twin

    def turns(self, tokens_BT: Tensor, config: ModelConfig) -> Tensor:
        """How the new tokens are turned; done once a step, so here is found out what `attend` needs in every layer."""
        width, device = tokens_BT.shape[1], tokens_BT.device
        least, most = int(self.lengths.min()), int(self.lengths.max())
        self.require(least + width)
        reach = min(most + width, self.room)
        if least == most:
            self._seen = self._layers(slice(reach))
            self._into, self._places = self._layers(slice(least, reach)), None
            self._mask_B1TS = hiding(torch.arange(least, reach, device=device)[None], reach) if width > 1 else None
            return self._turns_T1K[None, least:reach]
        return self.scatter(self.starts(), width, reach)

    def starts(self) -> Tensor:
        """Each row's length, on the device: starts_B1."""
        return sent(self.lengths.copy(), self.keys.device)[:, None]

    def scatter(self, starts_B1: Tensor, width: int, reach: int) -> Tensor:
        """What `turns` does for rows at places of their own, none of which sees as far as `reach`."""
        self._seen = self._layers(slice(reach))
        places_BT = (starts_B1 + torch.arange(width, device=starts_B1.device)).clamp_max(self.room)
        self._places = torch.arange(len(starts_B1), device=starts_B1.device)[:, None], slice(None), places_BT
        self._mask_B1TS = hiding(places_BT, reach).to(self.keys.dtype)
        return self._turns_T1K[places_BT]

    def attend(self, layer: int, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, cap: nn.Module = UNCAPPED) -> Tensor:
        if k_BHTK.requires_grad or v_BHTK.requires_grad:
            k_BHTK, v_BHTK = k_BHTK.detach(), v_BHTK.detach()
        if self._places is None:
            keys, values = self._into[layer]
            keys.copy_(k_BHTK)
            values.copy_(v_BHTK)
        else:
            self.keys[layer][self._places] = k_BHTK.transpose(1, 2).to(self.keys.dtype)
            self.values[layer][self._places] = v_BHTK.transpose(1, 2).to(self.values.dtype)
        k_BHSK, v_BHSK = self._seen[layer]
        if q_BHTK.shape[2] == 1:
            return attention_of_one(q_BHTK, k_BHSK, v_BHSK, self._mask_B1TS, cap)
        return attention(q_BHTK, k_BHSK, v_BHSK, self._mask_B1TS, cap)

    def _layers(self, span: slice) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer at these positions: the same memory."""
        keys, values = self.keys[:, :, :, span].unbind(), self.values[:, :, :, span].unbind()
        return list(zip(keys, values, strict=True))

    def advance(self, counts: list[int]) -> None:
        """Row i has taken `counts[i]` of the tokens last given."""
        self.require(int((self.lengths + counts).max()))
        self.lengths += np.asarray(counts)

    def rewind(self, row: int, length: int) -> None:
        """Row `row` goes back to its first `length` positions. Raises ValueError where it has fewer."""
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"A row of {self.lengths[row]} positions cannot go back to {length}.")
        self.lengths[row] = length

    def require(self, length: int) -> None:
        if length > self.room:
            raise ValueError(f"{length} positions do not fit a cache of {self.room}.")

    def part(self, start: int, stop: int) -> KVCache:
        """Rows `start` to `stop` of this cache as a cache: the same memory, not a copy."""
        part = copy.copy(self)
        part.keys, part.values = self.keys[:, start:stop], self.values[:, start:stop]
        part.lengths = self.lengths[start:stop]
        return part


@dataclass(frozen=True)
class _StandIn:
    """A model's lean `twin`, and how one knows that it no longer stands for it: `weight_VD` keeps the memory in which
    the embedding was, so that a model that was moved, to and fro or to another dtype, has it elsewhere."""

    model: Transformer
    weight_VD: Tensor
    twin: Any
    listeners: list[dict]

    def stands_for(self, model: Transformer) -> bool:
        return self.model is model and self.weight_VD.data_ptr() == model.embedding.weight.data_ptr()


class Replayed:
    """A stand-in on a GPU: steps of one token a row are recorded once, and replayed wherever the rows of a cache stand.

    Which rows they are and how far one sees is part of the recording; there is another for each `STRETCH` positions.
    """

    def __init__(self, twin: Any) -> None:
        self.twin, self.logits_of = twin, twin.logits_of
        self._taken = 0
        self._steps: dict[tuple[int, int, int], Recorded] = {}

    def trunk_within(self, tokens_BT: Tensor, seen: KVCache) -> Tensor:
        step = tokens_BT.shape[1] == 1
        self._taken += step
        if not step or self._taken <= PATIENCE:
            return self.twin.trunk_within(tokens_BT, seen)
        seen.require(int(seen.lengths.min()) + 1)
        reach = min((int(seen.lengths.max()) // STRETCH + 1) * STRETCH, seen.room)
        kind = seen.keys.data_ptr(), len(seen.lengths), reach
        if kind not in self._steps:
            alone = copy.copy(seen)
            alone._stand_ins = []  # or cache and recordings would keep each other in memory
            work = functools.partial(_step, self.twin, alone, reach)  # not by way of `self`, for the same reason
            self._steps[kind] = Recorded(work, tokens_BT, seen.starts())
        return self._steps[kind](tokens_BT, seen.starts())


def _step(twin: Any, cache: KVCache, reach: int, tokens_B1: Tensor, starts_B1: Tensor) -> Tensor:
    return twin.trunk_within(tokens_B1, _At(cache, starts_B1, reach))


@dataclass(frozen=True)
class _At:
    """The context of a step whose places are read from memory."""

    cache: KVCache
    starts_B1: Tensor
    reach: int

    def turns(self, tokens_BT: Tensor, config: ModelConfig) -> Tensor:
        return self.cache.scatter(self.starts_B1, tokens_BT.shape[1], self.reach)

    def attend(self, layer: int, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, cap: nn.Module = UNCAPPED) -> Tensor:
        return self.cache.attend(layer, q_BHTK, k_BHTK, v_BHTK, cap)
