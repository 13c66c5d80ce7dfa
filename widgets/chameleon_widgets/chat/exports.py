"""The files that a conversation is exported to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np

from chameleon_lab.documents import Document
from chameleon_widgets.chat.archive import markdown_archive, tree_to_json
from chameleon_widgets.chat.conversation import Conversation
from chameleon_widgets.chat.turn_inspectors import TurnInspectors
from chameleon_widgets.standalone import Recording, page
from chameleon_widgets.stills import STYLE

EXPORTS: dict[str, tuple[str, str, str]] = {
    "json": ("All branches (JSON)", "application/json", "conversation.json"),
    "markdown": ("Markdown and pictures (zip)", "application/zip", "conversation.zip"),
    "tokens": ("Token ids (JSON)", "application/json", "tokens.json"),
    "page": ("Web page (HTML)", "text/html", "conversation.html"),
    "document": ("The path shown (JSON)", "application/json", "document.json"),
}
"""Of each export: what it is, its media type, the file's name."""


class ChatExport:
    """Makes the files. `tokens` gives a document's token ids, where it is known; `inspectors` are live in the page."""

    def __init__(
        self,
        conversation: Conversation,
        tokens: Callable[[Document], Sequence[int] | np.ndarray] | None,
        inspectors: TurnInspectors,
    ) -> None:
        self._conversation, self._tokens, self._inspectors = conversation, tokens, inspectors

    def offers(self, name: str) -> bool:
        return name != "tokens" or self._tokens is not None

    def file(self, name: str) -> tuple[bytes, str, str]:
        """(content, media type, file name) of an export. Raises ValueError for one that there is not."""
        if name not in EXPORTS or not self.offers(name):
            there = ", ".join(each for each in EXPORTS if self.offers(each))
            raise ValueError(f"There is no export {name[:20]!r}; there are {there}.")
        _, kind, file = EXPORTS[name]
        makers = {
            "json": lambda: tree_to_json(self._conversation).encode(),
            "document": lambda: self._conversation.document_to().to_json().encode(),
            "markdown": lambda: markdown_archive(self._conversation),
            "tokens": self._token_ids,
            "page": self._page,
        }
        return makers[name](), kind, file

    def _token_ids(self) -> bytes:
        assert self._tokens is not None
        whole = self._tokens(self._conversation.document_to())
        replies = [
            {"key": each.key, "prefix": len(each.prefix), "tokens": each.tokens} for each in self._conversation.path
        ]
        return json.dumps({"document": [int(token) for token in whole], "replies": replies}).encode()

    def _page(self) -> bytes:
        recordings = self._inspectors.recordings()
        parts, widgets = [f"<style>{STYLE}</style><h1>Conversation</h1>"], dict[str, Recording]()
        for each in self._conversation.path:
            body, _ = self._conversation.fragment(each)
            parts.append(f'<section class="chameleon-still">{body}</section>')
            if each.key in recordings:
                widgets[f"turn-{each.key}"] = recordings[each.key]
                parts.append(f'<div data-widget="turn-{each.key}"></div>')
        return page("Conversation", "".join(parts), widgets).encode()
