"""Attention multiplied through all layers, for every position at once."""

from __future__ import annotations

import threading
from collections import deque

import torch

from chameleon_lab.inspection.trace import Trace

SQUARE_BYTES = 2**28  # of the rows of all positions that are kept: up to 8,192 positions
COLUMNS_AT_ONCE = 1024  # of the triangle: what lies above its diagonal is not multiplied


class AttentionRollout:
    """The rollout of all positions, T x T whatever the number of layers and heads, made a few rows at a time.

    Half of each layer's weight lies on the stream itself; heads are averaged (Abnar & Zuidema 2020, arXiv 2005.00928).
    `rows_TT` is the result after the last `step`; any thread may take one, and rows through the layers done so far.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace, self._lock = trace, threading.Lock()
        self.rows_TT = torch.eye(len(trace), device=trace.device)
        # A layer takes rows from the last to the first: a row reads only those before it, which are then still as the
        # layer below has left them, so that one square does for all layers.
        spans = [*trace.spans(0)][::-1]
        self._steps = deque((layer, span) for layer in range(trace.depth[0]) for span in spans)
        self._count, self._spans = len(self._steps), len(spans)

    @property
    def share(self) -> float:
        """How much is done: 0 to 1."""
        return 1 - len(self._steps) / self._count

    def so_far(self, rows: slice, columns: slice) -> tuple[torch.Tensor, int]:
        """A copy of some rows, and through how many layers they go at least."""
        with self._lock:
            return self.rows_TT[rows, columns].clone(), (self._count - len(self._steps)) // self._spans

    @torch.inference_mode()
    def step(self) -> None:
        """Does some rows of a layer; nothing where all is done."""
        with self._lock:
            if not self._steps:
                return
            layer, span = self._steps[0]
            below_TT = self.rows_TT[: span.stop, : span.stop]
            weights_TS = self._trace.weights(layer, span).mean(0)
            read_TS = weights_TS  # below the first layer, each row is its position
            if layer:
                starts = range(0, span.stop, COLUMNS_AT_ONCE)
                read_TS = torch.cat(
                    [weights_TS[:, at:] @ below_TT[at:, at : at + COLUMNS_AT_ONCE] for at in starts], dim=1
                )
            below_TT[span] = (below_TT[span] + read_TS) / 2
            self._steps.popleft()
