"""What foreign folders say of text and of the vocabulary: a table of names to ids, and the file of a text tokenizer.

The family keeps text tokenizer and vocabulary in one `tokenizers` JSON (Meta: `text_tokenizer.json`, Hugging Face:
`tokenizer.json`). A model of this lab with sentencepiece gets one that gives the same ids, for other programs, and its
sentencepiece model beside it, which is what the lab reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import sentencepiece

from chameleon_lab.checkpoints import names
from chameleon_lab.checkpoints.companion import Companion
from chameleon_lab.checkpoints.vqgans import IMAGE_CONFIGS, IMAGE_WEIGHTS
from chameleon_lab.tokenizers.family_json import LETTERS_TO_SPACES, SPACE, SPACES_TO_LETTERS
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import (
    ByteTokenizer,
    JsonTokenizer,
    SentencePieceTokenizer,
    TextTokenizer,
)
from chameleon_lab.vocabulary import CHAMELEON, Vocabulary

TABLES = ("text_tokenizer.json", "tokenizer.json")
SENTENCEPIECE = "text_tokenizer.model"
IMAGE = "<image>"
"""What Hugging Face calls the token for which a picture's codes will stand: see `image_placeholder`."""


# Reading


def read_text(
    folders: Iterable[Path],
    size: int,
    companion: Companion,
    source: Path,
    table: Mapping[str, int] | None = None,
    chosen: Path | None = None,
) -> tuple[TextTokenizer | None, Vocabulary]:
    """The text tokenizer of the first folder (or file) that holds a fitting one, and the vocabulary around it.

    It is of `size` tokens, or fewer where the model's rows are padded. `table` is the config's own of names to ids,
    and `chosen` the place that a user named, whose tokenizer is taken at its word. Raises ValueError where they
    contradict one another, and where nothing tells what the tokens are.
    """
    text = _fitting_text(folders, size, chosen)
    vocabulary = text.vocabulary if isinstance(text, JsonTokenizer) else None
    if vocabulary is None and table:
        vocabulary = Vocabulary.from_pieces(table)
    saved = companion.vocabulary
    if saved is not None and (vocabulary is None or replace(saved, new_line=None, first_grid=None) == vocabulary):
        vocabulary = saved
    if vocabulary is None and names.is_padding(size, CHAMELEON.size):
        vocabulary = CHAMELEON
    if vocabulary is None:
        raise ValueError(
            f"{source} does not tell what its {size} tokens are: it has no table of names and no text tokenizer. Name "
            "the folder that has text_tokenizer.json: Chameleon.load(folder, tokenizer=...)."
        )
    if not fits(vocabulary, size):
        raise ValueError(
            f"{source} holds a model of {size} tokens, and its table names {vocabulary.size}: they do not belong "
            "together. Name the right tokenizer's folder: Chameleon.load(folder, tokenizer=...)."
        )
    if companion.text == "bytes" and vocabulary == saved and vocabulary.pieces == ByteTokenizer.size:
        text = ByteTokenizer()
    return text, vocabulary


def _fitting_text(
    places: Iterable[Path], size: int, chosen: Path | None
) -> JsonTokenizer | SentencePieceTokenizer | None:
    """The first text tokenizer whose table is of the model's size, or else the first; None where there is none.

    Others lie in many folders, such as a Llama's `tokenizer.json`: one that cannot be read is passed over for one that
    can, unless the user named it.
    """
    first: JsonTokenizer | SentencePieceTokenizer | None = None
    fault: ValueError | None = None
    for place in places:
        for path in [place] if place.is_file() else [place / name for name in (SENTENCEPIECE, *TABLES)]:
            if not path.is_file() or path.suffix in (
                *IMAGE_WEIGHTS,
                *IMAGE_CONFIGS,
            ):  # a user may name an image tokenizer's file
                continue
            try:
                text = SentencePieceTokenizer.load(path) if path.suffix == ".model" else JsonTokenizer.load(path)
            except ValueError as error:
                if place == chosen:
                    raise
                fault = fault or error
                continue
            if isinstance(text, SentencePieceTokenizer):
                return (None if place.is_file() else _grown_table(path, text.size, size)) or text
            if place == chosen or fits(text.vocabulary, size):
                return text
            first = first or text
    if first is None and fault is not None:
        raise fault
    return first


def _grown_table(sentencepiece: Path, pieces: int, size: int) -> JsonTokenizer | None:
    """The table beside a file of SentencePiece's that has tokens more and fits the model.

    So it is where `transformers` read a folder of the lab, was given new tokens, and saved it there: it knows nothing
    of the other file, which stays.
    """
    for name in TABLES:
        if (path := sentencepiece.with_name(name)).is_file():
            with suppress(ValueError):
                table = JsonTokenizer.load(path)
                if table.size > pieces and fits(table.vocabulary, size):
                    return table
    return None


def fits(vocabulary: Vocabulary, size: int) -> bool:
    """Whether a model of `size` rows can be one of a vocabulary."""
    return vocabulary.size == size or names.is_padding(size, vocabulary.size)


# Writing


def names_of(vocabulary: Vocabulary, text: TextTokenizer | None, placeholder: bool = False) -> dict[str, int]:
    """A name for each id: the family's, and the text tokenizer's own for its pieces if it has a table of them.

    With `placeholder` the token kept for pictures is called `<image>`, if there is one.
    """
    spellings = [vocabulary.spelling(token) for token in range(vocabulary.first_text)]
    image = image_placeholder(vocabulary)
    if placeholder and image is not None:
        spellings[image] = IMAGE
    if isinstance(text, JsonTokenizer):
        spellings += [text.spelling(piece) for piece in range(text.size)]
    elif isinstance(text, ByteTokenizer):
        spellings += _letters_of_bytes()
    elif isinstance(text, SentencePieceTokenizer):
        spellings += _spellings_of_pieces(text, spellings)
    else:
        spellings += [f"<piece:{piece}>" for piece in range(vocabulary.pieces)]
    return {name: token for token, name in enumerate(spellings)}


def image_placeholder(vocabulary: Vocabulary) -> int | None:
    """The token that stands for a picture to come: the reserved one after the end of a turn, or else the last sentinel,
    which a prompt to the port has no use for; None where images have grids of their own and none is reserved."""
    token = vocabulary.end_turn + 1
    if token not in (vocabulary.first_text, vocabulary.new_line, vocabulary.first_grid):
        return token
    last = vocabulary.first_sentinel + vocabulary.sentinels - 1
    return last if vocabulary.sentinels and vocabulary.first_grid is None else None


def write_text_tokenizer(text: TextTokenizer, vocabulary: Vocabulary, folder: Path, name: str) -> bool:
    """Writes the text tokenizer under a name as the JSON that other programs read, and a sentencepiece model besides.

    Whether a JSON was written.
    """
    json_text = text if isinstance(text, JsonTokenizer) else None
    if isinstance(text, SentencePieceTokenizer):
        (folder / SENTENCEPIECE).write_bytes(text.model)
        json_text = JsonTokenizer(json_of_sentencepiece(text, vocabulary))
    if isinstance(text, ByteTokenizer):
        json_text = JsonTokenizer(_json_of_bytes(vocabulary))
    if json_text is not None:
        (folder / name).write_text(
            _renamed_placeholder(json_text, vocabulary, port=name == "tokenizer.json"), encoding="utf-8"
        )
    return json_text is not None


def _renamed_placeholder(text: JsonTokenizer, vocabulary: Vocabulary, port: bool) -> str:
    """The JSON as Hugging Face's port wants it, or Meta's: what begins a text, and what the picture's token is called.

    All else stays as it was, letter by letter, so that the way there and back changes nothing.
    """
    image = image_placeholder(vocabulary)
    pairs = [("null", _BEGINS)]
    pairs = [
        (f'"post_processor":{gap}{old}', f'"post_processor":{gap}{new}') for old, new in pairs for gap in ("", " ")
    ]
    if image is not None and (json.dumps(IMAGE) in text.json) != port:
        pairs.append((json.dumps(vocabulary.spelling(image)), json.dumps(IMAGE)))
    written = text.json
    for old, new in pairs:
        written = written.replace(old, new) if port else written.replace(new, old)
    return written


_BEGINS = json.dumps(
    {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<s>", "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [Vocabulary.begin_document], "tokens": ["<s>"]}},
    }
)
"""Has a text begin with `<s>`: Meta's programs put it there themselves, the port leaves it to the tokenizer."""


def _json_of_bytes(vocabulary: Vocabulary) -> str:
    """`ByteTokenizer` as a `tokenizers` JSON: a byte-level BPE without merges."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    table = names_of(vocabulary, ByteTokenizer())
    return _json_of_bpe(vocabulary, table, {"vocab": table}, pre_tokenizer=level, decoder=level)


def json_of_sentencepiece(text: SentencePieceTokenizer, vocabulary: Vocabulary) -> str:
    """A sentencepiece BPE as a `tokenizers` JSON that gives the same ids.

    Pieces merge in the order of their scores, from whatever two pieces make them, and bytes stand in for what no piece
    spells. Only which of two overlapping pairs that make the same piece comes first (`aa` and `a` in `aaaa`) is
    decided by the pair there, and by the place here.
    """
    table = names_of(vocabulary, text)
    pieces = set(list(table)[vocabulary.first_text :])
    model = sentencepiece.SentencePieceProcessor(model_proto=text.model)
    learned = [name for name in _spellings_of_pieces(text, ()) if name in pieces and len(name) > 1]
    learned = [name for name in learned if not _BYTE_OR_PIECE.fullmatch(name)]
    scores = {name: model.get_score(table[name] - vocabulary.first_text) for name in learned}
    merges = [
        f"{name[:cut]} {name[cut:]}"  # the older spelling, which tokenizers 0.19 reads as well
        for name in sorted(learned, key=lambda name: -scores[name])
        for cut in range(1, len(name))
        if name[:cut] in pieces and name[cut:] in pieces
    ]
    return _json_of_bpe(
        vocabulary,
        table,
        {"vocab": table, "merges": merges, "byte_fallback": True},
        normalizer=SPACES_TO_LETTERS,
        decoder=LETTERS_TO_SPACES,
    )


def with_words(tokenizer: MixedModalTokenizer, words: Sequence[str]) -> MixedModalTokenizer:
    """A tokenizer with further words, a token each, behind all others: what was a token stays the one it was.

    `replace(experiment, data=Scenes(with_words(lab.tokenizer, ["teal"])), begins_from=lab)` trains a model with them
    (see `training.beginning`). Its text tokenizer is a JSON one, as Hugging Face's, whatever it was. Raises ValueError
    for words that are tokens already, come twice, or are none.
    """
    text, vocabulary = tokenizer.text, tokenizer.vocabulary
    match text:
        case JsonTokenizer():
            plain = json.loads(text.json)
        case SentencePieceTokenizer():
            plain = json.loads(json_of_sentencepiece(text, vocabulary))
        case ByteTokenizer():
            plain = json.loads(_json_of_bytes(vocabulary))
        case _:
            raise ValueError(f"No word can be added to a {type(text).__name__}: take one of the lab's text tokenizers.")
    names = {**plain["model"]["vocab"], **{each["content"]: each["id"] for each in plain["added_tokens"]}}
    if not words or isinstance(words, str) or any(not word or word != word.strip() or word in names for word in words):
        there = [word for word in words if word in names]
        raise ValueError(
            "Words to be added come in a list, none empty, with a space at its edge, or a token already: "
            f"{there or words!r}."
        )
    if len({*words}) < len(words):
        raise ValueError(f"A word comes twice among {list(words)}.")
    # Normalized, a word of a sentencepiece model comes with the space before it; otherwise what follows would get one.
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    plain["added_tokens"] += [
        {"id": vocabulary.size + place, "content": word, **flags} for place, word in enumerate(words)
    ]
    grown = JsonTokenizer(json.dumps(plain))
    wider = replace(vocabulary, size=vocabulary.size + len(words))
    image = tokenizer.image if tokenizer.can_read else None
    return MixedModalTokenizer(grown, image, wider, grid=tokenizer.grid, source=tokenizer.source)


_BYTE_OR_PIECE = re.compile(r"<0x[0-9A-F]{2}>|<piece:[0-9]+>")


def _spellings_of_pieces(text: SentencePieceTokenizer, others: Collection[str]) -> list[str]:
    """A name for each piece: its letters, spaces as `SPACE`, bytes as `<0x41>`; what it cannot share with `others`, and
    what spells nothing, by its number."""
    model = sentencepiece.SentencePieceProcessor(model_proto=text.model)
    spellings: list[str] = []
    for piece in range(text.size):
        name = model.id_to_piece(piece)
        silent = model.is_unknown(piece) or model.is_control(piece) or model.is_unused(piece)
        odd = _BYTE_OR_PIECE.fullmatch(name) and not model.is_byte(piece)
        name = name.replace("\u2581", SPACE)
        spellings.append(f"<piece:{piece}>" if silent or odd or name in others else name)
    return spellings


def _json_of_bpe(vocabulary: Vocabulary, table: dict[str, int], model: dict[str, Any], **parts: Any) -> str:
    """A `tokenizers` JSON of a BPE and what is around it, the names before the text's as special added tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    plain = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token, "content": name, **flags} for name, token in table.items() if token < vocabulary.first_text
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        **parts,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "merges": [],
            **model,
        },
    }
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def _letters_of_bytes() -> list[str]:
    """GPT-2's letter for each byte: itself where it prints, otherwise the next one from U+0100 on."""
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in prints else next(hidden)) for byte in range(256)]
