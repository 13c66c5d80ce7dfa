"""A picture through an image tokenizer: what went in, its codes, and what came out, side by side."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import anywidget
import numpy as np
import PIL.Image
import traitlets

from chameleon_lab.pictures import read_picture, rgb
from chameleon_lab.records import Reconstruction
from chameleon_widgets import stills
from chameleon_widgets.conversation import paragraph
from chameleon_widgets.pictures import data_uri, png
from chameleon_widgets.stills import WIDGET_VIEW, Still
from chameleon_widgets.threads import Pump, Worker

STATIC = Path(__file__).parent / "static"
SHOWN_SIDE = 512
SAMPLE_SIDE = 64


class ImageCodec(Protocol):
    """What the viewer asks of an image tokenizer."""

    def prepare(self, picture: PIL.Image.Image) -> PIL.Image.Image: ...

    def encode(self, picture: PIL.Image.Image) -> np.ndarray: ...

    def decode(self, codes: np.ndarray) -> PIL.Image.Image: ...


class ReconstructionViewer(anywidget.AnyWidget):
    """Original and reconstruction of a picture that is chosen, pasted, dropped, or passed to `show`.

    `samples` are pictures offered by name; the first is shown at the start. `codebook` is the number of codes there
    are, for the count of bits; left out, it is the tokenizer's `codes`, where that is a number.
    """

    _esm = STATIC / "reconstruction_viewer.js"
    _css = STATIC / "reconstruction_viewer.css"

    status = traitlets.Unicode("idle", help="idle, working or error.").tag(sync=True)
    still_name = traitlets.Unicode(help="Class of the still that the view hides while it is alive.").tag(sync=True)

    def __init__(
        self,
        images: ImageCodec,
        *,
        samples: Mapping[str, PIL.Image.Image] | None = None,
        codebook: int | None = None,
    ) -> None:
        size = getattr(images, "codes", None) if codebook is None else codebook
        self._codebook = int(size) if isinstance(size, int | np.integer) else None
        self._images = images
        self._samples = {name: rgb(picture) for name, picture in (samples or {}).items()}
        self._name, self._error = "", None
        self._reconstruction: Reconstruction | None = None
        self._due = {"samples", "result"}
        self._heard = ""
        self._waiting = 0
        self._still_due = self._asked_for_still = False
        self._still = Still(uuid.uuid4().hex, self._still_body)
        self._worker = Worker("reconstruction worker")
        self._pump = Pump(self._flush, "reconstruction pump")
        super().__init__(still_name=self._still.name)
        self.on_msg(self._handle)
        if self._samples:
            name = next(iter(self._samples))
            self._submit(lambda: self._samples[name], name)

    def show(self, picture: PIL.Image.Image, name: str = "") -> None:
        """Shows a picture and its reconstruction. Raises what the tokenizer raises, which the widget shows too."""
        if not isinstance(picture, PIL.Image.Image):
            raise TypeError(
                f"show takes a PIL picture, not a {type(picture).__name__}; open files with PIL.Image.open."
            )
        self._submit(lambda: rgb(picture), name)
        _ = self.reconstruction

    @property
    def reconstruction(self) -> Reconstruction | None:
        """What is shown, once it is ready; None while nothing was. Raises the error that the widget shows."""
        self._worker.wait()
        self._pump.drain()
        if self._error is not None:
            raise self._error
        return self._reconstruction

    def _ipython_display_(self) -> None:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        self._worker.wait(5)
        self._still.show(view, "ReconstructionViewer")

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {WIDGET_VIEW: view, **self._still.bundle()}

    # Messages of the browser: flags and hand-overs only

    def _handle(self, _: object, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        self._heard = str(content.get("mark", ""))
        name = str(content.get("name", ""))
        match content.get("kind"):
            case "hello":
                self._due = {"samples", "result"}
            case "still":
                self._asked_for_still = True
            case "sample" if name in self._samples:
                self._submit(lambda: self._samples[name], name)
            case "picture" if buffers:
                self._submit(lambda: read_picture(buffers[0]), name)
        self._pump.ring()

    def _submit(self, picture: Callable[[], PIL.Image.Image], name: str) -> None:
        self._waiting += 1
        self._worker.submit(partial(self._reconstruct, picture, name))
        self._pump.ring()

    # The worker's thread

    def _reconstruct(self, picture: Callable[[], PIL.Image.Image], name: str) -> None:
        try:
            original = self._images.prepare(picture())
            codes = np.asarray(self._images.encode(original))
            decoded = self._images.decode(codes)
            self._reconstruction = Reconstruction(original, codes, decoded)
            self._name, self._error = name, None
            self._still_due = True
        except Exception as error:  # shown in the widget, raised by `reconstruction`
            self._error = error
        self._waiting -= 1
        self._due = {*self._due, "result"}
        self._pump.ring()

    # The pump's thread

    def _flush(self) -> None:
        due, self._due = self._due, set()
        self.status = "working" if self._waiting else "error" if self._error is not None else "idle"
        message: dict[str, Any] = {"kind": "update", "heard": self._heard}
        pictures: list[bytes] = []
        if "samples" in due:
            message["samples"] = list(self._samples)
            pictures += [png(picture, SAMPLE_SIDE) for picture in self._samples.values()]
        if "result" in due:
            message["error"] = paragraph(self._error) if self._error is not None else ""
            if (shown := self._reconstruction) is not None:
                message |= {"name": self._name, **self._facts(shown)}
                pictures += [png(picture, SHOWN_SIDE) for picture in (shown.original, shown.picture)]
        self.send(message, pictures)
        if self._still_due:
            self._still_due = False
            self._still.refresh()
            self.send({"kind": "still", "revision": self._still.revision})
        if self._asked_for_still:
            self._asked_for_still = False
            self.send({"kind": "still", "revision": self._still.revision, "bundle": self._still.bundle()})

    def _facts(self, shown: Reconstruction) -> dict[str, Any]:
        bits = None if self._codebook is None else max(1, math.ceil(math.log2(self._codebook)))
        return {
            "codes": shown.codes.tolist(),
            "codebook": self._codebook,
            "bits": bits,
            "psnr": None if math.isinf(shown.psnr) else shown.psnr,
            "width": shown.original.width,
            "height": shown.original.height,
        }

    def _still_body(self) -> tuple[str, str]:
        shown = self._reconstruction
        if shown is None:
            empty = "A reconstruction viewer without a picture. Run the cell to use it."
            return f"<p>{empty}</p>", empty
        facts = summary(self._facts(shown))
        width = max(shown.original.width, min(256, 4 * shown.original.width))
        sides = (("Original", shown.original), ("Reconstruction", shown.picture))
        body = "".join(
            f'<span class="side"><b>{who}</b>{stills.image(data_uri(picture, SHOWN_SIDE), who, width)}</span>'
            for who, picture in sides
        )
        name = f"{self._name}: " if self._name else ""
        return f'{body}<p class="note">{stills.escape(name + facts)}</p>', f"Reconstruction. {name}{facts}"


def summary(facts: Mapping[str, Any]) -> str:
    """One line: how many codes, of how many bits, and how close the picture came back."""
    count = sum(len(row) for row in facts["codes"])
    size = f" × {facts['bits']} bits = {count * facts['bits']} bits" if facts["bits"] else ""
    psnr_text = "equal" if facts["psnr"] is None else f"PSNR {facts['psnr']:.1f} dB"
    return f"{count} codes{size}, {psnr_text}"
