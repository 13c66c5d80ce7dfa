"""One command, from its words to its exit code."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from chameleon_lab.commands.parsers import command_parser, train_folder
from chameleon_lab.signals import exit_code

# NOTE a footgun: batches differ in length, and oneDNN keeps the kernels of every length it has met, 14 MB a step in
# bfloat16. Its two caches are bounded when torch is loaded, so this comes before any command is imported.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; errors a user can mend are one line on stderr and exit code 2."""
    started = time.monotonic()  # before torch is imported: what a person waits for begins here
    options = command_parser().parse_args(arguments, argparse.Namespace(started=started))
    answers = options.command in ("generate", "reconstruct", "plan")  # on stdout, which is then for nothing else
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr if answers else sys.stdout)
    demands: dict[int, Any] = {signal.SIGUSR1: _save_on_demand} if hasattr(signal, "SIGUSR1") else {}
    work = work_of(options.command)  # imported before signals are answered in order: nothing is there to be saved yet
    return exit_code(lambda: work(options), demands, lambda: _prospect(options))


def work_of(command: str) -> Callable[[argparse.Namespace], None]:
    """What a command does, imported now."""
    return getattr(import_module(f"chameleon_lab.commands.{command}"), f"{command}_command")


def _save_on_demand(_number: int, _frame: object) -> None:
    """SIGUSR1, with which schedulers warn that time is short: the run under way writes a checkpoint and goes on."""
    from chameleon_lab.commands.progress import AWAITED

    for run in AWAITED:
        run.save()


def _prospect(options: argparse.Namespace) -> str:
    """What the same command will do after it was stopped: nothing is said that the folder does not hold."""
    if options.command not in ("train", "stability", "compare"):
        return "."
    folder = train_folder(options) if options.command == "train" else options.folder
    there = [path for path in (folder, *folder.glob("**/checkpoints")) if (path / "last.ckpt").is_file()]
    if not there:
        return "; no checkpoint was written yet, and the same command begins anew."
    newest = max(there, key=lambda path: (path / "last.ckpt").stat().st_mtime)
    return f"; the same command goes on from the last checkpoint, {newest / 'last.ckpt'}"
