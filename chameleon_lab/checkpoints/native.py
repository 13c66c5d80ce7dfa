"""The lab's own format: a folder of `config.json`, safetensors and a sentencepiece model. Nothing in it is a pickle.

```
config.json                format version, model, image tokenizer, vocabulary, generation defaults, card
model.safetensors          the transformer; past 5 GB in shards, with model.safetensors.index.json
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

import torch

from chameleon_lab import stability
from chameleon_lab.checkpoints.tensors import fill, open_safetensors, tensors_of, write_safetensors
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
        write_safetensors(tensors_of(tokenizer), folder, "image_tokenizer")

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
            for file in folder.glob("*.safetensors*"):
                if not (whole / file.name).exists() and not (Path(made) / file.name).exists():
                    pass
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
    write_safetensors(tensors_of(parts.model), folder)
    write_safetensors(tensors_of(parts.tokenizer.image), folder, "image_tokenizer")
    if isinstance(text, SentencePieceTokenizer):
        (folder / "text_tokenizer.model").write_bytes(text.model)


def write_card(folder: Path | str, card: dict[str, Any]) -> None:
    """Puts another card into a checkpoint, its weights untouched."""
    folder = Path(folder)
    config = _read_config(folder) | {"card": card}
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(partial, folder / "config.json")


def read(
    folder: Path | str,
    fixes: Iterable[type] = (),
    quantizers: Iterable[QuantizerClass] = (),
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Parts:
    """The checkpoint of a folder, read tensor by tensor to where it is wanted, by default in the dtypes of the file.

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
    fill(model, open_safetensors(folder, "model"), folder / "model.safetensors", dtype=dtype, device=device)
    image = read_image_tokenizer(folder, quantizers, dtype=dtype, device=device)
    return Parts(model.eval(), MixedModalTokenizer(text, image, vocabulary), settings, config.get("card", {}))


def read_image_tokenizer(
    folder: Path | str,
    quantizers: Iterable[QuantizerClass] = (),
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> ImageTokenizer:
    """The image tokenizer of a folder that holds one alone, or with a model. What is taken and raised: see `read`."""
    folder = Path(folder)
    config = _read_config(folder)
    with _damage(folder):
        image_config = _image_config(config["image_tokenizer"], quantizers)
        with torch.device("meta"):
            image = ImageTokenizer(image_config)
    tensors = open_safetensors(folder, "image_tokenizer")
    fill(image, tensors, folder / "image_tokenizer.safetensors", dtype=dtype, device=device)
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
