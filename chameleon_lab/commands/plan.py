"""`chameleon-lab plan`."""

from __future__ import annotations

import argparse
import sys

from chameleon_lab.chameleon import find
from chameleon_lab.checkpoints import formats
from chameleon_lab.devices import plan_devices
from chameleon_lab.optimization import Recipe
from chameleon_lab.planner import plan, verdicts
from chameleon_lab.published import PUBLISHED
from chameleon_lab.tokenizers.image import CHAMELEON_IMAGES


def plan_command(options: argparse.Namespace) -> None:
    """Tells the memory that a model takes, for use or for training, without building it."""
    if options.context is not None and options.context < 1:
        raise ValueError(f"--context must be 1 or more, not {options.context}.")
    if (published := options.model.lower()) in PUBLISHED:
        config, image = PUBLISHED[published], CHAMELEON_IMAGES
    else:
        opened = formats.open_folder(find(options.model), options.layout, options.tokenizer)
        config, image = opened.config, opened.tokenizer.image.config if opened.tokenizer.can_read else None
    if options.devices is not None:
        answer = plan_devices(
            config,
            options.devices,
            options.device_memory,
            rows=options.rows,
            context=options.context,
            recompute=options.recompute,
            precision=options.precision,
            rate=options.rate,
            link=options.link,
            tokens=options.tokens,
        )
        sys.stdout.write(f"{answer}\n")
        return
    recipe = Recipe(muon_rate=0.02 if options.muon else 0.0)
    answer = plan(
        config,
        options.device_memory,
        weights=options.weights,
        rows=options.rows,
        context=options.context,
        guidance=options.guidance,
        training=recipe if options.training else None,
        precision=options.precision,
        image_tokenizer=image,
        inspection=options.inspection,
    )
    sys.stdout.write(f"{answer}\n")
    if options.device_memory is None:
        sys.stdout.write(f"{verdicts(answer)}\n")
