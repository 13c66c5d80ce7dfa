"""The layouts of Hugging Face's port. Here so far: the image tokenizer.

`ChameleonVQVAE.save_pretrained` writes an encoder and a codebook without a picture decoder; a whole Chameleon carries
the same under `model.vqmodel.`; Anole's copy adds the decoder. All three are read, in safetensors only.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from chameleon_lab.checkpoints.native import fill
from chameleon_lab.tokenizers.image import ImageTokenizer, ImageTokenizerConfig, NoDecoder

NAMES = re.compile(r"(?:(?:model\.)?vqmodel\.)?((?:encoder|decoder|quantize|quant_conv|post_quant_conv)\..+)")


def load_image_tokenizer(folder: Path | str) -> ImageTokenizer:
    """The image tokenizer of a folder, on the CPU, in the dtypes of its files.

    Where the files hold no picture decoder, it encodes, and `decode` says what is missing. Raises FileNotFoundError
    for a folder that is none of theirs, ValueError for one damaged, at odds with itself, or of another architecture.
    """
    folder = Path(folder)
    config = image_tokenizer_config(_read_config(folder), folder / "config.json")
    tensors = _image_tensors(folder)
    with torch.device("meta"):
        tokenizer = ImageTokenizer(config)
    if not any(name.startswith("decoder.") for name in tensors):
        tokenizer.decoder = NoDecoder(str(folder))
    fill(tokenizer, tensors, folder)
    return tokenizer.eval()


def image_tokenizer_config(plain: dict[str, Any], where: Path | str = "config.json") -> ImageTokenizerConfig:
    """Our config of theirs. Raises ValueError for settings that no released Chameleon has."""
    plain = plain.get("vq_config", plain)
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
    except (KeyError, TypeError) as error:
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
    told = ", ".join(f"{name} = {value!r}" for name, value in strange.items() if value)
    if told:
        raise ValueError(f"{where} sets {told}: no Chameleon image tokenizer has that, and the lab cannot build it.")
    return config


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        there = "holds no config.json" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"{folder} is no folder of Hugging Face's Chameleon: it {there}.")
    try:
        plain = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. The folder is damaged; get or save it anew.") from error
    return plain if isinstance(plain, dict) else {}


def _image_tensors(folder: Path) -> dict[str, Tensor]:
    """The image tokenizer's tensors under our names, whatever files and prefix they stand in."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise ValueError(
            f"{folder} holds no safetensors file{', only pickles, which are not opened' if pickled else ''}: "
            "save the model with safe_serialization."
        )
    found: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in list(file.keys()):
                    if ours := NAMES.fullmatch(name):
                        found[our_name(ours[1])] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}. Get or save it anew.") from error
    return found


def our_name(name: str) -> str:
    """Theirs and Meta's `downsample` and `upsample` are one slot here."""
    return name.replace(".downsample.", ".resample.").replace(".upsample.", ".resample.")
