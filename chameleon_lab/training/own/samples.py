"""What a training on a person's own data shows on the way: a contact sheet of drawings, or of reconstructions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image
import PIL.ImageDraw
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.own_documents import draw_words
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.files import reason_of
from chameleon_lab.history import StepRecord
from chameleon_lab.storage import name_file, write_picture
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.training.folder import check_whole

if TYPE_CHECKING:
    from chameleon_lab.training.modules import PacedModule

log = logging.getLogger(__name__)

SHEET_CELL, SHEET_WORDS = 128, 18  # pixels of a picture on the sheet, and of the words below it


def sheet_of(rows: Sequence[Sequence[tuple[PIL.Image.Image | None, str]]]) -> PIL.Image.Image:
    """Pictures in rows, each with its words below; None leaves a place empty."""
    columns = max(map(len, rows))
    sheet = PIL.Image.new("RGB", (columns * (SHEET_CELL + 4), len(rows) * (SHEET_CELL + SHEET_WORDS)), "white")
    pen = PIL.ImageDraw.Draw(sheet)
    for row, cells in enumerate(rows):
        for column, (picture, words) in enumerate(cells):
            left, top = column * (SHEET_CELL + 4), row * (SHEET_CELL + SHEET_WORDS)
            if picture is not None:
                way = PIL.Image.Resampling.BOX if picture.width > SHEET_CELL else PIL.Image.Resampling.NEAREST
                sheet.paste(picture.resize((SHEET_CELL, SHEET_CELL), way), (left, top))
            plain = words.encode("latin-1", "replace").decode("latin-1")  # letters that Pillow's own font has
            pen.text((left + 2, top + SHEET_CELL + 2), plain[:22], fill="black")
    return sheet


class DrawingSamples:
    """Called after each step; every `share` of the budget it draws each of `captions`, always with the same seeds.

    The sheet is `folder/050.png` at half of the budget. `sources` are the pictures themselves, shown above.
    """

    def __init__(
        self,
        lab: Chameleon,
        folder: Path,
        captions: Sequence[str],
        sources: Sequence[PIL.Image.Image],
        share: float = 0.1,
    ) -> None:
        self.lab, self.folder, self.captions, self.sources = lab, folder, captions, sources
        self.share, self._next = share, share

    def __call__(self, module: PacedModule, record: StepRecord) -> None:
        if module.progress < self._next or not self.captions:
            return
        self._next = (module.progress // self.share + 1) * self.share
        self.lab.model.eval()
        requests = [Document.of(draw_words(caption), EndTurn()) for caption in self.captions]
        replies = self.lab.engine.generate(requests, self.lab.settings, range(len(requests)))
        self.lab.model.train()
        drawn = [
            (reply.pictures[0] if reply.pictures else None, caption)
            for reply, caption in zip(replies, self.captions, strict=True)
        ]
        above = [(source, "yours") for source in self.sources]
        _write_sheet([above, drawn], self.folder / f"{round(100 * module.progress):03d}.png")


class ReconstructionSamples:
    """Called after each step; every `share` of the budget it reconstructs the same pictures, shown above."""

    def __init__(
        self, tokenizer: ImageTokenizer, folder: Path, pictures: Sequence[PIL.Image.Image], share: float = 0.25
    ) -> None:
        self.tokenizer, self.folder, self.pictures = tokenizer, folder, pictures
        self.share, self._next = share, share

    def __call__(self, module: PacedModule, record: StepRecord) -> None:
        if module.progress < self._next or not self.pictures:
            return
        self._next = (module.progress // self.share + 1) * self.share
        self.tokenizer.eval()
        trips = [self.tokenizer.reconstruct(picture) for picture in self.pictures]
        self.tokenizer.train()
        above = [(trip.original, "yours") for trip in trips]
        below = [(trip.picture, f"{trip.psnr:.1f} dB") for trip in trips]
        _write_sheet([above, below], self.folder / f"image-{round(100 * module.progress):03d}.png")


def _write_sheet(rows: Sequence[Sequence[tuple[PIL.Image.Image | None, str]]], path: Path) -> None:
    try:
        write_picture(path, sheet_of(rows))
    except OSError as error:  # a full disk ends no training
        log.warning("%s could not be written (%s).", path, error)
    else:
        log.info("%-15s %s", "samples", path)


class BestWeights:
    """Called after each step; keeps the weights of the least held-out loss, in memory and in `path`.

    With `patience` the training ends once so much of the budget has gone by without a lower one.
    """

    def __init__(self, path: Path, patience: float | None) -> None:
        self.path, self.patience = path, patience
        self.loss, self.place, self.state = float("inf"), 0.0, dict[str, torch.Tensor]()
        if path.is_file():
            try:
                check_whole(path)
                saved = torch.load(path, weights_only=True, map_location="cpu")
                self.loss, self.place, self.state = float(saved["loss"]), float(saved["place"]), dict(saved["state"])
            except Exception as error:  # whatever a damaged file makes torch stumble over
                log.warning("%s is damaged (%s): the best weights are looked for from here on.", path, reason_of(error))

    def __call__(self, module: PacedModule, record: StepRecord) -> None:
        loss = record.values.get("held_out_loss")
        if loss is None or self.patience is None:
            return
        if loss < self.loss:
            self.loss, self.place = loss, module.progress
            self.state = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
            self._write()
        elif module.progress - self.place > self.patience and not module.enough:
            module.enough = True
            log.info(
                "The held-out loss has not fallen for %.0f %% of the time: enough is learned.", 100 * self.patience
            )

    def _write(self) -> None:
        partial = self.path.with_suffix(".partial")
        try:
            torch.save({"loss": self.loss, "place": self.place, "state": self.state}, partial)
            name_file(partial, self.path)
        except (OSError, RuntimeError) as error:  # a full disk ends no training
            partial.unlink(missing_ok=True)
            log.warning("%s could not be written (%s): the best weights are in memory alone.", self.path, error)

    def restore(self, module: PacedModule) -> bool:
        """Puts the best weights back; False where the last ones are the best, or no others were kept."""
        if not self.state:
            return False
        try:
            module.load_state_dict({name: tensor.to(module.device) for name, tensor in self.state.items()})
        except (RuntimeError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{self.path} holds weights of another model ({reason_of(error)}): move it away to use the last ones."
            ) from error
        return True
