"""The private parts of torch: taken away one by one, the results stay the same but for rounding."""

import ast
import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_decoding import shaken
from test_transformer import CONFIG, tokens
from torch import nn

from chameleon_lab import native_ops
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.quantization import Int4Linear, Int8Linear, quantize

OPERATORS = (
    *("onednn.qlinear_prepack", "onednn.qlinear_pointwise"),
    *("aten._weight_int8pack_mm", *native_ops.INT4["cpu"]),
)


@pytest.fixture
def take_away(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has `operator` find none of these names, as with a torch that has them no longer."""
    really = native_ops.operator

    def take(*names: str) -> None:
        monkeypatch.setattr(native_ops, "operator", lambda name: None if name in names else really(name))
        monkeypatch.setattr(native_ops, "multiplies_bytes", native_ops.multiplies_bytes.__wrapped__)

    return take


def test_this_torch_has_them_all():
    assert all(native_ops.operator(name) for name in OPERATORS)
    assert native_ops.operator("aten._no_such_thing") is None and native_ops.operator("nowhere.at_all") is None


def test_an_operator_that_takes_other_arguments_is_left(monkeypatch, take_away):
    take_away()
    monkeypatch.setattr(native_ops, "operator", lambda name: lambda *_: (_ for _ in ()).throw(TypeError("arguments")))
    assert not native_ops.multiplies_bytes()


@pytest.mark.parametrize("names", [OPERATORS[:1], OPERATORS[1:2], OPERATORS[:3]], ids=lambda names: names[-1])
@pytest.mark.parametrize("rows", [1, 5, 40])
@torch.inference_mode()
def test_int8_products_without_kernels(names, rows, take_away):
    layer, x_NI = Int8Linear(64, 48), torch.randn(rows, 64)
    packed = layer.pack(torch.randn(48, 64))
    exact_NO = x_NI @ (packed["packed"].float() * packed["scales"].float()[:, None]).t()
    take_away(*names)
    layer.take(packed)
    torch.testing.assert_close(layer(x_NI), exact_NO, rtol=0, atol=0.02 * float(exact_NO.abs().max()))


@pytest.mark.parametrize("name", native_ops.INT4["cpu"])
@pytest.mark.parametrize("rows", [1, 5, 40])
@torch.inference_mode()
def test_int4_products_without_kernels(name, rows, take_away):
    weight_OI, x_NI = torch.randn(40, 96), torch.randn(rows, 96)
    made = Int4Linear(96, 40, "cpu")
    made.take(made.pack(weight_OI))
    with_NO = made(x_NI)
    take_away(name)
    made = Int4Linear(96, 40, "cpu")
    made.take(made.pack(weight_OI))
    torch.testing.assert_close(made(x_NI), with_NO, rtol=0, atol=0.02 * float(with_NO.abs().max()))


@torch.inference_mode()
def test_a_quantised_model_without_any_of_them(take_away):
    sample_BT, model = tokens(2, 9), shaken(replace(CONFIG, ffn_width=64))
    with_BTV = [quantize(copy.deepcopy(model), bits)(sample_BT) for bits in (8, 4)]
    take_away(*OPERATORS)
    for bits, logits_BTV in zip((8, 4), with_BTV, strict=True):
        without_BTV = quantize(copy.deepcopy(model), bits)(sample_BT)
        assert (without_BTV - logits_BTV).abs().max() < 0.05 * logits_BTV.abs().max()


@torch.inference_mode()
def test_where_hooks_cannot_be_seen_the_model_itself_computes(monkeypatch):
    monkeypatch.delattr(nn.modules.module, "_global_forward_hooks")
    assert native_ops.listeners(nn.Linear(2, 2)) is None


@torch.inference_mode()
def test_a_decoder_without_listeners_is_plain(monkeypatch):
    model = shaken(CONFIG)
    monkeypatch.setattr(native_ops, "listeners", lambda module: None)
    decoder, sample_BT = Decoder(model, 1), tokens(1, 6)
    assert torch.equal(decoder.logits(decoder.feed(sample_BT, [6])), model(sample_BT)) and decoder.worker == "model"


PRIVATE = re.compile(r"^torch\.ops\.|^torch(\.\w+)*\._[a-z]|\._(version|forward_hooks|forward_pre_hooks)$")
ELSEWHERE = {
    "native_ops.py": "their place",
    "training/sharding.py": "what fills a tensor, by a dispatch mode: its own tests notice",
    "planner.py": "fake tensors and the modules' own dicts: its own tests notice",
    "checkpoints/torch_files.py": "the name that torch.save itself writes into a file",
}


def test_nothing_else_names_private_parts_of_torch():
    root = Path(native_ops.__file__).parent
    for path in root.rglob("*.py"):
        if str(path.relative_to(root)) in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert not PRIVATE.search(ast.unparse(node)), f"{path}:{node.lineno} {ast.unparse(node)}"
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
                name = f"{node.module}.{node.names[0].name}"
                assert not PRIVATE.search(name), f"{path}:{node.lineno} {name}"
