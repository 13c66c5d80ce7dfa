"""`make gpu` at toy size, so that no typo waits for the hour when a GPU is there."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.utils.flop_counter
from gpu import command
from gpu.cards import card_of
from gpu.parts import PARTS, flops_of_a_token
from gpu.report import Report
from gpu.sizes import TOY_SHAPE

from chameleon_lab.transformer import Transformer

IN_A_PROCESS = {"tests", "trainings"}  # which start pytest


def test_every_part_runs_at_toy_size_and_the_report_has_its_rows(tmp_path: Path):
    chosen = [name for name in PARTS if name not in IN_A_PROCESS]
    assert command.main(["--toy", "--together", "--out", str(tmp_path), "--parts", ",".join(chosen)]) == 0
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


CHILDREN = {
    "bad": "write({'rows': {'before': {'number': 2}}, 'remarks': []}); raise RuntimeError('last words')",
    "slow": "write({'rows': {'begun': {'number': 3}}, 'remarks': []}); time.sleep(60)",
    "good": "write({'rows': {'one': {'number': 1.5}}, 'remarks': ['a remark']})",
}


def test_a_part_that_fails_or_takes_too_long_is_named_and_the_others_go_on(tmp_path: Path, monkeypatch):
    def child(name: str, toy: bool, out: Path) -> list[str]:
        start = (
            f"import json, pathlib, time; write = lambda it: pathlib.Path({str(out / f'.{name}.json')!r}).write_text"
        )
        return [sys.executable, "-c", f"{start}(json.dumps(it)); {CHILDREN[name]}"]

    monkeypatch.setattr(command, "command", child)
    limits = {name: (None, 2.0 if name == "slow" else 60.0) for name in CHILDREN}
    monkeypatch.setattr(command, "PARTS", limits)
    assert command.main(["--toy", "--out", str(tmp_path)]) == 1
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    wanted = ["failed (1)", "stopped after 2 s", "done"]
    assert [part["outcome"] for part in parts.values()] == wanted
    assert parts["bad"]["rows"] == {"before": {"number": 2}} and parts["slow"]["rows"] == {"begun": {"number": 3}}
    assert parts["bad"]["last words"][-1] == "RuntimeError: last words"
    page = (tmp_path / "gpu.md").read_text()
    assert "last words" in page and "- a remark" in page and "| slow | stopped after 2 s |" in page
    assert command.main(["--toy", "--out", str(tmp_path), "--parts", "good", "--minutes", "0.01"]) == 1
    assert "| good | not begun: no time was left | 0 |" in (tmp_path / "gpu.md").read_text()


def test_what_fails_within_a_part_is_named_in_its_row(tmp_path: Path):
    report = Report(file=tmp_path / "part.json")
    with report.attempt("one"):
        raise ValueError("trouble\nand more")
    report.add("two", number=1)
    assert json.loads((tmp_path / "part.json").read_text())["rows"] == {
        "one": {"failed": "ValueError: trouble"},
        "two": {"number": 1},
    }


def test_cards_are_known_by_the_names_that_drivers_give():
    names = {
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA H200": 989,
        "NVIDIA L4": 121,
        "Tesla T4": None,
    }
    for name, teraflops in names.items():
        card = card_of(name)
        assert (card and card.teraflops) == teraflops


def test_the_work_of_a_training_step_is_that_of_its_products():
    counted = torch.utils.flop_counter.FlopCounterMode(display=False)
    model = Transformer(TOY_SHAPE)
    with counted:
        model(torch.zeros(1, 64, dtype=torch.long)).sum().backward()
    # The counter has attention's products whole, and here half of them are hidden.
    hidden = 6 * TOY_SHAPE.layers * TOY_SHAPE.heads * TOY_SHAPE.head_width * 64
    assert counted.get_total_flops() / 64 == pytest.approx(flops_of_a_token(TOY_SHAPE, 64) + hidden, rel=0.05)
