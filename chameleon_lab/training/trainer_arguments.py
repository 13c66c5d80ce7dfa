"""Which arguments of `lightning.Trainer` a run takes, and why it refuses the others."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

_BUDGET = "the experiment's budget ends a run: replace(experiment, budget=Budget(steps=N))"
_ALL_BATCHES = "a run trains on the batches of its budget, in an order that resuming repeats"
_HELD_OUT = "the held-out loss is measured every `held_out_every` steps of the experiment"
_CLIP = "the recipe clips gradients: replace(experiment, recipe=replace(experiment.recipe, clip=1.0))"
_UNUSED = "a run trains, and neither tests nor predicts"

ARGUMENTS: Mapping[str, str] = {
    # the machine
    "accelerator": "",
    "devices": "",
    "num_nodes": "",
    "strategy": "",
    "precision": "",
    "plugins": "",
    "sync_batchnorm": "",
    "deterministic": "",
    "benchmark": "",
    # the step
    "accumulate_grad_batches": "",
    "gradient_clip_val": _CLIP,
    "gradient_clip_algorithm": _CLIP,
    # what onlookers see
    "logger": "",
    "log_every_n_steps": "",
    "enable_autolog_hparams": "",
    "callbacks": "",
    "profiler": "",
    "detect_anomaly": "",
    "enable_progress_bar": "",
    "enable_model_summary": "",
    # how long
    "max_epochs": _BUDGET,
    "min_epochs": _BUDGET,
    "max_steps": _BUDGET,
    "min_steps": _BUDGET,
    "max_time": _BUDGET.replace("steps=N", "minutes=N"),
    "fast_dev_run": "a run of one step is replace(experiment, budget=Budget(steps=1))",
    # on what
    "limit_train_batches": _ALL_BATCHES,
    "overfit_batches": _ALL_BATCHES,
    "reload_dataloaders_every_n_epochs": _ALL_BATCHES,
    "use_distributed_sampler": "each process takes its own batches by arithmetic already",
    "limit_val_batches": _HELD_OUT,
    "val_check_interval": _HELD_OUT,
    "check_val_every_n_epoch": _HELD_OUT,
    "num_sanity_val_steps": _HELD_OUT,
    "limit_test_batches": _UNUSED,
    "limit_predict_batches": _UNUSED,
    "inference_mode": _UNUSED,
    # where
    "default_root_dir": "a run writes into its own folder: experiment.run(FOLDER)",
    "enable_checkpointing": "a run writes its checkpoints; a ModelCheckpoint among `callbacks` writes others besides",
    "model_registry": "a run writes its checkpoints into its own folder",
    "barebones": "it switches off what a run is watched and steered by",
}
"""Each argument: nothing where it is handed on, otherwise why a run has no use for it."""


def check_trainer(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, where a run takes all of them. Raises ValueError for one that it refuses or nobody knows."""
    for name, value in arguments.items():
        if name not in ARGUMENTS:
            near = difflib.get_close_matches(name, ARGUMENTS, 1)
            offer = (
                f"did you mean {near[0]!r}?"
                if near
                else "there are " + ", ".join(n for n, no in ARGUMENTS.items() if not no)
            )
            raise ValueError(f"lightning.Trainer has no argument {name!r}: {offer}")
        if why := ARGUMENTS[name]:
            raise ValueError(f"A run does not take the trainer's {name}={value!r}: {why}.")
    each = arguments.get("accumulate_grad_batches", 1)
    if isinstance(each, bool) or not isinstance(each, int) or each < 1:
        raise ValueError(f"accumulate_grad_batches is a number of batches, 1 or more, not {each!r}.")
    return dict(arguments)
