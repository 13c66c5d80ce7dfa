"""`chameleon-lab tokenize`."""

from __future__ import annotations

import argparse
import itertools
import logging
import re
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from chameleon_lab.commands.loading import load_model
from chameleon_lab.commands.progress import entries_progress
from chameleon_lab.corpora import shards
from chameleon_lab.corpora.archives import ALL_READERS, expected_entries
from chameleon_lab.corpora.mixture import scene_pairs
from chameleon_lab.corpora.readers import PictureFolder, Reader, Skipped, half_picture_first
from chameleon_lab.corpora.shards import Shards
from chameleon_lab.documents import Document
from chameleon_lab.parts import require_count

log = logging.getLogger(__name__)


JUDGED, LOSSY = 8, 18
"""Pictures that are sent through the image tokenizer before a corpus is written, and the dB below which it says so."""


def tokenize_command(options: argparse.Namespace) -> None:
    """Tokenizes documents once, into shards that training maps into memory; half of the pairs come picture first.

    Scenes are written into OUT/train and OUT/held_out, anything else into OUT. Stopped and called again it goes on.
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
    require_count(options.processes, "processes", 0)
    tokenizer = load_model(options, device="cpu" if options.processes else options.device).tokenizer

    def judged(documents: Reader) -> Reader:
        """The same documents; says first how well the image tokenizer brings the first pictures of theirs back."""
        documents, first = iter(documents), list[Document | Skipped]()
        while sum(len(each.pictures) for each in first if isinstance(each, Document)) < JUDGED and len(first) < 256:
            if (document := next(documents, None)) is None:
                break
            first.append(document)
        pictures = [picture for each in first if isinstance(each, Document) for picture in each.pictures][:JUDGED]
        if pictures:
            psnr = sum(tokenizer.image.reconstruct(picture).psnr for picture in pictures) / len(pictures)
            log.info("The image tokenizer of %s brings pictures like these back at %.1f dB.", options.model, psnr)
            began = time.monotonic()
            tokenizer.image.encode_batch(pictures)
            pace = len(pictures) / (time.monotonic() - began) * max(1, options.processes)
            million = tqdm.format_interval(1e6 / pace)
            log.info("It encodes about %s of them a second here: a million take %s.", f"{pace:,.1f}", million)
            if psnr < LOSSY:
                log.warning("Below %d dB shapes are lost: `chameleon-lab train --data` trains one for them.", LOSSY)
        yield from itertools.chain(first, documents)

    def write(folder: Path, documents: Reader, expected: int | None, **about: object) -> None:
        if not options.as_written:
            documents = half_picture_first(documents, options.seed)
        about |= {"source": options.kind, "model": str(options.model), "seed": options.seed}
        with entries_progress(folder.name, expected) as report:
            corpus = shards.write_shards(
                folder,
                judged(documents),
                tokenizer,
                about=about,
                processes=options.processes,
                resumable=True,
                report=report,
            )
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in corpus.card["kinds"].items())
        counts = f"{len(corpus):,} documents ({kinds}), {corpus.tokens:,} tokens, {corpus.card['skipped']:,} skipped"
        log.info("%s: %s.", folder, counts)
        reasons = Counter(re.sub(r"\S*/\S*|\d[\d,.]*", "…", entry.reason)[:100] for entry in corpus.skipped)
        for reason, count in reasons.most_common(8):
            log.info("  skipped %s: %s", f"{count:,}", reason)

    if options.kind != "scenes":
        beside = options.path if options.path.is_dir() else options.path.parent
        read = ALL_READERS[options.kind](options.path, PictureFolder(options.pictures or beside))
        write(options.out, read, expected_entries(options.kind, options.path), path=str(options.path))
        return
    for name, count in (("train", options.n), ("held_out", options.held_out)):
        if count:
            side = "held_out" if name == "held_out" else "trainable"
            if name == "train" and options.held_out and (options.out / "train" / "card.json").is_file():
                card = Shards(options.out / "train").card
                request = {"model": str(options.model), "seed": options.seed, "documents": count}
                if not (options.out / "held_out").exists() and all(card.get(key) == request[key] for key in request):
                    log.info("%s is there: what is held out goes on.", options.out / "train")
                    continue
            write(options.out / name, scene_pairs(count, options.seed, side), count, side=side)
