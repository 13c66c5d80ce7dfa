"""Messages between kernel and page: both sides declare the same kinds with the same fields, and send no others."""

import ast
import importlib.util
import re
from pathlib import Path
from typing import get_args, is_typeddict

import pytest

from chameleon_widgets.chat.messages import ChatMessage
from chameleon_widgets.images.messages import AtlasMessage, SurgeryUpdate, ViewerMessage
from chameleon_widgets.inspect.messages import InspectorMessage
from chameleon_widgets.judge.messages import ArenaItem
from chameleon_widgets.runs.messages import ComparisonMessage, PanelMessage
from chameleon_widgets.teach.messages import ExplainerMessage

WIDGETS = Path(__file__).parents[1] / "widgets"
SPEC = importlib.util.spec_from_file_location("messages", WIDGETS / "js" / "messages.py")
assert SPEC and SPEC.loader
messages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(messages)

SCRIPTS = {
    "chat/chat_cell": ChatMessage,
    "images/reconstruction_viewer": ViewerMessage,
    "images/codebook_atlas": AtlasMessage,
    "images/code_surgery": SurgeryUpdate,
    "inspect/inspector": InspectorMessage,
    "judge/arena": ArenaItem,
    "runs/run_panel": PanelMessage,
    "runs/compare_panel": ComparisonMessage,
    "teach/explainer": ExplainerMessage,
}


@pytest.mark.parametrize("path", messages.all_declarations(), ids=lambda path: path.parent.name)
def test_the_scripts_declare_the_same_messages_as_python(path: Path):
    wanted, committed = messages.all_declarations()[path], path.read_text()
    assert wanted.count("export interface") >= 1
    assert committed == wanted, f"{path} differs from the messages that Python declares: run make bundles"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_checked_against_the_messages_of_its_widget(script: str):
    """The type check then requires a receiver for each kind, and no field that there is not."""
    name = next(name for name, value in {**messages_of(script)}.items() if value is SCRIPTS[script])
    text = (WIDGETS / "js" / "src" / f"{script}.js").read_text()
    assert f'Receivers<import("./messages.js").{name}>' in text


def messages_of(script: str) -> dict[str, object]:
    return vars(importlib.import_module(f"chameleon_widgets.{script.split('/')[0]}.messages"))


def test_all_that_is_sent_is_declared():
    """What a widget passes to `send` is one of the declared messages, by call or by annotation."""
    names = {name for script in SCRIPTS for name, value in messages_of(script).items() if is_typeddict(value)}
    names.add("LineMessage")
    for path in (WIDGETS / "chameleon_widgets").rglob("*.py"):
        tree = ast.parse(path.read_text())
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "send":
                first = call.args[0].value if isinstance(call.args[0], ast.Starred) else call.args[0]
                text = ast.unparse(first)
                assert not isinstance(first, ast.Dict), f"{path}:{call.lineno} sends what no type declares: {text}"
                if isinstance(first, ast.Call):
                    assert text.split("(")[0] in {*names, "dict"}, f"{path}:{call.lineno} sends {text}"


def test_kinds_of_a_widget_are_told_apart():
    for union in SCRIPTS.values():
        kinds = [get_args(messages.get_type_hints(each)["kind"])[0] for each in get_args(union) or (union,)]
        assert len(kinds) == len(set(kinds)) and all(re.fullmatch("[a-z]+", kind) for kind in kinds)


def test_what_json_does_not_know_is_no_type_of_a_message():
    with pytest.raises(TypeError, match="no type of a message"):
        messages.typescript(set[int])
    assert messages.typescript(dict[str, list[int | None]]) == "Record<string, (number | null)[]>"


@pytest.mark.parametrize("family", ["chat", "images", "inspect", "runs", "teach"])
def test_what_a_page_asks_for_is_handled_and_nothing_else_is(family: str):
    scripts = "".join(path.read_text() for path in sorted((WIDGETS / "js/src" / family).glob("*.js")))
    requests = set(re.findall(r'(?:ask|request|open)\(\s*\{\s*kind: "(\w+)"', scripts)) - {"hello", "ping"}
    handlers = set()
    for path in (WIDGETS / "chameleon_widgets" / family).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            local = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "handlers"
            if isinstance(node, ast.Assign | ast.keyword) and (local or getattr(node, "arg", "") == "handlers"):
                keys = node.value.keys if isinstance(node.value, ast.Dict) else []
                handlers |= {key.value for key in keys if isinstance(key, ast.Constant)}
    assert requests == handlers and requests
