"""The inspectors that are open under turns of a chat, and the branches that grow from them."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence

from chameleon_lab.documents import EndTurn
from chameleon_lab.vocabulary import Modality
from chameleon_widgets.chat.arguments import arguments_of
from chameleon_widgets.chat.conversation import Conversation
from chameleon_widgets.chat.exchange import Exchange
from chameleon_widgets.inspect.inspector import Inspector, Look
from chameleon_widgets.line import paragraph
from chameleon_widgets.standalone import Recording
from chameleon_widgets.threads import log

COMING = "…"  # in place of an inspector's model id, while the model looks


class TurnInspectors:
    """`inspect` gives the look at a document; `branch(exchange, prefix, forced, seed)` begins another reply with tokens
    of an inspected one. `ids`: the model id of the inspector under each exchange that has one, by its key."""

    def __init__(
        self,
        conversation: Conversation,
        inspect: Callable[..., Look] | None,
        branch: Callable[[Exchange, Sequence[int], bool, int], None],
    ) -> None:
        self._conversation, self._inspect, self._branch = conversation, inspect, branch
        self._widgets: dict[int, Inspector] = {}
        self._context: contextvars.Context | None = None
        self.ids: dict[int, str] = {}

    def prepare(self, exchange: Exchange) -> None:
        """Notes that an inspector is coming. The kernel's idea of who is answered goes with it to the worker's thread:
        there a widget would seem to belong to whichever cell runs meanwhile."""
        if self._inspect is None:
            raise ValueError("This cell cannot look inside: make it with ChatCell(stream, inspect=lab.inspect).")
        self._context = contextvars.copy_context()
        self.ids.setdefault(exchange.key, COMING)

    def open(self, exchange: Exchange, done: Callable[[str], None]) -> None:
        """Looks at the document up to and including the exchange; `done` is called with what went wrong, or nothing."""
        if self.ids.get(exchange.key) != COMING:
            return done("")  # it is open, or was closed again meanwhile
        try:
            assert self._inspect is not None and self._context is not None
            guidance = exchange.settings.get("guidance")
            options = (
                {"guidance": guidance} if guidance is not None and "guidance" in arguments_of(self._inspect)[0] else {}
            )
            look = self._inspect(self._conversation.document_to(exchange), **options)
            self._widgets[exchange.key] = self._context.run(self._make, exchange, look)
            self.ids[exchange.key] = self._widgets[exchange.key].model_id or ""
        except Exception as error:
            log.info("a turn could not be looked into", exc_info=True)
            self.ids.pop(exchange.key, None)
            return done(f"This turn cannot be looked into: {paragraph(error)}")
        done("")

    def _make(self, exchange: Exchange, look: Look) -> Inspector:
        def branch(position: int, token: int | None, seed: int) -> None:
            self._branch(exchange, self._prefix(exchange, look, position, token), token is not None, seed)

        return Inspector(look, branch=branch)

    def _prefix(self, exchange: Exchange, look: Look, position: int, token: int | None) -> list[int]:
        """The tokens of the reply before a position, and the one that is put there. Raises ValueError for a position
        that is not the reply's."""
        readings = look.readings
        ends = [
            at for at, each in enumerate(readings) if each.words == "end_turn" and each.modality == Modality.SPECIAL
        ]
        turns = sum(isinstance(part, EndTurn) for part in self._conversation.document_to(exchange, reply=False))
        start = ends[turns - 1] + 1
        if position < start:
            raise ValueError("This was not written by the model: choose a word or a patch of its reply.")
        return [each.token for each in readings[start:position]] + ([] if token is None else [token])

    def recordings(self) -> dict[int, Recording]:
        """What the open inspectors show, for a page without a kernel, by the key of their exchange."""
        return {key: widget.recording() for key, widget in self._widgets.items()}

    def close(self, exchange: Exchange) -> None:
        self.ids.pop(exchange.key, None)
        exchange.version += 1
        if (widget := self._widgets.pop(exchange.key, None)) is not None:
            widget.close()

    def end(self) -> None:
        """Closes all of them: the cell was run again, or is gone."""
        for key in [*self._widgets]:
            self.ids.pop(key, None)
            self._widgets.pop(key).close()
