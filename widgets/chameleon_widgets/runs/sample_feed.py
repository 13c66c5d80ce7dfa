"""Samples on their way to the browser: of a run and of its forks, each sent once, their pictures as PNG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from chameleon_lab.history import History, Sample
from chameleon_lab.pictures import open_picture
from chameleon_widgets.pictures import png
from chameleon_widgets.runs.messages import PanelSamples, SampleFacts

PICTURE_SIDE = 256  # pixels of the larger side on the screen
AT_ONCE = 16  # samples in one message
MOST = 4000  # samples of one run; older ones than these are passed over


class SampleFeed:
    """Which samples have been sent. `epoch` grows when a run was written anew and views have to begin again."""

    def __init__(self) -> None:
        self.epoch = 0
        self.rewind()

    def rewind(self) -> None:
        """Everything is to be sent again."""
        self._total = 0
        self._counts = dict[str, int]()
        self._last = dict[str, Sample]()

    def news(
        self, histories: Mapping[str, History], folders: Mapping[str, Path]
    ) -> Iterator[tuple[PanelSamples, list[bytes]]]:
        """Messages with what is new, by run: `histories` and `folders` of this one ("") and of its forks."""
        if any(self._rewritten(run, history) for run, history in histories.items()):
            self.epoch += 1
            self.rewind()
        for run, history in histories.items():
            samples = history.samples[-MOST:]
            skipped = len(history.samples) - len(samples)
            start = max(0, self._counts.get(run, 0) - skipped)
            for first in range(start, len(samples), AT_ONCE):
                some = samples[first : first + AT_ONCE]
                buffers, facts = list[bytes](), list[SampleFacts]()
                for sample in some:
                    picture, original = (
                        _place(buffers, folders[run], name) for name in (sample.picture, sample.original)
                    )
                    facts.append(
                        SampleFacts(
                            run=run,
                            step=sample.step,
                            name=sample.name,
                            words=sample.words,
                            picture=picture,
                            original=original,
                        )
                    )
                yield PanelSamples(kind="samples", epoch=self.epoch, start=self._total, list=facts), buffers
                self._total += len(facts)
            self._counts[run] = len(history.samples)
            if history.samples:
                self._last[run] = history.samples[-1]

    def _rewritten(self, run: str, history: History) -> bool:
        count = self._counts.get(run, 0)
        return count > len(history.samples) or (count > 0 and history.samples[count - 1] != self._last[run])


def _place(buffers: list[bytes], folder: Path, name: str) -> int | None:
    """Adds the picture of that name to the buffers; None where the folder has none that can be read.

    A folder may be anybody's: a name that leads out of it names nothing.
    """
    path = folder / name
    if not name or not path.resolve().is_relative_to(folder.resolve()):
        return None
    try:
        buffers.append(png(open_picture(path), PICTURE_SIDE))
    except (ValueError, OSError):
        return None
    return len(buffers) - 1
