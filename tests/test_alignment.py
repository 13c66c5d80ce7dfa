"""Alignment: answers alone are learned, nothing is cut between prompt and answer, and it begins from weights."""

import json
import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import PIL.Image
import pytest
import support
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.commands.main import main
from chameleon_lab.corpora.alignment import (
    CATEGORIES,
    SCENE_CATEGORIES,
    answers_learned,
    category_weights,
    conversation_tokens,
    picture_policies,
    prepared_pictures,
    whole_exchanges,
)
from chameleon_lab.corpora.batch_view import BatchView
from chameleon_lab.corpora.packing import DocumentColumn, TokenizedDocument, pack, tokenize
from chameleon_lab.corpora.readers import Skipped
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.optimization import Cosine
from chameleon_lab.stability import Dropout, QueryKeyNorm, ZLoss
from chameleon_lab.training.alignment import (
    ALIGNMENT,
    Conversations,
    SceneCategory,
    alignment_on,
    conversation_sources,
    in_portions,
    save_aligned,
)
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.fine_tuning import fine_tune
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import CHAMELEON


def chat(*turns: str) -> Document:
    """Words in turns, all of them said to be learned, as somebody may have written them."""
    return Document(tuple(part for words in turns for part in (Text(words), EndTurn())))


def wide(grey: int = 0) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (32, 16), (grey, grey, grey))


# The paper's figures, and the worlds' small categories


def test_the_papers_shares_are_those_of_its_table():
    assert category_weights("samples")["text"] == pytest.approx(1.6e6 / 1_806_200)
    assert category_weights("tokens")["image generation"] == pytest.approx(68 / 1102.9)
    assert category_weights("images")["interleaved"] == pytest.approx(30.7 / 113.3)
    assert all(sum(category_weights(by).values()) == pytest.approx(1) for by in ("samples", "tokens", "images"))
    with pytest.raises(ValueError, match="samples, tokens and images, not 'bytes'"):
        category_weights("bytes")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("category", CATEGORIES)
def test_each_category_has_conversations_about_scenes_with_answers_to_learn(category, mixed):
    rng = np.random.default_rng(3)
    for _ in range(20):
        document = answers_learned(SCENE_CATEGORIES[category](rng))
        assert [role for role, _ in document.turns] == ["user", "model"] * (len(document.turns) // 2)
        pictures = [part.learn for part in document if isinstance(part, Image)]
        assert any(pictures) == (category in ("image generation", "interleaved")) or category == "interleaved"


@pytest.mark.parametrize(("kind", "drawn"), [("open, drawn", True), ("open, in words", False)])
def test_an_open_request_is_answered_by_either(kind, drawn):
    for document in SceneCategory(kind, 5).documents():
        assert [role for role, _ in document.turns] == ["user", "model"] and bool(document.pictures) == drawn
        assert document == answers_learned(document)


# What is learned


def test_answers_and_their_ends_are_learned_and_prompts_are_not():
    document = answers_learned(chat("draw", "no", "why?", "because"))
    assert [part.learn for part in document] == [False, False, True, True] * 2
    assert answers_learned(chat("draw", "no") + Document.of("and then?")) == answers_learned(chat("draw", "no"))
    unfinished = Document.of("draw", EndTurn(), "no")
    assert answers_learned(unfinished) == answers_learned(chat("draw", "no"))
    quiet = answers_learned(chat("a", "b") + chat("c", "d").learning(False))
    assert [part.learn for part in quiet] == [False, False, True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (Document.of("a text"), "no prompt and answer"),
        (Document(), "no prompt and answer"),
        (Document.of("draw", EndTurn()), "no prompt and answer"),
        (Document.of(EndTurn(), "an answer", EndTurn()), "turn 1 is empty"),
        (Document.of("draw", EndTurn(), EndTurn()), "turn 2 is empty"),
        (chat("draw", "no").learning(False), "no answer in it is to be learned"),
    ],
)
def test_what_has_nothing_to_answer_or_to_learn_says_so(document, reason):
    with pytest.raises(ValueError, match=reason):
        answers_learned(document)


def test_one_token_stands_between_prompt_and_answer_and_nowhere_else(mixed):
    vocabulary = mixed.vocabulary
    (tokens, learn), *_ = tokenize([answers_learned(chat("draw", "no", "why?", "so"))], mixed)
    ends = np.flatnonzero(tokens == vocabulary.end_turn)
    assert learn[ends].tolist() == [False, True, False, True]
    turns = np.concatenate([[0], np.cumsum(tokens == vocabulary.end_turn)[:-1]])
    assert all((learn == (turns % 2 == 1))[1:-1])
    assert CHAMELEON.spelling(CHAMELEON.end_turn) == "<reserved08706>"


def test_prompt_pictures_keep_their_borders_and_answers_are_cropped(mixed):
    half = PIL.Image.new("RGB", (32, 16))
    half.paste((200, 200, 200), (0, 0, 8, 16))
    document = answers_learned(Document.of(half, "more", EndTurn(), half, EndTurn()))
    prompt, answer = prepared_pictures(document, picture_policies(mixed, "border padding", "centre crop")).pictures
    assert prompt.size == answer.size == (16, 16)
    assert np.asarray(prompt)[0].min() == 255 and np.asarray(prompt)[8, 0, 0] > 150  # a border, and the left end
    assert np.asarray(answer).max() < 100  # the middle alone
    coded = Document.of(Image(half, np.zeros((4, 4), int)), EndTurn(), "x", EndTurn())
    assert prepared_pictures(coded, picture_policies(mixed, "border padding", "centre crop")).pictures[0] is half
    with pytest.raises(ValueError, match="No policy for squares is called 'stretch'"):
        picture_policies(mixed, "stretch", "centre crop")


# Longer than the context


def test_a_long_conversation_is_cut_between_exchanges_and_each_token_is_learned_once(mixed):
    rng, vocabulary = np.random.default_rng(0), mixed.vocabulary
    for _ in range(40):
        turns = ["x" * int(rng.integers(1, 30)) for _ in range(2 * int(rng.integers(1, 6)))]
        (document,) = tokenize([answers_learned(chat(*turns))], mixed)
        context = int(rng.integers(20, 100))
        pieces = list(whole_exchanges(document, context, vocabulary))
        fitting = [piece for piece in pieces if isinstance(piece, TokenizedDocument)]
        lengths = [len(one) + len(other) + 2 for one, other in zip(turns[::2], turns[1::2], strict=True)]
        assert sum(isinstance(piece, Skipped) for piece in pieces) == sum(length > context - 1 for length in lengths)
        assert all(len(tokens) - 1 <= context for tokens, _ in fitting)
        for tokens, learn in fitting:
            assert tokens[0] == vocabulary.begin_document and tokens[-1] == vocabulary.end_document
            assert not learn[0] and learn[-1] and (tokens == vocabulary.end_turn).sum() % 2 == 0
        learned = sum(int(learn[1:-1].sum()) for _, learn in fitting)
        answers = zip(turns[1::2], lengths, strict=True)
        assert learned == sum(len(words) + 1 for words, length in answers if length <= context - 1)
        for (one, _), (other, _) in pairwise(fitting):  # as few pieces as there can be
            first = int(np.flatnonzero(other == vocabulary.end_turn)[1])
            assert len(one) - 1 + first > context


def test_what_is_skipped_is_named_by_its_number_and_the_rest_is_whole(mixed):
    documents = [
        chat("a", "b"),
        Document.of("no turns"),
        Skipped("chats.jsonl, line 3", "a prompt without an answer"),
        Document.of(PIL.Image.new("RGB", (0, 4)), EndTurn(), "what?", EndTurn()),
        chat("a", "b", "c" * 90, "d", "e", "f"),
        Document.of(Text("\ud800"), EndTurn(), "half a letter", EndTurn()),
        chat("g", "h" * 90),
    ]
    entries = list(conversation_tokens(documents, mixed, 60, picture_policies(mixed, "border padding", "centre crop")))
    assert [mixed.text.decode((tokens[tokens >= mixed.vocabulary.first_text] - mixed.vocabulary.first_text).tolist())
            for tokens, _ in entries if not isinstance(tokens, str)] == ["ab", "ab", "ef"]  # fmt: skip
    reasons = dict(entry for entry in entries if isinstance(entry, Skipped))
    assert sorted(reasons) == [
        "chats.jsonl, line 3",
        *("conversation 2", "conversation 4", "conversation 5, exchange 2", "conversation 6"),
        "conversation 7, exchange 1",
    ]
    assert "The picture is empty" in reasons["conversation 4"]
    assert "takes 94 positions and the context has 60" in reasons["conversation 5, exchange 2"]


# The training


def test_the_recipe_is_the_papers():
    recipe, fixes = ALIGNMENT.recipe, ALIGNMENT.model.fixes
    assert (recipe.rate, recipe.schedule, recipe.weight_decay, recipe.betas) == (1e-5, Cosine(), 0.1, (0.9, 0.95))
    assert Dropout(0.05) in fixes and ALIGNMENT.objective.penalties == (ZLoss(1e-5),)
    assert ALIGNMENT.begins_from == "tiny" and isinstance(ALIGNMENT.data, Conversations) and ALIGNMENT.data.rows == 128
    assert set(ALIGNMENT.data.sources) == set(CATEGORIES)


@pytest.fixture(scope="module")
def base(mixed) -> Chameleon:
    torch.manual_seed(5)
    model = replace(support.MODEL, vocabulary=mixed.vocabulary.size, fixes=(QueryKeyNorm(), Dropout(0.2)))
    return Chameleon(Transformer(model).eval(), mixed)


def test_one_cell_aligns_a_model_on_a_file_of_conversations(base, tmp_path):
    lines = [{"turns": [f"what is {number}?", f"it is {number}"]} for number in range(40)]
    lines += [{"turns": [["what is this?", {"image": "gone.png"}], "nothing"]}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    experiment = alignment_on(tmp_path / "chats.jsonl", base, rows=4, budget=Budget(steps=6), monitors=())
    assert isinstance(experiment.data, Conversations)
    assert experiment.model.fixes == (QueryKeyNorm(), Dropout(0.05)) and experiment.data.context == 160
    gathered = experiment.data.gathered()
    experiment = replace(experiment, recipe=replace(experiment.recipe, rate=1e-2))
    assert len(gathered.held_out) == 2 and "conversations: 38 conversations" in str(gathered)
    assert "line 41: There is no picture at" in str(gathered)  # and a training says so, too
    outcome = fine_tune(experiment, tmp_path / "run")
    assert outcome.after["new"]["loss"] < outcome.before["new"]["loss"]
    save_aligned(outcome.model, experiment, tmp_path / "model")
    aligned = Chameleon.load(tmp_path / "model")
    assert aligned.card["data"]["sources"]["conversations"]["path"].endswith("chats.jsonl")
    assert aligned.generate(Document.of("what is 3?", EndTurn()), seed=1, max_tokens=4) is not None


def test_gathered_conversations_are_as_light_as_their_bytes_and_the_documents_they_were(mixed):
    documents = list(conversation_tokens(SceneCategory("image generation", 30).documents(), mixed, 272))
    column = DocumentColumn(mixed.vocabulary.size)
    for document in documents:
        assert isinstance(document, TokenizedDocument)
        column.append(document)
    for chosen, places in ((column, range(30)), (column.chosen([7, 2, 9])[1:], [2, 9]), (column[-3:], [27, 28, 29])):
        assert len(chosen) == len(places)
        for mine, place in zip(chosen, places, strict=True):
            assert mine.tokens.dtype == np.int64 and mine.learn.dtype == bool
            assert all((one == other).all() for one, other in zip(mine, documents[place], strict=True))
    with pytest.raises(IndexError):
        column[30]
    tokens = sum(len(each.tokens) for each in column)
    assert len(pickle.dumps(column)) < 3 * tokens + 8 * 30 + 1000


def test_categories_come_in_the_shares_of_their_weights(base, mixed):
    sources = {name: SceneCategory(name, 12) for name in ("text", "image generation")}
    data = Conversations(sources, mixed, {"text": 1, "image generation": 3}, rows=16, context=160, held_out=0)
    batch = data.open(0, None).batches(0)
    drawn = (batch.modality_BT == 1).any(1)
    assert 9 <= int(drawn.sum()) <= 15 and bool(batch.learned_BT.any(1).all())
    assert torch.equal(data.open(0, None).batches(3).inputs_BT, data.open(0, None).batches(3).inputs_BT)
    natural = Conversations(sources, mixed, rows=16, context=160, held_out=0).open(0, None).batches
    whole = Conversations(sources, mixed, context=160, held_out=0).gathered()
    tokens = {name: sum(len(each.tokens) for each in part) for name, part in whole.parts.items()}
    assert natural.shares(0)["text"] == pytest.approx(tokens["text"] / sum(tokens.values()))


def test_other_conversations_are_another_experiment(base, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"turns": ["a", "b"]}\n')
    first = alignment_on(tmp_path / "a.jsonl", base).fingerprint
    assert first == alignment_on(tmp_path / "a.jsonl", base).fingerprint
    (tmp_path / "a.jsonl").write_text('{"turns": ["a", "bcd"]}\n')
    assert alignment_on(tmp_path / "a.jsonl", base).fingerprint != first
    cells = [alignment_on([chat("a", words)], base).fingerprint for words in ("b", "b", "c")]
    assert cells[0] == cells[1] != cells[2]


def test_what_cannot_be_aligned_on_says_so(base, mixed, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"turns": ["a"]}\n{"text": "b"}\n')
    with pytest.raises(ValueError, match=r"'conversations' holds no conversation .*line 1: a prompt without an answer"):
        alignment_on(tmp_path / "a.jsonl", base).open()
    with pytest.raises(ValueError, match="no tokenizer"):
        alignment_on(tmp_path / "a.jsonl", base.model)
    with pytest.raises(ValueError, match="There is no source poems; there are text"):
        Conversations({"text": SceneCategory("text", 3)}, mixed, {"poems": 1.0})
    for source, why in ((5, "not of type int"), (["a"], "entry 1 is of type str"), ([{"turns": []}], "of type dict")):
        with pytest.raises(ValueError, match=why):
            Conversations({"a": source}, "tiny")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="the weight of 'a' must be a finite number"):
        Conversations({"a": [chat("a", "b")]}, "tiny", weights={"a": "1"})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="There are no conversations"):
        Conversations({}, mixed)
    with pytest.raises(ValueError, match="No category is called 'poems'"):
        SceneCategory("poems", 3)


def test_the_command_line_names_sources_by_category_with_weights(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"turns": ["a", "b"]}\n')
    place = str(tmp_path / "a.jsonl")
    sources, weights = conversation_sources([f"visual chat:{place}=2", f"text:jsonl:{place}"])
    assert list(sources) == ["visual chat", "text"] and weights == {"visual chat": 2.0, "text": 1.0}
    assert conversation_sources([place])[1] is None and list(conversation_sources([place])[0]) == ["conversations"]
    assert set(conversation_sources([])[0]) == set(CATEGORIES)
    with pytest.raises(ValueError, match="'text' has two sources"):
        conversation_sources([f"text:{place}", f"text:{place}"])


def test_the_shell_aligns_a_model_on_conversations_and_writes_it(base, tmp_path, caplog):
    base.save(tmp_path / "base")
    (tmp_path / "chats.jsonl").write_text('{"turns": ["a", "b"]}\n' * 9)
    caplog.set_level("INFO")
    options = ("--data", f"text:{tmp_path / 'chats.jsonl'}=2", "--begins-from", str(tmp_path / "base"))
    folder = tmp_path / "run"
    assert main(["train", "alignment", *options, "--folder", str(folder), "--minutes", "0.001"]) == 0
    assert f"The model is in {folder / 'model'}" in caplog.text
    aligned = Chameleon.load(folder / "model")
    assert aligned.card["data"]["weights"] == {"text": 2.0} and "aligned on conversations" in aligned.card["notes"][0]
    assert Dropout(0.05) in aligned.model.config.fixes
    assert torch.cuda.is_available() or aligned.card["data"]["rows"] == 8  # of 128 a step


def test_a_step_in_portions_is_of_as_many_rows():
    experiment, trainer = in_portions(ALIGNMENT)
    assert isinstance(experiment.data, Conversations)
    assert experiment.data.rows * trainer["accumulate_grad_batches"] == 128 > experiment.data.rows
    assert replace(experiment, data=ALIGNMENT.data) == ALIGNMENT
    with pytest.raises(ValueError, match="128 rows cannot be taken 7 at once"):
        in_portions(ALIGNMENT, 7)


# What a batch looks like


def test_a_view_colours_what_is_learned_and_escapes_all_words(mixed):
    documents = [
        answers_learned(chat("<script>alert(1)</script>", "a & b")),
        answers_learned(Document.of(wide(), EndTurn(), wide(200), EndTurn())),
    ]
    (batch,) = pack(tokenize(documents, mixed), 100, mixed.vocabulary)
    view = BatchView(batch, mixed)
    runs = [run for row in range(len(batch.inputs_BT)) for document in view.runs(row) for run in document]
    learned = sum(len(run.tokens) for run in runs if run.learned)
    assert learned == int(batch.learned_BT.sum())
    assert sum(view.shares.values()) == pytest.approx(1)
    assert {(run.kind, run.learned) for run in runs if run.kind == "image"} == {("image", False), ("image", True)}
    page = view._repr_html_()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "a &amp; b" in page
    assert page.count("<img ") == 2 and page.count("<div") == page.count("</div>")
    assert "words, learned" in str(view) and str(view).startswith(f"{len(batch.inputs_BT)} rows of 100 positions")


def test_a_view_needs_neither_decoder_nor_spelling(mixed):
    (batch,) = pack(
        tokenize([answers_learned(Document.of(wide(), EndTurn(), "x", EndTurn()))], mixed), 60, mixed.vocabulary
    )
    bare = mixed.with_parts(None, None)
    page = BatchView(batch, bare, rows=1)._repr_html_()
    assert "picture of 16 tokens, only read" in page and "1 tokens of text" in page
