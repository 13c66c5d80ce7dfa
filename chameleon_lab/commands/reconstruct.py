"""`chameleon-lab reconstruct`."""

from __future__ import annotations

import argparse
import io
import sys

import PIL.Image

from chameleon_lab.chameleon import load_image_tokenizer
from chameleon_lab.commands.loading import WEIGHT_DTYPES
from chameleon_lab.pictures import PICTURE_FORMATS, open_picture
from chameleon_lab.storage import write_file


def reconstruct_command(options: argparse.Namespace) -> None:
    """Sends a picture through the image tokenizer; prints its codes and the error, and writes what came back."""
    out = options.out or options.picture.parent / f"{options.picture.stem}-reconstructed.png"
    if out.exists() and options.picture.exists() and out.samefile(options.picture):
        raise ValueError(f"{out} is the picture itself, which is never overwritten: name another file with --out.")
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name a file with --out.")
    kind = PIL.Image.registered_extensions().get(out.suffix.lower())
    if kind not in PICTURE_FORMATS:
        raise ValueError(f"{out} has no ending of a picture that is written here: name it with --out, such as x.png.")
    picture = open_picture(options.picture)
    if out.exists() and not options.overwrite:
        raise ValueError(f"{out} is there already: name another file with --out, or pass --overwrite.")
    dtype = WEIGHT_DTYPES[options.dtype or "float32"]
    tokenizer = load_image_tokenizer(options.model, layout=options.layout, tokenizer=options.tokenizer, dtype=dtype)
    trip = tokenizer.reconstruct(picture, tokenizer.preparations[options.policy])
    written = io.BytesIO()
    trip.picture.save(written, kind)
    write_file(out, written.getvalue())  # whole, or the file that is there stays
    for row in trip.codes:
        sys.stdout.write(" ".join(f"{code:4d}" for code in row) + "\n")
    sys.stdout.write(f"{trip.codes.size} codes, PSNR {trip.psnr:.1f} dB, written to {out}\n")
