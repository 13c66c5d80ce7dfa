"""What was said in a chat cell: a tree of exchanges, one path of which is shown. Nothing is ever taken out of it."""

from __future__ import annotations

import threading

import PIL.Image

from chameleon_lab.documents import Blank, Document, EndTurn, Image, Text
from chameleon_lab.records import ImagePiece
from chameleon_widgets import stills
from chameleon_widgets.chat.exchange import Exchange, Message, Words, describe
from chameleon_widgets.line import paragraph
from chameleon_widgets.pictures import data_uri

CHAT_SIDE = 512  # pixels: larger pictures are sent to the screen and to the still made smaller


class Conversation:
    """A tree of exchanges under `root`, which says nothing itself. Everything that reads or changes it holds `lock`.

    `shape` counts changes of the tree and of the path; `strip` holds replies to one message, to choose from.
    """

    def __init__(self, document: Document | None = None) -> None:
        self.lock = threading.RLock()
        self.root = Exchange(key=0)
        self.strip: list[Exchange] = []
        self.shape = 0
        self._by_key: dict[int, Exchange] = {}
        self._fragments: dict[int, tuple[int, str, list[str]]] = {}  # of the still: version, HTML, lines of text
        if document is not None and any(isinstance(part, Blank) for part in document):
            raise ValueError("A conversation has no blanks: lab.infill(document) fills them first.")
        for role, turn in document.turns if document is not None else ():
            if role == "user":
                self.add(Exchange(Message(turn.segments), self.tip, "import"))
            else:
                self.tip.reply = [
                    Words(part.text) if isinstance(part, Text) else part
                    for part in turn
                    if isinstance(part, Text | Image)
                ]

    @property
    def path(self) -> list[Exchange]:
        """The exchanges shown, from the first to the last."""
        with self.lock:
            path, exchange = list[Exchange](), self.root.choice
            while exchange is not None:
                path.append(exchange)
                exchange = exchange.choice
            return path

    @property
    def exchanges(self) -> list[Exchange]:
        """All exchanges, in the order in which they came."""
        with self.lock:
            return list(self._by_key.values())

    @property
    def tip(self) -> Exchange:
        """The last exchange shown, or the root."""
        path = self.path
        return path[-1] if path else self.root

    def add(self, exchange: Exchange, show: bool = True) -> None:
        """Puts an exchange under its parent, and shows it."""
        with self.lock:
            parent = exchange.parent = exchange.parent or self.root
            parent.children.append(exchange)
            self._by_key[exchange.key] = exchange
            self.shape += 1
            if show:
                self.walk(exchange)

    def remove(self, exchange: Exchange) -> None:
        """Takes out an exchange that never began."""
        with self.lock:
            parent = exchange.parent or self.root
            parent.children.remove(exchange)
            del self._by_key[exchange.key]
            self.strip = [each for each in self.strip if each is not exchange]
            if parent.choice is exchange:
                parent.choice = parent.children[-1] if parent.children else None
            self.shape += 1

    def walk(self, exchange: Exchange) -> None:
        """Shows the path through an exchange, and on to what was last shown after it."""
        with self.lock:
            while exchange.parent is not None:
                exchange.parent.choice = exchange
                exchange = exchange.parent
            self.shape += 1

    def clear(self) -> None:
        """Shows nothing: what comes next begins another conversation beside those there are."""
        with self.lock:
            self.root.choice, self.strip = None, []
            self.shape += 1

    def find(self, key: object) -> Exchange | None:
        """The exchange with this key; the last one shown for None; None where there is no such exchange."""
        with self.lock:
            if key is None:
                return self.tip if self.root.choice else None
            return self._by_key.get(key) if isinstance(key, int) else None

    def document_to(self, last: Exchange | None = None, reply: bool = True) -> Document:
        """The conversation up to `last`, or all that is shown; without its `reply`, what that was made for. A message
        that got no reply is left out unless it is the last one."""
        with self.lock:
            last, chain = last or self.tip, list[Exchange]()
            exchange: Exchange | None = last
            while exchange is not None:
                if exchange.reply or exchange is last:
                    chain.append(exchange)
                exchange = exchange.parent
            segments = [segment for each in reversed(chain[0 if reply else 1 :]) for segment in each.segments]
            if not reply and last.user:
                segments += [*last.user, EndTurn()]
            return Document(tuple(segments))

    @staticmethod
    def variants(exchange: Exchange) -> tuple[list[Exchange], list[Exchange]]:
        """What stands beside an exchange: one exchange for each wording of its message, in the order of the wordings
        (for its own, itself; for another, the last reply to it), and all replies to its own wording."""
        siblings = exchange.parent.children if exchange.parent else [exchange]
        by_message = {id(each.message): each for each in siblings}
        by_message[id(exchange.message)] = exchange
        return [*by_message.values()], [each for each in siblings if each.message is exchange.message]

    @property
    def state(self) -> str:
        """One word for the whole cell: idle, reading, writing, drawing, stopped or error."""
        last = self.find(None)
        name = last.state["name"] if last is not None else "idle"
        return "idle" if name == "done" else name

    def still(self) -> tuple[str, str]:
        """(HTML body, plain text) of the path shown, safe to put into a page."""
        path = self.path
        if not path:
            empty = "A chat cell, nothing said yet. Run the cell to talk to the model."
            return f"<p>{empty}</p>", empty
        fragments = [self.fragment(each) for each in path]
        beside = len(self._by_key) - len(path)
        note = f"{beside} more {'replies' if beside > 1 else 'reply'} on other branches." if beside else ""
        body = "".join(body for body, _ in fragments) + (f'<p class="note">{note}</p>' if note else "")
        return body, "\n".join(line for _, lines in fragments for line in lines)

    def fragment(self, exchange: Exchange) -> tuple[str, list[str]]:
        """An exchange's part of the still, drawn anew only when it has changed."""
        version, body, lines = self._fragments.get(exchange.key, (-1, "", []))
        if version != exchange.version:
            with self.lock:
                version, user, reply = exchange.version, exchange.user, list(exchange.reply)
                description, error = describe(exchange), exchange.error
            body, lines = "", []
            for who, parts in (("You", user), ("Model", reply)):
                body += f'<p class="who"><b>{who}</b></p>'
                for part in parts:
                    if isinstance(part, Text | Words):
                        kind = ' class="user"' if who == "You" else ""
                        body += f"<p{kind}>{stills.escape(part.text.strip())}</p>"
                        lines.append(f"{who}: {part.text.strip()}")
                    elif isinstance(part, Image | ImagePiece):
                        body += _still_picture(part, who)
                        lines.append(f"{who}: [picture, {part.picture.width} x {part.picture.height}]")
            body += f'<p class="note">{stills.escape(description)}</p>'
            if error is not None:
                body += f'<p class="note">Error: {stills.escape(paragraph(error))}</p>'
                lines.append(f"(error: {paragraph(error)})")
            self._fragments[exchange.key] = version, body, lines
        return body, lines


def _still_picture(part: Image | ImagePiece, who: str) -> str:
    picture, alt, width = part.picture, f"Picture: {who}", min(256, 4 * part.picture.width)
    if isinstance(part, ImagePiece) and not part.complete:
        alt, picture = f"Picture, stopped after row {len(part.codes)} of {part.rows}", faded(part)
    return stills.image(data_uri(picture, CHAT_SIDE), alt, width)


def faded(part: ImagePiece) -> PIL.Image.Image:
    """A picture with the decoder's guess at what was not drawn made faint."""
    picture = part.picture.convert("RGBA")
    faint = PIL.Image.new("L", picture.size, 60)
    faint.paste(255, (0, 0, picture.width, round(picture.height * len(part.codes) / part.rows)))
    picture.putalpha(faint)
    return picture
