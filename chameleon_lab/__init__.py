"""Chameleon Lab: a research workbench for early-fusion, token-based mixed-modal models.

The street, in import order (a module imports only from those above it; `docs/architecture.md` has the table):

- border: `vocabulary`, `documents`, `records`, `measures`, `history`: plain values, no torch, Jupyter or Lightning
- tokens: `tokenizers` (pixels <-> codes, text <-> pieces, documents <-> tokens), `corpora` (scenes, packing)
- model: `taps`, `attention`, `transformer`, `stability`, `objective`
- use: `generation` (grammar, samplers, guidance, decoder, engine), `checkpoints`, `chameleon` (the one object to load)
- learn: `training` (the only Lightning), `evaluation`, `commands`

Three integers are never mixed: a *code* indexes an image codebook, a *token* is an id in the shared vocabulary, a
*position* is a place in a sequence. Tensor names end in their shape, with one legend: B batch, T positions, D width,
H heads, K head width, F feed-forward width, V vocabulary, N codes an image, C channels.
"""

import os
import sys
import threading

__version__ = "0.1.0"


def _keep_workers(ready: threading.Event) -> None:
    """Holds a team of OpenMP's threads as long as the process lives.

    GNU's OpenMP hardly spins while the teams of all threads together outnumber the cores.
    """
    try:
        sys.modules["torch"].ones(1 << 20).sum()
    finally:  # an import never waits for what failed
        ready.set()
    threading.Event().wait()


# A thread that spins while it waits for another takes the core that the other needs: beside one busy process, a step of
# two spinning threads took up to fifty times as long as of two sleeping ones, and where nothing else ran it was not
# clearly faster (docs/benchmarks.md). OpenMP reads this when torch is first imported, and never again.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "passive"
    if hasattr(sys.modules.get("torch"), "ones"):  # OpenMP has read the environment already
        ready = threading.Event()
        threading.Thread(target=_keep_workers, args=(ready,), name="second OpenMP team", daemon=True).start()
        ready.wait()  # a process that ended while a thread computes in torch would abort
