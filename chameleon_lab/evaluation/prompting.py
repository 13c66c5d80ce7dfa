"""What evaluation programs ask a model, answered in batches: how likely a continuation is, and what it would write.

- a context is a text with `IMAGE_MARK` where its pictures lie (without a mark they come first) and `TURN_MARK` where a
  turn ends
- context and continuation become tokens together, and are parted by the number of the context's own tokens; spaces at
  the context's end belong to the continuation: as the lm-evaluation-harness does
- what is longer than the model's context loses tokens from the left; an image is never cut in two
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import PIL.Image

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn, Image, Segment, Text
from chameleon_lab.generation.settings import Changes, Settings
from chameleon_lab.parts import require_count
from chameleon_lab.pictures import open_picture
from chameleon_lab.records import TextPiece
from chameleon_lab.tokenizers.mixed import PieceReader

log = logging.getLogger(__name__)

IMAGE_MARK = "<image>"
TURN_MARK = "<end of turn>"

LONGEST_REPLY = 256
"""Tokens of a reply where a task does not say."""

LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

Progress = Callable[[int], object]
"""Called with how many more requests are answered."""


class PromptContext(NamedTuple):
    """What comes before a continuation or a reply: a text, and its pictures in order."""

    text: str
    pictures: Sequence[Any] = ()

    def document(self) -> Document:
        """Raises ValueError where marks and pictures are of unequal number."""
        marks = self.text.count(IMAGE_MARK)
        text = IMAGE_MARK * len(self.pictures) + self.text if not marks else self.text
        if marks and marks != len(self.pictures):
            raise ValueError(
                f"A context has {marks} marks {IMAGE_MARK!r} and {len(self.pictures)} pictures: write one where each "
                "picture lies, or none, and they come first."
            )
        pictures, segments = iter(self.pictures), list[Segment | PIL.Image.Image]()
        for part in re.split(f"({IMAGE_MARK}|{TURN_MARK})", text):
            if part == IMAGE_MARK:
                segments.append(opened_picture(next(pictures)))
            elif part:
                segments.append(EndTurn() if part == TURN_MARK else Text(part))
        return Document.of(*segments)


class ContinuationScore(NamedTuple):
    """Of a continuation: its log-probability in nats, whether each of its tokens was the likeliest, how many they are,
    and how many tokens of the context there was no room for."""

    log: float
    greedy: bool
    tokens: int = 0
    left_out: int = 0


@dataclass
class Prompting:
    """A model that is asked, `batch` requests at once. `turns`: whether a context is a user's turn, to which the model
    replies, or a text that goes on."""

    lab: Chameleon
    batch: int = 16
    turns: bool = False
    _images: dict[int, tuple[Any, Image]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        require_count(self.batch, "requests at once", 1)

    @property
    def room(self) -> int:
        """The model's context, tokens."""
        return self.lab.model.config.context

    def likelihoods(
        self, requests: Sequence[tuple[PromptContext, str]], progress: Progress | None = None
    ) -> list[ContinuationScore]:
        """How likely each continuation is after its context."""
        pairs = [self._pair(context, continuation) for context, continuation in requests]
        rows = [np.concatenate(pair) for pair in pairs]
        fitting = [self._cut(row, self.room + 1) for row in rows]
        self._tell_of_cuts(rows, fitting)
        scores = self._scores(fitting, [len(tokens) for _, tokens in pairs], progress)
        return [
            ContinuationScore(float(logs_T.sum()), bool(likeliest_T.all()), len(logs_T), len(row) - len(rest))
            for row, rest, (logs_T, likeliest_T) in zip(rows, fitting, scores, strict=True)
        ]

    def rolling(self, texts: Sequence[str], progress: Progress | None = None) -> list[float]:
        """The log-probability of each text by itself, in nats: a longer one in windows of the model's context, the last
        of which is whole too and scores only what no other did."""
        windows: list[tuple[int, np.ndarray, int]] = []
        for place, text in enumerate(texts):
            tokens = self.lab.encode(Document.of(text))
            ends = [*range(self.room + 1, len(tokens), self.room), len(tokens)]
            for start, end in zip([1, *ends], ends, strict=False):
                if end > start:
                    windows.append((place, tokens[max(0, end - self.room - 1) : end], end - start))
        scores = self._scores([row for _, row, _ in windows], [count for *_, count in windows])
        totals = [0.0] * len(texts)
        for (place, *_), (logs_T, _) in zip(windows, scores, strict=True):
            totals[place] += float(logs_T.sum())
        if progress:
            progress(len(texts))
        return totals

    def replies(
        self,
        contexts: Sequence[PromptContext],
        *,
        until: Sequence[str] = (),
        max_tokens: int = LONGEST_REPLY,
        settings: Settings | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> list[str]:
        """What the model writes after each context, in words alone: up to the first of `until`, which is left out, the
        end of its turn, or `max_tokens`. `settings`: the likeliest tokens unless given."""
        if (most := self.room // 2) < max_tokens:
            log.warning("A reply of %d tokens leaves too little of a context of %d: %d.", max_tokens, self.room, most)
            max_tokens = most
        settings = (settings or self.lab.settings.changed(temperature=0.0, repetition=1.0)).changed(
            max_tokens=max_tokens
        )
        whole = [self._tokens(context) for context in contexts]
        prompts = [self._cut(each, self.room - max_tokens) for each in whole]
        self._tell_of_cuts(whole, prompts)
        order, texts = _longest_first(prompts), [""] * len(prompts)
        for start in range(0, len(order), self.batch):
            places = order[start : start + self.batch]
            seeds = [seed + place for place in places]
            written = self._written([prompts[place] for place in places], settings, seeds, until)
            for place, text in zip(places, written, strict=True):
                texts[place] = text
            if progress:
                progress(len(places))
        return texts

    def _written(
        self, prompts: Sequence[np.ndarray], settings: Settings, seeds: Sequence[int], until: Sequence[str]
    ) -> list[str]:
        engine = self.lab.engine
        readers, texts = [PieceReader(engine.tokenizer) for _ in prompts], [""] * len(prompts)
        open_rows = set(range(len(prompts)))
        tokens = engine.tokens(prompts, settings, seeds, engine.grammar_of({"images": False}))
        for row, token, _ in tokens:
            if token is None:
                open_rows.discard(row)
            else:
                pieces = readers[row].read(token, pictures=False)
                texts[row] += "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
                if any(stop and stop in texts[row] for stop in until):
                    open_rows.discard(row)
            if not open_rows:
                break
        return [_until(text, until) for text in texts]

    def _scores(
        self, rows: Sequence[np.ndarray], counts: Sequence[int], progress: Progress | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """`Engine.score_tokens` of many rows, those of like length together."""
        order, scores = _longest_first(rows), dict[int, tuple[np.ndarray, np.ndarray]]()
        for start in range(0, len(order), self.batch):
            places = order[start : start + self.batch]
            some = self.lab.engine.score_tokens([rows[each] for each in places], [counts[each] for each in places])
            scores.update(zip(places, some, strict=True))
            if progress:
                progress(len(places))
        return [scores[place] for place in range(len(rows))]

    def _pair(self, context: PromptContext, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of a context and those of its continuation. Raises ValueError for a continuation that alone is
        longer than the model's context."""
        text = context.text
        if not self.turns and not text.endswith((TURN_MARK, IMAGE_MARK)):
            bare = text.rstrip()
            continuation, text = text[len(bare) :] + continuation, bare
        before = self._tokens(PromptContext(text, context.pictures))
        if self.turns or not text or text.endswith((TURN_MARK, IMAGE_MARK)):
            # The space that harnesses put before an answer parts it from words, of which there are none here.
            after = self.lab.encode(Document.of(continuation.lstrip(" ") or continuation))[1:]
        else:
            after = self._tokens(PromptContext(text + continuation, context.pictures))[len(before) :]
        if len(after) > self.room:
            raise ValueError(
                f"A continuation has {len(after)} tokens and the model's context holds {self.room}: ask for less, or "
                "for its likelihood in windows (rolling)."
            )
        return before, after

    def _tokens(self, context: PromptContext) -> np.ndarray:
        document = context.document()
        if self.turns and not (document.segments and isinstance(document.segments[-1], EndTurn)):
            document += Document.of(EndTurn())
        return self.lab.encode(Document(tuple(self._encoded(each) for each in document)))

    def _encoded(self, segment: Segment) -> Segment:
        """A picture with its codes, which many requests in a row share."""
        if not isinstance(segment, Image) or segment.codes is not None:
            return segment
        tokenizer, key = self.lab.tokenizer, id(segment.picture)
        if key not in self._images:
            if len(self._images) > 64:
                self._images.clear()
            codes = tokenizer.image.encode(segment.picture, tokenizer.preparation)
            self._images[key] = segment.picture, Image(segment.picture, codes)  # the picture stays, so its id does
        return self._images[key][1]

    def _tell_of_cuts(self, rows: Sequence[np.ndarray], fitting: Sequence[np.ndarray]) -> None:
        cuts = sum(len(row) > len(rest) for row, rest in zip(rows, fitting, strict=True))
        if cuts:
            words = "%d of %d requests are longer than the model's context of %d, and lost tokens from the left."
            log.warning(words, cuts, len(rows), self.room)

    def _cut(self, tokens: np.ndarray, room: int) -> np.ndarray:
        """The last tokens, at most `room`, and none of an image whose begin there is no room for."""
        rest, vocabulary = tokens[-room:], self.lab.vocabulary
        if len(rest) < len(tokens):
            ends = np.flatnonzero(rest == vocabulary.end_image)
            begins = np.flatnonzero(rest == vocabulary.begin_image)
            if len(ends) and (not len(begins) or begins[0] > ends[0]):
                rest = rest[ends[0] + 1 :]
        return rest


def opened_picture(picture: Any) -> PIL.Image.Image:
    """A picture, or what is at its path."""
    return picture if isinstance(picture, PIL.Image.Image) else open_picture(picture)


def _longest_first(rows: Sequence[np.ndarray]) -> list[int]:
    return sorted(range(len(rows)), key=lambda place: -len(rows[place]))


def _until(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0] if stop else text
    return text


def messages_text(messages: Sequence[dict[str, Any]], reply_next: bool = True) -> str:
    """Messages of a role and a content as one context: a turn ends with `TURN_MARK`, the system's words come before the
    user's, and a content in parts is its texts, with `IMAGE_MARK` for a picture. Raises ValueError for roles that do
    not alternate, the user first, and for what is no message."""

    def turns() -> Iterator[str]:
        before, turn = "", 0
        for message in messages:
            role, content = message.get("role"), _content_text(message.get("content"))
            if role == "system" and not turn:
                before = f"{content}\n"
                continue
            if role not in (("user",), ("assistant", "model"))[turn % 2]:
                raise ValueError(f"Roles alternate, the user first: message {turn} is the {role}'s.")
            yield before + content
            before, turn = "", turn + 1

    return TURN_MARK.join(turns()) + (TURN_MARK if reply_next else "")


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    words = list[str]()
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image", "image_url"):
            words.append(IMAGE_MARK)
        elif kind == "text" and isinstance(part.get("text"), str):
            words.append(part["text"])
        else:
            raise ValueError(f"A message is a text, or parts of type text and image, not {str(part)[:40]!r}.")
    return "".join(words)


def reply_wishes(keywords: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """A harness's generation keywords as what `Prompting.replies` takes. Raises ValueError for ones that cannot be
    honoured, beams among them."""
    wishes = dict(keywords)
    until = wishes.pop("until", None) or []
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, list | tuple) or not all(isinstance(stop, str) for stop in until):
        raise ValueError(f"until in generation_kwargs is a text, or a list of texts, not {str(until)[:40]!r}.")
    lengths = [length for name in LENGTH_NAMES if (length := wishes.pop(name, None)) is not None]
    longest = lengths[0] if lengths else LONGEST_REPLY
    if isinstance(longest, bool) or not str(longest).isdecimal() or not int(longest):
        raise ValueError(
            f"A reply in generation_kwargs has at most a whole number of tokens from 1 on, not {longest!r}."
        )
    temperature, sampled = wishes.pop("temperature", None), wishes.pop("do_sample", None)
    if sampled is False or temperature is None:
        temperature = 1.0 if sampled and temperature is None else 0.0
    names = ("top_p", "top_k", "min_p", "repetition")
    if "repetition_penalty" in wishes:
        wishes["repetition"] = wishes.pop("repetition_penalty")
    chosen = {name: wishes.pop(name) for name in names if wishes.get(name) is not None}
    if wishes.pop("num_beams", 1) not in (1, None):
        raise ValueError("The lab searches with no beams: take num_beams out of the task's generation_kwargs.")
    for name in ("num_return_sequences", "use_cache", "pad_token_id", *names):
        wishes.pop(name, None)
    if wishes:
        raise ValueError(f"The lab does not know what {', '.join(sorted(wishes))} should do in generation_kwargs.")
    return {
        "until": [stop for stop in until if stop],  # an empty one stands before every text
        "max_tokens": int(longest),
        "settings": settings.changed(**cast(Changes, {"temperature": temperature, "repetition": 1.0, **chosen})),
    }
