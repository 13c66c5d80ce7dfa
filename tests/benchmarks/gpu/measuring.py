"""Times and bytes on the device, and models of random weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from chameleon_lab.outlines import outline
from chameleon_lab.transformer import ModelConfig, Transformer
from gpu.sizes import Sizes


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], turns: int = 3, warm: int = 1) -> float:
    """The median time of a work, the device's included."""
    times = list[float]()
    for turn in range(warm + turns):
        wait()
        started = time.perf_counter()
        work()
        wait()
        if turn >= warm:
            times.append(time.perf_counter() - started)
    return median(times)


def drawn(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> Transformer:
    """A transformer of random weights, made on its device alone: billions of weights in a second."""
    with outline():
        model = Transformer(config).to(dtype)
    model = model.to_empty(device=device())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5 * config.width**-0.5)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return model.eval()


def bandwidth(sizes: Sizes) -> float:
    """Bytes a second of a copy on the device, read and written."""
    block = torch.empty(sizes.copied, dtype=torch.int8, device=device())
    target = torch.empty_like(block)
    return 2 * block.nbytes / seconds(lambda: target.copy_(block), turns=5)


def matrix_bytes(model: nn.Module) -> int:
    """Bytes that a decoded token reads of the weights: every matrix once, packed ones as they lie."""
    total = 0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            total += module.weight.nbytes
        elif hasattr(module, "packed"):
            total += sum(buffer.nbytes for buffer in module.buffers(recurse=False))
    return total
