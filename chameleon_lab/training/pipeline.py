"""The three stages that make a model from scratch, each a run: BPE, image tokenizer, transformer."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.generation.engine import Settings
from chameleon_lab.history import History
from chameleon_lab.monitors.alarms import Rule
from chameleon_lab.plain import plain_values
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.training.data import Scenes
from chameleon_lab.training.experiments import TINY, Experiment
from chameleon_lab.training.folder import RunFolder, locks_folder
from chameleon_lab.training.image_experiments import TINY_PICTURES, ImageExperiment
from chameleon_lab.training.modules import Budget, LanguageModule
from chameleon_lab.training.run import Run
from chameleon_lab.training.samples import Drawings, scene_requests
from chameleon_lab.training.text_experiments import TextExperiment, scene_texts
from chameleon_lab.training.trainable import Prepared
from chameleon_lab.vocabulary import Vocabulary


@dataclass(frozen=True)
class SceneModel:
    """A model of drawn scenes, from scratch: `pieces` of BPE, an image tokenizer, a transformer on both."""

    name: str
    image: ImageExperiment
    pieces: int
    transformer: Experiment
    settings: Settings

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.layout(self.image.tokenizer.codes, self.pieces)

    @property
    def scenes(self) -> Scenes:
        assert isinstance(self.transformer.data, Scenes)
        return self.transformer.data

    def lasting(self, minutes: float) -> SceneModel:
        """The same model in so many minutes: three tenths for the image tokenizer, the rest for the transformer."""
        image = replace(self.image, budget=Budget(minutes=0.3 * minutes))
        return replace(self, image=image, transformer=replace(self.transformer, budget=Budget(minutes=0.7 * minutes)))

    @property
    def text(self) -> TextExperiment:
        texts = partial(scene_texts, weights=self.scenes.weights)
        return TextExperiment(self.name, self.pieces, texts, self.transformer.seed)


TINY_MODEL = SceneModel(
    name="tiny",
    image=TINY_PICTURES,
    pieces=512,
    transformer=TINY,
    settings=Settings(temperature=0.0, image_temperature=0.7, top_p=0.95, guidance=1.5, window=200),
)
"""The shipped model: `chameleon-lab train tiny`, about 3 h 20 min on one core.

2.9 M parameters in the transformer, 1.4 M in the image tokenizer.
"""

MODELS = {TINY_MODEL.name: TINY_MODEL}


class TransformerStage:
    """A last stage, which trains the transformer of its `experiment`: what a `Run` asks of it the experiment knows."""

    @property
    def experiment(self) -> Experiment:
        raise NotImplementedError

    @property
    def seed(self) -> int:
        return self.experiment.seed

    @property
    def rules(self) -> Sequence[Rule]:
        return self.experiment.rules

    @property
    def checkpoints(self) -> int:
        return self.experiment.checkpoints

    @property
    def offers(self) -> Sequence[str]:
        return self.experiment.offers

    @property
    def precision(self) -> str:
        bf16 = torch.cuda.is_available() or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        return "bf16-mixed" if bf16 else "32-true"


@dataclass(frozen=True)
class SceneTransformer(TransformerStage):
    """The last stage of a `SceneModel`: its transformer on its `tokenizer`, drawing samples on the way and saved with
    both tokenizers in the end, in float16, as `model` beside the run's folder `transformer`."""

    name: str
    model: SceneModel
    tokenizer: MixedModalTokenizer

    @property
    def experiment(self) -> Experiment:
        return replace(self.model.transformer, data=replace(self.model.scenes, tokenizer=self.tokenizer))

    @property
    def budget(self) -> Budget:
        return self.experiment.budget

    def with_fixes(self, *fixes: Any) -> SceneTransformer:
        return replace(self, model=replace(self.model, transformer=self.model.transformer.with_fixes(*fixes)))

    def prepare(self, folder: Path) -> Prepared:
        prepared = self.experiment.prepare(folder)
        assert isinstance(prepared.module, LanguageModule)
        model, settings = prepared.module.model, self.model.settings
        return replace(prepared, sampler=Drawings(model, lambda: self.tokenizer, scene_requests, settings))

    def finish(self, module: LanguageModule, history: History, folder: Path) -> Chameleon:
        card = {
            "experiment": plain_values(self.model),
            "trained": date.today().isoformat(),
            "machine": f"{platform.machine()}, {module.processes} x {torch.get_num_threads()} CPU thread(s), "
            f"torch {torch.__version__}",
            "minutes": {
                "image tokenizer": _minutes(RunFolder(folder.with_name("image")).history),
                "transformer": _minutes(history),
            },
            "steps": len(history.records),
            "tokens": int(sum(history.series("tokens")[1])),
            "curve": curve(history),
            "infill": self.model.scenes.infill,
        }
        self.tokenizer.image.half()
        lab = Chameleon(module.model.half().eval(), self.tokenizer, self.model.settings, card)
        lab.save(_sibling(folder, "model"))
        return Chameleon.load(_sibling(folder, "model"))

    def product(self, folder: Path) -> Chameleon | None:
        written = _sibling(folder, "model")
        return Chameleon.load(written) if written.exists() else None


def _sibling(folder: Path, what: str) -> Path:
    """`model` for the folder `transformer`, `model-fork-1` for `transformer-fork-1`."""
    return folder.with_name(folder.name.replace("transformer", what))


class Pipeline:
    """Carries a model through its stages in a folder; what is done there is not done again.

    `folder/text`, `folder/image` and `folder/transformer` are the stages' runs, with what they drew on the way in their
    `samples`; `folder/model` is the finished model. `processes` share the transformer's training.
    """

    def __init__(self, model: SceneModel, folder: Path | str, processes: int = 1) -> None:
        self.model, self.folder, self.processes = model, Path(folder), processes

    @locks_folder
    def stages(self) -> Iterator[tuple[str, Run]]:
        """Each stage's name and its run, started; the next stage begins when it is asked for and this one is over."""
        text = self.model.text.run(self.folder / "text")
        yield "text tokenizer", text
        image = self.model.image.run(self.folder / "image")
        yield "image tokenizer", image
        tokenizer = MixedModalTokenizer(text.result(), image.result(), self.model.vocabulary)
        last = SceneTransformer(self.model.name, self.model, tokenizer)
        yield "transformer", Run(last, self.folder / "transformer", processes=self.processes).start()

    def train(self) -> Chameleon:
        """All stages, one after the other."""
        *_, last = (run.result() for _, run in self.stages())
        return last


def _minutes(history: History) -> float:
    return round(history.records[-1].seconds / 60, 1) if history.records else 0.0


def curve(history: History, points: int = 60) -> dict[str, list[float | None]]:
    """The course of training in about `points` points: minutes, and the mean losses since the point before."""
    edges = np.linspace(0, len(history.records), min(points, len(history.records)) + 1).astype(int)
    spans = [history.records[start:stop] for start, stop in pairwise(edges)]
    drawn: dict[str, list[float | None]] = {"minutes": [round(span[-1].seconds / 60, 2) for span in spans]}
    for name in ("text_loss", "image_loss"):
        losses = [[record.values[name] for record in span if name in record.values] for span in spans]
        drawn[name] = [round(float(np.mean(values)), 4) if values else None for values in losses]
    return drawn
