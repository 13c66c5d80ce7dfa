"""A document with each of its words and patches to point at: where the model looked, what it thought, what matters."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import anywidget
import numpy as np
import PIL.Image
import traitlets

from chameleon_lab.readings import TokenReading
from chameleon_lab.vocabulary import Modality
from chameleon_widgets import stills
from chameleon_widgets.inspect.messages import (
    Alternative,
    HeadRows,
    InspectedDocument,
    InspectorState,
    KnockOut,
    LensPicture,
    TokenDetail,
    TokenFacts,
)
from chameleon_widgets.line import Line, Part, assets, paragraph
from chameleon_widgets.pictures import data_uri, png
from chameleon_widgets.threads import Worker, log

SINKS = ("begin_document", "begin_image")  # heads rest there that have nothing to read
ALTERNATIVES = 6
SWATCH_PIXELS = 32
ROLLOUT = -1  # in place of a layer
Way = Literal["from", "by"]


class Look(Protocol):
    """What the inspector asks of a model and a document; `Chameleon.inspect` gives one."""

    @property
    def readings(self) -> list[TokenReading]: ...

    @property
    def depth(self) -> tuple[int, int]: ...

    @property
    def guide(self) -> object | None: ...

    def words(self, token: int) -> str: ...

    def alternatives(self, position: int, k: int) -> list[tuple[int, float]]: ...

    def guided(self, position: int, k: int) -> list[tuple[int, float, float]]: ...

    def heads(self, layer: int, position: int) -> np.ndarray: ...

    def readers(self, layer: int, head: int, position: int) -> np.ndarray: ...

    def rollout(self, position: int) -> np.ndarray: ...

    def rollout_readers(self, position: int) -> np.ndarray: ...

    def image(self, image: int) -> PIL.Image.Image: ...

    def picture(self, layer: int, image: int) -> PIL.Image.Image: ...

    def swatch(self, token: int, position: int) -> PIL.Image.Image | None: ...

    def without(self, position: int, of: int) -> float: ...


class Inspector(anywidget.AnyWidget):
    """A document as a model holds it, with each word and each cell of its images to point at.

    Where a token looked, or who looked at it, by layer and head or through all layers; of the chosen one its
    alternatives, and what it becomes without another token; images as each layer would draw them. `look` computes what
    is asked for, on one thread, and nothing else uses it meanwhile.
    """

    _esm, _css = assets("inspector")

    selected: Any = traitlets.Any(
        None, help="The position chosen in the cell or from Python; None while there is none."
    )

    def __init__(self, look: Look) -> None:
        self._look = look
        self._document: tuple[InspectedDocument, list[bytes]] | None = None
        self._readings: list[TokenReading] = []
        self._kinds = np.empty(0, np.int64)  # words, patches, sinks, other special tokens
        self._pictures: list[PIL.Image.Image | None] = []
        self._detail: tuple[TokenDetail, list[bytes]] | None = None
        self._hover: tuple[Way, int, int, int] | None = None  # the newest row asked for, until it is computed
        self._answers: list[tuple[HeadRows | LensPicture | KnockOut, list[bytes]]] = []
        self._doing, self._trouble = "Reading the document", ""
        self._state: InspectorState | None = None
        self._worker = Worker("inspector worker")
        super().__init__()
        handlers = {
            "rows": self._want_rows,
            "select": self._select,
            "lens": self._want_lens,
            "without": self._knock_out,
        }
        # A hover should not wait for the next of 30 turns a second
        self._line = Line(self, "inspector", flush=self._flush, still=self._still, handlers=handlers, rate=120.0)
        self._submit("Reading the document", self._read)

    def wait(self, timeout: float | None = None) -> None:
        """Blocks until everything begun is done. Raises TimeoutError after `timeout` seconds."""
        if not self._worker.wait(timeout):
            raise TimeoutError(f"The inspector was not done after {timeout:g} s: {self._doing}. It goes on.")
        self._line.settle()

    @traitlets.validate("selected")
    def _valid(self, proposal: Any) -> int | None:
        if (value := proposal["value"]) is None:
            return None
        return self._whole("position", operator.index(value), len(self._readings or self._look.readings))

    @traitlets.observe("selected")
    def _chosen(self, _: object) -> None:
        self._submit("Looking up a token", partial(self._look_up, self.selected))

    # What the browser asks

    def _want_rows(self, content: dict[str, Any], _: object) -> bool:
        layers, heads = self._look.depth
        if (way := content.get("way")) not in ("from", "by"):
            raise ValueError(f"Attention is read “from” a token or “by” others, not {way!r}.")
        layer = self._whole("layer", content.get("layer"), layers, ROLLOUT)
        head = self._whole("head", content.get("head"), heads)
        idle = not self._worker.busy
        self._hover = (way, layer, head, self._position(content.get("position")))
        self._submit("", self._read_rows)
        return idle  # then the answer comes at once

    def _select(self, content: dict[str, Any], _: object) -> bool:
        position, idle = self._position(content.get("position")), not self._worker.busy
        if position == self.selected:
            self._chosen(None)
        self.selected = position
        return idle

    def _want_lens(self, content: dict[str, Any], _: object) -> None:
        image = self._whole("image", content.get("image"), len(self._pictures))
        layer = self._whole("layer", content.get("layer"), self._look.depth[0])
        self._submit("", partial(self._draw_lens, image, layer))

    def _knock_out(self, content: dict[str, Any], _: object) -> None:
        position, of = self._position(content.get("position")), self._position(content.get("of"))
        if position >= of:
            raise ValueError(
                "A token depends on those before it only: choose a later one, and knock out an earlier one."
            )
        words = self._readings[position].words
        self._submit(f"Knocking out “{words}”", partial(self._measure, position, of))

    def _position(self, value: object) -> int:
        return self._whole("position", value, len(self._readings))

    @staticmethod
    def _whole(name: str, value: object, end: int, start: int = 0) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not start <= value < end:
            raise ValueError(f"There is no {name} {value!r}: they go from {start} to {end - 1}.")
        return value

    # The worker's thread

    def _submit(self, doing: str, work: Callable[[], object]) -> None:
        """Has work done in its turn. What it raises is what the widget says, until other work is done; work that had
        nothing to do says False."""

        def step() -> None:
            if self._line.ended:
                return
            if doing:
                self._doing = doing
                self._line.tell("state")
            try:
                if work() is not False:
                    self._trouble = ""
            except Exception as error:
                log.exception("%s failed", doing or "An answer")
                self._trouble = paragraph(error)
            self._doing = ""
            self._line.tell("state")

        self._worker.submit(step)

    def _read(self) -> None:
        readings = self._look.readings
        for image in range(1 + max((each.image for each in readings if each.image is not None), default=-1)):
            try:
                self._pictures.append(self._look.image(image))
            except Exception:  # an image still under way, or one that its tokenizer cannot draw: cells without a look
                log.info("image %d has no look", image, exc_info=True)
                self._pictures.append(None)
        tokens = [
            TokenFacts(
                words=each.words,
                modality=int(each.modality),
                sink=each.words in SINKS and each.modality == Modality.SPECIAL,
                image=each.image,
                row=each.row,
                column=each.column,
                rank=each.rank,
            )
            for each in readings
        ]
        self._kinds = np.array([each["modality"] + (each["modality"] == 2 and not each["sink"]) for each in tokens])
        layers, heads = self._look.depth
        facts = [[each.log_probability, each.entropy] for each in readings]
        measures = np.array(facts, np.float32).T  # None becomes nan
        buffers = [row.astype("<f4").tobytes() for row in measures]
        buffers += [png(picture) if picture else b"" for picture in self._pictures]
        content = InspectedDocument(
            kind="document", tokens=tokens, images=len(self._pictures), layers=layers, heads=heads
        )
        self._readings, self._document = readings, (content, buffers)
        self._line.tell("document")
        self._line.renew_still()
        self._look.rollout(len(readings) - 1)  # what it keeps makes the first hover quick

    def _read_rows(self) -> bool:
        hover, self._hover = self._hover, None
        if hover is None:
            return False  # an earlier turn has answered a newer hover
        way, layer, head, position = hover
        heads = [head]
        if layer == ROLLOUT:
            rows = [self._look.rollout(position) if way == "from" else self._look.rollout_readers(position)]
        elif way == "from":  # a layer's heads come for the price of one
            rows = [*self._look.heads(layer, position)]
            heads = [*range(len(rows))]
        else:
            rows = [self._look.readers(layer, head, position)]
        self._answer(HeadRows(kind="rows", layer=layer, heads=heads, position=position, way=way), *map(_floats, rows))
        return True

    def _look_up(self, position: int | None) -> None:
        if position != self.selected:
            return  # a newer choice stands behind this one
        if position is None:
            self._detail = TokenDetail(kind="detail", position=None, alternatives=[], shares=[]), []
            return self._line.tell("detail")
        reading, alternatives = self._readings[position], list[Alternative]()
        swatches: list[bytes] = []
        offers: list[tuple[int, float, float | None]] = []
        if position and reading.modality == Modality.IMAGE and self._look.guide is not None:
            guided = self._look.guided(position, ALTERNATIVES)
            offers = [(token, probability, share) for token, share, probability in guided]
        elif position:
            offers = [(token, share, None) for token, share in self._look.alternatives(position, ALTERNATIVES)]
        if position and reading.token not in [token for token, *_ in offers]:
            offers.append((reading.token, math.exp(reading.log_probability or 0.0), None))
        for token, probability, share in offers:
            swatch = self._look.swatch(token, position)
            swatches += [] if swatch is None else [png(swatch, SWATCH_PIXELS)]
            alternatives.append(
                Alternative(
                    words=self._look.words(token),
                    probability=probability,
                    guided=share,
                    chosen=token == reading.token,
                    swatch=swatch is not None,
                )
            )
        shares = [self._shares(self._look.heads(layer, position)) for layer in range(self._look.depth[0])]
        self._detail = (
            TokenDetail(kind="detail", position=position, alternatives=alternatives, shares=shares),
            swatches,
        )
        self._line.tell("detail")

    def _shares(self, rows_HS: np.ndarray) -> list[list[float]]:
        kinds = self._kinds[: rows_HS.shape[1]]
        return [[round(float(row[kinds == kind].sum()), 4) for kind in range(4)] for row in rows_HS]

    def _draw_lens(self, image: int, layer: int) -> None:
        self._answer(LensPicture(kind="lens", image=image, layer=layer), png(self._look.picture(layer, image)))

    def _measure(self, position: int, of: int) -> None:
        self._answer(KnockOut(kind="knockout", position=position, of=of, nats=self._look.without(position, of)))

    def _answer(self, message: HeadRows | LensPicture | KnockOut, *buffers: bytes) -> None:
        self._answers.append((message, [*buffers]))
        self._line.tell("answers")

    # The pump's thread

    def _flush(self, due: frozenset[Part]) -> None:
        if "hello" in due:
            due |= {"document", "detail"}
        if "document" in due and self._document is not None:
            message, buffers = self._document
            self._line.send(message, buffers)
        if "detail" in due and self._detail is not None:
            message, buffers = self._detail
            self._line.send(message, buffers)
        for _ in range(len(self._answers)):
            message, buffers = self._answers.pop(0)
            self._line.send(message, buffers)
        doing = "" if self._line.ended else self._doing
        state = InspectorState(kind="state", doing=doing, trouble=self._trouble)
        if state != self._state or "hello" in due:
            self._state = state
            self._line.send(state)

    def _still(self) -> tuple[str, str]:
        """The document, words in the colour of their surprise, with its images."""
        body, image = [], -1
        for each in self._readings:
            if each.image is None:
                surprise = min(1.0, -(each.log_probability or 0.0) / 8)
                note = "" if each.log_probability is None else f"probability {math.exp(each.log_probability):.2g}"
                style = f"background:rgba(145,75,200,{0.6 * surprise:.2f});padding:1px 3px;border-radius:4px"
                body.append(f'<span style="{style}" title="{note}">{stills.escape(each.words)}</span>')
            elif each.image != image:
                image = each.image
                picture = self._pictures[image]
                body.append("" if picture is None else stills.image(data_uri(picture, 256), f"Image {image}", 160))
        surprises = [-each.log_probability for each in self._readings if each.log_probability is not None]
        mean = f", {np.mean(surprises):.2f} nats a token" if surprises else ""
        text = f"A document of {len(self._readings)} tokens{mean}; the more surprising a word, the darker."
        return f'<p>{" ".join(body)}</p><p class="note">{text}</p>', f"Inspector. {text}"


def _floats(row: Sequence[float] | np.ndarray) -> bytes:
    return np.asarray(row, "<f4").tobytes()
