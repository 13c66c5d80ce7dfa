"""Codes of a picture under the knife: paint them over its grid, and see the picture decoded anew at once."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import PIL.Image
import traitlets

from chameleon_lab.pictures import read_picture, rgb
from chameleon_widgets.chat.conversation import paragraph
from chameleon_widgets.images.edits import Codec, Grid, Surgery, Swatches, grid_of, whole_numbers
from chameleon_widgets.pictures import png
from chameleon_widgets.stills import WIDGET_VIEW, Still
from chameleon_widgets.threads import Pump, Worker, claim

STATIC = Path(__file__).parents[1] / "static"
SAMPLE_SIDE = 64  # pixels
QUICK = 0.2  # seconds: work of less is not announced
SWATCH_SECONDS = 0.03  # then strokes have the worker first


class CodeSurgery(anywidget.AnyWidget):
    """A picture's codes to be painted over in a notebook cell; the picture is decoded anew with each stroke.

    `start` is a picture, or codes (rows x columns of integers); left out, it is the first of `samples`, pictures that
    are offered by name. `codebook` is the number of codes there are; left out, it is the tokenizer's `codes`, where
    that is a number. Codes set later, here or from a file, are an edit if the grid keeps its shape, else a new start.
    """

    _esm = STATIC / "code_surgery.js"
    _css = STATIC / "code_surgery.css"

    status = traitlets.Unicode("idle", help="idle, working or error.").tag(sync=True)
    still_name = traitlets.Unicode(help="Class of the still that the view hides while it is alive.").tag(sync=True)

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
        self._due, self._heard, self._applied = set[str](), "", dict[str, int]()
        self._sent: PIL.Image.Image | None = None  # the decoded original that the view has
        self._swatches = Swatches(self._surgery.swatch)
        self._still = Still(uuid.uuid4().hex, self._surgery.still)
        self._worker = Worker("code surgery worker")
        self._pump = Pump(self._flush, "code surgery pump")
        super().__init__(still_name=self._still.name)
        self.on_msg(self._handle)
        claim(self._swatches.forget)
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
        if self._error is not None or self._surgery.shown is None:
            raise self._error or ValueError("Nothing is decoded yet.")
        return self._surgery.shown.after.copy()

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
        with self._lock:
            self._due.add("rest")
        self._pump.ring()
        self._pump.drain()
        if self._error is not None:
            raise self._error

    def _now(self) -> Grid:
        self._worker.wait()
        if (now := self._surgery.history.now) is None:
            raise self._error or ValueError("Nothing is open yet: pass a picture or codes to show().")
        return now

    def _ipython_display_(self) -> None:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        self._worker.wait(5)
        self._still.show(view, "CodeSurgery")

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {WIDGET_VIEW: view, **self._still.bundle()}

    # Messages of the browser: flags, hand-overs, and edits, which only write to a small array

    def _handle(self, _: object, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        with self._lock:
            self._heard = str(content.get("mark", ""))
            try:
                self._obey(content, buffers)
            except Exception as error:  # in a handler it would show nowhere
                self._error, self._due = error, self._due | {"grid", "pictures"}
            if self._stale and self._waiting == 1 and self._seconds < QUICK:
                return  # the redraw will answer, at once
        self._pump.ring()

    def _obey(self, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        name = str(content.get("name", ""))
        match content.get("kind"):
            case "hello":
                self._sent, self._due = None, self._due | {"samples", "grid", "pictures"}
            case "still" | "rest" as wish:  # rest: nothing is painted any more, the still may be made
                self._due.add(wish)
            case "sample" if name in self._samples:
                self._open(self._samples[name], name)
            case "picture" if buffers:
                self._open_soon(lambda: self._surgery.of_picture(read_picture(buffers[0]), name))
            case "codes":
                self._open(self._surgery.imported(content, name), name)
            case "edit" if content["number"] > self._applied.get(content["view"], 0):  # else it came twice
                self._applied[content["view"]] = content["number"]
                self._due.add("grid")
                if self._surgery.edit(content["key"], content["cells"], content["codes"], content["stroke"]):
                    self._redraw_soon()
            case "move":
                self._surgery.history.move(int(content["steps"]))
                self._due.add("grid")
                self._redraw_soon()
            case "swatches":
                self._swatches.want(whole_numbers(content["codes"], self._surgery.codebook, "The codes").tolist())
                self._worker.submit(self._mix)

    def _open(self, start: object, name: str) -> None:
        if isinstance(start, PIL.Image.Image):
            return self._open_soon(lambda: self._surgery.of_picture(rgb(start), name))
        codes = grid_of(start, self._surgery.codebook)
        self._open_soon(lambda: self._surgery.of_codes(codes, name))

    def _open_soon(self, make: Callable[[], Grid]) -> None:
        self._submit(lambda: self._surgery.open(make()), {"grid", "pictures", "rest"})
        self._pump.ring()

    def _redraw_soon(self) -> None:
        if not self._stale:  # else the newest codes will be decoded anyway
            self._stale = True
            self._submit(self._redraw, {"pictures"})

    def _submit(self, job: Callable[[], None], then: set[str]) -> None:
        with self._lock:
            self._waiting += 1
        self._worker.submit(partial(self._run, job, then))

    # The worker's thread

    def _run(self, job: Callable[[], None], then: set[str]) -> None:
        failure: Exception | None = None
        started = time.monotonic()
        try:
            job()
        except Exception as error:  # shown in the cell, raised by wait()
            failure = error
        with self._lock:
            self._error, self._waiting, self._due = failure, self._waiting - 1, self._due | then
            self._seconds = time.monotonic() - started
        self._pump.ring()

    def _redraw(self) -> None:
        self._stale = False  # what is painted from now on needs another
        self._surgery.redraw()

    def _mix(self) -> None:
        if self._swatches.make(SWATCH_SECONDS):
            self._worker.submit(self._mix)
        self._pump.ring()

    # The pump's thread

    def _flush(self) -> None:
        with self._lock:
            due, self._due = self._due, set()
            grid, (undo, redo) = self._surgery.history.now, self._surgery.history.ways
            shown, error, working = self._surgery.shown, self._error, self._waiting > 0
            if working and "rest" in due:
                self._due.add("rest")  # the still waits for the last picture
            message: dict[str, Any] = {"kind": "update", "heard": self._heard, "applied": dict(self._applied)}
            has_before = shown is not None and shown.before is self._sent
            self._sent = shown.before if shown is not None and "pictures" in due else self._sent
        self.status = "working" if working else "error" if error is not None else "idle"
        buffers: list[bytes] = []
        if "samples" in due:
            message |= {"samples": list(self._samples), "codebook": self._surgery.codebook}
            buffers += [png(picture, SAMPLE_SIDE) for picture in self._samples.values()]
        if "grid" in due and grid is not None:
            rows, columns = grid.codes.shape
            size = {"rows": rows, "columns": columns}
            message["grid"] = {"key": grid.key, "name": grid.name, "undo": undo, "redo": redo, **size}
            buffers += [codes.astype("<i4").tobytes() for codes in (grid.codes, grid.original)]
        if "pictures" in due:
            message["error"] = paragraph(error) if error is not None else ""
        if "pictures" in due and shown is not None:
            fresh = grid is not None and shown.grid.codes is grid.codes
            size = {"width": shown.after.width, "height": shown.after.height}
            message["picture"] = {"fresh": fresh, "before": not has_before, **size}
            buffers += map(png, [shown.after] if has_before else [shown.after, shown.before])
        if swatches := self._swatches.take():
            message["swatches"] = list(swatches)
            buffers += swatches.values()
        self.send(message, buffers)
        if "rest" in due and not working:
            self._still.refresh()
            self.send({"kind": "still", "revision": self._still.revision})
        if "still" in due:
            self.send({"kind": "still", "revision": self._still.revision, "bundle": self._still.bundle()})
