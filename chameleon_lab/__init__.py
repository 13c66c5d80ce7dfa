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

# A thread that spins while it waits for another takes the core that the other needs: beside one busy process, a step of
# two spinning threads takes up to fifty times as long as of two sleeping ones, and where nothing else runs it is not
# clearly faster (docs/benchmarks.md). OpenMP reads this when torch is first imported, and never again.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
