"""Metrics of image tokenizers: right numbers, whole protocols, and no file that the user did not put in place."""

import hashlib
import logging
import math
import pickle
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from chameleon_lab.evaluation.distances import METRICS, FrechetDistance, KernelDistance, psnr, ssim
from chameleon_lab.evaluation.metrics import content_hash, measure, preparation_words
from chameleon_lab.records import CodebookUsage
from chameleon_lab.tokenizers import networks
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.networks import Backbone, FeatureNetwork, WeightsFile
from chameleon_lab.tokenizers.preparation import BorderPadding, CentreCrop, FitToGrid, Preparation, preparations


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights, and no way to the network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something asked the network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def _noise(count: int, width: int = 16, height: int = 16) -> list[PIL.Image.Image]:
    rng = np.random.default_rng([count, width, height])
    return [PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)) for _ in range(count)]


def _bytes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


class Lossless:
    """An image tokenizer whose codes are the bytes, three columns a pixel, each made brighter by `step` on the way."""

    codes = 256

    def __init__(self, step: int = 0) -> None:
        self.step, self.waiting, self.most = step, 0, 0

    @property
    def preparations(self) -> dict[str, Preparation]:
        return preparations(16, 4)

    def encode_batch(self, pictures: list[PIL.Image.Image], preparation: Preparation | None = None) -> np.ndarray:
        self.most, self.waiting = max(self.most, self.waiting), 0
        return np.stack([np.asarray(picture).reshape(picture.height, -1) for picture in pictures])

    def decode(self, codes: np.ndarray) -> PIL.Image.Image:
        brighter = np.minimum(codes.astype(int) + self.step, 255).astype(np.uint8)
        return PIL.Image.fromarray(brighter.reshape(len(codes), -1, 3))

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter([nn.Parameter(torch.zeros(1))])


class Colours(nn.Module):
    """A small stand-in for Inception: mean red, green and blue, weighted."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), weight))

    def forward(self, bytes_BCHW: Tensor) -> Tensor:
        return bytes_BCHW.float().mean((2, 3)) * self.weight


# PSNR and SSIM


def test_psnr_is_that_of_each_reconstruction_and_its_mean(image_tokenizer: ImageTokenizer) -> None:
    pictures = _noise(5)
    expected = [image_tokenizer.reconstruct(picture).psnr for picture in pictures]
    results = measure(image_tokenizer, pictures, reference="noise", batch=2)
    assert results.scores["PSNR"] == pytest.approx(expected)
    assert results["PSNR"].value == pytest.approx(np.mean(expected))
    assert (results["PSNR"].unit, results["PSNR"].higher_is_better) == ("dB", True)


def test_psnr_of_a_known_error() -> None:
    black = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    assert psnr(black, black + 5).item() == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(black, black + 255).item() == 0


def test_ssim_is_torchmetrics_where_the_window_is_whole() -> None:
    before = _bytes(4, 3, 24, 40)
    after = (before + 30 * torch.randn(before.shape)).clamp(0, 255).byte()
    _, every_BCHW = structural_similarity_index_measure(  # pyright: ignore[reportGeneralTypeIssues]
        after.double(), before.double(), data_range=255.0, return_full_image=True
    )
    assert torch.allclose(ssim(before, after), every_BCHW[..., 5:-5, 5:-5].mean((1, 2, 3)), atol=1e-12)


def test_ssim_of_one_window_is_the_formula_of_the_paper() -> None:
    before, after = _bytes(1, 3, 11, 11), _bytes(1, 3, 11, 11)
    bell = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    weights = np.outer(bell, bell) / np.outer(bell, bell).sum()
    expected = []
    for x, y in zip(before[0].double().numpy(), after[0].double().numpy(), strict=True):
        x_mean, y_mean = (weights * x).sum(), (weights * y).sum()
        x_variance, y_variance = (weights * (x - x_mean) ** 2).sum(), (weights * (y - y_mean) ** 2).sum()
        covariance = (weights * (x - x_mean) * (y - y_mean)).sum()
        light = (2 * x_mean * y_mean + 2.55**2) / (x_mean**2 + y_mean**2 + 2.55**2)
        expected.append(light * (2 * covariance + 7.65**2) / (x_variance + y_variance + 7.65**2))
    assert ssim(before, after).item() == pytest.approx(np.mean(expected), abs=1e-12)


def test_pictures_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="SSIM needs pictures of at least 11 x 11 pixels; got 16 x 8"):
        ssim(_bytes(1, 3, 8, 16), _bytes(1, 3, 8, 16))


def test_nothing_lost_is_infinite_psnr_and_ssim_one() -> None:
    results = measure(Lossless(), _noise(3), reference="noise")
    assert results["PSNR"].value == math.inf
    assert results["SSIM"].value == pytest.approx(1, abs=1e-12)


def test_one_lossless_picture_makes_the_mean_psnr_infinite_and_the_scores_still_tell() -> None:
    white = PIL.Image.new("RGB", (16, 16), "white")  # which cannot become brighter
    black = PIL.Image.new("RGB", (16, 16), "black")
    results = measure(Lossless(step=5), [white, black], reference="plain")
    assert results["PSNR"].value == math.inf
    assert "infinite when one picture" in results["PSNR"].card.definition
    assert results.scores["PSNR"] == pytest.approx([math.inf, 20 * math.log10(255 / 5)])


# One pass


def test_usage_and_its_curve_are_those_of_the_codes(image_tokenizer: ImageTokenizer) -> None:
    pictures = _noise(6)
    expected = CodebookUsage.of([image_tokenizer.encode(picture) for picture in pictures], image_tokenizer.codes)
    results = measure(image_tokenizer, pictures, reference="noise", batch=4)
    assert results.usage.curve == expected.curve
    assert len(results.usage.curve) == 6
    assert results["codebook usage"].value == 100 * expected.usage
    assert results["perplexity"].value == expected.perplexity
    assert results["dead codes"].value == len(expected.dead)
    assert not results["dead codes"].higher_is_better


def test_values_do_not_depend_on_the_batch() -> None:
    one, many = (measure(Lossless(step=9), _noise(5), reference="noise", batch=batch) for batch in (1, 5))
    assert one.values == many.values
    assert one.usage.curve == many.usage.curve


def test_no_more_than_a_batch_of_pictures_is_drawn_ahead() -> None:
    tokenizer = Lossless()

    def pictures() -> Iterator[PIL.Image.Image]:
        for picture in _noise(40):
            tokenizer.waiting += 1
            yield picture

    assert measure(tokenizer, pictures(), reference="noise", batch=4)["PSNR"].card.n == 40
    assert tokenizer.most <= 4 + 1


def test_pictures_of_many_shapes_are_measured_in_their_order(image_tokenizer: ImageTokenizer) -> None:
    pictures = [*_noise(2, 32, 16), *_noise(1, 16, 32), *_noise(2, 32, 16), *_noise(1, 20, 20)]
    policy = FitToGrid(image_tokenizer.config.factor, 32)
    results = measure(image_tokenizer, pictures, reference="shapes", preparation=policy, batch=8)
    expected = [image_tokenizer.reconstruct(picture, policy).psnr for picture in pictures]
    assert results.scores["PSNR"] == pytest.approx(expected)
    assert results["PSNR"].card.crop == "fit to grid 4, 32"


def test_no_pictures_are_a_clear_error(image_tokenizer: ImageTokenizer) -> None:
    with pytest.raises(ValueError, match="no pictures in 'an empty folder'"):
        measure(image_tokenizer, [], reference="an empty folder")


def test_what_cannot_be_meant_is_refused_before_any_picture(image_tokenizer: ImageTokenizer) -> None:
    def untouched() -> Iterator[PIL.Image.Image]:
        raise AssertionError("a picture was asked for")
        yield

    with pytest.raises(ValueError, match=r"No metric is called 'FVD'; there are PSNR, SSIM, LPIPS \(AlexNet\)"):
        measure(image_tokenizer, untouched(), reference="x", metrics=["FVD"])
    with pytest.raises(ValueError, match="Name the reference set"):
        measure(image_tokenizer, untouched(), reference="")
    with pytest.raises(ValueError, match="at least 1 picture"):
        measure(image_tokenizer, untouched(), reference="x", batch=0)
    with pytest.raises(ValueError, match="needs the file alexnet"):
        measure(image_tokenizer, untouched(), reference="x", metrics=["LPIPS (AlexNet)"])


# Protocol


def test_two_tokenizers_measured_alike_have_equal_cards_and_compare(image_tokenizer: ImageTokenizer) -> None:
    ours, exact = (measure(each, _noise(3), reference="noise") for each in (image_tokenizer, Lossless()))
    assert exact["PSNR"].better_than(ours["PSNR"])
    for name in ours.values:
        assert ours[name].card == exact[name].card


def test_the_card_holds_the_whole_protocol(image_tokenizer: ImageTokenizer) -> None:
    pictures = _noise(3, 20, 16)
    card = measure(image_tokenizer, pictures, reference="noise val", preparation=BorderPadding(16))["SSIM"].card
    assert (card.metric, card.reference, card.n, card.dtype) == ("SSIM", "noise val", 3, "float32")
    assert (card.crop, card.resize) == ("border padding 16, (255, 255, 255)", "LANCZOS")
    assert (card.network, card.network_hash, card.seed) == (None, None, None)
    assert card.reference_hash == content_hash(BorderPadding(16).picture(picture) for picture in pictures)


def test_another_protocol_is_refused(image_tokenizer: ImageTokenizer) -> None:
    square, wide = _noise(3), _noise(3, 24, 16)
    plain = measure(image_tokenizer, square, reference="noise")
    padded = measure(image_tokenizer, wide, reference="noise", preparation=BorderPadding(16))
    with pytest.raises(ValueError, match="crop: centre crop 16 and border padding 16"):
        plain["PSNR"].compare(padded["PSNR"])
    fewer = measure(image_tokenizer, square[:2], reference="noise")
    with pytest.raises(ValueError, match="n: 3 and 2"):
        plain["SSIM"].compare(fewer["SSIM"])
    assert math.isfinite(plain["SSIM"].compare(fewer["SSIM"], despite=("n", "reference_hash")))


def test_the_hash_of_a_set_forgets_order_and_nothing_else() -> None:
    one, two, three = _noise(3)
    expected = content_hash([one, two, three])
    assert content_hash([three, one, two]) == expected
    assert content_hash([one, two, three, three]) != expected
    changed = three.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    assert content_hash([one, two, changed]) != expected
    flat = three.tobytes()
    assert content_hash([PIL.Image.frombytes("RGB", (8, 32), flat)]) != content_hash([three])


def test_a_policy_is_told_with_its_settings_or_refused() -> None:
    assert preparation_words(CentreCrop(64)) == "centre crop 64"
    assert preparation_words(FitToGrid(16, 1024)) == "fit to grid 16, 1024"

    class Hidden(Lossless):
        def picture(self, picture: PIL.Image.Image) -> PIL.Image.Image:
            return picture

        def pixels(self, prepared: PIL.Image.Image) -> Tensor:
            raise NotImplementedError

    with pytest.raises(ValueError, match="Hidden hides them: make it a dataclass"):
        preparation_words(Hidden())


# Files of weights


def _put(checkpoints: Path, data: bytes) -> WeightsFile:
    file = WeightsFile(f"tiny-{hashlib.sha256(data).hexdigest()[:8]}.pth", "https://example.org")
    (checkpoints / file.name).write_bytes(data)
    return file


def _put_tensors(checkpoints: Path, tensors: dict[str, Tensor]) -> WeightsFile:
    torch.save(tensors, checkpoints / "saved")
    return _put(checkpoints, (checkpoints / "saved").read_bytes())


@pytest.mark.parametrize(
    ("metric", "file"),
    [
        ("LPIPS (AlexNet)", "alexnet-owt-7be5be79.pth"),
        ("LPIPS (VGG)", "vgg16-397923af.pth"),
        ("rFID", "weights-inception-2015-12-05-6726825d.pth"),
        ("KID", "weights-inception-2015-12-05-6726825d.pth"),
    ],
)
def test_a_missing_file_is_named_with_its_place_and_its_source(checkpoints: Path, metric: str, file: str) -> None:
    with pytest.raises(ValueError, match=metric.split()[0]) as error:
        METRICS[metric]()
    message = str(error.value)
    assert f"needs the file {file}, which is not in {checkpoints}." in message
    assert "https://" in message and f"/{file} once" in message
    assert "\n" not in message


def test_a_damaged_file_is_not_loaded(checkpoints: Path) -> None:
    file = _put_tensors(checkpoints, {"x": torch.zeros(2)})
    assert torch.equal(file.read("This")["x"], torch.zeros(2))
    with (checkpoints / file.name).open("ab") as end:
        end.write(b"\0")
    with pytest.raises(ValueError, match="is damaged: its SHA-256 begins"):
        file.read("This")


class Trap:
    sprung = False

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return setattr, (Trap, "sprung", True)


def test_a_file_of_code_is_refused_and_not_run(checkpoints: Path) -> None:
    for data in (pickle.dumps(Trap(), protocol=2), b"", b"no tensors"):
        with pytest.raises(ValueError, match="does not hold tensors alone"):
            _put(checkpoints, data).read("This")
    assert not Trap.sprung
    pickle.loads(pickle.dumps(Trap()))  # the trap does work
    assert Trap.sprung


def _missing(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, name, None)


def test_a_missing_package_is_named_with_its_command(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = _put_tensors(checkpoints, {})
    monkeypatch.setitem(networks.BACKBONES, "VGG", Backbone("vgg", weights, 16))
    monkeypatch.setattr(networks, "INCEPTION", weights)
    for metric, package in (("LPIPS (VGG)", "torchvision"), ("rFID", "torch_fidelity")):
        _missing(package, monkeypatch)
        with pytest.raises(ValueError, match=rf"needs {package}, .*pip install 'chameleon-lab\[metrics\]'"):
            METRICS[metric]()


class Depths(torch.nn.Module):
    """A network with early features, as `EfficientNetLite0`."""

    def early(self, pixels_BCHW: Tensor, taps: Sequence[int]) -> list[Tensor]:
        return [pixels_BCHW + 2 + tap / 10 for tap in taps]


def test_the_distance_by_features_is_zero_for_equals_and_one_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "EfficientNetLite0", Depths)
    metric = METRICS["EfficientNet-Lite0 distance"]()
    generator = torch.Generator().manual_seed(0)
    originals_BCHW = torch.randint(0, 256, (3, 3, 16, 16), generator=generator, dtype=torch.uint8)
    further_BCHW = originals_BCHW.clone()
    further_BCHW[1, 0] = 255 - further_BCHW[1, 0]
    metric.see(originals_BCHW, further_BCHW)
    first, second, third = metric.scores
    assert first == third == 0 < second < 4


def test_the_distance_by_features_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "EFFICIENTNET", replace(networks.EFFICIENTNET, package="no_such_package"))
    with pytest.raises(ValueError, match=r"pip install 'chameleon-lab\[features\]'"):
        METRICS["EfficientNet-Lite0 distance"]()


# LPIPS


@pytest.fixture
def small_alexnet(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """AlexNet with a pixel's view, in torchvision's place, and other random weights of it in the user's file."""

    def features(*_: object) -> nn.Sequential:
        widths = {0: (3, 64), 3: (64, 192), 6: (192, 384), 8: (384, 256), 10: (256, 256)}
        return nn.Sequential(*(nn.Conv2d(*widths[i], 1) if i in widths else nn.ReLU() for i in range(12)))

    network = features()
    tensors = {f"features.{name}": tensor for name, tensor in network.state_dict().items()}
    weights = _put_tensors(checkpoints, {**tensors, "classifier.1.weight": torch.zeros(2)})
    monkeypatch.setitem(networks.BACKBONES, "AlexNet", Backbone("alex", weights, 12))
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setattr("torchmetrics.functional.image.lpips._get_tv_model_features", features)
    return network


@torch.no_grad()
def test_lpips_computes_with_the_users_file(small_alexnet: nn.Sequential, image_tokenizer: ImageTokenizer) -> None:
    results = measure(image_tokenizer, _noise(3), reference="noise", metrics=["LPIPS (AlexNet)"])["LPIPS (AlexNet)"]
    assert results.value > 0 and not results.higher_is_better
    assert results.card.network == "LPIPS 0.1 on AlexNet"
    trips = [image_tokenizer.reconstruct(picture) for picture in _noise(3)]

    def layers(picture: PIL.Image.Image) -> Iterator[Tensor]:
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = (x - shift.view(3, 1, 1)) / scale.view(3, 1, 1)
        for place, layer in enumerate(small_alexnet):
            x = layer(x)
            if place in (1, 4, 7, 9, 11):
                yield x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()

    linear = networks.lpips("AlexNet").module.state_dict()
    expected = [
        sum(
            float(((a - b).square() * linear[f"lin{i}.model.1.weight"]).sum(1).mean())
            for i, (a, b) in enumerate(zip(layers(trip.original), layers(trip.picture), strict=True))
        )
        for trip in trips
    ]
    assert results.value == pytest.approx(np.mean(expected), rel=1e-4)


def test_lpips_of_nothing_lost_is_zero(small_alexnet: nn.Sequential) -> None:
    results = measure(Lossless(), _noise(3), reference="noise", metrics=["LPIPS (AlexNet)"])
    assert results["LPIPS (AlexNet)"].value == 0
    assert list(results.scores["LPIPS (AlexNet)"]) == [0, 0, 0]


def test_lpips_refuses_pictures_too_small_for_its_backbone(small_alexnet: nn.Sequential) -> None:
    with pytest.raises(ValueError, match=r"LPIPS \(AlexNet\) needs pictures of at least 12 x 12 pixels; got 8 x 8"):
        measure(Lossless(), _noise(1, 8, 8), reference="x", metrics=["LPIPS (AlexNet)"], preparation=CentreCrop(8))


# rFID and KID


def test_rfid_of_a_shift_is_its_square() -> None:
    dark = [PIL.Image.fromarray(np.asarray(picture) // 2) for picture in _noise(12)]
    network = FeatureNetwork("colours", Colours())
    results = measure(Lossless(step=7), dark, reference="dark", metrics=[lambda: FrechetDistance(network)], batch=5)
    assert results["rFID"].value == pytest.approx(3 * 7**2, rel=1e-6)
    assert (results["rFID"].card.network, results["rFID"].card.network_hash) == ("colours", network.hash)
    assert "rFID" not in results.scores


def test_kid_is_the_unbiased_discrepancy_of_the_features() -> None:
    pictures, network = _noise(10), FeatureNetwork("colours", Colours(0.01))
    kid = measure(Lossless(step=40), pictures, reference="x", metrics=[lambda: KernelDistance(network)])["KID"]
    before, after = (
        np.stack([np.minimum(np.asarray(p).astype(float) + step, 255).mean((0, 1)) * 0.01 for p in pictures])
        for step in (0, 40)
    )

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / 3 + 1) ** 3

    within = [(kernel(x, x).sum() - kernel(x, x).trace()) / 90 for x in (before, after)]
    assert kid.value == pytest.approx(sum(within) - 2 * kernel(before, after).mean(), rel=1e-4)
    assert "mean over 100 draws of 10" in kid.card.definition


def test_kid_draws_by_its_seed_and_says_so() -> None:
    network, state = FeatureNetwork("colours", Colours(0.01)), torch.get_rng_state()
    one, same, other = (
        measure(
            Lossless(step=40),
            _noise(10),
            reference="x",
            metrics=[lambda: KernelDistance(network, subsets=3, subset_size=4)],
            seed=seed,
        )["KID"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert one == same
    with pytest.raises(ValueError, match="seed: 1 and 2"):
        one.compare(other)
    assert one.compare(other, despite=["seed"]) != 0


def test_one_picture_is_no_set() -> None:
    network = FeatureNetwork("colours", Colours())
    for metric in (lambda: FrechetDistance(network), lambda: KernelDistance(network)):
        with pytest.raises(ValueError, match="compares sets of pictures, and 'x' holds only one"):
            measure(Lossless(), _noise(1), reference="x", metrics=[metric])


def test_rfid_of_fewer_pictures_than_features_warns(caplog: pytest.LogCaptureFixture) -> None:
    network = FeatureNetwork("colours", Colours())
    with caplog.at_level(logging.WARNING):
        measure(Lossless(), _noise(3), reference="x", metrics=[lambda: FrechetDistance(network)])
    assert "rFID of 3 pictures by 3 features is far too high" in caplog.text


def test_other_weights_under_one_name_are_refused() -> None:
    one, other = (
        measure(
            Lossless(9),
            _noise(5),
            reference="x",
            metrics=[lambda weight=weight: FrechetDistance(FeatureNetwork("colours", Colours(weight)))],
        )
        for weight in (1.0, 2.0)
    )
    assert one["rFID"].card == replace(other["rFID"].card, network_hash=one["rFID"].card.network_hash)
    with pytest.raises(ValueError, match=r"network_hash: \w{64} and \w{64} \(other weights\)"):
        one["rFID"].compare(other["rFID"])


def test_the_inception_network_gets_tensors_only_from_the_users_file(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Port(Colours):
        """As torch-fidelity's class does, it unpickles its file, and gives a tuple of layers."""

        def __init__(self, name: str, layers: list[str], path: str) -> None:
            super().__init__()
            assert layers == ["2048"]
            self.load_state_dict(torch.load(path, weights_only=False))

        def forward(self, bytes_BCHW: Tensor) -> tuple[Tensor]:
            return (super().forward(bytes_BCHW),)

    port = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    port.FeatureExtractorInceptionV3 = Port  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, port.__name__, port)
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setattr(networks, "INCEPTION", _put_tensors(checkpoints, Colours(2.0).state_dict()))
    plain = [PIL.Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "black", "lime")]
    results = measure(Lossless(step=1), plain, reference="plain", metrics=["rFID", "KID"])
    assert results["rFID"].card.network == "Inception v3 of 2015, 2048 features, resizing as TensorFlow 1"
    assert results["rFID"].card.network_hash == results["KID"].card.network_hash
    assert results["rFID"].value > 0
    monkeypatch.setattr(networks, "INCEPTION", _put(checkpoints, pickle.dumps(Trap(), protocol=2)))
    with pytest.raises(ValueError, match="does not hold tensors alone"):
        METRICS["KID"]()
