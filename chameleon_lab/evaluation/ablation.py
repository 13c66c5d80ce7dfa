"""CM3Leon's ablation on worlds of the lab's own: quality against documents retrieved, guidance, CD-K's alpha and k.

- *scenes*: the tiny model draws colour-shape pairs that it never saw together; the checker judges pixels
- *flags*: the model that looks things up draws flags of names it never saw, with 0, 1 or 2 documents that the encoder
  found in a bank of all flags
- a setting gets `PASSES` passes of the model a code, whatever it is: where guidance needs a second stream, half as many
  pictures. All settings draw the same prompts, and picture `place` of prompt `row` by the same seed
- intervals are 95 %, Wilson's of as many trials as prompts: pictures of one prompt are not told apart as trials

`python -m chameleon_lab.evaluation.ablation OUTCOMES.jsonl` measures what that file does not hold yet, and adds it.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chameleon_lab.candidates import BestBy, CaptionScore
from chameleon_lab.chameleon import Chameleon, find
from chameleon_lab.corpora.checker import compare_scenes, read_scene
from chameleon_lab.corpora.flags import read_flag
from chameleon_lab.documents import Document
from chameleon_lab.evaluation.intervals import wilson_interval
from chameleon_lab.evaluation.retrieval import LookupTask, draw_all, lookup_tasks
from chameleon_lab.evaluation.scenes import Prompt, prompts
from chameleon_lab.files import intact, read_json_lines
from chameleon_lab.generation.guidance import Contrastive
from chameleon_lab.generation.settings import Settings
from chameleon_lab.parts import require_count, require_fields
from chameleon_lab.retrieval.bank import Bank
from chameleon_lab.retrieval.encoders import Encoder, TwoTower
from chameleon_lab.retrieval.retriever import Retriever
from chameleon_lab.retrieval.rules import LOOKUP
from chameleon_lab.signals import exit_code
from chameleon_lab.storage import write_file

log = logging.getLogger(__name__)

PASSES = 4
SCENES, FLAG_REQUESTS = 80, 60
"""Prompts."""
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
ALPHAS, KS = (0.1, 0.3, 0.5, 0.8), (1, 4, 16)
FLAG_SCALES, FLAG_CONTRAST = (1.0, 1.5, 3.0, 5.0), (0.5, 4)
SEEDS_APART = 100_000
"""Between the seeds of a prompt's pictures, which are seed + row + `SEEDS_APART` x place."""


class DecodingWay(NamedTuple):
    """Guidance by a `scale`, of which 1 is none, or CD-K by `alpha` and `k`."""

    scale: float = 1.0
    alpha: float | None = None
    k: int | None = None

    @property
    def passes(self) -> int:
        """Of the model, for each code of a picture."""
        return 1 if self.alpha is None and self.scale == 1 else 2

    def settings(self, settings: Settings) -> Settings:
        if self.alpha is None or self.k is None:
            return settings.changed(guidance=self.scale)
        return settings.changed(guidance=Contrastive(self.alpha, self.k, scale=self.scale))

    def __str__(self) -> str:
        if self.alpha is None:
            return "unguided" if self.scale == 1 else f"guidance {self.scale:g}"
        return f"CD-K, alpha {self.alpha:g}, k {self.k}"


SCENE_WAYS = (*map(DecodingWay, SCALES), *(DecodingWay(alpha=alpha, k=k) for alpha in ALPHAS for k in KS))
FLAG_WAYS = (*map(DecodingWay, FLAG_SCALES), DecodingWay(1.0, *FLAG_CONTRAST))


@dataclass(frozen=True)
class AblationOutcome:
    """What one setting drew right, as shares of `n` prompts with 95 % intervals: value, low, high.

    `one`: a picture; `best`: of each prompt's `tries` pictures the one whose caption the model itself holds likeliest,
    None where the model knows no captions; `any`: what a perfect choice among them would give.
    """

    world: str
    documents: int
    scale: float
    alpha: float | None
    k: int | None
    n: int
    tries: int
    seed: int
    one: tuple[float, float, float]
    best: tuple[float, float, float] | None
    any: tuple[float, float, float]

    def __post_init__(self) -> None:
        """Raises ValueError for what is no outcome."""
        require_fields(self)

    @property
    def way(self) -> DecodingWay:
        return DecodingWay(self.scale, self.alpha, self.k)

    @property
    def key(self) -> tuple[object, ...]:
        return self.world, self.documents, self.way, self.n, self.seed

    def __str__(self) -> str:
        names = ("one", "best", "any")
        shares = [(name, getattr(self, name)) for name in names if getattr(self, name) is not None]
        words = "   ".join(f"{name} {share:.2f} ({low:.2f} to {high:.2f})" for name, (share, low, high) in shares)
        documents = f"{self.documents} document(s), " if self.world == "flags" else ""
        return f"{self.world}: {documents}{self.way}, {self.tries} pictures: {words}"


def _outcome(
    world: str,
    documents: int,
    way: DecodingWay,
    seed: int,
    rights_PN: np.ndarray,
    bests_N: np.ndarray | None,
) -> AblationOutcome:
    """`rights_PN`: whether each place's picture of each prompt is right."""

    def share(values_N: np.ndarray) -> tuple[float, float, float]:
        value = float(values_N.mean())
        low, high = wilson_interval(value, len(values_N))
        return round(value, 4), round(low, 4), round(high, 4)

    best = None if bests_N is None else share(bests_N)
    of_all = share(rights_PN.mean(0)), best, share(np.asarray(rights_PN.any(0)))
    return AblationOutcome(world, documents, *way, rights_PN.shape[1], len(rights_PN), seed, *of_all)


def scene_ablation(
    lab: Chameleon, ways: Sequence[DecodingWay] = SCENE_WAYS, n: int = SCENES, seed: int = 15, passes: int = PASSES
) -> Iterator[AblationOutcome]:
    """Pairs of colour and shape that training never showed together, at equal numbers of passes. An iterator, since
    each takes most of a minute."""
    ledger = _checked_ledger(prompts("novel pair", n, seed), passes)
    grammar = lab.engine.grammar_of({"text": False, "min_images": 1, "max_images": 1})
    base = lab.settings.changed(guidance=1.0, top_p=0.95, image_temperature=0.8)
    requests = [prompt.document for prompt in ledger]
    for way in ways:
        replies = [
            lab.engine.generate(requests, way.settings(base), seeds_of(seed, place, n), grammar)
            for place in range(passes // way.passes)
        ]
        rights_PN = np.array([[*map(_pair_right, ledger, each)] for each in replies])
        chosen_N = np.array([_best_place(lab, prompt, own) for prompt, *own in zip(ledger, *replies, strict=True)])
        yield _outcome("scenes", 0, way, seed, rights_PN, rights_PN[chosen_N, np.arange(n)])


def flag_ablation(
    lab: Chameleon,
    encoder: Encoder,
    ways: Sequence[DecodingWay] = FLAG_WAYS,
    n: int = FLAG_REQUESTS,
    seed: int = 2026,
    passes: int = PASSES,
    counts: Sequence[int] = (0, 1, 2),
) -> Iterator[AblationOutcome]:
    """Flags of names that training never had, with so many documents looked up, at equal numbers of passes."""
    tasks = _checked_ledger(lookup_tasks(n, seed), passes)
    bank = Bank.of([document for task in tasks for document in task.right], encoder, lab.tokenizer)
    retriever = Retriever(lab, bank, encoder)
    for count in counts:
        rules = replace(LOOKUP, count=count)
        hits = rules.choose_each(bank, encoder, [task.request for task in tasks], range(n))
        for way in ways:
            settings = way.settings(lab.settings)
            replies = [
                draw_all(retriever, tasks, hits, settings, seed + SEEDS_APART * place)
                for place in range(passes // way.passes)
            ]
            rights_PN = np.array([[*map(_flag_right, tasks, each)] for each in replies])
            yield _outcome("flags", count, way, seed, rights_PN, None)


def seeds_of(seed: int, place: int, n: int) -> list[int]:
    """The ledger: the seed of picture `place` of each prompt, the same whatever draws it."""
    return [seed + row + SEEDS_APART * place for row in range(n)]


def _checked_ledger(ledger: list[Any], passes: int) -> list[Any]:
    require_count(len(ledger), "prompts", 1)
    require_count(passes, "passes a code", 2)
    return ledger


def _pair_right(prompt: Prompt, reply: Document) -> bool:
    assert prompt.scene is not None
    return bool(compare_scenes(prompt.scene, read_scene(reply.pictures[0]))["binding"]) if reply.pictures else False


def _flag_right(task: LookupTask, reply: Document) -> bool:
    return len(reply.pictures) == 1 and read_flag(reply.pictures[0])[0] == task.flag.colours


def _best_place(lab: Chameleon, prompt: Prompt, replies: Sequence[Document]) -> int:
    scene = prompt.scene
    assert scene is not None
    scorer = CaptionScore(lab.engine, caption=lambda words: scene.caption())
    return BestBy(scorer)([Document((*prompt.document, *reply)) for reply in replies])


def read_ablation(path: Path | str) -> list[AblationOutcome]:
    """Outcomes that were written. Raises ValueError for a file that holds others."""

    def outcome(plain: dict[str, Any]) -> AblationOutcome:
        whole: dict[str, Any] = {name: tuple(each) if type(each) is list else each for name, each in plain.items()}
        return AblationOutcome(**whole)

    with intact(path):
        return [outcome(plain) for plain in read_json_lines(path)]


def ablation_command(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("outcomes", type=Path, help="a file of outcomes, a line each; what it holds is not made again")
    parser.add_argument("--world", choices=("scenes", "flags"), action="append", help="only this one (default: both)")
    parser.add_argument("-n", type=int, help=f"prompts (default: {SCENES} scenes, {FLAG_REQUESTS} flags)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    outcomes = read_ablation(options.outcomes) if options.outcomes.exists() else []
    there = {each.key for each in outcomes}
    for world in options.world or ("scenes", "flags"):
        n = options.n or {"scenes": SCENES, "flags": FLAG_REQUESTS}[world]
        for outcome in _missing(world, n, there):
            log.info("%s", outcome)
            outcomes.append(outcome)
            lines = "".join(json.dumps(asdict(each)) + "\n" for each in outcomes)
            write_file(options.outcomes, lines)  # at once: all of it takes a quarter of an hour


def _missing(world: str, n: int, there: set[tuple[object, ...]]) -> Iterator[AblationOutcome]:
    """The outcomes of a world that are not there yet."""
    if world == "scenes":
        ways = [way for way in SCENE_WAYS if (world, 0, way, n, 15) not in there]
        if ways:
            yield from scene_ablation(Chameleon.load("tiny"), ways, n)
        return
    for count in (0, 1, 2):
        ways = [way for way in FLAG_WAYS if (world, count, way, n, 2026) not in there]
        if ways:
            encoder = TwoTower.load(find("retrieval") / "encoder")
            yield from flag_ablation(Chameleon.load("retrieval"), encoder, ways, n, counts=(count,))


if __name__ == "__main__":
    raise SystemExit(exit_code(ablation_command))
