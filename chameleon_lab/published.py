"""The published shapes of transformers, by the name under which they are known."""

from __future__ import annotations

from dataclasses import replace

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
PUBLISHED = {"7b": SHAPE_7B, "34b": SHAPE_34B}
"""Chameleon's (arXiv 2405.09818, table 1), 34B's query and key norms counted once, as Hugging Face does."""
