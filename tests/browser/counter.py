"""The smallest widget: a number that is counted up from either side. It shows what a new widget has to write."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import anywidget

from chameleon_widgets.line import Line, Part


class Count(TypedDict):
    kind: Literal["count"]
    count: int


class Counter(anywidget.AnyWidget):
    _esm = 'export { default } from "http://widgets.test/tests/browser/counter.js";'

    def __init__(self) -> None:
        self.count = 0
        super().__init__()
        self._line = Line(self, "counter", flush=self._flush, still=self._still, handlers={"add": self._add})

    def add(self, amount: int) -> None:
        self.count += amount
        self._line.tell("count")
        self._line.renew_still()

    def _add(self, content: dict[str, Any], _: object) -> None:
        self.add(int(content["amount"]))

    def _flush(self, due: frozenset[Part]) -> None:
        if due:
            self._line.send(Count(kind="count", count=self.count))

    def _still(self) -> tuple[str, str]:
        return f"<p>{self.count}</p>", f"A counter at {self.count}"
