"""A request's words name the scene that was meant, and one that leaves something open is refused."""

import numpy as np
import pytest

from chameleon_lab.corpora.conversations import draw_request
from chameleon_lab.corpora.requests import requested_scene
from chameleon_lab.corpora.scenes import sample_scene


def test_every_full_request_and_caption_names_its_scene():
    rng = np.random.default_rng(0)
    for _ in range(400):
        scene = sample_scene(rng)
        assert requested_scene(draw_request(scene, rng, full=True)) == scene == requested_scene(scene.caption())


@pytest.mark.parametrize(
    "words",
    [
        "",
        "draw a red circle",
        "draw a large red circle on a gray background",
        "draw a large red circle in the center",
        "draw a red circle in the center on a gray background",
        "draw a large red circle and a small blue star on a gray background",
        "draw a small red circle, a small blue star and a small black ring on a gray background",
        "draw a large teal circle in the center on a gray background",
    ],
)
def test_what_leaves_something_open_is_refused(words):
    with pytest.raises(ValueError, match="does not say all of a scene"):
        requested_scene(words)
