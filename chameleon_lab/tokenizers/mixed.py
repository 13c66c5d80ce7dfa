"""The mixed-modal tokenizer: documents to tokens in one vocabulary, and back, whole or as a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import PIL.Image

from chameleon_lab.documents import Blank, Document, EndTurn, Image, Segment, Text
from chameleon_lab.pictures import LARGEST_AREA
from chameleon_lab.records import ImagePiece, Piece, TextPiece
from chameleon_lab.tokenizers.grids import AreaGrid, ImageForm, Slot, SlotKind, image_form
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.preparation import Preparation
from chameleon_lab.tokenizers.text import TextTokenizer
from chameleon_lab.vocabulary import Modality, Vocabulary

LOOKBACK = 32
"""Pieces of a text that a `PieceReader` looks back on, at least, to tell what one more adds."""

LONGEST_SIDE = 1024
"""Codes along a side of an image."""


class MixedModalTokenizer:
    """A text tokenizer, an image tokenizer and the vocabulary they share.

    `form` says how images are written: all on one `grid`, unless the vocabulary has tokens for grids and new lines (see
    `tokenizers.grids`). `preparation` is what pictures without codes go through: the image tokenizer's own policy, or,
    for images of any grid, `AreaGrid` of the same area.

    A checkpoint may lack a part, which is None here: then `grid` says what the image tokenizer's would be, and `source`
    where the checkpoint is. `missing` says what is lacking in words, and asking for `text` or `image` raises ValueError
    with what to add. Raises ValueError when the parts disagree about how many codes or pieces there are.
    """

    def __init__(
        self,
        text: TextTokenizer | None,
        image: ImageTokenizer | None,
        vocabulary: Vocabulary,
        *,
        preparation: Preparation | None = None,
        grid: tuple[int, int] | None = None,
        source: str = "This model",
    ) -> None:
        codes, pieces = image.codes if image else vocabulary.codes, text.size if text else vocabulary.pieces
        if (codes, pieces) != (vocabulary.codes, vocabulary.pieces):
            raise ValueError(
                f"The vocabulary has room for {vocabulary.codes} codes and {vocabulary.pieces} pieces, but the image "
                f"tokenizer has {codes} codes and the text tokenizer {pieces} pieces."
            )
        if grid is not None and not (
            len(grid) == 2 and all(type(side) is int and 0 < side <= LONGEST_SIDE for side in grid)
        ):
            raise ValueError(f"A grid is (rows, columns), each a whole number in 1..{LONGEST_SIDE}, not {grid!r}.")
        if image is None and grid is None:
            raise ValueError("Without an image tokenizer, say how many (rows, columns) of codes an image has: grid=.")
        self._text, self._image, self.vocabulary, self.source = text, image, vocabulary, source
        self._grid = grid
        self.form = image_form(vocabulary, *self.grid)
        if image and not self.form.sides and preparation is None:
            rows, columns = self.grid
            preparation = AreaGrid(2 * image.config.factor, max(1, rows * columns // 4))
        self.preparation = preparation

    @property
    def text(self) -> TextTokenizer:
        """What turns text into pieces. Raises ValueError, which says what to add, where it is lacking."""
        if self._text is None:
            raise ValueError(
                f"{self.source} holds no text tokenizer, so text cannot become tokens, nor tokens text. Put Meta's "
                "text_tokenizer.json or Hugging Face's tokenizer.json of the same model into the folder, or name the "
                "folder it is in: Chameleon.load(folder, tokenizer='data/tokenizer')."
            )
        return self._text

    @property
    def image(self) -> ImageTokenizer:
        """What turns pictures into codes. Raises ValueError, which says what to add, where it is lacking."""
        if self._image is None:
            raise ValueError(
                f"{self.source} holds no image tokenizer, so pictures cannot become codes, and codes cannot become "
                "pictures. Put the same model's vqgan.ckpt and vqgan.yaml into the folder, or name the folder they are "
                "in: Chameleon.load(folder, tokenizer='data/tokenizer')."
            )
        return self._image

    @property
    def can_spell(self) -> bool:
        """Whether text can become tokens, and tokens text."""
        return self._text is not None

    @property
    def can_read(self) -> bool:
        """Whether pictures can become tokens."""
        return self._image is not None

    @property
    def can_draw(self) -> bool:
        """Whether tokens can become pictures."""
        return self._image is not None and self._image.decoder is not None

    @property
    def missing(self) -> tuple[str, ...]:
        """What is lacking, in words."""
        gaps = {
            "no text tokenizer: text can neither be read nor written": not self.can_spell,
            "no image tokenizer: pictures can neither be read nor written": not self.can_read,
            "no picture decoder: pictures can be read, not written": self.can_read and not self.can_draw,
        }
        return tuple(words for words, lacking in gaps.items() if lacking)

    def with_parts(self, text: TextTokenizer | None, image: ImageTokenizer | None) -> MixedModalTokenizer:
        """The same vocabulary and grid with these parts, None for one that is to be lacking."""
        return MixedModalTokenizer(text, image, self.vocabulary, grid=self.grid, source=self.source)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of every image, or of the square one where images have any grid."""
        return self._image.grid if self._image else self._grid or (0, 0)

    @property
    def image_tokens(self) -> int:
        """Tokens of one image of `grid`, delimiters included."""
        return self.form.length(*self.grid)

    def encode(self, document: Document) -> np.ndarray:
        """Document to tokens, from `begin_document` on: 1-D int64. Open-ended: no `end_document` is added."""
        tokens = [np.array([self.vocabulary.begin_document], np.int64)]
        tokens += [self.encode_segment(segment) for segment in document]
        return np.concatenate(tokens)

    def encode_segment(self, segment: Segment) -> np.ndarray:
        """One segment's tokens: 1-D int64. Raises ValueError on codes of another grid, on half a surrogate pair, and on
        blanks."""
        vocabulary = self.vocabulary
        if isinstance(segment, Text):
            try:
                pieces = self.text.encode(segment.text) if segment.text else []
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"The text holds half a character, {error.object[error.start]!r}: take it out."
                ) from error
            return np.array([vocabulary.token_of_piece(piece) for piece in pieces], np.int64)
        if isinstance(segment, EndTurn):
            return np.array([vocabulary.end_turn], np.int64)
        if isinstance(segment, Blank) or segment.mask is not None:
            what = "a Blank" if isinstance(segment, Blank) else "an Image with a mask"
            raise ValueError(f"The document holds {what}, which only lab.infill(document) can fill: take it out.")
        codes = segment.codes if segment.codes is not None else self.image.encode(segment.picture, self.preparation)
        tokens = self.form.write(np.asarray(codes))
        return np.concatenate([[vocabulary.begin_image], tokens, [vocabulary.end_image]])

    def length(self, segment: Segment) -> int:
        """How many tokens a segment has. Pictures are not encoded for it, at most prepared."""
        if not isinstance(segment, Image):
            return len(self.encode_segment(segment))
        if self.form.sides:
            return self.image_tokens
        if segment.codes is not None:
            return self.form.length(*np.shape(segment.codes))
        width, height = self.image.prepare(segment.picture, self.preparation).size
        return self.form.length(height // self.image.config.factor, width // self.image.config.factor)

    def tokens_of_picture(self, picture: PIL.Image.Image) -> np.ndarray:
        """A picture of any size and mode to the tokens of one image, delimiters included: 1-D int64."""
        return self.encode_segment(Image(picture))

    def picture_of_tokens(self, tokens: Sequence[int] | np.ndarray) -> PIL.Image.Image:
        """The tokens of one image to its picture. Delimiters may be left out, and its sides where new lines give them.

        Raises ValueError on tokens that are not those of one whole image.
        """
        vocabulary = self.vocabulary
        inner = vocabulary.check(tokens)
        if len(inner) and inner[0] == vocabulary.begin_image:
            inner = inner[1:]
        if len(inner) and inner[-1] == vocabulary.end_image:
            inner = inner[:-1]
        lines = np.flatnonzero(inner == vocabulary.new_line)
        if len(lines) and vocabulary.modality[inner[0]] == Modality.IMAGE:
            inner = np.concatenate([[vocabulary.token_of_side(side) for side in (len(lines), int(lines[0]))], inner])
        document = self.decode([vocabulary.begin_image, *inner, vocabulary.end_image])
        if len(document.pictures) != 1 or len(document) != 1:
            raise ValueError(f"These are the tokens of {len(document)} segments, not of one image: use decode().")
        return document.pictures[0]

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


class _OpenImage:
    """An image of which not all tokens are read yet.

    `factor` is the pixels along a code's side, `picture` what the codes so far look like if that was drawn.
    """

    def __init__(self, form: ImageForm, factor: int) -> None:
        self.form, self.factor, self.sides = form, factor, form.sides
        self.tokens: list[int] = []
        self.picture: PIL.Image.Image | None = None

    @property
    def slot(self) -> Slot:
        """What comes next."""
        return self.form.slot(len(self.tokens), self.sides)

    @property
    def codes(self) -> np.ndarray:
        """The codes of the whole rows so far: rows x columns."""
        return self.form.read(self.tokens)

    def read(self, token: int) -> bool:
        """Takes one more token, and says whether it ends a row of codes. Raises ValueError where it cannot stand."""
        slot = self.slot
        if not self.form.ids[slot.kind][token]:
            raise ValueError(self._misfit(slot, token))
        if slot.kind is SlotKind.END:
            return False
        self.sides = self.form.advance(len(self.tokens), self.sides, token)
        self.tokens.append(token)
        if slot.kind is SlotKind.SIDE and len(self.sides) == 2:
            self._limit(*self.sides)
        if slot.kind is not SlotKind.CODE:
            return False
        self.picture = None
        return (slot.codes + 1) % self.sides[1] == 0

    def _misfit(self, slot: Slot, token: int) -> str:
        """Why a token cannot stand in a slot."""
        vocabulary, (_, codes, total) = self.form.vocabulary, slot
        if token == vocabulary.end_image:
            if slot.kind is SlotKind.SIDE:
                return "An image ends before its grid is given."
            if codes < total:
                return f"An image ends after {codes} codes instead of {total}."
            return f"An image ends after {self.sides[0] - 1} new lines instead of {self.sides[0]}."
        if slot.kind is SlotKind.SIDE:
            return f"An image begins with two tokens that tell its grid; token {token} tells none."
        if vocabulary.modality[token] != Modality.IMAGE:
            return f"Token {token} stands inside an image, after {codes} of its codes."
        if slot.kind is SlotKind.NEW_LINE:
            return f"A row of {self.sides[1]} codes goes on with token {token} instead of a new line."
        return f"An image goes on after its {total} codes, with token {token}."

    def _limit(self, rows: int, columns: int) -> None:
        width, height = columns * self.factor, rows * self.factor
        if width * height > LARGEST_AREA:
            raise ValueError(
                f"An image of {rows} x {columns} codes would be a picture of {width} x {height} pixels, more than "
                f"{LARGEST_AREA:,}."
            )


class PieceReader:
    """Reads tokens one by one and yields pieces: text as it grows, a picture after each row of codes.

    `document()` gives all that was read so far; an image not yet finished is left out.
    """

    def __init__(self, tokenizer: MixedModalTokenizer) -> None:
        self._tokenizer, self._vocabulary = tokenizer, tokenizer.vocabulary
        self._segments: list[Segment] = []
        self._pieces: list[int] = []
        self._start = self._yielded = self._whole = 0
        self._image: _OpenImage | None = None

    @property
    def in_image(self) -> bool:
        return self._image is not None

    @property
    def codes_read(self) -> int:
        return self._image.slot.codes if self._image else 0

    def read(self, token: int, pictures: bool = True) -> Iterator[Piece]:
        """The pieces that one more token gives: none, one, or two. `pictures=False` skips partial pictures.

        Raises ValueError for a token that cannot stand there, and at the start of an image that cannot be shown.
        """
        vocabulary = self._vocabulary
        if self._image is not None:
            if self._image.read(token) and pictures:
                yield self._piece(self._image)
            if token == vocabulary.end_image:
                codes, picture = self._image.codes, self._image.picture
                self._segments.append(Image(picture or self._tokenizer.image.decode(codes), codes))
                self._image = None
            return
        if vocabulary.modality[token] == Modality.TEXT:
            self._pieces.append(token - vocabulary.first_text)
            yield from self._grown_text()
            return
        if token == vocabulary.end_image or vocabulary.within_images[token]:
            raise ValueError(f"Token {token}, part of an image, stands outside an image.")
        yield from self._close_text()
        if token == vocabulary.begin_image:
            self._tokenizer.image.require_decoder()  # now, not when all of it is drawn
            self._image = _OpenImage(self._tokenizer.form, self._tokenizer.image.config.factor)
        elif token == vocabulary.end_turn:
            self._segments.append(EndTurn())

    def read_all(self, tokens: Iterable[int], pictures: bool = True) -> list[Piece]:
        """The pieces of many tokens that come at once: of each image only the last, with all rows there are."""
        pieces = list[Piece]()
        for token in tokens:
            pieces += self.read(token, pictures=False)
            if pictures and token == self._vocabulary.end_image:
                image = self._segments[-1]
                assert isinstance(image, Image) and image.codes is not None
                pieces.append(ImagePiece(image.picture, image.codes, len(image.codes)))
        if pictures and self._image is not None and len(self._image.codes):
            pieces.append(self._piece(self._image))
        return pieces

    def close(self) -> Iterator[Piece]:
        """What was still held back: text that ended inside a character."""
        yield from self._close_text()

    def document(self) -> Document:
        pending = self._spelled()
        return Document((*self._segments, *([Text(pending)] if pending else [])))

    def _spelled(self, start: int = 0) -> str:
        pieces = self._pieces[start:]
        return self._tokenizer.text.decode(pieces) if pieces else ""

    def _grown_text(self) -> Iterator[Piece]:
        """The text that the last piece added. Only pieces from `_start` on are decoded, `_yielded` characters of which
        were yielded, so that a long text costs no more a piece than a short one; `_whole` is where a character last
        ended.
        """
        text = self._spelled(self._start)
        ready = text.rstrip("\ufffd")  # an unfinished character waits for its other bytes
        if len(ready) > self._yielded:
            yield TextPiece(ready[self._yielded :])
            self._yielded = len(ready)
        if ready == text:
            if len(self._pieces) - self._start > LOOKBACK and self._whole > self._start:
                self._start = self._whole
                self._yielded = len(self._spelled(self._start))
            self._whole = len(self._pieces)

    def _close_text(self) -> Iterator[Piece]:
        rest = self._spelled(self._start)
        if len(rest) > self._yielded:
            yield TextPiece(rest[self._yielded :])
        if text := self._spelled():
            self._segments.append(Text(text))
        self._pieces, self._start, self._yielded, self._whole = [], 0, 0, 0

    def _piece(self, image: _OpenImage) -> ImagePiece:
        """The picture so far, rows not yet drawn filled with the code of the last cell above them."""
        rows, codes = image.sides[0], image.codes
        filled = np.concatenate([codes, np.repeat(codes[-1:], rows - len(codes), axis=0)])
        image.picture = self._tokenizer.image.decode(filled)
        return ImagePiece(image.picture, codes, rows)
