"""Every layout in, every layout out: nothing is lost, nothing guessed, and what cannot be said is named."""

import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from torch import nn

from chameleon_lab.chameleon import Chameleon, load_image_tokenizer
from chameleon_lab.checkpoints import formats, meta, names
from chameleon_lab.checkpoints.companion import COMPANION
from chameleon_lab.documents import Document, Image
from chameleon_lab.generation.settings import Settings
from chameleon_lab.stability import Dropout, QueryKeyNorm, QueryKeyRMSNorm
from chameleon_lab.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import ByteTokenizer, JsonTokenizer, TextTokenizer
from chameleon_lab.transformer import ModelConfig, Transformer
from chameleon_lab.vocabulary import Vocabulary

IMAGE = ImageTokenizerConfig(side=16, codes=12, code_width=4, widths=(32, 64), latent_width=4, blocks=1)


def make_lab(
    heads: int = 4,
    kv_heads: int = 4,
    groups: int = 1,
    swin: bool = False,
    text: TextTokenizer | None = None,
    vocabulary: Vocabulary | None = None,
    **changes: object,
) -> Chameleon:
    """A random model of the family, its settings and card not the usual ones."""
    torch.manual_seed(3)
    image = ImageTokenizer(IMAGE).eval()
    text = text or ByteTokenizer()
    vocabulary = vocabulary or Vocabulary.layout(IMAGE.codes, text.size, sentinels=5)
    config = ModelConfig(vocabulary.size, 8 * heads, 2, heads, kv_heads, 8, 48, 96)
    model = Transformer(replace(names.with_fixes(config, groups, swin), **changes)).eval()
    for parameter in [*model.parameters(), *image.parameters()]:
        nn.init.normal_(parameter, std=0.3)
    tokenizer = MixedModalTokenizer(text, image, vocabulary)
    return Chameleon(model, tokenizer, Settings(temperature=0.3, image_top_k=7), {"note": "made for a test"})


LABS = {
    "multi-head": {},
    "odd vocabulary": {"vocabulary": Vocabulary.layout(12, 256, sentinels=4)},
    "grouped, re-ordered": {"heads": 8, "kv_heads": 4, "groups": 4, "swin": True},
    "a norm a head": {"groups": 4},
    "any grid": {"vocabulary": Vocabulary.layout(12, 256, sentinels=3, largest_side=8)},
    "own permutation": {
        "vocabulary": replace(Vocabulary.layout(12, 256, sentinels=5), permutation=(*range(1, 12), 0)),
    },
}


FILES = ("native", "meta", "huggingface")
"""A format for each kind of files: the dialects of the port differ in norms and rows of q and k alone."""


def weights(lab: Chameleon) -> dict[str, torch.Tensor]:
    named = {f"model {name}": tensor for name, tensor in lab.model.state_dict().items()}
    return named | {f"image {name}": tensor for name, tensor in lab.tokenizer.image.state_dict().items()}


def assert_same(lab: Chameleon, other: Chameleon) -> None:
    """Bit for bit, and all that belongs to it."""
    ours, others = weights(lab), weights(other)
    assert ours.keys() == others.keys()
    assert all(torch.equal(ours[name], others[name]) and ours[name].dtype == others[name].dtype for name in ours)
    assert lab.model.config == other.model.config
    assert lab.vocabulary == other.vocabulary
    assert lab.tokenizer.image.config == other.tokenizer.image.config
    assert (lab.settings, lab.card) == (other.settings, other.card)
    assert lab.tokenizer.missing == other.tokenizer.missing
    assert not lab.tokenizer.can_spell or type(lab.tokenizer.text) is type(other.tokenizer.text)


@pytest.mark.parametrize("kind", LABS)
def test_a_way_through_all_formats_changes_nothing(kind, tmp_path):
    """What is written depends on what was read alone, so that this stands for each pair of formats."""
    lab = read = make_lab(**LABS[kind])
    one_norm = "groups" not in LABS[kind]  # which is all that Anole has room for
    for place, format in enumerate([*formats.FORMATS[: None if one_norm else -1], "native"]):
        read.save(tmp_path / f"{place}", format=format)
        read = Chameleon.load(tmp_path / f"{place}")
        assert_same(read, lab)


@pytest.mark.parametrize("format", formats.FORMATS[1:])
def test_without_the_labs_own_file_the_weights_are_the_same(format, tmp_path):
    """Other programs do not write `chameleon_lab.json`: what it adds are settings, card and grid tokens."""
    lab = make_lab()
    lab.save(tmp_path / "there", format=format)
    (tmp_path / "there" / COMPANION).unlink()
    read = Chameleon.load(tmp_path / "there")
    others = weights(read)
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights(lab).items())
    assert replace(read.model.config, context=96) == lab.model.config
    assert read.vocabulary == lab.vocabulary
    text = "naïve </b> <= 日本語"
    assert np.array_equal(read.encode(Document.of(text)), lab.encode(Document.of(text)))
    assert read.card["origin"]["layout"] == format


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_of_the_weights_is_kept(dtype, tmp_path):
    lab = make_lab()
    lab.model.to(dtype)
    for format in FILES:
        lab.save(tmp_path / format, format=format)
        parts = formats.read_parts(tmp_path / format)
        assert {tensor.dtype for tensor in parts.model.state_dict().values()} == {dtype}
        assert torch.equal(parts.model.head.weight, lab.model.head.weight)
        assert parts.tokenizer.image.quant_conv.weight.dtype == torch.float32


@pytest.mark.parametrize(("groups", "swin"), [(1, False), (4, True)])
def test_one_file_becomes_four_shards_and_one_again(groups, swin, tmp_path):
    lab = make_lab(groups=groups, swin=swin)
    lab.save(tmp_path / "four", format="meta", shards=4)
    four = Chameleon.load(tmp_path / "four")
    assert_same(four, lab)
    assert len(list((tmp_path / "four").glob("consolidated.*.pth"))) == 4
    if groups > 1:
        with pytest.raises(ValueError, match=r"4 different vectors.*room for 1"):
            four.save(tmp_path / "one", format="meta", shards=1)
        assert not (tmp_path / "one").exists()
        return
    four.save(tmp_path / "one", format="meta")
    lab.save(tmp_path / "directly", format="meta")
    ours, direct = (torch.load(tmp_path / name / "consolidated.pth", weights_only=True) for name in ("one", "directly"))
    assert ours.keys() == direct.keys() and all(torch.equal(ours[name], direct[name]) for name in ours)


def test_norms_of_groups_stay_apart_before_training_has_told_them_apart(tmp_path):
    lab = make_lab(8, 4, groups=4)
    for name, parameter in lab.model.named_parameters():
        if "query_norm" in name or "key_norm" in name:
            nn.init.constant_(parameter, 1.0)
    for format in formats.FORMATS[:-1]:
        lab.save(tmp_path / format, format=format)
        assert_same(Chameleon.load(tmp_path / format), lab)


def test_a_tied_head_is_written_out_where_a_format_has_no_word_for_it(tmp_path):
    lab = make_lab(tied=True)
    for format in FILES:
        lab.save(tmp_path / format, format=format)
        read = Chameleon.load(tmp_path / format)
        assert torch.equal(read.model.head.weight, lab.model.embedding.weight)
        assert read.model.config.tied == (format != "meta")


def test_sentencepiece_goes_along_as_it_is(spelled, tmp_path):
    lab = make_lab(text=spelled.text)
    for format in FILES:
        lab.save(tmp_path / format, format=format)
        read = Chameleon.load(tmp_path / format)
        assert_same(read, lab)
        assert read.encode(Document.of("a red circle")).tolist() == lab.encode(Document.of("a red circle")).tolist()


def test_a_json_tokenizer_comes_back_letter_by_letter(tmp_path):
    roomy = Vocabulary.layout(12, 256, sentinels=5)
    roomy = replace(roomy, first_text=roomy.first_text + 3, size=roomy.size + 3)
    make_lab(vocabulary=roomy).save(tmp_path / "meta", format="meta")
    (tmp_path / "meta" / COMPANION).unlink()
    text = (tmp_path / "meta" / "tokenizer" / "text_tokenizer.json").read_text()
    lab = Chameleon.load(tmp_path / "meta")
    assert isinstance(lab.tokenizer.text, JsonTokenizer) and lab.tokenizer.text.json == text
    lab.save(tmp_path / "native")
    assert (tmp_path / "native" / "text_tokenizer.json").read_text() == text
    Chameleon.load(tmp_path / "native").save(tmp_path / "port", format="huggingface")
    theirs = (tmp_path / "port" / "tokenizer.json").read_text()
    assert '"<image>"' in theirs and '"<image>"' not in text
    Chameleon.load(tmp_path / "port").save(tmp_path / "again", format="meta")
    assert (tmp_path / "again" / "tokenizer" / "text_tokenizer.json").read_text() == text


# What a native folder was kept without


def test_a_native_folder_takes_what_it_lacks_from_where_it_is_told(tmp_path):
    lab = make_lab()
    lab.save(tmp_path / "whole", format="meta")
    (tmp_path / "whole" / COMPANION).unlink()  # so that text is the family's JSON
    tokenizers = tmp_path / "whole" / "tokenizer"
    parts = formats.read_parts(tmp_path / "whole")
    parts.tokenizer = lab.tokenizer.with_parts(None, None)
    formats.write_parts(parts, tmp_path / "native")
    document = Document.of("a word", lab.tokenizer.image.decode(np.zeros(lab.tokenizer.grid, np.int64)))
    expected = Chameleon.load(tmp_path / "whole").encode(document)
    with pytest.raises(ValueError, match=r"native holds no text tokenizer.*Chameleon\.load\(folder, tokenizer="):
        Chameleon.load(tmp_path / "native").encode(document)
    told = Chameleon.load(tmp_path / "native", tokenizer=tokenizers)
    assert np.array_equal(told.encode(document), expected)
    assert told.decode(expected).pictures
    for file in tokenizers.iterdir():
        shutil.copy(file, tmp_path / "native")
    assert np.array_equal(Chameleon.load(tmp_path / "native").encode(document), expected)


def test_a_native_folder_does_not_take_the_text_tokenizer_of_another_vocabulary(tmp_path):
    lab = make_lab()
    lab.tokenizer = lab.tokenizer.with_parts(None, lab.tokenizer.image)
    lab.save(tmp_path / "native")
    make_lab(vocabulary=Vocabulary.layout(12, 256, sentinels=4)).save(tmp_path / "other", format="meta")
    with pytest.raises(ValueError, match="do not belong together"):
        Chameleon.load(tmp_path / "native", tokenizer=tmp_path / "other" / "tokenizer")


def test_a_native_folder_without_picture_decoder_gets_one(tmp_path):
    lab = make_lab()
    lab.save(tmp_path / "whole", format="meta")
    codes = np.zeros(lab.tokenizer.grid, np.int64)
    expected = np.asarray(lab.tokenizer.image.decode(codes))
    lab.tokenizer.image.decoder = None
    lab.save(tmp_path / "native")
    with pytest.raises(ValueError, match="holds no picture decoder"):
        Chameleon.load(tmp_path / "native").tokenizer.image.decode(codes)
    told = Chameleon.load(tmp_path / "native", tokenizer=tmp_path / "whole" / "tokenizer")
    assert np.array_equal(np.asarray(told.tokenizer.image.decode(codes)), expected)


# Detection


def test_what_is_no_model_folder_is_told_apart(tmp_path):
    lab = make_lab()
    lab.save(tmp_path / "meta", format="meta")
    with pytest.raises(FileNotFoundError, match=r"params\.json is no model folder: it is a file"):
        Chameleon.load(tmp_path / "meta" / "params.json")
    with pytest.raises(FileNotFoundError, match="it does not exist, and the lab downloads nothing"):
        Chameleon.load("somebody/chameleon-7b-hf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no tokenizer: neither text_tokenizer\.json"):
        Chameleon.load(tmp_path / "meta", tokenizer=tmp_path / "empty")


def test_the_folder_of_tokenizers_inside_a_model_leads_to_it(tmp_path):
    make_lab().save(tmp_path / "meta", format="meta")
    assert formats.detect(tmp_path / "meta" / "tokenizer").model == tmp_path / "meta"


@pytest.mark.parametrize("shards", [0, -2])
def test_shards_are_at_least_one(shards, tmp_path):
    with pytest.raises(ValueError, match=f"shards must be 1 or more, not {shards}"):
        make_lab().save(tmp_path / "meta", format="meta", shards=shards)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("format", FILES)
def test_the_image_tokenizer_of_a_model_folder_is_found_in_every_layout(format, tmp_path):
    lab = make_lab()
    lab.save(tmp_path / "with", format=format)
    image = load_image_tokenizer(tmp_path / "with", device="cpu")
    assert torch.equal(image.quant_conv.weight, lab.tokenizer.image.quant_conv.weight)


@pytest.mark.parametrize("format", ["meta", "huggingface"])
def test_a_model_folder_without_image_tokenizer_says_so(format, tmp_path):
    make_lab().save(tmp_path / "without", format=format, pictures=False)
    with pytest.raises(ValueError, match="without holds no image tokenizer"):
        load_image_tokenizer(tmp_path / "without", device="cpu")


@pytest.mark.parametrize("format", formats.FORMATS)
def test_the_layout_is_detected_and_named_in_the_log(format, tmp_path, caplog):
    lab = make_lab(8, 4, 1 if format == "anole" else 4)
    lab.save(tmp_path / "there", format=format)
    with caplog.at_level(logging.INFO):
        assert [formats.detect(tmp_path / "there").name for _ in range(2)] == [format] * 2
    assert [each.name for each in formats.CLAIMANTS if each.claim(tmp_path / "there")] == [format]
    assert caplog.text.count(f"has the layout '{format}'") == (format != "native")


def test_a_folder_of_two_layouts_is_ambiguous(tmp_path):
    lab = make_lab()
    lab.save(tmp_path / "both", format="meta")
    lab.save(tmp_path / "native")
    for file in (tmp_path / "native").iterdir():
        shutil.copy(file, tmp_path / "both")
    with pytest.raises(ValueError, match=r"ambiguous: .* native and meta\. Say which it is: .*layout='native'"):
        Chameleon.load(tmp_path / "both")
    for layout in ("native", "meta"):
        assert formats.detect(tmp_path / "both", layout).name == layout
        assert torch.equal(Chameleon.load(tmp_path / "both", layout=layout).model.head.weight, lab.model.head.weight)


def test_one_norm_in_the_older_layout_with_anoles_class_is_ambiguous(tmp_path):
    lab = make_lab()
    lab.save(tmp_path / "there", format="lumina")
    edit(tmp_path / "there", architectures=["ChameleonForCausalLM"])
    with pytest.raises(ValueError, match=r"ambiguous: its norms, \(1, 8\).*Chameleon\.load\(folder, layout=\.\.\.\)"):
        Chameleon.load(tmp_path / "there")
    as_said = {layout: Chameleon.load(tmp_path / "there", layout=layout) for layout in ("lumina", "anole")}
    assert_same(as_said["lumina"], lab)
    stem = "blocks.0.attention."
    ours, anole = (each.model.state_dict()[f"{stem}qkv.weight"] for each in (lab, as_said["anole"]))
    assert not torch.equal(ours, anole)  # its rows were left in halves, as was said


def test_a_head_alone_needs_no_choice(tmp_path):
    """With one head a norm a head, one a shard and one for all are the same but for Anole's missing dimension."""
    lab = make_lab(1, 1)
    for format in formats.FORMATS:
        lab.save(tmp_path / format, format=format)
        assert_same(Chameleon.load(tmp_path / format), lab)


def edit(folder: Path, file: str = "config.json", **changes: object) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_norms_of_no_known_shape_are_refused(tmp_path):
    make_lab(8, 4, 2).save(tmp_path / "there", format="lumina")
    edit(tmp_path / "there", model_parallel_size=4)
    with pytest.raises(ValueError, match=r"norms of 2 and 2 rows for 8 query and 4 key heads.*no known dialect"):
        Chameleon.load(tmp_path / "there")


def test_unknown_names_are_refused(tmp_path):
    lab = make_lab()
    for wrong in ("ggml", "Meta"):
        with pytest.raises(ValueError, match=f"No format is called '{wrong}'; there are native, meta"):
            lab.save(tmp_path / "there", format=wrong)
        with pytest.raises(ValueError, match=f"No layout is called '{wrong}'"):
            Chameleon.load(tmp_path, layout=wrong)
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json and no params\.json"):
        Chameleon.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not hold the files of the layout 'meta'"):
        Chameleon.load(tmp_path, layout="meta")
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        Chameleon.load(tmp_path, tokenizer=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="Shards of this kind are Meta's alone"):
        lab.save(tmp_path / "there", format="lumina", shards=4)


def test_luminas_grids_are_there_where_it_is_said_or_the_class_says_so(tmp_path):
    from chameleon_lab.vocabulary import CHAMELEON, LUMINA

    torch.manual_seed(0)
    tokenizer = MixedModalTokenizer(None, None, CHAMELEON, grid=(32, 32))
    model = Transformer(ModelConfig(CHAMELEON.size, 8, 1, 2, 2, 4, 8, 96, fixes=(QueryKeyNorm(),)))
    Chameleon(model, tokenizer).save(tmp_path / "there", format="huggingface-4.43")
    (tmp_path / "there" / COMPANION).unlink()
    edit(tmp_path / "there", vocabulary_map=None)
    assert Chameleon.load(tmp_path / "there").vocabulary == CHAMELEON
    assert Chameleon.load(tmp_path / "there", layout="lumina").vocabulary == LUMINA
    assert Chameleon.load(tmp_path / "there", layout="huggingface-4.43").vocabulary == CHAMELEON
    edit(tmp_path / "there", architectures=["ChameleonXLLMXForConditionalGeneration"])
    assert Chameleon.load(tmp_path / "there").vocabulary == LUMINA


# Meta's folders


@pytest.fixture
def tree(tmp_path) -> Path:
    """data/models/7b and data/tokenizer, as they are downloaded."""
    lab = make_lab()
    lab.save(tmp_path / "data" / "models" / "7b", format="meta")
    (tmp_path / "data" / "models" / "7b" / COMPANION).unlink()
    shutil.move(tmp_path / "data" / "models" / "7b" / "tokenizer", tmp_path / "data" / "tokenizer")
    return tmp_path / "data"


@pytest.mark.parametrize("place", ["", "models", "models/7b", "tokenizer"])
def test_the_download_tree_is_found_from_any_of_its_folders(place, tree):
    lab = Chameleon.load(tree / place)
    assert lab.tokenizer.can_spell and lab.tokenizer.can_draw and not lab.tokenizer.missing
    assert torch.equal(lab.model.head.weight, make_lab().model.head.weight)


def test_of_two_models_in_a_tree_one_must_be_named(tree):
    shutil.copytree(tree / "models" / "7b", tree / "models" / "30b")
    with pytest.raises(ValueError, match=r"several models: .*30b, .*7b\. Give the folder of the one you mean"):
        Chameleon.load(tree)
    Chameleon.load(tree / "models" / "30b")


def test_a_tokenizer_elsewhere_is_named(tree, tmp_path):
    shutil.move(tree / "tokenizer", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"does not tell what its 280 tokens are.*tokenizer="):
        Chameleon.load(tree)
    lab = Chameleon.load(tree, tokenizer=tmp_path / "elsewhere")
    assert lab.tokenizer.text.decode(lab.tokenizer.text.encode("hé")) == "hé"
    only_text = Chameleon.load(tree, tokenizer=tmp_path / "elsewhere" / "text_tokenizer.json")
    assert only_text.tokenizer.can_spell and not only_text.tokenizer.can_read
    images = load_image_tokenizer(tmp_path / "elsewhere")
    assert torch.equal(images.get_parameter("decoder.conv_out.weight"), make_lab().tokenizer.image.last_layer)


def test_what_the_image_tokenizer_was_trained_with_is_passed_over(tree):
    path = tree / "tokenizer" / "vqgan.ckpt"
    held = torch.load(path, weights_only=True)
    held["state_dict"] |= {
        "loss.perceptual_loss.lin0.weight": torch.zeros(2),
        "loss.discriminator.0.bias": torch.zeros(1),
    }
    torch.save(held | {"epoch": 3}, path)
    assert_same_images(Chameleon.load(tree).tokenizer.image)


def assert_same_images(image: ImageTokenizer) -> None:
    wanted = make_lab().tokenizer.image.state_dict()
    assert all(torch.equal(tensor, image.state_dict()[name]) for name, tensor in wanted.items())


def test_trap_04_rope_freqs_are_written_and_passed_over(tree):
    path = tree / "models" / "7b" / "consolidated.pth"
    held = torch.load(path, weights_only=True)
    assert torch.allclose(held["rope.freqs"], 10_000.0 ** -torch.tensor([0, 0.25, 0.5, 0.75]))
    for other in ({"rope.freqs": None}, {}):
        torch.save({name: tensor for name, tensor in held.items() if name != "rope.freqs"} | other, path)
        assert torch.equal(Chameleon.load(tree).model.head.weight, make_lab().model.head.weight)


def test_sums_of_all_files_are_listed(tmp_path):
    make_lab().save(tmp_path / "there", format="meta", shards=2)
    for folder in (tmp_path / "there", tmp_path / "there" / "tokenizer"):
        lines = [line.split("  ") for line in (folder / "checklist.chk").read_text().splitlines()]
        listed = {name: value for value, name in lines}
        beside = {file.name for file in folder.iterdir() if file.is_file()} - {"checklist.chk", COMPANION}
        assert listed.keys() == beside
        assert all(hashlib.md5((folder / name).read_bytes()).hexdigest() == value for name, value in listed.items())


def test_settings_at_the_top_give_way_to_those_of_the_model(tree):
    path = tree / "models" / "7b" / "params.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({"dim": 7, "n_heads": 1, "seed": 3, "swin_norm": True, **plain}))
    assert Chameleon.load(tree).model.config == replace(make_lab().model.config)
    path.write_text(json.dumps({"max_seq_len": 96, **plain["model"], "vocab_size": -1}))  # all at the top: read as well
    assert Chameleon.load(tree).model.config == make_lab().model.config


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"n_layers": 3}, r"contradicts the folder's params\.json: missing \['blocks\.2"),
        ({"dim": 64}, "contradict"),
        ({"vocab_size": 281}, "281"),
        ({"qk_normalization": False}, r"unknown \['blocks\.0\.attention\.key_norm"),
        ({"ffn_dim_multiplier": 2.0}, "contradict"),
        ({"n_heads": 3, "n_kv_heads": 4}, r"params\.json is damaged.*3 query heads cannot share 4 key heads"),
        ({"n_heads": 0}, "damaged"),
    ],
)
def test_params_that_contradict_the_weights_are_one_clear_error(change, why, tree):
    folder = tree / "models" / "7b"
    model = json.loads((folder / "params.json").read_text())["model"]
    edit(folder, "params.json", model=model | change)
    with pytest.raises(ValueError, match=why):
        Chameleon.load(tree)


def test_shards_that_are_missing_or_mixed_are_refused(tmp_path):
    folder = tmp_path / "there"
    make_lab().save(folder, format="meta", shards=4)
    (folder / "consolidated.03.pth").unlink()
    with pytest.raises(ValueError, match=r"holds 3 shards, and its consolidate_params\.json speaks of 4"):
        Chameleon.load(folder)
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(ValueError, match=r"consolidated\.00\.pth, consolidated\.02\.pth: .*numbered from 00"):
        Chameleon.load(folder)
    (folder / "params.json").unlink()
    with pytest.raises(ValueError, match=r"numbered from 00|params\.json is missing"):
        Chameleon.load(folder)


def test_a_pickle_with_code_is_not_opened(tree, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"output.weight": Trap()}, tree / "models" / "7b" / "consolidated.pth")
    with pytest.raises(ValueError, match="holds more than weights"):
        Chameleon.load(tree)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("wanted", [1, 100, 11_008, 22_016, 4097])
def test_any_feed_forward_width_survives_the_rule_that_params_have_for_it(wanted):
    for width in (32, 4096, 8192):
        config = ModelConfig(8, width, 1, 4, 4, width // 4, wanted, 8)
        multiple_of, multiplier = meta._ffn_rule(config)
        assert meta.ffn_width(width, multiple_of, multiplier) == wanted
    assert (meta.ffn_width(4096), meta.ffn_width(8192)) == (11_008, 22_016)


def test_a_foreign_image_tokenizer_is_described_as_it_is(tree):
    plain = yaml.safe_load((tree / "tokenizer" / "vqgan.yaml").read_text())
    assert plain["model"]["params"]["ddconfig"]["ch_mult"] == [1, 2]
    for setting, value in (("attn_type", "none"), ("double_z", True), ("out_ch", 4)):
        changed = json.loads(json.dumps(plain))
        changed["model"]["params"]["ddconfig"][setting] = value
        (tree / "tokenizer" / "vqgan.yaml").write_text(yaml.safe_dump(changed))
        with pytest.raises(ValueError, match=f"sets {setting}"):
            Chameleon.load(tree)
    (tree / "tokenizer" / "vqgan.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ValueError, match=r"vqgan\.yaml is damaged: could not determine a constructor"):
        Chameleon.load(tree)
    (tree / "tokenizer" / "vqgan.yaml").unlink()
    with pytest.raises(ValueError, match=r"vqgan\.yaml is missing"):
        Chameleon.load(tree)


# What is missing


@pytest.mark.parametrize("format", FILES)
def test_without_an_image_tokenizer_a_model_still_reads_and_writes_tokens(format, tmp_path, picture):
    lab = make_lab()
    lab.save(tmp_path / "there", format=format, pictures=False)
    read = Chameleon.load(tmp_path / "there")
    assert not read.tokenizer.can_read and not read.tokenizer.can_draw and read.tokenizer.grid == (8, 8)
    assert read.tokenizer.missing == ("no image tokenizer: pictures can neither be read nor written",)
    tokens = read.encode(Document.of("text"))
    assert torch.equal(read.model(torch.from_numpy(tokens)[None]), lab.model(torch.from_numpy(tokens)[None]))
    with pytest.raises(ValueError, match="holds no image tokenizer"):
        read.encode(Document.of(Image(picture)))
    read.save(tmp_path / "again", format=format)
    assert not Chameleon.load(tmp_path / "again").tokenizer.can_read


@pytest.mark.parametrize("format", FILES)
def test_without_a_picture_decoder_pictures_are_still_read(format, tmp_path, picture):
    lab = make_lab()
    codes = lab.tokenizer.image.encode(picture)
    lab.tokenizer.image.decoder = None
    lab.save(tmp_path / "there", format=format)
    read = Chameleon.load(tmp_path / "there")
    assert np.array_equal(read.tokenizer.image.encode(picture), codes)
    with pytest.raises(ValueError, match="holds no picture decoder"):
        read.tokenizer.image.decode(codes)


@pytest.mark.parametrize("format", FILES)
def test_without_a_text_tokenizer_ids_still_become_logits(format, tmp_path, caplog):
    lab = make_lab()
    lab.tokenizer = lab.tokenizer.with_parts(None, lab.tokenizer.image)
    lab.save(tmp_path / "there", format=format)
    with caplog.at_level(logging.INFO):
        read = Chameleon.load(tmp_path / "there")
    assert "no text tokenizer" in caplog.text
    assert_same(read, lab)
    with pytest.raises(ValueError, match=r"holds no text tokenizer.*tokenizer="):
        read.encode(Document.of("text"))


def test_the_picture_decoder_is_never_dropped(tmp_path):
    lab = make_lab()
    for format in formats.FORMATS[2:]:
        lab.save(tmp_path / format, format=format)
        held = safetensors.torch.load_file(tmp_path / format / "model.safetensors")
        decoder = {name for name in held if name.startswith("model.vqmodel.decoder.")}
        assert len(decoder) == sum(name.startswith("decoder.") for name in lab.tokenizer.image.state_dict())
        assert "model.vqmodel.decoder.up.1.upsample.conv.weight" in decoder


# What cannot be said


def test_a_fix_that_a_format_cannot_express_is_named(tmp_path):
    lab = make_lab(fixes=(QueryKeyRMSNorm(),))
    for format in formats.FORMATS[1:]:
        with pytest.raises(ValueError, match=rf"'{format}' cannot express QueryKeyRMSNorm\(eps=.*Save it as 'native'"):
            lab.save(tmp_path / "there", format=format)
    assert not list(tmp_path.iterdir())
    lab.save(tmp_path / "there")


def test_dropout_is_a_matter_of_training_and_left_behind(tmp_path):
    lab = make_lab(fixes=(QueryKeyNorm(), Dropout(0.1)))
    lab.save(tmp_path / "there", format="huggingface")
    assert Chameleon.load(tmp_path / "there").model.config.fixes == (QueryKeyNorm(),)


def test_a_model_without_query_key_norm_is_metas_but_not_the_ports(tmp_path):
    lab = make_lab(fixes=())
    lab.save(tmp_path / "meta", format="meta")
    assert_same(Chameleon.load(tmp_path / "meta"), lab)
    with pytest.raises(ValueError, match="the lack of a QueryKeyNorm"):
        lab.save(tmp_path / "there", format="huggingface")


def test_an_image_tokenizer_of_another_kind_is_named(mixed, make_lab, tmp_path):
    lab = make_lab(mixed, heads=4, head_width=8)
    with pytest.raises(ValueError, match=r"groups=4, patch=2, middle=False.*pictures=False"):
        lab.save(tmp_path / "there", format="huggingface")
    lab.save(tmp_path / "there", format="huggingface", pictures=False)
    assert torch.equal(Chameleon.load(tmp_path / "there").model.head.weight, lab.model.head.weight)


@pytest.mark.parametrize("format", ["anole", "lumina"])
def test_trap_03_a_format_with_room_for_fewer_norms_is_refused(format, tmp_path):
    lab = make_lab(8, 2, 8)
    with pytest.raises(ValueError, match=r"different vectors.*their mean would be another model"):
        lab.save(tmp_path / "there", format=format)
    assert not list(tmp_path.iterdir())


def test_nothing_of_a_users_is_overwritten(tmp_path):
    lab = make_lab()
    (tmp_path / "empty").mkdir()
    lab.save(tmp_path / "empty", format="meta")
    shutil.rmtree(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("mine")
    for format in formats.FORMATS:
        with pytest.raises(ValueError, match="holds other files"):
            lab.save(tmp_path, format=format)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


# The port's config


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"attention_bias": True}, "sets attention_bias"),
        ({"hidden_act": "gelu"}, "sets hidden_act = 'gelu'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "sets rope_scaling"),
        ({"num_hidden_layers": 3}, r"contradicts the folder's config\.json: missing"),
        ({"intermediate_size": 50}, "contradict"),
        ({"vocab_size": 281}, "281"),
        ({"num_attention_heads": "four"}, "does not describe a Chameleon"),
        ({"model_type": "llama", "hidden_size": None}, "does not describe a Chameleon"),
    ],
)
def test_a_config_of_another_model_is_refused(change, why, tmp_path):
    make_lab().save(tmp_path / "there", format="huggingface")
    edit(tmp_path / "there", **change)
    with pytest.raises(ValueError, match=why):
        Chameleon.load(tmp_path / "there")


def test_another_models_tokenizer_is_refused(tmp_path):
    make_lab().save(tmp_path / "one", format="meta")
    make_lab(vocabulary=Vocabulary.layout(12, 256, sentinels=9)).save(tmp_path / "two", format="meta")
    with pytest.raises(ValueError, match="model of 280 tokens, and its table names 284"):
        Chameleon.load(tmp_path / "one", tokenizer=tmp_path / "two" / "tokenizer")


def test_a_damaged_file_beside_is_told(tmp_path):
    make_lab().save(tmp_path / "there", format="meta")
    (tmp_path / "there" / COMPANION).write_text('{"vocabulary": 3}')
    with pytest.raises(ValueError, match=rf"{COMPANION} is damaged"):
        Chameleon.load(tmp_path / "there")
