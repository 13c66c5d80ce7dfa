"""Preparation: what each policy keeps of a picture, and that it always fills a grid."""

import numpy as np
import PIL.Image
import pytest

from chameleon_lab.tokenizers.preparation import (
    BorderPadding,
    CentreCrop,
    FitToGrid,
    HuggingFaceCrop,
    Preparation,
    picture_of,
    pixels_of,
    preparations,
)

SIZES = ((16, 16), (61, 47), (33, 200), (300, 77), (7, 5), (500, 501))


def noise(width: int, height: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(params=list(preparations(32, 8)))
def policy(request) -> Preparation:
    return preparations(32, 8)[request.param]


@pytest.mark.parametrize("size", [*SIZES, (1, 1), (1, 3000), (3000, 2)])
def test_every_policy_fills_a_grid_and_leaves_a_prepared_picture_alone(policy, size):
    prepared = policy.picture(noise(*size))
    assert prepared.mode == "RGB" and prepared.width % 8 == 0 and prepared.height % 8 == 0
    assert 64 <= prepared.width * prepared.height <= 32 * 32
    assert policy.picture(prepared).tobytes() == prepared.tobytes()
    pixels_CHW = policy.pixels(prepared)
    assert pixels_CHW.shape == (3, prepared.height, prepared.width)
    assert pixels_CHW.min() >= -1 and pixels_CHW.max() <= 1


@pytest.mark.parametrize("size", SIZES)
def test_centre_crop_takes_exactly_metas_steps(size):
    picture = noise(*size)
    scale = 32 / min(size)
    resized = picture.resize((round(scale * size[0]), round(scale * size[1])), PIL.Image.Resampling.LANCZOS)
    left, top = (resized.width - 32) // 2, (resized.height - 32) // 2
    wanted = np.asarray(resized)[top : top + 32, left : left + 32]
    assert np.array_equal(np.asarray(CentreCrop(32).picture(picture)), wanted)


def test_the_ports_rounding_differs_from_metas():
    picture = noise(61, 47)  # 32 / 47 * 61 = 41.53: 42 columns or 41
    assert CentreCrop(32).picture(picture).tobytes() != HuggingFaceCrop(32).picture(picture).tobytes()


def test_border_padding_keeps_the_ends_that_centre_crop_loses():
    picture = PIL.Image.new("RGB", (90, 30), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 20, 30))
    padded = np.asarray(BorderPadding(30, colour=(9, 9, 9)).picture(picture))
    assert padded[15, 2, 0] > 250 and padded[15, 28, 2] > 250
    assert (padded[:9] == 9).all() and (padded[21:] == 9).all()
    assert np.asarray(CentreCrop(30).picture(picture))[..., 0].max() == 0


def test_fit_to_grid_takes_the_pictures_own_shape():
    policy = FitToGrid(8, 64)
    assert [policy.grid(*size) for size in ((10, 10), (16, 4), (4, 16), (30, 20))] == [(8, 8), (4, 16), (16, 4), (6, 9)]
    rng = np.random.default_rng(0)
    for cells in (1, 2, 3, 5, 16, 64, 1024):
        for ratio in np.exp(rng.uniform(-np.log(cells), np.log(cells), 60)):
            rows, columns = FitToGrid(8, cells).grid(round(1000 * ratio), 1000)
            assert 1 <= rows * columns <= cells
            if cells == 1024 and 0.2 < ratio < 5:
                assert abs(np.log(columns / rows / ratio)) < 0.06


def test_fit_to_grid_crops_less_than_a_cell():
    ramp = np.tile(np.linspace(0, 255, 300).astype(np.uint8)[None, :, None], (77, 1, 3))
    prepared = np.asarray(FitToGrid(8, 64).picture(PIL.Image.fromarray(ramp)))
    assert prepared[:, 0].max() < 255 * 8 / prepared.shape[1] and prepared[:, -1].min() > 255 * (
        1 - 8 / prepared.shape[1]
    )


def test_pixels_keep_the_picture_and_pictures_are_truncated():
    picture = noise(9, 7)
    assert picture_of(pixels_of(picture) + 0.5 / 255).tobytes() == picture.tobytes()
