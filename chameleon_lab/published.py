"""The published shapes of transformers, by the name under which they are known."""

from __future__ import annotations

from dataclasses import replace

from chameleon_lab.cm3leon import CM3LEON_BLOCK
from chameleon_lab.stability import NormReordering, QueryKeyNorm
from chameleon_lab.transformer import ModelConfig

SHAPE_7B = ModelConfig(
    vocabulary=65_536,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    head_width=128,
    ffn_width=11_008,
    context=4096,
    fixes=(QueryKeyNorm(),),
)
SHAPE_34B = replace(
    SHAPE_7B,
    width=8192,
    layers=48,
    heads=64,
    kv_heads=8,
    ffn_width=22_016,
    fixes=(QueryKeyNorm(), NormReordering()),
)

CM3LEON_VOCABULARY = 56_320 + 8_192
"""Text and image tokens (arXiv 2309.02591, section 2.1)."""


def _cm3leon_shape(layers: int, width: int, heads: int) -> ModelConfig:
    return ModelConfig(
        vocabulary=CM3LEON_VOCABULARY,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        ffn_width=4 * width,
        context=4096,
        tied=True,
        fixes=CM3LEON_BLOCK,
    )


CM3LEON_SHAPES = {
    "cm3leon-350m": _cm3leon_shape(24, 1024, 16),
    "cm3leon-760m": _cm3leon_shape(24, 1536, 16),
    "cm3leon-7b": _cm3leon_shape(32, 4096, 32),
}
"""CM3Leon's (arXiv 2309.02591, table of sizes): its layers, widths and context; heads, feed-forward and a tied head, of
which it says nothing, are those that the public code has for models of these layers and widths."""

PUBLISHED = {"7b": SHAPE_7B, "34b": SHAPE_34B, **CM3LEON_SHAPES}
"""Chameleon's (arXiv 2405.09818, table 1), 34B's query and key norms counted once, as Hugging Face does; CM3Leon's."""
