"""Frozen dataclasses as plain values, with the source of a person's own classes and functions hashed in.

An experiment is equal to another when their plain values are. A class of the lab, or of an installed package, stands
there by its name; one written in a notebook cell or a script also by a hash of its source, so that an edited cell is
another experiment. The hash covers what a class or function names in its turn: its own bases, helpers, closures and
constants, lists and arrays among them. Comments, docstrings and line breaks do not count, and neither does what a
function itself puts into a list or mapping that it names.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import importlib.util
import inspect
import json
import re
import sys
import sysconfig
import textwrap
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from functools import cached_property, partial, partialmethod
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np

LIBRARIES = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})
_BOOKKEEPING = re.compile(
    r"__(doc|module|dict|weakref|qualname|firstlineno|static_attributes|annotations|annotate\w*|abstractmethods"
    r"|dataclass_\w+|match_args|parameters|orig_bases|hash|protocol_attrs|non_callable_proto_members)__"
    r"|_abc_impl|_is_(runtime_)?protocol"
)
"""What Python notes in a class beside what was written there."""


def plain_values(value: Any, sources: dict[str, str] | None = None, brief: bool = False) -> Any:
    """What JSON can hold of a value: dataclasses and what they hold, each with the name of what it is.

    Where `sources` is given, the source of each class and function of a person's own is added to it. `brief` leaves out
    a field that joined its class later (its metadata has "later") where it has its default: what the value was before.
    A field whose metadata has "plain", a function, stands there by what that makes of it.
    """

    def each(inner: Any) -> Any:
        return plain_values(inner, sources, brief)

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
        present = [it for it in fields(value) if not (brief and _is_later_default(it, getattr(value, it.name)))]
        inner = {it.name: it.metadata.get("plain", _as_it_is)(getattr(value, it.name)) for it in present}
        return {"is": _label(type(value), sources)} | {name: each(of_name) for name, of_name in inner.items()}
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
    """Eight letters that are the same for equal values, in a later version of the lab too."""
    return _hash(json.dumps(plain_values(value, brief=True), sort_keys=True).encode())


def _as_it_is(value: Any) -> Any:
    return value


def _is_later_default(field: Field[Any], value: Any) -> bool:
    return bool(field.metadata.get("later")) and value == field.default


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
    label = value.get("is") if isinstance(value, Mapping) else None
    return textwrap.shorten(label if isinstance(label, str) else json.dumps(value), 40)


# Source


def _label(thing: Any, sources: dict[str, str] | None) -> str:
    name = getattr(thing, "__name__", type(thing).__name__)
    if not _personal(thing):
        return name
    source = "\n".join(_source(thing, {}))
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


def _source(thing: Any, visited: dict[int, Any]) -> Iterator[str]:
    """All that decides what a class or function does, in lines that are the same for the same program."""
    match thing:
        case None | bool() | int() | float() | str() | bytes():
            yield repr(thing)
            return
        case Enum():
            yield f"{type(thing).__name__} {thing.name}"
            yield from _source(thing.value, visited)
            return
        case partial() | partialmethod():
            inner = (thing.func, thing.args, *sorted(thing.keywords.items()))
        case staticmethod() | classmethod() | MethodType():
            inner = (thing.__func__, getattr(thing, "__self__", None))
        case property():
            inner = (thing.fget, thing.fset, thing.fdel)
        case cached_property():
            inner = (thing.func,)
        case tuple() | list() | deque():
            inner: tuple[Any, ...] = tuple(thing)
        case dict() | MappingProxyType():
            inner = tuple(thing.items())
        case _:
            inner = ()
    if inner:
        yield str(type(thing).__name__)
    if id(thing) in visited:
        return
    if not isinstance(thing, tuple):  # of which Python may make one where the program has two
        visited[id(thing)] = thing  # kept, so that nothing else gets its id
    if inner:
        yield from _of_all(inner, visited)
    elif isinstance(thing, set | frozenset):
        yield str(sorted(map(_stable, thing)))
    elif isinstance(thing, np.ndarray):
        yield f"{thing.dtype} {thing.shape} {_hash(thing.tobytes())}"
    elif type(thing).__module__.startswith("torch") and hasattr(thing, "layout"):  # a tensor: nothing here loads torch
        tensor: Any = thing
        yield f"{tensor.dtype} {tuple(tensor.shape)}"
        if str(tensor.layout) == "torch.strided" and tensor.device.type != "meta":
            yield _hash(tensor.detach().cpu().double().numpy().tobytes())
    elif isinstance(thing, type):
        yield f"class {thing.__name__}"
        if _personal(thing):
            yield from _of_all(thing.__bases__, visited)
            methods = [member for member in vars(thing).values() if isinstance(member, FunctionType)]
            codes = [code for method in methods for code in _codes(method.__code__)]
            collecting = {name for code in codes for name in _filled_names(code, ("LOAD_ATTR",))}
            for name, member in sorted(vars(thing).items()):
                state = name in collecting and isinstance(member, list | dict | set)
                if not (state or _BOOKKEEPING.fullmatch(name) or _generated(thing, member)):
                    yield name
                    yield from _source(member, visited)
    elif isinstance(thing, FunctionType):
        yield from _source_of_function(thing, visited)
    elif "__wrapped__" in getattr(thing, "__dict__", {}):  # as what `lru_cache` makes
        yield from _source(inspect.unwrap(thing), visited)  # pyright: ignore[reportArgumentType]
    elif is_dataclass(thing):
        yield from _of_all((type(thing), *(getattr(thing, it.name) for it in fields(thing))), visited)
    elif _personal(type(thing)):
        public = {name: inner for name, inner in getattr(thing, "__dict__", {}).items() if not name.startswith("_")}
        yield from _of_all((type(thing), *sorted(public.items())), visited)
    else:
        yield _stable(thing)


def _source_of_function(function: FunctionType, visited: dict[int, Any]) -> Iterator[str]:
    yield f"def {function.__name__}"
    # A decorator gives what it makes the module of what it decorates: where it was written, its globals say.
    home = sys.modules.get(function.__globals__.get("__name__", ""))
    foreign = isinstance(home, ModuleType) and not _personal(home)
    if foreign and not (_personal(function) and hasattr(function, "__wrapped__")):
        return
    codes = list(_codes(function.__code__))
    collecting = {name for code in codes for name in _filled_names(code)}
    named = list(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    named = [(name, cell) for name, cell in named if name not in collecting]
    yield function.__code__.co_qualname if foreign else _text(function)
    yield from _of_all((function.__defaults__, *sorted((function.__kwdefaults__ or {}).items())), visited)
    yield from _of_all((cell.cell_contents for _, cell in named if _filled(cell)), visited)
    if foreign:
        return
    attributes = sorted({name for code in codes for name in code.co_names})
    instructions = [each for code in codes for each in dis.get_instructions(code)]
    for name in sorted({each.argval for each in instructions if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}):
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType) and _personal(value):
            yield from _of_all((vars(value)[key] for key in attributes if key in vars(value)), visited)
        elif name in function.__globals__ and name not in collecting:
            yield f"{name} ="
            yield from _source(value, visited)
    for name in sorted({each.argval for each in instructions if each.opname == "IMPORT_NAME"}):
        yield _module_text(name)


def _stable(thing: Any) -> str:
    """What Python prints of a value, where that says what it is and not where in memory it lies."""
    if name := getattr(thing, "__name__", ""):
        return str(name)
    printed = repr(thing)
    return type(thing).__name__ if re.search(r" at 0x|<", printed) else printed


def _module_text(name: str) -> str:
    """The file of a module of a person's own that a function imports when it is called; empty for others."""
    if name.split(".")[0] in {"chameleon_lab", *sys.stdlib_module_names}:
        return ""
    try:
        path = getattr(importlib.util.find_spec(name), "origin", None) or ""
    except (ImportError, ValueError):
        return ""
    return Path(path).read_text() if path.endswith(".py") and not path.startswith(LIBRARIES) else ""


FILLERS = {"add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "remove"}
FILLERS |= {"setdefault", "sort", "update"}
"""Methods that change a list, set or mapping."""


def _filled_names(code: CodeType, loads: tuple[str, ...] = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF")) -> Iterator[str]:
    """Names of the lists and mappings that code puts things into: what it collects there is not what it does."""
    instructions = list(dis.get_instructions(code))
    for at, each in enumerate(instructions):
        if not each.opname.startswith(loads):
            continue
        after = instructions[at + 1 :]
        following = next((other for other in after if other.opname not in ("PUSH_NULL", "CACHE")), None)
        method = following.argval if following and following.opname.startswith(("LOAD_ATTR", "LOAD_METHOD")) else ""
        past = ("LOAD_", "CACHE", "COPY", "BUILD_SLICE")
        then = next((other.opname for other in after if not other.opname.startswith(past)), "")
        in_place = re.search(r"[a-z]_$", method)  # as torch's are called
        if method in FILLERS or in_place or then in ("STORE_SUBSCR", "DELETE_SUBSCR"):
            yield each.argval


def _of_all(things: Iterable[Any], visited: dict[int, Any]) -> Iterator[str]:
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


def _text(function: FunctionType) -> str:
    """A function's source without comments and docstrings; where there is none, what Python made of it."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function.__code__)))
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
        _compiled(each) if isinstance(each, CodeType) else "\n".join(_source(each, {})) for each in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {constants}"
