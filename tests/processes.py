"""Processes forked from one that has imported everything: those of a training that is killed, and torchrun's ranks."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

PARENT = """
import json, os, signal, sys, time
sys.path[:0] = {paths!r}
import torch, torch.distributed.fsdp
import lightning
import chameleon_lab.training.loop
from chameleon_lab.commands.launch import *
from chameleon_lab.training.run import Run
torch.set_num_threads(1)
os.fsync = lambda fd: None  # as in conftest.py
for line in sys.stdin:
    job = json.loads(line)
    ranks = []
    for rank in range(job["processes"]):
        if not (child := os.fork()):
            if not job["alone"]:
                numbers = {{"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}}
                numbers |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), job["processes"])
                os.environ.update({{name: str(number) for name, number in numbers.items()}})
                os.environ.update(TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"]))
            output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1), os.dup2(output, 2)
            code = 1
            try:
                exec(job["code"], {{**globals(), "RANK": rank}})
                code = 0
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        ranks.append(child)
    ends, codes = time.monotonic() + job["seconds"], {{}}
    while len(codes) < len(ranks):
        for child in ranks:
            if child not in codes and (done := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(done[1])
        if any(codes.values()):  # as torchrun does, a little later
            ends = min(ends, time.monotonic() + 8)
        if time.monotonic() > ends:
            for child in set(ranks) - codes.keys():
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    print(json.dumps([codes[child] for child in ranks]), flush=True)
"""


class Ranks:
    """`ranks(code, 2)` has two processes execute it, in which `RANK` is theirs, and gives their exit codes."""

    def __init__(self) -> None:
        source = PARENT.format(paths=[str(HERE), str(HERE.parent)])
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._parent = subprocess.Popen(
            [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(
        self, code: str, processes: int, output: Path, seconds: float = 90.0, alone: bool = False
    ) -> list[int]:
        """`alone`: they are told nothing of each other."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job: dict[str, Any] = {"code": code, "processes": processes, "port": port, "alone": alone}
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(job | {"output": str(output), "seconds": seconds}) + "\n")
        self._parent.stdin.flush()
        return json.loads(self._parent.stdout.readline())

    def close(self) -> None:
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.wait(30)
        self._parent.stdout.close()


@functools.cache
def shared_ranks() -> Ranks:
    """One parent for all test modules of a process: it takes seconds to import everything."""
    ranks = Ranks()
    atexit.register(ranks.close)
    return ranks


class Forked:
    """A process that executes `code` as Python's `-c` does, forked from the same parent; its output goes to a file."""

    def __init__(self, code: str, output: Path) -> None:
        self._note = output.with_suffix(".pid")
        code = f"open({str(self._note)!r}, 'w').write(str(os.getpid()) + ' ')\n{code}"
        call = functools.partial(shared_ranks(), code, 1, output, alone=True)
        self._waits = threading.Thread(target=call)
        self._waits.start()

    @property
    def running(self) -> bool:
        return self._waits.is_alive()

    @property
    def pid(self) -> int:
        while not (self._note.exists() and self._note.read_text().endswith(" ")):
            assert self.running, "it ended before it began"
            time.sleep(0.01)
        return int(self._note.read_text())

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._waits.join()
