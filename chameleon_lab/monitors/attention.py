"""Attention at three prices: a bound at every step, sampled query rows every few, all rows seldom or under a warning.

An attention logit is q.k / sqrt(head width), before the softmax. A row is what one query sees: the positions of its
own document up to itself; padding neither asks nor is seen. What heads look at is made again from the rotated queries
and keys, layer by layer as the forward pass comes by, so that the model keeps its fused attention.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from chameleon_lab.monitors.watch import Moment, Readings
from chameleon_lab.transformer import Attention

SCORES = 2**18
"""How many attention logits are held at once: what a CPU keeps in its cache makes them two to four times faster."""


@dataclass(frozen=True)
class AttentionBound:
    """`attention_logit_bound`, by layer: no logit is above max|q| max|k| / sqrt(head width). The cheapest.

    About one and a half times the largest logit is usual.
    """

    every: int = 1

    def watch(self, moment: Moment) -> Generator[None, None, Readings]:
        names = [f"blocks.{layer}.attention" for layer in range(len(moment.model.blocks))]
        seen: dict[str, Tensor] = {}
        for name in names:
            for which in ("query_tap", "key_tap"):
                moment.keep(f"{name}.{which}", seen)
        padded = not bool(moment.real_BT.all())
        yield

        def longest(x_BTHK: Tensor) -> Tensor:
            lengths_BTH = torch.linalg.vector_norm(x_BTHK, dim=-1, dtype=torch.float32)
            return (lengths_BTH[moment.real_BT] if padded else lengths_BTH).max()

        bounds = [longest(seen[f"{name}.query_tap"]) * longest(seen[f"{name}.key_tap"]) for name in names]
        bounds_L = torch.stack(bounds) * moment.model.config.head_width**-0.5
        return {"attention_logit_bound": (bounds_L.max(), bounds_L)}


@dataclass(frozen=True)
class AttentionRows:
    """`max_attention_logit`, the largest, and `attention_entropy`, the lowest head's mean; both by layer and head.

    A row's entropy is divided by the log of its length: 1 where a head looks everywhere alike, 0 where at one position;
    rows of one position are not counted. Where attention has a cap, logits are those that go into it and entropy is of
    what comes out.

    From `rows` queries of each row of the batch, spread over its length at random; from all of them at steps divisible
    by `exact_every`, and while an alarm stands. The largest of sampled logits is never above the exact one.
    """

    every: int = 5
    rows: int = 8
    exact_every: int = 100

    def watch(self, moment: Moment) -> Generator[None, None, Readings]:
        exact = moment.warned or moment.step % self.exact_every == 0
        places_BR, asked_BR = all_places(moment) if exact else sampled_places(moment, self.rows)
        look = AttentionLook(moment, places_BR, asked_BR)
        on_attention(moment, look)
        yield
        logits_LH, entropy_LH = (torch.stack(list(each.values())) for each in (look.logits, look.entropies))
        readings: dict[str, tuple[Tensor, Tensor]] = {"max_attention_logit": (logits_LH.max(), logits_LH)}
        if look.long_rows:
            readings["attention_entropy"] = (entropy_LH.min(), entropy_LH)
        return readings


def on_attention(moment: Moment, see: Callable[[Attention, Tensor, Tensor], None]) -> None:
    """Has `see` called with each layer's attention and its rotated queries and keys, q_BTHK and k_BTHK, in order."""
    waiting: list[Tensor] = []

    def see_key(attention: Attention, k_BTHK: Tensor) -> None:
        see(attention, waiting.pop(), k_BTHK)

    for layer in range(len(moment.model.blocks)):
        # One that a fix has put there has what is asked of it here: see `transformer.PART_CONTRACTS`.
        attention = cast(Attention, moment.model.get_submodule(name := f"blocks.{layer}.attention"))
        moment.on_output(f"{name}.query_tap", waiting.append)
        moment.on_output(f"{name}.key_tap", partial(see_key, attention))


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
    """What heads make of the queries at `places_BR`, where these are `asked_BR`.

    Fills `logits` and `entropies`, H values a layer. `long_rows`: how many rows had two positions or more
    to choose from; without any there is no entropy.
    """

    def __init__(self, moment: Moment, places_BR: Tensor, asked_BR: Tensor) -> None:
        self.logits: dict[int, Tensor] = {}
        self.entropies: dict[int, Tensor] = {}
        self._chunks: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        rows, positions = moment.batch.inputs_BT.shape
        step = max(1, SCORES // (rows * positions * moment.model.config.heads))
        each_B1 = torch.arange(rows, device=places_BR.device)[:, None]
        for chunk_BR, real_BR in zip(places_BR.split(step, 1), asked_BR.split(step, 1), strict=True):
            seen_S = torch.arange(int(chunk_BR.max()) + 1, device=chunk_BR.device)
            hidden_BRS = seen_S > chunk_BR[..., None]
            if (documents_BT := moment.batch.documents_BT) is not None:
                hidden_BRS |= documents_BT[each_B1, chunk_BR][..., None] != documents_BT[:, None, : len(seen_S)]
            lengths_BR = len(seen_S) - hidden_BRS.sum(-1)
            counted_BR = real_BR & (lengths_BR > 1)
            shares_BR = torch.where(counted_BR, 1 / lengths_BR.clamp_min(2).log(), 0)
            self._chunks.append((chunk_BR, hidden_BRS[:, None], ~real_BR[:, None], shares_BR[:, None]))
        self.long_rows = sum(int((shares_B1R > 0).sum()) for *_, shares_B1R in self._chunks)
        self._each_B1 = each_B1

    def __call__(self, attention: Attention, q_BTHK: Tensor, k_BTHK: Tensor) -> None:
        largest, entropy, cap = [], [], attention.cap
        k_BHSK = k_BTHK.float().transpose(1, 2).contiguous()
        for places_BR, hidden_B1RS, unasked_B1R, shares_B1R in self._chunks:
            q_BRHK = q_BTHK[self._each_B1, places_BR].float() * attention.head_width**-0.5
            q_BHRK = q_BRHK.unflatten(2, (attention.kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)
            # R holds all heads that share a key
            logits_BHRS = q_BHRK @ k_BHSK[:, :, : hidden_B1RS.shape[-1]].mT
            logits_BHRS = logits_BHRS.unflatten(2, (-1, places_BR.shape[1])).flatten(1, 2)
            tops_BHR = logits_BHRS.masked_fill_(hidden_B1RS, -torch.inf).amax(-1)
            largest.append(tops_BHR.masked_fill(unasked_B1R, -torch.inf).amax((0, 2)))
            if not isinstance(cap, nn.Identity):
                logits_BHRS = cap(logits_BHRS).masked_fill_(hidden_B1RS, -torch.inf)
            if not isinstance(attention.softmax, nn.Softmax):  # shares may be zero, and sum to less than one
                shares_BHRS = attention.softmax(logits_BHRS)
                entropies_BHR = -(shares_BHRS * shares_BHRS.clamp_min(1e-30).log()).sum(-1)
                entropy.append((entropies_BHR * shares_B1R).sum((0, 2)))
                continue
            logits_BHRS.sub_(cap(tops_BHR)[..., None]).clamp_min_(-80)  # where exp underflows, it is slow
            weights_BHRS = logits_BHRS.exp()
            sums_BHR = weights_BHRS.sum(-1)
            means_BHR = weights_BHRS.mul_(logits_BHRS).sum(-1) / sums_BHR
            entropy.append(((sums_BHR.log() - means_BHR) * shares_B1R).sum((0, 2)))
        self.logits[attention.layer] = torch.stack(largest).amax(0)
        self.entropies[attention.layer] = torch.stack(entropy).sum(0) / max(1, self.long_rows)
