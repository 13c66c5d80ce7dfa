"""The image tokenizer's networks as OpenVINO computes them, where it is installed (the extra `openvino`).

- modes: "exact" in float32; "fast" in bfloat16, which turns some codes; "torch" without OpenVINO
- torch computes what trains, is small (`crossovers.RUNTIME_WEIGHTS`), has hooks or a part of a person's own, or lies
  elsewhere than in float32 on a CPU
- all weights are hashed at each pass, 15 ms of a second: an edit through `.data` leaves no other trace
- a converted network is compared with torch on a probe in each process; one that differs or fails is given up
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chameleon_lab import crossovers, native_ops
from chameleon_lab.tokenizers import conversion

log = logging.getLogger(__name__)

SWITCH = "CHAMELEON_RUNTIME"  # the environment's variable that comes before what a tokenizer says
ALLOWED = {"exact": 1e-4, "fast": 0.15}  # of a probe's error, as a share of its largest number
KNOWN_PARTS = ("torch.nn.modules.", "chameleon_lab.tokenizers.image.")


def require_mode(mode: str) -> str:
    """The mode itself. Raises ValueError for one that is none."""
    if mode not in ("torch", *ALLOWED):
        raise ValueError(f"`runtime`, or the variable {SWITCH}, is 'exact', 'fast' or 'torch'; got {mode!r}.")
    return mode


def compute(layers: nn.Sequential, x_BCHW: Tensor, mode: str, cell: int) -> tuple[Tensor, str]:
    """What the layers make of x, whose sides are multiples of `cell`, and who computed it, such as "openvino fast"."""
    mode = require_mode(os.environ.get(SWITCH) or mode)
    if mode != "torch" and _eligible(layers, x_BCHW, mode):
        with _lock:
            twin = _twins.setdefault(layers[0], Twin())
        y_BCHW = twin.compute(layers, x_BCHW, mode, cell)
        if y_BCHW is not None:
            return y_BCHW, f"openvino {mode}"
    return layers(x_BCHW), "torch"


def _eligible(layers: nn.Sequential, x_BCHW: Tensor, mode: str) -> bool:
    """Whether a trace of the layers is all that they do, and worth its making."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not conversion.openvino_version():
        return False
    weights, parts, hooks = list(layers.state_dict().values()), list(layers.modules()), native_ops.listeners(layers)
    places = [f"{place}." for part in parts for place in (type(part).__module__, type(part).forward.__module__)]
    return (
        sum(each.numel() for each in weights) >= crossovers.RUNTIME_WEIGHTS[mode]
        and {(each.dtype, each.device.type) for each in (x_BCHW, *weights)} == {(torch.float32, "cpu")}
        and not (type(x_BCHW) is not Tensor or not x_BCHW.numel() or torch.is_autocast_enabled("cpu"))
        and not (hooks is None or any(hooks) or any(part.training or "forward" in vars(part) for part in parts[1:]))
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
            key, settings = conversion.network_key(layers), (mode, torch.get_num_threads())
            moves = self._key not in ("", key)
            if moves and key != self._next_key:  # a run's samples would pay a conversion each: wait for a second pass
                self._next_key = key
                return None
            if key != self._key:
                self._key, self._copies = key, {}
            if settings not in self._copies:
                noise = torch.Generator().manual_seed(0)
                probe_BCHW = torch.randn(1, x_BCHW.shape[1], 3 * cell, 2 * cell, generator=noise)
                self._copies[settings] = self._copy(
                    layers, probe_BCHW, *settings, "" if moves else conversion.cache_folder()
                )
            copy = self._copies[settings]
            return None if copy is None else run_copy(copy, x_BCHW)

    def _copy(self, layers: nn.Sequential, probe_BCHW: Tensor, mode: str, threads: int, cache: Path | str) -> Any:
        """Weights that move have no `cache`: they would fill it."""
        try:
            with tempfile.TemporaryDirectory() as passing:
                try:
                    folder = conversion.network_folder(layers, probe_BCHW, Path(cache or passing, self._key))
                except OSError:  # a cache folder that cannot be written
                    folder = conversion.network_folder(layers, probe_BCHW, Path(passing, self._key))
                copy = conversion.load_network(folder, mode, threads)
            right_BCHW = layers(probe_BCHW)
            error = float((run_copy(copy, probe_BCHW) - right_BCHW).abs().max() / right_BCHW.abs().max())
            if error <= ALLOWED[mode]:  # False for nan
                return copy
            reason = f"a probe's relative error is {error:.1e}, and {ALLOWED[mode]:.1e} is allowed"
        except Exception as failure:  # whatever a foreign program raises, torch computes
            reason = f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
        log.info("torch computes %s, not OpenVINO: %s", " and ".join(type(each).__name__ for each in layers), reason)


_lock = threading.Lock()
_twins: weakref.WeakKeyDictionary[nn.Module, Twin] = weakref.WeakKeyDictionary()


def run_copy(copy: Any, x_BCHW: Tensor) -> Tensor:
    """One picture at a time: several at once are no faster, and take their number times the memory."""
    return torch.cat([torch.from_numpy(copy(each[None].contiguous().numpy())[0]) for each in x_BCHW])
