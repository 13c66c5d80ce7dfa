"""A person's own fixes, corpora, rules and quantizers, from a Python file or a cell."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from chameleon_lab.commands.main import main
from chameleon_lab.evaluation import stability
from chameleon_lab.evaluation.additions import Additions, ReadOnlyMonitor, read_additions
from chameleon_lab.monitors.alarms import Beyond
from chameleon_lab.stability import FIXES, QueryKeyNorm, ZLoss
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import PAIRS
from chameleon_lab.training.experiments import LAB, PRESETS, scale, sensitivity, variations

FILE = '''
from dataclasses import dataclass
from chameleon_lab.stability import FIXES
from chameleon_lab.training.data import PAIRS
from chameleon_lab.training.experiments import LAB as model
from torch import nn
from chameleon_lab.evaluation.competition import OneModality
from chameleon_lab.monitors.alarms import Beyond
from chameleon_lab.stability import QueryKeyNorm, ZLoss, attentions

@dataclass(frozen=True)
class KeyNorm:
    """RMSNorm of keys alone."""
    eps: float = 1e-5
    def install(self, model):
        for attention in attentions(model):
            model.fill(attention, "key_norm", nn.RMSNorm(attention.head_width, self.eps), self)

@dataclass(frozen=True)
class Wide:
    size_needed: int
    def install(self, model): ...

@dataclass(frozen=True)
class InputLength:
    """A monitor: the length of the embedding's rows that a step reads."""
    every: int = 4
    def watch(self, moment):
        outputs = moment.record("embedding")
        yield
        return {"input_norm": outputs["embedding"].norm(dim=-1).mean()}

both = [KeyNorm(1e-3), ZLoss(1e-3)]
words = OneModality("text")
grows = Beyond("output_norm", 3.0)
_hidden = QueryKeyNorm()
'''


MAKERS = """
from __future__ import annotations
from functools import partial
from chameleon_lab.tokenizers.quantizers import Quantizer, VectorQuantizer
gentle = partial(VectorQuantizer, commitment=0.1)
def adapted(size, width) -> Quantizer:
    return VectorQuantizer(size, width)
def helper(size, width): ...
one = VectorQuantizer(512, 16)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_fix.py"
    path.write_text(FILE)
    return path


def test_a_file_s_names_are_sorted_by_what_they_are(file):
    additions = read_additions(file)
    assert list(additions.fixes) == ["both"] and list(additions.corpora) == ["words"]
    assert list(additions.rules) == ["grows"] and not additions.quantizers
    assert str(additions) == "fixes: both; corpora: words; rules: grows; monitors: input_length"
    file.write_text(FILE.replace("both = [KeyNorm(1e-3), ZLoss(1e-3)]", ""))
    file.write_text(file.read_text() + "PAIRS = PAIRS\n")  # bound by the file itself, it is meant
    assert list(read_additions(file).corpora) == ["PAIRS", "words"]
    assert list(read_additions(file).fixes) == ["key_norm"]  # a class without an instance is made; `Wide` cannot be


def test_a_quantizer_s_class_is_taken(file):
    file.write_text(
        "from chameleon_lab.tokenizers.quantizers import VectorQuantizer\nclass Mine(VectorQuantizer): ...\n"
    )
    additions = read_additions(file)
    assert list(additions.quantizers) == ["Mine"] and not additions.fixes
    assert additions.quantizers["Mine"](8, 4).size == 8
    file.write_text(MAKERS)
    additions = read_additions(file)
    assert list(additions.quantizers) == ["gentle", "adapted"] and not additions.fixes
    assert [make(8, 4).size for make in additions.quantizers.values()] == [8, 8]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("1 / 0", "fails: ZeroDivisionError"),
        ("x = 3", "defines no fix"),
        ("class A:\n def install(self, m): ...\n def tune(self, r): ...\na = A()", "exactly one"),
    ],
)
def test_a_file_without_use_is_refused_in_words(tmp_path, source, words):
    (tmp_path / "wrong.py").write_text(source)
    with pytest.raises(ValueError, match=words):
        read_additions(tmp_path / "wrong.py")
    with pytest.raises(ValueError, match="is missing"):
        read_additions(tmp_path / "missing.py")


def test_a_file_imports_what_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "norms_of_mine.py").write_text("from chameleon_lab.stability import ZLoss\npenalty = ZLoss(1e-3)\n")
    (tmp_path / "with_help.py").write_text("import norms_of_mine\nmine = norms_of_mine.penalty\n")
    assert read_additions(tmp_path / "with_help.py").fixes == {"mine": (ZLoss(1e-3),)}


def test_own_fixes_are_a_variation_of_every_preset_and_see_the_same_data():
    mine = {"mine": QueryKeyNorm(), "two": (QueryKeyNorm(), ZLoss(1e-3))}
    additions = Additions(fixes=mine)
    for name in stability.NAMES:
        runs = stability.preset(name, 11, additions)
        bare = {key: each for key, each in runs.items() if key[1] not in mine}
        assert bare == stability.preset(name, 11)
        for setting in {setting for setting, kind in runs if kind in mine}:
            for kind in mine:
                assert QueryKeyNorm() in runs[setting, kind].model.fixes
                assert runs[setting, kind].data == runs[setting, "baseline"].data and runs[setting, kind].seed == 11
    assert set(sensitivity(fixes=mine)) >= set(mine) and set(scale(fixes=mine)["64x2"]) >= set(mine)
    with pytest.raises(ValueError, match="baseline is a variation of the lab's own"):
        variations(LAB, fixes={"baseline": ZLoss()})


@dataclass(frozen=True)
class Elsewhere:
    """A corpus of one's own: the shipped pairs in fewer rows."""

    rows: int = 2

    def open(self, seed, steps):
        return replace(PAIRS, rows=self.rows).open(seed, steps)


class NothingApart(Elsewhere):
    def open(self, seed, steps):
        return replace(super().open(seed, steps), held_out=())


def test_the_command_takes_seeds_and_a_file_and_trains_an_edited_fix_anew(file, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    monkeypatch.setitem(PRESETS, "stress_ramp", replace(PRESETS["stress_ramp"], budget=Budget(steps=10), checkpoints=0))
    file.write_text(FILE.replace('words = OneModality("text")', ""))
    folder = tmp_path / "runs"
    arguments = ["stability", "stress_ramp", "--seeds", "11,", "--from", str(file), "--folder", str(folder)]
    assert main(arguments) == 0
    assert "is executed, since you named it" in caplog.text
    assert "fixes: both; rules: grows; monitors: input_length" in caplog.text
    ended = stability.read_presets(folder / "outcomes.jsonl")
    assert [each.variation for each in ended] == ["baseline", "query_key_norm", "norms_and_z_loss", "both"]
    assert {each.seed for each in ended} == {11}
    assert all(each.readings["input_norm"] > 0 for each in ended)  # what a monitor of one's own reads, of every run
    tables = (folder / "outcomes.md").read_text()
    assert "| stress_ramp | both | 1 |" in tables and "| grows | " in tables and "nothing: one seed" in tables
    assert "| preset | variation | seeds | input norm |" in tables
    before = set(folder.glob("*"))
    file.write_text(file.read_text().replace("KeyNorm(1e-3)", "KeyNorm(1e-2)"))
    monkeypatch.delitem(__import__("sys").modules, "my_fix")
    assert main(arguments) == 0
    (new,) = set(folder.glob("*")) - before
    assert "both" in new.name
    for wrong in ("x", "0", "1,1"):
        with pytest.raises(SystemExit):
            main(["stability", "--seeds", wrong])
        assert "--seeds" in capsys.readouterr().err


def test_corpora_of_one_s_own_take_the_place_of_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "stress_ramp", replace(PRESETS["stress_ramp"], budget=Budget(steps=10), checkpoints=0))
    additions = Additions(corpora={"mine": Elsewhere()}, rules={"any": Beyond("loss", -1.0, checks=1)})
    ended = list(stability.outcomes(tmp_path, ["stress_ramp"], [3], additions))
    assert {each.corpus for each in ended} == {"mine"} and {each.first_alarms["any"] for each in ended} == {0}
    assert "| stress_ramp on mine | baseline | 1 |" in stability.preset_tables(ended)
    apart = Additions(corpora={"mine": NothingApart()})
    with pytest.raises(ValueError, match="mine sets no documents apart"):  # all its losses would count as the first
        next(stability.outcomes(tmp_path, ["sensitivity"], [3], apart))
    with pytest.raises(ValueError, match="is no corpus"):
        Additions(corpora={"wrong": 3})  # pyright: ignore[reportArgumentType]


def test_every_fix_of_the_lab_is_found_as_one_in_a_file(tmp_path):
    lines = [f"{name} = FIXES[{name!r}]" for name in FIXES]
    (tmp_path / "every_fix.py").write_text(
        "\n".join(
            ["from chameleon_lab.stability import FIXES as _all"] + [line.replace("FIXES", "_all") for line in lines]
        )
    )
    assert set(read_additions(tmp_path / "every_fix.py").fixes) == set(FIXES)


def test_what_acts_around_a_step_is_a_monitor_unless_it_says_that_it_changes_weights(tmp_path):
    clip = """
@dataclass(frozen=True)
class Clip:
    every: int = 1
    def watch(self, moment):
        yield
        for weight in moment.model.parameters():
            weight.clamp_(-1, 1)
        return {"clipped": 1.0}
"""
    (tmp_path / "clip.py").write_text("from dataclasses import dataclass\n" + clip)
    (monitor,) = read_additions(tmp_path / "clip.py").monitors.values()
    watch = ReadOnlyMonitor(monitor).watch(SimpleNamespace(model=nn.Linear(2, 2)))  # pyright: ignore
    with torch.no_grad(), pytest.raises(ValueError, match=r"changes weights.*`changes_weights = True`"):
        list(watch)
    fix = (tmp_path / "clip.py").read_text().replace("    every", "    changes_weights = True\n    every")
    (tmp_path / "clip_fix.py").write_text(fix)
    additions = read_additions(tmp_path / "clip_fix.py")
    assert list(additions.fixes) == ["clip"] and not additions.monitors
