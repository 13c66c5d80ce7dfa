"""An arena: a person judges replies one after another, blind, and each answer is on the disk before the next shows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import PIL.Image

from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.studies import BETTER, Journal, Judgement, Study
from chameleon_widgets import stills
from chameleon_widgets.judge.messages import ArenaItem, AskedQuestion, ShownPart
from chameleon_widgets.line import Line, Part, assets
from chameleon_widgets.pictures import png

LARGEST_SIDE_SHOWN = 512  # pixels of a picture, in a page and in its message


class Arena(anywidget.AnyWidget):
    """Judging as a widget: which of two replies is better, a sheet of questions, or whether a reply is safe.

    `study` is a `Study`, written into `folder` then, or None for the one that lies there. The annotator goes on where
    they ended, in a new kernel too: `judgements` are the answers by now. Raises ValueError for another study than the
    folder's, and for an annotator who judges elsewhere at the same time.
    """

    _esm, _css = assets("arena")

    def __init__(self, folder: Path | str, annotator: str, study: Study | None = None) -> None:
        self._journal: Journal | None = None
        super().__init__()
        self._line = Line(  # first of all: it ends the arena that this cell has shown before, and its journal
            self,
            "arena",
            flush=self._flush,
            still=self._still,
            handlers={"answer": self._want_answer, "back": self._want_back},
            end=self._close_journal,
        )
        if study is not None:
            study.write(folder)
        journal = Journal(folder, annotator)
        self.study, self._order = journal.study, journal.study.order(annotator)
        self._number, self._since = 0, time.monotonic()
        self._journal = journal
        self._go_to_next(0)
        self._line.renew_still()

    @property
    def judgements(self) -> list[Judgement]:
        """The answers by now, an item once."""
        return [] if self._journal is None else list(self._journal.judgements.values())

    # What the browser asks

    def _want_answer(self, content: dict[str, Any], _: object) -> None:
        journal, number = self._journal, self._number
        if journal is None or self._line.ended:
            raise ValueError("This arena is closed: run its cell again, and it goes on here.")
        if content.get("number") != number:
            return  # the second of two quick clicks: its answer was for the item before
        answers = content.get("answers")
        if not isinstance(answers, dict) or number >= len(self._order):
            raise ValueError("An answer names a choice for each question.")
        place, sides = self._order[number]
        answers = {str(name): str(answer) for name, answer in answers.items()}
        seconds = round(min(time.monotonic() - self._since, 86_400.0), 2)
        journal.add(Judgement(journal.annotator, self.study.items[place].name, _unturned(answers, sides), seconds))
        self._go_to_next(number + 1)
        self._line.renew_still(5.0)

    def _want_back(self, content: dict[str, Any], _: object) -> None:
        self._show(max(0, self._number - 1))

    def _go_to_next(self, number: int) -> None:
        """The first item from a number on that is not judged yet, or from the beginning; past the end where all are."""
        judged = self._journal.judgements if self._journal else {}
        total = len(self._order)
        ahead = [*range(number, total), *range(number)]
        names = [self.study.items[place].name for place, _ in self._order]
        self._show(next((each for each in ahead if names[each] not in judged), total))

    def _show(self, number: int) -> None:
        self._number, self._since = number, time.monotonic()
        self._line.tell("item")

    def _close_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()

    # What it sends

    def _flush(self, due: frozenset[Part]) -> None:
        journal = self._journal
        if not due & {"item", "hello"} or journal is None:
            return
        number, pictures = self._number, list[PIL.Image.Image]()
        message = ArenaItem(
            kind="item",
            study=self.study.name,
            annotator=journal.annotator,
            number=number,
            total=len(self._order),
            judged=len(journal.judgements),
            prompt=[],
            replies=[],
            questions=[],
            before={},
            journal=str(journal.path),
        )
        if number < len(self._order):
            place, sides = self._order[number]
            item = self.study.items[place]
            message["prompt"] = _page_parts(item.prompt, pictures)
            message["replies"] = [_page_parts(item.replies[side], pictures) for side in sides]
            message["questions"] = [
                AskedQuestion(name=each.name, words=each.words, answers=list(each.answers.items()))
                for each in self.study.questions
            ]
            if item.name in journal.judgements:
                message["before"] = _unturned(journal.judgements[item.name].answers, sides)
        self._line.send(message, [png(picture, LARGEST_SIDE_SHOWN) for picture in pictures])

    def _still(self) -> tuple[str, str]:
        if self._journal is None:
            return "<p>An arena that could not be opened</p>", "An arena that could not be opened"
        judged, total = len(self._journal.judgements), len(self._order)
        words = f"{self._journal.annotator} has judged {judged} of {total} in {self.study.name}"
        return f"<p>{stills.escape(words)}</p>", words


def _unturned(answers: Mapping[str, str], sides: Sequence[int]) -> dict[str, str]:
    """Answers by the sides of the page as answers by those of the study, and the other way round."""
    other = {"first": "second", "second": "first"}
    turned = tuple(sides) == (1, 0)
    return {
        name: other.get(answer, answer) if turned and name == BETTER.name else answer
        for name, answer in answers.items()
    }


def _page_parts(document: Document, pictures: list[PIL.Image.Image]) -> list[ShownPart]:
    """A document for the page; its pictures join those that are sent."""
    parts: list[ShownPart] = []
    for segment in document:
        if isinstance(segment, Image):
            parts.append(ShownPart(picture=len(pictures)))
            pictures.append(segment.picture)
        elif isinstance(segment, Text):
            parts.append(ShownPart(text=segment.text))
        elif isinstance(segment, EndTurn) and parts and document.segments[-1] is not segment:
            parts.append(ShownPart(text="\n"))
    return parts
