"""A codebook at a glance and code by code: all codes on one map, how often each is seen, and what each stands for."""

from __future__ import annotations

import operator
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anywidget
import PIL.Image
import traitlets

from chameleon_lab.records import CodebookUsage
from chameleon_widgets import stills
from chameleon_widgets.images import codebook_map
from chameleon_widgets.images.codebook_study import BLOCK, CodebookStudy, CodebookTokenizer, facts
from chameleon_widgets.pictures import data_uri, png
from chameleon_widgets.stills import WIDGET_VIEW, Still
from chameleon_widgets.threads import Pump, Worker, claim

STATIC = Path(__file__).parents[1] / "static"
SHOWN_SIDE = 512


class CodebookAtlas(anywidget.AnyWidget):
    """All codes of a tokenizer on one map, coloured by use; and of the chosen one its patch, its kin, its sightings.

    `pictures`, by name or in a row, are encoded while the cell is already of use: they give the usage, real patches
    for each code, and pictures to find a code in. `usage` was measured elsewhere and replaces theirs. Raises
    ValueError for a codebook that is missing, misshapen or not finite, and for a usage of another size.
    """

    _esm = STATIC / "codebook_atlas.js"
    _css = STATIC / "codebook_atlas.css"

    status = traitlets.Unicode("working", help="idle, working or error.").tag(sync=True)
    still_name = traitlets.Unicode(help="Class of the still that the view hides while it is alive.").tag(sync=True)
    selected: Any = traitlets.Any(None, help="The code chosen in the cell or from Python; None while there is none.")

    def __init__(
        self,
        tokenizer: CodebookTokenizer,
        *,
        pictures: Mapping[str, PIL.Image.Image] | Sequence[PIL.Image.Image] = (),
        usage: CodebookUsage | None = None,
    ) -> None:
        self._study = CodebookStudy(tokenizer, pictures, usage)
        self._detail: tuple[dict[str, Any], list[bytes]] = {"code": None, "near": []}, []
        self._wanted: deque[int] = deque()  # codes whose decoded patches the detail waits for
        self._picture = 0
        self._colours_wanted = self._colouring = self._ended = False
        self._heard, self._told = "", 0.0
        self._state: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._due: set[str] = set()
        self._patches_due: list[int] = []
        self._still = Still(uuid.uuid4().hex, self._still_body)
        self._worker = Worker("codebook atlas worker")
        self._pump = Pump(self._flush, "codebook atlas pump", rate=60.0)  # few messages: a click should not wait
        super().__init__(still_name=self._still.name)
        self.on_msg(self._handle)
        claim(self._end)
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
        self._pump.drain()
        for error in tuple(self._study.trouble.values()):
            raise error

    def close(self) -> None:
        self._end()
        super().close()

    def _end(self) -> None:
        """Lets the worker run out of work."""
        self._ended = True

    def _ipython_display_(self) -> None:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        self._still.show(view, f"CodebookAtlas, {self._study.size} codes")

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {WIDGET_VIEW: view, **self._still.bundle()}

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

    # Messages of the browser: flags and hand-overs only

    def _handle(self, _: object, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        self._heard = str(content.get("mark", ""))
        value = content.get("value")
        match content.get("kind"):
            case "hello":
                self._tell("map", "usage", "picture", "code", "colours")
            case "still":
                self._tell("still asked for")
            case "colours":
                self._colours_wanted = value is True
                self._worker.submit(self._colour)
            case "picture" if isinstance(value, int) and 0 <= value < len(self._study.sightings.seen):
                self._picture = value
                self._tell("picture")
            case "select" if isinstance(value, int) and 0 <= value < self._study.size:
                idle = not self._worker.busy
                if value == self.selected:
                    self._worker.submit(partial(self._look_up, value))
                self.selected = value
                if idle:
                    return  # the answer comes at once, and tells that this was heard
        self._pump.ring()

    def _tell(self, *parts: str, patches: Sequence[int] = ()) -> None:
        with self._lock:
            self._due.update(parts)
            self._patches_due.extend(patches)
        self._pump.ring()

    # The worker's thread: each step does a little and submits the next, so that what is asked for comes in between

    def _arrange(self) -> None:
        self._study.arrange()
        self._tell("map", "usage", "still")
        self._worker.submit(self._encode)

    def _encode(self) -> None:
        more = self._study.encode_next() and not self._ended
        if len(self._study.sightings.seen) == 1:
            self._tell("picture")
        if not more or time.monotonic() - self._told > 0.25:
            self._told = time.monotonic()
            self._tell("usage")
        if more:
            self._worker.submit(self._encode)
        else:
            self._tell("still")
            self._look_up(self.selected)

    def _look_up(self, code: int | None) -> None:
        if code != self.selected:
            return  # a newer choice stands behind this one
        if code is None:
            self._detail = {"code": None, "near": []}, []
            return self._tell("code")
        content, patches = self._study.detail(code)
        self._detail = content, [png(patch) for patch in patches]
        self._tell("code")
        idle = not self._wanted
        self._wanted = deque([code, *(each for each, _ in content["near"])])
        if idle:
            self._decode()

    def _decode(self) -> None:
        self._tell(patches=self._study.decode(self._wanted))
        if self._wanted and not self._ended:
            self._worker.submit(self._decode)

    def _colour(self, again: bool = False) -> None:
        if again or not self._colouring:
            self._colouring = self._colours_wanted and not self._ended and self._study.colour_next()
            self._tell("colours")
            if self._colouring:
                self._worker.submit(partial(self._colour, True))

    # The pump's thread

    def _flush(self) -> None:
        with self._lock:
            due, self._due = self._due, set()
            patches, self._patches_due = self._patches_due, []
        study, usage, seen = self._study, self._study.usage, self._study.sightings.seen
        known = int((study.colours_N4[:, 3] > 0).sum())
        colouring = f"Decoding colours, {100 * known // study.size} %" if self._colouring else ""
        doing = "" if self._ended else study.doing or colouring
        self.status = "working" if doing else "error" if study.trouble else "idle"
        state = {"kind": "state", "heard": self._heard, "doing": doing, "trouble": study.told()}
        if state != self._state:
            self._state = state
            self.send(state)
        if "map" in due and study.order_N is not None:
            content = {"columns": codebook_map.columns_of(study.size), "scale": codebook_map.SCALE, "block": BLOCK}
            self.send({"kind": "map", **content}, [study.order_N.astype("<u4").tobytes()])
        if "usage" in due:
            content = {"names": [each.name for each in seen], "given": study.given is not None, **facts(usage)}
            self.send({"kind": "usage", **content}, [usage.counts_N.astype("<f8").tobytes()])
        if "picture" in due and seen:
            picture, codes = seen[self._picture].picture, seen[self._picture].codes
            content = {"at": self._picture, "rows": codes.shape[0], "columns": codes.shape[1]}
            content |= {"width": picture.width, "height": picture.height}
            self.send({"kind": "picture", **content}, [png(picture, SHOWN_SIDE), codes.astype("<u4").tobytes()])
        content, pictures = self._detail
        if "code" in due and content["code"] == self.selected:
            self.send({"kind": "code", **content}, pictures)
            patches = [content["code"], *(code for code, _ in content["near"]), *patches]
        if decoded := {code: patch for code in patches if (patch := study.decoded(code)) is not None}:
            self.send({"kind": "patches", "codes": list(decoded)}, [png(patch) for patch in decoded.values()])
        if "colours" in due and known:
            self.send({"kind": "colours"}, [study.colours_N4.tobytes()])
        if "still" in due:
            self._still.refresh()
            self.send({"kind": "still", "revision": self._still.revision})
        if "still asked for" in due:
            self.send({"kind": "still", "revision": self._still.revision, "bundle": self._still.bundle()})

    def _still_body(self) -> tuple[str, str]:
        text = self._study.summary()
        if (order_N := self._study.order_N) is None:
            return f"<p>{text}</p>", f"Codebook atlas. {text}"
        picture = codebook_map.draw(order_N, self._study.usage.counts_N)
        shown = stills.image(data_uri(picture), "Map of the codebook, coloured by usage", picture.width // 2)
        return f'{shown}<p class="note">{stills.escape(text)}</p>', f"Codebook atlas. {text}"
