"""What an inspector has answered so far, within a limit, and the page without a kernel that is made of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from chameleon_widgets.inspect.answers import LookAnswer, LookReader
from chameleon_widgets.standalone import Recording

ANSWER_BYTES = 2**24  # of answers kept for further views and for pages, the oldest forgotten first
ROLLOUT_BYTES = 2**21  # of all rows of rollout of a document: up to 2,047 positions a page holds them all


class AnswerBook:
    """Answers by what was asked, from any thread."""

    def __init__(self, limit: int = ANSWER_BYTES) -> None:
        self._limit, self._size = limit, 0
        self._answers: OrderedDict[Hashable, LookAnswer] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, question: Hashable) -> LookAnswer | None:
        with self._lock:
            if question in self._answers:
                self._answers.move_to_end(question)
            return self._answers.get(question)

    def put(self, question: Hashable, answer: LookAnswer) -> None:
        with self._lock:
            self._size += _answer_bytes(answer) - _answer_bytes(self._answers.pop(question, None))
            self._answers[question] = answer
            while self._size > self._limit and len(self._answers) > 1:
                self._size -= _answer_bytes(self._answers.popitem(last=False)[1])

    def answers(self) -> list[LookAnswer]:
        with self._lock:
            return [*self._answers.values()]


def _answer_bytes(answer: LookAnswer | None) -> int:
    return 0 if answer is None else 200 + sum(map(len, answer[1]))


def recording(
    readers: Sequence[LookReader], tree: LookAnswer, selection: Sequence[LookAnswer], book: AnswerBook
) -> Recording:
    """All documents, all rows of rollout where they fit, and each answer so far, as a view receives them."""
    answers = [tree, *(reader.document() for reader in readers)]
    answers += [reader.lens(image, reader.depth[0]) for reader in readers for image in range(reader.images)]
    answers += [reader.rollouts() for reader in readers if len(reader) * (len(reader) + 1) // 2 <= ROLLOUT_BYTES]
    return Recording("inspector", [*answers, *book.answers(), *selection])
