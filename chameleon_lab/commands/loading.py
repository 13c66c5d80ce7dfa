"""What several commands ask of a model: which one, in what numbers, and how it shall sample."""

from __future__ import annotations

import argparse
from typing import Any, cast

import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.generation.settings import SETTING_NAMES, Changes

WEIGHT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(options: argparse.Namespace, **more: Any) -> Chameleon:
    dtype = options.dtype and WEIGHT_DTYPES[options.dtype]
    return Chameleon.load(options.model, layout=options.layout, tokenizer=options.tokenizer, dtype=dtype, **more)


def settings_of(options: argparse.Namespace) -> Changes:
    changes = {name: getattr(options, name) for name in SETTING_NAMES if getattr(options, name) is not None}
    return cast(Changes, changes)
