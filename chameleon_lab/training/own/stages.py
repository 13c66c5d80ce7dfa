"""Stages of a training on a person's own data: the pixels of its image tokenizer, and its transformer."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.own_data import GatheredData
from chameleon_lab.corpora.own_documents import PAIR_WEIGHTS, draw_words
from chameleon_lab.corpora.views import view_of
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.files import intact, read_table
from chameleon_lab.generation.settings import Settings
from chameleon_lab.history import History
from chameleon_lab.plain import plain_values
from chameleon_lab.storage import write_file
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.preparation import pixels_of
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.experiments import Experiment
from chameleon_lab.training.folder import RunFolder
from chameleon_lab.training.image_experiments import ImageExperiment, Pixels
from chameleon_lab.training.own.card import own_page
from chameleon_lab.training.own.documents import OwnDocuments, TokenizedViews, tokenize_views
from chameleon_lab.training.own.plan import OwnPlan
from chameleon_lab.training.own.samples import BestWeights, DrawingSamples
from chameleon_lab.training.own.scores import own_scores
from chameleon_lab.training.pipeline import TransformerStage, curve
from chameleon_lab.training.samples import Drawings
from chameleon_lab.training.trainable import Prepared

PATIENCE = 0.33
"""Share of the time without a lower held-out loss after which a training that stops early stops."""

DROPOUT = 0.1
SHOWN_PICTURES = 8


@dataclass(frozen=True)
class OwnPixels:
    """Views of the gathered pictures that are trained on, fresh in each step: `pixels(step) -> pixels_BCHW`."""

    data: GatheredData
    side: int
    batch: int
    seed: int

    def __call__(self, step: int) -> torch.Tensor:
        rng, numbers, mirrors = np.random.default_rng([self.seed, 15, step]), self.data.trained, self.data.mirrors
        chosen = [numbers[int(place)] for place in rng.integers(len(numbers), size=self.batch)]
        views = [view_of(self.data.pixels[each], self.side, rng, mirrors.get(each, False)) for each in chosen]
        return torch.stack([pixels_of(view) for view in views])


def own_pixels(experiment: ImageExperiment, gathered: Path) -> Pixels:
    data = GatheredData(gathered)
    if not data.trained:
        raise ValueError(
            f"{data.survey['sources'][0]['path']} holds no pictures to train an image tokenizer on: use one that is "
            "there, such as image_tokenizer='tiny' (--image-tokenizer tiny)."
        )
    return OwnPixels(data, experiment.side, experiment.batch, experiment.seed)


@dataclass(frozen=True)
class OwnTransformer(TransformerStage):
    """The last stage: the transformer on the data in `place`, which draws samples on the way, is scored in the end and
    saved with both tokenizers as `place/model`."""

    base: Experiment
    tokenizer: MixedModalTokenizer
    settings: Settings
    place: Path
    budget: Budget
    held_out_every: int

    @property
    def experiment(self) -> Experiment:
        return replace(self.base, budget=self.budget, held_out_every=self.held_out_every)

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def documents(self) -> OwnDocuments:
        assert isinstance(self.base.data, OwnDocuments)
        return self.base.data

    @property
    def plan(self) -> OwnPlan:
        return saved_plan(self.place)

    def with_fixes(self, *fixes: Any) -> OwnTransformer:
        return replace(self, base=self.base.with_fixes(*fixes))

    def prepare(self, folder: Path) -> Prepared:
        data = GatheredData(self.place / "data")
        seconds = max(1.0, 0.04 * 60 * self.plan.minutes) if self.budget.steps is None else None
        views = tokenize_views(data, self.tokenizer, self.place / "views", seconds=seconds, seed=self.seed)
        prepared = self.experiment.prepare(folder)
        lab = Chameleon(prepared.module.model, self.tokenizer, self.settings)  # pyright: ignore[reportArgumentType]
        best = BestWeights(folder / "best.pt", PATIENCE if self.plan.stops_early else None)
        examples = [*data.pairs()[: SHOWN_PICTURES - 2], *data.pairs(held_out=True)[:2]]
        pictures = [lab.tokenizer.image.decode(views.plain(each["picture"])) for each in examples]
        share = min(0.5, max(0.1, 2.0 / self.plan.minutes))
        samples = DrawingSamples(
            lab, self.place / "samples", [each["captions"][0] for each in examples], pictures, share
        )

        def report(module: Any, record: Any) -> None:
            best(module, record)
            samples(module, record)

        prompts = [(Document.of(draw_words(each["captions"][0]), EndTurn()), True) for each in examples[:4]]
        sampler = Drawings(lab.model, lambda: self.tokenizer, lambda _: prompts, self.settings)
        return replace(prepared, report=report, sampler=sampler)

    def finish(self, module: Any, history: History, folder: Path) -> Chameleon:
        data, views = GatheredData(self.place / "data"), TokenizedViews(self.place / "views")
        best = BestWeights(folder / "best.pt", PATIENCE if self.plan.stops_early else None)
        restored = best.restore(module)
        lab = Chameleon(module.model.eval(), self.tokenizer, self.settings)
        few = 24 if self.plan.minutes >= 1 else 8
        image = RunFolder(self.place / "image").history
        card = {
            "what": "a model of one's own data",
            "survey": data.survey,
            "plan": plain_values(self.plan),
            "begins from": saved_wishes(self.place)[0],
            "mixture": dict(PAIR_WEIGHTS),
            "augmentation": {
                "views of each picture": views.card["views"],
                "mirrored pictures": data.survey["mirrored"],
            },
            "noise on input codes": self.documents.noise,
            "dropout": DROPOUT,
            "stopped": f"at the least held-out loss, {best.place:.0%} of the time" if restored else "at the end",
            "scores": own_scores(lab, data, views, few),
            "trained": date.today().isoformat(),
            "infill": 0.0,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} CPU thread(s), torch {torch.__version__}",
            "minutes": {"image tokenizer": minutes_spent(image), "transformer": minutes_spent(history)},
            "steps": len(history.records),
            "tokens": int(sum(history.series("tokens")[1])),
            "curve": curve(history),
        }
        lab = Chameleon(module.model.half().eval(), self.tokenizer, self.settings, card)
        lab.save(self.place / "model")
        write_file(self.place / "model" / "README.md", own_page(card))
        module.model.float()
        return Chameleon.load(self.place / "model")

    def product(self, folder: Path) -> Chameleon | None:
        written = self.place / "model"
        if not written.exists():
            return None
        lab = Chameleon.load(written)
        if not (written / "README.md").exists():  # it was killed between the two
            write_file(written / "README.md", own_page(lab.card))
        return lab


def saved_plan(place: Path) -> OwnPlan:
    """The plan that a training in this folder follows. Raises ValueError, naming the file, where it is damaged."""
    return saved_wishes(place)[1]


def saved_wishes(place: Path) -> tuple[dict[str, Any], OwnPlan]:
    """What was asked for when a training was begun, and its plan."""
    path = place / "plan.json"
    with intact(path, ANOTHER_FOLDER):
        saved = read_table(path)
        if not isinstance(saved["wishes"], dict):
            raise TypeError("its wishes are no object")
        return saved["wishes"], OwnPlan(**saved["plan"])


ANOTHER_FOLDER = "Put a copy of it there, or give this training another folder."


def minutes_spent(history: History) -> float:
    return round(history.records[-1].seconds / 60, 2) if history.records else 0.0


def own_pictures(data: GatheredData, most: int) -> list[PIL.Image.Image]:
    """Held-out pictures, or where there are none those that are trained on."""
    numbers = data.pictures_of(held_out=True) or data.pictures_of()
    return [PIL.Image.fromarray(np.asarray(data.pixels[number])) for number in numbers[:most]]
