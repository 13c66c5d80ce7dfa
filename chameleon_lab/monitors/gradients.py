"""Who pulls the weights where, and how far they go: gradients by modality, and updates."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from chameleon_lab.corpora.packing import Batch
from chameleon_lab.monitors.watch import Moment, Readings
from chameleon_lab.vocabulary import Modality


@dataclass(frozen=True)
class GradientBalance:
    """`text_gradient_share`, `image_gradient_share`, `special_gradient_share`, and `gradient_cosine` of text and image.

    A step's gradient is the sum of what each modality's targets bring to it, and a share is the part of its squared
    length that is one modality's: g_m.g / g.g. Shares sum to 1, and what pulls against the rest has a negative one.
    The cosine is by layer too, over the parameters of each block; without both modalities in the batch there is none.

    A forward and a backward pass for each modality, and the memory of their gradients at once: keep it rare.
    """

    every: int = 250
    needs_whole_weights: ClassVar[bool] = True
    """Gradients of each modality are asked for by weight, which weights in parts (FSDP2) do not answer."""

    def watch(self, moment: Moment) -> Generator[None, None, Readings]:
        kinds, dots_GMM = products(moment)
        yield
        dots_MM = dots_GMM.sum(0)
        shares_M = dots_MM.sum(1) / dots_MM.sum().clamp_min(1e-30)
        readings: dict[str, Tensor | tuple[Tensor, Tensor]] = {
            f"{kind}_gradient_share": share for kind, share in zip(kinds, shares_M, strict=True)
        }
        if {"text", "image"} <= set(kinds):
            pair = kinds.index("text"), kinds.index("image")
            readings["gradient_cosine"] = cosine(dots_MM, *pair), cosine(dots_GMM[:-1], *pair)
        return readings


@dataclass(frozen=True)
class UpdateRatio:
    """`update_ratio`: how far a step moves a block's weights, RMS(change) / RMS(weights before), by block.

    Keeps the blocks' weights of before the step. About 1e-3 is the customary advice; the number is the largest.
    """

    every: int = 25

    def watch(self, moment: Moment) -> Generator[None, None, Readings]:
        before = [[each.clone() for each in block.parameters()] for block in moment.model.blocks]
        yield
        ratios = []
        for block, weights in zip(moment.model.blocks, before, strict=True):
            moved = [new - old for new, old in zip(block.parameters(), weights, strict=True)]
            ratios.append(length(moved) / length(weights))
        ratios_L = torch.stack(ratios)
        return {"update_ratio": (ratios_L.max(), ratios_L)}


def products(moment: Moment) -> tuple[list[str], Tensor]:
    """The modalities with learned targets, and the products of their parts of the gradient with one another: for each
    block, and last for what is in none."""
    model, objective = moment.model, moment.objective
    named = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    gradients_of: dict[str, tuple[Tensor, ...]] = {}
    for kind in Modality:
        targets = int(of_kind(moment.batch, kind).sum())
        if weight := targets * getattr(objective, f"{kind.name.lower()}_weight"):
            with moment.aside():
                loss = weight * objective(model, only(moment.batch, kind))["loss_with_penalties"]
                gradients = torch.autograd.grad(loss, [each for _, each in named], materialize_grads=True)
            gradients_of[kind.name.lower()] = gradients
    dots_GMM = torch.zeros(len(model.blocks) + 1, len(gradients_of), len(gradients_of), dtype=torch.float64)
    for index, (name, _) in enumerate(named):
        block = int(name.split(".")[1]) if name.startswith("blocks.") else -1
        parts_MX = torch.stack([gradients[index].flatten().float() for gradients in gradients_of.values()])
        dots_GMM[block] += (parts_MX @ parts_MX.T).cpu()
    return list(gradients_of), dots_GMM


def length(values: Iterable[Tensor]) -> Tensor:
    """Of all of them as one vector."""
    return torch.stack([torch.linalg.vector_norm(each, dtype=torch.float32) for each in values]).norm()


def of_kind(batch: Batch, kind: Modality) -> Tensor:
    """Which positions have a target of this modality that is learned."""
    return batch.learned_BT & (batch.modality_BT == kind)


def only(batch: Batch, kind: Modality) -> Batch:
    """The batch with nothing learned but this modality's targets; rows and ends of rows without any are left out."""
    learned_BT = of_kind(batch, kind)
    rows_B = learned_BT.any(1)
    width = int(learned_BT.any(0).nonzero().max()) + 1

    def cut(values_BT: Tensor) -> Tensor:
        return values_BT[rows_B, :width]

    tensors = {each.name: getattr(batch, each.name) for each in fields(batch)} | {"learned_BT": learned_BT}
    return replace(batch, **{name: cut(values) for name, values in tensors.items() if isinstance(values, Tensor)})


def cosine(dots_xMM: Tensor, one: int, other: int) -> Tensor:
    """The cosine of two gradients, from the products of all."""
    lengths = dots_xMM[..., one, one] * dots_xMM[..., other, other]
    return dots_xMM[..., one, other] / lengths.sqrt().clamp_min(1e-30)
