"""A step in one compiled call: the tokens of the plain model, whatever the model's parts, threads and edits."""

import copy
import threading
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from test_decoding import shaken, stepwise
from test_transformer import tokens
from torch import Tensor, nn

from chameleon_lab import crossovers
from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.generation import compiled_step
from chameleon_lab.generation.compiled_step import CodeRun, CompiledStep
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.generation.guidance import Linear, ThreeWay, TwoWay
from chameleon_lab.notices import NOTICE
from chameleon_lab.quantization import quantize
from chameleon_lab.records import ImagePiece
from chameleon_lab.stability import (
    AttentionSink,
    AttentionSoftCap,
    Dropout,
    EmbeddingNorm,
    LayerScale,
    NormReordering,
    OutputSoftCap,
    QueryKeyNorm,
    QueryKeyRMSNorm,
    Sandwich,
)
from chameleon_lab.taps import record
from chameleon_lab.transformer import FeedForward, ModelConfig, Transformer

pytest.importorskip("numba")

pytestmark = pytest.mark.usefixtures("compiled")

CONFIG = ModelConfig(
    vocabulary=101,
    width=64,
    layers=2,
    heads=4,
    kv_heads=4,
    head_width=16,
    ffn_width=96,
    context=96,
    fixes=(QueryKeyNorm(),),
)
SHAPES = {
    "pre-norm": CONFIG,
    "bare": replace(CONFIG, fixes=()),
    "re-ordered": replace(CONFIG, fixes=(QueryKeyNorm(), NormReordering())),
    "groups of norms": replace(CONFIG, fixes=(QueryKeyNorm(groups=2),), kv_heads=2),
    "one key head": replace(CONFIG, kv_heads=1, fixes=(QueryKeyRMSNorm(),)),
    "capped": replace(CONFIG, kv_heads=2, fixes=(AttentionSoftCap(2.0), OutputSoftCap(1.0))),
    "everything else": replace(
        CONFIG, fixes=(EmbeddingNorm(), Sandwich(), LayerScale(0.5), Dropout(0.5), QueryKeyNorm())
    ),
    "tied": replace(CONFIG, tied=True),
    "wide heads": replace(CONFIG, heads=2, kv_heads=1, head_width=48, width=80),
}


@pytest.fixture(params=SHAPES.values(), ids=list(SHAPES))
def model(request) -> Transformer:
    torch.manual_seed(5)
    return shaken(request.param)


@pytest.fixture(params=[1, 2], ids=["alone", "with a helper"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@torch.inference_mode()
def greedy(model: Transformer, rows: int, count: int, plain: bool = False, worker: str = "") -> Tensor:
    """So many tokens a row, each the likeliest after prompts of different lengths: tokens_BT."""
    decoder = Decoder(model, rows, plain=plain)
    seeded = torch.Generator().manual_seed(rows)
    prompts_BT = torch.randint(0, model.config.vocabulary, (rows, 6), generator=seeded)
    lengths = [2 + row % 5 for row in range(rows)]
    outputs_BTD = decoder.feed(prompts_BT, lengths)
    latest_B = decoder.logits(outputs_BTD[torch.arange(rows), torch.tensor(lengths) - 1]).argmax(-1)
    chosen = [latest_B]
    for _ in range(count):
        latest_B = decoder.logits(decoder.feed(latest_B[:, None], [1] * rows)[:, 0]).argmax(-1)
        chosen.append(latest_B)
        assert decoder.worker == (worker or ("model" if plain else "compiled"))
    return torch.stack(chosen, 1)


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_the_tokens_are_the_plain_model_s(model, rows):
    right_BT, before = greedy(model, rows, 64, plain=True), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(greedy(model, rows, 64), right_BT), threads
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def test_logits_equal_those_of_the_whole_for_rows_of_any_lengths(model):
    rows = [tokens(1, length)[0] for length in (24, 3, 13, 20, 9)]
    for ours_TV, row in zip(stepwise(model, rows, [4, 1, 2, 6, 1]), rows, strict=True):
        torch.testing.assert_close(ours_TV, model(row[None])[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("bits", "share"), [(0, 0.05), (8, 0.05), (4, 0.05)])
@torch.inference_mode()
def test_fewer_bits_are_as_near_to_the_plain_model_as_their_rounding(model, bits, share):
    model = model.to(torch.bfloat16)
    if bits == 4:  # whose blocks of 64 outputs the kernels read; the other kinds lie beside them
        model = shaken(replace(model.config, heads=4, kv_heads=4, width=64, head_width=16)).to(torch.bfloat16)
    exact = copy.deepcopy(model).float()
    if bits:
        model = quantize(model, bits)
        module: Any
        for name, module in model.named_modules():
            if hasattr(module, "packed"):
                rows_II = torch.eye(module.in_features)
                matrix: Any = exact.get_submodule(name)
                matrix.weight.data = module.product(rows_II).float().t().contiguous()
    rows = [row[:length] for row, length in zip(tokens(3, 10), (10, 7, 9), strict=True)]
    ours = stepwise(model, rows, [4, 1, 2])
    for ours_TV, row in zip(ours, rows, strict=True):
        whole_TV = exact(row[None])[0]
        assert (ours_TV - whole_TV).abs().max() < share * whole_TV.abs().max()
    greedy(model, 2, 3)  # by the worker that is meant


@pytest.mark.parametrize(("bits", "vocabulary"), [(8, 101), (8, 8193), (4, 128)])
@torch.inference_mode()
def test_a_row_in_few_bits_has_the_same_logits_alone_and_beside_others(bits, vocabulary, threads):
    """Outputs that are no multiple of those computed at a time are computed once, whichever thread has them."""
    torch.manual_seed(4)
    model = quantize(shaken(replace(CONFIG, vocabulary=vocabulary)).to(torch.bfloat16), bits)
    alone_V: Tensor | None = None
    for rows in (1, 2, 5, 8, 16):
        decoder, latest_V = Decoder(model, rows), torch.empty(0)
        for token in (5, 7, 9):
            latest_V = decoder.logits(decoder.feed(torch.full((rows, 1), token), [1] * rows))[0, -1]
        alone_V = latest_V if alone_V is None else alone_V
        assert decoder.worker == "compiled" and torch.equal(latest_V, alone_V)


@pytest.mark.parametrize("bits", [0, 8, 4])
@torch.inference_mode()
def test_weights_are_seen_as_they_are_now(bits):
    def logits(decoder: Decoder) -> Tensor:
        outputs_BTD = decoder.trunk(torch.tensor([[7]]))
        assert decoder.worker == "compiled"
        return decoder.logits(outputs_BTD[:, 0])

    model, other = shaken(CONFIG), shaken(CONFIG)
    if bits:
        model, other = quantize(model, bits), quantize(other, bits)
    decoder = Decoder(model, 1)
    before = logits(decoder)
    names = [name for name, _ in model.named_parameters()] + [name for name, _ in model.named_buffers()]
    state = other.state_dict()
    for name in names:
        tensor = model.state_dict()[name]
        if name.endswith(("packed", "scales")):
            module: Any = model.get_submodule(name.rpartition(".")[0])
            module.take({kind: state[f"{name.rpartition('.')[0]}.{kind}"].clone() for kind in ("packed", "scales")})
        elif len(name) % 2:
            tensor.data.copy_(state[name])  # as peft merges
        else:
            dict(model.named_parameters())[name].data = state[name].clone()  # moved
    after = logits(decoder)
    torch.testing.assert_close(after, logits(Decoder(other, 1)), atol=0, rtol=0)
    assert not torch.equal(before, after)


class Odd(nn.Module):
    """A part of a person's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.5


class OwnFeedForward(FeedForward):
    def forward(self, x_BTD: Tensor) -> Tensor:
        return 2 * super().forward(x_BTD)


def own_method(model: Any) -> None:
    feed_forward = model.blocks[1].feed_forward
    plain = feed_forward.forward
    feed_forward.forward = lambda x_BTD: 2 * plain(x_BTD)


def odd_slot(name: str):
    return lambda model: setattr(model.blocks[1], name, Odd())


UNKNOWN = {
    "a slot": odd_slot("ffn_scale"),
    "a norm": odd_slot("attention_pre_norm"),
    "a method": own_method,
    "a class": lambda model: setattr(model.blocks[0], "feed_forward", OwnFeedForward(CONFIG)),
    "a bias": lambda model: setattr(model.blocks[0].attention, "out", nn.Linear(64, 64)),
    "a cap": lambda model: setattr(model.blocks[0].attention, "cap", Odd()),
    "another softmax": lambda model: AttentionSink().install(model),
}


@pytest.mark.parametrize("name", UNKNOWN)
@torch.inference_mode()
def test_what_the_kernels_do_not_know_the_model_s_own_methods_compute(name):
    torch.manual_seed(1)
    model = shaken(CONFIG)
    UNKNOWN[name](model)
    model.eval()
    row_T = tokens(1, 9)[0]
    decoder = Decoder(model, 1)
    decoder.feed(row_T[None, :4], [4])
    decoder.feed(row_T[None, 4:5], [1])
    assert decoder.worker == "lean"
    torch.testing.assert_close(stepwise(model, [row_T], [3])[0], model(row_T[None])[0], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_who_listens_hears_the_model_itself_and_dropout_that_is_on_drops():
    model = shaken(replace(CONFIG, fixes=(Dropout(0.5),)))
    decoder = Decoder(model, 1)
    still = decoder.trunk(torch.tensor([[3]]))
    assert decoder.worker == "compiled"
    with record(model, "blocks.1") as outputs:
        decoder.trunk(torch.tensor([[3]]))
        assert decoder.worker == "model" and outputs["blocks.1"].shape == (1, 1, 64)
    model.train()
    assert not torch.equal(decoder.trunk(torch.tensor([[3]])), still) and decoder.worker == "lean"
    model.eval()
    torch.testing.assert_close(decoder.trunk(torch.tensor([[3]])), still, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bits", [8, 4])
@torch.inference_mode()
def test_a_number_that_is_none_passes_products_in_few_bits(value, bits):
    """Inputs become 16-bit numbers there, which know no NaN."""
    for norm in ("attention_pre_norm", "ffn_pre_norm"):
        model: Any = quantize(shaken(replace(CONFIG, vocabulary=128)).to(torch.bfloat16), bits)
        getattr(model.blocks[0], norm).weight.data[3] = value
        decoder = Decoder(model, 2)
        logits_B1V = decoder.logits(decoder.feed(torch.tensor([[5], [6]]), [1, 1]))
        assert decoder.worker == "compiled" and not logits_B1V.isfinite().all(dim=-1).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_numbers_that_are_none_come_out_as_such(value, dtype):
    for name, parameter in shaken(CONFIG).named_parameters():
        model = shaken(CONFIG).to(dtype)
        weight = model.get_parameter(name)
        weight.data[(5,) if name.startswith("embedding") else ...] = value
        decoder = Decoder(model, 1)
        logits_B1V = decoder.logits(decoder.feed(torch.tensor([[5]]), [1]))
        assert decoder.worker == "compiled" and not logits_B1V.isfinite().all(), name
        assert parameter.isfinite().all()


def test_a_token_that_the_vocabulary_does_not_have_is_refused():
    for token in (-1, 101):
        with torch.inference_mode(), pytest.raises(IndexError, match=f"{token}.*101"):
            Decoder(shaken(CONFIG), 1).feed(torch.tensor([[token]]), [1])


def test_several_threads_decode_at_once_and_a_forked_process_has_helpers_of_its_own(threads):
    torch.manual_seed(3)
    model = shaken(CONFIG)
    right_BT = greedy(model, 2, 40)
    results: list[Tensor] = []

    def decode() -> None:
        results.extend(greedy(model, 2, 40) for _ in range(4))

    workers = [threading.Thread(target=decode) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    compiled_step._begin_anew()
    results.append(greedy(model, 2, 40))
    assert len(results) == 13 and all(torch.equal(each, right_BT) for each in results)


def test_without_numba_all_is_as_before(monkeypatch):
    model = shaken(CONFIG)
    ours_BT = greedy(model, 2, 20)
    monkeypatch.setattr(compiled_step, "kernels", lambda: None)
    assert torch.equal(greedy(model, 2, 20, worker="lean"), ours_BT)


def test_a_long_compilation_is_no_warning(monkeypatch, caplog):
    class Timer(threading.Timer):  # one whose time has come
        def start(self) -> None:
            self.function(*self.args, **self.kwargs)

    monkeypatch.setattr(threading, "Timer", Timer)
    with caplog.at_level(NOTICE):
        assert compiled_step.kernels.__wrapped__() is not None
    assert [each.levelno for each in caplog.records] == [NOTICE]


def test_the_tiny_model_says_the_same_with_it(monkeypatch):
    prompt, replies = Document.of("draw a large red circle", EndTurn()), []
    for worker in ("compiled", "lean"):
        lab = Chameleon.load("tiny")
        settings = replace(lab.settings, temperature=0, image_temperature=0, max_tokens=80)
        session = lab.engine.begin(prompt, settings)
        replies.append([piece for piece in session.stream() if isinstance(piece, ImagePiece)][-1].codes.tolist())
        assert session.worker == worker and len(replies[0]) == 8
        monkeypatch.setattr(compiled_step, "kernels", lambda: None)
    assert replies[0] == replies[1]


RUNS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "likeliest": {"image_temperature": 0.0},
    "the whole distribution": {"image_temperature": 1.0, "top_p": 1.0},
    "top-k": {"image_top_k": 20},
    "min-p": {"image_min_p": 0.1, "image_temperature": 1.5},
    "without guidance": {"guidance": 1.0},
    "two twins": {"guidance": ThreeWay(3.0, 1.2)},
    "a schedule": {"guidance": TwoWay(Linear(4.0, 0.5))},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_codes_is_what_is_picked_one_by_one(name, monkeypatch):
    """Rows of other lengths, that begin their pictures at different times, and of which one ends before the others."""
    lab = Chameleon.load("tiny")
    texts = "draw a large red circle", "draw a small blue square on a gray background", "a green circle"
    prompts = [lab.encode(Document.of(text, EndTurn())) for text in texts]
    settings, runs = replace(lab.settings, temperature=1.0, max_tokens=90, **RUNS[name]), list[int]()
    draw = CompiledStep.draw

    def counted(step: CompiledStep, run: CodeRun) -> tuple[list[list[int]], int]:
        runs.append(len(run.quantiles_PR))
        return draw(step, run)

    monkeypatch.setattr(CompiledStep, "draw", counted)
    written = []
    for codes in (8, 5, 1):
        monkeypatch.setattr(crossovers, "RUN_OF_CODES", codes)
        written.append(list(lab.engine.tokens(prompts, settings, [3, 4, 5])))
        assert max(runs, default=1) == codes
        runs.clear()
    rows = [[[each[1] for each in tokens if each[0] == row] for row in range(3)] for tokens in written]
    assert rows[0] == rows[1] == rows[2] and min(map(len, rows[0])) > 20


def test_a_run_stops_where_logits_are_not_finite_and_wherever_its_reader_does(monkeypatch):
    lab, document = Chameleon.load("tiny"), Document.of("draw a large red circle", EndTurn())
    whole = [piece for piece in lab.stream(document, seed=2) if isinstance(piece, ImagePiece)]
    assert [len(piece.codes) for piece in whole] == list(range(9))  # as rows come, though a call draws a row of codes
    session = lab.begin(document, seed=2)
    pieces = [piece for _ in range(20) for piece in islice(session.stream(), 1) if isinstance(piece, ImagePiece)]
    assert [piece.codes.tolist() for piece in pieces[:9]] == [piece.codes.tolist() for piece in whole]
    draw, counts = CompiledStep.draw, list[int]()

    def spoiled(step: CompiledStep, run: CodeRun) -> tuple[list[list[int]], int]:
        """The first of its codes is picked from numbers, those behind it from none."""
        lab.model.norm.weight.data.fill_(float("nan"))
        codes_PR, count = draw(step, run)
        counts.append(count)
        return codes_PR, count

    monkeypatch.setattr(CompiledStep, "draw", spoiled)
    with pytest.raises(FloatingPointError, match="that of norm"):
        lab.generate(document, seed=2)
    assert counts == [1, 0]
