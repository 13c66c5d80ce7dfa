"""How fast a token is decoded, beside `transformers` at the same shapes in one run. Prints; asserts nothing of time.

make benchmarks

Times of one thread are those of its own clock, which stands still while other processes have the core; works that are
compared take turns, and the best of several turns counts. Even so a busy machine makes memory, and all of it, slower.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_peer
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.generation.engine import Settings
from chameleon_lab.generation.grammar import Grammar, Mask, State
from chameleon_lab.quantization import quantize
from chameleon_lab.records import ImagePiece, TextPiece
from chameleon_lab.stability import QueryKeyNorm
from chameleon_lab.transformer import ModelConfig, Transformer
from chameleon_lab.vocabulary import Modality

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled")]


def shape(vocabulary: int, width: int, layers: int, heads: int, ffn_width: int, context: int = 512) -> ModelConfig:
    return ModelConfig(
        vocabulary=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        ffn_width=ffn_width,
        context=context,
        fixes=(QueryKeyNorm(),),
    )


SHAPES = {
    "192x6, 1k": shape(1047, 192, 6, 6, 512),
    "256x6, 2k": shape(2048, 256, 6, 8, 688),
    "512x8, 8k": shape(8192, 512, 8, 8, 1376),
    "1024x12, 16k": shape(16384, 1024, 12, 16, 2752),
}
SEVEN = shape(65_536, 4096, 32, 32, 11_008, 4096)


def ours(model: Transformer, tokens: int, rows: int = 1, before: int = 0) -> Callable[[], object]:
    """Greedy decoding of so many tokens a row, after three; if something is `before` them, it is in the cache.

    One reply, so to say: what a decoder looks at where one begins is in `test_where_a_reply_begins`.
    """
    decoder = Decoder(model, rows, tokens + 3 + before)
    for each in [each for pair in decoder.cache.layers for each in pair] if before else []:
        each.normal_()

    @torch.inference_mode()
    def decode() -> torch.Tensor:
        decoder.cache.lengths[:] = before
        latest_BT = torch.full((rows, 3), 5, device=model.embedding.weight.device)
        for _ in range(tokens):
            output_BTD = decoder.feed(latest_BT, [latest_BT.shape[1]] * rows)
            latest_BT = decoder.logits(output_BTD[:, -1:]).argmax(-1)
        return latest_BT.cpu()

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


def seconds(*works: Callable[[], object], turns: int = 5) -> list[float]:
    """The best time of each work, all taken in turns."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = [float("inf")] * len(works)
    for turn in range(turns + 1):
        for index, work in enumerate(works):
            started = clock()
            work()
            if turn:  # the first warms
                best[index] = min(best[index], clock() - started)
    return best


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[str], None]]:
    """Prints a line at once, the machine's load first."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(text, flush=True)

    line(f"\nload {', '.join(f'{load:.1f}' for load in os.getloadavg())}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield line
    torch.set_num_threads(threads)


def weights(model: nn.Module) -> list[torch.Tensor]:
    """The matrices that a token needs, head included."""
    return [module.weight for module in model.modules() if isinstance(module, nn.Linear)]


def products(model: Transformer, tokens: int) -> Callable[[], object]:
    """Nothing but `F.linear` of one row with each of them, as often as there are tokens."""
    pairs = [(matrix, torch.randn(1, matrix.shape[1], dtype=matrix.dtype)) for matrix in weights(model)]
    return torch.inference_mode()(lambda: [F.linear(row, matrix) for _ in range(tokens) for matrix, row in pairs])


def reading(model: Transformer) -> Callable[[], object]:
    return torch.inference_mode()(lambda: [matrix.sum() for matrix in weights(model)])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", SHAPES)
def test_decoding_beside_transformers(name: str, threads: int, say: Callable[[str], None]) -> None:
    torch.set_num_threads(threads)
    config, tokens = SHAPES[name], 16 if name.startswith("1024") else 64
    model = Transformer(config).eval()
    size = sum(matrix.nbytes for matrix in weights(model))
    mine, others, bare, read = seconds(
        ours(model, tokens), theirs(config, tokens), products(model, tokens), reading(model), turns=4
    )
    mine, others, bare = mine / tokens, others / tokens, bare / tokens
    say(
        f"{name}, {threads} thread(s): ours {1 / mine:.0f} tok/s, transformers {1 / others:.0f}, "
        f"ratio {others / mine:.2f}; {size / mine / 1e9:.1f} GB/s of weights, bare F.linear {size / bare / 1e9:.1f}, "
        f"reading {size / read / 1e9:.1f}"
    )


def model_in(config: ModelConfig, kind: str) -> Transformer:
    """Of random weights, in one of llama.cpp's kinds, or what comes nearest to it."""
    if kind == "Q4_0" and config.ffn_width % 32:
        pytest.skip("4 bits share a scale among 32 weights")
    model = Transformer(config).eval()
    model = model if kind == "F32" else model.to(torch.bfloat16)
    return quantize(model, int(kind[1])) if kind.startswith("Q") else model


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", [name for name in SHAPES if not name.startswith("192")])
def test_decoding_beside_llama_cpp(
    name: str, kind: str, threads: int, say: Callable[[str], None], tmp_path: Path
) -> None:
    """Without numba it says how the lean twin stands; without `llama-cpp-python` and `gguf` it is skipped."""
    torch.set_num_threads(threads)
    config, tokens = SHAPES[name], 16 if name.startswith("1024") else 64
    model = model_in(config, kind)
    llama_peer.write_gguf(tmp_path / "peer.gguf", config, kind)
    mine, peers = seconds(
        ours(model, tokens), llama_peer.decoding(tmp_path / "peer.gguf", config, tokens, threads), turns=5
    )
    say(
        f"{name}, {kind}, {threads} thread(s): ours {tokens / mine:.0f} tok/s, llama.cpp {tokens / peers:.0f}"
        f"{' with repacked matrices' if llama_peer.REPACKED else ''}, ratio {peers / mine:.2f}"
    )


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", [name for name in SHAPES if not name.startswith("192")])
def test_eight_rows_beside_llama_cpp(name: str, kind: str, say: Callable[[str], None], tmp_path: Path) -> None:
    config, tokens = SHAPES[name], 8
    model = model_in(config, kind)
    llama_peer.write_gguf(tmp_path / "peer.gguf", config, kind)
    peers = [llama_peer.decoding_rows(tmp_path / "peer.gguf", config, tokens, 1, rows) for rows in (1, 8)]
    one, eight, peer_one, peer_eight = seconds(*(ours(model, tokens, rows, 32) for rows in (1, 8)), *peers)
    say(
        f"{name}, {kind}: eight rows {8 * one / eight:.2f} times one row's tokens, llama.cpp's "
        f"{8 * peer_one / peer_eight:.2f} times; ours {peer_eight / eight:.2f} times llama.cpp's"
    )


@pytest.mark.parametrize("name", ["256x6, 2k", "512x8, 8k"])
def test_rows_of_a_batch(name: str, say: Callable[[str], None]) -> None:
    model, counts = Transformer(SHAPES[name]).eval(), (1, 2, 3, 4, 8, 16)
    times = seconds(*(ours(model, 64, rows) for rows in counts))
    rates = [rows / took for rows, took in zip(counts, times, strict=True)]
    shares = ", ".join(f"{rows}: {rate / rates[0]:.2f}" for rows, rate in zip(counts, rates, strict=True))
    say(f"{name}, tokens a second by rows, as a multiple of one row's: {shares}")


def test_longer_contexts(say: Callable[[str], None]) -> None:
    model, lengths = Transformer(shape(2048, 256, 6, 8, 688, 4096)).eval(), (32, 256, 1024, 2048, 4032)
    times = [took / 16 for took in seconds(*(ours(model, 16, 1, length) for length in lengths))]
    [read] = seconds(reading(model))
    speed = sum(matrix.nbytes for matrix in weights(model)) / read
    for length, took in zip(lengths, times, strict=True):
        more = 2 * 4 * 256 * 6 * (length - lengths[0])  # bytes of keys and values
        say(
            f"256x6 at {length} positions: {took * 1e3:.2f} ms a token, {(took - times[0]) * 1e3:.2f} more than at "
            f"{lengths[0]}; reading {more / 1e6:.1f} MB more takes {more / speed * 1e3:.2f} ms"
        )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_kinds_of_weights_where_memory_bounds(rows: int, threads: int, say: Callable[[str], None]) -> None:
    torch.set_num_threads(threads)
    plain = Transformer(SHAPES["1024x12, 16k"]).eval()
    half = copy.deepcopy(plain).to(torch.bfloat16)
    eighth = quantize(copy.deepcopy(half), 8)
    full, bf16, int8 = seconds(*(ours(model, 12, rows) for model in (plain, half, eighth)), turns=4)
    say(
        f"1024x12, {rows} row(s), {threads} thread(s): float32 {12 / full:.1f} steps/s, bfloat16 {12 / bf16:.1f} "
        f"({full / bf16:.2f} times), int8 {12 / int8:.1f} ({bf16 / int8:.2f} times bfloat16)"
    )


@pytest.mark.parametrize(
    ("name", "dtype", "rows"),
    [("192x6, 1k", torch.float32, 1), ("512x8, 8k", torch.float32, 8), ("1024x12, 16k", torch.bfloat16, 1)],
)
def test_where_a_reply_begins(name: str, dtype: torch.dtype, rows: int, say: Callable[[str], None]) -> None:
    """Weights are compared with their packed copies, and, for a session, with what they were in the reply before."""
    model, token_B1 = Transformer(SHAPES[name]).to(dtype).eval(), torch.full((rows, 1), 5)
    session = Decoder(model, rows, 8, lasting=True)

    @torch.inference_mode()
    def step(decoder: Decoder) -> None:
        decoder.logits(decoder.trunk(token_B1)[:, -1:])

    once = [Decoder(model, rows, 8)]

    def reply() -> None:
        once[0] = Decoder(model, rows, 8)
        once[0].begin()
        step(once[0])

    step(once[0])
    first, later, again = seconds(reply, lambda: step(once[0]), torch.inference_mode()(session.begin))
    size = sum(parameter.nbytes for parameter in model.parameters())
    say(
        f"{name}, {dtype}, {rows} row(s), {size / 1e6:.0f} MB: the first step of a reply {1e3 * first:.1f} ms, a later "
        f"one {1e3 * later:.1f}; a session's look at all weights {1e3 * again:.1f}"
    )


class InTurns:
    """Rules under which so many words and an image take turns."""

    images = True

    def __init__(self, grammar: Grammar, words: int) -> None:
        vocabulary = grammar.vocabulary
        self.grammar, self.words, self.said = grammar, words, 0
        self._word = Mask(vocabulary.modality == Modality.TEXT)
        self._begin = Mask(np.arange(vocabulary.size) == vocabulary.begin_image)

    def start(self, tokens: np.ndarray, room: int) -> State:
        return self.grammar.start(tokens, room)

    def allowed(self, state: State, room: int) -> Mask:
        if self.share(state) is not None:
            return self.grammar.allowed(state, room)
        return self._word if self.said < self.words else self._begin

    def advance(self, state: State, token: int) -> State:
        after = self.grammar.advance(state, token)
        self.said = self.said + 1 if self.share(after) is None else 0
        return after

    def share(self, state: State) -> float | None:
        return self.grammar.share(state)


def test_a_switch_of_modality_costs_nothing(say: Callable[[str], None]) -> None:
    lab = Chameleon.load("tiny")
    prompt = lab.encode(Document.of("draw a large red circle", EndTurn()))
    turn = 16 + lab.tokenizer.image_tokens
    runs = []
    for _ in range(5):
        times = [time.process_time()]
        rules = InTurns(lab.engine.default_grammar(), 16)
        settings = Settings(temperature=0, image_temperature=0, guidance=1, max_tokens=turn + 17)
        for _ in lab.engine.tokens([prompt], settings, [0], rules):
            times.append(time.process_time())
        runs.append(np.diff(times))
    best = np.min([run[: min(map(len, runs))] for run in runs], axis=0) * 1e3
    spans = {"words": best[2:16], "codes": best[18 : turn - 1], "words after": best[turn + 1 : turn + 16]}
    spans |= {"the first codes": best[17:21], "the first words after": best[turn : turn + 3]}
    say("ms a token, through the engine: " + ", ".join(f"{name} {np.median(span):.2f}" for name, span in spans.items()))


@pytest.mark.gpu
def test_the_real_size_on_a_gpu(say: Callable[[str], None]) -> None:
    """Random weights in bfloat16; the bandwidth beside it is that of a copy on the same device."""
    with torch.device("meta"):
        empty = Transformer(SEVEN).to(torch.bfloat16)
    model = empty.to_empty(device="cuda").eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    size, block = sum(matrix.nbytes for matrix in weights(model)), torch.empty(2**30, dtype=torch.int8, device="cuda")

    def copied() -> None:
        block.clone()
        torch.cuda.synchronize()

    torch.set_num_threads(2)  # the clock on the wall
    for rows in (1, 2, 3):
        mine, copying = seconds(ours(model, 32, rows), copied)
        bandwidth = 2 * block.nbytes / copying
        share = 32 * size / mine / bandwidth
        image = f"; an image of 1,024 codes: {1024 * mine / 32:.1f} s"
        say(f"7B, {rows} row(s): {32 / mine:.1f} steps/s, {share:.0%} of {bandwidth / 1e9:.0f} GB/s{image}")


def test_the_tiny_model_answers_and_draws(say: Callable[[str], None]) -> None:
    started = time.perf_counter()
    lab = Chameleon.load("tiny")
    loaded = time.perf_counter() - started
    prompt = Document.of("draw a large red circle left of a small blue square on a gray background", EndTurn())
    matrices = torch.cat([each.flatten() for each in weights(lab.model)])
    whole, read = seconds(lambda: lab.generate(prompt), lambda: [matrices.sum() for _ in range(65)], turns=12)
    say(f"a whole picture, one thread: {whole * 1e3:.0f} ms; to read its weights 65 times takes {read * 1e3:.0f}")
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
    say(f"load {loaded:.2f} s, first word {word:.3f} s, a guided picture {picture:.2f} s")
