"""Retrieval: encoders, banks and their folders, the rules, documents before a document, and a model with a bank."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from support import same

from chameleon_lab.chameleon import Chameleon, find
from chameleon_lab.corpora.flags import is_held_out, looked_up, read_flag, sample_flags
from chameleon_lab.corpora.packing import tokenize
from chameleon_lab.corpora.readers import Skipped
from chameleon_lab.corpora.scenes import sample_scene
from chameleon_lab.documents import Blank, Document, EndTurn
from chameleon_lab.evaluation.retrieval import lookup_tasks, retrieval_results
from chameleon_lab.generation.guidance import ThreeWay, TwoWay, image_alone
from chameleon_lab.retrieval.augmentation import augment
from chameleon_lab.retrieval.bank import BANK_FILES, Bank, document_vectors
from chameleon_lab.retrieval.encoders import ClipEncoder, TwoTower, TwoTowerConfig
from chameleon_lab.retrieval.prompts import WithoutQuery, as_retrieved, put_before
from chameleon_lab.retrieval.retriever import Retriever
from chameleon_lab.retrieval.rules import CM3LEON_RULES, LOOKUP, Hit, RetrievalRules
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.encoders import DocumentPairs, EncoderExperiment
from chameleon_lab.training.retrieval import FlagBatches, FlagDocuments
from chameleon_lab.vocabulary import Modality


@pytest.fixture(scope="module")
def encoder() -> TwoTower:
    torch.manual_seed(0)
    return TwoTower().eval()


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(40)]
    return [Document.of(scene.caption(), scene.picture()) for scene in scenes]


@pytest.fixture(scope="module")
def bank(documents: list[Document], encoder: TwoTower) -> Bank:
    return Bank.of(documents, encoder)


@pytest.fixture(scope="module")
def tiny() -> Chameleon:
    return Chameleon.load("tiny", device="cpu")


# Encoders


def test_vectors_have_length_one_and_depend_on_nothing_beside_them(
    encoder: TwoTower, documents: list[Document]
) -> None:
    texts, pictures = [each.text for each in documents], [each.pictures[0] for each in documents]
    for vectors, alone in (
        (encoder.encode_text(texts), encoder.encode_text(texts[:1])),
        (encoder.encode_pictures(pictures), encoder.encode_pictures(pictures[:1])),
    ):
        assert vectors.dtype == np.float32 and vectors.shape == (40, encoder.config.width)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(vectors[:1], alone, atol=1e-5)
    assert encoder.encode_text([]).shape == encoder.encode_pictures([]).shape == (0, encoder.config.width)


def test_rare_words_weigh_most_and_unknown_ones_as_much_as_any(encoder: TwoTower) -> None:
    torch.manual_seed(0)
    fresh = TwoTower()
    fresh.count_words(["a red circle", "a blue circle", "a green ring", "a ring"])
    weights = [float(fresh.rarity_W[fresh.words_of(word)[0]]) for word in ("a", "circle", "red", "dax")]
    assert weights == sorted(weights) and weights[0] < 0.05 and weights[-1] > 1


def test_a_training_teaches_words_and_pictures_to_find_each_other(documents: list[Document], tmp_path: Path) -> None:
    experiment = EncoderExperiment(
        encoder=TwoTowerConfig(side=32, channels=(8, 16)),
        pairs=DocumentPairs(tuple(documents[:16])),
        batch=16,
        budget=Budget(steps=40),
    )
    run = experiment.run(tmp_path / "run")
    history = run.wait()
    trained = run.result()
    assert history.records[-1].values["accuracy"] > 0.8 > history.records[0].values["accuracy"]
    texts = trained.encode_text([each.text for each in documents[:16]])
    pictures = trained.encode_pictures([each.pictures[0] for each in documents[:16]])
    assert ((texts @ pictures.T).argmax(1) == np.arange(16)).mean() > 0.8
    again = TwoTower.load(tmp_path / "run/encoder")
    assert again.identity == trained.identity != TwoTower(experiment.encoder).identity
    assert np.array_equal(again.encode_text(["a red circle"]), trained.encode_text(["a red circle"]))
    assert {each.suffix for each in (tmp_path / "run/encoder").iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text('{"format": "another"}'),
        lambda folder: (folder / "config.json").write_text(
            '{"format": "chameleon-lab-encoder", "config": {"side": 3}}'
        ),
        lambda folder: (folder / "encoder.safetensors").write_bytes(b"12"),
        lambda folder: (folder / "encoder.safetensors").unlink(),
    ],
    ids=["cut config", "another format", "impossible shape", "cut weights", "no weights"],
)
def test_a_damaged_encoder_is_an_error_that_names_it(encoder: TwoTower, tmp_path: Path, damage) -> None:
    encoder.save(tmp_path / "encoder")
    damage(tmp_path / "encoder")
    with pytest.raises((ValueError, FileNotFoundError), match="encoder"):
        TwoTower.load(tmp_path / "encoder")


def test_clip_without_weights_says_which_files_to_bring(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no CLIP.*safetensors"):
        ClipEncoder(tmp_path)


def test_clip_of_a_folder_is_what_transformers_computes(tmp_path: Path, documents: list[Document]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**shape, "vocab_size": 64, "max_position_embeddings": 16, "eos_token_id": 1, "bos_token_id": 0},
        vision_config={**shape, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    letters = sorted("abcdefghijklmnopqrstuvwxyz")
    names = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (tmp_path / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    size = {"shortest_edge": 32}
    transformers.CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")).save_pretrained(tmp_path)
    clip = ClipEncoder(tmp_path)
    pictures = [each.pictures[0] for each in documents[:3]]
    vectors = clip.encode_pictures(pictures)
    inputs = clip.processor(images=pictures, return_tensors="pt")
    with torch.inference_mode():
        theirs = model(**inputs, **clip.processor(text=["a"], return_tensors="pt")).image_embeds
    np.testing.assert_allclose(vectors, theirs.numpy(), atol=1e-5)
    assert clip.encode_text(["ab", "c"]).shape == (2, 8) and clip.encode_text([]).shape == (0, 8)
    assert len(Bank.of(documents[:5], clip)) == 5 and len(clip.identity) == 8


# Banks


def test_search_is_exact(bank: Bank) -> None:
    queries = np.random.default_rng(1).standard_normal((5, bank.vectors_ND.shape[1])).astype(np.float32)
    scores, places = bank.search(queries, 7)
    expected = queries @ bank.vectors_ND.T
    assert np.array_equal(places, np.argsort(-expected, axis=1)[:, :7])
    np.testing.assert_allclose(scores, np.take_along_axis(expected, places, 1), rtol=1e-5)
    assert bank.search(queries, 1000)[1].shape == (5, len(bank))
    with pytest.raises(ValueError, match="Queries are rows of 48 numbers"):
        bank.search(queries[:, :3], 1)


def test_a_document_is_the_mean_of_its_words_and_its_pictures(encoder: TwoTower, documents: list[Document]) -> None:
    text, picture = documents[0].text, documents[0].pictures[0]
    words, pixels = encoder.encode_text([text])[0], encoder.encode_pictures([picture])[0]
    vectors = document_vectors([documents[0], Document.of(text), Document.of(picture)], encoder)
    expected = (words + pixels) / np.linalg.norm(words + pixels)
    np.testing.assert_allclose(vectors, np.stack([expected, words, pixels]), atol=1e-5)
    with pytest.raises(ValueError, match=r"document 1, .*, has neither words nor pictures"):
        document_vectors([documents[0], Document.of(EndTurn())], encoder)


def test_a_saved_bank_is_the_same_and_replaces_only_a_bank(bank: Bank, tiny: Chameleon, tmp_path: Path) -> None:
    coded = bank.with_codes(tiny.tokenizer)
    for each in (bank, coded):
        each.save(tmp_path / "bank")
        again = Bank.load(tmp_path / "bank")
        assert (again.encoder, again.tokenizer, len(again)) == (each.encoder, each.tokenizer, len(each))
        assert np.array_equal(again.vectors_ND, each.vectors_ND)
        assert list(again.documents[:3]) == list(each.documents[:3]) and again.documents[-1] == each.documents[-1]
    assert {each.name for each in (tmp_path / "bank").iterdir()} == set(BANK_FILES)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds letter.txt"):
        bank.save(tmp_path / "other")


@pytest.mark.parametrize("name", BANK_FILES)
@pytest.mark.parametrize("kind", ["cut", "changed", "gone"])
def test_a_damaged_bank_is_an_error_that_names_it(bank: Bank, tmp_path: Path, name: str, kind: str) -> None:
    bank.save(tmp_path / "bank")
    path = tmp_path / "bank" / name
    content = bytearray(path.read_bytes())
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if kind == "cut" else b"?" + content[1:])
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        Bank.load(tmp_path / "bank")


def test_an_empty_bank_and_one_of_another_encoder_or_tokenizer_say_what_to_do(
    bank: Bank, encoder: TwoTower, tiny: Chameleon, documents: list[Document]
) -> None:
    with pytest.raises(ValueError, match=r"The bank is empty.*Give Bank.of documents"):
        Bank.of([], encoder)
    with pytest.raises(ValueError, match=r"1 could not be read, such as a.png: torn"):
        Bank.of([Skipped("a.png", "torn")], encoder)
    with pytest.raises(TypeError, match="is a Document, not a str"):
        Bank.of(["a red circle"], encoder)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="with blanks cannot be retrieved"):
        Bank.of([Document.of("a ", Blank())], encoder)
    with pytest.raises(ValueError, match=r"query 0, '!!!', has neither .* ask in words"):
        LOOKUP.choose(bank, encoder, Document.of("!!!"))
    torch.manual_seed(1)
    other = TwoTower().eval()
    with pytest.raises(ValueError, match=r"filled by the encoder two-tower.*fill it anew"):
        LOOKUP.choose(bank, other, documents[0])
    with pytest.raises(ValueError, match="filled by the encoder"):
        Retriever(tiny, bank, other)
    foreign = Bank(documents, bank.vectors_ND, bank.encoder, tokenizer="another")
    with pytest.raises(ValueError, match=r"codes of the image tokenizer another.*with_codes"):
        Retriever(tiny, foreign, encoder)
    with pytest.raises(ValueError, match="as many rows of finite numbers"):
        Bank(documents, bank.vectors_ND[1:], bank.encoder)


def test_what_fills_no_bank_says_what_does(encoder: TwoTower, documents: list[Document], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Nothing can be read in .*: 0 taken\. Put pictures there, each with its cap"):
        Bank.of(tmp_path, encoder)
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"no picture ends in \.csv\. Put pictures there"):
        Bank.of(tmp_path, encoder)
    with pytest.raises(ValueError, match="path of the data is empty"):
        Bank.of("", encoder)
    for source in (documents[0], None, 3):
        with pytest.raises(TypeError, match=r"from a list of documents, or from a folder.*Bank.of\(\[document\], enc"):
            Bank.of(source, encoder)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FileNotFoundError, match=r"holds no bank.*Fill one: Bank.of"):
        Bank.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no encoder.*Take the shipped one"):
        TwoTower.load(tmp_path)


def test_a_folder_of_captioned_pictures_is_a_bank(encoder: TwoTower, documents: list[Document], tmp_path: Path) -> None:
    for index, document in enumerate(documents[:3]):
        document.pictures[0].save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(document.text)
    documents[3].pictures[0].save(tmp_path / "bare.png")
    bank = Bank.of(tmp_path, encoder)
    assert [each.text for each in bank.documents] == [*(each.text for each in documents[:3]), ""]
    assert not bank.skipped and bank.documents[3].pictures  # what has no caption is looked up by its picture


# Rules


def test_a_score_above_the_cap_the_query_itself_and_near_duplicates_are_skipped(
    encoder: TwoTower, documents: list[Document]
) -> None:
    bank = Bank.of([*documents[:20], *documents[:20]], encoder)  # each twice
    for seed, query in enumerate(documents[:20]):
        hits = replace(CM3LEON_RULES, count=3).choose(bank, encoder, query, seed)
        assert len(hits) == 3 and all(hit.score <= 0.9 and hit.document != query for hit in hits)
        vectors = bank.vectors_ND[[hit.place for hit in hits if hit.place is not None]]
        assert np.tril(vectors @ vectors.T, -1).max() <= 0.9
    best = replace(LOOKUP, count=1).choose(bank, encoder, documents[4])
    assert best[0].document == documents[4]  # which generation may have


def test_the_choice_follows_the_seed_alone_and_words_are_left_out(encoder: TwoTower, bank: Bank) -> None:
    query = bank.documents[0]
    places = [[hit.place for hit in CM3LEON_RULES.choose(bank, encoder, query, seed)] for seed in range(12)]
    again = CM3LEON_RULES.choose_each(bank, encoder, [query] * 12, range(12))
    assert places == [[hit.place for hit in hits] for hits in again] and len({tuple(each) for each in places}) > 1
    rng, text = np.random.default_rng(0), " ".join(["word"] * 4000)
    stays = len(CM3LEON_RULES._some_words(text, rng).split()) / 4000
    assert abs(stays - 0.8) < 0.03
    assert RetrievalRules(query_dropout=1.0)._some_words("a word", rng) == "a word"


def test_candidates_come_by_words_and_by_pictures(encoder: TwoTower, bank: Bank) -> None:
    both = replace(CM3LEON_RULES, count=3, shuffled=False)
    ways = {hit.by for seed in range(8) for hit in both.choose(bank, encoder, bank.documents[seed], seed)}
    assert ways == {"text", "picture"}
    alone = both.choose(bank, encoder, Document.of(bank.documents[1].text))
    assert len(alone) == 3 and {hit.by for hit in alone} == {"text"}
    assert {hit.by for hit in both.choose(bank, encoder, Document.of(bank.documents[1].pictures[0]))} == {"picture"}
    assert replace(both, count=0).choose(bank, encoder, bank.documents[0]) == []


@pytest.mark.parametrize(
    "wrong", [{"count": 4}, {"count": -1}, {"query_dropout": 1.5}, {"cap": 2.0}, {"by_text": 0, "by_picture": 0}]
)
def test_impossible_rules_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        replace(CM3LEON_RULES, **wrong)


# Documents before a document


def test_retrieved_documents_stand_before_closed_by_breaks_and_are_not_learned(tiny: Chameleon) -> None:
    rng = np.random.default_rng(0)
    scene = sample_scene(rng)
    captioned = Document.of(scene.caption(), scene.picture())
    wordy = Document.of("draw a circle", EndTurn(), "no", EndTurn())
    query = Document.of("draw a ring", EndTurn())
    before = put_before(query, [captioned, wordy], tiny.tokenizer, 1024)
    vocabulary, tokens = tiny.vocabulary, tiny.encode(before.document)
    kinds = [type(each).__name__ for each in before.document]
    assert kinds == ["Text", "Image", "Text", "Text", "EndTurn", "Text", "EndTurn"]
    assert tokens[before.tokens - 1] == vocabulary.end_turn
    assert np.array_equal(tokens[before.tokens :], tiny.encode(query)[1:])
    (tokenized,) = tokenize([before.document], tiny.tokenizer)
    assert not tokenized.learn[: before.tokens].any() and tokenized.learn[before.tokens :].all()
    learned = put_before(query, [captioned], tiny.tokenizer, 1024, learn=True)
    assert all(part.learn for part in learned.document)


def test_what_has_no_room_is_left_out_and_named(tiny: Chameleon, documents: list[Document]) -> None:
    query = Document.of("draw a ring", EndTurn())
    whole = put_before(query, documents[:3], tiny.tokenizer, 1024)
    length = len(tiny.encode(whole.document))
    assert put_before(query, documents[:3], tiny.tokenizer, length).places == (0, 1, 2)
    before = put_before(query, documents[:3], tiny.tokenizer, length - 1)
    assert before.places == (0, 1) and len(tiny.encode(before.document)) <= length - 1
    assert len(before.left_out) == 1 and "retrieved document 2" in before.left_out[0]
    assert documents[2].text[:40] in before.left_out[0]
    with pytest.raises(ValueError, match=r"nothing retrieved would fit.*Shorten the document"):
        put_before(query, documents[:1], tiny.tokenizer, 3)
    with pytest.raises(ValueError, match="blanks cannot be retrieved"):
        as_retrieved(Document.of("a ", Blank()))


@pytest.mark.parametrize("guide", [TwoWay(3.0), TwoWay(2.0, image_alone), ThreeWay()], ids=["two", "alone", "three"])
def test_guidance_drops_the_query_and_keeps_the_documents(guide, tiny: Chameleon, documents: list[Document]) -> None:
    query = Document.of("draw a ring", EndTurn())
    before = put_before(query, documents[:2], tiny.tokenizer, 1024)
    tokens = np.array([*tiny.encode(before.document), tiny.vocabulary.begin_image])
    streams = WithoutQuery(guide, before.tokens).streams(tokens, tiny.tokenizer)
    assert len(streams) == guide.twins
    for stream in streams:
        assert np.array_equal(stream[: before.tokens], tokens[: before.tokens])
        assert stream[before.tokens :].tolist() == [tiny.vocabulary.begin_image]
    logits = torch.randn(1 + guide.twins, 2, 5)
    assert torch.equal(WithoutQuery(guide, 3).mix(logits, [0.1, 0.2]), guide.mix(logits, [0.1, 0.2]))


def test_training_documents_get_theirs_by_the_rules(
    tiny: Chameleon, bank: Bank, encoder: TwoTower, documents: list[Document]
) -> None:
    made = augment(documents[:6], bank, encoder, tiny.tokenizer, context=1024, seed=3)
    again = augment(documents[:6], bank, encoder, tiny.tokenizer, context=1024, seed=3)
    for one, other, document in zip(made.documents, again.documents, documents, strict=False):
        (own,) = tokenize([document], tiny.tokenizer)
        assert np.array_equal(one.tokens, other.tokens)
        assert np.array_equal(one.tokens[-len(own.tokens) + 1 :], own.tokens[1:])
        assert np.array_equal(np.flatnonzero(one.learn), np.flatnonzero(own.learn) + len(one.tokens) - len(own.tokens))
    assert all(len(hits) == 2 for hits in made.hits) and not made.left_out
    short = augment(documents[:6], bank, encoder, tiny.tokenizer, context=180, seed=3)
    assert short.left_out and all(len(each.tokens) <= 180 for each in short.documents)
    assert all("document 0" in words or "document 1" in words for _, words in short.left_out)


# A model with a bank


def test_a_reply_is_written_behind_what_was_looked_up(tiny: Chameleon, bank: Bank, encoder: TwoTower) -> None:
    retriever = Retriever(tiny, bank.with_codes(tiny.tokenizer), encoder, replace(LOOKUP, count=1))
    request = Document.of("draw a large red circle at the top on a mint background", EndTurn())
    drawing = retriever.draw(request, seed=7, guidance=2.0)
    (hit,) = drawing.hits
    settings = replace(tiny.settings.changed(guidance=2.0), window=None)
    before = put_before(request, [hit.document], tiny.tokenizer, 1024, 67)
    settings = replace(settings, guidance=WithoutQuery(TwoWay(2.0), before.tokens))
    expected = tiny.generate(before.document, seed=7, settings=settings)
    assert drawing.reply == expected
    *_, _ = retriever.stream(request, seed=7, guidance=2.0)
    assert retriever.last is not None and retriever.last.hits == drawing.hits
    other = drawing.swap(0, bank.documents[-1])
    assert other.hits[0].by == "hand" and other.request == request
    assert drawing.swap(0, hit.document).reply == drawing.reply
    with pytest.raises(ValueError, match="no hit 1 to swap"):
        drawing.swap(1, bank.documents[0])


def test_without_documents_a_reply_is_the_model_s_own(tiny: Chameleon, bank: Bank, encoder: TwoTower) -> None:
    retriever = Retriever(tiny, bank, encoder, replace(LOOKUP, count=0))
    request = Document.of("what can you do?", EndTurn())
    assert retriever.generate(request, seed=1) == tiny.generate(request, seed=1)


def test_the_query_is_the_latest_turn(tiny: Chameleon, bank: Bank, encoder: TwoTower) -> None:
    retriever = Retriever(tiny, bank, encoder)
    last = Document.of(bank.documents[3].text, EndTurn())
    chat = Document.of("draw a ring", EndTurn(), "no", EndTurn()) + last
    assert [hit.place for hit in retriever.look_up(chat)] == [hit.place for hit in retriever.look_up(last)]


def test_the_view_shows_scores_and_escapes_words(documents: list[Document], tiny: Chameleon, bank: Bank,
                                                 encoder: TwoTower) -> None:  # fmt: skip
    retriever = Retriever(tiny, bank, encoder)
    evil = Document.of("<script>alert(1)</script>", documents[0].pictures[0])
    drawing = retriever.draw(Document.of("<b>hello</b>", EndTurn()), hits=[Hit(evil, 0.5, 3)])
    html = drawing._repr_html_()
    assert "<script" not in html and "<b>" not in html and "&lt;b&gt;" in html
    assert "score 0.50 by text" in html and "<img" in html


def test_a_chat_cell_takes_the_stream(tiny: Chameleon, bank: Bank, encoder: TwoTower) -> None:
    from chameleon_widgets.chat.arguments import StreamArguments

    arguments = StreamArguments(Retriever(tiny, bank, encoder).stream, {})
    assert {"temperature", "guidance", "seed", "modality"} <= set(arguments.settings) and arguments.resumes
    assert "hits" not in arguments.keywords({}, 0)


# Flags, and what is measured on them


def test_names_and_flags_are_held_out_of_training() -> None:
    tasks, rng = lookup_tasks(32), np.random.default_rng(0)
    names, flags = {task.flag.name for task in tasks}, {task.flag.colours for task in tasks}
    assert len(names) == len(flags) == 32 and all(map(is_held_out, [*names, *map(" ".join, flags)]))
    for _ in range(40):
        retrieved, document = looked_up(rng)
        for each in (*retrieved, document):
            for text, picture in zip(each.text.split("draw"), each.pictures, strict=False):
                if "flag of" in text:
                    name = text.split("flag of ")[1].split(" ")[0]
                    assert not is_held_out(name) and not is_held_out(" ".join(read_flag(picture)[0]))


def test_a_flag_is_read_back_from_its_pixels_and_through_the_tokenizer(tiny: Chameleon) -> None:
    rng = np.random.default_rng(0)
    flags = sample_flags(rng, 40)
    pictures = [flag.picture("mint") for flag in flags]
    assert [read_flag(picture) for picture in pictures] == [(flag.colours, "mint") for flag in flags]
    back = [tiny.tokenizer.image.decode(codes) for codes in tiny.tokenizer.image.encode_batch(pictures)]
    rights = [read_flag(picture)[0] == flag.colours for picture, flag in zip(back, flags, strict=True)]
    assert sum(rights) >= 36
    assert read_flag(PIL.Image.new("L", (9, 5)))[0] == ("black",) * 4


def test_only_what_stands_before_says_what_a_name_is() -> None:
    for task in lookup_tasks(8):
        assert task.flag.name in task.request.text and not any(c in task.request.text for c in task.flag.colours)
        assert all(task.flag.name in each.text and task.background not in each.text for each in task.right)
        assert all(task.flag.name not in each.text for each in task.wrong)


def test_the_evaluation_tells_a_reader_from_a_guesser(monkeypatch: pytest.MonkeyPatch, tiny: Chameleon) -> None:
    """A stand-in draws the flag where a document before the request explains its name, and another one elsewhere."""
    tasks = {task.request.text: task for task in lookup_tasks(8)}

    def generate(documents, settings, seeds, *rest):
        replies = []
        for document in documents:
            task = next(task for text, task in tasks.items() if document.text.endswith(text))
            reads = task.flag.name in document.text.removesuffix(task.request.text)
            picture = task.flag.picture(task.background) if reads else PIL.Image.new("RGB", (64, 64))
            replies.append(Document.of(picture))
        return replies

    monkeypatch.setattr(Chameleon, "engine", SimpleNamespace(generate=generate))
    rows = {
        name: results
        for name, _, results in retrieval_results(tiny, TwoTower.load(find("retrieval") / "encoder"), 8, (1.0,))
    }
    shares = {name: {measure: each.value.value for measure, each in results.items()} for name, results in rows.items()}
    assert shares["the right document"]["everything"] == shares["two right documents"]["flag"] == 100
    assert shares["no document"]["flag"] == shares["a wrong document"]["flag"] == 0
    assert shares["2 looked up"]["flag"] >= 75  # the encoder has never read these names
    cards = [each.value.card for results in rows.values() for each in results.values()]
    assert len({card.reference_hash for card in cards}) == len(rows)
    assert len({card.metric for card in cards}) == 2 * len(rows)
    assert all(card.n == 8 and card.seed == 2026 and "guidance 1.0" not in card.definition for card in cards)


def test_batches_of_flags_are_a_function_of_seed_and_step_and_learn_only_drawings(tiny: Chameleon) -> None:
    data = FlagDocuments(tiny.tokenizer, tokens=700)
    batches = data.open(0, None).batches
    batch = batches(17)
    assert same(batch, data.open(0, None).batches(17)) and not same(batch, batches(18))
    drawn = batch.modality_BT == Modality.IMAGE
    learned = batch.targets_BT[batch.learned_BT & ~drawn]
    ends = {tiny.vocabulary.begin_image, tiny.vocabulary.end_image, tiny.vocabulary.end_turn}
    assert batch.learned_BT.any() and set(learned.tolist()) <= ends | {tiny.vocabulary.end_document}
    lengths = [sum(map(tiny.tokenizer.length, Document(tuple(part)))) for part in _some_parts(200)]
    mean = 1 + np.mean(lengths)
    assert abs(mean - FlagBatches.LENGTHS[0] - 3 * FlagBatches.LENGTHS[1]) < 0.1 * mean


def _some_parts(count: int):
    rng = np.random.default_rng(0)
    for _ in range(count):
        retrieved, document = looked_up(rng)
        yield [part for each in (*retrieved, document) for part in each]
