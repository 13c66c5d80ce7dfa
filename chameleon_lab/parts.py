"""What a part that a person wrote must have: said where an experiment is made, not where a training stumbles on it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any


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
    if isinstance(count, bool) or not isinstance(count, int) or count < least:
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
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value!r}.")
    number: Any = value
    if whole and number != int(number):
        raise ValueError(f"{name} must be a whole number, not {value!r}.")
    return int(number) if whole else float(number)
