"""Stability fixes, each a frozen dataclass. Which method it has says where it takes hold:

- `install(model)` fills slots when a model is built: a fix of the *model*, listed in `ModelConfig.fixes`
- `penalty(logits_XV)` is added to each position's loss: a fix of the *loss*, listed in `Objective.penalties`
- `tune(recipe)` gives another recipe: a fix of the *recipe*, applied by `optimization.tuned`
- `watch(moment)` acts around a step, in the form of a monitor: a fix of the *step*, listed among the monitors

A fix of your own is one more such class. Two fixes that want one slot are an error that names both. `FIXES` has the
lab's by name, and `about(fix)` what its docstring says: what it is, its slot, its source, and a trial of it. A
trial is no verdict. Those with a ramp trained a model of 240k parameters for 700 steps while the learning rate rose
from 1e-3 to 0.3, once, in a prototype of this lab; the loss (nats a token) is that on held-out documents at the end.
The lab's own `STRESS_RAMP` has other documents and other figures: compare within one of them.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

from chameleon_lab.optimization import Tuning
from chameleon_lab.parts import require
from chameleon_lab.stability.penalties import MaxZLoss, Penalty, ZLoss
from chameleon_lab.stability.slots import (
    AttentionSink,
    AttentionSoftCap,
    Dropout,
    EmbeddingNorm,
    LayerScale,
    MixtureOfTransformers,
    NormReordering,
    OutputSoftCap,
    QueryKeyNorm,
    QueryKeyRMSNorm,
    Sandwich,
    SigmaReparam,
    Softpick,
    attentions,
    blocks,
    rms_norm,
    warm_start,
)
from chameleon_lab.stability.tunings import AdamEps, IndependentWeightDecay, MuonForMatrices, UpdateClipping
from chameleon_lab.stability.watches import QKClip, Watch, WatchedStep
from chameleon_lab.transformer import Fix as Installed

StabilityFix = Installed | Penalty | Tuning | Watch

FIXES: dict[str, StabilityFix] = {
    "query_key_norm": QueryKeyNorm(),
    "query_key_rms_norm": QueryKeyRMSNorm(),
    "norm_reordering": NormReordering(),
    "sandwich": Sandwich(),
    "layer_scale": LayerScale(),
    "dropout": Dropout(),
    "embedding_norm": EmbeddingNorm(),
    "attention_soft_cap": AttentionSoftCap(),
    "attention_sink": AttentionSink(),
    "softpick": Softpick(),
    "output_soft_cap": OutputSoftCap(),
    "sigma_reparam": SigmaReparam(),
    "mixture_of_transformers": MixtureOfTransformers(),
    "z_loss": ZLoss(),
    "max_z_loss": MaxZLoss(),
    "independent_weight_decay": IndependentWeightDecay(),
    "update_clipping": UpdateClipping(),
    "adam_eps": AdamEps(),
    "muon": MuonForMatrices(),
    "qk_clip": QKClip(),
}
"""The lab's fixes by name, at their sources' settings."""

KINDS = {"install": "model", "penalty": "loss", "tune": "recipe", "watch": "step"}


@dataclass(frozen=True)
class About:
    """What a fix's docstring says, in parts: those that it leaves out are empty."""

    fix: str
    kind: str
    what: str
    slot: str
    source: str
    trial: str


def kind(fix: Any) -> str:
    """Where a fix takes hold: model, loss, recipe or step. Raises ValueError for what is no fix, or two at once."""
    require(fix, "a fix")
    methods = [method for method in KINDS if callable(getattr(fix, method, None))]
    if len(methods) != 1:
        raise ValueError(
            f"{fix!r} is no fix: it has {' and '.join(methods) or 'none'} of the methods {', '.join(KINDS)}, and a fix "
            "has exactly one."
        )
    return KINDS[methods[0]]


def about(fix: StabilityFix) -> About:
    """A fix in words: `[about(fix) for fix in FIXES.values()]` is a table of all."""
    what, *labelled = re.split(r"^(Slot|Source|Trial): ", inspect.getdoc(type(fix)) or "", flags=re.MULTILINE)
    parts = dict(zip(labelled[::2], labelled[1::2], strict=True))
    texts = (what, *(parts.get(label, "") for label in ("Slot", "Source", "Trial")))
    return About(repr(fix), kind(fix), *(" ".join(text.split()) for text in texts))


__all__ = [
    "FIXES",
    "KINDS",
    "About",
    "AdamEps",
    "AttentionSink",
    "AttentionSoftCap",
    "Dropout",
    "EmbeddingNorm",
    "IndependentWeightDecay",
    "LayerScale",
    "MaxZLoss",
    "MixtureOfTransformers",
    "MuonForMatrices",
    "NormReordering",
    "OutputSoftCap",
    "Penalty",
    "QKClip",
    "QueryKeyNorm",
    "QueryKeyRMSNorm",
    "Sandwich",
    "SigmaReparam",
    "Softpick",
    "StabilityFix",
    "UpdateClipping",
    "Watch",
    "WatchedStep",
    "ZLoss",
    "about",
    "attentions",
    "blocks",
    "kind",
    "rms_norm",
    "warm_start",
]
