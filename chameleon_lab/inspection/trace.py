"""A trace: one document run through a model once, and all that is kept of that: the residual stream.

The rest is computed again when somebody asks: a block's queries, keys and values by running its attention on the stream
before it, weights from these, some query rows at a time.
"""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, SupportsIndex

import numpy as np
import torch
from torch import Tensor, nn

from chameleon_lab.attention import plain_softmax
from chameleon_lab.taps import change
from chameleon_lab.transformer import CAUSAL, Block, Context, ModelConfig, Packed, Transformer

LOGITS_AT_ONCE = 256  # positions whose logits are held at once
WEIGHTS_AT_ONCE = 2**22  # attention weights held at once
BLOCK_BYTES = 2**26  # of queries, keys and values of blocks run again that are kept for the next question


class HeadValues(NamedTuple):
    """Rotated queries, and keys and values with a copy for each query head that shares them: H x T x K each."""

    q_HTK: Tensor
    k_HTK: Tensor
    v_HTK: Tensor


@dataclass(frozen=True)
class Through:
    """A context whose attention goes through a function; positions are turned as in the context it stands for."""

    context: Context
    attend: Callable[..., Tensor]

    def turns(self, tokens_BT: Tensor, config: ModelConfig) -> Tensor:
        return self.context.turns(tokens_BT, config)


class Trace:
    """The residual stream of a document, one vector a position and layer: never positions x positions x heads x layers.

    `changes` are functions of submodules' outputs, by name, under which the model is looked at (see `taps.change`);
    `documents_T` numbers the documents of a packed row. What stands here gives tensors, for the other modules of
    `inspection`. Raises ValueError for a document beyond the model's context.
    """

    def __init__(
        self,
        model: Transformer,
        tokens_T: np.ndarray,
        *,
        documents_T: np.ndarray | None = None,
        changes: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        self.model, self.tokens, self.changes = model, tokens_T, dict(changes or {})
        if not 0 < len(tokens_T) <= model.config.context:
            raise ValueError(
                f"A document of {len(tokens_T)} tokens cannot be inspected: it needs 1 to {model.config.context}."
            )
        if documents_T is not None and len(documents_T) != len(tokens_T):
            raise ValueError(f"documents_T numbers each of {len(tokens_T)} tokens, and has {len(documents_T)} numbers.")
        self.device = model.embedding.weight.device
        self.tokens_1T = torch.as_tensor(tokens_T, device=self.device)[None]
        self.documents_1T = None if documents_T is None else torch.as_tensor(documents_T, device=self.device)[None]
        self.context = self.context_of(len(tokens_T))
        self._heads: OrderedDict[int, HeadValues] = OrderedDict()
        self._heads_lock = threading.Lock()  # a widget's thread and a cell may ask at the same time
        names = ["embedding_norm", *(f"blocks.{layer}" for layer in range(model.config.layers))]
        with torch.inference_mode(), self.changed(), outputs_of(model, names) as outputs:
            self.outputs_TD = model.trunk(self.tokens_1T, self.context)[0]
        self.streams = [outputs[name][0] for name in names]
        """T x D each: the input of the first block, then each block's output."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depth(self) -> tuple[int, int]:
        """Layers, and heads in each."""
        return self.model.config.layers, self.model.config.heads

    @property
    def stream_shape(self) -> tuple[int, int]:
        """Layers, and the width of the stream: those of two looks are alike where one's stream fits into the other."""
        return self.model.config.layers, self.model.config.width

    @property
    def blocks(self) -> list[Block]:
        return [block for block in self.model.blocks if isinstance(block, Block)]

    def context_of(self, length: int) -> Context:
        """What attention sees in the first `length` tokens."""
        return CAUSAL if self.documents_1T is None else Packed(self.documents_1T[:, :length])

    def turns(self, length: int) -> Tensor:
        """How queries and keys of the first `length` tokens are turned."""
        return self.model.turns(self.tokens_1T[:, :length], self.context_of(length))

    @contextmanager
    def changed(self) -> Iterator[None]:
        """The model as it is looked at: under the changes, if there are any."""
        if not self.changes:
            yield
            return
        with change(self.model, self.changes):
            yield

    def hidden(self, rows: slice = slice(None), length: int | None = None) -> Tensor:
        """Which of the first `length` tokens some query rows cannot see, later ones and other documents': rows x T."""
        places_T = torch.arange(length or len(self), device=self.device)
        hidden_TS = places_T > places_T[rows, None]
        if self.documents_1T is not None:
            documents_T = self.documents_1T[0, : len(places_T)]
            hidden_TS |= documents_T != documents_T[rows, None]
        return hidden_TS

    def heads_of(self, layer: int) -> HeadValues:
        """One layer's rotated queries, keys and values, from running its attention again; from any thread."""
        with self._heads_lock:
            if (heads := self._heads.pop(layer, None)) is None:
                heads = self._heads_again(layer)
                size = sum(each.nbytes for each in heads)
                while self._heads and size * (len(self._heads) + 1) > BLOCK_BYTES:
                    self._heads.popitem(last=False)
            self._heads[layer] = heads
            return heads

    @torch.inference_mode()
    def _heads_again(self, layer: int) -> HeadValues:
        parts: list[HeadValues] = []

        def keep(_layer: int, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, *_parts: nn.Module) -> Tensor:
            heads = q_BHTK.shape[1]
            k_HTK, v_HTK = (each[0].repeat_interleave(heads // each.shape[1], 0) for each in (k_BHTK, v_BHTK))
            parts.append(HeadValues(q_BHTK[0], k_HTK, v_HTK))
            return v_HTK[None]  # of the right shape, and of no use to anybody

        block = self.blocks[layer]
        with self.changed():
            block.attention(
                block.attention_pre_norm(self.streams[layer][None]), self.turns(len(self)), Through(self.context, keep)
            )
        if not parts:
            raise ValueError(
                f"The attention of layer {layer}, a {type(block.attention).__name__}, asks its context for nothing, so "
                "nobody can say where it looked (see transformer.PART_CONTRACTS)."
            )
        return parts[0]

    @torch.inference_mode()
    def weights(self, layer: int, rows: slice, head: int | None = None) -> Tensor:
        """The softmax of some query rows in float32, of all heads or of one: heads x rows x `rows.stop`, 0 where a
        query cannot look."""
        attention = self.blocks[layer].attention
        if head is None or not plain_softmax(attention.cap, attention.softmax):  # others may have numbers for each head
            weights_HTS = attention.softmax(self.scores_of(layer, rows)).float()
            return weights_HTS if head is None else weights_HTS[head, None]
        return self.scores_of(layer, rows, slice(head, head + 1)).softmax(-1)

    @torch.inference_mode()
    def scores_of(self, layer: int, rows: slice, heads: slice = slice(None)) -> Tensor:
        """What that softmax is given: heads x rows x `rows.stop`, -inf where a query cannot look."""
        q_HTK, k_HTK, _ = self.heads_of(layer)
        cap = self.blocks[layer].attention.cap
        q_HTK, k_HSK = q_HTK[heads, rows].float(), k_HTK[heads, : rows.stop].float()
        scores_HTS = cap((q_HTK * q_HTK.shape[-1] ** -0.5) @ k_HSK.transpose(1, 2))
        return scores_HTS.masked_fill_(self.hidden(rows, rows.stop), -torch.inf)

    def spans(self, start: int, stop: int | None = None) -> Iterator[slice]:
        """Query rows in parts whose weights are held at once."""
        stop = len(self) if stop is None else stop
        step = max(1, WEIGHTS_AT_ONCE // (len(self) * self.model.config.heads))
        yield from (slice(begin, min(begin + step, stop)) for begin in range(start, stop, step))

    def require(
        self, position: int | None = None, least: int = 0, *, layer: int | None = None, head: int | None = None
    ) -> None:
        """Raises ValueError, naming the range, for a position, layer or head that is not there or no integer."""
        config = self.model.config
        for name, value, low, count in (
            ("position", position, least, len(self)),
            ("layer", layer, 0, config.layers),
            ("head", head, 0, config.heads),
        ):
            if value is None or low <= as_index(value, name) < count:
                continue
            if name == "position" and count <= low:
                raise ValueError(f"This document has {count} token(s): none of them comes after another.")
            why = " (nothing comes before the first token)" if name == "position" and value == 0 else ""
            raise ValueError(f"{name} lies in {low}..{count - 1}, not at {value}{why}.")


def as_index(value: SupportsIndex, name: str) -> int:
    """An integer of any library as Python's. Raises ValueError for what is none, 2.0 too."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name} is an integer, not {value!r}.") from error


@contextmanager
def outputs_of(model: Transformer, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of submodules by name, of what this thread computes: others may use the model at the same time.

    (To `taps.record`, `blocks.*` would be every part of a block as well.)
    """
    outputs: dict[str, Tensor] = {}
    own = threading.get_ident()

    def hook_of(name: str) -> Callable[..., None]:
        return lambda _m, _i, output: outputs.update({name: output}) if threading.get_ident() == own else None

    hooks = [model.get_submodule(name).register_forward_hook(hook_of(name)) for name in names]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
