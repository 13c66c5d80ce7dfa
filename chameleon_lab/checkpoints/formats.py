"""Every layout of a checkpoint: which one a folder has, reading it, and writing any of them.

```python
formats.detect("data/models/7b").name  # "meta"
parts = formats.read_parts("data/models/7b")
formats.write_parts(parts, "chameleon-7b-hf", format="huggingface")
```

`native` is the lab's own, `meta` that of the release, and `huggingface`, `lumina` and `anole` are the three dialects of
Hugging Face's port (see `checkpoints.huggingface`); `lumina-one-grid` is Lumina-mGPT's without its image grids. `gguf`
is llama.cpp's, which holds words alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from chameleon_lab.checkpoints import huggingface
from chameleon_lab.checkpoints.companion import Companion
from chameleon_lab.checkpoints.evidence import (
    Claim,
    foreign_kind,
    home,
    packed_kind,
    snapshot,
    subfolders,
    unpack_advice,
    unused_adapter,
)
from chameleon_lab.checkpoints.gguf import GGUF_WEIGHTS, Gguf
from chameleon_lab.checkpoints.huggingface import DIALECTS, HuggingFace
from chameleon_lab.checkpoints.meta import TOKENIZER_FILES, Meta
from chameleon_lab.checkpoints.native import Native
from chameleon_lab.checkpoints.opened import Opened, Parts, ReadOptions, require_layers
from chameleon_lab.checkpoints.tensors import LazyTensor, check
from chameleon_lab.checkpoints.text_files import SENTENCEPIECE, TABLES, read_text
from chameleon_lab.checkpoints.vqgans import holds_vqgan, read_vqgan
from chameleon_lab.files import reason_of
from chameleon_lab.outlines import outline
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.transformer import Transformer

log = logging.getLogger(__name__)


class Format(Protocol):
    """One way in which folders hold models."""

    @property
    def name(self) -> str: ...

    def claim(self, folder: Path) -> Claim:
        """What a folder holds, or leads to, of this format; a false one for nothing."""
        ...

    def open(self, place: Path, tokenizers: tuple[Path, ...], options: ReadOptions) -> Opened:
        """The checkpoint whose weights lie at `place`. Parts of its tokenizer that are not there are left lacking."""
        ...

    def image_tokenizer(self, folder: Path, options: ReadOptions) -> ImageTokenizer | None:
        """The image tokenizer that a folder itself holds in this format."""
        ...

    def write(self, opened: Opened, folder: Path, shards: int | None) -> None:
        """Writes a checkpoint into a new or empty folder: all of it or nothing."""
        ...


CLAIMANTS: tuple[Format, ...] = (Native(), Meta(), *map(HuggingFace, DIALECTS), Gguf())
"""What a folder may hold."""

BY_NAME: dict[str, Format] = {
    "native": Native(),
    "meta": Meta(),
    "huggingface": HuggingFace("huggingface", stated=True),
    "lumina": HuggingFace("lumina", stated=True, grids=True),
    "anole": HuggingFace("anole", stated=True),
    "lumina-one-grid": HuggingFace("lumina", stated=True, grids=False),
    "huggingface-4.43": HuggingFace("lumina", stated=True, grids=False),
    "gguf": Gguf(),
}
"""What a user may call a layout: then a folder's norms are not asked which dialect it speaks. `huggingface-4.43` is the
former name of `lumina-one-grid`, and a mistake: transformers 4.43 has the layout `huggingface`."""

FORMATS = ("native", "meta", *DIALECTS)
"""What holds all of a model; `gguf` is written as well, and has no place for an image tokenizer."""


@dataclass(frozen=True)
class FolderLayout:
    """How a folder holds a model: its format, the folder of the weights, and those where a tokenizer may lie."""

    format: Format
    model: Path
    tokenizers: tuple[Path, ...]

    @property
    def name(self) -> str:
        return self.format.name


WEIGHT_NAMES = {"native": "model.safetensors", "meta": "consolidated*.pth", "gguf": "*.gguf"}
"""What each layout's weights are called, where that is not the port's."""


def detect(folder: Path | str, layout: str | None = None, tokenizer: Path | str | None = None) -> FolderLayout:
    """The layout of a folder, by its files and the shapes in them.

    A layout whose config and weights are both there comes before any of which one is; so a stray file never decides.
    `layout` is taken at its word; `tokenizer` is a folder, or a `text_tokenizer.json`, looked at first. Raises
    FileNotFoundError for what is no model folder, ValueError where several layouts are possible, and for weights that
    another program packed.
    """
    folder = snapshot(home(folder))
    if layout is not None and layout not in BY_NAME:
        raise ValueError(f"No layout is called {layout!r}; there are {', '.join(BY_NAME)}.")
    chosen = () if tokenizer is None else (_tokenizer_at(home(tokenizer)),)
    candidates = CLAIMANTS if layout is None else (BY_NAME[layout],)
    claims = [(format, claim) for format in candidates if (claim := format.claim(folder))]
    best = max((claim.rank for _, claim in claims), default=None)
    matches = [(format, claim) for format, claim in claims if claim.rank == best]
    if len(matches) > 1:
        state = "ambiguous: it holds the files" if best and best[0] else "no whole model: it holds parts"
        calls = " or ".join(f"Chameleon.load(folder, layout={format.name!r})" for format, _ in matches)
        raise ValueError(
            f"{folder} is {state} of {' and '.join(format.name for format, _ in matches)}. Say which it is: {calls}. "
            f"{_findings(folder)}"
        )
    if not matches:
        raise _no_model(folder, layout)
    ((format, claim),) = matches
    if claim.fault is not None:
        raise claim.fault
    if not claim.whole and (kind := foreign_kind(folder)):
        raise ValueError(f"{folder} holds no whole model of a layout that the lab reads. {kind}")
    if adapter := unused_adapter(claim.places[0]):
        log.warning(
            "%s is not applied: the model is loaded without it. To have it, merge it with PEFT's merge_and_unload.",
            claim.places[0] / adapter,
        )
    if format.name != "native" and (named := (str(claim.places[0]), format.name)) not in _named:
        _named.add(named)
        log.info("%s has the layout %r%s.", claim.places[0], format.name, "" if layout is None else ", as was said")
    around = (place for place in claim.places if not place.is_file())  # a file's own is read with it
    return FolderLayout(format, claim.places[0], (*chosen, *around))


_named = set[tuple[str, str]]()
"""Folders whose layouts the log has named in this process: once is enough, and of the lab's own, whose config says it
itself, none."""


def _findings(folder: Path) -> str:
    """What a folder has of each layout, as a sentence."""
    rows: list[str] = []
    for format in CLAIMANTS:
        if claim := format.claim(folder):
            weights = WEIGHT_NAMES.get(format.name, "safetensors or pytorch_model.bin")
            rows.append(f"{format.name}: {claim.in_words(weights)}")
    return f"Of each layout there is: {'; '.join(rows)}." if rows else ""


def _no_model(folder: Path, layout: str | None) -> FileNotFoundError | ValueError:
    """The error for a folder that no layout claims: what it is instead, and a call that works if there is one."""
    if layout is not None and folder.is_dir():
        if layout != "meta" and (folder / "config.json").is_file():
            huggingface.read_config(folder)  # which raises for one that is damaged
        return FileNotFoundError(
            f"{folder} does not hold the files of the layout {layout!r}. {_findings(folder)}".strip()
        )
    if kind := foreign_kind(folder):
        return ValueError(f"{folder} is no model that the lab reads. {kind}")
    if folder.is_dir() and (folder / "config.json").is_file():
        plain = huggingface.read_config(folder)
        if packed := packed_kind(plain):
            return ValueError(unpack_advice(folder, packed))
        kind = f"of model_type {str(plain['model_type'])[:40]!r}" if "model_type" in plain else "of no layout's"
        return ValueError(
            f"{folder / 'config.json'} does not describe a Chameleon Lab model, nor a Chameleon of Hugging Face's: it "
            f"is {kind}. Give a folder that `lab.save` wrote, or one in Meta's or Hugging Face's layout."
        )
    there = "holds no config.json and no params.json" if folder.is_dir() else "is a file"
    there = there if folder.exists() else "does not exist, and the lab downloads nothing"
    inner = [place for place in subfolders(folder) if any(format.claim(place).whole for format in CLAIMANTS)]
    models = [place for place in subfolders(folder) if place.name.startswith("models--")]
    inner = inner or [place for place in models if (place / "snapshots").is_dir()]
    if inner:
        advice = f"A folder in it holds one: Chameleon.load({str(inner[0])!r})."
    elif folder.is_file() and any(format.claim(folder.parent).whole for format in CLAIMANTS):
        advice = f"Give its folder: Chameleon.load({str(folder.parent)!r})."
    else:
        advice = (
            "Give a folder that `lab.save` or `chameleon-lab train` wrote, one in Meta's or Hugging Face's layout, or "
            "'tiny'."
        )
    return FileNotFoundError(f"{folder} is no model folder: it {there}. {advice}")


def _tokenizer_at(place: Path) -> Path:
    """The place, if there may be a text or an image tokenizer; a file is taken at its word until it is read."""
    if not place.exists():
        raise FileNotFoundError(f"There is no tokenizer at {place}.")
    files = (*TABLES, SENTENCEPIECE, *TOKENIZER_FILES, "config.json")
    if not place.is_file() and not any((place / name).is_file() for name in files) and not holds_vqgan(place):
        raise ValueError(
            f"{place} holds no tokenizer: neither {' or '.join(TABLES)} nor vqgan.ckpt and vqgan.yaml, nor another "
            "image tokenizer's config and weights. Name the folder that has them, or the JSON itself."
        )
    return place


# Reading


def open_folder(
    folder: Path | str,
    layout: str | None = None,
    tokenizer: Path | str | None = None,
    options: ReadOptions = ReadOptions(),  # noqa: B008, a frozen value
) -> Opened:
    """The checkpoint of a folder in any layout, its transformer not yet read.

    What is missing beside the transformer (picture decoder, image tokenizer, text tokenizer) is taken from where a
    tokenizer may lie, or leaves a gap that says so when it is needed. `layout`, `tokenizer`, errors: see `detect`;
    besides, ValueError for files that are damaged or at odds with each other.
    """
    match = detect(folder, layout, tokenizer)
    if tokenizer is not None:
        options = replace(options, tokenizer=home(tokenizer))
    try:
        opened = match.format.open(match.model, match.tokenizers, options)
    except (
        AttributeError,
        IndexError,
        KeyError,
        TypeError,
        ArithmeticError,
    ) as error:  # a value of a kind that no reader thought of
        raise ValueError(
            f"{match.model} is damaged: a value in its config is of the wrong kind ({reason_of(error)}). Get or "
            "save it anew."
        ) from error
    opened = _fill_gaps(opened, match.tokenizers, options)
    for gap in opened.tokenizer.missing:
        log.info("%s has %s.", opened.source, gap)
    return opened


def _fill_gaps(opened: Opened, places: tuple[Path, ...], options: ReadOptions) -> Opened:
    """The checkpoint with what its tokenizer lacks from the places where that may lie by now."""
    mixed = opened.tokenizer
    text, image = mixed.text if mixed.can_spell else None, mixed.image if mixed.can_read else None
    if text is None:
        size, companion = mixed.vocabulary.size, Companion(mixed.vocabulary)
        text, vocabulary = read_text(places, size, companion, opened.source, chosen=options.tokenizer)
        if vocabulary != mixed.vocabulary:
            raise ValueError(
                f"The text tokenizer beside {opened.source} is of another vocabulary: they do not belong together. "
                "Name the right tokenizer's folder: Chameleon.load(folder, tokenizer=...)."
            )
    if image is None:
        image = read_image_tokenizer(places, options)
    elif image.decoder is None:
        image = read_image_tokenizer([place for place in places if place != opened.folder], options) or image
    return replace(opened, tokenizer=mixed.with_parts(text, image))


def read_parts(
    folder: Path | str,
    layout: str | None = None,
    tokenizer: Path | str | None = None,
    options: ReadOptions = ReadOptions(),  # noqa: B008
    weights: str | None = None,
) -> Parts:
    """The checkpoint of a folder in any layout, read a tensor at a time, by default in the dtypes of its files.

    `weights` "int8" or "int4" are packed as they are read. The rest: see `open_folder`.
    """
    opened = open_folder(folder, layout, tokenizer, options)
    return opened.read(dtype=options.dtype, device=options.device, weights=weights)


def read_image_tokenizer(folders: Iterable[Path], options: ReadOptions) -> ImageTokenizer | None:
    """The image tokenizer of the first folder that holds one in any format, or alone; None where none does."""
    for folder in folders:
        images = (format.image_tokenizer(folder, options) for format in CLAIMANTS)
        if image := next((image for image in images if image is not None), None) or read_vqgan(folder, options):
            return image
    return None


# Writing


def write_parts(
    parts: Parts,
    folder: Path | str,
    format: str = "native",
    *,
    shards: int | None = None,
    pictures: bool = True,
    weights: str | None = None,
) -> None:
    """Writes a model in a format, all of it or nothing. Arguments, errors: see `write_opened`."""
    write_opened(Opened.of(parts, Path(folder)), folder, format, shards=shards, pictures=pictures, weights=weights)


def write_opened(
    opened: Opened,
    folder: Path | str,
    format: str = "native",
    *,
    dtype: torch.dtype | None = None,
    shards: int | None = None,
    pictures: bool = True,
    weights: str | None = None,
) -> None:
    """Writes a checkpoint in a format, a tensor at a time: all of it or nothing.

    `dtype` is for floating-point tensors of the transformer, by default as they are. `shards` is for Meta's: how many
    files, by default as many as there are groups of heads with a norm of their own. `pictures=False` leaves the image
    tokenizer out. `weights` is for GGUF: how its matrices are packed, one of `GGUF_WEIGHTS`. Raises ValueError, naming
    what it is, for a model that the format cannot express, and for a folder that holds something else.
    """
    if format not in BY_NAME:
        raise ValueError(f"No format is called {format!r}; there are {', '.join((*FORMATS, 'gguf'))}.")
    folder = home(folder)
    if shards is not None and format != "meta":
        raise ValueError(f"Shards of this kind are Meta's alone: give format='meta', not {format!r}.")
    if shards is not None and shards < 1:
        raise ValueError(f"shards must be 1 or more, not {shards}.")
    if weights is not None and (format != "gguf" or weights not in GGUF_WEIGHTS):
        raise ValueError(
            f"weights of {weights!r} are packed in no file of format {format!r}: format='gguf' takes "
            f"{', '.join(GGUF_WEIGHTS)}."
        )
    require_layers(opened.config, opened.tensors, opened.source)
    with outline():
        check(Transformer(opened.config), opened.tensors, opened.source)
    if not pictures:
        text = opened.tokenizer.text if opened.tokenizer.can_spell else None
        opened = replace(opened, tokenizer=opened.tokenizer.with_parts(text, None))
    if dtype is not None:
        tensors = {name: _cast(tensor, dtype) for name, tensor in opened.tensors.items()}
        opened = replace(opened, tensors=tensors)
    (Gguf(weights=weights) if format == "gguf" else BY_NAME[format]).write(opened, folder, shards)


def _cast(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    if not tensor.dtype.is_floating_point:
        return tensor
    return LazyTensor(tensor.shape, dtype, lambda: tensor.read().to(dtype))
