"""What lies in a person's folder, by one rule for all readers: which files are taken, and which are left out and why.

- files and folders whose names begin with a dot are left out: notebooks, thumbnails and version control keep theirs so
- nothing outside the folder is read: a link that leads out is left out, one to a folder inside is read where that lies
- pipes and devices are no files
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PICTURE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"}
    | {".ppm", ".tif", ".tiff", ".webp"}
)
"""Endings of the files that `chameleon_lab.pictures` opens. A file without an ending is taken by its first bytes."""

_SIGNATURES = (
    b"\x89PNG\r\n",
    b"\xff\xd8\xff",
    b"GIF8",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP",
    b"\xff\x4f\xff\x51",
)

HIDDEN, LINK_OUT = "it is hidden: its name, or its folder's, begins with a dot", "it is a link out of the folder"
LINK_WITHIN, NO_FILE = (
    "it is a link to a folder, which is read where it lies",
    "it is a pipe, a socket or a device, not a file",
)
LINK_NOWHERE = "it is a link to nothing"


@dataclass
class FolderListing:
    """The files of a folder and below it, by their path in it, in order; and what was left out, by reason."""

    folder: Path
    files: dict[str, Path] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def skips(self) -> Iterator[tuple[str, str]]:
        """(what, why) for what a person may have meant to be read: one name, or the first and how many more."""
        for reason in (LINK_OUT, LINK_WITHIN, LINK_NOWHERE, NO_FILE):
            if names := self.left_out.get(reason):
                yield names[0] + (f" and {len(names) - 1:,} more" if len(names) > 1 else ""), reason

    def __str__(self) -> str:
        left_out = "; ".join(f"left out {len(names):,}: {reason}" for reason, names in self.left_out.items())
        return f"{self.folder}: {len(self.files):,} taken" + (f"; {left_out}" if left_out else "")


def listing(folder: Path | str) -> FolderListing:
    """All files of a folder by the rule above. Raises ValueError where there is no folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder.")
    whole, root = FolderListing(folder), folder.resolve()
    for place, folders, files in os.walk(folder):
        here = Path(place)
        for name in sorted(folders):
            path = here / name
            inside = path.relative_to(folder).as_posix() + "/"
            reason = HIDDEN if name.startswith(".") else ""
            if not reason and path.is_symlink():
                reason = LINK_WITHIN if lies_within(path, root) else LINK_OUT
            if reason:
                whole.left_out[reason].append(inside)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not (here / name).is_symlink())
        for name in sorted(files):
            path = here / name
            inside = path.relative_to(folder).as_posix()
            if name.startswith("."):
                whole.left_out[HIDDEN].append(inside)
            elif path.is_symlink() and not os.path.exists(path):
                whole.left_out[LINK_NOWHERE].append(inside)
            elif path.is_symlink() and not lies_within(path, root):
                whole.left_out[LINK_OUT].append(inside)
            elif not os.path.isfile(path):
                whole.left_out[NO_FILE].append(inside)
            else:
                whole.files[inside] = path
    whole.files = {name: whole.files[name] for name in sorted(whole.files, key=lambda name: Path(name).parts)}
    return whole


def lies_within(path: Path, folder: Path) -> bool:
    """Whether a path leads into a folder, all links followed; one that leads round in a circle does not."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):
        return False


def picture_listing(folder: Path | str, *others: str) -> FolderListing:
    """The picture files of a folder by their endings, or by their first bytes where they have none.

    Files that end in one of `others` are left out without a word.
    """
    whole = listing(folder)
    for name, path in list(whole.files.items()):
        suffix = path.suffix.lower()
        if suffix in PICTURE_SUFFIXES or (not suffix and _begins_as_picture(path)):
            continue
        del whole.files[name]
        if suffix not in others:
            kind = f"no picture ends in {suffix}" if suffix else "it does not begin as a picture, and has no ending"
            whole.left_out[kind].append(name)
    return whole


def _begins_as_picture(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    webp, avif = start[:4] + start[8:12] == b"RIFFWEBP", start[4:11] == b"ftypavi"
    return start.startswith(_SIGNATURES) or webp or avif or start[:1] + start[2:3] in (b"P\n", b"P ")
