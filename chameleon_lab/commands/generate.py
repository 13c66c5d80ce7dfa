"""`chameleon-lab generate`."""

from __future__ import annotations

import argparse
import io
import itertools
import sys

from chameleon_lab.commands.loading import load_model, settings_of
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.pictures import open_picture
from chameleon_lab.records import ImagePiece, TextPiece
from chameleon_lab.storage import write_file


def generate_command(options: argparse.Namespace) -> None:
    """Answers a prompt: words go to stdout as they come, pictures to numbered PNG files."""
    if options.out.is_file():
        raise ValueError(f"--out is a folder for pictures, and {options.out} is a file.")
    lab = load_model(
        options,
        device=options.device,
        weights=options.weights,
        licence=options.licence,
        acknowledge_licence=options.acknowledge_licence,
    )
    document = Document.of(*map(open_picture, options.image), options.prompt, EndTurn())
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = itertools.count(1)
    for piece in lab.stream(document, seed=options.seed, modality=options.modality, **settings_of(options)):
        if isinstance(piece, TextPiece):
            sys.stdout.write(piece.text)
            sys.stdout.flush()
        elif isinstance(piece, ImagePiece) and piece.complete:
            paths = (options.out / f"picture-{options.seed}-{number}.png" for number in pictures)
            path = next(path for path in paths if not path.exists())  # of another prompt, perhaps: it stays
            written = io.BytesIO()
            piece.picture.save(written, "PNG")
            write_file(path, written.getvalue())
            sys.stdout.write(f"[{path}]")
    sys.stdout.write("\n")
