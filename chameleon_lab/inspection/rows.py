"""Where a token looked and which tokens looked at it: attention by head, through all layers, and times gradients."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chameleon_lab.inspection.likelihood import Likelihood
from chameleon_lab.inspection.rollout import SQUARE_BYTES, AttentionRollout
from chameleon_lab.inspection.trace import Through
from chameleon_lab.readings import AttentionShares
from chameleon_lab.vocabulary import Modality


class AttentionReadings(Likelihood):
    """A document with its attention, a row or a column at a time. Raw attention is not attribution: see `effects`."""

    _rollout: AttentionRollout | None = None  # made when the first one is asked for
    _making = threading.Lock()

    def attention(self, layer: int, head: int, position: int) -> np.ndarray:
        """The weights of one head over positions 0 to `position`, that are its row of the softmax: 1-D, sum 1."""
        self.require(position, layer=layer, head=head)
        return self.heads(layer, position)[head]

    def heads(self, layer: int, position: int) -> np.ndarray:
        """The rows of all heads of a layer: heads x positions 0 to `position`."""
        self.require(position, layer=layer)
        return self.weights(layer, slice(position, position + 1))[:, 0].cpu().numpy()

    def attention_scores(self, layer: int, position: int) -> np.ndarray:
        """What the softmax of each head's row is given: heads x positions 0 to `position`, capped where a fix caps."""
        self.require(position, layer=layer)
        scores_HTS = self.scores_of(layer, slice(position, position + 1))
        return scores_HTS[:, 0].cpu().numpy()

    @torch.inference_mode()
    def readers(self, layer: int, head: int, position: int) -> np.ndarray:
        """How much each token from `position` on read it, by one head: 1-D, of positions `position` to the last."""
        self.require(position, layer=layer, head=head)
        # Copied, since a slice alone would keep all the weights of its rows
        columns = [self.weights(layer, rows, head)[0, :, position].clone() for rows in self.spans(position)]
        return torch.cat(columns).cpu().numpy()

    def shares(self, layer: int, head: int, position: int) -> AttentionShares:
        """How a row of attention falls on words, patches, sinks and other special tokens."""
        row, kinds = self.attention(layer, head, position), self.modalities[: position + 1]
        vocabulary = self.tokenizer.vocabulary
        sinks = np.isin(self.tokens[: position + 1], (vocabulary.begin_document, vocabulary.begin_image))
        words, patches = (float(row[kinds == kind].sum()) for kind in (Modality.TEXT, Modality.IMAGE))
        resting = float(row[sinks].sum())
        return AttentionShares(words, patches, resting, float(row[kinds == Modality.SPECIAL].sum()) - resting)

    def rollout(self, position: int) -> np.ndarray:
        """Attention multiplied through all layers, half of each layer's weight on the stream itself: 1-D, sum 1.

        Abnar & Zuidema 2020 (arXiv 2005.00928), heads averaged. The first one asked for computes those of all positions
        (`rollout_steps`), where these are few enough to be kept.
        """
        self.require(position)
        if (rows_TT := self._all_rollouts()) is not None:
            return rows_TT[position, : position + 1].cpu().numpy()
        return self._lone_rollout(position)

    def rollout_readers(self, position: int) -> np.ndarray:
        """How much each token from `position` on drew on it through all layers: its column of all rollouts, 1-D."""
        self.require(position)
        if (rows_TT := self._all_rollouts()) is not None:
            return rows_TT[position:, position].cpu().numpy()
        return self._lone_readers(position)

    def rollout_so_far(self, position: int, readers: bool = False) -> tuple[np.ndarray, int]:
        """`rollout`, or `rollout_readers`, through the layers that `rollout_steps` has done, and how many these are at
        least: at once, while somebody else takes the steps."""
        self.require(position)
        if self._rollout is None:
            length = len(self) - position if readers else position + 1
            return np.eye(1, length, 0 if readers else position, dtype=np.float32)[0], 0
        rows, columns = slice(position, position + 1), slice(0, position + 1)
        if readers:
            rows, columns = slice(position, None), rows
        part, layers = self._rollout.so_far(rows, columns)
        return part.flatten().cpu().numpy(), layers

    def rollouts(self) -> np.ndarray:
        """`rollout` of all positions at once: positions x positions, 0 above the diagonal. Raises ValueError for a
        document of which these are too many to be kept."""
        if (rows_TT := self._all_rollouts()) is None:
            most = int((SQUARE_BYTES / 4) ** 0.5)
            raise ValueError(
                f"Rollouts of all of {len(self)} positions take too much memory; they are kept for up to {most}: ask "
                "for one position at a time, `rollout(position)`."
            )
        return rows_TT.cpu().numpy()

    def rollout_steps(self) -> Iterator[float]:
        """Computes what every `rollout` is taken from, a few rows of a layer at a time: yields how much is done, 0 to
        1. Whoever asks for a row finishes what is left. Nothing for a document too long to keep that of."""
        if 4 * len(self) ** 2 > SQUARE_BYTES:
            return
        with self._making:
            self._rollout = self._rollout or AttentionRollout(self)
        while self._rollout.share < 1:
            self._rollout.step()
            yield self._rollout.share

    def _all_rollouts(self) -> Tensor | None:
        for _ in self.rollout_steps():
            pass
        return None if self._rollout is None else self._rollout.rows_TT

    @torch.inference_mode()
    def _lone_rollout(self, position: int) -> np.ndarray:
        row_T = torch.zeros(position + 1, device=self.device)
        row_T[position] = 1
        for layer in reversed(range(self.depth[0])):
            read_T = torch.zeros_like(row_T)
            for span in self.spans(0, position + 1):
                read_T[: span.stop] += row_T[span] @ self.weights(layer, span).mean(0)
            row_T = (row_T + read_T) / 2
        return row_T.cpu().numpy()

    @torch.inference_mode()
    def _lone_readers(self, position: int) -> np.ndarray:
        column_T = torch.zeros(len(self), device=self.device)
        column_T[position] = 1
        for layer in range(self.depth[0]):
            read = [self.weights(layer, span).mean(0) @ column_T[: span.stop] for span in self.spans(position)]
            column_T[position:] = (column_T[position:] + torch.cat(read)) / 2
        return column_T[position:].cpu().numpy()

    def relevance(self, position: int) -> np.ndarray:
        """Attention times the gradient of this token's log-probability, through all layers: 1-D, of all before it.

        Of each row only what speaks for the token counts, heads averaged, and rows are multiplied through the layers
        (Chefer et al. 2021, arXiv 2103.15679). Raises ValueError for a quantised model, which has no gradients.
        """
        self.require(position, 1)
        if self.quantized:
            raise ValueError("A quantised model has no gradients: load it without `weights`, or use `without`.")
        flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        relevance_T = torch.zeros(position, device=self.device)
        relevance_T[position - 1] = 1
        try:
            self.model.requires_grad_(False)
            slope_TD = self._slope_of_stream(position)
            for layer in reversed(range(self.depth[0])):
                slope_TD, mixed_HTK = self._slopes(layer, slope_TD)
                relevance_T = relevance_T + self._read(layer, relevance_T, mixed_HTK)
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
        return relevance_T.cpu().numpy()

    @torch.inference_mode()
    def _read(self, layer: int, relevance_T: Tensor, slope_HTK: Tensor) -> Tensor:
        """What rows of weights times gradients, positive parts alone, take from each position."""
        length = len(relevance_T)
        values_HKT = self.heads_of(layer).v_HTK[:, :length].transpose(1, 2).float()
        read_T = torch.zeros_like(relevance_T)
        for span in self.spans(0, length):
            weights_HTS = self.weights(layer, span)
            slopes_HTS = slope_HTK[:, span].float() @ values_HKT[..., : span.stop]
            read_T[: span.stop] += relevance_T[span] @ (weights_HTS * slopes_HTS).clamp_min(0).mean(0)
        return read_T

    def _slope_of_stream(self, position: int) -> Tensor:
        """The gradient of the log-probability of the token at `position` by the last block's output: T x D."""
        with torch.inference_mode(False), torch.enable_grad(), self.changed():
            stream_TD = self.streams[-1][:position].clone().requires_grad_()
            logits_V = self.model.logits(self.model.norm(stream_TD[None])[:, -1])[0]
            log = logits_V.log_softmax(-1)[int(self.tokens[position])]
            return torch.autograd.grad(log, stream_TD)[0]

    def _slopes(self, layer: int, slope_TD: Tensor) -> tuple[Tensor, Tensor]:
        """From the gradient by a block's output those by its input, T x D, and by what its heads mixed, H x T x K.

        The block is run again on the stream that it had: gradients of all blocks are never held at once.
        """
        length, mixed = len(slope_TD), list[Tensor]()
        context = self.context_of(length)

        def attend(*values: Any, **parts: Any) -> Tensor:
            mixed.append(context.attend(*values, **parts))
            return mixed[0]

        with torch.inference_mode(False), torch.enable_grad(), self.changed():
            stream_1TD = self.streams[layer][None, :length].clone().requires_grad_()
            output_1TD = self.blocks[layer](stream_1TD, self.turns(length), Through(context, attend))
            by_input_1TD, by_mixed_1HTK = torch.autograd.grad(
                output_1TD, (stream_1TD, *mixed), slope_TD[None], materialize_grads=True
            )
        return by_input_1TD[0], by_mixed_1HTK[0]
