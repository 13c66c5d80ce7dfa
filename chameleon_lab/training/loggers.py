"""What a run records, sent to others' loggers as it is made: `LightningLogger` to any of Lightning's (CSV, TensorBoard,
W&B, MLflow), from outside; `TrackioLogger` is trackio's as one of these, which Lightning itself does not have."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from chameleon_lab.history import History, RecordedRun, RunState


class MetricLogger(Protocol):
    """What is asked of a logger; each of `lightning.pytorch.loggers` is one."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None: ...
    def save(self) -> None: ...
    def finalize(self, status: str) -> None: ...


class LoggedRun(Protocol):
    """A run of this process (`Run`) or of another (`RecordedRun`)."""

    @property
    def history(self) -> History: ...
    @property
    def state(self) -> RunState: ...


class LightningLogger:
    """Sends every record of a run to a logger: each step once, in order, with all that was measured at it.

    ```python
    run = experiment.run("runs/mine")
    logging = LightningLogger(CSVLogger("logs")).follow(run)  # a thread of its own, until the run is over
    run.wait()
    logging.join()
    ```

    Values of layers and heads are sent too where `layers`: `residual_norm/3`, `max_attention_logit/3/1`.
    """

    def __init__(self, logger: MetricLogger, *, layers: bool = False) -> None:
        self.logger, self.layers = logger, layers
        self._last = -1

    def update(self, history: History) -> int:
        """Sends what is new since the last call; number of records sent."""
        new = [record for record in history.records if record.step > self._last]
        for record in new:
            values = {**record.values, "seconds": record.seconds}
            if self.layers:
                values |= flat_layers(record.layers)
            self.logger.log_metrics(values, step=record.step)
            self._last = record.step
        if new:
            self.logger.save()
        return len(new)

    def follow(self, run: LoggedRun | Path | str, every: float = 0.2) -> threading.Thread:
        """Updates every so many seconds until the run is over, in a thread that is returned; `join` it before reading.

        Raises FileNotFoundError for a folder that holds no run.
        """
        source: LoggedRun = RecordedRun(run) if isinstance(run, Path | str) else run
        thread = threading.Thread(target=self._follow, args=(source, every), name="lightning-logger", daemon=True)
        thread.start()
        return thread

    def _follow(self, run: LoggedRun, every: float) -> None:
        pause = threading.Event()
        while True:
            over = run.state.over  # looked at first: what is recorded until then is in the history
            self.update(run.history)
            if over:
                break
            pause.wait(every)
        self.logger.finalize("success" if run.state.status == "finished" else "failed")


class TrackioLogger(Logger):
    """A run of trackio's as a logger of Lightning's: `Run(experiment, trainer={"logger": TrackioLogger("lab")})`.

    `options`: those of `trackio.init`. Raises ImportError where trackio is not installed.
    """

    def __init__(self, project: str, name: str | None = None, **options: Any) -> None:
        super().__init__()
        try:
            import trackio  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("This logger is trackio's: pip install trackio") from error
        self._begin = rank_zero_only(lambda: trackio.init(project, name, **{"embed": False, **options}))
        self._project, self._name, self._run = project, name, None

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str | None:
        return self._name if self._run is None else self._run.name

    @property
    def experiment(self) -> Any:
        """trackio's run, begun when it is first asked for; None in all processes but the first."""
        if self._run is None:
            self._run = self._begin()
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self.experiment.config.update(dict(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log({name: float(value) for name, value in metrics.items()}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None:
            self._run.finish()


def flat_layers(layers: Mapping[str, list[Any]]) -> dict[str, float]:
    """Values of layers, or of layers' heads, each under a name of its own: `name/layer`, `name/layer/head`."""
    flat: dict[str, float] = {}
    for name, each in layers.items():
        for layer, value in enumerate(each):
            if isinstance(value, list):
                flat |= {f"{name}/{layer}/{head}": float(number) for head, number in enumerate(value)}
            else:
                flat[f"{name}/{layer}"] = float(value)
    return flat
