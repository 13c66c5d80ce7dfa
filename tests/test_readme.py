"""What the README says can be run."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lab.commands import main
from chameleon_lab.commands.parsers import command_parser
from chameleon_lab.training import experiments
from chameleon_lab.training import run as run_module
from chameleon_lab.training.budget import Budget

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^chameleon-lab ([^#\n]*)", README, re.MULTILINE)


def test_its_python_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, in an empty folder; what it trains is a few steps of it."""
    monkeypatch.chdir(tmp_path)  # its runs go below the folder where one is, and one that is there would not be trained
    monkeypatch.setattr(experiments, "SIDE_BY_SIDE", replace(experiments.SIDE_BY_SIDE, budget=Budget(steps=12)))
    names: dict[str, object] = {}
    try:
        for code in PYTHON:
            exec(compile(code, "README.md", "exec"), names)
    finally:
        for run in list(run_module._live.values()):  # otherwise the next test's run waits for the machine
            run.stop()
            run.wait(60)
    assert "picture" in names
    assert len(names["history"].records) == 12  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(main, "work_of", lambda name: ran.append)
    assert main.main(shlex.split(command)) == 0
    assert len(ran) == 1


def test_other_pages_name_options_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Words in capitals stand for a person's own, and a command may be cut short: only what is no option is wrong."""
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "data").rglob("README.md")]
    written = [re.findall(r"(?:`|^)chameleon-lab ([a-z][^`#\n]*)", page.read_text(), re.MULTILINE) for page in pages]
    assert sum(map(len, written)) > 30
    for page, commands in zip(pages, written, strict=True):
        for command in commands:
            with suppress(SystemExit):
                command_parser().parse_args(shlex.split(command))
            assert "unrecognized arguments" not in capsys.readouterr().err, f"{page.name}: {command}"


def test_its_links_and_pictures_are_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert not [target for target in targets if "://" not in target and not (ROOT / target).exists()]
