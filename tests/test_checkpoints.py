"""Native checkpoints: bit for bit, all or nothing, and a clear word for every damage."""

import copy
import json
import pickle
from dataclasses import dataclass, replace

import pytest
import safetensors.torch
import torch
from support import Trap
from torch import nn

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints import formats
from chameleon_lab.checkpoints.opened import ReadOptions
from chameleon_lab.checkpoints.tensors import open_safetensors, write_safetensors
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.generation.engine import Settings
from chameleon_lab.stability import Dropout, NormReordering, QueryKeyNorm, QueryKeyRMSNorm, blocks
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Vocabulary

TOKENS_BT = torch.arange(40).view(2, 20)


@dataclass(frozen=True)
class OwnFix:
    """A user's own fix, with something to remember."""

    scale: float = 0.5

    def install(self, model: Transformer) -> None:
        for block in blocks(model):
            model.fill(block, "ffn_post_norm", nn.RMSNorm(model.config.width), self)


def bits(module: nn.Module) -> dict[str, tuple[torch.dtype, bytes]]:
    return {
        name: (tensor.dtype, tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        for name, tensor in module.state_dict().items()
    }


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "fixes", [(), (QueryKeyRMSNorm(1e-4), NormReordering(), Dropout(0.25)), (OwnFix(0.75), QueryKeyNorm())], ids=str
)
def test_loading_gives_back_every_bit(make_lab, mixed, tmp_path, tied, dtype, fixes):
    lab = make_lab(mixed, tied=tied, fixes=fixes)
    lab.model.to(dtype)
    lab.save(tmp_path / "model")
    again = Chameleon.load(tmp_path / "model", device="cpu", dtype=dtype, fixes=[OwnFix])
    assert bits(again.model) == bits(lab.model)
    assert again.model.config == lab.model.config and again.model.config.fixes == fixes
    assert again.vocabulary == lab.vocabulary and again.tokenizer.image.config == mixed.image.config
    assert (again.model.head.weight is again.model.embedding.weight) == tied
    assert torch.equal(again.model(TOKENS_BT), lab.model(TOKENS_BT))
    assert not again.model.training and all(parameter.requires_grad for parameter in again.model.parameters())


def test_the_image_tokenizer_and_its_quantizer_come_back_too(lab, image_config, mixed, picture, tmp_path):
    trained = ImageTokenizer(replace(image_config, quantizer="moving_average"))
    trained.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: as training leaves it
    for _ in range(3):
        trained(torch.rand(2, 3, 16, 16) * 2 - 1)
    tokenizer = MixedModalTokenizer(mixed.text, trained.eval(), mixed.vocabulary)
    Chameleon(lab.model, tokenizer).save(tmp_path / "model")
    again = Chameleon.load(tmp_path / "model", device="cpu").tokenizer.image
    assert bits(again) == bits(trained)
    assert again.encode(picture).tolist() == trained.encode(picture).tolist()


def test_text_tokenizer_permutation_settings_and_card_come_back(make_lab, spelled, texts, tmp_path):
    vocabulary = replace(spelled.vocabulary, permutation=tuple(range(11, -1, -1)))
    tokenizer = MixedModalTokenizer(spelled.text, spelled.image, vocabulary)
    lab = make_lab(tokenizer)
    lab.settings, lab.card = Settings(0.1, 0.2, 0.3, 1.5, 40), {"data": "scenes", "minutes": 3.5}
    lab.save(tmp_path / "model")
    again = Chameleon.load(tmp_path / "model", device="cpu")
    assert again.vocabulary == vocabulary
    assert (again.settings, again.card) == (lab.settings, lab.card)
    document = Document.of(*texts, EndTurn())
    assert again.encode(document).tolist() == lab.encode(document).tolist()
    assert again.generate(Document.of("a"), seed=3) == lab.generate(Document.of("a"), seed=3)


def test_nothing_in_a_checkpoint_is_a_pickle_and_a_tied_matrix_is_written_once(make_lab, mixed, tmp_path):
    make_lab(mixed, tied=True).save(tmp_path / "model")
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {"config.json", "model.safetensors", "image_tokenizer.safetensors"}
    assert "head.weight" not in safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")


def test_saving_again_replaces_the_checkpoint(lab, make_lab, mixed, tmp_path):
    lab.save(tmp_path / "model")
    other = make_lab(mixed, width=16)
    other.save(tmp_path / "model")
    assert bits(Chameleon.load(tmp_path / "model", device="cpu").model) == bits(other.model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_checkpoint_in_shards_is_read_and_replaced_by_one_file(lab, tmp_path):
    folder = tmp_path / "model"
    lab.save(folder)
    names = sorted(path.name for path in folder.iterdir())
    write_safetensors(open_safetensors(folder, "model"), folder, largest=5000)
    assert len(list(folder.iterdir())) > len(names) + 3
    assert bits(Chameleon.load(folder, device="cpu").model) == bits(lab.model)
    lab.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == names
    assert bits(Chameleon.load(folder, device="cpu").model) == bits(lab.model)


def test_weights_are_read_into_the_dtype_that_is_asked_for(lab, tmp_path):
    lab.save(tmp_path / "model")
    parts = formats.read_parts(tmp_path / "model", options=ReadOptions(dtype=torch.bfloat16))
    assert bits(parts.model) == bits(lab.model.to(torch.bfloat16))
    image = copy.deepcopy(lab.tokenizer.image).to(torch.bfloat16)
    assert bits(parts.tokenizer.image) == bits(image)


def test_weights_with_nan_are_refused_naming_them(lab, tmp_path):
    torch.nn.init.constant_(lab.model.norm.weight, float("nan"))
    lab.save(tmp_path / "model")
    refused(tmp_path / "model", "norm.weight holds NaN or infinity")


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
def test_a_folder_of_something_else_is_not_overwritten(lab, tmp_path, name):
    (tmp_path / name).write_text('{"model_type": "chameleon"}')
    with pytest.raises(ValueError, match="holds other files; save into a new or empty folder"):
        lab.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(ValueError, match="is a file"):
        lab.save(tmp_path / name)
    lab.save(tmp_path / "new" / "folder")
    (tmp_path / "empty").mkdir()
    lab.save(tmp_path / "empty")
    assert Chameleon.load(tmp_path / "empty", device="cpu").card == {}


def test_a_text_tokenizer_that_cannot_be_read_back_is_not_written(make_lab, lettered, tmp_path):
    with pytest.raises(ValueError, match="LetterTokenizer"):
        make_lab(lettered).save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# Damage


@pytest.fixture
def folder(make_lab, spelled, tmp_path):
    make_lab(spelled, tied=True).save(tmp_path / "model")
    return tmp_path / "model"


def edit(folder, *path, to=None, drop=False) -> None:
    """Changes or drops one value of the config."""
    config = json.loads((folder / "config.json").read_text())
    place = config
    for key in path[:-1]:
        place = place[key]
    if drop:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder, why: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=why) as caught:
        Chameleon.load(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_what_is_no_model_folder_is_refused(folder, tmp_path):
    refused(tmp_path / "nowhere", "nowhere is no model folder: it does not exist", FileNotFoundError)
    refused("no-such-model", "no-such-model is no model folder", FileNotFoundError)
    refused(tmp_path, "it holds no config.json", FileNotFoundError)
    refused(folder / "config.json", "is no model folder", FileNotFoundError)


def test_other_formats_and_versions_are_refused(folder):
    edit(folder, "version", to=99)
    refused(folder, "format version 99, and this lab reads version 1")
    edit(folder, "format", to="huggingface")
    refused(folder, "does not describe a Chameleon Lab model")
    for text in ("[]", "3", '"chameleon-lab"'):
        (folder / "config.json").write_text(text)
        refused(folder, "config.json is damaged: it holds no object, but (list|int|str)")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_a_config_that_is_no_json_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    refused(folder, "config.json is not JSON")


@pytest.mark.parametrize("key", ["model", "image_tokenizer", "text_tokenizer", "vocabulary", "generation"])
def test_a_damaged_config_is_refused(folder, key):
    whole = (folder / "config.json").read_text()
    for value in (3, None, "x", [], {}, {"unknown": 1}):
        edit(folder, key, to=value)
        if key == "generation" and value == {}:
            continue  # all of it has defaults
        refused(folder, "config.json is damaged|No text tokenizer is called")
        (folder / "config.json").write_text(whole)
    edit(folder, key, drop=True)
    refused(folder, f"config.json is damaged: it lacks '{key}'")


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("model", "width"), "wide", "damaged"),
        (("model", "width"), -4, "damaged"),
        (("model", "width"), 48, "contradicts the folder's config.json: .* instead of"),
        (("model", "layers"), 3, r"contradicts the folder's config.json: missing \['blocks.2"),
        (("model", "layers"), 1, r"contradicts the folder's config.json: unknown \['blocks.1"),
        (("model", "kv_heads"), 0, "damaged"),
        (("model", "kv_heads"), 3, "cannot share"),
        (("model", "tied"), False, r"missing \['head.weight'\]"),
        (("model", "fixes"), [], "unknown"),
        (("model", "fixes"), [{"fix": "MagicNorm"}], r"a fix 'MagicNorm' .* fixes=\[MagicNorm\]"),
        (("model", "fixes"), [{"fix": "ZLoss", "weight": 1e-4}], "damaged"),
        (("model", "fixes"), [{"fix": "About"}], "damaged"),
        (("image_tokenizer", "codes"), 13, "contradicts the folder's config.json: .*quantize"),
        (("image_tokenizer", "widths"), [], "at least one level"),
        (("image_tokenizer", "quantizer"), "magic", "No quantizer is called 'magic'"),
        (("vocabulary", "codes"), 13, "overlap"),
        (("vocabulary", "size"), 5000, "room for 12 codes and"),
        (("generation", "top_p"), 7, "top_p must lie"),
        (("text_tokenizer",), "words", "No text tokenizer is called 'words'"),
        (("text_tokenizer",), "bytes", "text tokenizer 256"),
    ],
    ids=str,
)
def test_contradictions_are_refused(folder, path, value, why):
    edit(folder, *path, to=value)
    refused(folder, why)


@pytest.mark.parametrize("name", ["model.safetensors", "image_tokenizer.safetensors"])
def test_broken_weights_are_refused(folder, name):
    path, whole = folder / name, (folder / name).read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(folder, f"{name} is damaged or no safetensors file" if size else f"{name} is empty")
    path.unlink()
    refused(folder, f"incomplete: .*{name} is missing")


def test_a_pickle_posing_as_safetensors_is_refused_unread(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps({"embedding.weight": Trap()}))
    refused(folder, "model.safetensors is damaged or no safetensors file")
    torch.save({"embedding.weight": torch.zeros(3)}, folder / "model.safetensors")
    refused(folder, "model.safetensors is damaged or no safetensors file")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors: tensors.pop("norm.weight"), r"missing \['norm.weight'\]"),
        (lambda tensors: tensors.update(strange=torch.zeros(1)), r"unknown \['strange'\]"),
        (lambda tensors: tensors.update({"norm.weight": torch.zeros(3)}), r"norm.weight \(3,\) instead of \(32,\)"),
        (lambda tensors: tensors.update({"norm.weight": torch.zeros(32, dtype=torch.int8)}), "of integers"),
        (lambda tensors: tensors.update({"head.weight": torch.zeros(4)}), r"unknown \['head.weight'\]"),
        (lambda tensors: tensors.clear(), "missing"),
    ],
)
def test_weights_at_odds_with_the_config_are_named(folder, change, why):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    refused(folder, why)


def test_a_missing_or_broken_text_tokenizer_is_refused(folder):
    for content in (b"", b"no model"):
        (folder / "text_tokenizer.model").write_bytes(content)
        refused(folder, "text_tokenizer.model is damaged")
    (folder / "text_tokenizer.model").unlink()
    refused(folder, "text_tokenizer.model is missing")


def test_an_own_fix_must_be_given_to_be_known(make_lab, mixed, tmp_path):
    make_lab(mixed, fixes=(OwnFix(),)).save(tmp_path / "model")
    refused(tmp_path / "model", r"a fix 'OwnFix' that the lab does not know: .*fixes=\[OwnFix\]")
    assert formats.read_parts(tmp_path / "model", options=ReadOptions((OwnFix,))).model.config.fixes == (OwnFix(),)


def test_a_model_and_a_tokenizer_of_different_vocabularies_do_not_make_a_chameleon(lab, spelled, folder):
    with pytest.raises(ValueError, match="do not belong together"):
        Chameleon(lab.model, spelled)
    edit(folder, "vocabulary", to={**vars(Vocabulary.layout(12, 330, sentinels=9))})
    refused(folder, "do not belong together")
