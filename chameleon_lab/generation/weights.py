"""How a decoder knows that a model is still the one it prepared for: its structure, and a digest of its weights.

An edit through `.data`, as `peft` merges an adapter, changes neither address nor version: only reading shows it. Any
other changes the version, which shows it in models too large to be read, too.
"""

from __future__ import annotations

import functools

import torch
import xxhash
from torch import Tensor, nn

from chameleon_lab import native_ops
from chameleon_lab.quantization import Int8Linear, QuantizedLinear

WORDS_AT_ONCE = 2**24  # hashed at a time on a GPU: 128 MB of its memory


class Structure:
    """What of a model its lean twin binds or copies, and what else the sums depend on beside the weights' numbers.

    Modules, their classes and methods, hooks, every plain attribute, and of tensors the address, strides and version.
    Of an object that is nothing plain, only whether it is the same: what it keeps inside is not looked at.
    """

    def __init__(self, model: nn.Module) -> None:
        self._alive: list[object] = []  # so that no id or address is given to another object
        self._facts: list[object] = []
        hooks = native_ops.listeners(model)
        self.listens = hooks is None or any(hooks)
        self._facts += [self._fact(each) for living in hooks or () for each in living.values()]
        modules = list(model.modules())
        for kind in dict.fromkeys(base for module in modules for base in type(module).__mro__):
            self._facts += [self._fact(each) for each in vars(kind).values() if callable(each)]
        for module in modules:
            packed = isinstance(module, QuantizedLinear)  # its first product moves its weights into oneDNN's order
            self._facts += [self._fact(module), self._fact(type(module))]
            for name, value in vars(module).items():
                if name not in OF_MODULES and (not packed or isinstance(value, int)):
                    self._facts += [name, self._fact(value)]
            if not packed:
                self._facts += [self._fact(each) for each in _tensors(module)]

    def _fact(self, value: object) -> object:
        """A value that equals another's as long as the thing is the same."""
        if isinstance(value, PLAIN):
            return value
        if isinstance(value, list | tuple):
            return [self._fact(each) for each in value]
        if isinstance(value, dict):
            return [(self._fact(name), self._fact(each)) for name, each in value.items()]
        self._alive.append(value)
        if not isinstance(value, Tensor):
            return id(value)
        self._alive.append(value.detach())
        layout = value.data_ptr(), value.dtype, value.shape, value.stride()
        return id(value), *layout, native_ops.version(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self._facts == other._facts


PLAIN = (int, float, complex, str, bytes, type(None))
OF_MODULES = frozenset(vars(nn.Module())) - {"training"}  # what every module has: parameters, hooks, children


def _tensors(module: nn.Module) -> list[Tensor]:
    """A module's own: parameters, buffers, and those that are plain attributes."""
    plain = [value for value in vars(module).values() if isinstance(value, Tensor)]
    return [*module.parameters(recurse=False), *module.buffers(recurse=False), *plain]


def weights_digest(model: nn.Module, most: float = float("inf")) -> bytes:
    """One digest of all weights; of matrices in 8 bits of their scales alone.

    Of a model of more than `most` bytes, every so-manieth row of each matrix is read, so that about as many are.
    """
    tensors = [
        each
        for module in model.modules()
        for each in ([module.scales] if isinstance(module, Int8Linear) else _tensors(module))
    ]
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
