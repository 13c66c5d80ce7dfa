"""The family's text tokenizer from its JSON: ids by block, ordinary text whatever it spells."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from chameleon_lab.documents import Document, EndTurn, Text
from chameleon_lab.records import TextPiece
from chameleon_lab.tokenizers.family_json import LETTERS_TO_SPACES, SPACES_TO_LETTERS, require_quick
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer, PieceReader
from chameleon_lab.tokenizers.text import JsonTokenizer
from chameleon_lab.vocabulary import Modality, Vocabulary

CODES = 12
LEARNED = [
    '<html><div class="x">5 &lt; 6</div></html>',
    "if (a <= b && b >= c) { std::cout << v[0] << '\\n'; return a < b; }  // compare",
    "draw a red circle left of a blue square, then tell about it",
    "\tfor i in range(10):\n        print(i)",
    "IMGIMGAZ <racm3:break> <reserved08706> <s></s>",
    "a<=b<<c<!--</",
]
SPELLED = ("<s>", "<pad>", "</s>", "<unk>", "<eoss>", "<racm3:break>", "<sentinel:0>", "IMGIMGAZ", "IMGIMGBBZ")


def family_json(codes: int = CODES, largest_side: int = 0, shuffled: bool = False) -> str:
    """A small `text_tokenizer.json` as the family has it: its pre-tokenizers in their order, a byte-level BPE, and one
    table for the names of every id, those of special and image tokens added tokens as well."""
    plain = json.loads(_trained())
    vocabulary = Vocabulary.layout(codes, 0, largest_side=largest_side)
    names = [vocabulary.spelling(token) for token in range(vocabulary.size)]
    pieces = [name for name in plain["model"]["vocab"] if name not in names]  # merges make some of the names
    if shuffled:
        block = slice(vocabulary.first_image, vocabulary.first_image + codes)
        names[block] = np.random.default_rng(0).permutation(names[block]).tolist()
    plain["model"]["vocab"] = {name: token for token, name in enumerate([*names, *pieces])}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    plain["added_tokens"] = [{"id": token, "content": name, **flags} for token, name in enumerate(names)]
    return json.dumps(plain)


@cache
def _trained() -> str:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(tokenizers.Regex("<sentinel:[0-9]+>"), "isolated"),
            pre_tokenizers.Split(tokenizers.Regex("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"), "isolated"),
            pre_tokenizers.Split(tokenizers.Regex("([\t\n]|    |  )"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(tokenizers.Regex("[\"'(),.:;&]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)  # pyright: ignore[reportCallIssue]
    tokenizer.train_from_iterator(LEARNED * 4, trainer)
    return tokenizer.to_str()


def changed(**changes: Any) -> str:
    """The tokenizer's JSON with other values for keys of its model."""
    plain = json.loads(family_json())
    plain["model"] |= changes
    return json.dumps(plain)


@pytest.fixture(scope="module")
def text() -> JsonTokenizer:
    return JsonTokenizer(family_json())


def random_text(rng: np.random.Generator) -> str:
    """Characters of any plane, names of special tokens and bits of code, in any order."""
    points = rng.integers(0, 0x110000, 8)
    parts = [*map(chr, rng.integers(0, 300, 8)), *(chr(point) for point in points if not 0xD800 <= point < 0xE000)]
    parts += [*rng.choice(SPELLED, 3), *rng.choice(["</", "<=", "<", "<<", "<div", "  ", "\t", "\r\n", "12"], 4)]
    return "".join(rng.permutation(parts))


def test_any_text_survives_a_round_trip(text, texts):
    rng = np.random.default_rng(0)
    for each in ("", " ", *texts, *LEARNED, *(random_text(rng) for _ in range(300))):
        pieces = text.encode(each)
        assert text.decode(pieces) == each
        assert all(0 <= piece < text.size for piece in pieces)


def test_ids_are_those_of_the_library_but_for_spelled_special_tokens(text):
    theirs = tokenizers.Tokenizer.from_str(text.json)
    first = text.vocabulary.first_text
    for each in (*LEARNED[:4], "<div>a <= b</div>", "naïve 日本語 👩‍👩‍👧", "  x\t\n1234"):
        assert [first + piece for piece in text.encode(each)] == theirs.encode(each).ids
    assert theirs.encode("<racm3:break>").ids == [text.vocabulary.begin_image]  # what is not wanted of a user's text


@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("spelled", SPELLED)
def test_the_name_of_a_special_token_in_a_text_is_text(spelled, ignore_merges):
    text = JsonTokenizer(changed(ignore_merges=ignore_merges))
    for each in (spelled, f"a {spelled} b", spelled * 2):
        tokens = [text.vocabulary.token_of_piece(piece) for piece in text.encode(each)]
        assert (text.vocabulary.modality[tokens] == Modality.TEXT).all()
        assert text.decode(text.encode(each)) == each


def test_trap_15_pieces_that_begin_with_a_bracket_are_text_and_survive(text):
    bracketed = [piece for piece in range(text.size) if text.spelling(piece).startswith("<")]
    spelled = {text.spelling(piece) for piece in bracketed}
    assert {"<", "<<", "</", "<="} <= spelled
    kinds = text.vocabulary.modality[[text.vocabulary.token_of_piece(piece) for piece in bracketed]]
    assert (kinds == Modality.TEXT).all()
    assert set(bracketed) & set(text.encode('<html><div class="x">5 <= 6</div></html>'))


def test_no_token_marks_the_beginning_of_a_text(text):
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}], "pair": []}
    template |= {"special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}
    single = [*template["single"], {"Sequence": {"id": "A", "type_id": 0}}]
    plain = json.loads(text.json) | {"post_processor": template | {"single": single, "pair": single}}
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    again = JsonTokenizer(json.dumps(plain | {"truncation": cut}))
    assert again.encode(LEARNED[0]) == text.encode(LEARNED[0])


def test_a_bpe_with_dropout_cuts_a_text_always_alike(text):
    again = JsonTokenizer(changed(dropout=0.5))
    assert all(again.encode(LEARNED[0]) == text.encode(LEARNED[0]) for _ in range(5))


def test_the_older_spelling_of_merges_and_a_missing_decoder_make_no_difference(text):
    plain = json.loads(text.json)
    plain["model"]["merges"] = [" ".join(merge) for merge in plain["model"]["merges"]]
    again = JsonTokenizer(json.dumps(plain | {"decoder": None}))
    for each in LEARNED:
        assert again.encode(each) == text.encode(each)
        assert again.decode(again.encode(each)) == each


def test_the_vocabulary_follows_from_the_names(text):
    assert text.vocabulary == Vocabulary.layout(CODES, text.size)
    shuffled = JsonTokenizer(family_json(shuffled=True)).vocabulary
    assert sorted(shuffled.permutation) == list(range(CODES)) != list(shuffled.permutation)
    table = json.loads(family_json(shuffled=True))["model"]["vocab"]
    assert all(table[shuffled.spelling(token)] == token for token in range(shuffled.first_text))


def test_special_tokens_may_stand_among_the_added_tokens_alone(text):
    plain = json.loads(text.json)
    plain["model"]["vocab"] = {name: token for name, token in plain["model"]["vocab"].items() if token >= 4}
    again = JsonTokenizer(json.dumps(plain))
    assert again.vocabulary == text.vocabulary
    assert again.encode("<s> a") == text.encode("<s> a")


def test_a_text_that_the_table_has_no_pieces_for_is_refused():
    plain = json.loads(family_json())
    names = [name for name in plain["model"]["vocab"] if name != "z"]
    plain["model"]["vocab"] = {name: token for token, name in enumerate(names)}
    plain["model"]["merges"] = [pair for pair in plain["model"]["merges"] if "z" not in "".join(pair)]
    with pytest.raises(ValueError, match="no piece for 'z'"):
        JsonTokenizer(json.dumps(plain)).encode("maze")


def test_half_a_surrogate_pair_is_refused(text):
    with pytest.raises(UnicodeEncodeError):
        text.encode("a\ud83d")


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("", "no tokenizer.json"),
        ("{", "no tokenizer.json"),
        ("[]", "no tokenizer.json"),
        ("{}", "no tokenizer.json"),
        ('{"model": {"vocab": {}, "merges": []}}', "name each id from 0 on"),
        ('{"model": {"type": "Unigram", "vocab": [], "merges": []}}', "It is Unigram, and the family's are BPEs"),
        (changed(vocab=[]), "Its vocab is no table"),
        (changed(merges=[["a"]]), "is no pair of pieces"),
        (changed(merges=None), "Its merges are no list"),
        (changed(continuing_subword_prefix="x"), "marks the parts of words"),  # the library would end the process
        ('{"model": {"vocab": {"a": 0, "b": 2, "c": 3, "d": 4}, "merges": []}}', "1 names are missing, first for 1"),
        (
            json.dumps(json.loads(family_json()) | {"pre_tokenizer": {"type": "Magic"}}),
            "Its pre-tokenizer is or holds Magic",
        ),
    ],
    ids=range(12),
)
def test_what_is_no_tokenizer_of_the_family_is_refused(broken, why, tmp_path):
    with pytest.raises(ValueError, match=why):
        JsonTokenizer(broken)
    (tmp_path / "text_tokenizer.json").write_text(broken)
    with pytest.raises(ValueError, match=rf"text_tokenizer\.json holds no text tokenizer of the family: .*{why}"):
        JsonTokenizer.load(tmp_path / "text_tokenizer.json")


def with_parts(**parts: Any) -> str:
    """The tokenizer's JSON with other parts than its BPE."""
    return json.dumps(json.loads(family_json()) | parts)


def with_changes(parts: dict[str, Any], key: str, place: int, **changes: Any) -> dict[str, Any]:
    """A sequence of parts, one of them changed."""
    return parts | {key: [part | (changes if at == place else {}) for at, part in enumerate(parts[key])]}


def split_by(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


SPACES = {"normalizer": SPACES_TO_LETTERS, "decoder": LETTERS_TO_SPACES}
GROWTH = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [GROWTH] * 3}}, r"Its normalizer \(Sequence\)"),
        ({"normalizer": SPACES_TO_LETTERS}, r"Its normalizer \(Sequence\)"),
        ({"decoder": LETTERS_TO_SPACES}, "Its decoder is Sequence"),
        (SPACES | {"pre_tokenizer": {"type": "ByteLevel"}}, "Its pre-tokenizer is ByteLevel, and a sentencepiece"),
        (SPACES | {"normalizer": with_changes(SPACES_TO_LETTERS, "normalizers", 0, prepend="aa")}, "Its normalizer"),
        (SPACES | {"normalizer": with_changes(SPACES_TO_LETTERS, "normalizers", 1, content="aa")}, "Its normalizer"),
        (SPACES | {"decoder": with_changes(LETTERS_TO_SPACES, "decoders", 0, content="aa")}, "Its normalizer"),
        (SPACES | {"decoder": with_changes(LETTERS_TO_SPACES, "decoders", 3, start=2)}, "Its normalizer"),
        ({"normalizer": {"type": "NFC"}}, r"Its normalizer \(NFC\)"),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}}, r"Its normalizer \(Prepend\)"),
        ({"decoder": {"type": "Sequence", "decoders": [GROWTH] * 3}}, "Its decoder is Sequence"),
        ({"decoder": {"type": "CTC", "pad_token": "x"}}, "Its decoder is CTC"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "x", "prepend_scheme": "always"}}, "holds Metaspace"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Sequence"}]}}, "holds Sequence"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split_by("x")] * 99}}, "has 99 parts"),
        ({"pre_tokenizer": split_by("x") | {"behavior": 7}}, "has no pattern with a behavior"),
        ({"pre_tokenizer": split_by("x" * 2000)}, "neither Regex nor String"),
        ({"pre_tokenizer": {"type": "Digits", "individual_digits": 3}}, "individual_digits must be true or false"),
        ({"pre_tokenizer": "x"}, "'x'"),
        ({"added_tokens": [{"id": "0", "content": "<s>"}]}, "has no id with a content"),
    ],
    ids=range(20),
)
def test_parts_that_the_family_does_not_use_are_refused_by_name(parts, why):
    with pytest.raises(ValueError, match=why):
        JsonTokenizer(with_parts(**parts))


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
FAMILY_PATTERNS = (
    *("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", "([\t\n]|    |  )"),
    *(r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]", GPT2, GPT2.replace("'s|'t|'re|'ve|'m|'ll|'d", "'(?:[sdmt]|ll|ve|re)")),
    *("[\"'(),.:;&]", r"\p{N}{1,3}", "(?i:'s|'t)"),
)
SLOW_PATTERNS = (
    *(
        "(a+)+$",
        "(a|a)*b",
        "(?:a*)*",
        "([a-z]+)+!",
        "(a{1,9}){9}{9}",
        "a{1000}",
        "(a{64}){65,}",
        "(a*){3}",
        "a**",
        "a+*",
    ),
    *(r"(\w)\1+", r"(?<n>a)\k<n>", r"(?<=a+)b", "(?>a+)b", r"(?R)", "(?~a)", r"\g<1>", "(?#x)a", "((a*)b)+"),
    *(r".*.*x", r"\s*\s*\s*x", r".+\x00", "a*b", "[^x]+y", "x?[^x]+y", r"a|.*.*", "(a*|b)c"),
    *("((a|a){8}){8}", "(a|a){16}b", "a?" * 30 + "b", "(a|a)" * 20 + "b", ".[0-9]+>", r"\s+$", ".+(?![ab])", "(?!.+x)"),
)


@pytest.mark.parametrize("pattern", FAMILY_PATTERNS)
def test_the_family_s_patterns_are_taken(pattern):
    require_quick(pattern)
    parts = {"type": "Sequence", "pretokenizers": [split_by(pattern), {"type": "ByteLevel", "add_prefix_space": False}]}
    JsonTokenizer(with_parts(pre_tokenizer=parts)).encode("a <sentinel:12> b  c\n" * 3)


@pytest.mark.parametrize("pattern", SLOW_PATTERNS)
def test_patterns_that_a_text_could_keep_busy_for_ever_are_refused(pattern):
    with pytest.raises(ValueError, match=r"The pattern"):
        JsonTokenizer(with_parts(pre_tokenizer=split_by(pattern)))


def test_random_patterns_are_refused_or_quick():
    """What `require_quick` lets pass comes to an end with any letters: a slow one would hang the test."""
    rng, taken = np.random.default_rng(0), 0
    parts = [
        "a",
        "b",
        "x",
        ".",
        r"\s",
        "[^a]",
        r"\p{L}",
        "(",
        "(?:",
        "(?!",
        ")",
        "|",
        "*",
        "+",
        "?",
        "{2,3}",
        "{2,}",
        "$",
    ]
    texts = ["a" * 20000, "ab" * 10000, " " * 20000, "a" * 19999 + "x"]
    for _ in range(300):
        pattern = "".join(rng.choice(parts, rng.integers(1, 9)))
        try:
            require_quick(pattern)
        except ValueError:
            continue
        try:
            splitter = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        except Exception:  # what the library cannot read it refuses
            continue
        taken += 1
        for each in texts:
            splitter.pre_tokenize_str(each)
    assert taken > 20


JUNK = (None, True, -1, 3.5, 10**30, "x", "", [], {}, [[]], {"a": 1}, "\ud800")


def test_a_damaged_file_gives_a_tokenizer_or_a_value_error():
    rng, refused = np.random.default_rng(0), 0
    for _ in range(150):
        plain = json.loads(family_json())
        place = plain if rng.random() < 0.3 else plain["model"] if rng.random() < 0.5 else plain["added_tokens"]
        for _ in range(rng.integers(3)):
            inner = [part for part in (place.values() if isinstance(place, dict) else place) if part]
            inner = [part for part in inner if isinstance(part, dict | list)]
            place = inner[rng.integers(len(inner))] if inner else place
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[rng.integers(len(keys))]
        if rng.random() < 0.3:
            del place[key]
        else:
            place[key] = JUNK[rng.integers(len(JUNK))]
        try:
            JsonTokenizer(json.dumps(plain)).encode("hello <b> x")
        except ValueError:
            refused += 1
    assert refused > 30


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "nothing", tmp_path / "bytes"):
        with pytest.raises(ValueError, match="holds no text tokenizer"):
            JsonTokenizer.load(path)


def test_a_file_gives_the_same_tokenizer(text, tmp_path):
    (tmp_path / "text_tokenizer.json").write_text(text.json, encoding="utf-8")
    again = JsonTokenizer.load(tmp_path / "text_tokenizer.json")
    assert again.json == text.json and again.vocabulary == text.vocabulary


def test_documents_go_through_the_family_s_tokenizer(text, image_tokenizer):
    mixed = MixedModalTokenizer(text, image_tokenizer, text.vocabulary)
    document = Document.of("draw <b>IMGIMGAZ</b>", EndTurn(), "<racm3:break>")
    tokens = mixed.encode(document)
    assert tokens[0] == text.vocabulary.begin_document and text.vocabulary.begin_image not in tokens
    assert mixed.decode(tokens) == document


def test_a_long_text_is_told_piece_by_piece_without_a_gap(text, image_tokenizer, texts):
    mixed, rng = MixedModalTokenizer(text, image_tokenizer, text.vocabulary), np.random.default_rng(1)
    for _ in range(10):
        long = "".join(rng.choice([random_text(rng), *texts, *LEARNED]) for _ in range(8))
        reader = PieceReader(mixed)
        told = [piece for token in mixed.encode(Document.of(long))[1:] for piece in reader.read(int(token))]
        told += reader.close()
        assert "".join(piece.text for piece in told if isinstance(piece, TextPiece)) == long


def test_a_missing_text_tokenizer_says_what_is_missing_once_it_is_needed(image_tokenizer):
    words = Vocabulary.layout(CODES, 30)
    mixed = MixedModalTokenizer(None, image_tokenizer, words, source="/models/chameleon-7b")
    drawn = mixed.encode(Document.of("", image_tokenizer.decode(np.zeros((4, 4), int))))
    assert len(mixed.decode(drawn).pictures) == 1
    why = (
        r"/models/chameleon-7b holds no text tokenizer, so text cannot become tokens.* Put Meta's text_tokenizer\.json "
    )
    for use in (lambda: mixed.encode(Document((Text("hello"),))), lambda: mixed.decode([words.first_text])):
        with pytest.raises(ValueError, match=why + ".*tokenizer='data/tok"):
            use()
