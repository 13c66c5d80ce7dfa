"""What changes when something is taken away or put in place of another: the measurements that attention is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chameleon_lab.attention import attention_to_earlier
from chameleon_lab.inspection.likelihood import Likelihood, likeliest
from chameleon_lab.inspection.trace import LOGITS_AT_ONCE, Through, as_index
from chameleon_lab.transformer import Context

EDGES_AT_ONCE = 2**22  # edges of all knock-outs in one forward pass

Group = int | Sequence[int] | np.ndarray
"""A position, or several that are knocked out together."""


class Effects(Likelihood):
    """A document under knock-outs and patches. Changes are in nats of log-probability: below 0, it became less likely.

    A token that is knocked out is one that no other can see; it still sees itself, and those before it.
    """

    def without(self, position: Group, of: int) -> float:
        """The change of the log-probability of the token at `of` when no other token can see `position`, or any of
        several positions."""
        return float(self.effects(of, [position])[0])

    def effects(self, of: int, positions: Sequence[Group] | np.ndarray | None = None) -> np.ndarray:
        """`without` for several positions, or groups of them (each before `of` unless given), in batches: 1-D."""
        self.require(of, 1)
        groups = [self.group(each) for each in (range(of) if positions is None else positions)]
        changes_G, step = np.empty(len(groups)), self._rows_at_once(of)
        for start in range(0, len(groups), step):
            hidden_GTT = _hidden_columns(groups[start : start + step], of, self.device)
            changes_G[start : start + step] = self._log_probabilities(hidden_GTT[:, None], of)[:, -1]
        return changes_G - self.log_probabilities[of]

    def knock_outs(self, positions: Sequence[Group] | np.ndarray) -> np.ndarray:
        """What knocking out each position, or each group of them, does to every token: groups x positions, nan first.

        One forward pass a batch of groups, however many tokens are asked about.
        """
        groups, length = [self.group(each) for each in positions], len(self)
        changes_GT = np.full((len(groups), length), np.nan)
        if length > 1:
            step = self._rows_at_once(length)
            for start in range(0, len(groups), step):
                hidden_GTT = _hidden_columns(groups[start : start + step], length - 1, self.device)
                logs_GT = self._log_probabilities(hidden_GTT[:, None], length - 1, every=True)
                changes_GT[start : start + step, 1:] = logs_GT - self.log_probabilities[1:]
        return changes_GT

    def knock_out(self, positions: Sequence[int]) -> np.ndarray:
        """The change of every token's log-probability, in nats, when no other token can see any of `positions`: 1-D,
        one number a position of the document, 0 before the first of them and nan for the first token."""
        changes_T = self.knock_outs([positions])[0]
        changes_T[1 : min(positions, default=len(self)) + 1] = 0.0  # what comes before cannot change
        return changes_T

    @torch.inference_mode()
    def alternatives(self, position: int, k: int = 5, without: Sequence[int] = ()) -> list[tuple[int, float]]:
        """(token, probability) of the `k` likeliest tokens at a position, given all before it, likeliest first.

        `without`: positions that no other token can see, as in `knock_out`.
        """
        if not len(without):
            return super().alternatives(position, k)
        self.require(position, 1)
        hidden_1TT = _hidden_columns([self.group(without)], position, self.device)
        edges = without_edges(self.context_of(position), self.hidden(length=position), hidden_1TT[:, None])
        with self.changed():
            outputs_TD = self.model.trunk(self.tokens_1T[:, :position], edges)[0]
        return likeliest(self.model.logits(outputs_TD[-1:])[0].softmax(-1), k)

    def cut(self, layer: int, head: int, source: Group, target: int, of: int) -> float:
        """The change of the log-probability of the token at `of` when edges of one head are cut: at `layer`, `head` no
        longer lets the token at `target` see the one at `source`, or any of several."""
        self.require(target, layer=layer, head=head)
        self.require(of, 1)
        sources = self.group(source)
        if not (len(sources) and sources.max() < target < of):
            raise ValueError(
                f"An edge goes from an earlier token to a later one before {of}; not {source} to {target}."
            )
        hidden_1HTT = torch.zeros((1, self.depth[1], of, of), dtype=torch.bool, device=self.device)
        hidden_1HTT[0, head, target, torch.as_tensor(sources)] = True
        return float(self._log_probabilities(hidden_1HTT, of, layer)[0, -1] - self.log_probabilities[of])

    @torch.inference_mode()
    def patching(
        self, other: Likelihood, of: int, *, token: int | None = None, places: Mapping[int, int] | None = None
    ) -> np.ndarray:
        """Activation patching: layers x places, the change of a token's log-probability at `of` when the stream after
        that layer, at that place alone, is the one of `other`.

        The token is the one that stands at `of`, unless given. `places[here] = there` says which positions take from
        which of the other document; by default all before `of`, from the same ones. Raises ValueError for places that
        either document lacks, and for a document in a model of other layers or another width.
        """
        self.require(of, 1)
        if (theirs := other.stream_shape) != self.stream_shape:
            raise ValueError(
                f"The other document's stream, (layers, width) = {theirs}, does not fit into one of "
                f"{self.stream_shape}."
            )
        token = int(self.tokens[of]) if token is None else int(self.tokenizer.vocabulary.check([token])[0])
        places = {here: here for here in range(of)} if places is None else dict(places)
        for here, there in places.items():
            if not 0 <= as_index(here, "place") < of or not 0 <= as_index(there, "place") < len(other):
                raise ValueError(
                    f"A place goes from 0..{of - 1} here to 0..{len(other) - 1} of the other document, not from {here} "
                    f"to {there}: say which positions go together, places={{here: there}}."
                )
        pairs_P2 = torch.tensor([*places.items()], dtype=torch.long, device=self.device).view(-1, 2)
        changes_LP = np.empty((self.depth[0], len(places)))
        before = self.model.logits(self.outputs_TD[of - 1]).log_softmax(-1)[token].item()
        turns, context, step = self.turns(of), self.context_of(of), self._rows_at_once(of)
        for layer in range(self.depth[0]):
            for start in range(0, len(places), step):
                heres_P, theres_P = pairs_P2[start : start + step].T
                x_PTD = self.streams[layer + 1][:of].repeat(len(heres_P), 1, 1)
                x_PTD[torch.arange(len(heres_P)), heres_P] = other.streams[layer + 1][theres_P].to(x_PTD)
                with self.changed():
                    for block in self.blocks[layer + 1 :]:
                        x_PTD = block(x_PTD, turns, context)
                    logs_PV = self.model.logits(self.model.norm(x_PTD[:, -1])).log_softmax(-1)
                changes_LP[layer, start : start + step] = logs_PV[:, token].double().cpu().numpy() - before
        return changes_LP

    def group(self, positions: Group) -> np.ndarray:
        """One position or several as an array. Raises ValueError for one that is not there or no integer."""
        array = np.atleast_1d(np.asarray(positions))
        if array.size and array.dtype.kind not in "iu":  # 2.7 is no position, and a mask of truth values not several
            raise ValueError(f"Positions are integers, not {str(positions)[:60]} of {array.dtype}.")
        array = array.astype(np.int64)
        for position in array.tolist():
            self.require(position)
        return array

    def _rows_at_once(self, length: int) -> int:
        return max(1, EDGES_AT_ONCE // length**2)

    @torch.inference_mode()
    def _log_probabilities(
        self, hidden_GHTT: Tensor, length: int, layer: int | None = None, *, every: bool = False
    ) -> np.ndarray:
        """Under each row of hidden edges, of the token behind the first `length`, or of every token behind one of them:
        rows x 1 or x `length`, float64."""
        edges = without_edges(self.context_of(length), self.hidden(length=length), hidden_GHTT, layer)
        with self.changed():
            outputs_GTD = self.model.trunk(self.tokens_1T[:, :length].expand(len(hidden_GHTT), -1), edges)
        first = 0 if every else length - 1
        own_T1 = self.tokens_1T[0, first + 1 : length + 1, None]

        def logs() -> Iterator[np.ndarray]:
            for outputs_TD in outputs_GTD[:, first:]:
                parts = zip(outputs_TD.split(LOGITS_AT_ONCE), own_T1.split(LOGITS_AT_ONCE), strict=True)
                logs = [self.model.logits(some_TD).log_softmax(-1).gather(-1, own)[:, 0] for some_TD, own in parts]
                yield torch.cat(logs).double().cpu().numpy()

        return np.stack(list(logs()))


def without_edges(context: Context, beyond_TT: Tensor, hidden_GHTT: Tensor, layer: int | None = None) -> Context:
    """A context in which some edges are cut, in one layer or in all: where `hidden` (rows, 1 or heads, T, T) is true a
    query may not look. `beyond` is what it cannot see anyway."""
    plain_TT = torch.zeros(beyond_TT.shape, device=beyond_TT.device).masked_fill_(beyond_TT, -torch.inf)
    mask_GHTT = plain_TT.masked_fill(hidden_GHTT, -torch.inf)

    def attend(at: int, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, *parts: Any, **others: Any) -> Tensor:
        mask = mask_GHTT if layer is None or at == layer else plain_TT
        return attention_to_earlier(q_BHTK, k_BHTK, v_BHTK, mask, *parts, **others)

    return Through(context, attend)


def _hidden_columns(groups: Sequence[np.ndarray], length: int, device: torch.device) -> Tensor:
    """Edges to each group of positions, but for those of a token to itself: without one it would be no number."""
    hidden_GTT = torch.zeros((len(groups), length, length), dtype=torch.bool, device=device)
    for hidden_TT, group in zip(hidden_GTT, groups, strict=True):
        columns = torch.as_tensor(group[group < length])
        hidden_TT[:, columns] = True
        hidden_TT[columns, columns] = False
    return hidden_GTT
