"""The front ends: their pure functions, and that the committed bundles are what their sources give."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JS = ROOT / "widgets" / "js"
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="the front ends' own tests need Node; install with: sudo apt install nodejs")
def test_the_pure_functions_of_the_front_ends():
    result = subprocess.run(
        [str(NODE), "--test", *(str(path) for path in sorted((JS / "test").glob("*.test.js")))],
        cwd=JS,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout[-4000:]


@pytest.mark.skipif(
    NODE is None or not (JS / "node_modules" / ".package-lock.json").exists(),  # which npm writes last
    reason="comparing the bundles with their sources needs esbuild; run: cd widgets/js && npm ci",
)
def test_the_committed_bundles_are_what_their_sources_give(tmp_path: Path):
    subprocess.run([str(NODE), "build.mjs", str(tmp_path)], cwd=JS, check=True, capture_output=True, timeout=120)
    committed = ROOT / "widgets" / "chameleon_widgets" / "static"
    for built in sorted(tmp_path.iterdir()):
        assert (committed / built.name).read_bytes() == built.read_bytes(), f"{built.name}: run npm run build"


def test_the_lock_file_names_no_hosts():
    lock = json.loads((JS / "package-lock.json").read_text())
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]


def test_no_widget_s_style_changes_another_s_that_lies_on_the_same_page():
    """A page keeps the styles of all widgets that it ever showed: two bundles must say the same of a selector."""
    looks: dict[str, dict[str, dict[str, str]]] = {}
    for path in sorted((ROOT / "widgets" / "chameleon_widgets" / "static").glob("*.css")):
        for selectors, rules in re.findall(r"([^{}]+)\{([^{}]*)\}", path.read_text()):
            declarations = [each.partition(":")[::2] for each in rules.split(";") if not each.startswith("--")]
            for selector in re.split(r",(?![^(]*\))", selectors):
                looks.setdefault(selector, {}).setdefault(path.stem, {}).update(declarations)
    disputes = {
        selector: [*by_bundle]
        for selector, by_bundle in looks.items()
        if selector.startswith((".", ":")) and len({json.dumps(each) for each in by_bundle.values()}) > 1
    }
    assert not disputes, "begin these with `:where(.chm-KIND) `, the widget's root"
