"""Records leave the lab: to Lightning's loggers as they are made, and to data frames."""

import csv
import importlib
import sys
import types
from dataclasses import replace

import pytest
from lightning.pytorch.loggers import CSVLogger

from chameleon_lab.history import History, StepRecord, frame_of
from chameleon_lab.training.experiments import LAB
from chameleon_lab.training.loggers import LightningLogger, flat_layers
from chameleon_lab.training.modules import Budget

HISTORY = History(
    (
        StepRecord(0, 0.1, {"loss": 3.0}),
        StepRecord(1, 0.2, {"loss": 2.0, "residual_norm": 4.0}, {"residual_norm": [1.0, 4.0], "heads": [[1.0], [2.0]]}),
    )
)


def rows_of(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_record_of_a_run_reaches_a_logger_of_lightning_s(tmp_path):
    run = replace(LAB, budget=Budget(steps=12), monitors=(), checkpoints=0).run(tmp_path / "run")
    thread = LightningLogger(CSVLogger(tmp_path / "logs", name="mine")).follow(run, every=0.05)
    history = run.wait()
    thread.join(20)
    rows = rows_of(tmp_path / "logs" / "mine" / "version_0" / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(12))
    assert [float(row["loss"]) for row in rows] == pytest.approx(history.series("loss")[1])
    again = LightningLogger(CSVLogger(tmp_path / "logs", name="folder"), layers=True).follow(tmp_path / "run")
    again.join(20)
    assert len(rows_of(tmp_path / "logs" / "folder" / "version_0" / "metrics.csv")) == 12


def test_what_is_new_is_sent_once_and_layers_where_they_are_wanted(tmp_path):
    logger = LightningLogger(CSVLogger(tmp_path, name="x"), layers=True)
    assert logger.update(HISTORY.until(1)) == 1 and logger.update(HISTORY) == 1 and logger.update(HISTORY) == 0
    (first, second) = rows_of(tmp_path / "x" / "version_0" / "metrics.csv")
    assert second["residual_norm/1"] == "4.0" and second["heads/1/0"] == "2.0" and first["residual_norm"] == ""
    assert flat_layers({}) == {}


def test_a_frame_without_pandas_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "chameleon-lab\[pandas\]"'):
        HISTORY.to_frame()


def test_a_frame_has_a_row_a_step_and_a_column_a_measure(monkeypatch):
    """What pandas is given, where it is not installed; itself, where it is."""
    try:
        importlib.import_module("pandas")
    except ImportError:
        pandas = types.SimpleNamespace(DataFrame=lambda rows, columns: (rows, columns))
        monkeypatch.setitem(sys.modules, "pandas", pandas)
        rows, columns = frame_of({"one": HISTORY, "two": HISTORY.until(1)})
        assert columns == ["run", "step", "seconds", "loss", "residual_norm"]
        assert [(row["run"], row["step"]) for row in rows] == [("one", 0), ("one", 1), ("two", 0)]
        return
    frame = HISTORY.to_frame()
    assert list(frame.columns) == ["seconds", "loss", "residual_norm"] and list(frame.index) == [0, 1]
    assert frame["residual_norm"].isna().tolist() == [True, False]
    assert len(frame_of({"one": HISTORY, "two": HISTORY})) == 4
