"""A model trained on, with what it did before and does after: on the new data, and on what it could do already.

```python
experiment = replace(TINY, name="mine", begins_from="tiny", data=mine, budget=Budget(steps=300))
print(fine_tune(experiment, earlier=Scenes("tiny", held_out=64)))
```

What keeps the earlier: a lower rate, an `adapter`, `frozen` blocks, or earlier documents among the new (`Corpora`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chameleon_lab.training.data import Data
from chameleon_lab.training.experiments import Experiment
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
    was stopped goes on. Raises ValueError for an experiment that begins from nothing, and for data with nothing held
    out.
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
    model = experiment.run(folder).result()
    return FineTuned(model, before, losses(model))
