"""How a decoder knows that a model is still the one it prepared for: its structure, and a digest of its weights.

An edit through `.data`, as `peft` merges an adapter, changes neither address nor version: only reading shows it.
"""

from __future__ import annotations

import functools

import torch
import xxhash
from torch import Tensor, nn

from chameleon_lab import native_ops
from chameleon_lab.quantization import QuantizedLinear

WORDS_AT_ONCE = 2**24  # hashed at a time on a GPU: 128 MB of its memory


class Structure:
    """What of a model is bound or copied when its lean twin is built: modules, plain settings, addresses of weights.

    And hooks, since they may change what the keys and values of earlier positions were computed from.
    """

    def __init__(self, model: nn.Module) -> None:
        self._alive: list[object] = []  # so that no id or address is given to another object
        hooks = [each for living in native_ops.listeners(model) or () for each in living.values()]
        self._facts: list[object] = [id(each) for each in hooks]
        self._alive += hooks
        for module in model.modules():
            plain = {name: value for name, value in vars(module).items() if isinstance(value, (int, float, str))}
            patch = vars(module).get("forward")  # a function that somebody has put in the method's place
            self._alive += [module, patch]
            self._facts += [id(module), plain, id(patch)]
            if not isinstance(module, QuantizedLinear):  # its first product moves its weights into oneDNN's order
                tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
                self._alive += [*tensors, *(each.detach() for each in tensors)]
                self._facts += [(id(each), each.data_ptr(), each.dtype, each.shape) for each in tensors]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self._facts == other._facts


def weights_digest(model: nn.Module, most: float = float("inf")) -> bytes:
    """One digest of all weights that are not quantized.

    Of a model of more than `most` bytes, every so-manieth row of each matrix is read, so that about as many are.
    """
    owners = [module for module in model.modules() if not isinstance(module, QuantizedLinear)]
    tensors = [each for owner in owners for each in (*owner.parameters(recurse=False), *owner.buffers(recurse=False))]
    step = max(1, int(-(-sum(each.nbytes for each in tensors) // most)))
    return b"".join(digest(each[::step] if each.dim() > 1 else each) for each in tensors)


def digest(tensor: Tensor) -> bytes:
    """128 bits that change with any bit of a tensor: XXH3, which reads at 10 GB/s on one core, a plain sum at 13.

    Sums do not see rows that change places, nor signs that change in pairs.
    """
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        tensor = _row_hashes(tensor).cpu()
    return xxhash.xxh3_128_digest(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


@torch.no_grad()
def _row_hashes(tensor: Tensor) -> Tensor:
    """A hash of the bits of each row, made where the tensor lies: int64. Rows that differ agree about once in 2^30.

    Words of up to 8 bytes times odd random numbers, summed modulo 2^64. A difference in a word's uppermost bits alone,
    as of signs, would meet few random bits there, so these bits are added to lower ones first; by 29 places and not 32,
    or two signs that change in one word would cancel.
    """
    rows = tensor.reshape(len(tensor) if tensor.dim() > 1 else 1, -1).contiguous()
    words = rows.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()])
    if words.shape[1] * words.element_size() % 8 == 0 and words.data_ptr() % 8 == 0:
        words = words.view(torch.int64)
    odd = _odd_numbers(words.shape[1], words.device)
    hashes: list[Tensor] = []
    for part in words.split(max(1, WORDS_AT_ONCE // max(1, words.shape[1]))):
        mixed = part.long() + (part.long() >> 29)
        hashes.append(mixed.mul_(odd).sum(-1))
    return torch.cat(hashes)


@functools.lru_cache(maxsize=64)
def _odd_numbers(count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    with torch.inference_mode(False):
        return torch.randint(-(2**62), 2**62, (count,), generator=generator).bitwise_or_(1).to(device)
