"""The cache of keys and values, and the contexts in which new tokens see it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from chameleon_lab.attention import SOFTMAX, UNCAPPED, attention, hiding
from chameleon_lab.generation.kernels import attention_of_one
from chameleon_lab.generation.recording import upload
from chameleon_lab.transformer import ModelConfig

Pair = tuple[Tensor, Tensor]
"""Keys and values of a layer: rows, heads, positions, width of a head."""


class KVCache:
    """Keys and values of rows of tokens, each row at a length of its own: memory for `room` positions and a spare one.

    What is beyond a row's length is hidden, and overwritten by its next tokens; padding beyond the room goes to the
    spare place. Memory is what the config asks; a layer whose attention keeps other heads or widths gets its own when
    the first are given. Raises ValueError when a row outgrows the room.
    """

    def __init__(self, config: ModelConfig, rows: int, like: Tensor, room: int | None = None) -> None:
        shape = (config.layers, rows, config.kv_heads, (room or config.context) + 1, config.head_width)
        stack = like.new_zeros(shape), like.new_zeros(shape)
        # All layers at once, while they are alike: one slice of the stack takes a fifth of the time of a slice of each.
        self.stack: Pair | None = stack
        self.layers: list[Pair] = list(zip(stack[0].unbind(), stack[1].unbind(), strict=True))
        self.lengths = np.zeros(rows, np.int64)
        self.room = shape[3] - 1

    def span(self, rows: slice, positions: slice) -> list[Pair]:
        """Keys and values of each layer, of these rows at these positions: the same memory."""
        if self.stack is not None:
            keys, values = (each[:, rows, :, positions].unbind() for each in self.stack)
            return list(zip(keys, values, strict=True))
        return [(keys[rows, :, positions], values[rows, :, positions]) for keys, values in self.layers]

    def fit(self, layer: int, k_BHTK: Tensor, v_BHTK: Tensor) -> None:
        """Gives a layer memory for keys and values of these heads and widths, while nothing is cached yet.

        Raises ValueError where something is.
        """
        if self.lengths.any():
            raise ValueError(f"Layer {layer} gives keys and values of other heads or widths than it gave before.")
        rows, positions = len(self.lengths), self.room + 1
        old, _ = self.layers[layer]
        keys, values = (old.new_zeros(rows, new.shape[1], positions, new.shape[3]) for new in (k_BHTK, v_BHTK))
        self.stack, self.layers[layer] = None, (keys, values)

    def starts(self, rows: slice) -> Tensor:
        """The lengths of these rows, on the device: starts_B1."""
        return upload(self.lengths[rows].copy(), self.layers[0][0].device)[:, None]

    def advance(self, counts: Sequence[int], start: int = 0) -> None:
        """The rows from `start` on have taken so many of their new tokens."""
        lengths = self.lengths[start : start + len(counts)]
        self.require(int((lengths + counts).max()))
        lengths += np.asarray(counts)

    def rewind(self, row: int, length: int) -> None:
        """Row `row` goes back to its first `length` positions. Raises ValueError where it has fewer."""
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"A row of {self.lengths[row]} positions cannot go back to {length}.")
        self.lengths[row] = length

    def require(self, length: int) -> None:
        if length > self.room:
            raise ValueError(f"{length} positions do not fit a cache of {self.room}.")


class Step:
    """The context of new tokens in rows of a cache: how they are turned, where their keys go, and what they see.

    Tokens are right-padded to one `width`. Rows of one length need no mask for a single token, and their keys go to a
    slice. With `starts_B1` the rows' places are read from the device's memory, as a recorded step must, and `reach` is
    how far all of them may see. Keys and values are stored without their gradients.
    """

    def __init__(
        self,
        cache: KVCache,
        turns_T1K: Tensor,
        rows: slice,
        width: int,
        starts_B1: Tensor | None = None,
        reach: int = 0,
    ) -> None:
        self._cache, self._rows, self.attended = cache, rows, 0
        least, most = 0, 1
        self._first = True
        if starts_B1 is None:
            lengths = cache.lengths[rows]
            least, most = int(lengths.min()), int(lengths.max())
            self._first = most == 0  # later ones need not look at widths, which takes a microsecond a layer
            cache.require(least + width)
            reach = min(most + width, cache.room)
        self._reach = reach
        self._visible = cache.span(rows, slice(reach))
        device = turns_T1K.device
        if least == most:
            self._positions: slice | None = slice(least, reach)
            self._targets = cache.span(rows, self._positions)
            self._turns = turns_T1K[None, self._positions]
            places_BT = torch.arange(least, reach, device=device)[None] if width > 1 else None
        else:
            self._positions, self._targets = None, []
            starts_B1 = cache.starts(rows) if starts_B1 is None else starts_B1
            places_BT = (starts_B1 + torch.arange(width, device=device)).clamp_max(cache.room)
            self._places = torch.arange(len(starts_B1), device=device)[:, None], slice(None), places_BT
            self._turns = turns_T1K[places_BT]
        self._mask_B1TS = None if places_BT is None else hiding(places_BT, reach).to(cache.layers[0][0].dtype)

    def turns(self, tokens_BT: Tensor, config: ModelConfig) -> Tensor:
        return self._turns

    def place(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of a recorded step's layer: keys, values, the rows' places in them, and the mask of what they see."""
        assert self._mask_B1TS is not None
        self.attended += 1
        keys, values = (each[self._rows] for each in self._cache.layers[layer])
        return keys, values, self._places[2], self._mask_B1TS

    def attend(
        self,
        layer: int,
        q_BHTK: Tensor,
        k_BHTK: Tensor,
        v_BHTK: Tensor,
        cap: nn.Module = UNCAPPED,
        softmax: nn.Module = SOFTMAX,
    ) -> Tensor:
        self.attended += 1
        if k_BHTK.requires_grad or v_BHTK.requires_grad:
            k_BHTK, v_BHTK = k_BHTK.detach(), v_BHTK.detach()
        k_BHSK, v_BHSK = self._visible[layer]
        if self._first and (k_BHTK.shape[1::2], v_BHTK.shape[1::2]) != (k_BHSK.shape[1::2], v_BHSK.shape[1::2]):
            self._cache.fit(layer, k_BHTK, v_BHTK)
            self._visible = self._cache.span(self._rows, slice(self._reach))
            self._targets = self._cache.span(self._rows, self._positions) if self._positions else []
            k_BHSK, v_BHSK = self._visible[layer]
        if self._positions is not None:
            keys, values = self._targets[layer]
            keys.copy_(k_BHTK)
            values.copy_(v_BHTK)
        else:
            keys, values = (each[self._rows] for each in self._cache.layers[layer])
            keys[self._places] = k_BHTK.transpose(1, 2).to(keys.dtype)
            values[self._places] = v_BHTK.transpose(1, 2).to(values.dtype)
        if q_BHTK.shape[2] == 1:
            return attention_of_one(q_BHTK, k_BHSK, v_BHSK, self._mask_B1TS, cap, softmax)
        return attention(q_BHTK, k_BHSK, v_BHSK, self._mask_B1TS, cap, softmax)
