import copy
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from chameleon_lab import crossovers, native_ops
from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints.packed import pack_tensors
from chameleon_lab.checkpoints.tensors import LazyTensor, fill, lazy
from chameleon_lab.corpora.mixture import scene_pairs
from chameleon_lab.corpora.packing import Batch
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.objective import Objective
from chameleon_lab.quantization import (
    BITS,
    Int4Linear,
    Int8Linear,
    QuantizedLinear,
    quantize,
    require_plain,
)
from chameleon_lab.stability import QueryKeyNorm, SigmaReparam
from chameleon_lab.transformer import ModelConfig, Transformer

TINY = ModelConfig(
    vocabulary=71,
    width=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=16,
    ffn_width=96,
    context=32,
    fixes=(QueryKeyNorm(),),
)


def drawn(config: ModelConfig = TINY, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(config).eval()


def layer(bits: int, weight_OI: torch.Tensor) -> QuantizedLinear:
    out, into = weight_OI.shape
    made = Int8Linear(into, out) if bits == 8 else Int4Linear(into, out, "cpu")
    made.take(made.pack(weight_OI))
    return made


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 64), (71, 96), (200, 32), (3, 32)])
@pytest.mark.parametrize(("bits", "most"), [(8, 0.012), (4, 0.12)])
def test_a_packed_product_is_close_to_the_plain_one_at_any_shape(
    bits: int, most: float, outputs: int, inputs: int, rows: int
):
    torch.manual_seed(0)
    weight_OI, x_NI = torch.randn(outputs, inputs), torch.randn(rows, inputs)
    plain_NO = F.linear(x_NI, weight_OI)
    with torch.no_grad():
        error_NO = layer(bits, weight_OI)(x_NI) - plain_NO
    assert error_NO.shape == plain_NO.shape
    assert error_NO.square().mean().sqrt() < most * inputs**0.5


@pytest.mark.parametrize("bits", [8, 4])
def test_few_rows_and_many_give_the_same(bits: int):
    torch.manual_seed(0)
    made, x_NI = layer(bits, torch.randn(80, 64)), torch.randn(40, 64).bfloat16()
    with torch.no_grad():
        singly_NO = torch.cat([made(x_NI[row : row + 1]) for row in range(40)])
        torch.testing.assert_close(made(x_NI), singly_NO, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("bits", [8, 4])
def test_packing_does_not_depend_on_how_many_rows_are_packed_at_a_time(bits: int, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    weight_OI = torch.randn(200, 64)
    whole = layer(bits, weight_OI)
    monkeypatch.setattr(crossovers, "PACKED_AT_ONCE", 64 * 64)
    parts = layer(bits, weight_OI)
    assert torch.equal(whole.packed, parts.packed) and torch.equal(whole.scales, parts.scales)
    x_NI = torch.randn(30, 64)
    torch.testing.assert_close(whole(x_NI), parts(x_NI), rtol=1e-2, atol=1e-2)


@pytest.fixture(params=[True, False], ids=["bytes", "bfloat16"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways of an int8 product, the first where this processor can."""
    if request.param and not native_ops.multiplies_bytes():
        pytest.skip("this processor does not multiply bytes exactly")
    monkeypatch.setattr(native_ops, "multiplies_bytes", lambda: request.param)
    return request.param


@pytest.mark.parametrize("rows", [1, 2, 3, 12, 40, 128, 300])
def test_an_int8_product_is_as_exact_as_its_kernel(kernel: bool, rows: int):
    torch.manual_seed(0)
    made, x_NI = layer(8, torch.randn(71, 200)), torch.randn(rows, 200)
    with torch.no_grad():
        given_NO = made(x_NI).double()
    state = made.state_dict()
    exact_NO = x_NI.double() @ (state["packed"].double() * state["scales"].double()[:, None]).t()
    error = (given_NO - exact_NO).abs().max() / exact_NO.abs().max()
    assert error < (1e-4 if kernel else 2e-2)


@pytest.mark.skipif(not native_ops.multiplies_bytes(), reason="this processor does not multiply bytes exactly")
def test_a_row_of_bytes_depends_on_itself_alone():
    torch.manual_seed(0)
    made, x_NI = layer(8, torch.randn(80, 64)), torch.randn(200, 64) * torch.logspace(-25, 25, 200)[:, None]
    x_NI[4] = 0
    with torch.no_grad():
        whole_NO = made(x_NI)
        assert torch.equal(whole_NO, torch.cat([made(x_N) for x_N in x_NI.split(1)]))
        assert whole_NO[4].eq(0).all() and whole_NO[[0, -1]].ne(0).all() and whole_NO.isfinite().all()
        x_NI[2, 5] = torch.nan
        assert made(x_NI)[2].isnan().all() and torch.equal(made(x_NI)[3:], whole_NO[3:])


def test_a_matrix_in_use_can_be_copied_moved_stored_and_loaded(kernel: bool):
    torch.manual_seed(0)
    weight_OI, x_NI = torch.randn(48, 64), torch.randn(2, 64)
    fresh, used = layer(8, weight_OI), layer(8, weight_OI)
    with torch.no_grad():
        expected_NO = used(x_NI)
        assert torch.equal(copy.deepcopy(used)(x_NI), expected_NO)
        shallow = copy.copy(used)
        assert torch.equal(used(x_NI), expected_NO) and torch.equal(shallow(x_NI), expected_NO)
        assert torch.equal(used.to("cpu")(x_NI), expected_NO)
        assert torch.equal(used.state_dict()["packed"], fresh.packed) and used(x_NI).equal(expected_NO)
        other = layer(8, torch.randn(48, 64))
        assert not torch.equal(other(x_NI), expected_NO)
        other.load_state_dict(used.state_dict())
        assert torch.equal(other(x_NI), expected_NO)
        other.take(other.pack(-weight_OI))
        assert torch.equal(other(x_NI), -expected_NO)


def test_inputs_may_lie_in_memory_as_they_like(kernel: bool):
    torch.manual_seed(0)
    made, x_NI = layer(8, torch.randn(48, 64)), torch.randn(3, 64)

    class Other(torch.Tensor):
        pass

    with torch.no_grad():
        expected_NO = made(x_NI)
        torch.testing.assert_close(made(x_NI.t().contiguous().t()), expected_NO)
        torch.testing.assert_close(torch.Tensor(made(x_NI.as_subclass(Other))), expected_NO, rtol=2e-2, atol=0.2)


def test_a_matrix_in_use_is_held_once():
    made = layer(8, torch.randn(48, 64))
    made(torch.randn(1, 64))
    assert made.packed.numel() == (0 if native_ops.multiplies_bytes() else 48 * 64)


def test_zeros_and_single_large_weights_survive():
    for bits in (8, 4):
        weight_OI = torch.zeros(16, 64)
        weight_OI[3, 7] = 1000.0
        with torch.no_grad():
            answered = layer(bits, weight_OI)(torch.eye(64))
        assert answered.isfinite().all()
        assert answered[7, 3] == pytest.approx(1000, rel=0.01)
        assert answered[:, 4:].abs().max() == 0


@pytest.mark.parametrize(("bits", "bytes_a_weight"), [(8, 1.1), (4, 0.7)])
def test_matrices_and_head_are_packed_and_the_rest_stays(bits: int, bytes_a_weight: float):
    model, plain = drawn(), drawn()
    assert quantize(model, bits) is model
    kinds = {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    linears = {name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)}
    assert kinds == linears and "head" in kinds
    kept = dict(model.named_parameters())
    assert all(torch.equal(kept[name], tensor) for name, tensor in plain.named_parameters() if name in kept)
    assert kept.keys() == {name for name, _ in plain.named_parameters()} - {f"{name}.weight" for name in linears}
    held = sum(buffer.nbytes for buffer in model.buffers())
    assert held < bytes_a_weight * sum(plain.get_parameter(f"{name}.weight").numel() for name in linears)


def test_a_tied_head_becomes_a_matrix_of_its_own():
    tied = copy.deepcopy(TINY)
    model = quantize(drawn(ModelConfig(**{**vars(tied), "tied": True})), 8)
    assert isinstance(model.head, Int8Linear) and model.embedding.weight.dtype == torch.float32


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_computes_nearly_the_same_with_and_without_a_cache(bits: int):
    model, plain, tokens = quantize(drawn(), bits), drawn(), torch.arange(20)[None]
    with torch.inference_mode():
        decoder = Decoder(model, 1, 24)
        stepwise = []
        for start, stop in ((0, 16), (16, 17), (17, 20)):
            stepwise.append(decoder.logits(decoder.feed(tokens[:, start:stop], [stop - start])))
        whole = model(tokens)
        torch.testing.assert_close(torch.cat(stepwise, 1), whole, rtol=0.05, atol=0.05)
        assert F.cosine_similarity(whole, plain(tokens), dim=-1).min() > (0.999 if bits == 8 else 0.9)


def test_training_and_gradients_are_refused_and_scoring_is_not():
    model = quantize(drawn(), 8)
    tokens_BT = torch.arange(12).view(2, 6)
    batch = Batch(tokens_BT, tokens_BT, torch.ones(2, 6, dtype=torch.bool), torch.zeros(2, 6, dtype=torch.long), 12)
    with pytest.raises(ValueError, match=r"cannot be trained.*without `weights`"):
        Objective()(model, batch)
    with torch.no_grad():
        assert Objective()(model, batch)["loss"].isfinite()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_saving_is_refused_with_a_way_out(tmp_path: Path):
    require_plain(drawn())
    with pytest.raises(ValueError, match=r"cannot be saved.*weights="):
        require_plain(quantize(drawn(), 4))


def test_what_cannot_be_packed_is_refused_before_anything_changes():
    odd = drawn(ModelConfig(**{**vars(TINY), "ffn_width": 40}))
    for bits, message in ((4, "multiple: take int8"), (5, "8 or 4 bits, not in 5")):
        with pytest.raises(ValueError, match=message):
            quantize(odd, bits)
    assert not any(isinstance(module, QuantizedLinear) for module in odd.modules())
    with pytest.raises(ValueError, match="not for mps"):
        quantize(odd, 4, "mps")
    with pytest.raises(ValueError, match=r"SigmaReparam.*blocks.0.attention.qkv"):
        quantize(drawn(ModelConfig(**{**vars(TINY), "fixes": (SigmaReparam(),)})), 8)
    with pytest.raises(ValueError, match="quantised already"):
        quantize(quantize(drawn(), 8), 8)


def test_a_change_of_dtype_leaves_the_packed_weights():
    for bits in (8, 4):
        model = quantize(drawn(), bits)
        tokens = torch.arange(9)[None]
        before = model(tokens)
        held = model.state_dict()["head.packed"].clone()
        model.to(torch.bfloat16).to(torch.float32)
        assert torch.equal(model.state_dict()["head.packed"], held) and held.numel() >= 71 * 64
        torch.testing.assert_close(model(tokens), before, rtol=0.05, atol=0.05)


def test_int4_says_that_it_cannot_move_to_another_kind_of_device():
    made = layer(4, torch.randn(16, 32))
    assert isinstance(made, Int4Linear)
    made.kind = "cuda"  # as if packed there
    with pytest.raises(ValueError, match=r'packed for cuda and cannot move to cpu.*device="cpu"'):
        made.to("cpu")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_filling_from_lazy_tensors_equals_quantising_in_memory(bits: int, tied: bool):
    config = ModelConfig(**{**vars(TINY), "tied": tied})
    plain = drawn(config)
    tensors = {
        name: lazy(tensor) for name, tensor in plain.state_dict().items() if not (tied and name == "head.weight")
    }
    with torch.device("meta"):
        model = Transformer(config)
    quantize(model, bits, "cpu")
    fill(model, pack_tensors(tensors, model), "somewhere")
    expected, tokens = quantize(plain, bits), torch.arange(12)[None]
    assert torch.equal(model(tokens), expected(tokens))


@pytest.mark.parametrize("bits", [8, 4])
def test_filling_reads_each_matrix_once_and_lets_go_of_it(bits: int):
    alive: list[weakref.ref[torch.Tensor]] = []
    read: list[str] = []
    most = 0

    def reading(name: str, tensor: torch.Tensor) -> LazyTensor:
        def fresh() -> torch.Tensor:
            nonlocal most
            made = tensor.clone()
            read.append(name)
            alive.append(weakref.ref(made))
            most = max(most, sum(each() is not None for each in alive))
            return made

        return LazyTensor(tuple(tensor.shape), tensor.dtype, fresh)

    tensors = {name: reading(name, tensor) for name, tensor in drawn().state_dict().items()}
    with torch.device("meta"):
        model = Transformer(TINY)
    quantize(model, bits, "cpu")
    fill(model, pack_tensors(tensors, model), "somewhere")
    assert sorted(read) == sorted(tensors) and most <= 2


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_folder_loads_packed_and_is_not_saved(weights: str, tmp_path: Path):
    lab = Chameleon.load("tiny", device="cpu", weights=weights)
    assert sum(isinstance(module, QuantizedLinear) for module in lab.model.modules()) == 4 * 6 + 1
    assert lab.model.embedding.weight.dtype == torch.bfloat16
    assert any(isinstance(part, Image) for part in lab.generate(Document.of("draw a red circle", EndTurn()), seed=1))
    with pytest.raises(ValueError, match="cannot be saved"):
        lab.save(tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_unknown_kinds_of_weights_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'int3'.*int8, int4"):
        Chameleon.load("tiny", device="cpu", weights="int3")


def test_a_missing_or_misshapen_matrix_is_named():
    tensors = {name: lazy(tensor) for name, tensor in drawn().state_dict().items()}
    for change in ({}, {"head.weight": lazy(torch.zeros(71, 60))}):
        with torch.device("meta"):
            model = quantize(Transformer(TINY), 8, "cpu")
        tensors.pop("head.weight", None)
        with pytest.raises(ValueError, match="head"):
            fill(model, pack_tensors(tensors | change, model), "somewhere")


def agreement(plain_XV: torch.Tensor, other_XV: torch.Tensor) -> tuple[float, float]:
    """Share of positions with the same likeliest token, and mean KL of the next-token distributions in nats."""
    kl_X = F.kl_div(other_XV.log_softmax(-1), plain_XV.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    return float((plain_XV.argmax(-1) == other_XV.argmax(-1)).float().mean()), float(kl_X.mean())


@pytest.mark.parametrize(("bits", "least", "most"), [(8, 0.97, 0.002), (4, 0.9, 0.05)])
def test_the_trained_tiny_model_keeps_its_mind(bits: int, least: float, most: float):
    lab = Chameleon.load("tiny", device="cpu")
    small = quantize(copy.deepcopy(lab.model), bits)
    rows = [torch.from_numpy(lab.encode(document)[:-1])[None] for document in scene_pairs(8, 5, "held_out")]
    with torch.inference_mode():
        plain_XV, other_XV = (torch.cat([model(row)[0] for row in rows]) for model in (lab.model, small))
    same, kl = agreement(plain_XV, other_XV)
    assert same >= least and kl <= most


def test_names_of_weights_are_bits():
    assert BITS == {"int8": 8, "int4": 4}


@pytest.mark.gpu
@pytest.mark.parametrize(("bits", "most"), [(8, 0.012), (4, 0.12)])
def test_a_gpu_computes_what_a_cpu_does(bits: int, most: float):
    torch.manual_seed(0)
    weight_OI, x_NI = torch.randn(208, 128), torch.randn(40, 128)
    made = Int8Linear(128, 208) if bits == 8 else Int4Linear(128, 208, "cuda")
    made.take(made.pack(weight_OI.cuda()))
    with torch.no_grad():
        for rows in (1, 40):
            error_NO = made(x_NI[:rows].cuda()).cpu() - F.linear(x_NI[:rows], weight_OI)
            assert error_NO.square().mean().sqrt() < most * 128**0.5


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [8, 4])
@torch.inference_mode()
def test_a_gpu_replays_steps_of_packed_matrices(bits: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crossovers, "GRAPH_POSITIONS", 8)
    monkeypatch.setattr(crossovers, "GRAPH_PATIENCE", 0)
    model = quantize(drawn().to(torch.bfloat16).cuda(), bits)
    tokens_BT = torch.randint(71, (2, 20), device="cuda")
    whole_BTV, decoder = model(tokens_BT), Decoder(model, 2, 20)
    for place in range(20):
        stepped_BV = decoder.logits(decoder.feed(tokens_BT[:, place : place + 1], [1, 1]))[:, 0]
        torch.testing.assert_close(stepped_BV, whole_BTV[:, place], rtol=0.05, atol=0.1)
    assert decoder.worker == "graph"


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_tiny_model_answers_from_packed_matrices_on_a_gpu(weights: str):
    lab = Chameleon.load("tiny", device="cuda", weights=weights)
    reply = lab.generate(Document.of("draw a large red circle", EndTurn()), seed=1, max_tokens=80)
    assert len(reply.pictures) == 1
