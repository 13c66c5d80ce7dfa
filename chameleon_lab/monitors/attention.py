"""Attention at three prices: a bound at every step, sampled query rows every few, all rows seldom or under a warning.

An attention logit is q.k / sqrt(head width), before the softmax. A row is what one query may attend to: the positions
of its own document up to itself; padding neither attends nor is attended to. Logits and shares are computed anew from
the rotated queries and keys, layer by layer as the forward pass goes on, so that the model keeps its fused attention;
through the layer's own cap and softmax, where a fix has filled these slots.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from chameleon_lab import crossovers
from chameleon_lab.monitors.watch import Moment, Readings

UNFILLED = nn.Identity()  # a slot that an attention lacks, or that no fix fills

SCORES = 2**18
"""How many attention logits are in memory at once: as many as a CPU's cache holds are two to four times faster. On a
GPU `crossovers.SCORES_FACTOR` times as many."""


@dataclass(frozen=True)
class AttentionBound:
    """`attention_logit_bound`, by layer: no logit is above max|q| max|k| / sqrt(head width). The cheapest.

    About one and a half times the largest logit is usual.
    """

    every: int = 1

    def watch(self, moment: Moment) -> Generator[None, None, Readings]:
        names = [f"blocks.{layer}.attention" for layer in range(len(moment.model.blocks))]
        outputs: dict[str, Tensor] = {}
        for name in names:
            for tap in ("query_tap", "key_tap"):
                moment.keep(f"{name}.{tap}", outputs)
        padded = not bool(moment.real_BT.all())
        yield

        def longest(x_BTHK: Tensor) -> Tensor:
            lengths_BTH = torch.linalg.vector_norm(x_BTHK, dim=-1, dtype=torch.float32)
            return (lengths_BTH[moment.real_BT] if padded else lengths_BTH).max()

        bounds = [longest(outputs[f"{name}.query_tap"]) * longest(outputs[f"{name}.key_tap"]) for name in names]
        widths_L = torch.tensor([outputs[f"{name}.key_tap"].shape[-1] for name in names], device=bounds[0].device)
        bounds_L = torch.stack(bounds) * widths_L**-0.5
        return {"attention_logit_bound": (bounds_L.max(), bounds_L)}


@dataclass(frozen=True)
class AttentionRows:
    """`max_attention_logit`, the largest, and `attention_entropy`, the lowest head's mean; both by layer and head.

    A row's entropy is divided by the log of its length: 1 where a head attends everywhere alike, 0 where to one
    position; rows of one position are not counted. Logits are those that go into a cap, where attention has one, and
    entropy is of what comes out of its cap and softmax: of shares that need not sum to 1, as those of a softmax with
    a sink, the entropy is of their proportions, and 1 where there are none.

    From `rows` queries of each row of the batch, spread over its length at random; from all of them at steps divisible
    by `exact_every`, and while an alarm stands. The largest of sampled logits is never above the exact one.
    """

    every: int = 5
    rows: int = 8
    exact_every: int = 100

    def watch(self, moment: Moment) -> Generator[None, None, Readings]:
        exact = moment.warned or moment.step % self.exact_every == 0
        places_BR, real_BR = all_places(moment) if exact else sampled_places(moment, self.rows)
        look = AttentionLook(moment, places_BR, real_BR)
        on_attention(moment, look)
        yield
        logits_LH, entropy_LH = (torch.stack(list(each.values())) for each in (look.logits, look.entropies))
        readings: dict[str, tuple[Tensor, Tensor]] = {"max_attention_logit": (logits_LH.max(), logits_LH)}
        if look.long_rows:
            readings["attention_entropy"] = (entropy_LH.min(), entropy_LH)
        return readings


def on_attention(moment: Moment, read: Callable[[int, Tensor, Tensor], None]) -> None:
    """Has `read` called with each layer's number and its rotated queries and keys, q_BTHK and k_BTHK, in order."""
    queries: list[Tensor] = []

    def read_keys(layer: int, k_BTHK: Tensor) -> None:
        read(layer, queries.pop(), k_BTHK)

    for layer in range(len(moment.model.blocks)):
        moment.on_output(f"blocks.{layer}.attention.query_tap", queries.append)
        moment.on_output(f"blocks.{layer}.attention.key_tap", partial(read_keys, layer))


def all_places(moment: Moment) -> tuple[Tensor, Tensor]:
    """Every position as a query, and which of them are real."""
    places_T = torch.arange(moment.real_BT.shape[1], device=moment.real_BT.device)
    return places_T.expand(moment.real_BT.shape), moment.real_BT


def sampled_places(moment: Moment, rows: int) -> tuple[Tensor, Tensor]:
    """One query at random from each of `rows` equal parts of the real positions of each row of the batch."""
    lengths_B1 = moment.real_BT.sum(1, keepdim=True)
    shares_BR = torch.rand((len(lengths_B1), rows), generator=moment.generator()) + torch.arange(rows)
    places_BR = (shares_BR.to(lengths_B1.device) / rows * lengths_B1).long()
    return places_BR.minimum((lengths_B1 - 1).clamp_min(0)), (lengths_B1 > 0).expand_as(places_BR)


class AttentionLook:
    """What heads make of the queries at `places_BR`, of which those are read that are `real_BR`.

    Fills `logits` and `entropies`, H values a layer. `long_rows`: number of rows with two positions or more to choose
    from; without any there is no entropy.
    """

    def __init__(self, moment: Moment, places_BR: Tensor, real_BR: Tensor) -> None:
        attentions = (moment.model.get_submodule(f"blocks.{at}.attention") for at in range(len(moment.model.blocks)))
        self._slots = [(getattr(each, "cap", UNFILLED), getattr(each, "softmax", UNFILLED)) for each in attentions]
        self.logits: dict[int, Tensor] = {}
        self.entropies: dict[int, Tensor] = {}
        self._chunks: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        rows, positions = moment.batch.inputs_BT.shape
        scores = SCORES * crossovers.SCORES_FACTOR.get(places_BR.device.type, 1)
        step = max(1, scores // (rows * positions * moment.model.config.heads))
        each_B1 = torch.arange(rows, device=places_BR.device)[:, None]
        for chunk_BR, chunk_real_BR in zip(places_BR.split(step, 1), real_BR.split(step, 1), strict=True):
            keys_S = torch.arange(int(chunk_BR.max()) + 1, device=chunk_BR.device)
            hidden_BRS = keys_S > chunk_BR[..., None]
            if (documents_BT := moment.batch.documents_BT) is not None:
                hidden_BRS |= documents_BT[each_B1, chunk_BR][..., None] != documents_BT[:, None, : len(keys_S)]
            lengths_BR = len(keys_S) - hidden_BRS.sum(-1)
            scale_BR = torch.where(chunk_real_BR & (lengths_BR > 1), 1 / lengths_BR.clamp_min(2).log(), 0)
            self._chunks.append((chunk_BR, hidden_BRS[:, None], ~chunk_real_BR[:, None], scale_BR[:, None]))
        self.long_rows = sum(int((scale_B1R > 0).sum()) for *_, scale_B1R in self._chunks)
        self._each_B1 = each_B1

    def __call__(self, layer: int, q_BTHK: Tensor, k_BTHK: Tensor) -> None:
        largest, entropy, (cap, softmax) = [], [], self._slots[layer]
        k_BHSK = k_BTHK.float().transpose(1, 2).contiguous()
        for places_BR, hidden_B1RS, padding_B1R, scale_B1R in self._chunks:
            q_BRHK = q_BTHK[self._each_B1, places_BR].float() * q_BTHK.shape[-1] ** -0.5
            q_BHRK = q_BRHK.unflatten(2, (k_BTHK.shape[2], -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)
            # R holds all heads that share a key
            logits_BHRS = q_BHRK @ k_BHSK[:, :, : hidden_B1RS.shape[-1]].mT
            logits_BHRS = logits_BHRS.unflatten(2, (-1, places_BR.shape[1])).flatten(1, 2)
            tops_BHR = logits_BHRS.masked_fill_(hidden_B1RS, -torch.inf).amax(-1)
            largest.append(tops_BHR.masked_fill(padding_B1R, -torch.inf).amax((0, 2)))
            if not isinstance(cap, nn.Identity):
                logits_BHRS = cap(logits_BHRS).masked_fill_(hidden_B1RS, -torch.inf)
            if isinstance(softmax, nn.Identity | nn.Softmax):
                logits_BHRS.sub_(cap(tops_BHR)[..., None]).clamp_min_(-80)  # where exp underflows, it is slow
                weights_BHRS = logits_BHRS.exp()
                sums_BHR = weights_BHRS.sum(-1)
                means_BHR = weights_BHRS.mul_(logits_BHRS).sum(-1) / sums_BHR
                entropy.append(((sums_BHR.log() - means_BHR) * scale_B1R).sum((0, 2)))
            else:
                entropy.append(entropy_of(softmax(logits_BHRS), scale_B1R).sum((0, 2)))
        self.logits[layer] = torch.stack(largest).amax(0)
        self.entropies[layer] = torch.stack(entropy).sum(0) / max(1, self.long_rows)


def entropy_of(shares_BHRS: Tensor, scale_B1R: Tensor) -> Tensor:
    """The entropy of each row's proportions times its scale: 0 at a scale of 0, else 1 for a row without shares."""
    sums_BHR1 = shares_BHRS.sum(-1, keepdim=True)
    parts_BHRS = shares_BHRS / sums_BHR1
    entropy_BHR = -torch.special.xlogy(parts_BHRS, parts_BHRS).sum(-1) * scale_B1R
    return torch.where(scale_B1R > 0, torch.where(sums_BHR1[..., 0] > 0, entropy_BHR, 1.0), 0.0)
