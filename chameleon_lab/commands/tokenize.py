"""`chameleon-lab tokenize`."""

from __future__ import annotations

import argparse
import logging
import re
import time
from collections import Counter
from pathlib import Path

from chameleon_lab.commands.loading import load_model
from chameleon_lab.corpora import shards
from chameleon_lab.corpora.archives import ALL_READERS
from chameleon_lab.corpora.mixture import scene_pairs
from chameleon_lab.corpora.readers import PictureFolder, Reader, half_picture_first

log = logging.getLogger(__name__)


def tokenize_command(options: argparse.Namespace) -> None:
    """Tokenizes documents once, into shards that training maps into memory; half of the pairs come picture first.

    Scenes are written into OUT/train and OUT/held_out, anything else into OUT.
    """
    if min(options.seed, options.held_out, options.n - 1) < 0:
        raise ValueError(
            f"-n must be 1 or more, --held-out and --seed 0 or more, not {options.n}, {options.held_out} and "
            f"{options.seed}."
        )
    if (options.kind == "scenes") != (options.path is None):
        raise ValueError("Scenes take no path." if options.path else f"Give a path to read {options.kind} from.")
    if options.path and not options.path.exists():
        raise ValueError(f"There is nothing at {options.path}.")
    if options.kind != "scenes" and options.held_out:
        raise ValueError("--held-out is for scenes, which know what is held out; keep files of your own aside.")
    tokenizer = load_model(options).tokenizer

    def counted(documents: Reader) -> Reader:
        last = time.monotonic()
        for number, document in enumerate(documents):
            if time.monotonic() - last > 10:
                last = time.monotonic()
                log.info("%s documents read", f"{number:,}")
            yield document

    def write(folder: Path, documents: Reader, **about: object) -> None:
        if not options.as_written:
            documents = half_picture_first(documents, options.seed)
        about |= {"source": options.kind, "model": str(options.model), "seed": options.seed}
        corpus = shards.write_shards(folder, counted(documents), tokenizer, about=about)
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in corpus.card["kinds"].items())
        counts = f"{len(corpus):,} documents ({kinds}), {corpus.tokens:,} tokens, {corpus.card['skipped']:,} skipped"
        log.info("%s: %s.", folder, counts)
        reasons = Counter(re.sub(r"\S*/\S*|\d[\d,.]*", "…", entry.reason)[:100] for entry in corpus.skipped)
        for reason, count in reasons.most_common(8):
            log.info("  skipped %s: %s", f"{count:,}", reason)

    if options.kind != "scenes":
        beside = options.path if options.path.is_dir() else options.path.parent
        read = ALL_READERS[options.kind](options.path, PictureFolder(options.pictures or beside))
        write(options.out, read, path=str(options.path))
        return
    for name, count in (("train", options.n), ("held_out", options.held_out)):
        if count:
            side = "held_out" if name == "held_out" else "trainable"
            write(options.out / name, scene_pairs(count, options.seed, side), side=side)
