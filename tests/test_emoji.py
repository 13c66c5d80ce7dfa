"""The emoji corpus: pinned artwork, splits by construction, documents of every kind."""

import base64
import hashlib
import io
import json
import tarfile
from dataclasses import asdict, replace

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch

from chameleon_lab.chameleon import Chameleon, find
from chameleon_lab.corpora import emoji_artwork
from chameleon_lab.corpora.emoji import KINDS_OF_SKETCH, WHAT, Emoji, as_typed, read_ideas, with_article
from chameleon_lab.corpora.emoji_artwork import ARTWORK_SIDE, FAMILIES, LANGUAGES, PACKAGES, STYLES, TONES, Drawn, Hand
from chameleon_lab.corpora.packing import collate, tokenize
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.evaluation import emoji as evaluation_of_emoji
from chameleon_lab.evaluation.emoji import PARTS, BestByName, EmojiScores, best, naming
from chameleon_lab.evaluation.judge import Judge
from chameleon_lab.evaluation.results import difference
from chameleon_lab.generation.engine import Engine
from chameleon_lab.tokenizers.image import TINY_IMAGES, ImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import ByteTokenizer
from chameleon_lab.training import emoji as training_of_emoji
from chameleon_lab.training.emoji import EmojiBatches, EmojiDocuments, EmojiImages, Views, emphasized
from chameleon_lab.training.experiments import TINY
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Modality, Vocabulary


def drawing(number: int) -> PIL.Image.Image:
    picture = PIL.Image.new("RGBA", (ARTWORK_SIDE, ARTWORK_SIDE), (0, 0, 0, 0))
    colour = tuple(int(each) for each in np.random.default_rng(number).integers(0, 256, 3))
    PIL.ImageDraw.Draw(picture).ellipse((20, 20, 70, 70), fill=(*colour, 255))
    return picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_emoji(tmp_path_factory.mktemp("emoji") / "corpus")


def write_emoji(path):
    """A corpus of 12 ideas of each family and three gestures in all tones, as `build` writes it."""
    ideas = list[Drawn]()
    for family in FAMILIES:
        for number in range(12):
            names = {language: f"{family} {number} ({language})" for language in LANGUAGES}
            parts = (f"hand-{number // 4}", [*TONES][number % 4]) if family == "gesture" else None
            ideas.append(Drawn(f"{family}-{number}", family, names, parts, STYLES[: 4 + number % 2]))
    for number, idea in enumerate(ideas):
        for style in idea.styles:
            target = path / "pictures" / style / f"{idea.idea}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            drawing(number).save(target)
    path.joinpath("ideas.jsonl").write_text("".join(json.dumps(asdict(each)) + "\n" for each in ideas))
    path.joinpath("sources.json").write_text("[]")
    return path


def test_a_drawing_is_on_one_side_of_the_split_and_a_combination_in_no_style_is_trained_on(folder):
    emoji = Emoji(folder)
    sides = {where: set(map(repr, emoji.drawings(where))) for where in ("trainable", "drawing", "combination")}
    assert all(sides.values()) and sum(map(len, sides.values())) == sum(len(idea.styles) for idea in emoji.ideas)
    for idea in emoji.ideas:
        where = {emoji.where(idea, style) for style in idea.styles}
        assert "combination" not in where or where == {"combination"}


@pytest.mark.parametrize("kind", list(Emoji.KINDS))
def test_documents_show_only_what_is_trainable_and_are_the_same_for_a_seed(folder, kind, monkeypatch):
    shown, read = list[tuple[str, str]](), Emoji._read
    monkeypatch.setattr(Emoji, "_read", lambda *names: shown.append(names[1:]) or read(*names))
    emoji = Emoji(folder)
    documents = [emoji.kinds[kind](np.random.default_rng(seed)) for seed in range(12)]
    assert [Emoji(folder).kinds[kind](np.random.default_rng(seed)) for seed in range(12)] == documents
    trainable = {(idea.idea, style) for idea, style in emoji.drawings()}
    assert shown and set(shown) <= trainable
    assert all(document.pictures for document in documents)
    assert {picture.size for document in documents for picture in document.pictures} == {(64, 64)}


@pytest.mark.parametrize("kind", KINDS_OF_SKETCH)
def test_a_sketch_lies_where_its_drawing_lies_and_has_no_colour(folder, kind):
    emoji = Emoji(folder)
    idea = emoji.ideas[0]
    sketch = np.asarray(emoji.sketch(idea, "noto", kind, np.random.default_rng(1)), int)
    whole = np.asarray(emoji.picture(idea, "noto", np.random.default_rng(1)), int)
    assert np.ptp(sketch, axis=-1).max() == 0 and sketch.min() < 200
    ink, paint = (np.argwhere(each.min(-1) < 235) for each in (sketch, whole))
    assert np.abs(ink.min(0) - paint.min(0)).max() <= 1 and np.abs(ink.max(0) - paint.max(0)).max() <= 1
    assert np.asarray(sketch)[0].min() == 255  # no frame


def test_pixels_for_the_tokenizer_depend_on_the_step_alone(folder):
    images = EmojiImages(folder, 0, 6, 64)
    assert images(3).shape == (6, 3, 64, 64) and images(3).equal(EmojiImages(folder, 0, 6, 64)(3))
    assert not images(3).equal(images(4)) and images(3).abs().max() <= 1


def package(files: dict[str, bytes], style: str = "noto") -> tuple[emoji_artwork.Package, bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    content = buffer.getvalue()
    integrity = base64.b64encode(hashlib.sha512(content).digest()).decode()
    return replace(PACKAGES[0], style=style, integrity=integrity), content


def icons(names: list[str]) -> dict[str, bytes]:
    plain = {
        "icons": {"prefix": "x", "icons": {name: {"body": '<circle cx="8" cy="8" r="6"/>'} for name in names}},
        "chars": {f"{0x1F600 + number:x}": name for number, name in enumerate(names)},
        "metadata": {"categories": {"Smileys & Emotion": names, "Animals & Nature": [], "Food & Drink": []}},
    }
    return {f"{name}.json": json.dumps(each).encode() for name, each in plain.items()}


def test_a_package_of_other_bytes_is_refused(monkeypatch):
    pinned, content = package(icons(["grinning-face"]))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(content + b"and more"))
    with pytest.raises(ValueError, match="was pinned"):
        pinned.fetch()


def test_ideas_are_those_of_the_lists_that_are_drawn(monkeypatch):
    pinned, content = package(icons(["grinning-face", "red-heart", "thumbs-up", "speech-balloon", "no-such-idea"]))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(content))
    hand = Hand(pinned, {})
    ideas = list(emoji_artwork.ideas_of(hand))
    assert ("1f601", "heart", ("red", "heart")) in ideas and ("1f600", "face", None) in ideas
    assert [parts for points, family, parts in ideas if family == "gesture"] == [
        None, *(("thumbs-up", tone) for tone in TONES),
    ]  # fmt: skip
    assert "1f603" not in [points for points, *_ in ideas]  # a balloon shows no idea


def test_without_a_corpus_the_error_says_how_to_build_one(tmp_path):
    with pytest.raises(ValueError, match="emoji_artwork"):
        Emoji(tmp_path)


# Training and judging


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    image = ImageTokenizer(replace(TINY_IMAGES, codes=64, widths=(8, 16), groups=4)).eval()
    text = ByteTokenizer()
    return MixedModalTokenizer(text, image, Vocabulary.layout(image.codes, text.size))


@pytest.mark.parametrize("kind", list(Emoji.KINDS))
def test_documents_of_codes_say_the_same_words_and_draw_only_what_stands_where_it_was_drawn(folder, tokenizer, kind):
    views = Views(tokenizer.image, drawn=1, read=4)
    coded, plain = Emoji(folder, views), Emoji(folder)
    for seed in range(12):
        document, other = (emoji.kinds[kind](np.random.default_rng(seed)) for emoji in (coded, plain))
        kinds_of_part = [sorted(type(part).__name__ for part in each) for each in (document, other)]
        assert kinds_of_part[0] == kinds_of_part[1]
        assert all(
            part.codes is not None and part.codes.shape == (8, 8) for part in document if isinstance(part, Image)
        )
        if kind in ("naming", "style", "category", "drawing", "free", "caption"):  # one picture: as many draws
            assert document.text == other.text
    places = {key: {each[3] for each in views._codes if bool(each[2]) == key} for key in (False, True)}
    drawn_alone = kind in ("drawing", "caption", "list", "free", "colouring")
    assert places[False] == {0} if drawn_alone else places[False] <= set(range(4)) and len(places[False]) > 1
    assert places[True] <= {0}


def test_a_view_is_encoded_once_and_its_codes_are_those_of_its_picture(folder, tokenizer, monkeypatch):
    views, count = Views(tokenizer.image, drawn=1, read=3), [0]
    encode = tokenizer.image.encode
    monkeypatch.setattr(tokenizer.image, "encode", lambda picture: count.append(1) or encode(picture))
    emoji = Emoji(folder, views)
    idea = emoji.ideas[0]
    images = [views(emoji, idea, "noto", "", np.random.default_rng(seed), False) for seed in range(20)]
    assert len(count) - 1 == len({np.asarray(image.codes).tobytes() for image in images}) <= 3
    image = views(emoji, idea, "noto", "", np.random.default_rng(0), True)
    assert np.array_equal(np.asarray(image.codes), encode(Emoji(folder).picture(idea, "noto")))


def test_batches_depend_on_the_step_alone(folder, tokenizer):
    data = EmojiDocuments(folder, tokenizer, tokens=400)
    batches, others = EmojiBatches(data, 3, pool=3), EmojiBatches(data, 3, pool=3)
    later = others(4)
    batch = batches(0)
    for step in range(5):
        batch = batches(step)
        assert batch.weights_BT is not None and batch.weights_BT.shape == batch.inputs_BT.shape
    assert later.weights_BT is not None and batch.weights_BT is not None
    assert batch.inputs_BT.equal(later.inputs_BT) and batch.weights_BT.equal(later.weights_BT)


@pytest.mark.parametrize("noise", [0.0, 0.15, 0.5])
def test_noise_replaces_codes_that_are_read_alone_and_the_first_codes_weigh_more(folder, tokenizer, noise):
    data = EmojiDocuments(folder, tokenizer, tokens=3000, noise=noise, first=10, first_weight=3.0)
    emoji = Emoji(folder, Views(tokenizer.image, 1, 1))
    documents = [emoji.kinds[kind](np.random.default_rng(seed)) for kind in Emoji.KINDS for seed in range(12)]
    clean = collate(tokenize(documents, tokenizer), tokenizer.vocabulary)
    batch = emphasized(clean, data, np.random.default_rng(0))
    assert batch.weights_BT is not None
    assert batch.targets_BT.equal(clean.targets_BT) and batch.learned_BT.equal(clean.learned_BT)
    codes = tokenizer.vocabulary.modality[clean.inputs_BT.numpy()] == Modality.IMAGE
    changes = (batch.inputs_BT != clean.inputs_BT).numpy()
    assert not changes[~codes].any()
    assert (tokenizer.vocabulary.modality[batch.inputs_BT.numpy()] == Modality.IMAGE).tolist() == codes.tolist()
    assert abs(changes[codes].mean() - noise) < 0.02 + 0.2 * noise
    for row, document in enumerate(documents):
        heavy = (batch.weights_BT[row] == 3.0) & clean.modality_BT[row].eq(Modality.IMAGE)
        assert int(heavy.sum()) == 10 * sum(isinstance(part, Image) for part in document)
        assert set(batch.weights_BT[row].unique().tolist()) <= {1.0, 3.0}


def small_lab(tokenizer: MixedModalTokenizer) -> Chameleon:
    torch.manual_seed(1)
    config = replace(TINY.model, width=32, layers=1, heads=2, kv_heads=2, head_width=16, ffn_width=48, context=400)
    return Chameleon(Transformer(replace(config, vocabulary=tokenizer.vocabulary.size)).eval(), tokenizer)


def test_naming_is_the_models_own_score_of_the_answer_and_the_best_image_has_most(folder, tokenizer):
    lab, emoji = small_lab(tokenizer), Emoji(folder, Views(tokenizer.image, 1, 1))
    images = [emoji.show(emoji, idea, "noto", "", np.random.default_rng(0), True) for idea in emoji.ideas[:5]]
    words = ["cat", "a much longer name"]
    for image in images[:2]:
        begin = Document((image, Text(WHAT["en"]), EndTurn()))
        plain = [lab.score(Document.of(each, EndTurn()), given=begin).total for each in words]
        assert naming(lab, image, words) == pytest.approx(plain, abs=1e-4)
    totals = [naming(lab, image, ["cat"])[0] for image in images]
    assert best(lab, images, "cat") == int(np.argmax(totals))
    with pytest.raises(ValueError, match="no image"):
        best(lab, [], "cat")


@pytest.mark.parametrize(
    ("name", "sentence"), [("cat", "a cat"), ("apple", "an apple"), ("cherries", "cherries"), ("dress", "a dress")]
)
def test_an_english_name_has_its_article(name, sentence):
    assert with_article(name) == sentence


def test_requests_as_typed_differ_in_their_case_and_stop_alone_and_replies_not_at_all():
    document = Document((Text("draw a cat", learn=False), EndTurn(learn=False), Text("a cat"), EndTurn()))
    requests = set[str]()
    for seed in range(60):
        request, *others = as_typed(document, np.random.default_rng(seed))
        assert isinstance(request, Text) and tuple(others) == document.segments[1:]
        requests.add(request.text)
    assert requests == {"draw a cat", "Draw a cat", "draw a cat.", "Draw a cat."}
    japanese = Document((Text("猫を描いて", learn=False),))
    assert {as_typed(japanese, np.random.default_rng(seed)).text for seed in range(60)} == {
        "猫を描いて",
        "猫を描いて。",
    }


def test_the_best_of_replies_is_chosen_by_the_name_in_the_request(folder, tokenizer):
    lab, emoji = small_lab(tokenizer), Emoji(folder, Views(tokenizer.image, 1, 1))
    choose = BestByName(lab, emoji.ideas)
    images = [emoji.show(emoji, idea, "noto", "", np.random.default_rng(0), True) for idea in emoji.ideas[:4]]
    request = Document.of("Draw face 11 (de), please", EndTurn())
    assert choose.name_in([*request]) == ("face 11 (de)", "de")  # not "face 1"
    replies = [request + Document.of(image, EndTurn()) for image in images]
    assert choose(replies) == best(lab, images, "face 11 (de)", "de")
    assert choose([request + Document.of("no", EndTurn()), *replies[2:]]) >= 1
    assert choose([Document.of("draw a bicycle", EndTurn(), image, EndTurn()) for image in images]) == 0


class Pixels:
    """Features that need no package: pixels of 16 x 16."""

    def __call__(self, pictures):
        small = [np.asarray(each.convert("RGB").resize((16, 16)), np.float32) for each in pictures]
        return [torch.from_numpy(np.stack(small)).flatten(1)]


def test_a_judge_names_every_real_drawing_whatever_else_is_judged_with_it(folder):
    emoji = Emoji(folder)
    judge = Judge(emoji, Pixels())
    drawings = [each for where in ("trainable", "drawing", "combination") for each in emoji.drawings(where)[::7]]
    pictures = [emoji.picture(*each) for each in drawings]
    verdicts = judge.verdicts(pictures)
    assert [idea for idea, _ in verdicts] == [idea.idea for idea, _ in drawings]
    assert judge.verdicts(pictures[5:6]) == verdicts[5:6] and judge.verdicts([]) == []


def test_the_protocol_gives_each_measure_its_n_and_the_same_figures_twice(folder, tokenizer):
    emoji, lab = Emoji(folder), small_lab(tokenizer)
    lab.settings = replace(lab.settings, max_tokens=70)
    judge = Judge(emoji, Pixels())
    tables = [
        {each.value.card.metric: each for part in EmojiScores(lab, emoji, judge, n=2).parts.values() for each in part()}
        for _ in range(2)
    ]
    assert len(tables[0]) == 19 and tuple(EmojiScores(lab, emoji, judge).parts) == PARTS
    for name, result in tables[0].items():
        assert result.value == tables[1][name].value and (result.scores == tables[1][name].scores).all()
        assert 0 <= result.value.value <= 100 and 0 < result.value.card.n == len(result.scores) <= 4
    other = next(iter(EmojiScores(lab, emoji, judge, n=2, seed=3).parts["drawings"]()))
    apart = difference(other, tables[0][other.value.card.metric])
    assert apart.verdict == "not measured alike" and {"seed", "reference_hash"} >= apart.apart.keys() > set()


def test_real_drawings_are_nearest_to_themselves_by_their_pixels(folder, tokenizer):
    emoji = Emoji(folder)
    scores = EmojiScores(small_lab(tokenizer), emoji, Judge(emoji, Pixels()))
    for idea, style in emoji.drawings("combination")[:10]:
        assert scores.nearest(emoji.picture(idea, style), idea.family, style) == idea.idea


def test_a_contact_sheet_shows_each_request_once_in_each_language_whose_letters_there_are(
    folder, tokenizer, monkeypatch
):
    monkeypatch.setattr(evaluation_of_emoji, "SHEET", ("face 1 (en)", "no such idea", "food 2 (en)"))
    lab, requests = small_lab(tokenizer), list[str]()
    generate = Engine.generate
    monkeypatch.setattr(Engine, "generate", lambda *given: requests.append(given[1][0].text) or generate(*given))
    lab.settings = replace(lab.settings, max_tokens=70)
    sheet = evaluation_of_emoji.contact_sheet(lab, Emoji(folder))
    assert len(requests) == len(set(requests)) == 2 * 4 and sheet.width == 10 + 2 * 138
    assert not any("(ja)" in request for request in requests)
    assert np.asarray(sheet.convert("L")).min() < 100  # the words, at least


def test_one_call_makes_a_model_that_loads_draws_and_is_not_made_twice(folder, tmp_path, monkeypatch):
    images, transformer = training_of_emoji.emoji_images, training_of_emoji.emoji_transformer

    def small_images(corpus):
        whole = images(corpus)
        config = replace(whole.tokenizer, codes=32, widths=(8, 16), groups=4)
        edges = replace(whole.objective, perceptual="edges")
        return replace(whole, tokenizer=config, objective=edges, batch=2, precision="32-true")

    def small_transformer(corpus, tokenizer, tokens):
        whole = transformer(corpus, tokenizer, tokens)
        assert isinstance(whole.data, EmojiDocuments)
        shape = replace(whole.model, width=32, layers=1, heads=2, kv_heads=2, head_width=16, ffn_width=48, context=400)
        return replace(whole, model=shape, data=replace(whole.data, tokens=300), precision="32-true")

    monkeypatch.setattr(training_of_emoji, "emoji_images", small_images)
    monkeypatch.setattr(training_of_emoji, "emoji_transformer", small_transformer)
    monkeypatch.setattr(training_of_emoji, "PIECES", 420)
    lab = training_of_emoji.train_emoji(folder, tmp_path, (0.005, 0.01), codes=24)
    assert lab.tokenizer.image.codes == 24 and lab.vocabulary.codes == 24
    assert lab.card["steps"] > 0 and len(lab.card["artwork"]) == len(PACKAGES)
    assert lab.generate(Document.of("draw face 1 (en)", EndTurn()), modality="picture").pictures[0].size == (64, 64)
    page = evaluation_of_emoji.emoji_page(
        lab.card | {"scores": {"named right": {"share": 0.5, "n": 10}}, "scores_seed": 1}
    )
    assert "by heart" in page and "CC-BY" in page and "| named right |  50.0 % (24 to 76, n = 10) |" in page
    again = training_of_emoji.train_emoji(folder, tmp_path, (0.005, 0.01), codes=24)
    assert again.card["steps"] == lab.card["steps"]
    with pytest.raises(ValueError, match="begun with 24 codes"):
        training_of_emoji.train_emoji(folder, tmp_path, (0.005, 0.01), codes=25)
    longer = training_of_emoji.train_emoji(folder, tmp_path, (0.005, 0.05), codes=24)
    assert longer.card["steps"] > lab.card["steps"]


@pytest.fixture(scope="module")
def shipped():
    return Chameleon.load("emoji")


def test_the_shipped_model_is_small_and_its_page_is_its_card_s(shipped):
    place = find("emoji")
    assert sum(each.stat().st_size for each in place.iterdir()) <= 16_000_000
    assert (place / "README.md").read_text() == evaluation_of_emoji.emoji_page(shipped.card)
    assert "by heart" in evaluation_of_emoji.emoji_page(shipped.card) and len(shipped.card["scores"]) == 19
    assert all(score["n"] >= 140 for score in shipped.card["scores"].values())


COLOURS = {"red heart": (0, 1, 2), "blue heart": (2, 1, 0), "green apple": (1, 0, 2), "sun": (0, 1, 2)}


@pytest.mark.parametrize(("name", "order"), COLOURS.items())
def test_the_shipped_model_draws_what_it_is_asked_for_in_its_colours_and_names_it(shipped, name, order):
    """`order`: red, green and blue of the drawing's ink by their strength."""
    document = Document.of(f"draw {name} in noto style", EndTurn())
    image = next(part for part in shipped.generate(document, image_temperature=0.0) if isinstance(part, Image))
    pixels = np.asarray(image.picture, int).reshape(-1, 3)
    ink = pixels[pixels.min(1) < 200].mean(0)
    assert tuple(np.argsort(-ink)) == order
    others = [idea.names["en"] for idea in read_ideas(find("emoji"))[::30] if idea.names["en"] != name]
    scores = naming(shipped, image, [name, *others])
    assert int(np.argmax(scores)) == 0
