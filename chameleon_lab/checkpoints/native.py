"""The lab's own format: a folder of `config.json`, safetensors and a text tokenizer. Nothing in it is a pickle.

```
config.json                format version, model, image tokenizer, vocabulary, generation defaults, card
model.safetensors          the transformer; past 5 GB in shards, with model.safetensors.index.json
image_tokenizer.safetensors
text_tokenizer.model       sentencepiece, or text_tokenizer.json, the family's own
```

A model that came without image tokenizer, picture decoder or text tokenizer is kept without.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from chameleon_lab import cm3leon, stability
from chameleon_lab.checkpoints import names, provenance
from chameleon_lab.checkpoints.evidence import Claim, plain_config
from chameleon_lab.checkpoints.opened import Opened, QuantizerClass, ReadOptions, require_blocks, require_layers
from chameleon_lab.checkpoints.tensors import files_of, fill, open_safetensors, tensors_of, write_safetensors
from chameleon_lab.files import absence, intact, read_json
from chameleon_lab.generation.settings import Settings
from chameleon_lab.outlines import outline
from chameleon_lab.parts import require_fields
from chameleon_lab.storage import whole_folder, write_file
from chameleon_lab.tokenizers.image import QUANTIZERS, ImageTokenizer, ImageTokenizerConfig
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import (
    ByteTokenizer,
    JsonTokenizer,
    SentencePieceTokenizer,
    TextTokenizer,
)
from chameleon_lab.transformer import Fix, ModelConfig, Transformer
from chameleon_lab.vocabulary import Vocabulary

WEIGHT_FILES = r"(model|image_tokenizer)(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
FORMAT_FILES = re.compile(rf"(config\.json|{WEIGHT_FILES}|text_tokenizer\.(model|json))(\.partial)?")
"""Names of the format's files, which never stay when a folder is written anew; whatever else lies there does."""

NATIVE_FORMAT, NATIVE_VERSION = "chameleon-lab", 1


@dataclass(frozen=True)
class Native:
    """The lab's own `Format`: see `formats.Format`."""

    name: str = "native"

    def claim(self, folder: Path) -> Claim:
        """A config of the lab's own, and its safetensors; a config that nobody else can claim counts as half of one."""
        plain = plain_config(folder)
        config = "config.json of format 'chameleon-lab'" if plain.get("format") == NATIVE_FORMAT else ""
        files = files_of(folder, "model") if config else []
        return Claim(config, files[0].name if files else "", (folder,))

    def open(self, place: Path, tokenizers: tuple[Path, ...], options: ReadOptions) -> Opened:
        config = _read_config(place)
        if not {"model", "vocabulary"} & config.keys():
            raise ValueError(
                f"{place} holds an image tokenizer alone and no model: `load_image_tokenizer` of "
                "chameleon_lab.chameleon reads it."
            )
        tensors = open_safetensors(place, "model")  # outside: whose fault it is, is not always the config's
        with _damage(place):
            model_config = _model_config(config["model"], options.fixes)
            vocabulary = Vocabulary(**_tuples(config["vocabulary"]))
            settings = _settings(config["generation"], place)
            require_layers(model_config, tensors, place)
            with outline():
                Transformer(model_config)  # what it cannot be built of is damage, too
            kind = _text_kind(config["text_tokenizer"])
            grid = config["image_tokenizer"].get("missing")
        text, image = _text_tokenizer(kind, place), None
        if not grid:
            image = read_native_images(place, options.quantizers, dtype=options.dtype, device=options.device)
        tokenizer = MixedModalTokenizer(text, image, vocabulary, grid=grid and tuple(grid), source=str(place))
        card = provenance.with_licence(config.get("card", {}), options.licence)
        weights = place / "model.safetensors"
        return Opened(model_config, names.without_wrappers(tensors), tokenizer, settings, card, weights)

    def image_tokenizer(self, folder: Path, options: ReadOptions) -> ImageTokenizer | None:
        if not (is_native(folder) and (folder / "image_tokenizer.safetensors").is_file()):
            return None
        return read_native_images(folder, options.quantizers, dtype=options.dtype, device=options.device)

    def write(self, opened: Opened, folder: Path, shards: int | None) -> None:
        write_whole(folder, partial(_write_files, opened))


def write_image_tokenizer(tokenizer: ImageTokenizer, folder: Path | str, card: dict[str, Any] | None = None) -> None:
    """Writes an image tokenizer alone: `config.json` and `image_tokenizer.safetensors`, all of it or nothing.

    Raises ValueError for a folder that holds a whole model, which would be one no longer.
    """
    if "model" in plain_config(Path(folder)):
        raise ValueError(f"{folder} holds a whole model: write the image tokenizer into another folder.")

    def write_files(folder: Path) -> None:
        plain = plain_image_config(tokenizer.config)
        config = {"format": NATIVE_FORMAT, "version": NATIVE_VERSION, "image_tokenizer": plain, "card": card or {}}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_safetensors(tensors_of(tokenizer), folder, "image_tokenizer")

    write_whole(Path(folder), write_files)


def write_whole(
    folder: Path, write_files: Callable[[Path], None], replaces: Callable[[Path], bool] | None = None
) -> None:
    """Has a folder written elsewhere and put in place: all of it or nothing.

    Raises ValueError for a folder that holds anything, unless `replaces` says it may go; by default a native one may.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; save into a new or empty folder.")
    if folder.exists() and any(folder.iterdir()) and not (replaces or is_native)(folder):
        raise ValueError(f"{folder} holds other files; save into a new or empty folder.")
    with whole_folder(folder, stays=lambda entry: not FORMAT_FILES.fullmatch(entry.name)) as whole:
        write_files(whole)
        for stem in ("model", "image_tokenizer"):
            if files_of(whole, stem):
                open_safetensors(whole, stem)  # which raises for what is not whole


def plain_image_config(config: ImageTokenizerConfig) -> dict[str, Any]:
    """The config as it is saved. Raises ValueError when its quantizer has no name to be found by again."""
    quantizer = config.quantizer if isinstance(config.quantizer, str) else getattr(config.quantizer, "__name__", "")
    if not quantizer.isidentifier():
        raise ValueError(
            f"The quantizer {config.quantizer!r} has no name to be saved under: make it a function or a class."
        )
    plain = asdict(replace(config, quantizer="vector")) | {"quantizer": quantizer}
    if not config.attention:  # so that former versions of the lab read what they can build
        del plain["attention"]
    return plain


def is_native(folder: Path) -> bool:
    """Whether a folder's config is the lab's own."""
    return plain_config(folder).get("format") == NATIVE_FORMAT


def _write_files(opened: Opened, folder: Path) -> None:
    tokenizer = opened.tokenizer
    text, image = tokenizer.text if tokenizer.can_spell else None, tokenizer.image if tokenizer.can_read else None
    kinds = {ByteTokenizer: "bytes", SentencePieceTokenizer: "sentencepiece", JsonTokenizer: "json", type(None): "none"}
    if type(text) not in kinds:
        raise ValueError(f"A {type(text).__name__} cannot be saved: the format knows sentencepiece, JSON and bytes.")
    plain_model = asdict(replace(opened.config, fixes=()))
    plain_model["fixes"] = [{"fix": type(fix).__name__, **asdict(fix)} for fix in opened.config.fixes]  # pyright: ignore[reportArgumentType]
    config = {
        "format": NATIVE_FORMAT,
        "version": NATIVE_VERSION,
        "model": plain_model,
        "image_tokenizer": plain_image_config(image.config) if image else {"missing": tokenizer.grid},
        "picture_decoder": tokenizer.can_draw,
        "text_tokenizer": kinds[type(text)],
        "vocabulary": asdict(tokenizer.vocabulary),
        "generation": opened.settings.to_plain(),
        "card": opened.card,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_safetensors(opened.tensors, folder)
    if image:
        write_safetensors(tensors_of(image), folder, "image_tokenizer")
    if isinstance(text, SentencePieceTokenizer):
        (folder / "text_tokenizer.model").write_bytes(text.model)
    elif isinstance(text, JsonTokenizer):
        (folder / "text_tokenizer.json").write_text(text.json, encoding="utf-8")


def read_model_card(folder: Path | str) -> dict[str, Any]:
    """A checkpoint's card."""
    return _read_config(Path(folder)).get("card", {})


def write_card(folder: Path | str, card: dict[str, Any]) -> None:
    """Puts another card into a checkpoint, its weights untouched."""
    folder = Path(folder)
    config = _read_config(folder) | {"card": card}
    write_file(folder / "config.json", json.dumps(config, indent=2) + "\n")


def read_native_images(
    folder: Path | str,
    quantizers: Iterable[QuantizerClass] = (),
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> ImageTokenizer:
    """The image tokenizer of a folder that holds one alone, or with a model.

    `quantizers` are classes of your own that it was trained with. Raises FileNotFoundError for a folder without a
    config, ValueError for one that is damaged, of another version, or at odds with itself.
    """
    folder = Path(folder)
    config = _read_config(folder)
    with _damage(folder):
        if config["image_tokenizer"].get("missing"):
            raise ValueError(f"{folder} holds no image tokenizer: the model was saved without one.")
        image_config = _image_config(config["image_tokenizer"], quantizers)
    tensors = open_safetensors(folder, "image_tokenizer")
    with _damage(folder):
        require_blocks(image_config, tensors, folder)
        with outline():
            image = ImageTokenizer(image_config, str(folder))
    if not config.get("picture_decoder", True):
        image.decoder = None
    fill(image, tensors, folder / "image_tokenizer.safetensors", dtype=dtype, device=device)
    return image.eval()


def _damage(folder: Path) -> AbstractContextManager[None]:
    """What a config at odds with itself raises, as one ValueError that names the file."""
    return intact(folder / "config.json", "The checkpoint is damaged: get or save it anew.")


def _image_config(plain: dict[str, Any], own: Iterable[QuantizerClass]) -> ImageTokenizerConfig:
    name = plain.get("quantizer")
    quantizer = {each.__name__: each for each in own}.get(str(name), name)
    if isinstance(quantizer, str) and quantizer not in QUANTIZERS and quantizer.isidentifier():
        raise ValueError(
            f"No quantizer is called {quantizer!r}; if it is a class of your own, pass it: quantizers=[{quantizer}]."
        )
    return ImageTokenizerConfig(**_tuples(plain | {"quantizer": quantizer}))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if fault := absence(path):
        there = (
            "does not exist"
            if not folder.exists()
            else "is a file"
            if not folder.is_dir()
            else f"its config.json {fault}"
        )
        raise FileNotFoundError(
            f"{folder} is no model folder: it {there}. "
            "Give a folder that `lab.save` or `chameleon-lab train` wrote, or 'tiny'."
        )
    config = read_json(path, remedy="The checkpoint is damaged; get or save it anew.")
    if not isinstance(config, dict) or config.get("format") != NATIVE_FORMAT:
        raise ValueError(f"{path} does not describe a Chameleon Lab model; its format is not {NATIVE_FORMAT!r}.")
    if config.get("version") != NATIVE_VERSION:
        raise ValueError(
            f"{folder} is of format version {config.get('version')}, and this lab reads version {NATIVE_VERSION}: "
            "use the lab's release that wrote it, or save it anew from there."
        )
    return config


def _model_config(plain: dict[str, Any], own: Iterable[type]) -> ModelConfig:
    classes = {**vars(stability), **vars(cm3leon), **{fix.__name__: fix for fix in own}}
    fixes: list[Fix] = []
    for entry in plain["fixes"]:
        arguments = {key: value for key, value in entry.items() if key != "fix"}
        kind = classes.get(entry["fix"])
        if not (isinstance(kind, type) and is_dataclass(kind)):
            raise ValueError(
                f"This model was trained with a fix {entry['fix']!r} that the lab does not know: "
                f"pass its class, Chameleon.load(folder, fixes=[{entry['fix']}])."
            )
        fixes.append(kind(**arguments))  # pyright: ignore[reportArgumentType]
        require_fields(fixes[-1])
    return ModelConfig(**{**plain, "fixes": tuple(fixes)})


def _text_kind(kind: Any) -> str:
    if kind not in ("bytes", "sentencepiece", "json", "none"):
        raise ValueError(f"No text tokenizer is called {kind!r}; there are bytes, sentencepiece and json.")
    return kind


def _text_tokenizer(kind: str, folder: Path) -> TextTokenizer | None:
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "none":
        return None
    path = folder / ("text_tokenizer.model" if kind == "sentencepiece" else "text_tokenizer.json")
    return (SentencePieceTokenizer if kind == "sentencepiece" else JsonTokenizer).load(_existing(path))


def _tuples(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}


def _existing(path: Path) -> Path:
    if fault := absence(path):
        raise ValueError(f"The checkpoint is incomplete: {path} {fault}.")
    return path


def _settings(plain: Any, place: Path) -> Settings:
    try:
        return Settings.from_plain(plain)
    except ValueError as error:
        raise ValueError(f"{place / 'config.json'} is damaged: {error}") from error
