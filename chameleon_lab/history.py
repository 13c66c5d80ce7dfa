"""What a run records: steps, alarms, interventions, milestones, samples; and its folder, as an onlooker reads it.

A folder holds `config.json` (what is trained), `state.json` (how it stands), `metrics.jsonl` (a `StepRecord` a line),
`events.jsonl` (alarms, interventions, milestones, samples, answers to orders), `orders.jsonl` (what onlookers ordered),
`samples/` (the samples' pictures) and `checkpoints/`.
Nothing here trains; a folder written by a process elsewhere reads the same.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

import numpy as np

from chameleon_lab.files import read_table, require_place, require_regular
from chameleon_lab.measures import MEASURES, default_thresholds, measure_of
from chameleon_lab.parts import require_fields

Level = Literal["WARN", "ALARM", "CRITICAL"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""From a first sign to the worst."""

Status = Literal["waiting", "running", "paused", "finished", "stopped", "failed", "interrupted"]


@dataclass(frozen=True)
class StepRecord:
    """What was measured at one optimizer step.

    `values`: plain floats by measure (see `measures`). `layers`: those of each layer, a list of floats, or of each
    layer's heads, a list of such lists.
    """

    step: int
    seconds: float
    values: dict[str, float] = field(default_factory=dict)
    layers: dict[str, list[Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        plain = asdict(self)
        if not self.layers:
            del plain["layers"]
        return json.dumps(plain)


@dataclass(frozen=True)
class Alarm:
    """A rule that began to hold at a step: how bad, which rule, and what was measured, in words."""

    step: int
    level: Level
    rule: str
    message: str


@dataclass(frozen=True)
class Intervention:
    """A setting changed while a run went on: it holds from `step` on. `reason` is whose or what."""

    step: int
    name: str
    before: Any
    after: Any
    reason: str = ""


@dataclass(frozen=True)
class Milestone:
    """A step from which on the plan itself does something else: a stage of the mixture, a critic that begins."""

    step: int
    message: str


@dataclass(frozen=True)
class Sample:
    """What the model made after a step, of the prompt or the picture `name`, which is the same at every sample.

    `picture` and `original` (what is rebuilt, where something is) are files, relative to the run's folder; empty where
    there is none. `words`: what it wrote, or a figure.
    """

    step: int
    name: str
    picture: str = ""
    words: str = ""
    original: str = ""


@dataclass(frozen=True)
class Answer:
    """What became of an order that came through the run's folder: `refusal` says why not, and is empty where it was
    carried out."""

    step: int
    order: str
    command: str
    refusal: str = ""


Event = Alarm | Intervention | Milestone | Sample
EVENT_KINDS = {kind.__name__.lower(): kind for kind in (Alarm, Intervention, Milestone, Sample, Answer)}
"""What a line of `events.jsonl` may be, by its `kind`."""

Losses = Mapping[float, Sequence[float]]
"""Held-out losses by learning rate, one a seed."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class History:
    """All that one run recorded, in order of steps."""

    records: tuple[StepRecord, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    interventions: tuple[Intervention, ...] = ()
    milestones: tuple[Milestone, ...] = ()
    samples: tuple[Sample, ...] = ()

    @property
    def names(self) -> list[str]:
        """The measures that were recorded, sorted."""
        return sorted({name for record in self.records for name in record.values})

    def series(self, name: str, modality: str | None = None) -> tuple[list[int], list[float]]:
        """(steps, values) of one measure, of one modality where given, at the steps where it was recorded.

        Raises KeyError naming the measures there are.
        """
        name = f"{modality}_{name}" if modality else name
        records = [record for record in self.records if name in record.values]
        if not records:
            raise KeyError(f"No record of {name!r}; this run recorded {', '.join(self.names) or 'nothing'}.")
        return [record.step for record in records], [record.values[name] for record in records]

    def maximum(self, name: str, modality: str | None = None) -> float:
        """The largest value of a measure; nan where one of them is not a number. Missing ones are as in `last`."""
        return float(np.max(self._values(name, modality)))

    def last(self, name: str, modality: str | None = None) -> float:
        """The value recorded last; nan where a run has not come to recording one of the lab's measures.

        Raises KeyError as `series` does for any other name.
        """
        return self._values(name, modality)[-1]

    def _values(self, name: str, modality: str | None) -> list[float]:
        """The values of a measure, at least one: nan stands for those that are still to come."""
        name = f"{modality}_{name}" if modality else name
        if name not in self.names and measure_of(name).base in MEASURES:
            return [math.nan]
        return self.series(name)[1]

    def layers(self, name: str) -> tuple[list[int], np.ndarray]:
        """(steps, values of steps x layers, or x heads) of a measure that has one a layer. Raises KeyError as above."""
        records = [record for record in self.records if name in record.layers]
        if not records:
            names = sorted({key for record in self.records for key in record.layers})
            raise KeyError(f"No record of {name!r} by layer; this run recorded {', '.join(names) or 'nothing'}.")
        return [record.step for record in records], np.array([record.layers[name] for record in records], np.float64)

    @property
    def held_out_loss(self) -> float:
        """The loss on held-out documents, nats a token, as measured last; nan where it never was, as of a run that was
        stopped before its end."""
        return self.last("held_out_loss")

    @property
    def initial_loss(self) -> float:
        """The loss at initialisation: of the first batch, before any step; nan where the first step is not there."""
        first = self.records[0] if self.records else None
        return first.values.get("loss", math.nan) if first and first.step == 0 else math.nan

    def spike_score(self, name: str = "loss", window: int = 1000, deviations: float = 7.0) -> float:
        """Percentage of values at least `deviations` standard deviations from the mean of the `window` before.

        OLMo 2's definition (arXiv 2501.00656, section 3.1); values with fewer than a tenth of the window before them
        are not judged. Beyond it: after values that are all equal any other is a spike, a value that is no finite
        number is one too, and such values are left out of the mean and the deviation that later ones are held against.
        """
        values = np.array(self.series(name)[1])
        first = max(2, window // 10)
        spikes = judged = 0
        for at in range(first, len(values)):
            before = values[max(0, at - window) : at]
            before = before[np.isfinite(before)]
            if not np.isfinite(values[at]):
                spikes, judged = spikes + 1, judged + 1
            elif len(before) >= 2:
                distance = abs(values[at] - before.mean())
                flat = before.min() == before.max()  # whose computed deviation need not be 0
                spikes += bool(values[at] != before[0] if flat else distance >= deviations * before.std())
                judged += 1
        return 100 * spikes / max(1, judged)

    def until(self, step: int) -> History:
        """The part before a step, and the interventions from there on in force."""
        return replace(
            self,
            records=tuple(each for each in self.records if each.step < step),
            alarms=tuple(each for each in self.alarms if each.step < step),
            interventions=tuple(each for each in self.interventions if each.step <= step),
            milestones=tuple(each for each in self.milestones if each.step < step),
            samples=tuple(each for each in self.samples if each.step < step),
        )

    @property
    def events(self) -> tuple[Event, ...]:
        """All but the records, in the order of steps."""
        every = (*self.alarms, *self.interventions, *self.milestones, *self.samples)
        return tuple(sorted(every, key=lambda event: event.step))

    def to_frame(self) -> Any:
        """A pandas DataFrame: a row a step, `seconds` and a column for each measure, nan where it was not recorded.

        Raises ImportError, saying how to get it, where pandas is not installed.
        """
        return frame_of({"": self}).drop(columns="run").set_index("step")

    def to_jsonl(self) -> str:
        """The records, a line each."""
        return "".join(record.to_json() + "\n" for record in self.records)

    @classmethod
    def from_jsonl(cls, lines: Iterable[str], events: Iterable[str] = ()) -> History:
        """The history of the two files' lines, without those that cannot be read, such as a last one cut short."""
        return cls.of(in_order(list(_parsed(lines, step_record))), _parsed(events, run_event))

    @classmethod
    def of(cls, records: Iterable[StepRecord], events: Iterable[Event | Answer] = ()) -> History:
        """The history of records and events, each in the order of steps."""
        alarms, interventions, milestones, samples = (
            list[Alarm](),
            list[Intervention](),
            list[Milestone](),
            list[Sample](),
        )
        for event in events:
            match event:
                case Alarm():
                    alarms.append(event)
                case Intervention():
                    interventions.append(event)
                case Milestone():
                    milestones.append(event)
                case Sample():
                    samples.append(event)
        return cls(tuple(records), tuple(alarms), tuple(interventions), tuple(milestones), tuple(samples))


def frame_of(histories: Mapping[str, History]) -> Any:
    """The records of several runs as one pandas DataFrame: `run`, `step`, `seconds`, and a column for each measure.

    `frame_of(histories).groupby("run")["loss"].min()`. Raises ImportError where pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise ImportError(
            'A data frame needs pandas, which is an extra: pip install "chameleon-lab[pandas]". Without it, '
            "history.series(name) gives (steps, values), and history.to_jsonl() a line a step."
        ) from error
    rows = [
        {"run": name, "step": record.step, "seconds": record.seconds, **record.values}
        for name, history in histories.items()
        for record in history.records
    ]
    measures = sorted({name for history in histories.values() for name in history.names} - {"seconds"})
    return pandas.DataFrame(rows, columns=["run", "step", "seconds", *measures])


def event_line(event: Event | Answer) -> str:
    """An event as a line of `events.jsonl`."""
    return json.dumps({"kind": type(event).__name__.lower(), **asdict(event)}) + "\n"


def parse_line(line: str, read: Callable[[dict[str, Any]], Value]) -> Value | None:
    """What `read` makes of a line; None for what is no JSON or says something else: damaged, or somebody else's."""
    try:
        plain = json.loads(line)
        return read(plain) if isinstance(plain, dict) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ArithmeticError):
        return None


def _parsed(lines: Iterable[str], read: Callable[[dict[str, Any]], Value]) -> Iterator[Value]:
    """What `read` makes of each line that it can read."""
    return (value for line in lines if (value := parse_line(line, read)) is not None)


LARGEST_STEP = 2**53
"""Beyond it, JavaScript's numbers skip some."""


def step_record(plain: dict[str, Any]) -> StepRecord:
    """The record that a line of `metrics.jsonl` holds, without what a newer version may have added. Raises ValueError,
    TypeError or KeyError for anything else."""
    step, seconds, values, layers = plain["step"], plain["seconds"], plain.get("values", {}), plain.get("layers", {})
    if type(step) is not int or not 0 <= step < LARGEST_STEP:
        raise ValueError("a step is a whole number")
    if not isinstance(layers, dict) or not all(isinstance(each, list) for each in layers.values()):
        raise TypeError("what is recorded by layer are lists")
    by_layer = [each for layer in chain.from_iterable(layers.values()) for each in _heads_of(layer)]
    for number in (seconds, *values.values(), *by_layer):
        if type(number) is not float and (type(number) is not int or abs(number) > LARGEST_STEP):
            raise ValueError("what was measured are numbers")
    return StepRecord(step, seconds, values, layers)


def _heads_of(layer: Any) -> list[Any]:
    """A layer's values, one a head, or its only one."""
    return layer if isinstance(layer, list) else [layer]


def run_event(plain: dict[str, Any]) -> Event | Answer:
    """The event that a line of `events.jsonl` holds. Raises as `step_record` does."""
    kind = EVENT_KINDS[plain["kind"]]
    renamed = {"told": "message"}  # what files of before December 2026 call it
    fields = {renamed.get(key, key): value for key, value in plain.items()}
    event = kind(**{key: value for key, value in fields.items() if key in kind.__dataclass_fields__})
    require_fields(event, step=(-LARGEST_STEP, LARGEST_STEP))
    return event


def in_order(records: Sequence[StepRecord]) -> Sequence[StepRecord]:
    """One record a step, by rising step; of several of one step the last, which a run that went on wrote again."""
    if all(one.step < other.step for one, other in pairwise(records)):
        return records
    return [record for _, record in sorted({record.step: record for record in records}.items())]


def steps_missing(steps: Iterable[int], end: int) -> list[range]:
    """The gaps between rising steps, from 0 up to an end; ranges, since one damaged number may open a gap of 10^12."""
    bounds = [-1, *(step for step in steps if step < end), end]
    return [range(one + 1, other) for one, other in pairwise(bounds) if other > one + 1]


def describe_gaps(unreadable: int, twice: int, missing: Sequence[range], before: str = "") -> str:
    """What is wrong with `metrics.jsonl`, in words: lines that nobody can read, steps recorded twice, steps missing.

    Nothing where all of it stands in what was said `before`.
    """
    count = sum(gap.stop - gap.start for gap in missing)  # len() of a range has a limit
    spans = [f"{missing[0][0]} to {missing[-1][-1]}" if count > 1 else f"{missing[0][0]}"] if missing else []
    parts = [
        f"{unreadable} of its lines cannot be read and are passed over" if unreadable else "",
        f"{twice} of its steps are there twice" if twice else "",
        *(f"{count} steps are missing, within {span}" for span in spans),
    ]
    words = "; ".join(part for part in parts if part)
    if all(part in before for part in parts):
        return ""
    return f"metrics.jsonl is damaged: {words}. Curves and scores leave these out." if words else ""


@dataclass(frozen=True)
class RunState:
    """How a run stands.

    `settings`: what can be changed while it runs, by name, as it is now. `offers`: fixes a fork can have, by name.
    `steps`: of the whole budget, where it is one of steps. `tokens_per_second`: of the last steps. `parent`: the run
    this one was forked from, at `forked_at`, and `difference` from it, in words. `forks`: names of its own forks.
    `process`, which began at `process_start`, trains it on `host`; `beat` is when it last gave a sign of life, in
    seconds since 1970 by that machine's clock, 0 where it gives none.
    `thresholds`: by measure and level, the values beyond which its rules sound. `behind`: the run that has the machine
    while this one waits for it.
    """

    name: str
    status: Status
    progress: float = 0.0
    steps: int | None = None
    tokens_per_second: float = 0.0
    error: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    offers: tuple[str, ...] = ()
    parent: str = ""
    forked_at: int | None = None
    difference: str = ""
    forks: tuple[str, ...] = ()
    process: int = 0
    process_start: str = ""
    host: str = ""
    beat: float = field(default=0.0, compare=False)
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=default_thresholds)
    behind: str = ""

    @property
    def over(self) -> bool:
        return self.status in ("finished", "stopped", "failed", "interrupted")


def lr_sensitivity(losses: Losses, start: float) -> float:
    """How much of the loss hangs on the learning rate, nats a token (Wortsman et al. 2023, arXiv 2309.14322).

    The mean over rates of min(loss, `start`), less the best of them; seeds of a rate are averaged. `start` is the loss
    at initialisation (`History.initial_loss`, of several runs their mean), as in the paper: no rate does worse than not
    to train. 0 is a model that does not mind its rate. A loss that is no number counts as `start`. Raises ValueError
    without a rate.
    """
    if not losses:
        raise ValueError("LR sensitivity needs the losses of one learning rate at least, better of several.")
    means = [float(np.mean(each)) for each in counted(losses, start).values()]
    return float(np.mean(means)) - min(means)


def counted(losses: Losses, start: float) -> dict[float, list[float]]:
    """The losses by rising rate as they count: at most `start`, which is also what one that is no number counts as."""
    return {rate: [start if math.isnan(each) else min(each, start) for each in losses[rate]] for rate in sorted(losses)}


ORDERS = ("pause", "resume", "stop", "save", "change", "fork")
"""What a run can be ordered, by `act`, in its own process or through its folder."""


@dataclass(frozen=True)
class PostedOrder:
    """An order to a run of another process, as a line of `orders.jsonl`: for the process that trained when it was
    written, and no later one."""

    order: str
    command: str
    arguments: Any

    @classmethod
    def of(cls, plain: dict[str, Any]) -> PostedOrder:
        """The order of a line that anybody may have written."""
        arguments = plain.get("arguments")
        order = str(plain.get("order") or uuid.uuid4().hex)
        return cls(order, str(plain.get("command")), {} if arguments is None else arguments)


HEARTBEAT = 20.0
"""Seconds between two signs of life of a process that trains; it writes them to `state.json`."""

SILENCE = 180.0
"""Seconds without a sign of life after which a process of another machine counts as gone: it cannot be asked from here,
and what it writes may come late over a shared disk."""

SECOND_LOOK = 5.0
"""Seconds until a fork's folder that was not there is looked for again."""


class RecordedRun:
    """A run as its folder shows it: `state`, `history` and `config` as they are now; `act` reaches it where it trains.

    Raises FileNotFoundError when the folder holds no run.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not _holds_run(self.folder):
            below = sorted(each.name for each in self.folder.glob("*/") if _holds_run(each))
            raise FileNotFoundError(
                f"{self.folder} holds no run: neither state.json nor metrics.jsonl is there."
                + (f" Below it there are {', '.join(below)}: name one of these." if below else "")
            )
        self._metrics = Tail(self.folder / "metrics.jsonl", step_record)
        self._events = Tail(self.folder / "events.jsonl", run_event)
        self._forks: dict[str, RecordedRun] = {}
        self._forks_missed: tuple[tuple[str, ...], float] = (), 0.0  # those that no folder had, and when
        self._last_beat = 0.0, 0.0  # the last sign of life, and when it came by this machine's monotonic clock

    @property
    def state(self) -> RunState:
        """How it stands. One whose process is gone is `interrupted`: at once where that ran on this machine, and on
        another one after `SILENCE` seconds without a sign of life."""
        try:
            written = read_table(self.folder / "state.json")
            plain: dict[str, Any] = {key: written[key] for key in written if key in RunState.__dataclass_fields__}
            plain |= {key: tuple(plain[key]) for key in ("offers", "forks")}
            state = RunState(**plain)
            require_fields(state)
            if not isinstance(state.settings, dict) or not isinstance(state.thresholds, dict):
                raise TypeError("settings and thresholds are objects")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ArithmeticError):
            return RunState(self.folder.name, "interrupted")
        if state.over:
            return state
        if state.host == socket.gethostname():
            return state if alive(state.process, state.process_start) else replace(state, status="interrupted")
        if (silence := self._silence(state.beat)) <= SILENCE:
            return state
        message = (
            f"Process {state.process} on {state.host} has given no sign of life for {silence / 60:.0f} minutes, and "
            f"gives one every {HEARTBEAT:.0f} s: it is gone, or this folder is a copy that is not renewed. Started "
            "again in its folder, the run goes on."
        )
        return replace(state, status="interrupted", error=state.error or message)

    @property
    def revision(self) -> tuple[int, int, int]:
        """Another one whenever the state was written anew, as by a process that takes the run up."""
        try:
            about = (self.folder / "state.json").stat()
        except OSError:
            return (0, 0, 0)
        return about.st_ino, about.st_mtime_ns, about.st_size

    def _silence(self, beat: float) -> float:
        """Seconds since the last sign of life; 0 for a run that gives none.

        The two machines' clocks may differ, so the other one's is believed at the first look alone: of a sign that
        comes later, this one's clock says when.
        """
        if not beat:
            return 0.0
        before, since = self._last_beat
        if beat != before:
            since = time.monotonic() - (0.0 if before else max(0.0, time.time() - beat))
            self._last_beat = beat, since
        return time.monotonic() - since

    @property
    def history(self) -> History:
        """What is recorded; where some of it is damaged or missing, an alarm says so."""
        lines = self._metrics.values()
        records, events = in_order(lines), list(self._events.values())
        steps = [record.step for record in records]
        missing = list[range]()
        if any(other == one + 1 for one, other in pairwise(steps)):
            missing = steps_missing(steps, steps[-1])
        message = describe_gaps(self._metrics.unreadable, len(lines) - len(records), missing)
        if not steps and self.state.progress > 0:
            unreadable = self._metrics.unreadable
            state = f"holds {unreadable} lines and none that can be read" if unreadable else "is empty or missing"
            message = f"metrics.jsonl {state}, though the run has come to {self.state.progress:.0%}."
        if message and not any(isinstance(event, Alarm) and event.rule == "records" for event in events):
            events.append(Alarm(steps[-1] if steps else 0, "WARN", "records", message))
        return History.of(records, events)

    @property
    def ranks(self) -> dict[int, History]:
        """What was each process's own of the steps, by its number, where several share the training: their losses and
        tokens differ, as their batches do. `history` has the means."""
        files = [path for path in (self.folder / "ranks").glob("*.jsonl") if path.stem.isdecimal()]
        each = {int(path.stem): Tail(path, step_record).values() for path in sorted(files)}
        return {rank: History.of(in_order(records)) for rank, records in each.items()}

    @property
    def config(self) -> dict[str, Any]:
        """What is trained, as plain values; empty where the folder does not say."""
        return {key: value for key, value in self._description.items() if key != "sources"}

    @property
    def forks(self) -> list[RecordedRun]:
        """The runs that were forked from this one, in their order, as far as their folders lie beside this one's."""
        state = self.state
        missing = tuple(name for name in state.forks if name not in self._forks)
        names, since = self._forks_missed
        if missing and (missing != names or time.monotonic() - since > SECOND_LOOK):
            self._forks_missed = missing, time.monotonic()
            for folder in sorted(self.folder.resolve().parent.glob("*/")):
                fork = RecordedRun(folder) if _holds_run(folder) else None
                if fork is not None and (its := fork.state).parent == state.name and its.name in state.forks:
                    self._forks.setdefault(its.name, fork)
        return [self._forks[name] for name in state.forks if name in self._forks]

    @property
    def sources(self) -> dict[str, str]:
        """The source of a person's own classes and functions in it, by the names that they have in `config`."""
        return self._description.get("sources", {})

    @property
    def _description(self) -> dict[str, Any]:
        try:
            return read_table(self.folder / "config.json")
        except (OSError, ValueError):
            return {}

    @property
    def answers(self) -> dict[str, Answer]:
        """What became of orders since the run's process began, by what `act` returned."""
        return {each.order: each for each in self._events.values() if isinstance(each, Answer)}

    def act(self, command: str, **arguments: Any) -> str:
        """Orders one of `ORDERS` through the folder, with the arguments of `Run.act`, and returns at once.

        The run carries it out between two steps, or refuses it, and says so in `answers`, under what is returned here.
        Raises ValueError for what no run can do, for arguments that this one does not offer, and when no process
        trains it.
        """
        state = self.state
        if command not in ORDERS:
            raise ValueError(f"A run has no command {command!r}; it has {', '.join(ORDERS)}.")
        if state.over:
            raise ValueError(
                f"The run {state.name!r} is {state.status}: no process here trains it, so it cannot {command}. Start "
                "it again in its folder to go on."
            )
        if state.status == "waiting" and not state.process:
            raise ValueError(f"The run {state.name!r} waits for its processes to be started: they take orders then.")
        settings = arguments.keys() - {"reason"}
        if command == "change" and (unknown := settings - state.settings.keys()):
            offered = ", ".join(state.settings) or "nothing as yet"
            raise ValueError(f"The run {state.name!r} cannot change {', '.join(sorted(unknown))}; it offers {offered}.")
        if command == "fork" and arguments.get("fix") not in state.offers:
            offered = ", ".join(state.offers) or "none"
            raise ValueError(
                f"The run {state.name!r} has no fix {arguments.get('fix')!r} to offer; it offers {offered}."
            )
        posted = PostedOrder(uuid.uuid4().hex[:12], command, arguments)
        try:
            line = json.dumps(asdict(posted)) + "\n"
        except TypeError as error:
            raise ValueError(f"An order travels as JSON, and this cannot: {error}.") from error
        # One write of one line at the end of the file, so that onlookers do not tear each other's.
        file = os.open(require_place(self.folder / "orders.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)
        return posted.order


def _holds_run(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "metrics.jsonl").is_file()


LARGEST_LINE = 16 * 2**20
"""Bytes of a line of records that are looked at: a record has thousands, and what has more is none."""


class Tail(Generic[Value]):
    """The values of a file of JSON lines that grows, each read once; all again when the file was written anew.

    `unreadable`: how many of its lines are none.
    """

    def __init__(self, path: Path, read: Callable[[dict[str, Any]], Value]) -> None:
        self._path, self._parse = path, read
        self._begin(0)

    def values(self) -> Sequence[Value]:
        try:
            about = self._path.stat()
            if about.st_size < self._bytes or about.st_ino != self._file:
                self._begin(about.st_ino)
            if about.st_size > self._bytes:
                with require_regular(self._path).open("rb") as file:
                    file.seek(self._bytes)
                    while chunk := file.read(LARGEST_LINE):
                        self._read(chunk)
                        file.seek(self._bytes)
                        if len(chunk) < LARGEST_LINE:
                            break
        except (OSError, ValueError):  # not there, or no file: whatever comes later under this name is another one
            self._begin(0)
        return self._values

    def _begin(self, file: int) -> None:
        self._values, self._bytes, self._file, self._in_long_line = list[Value](), 0, file, False
        self.unreadable = 0

    def _read(self, chunk: bytes) -> None:
        """Takes the whole lines of the next bytes; of a line longer than all of them it takes only note."""
        whole = chunk[: chunk.rfind(b"\n") + 1]
        if not whole:
            if len(chunk) == LARGEST_LINE:
                self._bytes, self._in_long_line = self._bytes + len(chunk), True
            return
        lines = whole.decode(errors="replace").split("\n")[:-1]
        values = list(_parsed(lines[self._in_long_line :], self._parse))
        self._values += values
        self.unreadable += len(lines) - len(values)
        self._bytes, self._in_long_line = self._bytes + len(whole), False


def alive(process: int, start: str = "") -> bool:
    """Whether a process of this machine still runs; where its `start` is given, whether it is the same one."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OverflowError:
        return False
    except PermissionError:
        pass
    now = process_start(process)
    return not start or not now or start == now


def process_start(process: int) -> str:
    """When a process of this machine began, as letters that no other process of its number has; empty where the
    system does not say."""
    try:
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{boot}_{after_name[19]}"
    except (OSError, IndexError):
        return ""
