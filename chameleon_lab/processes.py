"""Work in processes of one thread each, begun afresh, its results in the order of what was given."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

PROCESS_ENDED = "A process that worked beside this one ended, perhaps for want of memory: fewer of them need less."


def pool_of(processes: int, initializer: Callable[..., None], *arguments: Any) -> ProcessPoolExecutor:
    """Processes of one thread each, begun afresh: a copy of one that has opened a GPU could not use it.

    The arguments go by a file: through a pipe, each process would be begun only when the one before has imported all.
    """
    with tempfile.NamedTemporaryFile("wb", prefix="chameleon-lab-", delete=False) as file:
        pickle.dump((initializer, arguments), file, pickle.HIGHEST_PROTOCOL)
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin_worker, (file.name,))
    weakref.finalize(pool, Path(file.name).unlink, missing_ok=True)
    return pool


def in_processes(
    work: Callable[[Any], Any], items: Iterable[Any], processes: int, initializer: Callable[..., None], *arguments: Any
) -> Iterator[Any]:
    """`work` of each item, in order; without processes it is done here.

    Items are taken as they are needed, two a process ahead of the results. Raises RuntimeError where a process ended,
    as one does that the system kills for its memory.
    """
    if not processes:
        initializer(*arguments)
        yield from map(work, items)
        return
    ahead = deque[Future[Any]]()
    with pool_of(processes, initializer, *arguments) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > 2 * processes:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            raise RuntimeError(PROCESS_ENDED) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin_worker(file: str) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    initializer, arguments = pickle.loads(Path(file).read_bytes())  # written by the process that began this one
    initializer(*arguments)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for its next task for ever: it holds both ends of their pipe."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
