"""A grown vocabulary: new words behind those that were, and a training that begins from a model without them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import support
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints.text_files import with_words
from chameleon_lab.documents import Document
from chameleon_lab.optimization import Constant, Recipe
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import JsonTokenizer
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import Scenes
from chameleon_lab.training.experiments import Experiment
from chameleon_lab.transformer import Transformer

MODEL = replace(support.MODEL, context=500)
WORDS = ["crimson", "teal"]


@pytest.fixture
def kinds(mixed, spelled) -> dict[str, MixedModalTokenizer]:
    json_text = with_words(spelled, ["zigzag"])
    assert isinstance(json_text.text, JsonTokenizer)
    return {"bytes": mixed, "sentencepiece": spelled, "json": json_text}


@pytest.fixture
def base(spelled) -> Chameleon:
    torch.manual_seed(11)
    return Chameleon(Transformer(replace(MODEL, vocabulary=spelled.vocabulary.size)), spelled)


def experiment_of(tokenizer: MixedModalTokenizer, base: Chameleon | str, **changes: object) -> Experiment:
    recipe = Recipe(rate=1e-2, warm_up=0, weight_decay=0.0, schedule=Constant())
    data = Scenes(tokenizer, tokens=236, held_out=4)
    plain = Experiment("grown", MODEL, Budget(steps=2), data, recipe, monitors=(), checkpoints=0, begins_from=base)
    return replace(plain, **changes)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "json"])
def test_new_words_are_tokens_behind_all_others_and_the_rest_stays_as_it_was(kinds, kind):
    before = kinds[kind]
    after, size = with_words(before, WORDS), before.vocabulary.size
    assert after.vocabulary == replace(before.vocabulary, size=size + 2) and after.text.size == before.text.size + 2
    for text in (*support.TEXTS[:5], "draw a red circle left of a blue square"):
        assert np.array_equal(after.encode(Document.of(text)), before.encode(Document.of(text)))
    tokens = after.encode(Document.of("a crimson square teal, crimson"))
    assert [token for token in tokens if token >= size] == [size, size + 1, size]
    assert after.decode(tokens).text == "a crimson square teal, crimson"


@pytest.mark.parametrize("words", [[], "teal", [""], [" teal"], ["teal", "teal"], ["</s>"], ["IMGIMGAZ"]])
def test_what_is_no_new_word_is_refused(spelled, words):
    with pytest.raises(ValueError, match=r"[Ww]ord"):
        with_words(spelled, words)


def test_a_training_begins_with_the_rows_that_were_and_new_ones_at_their_mean(base, tmp_path):
    size, first = base.vocabulary.size, base.vocabulary.first_text
    experiment = experiment_of(with_words(base.tokenizer, WORDS), base)
    model = experiment.build().model
    for table, was in ((model.embedding, base.model.embedding), (model.head, base.model.head)):
        assert torch.equal(table.weight[:size], was.weight) and len(table.weight) == size + 2
        assert torch.allclose(table.weight[size:], was.weight[first:].mean(0).expand(2, -1))
    text = Document.of("a red circle left of a blue square")
    with torch.no_grad():  # what was known is predicted as before, but for the share of the new
        tokens_1T = torch.from_numpy(base.encode(text))[None]
        assert torch.allclose(model(tokens_1T)[..., :size], base.model(tokens_1T), atol=1e-5)
    trained = experiment.run(tmp_path).result(60)
    assert not torch.equal(trained.head.weight[size:], model.head.weight[size:])


def test_a_folder_with_added_tokens_and_a_padded_head_is_one_to_begin_from(base, tmp_path):
    """As `resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)` leaves it."""
    grown = experiment_of(with_words(base.tokenizer, WORDS), base)
    lab = Chameleon(grown.build().model, grown.data.tokenizer)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    lab.save(tmp_path / "theirs", format="huggingface", pictures=False)
    for file in (tmp_path / "theirs").glob("*.safetensors"):
        tensors = safetensors.torch.load_file(file)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                rows = -len(tensors[name]) % 64
                tensors[name] = torch.cat([tensors[name], torch.full((rows, MODEL.width), 7.0)])
        safetensors.torch.save_file(tensors, file, {"format": "pt"})
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config["vocab_size"] += -config["vocab_size"] % 64
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    read = Chameleon.load(tmp_path / "theirs", device="cpu")
    assert read.vocabulary == lab.vocabulary and torch.equal(read.model.head.weight, lab.model.head.weight)
    tokenizer = read.tokenizer.with_parts(read.tokenizer.text, base.tokenizer.image)
    again = experiment_of(tokenizer, str(tmp_path / "theirs"), model=replace(MODEL, fixes=read.model.config.fixes))
    assert torch.equal(again.build().model.embedding.weight, lab.model.embedding.weight)
    further = experiment_of(with_words(tokenizer, ["ochre"]), read)
    assert len(further.build().model.head.weight) == lab.vocabulary.size + 1


def test_tokens_that_others_added_to_a_folder_of_the_lab_are_read_though_its_sentencepiece_knows_none(tmp_path):
    """As `transformers` leaves it that read the folder, resized the table with padding, and saved it there."""
    lab = Chameleon.load("tiny", device="cpu")
    size, padded = lab.vocabulary.size, lab.vocabulary.size + 1 + -(lab.vocabulary.size + 1) % 64
    lab.save(tmp_path, format="huggingface", pictures=False)
    tokens, config = (json.loads((tmp_path / name).read_text()) for name in ("tokenizer.json", "config.json"))
    more = {"id": size, "content": "crimson", "normalized": True, "special": False}
    tokens["added_tokens"].append({**tokens["added_tokens"][0], **more})
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokens))
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": padded}))
    for file in tmp_path.glob("*.safetensors"):
        tensors = safetensors.torch.load_file(file)
        for name in {"model.embed_tokens.weight", "lm_head.weight"} & tensors.keys():
            rows = torch.full((padded - size, lab.model.config.width), 7.0)
            tensors[name] = torch.cat([tensors[name], rows])
        safetensors.torch.save_file(tensors, file, {"format": "pt"})
    assert (tmp_path / "text_tokenizer.model").is_file()
    read = Chameleon.load(tmp_path, device="cpu")
    assert read.vocabulary.size == len(read.model.embedding.weight) == size + 1
    assert size in read.encode(Document.of("a crimson square"))


def test_a_vocabulary_that_shrank_or_whose_words_are_others_is_one_clear_error(base, mixed):
    grown = experiment_of(with_words(base.tokenizer, WORDS), base)
    lab = Chameleon(grown.build().model, with_words(base.tokenizer, WORDS))
    with pytest.raises(ValueError, match="another shape: vocabulary"):
        experiment_of(base.tokenizer, lab).build()
    with pytest.raises(ValueError, match="text tokenizers differ"):
        experiment_of(with_words(base.tokenizer, ["ochre", "teal", "plum"]), lab).build()
    with pytest.raises(ValueError, match=r"another shape: vocabulary|text tokenizers differ|vocabularies differ"):
        experiment_of(with_words(mixed, WORDS), base).build()
