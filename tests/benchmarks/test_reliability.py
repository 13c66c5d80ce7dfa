"""Random kills and interrupts, by command; it prints a table. `LAB_KILLS` and `LAB_INTERRUPTS` say how many.

LAB_KILLS=200 LAB_INTERRUPTS=1000 python -m pytest -m slow tests/benchmarks/test_reliability.py -s
"""

import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from support import IMAGE
from test_interrupts import REPLIES, Interrupts, begun, check_interrupted, everything, plain, read_on
from test_storage import files

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.checkpoints import formats
from chameleon_lab.corpora.shards import Shards, write_shards
from chameleon_lab.documents import Document
from chameleon_lab.training.folder import RunFolder
from chameleon_lab.training.image_experiments import TINY_PICTURES
from chameleon_lab.training.modules import Budget

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks beside threads")]

KILLS = int(os.environ.get("LAB_KILLS", "40"))
INTERRUPTS = int(os.environ.get("LAB_INTERRUPTS", "200"))
STEPS = 12


def kill_after(seconds: float, work: Callable[[], object]) -> bool:
    """Has a child do some work and kills it after so long; whether it was killed before it was done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    timer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "the work itself failed"
    return os.WIFSIGNALED(status)


def hidden(folder: Path) -> list[str]:
    return [each.name for each in folder.rglob("*") if each.name.startswith(".") or "partial" in each.name]


def kill_trainings(tmp_path: Path, count: int, rng: random.Random) -> tuple[int, int]:
    """(kills that met a run, folders that were whole and bitwise the same in the end)"""
    experiment = replace(TINY_PICTURES, tokenizer=IMAGE, budget=Budget(steps=STEPS), batch=2, crop=16, checkpoints=3)
    whole = tmp_path / "training-whole"

    def finish(folder: Path) -> None:
        experiment.run(folder).result()

    started = time.monotonic()
    finish(whole)
    lasts, expected = time.monotonic() - started, RunFolder(whole).history
    met = same = 0
    number = 0
    while met < count:
        folder = tmp_path / f"training-{number}"
        number += 1
        while met < count and kill_after(rng.uniform(0.1, 1.3) * lasts, partial(finish, folder)):
            met += 1
        experiment.run(folder).result()
        losses = [
            [(each.step, each.values) for each in history.records] for history in (RunFolder(folder).history, expected)
        ]
        weights = [files(each)["tokenizer/image_tokenizer.safetensors"] for each in (folder, whole)]
        assert losses[0] == losses[1] and weights[0] == weights[1] and not hidden(folder)
        same += 1
    return met, same


def kill_writers(
    place: Path, count: int, rng: random.Random, old: Callable[[Path], object] | None, new: Callable[[Path], object]
) -> tuple[int, int]:
    """(kills that met a writer, folders that were old, new or absent, and whole)"""
    place.mkdir()
    new(place / "new")
    started = time.monotonic()
    (old or new)(place / "old")
    lasts, met, whole = max(0.02, time.monotonic() - started), 0, 0
    wanted = [contents(place / name) for name in ("old", "new")]
    target = place / "target"
    while met < count:
        if old and not target.exists():
            old(target)
        met += kill_after(rng.uniform(0, 1.1) * lasts, lambda: new(target))
        assert (not target.exists() and not old) or contents(target) in wanted
        whole += 1
        (place / "away").mkdir(exist_ok=True)
        if target.exists():
            target.rename(place / "away" / str(whole))
    (old or new)(target)
    assert not [name for name in hidden(place) if ".target" in name]
    return met, whole


def contents(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files(folder).items() if not name.startswith("card.json")}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # how many there are decides the last bits of a sum


def test_random_kills(lab, make_lab, mixed, spelled, tmp_path):
    rng, each = random.Random(0), max(1, KILLS // 5)
    other = make_lab(mixed, layers=1)
    documents = [Document.of("a word " * 20)] * 60
    convert = lambda folder: formats.write_opened(formats.open_folder(tmp_path / "model"), folder)  # noqa: E731
    lab.save(tmp_path / "model")
    rows = {
        "trainings": kill_trainings(tmp_path, each, rng),
        "saves over a model": kill_writers(tmp_path / "saves", each, rng, other.save, lab.save),
        "saves of a new one": kill_writers(tmp_path / "fresh", each, rng, None, lab.save),
        "conversions": kill_writers(tmp_path / "conversions", each, rng, None, convert),
        "tokenizations": kill_writers(
            tmp_path / "shards", each, rng, None, lambda folder: write_shards(folder, iter(documents), lab.tokenizer)
        ),
    }
    print("\n| killed | kills | whole afterwards |\n|---|---|---|")
    for name, (met, whole) in rows.items():
        print(f"| {name} | {met} | {whole} |")
    assert isinstance(Chameleon.load(tmp_path / "saves" / "target"), Chameleon)
    assert len(Shards(tmp_path / "shards" / "target")) == 60


def test_random_interrupts(engine):
    rng, rows = random.Random(1), dict[str, tuple[int, int]]()
    for name in REPLIES:
        whole, count, replies = list(map(plain, begun(engine, name).stream())), 0, 0
        while count < INTERRUPTS // len(REPLIES):
            often = 10 ** -rng.uniform(3.0, 4.5)
            interrupts = Interrupts(lambda code, place, visits, often=often: rng.random() < often, opcodes=True)
            assert list(map(plain, read_on(begun(engine, name), interrupts, everything))) == whole
            count, replies = count + interrupts.count, replies + 1
        rows[name] = count, replies
    print("\n| replies of | interrupts | replies, all bitwise equal |\n|---|---|---|")
    for name, (count, replies) in rows.items():
        print(f"| {name} | {count} | {replies} |")


@pytest.mark.parametrize("name", REPLIES)
def test_every_instruction(engine, name):
    interrupts = Interrupts(lambda code, place, visits: visits == 1, opcodes=True)
    check_interrupted(engine, name, interrupts, everything)
    print(f"\n{name}: interrupted at {interrupts.count} instructions of the lab's, bitwise equal")
