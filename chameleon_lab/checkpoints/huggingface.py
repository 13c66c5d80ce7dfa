"""The layouts of Hugging Face's port: `config.json`, safetensors, and what its tokenizer and processor need.

There are three, with the same names. They differ in the norms of queries and keys, and in the order of the rows of q
and k:

- `huggingface`, that of every release of transformers since the first with a Chameleon, 4.43: a norm for each head;
  rows in halves
- `lumina`, that of Lumina-mGPT: a norm for each shard of the training; rows in halves
- `anole`, that of Anole's copy from before: one norm for all heads; rows in adjacent pairs, as Meta's

The image tokenizer stands under `model.vqmodel.`, and its picture decoder with it wherever there is one, though the
port itself has no use for it. `ChameleonVQVAE.save_pretrained` writes an image tokenizer alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from chameleon_lab.checkpoints import names
from chameleon_lab.checkpoints.companion import read_companion, write_foreign
from chameleon_lab.checkpoints.evidence import Claim, packed_kind, packed_kind_of, plain_config, unpack_advice
from chameleon_lab.checkpoints.opened import Opened, ReadOptions, require_blocks
from chameleon_lab.checkpoints.tensors import (
    MAIN_INDEX,
    LazyTensor,
    Tensors,
    fill,
    open_safetensors,
    read_index,
    visible_files,
    write_safetensors,
)
from chameleon_lab.checkpoints.text_files import (
    IMAGE,
    TABLES,
    image_placeholder,
    names_of,
    read_text,
    write_text_tokenizer,
)
from chameleon_lab.checkpoints.torch_files import open_torch
from chameleon_lab.files import absence, read_table, reason_of
from chameleon_lab.outlines import outline
from chameleon_lab.parts import plain_number
from chameleon_lab.tokenizers.image import CHAMELEON_IMAGES, ImageTokenizer, ImageTokenizerConfig
from chameleon_lab.transformer import ModelConfig
from chameleon_lab.vocabulary import LUMINA, Vocabulary

log = logging.getLogger(__name__)

DIALECTS = ("huggingface", "lumina", "anole")
ANOLE = "ChameleonForCausalLM"
VQ = "model.vqmodel."


@dataclass(frozen=True)
class HuggingFace:
    """One dialect of the port, as a `Format`: see `formats.Format`.

    A `stated` dialect is taken at the user's word, any other is asked of the folder's norms. `grids`: whether images
    have grids of their own (Lumina-mGPT's tokens); None: what the folder itself says.
    """

    name: str
    stated: bool = False
    grids: bool | None = None

    def claim(self, folder: Path) -> Claim:
        """The port's config and weights. A dialect that is not stated claims only what its norms say; what nobody can
        tell falls to the first."""
        claim = port_claim(folder)
        if self.stated or not claim:
            return claim
        first = self.name == DIALECTS[0]
        if not claim.whole or claim.fault:
            return claim if first else Claim()
        try:
            dialect = dialect_of(folder)
        except ValueError as error:
            return replace(claim, fault=error) if first else Claim()
        return claim if dialect == self.name else Claim()

    def open(self, place: Path, tokenizers: tuple[Path, ...], options: ReadOptions) -> Opened:
        companion, plain = read_companion(place), read_config(place)
        config, tensors = read_port(place, self.name)
        table = plain.get("vocabulary_map")
        text, vocabulary = read_text(tokenizers, config.vocabulary, companion, place, table, options.tokenizer)
        config, tensors = names.without_padding(config, tensors, vocabulary.size)
        grids = self.grids
        if grids is None and self.name == "lumina":
            grids = vocabulary.largest_side or any("XLLMX" in each for each in plain.get("architectures") or [])
        if grids is not None and not grids:
            vocabulary = replace(vocabulary, new_line=None, first_grid=None)
        elif grids and not vocabulary.largest_side and vocabulary.size == LUMINA.size:
            vocabulary = replace(vocabulary, new_line=LUMINA.new_line, first_grid=LUMINA.first_grid)
        return companion.opened(config, tensors, (text, vocabulary), (place, self.name), options)

    def image_tokenizer(self, folder: Path, options: ReadOptions) -> ImageTokenizer | None:
        if not (port_claim(folder).whole and names.image_to_ours(open_weights(folder))):
            return None
        return read_port_images(folder, dtype=options.dtype, device=options.device)

    def write(self, opened: Opened, folder: Path, shards: int | None) -> None:
        def write_files(whole: Path) -> None:
            tokenizer, vocabulary = opened.tokenizer, opened.tokenizer.vocabulary
            if tokenizer.can_read:
                image, images = tokenizer.image.config, names.image_weights(tokenizer.image)
            else:
                log.warning("The folder gets no image tokenizer: transformers will draw one at random, for text only.")
                image, images = smallest_image_config(vocabulary.codes, tokenizer.grid), {}
            text = tokenizer.text if tokenizer.can_spell else None
            about = {
                "vq_config": port_image_config(image, self.name),
                "vocabulary_map": names_of(vocabulary, text, placeholder=True),
            }
            write_port(opened.tensors, opened.config, images, whole, self.name, about)
            written = text is not None and write_text_tokenizer(text, vocabulary, whole, TABLES[1])
            write_settings(vocabulary, image, written, whole)

        write_foreign(opened, folder, self.name, write_files)


# Reading

_BIN = re.compile(r"pytorch_model(-\d+-of-(\d+))?\.bin")
_OF_A_PORT = re.compile(
    r"((_orig_mod|module|_fsdp_wrapped_module|base_model\.model|model(?=\.(model|lm_head)))\.)*"
    r"(model\.((_orig_mod|_fsdp_wrapped_module)\.)*(layers|embed_tokens|norm|vqmodel)\.|lm_head\.|"
    r"(encoder|decoder|quantize|quant_conv|post_quant_conv)\.)"
)
"""How the names of a port's tensors begin, whatever wraps them."""


def port_claim(folder: Path) -> Claim:
    """What a folder has of Hugging Face's layout, its dialect apart."""
    plain = plain_config(folder)
    kind = str(plain.get("model_type", ""))
    keys = {"num_attention_heads", "num_embeddings", "vq_config"} & plain.keys()
    config = ("config.json" + f" of model_type {kind!r}" * bool(kind)) if keys or kind.startswith("chameleon") else ""
    files = [file.name for file in visible_files(folder) if not file.name.startswith("adapter_")]
    weights = next((name for name in files if name.endswith((".safetensors", MAIN_INDEX))), "")
    weights = weights or next((name for name in files if _BIN.fullmatch(name) or name == BIN_INDEX), "")
    if not config or plain.get("format") == "chameleon-lab":
        return Claim()
    weights = weights or next((file.name for file in _other_torch_files(folder)), "")
    packed = packed_kind(plain)
    return Claim(config, weights, (folder,), fault=ValueError(unpack_advice(folder, packed)) if packed else None)


BIN_INDEX = "pytorch_model.bin.index.json"
_TRANSFORMERS = re.compile(r"model\.(layers|embed_tokens)\.")


def _other_torch_files(folder: Path) -> list[Path]:
    """The files of torch's of any other name, as other trainings leave them, that hold a transformer of the port's."""
    holders: list[Path] = []
    for file in visible_files(folder):
        if file.suffix in (".bin", ".pt", ".pth", ".ckpt") and not file.name.startswith(("consolidated", "adapter_")):
            with contextlib.suppress(ValueError):  # what is no weights file is another's
                holders += [file] * any(map(_TRANSFORMERS.match, names.without_wrappers(open_torch(file))))
    return holders


def open_weights(folder: Path) -> dict[str, LazyTensor]:
    """The tensors of a folder as Hugging Face's programs leave them: safetensors, or else `pytorch_model.bin`, whole or
    in shards, which torch's safe reader reads. Names are without what torch's wrappers put before them."""
    files = visible_files(folder)
    pickled = {file.name: file for file in files if _BIN.fullmatch(file.name)}
    index = folder / BIN_INDEX
    safe = [file for file in files if file.suffix == ".safetensors" and not file.name.startswith("adapter_")]
    others = [] if safe or pickled or index.is_file() else [file.name for file in _other_torch_files(folder)]
    if len(others) > 1:
        raise ValueError(f"{folder} holds several models, {', '.join(others)}: keep the one you mean.")
    if safe or not (pickled or index.is_file() or others):
        opened = open_safetensors(folder, belongs=lambda name: bool(_OF_A_PORT.match(name)))
        return _require_unpacked(names.without_wrappers(opened), folder)
    if others:
        listed = others
    elif index.is_file():
        listed = sorted(set(read_index(index).values()))
    else:
        listed = ["pytorch_model.bin"] if "pytorch_model.bin" in pickled else sorted(pickled)
        counts = {match[2] for name in listed if (match := _BIN.fullmatch(name)) and match[2]}
        if counts and counts != {f"{len(listed):05d}"}:
            raise ValueError(
                f"The checkpoint is incomplete: {folder} holds {len(listed)} of the {int(max(counts))} shards that "
                f"{listed[0]} is one of. Get the others."
            )
    tensors: dict[str, LazyTensor] = {}
    for name in listed:
        tensors |= open_torch(folder / name)
    return _require_unpacked(names.without_wrappers(tensors), folder)


def _require_unpacked(tensors: dict[str, LazyTensor], folder: Path) -> dict[str, LazyTensor]:
    """The tensors, or ValueError for those that a program packed whose config does not say so."""
    if kind := packed_kind_of(tensors):
        raise ValueError(unpack_advice(folder, kind))
    if adapter := next((name for name in tensors if ".lora_A." in name), None):
        raise ValueError(
            f"{folder} holds a model with an adapter that is not merged into it ({adapter}): merge it with PEFT's "
            "merge_and_unload, and save that."
        )
    return tensors


def read_config(folder: Path) -> dict[str, Any]:
    """Raises FileNotFoundError where there is no `config.json`, ValueError where it is damaged."""
    path = folder / "config.json"
    if fault := absence(path):
        there = f"its config.json {fault}" if folder.is_dir() else "it does not exist"
        raise FileNotFoundError(f"{folder} is no folder of Hugging Face's Chameleon: {there}.")
    plain = read_table(path, remedy="The folder is damaged; get or save it anew.")
    for key, kind in (
        ("architectures", list),
        ("vq_config", dict),
        ("rope_parameters", dict),
        ("vocabulary_map", dict),
    ):
        if plain.get(key) is not None and not isinstance(plain[key], kind):
            raise ValueError(f"{path} is damaged: {key} must be a {kind.__name__}, not {str(plain[key])[:40]!r}.")
    return plain


def read_port(folder: Path, dialect: str) -> tuple[ModelConfig, dict[str, LazyTensor]]:
    """The config of a folder and, under our names, its transformer's tensors. Raises ValueError for settings that no
    Chameleon has."""
    plain = read_config(folder)
    config = model_config(plain, folder / "config.json")
    theirs = _transformer(folder)
    if config.tied:
        theirs.pop("lm_head.weight", None)
    parts = names.rename(theirs, "theirs", "ours")
    if dialect != "anole":
        parts = names.to_pairs(parts, config.head_width)
    likely = 1 if dialect == "anole" else plain.get("model_parallel_size") or 1
    groups = names.fewest_groups(parts, config, likely)
    config = names.with_fixes(config, groups, bool(plain.get("swin_norm", False)))
    return config, names.fuse(parts, config)


def _transformer(folder: Path) -> dict[str, LazyTensor]:
    """What is the transformer's of a folder's tensors, under their names."""
    return {
        name: tensor
        for name, tensor in open_weights(folder).items()
        if not name.startswith(VQ) and not name.endswith("rotary_emb.inv_freq")
    }


def dialect_of(folder: Path) -> str:
    """Which of the three a folder holds: by the shape of the first norms, and by whose class the config names."""
    plain = read_config(folder)
    config, tensors = model_config(plain, folder / "config.json"), _transformer(folder)
    how = "Say which it is: Chameleon.load(folder, layout=...), one of 'huggingface', 'lumina' and 'anole'."
    norms = [
        next((tensor for name, tensor in tensors.items() if name.endswith(f".self_attn.{letter}_norm.weight")), None)
        for letter in "qk"
    ]
    if norms[0] is None or norms[1] is None:
        if plain.get("model_type", "chameleon") == "chameleon":
            problem = "Half of a model? Get or save the folder anew."
        else:
            problem = f"It is a {str(plain['model_type'])[:40]!r}, and no Chameleon."
        raise ValueError(
            f"{folder} holds no model.layers.*.self_attn.q_norm.weight and k_norm.weight, which every dialect of this "
            f"layout has. {problem}"
        )
    query, key = norms[0].shape, norms[1].shape
    shards = plain.get("model_parallel_size") or 1
    by_anole = ANOLE in (plain.get("architectures") or [])
    if len(query) == 1 == len(key):
        return "anole"
    rows = (query[0], key[0])
    if by_anole and rows == (1, 1):
        raise ValueError(
            f"{folder} is ambiguous: its norms, {query}, are of Lumina-mGPT's layout, where rows of q and k are "
            f"in halves, and its class, {ANOLE}, is Anole's, where they are in pairs. {how}"
        )
    if rows == (config.heads, config.kv_heads):
        return "huggingface"
    if rows == (shards, shards):
        return "lumina"
    raise ValueError(
        f"{folder} has norms of {rows[0]} and {rows[1]} rows for {config.heads} query and {config.kv_heads} key heads "
        f"and model_parallel_size {shards}: no known dialect has that. {how}"
    )


def model_config(plain: dict[str, Any], where: Path | str = "config.json") -> ModelConfig:
    """Our config of theirs, its norms apart. Raises ValueError for settings that no Chameleon has."""
    rope = plain.get("rope_parameters") or {}
    scaling = plain.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
    strange = {
        "attention_bias": plain.get("attention_bias", False),
        "mlp_bias": plain.get("mlp_bias", False),
        "hidden_act": plain.get("hidden_act", "silu") != "silu" and plain["hidden_act"],
        "rope_scaling": scaling,
    }
    settings = ", ".join(f"{name} = {value!r}" for name, value in strange.items() if value)
    if settings:
        raise ValueError(f"{where} sets {settings}: no Chameleon has that, and the lab cannot build it.")
    try:
        heads = plain["num_attention_heads"]
        return ModelConfig(
            vocabulary=plain["vocab_size"],
            width=plain["hidden_size"],
            layers=plain["num_hidden_layers"],
            heads=heads,
            kv_heads=plain.get("num_key_value_heads") or heads,
            head_width=plain["hidden_size"] // heads,
            ffn_width=plain["intermediate_size"],
            context=plain.get("max_position_embeddings", 4096),
            rope_theta=plain_number(rope.get("rope_theta") or plain.get("rope_theta") or 10_000.0, "rope_theta"),
            norm_eps=plain.get("rms_norm_eps", 1e-5),
            tied=plain.get("tie_word_embeddings") or False,
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"{where} does not describe a Chameleon: {reason_of(error)}. Get or save the folder anew."
        ) from error


def read_port_images(
    folder: Path | str, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> ImageTokenizer:
    """The image tokenizer of a folder, by default on the CPU in the dtypes of its files.

    Where the files hold no picture decoder, it encodes, and `decode` says what is missing. Raises FileNotFoundError
    for a folder that is none of theirs, ValueError for one damaged, at odds with itself, or of another architecture.
    """
    folder = Path(folder)
    config = image_tokenizer_config(read_config(folder), folder / "config.json")
    tensors = names.image_to_ours(open_weights(folder))
    if not tensors:
        raise ValueError(f"{folder} holds no image tokenizer: none of its tensors is called {VQ}* or encoder.*.")
    require_blocks(config, tensors, folder)
    with outline():
        tokenizer = ImageTokenizer(config, str(folder))
    if not any(name.startswith("decoder.") for name in tensors):
        tokenizer.decoder = None
    fill(tokenizer, tensors, folder, dtype=dtype, device=device)
    return tokenizer.eval()


def image_tokenizer_config(plain: dict[str, Any], where: Path | str = "config.json") -> ImageTokenizerConfig:
    """Our config of theirs. Raises ValueError for settings that no released Chameleon has."""
    plain = plain.get("vq_config") or plain
    former = {"latent_channels": "z_channels", "double_latent": "double_z"}  # Anole's words
    plain = {name: plain[old] for name, old in former.items() if old in plain} | plain
    if str(plain.get("model_type", "")).startswith("chameleon"):  # transformers leaves out what is as published
        plain = port_image_config(CHAMELEON_IMAGES) | plain
    try:
        base = plain["base_channels"]
        config = ImageTokenizerConfig(
            side=plain["resolution"],
            codes=plain["num_embeddings"],
            code_width=plain["embed_dim"],
            widths=tuple(base * multiplier for multiplier in plain["channel_multiplier"]),
            latent_width=plain["latent_channels"],
            blocks=plain["num_res_blocks"],
            middle=True,
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"{where} does not describe a Chameleon image tokenizer: {error}. Give the folder that "
            "ChameleonVQVAE.save_pretrained wrote, or a whole model's."
        ) from error
    strange = {
        "double_latent": plain.get("double_latent", False),
        "attn_resolutions": plain.get("attn_resolutions") or False,
        "attn_type": plain.get("attn_type", "vanilla") != "vanilla" and plain["attn_type"],
        "in_channels": plain.get("in_channels", 3) != 3 and plain["in_channels"],
    }
    settings = ", ".join(f"{name} = {value!r}" for name, value in strange.items() if value)
    if settings:
        raise ValueError(
            f"{where} sets {settings}: no Chameleon image tokenizer has that, and the lab cannot build it."
        )
    return config


# Writing


def write_port(
    tensors: Tensors, config: ModelConfig, images: Tensors, folder: Path, dialect: str, about: dict[str, Any]
) -> None:
    """Writes `config.json` and the weights of the transformer and, under `model.vqmodel.`, of the image tokenizer.

    `about` joins the config: the image tokenizer and the vocabulary. Raises ValueError where the dialect has no room
    for the norms.
    """
    parts = names.parts_of(tensors, config)
    if config.tied:
        del parts["head.weight"]
    if dialect != "anole":
        parts = names.to_halves(parts, config.head_width)
    groups = norm_rows(config, dialect)
    for name, tensor in parts.items():
        if "_norm." in name and ".attention." in name:
            heads, rows = (config.heads, groups[0]) if ".query_norm." in name else (config.kv_heads, groups[1])
            grouped = names.regroup(tensor, rows, heads, name)
            flat = dialect == "anole"
            parts[name] = names.map_tensor(grouped, lambda x_GK: x_GK[0], grouped.shape[1:]) if flat else grouped
    theirs = names.rename(parts, "ours", "theirs")
    plain = (
        _plain_port(config, dialect, shards=names.norm_groups(config) if dialect == "huggingface" else groups[0])
        | about
    )
    (folder / "config.json").write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n")
    write_safetensors(theirs | {VQ + name: tensor for name, tensor in names.image_to_theirs(images).items()}, folder)


def norm_rows(config: ModelConfig, dialect: str) -> tuple[int, int]:
    """Rows of the norms of queries and of keys."""
    if dialect == "huggingface":
        return config.heads, config.kv_heads
    groups = (names.norm_groups(config) or 1) if dialect == "lumina" else 1
    shards = math.gcd(groups, config.kv_heads)
    return shards, shards


def _plain_port(config: ModelConfig, dialect: str, shards: int | None) -> dict[str, Any]:
    # Lumina-mGPT's class takes the logits of image tokens away unless told not to, and then draws code 0 for ever.
    own = {"huggingface": {}, "lumina": {"mask_image_logits": False}, "anole": {"qk_layernorm": True}}
    return {
        "architectures": [ANOLE if dialect == "anole" else "ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        **own[dialect],
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "initializer_range": 0.02,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "model_parallel_size": shards,
        "swin_norm": names.has_swin_norms(config),
        "tie_word_embeddings": config.tied,
        "bos_token_id": Vocabulary.begin_document,
        "eos_token_id": Vocabulary.end_document,
        "pad_token_id": Vocabulary.pad,
    }


def port_image_config(config: ImageTokenizerConfig, dialect: str = "huggingface") -> dict[str, Any]:
    """Their config of an image tokenizer that their layout can express (see `names.check_image`)."""
    base = math.gcd(*config.widths)
    former = {"z_channels": config.latent_width, "double_z": False}  # as Anole's copy calls them
    return {
        **(former if dialect == "anole" else {}),
        "model_type": "chameleon_vqgan",
        "embed_dim": config.code_width,
        "num_embeddings": config.codes,
        "double_latent": False,
        "latent_channels": config.latent_width,
        "resolution": config.side,
        "in_channels": 3,
        "base_channels": base,
        "channel_multiplier": [width // base for width in config.widths],
        "num_res_blocks": config.blocks,
        "attn_resolutions": None,
        "dropout": 0.0,
        "attn_type": "vanilla",
    }


_PARTS = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE + "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
)

CHAT = "{{ bos_token }}{% for message in messages %}" + _PARTS + "{{ sep_token }}{% endfor %}"
"""How a conversation becomes a text, each turn with its end. Roles are not written: they alternate."""

END = "<end of turn>"
CHAT_OF_PROCESSOR = (
    "{% for message in messages %}" + _PARTS + "{% if not loop.last %}{{ '" + END + "' }}{% endif %}{% endfor %}"
)
"""The same for the port's processor, which puts the begin and the last end of turn there itself. No release of it takes
a template from a folder, so that a person has to hand it over: see docs/weights.md."""


def write_settings(vocabulary: Vocabulary, image: ImageTokenizerConfig, tokenizer: bool, folder: Path) -> None:
    """Writes what generation, tokenizer and processor are told: ids and names that begin, end and separate."""
    generation = {
        "bos_token_id": vocabulary.begin_document,
        "eos_token_id": [vocabulary.end_document, vocabulary.end_turn],
        "pad_token_id": vocabulary.pad,
    }
    files: dict[str, dict[str, Any]] = {"generation_config.json": generation}
    side = {"height": image.side, "width": image.side}
    files["preprocessor_config.json"] = {
        "image_processor_type": "ChameleonImageProcessor",
        "processor_class": "ChameleonProcessor",
        "do_resize": True,
        "size": {"shortest_edge": image.side},
        "resample": 1,
        "do_center_crop": True,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 0.0078,
        "do_normalize": True,
        "image_mean": [1.0, 1.0, 1.0],
        "image_std": [1.0, 1.0, 1.0],
        "do_convert_rgb": True,
    }
    if tokenizer:
        placeholder = image_placeholder(vocabulary)
        special = {
            "bos_token": vocabulary.spelling(vocabulary.begin_document),
            "eos_token": vocabulary.spelling(vocabulary.end_document),
            "pad_token": vocabulary.spelling(vocabulary.pad),
            "unk_token": vocabulary.spelling(vocabulary.unknown),
            "sep_token": vocabulary.spelling(vocabulary.end_turn),
            "boi_token": vocabulary.spelling(vocabulary.begin_image),
            "eoi_token": vocabulary.spelling(vocabulary.end_image),
        }
        if placeholder is not None:
            special["image_token"] = IMAGE
        else:
            log.warning("No reserved token is free to stand for pictures: transformers takes this model's as ids only.")
        files["tokenizer_config.json"] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "processor_class": "ChameleonProcessor",
            "chat_template": [
                {"name": "default", "template": CHAT},
                {"name": "processor", "template": CHAT_OF_PROCESSOR.replace(END, special["sep_token"])},
            ],
            **special,
        }
        rows, columns = image.grid
        files["processor_config.json"] = {
            "processor_class": "ChameleonProcessor",
            "image_seq_length": rows * columns,
            "image_token": IMAGE,
        }
    for name, plain in files.items():
        (folder / name).write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def smallest_image_config(codes: int, grid: tuple[int, int]) -> ImageTokenizerConfig:
    """What stands in a config whose folder has no image tokenizer: as many codes, and next to nothing to compute."""
    return ImageTokenizerConfig(side=max(grid), codes=codes, code_width=1, widths=(32,), latent_width=1, blocks=1)
