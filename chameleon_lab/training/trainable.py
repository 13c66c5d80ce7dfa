"""What a `Run` asks of anything that trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import PIL.Image

from chameleon_lab.history import History, StepRecord
from chameleon_lab.monitors.alarms import Rule
from chameleon_lab.training.budget import Budget

if TYPE_CHECKING:
    from chameleon_lab.training.modules import PacedModule

Report = Callable[["PacedModule", StepRecord], None]
"""Called after each step, in the thread that trains."""


@dataclass(frozen=True)
class Exhibit:
    """What a model in training made of one prompt or picture, called `name`; `original` is what it was to rebuild."""

    name: str
    picture: PIL.Image.Image | None = None
    words: str = ""
    original: PIL.Image.Image | None = None


Exhibitor = Callable[[], Sequence[Exhibit]]
"""What the model, as it is now and in its evaluating state, makes of the same few prompts each time."""


@dataclass(frozen=True)
class Prepared:
    """A module and what it trains on: `batches(place)` is a pure function; `report` is called after each step.

    `sampler` is asked now and then what the model makes by now. `begin` is called once, where a run neither goes on nor
    is a fork: it gives the module the weights to begin from.
    """

    module: PacedModule
    batches: Callable[[int], Any]
    report: Report = lambda module, record: None
    sampler: Exhibitor | None = None
    begin: Callable[[], Any] | None = None


class Trainable(Protocol):
    """A frozen dataclass that says what to train: everything that decides the result but the machine.

    `rules` sound alarms. `checkpoints`: how many stay for forks, evenly over the budget. `precision` is Lightning's
    name of one. `offers`: names in `stability.FIXES` of what a fork may add.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str: ...
    @property
    def budget(self) -> Budget: ...
    @property
    def seed(self) -> int: ...
    @property
    def rules(self) -> Sequence[Rule]: ...
    @property
    def checkpoints(self) -> int: ...
    @property
    def precision(self) -> str: ...
    @property
    def offers(self) -> Sequence[str]: ...

    def prepare(self, folder: Path) -> Prepared:
        """What there is before the first step, the same each time. Raises ValueError when something is missing."""
        ...

    def finish(self, module: Any, history: History, folder: Path) -> Any:
        """Makes of the trained module what was wanted, writes it into the run's folder, and returns it."""
        ...

    def product(self, folder: Path) -> Any:
        """What `finish` wrote, read again; None where there is none, and the checkpoint has all."""
        ...

    def with_fixes(self, *fixes: Any) -> Trainable:
        """The same with stability fixes. Raises ValueError for those that it cannot have."""
        ...
