import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chameleon_lab import planner
from chameleon_lab.commands.main import main
from chameleon_lab.corpora.packing import Batch
from chameleon_lab.generation.kv_cache import KVCache
from chameleon_lab.inspection.effects import without_edges
from chameleon_lab.inspection.rollout import AttentionRollout
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import Recipe
from chameleon_lab.planner import GB, Plan, plan, verdicts
from chameleon_lab.published import SHAPE_7B, SHAPE_34B
from chameleon_lab.stability import AttentionSoftCap, Dropout, NormReordering, QueryKeyNorm, StabilityFix
from chameleon_lab.tokenizers.image import CHAMELEON_IMAGES
from chameleon_lab.transformer import CAUSAL, ModelConfig, Transformer

SMALL = ModelConfig(
    vocabulary=300,
    width=64,
    layers=3,
    heads=4,
    kv_heads=2,
    head_width=16,
    ffn_width=96,
    context=600,
    fixes=(QueryKeyNorm(),),
)


def test_the_published_shapes_have_the_published_sizes():
    for config, parameters in ((SHAPE_7B, 7_013_158_912), (SHAPE_34B, 34_293_448_704)):
        with torch.device("meta"):
            assert sum(parameter.numel() for parameter in Transformer(config).parameters()) == parameters
    assert plan(SHAPE_7B, context=16).parameters == 7_013_158_912


@pytest.mark.parametrize("weights", ["int8", pytest.param("int4", marks=pytest.mark.slow)])
def test_a_7b_draws_under_three_way_guidance_on_a_16_gb_card_in_8_or_4_bits(weights: str):
    found = plan(SHAPE_7B, 16, weights=weights, guidance="three-way", image_tokenizer=CHAMELEON_IMAGES)
    assert found.fits
    assert found.weights < (7.5 if weights == "int8" else 5.1) * GB
    assert found.cache_rows == 3 and found.cache_per_token == 3 * 512 * 1024
    assert found.cache == pytest.approx(3 * 2 * 2**30, rel=0.001)
    assert found.image_parameters == 68_718_467


def test_a_7b_in_bfloat16_does_not_and_the_plan_says_what_to_change():
    found = plan(SHAPE_7B, 16, guidance="three-way", image_tokenizer=CHAMELEON_IMAGES)
    assert found.fits is False
    assert len(found.advice) == 1 and found.advice[0].startswith('weights="int8"')
    assert "does not fit 16 GB" in str(found) and "try: weights" in str(found)
    told = re.search(r"([\d.]+) GB, which fits", found.advice[0])
    assert told and float(told[1]) == pytest.approx(
        plan(SHAPE_7B, weights="int8", guidance="three-way", image_tokenizer=CHAMELEON_IMAGES).peak / GB, abs=0.01
    )


def test_guided_rows_are_planned_with_the_prompts_of_their_twins():
    alone, guided = (plan(SMALL, weights="float32", guidance=guidance) for guidance in ("none", "three-way"))
    assert guided.cache == pytest.approx(3 * alone.cache, rel=0.1)  # tables of positions are shared
    assert guided.moment == "prefill of guided rows" and 2 * alone.activations < guided.activations


def test_where_nothing_is_enough_the_plan_says_so():
    found = plan(SMALL, 0.001)
    assert found.fits is False and "smaller model" in found.advice[-1]


def test_what_stands_is_counted_to_the_byte():
    model = Transformer(SMALL)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    used, trained = (
        plan(SMALL, weights="float32", rows=2, context=50, guidance="two-way"),
        plan(SMALL, training=Recipe()),
    )
    cache = KVCache(SMALL, 4, model.embedding.weight, 50)
    assert used.parameters == trained.parameters == parameters
    assert used.weights == trained.weights == trained.gradients == 4 * parameters
    assert used.cache == pytest.approx(
        sum(each.nbytes for pair in cache.layers for each in pair), rel=0.05
    )  # with its tables
    assert used.cache_per_token == 4 * 2 * 4 * SMALL.layers * SMALL.kv_heads * SMALL.head_width
    assert trained.optimizer == pytest.approx(8 * parameters, rel=0.01)
    assert used.gradients == used.optimizer == trained.cache == 0
    assert plan(SMALL, training=Recipe(muon_rate=0.02)).optimizer < 0.8 * trained.optimizer


@pytest.mark.parametrize("fixes", [(), (QueryKeyNorm(), NormReordering()), (AttentionSoftCap(), Dropout(0.1))])
def test_activations_of_a_training_step_are_those_of_the_real_one(fixes: tuple[StabilityFix, ...]):
    config = replace(SMALL, fixes=fixes)
    found = plan(config, training=Recipe(), rows=2)
    with planner._Ledger() as ledger:
        model = Transformer(config)
        optimizers = Recipe().optimizers(model)
        tokens_BT = torch.randint(config.vocabulary, (2, config.context))
        batch = Batch(tokens_BT, tokens_BT, tokens_BT >= 0, torch.zeros_like(tokens_BT), tokens_BT.numel())
        for _ in range(2):
            loss = Objective()(model, batch)["loss_with_penalties"]
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            del loss
    assert found.peak - found.gaps == pytest.approx(ledger.peak, rel=0.03)


@pytest.mark.parametrize("config", [SHAPE_7B, SHAPE_34B], ids=["7B", "34B"])
def test_a_look_at_4096_tokens_of_a_published_shape_keeps_the_stream_and_one_square(config: ModelConfig):
    found, tokens = plan(config, weights="int8", inspection=True), config.context
    assert tokens == 4096 and found.cache == found.cache_rows == 0
    assert found.inspection == pytest.approx(2 * (config.layers + 2) * config.width * tokens + 4 * tokens**2, rel=1e-3)
    assert found.activations < 2 * GB < 4 * config.heads * tokens**2
    assert "a look at a document of 4096 tokens" in str(found) and "(layers + 2) x width" in str(found)
    assert "rollout, context x context" in str(found)


def test_a_document_too_long_to_keep_rollout_of_is_planned_without_the_square():
    config = replace(SMALL, context=8320)  # beyond 8,192 positions
    found = plan(config, weights="float32", inspection=True)
    assert found.inspection == pytest.approx(4 * (config.layers + 2) * config.width * config.context, rel=1e-2)


@pytest.mark.parametrize("fixes", [(QueryKeyNorm(),), (AttentionSoftCap(),)], ids=["plain", "cap"])
def test_what_a_look_keeps_and_takes_is_what_a_real_one_does(fixes: tuple[StabilityFix, ...]):
    config = replace(SMALL, fixes=fixes)
    found, model = plan(config, weights="float32", inspection=True), Transformer(config).eval()
    with planner._Ledger() as ledger:
        look = planner._PlannedTrace(model, np.arange(config.context) % config.vocabulary)
        rollout = AttentionRollout(look)
        assert ledger.now == found.inspection
        rollout.step()
        look.weights(0, [*look.spans(0)][-1])
        hidden_TT = look.hidden()
        with torch.inference_mode():
            model.trunk(look.tokens_1T, without_edges(look.context, hidden_TT, hidden_TT[None, None]))
    assert found.peak - found.gaps - found.weights == pytest.approx(ledger.peak, rel=0.03)


def test_many_layers_are_planned_from_a_few(monkeypatch: pytest.MonkeyPatch):
    config = replace(SMALL, layers=5)
    settings: list[dict[str, Any]] = [{"weights": "int8", "rows": 2}, {"training": Recipe()}, {"inspection": True}]
    for arguments in settings:
        quick = plan(config, **arguments)
        with monkeypatch.context() as patch:
            patch.setattr(planner, "FEW_LAYERS", 5)
            planner._plans.cache_clear()
            whole = plan(config, **arguments)
        assert quick == whole


@dataclass(frozen=True)
class Listed:
    """A person's fix that cannot be hashed."""

    places: list[int]

    def install(self, model: nn.Module) -> None:
        pass


def test_a_plan_is_made_once_and_a_shape_with_a_list_in_it_too():
    planner._plans.cache_clear()
    first = plan(SMALL, weights="int8")
    assert plan(SMALL, weights="int8") == first
    assert planner._plans.cache_info().hits == 1
    assert plan(replace(SMALL, fixes=(*SMALL.fixes, Listed([1]))), weights="int8") == first


def test_a_plan_holds_no_memory_and_leaves_no_fakes_behind():
    plan(SHAPE_34B, training=Recipe(), context=700)
    q_BHTK, k_BHTK, v_BHTK = torch.randn(3, 1, 2, 700, 16).unbind()
    seen = CAUSAL.attend(0, q_BHTK, k_BHTK, v_BHTK, nn.Tanh())  # a cap, so that the mask is needed
    assert type(seen) is torch.Tensor and seen.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "int2"}, "weights is one of float32.*not 'int2'"),
        ({"guidance": "four-way"}, "guidance is one of none"),
        ({"precision": "16"}, "precision is one of"),
        ({"rows": 0}, "rows must be 1 or more"),
        ({"context": 601}, "context 1 to the model's 600, not 1 and 601"),
        ({"device_memory": 0}, "more than 0 GB"),
        ({"device_memory": float("nan")}, "more than 0 GB"),
        ({"weights": "int8", "training": Recipe()}, "int8 weights cannot be trained"),
        ({"inspection": True, "rows": 2}, "A look is at one document.*got rows=2"),
        ({"inspection": True, "guidance": "two-way"}, "A look is at one document.*'two-way'"),
        ({"inspection": True, "training": Recipe()}, "A look is at one document.*and a recipe"),
    ],
)
def test_settings_that_make_no_plan_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        plan(SMALL, **arguments)


def test_verdicts_name_the_devices_that_hold_it():
    found = plan(SMALL)
    assert isinstance(found, Plan) and "fits 8 GB, 16 GB, 24 GB, 80 GB, 141 GB, this machine's" in verdicts(found)
    assert verdicts(replace(found, weights=100 * GB)).startswith("  fits 141 GB")
    assert verdicts(replace(found, weights=10**6 * GB)).startswith("  fits none of 8 GB")


def test_the_command_plans_a_published_model_a_shipped_one_and_no_other(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "7b", "--device-memory", "16", "--weights", "int8", "--guidance", "three-way"]) == 0
    assert "7,013,158,912 parameters" in (told := capsys.readouterr().out) and "fits 16 GB" in told
    assert main(["plan", "tiny", "--training", "--rows", "2", "--context", "100"]) == 0
    assert "a training step of 2 x 100 tokens" in (told := capsys.readouterr().out) and "this machine's" in told
    assert main(["plan", "tiny", "--inspection"]) == 0
    assert "a look at a document of 1024 tokens" in capsys.readouterr().out
    assert main(["plan", "no-such-model"]) == 2
    assert "no-such-model" in capsys.readouterr().err


MEASURE = """
import gc, json, sys, torch
from chameleon_lab.checkpoints.packed import pack_tensors
from chameleon_lab.checkpoints.tensors import LazyTensor, fill
from chameleon_lab.corpora.packing import Batch
from chameleon_lab.crossovers import PROMPT_POSITIONS
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import Recipe
from chameleon_lab.quantization import BITS, quantize
from chameleon_lab.stability import QueryKeyNorm
from chameleon_lab.transformer import ModelConfig, Transformer

torch.set_num_threads(1)

def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

def used(config, weights):
    with torch.device("meta"):
        model = Transformer(config).eval()
    draw = lambda shape: torch.randn(shape, dtype=torch.bfloat16) * 0.02
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors = {name: LazyTensor(shape, torch.bfloat16, lambda s=shape: draw(s)) for name, shape in shapes.items()}
    if weights in BITS:
        quantize(model, BITS[weights], "cpu")
        tensors = pack_tensors(tensors, model)
    fill(model, tensors, "drawn", dtype=torch.float32 if weights == "float32" else torch.bfloat16)
    with torch.inference_mode():
        decoder = Decoder(model, 1, plain=True)
        [each.fill_(0) for pair in decoder.cache.layers for each in pair]
        for tokens_1T in torch.zeros(1, config.context, dtype=torch.long).split(PROMPT_POSITIONS, 1):
            outputs_1TD = decoder.feed(tokens_1T, [tokens_1T.shape[1]])
        model.logits(outputs_1TD[:, -1])

def trained(config, weights):
    model = Transformer(config)
    optimizers = Recipe().optimizers(model)
    tokens_BT = torch.zeros(1, config.context, dtype=torch.long)
    batch = Batch(tokens_BT, tokens_BT, tokens_BT >= 0, tokens_BT, tokens_BT.numel())
    for _ in range(2):
        loss = Objective()(model, batch)["loss_with_penalties"]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        del loss

what, weights, shape = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
work = {"use": used, "training": trained}[what]
config = ModelConfig(**shape, fixes=(QueryKeyNorm(),))
work(ModelConfig(**{**shape, "layers": 1, "vocabulary": 64, "width": 64, "ffn_width": 64, "context": 600}), weights)
gc.collect()
before = memory("VmRSS")
work(config, weights)
print(memory("VmHWM") - before)
"""


def shape(vocabulary: int, width: int, layers: int, context: int) -> dict[str, int]:
    heads = {"heads": width // 64, "kv_heads": width // 64, "head_width": 64}
    return (
        {"vocabulary": vocabulary, "width": width, "layers": layers, "ffn_width": 8 * width // 3 // 32 * 32}
        | heads
        | {"context": context}
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's memory from /proc")
@pytest.mark.parametrize(
    ("what", "weights", "sizes"),
    [
        ("use", "float32", shape(16384, 768, 6, 1024)),
        ("use", "int8", shape(32768, 1536, 12, 1024)),
        ("training", "float32", shape(8192, 512, 6, 800)),
    ],
)
def test_the_plan_is_within_a_tenth_of_what_a_process_takes(
    what: str, weights: str, sizes: dict[str, int], capsys: pytest.CaptureFixture[str]
):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if what == "use":  # how much of what loading frees glibc keeps is chance, here 40 to 270 MB: it is given back
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    arguments = [sys.executable, "-W", "ignore", "-c", MEASURE, what, weights, json.dumps(sizes)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    measured = int(done.stdout)
    config = ModelConfig(**sizes, fixes=(QueryKeyNorm(),))  # pyright: ignore[reportArgumentType]
    found = plan(config, weights=weights, training=Recipe() if what == "training" else None)
    with capsys.disabled():
        print(f"\n{what}, {weights}: planned {found.peak / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB")
    assert found.peak == pytest.approx(measured, rel=0.1)
