"""`make gpu` at toy size, so that no typo waits for the hour when a GPU is there."""

import json
import subprocess
import sys
import time
from pathlib import Path

import gpu
from gpu import PARTS

IN_A_PROCESS = {"tests", "trainings"}  # which start pytest


def test_every_part_runs_at_toy_size_and_the_report_has_its_rows(tmp_path: Path):
    chosen = [name for name in PARTS if name not in IN_A_PROCESS]
    assert gpu.main(["--toy", "--together", "--out", str(tmp_path), "--parts", ",".join(chosen)]) == 0
    results, page = json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()
    assert list(results["parts"]) == chosen and {"date", "card", "driver", "torch"} <= results["machine"].keys()
    for name, part in results["parts"].items():
        assert part["outcome"] == "done" and part["rows"], name
        assert not any("failed" in row for row in part["rows"].values()), part["rows"]
        assert all(f"| {row} |" in page for row in part["rows"])
    rows = results["parts"]
    assert all(row["resumes bitwise"] == "True" for row in rows["resume"]["rows"].values())
    assert rows["parity"]["rows"]["codes of 8 pictures"]["equal"] == 1
    assert rows["images"]["rows"]["float32, 1 at once"]["codes equal to CPU"] == 1
    assert {"bfloat16, 3 row(s), not recorded", "int8, 1 row, not recorded"} <= rows["decoding"]["rows"].keys()
    assert {"toy", "toy, compiled"} <= rows["training"]["rows"].keys()
    assert not list(tmp_path.glob(".*"))


SCRIPT = """
import sys, time
sys.path.insert(0, {folder!r})
import gpu
def good(sizes, report): report.add("one", number=1.5)
def bad(sizes, report):
    report.add("before", number=2)
    with report.attempt("inner"):
        raise ValueError("inner trouble")
    raise RuntimeError("last words")
def slow(sizes, report):
    report.add("begun", number=3)
    time.sleep(60)
gpu.PARTS = {{"bad": (bad, 60), "slow": (slow, 12), "good": (good, 60)}}
gpu.__file__ = __file__
sys.exit(gpu.main())
"""


def test_a_part_that_fails_or_takes_too_long_is_named_and_the_others_go_on(tmp_path: Path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(Path(gpu.__file__).parent)))
    out = tmp_path / "out"
    order = [sys.executable, str(script), "--toy", "--parts", "bad,slow,good", "--out", str(out)]
    began = time.monotonic()
    done = subprocess.run(order, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    parts = json.loads((out / "gpu.json").read_text())["parts"]
    assert [part["outcome"] for part in parts.values()] == ["failed (1)", "stopped after 12 s", "done"]
    assert parts["bad"]["rows"] == {"before": {"number": 2}, "inner": {"failed": "ValueError: inner trouble"}}
    assert parts["slow"]["rows"] == {"begun": {"number": 3}} and parts["good"]["rows"] == {"one": {"number": 1.5}}
    assert parts["bad"]["last words"][-1] == "RuntimeError: last words" and "last words" in (out / "gpu.md").read_text()
    assert time.monotonic() - began < 110
