"""Codes of a picture under the knife: paint them over its grid, and see the picture decoded anew at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import anywidget
import numpy as np
import PIL.Image
import traitlets

from chameleon_lab.pictures import read_picture, rgb
from chameleon_widgets.images.edits import Codec, Grid, Surgery, Swatches, grid_of, whole_numbers
from chameleon_widgets.images.messages import GridFacts, PictureFacts, SurgeryUpdate
from chameleon_widgets.line import Handler, Line, Part, assets, paragraph
from chameleon_widgets.pictures import png
from chameleon_widgets.threads import Worker

THUMBNAIL_SIDE = 64  # pixels
QUICK = 0.2  # seconds: work of less is not announced
SWATCH_SECONDS = 0.03  # then strokes have the worker first


class CodeSurgery(anywidget.AnyWidget):
    """A picture's codes to be painted over in a notebook cell; the picture is decoded anew with each stroke.

    `start` is a picture, or codes (rows x columns of integers); left out, it is the first of `samples`, pictures that
    are offered by name. `codebook` is the number of codes there are; left out, it is the tokenizer's `codes`, where
    that is a number. Codes set later, here or from a file, are an edit if the grid keeps its shape, else a new start.
    """

    _esm, _css = assets("code_surgery")

    status = traitlets.Unicode("idle", help="idle, working or error.").tag(sync=True)

    def __init__(
        self,
        tokenizer: Codec,
        start: PIL.Image.Image | np.ndarray | None = None,
        *,
        samples: Mapping[str, PIL.Image.Image] | None = None,
        codebook: int | None = None,
    ) -> None:
        self._surgery = Surgery(tokenizer, codebook)
        self._lock = self._surgery.lock  # of all that follows; nobody waits for anything while holding it
        self._samples = {name: rgb(picture) for name, picture in (samples or {}).items()}
        self._error: Exception | None = None
        self._waiting, self._stale, self._seconds = 0, False, 0.0  # that the last job took
        self._applied = dict[str, int]()  # number of the last edit of each view
        self._resting = False  # nothing is painted any more: the still may be made once all is decoded
        self._page_before: PIL.Image.Image | None = None  # the decoded original that the views have
        self._swatches = Swatches(self._surgery.swatch)
        self._worker = Worker("code surgery worker")
        super().__init__()
        handlers = {
            "sample": self._open_sample,
            "picture": lambda content, buffers: self._open_soon(
                lambda: self._surgery.of_picture(read_picture(buffers[0]), str(content.get("name", "")))
            ),
            "codes": self._import,
            "edit": self._edit,
            "move": self._move,
            "rest": lambda *_: self._rest(),
            "swatches": self._want,
        }
        self._line = Line(
            self,
            "code surgery",
            flush=self._flush,
            still=self._still,
            handlers={kind: partial(self._obey, handler) for kind, handler in handlers.items()},
            end=self._swatches.forget,
        )
        name = next(iter(self._samples), "") if start is None else ""
        if start is not None or name:
            self._open(self._samples[name] if start is None else start, name)

    @property
    def codes(self) -> np.ndarray:
        """The codes as edited: rows x columns, int64, a copy. Setting them is a step that the cell can undo.

        Raises ValueError for what are no codes, and what the tokenizer raises; nothing is changed then.
        """
        return self._now().codes.copy()

    @codes.setter
    def codes(self, codes: np.ndarray) -> None:
        self.show(codes)

    @property
    def original(self) -> np.ndarray:
        """The codes as they came: rows x columns, int64, a copy."""
        return self._now().original.copy()

    @property
    def picture(self) -> PIL.Image.Image:
        """The picture decoded from `codes`. Raises the error that the cell shows."""
        self._now()
        if self._error is not None or self._surgery.decoded is None:
            raise self._error or ValueError("Nothing is decoded yet.")
        return self._surgery.decoded.after.copy()

    def show(self, start: PIL.Image.Image | np.ndarray, name: str = "") -> None:
        """Opens a picture, or codes, once they are decoded. Raises as setting `codes` does."""
        self._open(start, name)
        self._worker.wait()
        if self._error is not None:
            raise self._error

    def wait(self, timeout: float | None = None) -> None:
        """Blocks until all that was painted is decoded and sent, the still included.

        Raises the error that the cell shows; TimeoutError after `timeout` seconds.
        """
        if not self._worker.wait(timeout):
            raise TimeoutError(f"The picture was not decoded after {timeout:g} s. The decoder goes on.")
        self._rest()
        self._line.settle()
        if self._error is not None:
            raise self._error

    def _now(self) -> Grid:
        self._worker.wait()
        if (now := self._surgery.history.now) is None:
            raise self._error or ValueError("Nothing is open yet: pass a picture or codes to show().")
        return now

    def _rest(self) -> None:
        self._resting = True
        self._line.ring()

    # What the browser asks: hand-overs, and edits, which only write to a small array

    def _obey(self, handler: Handler, content: dict[str, Any], buffers: Sequence[memoryview]) -> bool:
        with self._lock:
            try:
                handler(content, buffers)
            except Exception as error:
                self._error = error
                self._line.tell("grid", "pictures", later=True)
            return self._stale and self._waiting == 1 and self._seconds < QUICK  # the redraw will answer, at once

    def _open_sample(self, content: dict[str, Any], _: object) -> None:
        if (name := content.get("name")) in self._samples:
            self._open(self._samples[name], name)

    def _import(self, content: dict[str, Any], _: object) -> None:
        name = str(content.get("name", ""))
        self._open(self._surgery.imported(content, name), name)

    def _edit(self, content: dict[str, Any], _: object) -> None:
        self._line.tell("grid", later=True)
        if content["number"] > self._applied.get(content["view"], 0):  # else it came twice
            self._applied[content["view"]] = content["number"]
            if self._surgery.edit(content["key"], content["cells"], content["codes"], content["stroke"]):
                self._redraw_soon()

    def _move(self, content: dict[str, Any], _: object) -> None:
        self._surgery.history.move(int(content["steps"]))
        self._line.tell("grid", later=True)
        self._redraw_soon()

    def _want(self, content: dict[str, Any], _: object) -> None:
        self._swatches.want(whole_numbers(content["codes"], self._surgery.codebook, "The codes").tolist())
        self._worker.submit(self._mix)

    def _open(self, start: object, name: str) -> None:
        if isinstance(start, PIL.Image.Image):
            return self._open_soon(lambda: self._surgery.of_picture(rgb(start), name))
        codes = grid_of(start, self._surgery.codebook)
        self._open_soon(lambda: self._surgery.of_codes(codes, name))

    def _open_soon(self, make: Callable[[], Grid]) -> None:
        self._submit(lambda: self._surgery.open(make()), "grid", "pictures", "rest")
        self._line.ring()

    def _redraw_soon(self) -> None:
        if not self._stale:  # else the newest codes will be decoded anyway
            self._stale = True
            self._submit(self._redraw, "pictures")

    def _submit(self, job: Callable[[], None], *then: str) -> None:
        with self._lock:
            self._waiting += 1
        self._worker.submit(partial(self._run, job, *then))

    # The worker's thread

    def _run(self, job: Callable[[], None], *then: str) -> None:
        failure: Exception | None = None
        started = time.monotonic()
        try:
            job()
        except Exception as error:  # shown in the cell, raised by wait()
            failure = error
        with self._lock:
            self._error, self._waiting = failure, self._waiting - 1
            self._seconds = time.monotonic() - started
            self._resting |= "rest" in then
        self._line.tell(*then)

    def _redraw(self) -> None:
        self._stale = False  # what is painted from now on needs another
        self._surgery.redraw()

    def _mix(self) -> None:
        if self._swatches.make(SWATCH_SECONDS):
            self._worker.submit(self._mix)
        self._line.ring()

    # The pump's thread

    def _flush(self, due: frozenset[Part]) -> None:
        if "hello" in due:
            due |= {"samples", "grid", "pictures"}
        with self._lock:
            grid, (undo, redo) = self._surgery.history.now, self._surgery.history.ways
            decoded, error, working = self._surgery.decoded, self._error, self._waiting > 0
            message = SurgeryUpdate(kind="update", applied=dict(self._applied))
            resting, self._resting = self._resting and not working, self._resting and working
            before = None if "hello" in due else self._page_before
            self._page_before = decoded.before if decoded is not None and "pictures" in due else before
        self.status = "working" if working else "error" if error is not None else "idle"
        buffers: list[bytes] = []
        if "samples" in due:
            message |= {"samples": list(self._samples), "codebook": self._surgery.codebook}
            buffers += [png(picture, THUMBNAIL_SIDE) for picture in self._samples.values()]
        if "grid" in due and grid is not None:
            (rows, columns), key, name = grid.codes.shape, grid.key, grid.name
            message["grid"] = GridFacts(key=key, name=name, rows=rows, columns=columns, undo=undo, redo=redo)
            buffers += [codes.astype("<i4").tobytes() for codes in (grid.codes, grid.original)]
        if "pictures" in due:
            message["error"] = paragraph(error) if error is not None else ""
        if "pictures" in due and decoded is not None:
            fresh, new = grid is not None and decoded.grid.codes is grid.codes, decoded.before is not before
            width, height = decoded.after.size
            message["picture"] = PictureFacts(fresh=fresh, before=new, width=width, height=height)
            buffers += map(png, [decoded.after, decoded.before] if new else [decoded.after])
        if swatches := self._swatches.take():
            message["swatches"] = list(swatches)
            buffers += swatches.values()
        if len(message) > 2:
            self._line.send(message, buffers)
        if resting:
            self._line.renew_still()

    def _still(self) -> tuple[str, str]:
        self._worker.wait(5)  # for the picture that is on its way
        return self._surgery.still()
