"""Widgets for the lab's plain values: they take iterators and callables, show them, and give ordinary objects back.

```
pictures       browser bytes -> PIL picture, PIL picture -> PNG, with errors a person can act on
threads        Worker (does the long work), Pump (sends what changed, at most 30 times a second), claim (re-run cells)
stills         the picture of a widget that stays in a saved notebook, where no kernel runs
conversation   Exchange, Conversation: what was said; Feed: what the browser has not seen of it yet
chat_cell      ChatCell: any callable Document -> iterator of pieces, in a notebook cell
reconstruction ReconstructionViewer: any image tokenizer, picture beside picture
static/        the bundles, built from ../js by `npm run build` and committed
```
Everything here imports only the border of `chameleon_lab` (documents, records, vocabulary): no torch.
"""

from chameleon_widgets.chat_cell import ChatCell
from chameleon_widgets.reconstruction import ReconstructionViewer

__all__ = ["ChatCell", "ReconstructionViewer"]
