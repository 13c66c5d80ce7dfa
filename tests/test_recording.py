"""Recorded work: replayed with other numbers, done as it is where it cannot be recorded."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from chameleon_lab.generation import recording
from chameleon_lab.generation.recording import Recorded, replays, upload


def test_only_a_gpu_replays():
    assert replays(torch.device("cuda", 0)) and not replays(torch.device("cpu"))


@pytest.mark.usefixtures("recordings")
def test_work_is_replayed_with_other_inputs_and_earlier_results_stay():
    weight_IO = torch.eye(2)
    doubled = Recorded(lambda x, y: 2 * x @ weight_IO + y, torch.zeros(1, 2), torch.zeros(1))
    first = doubled(torch.tensor([[1.0, 2.0]]), torch.tensor([1.0]))
    weight_IO.fill_(1)
    second = doubled(torch.tensor([[1.0, 2.0]]), torch.tensor([0.0]))
    assert first.tolist() == [[3, 5]] and second.tolist() == [[6, 6]]


@pytest.mark.usefixtures("recordings")
def test_examples_are_left_as_they_are():
    example = torch.zeros(3)
    assert Recorded(lambda x: x + 1, example)(torch.ones(3)).tolist() == [2, 2, 2]
    assert example.tolist() == [0, 0, 0]


def test_work_that_waits_for_the_device_is_done_as_it_is_and_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(recording, "capture", refuse)
    with caplog.at_level(logging.WARNING):
        work = Recorded(lambda x: x + x.max().item(), torch.zeros(2))
    assert work(torch.tensor([1.0, 2.0])).tolist() == [3, 4]
    assert (
        "more slowly: operation not permitted when stream is capturing" in caplog.text
        and "\n" not in caplog.messages[0]
    )


def test_threads_record_one_after_the_other(monkeypatch: pytest.MonkeyPatch):
    under_way, most = 0, 0

    def capture(work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        time.sleep(0.02)  # for the others to come
        under_way -= 1
        return work, work()

    monkeypatch.setattr(recording, "capture", capture)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: Recorded(lambda x: x + number, torch.zeros(2)), range(4)))
    assert most == 1


@pytest.mark.gpu
def test_a_gpu_replays_what_it_recorded():
    weight_IO = torch.randn(64, 64, device="cuda")
    product = Recorded(lambda x: x @ weight_IO, torch.zeros(4, 64, device="cuda"))
    for _ in range(3):
        x = torch.randn(4, 64, device="cuda")
        assert torch.equal(product(x), x @ weight_IO)


@pytest.mark.gpu
def test_a_gpu_that_cannot_record_goes_on(caplog: pytest.LogCaptureFixture):
    work = Recorded(lambda x: x + x.max().item(), torch.zeros(2, device="cuda"))
    assert work(torch.tensor([1.0, 2.0], device="cuda")).tolist() == [3, 4] and "CUDA graph" in caplog.text
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(3, device="cuda").max() < 1  # a recording that fails leaves torch's random numbers refused


@pytest.mark.gpu
def test_a_thread_may_use_the_gpu_while_another_records():
    weight_IO, done = torch.randn(64, 64, device="cuda"), threading.Event()

    def use() -> None:
        while not done.is_set():
            upload([1.0, 2.0], weight_IO.device).sum().item()
            torch.empty(2**22, device="cuda")

    with ThreadPoolExecutor(1) as pool:
        using = pool.submit(use)
        try:
            products = [Recorded(lambda x: x @ weight_IO, torch.zeros(4, 64, device="cuda")) for _ in range(5)]
        finally:
            done.set()
        using.result()
    x = torch.randn(4, 64, device="cuda")
    assert all(product._replay is not None and torch.equal(product(x), x @ weight_IO) for product in products)
