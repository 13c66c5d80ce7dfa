"""`chameleon_lab.json`: what a foreign format has no word for, in a file of its own. Other programs pass over it.

It holds blocks of the vocabulary, groups of norms, the grid, generation defaults and the card.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chameleon_lab.checkpoints import names, native, provenance
from chameleon_lab.checkpoints.opened import Opened, ReadOptions
from chameleon_lab.checkpoints.tensors import Tensors
from chameleon_lab.files import intact, read_table
from chameleon_lab.generation.settings import Settings
from chameleon_lab.parts import require_fields
from chameleon_lab.tokenizers.image import CHAMELEON_IMAGES
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import ByteTokenizer, SentencePieceTokenizer, TextTokenizer
from chameleon_lab.transformer import ModelConfig
from chameleon_lab.vocabulary import Vocabulary

COMPANION = "chameleon_lab.json"


@dataclass(frozen=True)
class Companion:
    """What `chameleon_lab.json` holds; all of it may be missing."""

    vocabulary: Vocabulary | None = None
    groups: int | None = None  # of heads that share a query/key norm; of vectors that are alike nobody else can tell
    grid: tuple[int, int] | None = None
    text: str | None = None
    settings: Settings = field(default_factory=Settings)
    card: Mapping[str, Any] = field(default_factory=dict)

    def opened(
        self,
        config: ModelConfig,
        tensors: Tensors,
        tokenizer: tuple[TextTokenizer | None, Vocabulary],
        source: tuple[Path, str],
        options: ReadOptions,
    ) -> Opened:
        """The checkpoint of the foreign folder in which this file lies: `source` is its place and its layout's name.
        No image tokenizer is looked for."""
        (text, vocabulary), (folder, layout) = tokenizer, source
        grid = self.grid or CHAMELEON_IMAGES.grid
        mixed = MixedModalTokenizer(text, None, vocabulary, grid=grid, source=str(folder))
        if self.vocabulary is None:  # not written by this lab
            card = provenance.card_of(folder, layout, options.licence)
        else:
            card = provenance.with_licence(self.card, options.licence)
        return Opened(config, tensors, mixed, self.settings, card, folder, layout)


def read_companion(folder: Path) -> Companion:
    """Raises ValueError for a file that is damaged."""
    path = folder / COMPANION
    if not os.path.lexists(path):
        return Companion()
    with intact(path, "Save the model anew, or take the file away."):
        return companion_of(read_table(path))


def companion_of(plain: dict[str, Any]) -> Companion:
    """Whatever a damaged one raises, its reader turns into an error that names the file."""
    fields: dict[str, Any] = dict(plain["vocabulary"])
    fields["permutation"] = tuple(fields["permutation"])
    rows, columns = plain["grid"]
    settings, card = Settings.from_plain(plain["generation"]), dict(plain["card"])
    companion = Companion(Vocabulary(**fields), plain["groups"], (rows, columns), plain["text"], settings, card)
    require_fields(companion, groups=(1, 2**16))
    return companion


def plain_companion(opened: Opened) -> dict[str, Any]:
    """What `companion_of` takes, of a checkpoint."""
    tokenizer = opened.tokenizer
    kinds = {ByteTokenizer: "bytes", SentencePieceTokenizer: "sentencepiece"}
    return {
        "vocabulary": asdict(tokenizer.vocabulary),
        "groups": names.norm_groups(opened.config),
        "grid": tokenizer.grid,
        "text": kinds.get(type(tokenizer.text)) if tokenizer.can_spell else None,
        "generation": opened.settings.to_plain(),
        "card": opened.card,
    }


def write_foreign(opened: Opened, folder: Path, format: str, write_files: Callable[[Path], None]) -> None:
    """Has a foreign format's files written into a new or empty folder, and `chameleon_lab.json` beside them.

    Raises ValueError, naming what it is, for a model that the format cannot express.
    """
    names.check_expressible(opened.config, format)
    tokenizer = opened.tokenizer
    if tokenizer.can_read:
        names.check_image(tokenizer.image.config, format)

    def write_all(whole: Path) -> None:
        write_files(whole)
        (whole / COMPANION).write_text(json.dumps(plain_companion(opened), indent=2) + "\n")

    native.write_whole(folder, write_all, replaces=lambda folder: False)
