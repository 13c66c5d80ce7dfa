"""What a benchmark of a paper is: where its files come from, how they are read to questions, how answers are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chameleon_lab.evaluation.answers import last_number
from chameleon_lab.files import intact

LARGEST_FILE = 2**31  # bytes: VQAv2's annotations are half of it


@dataclass(frozen=True)
class BenchmarkItem:
    """One question. Either `choices` and the place of the right one, or people's `relevance` of each, 0 to 1; or else
    `answers`: people's, references, or the one that is right. `solution` is what a shot of it says after the context;
    shots are of the same `group`."""

    text: str
    solution: str
    choices: tuple[str, ...] = ()
    right: int = 0
    answers: tuple[str, ...] = ()
    picture: Path | None = None
    group: str = ""
    relevance: tuple[float, ...] = ()

    @classmethod
    def of_choices(cls, text: str, choices: Sequence[str], right: int, group: str = "") -> BenchmarkItem:
        """Raises ValueError where the right one is none of the choices."""
        if not 0 <= right < len(choices):
            raise ValueError(f"the right answer is number {right} of {len(choices)}")
        return cls(text, choices[right], tuple(choices), right, group=group)


ItemReader = Callable[[Path], Iterator[BenchmarkItem]]
"""The items in a folder, in the order of the files."""


@dataclass(frozen=True)
class Benchmark:
    """A row of a paper's tables.

    `kind`: how it is scored; `files`: what must lie in the folder; `source`: where its authors publish it; `paper`: the
    paper's values in per cent (captions: CIDEr times 100), by model; `shots_from`: what reads the shots, where there
    are any; `answer_of`: what a reply comes to.
    """

    name: str
    kind: Literal["choices", "ranking", "answer", "caption", "vqa"]
    read: ItemReader
    files: tuple[str, ...]
    source: str
    paper: Mapping[str, float]
    shots: int = 0
    shots_from: ItemReader | None = None
    answer_of: Callable[[str], str | None] = last_number
    stop: str = "\n"
    longest: int = 16
    unknown: tuple[str, ...] = field(default=("the prompt's words", "the split"))

    def require_files(self, folder: Path | str) -> Path:
        """The folder, if the benchmark's files lie in it. Raises ValueError, naming those that lack and where to get
        them, otherwise."""
        folder = Path(folder)
        if missing := [name for name in self.files if not any(folder.glob(name))]:
            raise ValueError(
                f"{self.name} needs {', '.join(missing)} in {folder}. Its authors publish them: {self.source}. Nothing "
                "is downloaded here: put the files into the folder under these names, and run it again."
            )
        return folder


def benchmark_items(
    benchmark: Benchmark, folder: Path | str, read: ItemReader | None = None
) -> Iterator[BenchmarkItem]:
    """Items as they are read. Raises ValueError, naming the folder, for files that are not as published."""
    with intact(folder, f"Get the files of {benchmark.name} anew: {benchmark.source}."):
        yield from (read or benchmark.read)(Path(folder))
