"""A network of the image tokenizer converted for OpenVINO: on the disk, by a hash of all that it was made from.

A damaged or missing one is made anew. OpenVINO's `convert_model` reports its use to a service, its frontend does not.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from chameleon_lab.storage import whole_folder

MOST_NETWORKS = 4  # below the user's cache folder, the newest: two published tokenizers, 0.55 GB
HINTS = {"exact": "f32", "fast": "bf16"}  # OpenVINO's names of the types that the runtime's modes compute in


@functools.cache
def openvino_version() -> str:
    """Empty where it is not installed."""
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return ""


def network_key(layers: nn.Sequential) -> str:
    """A hash of all weights, the layers' settings, and the programs that trace and convert them."""
    hashed = xxhash.xxh3_128(f"{layers} {torch.__version__} {openvino_version()} {_programs()}".encode())
    for tensor in layers.state_dict().values():
        hashed.update(tensor.contiguous().numpy().data)
    return hashed.hexdigest()


@functools.cache
def _programs() -> str:
    return "".join(Path(__file__).with_name(name).read_text() for name in ("image.py", "conversion.py"))


def cache_folder() -> Path:
    """Where nothing can be written for a process that has no home, as in a container under a number of its own."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "chameleon-lab", "networks")
    except RuntimeError:
        return Path(os.devnull, "networks")


def network_folder(layers: nn.Sequential, probe_BCHW: Tensor, folder: Path) -> Path:
    """The folder of a converted network, which is written where it is missing or damaged."""
    mark = folder / "digest"
    if not mark.is_file() or mark.read_text(errors="replace") != files_digest(folder):
        with whole_folder(folder, ("network.xml", "network.bin", mark.name)) as hidden:
            save_network(layers, probe_BCHW, hidden)
            (hidden / mark.name).write_text(files_digest(hidden))
    os.utime(folder)
    for old in sorted(folder.parent.glob("[0-9a-f]" * 32), key=os.path.getmtime)[:-MOST_NETWORKS]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def files_digest(folder: Path) -> str:
    paths = sorted(each for each in folder.iterdir() if each.name != "digest")
    return xxhash.xxh3_128(b"".join(path.read_bytes() for path in paths)).hexdigest()


def save_network(layers: nn.Sequential, probe_BCHW: Tensor, folder: Path) -> None:
    """Writes a trace of the layers as OpenVINO has it, for any sides: 1 to 3 s of a core for a published network."""
    import openvino  # pyright: ignore[reportMissingImports]
    from openvino.frontend import FrontEndManager  # pyright: ignore[reportMissingImports]
    from openvino.frontend.pytorch.ts_decoder import (  # pyright: ignore[reportMissingImports]
        TorchScriptPythonDecoder,
    )

    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a tracer that sees shapes
        trace = torch.jit.trace(layers, probe_BCHW.clone(), check_trace=False)
        graph = TorchScriptPythonDecoder(trace)  # the frontend does not keep it alive
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(graph))
    model.reshape([1, probe_BCHW.shape[1], -1, -1])
    openvino.save_model(model, folder / "network.xml", compress_to_fp16=False)


def load_network(folder: Path, mode: str, threads: int) -> Any:
    """A callable from an array, one picture's, to a sequence whose first is the result."""
    import openvino  # pyright: ignore[reportMissingImports]

    core = openvino.Core()
    model = core.read_model(folder / "network.xml")
    if mode == "exact":  # sums of squares want float32
        for node in model.get_ordered_ops():
            if node.get_type_name() == "GroupNormalization":
                node.output(0).replace(_norm_by_sums(node).output(0))
    settings = {"INFERENCE_PRECISION_HINT": HINTS[mode], "INFERENCE_NUM_THREADS": threads}
    return core.compile_model(model, "CPU", settings | {"PERFORMANCE_HINT": "LATENCY"})


def _norm_by_sums(node: Any) -> Any:
    """A GroupNormalization as sums of each channel and of its squares, and one factor and one shift for it.

    OpenVINO's own wants all of a group in a row, and so carries the picture out of the convolutions' order of memory
    and back, a sixth of an encoder's time. Two sums, of rows and then of these, and not one: they round less, and the
    mean over a group's channels between them keeps the compiler from making them one.
    """
    import openvino.opset13 as ops  # pyright: ignore[reportMissingImports]

    x, weight, bias = (node.input_value(place) for place in range(3))
    groups, eps = (node.get_attributes()[name] for name in ("num_groups", "epsilon"))
    channels = x.get_partial_shape()[1].get_length()
    each = channels // groups
    means = np.kron(np.eye(groups), np.full((each, each), 1 / each)).astype(np.float32)[:, :, None, None]
    columns = ops.convert(ops.gather(ops.shape_of(x), ops.constant(3), ops.constant(0)), "f32")

    def mean(of_rows: Any) -> Any:
        among = ops.convolution(of_rows, ops.constant(means), [1, 1], [0, 0], [0, 0], [1, 1])
        return ops.reduce_mean(among, ops.constant([2]), keep_dims=True)

    length, shape = ops.reduce_l2(x, ops.constant([3]), keep_dims=True), ops.constant([1, channels, 1, 1])
    middle = mean(ops.reduce_mean(x, ops.constant([3]), keep_dims=True))
    spread = ops.subtract(mean(ops.divide(ops.multiply(length, length), columns)), ops.multiply(middle, middle))
    deviation = ops.sqrt(ops.add(ops.relu(spread), ops.constant(np.float32(eps))))
    factor = ops.divide(ops.reshape(weight, shape, special_zero=False), deviation)
    shift = ops.subtract(ops.reshape(bias, shape, special_zero=False), ops.multiply(middle, factor))
    return ops.add(ops.multiply(x, factor), shift)
