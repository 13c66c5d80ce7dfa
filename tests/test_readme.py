"""What the README says can be run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from chameleon_lab.commands import main
from chameleon_lab.training import run as run_module

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^chameleon-lab ([^#\n]*)", README, re.MULTILINE)


def test_its_python_runs_from_top_to_bottom() -> None:
    names: dict[str, object] = {}
    try:
        for code in PYTHON:
            exec(compile(code, "README.md", "exec"), names)
    finally:
        for run in list(run_module._live.values()):  # otherwise the next test's run waits for the machine
            run.stop()
    assert "picture" in names


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(main, "work_of", lambda name: ran.append)
    assert main.main(shlex.split(command)) == 0
    assert len(ran) == 1


def test_its_links_and_pictures_are_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert not [target for target in targets if "://" not in target and not (ROOT / target).exists()]
