"""Plain values say what a thing is, and the source of a person's own classes is part of that."""

import functools
import importlib
import json
import linecache
import sys
from dataclasses import dataclass, replace
from enum import Enum
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chameleon_lab.optimization import Cosine, Recipe
from chameleon_lab.plain import described, discrepancies, fingerprint, plain_values
from chameleon_lab.stability import QueryKeyNorm
from chameleon_lab.tokenizers.quantizers import VectorQuantizer
from chameleon_lab.training.image_experiments import folder_of_pictures

CELLS = count()


def cell(source: str, name: str = "thing", linked: bool = True, **names: Any) -> Any:
    """What `name` is after a notebook's cell was run; `linked` as Jupyter does it, so that the source is found."""
    file = f"<cell {next(CELLS)}>"
    if linked:
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    space = {"__name__": "__main__", "dataclass": dataclass, "functools": functools, **names}
    exec(compile(source, file, "exec"), space)
    return space[name]


FIX = """
SCALE = 2

def helper(value):
    return value + 1

class Base:
    def above(self):
        return 0

@dataclass(frozen=True)
class Fix(Base):
    eps: float = 0.1
    every = 1

    def install(self, model):
        inner = lambda: 3
        return helper(model) * SCALE + inner()

    @staticmethod
    def aside():
        return 5

    @property
    def half(self):
        return self.eps / 2

thing = Fix()
"""
EDITS = {
    "the method": ("helper(model)", "helper(-model)"),
    "a helper that it calls": ("value + 1", "value + 2"),
    "a constant that it reads": ("SCALE = 2", "SCALE = 3"),
    "a class above it": ("return 0", "return 1"),
    "an attribute of the class": ("every = 1", "every = 2"),
    "an inner function": ("lambda: 3", "lambda: 4"),
    "a static method": ("return 5", "return 6"),
    "a property": ("self.eps / 2", "self.eps / 3"),
    "the name": ("Fix", "Fixed"),
    "a field's default, where it is used": ("0.1", "0.2"),
}
COSMETICS = {
    "a comment": ("        inner", "        # why\n        inner"),
    "blank lines": ("    @property", "\n\n    @property"),
    "spaces": ("value + 1", "value  +  1"),
    "brackets": ("return 0", "return (0)"),
    "a docstring of a method": ("        return 5", '        """Five."""\n        return 5'),
    "a docstring of the class": ("    eps:", '    """A fix."""\n\n    eps:'),
    "a line break": ("* SCALE + inner()", "* SCALE + \\\n            inner()"),
    "what it does not use": ("thing = Fix()", "OTHER = 7\nthing = Fix()"),
    "a global called like an attribute": ("thing = Fix()", "eps = 7\nthing = Fix()"),
}


@pytest.mark.parametrize("linked", [True, False], ids=["source", "no source"])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_cell_is_another_experiment(edit, linked):
    assert edit[0] in FIX
    before, again, after = (cell(source, linked=linked) for source in (FIX, FIX, FIX.replace(*edit)))
    assert fingerprint(before) == fingerprint(again) != fingerprint(after)
    (difference, *_) = discrepancies(plain_values(before), plain_values(after))
    assert "source of Fix" in difference or "Fixed" in difference or "0.1" in difference


@pytest.mark.parametrize("edit", COSMETICS.values(), ids=COSMETICS)
def test_comments_docstrings_and_line_breaks_do_not_count(edit):
    assert edit[0] in FIX
    assert fingerprint(cell(FIX)) == fingerprint(cell(FIX.replace(*edit)))


CONSTANTS = {
    "a list": ("[1]", "[2]", "KEPT[0]"),
    "a mapping": ("{'a': 1}", "{'a': 2}", "KEPT['a']"),
    "a set": ("{1}", "{2}", "1 in KEPT"),
    "an array": ("np.array([1])", "np.array([2])", "KEPT[0]"),
    "a tensor": ("torch.tensor([1])", "torch.tensor([2])", "KEPT[0]"),
    "a sparse tensor": ("torch.ones(2).to_sparse()", "torch.ones(3).to_sparse()", "KEPT"),
    "a range": ("range(1)", "range(2)", "len(KEPT)"),
    "a complex number": ("1j", "2j", "abs(KEPT)"),
    "a path": ("Path('a')", "Path('b')", "KEPT.name"),
    "a library's function": ("np.sin", "np.cos", "KEPT(1)"),
    "a dtype": ("torch.float32", "torch.float64", "KEPT"),
    "functions in a mapping": ("{'f': lambda: 1}", "{'f': lambda: 2}", "KEPT['f']()"),
    "an instance": ("Own(lambda self: 1, 1)", "Own(lambda self: 1, 2)", "KEPT.value"),
    "an instance's class": ("Own(lambda self: 1, 1)", "Own(lambda self: 2, 1)", "KEPT.go()"),
    "a method of an instance": ("Own(lambda self: 1, 1).go", "Own(lambda self: 2, 1).go", "KEPT()"),
    "an enumeration": ("Enum('E', {'A': 1})", "Enum('E', {'A': 2})", "KEPT.A.value"),
    "what a decorator adds": ("wrapping(1)(lambda: 1)", "wrapping(2)(lambda: 1)", "KEPT()"),
}
OWN = """
def Own(go, value):
    owner = type("Owner", (), {"go": go, "__module__": "__main__"})
    owned = owner()
    owned.value = value
    return owned

def wrapping(factor):
    def decorate(function):
        @functools.wraps(function)
        def wrapped():
            return function() * factor
        return wrapped
    return decorate
"""
PLACES = {
    "a global": "KEPT = {0}\ndef thing():\n    return {1}",
    "a closure's": "def make(KEPT):\n    return lambda: {1}\nthing = make({0})",
    "a default": "def thing(KEPT={0}):\n    return {1}",
    "a class's": "class thing:\n    KEPT = {0}\n    def go(self):\n        return self.{1}",
    "a property's": "KEPT = {0}\nclass thing:\n    @functools.cached_property\n    def go(self):\n        return {1}",
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("constant", CONSTANTS.values(), ids=CONSTANTS)
def test_an_edited_constant_of_any_kind_is_another_experiment(constant, place):
    before, after, use = constant
    names = {"np": np, "torch": torch, "Path": Path, "Enum": Enum}
    sources = [OWN + place.format(each, use) for each in (before, before, after)]
    if place == PLACES["a class's"] and not use.startswith("KEPT"):
        pytest.skip("a class's constant is read through the class")
    one, again, other = (fingerprint(cell(source, **names)) for source in sources)
    assert one == again != other


@pytest.mark.parametrize("use", ["KEPT.append(1)", "KEPT[0] = 1", "KEPT.extend([1])", "del KEPT[:]", "KEPT.zero_()"])
def test_what_a_function_collects_does_not_count(use):
    source = f"def thing():\n    {use}"
    one, other = (fingerprint(cell(f"KEPT = {kept}\n{source}")) for kept in ("[]", "[1, 2, 3]"))
    closures = (
        f"def make(KEPT):\n    def go():\n        {use}\n    return go\nthing = make({k})" for k in ("[]", "[1]")
    )
    assert one == other and len({fingerprint(cell(each)) for each in closures}) == 1


def test_a_module_that_a_function_imports_when_called_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    prints = []
    for value in (1, 1, 2):
        (tmp_path / "my_late_helpers.py").write_text(f"def helper():\n    return {value}\n")
        importlib.invalidate_caches()
        prints.append(fingerprint(cell("def thing():\n    from my_late_helpers import helper\n    return helper()")))
    assert prints[0] == prints[1] != prints[2] and "my_late_helpers" not in sys.modules


DATA = "class Data:\n    def __init__(self, n):\n        self.n = n\n    def go(self):\n        pass\n"
FUNCTIONS = {
    "its text": ("def thing(x):\n    return x + 1", "def thing(x):\n    return x + 2"),
    "a lambda": ("thing = lambda x: x + 1", "thing = lambda x: x + 2"),
    "a default": ("def thing(x, y=1):\n    return x", "def thing(x, y=2):\n    return x"),
    "a default by name": ("def thing(x, *, y=1):\n    return x", "def thing(x, *, y=2):\n    return x"),
    "a closure's number": (
        "def make(n):\n    def inner(x):\n        return x + n\n    return inner\nthing = make(1)",
        "def make(n):\n    def inner(x):\n        return x + n\n    return inner\nthing = make(2)",
    ),
    "a closure's function": (
        "def make(f):\n    def inner(x):\n        return f(x)\n    return inner\nthing = make(lambda x: 1)",
        "def make(f):\n    def inner(x):\n        return f(x)\n    return inner\nthing = make(lambda x: 2)",
    ),
    "what a decorator holds": (
        "@functools.lru_cache\ndef thing(x):\n    return x",
        "@functools.lru_cache\ndef thing(x):\n    return -x",
    ),
    "whose method it is": (
        DATA + "thing = Data(1).go",
        DATA + "thing = Data(2).go",
    ),
    "a keyword of a partial": (
        "def f(x, y):\n    return x\nthing = functools.partial(f, y=1)",
        "def f(x, y):\n    return x\nthing = functools.partial(f, y=2)",
    ),
    "the function of a partial": (
        "def f(x, y):\n    return x\nthing = functools.partial(f, y=1)",
        "def f(x, y):\n    return y\nthing = functools.partial(f, y=1)",
    ),
    "a public attribute": (DATA + "thing = Data(1)", DATA + "thing = Data(2)"),
}


@pytest.mark.parametrize("pair", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_count_with_all_that_decides_what_they_do(pair):
    one, again, other = (cell(source) for source in (pair[0], *pair))
    assert fingerprint(one) == fingerprint(again) != fingerprint(other)


def test_a_person_s_own_module_counts_as_far_as_it_is_used(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    prints = []
    for used, unused in ((1, 1), (1, 10), (100, 10)):
        (tmp_path / "my_helpers.py").write_text(f"def used():\n    return {used}\ndef unused():\n    return {unused}\n")
        importlib.invalidate_caches()
        module = importlib.reload(importlib.import_module("my_helpers"))
        prints.append(fingerprint(cell("def thing(x):\n    return helpers.used() + x", helpers=module)))
    monkeypatch.delitem(sys.modules, "my_helpers")
    assert prints[0] == prints[1] != prints[2]


def test_what_refers_to_itself_is_read_once():
    source = "class Loop:\n    def again(self):\n        return Loop().again() + odd(1)\n"
    source += "def odd(x):\n    return even(x)\ndef even(x):\n    return odd(x)\nthing = Loop\n"
    edited = source.replace("odd(1)", "odd(2)")
    assert fingerprint(cell(source)) == fingerprint(cell(source)) != fingerprint(cell(edited))


def test_the_lab_s_and_installed_classes_go_by_their_name_alone():
    assert plain_values(QueryKeyNorm()) == {"is": "QueryKeyNorm", "eps": 1e-5, "groups": 1}
    assert plain_values([VectorQuantizer, np.sort, json.dumps, np.float64]) == [
        "VectorQuantizer",
        "sort",
        "dumps",
        "float64",
    ]
    own = plain_values(cell(FIX))["is"]
    assert own.startswith("Fix ") and len(own) == len("Fix ") + 8


class Colour(Enum):
    RED = 1


def test_values_are_plain_and_differ_where_they_differ(tmp_path):
    values = [None, True, 1, 1.5, "a", Path("b"), (1, 2), {3, 1}, b"c", np.arange(3), Colour.RED, {1: Colour}]
    plain = plain_values(values)
    assert json.loads(json.dumps(plain))[:8] == [None, True, 1, 1.5, "a", "b", [1, 2], [1, 3]]
    assert plain[8].startswith("bytes ") and plain[9].startswith("ndarray ") and plain[10] == "RED"
    assert len({json.dumps(plain_values(each)) for each in (b"c", b"d", np.arange(3), np.arange(1, 4))}) == 4
    assert plain_values(folder_of_pictures(tmp_path)) == {"is": "_crops_of_folder", "path": str(tmp_path)}


def test_differences_name_the_place_the_values_and_the_source():
    recipe = Recipe(rate=0.1, schedule=Cosine(0.1))
    before = plain_values({"recipe": recipe, "fixes": [cell(FIX)], "size": 1})
    after = plain_values({"recipe": replace(recipe, rate=0.2), "fixes": [cell(FIX.replace("return 5", "return 6"))]})
    assert discrepancies(before, before) == []
    changes = ["fixes.0 (the source of Fix)", "recipe.rate (0.1, now 0.2)", "size (1, now null)"]
    assert discrepancies(before, after) == changes
    other = plain_values({"recipe": recipe, "fixes": [QueryKeyNorm(), QueryKeyNorm()], "size": 1})
    (fixes,) = discrepancies(before, other)
    assert fixes.startswith("fixes ([") and ", now [" in fixes and len(fixes) < 100
    older = {key: value for key, value in plain_values(recipe).items() if key != "clip"}
    assert discrepancies(older, plain_values(recipe)) == []  # a field that an earlier version did not have
    assert discrepancies({"a": 1}, {"a": 1, "b": 2}) == ["b (null, now 2)"]


def test_a_description_has_the_source_itself():
    plain = described(cell(FIX))
    (label, source), *rest = plain["sources"].items()
    assert label == plain["is"] and not rest
    assert "return helper(model) * SCALE + inner()" in source and "return value + 1" in source
    assert "sources" not in described(QueryKeyNorm())


def test_what_methods_put_into_their_class_is_no_source_and_its_constants_are():
    source = "class Thing:\n    calls, table = [], [1]\n    def use(self):\n        self.calls.append(self.table)"
    space: dict = {"__name__": "__main__"}
    exec(source, space)
    before = fingerprint(space["Thing"])
    space["Thing"]().use()
    assert fingerprint(space["Thing"]) == before
    space["Thing"].table = [2]
    assert fingerprint(space["Thing"]) != before


@pytest.mark.parametrize("damaged", [{"is": {}}, {"is": [1]}, {"is": None}, [], "x", None, 1e5])
def test_whatever_a_damaged_config_holds_differs_in_words(damaged):
    for before, now in ((damaged, {"is": "Recipe"}), ({"is": "Recipe"}, damaged)):
        assert all(isinstance(each, str) for each in discrepancies({"recipe": before}, {"recipe": now}))
        assert discrepancies({"recipe": before}, {"recipe": now})
