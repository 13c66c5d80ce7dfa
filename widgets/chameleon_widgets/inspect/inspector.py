"""A document with each of its words and patches to point at: where the model looked, what it thought, what matters."""

from __future__ import annotations

import itertools
import math
import operator
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import anywidget
import numpy as np
import traitlets

from chameleon_lab.vocabulary import Modality
from chameleon_widgets import standalone, stills
from chameleon_widgets.inspect.answers import RELEVANCE, ROLLOUT, Look, LookAnswer, LookReader, Way
from chameleon_widgets.inspect.desk import AnswerDesk
from chameleon_widgets.inspect.messages import (
    BranchFacts,
    BranchTree,
    InspectorState,
    KnockedAlternatives,
    SavedPage,
    Selection,
    TokenDetail,
)
from chameleon_widgets.inspect.recording import AnswerBook, recording
from chameleon_widgets.line import Line, Part, assets
from chameleon_widgets.pictures import data_uri

MOST_BRANCHES = 64  # documents that are kept: each holds the stream of every layer
TITLE = 12  # words of a document that make the title of its page


@dataclass(frozen=True)
class LookBranch:
    """A document of the inspector, and what made it, in words; `parent` and `position`: from which token of which."""

    reader: LookReader
    parent: int | None
    position: int | None
    words: str


class Inspector(anywidget.AnyWidget):
    """A document as a model holds it, with each word and each cell of its images to point at.

    Where a token looked, or who looked at it, by layer and head or through all layers; of the chosen one its
    alternatives, each to be forced, and what each layer would have written; what becomes of all tokens without some of
    them; images as each layer would draw them. `look` computes what is asked for, on one thread, and nothing else uses
    it meanwhile. `branch(position, token or None, seed)` draws that document anew from a position, by default
    `look.branch`; where it returns None, somebody else shows the branch. It knows the positions of `look` alone: what
    is drawn without some tokens, and anything drawn from that, is the inspector's own.
    """

    _esm, _css = assets("inspector")

    selected: Any = traitlets.Any(
        None, help="The position chosen in the cell or from Python; None while there is none."
    )

    def __init__(self, look: Look, branch: Callable[[int, int | None, int], Look | None] | None = None) -> None:
        self._first, self._draw_elsewhere = look, branch
        self._branches: list[LookBranch] = []
        self._visible = 0
        self._seeds = itertools.count(1)
        self._hover: tuple[int, Way, int, int, int] | None = None  # the newest row asked for, until it is computed
        self._rolling: set[int] = set()  # branches whose rollout is not computed yet
        self._late_row: tuple[int, Way, int, int, int] | None = None  # a row of rollout that waits for that
        self._book = AnswerBook()
        self._outbox: deque[LookAnswer] = deque()
        self._state: InspectorState | None = None
        self._desk = AnswerDesk("inspector worker", "Reading the document")
        super().__init__()
        handlers = {
            "rows": self._want_rows,
            "select": self._select,
            "lens": self._want_lens,
            "parts": self._want_parts,
            "without": self._want_knock_out,
            "cut": self._want_cut,
            "force": self._force,
            "resample": self._resample,
            "answer": self._answer_without,
            "stop": lambda _content, _: self._desk.stop(),
            "show": self._show,
            "page": self._want_page,
            "painted": lambda _content, _: self._desk.begin_spare(),
        }
        # A hover should not wait for the next of 30 turns a second
        self._line = Line(self, "inspector", flush=self._flush, still=self._still, handlers=handlers, rate=120.0)
        self._desk.line = self._line
        self._desk.submit("Reading the document", partial(self._open, look, "the document"))

    def wait(self, timeout: float | None = None) -> None:
        """Blocks until everything begun is done. Raises TimeoutError after `timeout` seconds."""
        if not self._desk.wait(timeout):
            raise TimeoutError(f"The inspector was not done after {timeout:g} s: {self._desk.doing}. It goes on.")
        self._line.settle()

    @property
    def look(self) -> Look:
        """The look at the document that is visible: the one given, or a branch of it."""
        return self._branches[self._visible].reader.look if self._branches else self._first

    def recording(self) -> standalone.Recording:
        """What a page without a kernel is fed with: the document and its branches, rollout of all tokens of each that
        has up to 2,047, and every answer so far. Blocks until what was begun is done."""
        return self._desk.aside(self._record)

    def page(self) -> str:
        """This inspector as one HTML page that needs no kernel and no network, with all that `recording` holds."""
        return self._desk.aside(self._page)

    def save_page(self, path: Path | str) -> None:
        """Writes `page` to a file, whole or not at all."""
        standalone.write_page(path, self.page())

    @traitlets.validate("selected")
    def _valid(self, proposal: Any) -> int | None:
        if (value := proposal["value"]) is None:
            return None
        readings = self._branches[self._visible].reader.readings if self._branches else self._first.readings
        return self._whole("position", operator.index(value), len(readings))

    @traitlets.observe("selected")
    def _chosen(self, _: object) -> None:
        self._line.tell("selection")
        if self.selected is not None:
            self._desk.submit("Looking up a token", partial(self._look_up, self._visible, self.selected))

    # What the browser asks

    def _want_rows(self, content: dict[str, Any], _: object) -> bool:
        reader = self._reader(content)
        layers, heads = reader.depth
        if (way := content.get("way")) not in ("from", "by"):
            raise ValueError(f"Attention is read “from” a token or “by” others, not {way!r}.")
        layer = self._whole("layer", content.get("layer"), layers, RELEVANCE)
        head = self._whole("head", content.get("head"), heads)
        position = self._position(content.get("position"), reader, 1 if layer == RELEVANCE else 0)
        idle = not self._desk.busy
        self._desk.begin_spare()
        self._hover = reader.branch, way, layer, head, position
        self._desk.submit("", self._read_rows)
        return idle  # then the answer comes at once

    def _select(self, content: dict[str, Any], _: object) -> bool:
        reader, idle = self._reader(content), not self._desk.busy
        position = content.get("position")
        if position is not None:
            position = self._position(position, reader)
        self._visible = reader.branch
        if position is not None and position == self.selected:
            self._chosen(None)
        self.selected = position
        return idle

    def _want_lens(self, content: dict[str, Any], _: object) -> None:
        reader = self._reader(content)
        image = self._whole("image", content.get("image"), reader.images)
        layer = self._whole("layer", content.get("layer"), reader.depth[0])
        self._ask(("lens", reader.branch, image, layer), partial(reader.lens, image, layer))

    def _want_parts(self, content: dict[str, Any], _: object) -> None:
        reader = self._reader(content)
        position = self._position(content.get("position"), reader, 1)
        self._ask(("parts", reader.branch, position), partial(reader.parts, position))

    def _want_knock_out(self, content: dict[str, Any], _: object) -> None:
        reader = self._reader(content)
        positions = self._positions(content.get("positions"), reader)
        key, names = (reader.branch, *positions), self._names(reader, positions)
        of = None if (of := content.get("of")) is None else self._position(of, reader)
        self._ask(("knockout", *key), partial(reader.knock_out, positions), f"Knocking out {names}")
        if of:
            self._desk.submit("Asking again", partial(self._look_up_knocked, reader, positions, of))

    def _want_cut(self, content: dict[str, Any], _: object) -> None:
        reader = self._reader(content)
        layer = self._whole("layer", content.get("layer"), reader.depth[0])
        head = self._whole("head", content.get("head"), reader.depth[1])
        of = self._position(content.get("of"), reader)
        source = self._position(content.get("source"), reader)
        if source >= of - 1:
            raise ValueError(
                "A head's edge leads from the token before the chosen one to an earlier one: it cannot be cut there."
            )
        self._ask(
            ("cut", reader.branch, layer, head, source, of), partial(reader.cut, layer, head, source, of), "Cutting"
        )

    def _force(self, content: dict[str, Any], _: object) -> None:
        reader = self._reader(content)
        position = self._position(content.get("position"), reader, 1)
        token = self._whole("token", content.get("token"), 2**31)
        self._branch(reader, position, token, 0, f"“{reader.look.words(token)}” forced")

    def _resample(self, content: dict[str, Any], _: object) -> None:
        reader, seed = self._reader(content), next(self._seeds)
        position = self._position(content.get("position"), reader, 1)
        self._branch(reader, position, None, seed, f"drawn anew, seed {seed}")

    def _answer_without(self, content: dict[str, Any], _: object) -> None:
        reader = self._reader(content)
        positions = self._positions(content.get("positions"), reader)
        words = f"without {self._names(reader, positions)}"
        self._branch(reader, max(positions), None, 0, words, without=positions)

    def _show(self, content: dict[str, Any], _: object) -> None:
        reader = self._reader(content)
        self._visible = reader.branch
        if self.selected is not None and self.selected >= len(reader):
            self.selected = None
        self._line.tell("branches", "selection")

    def _want_page(self, _content: object, _: object) -> None:
        def write() -> None:
            self._reply((SavedPage(kind="page", name="inspector.html"), [self._page().encode()]))

        self._desk.submit("Writing the page", write)

    def _reader(self, content: dict[str, Any]) -> LookReader:
        return self._branches[self._whole("branch", content.get("branch", self._visible), len(self._branches))].reader

    def _position(self, value: object, reader: LookReader, start: int = 0) -> int:
        return self._whole("position", value, len(reader), start)

    def _positions(self, value: object, reader: LookReader) -> list[int]:
        if not isinstance(value, list) or not value:
            raise ValueError("Say which tokens to knock out: click them away first.")
        return sorted({self._position(each, reader) for each in value})

    @staticmethod
    def _whole(name: str, value: object, end: int, start: int = 0) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not start <= value < end:
            raise ValueError(f"There is no {name} {value!r}: they go from {start} to {end - 1}.")
        return value

    @staticmethod
    def _names(reader: LookReader, positions: list[int]) -> str:
        names = [f"“{reader.readings[each].words.strip()}”" for each in positions[:4]]
        return ", ".join(names) + (f" and {len(positions) - 4} more" if len(positions) > 4 else "")

    # The worker's thread

    def _ask(self, question: tuple[Any, ...], compute: Callable[[], LookAnswer], doing: str = "") -> None:
        """Has a question answered, from the book where it is in there."""

        def answer() -> None:
            reply = self._book.get(question) or compute()
            self._book.put(question, reply)
            self._reply(reply)

        self._desk.submit(doing, answer)

    def _reply(self, answer: LookAnswer) -> None:
        self._outbox.append(answer)
        self._line.tell("answers")

    def _open(
        self, look: Look, words: str, parent: int | None = None, position: int | None = None, fewer: int = 0
    ) -> None:
        """Makes a document the visible one; `fewer`: how many of its parent's tokens before the position it lacks."""
        reader = LookReader(look, len(self._branches))
        self._branches.append(LookBranch(reader, parent, position, words))
        self._visible = reader.branch
        self._reply(reader.document())
        self._line.tell("branches")
        self._rolling.add(reader.branch)
        self._desk.spare(self._draw_images(reader))
        self._desk.spare(self._roll_out(reader))
        if position is not None:
            self.selected = None
            self.selected = min(position + 1 - fewer if fewer else position, len(reader) - 1)

    def _read_rows(self) -> bool:
        hover, self._hover = self._hover, None
        if hover is None:
            return False  # an earlier turn has answered a newer hover
        branch, way, layer, head, position = hover
        if layer == ROLLOUT and branch in self._rolling:
            self._late_row = hover  # to compute it alone would take as long as what is under way
            return self._send_late_row() is not None
        answer = self._branches[branch].reader.rows(way, layer, head, position)
        self._book.put(("rows", *hover), answer)
        self._reply(answer)
        return True

    def _send_late_row(self) -> LookAnswer | None:
        """The row that waits for rollout, through the layers that are done."""
        if self._late_row is None or self._hover is not None:
            return None
        branch, way, _, _, position = self._late_row
        if (answer := self._branches[branch].reader.rollout_so_far(way, position)) is not None:
            self._reply(answer)
        return answer

    def _draw_images(self, reader: LookReader) -> Iterator[str]:
        for image in range(reader.images):
            self._reply(reader.lens(image, reader.depth[0]))
            yield ""
        self._line.renew_still()

    def _roll_out(self, reader: LookReader) -> Iterator[str]:
        """Computes what rows of rollout are taken from, and answers the one that waits for that."""
        through = 0
        try:
            for share in reader.look.rollout_steps():
                waits = self._late_row is not None and self._late_row[0] == reader.branch
                if waits and through < int(share * reader.depth[0]) < reader.depth[0]:
                    through = int(share * reader.depth[0])
                    self._send_late_row()
                yield f"Following attention through all layers, {share:.0%}"
        finally:
            self._rolling.discard(reader.branch)
            if self._late_row is not None and self._late_row[0] == reader.branch and self._hover is None:
                self._hover, self._late_row = self._late_row, None
                self._desk.submit("", self._read_rows)

    def _look_up(self, branch: int, position: int) -> object:
        if (branch, position) != (self._visible, self.selected):
            return False  # a newer choice stands behind this one
        reader, question = self._branches[branch].reader, ("detail", branch, position)
        return self._dress(reader, question, partial(reader.detail, position))

    def _look_up_knocked(self, reader: LookReader, positions: list[int], of: int) -> None:
        question = "knocked", of, reader.branch, *positions
        return self._dress(reader, question, partial(reader.knocked_alternatives, positions, of))

    def _dress(
        self, reader: LookReader, question: tuple[Any, ...], compute: Callable[[], TokenDetail | KnockedAlternatives]
    ) -> None:
        """Answers with alternatives, and again when the looks of codes among them are drawn: one at a time, behind what
        is asked meanwhile, and only for as long as their position is chosen."""
        past = self._book.get(question)
        message = cast("TokenDetail | KnockedAlternatives", past[0]) if past else compute()
        answer = reader.with_looks(message)
        self._book.put(question, answer)
        self._reply(answer)
        position, undrawn = message["position"], reader.undrawn(message)

        def draw(token: int) -> object:
            if (reader.branch, position) != (self._visible, self.selected):
                return False
            reader.draw(token, position)
            if token == undrawn[-1] and len((dressed := reader.with_looks(message))[1]) > len(answer[1]):
                self._book.put(question, dressed)
                self._reply(dressed)
            return True

        for token in undrawn:
            self._desk.submit("", partial(draw, token))

    def _branch(
        self,
        reader: LookReader,
        position: int,
        token: int | None,
        seed: int,
        words: str,
        without: list[int] | None = None,
    ) -> None:
        """Has a branch drawn: behind all that is asked so far, and what is asked meanwhile is answered meanwhile."""
        if len(self._branches) >= MOST_BRANCHES:
            raise ValueError(
                f"An inspector holds {MOST_BRANCHES} documents: make a new one of the branch you want to go on from."
            )

        def draw(each: Callable[[int], None]) -> None:
            if self._draw_elsewhere is not None and without is None and reader.look is self._first:
                look = self._draw_elsewhere(position, token, seed)
            else:
                look = reader.look.branch(position, token, seed=seed, without=without or (), each=each)
            if look is not None:
                self._desk.drawing = None
                self._open(look, words, reader.branch, position, len(without or ()))

        self._desk.branch(f"Drawing a branch: {words}", draw)

    def _record(self) -> standalone.Recording:
        readers = [branch.reader for branch in self._branches]
        return recording(readers, self._tree(), [self._selection()], self._book)

    def _page(self) -> str:
        words = [each.words.strip() for each in self._branches[0].reader.readings if each.modality == Modality.TEXT]
        title = "Inspector: " + " ".join(words[:TITLE]) + (" …" if len(words) > TITLE else "")
        body = (
            f'<h1>{stills.escape(title)}</h1>\n<div data-widget="inspector">{self._still()[0]}</div>\n'
            "<footer>A page without a kernel: rollout answers for every word and patch, other views for what was "
            "looked up.</footer>"
        )
        return standalone.page(title, body, {"inspector": self._record()})

    # The pump's thread

    def _tree(self) -> LookAnswer:
        branches = [
            BranchFacts(parent=each.parent, position=each.position, words=each.words) for each in self._branches
        ]
        return BranchTree(kind="branches", branches=branches, visible=self._visible), []

    def _selection(self) -> LookAnswer:
        return Selection(kind="selection", branch=self._visible, position=self.selected), []

    def _flush(self, due: frozenset[Part]) -> None:
        answers = list[LookAnswer]()
        if "hello" in due and self._branches:
            due |= {"branches", "selection"}
            for reader in (branch.reader for branch in self._branches):
                answers += [reader.document(), *(reader.lens(image, reader.depth[0]) for image in [*reader.pictures])]
            if (detail := self._book.get(("detail", self._visible, self.selected))) is not None:
                answers.append(detail)
        answers += [self._outbox.popleft() for _ in range(len(self._outbox))]
        if "branches" in due and self._branches:
            answers.append(self._tree())
        if "selection" in due:
            answers.append(self._selection())
        for message, buffers in answers:
            self._line.send(message, buffers)
        desk = self._desk
        doing = "" if self._line.ended else desk.doing
        state = InspectorState(kind="state", doing=doing, trouble=desk.trouble, drawing=desk.drawing)
        if state != self._state or "hello" in due:
            self._state = state
            self._line.send(state)

    def _still(self) -> tuple[str, str]:
        """The visible document, words in the colour of their surprise, with its images."""
        body, image = [], -1
        if not self._branches:
            return "", "Inspector."
        reader = self._branches[self._visible].reader
        for each in reader.readings:
            if each.image is None:
                surprise = min(1.0, -(each.log_probability or 0.0) / 8)
                note = "" if each.log_probability is None else f"probability {math.exp(each.log_probability):.2g}"
                style = f"background:rgba(145,75,200,{0.6 * surprise:.2f});padding:1px 3px;border-radius:4px"
                body.append(f'<span style="{style}" title="{note}">{stills.escape(each.words)}</span>')
            elif each.image != image:
                image = each.image
                picture = reader.pictures.get(image)
                body.append("" if picture is None else stills.image(data_uri(picture, 256), f"Image {image}", 160))
        surprises = [-each.log_probability for each in reader.readings if each.log_probability is not None]
        mean = f", {np.mean(surprises):.2f} nats a token" if surprises else ""
        text = f"A document of {len(reader)} tokens{mean}; the more surprising a word, the darker."
        return f'<p>{" ".join(body)}</p><p class="note">{text}</p>', f"Inspector. {text}"
