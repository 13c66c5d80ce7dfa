"""The street runs one way: the table of docs/architecture.md says which module may import which; no circles."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
ORDER = re.findall(r"^\| `(\w+)/?` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
BORDER = {
    "plain",
    "vocabulary",
    "files",
    "pictures",
    "documents",
    "records",
    "measures",
    "parts",
    "readings",
    "history",
    "notices",
    "storage",
    "studies",
}
PACKAGES = ("chameleon_lab", "widgets/chameleon_widgets")
SCREEN = {"IPython", "ipywidgets", "anywidget", "matplotlib"}
LEARNING = {"lightning", "pytorch_lightning"}


@cache
def imports_of(path: Path) -> tuple[str, ...]:
    """What a file imports, such as `chameleon_lab.documents.Text`, inside functions too."""
    names = list[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the full name"
            names += [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            names += [name.name for name in node.names]
    return tuple(names)


def imports(folder: str) -> Iterator[tuple[Path, str, str]]:
    """(file, its stage, imported name)."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        stage = path.relative_to(ROOT / folder).parts[0].removesuffix(".py")
        yield from ((path, stage, name) for name in imports_of(path))


def test_every_module_has_its_place_in_the_table():
    on_disk = {p.stem for p in (ROOT / "chameleon_lab").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert on_disk - {"__init__"} == set(ORDER)


def test_modules_import_only_from_above():
    for path, stage, name in imports("chameleon_lab"):
        package, *below = name.split(".")
        if package == "chameleon_lab" and below != ["__version__"] and below[:1] != [stage]:
            above = [] if stage == "__init__" else ORDER[: ORDER.index(stage)]
            assert below and below[0] in above, f"{path} imports {name}, which does not stand above `{stage}`"


def circles(package: str) -> Iterator[list[str]]:
    """Each way that leads from a module of the package back to it, over imports of any kind: those inside functions and
    those for type checkers alone make a circle for the reader, too."""
    root = ROOT / package
    files = {path: ".".join(path.relative_to(root.parent).with_suffix("").parts) for path in root.rglob("*.py")}
    modules = {path: name.removesuffix(".__init__") for path, name in files.items()}
    known = set(modules.values())
    edges: dict[str, set[str]] = {name: set() for name in known}
    for path, _, name in imports(package):
        parent = name.rpartition(".")[0]  # `from package import module` or `from package.module import thing`
        edges[modules[path]] |= {name if name in known else parent} & known - {modules[path]}

    def ways(name: str, way: list[str]) -> Iterator[list[str]]:
        if name in way:
            yield way[way.index(name) :] + [name]
        elif name not in done:
            for below in sorted(edges[name]):
                yield from ways(below, [*way, name])
            done.add(name)

    done: set[str] = set()
    for name in sorted(known):
        yield from ways(name, [])


def test_no_module_imports_itself_in_a_circle():
    assert [" -> ".join(way) for package in PACKAGES for way in circles(package)] == []


def test_circles_are_found_of_any_length_and_kind(tmp_path, monkeypatch):
    (tmp_path / "house").mkdir()
    for name, source in {
        "__init__": "",
        "one": "from house.two import thing",
        "two": "def work():\n    from house import three",
        "three": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.one",
        "four": "from house import one, two",
    }.items():
        (tmp_path / "house" / f"{name}.py").write_text(source)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (way,) = circles("house")
    assert sorted(way[1:]) == ["house.one", "house.three", "house.two"] and way[0] == way[-1]


def test_the_border_is_plain_and_the_library_knows_no_screen():
    for path, stage, name in imports("chameleon_lab"):
        package = name.split(".")[0]
        assert package not in SCREEN, f"{path} imports {name}"
        assert stage == "training" or package not in LEARNING, f"{path} imports {name} outside training/"
        assert stage not in BORDER or package != "torch", f"{path} imports {name} into the border"


def test_widgets_know_only_the_border():
    for path, _, name in imports("widgets/chameleon_widgets"):
        package, *below = name.split(".")
        assert package not in LEARNING | {"torch"}, f"{path} imports {name}"
        assert package != "chameleon_lab" or (below[:1] and below[0] in BORDER), f"{path} imports {name}"


def test_what_notebooks_import_first_is_light():
    """A lesson's first cells wait for torch and little else: Lightning, plots and metrics come when they are used, and
    torch's compiler, whose import takes ten times as long as reading the shipped model, never."""
    code = """import sys
from chameleon_lab import chameleon, planner
from chameleon_lab.evaluation import comparison, metrics, stability
from chameleon_lab.training import data, experiments, image_experiments, run
import chameleon_widgets
chameleon.Chameleon.load('tiny')
print(*sys.modules)"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "widgets")])}
    script = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    heavy = {"lightning", "torchmetrics", "transformers", "scipy", "matplotlib", "torch._dynamo", "sympy", "pandas"}
    assert not heavy & set(script.stdout.split())
