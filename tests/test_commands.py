"""The commands as a person meets them: help at once, without torch, and options that name what there is."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import nbformat
import pytest
from support import failed

from chameleon_lab.checkpoints import formats
from chameleon_lab.commands import demo, loading, main, names, parsers
from chameleon_lab.corpora.archives import ALL_READERS
from chameleon_lab.evaluation import stability
from chameleon_lab.evaluation.scenes import PROMPT_KINDS
from chameleon_lab.generation.grammar import MODALITY_SWITCHES
from chameleon_lab.generation.guidance import Guidance
from chameleon_lab.generation.settings import Settings
from chameleon_lab.planner import GUIDANCE, PRECISIONS, WEIGHTS
from chameleon_lab.published import PUBLISHED
from chameleon_lab.quantization import BITS
from chameleon_lab.tokenizers.preparation import preparations
from chameleon_lab.training.alignment import ALIGNMENTS
from chameleon_lab.training.experiments import EXPERIMENTS
from chameleon_lab.training.image_experiments import IMAGE_EXPERIMENTS
from chameleon_lab.training.own.plan import OWN_SIZES
from chameleon_lab.training.pipeline import MODELS

ROOT = Path(__file__).parent.parent
TABLES = {
    "MODEL_NAMES": MODELS,
    "IMAGE_EXPERIMENT_NAMES": IMAGE_EXPERIMENTS,
    "EXPERIMENT_NAMES": EXPERIMENTS,
    "ALIGNMENT_NAMES": ALIGNMENTS,
    "READER_NAMES": ALL_READERS,
    "PUBLISHED_NAMES": PUBLISHED,
    "BIT_NAMES": BITS,
    "SIZE_NAMES": OWN_SIZES,
    "DTYPE_NAMES": loading.WEIGHT_DTYPES,
    "LAYOUT_NAMES": formats.BY_NAME,
    "FORMAT_NAMES": (*formats.FORMATS, "gguf"),
    "GGUF_WEIGHT_NAMES": tuple(formats.GGUF_WEIGHTS),
    "PROMPT_KIND_NAMES": PROMPT_KINDS,
    "PRESET_NAMES": stability.NAMES,
    "PRECISION_NAMES": PRECISIONS,
    "PLANNED_WEIGHTS": WEIGHTS,
    "GUIDANCE_NAMES": GUIDANCE,
    "MODALITY_NAMES": MODALITY_SWITCHES,
    "POLICY_NAMES": preparations(8, 8),
}


@pytest.mark.parametrize("name", TABLES)
def test_names_are_those_of_the_table(name: str):
    assert getattr(names, name) == tuple(TABLES[name])


def test_every_table_of_names_is_compared():
    assert set(TABLES) == {name for name in vars(names) if name.isupper()} - {"SETTING_OPTIONS"}


def test_settings_are_offered_as_they_are_described():
    expected = {}
    for name, hint in get_type_hints(Settings, include_extras=True).items():
        kind, about = get_args(hint)
        number = int if int in (kind, *get_args(kind)) else float
        expected[name] = (names.number_or_guidance if Guidance in get_args(kind) else number, about)
    assert expected == names.SETTING_OPTIONS


def test_every_command_has_its_work():
    assert all(callable(main.work_of(name)) for name in parsers.COMMAND_TABLE)


def test_options_import_nothing_heavy():
    """Help is there before a person wonders, since it waits for no library."""
    code = """import sys
from chameleon_lab import shell
from chameleon_lab.commands import main
from chameleon_lab.commands.parsers import COMMAND_TABLE, command_parser
command_parser().format_help()
for name in COMMAND_TABLE:
    try:
        command_parser().parse_args([name, "--help"])
    except SystemExit:
        pass
print(*sys.modules, file=sys.stderr)"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in script.stderr.split()}
    assert not packages & {"torch", "numpy", "PIL", "lightning", "yaml", "sentencepiece", "tokenizers"}


def test_a_demo_is_a_notebook_with_the_chat_of_the_model(monkeypatch, tmp_path, lab):
    started = []

    def server(command, check):
        started.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(demo.subprocess, "run", server)
    lab.save(tmp_path / "run" / "model")
    kept = tmp_path / "chat.ipynb"
    arguments = ["demo", str(tmp_path / "run"), "--no-browser", "--notebook", str(kept)]
    assert main.main(arguments) == 0
    assert started[0][1:4] == ["-m", "jupyterlab", str(kept)] and "--no-browser" in started[0]
    notebook = nbformat.read(kept, as_version=4)
    nbformat.validate(notebook)
    names: dict[str, object] = {}
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    exec("\n".join(code), names)
    assert str(tmp_path / "run" / "model") in code[0]


def test_a_demo_of_nothing_or_over_a_file_is_one_line(capsys, tmp_path, lab):
    lab.save(tmp_path / "model")
    (tmp_path / "chat.ipynb").write_text("mine")
    assert "no model folder" in failed(capsys, "demo", str(tmp_path / "nowhere"))
    model, notebook = str(tmp_path / "model"), str(tmp_path / "chat.ipynb")
    assert "there already" in failed(capsys, "demo", model, "--notebook", notebook)
    assert (tmp_path / "chat.ipynb").read_text() == "mine"
