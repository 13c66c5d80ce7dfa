"""What becomes of a run's records and checkpoints when the disk, or somebody, damages them: what is good is used."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import support
import torch

from chameleon_lab import history
from chameleon_lab.commands.main import main
from chameleon_lab.corpora.mixture import SceneBatches
from chameleon_lab.history import Alarm, History, RecordedRun, RunState, StepRecord, steps_missing
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import Constant, Recipe
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.losses import ReconstructionObjective
from chameleon_lab.tokenizers.quantizers import MovingAverageQuantizer
from chameleon_lab.training import folder as run_folder
from chameleon_lab.training import loop
from chameleon_lab.training.folder import Appender, RunFolder, check_whole
from chameleon_lab.training.image_experiments import IMAGE_EXPERIMENTS, TINY_PICTURES, SceneImages, folder_of_pictures
from chameleon_lab.training.modules import Budget, ImageTokenizerModule, LanguageModule
from chameleon_lab.training.trainable import Prepared
from chameleon_lab.transformer import Transformer

RECIPE = Recipe(rate=3e-3, warm_up=2, schedule=Constant())
MODEL = replace(support.MODEL, width=16, heads=2, kv_heads=1, ffn_width=16, layers=1, context=500)


@pytest.fixture
def train(mixed):
    """Trains a small transformer in a folder up to a step: its losses."""

    def train(folder: Path, steps: int, **options) -> list[float]:
        torch.manual_seed(0)
        model = Transformer(replace(MODEL, vocabulary=mixed.vocabulary.size))
        module = LanguageModule(
            model, Objective(), Recipe(rate=3e-3, warm_up=2, schedule=Constant()), Budget(steps=steps)
        )
        loop.train(Prepared(module, SceneBatches(mixed, tokens=236, pool=3)), RunFolder(folder), **options)
        return [record.values["loss"] for record in RunFolder(folder).history.records]

    return train


def alarms(folder: Path, rule: str) -> list[str]:
    return [alarm.message for alarm in RecordedRun(folder).history.alarms if alarm.rule == rule]


# Checkpoints


def test_a_checkpoint_with_any_byte_changed_is_refused_or_holds_the_same(tmp_path, train):
    train(tmp_path, 1)
    checkpoint = RunFolder(tmp_path).checkpoint
    whole, rng = checkpoint.read_bytes(), random.Random(0)
    check_whole(checkpoint)
    state = torch.load(checkpoint, weights_only=True)
    refused = 0
    for place in [*rng.sample(range(len(whole)), 250), *range(len(whole) - 30, len(whole))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        checkpoint.write_bytes(damaged)
        try:
            check_whole(checkpoint)
        except ValueError:
            refused += 1
            continue
        again = torch.load(checkpoint, weights_only=True)  # what changed is none of the content
        assert all(torch.equal(again["state_dict"][name], state["state_dict"][name]) for name in state["state_dict"])
        assert again["paced"]["step"] == 1 and torch.equal(again["paced"]["random"], state["paced"]["random"])
    assert refused > 150


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "a byte changed": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_goes_on_from_its_newest_whole_checkpoint_and_says_so(tmp_path, train, damage, caplog):
    whole = train(tmp_path / "whole", 8)
    train(tmp_path / "run", 6, checkpoints=2)
    folder = RunFolder(tmp_path / "run")
    kept = sorted(folder.checkpoints)
    assert kept == [0, 2, 4]
    for path in (folder.checkpoint, folder.checkpoints[4]):
        content = path.read_bytes()  # the kept one is the same file as the last, where that came later
        path.unlink()
        path.write_bytes(content)
        DAMAGES[damage](path)
    assert train(tmp_path / "run", 8) == whole
    (message,) = alarms(tmp_path / "run", "checkpoint")
    assert re.search(r"last.ckpt is (damaged|missing)", message) and "step-00000002.ckpt, at step 2" in message
    assert message in caplog.text


def test_with_no_whole_checkpoint_nothing_is_trained_and_nothing_changed(tmp_path, train):
    train(tmp_path, 4, checkpoints=1)
    for path in RunFolder(tmp_path).checkpoint.parent.iterdir():
        path.write_bytes(b"x")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"holds no whole checkpoint.*Nothing was changed") as caught:
        train(tmp_path, 6)
    assert "delete" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# Records


def lines_of(records: range) -> list[str]:
    return [StepRecord(step, step * 0.5, {"loss": 1.0 / (1 + step)}).to_json() for step in records]


STRANGE = (
    '{"step": 3, "seco',
    "\x00\x00\x00",
    "[" * 5000,
    "7",
    '{"step": "3", "seconds": 1.0, "values": {}}',
    '{"step": 3, "seconds": 1.0, "values": {"loss": "low"}}',
    '{"step": 3, "seconds": 1.0, "values": [1]}',
    '{"step": 3, "seconds": null, "values": {}}',
    '{"step": 3, "seconds": 1.0, "values": {}, "layers": {"norm": 3}}',
    "caf\udce9",
)


@pytest.mark.parametrize("seed", range(20))
def test_all_good_records_are_read_and_no_line_that_is_not_understood_is_lost(tmp_path, seed):
    rng, steps = random.Random(seed), 40
    lines = lines_of(range(steps))
    missing = set(rng.sample(range(steps - 1), rng.randrange(4)))
    damaged = [line for step, line in enumerate(lines) if step not in missing]
    if seed % 3 == 1:
        damaged += rng.sample(damaged, rng.randrange(1, len(damaged)))  # as when files were put one behind the other
    for strange in rng.sample(STRANGE, rng.randrange(4)):
        damaged.insert(rng.randrange(len(damaged)), strange)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(("\n".join(damaged) + "\n" + '{"step": 40, "sec').encode(errors="surrogateescape"))
    expected = [step for step in range(steps) if step not in missing]
    history = RecordedRun(tmp_path).history
    assert [record.step for record in history.records] == expected
    strange = [line for line in damaged if line not in lines]
    said = [alarm.message for alarm in history.alarms]
    assert len(said) == bool(strange or missing or len(damaged) > len(lines))
    assert not strange or f"{len(strange)} of its lines" in said[0]
    assert not missing or f"{len(missing)} steps are missing" in said[0]

    ledger = RunFolder(tmp_path).ledger
    ledger.open(30)
    assert [record.step for record in ledger.records] == [step for step in expected if step < 30]
    ledger.add(StepRecord(30, 15.0, {}))
    ledger.close()
    left = path.read_bytes().decode(errors="surrogateescape").split("\n")
    assert sorted(line for line in left if line in STRANGE) == sorted(strange)
    assert RecordedRun(tmp_path).history.records[-1].step == 30
    again = RunFolder(tmp_path).ledger
    again.open(31)
    assert len(alarms(tmp_path, "records")) <= 1, "it is said once"


@pytest.mark.parametrize("harm", ["emptied", "missing", "copied early", "doubled", "a bad line"])
def test_a_run_whose_records_are_damaged_learns_the_same_and_says_what_is_missing(tmp_path, train, harm):
    whole = train(tmp_path / "whole", 8)
    train(tmp_path / "run", 6)
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if harm == "missing":
        path.unlink()
    else:
        changed = {"emptied": [], "copied early": lines[:2], "doubled": lines * 2}
        changed["a bad line"] = [*lines[:3], "?\n", *lines[4:]]
        path.write_text("".join(changed[harm]))
    losses = train(tmp_path / "run", 8)
    assert losses[-2:] == whole[-2:]
    (message,) = alarms(tmp_path / "run", "records")
    assert {"emptied": "6 steps", "missing": "6 steps", "copied early": "4 steps", "doubled": "there twice"}.get(
        harm, "1 of its lines"
    ) in message
    if harm == "doubled":
        assert losses == whole


def test_lines_of_several_threads_are_each_written_once(tmp_path):
    file, count = Appender(tmp_path / "events.jsonl"), 2000

    def write(name: int) -> None:
        for number in range(count):
            file.write(f"{name} {number} {'x' * 50}\n")
            file.flush()

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    file.close()
    written = [line.split(" ") for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    for name in range(4):
        assert [int(number) for own, number, _ in written if own == str(name)] == list(range(count))


@pytest.mark.parametrize("step", [10**9, 10**12, 2**53 - 1, 2**53, 10**30, -(10**12)])
def test_a_step_number_of_any_size_costs_nothing_and_is_said(tmp_path, step):
    lines = lines_of(range(5))
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, lines[2].replace("2", str(step), 1)]) + "\n")
    history = RecordedRun(tmp_path).history
    (message,) = [alarm.message for alarm in history.alarms if alarm.rule == "records"]
    readable = 0 <= step < 2**53
    assert [record.step for record in history.records] == [0, 1, 2, 3, 4, *[step] * readable]
    assert (f"{step - 5} steps are missing, within 5 to {step - 1}" if readable else "1 of its lines") in message
    ledger = RunFolder(tmp_path).ledger
    ledger.open(5)
    assert [record.step for record in ledger.records] == [0, 1, 2, 3, 4]
    ledger.close()


WRONG_RECORDS = [
    {"values": {"loss": 10**40}}, {"values": {"loss": "x"}}, {"values": {"loss": None}}, {"values": {"loss": True}},
    {"seconds": "1"}, {"layers": {"a": [["b"]]}}, {"layers": {"a": [None]}}, {"layers": {"a": [10**400]}},
    {"layers": {"a": 5}}, {"layers": []}, {"step": True}, {"step": 1.0}, {"values": []},
]  # fmt: skip
WRONG_EVENTS = [
    {"kind": "alarm", "step": 2, "level": "LOUD", "rule": "r", "message": "m"},
    {"kind": "alarm", "step": 2, "level": "WARN", "rule": "r", "message": ["<b>"]},
    {"kind": "alarm", "step": 10**30, "level": "WARN", "rule": "r", "message": "m"},
    {"kind": "intervention", "step": 2, "name": {}, "before": 1, "after": 2},
    {"kind": "answer", "step": 2, "order": 5, "command": "stop"},
]


@pytest.mark.parametrize("wrong", [*WRONG_RECORDS, *WRONG_EVENTS], ids=json.dumps)
def test_a_line_of_the_wrong_types_is_one_that_cannot_be_read(tmp_path, wrong):
    lines = lines_of(range(5))
    if "kind" in wrong:
        (tmp_path / "events.jsonl").write_text(json.dumps(wrong) + "\n")
    else:
        lines[2] = json.dumps(json.loads(lines[2]) | wrong)
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    history = RecordedRun(tmp_path).history
    assert len(history.records) == (5 if "kind" in wrong else 4)
    assert [alarm.rule for alarm in history.alarms] == ([] if "kind" in wrong else ["records"])
    assert not history.interventions


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    """Three quarters of a gigabyte of nothing, which takes no room on the disk: all one line."""
    path.touch()
    os.truncate(path, 3 * 2**28)


def in_so_much_memory(more: int, act: Callable[[], object]) -> None:
    """Runs something in a child that may take `more` bytes; what it raises, and how long it hangs, is the test's."""
    import resource  # which Windows has not

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + more
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            signal.alarm(60)
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux has it")
@pytest.mark.parametrize("make", [pipe, device, sparse, Path.mkdir], ids=["pipe", "device", "sparse", "folder"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "state.json", "config.json"])
def test_what_is_no_file_of_records_neither_hangs_nor_floods(tmp_path, name, make):
    """Each in the place of one of a run's files: the others are read as they are."""
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines_of(range(5))) + "\n")
    (tmp_path / "state.json").write_text("{}")
    if make is Path.mkdir:
        (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)

    def look() -> None:
        run = RecordedRun(tmp_path)
        expected = 0 if name == "metrics.jsonl" and make is not sparse else 5  # what stands before it is good
        assert len(run.history.records) == len(RunFolder(tmp_path).history.records) == expected
        assert run.state.status == "interrupted" and run.config == {} and run.answers == {}
        if name in ("metrics.jsonl", "events.jsonl"):
            with pytest.raises((ValueError, OSError), match=name):
                RunFolder(tmp_path).ledger.open(5)

    in_so_much_memory(2**29, look)


def test_a_line_too_long_to_be_a_record_hides_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "LARGEST_LINE", 400)
    lines = lines_of(range(40))
    for at, size in ((30, 399), (20, 400), (10, 5000), (0, 1201)):
        lines.insert(at, "x" * size)
    path = tmp_path / "metrics.jsonl"
    path.touch()
    run = RecordedRun(tmp_path)
    for line in lines:  # as it grows
        with path.open("a") as file:
            file.write(line)
        assert run.history is not None
        with path.open("a") as file:
            file.write("\n")
    for each in (run, RecordedRun(tmp_path)):
        assert [record.step for record in each.history.records] == list(range(40))
        assert "4 of its lines cannot be read" in each.history.alarms[0].message


@pytest.mark.parametrize("seed", range(5))
def test_missing_steps_are_those_that_are_not_there(seed):
    steps = sorted(random.Random(seed).sample(range(60), 25))
    for end in (0, 1, 30, 60, 80):
        gaps = steps_missing(steps, end)
        assert [step for gap in gaps for step in gap] == sorted(set(range(end)).difference(steps))


@pytest.mark.parametrize("content", [b"", b"?\n[1]\nnonsense\n", b"\x00\xff\n" * 3, None])
def test_records_of_nonsense_alone_are_not_called_missing(tmp_path, content):
    (tmp_path / "state.json").write_text(json.dumps(asdict(RunState("a", "stopped", 0.5))))
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content)
    history = RecordedRun(tmp_path).history
    (message,) = [alarm.message for alarm in history.alarms if alarm.rule == "records"]
    assert not history.records
    assert ("holds 3 lines and none that can be read" if content else "is empty or missing") in message


def test_events_that_nobody_can_read_stay_and_hide_no_other(tmp_path):
    good = json.dumps({"kind": "alarm", "step": 2, "level": "WARN", "rule": "r", "message": "m"})
    strange = ['{"kind": "meteor", "step": 1}', '{"kind": "alarm"}', "[]", '{"kind": "alarm", "step": "x"}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines_of(range(5))) + "\n")
    (tmp_path / "events.jsonl").write_text("\n".join([*strange, good]) + "\n")
    assert RecordedRun(tmp_path).history.alarms == (Alarm(2, "WARN", "r", "m"),)
    RunFolder(tmp_path).ledger.open(5)
    assert set((tmp_path / "events.jsonl").read_text().splitlines()) >= set(strange)
    assert History.from_jsonl((), [*strange, good]).alarms == (Alarm(2, "WARN", "r", "m"),)


# Disks and locks


class FullDisk:
    """The module `os` on a disk that is full now and then, and takes parts of what it is given."""

    full = False

    def __getattr__(self, name: str):
        return getattr(os, name)

    def write(self, file: int, content: bytes) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(file, bytes(content[:37]))


def test_a_full_disk_ends_no_run_and_what_waited_is_written_when_there_is_room(tmp_path, train, monkeypatch, caplog):
    whole, disk = train(tmp_path / "whole", 8), FullDisk()
    monkeypatch.setattr(run_folder, "os", disk)

    def report(module, record) -> None:
        disk.full = 2 <= record.step < 5

    assert train(tmp_path / "run", 8, report=report, save_minutes=0) == whole
    (message,) = alarms(tmp_path / "run", "records")
    assert "No space left" in message and message in caplog.text
    assert train(tmp_path / "run", 9) == train(tmp_path / "longer", 9)


def test_a_full_disk_keeps_the_old_checkpoint_and_the_end_says_so(tmp_path, train, monkeypatch):
    train(tmp_path, 2)
    before = RunFolder(tmp_path).checkpoint.read_bytes()

    def refuse(*_arguments, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loop.lightning.Trainer, "save_checkpoint", refuse)
    with pytest.raises(OSError, match=r"could not be written at the end .*No space left.*make room"):
        train(tmp_path, 4, save_minutes=0)
    assert RunFolder(tmp_path).checkpoint.read_bytes() == before
    assert [path.name for path in RunFolder(tmp_path).checkpoint.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("task", [{}, {"NTASKS": "2", "PROCID": "1", "LOCALID": "1", "JOB_ID": "5", "JOB_NAME": "two"}])
def test_two_trainings_in_one_folder_are_refused_whatever_started_them(tmp_path, train, task, monkeypatch):
    """Two tasks of one SLURM job, too, each of which trains alone."""
    for name, value in task.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with RunFolder(tmp_path).locked(), pytest.raises(ValueError, match="Another process trains"):
        train(tmp_path, 1)
    assert not (tmp_path / "checkpoints").exists()


def test_a_folder_deleted_meanwhile_is_an_error_and_stays_deleted(tmp_path, train):
    def delete(module, record) -> None:
        if record.step == 1:
            for path in sorted((tmp_path / "run").rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            (tmp_path / "run").rmdir()

    with pytest.raises(ValueError, match="was deleted while the run"):
        train(tmp_path / "run", 3, report=delete)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_a_scheduler_in_the_working_directory_is_nobody_s(tmp_path, train, monkeypatch):
    whole = train(tmp_path / "whole", 3)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes((tmp_path / "whole/checkpoints/last.ckpt").read_bytes())
    for name, value in {"NTASKS": "2", "JOB_NAME": "batch", "PROCID": "1", "JOB_ID": "5"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert train(tmp_path / "run", 3) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hpc_ckpt_1.ckpt", "run", "whole"]


# Steps whose loss is no number


@pytest.mark.parametrize("bad", [0, 2, 3, 5])
def test_a_bad_step_changes_nothing_books_included(image_config, tmp_path, bad):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(replace(image_config, quantizer="moving_average"))
    tokenizer.quantize = MovingAverageQuantizer(12, 4, warm_up=2, patience=0)
    objective = ReconstructionObjective("edges", square=2.0, adversary=None)
    module = ImageTokenizerModule(tokenizer, Recipe(rate=2e-3, warm_up=2), Budget(steps=7), objective)
    batches, states = SceneImages(0, 2), list[dict]()

    def pixels(place: int) -> torch.Tensor:
        return batches(place) * (np.nan if place == bad else 1.0)

    def report(module, record) -> None:
        states.append({name: tensor.clone() for name, tensor in module.state_dict().items()})

    torch.manual_seed(1)
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    loop.train(Prepared(module, pixels), RunFolder(tmp_path), report)
    before, after = ([start, *states][bad], states[bad])
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(torch.isfinite(tensor).all() for tensor in states[-1].values())
    assert RunFolder(tmp_path).history.records[bad].values["skipped"] == 1


# Runs of pictures, and signals


@pytest.fixture
def small(image_config):
    return replace(TINY_PICTURES, tokenizer=image_config, budget=Budget(steps=3), batch=2, crop=16)


def test_a_finished_run_of_pictures_is_given_back_only_to_who_asks_for_it(small, tmp_path, picture):
    (tmp_path / "mine").mkdir()
    picture.save(tmp_path / "mine" / "a.png")
    first = small.run(tmp_path / "run").result()
    for other in (
        replace(small, source=folder_of_pictures(tmp_path / "mine")),
        replace(small, source=folder_of_pictures(tmp_path / "nowhere")),
        replace(small, tokenizer=replace(small.tokenizer, codes=8)),
        replace(small, batch=3),
    ):
        with pytest.raises(ValueError, match="holds a run of another experiment"):
            other.run(tmp_path / "run").result()
    longer = replace(small, budget=Budget(steps=5)).run(tmp_path / "run")
    longer.result()
    assert len(longer.history.records) == 5
    assert first.config == small.tokenizer


class Killer:
    """Sends this process a signal once a run has recorded some steps."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number, self.thread = folder, number, threading.Thread(target=self._wait, daemon=True)
        self.thread.start()

    def _wait(self) -> None:
        for _ in range(3000):
            if RunFolder(self.folder).history.records:
                os.kill(os.getpid(), self.number)
                return
            time.sleep(0.02)


@pytest.fixture
def _signals():
    """As at a prompt: a process started in the background ignores Ctrl+C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_end_saves_says_so_and_goes_on_bitwise(small, tmp_path, monkeypatch, capsys, number):
    long = replace(small, budget=Budget(steps=400))
    monkeypatch.setitem(IMAGE_EXPERIMENTS, "long", long)
    arguments = ["train", "long", "--folder", str(tmp_path / "run")]
    Killer(tmp_path / "run", number)
    assert main(arguments) == 128 + number
    message = capsys.readouterr().err
    assert "goes on from the last checkpoint" in message and ("SIG" in message) == (number != signal.SIGINT)
    steps = len(RunFolder(tmp_path / "run").history.records)
    check_whole(RunFolder(tmp_path / "run").checkpoint)
    assert 0 < steps < 400
    monkeypatch.setitem(IMAGE_EXPERIMENTS, "long", replace(small, budget=Budget(steps=steps + 2)))
    assert main(arguments) == 0
    losses = [record.values["loss"] for record in RunFolder(tmp_path / "run").history.records]
    whole = replace(small, budget=Budget(steps=steps + 2)).run(tmp_path / "whole")
    whole.result()
    assert len(losses) == steps + 2 and losses == [record.values["loss"] for record in whole.history.records]


def test_a_command_stopped_before_its_first_checkpoint_does_not_speak_of_one(small, tmp_path, monkeypatch, capsys):
    def interrupted(self, folder):
        raise KeyboardInterrupt

    monkeypatch.setitem(IMAGE_EXPERIMENTS, "long", small)
    monkeypatch.setattr(type(small), "run", interrupted)
    assert main(["train", "long", "--folder", str(tmp_path / "run")]) == 130
    assert "no checkpoint was written yet" in capsys.readouterr().err


@pytest.mark.usefixtures("_signals")
def test_a_warning_of_the_scheduler_has_a_checkpoint_written_and_the_run_goes_on(small, tmp_path, monkeypatch):
    monkeypatch.setitem(IMAGE_EXPERIMENTS, "long", replace(small, budget=Budget(steps=60)))
    Killer(tmp_path / "run", signal.SIGUSR1)
    assert main(["train", "long", "--folder", str(tmp_path / "run")]) == 0
    folder = RunFolder(tmp_path / "run")
    assert len(folder.history.records) == 60 and [0 < step < 60 for step in folder.checkpoints] == [True]


IMPORTING = """
import signal, sys
class Presses:
    def find_spec(self, name, *rest):
        if name == "chameleon_lab.commands.main":
            signal.raise_signal(signal.{})
sys.meta_path.insert(0, Presses())
signal.signal(signal.SIGINT, signal.default_int_handler)
from chameleon_lab.shell import start
start()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_stopped_while_it_is_imported_ends_with_one_line(number):
    program = IMPORTING.format(signal.Signals(number).name)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 128 + number and ended.stderr == "chameleon-lab: stopped before it began.\n"
