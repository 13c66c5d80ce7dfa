"""Taps: reading from outside leaves no trace."""

import threading
from collections.abc import Callable

import pytest
import torch

from chameleon_lab.taps import change, record

TOKENS_BT = torch.arange(20).view(2, 10)


def hooks(model) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_recording_does_not_change_outputs_and_removes_itself(lab):
    before_BTV = lab.model(TOKENS_BT)
    with record(lab.model, "*") as outputs:
        during_BTV = lab.model(TOKENS_BT)
        assert hooks(lab.model) > 0
    assert torch.equal(before_BTV, during_BTV)
    assert hooks(lab.model) == 0
    lab.model(TOKENS_BT * 0)
    assert torch.equal(outputs["head"], before_BTV)  # nothing more was recorded


def test_it_removes_itself_when_the_block_fails(lab):
    with pytest.raises(RuntimeError), record(lab.model, "head"):
        raise RuntimeError
    assert hooks(lab.model) == 0


def test_values_are_what_the_submodules_gave_detached(lab):
    with record(lab.model, "embedding", "blocks.*.attention.query_tap", "blocks.1.attention.key_tap") as outputs:
        lab.model(TOKENS_BT)
    names = ["embedding", "blocks.0.attention.query_tap", "blocks.1.attention.query_tap", "blocks.1.attention.key_tap"]
    assert sorted(outputs) == sorted(names)
    assert torch.equal(outputs["embedding"], lab.model.embedding(TOKENS_BT))
    assert outputs["blocks.0.attention.query_tap"].shape == (2, 10, 4, 8)
    assert outputs["blocks.1.attention.key_tap"].shape == (2, 10, 2, 8)
    assert not any(value.requires_grad for value in outputs.values())


def test_gradients_are_the_same_while_recording(lab):
    lab.model(TOKENS_BT).logsumexp(-1).sum().backward()
    plain = {name: parameter.grad.clone() for name, parameter in lab.model.named_parameters()}
    lab.model.zero_grad()
    with record(lab.model, "*"):
        lab.model(TOKENS_BT).logsumexp(-1).sum().backward()
    assert all(torch.equal(plain[name], parameter.grad) for name, parameter in lab.model.named_parameters())


def test_an_unknown_pattern_is_an_error_that_names_what_there_is(lab):
    why = r"No submodule matches 'layers\.\*'; the names begin embedding, modality, positions, embedding_norm, blocks"
    with pytest.raises(ValueError, match=why), record(lab.model, "head", "layers.*"):
        pass
    assert hooks(lab.model) == 0


def test_outputs_that_are_no_tensor_are_passed_over(image_tokenizer):
    with record(image_tokenizer, "*") as outputs:
        image_tokenizer(torch.zeros(1, 3, 16, 16))
    assert "quantize" not in outputs and outputs["decoder"].shape == (1, 3, 16, 16)


def elsewhere(act: Callable[[], object]) -> None:
    """Runs something to its end in a thread of its own."""
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()


def test_another_threads_passes_are_neither_recorded_nor_changed(lab):
    others: list[torch.Tensor] = []
    plain_BTV, other_BTV = lab.model(TOKENS_BT), lab.model(TOKENS_BT * 0)
    with record(lab.model, "head") as outputs, change(lab.model, {"blocks.*": torch.zeros_like}):
        elsewhere(lambda: others.append(lab.model(TOKENS_BT * 0)))
        assert not outputs and torch.equal(others[0], other_BTV)
        changed_BTV = lab.model(TOKENS_BT)
        elsewhere(lambda: others.append(lab.model(TOKENS_BT)))
    assert torch.equal(outputs["head"], changed_BTV) and not torch.equal(changed_BTV, plain_BTV)
    assert torch.equal(others[1], plain_BTV)
