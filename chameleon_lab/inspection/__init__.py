"""Inspection: what a model saw and thought at every token of a document, computed when it is asked for.

```python
look = lab.inspect(Document.of("draw a red circle", EndTurn()) + reply)
look.alternatives(26)  # what could have stood there
look.attention(3, 0, 26)  # where layer 3's head 0 looked from there
look.picture(2)  # the picture as the stream after block 2 would draw it
look.without(5, of=26)  # what knocking token 5 out does to token 26
look.branch(26, seed=1)  # what the model would have written from there, as an inspection of its own
```

- `trace`: one run of the model, and what is kept of it: the residual stream, one vector a position and layer
- `likelihood`: what was likely at each token; the document's words, images and cells
- `rows`: attention by head, both directions, through all layers, and times gradients
- `rollout`: what the rows through all layers are taken from, computed once for all positions
- `lens`: the stream at any depth, read as words and as pictures
- `effects`: knock-outs, cut edges, activation patching
- `attribution`: what each part of the model adds to a logit
- `branches`: other replies from any token on
- `changes`: steering, patches and silent heads, to look, or to write, under

Raw attention says where a head looked and not what mattered: `without`, `cut` and `patching` change what can be seen
and measure the effect. docs/inspection.md has it all beside the names of TransformerLens and nnterp.
"""

from __future__ import annotations

from chameleon_lab.inspection.attribution import Attribution
from chameleon_lab.inspection.branches import Branches
from chameleon_lab.inspection.changes import add, put, silence
from chameleon_lab.inspection.effects import Effects
from chameleon_lab.inspection.lens import Lens
from chameleon_lab.inspection.rows import AttentionReadings

__all__ = ["Inspection", "add", "put", "silence"]


class Inspection(AttentionReadings, Lens, Effects, Attribution, Branches):
    """One document as a model holds it. Positions count from 0, layers and heads too; what is returned is numpy's.

    `changes` are functions of submodules' outputs, by name, under which the model is looked at (see `changes`); `guide`
    is the guidance with which pictures were drawn; `documents_T` numbers the documents of a packed row; `settings` are
    what branches are drawn with, and `images` whether they may hold pictures. Raises ValueError for a document beyond
    the model's context.
    """
