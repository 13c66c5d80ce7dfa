"""What infilling costs plain next-token loss: one small model, trained with shares of its documents rearranged.

- the loss is that of plain documents, held out, in nats a token; a cost is the loss with a share less that without,
  as a share of it, each seed paired with itself (`Mean.of_seeds`)
- each length is a training of its own, with its own fall of the rate
- a *way* of rearranging may take no loss on sentinels, which stand wherever chance put them, and may end with a share
  of the steps in which all documents are plain
- outcomes are lines of a file; a training whose line is there is not done again

`python -m chameleon_lab.evaluation.infill_share OUTCOMES` trains what is lacking and prints the costs.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from chameleon_lab.corpora.infilling import Spans
from chameleon_lab.corpora.mixture import Stage
from chameleon_lab.evaluation.intervals import Mean
from chameleon_lab.files import intact, read_json_lines
from chameleon_lab.parts import require_fields
from chameleon_lab.signals import exit_code
from chameleon_lab.storage import write_file
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import PAIRS, Corpora
from chameleon_lab.training.experiments import LAB

log = logging.getLogger(__name__)

SHARES, LENGTHS = (0.0, 0.1, 0.25, 0.5), (300, 1200, 4800)

ALL_PAIRS = {"pairs": 1.0}

ROWS = replace(PAIRS, context=192)
"""Rows with room for two pairs and all that their spans add. In rows of 176 positions a step with half of the documents
rearranged had 9 % fewer tokens: one row in eight held one pair alone, so that its spans would have room."""


@dataclass(frozen=True)
class ShareOutcome:
    """One training: the share of documents that were rearranged and how, its steps and seed, its loss on plain ones."""

    infill: float
    steps: int
    seed: int
    loss: float
    plain_end: float = 0.0
    learn_sentinels: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for what is no outcome."""
        require_fields(self, infill=(0, 1), steps=(1, float("inf")), seed=(0, float("inf")), loss=(0, float("inf")),
                       plain_end=(0, 1))  # fmt: skip

    @property
    def way(self) -> tuple[float, bool]:
        return self.plain_end, self.learn_sentinels


def measure_shares(
    path: Path | str,
    shares: Sequence[float] = SHARES,
    lengths: Sequence[int] = LENGTHS,
    seeds: int = 2,
    plain_end: float = 0.0,
    learn_sentinels: bool = True,
) -> Iterator[ShareOutcome]:
    """The outcome of each training, kept in the file: short ones first, and of each seed the plain one first."""
    from chameleon_lab.training.modules import held_out_losses  # Lightning is slow to import

    path = Path(path)
    outcomes = read_shares(path) if path.exists() else []
    for steps in lengths:
        for seed in range(seeds):
            for infill in shares:
                way = (plain_end, learn_sentinels) if infill else (0.0, True)
                what = (infill, steps, seed, *way)
                there = [each for each in outcomes if what == (each.infill, each.steps, each.seed, *each.way)]
                if not there:
                    data = _data(infill, steps, *way)
                    experiment = replace(LAB, data=data, budget=Budget(steps=steps), seed=seed, monitors=())
                    with tempfile.TemporaryDirectory() as folder:
                        run = experiment.run(folder)
                        run.wait()
                        batches = data.open(seed, steps).held_out
                        loss = held_out_losses(run.result().cpu(), LAB.objective, batches)["loss"]
                    there = [ShareOutcome(infill, steps, seed, loss, *way)]
                    outcomes += there
                    write_file(path, "".join(json.dumps(asdict(each)) + "\n" for each in outcomes))
                yield there[0]


def _data(infill: float, steps: int, plain_end: float, learn_sentinels: bool) -> Corpora:
    stages = ()
    if plain_end:
        last = Stage(ALL_PAIRS, round((1 - plain_end) * steps), infill=0.0)
        stages = (Stage(ALL_PAIRS), last)
    return replace(ROWS, infill=infill, stages=stages, spans=Spans(learn_sentinels=learn_sentinels))


def read_shares(path: Path | str) -> list[ShareOutcome]:
    """Outcomes that were written. Raises ValueError for a file that holds others."""
    with intact(path):
        return [ShareOutcome(**plain) for plain in read_json_lines(path)]


def infill_costs(outcomes: Sequence[ShareOutcome]) -> dict[tuple[int, float, float, bool], Mean]:
    """By steps, share, plain end and whether sentinels are learned: how much more loss, of that without infilling.
    Seeds without a plain training are left out."""
    plain = {(each.steps, each.seed): each.loss for each in outcomes if not each.infill}
    paired = [each for each in outcomes if each.infill and (each.steps, each.seed) in plain]
    kinds = sorted({(each.steps, each.infill, *each.way) for each in paired})
    return {
        kind: Mean.of_seeds(
            [
                each.loss / plain[each.steps, each.seed] - 1
                for each in paired
                if (each.steps, each.infill, *each.way) == kind
            ]
        )
        for kind in kinds
    }


def infill_share_command(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("outcomes", type=Path, help="a file of outcomes, a line each; what it holds is not made again")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="0 among them (default: %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=LENGTHS, help="of a training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="(default: 2)")
    parser.add_argument("--plain-end", type=float, default=0.0, help="share of the steps that are plain, the last ones")
    parser.add_argument("--no-sentinels", action="store_true", help="no loss on sentinels")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    way = options.plain_end, not options.no_sentinels
    for each in measure_shares(options.outcomes, options.shares, options.steps, options.seeds, *way):
        log.info("infill %.2f   %5d steps   seed %d   %.4f nats", each.infill, each.steps, each.seed, each.loss)
    for (steps, infill, end, learned), cost in infill_costs(read_shares(options.outcomes)).items():
        words = f"{end:4.0%} plain at the end   sentinels {'' if learned else 'not '}learned"
        log.info("infill %.2f   %5d steps   %s   %s", infill, steps, words, cost.within("+.1%"))


if __name__ == "__main__":
    raise SystemExit(exit_code(infill_share_command))
