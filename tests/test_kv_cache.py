"""Replayed steps of a cache: the same as plain ones, wherever its rows stand. (Plain ones: `test_transformer`.)"""

import gc
import weakref
from weakref import WeakSet

import pytest
import torch

from chameleon_lab import crossovers
from chameleon_lab.generation import fused, recording
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.stability import QueryKeyNorm
from chameleon_lab.transformer import ModelConfig, Transformer


def drawn(kv_heads: int = 4) -> Transformer:
    shape = ModelConfig(
        vocabulary=50,
        width=32,
        layers=2,
        heads=4,
        kv_heads=kv_heads,
        head_width=8,
        ffn_width=48,
        context=64,
        fixes=(QueryKeyNorm(),),
    )
    torch.manual_seed(0)
    return Transformer(shape).eval()


@pytest.fixture(autouse=True)
def _replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "replays", lambda device: True)
    monkeypatch.setattr(crossovers, "GRAPH_POSITIONS", 8)
    monkeypatch.setattr(crossovers, "GRAPH_PATIENCE", 0)


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch):
    """Has a model's recorded steps compiled here as on a GPU; the graphs are real, no C++ compiler is waited for."""
    block = torch.compile(fused._block, backend="aot_eager", dynamic=False, fullgraph=True)
    monkeypatch.setattr(fused, "_compiled_block", lambda: block)
    monkeypatch.setattr(fused, "COMPILED_MODELS", WeakSet())
    torch.compiler.reset()
    return fused.COMPILED_MODELS.add


@pytest.mark.parametrize("kv_heads", [1, 4])
@torch.inference_mode()
def test_compiled_steps_equal_whole_passes_of_one_graph_a_number_of_rows(recordings, compiles, kv_heads: int):
    from torch._dynamo.utils import counters

    model = drawn(kv_heads)
    compiles(model)
    counters.clear()
    for room in (40, 24):  # the graphs are those of any room
        for counts in ([3], [1, 5, 2]):
            rows, tokens_BT = len(counts), torch.randint(50, (len(counts), room))
            decoder = Decoder(model, rows, room)
            decoder.feed(tokens_BT[:, : max(counts)], counts)
            whole_BTV, places = model(tokens_BT), torch.tensor(counts)
            for _ in range(room - max(counts)):
                stepped_BV = decoder.logits(decoder.feed(tokens_BT.gather(1, places[:, None]), [1] * rows))[:, 0]
                torch.testing.assert_close(stepped_BV, whole_BTV[torch.arange(rows), places], rtol=1e-4, atol=1e-5)
                places += 1
    assert counters["stats"]["unique_graphs"] == 2 and decoder.worker == "graph" and model in fused.COMPILED_MODELS


@torch.inference_mode()
def test_where_torch_marks_no_sizes_compiled_steps_are_the_same(recordings, compiles, monkeypatch):
    monkeypatch.delattr(torch._dynamo, "mark_dynamic")
    model, tokens_BT = drawn(), torch.randint(50, (1, 12))
    compiles(model)
    decoder = Decoder(model, 1)
    steps = [decoder.logits(decoder.feed(tokens_BT[:, [place]], [1])) for place in range(12)]
    torch.testing.assert_close(torch.cat(steps, 1), model(tokens_BT), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_where_the_compiler_fails_steps_go_on_as_before_and_it_is_not_asked_again(
    recordings, compiles, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def broken(*inputs):
        raise RuntimeError("No Triton here.\nAnd a page of its own words.")

    monkeypatch.setattr(fused, "_compiled_block", lambda: broken)
    model, tokens_BT = drawn(), torch.randint(50, (1, 12))
    compiles(model)
    decoder = Decoder(model, 1)
    steps = [decoder.logits(decoder.feed(tokens_BT[:, [place]], [1])) for place in range(12)]
    torch.testing.assert_close(torch.cat(steps, 1), model(tokens_BT), rtol=1e-4, atol=1e-5)
    assert [each.getMessage() for each in caplog.records] == [
        "Decoding goes on without compiled steps, more slowly: No Triton here."
    ]
    assert model not in fused.COMPILED_MODELS


def test_steps_are_compiled_for_a_gpu_alone():
    with pytest.raises(ValueError, match="the model is on cpu"):
        fused.compile_steps(drawn())


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("counts", [[3], [3, 3], [1, 5, 2]])
@torch.inference_mode()
def test_replayed_steps_equal_whole_passes(recordings: list[torch.Tensor], counts: list[int], kv_heads: int):
    model, rows = drawn(kv_heads), len(counts)
    tokens_BT = torch.randint(50, (rows, 40))
    decoder = Decoder(model, rows, 40)
    decoder.feed(tokens_BT[:, : max(counts)], counts)
    whole_BTV, places = model(tokens_BT), torch.tensor(counts)
    for _ in range(40 - max(counts)):
        stepped_BV = decoder.logits(decoder.feed(tokens_BT.gather(1, places[:, None]), [1] * rows))[:, 0]
        torch.testing.assert_close(stepped_BV, whole_BTV[torch.arange(rows), places], rtol=1e-4, atol=1e-5)
        places += 1
    assert len(recordings) == 5  # stretches of eight positions


@torch.inference_mode()
def test_a_step_of_some_rows_leaves_the_others_and_rows_that_pause_go_on(recordings: list[torch.Tensor]):
    model = drawn()
    tokens_BT = torch.randint(50, (3, 30))
    decoder = Decoder(model, 3, 30)
    decoder.feed(tokens_BT[:, :4], [4, 4, 4])
    whole_BTV, places = model(tokens_BT), [4, 4, 4]
    for step in range(12):
        rows = 2 if step % 3 == 0 else 3
        fed = [1, int(step % 2 == 0), 1][:rows]
        given = torch.stack([tokens_BT[row, place] for row, place in enumerate(places[:rows])])[:, None]
        logits_BV = decoder.logits(decoder.feed(given, fed))[:, 0]
        for row in range(rows):
            torch.testing.assert_close(logits_BV[row], whole_BTV[row, places[row]], rtol=1e-4, atol=1e-5)
            places[row] += fed[row]
    assert places == decoder.cache.lengths.tolist() == [16, 10, 12]


@torch.inference_mode()
def test_a_full_cache_is_refused_as_without_a_gpu(recordings: list[torch.Tensor]):
    model = drawn()
    decoder = Decoder(model, 1, 4)
    decoder.feed(torch.zeros(1, 4, dtype=torch.int64), [4])
    with pytest.raises(ValueError, match="5 positions do not fit a cache of 4"):
        decoder.trunk(torch.zeros(1, 1, dtype=torch.int64))


@torch.inference_mode()
def test_a_short_answer_is_not_recorded(recordings: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crossovers, "GRAPH_PATIENCE", 5)
    model = drawn()
    decoder = Decoder(model, 1)
    for step in range(8):
        decoder.feed(torch.full((1, 1), step), [1])
        assert len(recordings) == (step >= 5) and decoder.worker == ("graph" if step >= 5 else "lean")


@torch.no_grad()
def test_a_model_that_was_moved_is_recorded_anew(recordings: list[torch.Tensor]):
    model = drawn()
    decoder, tokens_BT = Decoder(model, 1), torch.zeros(1, 1, dtype=torch.int64)
    decoder.trunk(tokens_BT)
    before = len(recordings)
    decoder.trunk(tokens_BT)
    assert len(recordings) == before
    model.to(torch.float64).to(torch.float32)  # weights elsewhere in memory
    decoder.trunk(tokens_BT)
    assert len(recordings) == before + 1


@torch.inference_mode()
def test_recordings_keep_no_decoder_in_memory(recordings: list[torch.Tensor]):
    model = drawn()
    gc.disable()
    try:
        decoder = Decoder(model, 1)
        decoder.trunk(torch.zeros(1, 1, dtype=torch.int64))
        kept = weakref.ref(decoder), weakref.ref(decoder.cache)
        assert recordings
        del decoder
        assert [each() for each in kept] == [None, None]
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@torch.inference_mode()
def test_a_gpu_replays_the_steps_that_it_would_do(compiled: bool):
    model = drawn(2).cuda()
    if compiled:
        fused.compile_steps(model)
    tokens_BT = torch.randint(50, (3, 40), device="cuda")
    decoder = Decoder(model, 3, 40)
    decoder.feed(tokens_BT[:, :2], [2, 1, 2])
    whole_BTV, places = model(tokens_BT), torch.tensor([2, 1, 2], device="cuda")
    for _ in range(37):
        stepped_BV = decoder.logits(decoder.feed(tokens_BT.gather(1, places[:, None]), [1, 1, 1]))[:, 0]
        torch.testing.assert_close(stepped_BV, whole_BTV[torch.arange(3, device="cuda"), places], rtol=1e-3, atol=1e-3)
        places += 1
    assert not compiled or model in fused.COMPILED_MODELS
