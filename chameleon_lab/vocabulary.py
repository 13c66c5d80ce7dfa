"""One vocabulary for text and images: blocks of ids, and the only place where special tokens are spelled."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


class Modality(enum.IntEnum):
    """What kind of thing a token stands for."""

    TEXT = 0
    IMAGE = 1
    SPECIAL = 2


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

    begin_document = 0
    pad = 1
    end_document = 2
    unknown = 3
    first_image = 4

    def __post_init__(self) -> None:
        image_end = self.first_image + self.codes
        specials = (self.end_image, self.begin_image, self.end_turn)
        sentinels = range(self.first_sentinel, self.first_sentinel + self.sentinels)
        taken = (*specials, *sentinels)
        in_order = self.codes >= 1 and image_end <= min(taken) <= max(taken) < self.first_text <= self.size
        if not in_order or len(set(taken)) < len(taken):
            raise ValueError(
                f"Vocabulary blocks overlap: {self.codes} image codes end at {image_end}, specials are {specials}, "
                f"sentinels {sentinels.start}..{sentinels.stop - 1}, text starts at {self.first_text} of {self.size}. "
                "Use Vocabulary.layout(codes, pieces) for a sound one."
            )
        if self.permutation and sorted(self.permutation) != list(range(self.codes)):
            raise ValueError(f"The code permutation must hold each of 0..{self.codes - 1} exactly once.")

    @classmethod
    def layout(cls, codes: int, pieces: int, sentinels: int = 8) -> Vocabulary:
        """A vocabulary of `codes` image codes and `pieces` text pieces in Chameleon's order, without unused ids."""
        first_sentinel = cls.first_image + codes + 2
        end_turn = first_sentinel + sentinels
        return cls(
            codes=codes,
            end_image=first_sentinel - 2,
            begin_image=first_sentinel - 1,
            first_sentinel=first_sentinel,
            sentinels=sentinels,
            end_turn=end_turn,
            first_text=end_turn + 1,
            size=end_turn + 1 + pieces,
        )

    @property
    def pieces(self) -> int:
        """How many text pieces there are."""
        return self.size - self.first_text

    @cached_property
    def modality(self) -> np.ndarray:
        """The `Modality` of each token: `size` unsigned bytes. Decided by block, never by how a piece is spelled."""
        kinds = np.full(self.size, Modality.SPECIAL, np.uint8)
        kinds[self.first_image : self.first_image + self.codes] = Modality.IMAGE
        kinds[self.first_text :] = Modality.TEXT
        return kinds

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

        The end of a turn is one of the reserved tokens. Raises ValueError for text and unknown ids.
        """
        if not 0 <= token < self.size:
            raise ValueError(f"Token ids must lie in 0..{self.size - 1}; got {token}.")
        if self.modality[token] == Modality.IMAGE:
            code = int(self._token_to_code[token - self.first_image])
            return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"
        names = {0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>"}
        names |= {self.end_image: "<eoss>", self.begin_image: "<racm3:break>"}
        if token in names:
            return names[token]
        if self.first_sentinel <= token < self.first_sentinel + self.sentinels:
            return f"<sentinel:{token - self.first_sentinel}>"
        if token < self.first_text:
            return f"<reserved{token - 4:05d}>"
        raise ValueError(f"Token {token} is text: only the text tokenizer can spell it.")


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
"""The released vocabulary's blocks, ids read from public loaders; the real file was not seen."""
