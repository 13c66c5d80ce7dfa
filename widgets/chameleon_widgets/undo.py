"""What was done to a thing step by step, and the way back."""

from __future__ import annotations

from typing import Generic, TypeVar

STEPS = 500  # that can be undone

UndoState = TypeVar("UndoState")


class UndoHistory(Generic[UndoState]):
    """States of a thing in the order in which they came about, and where among them one stands."""

    def __init__(self) -> None:
        self._states: list[UndoState] = []
        self._at = -1
        self._stroke = ""

    @property
    def now(self) -> UndoState | None:
        return self._states[self._at] if self._states else None

    @property
    def ways(self) -> tuple[int, int]:
        """UndoHistory that can be taken back, and forth."""
        return max(0, self._at), len(self._states) - 1 - self._at

    def put(self, state: UndoState, stroke: str = "") -> None:
        """Adds a step, or goes on with the last one when that is of the same stroke. What was undone is forgotten."""
        if not stroke or stroke != self._stroke:
            self._at += 1
        self._states[self._at :] = [state]
        del self._states[: -STEPS - 1]
        self._at, self._stroke = len(self._states) - 1, stroke

    def move(self, steps: int) -> None:
        """Back where `steps` is negative, forth where it is positive, as far as there is a way."""
        self._at, self._stroke = min(max(0, self._at + steps), len(self._states) - 1), ""
