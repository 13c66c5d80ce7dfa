"""A run's checkpoint, whole or in parts, made a model in any format, a tensor at a time."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from chameleon_lab.checkpoints import formats
from chameleon_lab.checkpoints.opened import Opened
from chameleon_lab.checkpoints.tensors import LazyTensor, check_room, lazy, size
from chameleon_lab.generation.settings import Settings
from chameleon_lab.plain import plain_values
from chameleon_lab.training.experiments import Experiment
from chameleon_lab.training.folder import RunFolder, check_whole
from chameleon_lab.training.sharded_files import sharded_tensors

log = logging.getLogger(__name__)


def consolidate(
    experiment: Experiment,
    checkpoint: Path | str,
    target: Path | str,
    format: str = "native",
    *,
    dtype: torch.dtype | None = None,
    shards: int | None = None,
    pictures: bool = True,
) -> Path:
    """Writes the model of a checkpoint of an experiment's run, or of the newest whole one of a run's folder; it may be
    larger than memory. Its tokenizer is that of the experiment's data.

    Raises ValueError where there is no whole checkpoint, where the data has no tokenizer with it, where the checkpoint
    is another model's, and as the format does.
    """
    checkpoint = Path(checkpoint)
    if not (checkpoint / "contents.json").exists() and checkpoint.is_dir():
        newest, fault = RunFolder(checkpoint).whole_checkpoint()
        if newest is None:
            raise ValueError(f"{checkpoint} holds no checkpoint: give a run's folder, or one of its checkpoints.")
        if fault:
            log.warning("%s: %s; %s is taken.", checkpoint, fault, newest.name)
        checkpoint = newest
    tensors = _tensors_of_checkpoint(checkpoint)
    corpus = experiment.open()
    tokenizer, config = corpus.tokenizer(), experiment.config(corpus.vocabulary)
    if tokenizer is None:
        raise ValueError(f"The data of {experiment.name!r} has no tokenizer with it, which a model needs.")
    if experiment.adapter is not None:
        raise ValueError("A run with an adapter writes it to its folder, and its result has it merged: save that.")
    if config.tied:
        tensors.pop("head.weight", None)
    check_room(Path(target), size(tensors))
    card = {"experiment": plain_values(experiment), "checkpoint": checkpoint.name}
    opened = Opened(config, tensors, tokenizer, Settings(), card, checkpoint)
    formats.write_opened(opened, Path(target), format, dtype=dtype, shards=shards, pictures=pictures)
    return Path(target)


def _tensors_of_checkpoint(checkpoint: Path) -> dict[str, LazyTensor]:
    """The model's tensors by their names in it."""
    if checkpoint.is_dir():
        return sharded_tensors(checkpoint)
    try:
        check_whole(checkpoint)
    except ValueError as error:
        raise ValueError(f"{checkpoint} is no whole checkpoint of a run: {error}.") from error
    state: dict[str, Tensor] = torch.load(checkpoint, weights_only=True, map_location="cpu", mmap=True)["state_dict"]
    return {name.removeprefix("model."): lazy(tensor) for name, tensor in state.items() if name.startswith("model.")}
