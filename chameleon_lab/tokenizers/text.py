"""Text tokenizers: text to pieces and back, without loss."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece


class TextTokenizer(Protocol):
    """Turns text into piece indices in 0..size-1 and back: `decode(encode(text)) == text`."""

    @property
    def size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, pieces: Sequence[int]) -> str: ...


class ByteTokenizer:
    """One piece a UTF-8 byte: the smallest text tokenizer that can say anything."""

    size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, pieces: Sequence[int]) -> str:
        return bytes(pieces).decode(errors="replace")


_SPACE = "\u2581"
"""How sentencepiece spells a space."""


class SentencePieceTokenizer:
    """A sentencepiece BPE with byte fallback and no normalization, so that any text survives a round trip.

    sentencepiece's own `<unk>` is never produced (bytes stand in) and keeps index 0.
    """

    def __init__(self, model: bytes) -> None:
        if not model:
            raise ValueError("A sentencepiece model cannot be empty.")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError("These bytes are not a sentencepiece model.") from error
        self.model = model

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> SentencePieceTokenizer:
        """A BPE of `size` pieces learned from texts, 256 of them bytes. Raises ValueError when texts are too few."""
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=written,
                vocab_size=size,
                model_type="bpe",
                byte_fallback=True,
                character_coverage=1.0,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                split_digits=True,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(f"A BPE of {size} pieces cannot be learned from these texts: {error}") from error
        return cls(written.getvalue())

    @classmethod
    def load(cls, path: Path | str) -> SentencePieceTokenizer:
        return cls(Path(path).read_bytes())

    @property
    def size(self) -> int:
        return self._processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        text.encode()  # raises UnicodeEncodeError, as `ByteTokenizer` does, where sentencepiece has no words for it
        if _SPACE not in text:
            return self._processor.encode(text)
        # sentencepiece would read a written U+2581 as a space: a character that no piece knows goes in its place, and
        # that character's three bytes come out as those of U+2581.
        stand_in = next(letter for letter in map(chr, range(0xE000, 0xF8FF)) if letter not in text)
        pieces = self._processor.encode(text.replace(_SPACE, stand_in))
        foreign, meant = self._byte_pieces(stand_in), self._byte_pieces(_SPACE)
        for place in range(len(pieces) - 2):
            if pieces[place : place + 3] == foreign:
                pieces[place : place + 3] = meant
        return pieces

    def _byte_pieces(self, letter: str) -> list[int]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in letter.encode()]

    def decode(self, pieces: Sequence[int]) -> str:
        return self._processor.decode([int(piece) for piece in pieces])

    def spelling(self, piece: int) -> str:
        """The piece as the model spells it, a leading space shown as U+2581."""
        return self._processor.id_to_piece(piece)
