"""The street runs one way: the table of docs/architecture.md says which module may import which."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
ORDER = re.findall(r"^\| `(\w+)/?` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
BORDER = {"vocabulary", "pictures", "documents", "records", "measures", "parts", "history"}
SCREEN = {"IPython", "ipywidgets", "anywidget", "matplotlib"}
LEARNING = {"lightning", "pytorch_lightning"}


def imports(folder: str) -> Iterator[tuple[Path, str, str]]:
    """(file, its stage, imported name such as `chameleon_lab.documents.Text`), imports inside functions included."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        stage = path.relative_to(ROOT / folder).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the full name"
                yield from ((path, stage, f"{node.module}.{name.name}") for name in node.names)
            elif isinstance(node, ast.Import):
                yield from ((path, stage, name.name) for name in node.names)


def test_every_module_has_its_place_in_the_table():
    on_disk = {p.stem for p in (ROOT / "chameleon_lab").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert on_disk - {"__init__"} == set(ORDER)


def test_modules_import_only_from_above():
    for path, stage, name in imports("chameleon_lab"):
        package, *below = name.split(".")
        if package == "chameleon_lab" and below != ["__version__"] and below[:1] != [stage]:
            above = [] if stage == "__init__" else ORDER[: ORDER.index(stage)]
            assert below and below[0] in above, f"{path} imports {name}, which does not stand above `{stage}`"


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
