"""The image tokenizer's networks as OpenVINO computes them, where it is installed (the extra `openvino`).

- modes: "exact" in float32; "fast" in bfloat16, which turns some codes; "torch" without OpenVINO
- torch computes what trains, is small (`crossovers.RUNTIME_WEIGHTS`), has hooks or a part of a person's own, or lies
  elsewhere than in float32 on a CPU
- all weights are hashed at each pass, 15 ms of a second: an edit through `.data` leaves no other trace
- a converted network is compared with torch on a probe in each process; one that differs or fails is given up
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import shutil
import tempfile
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from chameleon_lab import crossovers, native_ops
from chameleon_lab.storage import whole_folder

log = logging.getLogger(__name__)

SWITCH = "CHAMELEON_RUNTIME"  # the environment's variable that comes before what a tokenizer says
HINTS = {"exact": ("f32", 1e-4), "fast": ("bf16", 0.15)}  # OpenVINO's type, and a probe's largest relative error
MOST_NETWORKS = 4  # below the user's cache folder, the newest: two published tokenizers, 0.55 GB
KNOWN_PARTS = ("torch.nn.modules.", "chameleon_lab.tokenizers.image.")


def require_mode(mode: str) -> str:
    """The mode itself. Raises ValueError for one that is none."""
    if mode not in ("torch", *HINTS):
        raise ValueError(f"`runtime`, or the variable {SWITCH}, is 'exact', 'fast' or 'torch'; got {mode!r}.")
    return mode


def compute(layers: nn.Sequential, x_BCHW: Tensor, mode: str, cell: int) -> tuple[Tensor, str]:
    """What the layers make of x, whose sides are multiples of `cell`, and who computed it, such as "openvino fast"."""
    mode = require_mode(os.environ.get(SWITCH) or mode)
    if mode != "torch" and _eligible(layers, x_BCHW):
        with _lock:
            twin = _twins.setdefault(layers[0], Twin())
        y_BCHW = twin.compute(layers, x_BCHW, mode, cell)
        if y_BCHW is not None:
            return y_BCHW, f"openvino {mode}"
    return layers(x_BCHW), "torch"


@functools.cache
def openvino_version() -> str:
    """Empty where it is not installed."""
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _eligible(layers: nn.Sequential, x_BCHW: Tensor) -> bool:
    """Whether a trace of the layers is all that they do, and worth its making."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not openvino_version():
        return False
    weights, parts, hooks = list(layers.state_dict().values()), list(layers.modules()), native_ops.listeners(layers)
    places = [f"{place}." for part in parts for place in (type(part).__module__, type(part).forward.__module__)]
    return (
        sum(each.numel() for each in weights) >= crossovers.RUNTIME_WEIGHTS
        and {(each.dtype, each.device.type) for each in (x_BCHW, *weights)} == {(torch.float32, "cpu")}
        and not (type(x_BCHW) is not Tensor or not x_BCHW.numel() or torch.is_autocast_enabled("cpu"))
        and not (hooks is None or any(hooks) or any(part.training for part in parts[1:]))
        and not any("forward" in vars(part) for part in parts)
        and all(place.startswith(KNOWN_PARTS) for place in places)
    )


class Twin:
    """A network's copies in OpenVINO, by mode and number of threads; None for one that was given up."""

    def __init__(self) -> None:
        self._lock, self._key, self._next_key = threading.Lock(), "", ""
        self._copies: dict[tuple[str, int], Any] = {}

    def compute(self, layers: nn.Sequential, x_BCHW: Tensor, mode: str, cell: int) -> Tensor | None:
        """None where torch must compute."""
        with self._lock:
            key, settings = network_key(layers), (mode, torch.get_num_threads())
            moves = self._key not in ("", key)
            if moves and key != self._next_key:  # a run's samples would pay a conversion each: wait for a second pass
                self._next_key = key
                return None
            if key != self._key:
                self._key, self._copies = key, {}
            if settings not in self._copies:
                seeded = torch.Generator().manual_seed(0)
                probe_BCHW = torch.randn(1, x_BCHW.shape[1], 3 * cell, 2 * cell, generator=seeded)
                self._copies[settings] = self._copy(layers, probe_BCHW, settings, moves)
            copy = self._copies[settings]
            return None if copy is None else _apply(copy, x_BCHW)

    def _copy(self, layers: nn.Sequential, probe_BCHW: Tensor, settings: tuple[str, int], moves: bool) -> Any:
        allowed = HINTS[settings[0]][1]
        try:
            with tempfile.TemporaryDirectory() as short_lived:
                try:
                    place = Path(short_lived) if moves else cache_folder()
                    folder = network_folder(layers, probe_BCHW, place / self._key)
                except OSError:  # a cache folder that cannot be written
                    folder = network_folder(layers, probe_BCHW, Path(short_lived, self._key))
                copy = load_network(folder, *settings)
            right_BCHW = layers(probe_BCHW)
            error = float((_apply(copy, probe_BCHW) - right_BCHW).abs().max() / right_BCHW.abs().max())
            if error <= allowed:  # False for nan
                return copy
            reason = f"a probe's relative error is {error:.1e}, and {allowed:.1e} is allowed"
        except Exception as failure:  # whatever a foreign program raises, torch computes
            reason = f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
        log.info("torch computes %s, not OpenVINO: %s", " and ".join(type(each).__name__ for each in layers), reason)
        return None


_lock = threading.Lock()
_twins: weakref.WeakKeyDictionary[nn.Module, Twin] = weakref.WeakKeyDictionary()


def _apply(copy: Any, x_BCHW: Tensor) -> Tensor:
    """One picture at a time: several at once are no faster, and take their number times the memory."""
    return torch.cat([torch.from_numpy(copy(each[None].contiguous().numpy())[0]) for each in x_BCHW])


def network_key(layers: nn.Sequential) -> str:
    """A hash of all weights, the layers' settings, and the programs that trace and convert them."""
    hashed = xxhash.xxh3_128(f"{layers} {torch.__version__} {openvino_version()} {_own_text()}".encode())
    for tensor in layers.state_dict().values():
        hashed.update(tensor.contiguous().numpy().data)
    return hashed.hexdigest()


@functools.cache
def _own_text() -> str:
    return "".join(Path(__file__).with_name(name).read_text() for name in ("image.py", "runtime.py"))


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chameleon-lab" / "networks"


def network_folder(layers: nn.Sequential, probe_BCHW: Tensor, folder: Path) -> Path:
    """The folder of a converted network, which is written where it is missing or damaged."""
    mark = folder / "digest"
    if not (mark.is_file() and mark.read_text(errors="replace") == files_digest(folder)):
        with whole_folder(folder) as hidden:
            save_network(layers, probe_BCHW, hidden)
            (hidden / mark.name).write_text(files_digest(hidden))
    os.utime(folder)
    networks = sorted(folder.parent.glob("[0-9a-f]" * 32), key=os.path.getmtime)
    for old in networks[:-MOST_NETWORKS]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def files_digest(folder: Path) -> str:
    """Of what lies in it but the mark."""
    paths = sorted(each for each in folder.iterdir() if each.name != "digest")
    return xxhash.xxh3_128(b"".join(path.read_bytes() for path in paths)).hexdigest()


def save_network(layers: nn.Sequential, probe_BCHW: Tensor, folder: Path) -> None:
    """Writes the layers as OpenVINO has them, for any sides. By its frontend: `convert_model` reports its use."""
    import openvino  # pyright: ignore[reportMissingImports]
    from openvino.frontend import FrontEndManager  # pyright: ignore
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # pyright: ignore

    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a tracer that sees shapes
        trace = torch.jit.trace(layers, probe_BCHW.clone(), check_trace=False)
        graph = TorchScriptPythonDecoder(trace)  # the frontend does not keep it alive
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(graph))
    model.reshape([1, probe_BCHW.shape[1], -1, -1])
    openvino.save_model(model, folder / "network.xml", compress_to_fp16=False)


def load_network(folder: Path, mode: str, threads: int) -> Any:
    """A callable from an array to a sequence whose first is the result."""
    import openvino  # pyright: ignore[reportMissingImports]

    settings = {"INFERENCE_PRECISION_HINT": HINTS[mode][0], "INFERENCE_NUM_THREADS": threads}
    return openvino.Core().compile_model(folder / "network.xml", "CPU", settings | {"PERFORMANCE_HINT": "LATENCY"})
