"""Batches from processes are those that would have been made here."""

import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from chameleon_lab.processes import in_processes
from chameleon_lab.training.ahead import Ahead, made_ahead, spare_cores


class Squares:
    def __init__(self, seed):
        self.seed = seed

    def __call__(self, step):
        if step == 999:
            os._exit(9)
        if step == 30:
            raise ValueError("no batch 30")
        return torch.tensor([self.seed, step * step])


def remember(number):
    global memory
    memory = number


def add(number):
    return memory + number


@pytest.fixture(scope="module")
def ahead():
    return Ahead(partial(Squares, 7), processes=2, span=3)


def test_batches_are_the_same_in_any_order_and_a_fault_is_the_step_s_own(ahead):
    for step in (0, 1, 2, 3, 4, 10, 5, 2, 26):
        assert ahead(step).tolist() == [7, step * step]
    with pytest.raises(ValueError, match="no batch 30"):
        ahead(31)  # of its span
    assert ahead(0).tolist() == [7, 0]


def test_it_travels_to_another_process_unopened(ahead):
    ahead(0)
    assert pickle.loads(pickle.dumps(ahead)).make()(3).tolist() == [7, 9]


def test_a_process_that_is_killed_is_an_error_and_no_wait_for_ever(ahead):
    with pytest.raises(RuntimeError, match="process that worked beside this one ended"):
        ahead(999)


PARENT = """
from functools import partial
from test_ahead import Squares
from chameleon_lab.training.ahead import Ahead

if __name__ == "__main__":
    ahead = Ahead(partial(Squares, 7), processes=1, span=3)
    print(ahead(0).tolist(), flush=True)
    input()
"""


def test_processes_of_a_training_that_was_killed_end_too(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    paths = os.pathsep.join([*map(os.path.abspath, sys.path), str(Path(__file__).parent)])
    with subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    ) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"[7, 0]\n"
        parent.kill()
        parent.communicate(timeout=60)  # its processes hold this pipe, too: its end comes when all have ended


def test_without_a_gpu_batches_are_made_here():
    if not torch.cuda.is_available():
        assert spare_cores() == 0
        assert isinstance(made_ahead(partial(Squares, 1)), Squares)


@pytest.mark.parametrize("processes", [0, 1])
def test_work_of_items_keeps_their_order(processes):
    assert list(in_processes(add, range(5), processes, remember, 10)) == [10, 11, 12, 13, 14]
