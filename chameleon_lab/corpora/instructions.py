"""Instructions: the tasks of one model as data, each written by a template, as CM3Leon was fine-tuned on them.

```
change make the circle red [picture] | [picture]
Edit first image following the instruction [picture] make the circle red | [picture]
Make high quality image from segmentation [map] a red circle on a mint background | [picture]
Generate high quality image of a mint background with segmentations a red circle at 2 4 3 5 | [picture]
```

- an `InstructionPair` is one example: a task, words, a picture beside them, and what is right; a `Template` is how a
  task is written. What stands before the bar is the person's turn, behind it the model's
- `CM3LEON` has the words of its table of templates (arXiv 2309.02591) for editing, structure and objects, the lab's own
  for the others; its breaks are the delimiters of images here. `BRIEF` is the same for a small model
- pairs come of scenes, with exact ground truth (`SCENE_TASKS`); of pictures with alpha, whose alpha is a segmentation
  (`cutouts`); and of a person's own JSON Lines (`instruction_pairs`)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL.Image

from chameleon_lab.corpora.conversations import Choice, sample_edit, sample_questions, trainable_edit
from chameleon_lab.corpora.folders import PICTURE_SUFFIXES, picture_listing
from chameleon_lab.corpora.infilling import CM3LEON_SPANS, Spans
from chameleon_lab.corpora.mixture import SCENE_WEIGHTS, infilled, sample_documents
from chameleon_lab.corpora.packing import Batch, TokenizedDocument, bucket, tokenize
from chameleon_lab.corpora.readers import LARGEST_DOCUMENT, FindPicture, PictureFolder, Skipped, each_entry
from chameleon_lab.corpora.scenes import LATTICE_STEP, SIDE, Scene, Thing, sample_free, sample_where, square_reach
from chameleon_lab.corpora.structure import (
    CUTOUT_PALETTE,
    Palette,
    edges_picture,
    grey_picture,
    labels_of_scene,
    outlines,
    photograph_edges,
    segmentation_picture,
)
from chameleon_lab.documents import Document, EndTurn, Image, Segment, Text
from chameleon_lab.files import text_of_file
from chameleon_lab.pictures import decode_picture
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer

PICTURE_SLOT = "{picture}"
"""Where a template has the picture that comes with an instruction."""

WORDS_SLOT = "{words}"
"""Where a template has the words of an instruction."""


@dataclass(frozen=True)
class InstructionPair:
    """One example of a task: the words of its instruction, the picture beside them, and the answer."""

    task: str
    words: str = ""
    picture: Image | None = None
    answer: Image | str | None = None


@dataclass(frozen=True)
class Template:
    """How a task is written: the person's turn, texts and `PICTURE_SLOT`, with `WORDS_SLOT` in one text; its answer.

    `aligned`: picture and answer show the same, place by place. `objects`: the words have objects at places (see
    `Located`). Raises ValueError for two texts in a row, which would become one, and for two of a kind.
    """

    task: str
    request: tuple[str, ...]
    answer: Literal["picture", "words"] = "picture"
    aligned: bool = False
    objects: bool = False

    def __post_init__(self) -> None:
        whole = "".join(self.request)
        texts = [part != PICTURE_SLOT for part in self.request]
        if not self.request or any(one and other for one, other in pairwise(texts)):
            raise ValueError(f"The template of {self.task!r} must be texts with pictures between them: {self.request}.")
        if (
            whole.count(WORDS_SLOT) > 1
            or self.request.count(PICTURE_SLOT) > 1
            or whole.count(PICTURE_SLOT) > self.request.count(PICTURE_SLOT)
        ):
            raise ValueError(
                f"The template of {self.task!r} has room for {WORDS_SLOT} once, and for {PICTURE_SLOT} once, alone: "
                f"{self.request}."
            )

    @property
    def takes_picture(self) -> bool:
        return PICTURE_SLOT in self.request

    @property
    def takes_words(self) -> bool:
        return any(WORDS_SLOT in part for part in self.request)

    def match(self, segments: Sequence[Segment]) -> tuple[str, Image | None] | None:
        """The words and the picture of a person's turn that is written so; None for another one."""
        words, picture = "", None
        if len(segments) != len(self.request):
            return None
        for part, segment in zip(self.request, segments, strict=True):
            if part == PICTURE_SLOT:
                if not isinstance(segment, Image):
                    return None
                picture = segment
            elif not isinstance(segment, Text):
                return None
            else:
                before, slot, after = part.partition(WORDS_SLOT)
                pattern = re.escape(before) + ("(.+)" if slot else "") + re.escape(after)
                match = re.fullmatch(pattern, segment.text, re.DOTALL)
                if match is None:
                    return None
                words = match.group(1) if slot else words
        return words, picture


@dataclass(frozen=True)
class Templates:
    """The templates of several tasks. Of two that would read the same document, the first one does."""

    templates: tuple[Template, ...]

    @cached_property
    def _by_task(self) -> dict[str, Template]:
        return {template.task: template for template in self.templates}

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self._by_task)

    def __getitem__(self, task: str) -> Template:
        """Raises ValueError for a task without a template."""
        if task not in self._by_task:
            raise ValueError(f"No task is called {task!r}; the tasks are {', '.join(self.tasks)}.")
        return self._by_task[task]

    def request(self, pair: InstructionPair, learn: bool = False) -> Document:
        """The person's turn, ended: what a model is asked. Raises ValueError for words or a picture too
        few or too many."""
        template = self[pair.task]
        for what, needs, there in (
            ("words", template.takes_words, bool(pair.words.strip())),
            ("a picture", template.takes_picture, pair.picture is not None),
        ):
            if needs != there:
                raise ValueError(
                    f"The task {pair.task!r} {'needs' if needs else 'has no place for'} {what} in its instruction."
                )
        if template.objects:
            read_objects(pair.words)
        parts: list[Segment] = []
        for part in template.request:
            if part == PICTURE_SLOT:
                assert pair.picture is not None
                parts.append(replace(pair.picture, learn=learn))
            else:
                parts.append(Text(part.replace(WORDS_SLOT, pair.words), learn))
        if self._reader(parts) != pair.task:
            raise ValueError(
                f"As {pair.task!r} the words {pair.words[:60]!r} read like {self._reader(parts)!r}: say it otherwise."
            )
        return Document((*parts, EndTurn(learn)))

    def document(self, pair: InstructionPair, learn: Literal["answer", "all"] = "answer") -> Document:
        """The pair as a document of two turns. Training takes loss on the answer, or, as CM3Leon did, on "all" of it.

        Raises ValueError for a pair without an answer, an answer of the other kind, and an aligned one of another size.
        """
        template, answer = self[pair.task], pair.answer
        if answer is None or (isinstance(answer, str) and not answer.strip()):
            raise ValueError(
                f"A pair of the task {pair.task!r} has no answer (output): nothing could be learned from it."
            )
        if isinstance(answer, str) != (template.answer == "words"):
            other = "words" if isinstance(answer, str) else "a picture"
            kind = "words" if template.answer == "words" else "a picture"
            raise ValueError(f"The answer (output) of the task {pair.task!r} is {kind}, not {other}.")
        if template.aligned and pair.picture is not None and isinstance(answer, Image):
            sizes = pair.picture.picture.size, answer.picture.size
            if sizes[0] != sizes[1]:
                ours, theirs = (f"{width} x {height}" for width, height in sizes)
                raise ValueError(
                    f"In the task {pair.task!r} both pictures show the same, pixel by pixel; these have {ours} and "
                    f"{theirs} pixels. Make them one size."
                )
        last = Text(answer) if isinstance(answer, str) else answer
        return Document((*self.request(pair, learn == "all"), replace(last, learn=True), EndTurn()))

    def parse(self, document: Document) -> InstructionPair:
        """The pair that a document was written from. Raises ValueError for one that no template has written."""
        turns = document.turns
        if len(turns) in (1, 2):
            answers = turns[1][1].segments if len(turns) == 2 else (None,)
            for template in self.templates:
                read = template.match(turns[0][1].segments)
                if read is not None and len(answers) == 1:
                    (answer,) = answers
                    if answer is None or isinstance(answer, Text if template.answer == "words" else Image):
                        plain = answer.text if isinstance(answer, Text) else answer
                        return InstructionPair(template.task, *read, plain if isinstance(plain, Image | str) else None)
        raise ValueError(f"No template of these tasks writes such a document: {', '.join(self.tasks)}.")

    def _reader(self, segments: Sequence[Segment]) -> str:
        return next(template.task for template in self.templates if template.match(segments) is not None)


EDIT, SEGMENTS, EDGES, GREY = "edit", "segmentation to picture", "edges to picture", "grey to picture"
SEGMENTATION, OBJECTS, CAPTION, QUESTION = "picture to segmentation", "objects at places", "caption", "question"

CM3LEON = Templates(
    (
        Template(EDIT, ("Edit first image following the instruction", PICTURE_SLOT, WORDS_SLOT)),
        Template(SEGMENTS, ("Make high quality image from segmentation", PICTURE_SLOT, WORDS_SLOT), aligned=True),
        Template(EDGES, ("Make high quality image from edges", PICTURE_SLOT, WORDS_SLOT), aligned=True),
        Template(GREY, ("Make high quality image from grey", PICTURE_SLOT, WORDS_SLOT), aligned=True),
        Template(SEGMENTATION, ("Make segmentation from image", PICTURE_SLOT), aligned=True),
        Template(OBJECTS, (f"Generate high quality image of {WORDS_SLOT}",), objects=True),
        Template(CAPTION, (PICTURE_SLOT, "describe the picture"), "words"),
        Template(QUESTION, (PICTURE_SLOT, WORDS_SLOT), "words"),
    )
)
"""As the paper prints editing, structure and objects, with a condition's words behind it. Its table has the words of
captions and questions before their picture; its code has a mode that has the picture first, as here."""

BRIEF = Templates(
    (
        Template(SEGMENTS, (f"draw from shapes {WORDS_SLOT}", PICTURE_SLOT), aligned=True),
        Template(EDGES, (f"draw from lines {WORDS_SLOT}", PICTURE_SLOT), aligned=True),
        Template(GREY, (f"draw from gray {WORDS_SLOT}", PICTURE_SLOT), aligned=True),
        Template(SEGMENTATION, ("draw the shapes", PICTURE_SLOT), aligned=True),
        Template(OBJECTS, (f"draw {WORDS_SLOT}",), objects=True),
        Template(EDIT, (f"change {WORDS_SLOT}", PICTURE_SLOT)),
        Template(CAPTION, (PICTURE_SLOT, "describe the picture"), "words"),
        Template(QUESTION, (PICTURE_SLOT, WORDS_SLOT), "words"),
    )
)
"""The same tasks for a small model: few words, and those before the picture, so that between a code of the answer and
its twin in the picture there are always as many tokens, which attention by relative places can use."""

TEMPLATES: Mapping[str, Templates] = {"brief": BRIEF, "cm3leon": CM3LEON}
"""By the name that commands take."""


# Objects at places


class Located(NamedTuple):
    """An object, and the cells it takes: its first row and column, and its last ones, from 0 on."""

    name: str
    top: int
    left: int
    bottom: int
    right: int


GRID = (SIDE // LATTICE_STEP, SIDE // LATTICE_STEP)
"""Rows and columns of cells in which objects have their places."""

_WITH, _AT = " with segmentations ", re.compile(r"(.+?) at (-?\d+) (-?\d+) (-?\d+) (-?\d+)")


def objects_words(subject: str, objects: Sequence[Located], grid: tuple[int, int] = GRID) -> str:
    """A subject "with segmentations" of objects at places. Raises ValueError for one outside the grid, and for none."""
    if not objects:
        raise ValueError("There are no objects: give each a name and its place.")
    for each in objects:
        _check_place(each, grid)
    return f"{subject}{_WITH}" + ", ".join(f"{each.name} at {' '.join(map(str, each[1:]))}" for each in objects)


def read_objects(words: str, grid: tuple[int, int] = GRID) -> tuple[str, list[Located]]:
    """The subject and the objects that `objects_words` wrote. Raises ValueError for other words."""
    subject, _, listed = words.partition(_WITH)
    objects = list[Located]()
    for part in listed.split(", ") if listed else ():
        match = _AT.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is no object at a place: write it as 'a red circle at 2 4 3 5'.")
        objects.append(Located(match.group(1), *(int(each) for each in match.groups()[1:])))
        _check_place(objects[-1], grid)
    if not objects:
        raise ValueError(f"{words[:60]!r} has no objects at places: it must read '...{_WITH}a red circle at 2 4 3 5'.")
    return subject, objects


def _check_place(each: Located, grid: tuple[int, int]) -> None:
    inside = 0 <= each.top <= each.bottom < grid[0] and 0 <= each.left <= each.right < grid[1]
    if not inside:
        raise ValueError(
            f"{each.name} at rows {each.top} to {each.bottom}, columns {each.left} to {each.right} lies outside the "
            f"grid: rows are 0 to {grid[0] - 1}, columns 0 to {grid[1] - 1}, first before last."
        )


def located(thing: Thing) -> Located:
    """A thing of a scene by name, without its size, which its cells say."""
    reach = square_reach(thing.size)
    top, left, bottom, right = (
        edge // LATTICE_STEP for edge in (thing.y - reach, thing.x - reach, thing.y + reach, thing.x + reach)
    )
    return Located(thing.phrase(False), top, left, bottom - 1, right - 1)


# Pairs of scenes, with ground truth


@dataclass(frozen=True)
class Example:
    """A pair, and the scene that is asked about, or that is to be drawn."""

    pair: InstructionPair
    scene: Scene


def _edit_example(rng: Choice, where: str) -> Example:
    while True:
        if where == "trainable":
            before, edit = trainable_edit(rng)
        else:
            before = sample_where(rng, where, int(rng.integers(1, 3)))
            edit = sample_edit(before, rng)
        things = edit.result.things
        if not edit.result.novel and len({thing.pair for thing in things}) == len(things):
            return Example(
                InstructionPair(EDIT, edit.text, Image(before.picture()), Image(edit.result.picture())), edit.result
            )


def subject_words(scene: Scene) -> str:
    """What a scene shows, without sizes and places: those are for a map to say."""
    phrases = [thing.phrase(False) for thing in scene.things]
    listed = " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))
    return f"{listed} on a {scene.background} background"


def _free_scene(rng: Choice, where: str) -> Scene:
    return sample_where(rng, where, sample=sample_free)


def _from_map(task: str, draw_map: Callable[[Scene], PIL.Image.Image]) -> Callable[[Choice, str], Example]:
    def example(rng: Choice, where: str) -> Example:
        scene = _free_scene(rng, where)
        return Example(
            InstructionPair(task, subject_words(scene), Image(draw_map(scene)), Image(scene.picture())), scene
        )

    return example


def scene_segmentation(scene: Scene) -> PIL.Image.Image:
    """A scene's segmentation as a picture."""
    return segmentation_picture(labels_of_scene(scene))


def scene_edges(scene: Scene) -> PIL.Image.Image:
    """A scene's edges as a picture."""
    return edges_picture(outlines(labels_of_scene(scene)))


def _segmentation_example(rng: Choice, where: str) -> Example:
    scene = _free_scene(rng, where) if rng.random() < 0.6 else sample_where(rng, where)
    return Example(InstructionPair(SEGMENTATION, "", Image(scene.picture()), Image(scene_segmentation(scene))), scene)


def _objects_example(rng: Choice, where: str) -> Example:
    scene = _free_scene(rng, where)
    words = objects_words(f"a {scene.background} background", [located(thing) for thing in scene.things])
    return Example(InstructionPair(OBJECTS, words, None, Image(scene.picture())), scene)


def _caption_example(rng: Choice, where: str) -> Example:
    scene = sample_where(rng, where)
    return Example(InstructionPair(CAPTION, "", Image(scene.picture()), scene.caption()), scene)


def _question_example(rng: Choice, where: str) -> Example:
    scene = sample_where(rng, where)
    question = sample_questions(scene, rng, 1)[0]
    return Example(InstructionPair(QUESTION, question.text, Image(scene.picture()), question.answer), scene)


SCENE_TASKS: Mapping[str, Callable[[Choice, str], Example]] = {
    EDIT: _edit_example,
    SEGMENTS: _from_map(SEGMENTS, scene_segmentation),
    EDGES: _from_map(EDGES, scene_edges),
    GREY: _from_map(GREY, lambda scene: grey_picture(scene.picture())),
    SEGMENTATION: _segmentation_example,
    OBJECTS: _objects_example,
    CAPTION: _caption_example,
    QUESTION: _question_example,
}
"""By task: an example from a side of the split. With maps and objects things stand anywhere, and no words say where."""

TASK_SHARES: Mapping[str, float] = {
    EDIT: 0.15,
    SEGMENTS: 0.13,
    EDGES: 0.15,
    GREY: 0.14,
    SEGMENTATION: 0.12,
    OBJECTS: 0.2,
    CAPTION: 0.04,
    QUESTION: 0.07,
}
"""Shares of documents: less of what the tiny model can do."""


# Pairs of a person's own

CUTOUT_GROUND = (255, 255, 255)
"""The colour that pictures with alpha are laid on."""


def cutout_pairs(
    picture: PIL.Image.Image,
    caption: str,
    ground: tuple[int, int, int] = CUTOUT_GROUND,
    palette: Palette = CUTOUT_PALETTE,
) -> Iterator[InstructionPair]:
    """The pairs of a picture with alpha, laid on a ground: from its silhouette, edges and greys, and to its silhouette.

    The alpha is the segmentation. Raises ValueError for a picture without one, or one that hides all or nothing.
    """
    layer = picture.convert("RGBA")
    mask_HW = np.asarray(layer.getchannel("A")) > 127
    if mask_HW.all() or not mask_HW.any():
        raise ValueError(
            f"The picture is {'opaque everywhere' if mask_HW.all() else 'transparent everywhere'}: its alpha is no "
            "segmentation."
        )
    flat = PIL.Image.alpha_composite(PIL.Image.new("RGBA", layer.size, (*ground, 255)), layer).convert("RGB")
    shape, whole = Image(segmentation_picture(mask_HW.astype(np.uint8), palette)), Image(flat)
    yield InstructionPair(SEGMENTS, caption, shape, whole)
    yield InstructionPair(EDGES, caption, Image(edges_picture(photograph_edges(flat, mask_HW))), whole)
    yield InstructionPair(GREY, caption, Image(grey_picture(flat)), whole)
    yield InstructionPair(SEGMENTATION, "", whole, shape)
    yield InstructionPair(CAPTION, "", whole, caption)


def cutouts(folder: Path | str, ground: tuple[int, int, int] = CUTOUT_GROUND) -> Iterator[InstructionPair | Skipped]:
    """The pairs of each picture with alpha in a folder and below; its caption is in a `.txt` beside it, or its file's
    name. Raises ValueError for no folder, and for one without pictures."""
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder: give one that holds pictures with alpha.")
    pictures = picture_listing(folder, ".txt")
    if not pictures.files:
        raise ValueError(f"{folder} holds no pictures: {pictures}.")
    yield from (Skipped(*each) for each in pictures.skips)
    for name, path in pictures.files.items():
        beside = path.with_suffix(".txt")
        try:
            with path.open("rb") as file:
                picture = decode_picture(file, name)
            words = text_of_file(beside, LARGEST_DOCUMENT) if beside.is_file() else re.sub(r"[_-]+", " ", path.stem)
            if not (caption := words.strip()):
                raise ValueError(f"its caption, {beside.name}, is empty")
            yield from cutout_pairs(picture, caption, ground)
        except (ValueError, OSError) as error:
            yield Skipped(name, str(error))


def instruction_pairs(
    path: Path | str, find: FindPicture | None = None, templates: Templates = BRIEF
) -> Iterator[InstructionPair | Skipped]:
    """A person's own pairs, one a line of JSON Lines (or an entry of a JSON array): what cannot be read is skipped.

    ```
    {"instruction": "make it red", "input": "before.png", "output": "after.png"}           an edit
    {"instruction": "how many birds?", "input": "birds.png", "output": "three"}             a question
    {"task": "edges to picture", "instruction": "a red bird", "input": "e.png", "output": "bird.png"}
    {"task": "objects at places", "instruction": "a lawn", "objects": [["a bird", 1, 1, 2, 3]], "output": "lawn.png"}
    ```

    A string that ends as picture files do is a picture's path, found in the file's own folder unless `find` is given.
    Without a "task" it is an edit, where the output is a picture, or else a question.
    """
    find = find or PictureFolder(Path(path).parent)

    def read(name: str, entry: Any) -> Iterator[InstructionPair]:
        pair = _read_pair(entry, find)
        templates.document(pair)  # whatever is wrong with it is said here, and not when training begins
        yield pair

    return each_entry(path, read)


FIELDS = frozenset(("task", "instruction", "input", "output", "objects"))


def _read_pair(entry: Any, find: FindPicture) -> InstructionPair:
    if not isinstance(entry, dict):
        raise ValueError("it is no object with an instruction, an input and an output")
    if unknown := sorted(entry.keys() - FIELDS):
        raise ValueError(f"it has {unknown[0]!r}, and an instruction has {', '.join(sorted(FIELDS))}")
    texts = {key: entry.get(key) or "" for key in ("task", "instruction", "input", "output")}
    if wrong := [key for key, value in texts.items() if not isinstance(value, str)]:
        raise ValueError(f"its {wrong[0]} is no string")
    words, parts = texts["instruction"].strip(), dict[str, Image | str | None]()
    for key in ("input", "output"):
        value = texts[key].strip()
        is_path = Path(value).suffix.lower() in PICTURE_SUFFIXES
        parts[key] = Image(find(value)) if is_path else value or None
    if isinstance(parts["input"], str):  # words to work on follow the instruction, as others' files have them
        words, parts["input"] = f"{words} {parts['input']}".strip(), None
    if (objects := entry.get("objects")) is not None:
        words = objects_words(words, [_read_located(each) for each in objects] if isinstance(objects, list) else [])
    usual = QUESTION if isinstance(parts["output"], str) else EDIT
    task = texts["task"] or (OBJECTS if objects is not None else usual)
    picture = parts["input"]
    assert not isinstance(picture, str)
    return InstructionPair(task, words, picture, parts["output"])


def _read_located(value: Any) -> Located:
    whole = isinstance(value, list) and len(value) == 5 and isinstance(value[0], str)
    if not whole or not all(type(each) is int for each in value[1:]):
        raise ValueError(f"{str(value)[:60]} is no object: give [name, top, left, bottom, right]")
    return Located(*value)


def instruction_documents(
    pairs: Iterable[InstructionPair | Skipped],
    templates: Templates = BRIEF,
    learn: Literal["answer", "all"] = "answer",
) -> Iterator[Document | Skipped]:
    """The pairs as documents, so that a reader of pairs is a reader of documents."""
    for pair in pairs:
        yield pair if isinstance(pair, Skipped) else templates.document(pair, learn)


# Batches


@dataclass
class InstructionBatches:
    """Batches of instructions about scenes, a pure function of (seed, step): `batches(step) -> Batch`.

    Documents are made `POOL` batches at a time, so that like lengths share a batch; about `tokens` tokens in each.
    `shares`: by task, of documents that instruct. Of all documents, `earlier` are those that the tiny model was trained
    on, and `own` are of a person's own pairs (`own_documents`, tokenized). `learn`: see `Templates.document`; `infill`:
    the share of documents that are rearranged by `spans`.
    """

    tokenizer: MixedModalTokenizer
    seed: int = 0
    tokens: int = 2048
    shares: Mapping[str, float] = field(default_factory=lambda: dict(TASK_SHARES))
    earlier: float = 0.0
    own: float = 0.0
    own_documents: Sequence[TokenizedDocument] = ()
    learn: Literal["answer", "all"] = "answer"
    infill: float = 0.0
    spans: Spans = CM3LEON_SPANS
    templates: Templates = BRIEF

    POOL = 16
    MEAN_LENGTH = 136
    """Tokens of an average document under `TASK_SHARES`, measured by tests/test_instructions.py."""

    def __post_init__(self) -> None:
        """Raises ValueError for a task that scenes do not have, and for shares that are none."""
        check_shares(self.shares)
        self._index, self._batches = -1, list[Batch]()

    def __call__(self, step: int) -> Batch:
        index, place = divmod(step, self.POOL)
        if index != self._index:
            rng = np.random.default_rng([self.seed, 31, index])
            count, vocabulary = self.POOL * max(1, round(self.tokens / self.MEAN_LENGTH)), self.tokenizer.vocabulary
            earlier, own, rest = rng.multinomial(count, (self.earlier, self.own, 1 - self.earlier - self.own))
            examples = sample_examples(rng, int(rest), self.shares)
            written = [self.templates.document(each.pair, self.learn) for each in examples]
            written += sample_documents(rng, SCENE_WEIGHTS, int(earlier))
            documents = tokenize(written, self.tokenizer)
            documents += [self.own_documents[int(at)] for at in rng.integers(0, len(self.own_documents) or 1, own)]
            documents = infilled(documents, self.infill, self.spans, vocabulary, (self.seed, 32, index))
            self._batches, self._index = bucket(documents, self.POOL, vocabulary, rng), index
        return self._batches[place % len(self._batches)]


def check_shares(shares: Mapping[str, float]) -> None:
    """Raises ValueError for a task that scenes do not have, for a negative share, and for none above 0."""
    if unknown := sorted(shares.keys() - SCENE_TASKS.keys()):
        raise ValueError(f"No task is called {unknown[0]!r}; the tasks are {', '.join(SCENE_TASKS)}.")
    if not sum(shares.values()) > 0 or min(shares.values()) < 0:
        raise ValueError(f"Shares of tasks must be 0 or more and not all 0; these are {dict(shares)}.")


def sample_examples(
    rng: Choice, count: int, shares: Mapping[str, float] = TASK_SHARES, where: str = "trainable"
) -> list[Example]:
    """So many examples of tasks in these shares, of scenes from a side of the split."""
    names, weights = list(shares), np.array(list(shares.values()), float)
    return [SCENE_TASKS[str(name)](rng, where) for name in rng.choice(names, count, p=weights / weights.sum())]
