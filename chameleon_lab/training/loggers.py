"""`LightningLogger`: what a run records, sent to a logger of Lightning's (CSV, TensorBoard, W&B) as it is made."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

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
