"""An adapter is trained alone, written as `peft` writes it, read again and merged; without `peft` one error says so."""

import copy
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import support
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    LoRA,
    add_adapter,
    apply_adapter,
    has_adapter,
    merge_adapter,
    stored_adapters,
    write_adapter,
)
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.optimization import Constant, Recipe
from chameleon_lab.quantization import Int8Linear, quantize
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import Scenes
from chameleon_lab.training.experiments import Experiment
from chameleon_lab.transformer import Transformer

MODEL = replace(support.MODEL, context=500)
SMALL = LoRA(rank=2, targets=("attention.qkv", "feed_forward.down"))


@pytest.fixture
def base(mixed) -> Chameleon:
    torch.manual_seed(11)
    return Chameleon(Transformer(replace(MODEL, vocabulary=mixed.vocabulary.size)), mixed)


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


def logits(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(4, 40)[None])


def shaken(model: Transformer, lora: LoRA = SMALL) -> Transformer:
    """The model with an adapter as it might be after a training."""
    add_adapter(model, lora)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return model


def test_a_model_starts_as_it_was_and_only_the_adapter_is_trained(peft, base):
    before = logits(base.model)
    add_adapter(base.model, SMALL)
    assert has_adapter(base.model) and torch.equal(logits(base.model), before)
    free = [name for name, each in base.model.named_parameters() if each.requires_grad]
    assert len(free) == 2 * 2 * MODEL.layers and all(".lora_" in name for name in free)
    with pytest.raises(ValueError, match="an adapter already"):
        add_adapter(base.model, SMALL)


def test_written_read_and_merged_it_computes_what_it_did(peft, base, tmp_path):
    plain = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    base.save(tmp_path / "base")
    wanted_BTV = logits(shaken(base.model))
    prompt = Document.of("draw a red circle", EndTurn())
    reply = base.generate(prompt, seed=3, max_tokens=12)
    with pytest.raises(ValueError, match="has an adapter: merge_adapter"):
        base.save(tmp_path / "adapted")
    write_adapter(base.model, tmp_path / "adapter", SMALL, str(tmp_path / "base"))
    lab = Chameleon.load(tmp_path / "adapter", device="cpu")
    assert torch.allclose(logits(lab.model), wanted_BTV, atol=1e-5) and not has_adapter(lab.model)
    assert lab.generate(prompt, seed=3, max_tokens=12) == reply  # unmerged it decodes alike
    merged = merge_adapter(base.model)
    assert torch.allclose(logits(merged), wanted_BTV, atol=1e-5) and merged.state_dict().keys() == plain.keys()
    changed = {name for name in plain if not torch.equal(plain[name], merged.state_dict()[name])}
    assert changed == {f"blocks.{layer}.{name}.weight" for layer in range(MODEL.layers) for name in SMALL.targets}
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_pefts_own_reader_makes_the_same_of_the_folder(peft, base, tmp_path):
    fresh = Transformer(base.model.config)
    fresh.load_state_dict(base.model.state_dict())
    wanted_BTV = logits(shaken(base.model))
    write_adapter(base.model, tmp_path / "adapter", SMALL)
    theirs = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).merge_and_unload()
    assert torch.allclose(logits(theirs), wanted_BTV, atol=1e-5)


def test_a_training_of_an_adapter_leaves_its_base_alone_and_goes_on_where_it_stopped(peft, base, mixed, tmp_path):
    base.save(tmp_path / "base")
    recipe = Recipe(rate=1e-2, warm_up=0, schedule=Constant(), muon_rate=0.02)
    experiment = Experiment(
        "toy",
        MODEL,
        Budget(steps=6),
        Scenes(mixed, tokens=236),
        recipe,
        monitors=(),
        checkpoints=0,
        begins_from=str(tmp_path / "base"),
        adapter=SMALL,
    )
    whole = experiment.run(tmp_path / "whole").result(120)
    replace(experiment, budget=Budget(steps=3)).run(tmp_path / "parts").result(120)
    resumed = experiment.run(tmp_path / "parts").result(120)
    assert torch.equal(logits(whole), logits(resumed))
    assert not torch.allclose(logits(whole), logits(base.model))
    few, many = stored_adapters(tmp_path)
    assert (few.folder, many.folder) == (tmp_path / "parts" / "adapter", tmp_path / "whole" / "adapter")
    assert (many.rank, many.alpha, many.base) == (SMALL.rank, SMALL.alpha, str(tmp_path / "base"))
    assert len(many.matrices) == MODEL.layers * len(SMALL.targets) and f"rank 2, alpha 16, {many.parameters:,}" in str(
        many
    )
    lab = Chameleon.load(tmp_path / "whole" / "adapter", device="cpu")
    assert torch.allclose(logits(lab.model), logits(whole), atol=1e-5)
    before, after = base.model.state_dict(), whole.state_dict()
    assert all(
        torch.equal(before[name], after[name]) == (".qkv." not in name and ".down." not in name) for name in before
    )


def renamed(tensors, before: str, after: str) -> None:
    for name in [name for name in tensors if before in name]:
        tensors[name.replace(before, after)] = tensors.pop(name)


def test_what_an_adapter_s_config_says_of_places_is_not_taken_for_patterns(peft, base, tmp_path):
    """Its tensors say what it changes: a regular expression may take for ever, a rank of millions all memory."""
    model = shaken(copy.deepcopy(base.model))
    write_adapter(model, tmp_path, SMALL)
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    wild = {"target_modules": r"((\w+\.)*)*!", "rank_pattern": {r"((\w+\.)*)*!": 10**9}, "lora_dropout": "x"}
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(config | wild))
    whole = merge_adapter(model)
    assert torch.allclose(logits(apply_adapter(base.model, tmp_path)), logits(whole), atol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda config, tensors: config.update(peft_type="IA3"), "of the kind 'IA3'"),
        (lambda config, tensors: config.update(use_dora=True), "of the kind 'DoRA'"),
        (lambda config, tensors: renamed(tensors, ".qkv.", ".q_proj."), "another model: .* do not fit, .*q_proj"),
        (lambda config, tensors: config.update(r=3), "whose files contradict one another: .* and .* says 3"),
        *(
            (lambda config, tensors, key=key, value=value: config.update({key: value}), f"{key}|contradict one another")
            for key, values in {
                "r": (10**9, "2", None, 2.5, -1, True),
                "lora_alpha": (math.nan, 1e300, "16", None),
                "alpha_pattern": ([1], {"qkv": "x"}, {"qkv": math.inf}, {r"((\w+\.)*)*!": 1}),
                "rank_pattern": ([1], "x"),
                "use_rslora": ("yes", 1),
            }.items()
            for value in values
        ),
        *(
            (lambda config, tensors, value=value: tensors.update({min(tensors): value(tensors[min(tensors)])}), words)
            for value, words in (
                (lambda tensor: tensor * math.nan, "holds what is no number"),
                (lambda tensor: tensor.int(), "holds what is no number"),
                (lambda tensor: tensor.to(torch.complex64), "holds what is no number"),
                (lambda tensor: tensor + 3e38, "makes weights of .* no numbers|holds what is no number"),
                (lambda tensor: tensor[:1], "files contradict one another"),
            )
        ),
        (lambda config, tensors: tensors.popitem(), "adapter of another model: 1 of its"),
        (lambda config, tensors: config.update(base_model_name_or_path=None), "does not say of which.*apply_adapter"),
        (
            lambda config, tensors: config.update(base_model_name_or_path="nowhere"),
            "an adapter to nowhere, which is not here",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_clear_error_and_the_model_stays_as_it_was(
    peft, base, tmp_path, spoil, words
):
    base.save(tmp_path / "base")
    before, folder = logits(base.model), tmp_path / "adapter"
    write_adapter(shaken(Transformer(base.model.config)), folder, SMALL, str(tmp_path / "base"))
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    tensors = safetensors.torch.load_file(folder / ADAPTER_WEIGHTS)
    spoil(config, tensors)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))
    safetensors.torch.save_file(tensors, folder / ADAPTER_WEIGHTS)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        Chameleon.load(folder, device="cpu")
    if config["base_model_name_or_path"] == str(tmp_path / "base"):
        with pytest.raises(ValueError, match=words):
            apply_adapter(base.model, folder)
        assert not has_adapter(base.model) and torch.equal(logits(base.model), before)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"layers": 1}, "layers 1 there, 2 here"), ({"vocabulary": 10_000}, "vocabulary 10000 there, .* here")],
)
def test_an_adapter_whose_matrices_fit_another_model_by_chance_is_refused(peft, base, tmp_path, change, words):
    before, other = logits(base.model), Transformer(replace(base.model.config, **change))
    write_adapter(shaken(other), tmp_path, SMALL)
    with pytest.raises(ValueError, match=f"adapter of another model: {words}"):
        apply_adapter(base.model, tmp_path)
    assert torch.equal(logits(base.model), before)
    if "vocabulary" in change:  # the other way round it is a model that new words grew
        write_adapter(shaken(base.model), tmp_path, SMALL)
        apply_adapter(Transformer(other.config), tmp_path)


def test_the_adapter_of_other_weights_of_one_shape_is_applied_with_a_warning(peft, base, tmp_path, caplog):
    for name, lora in (("float", SMALL), ("int8", replace(SMALL, base="int8"))):
        write_adapter(shaken(copy.deepcopy(base.model), lora), tmp_path / name, lora)
        for dtype in (torch.float32, torch.bfloat16):
            apply_adapter(copy.deepcopy(base.model).to(dtype), tmp_path / name)
        assert not caplog.records  # of a base in other numbers it is the adapter still
        torch.manual_seed(12)
        apply_adapter(Transformer(base.model.config), tmp_path / name)
        assert "an adapter of other weights of this shape, as it seems" in caplog.text
        caplog.clear()


def test_an_adapter_beside_a_model_is_written_without_touching_it(peft, base, tmp_path):
    base.save(tmp_path / "model")
    files = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    write_adapter(shaken(base.model), tmp_path / "model", SMALL)
    assert {name: (tmp_path / "model" / name).read_bytes() for name in files} == files
    lab = Chameleon.load(tmp_path / "model", device="cpu")
    apply_adapter(lab.model, tmp_path / "model")
    assert torch.allclose(logits(lab.model), logits(base.model), atol=1e-5)


def test_a_damaged_adapter_is_one_clear_error(peft, base, tmp_path):
    write_adapter(shaken(Transformer(base.model.config)), tmp_path, SMALL)
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="damaged or missing"):
        apply_adapter(base.model, tmp_path)
    with pytest.raises(ValueError, match="damaged or missing"):
        stored_adapters(tmp_path)
    with pytest.raises(ValueError, match="no adapter to be written"):
        write_adapter(base.model, tmp_path, SMALL)
    write_adapter(shaken(Transformer(base.model.config)), tmp_path, SMALL)
    packed = quantize(base.model, 8)
    with pytest.raises(ValueError, match=r"merged into plain weights, and .* of this model is packed"):
        apply_adapter(packed, tmp_path)
    assert not has_adapter(packed)


def test_without_peft_the_error_says_what_to_install(base, monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'chameleon-lab\[adapters\]'"):
        add_adapter(base.model, SMALL)
    assert not has_adapter(base.model)


@pytest.mark.parametrize(
    "settings", [{"rank": 0}, {"dropout": 1.0}, {"alpha": 0.0}, {"targets": ()}, {"targets": "qkv"}]
)
def test_an_adapter_that_is_none_is_refused(settings):
    with pytest.raises(ValueError, match=r"rank of an adapter|alpha lies above 0|targets are names"):
        LoRA(**settings)


# On a base in 8 bits


PACKED = LoRA(rank=2, base="int8")


def test_gradients_go_through_a_base_in_8_bits_as_through_its_own_numbers(peft, base):
    tokens_1T = torch.arange(4, 40)[None]
    packed, plain = (copy.deepcopy(base.model) for _ in range(2))
    shaken(packed, PACKED)
    with torch.no_grad():
        for name, module in packed.named_modules():
            if isinstance(module, Int8Linear):
                place = name.replace(".base_layer", "")
                plain.get_submodule(place).weight.copy_(module.unpacked(torch.float32))  # pyright: ignore[reportCallIssue, reportArgumentType]
    shaken(plain, replace(PACKED, base="float"))
    gradients = []
    for model in (packed, plain):
        model(tokens_1T).square().mean().backward()
        gradients.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and all(".lora_" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradients[1][name] is not None
        assert (gradient - gradients[1][name]).norm() < 0.1 * gradients[1][name].norm(), name  # bfloat16's rounding


def test_an_adapter_on_a_base_in_8_bits_is_trained_resumed_written_and_is_one_of_the_plain_base(
    peft, base, mixed, tmp_path
):
    data, recipe = Scenes(mixed, tokens=236, held_out=2), Recipe(rate=1e-2, warm_up=0, schedule=Constant())
    experiment = Experiment(
        *("packed", replace(MODEL, vocabulary=0), Budget(steps=6), data, recipe),
        begins_from=base, adapter=PACKED, monitors=(), checkpoints=0,
    )  # fmt: skip
    whole = experiment.run(tmp_path / "whole")
    model, module = whole.result(60), whole.model
    losses = whole.history.series("loss")[1]
    assert losses[-1] < losses[0] - 0.1
    packed = {name: each for name, each in module.named_modules() if isinstance(each, Int8Linear)}
    assert len(packed) == 4 * MODEL.layers + 1 and all(
        each.unpacked(torch.float32).isfinite().all() for each in packed.values()
    )
    fresh = quantize(copy.deepcopy(base.model), 8)
    for name, each in packed.items():  # the base stands still
        other = fresh.get_submodule(name.replace(".base_layer", ""))
        assert isinstance(other, Int8Linear) and torch.equal(other.in_first_order(), each.in_first_order())
    merged = apply_adapter(copy.deepcopy(base.model), tmp_path / "whole" / "adapter")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in merged.state_dict().items())
    assert (logits(model) - logits(module)).norm() < 0.1 * logits(model).norm()
    replace(experiment, budget=Budget(steps=3)).run(tmp_path / "parts").wait(60)
    parts = experiment.run(tmp_path / "parts").result(60)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in parts.state_dict().items())
    with pytest.raises(ValueError, match="base in 8 bits cannot be merged"):
        merge_adapter(module)


def test_a_quantised_model_without_an_adapter_is_still_not_trained_and_other_bases_are_refused(base):
    model = quantize(copy.deepcopy(base.model), 8)
    model.embedding.requires_grad_(True)
    with pytest.raises(ValueError, match="cannot be trained"):
        model(torch.arange(4, 40)[None])
    with pytest.raises(ValueError, match="'float' or 'int8'"):
        LoRA(base="int2")  # pyright: ignore[reportArgumentType]
