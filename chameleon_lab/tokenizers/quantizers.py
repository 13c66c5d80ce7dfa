"""Quantizers: latents to codes and back, behind one protocol.

Learned books, where the nearest entry wins: `VectorQuantizer`, `MovingAverageQuantizer`, `CosineQuantizer`,
`SimQuantizer`; what gradient passes them is `straight_through` or `rotate_to`. `GumbelQuantizer` scores the entries
instead. Those with nothing to learn are in `levels`. `Adapted` takes in other packages' modules. One of your own needs
no more than the protocol: pass its class as `ImageTokenizerConfig.quantizer`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab.files import reason_of


class Quantized(NamedTuple):
    """A quantizer's output: latents_BCHW of the chosen codes, with a gradient for the input; codes_BHW; its loss."""

    latents_BCHW: Tensor
    codes_BHW: Tensor
    loss: Tensor


@runtime_checkable
class Quantizer(Protocol):
    """Turns latents_BCHW into codes_BHW in 0..size-1 and back. Only a call in training may change what it learns."""

    @property
    def size(self) -> int: ...

    def __call__(self, latents_BCHW: Tensor) -> Quantized: ...

    def codes(self, latents_BCHW: Tensor) -> Tensor: ...

    def latents(self, codes_BHW: Tensor) -> Tensor: ...


# Gradients

Gradient = Callable[[Tensor, Tensor], Tensor]
"""(latents, chosen) to the values of chosen, with a gradient for latents and none for chosen."""


def straight_through(latents_BCHW: Tensor, chosen_BCHW: Tensor) -> Tensor:
    """The chosen latents, whose gradient goes to the latents unchanged (arXiv 1711.00937, section 3.2)."""
    return latents_BCHW + (chosen_BCHW.to(latents_BCHW.dtype) - latents_BCHW).detach()


def rotate_to(latents_BCHW: Tensor, chosen_BCHW: Tensor) -> Tensor:
    """The chosen latents as a rotation and rescaling of the latents, both held constant (arXiv 2410.06424, section 4).

    Backwards the gradient turns with it: its angle to the latent is its angle to the code. A latent of length 0 has no
    direction to turn from, and takes the gradient unchanged.
    """
    with torch.no_grad():
        chosen_BCHW = chosen_BCHW.to(latents_BCHW.dtype)
        length_B1HW, none = latents_BCHW.norm(dim=1, keepdim=True), torch.finfo(latents_BCHW.dtype).tiny
        there_BCHW = F.normalize(chosen_BCHW, dim=1)
        here_BCHW = torch.where(length_B1HW > none, F.normalize(latents_BCHW, dim=1), there_BCHW)
        middle_BCHW = F.normalize(here_BCHW + there_BCHW, dim=1)
        scale_B1HW = torch.where(length_B1HW > none, chosen_BCHW.norm(dim=1, keepdim=True) / length_B1HW, 1.0)
    along_middle_B1HW = (latents_BCHW * middle_BCHW).sum(1, keepdim=True)
    along_here_B1HW = (latents_BCHW * here_BCHW).sum(1, keepdim=True)
    turned_BCHW = latents_BCHW - 2 * along_middle_B1HW * middle_BCHW + 2 * along_here_B1HW * there_BCHW
    return straight_through(scale_B1HW * turned_BCHW, chosen_BCHW)


# Learned books

DISTANCES = 2**24
"""Distances in memory at once, 64 MB of float32: one 512x512 picture's to 8192 codes, but not a batch's."""


@torch.no_grad()
def nearest(latents_BCHW: Tensor, book_NC: Tensor) -> Tensor:
    """The nearest entry of each latent, by |z|^2 + |e|^2 - 2ze in float32 at least: codes_BHW."""
    device = latents_BCHW.device.type
    dtype = torch.promote_types(torch.promote_types(latents_BCHW.dtype, book_NC.dtype), torch.float32)
    # In half precision the difference of large numbers is mostly rounding, so autocast is off here.
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        book_NC, latents_XC = book_NC.to(dtype), latents_BCHW.movedim(1, -1).flatten(0, 2).to(dtype)
        squares_N = (book_NC**2).sum(1)
        codes = []
        # Even parts: a last part of one row would be multiplied by another kernel, and differ in its last bits.
        for rows_XC in latents_XC.tensor_split(max(1, math.ceil(len(latents_XC) * len(book_NC) / DISTANCES))):
            products_XN = torch.einsum("xc,nc->xn", rows_XC, book_NC)
            codes.append(((rows_XC**2).sum(1, keepdim=True) + squares_N - 2 * products_XN).argmin(1))
    batch, _, rows, columns = latents_BCHW.shape
    return torch.cat(codes).view(batch, rows, columns)


def entries(codes_BHW: Tensor, book_NC: Tensor) -> Tensor:
    """The entries of a book that codes name: latents_BCHW."""
    return F.embedding(codes_BHW, book_NC).movedim(-1, 1)


def by_book(latents_BCHW: Tensor, book_NC: Tensor, commitment: float, codebook: float, gradient: Gradient) -> Quantized:
    """Latents by their nearest entries; the loss is codebook * |sg(z) - e|^2 + commitment * |z - sg(e)|^2, means."""
    codes_BHW = nearest(latents_BCHW, book_NC)
    chosen_BCHW = entries(codes_BHW, book_NC)
    pull = F.mse_loss(latents_BCHW, chosen_BCHW.detach())
    learn = F.mse_loss(chosen_BCHW, latents_BCHW.detach())
    return Quantized(gradient(latents_BCHW, chosen_BCHW), codes_BHW, codebook * learn + commitment * pull)


class VectorQuantizer(nn.Module):
    """Nearest neighbour in a codebook learned by gradient (van den Oord et al., arXiv 1711.00937; Chameleon's).

    Loss: `codebook` times the pull of entries to their latents plus `commitment` times the pull of latents to their
    entries. taming-transformers' code, and every model trained with it, has the two weights exchanged, 0.25 and 1:
    "vector_legacy". Nothing keeps it from collapsing: an entry that wins no latent gets no gradient.
    """

    def __init__(
        self,
        size: int,
        width: int,
        *,
        commitment: float = 0.25,
        codebook: float = 1.0,
        gradient: Gradient = straight_through,
    ) -> None:
        super().__init__()
        self.size, self.embedding = size, _book(size, width)
        self.commitment, self.codebook, self.gradient = commitment, codebook, gradient

    def codes(self, latents_BCHW: Tensor) -> Tensor:
        return nearest(latents_BCHW, self.embedding.weight)

    def latents(self, codes_BHW: Tensor) -> Tensor:
        return entries(codes_BHW, self.embedding.weight)

    def forward(self, latents_BCHW: Tensor) -> Quantized:
        return by_book(latents_BCHW, self.embedding.weight, self.commitment, self.codebook, self.gradient)


class MovingAverageQuantizer(nn.Module):
    """A codebook that follows the running mean of the latents it catches (arXiv 1711.00937, appendix A.1).

    Loss: `commitment` times the pull of latents to their entries (outside training, the distance itself on top).
    Three things keep it from collapsing: the first `warm_up` training steps do not quantize; then k-means on the
    latents at hand sets the book; and a code unused for `patience` steps restarts at a random latent.
    """

    def __init__(
        self,
        size: int,
        width: int,
        *,
        commitment: float = 0.25,
        decay: float = 0.99,
        warm_up: int = 150,
        patience: int = 40,
        gradient: Gradient = straight_through,
    ) -> None:
        super().__init__()
        self.size, self.embedding = size, _book(size, width).requires_grad_(False)
        self.commitment, self.gradient = commitment, gradient
        self.decay, self.warm_up, self.patience = decay, warm_up, patience
        self.register_buffer("counts_N", torch.ones(size))
        self.register_buffer("sums_NC", self.embedding.weight.detach().clone())
        self.register_buffer("idle_N", torch.zeros(size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.counts_N: Tensor
        self.sums_NC: Tensor
        self.idle_N: Tensor
        self.steps: Tensor

    def codes(self, latents_BCHW: Tensor) -> Tensor:
        return nearest(latents_BCHW, self.embedding.weight)

    def latents(self, codes_BHW: Tensor) -> Tensor:
        return entries(codes_BHW, self.embedding.weight)

    def forward(self, latents_BCHW: Tensor) -> Quantized:
        if not self.training:
            return by_book(latents_BCHW, self.embedding.weight, self.commitment, 1.0, self.gradient)
        step = int(self.steps)
        self.steps += 1
        if step < self.warm_up:
            return Quantized(latents_BCHW, self.codes(latents_BCHW), latents_BCHW.new_zeros(()))
        latents_XC = latents_BCHW.detach().movedim(1, -1).flatten(0, 2).to(self.sums_NC.dtype)
        if step == self.warm_up:
            self._restart_all(latents_XC)
        quantized = by_book(latents_BCHW, self.embedding.weight, self.commitment, 0.0, self.gradient)
        self._follow(latents_XC, quantized.codes_BHW.flatten())
        return quantized

    def end_warm_up(self) -> None:
        """Quantizes from the next step on, its book made then, where the warm-up is not over."""
        self.steps.clamp_min_(self.warm_up)

    @torch.no_grad()
    def _follow(self, latents_XC: Tensor, codes_X: Tensor) -> None:
        caught_N = torch.bincount(codes_X, minlength=self.size).to(latents_XC.dtype)
        sums_NC = torch.zeros_like(self.sums_NC).index_add_(0, codes_X, latents_XC)
        self.counts_N.lerp_(caught_N, 1 - self.decay)
        self.sums_NC.lerp_(sums_NC, 1 - self.decay)
        self.idle_N = torch.where(caught_N > 0, torch.zeros_like(self.idle_N), self.idle_N + 1)
        dead_N = self.idle_N > self.patience
        if int(self.steps) % 20 == 0 and bool(dead_N.any()):
            fresh = latents_XC[torch.randint(len(latents_XC), (int(dead_N.sum()),), device=latents_XC.device)]
            self.sums_NC[dead_N], self.counts_N[dead_N], self.idle_N[dead_N] = fresh, 1.0, 0.0
        self.embedding.weight.copy_(self.sums_NC / self.counts_N.clamp_min(1e-5)[:, None])

    @torch.no_grad()
    def _restart_all(self, latents_XC: Tensor, rounds: int = 15) -> None:
        """k-means from random latents."""
        picks = torch.randint(len(latents_XC), (self.size,), device=latents_XC.device)
        book_NC = latents_XC[picks] + 1e-4 * torch.randn_like(latents_XC[picks])
        for _ in range(rounds):
            nearest_X = torch.cdist(latents_XC, book_NC).argmin(1)
            caught_N = torch.bincount(nearest_X, minlength=self.size)
            sums_NC = torch.zeros_like(book_NC).index_add_(0, nearest_X, latents_XC)
            book_NC = torch.where(caught_N[:, None] > 0, sums_NC / caught_N.clamp_min(1)[:, None], book_NC)
        self.embedding.weight.copy_(book_NC)
        self.sums_NC.copy_(book_NC)
        self.counts_N.fill_(1.0)


@torch.no_grad()
def spread_book(latents_XC: Tensor, size: int, seed: int = 0, rounds: int = 10) -> Tensor:
    """A book of `size` entries fitted to latents by k-means whose first entries lie far from each other (k-means++).

    A book that begins at random latents has most entries where latents are densest, on a blank ground for example:
    entries that differ in nothing one can see, and that a transformer must tell apart nevertheless. Raises ValueError
    for fewer latents than entries.
    """
    if len(latents_XC) < size:
        raise ValueError(f"{len(latents_XC)} latents cannot spread {size} entries: give more pictures.")
    generator = torch.Generator().manual_seed(seed)
    book_NC = latents_XC[:size].clone()
    distances_X = (latents_XC - book_NC[0]).square().sum(1)
    for entry in range(1, size):
        pick_1 = torch.multinomial(distances_X.clamp_min(1e-12).cpu(), 1, generator=generator)  # the same on a GPU
        book_NC[entry] = latents_XC[pick_1]
        distances_X = torch.minimum(distances_X, (latents_XC - book_NC[entry]).square().sum(1))
    for _ in range(rounds):
        nearest_X = torch.cat([torch.cdist(part_XC, book_NC).argmin(1) for part_XC in latents_XC.split(4096)])
        count_N = torch.bincount(nearest_X, minlength=size)
        sums_NC = torch.zeros_like(book_NC).index_add_(0, nearest_X, latents_XC)
        book_NC = torch.where(count_N[:, None] > 0, sums_NC / count_N.clamp_min(1)[:, None], book_NC)
    return book_NC


class CosineQuantizer(nn.Module):
    """Nearest neighbour by angle: latents and entries have length 1 (ViT-VQGAN, arXiv 2110.04627, section 3.2).

    Loss: as `VectorQuantizer`'s, between vectors of length 1, so at most 4 / width a term. No entry can be out of reach
    for its length, so fewer are lost at the start; but one that wins no latent gets no gradient here either.
    """

    def __init__(
        self, size: int, width: int, *, commitment: float = 0.25, gradient: Gradient = straight_through
    ) -> None:
        super().__init__()
        self.size, self.embedding = size, _book(size, width)
        nn.init.normal_(self.embedding.weight)
        self.commitment, self.gradient = commitment, gradient

    def _entries(self) -> Tensor:
        return F.normalize(self.embedding.weight, dim=1)

    def codes(self, latents_BCHW: Tensor) -> Tensor:
        return nearest(F.normalize(latents_BCHW, dim=1), self._entries())

    def latents(self, codes_BHW: Tensor) -> Tensor:
        return entries(codes_BHW, self._entries())

    def forward(self, latents_BCHW: Tensor) -> Quantized:
        return by_book(F.normalize(latents_BCHW, dim=1), self._entries(), self.commitment, 1.0, self.gradient)


class GumbelQuantizer(nn.Module):
    """A softmax over all codes, drawn from by Gumbel noise while it trains (arXiv 1611.01144; taming-transformers' f8).

    A 1x1 convolution gives each code its score, so a latent need not lie near an entry: nothing is compared. `codes` is
    the likeliest, without noise, and so is what a call in eval mode gives; taming's own model draws there too, and its
    codes differ from call to call. Loss: `divergence` times the divergence of the softmax from uniform, in nats.
    """

    def __init__(self, size: int, width: int, *, divergence: float = 1e-8, temperature: float = 1.0) -> None:
        super().__init__()
        self.size, self.embed = size, _book(size, width)
        self.proj = nn.Conv2d(width, size, 1)
        self.divergence, self.temperature = divergence, temperature

    def codes(self, latents_BCHW: Tensor) -> Tensor:
        return self._scores(latents_BCHW).argmax(1)

    def latents(self, codes_BHW: Tensor) -> Tensor:
        return entries(codes_BHW, self.embed.weight)

    def forward(self, latents_BCHW: Tensor) -> Quantized:
        scores_BNHW = self._scores(latents_BCHW)
        logs_BNHW = scores_BNHW.log_softmax(1)
        loss = self.divergence * ((logs_BNHW.exp() * logs_BNHW).sum(1).mean() + math.log(self.size))
        if self.training:
            chosen_BNHW = F.gumbel_softmax(scores_BNHW, tau=self.temperature, hard=True, dim=1)
            drawn_BCHW = torch.einsum("bnhw,nc->bchw", chosen_BNHW.to(self.embed.weight.dtype), self.embed.weight)
            return Quantized(drawn_BCHW.to(latents_BCHW.dtype), chosen_BNHW.argmax(1), loss)
        codes_BHW = scores_BNHW.argmax(1)
        return Quantized(self.latents(codes_BHW).to(latents_BCHW.dtype), codes_BHW, loss)

    def _scores(self, latents_BCHW: Tensor) -> Tensor:
        """scores_BNHW, in float32 at least, as distances are: many codes would tie in half precision."""
        assert self.proj.bias is not None
        dtype = torch.promote_types(latents_BCHW.dtype, torch.float32)
        device = latents_BCHW.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            return F.conv2d(latents_BCHW.to(dtype), self.proj.weight.to(dtype), self.proj.bias.to(dtype))


class SimQuantizer(nn.Module):
    """A frozen random book seen through one learned linear layer (SimVQ, arXiv 2411.02038).

    Loss: as `VectorQuantizer`'s, between latents and what the layer makes of the entries. The layer keeps it from
    collapsing: whichever entry wins, all move with it.
    """

    def __init__(
        self, size: int, width: int, *, commitment: float = 0.25, gradient: Gradient = straight_through
    ) -> None:
        super().__init__()
        self.size, self.embedding = size, _book(size, width).requires_grad_(False)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.layer = nn.Linear(width, width)
        self.commitment, self.gradient = commitment, gradient

    def codes(self, latents_BCHW: Tensor) -> Tensor:
        return nearest(latents_BCHW, self.layer(self.embedding.weight))

    def latents(self, codes_BHW: Tensor) -> Tensor:
        return entries(codes_BHW, self.layer(self.embedding.weight))

    def forward(self, latents_BCHW: Tensor) -> Quantized:
        return by_book(latents_BCHW, self.layer(self.embedding.weight), self.commitment, 1.0, self.gradient)


def _book(size: int, width: int) -> nn.Embedding:
    if size < 1 or width < 1:
        raise ValueError(f"A codebook needs at least one code and one channel; got {size} codes of width {width}.")
    book = nn.Embedding(size, width)
    nn.init.uniform_(book.weight, -1 / size, 1 / size)
    return book


# Other packages'


class Adapted(nn.Module):
    """A module of the package vector-quantize-pytorch, or one called as those are, as a quantizer of `size` codes.

    `module` maps latents to (latents, indices) or (latents, indices, loss), and indices back by `indices_to_codes` or
    `get_output_from_indices`, as VectorQuantize, FSQ, LFQ (with it BSQ) and SimVQ do. A module built
    for feature maps (accept_image_fmap, channel_first) gets feature maps, any other gets sequences with channels last.
    Raises ValueError for what cannot work so: several codes a cell (residual and grouped kinds), no codes at all
    (`return_indices=False`), no way back from a code (a Sequential), a book that is moved before it is compared
    (`affine_param=True`), and whatever fails when a copy of the module is tried. The loss, and whatever keeps the book
    from collapsing, are the module's.

        ImageTokenizerConfig(..., quantizer=lambda size, width: Adapted(SimVQ(dim=width, codebook_size=size), size))
    """

    def __init__(self, module: nn.Module, size: int) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise ValueError(f"A quantizer is a module of torch, made, and not {module!r}.")
        self.module, self.size, self.kind = module, size, type(module).__name__
        self.maps = bool(getattr(module, "accept_image_fmap", False) or getattr(module, "channel_first", False))
        if not any(hasattr(module, name) for name in ("indices_to_codes", "get_output_from_indices")):
            raise ValueError(
                f"{self.kind} has no indices_to_codes or get_output_from_indices, so that its codes cannot become "
                "latents: pass the quantizer itself, without layers around it."
            )
        if getattr(module, "return_indices", True) is False:
            raise ValueError(f"{self.kind} gives no codes: build it without return_indices=False.")
        if any(getattr(part, "affine_param", False) for part in module.modules()):
            raise ValueError(
                f"{self.kind} shifts and scales its book by the latents at hand (affine_param=True), so that a code "
                "alone is another latent: build it without."
            )
        codebooks = max(getattr(module, "num_codebooks", 1), getattr(module, "heads", 1), getattr(module, "groups", 1))
        if codebooks > 1 or hasattr(module, "num_quantizers"):
            raise ValueError(f"{self.kind} gives several codes a cell, and a picture's grid has room for one.")
        if (codes := getattr(module, "codebook_size", size)) != size:
            raise ValueError(f"{self.kind} has {codes} codes, not {size}.")
        if not self.maps and not getattr(module, "channel_last", True):
            raise ValueError(f"{self.kind} takes sequences with channels first: build it with accept_image_fmap=True.")
        if isinstance(width := getattr(module, "dim", None), int):
            self._try(width)

    def _try(self, width: int) -> None:
        """Raises ValueError, with the reason, where a copy of the module cannot do for some latents what is asked of
        it. A copy, since a first call may move its book."""
        original, generator = self.module, torch.Generator().manual_seed(0)
        tensors = (*original.parameters(), *original.buffers())
        tensor = next((each for each in tensors if each.is_floating_point()), None)
        if tensor is None or tensor.is_meta:
            return
        latents_BCHW = torch.randn(1, width, 2, 3, generator=generator, device="cpu").to(tensor)
        try:
            self.module = copy.deepcopy(getattr(original, "_orig_mod", original)).eval()
            for name, buffer in self.module.named_buffers():
                if name.endswith("initted"):
                    buffer.fill_(True)  # no k-means of so few latents
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                quantized = self(latents_BCHW)
                again_BCHW = self.latents(quantized.codes_BHW)
        except Exception as error:
            why = reason_of(error)
        else:
            same = quantized.latents_BCHW.shape == again_BCHW.shape == latents_BCHW.shape
            if same and torch.allclose(quantized.latents_BCHW, again_BCHW, rtol=1e-2, atol=1e-2):
                return
            why = "its codes become other latents than those that it gives beside them"
        finally:
            self.module = original
        raise ValueError(f"{self.kind} cannot quantize latents of width {width} as grids of codes: {why}.")

    @torch.no_grad()
    def codes(self, latents_BCHW: Tensor) -> Tensor:
        training = self.module.training
        try:
            self.module.eval()  # a training module may move its book at every call
            return self(latents_BCHW).codes_BHW
        finally:
            self.module.train(training)

    def latents(self, codes_BHW: Tensor) -> Tensor:
        name = "indices_to_codes" if hasattr(self.module, "indices_to_codes") else "get_output_from_indices"
        back = getattr(self.module, name)
        return back(codes_BHW) if self.maps else back(codes_BHW.flatten(1)).mT.unflatten(2, codes_BHW.shape[1:])

    def forward(self, latents_BCHW: Tensor) -> Quantized:
        output, codes, *loss = self.module(latents_BCHW if self.maps else latents_BCHW.flatten(2).mT)
        batch, _, rows, columns = latents_BCHW.shape
        if codes.shape not in ((batch, rows, columns), (batch, rows * columns)):
            raise ValueError(
                f"{self.kind} gives codes of shape {tuple(codes.shape)} for {batch} grids of {rows}x{columns} cells; "
                "a picture's grid has room for one a cell."
            )
        output_BCHW = output if self.maps else output.mT.unflatten(2, (rows, columns))
        codes_BHW = codes.view(batch, rows, columns).long().clamp(0, self.size - 1)  # of NaN they may be anything
        return Quantized(output_BCHW, codes_BHW, loss[0].sum() if loss else latents_BCHW.new_zeros(()))
