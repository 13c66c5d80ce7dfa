"""The shapes and lengths of all parts, real and toy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from chameleon_lab import crossovers
from chameleon_lab.optimization import Recipe
from chameleon_lab.published import SHAPE_7B
from chameleon_lab.stability import QueryKeyNorm
from chameleon_lab.tokenizers.image import CHAMELEON_IMAGES, ImageTokenizerConfig
from chameleon_lab.training.experiments import SMALL
from chameleon_lab.transformer import ModelConfig


@dataclass(frozen=True)
class Sizes:
    """The shapes and lengths of all parts."""

    decoded: ModelConfig
    before: int
    """Tokens in the cache before the first that is timed."""
    steps: int
    patience: int
    images: ImageTokenizerConfig
    batch: int
    """Pictures at once."""
    trainings: dict[str, tuple[ModelConfig, Recipe, int, int, tuple[bool, ...]]]
    """Model, recipe, rows, positions, and whether compiled or not."""
    warm: int
    timed: int
    watched: int
    """Steps of the training whose monitors are timed."""
    copied: int
    """Bytes of the copy that measures bandwidth."""
    greedy: int
    """Tokens of a greedy reply."""
    resumed: int
    """Steps of the training that is stopped halfway and resumed."""
    data: int
    """Tokens in a batch of the data whose making is timed."""
    compiler: str = "inductor"


BILLION = replace(SHAPE_7B, width=2048, layers=20, heads=16, kv_heads=16, ffn_width=5632)
"""1.16 billion weights in matrices, 1.3 with the embedding."""

BOTH = (False, True)

ADAM = replace(SMALL.recipe, muon_rate=0.0)

REAL = Sizes(
    decoded=SHAPE_7B,
    before=1040,
    steps=64,
    patience=crossovers.GRAPH_PATIENCE,
    images=CHAMELEON_IMAGES,
    batch=16,
    trainings={
        "SMALL as it is, 2,048 tokens a step": (SMALL.model, SMALL.recipe, 2, 1024, (False,)),
        "SMALL, 65,536 tokens a step": (SMALL.model, ADAM, 64, 1024, BOTH),
        "1B, 32,768 tokens a step": (BILLION, Recipe(), 8, 4096, (True,)),
        "1B, 16,384 tokens a step": (BILLION, Recipe(), 4, 4096, (True,)),
    },
    warm=8,
    timed=16,
    watched=101,
    copied=2**32,
    greedy=200,
    resumed=12,
    data=2048,
)

TOY_SHAPE = ModelConfig(
    vocabulary=384,
    width=32,
    layers=2,
    heads=2,
    kv_heads=2,
    head_width=16,
    ffn_width=64,
    context=192,
    fixes=(QueryKeyNorm(),),
)
TOY = Sizes(
    decoded=replace(TOY_SHAPE, vocabulary=2048),
    before=16,
    steps=2,
    patience=1,
    images=ImageTokenizerConfig(
        side=16, codes=64, code_width=8, widths=(8, 16), latent_width=8, blocks=1, patch=2, groups=4, middle=False
    ),
    batch=2,
    trainings={
        "toy": (TOY_SHAPE, SMALL.recipe, 2, 32, BOTH),
    },
    warm=1,
    timed=2,
    watched=2,
    copied=2**20,
    greedy=6,
    resumed=4,
    data=128,
    compiler="aot_eager",  # the same graphs, without minutes of a C++ compiler
)
