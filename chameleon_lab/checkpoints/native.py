"""The lab's own format: a folder of `config.json`, safetensors and a sentencepiece model. Nothing in it is a pickle.

```
config.json                format version, model, image tokenizer, vocabulary, generation defaults, card
model.safetensors          the transformer
image_tokenizer.safetensors
text_tokenizer.model       sentencepiece
```
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from chameleon_lab import stability
from chameleon_lab.generation.engine import Settings
from chameleon_lab.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.quantizers import QUANTIZERS, Quantizer
from chameleon_lab.tokenizers.text import ByteTokenizer, SentencePieceTokenizer, TextTokenizer
from chameleon_lab.transformer import Fix, ModelConfig, Transformer
from chameleon_lab.vocabulary import Vocabulary

FORMAT, VERSION = "chameleon-lab", 1

QuantizerClass = Callable[[int, int], Quantizer]


@dataclass
class Parts:
    """What a checkpoint holds: a model, its tokenizer, its generation defaults, and its card (plain values)."""

    model: Transformer
    tokenizer: MixedModalTokenizer
    settings: Settings = field(default_factory=Settings)
    card: dict[str, Any] = field(default_factory=dict)


def write(parts: Parts, folder: Path | str) -> None:
    """Writes a checkpoint: all of it or nothing. A native checkpoint already there is replaced.

    Raises ValueError when the folder holds something else, so that nothing of a user's is overwritten.
    """
    _write_whole(Path(folder), partial(_write_files, parts))


def write_image_tokenizer(tokenizer: ImageTokenizer, folder: Path | str, card: dict[str, Any] | None = None) -> None:
    """Writes an image tokenizer alone: `config.json` and `image_tokenizer.safetensors`, all of it or nothing."""

    def write_files(folder: Path) -> None:
        plain = plain_image_config(tokenizer.config)
        config = {"format": FORMAT, "version": VERSION, "image_tokenizer": plain, "card": card or {}}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        safetensors.torch.save_file(_tensors(tokenizer), folder / "image_tokenizer.safetensors")

    _write_whole(Path(folder), write_files)


def _write_whole(folder: Path, write_files: Callable[[Path], None]) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; save into a new or empty folder.")
    if folder.exists() and any(folder.iterdir()) and not is_native(folder):
        raise ValueError(f"{folder} holds other files; save into a new or empty folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made:
        whole = Path(made) / "whole"
        whole.mkdir()
        write_files(whole)
        if folder.exists():
            for file in whole.iterdir():
                os.replace(file, folder / file.name)
        else:
            shutil.move(whole, folder)


def plain_image_config(config: ImageTokenizerConfig) -> dict[str, Any]:
    """The config as it is saved. Raises ValueError when its quantizer has no name to be found by again."""
    quantizer = config.quantizer if isinstance(config.quantizer, str) else getattr(config.quantizer, "__name__", "")
    if not quantizer.isidentifier():
        raise ValueError(
            f"The quantizer {config.quantizer!r} has no name to be saved under: make it a function or a class."
        )
    return asdict(dataclasses.replace(config, quantizer="vector")) | {"quantizer": quantizer}


def is_native(folder: Path) -> bool:
    """Whether a folder's config is the lab's own."""
    try:
        plain = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(plain, dict) and plain.get("format") == FORMAT


def _write_files(parts: Parts, folder: Path) -> None:
    text = parts.tokenizer.text
    if not isinstance(text, ByteTokenizer | SentencePieceTokenizer):
        raise ValueError(f"A {type(text).__name__} cannot be saved: the format knows sentencepiece and bytes.")
    plain_model = asdict(dataclasses.replace(parts.model.config, fixes=()))
    plain_model["fixes"] = [{"fix": type(fix).__name__, **asdict(fix)} for fix in parts.model.config.fixes]  # pyright: ignore[reportArgumentType]
    config = {
        "format": FORMAT,
        "version": VERSION,
        "model": plain_model,
        "image_tokenizer": plain_image_config(parts.tokenizer.image.config),
        "text_tokenizer": "bytes" if isinstance(text, ByteTokenizer) else "sentencepiece",
        "vocabulary": asdict(parts.tokenizer.vocabulary),
        "generation": asdict(parts.settings),
        "card": parts.card,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    safetensors.torch.save_file(_tensors(parts.model), folder / "model.safetensors")
    safetensors.torch.save_file(_tensors(parts.tokenizer.image), folder / "image_tokenizer.safetensors")
    if isinstance(text, SentencePieceTokenizer):
        (folder / "text_tokenizer.model").write_bytes(text.model)


def write_card(folder: Path | str, card: dict[str, Any]) -> None:
    """Puts another card into a checkpoint, its weights untouched."""
    folder = Path(folder)
    config = _read_config(folder) | {"card": card}
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(partial, folder / "config.json")


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict, a tied tensor only once."""
    kept: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in places or tensor.numel() == 0:
            kept[name] = tensor.contiguous()
            places.add(tensor.data_ptr())
    return kept


def read(folder: Path | str, fixes: Iterable[type] = (), quantizers: Iterable[QuantizerClass] = ()) -> Parts:
    """The checkpoint of a folder, on the CPU, in the dtypes of the file.

    `fixes` and `quantizers` are classes of your own that the checkpoint was trained with. Raises FileNotFoundError for
    a folder that is no checkpoint, ValueError for one that is damaged, of another version, or at odds with itself.
    """
    folder = Path(folder)
    config = _read_config(folder)
    if not {"model", "vocabulary"} & config.keys():
        raise ValueError(f"{folder} holds an image tokenizer alone: read it with native.read_image_tokenizer.")
    with _damage(folder):
        model_config = _model_config(config["model"], fixes)
        vocabulary = Vocabulary(**_tuples(config["vocabulary"]))
        settings = Settings(**config["generation"])
        with torch.device("meta"):
            model = Transformer(model_config)
        text = _text_tokenizer(config["text_tokenizer"], folder / "text_tokenizer.model")
    fill(model, _load(folder / "model.safetensors"), folder / "model.safetensors")
    image = read_image_tokenizer(folder, quantizers)
    return Parts(model.eval(), MixedModalTokenizer(text, image, vocabulary), settings, config.get("card", {}))


def read_image_tokenizer(folder: Path | str, quantizers: Iterable[QuantizerClass] = ()) -> ImageTokenizer:
    """The image tokenizer of a folder that holds one alone, or with a model. `quantizers`, errors: see `read`."""
    folder = Path(folder)
    config = _read_config(folder)
    with _damage(folder):
        image_config = _image_config(config["image_tokenizer"], quantizers)
        with torch.device("meta"):
            image = ImageTokenizer(image_config)
    path = folder / "image_tokenizer.safetensors"
    fill(image, _load(path), path)
    return image.eval()


@contextmanager
def _damage(folder: Path) -> Iterator[None]:
    """What a config at odds with itself raises, as one ValueError that names the file."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'} is damaged: it lacks {error}.") from error
    except (TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{folder / 'config.json'} is damaged: {error}.") from error


def _image_config(plain: dict[str, Any], own: Iterable[QuantizerClass]) -> ImageTokenizerConfig:
    name = plain.get("quantizer")
    found = {quantizer.__name__: quantizer for quantizer in own}.get(str(name), name)
    if isinstance(found, str) and found not in QUANTIZERS and found.isidentifier():
        raise ValueError(
            f"No quantizer is called {found!r}; if it is a class of your own, pass it: quantizers=[{found}]."
        )
    return ImageTokenizerConfig(**_tuples(plain | {"quantizer": found}))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        there = "holds no config.json" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{folder} is no model folder: it {there}. "
            "Give a folder that `lab.save` or `chameleon-lab train` wrote, or 'tiny'."
        )
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}. The checkpoint is damaged; get or save it anew.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe a Chameleon Lab model; its format is not {FORMAT!r}.")
    if config.get("version") != VERSION:
        raise ValueError(
            f"{folder} is of format version {config.get('version')}, and this lab reads version {VERSION}: "
            "use the lab's release that wrote it, or save it anew from there."
        )
    return config


def _model_config(plain: dict[str, Any], own: Iterable[type]) -> ModelConfig:
    known = {**vars(stability), **{fix.__name__: fix for fix in own}}
    fixes: list[Fix] = []
    for entry in plain["fixes"]:
        arguments = {key: value for key, value in entry.items() if key != "fix"}
        found = known.get(entry["fix"])
        if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
            raise ValueError(
                f"This model was trained with a fix {entry['fix']!r} that the lab does not know: "
                f"pass its class, Chameleon.load(folder, fixes=[{entry['fix']}])."
            )
        fixes.append(found(**arguments))  # pyright: ignore[reportArgumentType]
    return ModelConfig(**{**plain, "fixes": tuple(fixes)})


def _text_tokenizer(kind: str, path: Path) -> TextTokenizer:
    if kind == "bytes":
        return ByteTokenizer()
    if kind != "sentencepiece":
        raise ValueError(f"No text tokenizer is called {kind!r}; there are bytes and sentencepiece.")
    try:
        return SentencePieceTokenizer.load(_existing(path))
    except ValueError as error:
        raise ValueError(f"{path} is missing or damaged: {error}") from error


def _tuples(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"The checkpoint is incomplete: {path} is missing.")
    return path


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(_existing(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file: {error}. Get or save the checkpoint anew."
        ) from error


def fill(module: nn.Module, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Puts tensors into a module made on the meta device. Raises ValueError naming what does not fit."""
    expected = module.state_dict()
    tied = module if isinstance(module, Transformer) and module.config.tied else None
    if tied:
        del expected["head.weight"]
    missing, strange = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    misshapen = [
        f"{name} {_shape(tensors[name])} instead of {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in tensors and _shape(tensors[name]) != _shape(tensor)
    ]
    if missing or strange or misshapen:
        told = [f"missing {missing[:3]}"] * bool(missing) + [f"unknown {strange[:3]}"] * bool(strange) + misshapen[:3]
        raise ValueError(f"{source} contradicts the folder's config.json: {'; '.join(told)}.")
    module.load_state_dict(tensors, assign=True, strict=not tied)
    if tied:
        tied.head.weight = tied.embedding.weight


def _shape(tensor: torch.Tensor) -> str:
    """Shape, and whether integers: what a file must agree in with its config. Any floating-point dtype will do."""
    return f"{tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else " of integers")
