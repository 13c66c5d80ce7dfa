"""Preparation: how a picture of any size becomes the pixels an image tokenizer sees.

The policies differ in what they keep: `CentreCrop` loses the ends of the longer side (Meta's inference, every image),
`BorderPadding` keeps all of it in less detail (prompt images in Chameleon's fine-tuning, section 3.2), `FitToGrid`
gives a grid of the picture's own shape, and `HuggingFaceCrop` repeats the port's rounding, for parity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from chameleon_lab.pictures import rgb

LANCZOS = PIL.Image.Resampling.LANCZOS


class Preparation(Protocol):
    """A policy: `picture` gives the RGB picture of a whole grid (a prepared one unchanged), `pixels` its pixels_CHW."""

    def picture(self, picture: PIL.Image.Image) -> PIL.Image.Image: ...

    def pixels(self, prepared: PIL.Image.Image) -> Tensor: ...


@dataclass(frozen=True)
class CentreCrop:
    """Shortest side to `side` pixels by LANCZOS, then the square in the middle."""

    side: int

    def picture(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        picture = _not_a_thread(rgb(picture))
        scale = self.side / min(picture.size)
        return _middle(_resized(picture, round(scale * picture.width), round(scale * picture.height)), self.side)

    def pixels(self, prepared: PIL.Image.Image) -> Tensor:
        return pixels_of(prepared)


@dataclass(frozen=True)
class BorderPadding:
    """Longest side to `side` pixels by LANCZOS, in the middle of a square of one colour."""

    side: int
    colour: tuple[int, int, int] = (255, 255, 255)

    def picture(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        picture = rgb(picture)
        scale = self.side / max(picture.size)
        picture = _resized(picture, max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
        square = PIL.Image.new("RGB", (self.side, self.side), self.colour)
        square.paste(picture, ((self.side - picture.width) // 2, (self.side - picture.height) // 2))
        return square

    def pixels(self, prepared: PIL.Image.Image) -> Tensor:
        return pixels_of(prepared)


@dataclass(frozen=True)
class FitToGrid:
    """The grid nearest to the picture's own shape, of at most `cells` cells of `factor` pixels; the rest is cropped."""

    factor: int
    cells: int

    def picture(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        picture = _not_a_thread(rgb(picture), self.cells)
        rows, columns = self.grid(picture.width, picture.height)
        width, height = columns * self.factor, rows * self.factor
        scale = max(width / picture.width, height / picture.height)
        covering = max(width, round(scale * picture.width)), max(height, round(scale * picture.height))
        return _middle(_resized(picture, *covering), width, height)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) for a picture of so many pixels."""
        whole = [
            (rows, columns)
            for rows in range(1, self.cells + 1)
            for columns in {max(1, math.floor(rows * width / height)), max(1, math.ceil(rows * width / height))}
            if self.cells // 4 < rows * columns <= self.cells
        ]
        return min(whole, key=lambda grid: (_stretch(grid, width / height), -grid[0] * grid[1]))

    def pixels(self, prepared: PIL.Image.Image) -> Tensor:
        return pixels_of(prepared)


@dataclass(frozen=True)
class HuggingFaceCrop:
    """`CentreCrop` as transformers' port does it: the longer side cut to whole pixels, values in [-1, 0.989]."""

    side: int

    def picture(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        picture = _not_a_thread(rgb(picture))
        short = min(picture.size)
        picture = _resized(picture, *(int(self.side * length / short) for length in picture.size))
        return _middle(picture, self.side)

    def pixels(self, prepared: PIL.Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(prepared, np.float32) * np.float32(0.0078) - 1).permute(2, 0, 1)


def preparations(side: int, factor: int) -> dict[str, Preparation]:
    """All policies for a tokenizer of squares of `side` pixels, in cells of `factor` pixels, by name."""
    return {
        "centre crop": CentreCrop(side),
        "border padding": BorderPadding(side),
        "fit to grid": FitToGrid(factor, (side // factor) ** 2),
        "Hugging Face's crop": HuggingFaceCrop(side),
    }


def pixels_of(picture: PIL.Image.Image) -> Tensor:
    """An RGB picture as pixels_CHW in [-1, 1]."""
    return torch.from_numpy(np.asarray(picture, np.float32) / 255 * 2 - 1).permute(2, 0, 1)


def picture_of(pixels_CHW: Tensor) -> PIL.Image.Image:
    """Pixels in [-1, 1] as an RGB picture: clamped, then truncated to bytes, as Meta's decoding does."""
    array = ((pixels_CHW.float().clamp(-1, 1) + 1) / 2 * 255).permute(1, 2, 0).cpu().numpy()
    return PIL.Image.fromarray(array.astype(np.uint8))


def _resized(picture: PIL.Image.Image, width: int, height: int) -> PIL.Image.Image:
    return picture if picture.size == (width, height) else picture.resize((width, height), LANCZOS)


def _middle(picture: PIL.Image.Image, width: int, height: int | None = None) -> PIL.Image.Image:
    height = height or width
    if picture.size == (width, height):
        return picture
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _not_a_thread(picture: PIL.Image.Image, ratio: int = 16) -> PIL.Image.Image:
    """The middle of a picture more than `ratio` times as long as wide, which would be resized to gigabytes."""
    width, height = picture.size
    most = ratio * min(width, height)
    if max(width, height) <= most:
        return picture
    return _middle(picture, min(width, most), min(height, most))


def _stretch(grid: tuple[int, int], ratio: float) -> float:
    return round(abs(math.log(grid[1] / grid[0] / ratio)), 9)
