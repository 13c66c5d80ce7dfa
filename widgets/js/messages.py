"""Writes what Python declares of the messages (`TypedDict`s) as types for the scripts, one `messages.d.ts` a folder.

`make bundles` runs this, and `tests/test_messages.py` fails where a committed file says something else.
"""

from __future__ import annotations

import inspect
import json
import sys
import types
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

WIDGETS = Path(__file__).parents[1]
MODULES = {
    "frame": "line",
    "chat": "chat.messages",
    "images": "images.messages",
    "infill": "infill.messages",
    "inspect": "inspect.messages",
    "judge": "judge.messages",
    "runs": "runs.messages",
    "teach": "teach.messages",
}
WORDS: dict[Any, str] = {
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    Any: "any",
    object: "unknown",
    type(None): "null",
}


def typescript(hint: Any) -> str:
    """A type as TypeScript writes it. Raises TypeError for what JSON, or this function, does not know."""
    if hint in WORDS:
        return WORDS[hint]
    if is_typeddict(hint):
        return hint.__name__
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(map(json.dumps, parts))
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(typescript, parts)))
    if origin is list:
        several = get_origin(parts[0]) in (Literal, Union, types.UnionType)
        return f"({typescript(parts[0])})[]" if several else f"{typescript(parts[0])}[]"
    if origin is dict:
        return f"Record<{', '.join(map(typescript, parts))}>"
    if origin is tuple:
        return f"[{', '.join(map(typescript, parts))}]"
    raise TypeError(f"{hint} is no type of a message; use str, numbers, bool, None, list, dict, tuple, TypedDict.")


def declarations(module: types.ModuleType) -> str:
    """All TypedDicts of a module as interfaces, and its unions of them as types."""
    out = [f"// Written by widgets/js/messages.py from {module.__name__}: change that, and run `make bundles`.\n"]
    for name, value in vars(module).items():
        if is_typeddict(value) and value.__module__ == module.__name__:
            out.append(f"/** {' '.join(str(inspect.getdoc(value)).split())} */\nexport interface {name} {{\n")
            for field, hint in get_type_hints(value, include_extras=True).items():
                optional = get_origin(hint) is NotRequired
                out.append(f"  {field}{'?' * optional}: {typescript(get_args(hint)[0] if optional else hint)};\n")
            out.append("}\n")
        elif get_origin(value) is types.UnionType and all(map(is_typeddict, get_args(value))):
            line = f"export type {name} = {typescript(value)};\n"  # longer ones as the formatter breaks them
            parts = "".join(f"\n  | {part.__name__}" for part in get_args(value))
            out.append(line if len(line) <= 121 else f"export type {name} ={parts};\n")
    return "\n".join(out).replace("{\n\n", "{\n").replace(";\n\n  ", ";\n  ").replace(";\n\n}", ";\n}")


def all_declarations() -> dict[Path, str]:
    """The text of each `messages.d.ts`, by its path."""
    return {
        WIDGETS / "js/src" / folder / "messages.d.ts": declarations(import_module(f"chameleon_widgets.{module}"))
        for folder, module in MODULES.items()
    }


if __name__ == "__main__":
    sys.path[:0] = [str(WIDGETS), str(WIDGETS.parent)]
    for path, text in all_declarations().items():
        path.write_text(text)
