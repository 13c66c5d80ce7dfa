"""Samples of a model in training: what it makes of the same few prompts now, beside what it made of them before."""

from __future__ import annotations

import io
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.packing import Batch
from chameleon_lab.corpora.scenes import arrange
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.generation.grammar import MODALITY_SWITCHES
from chameleon_lab.generation.settings import Settings
from chameleon_lab.history import Sample
from chameleon_lab.storage import write_file
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.preparation import picture_of
from chameleon_lab.training.folder import RunFolder
from chameleon_lab.training.trainable import Exhibit, Exhibitor

if TYPE_CHECKING:
    from chameleon_lab.training.modules import PacedModule
    from chameleon_lab.transformer import Transformer

log = logging.getLogger(__name__)

SHARE = 1 / 24
"""Of the budget, from one sample to the next."""

COST = 0.05
"""The time that samples may take, as a share of that of the steps: where they are slow, they are fewer."""

FIRST_SECONDS = 2.0
"""Of training before the first sample, so that a run of a moment has none."""

APART = 1_000_000_007
"""A place among the batches that no training comes to: its pictures are not those that were trained on."""

WORDS = 40
"""Tokens of a sample in words."""

REQUESTS = (
    "draw a large red circle in the center on a gray background",
    "draw a small blue star in the top left on a pink background",
    "draw a red circle left of a blue square",
)
SCENE = arrange([("triangle", "purple", "large"), ("star", "red", "small")], "beside", "mint")


class SampleBook:
    """The samples of one run: asks a sampler when it is time, and writes what comes into the run's folder.

    Training does not notice: its clock stands, and its random numbers are put back. A sampler that fails ends no
    training: the log says why, and there are no further samples.
    """

    def __init__(self, folder: RunFolder, sampler: Exhibitor | None) -> None:
        self._folder, self._sampler = folder, sampler
        self._next, self._spent, self._last = 0.0, 0.0, 0.0

    def turn(self, module: PacedModule) -> None:
        """Called after each step: takes a sample where one is due."""
        due = module.progress >= self._next or module.progress >= 1
        if self._sampler is None or not due or module.seconds < FIRST_SECONDS:
            return
        if self._spent + self._last > COST * module.seconds:
            return
        self._next = (module.progress // SHARE + 1) * SHARE
        began = time.perf_counter()
        try:
            self._take(module, self._sampler)
        except Exception as error:  # weights that are no numbers draw nothing, and a disk may be full
            log.warning("There are no further samples of this run: %s: %s", type(error).__name__, error)
            self._sampler = None
        self._last = time.perf_counter() - began
        self._spent += self._last

    def _take(self, module: PacedModule, sampler: Exhibitor) -> None:
        random, trains = torch.get_rng_state(), module.training
        module.eval()
        try:
            exhibits = sampler()
        finally:
            module.train(trains)
            torch.set_rng_state(random)
        step = module.step - 1
        if exhibits:
            log.info("samples         step %d, in %s", step, self._folder.folder / "samples")
        for at, exhibit in enumerate(exhibits):
            files = {"picture": "", "original": ""}
            for kind, path, picture in (
                ("picture", f"samples/step-{step:08d}-{at}.png", exhibit.picture),
                ("original", f"samples/original-{at}.png", exhibit.original),
            ):
                if picture is not None:
                    files[kind] = path
                    out = io.BytesIO()
                    picture.save(out, "PNG")
                    if kind == "picture" or not (self._folder.folder / path).exists():
                        write_file(self._folder.folder / path, out.getvalue())
            self._folder.ledger.note(Sample(step, exhibit.name, words=exhibit.words, **files))


class Reconstructions:
    """What an image tokenizer makes of the same few pictures, and its PSNR on each."""

    def __init__(self, tokenizer: ImageTokenizer, batches: Callable[[int], torch.Tensor], count: int = 4) -> None:
        self.tokenizer, self.batches, self.count = tokenizer, batches, count
        self._pixels: torch.Tensor | None = None

    @torch.no_grad()
    def __call__(self) -> list[Exhibit]:
        if self._pixels is None:
            self._pixels = self.batches(APART)[: self.count].cpu()
        pixels_BCHW = self._pixels.to(self.tokenizer.device)
        rebuilt_BCHW = self.tokenizer.decode_pixels(self.tokenizer.encode_pixels(pixels_BCHW)).float().clamp(-1, 1)
        errors_B = (rebuilt_BCHW - pixels_BCHW).square().mean((1, 2, 3)).clamp_min(1e-10)
        figures = (10 * torch.log10(4 / errors_B)).tolist()
        return [
            Exhibit(f"picture {at + 1}", picture_of(rebuilt_CHW.cpu()), f"{psnr:.1f} dB", picture_of(pixels_CHW.cpu()))
            for at, (rebuilt_CHW, pixels_CHW, psnr) in enumerate(zip(rebuilt_BCHW, pixels_BCHW, figures, strict=True))
        ]


class Drawings:
    """What a transformer makes of the same few prompts, each of its own seed: pictures of words, words of pictures.

    `tokenizer` is asked for once the first sample is due; where there is none, there are no samples. `prompts` are
    (what to continue, whether by a picture).
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Callable[[], MixedModalTokenizer | None],
        prompts: Callable[[MixedModalTokenizer], Sequence[tuple[Document, bool]]],
        settings: Settings | None = None,
    ) -> None:
        self.model, self.tokenizer, self.prompts = model, tokenizer, prompts
        self.settings = settings or Settings(image_temperature=0.7)
        self._lab: Chameleon | None = None
        self._chosen: list[tuple[Document, bool]] | None = None

    def __call__(self) -> list[Exhibit]:
        if self._chosen is None:
            tokenizer = self.tokenizer()
            self._chosen = [] if tokenizer is None else list(self.prompts(tokenizer))
            if tokenizer is not None and self._chosen:
                self._lab = Chameleon(self.model, tokenizer, self.settings)
        exhibits: dict[int, Exhibit] = {}
        for by_picture in (True, False):
            places = [at for at, (_, draws) in enumerate(self._chosen) if draws is by_picture]
            if not places or self._lab is None:
                continue
            engine = self._lab.engine
            grammar = engine.grammar_of(MODALITY_SWITCHES["picture" if by_picture else "words"])
            settings = self.settings if by_picture else self.settings.changed(max_tokens=WORDS)
            documents = [self._chosen[at][0] for at in places]
            for at, reply in zip(places, engine.generate(documents, settings, places, grammar), strict=True):
                exhibits[at] = _exhibit(self._chosen[at][0], reply)
        return [exhibits[at] for at in sorted(exhibits)]


def _exhibit(prompt: Document, reply: Document) -> Exhibit:
    request = prompt.text.strip()
    if picture := next(iter(reply.pictures), None):
        return Exhibit(request or "a picture of its own", picture)
    before = next(iter(prompt.pictures), None)
    return Exhibit(request or "in words", None, reply.text.strip() or "(no words)", before)


def scene_requests(tokenizer: MixedModalTokenizer) -> list[tuple[Document, bool]]:
    """Requests about scenes: three to be drawn, and one to be described."""
    drawn = [(Document.of(request, EndTurn()), True) for request in REQUESTS]
    return [*drawn, (Document.of(SCENE.picture(), "what do you see?", EndTurn()), False)]


def first_halves(
    batches: Callable[[], Sequence[Batch]], count: int = 4
) -> Callable[[MixedModalTokenizer], list[tuple[Document, bool]]]:
    """Prompts from documents of batches: the words before a picture, to be drawn; or a picture, to be described."""

    def halves(tokenizer: MixedModalTokenizer) -> list[tuple[Document, bool]]:
        prompts = list[tuple[Document, bool]]()
        for batch in batches():
            numbers_BT = torch.zeros_like(batch.inputs_BT) if batch.documents_BT is None else batch.documents_BT
            for tokens_T, documents_T in zip(batch.inputs_BT, numbers_BT, strict=True):
                for number in documents_T.unique().tolist():
                    if len(prompts) == count:
                        return prompts
                    if prompt := _first_half(tokenizer, tokens_T[documents_T == number].tolist()):
                        prompts.append(prompt)
        return prompts

    return halves


def _first_half(tokenizer: MixedModalTokenizer, tokens: list[int]) -> tuple[Document, bool] | None:
    """What stands before the second part of a document; None where it has but one, or is a piece of one."""
    padding = tokenizer.vocabulary.pad
    try:
        parts = list(tokenizer.decode([token for token in tokens if token != padding]))
    except ValueError:  # it was cut
        return None
    for at, (one, other) in enumerate(itertools.pairwise(parts)):
        if isinstance(one, Text) and isinstance(other, Image):
            return Document.of(*parts[: at + 1]), True
        if isinstance(one, Image) and isinstance(other, Text):
            return Document.of(*parts[: at + 1]), False
    return None
