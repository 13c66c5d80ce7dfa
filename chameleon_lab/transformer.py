"""The transformer. Architectural facts (Chameleon, arXiv 2405.09818, section 2.3; Llama-2's block):

- decoder only, one stream of tokens of any modality, RMSNorm, rotary positions in adjacent pairs, SwiGLU, no biases
- each residual branch is `x + dropout(scale(post_norm(branch(pre_norm(x)))))`; an empty slot is `nn.Identity`
- slots too: query and key norms, per head and before the rotation; the rotation; what an embedding gets for its place,
  and what follows it; caps of attention's logits and of the head's; attention's softmax; what sees the tokens of each
  pass (`by_modality`). Fixes of `stability` fill them, and those of `cm3leon`
- grouped-query attention where `kv_heads` < `heads`; one fused matrix for q, k, v and one for gate and up
- attention is asked of a *context*: `CAUSAL` for whole sequences, `Packed` for rows of documents, the step of a
  `generation.Decoder` for tokens behind others. The model has no `if`
"""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab.attention import SOFTMAX, UNCAPPED, attention, attention_to_earlier, rotate, rotations, uses_fused
from chameleon_lab.parts import require_fields
from chameleon_lab.taps import Tap
from chameleon_lab.vocabulary import Vocabulary


class Fix(Protocol):
    """A stability fix: a frozen dataclass that changes a model once, when it is built (see `stability`)."""

    def install(self, model: Transformer) -> None: ...


@runtime_checkable
class ForVocabulary(Protocol):
    """A fix that must know which tokens are what: an experiment takes what this gives when its data is opened."""

    def for_vocabulary(self, vocabulary: Vocabulary) -> Fix: ...


@runtime_checkable
class Placement(Protocol):
    """A fix of models that know a token's place otherwise than by rotation: what its parts get as `turns_BT1K`."""

    def placed(self, places_BT: Tensor, config: ModelConfig) -> Tensor: ...


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a transformer; `fixes` are installed in order when it is built.

    Raises ValueError when heads do not share keys evenly, the head width is odd, or a value is none that it can have.
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
        sizes = dict.fromkeys(
            ("width", "layers", "heads", "kv_heads", "head_width", "ffn_width", "context"), (1, 2**31)
        )
        require_fields(self, **sizes, vocabulary=(0, 2**31), rope_theta=(1e-6, 1e15), norm_eps=(0, 1))
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key heads evenly.")
        if self.head_width % 2:
            raise ValueError(f"Rotary positions turn pairs: head_width must be even, not {self.head_width}.")


class Context(Protocol):
    """What attention can see: how the new positions are turned, and what they attend to in each layer."""

    def turns(self, tokens_BT: Tensor, config: ModelConfig) -> Tensor: ...

    def attend(
        self,
        layer: int,
        q_BHTK: Tensor,
        k_BHTK: Tensor,
        v_BHTK: Tensor,
        cap: nn.Module = UNCAPPED,
        softmax: nn.Module = SOFTMAX,
    ) -> Tensor: ...


class Transformer(nn.Module):
    """Tokens to logits: `model(tokens_BT) -> logits_BTV`, float32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.filled: dict[str, Fix] = {}  # which slots, by whom
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.modality: nn.Module = nn.Identity()
        self.positions: nn.Module = Unplaced()
        self.embedding_norm: nn.Module = nn.Identity()
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.cap: nn.Module = nn.Identity()
        self._initialize()
        # After the weights are drawn: a seed gives the same ones with any fixes. Those that wrap come last.
        for fix in sorted(config.fixes, key=lambda fix: getattr(fix, "wraps", False)):
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
        return self.logits(self.trunk(tokens_BT, context))

    def trunk(self, tokens_BT: Tensor, context: Context | None = None) -> Tensor:
        """The final, normed residual stream: outputs_BTD."""
        context = context or CAUSAL
        turns_BT1K = self.turns(tokens_BT, context)
        x_BTD = self.embedding_norm(self.positions(self.embedding(tokens_BT), turns_BT1K))
        for block in self.blocks:
            x_BTD = block(x_BTD, turns_BT1K, context)
        return self.norm(x_BTD)

    def turns(self, tokens_BT: Tensor, context: Context) -> Tensor:
        """How each position is turned, for the blocks that run on these tokens next: turns_BT1K.

        Whoever runs blocks without `trunk` asks here, since the slot `modality` sees the tokens here.
        """
        return context.turns(self.modality(tokens_BT), self.config)

    def logits(self, outputs_BTD: Tensor) -> Tensor:
        return self.cap(self.head(outputs_BTD).float())

    def fill(self, owner: nn.Module, slot: str, module: nn.Module, fix: Fix) -> None:
        """Puts a module into a slot on behalf of a fix.

        What a part is called with and what else it must have is in `PART_CONTRACTS`. Raises ValueError if another fix
        filled the slot, naming both, if there is no such slot, and if the module cannot be such a part.
        """
        key = self._slot_name(owner, slot)
        slots = dict(owner.named_children())
        if slot not in slots:
            raise ValueError(f"{fix} wants the slot {key}, which is not there; there are {', '.join(slots)}.")
        if key in self.filled:
            raise ValueError(f"{fix} and {self.filled[key]} both want the slot {key}; keep one of them.")
        (inputs, attributes), names = PART_CONTRACTS.get(slot, PLAIN_PART), dir(module)
        if lacking := [name for name in attributes if name not in names]:
            raise ValueError(
                f"{fix} fills the slot {key} with a {type(module).__name__} that has no {', '.join(lacking)}: taps, "
                f"monitors and decoding ask an {slot} for {', '.join(attributes)} (see transformer.PART_CONTRACTS)."
            )
        try:
            inspect.signature(module.forward).bind(*inputs)
        except TypeError as error:
            raise ValueError(
                f"{fix} fills the slot {key} with a {type(module).__name__} whose forward does not take "
                f"({', '.join(inputs)}): {error}."
            ) from error
        self.filled[key] = fix
        setattr(owner, slot, module)

    def wrap(self, owner: nn.Module, slot: str, module: nn.Module, fix: Fix) -> None:
        """Puts a module that is made of what a slot holds in its place, on behalf of a fix with `wraps = True`.

        Such fixes are installed after all others, whatever their order, so that they find what those put there. The
        slot stays that of the fix that filled it. Raises ValueError if another fix wrapped it.
        """
        key = self._slot_name(owner, slot)
        wrapped = f"{key} (wrapped)"
        if wrapped in self.filled:
            raise ValueError(f"{fix} and {self.filled[wrapped]} both wrap the slot {key}; keep one of them.")
        self.filled.setdefault(key, fix)
        self.filled[wrapped] = fix
        setattr(owner, slot, module)

    def _slot_name(self, owner: nn.Module, slot: str) -> str:
        path = next(name for name, candidate in self.named_modules() if candidate is owner)
        return f"{path}.{slot}".removeprefix(".")


PLAIN_PART: tuple[tuple[str, ...], tuple[str, ...]] = ("x",), ()
"""A part is a function of one tensor to one of the same shape (a matrix: of its widths), position by position."""

PART_CONTRACTS = {
    "attention": (
        ("x_BTD", "turns_BT1K", "context"),
        ("layer", "heads", "kv_heads", "head_width", "query_tap", "key_tap", "cap", "softmax"),
    ),
    "positions": (("x_BTD", "turns_BT1K"), ()),
    "rotation": (("x_BTHK", "turns_BT1K"), ()),
}
"""Parts that are called with more: their inputs, and the attributes that others read.

An `attention` of one's own gives its queries and keys, rotated as it likes, to `query_tap` and `key_tap` (B, T, heads,
`head_width`), and gets what it sees of the sequence from `context.attend(layer, q, k, v, cap, softmax)` and from
nowhere else: then it decodes, too. Keys and values may have any number of heads that divides the queries', and
values any width: the cache takes its widths from the first ones. A `softmax` makes shares of logits B, H,
T, S, of which those of hidden positions are -inf, position by position of T. `turns_BT1K` are the rotations of each
place, unless a fix is a `Placement` and says what its `positions` and `rotation` get instead.
"""


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
        return self.join(x_BTD, self.attention(self.attention_pre_norm(x_BTD), turns_BT1K, context))

    def join(self, x_BTD: Tensor, attended_BTD: Tensor) -> Tensor:
        """The residual stream with what attention gives it, and then the feed-forward branch."""
        x_BTD = x_BTD + self.attention_dropout(self.attention_scale(self.attention_post_norm(attended_BTD)))
        fed_BTD = self.feed_forward(self.ffn_pre_norm(x_BTD))
        return x_BTD + self.ffn_dropout(self.ffn_scale(self.ffn_post_norm(fed_BTD)))


class Attention(nn.Module):
    """Causal self-attention; slots: query and key norms, the rotation, a cap of its logits, its softmax."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        self.qkv = nn.Linear(config.width, (config.heads + 2 * config.kv_heads) * config.head_width, bias=False)
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        self.rotation: nn.Module = Rotation()
        self.query_tap, self.key_tap = Tap(), Tap()
        self.cap: nn.Module = nn.Identity()
        self.softmax: nn.Module = nn.Softmax(dim=-1)
        self.head_outputs = Tap()
        self.out = nn.Linear(config.heads * config.head_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor, turns_BT1K: Tensor, context: Context) -> Tensor:
        batch, positions, _ = x_BTD.shape
        q_BTHK, k_BTHK, v_BTHK = self.project(x_BTD, turns_BT1K)
        q_BTHK, k_BTHK = self.query_tap(q_BTHK), self.key_tap(k_BTHK)
        q_BHTK, k_BHTK, v_BHTK = q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), v_BTHK.transpose(1, 2)
        mixed_BHTK = context.attend(self.layer, q_BHTK, k_BHTK, v_BHTK, self.cap, self.softmax)
        mixed_BTHK = self.head_outputs(mixed_BHTK.transpose(1, 2))
        return self.out(mixed_BTHK.reshape(batch, positions, -1))

    def project(self, x_BTD: Tensor, turns_BT1K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, normed and rotated, and values: B, T, heads, width of a head."""
        qkv_BTHK = self.qkv(x_BTD).view(*x_BTD.shape[:2], -1, self.head_width)
        q_BTHK, k_BTHK, v_BTHK = qkv_BTHK.split_with_sizes((self.heads, self.kv_heads, self.kv_heads), dim=2)
        q_BTHK, k_BTHK = self.query_norm(q_BTHK), self.key_norm(k_BTHK)
        return self.rotation(q_BTHK, turns_BT1K), self.rotation(k_BTHK, turns_BT1K), v_BTHK


class Rotation(nn.Module):
    """The rotation of queries or keys by their places (see `attention.rotate`)."""

    def forward(self, x_BTHK: Tensor, turns_BT1K: Tensor) -> Tensor:
        return rotate(x_BTHK, turns_BT1K)


class Unplaced(nn.Module):
    """An embedding as it is: where queries and keys are rotated, nothing is added for a token's place."""

    def forward(self, x_BTD: Tensor, turns_BT1K: Tensor) -> Tensor:
        return x_BTD


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
    """How a model of this shape turns queries and keys at these places, or what its `Placement` has instead.

    Raises ValueError where that knows no such places.
    """
    for fix in config.fixes:
        if isinstance(fix, Placement):
            return fix.placed(places_BT, config)
    return rotations(places_BT, config.head_width, config.rope_theta)


class Causal:
    """The context of whole sequences: each position sees itself and those before it."""

    def turns(self, tokens_BT: Tensor, config: ModelConfig) -> Tensor:
        return turned_at(torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None], config)

    def attend(
        self,
        layer: int,
        q_BHTK: Tensor,
        k_BHTK: Tensor,
        v_BHTK: Tensor,
        cap: nn.Module = UNCAPPED,
        softmax: nn.Module = SOFTMAX,
    ) -> Tensor:
        if uses_fused(k_BHTK, cap, softmax):
            return attention(q_BHTK, k_BHTK, v_BHTK, None)
        mask_TT = self._mask(q_BHTK.shape[2], q_BHTK.device)
        return attention_to_earlier(q_BHTK, k_BHTK, v_BHTK, mask_TT, cap, softmax)

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
        visible_BTT = (documents_BT[:, :, None] == documents_BT[:, None]) & (places_T[:, None] >= places_T)
        self._mask_B1TT = torch.zeros(visible_BTT.shape, device=documents_BT.device).masked_fill_(
            ~visible_BTT, -torch.inf
        )[:, None]

    def turns(self, tokens_BT: Tensor, config: ModelConfig) -> Tensor:
        return turned_at(self._places_BT, config)

    def attend(
        self,
        layer: int,
        q_BHTK: Tensor,
        k_BHTK: Tensor,
        v_BHTK: Tensor,
        cap: nn.Module = UNCAPPED,
        softmax: nn.Module = SOFTMAX,
    ) -> Tensor:
        return attention_to_earlier(q_BHTK, k_BHTK, v_BHTK, self._mask_B1TT, cap, softmax)
