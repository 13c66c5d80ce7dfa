"""Prompts of one's own with checks of the replies: a JSON Lines file in, a share of right ones with its protocol out.

```
{"prompt": "draw a red circle", "shows": ["red circle"], "category": "drawing"}
{"prompt": "what colour is it?", "images": ["star.png"], "exact": "yellow"}
{"prompt": "say hello", "contains": "hello", "pictures": 0}
{"prompt": "describe the picture", "images": ["star.png"], "check": "is_short", "limit": 12}
```

All checks of a line must hold. `contains` and `regex` look into the words, small letters or not; `exact` compares them
but for spaces around them and a last full stop; `pictures` counts; `shows` reads scenes of the lab's kind with
`corpora.checker`; `check` is a function of a Python file of yours, `function(reply, line)`, which gives a truth or a
number from 0 to 1.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.checker import read_scene
from chameleon_lab.corpora.scenes import COLOURS, SHAPES
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.evaluation.additions import module_of_file
from chameleon_lab.evaluation.results import Result, evaluation_card, item_words, settings_words
from chameleon_lab.files import intact, parse_json, read_bytes, text_of_file
from chameleon_lab.generation.weights import weights_digest
from chameleon_lab.parts import require_count
from chameleon_lab.pictures import open_picture
from chameleon_lab.storage import write_file

log = logging.getLogger(__name__)

ReplyCheck = Callable[[Document, Mapping[str, Any]], float]
"""A reply and its line of the file: how right it is, 0 to 1."""

BESIDES = ("prompt", "images", "category", "name")
"""What a line may hold besides its checks."""


def _strings(value: Any) -> list[str]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not strings or not all(isinstance(each, str) for each in strings):
        raise ValueError(f"it wants a text or a list of texts, not {str(value)[:40]!r}")
    return strings


def _search_texts(value: Any) -> list[str]:
    """Texts to be found in a reply. Raises ValueError for an empty one, which is in every reply."""
    if not all(strings := _strings(value)):
        raise ValueError("an empty text is found in every reply")
    return strings


def _contains(value: Any) -> ReplyCheck:
    wishes = [each.lower() for each in _search_texts(value)]
    return lambda reply, _: all(each in reply.text.lower() for each in wishes)


def _regex(value: Any) -> ReplyCheck:
    try:
        patterns = [re.compile(each, re.IGNORECASE) for each in _search_texts(value)]
    except re.error as error:
        raise ValueError(f"{value!r} is no regular expression: {error}") from error
    return lambda reply, _: all(pattern.search(reply.text) is not None for pattern in patterns)


def _exact(value: Any) -> ReplyCheck:
    """Any of the texts."""
    answers = {each.strip().removesuffix(".") for each in _strings(value)}
    return lambda reply, _: reply.text.strip().removesuffix(".") in answers


def _pictures(value: Any) -> ReplyCheck:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"it wants how many pictures a reply has, 0 or more, not {str(value)[:40]!r}")
    return lambda reply, _: len(reply.pictures) == value


def _shows(value: Any) -> ReplyCheck:
    """Exactly these things, each a colour and a shape, in one picture."""
    things = sorted(tuple(each.split()) for each in _strings(value))
    if strange := [each for each in things if len(each) != 2 or each[0] not in COLOURS or each[1] not in SHAPES]:
        raise ValueError(
            f"{' '.join(strange[0])!r} is no thing of a scene: a colour of {', '.join(COLOURS)} and a shape of "
            f"{', '.join(SHAPES)}, such as 'red circle'"
        )

    def check(reply: Document, _: Mapping[str, Any]) -> bool:
        if len(reply.pictures) != 1:
            return False
        return sorted((each.colour, each.shape) for each in read_scene(reply.pictures[0]).things) == things

    return check


CHECKS: dict[str, Callable[[Any], ReplyCheck]] = {
    "contains": _contains,
    "regex": _regex,
    "exact": _exact,
    "pictures": _pictures,
    "shows": _shows,
}
"""What a line may ask of its reply: name to what makes the check of the line's value."""


@dataclass(frozen=True, eq=False)
class OwnPrompt:
    """A line of the file: what is asked, and what must be true of the reply."""

    document: Document
    line: Mapping[str, Any]
    checks: tuple[ReplyCheck, ...]

    @property
    def category(self) -> str:
        return self.line.get("category") or ""

    def score(self, reply: Document) -> float:
        """How right a reply is, 0 to 1: the least of its checks. Raises ValueError where a check gives no such
        number, or fails."""
        scores: list[float] = []
        for check in self.checks:
            try:
                score = check(reply, self.line)
            except (Exception, SystemExit) as error:  # a person's own code
                raise ValueError(
                    f"{getattr(check, '__name__', check)!r} failed on the reply to {self.document.text[:40]!r}: "
                    f"{error!r}. Mend the check."
                ) from error
            number = float(score) if isinstance(score, bool | int | float | np.bool_ | np.number) else math.nan
            if not 0 <= number <= 1:
                raise ValueError(
                    f"{getattr(check, '__name__', check)!r} says {score!r} of the reply to "
                    f"{self.document.text[:40]!r}: a check gives a truth, or a number from 0 to 1."
                )
            scores.append(number)
        return min(scores)


def read_own_prompts(path: Path | str, checks: Path | str | Mapping[str, ReplyCheck] = {}) -> list[OwnPrompt]:  # noqa: B006
    """The prompts in a JSON Lines file. `checks`: functions by name, or the Python file that defines them, which is
    executed, so it must be one that you trust. Paths of `images` are from the file's folder.

    Raises ValueError, naming the line, for one that cannot be asked or has no check, and for a file without any.
    """
    path = Path(path)
    functions = checks if isinstance(checks, Mapping) else vars(module_of_file(Path(checks)))
    prompts: list[OwnPrompt] = []
    lines_of_names: dict[str, int] = {}
    for number, text in enumerate(text_of_file(path).split("\n"), 1):
        if text.strip():
            with intact(f"{path}, line {number},", "Mend the line."):
                prompts.append(_own_prompt(parse_json(text, f"{path}, line {number},"), functions, path.parent))
                name = prompts[-1].line.get("name")
                if name is not None and lines_of_names.setdefault(name, number) != number:
                    raise ValueError(f"line {lines_of_names[name]} is called {name[:40]!r}, too")
    if not prompts:
        raise ValueError(f"{path} holds no prompts: a line is an object with a prompt and a check of the reply.")
    return prompts


def _own_prompt(line: Any, functions: Mapping[str, Any], folder: Path) -> OwnPrompt:
    if not isinstance(line, dict) or not isinstance(line.get("prompt"), str):
        raise ValueError("it is no object with a prompt, which is a text")
    for name in ("category", "name"):
        if not isinstance(line.get(name), str | None):
            raise ValueError(f"its {name} is no text, but {str(line[name])[:40]!r}")
    if line.get("category") == "all":
        raise ValueError("no category may be called 'all', as the values of all prompts together are")
    checks = list[ReplyCheck]()
    for name, make in CHECKS.items():
        if name in line:
            try:
                checks.append(make(line[name]))
            except ValueError as error:
                raise ValueError(f"{name!r}: {error}") from error
    if "check" in line:
        for name in _strings(line["check"]):
            if not callable(functions.get(name)):
                own = sorted(each for each, value in functions.items() if callable(value) and not each.startswith("_"))
                raise ValueError(f"there is no function {name!r} among the checks ({', '.join(own) or 'none'})")
            checks.append(functions[name])
    elif strange := line.keys() - {*CHECKS, *BESIDES}:  # what a function of one's own reads may have any name
        raise ValueError(f"{min(strange)!r} is neither a check ({', '.join(CHECKS)}, check) nor {', '.join(BESIDES)}")
    if not checks:
        raise ValueError(f"it has no check of the reply: one or more of {', '.join(CHECKS)}, check")
    images = line.get("images") or []  # exported files have the field in each line
    pictures = [open_picture(folder / each) for each in (_strings(images) if images else [])]
    if not pictures and not line["prompt"].strip():
        raise ValueError("it asks nothing: it has neither words nor pictures")
    return OwnPrompt(Document.of(*pictures, line["prompt"], EndTurn()), line, tuple(checks))


@dataclass(frozen=True, eq=False)
class OwnOutcome:
    """What a model made of one's own prompts: `results` of all and of each category, `replies` and `scores` in the
    order of the prompts."""

    results: dict[str, Result]
    prompts: Sequence[OwnPrompt]
    replies: list[Document]
    scores: list[float] = field(default_factory=list)

    def write(self, path: Path | str) -> None:
        """Writes a JSON Lines file: the results' values with their protocols, then each prompt with its reply's words,
        how many pictures it has, and its score."""
        lines = [result.value.to_json() for result in self.results.values()]
        for prompt, reply, score in zip(self.prompts, self.replies, self.scores, strict=True):
            row = {**prompt.line, "reply": reply.text, "reply_pictures": len(reply.pictures), "score": score}
            lines.append(json.dumps(row, ensure_ascii=False))
        write_file(Path(path), "".join(f"{line}\n" for line in lines))


class KeptReplies:
    """Replies in a JSON Lines file, on the disk as they are made, which a check that fails then does not lose.

    `replies` are those that are there. The first line says of which weights, settings, seed and prompts; checks may
    have changed. A line that a dying kernel cut short is left out. A disk that takes no more costs no answers: the log
    says so, and none are kept. Raises ValueError for a file of others.
    """

    def __init__(self, path: Path | str, lab: Chameleon, documents: Sequence[Document], seed: int) -> None:
        self.path = Path(path)
        weights = hashlib.sha256(weights_digest(lab.model, LARGEST_READ)).hexdigest()
        identity = [weights, settings_words(lab.settings), str(seed), *map(item_words, documents)]
        head = json.dumps({"replies_of": hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]})
        written = read_bytes(self.path, LARGEST_KEPT) if self.path.exists() else b""
        lines = written.decode(errors="replace").split("\n")[:-1]
        if lines and lines[0] != head:
            raise ValueError(
                f"{self.path} holds other things than these replies, or those of another model, seed, prompts or "
                "settings: name another file, or delete it."
            )
        self.replies = [Document.from_json(line) for line in lines[1:]]
        self._keeps = True
        with self._writing():
            write_file(self.path, "".join(f"{line}\n" for line in lines or [head]))

    def add(self, replies: Sequence[Document]) -> None:
        self.replies += replies
        if self._keeps:
            with self._writing(), self.path.open("ab") as file:
                file.write("".join(f"{reply.to_json()}\n" for reply in replies).encode(errors="backslashreplace"))
                file.flush()
                os.fsync(file.fileno())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._keeps = False
            log.warning("Replies are not kept as they are made: %s", error)


LARGEST_READ = 2**28
"""Bytes of a model that are read to tell it from others."""
LARGEST_KEPT = 2**32
"""Bytes of a file of kept replies, which may be pictures."""


def evaluate_own_prompts(
    lab: Chameleon,
    prompts: Sequence[OwnPrompt],
    *,
    reference: str = "own prompts",
    seed: int = 0,
    batch: int = 32,
    reply_file: Path | str | None = None,
    progress: Callable[[int], object] | None = None,
) -> OwnOutcome:
    """Asks a model everything, with its own settings, and checks the replies. `reference`: a name for the prompts.

    `reply_file`: of `KeptReplies`; called again, such as with a check that was mended, it goes on there. Raises
    ValueError for a prompt that has no room in the context, before any is asked, and as `OwnPrompt.score` and
    `KeptReplies` do.
    """
    require_count(batch, "prompts asked at once", 1)
    documents = [lab.recent(each.document) for each in prompts]
    room = lab.model.config.context - 1  # the first position begins the document
    for number, document in enumerate(documents, 1):
        if (tokens := sum(map(lab.tokenizer.length, document))) >= room:
            raise ValueError(
                f"Prompt {number} ({document.text[:40]!r}) has {tokens} tokens, and the model's context has room for "
                f"{room} with the reply: shorten it."
            )
    keeper = KeptReplies(reply_file, lab, documents, seed) if reply_file else None
    replies = list(keeper.replies) if keeper else []
    # Checked as they come: a check that fails is to say so after the first replies, and not after all.
    scores = [prompt.score(reply) for prompt, reply in zip(prompts, replies, strict=False)]
    for start in range(len(replies), len(prompts), batch):
        some = documents[start : start + batch]
        few = lab.engine.generate(some, lab.settings, [seed + start + place for place in range(len(some))])
        if keeper:
            keeper.add(few)
        scores += [prompt.score(reply) for prompt, reply in zip(prompts[start : start + batch], few, strict=True)]
        replies += few
        if progress:
            progress(len(some))
    categories = sorted({prompt.category for prompt in prompts} - {""})
    results: dict[str, Result] = {}
    for category in ["all", *categories]:
        places = [place for place, each in enumerate(prompts) if category in ("all", each.category)]
        card = evaluation_card(
            f"right: {category}",
            f"mean of the prompts' own checks; {settings_words(lab.settings)}",
            reference,
            [item_words(prompts[place].document) + json.dumps(prompts[place].line, sort_keys=True) for place in places],
            n=len(places),
            lab=lab,
            pictures=any(prompts[place].document.pictures for place in places),
            seed=seed,
        )
        results[category] = Result.of([scores[place] for place in places], card)
    return OwnOutcome(results, prompts, replies, scores)
