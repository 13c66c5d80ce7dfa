"""A lesson on a model: how words and patches become tokens, and how one token after another comes of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import anywidget
import numpy as np
import PIL.Image

from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.pictures import read_picture
from chameleon_lab.readings import NextToken
from chameleon_lab.vocabulary import Modality, Vocabulary
from chameleon_widgets import stills
from chameleon_widgets.line import Line, Part, assets, paragraph
from chameleon_widgets.pictures import data_uri, png
from chameleon_widgets.teach.messages import (
    CodeLooks,
    ExplainerMessage,
    ExplainerState,
    HeadScores,
    LessonFacts,
    VocabularyBlock,
    WalkStep,
    WalkToken,
    WholePicture,
)
from chameleon_widgets.threads import Worker, log

LOOKS_AT_ONCE = 32  # codes drawn between two steps
WHOLE_CODEBOOK = 1024  # a codebook up to this size is drawn whole, ahead of time
LIKELIEST = 8  # tokens that the still names


class Journey(Protocol):
    """What the explainer asks of a model and a document under way; `Chameleon.walk` gives one."""

    document: Document
    tokens: list[int]
    next: NextToken

    @property
    def seed(self) -> int: ...

    @seed.setter
    def seed(self, seed: int) -> None: ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def depth(self) -> tuple[int, int]: ...

    def start(self, document: Document) -> None: ...

    def change(self, strengths: Sequence[float] | None = None, **changes: Any) -> None: ...

    def step(self, token: int | None = None) -> int | None: ...

    def back(self) -> None: ...

    def restart(self) -> None: ...

    def words(self, token: int) -> str: ...

    def weights(self, layer: int, position: int) -> tuple[np.ndarray, np.ndarray]: ...

    def image(self, image: int) -> PIL.Image.Image: ...

    def swatches(self, codes: Sequence[int]) -> list[PIL.Image.Image]: ...


class Explainer(anywidget.AnyWidget):
    """A model's next token, explained step by step: tokens, sequence, mask, attention, softmax, sampling, draw.

    `walk` is what `lab.walk(document)` returns; the page moves it on and back, and gives it the reader's own prompts.
    One thread uses it, and nothing else should meanwhile.
    """

    _esm, _css = assets("explainer")

    def __init__(self, walk: Journey) -> None:
        self.walk = walk
        self._step: tuple[WalkStep, list[bytes]] = self._read()
        self._tokens: list[int] = []  # those that the views have
        self._facts = self._read_facts()
        self._pictures: dict[int, PIL.Image.Image] = {}
        self._fresh: list[int] = []  # images that the views lack
        self._looks: dict[int, PIL.Image.Image] = {}
        self._undrawn: deque[int] = deque()  # codes whose looks are asked for
        self._answers: list[tuple[ExplainerMessage, list[bytes]]] = []
        self._doing, self._trouble = "", ""
        self._state: ExplainerState | None = None
        self._worker = Worker("explainer worker")
        super().__init__()
        handlers = {
            "draw": self._want_draw,
            "take": self._want_token,
            "back": lambda content, _: self._move("Going back", self.walk.back),
            "restart": lambda content, _: self._move("Going back to the prompt", self.walk.restart),
            "seed": self._want_seed,
            "prompt": self._want_prompt,
            "scores": self._want_scores,
            "looks": self._want_looks,
        }
        self._line = Line(self, "explainer", flush=self._flush, still=self._still, handlers=handlers, rate=60.0)
        self._submit("", self._look_around)

    def wait(self, timeout: float | None = None) -> None:
        """Blocks until everything begun is done. Raises TimeoutError after `timeout` seconds."""
        if not self._worker.wait(timeout):
            raise TimeoutError(f"The explainer was not done after {timeout:g} s: {self._doing}. It goes on.")
        self._line.settle()

    # What the browser asks

    def _want_draw(self, content: dict[str, Any], _: object) -> bool:
        return self._move("Drawing the next token", partial(self._draw, content, None))

    def _want_token(self, content: dict[str, Any], _: object) -> bool:
        token = _whole_number("token", content.get("token"), self.walk.vocabulary.size)
        return self._move("Putting the token", partial(self._draw, content, token))

    def _want_seed(self, content: dict[str, Any], _: object) -> bool:
        seed = _whole_number("seed", content.get("seed"), 2**53)
        return self._move("Drawing anew", lambda: setattr(self.walk, "seed", seed))

    def _want_prompt(self, content: dict[str, Any], buffers: Sequence[memoryview]) -> bool:
        text = content.get("text")
        if not isinstance(text, str):
            raise ValueError(f"A prompt's words are text, not {text!r}.")
        files, keep = [bytes(buffer) for buffer in buffers], bool(content.get("keep"))

        def start() -> None:
            pictures = [*(self.walk.document.pictures if keep else ()), *map(read_picture, files)]
            self.walk.start(Document.of(*pictures, *([text.strip()] if text.strip() else []), EndTurn()))

        return self._move("Reading the prompt", start)

    def _want_scores(self, content: dict[str, Any], _: object) -> bool:
        layer = _whole_number("layer", content.get("layer"), self.walk.depth[0])
        position = _whole_number("position", content.get("position"), 2**31)
        idle = not self._worker.busy
        self._submit("", partial(self._read_scores, layer, position))
        return idle  # then the answer comes at once

    def _want_looks(self, content: dict[str, Any], _: object) -> None:
        codes = content.get("codes")
        if not isinstance(codes, list):
            raise ValueError(f"Looks are asked for by a list of codes, not {codes!r}.")
        self._want_codes([_whole_number("code", code, self.walk.vocabulary.codes) for code in codes])

    # The worker's thread

    def _submit(self, doing: str, work: Callable[[], object]) -> None:
        """Has work done in its turn. What it raises is what the widget says, until other work is done."""

        def step() -> None:
            if self._line.ended:
                return
            if doing:
                self._doing = doing
                self._line.tell("state")
            try:
                work()
                self._trouble = "" if doing else self._trouble
            except Exception as error:
                log.exception("%s failed", doing or "An answer")
                self._trouble = paragraph(error)
            self._doing = ""
            self._line.tell("state")

        self._worker.submit(step)

    def _move(self, doing: str, work: Callable[[], object]) -> bool:
        """Has the walk moved, and what it then shows sent."""

        def moved() -> None:
            try:
                work()
            finally:  # a refusal, too, is answered with where the walk stands: a page that plays waits for that
                self._look_around()

        self._submit(doing, moved)
        return True

    def _draw(self, content: Mapping[str, Any], token: int | None) -> None:
        if (samplers := content.get("samplers")) is not None:
            changes = {name: samplers["words"][name] for name in ("temperature", "top_p", "top_k", "min_p")}
            changes |= {f"image_{name}": samplers["pictures"][name] for name in changes}
            self.walk.change(content.get("strengths"), **changes)
        self.walk.step(token)

    def _look_around(self) -> None:
        """Reads where the walk stands, and sees to the looks of what it shows."""
        self._step = self._read()
        here, vocabulary = self.walk.next, self.walk.vocabulary
        images = [each.image for each in here.tokens if each.image is not None]
        for image in [each for each in self._pictures if each not in images]:
            del self._pictures[image]
        for image in dict.fromkeys(images):
            self._read_picture(image, images.count(image))
        self._line.tell("step")
        self._line.renew_still(0.5)
        codes = [each.token for each in here.tokens if each.modality == Modality.IMAGE]
        cells = vocabulary.codes_of_tokens(np.array(codes, np.int64)).tolist()
        self._want_codes([*cells, *(range(vocabulary.codes) if vocabulary.codes <= WHOLE_CODEBOOK else ())])

    def _read_picture(self, image: int, cells: int) -> None:
        try:
            picture = self.walk.image(image)
        except Exception:  # under way, or one that its tokenizer cannot draw: cells without a look
            self._pictures.pop(image, None)
            return
        if self._pictures.get(image) != picture:
            self._pictures[image] = picture
            self._fresh.append(image)

    def _read(self) -> tuple[WalkStep, list[bytes]]:
        here = self.walk.next
        tokens = [
            WalkToken(
                token=each.token,
                modality=int(each.modality),
                image=each.image,
                row=each.row,
                column=each.column,
            )
            for each in here.tokens
        ]
        message = WalkStep(
            kind="step",
            start=0,
            tokens=tokens,
            prompt=here.prompt,
            text=self.walk.document.text,
            state=here.state,
            ended=here.ended,
            drawing=here.share is not None,
            grid=here.grid,
            streams=len(here.logits_SV),
            reasons=[*here.reasons],
            samplers=here.samplers,
            strengths=[*here.strengths],
            draw=here.draw,
            seed=self.walk.seed,
        )
        return message, [here.logits_SV.astype("<f4").tobytes(), here.allowed_V.astype(np.uint8).tobytes()]

    def _read_facts(self) -> tuple[LessonFacts, list[bytes]]:
        vocabulary, (layers, heads) = self.walk.vocabulary, self.walk.depth
        codes = vocabulary.codes_of_tokens(vocabulary.first_image + np.arange(vocabulary.codes))
        facts = LessonFacts(
            kind="facts",
            names=[self.walk.words(token) for token in range(vocabulary.size)],
            blocks=vocabulary_blocks(vocabulary),
            codes=vocabulary.codes,
            layers=layers,
            heads=heads,
        )
        return facts, [codes.astype("<i4").tobytes()]

    def _read_scores(self, layer: int, position: int) -> None:
        if position >= len(self.walk.tokens):
            return  # the walk has gone back meanwhile
        scores_HT, weights_HT = self.walk.weights(layer, position)
        buffers = [each.astype("<f4").tobytes() for each in (scores_HT, weights_HT)]
        self._answers.append((HeadScores(kind="scores", layer=layer, position=position), buffers))
        self._line.tell("answers")

    def _want_codes(self, codes: Sequence[int]) -> None:
        """Has the looks of codes drawn, those named last asked for first; a few at a time, steps in between."""
        fresh = [code for code in dict.fromkeys(codes) if code not in self._looks]
        if not fresh:
            return
        idle, waiting = not self._undrawn, set(fresh)
        self._undrawn = deque([*fresh, *(code for code in self._undrawn if code not in waiting)])
        if idle:
            self._submit("", self._draw_looks)

    def _draw_looks(self) -> None:
        codes = [self._undrawn.popleft() for _ in range(min(LOOKS_AT_ONCE, len(self._undrawn)))]
        try:
            self._looks |= zip(codes, self.walk.swatches(codes), strict=True)
        except Exception:  # without a picture decoder codes are numbers
            log.info("codes have no looks", exc_info=True)
            self._undrawn.clear()
            return
        self._answers.append(self._sheet(codes))
        self._line.tell("answers")
        if self._undrawn:
            self._submit("", self._draw_looks)

    def _sheet(self, codes: Sequence[int]) -> tuple[CodeLooks, list[bytes]]:
        side = self._looks[codes[0]].width
        sheet = PIL.Image.new("RGB", (side * len(codes), side))
        for place, code in enumerate(codes):
            sheet.paste(self._looks[code], (side * place, 0))
        return CodeLooks(kind="looks", codes=[*codes]), [png(sheet)]

    # The pump's thread

    def _flush(self, due: frozenset[Part]) -> None:
        if "hello" in due:
            self._line.send(*self._facts)
            if codes := [*self._looks]:
                sheet, pngs = self._sheet(codes)
                self._line.send(sheet, pngs)
            self._tokens, self._fresh = [], [*self._pictures]
        if due & {"hello", "step"}:
            self._send_step()
        for _ in range(len(self._fresh)):
            image = self._fresh.pop(0)
            if (picture := self._pictures.get(image)) is not None:
                self._line.send(WholePicture(kind="picture", image=image), [png(picture)])
        for _ in range(len(self._answers)):
            message, buffers = self._answers.pop(0)
            self._line.send(message, buffers)
        state = ExplainerState(kind="state", doing="" if self._line.ended else self._doing, trouble=self._trouble)
        if state != self._state or "hello" in due:
            self._state = state
            self._line.send(state)

    def _send_step(self) -> None:
        """Where the walk stands; of its tokens those that the views lack."""
        step, buffers = self._step
        tokens = [each["token"] for each in step["tokens"]]
        pairs = zip(tokens, self._tokens, strict=False)
        start = next((at for at, (new, old) in enumerate(pairs) if new != old), min(len(tokens), len(self._tokens)))
        self._tokens = tokens
        self._line.send(WalkStep(**{**step, "start": start, "tokens": step["tokens"][start:]}), buffers)

    def _still(self) -> tuple[str, str]:
        """The walk so far: its tokens with their ids, its pictures, and what may come next."""
        here, vocabulary = self.walk.next, self.walk.vocabulary
        parts, image = [], -1
        for each in here.tokens:
            if each.position == here.prompt:
                parts.append("<br><b>Reply</b>")
            if each.image is None:
                parts.append(f"{stills.escape(each.words)}<sub>{each.token}</sub>")
            elif each.image != image:
                image = each.image
                picture = self._pictures.get(image)
                look = "" if picture is None else stills.image(data_uri(picture, 256), f"Image {image}", 128)
                code = int(vocabulary.codes_of_tokens(np.array(each.token)))
                first = f"its first cell: code {code}, token {each.token}"
                parts.append(f"{look}<span class=note>{first}</span>")
        body = f"<p>{' '.join(parts)}</p>"
        text = f"A walk of {len(here.tokens)} tokens in one vocabulary of {vocabulary.size}: {here.state}."
        if not here.ended:
            logits_V = np.where(here.allowed_V, here.logits_SV[0].astype(np.float64), -np.inf)
            shares_V = np.exp(logits_V - logits_V.max())
            shares_V /= shares_V.sum()
            best = np.argsort(-shares_V, kind="stable")[:LIKELIEST]
            rows = [f"{stills.escape(self._facts[0]['names'][at])} {100 * shares_V[at]:.1f} %" for at in best]
            body += f'<p class="note">Of what may come next, likeliest: {" · ".join(rows)}</p>'
        return body + f'<p class="note">{stills.escape(text)}</p>', f"Explainer. {text}"


def vocabulary_blocks(vocabulary: Vocabulary) -> list[VocabularyBlock]:
    """The vocabulary's line in its blocks, by rising ids."""
    end_codes = vocabulary.first_image + vocabulary.codes
    rows = (
        ("begin, pad, end", 0, vocabulary.first_image, Modality.SPECIAL),
        ("codes of patches", vocabulary.first_image, end_codes, Modality.IMAGE),
        ("begin_image, end_image, end_turn, …", end_codes, vocabulary.first_text, Modality.SPECIAL),
        ("pieces of words", vocabulary.first_text, vocabulary.size, Modality.TEXT),
    )
    return [
        VocabularyBlock(name=name, first=first, stop=stop, modality=int(modality))
        for name, first, stop, modality in rows
    ]


def _whole_number(name: str, value: object, end: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < end:
        raise ValueError(f"There is no {name} {value!r}: they go from 0 to {end - 1}.")
    return value
