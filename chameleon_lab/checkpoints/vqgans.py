"""Image tokenizers that others published alone, read from their folders as they are downloaded.

```
taming-transformers   configs/model.yaml, checkpoints/last.ckpt (or ckpts/): VQModel, GumbelVQ
latent-diffusion      config.yaml, model.ckpt: VQModel, its f8 and f16 among them
either                NAME.yaml beside NAME.ckpt
LlamaGen              vq_ds16_c2i.pt, vq_ds8_c2i.pt: no config; shapes tell all but the length of a code, which is 1
```

They have the same network, under two sets of names. What differs: attention at some resolutions, the quantizer, sizes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from chameleon_lab.checkpoints import names
from chameleon_lab.checkpoints.opened import ReadOptions, require_blocks
from chameleon_lab.checkpoints.tensors import LazyTensor, Tensors, fill, open_safetensors, visible_files
from chameleon_lab.checkpoints.torch_files import open_torch
from chameleon_lab.files import LARGEST_YAML, absence, read_yaml, reason_of
from chameleon_lab.outlines import outline
from chameleon_lab.tokenizers.image import ImageTokenizer, ImageTokenizerConfig

log = logging.getLogger(__name__)

SIDE_OF_LLAMAGEN = 256
"""Pixels: the smallest side that LlamaGen publishes figures for; its checkpoints do not say."""

IMAGE_WEIGHTS = (".ckpt", ".pth", ".pt", ".safetensors")
IMAGE_CONFIGS = (".yaml", ".yml")

BUILT = {
    "double_z": False,
    "in_channels": 3,
    "out_ch": 3,
    "resamp_with_conv": True,
    "attn_type": "vanilla",
    "use_linear_attn": False,
    "tanh_out": False,
    "give_pre_end": False,
    "remap": None,
}
"""Settings of a config, and the one value of each that the lab builds."""


def read_vqgan(place: Path, options: ReadOptions) -> ImageTokenizer | None:
    """The image tokenizer of a folder of taming-transformers', latent-diffusion's or LlamaGen's, or of a file in it.

    None for a place that holds none. Raises ValueError where several lie there, for weights that are damaged, and for a
    setting that the lab cannot build, naming it.
    """
    pair = _pair_at(place)
    if pair is None:
        return None
    path, config_path = pair
    tensors = _image_tensors(path)
    of_llamagen = any(".conv_blocks." in name for name in tensors)
    if of_llamagen:
        tensors = llamagen_to_ours(tensors, path)
    if config_path is None or of_llamagen:
        config, about = config_of_shapes(tensors, path, "cosine" if of_llamagen else None), path.name
    else:
        config, about = read_yaml_config(config_path, "quantize.proj.weight" in tensors), config_path.name
    require_blocks(config, tensors, path, about)
    with outline():
        image = ImageTokenizer(config, str(path))
    if not any(name.startswith("decoder.") for name in tensors):
        image.decoder = None
    fill(image, tensors, path, dtype=options.dtype, device=options.device, config=about)
    log.info("%s is an image tokenizer of %s codes, one for %s x %s pixels.", path, config.codes, *[config.factor] * 2)
    return image.eval()


# Which files


def holds_vqgan(place: Path) -> bool:
    """Whether `read_vqgan` would read something there, or say what is wrong with it."""
    try:
        return _pair_at(place) is not None
    except ValueError:
        return True


def _pair_at(place: Path) -> tuple[Path, Path | None] | None:
    """The file of weights of a place, and the config that belongs to it, None for LlamaGen's; None for neither."""
    if place.suffix in IMAGE_CONFIGS and place.is_file():
        return _file_pair(_folder_of(place), [place]) if _describes(place) else None
    if place.suffix in IMAGE_WEIGHTS and place.is_file():
        configs = _configs_in(_folder_of(place))
        configs = [config for config in configs if config.stem == place.stem or len(configs) == 1]
        return (place, configs[0]) if configs else (place, None) if _is_of_llamagen(place, sure=True) else None
    return _file_pair(place, _configs_in(place))


def _file_pair(folder: Path, configs: list[Path]) -> tuple[Path, Path | None] | None:
    """The weights that belong to one of the configs, and that one; without configs, LlamaGen's."""
    places = (folder, folder / "checkpoints", folder / "ckpts")
    weights = [file for each in places for file in visible_files(each) if file.suffix in IMAGE_WEIGHTS]
    pairs: list[tuple[Path, Path | None]]
    pairs = [(file, config) for config in configs for file in weights if file.stem == config.stem]
    if not pairs and len(configs) == 1:
        usual = [file for file in weights if file.stem in ("last", "model")]
        pairs = [(file, configs[0]) for file in usual or weights]
    if not configs:
        pairs = [(file, None) for file in weights if _is_of_llamagen(file)]
    # Of copies in several kinds of file, such as LlamaGen's last.pth beside last.ckpt, one is enough.
    if len({(file.parent, file.stem) for file, _ in pairs}) > 1:
        files = ", ".join(sorted(str(file.relative_to(folder)) for file, _ in pairs))
        raise ValueError(f"{folder} holds several image tokenizers: {files}. Give the file of the one you mean.")
    return pairs[0] if pairs else None


def _folder_of(file: Path) -> Path:
    """The folder of an image tokenizer, of one of its files."""
    return file.parent.parent if file.parent.name in ("configs", "checkpoints", "ckpts") else file.parent


def _configs_in(folder: Path) -> list[Path]:
    """The configs of image tokenizers in a folder, and in its `configs`."""
    files = [
        file for each in (folder, folder / "configs") for file in visible_files(each) if file.suffix in IMAGE_CONFIGS
    ]
    return [file for file in files if _describes(file)]


def _describes(config: Path) -> bool:
    """Whether a YAML file describes an image tokenizer, or would if it could be read."""
    try:
        params = read_yaml(config)["model"]["params"]
        return isinstance(params["ddconfig"], dict) and "n_embed" in params
    except (OSError, KeyError, TypeError):
        return False
    except ValueError:
        with config.open("rb") as file:
            return b"ddconfig" in file.read(LARGEST_YAML)


def _is_of_llamagen(file: Path, sure: bool = False) -> bool:
    """Whether a file of weights has LlamaGen's names; where one is `sure` that it is meant, what is damaged raises."""
    if file.suffix not in (".pt", ".pth", ".safetensors") or file.name.startswith(("consolidated", "model-")):
        return False
    try:
        return any(name.startswith("encoder.conv_blocks.") for name in _image_tensors(file))
    except (OSError, ValueError):
        if sure:
            raise
        return False


def _image_tensors(path: Path) -> dict[str, LazyTensor]:
    """The image tokenizer's tensors of a file, under our names where its own are taming's."""
    tensors = open_safetensors(path) if path.suffix == ".safetensors" else open_torch(path)
    return names.image_to_ours(names.without_wrappers(tensors))


# What they say


def read_yaml_config(path: Path, gumbel: bool = False) -> ImageTokenizerConfig:
    """Our config of theirs, of Meta's `vqgan.yaml` too; `gumbel`: whether the weights have the scores of a `GumbelVQ`.

    Raises ValueError for one missing, damaged, or of another architecture.
    """
    if fault := absence(path):
        raise ValueError(f"The image tokenizer is incomplete: {path} {fault}.")
    plain = read_yaml(path, "Get it anew.")
    try:
        params = plain["model"]["params"]
        plain, side, multipliers = params["ddconfig"], params["ddconfig"]["resolution"], params["ddconfig"]["ch_mult"]
        settings = {name: value for each in (params, plain) for name, value in each.items() if name in BUILT}
        strange = {name: value for name, value in settings.items() if value != BUILT[name] and (value or BUILT[name])}
        resolutions = plain.get("attn_resolutions") or ()
        if gumbel and plain["z_channels"] != params["embed_dim"]:
            strange["embed_dim"] = params["embed_dim"]
        config = ImageTokenizerConfig(
            side=side,
            codes=params["n_embed"],
            code_width=params["embed_dim"],
            widths=tuple(plain["ch"] * multiplier for multiplier in multipliers),
            latent_width=plain["z_channels"],
            blocks=plain["num_res_blocks"],
            quantizer="gumbel" if gumbel else "vector",
        )
        levels = [level for level in range(len(config.widths)) if side // 2**level in resolutions]
        config = replace(config, attention=tuple(levels))
    except (KeyError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise ValueError(f"{path} does not describe an image tokenizer: {reason_of(error)}. Get it anew.") from error
    if strange:
        listing = ", ".join(f"{name} = {value!r}" for name, value in strange.items())
        raise ValueError(f"{path} sets {listing}: the lab cannot build an image tokenizer that has that.")
    return config


def config_of_shapes(tensors: Tensors, path: Path, quantizer: str | None) -> ImageTokenizerConfig:
    """The config that tensors under our names tell by their shapes; a side of 256 pixels is taken for granted.

    Raises ValueError for tensors that are not those of an image tokenizer, and where no `quantizer` is said.
    """
    if quantizer is None:
        raise ValueError(f"{path} has no config beside it: get the YAML file that was published with it.")
    widths: list[int] = []
    while (block := tensors.get(f"encoder.down.{len(widths)}.block.0.conv1.weight")) is not None:
        widths.append(block.shape[0])
    blocks = sum(bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name)) for name in tensors)
    attends = [level for level in range(len(widths)) if f"encoder.down.{level}.attn.0.q.weight" in tensors]
    try:
        codes, code_width = tensors["quantize.embedding.weight"].shape
        return ImageTokenizerConfig(
            side=SIDE_OF_LLAMAGEN,
            codes=codes,
            code_width=code_width,
            widths=tuple(widths),
            latent_width=tensors["encoder.conv_out.weight"].shape[0],
            blocks=blocks,
            quantizer=quantizer,
            attention=tuple(attends),
        )
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path} holds no whole image tokenizer: {reason_of(error)}. Get it anew.") from error


def llamagen_to_ours(tensors: Tensors, path: Path) -> dict[str, LazyTensor]:
    """LlamaGen's tensors under our names: its decoder counts levels from the coarsest, and its middle is a list."""
    coarsest = max((int(level) for level in _levels("decoder", tensors)), default=0)
    middle = ("block_1", "attn_1", "block_2")
    ours: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if name == "quantize.codebook_used":  # which codes its training used last
            continue
        if match := re.fullmatch(r"(encoder|decoder)\.conv_blocks\.(\d{1,4})\.(.+)", name):
            side, level, rest = match[1], int(match[2]), match[3]
            place = f"down.{level}" if side == "encoder" else f"up.{coarsest - level}"
            name = f"{side}.{place}.{re.sub(r'^res[.]', 'block.', rest)}"
        elif match := re.fullmatch(r"(encoder|decoder)\.mid\.([012])\.(.+)", name):
            name = f"{match[1]}.mid.{middle[int(match[2])]}.{match[3]}"
        if name in ours:
            raise ValueError(f"{path} holds {name} twice, under names of two programs. Get it anew.")
        ours[name] = tensor
    return ours


def _levels(side: str, tensors: Iterable[str]) -> list[str]:
    matches = (re.match(rf"{side}\.conv_blocks\.(\d{{1,4}})\.", name) for name in tensors)
    return [match[1] for match in matches if match]
