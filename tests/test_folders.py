"""Others' folders as they are found: evidence decides, stray files do not, what is no model is named by its kind."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from test_formats import make_lab, weights

from chameleon_lab.chameleon import Chameleon, load_image_tokenizer
from chameleon_lab.checkpoints import formats, names
from chameleon_lab.checkpoints.companion import COMPANION
from chameleon_lab.commands.main import main
from chameleon_lab.documents import Document


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """A folder of each format, of one model, without the lab's own note beside it."""
    place = tmp_path_factory.mktemp("shelf")
    lab = make_lab()
    for format in formats.FORMATS:
        lab.save(place / format, format=format)
        (place / format / COMPANION).unlink(missing_ok=True)
    return place


@pytest.fixture
def folder(shelf, tmp_path) -> Callable[[str], Path]:
    """A copy of the folder of a format that a test may spoil."""

    def copy(format: str) -> Path:
        shutil.copytree(shelf / format, tmp_path / format)
        return tmp_path / format

    return copy


@cache
def the_lab() -> Chameleon:
    return make_lab()


def assert_the_model(folder: Path | str, **named: object) -> Chameleon:
    """Loads a folder, which has to hold the shelf's model, words and pictures included."""
    lab, read = the_lab(), Chameleon.load(folder, device="cpu", **named)  # pyright: ignore[reportArgumentType]
    assert read.vocabulary == lab.vocabulary and not read.tokenizer.missing
    assert all(torch.equal(tensor, weights(read)[name]) for name, tensor in weights(lab).items())
    assert np.array_equal(read.encode(Document.of("wörds </b>")), lab.encode(Document.of("wörds </b>")))
    return read


def put_json(path: Path, plain: object) -> None:
    path.write_text(json.dumps(plain))


def port_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


# What lies about in people's folders

LLAMA = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "vocab_size": 32000}
STRAYS: dict[str, Callable[[Path], object]] = {
    "._model.safetensors": lambda path: path.write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X"),
    "._consolidated.pth": lambda path: path.write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X"),
    "._config.json": lambda path: path.write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X"),
    ".DS_Store": lambda path: path.write_bytes(b"\0\0\0\1Bud1"),
    "README.md": lambda path: path.write_text("# A model"),
    ".gitattributes": lambda path: path.write_text("*.safetensors filter=lfs"),
    "optimizer.safetensors": lambda path: safetensors.torch.save_file({"state.0.exp_avg": torch.ones(2)}, path),
    "adapter_model.safetensors": lambda path: safetensors.torch.save_file(
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 2)}, path
    ),
    "model.fp16.safetensors": lambda path: safetensors.torch.save_file(
        {"model.norm.weight": torch.ones(32, dtype=torch.float16), "norm.weight": torch.ones(32)}, path
    ),
    "consolidated.safetensors": lambda path: safetensors.torch.save_file({"norm.weight": torch.ones(32)}, path),
    "optimizer.pt": lambda path: torch.save({"state": {}, "param_groups": []}, path),
    "training_args.bin": lambda path: path.write_bytes(b"\x80\2cos\nsystem\n."),
    "rng_state.pth": lambda path: path.write_bytes(b"\x80\2."),
    "trainer_state.json": lambda path: put_json(path, {"epoch": 1}),
    "model.gguf": lambda path: path.write_bytes(b"GGUF\3\0\0\0"),
    "tokenizer.model": lambda path: path.write_bytes(b"\n\x0e\n\5<unk>"),
    "original": lambda path: (path.mkdir(), put_json(path / "params.json", {"dim": 8})),
    "checkpoint-500": lambda path: (path.mkdir(), put_json(path / "config.json", LLAMA)),
}
"""By name; none of them is named as a whole layout's own files are."""

STRAY_CONFIGS: dict[str, dict[str, object]] = {
    "config.json": {"{}": {}, "an image config": {"vq_config": {}}, "a Llama's": LLAMA, "a list": []},
    "params.json": {"{}": {}, "a training's": {"lr": 1e-4}, "a Llama's": {"dim": 4096, "n_layers": 32, "n_heads": 32}},
}
"""Configs without weights of theirs, where a folder has none of that name."""


@pytest.mark.parametrize("format", formats.FORMATS)
@pytest.mark.parametrize("name", STRAY_CONFIGS)
def test_a_config_without_weights_decides_nothing(name, format, folder):
    place = folder(format)
    if (place / name).exists():
        return
    for plain in STRAY_CONFIGS[name].values():
        put_json(place / name, plain)
        assert formats.detect(place).name == format == formats.detect(place, layout=format).name
    assert_the_model(place)


@pytest.mark.parametrize("format", formats.FORMATS)
def test_stray_files_change_nothing(format, folder):
    """Seeded: any few of them, beside the weights and in the folder of the tokenizers."""
    rng = np.random.default_rng(formats.FORMATS.index(format))
    for round in range(3):
        place = folder(format)
        for name in rng.choice(list(STRAYS), 9, replace=False).tolist():
            if not (place / name).exists():
                STRAYS[name](place / name)
        if round == 2:
            for name, configs in STRAY_CONFIGS.items():
                if not (place / name).exists():
                    put_json(place / name, configs["{}"])
        assert_the_model(place)
        shutil.rmtree(place)


def test_anoles_own_tree_opens_from_any_of_its_folders(folder, tmp_path):
    """Its script leaves a config.json beside consolidated.pth."""
    place = folder("meta")
    tree = tmp_path / "tree"
    (tree / "models").mkdir(parents=True)
    shutil.move(place / "tokenizer", tree / "tokenizer")
    shutil.move(place, tree / "models" / "7b")
    port = json.loads((folder("anole") / "config.json").read_text())
    for where in ("models/7b", ""):
        for plain in ({}, {"vq_config": {}}, port):
            put_json(tree / where / "config.json", plain)
            for start in ("", "models", "models/7b", "tokenizer"):
                assert formats.detect(tree / start).model == tree / "models" / "7b"
                assert formats.detect(tree / start, layout="meta").model == tree / "models" / "7b"
            assert_the_model(tree)
            (tree / where / "config.json").unlink()


def test_an_adapter_beside_a_model_is_named_and_not_applied(folder, caplog):
    place = folder("huggingface")
    STRAYS["adapter_model.safetensors"](place / "adapter_model.safetensors")
    with caplog.at_level(logging.WARNING):
        assert_the_model(place)
    assert "adapter_model.safetensors is not applied" in caplog.text


def test_another_models_text_tokenizer_beside_is_passed_over(folder):
    other = json.dumps({"model": {"type": "WordPiece", "vocab": {"a": 0}}})
    place = folder("meta")
    (place / "tokenizer.json").write_text(other)  # looked at before the folder of tokenizers
    assert_the_model(place)
    with pytest.raises(ValueError, match=r"tokenizer\.json holds no text tokenizer of the family"):
        Chameleon.load(place, tokenizer=place / "tokenizer.json")


# Weights under other names


def save_port(folder: Path, tensors: dict[str, torch.Tensor], kind: str) -> None:
    """A folder's weights as other programs leave them, in place of what is there."""
    (folder / "model.safetensors").unlink()
    if kind == "variant":
        return safetensors.torch.save_file(tensors, folder / "model.fp16.safetensors")
    if kind == "other name":
        STRAYS["optimizer.safetensors"](folder / "optimizer.safetensors")
        return safetensors.torch.save_file(tensors, folder / "chameleon.safetensors")
    if kind == "bin":
        return torch.save(tensors, folder / "pytorch_model.bin")
    if kind == "of Lightning":
        state = {f"model.{name}": tensor for name, tensor in tensors.items()}
        torch.save({"state": {}}, folder / "optimizer.pt")
        return torch.save({"state_dict": state, "epoch": 3}, folder / "last.ckpt")
    if kind == "pth, model":
        return torch.save({"model": tensors}, folder / "model.pth")
    if kind == "bin, model":
        return torch.save({"model": tensors, "epoch": 3}, folder / "pytorch_model.bin")
    shards = [dict(list(tensors.items())[place::2]) for place in range(2)]
    files = [f"pytorch_model-0000{place + 1}-of-00002.bin" for place in range(2)]
    for shard, file in zip(shards, files, strict=True):
        torch.save(shard, folder / file)
    if kind == "bin shards, index":
        index = {name: file for shard, file in zip(shards, files, strict=True) for name in shard}
        put_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": index})


@pytest.mark.parametrize(
    "kind",
    [
        *("variant", "other name", "bin", "bin, model", "bin shards", "bin shards, index"),
        *("of Lightning", "pth, model"),
    ],
)
def test_weights_are_read_however_hugging_faces_programs_left_them(kind, folder):
    place = folder("huggingface")
    save_port(place, port_tensors(place), kind)
    assert_the_model(place)


WRAPPERS_OF_MODULES = [
    *(
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.",
        "model.module.",
        "base_model.model.",
    ),
    *("_fsdp_wrapped_module.", "module._fsdp_wrapped_module._orig_mod.", "inside _orig_mod."),
    *("inside _fsdp_wrapped_module._checkpoint_wrapped_module.",),
]


@pytest.mark.parametrize("wrapper", WRAPPERS_OF_MODULES)
def test_names_are_without_what_programs_wrap_around_a_module(wrapper, folder):
    place = folder("huggingface")
    inside = wrapper.startswith("inside ")
    wrapper = wrapper.removeprefix("inside ")
    change: Callable[[str], str] = (
        (lambda name: re.sub(r"(model\.(layers\.\d+\.)?)", rf"\1{wrapper}", name, count=1))
        if inside
        else (lambda name: wrapper + name)
    )
    tensors = {change(name): tensor for name, tensor in port_tensors(place).items()}
    safetensors.torch.save_file(tensors, place / "model.safetensors")
    assert_the_model(place)
    place = folder("meta")
    held = torch.load(place / "consolidated.pth", weights_only=True)
    prefix = wrapper
    torch.save({"model": {prefix + name: tensor for name, tensor in held.items()}}, place / "consolidated.pth")
    assert_the_model(place)


def test_two_tensors_of_one_name_behind_a_wrapper_are_refused():
    lazies = dict.fromkeys(("_orig_mod.a", "a"))
    with pytest.raises(ValueError, match="a is there twice, once behind a wrapper"):
        names.without_wrappers(lazies)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("stated", [True, False])
def test_rows_of_padding_are_left_out(stated, folder):
    """A vocabulary of 280 padded to a multiple of 64, whether the config says so or not."""
    place = folder("huggingface")
    tensors = port_tensors(place)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.full((40, 32), 7.0)])
    safetensors.torch.save_file(tensors, place / "model.safetensors")
    if stated:
        put_json(place / "config.json", json.loads((place / "config.json").read_text()) | {"vocab_size": 320})
    assert_the_model(place)


@pytest.mark.parametrize(("size", "table", "padding"), [(320, 280, True), (288, 280, True), (284, 280, False)])
def test_what_counts_as_padding(size, table, padding):
    assert names.is_padding(size, table) == padding
    assert not names.is_padding(table, size)


# Where people's folders are


def test_a_root_of_hugging_faces_cache_leads_to_its_snapshot(folder, tmp_path):
    root = tmp_path / "hub" / "models--somebody--chameleon"
    (root / "refs").mkdir(parents=True)
    for revision in ("0123abc", "4567def"):
        (root / "snapshots" / revision).mkdir(parents=True)
    place = folder("huggingface")
    for file in place.iterdir():  # files are links to blobs there
        (root / "snapshots" / "4567def" / file.name).symlink_to(file)
    with pytest.raises(
        ValueError, match=r"2 snapshots, and refs/main names none of them\. Give the one you mean.*4567def"
    ):
        Chameleon.load(root)
    (root / "refs" / "main").write_text("4567def\n")
    for start in (root, root / "snapshots", root / "snapshots" / "4567def"):
        assert_the_model(start)
    assert load_image_tokenizer(root, device="cpu").codes == 12
    with pytest.raises(FileNotFoundError, match=r"A folder in it holds one: Chameleon\.load\('.*models--somebody"):
        Chameleon.load(tmp_path / "hub")
    (root / "refs" / "main").unlink()
    (root / "snapshots" / "0123abc").rmdir()
    assert_the_model(root)


def test_a_tilde_is_home(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder("huggingface")
    lab = assert_the_model("~/huggingface", tokenizer="~/huggingface")
    lab.save("~/again")
    assert (tmp_path / "again" / "config.json").is_file()
    assert load_image_tokenizer("~/again", device="cpu").codes == 12


def test_a_folder_of_folders_names_the_one_that_holds_a_model(folder, tmp_path):
    folder("huggingface")
    with pytest.raises(FileNotFoundError, match=r"A folder in it holds one: Chameleon\.load\('.*/huggingface'\)"):
        Chameleon.load(tmp_path)


# What is no whole model


def with_tensors(*endings: str) -> Callable[[Path], None]:
    """Beside a projection's weight, tensors as a program leaves them that packed it and did not change the config."""

    def spoil(place: Path) -> None:
        extra = {f"model.layers.0.mlp.up_proj{ending}": torch.ones(2, 2) for ending in endings}
        safetensors.torch.save_file(port_tensors(place) | extra, place / "model.safetensors")

    return spoil


def instead_of_weights(name: str) -> Callable[[Path], None]:
    def spoil(place: Path) -> None:
        (place / "model.safetensors").unlink()
        (place / name).parent.mkdir(exist_ok=True)
        if name == "model.safetensors":
            return (place / name).symlink_to("../../blobs/0123")
        (place / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")

    return spoil


def no_shards_but_one(place: Path) -> None:
    tensors = port_tensors(place)
    (place / "model.safetensors").unlink()
    safetensors.torch.save_file(dict(list(tensors.items())[:5]), place / "model-00001-of-00004.safetensors")


def half(place: Path) -> None:
    tensors = port_tensors(place)
    kept = {name: tensor for name, tensor in tensors.items() if ".layers.0." not in name}
    safetensors.torch.save_file(kept, place / "model.safetensors")


def packed(**about: object) -> Callable[[Path], None]:
    return lambda place: put_json(place / "config.json", json.loads((place / "config.json").read_text()) | about)


def only(name: str) -> Callable[[Path], None]:
    def spoil(place: Path) -> None:
        shutil.rmtree(place)
        place.mkdir()
        STRAYS.get(name, lambda path: path.write_bytes(b"x"))(place / name)

    return spoil


def config_beside_pth(place: Path) -> None:
    (place / "model.safetensors").unlink()
    torch.save({"a": torch.ones(1)}, place / "consolidated.pth")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "one shard of four": (no_shards_but_one, r"incomplete: .*holds 1 of the 4 shards"),
    "half of a model": (half, r"contradicts the folder's config\.json: missing .* more of \d+: get the rest"),
    "bitsandbytes": (packed(quantization_config={"quant_method": "bitsandbytes"}), "weights packed by bitsandbytes"),
    "older bitsandbytes": (packed(quantization_config={"bnb_4bit_quant_type": "nf4"}), "packed by bitsandbytes"),
    "GPTQ": (packed(quantization_config={"quant_method": "gptq", "bits": 4}), r"packed by GPTQ.*weights='int8'"),
    "AWQ": (packed(quantization_config={"quant_method": "awq"}), "packed by AWQ"),
    "MLX": (packed(quantization={"group_size": 64, "bits": 4}), "packed by MLX"),
    "float8": (packed(quantization_config={"quant_method": "fp8"}), "packed by float8"),
    "GGUF": (only("model.gguf"), r"model\.gguf is damaged: it ends after 8 bytes|by the package gguf, which is not"),
    "GPTQ's tensors": (with_tensors(".qweight", ".qzeros", ".scales", ".g_idx"), "packed by GPTQ"),
    "AWQ's tensors": (with_tensors(".qweight", ".qzeros", ".scales"), "packed by AWQ"),
    "bitsandbytes' tensors": (with_tensors(".weight.absmax", ".weight.quant_map"), "packed by bitsandbytes"),
    "MLX's tensors": (with_tensors(".scales", ".biases"), "packed by MLX"),
    "scales of float8": (with_tensors(".weight_scale_inv"), "packed by float8"),
    "an adapter not merged": (with_tensors(".lora_A.default.weight"), r"not merged.*merge_and_unload"),
    "a distributed checkpoint": (instead_of_weights("x/__0_0.distcp"), r"\(__0_0\.distcp\): join them first"),
    "a download cut short": (
        instead_of_weights("model.safetensors.part"),
        r"safetensors\.part, a download that did not",
    ),
    "a link to nothing": (
        instead_of_weights("model.safetensors"),
        r"model\.safetensors is a link to a file that is not",
    ),
    "a pointer": (
        lambda place: (place / "config.json").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "config.json is Git LFS's pointer to a file",
    ),
    "MLX's own": (only("weights.npz"), r"It holds MLX's weights\.npz"),
    "an adapter": (only("adapter_model.safetensors"), r"It holds an adapter \(adapter_model\.safetensors\).*merge"),
    "TensorFlow": (only("tf_model.h5"), "weights of TensorFlow"),
    "ONNX": (only("model.onnx"), "It holds an ONNX file"),
    "parts of two": (
        config_beside_pth,
        r"no whole model: it holds parts of meta and huggingface\. .*meta: consolidated\.pth, but no config; "
        r"huggingface: config\.json of model_type 'chameleon', but no weights",
    ),
    "a Llama": (lambda place: put_json(place / "config.json", LLAMA), "holds no .*q_norm|does not describe"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_whole_model_is_called_by_its_kind(kind, folder):
    spoil, why = BROKEN[kind]
    place = folder("huggingface")
    spoil(place)
    with pytest.raises((ValueError, FileNotFoundError), match=why) as caught:
        Chameleon.load(place, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", formats.FORMATS)
def test_a_file_of_a_model_leads_to_its_folder(format, folder):
    place = folder(format)
    for file in place.iterdir():
        if file.is_file():
            with pytest.raises(FileNotFoundError, match=rf"Give its folder: Chameleon\.load\('{place}'\)"):
                Chameleon.load(file)
    with pytest.raises(FileNotFoundError, match="The path is empty"):
        Chameleon.load("")


def test_one_of_metas_shards_alone_is_one_of_four(tmp_path):
    make_lab().save(tmp_path / "there", format="meta", shards=4)
    for place in range(1, 4):
        (tmp_path / "there" / f"consolidated.{place:02d}.pth").unlink()
    (tmp_path / "there" / "consolidate_params.json").unlink()
    with pytest.raises(ValueError, match="holds 1 of the 4 shards"):
        Chameleon.load(tmp_path / "there")


# From a shell


@pytest.mark.parametrize("command", [["generate", "hi"], ["evaluate"], ["tokenize", "scenes", "--out", "x"]])
def test_a_command_takes_of_a_folder_what_load_takes(command, monkeypatch, tmp_path):
    loads: list[dict[str, object]] = []

    def load(folder: str, **named: object) -> None:
        loads.append({"folder": folder, **named})
        raise ValueError("enough")

    monkeypatch.setattr(Chameleon, "load", load)
    monkeypatch.chdir(tmp_path)
    folder = ["--model", "there", "--layout", "lumina", "--tokenizer", "words", "--dtype", "bfloat16"]
    assert main([*command, *folder]) == 2
    wanted = {"folder": "there", "layout": "lumina", "tokenizer": Path("words"), "dtype": torch.bfloat16}
    assert wanted.items() <= loads[0].items()


def test_a_plan_and_a_conversion_take_a_layout_and_a_tokenizer(folder, tmp_path, capsys):
    place = folder("meta")
    shutil.move(place / "tokenizer", tmp_path / "words")
    told = ["--layout", "meta", "--tokenizer", str(tmp_path / "words")]
    assert main(["plan", str(place), *told]) == 0
    assert main(["convert", str(place), str(tmp_path / "native"), "--format", "native", *told]) == 0
    capsys.readouterr()
    assert_the_model(tmp_path / "native")
