"""Parts of a document are hidden by painting and clicking, filled several times by a model, and one filling taken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import anywidget
import PIL.Image
import traitlets

from chameleon_lab.documents import Document, Image, Text
from chameleon_lab.pictures import read_picture, rgb
from chameleon_lab.records import FilledSegment
from chameleon_widgets import stills
from chameleon_widgets.images.edits import Codec, whole_numbers
from chameleon_widgets.infill.draft import BlankOrigin, CanvasDraft, split_words
from chameleon_widgets.infill.messages import (
    CanvasSegment,
    CanvasUpdate,
    FilledPart,
    FillingFacts,
    FillingsUpdate,
)
from chameleon_widgets.line import Handler, Line, Part, assets, paragraph
from chameleon_widgets.pictures import data_uri, png
from chameleon_widgets.threads import Worker
from chameleon_widgets.undo import UndoHistory

MOST_FILLINGS = 12
SEEDS = 2**31

FillingState = Literal["waiting", "filling", "whole"]


class Filling:
    """One filling on its way: the segments of the document with blanks that were filled so far, newest last."""

    def __init__(self, draft: CanvasDraft, places: Sequence[BlankOrigin], seed: int) -> None:
        self.draft, self.places, self.seed = draft, places, seed
        self.segments: dict[int, Text | Image] = {}
        self.state: FillingState = "waiting"
        self.on_canvas = False

    def parts(self) -> list[tuple[str | PIL.Image.Image, bool]]:
        """What there is to see: pieces of text, and pictures, and whether the model wrote them."""
        out = list[tuple[str | PIL.Image.Image, bool]]()
        for number, segment in enumerate(self.draft.document):
            own = [(at, place) for at, place in enumerate(self.places) if place.source == number]
            if isinstance(segment, Text):
                out += self.draft.pieces(own, self.segments)
            elif isinstance(segment, Image):
                now = self.segments.get(own[0][0], segment)
                out.append((now.picture if isinstance(now, Image) else segment.picture, own[0][0] in self.segments))
        return out


class InfillCanvas(anywidget.AnyWidget):
    """A document in a notebook cell, parts of which are hidden and filled again.

    ```python
    lab = Chameleon.load("infilling")
    canvas = InfillCanvas(lab.stream_infill, lab.tokenizer.image, Document.of(caption, picture))
    ```

    `fill` takes a document with blanks and a `seed` and yields its `FilledSegment`s. `codec` encodes and decodes
    pictures: the canvas shows them as it draws them, since that is what the model sees. `document` is the start; each
    press of *Fill* makes `fillings` fillings, from `seed` on. Raises ValueError for a document with `Blank`s.
    """

    _esm, _css = assets("infill_canvas")

    status = traitlets.Unicode("idle", help="idle, working or error.").tag(sync=True)

    def __init__(
        self,
        fill: Callable[..., Iterator[FilledSegment]],
        codec: Codec,
        document: Document | PIL.Image.Image | str,
        *,
        fillings: int = 4,
        seed: int = 0,
    ) -> None:
        self._fill, self._codec = fill, codec
        self._count = int(whole_numbers(fillings, MOST_FILLINGS + 1, "The number of fillings"))
        self._seed = int(whole_numbers(seed, SEEDS, "The seed"))
        self._steps = UndoHistory[CanvasDraft]()
        parts = document if isinstance(document, Document) else Document.of(document)
        self._steps.put(CanvasDraft.of(parts, codec))
        self._lock = threading.RLock()  # of all that follows; nobody waits for anything while holding it
        self._fillings: list[Filling] = []
        self._changed: set[int] = set()
        self._error: Exception | None = None
        self._stopping = threading.Event()
        self._pictures_shown: list[PIL.Image.Image | None] = []  # what the views have
        self._worker = Worker("infill canvas worker")
        super().__init__()
        handlers: dict[str, Handler] = {
            "hide": self._hide,
            "words": self._reword,
            "move": lambda content, _: self._steps.move(int(content["steps"])),
            "fill": self._fill_soon,
            "stop": lambda *_: self.stop(),
            "take": lambda content, _: self.take(content["number"]),
            "picture": self._open_picture,
        }
        self._line = Line(
            self,
            "infill canvas",
            flush=self._flush,
            still=self._still,
            handlers={kind: partial(self._obey, handler) for kind, handler in handlers.items()},
            end=self.stop,
        )

    @property
    def document(self) -> Document:
        """The document on the canvas, without its blanks."""
        return self._now.document

    @property
    def blanked(self) -> Document:
        """The document as it would be filled. Raises ValueError where nothing is hidden."""
        return self._now.blanked()[0]

    @property
    def fillings(self) -> tuple[Document, ...]:
        """The fillings of the last request that are whole."""
        with self._lock:
            whole = [filling for filling in self._fillings if filling.state == "whole"]
        return tuple(each.draft.filled(each.places, each.segments).document for each in whole)

    def fill(self, count: int | None = None, seed: int | None = None) -> tuple[Document, ...]:
        """Fills what is hidden and waits for it, as *Fill* does. Raises the error that the cell shows."""
        with self._lock:
            content = {"count": self._count if count is None else count, "seed": self._seed if seed is None else seed}
            self._fill_soon(content, ())
        self.wait()
        return self.fillings

    def take(self, number: int) -> None:
        """Puts a whole filling on the canvas, a step that can be undone. Raises ValueError where there is none."""
        with self._lock:
            number = int(whole_numbers(number, None, "The filling's number"))
            if number >= len(self._fillings) or self._fillings[number].state != "whole":
                raise ValueError("This filling is not whole yet.")
            chosen = self._fillings[number]
            self._steps.put(chosen.draft.filled(chosen.places, chosen.segments))
            for at, filling in enumerate(self._fillings):
                filling.on_canvas = at == number
            self._changed |= set(range(len(self._fillings)))
        self._line.tell("canvas", "fillings")
        self._line.renew_still()

    def stop(self) -> None:
        """Ends the filling under way; what is whole stays."""
        self._stopping.set()

    def wait(self, timeout: float | None = None) -> None:
        """Blocks until all fillings are there and sent. Raises the error that the cell shows, and TimeoutError."""
        if not self._worker.wait(timeout):
            raise TimeoutError(f"The fillings were not there after {timeout:g} s. They go on.")
        self._line.settle()
        if self._error is not None:
            raise self._error

    @property
    def _now(self) -> CanvasDraft:
        draft = self._steps.now
        assert draft is not None
        return draft

    # What the browser asks: hand-overs, and edits of small sets

    def _obey(self, handler: Handler, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        with self._lock:
            self._error = None
            try:
                handler(content, buffers)
            except Exception as error:
                self._error = error
        self._line.tell("canvas", "fillings")

    def _hide(self, content: dict[str, Any], _: object) -> None:
        if content["key"] == self._now.key:  # else it was meant for what is no longer there
            self._steps.put(self._now.hide(content["segment"], content["parts"]))

    def _reword(self, content: dict[str, Any], _: object) -> None:
        self._steps.put(self._now.reword(content["segment"], str(content["text"])))

    def _open_picture(self, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        picture = rgb(read_picture(buffers[0]))
        number = int(whole_numbers(content["segment"], len(self._now.hidden), "The segment's number"))
        self._worker.submit(partial(self._work, partial(self._replace_picture, number, picture)))

    def _replace_picture(self, number: int, picture: PIL.Image.Image) -> None:
        fresh = CanvasDraft.of(Document.of(picture), self._codec)
        with self._lock:
            draft = self._now
            segments, hidden = list(draft.document.segments), list(draft.hidden)
            segments[number], hidden[number] = fresh.document.segments[0], frozenset()
            self._steps.put(CanvasDraft(Document(tuple(segments)), tuple(hidden)))

    def _fill_soon(self, content: dict[str, Any], _: object) -> None:
        self._count = max(1, int(whole_numbers(content["count"], MOST_FILLINGS + 1, "The number of fillings")))
        self._seed = int(whole_numbers(content["seed"], SEEDS, "The seed"))
        draft = self._now
        document, places = draft.blanked()
        self._stopping.set()  # of an earlier request
        self._stopping = stopping = threading.Event()
        seeds = [(self._seed + each) % SEEDS for each in range(self._count)]
        self._fillings = fillings = [Filling(draft, places, seed) for seed in seeds]
        self._changed = set(range(len(fillings)))
        self._worker.submit(partial(self._work, partial(self._fill_all, document, fillings, stopping)))

    # The worker's thread

    def _work(self, job: Callable[[], None]) -> None:
        self.status = "working"
        failure: Exception | None = None
        try:
            job()
        except Exception as error:  # earlier in the cell, raised by wait()
            failure = error
        with self._lock:
            self._error = failure
        self.status = "error" if failure is not None else "idle"
        self._line.tell("canvas", "fillings")
        self._line.renew_still()

    def _fill_all(self, document: Document, fillings: list[Filling], stopping: threading.Event) -> None:
        for number, filling in enumerate(fillings):
            if stopping.is_set():
                return
            filling.state = "filling"
            for segment in self._fill(document, seed=filling.seed):
                with self._lock:
                    filling.segments[segment.place] = segment.segment
                    self._changed.add(number)
                if stopping.is_set():
                    return
                self._line.tell("fillings")
            with self._lock:
                filling.state = "whole"
                self._changed.add(number)

    # The pump's thread

    def _flush(self, due: frozenset[Part]) -> None:
        if "hello" in due:
            due |= {"canvas", "fillings"}
            self._pictures_shown = []
            self._changed = set(range(len(self._fillings)))
        if "canvas" in due:
            with self._lock:
                draft, (undo, redo) = self._now, self._steps.ways
            self._send_canvas(draft, undo, redo)
        if "fillings" in due:
            self._send_fillings()

    def _send_canvas(self, draft: CanvasDraft, undo: int, redo: int) -> None:
        pictures = [each.picture if isinstance(each, Image) else None for each in draft.document]
        earlier = self._pictures_shown if len(self._pictures_shown) == len(pictures) else [None] * len(pictures)
        self._pictures_shown = pictures
        buffers, segments = list[bytes](), list[CanvasSegment]()
        for segment, hidden, before in zip(draft.document, draft.hidden, earlier, strict=True):
            facts = CanvasSegment(words=[], rows=0, columns=0, hidden=sorted(hidden), picture=-1)
            if isinstance(segment, Text):
                facts["words"] = split_words(segment.text)
            elif isinstance(segment, Image) and segment.codes is not None:
                facts["rows"], facts["columns"] = segment.codes.shape
                if segment.picture is not before:
                    facts["picture"] = len(buffers)
                    buffers.append(png(segment.picture))
            segments.append(facts)
        message = CanvasUpdate(
            kind="canvas",
            key=draft.key,
            segments=segments,
            undo=undo,
            redo=redo,
            fillings=self._count,
            seed=self._seed,
        )
        self._line.send(message, buffers)

    def _send_fillings(self) -> None:
        buffers, changed = list[bytes](), dict[str, FillingFacts]()
        with self._lock:
            fresh, self._changed = self._changed, set()
            snapshots: list[tuple[int, Filling, FillingState, bool, list[tuple[str | PIL.Image.Image, bool]]]] = [
                (at, each, each.state, each.on_canvas, each.parts()) for at, each in enumerate(self._fillings)
            ]
            error = self._error
        for number, filling, state, on_canvas, parts in snapshots:
            if number not in fresh:
                continue
            facts = list[FilledPart]()
            for part, by_model in parts:
                is_text = isinstance(part, str)
                facts.append(
                    FilledPart(text=part if is_text else "", filled=by_model, picture=-1 if is_text else len(buffers))
                )
                if not is_text:
                    buffers.append(png(part))
            changed[str(number)] = FillingFacts(seed=filling.seed, state=state, on_canvas=on_canvas, parts=facts)
        words = "" if error is None else paragraph(error)
        message = FillingsUpdate(kind="fillings", count=len(snapshots), error=words, changed=changed)
        self._line.send(message, buffers)

    def _still(self) -> tuple[str, str]:
        with self._lock:
            draft = self._now
            whole = [each for each in self._fillings if each.state == "whole"]
        body = _still_side("The document", [(part, False) for part in _visible(draft.document)])
        body += "".join(_still_side(f"Seed {each.seed}", each.parts()) for each in whole)
        text = "".join(segment.text for segment in draft.document if isinstance(segment, Text))
        return body, f"An infill canvas with {len(whole)} fillings. {text}"


def _visible(document: Document) -> list[str | PIL.Image.Image]:
    return [
        each.picture if isinstance(each, Image) else each.text for each in document if isinstance(each, Text | Image)
    ]


def _still_side(title: str, parts: Sequence[tuple[str | PIL.Image.Image, bool]]) -> str:
    """A document for a page that stands alone: all text escaped, what the model wrote in bold."""
    body = f'<b style="display:block">{stills.escape(title)}</b>'
    for part, by_model in parts:
        if isinstance(part, str):
            body += f"<b>{stills.escape(part)}</b>" if by_model else stills.escape(part)
        else:
            width = max(part.width, min(192, 4 * part.width))
            body += stills.image(data_uri(part, stills.STILL_SIDE), "filled" if by_model else "a picture", width)
    return f'<span class="side">{body}</span>'
