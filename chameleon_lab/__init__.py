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

__version__ = "0.1.0"
