"""Grids of their own: a picture keeps its shape."""

import numpy as np
import PIL.Image
import pytest

from chameleon_lab.tokenizers.grids import AreaGrid


@pytest.mark.parametrize(("side", "sizes"), [(512, 49), (768, 73), (1024, 97)])
def test_there_are_as_many_sizes_as_lumina_has(side, sizes):
    cells = (side // 32) ** 2
    grids = AreaGrid(32, cells).grids
    assert len(set(grids)) == len(grids) == sizes
    assert (side // 32, side // 32) in grids
    assert all(cells * 0.7 < rows * columns <= cells and 0.25 <= rows / columns <= 4 for rows, columns in grids)
    assert {(columns, rows) for rows, columns in grids} == set(grids)


def test_the_grid_crops_least_of_all_grids():
    rng, grids = np.random.default_rng(0), AreaGrid(32, 256)
    for width, height in rng.integers(1, 3000, (200, 2)).tolist():
        chosen = grids.grid(width, height)

        def kept(grid: tuple[int, int], width: int = width, height: int = height) -> float:
            scale = max(grid[1] / width, grid[0] / height)
            return grid[0] * grid[1] / (scale * width * scale * height)

        assert kept(chosen) == pytest.approx(max(kept(grid) for grid in grids.grids))


def test_pictures_cover_their_grid_and_prepared_ones_stay_as_they_are():
    rng, grids = np.random.default_rng(1), AreaGrid(8, 16)
    for width, height in [(1, 1), (1, 500), (500, 1), *rng.integers(1, 200, (30, 2)).tolist()]:
        picture = PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        prepared = grids.picture(picture)
        rows, columns = grids.grid(width, height)
        assert prepared.size == (8 * columns, 8 * rows) and prepared.mode == "RGB"
        assert grids.picture(prepared).tobytes() == prepared.tobytes()
        assert grids.pixels(prepared).shape == (3, 8 * rows, 8 * columns)


def test_as_much_is_cropped_on_either_side():
    picture = PIL.Image.new("RGB", (100, 8), "red")  # five times as wide as the widest grid allows
    picture.paste("blue", (34, 0, 66, 8))
    assert AreaGrid(8, 4).picture(picture).getcolors() == [(32 * 8, (0, 0, 255))]


def test_trap_13_transparency_shows_white():
    for mode in ("RGBA", "LA"):
        clear = PIL.Image.new(mode, (8, 8), (0,) * len(mode))
        assert AreaGrid(8, 1).picture(clear).getcolors() == [(64, (255, 255, 255))]


@pytest.mark.parametrize("values", [(0, 4), (8, 0), (8, 4, 0.5)])
def test_impossible_grids_are_refused(values):
    with pytest.raises(ValueError, match="must be 1 or more"):
        AreaGrid(*values)
