"""Distances between originals and reconstructions, as RGB bytes: picture by picture, or set against set.

PSNR and SSIM need no files. LPIPS, rFID and KID are torchmetrics', on the features of a network (`networks`).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from chameleon_lab.records import SSIM_WINDOW, MetricCard, MetricValue, structural_similarity
from chameleon_lab.tokenizers.networks import BACKBONES, FeatureNetwork, efficientnet_lite0, inception, lpips

if TYPE_CHECKING:  # torchmetrics takes seconds to load, so it is imported where it is used
    from torchmetrics.image.fid import FrechetInceptionDistance

log = logging.getLogger(__name__)


class Metric(Protocol):
    """A meter: it sees every pair of pictures once, as bytes_BCHW on the CPU, and then gives its value.

    `card` is the protocol so far, to be completed with `dataclasses.replace`; `seed` is for random draws.
    `scores` holds one score a picture, or nothing where the metric compares sets.
    """

    @property
    def scores(self) -> Sequence[float]: ...

    def see(self, originals_BCHW: Tensor, pictures_BCHW: Tensor) -> None: ...

    def value(self, card: MetricCard, seed: int) -> MetricValue: ...


@dataclass(eq=False)
class MeanScore:
    """A metric that judges each picture alone: its value is the mean of the scores, infinite when one of them is."""

    name: str
    definition: str
    score: Callable[[Tensor, Tensor], Tensor]
    unit: str = ""
    higher_is_better: bool = True
    network: FeatureNetwork | None = None
    scores: list[float] = field(default_factory=list)

    def see(self, originals_BCHW: Tensor, pictures_BCHW: Tensor) -> None:
        self.scores += self.score(originals_BCHW, pictures_BCHW).tolist()

    def value(self, card: MetricCard, seed: int) -> MetricValue:
        mean = math.fsum(self.scores) / len(self.scores)
        card = _complete_card(card, self.name, self.definition, self.network)
        return MetricValue(mean, self.unit, self.higher_is_better, card)


def psnr(originals_BCHW: Tensor, pictures_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair of bytes_BCHW, in dB: scores_B, infinite where nothing was lost."""
    error_B = (originals_BCHW.double() - pictures_BCHW.double()).square().mean((1, 2, 3))
    return 10 * (255**2 / error_B).log10()


def ssim(originals_BCHW: Tensor, pictures_BCHW: Tensor) -> Tensor:
    """Structural similarity of each pair of bytes_BCHW, -1 to 1: scores_B (Wang et al., 2004, with their constants).

    Raises ValueError for pictures smaller than the window.
    """
    _at_least(SSIM_WINDOW, "SSIM", originals_BCHW)
    pairs = zip(originals_BCHW.movedim(1, -1).numpy(), pictures_BCHW.movedim(1, -1).numpy(), strict=True)
    return torch.tensor([structural_similarity(*pair) for pair in pairs], dtype=torch.float64)


def perceptual(backbone: str, network: FeatureNetwork | None = None) -> MeanScore:
    """LPIPS on a backbone of `networks.BACKBONES`; `network` takes the place of the published one."""
    network = network or lpips(backbone)
    name = f"LPIPS ({backbone})"

    def score(originals_BCHW: Tensor, pictures_BCHW: Tensor) -> Tensor:
        _at_least(BACKBONES[backbone].least, name, originals_BCHW)
        return network(originals_BCHW / 127.5 - 1, pictures_BCHW / 127.5 - 1).flatten()

    return MeanScore(name, "mean over pictures", score, higher_is_better=False, network=network)


def lite_distance(network: FeatureNetwork | None = None) -> MeanScore:
    """The distance by EfficientNet-Lite0 that `networks.LiteDistance` defines. It is no LPIPS."""
    network = network or efficientnet_lite0()

    def score(originals_BCHW: Tensor, pictures_BCHW: Tensor) -> Tensor:
        return network(originals_BCHW / 127.5 - 1, pictures_BCHW / 127.5 - 1)

    return MeanScore(
        "EfficientNet-Lite0 distance",
        "mean over pictures of squared distances of unit features, places and two blocks alike",
        score,
        higher_is_better=False,
        network=network,
    )


class FrechetDistance:
    """rFID: the Fréchet distance between Gaussians around the features of the originals and of the reconstructions."""

    scores: Sequence[float] = ()

    def __init__(self, network: FeatureNetwork | None = None) -> None:
        self.network = network or inception()
        self.distance: FrechetInceptionDistance | None = None

    def see(self, originals_BCHW: Tensor, pictures_BCHW: Tensor) -> None:
        originals_BD, pictures_BD = self.network(originals_BCHW), self.network(pictures_BCHW)
        if self.distance is None:
            from torchmetrics.image.fid import FrechetInceptionDistance

            self.distance = FrechetInceptionDistance(feature=PassFeatures(originals_BD.shape[1]))
        self.distance.update(originals_BD, real=True)
        self.distance.update(pictures_BD, real=False)

    def value(self, card: MetricCard, seed: int) -> MetricValue:
        """Raises ValueError for a single picture, and warns of so few that the Gaussians are flat."""
        assert self.distance is not None
        width = self.distance.real_features_sum.numel()
        _at_least_two("rFID", card)
        if card.n <= width:
            log.warning("rFID of %d pictures by %d features is far too high: measure more pictures.", card.n, width)
        definition = "originals against their reconstructions, prepared alike; covariance over n - 1"
        return MetricValue(
            float(self.distance.compute()), "", False, _complete_card(card, "rFID", definition, self.network)
        )


class KernelDistance:
    """KID: the squared maximum mean discrepancy between the features of originals and reconstructions, unbiased.

    The mean over `subsets` random draws of `subset_size` pictures, or of all where there are fewer. Draws are made by
    place, so another order of the pictures gives other draws. All features are kept: 32 kB a picture with Inception.
    """

    scores: Sequence[float] = ()

    def __init__(self, network: FeatureNetwork | None = None, subsets: int = 100, subset_size: int = 1000) -> None:
        from torchmetrics.image.kid import KernelInceptionDistance

        self.network = network or inception()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the features it keeps
            self.distance = KernelInceptionDistance(nn.Identity(), subsets, subset_size, compute_with_cache=False)

    def see(self, originals_BCHW: Tensor, pictures_BCHW: Tensor) -> None:
        self.distance.update(self.network(originals_BCHW), real=True)
        self.distance.update(self.network(pictures_BCHW), real=False)

    def value(self, card: MetricCard, seed: int) -> MetricValue:
        """Raises ValueError for a single picture."""
        _at_least_two("KID", card)
        self.distance.subset_size = min(self.distance.subset_size, card.n)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            mean, _ = self.distance.compute()
        definition = f"unbiased, cubic kernel, mean over {self.distance.subsets} draws of {self.distance.subset_size}"
        card = replace(_complete_card(card, "KID", definition, self.network), seed=seed)
        return MetricValue(float(mean), "", False, card)


METRICS: dict[str, Callable[[], Metric]] = {
    "PSNR": partial(
        MeanScore,
        "PSNR",
        "mean over pictures of 10 log10(255^2 / mean squared error), RGB bytes; infinite when one picture lost nothing",
        psnr,
        "dB",
    ),
    "SSIM": partial(
        MeanScore,
        "SSIM",
        "mean over pictures, RGB channels and whole windows; bytes, 11x11 Gaussian of sigma 1.5, K 0.01 and 0.03",
        ssim,
    ),
    **{f"LPIPS ({name})": partial(perceptual, name) for name in BACKBONES},
    "EfficientNet-Lite0 distance": lite_distance,
    "rFID": FrechetDistance,
    "KID": KernelDistance,
}


class PassFeatures(nn.Identity):
    """An identity in the place of torchmetrics' feature network: it takes features instead of pictures."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def _complete_card(card: MetricCard, metric: str, definition: str, network: FeatureNetwork | None) -> MetricCard:
    of_network = {"network": network.name, "network_hash": network.hash} if network else {}
    return replace(card, metric=metric, definition=definition, **of_network)


def _at_least(side: int, metric: str, pictures_BCHW: Tensor) -> None:
    height, width = pictures_BCHW.shape[-2:]
    if min(height, width) < side:
        raise ValueError(f"{metric} needs pictures of at least {side} x {side} pixels; got {width} x {height}.")


def _at_least_two(metric: str, card: MetricCard) -> None:
    if card.n < 2:
        raise ValueError(f"{metric} compares sets of pictures, and {card.reference!r} holds only one.")
