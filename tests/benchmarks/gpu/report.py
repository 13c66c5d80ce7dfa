"""What a part measured, as rows and as a page."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import math
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


@dataclass
class Report:
    """What one part measured: rows of a table, each a name and its figures, and remarks."""

    rows: dict[str, dict[str, float | str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    file: Path | None = None

    def add(self, name: str, **figures: float | str | bool) -> None:
        """Adds figures to the row of that name, and writes what there is: a part that is killed leaves its rows."""
        readable = {
            key.replace("_", " "): str(value) if isinstance(value, bool) else value for key, value in figures.items()
        }
        self.rows.setdefault(name, {}).update(readable)
        print(f"  {name}: " + ", ".join(f"{key} {brief(value)}" for key, value in readable.items()), flush=True)
        self.write()

    def remark(self, words: str) -> None:
        self.remarks.append(words)
        print(f"  {words}", flush=True)
        self.write()

    def write(self) -> None:
        if self.file is not None:
            put(self.file, json.dumps({"rows": self.rows, "remarks": self.remarks}, allow_nan=True))

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """What fails inside is named in a row, and the part goes on."""
        try:
            yield
        except Exception as error:
            self.add(name, failed=f"{type(error).__name__}: {(str(error) or '-').splitlines()[0][:200]}")
            logging.getLogger(__name__).exception("%s failed", name)
        finally:
            if torch.cuda.is_available():
                gc.collect()
                torch.cuda.empty_cache()


def brief(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def put(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def machine() -> dict[str, Any]:
    """The date, and what it all ran on."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        "card": "none: toy sizes on a CPU",
        "driver": "none",
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "Python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["card"] = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
            facts["driver"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    return facts


def markdown(results: dict[str, Any]) -> str:
    """The whole report as one page: a table of the machine and the parts, and a table for each part."""
    facts = results["machine"]
    lines = ["# What a GPU makes of it", "", *(f"- {key}: {value}" for key, value in facts.items()), ""]
    lines += ["| part | outcome | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {part['outcome']} | {part['seconds']:.0f} |" for name, part in results["parts"].items()]
    lines += ["", *(f"- {line}" for line in verdicts(results))]
    for name, part in results["parts"].items():
        columns = list(dict.fromkeys(key for row in part["rows"].values() for key in row))
        lines += ["", f"## {name}", ""]
        if columns:
            lines += [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for label, row in part["rows"].items():
            cells = (brief(row[key]).replace("|", "/") if key in row else "" for key in columns)
            lines.append(f"| {label} | {' | '.join(cells)} |")
        lines += ["", *(f"- {words}" for words in part["remarks"])] if part["remarks"] else []
        if words := part.get("last words"):
            lines += ["", "```", *words, "```"]
    return "\n".join(lines) + "\n"


def verdicts(results: dict[str, Any]) -> list[str]:
    """The aims, each beside what was measured; nothing where nothing was."""
    rows = {(part, name): row for part, each in results["parts"].items() for name, row in each["rows"].items()}

    def figures(part: str, key: str, begin: str = "") -> list[float]:
        """Of the rows of a part whose names begin so."""
        chosen = (row.get(key) for (place, name), row in rows.items() if place == part and name.startswith(begin))
        return [each for each in chosen if isinstance(each, int | float)]

    lines = list[str]()
    for words, measured, best, aim in (
        ("share of the stated bandwidth, best", figures("decoding", "share of stated"), max, "at least 0.7"),
        ("seconds a guided picture", figures("picture", "seconds", "guided"), min, "at most 6"),
        ("MFU, best", figures("training", "MFU"), max, "at least 0.5"),
    ):
        if measured:
            lines.append(f"{words}: {best(measured):.2f} (aim: {aim})")
    return lines
