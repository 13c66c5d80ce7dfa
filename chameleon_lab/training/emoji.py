"""The trainings of the emoji model: its BPE, its image tokenizer and its transformer, on a corpus built in a folder.

`python -m chameleon_lab.training.emoji CORPUS FOLDER` carries it through all three; called again, it goes on.
"""

from __future__ import annotations

import argparse
import logging
import platform
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints import native
from chameleon_lab.corpora.conversations import Choice
from chameleon_lab.corpora.emoji import COLOUR_IN, DRAW, KINDS_OF_SKETCH, STYLE_NAMES, WHAT, Emoji, as_typed
from chameleon_lab.corpora.emoji_artwork import LANGUAGES, PACKAGES, Drawn
from chameleon_lab.corpora.packing import Batch, bucket, tokenize
from chameleon_lab.documents import Document, Image
from chameleon_lab.generation.settings import Settings
from chameleon_lab.history import StepRecord
from chameleon_lab.monitors.alarms import NotANumber
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import CoolDown
from chameleon_lab.plain import plain_values
from chameleon_lab.processes import in_processes
from chameleon_lab.signals import exit_code
from chameleon_lab.stability import ZLoss
from chameleon_lab.storage import write_file
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.preparation import pixels_of
from chameleon_lab.tokenizers.quantizers import spread_book
from chameleon_lab.training.ahead import made_ahead, spare_cores
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import Corpus
from chameleon_lab.training.experiments import TINY, Experiment
from chameleon_lab.training.folder import locks_folder
from chameleon_lab.training.image_experiments import TINY_PICTURES, ImageExperiment, Pixels
from chameleon_lab.training.text_experiments import TextExperiment
from chameleon_lab.vocabulary import Modality, Vocabulary

log = logging.getLogger(__name__)

SKETCHES = 0.1  # share of pictures that are outlines, silhouettes and greys
PIECES = 1536
"""569 letters of five writings and 256 bytes among them: of 1,024, too few would be left for words."""

opened = lru_cache(maxsize=4)(Emoji)


# The image tokenizer


@dataclass(frozen=True)
class EmojiImages:
    """Pixels of the trainable drawings and some sketches, each freshly shifted, a pure function of (seed, step)."""

    folder: Path | str
    seed: int
    batch: int
    side: int

    def __call__(self, step: int) -> Tensor:
        rng = np.random.default_rng([self.seed, 8, step])
        return torch.stack([pixels_of(self._picture(rng)) for _ in range(self.batch)])

    def _picture(self, rng: np.random.Generator):
        emoji = opened(self.folder)
        idea, style = emoji.any(rng)
        if rng.random() < SKETCHES:
            return emoji.sketch(idea, style, str(rng.choice(KINDS_OF_SKETCH)), rng, self.side)
        return emoji.picture(idea, style, rng, self.side)


def _pixels(experiment: ImageExperiment, folder: Path | str) -> Pixels:
    return made_ahead(partial(EmojiImages, folder, experiment.seed, experiment.batch, experiment.side))


def emoji_images(folder: Path | str) -> ImageExperiment:
    """The image tokenizer of the emoji model: 64 x 64 pixels to 8 x 8 codes of 2048, before `with_spread_codes`.

    3.0 M parameters, half as wide again as the tiny model's; its perceptual loss needs the extra `features`.
    """
    return replace(
        TINY_PICTURES,
        name="emoji",
        tokenizer=replace(TINY_PICTURES.tokenizer, codes=2048, widths=(96, 192)),
        objective=replace(TINY_PICTURES.objective, perceptual="efficientnet"),
        budget=Budget(minutes=30),
        source=partial(_pixels, folder=folder),
        precision="bf16-mixed",
    )


CODES = 512
PICTURES = 800


def with_spread_codes(tokenizer: ImageTokenizer, folder: Path | str, codes: int = CODES) -> ImageTokenizer:
    """The tokenizer with a book of so many codes, fitted anew to the trainable drawings.

    Of the 2048 that training leaves, 731 stand on white, which the transformer would have to learn by heart: 7.5 nats a
    code at 23.7 dB. Of 512 spread ones it has 6.0 nats to learn, at 23.4 dB (100 drawings, 26 November 2026).
    """
    emoji, rng = Emoji(folder), np.random.default_rng(13)
    drawings, latents = emoji.drawings(), list[Tensor]()
    picks = rng.choice(len(drawings), min(PICTURES, len(drawings)), replace=False)
    for number, place in enumerate(picks):
        picture = emoji.picture(*drawings[place], rng=rng if number % 2 else None)
        with torch.inference_mode():
            latents_BCHW = tokenizer.quant_conv(tokenizer.encoder(pixels_of(picture)[None]))
        latents.append(latents_BCHW.movedim(1, -1).flatten(0, 2))
    fitted = ImageTokenizer(replace(tokenizer.config, codes=codes, quantizer="vector")).eval()
    book = {"quantize.embedding.weight": spread_book(torch.cat(latents), codes)}
    rest = {name: tensor for name, tensor in tokenizer.state_dict().items() if not name.startswith("quantize.")}
    fitted.load_state_dict(rest | book)
    return fitted


# The text tokenizer


def emoji_texts(experiment: TextExperiment, folder: Path | str) -> list[str]:
    """All names, asked for in their language; English three times, since it has most documents."""
    texts = list[str]()
    for idea in Emoji(folder).ideas:
        for number, style in enumerate(idea.styles):
            language = LANGUAGES[number % len(LANGUAGES)]
            plain, styled = DRAW[language]
            texts += [styled.format(idea.names[language], STYLE_NAMES[style]), plain.format(idea.names[language])]
            texts += [COLOUR_IN[language].format(idea.names[language]), WHAT[language]]
        texts += [*idea.names.values(), idea.names["en"], idea.names["en"], idea.family]
    return texts


# The transformer

EMOJI_WEIGHTS = {
    "drawing": 0.34,
    "naming": 0.33,
    "caption": 0.06,
    "restyling": 0.08,
    "colouring": 0.05,
    "free": 0.04,
    "style": 0.04,
    "list": 0.03,
    "category": 0.03,
}
"""Shares of documents. Naming is a third; a tenth of all single drawings is `free`, without the words."""


class Views:
    """Shows drawings as codes, each encoded once: those to learn in one of `drawn` places, others in one of `read`.

    The first place is where the artist put it. To draw a shifted picture is to learn other codes altogether, which a
    small model pays for with blur; to read one is what makes naming robust.
    """

    PICTURE = PIL.Image.new("RGB", (1, 1), "white")  # codes are used instead

    def __init__(self, tokenizer: ImageTokenizer, drawn: int, read: int) -> None:
        self.tokenizer, self.drawn, self.read = tokenizer, drawn, read
        self._codes: dict[tuple[str, str, str, int], np.ndarray] = {}

    def __call__(self, emoji: Emoji, idea: Drawn, style: str, sketch: str, rng: Choice, learn: bool) -> Image:
        place = int(rng.integers(self.drawn if learn or sketch else self.read))
        key = idea.idea, style, sketch, place
        if key not in self._codes:
            self._codes[key] = self._encoded(emoji, idea, style, sketch, place)
        return Image(self.PICTURE, self._codes[key], learn)

    def _encoded(self, emoji: Emoji, idea: Drawn, style: str, sketch: str, place: int) -> np.ndarray:
        placed = np.random.default_rng([zlib.crc32(idea.idea.encode()), place]) if place else None
        picture = emoji.sketch(idea, style, sketch, placed) if sketch else emoji.picture(idea, style, placed)
        with torch.autocast(self.tokenizer.device.type, enabled=False):  # a training step asks for this
            return self.tokenizer.encode(picture).astype(np.int16)

    def fill(self, emoji: Emoji, processes: int) -> None:
        """Encodes all that documents can ask for at once, so that none of several processes does it for itself."""
        work = in_processes(_views_of, emoji.drawings(), processes, _open_views, self, emoji.folder)
        for codes in work:
            self._codes |= codes

    def of(self, emoji: Emoji, idea: Drawn, style: str) -> dict[tuple[str, str, str, int], np.ndarray]:
        """All views of a drawing."""
        keys = [("", place) for place in range(max(self.drawn, self.read))]
        keys += [(sketch, place) for sketch in KINDS_OF_SKETCH for place in range(self.drawn)]
        return {
            (idea.idea, style, sketch, place): self._encoded(emoji, idea, style, sketch, place)
            for sketch, place in keys
        }


_view_source: tuple[Views, Emoji] | None = None


def _open_views(views: Views, folder: Path) -> None:
    global _view_source
    _view_source = views, Emoji(folder)


def _views_of(drawing: tuple[Drawn, str]) -> dict[tuple[str, str, str, int], np.ndarray]:
    assert _view_source is not None
    views, emoji = _view_source
    return views.of(emoji, *drawing)


@dataclass(frozen=True)
class EmojiDocuments:
    """What the transformer trains on: documents of `weights`' kinds, drawn as they are needed, `tokens` a step.

    `drawn`, `read`: in how many places a drawing stands where it is drawn, and where it is read (see `Views`).
    `noise`: share of the codes that are read which are replaced by random ones, twice as many in one row as in the
    mean at most; so a picture is not continued by its own beginning alone. The first codes of a picture to draw, so
    many as `first` says, weigh `first_weight` times the others: there the words decide. `held_out`: so many documents,
    drawn apart from the same ideas, as they are at step -1.
    """

    folder: Path | str
    tokenizer: MixedModalTokenizer
    tokens: int = 2048
    weights: Mapping[str, float] = field(default_factory=lambda: dict(EMOJI_WEIGHTS))
    drawn: int = 1
    read: int = 16
    noise: float = 0.15
    first: int = 24
    first_weight: float = 2.0

    def open(self, seed: int, steps: int | None) -> Corpus:
        views = Views(self.tokenizer.image, self.drawn, self.read)
        if processes := spare_cores():
            views.fill(Emoji(self.folder), processes)
        batches = made_ahead(partial(EmojiBatches, self, seed, views=views))
        return Corpus(self.tokenizer.vocabulary, batches, tokenizer=lambda: self.tokenizer)


class EmojiBatches:
    """Batches of documents, a pure function of (seed, step), made `pool` at a time, so that like lengths share one."""

    MEAN_LENGTH = 98
    """Tokens of an average document under `EMOJI_WEIGHTS`."""

    def __init__(self, data: EmojiDocuments, seed: int, pool: int = 16, views: Views | None = None) -> None:
        self.data, self.seed, self.pool = data, seed, pool
        self.emoji = Emoji(data.folder, views or Views(data.tokenizer.image, data.drawn, data.read))
        self._batches = lru_cache(maxsize=1)(self._pool)

    def __call__(self, step: int) -> Batch:
        index, place = divmod(step, self.pool)
        batches = self._batches(index)
        return emphasized(batches[place % len(batches)], self.data, np.random.default_rng([self.seed, 10, step]))

    def documents(self, rng: np.random.Generator, count: int) -> list[Document]:
        names, weights = list(self.data.weights), np.array(list(self.data.weights.values()))
        kinds = self.emoji.kinds
        drawn = rng.choice(names, size=count, p=weights / weights.sum())
        return [as_typed(kinds[str(kind)](rng), rng) for kind in drawn]

    def _pool(self, index: int) -> list[Batch]:
        rng = np.random.default_rng([self.seed, 9, index])
        documents = self.documents(rng, self.pool * max(1, self.data.tokens // self.MEAN_LENGTH))
        return bucket(tokenize(documents, self.data.tokenizer), self.pool, self.data.tokenizer.vocabulary, rng)


def emphasized(batch: Batch, data: EmojiDocuments, rng: np.random.Generator) -> Batch:
    """The batch with noise on the codes that are read, and weights on the first codes of its images."""
    vocabulary, inputs_BT = data.tokenizer.vocabulary, batch.inputs_BT.numpy().copy()
    share_B1 = rng.uniform(0, 2 * data.noise, (len(inputs_BT), 1))
    noisy_BT = (vocabulary.modality[inputs_BT] == Modality.IMAGE) & (rng.random(inputs_BT.shape) < share_B1)
    inputs_BT[noisy_BT] = vocabulary.first_image + rng.integers(vocabulary.codes, size=int(noisy_BT.sum()))
    is_code_BT = batch.modality_BT.numpy() == Modality.IMAGE
    place_BT = (is_code_BT.cumsum(1) - 1) % int(np.prod(data.tokenizer.grid))  # whole images of one grid
    weights_BT = np.where(is_code_BT & (place_BT < data.first), data.first_weight, 1.0).astype(np.float32)
    return replace(batch, inputs_BT=torch.from_numpy(inputs_BT), weights_BT=torch.from_numpy(weights_BT))


def emoji_transformer(folder: Path | str, tokenizer: MixedModalTokenizer, tokens: int) -> Experiment:
    """The transformer of the emoji model, 4.6 M parameters, on so many `tokens` a step."""
    shape = {"width": 256, "layers": 5, "heads": 8, "kv_heads": 8, "ffn_width": 704, "context": 320}
    return replace(
        TINY,
        name="emoji",
        model=replace(TINY.model, **shape),
        data=EmojiDocuments(folder, tokenizer, tokens),
        recipe=replace(TINY.recipe, schedule=CoolDown(0.35)),
        objective=Objective(text_weight=3.0, penalties=(ZLoss(1e-4),)),
        budget=Budget(minutes=240),
        monitors=(),  # time is what this training has least of
        rules=(NotANumber(),),
        precision="bf16-mixed",
    )


# All of it

EMOJI_SETTINGS = Settings(temperature=0.0, image_temperature=0.7, top_p=0.95, guidance=1.0, window=200)


@locks_folder
def train_emoji(
    corpus: Path | str,
    folder: Path | str,
    minutes: tuple[float, float] = (30, 240),
    codes: int = CODES,
    tokens: int = 2048,
    every: float = 30.0,
) -> Chameleon:
    """The emoji model, from all three stages' runs in a folder; it is written to `folder/model`.

    `minutes` of the image tokenizer and of the transformer. Called again, what is done is not done again, and a
    transformer whose minutes are more than before goes on. Every so many seconds the log says how far it is.
    """
    folder = Path(folder)
    text = TextExperiment("emoji", PIECES, partial(emoji_texts, folder=corpus)).run(folder / "text").result()
    image = _image_tokenizer(corpus, folder, minutes[0], codes, every)
    image_card = native.read_model_card(folder / "spread")
    tokenizer = MixedModalTokenizer(text, image, Vocabulary.layout(image.codes, text.size))
    experiment = replace(emoji_transformer(corpus, tokenizer, tokens), budget=Budget(minutes=minutes[1]))
    run = experiment.run(folder / "transformer")
    history = run.wait(report=_Progress("transformer", every))
    card = {
        "experiment": plain_values(replace(experiment, data=None)),
        "data": {
            name: value for name, value in plain_values(experiment.data).items() if name not in ("folder", "tokenizer")
        },
        "trained": date.today().isoformat(),
        "machine": _machine(),
        "image tokenizer": image_card,
        "minutes": round(history.records[-1].seconds / 60, 1),
        "steps": len(history.records),
        "tokens": int(sum(history.series("tokens")[1])),
        "artwork": [f"{each.credit} ({each.name} {each.version}, {each.licence})" for each in PACKAGES],
        "notes": CARD_NOTES,
        "infill": 0.0,
    }
    image.half()
    Chameleon(run.result().cpu().half(), tokenizer, EMOJI_SETTINGS, card).save(folder / "model")
    write_file(folder / "model" / "ideas.jsonl", (Path(corpus) / "ideas.jsonl").read_bytes())
    return Chameleon.load(folder / "model")


def _image_tokenizer(corpus: Path | str, folder: Path, minutes: float, codes: int, every: float) -> ImageTokenizer:
    """The trained one with spread codes, as it stands in `folder/spread`."""
    mark = f"{zlib.crc32((Path(corpus) / 'ideas.jsonl').read_bytes()):08x}"
    if not (folder / "spread").exists():
        images = replace(emoji_images(corpus), budget=Budget(minutes=minutes)).run(folder / "image")
        history = images.wait(report=_Progress("image tokenizer", every))
        spread = with_spread_codes(images.result().cpu().float(), corpus, codes)
        card = {
            "codes": f"{codes}, spread by k-means++",
            "ideas": mark,
            "minutes": round(history.records[-1].seconds / 60, 1),
            "machine": _machine(),
        }
        native.write_image_tokenizer(spread.half(), folder / "spread", card)
    image = native.read_native_images(folder / "spread").float()
    if (image.codes, native.read_model_card(folder / "spread").get("ideas", mark)) != (codes, mark):
        raise ValueError(
            f"{folder} was begun with {image.codes} codes, or with another corpus: give this training another folder."
        )
    return image


def _machine() -> str:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU thread(s)"
    return f"{platform.machine()}, {where}, torch {torch.__version__}"


CARD_NOTES = [
    "it knows emoji by heart: 885 ideas as five hands drew them, in five languages, and nothing else",
    "its image tokenizer's codes were spread anew after its training (see `with_spread_codes`)",
    "its image tokenizer was trained with features of EfficientNet-Lite0 (Apache-2.0), which judge its drawings, too",
]


class _Progress:
    """Says now and then how far a run is."""

    def __init__(self, stage: str, every: float) -> None:
        self.stage, self.every, self.last = stage, every, time.monotonic()

    def __call__(self, record: StepRecord) -> None:
        if time.monotonic() - self.last < self.every:
            return
        self.last = time.monotonic()
        values = "  ".join(f"{name} {record.values[name]:.3g}" for name in PROGRESS_VALUES if name in record.values)
        log.info("%-15s %6.1f min  step %d  %s", self.stage, record.seconds / 60, record.step + 1, values)


PROGRESS_VALUES = ("psnr", "usage", "text_loss", "image_loss", "rate")


def train_emoji_command(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="what `python -m chameleon_lab.corpora.emoji_artwork` built")
    parser.add_argument("folder", type=Path, help="where the runs and the model go")
    parser.add_argument("--image-minutes", type=float, default=30, help="for the image tokenizer (default: 30)")
    parser.add_argument("--minutes", type=float, default=240, help="for the transformer, in all (default: 240)")
    parser.add_argument("--tokens", type=int, default=2048, help="a step; a GPU likes 32768 (default: 2048)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.threads:
        torch.set_num_threads(options.threads)
    minutes = options.image_minutes, options.minutes
    train_emoji(options.corpus, options.folder, minutes, tokens=options.tokens)
    log.info("The model is in %s.", options.folder / "model")


if __name__ == "__main__":
    # By its own name: what an experiment names in `__main__` counts as a person's own, and as another one.
    from chameleon_lab.training.emoji import train_emoji_command as command

    raise SystemExit(exit_code(command))
