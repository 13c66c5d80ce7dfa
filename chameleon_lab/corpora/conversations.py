"""Documents about scenes: pairs, drawing, questions, edits, conversations, stories, plain text.

Every document is built from ground truth, so that the checker can judge a model's reply. Training takes no loss on the
user's prompts, but on answers, captions and drawn pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from chameleon_lab.corpora.scene_codes import image_of_scene
from chameleon_lab.corpora.scenes import (
    BACKGROUNDS,
    COLOURS,
    NOVEL_PAIRS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    arrange,
    sample_where,
)
from chameleon_lab.documents import Document, EndTurn, Image, Segment, Text

Choice = np.random.Generator

NUMBERS = ("zero", "one", "two", "three")


@dataclass(frozen=True)
class Question:
    """A question about a picture and its one right answer."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Edit:
    """An instruction, and the scene it leads to."""

    kind: str
    text: str
    result: Scene


def draw_request(scene: Scene, rng: Choice, full: bool = False) -> str:
    """What a user might type to get this scene.

    A `full` request mentions everything. Others may leave out size, place, background, and one thing's colour or shape,
    and may state a relation from the other side.
    """
    sized = full or (scene.layout == "single" and rng.random() < 0.6) or rng.random() < 0.4
    placed = full or rng.random() < (0.75 if scene.layout == "single" else 0.6)
    if scene.layout == "single" and not full and rng.random() < 0.2:
        thing = scene.things[0]
        content = f"a {thing.shape}" if rng.random() < 0.5 else Thing("thing", thing.colour, "", 0, 0).phrase(False)
        content += f" {scene.place}" * placed
    else:
        content = _content(scene, sized, placed, rng)
    if full or rng.random() < 0.5:
        content += f" on a {scene.background} background"
    return _typed(f"{_pick(rng, DRAW_OPENINGS)} {content}", rng)


DRAW_OPENINGS = (*("draw",) * 4, "please draw", "paint", "show me", "can you draw", "a picture of", "make")


def _content(scene: Scene, sized: bool, placed: bool, rng: Choice) -> str:
    phrases = [thing.phrase(sized) for thing in scene.things]
    turned = rng.random() < 0.3
    to_the = "to the " if rng.random() < 0.2 else ""
    if not placed and len(phrases) == 2 and rng.random() < 0.3:
        return f"{phrases[turned]} and {phrases[not turned]}"
    match scene.layout:
        case "single":
            return f"{phrases[0]} {scene.place}" if placed else phrases[0]
        case "beside" if turned:
            return f"{phrases[1]} {to_the}right of {phrases[0]}"
        case "beside":
            return f"{phrases[0]} {to_the}left of {phrases[1]}"
        case "above":
            return f"{phrases[1]} below {phrases[0]}" if turned else f"{phrases[0]} above {phrases[1]}"
    return f"{', '.join(phrases[:-1])} and {phrases[-1]} in a {scene.layout}"


def _typed(text: str, rng: Choice) -> str:
    """As people type it: sometimes with a capital, sometimes with a full stop."""
    if rng.random() < 0.25:
        text = text[0].upper() + text[1:]
    return text + "." if text[-1].isalpha() and rng.random() < 0.15 else text


def questions(scene: Scene) -> list[Question]:
    """All questions with a sure answer."""
    result = [
        Question("background", "what color is the background?", scene.background),
        Question("count", "how many things are there?", NUMBERS[len(scene.things)]),
    ]
    for thing in scene.things:
        if sum(other.shape == thing.shape for other in scene.things) == 1:
            result.append(Question("colour", f"what color is the {thing.shape}?", thing.colour))
            result.append(Question("size", f"is the {thing.shape} small or large?", thing.size))
        if sum(other.colour == thing.colour for other in scene.things) == 1:
            result.append(Question("shape", f"what shape is the {thing.colour} thing?", thing.shape))
    if scene.layout == "single":
        result.append(Question("place", f"where is the {scene.things[0].shape}?", scene.place))
    if scene.layout in ("beside", "above"):
        first, second = scene.things
        near, far = ("left of", "right of") if scene.layout == "beside" else ("above", "below")
        if first.shape != second.shape:
            for one, other, relation in ((first, second, near), (second, first, far)):
                result.append(Question("relation", f"where is the {one.shape}?", f"{relation} the {other.shape}"))
    return result


def exists_question(scene: Scene, rng: Choice) -> Question:
    """ "is there a red circle?", yes half of the time. Never a "no" about a novel pair: that would be teaching it."""
    if rng.random() < 0.5:
        thing = scene.things[rng.integers(len(scene.things))]
        return Question("exists", f"is there {thing.phrase(False)}?", "yes")
    while True:
        thing = Thing(_pick(rng, SHAPES), _pick(rng, tuple(COLOURS)), "small", 0, 0)
        if thing.pair not in NOVEL_PAIRS and all(thing.pair != other.pair for other in scene.things):
            return Question("exists", f"is there {thing.phrase(False)}?", "no")


def sample_questions(scene: Scene, rng: Choice, count: int) -> list[Question]:
    """`count` different questions, the kinds equally likely."""
    by_kind: dict[str, list[Question]] = {}
    for question in [*questions(scene), exists_question(scene, rng)]:
        by_kind.setdefault(question.kind, []).append(question)
    kinds = list(by_kind)
    chosen = rng.permutation(len(kinds))[:count]
    return [by_kind[kinds[index]][rng.integers(len(by_kind[kinds[index]]))] for index in chosen]


def sample_edit(scene: Scene, rng: Choice) -> Edit:
    """An edit of a scene of one or two things; any of its results may fall outside the training side of the split."""
    kinds = ["recolour", "reshape", "resize", "background"]
    if len(scene.things) == 2:
        kinds.append("remove")
    elif (scene.things[0].x, scene.things[0].y) in ((16, 32), (48, 32), (32, 16), (32, 48)):
        kinds.append("add")
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    alike = sum(other.shape == thing.shape for other in scene.things) > 1
    name = f"{thing.colour} {thing.shape}" if alike or rng.random() < 0.3 else thing.shape
    match kind := kinds[rng.integers(len(kinds))]:
        case "recolour":
            colour = _pick(rng, [c for c in COLOURS if c != thing.colour])
            return _changed(scene, index, replace(thing, colour=colour), kind, f"make the {name} {colour}", rng)
        case "reshape":
            shape = _pick(rng, [s for s in SHAPES if s != thing.shape])
            return _changed(scene, index, replace(thing, shape=shape), kind, f"turn the {name} into a {shape}", rng)
        case "resize":
            size = next(s for s in SIZES if s != thing.size)
            return _changed(scene, index, replace(thing, size=size), kind, f"make the {name} {size}", rng)
        case "remove":
            rest = (scene.things[1 - index],)
            return Edit(kind, _typed(f"remove the {name}", rng), Scene(rest, scene.background, "single"))
        case "add":
            return _added(scene, rng)
    background = _pick(rng, [b for b in BACKGROUNDS if b != scene.background])
    return Edit(kind, _typed(f"make the background {background}", rng), replace(scene, background=background))


def _changed(scene: Scene, index: int, thing: Thing, kind: str, text: str, rng: Choice) -> Edit:
    things = tuple(thing if place == index else other for place, other in enumerate(scene.things))
    return Edit(kind, _typed(text, rng), replace(scene, things=things))


def _added(scene: Scene, rng: Choice) -> Edit:
    old = scene.things[0]
    while True:
        new = (_pick(rng, SHAPES), _pick(rng, tuple(COLOURS)), _pick(rng, tuple(SIZES)))
        if new[:2] != (old.shape, old.colour):
            break
    spec = (old.shape, old.colour, old.size)
    beside = old.y == 32
    side = ("on the right" if old.x == 16 else "on the left") if beside else ("below" if old.y == 16 else "above")
    ordered = [spec, new] if side in ("on the right", "below") else [new, spec]
    phrase = Thing(*new, 0, 0).phrase()
    result = arrange(ordered, "beside" if beside else "above", scene.background)
    return Edit("add", _typed(f"add {phrase} {side}", rng), result)


def trainable_edit(rng: Choice, scene: Scene | None = None) -> tuple[Scene, Edit]:
    """A scene and an edit of it, both on the training side of the split."""
    while True:
        before = scene or sample_where(rng, "trainable", int(rng.integers(1, 3)))
        edit = sample_edit(before, rng)
        if edit.result.trainable and len({thing.pair for thing in edit.result.things}) == len(edit.result.things):
            return before, edit


def _image(scene: Scene, learn: bool = True) -> Image:
    return image_of_scene(scene, learn)


def _turn(*parts: Segment | str) -> list[Segment]:
    """The user's turn, on which training takes no loss."""
    return list(Document.of(*parts, EndTurn()).learning(False))


def _answer(*parts: Segment | str) -> list[Segment]:
    return list(Document.of(*parts, EndTurn()))


def caption_first(rng: Choice) -> Document:
    scene = sample_where(rng, "trainable")
    return Document.of(scene.caption(), _image(scene))


def picture_first(rng: Choice) -> Document:
    """Training takes loss on a picture without words before it: guidance's unconditional stream is such a picture."""
    scene = sample_where(rng, "trainable")
    return Document.of(_image(scene), scene.caption())


def drawing(rng: Choice) -> Document:
    """One thing more often than scenes at large have: the place of a single thing is the hardest to learn."""
    scene = sample_where(rng, "trainable", 1 if rng.random() < 0.3 else None)
    return Document.of(*_turn(draw_request(scene, rng)), *_answer(_image(scene)))


CAPTION_REQUESTS = ("what do you see?", "describe the picture", "what is in this picture?", "caption this")


def asking(rng: Choice) -> Document:
    """A picture, then up to six questions of different kinds; the first may be for a caption."""
    scene = sample_where(rng, "trainable")
    parts: list[Segment] = []
    picture: tuple[Segment, ...] = (_image(scene, learn=False),)
    if rng.random() < 0.3:
        parts += _turn(*picture, _typed(_pick(rng, CAPTION_REQUESTS), rng)) + _answer(scene.caption())
        picture = ()
    for question in sample_questions(scene, rng, 6):
        parts += _turn(*picture, _typed(question.text, rng)) + _answer(question.answer)
        picture = ()
    return Document(tuple(parts))


def editing(rng: Choice) -> Document:
    """A picture and an instruction; one in ten without its words, for guidance by the picture alone."""
    before, edit = trainable_edit(rng)
    if rng.random() < 0.1:
        return Document.of(_image(before, learn=False), _image(edit.result))
    return Document.of(*_turn(_image(before), edit.text), *_answer(_image(edit.result)))


def conversation(rng: Choice) -> Document:
    """Two to four exchanges: pictures to draw or to look at, questions about the latest, edits of it, small talk."""
    parts: list[Segment] = []
    scene, pictures = None, 0
    for _ in range(int(rng.integers(2, 5))):
        kinds = ["talk"] if rng.random() < 0.08 else ["draw"] * (pictures < 3)
        if scene is not None and kinds != ["talk"]:
            kinds += ["question", "question"] + ["edit", "edit"] * (pictures < 3 and len(scene.things) < 3)
        match _pick(rng, kinds):
            case "talk":
                remark, answer = SMALL_TALK[rng.integers(len(SMALL_TALK))]
                parts += _turn(_typed(remark, rng)) + _answer(answer)
            case "question" if scene:
                question = sample_questions(scene, rng, 1)[0]
                parts += _turn(_typed(question.text, rng)) + _answer(question.answer)
            case "edit" if scene:
                _, edit = trainable_edit(rng, scene)
                scene, pictures = edit.result, pictures + 1
                parts += _turn(edit.text) + _answer(_image(scene))
            case _:
                scene, pictures = sample_where(rng, "trainable"), pictures + 1
                if pictures == 1 and rng.random() < 0.3:
                    question = sample_questions(scene, rng, 1)[0]
                    parts += _turn(_image(scene), _typed(question.text, rng)) + _answer(question.answer)
                else:
                    parts += _turn(draw_request(scene, rng)) + _answer(_image(scene))
    return Document(tuple(parts))


def story(rng: Choice) -> Document:
    """Text and pictures in alternation: a thing appears, and changes."""
    before, edit = trainable_edit(rng, sample_where(rng, "trainable", 1))
    first = f"once there was {before.things[0].phrase()}"
    change = {
        "recolour": f"one day it became {edit.result.things[0].colour}",
        "reshape": f"one day it became a {edit.result.things[0].shape}",
        "resize": f"one day it became {edit.result.things[0].size}",
        "background": f"it went to a {edit.result.background} land",
        "add": "then a friend came",
    }[edit.kind]
    parts: list[Segment] = [Text(first), _image(before), Text(change), _image(edit.result)]
    if rng.random() < 0.5:
        return Document.of(*_turn("tell me a story"), *_answer(*parts))
    return Document(tuple(parts))


SMALL_TALK = (
    ("hello", "hello! ask me to draw something."),
    ("hi", "hello! ask me to draw something."),
    ("who are you?", "i am a tiny chameleon. i read and draw small scenes."),
    ("what can you do?", "i can draw, describe and change small scenes."),
    ("thank you", "you are welcome."),
    ("thanks", "you are welcome."),
    ("bye", "goodbye!"),
    ("what shapes do you know?", f"i know {', '.join(SHAPES[:-1])} and {SHAPES[-1]}."),
    ("what colors do you know?", f"i know {', '.join(tuple(COLOURS)[:-1])} and {tuple(COLOURS)[-1]}."),
)
FACTS = (
    "a square has four sides",
    "a triangle has three sides",
    "a circle has no corners",
    "a star has five points",
    "a ring has a hole in the middle",
    "a heart is a sign of love",
    "a cross has four arms",
    "a diamond stands on its point",
)


def words_alone(rng: Choice) -> Document:
    """Small talk, facts, and captions without their pictures."""
    kind = rng.random()
    if kind < 0.5:
        remark, answer = SMALL_TALK[rng.integers(len(SMALL_TALK))]
        return Document.of(*_turn(_typed(remark, rng)), *_answer(answer))
    if kind < 0.75:
        return Document.of(_pick(rng, FACTS))
    return Document.of(sample_where(rng, "trainable").caption())


SCENE_KINDS: dict[str, Callable[[Choice], Document]] = {
    "caption_first": caption_first,
    "picture_first": picture_first,
    "drawing": drawing,
    "asking": asking,
    "editing": editing,
    "conversation": conversation,
    "story": story,
    "plain_text": words_alone,
}


def _pick(rng: Choice, options: tuple[str, ...] | list[str]) -> str:
    return options[rng.integers(len(options))]
