"""The image tokenizer: pixels to codes and back.

Architectural facts (VQ-GAN, arXiv 2012.09841, in the shape that Chameleon's has it; `CHAMELEON_IMAGES` is that one):

- encoder: a convolution, then levels of residual blocks, each but the last ending in a stride-2 convolution
- residual block: GroupNorm, swish, 3x3 convolution, twice; a 1x1 convolution on the shortcut where the width changes
- a middle of block, one-head attention, block, where `middle`; 1x1 convolutions around the quantizer
- one-head attention after each block of the levels in `attention` (none in Chameleon's)
- decoder: the mirror, one residual block more a level, nearest-neighbour upsampling
- `patch` > 1 folds pixels into channels first: the same network at a fraction of the cost, for small machines
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chameleon_lab.parts import require_fields
from chameleon_lab.records import Reconstruction
from chameleon_lab.tokenizers import levels, quantizers
from chameleon_lab.tokenizers.preparation import CentreCrop, Preparation, picture_of, preparations
from chameleon_lab.tokenizers.quantizers import Quantized, Quantizer
from chameleon_lab.tokenizers.runtime import compute, require_mode

QUANTIZERS: dict[str, Callable[[int, int], Quantizer]] = {
    "vector": quantizers.VectorQuantizer,
    "vector_legacy": partial(quantizers.VectorQuantizer, commitment=1.0, codebook=0.25),
    "vector_rotation": partial(quantizers.VectorQuantizer, gradient=quantizers.rotate_to),
    "gumbel": quantizers.GumbelQuantizer,
    "moving_average": quantizers.MovingAverageQuantizer,
    "cosine": quantizers.CosineQuantizer,
    "sim": quantizers.SimQuantizer,
    "finite_scalar": levels.FiniteScalarQuantizer,
    "lookup_free": levels.LookupFreeQuantizer,
    "binary_spherical": levels.BinarySphericalQuantizer,
}
"""Quantizers by the name that a config and a checkpoint know them by: called with (size, width)."""


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """Shape of an image tokenizer.

    `side`: pixels along each side of a prepared picture. `widths`: channels of each level, finest first; each further
    level halves the grid. `groups` of every GroupNorm. `patch`: pixels folded into channels before the first level.
    `attention`: the levels, 0 the finest, whose blocks are each followed by attention among all cells.
    """

    side: int
    codes: int
    code_width: int
    widths: tuple[int, ...]
    latent_width: int
    blocks: int = 2
    patch: int = 1
    groups: int = 32
    middle: bool = True
    quantizer: str | Callable[[int, int], Quantizer] = "vector"
    attention: tuple[int, ...] = field(default=(), metadata={"later": True})

    def __post_init__(self) -> None:
        sizes = ("side", "codes", "code_width", "widths", "latent_width", "blocks", "patch", "groups")
        require_fields(self, **dict.fromkeys(sizes, (1, 2**24)))
        if self.code_width > 2**16 or len(self.widths) > 24:
            raise ValueError(f"No codes are {self.code_width:,} wide, and no network has {len(self.widths)} levels.")
        if isinstance(self.quantizer, str) and self.quantizer not in QUANTIZERS:
            raise ValueError(f"No quantizer is called {self.quantizer!r}; there are {', '.join(QUANTIZERS)}.")
        if not self.widths:
            raise ValueError("An image tokenizer needs at least one level: widths is empty.")
        strange = [level for level in self.attention if not 0 <= level < len(self.widths)]
        if strange or len(set(self.attention)) < len(self.attention):
            raise ValueError(f"attention names levels, 0..{len(self.widths) - 1} and each once; got {self.attention}.")
        if self.side % self.factor:
            raise ValueError(f"side {self.side} is no multiple of the downsampling factor {self.factor}.")

    @property
    def factor(self) -> int:
        """Pixels along each side of one code's cell."""
        return self.patch * 2 ** (len(self.widths) - 1)

    def build_quantizer(self) -> Quantizer:
        build = QUANTIZERS[self.quantizer] if isinstance(self.quantizer, str) else self.quantizer
        return build(self.codes, self.code_width)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of codes of a prepared picture."""
        return self.side // self.factor, self.side // self.factor


CHAMELEON_IMAGES = ImageTokenizerConfig(
    side=512, codes=8192, code_width=256, widths=(128, 128, 256, 256, 512), latent_width=256
)
"""The published settings: 68,718,467 parameters, 512x512 pixels to 32x32 codes of 8192."""

TINY_IMAGES = ImageTokenizerConfig(
    side=64,
    codes=512,
    code_width=16,
    widths=(64, 128),
    latent_width=16,
    blocks=1,
    patch=4,
    groups=8,
    middle=False,
    quantizer="moving_average",
)
"""What the shipped tiny model uses: 64x64 pixels to 8x8 codes of 512."""


class ImageTokenizer(nn.Module):
    """Pictures to codes and back, on any grid whose sides are multiples of `config.factor`.

    One whose files hold no picture decoder has None for `decoder`: it reads pictures and cannot draw them. `source` is
    where it comes from, for the error that says so.

    `runtime`: "exact" has OpenVINO compute both networks where it is installed and equal, "fast" in bfloat16, "torch"
    never; it may be set at any time. `worker` says who computed last: see `tokenizers.runtime`.
    """

    def __init__(
        self, config: ImageTokenizerConfig, source: str = "This image tokenizer", runtime: str = "exact"
    ) -> None:
        super().__init__()
        self.config, self.source = config, source
        self.runtime, self.worker = require_mode(runtime), "torch"
        self.encoder = PictureEncoder(config)
        self.quant_conv = nn.Conv2d(config.latent_width, config.code_width, 1)
        self.quantize = config.build_quantizer()
        self.post_quant_conv = nn.Conv2d(config.code_width, config.latent_width, 1)
        self.decoder: nn.Module | None = PictureDecoder(config)

    @property
    def codes(self) -> int:
        """Size of the codebook."""
        return self.config.codes

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of codes of a picture prepared as the tokenizer's own policy has it."""
        return self.config.grid

    @property
    def codebook(self) -> np.ndarray:
        """The code vectors: codes x code_width floats."""
        every = torch.arange(self.config.codes, device=self.device).view(1, 1, -1)
        with torch.inference_mode():
            return self.quantize.latents(every)[0, :, 0].T.float().cpu().numpy()

    @property
    def device(self) -> torch.device:
        return self.quant_conv.weight.device

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Quantized]:
        """What training needs: reconstructed pixels_BCHW (straight-through), and what the quantizer made."""
        quantized = self.quantize(self.quant_conv(self.encoder(pixels_BCHW)))
        return self.require_decoder()(self.post_quant_conv(quantized.latents_BCHW)), quantized

    @property
    def last_layer(self) -> Tensor:
        """The weight of the decoder's last convolution, where gradients of losses are weighed against each other."""
        return self.get_parameter("decoder.conv_out.weight")

    def encode_pixels(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels in [-1, 1] to codes_BHW. Raises ValueError on sides that are no multiple of the factor."""
        height, width = pixels_BCHW.shape[-2:]
        if height % self.config.factor or width % self.config.factor:
            raise ValueError(
                f"Pixels of {height}x{width} do not fill a grid: both sides must be multiples of {self.config.factor}."
            )
        layers = nn.Sequential(self.encoder, self.quant_conv)
        latents_BCHW, self.worker = compute(layers, pixels_BCHW, self.runtime, self.config.factor)
        self._require_range(latents_BCHW, "latents")
        return self.quantize.codes(latents_BCHW)

    def decode_pixels(self, codes_BHW: Tensor) -> Tensor:
        """Codes to pixels_BCHW, about [-1, 1], not clamped. Raises ValueError on a code outside the codebook."""
        if codes_BHW.numel() and not 0 <= int(codes_BHW.min()) <= int(codes_BHW.max()) < self.config.codes:
            raise ValueError(
                f"Codes must lie in 0..{self.config.codes - 1}; got {int(codes_BHW.min())}..{int(codes_BHW.max())}."
            )
        layers = nn.Sequential(self.post_quant_conv, self.require_decoder())
        pixels_BCHW, self.worker = compute(layers, self.quantize.latents(codes_BHW), self.runtime, 1)
        self._require_range(pixels_BCHW, "pixels")
        return pixels_BCHW

    def _require_range(self, values: Tensor, name: str) -> None:
        """Raises ValueError where float16, which ends at 65,504, made infinity of what the network computes."""
        if values.dtype == torch.float16 and not values.isfinite().all():
            raise ValueError(
                f"{self.source}: its {name} are beyond float16, whose largest number is 65,504. Load it in "
                "dtype=torch.bfloat16 or torch.float32."
            )

    def require_decoder(self) -> nn.Module:
        """The decoder. Raises ValueError, which says what to add, where there is none."""
        if self.decoder is None:
            raise ValueError(
                f"{self.source} holds no picture decoder (keys 'decoder.*'), so its codes cannot become pictures. "
                "Meta's vqgan.ckpt and Anole's copy hold one: load the image tokenizer from there, or name the folder "
                "that has it, Chameleon.load(folder, tokenizer='data/tokenizer')."
            )
        return self.decoder

    @property
    def preparations(self) -> dict[str, Preparation]:
        """The policies that fit this tokenizer, by name; its own is `CentreCrop`."""
        return preparations(self.config.side, self.config.factor)

    def prepare(self, picture: PIL.Image.Image, preparation: Preparation | None = None) -> PIL.Image.Image:
        """The RGB picture that `encode` sees. Raises ValueError for a picture that is broken, empty or too large."""
        return (preparation or CentreCrop(self.config.side)).picture(picture)

    def encode(self, picture: PIL.Image.Image, preparation: Preparation | None = None) -> np.ndarray:
        """A picture of any size and mode to codes: rows x columns, int64. The policy is centre crop unless given."""
        return self.encode_batch([picture], preparation)[0]

    @torch.inference_mode()
    def encode_batch(self, pictures: list[PIL.Image.Image], preparation: Preparation | None = None) -> np.ndarray:
        """Pictures, of one shape once prepared, to codes: pictures x rows x columns, int64. ValueError for none."""
        policy = preparation or CentreCrop(self.config.side)
        if isinstance(pictures, str | PIL.Image.Image) or not len(pictures):
            raise ValueError(f"Give a list of one picture or more, not {pictures!r}.")
        pixels_BCHW = torch.stack([policy.pixels(policy.picture(picture)) for picture in pictures])
        pixels_BCHW = pixels_BCHW.to(self.device, self.quant_conv.weight.dtype)
        return self.encode_pixels(pixels_BCHW).cpu().numpy()

    @torch.inference_mode()
    def decode(self, codes: np.ndarray) -> PIL.Image.Image:
        """Codes (rows x columns) to an RGB picture; values are truncated to bytes, as the original does."""
        codes = np.asarray(codes)
        if codes.ndim != 2 or not codes.size or codes.dtype.kind not in "iu":
            raise ValueError(
                f"Codes of a picture are a rows x columns array of integers; got {codes.dtype} {codes.shape}."
            )
        pixels_BCHW = self.decode_pixels(torch.from_numpy(codes.astype(np.int64))[None].to(self.device))
        return picture_of(pixels_BCHW[0])

    def reconstruct(self, picture: PIL.Image.Image, preparation: Preparation | None = None) -> Reconstruction:
        """A picture's round trip through the codes."""
        original = self.prepare(picture, preparation)
        codes = self.encode(original, preparation)
        return Reconstruction(original, codes, self.decode(codes))


class PictureEncoder(nn.Module):
    """Pixels to latents, `config.factor` times smaller along each side."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        groups, widths = config.groups, config.widths
        self.fold = nn.PixelUnshuffle(config.patch) if config.patch > 1 else nn.Identity()
        self.conv_in = nn.Conv2d(3 * config.patch**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        incoming = widths[0]
        for level, width in enumerate(widths):
            resample = nn.Identity() if level == len(widths) - 1 else Downsample(width)
            attends = level in config.attention
            self.down.append(ResolutionLevel(incoming, width, config.blocks, groups, resample, attends))
            incoming = width
        self.mid = Middle(incoming, groups) if config.middle else nn.Identity()
        self.norm_out = nn.GroupNorm(groups, incoming, eps=1e-6)
        self.conv_out = nn.Conv2d(incoming, config.latent_width, 3, padding=1)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_in(self.fold(pixels_BCHW))
        for level in self.down:
            x_BCHW = level(x_BCHW)
        return self.conv_out(F.silu(self.norm_out(self.mid(x_BCHW))))


class PictureDecoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        groups, widths = config.groups, config.widths
        incoming = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_width, incoming, 3, padding=1)
        self.mid = Middle(incoming, groups) if config.middle else nn.Identity()
        up: list[nn.Module] = []
        for level in reversed(range(len(widths))):
            resample = Upsample(widths[level]) if level else nn.Identity()
            attends = level in config.attention
            up.insert(0, ResolutionLevel(incoming, widths[level], config.blocks + 1, groups, resample, attends))
            incoming = widths[level]
        self.up = nn.ModuleList(up)  # finest level first, as in the released keys; run from last to first
        self.norm_out = nn.GroupNorm(groups, incoming, eps=1e-6)
        self.conv_out = nn.Conv2d(incoming, 3 * config.patch**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(config.patch) if config.patch > 1 else nn.Identity()

    def forward(self, latents_BCHW: Tensor) -> Tensor:
        x_BCHW = self.mid(self.conv_in(latents_BCHW))
        for level in reversed(self.up):
            x_BCHW = level(x_BCHW)
        return self.unfold(self.conv_out(F.silu(self.norm_out(x_BCHW))))


class ResolutionLevel(nn.Module):
    """Residual blocks at one resolution, each followed by attention where it `attends`, then the way to the next."""

    def __init__(
        self, incoming: int, width: int, blocks: int, groups: int, resample: nn.Module, attends: bool = False
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(incoming if i == 0 else width, width, groups) for i in range(blocks))
        self.attn = nn.ModuleList(GridAttention(width, groups) if attends else nn.Identity() for _ in range(blocks))
        self.resample = resample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for block, attention in zip(self.block, self.attn, strict=True):
            x_BCHW = attention(block(x_BCHW))
        return self.resample(x_BCHW)


class ResidualBlock(nn.Module):
    def __init__(self, incoming: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, incoming, eps=1e-6)
        self.conv1 = nn.Conv2d(incoming, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(incoming, width, 1) if incoming != width else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        branch_BCHW = self.conv1(F.silu(self.norm1(x_BCHW), inplace=True))
        branch_BCHW = self.conv2(F.silu(self.norm2(branch_BCHW), inplace=True))
        return self.nin_shortcut(x_BCHW) + branch_BCHW


class Middle(nn.Module):
    """Block, attention, block, at the coarsest grid."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width, groups)
        self.attn_1 = GridAttention(width, groups)
        self.block_2 = ResidualBlock(width, width, groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BCHW)))


class GridAttention(nn.Module):
    """One head of attention among all cells."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        normed_BCHW = self.norm(x_BCHW)
        q, k, v = (part(normed_BCHW).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).view_as(x_BCHW)
        return x_BCHW + self.proj_out(mixed)


class Downsample(nn.Module):
    """Half the grid: a stride-2 convolution, padded right and below only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the grid: nearest neighbours, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
