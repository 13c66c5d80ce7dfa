"""What infilling costs plain loss: trainings are kept, compared with the plain one of their seed, and read back."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from chameleon_lab.evaluation.infill_share import ShareOutcome, infill_costs, measure_shares, read_shares
from chameleon_lab.evaluation.intervals import Mean


def test_a_cost_is_paired_by_seed_and_length() -> None:
    outcomes = [ShareOutcome(0.0, 9, seed, 1.0 + seed) for seed in range(2)]
    outcomes += [ShareOutcome(0.5, 9, seed, 1.5 * (1.0 + seed)) for seed in range(2)]
    outcomes += [ShareOutcome(0.5, 18, 0, 1.0)]  # without a plain one of its length
    outcomes += [ShareOutcome(0.5, 9, 0, 1.25, 0.25, False)]  # another way is counted apart
    costs = infill_costs(outcomes)
    assert costs[9, 0.5, 0.0, True] == Mean(0.5, 0.5, 0.5, 2) and costs[9, 0.5, 0.25, False].value == 0.25
    assert len(costs) == 2


def test_a_training_that_is_there_is_not_done_again(tmp_path: Path) -> None:
    path = tmp_path / "shares.jsonl"
    do = partial(measure_shares, path, shares=(0.0, 1.0), lengths=(1,), seeds=1)
    plain, other = do()
    assert (plain.infill, other.infill) == (0.0, 1.0) and plain.loss != other.loss
    other_way = partial(do, lengths=(2,), plain_end=0.5, learn_sentinels=False)
    assert [each.way for each in other_way()] == [(0.0, True), (0.5, False)] and [*other_way()] == read_shares(path)[2:]
    written = path.stat().st_mtime_ns
    assert [*do()] == [plain, other] == read_shares(path)[:2]
    assert path.stat().st_mtime_ns == written
    for wrong in ('{"infill": 0.5}', '{"infill": 2, "steps": 1, "seed": 0, "loss": 1}', "[]"):
        path.write_text(wrong + "\n")
        with pytest.raises(ValueError, match=r"shares.jsonl"):
            read_shares(path)


def test_the_recorded_outcomes_are_whole() -> None:
    """What docs/cm3leon.md shows."""
    outcomes = read_shares(Path(__file__).parent.parent / "data" / "infill_share.jsonl")
    costs = infill_costs(outcomes)
    assert {infill for _, infill, *_ in costs} >= {0.5} and all(cost.n for cost in costs.values())
