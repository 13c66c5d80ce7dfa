"""Meta's own layout: `consolidated.pth`, or one file a shard, and beside or above it the folder of tokenizers.

```
params.json                what the training was told; what counts for the model may stand under "model"
consolidate_params.json    model_parallel_size: how many shards
consolidated.pth           or consolidated.00.pth, consolidated.01.pth, ...
tokenizer/                 text_tokenizer.json, vqgan.yaml, vqgan.ckpt; in the download tree ../../tokenizer
checklist.chk              md5 sums
```
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from chameleon_lab.checkpoints import names
from chameleon_lab.checkpoints.companion import read_companion, write_foreign
from chameleon_lab.checkpoints.evidence import Claim, subfolders
from chameleon_lab.checkpoints.opened import Opened, ReadOptions, require_blocks
from chameleon_lab.checkpoints.tensors import LazyTensor, Tensors, fill, lazy, visible_files
from chameleon_lab.checkpoints.text_files import read_text, write_text_tokenizer
from chameleon_lab.checkpoints.torch_files import open_torch, write_torch
from chameleon_lab.checkpoints.vqgans import read_yaml_config
from chameleon_lab.files import absence, read_table, reason_of
from chameleon_lab.outlines import outline
from chameleon_lab.parts import plain_number
from chameleon_lab.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from chameleon_lab.transformer import ModelConfig

PARAMS, SHARDS = "params.json", "consolidate_params.json"
TOKENIZER_FILES = ("text_tokenizer.json", "vqgan.yaml", "vqgan.ckpt")
CONTEXT = 4096

_FILE = re.compile(r"consolidated(?:\.(\d\d))?\.pth")


@dataclass(frozen=True)
class Meta:
    """Meta's `Format`: see `formats.Format`."""

    name: str = "meta"

    def claim(self, folder: Path) -> Claim:
        """The folder itself, or the one model that its place in the download tree leads to: the only whole one, or the
        only one at all."""
        inside = _claim_of(folder)
        claims = {folder: inside} if inside else {}
        if not inside.whole:
            roots = [folder, folder / "models"]
            if any((folder / name).is_file() for name in TOKENIZER_FILES):
                roots += [folder.parent / "models", folder.parent]
            places = {
                place for root in roots if root.is_dir() for place in (root, *subfolders(root)) if place != folder
            }
            around = {place: each for place in sorted(places) if (each := _claim_of(place))}
            whole = {place: each for place, each in around.items() if each.whole}
            claims = whole or claims or around
        if not claims:
            return Claim()
        fault = None
        if len(claims) > 1:
            fault = ValueError(
                f"{folder} leads to several models: {', '.join(map(str, claims))}. Give the folder of the one you mean."
            )
        model, claim = next(iter(claims.items()))
        places = (model, *(root / "tokenizer" for root in (model, model.parent, model.parent.parent)))
        return replace(claim, places=places, inside=model == folder, fault=fault)

    def open(self, place: Path, tokenizers: tuple[Path, ...], options: ReadOptions) -> Opened:
        companion = read_companion(place)
        config, tensors = read_meta(place, companion.groups)
        text = read_text(tokenizers, config.vocabulary, companion, place, chosen=options.tokenizer)
        config, tensors = names.without_padding(config, tensors, text[1].size)
        return companion.opened(config, tensors, text, (place, self.name), options)

    def image_tokenizer(self, folder: Path, options: ReadOptions) -> ImageTokenizer | None:
        if not any((folder / name).is_file() for name in ("vqgan.ckpt", "vqgan.yaml")):
            return None
        yaml_path = folder / "vqgan.yaml"
        if fault := absence(yaml_path):
            raise ValueError(f"The image tokenizer is incomplete: {yaml_path} {fault}.")
        tensors = read_image_tensors(folder / "vqgan.ckpt")
        config = read_yaml_config(yaml_path, "quantize.proj.weight" in tensors)
        require_blocks(config, tensors, folder, "vqgan.yaml")
        with outline():
            image = ImageTokenizer(config, str(folder))
        if not any(name.startswith("decoder.") for name in tensors):
            image.decoder = None
        fill(image, tensors, folder / "vqgan.ckpt", dtype=options.dtype, device=options.device, config="vqgan.yaml")
        return image.eval()

    def write(self, opened: Opened, folder: Path, shards: int | None) -> None:
        def write_files(whole: Path) -> None:
            tokenizer, inside = opened.tokenizer, whole / "tokenizer"
            inside.mkdir()
            write_meta(opened.tensors, opened.config, whole, shards or names.norm_groups(opened.config) or 1)
            if tokenizer.can_spell:
                write_text_tokenizer(tokenizer.text, tokenizer.vocabulary, inside, "text_tokenizer.json")
            if tokenizer.can_read:
                write_vqgan(tokenizer.image, inside)
            for each in (whole, inside):
                write_checklist(each)

        write_foreign(opened, folder, self.name, write_files)


def _claim_of(folder: Path) -> Claim:
    """What a folder itself has of Meta's layout."""
    config = PARAMS if (folder / PARAMS).is_file() else ""
    weights = [file.name for file in visible_files(folder) if _FILE.fullmatch(file.name)]
    return Claim(config, weights[0] if weights else "")


def weight_files(folder: Path) -> list[Path]:
    """`consolidated.pth`, or the shards in order. Raises ValueError where some are missing or both are there."""
    files = [file for file in visible_files(folder) if _FILE.fullmatch(file.name)]
    numbers = [match[1] for file in files if (match := _FILE.fullmatch(file.name))]
    if len(numbers) > 1 and numbers != [f"{place:02d}" for place in range(len(numbers))]:
        raise ValueError(
            f"{folder} holds {', '.join(file.name for file in files)}: shards must be numbered from 00 without a gap, "
            "and consolidated.pth stands alone. Get the missing files, or take away those of another model."
        )
    if not files:
        raise ValueError(f"The checkpoint is incomplete: {folder} holds no consolidated.pth.")
    return files


def read_meta(folder: Path, groups: int | None = None) -> tuple[ModelConfig, dict[str, LazyTensor]]:
    """The config of a folder and, under our names, its tensors.

    `groups` of heads with a norm of their own are as few as the shards' norms allow, or so many, if they allow it.
    """
    files = weight_files(folder)
    params = _params(folder)
    config = _config(params, folder)
    stated = params.get("model_parallel_size") or len(files)
    if stated != len(files):
        raise ValueError(f"{folder} holds {len(files)} shards, and its {SHARDS} speaks of {stated}. Get all of them.")
    names.check_shards(config, len(files))
    opened = [names.without_wrappers(open_torch(file)) for file in files]
    _check_all_there(opened, config, folder)
    shards = [names.rename(_without_fusion(shard, config, len(files)), "meta", "ours") for shard in opened]
    for shard in shards:
        shard.pop("rope.freqs", None)
    parts = names.merge(shards)
    groups = names.fewest_groups(parts, config, groups or 1) if params.get("qk_normalization", False) else None
    config = names.with_fixes(config, groups, bool(params.get("swin_norm", False)))
    return config, names.fuse(parts, config)


def _check_all_there(shards: list[dict[str, LazyTensor]], config: ModelConfig, folder: Path) -> None:
    """Raises ValueError for shards whose embedding is too narrow: others of the model are not there."""
    embedding = shards[0].get("tok_embeddings.weight")
    columns = embedding.shape[-1] if embedding is not None else config.width
    if columns and columns * len(shards) < config.width and config.width % columns == 0:
        raise ValueError(
            f"The checkpoint is incomplete: {folder} holds {len(shards)} of the {config.width // columns} shards that "
            "its params.json and the shapes speak of. Get the others."
        )


def _params(folder: Path) -> dict[str, Any]:
    params = _json(folder / PARAMS)
    inner = params.get("model", {})
    if not isinstance(inner, dict):
        raise ValueError(f'{folder / PARAMS} is damaged: "model" is {inner!r}.')
    shards = _json(folder / SHARDS) if (folder / SHARDS).is_file() else {}
    return {**params, **inner, **shards}


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_table(path, remedy="Get the checkpoint anew.")
    except FileNotFoundError as error:
        raise ValueError(f"The checkpoint is incomplete: {path} is missing.") from error


def _config(params: dict[str, Any], folder: Path) -> ModelConfig:
    size = params.get("vocab_size", -1)
    if size == -1:  # the head knows
        size = sum(_head_rows(file, "output.weight") for file in weight_files(folder))
    try:
        width, heads = params["dim"], params["n_heads"]
        theta = plain_number(params.get("rope_theta", 10_000.0), "rope_theta")
        return ModelConfig(
            vocabulary=size,
            width=width,
            layers=params["n_layers"],
            heads=heads,
            kv_heads=params.get("n_kv_heads") or heads,
            head_width=width // heads,
            ffn_width=ffn_width(width, params.get("multiple_of", 256), params.get("ffn_dim_multiplier")),
            context=params.get("max_seq_len") or (CONTEXT if theta <= 10_000 else 4 * CONTEXT),
            rope_theta=theta,
            norm_eps=params.get("norm_eps", 1e-5),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{folder / PARAMS} is damaged or lacks a setting: {reason_of(error)}.") from error


def _head_rows(file: Path, name: str) -> int:
    tensors = names.without_wrappers(open_torch(file))
    if name not in tensors:
        raise ValueError(f"{file} holds no {name}: it is no language model of Meta's layout.")
    return tensors[name].shape[0]


def ffn_width(width: int, multiple_of: int = 256, multiplier: float | None = None) -> int:
    """Two thirds of four widths, times the multiplier, up to a multiple."""
    hidden = int(2 * (4 * width) / 3)
    if multiplier is not None:
        hidden = int(multiplier * hidden)
    return multiple_of * math.ceil(hidden / multiple_of)


def _without_fusion(shard: Tensors, config: ModelConfig, count: int) -> dict[str, LazyTensor]:
    """A shard in which q, k, v and gate, up stand by themselves, whichever way its file has them."""
    heads, keys = config.heads * config.head_width // count, config.kv_heads * config.head_width // count
    rows = {
        "attention.wqkv.weight": (("wq", "wk", "wv"), (heads, keys, keys)),
        "feed_forward.w13.weight": (("w1", "w3"), (config.ffn_width // count,) * 2),
    }
    parts: dict[str, LazyTensor] = {}
    for name, tensor in shard.items():
        fused = next((fused for fused in rows if name.endswith(fused)), None)
        if fused is None:
            parts[name] = tensor
        else:
            leaves, sizes = rows[fused]
            owner = name.rsplit(".", 2)[0]
            pieces = names.split_tensor(tensor, sizes, 0)
            parts |= {f"{owner}.{leaf}.weight": piece for leaf, piece in zip(leaves, pieces, strict=True)}
    return parts


# The image tokenizer


def read_image_tensors(path: Path) -> dict[str, LazyTensor]:
    """A `vqgan.ckpt`'s tensors under our names, without those of the losses that it was trained with."""
    return names.image_to_ours(names.without_wrappers(open_torch(path)))


def _image_yaml(config: ImageTokenizerConfig) -> str:
    base = math.gcd(*config.widths)
    plain = {
        "model": {
            "target": "taming.models.vqgan.VQModel",
            "params": {
                "embed_dim": config.code_width,
                "n_embed": config.codes,
                "ddconfig": {
                    "double_z": False,
                    "z_channels": config.latent_width,
                    "resolution": config.side,
                    "in_channels": 3,
                    "out_ch": 3,
                    "ch": base,
                    "ch_mult": [width // base for width in config.widths],
                    "num_res_blocks": config.blocks,
                    "attn_resolutions": [],
                    "dropout": 0.0,
                },
                "lossconfig": {"target": "torch.nn.Identity"},  # loaders delete it, and so want it to be there
                "ckpt_path": "vqgan.ckpt",
            },
        }
    }
    return yaml.safe_dump(plain, sort_keys=False)


# Writing


def write_meta(tensors: Tensors, config: ModelConfig, folder: Path, shards: int) -> None:
    """Writes `params.json`, `consolidate_params.json` and the shards. Errors: see `names.shard`."""
    cut = names.shard(names.parts_of(tensors, config), config, shards)
    (folder / PARAMS).write_text(json.dumps(_plain_params(config), indent=2) + "\n")
    (folder / SHARDS).write_text(json.dumps({"model_parallel_size": shards}) + "\n")
    pairs = torch.arange(0, config.head_width, 2).float()
    freqs = config.rope_theta ** (-pairs / config.head_width)  # loaders insist that it is there, and do not use it
    for place, shard in enumerate(cut):
        name = "consolidated.pth" if shards == 1 else f"consolidated.{place:02d}.pth"
        write_torch(names.rename(shard, "ours", "meta") | {"rope.freqs": lazy(freqs)}, folder / name)


def _plain_params(config: ModelConfig) -> dict[str, Any]:
    """The settings of a config. `n_kv_heads` equal to all heads and a null `ffn_dim_multiplier` are left out: the
    converters of Hugging Face and Anole take the first for fewer heads, and multiply by the second."""
    multiple_of, multiplier = _ffn_rule(config)
    model = {
        "dim": config.width,
        "n_layers": config.layers,
        "n_heads": config.heads,
        **({"n_kv_heads": config.kv_heads} if config.kv_heads != config.heads else {}),
        "vocab_size": config.vocabulary,
        "multiple_of": multiple_of,
        **({"ffn_dim_multiplier": multiplier} if multiplier is not None else {}),
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "qk_normalization": names.norm_groups(config) is not None,
        "swin_norm": names.has_swin_norms(config),
    }
    return {"max_seq_len": config.context, "model": model}


def _ffn_rule(config: ModelConfig) -> tuple[int, float | None]:
    """What makes the rule give the config's feed-forward width."""
    if ffn_width(config.width) == config.ffn_width:
        return 256, None
    hidden = int(2 * (4 * config.width) / 3)
    return 1, (config.ffn_width + 0.5) / hidden


def write_vqgan(image: ImageTokenizer, folder: Path) -> None:
    """Writes `vqgan.yaml` and `vqgan.ckpt`, whole."""
    (folder / "vqgan.yaml").write_text(_image_yaml(image.config))
    weights = {
        name: tensor.read().contiguous() for name, tensor in names.image_to_theirs(names.image_weights(image)).items()
    }
    torch.save({"state_dict": weights}, folder / "vqgan.ckpt")


def write_checklist(folder: Path) -> None:
    """Writes `checklist.chk`: the md5 sum and name of each file of the folder."""
    lines = []
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        with file.open("rb") as opened:
            lines.append(f"{hashlib.file_digest(opened, 'md5').hexdigest()}  {file.name}\n")
    (folder / "checklist.chk").write_text("".join(lines))
