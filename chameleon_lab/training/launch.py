"""A run in processes of its own: here, on another machine, or on many; whoever has its folder watches and steers it.

The processes are torchrun's, and what they do together is Lightning's. Nothing here trains.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from chameleon_lab.files import read_table, require_place
from chameleon_lab.history import RecordedRun, RunState
from chameleon_lab.plain import described, discrepancies, plain_values
from chameleon_lab.storage import write_file
from chameleon_lab.training.folder import RunFolder
from chameleon_lab.training.source import python_of
from chameleon_lab.training.trainable import Trainable
from chameleon_lab.training.trainer_arguments import check_trainer

TRAIN = '''"""Trains {name} in this folder, in as many processes as torchrun starts; run again, it goes on.

Edit it as you like. A folder goes on with the experiment that it began with: budget, rules and checkpoints may change.
"""

from pathlib import Path

{imports}
experiment = {experiment}

trainer = {trainer}  # arguments of lightning.Trainer; devices and nodes are torchrun's

if __name__ == "__main__":
    raise SystemExit(take_part(experiment, Path(__file__).parent, trainer))
'''

START = """#!/bin/sh
# Trains here, in {devices} process(es): sh {script}
cd {here} || exit 1
exec {torchrun} --standalone --nproc-per-node={devices} {train}
"""

SBATCH = """#!/bin/bash
# One line starts it: sbatch {script}
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
{gpus}#SBATCH --time=24:00:00
#SBATCH --output={folder}/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300

# 300 s before the time is over SLURM sends USR1 to this script alone. It orders the run through its folder to stop with
# a checkpoint, and puts the job back into the queue, where it goes on. Lightning's own resuming is switched off.
cd {here} || exit 1
folder={folder}
late=
order() {{
    late=yes
    while kill -0 $$; do  # again and again: a run forgets what was ordered before it began
        printf '{{"order": "%s-%s", "command": "stop", "arguments": {{}}}}\\n' \\
            "$SLURM_JOB_ID" "${{SLURM_RESTART_COUNT:-0}}" >> "$folder/orders.jsonl"
        sleep 15
    done &
    orders=$!
}}
trap order USR1

# Else torchrun's restarts share one store, in which processes meet what the dead ones left there, and wait for ever.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 {torchrun} \\
    --nnodes="$SLURM_NNODES" --nproc-per-node={devices} --max-restarts=3 \\
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}" --rdzv-endpoint="$head:29400" \\
    {train} &
steps=$!
wait "$steps"
code=$?
while [ "$code" -gt 128 ] && kill -0 "$steps" 2> /dev/null; do  # the trap ended the waiting, not the training
    wait "$steps"
    code=$?
done
if [ -n "$late" ]; then
    kill "$orders"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


@dataclass
class Launch:
    """A run that was written into a folder, to be trained by `nodes` x `devices` processes; started here or not.

    `line`: what to type on the machine that is to train it.
    """

    folder: Path
    nodes: int
    devices: int
    line: str
    note: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def run(self) -> RecordedRun:
        """The run as its folder shows it: a `RunPanel` takes it, and `act` orders it."""
        return RecordedRun(self.folder)

    @property
    def over(self) -> bool:
        """Whether the processes that were started here have ended."""
        return self.process is None or self.process.poll() is not None

    def start(self) -> Launch:
        """Starts it on this machine, its output in the folder's `output.log`; returns at once.

        Raises ValueError where this machine is not what it was written for, and where it trains already.
        """
        if why := cannot_start(self.nodes, self.devices):
            raise ValueError(f"{why}. On the machine that is to train it, type: {self.line}")
        require_idle(self.folder)
        command = ["sh", str(self.folder / "start.sh")]
        with require_place(self.folder / "output.log").open("ab") as output:
            # A session of its own: Ctrl+C in the cell or the shell is not to end it between two steps.
            self.process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        return self

    def wait(self, timeout: float | None = None) -> RunState:
        """Until the processes end; how the run stands then. Raises ValueError, with the end of their output, where they
        failed, and TimeoutError."""
        if self.process is None:
            raise ValueError(f"It was not started here. On the machine that is to train it, type: {self.line}")
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"The run in {self.folder} is {self.run.state.status} after {timeout:g} s.") from error
        state = self.run.state
        if code or state.status in ("failed", "interrupted"):
            output = (self.folder / "output.log").read_text(errors="replace").splitlines()
            failed = state.error or f"its processes ended with {code}"
            raise ValueError(
                f"The run in {self.folder} failed: {failed}. The end of output.log:\n" + "\n".join(output[-12:])
            )
        return state


def launch(
    experiment: Trainable,
    folder: Path | str,
    *,
    processes: int | None = None,
    nodes: int = 1,
    devices: int | None = None,
    strategy: str = "auto",
    trainer: Mapping[str, Any] = MappingProxyType({}),
    bases: Mapping[str, tuple[str, str, Any]] | None = None,
    start: bool = True,
) -> Launch:
    """Writes what it takes to train in processes of their own, and starts them where this machine can.

    The folder gets `train.py`, which a person may edit (an edited one stays), `start.sh` (the line for torchrun),
    `NAME.sbatch` for SLURM, `requirements.txt` with the versions of this environment, and `config.json`. `processes`
    are those of one node, or `nodes` x `devices`. `strategy`: Lightning's name of one; "fsdp" is FSDP2.

    Raises ValueError for a number that is none, arguments that a run refuses, a part of the experiment that another
    process cannot have, and a folder in which a run trains already or where another experiment's is.
    """
    folder = Path(folder).resolve()
    devices = _devices(processes, nodes, devices)
    options = check_trainer({**trainer, **({} if strategy == "auto" else {"strategy": strategy})})
    for name in options.keys() & {"devices", "num_nodes"}:
        raise ValueError(f"trainer[{name!r}] is torchrun's when a run is launched: give nodes= and devices= instead.")
    require_idle(folder)
    _require_same(experiment, folder)
    source, of_trainer = python_of(experiment, bases), python_of(options)
    for module, names in of_trainer.imports.items():
        source.imports[module] |= names
    source.imports["chameleon_lab.commands.launch"].add("take_part")
    source.imports.pop("pathlib", None)  # which the file has anyway
    train = TRAIN.format(
        name=experiment.name, imports=source.lines, experiment=source.expression, trainer=of_trainer.expression
    )
    note = _write_train(folder, train)
    for path in source.files:
        write_file(folder / path.name, path.read_bytes())
    torchrun = f"{shlex.quote(sys.executable)} -m torch.distributed.run"
    facts = {
        "name": experiment.name,
        "folder": shlex.quote(str(folder)),
        "here": shlex.quote(os.getcwd()),
        "torchrun": torchrun,
        "train": shlex.quote(str(folder / "train.py")),
        "nodes": nodes,
        "devices": devices,
        "gpus": "" if options.get("accelerator") == "cpu" else f"#SBATCH --gpus-per-node={devices}\n",
    }
    batch = folder / f"{experiment.name}.sbatch"
    write_file(batch, SBATCH.format(**facts, script=shlex.quote(str(batch))))
    write_file(folder / "start.sh", START.format(**facts, script=shlex.quote(str(folder / "start.sh"))))
    write_file(folder / "requirements.txt", _pins())
    if not RunFolder(folder).begun:
        write_file(folder / "config.json", json.dumps(described(experiment), indent=2) + "\n")
        waiting = RunState(experiment.name, "waiting", steps=experiment.budget.steps)
        write_file(folder / "state.json", json.dumps(asdict(waiting), indent=2) + "\n")
    line = f"sbatch {shlex.quote(str(batch))}" if nodes > 1 else f"sh {shlex.quote(str(folder / 'start.sh'))}"
    launched = Launch(folder, nodes, devices, line, note)
    return launched.start() if start and not cannot_start(nodes, devices) else launched


def cannot_start(nodes: int, devices: int) -> str:
    """Why this machine cannot be the one that trains, in words; nothing where it can."""
    if nodes > 1:
        return f"{nodes} nodes are not this one machine"
    if torch.cuda.is_available() and torch.cuda.device_count() < devices:
        return f"This machine has {torch.cuda.device_count()} GPU(s), and {devices} are to train"
    return ""


def require_idle(folder: Path) -> None:
    """Raises ValueError where a process is known to train in the folder."""
    try:
        state = RecordedRun(folder).state
    except FileNotFoundError:
        return
    if not state.over and state.process:
        where = "" if state.host == socket.gethostname() else f" on {state.host}"
        raise ValueError(
            f"Process {state.process}{where} trains in {folder} already: watch it by the folder (RunPanel), or stop it."
        )


def _require_same(experiment: Trainable, folder: Path) -> None:
    """Raises ValueError where the folder holds another experiment's run."""
    if RunFolder(folder).begun:
        free = ("budget", "rules", "held_out_every", "checkpoints")
        before, now = read_table(folder / "config.json"), json.loads(json.dumps(plain_values(experiment)))
        before, now = ({key: value for key, value in each.items() if key not in free} for each in (before, now))
        if apart := discrepancies(before, now):
            raise ValueError(
                f"{folder} holds a run of another experiment: {', '.join(apart)} differ. Take another folder."
            )


def _devices(processes: int | None, nodes: int, devices: int | None) -> int:
    for name, number in {"processes": processes, "nodes": nodes, "devices": devices}.items():
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ValueError(f"{name} must be a number from 1 on, not {number!r}.")
    if devices is None:
        if (processes or nodes) % nodes:
            raise ValueError(f"{processes} processes cannot be shared evenly by {nodes} nodes.")
        return (processes or nodes) // nodes
    if processes not in (None, nodes * devices):
        raise ValueError(f"{nodes} nodes of {devices} devices are {nodes * devices} processes, not {processes}.")
    return devices


def _write_train(folder: Path, train: str) -> str:
    """Writes `train.py` unless a person edited the one that is there; what became of it, in words."""
    path, mark = folder / "train.py", folder / "launch.json"
    digest = hashlib.sha256(train.encode()).hexdigest()
    if path.exists():
        now = hashlib.sha256(path.read_bytes()).hexdigest()
        before = read_table(mark).get("train") if mark.exists() else None
        if now not in (before, digest):
            return f"{path} was edited and stays as it is: it says what is trained, not this call."
    write_file(path, train)
    write_file(mark, json.dumps({"train": digest, "written": time.strftime("%Y-%m-%dT%H:%M:%S%z")}) + "\n")
    return ""


def _pins() -> str:
    """What is installed here, a line each, for pip."""
    pins = {f"{each.metadata['Name']}=={each.version}" for each in distributions() if each.metadata["Name"]}
    return (
        "# What this run was written with: pip install -r requirements.txt\n"
        + "\n".join(sorted(pins, key=str.lower))
        + "\n"
    )
