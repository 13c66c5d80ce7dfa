"""What the views of a chat cell have been sent, so that each message holds only what is new."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image

from chameleon_lab.documents import Image, Text
from chameleon_lab.records import ImagePiece
from chameleon_widgets.chat.conversation import CHAT_SIDE, Conversation
from chameleon_widgets.chat.exchange import Exchange, Words, describe, facts_of
from chameleon_widgets.chat.messages import ConversationShape, ConversationUpdate, ExchangeNews, PartNews
from chameleon_widgets.line import paragraph
from chameleon_widgets.pictures import png

LABEL = 40  # characters of a message in the drawing of the tree


class Delivery:
    """What the views have of one exchange: its version, parts, and other fields."""

    def __init__(self) -> None:
        self.version: object = None
        self.user: list[Any] = []
        self.reply: list[Any] = []
        self.reconstructions: set[int] = set()
        self.fields: dict[str, Any] = {}


class ConversationFeed:
    """`pending` holds an event for each message not yet replied to, set when that was given up; `inspectors` the model
    id of the inspector that is open under an exchange, by its key; `resumes`: whether replies can be continued."""

    def __init__(
        self,
        conversation: Conversation,
        pending: list[threading.Event],
        inspectors: Mapping[int, str],
        resumes: bool,
    ) -> None:
        self._conversation, self._pending = conversation, pending
        self._inspectors, self._resumes = inspectors, resumes
        self._deliveries: dict[int, Delivery] = {}
        self._order: list[int] | None = None
        self._shape = -1
        self._number = 0
        self._busy = False

    def update(self, whole: bool = False) -> tuple[ConversationUpdate, list[bytes]] | None:
        """The next message and its buffers, with everything where it is `whole`; None when there is nothing new."""
        conversation = self._conversation
        with conversation.lock:
            if whole:
                self._deliveries, self._order, self._shape = {}, None, -1
            pictures: list[PIL.Image.Image] = []
            path = conversation.path
            beside = [each for each in conversation.strip if each not in path] if conversation.strip else []
            changed = [news for each in (*path, *beside) if (news := self._news(each, pictures))]
            order = [each.key for each in path]
            busy = not all(each.is_set() for each in tuple(self._pending))
            shape = self._shape_of(path) if conversation.shape != self._shape else None
            self._shape = conversation.shape
        if not (whole or changed or shape or order != self._order or busy != self._busy):
            return None
        self._order, self._number, self._busy = order, self._number + 1, busy
        if shape:
            visible = {*order, *(each.key for each in beside)}
            self._deliveries = {key: each for key, each in self._deliveries.items() if key in visible}
        message = ConversationUpdate(
            kind="update", number=self._number, busy=busy, whole=whole, order=order, changed=changed
        )
        if shape:
            message["shape"] = shape
        return message, [png(picture, CHAT_SIDE) for picture in pictures]

    def _shape_of(self, path: list[Exchange]) -> ConversationShape:
        variants = []
        for each in path:
            messages, replies = self._conversation.variants(each)
            if len(messages) + len(replies) > 2:
                keys = [[other.key for other in some] if len(some) > 1 else [] for some in (messages, replies)]
                variants.append({"key": each.key, "messages": keys[0], "replies": keys[1]})
        exchanges = self._conversation.exchanges
        tree = []
        if len(exchanges) > len(path):  # there is a branch: a path alone needs no drawing
            for each in exchanges:
                phrase = " ".join(part.text for part in each.user if isinstance(part, Text)).strip()
                words = phrase[:LABEL] or ("a picture" if each.user else "…")
                parent = each.parent.key if each.parent else 0
                tree.append({"key": each.key, "parent": parent, "words": words, "origin": each.origin})
        return {"variants": variants, "tree": tree, "strip": [each.key for each in self._conversation.strip]}

    def _news(self, exchange: Exchange, pictures: list[PIL.Image.Image]) -> ExchangeNews | None:
        delivery = self._deliveries.setdefault(exchange.key, Delivery())
        inspector = self._inspectors.get(exchange.key, "")
        version = exchange.version, exchange.stopping.is_set(), inspector
        if version == delivery.version:
            return None
        delivery.version = version
        now: dict[str, Any] = {
            "state": exchange.state,
            "running": exchange.running,
            "about": "" if exchange.running else describe(exchange),
            "facts": [] if exchange.running else facts_of(exchange),
            "seed": exchange.settings.get("seed"),
            "error": paragraph(exchange.error) if exchange.error is not None else "",
            "resumable": self._resumes and exchange.resumable,
            "inspector": inspector,
        }
        news: ExchangeNews = {"key": exchange.key}
        news |= {name: value for name, value in now.items() if delivery.fields.get(name) != value}  # type: ignore[assignment]
        delivery.fields = now
        for name, parts in (("user", exchange.user), ("reply", exchange.reply)):
            if fresh := _fresh(parts, getattr(delivery, name), pictures):
                news[name] = fresh
        for at, picture in exchange.message.reconstructions.items():
            if at not in delivery.reconstructions:
                delivery.reconstructions.add(at)
                news.setdefault("user", []).append({"at": at, "reconstruction": len(pictures)})
                pictures.append(picture)
        return news if len(news) > 1 else None


def _fresh(parts: Sequence[object], delivered: list[Any], pictures: list[PIL.Image.Image]) -> list[PartNews]:
    """What of `parts` is not in `delivered` yet (text by length, pictures by identity), which is brought up to date."""
    fresh: list[PartNews] = []
    for at, part in enumerate(parts):
        before = delivered[at] if at < len(delivered) else None
        if isinstance(part, Text | Words):
            start, length = before or 0, part.length if isinstance(part, Words) else len(part.text)
            if before is None or length > start:
                fresh.append({"at": at, "start": start, "text": part.text[start:]})
            now: Any = length
        else:
            if before is not part and isinstance(part, Image | ImagePiece):
                news: PartNews = {"at": at, "picture": len(pictures)}
                if isinstance(part, ImagePiece):
                    news["row"], news["rows"] = len(part.codes), part.rows
                fresh.append(news)
                pictures.append(part.picture)
            now = part
        delivered[at : at + 1] = [now]
    return fresh
