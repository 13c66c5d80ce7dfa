"""What a decoded token asks of a CPU: products of few rows, norms, attention of one query. Measured (docs/speed.md):

- which product is fastest depends on rows, width and type. A single row is multiplied with parts of the matrix in a
  batch, which reads the weights up to twice as fast as `F.linear` does
- several rows are fastest with a second, packed copy of the matrix. It is compared with the matrix, number by number,
  at its first use in every reply: an edit through `.data` leaves no other trace. That takes about as long as one token
- keys are read row by row, with the queries as columns, up to three times as fast as the other way round
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab import crossovers, native_ops
from chameleon_lab.attention import SOFTMAX, UNCAPPED, plain_softmax
from chameleon_lab.generation.weights import digest

Call = Callable[[Tensor], Tensor]


def on_cpu(weight: Tensor) -> bool:
    """Ordinary numbers in a CPU's memory (not quantized, not sharded, not fake)."""
    ordinary = type(weight) is nn.Parameter and weight.dtype in (torch.float32, torch.bfloat16)
    return ordinary and weight.device.type == "cpu"


def rms_norm_call(module: nn.RMSNorm) -> Call:
    """On a CPU `F.rms_norm` is many kernels; a single row needs two and a number, several need a few more."""
    (width,) = module.normalized_shape if len(module.normalized_shape) == 1 else (0,)
    weight = module.weight
    if not width or not on_cpu(weight):
        return module
    eps, nought = module.eps or torch.finfo(torch.float32).eps, weight.new_zeros(())
    least = torch.tensor(eps)

    def normed(x: Tensor) -> Tensor:
        if x.dtype != weight.dtype:
            return F.rms_norm(x, (width,), weight, eps)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        if x.numel() == width:
            return torch.addcmul(nought, x, weight, value=(length.item() ** 2 / width + eps) ** -0.5)
        factor = torch.addcmul(least, length, length, value=1 / width).rsqrt_()
        return factor.mul(x).mul(weight).to(x.dtype)

    return normed


def linear_call(module: nn.Linear, packs: list[PackedMatrix], spare: bool) -> Call:
    """The product with a layer's matrix; where a packed copy is allowed, its keeper joins `packs`."""
    weight_OI, width = module.weight, module.in_features
    if module.bias is not None or not on_cpu(weight_OI):
        return module
    dtype, outputs, threads = weight_OI.dtype, len(weight_OI), torch.get_num_threads()
    full = dtype == torch.float32
    pack = None
    if spare:
        pack = PACKED.get(module)
        if pack is None or pack.weight_OI.data_ptr() != weight_OI.data_ptr():
            pack = PACKED[module] = PackedMatrix(weight_OI)
        packs.append(pack)
    # Eight parts at most: each is a call of MKL's, and two or as many as threads already read at the memory's speed.
    numbers = range(max(2, min(threads, crossovers.MATRIX_PARTS)), 2 * crossovers.MATRIX_PARTS)
    parts = next((number for number in numbers if outputs % number == 0), 0)
    wide = width >= crossovers.WIDE_INPUTS and threads == 1
    alone = full and parts > 0 and torch.backends.mkl.is_available() and not wide
    weight_POI = weight_OI.detach().unflatten(0, (parts, -1)) if alone else weight_OI
    column = (parts, width, 1), (0, 1, width)  # every part has the row as its column; MKL is fast with these strides
    narrow, transposed = crossovers.NARROW_INPUTS, crossovers.TRANSPOSED_ROWS
    most = crossovers.PACKED_MOST

    def product(x: Tensor) -> Tensor:
        if x.dtype != dtype:
            return F.linear(x, weight_OI)
        if alone and x.numel() == width:
            products_PO1 = torch.bmm(weight_POI, x.contiguous().as_strided(*column))
            return products_PO1.view(1, 1, outputs) if x.dim() == 3 else products_PO1.view(*x.shape[:-1], outputs)
        rows = x.numel() // width
        few = full and width <= narrow
        step = x.dim() < 3 or x.shape[-2] == 1  # a prompt comes once: not worth a second copy
        if pack is not None and step and (1 if not full else 2 if not few else 3) <= rows <= most:
            return pack.product(x)
        if few and 2 <= rows <= transposed:
            return torch.mm(weight_OI, x.reshape(rows, width).t()).t().contiguous().view(*x.shape[:-1], -1)
        return F.linear(x, weight_OI)

    return product


class PackedMatrix:
    """A second copy of a matrix, in the order that oneDNN likes, made at the first product.

    `current` is set False where a reply begins; at the first product after that the copy is compared with the matrix.
    """

    def __init__(self, weight_OI: Tensor) -> None:
        self.weight_OI, self.current = weight_OI.detach(), False
        self._digest = b""
        self._multiply: Call | None = None
        self._padding_RI = weight_OI.detach().new_zeros(crossovers.PACKED_LEAST, weight_OI.shape[1])

    def product(self, x: Tensor) -> Tensor:
        if not self.current:
            self._renew()
        assert self._multiply is not None
        x_NI = x.reshape(-1, x.shape[-1])
        rows = len(x_NI)
        if rows < len(self._padding_RI):  # so few take longer than some more
            x_NI = torch.cat((x_NI, self._padding_RI[rows:]))
        return self._multiply(x_NI)[:rows].view(*x.shape[:-1], -1)

    def _renew(self) -> None:
        if (now := digest(self.weight_OI)) != self._digest:
            self._multiply, self._digest = native_ops.pack_matrix(self.weight_OI), now
        self.current = True


PACKED: weakref.WeakKeyDictionary[nn.Linear, PackedMatrix] = weakref.WeakKeyDictionary()
"""Of each layer that has multiplied several rows: for all decoders, as long as the layer lives."""


def attention_of_one(
    q_BH1K: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask_B1TS: Tensor | None,
    cap: nn.Module = UNCAPPED,
    softmax: nn.Module = SOFTMAX,
) -> Tensor:
    """Attention of one query a row; heads that share keys are columns of one product, so that no key is copied.

    Queries stand in columns because keys are then read row by row, up to three times as fast on a CPU as the other way
    round. With few keys and a single row torch's kernel is a little faster. Values may have other heads and widths.
    """
    (rows, heads, _, width), groups, length = q_BH1K.shape, k_BGSK.shape[1], k_BGSK.shape[2]
    alike = v_BGSK.shape[1] == groups
    little = rows == 1 and groups == heads and heads * length * width <= crossovers.FUSED_NUMBERS
    if alike and (q_BH1K.device.type != "cpu" or little) and plain_softmax(cap, softmax):
        mask = None if mask_B1TS is None else mask_B1TS.to(q_BH1K.dtype)
        return F.scaled_dot_product_attention(q_BH1K, k_BGSK, v_BGSK, mask, enable_gqa=groups != heads)
    q_BGRK = (q_BH1K * width**-0.5).reshape(rows, groups, heads // groups, width)
    scores_BGSR = k_BGSK @ q_BGRK.transpose(-1, -2)
    scores_BH1S = cap(scores_BGSR.transpose(-1, -2).reshape(rows, heads, 1, length))
    if mask_B1TS is not None:
        scores_BH1S = scores_BH1S + mask_B1TS.to(q_BH1K.dtype)
    shares_BGRS = softmax(scores_BH1S).view(rows, v_BGSK.shape[1], -1, length)
    return (shares_BGRS @ v_BGSK).view(rows, heads, 1, -1)
