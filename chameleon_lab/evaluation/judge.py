"""A judge of drawn emoji that is not the model: which idea a picture shows, and in whose style.

Features of EfficientNet-Lite0 (of pictures enlarged to 128 pixels) beside 8 x 8 coarse colours, read by two linear
heads, which ridge regression fits to real artwork and to its round trips through the image tokenizer. Before it judges
anything it must show, on round trips that it was not fitted to, how often it is right (`Judge.agreement`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from chameleon_lab.corpora.emoji import Emoji
from chameleon_lab.corpora.emoji_artwork import STYLES, Drawn
from chameleon_lab.storage import write_file
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.networks import EfficientNetLite0
from chameleon_lab.tokenizers.preparation import pixels_of

ENLARGED = 128  # pixels a side: at 64, small parts vanish in the network's first layers
COARSE = 8
COARSE_WEIGHT = 8.0  # coarse colours against 1,280 features, all of variance 1
RIDGE = 300.0
PLACEMENTS = 3  # round trips a drawing, as drawn and in other places, that the heads are fitted to


Features = Callable[[Sequence[PIL.Image.Image]], Tensor]
"""Pictures to features_BF."""


class JudgeFeatures:
    """Pictures to features_BF: EfficientNet-Lite0's, pooled, and coarse colours."""

    def __init__(self) -> None:
        """Raises ValueError without the extra `features`."""
        self.network = EfficientNetLite0()

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[PIL.Image.Image]) -> Tensor:
        rows = []
        for start in range(0, len(pictures), 64):
            pixels_BCHW = torch.stack([pixels_of(each.convert("RGB")) for each in pictures[start : start + 64]])
            coarse_BX = F.adaptive_avg_pool2d(pixels_BCHW, COARSE).flatten(1)
            enlarged_BCHW = F.interpolate(pixels_BCHW, size=(ENLARGED, ENLARGED), mode="bicubic").clamp(-1, 1)
            enlarged_BCHW = enlarged_BCHW.contiguous(memory_format=torch.channels_last)
            rows.append(torch.cat([self.network(enlarged_BCHW), coarse_BX], 1))
        return torch.cat(rows)


@dataclass(frozen=True, eq=False)
class Judge:
    """Two linear heads on standardized features: `ideas` and `styles` are what their columns stand for."""

    features: Features
    ideas: tuple[str, ...]
    mean_F: Tensor
    scale_F: Tensor
    of_idea_FN: Tensor
    of_style_FN: Tensor

    @classmethod
    def fitted(cls, emoji: Emoji, tokenizer: ImageTokenizer, features: Features | None = None) -> Judge:
        """Fitted to all real artwork, and to round trips of what is trainable; held-out round trips stay apart.

        `features` are `JudgeFeatures` unless given. Raises ValueError where those lack the extra `features`.
        """
        features = features or JudgeFeatures()
        ideas = tuple(idea.idea for idea in emoji.ideas)
        rows, labels, styles = list[Tensor](), list[int](), list[int]()
        everything = list(_fitting(emoji))
        for start in range(0, len(everything), 64):
            chunk = everything[start : start + 64]
            pictures = [emoji.picture(idea, style, rng) for idea, style, rng, _ in chunk]
            trips = [place for place, (*_, trip) in enumerate(chunk) if trip]
            for place, picture in zip(trips, round_trips(tokenizer, [pictures[each] for each in trips]), strict=True):
                pictures[place] = picture
            rows.append(features(pictures))
            labels += [ideas.index(idea.idea) for idea, *_ in chunk]
            styles += [STYLES.index(style) for _, style, *_ in chunk]
        features_XF = torch.cat(rows).double()
        mean_F, scale_F = features_XF.mean(0), features_XF.std(0).clamp_min(1e-6)
        scale_F[-3 * COARSE**2 :] /= COARSE_WEIGHT
        normed_XF = (features_XF - mean_F) / scale_F
        gram_FF = normed_XF.T @ normed_XF + RIDGE * torch.eye(normed_XF.shape[1], dtype=torch.float64)
        targets = (F.one_hot(torch.tensor(labels), len(ideas)), F.one_hot(torch.tensor(styles), len(STYLES)))
        heads = [torch.linalg.solve(gram_FF, normed_XF.T @ (each.double() - each.double().mean(0))) for each in targets]
        return cls(features, ideas, *(each.float() for each in (mean_F, scale_F, *heads)))

    def scores(self, pictures: Sequence[PIL.Image.Image]) -> tuple[Tensor, Tensor]:
        """How well each idea, and each style, fits each picture: scores_BN, scores_BS; the larger the better."""
        normed_BF = (self.features(pictures) - self.mean_F) / self.scale_F
        return normed_BF @ self.of_idea_FN, normed_BF @ self.of_style_FN

    def verdicts(self, pictures: Sequence[PIL.Image.Image]) -> list[tuple[str, str]]:
        """(idea, style) that each picture shows."""
        if not pictures:
            return []
        of_idea, of_style = (each.argmax(1).tolist() for each in self.scores(pictures))
        return [(self.ideas[idea], STYLES[style]) for idea, style in zip(of_idea, of_style, strict=True)]

    def agreement(self, emoji: Emoji, tokenizer: ImageTokenizer, n: int, where: str, seed: int = 0) -> tuple[int, int]:
        """Of `n` round trips of drawings on a side of the split, placed as no fitted one was: ideas right, styles."""
        rng = np.random.default_rng([seed, 11])
        drawings = emoji.drawings(where)
        picks = [drawings[place] for place in rng.choice(len(drawings), min(n, len(drawings)), replace=False)]
        ideas = styles = 0
        for start in range(0, len(picks), 64):
            chunk = picks[start : start + 64]
            trips = round_trips(tokenizer, [emoji.picture(idea, style, rng) for idea, style in chunk])
            for (idea, style), verdict in zip(chunk, self.verdicts(trips), strict=True):
                ideas, styles = ideas + (verdict[0] == idea.idea), styles + (verdict[1] == style)
        return ideas, styles

    def save(self, path: Path) -> None:
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        write_file(path, save(tensors, {"ideas": " ".join(self.ideas)}))

    @classmethod
    def load(cls, path: Path, emoji: Emoji, features: Features | None = None) -> Judge:
        """The judge that `save` wrote. Raises ValueError where it was fitted to another corpus."""
        ideas = tuple(idea.idea for idea in emoji.ideas)
        with safe_open(path, "pt") as file:
            if tuple(file.metadata()["ideas"].split()) != ideas:
                raise ValueError(f"{path} judges other ideas than {emoji.folder} has: fit it anew, in another file.")
            tensors = [file.get_tensor(name) for name in _TENSORS]
        return cls(features or JudgeFeatures(), ideas, *tensors)


_TENSORS = ("mean_F", "scale_F", "of_idea_FN", "of_style_FN")


def round_trips(tokenizer: ImageTokenizer, pictures: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
    """What the image tokenizer makes of pictures."""
    if not pictures:
        return []
    codes_BHW = torch.from_numpy(tokenizer.encode_batch(list(pictures)).astype(np.int64))
    with torch.inference_mode():
        pixels_BCHW = tokenizer.decode_pixels(codes_BHW.to(tokenizer.device)).clamp(-1, 1).float()
    bytes_BHWC = ((pixels_BCHW + 1) * 127.5).byte().movedim(1, -1).cpu().numpy()
    return [PIL.Image.fromarray(each) for each in bytes_BHWC]


def _fitting(emoji: Emoji) -> Iterator[tuple[Drawn, str, np.random.Generator | None, bool]]:
    """(idea, style, where it stands, whether as a round trip) of what the heads are fitted to."""
    rng = np.random.default_rng(12)
    for where in ("trainable", "drawing", "combination"):
        for idea, style in emoji.drawings(where):
            yield idea, style, None, False
            for place in range(PLACEMENTS if where == "trainable" else 0):
                yield idea, style, rng if place else None, True
