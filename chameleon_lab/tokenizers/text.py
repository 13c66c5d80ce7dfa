"""Text tokenizers: text to pieces and back, without loss."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers

from chameleon_lab.files import intact, parse_json, read_bytes, text_of_file
from chameleon_lab.tokenizers.family_json import LARGEST_TABLE, plain_bpe
from chameleon_lab.vocabulary import Vocabulary


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
            for piece in range(self._processor.vocab_size()):
                self._processor.id_to_piece(piece)  # which raises for one that is no UTF-8
        except (RuntimeError, ValueError, IndexError) as error:
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
        data = read_bytes(path, LARGEST_TABLE)
        with intact(path):
            return cls(data)

    @property
    def size(self) -> int:
        return self._processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        text.encode()  # raises UnicodeEncodeError, as `ByteTokenizer` does, where sentencepiece has no words for it
        if _SPACE not in text:
            return self._processor.encode(text)
        # sentencepiece would read a written U+2581 as a space: a character that no piece knows goes in its place, and
        # that character's three bytes come out as those of U+2581.
        strange = (letter for letter in map(chr, range(0xE000, 0xF8FF)) if self._processor.piece_to_id(letter) == 0)
        stand_in = next(letter for letter in strange if letter not in text)
        pieces = self._processor.encode(text.replace(_SPACE, stand_in))
        foreign, own = self._byte_pieces(stand_in), self._byte_pieces(_SPACE)
        for place in range(len(pieces) - 2):
            if pieces[place : place + 3] == foreign:
                pieces[place : place + 3] = own
        return pieces

    def _byte_pieces(self, letter: str) -> list[int]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in letter.encode()]

    def decode(self, pieces: Sequence[int]) -> str:
        return self._processor.decode([int(piece) for piece in pieces])

    def spelling(self, piece: int) -> str:
        """The piece as the model spells it, a leading space shown as U+2581."""
        return self._processor.id_to_piece(piece)


class JsonTokenizer:
    """The family's text tokenizer: a `text_tokenizer.json` (Meta) or `tokenizer.json` (Hugging Face), a byte-level BPE.

    The file's table names the tokens of the whole vocabulary; `vocabulary` is what it says of their blocks. The BPE is
    given the text block alone, as pieces `id - first_text`, so that no special or image token is ever found in a text:
    who types `<racm3:break>` or `IMGIMGAZ` gets letters. Pieces that begin with `<` are as any others. No token is
    added to mark the beginning.

    Raises ValueError for what is no such file. `json` is the file as it was given.
    """

    def __init__(self, json: str) -> None:
        self.json = json
        plain = plain_bpe(parse_json(json, "It is no tokenizer.json: the text"))
        self.vocabulary = Vocabulary.from_pieces(_table(plain))
        with intact("The tokenizer, as the tokenizers library reads it,"):  # which raises bare Exceptions, and panics
            self._tokenizer = tokenizers.Tokenizer.from_str(_text_only(plain, self.vocabulary))

    @classmethod
    def load(cls, path: Path | str) -> JsonTokenizer:
        """The tokenizer in a file. Raises ValueError, naming the file, when there is none that can be read."""
        try:
            return cls(text_of_file(path, LARGEST_TABLE))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} holds no text tokenizer of the family: {error}") from error

    @property
    def size(self) -> int:
        return self.vocabulary.pieces

    def encode(self, text: str) -> list[int]:
        """Raises UnicodeEncodeError on half a surrogate pair, ValueError on characters that no piece spells."""
        text.encode()
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        pieces = encoding.ids
        if self.size in pieces:
            start, end = encoding.offsets[pieces.index(self.size)]
            raise ValueError(f"This text tokenizer has no piece for {text[start:end]!r}: its table lacks some bytes.")
        return pieces

    def decode(self, pieces: Sequence[int]) -> str:
        return self._tokenizer.decode([int(piece) for piece in pieces], skip_special_tokens=False)

    def spelling(self, piece: int) -> str:
        """The piece as the file spells it: bytes as GPT-2's letters, a leading space as U+0120."""
        name = self._tokenizer.id_to_token(piece) if 0 <= piece < self.size else None
        if name is None:
            raise ValueError(f"Pieces lie in 0..{self.size - 1}; got {piece}.")
        return name


_UNKNOWN = "\ue000"
"""A name for what no piece spells that cannot come up in bytes spelled as letters."""


def _table(plain: dict[str, Any]) -> dict[str, int]:
    """Names to ids: the BPE's and the added tokens', which may or may not stand among them."""
    return plain["model"]["vocab"] | {token["content"]: token["id"] for token in plain["added_tokens"]}


def _text_only(plain: dict[str, Any], vocabulary: Vocabulary) -> str:
    """The tokenizer's JSON with the text block alone, counted from 0, and nothing that adds, cuts or varies tokens."""
    first = vocabulary.first_text
    pieces = {name: token - first for name, token in _table(plain).items() if token >= first}
    merges = [merge for merge in plain["model"]["merges"] if {*merge, "".join(merge)} <= pieces.keys()]
    model = plain["model"] | {
        "type": "BPE",
        "vocab": pieces | {_UNKNOWN: len(pieces)},
        "merges": merges,
        "unk_token": _UNKNOWN,
        "fuse_unk": False,
        "dropout": None,
    }
    added = [token | {"id": token["id"] - first} for token in plain["added_tokens"] if token["id"] >= first]
    parts = {name: plain[name] for name in ("normalizer", "pre_tokenizer", "decoder")}
    return json.dumps(
        {"version": "1.0", "model": model, "added_tokens": added, **parts}
        | {"post_processor": None, "truncation": None, "padding": None}
    )
