"""Changes under which a model is looked at, or writes: steering, activation patching, heads without a voice.

Each is a function of a submodule's output, by the submodule's name: `lab.inspect(document, changes=...)`, or
`with taps.change(lab.model, ...): lab.generate(document)`. While a document is inspected, positions count from its
begin. While a reply is written the model runs a prompt at once and then one token at a time: change all positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

Changed = Callable[[Tensor], Tensor]


def add(direction_D: Tensor | np.ndarray, positions: slice = slice(None)) -> Changed:
    """Steering: a direction added to a stream at some positions. `{"blocks.3": add(direction)}` steers block 3.

    The model then raises ValueError for a direction of another width.
    """
    added_D = torch.as_tensor(direction_D)

    def changed(x_BTD: Tensor) -> Tensor:
        _require_width(added_D, x_BTD)
        x_BTD = x_BTD.clone()
        x_BTD[:, positions] += added_D.to(x_BTD)
        return x_BTD

    return changed


def put(stream_TD: Tensor | np.ndarray, positions: Mapping[int, int]) -> Changed:
    """Activation patching: `positions[here] = there` puts what another document's stream holds there in place.

    Raises ValueError for places that the other document lacks, and the model then for a stream of another width. Places
    behind this document's end are left out: a reply is written a token at a time.
    """
    others_TD = torch.as_tensor(stream_TD)
    for here, there in positions.items():
        if here < 0 or not 0 <= there < len(others_TD):
            raise ValueError(
                f"A place goes from 0 or more here to 0..{len(others_TD) - 1} of the other document, not from {here} "
                f"to {there}."
            )

    def changed(x_BTD: Tensor) -> Tensor:
        _require_width(others_TD, x_BTD)
        x_BTD = x_BTD.clone()
        for here, there in positions.items():
            if here < x_BTD.shape[1]:
                x_BTD[:, here] = others_TD[there].to(x_BTD)
        return x_BTD

    return changed


def silence(*heads: tuple[int, int]) -> dict[str, Changed]:
    """Heads, each (layer, head), that add nothing to the stream: `with change(lab.model, silence((3, 0))): ...`."""
    by_layer: dict[int, list[int]] = defaultdict(list)
    for layer, head in heads:
        by_layer[layer].append(head)

    def without(chosen: list[int]) -> Changed:
        def changed(mixed_BTHK: Tensor) -> Tensor:
            if max(chosen) >= mixed_BTHK.shape[2] or min(chosen) < 0:
                raise ValueError(f"head lies in 0..{mixed_BTHK.shape[2] - 1}; not all of {chosen} do.")
            mixed_BTHK = mixed_BTHK.clone()
            mixed_BTHK[:, :, chosen] = 0
            return mixed_BTHK

        return changed

    return {f"blocks.{layer}.attention.head_outputs": without(chosen) for layer, chosen in by_layer.items()}


def _require_width(vectors: Tensor, x_BTD: Tensor) -> None:
    if vectors.shape[-1:] != x_BTD.shape[-1:]:
        raise ValueError(f"{list(vectors.shape)} numbers do not fit into a stream of width {x_BTD.shape[-1]}.")
