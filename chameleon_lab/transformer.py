"""The transformer. Architectural facts (Chameleon, arXiv 2405.09818, section 2.3; Llama-2's block):

- decoder only, one stream of tokens of any modality, RMSNorm, rotary positions in adjacent pairs, SwiGLU, no biases
- each residual branch is `x + dropout(scale(post_norm(branch(pre_norm(x)))))`; an empty slot is `nn.Identity`
- slots too: query and key norms, per head and before the rotation; what follows the embedding; caps of attention's
  logits and of the head's. Fixes of `stability` fill them
- grouped-query attention where `kv_heads` < `heads`; one fused matrix for q, k, v and one for gate and up
- attention is asked of a *context*: `CAUSAL` for whole sequences, a `KVCache` when decoding. The model has no `if`
- a `KVCache` has the sums done by a leaner stand-in for the model (see `decoding`), which runs these same methods
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab.attention import (
    UNCAPPED,
    attention,
    attention_of_one,
    attention_to_earlier,
    fused,
    hiding,
    rotate,
    rotations,
)
from chameleon_lab.decoding import hooks, lean
from chameleon_lab.taps import Tap


class Fix(Protocol):
    """A stability fix: a frozen dataclass that changes a model once, when it is built (see `stability`)."""

    def install(self, model: Transformer) -> None: ...


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a transformer; `fixes` are installed in order when it is built.

    Raises ValueError when heads do not share keys evenly or the head width is odd.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    ffn_width: int
    context: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = False
    fixes: tuple[Fix, ...] = ()

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key heads evenly.")
        if self.head_width % 2:
            raise ValueError(f"Rotary positions turn pairs: head_width must be even, not {self.head_width}.")


class Context(Protocol):
    """What attention can see: how the new positions are turned, and what they attend to in each layer.

    `stand_in` is who does the sums: the model, or what computes the same for less.
    """

    def stand_in(self, model: Transformer) -> Transformer: ...

    def turns(self, tokens_BT: Tensor, config: ModelConfig) -> Tensor: ...

    def attend(
        self, layer: int, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, cap: nn.Module = UNCAPPED
    ) -> Tensor: ...


class Transformer(nn.Module):
    """Tokens to logits: `model(tokens_BT) -> logits_BTV`, float32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.filled: dict[str, Fix] = {}  # which slots, by whom
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.embedding_norm: nn.Module = nn.Identity()
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.cap: nn.Module = nn.Identity()
        self._initialize()
        for fix in config.fixes:  # after the weights are drawn: a seed gives the same ones with any fixes
            fix.install(self)
        if config.tied:
            self.head.weight = self.embedding.weight

    def _initialize(self) -> None:
        """Normal, 1/sqrt(fan in); matrices that end a branch smaller by sqrt(2 layers). (Chameleon's: unpublished.)"""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                ends_branch = name.endswith(("attention.out", "feed_forward.down"))
                scale = math.sqrt(2 * self.config.layers) if ends_branch else 1.0
                nn.init.normal_(module.weight, std=module.in_features**-0.5 / scale)
        nn.init.normal_(self.embedding.weight, std=self.config.width**-0.5)

    def forward(self, tokens_BT: Tensor, context: Context | None = None) -> Tensor:
        return self.logits(self.trunk(tokens_BT, context), context)

    def trunk(self, tokens_BT: Tensor, context: Context | None = None) -> Tensor:
        """The final, normed residual stream: outputs_BTD."""
        seen = context or CAUSAL
        return seen.stand_in(self).trunk_within(tokens_BT, seen)

    def logits(self, outputs_BTD: Tensor, context: Context | None = None) -> Tensor:
        return (context or CAUSAL).stand_in(self).logits_of(outputs_BTD)

    def trunk_within(self, tokens_BT: Tensor, seen: Context) -> Tensor:
        turns = seen.turns(tokens_BT, self.config)
        x_BTD = self.embedding_norm(self.embedding(tokens_BT))
        for block in self.blocks:
            x_BTD = block(x_BTD, turns, seen)
        return self.norm(x_BTD)

    def logits_of(self, outputs_BTD: Tensor) -> Tensor:
        return self.cap(self.head(outputs_BTD).float())

    def fill(self, owner: nn.Module, slot: str, module: nn.Module, fix: Fix) -> None:
        """Puts a module into a slot on behalf of a fix.

        Raises ValueError if another fix filled it, naming both, and if there is no such slot.
        """
        path = next(name for name, candidate in self.named_modules() if candidate is owner)
        key = f"{path}.{slot}".removeprefix(".")
        slots = dict(owner.named_children())
        if slot not in slots:
            raise ValueError(f"{fix} wants the slot {key}, which is not there; there are {', '.join(slots)}.")
        if key in self.filled:
            raise ValueError(f"{fix} and {self.filled[key]} both want the slot {key}; keep one of them.")
        self.filled[key] = fix
        setattr(owner, slot, module)


class Block(nn.Module):
    """Two residual branches: attention, then feed-forward."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_pre_norm: nn.Module = nn.RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, layer)
        self.attention_post_norm: nn.Module = nn.Identity()
        self.attention_scale: nn.Module = nn.Identity()
        self.attention_dropout: nn.Module = nn.Identity()
        self.ffn_pre_norm: nn.Module = nn.RMSNorm(config.width, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.ffn_post_norm: nn.Module = nn.Identity()
        self.ffn_scale: nn.Module = nn.Identity()
        self.ffn_dropout: nn.Module = nn.Identity()

    def forward(self, x_BTD: Tensor, turns_BT1K: Tensor, context: Context) -> Tensor:
        attended_BTD = self.attention(self.attention_pre_norm(x_BTD), turns_BT1K, context)
        x_BTD = x_BTD + self.attention_dropout(self.attention_scale(self.attention_post_norm(attended_BTD)))
        fed_BTD = self.feed_forward(self.ffn_pre_norm(x_BTD))
        return x_BTD + self.ffn_dropout(self.ffn_scale(self.ffn_post_norm(fed_BTD)))


class Attention(nn.Module):
    """Causal self-attention with rotary positions and slots for query and key norms and a cap of its logits."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        self.qkv = nn.Linear(config.width, (config.heads + 2 * config.kv_heads) * config.head_width, bias=False)
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        self.query_tap, self.key_tap = Tap(), Tap()
        self.cap: nn.Module = nn.Identity()
        self.out = nn.Linear(config.heads * config.head_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor, turns_BT1K: Tensor, context: Context) -> Tensor:
        batch, positions, _ = x_BTD.shape
        qkv_BTHK = self.qkv(x_BTD).view(batch, positions, -1, self.head_width)
        q_BTHK, k_BTHK, v_BTHK = qkv_BTHK.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        q_BTHK = self.query_tap(rotate(self.query_norm(q_BTHK), turns_BT1K))
        k_BTHK = self.key_tap(rotate(self.key_norm(k_BTHK), turns_BT1K))
        mixed_BHTK = context.attend(
            self.layer, q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), v_BTHK.transpose(1, 2), self.cap
        )
        return self.out(mixed_BHTK.transpose(1, 2).reshape(batch, positions, -1))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.down(F.silu(gate_BTF) * up_BTF)


def turned_at(places_BT: Tensor, config: ModelConfig) -> Tensor:
    """How a model of this shape turns queries and keys at these places."""
    return rotations(places_BT, config.head_width, config.rope_theta)


class Causal:
    """The context of whole sequences: each position sees itself and those before it."""

    def stand_in(self, model: Transformer) -> Transformer:
        return model

    def turns(self, tokens_BT: Tensor, config: ModelConfig) -> Tensor:
        return rotations(
            torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None], config.head_width, config.rope_theta
        )

    def attend(self, layer: int, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, cap: nn.Module = UNCAPPED) -> Tensor:
        if fused(k_BHTK, cap):
            return attention(q_BHTK, k_BHTK, v_BHTK, None)
        return attention_to_earlier(q_BHTK, k_BHTK, v_BHTK, self._mask(q_BHTK.shape[2], q_BHTK.device), cap)

    @staticmethod
    @functools.lru_cache(maxsize=1)  # one for all layers
    @torch.inference_mode(False)  # fit for training, whoever asked first
    def _mask(length: int, device: torch.device) -> Tensor:
        return torch.full((length, length), -torch.inf, device=device).triu(1)


CAUSAL = Causal()


class Packed:
    """The context of rows that hold several documents: each position sees itself and those before it in its own.

    `documents_BT` numbers the documents of a row; positions begin anew with each.
    """

    def __init__(self, documents_BT: Tensor) -> None:
        places_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
        begins_BT = documents_BT.diff(dim=1, prepend=documents_BT[:, :1] - 1) != 0
        self._places_BT = places_T - torch.where(begins_BT, places_T, 0).cummax(1).values
        seen_BTT = (documents_BT[:, :, None] == documents_BT[:, None]) & (places_T[:, None] >= places_T)
        self._mask_B1TT = torch.zeros(seen_BTT.shape, device=documents_BT.device).masked_fill_(~seen_BTT, -torch.inf)[
            :, None
        ]

    def stand_in(self, model: Transformer) -> Transformer:
        return model

    def turns(self, tokens_BT: Tensor, config: ModelConfig) -> Tensor:
        return turned_at(self._places_BT, config)

    def attend(self, layer: int, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, cap: nn.Module = UNCAPPED) -> Tensor:
        return attention_to_earlier(q_BHTK, k_BHTK, v_BHTK, self._mask_B1TT, cap)


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
        self._turns_T1K = rotations(
            torch.arange(shape[3], device=like.device)[None], config.head_width, config.rope_theta
        )[0]
        self._stand_ins: list[tuple[Transformer, Transformer, list[dict]]] = []  # one at most; the parts share it
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
        if not self._stand_ins or self._stand_ins[0][0] is not model:
            twin = lean(model, through=(Transformer, Block, Attention, FeedForward))
            self._stand_ins[:] = [(model, twin, hooks(model))]
        _, twin, listeners = self._stand_ins[0]
        return model if any(listeners) else twin

    def turns(self, tokens_BT: Tensor, config: ModelConfig) -> Tensor:
        """How the new tokens are turned; done once a step, so here is found out what `attend` needs in every layer."""
        width, device = tokens_BT.shape[1], tokens_BT.device
        least, most = int(self.lengths.min()), int(self.lengths.max())
        self._require(least + width)
        reach = min(most + width, self.room)
        self._seen = self._layers(slice(reach))
        if least == most:
            self._into, self._places = self._layers(slice(least, reach)), None
            places_BT = torch.arange(least, reach, device=device)[None]
            self._mask_B1TS = hiding(places_BT, reach) if width > 1 else None
            return self._turns_T1K[None, least:reach]
        starts_B1 = torch.from_numpy(self.lengths).to(device)[:, None]
        places_BT = (starts_B1 + torch.arange(width, device=device)).clamp_max(self.room)
        self._places = torch.arange(len(self.lengths), device=device)[:, None], slice(None), places_BT
        self._mask_B1TS = hiding(places_BT, reach)
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
        self._require(int((self.lengths + counts).max()))
        self.lengths += np.asarray(counts)

    def rewind(self, row: int, length: int) -> None:
        """Row `row` goes back to its first `length` positions. Raises ValueError where it has fewer."""
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"A row of {self.lengths[row]} positions cannot go back to {length}.")
        self.lengths[row] = length

    def _require(self, length: int) -> None:
        if length > self.room:
            raise ValueError(f"{length} positions do not fit a cache of {self.room}.")

    def part(self, start: int, stop: int) -> KVCache:
        """Rows `start` to `stop` of this cache as a cache: the same memory, not a copy."""
        part = copy.copy(self)
        part.keys, part.values = self.keys[:, start:stop], self.values[:, start:stop]
        part.lengths = self.lengths[start:stop]
        return part
