"""Frozen dataclasses as plain values, with the source of a person's own classes and functions hashed in.

An experiment is equal to another when their plain values are. A class of the lab, or of an installed package, stands
there by its name; one written in a notebook cell or a script also by a hash of its source, so that an edited cell is
another experiment. The hash covers what a class or function names in its turn: its own bases, helpers, closures and
constants. Comments, docstrings and line breaks do not count, and neither do values that can change in place.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import inspect
import json
import re
import sys
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

LIBRARIES = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})
_BOOKKEEPING = re.compile(
    r"__(doc|module|dict|weakref|qualname|firstlineno|static_attributes|annotations|annotate\w*|abstractmethods"
    r"|dataclass_\w+|match_args|parameters|orig_bases|hash|protocol_attrs|non_callable_proto_members)__"
    r"|_abc_impl|_is_(runtime_)?protocol"
)
"""What Python notes in a class beside what was written there."""


def plain_values(value: Any, sources: dict[str, str] | None = None) -> Any:
    """What JSON can hold of a value: dataclasses and what they hold, each with the name of what it is.

    Where `sources` is given, the source of each class and function of a person's own is added to it.
    """

    def each(inner: Any) -> Any:
        return plain_values(inner, sources)

    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {str(key): each(inner) for key, inner in value.items()}
        case list() | tuple():
            return [each(inner) for inner in value]
        case set() | frozenset():
            return sorted(map(each, value), key=json.dumps)
        case Path():
            return str(value)
        case Enum():
            return value.name
        case bytes() | np.ndarray():
            return f"{type(value).__name__} {_hash(np.asarray(value).tobytes())}"
        case partial():
            arguments = {f"argument_{at}": inner for at, inner in enumerate(value.args)} | value.keywords
            return {"is": _label(value.func, sources)} | each(arguments)
        case MethodType():
            return {"is": _label(value.__func__, sources), "of": each(value.__self__)}
        case type() | FunctionType():
            return _label(value, sources)
    if "__wrapped__" in getattr(value, "__dict__", {}):
        return each(inspect.unwrap(value))
    if is_dataclass(value):
        return {"is": _label(type(value), sources)} | {it.name: each(getattr(value, it.name)) for it in fields(value)}
    if _personal(type(value)):  # attributes with an underscore are taken for what it keeps to itself while it works
        public = {name: inner for name, inner in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
        return {"is": _label(type(value), sources)} | each(public)
    return getattr(value, "__name__", type(value).__name__)


def described(value: Any) -> dict[str, Any]:
    """A dataclass as plain values, and under `sources` the source of all that is a person's own in it."""
    sources: dict[str, str] = {}
    plain = plain_values(value, sources)
    return plain | ({"sources": sources} if sources else {})


def fingerprint(value: Any) -> str:
    """Eight letters that are the same for equal values."""
    return _hash(json.dumps(plain_values(value), sort_keys=True).encode())


def discrepancies(before: Any, now: Any, path: str = "") -> list[str]:
    """Where two plain values differ, in words: `recipe.rate (0.01, now 0.1)`, `monitors.0 (the source of Slow)`.

    Of dataclasses only fields that both have are compared: another version of the lab may have more.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping) and _same_name(before.get("is"), now.get("is")):
        shared = before.keys() & now.keys() if "is" in now else before.keys() | now.keys()
        at = [(f"{path}.{key}".strip("."), before.get(key), now.get(key)) for key in sorted(shared - {"is"})]
        edited = _edited(path, before.get("is"), now.get("is"))
        return edited + [each for key, one, other in at for each in discrepancies(one, other, key)]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [each for at, (one, other) in pairs for each in discrepancies(one, other, f"{path}.{at}")]
    if isinstance(before, str) and isinstance(now, str) and _same_name(before, now):
        return _edited(path, before, now)
    if json.dumps(before, sort_keys=True) == json.dumps(now, sort_keys=True):
        return []
    return [f"{path} ({_brief(before)}, now {_brief(now)})".strip()]


def _name(label: Any) -> str:
    return re.sub(r" [0-9a-f]{8}$", "", label) if isinstance(label, str) else ""


def _same_name(before: Any, now: Any) -> bool:
    return _name(before) == _name(now)


def _edited(path: str, before: Any, now: Any) -> list[str]:
    return [] if before == now else [f"{path} (the source of {_name(now)})".strip()]


def _brief(value: Any) -> str:
    return textwrap.shorten(value["is"] if isinstance(value, Mapping) and "is" in value else json.dumps(value), 40)


# Source


def _label(thing: Any, sources: dict[str, str] | None) -> str:
    name = getattr(thing, "__name__", type(thing).__name__)
    if not _personal(thing):
        return name
    source = "\n".join(_source(thing, set()))
    label = f"{name} {_hash(source.encode())}"
    if sources is not None:
        sources[label] = source
    return label


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def _personal(thing: Any) -> bool:
    """Whether a class, function or module is neither the lab's, nor Python's, nor an installed package's."""
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None) or "builtins"
    root = name.split(".")[0]
    if root in ("chameleon_lab", "builtins") or root in sys.stdlib_module_names - {"__main__"}:
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    return name == "__main__" or file is None or not file.startswith(LIBRARIES)


def _source(thing: Any, visited: set[int]) -> Iterator[str]:
    """All that decides what a class or function does, in lines that are the same for the same program."""
    match thing:
        case None | bool() | int() | float() | str() | bytes():
            yield repr(thing)
            return
        case tuple():
            yield from _of_all(thing, visited)
            return
        case frozenset():
            yield str(sorted(map(repr, thing)))
            return
        case staticmethod() | classmethod():
            yield type(thing).__name__
            yield from _source(thing.__func__, visited)
            return
        case property():
            yield from _of_all((thing.fget, thing.fset, thing.fdel), visited)
            return
        case partial():
            yield from _of_all((thing.func, thing.args, *sorted(thing.keywords.items())), visited)
            return
    if "__wrapped__" in getattr(thing, "__dict__", {}):
        thing = inspect.unwrap(thing)
    if id(thing) in visited:
        return
    visited.add(id(thing))
    if isinstance(thing, type):
        yield f"class {thing.__name__}"
        if _personal(thing):
            yield from _of_all(thing.__bases__, visited)
            for name, member in sorted(vars(thing).items()):
                if not _BOOKKEEPING.fullmatch(name) and not _generated(thing, member):
                    yield name
                    yield from _source(member, visited)
    elif isinstance(thing, FunctionType):
        yield f"def {thing.__name__}"
        if _personal(thing):
            yield _text(thing)
            yield from _of_all((thing.__defaults__, *sorted((thing.__kwdefaults__ or {}).items())), visited)
            yield from _of_all((cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)), visited)
            codes = list(_codes(thing.__code__))
            attributes = sorted({name for code in codes for name in code.co_names})
            for name in sorted({each.argval for code in codes for each in dis.get_instructions(code) if _global(each)}):
                value = thing.__globals__.get(name)
                if isinstance(value, ModuleType) and _personal(value):
                    yield from _of_all((vars(value)[key] for key in attributes if key in vars(value)), visited)
                elif name in thing.__globals__:
                    yield f"{name} ="
                    yield from _source(value, visited)
    elif is_dataclass(thing):
        yield from _of_all((type(thing), *(getattr(thing, it.name) for it in fields(thing))), visited)
    else:
        yield type(thing).__name__


def _of_all(things: Iterable[Any], visited: set[int]) -> Iterator[str]:
    for thing in things:
        yield from _source(thing, visited)


def _generated(owner: type, member: Any) -> bool:
    """Whether `dataclass` wrote this method: from the fields, which count as values."""
    code = getattr(getattr(member, "__wrapped__", member), "__code__", None)
    return is_dataclass(owner) and code is not None and code.co_filename == "<string>" and code.co_name.startswith("__")


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name of the enclosing function that has no value yet
        return False


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _global(instruction: dis.Instruction) -> bool:
    return instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")


def _text(function: FunctionType) -> str:
    """A function's source without comments and docstrings; where there is none, what Python made of it."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return _compiled(function.__code__)
    if not isinstance(tree.body[0], ast.FunctionDef | ast.AsyncFunctionDef):
        return _compiled(function.__code__)  # the source of a lambda is all of the lines that it stands in
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(node, False):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _compiled(code: CodeType) -> str:
    constants = [
        _compiled(each) if isinstance(each, CodeType) else "\n".join(_source(each, set())) for each in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {constants}"
