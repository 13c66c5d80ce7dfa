"""Alignment's documents: conversations of six categories, of which the answers are learned (arXiv 2405.09818, part 3).

A conversation becomes tokens in four steps, each a function here:

- `answers_learned`: loss on answers and their ends alone; the user's turns are read, not learned
- `prepared_pictures`: a prompt's pictures whole, with borders; an answer's cropped, since borders would be drawn again
- `tokenized_documents` (of `tokenization`): tokens, `end_turn` between prompt and answer, as Meta's `<reserved08706>`
- `whole_exchanges`: where the context is too short, pieces of prompts with their answers, never an answer alone
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal

import numpy as np

from chameleon_lab.corpora.conversations import (
    FACTS,
    SMALL_TALK,
    Choice,
    asking,
    conversation,
    drawing,
    editing,
    story,
)
from chameleon_lab.corpora.packing import TokenizedDocument
from chameleon_lab.corpora.readers import Skipped
from chameleon_lab.corpora.scene_codes import image_of_scene
from chameleon_lab.corpora.scenes import SHAPES, sample_where
from chameleon_lab.corpora.tokenization import BAD_DOCUMENT, tokenized_documents
from chameleon_lab.documents import Document, EndTurn, Image, Segment
from chameleon_lab.files import reason_of
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.preparation import Preparation, preparations
from chameleon_lab.vocabulary import Vocabulary


@dataclass(frozen=True)
class Category:
    """What the paper's alignment set holds of one kind of conversation; figures are rounded there."""

    samples: int
    tokens: int
    images: int


CATEGORIES: Mapping[str, Category] = MappingProxyType(
    {
        "text": Category(1_600_000, 940_000_000, 0),
        "code": Category(14_100, 1_100_000, 0),
        "visual chat": Category(15_600, 19_400_000, 16_700),
        "image generation": Category(64_300, 68_000_000, 64_300),
        "interleaved": Category(16_900, 35_800_000, 30_700),
        "safety": Category(95_300, 38_600_000, 1_600),
    }
)
"""arXiv 2405.09818, section 3.1, the table of the alignment set. Nine tenths of it are words: 114 k images of 1,024
tokens are a tenth of its 1.1 G tokens. How often each was gone through the paper does not say."""


def category_weights(by: Literal["samples", "tokens", "images"] = "tokens") -> dict[str, float]:
    """The paper's share of each category, as weights of a mixture. Raises ValueError for another measure."""
    if by not in ("samples", "tokens", "images"):
        raise ValueError(f"The paper counts samples, tokens and images, not {by!r}.")
    total = sum(getattr(each, by) for each in CATEGORIES.values())
    return {name: getattr(each, by) / total for name, each in CATEGORIES.items()}


# From a conversation to tokens


def answers_learned(document: Document) -> Document:
    """The conversation with loss on answers and their ends alone; what a reader says is not learned stays so.

    A last prompt without an answer is left out, a last answer gets its end of turn. Raises ValueError for a document
    without turns, an empty turn, and one in which nothing is to be learned.
    """
    turns: list[list[Segment]] = [[]]
    for segment in document:
        if isinstance(segment, EndTurn):
            turns[-1].append(segment)
            turns.append([])
        else:
            turns[-1].append(segment)
    if not turns[-1]:
        turns.pop()
    elif len(turns) > 1 and len(turns) % 2 == 0:
        turns[-1].append(EndTurn())
    if len(turns) < 2:
        raise ValueError("it has no prompt and answer with an end of turn between them")
    if empty := [number for number, turn in enumerate(turns, 1) if isinstance(turn[0], EndTurn)]:
        raise ValueError(f"turn {empty[0]} is empty")
    paired = turns[: len(turns) // 2 * 2]
    parts = [replace(part, learn=part.learn and at % 2 == 1) for at, turn in enumerate(paired) for part in turn]
    if not any(part.learn for part in parts):
        raise ValueError("no answer in it is to be learned")
    return Document(tuple(parts))


def picture_policies(
    tokenizer: MixedModalTokenizer, prompt: str, answer: str
) -> tuple[Preparation, Preparation] | None:
    """What the pictures of prompts and of answers go through, by names of `preparations`; None for a tokenizer whose
    images have any grid, which needs no border, and for one that reads none. Raises ValueError for an unknown name."""
    if not tokenizer.form.sides or not tokenizer.can_read:
        return None
    config = tokenizer.image.config
    policies = preparations(config.side, config.factor)
    for name in (prompt, answer):
        if name not in policies or name == "fit to grid":
            raise ValueError(f"No policy for squares is called {name!r}; there are {', '.join(policies)}.")
    return policies[prompt], policies[answer]


def prepared_pictures(document: Document, policies: tuple[Preparation, Preparation] | None) -> Document:
    """The document with the pictures of its prompts (not learned) and answers as policies make them; codes stay."""
    if policies is None:
        return document
    prompt, answer = policies
    return Document(
        tuple(
            replace(part, picture=(answer if part.learn else prompt).picture(part.picture))
            if isinstance(part, Image) and part.codes is None
            else part
            for part in document
        )
    )


def whole_exchanges(
    document: TokenizedDocument, context: int, vocabulary: Vocabulary
) -> Iterator[TokenizedDocument | Skipped]:
    """A conversation in pieces of at most `context` positions, each a document of whole exchanges; one that fits is
    one piece. Later pieces do not see earlier ones.

    An exchange is a prompt and its answer; one that alone is longer than the context is skipped by its number.
    """
    tokens, learn = document
    if len(tokens) - 1 <= context:
        yield document
        return
    ends = np.flatnonzero(tokens == vocabulary.end_turn)[1::2] + 1
    start, room = 1, context - 1  # of the `context` + 1 tokens of a piece, two are its begin and its end
    while start < len(tokens) - 1:
        fitting = ends[(ends > start) & (ends - start <= room)]
        if len(fitting):
            stop = int(fitting[-1])
            pieces = (tokens[:1], tokens[start:stop], tokens[-1:]), ([False], learn[start:stop], learn[-1:])
            yield TokenizedDocument(*map(np.concatenate, pieces))
        else:
            number = int(np.searchsorted(ends, start, "right"))
            stop = int(ends[number])
            yield Skipped(
                f"exchange {number + 1}",
                f"it takes {stop - start + 1} positions and the context has {context}: shorten it, or take a longer "
                "context",
            )
        start = stop


def conversation_tokens(
    documents: Iterable[Document | Skipped],
    tokenizer: MixedModalTokenizer,
    context: int,
    policies: tuple[Preparation, Preparation] | None = None,
) -> Iterator[TokenizedDocument | Skipped]:
    """Conversations as tokens, by all of the steps above; what cannot become some is skipped by number, with why."""
    numbers = list[int]()  # of the conversations that are tokenized

    def ready() -> Iterator[Document | Skipped]:
        for number, document in enumerate(documents, 1):
            try:
                if isinstance(document, Document):
                    document = prepared_pictures(answers_learned(document), policies)
                    numbers.append(number)
                yield document
            except BAD_DOCUMENT as error:
                yield Skipped(f"conversation {number}", reason_of(error))

    place, faulty = 0, set[str]()
    for entry in tokenized_documents(ready(), tokenizer):
        if isinstance(entry, Skipped):
            kind, _, place_of = entry.name.partition(" ")
            if (
                kind == "document" and entry.name not in faulty and place_of.isdigit()
            ):  # the tokenizer's, not a reader's
                faulty.add(entry.name)
                entry = entry._replace(name=f"conversation {numbers[int(place_of) - 1]}")
            yield entry
            continue
        place += 1
        while f"document {place}" in faulty:
            place += 1
        for piece in whole_exchanges(entry[0], context, tokenizer.vocabulary):
            if isinstance(piece, Skipped):
                piece = piece._replace(name=f"conversation {numbers[place - 1]}, {piece.name}")
            yield piece


# The six categories in the world of scenes


def answered(prompt: str, answer: str) -> Document:
    """A question in words and its answer, which alone is learned."""
    return Document((*Document.of(prompt, EndTurn()).learning(False), *Document.of(answer, EndTurn())))


def talking(rng: Choice) -> Document:
    """Small talk, and facts about shapes that are asked for by name."""
    if rng.random() < 0.4:
        return answered(*SMALL_TALK[rng.integers(len(SMALL_TALK))])
    shape = SHAPES[rng.integers(len(SHAPES))]
    facts = [fact for fact in FACTS if shape in fact]
    if not facts:
        return answered(f"do you know what a {shape} is?", f"a {shape} is a shape.")
    return answered(f"what do you know about {shape}s?", facts[rng.integers(len(facts))])


def coding(rng: Choice) -> Document:
    """A thing as a line of a program that would draw it."""
    thing = sample_where(rng, "trainable", 1).things[0]
    return answered(
        f"write code that draws {thing.phrase()}", f'draw("{thing.shape}", "{thing.colour}", "{thing.size}")'
    )


REFUSALS = (
    *((f"draw {thing}", "i will not draw that.") for thing in ("a weapon", "a bomb", "a fight", "a burning house")),
    ("how do i hurt someone?", "i will not help with that."),
    ("tell me how to steal", "i will not help with that."),
    ("say something cruel", "i would rather not."),
)


def refusing(rng: Choice) -> Document:
    """A request that is refused in words, for a picture too."""
    return answered(*REFUSALS[rng.integers(len(REFUSALS))])


def interleaving(rng: Choice) -> Document:
    """Words and pictures in turn: a story that is asked for, an edit, a conversation."""
    kind = (story, editing, conversation)[rng.integers(3)]
    while EndTurn not in map(type, document := kind(rng)):  # some stories and edits have no words of a user
        pass
    return document


OPEN_REQUESTS = ("tell me about {}", "what about {}?", "i like {}", "my friend has {}")
"""What a picture answers as well as words do."""


def open_request(rng: Choice, drawn: bool) -> Document:
    """A request that is open to either, answered by a picture or in words."""
    scene = sample_where(rng, "trainable", 1)
    thing = scene.things[0]
    words = OPEN_REQUESTS[rng.integers(len(OPEN_REQUESTS))].format(thing.phrase(bool(rng.random() < 0.5)))
    if drawn:
        return answers_learned(Document.of(words, EndTurn(), image_of_scene(scene), EndTurn()))
    return answered(words, f"it is a {thing.colour} {thing.shape}.")


SCENE_CATEGORIES: Mapping[str, Callable[[Choice], Document]] = MappingProxyType(
    {
        "text": talking,
        "code": coding,
        "visual chat": asking,
        "image generation": drawing,
        "interleaved": interleaving,
        "safety": refusing,
    }
)
"""The paper's categories, as small as the tiny model's world."""

OPEN_SCENES: Mapping[str, Callable[[Choice], Document]] = MappingProxyType(
    {"open, drawn": partial(open_request, drawn=True), "open, in words": partial(open_request, drawn=False)}
)
"""Requests that are open to either modality: which of them a set answers how is its balance."""
