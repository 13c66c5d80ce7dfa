"""A run in processes of its own: what is written for them, and that the folder is all that an onlooker needs."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import Ranks, shared_ranks

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.commands.launch import BASES
from chameleon_lab.commands.main import main
from chameleon_lab.corpora.mixture import Mixture
from chameleon_lab.corpora.shards import write_shards
from chameleon_lab.documents import Document, Text
from chameleon_lab.history import PostedOrder, RecordedRun
from chameleon_lab.monitors.outputs import ResidualNorm
from chameleon_lab.plain import plain_values
from chameleon_lab.stability import Dropout, QueryKeyNorm
from chameleon_lab.training.data import PAIRS, Corpora, Scenes
from chameleon_lab.training.experiments import LAB
from chameleon_lab.training.folder import RunFolder, shares_work
from chameleon_lab.training.launch import SBATCH, launch
from chameleon_lab.training.modules import Budget
from chameleon_lab.training.run import Run
from chameleon_lab.training.source import python_of
from chameleon_lab.training.text_experiments import scene_texts
from chameleon_widgets import RunPanel

TOY = replace(
    LAB,
    name="toy",
    model=replace(LAB.model, width=32, layers=2, heads=1, kv_heads=1, ffn_width=64, fixes=(Dropout(0.2),)),
    budget=Budget(steps=10),
    data=replace(PAIRS, apart=3),
    monitors=(ResidualNorm(every=2),),
    checkpoints=1,
)
CPU = {"accelerator": "cpu"}


def until(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    ends = time.monotonic() + seconds
    while not (reached := condition()):
        assert time.monotonic() < ends, "it never came to this"
        time.sleep(0.05)
    return reached


# What is written


@pytest.mark.parametrize("name", BASES)
def test_each_experiment_by_name_is_written_as_python_that_makes_it_again(name):
    experiment = BASES[name][2]
    assert python_of(experiment, BASES).expression == BASES[name][1]
    shorter = replace(experiment, budget=Budget(steps=5), seed=3)
    written = python_of(shorter, BASES)  # which compares what it makes with what it was given
    assert written.expression.startswith("replace(\n") and "Budget(steps=5)" in written.expression
    assert "replace(" not in python_of(shorter).expression


@pytest.mark.parametrize(
    "value",
    [
        {"a": (1, [2.5, math.inf], frozenset({"x"})), "b": Path("c") / "d", "e": None, "f": b"g", "h": True},
        partial(scene_texts, weights={"pair": 1.0}),
        (QueryKeyNorm(groups=4), Budget(minutes=0.5), Dropout),
    ],
)
def test_plain_values_are_written_as_they_are(value):
    namespace: dict[str, Any] = {}
    written = python_of(value)
    exec(f"{written.lines}value = {written.expression}", namespace)
    assert plain_values(namespace["value"]) == plain_values(value)


class Own(Scenes):
    """A person's own, in a file of theirs: this one."""


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (replace(TOY, data=Scenes(np.zeros(3))), "data.tokenizer is array.* cannot be written into a file"),  # pyright: ignore[reportArgumentType]
        ({"logger": object()}, "logger is <object.* write it into train.py yourself"),
        ((lambda: 3,), "<lambda>, which another process cannot import"),
        (
            type("Cell", (), {"__module__": "__main__"}),
            "Cell, which another process cannot import. Write it",
        ),
    ],
)
def test_what_has_no_place_in_a_file_is_named(value, why):
    with pytest.raises(ValueError, match=why):
        python_of(value)


def test_a_person_s_own_module_travels_along(tmp_path):
    launch(replace(TOY, data=Own("tiny")), tmp_path, trainer=CPU, start=False)
    assert (tmp_path / "test_launch.py").read_text() == Path(__file__).read_text()
    assert "from test_launch import Own" in (tmp_path / "train.py").read_text()


def test_a_dry_run_writes_all_that_another_machine_needs_and_starts_nothing(tmp_path, caplog):
    folder = tmp_path / "a folder's"
    caplog.set_level("INFO")
    words = ["launch", "side_by_side", "--folder", str(folder), "--nodes", "2", "--devices", "4", "--strategy", "fsdp"]
    assert main([*words, "--dry-run"]) == 0
    compile((folder / "train.py").read_text(), "train.py", "exec")
    for script in ("start.sh", "side_by_side.sbatch"):
        subprocess.run(["bash", "-n", str(folder / script)], check=True)
    batch = (folder / "side_by_side.sbatch").read_text()
    for line in ("--nodes=2", "--gpus-per-node=4", "--requeue", "--signal=B:USR1@300", "--open-mode=append"):
        assert f"#SBATCH {line}\n" in batch
    assert "'strategy': 'fsdp'" in (folder / "train.py").read_text().replace('"', "'")
    assert "\ntorch==" in (folder / "requirements.txt").read_text()
    assert "side_by_side.sbatch" in caplog.text and "RunPanel" in caplog.text
    onlooker = RecordedRun(folder)
    assert onlooker.state.status == "waiting" and onlooker.config["name"] == "side_by_side"
    with pytest.raises(ValueError, match="waits for its processes to be started"):
        onlooker.act("stop")
    panel = RunPanel(folder)
    assert panel.status == "waiting"
    panel.close()


SHIMS = {
    # A training that is only beginning when the order comes, so that it forgets it, and ends at the next one.
    "srun": """touch "$BEGUN"
wait_for_order() {
    for _ in $(seq 300); do if [ -e "$ORDERS" ]; then return; fi; /bin/sleep 0.1; done
    exit 9
}
wait_for_order; rm "$ORDERS"; wait_for_order""",
    "scontrol": 'echo "$@" >> "$ASKED"',
    "sleep": "exec /bin/sleep 0.2",
}


def test_the_sbatch_file_s_answer_to_usr1_is_an_order_that_the_run_hears_whenever_it_begins(tmp_path):
    """The shell's own lines, with stand-ins for SLURM's programs."""
    launch(TOY, tmp_path / "run", nodes=1, devices=1, trainer=CPU, start=False)
    for name, body in SHIMS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    asked, begun, orders = tmp_path / "asked", tmp_path / "begun", tmp_path / "run" / "orders.jsonl"
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NNODES": "1"}
    environment |= {"ASKED": str(asked), "BEGUN": str(begun), "ORDERS": str(orders), "SLURM_JOB_NODELIST": "n1"}
    with subprocess.Popen(["bash", str(tmp_path / "run" / "toy.sbatch")], env=environment) as process:
        until(begun.exists)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 0
    written = [PostedOrder.of(json.loads(line)) for line in orders.read_text().splitlines()]
    assert written and {(each.order, each.command) for each in written} == {("7-0", "stop")}
    assert "requeue 7" in asked.read_text()


def test_an_edited_train_py_stays_and_another_experiment_is_refused(tmp_path):
    first = launch(TOY, tmp_path, trainer=CPU, start=False)
    train = tmp_path / "train.py"
    assert not launch(replace(TOY, seed=2), tmp_path, trainer=CPU, start=False).note and not first.note
    edited = train.read_text().replace("seed=2", "seed=5")
    train.write_text(edited)
    assert "was edited and stays" in launch(TOY, tmp_path, trainer=CPU, start=False).note
    assert train.read_text() == edited
    Run(replace(TOY, budget=Budget(steps=1)), tmp_path / "other").start().wait()
    launch(replace(TOY, budget=Budget(steps=3)), tmp_path / "other", start=False)
    with pytest.raises(ValueError, match=r"another experiment: seed \(0, now 4\) differ"):
        launch(replace(TOY, seed=4), tmp_path / "other", start=False)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"processes": 3, "nodes": 2}, "3 processes cannot be shared evenly by 2 nodes"),
        ({"processes": 3, "nodes": 2, "devices": 2}, "2 nodes of 2 devices are 4 processes, not 3"),
        ({"processes": 0}, "processes must be a number from 1 on, not 0"),
        ({"devices": True}, "devices must be a number from 1 on, not True"),
        ({"trainer": {"devices": 2}}, "is torchrun's when a run is launched"),
        ({"trainer": {"max_steps": 2}}, "the experiment's budget ends a run"),
    ],
)
def test_impossible_launches_are_refused_before_anything_is_written(arguments, why, tmp_path):
    with pytest.raises(ValueError, match=why):
        launch(TOY, tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_torchrun_s_first_process_of_a_second_node_shares_work(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert shares_work()
    monkeypatch.setenv("RANK", "0")
    assert not shares_work()


# What they do: two processes

TOYS = """
from test_launch import *

class At(lightning.Callback):
    def __init__(self, rank, step, how):
        self.rank, self.step, self.how = rank, step, how
    def on_train_batch_end(self, trainer, module, *_):
        if (trainer.global_rank, module.step) == (self.rank, self.step):
            self.how(trainer)

def killed(trainer):
    os.kill(os.getpid(), signal.SIGKILL)

def stopped(trainer):
    trainer.should_stop = True

def terminated(trainer):  # as SLURM does it, and torchrun once more
    for _ in range(4):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)

def broken(trainer):
    raise ArithmeticError("the data of process 1 is broken")
"""


@pytest.fixture(scope="module")
def ranks():
    return shared_ranks()


def shared(
    ranks: Ranks, folder: Path, experiment: str = "TOY", callbacks: str = "", seconds: float = 90.0
) -> list[int]:
    code = (
        f"{TOYS}raise SystemExit(take_part({experiment}, Path({str(folder)!r}), CPU | {{'callbacks': [{callbacks}]}}))"
    )
    return ranks(code, 2, folder.with_suffix(".log"), seconds)


def values(folder: Path) -> list[dict[str, float]]:
    return [record.values for record in RecordedRun(folder).history.records]


PLAIN = replace(TOY, name="plain", model=replace(TOY.model, fixes=()), monitors=())
"""Without dropout, whose random numbers each process draws for itself."""


def test_two_processes_killed_and_started_again_make_the_same_steps_bitwise(ranks, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "folder"
    assert shared(ranks, whole) == [0, 0]
    codes = shared(ranks, folder, callbacks="At(1, 8, killed)")
    assert codes[0] == 2 and codes[1] == -signal.SIGKILL
    onlooker = RecordedRun(folder)
    assert onlooker.state.status == "failed" and len(onlooker.history.records) < 10
    assert "A process that shared this training has ended" in onlooker.state.error
    assert "goes on from the last good checkpoint, written after" in onlooker.state.error
    assert shared(ranks, folder) == [0, 0]
    assert onlooker.state.status == "finished" and values(folder) == values(whole)
    # Each process's own, and their means
    each, history = onlooker.ranks, onlooker.history
    assert [*each] == [0, 1] and each[0].series("loss")[1] != each[1].series("loss")[1]
    for name, take in {"loss": np.mean, "tokens": np.sum}.items():
        columns = [rank.series(name)[1] for rank in each.values()]
        assert take(columns, axis=0) == pytest.approx(history.series(name)[1])


def test_a_signal_to_end_that_comes_several_times_leaves_a_checkpoint_of_that_step(ranks, tmp_path):
    codes = shared(ranks, tmp_path / "run", callbacks="At(0, 4, terminated), At(1, 4, terminated)")
    assert codes == [128 + signal.SIGTERM] * 2
    assert RecordedRun(tmp_path / "run").state.status == "stopped"
    number = RunFolder(tmp_path / "run").history.records[-1].step + 1
    last = torch.load(RunFolder(tmp_path / "run").checkpoint, weights_only=True)
    assert last["paced"]["step"] == number < 10


def test_another_number_of_processes_goes_on_with_the_same_order_and_losses(ranks, tmp_path):
    both = {"accumulate_grad_batches": 2}
    whole = PLAIN.run(tmp_path / "whole", trainer=both).wait()
    assert shared(ranks, tmp_path / "fewer", "PLAIN", "At(0, 4, stopped), At(1, 4, stopped)") == [0, 0]
    assert RecordedRun(tmp_path / "fewer").state.status == "stopped"
    PLAIN.run(tmp_path / "fewer").wait()  # one process, which takes both batches of a step
    PLAIN.run(tmp_path / "more", trainer=both)
    onlooker = until(lambda: RecordedRun(tmp_path / "more") if (tmp_path / "more/state.json").exists() else None)
    until(lambda: onlooker.state.over)
    for folder in ("fewer", "more"):
        history = RecordedRun(tmp_path / folder).history
        assert history.series("tokens") == whole.series("tokens")
        assert history.series("loss")[1] == pytest.approx(whole.series("loss")[1], rel=1e-5)
    assert len(values(tmp_path / "fewer")) == 10


def test_shards_of_unequal_sizes_are_shared_by_any_number_of_processes(ranks, tmp_path):
    """No process owns a shard, so that none waits for another's: six batches a step by 3 processes, 2, or 1."""
    lengths = [3] * 20 + [250] + [30] * 5 + [1] * 10
    texts = (Document((Text(" word" * length),)) for length in lengths)
    corpus = write_shards(tmp_path / "corpus", texts, Chameleon.load("tiny").tokenizer, shard_tokens=100)
    sizes = sorted(shard["tokens"] for shard in corpus.card["shards"])
    assert len(sizes) >= 4 and sizes[-1] > 2 * sizes[0]
    folder, data = tmp_path / "run", Corpora({"uneven": tmp_path / "corpus"}, rows=1, context=64)
    uneven = replace(PLAIN, data=data)
    code = f"replace(PLAIN, data=Corpora({{'uneven': {str(tmp_path / 'corpus')!r}}}, rows=1, context=64))"
    two_each = "CPU | {'accumulate_grad_batches': 2, 'callbacks': [At(2, 7, killed)]}"
    three = f"{TOYS}raise SystemExit(take_part({code}, Path({str(folder)!r}), {two_each}))"
    codes = ranks(three, 3, folder.with_suffix(".log"))
    assert codes[2] == -signal.SIGKILL and RecordedRun(folder).state.status == "failed"
    assert shared(ranks, folder, code) == [0, 0]
    assert RecordedRun(folder).state.status == "finished" and [*RecordedRun(folder).ranks] == [0, 1, 2]
    whole = uneven.run(tmp_path / "whole", trainer={"accumulate_grad_batches": 6}).wait()
    mixture = data.open(0, None).batches
    assert isinstance(mixture, Mixture) and mixture.epochs(60)["uneven"] > 2  # it is gone through several times
    history = RecordedRun(folder).history
    assert history.series("tokens") == whole.series("tokens")
    assert history.series("loss")[1] == pytest.approx(whole.series("loss")[1], rel=1e-5)


def test_a_process_that_fails_says_so_in_the_folder_and_a_full_disk_ends_nothing(ranks, tmp_path):
    folder = tmp_path / "broken"
    assert shared(ranks, folder, callbacks="At(1, 3, broken)") == [2, 1]
    onlooker = RecordedRun(folder)
    assert onlooker.state.status == "failed"
    assert "Process 1 on " in onlooker.state.error and "ArithmeticError: the data of process 1" in onlooker.state.error
    assert [alarm.level for alarm in onlooker.history.alarms if alarm.rule == "process"] == ["CRITICAL"]
    full = tmp_path / "full"
    (full / "ranks").mkdir(parents=True)
    (full / "ranks" / "00001.jsonl").symlink_to("/dev/full")
    with RunFolder(full).locked():  # as another launch's first process holds it
        assert shared(ranks, full)[0] == 2
        assert "Another process trains in" in full.with_suffix(".log").read_text()
        assert not (full / "state.json").exists()
    assert shared(ranks, full) == [0, 0]
    (alarm,) = [alarm for alarm in RecordedRun(full).history.alarms if alarm.rule == "records"]
    assert alarm.message.startswith("process 1 could not write") and "No space left" in alarm.message


LOSS = (
    "import lightning\nfrom chameleon_lab.commands.launch import take_part\n"
    + TOYS
    + """
def lost(trainer):
    mark = Path({mark!r})
    if not mark.exists():
        mark.touch()
        for process in (os.getppid(), os.getpid()) if {node} else (os.getpid(),):
            os.kill(process, signal.SIGKILL)

if __name__ == "__main__":
    raise SystemExit(take_part(TOY, Path({folder!r}), CPU | {{"callbacks": [At(1, 8, lost)]}}))
"""
)


def listens(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["process", "node"])
def test_torchrun_brings_back_a_process_that_dies_and_waits_for_a_node_that_does(what, ranks, tmp_path):
    """Two nodes as the sbatch file starts them, on this machine: they end in the steps of two that never died."""
    folder, mark, train = tmp_path / "run", tmp_path / "mark", tmp_path / "train.py"
    train.write_text(LOSS.format(mark=str(mark), node=what == "node", folder=str(folder)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-id=7-0", f"--rdzv-endpoint=127.0.0.1:{port}", str(train)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment |= dict(re.findall("^export (.*)=(.*)$", SBATCH, re.MULTILINE))
    with (tmp_path / "output").open("w") as output, contextlib.ExitStack() as ended:

        def start() -> subprocess.Popen[bytes]:
            process = subprocess.Popen(torchrun, env=environment, stdout=output, stderr=output)
            ended.callback(process.wait, 60)
            ended.callback(process.terminate)  # which does nothing where it is over
            return process

        first = start()  # whose store the nodes meet at, as that of SLURM's head
        until(lambda: listens(port), 400)
        second = start()
        ends = [first.wait(400), second.wait(400)] if what == "process" else []
        if what == "node":
            until(lambda: second.poll() == -signal.SIGKILL, 400)
            ends = [start().wait(400), first.wait(400)]
    assert ends == [0, 0] and mark.exists(), (tmp_path / "output").read_text()
    assert shared(ranks, tmp_path / "whole", seconds=500.0) == [0, 0]
    assert RecordedRun(folder).state.status == "finished" and values(folder) == values(tmp_path / "whole")


@pytest.mark.slow
def test_a_launch_trains_here_is_watched_paused_and_changed_by_its_folder(tmp_path):
    longer = replace(TOY, budget=Budget(steps=4000))
    launched = Run(longer, tmp_path / "run", trainer=CPU).launch(processes=2)
    onlooker = launched.run
    panel = RunPanel(tmp_path / "run")
    until(lambda: len(onlooker.history.records) > 2)
    with pytest.raises(ValueError, match=r"trains in .* already: watch it by the folder"):
        launch(longer, tmp_path / "run", trainer=CPU)
    onlooker.act("pause")
    until(lambda: onlooker.state.status == "paused")
    order = onlooker.act("change", rate=1e-3)
    assert until(lambda: onlooker.answers.get(order)).refusal == ""
    onlooker.act("resume")
    until(lambda: onlooker.state.status == "running")
    onlooker.act("stop")
    assert launched.wait(120).status == "stopped" and onlooker.history.interventions[0].after == 1e-3
    panel.close()
    shutil.rmtree(tmp_path / "run")
