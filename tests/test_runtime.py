"""Who computes the image tokenizer's networks: a runtime where it is there and equal, else torch, and never stale."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chameleon_lab import crossovers
from chameleon_lab.tokenizers import conversion, runtime
from chameleon_lab.tokenizers.image import TINY_IMAGES, ImageTokenizer

SHAPE = replace(TINY_IMAGES, codes=64, code_width=8, widths=(16, 32), latent_width=8, patch=2, middle=True)


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ImageTokenizer:
    monkeypatch.setattr(crossovers, "RUNTIME_WEIGHTS", {"exact": 0, "fast": 0})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(runtime.SWITCH, raising=False)
    torch.manual_seed(0)
    return ImageTokenizer(SHAPE).eval()


class StandIn:
    """A runtime whose files hold the weights, and whose `error` is added to what it computes."""

    def __init__(self) -> None:
        self.conversions, self.passes, self.error = 0, 0, 0.0
        self.failure: Exception | None = None

    def save(self, layers: nn.Sequential, probe_BCHW: Tensor, folder: Path) -> None:
        self.conversions += 1
        self.layers = copy.deepcopy(layers)  # as a trace keeps the settings of its day
        if self.failure:
            raise self.failure
        (folder / "network.xml").write_text(f"<net>{probe_BCHW.shape[1]}</net>")
        torch.save(layers.state_dict(), folder / "network.bin")

    def load(self, folder: Path, mode: str, threads: int) -> Callable[[np.ndarray], list[np.ndarray]]:
        weights = torch.load(folder / "network.bin", weights_only=True)

        def network(x_BCHW: np.ndarray) -> list[np.ndarray]:
            self.passes += 1
            y_BCHW = torch.func.functional_call(self.layers, weights, torch.from_numpy(x_BCHW))
            return [y_BCHW.numpy() * (1 + self.error)]

        return network


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    double = StandIn()
    monkeypatch.setattr(conversion, "openvino_version", lambda: "0")
    monkeypatch.setattr(conversion, "save_network", double.save)
    monkeypatch.setattr(conversion, "load_network", double.load)
    return double


@torch.no_grad()
def worker(tokenizer: ImageTokenizer, side: int = 16) -> str:
    tokenizer.encode_pixels(torch.zeros(1, 3, side, 2 * side))
    return tokenizer.worker


def test_the_runtime_is_chosen_by_itself_and_switched_off(
    tokenizer: ImageTokenizer, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker(tokenizer) == worker(tokenizer, 32) == "openvino exact" and stand_in.conversions == 1
    tokenizer.runtime = "fast"
    assert worker(tokenizer) == "openvino fast" and stand_in.conversions == 1, "one conversion serves both modes"
    tokenizer.runtime = "torch"
    assert worker(tokenizer) == "torch"
    tokenizer.runtime = "exact"
    monkeypatch.setenv(runtime.SWITCH, "torch")
    assert worker(tokenizer) == "torch"
    monkeypatch.setenv(runtime.SWITCH, "quick")
    with pytest.raises(ValueError, match="'exact', 'fast' or 'torch'; got 'quick'"):
        worker(tokenizer)
    with pytest.raises(ValueError, match="got 'best'"):
        ImageTokenizer(SHAPE, runtime="best")


def test_torch_computes_without_the_runtime(tokenizer: ImageTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "openvino_version", lambda: "")
    assert worker(tokenizer) == "torch"


@pytest.mark.parametrize("fault", ["differs", "is no number", "does not convert"])
def test_a_runtime_that_differs_or_fails_is_given_up_with_one_line(
    fault: str, tokenizer: ImageTokenizer, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.error = {"differs": 1e-3, "is no number": float("nan")}.get(fault, 0.0)
    stand_in.failure = RuntimeError("no such operation") if fault == "does not convert" else None
    with caplog.at_level(logging.INFO, logger=runtime.__name__):
        assert [worker(tokenizer) for _ in range(3)] == ["torch"] * 3
    assert stand_in.conversions == 1 and len(caplog.records) == 1


CHANGES: dict[str, Callable[[ImageTokenizer], Any]] = {
    "a weight's sign through .data": lambda it: it.encoder.conv_in.weight.data[0].neg_(),
    "rows that change places": lambda it: it.encoder.conv_out.weight.data.copy_(it.encoder.conv_out.weight.flip(0)),
    "a weight in place": lambda it: it.quant_conv.weight.add_(1),
    "a setting": lambda it: setattr(it.encoder.norm_out, "eps", 0.1),
    "another part of torch's": lambda it: setattr(it.encoder, "mid", nn.Identity()),
    "a hook": lambda it: it.encoder.mid.register_forward_hook(lambda *_: torch.zeros(1, 32, 4, 8)),
    "a person's own part": lambda it: setattr(it.encoder, "mid", type("Own", (nn.Identity,), {"__module__": "own"})()),
    "a method": lambda it: setattr(it.encoder.mid, "forward", lambda x: x + 1),
    "training": lambda it: it.encoder.train(),
    "another type": lambda it: it.double(),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_nothing_stale_computes_after_a_change(change: str, tokenizer: ImageTokenizer, stand_in: StandIn) -> None:
    pixels_BCHW = torch.rand(2, 3, 16, 32) * 2 - 1
    layers = nn.Sequential(tokenizer.encoder, tokenizer.quant_conv)
    before_BCHW, who = runtime.compute(layers, pixels_BCHW, "exact", 4)
    assert who == "openvino exact" and torch.allclose(before_BCHW, layers(pixels_BCHW), atol=1e-5)
    CHANGES[change](tokenizer)
    layers = nn.Sequential(tokenizer.encoder, tokenizer.quant_conv)
    pixels_BCHW = pixels_BCHW.to(tokenizer.quant_conv.weight.dtype)
    for _ in range(3):  # the new weights are converted at the second pass
        assert torch.allclose(runtime.compute(layers, pixels_BCHW, "exact", 4)[0], layers(pixels_BCHW), atol=1e-5)


def test_gradients_and_small_networks_are_torchs(
    tokenizer: ImageTokenizer, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer(torch.zeros(1, 3, 16, 16))[0].sum().backward()
    tokenizer.encode_pixels(torch.zeros(1, 3, 16, 16))
    monkeypatch.setattr(crossovers, "RUNTIME_WEIGHTS", {"exact": 2**22, "fast": 0})
    assert worker(tokenizer) == "torch" and not stand_in.passes


def test_weights_that_move_are_converted_at_their_second_pass_and_not_stored(
    tokenizer: ImageTokenizer, stand_in: StandIn
) -> None:
    workers = []
    for _ in range(2):
        workers += [worker(tokenizer), worker(tokenizer)]
        tokenizer.encoder.conv_in.weight.data.mul_(1.5)
    assert workers == ["openvino exact", "openvino exact", "torch", "openvino exact"]
    assert len(list(conversion.cache_folder().iterdir())) == 1


@pytest.fixture
def restart(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Forgets the twins in memory, as another process would not know them."""
    yield lambda: monkeypatch.setattr(runtime, "_twins", type(runtime._twins)())


def test_the_cache_serves_another_process_and_a_damaged_one_is_rebuilt(
    tokenizer: ImageTokenizer, stand_in: StandIn, restart: Callable[[], None]
) -> None:
    assert worker(tokenizer) == "openvino exact"
    restart()
    assert worker(tokenizer) == "openvino exact" and stand_in.conversions == 1
    (folder,) = conversion.cache_folder().iterdir()
    wholes = {path.name: path.read_bytes() for path in folder.iterdir()}
    conversions = 1
    for name, whole in wholes.items():
        half, flipped = whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])
        for content in (b"", half, flipped, None):
            (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
            restart()
            conversions += 1
            assert worker(tokenizer) == "openvino exact" and stand_in.conversions == conversions, (name, content)


def test_the_cache_holds_the_newest_few_and_an_unwritable_one_is_done_without(
    tokenizer: ImageTokenizer, stand_in: StandIn, restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(conversion.MOST_NETWORKS + 2):
        restart()
        tokenizer.encoder.conv_in.weight.data.mul_(1.5)
        assert worker(tokenizer) == "openvino exact"
    assert len(list(conversion.cache_folder().iterdir())) == conversion.MOST_NETWORKS
    restart()
    file = conversion.cache_folder().parent / "file"
    file.write_text("")
    monkeypatch.setattr(conversion, "cache_folder", lambda: file / "below")
    tokenizer.encoder.conv_in.weight.data.mul_(1.5)
    assert worker(tokenizer) == "openvino exact"


@pytest.mark.parametrize("mode", ["exact", "fast"])
@torch.no_grad()
def test_openvino_computes_what_torch_does_on_any_grid(mode: str, tokenizer: ImageTokenizer) -> None:
    pytest.importorskip("openvino")
    for rows, columns in ((2, 2), (5, 3), (16, 16), (1, 9)):
        pixels_BCHW = torch.rand(2, 3, 4 * rows, 4 * columns) * 2 - 1
        tokenizer.runtime = "torch"
        codes_BHW = tokenizer.encode_pixels(pixels_BCHW)
        right_BCHW = tokenizer.decode_pixels(codes_BHW)
        tokenizer.runtime = mode
        assert (tokenizer.encode_pixels(pixels_BCHW) == codes_BHW).float().mean() >= {"exact": 1, "fast": 0.8}[mode]
        assert tokenizer.worker == f"openvino {mode}"
        error = (tokenizer.decode_pixels(codes_BHW) - right_BCHW).abs().max() / right_BCHW.abs().max()
        assert tokenizer.worker == f"openvino {mode}" and error < {"exact": 1e-4, "fast": 0.1}[mode]


def test_a_process_without_a_home_has_no_place_for_a_cache(monkeypatch):
    """As in a container that runs under a number of its own."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(
        Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory."))
    )
    with pytest.raises(OSError):
        (conversion.cache_folder() / "x").mkdir(parents=True)
