"""An iterator whose items cannot get lost between it and its reader, whenever Ctrl+C comes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import chain
from typing import TypeVar

Item = TypeVar("Item")


class Handover(chain[Item]):
    """The items of the iterators that a generator yields.

    Python raises KeyboardInterrupt between any two of its instructions. A generator that takes an item from where it
    is stored and then yields it has such a place between the two, and the item would be in neither. Here the items lie
    in iterators that outlive this object (a list's, say), and `chain`, which is C, moves each to the reader in one go:
    afterwards the iterator itself tells which ones were read.
    """

    _source: Generator[Iterator[Item], None, None]

    @classmethod
    def of(cls, source: Generator[Iterator[Item], None, None]) -> Handover[Item]:
        handover = cls.from_iterable(source)
        assert isinstance(handover, Handover)
        handover._source = source
        return handover

    def close(self) -> None:
        """Ends it, as a generator's `close` does: what was not read stays where it lies."""
        self._source.close()
