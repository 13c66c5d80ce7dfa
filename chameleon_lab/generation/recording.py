"""What keeps a GPU from waiting: work of fixed sizes recorded as one CUDA graph, and numbers copied asynchronously."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

Work = Callable[..., Tensor]
WARMING = 3  # runs before recording, in which libraries choose their kernels and take their memory
RECORDING = threading.Lock()  # one at a time in a process


def upload(
    numbers: Sequence[Any] | np.ndarray | Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """A tensor of these numbers, copied to the device asynchronously."""
    tensor = torch.as_tensor(numbers, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def replays(device: torch.device) -> bool:
    return device.type == "cuda"


class Recorded:
    """A function of tensors, recorded with examples of them and replayed with others of the same sizes.

    What it reads besides, as weights and a cache, is read anew from the same memory each time; numbers that Python
    computed are those of the recording. It has to give the same however often it runs. A function that cannot be
    recorded, because it waits for the device, is called as it is.
    """

    def __init__(self, function: Work, *examples: Tensor) -> None:
        self.function = function
        self._inputs = [example.clone() for example in examples]
        try:
            with RECORDING, torch.cuda.device_of(self._inputs[0]):  # which need not be the current one
                self._replay, self._output = capture(functools.partial(function, *self._inputs))
        except RuntimeError as error:
            log.warning("Decoding goes on without a CUDA graph, more slowly: %s", str(error).splitlines()[0])
            self._replay, self._output = None, None
            if self._inputs[0].is_cuda:  # until one succeeds, torch draws no random numbers on this GPU
                with RECORDING, torch.cuda.device_of(self._inputs[0]):
                    capture(lambda: self._inputs[0] + 0)

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self._replay is None or self._output is None:
            return self.function(*inputs)
        for memory, value in zip(self._inputs, inputs, strict=True):
            memory.copy_(value, non_blocking=True)
        self._replay()
        return self._output.clone()


def capture(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """What does the work again on the current GPU, and where its result lies. Other threads may go on meanwhile."""
    stream, graph = _side_stream(torch.cuda.current_device()), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # around the capture, too, since one that fails does not leave its stream
        for _ in range(WARMING):
            work()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = work()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay, output


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One stream for all recordings on a device: libraries keep memory for each."""
    return torch.cuda.Stream(device)
