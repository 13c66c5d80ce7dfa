"""Sessions: told in pieces, left and continued at any of them, appended to, and nothing computed twice."""

import copy
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from support import CODES, WARM, WORDS, LetterTokenizer

from chameleon_lab import crossovers
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.generation import continuation
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.generation.engine import Engine, Settings
from chameleon_lab.generation.grammar import Grammar, Unrestricted
from chameleon_lab.generation.guidance import ThreeWay
from chameleon_lab.generation.samplers import Sampler
from chameleon_lab.records import ImagePiece, Piece, StopPiece, TextPiece
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer

ASKED = Document.of("abc", EndTurn())


def assembled(pieces: list[Piece]) -> Document:
    """The document that pieces tell."""
    told: list[Text | Image] = []
    for piece in pieces:
        if isinstance(piece, ImagePiece) and piece.complete:
            told.append(Image(piece.picture, piece.codes))
        elif isinstance(piece, TextPiece):
            last = told.pop() if told and isinstance(told[-1], Text) else Text("")
            told.append(Text(getattr(last, "text", "") + piece.text))
    return Document(tuple(told))


def plain(piece: Piece) -> tuple[object, ...]:
    """A piece as a value that can be compared."""
    if isinstance(piece, ImagePiece):
        return piece.codes.tolist(), piece.rows, piece.picture.tobytes()
    return (piece,)


class Counted(Decoder):
    """The decoder, counting the positions that are computed."""

    fed = 0

    def trunk(self, tokens_BT: torch.Tensor, start: int = 0) -> torch.Tensor:
        Counted.fed += int((tokens_BT != WORDS.pad).sum())
        return super().trunk(tokens_BT, start)


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("seed", range(6))
def test_streaming_equals_generating(engine, seed):
    settings = replace(WARM, guidance=1.5)
    (reply,) = engine.generate([ASKED], settings, [seed])
    *pieces, stop = engine.stream(ASKED, settings, seed)
    assert isinstance(stop, StopPiece) and stop.reason in ("end_turn", "end_document", "length")
    assert not any(isinstance(piece, StopPiece) for piece in pieces)
    assert assembled(pieces) == reply


@pytest.mark.usefixtures("pace")
def test_a_picture_is_told_from_its_start_row_by_row(engine):
    grammar = Grammar(WORDS, CODES, text=False, max_images=1, min_images=1)
    *images, _ = engine.stream(Document.of("a"), WARM, 1, grammar)
    assert all(isinstance(piece, ImagePiece) for piece in images)
    assert [len(piece.codes) for piece in images] == [0, 1, 2, 3, 4]
    assert [piece.complete for piece in images] == [False, False, False, False, True]
    assert {piece.picture.size for piece in images} == {(16, 16)} and {piece.rows for piece in images} == {4}
    assert all(np.array_equal(images[-1].codes[: len(piece.codes)], piece.codes) for piece in images)


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("seed", [1, 3])
def test_a_session_left_after_any_piece_goes_on_as_if_it_had_not_been(engine, guidance, seed):
    settings, grammar = replace(WARM, guidance=guidance, max_tokens=60), Grammar(WORDS, CODES, min_images=2)
    whole = list(engine.begin(ASKED, settings, seed, grammar).stream())
    assert len(whole) > 10
    for stride in (1, 2, 3):
        session, told = engine.begin(ASKED, settings, seed, grammar), list[Piece]()
        while not told or not isinstance(told[-1], StopPiece):
            told += islice(session.stream(), stride)  # each stream is dropped after a few pieces
        assert list(map(plain, told)) == list(map(plain, whole))
        assert session.reply == assembled(whole)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_nothing_is_computed_twice_when_a_session_is_left_and_appended_to(engine, seed, monkeypatch):
    monkeypatch.setattr(continuation, "Decoder", Counted)
    monkeypatch.setattr(Counted, "fed", 0)
    session = engine.begin(ASKED, replace(WARM, max_tokens=12), seed)
    for _ in range(3):
        for _ in range(4):
            for _ in islice(session.stream(), 2):
                pass
        list(session.stream())
        before = len(session.tokens)
        session.append(Document.of("dd", EndTurn()))
        assert len(session.tokens) in (before + 3, before + 2)  # an end of document is taken back
    list(session.stream())
    assert Counted.fed in (len(session.tokens), len(session.tokens) - 1)  # what is drawn last need not be fed


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("guidance", [1.0, 2.0, ThreeWay()])
def test_a_reply_to_what_is_appended_is_the_reply_to_the_whole_conversation(engine, guidance):
    greedy = Settings(temperature=0.0, image_temperature=0.0, guidance=guidance, max_tokens=45)
    grammar = Grammar(WORDS, CODES, min_images=1)
    session = engine.begin(ASKED, greedy, 0, grammar)
    for words in ("dab", "c"):
        list(session.stream())
        session.append(Document.of(EndTurn(), words, EndTurn()))
        prompt = session.tokens
        told = assembled(list(session.stream()))
        fresh = [token for _, token, _ in engine.tokens([prompt], greedy, [0], grammar) if token is not None]
        assert told == session.reply == engine.tokenizer.decode([0, *fresh]) and told.pictures


@pytest.mark.usefixtures("pace")
def test_an_image_left_unfinished_is_taken_back(engine):
    grammar = Grammar(WORDS, CODES, text=False, min_images=1)
    session = engine.begin(ASKED, WARM, 1, grammar)
    list(islice(session.stream(), 3))  # its start and two rows
    assert session.tokens[-9] == WORDS.begin_image
    session.append(Document.of("dd", EndTurn()))
    assert session.tokens.tolist() == engine.tokenizer.encode(ASKED + Document.of("dd", EndTurn())).tolist()
    assert isinstance(list(session.stream())[-1], StopPiece)


@pytest.mark.parametrize("gap", ["picture decoder", "image tokenizer"])
def test_a_picture_that_cannot_be_shown_is_refused_when_it_starts_and_what_was_told_stays(make_lab, lettered, gap):
    image = copy.deepcopy(lettered.image)
    image.decoder, image.source = None, "a folder"
    engine = make_lab(
        lettered.with_parts(lettered.text, image)
        if gap == "picture decoder"
        else MixedModalTokenizer(lettered.text, None, lettered.vocabulary, grid=(4, 4), source="a folder")
    ).engine
    prompt, grammar = Document.of("ab", EndTurn()), Grammar(WORDS, CODES)  # a person's own; by default none is drawn
    assert not engine.default_grammar().images
    seed = next(s for s in range(60) if "t(" in _begins(engine, prompt, s, grammar))
    session, told = engine.begin(prompt, WARM, seed, grammar), list[Piece]()
    with pytest.raises(ValueError, match=rf"a folder holds no {gap}.*codes cannot become pictures"):
        told += session.stream()
    before = session.tokens
    assert before[-1] == WORDS.begin_image and session.reply.text and not session.reply.pictures
    with pytest.raises(ValueError, match="a folder holds no"):
        engine.generate([prompt], WARM, [seed], grammar)
    session.append(Document.of("a", EndTurn()))  # the image is taken back, the words are not
    assert session.tokens.tolist()[: len(before) - 1] == before.tolist()[:-1]


def _begins(engine: Engine, prompt: Document, seed: int, grammar: Grammar) -> str:
    """The first tokens of a reply, a letter each: t word, ( image."""
    settings = replace(WARM, max_tokens=CODES + 6)
    tokens = [token for _, token, _ in engine.tokens([engine.tokenizer.encode(prompt)], settings, [seed], grammar)]
    return "".join("(" if token == WORDS.begin_image else "t" for token in tokens[:5] if token is not None)


@pytest.mark.usefixtures("pace")
def test_a_reply_cut_short_goes_on_with_nothing_appended(engine):
    fixed = replace(WARM, max_tokens=3)
    grammar = Grammar(WORDS, CODES, images=False)
    seed = next(s for s in range(60) if list(engine.stream(ASKED, fixed, s, grammar))[-1] == StopPiece("length"))
    session = engine.begin(ASKED, fixed, seed, grammar)
    list(session.stream())
    first = session.reply.text
    assert list(session.stream()) == [StopPiece("length")]
    session.append(Document())
    list(session.stream())
    assert len(first) == 3 and engine.tokenizer.decode(session.tokens).turns[1][1].text.startswith(first)


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("rules", [Grammar(WORDS, CODES), Unrestricted(WORDS, CODES)])
@pytest.mark.parametrize("seed", range(4))
def test_a_reply_left_anywhere_goes_on_with_nothing_appended(engine, seed, rules):
    for pieces in (1, 2, 3, None):
        session = engine.begin(ASKED, replace(WARM, max_tokens=20), seed, rules)
        list(islice(session.stream(), pieces))
        session.append(Document())
        prompt = session.tokens
        *_, stop = session.stream()
        assert isinstance(stop, StopPiece) and np.array_equal(session.tokens[: len(prompt)], prompt)


@pytest.mark.parametrize("seed", range(4))
def test_how_far_ahead_is_picked_does_not_show_in_what_follows_an_append(engine, seed, monkeypatch):
    written = set[bytes]()
    for ahead in (1, 2, 5):
        monkeypatch.setitem(crossovers.CODES_AHEAD, "cpu", ahead)
        session = engine.begin(ASKED, replace(WARM, max_tokens=40), seed, Grammar(WORDS, CODES, min_images=1))
        for _ in range(3):
            list(islice(session.stream(), 2))
            session.append(Document.of("d", EndTurn()))
        list(session.stream())
        written.add(session.tokens.tobytes())
    assert len(written) == 1


@pytest.mark.parametrize(
    ("pace", "guidance", "calls"),
    [
        *[("ahead", 1.0, 0), ("step by step", 1.0, 9), ("ahead", 1.0, 9), ("step by step", 2.0, 1), ("ahead", 2.0, 4)],
        *[("step by step", ThreeWay(), 0), ("ahead", ThreeWay(), 4)],
    ],
    indirect=["pace"],
)
def test_a_step_that_was_interrupted_is_taken_again(engine, pace, guidance, calls, monkeypatch):
    settings, grammar = replace(WARM, guidance=guidance, max_tokens=50), Grammar(WORDS, CODES, min_images=2)
    whole = engine.begin(ASKED, settings, 3, grammar)
    list(whole.stream())
    for owner, name in ((Decoder, "trunk"), (Decoder, "logits"), (Sampler, "pick")):
        session, left, does = engine.begin(ASKED, settings, 3, grammar), iter(range(calls)), getattr(owner, name)

        def stopped(*arguments, left=left, does=does):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return does(*arguments)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, stopped)
            list(session.stream())
        list(session.stream())
        assert np.array_equal(session.tokens, whole.tokens)


@pytest.mark.usefixtures("pace")
def test_a_picture_whose_decoding_was_interrupted_is_told_all_the_same(engine, monkeypatch):
    settings, grammar = replace(WARM, max_tokens=60), Grammar(WORDS, CODES, min_images=2)
    whole = engine.begin(ASKED, settings, 0, grammar)
    pieces, interrupts = list(whole.stream()), 0
    for owner, name in ((type(engine.tokenizer.image), "decode"), (LetterTokenizer, "decode")):
        does = getattr(owner, name)
        for calls in range(8 if owner is LetterTokenizer else 14):
            session, told, left = engine.begin(ASKED, settings, 0, grammar), list[Piece](), iter(range(calls))

            def stopped(*arguments, left=left, does=does):
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return does(*arguments)

            with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
                patch.setattr(owner, name, stopped)
                told.extend(session.stream())
            interrupts += not (told and isinstance(told[-1], StopPiece))
            if told[-1:] != pieces[-1:]:
                told += session.stream()
            assert np.array_equal(session.tokens, whole.tokens) and session.reply == whole.reply
            assert list(map(plain, told)) == list(map(plain, pieces))
    assert interrupts > 8


@pytest.mark.usefixtures("pace")
def test_what_does_not_fit_is_refused_and_changes_nothing(engine):
    session = engine.begin(ASKED, replace(WARM, max_tokens=5), 1)
    list(session.stream())
    before, reply = session.tokens, session.reply
    with pytest.raises(ValueError, match="tokens and the model's context holds 160: shorten"):
        session.append(Document.of("a" * 200))
    assert np.array_equal(session.tokens, before) and session.reply == reply
    session.append(Document.of("a", EndTurn()))
    assert isinstance(list(session.stream())[-1], StopPiece)


def test_a_stream_can_be_left_at_any_piece(engine):
    stream = engine.stream(Document.of("abc"), WARM, 3)
    next(stream)
    stream.close()
    assert list(stream) == []


@pytest.mark.usefixtures("pace")
def test_left_alone_a_model_tells_in_pieces_until_it_is_ill_formed(engine):
    reasons = set()
    for seed in range(12):
        *_, stop = engine.stream(ASKED, WARM, seed, Unrestricted(WORDS, CODES))
        reasons.add(stop.reason)
    assert "ill_formed" in reasons


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_reply_that_begins_with_tokens_goes_on_as_if_the_model_had_written_them(engine, guidance):
    greedy = Settings(temperature=0.0, image_temperature=0.0, guidance=guidance, max_tokens=60, repetition=1.2)
    grammar = Grammar(WORDS, CODES, min_images=2, max_images=2)
    session = engine.begin(ASKED, greedy, 0, grammar)
    whole = assembled(list(session.stream()))
    start = len(engine.tokenizer.encode(ASKED))
    reply = session.tokens[start:]
    assert len(reply) > 30
    for count in range(int(guidance) % 2, len(reply), 2):  # each at one of the guidances
        branch = engine.begin(ASKED, greedy, 0, grammar, reply[:count])
        pieces = list(branch.stream())
        assert np.array_equal(branch.tokens, session.tokens), count
        assert assembled(pieces) == branch.reply == whole
        drawn = [piece for piece in pieces if isinstance(piece, ImagePiece) and piece.complete]
        assert len(drawn) == 2  # each image of the prefix comes once, whole
    assert engine.generate([ASKED, ASKED], greedy, [0, 1], grammar, reply[:9]) == [whole, whole]


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ([WORDS.end_turn], "ends the reply"),
        ([WORDS.end_image], "cannot stand there"),
        ([WORDS.begin_image, WORDS.begin_image], "cannot stand there"),
        ([WORDS.size], str(WORDS.size)),
        ([WORDS.first_text] * 500, "no room"),
    ],
)
def test_a_prefix_that_no_reply_can_begin_with_is_refused(engine, prefix, words):
    with pytest.raises(ValueError, match=words):
        engine.begin(ASKED, WARM, 0, None, prefix)


@pytest.mark.gpu
@pytest.mark.parametrize("guidance", [1.0, 2.0, ThreeWay()])
def test_a_session_on_a_gpu_is_left_and_appended_to_as_on_a_cpu(engine, guidance, monkeypatch):
    monkeypatch.setattr(crossovers, "GRAPH_POSITIONS", 16)
    monkeypatch.setattr(crossovers, "GRAPH_PATIENCE", 2)
    greedy = Settings(temperature=0.0, image_temperature=0.0, guidance=guidance, max_tokens=45)
    grammar, replies = Grammar(WORDS, CODES, min_images=1), list[list[Document]]()
    for model in (engine.model, copy.deepcopy(engine.model).cuda()):
        session, told = Engine(model, engine.tokenizer).begin(ASKED, greedy, 0, grammar), list[Document]()
        for words in ("dab", "c"):
            for _ in islice(session.stream(), 3):
                pass
            list(session.stream())
            told.append(session.reply)
            session.append(Document.of(EndTurn(), words, EndTurn()))
        replies.append(told)
    assert replies[0] == replies[1] and replies[0][0].pictures
    assert session.worker == "graph"


@pytest.mark.gpu
@pytest.mark.parametrize("seed", [1, 3])
def test_a_session_on_a_gpu_left_after_any_piece_goes_on_as_if_it_had_not_been(engine, seed):
    engine.model.cuda()
    settings, grammar = replace(WARM, guidance=2.0, max_tokens=60), Grammar(WORDS, CODES, min_images=2)
    whole = list(engine.begin(ASKED, settings, seed, grammar).stream())
    for stride in (1, 3):
        session, told = engine.begin(ASKED, settings, seed, grammar), list[Piece]()
        while not told or not isinstance(told[-1], StopPiece):
            told += islice(session.stream(), stride)
        assert list(map(plain, told)) == list(map(plain, whole))
