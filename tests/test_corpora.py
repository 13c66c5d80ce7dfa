"""Corpora: scenes tell the truth, the split holds by construction, batches are arithmetic."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import same

from chameleon_lab.corpora import conversations
from chameleon_lab.corpora.conversations import (
    NUMBERS,
    SCENE_KINDS,
    Edit,
    Question,
    draw_request,
    questions,
    sample_edit,
)
from chameleon_lab.corpora.mixture import SCENE_WEIGHTS, SceneBatches, sample_documents
from chameleon_lab.corpora.packing import bucket, collate, tokenize
from chameleon_lab.corpora.scenes import (
    BACKGROUNDS,
    COLOURS,
    NOVEL_PAIRS,
    PLACES,
    SHAPES,
    SIDE,
    SIZES,
    Scene,
    Thing,
    arrange,
    sample_scene,
    sample_where,
)
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.tokenizers.text import SentencePieceTokenizer
from chameleon_lab.vocabulary import Modality

TRAINABLE, HELD_OUT, NOVEL = "trainable", "held_out", "novel"


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(count)]


# Scenes


def test_a_caption_names_one_scene_and_a_scene_has_one_look():
    by_caption: dict[str, Scene] = {}
    by_look: dict[bytes, str] = {}
    for scene in scenes(1500):
        assert by_caption.setdefault(scene.caption(), scene) == scene
        assert by_look.setdefault(scene.picture().tobytes(), scene.caption()) == scene.caption()
    assert len(by_caption) > 1400


def test_a_caption_says_every_attribute():
    for scene in scenes(300):
        caption = scene.caption()
        assert f"on a {scene.background} background" in caption
        places = [caption.index(f"{thing.size} {thing.colour} {thing.shape}") for thing in scene.things]
        assert places == sorted(places)
        assert scene.layout != "single" or scene.place in caption


def test_every_single_change_shows():
    thing = Thing("circle", "red", "large", 32, 32)
    scene = Scene((thing,), "gray", "single")
    changes = [replace(thing, shape=shape) for shape in SHAPES] + [replace(thing, colour=colour) for colour in COLOURS]
    changes += [replace(thing, size=size) for size in SIZES] + [replace(thing, x=x, y=y) for x, y in PLACES]
    others = {replace(scene, things=(other,)) for other in changes} | {
        replace(scene, background=name) for name in BACKGROUNDS
    }
    assert len({other.picture().tobytes() for other in others}) == len(others) == 7 + 7 + 1 + 8 + 5 + 1


def test_pictures_are_drawn_where_and_as_the_truth_says():
    for scene in scenes(100):
        pixels = np.asarray(scene.picture())
        assert pixels.shape == (SIDE, SIDE, 3)
        clear = np.ones((SIDE, SIDE), bool)
        for thing in scene.things:
            reach = SIZES[thing.size] + 2
            clear[max(thing.y - reach, 0) : thing.y + reach, max(thing.x - reach, 0) : thing.x + reach] = False
            if thing.shape != "ring":
                assert tuple(pixels[thing.y, thing.x]) == COLOURS[thing.colour]
            else:
                assert tuple(pixels[thing.y, thing.x]) == BACKGROUNDS[scene.background]
        assert (pixels[clear] == BACKGROUNDS[scene.background]).all()


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="No shape is called 'blob'; the shapes are circle, square"):
        arrange([("blob", "red", "small")], "single", "gray").picture()


def test_things_of_one_scene_never_overlap_nor_leave_it():
    for scene in scenes(1000):
        boxes = [
            (t.x - SIZES[t.size], t.y - SIZES[t.size], t.x + SIZES[t.size], t.y + SIZES[t.size]) for t in scene.things
        ]
        assert all(left >= 0 and top >= 0 and right <= SIDE and bottom <= SIDE for left, top, right, bottom in boxes)
        for one, (a, b, c, d) in enumerate(boxes):
            assert all(c <= e or g <= a or d <= f or h <= b for e, f, g, h in boxes[:one])


# The split


def test_the_split_has_three_sides_and_no_seed_in_it():
    assert len(NOVEL_PAIRS) == len({shape for _, shape in NOVEL_PAIRS}) == len({c for c, _ in NOVEL_PAIRS}) == 8
    rng = np.random.default_rng(0)
    for side in (TRAINABLE, HELD_OUT, NOVEL):
        for count in (1, 2, 3):
            scene = sample_where(rng, side, count)
            assert len(scene.things) == count
            assert scene.trainable == (side == TRAINABLE)
            assert scene.novel == (side == NOVEL) == any(thing.pair in NOVEL_PAIRS for thing in scene.things)
            assert all(replace(scene, background=name).trainable == scene.trainable for name in BACKGROUNDS)


def test_one_arrangement_in_ten_is_held_out():
    arrangements = {scene.things: scene for scene in scenes(4000)}
    share = np.mean([scene.held_out for scene in arrangements.values()])
    assert 0.08 < share < 0.125


@pytest.mark.parametrize("kind", list(SCENE_KINDS))
def test_no_document_shows_or_teaches_what_is_held_out_or_novel(kind, monkeypatch):
    scenes_drawn: list[Scene] = []
    drawn = conversations._image
    monkeypatch.setattr(
        conversations, "_image", lambda scene, learn=True: (scenes_drawn.append(scene), drawn(scene, learn))[1]
    )
    rng, novel = np.random.default_rng(7), [f"{colour} {shape}" for colour, shape in NOVEL_PAIRS]
    pictures = 0
    for _ in range(200):
        document = SCENE_KINDS[kind](rng)
        pictures += len(document.pictures)
        learned = " ".join(part.text for part in document if isinstance(part, Text) and part.learn)
        assert not any(pair in learned for pair in novel)
    assert len(scenes_drawn) == pictures and (pictures or kind == "plain_text")
    assert all(scene.trainable for scene in scenes_drawn)


# Documents


def flags(document: Document) -> str:
    """One letter a segment: text, image, end of turn; a capital where it is learned."""
    names = {Text: "t", Image: "i", EndTurn: "e"}
    letters = [names[type(part)] for part in document]
    return "".join(
        letter.upper() if part.learn else letter for letter, part in zip(letters, document.segments, strict=True)
    )


SHAPES_OF_DOCUMENTS = {
    "caption_first": "TI",
    "picture_first": "[iI]T",
    "drawing": "teIE",
    "asking": "iteTE(teTE)*",
    "editing": "iI|iteIE",
    "conversation": "(teTE)*(teIE|iteTE)?(teIE|teTE)*",
    "story": "TITI|teTITIE",
    "plain_text": "teTE|T",
}


@pytest.mark.parametrize("kind", list(SCENE_KINDS))
def test_answers_are_learned_and_prompts_are_not(kind):
    rng = np.random.default_rng(3)
    for _ in range(60):
        assert re.fullmatch(SHAPES_OF_DOCUMENTS[kind], flags(SCENE_KINDS[kind](rng)))


def test_the_mixture_keeps_its_shares_and_captions_and_pictures_come_first_equally_often():
    assert sum(SCENE_WEIGHTS.values()) == pytest.approx(1)
    assert SCENE_WEIGHTS["caption_first"] == SCENE_WEIGHTS["picture_first"]
    assert set(SCENE_WEIGHTS) == set(SCENE_KINDS)
    documents = sample_documents(np.random.default_rng(0), {"story": 1.0, "plain_text": 3.0}, 400)
    without_pictures = sum(not document.pictures for document in documents)
    assert 260 < without_pictures < 340


def answer(scene: Scene, text: str) -> str:
    """The right answer, worked out anew from the ground truth and the question's words alone."""
    if text == "what color is the background?":
        return scene.background
    if text == "how many things are there?":
        return ("zero", "one", "two", "three")[len(scene.things)]
    if match := re.fullmatch(r"is there an? (\w+) (\w+)\?", text):
        return "yes" if any((t.colour, t.shape) == match.groups() for t in scene.things) else "no"
    if match := re.fullmatch(r"what shape is the (\w+) thing\?", text):
        (thing,) = (t for t in scene.things if t.colour == match[1])
        return thing.shape
    shape = re.search("|".join(SHAPES), text)
    assert shape, text
    (thing,) = (t for t in scene.things if t.shape == shape[0])
    if text.startswith("what color"):
        return thing.colour
    if text.startswith("is the"):
        return thing.size
    assert text.startswith("where is the")
    if len(scene.things) == 1:
        row, column = ("top", "center", "bottom")[thing.y // 16 - 1], ("left", "center", "right")[thing.x // 16 - 1]
        middle = {
            ("center", "center"): "in the center",
            ("center", "left"): "on the left",
            ("center", "right"): "on the right",
        }
        middle |= {("top", "center"): "at the top", ("bottom", "center"): "at the bottom"}
        return middle.get((row, column), f"in the {row} {column}")
    (other,) = (t for t in scene.things if t is not thing)
    if thing.x != other.x:
        return f"{'left' if thing.x < other.x else 'right'} of the {other.shape}"
    return f"{'above' if thing.y < other.y else 'below'} the {other.shape}"


def test_every_question_has_its_one_right_answer():
    rng, kinds = np.random.default_rng(0), Counter()
    for scene in scenes(400, seed=2):
        drawn_questions: list[Question] = [*questions(scene), *conversations.sample_questions(scene, rng, 3)]
        for question in drawn_questions:
            assert question.answer == answer(scene, question.text), (scene, question)
            kinds[question.kind] += 1
    assert set(kinds) == {"background", "count", "colour", "size", "shape", "place", "relation", "exists"}
    assert NUMBERS[2] == "two"


def test_sampled_questions_differ_and_existence_is_affirmed_half_of_the_time():
    rng, answers = np.random.default_rng(1), Counter()
    for scene in scenes(500, seed=3):
        drawn_questions = conversations.sample_questions(scene, rng, 3)
        assert len({question.kind for question in drawn_questions}) == len(drawn_questions) == 3
        answers[conversations.exists_question(scene, rng).answer] += 1
    assert 200 < answers["yes"] < 300


def changed(before: Scene, edit: Edit) -> Scene:
    """What an instruction leads to, worked out anew from its words alone."""
    text = edit.text.lower().rstrip(".")
    if match := re.fullmatch(r"make the background (\w+)", text):
        return replace(before, background=match[1])
    if match := re.fullmatch(r"add an? (\w+) (\w+) (\w+) (on the left|on the right|above|below)", text):
        size, colour, shape, side = match.groups()
        old = before.things[0]
        x, y = {"on the left": (16, 32), "on the right": (48, 32), "above": (32, 16), "below": (32, 48)}[side]
        assert (x, y) != (old.x, old.y)
        things = sorted((old, Thing(shape, colour, size, x, y)), key=lambda thing: (thing.x, thing.y))
        return Scene(tuple(things), before.background, "beside" if y == 32 else "above")
    match = re.fullmatch(r"(?:make|turn|remove) the (?:(\w+) )??(\w+)(?: into an? (\w+)| (\w+))?", text)
    assert match, text
    colour, shape, new_shape, new = match.groups()
    if shape not in SHAPES:  # "make the red circle blue": the optional word was the colour
        colour, shape, new = shape, new, None
    (index,) = (i for i, t in enumerate(before.things) if t.shape == shape and colour in (None, t.colour))
    thing = before.things[index]
    if text.startswith("remove"):
        return Scene((before.things[1 - index],), before.background, "single")
    if new_shape:
        thing = replace(thing, shape=new_shape)
    else:
        thing = replace(thing, size=new) if new in SIZES else replace(thing, colour=new or "")
    return replace(before, things=tuple(thing if i == index else t for i, t in enumerate(before.things)))


def test_an_edit_says_exactly_what_it_does():
    rng, kinds = np.random.default_rng(0), Counter()
    for _ in range(600):
        before = sample_scene(rng, int(rng.integers(1, 3)))
        edit = sample_edit(before, rng)
        assert edit.result == changed(before, edit) != before, (before, edit)
        kinds[edit.kind] += 1
    assert set(kinds) == {"recolour", "reshape", "resize", "background", "remove", "add"}


def test_full_drawing_requests_tell_scenes_apart_and_short_ones_say_nothing_false():
    rng, by_words = np.random.default_rng(0), {}
    for scene in scenes(600, seed=5):
        full = re.sub("|".join(conversations.DRAW_OPENINGS[3:]), "draw", draw_request(scene, rng, full=True).lower())
        assert scene.background in full
        short = set(re.findall(r"\w+", draw_request(scene, rng).lower()))
        true = set(re.findall(r"\w+", full)) | {"left", "right", "below", "above", "to", "the", "of"}
        true |= set(re.findall(r"\w+", " ".join(conversations.DRAW_OPENINGS))) | {"a", "an", "and", "thing"}
        assert short <= true
        by_words.setdefault(frozenset(re.findall(r"\w+", full)), set()).add(frozenset(t.pair for t in scene.things))
    assert len(by_words) > 500


# Batches


def test_a_document_is_tokenized_as_the_tokenizer_says_with_a_flag_for_every_token(mixed, picture):
    coded = Image(mixed.image.decode(np.zeros((4, 4), int)), np.zeros((4, 4), int))
    shared = Image(picture, learn=False)
    documents = [
        Document.of("ab", shared, EndTurn(), coded, Text("c", learn=False)),
        Document.of(shared, EndTurn()),
    ]
    for document, tokenized in zip(documents, tokenize(documents, mixed), strict=True):
        assert np.array_equal(tokenized.tokens, [*mixed.encode(document), mixed.vocabulary.end_document])
        spans = [len(mixed.encode_segment(part)) for part in document]
        expected = [False, *np.repeat([part.learn for part in document], spans), document.segments[-1].learn]
        assert tokenized.learn.tolist() == expected


def test_padding_is_never_learned_and_targets_are_one_position_on(mixed):
    rng = np.random.default_rng(0)
    documents = tokenize(sample_documents(rng, SCENE_WEIGHTS, 12), mixed)
    batch = collate(documents, mixed.vocabulary)
    assert batch.real_tokens == sum(len(document.tokens) for document in documents)
    for row, document in enumerate(documents):
        length = len(document.tokens) - 1
        assert batch.inputs_BT[row, :length].tolist() == document.tokens[:-1].tolist()
        assert batch.targets_BT[row, :length].tolist() == document.tokens[1:].tolist()
        assert batch.learned_BT[row, :length].tolist() == document.learn[1:].tolist()
        assert not batch.learned_BT[row, length:].any()
        assert (batch.targets_BT[row, length:] == mixed.vocabulary.pad).all()
    kinds = torch.from_numpy(mixed.vocabulary.modality)[batch.targets_BT]
    assert torch.equal(batch.modality_BT, kinds) and set(kinds.unique().tolist()) == set(Modality)


def test_what_a_user_says_is_never_learned(mixed):
    rng = np.random.default_rng(0)
    for document in sample_documents(rng, {"asking": 1, "drawing": 1, "conversation": 1}, 20):
        (tokenized,) = tokenize([document], mixed)
        learned = mixed.decode(np.concatenate([[0], tokenized.tokens[tokenized.learn]]))
        answers = [turn for role, turn in document.turns if role == "model"]
        assert learned == Document.of(*(part for turn in answers for part in (*coded(turn, mixed), EndTurn())))


def coded(document: Document, tokenizer) -> Document:
    return tokenizer.decode(tokenizer.encode(document))


def test_bucketing_loses_no_document_and_evens_out_the_tokens(mixed):
    rng = np.random.default_rng(0)
    documents = tokenize(sample_documents(rng, SCENE_WEIGHTS, 200), mixed)
    batches = bucket(documents, 10, mixed.vocabulary, rng)
    expected = sorted(tuple(document.tokens.tolist()) for document in documents)
    pad, unpadded = mixed.vocabulary.pad, []
    for batch in batches:
        for row in torch.cat([batch.inputs_BT[:, :1], batch.targets_BT], 1).tolist():
            unpadded.append(tuple(row[: len(row) - row[::-1].index(mixed.vocabulary.end_document)]))
    assert sorted(unpadded) == expected and all(pad not in row for row in unpadded)
    mean = np.mean([batch.real_tokens for batch in batches])
    assert all(abs(batch.real_tokens - mean) < 0.25 * mean for batch in batches)
    padding = np.mean([(batch.inputs_BT == pad).float().mean() for batch in batches])
    assert padding < 0.15


def test_batches_are_a_pure_function_of_seed_and_step(mixed):
    def fresh(seed=0):
        return SceneBatches(mixed, seed, tokens=236, pool=4)

    in_order = [batch(step) for batch in (fresh(),) for step in range(9)]
    backwards = fresh()
    for step in reversed(range(9)):
        assert same(backwards(step), in_order[step])
        assert same(fresh()(step), in_order[step])
    assert not any(same(one, other) for i, one in enumerate(in_order) for other in in_order[:i])
    assert not any(same(fresh(seed=1)(step), in_order[step]) for step in range(4))


def test_the_mean_length_of_a_document_is_what_the_mixture_assumes():
    documents = sample_documents(np.random.default_rng(0), SCENE_WEIGHTS, 1200)
    texts = [part.text for document in documents for part in document if isinstance(part, Text)]
    bpe = SentencePieceTokenizer.train(texts, 512)
    total = sum(len(bpe.encode(text)) for text in texts)
    total += sum(66 * len(document.pictures) + 2 for document in documents)
    total += sum(isinstance(part, EndTurn) for document in documents for part in document)
    assert total / len(documents) == pytest.approx(SceneBatches.MEAN_LENGTH, rel=0.08)
