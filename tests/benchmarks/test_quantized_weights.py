"""What 8 and 4 bits cost in agreement and gain in speed. Prints; asserts nothing of time.

make benchmarks
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.mixture import scene_pairs
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.quantization import Int4Linear, Int8Linear, quantize
from chameleon_lab.stability import QueryKeyNorm
from chameleon_lab.transformer import ModelConfig, Transformer
from chameleon_lab.vocabulary import Modality

pytestmark = pytest.mark.slow

WIDE = ModelConfig(
    vocabulary=16_384,
    width=1024,
    layers=12,
    heads=8,
    kv_heads=8,
    head_width=128,
    ffn_width=2752,
    context=256,
    fixes=(QueryKeyNorm(),),
)


def test_agreement_of_the_tiny_model(capsys: pytest.CaptureFixture[str]) -> None:
    lab = Chameleon.load("tiny", device="cpu")
    rows = [torch.from_numpy(lab.encode(document)) for document in scene_pairs(24, 5, "held_out")]
    kinds_X = torch.cat([torch.from_numpy(lab.vocabulary.modality[row[1:]]) for row in rows])

    @torch.inference_mode()
    def logits_XV(model: Transformer) -> Tensor:
        return torch.cat([model(row[None])[0, :-1] for row in rows])

    plain_XV = logits_XV(lab.model)
    with_int4_head = quantize(copy.deepcopy(lab.model), 4)
    setattr(with_int4_head, "head", _int4_head(lab.model))  # noqa: B010 (declared as nn.Linear)
    models = {
        "bfloat16": copy.deepcopy(lab.model).bfloat16(),
        "int8": quantize(copy.deepcopy(lab.model), 8),
        "int4": quantize(copy.deepcopy(lab.model), 4),
        "int4, head too": with_int4_head,
    }
    lines = ["against float32, on held-out scenes; KL in nats a token"]
    for name, model in models.items():
        other_XV = logits_XV(model)
        log_other_XV, log_plain_XV = other_XV.log_softmax(-1), plain_XV.log_softmax(-1)
        kl_X = F.kl_div(log_other_XV, log_plain_XV, log_target=True, reduction="none").sum(-1)
        told = []
        for kind in (Modality.TEXT, Modality.IMAGE):
            chosen = kinds_X == kind
            same = (plain_XV[chosen].argmax(-1) == other_XV[chosen].argmax(-1)).float().mean()
            told.append(f"{kind.name.lower()} top-1 {same:.3f}, KL {kl_X[chosen].mean():.5f}")
            assert kl_X[chosen].mean() < 0.1
        lines.append(f"{name:16s}{'   '.join(told)}")
    with capsys.disabled():
        print("\n" + "\n".join(lines))


def _int4_head(model: Transformer) -> torch.nn.Module:
    head = Int4Linear(model.head.in_features, model.head.out_features, "cpu")
    head.take(head.pack(model.head.weight.detach()))
    return head


def test_tokens_a_second_by_kind_of_weights(capsys: pytest.CaptureFixture[str]) -> None:
    before, steps = torch.get_num_threads(), 12
    torch.set_num_threads(1)
    lines = [f"{WIDE.width}x{WIDE.layers}, vocabulary {WIDE.vocabulary}, one thread"]
    for rows in (1, 3):
        for name in ("float32", "bfloat16", "int8", "int4"):
            model = Transformer(WIDE).eval()
            if name != "float32":
                model = model.to(torch.bfloat16)
            if name.startswith("int"):
                quantize(model, int(name[3:]))
            lines.append(f"{rows} row(s), {name:9s}{rows / _seconds_a_step(model, rows, steps):7.1f} tok/s")
    torch.set_num_threads(before)
    with capsys.disabled():
        print("\n" + "\n".join(lines))


@torch.inference_mode()
def _seconds_a_step(model: Transformer, rows: int, steps: int) -> float:
    decoder = Decoder(model, rows, 64)
    latest_B1, times = torch.full((rows, 1), 5), []
    for _ in range(steps):
        started = time.perf_counter()
        outputs_BTD = decoder.feed(latest_B1, [1] * rows)
        latest_B1 = decoder.logits(outputs_BTD[:, -1:]).argmax(-1)
        times.append(time.perf_counter() - started)
    return min(times[2:])


def test_products_of_one_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weight_OI = torch.randn(5504, 1024)
    made = Int8Linear(1024, 5504)
    made.take(made.pack(weight_OI))
    plain = weight_OI.bfloat16()
    lines = ["5504 x 1024, microseconds: bfloat16, int8"]
    with torch.inference_mode():
        for rows in (1, 3, 8, 16, 64):
            x_NI = torch.randn(rows, 1024).bfloat16()
            spent = [_microseconds(lambda x=x_NI: F.linear(x, plain)), _microseconds(lambda x=x_NI: made(x))]
            lines.append(f"{rows:3d} rows {spent[0]:8.0f} {spent[1]:8.0f}")
    torch.set_num_threads(before)
    with capsys.disabled():
        print("\n" + "\n".join(lines))


def _microseconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(12):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1e6 * min(times)
