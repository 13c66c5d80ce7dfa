"""Samples of a model in training: what it draws and says now, beside what it drew and said before."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.scenes import arrange
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.history import StepRecord

if TYPE_CHECKING:
    from chameleon_lab.training.modules import PacedModule

log = logging.getLogger(__name__)

REQUESTS = (
    "draw a large red circle in the center on a gray background",
    "draw a small blue star in the top left on a pink background",
    "draw a red circle left of a blue square",
    "draw a large green heart above a small yellow ring on a tan background",
)
SCENE = arrange([("triangle", "purple", "large"), ("star", "red", "small")], "beside", "mint")


class Samples:
    """Called after each step; every `share` of the budget it draws `REQUESTS` and describes `SCENE`.

    One picture file a time, `folder/050.png` at half of the budget, the requests side by side.
    """

    def __init__(self, lab: Chameleon, folder: Path, share: float = 0.05) -> None:
        self.lab, self.folder, self.share, self._next = lab, folder, share, share

    def __call__(self, module: PacedModule, record: StepRecord) -> None:
        if module.progress < self._next:
            return
        self._next = (module.progress // self.share + 1) * self.share
        self.lab.model.eval()
        requests = [Document.of(request, EndTurn()) for request in REQUESTS]
        requests.append(Document.of(SCENE.picture(), "what do you see?", EndTurn()))
        *drawn, description = self.lab.engine.generate(requests, self.lab.settings, range(len(requests)))
        self.lab.model.train()
        side = self.lab.tokenizer.image.config.side
        sheet = PIL.Image.new("RGB", (side * len(drawn), side), "white")
        for place, reply in enumerate(drawn):
            for picture in reply.pictures[:1]:
                sheet.paste(picture, (side * place, 0))
        path = self.folder / f"{round(100 * module.progress):03d}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            sheet.save(path)
        except OSError as error:  # a full disk ends no training
            log.warning("%s could not be written (%s).", path, error)
            return
        log.info('samples         %s; to "%s" it says "%s"', path, SCENE.caption(), description.text)
