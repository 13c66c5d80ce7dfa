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
import tempfile
import time
import torch
import chameleon_widgets
from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.scenes import arrange
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.records import StopPiece, TextPiece
from chameleon_lab.studies import Study
from chameleon_widgets import (
    Arena, ChatCell, CodebookAtlas, CodeSurgery, Explainer, InfillCanvas, Inspector, ReconstructionViewer
)

def stream(document, **settings):
    matrix = torch.eye(600)
    for _ in range(100_000):
        matrix = matrix @ matrix
        yield TextPiece("a word ")
    yield StopPiece("end_turn")

def fill(document, seed):
    matrix = torch.eye(600)
    for _ in range(100_000):
        matrix = matrix @ matrix
    yield from ()

lab, scene = Chameleon.load("tiny", device="cpu"), arrange([("ring", "purple", "large")], "single", "tan").picture()
idle, cell = ChatCell(stream), ChatCell(stream)
cell.send('go on')
while not len(cell.document): time.sleep(0.05)
tiny, words = lab.tokenizer.image, Document.of("draw a red circle", EndTurn())
canvas = InfillCanvas(fill, tiny, Document.of("a caption", scene))
canvas._handle_custom_msg({"kind": "hide", "key": canvas._now.key, "segment": 0, "parts": [0]}, [])
canvas._handle_custom_msg({"kind": "fill", "count": 2, "seed": 1}, [])
study = Study.of_pairs("a study", [words], {name: [words] for name in ("one", "two")})
looks = Explainer(lab.walk(words, seed=5)), Inspector(lab.inspect(words)), Arena(tempfile.mkdtemp(), "me", study)
surgery, atlas = CodeSurgery(tiny, scene), CodebookAtlas(tiny, pictures=[scene] * 20)
viewer = ReconstructionViewer(tiny)
viewer.show(scene)
made = {type(each).__name__ for each in (idle, canvas, *looks, surgery, atlas, viewer)}
assert made == set(chameleon_widgets.__all__) - {"RunPanel", "ComparePanel"}, made
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
SCRIPTS = {"a reply and fillings under way and all that works with a model": CELLS, "panels of a run that trains": RUN}


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
