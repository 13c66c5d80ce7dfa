"""How fast a training step is, and what memory it takes, beside `transformers` with the same weights. Prints; asserts
nothing of time.

make benchmarks
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import CONFIG, their_weights

from chameleon_lab.transformer import Transformer

pytestmark = pytest.mark.slow

WHO = ("transformers", "this lab")
SHAPES = {
    "256x6, vocabulary 16k, 2 x 512 positions": ((16_384, 256, 6, 8, 688), (2, 512)),
    "192x6, vocabulary 1k, 16 x 128 positions": ((1047, 192, 6, 6, 512), (16, 128)),
}
"""Vocabulary, width, layers, heads and feed-forward width; rows and positions. The second is the tiny model's shape."""

CASE = """
import json, resource, sys, time
import torch
from safetensors.torch import load_file, save_file
from chameleon_lab.corpora.packing import Batch
from chameleon_lab.objective import Objective
from chameleon_lab.stability import QueryKeyNorm
from chameleon_lab.transformer import ModelConfig, Transformer

asked = json.loads(sys.argv[1])
torch.set_num_threads(asked["threads"])
vocabulary, width, layers, heads, ffn_width = asked["shape"]
rows, length = asked["tokens"]
if asked["who"] == "transformers":
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    vq_config = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "num_embeddings": 8}
    config = ChameleonConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=ffn_width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=length, vq_config=vq_config,
        vocabulary_map={"<image>": 4},  # no image tokens: it would take their logits away
    )
    model = ChameleonForConditionalGeneration(config)
    del model.model.vqmodel
else:
    config = ModelConfig(
        vocabulary=vocabulary, width=width, layers=layers, heads=heads, kv_heads=heads, head_width=width // heads,
        ffn_width=ffn_width, context=length, fixes=(QueryKeyNorm(),),
    )
    model = Transformer(config)
model.load_state_dict(load_file(asked["weights"]))
tokens_BT = torch.randint(8, vocabulary, (rows, length + 1), generator=torch.Generator().manual_seed(1))
inputs_BT, targets_BT = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
everywhere_BT = torch.ones_like(inputs_BT, dtype=torch.bool)
batch = Batch(inputs_BT, targets_BT, everywhere_BT, torch.zeros_like(inputs_BT), tokens_BT.numel())
objective = Objective()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def loss():
    with torch.autocast("cpu", torch.bfloat16, enabled=asked["steps"] > 0):
        if asked["who"] == "transformers":
            return model(input_ids=inputs_BT, labels=targets_BT, shift_labels=targets_BT, use_cache=False).loss
        return objective(model, batch)["loss_with_penalties"]


def step():
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if asked["steps"]:
    step()
    times = []
    for _ in range(asked["steps"]):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    print(json.dumps(rows * length / min(times)))
else:
    before = peak()
    value = loss()
    value.backward()
    print(json.dumps({"loss": float(value), "before": before, "peak": peak()}))
    save_file({name: each.grad for name, each in model.named_parameters()}, asked["gradients"])
"""


def case(**asked: object) -> Any:
    arguments = [sys.executable, "-c", CASE, json.dumps(asked)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def same_weights(shape: tuple[int, ...], length: int, folder: Path) -> tuple[Transformer, dict[str, str]]:
    """A model of a shape, and the files of its weights, for whom they are."""
    vocabulary, width, layers, heads, ffn_width = shape
    config = replace(CONFIG, vocabulary=vocabulary, width=width, layers=layers, heads=heads, kv_heads=heads)
    torch.manual_seed(0)
    model = Transformer(replace(config, head_width=width // heads, ffn_width=ffn_width, context=length))
    files = {who: str(folder / f"{who}.safetensors") for who in WHO}
    for who, weights in zip(WHO, (their_weights(model), model.state_dict()), strict=True):
        save_file({name: weight.contiguous() for name, weight in weights.items()}, files[who])
    return model, files


def apart(model: Transformer, theirs: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]) -> float:
    """The largest relative distance of two gradients of one parameter."""
    model.load_state_dict(ours)
    distances = []
    for name, gradient in their_weights(model).items():
        per_head = "q_norm" in name or "k_norm" in name  # theirs has a copy of our one vector for each head
        one, other = (gradient[0], theirs[name].sum(0)) if per_head else (gradient, theirs[name])
        distances.append(float((one - other).norm() / other.norm()))
    return max(distances)


def test_memory_of_forward_and_backward_beside_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape, length = (65_536, 256, 2, 8, 688), 4096
    model, files = same_weights(shape, length, tmp_path)
    told = {
        who: case(
            who=who,
            shape=shape,
            tokens=(1, length),
            threads=2,
            steps=0,
            weights=files[who],
            gradients=files[who] + ".out",
        )
        for who in WHO
    }
    taken = {who: seen["peak"] - seen["before"] for who, seen in told.items()}
    lines = [
        f"{who:12s} loss {seen['loss']:.6f}, before {seen['before']:.2f} GiB, peak {seen['peak']:.2f} GiB, "
        f"so {taken[who]:.2f} GiB ({taken[who] / taken['transformers']:.1%})"
        for who, seen in told.items()
    ]
    distance = apart(model, load_file(files["transformers"] + ".out"), load_file(files["this lab"] + ".out"))
    with capsys.disabled():
        print(f"\nvocabulary 65,536, {length} positions, float32\n" + "\n".join(lines))
        print(f"gradients at most {distance:.1e} apart, relative")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", SHAPES)
def test_training_steps_beside_transformers(
    name: str, threads: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape, tokens = SHAPES[name]
    _, files = same_weights(shape, tokens[1], tmp_path)
    rates = dict.fromkeys(WHO, 0.0)
    for _ in range(3):  # in turn, so that what else the machine does meets both
        for who in WHO:
            rate = case(who=who, shape=shape, tokens=tokens, threads=threads, steps=5, weights=files[who])
            rates[who] = max(rates[who], rate)
    ratio = rates["this lab"] / rates["transformers"]
    told = ", ".join(f"{who} {rate:.0f} tok/s" for who, rate in rates.items())
    with capsys.disabled():
        print(f"\n{name}, {threads} thread(s): {told}, ratio {ratio:.2f}")
