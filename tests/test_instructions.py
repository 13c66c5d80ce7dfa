"""Instructions: a document gives its pair back, truth agrees with the checker, and a bad pair is one clear error."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image
import pytest

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora import instructions as corpus
from chameleon_lab.corpora.checker import compare_scenes, read_scene
from chameleon_lab.corpora.instructions import (
    BRIEF,
    CM3LEON,
    EDIT,
    OBJECTS,
    SCENE_TASKS,
    SEGMENTATION,
    SEGMENTS,
    TASK_SHARES,
    TEMPLATES,
    InstructionBatches,
    InstructionPair,
    Located,
    Template,
    Templates,
    cutout_pairs,
    cutouts,
    instruction_documents,
    instruction_pairs,
    objects_words,
    read_objects,
    sample_examples,
)
from chameleon_lab.corpora.packing import TokenizedDocument
from chameleon_lab.corpora.readers import Skipped
from chameleon_lab.corpora.scene_codes import scene_number
from chameleon_lab.corpora.scenes import SIDE, sample_free, sample_scene, sample_where
from chameleon_lab.corpora.structure import (
    edge_agreement,
    edges_picture,
    labels_of_scene,
    mean_overlap,
    outlines,
    photograph_edges,
    read_segmentation,
    segmentation_picture,
)
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.evaluation.instructions import (
    PICTURE_MEASURES,
    evaluate_cutouts,
    evaluate_instructions,
    instruction_examples,
    instructions_page,
    judge_answer,
    plain_score,
    round_trip,
    task_score,
)
from chameleon_lab.evaluation.intervals import Mean
from chameleon_lab.evaluation.transfer import ALL_TASKS, TransferOutcome, measure_transfer, read_transfer, task_gains
from chameleon_lab.generation.engine import Engine
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import Instructions
from chameleon_lab.training.experiments import GENTLER
from chameleon_lab.training.instructions import CONTINUED_INSTRUCTIONS, doubled, train_instructions, without_tasks


@pytest.fixture(scope="module")
def tiny() -> Chameleon:
    return Chameleon.load("tiny", device="cpu")


def rng_of(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(side: int = 8) -> Image:
    return Image(PIL.Image.new("RGB", (side, side), (9, 9, 9)))


# Templates


@pytest.mark.parametrize("templates", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("learn", ["answer", "all"])
@pytest.mark.parametrize("task", SCENE_TASKS)
def test_a_document_gives_its_pair_back_and_its_request_is_masked(
    task: str, learn: Literal["answer", "all"], templates: Templates
) -> None:
    for seed in range(6):
        pair = SCENE_TASKS[task](rng_of(seed, 1), "trainable").pair
        document = templates.document(pair, learn)
        read = templates.parse(document)
        assert (read.task, read.words, read.answer) == (pair.task, pair.words, pair.answer)
        assert (read.picture is None) == (pair.picture is None)
        if read.picture is not None and pair.picture is not None:
            assert np.array_equal(np.asarray(read.picture.picture), np.asarray(pair.picture.picture))
        (_, request), (_, answer) = document.turns
        assert all(segment.learn for segment in (*answer, document.segments[-1]))
        assert {segment.learn for segment in request} == {learn == "all"}
        asked = templates.parse(templates.request(pair))
        assert (asked.task, asked.words, asked.answer) == (pair.task, pair.words, None)


@pytest.mark.parametrize("templates", TEMPLATES.values(), ids=TEMPLATES)
def test_any_words_come_back_or_are_refused(templates: Templates) -> None:
    """Words that read like another template's are an error; all others come back, whatever they hold."""
    letters, refused = ["{words}", "{picture}", ".*", "(", " at ", "\n", "describe the picture", "a", "\\"], 0
    for seed in range(200):
        rng = rng_of(seed, 2)
        words = "".join(rng.choice(letters, int(rng.integers(1, 5))))
        pair = InstructionPair("question", words, picture(), "yes")
        try:
            document = templates.document(pair)
        except ValueError as error:
            assert words == "describe the picture" or not words.strip(), error
            refused += 1
        else:
            assert templates.parse(document).words == words
    assert refused


def test_no_other_document_is_read() -> None:
    for document in (
        Document(),
        Document.of("hello", EndTurn()),
        Document.of("Make segmentation from image", EndTurn()),
        Document.of("Make segmentation from image", picture(), EndTurn(), "words", EndTurn()),
        Document.of(picture(), "what?", EndTurn(), "a", EndTurn(), "b", EndTurn()),
    ):
        with pytest.raises(ValueError, match="No template of these tasks"):
            CM3LEON.parse(document)


@pytest.mark.parametrize(
    ("request_parts", "why"),
    [((), "texts with pictures"), (("a", "b"), "texts with pictures"), (("{words} {words}",), "once"),
     (("a {picture}",), "once"), (("{picture}", "{picture}"), "once")],
)  # fmt: skip
def test_a_template_that_could_not_be_read_is_refused(request_parts: tuple[str, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Template("mine", request_parts)


def test_brief_templates_have_a_code_and_its_twin_equally_far_apart(tiny: Chameleon) -> None:
    """What the words are, so that attention by relative places need not count them; the printed templates vary."""
    distances = {"brief": set[int](), "cm3leon": set[int]()}
    for name, templates in TEMPLATES.items():
        for seed in range(4):
            pair = SCENE_TASKS[SEGMENTS](rng_of(seed, 14), "trainable").pair
            tokens = tiny.encode(templates.document(pair))
            first, second = np.flatnonzero(tokens == tiny.vocabulary.begin_image)
            distances[name].add(int(second - first))
    assert len(distances["brief"]) == 1 < len(distances["cm3leon"])


def test_templates_of_ones_own_are_a_value() -> None:
    own = Templates((*CM3LEON.templates, Template("poem", ("write a poem of {words}",), "words")))
    pair = InstructionPair("poem", "the sea", None, "waves")
    assert own.parse(own.document(pair)) == pair
    assert own.tasks[:-1] == CM3LEON.tasks


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (InstructionPair(EDIT, "make it red", picture()), "no answer"),
        (InstructionPair(EDIT, "make it red", picture(), " "), "no answer"),
        (InstructionPair("painting", "a", picture(), picture()), "No task is called 'painting'; the tasks are edit,"),
        (InstructionPair(EDIT, "", picture(), picture()), "needs words"),
        (InstructionPair(EDIT, "a", None, picture()), "needs a picture"),
        (InstructionPair(SEGMENTATION, "a", picture(), picture()), "no place for words"),
        (InstructionPair(EDIT, "a", picture(), "red"), "is a picture, not words"),
        (InstructionPair(SEGMENTS, "a", picture(8), picture(16)), "8 x 8 and 16 x 16 pixels"),
        (InstructionPair(OBJECTS, "a lawn", None, picture()), "no objects at places"),
        (
            InstructionPair(OBJECTS, "a lawn with segmentations a bird at 0 0 0 8", None, picture()),
            "a bird.*outside the grid",
        ),
        (InstructionPair("question", "describe the picture", picture(), "a"), "read like 'caption'"),
    ],
)
def test_what_is_wrong_with_a_pair_is_said(pair: InstructionPair, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        CM3LEON.document(pair)


# Objects at places


def test_objects_come_back_and_none_lies_outside() -> None:
    for seed in range(50):
        rng = rng_of(seed, 3)
        objects = []
        for number in range(int(rng.integers(1, 4))):
            (top, bottom), (left, right) = (sorted(int(each) for each in rng.integers(0, 8, 2)) for _ in range(2))
            objects.append(Located(f"thing {number}", top, left, bottom, right))
        assert read_objects(objects_words("a lawn", objects)) == ("a lawn", objects)
        place = int(rng.integers(len(objects)))
        outside = objects[place]._replace(right=8 + int(rng.integers(0, 9)))
        with pytest.raises(ValueError, match=f"{outside.name} .*outside the grid"):
            objects_words("a lawn", [*objects[:place], outside, *objects[place + 1 :]])
    with pytest.raises(ValueError, match="There are no objects"):
        objects_words("a lawn", [])


def test_a_thing_lies_in_the_cells_that_are_named() -> None:
    for seed in range(30):
        scene = sample_where(rng_of(seed, 4), "trainable", sample=sample_free)
        for thing in scene.things:
            place = corpus.located(thing)
            rows, columns = np.nonzero(labels_of_scene(replace(scene, things=(thing,))))
            assert place.top <= rows.min() // 8 <= rows.max() // 8 <= place.bottom
            assert place.left <= columns.min() // 8 <= columns.max() // 8 <= place.right


# Scenes: truth and checker


@pytest.mark.parametrize("where", ["trainable", "held_out"])
@pytest.mark.parametrize("task", SCENE_TASKS)
def test_the_right_answer_is_right(task: str, where: str) -> None:
    for seed in range(6):
        example = SCENE_TASKS[task](rng_of(seed, 5), where)
        answer = example.pair.answer
        assert not example.scene.novel
        assert where == "held_out" or example.scene.trainable
        verdicts = judge_answer(example, Document.of(answer if isinstance(answer, Image) else str(answer)))
        assert verdicts
        assert set(verdicts.values()) == {1.0}


def test_another_answer_is_wrong() -> None:
    for task in SCENE_TASKS:
        example, other = (SCENE_TASKS[task](rng_of(seed, 6), "held_out") for seed in (0, 1))
        answer = other.pair.answer
        values = judge_answer(example, Document.of(answer if isinstance(answer, Image) else "nonsense")).values()
        assert min(values) < 0.9
        assert set(judge_answer(example, Document()).values()) == {0.0}


def test_things_that_stand_free_are_apart_and_on_the_lattice() -> None:
    counts = Counter[int]()
    for seed in range(20):
        scene = sample_free(rng_of(seed, 7))
        counts[len(scene.things)] += 1
        boxes = np.zeros((8, 8), int)
        for thing in scene.things:
            place = corpus.located(thing)
            boxes[place.top : place.bottom + 1, place.left : place.right + 1] += 1
        assert boxes.max() == 1
        assert compare_scenes(scene, read_scene(scene.picture()))["all"]
        moved = tuple(replace(thing, x=thing.x + (8 if thing.x < 32 else -8)) for thing in scene.things)
        assert not compare_scenes(replace(scene, things=moved), read_scene(scene.picture()))["layout"]
        assert scene_number(scene) is None
        assert "free" not in scene.caption()
    assert set(counts) == {1, 2, 3}


# Segmentations and edges


def test_a_segmentation_is_read_back() -> None:
    for seed in range(10):
        labels_HW = labels_of_scene(sample_free(rng_of(seed, 8)))
        read_HW = read_segmentation(segmentation_picture(labels_HW))
        assert mean_overlap(read_HW, labels_HW) > 0.9  # a vote of neighbours rounds the corners
        assert mean_overlap(labels_HW, labels_HW) == 1
        edges_HW = outlines(labels_HW)
        assert edge_agreement(edges_HW, edges_HW) == 1
        assert edge_agreement(~edges_HW, edges_HW) < 0.7
        assert set(np.unique(np.asarray(edges_picture(edges_HW)))) == {22, 26, 158, 162, 168}
    with pytest.raises(ValueError, match="class 9 is none"):
        segmentation_picture(np.full((2, 2), 9))


def test_maps_of_another_size_are_not_compared() -> None:
    for compare in (mean_overlap, edge_agreement):
        with pytest.raises(ValueError, match="2 x 2 pixels cannot be compared with one of 2 x 3"):
            compare(np.ones((2, 2), bool), np.ones((2, 3), bool))


def test_the_image_tokenizer_shows_segmentations_and_loses_thin_lines(tiny: Chameleon) -> None:
    """Why a model here reads edges and does not draw them: measured, so that another tokenizer may say otherwise."""
    shown_S, lines_S = list[float](), list[float]()
    image = tiny.tokenizer.image
    for seed in range(16):
        labels_HW = labels_of_scene(sample_free(rng_of(seed, 9)))
        maps = segmentation_picture(labels_HW), edges_picture(outlines(labels_HW))
        segmentation, lines = (image.decode(codes) for codes in image.encode_batch(list(maps)))
        shown_S.append(mean_overlap(read_segmentation(segmentation), labels_HW))
        lines_S.append(edge_agreement(np.asarray(lines.convert("L")) < 90, outlines(labels_HW)))
    assert np.mean(shown_S) > 0.85
    assert np.mean(lines_S) < 0.85


# Pictures with alpha, and a person's own pairs


def cutout(side: int = 32) -> PIL.Image.Image:
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[6:20, 8:24] = 200, 30, 30, 255
    pixels[10:14, 10:20] = 30, 30, 200, 255
    return PIL.Image.fromarray(pixels)


def test_the_alpha_of_a_picture_is_its_segmentation() -> None:
    pairs = {pair.task: pair for pair in cutout_pairs(cutout(), "a red block")}
    for pair in pairs.values():
        assert CM3LEON.parse(CM3LEON.document(pair)).task == pair.task
    shape = pairs[SEGMENTATION].answer
    assert isinstance(shape, Image)
    mask_HW = np.asarray(cutout().getchannel("A")) > 127
    assert mean_overlap(read_segmentation(shape.picture, corpus.CUTOUT_PALETTE), mask_HW.astype(np.uint8)) > 0.95
    flat = pairs[SEGMENTS].answer
    assert isinstance(flat, Image)
    edges_HW = photograph_edges(flat.picture, mask_HW)
    assert not (edges_HW & ~mask_HW).any()
    assert (edges_HW & ~outlines(mask_HW.astype(np.uint8)))[8:16, 9:21].any()  # inner edges, by Canny
    for wrong, why in ((PIL.Image.new("RGB", (4, 4)), "opaque"), (PIL.Image.new("RGBA", (4, 4)), "transparent")):
        with pytest.raises(ValueError, match=f"{why} everywhere"):
            next(cutout_pairs(wrong, "nothing"))


def test_a_folder_of_cut_outs_is_read(tmp_path: Path) -> None:
    cutout().save(tmp_path / "red_block.png")
    cutout().save(tmp_path / "named.png")
    (tmp_path / "named.txt").write_text("a block\n")
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    read = list(cutouts(tmp_path))
    skips = {each.name: each.reason for each in read if isinstance(each, Skipped)}
    assert {each.words for each in read if isinstance(each, InstructionPair)} == {"", "red block", "a block"}
    assert set(skips) == {"plain.png", "broken.png"}
    assert "opaque everywhere" in skips["plain.png"]
    with pytest.raises(ValueError, match="no folder"):
        list(cutouts(tmp_path / "nowhere"))


def test_silhouettes_of_cut_outs_are_scored(tiny: Chameleon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cutout(64).save(tmp_path / "red_block.png")
    right = [BRIEF.document(pair).turns[1][1] for pair in cutout_pairs(cutout(64), "red block")]
    monkeypatch.setattr(Engine, "generate", lambda engine, requests, *_: [right.pop(0) for _ in requests])
    scores = list(evaluate_cutouts(tiny, tmp_path))
    assert [each.measure for each in scores] == [
        f"{task}, alpha: silhouettes, IoU" for task in (SEGMENTS, "edges to picture", "grey to picture", SEGMENTATION)
    ]
    assert all(each.score.value == 1 > each.bound.value for each in scores)
    assert scores[-1].bound.value > 0.5 > scores[0].bound.value  # the tiny model's tokenizer never saw a white ground
    monkeypatch.setattr(Engine, "generate", lambda engine, requests, *_: [Document.of("no")] * len(requests))
    assert not any(each.score.value for each in evaluate_cutouts(tiny, tmp_path))
    (tmp_path / "red_block.png").unlink()
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="no picture with alpha"):
        list(evaluate_cutouts(tiny, tmp_path))


GOOD: list[dict[str, object]] = [
    {"instruction": "make it red", "input": "a.png", "output": "b.png"},
    {"instruction": "how many?", "input": "a.png", "output": "three"},
    {"task": "caption", "input": "a.png", "output": "a lawn"},
    {"task": SEGMENTS, "instruction": "a lawn", "input": "a.png", "output": "b.png"},
    {"instruction": "a lawn", "objects": [["a bird", 1, 1, 2, 3]], "output": "b.png"},
]
BAD: list[tuple[object, str]] = [
    ({"instruction": "make it red", "input": "a.png"}, "no answer"),
    ({"task": "paint", "instruction": "a", "output": "b.png"}, "No task is called 'paint'"),
    ({"task": SEGMENTS, "instruction": "a", "input": "large.png", "output": "b.png"}, "16 x 16 and 8 x 8 pixels"),
    ({"instruction": "a", "objects": [["a bird", 1, 1, 2, 8]], "output": "b.png"}, "outside the grid"),
    ({"instruction": "a", "objects": [["a bird", 1]], "output": "b.png"}, "is no object"),
    ({"instruction": "a", "objects": [], "output": "b.png"}, "no objects"),
    ({"instruction": "a", "objects": "a bird", "output": "b.png"}, "no objects"),
    ({"instruction": "a", "input": "none.png", "output": "b.png"}, "none.png"),
    ({"instruction": "a", "input": "../x.png", "output": "b.png"}, "lies outside"),
    ({"instruction": 3, "input": "a.png", "output": "b.png"}, "its instruction is no string"),
    ({"prompt": "a", "output": "b.png"}, "it has 'prompt'"),
    (["a"], "no object with an instruction"),
]


def pairs_file(folder: Path, entries: list[object]) -> Path:
    for name, side in (("a.png", 8), ("b.png", 8), ("large.png", 16)):
        PIL.Image.new("RGB", (side, side)).save(folder / name)
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, entries)))
    return path


def test_pairs_of_ones_own_are_read_and_each_bad_one_is_one_clear_reason(tmp_path: Path) -> None:
    good = list(instruction_pairs(pairs_file(tmp_path, [*GOOD])))
    assert [each.task for each in good if isinstance(each, InstructionPair)] == [
        EDIT,
        "question",
        "caption",
        SEGMENTS,
        OBJECTS,
    ]
    assert all(isinstance(each, Document) for each in instruction_documents(good))
    for skip, (_, why) in zip(instruction_pairs(pairs_file(tmp_path, [each for each, _ in BAD])), BAD, strict=True):
        assert isinstance(skip, Skipped)
        assert why in skip.reason
        assert "\n" not in skip.reason


# Batches and training


def test_batches_are_a_function_of_seed_and_step(tiny: Chameleon) -> None:
    make = partial(InstructionBatches, tiny.tokenizer, tokens=200, earlier=0.3, infill=0.5)
    one, other, third = make(seed=1), make(seed=1), make(seed=2)
    other(40)
    for step in (0, 17):
        assert one(step).inputs_BT.equal(other(step).inputs_BT)
    assert not one(0).inputs_BT.equal(third(0).inputs_BT)


def test_documents_have_about_the_mean_length(tiny: Chameleon) -> None:
    examples = sample_examples(rng_of(10), 150)
    lengths = [sum(tiny.tokenizer.length(segment) for segment in BRIEF.document(each.pair)) + 2 for each in examples]
    assert np.mean(lengths) == pytest.approx(InstructionBatches.MEAN_LENGTH, rel=0.06)
    counts = Counter(each.pair.task for each in examples)
    assert set(counts) == set(TASK_SHARES)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Instructions(shares={"painting": 1}), "No task is called 'painting'"),
        (lambda: Instructions(shares={EDIT: 0}), "not all 0"),
        (lambda: Instructions(earlier=0.6, pairs="x"), "0 to 1"),
        (lambda: Instructions(learn="prompt"), "'answer' or on 'all'"),  # pyright: ignore[reportArgumentType]
        (lambda: Instructions(templates="mine"), "No templates are called 'mine'"),  # pyright: ignore[reportArgumentType]
        (lambda: without_tasks(TASK_SHARES, ["painting"]), "No task is called 'painting'"),
        (lambda: doubled(TASK_SHARES, ["painting"]), "No task is called 'painting'"),
        (lambda: instruction_examples("painting", 1), "No task is called 'painting'"),
    ],
)
def test_an_unknown_task_and_shares_that_are_none_are_refused(make: Callable[[], object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()


def test_ones_own_pairs_are_among_the_documents(tiny: Chameleon, tmp_path: Path) -> None:
    path = pairs_file(tmp_path, [{"instruction": "xyzzy", "input": "a.png", "output": "three"}, BAD[0][0]])
    batches = Instructions(tiny.tokenizer, 200, earlier=0.0, pairs=path, own=1.0).open(0, None).batches
    document: TokenizedDocument = batches.own_documents[0]  # pyright: ignore[reportFunctionMemberAccess]
    for row in batches(0).inputs_BT.tolist():
        assert row[: len(document.tokens) - 1] == document.tokens[:-1].tolist()
    path.write_text(json.dumps(BAD[0][0]))
    with pytest.raises(ValueError, match=r"no pair that can be read: pairs.jsonl, line 1.*no answer"):
        Instructions(tiny.tokenizer, pairs=path).open(0, None)
    (folder := tmp_path / "cut").mkdir()
    cutout().save(folder / "red_block.png")
    batches = Instructions(tiny.tokenizer, 200, earlier=0.0, pairs=folder, own=1.0).open(0, None).batches
    assert len(batches.own_documents) == 5  # pyright: ignore[reportFunctionMemberAccess]
    (folder / "red_block.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match=r"cut holds no pair that can be read: red_block.png"):
        Instructions(tiny.tokenizer, pairs=folder).open(0, None)


def test_a_training_writes_a_model_that_is_scored(tiny: Chameleon, tmp_path: Path) -> None:
    lab = train_instructions(tmp_path, Budget(steps=1), Instructions(tokens=160, held_out=8))
    assert (lab.card["steps"], lab.card["data"]["shares"]) == (1, dict(TASK_SHARES))
    again = train_instructions(tmp_path / "again", Budget(steps=1), Instructions(tokens=160), tmp_path / "model")
    found = [(each.card["experiment"]["seed"], each.card["experiment"]["recipe"]["rate"]) for each in (lab, again)]
    assert found == [(0, GENTLER.rate), (1, CONTINUED_INSTRUCTIONS.rate)]  # other documents than it has met, and gently
    changed = [name for name, value in lab.model.state_dict().items() if not value.equal(tiny.model.state_dict()[name])]
    assert changed
    scores = list(evaluate_instructions(lab, [SEGMENTS, "caption"], n=2))
    assert [each.measure for each in scores] == [
        *(f"{SEGMENTS}: {name}" for name in PICTURE_MEASURES[SEGMENTS]), "caption: exact",
    ]  # fmt: skip
    assert all(0 <= each.score.value <= 1 and each.score.n == 2 for each in scores)
    card = lab.card | {"instructions": {each.measure: plain_score(each) for each in scores}}
    page = instructions_page(card)
    assert all(each.measure in page for each in scores)


def test_scores_have_bounds_and_ratios() -> None:
    shares = task_score("share", [1, 1, 0, 1], [1, 1, 1, 0])
    assert (shares.score.value, shares.bound.value, shares.ratio.value) == (0.75, 0.75, 1.0)
    assert shares.ratio.low < 1 < shares.ratio.high
    rng = rng_of(11)
    bounds = rng.uniform(0.6, 1, 200)
    means = task_score("mean", (0.8 * bounds).tolist(), bounds.tolist())
    assert means.ratio.value == pytest.approx(0.8)
    assert means.ratio.low == pytest.approx(0.8) == means.ratio.high  # drawn together, so exactly so
    with pytest.raises(ValueError, match="loses all"):
        task_score("none", [1, 0], [0, 0])


def test_a_bound_is_what_survives_the_tokenizer(tiny: Chameleon) -> None:
    example = SCENE_TASKS[SEGMENTATION](rng_of(12), "held_out")
    (value,) = judge_answer(example, round_trip(tiny, example)).values()
    assert 0.5 < value <= 1


# Which task helps which


def test_what_a_task_gives_is_paired_by_seed() -> None:
    outcomes = [TransferOutcome(ALL_TASKS, seed, 9, {"a": 1.0 + seed, "b": 2.0 - seed}) for seed in range(3)]
    outcomes += [TransferOutcome("a", seed, 9, {"a": 3.0 + seed, "b": 1.5 - seed}) for seed in range(3)]
    gains = task_gains(outcomes)
    assert gains == {"a": {"a": Mean(2.0, 2.0, 2.0, 3), "b": Mean(-0.5, -0.5, -0.5, 3)}}
    with pytest.raises(ValueError, match="without 'a'"):
        task_gains(outcomes[3:])


def test_trainings_without_a_task_are_kept_and_not_done_again(tmp_path: Path) -> None:
    do = partial(measure_transfer, tmp_path, seeds=1, steps=1, tokens=160, n=2, tasks=["caption"])
    first = list(do())
    assert [each.without for each in first] == [ALL_TASKS, "caption"]
    assert all(set(each.losses) == set(SCENE_TASKS) for each in first)
    written = (tmp_path / "outcomes.jsonl").stat().st_mtime_ns
    assert list(do()) == first == read_transfer(tmp_path / "outcomes.jsonl")
    assert (tmp_path / "outcomes.jsonl").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="outcomes of 1 steps, not of 2"):
        list(measure_transfer(tmp_path, steps=2))
    whole = {"without": "caption", "seed": 0, "steps": 1, "losses": {"caption": 1.5}}
    for other in ({"without": "caption"}, {**whole, "losses": {}}, {**whole, "losses": 3}, {**whole, "steps": "1"}):
        lines = "".join(json.dumps(each) + "\n" for each in (whole, other))
        (tmp_path / "outcomes.jsonl").write_text(lines)
        with pytest.raises(ValueError, match=r"outcomes\.jsonl is damaged.*Move it away"):
            list(do())


def test_the_recorded_trainings_are_whole() -> None:
    """What notebook 18 draws."""
    outcomes = read_transfer(Path(__file__).parent.parent / "data" / "transfer.jsonl")
    seeds = {each.seed for each in outcomes}
    assert [(each.without, each.seed) for each in outcomes] == [
        (without, seed) for seed in sorted(seeds) for without in (ALL_TASKS, *SCENE_TASKS)
    ]
    assert task_gains(outcomes).keys() == SCENE_TASKS.keys()


def test_scenes_of_old_are_drawn_as_before() -> None:
    """The free layout draws nothing of the others' random numbers."""
    scenes = [sample_scene(rng_of(seed, 13)) for seed in range(20)]
    assert all(scene.layout != "free" and scene_number(scene) is not None for scene in scenes)
    assert Image(scenes[0].picture()).picture.size == (SIDE, SIDE)
    assert Text("a") == Text("a")


@pytest.mark.parametrize("wrong", ["1e400", "[1]", "null", '"x"', "{}"])
@pytest.mark.parametrize("name", ["seed", "steps", "losses"])
def test_an_outcome_of_wrong_types_names_its_file(tmp_path, name, wrong):
    fields = {"without": '"nothing"', "seed": "0", "steps": "3", "losses": '{"a": 1.5}', name: wrong}
    line = ", ".join(f"{json.dumps(key)}: {value}" for key, value in fields.items())
    (tmp_path / "outcomes.jsonl").write_text("{" + line + "}\n")
    if (name, wrong) == ("losses", "{}"):
        return
    with pytest.raises(ValueError, match=r"outcomes\.jsonl is damaged"):
        read_transfer(tmp_path / "outcomes.jsonl")
