"""Encoders: words and pictures to vectors of one space, in which what belongs together is near.

- `TwoTower`: words by a table, pictures by four convolutions; trained in a minute (`training.encoders`), 350 kB
- `ClipEncoder`: CLIP by transformers, from a folder on disk; nothing is ever downloaded
- an encoder of your own is any object with the methods of `Encoder`
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional

from chameleon_lab.checkpoints.tensors import bytes_of, fill, lazy, open_safetensors, tensors_of, write_safetensors
from chameleon_lab.files import intact, read_table
from chameleon_lab.parts import require_count, require_fields
from chameleon_lab.pictures import rgb
from chameleon_lab.storage import whole_folder, write_file
from chameleon_lab.tokenizers.preparation import BorderPadding

ENCODED_AT_ONCE = 64
"""Pictures."""


class Encoder(Protocol):
    """Texts and pictures to float32 vectors of length 1, N x D. `identity` differs where vectors do not mean the same:
    a bank is searched with the encoder that filled it."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...

    def encode_text(self, texts: Sequence[str]) -> np.ndarray: ...

    def encode_pictures(self, pictures: Sequence[PIL.Image.Image]) -> np.ndarray: ...


@dataclass(frozen=True)
class TwoTowerConfig:
    """`width` of the space; rows of the table of `words`; pixels along a picture's `side`, and the `channels` of each
    convolution, which halves it."""

    width: int = 48
    words: int = 2048
    side: int = 64
    channels: tuple[int, ...] = (16, 32, 48, 48)

    def __post_init__(self) -> None:
        require_fields(self)
        for each in ("width", "words", "side"):
            require_count(getattr(self, each), each, 1)
        if not self.channels or self.side % 2 ** len(self.channels) or self.words > 2**20 or self.side > 1024:
            raise ValueError(
                f"{len(self.channels)} convolutions halve a side of {self.side} pixels: it must be a multiple of "
                f"{2 ** len(self.channels)}, up to 1,024, and words at most {2**20:,}, not {self.words:,}."
            )


class TwoTower(nn.Module):
    """A small encoder of words and pictures.

    A text is the sum of its words' rows, each weighted by how rare it was in training; a word that training never
    had keeps the random rows of its hash and weighs most. So an invented name finds the documents that hold it, and
    words that were trained find pictures.
    """

    def __init__(self, config: TwoTowerConfig | None = None) -> None:
        super().__init__()
        self.config = config or TwoTowerConfig()
        width, words, side, channels = self.config.width, self.config.words, self.config.side, self.config.channels
        self.rows = nn.Embedding(words, width)
        self.rarity_W: Tensor
        self.register_buffer("rarity_W", torch.ones(words))
        layers, before = list[nn.Module](), 3
        for after in channels:
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.SiLU()]
            before = after
        cells = (side // 2 ** len(channels)) ** 2
        self.picture = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * cells, width))
        self.sharpness = nn.Parameter(torch.tensor(math.log(10.0)))
        self._preparation = BorderPadding(side)

    name = "two-tower"

    @property
    def identity(self) -> str:
        """Eight letters of the weights in float16, in which they are saved."""
        digest = xxhash.xxh3_64(json.dumps(asdict(self.config)).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().half().numpy().tobytes())
        return digest.hexdigest()[:8]

    def words_of(self, text: str) -> list[int]:
        """The rows of a text's words, two of each, so that hardly any two words share both. A word is letters and
        digits in a row, whatever their case."""
        hashes = [zlib.crc32(word.encode()) for word in re.findall(r"\w+", text.lower())]
        rows = self.config.words
        return [row for each in hashes for row in (each % rows, each // rows % rows)]

    def count_words(self, texts: Iterable[str]) -> None:
        """Weighs words by how rare they are among these texts: 1 where they are in none of them."""
        counts_W, count = torch.zeros(self.config.words), 0
        for text in texts:
            counts_W[list(set(self.words_of(text)))] += 1
            count += 1
        self.rarity_W.copy_(torch.log((1 + count) / (1 + counts_W)) / math.log(1 + count) + 0.02)

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """vectors_ND of length 1; a text without words is all zeros."""
        device = self.rows.weight.device
        words = [self.words_of(text) for text in texts]
        flat_X = torch.tensor([word for each in words for word in each], dtype=torch.long, device=device)
        starts_N = torch.tensor(np.cumsum([0, *map(len, words)])[:-1], dtype=torch.long, device=device)
        sums_ND = functional.embedding_bag(
            flat_X, self.rows.weight, starts_N, mode="sum", per_sample_weights=self.rarity_W[flat_X]
        )
        return functional.normalize(sums_ND, dim=-1)

    def picture_vectors(self, pixels_NCHW: Tensor) -> Tensor:
        """vectors_ND of length 1, of pixels in [-1, 1]."""
        return functional.normalize(self.picture(pixels_NCHW), dim=-1)

    def pixels(self, pictures: Sequence[PIL.Image.Image]) -> Tensor:
        """Pictures of any size to pixels_NCHW, all of each in a square with white borders."""
        return torch.stack([self._preparation.pixels(self._preparation.picture(each)) for each in pictures])

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return self.text_vectors(texts).float().cpu().numpy()

    @torch.inference_mode()
    def encode_pictures(self, pictures: Sequence[PIL.Image.Image]) -> np.ndarray:
        device, vectors = self.rows.weight.device, [np.empty((0, self.config.width), np.float32)]
        for start in range(0, len(pictures), ENCODED_AT_ONCE):
            pixels_NCHW = self.pixels(pictures[start : start + ENCODED_AT_ONCE]).to(device)
            vectors.append(self.picture_vectors(pixels_NCHW).float().cpu().numpy())
        return np.concatenate(vectors)

    def save(self, folder: Path | str, card: dict[str, Any] | None = None) -> None:
        """Writes `config.json` and `encoder.safetensors`, in float16, to a new folder or in place of an old encoder."""
        plain = {"format": ENCODER_FORMAT, "version": 1, "config": asdict(self.config), "card": card or {}}
        tensors = {name: lazy(tensor.detach().cpu().half()) for name, tensor in self.state_dict().items()}
        with whole_folder(Path(folder), ("config.json", "encoder.safetensors")) as hidden:
            write_safetensors(tensors, hidden, "encoder")
            write_file(hidden / "config.json", json.dumps(plain, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> TwoTower:
        """The encoder in a folder, in float32. Raises FileNotFoundError for none, ValueError for a damaged one."""
        place = Path(folder) / "config.json"
        if not os.path.lexists(place):
            raise FileNotFoundError(
                f"{folder} holds no encoder: there is no config.json. Take the shipped one, "
                "TwoTower.load('data/retrieval/encoder'), or train one: EncoderExperiment().run().result()."
            )
        plain = read_table(place)
        if plain.get("format") != ENCODER_FORMAT:
            raise ValueError(f"{folder} holds no encoder of the lab's: its config.json says {plain.get('format')!r}.")
        with intact(place):
            config = TwoTowerConfig(**{**plain["config"], "channels": tuple(plain["config"]["channels"])})
            with torch.device("meta"):
                encoder = cls(config)
        fill(encoder, open_safetensors(folder, "encoder"), folder, dtype=torch.float32)
        return encoder.eval()


ENCODER_FORMAT = "chameleon-lab-encoder"


class ClipEncoder:
    """CLIP from a folder in transformers' layout (ViT-B/32 is CM3Leon's): `ClipEncoder("clip-vit-base-patch32")`.

    Raises ValueError where transformers is not installed or the folder does not hold the weights as safetensors, and
    never downloads any.
    """

    name = "clip"

    def __init__(self, folder: Path | str, device: torch.device | str = "cpu") -> None:
        folder = Path(folder)
        files = sorted(folder.glob("*.safetensors"))
        if not (files and (folder / "config.json").is_file() and (folder / "preprocessor_config.json").is_file()):
            raise ValueError(
                f"{folder} holds no CLIP in transformers' layout: config.json, preprocessor_config.json, the "
                "tokenizer's files and model.safetensors. Put them there (openai/clip-vit-base-patch32 is the one of "
                "CM3Leon's paper), or take the small encoder: TwoTower.load('data/retrieval/encoder')."
            )
        try:
            from transformers import CLIPModel, CLIPProcessor
        except ImportError as error:
            raise ValueError("CLIP runs by transformers: pip install 'chameleon-lab[clip]'.") from error
        with intact(folder):
            self.model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
            self.processor: Any = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        self.model.to(device)
        digest = xxhash.xxh3_64()
        for tensor in tensors_of(self.model).values():
            digest.update(bytes_of(tensor))
        self.identity = digest.hexdigest()[:8]

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.empty((0, self.model.config.projection_dim), np.float32)
        longest = self.model.config.text_config.max_position_embeddings
        options = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": longest}
        inputs = self.processor(text=list(texts), **options)
        return self._vectors(self.model.get_text_features(**inputs.to(self.model.device)))

    @torch.inference_mode()
    def encode_pictures(self, pictures: Sequence[PIL.Image.Image]) -> np.ndarray:
        vectors = [np.empty((0, self.model.config.projection_dim), np.float32)]
        for start in range(0, len(pictures), ENCODED_AT_ONCE):
            some = [rgb(picture) for picture in pictures[start : start + ENCODED_AT_ONCE]]
            inputs = self.processor(images=some, return_tensors="pt").to(self.model.device)
            vectors.append(self._vectors(self.model.get_image_features(**inputs)))
        return np.concatenate(vectors)

    def _vectors(self, features: Any) -> np.ndarray:
        """Of what transformers gives: the vectors, or from its fifth version on an object that holds them."""
        vectors_ND = features if isinstance(features, Tensor) else features.pooler_output
        return functional.normalize(vectors_ND.float(), dim=-1).cpu().numpy()
