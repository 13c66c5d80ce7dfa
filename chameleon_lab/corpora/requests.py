"""What a request asks for, read back from its words: the scene that the checker is to find in the picture."""

from __future__ import annotations

import re

from chameleon_lab.corpora.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Arrangement, Scene, arrange

_THING = re.compile(rf"\b({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
_BACKGROUND = re.compile(rf"\bon an? ({'|'.join(BACKGROUNDS)}) background\b")
_RELATION = re.compile(r"\b(left of|right of|above|below)\b")
_LINE = re.compile(r"\bin a (row|column)\b")
_PLACE = re.compile(rf"\b({'|'.join(sorted(PLACES.values(), key=len, reverse=True))})\b")

_LAYOUTS: dict[str, tuple[Arrangement, bool]] = {
    "left of": ("beside", False),
    "right of": ("beside", True),
    "above": ("above", False),
    "below": ("above", True),
}
"""By relation: the layout, and whether what is named first comes second in it."""


def requested_scene(words: str) -> Scene:
    """The scene that a full request or caption names, whatever stands around it.

    Raises ValueError for one that leaves anything open: how large a thing is, where it is, the background.
    """
    text = words.lower()
    things = [(shape, colour, size) for size, colour, shape in _THING.findall(text)]
    background, relation, line, place = (
        match[1] if (match := each.search(text)) else "" for each in (_BACKGROUND, _RELATION, _LINE, _PLACE)
    )
    if background and len(things) == 1 and place:
        return arrange(things, "single", background, next(at for at, name in PLACES.items() if name == place))
    if background and len(things) == 2 and relation:
        layout, turned = _LAYOUTS[relation]
        return arrange(things[::-1] if turned else things, layout, background)
    if background and len(things) == 3 and line:
        return arrange(things, "row" if line == "row" else "column", background)
    raise ValueError(
        f"{words!r} does not say all of a scene: name sizes, colours and shapes, where they are, and the background, "
        "as in 'draw a large red circle in the center on a gray background'."
    )
