"""Files and folders that are there whole or not at all: written beside their place, synced, and moved there as one.

A folder under way is called `.NAME.HOST.PROCESS.LETTERS.partial`. One that a killed process left goes at the next write
of the same folder; those of processes that live, or of other machines, stay. docs/reliability.md says what this
promises, and what no program can.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import io
import logging
import os
import re
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import PIL.Image

from chameleon_lab.files import require_place
from chameleon_lab.history import alive, process_start

log = logging.getLogger(__name__)

EXCHANGES = {"linux": ("renameat2", (-100, -100)), "darwin": ("renamex_np", ())}
"""What swaps two names in one go, by system, and the folders (the current one) that it wants beside each name."""

NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""What it answers on file systems, or in containers, that have no such thing."""

_under_way = set[str]()
"""Folders that this process writes now."""


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a whole file or nothing; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
        name_file(partial, path)
    except OSError as error:
        with suppress(OSError):  # such as that its folder is gone, too
            partial.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # of a disk that is full, the system does not say for which file
        raise


def write_picture(path: Path, picture: PIL.Image.Image, kind: str = "PNG", **options: Any) -> None:
    """Writes a picture as a whole file or not at all."""
    written = io.BytesIO()
    picture.save(written, kind, **options)
    write_file(path, written.getvalue())


def name_file(partial: Path, path: Path) -> None:
    """Gives a file that is written its name, once it is on the disk."""
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Has the system write a file, or the names in a folder, to the disk; where folders cannot be synced, files are."""
    folder = path.is_dir()
    try:
        at_once = getattr(os, "O_NONBLOCK", 0)  # a pipe, which somebody put there, would be waited for
        file = os.open(path, os.O_RDONLY | at_once if folder or os.name != "nt" else os.O_RDWR)
    except OSError:
        if folder:
            return
        raise
    try:
        os.fsync(file)
    except OSError as error:
        if not folder and error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(file)


@contextmanager
def whole_folder(
    folder: Path, ours: Collection[str] = (), stays: Callable[[Path], bool] | None = None
) -> Iterator[Path]:
    """A hidden folder beside one that is to be written. It takes that one's place in the end, or goes on an error.

    What the old folder holds goes with it, unless it `stays`; where nobody says what does, only what is `ours` goes,
    by name, and hidden files stay. Raises ValueError, before anything is written, for a folder that holds anything
    else, which is somebody's; and for one that cannot be moved, since another file system is mounted there.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    _sweep(folder)
    keeps = stays or _hidden
    if stays is None and folder.is_dir():
        theirs = sorted(entry.name for entry in folder.iterdir() if entry.name not in ours and not _hidden(entry))
        if theirs:
            some = f"{', '.join(theirs[:3])}{' and more' * (len(theirs) > 3)}"
            raise ValueError(f"{folder} holds {some}, which would be lost: give a new or empty folder.")
    if os.path.ismount(folder):
        raise ValueError(
            f"{folder} is where another file system begins and cannot be moved: write into a folder in it."
        )
    writer = f"{os.getpid()}-{process_start(os.getpid())}"
    hidden = folder.with_name(f"{_mark(folder)}{writer}.{uuid.uuid4().hex[:8]}.partial")
    _under_way.add(hidden.name)
    try:
        hidden.mkdir()
        yield hidden
        if folder.is_dir():
            shutil.copymode(folder, hidden)
            for entry in folder.iterdir():
                if not os.path.lexists(hidden / entry.name) and keeps(entry):
                    _carry_over(entry, hidden / entry.name)
        for place, _, names in os.walk(hidden):
            for name in names:
                if not os.path.islink(os.path.join(place, name)):
                    sync(Path(place, name))
            sync(Path(place))
        _move(hidden, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)  # by now the old one, or what is left of a failure
        _under_way.discard(hidden.name)


def _hidden(entry: Path) -> bool:
    """Whether a file browser or a system left it there, and no person."""
    return entry.name.startswith(".")


@contextmanager
def resumable_folder(folder: Path) -> Iterator[Path]:
    """The folder NAME.partial beside one that is to be written: it is kept where its writing ends early, so that the
    next can go on, and takes the other's place in the end.

    Raises ValueError where another process writes there, or the place is taken.
    """
    folder = folder.resolve()
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = require_place(partial / "lock")
    with lock.open("a") as file:
        if not hold_file(file.fileno()):
            raise ValueError(f"Another process writes into {partial}: wait for it, stop it, or write elsewhere.")
        yield partial
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} was made meanwhile: what was to take its place is whole in {partial}.")
        lock.unlink()
        for each in partial.iterdir():
            sync(each)
        sync(partial)
        os.rename(partial, folder)
        sync(folder.parent)


def hold_file(file: int) -> bool:
    """Takes an open file for this process, until that closes it or is gone; False where another holds it.

    Where the system or the file system knows no such thing it is taken, which the log says of the latter.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("The file system has no locks (%s): see that one process alone works in a folder.", error)
    return True


def recover(folder: Path) -> None:
    """Puts back a folder whose replacement was killed between two renamings, where these are not one (`_move`)."""
    if os.path.lexists(folder):
        return
    for old in sorted(folder.parent.glob(f"{glob.escape(_mark(folder))}*.old")):
        if not _lives(folder, old):
            os.rename(old, folder)
            return


def _move(hidden: Path, folder: Path) -> None:
    """Puts a folder in place of another, or of none, which is then called as the hidden one was."""
    if not folder.is_dir() or not any(folder.iterdir()):
        os.rename(hidden, folder)
        return
    if not exchange(hidden, folder):
        old = hidden.with_suffix(".old")
        os.rename(folder, old)
        os.rename(hidden, folder)
        os.rename(old, hidden)


def exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one go; False where the system or the file system cannot."""
    name, at = EXCHANGES.get(sys.platform, ("", ()))
    swap = getattr(ctypes.CDLL(None, use_errno=True), name, None) if name else None
    if swap is None:
        return False
    places = os.fsencode(one), os.fsencode(other)
    arguments = (at[0], places[0], at[1], places[1]) if at else places
    if swap(*arguments, 2) == 0:  # RENAME_EXCHANGE, RENAME_SWAP
        return True
    if (number := ctypes.get_errno()) in NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def _carry_over(entry: Path, target: Path) -> None:
    """The same files under another name, without a copy where the file system knows links."""
    if entry.is_symlink():
        target.symlink_to(os.readlink(entry))
    elif entry.is_dir():
        target.mkdir()
        shutil.copymode(entry, target)
        for each in entry.iterdir():
            _carry_over(each, target / each.name)
    else:
        try:
            os.link(entry, target)
        except OSError:
            shutil.copy2(entry, target)


def _mark(folder: Path) -> str:
    """How the names of this machine's folders begin that are to take the place of one."""
    return f".{folder.name}.{socket.gethostname()}."


def _lives(folder: Path, hidden: Path) -> bool:
    """Whether the process that writes, or wrote, a hidden folder still does."""
    match = re.fullmatch(r"(\d+)(?:-(\w*))?\.[0-9a-f]{8}\.\w+", hidden.name.removeprefix(_mark(folder)))
    if match is None:
        return True  # not one of ours
    process = int(match[1])
    if process == os.getpid():
        return hidden.with_suffix(".partial").name in _under_way
    return alive(process, match[2] or "")


def _sweep(folder: Path) -> None:
    """Removes what killed processes left of earlier writes."""
    for left in folder.parent.glob(f"{glob.escape(_mark(folder))}*"):
        if left.suffix in (".partial", ".old") and not _lives(folder, left):
            shutil.rmtree(left)
    for left in folder.parent.glob(f"{glob.escape(f'.{folder.name}-')}*"):  # until November 2026 they were called so
        ours = re.fullmatch(r"[a-z0-9_]{8}", left.name.removeprefix(f".{folder.name}-"))
        if ours and left.is_dir() and {each.name for each in left.iterdir()} <= {"whole"}:
            shutil.rmtree(left)
