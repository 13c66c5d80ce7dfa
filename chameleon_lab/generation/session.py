"""A session: one document under way, read in pieces, that can be left after any of them and continued."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import PIL.Image

from chameleon_lab.documents import Document
from chameleon_lab.generation.continuation import Continuation
from chameleon_lab.generation.grammar import State
from chameleon_lab.generation.settings import Settings
from chameleon_lab.records import ImagePiece, Piece, ReplyProgress, StopPiece
from chameleon_lab.tokenizers.mixed import PieceReader


class Session:
    """A document and its reply, with all that was computed of them.

    ```python
    session = lab.begin(Document.of("draw a red circle", EndTurn()), seed=7)
    for piece in session.stream():  # break whenever you like; another stream goes on from there
        ...
    session.append(Document.of("and now a blue one", EndTurn()))  # only this is computed, not what came before
    ```

    A session stays with the model that it was begun with. If its weights have changed when a stream begins, all is
    computed anew.
    """

    def __init__(self, continuation: Continuation, prefix: int = 0) -> None:
        """`prefix`: with how many tokens of the continuation the reply begins."""
        self._continuation, self._row = continuation, continuation.rows[0]
        self._renew()
        if prefix:
            self._start -= prefix
            self._pieces += self._reader.read_all(self.tokens[self._start :].tolist())
            if self._reader.in_image and not self._reader.codes_read:
                self._pieces += self._started(State(), self._row.state)

    def _renew(self) -> None:
        """Nothing read of the reply that begins behind the tokens so far."""
        self._reader, self._start = PieceReader(self._continuation.tokenizer), len(self.tokens)
        self._pieces: deque[Piece] = deque()
        self._unread: tuple[int, State, State] | None = None  # a token, and the states before and after it
        self._reads = False  # whether the reader is within a token, or was interrupted there
        self._closed = False

    @property
    def settings(self) -> Settings:
        """What the reply is sampled with."""
        return self._continuation.settings

    @property
    def tokens(self) -> np.ndarray:
        """All tokens so far, prompts and replies: 1-D int64."""
        count, _ = self._row.yielded
        return np.array(self._row.tokens[:count], np.int64)

    @property
    def worker(self) -> str:
        """Who did the last sums: "model", "lean" or "graph" (see `Decoder`)."""
        return self._continuation.worker

    @property
    def reply(self) -> Document:
        """The reply under way, as far as its pieces were read; an image not yet finished is left out."""
        return self._reader.document()

    def stream(self, progress: Callable[[ReplyProgress], object] | None = None) -> Iterator[Piece]:
        """Pieces of the reply as they come: words; a picture without codes when an image starts, then with one more row
        of codes each time, until it is complete; last a `StopPiece`. Close the iterator to stop at once.

        `progress` is called after each new token: a row of an image is one piece, and many tokens.
        """
        self._read()
        yield from self._rest()
        _, before = self._row.yielded
        for _, token, state in self._continuation.tokens():
            if token is not None:
                self._unread = token, before, state
                if progress is not None:
                    progress(self._progress(token, state))
                self._read()
            yield from self._rest()
            before = state
        if not self._closed:
            self._pieces += self._reader.close()
            self._closed = True
        yield from self._rest()
        yield StopPiece(self._row.state.ended or "stopped")

    def _progress(self, token: int, state: State) -> ReplyProgress:
        (count, _), continuation = self._row.yielded, self._continuation
        image = None
        if state.place is not None:
            slot = continuation.tokenizer.form.slot(state.place, state.grid)
            image = slot.codes, slot.total
        return ReplyProgress(token, self._row.limit - count, continuation.model.config.context - count, image)

    def append(self, document: Document) -> None:
        """Goes on with more of a prompt behind what was written so far; then `stream` a new reply to it.

        An image left unfinished is taken back. A reply that was cut short has no end of turn: begin the document with
        `EndTurn()` to end it, or append an empty one to go on with it. Raises ValueError where there is no room left,
        and then changes nothing.
        """
        self._continuation.append(0, self._continuation.tokenizer.encode(document)[1:])
        self._renew()

    def _read(self) -> None:
        """Reads the token that is not yet read, again where that was interrupted: a picture takes long to decode.

        A reader that was interrupted knows half of a token; a new one reads all before it first.
        """
        if self._unread is None:
            return
        if self._reads:
            reader = PieceReader(self._continuation.tokenizer)
            reader.read_all(self.tokens[self._start : -1].tolist(), pictures=False)
            self._reader = reader
        token, before, state = self._unread
        self._reads = True
        pieces = [*self._reader.read(token), *self._started(before, state)]
        self._pieces, self._unread, self._reads = deque([*self._pieces, *pieces]), None, False

    def _rest(self) -> Iterator[Piece]:
        """Pieces not yet yielded: a reader may leave a stream between two of one token's."""
        while self._pieces:
            yield self._pieces.popleft()

    def _started(self, before: State, state: State) -> Iterator[Piece]:
        """A grey picture without codes where a token has let an image start whose grid is certain."""
        share, tokenizer = self._continuation.grammar.share, self._continuation.tokenizer
        if share(before) is None and share(state) is not None:
            rows, columns = state.grid or tokenizer.grid
            side = tokenizer.image.config.factor
            blank = PIL.Image.new("RGB", (columns * side, rows * side), "gray")
            yield ImagePiece(blank, np.empty((0, columns), np.int64), rows)
