"""An experiment as the Python that makes it again, for a person to read and to edit."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

from chameleon_lab.plain import plain_values


@dataclass
class Expression:
    """An expression, and the names that it takes from which modules; `files` of a person's own are among these."""

    expression: str
    imports: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    @property
    def lines(self) -> str:
        """The imports, as Python has them."""
        return "".join(
            f"from {module} import {', '.join(sorted(names))}\n" for module, names in sorted(self.imports.items())
        )

    @property
    def files(self) -> list[Path]:
        """Modules that are no part of an installed package: they have to travel along."""
        paths = [
            Path(getattr(sys.modules[name], "__file__", None) or "") for name in sorted(self.imports) if "." not in name
        ]
        return [
            path
            for path in paths
            if path.suffix == ".py" and "site-packages" not in path.parts and path.is_file() and not _of_python(path)
        ]


def _of_python(path: Path) -> bool:
    return Path(math.__spec__.origin or "").parent in path.parents or Path(sys.base_prefix) in path.parents


def python_of(value: Any, bases: Mapping[str, tuple[str, str, Any]] | None = None) -> Expression:
    """The Python that makes an equal value. `bases`: names to (module, expression, value): a dataclass whose `name` is
    among them is written as its difference from that one.

    Raises ValueError, naming it, for what has no place in a file: an object that is no dataclass, a function or class
    of a notebook cell.
    """
    source = Expression("")
    source.expression = _Writer(source).whole(value, bases or {})
    namespace: dict[str, Any] = {}
    exec(source.lines + f"value = {source.expression}", namespace)  # our own words, written above from plain values
    if plain_values(namespace["value"]) != plain_values(value):
        raise ValueError(f"{type(value).__name__} cannot be written as Python: what that makes is not equal to it.")
    return source


class _Writer:
    def __init__(self, source: Expression) -> None:
        self.imports = source.imports

    def whole(self, value: Any, bases: Mapping[str, tuple[str, str, Any]]) -> str:
        module, expression, base = bases.get(getattr(value, "name", ""), ("", "", None))
        if base is None or type(base) is not type(value):
            if not is_dataclass(value) or isinstance(value, type):
                return self.write(value, "")
            parts = "".join(f"    {part},\n" for part in self.parts(value, ""))
            return f"{self.name(type(value), '')}(\n{parts})"
        self.imports[module].add(expression.partition("[")[0])
        apart = [
            it.name
            for it in fields(value)
            if plain_values(getattr(value, it.name)) != plain_values(getattr(base, it.name))
        ]
        if not apart:
            return expression
        self.imports["dataclasses"].add("replace")
        changes = "".join(f"    {name}={self.write(getattr(value, name), name)},\n" for name in apart)
        return f"replace(\n    {expression},\n{changes})"

    def write(self, value: Any, where: str) -> str:
        match value:
            case Enum():
                return f"{self.name(type(value), where)}.{value.name}"
            case float() if not math.isfinite(value):
                return f"float({str(value)!r})"
            case None | bool() | int() | float() | str() | bytes():
                return repr(value)
            case Path():
                self.imports["pathlib"].add("Path")
                return f"Path({str(value)!r})"
            case Mapping():
                inner = ", ".join(
                    f"{self.write(key, where)}: {self.write(value[key], f'{where}.{key}')}" for key in value
                )
                return f"{{{inner}}}"
            case tuple() | list() | set() | frozenset():
                inner = ", ".join(self.write(each, f"{where}.{at}") for at, each in enumerate(value))
                if isinstance(value, list):
                    return f"[{inner}]"
                return (
                    f"({inner}{',' * (len(value) == 1)})"
                    if isinstance(value, tuple)
                    else f"{type(value).__name__}([{inner}])"
                )
            case partial():
                self.imports["functools"].add("partial")
                arguments = [self.write(each, where) for each in value.args]
                arguments += [f"{key}={self.write(each, f'{where}.{key}')}" for key, each in value.keywords.items()]
                return f"partial({', '.join([self.write(value.func, where), *arguments])})"
            case type() | FunctionType():
                return self.name(value, where)
        if not is_dataclass(value):
            raise ValueError(
                f"{where or 'This'} is {value!r:.80}, which cannot be written into a file. Where it is a part of an "
                "experiment, give a folder's path or a dataclass; where it is an argument of the trainer, write it "
                "into train.py yourself."
            )
        return f"{self.name(type(value), where)}({', '.join(self.parts(value, where))})"

    def parts(self, value: Any, where: str) -> list[str]:
        """What a dataclass's constructor is given that is not its default."""
        usual = [it for it in fields(value) if it.init and not _is_default(it, getattr(value, it.name))]
        return [f"{it.name}={self.write(getattr(value, it.name), f'{where}.{it.name}'.strip('.'))}" for it in usual]

    def name(self, thing: Any, where: str) -> str:
        if thing.__module__ == "builtins":
            return thing.__qualname__
        if thing.__module__ == "__main__" or not thing.__qualname__.isidentifier():
            raise ValueError(
                f"{where or 'This'} is {thing.__qualname__}, which another process cannot import. Write it into a file "
                f"of its own at the top level (%%writefile mine.py in a cell), and import it: from mine import ..."
            )
        self.imports[thing.__module__].add(thing.__qualname__)
        return thing.__qualname__


def _is_default(it: Any, value: Any) -> bool:
    default = it.default_factory() if it.default_factory is not MISSING else it.default
    return default is not MISSING and plain_values(default) == plain_values(value)
