"""What a part that a person wrote must have: said where an experiment is made, not where a training stumbles on it."""

from __future__ import annotations

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


def require_each(things: Any, what: str, *members: str) -> None:
    """The same of each of a sequence of them. Raises ValueError where they are none."""
    if not isinstance(things, Sequence) or isinstance(things, str):
        raise ValueError(f"There may be several of {what}, in a tuple: got {things!r} itself.")
    for thing in things:
        require(thing, what, *members)
