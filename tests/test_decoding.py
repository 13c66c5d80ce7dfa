"""Decoding: the lean stand-in computes what the model computes, whatever stands in its slots."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support import CODES, CONFIG, WORDS
from test_transformer import feed, tokens
from torch import Tensor, nn

from chameleon_lab import crossovers
from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.generation import recording
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.generation.grammar import Grammar
from chameleon_lab.generation.guidance import ThreeWay, TwoWay
from chameleon_lab.generation.lean import LeanTwin
from chameleon_lab.generation.weights import _row_hashes, digest
from chameleon_lab.quantization import quantize
from chameleon_lab.records import StopPiece
from chameleon_lab.stability import (
    AttentionSink,
    AttentionSoftCap,
    Dropout,
    EmbeddingNorm,
    LayerScale,
    MixtureOfTransformers,
    NormReordering,
    OutputSoftCap,
    QueryKeyNorm,
    QueryKeyRMSNorm,
    Sandwich,
    SigmaReparam,
    Softpick,
)
from chameleon_lab.stability.slots import RectifiedSoftmax, SinkSoftmax
from chameleon_lab.taps import Tap, record
from chameleon_lab.transformer import Block, Context, FeedForward, ModelConfig, Packed, Transformer

SHAPES = {
    "pre-norm": CONFIG,
    "bare": replace(CONFIG, fixes=()),
    "re-ordered": replace(CONFIG, fixes=(QueryKeyNorm(), NormReordering())),
    "grouped": replace(CONFIG, kv_heads=2),
    "grouped, without norms": replace(CONFIG, kv_heads=2, fixes=()),
    "one key head": replace(CONFIG, kv_heads=1, fixes=(QueryKeyRMSNorm(),)),
    "RMS norms of queries and keys": replace(CONFIG, fixes=(QueryKeyRMSNorm(),)),
    "capped": replace(CONFIG, fixes=(QueryKeyNorm(), AttentionSoftCap(2.0), OutputSoftCap(1.0))),
    "capped and grouped": replace(CONFIG, kv_heads=2, fixes=(AttentionSoftCap(2.0),)),
    "everything else": replace(
        CONFIG, fixes=(EmbeddingNorm(), Sandwich(), LayerScale(), Dropout(0.5), SigmaReparam(), QueryKeyNorm())
    ),
    "tied": replace(CONFIG, tied=True),
    "by modality": replace(
        CONFIG,
        fixes=(MixtureOfTransformers(first_image=4, codes=CODES), QueryKeyNorm(), NormReordering(), LayerScale()),
    ),
    "wider than what is paired": replace(CONFIG, width=2052, fixes=()),
}


def shaken(config: ModelConfig) -> Transformer:
    """A model whose norms and scales are no longer ones and zeros."""
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


@pytest.fixture(params=SHAPES.values(), ids=list(SHAPES))
def model(request) -> Transformer:
    return shaken(request.param)


def stepwise(model: Transformer, rows: list[Tensor], prompts: list[int]) -> list[Tensor]:
    """Logits of all positions: prompts at once, then a token a row and step, rows that are done standing still."""
    decoder = Decoder(model, len(rows))
    seen = [[logits_TV] for logits_TV in feed(decoder, [row[:n] for row, n in zip(rows, prompts, strict=True)])]
    while any(length < len(row) for length, row in zip(decoder.cache.lengths, rows, strict=True)):
        news = [row[length : length + 1] for length, row in zip(decoder.cache.lengths.tolist(), rows, strict=True)]
        for kept, logits_TV in zip(seen, feed(decoder, news), strict=True):
            kept.append(logits_TV)
    return [torch.cat(kept) for kept in seen]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@torch.inference_mode()
def test_steps_equal_the_whole_for_rows_of_one_length(model, count):
    rows = list(tokens(count, 14))
    for ours_TV, row in zip(stepwise(model, rows, [5] * count), rows, strict=True):
        torch.testing.assert_close(ours_TV, model(row[None])[0], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_steps_equal_the_whole_for_rows_of_any_lengths(model):
    rows = [tokens(1, length)[0] for length in (24, 3, 13, 20, 9)]
    for ours_TV, row in zip(stepwise(model, rows, [4, 1, 2, 6, 1]), rows, strict=True):
        torch.testing.assert_close(ours_TV, model(row[None])[0], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_steps_in_bfloat16_are_as_near_as_its_rounding(model):
    model = model.to(torch.bfloat16)
    rows = list(tokens(2, 10))
    for ours_TV, row in zip(stepwise(model, rows, [4, 4]), rows, strict=True):
        whole_TV = model(row[None])[0]
        assert (ours_TV - whole_TV).abs().max() < 0.05 * whole_TV.abs().max()


@torch.inference_mode()
def test_long_contexts_take_another_kernel_to_the_same_logits():
    model = shaken(replace(CONFIG, context=1100))
    row_T = tokens(1, 1100)[0]
    decoder = Decoder(model, 1)
    feed(decoder, [row_T[:1020]])
    ours = [feed(decoder, [row_T[place : place + 1]])[0] for place in range(1020, 1030)]  # 1024 lies between
    torch.testing.assert_close(torch.cat(ours), model(row_T[None])[0, 1020:1030], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_row_that_goes_back_forgets(model):
    row_T, other_T = tokens(1, 12)[0], tokens(1, 3)[0]
    decoder = Decoder(model, 2)
    feed(decoder, [row_T, row_T[:4]])
    decoder.rewind(0, 7)
    ours_TV = feed(decoder, [other_T, row_T[4:7]])
    torch.testing.assert_close(ours_TV[0], model(torch.cat((row_T[:7], other_T))[None])[0, 7:], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(ours_TV[1], model(row_T[None])[0, 4:7], atol=2e-5, rtol=1e-4)
    for length in (-1, 11):
        with pytest.raises(ValueError, match=f"A row of 10 positions cannot go back to {length}"):
            decoder.cache.rewind(0, length)


@torch.inference_mode()
def test_taps_hear_decoding_and_change_nothing(model):
    row_T = tokens(1, 6)[0]
    decoder = Decoder(model, 1)
    feed(decoder, [row_T[:4]])
    with record(model, "blocks.1.attention.query_tap", "head") as seen:
        heard_TV = feed(decoder, [row_T[4:5]])[0]
    assert seen["blocks.1.attention.query_tap"].shape == (1, 1, 4, 8)
    assert torch.equal(seen["head"].flatten(), heard_TV.flatten()) or not isinstance(model.cap, nn.Identity)
    seen.clear()
    after_TV = feed(decoder, [row_T[5:]])[0]
    assert not seen
    torch.testing.assert_close(torch.cat((heard_TV, after_TV)), model(row_T[None])[0, 4:], atol=2e-5, rtol=1e-4)


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@dataclass(frozen=True)
class Odd:
    """Fills slots with a module that nobody here knows."""

    def install(self, model: Transformer) -> None:
        for block in (module for module in model.modules() if isinstance(module, Block)):
            for slot in ("attention_post_norm", "ffn_pre_norm"):
                model.fill(block, slot, Halved(), self)
            model.fill(block.attention, "query_norm", Halved(), self)
            model.fill(block.feed_forward, "down", nn.Linear(model.config.ffn_width, model.config.width), self)


@torch.inference_mode()
def test_modules_that_are_not_known_are_called_as_they_are():
    model = shaken(replace(CONFIG, fixes=(Odd(),)))
    row_T = tokens(1, 9)[0]
    torch.testing.assert_close(stepwise(model, [row_T], [3])[0], model(row_T[None])[0], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_step_runs_no_module_but_those_that_are_not_known(monkeypatch):
    called = []
    plain = nn.Module.__call__
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *given: called.append(type(self)) or plain(self, *given))
    model = shaken(replace(CONFIG, fixes=(QueryKeyNorm(), LayerScale())))
    decoder = Decoder(model, 1)
    decoder.logits(decoder.feed(tokens(1, 1), [1]))
    assert decoder.worker == "lean"
    assert {kind.__name__ for kind in called} == {"Scale"}


def test_training_is_not_touched_by_a_stand_in():
    model = shaken(CONFIG)
    sample_BT = tokens(2, 7)
    modules = list(model.modules())
    LeanTwin(model)
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    model(sample_BT).square().mean().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    decoder = Decoder(model, 2)
    assert decoder.feed(sample_BT, [7, 7]).requires_grad and decoder.worker == "model"  # where gradients are on
    assert not any(each.requires_grad for pair in decoder.cache.layers for each in pair)


# Changed weights, however they were changed


def merge(model: Any) -> None:
    """As peft merges an adapter: in place, through `.data`."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "blocks" in name:
            parameter.data += 0.3 * torch.randn(len(parameter), 1) @ torch.randn(1, parameter.shape[1])


def swap_rows(model: Any) -> None:
    weight_OI = model.blocks[1].feed_forward.down.weight.data
    weight_OI[[0, 5]] = weight_OI[[5, 0]]


def flip_signs(model: Any) -> None:
    for block in model.blocks:
        block.attention.out.weight.data[:, 1::2] *= -1  # an even number in each row, all in upper halves of words


def step(model: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, fused=True)
    with torch.enable_grad():
        model(tokens(2, 5)).logsumexp(-1).mean().backward()
    optimizer.step()


def exchange(model: Any) -> None:
    for block in model.blocks:
        block.feed_forward.down.weight.data = torch.randn_like(block.feed_forward.down.weight)


def renew(model: Any) -> None:
    model.blocks[0].attention.qkv.weight = nn.Parameter(torch.randn_like(model.blocks[0].attention.qkv.weight))


def replace_layer(model: Any) -> None:
    new = nn.Linear(32, CONFIG.vocabulary, bias=False, dtype=model.head.weight.dtype)
    model.head = new


def load(model: Any) -> None:
    model.load_state_dict({name: weight * 1.5 for name, weight in model.state_dict().items()})


def assign(model: Any) -> None:
    model.load_state_dict({name: weight * 1.5 for name, weight in model.state_dict().items()}, assign=True)


def fill(model: Any) -> None:
    model.fill(model.blocks[0], "attention_post_norm", Halved(), "a cell's")  # pyright: ignore[reportArgumentType]


def hook(model: Any) -> None:
    model.blocks[1].feed_forward.register_forward_hook(lambda _module, _inputs, output: 3 * output)


def hook_everywhere(model: Any) -> None:
    def double(module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
        return 2 * output if module is model.blocks[1].feed_forward.down else None

    HANDLES.append(nn.modules.module.register_module_forward_hook(double))  # pyright: ignore[reportArgumentType]


def patch(model: Any) -> None:
    down = model.blocks[1].feed_forward.down
    down.forward = lambda x: -nn.functional.linear(x, down.weight)


def widen(model: Any) -> None:
    model.norm.eps = 10.0


def move(model: Any) -> None:
    model.to(torch.float64).to(torch.float32)
    model.head.weight.data *= 2


def halve(model: Any) -> None:
    model.to(torch.bfloat16 if model.head.weight.dtype == torch.float32 else torch.float32)


def add_in_place(model: Any) -> None:
    for parameter in model.parameters():
        parameter.mul_(1.5)


def transpose(model: Any) -> None:
    out = model.blocks[0].attention.out.weight
    out.data = out.data.t()  # square: the same address, type and shape


def turn_otherwise(model: Any) -> None:
    model.config = replace(model.config, rope_theta=3.0)


def patch_logits(model: Any) -> None:
    model.logits = lambda outputs_BTD: -Transformer.logits(model, outputs_BTD)


def patch_class(model: Any) -> None:
    CLASSES.append((FeedForward, FeedForward.forward))
    FeedForward.forward = lambda self, x_BTD: self.down(self.gate_up(x_BTD).chunk(2, dim=-1)[0].relu())


def patch_torchs_class(model: Any) -> None:
    CLASSES.append((nn.RMSNorm, nn.RMSNorm.forward))
    nn.RMSNorm.forward = lambda self, x: 2 * x * self.weight


def change_class(model: Any) -> None:
    model.blocks[0].feed_forward.__class__ = Negated


class Negated(FeedForward):
    def forward(self, x_BTD: Tensor) -> Tensor:
        return -super().forward(x_BTD)


HANDLES: list = []
CLASSES: list[tuple[Any, Any]] = []
CHANGES = (
    merge,
    swap_rows,
    flip_signs,
    step,
    exchange,
    renew,
    replace_layer,
    load,
    assign,
    fill,
    hook,
    hook_everywhere,
)
CHANGES += (patch, widen, move, halve, add_in_place)
CHANGES += (transpose, turn_otherwise, patch_logits, patch_class, patch_torchs_class, change_class)


@pytest.fixture
def _no_hooks_stay():
    yield
    while HANDLES:
        HANDLES.pop().remove()
    while CLASSES:
        kind, forward = CLASSES.pop()
        kind.forward = forward


@pytest.mark.usefixtures("_no_hooks_stay")
@pytest.mark.parametrize(  # the products are different ones
    ("rows", "dtype", "graphs"),
    [(1, torch.float32, False), (5, torch.float32, False), (2, torch.bfloat16, False), (2, torch.float32, True)],
)
@pytest.mark.parametrize("change", CHANGES)
def test_the_next_reply_is_that_of_a_fresh_object_with_the_same_weights(
    change, rows, dtype, graphs, monkeypatch, recordings
):
    monkeypatch.setattr(recording, "replays", lambda device: graphs)
    monkeypatch.setattr(crossovers, "GRAPH_PATIENCE", 0)
    model = shaken(CONFIG).to(dtype)
    sample_BT = tokens(rows, 9)

    def reply(decoder: Decoder) -> Tensor:
        decoder.begin()
        start = int(decoder.cache.lengths[0])
        with torch.inference_mode():
            spans = [sample_BT[:, start:5]] * (start < 5) + [sample_BT[:, place : place + 1] for place in (5, 6, 7, 8)]
            parts = [decoder.logits(decoder.feed(span, [span.shape[1]] * rows)) for span in spans]
        for row in range(rows):
            decoder.rewind(row, 5)
        return torch.cat(parts, 1)[:, -4:]

    old, fresh = Decoder(model, rows, lasting=True), Decoder(model, rows)
    before_BTV = reply(old)
    assert torch.equal(reply(old), before_BTV) and torch.equal(reply(fresh), before_BTV)
    with torch.no_grad():
        change(model)
    wanted_BTV = reply(Decoder(model, rows))
    whole_BTV = model(sample_BT)[:, -4:]
    assert (wanted_BTV - whole_BTV).abs().max() < (1e-3 if model.head.weight.dtype == torch.float32 else 0.1) * (
        1 + whole_BTV.abs().max()
    )
    assert not torch.allclose(wanted_BTV, before_BTV, atol=1e-3)
    assert torch.equal(reply(old), wanted_BTV) and torch.equal(reply(Decoder(model, rows)), wanted_BTV)


class Louder(nn.Module):
    """Keeps what it does in attributes that are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.factors, self.by_name, self.factor = [1.0], {"more": (1.0, 1.0)}, torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors[0] * self.by_name["more"][1] * self.factor

    def change(self, name: str) -> None:
        if name == "factors":
            self.factors[0] = 3.0
        elif name == "by_name":
            self.by_name["more"] = (1.0, 3.0)
        else:
            self.factor.data.mul_(3)


@pytest.mark.parametrize("place", ["slot", "hook"])
@pytest.mark.parametrize("name", ["factors", "by_name", "factor"])
def test_a_part_or_hook_that_does_something_else_by_now_makes_all_be_computed_anew(make_lab, lettered, place, name):
    lab, part = make_lab(lettered), Louder()
    if place == "slot":
        lab.model.blocks[0].ffn_scale = part
    else:
        lab.model.blocks[0].feed_forward.register_forward_hook(lambda _module, _inputs, output: part(output))
    compare_replies(lab, lambda: part.change(name))


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights_that_were_exchanged_make_all_be_computed_anew(make_lab, lettered, bits):
    lab, other = (make_lab(lettered, ffn_width=64) for _ in range(2))
    matrix = other.model.blocks[0].attention.qkv.weight
    matrix.data = -3 * matrix.flip(0)
    for each in (lab, other):
        quantize(each.model, bits)
    state = other.model.blocks[0].attention.state_dict()
    compare_replies(lab, lambda: lab.model.blocks[0].attention.load_state_dict(state))


def compare_replies(lab: Chameleon, change: Callable[[], object]) -> None:
    """A session whose model is changed between two replies goes on as a new one of the same tokens does."""
    given = {"temperature": 0.0, "max_tokens": 60}
    session = lab.begin(Document.of("abc", EndTurn()), **given)
    list(session.stream())
    decoder = session._continuation._decoder
    change()
    session.append(Document.of(EndTurn(), "dab", EndTurn()))
    prompt = session.tokens
    list(session.stream())
    again = Decoder(lab.model, 1)
    with torch.inference_mode():
        feed(again, [torch.from_numpy(prompt)])
    for (keys, values), (wanted_keys, wanted_values) in zip(decoder.cache.layers, again.cache.layers, strict=True):
        for ours, wanted in ((keys, wanted_keys), (values, wanted_values)):
            torch.testing.assert_close(ours[:, :, : len(prompt)], wanted[:, :, : len(prompt)], atol=1e-4, rtol=1e-3)


def ulp(x: Tensor, places: tuple[Tensor, ...]) -> None:
    bits = x.view({2: torch.int16, 4: torch.int32}[x.element_size()])
    bits[places] ^= 1


EDITS = {
    "one number by its last bit": lambda x, i, j: ulp(x, (i[:1], j[:1])),
    "one sign": lambda x, i, j: x[i[0], j[0]].neg_(),
    "two signs of a row": lambda x, i, j: x[i[0], 1:4:2].neg_(),
    "every other sign": lambda x, i, j: x[:, 1::2].neg_(),
    "signs of a rectangle": lambda x, i, j: x[i[0] : i[0] + 4, (j[0] | 1) : (j[0] | 1) + 3 : 2].neg_(),
    "all signs": lambda x, i, j: x.neg_(),
    "doubled": lambda x, i, j: x[i[0]].mul_(2),
    "two numbers of a row exchanged": lambda x, i, j: x[i[0]].copy_(exchanged(x[i[0]], *j[:2])),
    "two rows exchanged": lambda x, i, j: x.copy_(exchanged(x, *i[:2])),
    "two columns exchanged": lambda x, i, j: x.copy_(exchanged(x.t(), *j[:2]).t()),
    "shuffled": lambda x, i, j: x.copy_(x.flatten()[torch.randperm(x.numel())].view_as(x)),
    "reversed": lambda x, i, j: x.copy_(x.flip(0, 1)),
    "turned by a place": lambda x, i, j: x.copy_(x.roll(1, 1)),
    "a row to zero": lambda x, i, j: x[i[0]].zero_(),
    "the last number": lambda x, i, j: x[-1, -1:].add_(0.5),
    "rank one": lambda x, i, j: x.add_(torch.randn(len(x), 1) @ torch.randn(1, x.shape[1])),
    "no number": lambda x, i, j: x[i[0], j[0]].fill_(torch.nan),
    "the sign of a zero": lambda x, i, j: x[2, 3:4].neg_(),
}


def exchanged(x: Tensor, one: Tensor, other: Tensor) -> Tensor:
    order = torch.arange(len(x))
    order[one], order[other] = other, one
    return x[order]


def row_hashes(tensor: torch.Tensor) -> bytes:
    """What a GPU makes of a tensor."""
    return _row_hashes(tensor).numpy().tobytes()


@pytest.mark.parametrize("digest", [digest, row_hashes])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("edit", EDITS)
def test_every_kind_of_edit_changes_the_digest(edit, dtype, digest):
    for seed in range(20):
        torch.manual_seed(seed)
        rows, width = (int(size) for size in torch.randint(7, 90, (2,)))
        weight_OI = torch.randn(rows, width).to(dtype)
        weight_OI[2, 3] = 0
        if seed % 3 == 0:  # of few different numbers, as sparse and symmetric matrices have them
            weight_OI.copy_(torch.eye(rows, width) + 1)
        before = digest(weight_OI)
        assert digest(weight_OI.clone()) == before
        edited_OI = weight_OI.clone()
        EDITS[edit](edited_OI, torch.randperm(rows - 4), torch.randperm(width - 4))
        if not torch.equal(edited_OI.view(torch.uint8), weight_OI.view(torch.uint8)):
            assert digest(edited_OI) != before
        elif seed % 3:
            raise AssertionError("the edit changed nothing")


def test_another_model_in_the_same_object_speaks(make_lab, lettered):
    lab, other = make_lab(lettered), make_lab(lettered, width=48, fixes=())
    prompt = Document.of("abc", EndTurn())
    lab.generate(prompt, seed=1)
    lab.model = other.model
    for seed in range(4):
        assert lab.generate(prompt, seed=seed) == other.generate(prompt, seed=seed)
    assert lab.score(prompt).logs_T.tolist() == other.score(prompt).logs_T.tolist()


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_session_whose_weights_changed_goes_on_as_a_fresh_one_would(make_lab, lettered, guidance):
    lab = make_lab(lettered)
    given = {"temperature": 0.0, "guidance": guidance, "max_tokens": 60}
    session = lab.begin(Document.of("abc", EndTurn()), **given)
    list(session.stream())
    merge(lab.model)
    session.append(Document.of(EndTurn(), "dab", EndTurn()))
    prompt = session.tokens
    *_, stop = session.stream()
    assert session.worker in ("lean", "graph")
    settings, grammar = lab.settings.changed(**given), lab.engine.default_grammar()
    fresh = [token for _, token, _ in lab.engine.tokens([prompt], settings, [0], grammar) if token is not None]
    assert isinstance(stop, StopPiece) and len(fresh) > 5
    assert session.reply == lab.tokenizer.decode([0, *fresh])


@torch.inference_mode()
def test_dropout_that_is_on_drops_while_decoding_too():
    model = shaken(replace(CONFIG, fixes=(Dropout(0.9),)))
    decoder = Decoder(model, 1)
    steady_TV = feed(decoder, [tokens(1, 3)[0]])[0]
    assert torch.isfinite(steady_TV).all()
    row_T = tokens(1, 3)[0]
    model.train()
    draws = []
    for _ in range(2):
        decoder.rewind(0, 0)
        draws.append(feed(decoder, [row_T])[0])
    assert not torch.allclose(*draws)


# Replaced parts


class Narrow(nn.Module):
    """An attention of one's own: two key heads, values of one head and half the width, no pairs turned."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.kv_heads, self.head_width = layer, config.heads, 2, config.head_width
        self.q = nn.Linear(config.width, config.heads * config.head_width, bias=False)
        self.k = nn.Linear(config.width, 2 * config.head_width, bias=False)
        self.v = nn.Linear(config.width, config.head_width // 2, bias=False)
        self.out = nn.Linear(config.heads * config.head_width // 2, config.width, bias=False)
        self.query_tap, self.key_tap, self.cap, self.softmax = Tap(), Tap(), nn.Identity(), nn.Softmax(dim=-1)

    def forward(self, x_BTD: Tensor, turns_BT1K: Tensor, context: Context) -> Tensor:
        q, k, v = (each(x_BTD).unflatten(-1, (heads, -1)) for each, heads in ((self.q, 4), (self.k, 2), (self.v, 1)))
        q, k, v = (each.transpose(1, 2) for each in (self.query_tap(q), self.key_tap(k), v))
        return self.out(context.attend(self.layer, q, k, v, self.cap, self.softmax).transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class NarrowAttention:
    """Fills the slot `attention` of some blocks."""

    layers: tuple[int, ...] = (0, 1)

    def install(self, model: Transformer) -> None:
        for layer in self.layers:
            model.fill(model.blocks[layer], "attention", Narrow(model.config, layer), self)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("layers", [(0, 1), (1,), (0,)], ids=["all", "last", "first"])
@torch.inference_mode()
def test_an_attention_of_other_heads_and_widths_decodes(layers, graphs, monkeypatch, recordings):
    monkeypatch.setattr(recording, "replays", lambda device: graphs)
    monkeypatch.setattr(crossovers, "GRAPH_PATIENCE", 0)
    model = shaken(replace(CONFIG, fixes=(NarrowAttention(layers),)))
    rows = [tokens(1, length)[0] for length in (24, 3, 13)]
    for ours_TV, row in zip(stepwise(model, rows, [4, 1, 2]), rows, strict=True):
        torch.testing.assert_close(ours_TV, model(row[None])[0], atol=2e-5, rtol=1e-4)
    assert bool(recordings) == graphs


def test_a_model_with_an_attention_of_its_own_trains_is_watched_and_cannot_be_quantised():
    model = shaken(replace(CONFIG, fixes=(NarrowAttention((1,)),)))
    with pytest.raises(
        ValueError, match=r"NarrowAttention.* holds the matrix blocks\.1\.attention\.qkv in a form of its own"
    ):
        quantize(model, 8)
    with record(model, "blocks.*.attention.*_tap") as taps:
        model(tokens(2, 7)).logsumexp(-1).mean().backward()
    assert len(taps) == 4 and all(parameter.grad is not None for parameter in model.parameters())


class Deaf(Narrow):
    """Asks its context for nothing."""

    def forward(self, x_BTD: Tensor, turns_BT1K: Tensor, context: Context) -> Tensor:
        return x_BTD


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_a_part_that_cannot_be_one_is_refused_with_what_it_lacks():
    model = shaken(CONFIG)
    block, fix = model.blocks[1], NarrowAttention()
    for part, message in (
        (nn.Linear(32, 32), "a Linear that has no layer, heads, .*query_tap"),
        (TwoInputs(), "a TwoInputs that has no layer"),
    ):
        with pytest.raises(ValueError, match=rf"NarrowAttention.* fills the slot blocks\.1\.attention with {message}"):
            model.fill(block, "attention", part, fix)  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ValueError, match=r"slot blocks\.1\.ffn_pre_norm with a TwoInputs whose forward does not take \(x\)"
    ):
        model.fill(block, "ffn_pre_norm", TwoInputs(), fix)
    assert not any("1" in place and "norm" not in place for place in model.filled)
    model.fill(block, "attention", Deaf(CONFIG, 1), fix)
    with pytest.raises(ValueError, match="1 of 2 layers asked their context what they see"):
        Decoder(model, 1).feed(tokens(1, 3), [3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("fix", [Softpick(), AttentionSink(1.0)], ids=["softpick", "sink"])
@torch.inference_mode()
def test_another_softmax_decodes_long_rows_and_packed_ones_as_its_formula_says(fix, kv_heads, dtype):
    model = shaken(replace(CONFIG, kv_heads=kv_heads, context=700, fixes=(QueryKeyNorm(), fix))).to(dtype)
    row_T = tokens(1, 600)[0]  # beyond what plain products are for, were it a plain softmax
    whole_TV = model(row_T[None])[0]
    near: dict[str, Any] = (
        {"atol": 2e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.1 * whole_TV.abs().max(), "rtol": 0}
    )
    torch.testing.assert_close(stepwise(model, [row_T[:590]], [585])[0], whole_TV[:590], **near)
    packed_TV = model(row_T[None], Packed((torch.arange(600) >= 100).long()[None]))[0]
    torch.testing.assert_close(packed_TV[:100], whole_TV[:100], **near)
    torch.testing.assert_close(packed_TV[100:], model(row_T[None, 100:])[0], **near)
    plain = Transformer(replace(model.config, fixes=(QueryKeyNorm(),))).to(dtype).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    assert not torch.allclose(plain(row_T[None])[0], whole_TV, atol=0.05)


def test_the_softmaxes_are_their_papers_formulas():
    logits_BHTS = torch.randn(2, 4, 3, 9, dtype=torch.float64) * 3
    hidden_BHTS = torch.rand(2, 4, 3, 9) < 0.3
    masked_BHTS = logits_BHTS.masked_fill(hidden_BHTS, -torch.inf)
    lifted_BHTS = (logits_BHTS.exp() - 1).masked_fill(hidden_BHTS, 0)
    picked_BHTS = lifted_BHTS.relu() / (lifted_BHTS.abs().sum(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(RectifiedSoftmax(1e-6)(masked_BHTS), picked_BHTS, atol=1e-6, rtol=1e-5)
    assert RectifiedSoftmax(1e-6)(1e4 * masked_BHTS).isfinite().all()  # where e^logit is not
    sink = SinkSoftmax(4, 0.0).double()
    nn.init.normal_(sink.logit_H)
    exps_BHTS = masked_BHTS.exp()
    sunk_BHTS = exps_BHTS / (exps_BHTS.sum(-1, keepdim=True) + sink.logit_H.exp()[:, None, None])
    torch.testing.assert_close(sink(masked_BHTS), sunk_BHTS)


# Logits that are no numbers


def lose(model: Transformer, name: str, value: float) -> None:
    with torch.no_grad():
        model.get_submodule(name).get_parameter("weight").view(-1)[5] = value


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("name", ["blocks.0.attention.qkv", "blocks.1.feed_forward.down", "norm", "head"])
def test_logits_that_are_no_numbers_are_an_error_that_names_the_layer(make_lab, lettered, name, guidance, value):
    lab = make_lab(lettered)
    lose(lab.model, name, value)
    for run in (lab.generate, lambda *given, **more: list(lab.stream(*given, **more))):
        with pytest.raises(FloatingPointError, match=rf"tokens are not finite: the first output .* that of {name}\."):
            run(Document.of("abc", EndTurn()), guidance=guidance, seed=3)


@dataclass(frozen=True)
class Breaking(TwoWay):
    def mix(self, logits_SRV: Tensor, shares: Any) -> Tensor:
        return super().mix(logits_SRV, shares) * (torch.nan if shares[0] > 0.5 else 1)


@dataclass(frozen=True)
class Steep:
    def scale(self, share: float) -> float:
        return 1e39 * share


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("guidance", [Breaking(), TwoWay(Steep()), TwoWay(1e39), ThreeWay(text=Steep())])
def test_guidance_that_mixes_logits_into_no_numbers_is_named(make_lab, lettered, guidance):
    lab = make_lab(lettered)
    grammar = Grammar(WORDS, CODES, text=False, min_images=1)
    with pytest.raises(FloatingPointError, match=rf"finite ones: {re.escape(str(guidance))} mixes them into such"):
        lab.generate(Document.of("abc", EndTurn()), guidance=guidance, grammar=grammar)


def test_sums_that_go_wrong_beside_the_model_are_said_to(make_lab, lettered, monkeypatch):
    lab, logits = make_lab(lettered), Decoder.logits
    monkeypatch.setattr(Decoder, "logits", lambda self, outputs_BTD: logits(self, outputs_BTD) * torch.nan)
    with pytest.raises(FloatingPointError, match=r"though the model gives finite ones .*\(lean\)"):
        lab.generate(Document.of("abc", EndTurn()))
