"""How a model of a person's own data will be: each size with the reason for it, fitted to the data and the time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from chameleon_lab.chameleon import load_image_tokenizer
from chameleon_lab.corpora.own_documents import DRAW_WORDS, QUESTION_WORDS
from chameleon_lab.corpora.packing import Batch
from chameleon_lab.objective import Objective
from chameleon_lab.parts import require_fields
from chameleon_lab.stability import QueryKeyNorm, ZLoss
from chameleon_lab.tokenizers.image import TINY_IMAGES, ImageTokenizer, ImageTokenizerConfig
from chameleon_lab.tokenizers.text import SentencePieceTokenizer
from chameleon_lab.transformer import ModelConfig, Transformer

HEAD_WIDTH = 32

OWN_SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"width": 192, "layers": 6, "tokens": 2048, "image_width": 64},
    "small": {"width": 384, "layers": 8, "tokens": 8192, "image_width": 96},
    "base": {"width": 768, "layers": 12, "tokens": 16384, "image_width": 128},
}
"""Transformer and image tokenizer that belong together: 3, 15 and 90 million parameters in the transformer."""

FEW, BY_HEART = 50, 1000
"""Pictures up to which a model learns little but them, and up to which it is let to know them by heart."""

IMAGE_SHARE = 0.33
"""Of the time, what the image tokenizer gets: what it loses, no transformer brings back."""


@dataclass(frozen=True)
class OwnPlan:
    """What will be trained, and why: `reasons` has a sentence for each number that nobody asked for."""

    minutes: float
    size: str
    side: int
    grid: int
    codes: int
    pieces: int
    width: int
    layers: int
    context: int
    tokens: int
    image_minutes: float
    stops_early: bool
    reasons: Mapping[str, str]

    def __post_init__(self) -> None:
        counts = ("side", "grid", "codes", "pieces", "width", "layers", "context", "tokens")
        require_fields(self, minutes=(0, 10**7), image_minutes=(0, 10**7), **dict.fromkeys(counts, (1, 2**24)))

    def lines(self) -> Iterator[str]:
        yield f"Plan for {self.minutes:g} min, size {self.size}:"
        for name in ("grid", "codes", "pieces", "width", "layers", "context"):
            yield f"  {name:8s} {getattr(self, name):<6,} {self.reasons.get(name, 'as you asked')}"
        yield f"  {'stop':8s} {'early' if self.stops_early else 'at end':6s} {self.reasons.get('stop', 'as you asked')}"

    @property
    def model(self) -> ModelConfig:
        heads = self.width // HEAD_WIDTH
        return ModelConfig(
            vocabulary=0, width=self.width, layers=self.layers, heads=heads, kv_heads=heads, head_width=HEAD_WIDTH,
            ffn_width=32 * round(8 / 3 * self.width / 32), context=self.context, tied=True, fixes=(QueryKeyNorm(),),
        )  # fmt: skip

    @property
    def image(self) -> ImageTokenizerConfig:
        return image_config(self.side, self.grid, self.codes, OWN_SIZES[self.size]["image_width"])


def meeting_words(exposures: float, documents: int) -> str:
    """How often a training meets each of its documents, as a sentence's end."""
    if exposures >= 1.5:
        return f"each document is met about {exposures:,.0f} times."
    if exposures >= 0.95:
        return "each document is met about once."
    return f"of {documents:,} documents about {max(1, round(exposures * documents)):,} are met, each once."


def image_config(side: int, grid: int, codes: int, width: int) -> ImageTokenizerConfig:
    """An image tokenizer of `side` pixels and `grid` x `grid` codes. Raises ValueError where they do not fit."""
    factor = side // grid if grid > 0 and side % grid == 0 else 0
    if factor not in (4, 8, 16):
        raise ValueError(
            f"{side} pixels along a side do not make a grid of {grid}: side must be 4, 8 or 16 times the grid, such as "
            f"{', '.join(str(times * max(1, grid)) for times in (4, 8, 16))}."
        )
    widths = {4: (width * 3 // 2 // 8 * 8,), 8: (width, 2 * width), 16: (width, 2 * width, 2 * width)}[factor]
    return replace(TINY_IMAGES, side=side, codes=codes, widths=widths)


def plan_own(
    survey: Mapping[str, Any],
    minutes: float,
    *,
    size: str | None = None,
    side: int | None = None,
    grid: int | None = None,
    codes: int | None = None,
    pieces: int | None = None,
    width: int | None = None,
    layers: int | None = None,
    context: int | None = None,
    tokens: int | None = None,
    stop: bool | None = None,
    image: ImageTokenizerConfig | None = None,
) -> OwnPlan:
    """The plan for the data of a survey; what is None is derived, and says why.

    `image` is the shape of an image tokenizer that is there already. Raises ValueError for what cannot be.
    """
    wishes = {"side": side, "grid": grid, "codes": codes, "pieces": pieces, "width": width, "layers": layers}
    wishes |= {"context": context, "tokens": tokens}
    wrong = {name: value for name, value in wishes.items() if value is not None and value < _LEAST[name]}
    if not 0 < minutes < float("inf") or wrong:
        words = ", ".join(f"{name} {value}" for name, value in (wrong or {"minutes": minutes}).items())
        least = ", ".join(f"{name} {value}" for name, value in _LEAST.items())
        raise ValueError(
            f"{words}: too little. minutes must be more than 0, and some number; the least sizes are {least}."
        )
    if beyond := {name: value for name, value in wishes.items() if value is not None and value > _MOST[name]}:
        words = ", ".join(f"{name} {value:,}" for name, value in beyond.items())
        most = ", ".join(f"{name} {_MOST[name]:,}" for name in beyond)
        raise ValueError(f"{words}: more than can be trained. The most is {most}.")
    if size is not None and size not in OWN_SIZES:
        raise ValueError(f"No size is called {size!r}; there are {', '.join(OWN_SIZES)}.")
    if width is not None and width % HEAD_WIDTH:
        raise ValueError(f"width must be a multiple of {HEAD_WIDTH}, the width of a head, not {width}.")
    accelerated, pictures, reasons = torch.cuda.is_available(), survey["pictures"], dict[str, str]()
    machine = "on a GPU" if accelerated else "on a CPU"
    if size is None:
        size = "small" if accelerated else "tiny"
    shape = OWN_SIZES[size]
    side, grid = default_grid(size, side, grid, image, reasons)
    if image is not None:
        codes = image.codes
        reasons["codes"] = "the given image tokenizer's"
    elif codes is None:
        codes = 256 if pictures < 100 else 512 if pictures < 2000 else 1024
        reasons["codes"] = f"{pictures:,} pictures of {grid * grid} cells show each code often enough to be learned"
    if pieces is None:
        wish = 320 + survey["letters"] + survey["words"]
        pieces = min(8192, 64 * max(6, -(-wish // 64)))
        reasons["pieces"] = f"256 bytes, {survey['letters']} letters and room for {survey['words']:,} different words"
    if width is None:
        reasons["width"] = f"of size {size}: what learns in minutes {machine}"
    if layers is None:
        reasons["layers"] = f"of size {size}"
    if context is None:
        context, reasons["context"] = 256, "the longest document, and room for one picture more"
    stops_early = pictures >= BY_HEART if stop is None else stop
    if stop is None:
        reasons["stop"] = (
            "when the held-out loss has not fallen for a third of the time"
            if stops_early
            else f"of fewer than {BY_HEART:,} pictures a model should know each: the held-out loss is not obeyed"
        )
    plan = OwnPlan(
        minutes, size, side, grid, codes, pieces,
        width or shape["width"], layers or shape["layers"], context, tokens or shape["tokens"],
        0.0 if image is not None else IMAGE_SHARE * minutes, stops_early, reasons,
    )  # fmt: skip
    if (parameters := 12 * plan.layers * plan.width**2) > LARGEST_TRANSFORMER:
        raise ValueError(
            f"{plan.layers:,} layers of width {plan.width:,} are {parameters:,} parameters, more than can be trained: "
            f"at most {LARGEST_TRANSFORMER:,}."
        )
    return plan


def planned_side(image: ImageTokenizerConfig | None, **options: Any) -> int:
    """Pixels along a side of what will be learned, known before the data is read."""
    size = options.get("size") or ("small" if torch.cuda.is_available() else "tiny")
    return default_grid(size, options.get("side"), options.get("grid"), image, {})[0]


_LEAST = {
    "side": 8,
    "grid": 2,
    "codes": 2,
    "pieces": 300,
    "width": HEAD_WIDTH,
    "layers": 1,
    "context": 32,
    "tokens": 64,
}
LARGEST_TRANSFORMER = 2**33
_MOST = {
    "side": 2048,
    "grid": 512,
    "codes": 2**18,
    "pieces": 2**18,
    "width": 2**14,
    "layers": 1024,
    "context": 2**20,
    "tokens": 2**24,
}


def default_grid(
    size: str, side: int | None, grid: int | None, image: ImageTokenizerConfig | None, reasons: dict[str, str]
) -> tuple[int, int]:
    """(side, grid): the image tokenizer's, what was asked for, or 8 pixels a cell. ValueError where they do not fit."""
    if image is not None:
        if (grid is not None and grid != image.grid[0]) or (side is not None and side != image.side):
            raise ValueError(
                f"The given image tokenizer has {image.side} pixels and a grid of {image.grid[0]}: leave both out."
            )
        reasons["grid"] = "the given image tokenizer's"
        return image.side, image.grid[0]
    if grid is None:
        grid = 16 if size == "base" else side // 8 if side else 8
        cells = grid * grid
        reasons["grid"] = f"{cells} codes a picture: four times as many would take four times as long"
    side = side or 8 * grid
    image_config(side, grid, 2, 64)  # raises where they do not fit
    return side, grid


def fitting_text(texts: list[str], pieces: int, derived: bool) -> SentencePieceTokenizer:
    """A BPE of these texts, of `pieces` pieces, or, where that was derived, of as many as they can teach."""
    while True:
        try:
            return SentencePieceTokenizer.train(texts, pieces)
        except ValueError:
            if not derived or pieces <= 272:
                raise
            pieces = max(272, int(0.9 * pieces))


def words_of(texts: list[str]) -> list[str]:
    """What the text tokenizer learns from: captions, as they stand and as they are asked for, and the questions."""
    requests = [DRAW_WORDS[place % len(DRAW_WORDS)].format(text) for place, text in enumerate(texts)]
    return [*texts, *requests, *QUESTION_WORDS, *(words.format("it") for words in DRAW_WORDS)]


def seconds_of_steps(plan: OwnPlan, vocabulary: int, frozen: bool, seconds: float = 1.5) -> tuple[float, float]:
    """Seconds of a step of the image tokenizer and of the transformer here, each measured for about `seconds`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    image = 0.0
    with torch.random.fork_rng():
        if not frozen:
            tokenizer = ImageTokenizer(plan.image).to(device)
            pixels = torch.rand(16, 3, plan.side, plan.side, device=device)

            def image_step() -> None:
                rebuilt, quantized = tokenizer(pixels)
                ((rebuilt - pixels).abs().mean() + quantized.loss).backward()

            image = _timed(image_step, seconds)
        model = Transformer(replace(plan.model, vocabulary=vocabulary)).to(device)
        length = plan.grid**2 + 16
        rows = max(1, plan.tokens // length)
        tokens = torch.randint(4, vocabulary, (rows, length), device=device)
        batch = Batch(
            tokens, tokens, torch.ones_like(tokens, dtype=torch.bool), torch.ones_like(tokens).to(torch.uint8), 1
        )
        objective = Objective(penalties=(ZLoss(1e-4),))
        step = _timed(lambda: objective(model, batch)["loss_with_penalties"].backward(), seconds)
    return image, step


def _timed(step: Any, seconds: float) -> float:
    step()  # the first one makes room and kernels
    started, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - started < seconds:
        step()
        count += 1
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


def reading_words(count: int, expected: Sequence[int | None], seconds: float) -> str:
    """How far the reading is after so many seconds, in words; of sources that are all `expected` to have so many
    documents, how many there are and how long they take yet."""
    numbers = [each for each in expected if each is not None]
    every = sum(numbers) if len(numbers) == len(expected) else 0
    if every <= count:
        return f"{count:,} documents read"
    if count < 5:  # the first may have waited for the disk to wake
        return f"{count:,} of about {every:,} documents read"
    left = (every - count) * seconds / count
    return f"{count:,} of about {every:,} documents read, {left:.0f} s left"


def given_shape(name: str | None) -> ImageTokenizerConfig | None:
    """The shape of the image tokenizer in a folder, or of a shipped model's by name."""
    return load_image_tokenizer(name, device="cpu").config if name is not None else None
