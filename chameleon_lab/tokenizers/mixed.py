"""The mixed-modal tokenizer: documents to tokens in one vocabulary, and back, whole or as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from chameleon_lab.documents import Document, EndTurn, Image, Segment, Text
from chameleon_lab.records import ImagePiece, Piece, TextPiece
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.text import TextTokenizer
from chameleon_lab.vocabulary import Modality, Vocabulary


class MixedModalTokenizer:
    """A text tokenizer, an image tokenizer and the vocabulary they share.

    An image is `begin_image`, its codes row by row, `end_image`. `grid` is the (rows, columns) of every image.
    Raises ValueError when the parts disagree about how many codes or pieces there are.
    """

    def __init__(self, text: TextTokenizer, image: ImageTokenizer, vocabulary: Vocabulary) -> None:
        if image.codes != vocabulary.codes or text.size != vocabulary.pieces:
            raise ValueError(
                f"The vocabulary has room for {vocabulary.codes} codes and {vocabulary.pieces} pieces, but the image "
                f"tokenizer has {image.codes} codes and the text tokenizer {text.size} pieces."
            )
        self.text, self.image, self.vocabulary = text, image, vocabulary

    @property
    def grid(self) -> tuple[int, int]:
        return self.image.config.grid

    @property
    def image_tokens(self) -> int:
        """Tokens of one image, delimiters included."""
        return self.grid[0] * self.grid[1] + 2

    def encode(self, document: Document) -> np.ndarray:
        """Document to tokens, from `begin_document` on: 1-D int64. Open-ended: no `end_document` is added."""
        tokens = [np.array([self.vocabulary.begin_document], np.int64)]
        tokens += [self.encode_segment(segment) for segment in document]
        return np.concatenate(tokens)

    def encode_segment(self, segment: Segment) -> np.ndarray:
        """One segment's tokens: 1-D int64. Raises ValueError on codes of another grid and on half a surrogate pair."""
        vocabulary = self.vocabulary
        if isinstance(segment, Text):
            try:
                pieces = self.text.encode(segment.text)
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"The text holds half a character, {error.object[error.start]!r}: take it out."
                ) from error
            return np.array([vocabulary.token_of_piece(piece) for piece in pieces], np.int64)
        if isinstance(segment, EndTurn):
            return np.array([vocabulary.end_turn], np.int64)
        codes = self.image.encode(segment.picture) if segment.codes is None else np.asarray(segment.codes)
        if codes.shape != self.grid:
            raise ValueError(f"Images of this model have a grid of {self.grid} codes; this one has {codes.shape}.")
        inner = vocabulary.tokens_of_codes(codes).ravel()
        return np.concatenate([[vocabulary.begin_image], inner, [vocabulary.end_image]])

    def length(self, segment: Segment) -> int:
        """How many tokens a segment has, its picture not looked at."""
        return self.image_tokens if isinstance(segment, Image) else len(self.encode_segment(segment))

    def decode(self, tokens: Sequence[int] | np.ndarray) -> Document:
        """Tokens to a document; `decode(encode(d)) == d` where d has no empty text and no two in a row, its images
        carry codes, and all of it is learned.

        Raises ValueError on tokens of another shape, unknown ids, and images that are cut short or stray.
        """
        reader = PieceReader(self)
        for token in self.vocabulary.check(tokens):
            for _ in reader.read(int(token), pictures=False):
                pass
        if reader.in_image:
            raise ValueError(f"The tokens end inside an image, after {reader.codes_read} of its codes.")
        return reader.document()


class PieceReader:
    """Reads tokens one by one and yields pieces: text as it grows, a picture after each row of codes.

    `document()` gives all that was read so far; an image not yet finished is left out.
    """

    def __init__(self, tokenizer: MixedModalTokenizer) -> None:
        self._tokenizer, self._vocabulary = tokenizer, tokenizer.vocabulary
        self._segments: list[Segment] = []
        self._pieces: list[int] = []
        self._told = ""
        self._codes: list[int] | None = None

    @property
    def in_image(self) -> bool:
        return self._codes is not None

    @property
    def codes_read(self) -> int:
        return len(self._codes or ())

    def read(self, token: int, pictures: bool = True) -> Iterator[Piece]:
        """The pieces that one more token gives: none, one, or two. `pictures=False` skips partial pictures."""
        vocabulary, (rows, columns) = self._vocabulary, self._tokenizer.grid
        kind = vocabulary.modality[token]
        if self._codes is not None and kind != Modality.IMAGE and token != vocabulary.end_image:
            raise ValueError(f"Token {token} stands inside an image, after {len(self._codes)} of its codes.")
        if kind == Modality.TEXT:
            self._pieces.append(token - vocabulary.first_text)
            yield from self._grown_text()
            return
        if kind == Modality.IMAGE:
            if self._codes is None:
                raise ValueError(f"Image token {token} stands outside an image.")
            if len(self._codes) == rows * columns:
                raise ValueError(f"An image goes on after its {rows * columns} codes, with token {token}.")
            self._codes.append(int(vocabulary.codes_of_tokens(np.array(token))))
            if pictures and len(self._codes) % columns == 0:
                yield self._piece(self._codes)
            return
        yield from self._close_text()
        if token == vocabulary.begin_image:
            self._codes = []
        elif token == vocabulary.end_image:
            if self._codes is None or len(self._codes) != rows * columns:
                raise ValueError(f"An image ends after {self.codes_read} codes instead of {rows * columns}.")
            codes = np.array(self._codes).reshape(rows, columns)
            self._segments.append(Image(self._tokenizer.image.decode(codes), codes))
            self._codes = None
        elif token == vocabulary.end_turn:
            self._segments.append(EndTurn())

    def close(self) -> Iterator[Piece]:
        """What was still held back: text that ended inside a character."""
        yield from self._close_text()

    def document(self) -> Document:
        pending = self._tokenizer.text.decode(self._pieces)
        return Document((*self._segments, *([Text(pending)] if pending else [])))

    def _grown_text(self) -> Iterator[Piece]:
        text = self._tokenizer.text.decode(self._pieces)
        ready = text.rstrip("\ufffd")  # an unfinished character waits for its other bytes
        if len(ready) > len(self._told):
            yield TextPiece(ready[len(self._told) :])
            self._told = ready

    def _close_text(self) -> Iterator[Piece]:
        text = self._tokenizer.text.decode(self._pieces)
        if len(text) > len(self._told):
            yield TextPiece(text[len(self._told) :])
        if text:
            self._segments.append(Text(text))
        self._pieces, self._told = [], ""

    def _piece(self, codes: list[int]) -> ImagePiece:
        """The picture so far, rows not yet drawn filled with the code of the last cell above them."""
        rows, columns = self._tokenizer.grid
        drawn = np.array(codes).reshape(-1, columns)
        filled = np.concatenate([drawn, np.repeat(drawn[-1:], rows - len(drawn), axis=0)])
        return ImagePiece(self._tokenizer.image.decode(filled), drawn, rows)
