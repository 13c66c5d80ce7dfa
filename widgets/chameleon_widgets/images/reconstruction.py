"""A picture through image tokenizers: what went in, its codes, and what came out, side by side or under a wipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import anywidget
import numpy as np
import PIL.Image
import traitlets

from chameleon_lab.pictures import read_picture, rgb
from chameleon_lab.records import Reconstruction
from chameleon_widgets.images.messages import ViewerOffers, ViewerResult
from chameleon_widgets.images.round_trips import RoundTrip, refusal_words, still
from chameleon_widgets.line import Line, Part, assets, paragraph
from chameleon_widgets.pictures import png
from chameleon_widgets.threads import Worker

VIEWER_SIDE = 2048  # pixels: pictures up to here reach the screen, and the file saved there, as they are
SAMPLE_SIDE = 112


class ImageCodec(Protocol):
    """What the viewer asks of an image tokenizer. Where there are policies, `prepare` and `encode` take one second."""

    def prepare(self, picture: PIL.Image.Image) -> PIL.Image.Image: ...

    def encode(self, picture: PIL.Image.Image) -> np.ndarray: ...

    def decode(self, codes: np.ndarray) -> PIL.Image.Image: ...


class ReconstructionViewer(anywidget.AnyWidget):
    """Original and reconstruction of a picture that is chosen, pasted, dropped, or passed to `show`.

    `images` is an image tokenizer, or several by name: then one is chosen, or two to be compared. `samples` are
    pictures offered by name; the first is shown at the start. `policies` are preparations by name (None: the
    tokenizer's own), handed to `prepare` and `encode`; the first is used at the start. Those that are one tokenizer's
    `preparations` stand for the others' own of the same name, which are for their grids. `codebook` is the number of
    codes there are, for the count of bits; left out, it is each tokenizer's `codes`, where that is a number.
    """

    _esm, _css = assets("reconstruction_viewer")

    status = traitlets.Unicode("idle", help="idle, working or error.").tag(sync=True)

    def __init__(
        self,
        images: ImageCodec | Mapping[str, ImageCodec],
        *,
        samples: Mapping[str, PIL.Image.Image] | None = None,
        policies: Mapping[str, object] | None = None,
        codebook: int | None = None,
    ) -> None:
        self._images = dict(images) if isinstance(images, Mapping) else {type(images).__name__: images}
        if not self._images:
            raise ValueError("There is no image tokenizer in the mapping; give one, or several by name.")
        self._policies = dict(policies or {})
        self._samples = {name: rgb(picture) for name, picture in (samples or {}).items()}
        self._codebook = codebook
        self._chosen = (next(iter(self._images)),)
        self._policy = next(iter(self._policies), "")
        self._picture: tuple[str, PIL.Image.Image] | None = None  # the last one that could be read, and its name
        self._result: tuple[str, tuple[RoundTrip, ...]] = ("", ())
        self._error: Exception | None = None
        self._words = ""  # of the error, for the screen
        self._newest = self._done = 0  # requests, by number
        self._worker = Worker("reconstruction worker")
        super().__init__()
        handlers = {
            "sample": lambda content, _: self._submit_sample(str(content.get("name", ""))),
            "picture": self._submit_file,
            "choose": self._choose,
        }
        self._line = Line(self, "reconstruction", flush=self._flush, still=self._still, handlers=handlers)
        self._line.tell("hello")
        if self._samples:
            self._submit_sample(next(iter(self._samples)))

    def show(self, picture: PIL.Image.Image, name: str = "") -> None:
        """Shows a picture and its reconstruction. Raises what the tokenizer raises, which the widget shows too."""
        if not isinstance(picture, PIL.Image.Image):
            raise TypeError(
                f"show takes a PIL picture, not a {type(picture).__name__}; open files with PIL.Image.open."
            )
        self._submit(lambda: (name, rgb(picture)))
        _ = self.reconstruction

    def choose(self, *tokenizers: str, policy: str | None = None) -> None:
        """Shows the picture through one tokenizer, or compares two, by name; `policy` changes the preparation.

        What is left out stays as it is. Returns at once. Raises ValueError for a name that there is not.
        """
        for names, offers in ((tokenizers, self._images), ([policy] if policy else [], self._policies)):
            for name in names:
                if name not in offers:
                    raise ValueError(f"Nothing is called {name!r} here; there is {', '.join(offers) or 'no choice'}.")
        if len(tokenizers) > 2 or len(set(tokenizers)) < len(tokenizers):
            raise ValueError(f"One tokenizer is shown, or two different ones; got {', '.join(tokenizers)}.")
        self._chosen, self._policy = tokenizers or self._chosen, policy or self._policy
        self._submit(lambda: self._picture)

    @property
    def reconstruction(self) -> Reconstruction | None:
        """What is shown, of the first tokenizer, once it is ready; None while nothing was. Raises the error shown."""
        trips = self._ready()
        result = trips[0].result if trips else None
        if isinstance(result, Exception):
            raise result
        return result

    @property
    def reconstructions(self) -> dict[str, Reconstruction]:
        """All that is shown, by the tokenizer's name, once it is ready; one that failed is left out."""
        return {trip.tokenizer: trip.result for trip in self._ready() if isinstance(trip.result, Reconstruction)}

    def _ready(self) -> tuple[RoundTrip, ...]:
        self._worker.wait()
        self._line.settle()
        if self._error is not None:
            raise self._error
        return self._result[1]

    # What the browser asks

    def _submit_file(self, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        name = str(content.get("name", ""))
        if buffers:
            self._submit(lambda: (name, read_picture(buffers[0], f"“{name}”" if name else "The picture")))

    def _choose(self, content: dict[str, Any], _: object) -> None:
        with suppress(ValueError):  # a view of an earlier run may offer what is no longer there
            self.choose(*content.get("tokenizers", ()), policy=content.get("policy"))

    def _submit_sample(self, name: str) -> None:
        if name in self._samples:
            self._submit(lambda: (name, self._samples[name]))

    def _submit(self, read: Callable[[], tuple[str, PIL.Image.Image] | None]) -> None:
        self._newest += 1
        self._worker.submit(partial(self._reconstruct, read, self._newest))
        self._line.ring()

    # The worker's thread

    def _reconstruct(self, read: Callable[[], tuple[str, PIL.Image.Image] | None], number: int) -> None:
        try:
            self._picture = read()
            if self._picture is not None and number >= self._newest:  # else a later request is waiting
                name, picture = self._picture
                trips = tuple(self._round_trip(each, self._policy, picture) for each in self._chosen)
                if isinstance(trips[0].result, Exception) and not any(trip.pictures for trip in trips):
                    self._error, self._words = trips[0].result, refusal_words(trips, named=len(self._images) > 1)
                else:
                    self._result, self._error = (name, trips), None
                    self._line.renew_still()
        except Exception as error:  # shown in the widget, raised by `reconstruction`
            self._error, self._words = error, paragraph(error)
        self._done = number
        self._line.tell("result")

    def _round_trip(self, tokenizer: str, policy: str, picture: PIL.Image.Image) -> RoundTrip:
        images = self._images[tokenizer]
        how = (self._prepared_by(images, policy),) if policy in self._policies else ()
        size = getattr(images, "codes", None) if self._codebook is None else self._codebook
        try:
            original = images.prepare(picture, *how)
            codes = np.asarray(images.encode(original, *how))
            result = Reconstruction(original, codes, images.decode(codes))
            _ = result.psnr, result.ssim  # worked out here, not by the pump
        except Exception as error:  # shown in the tokenizer's place
            result = error
        return RoundTrip(tokenizer, policy, int(size) if isinstance(size, int | np.integer) else None, result)

    def _prepared_by(self, images: ImageCodec, policy: str) -> object:
        """The policy of that name as it fits this tokenizer."""
        named = self._policies[policy]
        own = [getattr(each, "preparations", {}).get(policy) for each in (images, *self._images.values())]
        return own[0] if own[0] is not None and named is not None and named in own else named

    # The pump's thread

    def _flush(self, due: frozenset[Part]) -> None:
        error = self._error
        self.status = "working" if self._done < self._newest else "error" if error is not None else "idle"
        if "hello" in due:
            offers = {"tokenizers": [*self._images], "policies": [*self._policies], "samples": [*self._samples]}
            pictures = [png(picture, SAMPLE_SIDE) for picture in self._samples.values()]
            self._line.send(ViewerOffers(kind="offers", **offers), pictures)
        if due & {"hello", "result"}:
            name, trips = self._result
            result = ViewerResult(
                kind="result",
                error=self._words if error is not None else "",
                name=name,
                chosen=[*self._chosen],
                policy=self._policy,
                trips=[trip.facts() for trip in trips],
            )
            self._line.send(result, [png(picture, VIEWER_SIDE) for trip in trips for picture in trip.pictures])

    def _still(self) -> tuple[str, str]:
        self._worker.wait(5)  # for the picture that is on its way
        return still(*self._result)
