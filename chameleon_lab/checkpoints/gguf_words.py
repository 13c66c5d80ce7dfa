"""Text tokenizers as llama.cpp has them, in the header of a GGUF file.

It has the family's byte-level BPE (`gpt2`, with the pre-tokenizer `chameleon`) and sentencepiece's BPE (`llama`). Its
pre-tokenizers are a list of names, so that one of a person's own cannot be written. Special tokens and image tokens are
control tokens: a text that spells one stays letters, as in the lab.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from typing import Any

import sentencepiece

from chameleon_lab.checkpoints.text_files import names_of
from chameleon_lab.files import parse_json
from chameleon_lab.tokenizers.family_json import SPACE, plain_bpe
from chameleon_lab.tokenizers.text import ByteTokenizer, JsonTokenizer, SentencePieceTokenizer, TextTokenizer
from chameleon_lab.vocabulary import Modality, Vocabulary

log = logging.getLogger(__name__)

NORMAL, CONTROL, UNUSED, BYTE_PIECE = 1, 3, 5, 6
"""Kinds of tokens, as llama.cpp numbers them."""

_LETTERS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_ISOLATED: dict[str, Any] = {"type": "Split", "behavior": "Isolated", "invert": False}
FAMILY_CUTS: dict[str, Any] = {
    "type": "Sequence",
    "pretokenizers": [
        _ISOLATED | {"pattern": {"Regex": "<sentinel:[0-9]+>"}},
        _ISOLATED | {"pattern": {"Regex": "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"}},
        _ISOLATED | {"pattern": {"Regex": "([\t\n]|    |  )"}},
        {"type": "Digits", "individual_digits": True},
        {"type": "Punctuation", "behavior": "Isolated"},
        _LETTERS,
    ],
}
"""How the release's text tokenizer cuts a text before its merges, as llama.cpp's `chameleon` does."""

PRE_TOKENIZERS = {"chameleon": FAMILY_CUTS, "gpt-2": _LETTERS}
GGUF_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}END{% endfor %}"
)
"""How a conversation becomes a text, each turn with its end. Roles are not written: they alternate."""


def header_of_words(text: TextTokenizer | None, vocabulary: Vocabulary, padding: int) -> dict[str, Any]:
    """The keys of a tokenizer, without `tokenizer.`, for a vocabulary with `padding` unused tokens behind the images'.

    Raises ValueError for a text tokenizer of a kind that llama.cpp has not.
    """
    if text is None:
        return {"ggml.model": "none"}
    spellings = list(names_of(vocabulary, text))
    kinds = [CONTROL if kind != Modality.TEXT else NORMAL for kind in vocabulary.modality]
    scores: list[float] | None = None
    if isinstance(text, SentencePieceTokenizer):
        spelled, scores = _sentencepiece(text, spellings, kinds, vocabulary.first_text)
        model: dict[str, Any] = {"ggml.model": "llama", "ggml.add_space_prefix": True}
        model["ggml.remove_extra_whitespaces"] = False
    else:
        spelled, (cuts, merges) = spellings, _bpe_merges(text, set(spellings[vocabulary.first_text :]))
        model = {"ggml.model": "gpt2", "ggml.pre": cuts, "ggml.merges": merges}
    image_end = Vocabulary.first_image + vocabulary.codes
    unused = [f"[PAD{token}]" for token in range(image_end, image_end + padding)]
    end_turn = vocabulary.end_turn + padding
    header = model | {
        "ggml.tokens": [*spelled[:image_end], *unused, *spelled[image_end:]],
        "ggml.token_type": [*kinds[:image_end], *[UNUSED] * padding, *kinds[image_end:]],
        "ggml.bos_token_id": vocabulary.begin_document,
        "ggml.eos_token_id": vocabulary.end_document,
        "ggml.unknown_token_id": vocabulary.unknown,
        "ggml.padding_token_id": vocabulary.pad,
        "ggml.eot_token_id": end_turn,
        "ggml.add_bos_token": True,
        "ggml.add_eos_token": False,
        "chat_template": GGUF_CHAT.replace("END", vocabulary.spelling(vocabulary.end_turn)),
    }
    if scores is not None:
        header["ggml.scores"] = [*scores[:image_end], *[0.0] * padding, *scores[image_end:]]
    return header


def _sentencepiece(
    text: SentencePieceTokenizer, spellings: list[str], kinds: list[int], first: int
) -> tuple[list[str], list[float]]:
    """Spellings and scores of a sentencepiece model's tokens; `kinds` learns which are bytes, and which nothing."""
    model = sentencepiece.SentencePieceProcessor(model_proto=text.model)
    scores = [0.0] * len(spellings)
    for piece in range(text.size):
        scores[first + piece] = model.get_score(piece)
        if model.is_byte(piece):
            kinds[first + piece] = BYTE_PIECE
        elif spellings[first + piece] == f"<piece:{piece}>":
            kinds[first + piece] = UNUSED
    return [name.replace(SPACE, "\u2581") for name in spellings], scores


def _bpe_merges(text: TextTokenizer, pieces: set[str]) -> tuple[str, list[str]]:
    """The name of the pre-tokenizer, and the merges, of a byte-level BPE; none of them makes anything but pieces."""
    if isinstance(text, ByteTokenizer):
        return "gpt-2", ["<s> </s>"]  # llama.cpp wants one at least: this one's parts no text has
    if not isinstance(text, JsonTokenizer):
        raise ValueError(
            f"A {type(text).__name__} cannot be written as GGUF, which has sentencepiece's and BPEs alone."
        )
    plain = plain_bpe(parse_json(text.json, "The text tokenizer"))
    if plain["normalizer"] is not None or plain["model"]["byte_fallback"] or plain["model"]["ignore_merges"]:
        raise ValueError(
            "This text tokenizer is a sentencepiece model's JSON, or has flags that llama.cpp has no word for: load "
            "the model with text_tokenizer.model beside it, and save that."
        )
    cuts = next((name for name, cuts in PRE_TOKENIZERS.items() if plain["pre_tokenizer"] == cuts), None)
    if cuts is None:
        log.warning(
            "llama.cpp cannot cut texts as this text tokenizer does, and will cut them as Chameleon's own: some texts "
            "get other tokens there than here. Give it tokens of lab.encode where that matters."
        )
    return cuts or "chameleon", [
        " ".join(merge) for merge in plain["model"]["merges"] if {*merge, "".join(merge)} <= pieces
    ]


def saved_words(text: TextTokenizer | None) -> str | None:
    """A text tokenizer as the lab's own key keeps it, so that it comes back as it was: letter by letter."""
    if isinstance(text, SentencePieceTokenizer):
        return base64.b64encode(text.model).decode()
    return text.json if isinstance(text, JsonTokenizer) else None


def text_of_own_key(saved: str | None, kind: str | None) -> TextTokenizer | None:
    """The way back from `saved_words`; `kind` is the companion's."""
    if kind == "bytes":
        return ByteTokenizer()
    if saved is None:
        return None
    return SentencePieceTokenizer(base64.b64decode(saved, validate=True)) if kind else JsonTokenizer(saved)


def words_of_header(values: Mapping[str, Any], table: dict[str, int]) -> JsonTokenizer | None:
    """The family's text tokenizer of a file that another program wrote; None for another kind, which the log names."""
    model, cuts = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre", "chameleon")
    merges = values.get("tokenizer.ggml.merges")
    if model != "gpt2" or cuts not in ("chameleon", "default") or not isinstance(merges, list):
        log.warning(
            "Its text tokenizer is %.40r with the pre-tokenizer %.40r, and the family's is 'gpt2' with 'chameleon': "
            "name the folder that has text_tokenizer.json, Chameleon.load(file, tokenizer=...).",
            model,
            cuts,
        )
        return None
    plain = {
        "version": "1.0",
        "model": {"type": "BPE", "vocab": table, "merges": merges},
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": FAMILY_CUTS,
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
    }
    return JsonTokenizer(json.dumps(plain, ensure_ascii=False))
