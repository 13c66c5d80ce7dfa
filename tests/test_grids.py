"""Grids: how codes lie among tokens, and how a picture keeps its shape."""

import numpy as np
import PIL.Image
import pytest

from chameleon_lab.tokenizers.grids import AreaGrid, FixedGrid, GridInTokens, SlotKind, image_form
from chameleon_lab.vocabulary import CHAMELEON, LUMINA, Vocabulary

WORDS, SIDED = Vocabulary.layout(12, 4), Vocabulary.layout(12, 4, largest_side=8)
FORMS = [FixedGrid(WORDS, 3, 5), FixedGrid(CHAMELEON, 1, 7), GridInTokens(SIDED), GridInTokens(LUMINA)]


def some_codes(rng: np.random.Generator, form: FixedGrid | GridInTokens) -> np.ndarray:
    shape = form.sides or 2 * rng.integers(1, 4, 2)
    return rng.integers(0, form.vocabulary.codes, shape)


@pytest.mark.parametrize("form", FORMS)
def test_an_image_is_read_as_it_was_written_in_tokens_that_fit_their_slots(form):
    rng = np.random.default_rng(0)
    for _ in range(40):
        codes = some_codes(rng, form)
        tokens, sides, drawn = form.write(codes), form.sides, 0
        assert len(tokens) == form.length(*codes.shape) - 2 and tokens.dtype == np.int64
        for place, token in enumerate(tokens.tolist()):
            slot = form.slot(place, sides)
            assert [kind for kind, ids_V in form.ids.items() if ids_V[token]] == [slot.kind]
            assert slot.codes == drawn and slot.share == (
                drawn / codes.size if len(sides) == 2 and drawn < codes.size else None
            )
            sides = form.advance(place, sides, token)
            drawn += slot.kind is SlotKind.CODE
            if len(sides) == 2:
                assert np.array_equal(form.read(tokens[: place + 1]), codes[: drawn // codes.shape[1]])
        assert sides == codes.shape and form.slot(len(tokens), sides) == (SlotKind.END, codes.size, codes.size)
        assert form.ids[SlotKind.END][form.vocabulary.end_image] and form.ids[SlotKind.END].sum() == 1


def test_a_side_that_is_not_given_is_the_smallest():
    assert [GridInTokens(LUMINA).length(*sides) for sides in ((), (2,), (6,), (6, 4))] == [10, 10, 22, 34]
    assert FixedGrid(WORDS, 3, 5).length() == FixedGrid(WORDS, 3, 5).length(3) == 17
    assert [GridInTokens(LUMINA).length(side, side) for side in (32, 48, 64)] == [1060, 2356, 4164]
    assert image_form(CHAMELEON, 32, 32).length() == 1026 and image_form(LUMINA, 32, 32).length(32, 32) == 1060


def test_the_largest_grid_costs_no_more_than_a_small_one():
    sides = (LUMINA.largest_side,) * 2
    assert GridInTokens(LUMINA).slot(2, sides) == (SlotKind.CODE, 0, sides[0] ** 2)  # 230 million codes, none written


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(), (15,), (1, 3, 5), (3, 4), (0, 0)])
def test_codes_of_another_shape_are_not_written(form, shape):
    with pytest.raises(ValueError, match=r"grid of .* codes; this one has|has no token: sides are even"):
        form.write(np.zeros(shape, int))


@pytest.mark.parametrize(("side", "sizes"), [(512, 49), (768, 73), (1024, 97)])
def test_there_are_as_many_sizes_as_lumina_has(side, sizes):
    cells = (side // 32) ** 2
    grids = AreaGrid(32, cells).grids
    assert len(set(grids)) == len(grids) == sizes
    assert (side // 32, side // 32) in grids
    assert all(cells * 0.7 < rows * columns <= cells and 0.25 <= rows / columns <= 4 for rows, columns in grids)
    assert {(columns, rows) for rows, columns in grids} == set(grids)


LUMINAS_SIZES = {
    (1000, 1000): {512: (512, 512), 768: (768, 768), 1024: (1024, 1024)},
    (1920, 1080): {512: (672, 384), 768: (1024, 576), 1024: (1344, 768)},
    (1080, 1920): {512: (384, 672), 768: (576, 1024), 1024: (768, 1344)},
    (640, 480): {512: (576, 448), 768: (864, 640), 1024: (1152, 864)},
    (3000, 100): {512: (1024, 256), 768: (1536, 384), 1024: (2048, 512)},
    (97, 4000): {512: (256, 1024), 768: (384, 1536), 1024: (512, 2048)},
    (1213, 777): {512: (608, 384), 768: (960, 608), 1024: (1248, 800)},
}
"""(width, height) of a picture to that of what Lumina-mGPT's own item_processor.py (104abe4) makes of it, by the size
that its model was trained at."""


@pytest.mark.parametrize("side", [512, 768, 1024])
def test_the_documented_settings_give_luminas_sizes(side):
    """`AreaGrid(unit=32, cells=(side // 32) ** 2)`, as docs/weights.md has it, beside Lumina's walk down the stairs
    from the widest grid, and its choice: of what is cropped least the widest."""
    most = (side // 32) ** 2
    stairs, columns, rows = [], most, 1
    while columns:
        if max(columns, rows) <= 4 * min(columns, rows):
            stairs.append((columns * 32, rows * 32))
        rows, columns = (rows + 1, columns) if (rows + 1) * columns <= most else (rows, columns - 1)
    policy = AreaGrid(unit=32, cells=most)
    assert {(columns * 32, rows * 32) for rows, columns in policy.grids} == set(stairs)
    sizes = [*LUMINAS_SIZES, *stairs, *np.random.default_rng(side).integers(1, 5000, (300, 2)).tolist()]
    for width, height in sizes:
        shares = {(w, h): min(w / width, h / height) / max(w / width, h / height) for w, h in stairs}
        _, chosen = max((share, size) for size, share in shares.items())
        rows, columns = policy.grid(width, height)
        assert (columns * 32, rows * 32) == chosen == LUMINAS_SIZES.get((width, height), {}).get(side, chosen)
    assert policy.picture(PIL.Image.new("RGB", (1213, 777))).size == LUMINAS_SIZES[1213, 777][side]


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
