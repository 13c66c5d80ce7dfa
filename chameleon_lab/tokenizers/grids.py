"""Grids of their own: how a picture keeps its shape in a model whose images have any grid (Lumina-mGPT)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import PIL.Image
import PIL.ImageOps
from torch import Tensor

from chameleon_lab.pictures import rgb
from chameleon_lab.tokenizers.preparation import LANCZOS, pixels_of


@dataclass(frozen=True)
class AreaGrid:
    """A preparation: of the grids of about `cells` squares in all, the one whose shape is nearest the picture's.

    The picture covers the grid by LANCZOS, and what stands over is cropped, as much on either side. `unit` is the side
    of a square in pixels: two codes, so that both sides of the grid are even. The grids are those that Lumina-mGPT was
    trained on (arXiv 2408.02657): down the stairs of at most `cells` squares, from the tallest to the widest, with
    sides at most `ratio` to 1.
    """

    unit: int
    cells: int
    ratio: float = 4

    def __post_init__(self) -> None:
        if self.unit < 1 or self.cells < 1 or self.ratio < 1:
            raise ValueError(f"unit, cells and ratio must be 1 or more; got {self.unit}, {self.cells}, {self.ratio}.")

    @cached_property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """All (rows, columns) of squares that pictures are given, from tall to wide."""
        stairs = [
            (rows, columns)
            for columns in range(1, self.cells + 1)
            for rows in range(self.cells // columns, max(1, self.cells // (columns + 1)) - 1, -1)
        ]
        return tuple(grid for grid in stairs if max(grid) <= self.ratio * min(grid))

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of squares for a picture of so many pixels."""

        def kept(grid: tuple[int, int]) -> float:
            """The share of the picture that is not cropped."""
            rows, columns = grid
            return min(columns * height, rows * width) / max(columns * height, rows * width)

        return max(self.grids, key=kept)

    def picture(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        picture = rgb(picture)
        rows, columns = self.grid(*picture.size)
        return PIL.ImageOps.fit(picture, (columns * self.unit, rows * self.unit), LANCZOS)

    def pixels(self, prepared: PIL.Image.Image) -> Tensor:
        return pixels_of(prepared)
