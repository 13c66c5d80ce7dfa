"""Quantizers: latents to codes and back, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantizer makes of latents: the straight-through latents_BCHW, their codes_BHW, and its own loss."""

    latents_BCHW: Tensor
    codes_BHW: Tensor
    loss: Tensor


@runtime_checkable
class Quantizer(Protocol):
    """Turns latents into codes in 0..size-1 and back."""

    @property
    def size(self) -> int: ...

    def __call__(self, latents_BCHW: Tensor) -> Quantized: ...

    def codes(self, latents_BCHW: Tensor) -> Tensor: ...

    def latents(self, codes_BHW: Tensor) -> Tensor: ...


class VectorQuantizer(nn.Module):
    """Nearest neighbour in a learned codebook (van den Oord et al., arXiv 1711.00937; Chameleon's tokenizer).

    The codebook learns by gradient. `commitment` weighs the pull of latents towards their codes.
    """

    def __init__(self, size: int, width: int, *, commitment: float = 0.25) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)
        self.commitment = commitment

    @property
    def size(self) -> int:
        return self.embedding.num_embeddings

    def codes(self, latents_BCHW: Tensor) -> Tensor:
        """The nearest code of each latent, by |z|^2 + |e|^2 - 2ze: codes_BHW."""
        book_NC = self.embedding.weight
        latents_XC = latents_BCHW.movedim(1, -1).flatten(0, 2)
        distances_XN = (
            (latents_XC**2).sum(1, keepdim=True)
            + (book_NC**2).sum(1)
            - 2 * torch.einsum("xc,nc->xn", latents_XC, book_NC)
        )
        batch, _, rows, columns = latents_BCHW.shape
        return distances_XN.argmin(1).view(batch, rows, columns)

    def latents(self, codes_BHW: Tensor) -> Tensor:
        """The codebook entries of codes: latents_BCHW."""
        return self.embedding(codes_BHW).movedim(-1, 1)

    def forward(self, latents_BCHW: Tensor) -> Quantized:
        codes_BHW = self.codes(latents_BCHW)
        chosen_BCHW = self.latents(codes_BHW)
        pull = F.mse_loss(latents_BCHW, chosen_BCHW.detach())
        learn = F.mse_loss(chosen_BCHW, latents_BCHW.detach())
        straight_BCHW = latents_BCHW + (chosen_BCHW - latents_BCHW).detach()
        return Quantized(straight_BCHW, codes_BHW, learn + self.commitment * pull)


class MovingAverageQuantizer(VectorQuantizer):
    """A codebook that follows the running mean of the latents it catches (arXiv 1711.00937, appendix A.1).

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
    ) -> None:
        super().__init__(size, width, commitment=commitment)
        self.embedding.weight.requires_grad_(False)
        self.decay, self.warm_up, self.patience = decay, warm_up, patience
        self.register_buffer("counts_N", torch.ones(size))
        self.register_buffer("sums_NC", self.embedding.weight.detach().clone())
        self.register_buffer("idle_N", torch.zeros(size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.counts_N: Tensor
        self.sums_NC: Tensor
        self.idle_N: Tensor
        self.steps: Tensor

    def forward(self, latents_BCHW: Tensor) -> Quantized:
        if not self.training:
            return super().forward(latents_BCHW)
        step = int(self.steps)
        self.steps += 1
        if step < self.warm_up:
            return Quantized(latents_BCHW, self.codes(latents_BCHW), latents_BCHW.new_zeros(()))
        latents_XC = latents_BCHW.detach().movedim(1, -1).flatten(0, 2).float()
        if step == self.warm_up:
            self._restart_all(latents_XC)
        codes_BHW = self.codes(latents_BCHW)
        chosen_BCHW = self.latents(codes_BHW)
        pull = F.mse_loss(latents_BCHW, chosen_BCHW.detach())
        self._follow(latents_XC, codes_BHW.flatten())
        return Quantized(latents_BCHW + (chosen_BCHW - latents_BCHW).detach(), codes_BHW, self.commitment * pull)

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


QUANTIZERS: dict[str, Callable[[int, int], Quantizer]] = {
    "vector": VectorQuantizer,
    "moving_average": MovingAverageQuantizer,
}
"""Quantizers by the name that a config and a checkpoint know them by: called with (size, width)."""
