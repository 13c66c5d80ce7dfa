"""Image tokenizers that others published alone: their folders, their names, their codes.

`Published` computes codes and pictures anew, from tensors under the names of the programs that wrote them, and by
nothing of the lab's. The classes of taming-transformers and LlamaGen, with these tensors loaded, gave the codes in
`OWN_CODES`.
"""

import argparse
import json
import shutil
import sys
import types
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from chameleon_lab.chameleon import Chameleon, load_image_tokenizer
from chameleon_lab.checkpoints import native, vqgans
from chameleon_lab.checkpoints.torch_files import Inert, open_torch
from chameleon_lab.commands.main import main
from chameleon_lab.plain import fingerprint
from chameleon_lab.stability import QueryKeyNorm
from chameleon_lab.tokenizers.image import TINY_IMAGES, ImageTokenizer, ImageTokenizerConfig
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import ByteTokenizer
from chameleon_lab.transformer import ModelConfig, Transformer
from chameleon_lab.vocabulary import Vocabulary

SIDE, CODES = 32, 24


@dataclass
class Published:
    """An image tokenizer of another program: its tensors under its own names, random, and what they compute.

    `widths` a level, `attends` the levels with attention, `z` and `width` the channels before and after `quant_conv`.
    """

    program: str = "taming"
    widths: tuple[int, ...] = (32, 64)
    attends: tuple[int, ...] = (1,)
    z: int = 6
    width: int = 6
    quantizer: str = "vector"
    seed: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.seed)
        pixels = torch.zeros(1, 3, SIDE, SIDE)
        self.pixels_of(self.codes_of(pixels))  # names each tensor
        if self.program == "llamagen":
            self.tensors["quantize.codebook_used"] = torch.zeros(65536)

    def tensor(self, name: str, *shape: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
        if name not in self.tensors:
            self.tensors[name] = torch.randn(shape, generator=self.random) * scale + offset
        return self.tensors[name]

    def conv(self, name: str, x: Tensor, out: int, side: int = 1, **more: Any) -> Tensor:
        fan = x.shape[1] * side * side
        weight = self.tensor(f"{name}.weight", out, x.shape[1], side, side, scale=1.4 / fan**0.5)
        return F.conv2d(x, weight, self.tensor(f"{name}.bias", out, scale=0.1), **more)

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.tensor(f"{name}.weight", x.shape[1], scale=0.2, offset=1.0)
        return F.group_norm(x, 32, weight, self.tensor(f"{name}.bias", x.shape[1], scale=0.1), 1e-6)

    def block(self, name: str, x: Tensor, out: int) -> Tensor:
        inner = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), out, 3, padding=1)
        inner = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", inner)), out, 3, padding=1)
        return inner + (x if x.shape[1] == out else self.conv(f"{name}.nin_shortcut", x, out))

    def attention(self, name: str, x: Tensor) -> Tensor:
        normed = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", normed, x.shape[1]).flatten(2) for part in "qkv")
        shares = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / x.shape[1] ** 0.5, 2)
        return x + self.conv(f"{name}.proj_out", torch.einsum("bqk,bck->bcq", shares, v).view_as(x), x.shape[1])

    def middle(self, owner: str, x: Tensor) -> Tensor:
        names = ("block_1", "attn_1", "block_2") if self.program == "taming" else ("0", "1", "2")
        x = self.block(f"{owner}.mid.{names[0]}", x, x.shape[1])
        return self.block(f"{owner}.mid.{names[2]}", self.attention(f"{owner}.mid.{names[1]}", x), x.shape[1])

    def level(self, owner: str, level: int, x: Tensor, blocks: int) -> Tensor:
        taming = self.program == "taming"
        place = {"encoder": f"down.{level}", "decoder": f"up.{level}"}[owner]
        if not taming:
            place = f"conv_blocks.{level if owner == 'encoder' else len(self.widths) - 1 - level}"
        for number in range(blocks):
            x = self.block(f"{owner}.{place}.{'block' if taming else 'res'}.{number}", x, self.widths[level])
            if level in self.attends:
                x = self.attention(f"{owner}.{place}.attn.{number}", x)
        if owner == "encoder" and level < len(self.widths) - 1:
            x = self.conv(f"{owner}.{place}.downsample.conv", F.pad(x, (0, 1, 0, 1)), x.shape[1], 3, stride=2)
        if owner == "decoder" and level > 0:
            doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = self.conv(f"{owner}.{place}.upsample.conv", doubled, x.shape[1], 3, padding=1)
        return x

    def codes_of(self, pixels: Tensor) -> Tensor:
        x = self.conv("encoder.conv_in", pixels, self.widths[0], 3, padding=1)
        for level in range(len(self.widths)):
            x = self.level("encoder", level, x, 2)
        x = F.silu(self.norm("encoder.norm_out", self.middle("encoder", x)))
        z = self.conv("quant_conv", self.conv("encoder.conv_out", x, self.z, 3, padding=1), self.width)
        if self.quantizer == "gumbel":
            return self.conv("quantize.proj", z, CODES).argmax(1)
        return (
            (z[:, :, None] - self.book(z.shape[1])).pow(2).sum(1).argmin(1)
            if self.quantizer == "vector"
            else (torch.cosine_similarity(z[:, :, None], self.book(z.shape[1]), dim=1).argmax(1))
        )

    def book(self, width: int) -> Tensor:
        """The entries as they lie in the file, 1 x width x codes x 1 x 1."""
        name = "quantize.embed.weight" if self.quantizer == "gumbel" else "quantize.embedding.weight"
        return self.tensor(name, CODES, width, scale=0.5).T[None, :, :, None, None]

    def pixels_of(self, codes: Tensor) -> Tensor:
        book = self.book(self.width)[0, :, :, 0, 0].T
        book = F.normalize(book, dim=1) if self.quantizer == "cosine" else book
        x = self.conv("post_quant_conv", book[codes].movedim(3, 1), self.z)
        x = self.middle("decoder", self.conv("decoder.conv_in", x, self.widths[-1], 3, padding=1))
        for level in reversed(range(len(self.widths))):
            x = self.level("decoder", level, x, 3)
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x)), 3, 3, padding=1)

    def config(self, **changes: Any) -> dict[str, Any]:
        """The program's YAML, as plain values."""
        multipliers = [width // 32 for width in self.widths]
        about = {
            **{"double_z": False, "z_channels": self.z, "resolution": SIDE, "in_channels": 3, "out_ch": 3, "ch": 32},
            **{"ch_mult": multipliers, "num_res_blocks": 2, "dropout": 0.0},
            "attn_resolutions": [SIDE // 2**level for level in self.attends],
        }
        params = {"embed_dim": self.width, "n_embed": CODES, "monitor": "val/rec_loss", "ddconfig": about | changes}
        return {"model": {"base_learning_rate": 4.5e-06, "target": "taming.models.vqgan.VQModel", "params": params}}


KINDS: dict[str, dict[str, Any]] = {
    "taming f16, attention at the last of its levels": {"widths": (32, 32, 64), "attends": (2,)},
    "latent-diffusion f8, narrow codes": {"z": 4, "width": 4},
    "latent-diffusion f4, no attention but in the middle": {"attends": ()},
    "taming's Gumbel f8": {"quantizer": "gumbel"},
    "attention at the first level too": {"attends": (0, 1)},
    "LlamaGen": {"program": "llamagen", "quantizer": "cosine", "width": 8, "z": 16},
    "LlamaGen of three levels": {"program": "llamagen", "quantizer": "cosine", "widths": (32, 32, 64), "attends": (2,)},
}

OWN_CODES = {
    "taming f16, attention at the last of its levels": [0, 16, 3, 0, 16, 0, 2, 1, 17, 10, 3, 4, 10, 10, 3, 10],
    "latent-diffusion f8, narrow codes": [23, 8, 8, 15, 23, 16, 10, 20, 7, 8, 8, 7, 9, 7, 8, 16],
    "latent-diffusion f4, no attention but in the middle": [21, 3, 13, 23, 21, 0, 23, 21, 3, 21, 13, 0, 3, 23, 0, 0],
    "taming's Gumbel f8": [0, 13, 19, 9, 22, 6, 18, 0, 23, 13, 13, 9, 15, 23, 0, 15],
    "attention at the first level too": [9, 1, 9, 23, 10, 18, 9, 22, 2, 18, 5, 7, 9, 14, 7, 1],
    "LlamaGen": [3, 3, 6, 7, 17, 2, 10, 6, 17, 20, 22, 17, 6, 3, 17, 17],
    "LlamaGen of three levels": [0, 16, 10, 16, 18, 0, 2, 9, 17, 10, 10, 4, 10, 10, 10, 10],
}
"""What those programs' own classes gave, first row or two: taming-transformers at 3ba01b2, LlamaGen at ce98ec4."""


def pixels() -> Tensor:
    return torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5)) * 2 - 1


class ModelCheckpoint:
    """Stands for pytorch_lightning's, by which old checkpoints name their callbacks."""


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> type:
    """Another program's class, there while a file is written."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for place in (name, name.rpartition(".")[0], "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, place, types.ModuleType(place))
    monkeypatch.setattr(sys.modules[name], "ModelCheckpoint", ModelCheckpoint, raising=False)
    monkeypatch.setattr(ModelCheckpoint, "__module__", name)
    return ModelCheckpoint


def write(published: Published, weights: Path, config: Path | None = None, **changes: Any) -> None:
    """An image tokenizer as its program saves it: beside the weights, what its training kept."""
    weights.parent.mkdir(parents=True, exist_ok=True)
    if published.program == "llamagen":
        torch.save({"model": published.tensors, "optimizer": {}, "args": argparse.Namespace(seed=1)}, weights)
        return
    tensors = published.tensors | {"loss.discriminator.main.0.weight": torch.zeros(2)}
    torch.save({"epoch": 3, "state_dict": tensors, "optimizer_states": []}, weights)
    if config is not None:
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(published.config(**changes)))


def require_same(image: ImageTokenizer, published: Published) -> None:
    with torch.no_grad():
        codes = published.codes_of(pixels())
        assert torch.equal(image.encode_pixels(pixels()), codes)
        torch.testing.assert_close(image.decode_pixels(codes), published.pixels_of(codes), atol=1e-4, rtol=0)


def small_lab(codes: int, grid: int, attention: tuple[int, ...] = ()) -> Chameleon:
    """A random model of so many codes and a grid of so many rows, with an image tokenizer of the family's kind."""
    config = ImageTokenizerConfig(side=grid * 2, codes=codes, code_width=4, widths=(32, 32), latent_width=4, blocks=1)
    image = ImageTokenizer(replace(config, attention=attention)).eval()
    text = ByteTokenizer()
    vocabulary = Vocabulary.layout(codes, text.size)
    model = Transformer(ModelConfig(vocabulary.size, 32, 1, 4, 4, 8, 48, 300, fixes=(QueryKeyNorm(),))).eval()
    return Chameleon(model, MixedModalTokenizer(text, image, vocabulary))


# Codes


@pytest.mark.parametrize("name", KINDS)
def test_codes_and_pictures_are_those_of_the_program_that_published_them(name, tmp_path):
    published = Published(**KINDS[name])
    write(published, tmp_path / "vq_ds8.pt", tmp_path / "vq_ds8.yaml")
    image = load_image_tokenizer(tmp_path, device="cpu")
    require_same(image, published)
    first = published.codes_of(pixels()).flatten().tolist()[: len(OWN_CODES[name])]
    assert first == OWN_CODES[name] and len(set(first)) > 4
    assert image.config.attention == published.attends and image.config.factor == 2 ** (len(published.widths) - 1)
    native.write_image_tokenizer(image, tmp_path / "ours")  # and again from the lab's own folder
    require_same(load_image_tokenizer(tmp_path / "ours", device="cpu"), published)


PUBLISHED_SHAPES = {
    "vqgan_imagenet_f16_16384": (16, 16_384, (1, 1, 2, 2, 4), 256, [16], 76_073_859),
    "vqgan_imagenet_f16_1024": (16, 1_024, (1, 1, 2, 2, 4), 256, [16], 72_141_699),
    "vq-f8": (8, 16_384, (1, 2, 2, 4), 4, [32], 67_717_295),
    "vqgan_gumbel_f8": (8, 8_192, (1, 1, 2, 4), 256, [32], 68_995_971),
}


@pytest.mark.parametrize("name", PUBLISHED_SHAPES)
def test_published_configs_describe_the_published_shapes(name, tmp_path):
    factor, codes, multipliers, width, resolutions, parameters = PUBLISHED_SHAPES[name]
    plain = Published().config(
        ch=128, ch_mult=list(multipliers), z_channels=width, resolution=256, attn_resolutions=resolutions
    )
    plain["model"]["params"] |= {"embed_dim": width, "n_embed": codes}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(plain))
    config = vqgans.read_yaml_config(tmp_path / "model.yaml", gumbel="gumbel" in name)
    assert (config.factor, config.codes, config.grid) == (factor, codes, (256 // factor,) * 2)
    assert config.attention == (len(multipliers) - 1,)
    with torch.device("meta"):
        image = ImageTokenizer(config)
    assert sum(each.numel() for each in image.parameters()) == parameters


@pytest.mark.parametrize(("multipliers", "parameters"), [((1, 1, 2, 2, 4), 71_883_403), ((1, 2, 2, 4), 70_109_835)])
def test_llamagens_two_shapes_are_read_off_the_tensors(multipliers, parameters):
    last = len(multipliers) - 1
    config = ImageTokenizerConfig(
        side=256, codes=16_384, code_width=8, widths=tuple(128 * each for each in multipliers), latent_width=256,
        quantizer="cosine", attention=(last,),
    )  # fmt: skip
    with torch.device("meta"):
        image = ImageTokenizer(config)
    assert sum(each.numel() for each in image.parameters()) == parameters  # as its own class counts
    tensors = {
        name: vqgans.LazyTensor(tuple(each.shape), each.dtype, Tensor) for name, each in image.state_dict().items()
    }
    assert vqgans.config_of_shapes(tensors, Path("vq.pt"), "cosine") == config


# Folders

LAYOUTS = {
    "taming's download": ("checkpoints/last.ckpt", "configs/model.yaml", {"configs/lightning.yaml": "lightning: {}"}),
    "the same, converted by LlamaGen's tool": ("ckpts/last.ckpt", "configs/model.yaml", {"ckpts/last.pth": "copy"}),
    "latent-diffusion's": ("model.ckpt", "config.yaml", {"README.md": "words"}),
    "a pair of one name": ("vqgan_f16.ckpt", "vqgan_f16.yaml", {"vqgan_f8.yaml": "model: {}", "optimizer.pt": "?"}),
    "Meta's names": ("vqgan.ckpt", "vqgan.yaml", {}),
    "a training's own, epochs beside the last": ("checkpoints/last.ckpt", "configs/11-project.yaml",
                                                 {"checkpoints/epoch=000012.ckpt": "copy"}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_are_read_as_they_are_published(layout, tmp_path):
    weights, config, others = LAYOUTS[layout]
    published = Published()
    write(published, tmp_path / weights, tmp_path / config)
    for name, content in others.items():
        if content == "copy":
            shutil.copy(tmp_path / weights, tmp_path / name)
        else:
            (tmp_path / name).write_text(content)
    for place in (tmp_path, tmp_path / weights, tmp_path / config):
        if place == tmp_path or layout != "Meta's names":
            require_same(load_image_tokenizer(place, device="cpu"), published)


def test_of_several_the_file_decides_and_the_folder_asks(tmp_path):
    kinds = {"one": Published(), "two": Published(seed=1, attends=(0,))}
    for name, published in kinds.items():
        write(published, tmp_path / f"{name}.ckpt", tmp_path / f"{name}.yaml")
    with pytest.raises(ValueError, match=r"several image tokenizers: one\.ckpt, two\.ckpt\. Give the file"):
        load_image_tokenizer(tmp_path, device="cpu")
    for name, published in kinds.items():
        require_same(load_image_tokenizer(tmp_path / f"{name}.yaml", device="cpu"), published)
        require_same(load_image_tokenizer(tmp_path / f"{name}.ckpt", device="cpu"), published)
    published = Published(program="llamagen")
    (tmp_path / "llamagen").mkdir()
    for name in ("vq_ds16_c2i.pt", "vq_ds8_c2i.pt"):
        write(published, tmp_path / "llamagen" / name)
    with pytest.raises(ValueError, match=r"several image tokenizers: vq_ds16_c2i\.pt, vq_ds8_c2i\.pt"):
        load_image_tokenizer(tmp_path / "llamagen", device="cpu")
    assert load_image_tokenizer(tmp_path / "llamagen" / "vq_ds8_c2i.pt", device="cpu").codes == CODES


def test_a_llamagen_checkpoint_lies_beside_its_transformer_and_its_average_counts(tmp_path):
    published, raw = Published(program="llamagen", quantizer="cosine"), Published(program="llamagen", seed=9)
    torch.save({"model": raw.tensors, "ema": published.tensors}, tmp_path / "vq_ds8_c2i.pt")
    torch.save({"model": {"layers.0.attention.wqkv.weight": torch.zeros(2, 2)}}, tmp_path / "c2i_L_384.pt")
    (tmp_path / "notes.pt").write_bytes(b"nothing of torch's")
    require_same(load_image_tokenizer(tmp_path, device="cpu"), published)


def test_a_model_takes_an_image_tokenizer_of_another_program(tmp_path):
    published = Published()
    write(published, tmp_path / "vq" / "model.ckpt", tmp_path / "vq" / "config.yaml")
    small_lab(CODES, SIDE // 2).save(tmp_path / "model", format="meta", pictures=False)
    for place in ("vq", "vq/model.ckpt", "vq/config.yaml"):
        lab = Chameleon.load(tmp_path / "model", tokenizer=tmp_path / place, device="cpu")
        require_same(lab.tokenizer.image, published)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        (tmp_path / "empty").mkdir()
        Chameleon.load(tmp_path / "model", tokenizer=tmp_path / "empty")


def test_the_command_reconstructs_by_it(tmp_path, capsys):
    write(Published(), tmp_path / "model.ckpt", tmp_path / "config.yaml")
    PIL.Image.new("RGB", (40, 40), "teal").save(tmp_path / "teal.png")
    main(["reconstruct", str(tmp_path / "teal.png"), "--model", str(tmp_path), "--out", str(tmp_path / "again.png")])
    assert "256 codes" in capsys.readouterr().out


# What else a file holds


def test_what_a_training_program_put_beside_the_weights_stays_inert(tmp_path, lightning):
    published = Published()
    beside = {
        "callbacks": {lightning: {"best_model_score": np.float64(2.5), "best": lightning()}},
        "hyper_parameters": argparse.Namespace(rate=1e-3, place=Path("runs")),
        "state_dict": published.tensors,
    }
    torch.save(beside, tmp_path / "model.ckpt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(published.config()))
    before = set(torch.serialization.get_safe_globals())
    require_same(load_image_tokenizer(tmp_path, device="cpu"), published)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(Exception, match="Weights only load failed"):  # as torch has it of the same file
        torch.load(tmp_path / "model.ckpt", weights_only=True)


class Command:
    def __init__(self, name: str, *arguments: Any) -> None:
        self.name, self.arguments = name, arguments

    def __reduce__(self) -> Any:
        module, _, name = self.name.rpartition(".")
        return getattr(__import__(module, fromlist=[name]), name), self.arguments


@pytest.mark.parametrize("name", ["os.mkdir", "subprocess.call", "builtins.eval", "numpy.save", "shutil.copy"])
def test_what_could_act_refuses_the_file_and_what_is_inert_does_not_act(name, tmp_path):
    target = tmp_path / "made"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Command(name, str(target))}, tmp_path / "x.ckpt")
    try:
        tensors = open_torch(tmp_path / "x.ckpt")
    except ValueError as error:
        assert "holds more than weights" in str(error)
    else:
        assert name.startswith("numpy") and list(tensors) == ["a"]
    assert not target.exists()


def test_an_inert_object_takes_anything_and_does_nothing():
    inert = Inert(1, 2, key=3)
    inert["a"] = 1
    inert.__setstate__({"b": 2})
    assert not inert and {inert: 1} and not vars(inert)


# What the lab cannot build


REFUSED = {
    "attn_type": "none", "double_z": True, "in_channels": 1, "out_ch": 1, "resamp_with_conv": False,
    "use_linear_attn": True, "tanh_out": True, "give_pre_end": True,
}  # fmt: skip


@pytest.mark.parametrize("setting", REFUSED)
def test_a_setting_that_the_lab_cannot_build_is_named(setting, tmp_path):
    write(Published(), tmp_path / "model.ckpt", tmp_path / "config.yaml", **{setting: REFUSED[setting]})
    with pytest.raises(ValueError, match=rf"config\.yaml sets {setting} = {REFUSED[setting]!r}: the lab cannot build"):
        load_image_tokenizer(tmp_path, device="cpu")


def damage(published: Published, folder: Path) -> dict[str, Any]:
    """Faults of a published folder, by name: each a function that makes it."""

    def config(**changes: Any) -> Any:
        return lambda: write(published, folder / "model.ckpt", folder / "config.yaml", **changes)

    def tensors(**changes: Tensor | None) -> Any:
        def change() -> None:
            config()()
            both = published.tensors | {name.replace("__", "."): value for name, value in changes.items()}
            kept = {name: value for name, value in both.items() if value is not None}
            torch.save({"state_dict": kept}, folder / "model.ckpt")

        return change

    def cut_config() -> None:
        config()()
        (folder / "config.yaml").write_bytes((folder / "config.yaml").read_bytes()[:-40] + b"\n  - [")

    def truncated() -> None:
        config()()
        (folder / "model.ckpt").write_bytes((folder / "model.ckpt").read_bytes()[:5000])

    levels = {f"encoder.conv_blocks.{level}.res.0.conv1.weight": torch.zeros(1) for level in (0, 7, 9_999)}
    return {
        "a level that is not there": config(ch_mult=[1, 2, 2]),
        "no levels": config(ch_mult=[]),
        "forty thousand levels": config(ch_mult=[1] * 40_000),
        "levels without end": config(ch_mult=[1] * 80_000),
        "blocks without end": config(num_res_blocks=3_000_000),
        "a width of words": config(ch="wide"),
        "resolutions of another kind": config(attn_resolutions=16),
        "resolutions in words": config(attn_resolutions="16"),
        "a side that cannot be halved": config(resolution=33),
        "no attention where the weights have it": config(attn_resolutions=[]),
        "attention where the weights have none": config(attn_resolutions=[SIDE, SIDE // 2]),
        "a book that is not there": tensors(quantize__embedding__weight=None),
        "a moving average's book": tensors(quantize__embedding__cluster_size=torch.zeros(CODES)),
        "a book of one dimension": tensors(quantize__embedding__weight=torch.zeros(CODES)),
        "weights that are not finite": tensors(post_quant_conv__bias=torch.full((6,), torch.nan)),
        "a file cut short": truncated,
        "a config that is no YAML": cut_config,
        "LlamaGen's names and nothing behind them": lambda: torch.save({"model": levels}, folder / "vq.pt"),
        "LlamaGen's middle of four": lambda: torch.save(
            {"model": levels | {"encoder.mid.3.conv1.weight": torch.zeros(1)}}, folder / "vq.pt"
        ),
        "names of both programs": lambda: torch.save(
            {"model": levels | {"encoder.down.0.block.0.conv1.weight": torch.zeros(1)}}, folder / "vq.pt"
        ),
    }


@pytest.mark.parametrize("fault", damage(Published(), Path()))
def test_each_fault_is_one_error_that_names_a_file(fault, tmp_path):
    damage(Published(), tmp_path)[fault]()
    with pytest.raises(ValueError, match=r"(config\.yaml|model\.ckpt|vq\.pt)"):
        load_image_tokenizer(tmp_path, device="cpu")


# What stays as it was


def test_a_tokenizer_without_attention_is_named_and_written_as_before(tmp_path):
    assert fingerprint(TINY_IMAGES) == "d463d5ce"
    image = ImageTokenizer(TINY_IMAGES)
    assert not any(".attn." in name for name in image.state_dict())
    native.write_image_tokenizer(image, tmp_path)
    assert "attention" not in json.loads((tmp_path / "config.json").read_text())["image_tokenizer"]
    attentive = replace(TINY_IMAGES, attention=(1,))
    assert fingerprint(attentive) != fingerprint(TINY_IMAGES)


@pytest.mark.parametrize("attention", [(2,), (-1,), (0, 0)])
def test_attention_names_levels_each_once(attention):
    with pytest.raises(ValueError, match=r"attention names levels, 0\.\.1 and each once"):
        replace(TINY_IMAGES, attention=attention)


def test_formats_that_have_no_word_for_attention_refuse_it(tmp_path):
    lab = small_lab(CODES, SIDE // 2, attention=(1,))
    for format in ("meta", "huggingface", "lumina", "anole"):
        with pytest.raises(ValueError, match=r"attention=\(1,\)"):
            lab.save(tmp_path / format, format=format)
