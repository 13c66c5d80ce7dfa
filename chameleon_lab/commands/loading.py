"""What several commands ask of a model: which one, in what numbers, and how it shall sample."""

from __future__ import annotations

import argparse
from typing import Any, cast

import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.generation.settings import GUIDANCE_SETTINGS, SETTING_NAMES, Changes, parse_guidance

WEIGHT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(options: argparse.Namespace, **more: Any) -> Chameleon:
    dtype = options.dtype and WEIGHT_DTYPES[options.dtype]
    return Chameleon.load(options.model, layout=options.layout, tokenizer=options.tokenizer, dtype=dtype, **more)


def settings_of(options: argparse.Namespace) -> Changes:
    """The settings of a command line. Raises ValueError for a guidance that nobody can read."""
    changes = {name: getattr(options, name) for name in SETTING_NAMES if getattr(options, name) is not None}
    return cast(
        Changes, changes | {name: parse_guidance(str(changes[name])) for name in GUIDANCE_SETTINGS if name in changes}
    )
