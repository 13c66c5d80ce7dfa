"""Metrics of image tokenizers: what a round trip through the codes loses, and how much of the codebook it uses.

- originals and reconstructions are compared as RGB bytes: after preparation, and after decoding's truncation
- every value carries its protocol, and compares only with values of the same (`records.MetricCard`)
- nothing is downloaded: LPIPS, rFID and KID need files that the user puts in place (`networks`)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from itertools import groupby, islice
from typing import Protocol

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from chameleon_lab.evaluation.distances import METRICS, Metric
from chameleon_lab.records import CodebookUsage, Measurements, MetricCard, MetricValue, Reconstruction
from chameleon_lab.tokenizers.preparation import LANCZOS, Preparation


class PictureTokenizer(Protocol):
    """What `measure` takes: `ImageTokenizer`, or any other class with these. `parameters` give the precision."""

    @property
    def codes(self) -> int: ...

    @property
    def preparations(self) -> Mapping[str, Preparation]: ...

    def encode_batch(self, pictures: list[PIL.Image.Image], preparation: Preparation | None = None) -> np.ndarray: ...

    def decode(self, codes: np.ndarray) -> PIL.Image.Image: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


def measure(
    tokenizer: PictureTokenizer,
    pictures: Iterable[PIL.Image.Image],
    *,
    reference: str,
    preparation: Preparation | None = None,
    metrics: Iterable[str | Callable[[], Metric]] = ("PSNR", "SSIM"),
    seed: int = 0,
    batch: int = 16,
    resize: str = LANCZOS.name,
) -> Measurements:
    """An image tokenizer's metrics on a reference set, from one pass that holds `batch` pictures at a time.

    `pictures`: of any sizes and modes, from any iterable, such as `map(open_picture, paths)`; neighbours of one shape
    are encoded together. `reference`: the set's name and split, such as "ImageNet val". `preparation`:
    the centre crop unless given. `metrics`: names in `distances.METRICS`, or calls that make a `Metric`. `resize`: the
    preparation's filter, for the card; only a policy of your own needs to name another. Another `batch` can round
    differently and so flip a near tie between two codes: on the tiny model that moved PSNR by 0.0001 dB.

    Raises ValueError when there are no pictures, or when a metric is unknown, lacks its weights or refuses a picture.
    """
    if not reference or batch < 1:
        raise ValueError(f"Name the reference set, and take at least 1 picture at a time; got {reference!r}, {batch}.")
    policy = preparation or tokenizer.preparations["centre crop"]
    crop, meters = preparation_words(policy), [_metric(each) for each in metrics]
    digests: list[bytes] = []

    def grids_of_codes() -> Iterator[np.ndarray]:
        for originals in _batches(map(policy.picture, pictures), batch):
            grids = tokenizer.encode_batch(originals, policy)
            trips = [Reconstruction(*pair, tokenizer.decode(pair[1])) for pair in zip(originals, grids, strict=True)]
            originals_BCHW, pictures_BCHW = _bytes(originals), _bytes([trip.picture for trip in trips])
            for meter in meters:
                meter.see(originals_BCHW, pictures_BCHW)
            digests.extend(map(_digest, originals))
            yield from grids

    usage = CodebookUsage.of(grids_of_codes(), tokenizer.codes)
    if not digests:
        raise ValueError(f"There are no pictures in {reference!r}, so there is nothing to measure.")
    card = MetricCard(
        metric="",
        definition="",
        reference=reference,
        reference_hash=_joined(digests),
        crop=crop,
        resize=resize,
        n=len(digests),
        dtype=str(next(tokenizer.parameters()).dtype).removeprefix("torch."),
    )
    values = [meter.value(card, seed) for meter in meters]
    scores = {
        value.card.metric: np.array(meter.scores) for value, meter in zip(values, meters, strict=True) if meter.scores
    }
    return Measurements({each.card.metric: each for each in [*values, *_of_usage(usage, card)]}, scores, usage)


def content_hash(pictures: Iterable[PIL.Image.Image]) -> str:
    """SHA-256 of a set of prepared pictures, by their sizes and RGB bytes. Order does not count, repetition does."""
    return _joined([_digest(picture) for picture in pictures])


def preparation_words(policy: Preparation) -> str:
    """A policy with its settings, such as "centre crop 64". Raises ValueError when it is no dataclass."""
    if not is_dataclass(policy):
        raise ValueError(
            f"The card must hold a policy's settings, and {type(policy).__name__} hides them: make it a dataclass."
        )
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(policy).__name__).lower()
    return f"{words} {', '.join(str(getattr(policy, each.name)) for each in fields(policy))}".rstrip()


def _of_usage(usage: CodebookUsage, card: MetricCard) -> Iterator[MetricValue]:
    for metric, definition, value, unit, higher_is_better in (
        ("codebook usage", "codes seen at least once, of all", 100 * usage.usage, "%", True),
        ("perplexity", "exp of the entropy of the codes seen", usage.perplexity, "codes", True),
        ("dead codes", "codes never seen", len(usage.dead), "codes", False),
    ):
        yield MetricValue(value, unit, higher_is_better, replace(card, metric=metric, definition=definition))


def _metric(metric: str | Callable[[], Metric]) -> Metric:
    if not isinstance(metric, str):
        return metric()
    if metric not in METRICS:
        raise ValueError(f"No metric is called {metric!r}; there are {', '.join(METRICS)}.")
    return METRICS[metric]()


def _batches(pictures: Iterable[PIL.Image.Image], size: int) -> Iterator[list[PIL.Image.Image]]:
    for _, alike in groupby(pictures, key=lambda picture: picture.size):
        while some := list(islice(alike, size)):
            yield some


def _bytes(pictures: list[PIL.Image.Image]) -> Tensor:
    """bytes_BCHW of RGB pictures of one size."""
    return torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])).permute(0, 3, 1, 2)


def _digest(picture: PIL.Image.Image) -> bytes:
    size = f"{picture.width} x {picture.height} ".encode()
    return hashlib.sha256(size + picture.convert("RGB").tobytes()).digest()


def _joined(digests: list[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()
