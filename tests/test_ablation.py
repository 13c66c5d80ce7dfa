"""The ablation: equal passes, one ledger of seeds, and outcomes that are read back as they were written."""

import json
from typing import Any

import numpy as np
import pytest

from chameleon_lab.chameleon import Chameleon, find
from chameleon_lab.corpora.checker import compare_scenes, read_scene
from chameleon_lab.documents import Document
from chameleon_lab.evaluation import ablation
from chameleon_lab.evaluation.ablation import (
    FLAG_WAYS,
    PASSES,
    SCENE_WAYS,
    AblationOutcome,
    DecodingWay,
    flag_ablation,
    read_ablation,
    scene_ablation,
    seeds_of,
)
from chameleon_lab.evaluation.intervals import wilson_interval
from chameleon_lab.evaluation.scenes import prompts
from chameleon_lab.generation.engine import Engine
from chameleon_lab.generation.guidance import Contrastive
from chameleon_lab.retrieval.encoders import TwoTower

WAYS = DecodingWay(), DecodingWay(3.0), DecodingWay(alpha=0.5, k=4)


@pytest.fixture
def calls(monkeypatch) -> list[tuple[object, list[int], list[Document]]]:
    """Guidance, seeds and replies of each call of an engine."""
    noted, generate = list[tuple[object, list[int], list[Document]]](), Engine.generate

    def listen(self, documents, settings, seeds, grammar=None):
        replies = generate(self, documents, settings, seeds, grammar)
        noted.append((settings.guidance, [*seeds], replies))
        return replies

    monkeypatch.setattr(Engine, "generate", listen)
    return noted


def test_scenes_are_drawn_with_equal_passes_by_one_ledger_and_judged_by_the_checker(calls):
    outcomes = list(scene_ablation(Chameleon.load("tiny"), WAYS, n=2, seed=3, passes=2))
    assert [each.way for each in outcomes] == [*WAYS] and [each.tries for each in outcomes] == [2, 1, 1]
    assert all(each.tries * each.way.passes == 2 for each in outcomes)
    first, second = seeds_of(3, 0, 2), seeds_of(3, 1, 2)
    assert first == [3, 4] and second == [100_003, 100_004]
    assert [seeds for _, seeds, _ in calls] == [first, second, first, first]
    assert [guidance for guidance, _, _ in calls] == [1.0, 1.0, 3.0, Contrastive(alpha=0.5, k=4)]
    ledger = prompts("novel pair", 2, 3)
    rights = [
        [
            bool(prompt.scene and compare_scenes(prompt.scene, read_scene(reply.pictures[0]))["binding"])
            for prompt, reply in zip(ledger, replies, strict=True)
        ]
        for _, _, replies in calls
    ]
    shares = [np.mean(rights[:2]), np.mean(rights[2]), np.mean(rights[3])]
    assert [each.one[0] for each in outcomes] == pytest.approx(shares)
    for each in outcomes:
        assert each.best is not None and each.one[0] <= each.any[0] + 1e-9 and each.best[0] <= each.any[0]
        assert each.one[1:] == pytest.approx(wilson_interval(each.one[0], 2), abs=1e-4)


def test_flags_need_their_document(calls):
    encoder = TwoTower.load(find("retrieval") / "encoder")
    outcomes = list(flag_ablation(Chameleon.load("retrieval"), encoder, WAYS[:2], n=3, passes=2, counts=(0, 1)))
    assert [(each.documents, each.way.scale, each.tries) for each in outcomes] == [
        (0, 1, 2),
        (0, 3, 1),
        (1, 1, 2),
        (1, 3, 1),
    ]
    assert outcomes[0].any[0] == 0 < outcomes[2].any[0] and outcomes[2].best is None
    assert "1 document(s), unguided, 2 pictures: one " in str(outcomes[2])
    seeds = [seeds for _, some, _ in calls for seeds in some]
    assert set(seeds) == {2026 + row + 100_000 * place for row in range(3) for place in range(2)}


def test_the_grid_covers_what_it_is_about_and_passes_are_shared_out_evenly():
    assert {each.scale for each in SCENE_WAYS if each.alpha is None} >= {1, 1.5, 3} and len({*SCENE_WAYS}) == len(
        SCENE_WAYS
    )
    assert {each.alpha for each in SCENE_WAYS if each.alpha} >= {0.1, 0.5} and {each.k for each in SCENE_WAYS} >= {
        1,
        4,
        16,
    }
    assert all(PASSES % each.passes == 0 for each in (*SCENE_WAYS, *FLAG_WAYS))
    with pytest.raises(ValueError, match="number of passes a code must be a whole number from 2 on, not 1"):
        list(scene_ablation(Chameleon.load("tiny"), n=1, passes=1))


def test_a_command_that_was_stopped_goes_on_and_its_file_is_read_back(tmp_path, monkeypatch):
    measured = list[str]()

    def measure(lab, ways, n):
        for way in ways:
            measured.append(str(way))
            values: Any = ("scenes", 0, *way, n, 2, 15, (0.5, 0.2, 0.8), (1.0, 0.3, 1.0), (1.0, 0.3, 1.0))
            yield AblationOutcome(*values)
            if len(measured) == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "scene_ablation", measure)
    path = tmp_path / "outcomes.jsonl"
    arguments = [str(path), "--world", "scenes", "-n", "4"]
    with pytest.raises(KeyboardInterrupt):
        ablation.ablation_command(arguments)
    assert len(read_ablation(path)) == 5
    ablation.ablation_command(arguments)
    outcomes = read_ablation(path)
    assert [each.way for each in outcomes] == [*SCENE_WAYS] and len(measured) == len(SCENE_WAYS)
    assert outcomes[0].best == (1.0, 0.3, 1.0)
    path.write_text(path.read_text() + json.dumps({"world": "scenes"}) + "\n")
    with pytest.raises(ValueError, match=r"outcomes\.jsonl"):
        read_ablation(path)


def test_the_recorded_outcomes_are_whole():
    """What notebook 15 and docs/decoding.md show."""
    outcomes = read_ablation("data/ablation.jsonl")
    scenes = [each for each in outcomes if each.world == "scenes"]
    assert [each.way for each in scenes] == [*SCENE_WAYS] and len({each.key for each in outcomes}) == len(outcomes)
    for each in outcomes:
        assert each.tries * each.way.passes == PASSES
        assert all(low <= share <= high for share, low, high in (each.one, each.any, each.best or each.one))
