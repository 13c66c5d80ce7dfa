"""Scores on scenes: held-out prompts of every kind, answered by a model and judged against ground truth.

Pictures are judged by `corpora.checker` from their pixels; words by exact match. Prompts and seeds are a function of
(kind, n, seed) alone. Scenes are from the held-out side of the split; "novel pair" ones hold a colour-shape pair that
the transformer's training never shows together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.checker import compare_scenes, read_scene
from chameleon_lab.corpora.conversations import (
    CAPTION_REQUESTS,
    SMALL_TALK,
    draw_request,
    sample_edit,
    sample_questions,
)
from chameleon_lab.corpora.scenes import Scene, sample_where
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.evaluation.intervals import wilson_interval
from chameleon_lab.evaluation.results import Result, evaluation_card, item_words, settings_words


@dataclass(frozen=True)
class Prompt:
    """A prompt and the right reply: a scene to draw, or words to say, or just a picture or none."""

    kind: str
    document: Document
    scene: Scene | None = None
    words: str | None = None


@dataclass(frozen=True)
class Score:
    """A share of `n` prompts, with the 95 % Wilson interval."""

    share: float
    n: int

    @classmethod
    def of(cls, result: Result) -> Score:
        """The same share without its protocol."""
        return cls(float(result.scores.mean()), len(result.scores))

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.share, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:5.1f} % ({100 * low:.0f} to {100 * high:.0f}, n = {self.n})"


def _captions(rng: np.random.Generator) -> Prompt:
    scene = sample_where(rng, "held_out")
    request = CAPTION_REQUESTS[rng.integers(len(CAPTION_REQUESTS))]
    return Prompt("caption", Document.of(Image(scene.picture()), request, EndTurn()), words=scene.caption())


def _questions(rng: np.random.Generator) -> Prompt:
    scene = sample_where(rng, "held_out")
    question = sample_questions(scene, rng, 1)[0]
    document = Document.of(Image(scene.picture()), question.text, EndTurn())
    return Prompt(f"question: {question.kind}", document, words=question.answer)


def _drawing(side: str, count: int, full: bool) -> Callable[[np.random.Generator], Prompt]:
    def prompt(rng: np.random.Generator) -> Prompt:
        scene = sample_where(rng, side, count)
        if full:
            request = draw_request(scene, rng, full=True)
        else:
            near = "left of" if scene.layout == "beside" else "above"
            request = f"draw {scene.things[0].phrase(False)} {near} {scene.things[1].phrase(False)}"
        return Prompt("drawing", Document.of(request, EndTurn()), scene=scene)

    return prompt


def _edits(rng: np.random.Generator) -> Prompt:
    while True:
        before = sample_where(rng, "held_out", int(rng.integers(1, 3)))
        edit = sample_edit(before, rng)
        pairs = {thing.pair for thing in edit.result.things}
        if not edit.result.novel and len(pairs) == len(edit.result.things):
            document = Document.of(Image(before.picture()), edit.text, EndTurn())
            return Prompt(f"edit: {edit.kind}", document, scene=edit.result)


def _routing(rng: np.random.Generator) -> Prompt:
    """Half asks for a picture, half for words."""
    if rng.random() < 0.5:
        drawing = _edits(rng) if rng.random() < 0.3 else _drawing("held_out", int(rng.integers(1, 4)), full=True)(rng)
        return Prompt("routing: picture", drawing.document)
    if rng.random() < 0.2:
        talk = SMALL_TALK[rng.integers(len(SMALL_TALK))][0]
        return Prompt("routing: words", Document.of(talk, EndTurn()), words="")
    return Prompt("routing: words", (_captions if rng.random() < 0.5 else _questions)(rng).document, words="")


PROMPT_KINDS: dict[str, Callable[[np.random.Generator], Prompt]] = {
    "captions": _captions,
    "questions": _questions,
    "routing": _routing,
    "one thing": _drawing("held_out", 1, full=True),
    "two things": _drawing("held_out", 2, full=True),
    "two things, short": _drawing("held_out", 2, full=False),
    "edits": _edits,
    "novel pair": _drawing("novel", 1, full=True),
}


def prompts(kind: str, n: int, seed: int) -> list[Prompt]:
    """The first `n` prompts of a kind."""
    rng = np.random.default_rng([seed, list(PROMPT_KINDS).index(kind)])
    return [PROMPT_KINDS[kind](rng) for _ in range(n)]


def evaluate(
    lab: Chameleon, kinds: Sequence[str] = tuple(PROMPT_KINDS), n: int = 200, seed: int = 2026, batch: int = 50
) -> Iterator[tuple[str, Score]]:
    """(measure, score) pairs, kind after kind: `n` prompts of each kind, sampled with the lab's settings."""
    for result in scene_results(lab, kinds, n, seed, batch):
        yield result.value.card.metric, Score.of(result)


def scene_results(
    lab: Chameleon, kinds: Sequence[str] = tuple(PROMPT_KINDS), n: int = 200, seed: int = 2026, batch: int = 50
) -> Iterator[Result]:
    """What `evaluate` gives, each with its protocol and its prompts' verdicts, as `results.result_table` compares."""
    for kind in kinds:
        all_prompts = prompts(kind, n, seed)
        verdicts: dict[str, list[bool]] = {}
        items: dict[str, list[str]] = {}
        for start in range(0, n, batch):
            some = all_prompts[start : start + batch]
            seeds = [seed + start + place for place in range(len(some))]
            replies = lab.engine.generate([prompt.document for prompt in some], lab.settings, seeds)
            for prompt, reply in zip(some, replies, strict=True):
                for measure, right in judge(kind, prompt, reply).items():
                    verdicts.setdefault(measure, []).append(right)
                    items.setdefault(measure, []).append(item_words(prompt.document))
        for measure, rights in verdicts.items():
            card = evaluation_card(
                measure,
                f"words by exact match, pictures by corpora.checker; {settings_words(lab.settings)}",
                f"held-out scenes, {kind}",
                items[measure],
                n=len(rights),
                lab=lab,
                pictures=any(prompt.document.pictures for prompt in all_prompts),
                seed=seed,
            )
            yield Result.of(rights, card)


DRAWING_MEASURES: dict[str, dict[str, str]] = {
    "one thing": {
        "one thing, everything right": "all",
        "one thing: colour with shape": "binding",
        "one thing: size": "sizes",
        "one thing: place": "layout",
        "one thing: background": "background",
    },
    "two things": {
        "two things, colours with shapes": "binding",
        "two things, relation": "layout",
        "two things: count": "count",
        "two things: sizes": "sizes",
        "two things: background": "background",
        "two things: everything": "all",
    },
    "two things, short": {
        "two things asked briefly, colours with shapes": "binding",
        "two things asked briefly, relation": "layout",
    },
    "edits": {"edits right": "all"},
    "novel pair": {"novel pair, colour with shape": "binding", "novel pair: everything": "all"},
}
"""For each kind of drawing: measure to the checker's attribute. A relation counts only between the right things."""


def judge(kind: str, prompt: Prompt, reply: Document) -> dict[str, bool]:
    """What is right about a reply: measure to verdict."""
    pictures = reply.pictures
    if kind == "routing":
        return {"a picture exactly when asked": len(pictures) == (prompt.words is None)}
    if prompt.scene is not None:
        verdicts = compare_scenes(prompt.scene, read_scene(pictures[0])) if len(pictures) == 1 else {}
        right = {measure: verdicts.get(attribute, False) for measure, attribute in DRAWING_MEASURES[kind].items()}
        return right | ({prompt.kind: verdicts.get("all", False)} if kind == "edits" else {})
    right = reply.text == prompt.words and not pictures
    return {"captions exact": right} if kind == "captions" else {"questions right": right, prompt.kind: right}
