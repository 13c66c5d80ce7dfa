"""Runs the parts, each in a process of its own with a time limit of its own.

One that fails is named in the report, with its last words, and the others go on. After each part `gpu.json` and
`gpu.md` are written anew, so that a command that is killed leaves what it measured. Without a GPU the same parts run at
toy size: their figures mean nothing, their code is proved. See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gpu import ROOT, environment
from gpu.parts import PARTS
from gpu.report import Report, machine, markdown, put
from gpu.sizes import REAL, TOY

MINUTES = 9.0


def run_part(name: str, toy: bool, file: Path) -> None:
    """Runs one part here; what it measures is in the file, whatever happens afterwards."""
    report = Report(file=file)
    report.write()
    work, _ = PARTS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, about loaders and loggers
        work(TOY if toy else REAL, report)


def command(name: str, toy: bool, out: Path) -> list[str]:
    """What runs one part in a process of its own."""
    here = str(Path(__file__).resolve().parent)
    return [sys.executable, here, "--inside", name, "--out", str(out), *(["--toy"] if toy else [])]


def run_apart(name: str, toy: bool, out: Path, limit: float) -> dict[str, Any]:
    """Runs one part in a process of its own: its rows, how it ended, and its last words where it failed."""
    file, log = out / f".{name}.json", out / f"{name}.log"
    file.unlink(missing_ok=True)
    order = command(name, toy, out)
    started = time.monotonic()
    with log.open("w") as words:
        child = subprocess.Popen(
            order, cwd=ROOT, env=environment(), stdout=words, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = child.wait(limit)
            outcome = "done" if code == 0 else f"failed ({code})"
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, 9)  # with the processes that it started
            child.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            outcome = f"stopped after {limit:.0f} s"
    result: dict[str, Any] = {"outcome": outcome, "seconds": time.monotonic() - started, "rows": {}, "remarks": []}
    if file.exists():
        result |= json.loads(file.read_text())
        file.unlink()
    if outcome != "done":
        result["last words"] = log.read_text().strip().splitlines()[-25:]
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts; 0 where all of them were done, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="gpu", description="Runs all that needs a GPU and writes a report.")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="the folder of the report")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="limit of the whole")
    parser.add_argument("--toy", action="store_true", help="toy sizes, which a CPU has anyway")
    parser.add_argument("--together", action="store_true", help="all parts in this one process, without limits")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    chosen = [name.strip() for name in asked.parts.split(",") if name.strip()]
    if strange := [name for name in chosen if name not in PARTS]:
        parser.error(f"no part is called {', '.join(strange)}; there are {', '.join(PARTS)}")
    toy = asked.toy or not torch.cuda.is_available()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.inside:
        run_part(asked.inside, toy, asked.out / f".{asked.inside}.json")
        return 0
    results: dict[str, Any] = {"machine": machine(), "toy": toy, "parts": {}}
    deadline = time.monotonic() + 60 * asked.minutes
    for name in chosen:
        left = deadline - time.monotonic()
        print(f"{name} ...", flush=True)
        if left < 5:
            part: dict[str, Any] = {"outcome": "not begun: no time was left", "seconds": 0.0, "rows": {}, "remarks": []}
        elif asked.together:
            part = run_together(name, toy, asked.out)
        else:
            part = run_apart(name, toy, asked.out, min(PARTS[name][1], left))
        results["parts"][name] = part
        print(f"{name}: {part['outcome']}, {part['seconds']:.0f} s", flush=True)
        put(asked.out / "gpu.json", json.dumps(results, indent=1) + "\n")
        put(asked.out / "gpu.md", markdown(results))
    print(f"\n{markdown(results)}\nIn {asked.out}/gpu.json and gpu.md.", flush=True)
    return int(any(part["outcome"] != "done" for part in results["parts"].values()))


def run_together(name: str, toy: bool, out: Path) -> dict[str, Any]:
    """Runs one part in this process, for tests, which have no time for one each."""
    file, started, outcome, words = out / f".{name}.json", time.monotonic(), "done", list[str]()
    try:
        run_part(name, toy, file)
    except Exception as error:
        outcome, words = "failed (here)", [f"{type(error).__name__}: {error}"]
    result = {"outcome": outcome, "seconds": time.monotonic() - started, **json.loads(file.read_text())}
    file.unlink()
    return result | ({"last words": words} if words else {})
