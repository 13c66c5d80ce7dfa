"""What is decided as the package is imported: how the threads of torch wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GNU = list(Path(torch.__file__).parent.glob("lib/libgomp*"))


def output(program: str, **variables: str) -> str:
    """What a fresh Python says, OpenMP's settings included, in an environment that sets nothing else of OpenMP's."""
    kept = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    environment = kept | {"OMP_DISPLAY_ENV": "verbose", "OMP_NUM_THREADS": "2"} | variables
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@pytest.mark.skipif(not GNU, reason="needs GNU's OpenMP, which says what it read")
@pytest.mark.parametrize(("chosen", "spins"), [({}, 0), ({"GOMP_SPINCOUNT": "77"}, 77)], ids=["nothing", "a count"])
def test_threads_sleep_while_they_wait_unless_a_person_says_otherwise(chosen: dict[str, str], spins: int) -> None:
    assert f"GOMP_SPINCOUNT = '{spins}'" in output("import chameleon_lab, torch", **chosen)


@pytest.mark.skipif(not GNU, reason="teams count in GNU's OpenMP")
def test_where_torch_came_first_a_second_team_outnumbers_the_cores() -> None:
    names = "print(*[each.name for each in threading.enumerate()])"
    assert "second OpenMP team" in output(f"import threading, torch, chameleon_lab; {names}")
    assert "second OpenMP team" not in output(f"import threading, chameleon_lab, torch; {names}")
