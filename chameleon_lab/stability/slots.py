"""Fixes that change the model: `install(model)` fills slots when it is built. What a fix may need for it, too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab.by_modality import ByModality, ModalityOf, dense_names
from chameleon_lab.transformer import Attention, Block, Fix, ModelConfig, Transformer
from chameleon_lab.vocabulary import Vocabulary

BRANCHES = ("attention", "ffn")


@dataclass(frozen=True)
class QueryKeyNorm:
    """LayerNorm of queries and keys before rotation, weight and bias of the head's width, shared by a group of heads.

    Heads are in `groups` equal groups, and never in more than there are: 1 is one norm for all, as in Chameleon-7B,
    4 is Chameleon-34B's (each of its four shards had its own), and as many as query heads is one for each.

    Slot: `query_norm` and `key_norm` of each attention.
    Source: as in the released Chameleon (arXiv 2405.09818, section 2.3); arXiv 2302.05442, arXiv 2309.14322.
    Trial: one seed, an extreme learning-rate ramp: last loss 2.83, and noisy (2.45 in training over the last 20 steps);
    without any fix 3.92, with the RMS form 2.30.
    """

    eps: float = 1e-5
    groups: int = 1

    def install(self, model: Transformer) -> None:
        for attention in attentions(model):
            for slot, heads in (("query_norm", attention.heads), ("key_norm", attention.kv_heads)):
                groups, width = min(self.groups, heads), attention.head_width
                norm = nn.LayerNorm(width, self.eps) if groups == 1 else GroupedNorm(heads, groups, width, self.eps)
                model.fill(attention, slot, norm, self)


@dataclass(frozen=True)
class QueryKeyRMSNorm:
    """RMSNorm of queries and keys before rotation, weight of the head's width.

    Slot: `query_norm` and `key_norm` of each attention.
    Source: the form of OLMo 2 (arXiv 2501.00656) and Gemma 3; Chameleon's own is `QueryKeyNorm`.
    Trial: three seeds, an extreme learning-rate ramp: last loss 2.28 to 2.43, without any fix 3.92 to 4.43.
    """

    eps: float = 1e-5

    def install(self, model: Transformer) -> None:
        for attention in attentions(model):
            for slot in ("query_norm", "key_norm"):
                model.fill(attention, slot, nn.RMSNorm(attention.head_width, self.eps), self)


@dataclass(frozen=True)
class NormReordering:
    """Norms after each branch instead of before: what a branch adds is bounded by its norm's weight.

    Slot: `post_norm` and `pre_norm` of both branches of each block.
    Source: Chameleon-34B (arXiv 2405.09818, section 2.3); Swin v2 (arXiv 2111.09883).
    Trial: one seed, an extreme learning-rate ramp: last loss 2.60 alone, with the residual small (RMS 15) but attention
    logits up to 3.9e5; it wants a query/key norm beside it (with one and a z-loss, three seeds: 2.01 to 2.10).
    """

    def install(self, model: Transformer) -> None:
        for block in blocks(model):
            for branch in BRANCHES:
                model.fill(block, f"{branch}_post_norm", rms_norm(model.config), self)
                model.fill(block, f"{branch}_pre_norm", nn.Identity(), self)


@dataclass(frozen=True)
class Sandwich:
    """Norms before and after each branch.

    Slot: `pre_norm` and `post_norm` of both branches of each block.
    Source: CogView, there against overflow in a model of text and image tokens (arXiv 2105.13290); Gemma 3.
    Trial: one seed, an extreme learning-rate ramp: last loss 1.96 with a query/key norm, the best of all that were
    tried; without any fix 3.92.
    """

    def install(self, model: Transformer) -> None:
        for block in blocks(model):
            for branch in BRANCHES:
                model.fill(block, f"{branch}_pre_norm", rms_norm(model.config), self)
                model.fill(block, f"{branch}_post_norm", rms_norm(model.config), self)


@dataclass(frozen=True)
class LayerScale:
    """Each branch times a learned weight a channel that starts small, so that blocks join in as they learn to.

    Slot: `scale` of both branches of each block, after a post-norm and before dropout.
    Source: CaiT (arXiv 2103.17239): 0.1 to depth 18, 1e-5 at 24, 1e-6 beyond; from zero in arXiv 2304.13013.
    Trial: one seed, an extreme learning-rate ramp: last loss 4.22 from 0.1, without any fix 3.92: no help there.
    """

    start: float = 0.1

    def install(self, model: Transformer) -> None:
        for block in blocks(model):
            for branch in BRANCHES:
                model.fill(block, f"{branch}_scale", Scale(model.config.width, self.start), self)


@dataclass(frozen=True)
class Dropout:
    """Dropout of each branch before it joins the residual stream. The rate can change in a running model: `module.p`.

    Slot: `dropout` of both branches of each block.
    Source: arXiv 2405.09818, section 2.3: 0.1 for Chameleon-7B, none for 34B, where it went ill with the re-ordering.
    Trial: one seed each, an extreme learning-rate ramp: last loss 4.19 alone (without any fix 3.92) and 2.26 with a
    query/key norm (which alone gave 2.30): no effect.
    """

    rate: float = 0.1

    def install(self, model: Transformer) -> None:
        for block in blocks(model):
            for branch in BRANCHES:
                model.fill(block, f"{branch}_dropout", nn.Dropout(self.rate), self)


@dataclass(frozen=True)
class EmbeddingNorm:
    """LayerNorm of what the embedding gives, before the first block.

    Slot: `embedding_norm` of the model.
    Source: the stable embedding of arXiv 2110.02861; BLOOM (arXiv 2211.05100).
    Trial: one seed, the lab's `STRESS_RAMP`: last loss 5.72, without any fix 4.94 (in training, over the last 20 steps,
    4.77 and 5.35): no help there. BLOOM's authors found that it steadies training and costs a little of the result.
    """

    eps: float = 1e-5

    def install(self, model: Transformer) -> None:
        model.fill(model, "embedding_norm", nn.LayerNorm(model.config.width, self.eps), self)


@dataclass(frozen=True)
class AttentionSoftCap:
    """Attention's logits through cap * tanh(logit / cap). Takes the place of the fused kernel, and so costs speed.

    Slot: `cap` of each attention.
    Source: Gemma 2 (arXiv 2408.00118), 50; Gemma 3 has a query/key norm in its stead.
    Trial: one seed, an extreme learning-rate ramp: last loss 2.74, without any fix 3.92; what goes into the cap still
    reached 5e4, and that is what a monitor of queries and keys shows.
    """

    cap: float = 50.0

    def install(self, model: Transformer) -> None:
        for attention in attentions(model):
            model.fill(attention, "cap", SoftCap(self.cap), self)


@dataclass(frozen=True)
class AttentionSink:
    """A learned logit a head beside those of the keys, with no value: a head that finds nothing may look nowhere.

    Takes the place of the fused kernel, and so costs speed.

    Slot: `softmax` of each attention.
    Source: gpt-oss (arXiv 2508.10925); at 0 and not learned it is softmax-one (arXiv 2309.17453, appendix).
    Trial: not measured in this lab.
    """

    start: float = 0.0

    def install(self, model: Transformer) -> None:
        for attention in attentions(model):
            model.fill(attention, "softmax", SinkSoftmax(attention.heads, self.start), self)


@dataclass(frozen=True)
class Softpick:
    """Attention's shares are relu(e^logit - 1) over the sum of |e^logit - 1|: exact zeros, sums below 1, no sinks.

    Takes the place of the fused kernel, and so costs speed.

    Slot: `softmax` of each attention.
    Source: arXiv 2504.20966.
    Trial: not measured in this lab.
    """

    eps: float = 1e-6

    def install(self, model: Transformer) -> None:
        for attention in attentions(model):
            model.fill(attention, "softmax", RectifiedSoftmax(self.eps), self)


@dataclass(frozen=True)
class OutputSoftCap:
    """The head's logits through cap * tanh(logit / cap).

    Slot: `cap` of the model.
    Source: Gemma 2 (arXiv 2408.00118), 30.
    Trial: one seed, the lab's `STRESS_RAMP`: last loss 4.87, without any fix 4.94: no effect there.
    """

    cap: float = 30.0

    def install(self, model: Transformer) -> None:
        model.fill(model, "cap", SoftCap(self.cap), self)


@dataclass(frozen=True)
class SigmaReparam:
    """Each matrix of a block divided by its greatest singular value, times a learned scalar that starts at 1.

    Query, key, value, gate and up are matrices of their own in this. Embedding and head are left as they are.

    Slot: `qkv` and `out` of each attention, `gate_up` and `down` of each feed-forward.
    Source: arXiv 2303.06296, section 3, against the collapse of attention's entropy: W becomes gamma / sigma(W) W;
    gamma is one number a matrix and starts at 1, and one power iteration a step follows sigma. So a matrix begins with
    a greatest singular value of 1, whatever its weights were drawn with. Here 50 iterations come before the first step.
    Trial: one seed, an extreme learning-rate ramp: last loss 2.11, without any fix 3.92, with attention logits up to
    273.
    """

    iterations: int = 1

    def install(self, model: Transformer) -> None:
        for block in blocks(model):
            attention, ffn = block.attention, block.feed_forward
            keys = attention.kv_heads * attention.head_width
            queries = attention.heads * attention.head_width
            for owner, slot, rows in (
                (attention, "qkv", (queries, keys, keys)),
                (attention, "out", (model.config.width,)),
                (ffn, "gate_up", (model.config.ffn_width, model.config.ffn_width)),
                (ffn, "down", (model.config.width,)),
            ):
                if slot not in dict(owner.named_children()):
                    fix = next(model.filled.get(path) for path, part in model.named_modules() if part is owner)
                    raise ValueError(
                        f"{self} divides the matrix {slot}, which a {type(owner).__name__} has not: keep one of {self} "
                        f"and {fix}."
                    )
                model.fill(owner, slot, Spectral(getattr(owner, slot).weight, rows, self.iterations), self)


@dataclass(frozen=True)
class MixtureOfTransformers:
    """Matrices and norms of the blocks of their own for text and for image codes, with one attention over both.

    `attention`: the projections to queries, keys, values and back, and the norms of queries and keys. `feed_forward`,
    `norms` (and scales): of each block. Embedding, last norm and head are shared. Special tokens go with text. Both
    towers begin as copies of what the slots hold, whatever fixes put it there: the first step is the dense model's,
    from scratch or from its weights (`warm_start`, or a run's `fork`). `Recipe.text_rate` and `image_rate` are their
    learning rates. Parameters are about twice as many, those that one token meets as many as before.

    `first_image`, `codes`: which tokens are image codes; an experiment fills them in from its data.

    Slot: `modality` of the model; it wraps `qkv`, `out`, `query_norm`, `key_norm`, `feed_forward`, `..._norm` and
    `..._scale` of each block.
    Source: arXiv 2411.04996, section 2.2, where each tower has feed-forwards, attention's projections and norms.
    Trial: see "Is it the mix of modalities?" in docs/stability.md.
    """

    attention: bool = True
    feed_forward: bool = True
    norms: bool = True
    first_image: int | None = None
    codes: int | None = None
    wraps: ClassVar[bool] = True

    def for_vocabulary(self, vocabulary: Vocabulary) -> MixtureOfTransformers:
        """The same with the image codes of a vocabulary, where it does not say them itself."""
        if self.codes is not None:
            return self
        return replace(self, first_image=vocabulary.first_image, codes=vocabulary.codes)

    def install(self, model: Transformer) -> None:
        modality = ModalityOf(self.first_image, self.codes)
        model.fill(model, "modality", modality, self)
        for block in blocks(model):
            for owner, slots in self._slots(block):
                for slot in slots:
                    if not isinstance(part := owner.get_submodule(slot), nn.Identity):
                        model.wrap(owner, slot, ByModality(part, modality), self)

    def _slots(self, block: Block) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
        if self.attention:
            yield block.attention, ("qkv", "out", "query_norm", "key_norm")
        if self.feed_forward:
            yield block, ("feed_forward",)
        if self.norms:
            yield block, tuple(f"{branch}_{part}" for branch in BRANCHES for part in ("pre_norm", "post_norm", "scale"))


def warm_start(dense: Transformer, *fixes: Fix) -> Transformer:
    """The same model with further fixes, its weights those of `dense`; a tower begins as the part that it is made of.

    What only the new fixes have begins as they make it. Raises ValueError where fixes want one slot.
    """
    config = replace(dense.config, fixes=(*dense.config.fixes, *fixes))
    like = dense.embedding.weight
    model = Transformer(config).to(like.device, like.dtype).train(dense.training)
    names, saved, own = dense_names(model), dense.state_dict(), model.state_dict()
    sources = {name: saved.get(name, saved.get(names.get(name, name))) for name in own}
    fitting = {name: value for name, value in sources.items() if value is not None and value.shape == own[name].shape}
    model.load_state_dict(fitting, strict=False)
    return model


class Scale(nn.Module):
    """A learned weight for each channel."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.weight_D = nn.Parameter(torch.full((width,), start))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.weight_D

    def extra_repr(self) -> str:
        return str(len(self.weight_D))


class GroupedNorm(nn.Module):
    """LayerNorm of each head, with a weight and a bias for each of `groups` equal groups of heads.

    Raises ValueError where the heads do not make so many equal groups.
    """

    roles: ClassVar = {"weight": "gain", "bias": "gain"}

    def __init__(self, heads: int, groups: int, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        if groups < 1 or heads % groups:
            raise ValueError(f"{heads} heads do not make {groups} equal groups with a norm each.")
        self.heads, self.groups, self.eps = heads, groups, eps
        self.weight = nn.Parameter(torch.ones(groups, width))
        self.bias = nn.Parameter(torch.zeros(groups, width))

    def forward(self, x_BTHK: Tensor) -> Tensor:
        normed_BTHK = F.layer_norm(x_BTHK, x_BTHK.shape[-1:], eps=self.eps)
        each = self.heads // self.groups
        weight_HK, bias_HK = (part.repeat_interleave(each, dim=0) for part in (self.weight, self.bias))
        return normed_BTHK * weight_HK + bias_HK

    def extra_repr(self) -> str:
        return f"{self.groups} groups of {self.heads // self.groups} heads of {self.weight.shape[1]}"


class SoftCap(nn.Module):
    """Numbers bent smoothly to within `cap` of 0; small ones stay as they are. Raises ValueError for a cap of 0."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        if not cap > 0:
            raise ValueError(f"A soft-cap must be above 0, not {cap}.")
        self.cap = cap

    def forward(self, logits: Tensor) -> Tensor:
        return self.cap * torch.tanh(logits / self.cap)

    def extra_repr(self) -> str:
        return f"{self.cap:g}"


class SinkSoftmax(nn.Module):
    """The softmax over the keys and one more logit for each head, whose share is left out: sums below 1."""

    def __init__(self, heads: int, start: float) -> None:
        super().__init__()
        self.logit_H = nn.Parameter(torch.full((heads,), start))

    def forward(self, logits_BHTS: Tensor) -> Tensor:
        sink_BHT1 = self.logit_H.to(logits_BHTS.dtype)[:, None, None].expand(*logits_BHTS.shape[:-1], 1)
        return torch.cat((logits_BHTS, sink_BHT1), -1).softmax(-1)[..., :-1]

    def extra_repr(self) -> str:
        return str(len(self.logit_H))


class RectifiedSoftmax(nn.Module):
    """relu(e^logit - 1) over the sum of |e^logit - 1| and `eps`; hidden positions, of logit -inf, count for nothing."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, logits_BHTS: Tensor) -> Tensor:
        x = logits_BHTS.float()
        most = x.amax(-1, keepdim=True).clamp_min(0)  # all times e^-most, so that nothing overflows
        less = torch.where(x.isneginf(), 0, torch.exp(x - most) - torch.exp(-most))
        return (less.relu() / (less.abs().sum(-1, keepdim=True) + self.eps * torch.exp(-most))).to(logits_BHTS.dtype)

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}"


class Spectral(nn.Module):
    """A matrix in `parts` of so many rows, each divided by its greatest singular value and times a learned scalar.

    The singular vectors are followed by power iteration, `iterations` a forward pass in training (torch's
    `spectral_norm` does it so, too).
    """

    roles: ClassVar = {"weight": "matrix"}

    def __init__(self, weight: nn.Parameter, parts: tuple[int, ...], iterations: int = 1) -> None:
        super().__init__()
        self.parts, self.iterations = parts, iterations
        self.weight = weight
        self.scalar_P = nn.Parameter(torch.ones(len(parts)))
        self.register_buffer("right_PD", torch.ones(len(parts), weight.shape[1]))
        self.right_PD: Tensor
        if not weight.is_meta:  # there is nothing to follow yet: the vectors will be loaded with the matrix
            self.follow(50)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.training:
            self.follow(self.iterations)
        scale_P = self.scalar_P / self.greatest_P()
        return F.linear(x_BTD, self.weight) * self._rowwise(scale_P).to(x_BTD.dtype)

    @torch.no_grad()
    def follow(self, iterations: int) -> None:
        right_PD = self.right_PD.float()
        with torch.autocast(self.weight.device.type, enabled=False):
            for _ in range(iterations):
                turned = [part.T @ (part @ v_D) for part, v_D in zip(self._matrices(), right_PD, strict=True)]
                right_PD = F.normalize(torch.stack(turned), dim=-1)
        self.right_PD = right_PD.to(self.right_PD.dtype)

    def greatest_P(self) -> Tensor:
        """The greatest singular value of each part: the length of what the right singular vector becomes."""
        with torch.autocast(self.weight.device.type, enabled=False):
            right_PD = F.normalize(self.right_PD.float(), dim=-1)
            turned = [part @ v_D for part, v_D in zip(self._matrices(), right_PD, strict=True)]
            return torch.stack([row.norm() for row in turned]).clamp_min(1e-12)

    def _matrices(self) -> tuple[Tensor, ...]:
        return self.weight.float().split(self.parts)

    def _rowwise(self, x_P: Tensor) -> Tensor:
        return torch.cat([x.expand(rows) for x, rows in zip(x_P, self.parts, strict=True)])

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} to {' + '.join(map(str, self.parts))}"


def attentions(model: Transformer) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


def blocks(model: Transformer) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]


def rms_norm(config: ModelConfig) -> nn.RMSNorm:
    return nn.RMSNorm(config.width, config.norm_eps)
