"""Where weights come from and what may be done with them: the *card* of imported weights, and the licence's gate.

A card is a dict of plain values that stays with the weights through every save and conversion. Imported weights get

```
origin    layout, folder's name, files and their bytes
licence   as stated when they were loaded, otherwise Meta's, under which all weights in these layouts were released
hashes    SHA-256 of the files, None for those too large to read for it at every load: `with_hashes` fills them in
```

That of a model trained here says, besides what trained it, `infill`: the share of documents that had holes to fill.

The rule of the gate. Meta's Chameleon Research License covers its weights and what derives from them, Anole's and
Lumina-mGPT's included, and section 3.2 forbids enabling what Meta disabled: that its models draw. So weights draw
unless their card names that licence, or an import and no licence at all. Weights trained here have no such card. A
licence that a user states is taken at the user's word and noted as theirs.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Card = dict[str, Any]

RESEARCH_LICENCE = "Chameleon Research License"

LARGEST_HASHED = 2**28
"""Bytes: larger files are hashed on request only (14 GB take tens of seconds)."""

WEIGHT_SUFFIXES = {".json", ".yaml", ".model", ".safetensors", ".pth", ".pt", ".bin", ".ckpt"}


class LicenceError(PermissionError, ValueError):
    """What the licence of the weights forbids was asked for, without saying that this is known."""


def card_of(folder: Path | str, layout: str, licence: str | None = None) -> Card:
    """The card of weights that come from elsewhere, in a folder of a foreign layout and its `tokenizer` folder, or in a
    single file."""
    folder = Path(folder)
    single = folder.is_file()
    files = {folder.name: folder.stat().st_size} if single else dict(_files(folder))
    home = folder.parent if single else folder
    hashes = {name: _sha256(home / name) if size <= LARGEST_HASHED else None for name, size in files.items()}
    origin = {"layout": layout, "folder": folder.resolve().name, "files": files}
    return with_licence({"origin": origin, "licence": RESEARCH_LICENCE, "hashes": hashes}, licence)


def with_licence(card: Mapping[str, Any], licence: str | None) -> Card:
    """The card with the licence that the user states, and what it said before; without one, the card as it is.

    Raises ValueError for an empty one, and for what is no string.
    """
    if licence is None:
        return dict(card)
    if not isinstance(licence, str) or not licence.strip():
        wrong = "an empty string" if isinstance(licence, str) else repr(licence)
        raise ValueError(f"A licence is named by words, such as 'Apache-2.0', not by {wrong}.")
    before = card.get("licence")
    claim = {"licence": licence.strip(), "licence_stated_by": "user"}
    if before is None or before == claim["licence"]:
        return {**card, **claim}
    return {**card, **claim, "licence_before": before}


def with_hashes(card: Mapping[str, Any], folder: Path | str) -> Card:
    """The card with the hashes that were left out for size, read from the folder the weights came from.

    Raises ValueError for a folder whose files are not those of the card.
    """
    folder, hashes = Path(folder), dict(card.get("hashes", {}))
    sizes = card.get("origin", {}).get("files", {})
    for name in hashes:
        if not (folder / name).is_file() or (folder / name).stat().st_size != sizes.get(name):
            raise ValueError(f"{folder} is not where these weights come from: {name} is missing or of another size.")
    hashes = {name: hashes[name] or _sha256(folder / name) for name in hashes}
    return {**card, "hashes": hashes}


def changed_files(card: Mapping[str, Any], folder: Path | str) -> list[str]:
    """Which files of a folder are not, or no longer, those whose hashes the card has."""
    folder = Path(folder)
    hashes = {name: value for name, value in card.get("hashes", {}).items() if value}
    return [name for name in hashes if not (folder / name).is_file() or _sha256(folder / name) != hashes[name]]


def never_filled(card: Mapping[str, Any]) -> bool:
    """Whether a card says that no document of the model's training had holes to fill: `infill`, their share, is 0.

    A card without that word says nothing: False.
    """
    return card.get("infill") == 0


def forbids_drawing(card: Mapping[str, Any]) -> bool:
    """Whether the licence forbids to have these weights draw; see the rule above."""
    licence = card.get("licence")
    if licence is None:
        return "origin" in card
    words = str(licence).lower().replace("licence", "license").replace("-", " ")
    return "chameleon" in words and "research" in words


def licence_refusal(card: Mapping[str, Any]) -> LicenceError:
    """The error for an image that was asked for and may not be drawn."""
    licence = card.get("licence") or RESEARCH_LICENCE
    return LicenceError(
        f"{_subject(card)} may not be made to draw: their licence ({licence}, section 3.2) forbids enabling "
        "what Meta disabled. Ask for text; or, where you have the right to, Chameleon.load(folder, "
        "acknowledge_licence=True). If the weights are under another licence, say which: "
        "Chameleon.load(folder, licence='Apache-2.0')."
    )


def warn(card: Mapping[str, Any], acknowledged: bool) -> None:
    """Says in one sentence, to the log, what the licence means for what is being done."""
    if acknowledged:
        log.warning(
            "%s draw because acknowledge_licence=True was given; their licence (%s, section 3.2) forbids enabling what "
            "Meta disabled, and it is yours to keep.",
            _subject(card),
            card.get("licence") or RESEARCH_LICENCE,
        )
    else:
        log.warning(
            "%s answer in text only, since their licence (%s, section 3.2) forbids enabling image output, which Meta "
            "disabled: see Chameleon.load's acknowledge_licence and licence.",
            _subject(card),
            card.get("licence") or RESEARCH_LICENCE,
        )


def _subject(card: Mapping[str, Any]) -> str:
    origin = card.get("origin", {})
    return f"The weights of {origin.get('folder', 'this model')} (layout {origin.get('layout', 'native')})"


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """The files of weights and tokenizers, by their names from the folder, and how large they are."""
    for place in (folder, folder / "tokenizer"):
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            if file.suffix in WEIGHT_SUFFIXES and file.is_file():
                yield file.relative_to(folder).as_posix(), file.stat().st_size


def _sha256(file: Path) -> str:
    """Read in pieces: a file of any size takes no memory."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
