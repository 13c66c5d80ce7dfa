"""Every layout of a checkpoint: which one a folder has, reading it, and writing any of them.

```python
formats.detect("data/models/7b").name  # "meta"
parts = formats.read("data/models/7b")
formats.write(parts, "chameleon-7b-hf", format="huggingface")
```

`native` is the lab's own, `meta` that of the release, and `huggingface`, `lumina` and `anole` are the three dialects of
Hugging Face's port (see `checkpoints.huggingface`); `huggingface-4.43` is Lumina-mGPT's without its image grids.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from chameleon_lab.checkpoints import huggingface, meta, names, native, provenance
from chameleon_lab.checkpoints.opened import Opened, Parts
from chameleon_lab.checkpoints.tensors import LazyTensor, check, fill
from chameleon_lab.checkpoints.text_files import (
    SENTENCEPIECE,
    TABLES,
    Beside,
    names_of,
    read_beside,
    read_text,
    write_beside,
    write_text,
)
from chameleon_lab.tokenizers.image import CHAMELEON as CHAMELEON_IMAGE
from chameleon_lab.tokenizers.image import ImageTokenizer, NoDecoder, NoImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import ByteTokenizer, NoTextTokenizer, SentencePieceTokenizer
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import CHAMELEON, LUMINA, Vocabulary

log = logging.getLogger(__name__)

FORMATS = ("native", "meta", "huggingface", "lumina", "anole")
OTHER_NAMES = {"huggingface-4.43": "lumina"}


@dataclass(frozen=True)
class Layout:
    """How a folder holds a model: the layout's name, the folder of the weights, those where a tokenizer may lie, and
    whether pictures have grids of their own (Lumina-mGPT's tokens; None: what the folder itself says)."""

    name: str
    model: Path
    tokenizers: tuple[Path, ...]
    grids: bool | None = None


def detect(folder: Path | str, layout: str | None = None, tokenizer: Path | str | None = None) -> Layout:
    """The layout of a folder, by its files and the shapes in them.

    `layout` is taken at its word; `tokenizer` is a folder, or a `text_tokenizer.json`, looked at first. Raises
    FileNotFoundError for what is no model folder, ValueError where several layouts are possible.
    """
    folder = Path(folder)
    if layout is not None and layout not in (*FORMATS, *OTHER_NAMES):
        raise ValueError(f"No layout is called {layout!r}; there are {', '.join((*FORMATS, *OTHER_NAMES))}.")
    if tokenizer is not None and not Path(tokenizer).exists():
        raise FileNotFoundError(f"There is no tokenizer at {tokenizer}.")
    if tokenizer is not None and not _holds_tokenizer(Path(tokenizer)):
        raise ValueError(
            f"{tokenizer} holds no tokenizer: neither {' or '.join(TABLES)} nor vqgan.ckpt and vqgan.yaml. Name the "
            "folder that has them, or the JSON itself."
        )
    chosen = () if tokenizer is None else (Path(tokenizer),)
    found = _found(folder)
    name = OTHER_NAMES.get(layout or "", layout)
    kinds = {"native": "native", "meta": "meta"}
    if name is None:
        if len(found) > 1:
            raise ValueError(
                f"{folder} is ambiguous: it holds the files of {' and '.join(found)}. Say which it is: "
                f"Chameleon.load(folder, layout={next(iter(found))!r})."
            )
        if not found:
            there = "holds no config.json and no params.json" if folder.is_dir() else "is a file"
            there = there if folder.exists() else "does not exist, and the lab downloads nothing"
            raise FileNotFoundError(
                f"{folder} is no model folder: it {there}. Give a folder that `lab.save` or `chameleon-lab train` "
                "wrote, one in Meta's or Hugging Face's layout, or 'tiny'."
            )
        kind = next(iter(found))
    else:
        kind = kinds.get(name, "huggingface")
    place = found.get(kind)
    if place is None:
        raise FileNotFoundError(f"{folder} does not hold the files of the layout {layout!r}.")
    if kind == "huggingface" and name is None:
        name = huggingface.dialect_of(place)
    grids = None if layout not in ("lumina", "huggingface-4.43") else layout == "lumina"
    made = Layout(name or kind, place, (*chosen, place, *_beside_it(place, kind)), grids)
    log.info("%s has the layout %r%s.", place, made.name, "" if layout is None else ", as was said")
    return made


def _found(folder: Path) -> dict[str, Path]:
    """Which of native, meta and huggingface a folder holds, and where."""
    found: dict[str, Path] = {}
    if (folder / "config.json").is_file():
        found["huggingface" if _is_port(folder) else "native"] = folder
    if is_meta(folder):
        found["meta"] = folder
    elif not found:
        places = [folder, folder / "models", folder.parent / "models", folder.parent]
        tree = [place for place in places[:2] if place.is_dir()]
        if any((folder / name).is_file() for name in meta.TOKENIZER_FILES):
            tree += [place for place in places[2:] if place.is_dir()]
        models = sorted({model for place in tree for model in (place, *place.iterdir()) if is_meta(model)})
        if len(models) > 1:
            raise ValueError(
                f"{folder} leads to several models: {', '.join(map(str, models))}. Give the folder of the one you mean."
            )
        if models:
            found["meta"] = models[0]
    return found


def is_meta(folder: Path) -> bool:
    return (folder / meta.PARAMS).is_file() or any(folder.glob("consolidated*.pth"))


def _is_port(folder: Path) -> bool:
    """Whether a folder's config is Hugging Face's; that of another model is refused later, by what it lacks."""
    try:
        plain = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(plain, dict) and bool({"num_attention_heads", "num_embeddings", "vq_config"} & plain.keys())


def _holds_tokenizer(place: Path) -> bool:
    """Whether there may be a text or an image tokenizer; a file is taken at its word until it is read."""
    files = (*TABLES, SENTENCEPIECE, *meta.TOKENIZER_FILES, "config.json")
    return place.is_file() or any((place / name).is_file() for name in files)


def _beside_it(folder: Path, kind: str) -> tuple[Path, ...]:
    """Where else than with the weights a tokenizer may lie: inside, beside, or in Meta's download tree."""
    if kind != "meta":
        return ()
    return folder / "tokenizer", folder.parent / "tokenizer", folder.parent.parent / "tokenizer"


# Reading


def open_folder(
    folder: Path | str,
    layout: str | None = None,
    tokenizer: Path | str | None = None,
    *,
    fixes: Iterable[type] = (),
    quantizers: Iterable[native.QuantizerClass] = (),
    licence: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Opened:
    """The checkpoint of a folder in any layout, its transformer not yet read.

    What is missing beside the transformer (picture decoder, image tokenizer, text tokenizer) leaves a gap that says so
    when it is needed. `licence` is of the weights, where the folder does not tell. `layout`, `tokenizer`, errors: see
    `detect`; besides, ValueError for files that are damaged or at odds with each other.
    """
    found = detect(folder, layout, tokenizer)
    if found.name == "native":
        opened = native.open_folder(found.model, fixes, quantizers, dtype=dtype, device=device)
        mixed = _completed(opened.tokenizer, found, quantizers, dtype=dtype, device=device)
        return _told(replace(opened, tokenizer=mixed, card=provenance.stated(opened.card, licence)))
    beside = read_beside(found.model)
    if found.name == "meta":
        (config, tensors), table = meta.read_model(found.model, beside.groups), None
    else:
        config, tensors = huggingface.read_model(found.model, found.name)
        table = huggingface.read_config(found.model).get("vocabulary_map")
    text, vocabulary = read_text(found.tokenizers, config.vocabulary, beside, found.model, table)
    vocabulary = _with_grids(vocabulary, found)
    image = read_image_tokenizer(found.tokenizers, quantizers, dtype=dtype, device=device)
    if image is None:
        image = NoImageTokenizer(vocabulary.codes, beside.grid or CHAMELEON_IMAGE.grid, str(found.model))
    mixed = MixedModalTokenizer(text, image, vocabulary)
    if beside.vocabulary is None:  # not written by this lab
        card = provenance.card_of(found.model, found.name, licence)
    else:
        card = provenance.stated(beside.card, licence)
    return _told(Opened(config, tensors, mixed, beside.settings, card, found.model, found.name))


def _completed(
    mixed: MixedModalTokenizer,
    found: Layout,
    quantizers: Iterable[native.QuantizerClass],
    *,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> MixedModalTokenizer:
    """The tokenizer of a native folder; what it was kept without is taken from those where one may lie by now."""
    text, image, places = mixed.text, mixed.image, found.tokenizers
    if isinstance(text, NoTextTokenizer):
        text, told = read_text(places, mixed.vocabulary.size, Beside(mixed.vocabulary), found.model)
        if told != mixed.vocabulary:
            raise ValueError(
                f"The text tokenizer beside {found.model} is of another vocabulary: they do not belong together. Name "
                "the right tokenizer's folder: Chameleon.load(folder, tokenizer=...)."
            )
    if isinstance(image, NoImageTokenizer):
        image = read_image_tokenizer(places, quantizers, dtype=dtype, device=device) or image
    elif isinstance(image.decoder, NoDecoder):
        image = read_image_tokenizer(places[:-1], quantizers, dtype=dtype, device=device) or image  # but the folder's
    return MixedModalTokenizer(text, image, mixed.vocabulary)


def _told(opened: Opened) -> Opened:
    for gap in opened.missing:
        log.info("%s has %s.", opened.source, gap)
    return opened


def read(
    folder: Path | str,
    layout: str | None = None,
    tokenizer: Path | str | None = None,
    *,
    fixes: Iterable[type] = (),
    quantizers: Iterable[native.QuantizerClass] = (),
    licence: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    weights: str | None = None,
) -> Parts:
    """The checkpoint of a folder in any layout, read a tensor at a time, by default in the dtypes of its files.

    `weights` "int8" or "int4" are packed as they are read. The rest: see `open_folder`.
    """
    opened = open_folder(
        folder, layout, tokenizer, fixes=fixes, quantizers=quantizers, licence=licence, dtype=dtype, device=device
    )
    return opened.read(dtype=dtype, device=device, weights=weights)


def _with_grids(vocabulary: Vocabulary, found: Layout) -> Vocabulary:
    """The vocabulary with Lumina-mGPT's grid tokens where it is that model: by what was said, or its class's name."""
    grids = found.grids
    if grids is None and found.name == "lumina":
        classes = huggingface.read_config(found.model).get("architectures") or []
        grids = bool(vocabulary.largest_side) or any("XLLMX" in each for each in classes)
    if grids is None:
        return vocabulary
    if not grids:
        return replace(vocabulary, new_line=None, first_grid=None)
    if vocabulary.largest_side or vocabulary.size != CHAMELEON.size:
        return vocabulary
    return replace(vocabulary, new_line=LUMINA.new_line, first_grid=LUMINA.first_grid)


def read_image_tokenizer(
    folders: Iterable[Path],
    quantizers: Iterable[native.QuantizerClass] = (),
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> ImageTokenizer | None:
    """The image tokenizer of the first folder that holds one in any layout; None where none does."""
    for folder in folders:
        if holds_meta_images(folder):
            return read_meta_images(folder, dtype=dtype, device=device)
        if native.is_native(folder) and (folder / "image_tokenizer.safetensors").is_file():
            return native.read_image_tokenizer(folder, quantizers, dtype=dtype, device=device)
        if _is_port(folder) and names.image_to_ours(huggingface.open_safetensors(folder)):
            return huggingface.load_image_tokenizer(folder, dtype=dtype, device=device)
    return None


def holds_meta_images(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("vqgan.ckpt", "vqgan.yaml"))


def read_meta_images(
    folder: Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> ImageTokenizer:
    """The image tokenizer of Meta's `vqgan.yaml` and `vqgan.ckpt`."""
    config, tensors = meta.read_image_config(folder / "vqgan.yaml"), meta.read_image_tensors(folder / "vqgan.ckpt")
    with torch.device("meta"):
        image = ImageTokenizer(config)
    if not any(name.startswith("decoder.") for name in tensors):
        image.decoder = NoDecoder(str(folder))
    fill(image, tensors, folder / "vqgan.ckpt", dtype=dtype, device=device, config="vqgan.yaml")
    return image.eval()


# Writing


def write(
    parts: Parts, folder: Path | str, format: str = "native", *, shards: int | None = None, pictures: bool = True
) -> None:
    """Writes a model in a format, all of it or nothing. Arguments, errors: see `write_opened`."""
    write_opened(Opened.of(parts, Path(folder)), folder, format, shards=shards, pictures=pictures)


def write_opened(
    opened: Opened,
    folder: Path | str,
    format: str = "native",
    *,
    dtype: torch.dtype | None = None,
    shards: int | None = None,
    pictures: bool = True,
) -> None:
    """Writes a checkpoint in a format, a tensor at a time: all of it or nothing.

    `dtype` is for floating-point tensors of the transformer, by default as they are. `shards` is for Meta's: how many
    files, by default as many as there are groups of heads with a norm of their own. `pictures=False` leaves the image
    tokenizer out. Raises ValueError, naming what it is, for a model that the format cannot express, and for a folder
    that holds something else.
    """
    format = OTHER_NAMES.get(format, format)
    if format not in FORMATS:
        raise ValueError(f"No format is called {format!r}; there are {', '.join(FORMATS)}.")
    if shards is not None and format != "meta":
        raise ValueError(f"Shards of this kind are Meta's alone: give format='meta', not {format!r}.")
    if shards is not None and shards < 1:
        raise ValueError(f"shards must be 1 or more, not {shards}.")
    with torch.device("meta"):
        check(Transformer(opened.config), opened.tensors, opened.source)
    if not pictures:
        opened = _without_pictures(opened)
    if dtype is not None:
        tensors = {name: _cast(tensor, dtype) for name, tensor in opened.tensors.items()}
        opened = replace(opened, tensors=tensors)
    if format == "native":
        native.write_opened(opened, folder)
        return
    names.check_expressible(opened.config, format)
    if not isinstance(opened.tokenizer.image, NoImageTokenizer):
        meta.check_image(opened.tokenizer.image.config, format)

    def write_files(whole: Path) -> None:
        if format == "meta":
            _write_meta(opened, whole, shards or names.norm_groups(opened.config) or 1)
        else:
            _write_port(opened, whole, format)
        write_beside(_beside(opened), whole)

    native.write_whole(Path(folder), write_files, replaces=lambda folder: False)


def _without_pictures(opened: Opened) -> Opened:
    tokenizer = opened.tokenizer
    image = NoImageTokenizer(tokenizer.image.codes, tokenizer.grid, str(opened.source))
    return replace(opened, tokenizer=MixedModalTokenizer(tokenizer.text, image, tokenizer.vocabulary))


def _cast(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    if not tensor.dtype.is_floating_point:
        return tensor
    return LazyTensor(tensor.shape, dtype, lambda: tensor.read().to(dtype))


def _write_meta(opened: Opened, folder: Path, shards: int) -> None:
    tokenizer = opened.tokenizer
    inside = folder / "tokenizer"
    inside.mkdir()
    meta.write_model(opened.tensors, opened.config, folder, shards)
    write_text(tokenizer.text, tokenizer.vocabulary, inside, "text_tokenizer.json")
    if not isinstance(tokenizer.image, NoImageTokenizer):
        meta.write_image_tokenizer(tokenizer.image, inside)
    for each in (folder, inside):
        meta.write_checklist(each)


def _write_port(opened: Opened, folder: Path, dialect: str) -> None:
    tokenizer = opened.tokenizer
    image, vocabulary = tokenizer.image, tokenizer.vocabulary
    missing = isinstance(image, NoImageTokenizer)
    image_config = huggingface.smallest_image_config(image.codes, tokenizer.grid) if missing else image.config
    about: dict[str, Any] = {
        "vq_config": huggingface.plain_image_config(image_config),
        "vocabulary_map": names_of(vocabulary, tokenizer.text, placeholder=True),
    }
    if missing:
        log.warning("The folder gets no image tokenizer: transformers will draw one at random, for text only.")
    images = {} if missing else meta.image_weights(image)
    huggingface.write_model(opened.tensors, opened.config, images, folder, dialect, about)
    written = write_text(tokenizer.text, vocabulary, folder, TABLES[1])
    huggingface.write_settings(vocabulary, image_config, written, folder)


def _beside(opened: Opened) -> Beside:
    tokenizer, groups = opened.tokenizer, names.norm_groups(opened.config)
    kinds = {ByteTokenizer: "bytes", SentencePieceTokenizer: "sentencepiece"}
    kind = kinds.get(type(tokenizer.text))
    return Beside(tokenizer.vocabulary, groups, tokenizer.grid, kind, opened.settings, opened.card)
