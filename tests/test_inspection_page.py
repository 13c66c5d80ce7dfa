"""The recipes of docs/inspection.md run from top to bottom, each short, on the shipped model."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs/inspection.md").read_text()
RECIPES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_its_recipes_run_and_say_what_they_claim():
    names: dict[str, object] = {}
    for code in RECIPES:
        exec(compile(code, "docs/inspection.md", "exec"), names)
    look, patch, parts = names["look"], names["patch"], names["parts"]
    logit = look.lens(look.depth[0] - 1)[patch - 1, look.tokens[patch]]  # pyright: ignore
    assert sum(part.logit for part in parts) == pytest.approx(logit, abs=1e-3)  # pyright: ignore
    assert names["row"].sum() == pytest.approx(1, abs=1e-4)  # pyright: ignore
    assert names["changes"].shape == (6, 2) and len(names["rows"]) == len(look)  # pyright: ignore


def test_its_recipes_are_short():
    assert all(len([line for line in code.splitlines() if line and "import" not in line]) <= 5 for code in RECIPES)
