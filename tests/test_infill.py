"""Filling blanks: exactly what is missing comes, what stands there stays, and a prompt is what training rearranges."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
from support import LetterTokenizer

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints.provenance import LicenceError
from chameleon_lab.corpora.checker import read_scene
from chameleon_lab.corpora.holes import cells_of_thing, hole_document, telling_words, with_another_thing, without_thing
from chameleon_lab.corpora.infilling import cell_spans, code_places, restore
from chameleon_lab.corpora.scene_codes import drawn_with, image_of_scene, numbered_scene, scene_number, scene_range
from chameleon_lab.corpora.scenes import sample_scene, sample_where
from chameleon_lab.documents import Blank, Document, EndTurn, Image, Text, rectangle
from chameleon_lab.evaluation.infilling import HOLE_TASKS, hole_tasks, infilling_results, well_formed
from chameleon_lab.generation.guidance import TwoWay
from chameleon_lab.generation.infilling import infill_prompt
from chameleon_lab.records import FilledSegment
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.training import infilling as training
from chameleon_lab.vocabulary import Vocabulary

GRID = (4, 4)


class SpacedLetters(LetterTokenizer):
    """Four letters and a space."""

    size = 5

    def encode(self, text: str) -> list[int]:
        return ["abcd ".index(letter) for letter in text]

    def decode(self, pieces: Sequence[int]) -> str:
        return "".join("abcd "[piece] for piece in pieces)


@pytest.fixture
def spaced(image_tokenizer) -> MixedModalTokenizer:
    return MixedModalTokenizer(SpacedLetters(), image_tokenizer, Vocabulary.layout(image_tokenizer.codes, 5))


@pytest.fixture(scope="module")
def tiny() -> Chameleon:
    return Chameleon.load("tiny", device="cpu")


@pytest.fixture(params=["one grid", "any grid"])
def tokenizer(request, image_tokenizer) -> MixedModalTokenizer:
    side = 8 if request.param == "any grid" else 0
    vocabulary = Vocabulary.layout(image_tokenizer.codes, SpacedLetters.size, largest_side=side)
    return MixedModalTokenizer(SpacedLetters(), image_tokenizer, vocabulary)


def coded(rng: np.random.Generator, mask: object = None, grid: tuple[int, int] = GRID) -> Image:
    return Image(PIL.Image.new("RGB", (16, 16)), rng.integers(0, 12, grid), mask=mask)  # pyright: ignore[reportArgumentType]


def words(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abcd"), rng.integers(1, 5)))


def document_with_blanks(rng: np.random.Generator) -> Document:
    """Words, blanks, images whole and masked, in any order."""
    parts = list[object]()
    for kind in rng.choice(["words", "blank", "image", "masked", "turn"], rng.integers(1, 6)):
        mask = (rng.random(GRID) < rng.random()) if kind == "masked" else None
        made = {"words": words(rng), "blank": Blank(int(rng.integers(1, 5))), "turn": EndTurn()}
        parts.append(made.get(kind) or coded(rng, mask))
    blanks = sum(isinstance(part, Blank) or getattr(part, "mask", None) is not None for part in parts)
    if blanks > 6 or not any(isinstance(part, Blank) for part in parts):
        return Document.of("ab", Blank(2), "c", coded(rng, rng.random(GRID) < 0.5))
    return Document.of(*parts)  # pyright: ignore[reportArgumentType]


def check_filled(document: Document, filled: Document) -> None:
    """Nothing is missing, nothing else has changed."""
    assert not any(isinstance(part, Blank) or getattr(part, "mask", None) is not None for part in filled)
    before = [part for part in document if isinstance(part, Image)]
    after = [part for part in filled if isinstance(part, Image)]
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        assert one.codes is not None and other.codes is not None
        known = np.ones(GRID, bool) if one.mask is None else ~np.asarray(one.mask)
        assert np.array_equal(one.codes[known], other.codes[known]) and other.codes.min() >= 0
    blanks = [part for part in document if isinstance(part, Blank)]
    added = len(filled.text.replace(" ", "")) - len(document.text.replace(" ", ""))
    assert 0 <= added <= sum(blank.length for blank in blanks)


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_exactly_what_is_missing_is_filled(tokenizer, make_lab, guidance):
    lab, rng = make_lab(tokenizer), np.random.default_rng(5)
    documents = [document_with_blanks(rng) for _ in range(10)]
    alone = [lab.infill(document, seed=seed, guidance=guidance) for seed, document in enumerate(documents)]
    for document, filled in zip(documents, alone, strict=True):
        check_filled(document, filled)
    together = lab.engine.infill(documents, lab.settings.changed(guidance=guidance), range(10))
    assert together == alone  # each depends on its own seed only
    assert any(lab.infill(documents[0], seed=seed) != alone[0] for seed in range(20, 26))


def test_a_stream_ends_with_what_infill_gives(tokenizer, make_lab):
    lab, rng = make_lab(tokenizer), np.random.default_rng(6)
    for seed in range(6):
        document = document_with_blanks(rng)
        last = dict[int, FilledSegment]()
        places = [
            place
            for place, part in enumerate(document)
            if isinstance(part, Blank) or getattr(part, "mask", None) is not None
        ]
        for filled in lab.stream_infill(document, seed=seed):
            assert filled.place not in last or not last[filled.place].complete
            if isinstance(blank := document.segments[filled.place], Blank):
                assert isinstance(filled.segment, Text) and 1 <= len(filled.segment.text) <= blank.length
            last[filled.place] = filled
        empty = [
            at for at in places if isinstance(part := document.segments[at], Image) and not np.asarray(part.mask).any()
        ]
        assert sorted(last) == sorted(set(places) - set(empty)) and all(each.complete for each in last.values())
        whole = [part for part in lab.infill(document, seed=seed) if isinstance(part, Image)]
        streamed = {at: each.segment for at, each in last.items() if isinstance(each.segment, Image)}
        images = [at for at, part in enumerate(document) if isinstance(part, Image)]
        assert all(part == streamed[at] for at, part in zip(images, whole, strict=True) if at in streamed)


def test_cells_are_runs_of_rows_until_they_are_too_many():
    places_RC = np.arange(100, 164).reshape(8, 8)
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:6] = True
    assert cell_spans(places_RC, mask, 8) == [(119, 122), (127, 130), (135, 138)]
    assert cell_spans(places_RC, mask, 2) == [(119, 130), (135, 138)]
    rng = np.random.default_rng(0)
    for _ in range(200):
        hidden, most = rng.random((8, 8)) < rng.random(), int(rng.integers(1, 12))
        spans = cell_spans(places_RC, hidden, most)
        inside = np.zeros(64, bool)
        for start, stop in spans:
            assert (
                hidden.ravel()[start - 100]
                and hidden.ravel()[stop - 101]
                and not inside[start - 100 : stop - 100].any()
            )
            inside[start - 100 : stop - 100] = True
        assert len(spans) <= most and inside[hidden.ravel()].all()
        runs = sum(int((np.diff(np.append(0, row.astype(int))) == 1).sum()) for row in hidden)
        assert runs > most or (len(spans) == runs and np.array_equal(inside, hidden.ravel()))


def test_more_holes_than_sentinels_keep_the_cells_between(make_lab, spaced):
    lab, rng = make_lab(spaced), np.random.default_rng(1)
    board = np.indices(GRID).sum(0) % 2 == 0  # eight runs
    document = Document.of("a", Blank(1), coded(rng, board), coded(rng, ~board), "b", Blank(1))
    assert len(infill_prompt(document, spaced).holes) == spaced.vocabulary.sentinels
    check_filled(document, lab.infill(document, seed=3))


def test_the_prompt_is_what_a_rearranged_document_begins_with(tiny):
    """What a model is trained on and what it is asked are one: up to where the fillings begin."""
    rng, tokenizer = np.random.default_rng(0), tiny.tokenizer
    vocabulary, grid = tokenizer.vocabulary, tokenizer.grid
    for _ in range(12):
        scene = sample_where(rng, "trainable")
        words, image = scene.caption().split(" "), Image(scene.picture(), rng.integers(0, 512, grid))
        place = telling_words(words)[0]
        mask = cells_of_thing(scene.things[-1], grid)
        before, after = " ".join(words[:place]), " ".join(words[place + 1 :])
        for spaces in (" ", ""):
            blank = [before + spaces] * bool(before) + [Blank(), spaces + after]
            prompt = infill_prompt(Document.of(*blank, replace(image, mask=mask)), tokenizer)
            whole = tokenizer.encode(Document.of(scene.caption(), image))
            spans = [(1 + len(tokenizer.text.encode(before)), 2 + len(tokenizer.text.encode(before)))]
            begin = int(np.flatnonzero(whole == vocabulary.begin_image)[0])
            spans += cell_spans(code_places(whole, begin, grid, vocabulary), mask, 7)
            for start, _ in reversed(spans):
                whole[start] = -1
            kept = np.array([token for token, inner in zip(whole, _inner(len(whole), spans), strict=True) if not inner])
            number = np.cumsum(kept == -1) - 1
            kept = np.where(kept == -1, vocabulary.first_sentinel + number, kept)
            # A word with its comma has two pieces, of which the text behind has the second in the whole.
            if "," not in words[place]:
                assert np.array_equal(prompt.prompt, [*kept, vocabulary.end_document])


def _inner(length: int, spans: list[tuple[int, int]]) -> np.ndarray:
    inner = np.zeros(length, bool)
    for start, stop in spans:
        inner[start + 1 : stop] = True
    return inner


def test_words_beside_a_blank_become_one_text(tiny, make_lab, mixed, spelled, monkeypatch):
    for lab in (tiny, make_lab(mixed), make_lab(spelled)):
        filled = lab.infill(Document.of("a red ", Blank(3), " on a gray background", EndTurn(), "so"), seed=1)
        first, turn, last = filled
        assert (
            isinstance(first, Text) and first.text.startswith("a red") and first.text.endswith(" on a gray background")
        )
        assert turn == EndTurn() and last == Text("so")
    filled = tiny.infill(Document.of(Blank(2), Blank(1)), seed=1)
    assert len(filled) == 1 and len(tiny.tokenizer.text.encode(filled.text)) in (2, 3)


def test_guidance_leads_away_from_the_picture_without_words(make_lab, lettered):
    """Of strength 1 it changes nothing; a view of one's own is taken as it is."""
    lab, rng = make_lab(lettered), np.random.default_rng(2)
    document = Document.of("abcd", Blank(2), coded(rng, rng.random(GRID) < 0.6))
    views = list[np.ndarray]()

    def view(tokens, tokenizer):
        views.append(tokens)
        return tokens

    plain = lab.infill(document, seed=4, guidance=1.0)
    assert lab.infill(document, seed=4, guidance=TwoWay(5.0, view)) == plain and views  # away from itself
    assert any(
        lab.infill(document, seed=seed, guidance=6.0) != lab.infill(document, seed=seed, guidance=1.0)
        for seed in range(4)
    )


@pytest.mark.parametrize("painted", [False, True])
def test_a_mask_is_cells_a_rectangle_or_paint(lab, picture, painted):
    """Paint goes through what its picture goes through: it is cropped and scaled."""
    cells = rectangle((1, 3), (0, 2))
    mask = np.zeros(GRID, bool)
    mask[1:3, 0:2] = True
    if painted:
        wide = PIL.Image.fromarray(np.pad(np.asarray(picture.resize((32, 32))), ((0, 0), (8, 8), (0, 0))))
        paint = np.zeros((32, 48), bool)
        paint[9:23, 9:23] = True  # of the crop of 32 pixels, from row 9 and column 1 on
        one, other = Image(wide, mask=paint), Image(wide, mask=mask)
    else:
        one, other = Image(picture, mask=cells), Image(picture, mask=mask)
    assert lab.infill(Document.of(one), seed=1) == lab.infill(Document.of(other), seed=1)
    speck = np.zeros((16, 16), bool)
    speck[7, 12] = True  # a cell is missing where anything of it is
    prompt = infill_prompt(Document.of(Image(picture, mask=speck)), lab.tokenizer)
    assert np.argwhere(prompt.codes[0] < 0).tolist() == [[1, 3]]
    large = picture.resize((1000, 500))
    thin = np.zeros((500, 1000), bool)
    thin[200, 560] = True  # of a picture that is scaled down, too
    prompt = infill_prompt(Document.of(Image(large, mask=thin)), lab.tokenizer)
    assert np.argwhere(prompt.codes[0] < 0).tolist() == [[1, 2]]
    thin[:], thin[:, :5] = False, True
    with pytest.raises(ValueError, match=r"500 x 1000 pixels lies outside .* cropped to 4 x 4 cells"):
        infill_prompt(Document.of(Blank(), Image(large, mask=thin)), lab.tokenizer)  # and not filled without a word


def test_what_cannot_be_filled_is_one_error_that_says_what_to_do(lab, make_lab, picture, mixed, lettered):
    rng = np.random.default_rng(0)
    bare = MixedModalTokenizer(lettered.text, lettered.image, Vocabulary.layout(12, 4, sentinels=0))
    cases: list[tuple[Chameleon, Callable[[], Document], str]] = [
        (lab, lambda: Document.of("nothing is missing", picture), "has no blank: put Blank"),
        (lab, lambda: Document.of(Image(picture, mask=np.zeros(GRID, bool))), "has no blank"),
        (
            lab,
            lambda: Document.of(Image(picture, mask=np.ones((5, 4), bool))),
            "has 5 x 4 fields; it must have .* 4 x 4 cells",
        ),
        (
            lab,
            lambda: Document.of(Image(picture, mask={(0, 1), (2, 4)})),
            r"hides cell \(2, 4\), and the image has 4 x 4",
        ),
        (lab, lambda: Document.of(*["a", Blank()] * 9), "8 sentinels and infilling needs 9"),
        (make_lab(bare), lambda: Document.of("a", Blank()), "no sentinels and infilling needs 1.*sentinels=8"),
        (lab, lambda: Document.of("a", Blank(5000)), "Blank\\(length=...\\), now 5000"),
        (lab, lambda: Document.of("a" * 153, Blank(3)), "fillings may take 5 more, and there is room for 4"),
        (lab, lambda: Document.of("a" * 400, Blank(3)), "has 403 tokens and the model's context holds 160"),
        (lab, lambda: Document.of(*[coded(rng, np.ones(GRID, bool))] * 8), "mask fewer cells"),
        (lab, lambda: Document.of(Blank(0)), "tokens of a blank must be a whole number from 1"),
        (lab, lambda: Document.of(Image(picture, mask=[1, 2])), "A mask is booleans"),  # pyright: ignore[reportArgumentType]
        (lab, lambda: Document.of(Image(picture, mask=np.ones((4, 4)))), "not an array of float64"),
        (lab, lambda: Document.of(Image(picture, mask={(-1, 2)})), "A mask is booleans"),
    ]
    for owner, document, message in cases:
        with pytest.raises(ValueError, match=message):
            pytest.fail(f"It was filled, instead of {message!r}: {owner.infill(document(), seed=0)}")
        with pytest.raises(ValueError, match=message):
            owner.stream_infill(document(), seed=0)  # at once, not where the stream begins
    for blank in (Blank(), Image(picture, mask=rectangle((0, 1), (0, 1)))):
        with pytest.raises(ValueError, match=r"which only lab.infill\(document\) can fill"):
            lab.generate(Document.of("a", blank))
    barred = Chameleon(lab.model, mixed, card={"licence": "Chameleon Research License"})
    with pytest.raises(LicenceError):
        barred.infill(Document.of(Image(picture, mask=rectangle((0, 1), (0, 1)))))
    assert barred.infill(Document.of("a", Blank(2)), seed=0).text.startswith("a")


def test_blanks_and_masks_survive_json_and_notebooks(picture):
    mask = np.eye(4, dtype=bool)
    document = Document.of("a ", Blank(3), Blank(learn=False), Image(picture, mask=mask), Image(picture, mask={(1, 2)}))
    again = Document.from_json(document.to_json())
    assert again == document and Document.of(Image(picture)) != Document.of(Image(picture, mask=mask))
    assert Image(picture, mask={(1, 2)}) != Image(picture, mask=mask) and hash(again) == hash(document)
    assert 'aria-label="blank"' in document._repr_html_() and "masked" in repr(document.segments[3])
    for wrong in ('[{"blank": 0}]', '[{"blank": "x"}]', '[{"blank": [1]}]'):
        with pytest.raises(ValueError, match="Segment 0 of the document cannot be read"):
            Document.from_json(wrong)


# Scenes


def test_bare_ground_and_two_things_of_a_row_have_no_number():
    rng = np.random.default_rng(1)
    row, single = sample_scene(rng, 3), sample_scene(rng, 1)
    assert scene_number(without_thing(row, 1)) is None and scene_number(without_thing(single, 0)) is None
    for _ in range(50):
        scene = sample_where(rng, "trainable")
        place = int(rng.integers(len(scene.things)))
        other = with_another_thing(scene, place, rng)
        assert not other.novel and [
            at for at, pair in enumerate(zip(scene.things, other.things, strict=True)) if pair[0] != pair[1]
        ] in ([place], [])


def test_every_scene_has_a_number():
    rng = np.random.default_rng(0)
    for _ in range(600):
        scene = sample_scene(rng)
        number = scene_number(scene)
        assert (
            number is not None and numbered_scene(number) == scene and number in range(*scene_range(len(scene.things)))
        )


@pytest.fixture(scope="module")
def scene_codes(tiny, tmp_path_factory):
    numbers = np.concatenate([np.arange(0, 6000, 40), training.scenes_to_encode(60)[-60:]])
    return training.encode_scenes(tiny.tokenizer, tmp_path_factory.mktemp("scenes") / "codes", numbers)


def test_codes_of_scenes_are_those_of_their_pictures(tiny, scene_codes):
    for number in scene_codes.numbers_S[::12]:
        scene = numbered_scene(int(number))
        assert scene.trainable and np.array_equal(scene_codes[scene], tiny.tokenizer.image.encode(scene.picture()))
        assert image_of_scene(scene).codes is None
        with drawn_with(scene_codes):
            assert image_of_scene(scene) == Image(scene.picture(), scene_codes[scene])
    assert len(scene_codes.scenes_of(1)) + len(scene_codes.scenes_of(3)) == len(scene_codes.numbers_S)
    numbers = np.concatenate([np.arange(0, 6000, 40), training.scenes_to_encode(60)[-60:]])
    again = training.encode_scenes(tiny.tokenizer, scene_codes.folder, numbers)  # what is there is taken
    assert np.array_equal(again.numbers_S, scene_codes.numbers_S)
    with pytest.raises(ValueError, match="holds codes of other scenes"):
        training.encode_scenes(tiny.tokenizer, scene_codes.folder, np.arange(9))


def test_documents_with_holes_are_whole_documents_rearranged(tiny, scene_codes):
    rng, vocabulary = np.random.default_rng(3), tiny.vocabulary
    for number in scene_codes.numbers_S:
        scene = numbered_scene(int(number))
        document = hole_document(scene, Image(scene.picture(), scene_codes[scene]), tiny.tokenizer, rng)
        whole = tiny.decode(restore(document.tokens, vocabulary)[:-1])
        assert whole.text in ("", scene.caption())
        assert [part.codes.tolist() for part in whole if isinstance(part, Image) and part.codes is not None] == [
            scene_codes[scene].tolist()
        ]
        assert len(restore(document.tokens, vocabulary)) < len(document.tokens) and document.learn[1:].all()


def test_batches_are_a_pure_function_that_travels_to_other_processes(tiny, scene_codes):
    data = training.InfillDocuments(scene_codes.folder, tiny.tokenizer, tokens=600)
    batches = training.InfillBatches(data, 3)
    ahead = pickle.loads(pickle.dumps(partial(training.InfillBatches, data, 3)))()  # as `made_ahead` sends it
    for step in (0, 17, 1):
        one, other = batches(step), ahead(step)
        assert torch.equal(one.inputs_BT, other.inputs_BT) and torch.equal(one.targets_BT, other.targets_BT)
        assert (
            one.weights_BT is not None
            and other.weights_BT is not None
            and torch.equal(one.weights_BT, other.weights_BT)
        )
    ended = (one.inputs_BT == tiny.vocabulary.end_document).cumsum(1) > 0
    assert torch.equal(one.weights_BT == data.filling_weight, ended) and ended.any() and not ended.all()


def test_one_call_trains_a_model_that_fills(tmp_path, monkeypatch):
    short = replace(training.INFILLING, recipe=replace(training.INFILLING.recipe, warm_up=2))
    monkeypatch.setattr(training, "INFILLING", short)
    lab = training.train_infilling(tmp_path, minutes=0.02, tokens=200)
    before = Chameleon.load("tiny", device="cpu").model.state_dict()
    changes = [float((value - before[name]).abs().mean()) for name, value in lab.model.state_dict().items()]
    assert 0 < max(changes) < 0.1  # it began from the tiny model's weights, and went on
    assert lab.card["steps"] >= 1 and lab.card["experiment"]["begins_from"]["source"] == "tiny"
    results = list(infilling_results(lab, n=1))
    cards = {each.value.card.metric: each.value.card for each in results}
    assert len(cards) == 6 and all(card.n == 1 and card.seed == 2026 for card in cards.values())
    assert len({card.reference_hash for card in cards.values()}) == len(HOLE_TASKS)  # each was asked something else
    assert all(str(lab.settings.image_temperature) in card.definition for card in cards.values())
    data = training.InfillDocuments(tmp_path / "scenes", lab.tokenizer)
    begin = replace(short, model=replace(short.model, layers=2), data=data).prepare(tmp_path).begin
    with pytest.raises(ValueError, match="a model of another shape: layers 6 there, 2 here"):
        assert begin is not None
        begin()


def test_tasks_are_right_when_they_are_filled_with_the_truth_and_wrong_otherwise(tiny):
    """The judge by itself: truth that went through the image tokenizer is right, another scene or word is not."""
    grid = tiny.tokenizer.grid
    for kind in ("named", "unnamed", "word"):
        rights = dict[bool, list[bool]]()
        for at, task in enumerate(hole_tasks(kind, 12, 5, grid)):
            picture = next(part.picture for part in task.document if isinstance(part, Image))
            again = tiny.tokenizer.image.reconstruct(picture).picture
            truth = {"named": Document.of(again), "unnamed": Document.of(again)}.get(kind)
            if kind == "word":
                rng = np.random.default_rng([5, 18, list(HOLE_TASKS).index(kind)])
                scenes = list[str]()
                for _ in range(at + 1):
                    scene = sample_where(rng, "held_out")
                    rng.integers(len(telling_words(scene.caption().split(" "))))
                    scenes.append(scene.caption())
                truth = Document.of(scenes[-1])
            wrong = Document.of("another", PIL.Image.new("RGB", (64, 64), "gray"))
            for right, filled in ((True, truth), (False, wrong)):
                assert filled is not None
                rights.setdefault(right, []).extend(task.verdicts(filled).values())
        assert np.mean(rights[True]) > 0.9 and not any(rights[False])
    assert not well_formed(read_scene(PIL.Image.new("RGB", (64, 64), "gray")))


def test_a_model_that_never_saw_a_hole_says_so_once(tiny: Chameleon, caplog: pytest.LogCaptureFixture) -> None:
    document = Document.of("a red ", Blank(1), " on a gray background")
    for infill, messages in ((0.75, 0), (None, 0), (0.0, 1)):  # a card without the word says nothing
        card = {} if infill is None else {"infill": infill}
        lab = Chameleon(tiny.model, tiny.tokenizer, tiny.settings, card)
        lab.infill(document)
        lab.infill(document, seed=1)
        assert len(caplog.messages) == messages
    assert "Chameleon.load('infilling')" in caplog.text
    holds = {name: Chameleon.load(name, device="cpu").card["infill"] for name in ("tiny", "infilling", "instructions")}
    assert holds == {"tiny": 0.0, "infilling": 0.75, "instructions": 0.0}
