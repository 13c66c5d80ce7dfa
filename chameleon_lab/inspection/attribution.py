"""Direct logit attribution: which part of a model put how much of a logit into the stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chameleon_lab.inspection.likelihood import Likelihood
from chameleon_lab.inspection.trace import Through, outputs_of
from chameleon_lab.readings import Contribution
from chameleon_lab.stability.slots import BRANCHES, Scale
from chameleon_lab.transformer import Block

LEAST_REST = 1e-4  # in float32 the parts alone sum to the logit within this


class Attribution(Likelihood):
    """A document whose logits are taken apart."""

    @torch.inference_mode()
    def contributions(self, position: int, token: int | None = None, *, by_head: bool = True) -> list[Contribution]:
        """Direct logit attribution: what the embedding, each head and each feed-forward add to a token's logit.

        The token is the one that stands at `position` unless given; `by_head=False` takes each layer's attention as
        one part. The last norm's scale is taken as it is, and a cap of the head in proportion, so that the
        contributions sum to the logit; what rounding (in bfloat16, or of packed matrices), a norm's bias and `changes`
        add is "rest", where it is more than 0.0001.
        Raises ValueError where a fix, or an attention of one's own, makes a branch no sum of its heads.
        """
        self.require(position, 1)
        token = int(self.tokens[position]) if token is None else int(self.tokenizer.vocabulary.check([token])[0])
        at = position - 1
        context, mixed = self.context_of(position), list[Tensor]()

        def attend(*values: Any, **parts: Any) -> Tensor:
            mixed_1HTK = context.attend(*values, **parts)
            mixed.append(mixed_1HTK[0, :, at])
            return mixed_1HTK

        layers = range(self.depth[0])
        names = [f"blocks.{layer}.{branch}_dropout" for layer in layers for branch in BRANCHES]
        with self.changed(), outputs_of(self.model, names) as outputs:
            self.model.trunk(self.tokens_1T[:, :position], Through(context, attend))
        parts: list[tuple[str, int | None, int | None, Tensor]] = [("embedding", None, None, self.streams[0][at])]
        for layer, block in enumerate(self.blocks):
            attended_D, fed_D = (outputs[f"blocks.{layer}.{branch}_dropout"][0, at] for branch in BRANCHES)
            if by_head:
                heads_HD = _heads(block, layer, mixed[layer])
                parts += [("head", layer, head, part_D) for head, part_D in enumerate(heads_HD)]
            else:
                parts.append(("attention", layer, None, attended_D))
            parts.append(("feed_forward", layer, None, fed_D))
        stream_D = self.streams[-1][at].float()
        scaled_D = self._head_row(token) * _scaling(self.model.norm, "the last norm", stream_D).float()
        weight_D = _centred(self.model.norm, scaled_D)  # of the row and not of the stream: the product is the same
        logit, plain = self.model.logits(self.outputs_TD[at])[token].item(), (stream_D @ weight_D).item()
        share = logit / plain if abs(plain) > 1e-9 and not isinstance(self.model.cap, nn.Identity) else 1.0
        shares = [
            Contribution(part, layer, head, float(part_D.float() @ weight_D) * share)
            for part, layer, head, part_D in parts
        ]
        rest = logit - sum(part.logit for part in shares)
        return shares if abs(rest) < LEAST_REST else [*shares, Contribution("rest", None, None, rest)]

    def _head_row(self, token: int) -> Tensor:
        head = self.model.head
        if isinstance(head, nn.Linear):
            return head.weight[token].float()
        like = self.outputs_TD
        return head(torch.eye(like.shape[-1], dtype=like.dtype, device=like.device))[:, token].float()


def _heads(block: Block, layer: int, mixed_HK: Tensor) -> Tensor:
    """What each head adds to the stream, H x D: its own part through the output matrix, the norm and the scale."""
    out = getattr(block.attention, "out", None)
    if not isinstance(out, nn.Module):
        raise ValueError(
            f"The attention of layer {layer}, a {type(block.attention).__name__}, has no matrix `out` behind its "
            "heads, so what each adds cannot be told apart: take by_head=False, or measure with `without` and `cut`."
        )
    parts_HD = out(torch.block_diag(*mixed_HK))
    for slot in ("post_norm", "scale", "dropout"):
        name = f"attention_{slot}"
        part = block.get_submodule(name)
        parts_HD = _centred(part, parts_HD) * _scaling(part, f"blocks.{layer}.{name}", parts_HD.sum(0))
    return parts_HD


def _centred(module: nn.Module, x: Tensor) -> Tensor:
    """What a LayerNorm does before it multiplies."""
    return x - x.mean(-1, keepdim=True) if isinstance(module, nn.LayerNorm) else x


def _scaling(module: nn.Module, slot: str, x_D: Tensor) -> Tensor:
    """The weights with which a module multiplies this input, once it is centred where the module does that.

    Raises ValueError for one that does anything else.
    """
    if isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and not module.training):
        return torch.ones_like(x_D)
    if isinstance(module, Scale):
        return module.weight_D
    if isinstance(module, nn.LayerNorm):
        scale = (x_D.float().var(correction=0) + module.eps).rsqrt()
        return scale * (module.weight if module.weight is not None else 1)
    if isinstance(module, nn.RMSNorm):
        eps = torch.finfo(x_D.dtype).eps if module.eps is None else module.eps
        scale = (x_D.float().square().mean() + eps).rsqrt()
        return scale * (module.weight if module.weight is not None else 1)
    raise ValueError(
        f"{slot} holds a {type(module).__name__}, which is no multiplication: what heads add to a logit cannot be told "
        "apart behind it. `without` and `cut` measure effects whatever the model is made of."
    )
