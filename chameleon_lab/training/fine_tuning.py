"""A model trained on, with what it did before and does after: on the new data, and on what it could do already.

```python
experiment = replace(TINY, name="mine", begins_from="tiny", data=mine, budget=Budget(steps=300))
print(fine_tune(experiment, earlier=Scenes("tiny", held_out=64)))
```

What keeps the earlier: an `adapter`, `frozen` parts, or earlier documents among the new
(`ListedDocuments(beside=...)`); `evaluation.forgetting` measures how much.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.generation.settings import Settings
from chameleon_lab.plain import plain_values
from chameleon_lab.training.data import Data
from chameleon_lab.training.experiments import Experiment
from chameleon_lab.training.run import Run
from chameleon_lab.transformer import Transformer


@dataclass(frozen=True)
class FineTuned:
    """The model, and held-out losses before and after by data ("new", "earlier") and kind, in nats a token."""

    model: Transformer
    before: Mapping[str, Mapping[str, float]]
    after: Mapping[str, Mapping[str, float]]

    def __str__(self) -> str:
        rows = [
            f"{data:8} {kind:13} {loss:7.3f} → {self.after[data][kind]:7.3f}  ({self.after[data][kind] - loss:+.3f})"
            for data, losses in self.before.items()
            for kind, loss in losses.items()
        ]
        return "\n".join(["held-out loss, nats a token: before → after", *rows])


def fine_tune(experiment: Experiment, folder: Path | str | None = None, *, earlier: Data | None = None) -> FineTuned:
    """Runs an experiment that begins from a model, and measures both on the same held-out documents.

    `earlier`: data of what the model could do before, of which only the held-out part is looked at. A folder where it
    was stopped goes on; a run that trains it there already is waited for. Raises ValueError for an experiment that
    begins from nothing, and for data with nothing held out.
    """
    from chameleon_lab.training.modules import held_out_losses  # Lightning is slow to import

    if experiment.begins_from is None:
        raise ValueError(f"{experiment.name!r} begins from nothing: replace(experiment, begins_from='tiny').")
    corpora = {"new": experiment.open()}
    if earlier is not None:
        corpora["earlier"] = earlier.open(experiment.seed, experiment.budget.steps)
    for name, corpus in corpora.items():
        if not corpus.held_out:
            raise ValueError(f"The {name} data has nothing held out, so that nobody can say what became of it.")
        if corpus.vocabulary != corpora["new"].vocabulary:
            raise ValueError(f"The {name} data has another vocabulary than the new.")

    def losses(model: Transformer) -> dict[str, dict[str, float]]:
        return {name: held_out_losses(model, experiment.objective, each.held_out) for name, each in corpora.items()}

    before = losses(experiment.build(corpora["new"]).model)
    model = Run(experiment, folder).join().result()
    return FineTuned(model, before, losses(model))


def save_result(
    run: Run,
    experiment: Experiment,
    lab: Chameleon,
    folder: Path,
    *,
    without: Collection[str] = ("tokenizer",),
    settings: Settings | None = None,
    infill: float = 0.0,
) -> Chameleon:
    """Writes what came of a run, in float16, beside the tokenizers of `lab`, with a card; the model as it loads.

    `without`: fields of the data that the card leaves out, such as places on this machine. `infill`: the share of
    documents that had holes to fill; what the weights had learned before counts, too.
    """
    source, history = str(experiment.begins_from), run.history
    gpu = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} CPU thread(s)"
    description = dict(plain_values(replace(experiment, data=None)))
    description["begins_from"] = {**description["begins_from"], "source": Path(source).name}
    card: dict[str, Any] = {
        "experiment": description,
        "data": {name: value for name, value in plain_values(experiment.data).items() if name not in without},
        "trained": date.today().isoformat(),
        "machine": f"{platform.machine()}, {machine}, torch {torch.__version__}",
        "minutes": round(history.records[-1].seconds / 60, 1),
        "steps": len(history.records),
        "tokens": int(sum(history.series("tokens")[1])),
        "notes": [f"begins from the weights of {Path(source).name}, and keeps its two tokenizers"],
        "before": None if source == "tiny" else Chameleon.load(source, device="cpu").card,
        "infill": max(infill, lab.card.get("infill", 0.0)),
    }
    lab.tokenizer.image.half()
    Chameleon(run.result().cpu().half(), lab.tokenizer, settings or lab.settings, card).save(folder)
    return Chameleon.load(folder)
