"""A session: one document under way, read in pieces, that can be left after any of them and continued."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import length_hint

import numpy as np
import PIL.Image

from chameleon_lab.documents import Document
from chameleon_lab.generation.continuation import Continuation, ReplyRow, Standing
from chameleon_lab.generation.grammar import State
from chameleon_lab.generation.handover import Handover
from chameleon_lab.generation.settings import Settings
from chameleon_lab.records import ImagePiece, Piece, ReplyProgress, StopPiece
from chameleon_lab.tokenizers.mixed import PieceReader


@dataclass(frozen=True)
class ReadState:
    """How far a reply is read. One assignment takes a session from one to the next: token, state and piece together.

    `row`: the document as far as it was read, or up to the token that was refused. `moment` and `place`: which outcome
    of the continuation comes next, and `state` what the grammar said before it. The reader has read `count` tokens; it
    is None while it reads one more, and after an interrupt there: then another one reads all `count` again. `pieces`
    are those not yet yielded, and `closed` says that the last ones are among them.
    """

    row: ReplyRow
    moment: Standing
    state: State
    count: int
    reader: PieceReader | None
    place: int = 0
    pieces: Iterator[Piece] = field(default_factory=lambda: iter(()))
    closed: bool = False


class Session:
    """A document and its reply, with all that was computed of them.

    ```python
    session = lab.begin(Document.of("draw a red circle", EndTurn()), seed=7)
    for piece in session.stream():  # break whenever you like; another stream goes on from there
        ...
    session.append(Document.of("and now a blue one", EndTurn()))  # only this is computed, not what came before
    ```

    The same after an interrupt (Ctrl+C), wherever it comes: another stream goes on with the next piece, and none is
    lost, told twice or another. A session stays with the model that it was begun with. If its weights have changed when
    a stream begins, all is computed anew.
    """

    def __init__(self, continuation: Continuation, prefix: int = 0) -> None:
        """`prefix`: with how many tokens of the continuation the reply begins."""
        self._continuation = continuation
        self._latest = self._fresh()
        if prefix:
            row, reader = self._latest.row, PieceReader(continuation.tokenizer)
            pieces = reader.read_all(row.tokens[row.start :])
            if reader.in_image and not reader.codes_read:
                pieces += self._started(State(), row.state)
            self._latest = replace(self._latest, count=prefix, reader=reader, pieces=iter(pieces))

    def _fresh(self) -> ReadState:
        """Nothing read of the reply that begins behind the tokens so far."""
        row, moment = self._continuation.rows[0], self._continuation.moment
        return ReadState(row, moment, row.state, 0, PieceReader(self._continuation.tokenizer))

    @property
    def _reading(self) -> ReadState:
        """How far the present reply is read; `append` begins another, even where it was interrupted afterwards."""
        if self._latest.row.reply != self._continuation.rows[0].reply:
            self._latest = self._fresh()
        return self._latest

    @property
    def settings(self) -> Settings:
        """What the reply is sampled with."""
        return self._continuation.settings

    @property
    def tokens(self) -> np.ndarray:
        """All tokens so far, prompts and replies: 1-D int64."""
        return np.array(self._reading.row.tokens, np.int64)

    @property
    def worker(self) -> str:
        """Who did the last sums: "model", "lean" or "graph" (see `Decoder`)."""
        return self._continuation.worker

    @property
    def reply(self) -> Document:
        """The reply under way, as far as its pieces were read; an image not yet finished is left out."""
        return self._reader(self._reading).document()

    def stream(self, progress: Callable[[ReplyProgress], object] | None = None) -> Handover[Piece]:
        """Pieces of the reply as they come: words; a picture without codes when an image starts, then with one more row
        of codes each time, until it is complete; last a `StopPiece`. Close the iterator to stop at once.

        `progress` is called after each new token: a row of an image is one piece, and many tokens.
        """
        return Handover.of(self._rest(progress))

    def _progress(self, reading: ReadState) -> ReplyProgress:
        tokens, state, continuation = reading.row.tokens, reading.state, self._continuation
        image = None
        if state.place is not None:
            slot = continuation.tokenizer.form.slot(state.place, state.grid)
            image = slot.codes, slot.total
        context = continuation.model.config.context
        return ReplyProgress(tokens[-1], reading.row.limit - len(tokens), context - len(tokens), image)

    def append(self, document: Document) -> None:
        """Goes on with more of a prompt behind what was written so far; then `stream` a new reply to it.

        An image left unfinished is taken back. A reply that was cut short has no end of turn: begin the document with
        `EndTurn()` to end it, or append an empty one to go on with it. Raises ValueError where there is no room left,
        and then changes nothing.
        """
        tokens = self._continuation.tokenizer.encode(document)[1:]
        self._continuation.append(0, tokens, self._reading.row)

    def _rest(self, progress: Callable[[ReplyProgress], object] | None) -> Generator[Iterator[Piece], None, None]:
        """Pieces not yet yielded, one at a time: a reader may leave a stream between two of one token's."""
        self._continuation.begin()
        while True:
            reading = self._reading
            while length_hint(reading.pieces):
                yield islice(reading.pieces, 1)
            if reading.closed:
                break
            self._read(reading)
            if progress is not None and self._latest.count > reading.count:
                progress(self._progress(self._latest))
        yield iter((StopPiece(self._reading.row.state.ended or "stopped"),))

    def _read(self, reading: ReadState) -> None:
        """Goes on by one outcome of the continuation, or has it take a step, or closes the reply."""
        moment, place = reading.moment, reading.place
        if place < len(moment.outcomes):
            _, token, state = moment.outcomes[place]
            row, further = moment.after[place], replace(reading, moment=moment, place=place + 1)
            if token is None:
                self._latest = replace(further, row=row)
                return
            reader = self._reader(reading)
            self._latest = replace(reading, reader=None)
            try:
                pieces = [*reader.read(token), *self._started(reading.state, state)]
            except ValueError:  # here ends what can be shown, whoever reads on; `append` takes an image back
                self._latest = replace(reading, reader=None, row=row)
                raise
            self._latest = replace(
                further, row=row, state=state, count=reading.count + 1, reader=reader, pieces=iter(pieces)
            )
        elif moment is not self._continuation.moment:
            self._latest = replace(reading, moment=self._continuation.moment, place=0)
        elif not reading.row.state.ended:
            self._continuation.step()
        else:
            reader = self._reader(reading)
            self._latest = replace(reading, reader=None)
            pieces = list(reader.close())
            self._latest = replace(reading, reader=reader, pieces=iter(pieces), closed=True)

    def _reader(self, reading: ReadState) -> PieceReader:
        """The reader, or where that was interrupted, another one that has read the same."""
        if reading.reader is not None:
            return reading.reader
        reader, row = PieceReader(self._continuation.tokenizer), reading.row
        reader.read_all(row.tokens[row.start : row.start + reading.count], pictures=False)
        return reader

    def _started(self, before: State, state: State) -> Iterator[Piece]:
        """A grey picture without codes where a token has let an image start whose grid is certain."""
        share, tokenizer = self._continuation.grammar.share, self._continuation.tokenizer
        if share(before) is None and share(state) is not None:
            rows, columns = state.grid or tokenizer.grid
            side = tokenizer.image.config.factor
            blank = PIL.Image.new("RGB", (columns * side, rows * side), "gray")
            yield ImagePiece(blank, np.empty((0, columns), np.int64), rows)
