"""A model of a person's own data, from a folder to `Chameleon`: the same in a notebook and on the command line.

```python
training = OwnTraining("my pictures", "runs/mine", minutes=10)
mine = training.result()  # a Chameleon
```
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_lab.chameleon import Chameleon, load_image_tokenizer
from chameleon_lab.corpora.own_data import DataSource, GatheredData, gather, survey_lines
from chameleon_lab.files import intact, read_table, require_numbers
from chameleon_lab.generation.settings import Settings
from chameleon_lab.objective import Objective
from chameleon_lab.parts import require_count
from chameleon_lab.stability import Dropout, ZLoss
from chameleon_lab.storage import write_file
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.losses import Adversary
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.experiments import TINY
from chameleon_lab.training.folder import RunFolder, locks_folder
from chameleon_lab.training.image_experiments import TINY_PICTURES, ImageExperiment
from chameleon_lab.training.own.documents import OwnDocuments, longest_need, needs
from chameleon_lab.training.own.plan import (
    OwnPlan,
    fitting_text,
    given_shape,
    meeting_words,
    plan_own,
    planned_side,
    reading_words,
    seconds_of_steps,
    words_of,
)
from chameleon_lab.training.own.samples import ReconstructionSamples
from chameleon_lab.training.own.stages import (
    ANOTHER_FOLDER,
    DROPOUT,
    SHOWN_PICTURES,
    OwnTransformer,
    minutes_spent,
    own_pictures,
    own_pixels,
    saved_wishes,
)
from chameleon_lab.training.run import Run
from chameleon_lab.training.text_experiments import TextExperiment
from chameleon_lab.vocabulary import Vocabulary

log = logging.getLogger(__name__)

WARM_UP_SHARE = 0.1
"""Of the image tokenizer's time, after which its codebook begins at the latest."""

HELD_OUT_EVERY = 50
"""Steps from one held-out loss to the next: it takes about a fortieth of the time."""

ASIDE = 0.08
"""Share of the time for views, samples, held-out losses and scores."""

ROOMS = ("data", "text", "image", "transformer", "views", "samples", "model")
"""What a training's folder holds: none of it is ever a person's."""


class OwnTraining:
    """A training on a person's own data in a folder; what is done there is not done again.

    `data`: one source or several, as `DataSource.of` reads them; nothing is ever written there. `folder/data` holds
    what was gathered, `text`, `image` and `transformer` the runs, `views` the codes, `samples` contact sheets, and
    `model` the finished model. `image_tokenizer` is one that is used as it is, `begins_from` one that is trained on;
    `critic` the share of the image tokenizer's time after which a critic joins;
    the other options are those of `plan_own`, each with a default that says why. `steps`: so many of the image
    tokenizer and of the transformer, whatever the time: the same result on any machine. Called again, a training goes
    on; with more minutes than before its transformer does, and its image tokenizer stays.
    """

    def __init__(
        self,
        data: str | Path | DataSource | Sequence[str | Path | DataSource],
        folder: Path | str,
        minutes: float = 10.0,
        *,
        image_tokenizer: str | Path | None = None,
        begins_from: str | Path | None = None,
        critic: float | None = None,
        steps: tuple[int, int] | None = None,
        seed: int = 0,
        say: Callable[[str], object] | None = None,
        started: float | None = None,
        **options: Any,
    ) -> None:
        if image_tokenizer is not None and begins_from is not None:
            raise ValueError(
                "Give image_tokenizer, which stays as it is, or begins_from, which is trained on: not both."
            )
        if steps is not None:
            for count, what in zip(steps, ("image tokenizer", "transformer"), strict=False):
                require_count(count, f"steps of the {what}", 1)
            if len(steps) != 2:
                raise ValueError(f"steps are those of the image tokenizer and of the transformer, not {steps!r}.")
        require_count(seed, "the seed", 0)
        sources = [data] if isinstance(data, str | Path | DataSource) else list(data)
        self.sources, self.folder = [DataSource.of(each) for each in sources], Path(folder)
        for source in self.sources:
            if self.folder.resolve().is_relative_to(source.path.resolve()):
                raise ValueError(f"{self.folder} lies in {source.path}, where nothing is written: give another folder.")
            inside = source.path.resolve()
            if room := next((name for name in ROOMS if inside.is_relative_to((self.folder / name).resolve())), ""):
                raise ValueError(
                    f"{source.path} lies where this training writes its {room}, and is never written to: give another "
                    "folder."
                )
        self.minutes, self.steps, self.seed = float(minutes), steps, seed
        self.options = {name: value for name, value in options.items() if value is not None}
        self.critic = critic
        self.objective = replace(
            TINY_PICTURES.objective,
            adversary=None if critic is None else Adversary(width=32, layers=2, start_share=critic),
        )
        self.frozen = str(image_tokenizer) if image_tokenizer is not None else None
        self.begins_from = str(begins_from) if begins_from is not None else None
        self.say = say or log.info
        self._started = started  # of `time.monotonic()`; when its stages are asked for, unless given

    @property
    def finished(self) -> Path | None:
        """The finished model's folder, where there is one."""
        model = self.folder / "model"
        return model if model.exists() else None

    @locks_folder
    def prepare(self) -> OwnPlan:
        """Looks at the data and says what it saw, what it will do and how long that takes here."""
        image = given_shape(self.frozen or self.begins_from)
        side = planned_side(image, **self.options)
        began = last = time.monotonic()
        counts: list[int | None] = []  # of the sources' documents, looked up where reading takes long

        def progress(count: int) -> None:
            nonlocal last, counts
            if time.monotonic() - last > 10:
                last = time.monotonic()
                counts = counts or [each.expected() for each in self.sources]
                self.say(reading_words(count, counts, last - began))

        path = self.folder / "plan.json"
        data = gather(
            self.sources, self.folder / "data", side, seed=self.seed, anew=not path.is_file(), progress=progress
        )
        for line in survey_lines(data.survey):
            self.say(line)
        then, now = data.survey.get("census"), [each.census() for each in self.sources]
        if then is not None and then != now:
            totals = (sum(count for count, _ in each) for each in (then, now))
            self.say(
                "The sources have changed since they were read: {} files then, {} now. This training goes on with what "
                "it read; for what is new give another folder.".format(*totals)
            )
        wishes = {"frozen": self.frozen, "begins_from": self.begins_from, "seed": self.seed, "critic": self.critic}
        wishes |= self.options
        if path.is_file():
            before, plan = saved_wishes(self.folder)
            if apart := sorted(name for name in {*before, *wishes} if before.get(name) != wishes.get(name)):
                differences = ", ".join(f"{name} {before.get(name)}, now {wishes.get(name)}" for name in apart)
                raise ValueError(f"{self.folder} was begun with {differences}: give this training another folder.")
            if self.minutes > plan.minutes:
                plan = replace(plan, minutes=self.minutes)
                write_file(path, json.dumps({"wishes": wishes, "plan": asdict(plan)}, indent=2) + "\n")
            return plan
        plan = plan_own(data.survey, self.minutes, image=image, **self.options)
        texts = words_of(data.texts)
        text, image = fitting_text(texts, plan.pieces, "pieces" in plan.reasons), plan.grid**2 + 2
        plan = replace(plan, pieces=text.size)
        tokens = list(needs(data, text, image))
        if "context" in plan.reasons:
            plan = replace(plan, context=32 * math.ceil((max(tokens, default=0) + image) / 32))
        elif longer := sum(each > plan.context for each in tokens):
            self.say(
                f"{longer:,} of {len(tokens):,} entries become documents longer than the context of {plan.context:,} "
                f"tokens that you asked for, the longest of {max(tokens):,}: they end there."
            )
        if self.begins_from is not None:
            plan = replace(plan, image_minutes=0.33 * self.minutes)
        self._estimate(plan, data)
        write_file(path, json.dumps({"wishes": wishes, "plan": asdict(plan)}, indent=2) + "\n")
        return plan

    def _estimate(self, plan: OwnPlan, data: GatheredData) -> None:
        for line in plan.lines():
            self.say(line)
        vocabulary = plan.codes + plan.pieces + 64
        image, step = seconds_of_steps(plan, vocabulary, frozen=plan.image_minutes == 0 or self.begins_from is not None)
        left = 60 * (0.9 * plan.minutes - plan.image_minutes)
        steps, trained = max(1, int(left / step)), max(1, len(data.part()))
        exposures = steps * plan.tokens / (plan.grid**2 + 16) / trained
        if image:
            steps_of_image = 60 * plan.image_minutes / image
            self.say(f"Here: image tokenizer {plan.image_minutes:.1f} min, about {steps_of_image:,.0f} steps.")
        self.say(
            f"Here: transformer {left / 60:.1f} min, about {steps:,} steps, {plan.tokens / step:,.0f} tokens a second: "
            f"{meeting_words(exposures, trained)}"
        )
        if trained < 50:
            self.say(
                f"{trained} documents teach a model these and no others: it will know them by heart, and nothing else."
            )
        if exposures < 20:
            minutes = left / 60 * 20 / exposures
            self.say(
                "Met less than 20 times, pictures come out as blobs of the right colour: more minutes help most. The "
                f"transformer alone takes about {minutes:,.0f} minutes to meet each 20 times."
            )

    @locks_folder
    def stages(self) -> Iterator[tuple[str, Run]]:
        """Each stage's name and its run, started; the next stage begins when it is asked for and this one is over."""
        self._started = self._started or time.monotonic()
        plan, place, name = self.prepare(), self.folder, self.folder.name
        data = GatheredData(place / "data")
        text = TextExperiment(name, plan.pieces, partial(_own_texts, gathered=place / "data"), self.seed)
        run = text.run(place / "text")
        yield "text tokenizer", run
        words = run.result()
        if self.frozen is not None:
            image = load_image_tokenizer(self.frozen, device="cpu")
        else:
            run = self._image_experiment(plan).run(place / "image")
            yield "image tokenizer", run
            image = run.result()
        self._say_reconstruction(image, data)
        tokenizer = MixedModalTokenizer(words, image, Vocabulary.layout(image.codes, words.size))
        yield "transformer", Run(self._transformer(plan, data, tokenizer), place / "transformer").start()

    def result(self) -> Chameleon:
        """All stages, one after the other: the model, as it is loaded from `folder/model`."""
        *_, last = (run.result() for _, run in self.stages())
        return last

    def _image_experiment(self, plan: OwnPlan) -> ImageExperiment:
        image = given_shape(self.begins_from)
        rate = TINY_PICTURES.recipe.rate if image is None else 0.1 * TINY_PICTURES.recipe.rate
        return replace(
            TINY_PICTURES,
            name=self.folder.name,
            tokenizer=image or plan.image,
            begins_from=self.begins_from,
            warm_up_share=WARM_UP_SHARE,
            recipe=replace(TINY_PICTURES.recipe, rate=rate),
            objective=self.objective,
            budget=Budget(minutes=plan.image_minutes) if self.steps is None else Budget(steps=self.steps[0]),
            source=partial(own_pixels, gathered=self.folder / "data"),
            report=partial(_reconstruction_samples, place=self.folder),
            seed=self.seed,
        )

    def _say_reconstruction(self, image: ImageTokenizer, data: GatheredData) -> None:
        pictures = own_pictures(data, 16)
        if not pictures:
            return
        psnr = float(np.mean([image.reconstruct(each).psnr for each in pictures]))
        self.say(f"The image tokenizer brings your pictures back at {psnr:.1f} dB.")
        if psnr < 18:
            self.say(
                "Below 18 dB shapes are lost, and no transformer brings them back: train the image tokenizer for longer"
                + (", or begin from the given one with begins_from." if self.frozen else ".")
            )

    def _transformer(self, plan: OwnPlan, data: GatheredData, tokenizer: MixedModalTokenizer) -> OwnTransformer:
        need = longest_need(data, tokenizer.text, tokenizer.image_tokens)
        documents = OwnDocuments(self.folder / "data", self.folder / "views", tokenizer, plan.tokens)
        budget = Budget(minutes=self._transformer_minutes(plan)) if self.steps is None else Budget(steps=self.steps[1])
        base = replace(
            TINY,
            name=self.folder.name,
            model=plan.model,
            data=documents,
            budget=Budget(minutes=1.0),  # the stage has its own, which may grow
            objective=Objective(penalties=(ZLoss(1e-4),)),
            seed=self.seed,
        ).with_fixes(Dropout(DROPOUT))
        settings = Settings(temperature=0.0, image_temperature=0.7, top_p=0.95, guidance=1.5, window=need)
        return OwnTransformer(base, tokenizer, settings, self.folder, budget, HELD_OUT_EVERY)

    def _transformer_minutes(self, plan: OwnPlan) -> float:
        """What is left of the time asked for, as it was when this stage was first begun, and what was added since."""
        path = self.folder / "transformer.json"
        if path.is_file():
            with intact(path, ANOTHER_FOLDER):
                saved = read_table(path)
                require_numbers(saved, path, **dict.fromkeys(("minutes", "minutes asked"), (float, 0.0, 1e7)))
                return saved["minutes"] + plan.minutes - saved["minutes asked"]
        image_seconds = 60 * minutes_spent(RunFolder(self.folder / "image").history)
        spent = max(time.monotonic() - (self._started or math.inf), image_seconds) / 60
        minutes = round(max(0.1 * plan.minutes, plan.minutes - spent - ASIDE * plan.minutes), 3)
        write_file(path, json.dumps({"minutes asked": plan.minutes, "minutes": minutes}) + "\n")
        return minutes


def _own_texts(experiment: TextExperiment, gathered: Path) -> list[str]:
    return words_of(GatheredData(gathered).texts)


def _reconstruction_samples(tokenizer: ImageTokenizer, place: Path) -> ReconstructionSamples:
    return ReconstructionSamples(
        tokenizer, place / "samples", own_pictures(GatheredData(place / "data"), SHOWN_PICTURES)
    )
