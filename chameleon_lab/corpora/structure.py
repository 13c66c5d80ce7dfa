"""Structure: segmentations and edges of pictures, as arrays of what is where, and as pictures that a tokenizer takes.

- labels_HW: a class for each pixel, 0 for the ground; scenes have a class a shape, a cut-out has one
- edges_HW: booleans, a line of two pixels just inside of what it surrounds
- as pictures both stand on the scenes' gray, in their colours, since the tiny image tokenizer never saw a black ground.
  Segmentations survive its round trip; thin lines do not, but their codes tell them apart: a model reads them, and need
  not draw them
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image

from chameleon_lab.corpora.scenes import BACKGROUNDS, COLOURS, SHAPES, SIDE, Scene, Thing

Palette = Sequence[tuple[int, int, int]]
"""The colour of each class, that of the ground first."""

CLASS_COLOURS = dict(zip(SHAPES, ("red", "blue", "yellow", "purple", "green", "orange", "brown", "black"), strict=True))
"""No colour with its shape is a pair that is kept from training (`scenes.NOVEL_PAIRS`)."""

SCENE_PALETTE: Palette = (BACKGROUNDS["gray"], *(COLOURS[colour] for colour in CLASS_COLOURS.values()))
"""Of segmentations of scenes: a colour a shape."""

CUTOUT_PALETTE: Palette = (BACKGROUNDS["gray"], COLOURS["black"])
"""Of silhouettes: ground and thing."""

SPECK = 20
"""Pixels below which a class that a picture seems to hold is none: the checker's measure of a speck."""

EDGE_WIDTH = 2
"""Pixels across an edge as it is drawn."""


def labels_of_scene(scene: Scene) -> np.ndarray:
    """The class of each pixel of a scene, from its ground truth: 1 + the number of the shape that covers most of it."""
    labels_HW = np.zeros((SIDE, SIDE), np.uint8)
    for thing in scene.things:
        alone = Scene((Thing(thing.shape, "black", thing.size, thing.x, thing.y),), "gray", "free")
        covered_HW = np.asarray(alone.picture().getchannel("R")) < (COLOURS["black"][0] + BACKGROUNDS["gray"][0]) / 2
        labels_HW[covered_HW] = 1 + SHAPES.index(thing.shape)
    return labels_HW


def segmentation_picture(labels_HW: np.ndarray, palette: Palette = SCENE_PALETTE) -> PIL.Image.Image:
    """A segmentation as a picture. Raises ValueError for a class that the palette has no colour for."""
    if labels_HW.size and int(labels_HW.max()) >= len(palette):
        raise ValueError(f"The palette has {len(palette)} classes, and class {int(labels_HW.max())} is none of them.")
    return PIL.Image.fromarray(np.array(palette, np.uint8)[labels_HW])


def read_segmentation(picture: PIL.Image.Image, palette: Palette = SCENE_PALETTE) -> np.ndarray:
    """The class of each pixel in a picture of a segmentation: what most of a pixel and its 8 neighbours are nearest to.

    Along an edge the mixture of two colours may be nearest to a third one's, and its neighbours outvote it.
    """
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    nearest_HW = np.linalg.norm(pixels[:, :, None] - np.array(palette, np.float32), axis=-1).argmin(-1)
    votes = np.stack([_sum_around(nearest_HW == label) for label in range(len(palette))])
    return votes.argmax(0).astype(np.uint8)


def _sum_around(mask_HW: np.ndarray) -> np.ndarray:
    """How many of each pixel and its 8 neighbours are set."""
    rows, columns = mask_HW.shape
    padded = np.pad(mask_HW.astype(np.uint8), 1)
    return sum(
        (padded[top : top + rows, left : left + columns] for top in range(3) for left in range(3)),
        np.zeros(mask_HW.shape, np.uint8),
    )


def outlines(labels_HW: np.ndarray) -> np.ndarray:
    """The edges of a segmentation: pixels of a class within `EDGE_WIDTH` pixels of another class, or of the border."""
    rows, columns = labels_HW.shape
    padded = np.pad(labels_HW, EDGE_WIDTH)
    reach = [
        (dy, dx)
        for dy in range(-EDGE_WIDTH, EDGE_WIDTH + 1)
        for dx in range(-EDGE_WIDTH, EDGE_WIDTH + 1)
        if abs(dy) + abs(dx) <= EDGE_WIDTH
    ]
    inner_HW = np.logical_and.reduce(
        [
            padded[EDGE_WIDTH + dy : EDGE_WIDTH + dy + rows, EDGE_WIDTH + dx : EDGE_WIDTH + dx + columns] == labels_HW
            for dy, dx in reach
        ]
    )
    return (labels_HW > 0) & ~inner_HW


def edges_picture(edges_HW: np.ndarray) -> PIL.Image.Image:
    """Edges as black lines on gray."""
    return segmentation_picture(edges_HW.astype(np.uint8), CUTOUT_PALETTE)


def grey_picture(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The lightness of a picture, as RGB."""
    return picture.convert("L").convert("RGB")


def silhouette(picture: PIL.Image.Image, ground: tuple[int, int, int]) -> np.ndarray:
    """Where a picture is not its ground, as the checker sees it: booleans of height x width."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    return np.linalg.norm(pixels - np.array(ground, np.float32), axis=-1) > 40


def photograph_edges(picture: PIL.Image.Image, mask_HW: np.ndarray | None = None) -> np.ndarray:
    """Edges of any picture by Canny's detector (scikit-image), and the outline of what `mask_HW` says is the thing."""
    from skimage.feature import canny  # slow to import

    grey_HW = np.asarray(picture.convert("L"), np.float32) / 255
    edges_HW = canny(grey_HW, sigma=max(1.0, min(grey_HW.shape) / 64))
    widened = np.pad(edges_HW, ((0, 1), (0, 1)))
    edges_HW = widened[:-1, :-1] | widened[1:, :-1] | widened[:-1, 1:] | widened[1:, 1:]
    return edges_HW if mask_HW is None else (edges_HW & mask_HW) | outlines(mask_HW.astype(np.uint8))


# How well two agree


def mean_overlap(read_HW: np.ndarray, labels_HW: np.ndarray) -> float:
    """Intersection over union, the mean of the classes that the truth has and those that were read in its stead.

    Raises ValueError for a segmentation of another size.
    """
    _check_sizes(read_HW, labels_HW)
    sizes = np.bincount(read_HW[read_HW > 0].astype(int)) if (read_HW > 0).any() else np.zeros(1, int)
    classes = {int(each) for each in np.unique(labels_HW[labels_HW > 0])} | set(np.flatnonzero(sizes >= SPECK).tolist())
    if not classes:
        return 1.0
    overlaps = [
        np.logical_and(read_HW == each, labels_HW == each).sum()
        / np.logical_or(read_HW == each, labels_HW == each).sum()
        for each in classes
    ]
    return float(np.mean(overlaps))


def edge_agreement(read_HW: np.ndarray, edges_HW: np.ndarray) -> float:
    """The harmonic mean of precision and recall of edges, each within a pixel of the other's (the boundary F-measure).

    Raises ValueError for edges of another size.
    """
    _check_sizes(read_HW, edges_HW)
    if not read_HW.any() or not edges_HW.any():
        return float(read_HW.any() == edges_HW.any())
    precision = (read_HW & (_sum_around(edges_HW) > 0)).sum() / read_HW.sum()
    recall = (edges_HW & (_sum_around(read_HW) > 0)).sum() / edges_HW.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _check_sizes(read_HW: np.ndarray, truth_HW: np.ndarray) -> None:
    if read_HW.shape != truth_HW.shape:
        sizes = [" x ".join(map(str, each.shape)) for each in (read_HW, truth_HW)]
        raise ValueError(f"A map of {sizes[0]} pixels cannot be compared with one of {sizes[1]}: give both one size.")
