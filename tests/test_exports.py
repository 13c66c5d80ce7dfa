"""What a model trained here takes along: its words as transformers reads them, and configs as others' programs do."""

import json
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import tokenizers
import torch
from support import TEXTS
from test_formats import make_lab, weights

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints import formats
from chameleon_lab.checkpoints.companion import COMPANION
from chameleon_lab.checkpoints.huggingface import image_tokenizer_config
from chameleon_lab.checkpoints.text_files import IMAGE, image_placeholder, json_of_sentencepiece
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.tokenizers.text import SentencePieceTokenizer
from chameleon_lab.vocabulary import CHAMELEON, LUMINA, Vocabulary


def odd_texts(pieces: list[str], seed: int, count: int) -> list[str]:
    """Runs of a tokenizer's own pieces, of few letters, of one letter, and of any characters."""
    rng = np.random.default_rng(seed)
    texts = [*TEXTS, "", " ", "  ", "\n", "a" * 40, "▁", " ▁ ▁▁"]
    for place in range(count):
        size = int(rng.integers(1, 25))
        if place % 4 == 0:
            texts.append("".join(rng.choice(pieces, size)))
        elif place % 4 == 1:
            texts.append("".join(rng.choice(list("aetos ,<▁"), size)))
        elif place % 4 == 2:
            texts.append(str(rng.choice(pieces)) * size)
        else:
            points = rng.integers(0, 0x110000, size)
            texts.append("".join(chr(point) for point in points if not 0xD800 <= point < 0xE000))
    return texts


@pytest.fixture(scope="module")
def shipped() -> Chameleon:
    return Chameleon.load("tiny", device="cpu")


@pytest.mark.parametrize("source", ["shipped", "learned from odd texts"])
def test_a_sentencepiece_models_json_gives_the_same_ids_for_any_text(source, shipped):
    text = shipped.tokenizer.text
    if source != "shipped":
        text = SentencePieceTokenizer.train([*TEXTS, "aaaa abab"] * 9, 420)
    assert isinstance(text, SentencePieceTokenizer)
    vocabulary = Vocabulary.layout(12, text.size)
    theirs = tokenizers.Tokenizer.from_str(json_of_sentencepiece(text, vocabulary))
    theirs.encode_special_tokens = True  # a text may hold the name of a special token, and means the letters
    pieces = [text.decode([piece]) or " " for piece in range(257, text.size)]
    for each in odd_texts(pieces, seed=0, count=1200):
        ids = [vocabulary.token_of_piece(piece) for piece in text.encode(each)]
        assert theirs.encode(each, add_special_tokens=False).ids == ids, repr(each)
        assert theirs.decode(ids, skip_special_tokens=False) == text.decode(text.encode(each)), repr(each)


@pytest.fixture(scope="module")
def export(shipped, tmp_path_factory):
    """The shipped model as transformers opens it."""
    folder = tmp_path_factory.mktemp("export") / "tiny"
    shipped.save(folder, format="huggingface", pictures=False)
    return folder


def test_auto_tokenizer_opens_an_export_with_its_words_specials_and_turns(shipped, export):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(export)
    for each in (text for text in TEXTS if "<s>" not in text):
        tokens = shipped.encode(Document.of(each)).tolist()
        assert theirs(each).input_ids == tokens
        assert theirs.decode(tokens[1:], clean_up_tokenization_spaces=False) == each
    vocabulary = shipped.vocabulary
    specials = {theirs.convert_ids_to_tokens(token): token for token in range(vocabulary.first_text)}
    assert all(theirs.convert_tokens_to_ids(name) == token for name, token in specials.items())
    assert theirs("<racm3:break>", add_special_tokens=False).input_ids == [vocabulary.begin_image]
    talk = [("user", "draw a red circle"), ("assistant", "here:"), ("user", "what is it?")]
    document = Document.of(*(part for _, words in talk for part in (Text(words), EndTurn())))
    messages = [{"role": role, "content": words} for role, words in talk]
    written = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    assert list(written["input_ids"] if hasattr(written, "keys") else written) == shipped.encode(document).tolist()


def test_their_processor_and_pipeline_take_a_picture_and_a_question(shipped, export):
    from transformers import ChameleonForConditionalGeneration, ChameleonProcessor, pipeline

    processor = ChameleonProcessor.from_pretrained(export)
    processor.chat_template = processor.tokenizer.chat_template["processor"]
    picture = PIL.Image.new("RGB", (40, 30), "red")
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "what is it?"}]
    messages = [{"role": "user", "content": parts}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = processor(text=text, images=picture, return_tensors="pt").input_ids[0].numpy()  # pyright: ignore
    vocabulary, codes = shipped.vocabulary, np.zeros(shipped.tokenizer.grid, np.int64)
    wanted = shipped.encode(Document.of(Image(picture, codes), "what is it?", EndTurn()))
    wanted[wanted == vocabulary.tokens_of_codes(np.array(0))] = image_placeholder(vocabulary)
    assert ids.tolist() == wanted.tolist()
    port = ChameleonForConditionalGeneration.from_pretrained(export).eval()
    with torch.no_grad():
        logits = port(input_ids=torch.from_numpy(shipped.encode(Document.of("hello")))[None]).logits
        ours = shipped.model(torch.from_numpy(shipped.encode(Document.of("hello")))[None])
    kept = logits > torch.finfo(logits.dtype).min
    assert torch.allclose(logits[kept], ours[kept], atol=1e-4)
    pipe = pipeline("image-text-to-text", model=port, processor=processor)
    written = pipe(text=messages, max_new_tokens=3, return_full_text=False)  # pyright: ignore
    assert isinstance(written[0]["generated_text"], str)


def test_the_lab_reads_its_own_export_with_sentencepiece_as_it_was(shipped, export):
    read = Chameleon.load(export, device="cpu")
    assert type(read.tokenizer.text) is SentencePieceTokenizer and read.vocabulary == shipped.vocabulary
    document = Document.of("draw a red circle ▁ 日本", EndTurn())
    assert read.encode(document).tolist() == shipped.encode(document).tolist()


def test_without_the_labs_own_files_an_export_still_spells_alike(shipped, export, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).symlink_to(export / name)
    read = Chameleon.load(tmp_path, device="cpu")
    assert read.vocabulary == shipped.vocabulary
    document = Document.of("draw a red circle ▁ 日本", EndTurn())
    assert read.encode(document).tolist() == shipped.encode(document).tolist()
    assert read.decode(read.encode(document)) == document


@pytest.mark.parametrize(
    ("vocabulary", "token"),
    [
        (CHAMELEON, 8711),  # the reserved token that transformers renames
        (LUMINA, 8711),
        (Vocabulary.layout(12, 9), 25),  # the last of eight sentinels
        (Vocabulary.layout(12, 9, sentinels=1), 18),
        (Vocabulary.layout(12, 9, sentinels=0), None),
        (Vocabulary.layout(12, 9, largest_side=8), None),
    ],
    ids=["released", "Lumina", "the lab's", "one sentinel", "no sentinel", "any grid"],
)
def test_the_token_for_pictures_is_one_that_a_prompt_does_without_and_the_table_reads_back(vocabulary, token):
    assert image_placeholder(vocabulary) == token
    if token is None or vocabulary.size > 1000:
        return
    names = [vocabulary.spelling(place) for place in range(vocabulary.first_text)]
    names[token] = IMAGE
    table = {name: place for place, name in enumerate([*names, *"abcdefghi"])}
    assert Vocabulary.from_pieces(table) == vocabulary


# Settings that others' programs stumble over


def test_params_leave_out_what_converters_take_for_something_else(tmp_path):
    make_lab().save(tmp_path / "all", format="meta")
    params = json.loads((tmp_path / "all" / "params.json").read_text())["model"]
    assert "n_kv_heads" not in params and params.get("ffn_dim_multiplier", 1) is not None
    make_lab(8, 4, 4).save(tmp_path / "some", format="meta")
    assert json.loads((tmp_path / "some" / "params.json").read_text())["model"]["n_kv_heads"] == 4


def test_luminas_class_is_told_to_leave_image_logits_alone(tmp_path):
    for format in ("lumina", "huggingface"):
        make_lab().save(tmp_path / format, format=format)
    lumina, port = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("lumina", "huggingface"))
    assert lumina["mask_image_logits"] is False and "mask_image_logits" not in port


def test_anoles_words_for_an_image_tokenizer_are_written_and_read(tmp_path):
    lab = make_lab()
    lab.save(tmp_path / "there", format="anole")
    path = tmp_path / "there" / "config.json"
    plain = json.loads(path.read_text())
    images = plain["vq_config"]
    assert (images["z_channels"], images["double_z"]) == (4, False)
    theirs = {name: value for name, value in images.items() if name not in ("latent_channels", "double_latent")}
    assert image_tokenizer_config({"vq_config": theirs}) == replace(lab.tokenizer.image.config)
    path.write_text(json.dumps(plain | {"vq_config": theirs}))
    (tmp_path / "there" / COMPANION).unlink()
    read = Chameleon.load(tmp_path / "there", device="cpu")
    assert all(torch.equal(tensor, weights(read)[name]) for name, tensor in weights(lab).items())
    with pytest.raises(ValueError, match="sets double_latent = True"):
        image_tokenizer_config({"vq_config": theirs | {"double_z": True}})


def test_the_former_name_of_luminas_layout_without_grids_is_still_understood(tmp_path):
    lab = make_lab()
    lab.save(tmp_path / "old", format="huggingface-4.43")
    lab.save(tmp_path / "new", format="lumina-one-grid")
    assert (tmp_path / "old" / "config.json").read_text() == (tmp_path / "new" / "config.json").read_text()
    assert formats.detect(tmp_path / "old").name == "lumina"
    for layout in ("huggingface-4.43", "lumina-one-grid"):
        assert Chameleon.load(tmp_path / "old", layout=layout, device="cpu").vocabulary == lab.vocabulary
