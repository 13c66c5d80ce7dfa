"""A model of a person's own data: what is gathered, shown, composed and trained, down to one that draws when asked."""

import json
from dataclasses import asdict
from functools import partial
from typing import Any, cast

import numpy as np
import PIL.Image
import pytest
import torch
from support import failed
from test_formats import make_lab
from test_vqgans import Published, write

from chameleon_lab.chameleon import Chameleon, load_image_tokenizer
from chameleon_lab.corpora.own_data import SIDED, DataSource, GatheredData, gather
from chameleon_lab.corpora.own_documents import PAIR_WEIGHTS, compose
from chameleon_lab.corpora.packing import collate, tokenize
from chameleon_lab.corpora.views import view_of
from chameleon_lab.documents import Blank, Document, EndTurn, Image, Text
from chameleon_lab.history import StepRecord
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.preparation import CentreCrop
from chameleon_lab.training.own import documents as own_documents
from chameleon_lab.training.own import training as own_training
from chameleon_lab.training.own.documents import (
    OwnBatches,
    OwnDocuments,
    TokenizedViews,
    longest_need,
    noisy,
    tokenize_views,
)
from chameleon_lab.training.own.plan import meeting_words, plan_own, reading_words, seconds_of_steps
from chameleon_lab.training.own.samples import BestWeights, sheet_of
from chameleon_lab.training.own.stages import saved_plan
from chameleon_lab.training.own.training import OwnTraining
from chameleon_lab.vocabulary import Modality

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "white": (250, 250, 250)}


@pytest.fixture(scope="module", autouse=True)
def _briefly_measured():
    """A plan says how long a step takes here, for which it takes steps of both models for three seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_training, "seconds_of_steps", partial(seconds_of_steps, seconds=0.05))
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Captioned pictures as a person may have them: of several sizes, some without words, one broken."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(24):
        name, colour = list(COLOURS.items())[number % 4]
        picture = PIL.Image.new(
            "RGB", (40 + number, 48), tuple(np.clip(np.array(colour) + rng.integers(-9, 9, 3), 0, 255))
        )
        picture.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"a {name} thing")
    PIL.Image.new("RGB", (50, 50), "black").save(folder / "silent.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("a broken thing")
    return folder


STEPS = (60, 70)
SMALL: dict[str, Any] = {"side": 16, "grid": 4, "codes": 32, "width": 64, "layers": 2, "tokens": 512}


def fingerprints(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def training(pictures, tmp_path_factory):
    """A whole training, small, by the numbers of its steps."""
    before = fingerprints(pictures)
    training = OwnTraining(
        pictures,
        tmp_path_factory.mktemp("own") / "run",
        minutes=0.5,
        steps=STEPS,
        **SMALL,
        say=(words := []).append,
    )
    training.result()
    assert fingerprints(pictures) == before  # nothing of a person's folder is written to
    setattr(training, "words", "\n".join(words))  # noqa: B010, the type does not have it
    return training


def test_it_draws_when_asked(training):
    lab = Chameleon.load(training.folder / "model")
    for name, colour in COLOURS.items():
        reply = lab.generate(Document.of(f"draw a {name} thing", EndTurn()), guidance=1.0, seed=1)
        (picture,) = reply.pictures
        drawn = np.asarray(picture, float).mean((0, 1))
        nearest = min(COLOURS, key=lambda each: float(np.abs(drawn - COLOURS[each]).sum()))
        assert nearest == name, (name, drawn, colour)


def test_it_says_what_it_saw_and_what_it_will_do(training):
    words = training.words
    assert "24 captioned pictures" in words and "latin 100%" in words and "Held out: 2 documents" in words
    assert "a picture without a caption" in words and "is not a picture" in words
    assert "Here: image tokenizer" in words and "tokens a second" in words and "brings your pictures back at" in words
    for name in ("grid", "codes", "pieces", "width", "layers", "context"):
        assert f"\n  {name}" in words
    assert "as you asked" in words


def test_the_model_says_how_it_came_to_be(training):
    folder = training.folder
    card = Chameleon.load(folder / "model").card
    assert set(card["scores"]) == {"held out", "trained on"} and card["survey"]["skipped"] == 2
    assert card["plan"]["reasons"].keys() >= {"pieces", "context"} and "grid" not in card["plan"]["reasons"]
    page = (folder / "model" / "README.md").read_text()
    assert "noise on input codes 10%" in page and "views of each picture" in page and "trained from scratch" in page
    assert sorted(path.name for path in (folder / "samples").iterdir())[-1].startswith("image-")
    settings = Chameleon.load(folder / "model").settings
    data, tokenizer = GatheredData(folder / "data"), Chameleon.load(folder / "model").tokenizer
    assert settings.window == longest_need(data, tokenizer.text, tokenizer.image_tokens) <= card["plan"]["context"]


def test_a_finished_one_stays_and_another_one_is_refused(training, pictures, capsys):
    folder = training.folder
    arguments = ["train", "--data", str(pictures), "--folder", str(folder), "--minutes", "0.5"]
    sizes = [word for name, value in SMALL.items() if name not in ("layers", "tokens") for word in (f"--{name}", value)]
    assert "layers 2, now 3, tokens 512, now None" in failed(capsys, *arguments, *sizes, "--layers", "3")
    before = (folder / "model" / "config.json").stat().st_mtime
    again = OwnTraining(pictures, folder, minutes=0.5, steps=STEPS, **training.options)
    again.result()
    assert (folder / "model" / "config.json").stat().st_mtime == before


def test_errors_are_one_line(capsys, pictures, tmp_path):
    train = ["train", "--folder", str(tmp_path / "run")]
    assert "Give an experiment's name" in failed(capsys, *train)
    assert "leave the experiment's name" in failed(capsys, *train, "tiny", "--data", str(pictures))
    assert "nothing at" in failed(capsys, *train, "--data", str(tmp_path / "nowhere"))
    assert "must be 4, 8 or 16 times" in failed(capsys, *train, "--data", str(pictures), "--grid", "8", "--side", "72")
    assert "multiple of 32" in failed(capsys, *train, "--data", str(pictures), "--width", "40")
    inside = ["train", "--data", str(pictures), "--folder", str(pictures / "run")]
    assert "where nothing is written" in failed(capsys, *inside)
    both = ["--image-tokenizer", "tiny", "--begins-from", "tiny"]
    assert "not both" in failed(capsys, *train, "--data", str(pictures), *both)


def test_equal_pictures_are_one_with_all_their_captions_and_stand_on_one_side(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(30):
        picture = PIL.Image.new("RGB", (32, 32), (number // 3 * 20, 9, 9))
        picture.save(source / f"{number}.png")
        (source / f"{number}.txt").write_text(f"words {number % 2}")
    data = gather([DataSource(source)], tmp_path / "run" / "data", 32)
    assert len(data.entries) == len(data.pixels) == 10
    assert all(sorted(entry["captions"]) == ["words 0", "words 1"] for entry in data.entries)
    assert not set(data.pictures_of(True)) & set(data.pictures_of(False)) and data.survey["held_out"] == 1
    same = gather([DataSource(source)], tmp_path / "run" / "data", 32)
    assert same.entries == data.entries
    other = [DataSource(source, weight=2.0)]
    with pytest.raises(ValueError, match="begun with other data"):
        gather(other, tmp_path / "run" / "data", 32)
    assert gather(other, tmp_path / "run" / "data", 16, anew=True).pixels.shape == (10, 20, 20, 3)


def test_reading_says_how_much_is_left_where_that_is_known(pictures, tmp_path):
    (tmp_path / "lines.jsonl").write_text(json.dumps({"text": "words"}) + "\n")
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "rows.parquet").write_bytes(b"none")
    counts = [DataSource(place).expected() for place in (pictures, tmp_path / "lines.jsonl")]
    assert counts == [26, 1]
    assert [DataSource(tmp_path / name).expected() for name in ("words.txt", "rows.parquet")] == [None, None]
    assert reading_words(9, counts, 3.0) == "9 of about 27 documents read, 6 s left"
    assert reading_words(1, counts, 30.0) == "1 of about 27 documents read"
    assert reading_words(9, [*counts, None], 3.0) == reading_words(9, [4], 3.0) == "9 documents read"


def test_what_nobody_can_learn_is_skipped_and_the_rest_is_read_back_letter_by_letter(tmp_path):
    """Holes for `lab.infill` and halves of characters end no corpus; no character within a text ends a line of it."""
    words = "".join(map(chr, (0x61, 0x0B, 0x1C, 0x85, 0x2028, 0x1F600, 0x62)))
    picture = PIL.Image.new("RGB", (16, 16), "red")
    picture.save(tmp_path / "a.png")
    entries = [
        Document.of(words).to_json(),
        json.dumps({"image": "a.png", "caption": words}),
        Document.of("a", Blank(3), "b").to_json(),
        Document.of("b", Image(picture, mask=[(0, 0)])).to_json(),
        '{"text": "half \\ud83d"}',
        '{"image": "a.png", "caption": "half \\ud83d"}',
        '[{"image": "a.png", "learn": "no"}]',
        "[]", '{"text": " "}', '[{"text": ""}]', '{"messages": [{"role": "user", "content": null}]}',
    ]  # fmt: skip
    (tmp_path / "lines.jsonl").write_text("\n".join(entries), encoding="utf-8")
    data = gather([DataSource(tmp_path / "lines.jsonl")], tmp_path / "data", 16)
    assert [entry.get("captions", entry.get("segments")) for entry in data.entries] == [[{"text": words}], [words]]
    assert data.survey["skipped"] == len(entries) - 2
    assert len(GatheredData(tmp_path / "data").entries) == 2

    class Fake(DataSource):
        def documents(self, shortest=None):
            yield Document.of("half \ud83d")
            yield Document.of("whole")

    assert gather([Fake(tmp_path)], tmp_path / "other", 16).survey["skipped"] == 1


def test_a_large_photograph_is_decoded_small_and_its_size_is_said(tmp_path):
    """Twelve megapixels take a fifth of a second otherwise, of which a few thousand are looked at."""
    rng = np.random.default_rng(0)
    photograph = PIL.Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((640, 480))
    for place in ("beside", "lines"):
        (tmp_path / place).mkdir()
        photograph.save(tmp_path / place / "a.jpg", quality=95)
    (tmp_path / "beside" / "a.txt").write_text("a thing")
    (tmp_path / "lines" / "all.jsonl").write_text('{"image": "a.jpg", "caption": "a thing"}')
    for place in ("beside", "lines"):
        source = DataSource(tmp_path / place / ("all.jsonl" if place == "lines" else ""))
        assert source.expected() == 1
        (document,) = source.documents(20)
        assert isinstance(document, Document) and document.pictures[0].size == (80, 60)
        data = gather([source], tmp_path / f"{place}-data", 16)
        assert data.survey["shortest_side"] == {"least": 480, "median": 480, "most": 480}
        (whole,) = source.documents()
        assert isinstance(whole, Document)
        square = np.asarray(CentreCrop(20).picture(whole.pictures[0]), int)
        assert np.abs(square - data.pixels[0]).max() < 12


def test_a_source_may_lie_below_home_and_nothing_that_is_written_there_raises_but_a_value_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.jsonl").write_text('{"text": "a"}')
    assert DataSource.of("jsonl:~/mine.jsonl").path == tmp_path / "mine.jsonl"
    assert DataSource.of("~/mine.jsonl=2").weight == 2
    for words in ("a" * 5000, "a\0b", "x=1.2.3", "jsonl:", "=2", "x=inf"):
        with pytest.raises(ValueError, match=r"There is nothing at|is missing|is a folder"):
            list(DataSource.of(words).documents())


def test_a_source_in_words_is_a_path_a_reader_and_a_weight(tmp_path):
    lines = tmp_path / "a=2.jsonl"
    lines.write_text(json.dumps({"text": "words"}) + "\n")
    assert DataSource.of(str(lines)) == DataSource(lines)
    assert DataSource.of(f"jsonl:{lines}=0.5") == DataSource(lines, "jsonl", 0.5)
    for wrong in (f"{lines}=0", "nowhere", f"jsonl:{tmp_path}/nothing"):
        with pytest.raises(ValueError, match=r"weight|nothing at"):
            DataSource.of(wrong)


@pytest.mark.parametrize(
    ("caption", "mirrors"),
    [
        ("a cat", True),
        ("a cat on the left", False),
        ("Text on a sign", False),
        ("route 66", False),
        ("bright leftovers", True),
    ],
)
def test_pictures_are_mirrored_only_where_words_allow(caption, mirrors):
    assert (SIDED.search(caption) is None) == mirrors


def test_a_view_is_the_picture_a_little_elsewhere():
    pixels = np.full((40, 40, 3), 200, np.uint8)
    pixels[12:28, 8:16] = (250, 0, 0)
    plain = np.asarray(view_of(pixels, 32))
    for seed in range(40):
        rng = np.random.default_rng(seed)
        view = np.asarray(view_of(pixels, 32, rng))
        assert (view == np.asarray(view_of(pixels, 32, np.random.default_rng(seed)))).all()
        red_before, red_after = ((each[..., 1] < 100).nonzero() for each in (plain, view))
        assert view.shape == plain.shape and 0.6 < len(red_after[0]) / len(red_before[0]) < 1.3
        centre_before, centre_after = (np.mean(each, axis=1) for each in (red_before, red_after))
        assert np.abs(centre_before - centre_after).max() < 4  # not mirrored, and not far
        mirrored = [np.asarray(view_of(pixels, 32, np.random.default_rng(seed), mirrors=True))]
        assert all(each.shape == plain.shape for each in mirrored)
    sides = [
        (np.asarray(view_of(pixels, 32, np.random.default_rng(s), True))[:, :16, 1] < 100).any() for s in range(40)
    ]
    assert 5 < sum(sides) < 35


@pytest.mark.parametrize("kind", PAIR_WEIGHTS)
def test_a_person_is_not_learned_from_and_every_kind_has_something_to_learn(training, kind):
    data, views = GatheredData(training.folder / "data"), TokenizedViews(training.folder / "views")
    rng, (entry, other) = np.random.default_rng(0), data.pairs()[:2]
    for _ in range(20):
        document = compose(entry, kind, rng, views, other)
        assert any(part.learn for part in document)
        ends = sum(isinstance(part, EndTurn) for part in document)
        if ends:
            assert ends % 2 == 0
            for role, turn in document.turns:
                assert all(part.learn == (role == "model") for part in turn)


def test_batches_are_a_function_of_the_step_and_noise_is_on_codes_alone(training):
    folder = training.folder
    lab = Chameleon.load(folder / "model")
    documents = OwnDocuments(folder / "data", folder / "views", lab.tokenizer, tokens=400, noise=0.0)
    data, views = GatheredData(folder / "data"), TokenizedViews(folder / "views")
    one, other = (OwnBatches(data, views, documents, seed=3) for _ in range(2))
    for step in (17, 0, 16, 1):
        assert torch.equal(one(step).inputs_BT, other(step).inputs_BT)
    clean, vocabulary = one(0), lab.vocabulary
    dirty = noisy(clean, 0.5, vocabulary, np.random.default_rng(0))
    assert torch.equal(clean.targets_BT, dirty.targets_BT)
    changed = (clean.inputs_BT != dirty.inputs_BT).numpy()
    codes = vocabulary.modality[clean.inputs_BT.numpy()] == Modality.IMAGE
    assert 0.4 < changed[codes].mean() < 0.55 and not changed[~codes].any()
    assert (vocabulary.modality[dirty.inputs_BT.numpy()] == Modality.IMAGE)[codes].all()


def test_a_document_of_a_source_with_three_times_the_weight_is_met_three_times_as_often(training, tmp_path):
    sources = []
    for name, count, weight in (("few", 10, 3.0), ("many", 60, 1.0)):
        lines = (json.dumps({"text": f"{name} {number}"}) for number in range(count))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        sources.append(DataSource(tmp_path / f"{name}.jsonl", weight=weight))
    data = gather(sources, tmp_path / "data", 16)
    lab, views = Chameleon.load(training.folder / "model"), TokenizedViews(training.folder / "views")
    documents = OwnDocuments(tmp_path / "data", training.folder / "views", lab.tokenizer, noise=0.0)
    batches = OwnBatches(data, views, documents, seed=3)
    met = [lab.decode(each.tokens).text for each in batches._tokenized(np.random.default_rng(1), 3000)]
    share, entries = sum(text.startswith("few") for text in met) / 3000, data.part()
    few = sum(entry["source"] == 0 for entry in entries)
    assert share == pytest.approx(3 * few / (3 * few + len(entries) - few), abs=0.03)


def test_where_there_is_a_gpu_pictures_are_encoded_there_unasked(training, tmp_path, monkeypatch):
    """A stand-in for one: where the image tokenizer is sent, and that it comes back."""
    image, places = Chameleon.load(training.folder / "model", device="cpu").tokenizer, list[str]()
    monkeypatch.setattr(ImageTokenizer, "to", lambda self, place: places.append(str(place)) or self)
    data = GatheredData(training.folder / "data")
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        tokenize_views(data, image, tmp_path / str(there), seconds=0.01)
        assert plan_own(SURVEY, 5).size == ("small" if there else "tiny")
    assert places == ["cpu", "cpu", "cuda", "cpu"]


def test_the_tokenizing_of_many_pictures_says_how_far_it_is(training, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(own_documents, "SILENCE_SECONDS", -1.0)
    monkeypatch.setattr(own_documents, "PICTURES_AT_ONCE", 8)
    image, data = (
        Chameleon.load(training.folder / "model", device="cpu").tokenizer,
        GatheredData(training.folder / "data"),
    )
    tokenize_views(data, image, tmp_path / "views", seconds=0.0)
    count = len(data.pixels)
    lines = [line for line in caplog.messages if line.startswith("View 1: ")]
    assert [int(line.split()[2]) for line in lines] == [*range(8, count, 8)] and f" of {count} pictures" in lines[0]


@pytest.mark.parametrize("program", ["taming", "meta"])
def test_an_image_tokenizer_of_others_is_trained_on_by_one_s_own_pictures(program, pictures, tmp_path):
    """Its shape stays, its weights move on from where they were, and the folder that it came from is as it was."""
    source = tmp_path / program
    if program == "taming":
        write(Published(widths=(32, 64), attends=(1,)), source / "model.ckpt", source / "model.yaml")
    else:
        make_lab().save(tmp_path / "lab", format="meta")
        source = tmp_path / "lab" / "tokenizer"
    before, written = load_image_tokenizer(source, device="cpu"), fingerprints(source)
    training = OwnTraining(pictures, tmp_path / "run", 0.1, steps=(3, 1), begins_from=str(source))
    stages = training.stages()
    next(stages)[1].result()
    name, run = next(stages)
    after = run.result()
    assert name == "image tokenizer"
    assert after.config == before.config and fingerprints(source) == written
    weights = dict(before.named_parameters())
    moved = [(each - weights[name]).abs().max().item() for name, each in after.named_parameters()]
    assert 0 < max(moved) < 0.02


def test_other_documents_come_as_they_are(training, tmp_path):
    """Conversations, stories and texts keep their parts and what of them is learned."""
    document = Document.of(
        Text("hello", learn=False), EndTurn(learn=False), "see", PIL.Image.new("RGB", (9, 9)), EndTurn()
    )
    path = tmp_path / "talk.jsonl"
    path.write_text(document.to_json() + "\n" + json.dumps({"text": "only words"}) + "\n")
    data = gather([DataSource(path)], tmp_path / "data", 32)
    codes = np.zeros((4, 4), np.int64)
    first, second = (
        compose(entry, "drawing", np.random.default_rng(0), lambda number, rng: codes, entry) for entry in data.entries
    )
    assert [type(part) for part in first] == [Text, EndTurn, Text, Image, EndTurn]
    assert [part.learn for part in first] == [False, False, True, True, True] and second.text == "only words"
    lab = Chameleon.load(training.folder / "model")
    assert collate(tokenize([first], lab.tokenizer), lab.vocabulary).learned_BT.any()


SURVEY = {"pictures": 300, "letters": 30, "words": 400}


@pytest.mark.parametrize("name", ["size", "grid", "codes", "pieces", "width", "layers", "context", "stop"])
def test_each_number_is_asked_for_or_has_a_reason(name):
    derived = plan_own(SURVEY, 5)
    asked = {"size": "small", "grid": 16, "width": 96, "context": 999, "stop": True}.get(name, 700)
    plan = plan_own(SURVEY, 5, **{name: asked})
    assert name == "size" or (name in derived.reasons and name not in plan.reasons)
    assert plan.stops_early if name == "stop" else asdict(plan)[name] == asked
    assert len(list(plan.lines())) == 8


@pytest.mark.parametrize(
    ("exposures", "words"),
    [
        (1234.4, "each document is met about 1,234 times."),
        (1.5, "each document is met about 2 times."),
        (1.2, "each document is met about once."),
        (0.3, "of 20,000 documents about 6,000 are met, each once."),
        (1e-9, "of 20,000 documents about 1 are met, each once."),
    ],
)
def test_how_often_a_document_is_met_is_never_no_times(exposures, words):
    assert meeting_words(exposures, 20_000) == words


@pytest.mark.parametrize(
    "wrong",
    [
        *({"grid": 1}, {"codes": 0}, {"width": 33}, {"layers": 0}, {"size": "huge"}, {"grid": 5, "side": 64}),
        *({"layers": 10**7}, {"width": 32 * 10**6}, {"codes": 10**9}, {"layers": 1000, "width": 16384}),
    ],
)
def test_impossible_plans_are_refused(wrong):
    with pytest.raises(ValueError, match="|".join(wrong)):
        plan_own(SURVEY, 5, **wrong)
    for minutes in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="minutes"):
            plan_own(SURVEY, minutes)


@pytest.mark.parametrize("wrong", [{"steps": (0, 0)}, {"steps": (1,)}, {"steps": "ab"}, {"seed": -1}, {"seed": "a"}])
def test_what_a_training_cannot_be_asked_for_is_refused_when_it_is_made(wrong, tmp_path):
    with pytest.raises(ValueError, match=r"steps|seed"):
        OwnTraining(tmp_path, tmp_path.parent / "other", 0.1, **wrong)


def test_more_pictures_than_can_be_known_by_heart_stop_early():
    few, many = plan_own(SURVEY, 5), plan_own(SURVEY | {"pictures": 5000}, 5)
    assert not few.stops_early and many.stops_early


class Learner(torch.nn.Linear):
    """What `BestWeights` asks of a module."""

    progress, enough, device = 0.0, False, "cpu"


def record(**values: float) -> StepRecord:
    return StepRecord(0, 0.0, values)


def test_the_best_weights_come_back_and_patience_ends(tmp_path):
    module: Any = Learner(2, 2)
    best = BestWeights(tmp_path / "best.pt", patience=0.3)
    for progress, loss in ((0.1, 3.0), (0.2, 2.0), (0.3, 2.5), (0.4, 2.6), (0.55, 2.7)):
        module.progress = progress
        with torch.no_grad():
            module.weight.fill_(loss)
        best(module, record(held_out_loss=loss))
        best(module, record(loss=0.0))
        assert module.enough == (progress == 0.55)
    resumed = BestWeights(tmp_path / "best.pt", patience=0.3)
    assert resumed.restore(module) and (module.weight == 2.0).all() and resumed.place == 0.2
    never = BestWeights(tmp_path / "none.pt", patience=None)
    never(module, record(held_out_loss=1.0))
    assert not never.restore(module) and not (tmp_path / "none.pt").exists()


def test_a_contact_sheet_takes_any_words_and_empty_places():
    sheet = sheet_of([[(PIL.Image.new("RGB", (8, 8)), "привет 図"), (None, "")], [(None, "x" * 99)]])
    assert sheet.width == 2 * 132 and sheet.height == 2 * 146


def test_the_plan_is_read_again(training):
    plan = saved_plan(training.folder)
    assert (plan.grid, plan.side, plan.codes) == (4, 16, 32) and plan.minutes == 0.5


def test_words_alone_are_learned_beside_an_image_tokenizer_that_is_there(training, tmp_path):
    path = tmp_path / "talk.jsonl"
    talk = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "hello, friend"}]
    path.write_text((json.dumps({"messages": talk}) + "\n") * 9)
    sizes: dict[str, Any] = {"width": 32, "layers": 1, "tokens": 128}
    with pytest.raises(ValueError, match="holds no pictures"):
        OwnTraining(path, tmp_path / "none", 0.1, steps=(1, 1), **sizes).result()
    frozen = training.folder / "model"
    mine = OwnTraining(path, tmp_path / "run", 0.1, image_tokenizer=frozen, steps=(1, 3), **sizes).result()
    assert mine.card["begins from"]["frozen"] == str(frozen) and mine.card["minutes"]["image tokenizer"] == 0
    ours, theirs = (each.image.state_dict() for each in (mine.tokenizer, Chameleon.load(frozen).tokenizer))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (tmp_path / "run" / "image").exists()


def test_a_damaged_folder_of_gathered_data_names_its_file(tmp_path):
    """Whatever is changed in what `gather` wrote: read as it is meant, or one error that names the file."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(6):
        PIL.Image.new("RGB", (24, 24), (40 * number, 20, 90)).save(source / f"{number}.png")
        (source / f"{number}.txt").write_text(f"number {number}")
    gather([DataSource(source)], tmp_path / "data", 16)
    whole = {
        name: (tmp_path / "data" / name).read_bytes() for name in ("survey.json", "documents.jsonl", "pictures.bin")
    }

    def read() -> None:
        data = GatheredData(tmp_path / "data")
        assert len(data.pixels) >= len(data.pictures_of()) and data.pairs() is not None

    survey, first = json.loads(whole["survey.json"]), json.loads(whole["documents.jsonl"].splitlines()[0])
    wrong: list[tuple[str, bytes]] = [("pictures.bin", whole["pictures.bin"][:-5]), ("pictures.bin", b"")]
    for key in ("span", "pictures", "side", "sources", "pairs"):
        for value in ("x", -1, 10**30, None, [1], 1.5, True) if key != "sources" else ("x", 3, None, {}):
            if not (key == "pairs" and value is True):
                wrong.append(("survey.json", json.dumps(survey | {key: value}).encode()))
        wrong.append(("survey.json", json.dumps({name: survey[name] for name in survey if name != key}).encode()))
    for key in ("picture", "captions", "held_out", "mirrors"):
        for value in ("x", -1, 99, None, {"a": 1}, [1], []):
            wrong.append(("documents.jsonl", json.dumps(first | {key: value}).encode() + b"\n"))
    wrong += [
        ("documents.jsonl", line) for line in (b"[]\n", b"5\n", b'"x"\n', b"{\n", b"\xff\n", b'{"segments": 4}\n')
    ]
    read()
    for name, content in wrong:
        (tmp_path / "data" / name).write_bytes(content)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read()
        (tmp_path / "data" / name).write_bytes(whole[name])
    read()


@pytest.mark.parametrize("room", ["data", "data/deeper", "views", "model", "text"])
def test_a_person_s_data_never_lies_where_the_training_writes(room, tmp_path):
    source = tmp_path / "mine" / room
    source.mkdir(parents=True)
    for number in range(3):
        PIL.Image.new("RGB", (24, 24), (40 * number, 20, 90)).save(source / f"{number}.png")
        (source / f"{number}.txt").write_text(f"number {number}")
    before = fingerprints(tmp_path)
    with pytest.raises(ValueError, match="give another folder"):
        OwnTraining(source, tmp_path / "mine", 0.1, **SMALL)
    other = tmp_path / "other"
    other.mkdir()
    for file in source.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    if room == "data":  # and of other data neither: it is nobody's business what lies there
        with pytest.raises(ValueError, match="would be lost"):
            OwnTraining(other, tmp_path / "mine", 0.1, **SMALL).prepare()
    assert before == {path: value for path, value in fingerprints(tmp_path).items() if other not in path.parents}


def test_a_training_that_goes_on_says_that_its_sources_have_changed(tmp_path):
    source = tmp_path / "source"
    small: dict[str, Any] = {"side": 16, "grid": 4, "codes": 32, "width": 32, "layers": 1, "tokens": 64}
    source.mkdir()
    for number in range(6):
        PIL.Image.new("RGB", (24, 24), (40 * number, 20, 90)).save(source / f"{number}.png")
        (source / f"{number}.txt").write_text(f"number {number}")
    words = list[str]()

    def prepare() -> str:
        words.clear()
        OwnTraining(source, tmp_path / "run", 0.1, **small, say=words.append).prepare()
        return "\n".join(words)

    assert all("changed" not in prepare() for _ in range(2))
    (source / "0.txt").write_text("another caption")
    assert "12 files then, 12 now" in prepare()
    (source / "7.txt").write_text("words")
    assert "have changed since they were read: 12 files then, 13 now" in prepare()


@pytest.mark.parametrize("damage", [b"", b"no weights", None], ids=["empty", "foreign", "cut"])
def test_damaged_best_weights_end_no_training_and_neither_does_a_full_disk(damage, tmp_path, caplog, monkeypatch):
    path, learner = tmp_path / "best.pt", cast(Any, Learner(2, 2))
    BestWeights(path, 0.5)(learner, record(held_out_loss=1.0))
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    best = BestWeights(path, 0.5)
    assert "best.pt is damaged" in caplog.text and not best.restore(learner)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    best(learner, record(held_out_loss=2.0))
    assert "could not be written" in caplog.text and best.loss == 2.0 and best.restore(learner)
    path.unlink()
    assert [each.name for each in tmp_path.iterdir()] == []
