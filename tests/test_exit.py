"""A script that makes widgets ends when its last line is done, whatever they are in the middle of."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

CELLS = """
import time
import torch
from chameleon_lab.chameleon import load_image_tokenizer
from chameleon_lab.corpora.scenes import arrange
from chameleon_lab.records import StopPiece, TextPiece
from chameleon_widgets import ChatCell, CodebookAtlas, CodeSurgery, ReconstructionViewer

def stream(document, **settings):
    matrix = torch.eye(600)
    for _ in range(100_000):
        matrix = matrix @ matrix
        yield TextPiece("a word ")
    yield StopPiece("end_turn")

tiny, scene = load_image_tokenizer("tiny"), arrange([("ring", "purple", "large")], "single", "tan").picture()
idle, cell = ChatCell(stream), ChatCell(stream)
cell.send('go on')
while not len(cell.document): time.sleep(0.05)
surgery, atlas = CodeSurgery(tiny, scene), CodebookAtlas(tiny, pictures=[scene] * 20)
viewer = ReconstructionViewer(tiny)
viewer.show(scene)
"""
RUN = """
import tempfile
import time
from dataclasses import replace
from chameleon_lab.training.experiments import SIDE_BY_SIDE
from chameleon_lab.training.modules import Budget
from chameleon_widgets import ComparePanel, RunPanel
run = replace(SIDE_BY_SIDE, budget=Budget(steps=5000)).run(tempfile.mkdtemp())
while not run.history.records:
    time.sleep(0.05)
panels = RunPanel(run), ComparePanel([run])
"""
SCRIPTS = {"a reply under way and all that works with a tokenizer": CELLS, "panels of a run that trains": RUN}


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All of them at once, since most of their time is imports."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "widgets")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name, script in SCRIPTS.items()
    }
    yield running
    for script in running.values():
        script.kill()
        script.communicate()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_makes_widgets_ends(scripts: dict[str, subprocess.Popen[str]], name: str):
    _, errors = scripts[name].communicate(timeout=240)
    assert scripts[name].returncode == 0, errors
    assert "Traceback" not in errors and "terminate" not in errors, errors
