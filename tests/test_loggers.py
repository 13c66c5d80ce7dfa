"""Records leave the lab: to Lightning's loggers as they are made, and to data frames."""

import csv
import importlib.util
import os
import re
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from chameleon_lab.history import History, StepRecord, frame_of
from chameleon_lab.training.experiments import LAB
from chameleon_lab.training.loggers import LightningLogger, TrackioLogger, flat_layers
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
    thread.join(120)
    rows = rows_of(tmp_path / "logs" / "mine" / "version_0" / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(12))
    assert [float(row["loss"]) for row in rows] == pytest.approx(history.series("loss")[1])
    again = LightningLogger(CSVLogger(tmp_path / "logs", name="folder"), layers=True).follow(tmp_path / "run")
    again.join(120)
    assert len(rows_of(tmp_path / "logs" / "folder" / "version_0" / "metrics.csv")) == 12


def csv_rows(logger: Any, folder: Path, name: str) -> list[tuple[int, float]]:
    (path,) = folder.rglob("metrics.csv")
    return [(int(row["step"]), float(row[name])) for row in rows_of(path) if row.get(name)]


def tensorboard_rows(logger: Any, folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
        EventAccumulator,
    )

    (path,) = folder.rglob("events.*")
    events = EventAccumulator(str(path))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def mlflow_rows(logger: Any, folder: Path, name: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in logger.experiment.get_metric_history(logger.run_id, name)]


def trackio_rows(logger: Any, folder: Path, name: str) -> list[tuple[int, float]]:
    from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]

    logs = SQLiteStorage.get_logs(logger.name, logger.version)
    return [(row["step"], row[name]) for row in logs if name in row]


def wandb_rows(logger: Any, folder: Path, name: str) -> list[tuple[int, float]]:
    """Of W&B's file for what is sent later: records of protobuf, in which names and numbers stand as they are."""
    logger.experiment.finish()  # which may come again
    number = rb"(?<![a-z_])" + name.encode() + rb"\x82\x01.([0-9.e-]+)"
    for _ in range(600):  # a process of W&B's writes it
        (path,) = folder.rglob("*.wandb")
        if values := re.findall(number, path.read_bytes(), re.DOTALL):  # each twice: of the step, and as the newest
            break
        time.sleep(0.1)
    return [*enumerate(map(float, dict.fromkeys(values)))]


def wandb_logger(folder: Path) -> Any:
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(folder))
    return WandbLogger(project="lab", save_dir=folder, offline=True)


def mlflow_logger(folder: Path) -> Any:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # its newer ones are data bases
    return MLFlowLogger("lab", tracking_uri=(folder / "runs").as_uri())


def trackio_logger(folder: Path) -> Any:
    os.environ["TRACKIO_DIR"] = str(folder)
    return TrackioLogger("lab", auto_log_gpu=False, auto_log_cpu=False)


OTHERS: dict[str, tuple[Callable[[Path], Any], Callable[[Any, Path, str], list[tuple[int, float]]]]] = {
    "csv": (CSVLogger, csv_rows),
    "tensorboard": (TensorBoardLogger, tensorboard_rows),
    "wandb": (wandb_logger, wandb_rows),
    "mlflow": (mlflow_logger, mlflow_rows),
    "trackio": (trackio_logger, trackio_rows),
}


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run with every logger that is installed, all of them without a network; its history, they and their folders."""
    folder, before = tmp_path_factory.mktemp("logged"), os.environ.copy()
    folders = {name: folder / name for name in OTHERS if importlib.util.find_spec(name)}
    for each in folders.values():
        each.mkdir()
    loggers = {name: OTHERS[name][0](folders[name]) for name in folders}
    experiment = replace(LAB, budget=Budget(steps=6), monitors=(), checkpoints=0, held_out_every=2)
    trainer = {"logger": [*loggers.values()], "log_every_n_steps": 1}
    yield experiment.run(folder / "run", trainer=trainer).wait(), loggers, folders
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_s_names_and_values_reach_each_logger_without_a_network(name, logged):
    pytest.importorskip(name)
    history, loggers, folders = logged
    for measure in ("loss", "held_out_text_loss"):
        steps, values = history.series(measure)
        rows = OTHERS[name][1](loggers[name], folders[name], measure)
        assert [value for _, value in rows] == pytest.approx(values)
        assert name == "wandb" or [step for step, _ in rows] == [*steps]


def test_a_logger_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ImportError, match="pip install trackio"):
        TrackioLogger("lab")


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
