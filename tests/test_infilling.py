"""The CM3 objective: nothing is lost, no span crosses a break, and spans are distributed as their law says."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from support import same

from chameleon_lab.corpora.infilling import Span, Spans, holds_sentinels, move_spans, restore, segments
from chameleon_lab.corpora.mixture import Mixture, SceneBatches, Stage
from chameleon_lab.corpora.packing import TokenizedDocument, pack
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.vocabulary import CHAMELEON, Vocabulary

SMALL = Vocabulary.layout(12, 60)
GRIDS = Vocabulary.layout(12, 60, largest_side=8)
VOCABULARIES = {"small": SMALL, "grids": GRIDS, "chameleon": CHAMELEON, "two sentinels": Vocabulary.layout(12, 9, 2)}
LAWS = {
    "public": Spans(),
    "crowded": Spans(mean=6),
    "per document": Spans(mean=2, per="document"),
    "inexact": Spans(mean=4, exact=False),
    "unlearned sentinels": Spans(mean=2, learn_sentinels=False),
}


def words(rng: np.random.Generator, count: int, vocabulary: Vocabulary = SMALL) -> list[int]:
    return rng.integers(vocabulary.first_text, vocabulary.size, count).tolist()


def any_tokens(rng: np.random.Generator, vocabulary: Vocabulary, length: int) -> np.ndarray:
    """Any tokens but sentinels, however ill-formed; breaks, begins and ends are a third of them."""
    tokens = rng.integers(0, vocabulary.size, length)
    sentinels = (tokens >= vocabulary.first_sentinel) & (tokens < vocabulary.first_sentinel + vocabulary.sentinels)
    tokens[sentinels] = vocabulary.first_text
    breaks = rng.random(length) < rng.choice([0, 0.05, 0.33])
    tokens[breaks] = rng.choice(vocabulary.breaks, breaks.sum())
    return tokens


def fillings(tokens: np.ndarray, vocabulary: Vocabulary) -> list[np.ndarray]:
    """The spans at the end of a rearranged document, read without the code that restores it."""
    numbers = tokens - vocabulary.first_sentinel
    places = np.flatnonzero((numbers >= 0) & (numbers < vocabulary.sentinels))
    places = places[len(places) // 2 :]
    return [tokens[start + 1 : stop - 1] for start, stop in pairwise([*places.tolist(), len(tokens)])]


def holes(tokens: np.ndarray, vocabulary: Vocabulary = SMALL) -> float:
    """How many spans moved."""
    return np.isin(tokens, vocabulary.first_sentinel + np.arange(vocabulary.sentinels)).sum() / 2


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=VOCABULARIES)
def test_any_document_comes_back(law: Spans, vocabulary: Vocabulary):
    rng, moved = np.random.default_rng(0), 0
    for length in [*range(12), *rng.integers(12, 400, 40)]:
        for _ in range(4):
            tokens = any_tokens(rng, vocabulary, length)
            rearranged = law.rearrange(tokens, rng, vocabulary)
            assert np.array_equal(restore(rearranged, vocabulary), tokens)
            assert (len(rearranged) - len(tokens)) % 3 == 0 and (length == 0 or rearranged[0] == tokens[0])
            cuts = np.flatnonzero(rearranged == vocabulary.begin_document) if law.per == "document" else ()
            parts = np.split(rearranged, cuts)
            for filling in (each for part in parts for each in fillings(part, vocabulary)):
                assert len(filling) and not np.isin(filling, vocabulary.breaks).any()
                moved += 1
    assert moved > 50


def test_documents_written_one_after_another_come_back_by_either_reading():
    """A block's spans stand behind its last document, each document's behind itself."""
    rng = np.random.default_rng(1)
    for law in LAWS.values():
        for count in range(1, 5):
            for _ in range(20):
                parts = [[0, *words(rng, int(rng.integers(0, 30))), 2] for _ in range(count)]
                block = np.array([token for part in parts for token in part])
                rearranged = law.rearrange(block, rng, SMALL)
                assert np.array_equal(restore(rearranged, SMALL), block)
                begins = np.flatnonzero(rearranged == 0)
                behind = [holds_sentinels(part, SMALL) for part in np.split(rearranged, begins[1:])]
                if law.per == "document":
                    assert all(
                        len(part) % 3 == len(whole) % 3
                        for part, whole in zip(np.split(rearranged, begins[1:]), parts, strict=True)
                    )
                elif any(behind):
                    assert behind[-1]


BLOCK = 3000  # long enough that no span is empty and hardly a draw is repeated


def drawn(law: Spans, count: int, tokens: np.ndarray) -> list[list[Span]]:
    rng = np.random.default_rng(5)
    return [law.draw(tokens, rng, SMALL) for _ in range(count)]


def test_the_number_of_spans_is_poisson_and_clipped_to_the_sentinels():
    tokens = np.full(BLOCK, SMALL.first_text)

    def fit(law: Spans, mean: float) -> float:
        """The p-value of the numbers drawn as Poisson numbers of a mean, cut off below the number of sentinels."""
        counts = np.bincount([len(spans) for spans in drawn(law, 4000, tokens)], minlength=SMALL.sentinels)
        shares = stats.poisson.pmf(np.arange(SMALL.sentinels), mean)
        shares[-1] += 1 - shares.sum()
        rare = int((4000 * shares >= 5).sum()) - 1  # cells of few are one
        counts, shares = ([*cells[:rare], cells[rare:].sum()] for cells in (counts, shares))
        return stats.chisquare(counts, 4000 * np.array(shares)).pvalue

    assert fit(Spans(), 1) > 1e-3 and fit(Spans(mean=3), 3) > 1e-3
    assert fit(Spans(mean=1.2), 1) < 1e-6 and fit(Spans(exact=False), 1) < 1e-6


@pytest.mark.parametrize("count", [1, 2, 3])
def test_ends_of_spans_are_the_neighbours_among_sorted_uniform_numbers(count: int):
    """The i-th of 2n sorted uniform numbers is distributed as Beta(i, 2n + 1 - i), and gaps between them alike."""
    tokens = np.full(BLOCK, SMALL.first_text)
    spans = np.array([each for each in drawn(Spans(mean=count), 4000, tokens) if len(each) == count])
    assert len(spans) > 400
    ends = (spans.reshape(len(spans), 2 * count) - 1) / (BLOCK - 1)
    for place in range(2 * count):
        assert stats.kstest(ends[:, place], stats.beta(place + 1, 2 * count - place).cdf).pvalue > 1e-4
    lengths = (spans[:, :, 1] - spans[:, :, 0])[:, 0] / (BLOCK - 1)
    assert stats.kstest(lengths, stats.beta(1, 2 * count).cdf).pvalue > 1e-4
    assert stats.kstest(lengths, stats.beta(1, 2 * count + 2).cdf).pvalue < 1e-4  # the test can fail


def test_a_span_is_clipped_to_the_segment_that_it_covers_most_of():
    """Between two breaks lie two thirds of a document: what crosses one stays on its larger side."""
    tokens = np.full(300, SMALL.first_text)
    tokens[[100, 150]] = SMALL.begin_image, SMALL.end_image
    assert segments(tokens, SMALL) == [(1, 100), (101, 150), (151, 300)]
    expected, rng = list[tuple[int, int]](), np.random.default_rng(3)
    for _ in range(6000):
        start, stop = np.sort(rng.uniform(1, 300, 2))
        shares = [min(stop, high) - max(start, low) for low, high in ((1, 100), (101, 150), (151, 300))]
        best = int(np.argmax(shares))
        expected.append((max(start, (1, 101, 151)[best]), min(stop, (100, 150, 300)[best])))  # pyright: ignore[reportArgumentType]
    spans = np.array([each[0] for each in drawn(Spans(), 9000, tokens) if len(each) == 1])
    ours, theirs = ([pairs[:, 0], pairs[:, 1], pairs[:, 1] - pairs[:, 0]] for pairs in (spans, np.array(expected)))
    for one, other in zip(ours, theirs, strict=True):
        grid = np.arange(301)  # the two distributions, place by place: whole numbers beside fractions
        shares = [np.searchsorted(np.sort(each), grid, "right") / len(each) for each in (one, other)]
        assert np.abs(shares[0] - shares[1]).max() < 0.04


def test_the_papers_reading_draws_a_number_for_each_document():
    rng = np.random.default_rng(2)
    block = np.concatenate([[0, *words(rng, 200), 2] for _ in range(20)])
    counts = {
        per: np.mean([holes(Spans(per=per).rearrange(block, rng, SMALL)) for _ in range(60)])  # pyright: ignore[reportArgumentType]
        for per in ("block", "document")
    }
    assert abs(counts["block"] - 1) < 0.6 and abs(counts["document"] - 20) < 2.4  # four standard errors


def test_learn_flags_move_with_their_tokens():
    rng = np.random.default_rng(4)
    for law in LAWS.values():
        for _ in range(60):
            tokens = any_tokens(rng, SMALL, 90)
            tokens[1:] = np.where(np.isin(tokens[1:], (0, 2)), SMALL.first_text, tokens[1:])
            learn = np.repeat(rng.random(9) < 0.6, 10)  # stretches of a prompt, which are not learned, and others
            moved = law.rearrange_document(TokenizedDocument(tokens, learn), rng, SMALL)
            # The flags as tokens of the same rearrangement: sentinels and ends are where the tokens have them.
            marks = np.isin(np.arange(len(moved.tokens)), _added(moved.tokens))
            assert np.array_equal(restore_flags(moved), learn)
            sentinels = marks & (moved.tokens != SMALL.end_image)
            assert law.learn_sentinels or not moved.learn[sentinels].any()
            start = _first_tail(moved.tokens)
            for filling, flags in _tails(moved, start):
                assert flags[-1] == flags[1:-1].any() and filling[-1] == SMALL.end_image
                assert flags[0] == (law.learn_sentinels and flags[1:-1].any())


def _added(tokens: np.ndarray) -> list[int]:
    """Places of sentinels and of the ends of fillings."""
    places = [*np.flatnonzero((tokens >= SMALL.first_sentinel) & (tokens < SMALL.end_turn))]
    tails = places[len(places) // 2 :]
    return [*map(int, places), *(int(stop) - 1 for stop in [*tails[1:], len(tokens)] if tails)]


def _first_tail(tokens: np.ndarray) -> int:
    places = np.flatnonzero((tokens >= SMALL.first_sentinel) & (tokens < SMALL.end_turn))
    return int(places[len(places) // 2]) if len(places) else len(tokens)


def _tails(document: TokenizedDocument, start: int) -> list[tuple[np.ndarray, np.ndarray]]:
    tokens, learn = (array[start:] for array in document)
    cuts = np.flatnonzero((tokens >= SMALL.first_sentinel) & (tokens < SMALL.end_turn))[1:]
    return list(zip(np.split(tokens, cuts), np.split(learn, cuts), strict=True)) if len(tokens) else []


def restore_flags(document: TokenizedDocument) -> np.ndarray:
    """The learn flags of the document that was rearranged: of each token a number, which `restore` takes back."""
    wide = Vocabulary.layout(12, 2000)
    shift = wide.first_text - SMALL.first_text
    tokens = document.tokens.copy()
    added = set(_added(tokens))
    plain = [place for place in range(len(tokens)) if place not in added]
    tokens[plain] = SMALL.first_text + np.arange(len(plain)) + shift
    order = restore(tokens, wide) - SMALL.first_text - shift
    return document.learn[plain][order]


def test_what_cannot_be_rearranged_or_restored_says_why():
    document = TokenizedDocument(np.array([0, 30, 31, 32, 2]), np.ones(5, bool))
    none, one = Vocabulary.layout(12, 60, sentinels=0), Vocabulary.layout(12, 60, sentinels=1)
    reserved = replace(none, first_text=none.first_text + 4, size=none.size + 4)
    for vocabulary, words_of in (
        (none, "layout"),
        (one, "1 sentinels and infilling needs 2"),
        (reserved, "first_sentinel=19"),
    ):
        with pytest.raises(ValueError, match=words_of):
            Spans(mean=50).rearrange(document.tokens, np.random.default_rng(0), vocabulary)
    replace(reserved, first_sentinel=19, sentinels=4).require_sentinels(4)  # what the message says, done
    first = SMALL.first_sentinel
    moved = move_spans(document, [Span(1, 2), Span(2, 4)], SMALL)
    assert moved.tokens.tolist() == [
        0,
        first,
        first + 1,
        2,
        first,
        30,
        SMALL.end_image,
        first + 1,
        31,
        32,
        SMALL.end_image,
    ]
    for call, message in (
        (lambda: move_spans(moved, [], SMALL), "hold sentinels already"),
        (lambda: move_spans(document, [Span(2, 4), Span(1, 2)], SMALL), "rise and not overlap"),
        (lambda: move_spans(document, [Span(2, 9)], SMALL), "within 0..5"),
        (lambda: move_spans(document, [Span(1, 1)] * 9, SMALL), "needs 9"),
        (lambda: restore(moved.tokens[:-1], SMALL), "has no end"),
        (lambda: restore(moved.tokens[:6], SMALL), "no rearranged document"),
        (lambda: restore(np.array([0, first + 1, first + 1, SMALL.end_image]), SMALL), "no rearranged document"),
        (lambda: restore(np.array([0, 99999]), SMALL), "Token ids must lie"),
        (lambda: Spans(mean=-1), "0 or more"),
        (lambda: Spans(per="page"), "per 'block'"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(ValueError, match=message):
            call()


def documents_of(rng: np.random.Generator, count: int) -> list[TokenizedDocument]:
    image = [SMALL.begin_image, *[SMALL.first_image + 3] * 16, SMALL.end_image]
    result = list[TokenizedDocument]()
    for number in range(count):
        tokens = np.array([0, *words(rng, 3 + number % 17), *image * (number % 3), *words(rng, 1 + number % 5), 2])
        learn = np.arange(len(tokens)) > number % 4
        result.append(TokenizedDocument(tokens, learn))
    return result


def unpacked(mixture: Mixture, step: int) -> list[TokenizedDocument]:
    batch, result = mixture(step), list[TokenizedDocument]()
    assert batch.documents_BT is not None
    for row, numbers_T in enumerate(batch.documents_BT):
        for number in range(int(numbers_T.max()) + 1):
            places = (numbers_T == number).nonzero()[:, 0]
            tokens = np.append(batch.inputs_BT[row, places], batch.targets_BT[row, places[-1:]])
            if tokens[0] != SMALL.pad:
                learn = np.append(False, batch.learned_BT[row, places])
                result.append(TokenizedDocument(tokens, learn))
    return result


def test_a_mixture_rearranges_its_share_of_whole_documents_and_packs_them_alike():
    documents = documents_of(np.random.default_rng(0), 120)
    make: Callable[..., Mixture] = lambda **options: Mixture(  # noqa: E731
        {"a": documents}, [Stage({"a": 1})], SMALL, context=150, rows=4, **options
    )
    plain, mixed = make(), make(infill=0.5)
    steps = range(-(-len(mixed._parts["a"]) // 4))  # pyright: ignore[reportPrivateUsage]
    pieces = [piece for step in steps for piece in unpacked(mixed, step)]
    originals = sorted(tuple(document.tokens) for document in documents)
    assert sorted({tuple(restore(piece.tokens, SMALL)) for piece in pieces}) == sorted(set(originals))
    share = np.mean([holds_sentinels(piece.tokens, SMALL) for piece in pieces])
    assert 0.2 < share < 0.45  # half of them, of which 37 % draw no span
    assert same(make(infill=0.5)(3), mixed(3)) and not same(plain(3), mixed(3)) and same(make(infill=0.0)(3), plain(3))
    mean = np.mean([len(fillings(piece.tokens, SMALL)) for piece in pieces])
    assert 0.35 < mean < 0.65  # rows have room for nearly all
    again = [piece for step in steps for piece in unpacked(make(infill=1.0, spans=Spans(mean=3)), step)]
    assert {tuple(restore(piece.tokens, SMALL)) for piece in again} <= set(originals)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="infill is the share"):
            make(infill=wrong)
    with pytest.raises(ValueError, match="no sentinels"):
        Mixture({"a": documents}, [Stage({"a": 1})], Vocabulary.layout(12, 60, 0), context=150, rows=4, infill=0.5)


def test_rearranged_documents_pack_and_those_with_blanks_stay_as_they_are(mixed: MixedModalTokenizer):
    rng, documents = np.random.default_rng(1), documents_of(np.random.default_rng(0), 30)
    moved = [Spans(mean=2).rearrange_document(each, rng, SMALL) for each in documents]
    batches = pack(moved, 90, SMALL)
    tokens = sum(len(each.tokens) - 1 for each in moved)
    assert sum(int((batch.targets_BT != SMALL.pad).sum()) for batch in batches) == tokens
    mixture = Mixture({"a": moved}, [Stage({"a": 1})], SMALL, context=150, rows=30, infill=1.0)
    whole = {tuple(each.tokens) for each in moved if holds_sentinels(each.tokens, SMALL)}
    assert whole <= {tuple(piece.tokens) for step in range(2) for piece in unpacked(mixture, step)}


def test_scene_batches_are_the_same_but_for_what_is_rearranged():
    from chameleon_lab.chameleon import Chameleon

    tokenizer = Chameleon.load("tiny").tokenizer
    weights = {"plain_text": 1.0, "caption_first": 1.0}
    rows = {}
    for infill in (0.0, 0.7):
        batches = [SceneBatches(tokenizer, 3, 512, 2, weights, infill)(step) for step in range(2)]
        begin = tokenizer.vocabulary.begin_document
        rows[infill] = sorted(
            tuple(restore(tokens[: (tokens != 1).sum()], tokenizer.vocabulary))
            for batch in batches
            for tokens in np.concatenate([batch.inputs_BT[:, :1], batch.targets_BT.numpy()], 1)
        )
        assert all(row[0] == begin for row in rows[infill])
    assert rows[0.0] == rows[0.7]
