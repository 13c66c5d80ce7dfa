"""Compiled blocks: the same training but for rounding, and whoever listens hears."""

import functools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import support
import torch

from chameleon_lab import objective
from chameleon_lab.attention import rotate, rotations
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.monitors.default import MONITORS
from chameleon_lab.monitors.watch import Moment, watching
from chameleon_lab.objective import Objective
from chameleon_lab.stability import FIXES, NormReordering, QueryKeyNorm, ZLoss, kind
from chameleon_lab.taps import record
from chameleon_lab.training.compilation import compile_blocks
from chameleon_lab.training.experiments import TINY
from chameleon_lab.transformer import Attention, ForVocabulary, Transformer

# torch looks at tensors' `.grad` while it compiles, and silences its own warning in vain where warnings are errors
pytestmark = pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor:UserWarning")


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of compiled methods, as they are called. The graphs are real; no C++ compiler is waited for."""
    names, compiled = list[str](), functools.partial(torch.compile, backend="aot_eager")

    def compile_(function):
        quick = compiled(function)

        def call(*inputs):
            if not torch.compiler.is_compiling():  # else part of a larger one
                names.append(function.__name__)
            return quick(*inputs)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    torch.compiler.reset()
    objective._compiled_losses.cache_clear()
    yield names
    objective._compiled_losses.cache_clear()


def pair(*fixes, **changes) -> tuple[Transformer, Transformer]:
    """A model as it is, and its double, compiled."""
    models = list[Transformer]()
    for _ in range(2):
        torch.manual_seed(2)
        models.append(Transformer(replace(support.CONFIG, layers=3, fixes=fixes, **changes)).train())
    assert compile_blocks(models[1]) == 9
    return models[0], models[1]


TOKENS_BT = torch.randint(50, (2, 17), generator=torch.Generator().manual_seed(0))


def gradients(model: Transformer) -> list[torch.Tensor]:
    model(TOKENS_BT).square().mean().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_real_turns_turn_as_complex_ones_do():
    x_BTHK, turns_BT1K = torch.randn(2, 5, 3, 8), rotations(torch.arange(5)[None], 8, 100.0)
    torch.testing.assert_close(rotate(x_BTHK, torch.view_as_real(turns_BT1K)), rotate(x_BTHK, turns_BT1K))
    assert rotate(x_BTHK.bfloat16(), torch.view_as_real(turns_BT1K)).dtype == torch.bfloat16


@pytest.mark.parametrize("fixes", [(), (QueryKeyNorm(), NormReordering())], ids=["bare", "Chameleon-34B's"])
def test_a_compiled_model_has_the_same_outputs_and_gradients(fixes, calls):
    plain, compiled = pair(*fixes)
    torch.testing.assert_close(compiled(TOKENS_BT), plain(TOKENS_BT))
    assert calls == ["forward"] * 3
    for one, other in zip(gradients(plain), gradients(compiled), strict=True):
        torch.testing.assert_close(other, one)


def test_blocks_share_their_code(calls):
    from torch._dynamo.utils import counters

    counters.clear()
    _, compiled = pair(QueryKeyNorm())
    gradients(compiled)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_who_listens_within_hears_and_who_listens_elsewhere_does_not_hinder(calls):
    plain, compiled = pair(QueryKeyNorm())
    gradients(compiled)  # so that code is there
    calls.clear()
    for pattern in ("*_tap", "blocks.*", "norm"):
        with record(plain, pattern) as wanted, record(compiled, pattern) as outputs:
            for model in (plain, compiled):
                model(TOKENS_BT)
        assert outputs.keys() == wanted.keys()
        for name, output in outputs.items():
            torch.testing.assert_close(output, wanted[name])
    assert set(calls[:6]) == {"project", "join"}  # of the first pattern
    calls.clear()
    with record(compiled, "blocks.1.feed_forward.down"):
        compiled(TOKENS_BT)
    assert calls == ["forward", "project", "forward"]


def test_the_default_monitors_leave_it_compiled(calls):
    _, compiled = pair(QueryKeyNorm())
    batch = support_batch()
    moment = Moment(0, compiled, batch, Objective())
    with watching([each for each in MONITORS if type(each).__name__ != "GradientBalance"], moment) as readout:
        Objective()(compiled, batch)["loss_with_penalties"].backward()
    assert len(calls) == 6 and readout.values["attention_logit_bound"] > 0


def test_compiled_losses_are_the_same_and_who_listens_to_the_head_hears(calls):
    plain, compiled = pair(QueryKeyNorm())
    batch, aim = support_batch(), Objective(penalties=(ZLoss(1e-2),), image_weight=2.0, logits_at_once=1)
    for one, other in zip(
        measures(plain, aim, batch), measures(compiled, replace(aim, compiled=True), batch), strict=True
    ):
        torch.testing.assert_close(other, one)
    assert calls == ["forward"] * 3 + ["penalized"]
    calls.clear()
    with record(compiled, "head") as outputs:
        measures(compiled, replace(aim, compiled=True), batch)
    assert outputs and "penalized" not in calls


def measures(model: Transformer, aim: Objective, batch) -> list[torch.Tensor]:
    model.zero_grad()
    values = aim(model, batch)
    values["loss_with_penalties"].backward()
    return [*values.values(), *(each.grad for each in model.parameters() if each.grad is not None)]


def support_batch():
    from chameleon_lab.corpora.packing import Batch

    targets_BT = TOKENS_BT.roll(-1, 1)
    return Batch(TOKENS_BT, targets_BT, targets_BT >= 0, (targets_BT > 25).to(torch.uint8), targets_BT.numel())


@torch.inference_mode()
def test_decoding_and_evaluating_go_their_own_ways(calls):
    plain, compiled = (model.eval() for model in pair(QueryKeyNorm()))
    assert torch.equal(compiled(TOKENS_BT), plain(TOKENS_BT))
    first, second = (Decoder(model, 2) for model in (plain, compiled))
    one, other = (each.logits(each.feed(TOKENS_BT, [17, 17])) for each in (first, second))
    assert not calls
    torch.testing.assert_close(other, one)


@pytest.mark.parametrize("name", [name for name, fix in FIXES.items() if kind(fix) == "model"])
def test_any_fix_trains_compiled(name, calls):
    fix = FIXES[name]
    fix = fix.for_vocabulary(support.WORDS) if isinstance(fix, ForVocabulary) else fix
    plain, compiled = (Transformer(replace(support.CONFIG, fixes=(fix,))).train() for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    compile_blocks(compiled)
    torch.manual_seed(0)
    wanted = gradients(plain)
    torch.manual_seed(0)
    assert len(gradients(compiled)) == len(wanted)


def test_an_experiment_that_is_not_compiled_is_the_one_it_was_before():
    assert replace(TINY, compiled=False).fingerprint == TINY.fingerprint != replace(TINY, compiled=True).fingerprint


def test_the_whole_is_called_where_a_part_is_ones_own(calls):
    class Mine(Attention):
        pass

    model = Transformer(support.CONFIG)
    model.blocks[0].attention = Mine(support.CONFIG, 0)
    assert compile_blocks(model) == 4
