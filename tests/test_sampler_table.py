"""The samplers that the page of the explainer computes are the library's: the table that its tests read is from here.

Run this file to write the table anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chameleon_lab.generation.guidance import ThreeWay, TwoWay
from chameleon_lab.generation.samplers import Sampler

TABLE = Path(__file__).parents[1] / "widgets/js/test/sampler_table.json"
SAMPLERS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.3, "top_p": 0.8},
    {"temperature": 1.7, "top_k": 5},
    {"temperature": 1.0, "top_k": 12, "top_p": 0.5},
    {"temperature": 1.2, "min_p": 0.2},
    {"temperature": 0.7, "top_p": 0.95, "min_p": 0.05, "top_k": 9},
    {"temperature": 2.5, "top_p": 0.02},
    {"temperature": 0.02},
    {"temperature": 1.0, "repetition": 2.5},
    {"temperature": 1.0, "repetition": 0.5, "top_p": 0.9},
]
GUIDES = {(): None, (1.0,): TwoWay(1.0), (3.0,): TwoWay(3.0), (0.0,): TwoWay(0.0), (3.0, 1.2): ThreeWay(3.0, 1.2)}
DRAWS = [*((np.arange(40) + 0.5) / 40).tolist(), 0.0, 0.999]
SIZE = 23


def row(case: int, settings: dict[str, float], strengths: tuple[float, ...]) -> dict[str, Any]:
    """Logits of a row and its twins, what may come, and the token that the library picks at each draw."""
    rng, sampler, guide = np.random.default_rng(case), Sampler(**settings), GUIDES[strengths]  # type: ignore[arg-type]
    streams = np.round(rng.normal(0, 2.5, (1 + (guide.twins if guide else 0), SIZE)), 3).astype(np.float32)
    streams[:, 3] = streams[:, 7]  # equally likely ones
    allowed = rng.random(SIZE) < 0.8
    allowed[[3, 7]] = True
    written = np.flatnonzero(rng.random(SIZE) < 0.3)
    logits_SRV = torch.from_numpy(streams)[:, None]
    logits_1V = guide.mix(logits_SRV, [0.25]) if guide else logits_SRV[0]
    hidden_1V = logits_1V.masked_fill(torch.from_numpy(~allowed), -torch.inf)
    written_1V = torch.zeros((1, SIZE), dtype=torch.bool)
    written_1V[0, written] = True
    picks = [int(sampler.pick(hidden_1V, [draw], written_1V)) for draw in DRAWS]
    return {
        "sampler": vars(sampler),
        "strengths": [*strengths],
        "streams": [[round(float(each), 3) for each in stream] for stream in streams],
        "allowed": allowed.astype(int).tolist(),
        "written": written.tolist(),
        "mixed": [round(float(each), 4) for each in logits_1V[0]],
        "picks": picks,
    }


def table() -> dict[str, Any]:
    cases = [(settings, strengths) for settings in SAMPLERS for strengths in GUIDES]
    return {"draws": DRAWS, "rows": [row(case, *each) for case, each in enumerate(cases)]}


def test_the_table_that_the_pages_tests_read_is_what_the_library_gives():
    assert json.loads(TABLE.read_text()) == json.loads(json.dumps(table()))


def test_the_table_tells_samplers_apart():
    picks = [tuple(each["picks"]) for each in table()["rows"]]
    assert len(set(picks)) > 0.75 * len(picks)


if __name__ == "__main__":
    TABLE.write_text(json.dumps(table(), separators=(",", ":")) + "\n")
