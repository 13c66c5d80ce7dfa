"""What a `tokenizer.json` may hold: the parts of the `tokenizers` library that the family uses, and nothing else.

The library builds whatever a file says: a normalizer that makes gigabytes of a word, a regular expression that never
ends, values of other types on which its Rust code panics. So a file is not handed over but rebuilt from its parts, each
looked at: a BPE, splits by patterns, digits, punctuation, bytes as letters. What the lab itself writes of a
sentencepiece model is let through in exactly that form, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

LARGEST_TABLE = 32 * 2**20
"""Bytes: a table of 65,536 names and its merges take 5 million."""

SPACE = "\ufdd0"
"""How a sentencepiece model's JSON spells a space: a character that Unicode keeps out of texts. With sentencepiece's
own, U+2581, a written U+2581 would become a space, which the lab's tokenizer takes care that it does not."""

SPACES_TO_LETTERS: dict[str, Any] = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ],
}
LETTERS_TO_SPACES: dict[str, Any] = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
"""The normalizer and the decoder of a sentencepiece model's JSON. They go together: one takes back the other."""

_BYTES_AS_LETTERS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

_BEHAVIOURS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_MOST_SPLITS, _LONGEST_PATTERN, _MOST_REPEATS = 32, 1000, 64


def plain_bpe(plain: Any) -> dict[str, Any]:
    """The parts that count of a tokenizer's JSON: `model` (vocab, merges, flags), `added_tokens`, and what texts go
    through: `normalizer`, `pre_tokenizer`, `decoder`.

    Raises ValueError, by name, for what the family does not use: other models, normalizers, decoders, parts of words.
    """
    if not isinstance(plain, dict) or not isinstance(plain.get("model"), dict):
        raise ValueError("It is no tokenizer.json: it holds no object with a model.")
    model = plain["model"]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"It is {_kind(model)}, and the family's are BPEs.")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ValueError("Its BPE marks the parts of words, as the family's do not, or its merges are broken.")
    normalizer, decoder = _normalizer_and_decoder(plain)
    return {
        "model": {
            "vocab": _table_of(model.get("vocab")),
            "merges": list(_merges(model.get("merges"))),
            "byte_fallback": _flag(model, "byte_fallback"),
            "ignore_merges": _flag(model, "ignore_merges"),
        },
        "added_tokens": [_added_token(each) for each in _list_of(plain.get("added_tokens") or [], "added_tokens")],
        "normalizer": normalizer,
        "pre_tokenizer": _pre_tokenizer(plain.get("pre_tokenizer")),
        "decoder": decoder,
    }


def _normalizer_and_decoder(plain: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The family's, which are none and bytes as letters, or those of a sentencepiece model's JSON."""
    normalizer, decoder = plain.get("normalizer"), plain.get("decoder")
    if normalizer == SPACES_TO_LETTERS and decoder == LETTERS_TO_SPACES:
        if plain.get("pre_tokenizer") is not None:
            kind = _kind(plain["pre_tokenizer"])
            raise ValueError(f"Its pre-tokenizer is {kind}, and a sentencepiece model's JSON has none.")
        return SPACES_TO_LETTERS, LETTERS_TO_SPACES
    if normalizer is not None:
        raise ValueError(
            f"Its normalizer ({_kind(normalizer)}) changes texts, and the family's keep them: it has none."
        )
    if decoder is not None and _kind(decoder) != "ByteLevel":
        raise ValueError(f"Its decoder is {_kind(decoder)}, and the family's is ByteLevel.")
    return None, _BYTES_AS_LETTERS


def _table_of(vocab: Any) -> dict[str, int]:
    if not isinstance(vocab, dict) or not all(type(token) is int and 0 <= token < 2**31 for token in vocab.values()):
        raise ValueError("Its vocab is no table of names to ids, or its merges are broken.")
    return vocab


def _merges(merges: Any) -> Iterator[tuple[str, str]]:
    for merge in _list_of(merges, "merges"):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ValueError(f"Its merges are broken: {_brief_value(merge)} is no pair of pieces.")
        yield pair[0], pair[1]


def _added_token(token: Any) -> dict[str, Any]:
    if not isinstance(token, dict) or not isinstance(token.get("content"), str) or type(token.get("id")) is not int:
        raise ValueError(f"Its added token {_brief_value(token)} has no id with a content.")
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": token["id"], "content": token["content"]} | {name: _flag(token, name) for name in flags}


def _pre_tokenizer(plain: Any, inside: bool = False) -> dict[str, Any] | None:
    """A part that cuts texts, rebuilt from what the family uses."""
    match _kind(plain):
        case "none" if not inside:
            return None
        case "Sequence" if not inside:
            parts = _list_of(plain.get("pretokenizers"), "pretokenizers")
            if len(parts) > _MOST_SPLITS:
                raise ValueError(f"Its pre-tokenizer has {len(parts)} parts, more than {_MOST_SPLITS}.")
            return {"type": "Sequence", "pretokenizers": [_pre_tokenizer(part, True) for part in parts]}
        case "Split":
            pattern, behaviour = plain.get("pattern"), plain.get("behavior")
            if not isinstance(pattern, dict) or len(pattern) != 1 or behaviour not in _BEHAVIOURS:
                raise ValueError(f"Its pre-tokenizer {_brief_value(plain)} has no pattern with a behavior.")
            ((kind, text),) = pattern.items()
            if kind not in ("Regex", "String") or not isinstance(text, str) or not 0 < len(text) <= _LONGEST_PATTERN:
                raise ValueError(f"Its pre-tokenizer's pattern {_brief_value(pattern)} is neither Regex nor String.")
            if kind == "Regex":
                require_quick(text)
            split = {"pattern": pattern, "behavior": behaviour, "invert": _flag(plain, "invert")}
            return {"type": "Split", **split}
        case "Digits":
            return {"type": "Digits", "individual_digits": _flag(plain, "individual_digits")}
        case "Punctuation" if plain.get("behavior", "Isolated") in _BEHAVIOURS:
            return {"type": "Punctuation", "behavior": plain.get("behavior", "Isolated")}
        case "ByteLevel":
            flags = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
            return {"type": "ByteLevel"} | {name: _flag(plain, name, value) for name, value in flags.items()}
        case kind:
            raise ValueError(
                f"Its pre-tokenizer is or holds {kind}, and the family's are Sequence, Split, Digits, Punctuation and "
                "ByteLevel."
            )


def _kind(plain: Any) -> str:
    if plain is None:
        return "none"
    kind = plain.get("type") if isinstance(plain, dict) else None
    return kind if isinstance(kind, str) else _brief_value(plain)


def _flag(plain: dict[str, Any], name: str, default: bool = False) -> bool:
    value = plain.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {_brief_value(value)}.")
    return value


def _list_of(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"Its {name} are no list, but {_brief_value(value)}.")
    return value


def _brief_value(value: Any) -> str:
    return f"{str(value)[:60]!r}"


# Regular expressions

_ATOM = re.compile(
    r"\\[pP]\{\^?\w+\}|\\[^0-9a-zA-Z]|\\[dDsSwWhHnrtfv]"  # a class by name, a sign, a class
    r"|\[\^?\]?(?:\\[pP]\{\^?\w+\}|\\[^0-9a-zA-Z]|\\[dDsSwWhHnrtfv]|[^\]\[\\])*\]"  # a class by its members
    r"|[^\\\[\](){}*+?|]"
)
_REPEAT = re.compile(r"[*+?]|\{(\d+)?(?:(,)(\d+)?)?\}")
_DIGITS, _SPACES_AT_END, _MOST_WAYS = ("[0-9]", r"\d", r"\p{N}"), r"\s+(?!\S)", 10_000


def require_quick(pattern: str) -> None:
    """Raises ValueError for a regular expression that some text could keep busy for ever, or that is not understood.

    As in the family's, nothing refers back, and nothing looks around but `\\s+(?!\\S)`. In an alternative one thing at
    most is repeated without a limit: at its end, where it never has to be tried again, or digits behind a sign. All
    other repeats and alternatives together leave at most 10,000 ways to try at each letter.
    """
    ways, place = _ways(pattern, 0, outermost=True)
    if place < len(pattern):
        raise ValueError(f"The pattern {pattern[:80]!r} closes a group that it did not open.")
    if ways > _MOST_WAYS:
        raise ValueError(f"The pattern {pattern[:80]!r} leaves too many ways to read a text: it could take for ever.")


def _ways(pattern: str, place: int, outermost: bool = False) -> tuple[int, int]:
    """In how many ways the alternatives from a place on may match, at most, and the place behind them."""
    total, ways, before, endless = 0, 1, "", False

    def refuse(what: str) -> ValueError:
        return ValueError(f"The pattern {pattern[:80]!r} {what}, and the family's do not.")

    while place < len(pattern) and pattern[place] != ")":
        if pattern[place] == "|":
            total, ways, before, endless, place = total + ways, 1, "", False, place + 1
            continue
        if endless:
            raise refuse("has something behind what it repeats without a limit")
        if pattern.startswith(_SPACES_AT_END, place) and outermost:
            endless, place = True, place + len(_SPACES_AT_END)
            continue
        start, group = place, pattern[place] == "("
        if group:
            opening = next((each for each in ("(?:", "(?i:") if pattern.startswith(each, place)), "(")
            if opening == "(" and pattern[place + 1 : place + 2] in ("?", "*"):
                raise refuse("has a group of a kind of its own")
            inner, place = _ways(pattern, place + len(opening))
            if pattern[place : place + 1] != ")":
                raise refuse("leaves a group open")
            place += 1
        else:
            match = _ATOM.match(pattern, place)
            if match is None:
                raise refuse(f"cannot be read from its letter {place} on")
            inner, place = 1, match.end()
        atom = pattern[start:place]
        if repeat := _REPEAT.match(pattern, place):
            place = repeat.end()
            if pattern[place : place + 1] in ("+", "*", "?", "{"):
                raise refuse("repeats a repeat")
            if repeat[0] in "*+" or (repeat[2] and not repeat[3]):
                if group or not outermost:
                    raise refuse("repeats a group without a limit, or something in one")
                endless = not (atom in _DIGITS and len(before) == 1 and before not in ".0123456789")
            else:
                least, most = (0, 1) if repeat[0] == "?" else (int(repeat[1] or 0), int(repeat[3] or repeat[1] or 0))
                if most > 64:
                    raise refuse("repeats something more than 64 times")
                inner = min(sum(inner**count for count in range(least, most + 1)), 10**9)
        before = "" if repeat else atom
        ways = min(ways * max(1, inner), 10**9)
    return min(total + ways, 10**9), place
