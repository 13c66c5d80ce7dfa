"""A fair small comparison of quantizers: the same network, pictures, bits a code, recipe and steps; several seeds.

"Fair" has limits worth knowing: one recipe, tuned for none of them, and one size. The spread over seeds says how large
a difference must be to mean anything.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import PIL.Image

from chameleon_lab.corpora.scenes import sample_scene
from chameleon_lab.evaluation.metrics import measure
from chameleon_lab.files import intact, parse_json, text_of_file
from chameleon_lab.records import MetricValue
from chameleon_lab.storage import write_file
from chameleon_lab.tokenizers.quantizers import Quantizer
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.folder import locks_folder
from chameleon_lab.training.image_experiments import TINY_PICTURES, ImageExperiment

STRIP = 8  # scenes that every contender is shown with


@dataclass(frozen=True)
class Contender:
    """A quantizer, by its name in `image.QUANTIZERS` or what makes one, and the width that 512 codes (9 bits) need."""

    quantizer: str | Callable[[int, int], Quantizer]
    width: int = 16


CONTENDERS = {
    "VQ": Contender("vector"),
    "VQ, rotation trick": Contender("vector_rotation"),
    "EMA-VQ with restarts": Contender("moving_average"),
    "cosine VQ": Contender("cosine"),
    "SimVQ": Contender("sim"),
    "FSQ": Contender("finite_scalar", 3),
    "LFQ": Contender("lookup_free", 9),
    "BSQ": Contender("binary_spherical", 9),
}


@dataclass(frozen=True)
class ContenderOutcome:
    """What one quantizer reached by one seed: metric to value."""

    name: str
    seed: int
    values: dict[str, MetricValue]

    def to_json(self) -> str:
        values = {metric: json.loads(value.to_json()) for metric, value in self.values.items()}
        return json.dumps({"name": self.name, "seed": self.seed, "values": values})

    @classmethod
    def from_json(cls, text: str) -> ContenderOutcome:
        read = parse_json(text, "An outcome of a comparison")
        values = {metric: MetricValue.from_json(json.dumps(value)) for metric, value in read["values"].items()}
        return cls(read["name"], read["seed"], values)


def unseen_scenes(count: int = 200, seed: int = 2026) -> Iterator[PIL.Image.Image]:
    """Scenes that no training draws, because trainings seed with other pairs of numbers."""
    rng = np.random.default_rng([seed, 5])
    return (sample_scene(rng).picture() for _ in range(count))


@locks_folder
def compare_quantizers(
    folder: Path | str,
    *,
    base: ImageExperiment = TINY_PICTURES,
    steps: int = 400,
    seeds: Iterable[int] = range(3),
    names: Iterable[str] = tuple(CONTENDERS),
    own: Mapping[str, Contender] = MappingProxyType({}),
) -> Iterator[ContenderOutcome]:
    """Trains every contender with every seed in `folder`, or resumes there, and measures it; yields outcome by outcome.

    Contenders of one's `own` come after those of `names`. Outcomes are also lines of `folder/outcomes.jsonl`; what the
    first seed's tokenizers make of the same few scenes is in `folder/pictures`, a strip each, beside `originals.png`.
    Raises ValueError for an unknown contender.
    """
    folder, contenders = Path(folder), {**CONTENDERS, **own}
    names = tuple(dict.fromkeys((*names, *own)))
    unknown = [name for name in names if name not in contenders]
    if unknown:
        raise ValueError(f"No contender is called {', '.join(unknown)}; there are {', '.join(contenders)}.")
    outcomes: list[ContenderOutcome] = []
    few = list(unseen_scenes(STRIP))
    _write_strip(folder / "pictures" / "originals.png", few)
    seeds = tuple(seeds)
    for seed in seeds:
        for name in names:
            contender = contenders[name]
            config = replace(base.tokenizer, quantizer=contender.quantizer, code_width=contender.width)
            experiment = replace(base, name=name, tokenizer=config, budget=Budget(steps=steps), seed=seed)
            quantizer = contender.quantizer
            mark = quantizer if isinstance(quantizer, str) else f"{name}-{experiment.fingerprint}"
            tokenizer = experiment.run(folder / f"{mark}-{seed}").result()
            if seed == seeds[0]:
                strip = [tokenizer.reconstruct(picture).picture for picture in few]
                _write_strip(folder / "pictures" / f"{mark}.png", strip)
            measurements = measure(tokenizer, unseen_scenes(), reference="scenes, seed 2026")
            outcomes.append(ContenderOutcome(name, seed, measurements.values))
            write_file(folder / "outcomes.jsonl", "".join(f"{each.to_json()}\n" for each in outcomes))
            yield outcomes[-1]


def _write_strip(path: Path, pictures: list[PIL.Image.Image]) -> None:
    """Writes pictures side by side, as a PNG."""
    written = io.BytesIO()
    PIL.Image.fromarray(np.hstack([np.asarray(picture) for picture in pictures])).save(written, "PNG", optimize=True)
    write_file(path, written.getvalue())


def read_outcomes(path: Path | str) -> list[ContenderOutcome]:
    """The outcomes in a file that `compare_quantizers` wrote."""
    with intact(path):
        return [ContenderOutcome.from_json(line) for line in text_of_file(path).split("\n") if line.strip()]
