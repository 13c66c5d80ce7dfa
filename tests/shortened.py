"""Notebooks as the tests run them: each with what stands in it, and less of it.

CHAMELEON_QUICK=1, which the notebooks know, takes the first minutes off; what is left of numbers of steps, prompts and
pictures is made smaller here. No cell is left out.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))

WITH_WIDGETS = [path for path in NOTEBOOKS if "from chameleon_widgets import" in path.read_text()]
"""Those that show more than words and figures: widgets, which need a page."""

FEWER: dict[str, dict[str, str]] = {
    "00": {"plt.subplots(1, 6, figsize": "plt.subplots(1, 3, figsize"},
    "01": {"hard_cases(256)": "hard_cases(128)"},
    "02": {"range(300)": "range(100)"},
    "03": {"unseen_scenes(200, seed=1)": "unseen_scenes(60, seed=1)"},
    "04": {"minutes=0.2 if quick": "minutes=0.05 if quick"},
    "05": {"steps = 20 if quick": "steps = 4 if quick", "count = 40 if quick": "count = 20 if quick"},
    "08": {'for weights in ("bfloat16", "int8", "int4"):': 'for weights in ("int8",):'},
    "09": {"PROMPTS = 20 if": "PROMPTS = 12 if"},
    "12": {"DOCUMENTS = 12": "DOCUMENTS = 6"},
    "13": {
        "count = 4 if quick": "count = 2 if quick",
        '("cat", "strawberry", "rocket", "red heart", "pizza")': '("cat", "rocket")',
        "steps = [0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0]": "steps = [0.0, 0.5, 1.0]",
    },
    "15": {"count = 3 if": "count = 2 if", "for drafts in (0, 3, 7, 15, 31):": "for drafts in (0, 7):"},
    "16": {'prompts("two things", 4 if': 'prompts("two things", 3 if'},
    "17": {"sides, count = (2, 3, 4, 5, 6, 8), 4 if quick": "sides, count = (2, 8), 2 if quick"},
    "19": {
        "steps=8 if quick": "steps=3 if quick",
        "in BALANCES.items():": 'in [("even", BALANCES["even"])]:',
        "balance_prompts(kind, 24)": "balance_prompts(kind, 6)",
    },
    "20": {"(4 if quick": "(2 if quick", "GRPO(group=4, prompts=2) if": "GRPO(group=2, prompts=2) if"},
    "21": {"held_out=64": "held_out=16"},
}
"""Number of a notebook to words in it and what the tests put in their place."""


def fewer_steps(code: str) -> str:
    """The code of a cell with a twentieth of its hundreds of steps and a sixth of its tens, and what starts at one of
    them as much earlier."""

    def fewer(match: re.Match[str]) -> str:
        steps = int(match[2])
        return f"{match[1]}{steps // (20 if steps >= 100 else 6)}"

    return re.sub(r"(\b(?:start_step=|steps=|shorter\(\w+, ))(\d\d+)\b", fewer, code)


def shortened(path: Path) -> nbformat.NotebookNode:
    """A notebook as the tests run it. Raises ValueError where words of `FEWER` no longer stand in it."""
    notebook = nbformat.read(path, as_version=4)
    changes = FEWER.get(path.stem[:2], {})
    for words in changes:
        if not any(words in cell.source for cell in notebook.cells):
            raise ValueError(f"{path.name} no longer has {words!r}: say in tests/shortened.py what tests run instead.")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []  # pictures of earlier runs, which a page would draw first
        for words, others in changes.items():
            cell.source = cell.source.replace(words, others)
        cell.source = fewer_steps(cell.source)
    return notebook
