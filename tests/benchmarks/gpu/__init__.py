"""Everything that needs a GPU, in one command of under nine minutes: `make gpu`, or `python3 tests/benchmarks/gpu`.

- `cards`, `sizes`: what makers say of their cards; the shapes that are run, at their real and at their toy size
- `report`: what a part measured, and the page of all parts
- `measuring`: times, bandwidth, and models of random weights
- `parts`: what is run
- `command`: each part in a process of its own
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PATHS = [str(ROOT / each) for each in ("", "widgets", "tests")]
sys.path[:0] = [path for path in PATHS if path not in sys.path]  # no installation is needed


def environment() -> dict[str, str]:
    """Of the processes that are started here."""
    paths = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    fixed = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **fixed, "PYTHONPATH": paths}
