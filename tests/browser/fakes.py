"""What stands in for slow things: a model that replies and draws, an image tokenizer, a run that trains nothing.

Each can be told to fail or to wait.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw

from chameleon_lab.documents import Document
from chameleon_lab.history import Alarm, Event, History, Intervention, RunState, StepRecord
from chameleon_lab.records import ImagePiece, Piece, ReplyProgress, StopPiece, TextPiece

ROWS = 8
closed: list[str] = []  # how each stream ended
gate = threading.Event()  # held pictures go on when it is set
HELD = 600  # seconds at most: longer than a busy machine takes to what a test asks meanwhile


def scene(first: str = "#d8413a", second: str = "#2f6fd6") -> PIL.Image.Image:
    """A circle left of a square, 64 x 64."""
    big = PIL.Image.new("RGB", (256, 256), "#f3efe4")
    draw = PIL.ImageDraw.Draw(big)
    draw.ellipse((28, 80, 120, 172), fill=first)
    draw.rectangle((150, 86, 232, 168), fill=second)
    return big.resize((64, 64), PIL.Image.Resampling.LANCZOS)


def partial(picture: PIL.Image.Image, rows: int) -> PIL.Image.Image:
    """The picture down to a row of the grid; noise, as of a decoder that guesses, below it."""
    pixels = np.asarray(picture).copy()
    edge = rows * picture.height // ROWS
    rough = np.random.default_rng(rows).integers(90, 220, (8, 8, 3), np.uint8)
    noise = PIL.Image.fromarray(rough).resize(picture.size, PIL.Image.Resampling.BICUBIC)
    pixels[edge:] = np.asarray(noise)[edge:]
    return PIL.Image.fromarray(pixels)


def stream(
    document: Document,
    *,
    temperature: float = 0.9,
    top_p: float = 0.95,
    guidance: float = 3.0,
    seed: int | None = None,
    pause: float = 0.02,
) -> Iterator[Piece]:
    """Replies to the last message: "draw ..." draws, "hold ..." draws half until `gate` is set, "fail ..." raises."""
    said = next(turn.text for role, turn in reversed(document.turns) if role == "user")
    ended = "closed early"
    try:
        if said.startswith("fail"):
            yield TextPiece("I was about to say ")
            raise RuntimeError("the model broke\nin the middle of a word <b>bold</b>")
        if said.startswith("wait"):
            gate.wait(HELD)
        words = "Here it is." if said.startswith(("draw", "hold")) else f"You said: {said}. There is a picture in it."
        if said.startswith("long"):
            words = " ".join(f"This is sentence number {number}." for number in range(60))
        for word in words.split(" "):
            time.sleep(pause)
            yield TextPiece(word + " ")
        if said.startswith(("draw", "hold")):
            whole = scene()
            for row in range(ROWS + 1):
                if row == 6 and said.startswith("hold"):
                    gate.wait(HELD)
                time.sleep(pause)
                yield ImagePiece(partial(whole, row), np.arange(row * 8).reshape(row, 8), ROWS)
            yield TextPiece(" A red circle left of a blue square.")
        ended = "end_turn"
        yield StopPiece("end_turn")
    finally:
        closed.append(ended)


def telling_stream(
    document: Document,
    *,
    temperature: float = 0.0,
    image_temperature: float = 0.7,
    top_p: float = 0.95,
    guidance: float = 1.5,
    max_tokens: int | None = None,
    modality: str | None = None,
    seed: int = 0,
    prefix: Sequence[int] = (),
    progress: Callable[[ReplyProgress], object] = lambda progress: None,
    pause: float = 0.004,
) -> Iterator[Piece]:
    """A model of 100 words (tokens 0 to 99) and 64 codes a picture (100 to 163), which tells its tokens and can begin
    with some: it says three words by its seed, draws, and says three more. "hold ..." waits in the picture."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 100, 6).tolist()
    pictures = () if modality == "words" else range(100, 164)
    plan = [*pictures] if modality == "picture" else [*words[:3], *pictures, *words[3:]]
    held = next(turn.text for role, turn in reversed(document.turns) if role == "user").startswith("hold")
    drawn, whole = 0, scene(f"#{seed % 256:02x}413a")
    for place, token in enumerate([*prefix, *plan[len(prefix) :]][:max_tokens]):
        if place >= len(prefix):
            if held and token == 120:
                gate.wait(HELD)
            time.sleep(pause)
            image = (token - 99, 64) if 100 <= token < 163 else None
            progress(ReplyProgress(token, (max_tokens or 500) - place - 1, 500 - place, image))
        if token < 100:
            yield TextPiece(f"word{token} ")
        else:
            drawn = token - 99
            if drawn % 8 == 0:
                codes = np.arange(drawn).reshape(-1, 8)
                yield ImagePiece(partial(whole, drawn // 8), codes, ROWS)
    yield StopPiece("length" if max_tokens else "end_turn")


class Codec:
    """An image tokenizer that is none: each cell of the 8 x 8 grid keeps one of 512 colours."""

    codes = 512

    def prepare(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        if picture.width < 4:
            raise ValueError(f"The picture is only {picture.width} pixels wide; use one of 4 or more.")
        return picture.convert("RGB").resize((64, 64))

    def encode(self, picture: PIL.Image.Image) -> np.ndarray:
        cells = np.asarray(picture.resize((8, 8), PIL.Image.Resampling.BOX), np.int64) // 32
        return cells[..., 0] * 64 + cells[..., 1] * 8 + cells[..., 2]

    def decode(self, codes: np.ndarray) -> PIL.Image.Image:
        cells = np.stack([codes // 64, codes // 8 % 8, codes % 8], -1) * 32 + 16
        return PIL.Image.fromarray(cells.astype(np.uint8)).resize((64, 64), PIL.Image.Resampling.BICUBIC)


LAYERS, HEADS = 4, 2


def step_record(step: int, seconds: float = 0.0) -> StepRecord:
    """A step of a run whose loss falls, and whose head 1 of block 2 saturates slowly. Layers every fifth step."""
    rng = np.random.default_rng(step)
    text, image = (end + fall * math.exp(-step / 150) for end, fall in ((0.7, 3.2), (2.1, 2.6)))
    text, image = text + rng.normal(0, 0.06), image + rng.normal(0, 0.04)
    values = {
        "loss": 0.3 * text + 0.7 * image,
        "text_loss": text,
        "image_loss": image,
        "rate": min(1, step / 60) * 1e-2,
    }
    values |= {
        "gradient_norm": 0.4 + rng.gamma(2, 0.1),
        "image_log_partition": 9 + step / 400,
        "text_log_partition": 7.5,
    }
    if step % 50 == 0:
        values["held_out_loss"] = 1.8 + 2.7 * math.exp(-step / 150)
    if step % 5:
        return StepRecord(step, seconds or step * 0.03, values)
    logits = 6 + 4 * rng.random((LAYERS, HEADS)) + 0.01 * step
    logits[2, 1] = 8 * math.exp(min(step, 900) / 260) + rng.random()
    values["max_attention_logit"] = float(logits.max())
    norms = (1 + np.arange(LAYERS)) * (1 + step / 200) + rng.random(LAYERS)
    entropy = 0.8 - 0.1 * rng.random((LAYERS, HEADS))
    entropy[2, 1] = max(0.02, 0.8 - step / 700)
    layers = {"max_attention_logit": logits.tolist(), "attention_entropy": entropy.tolist()}
    return StepRecord(step, seconds or step * 0.03, values, layers | {"residual_norm": norms.tolist()})


class GrowingRun:
    """A run that trains nothing and takes every command; `start` has a thread add `rate` records a second."""

    def __init__(self, records: int = 0, *, steps: int = 1000, **state: Any) -> None:
        self.records = [step_record(step) for step in range(records)]
        self.events: list[Event] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refusal: Exception | None = None
        settings = {"rate": 1e-2, "clip": 1.0, "z_loss": 1e-5, "dropout": 0.0, "weight_decay": 0.1}
        settings |= {"weights": {"pairs": 0.8, "text": 0.2}}
        offers = ("query_key_norm", "norm_reordering")
        self.state = RunState("baseline", "running", 0.0, steps, 5210.0, settings=settings, offers=offers)
        self.become(**state)

    @property
    def history(self) -> History:
        return History.of(tuple(self.records), tuple(self.events))

    def become(self, **changes: Any) -> None:
        self.state = replace(self.state, progress=min(1.0, len(self.records) / (self.state.steps or 1)), **changes)

    def grow(self, *records: StepRecord) -> None:
        """Adds these records, or the next one."""
        for record in records or (step_record(len(self.records)),):
            self.records.append(record)
            for level, bound in (("WARN", 50), ("CRITICAL", 100)):
                words = f"head 1 of block 2 saturates: max logit {record.values.get('max_attention_logit', 0):.0f}"
                known = any(isinstance(event, Alarm) and event.level == level for event in self.events)
                if not known and record.values.get("max_attention_logit", 0) > bound:
                    self.events.append(Alarm(record.step, level, "saturated heads", words))  # type: ignore[arg-type]
        self.become()

    def start(self, rate: float = 30.0) -> threading.Thread:
        thread = threading.Thread(target=self._train, args=(rate,), name="growing run", daemon=True)
        thread.start()
        return thread

    def _train(self, rate: float) -> None:
        while not self.state.over and self.state.progress < 1:
            time.sleep(1 / rate)
            if self.state.status == "running":
                began = self.records[-1].seconds if self.records else 0.0
                self.grow(step_record(len(self.records), began + 1 / rate))
        if not self.state.over:
            self.become(status="finished")

    def act(self, command: str, **arguments: Any) -> None:
        self.asked.append((command, arguments))
        if self.refusal is not None:
            raise self.refusal
        match command:
            case "pause":
                self.become(status="paused")
            case "resume":
                self.become(status="running")
            case "stop":
                self.become(status="stopped")
            case "fork":
                self.become(forks=(*self.state.forks, f"baseline {arguments['fix']}"))
            case "change":
                reason = arguments.pop("reason", "")
                for name, value in arguments.items():
                    before = self.state.settings[name]
                    self.events.append(Intervention(len(self.records), name, before, value, reason))
                self.become(settings=self.state.settings | arguments)


def stress_history(kind: str, steps: int = 700, seed: int = 0) -> History:
    """What a stress ramp tells: without query/key norm ("baseline") logits explode, alarms sound, the loss turns."""
    rng = np.random.default_rng([seed, len(kind)])
    fixed = kind != "baseline"
    records = []
    for step in range(0, steps, 2):
        share = step / 700
        loss = 1.8 + 4 * math.exp(-9 * share) + (0 if fixed else 6 * max(0, share - 0.6)) + rng.normal(0, 0.1)
        values = {"loss": loss, "image_loss": 1.3 * loss, "rate": 1e-3 * 300**share}
        layers = {}
        if step % 10 == 0:
            logit = 5 + 30 * share**2 if fixed else 4 * math.exp(11 * share**1.5)
            values |= {"max_attention_logit": logit * rng.uniform(0.9, 1.1), "image_log_partition": 6 + 4 * share}
            growth = 2 if kind == "all" else 8
            layers = {"residual_norm": [(layer + 1) * math.exp(growth * share) for layer in range(LAYERS)]}
        if step % 100 == 98:
            values["held_out_loss"] = loss + 0.05
        records.append(StepRecord(step, 0.03 * step, values, layers))
    alarms: list[Event] = [
        Alarm(300, "WARN", "saturated heads", "head 1 of block 2 saturates: max logit 58"),
        Alarm(340, "CRITICAL", "saturated heads", "head 1 of block 2 saturates: max logit 104, entropy 0.05"),
    ]
    return History.of(records, [] if fixed else [alarm for alarm in alarms if alarm.step < steps])


class StressRun:
    """A run that is over, or stands still: a history, a state, and the config it was started with."""

    def __init__(self, kind: str, steps: int = 700, rate: float = 0.1, seed: int = 0, **state: Any) -> None:
        fixes = {"baseline": [], "query/key norm": ["QueryKeyNorm()"], "all": ["QueryKeyNorm()", "Reordering()"]}[kind]
        self.config: dict[str, Any] = {
            "name": kind,
            "seed": seed,
            "model": {"width": 64, "layers": LAYERS, "fixes": fixes},
            "recipe": {"rate": rate, "warm_up": 60, "betas": [0.9, 0.95]},
        }
        self.history = stress_history(kind, steps, seed)
        self.state = replace(RunState(kind, "finished", steps / 700, 700, 8120.0), **state)
