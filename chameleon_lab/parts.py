"""What a part that a person wrote must have: said where an experiment is made, not where a training stumbles on it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Integral
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def require(thing: Any, what: str, *members: str) -> None:
    """Raises ValueError where a `thing` given as `what` is a class and not one of its instances, or lacks a member."""
    if isinstance(thing, type):
        raise ValueError(
            f"{thing.__name__} is a class, where {what} is wanted: give one of its instances, {thing.__name__}()."
        )
    if lacking := [name for name in members if not hasattr(thing, name)]:
        raise ValueError(f"{thing!r} is no {what.split(' ', 1)[1]}: it lacks {', '.join(lacking)}.")


def require_count(count: Any, what: str, least: int) -> None:
    """Raises ValueError where a number of `what` is no whole number, or less than `least`."""
    if isinstance(count, bool) or not isinstance(count, Integral) or count < least:
        raise ValueError(f"The number of {what} must be a whole number from {least} on, not {count!r}.")


def require_each(things: Any, what: str, *members: str) -> None:
    """The same of each of a sequence of them. Raises ValueError where they are none."""
    if not isinstance(things, Sequence) or isinstance(things, str):
        raise ValueError(f"There may be several of {what}, in a tuple: got {things!r} itself.")
    for thing in things:
        require(thing, what, *members)


def plain_number(value: Any, name: str, whole: bool = False) -> Any:
    """A `float`, or where it is to be `whole` an `int`, of the same value.

    Raises ValueError for what is no finite number, or none that is whole. A truth value is no number.
    """
    try:
        finite = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError as error:
        raise ValueError(f"{name} must be a finite number, not one of more than 300 digits.") from error
    if not finite:
        raise ValueError(f"{name} must be a finite number, not {value!r}.")
    number: Any = value
    if whole and number != int(number):
        raise ValueError(f"{name} must be a whole number, not {value!r}.")
    return int(number) if whole else float(number)


LARGEST_WHOLE = 2**53
"""Beyond it whole numbers of a file are none that another program could have meant."""


def require_fields(value: Any, **limits: tuple[float, float]) -> None:
    """Raises ValueError, naming class, field and value, where a field of a dataclass is not of its annotated type.

    Numbers must be finite; those with `limits` lie between the least and the most. A field annotated as something other
    than numbers, strings, truth values and tuples or mappings of them is not looked at.
    """
    hints = get_type_hints(type(value))
    for each in fields(value):
        content, hint = getattr(value, each.name), hints[each.name]
        if not _is_of(content, hint):
            kind = str(each.type).replace("typing.", "")
            raise ValueError(f"{type(value).__name__}.{each.name} must be of type {kind}, not {str(content)[:60]!r}.")
        least, most = limits.get(each.name, (-math.inf, math.inf))
        for number in content if isinstance(content, tuple) else (content,):
            if isinstance(number, numbers.Real) and not least <= float(number) <= most:
                raise ValueError(
                    f"{type(value).__name__}.{each.name} must lie in {least:,g}..{most:,g}; got {str(number)[:60]}."
                )


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as that is one of plain values."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_of(value, each) for each in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple and arguments[1:] == (...,):
        return isinstance(value, tuple) and all(_is_of(each, arguments[0]) for each in value)
    if origin is tuple:
        alike = isinstance(value, tuple) and len(value) == len(arguments)
        return alike and all(_is_of(part, of) for part, of in zip(value, arguments, strict=True))
    if origin in (dict, Mapping):
        inner = value.items() if isinstance(value, Mapping) else ()
        return isinstance(value, Mapping) and all(
            _is_of(part, of) for pair in inner for part, of in zip(pair, arguments, strict=True)
        )
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return whole and abs(int(value)) <= LARGEST_WHOLE
    if hint is float:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return number and (not isinstance(value, int) or abs(value) <= LARGEST_WHOLE) and math.isfinite(value)
    if hint in (str, NoneType):
        return isinstance(value, hint)
    return True
