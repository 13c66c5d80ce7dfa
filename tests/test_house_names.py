"""Names in the house: each has a noun or a verb in it, and a top-level name has one definition.

`TERMS` lists the few files in which such a word is the field's own.
"""

import ast
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("chameleon_lab", "widgets/chameleon_widgets")
PYTHON = sorted(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))
SCRIPTS = sorted(path for path in (ROOT / "widgets/js/src").rglob("*") if path.suffix in {".js", ".ts"})
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

PARTICIPLES = frozenset(
    {
        *("told", "found", "seen", "known", "shown", "heard", "sounded", "said", "asked", "wanted"),
        *("kept", "made", "given", "taken", "held", "sent", "meant", "owed", "gone"),
    }
)
"""Past participles that leave open *what* was told or found. Words of the field (`fused`, `hidden`) are not among them,
and a participle beside its noun passes (`asked_kinds`, `held_out`)."""

SHARED = {
    "__all__": "Python's own word",
    "log": "the module's logger, by convention",
}
"""Top-level names that several modules may define, and why."""

TERMS: dict[str, int] = {
    "chameleon_lab/chameleon.py": 1,  # `given`, as probability theory has it: how likely a document is, given another
    "chameleon_lab/generation/engine.py": 1,
}
"""File to how many bare participles it may still hold."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def bindings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) wherever Python code gives a name: definitions, parameters, variables, attributes, aliases."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name, node.lineno
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node.lineno
            case ast.MatchMapping(rest=str(name)) | ast.alias(asname=str(name)):
                yield name, node.lineno


def declarations(script: str) -> Iterator[tuple[str, int]]:
    """(name, line) of what a script declares: variables, functions, classes, destructured names and parameters."""
    for line, text in enumerate(script.splitlines(), 1):
        text = re.sub(r"//.*|^\s*/?\*.*", "", text)
        for group in re.findall(r"\b(?:const|let|var|function\*?|class)\s+(\w+|[{\[][^}\]=]*[}\]])", text):
            yield from ((name, line) for name in re.findall(r"\w+(?=\s*(?:[,}\]]|$))", group))
        parameters = re.findall(r"(?<!if )(?<!while )\(([\w\s,{}\[\]=.]*)\)\s*(?:=>|\{)", text)
        for group in parameters + re.findall(r"(\w+)\s*=>", text):
            yield from ((name, line) for name in re.findall(r"(?<![.\w])[A-Za-z_]\w*", group))


def is_bare(name: str) -> bool:
    """Whether a name is only a participle, underscores before it and letters of a shape behind it apart."""
    return re.sub(r"(?<=[a-z])_[A-Z0-9]+$", "", name.strip("_")).lower() in PARTICIPLES


def participles(path: Path) -> list[str]:
    """The bare participles of a module, a script or a notebook's code cells, each with its line."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        code = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = re.sub(r"^\s*[%!].*$", "", "\n".join("".join(source) for source in code), flags=re.MULTILINE)
    names = declarations(text) if path in SCRIPTS else bindings(module(path) if path in PYTHON else ast.parse(text))
    return sorted({f"line {line}: {name}" for name, line in names if is_bare(name)})


@cache
def module(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def definitions(statements: Sequence[ast.AST]) -> Iterator[str]:
    """Names that a module defines at its top level, inside `if`, `try` and `with` too."""
    for statement in statements:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign() | ast.AnnAssign():
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                names = [node for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
                yield from (node.id for node in names if isinstance(node.ctx, ast.Store))
            case ast.If() | ast.Try() | ast.With():
                for part in ("body", "handlers", "orelse", "finalbody"):
                    yield from definitions(getattr(statement, part, []))
            case ast.ExceptHandler():
                yield from definitions(statement.body)


def homes() -> dict[str, list[str]]:
    """Top-level names that more than one module defines, and those modules."""
    modules: dict[str, list[str]] = defaultdict(list)
    for path in PYTHON:
        for name in dict.fromkeys(definitions(module(path).body)):
            modules[name].append(name_of(path))
    return {name: files for name, files in modules.items() if len(files) > 1 and name not in SHARED}


def test_no_name_is_a_bare_participle():
    bare = {name_of(path): participles(path) for path in [*PYTHON, *SCRIPTS, *NOTEBOOKS]}
    worse = {file: names for file, names in bare.items() if len(names) > TERMS.get(file, 0)}
    assert not worse, f"Name the noun (TERMS says how many were there before): {worse}"
    clean = sorted(file for file in TERMS if not bare.get(file))
    assert not clean, f"Clean or gone by now, so take them out of TERMS: {clean}"


def test_a_top_level_name_is_defined_once():
    twice = homes()
    assert not twice, f"Give each its own name, or define it once: {twice}"


def test_shared_names_are_shared():
    counts = Counter(name for path in PYTHON for name in set(definitions(module(path).body)))
    assert all(counts[name] > 1 for name in SHARED)


@pytest.mark.parametrize(
    "code",
    [
        "told = 1",
        "_seen: int = 1",
        "known_BT = 1",
        "KEPT = 1",
        "def f(*, found=1): ...",
        "def _told(): ...",
        "class Seen: ...",
        "class A:\n    def f(self): self._heard = 1",
        "class A:\n    shown: int",
        "for found in []: ...",
        "a = [1 for seen in b]",
        "with a as made: ...",
        "import a as known",
        "try: ...\nexcept E as sent: ...",
        "match a:\n    case [*given]: ...",
        "f = lambda wanted: 1",
        "if (found := 1): ...",
        "a, (b, told) = c",
    ],
)
def test_bindings_of_every_kind_are_read(code: str):
    assert any(is_bare(name) for name, _ in bindings(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["asked_kinds = 1", "held_out = 1", "HELD_OUT = 1", "f(told=1)", "a = told", "a.found()", "hidden_BTD = 1"]
)
def test_names_with_a_noun_and_mere_uses_pass(code: str):
    assert not any(is_bare(name) for name, _ in bindings(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "const told = 1;",
        "let { a, found } = b;",
        "for (const [key, seen] of rows) {",
        "function f(a, known = 1) {",
        "const f = (heard) => 1;",
        "rows.map(told => 1)",
    ],
)
def test_declarations_of_scripts_are_read(code: str):
    assert any(is_bare(name) for name, _ in declarations(code))


@pytest.mark.parametrize("code", ["// const told = 1", "const message = told;", "if (told) {", "a.found()"])
def test_mere_uses_in_scripts_pass(code: str):
    assert not any(is_bare(name) for name, _ in declarations(code))


def test_definitions_in_branches_count_and_locals_do_not():
    code = "if A:\n    x = 1\nelse:\n    y = 2\ntry:\n    z = 1\nexcept E:\n    w = 1\ndef f():\n    v = 1\na.b = 1"
    assert set(definitions(ast.parse(code).body)) == {"x", "y", "z", "w", "f"}
