"""One process trains in a folder: whatever is made there, before, beside and after the runs."""

from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from chameleon_lab.evaluation.balance import balance_outcomes
from chameleon_lab.evaluation.comparison import compare_quantizers
from chameleon_lab.evaluation.stability import outcomes
from chameleon_lab.evaluation.transfer import measure_transfer
from chameleon_lab.training.alignment import ALIGNMENT
from chameleon_lab.training.emoji import train_emoji
from chameleon_lab.training.folder import RunFolder, locks_folder
from chameleon_lab.training.infilling import train_infilling
from chameleon_lab.training.instructions import train_instructions
from chameleon_lab.training.own.training import OwnTraining
from chameleon_lab.training.pipeline import TINY_MODEL, Pipeline
from chameleon_lab.training.retrieval import train_retrieval
from chameleon_lab.training.rewards import REWARDED

ROOT = Path(__file__).parent.parent

TRAININGS: dict[str, Callable[[Path], object]] = {
    "tiny": lambda folder: Pipeline(TINY_MODEL, folder).train(),
    "own data": lambda folder: OwnTraining(ROOT / "docs", folder).result(),
    "own data, looked at alone": lambda folder: OwnTraining(ROOT / "docs", folder).prepare(),
    "infilling": lambda folder: train_infilling(folder, threes=10),
    "instructions": train_instructions,
    "emoji": lambda folder: train_emoji(ROOT, folder),
    "retrieval": train_retrieval,
    "quantizers": lambda folder: [*compare_quantizers(folder, steps=1)],
    "stability presets": lambda folder: [*outcomes(folder)],
    "transfer": lambda folder: [*measure_transfer(folder, steps=1)],
    "balance": lambda folder: [*balance_outcomes(folder)],
    "alignment": lambda folder: ALIGNMENT.run(folder).result(),
    "rewards": lambda folder: REWARDED.run(folder).result(),
}
"""All that trains in a folder, whatever else it makes there before and after."""


@pytest.mark.parametrize("name", TRAININGS)
def test_in_a_busy_folder_nothing_is_prepared_and_nothing_written(tmp_path, name):
    with RunFolder(tmp_path).locked(), pytest.raises(ValueError, match="Another process trains"):
        TRAININGS[name](tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["lock"]


def test_a_folder_in_which_several_things_are_made_is_locked_until_the_last(tmp_path):
    """Against other processes; in this one another thread or a cell that was interrupted may come in."""

    def busy() -> bool:
        try:
            with RunFolder(tmp_path).locked():
                return False
        except ValueError:
            return True

    @locks_folder
    def make(folder: Path) -> bool:
        return busy()

    @locks_folder
    def pieces(folder: Path) -> Generator[bool]:
        yield busy() and make(folder)
        yield busy()

    assert make(tmp_path) and not busy()
    both = pieces(tmp_path), pieces(tmp_path)
    assert not busy() and next(both[0]) and next(both[1])
    assert [*both[0]] == [True] and busy()
    both[1].close()
    assert not busy()
