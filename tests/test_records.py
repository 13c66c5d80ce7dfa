"""Records: what is written is what is read."""

import numpy as np
import pytest

from chameleon_lab.records import History, ImagePiece, StepRecord

HISTORY = History((StepRecord(0, 0.5, {"loss": 3.25}), StepRecord(1, 1.0, {"loss": 1 / 3, "norm": float("inf")})))


def test_a_history_survives_its_file():
    assert History.from_jsonl(HISTORY.to_jsonl().splitlines()) == HISTORY
    assert History.from_jsonl([]) == History()


def test_every_cut_of_a_file_gives_the_records_before_it():
    text = HISTORY.to_jsonl()
    first = text.index("\n")
    for end in range(len(text)):
        read = History.from_jsonl(text[:end].splitlines()).records
        assert read == HISTORY.records[: (end >= first) + (end >= len(text) - 1)]


def test_a_series_has_the_steps_where_it_was_recorded():
    assert HISTORY.series("loss") == ([0, 1], [3.25, 1 / 3])
    assert HISTORY.series("norm")[0] == [1]


def test_an_unknown_series_names_the_known_ones():
    with pytest.raises(KeyError, match="No record of 'accuracy'; this run recorded loss, norm"):
        HISTORY.series("accuracy")
    with pytest.raises(KeyError, match="recorded nothing"):
        History().series("loss")


def test_a_picture_is_complete_with_its_last_row(picture):
    assert not ImagePiece(picture, np.zeros((3, 4), int), 4).complete
    assert ImagePiece(picture, np.zeros((4, 4), int), 4).complete
