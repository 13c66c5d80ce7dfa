"""Parts of a model of their own by modality: which positions hold image codes, and what sends each to its own part.

- a model's slot `modality` sees the tokens of each pass; filled with a `ModalityOf`, it notes which are image codes
- a `ByModality` in any other slot holds two parts, `text` and `image`, and sends each position to one of them: image
  codes to the second, everything else, special tokens among it, to the first
- both together make `stability.MixtureOfTransformers`; a fix of your own uses them in the same way, with a method
  `for_vocabulary(vocabulary)` as that has: an `Experiment` calls it with the vocabulary of its data
"""

from __future__ import annotations

import copy
import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

TOWERS = ("text", "image")
"""The names of a `ByModality`'s parts."""


class Split(NamedTuple):
    """Which positions are images', and how positions are told apart.

    `image_BT`: the mask. `order_X`: flat positions, text first; `inverse_X`: where each is in that order; `texts`:
    number of those that are not images'. Without an order both parts compute all, and the mask chooses.
    """

    image_BT: Tensor
    order_X: Tensor | None
    inverse_X: Tensor | None
    texts: int


class _Noted(threading.local):
    """What one thread noted of its own pass: others may use the model at the same time."""

    split: Split | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Noted:
        return _Noted()

    def __reduce__(self) -> tuple[type[_Noted], tuple[()]]:
        return _Noted, ()


class ModalityOf(nn.Module):
    """Notes which positions hold image codes: tokens in `first_image` .. `first_image + codes - 1`.

    Stands in a model's slot `modality`, which every pass goes through before its blocks. Raises ValueError at a pass
    when it was made without the two numbers.
    """

    def __init__(self, first_image: int | None, codes: int | None) -> None:
        super().__init__()
        self.first_image, self.codes = first_image, codes
        self._noted = _Noted()

    def forward(self, tokens_BT: Tensor) -> Tensor:
        if self.first_image is None or self.codes is None:
            raise ValueError(
                "This model does not know which tokens are image codes: give its fix `first_image` and `codes`, or "
                "take fix.for_vocabulary(vocabulary). (An Experiment calls that with the vocabulary of its data: a fix "
                "of your own needs the method, which returns the fix with both numbers filled in.)"
            )
        image_BT = (tokens_BT >= self.first_image) & (tokens_BT < self.first_image + self.codes)
        self._noted.split = _split(image_BT)
        return tokens_BT

    def split(self, x: Tensor) -> Split:
        """What was noted, for x of the same rows and positions (B, T, ...), or of one noted row's repetitions.

        Raises ValueError for x of another shape.
        """
        split = self._noted.split
        rows, positions = (0, 0) if split is None else split.image_BT.shape
        if split is None or x.ndim < 3 or positions != x.shape[1] or rows not in (1, len(x)):
            noted = f"tokens of shape {(rows, positions)}" if rows else "no tokens"
            raise ValueError(
                f"A part of its own by modality was given values of shape {tuple(x.shape)} after {noted}: it must know "
                "the modality of each position. Run the whole model, or model.turns(tokens, context) first."
            )
        return split if rows == len(x) else _split(split.image_BT.expand(len(x), -1))


class ByModality(nn.Module):
    """Two parts for one slot, `text` and `image`: each position, B, T of x (B, T, ...), goes through its own.

    Made of the part that the slot held and a copy of it, so that at first it computes the same.
    """

    def __init__(self, part: nn.Module, modality: ModalityOf) -> None:
        super().__init__()
        self.text, self.image = part, copy.deepcopy(part)
        self._of = [modality]  # in a list: it is the model's own, and no child of each part

    def forward(self, x: Tensor) -> Tensor:
        image_BT, order_X, inverse_X, texts = self._of[0].split(x)
        if order_X is None or inverse_X is None:
            wide_BT = image_BT.reshape(*image_BT.shape, *(1,) * (x.ndim - 2))
            return torch.where(wide_BT, self.image(x), self.text(x))
        if not torch.is_grad_enabled() and texts in (0, len(order_X)):  # as in a step of one row: a part alone
            return self.text(x) if texts else self.image(x)
        # In training both parts run, though one may get nothing: every process then has a gradient of every weight.
        x_X = x.flatten(0, 1)[order_X]
        outputs_X = torch.cat((self.text(x_X[:texts]), self.image(x_X[texts:])))[inverse_X]
        return outputs_X.unflatten(0, x.shape[:2])


def _split(image_BT: Tensor) -> Split:
    image_X = image_BT.flatten()
    if type(image_X) is not Tensor:  # a planner's values have shapes alone: half of the positions for each part
        order_X = torch.arange(len(image_X), device=image_X.device)
        return Split(image_BT, order_X, order_X, len(image_X) // 2)
    if image_X.is_cuda and torch.cuda.is_current_stream_capturing():  # to be replayed for tokens of other kinds
        return Split(image_BT, None, None, 0)
    # One sort and one count for all parts of all layers: a part then is a gather, two calls and a gather.
    order_X = image_X.int().argsort(stable=True)
    return Split(image_BT, order_X, order_X.argsort(), len(image_X) - int(image_X.sum()))


def places_of(model: nn.Module, place: str) -> list[str]:
    """Where a submodule's work is done: its own name, or those in both towers, where it stands in a `ByModality`.

    `blocks.0.feed_forward.down` may be `blocks.0.feed_forward.text.down` and `blocks.0.feed_forward.image.down`.
    A name that leads nowhere stays as it is.
    """
    places: list[tuple[str, nn.Module | None]] = [("", model)]
    for name in place.split("."):
        below = [(f"{path}.{name}".strip("."), getattr(owner, name, None)) for path, owner in places]
        places = [
            each
            for path, module in below
            for each in (
                [(f"{path}.{tower}", getattr(module, tower)) for tower in TOWERS]
                if isinstance(module, ByModality)
                else [(path, module if isinstance(module, nn.Module) else None)]
            )
        ]
    return [path for path, _ in places]


def tower_of(model: nn.Module) -> dict[nn.Parameter, str]:
    """Of the parameters that are one modality's own, whose they are: "text" or "image"."""
    return {
        parameter: tower
        for module in model.modules()
        if isinstance(module, ByModality)
        for tower in TOWERS
        for parameter in getattr(module, tower).parameters()
    }


def dense_names(model: nn.Module) -> dict[str, str]:
    """Of each name in the state dict that belongs to a tower, what a model without towers calls it."""
    pairs = [(name, tower) for name, each in model.named_modules() if isinstance(each, ByModality) for tower in TOWERS]
    return {
        name: f"{slot}.{name.removeprefix(f'{slot}.{tower}.')}"
        for name in model.state_dict()
        for slot, tower in pairs
        if name.startswith(f"{slot}.{tower}.")
    }


def active_parameters(model: nn.Module) -> int:
    """Number of parameters that one position goes through: of two towers the larger one counts."""
    total = sum(parameter.numel() for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, ByModality):
            total -= min(sum(each.numel() for each in getattr(module, tower).parameters()) for tower in TOWERS)
    return total
