"""Names in the house: each has a noun or a verb in it, and a top-level name has one definition.

Both rules are ratchets. `PENDING` and `TWICE` list what broke a rule when the rule came: no file may get worse, and an
entry must go once its file or its name is mended.
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

PENDING: dict[str, int] = {
    "chameleon_lab/chameleon.py": 5,
    "chameleon_lab/checkpoints/formats.py": 9,
    "chameleon_lab/checkpoints/huggingface.py": 2,
    "chameleon_lab/checkpoints/meta.py": 4,
    "chameleon_lab/checkpoints/names.py": 2,
    "chameleon_lab/checkpoints/native.py": 4,
    "chameleon_lab/checkpoints/packed.py": 3,
    "chameleon_lab/checkpoints/provenance.py": 6,
    "chameleon_lab/checkpoints/tensors.py": 9,
    "chameleon_lab/checkpoints/text_files.py": 5,
    "chameleon_lab/checkpoints/torch_files.py": 1,
    "chameleon_lab/cli.py": 10,
    "chameleon_lab/decoding.py": 2,
    "chameleon_lab/evaluation/card.py": 1,
    "chameleon_lab/evaluation/stability.py": 12,
    "chameleon_lab/generation/continuation.py": 21,
    "chameleon_lab/generation/engine.py": 2,
    "chameleon_lab/generation/grammar.py": 3,
    "chameleon_lab/generation/guidance.py": 3,
    "chameleon_lab/generation/samplers.py": 2,
    "chameleon_lab/generation/settings.py": 3,
    "chameleon_lab/history.py": 6,
    "chameleon_lab/kv_cache.py": 6,
    "chameleon_lab/monitors/alarms.py": 2,
    "chameleon_lab/monitors/attention.py": 4,
    "chameleon_lab/monitors/gradients.py": 2,
    "chameleon_lab/monitors/watch.py": 4,
    "chameleon_lab/objective.py": 3,
    "chameleon_lab/optimization.py": 1,
    "chameleon_lab/planner.py": 13,
    "chameleon_lab/quantization.py": 2,
    "chameleon_lab/recording.py": 3,
    "chameleon_lab/stability/__init__.py": 2,
    "chameleon_lab/stability/watches.py": 3,
    "chameleon_lab/tokenizers/grids.py": 1,
    "chameleon_lab/tokenizers/mixed.py": 10,
    "chameleon_lab/tokenizers/text.py": 1,
    "chameleon_lab/training/control.py": 2,
    "chameleon_lab/training/data.py": 1,
    "chameleon_lab/training/experiments.py": 2,
    "chameleon_lab/training/folder.py": 9,
    "chameleon_lab/training/modules.py": 4,
    "chameleon_lab/training/pipeline.py": 1,
    "chameleon_lab/training/run.py": 13,
    "chameleon_lab/training/samples.py": 2,
    "chameleon_lab/transformer.py": 3,
    "chameleon_lab/vocabulary.py": 3,
    "widgets/chameleon_widgets/chat_cell.py": 3,
    "widgets/chameleon_widgets/code_surgery.py": 6,
    "widgets/chameleon_widgets/codebook_atlas.py": 10,
    "widgets/chameleon_widgets/codebook_map.py": 1,
    "widgets/chameleon_widgets/codebook_study.py": 3,
    "widgets/chameleon_widgets/compare_panel.py": 9,
    "widgets/chameleon_widgets/compared_runs.py": 9,
    "widgets/chameleon_widgets/comparison.py": 2,
    "widgets/chameleon_widgets/conversation.py": 14,
    "widgets/chameleon_widgets/edits.py": 7,
    "widgets/chameleon_widgets/figures.py": 8,
    "widgets/chameleon_widgets/reconstruction.py": 12,
    "widgets/chameleon_widgets/round_trips.py": 3,
    "widgets/chameleon_widgets/run_feed.py": 3,
    "widgets/chameleon_widgets/run_panel.py": 11,
    "widgets/chameleon_widgets/sightings.py": 3,
    "widgets/chameleon_widgets/stills.py": 2,
    "widgets/js/src/axis.js": 1,
    "widgets/js/src/canvas.js": 2,
    "widgets/js/src/code_surgery.js": 3,
    "widgets/js/src/codebook_atlas.js": 2,
    "widgets/js/src/codebook_detail.js": 2,
    "widgets/js/src/codebook_map.js": 1,
    "widgets/js/src/compare_panel.js": 7,
    "widgets/js/src/compare_tables.js": 3,
    "widgets/js/src/composer.js": 1,
    "widgets/js/src/curves.js": 2,
    "widgets/js/src/exchange.js": 2,
    "widgets/js/src/head_strip.js": 1,
    "widgets/js/src/heat_map.js": 1,
    "widgets/js/src/layers.js": 1,
    "widgets/js/src/link.js": 1,
    "widgets/js/src/pictures.js": 1,
    "widgets/js/src/points.js": 1,
    "widgets/js/src/rate_plot.js": 1,
    "widgets/js/src/reconstruction_viewer.js": 4,
    "widgets/js/src/run_events.js": 1,
    "widgets/js/src/run_hands.js": 4,
    "widgets/js/src/run_panel.js": 9,
    "widgets/js/src/run_records.js": 1,
    "widgets/js/src/still.js": 1,
    "widgets/js/src/strokes.js": 3,
    "widgets/js/src/surgery_board.js": 3,
    "widgets/js/src/surgery_codes.js": 2,
    "widgets/js/src/surgery_palette.js": 4,
    "notebooks/04_train_on_your_pictures.ipynb": 2,
}
"""File to how many bare participles it may still hold."""

TWICE = frozenset(
    re.findall(
        r"\w+",
        """
        AT_ONCE BLOCK CHAMELEON CHAMELEON_34B CHAMELEON_7B CHUNK COLOURS DTYPES FEW FORMATS Fix History KNOWN
        LEVELS Level Message Moment PATIENCE RATE ROWS Row SAMPLE_SIDE SHAPES SHOWN_SIDE SMALL STATIC
        STILL_SECONDS STILL_SIDE Schedule TINY WIDE _beside _called _keys _plain _rows _same _shards arrange
        data_uri fused load_image_tokenizer markdown nearest open_folder outcome packed plain plain_image_config
        read read_image_tokenizer read_model record refusal summary write write_image_tokenizer write_model
        write_opened write_text
        """,
    )
)
"""Names that may still be defined more than once."""


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
    names = declarations(text) if path in SCRIPTS else bindings(ast.parse(text))
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
    worse = {file: names for file, names in bare.items() if len(names) > PENDING.get(file, 0)}
    assert not worse, f"Name the noun (PENDING says how many were there before): {worse}"
    clean = sorted(file for file in PENDING if not bare.get(file))
    assert not clean, f"Clean or gone by now, so take them out of PENDING: {clean}"


def test_a_top_level_name_is_defined_once():
    twice = homes()
    new = {name: files for name, files in twice.items() if name not in TWICE}
    assert not new, f"Give each its own name, or define it once: {new}"
    assert set(twice) >= TWICE, f"Defined once by now, so take them out of TWICE: {sorted(TWICE - set(twice))}"


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
