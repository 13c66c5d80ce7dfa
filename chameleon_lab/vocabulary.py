"""One vocabulary for text and images: blocks of ids, and the only place where special tokens are spelled."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from chameleon_lab.parts import require_fields

LARGEST_VOCABULARY = 2**24
"""Tokens: the largest in use have a fiftieth."""


def id_dtype(size: int) -> np.dtype:
    """The smallest of two and four bytes, little-endian, that holds ids below `size`."""
    return np.dtype("<u2" if size <= 2**16 else "<u4")


class Modality(enum.IntEnum):
    """What kind of thing a token stands for."""

    TEXT = 0
    IMAGE = 1
    SPECIAL = 2


_IMAGE_CODE = re.compile("IMGIMG([A-J]+)Z")
_SENTINEL = re.compile("<sentinel:([0-9]+)>")
_FIRST_NAMES = ("<s>", "<pad>", "</s>", "<unk>")
_END_IMAGE, _BEGIN_IMAGE, _END_TURN = "<eoss>", "<racm3:break>", "<reserved08706>"
_RESERVED = re.compile("<reserved[0-9]+>")
_SPECIAL = re.compile("|".join([*_FIRST_NAMES, _END_IMAGE, _BEGIN_IMAGE, _SENTINEL.pattern, _RESERVED.pattern]))
"""Names that only a special token has. Ordinary pieces of text may begin with `<` as well (`</`, `<=`), so the first
letter decides nothing."""


@dataclass(frozen=True)
class Vocabulary:
    """The shared id space of one model, laid out as Chameleon's (arXiv 2405.09818, section 2.2).

    ```
    0 1 2 3      <s> <pad> </s> <unk>
    4 ...        one token for each image code
    end_image, begin_image, sentinels, end_turn, reserved
    first_text   text pieces, up to `size`
    ```

    A *code* (index into the image codebook) becomes a *token* (id here) only through `tokens_of_codes`, and comes back
    only through `codes_of_tokens`. `permutation[code]` is the code's offset in the image block; the empty permutation
    is the identity, which is what the lab's own models use.

    With `new_line` and `first_grid`, two of the reserved tokens, images have any grid of even sides (Lumina-mGPT, arXiv
    2408.02657): `begin_image`, one token each for rows and columns (`token_of_side`), rows of codes each followed by
    `new_line`, `end_image`. Without them all images of a model have one grid, which no token tells.

    Raises ValueError when the blocks overlap or the permutation is not a bijection.
    """

    codes: int
    end_image: int
    begin_image: int
    first_sentinel: int
    sentinels: int
    end_turn: int
    first_text: int
    size: int
    permutation: tuple[int, ...] = ()
    new_line: int | None = None
    first_grid: int | None = None

    begin_document = 0
    pad = 1
    end_document = 2
    unknown = 3
    first_image = 4

    def __post_init__(self) -> None:
        require_fields(self)
        if self.size > LARGEST_VOCABULARY or not 0 <= self.sentinels <= self.size or self.codes > self.size:
            raise ValueError(
                f"No vocabulary has {self.size:,} tokens, {self.codes:,} codes and {self.sentinels:,} sentinels: the "
                f"most are {LARGEST_VOCABULARY:,}, and codes and sentinels are among them."
            )
        if (self.new_line is None) != (self.first_grid is None):
            raise ValueError(
                f"Images of any grid need both new_line and first_grid; got {self.new_line} and {self.first_grid}."
            )
        image_end = self.first_image + self.codes
        specials = (self.end_image, self.begin_image, self.end_turn)
        sentinels = range(self.first_sentinel, self.first_sentinel + self.sentinels)
        ids = [*specials, *sentinels]
        end, starts = self.first_text, ""
        if self.new_line is not None and self.first_grid is not None:
            ids.append(self.new_line)
            end, starts = self.first_grid, f"new_line is {self.new_line}, grid tokens start at {self.first_grid}, "
        in_order = self.codes >= 1 and image_end <= min(ids) <= max(ids) < end <= self.first_text <= self.size
        if not in_order or len(set(ids)) < len(ids) or (self.first_grid is not None and self.largest_side < 2):
            raise ValueError(
                f"Vocabulary blocks overlap: {self.codes} image codes end at {image_end}, specials are {specials}, "
                f"sentinels {sentinels.start}..{sentinels.stop - 1}, {starts}text starts at {self.first_text} of "
                f"{self.size}. Use Vocabulary.layout(codes, pieces) for a sound one."
            )
        if self.permutation and sorted(self.permutation) != list(range(self.codes)):
            raise ValueError(f"The code permutation must hold each of 0..{self.codes - 1} exactly once.")

    @classmethod
    def layout(cls, codes: int, pieces: int, sentinels: int = 8, largest_side: int = 0) -> Vocabulary:
        """A vocabulary of `codes` image codes and `pieces` text pieces in Chameleon's order, without unused ids.

        With a `largest_side` (in codes, even) images have any grid up to it, as Lumina-mGPT's.
        """
        first_sentinel = cls.first_image + codes + 2
        end_turn = first_sentinel + sentinels
        last = end_turn + 2 + largest_side // 2 if largest_side else end_turn
        return cls(
            codes=codes,
            end_image=first_sentinel - 2,
            begin_image=first_sentinel - 1,
            first_sentinel=first_sentinel,
            sentinels=sentinels,
            end_turn=end_turn,
            first_text=last + 1,
            size=last + 1 + pieces,
            new_line=end_turn + 1 if largest_side else None,
            first_grid=end_turn + 2 if largest_side else None,
        )

    @classmethod
    def from_pieces(cls, pieces: Mapping[str, int]) -> Vocabulary:
        """The blocks of a table of names to ids, such as `text_tokenizer.json`'s `model.vocab` or the `vocabulary_map`
        of a Hugging Face config.

        Delimiters, image codes and the code permutation go by their names; text is every id after the last special
        name. The end of a turn is `<reserved08706>`, or the first reserved token where a smaller table has no such.
        Which tokens make new lines and grids no table tells: `dataclasses.replace` them in, as `LUMINA` does.

        Raises ValueError for a table with gaps or names missing, and one whose blocks are not in the family's order.
        """
        pieces = _without_placeholder(pieces)
        names = _in_order(pieces)
        if tuple(names[:4]) != _FIRST_NAMES:
            raise ValueError(f"Ids 0..3 must be {', '.join(_FIRST_NAMES)}; this table has {', '.join(names[:4])}.")
        offsets = _offsets(pieces, cls.first_image)
        last = max(token for token, name in enumerate(names) if _SPECIAL.fullmatch(name))
        last += names[last + 1 : last + 2] == ["<image>"]  # transformers' name for a reserved token
        for token in range(cls.first_image + len(offsets), last):
            if not (names[token].startswith("<") and names[token].endswith(">")):
                raise ValueError(
                    f"Id {token} is the text {names[token]!r}, before the special {names[last]} at {last}: image "
                    "codes, special tokens and text must be three blocks in this order."
                )
        reserved = next((name for name in names if _RESERVED.fullmatch(name)), _END_TURN)
        end_turn = _END_TURN if _END_TURN in pieces else reserved
        for name in (_END_IMAGE, _BEGIN_IMAGE, end_turn):
            if name not in pieces:
                raise ValueError(f"This table has no {name}: it is not one of a mixed-modal model of this family.")
        sentinels = [(token, name) for token, name in enumerate(names) if _SENTINEL.fullmatch(name)]
        first_sentinel = sentinels[0][0] if sentinels else pieces[end_turn]
        if sentinels != [(first_sentinel + number, f"<sentinel:{number}>") for number in range(len(sentinels))]:
            raise ValueError(
                f"Sentinels must be one block, numbered from 0 in the order of their ids; it begins {sentinels[:3]}."
            )
        return cls(
            codes=len(offsets),
            end_image=pieces[_END_IMAGE],
            begin_image=pieces[_BEGIN_IMAGE],
            first_sentinel=first_sentinel,
            sentinels=len(sentinels),
            end_turn=pieces[end_turn],
            first_text=last + 1,
            size=len(names),
            permutation=() if offsets == list(range(len(offsets))) else tuple(offsets),
        )

    @property
    def pieces(self) -> int:
        """How many text pieces there are."""
        return self.size - self.first_text

    @property
    def breaks(self) -> tuple[int, ...]:
        """Tokens that no span of infilling crosses: an image's delimiters (`begin_image` is RA-CM3's `<break>`) and
        both ends of a document."""
        return self.begin_image, self.end_image, self.begin_document, self.end_document

    @cached_property
    def is_break(self) -> np.ndarray:
        """Whether each token is one of `breaks`: `size` booleans."""
        return np.isin(np.arange(self.size), self.breaks)

    def require_sentinels(self, count: int = 1) -> None:
        """Raises ValueError, saying what to do, where there are fewer sentinels than so many blanks need."""
        if count <= self.sentinels:
            return
        last = self.size if self.first_grid is None else self.first_grid
        spare = range(self.end_turn + 1, min(last, self.first_text))
        if self.new_line is not None:
            spare = range(spare.start, min(spare.stop, self.new_line))
        if len(spare) >= count:
            advice = (
                f"Its reserved tokens can be some: dataclasses.replace(vocabulary, first_sentinel={spare.start}, "
                f"sentinels={count}), and train the model on rearranged documents."
            )
        else:
            advice = f"Make one with Vocabulary.layout(codes, pieces, sentinels={max(8, count)}), and train with it."
        if self.sentinels > 1:
            advice = f"Fill {self.sentinels} at a time; for more at once: {advice[0].lower()}{advice[1:]}"
        number = "no sentinels" if not self.sentinels else f"{self.sentinels} sentinels"
        raise ValueError(f"This vocabulary has {number} and infilling needs {count}, one for each blank. {advice}")

    @cached_property
    def modality(self) -> np.ndarray:
        """The `Modality` of each token: `size` unsigned bytes. Decided by block, never by how a piece is spelled."""
        kinds = np.full(self.size, Modality.SPECIAL, np.uint8)
        kinds[self.first_image : self.first_image + self.codes] = Modality.IMAGE
        kinds[self.first_text :] = Modality.TEXT
        return kinds

    @cached_property
    def within_images(self) -> np.ndarray:
        """Whether each token stands only between an image's delimiters (codes, sides, new lines): `size` booleans."""
        within = self.modality == Modality.IMAGE
        if self.new_line is not None and self.first_grid is not None:
            within[self.new_line] = True
            within[self.first_grid + 1 : self.first_text] = True
        return within

    @cached_property
    def _code_to_token(self) -> np.ndarray:
        return self.first_image + np.asarray(self.permutation or range(self.codes), np.int64)

    @cached_property
    def _token_to_code(self) -> np.ndarray:
        inverse = np.empty(self.codes, np.int64)
        inverse[self._code_to_token - self.first_image] = np.arange(self.codes)
        return inverse

    def tokens_of_codes(self, codes: np.ndarray) -> np.ndarray:
        """Image codes of any shape to tokens of the same shape. Raises ValueError on a code outside the codebook."""
        codes = np.asarray(codes)
        if codes.size and codes.dtype.kind not in "iu":
            raise ValueError(f"Image codes must be integers, not {codes.dtype}.")
        if codes.size and (codes.min() < 0 or codes.max() >= self.codes):
            raise ValueError(f"Image codes must lie in 0..{self.codes - 1}; got {codes.min()}..{codes.max()}.")
        return self._code_to_token[codes]

    def codes_of_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """Image tokens of any shape to codes of the same shape. Raises ValueError on a token that is not an image's."""
        offsets = np.asarray(tokens) - self.first_image
        if offsets.size and (offsets.min() < 0 or offsets.max() >= self.codes):
            raise ValueError(
                f"Image tokens lie in {self.first_image}..{self.first_image + self.codes - 1}; "
                f"got {np.min(tokens)}..{np.max(tokens)}."
            )
        return self._token_to_code[offsets]

    @property
    def largest_side(self) -> int:
        """The most codes along a side that grid tokens can tell; 0 where there are none."""
        return 0 if self.first_grid is None else 2 * (self.first_text - 1 - self.first_grid)

    def token_of_side(self, codes: int) -> int:
        """The token for so many codes along a side. Raises ValueError on what no token tells."""
        if self.first_grid is None or codes % 2 or not 2 <= codes <= self.largest_side:
            raise ValueError(
                "This vocabulary has no grid tokens: all its images have one grid."
                if self.first_grid is None
                else f"A side of {codes} codes has no token: sides are even and at most {self.largest_side} codes."
            )
        return self.first_grid + codes // 2

    def is_grid(self, token: int) -> bool:
        """Whether a token tells a side of a grid."""
        return self.first_grid is not None and self.first_grid < token < self.first_text

    def side_of_token(self, token: int) -> int:
        """How many codes along a side a grid token tells. Raises ValueError on another token."""
        if self.first_grid is None or not self.is_grid(token):
            raise ValueError(f"Token {token} tells no side of a grid.")
        return 2 * (token - self.first_grid)

    def token_of_piece(self, piece: int) -> int:
        """Index of a text piece in its text tokenizer to the shared token."""
        return self.first_text + piece

    def check(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """The tokens as a 1-D int64 array. Raises ValueError on another shape, a non-integer, or an unknown id."""
        array = np.asarray(tokens)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ValueError(f"Tokens must be a 1-D array of integers; got shape {array.shape} of {array.dtype}.")
        if array.size and (array.min() < 0 or array.max() >= self.size):
            raise ValueError(f"Token ids must lie in 0..{self.size - 1}; got {array.min()}..{array.max()}.")
        return array.astype(np.int64)

    def spelling(self, token: int) -> str:
        """How the family spells a token that is not text: `<s>`, `IMGIMGFDZ`, `<racm3:break>`, ...

        The end of a turn, new lines and grids are reserved tokens. Raises ValueError for text and unknown ids.
        """
        if not 0 <= token < self.size:
            raise ValueError(f"Token ids must lie in 0..{self.size - 1}; got {token}.")
        if self.modality[token] == Modality.IMAGE:
            return _image_name(int(self._token_to_code[token - self.first_image]))
        names = {**dict(enumerate(_FIRST_NAMES)), self.end_image: _END_IMAGE, self.begin_image: _BEGIN_IMAGE}
        if token in names:
            return names[token]
        if self.first_sentinel <= token < self.first_sentinel + self.sentinels:
            return f"<sentinel:{token - self.first_sentinel}>"
        if token < self.first_text:
            return f"<reserved{token - 4:05d}>"
        raise ValueError(f"Token {token} is text: only the text tokenizer can spell it.")


def _image_name(code: int) -> str:
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


def _without_placeholder(pieces: Mapping[str, int]) -> Mapping[str, int]:
    """The table with the name of the sentinel that transformers' `<image>` stands for, where it is one: the lab's own
    models have no reserved token to spare."""
    token = pieces.get("<image>")
    sentinels = sum(1 for name in pieces if isinstance(name, str) and _SENTINEL.fullmatch(name))
    before = pieces.get(f"<sentinel:{sentinels - 1}>" if sentinels else _BEGIN_IMAGE)
    if not (isinstance(token, int) and isinstance(before, int) and token == before + 1):
        return pieces
    return {f"<sentinel:{sentinels}>" if name == "<image>" else name: token for name, token in pieces.items()}


def _in_order(pieces: Mapping[str, int]) -> list[str]:
    """The names by id. Raises ValueError where an id is missing, held twice, or no integer."""
    names: dict[int, str] = {}
    for name, token in pieces.items():
        if isinstance(token, bool) or not isinstance(token, int):
            raise ValueError(f"The id of {name!r} in this table of pieces is {token!r}, not an integer.")
        if token in names:
            raise ValueError(f"This table of pieces gives id {token} twice, to {names[token]!r} and {name!r}.")
        names[token] = name
    gaps = max(names, default=-1) + 1 - len(names)
    if gaps or len(names) < 4 or min(names) < 0:
        first = [str(token) for token in range(len(names) + 1) if token not in names][:3]
        fault = f"{gaps} names are missing, first for {', '.join(first)}" if gaps > 0 else f"there are {len(names)}"
        raise ValueError(f"A table of pieces must name each id from 0 on; in this one {fault}. Is the file whole?")
    return [names[token] for token in range(len(names))]


def _offsets(pieces: Mapping[str, int], first_image: int) -> list[int]:
    """Each code's offset in the image block. Raises ValueError where names are missing or stand elsewhere."""
    codes = [name for name in pieces if _IMAGE_CODE.fullmatch(name)]
    expected = [_image_name(code) for code in range(len(codes))]
    if not codes:
        raise ValueError("This table has no image tokens (IMGIMGAZ, ...): it is a text model's.")
    missing = [name for name in expected if name not in pieces]
    if missing:
        raise ValueError(f"Of {len(codes)} image tokens the name {missing[0]} is missing: codes are numbered from 0.")
    offsets = [pieces[name] - first_image for name in expected]
    if sorted(offsets) != list(range(len(codes))):
        raise ValueError(
            f"Image tokens must be one block from id {first_image} on; these {len(codes)} stand at "
            f"{min(offsets) + first_image}..{max(offsets) + first_image}."
        )
    return offsets


CHAMELEON = Vocabulary(
    codes=8192,
    end_image=8196,
    begin_image=8197,
    first_sentinel=8198,
    sentinels=512,
    end_turn=8710,
    first_text=16384,
    size=65536,
)
"""The released vocabulary's blocks, ids read from public loaders; nobody here had the real file."""

LUMINA = replace(CHAMELEON, new_line=8803, first_grid=8804)
"""The same ids as Lumina-mGPT uses them: images of any grid."""
