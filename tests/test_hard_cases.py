"""Hard cases: each has in it what its name says, and is the same at every call."""

import numpy as np
import PIL.Image
import pytest

from chameleon_lab.corpora.hard_cases import hard_cases

CASES = {name: np.asarray(picture, np.int64) for name, picture in hard_cases(96).items()}


@pytest.mark.parametrize("side", [32, 33, 96, 257])
def test_every_case_is_an_rgb_square_of_its_own(side: int):
    cases = hard_cases(side)
    assert all((picture.mode, picture.size) == ("RGB", (side, side)) for picture in cases.values())
    assert len({picture.tobytes() for picture in cases.values()}) == len(cases) >= 8


def test_the_same_pictures_come_at_every_call():
    assert all(np.array_equal(np.asarray(picture), CASES[name]) for name, picture in hard_cases(96).items())


def test_too_few_pixels_are_refused():
    with pytest.raises(ValueError, match="32 pixels a side or more; got 31"):
        hard_cases(31)


def test_halving_keeps_the_gradients_and_loses_the_text():
    """The fine cases are fine: their detail is gone at half the size, a gradient's is not."""

    def loss(name: str) -> float:
        picture = PIL.Image.fromarray(CASES[name].astype(np.uint8))
        again = picture.resize((48, 48), PIL.Image.Resampling.BOX).resize(picture.size, PIL.Image.Resampling.BICUBIC)
        return float(np.mean((np.asarray(again, np.int64) - CASES[name]) ** 2))

    smooth = max(loss("gradients"), loss("colour contrasts"))
    assert all(loss(name) > 10 * smooth for name in ("text sizes", "page of text", "thin lines", "noise"))


def test_a_gradient_has_no_step_but_between_its_fields():
    quarters = CASES["gradients"].reshape(2, 48, 2, 48, 3).swapaxes(1, 2)
    steps = [np.abs(np.diff(quarters, axis=axis)).max() for axis in (2, 3)]
    assert max(steps) <= 32


def test_noise_has_no_neighbourhood_in_its_fine_half():
    fine = CASES["noise"][:48, :48, 0].astype(float)
    assert abs(np.corrcoef(fine[:, :-1].ravel(), fine[:, 1:].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize(("board", "field"), [(0, 1), (1, 2), (2, 3), (6, 8)])
def test_a_checkerboard_turns_over_after_one_field_and_returns_after_two(board: int, field: int):
    top, left = 32 * (board // 3), 32 * (board % 3)
    pixels = CASES["checkerboards"][top : top + 32, left : left + 32].sum(-1)
    assert np.array_equal(pixels[:, 2 * field :], pixels[:, : -2 * field])
    assert not (pixels[:, field:] == pixels[:, :-field]).any()


def test_contrasts_of_hue_are_as_light_as_their_ground():
    light = CASES["colour contrasts"] @ np.array([0.299, 0.587, 0.114])
    for row in (1, 2):
        ground, disc = light[24 * row, 0], light[24 * row + 12, 84]
        assert abs(ground - disc) < 1
        assert np.abs(CASES["colour contrasts"][24 * row, 0] - CASES["colour contrasts"][24 * row + 12, 84]).max() >= 30
