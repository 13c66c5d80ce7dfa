"""The training of the model that looks things up: the tiny model's weights, trained on with documents before requests.

`python -m chameleon_lab.training.retrieval FOLDER` writes it to `FOLDER/model`; called again, it goes on.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.flags import looked_up
from chameleon_lab.corpora.packing import Batch, bucket, tokenize
from chameleon_lab.documents import Document
from chameleon_lab.monitors.alarms import NotANumber
from chameleon_lab.retrieval.prompts import put_before
from chameleon_lab.signals import exit_code
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.training.ahead import made_ahead
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import Corpus
from chameleon_lab.training.experiments import GENTLER, TINY
from chameleon_lab.training.fine_tuning import save_result
from chameleon_lab.training.folder import locks_folder
from chameleon_lab.training.infilling import InfillProgress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FlagDocuments:
    """Requests for flags with documents before them that say what their names stand for, drawn as they are needed.

    About `tokens` a step, in documents of `queries` requests; for `two_flags` see `corpora.flags.looked_up`.
    """

    tokenizer: MixedModalTokenizer
    tokens: int = 2048
    queries: int = 3
    two_flags: float = 0.4
    context: int = TINY.model.context

    def open(self, seed: int, steps: int | None) -> Corpus:
        return Corpus(self.tokenizer.vocabulary, made_ahead(partial(FlagBatches, self, seed)))


class FlagBatches:
    """Batches of documents, a pure function of (seed, step), made `POOL` at a time, so that like lengths share one."""

    POOL = 16
    LENGTHS = 105, 79
    """Tokens of an average document: what stands before its requests, and each of these."""

    def __init__(self, data: FlagDocuments, seed: int) -> None:
        self.data, self.seed = data, seed
        self._index, self._batches = -1, list[Batch]()

    def __call__(self, step: int) -> Batch:
        index, place = divmod(step, self.POOL)
        if index != self._index:
            rng, tokenizer = np.random.default_rng([self.seed, 19, index]), self.data.tokenizer
            length = self.LENGTHS[0] + self.LENGTHS[1] * self.data.queries
            count = self.POOL * max(1, round(self.data.tokens / length))
            with torch.autocast("cpu", enabled=False):  # a training step asks for this
                pairs = [looked_up(rng, self.data.queries, self.data.two_flags) for _ in range(count)]
                documents = tokenize([self._whole(*pair) for pair in pairs], tokenizer)
            self._batches = bucket(documents, self.POOL, tokenizer.vocabulary, rng)
            self._index = index
        return self._batches[place % len(self._batches)]

    def _whole(self, retrieved: Sequence[Document], document: Document) -> Document:
        return put_before(document, retrieved, self.data.tokenizer, self.data.context).document


LOOKING_UP = replace(
    TINY,
    name="retrieval",
    begins_from="tiny",
    budget=Budget(steps=600),
    recipe=GENTLER,
    monitors=(),  # time is what this training has least of
    rules=(NotANumber(),),
)
"""The tiny model's shape, from its weights on."""


@locks_folder
def train_retrieval(
    folder: Path | str,
    steps: int = 600,
    tokens: int = 2048,
    begins_from: str = "tiny",
    two_flags: float = 0.4,
    every: float = 20.0,
) -> Chameleon:
    """The model that looks things up, written to `folder/model`. Called again with more steps, it goes on.

    `begins_from`: folder or name of a model of the tiny model's shape, whose weights are trained on. Every so many
    seconds the log says how far it is.
    """
    folder, lab = Path(folder), Chameleon.load("tiny", device="cpu")
    data = FlagDocuments(lab.tokenizer, tokens, two_flags=two_flags)
    experiment = replace(LOOKING_UP, begins_from=begins_from, data=data, budget=Budget(steps=steps))
    run = experiment.run(folder / "transformer")
    run.wait(report=InfillProgress(every))
    return save_result(run, experiment, lab, folder / "model")


def train_retrieval_command(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the run and the model go")
    parser.add_argument("--steps", type=int, default=600, help="of training, in all (default: 600)")
    parser.add_argument("--tokens", type=int, default=2048, help="a step (default: 2048)")
    parser.add_argument("--from", dest="begins_from", default="tiny", help="a model whose weights it begins from")
    parser.add_argument("--two-flags", type=float, default=0.4, help="share with documents of two flags (default: 0.4)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train_retrieval(options.folder, options.steps, options.tokens, options.begins_from, options.two_flags)
    log.info("The model is in %s.", options.folder / "model")


if __name__ == "__main__":
    # By its own name: what an experiment names in `__main__` counts as a person's own, and as another one.
    from chameleon_lab.training.retrieval import train_retrieval_command as command

    raise SystemExit(exit_code(command))
