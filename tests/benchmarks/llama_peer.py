"""llama.cpp as the peer of decoding: the same shape with random weights as a GGUF file, through `llama-cpp-python`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon_lab.transformer import ModelConfig

REPACKED = os.environ.get("LLAMA_REPACKED") == "1"
"""Whether llama.cpp may put its matrices into an order of their own. By default not: one that is built for AMX then
dies of an illegal instruction where a machine hides it. `-DGGML_NATIVE=OFF` and the AVX-512 options build another."""


def write_gguf(path: Path, shape: ModelConfig, kind: str) -> None:
    """A Llama of this shape, of random weights, its matrices in F32, BF16, Q8_0 or Q4_0; a Q4_0 file has its head in
    Q8_0, as the lab's 4 bits have."""
    gguf: Any = pytest.importorskip("gguf")
    writer, types = gguf.GGUFWriter(path, "llama"), gguf.GGMLQuantizationType
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    draw = np.random.default_rng(0)

    def matrix(name: str, outputs: int, inputs: int, in_kind: str = kind) -> None:
        if in_kind.startswith("Q") and inputs % 32:  # as llama.cpp's own quantizer does
            in_kind = "F16"
        weights = draw.standard_normal((outputs, inputs), dtype=np.float32) * inputs**-0.5
        writer.add_tensor(name, gguf.quants.quantize(weights, types[in_kind]), raw_dtype=types[in_kind])

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(shape.width, np.float32))

    matrix("token_embd.weight", shape.vocabulary, shape.width, "F32" if kind == "F32" else "BF16")
    matrix("output.weight", shape.vocabulary, shape.width, "Q8_0" if kind == "Q4_0" else kind)
    norm("output_norm.weight")
    inner, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        norm(f"{block}attn_norm.weight")
        norm(f"{block}ffn_norm.weight")
        for name, outputs in (("attn_q", inner), ("attn_k", keys), ("attn_v", keys)):
            matrix(f"{block}{name}.weight", outputs, shape.width)
        matrix(f"{block}attn_output.weight", shape.width, inner)
        matrix(f"{block}ffn_gate.weight", shape.ffn_width, shape.width)
        matrix(f"{block}ffn_up.weight", shape.ffn_width, shape.width)
        matrix(f"{block}ffn_down.weight", shape.width, shape.ffn_width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def opened(path: Path, context: int, threads: int, rows: int = 1) -> Any:
    """A model of llama.cpp's for so many sequences."""
    llama_cpp: Any = pytest.importorskip("llama_cpp")
    home: Any = importlib.import_module("llama_cpp.llama")
    defaults, contexts = home.llama_cpp.llama_model_default_params, home.llama_cpp.llama_context_default_params

    def peer_parameters() -> Any:
        parameters = defaults()
        parameters.use_extra_bufts = REPACKED
        return parameters

    def context_parameters() -> Any:
        parameters = contexts()
        parameters.n_seq_max = rows
        return parameters

    home.llama_cpp.llama_model_default_params = peer_parameters
    home.llama_cpp.llama_context_default_params = context_parameters
    try:
        options = {"n_ctx": context, "n_batch": max(8, rows), "n_threads": threads, "n_threads_batch": threads}
        return llama_cpp.Llama(str(path), verbose=False, **options)
    finally:
        home.llama_cpp.llama_model_default_params = defaults
        home.llama_cpp.llama_context_default_params = contexts


def decoding(path: Path, shape: ModelConfig, tokens: int, threads: int) -> Callable[[], object]:
    """Greedy decoding of so many tokens after three, as `ours` does it."""
    model = opened(path, tokens + 8, threads)

    def decode() -> list[int]:
        model.reset()
        latest, chosen = [5, 5, 5], []
        for _ in range(tokens):
            model.eval(latest)
            logits = np.ctypeslib.as_array(model._ctx.get_logits(), (1, shape.vocabulary))
            latest = [int(logits[-1].argmax())]
            chosen.append(latest[0])
        return chosen

    return decode


def decoding_rows(path: Path, shape: ModelConfig, tokens: int, threads: int, rows: int) -> Callable[[], object]:
    """Greedy decoding of so many tokens in each of several sequences at once, in one batch a step."""
    model = opened(path, rows * (tokens + 8), threads, rows)
    api: Any = importlib.import_module("llama_cpp.llama_cpp")
    batch = api.llama_batch_init(rows, 0, 1)

    def decode() -> object:
        api.llama_memory_clear(api.llama_get_memory(model._ctx.ctx), True)
        latest = [5] * rows
        for place in range(tokens):
            batch.n_tokens = rows
            for row, token in enumerate(latest):
                batch.token[row], batch.pos[row], batch.logits[row] = token, place, True
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, row
            if api.llama_decode(model._ctx.ctx, batch):
                raise RuntimeError("llama.cpp could not decode the batch.")
            outputs = (api.llama_get_logits_ith(model._ctx.ctx, row) for row in range(rows))
            latest = [int(np.ctypeslib.as_array(each, (shape.vocabulary,)).argmax()) for each in outputs]
        return latest

    return decode
