"""Compiled blocks for a GPU's recorded steps: what stands between the products of a token becomes a few kernels.

A step of one token a row is some fifty kernels a layer: norms, rotation, casts, the cache's writes, SwiGLU, residual
sums. `torch.compile` makes them about a dozen, up to a quarter faster at 7B shapes (docs/gpu.md). A block is compiled
whole, as it stands, once for all layers, lengths and caches; another number of rows is compiled anew, eight seconds
each. So it is done where somebody asked for it, who draws many pictures.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from chameleon_lab import native_ops
from chameleon_lab.generation.kernels import attention_of_one
from chameleon_lab.generation.kv_cache import Step
from chameleon_lab.transformer import Attention, Block, Transformer

COMPILED_MODELS: WeakSet[Transformer] = WeakSet()


def compile_steps(model: Transformer) -> None:
    """Has a model's steps on a GPU compiled from its next reply on, when they are recorded first.

    Raises ValueError for one that is not on a GPU, and for blocks, or parts that see the tokens, of one's own.
    """
    device = model.embedding.weight.device
    if device.type != "cuda":
        raise ValueError(f"Steps are compiled for a GPU, and the model is on {device}, which has kernels of its own.")
    if type(model.modality) is not nn.Identity or not all(map(_is_own_block, model.blocks)):
        raise ValueError(
            "Steps are compiled of the library's own blocks, and this model has others: leave it as it is."
        )
    COMPILED_MODELS.add(model)


def _is_own_block(block: nn.Module) -> bool:
    return isinstance(block, Block) and type(block.attention) is Attention


class FusedTwin:
    """A model whose `trunk` runs compiled blocks in recorded steps of one token a row; parameters are shared."""

    def __init__(self, model: Transformer) -> None:
        self.model: Any = copy.copy(model)
        self.model.__dict__["blocks"] = [functools.partial(_run, block) for block in model.blocks]  # pyright: ignore[reportArgumentType]


class LayerContext:
    """The context of one layer: its keys and values, where each row's token goes, and what it sees."""

    def __init__(self, keys_BGSK: Tensor, values_BGSK: Tensor, places_B1: Tensor, mask_B11S: Tensor) -> None:
        self._memory, self._places_B1, self._mask_B11S = (keys_BGSK, values_BGSK), places_B1, mask_B11S

    # Without defaults: older compilers do not know where the modules in them come from.
    def attend(
        self, layer: int, q_BH1K: Tensor, k_BG1K: Tensor, v_BG1K: Tensor, cap: nn.Module, softmax: nn.Module
    ) -> Tensor:
        rows, reach = torch.arange(len(q_BH1K), device=q_BH1K.device)[:, None], self._mask_B11S.shape[-1]
        for memory, new in zip(self._memory, (k_BG1K, v_BG1K), strict=True):
            memory[rows, :, self._places_B1] = new.transpose(1, 2).to(memory.dtype)
        k_BGSK, v_BGSK = (memory[:, :, :reach] for memory in self._memory)
        return attention_of_one(q_BH1K, k_BGSK, v_BGSK, self._mask_B11S, cap, softmax)


def _block(block: Block, x_B1D: Tensor, turns_B11K: Tensor, *place: Tensor) -> Tensor:
    return block(x_B1D, turns_B11K, LayerContext(*place))


@functools.cache
def _compiled_block() -> Callable[..., Tensor]:
    return torch.compile(_block, dynamic=False, fullgraph=True)


def _run(block: Block, x_B1D: Tensor, turns_B11K: Tensor, step: Step) -> Tensor:
    keys_BGSK, values_BGSK, places_B1, mask_B11S = step.place(block.attention.layer)
    for memory in (keys_BGSK, values_BGSK):
        native_ops.mark_dynamic(memory, 2)  # the cache's room
    native_ops.mark_dynamic(mask_B11S, 3)  # and how far the rows see
    turns_B11K = torch.view_as_real(turns_B11K) if turns_B11K.is_complex() else turns_B11K
    return _compiled_block()(block, x_B1D, turns_B11K, keys_BGSK, values_BGSK, places_B1, mask_B11S)
