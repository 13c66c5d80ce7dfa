"""Sources: a person's pictures, and the photographs that come with packages a Python machine is likely to have."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from chameleon_lab.corpora.folders import PICTURE_SUFFIXES, picture_listing
from chameleon_lab.parts import require_count
from chameleon_lab.pictures import open_picture
from chameleon_lab.tokenizers.preparation import LANCZOS, pixels_of

log = logging.getLogger(__name__)

PHOTOGRAPH_FILES = {
    "china": "sklearn/datasets/images/china.jpg",
    "flower": "sklearn/datasets/images/flower.jpg",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "rocket": "skimage/data/rocket.jpg",
    "galaxies": "skimage/data/hubble_deep_field.jpg",
    "retina": "skimage/data/retina.jpg",
    "tissue": "skimage/data/ihc.png",
    "grass": "skimage/data/grass.png",
    "gravel": "skimage/data/gravel.png",
    "brick": "skimage/data/brick.png",
    "astronaut": "skimage/data/astronaut.png",
    "cat": "skimage/data/chelsea.png",
    "coffee": "skimage/data/coffee.png",
}
"""Sample photographs in the wheels of scikit-learn and scikit-image: name to file inside site-packages."""

HELD_OUT_PHOTOGRAPHS = ("astronaut", "cat", "coffee")
"""The lab's experiments do not train on these, so that a tokenizer's reconstructions of them are a fair test."""


def photographs() -> dict[str, Path]:
    """The files of `PHOTOGRAPH_FILES` that this machine has. The packages are looked up, not imported."""
    files = {}
    for name, file in PHOTOGRAPH_FILES.items():
        package, _, inside = file.partition("/")
        spec = find_spec(package)
        if spec and spec.submodule_search_locations:
            path = Path(spec.submodule_search_locations[0]) / inside
            if path.is_file():
                files[name] = path
    return files


def picture_files(folder: Path | str) -> dict[str, Path]:
    """The picture files in a folder and below it, by their path in it, in order; the log says what is left out and why.

    Raises ValueError for none.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder: give one that holds pictures.")
    pictures = picture_listing(folder)
    if not pictures.files:
        raise ValueError(
            f"{folder} holds no pictures: no file there ends in {', '.join(sorted(PICTURE_SUFFIXES))}. {pictures}."
        )
    if pictures.left_out:
        log.info("%s.", pictures)
    return pictures.files


class PictureFiles:
    """Pictures by number, each read from its file at first use; files that cannot be read are skipped and logged.

    Pictures are reduced to a shortest side of at most `shortest` pixels, and the last `cached` ones stay in memory.
    `fetch` opens some ahead of time, in threads: unpacking a photograph takes longer than learning from it.
    """

    def __init__(self, files: Mapping[str, Path], shortest: int = 512, cached: int = 512) -> None:
        self.names, self._paths = list(files), list(files.values())
        self._shortest = shortest
        self.skipped: dict[str, str] = {}
        self._open = lru_cache(maxsize=cached)(self._read)
        self._cached, self._coming = cached, dict[int, Future[PIL.Image.Image | None]]()
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def census(self) -> dict[str, int]:
        """How many files there are, and their bytes: whether others lie in the folder than before."""
        return {"files": len(self), "bytes": sum(path.stat().st_size for path in self._paths)}

    def picture(self, index: int) -> PIL.Image.Image | None:
        """The picture, or None when its file cannot be read: then `skipped` says why, and so does the log, once."""
        coming = self._coming.pop(index, None)
        return self._open(index) if coming is None else coming.result()

    def fetch(self, indices: Iterable[int]) -> None:
        """Has these pictures opened in threads, to be had from `picture` later, as many as stay in memory; those that
        were fetched before and are not among them are given up."""
        coming_next = list(dict.fromkeys(indices))[: self._cached]
        for index in self._coming.keys() - set(coming_next):
            if (given_up := self._coming.pop(index, None)) is not None:
                given_up.cancel()
        for index in coming_next:
            if index not in self._coming:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(LOADERS, "pictures")
                self._coming[index] = self._pool.submit(self._open, index)

    def __iter__(self) -> Iterator[PIL.Image.Image]:
        """Every picture that can be read, in order."""
        for index in range(len(self)):
            if (picture := self.picture(index)) is not None:
                yield picture

    def _read(self, index: int) -> PIL.Image.Image | None:
        name = self.names[index]
        try:
            picture = open_picture(self._paths[index], self._shortest)
        except (ValueError, OSError) as error:
            if name not in self.skipped:
                self.skipped[name] = str(error)
                log.warning("Skipped: %s", error)
            return None
        scale = self._shortest / min(picture.size)
        if scale < 1:
            size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
            picture = picture.resize(size, LANCZOS)
        return picture


STEPS_AHEAD = 2
"""Steps whose pictures are opened while an earlier one is learned from."""

LOADERS = min(8, os.cpu_count() or 1)
"""Threads that open pictures."""


@dataclass(frozen=True, eq=False)
class Crops:
    """Batches of random crops, a pure function of (seed, step): `crops(step) -> pixels_BCHW` in [-1, 1].

    A crop is a square of `side` pixels, a `smallest` share to the whole of its picture's shortest side, mirrored half
    of the time. Raises ValueError when no picture can be read.
    """

    pictures: PictureFiles
    side: int
    seed: int = 0
    batch: int = 16
    smallest: float = 0.3

    def __post_init__(self) -> None:
        require_count(self.side, "pixels along a crop's side", 1)
        require_count(self.batch, "pictures of a batch", 1)

    def __call__(self, step: int) -> Tensor:
        steps = range(step, step + 1 + STEPS_AHEAD)
        self.pictures.fetch(index for ahead in steps for index in self._choices(ahead))
        rng = np.random.default_rng([self.seed, 4, step])
        return torch.stack([pixels_of(self._crop(rng)) for _ in range(self.batch)])

    def _choices(self, step: int) -> Iterator[int]:
        """The pictures that a step asks for first: a crop of any of them draws as many random numbers."""
        rng = np.random.default_rng([self.seed, 4, step])
        for _ in range(self.batch):
            yield int(rng.permutation(len(self.pictures))[0])
            for _ in range(4):
                rng.random()

    def _crop(self, rng: np.random.Generator) -> PIL.Image.Image:
        picture = self._any(rng)
        shortest = min(picture.size)
        span = rng.uniform(min(1.0, max(self.smallest, self.side / shortest)), 1.0) * shortest
        left, top = rng.uniform(0, picture.width - span), rng.uniform(0, picture.height - span)
        box = (left, top, left + span, top + span)
        crop = picture.resize((self.side, self.side), LANCZOS, box=box)
        return crop.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop

    def _any(self, rng: np.random.Generator) -> PIL.Image.Image:
        for index in rng.permutation(len(self.pictures)):
            if (picture := self.pictures.picture(int(index))) is not None:
                return picture
        raise ValueError(f"None of the {len(self.pictures)} pictures can be read: {self.pictures.skipped}.")


SHORTEST_SIDES = (180, 256, 360, 512)
"""Pixels along a picture's shorter side, in the sizes that `CropsAtSizes` holds: about the square root of 2 apart."""


class CropsAtSizes:
    """Batches of random crops, a pure function of (seed, step), as `Crops` gives; for a GPU, which those starve.

    All pictures lie in memory as bytes at `shortest` sizes, so that a crop is a copy and nothing is resized in a step:
    0.1 ms a crop of 128 pixels, where `Crops` takes 2 to 8 (one core). Bytes of memory: about 3 for each pixel of the
    pictures, for each size. Larger pictures are taken more often, by their pixels; a picture's sizes equally often.
    Raises ValueError when no picture can be read.
    """

    def __init__(
        self,
        pictures: PictureFiles,
        side: int,
        seed: int = 0,
        batch: int = 16,
        shortest: Sequence[int] = SHORTEST_SIDES,
    ) -> None:
        require_count(side, "pixels along a crop's side", 1)
        require_count(batch, "pictures of a batch", 1)
        self.side, self.seed, self.batch = side, seed, batch
        self._bytes, weights = list[np.ndarray](), list[float]()
        for picture in pictures:
            lengths = [length for length in shortest if side <= length <= min(picture.size)] or [side]
            for length in lengths:
                scale = length / min(picture.size)
                size = max(side, round(scale * picture.width)), max(side, round(scale * picture.height))
                self._bytes.append(np.asarray(picture.resize(size, LANCZOS)))
                weights.append(picture.width * picture.height / len(lengths))
        if not self._bytes:
            raise ValueError(f"None of the {len(pictures)} pictures can be read: {pictures.skipped}.")
        self._shares = np.array(weights) / sum(weights)

    def __call__(self, step: int) -> Tensor:
        rng, side = np.random.default_rng([self.seed, 4, step]), self.side
        bytes_BHWC = np.empty((self.batch, side, side, 3), np.uint8)
        for place, number in enumerate(rng.choice(len(self._bytes), self.batch, p=self._shares)):
            picture = self._bytes[number]
            top, left = (int(rng.integers(0, length - side + 1)) for length in picture.shape[:2])
            crop = picture[top : top + side, left : left + side]
            bytes_BHWC[place] = crop[:, ::-1] if rng.random() < 0.5 else crop
        return torch.from_numpy(bytes_BHWC).movedim(-1, 1).float() / 255 * 2 - 1


@dataclass(frozen=True, eq=False)
class JoinedBatches:
    """Batches of several sources, concatenated in each step: `batches(step) -> pixels_BCHW`."""

    sources: tuple[Callable[[int], Tensor], ...]

    def __call__(self, step: int) -> Tensor:
        return torch.cat([source(step) for source in self.sources])
