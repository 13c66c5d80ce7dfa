"""Kernels of Jupyter with the slow imports done: each is a fork of one process that has done them.

A kernel spends eight seconds of a core on importing torch, Lightning, matplotlib and this project, and the tests start
fifty. Here Jupyter starts a small process, `stand_in`, for each kernel: it asks the `nursery` for a fork and lends it
its environment, folder and streams, passes signals on, and ends when the kernel ends.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

FORKS = sys.platform == "linux"  # elsewhere libraries may not be used in a fork of the process that imported them


@contextlib.contextmanager
def nursery(folder: Path) -> Iterator[None]:
    """While this is open, `folder` as JUPYTER_PATH has a python3 of forks; where there are none it stays empty."""
    if not FORKS:
        yield
        return
    door = folder / "door"
    spec = folder / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    command = [sys.executable, "-I", "-S", __file__, str(door), "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": command, "display_name": "Python 3 (ipykernel)", "language": "python"}))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(door))
        listener.listen()
        process = subprocess.Popen([sys.executable, __file__, str(listener.fileno())], pass_fds=[listener.fileno()])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def serve(door: int) -> None:
    """Forks a kernel for each stand-in that comes to the door, until the process that began this has ended."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as a kernel says before its first cell
    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # a kernel ends with this one
    os.environ["OMP_WAIT_POLICY"] = "passive"  # else the project keeps a thread, which a fork would lack
    import gc

    project = ("chameleon_lab.chameleon", "chameleon_lab.training.experiments", "chameleon_widgets")
    sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in (".", "widgets")]
    for module in ("ipykernel.kernelapp", "lightning", "matplotlib.pyplot", *project):
        importlib.import_module(module)

    lines: dict[int, socket.socket] = {}
    parent = os.getppid()

    def tell_codes(*_: object) -> None:
        with contextlib.suppress(ChildProcessError, BrokenPipeError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                with lines.pop(ended[0]) as line:
                    line.sendall(b"%d\n" % os.waitstatus_to_exitcode(ended[1]))

    gc.freeze()
    signal.signal(signal.SIGCHLD, tell_codes)
    with socket.socket(fileno=door) as listener:
        listener.settimeout(1)
        while os.getppid() == parent:
            try:
                line, _ = listener.accept()
            except TimeoutError:
                continue
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # a child is in `lines` before it can have ended
            if (child := os.fork()) == 0:
                listener.close()
                for other in lines.values():
                    other.close()
                return run(line)
            lines[child] = line
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def paths(environment: Mapping[str, str]) -> list[str]:
    """The folders that PYTHONPATH names."""
    return [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]


def run(line: socket.socket) -> None:
    """This process as the kernel that a stand-in asks for."""
    import random
    import runpy
    import threading

    import ipywidgets

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    os.setsid()
    line.settimeout(None)
    request, streams, _, _ = socket.recv_fds(line, 1 << 16, 3)
    while not request.endswith(b"\n"):
        request += line.recv(1 << 16)
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    asked = json.loads(request)
    sys.path[:] = [*paths(asked["environment"]), *(path for path in sys.path[1:] if path not in paths(os.environ))]
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    line.sendall(b"%d\n" % os.getpid())

    def end_with_the_stand_in() -> None:
        line.recv(1)
        os._exit(1)

    threading.Thread(target=end_with_the_stand_in, daemon=True).start()
    random.seed()
    ipywidgets.register_comm_target()  # as its import does where there is a kernel already
    sys.argv = ["ipykernel_launcher.py", *asked["arguments"]]
    runpy.run_module("ipykernel_launcher", run_name="__main__")


def stand_in(door: str, *arguments: str) -> int:
    """What Jupyter takes for the kernel; the exit code of the real one."""
    passed_on = (signal.SIGINT, signal.SIGTERM)
    for number in passed_on:
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(door)
        request = {"environment": dict(os.environ), "folder": os.getcwd(), "arguments": arguments}
        socket.send_fds(line, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
        with line.makefile() as words:
            kernel = int(words.readline())
            for number in passed_on:
                signal.signal(number, lambda number, _: os.killpg(kernel, number))
            return abs(int(words.readline() or 1))


if __name__ == "__main__":
    sys.exit(stand_in(*sys.argv[1:]) if len(sys.argv) > 2 else serve(int(sys.argv[1])))
