"""Causes: why a model draws what it draws and says what it says, asked over many scenes, with intervals.

- requests name one thing each: size, colour, shape, place, background; which of a request's tokens are which is known
- what a word does is measured by knocking it out, what a head does by silencing it, never read from attention
- a contrast is a request beside its twin with one word changed, at the first cell that the two draw differently: no
  earlier cell can give the answer away there

```python
drawn = list(drawings(lab, single_scenes(100)))
changes = word_effects(lab, drawn)  # drawings x kinds of word x cells, nats
contrast = contrasts(lab, drawn, "colour")
odds = {head: contrast.odds(lab.model, silence(head)) for head in contrast.heads(lab.model)}
```
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.checker import compare_scenes, read_scene
from chameleon_lab.corpora.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Scene, sample_where
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.evaluation.intervals import Mean as Mean
from chameleon_lab.generation.grammar import Grammar
from chameleon_lab.inspection import Inspection
from chameleon_lab.inspection.changes import Changed
from chameleon_lab.inspection.trace import outputs_of
from chameleon_lab.taps import change
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Modality

WORD_KINDS = ("size", "colour", "shape", "place", "background")
CHOICES: dict[str, tuple[str, ...]] = {
    "size": tuple(SIZES),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "place": tuple(PLACES.values()),
    "background": tuple(BACKGROUNDS),
}
"""What a request may say, by kind of word."""

DOCUMENTS_AT_ONCE = 32


def single_scenes(n: int, seed: int = 2026) -> list[Scene]:
    """`n` scenes of one thing that the transformer's training never showed, of pairs that it did."""
    rng = np.random.default_rng([seed, 11])
    return [sample_where(rng, "held_out", 1) for _ in range(n)]


def attributes(scene: Scene) -> dict[str, str]:
    """What a scene of one thing shows, by kind of word."""
    thing = scene.things[0]
    return {
        "size": thing.size,
        "colour": thing.colour,
        "shape": thing.shape,
        "place": scene.place,
        "background": scene.background,
    }


def with_attribute(scene: Scene, kind: str, value: str) -> Scene:
    """The scene of one thing with another size, colour, shape, place or background."""
    thing = scene.things[0]
    if kind == "background":
        return replace(scene, background=value)
    if kind == "place":
        x, y = next(place for place, name in PLACES.items() if name == value)
        return replace(scene, things=(replace(thing, x=x, y=y),))
    return replace(scene, things=(replace(thing, **{kind: value}),))


def request(scene: Scene) -> Document:
    """What asks for a scene, with all that can be said of it."""
    return Document.of(f"draw {scene.caption()}", EndTurn())


@dataclass(frozen=True, eq=False)
class Drawing:
    """A request with the picture that a model drew: `tokens` of both; `words` has the positions of the request's words
    by their kind, `cells` those of the picture's codes, rows x columns."""

    scene: Scene
    tokens: np.ndarray
    words: Mapping[str, tuple[int, ...]]
    cells: np.ndarray
    picture: PIL.Image.Image

    def verdicts(self) -> dict[str, bool]:
        """Which attributes the checker reads from the picture as they were asked for, by kind of word."""
        reading, thing = read_scene(self.picture), self.scene.things[0]
        return {
            "size": any(each.size == thing.size for each in reading.things),
            "colour": any(each.colour == thing.colour for each in reading.things),
            "shape": any(each.shape == thing.shape for each in reading.things),
            "place": compare_scenes(self.scene, reading)["layout"],
            "background": reading.background == self.scene.background,
        }

    @property
    def on_thing(self) -> np.ndarray:
        """Which cells the thing should cover, in part or whole: rows x columns."""
        empty = PIL.Image.new("RGB", (1, 1), BACKGROUNDS[self.scene.background])
        differs = (np.asarray(self.scene.picture()) != np.asarray(empty)).any(-1)
        rows, columns = self.cells.shape
        height, width = differs.shape[0] // rows, differs.shape[1] // columns
        return differs.reshape(rows, height, columns, width).any((1, 3))


def drawings(
    lab: Chameleon, scenes: Sequence[Scene], *, changes: Mapping[str, Changed] | None = None, seed: int | None = None
) -> Iterator[Drawing]:
    """Drawings of scenes of one thing, some at a time as they are ready: without guidance, and the likeliest codes,
    or, with a seed, sampled as the lab's settings say. `changes` are what the model draws under (`taps.change`)."""
    rows, columns = lab.tokenizer.grid
    grammar = Grammar(lab.vocabulary, rows * columns, text=False, min_images=1, max_images=1)
    settings = lab.settings.changed(guidance=1.0, temperature=0.0 if seed is None else None)
    for start in range(0, len(scenes), DOCUMENTS_AT_ONCE):
        some = scenes[start : start + DOCUMENTS_AT_ONCE]
        documents = [request(scene) for scene in some]
        seeds = [(seed or 0) + start + place for place in range(len(some))]
        with change(lab.model, changes) if changes else nullcontext():
            replies = lab.engine.generate(documents, settings, seeds, grammar)
        for scene, document, reply in zip(some, documents, replies, strict=True):
            yield _read_drawing(lab, scene, document + reply)


def beside(lab: Chameleon, scene: Scene) -> Drawing:
    """A request with the scene's own picture behind it, as a model is given it."""
    return _read_drawing(lab, scene, request(scene) + Document.of(Image(scene.picture()), EndTurn()))


def _read_drawing(lab: Chameleon, scene: Scene, document: Document) -> Drawing:
    tokens = lab.encode(document)
    cells = np.flatnonzero(lab.vocabulary.modality[tokens] == Modality.IMAGE).reshape(lab.tokenizer.grid)
    return Drawing(scene, tokens, word_positions(lab, scene), cells, document.pictures[0])


def word_positions(lab: Chameleon, scene: Scene) -> dict[str, tuple[int, ...]]:
    """The positions in a request's tokens that spell each kind of word."""
    text = request(scene).text
    pieces = lab.tokenizer.text.encode(text)
    ends = [len(lab.tokenizer.text.decode(pieces[: place + 1])) for place in range(len(pieces))]
    starts, positions = [0, *ends[:-1]], dict[str, tuple[int, ...]]()
    for kind, value in attributes(scene).items():
        begin = text.rindex(value) if kind == "background" else text.index(value)
        end = begin + len(value)
        spans = enumerate(zip(starts, ends, strict=True), 1)
        positions[kind] = tuple(at for at, (start, stop) in spans if start < end and stop > begin and stop > start)
    return positions


def word_effects(lab: Chameleon, drawn: Iterable[Drawing], kinds: Sequence[str] = WORD_KINDS) -> np.ndarray:
    """What knocking out each kind of word changes at each cell of the picture: drawings x kinds x rows x columns, nats.

    The words of a kind are knocked out together; the picture stays as it was drawn.
    """
    effects = []
    for each in drawn:
        look = Inspection(lab.model, lab.tokenizer, each.tokens)
        effects.append(look.knock_outs([each.words[kind] for kind in kinds])[:, each.cells])
    return np.stack(effects)


@dataclass(frozen=True, eq=False)
class Contrast:
    """Requests up to the first cell that they and their twins draw differently: `tokens_NT`, padded; the position that
    predicts that cell, what is drawn there, and what the twin would draw."""

    kind: str
    tokens_NT: Tensor
    twins_NT: Tensor
    positions_N: Tensor
    own_N: Tensor
    other_N: Tensor
    cells_N: np.ndarray
    """Which cell it is, 0 for the first."""

    def __len__(self) -> int:
        return len(self.own_N)

    def __getitem__(self, chosen: slice) -> Contrast:
        """Some of them."""
        parts = (self.tokens_NT, self.twins_NT, self.positions_N, self.own_N, self.other_N, self.cells_N)
        return Contrast(self.kind, *(part[chosen] for part in parts))  # pyright: ignore[reportArgumentType]

    @staticmethod
    def heads(model: Transformer) -> list[tuple[int, int]]:
        """All (layer, head) of a model."""
        return [(layer, head) for layer in range(model.config.layers) for head in range(model.config.heads)]

    def odds(
        self, model: Transformer, changes: Mapping[str, Changed] | None = None, *, twins: bool = False
    ) -> np.ndarray:
        """log(p(own code) / p(the twin's)) of each request, or of each twin, under `changes`: 1-D, nats."""
        return self.lens_odds(model, changes, twins=twins)[-1]

    @torch.inference_mode()
    def lens_odds(
        self, model: Transformer, changes: Mapping[str, Changed] | None = None, *, twins: bool = False
    ) -> np.ndarray:
        """The odds as the stream after each layer has them: layers x requests, nats; the last layer's are `odds`."""
        tokens_NT = self.twins_NT if twins else self.tokens_NT
        names = [f"blocks.{layer}" for layer in range(model.config.layers)]
        odds_LN = np.empty((len(names), len(self)))
        for start in range(0, len(self), DOCUMENTS_AT_ONCE):
            some = slice(start, start + DOCUMENTS_AT_ONCE)
            with change(model, changes) if changes else nullcontext(), outputs_of(model, names) as outputs:
                model.trunk(tokens_NT[some].to(model.embedding.weight.device))
                rows_B = torch.arange(len(tokens_NT[some]))
                for layer, name in enumerate(names):
                    streams_BD = outputs[name][rows_B, self.positions_N[some]]
                    logits_BV = model.logits(model.norm(streams_BD)).cpu()
                    own_B, other_B = logits_BV[rows_B, self.own_N[some]], logits_BV[rows_B, self.other_N[some]]
                    odds_LN[layer, some] = (own_B - other_B).numpy()
        return odds_LN


def contrasts(lab: Chameleon, drawn: Sequence[Drawing], kind: str, seed: int = 0) -> Contrast:
    """The contrast of each drawing with a twin whose word of one kind is another one, chosen by the seed.

    Drawings are left out whose twin draws alike, or has another number of tokens. Raises ValueError if all are.
    """
    if kind not in WORD_KINDS:
        raise ValueError(f"kind is one of {', '.join(WORD_KINDS)}, not {kind!r}.")
    rng, vocabulary = np.random.default_rng([seed, WORD_KINDS.index(kind)]), lab.vocabulary
    codes = slice(vocabulary.first_image, vocabulary.first_image + vocabulary.codes)
    rows = list[tuple[np.ndarray, np.ndarray, int, int, int, int]]()
    for each in drawn:
        twin = lab.encode(request(with_attribute(each.scene, kind, _other(rng, kind, each.scene))))
        first = int(each.cells[0, 0])
        if len(twin) != first - 1:  # all but begin_image
            continue
        pair = np.stack([each.tokens, np.concatenate([twin, each.tokens[len(twin) :]])])
        with torch.inference_mode():
            outputs_BTD = lab.model.trunk(torch.as_tensor(pair, device=lab.model.embedding.weight.device))
            before_X = each.cells.ravel() - 1
            best_2N = lab.model.logits(outputs_BTD[:, before_X])[..., codes].argmax(-1).cpu().numpy()
        if len(cells := np.flatnonzero(best_2N[0] != best_2N[1])):
            position = int(before_X[cells[0]])
            own, other = (int(token) for token in vocabulary.first_image + best_2N[:, cells[0]])
            rows.append((*pair[:, : position + 1], position, own, other, int(cells[0])))
    if not rows:
        raise ValueError(f"No drawing differs from its twin of another {kind}, so there is nothing to compare.")
    tokens_NT, twins_NT = (
        torch.nn.utils.rnn.pad_sequence([torch.as_tensor(row[which]) for row in rows], True, vocabulary.pad)
        for which in (0, 1)
    )
    positions_N, own_N, other_N = (torch.tensor([row[which] for row in rows]) for which in (2, 3, 4))
    return Contrast(kind, tokens_NT, twins_NT, positions_N, own_N, other_N, np.array([row[5] for row in rows]))


def _other(rng: np.random.Generator, kind: str, scene: Scene) -> str:
    """Another word of a kind than the scene's own."""
    others = [value for value in CHOICES[kind] if value != attributes(scene)[kind]]
    return others[rng.integers(len(others))]


def lens_verdicts(lab: Chameleon, drawn: Iterable[Drawing]) -> Iterator[dict[str, np.ndarray]]:
    """For each drawing, and each kind of word: at which layers the picture lens shows what was asked for, 1-D."""
    for each in drawn:
        look = Inspection(lab.model, lab.tokenizer, each.tokens)
        read = [replace(each, picture=look.picture(layer)).verdicts() for layer in range(look.depth[0])]
        yield {kind: np.array([verdicts[kind] for verdicts in read]) for kind in WORD_KINDS}


@dataclass(frozen=True)
class Contradiction:
    """A picture that shows one thing, words that say another, and a question about it, in one `document`; what the
    answer is by the picture, and by the words."""

    kind: str
    document: Document
    picture_answer: str
    words_answer: str


QUESTIONS = {
    "size": "is the {shape} small or large?",
    "colour": "what color is the {shape}?",
    "shape": "what shape is the {colour} thing?",
    "background": "what color is the background?",
}


def contradictions(n: int, kind: str, *, words_last: bool = False, seed: int = 0) -> list[Contradiction]:
    """`n` conversations in which a request says one thing, the picture under it shows another, and a question follows.

    With `words_last` the picture comes first, and the words are a caption that the model seems to have given. Raises
    ValueError for a kind without a question.
    """
    if kind not in QUESTIONS:
        raise ValueError(f"kind is one of {', '.join(QUESTIONS)}, not {kind!r}.")
    rng, cases = np.random.default_rng([seed, WORD_KINDS.index(kind), 3]), list[Contradiction]()
    for scene in single_scenes(n, seed):
        real = attributes(scene)
        words = with_attribute(scene, kind, _other(rng, kind, scene))
        question = QUESTIONS[kind].format(**real)
        before = (
            Document.of(Image(scene.picture()), "what do you see?", EndTurn(), words.caption(), EndTurn())
            if words_last
            else request(words) + Document.of(Image(scene.picture()), EndTurn())
        )
        document = before + Document.of(question, EndTurn())
        cases.append(Contradiction(kind, document, real[kind], attributes(words)[kind]))
    return cases


def answers(lab: Chameleon, cases: Sequence[Contradiction]) -> Iterator[str]:
    """What the model answers each contradiction, as far as the likeliest words say: "picture", "words" or "neither"."""
    settings = lab.settings.changed(temperature=0.0, max_tokens=8)
    for start in range(0, len(cases), DOCUMENTS_AT_ONCE):
        some = cases[start : start + DOCUMENTS_AT_ONCE]
        replies = lab.engine.generate([case.document for case in some], settings, range(len(some)))
        for case, reply in zip(some, replies, strict=True):
            sides = {case.picture_answer: "picture", case.words_answer: "words"}
            yield sides.get(reply.text.strip(), "neither")
