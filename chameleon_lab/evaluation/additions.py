"""What a person brings to presets and comparisons: fixes, corpora, monitors, rules and quantizers of their own."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from torch import nn

from chameleon_lab.files import absence
from chameleon_lab.monitors.alarms import Rule, check_rules
from chameleon_lab.monitors.watch import Moment, Monitor, Readings, check_monitors
from chameleon_lab.native_ops import version
from chameleon_lab.plain import fingerprint
from chameleon_lab.stability import KINDS, StabilityFix, kind
from chameleon_lab.tokenizers.quantizers import Quantizer
from chameleon_lab.training.data import Data


@dataclass(frozen=True)
class Additions:
    """By name: fixes (or several at once) beside the lab's variations, corpora in place of the shipped pairs, monitors
    of all runs beside the default ones, rules beside the alarms that are compared, and quantizers.

    `quantizers`: what makes one of a number of codes and a width, such as its class. Raises ValueError for what is none
    of these.
    """

    fixes: Mapping[str, StabilityFix | Sequence[StabilityFix]] = field(default_factory=dict)
    corpora: Mapping[str, Data] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)
    quantizers: Mapping[str, Callable[[int, int], Quantizer]] = field(default_factory=dict)
    monitors: Mapping[str, Monitor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for fix in self.fixes.values():
            for each in several(fix):
                kind(each)
        for name, source in self.corpora.items():
            if not _is_data(source):
                raise ValueError(f"{name} = {source!r} is no corpus: it has no `open` (see training.data.Data).")
        check_rules(tuple(self.rules.values()))
        check_monitors(tuple(self.monitors.values()))

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) for each in fields(self))

    def __str__(self) -> str:
        parts = {each.name: getattr(self, each.name) for each in fields(self)}
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names) or "nothing"

    @property
    def mark(self) -> str:
        """Letters that tell these corpora from others in the name of a folder; empty without any."""
        return fingerprint(dict(self.corpora)) if self.corpora else ""


@dataclass(frozen=True)
class ReadOnlyMonitor:
    """A person's monitor, in runs that it must not change."""

    monitor: Monitor

    @property
    def every(self) -> int:
        return self.monitor.every

    def watch(self, moment: Moment) -> Generator[None, None, Readings]:
        """As the monitor's own, in which torch counts changes of weights. Raises ValueError where there was one."""
        watch = self.monitor.watch(moment)
        changes = _changes(moment.model)
        while True:
            try:
                next(watch)
            except StopIteration as end:
                if _changes(moment.model) != changes:
                    raise ValueError(
                        f"{self.monitor} changes weights, so it is no monitor but a fix of the step: give its class "
                        "`changes_weights = True`, and it stands beside the other fixes."
                    ) from None
                return end.value
            yield
            changes = _changes(moment.model)  # after the step's own


def _changes(model: nn.Module) -> list[int]:
    return [version(weight) for weight in model.parameters()]


def several(fix: StabilityFix | Sequence[StabilityFix]) -> tuple[Any, ...]:
    """One fix, or more, as a tuple."""
    return tuple(fix) if isinstance(fix, Sequence) else (fix,)


def read_additions(path: Path | str) -> Additions:
    """What a Python file's top-level names are bound to, as far as it is a fix, corpus, monitor, rule or quantizer.

    The file is executed, so it must be one that you trust. Names that begin with an underscore, and what the file
    imports, are left out. A class of the file without an instance among them is taken too, where it can be made without
    arguments, by its name in small letters: `KeyNorm` is `key_norm`. Of quantizers it is what makes one: a class, a
    `functools.partial` of one, or a function of a number of codes and a width that says `-> Quantizer`. A list or tuple
    of fixes is one variation with all of them. What has `watch` reads all runs, as a monitor; a fix of the step says
    that it is one by `changes_weights = True`.

    Raises ValueError where the file is not there, fails, or holds nothing of the kind.
    """
    path = Path(path)
    if fault := absence(path):
        raise ValueError(f"{path} {fault}: name a file that defines a part of your own.")
    module = module_of_file(path)
    foreign = _imports(path)
    public = {name: thing for name, thing in vars(module).items() if not name.startswith("_") and name not in foreign}
    types = {name: thing for name, thing in public.items() if isinstance(thing, type)}
    classes = {name: type_ for name, type_ in types.items() if type_.__module__ == module.__name__}
    values = {
        name: thing
        for name, thing in public.items()
        if name not in types and not isinstance(thing, ModuleType) and not inspect.isroutine(thing)
    }
    bound = {
        type(each) for thing in values.values() for each in (thing if isinstance(thing, list | tuple) else [thing])
    }
    for name, type_ in classes.items():
        if type_ not in bound and not _is_quantizer(type_) and _takes_nothing(type_):
            values[re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()] = type_()
    additions = Additions(
        fixes={name: several(thing) for name, thing in values.items() if _is_fix(thing) and not _is_monitor(thing)},
        corpora={name: thing for name, thing in values.items() if _is_data(thing)},
        rules={name: thing for name, thing in values.items() if callable(getattr(thing, "judge", None))},
        quantizers={name: thing for name, thing in (public | classes).items() if _makes_quantizers(thing, classes)},
        monitors={name: thing for name, thing in values.items() if _is_monitor(thing)},
    )
    if not additions:
        raise ValueError(
            f"{path} defines no fix ({', '.join(KINDS)}), corpus (open), monitor (watch), rule (judge) or quantizer "
            "(a class, a partial of one, or a function that says `-> Quantizer`): bind one to a name at its top level, "
            "such as `mine = KeyNorm()`."
        )
    return additions


def module_of_file(path: Path) -> ModuleType:
    """A person's Python file, executed: it must be one that you trust. It may import what lies beside it, as a script
    may. Raises ValueError, naming it, where it is not there or fails."""
    if fault := absence(path):
        raise ValueError(f"{path} {fault}: name a Python file.")
    # By the file's own name and among the loaded modules, so that a run can record the source of what it defines.
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_{fingerprint(str(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if (beside := str(path.resolve().parent)) not in sys.path:
        # Last, so that it hides nothing installed; for good, since a fix may import only as it takes hold.
        sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{path} fails: {type(error).__name__}: {error}.") from error
    return module


def _imports(path: Path) -> set[str]:
    """The names that a file's import statements bind, and nothing else of it."""
    nodes = list(ast.walk(ast.parse(path.read_bytes())))
    names = {
        (alias.asname or alias.name).split(".")[0]
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    return names - {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _is_fix(thing: Any) -> bool:
    parts = several(thing) if isinstance(thing, list | tuple) else (thing,)
    return bool(parts) and all(any(callable(getattr(part, method, None)) for method in KINDS) for part in parts)


def _is_monitor(thing: Any) -> bool:
    return callable(getattr(thing, "watch", None)) and not getattr(thing, "changes_weights", False)


def _is_data(thing: Any) -> bool:
    return callable(getattr(thing, "open", None)) and not isinstance(thing, Path)


def _is_quantizer(type_: type) -> bool:
    return issubclass(type_, nn.Module) and all(hasattr(type_, name) for name in ("codes", "latents"))


def _makes_quantizers(thing: Any, classes: Mapping[str, type]) -> bool:
    """Whether a file's name is bound to a class of quantizers of its own, or to what makes quantizers of any class."""
    if isinstance(thing, type):
        return thing in classes.values() and _is_quantizer(thing)
    if isinstance(thing, partial):
        return isinstance(thing.func, type) and _is_quantizer(thing.func)
    try:
        product = get_type_hints(thing).get("return") if inspect.isfunction(thing) else None
    except Exception:  # an annotation that cannot be resolved says nothing
        return False
    return product is Quantizer or (isinstance(product, type) and _is_quantizer(product))


def _takes_nothing(type_: type) -> bool:
    try:
        inspect.signature(type_).bind()
    except (TypeError, ValueError):
        return False
    return True
