"""The objective: next-token loss split by modality, with penalties, only where something is to be learned.

With a large vocabulary, logits need the most memory. So they are computed for a chunk of positions at a time: a
chunk's loss is differentiated at once, and its logits are freed before those of the next chunk are computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab import crossovers, native_ops
from chameleon_lab.corpora.packing import Batch
from chameleon_lab.parts import require_each
from chameleon_lab.stability import Penalty
from chameleon_lab.transformer import CAUSAL, Packed, Transformer
from chameleon_lab.vocabulary import Modality


@dataclass(frozen=True)
class Objective:
    """Weighted mean of next-token losses in nats; `weights[modality]` multiplies the losses on that kind of target.

    Logits are computed only at positions whose target is learned, about `logits_at_once` numbers of them at a time, but
    of no fewer than 256 positions: a chunk costs a pass over the head's gradient. (2**22: what a CPU's cache holds; on
    a GPU `crossovers.LOGITS_FACTOR` times as many.)

    `compiled` has logits and their losses compiled while a model trains, unless somebody listens to its head.

    Raises ValueError for a penalty that is none.
    """

    text_weight: float = 1.0
    image_weight: float = 1.0
    special_weight: float = 1.0
    penalties: tuple[Penalty, ...] = ()
    logits_at_once: int = field(default=2**22, repr=False, compare=False)
    compiled: bool = field(default=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_each(self.penalties, "a penalty", "penalty")

    def __call__(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        """`loss_with_penalties` (what to descend), `loss`, and `text_loss`, `image_loss`, `special_loss`.

        Only the first has a gradient, and once: it cannot be differentiated twice. A modality without targets in the
        batch is left out. Raises ValueError when nothing in the batch is learned, and for ids below 0 that are read or
        learned: elsewhere -100 may stand for what is not learned, here `learned_BT` tells that.
        """
        learned_BT = batch.learned_BT
        if not bool(learned_BT.any()):
            raise ValueError("Nothing in this batch is to be learned: every target's learn flag is off.")
        targets_X, kinds_X = batch.targets_BT[learned_BT], batch.modality_BT[learned_BT]
        least = int(torch.minimum(batch.inputs_BT.min(), targets_X.min()))
        if least < 0:  # no row of the embedding; and of a target of -100 torch's cross-entropy is 0
            raise ValueError(
                f"Token ids begin at 0, and this batch has {least}. Pad with the vocabulary's `pad`, and say by "
                "`learned_BT` which targets are learned."
            )
        context = CAUSAL if batch.documents_BT is None else Packed(batch.documents_BT)
        outputs_XD = model.trunk(batch.inputs_BT, context)[learned_BT]
        weights = torch.tensor((self.text_weight, self.image_weight, self.special_weight), device=targets_X.device)
        shares_X = weights[kinds_X.long()]
        if batch.weights_BT is not None:
            shares_X = shares_X * batch.weights_BT[learned_BT]
        shares_X = shares_X / shares_X.sum().clamp_min(1e-9)
        losses_X = torch.empty_like(shares_X)

        losses_of = penalized
        if self.compiled and model.training and torch.is_grad_enabled():
            hooks = native_ops.listeners(nn.ModuleList([model.head, model.cap]))
            losses_of = penalized if hooks is None or any(hooks) else _compiled_losses()

        def of_chunk(outputs_XD: Tensor, chunk: slice) -> Tensor:
            losses_X[chunk], value = losses_of(model, self.penalties, outputs_XD, targets_X[chunk], shares_X[chunk])
            return value

        at_once = self.logits_at_once * crossovers.LOGITS_FACTOR.get(outputs_XD.device.type, 1)
        if losses_of is not penalized:
            at_once *= crossovers.COMPILED_LOGITS
        rows = max(256, at_once // model.config.vocabulary)
        measures = {
            "loss_with_penalties": chunked_sum(of_chunk, outputs_XD, model.parameters(), rows),
            "loss": losses_X.mean(),
        }
        for kind in Modality:
            chosen = kinds_X == kind
            if bool(chosen.any()):
                measures[f"{kind.name.lower()}_loss"] = losses_X[chosen].mean()
        return measures


def penalized(
    model: Transformer, penalties: tuple[Penalty, ...], outputs_XD: Tensor, targets_X: Tensor, shares_X: Tensor
) -> tuple[Tensor, Tensor]:
    """The losses of targets, without a gradient, and what to descend: their sum by shares, penalties included."""
    logits_XV = model.logits(outputs_XD)
    losses_X = F.cross_entropy(logits_XV, targets_X, reduction="none")
    penalized_X = losses_X
    for term in penalties:
        penalized_X = penalized_X + term.penalty(logits_XV)
    return losses_X.detach(), (penalized_X * shares_X).sum()


@functools.cache
def _compiled_losses() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(penalized)


def chunked_sum(
    term: Callable[[Tensor, slice], Tensor], outputs_XD: Tensor, parameters: Iterable[Tensor], rows: int
) -> Tensor:
    """The sum of `term(outputs_XD[chunk], chunk)` over chunks of so many rows.

    Its gradients, to the outputs and to those of the parameters that terms use, are autograd's for the whole sum; but
    only one term's graph is in memory at a time, because each is differentiated as soon as it is computed.
    """
    chunks = [slice(start, start + rows) for start in range(0, len(outputs_XD), rows)]
    if not torch.is_grad_enabled():
        return torch.stack([term(outputs_XD[chunk], chunk) for chunk in chunks]).sum()
    sources = [parameter for parameter in parameters if parameter.requires_grad]
    gradients: list[Tensor | None] = [None] * len(sources)
    gradient_XD, total = torch.empty_like(outputs_XD), outputs_XD.new_zeros((), dtype=torch.float32)
    for chunk in chunks:
        part_XD = outputs_XD[chunk].detach().requires_grad_()
        value = term(part_XD, chunk)
        gradient_XD[chunk], *of_chunk = torch.autograd.grad(value, [part_XD, *sources], allow_unused=True)
        gradients = [
            before if more is None else more.clone() if before is None else before.add_(more)  # `more` may be shared
            for before, more in zip(gradients, of_chunk, strict=True)
        ]
        total += value.detach()
        del value, of_chunk  # or they would be in memory beside the next chunk's
    used = [(source, gradient) for source, gradient in zip(sources, gradients, strict=True) if gradient is not None]
    of_sources = [gradient_XD, *(gradient for _, gradient in used)]
    return Differentiated.apply(total, of_sources, outputs_XD, *(source for source, _ in used))  # pyright: ignore[reportReturnType]


class Differentiated(torch.autograd.Function):
    """A value whose gradients to `sources` are computed already: backward hands them on to autograd and its hooks."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *sources: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():  # the trunk's part alone would come out, and look like the whole
            raise ValueError("The objective's loss cannot be differentiated twice; leave out `create_graph`.")
        return None, None, *(gradient * upstream.to(gradient.dtype) for gradient in ctx.gradients)
