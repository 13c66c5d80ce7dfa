"""A codebook at a glance and code by code: all codes on one map, how often each is seen, and what each stands for."""

from __future__ import annotations

import operator
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anywidget
import PIL.Image
import traitlets

from chameleon_lab.records import CodebookUsage
from chameleon_widgets import stills
from chameleon_widgets.images import codebook_map
from chameleon_widgets.images.codebook_study import DECODED_BLOCK, CodebookStudy, CodebookTokenizer, facts
from chameleon_widgets.images.messages import (
    AtlasCode,
    AtlasColours,
    AtlasMap,
    AtlasPatches,
    AtlasPicture,
    AtlasState,
    AtlasUsage,
)
from chameleon_widgets.line import Line, Part, assets
from chameleon_widgets.pictures import data_uri, png
from chameleon_widgets.threads import Worker

ATLAS_SIDE = 512
NO_CODE = AtlasCode(kind="code", code=None, near=[], places=[], count=0)


class CodebookAtlas(anywidget.AnyWidget):
    """All codes of a tokenizer on one map, coloured by use; and of the chosen one its patch, its kin, its sightings.

    `pictures`, by name or in a row, are encoded while the cell is already of use: they give the usage, real patches
    for each code, and pictures to find a code in. `usage` was measured elsewhere and replaces theirs. Raises
    ValueError for a codebook that is missing, misshapen or not finite, and for a usage of another size.
    """

    _esm, _css = assets("codebook_atlas")

    status = traitlets.Unicode("working", help="idle, working or error.").tag(sync=True)
    selected: Any = traitlets.Any(None, help="The code chosen in the cell or from Python; None while there is none.")

    def __init__(
        self,
        tokenizer: CodebookTokenizer,
        *,
        pictures: Mapping[str, PIL.Image.Image] | Sequence[PIL.Image.Image] = (),
        usage: CodebookUsage | None = None,
    ) -> None:
        self._study = CodebookStudy(tokenizer, pictures, usage)
        self._detail: tuple[AtlasCode, list[bytes]] = NO_CODE, []
        self._queue: deque[int] = deque()  # codes whose decoded patches the detail waits for
        self._picture = 0
        self._colours_wanted = self._colouring = False
        self._counted = 0.0  # when the usage was sent last
        self._state: AtlasState | None = None
        self._worker = Worker("codebook atlas worker")
        super().__init__()
        handlers = {"colours": self._want_colours, "picture": self._turn, "select": self._select}
        # A click should not wait, and there are few messages
        self._line = Line(self, "codebook atlas", flush=self._flush, still=self._still, handlers=handlers, rate=60.0)
        self._worker.submit(self._arrange)

    @property
    def usage(self) -> CodebookUsage:
        """What the map is coloured by: the usage given, else that of the pictures encoded so far."""
        return self._study.usage

    def wait(self, timeout: float | None = None) -> None:
        """Blocks until everything begun is done, for scripts and for notebooks run without a browser.

        Raises the error that the widget shows; TimeoutError after `timeout` seconds.
        """
        if not self._worker.wait(timeout):
            raise TimeoutError(f"The atlas was not done after {timeout:g} s: {self._study.doing}. It goes on.")
        self._line.settle()
        for error in tuple(self._study.trouble.values()):
            raise error

    @traitlets.validate("selected")
    def _valid(self, proposal: Any) -> int | None:
        if (value := proposal["value"]) is None:
            return None
        if not 0 <= (code := operator.index(value)) < self._study.size:
            raise ValueError(f"There is no code {code}: they go from 0 to {self._study.size - 1}.")
        return code

    @traitlets.observe("selected")
    def _chosen(self, _: object) -> None:
        self._worker.submit(partial(self._look_up, self.selected))

    # What the browser asks

    def _want_colours(self, content: dict[str, Any], _: object) -> None:
        self._colours_wanted = content.get("value") is True
        self._worker.submit(self._colour)

    def _turn(self, content: dict[str, Any], _: object) -> None:
        at = content.get("value")
        if isinstance(at, int) and 0 <= at < len(self._study.sightings.pictures):
            self._picture = at
            self._line.tell("picture")

    def _select(self, content: dict[str, Any], _: object) -> bool:
        code = content.get("value")
        if not isinstance(code, int) or not 0 <= code < self._study.size:
            return False
        idle = not self._worker.busy
        if code == self.selected:
            self._worker.submit(partial(self._look_up, code))
        self.selected = code
        return idle  # then the answer comes at once

    # The worker's thread: each step does a little and submits the next, so that what is asked for comes in between

    def _arrange(self) -> None:
        self._study.arrange()
        self._line.tell("map", "usage")
        self._line.renew_still()
        self._worker.submit(self._encode)

    def _encode(self) -> None:
        more = self._study.encode_next() and not self._line.ended
        if len(self._study.sightings.pictures) == 1:
            self._line.tell("picture")
        if not more or time.monotonic() - self._counted > 0.25:
            self._counted = time.monotonic()
            self._line.tell("usage")
        if more:
            self._worker.submit(self._encode)
        else:
            self._line.renew_still()
            self._look_up(self.selected)

    def _look_up(self, code: int | None) -> None:
        if code != self.selected:
            return  # a newer choice stands behind this one
        if code is None:
            self._detail = NO_CODE, []
            return self._line.tell("code")
        content, patches = self._study.detail(code)
        self._detail = content, [png(patch) for patch in patches]
        self._line.tell("code")
        idle = not self._queue
        self._queue = deque([code, *(each for each, _ in content["near"])])
        if idle:
            self._decode()

    def _decode(self) -> None:
        self._line.tell(*self._study.decode(self._queue))
        if self._queue and not self._line.ended:
            self._worker.submit(self._decode)

    def _colour(self, again: bool = False) -> None:
        if again or not self._colouring:
            self._colouring = self._colours_wanted and not self._line.ended and self._study.colour_next()
            self._line.tell("colours")
            if self._colouring:
                self._worker.submit(partial(self._colour, True))

    # The pump's thread

    def _flush(self, due: frozenset[Part]) -> None:
        """Sends what is due: parts by name, and decoded patches by the number of their code."""
        study, usage, pictures = self._study, self._study.usage, self._study.sightings.pictures
        if "hello" in due:
            due |= {"map", "usage", "picture", "code", "colours"}
        count = int((study.colours_N4[:, 3] > 0).sum())
        colouring = f"Decoding colours, {100 * count // study.size} %" if self._colouring else ""
        doing = "" if self._line.ended else study.doing or colouring
        self.status = "working" if doing else "error" if study.trouble else "idle"
        state = AtlasState(kind="state", doing=doing, trouble=study.complaints())
        if state != self._state or "hello" in due:
            self._state = state
            self._line.send(state)
        if "map" in due and study.order_N is not None:
            columns = codebook_map.columns_of(study.size)
            layout = AtlasMap(kind="map", columns=columns, scale=[*codebook_map.USAGE_SCALE], block=DECODED_BLOCK)
            self._line.send(layout, [study.order_N.astype("<u4").tobytes()])
        if "usage" in due:
            names = [each.name for each in pictures]
            use = AtlasUsage(kind="usage", names=names, external=study.external_usage is not None, **facts(usage))
            self._line.send(use, [usage.counts_N.astype("<f8").tobytes()])
        if "picture" in due and pictures:
            picture, codes = pictures[self._picture].picture, pictures[self._picture].codes
            (rows, columns), (width, height) = codes.shape, picture.size
            place = AtlasPicture(
                kind="picture", at=self._picture, rows=rows, columns=columns, width=width, height=height
            )
            self._line.send(place, [png(picture, ATLAS_SIDE), codes.astype("<u4").tobytes()])
        detail, places = self._detail
        patches = [part for part in due if isinstance(part, int)]
        if "code" in due and detail["code"] == self.selected:
            self._line.send(detail, places)
            patches += [code for code in (detail["code"], *(code for code, _ in detail["near"])) if code is not None]
        if decoded := {code: patch for code in patches if (patch := study.decoded(code)) is not None}:
            self._line.send(AtlasPatches(kind="patches", codes=[*decoded]), map(png, decoded.values()))
        if "colours" in due and count:
            self._line.send(AtlasColours(kind="colours"), [study.colours_N4.tobytes()])

    def _still(self) -> tuple[str, str]:
        text = self._study.summary()
        if (order_N := self._study.order_N) is None:
            return f"<p>{text}</p>", f"Codebook atlas. {text}"
        picture = codebook_map.draw(order_N, self._study.usage.counts_N)
        image = stills.image(data_uri(picture), "Map of the codebook, coloured by usage", picture.width // 2)
        return f'{image}<p class="note">{stills.escape(text)}</p>', f"Codebook atlas. {text}"
