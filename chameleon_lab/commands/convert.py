"""`chameleon-lab convert`."""

from __future__ import annotations

import argparse
import logging
import math
import operator
import time

from chameleon_lab.chameleon import find
from chameleon_lab.checkpoints import formats
from chameleon_lab.checkpoints.evidence import home
from chameleon_lab.checkpoints.tensors import check_room, size_in_words
from chameleon_lab.commands.loading import WEIGHT_DTYPES

log = logging.getLogger(__name__)


def convert_command(options: argparse.Namespace) -> None:
    """Writes a model in another format, tensor by tensor: it may be larger than memory."""
    target = home(options.target)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ValueError(f"{target} is there already: convert into a new or empty folder.")
    source = find(options.source)
    opened = formats.open_folder(source, options.layout, options.tokenizer)
    tensors, dtype = opened.tensors.values(), options.dtype and WEIGHT_DTYPES[options.dtype]
    numbers = [math.prod(tensor.shape) for tensor in tensors]
    dtypes = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))
    total = size_in_words(sum(tensor.nbytes for tensor in tensors))
    log.info("%s is %s: %s parameters, %s, %s.", source, opened.layout, f"{sum(numbers):,}", dtypes, total)
    sizes = ((dtype or tensor.dtype).itemsize for tensor in tensors)
    if options.weights is None:  # what is packed is counted where it is written
        check_room(target, sum(map(operator.mul, numbers, sizes)))
    started, pictures = time.monotonic(), not options.without_pictures
    formats.write_opened(
        opened, target, options.format,
        dtype=dtype, shards=options.shards, pictures=pictures, weights=options.weights,
    )  # fmt: skip
    written = [target] if target.is_file() else target.rglob("*")
    files = [file.stat().st_size for file in written if file.is_file()]
    seconds = time.monotonic() - started
    log.info(
        "%s is %s: %d files, %s, in %.0f s.", target, options.format, len(files), size_in_words(sum(files)), seconds
    )
