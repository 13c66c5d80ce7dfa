"""What the widgets of runs send to their views. `js/src/runs/messages.d.ts` declares the same for the scripts.

JSON has no nan and no infinity: where a number may be one, it goes by name.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


Setting = None | bool | int | float | str
"""A value as JSON can hold it."""


class MeasureColumn(TypedDict):
    """A measure: how many of the records have it; where not all of them do, which ones is in the buffer of places."""

    name: str
    count: int
    whole: bool


class LayersColumn(TypedDict):
    """A measure of layers: rows, and the shape of one. `heads`: shape of one more row, the newest by head."""

    name: str
    count: int
    shape: list[int]
    heads: NotRequired[list[int]]


class MeasureFacts(TypedDict):
    """The facts about a measure (see `chameleon_lab.measures`). Those of one `base` share the chart called `title`, each
    as the line of its `part`. `thresholds`: values beyond which the run's rules sound, and the level, mildest first.
    `family`: what it is looked at with. `about`: what it is, in a sentence."""

    name: str
    base: str
    part: str
    words: str
    title: str
    unit: str
    log: bool
    worse: Literal["higher", "lower", "neither"]
    thresholds: list[tuple[float, str]]
    family: str
    about: str


class RecordColumns(TypedDict):
    """Records as columns. Buffers: steps (float64), places (uint32), values (float32), columns in this order."""

    count: int
    measures: list[MeasureColumn]
    layers: list[LayersColumn]


class AlarmFacts(TypedDict):
    """An alarm."""

    step: int
    level: Literal["WARN", "ALARM", "CRITICAL"]
    rule: str
    message: str


class ChangeFacts(TypedDict):
    """An intervention, its values in words."""

    step: int
    name: str
    before: str
    after: str
    reason: str


class MilestoneFacts(TypedDict):
    """A step from which on the plan does something else, in words."""

    step: int
    message: str


class MilestoneNews(TypedDict):
    """Milestones from the `start`-th on."""

    start: int
    list: list[MilestoneFacts]


class AlarmNews(TypedDict):
    """Alarms from the `start`-th on."""

    start: int
    list: list[AlarmFacts]


class ChangeNews(TypedDict):
    """Changes from the `start`-th on."""

    start: int
    list: list[ChangeFacts]


class RunNews(TypedDict):
    """What is new of a history, from the `start`-th record on. A greater `epoch` begins anew. `run`: its place.

    `about`: the measures that no message had before.
    """

    kind: Literal["records"]
    run: int
    epoch: int
    start: int
    about: list[MeasureFacts]
    records: RecordColumns
    alarms: AlarmNews
    changes: ChangeNews
    milestones: MilestoneNews


class SampleFacts(TypedDict):
    """What the run `run` (empty: this one; else a fork of it) made after a step of the prompt or picture `name`.

    `picture` and `original`: their places among the buffers, None where there is none.
    """

    run: str
    step: int
    name: str
    words: str
    picture: int | None
    original: int | None


class PanelSamples(TypedDict):
    """Samples from the `start`-th on; the pictures are buffers, PNG. A greater `epoch` begins anew."""

    kind: Literal["samples"]
    epoch: int
    start: int
    list: list[SampleFacts]


class PanelState(TypedDict):
    """How the run stands. `left`: seconds. `refusal`: of the last command, `refusals` of them so far. `note`: what else
    became of a command. `behind`: the run it waits for. `panels`: those of its forks that can be opened beside it."""

    kind: Literal["state"]
    name: str
    status: Literal["waiting", "running", "paused", "finished", "stopped", "failed", "interrupted"]
    over: bool
    acts: bool
    folder: bool
    progress: float
    step: int | None
    steps: int | None
    pace: float | str
    left: float | None
    error: str
    refusal: str
    refusals: int
    note: str
    behind: str
    settings: dict[str, Setting | dict[str, Setting]]
    offers: list[str]
    parent: str
    forked_at: int | None
    difference: str
    forks: list[str]
    panels: list[str]


class PanelFork(TypedDict):
    """A fork's own panel, by its model."""

    kind: Literal["fork"]
    name: str
    model: str


class PanelUnreadable(TypedDict):
    """The run's folder cannot be read."""

    kind: Literal["unreadable"]
    error: str


PanelMessage = PanelState | RunNews | PanelSamples | PanelFork | PanelUnreadable


class ComparedFacts(TypedDict):
    """A run: its row of the table, and what sets it apart where it is a fork."""

    row: dict[str, Setting]
    progress: float
    over: bool
    configured: bool
    forked: str


class DifferenceFacts(TypedDict):
    """A setting in which configs differ: a value in words for each run, None where it has none."""

    key: str
    values: list[str | None]


class RateGroup(TypedDict):
    """A configuration: its LR sensitivity, and held-out losses by rate."""

    name: str
    number: float | str
    losses: list[tuple[float, list[float | str]]]


class RateFacts(TypedDict):
    """Losses against learning rates, and the loss at the start; the loss's words and unit."""

    words: str
    unit: str
    start: float | str
    groups: list[RateGroup]


class SeedGroup(TypedDict):
    """Runs that differ by seed alone, by their places: one line with a band, and one row, unless it is opened."""

    name: str
    runs: list[int]


class OutcomeColumn(TypedDict):
    """A column of the table of outcomes: its key in a row, its heading, and what it is."""

    key: str
    heading: str
    hint: str


class ComparisonState(TypedDict):
    """All of a comparison but the curves."""

    kind: Literal["state"]
    columns: list[OutcomeColumn]
    runs: list[ComparedFacts]
    measures: list[MeasureFacts]
    groups: list[SeedGroup]
    differences: list[DifferenceFacts]
    rates: RateFacts


class ComparisonFigure(TypedDict):
    """A figure to be saved, as a buffer."""

    kind: Literal["figure"]
    format: Literal["png", "svg"]
    view: str


class ComparisonTrouble(TypedDict):
    """What went wrong with a request."""

    kind: Literal["trouble"]
    error: str


ComparisonMessage = ComparisonState | RunNews | ComparisonFigure | ComparisonTrouble
