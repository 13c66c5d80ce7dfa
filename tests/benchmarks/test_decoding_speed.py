"""How fast a token is decoded, beside `transformers` at the same shapes in one run. Prints; asserts nothing of time.

make benchmarks
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.records import ImagePiece, TextPiece
from chameleon_lab.stability import QueryKeyNorm
from chameleon_lab.transformer import KVCache, ModelConfig, Transformer

pytestmark = pytest.mark.slow


def shape(vocabulary: int, width: int, layers: int, heads: int, ffn_width: int) -> ModelConfig:
    return ModelConfig(
        vocabulary=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        ffn_width=ffn_width,
        context=512,
        fixes=(QueryKeyNorm(),),
    )


SHAPES = {
    "192x6, 1k": shape(1047, 192, 6, 6, 512),
    "256x6, 2k": shape(2048, 256, 6, 8, 688),
    "512x8, 8k": shape(8192, 512, 8, 8, 1376),
}


@torch.inference_mode()
def ours(model: Transformer, tokens: int) -> Callable[[], object]:
    def decode() -> list[int]:
        cache = KVCache(model.config, 1, model.head.weight, tokens + 8)
        latest, out = torch.tensor([[5, 6, 7]]), []
        for _ in range(tokens):
            with torch.inference_mode():
                output_BTD = model.trunk(latest, cache)
                cache.advance([latest.shape[1]])
                latest = model.logits(output_BTD[:, -1:]).argmax(-1)
            out.append(int(latest))
        return out

    return decode


def theirs(shape: ModelConfig, tokens: int) -> Callable[[], object]:
    config = transformers.ChameleonConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.ffn_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=512,
        vq_config={
            "base_channels": 32,
            "channel_multiplier": [1],
            "latent_channels": 32,
            "embed_dim": 32,
            "num_embeddings": 8,
        },
        vocabulary_map={"<image>": 4, "IMGIMGAZ": 6},
    )
    model: Any = transformers.ChameleonForConditionalGeneration(config).eval()
    prompt = torch.tensor([[5, 6, 7]])
    return lambda: model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=1)


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def read_bandwidth() -> float:
    """Bytes per second of summing 256 MB."""
    block = torch.ones(64 * 2**20)
    return block.numel() * 4 / seconds(block.sum)


@pytest.mark.parametrize("threads", [1, 2])
def test_decoding_beside_transformers(threads: int, capsys: pytest.CaptureFixture[str]) -> None:
    before, tokens = torch.get_num_threads(), 64
    torch.set_num_threads(threads)
    bandwidth = read_bandwidth()
    lines = [f"{threads} thread(s); a plain read of memory: {bandwidth / 1e9:.1f} GB/s"]
    for name, config in SHAPES.items():
        model = Transformer(config).eval()
        weights = 4 * (sum(p.numel() for p in model.parameters()) - model.embedding.weight.numel())
        our_rate, their_rate = tokens / seconds(ours(model, tokens)), tokens / seconds(theirs(config, tokens))
        lines.append(
            f"{name:10s} ours {our_rate:6.0f} tok/s ({weights * our_rate / bandwidth:4.0%} of bandwidth)   "
            f"transformers {their_rate:6.0f} tok/s   ratio {our_rate / their_rate:.2f}"
        )
    torch.set_num_threads(before)
    with capsys.disabled():
        print("\n" + "\n".join(lines))


def test_the_tiny_model_answers_and_draws(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.perf_counter()
    lab = Chameleon.load("tiny")
    loaded = time.perf_counter() - started
    prompt = Document.of("draw a large red circle left of a small blue square on a gray background", EndTurn())
    lab.generate(prompt)  # warm
    started = time.perf_counter()
    drawn = next(piece for piece in lab.stream(prompt, seed=1) if isinstance(piece, ImagePiece) and piece.complete)
    picture = time.perf_counter() - started
    started = time.perf_counter()
    next(
        piece
        for piece in lab.stream(Document.of(drawn.picture, "what do you see?", EndTurn()))
        if isinstance(piece, TextPiece)
    )
    word = time.perf_counter() - started
    with capsys.disabled():
        print(f"\nload {loaded:.2f} s, first word {word:.3f} s, a guided picture {picture:.2f} s")
