"""The map of a codebook: every code in a cell of one grid, like beside like, and the picture of it.

A map is `order_N`, the code in each cell, row by row; the last row may be short. N is the size of the codebook, C the
width of a code.
"""

from __future__ import annotations

import math

import numpy as np
import PIL.Image

COMPONENTS = 12
USAGE_SCALE = ("#ccf0f2", "#9ad9e3", "#6dc0d7", "#49a4c8", "#3788b3", "#326b98", "#315177", "#2c3952")
"""Colours from seen once to seen most. Lightness alone falls evenly along it, so that it reads without hue."""
DEAD = "#c8501e"
PAPER = "#ffffff"


def checked(codebook: object) -> np.ndarray:
    """A codebook as book_NC, float32. Raises ValueError when there is none, or no finite array of two codes or more."""
    if codebook is None:
        raise ValueError("The tokenizer's codebook is None; an atlas needs its code vectors, an array codes x width.")
    try:
        book_NC = np.asarray(codebook, np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"The tokenizer's codebook cannot be read as an array of floats: {error}.") from error
    if book_NC.ndim != 2 or len(book_NC) < 2 or book_NC.shape[1] < 1:
        raise ValueError(f"A codebook is an array codes x width of two codes or more; got shape {book_NC.shape}.")
    if not (finite_N := np.isfinite(book_NC).all(1)).all():
        broken = np.flatnonzero(~finite_N)
        raise ValueError(
            f"The codebook holds NaN or infinite values in {len(broken)} of {len(book_NC)} codes, "
            f"code {broken[0]} first: the tokenizer's weights are damaged, or its training diverged."
        )
    return book_NC


def columns_of(size: int) -> int:
    """Columns of the map of `size` codes: about four to each three rows, such that the last row is well filled."""
    ideal = math.sqrt(size * 4 / 3)
    return min(range(math.ceil(0.96 * ideal), math.ceil(1.08 * ideal) + 1), key=lambda columns: -size % columns)


def layout(book_NC: np.ndarray) -> np.ndarray:
    """The codes in the order of the map, order_N: neighbours on the map are near each other in the codebook.

    The map is halved across its longer side, again and again, and the codes at the median along a direction. The first
    directions are the two main components of the book. A half turns its parent's direction towards what varies most
    in itself, by one power step: the map follows the book's bends, and neighbouring halves still agree on a direction.
    """
    size, columns = len(book_NC), columns_of(len(book_NC))
    rows = math.ceil(size / columns)
    x_NK = _principal_components(book_NC)
    filled_RQ = np.arange(rows * columns).reshape(rows, columns) < size
    order_N = np.empty(size, np.int64)

    def place(codes: np.ndarray, top: int, left: int, bottom: int, right: int, ways_2K: np.ndarray) -> None:
        if len(codes) <= 1:
            order_N[top * columns + left : top * columns + left + len(codes)] = codes
            return
        across = right - left >= bottom - top
        axis = 0 if across else 1
        x_XK = x_NK[codes]
        if len(codes) > 2:
            x_XK = x_XK - x_XK.mean(0)
            way_K = (x_XK @ ways_2K[axis]) @ x_XK
            ways_2K = ways_2K.copy()
            ways_2K[axis] = way_K / (np.linalg.norm(way_K) or 1.0)
        codes = codes[np.argsort(x_XK @ ways_2K[axis], kind="stable")]
        if across:
            middle = (left + right) // 2
            half = int(filled_RQ[top:bottom, left:middle].sum())
            place(codes[:half], top, left, bottom, middle, ways_2K)
            place(codes[half:], top, middle, bottom, right, ways_2K)
        else:
            middle = (top + bottom) // 2
            half = int(filled_RQ[top:middle, left:right].sum())
            place(codes[:half], top, left, middle, right, ways_2K)
            place(codes[half:], middle, left, bottom, right, ways_2K)

    main = np.eye(x_NK.shape[1])
    place(np.arange(size), 0, 0, rows, columns, main[[0, min(1, len(main) - 1)]])
    return order_N


def _principal_components(book_NC: np.ndarray) -> np.ndarray:
    """The codes in the book's main components, strongest first: x_NK, of no particular scale."""
    x_NC = book_NC / (np.abs(book_NC).max() or 1.0)
    x_NC -= x_NC.mean(0)
    _, vectors_CC = np.linalg.eigh((x_NC.T @ x_NC).astype(np.float64))
    return x_NC.astype(np.float64) @ vectors_CC[:, ::-1][:, :COMPONENTS]


def nearest_codes(book_NC: np.ndarray, code: int, count: int) -> list[tuple[int, float]]:
    """The `count` codes nearest to a code, with their Euclidean distances, nearest first; not the code itself."""
    distances_N = np.linalg.norm(book_NC - book_NC[code], axis=1)
    distances_N[code] = np.inf
    closest = np.argsort(distances_N, kind="stable")[: min(count, len(book_NC) - 1)]
    return [(int(each), float(distances_N[each])) for each in closest]


def draw(order_N: np.ndarray, counts_N: np.ndarray, width: int = 1120) -> PIL.Image.Image:
    """The map coloured by counts on a log scale, at most `width` pixels wide; dead codes are crosses."""
    columns = columns_of(len(order_N))
    rows = math.ceil(len(order_N) / columns)
    side = max(1, min(80, width // columns))
    inner = max(1, side - max(1, side // 14))
    ordered_N = counts_N[order_N]
    paper, dead = (np.array(_rgb(colour), np.uint8) for colour in (PAPER, DEAD))
    cells_NSSC = np.tile(paper, (rows * columns, side, side, 1))
    cells_NSSC[: len(order_N), :inner, :inner] = shades(ordered_N)[:, None, None]
    if counts_N.any():
        row, column = np.indices((side, side)) - (inner - 1) / 2
        cross_SS = np.abs(np.abs(row) - np.abs(column)) < max(1, side / 20)
        cross_SS &= np.maximum(np.abs(row), np.abs(column)) <= inner * 0.38
        cells_NSSC[: len(order_N)][ordered_N == 0] = np.where(cross_SS[:, :, None], dead, paper)
    map_RSQSC = cells_NSSC.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    return PIL.Image.fromarray(map_RSQSC.reshape(rows * side, columns * side, 3))


def shades(counts_N: np.ndarray) -> np.ndarray:
    """The colour of each count on the log scale, bytes rgb_NC; of a code never seen, that of the lowest."""
    most = max(1, int(counts_N.max()))
    share_N = np.log(np.maximum(1, counts_N)) / np.log(most) if most > 1 else np.ones(len(counts_N))
    stops_SC = np.array([_rgb(colour) for colour in USAGE_SCALE], np.float64)
    place_N, at_S = share_N * (len(stops_SC) - 1), np.arange(len(stops_SC))
    return np.stack([np.interp(place_N, at_S, stop_S) for stop_S in stops_SC.T], 1).round().astype(np.uint8)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
