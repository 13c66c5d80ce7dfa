"""Widgets for the lab's plain values: they take iterators and callables, show them, and give ordinary objects back.

```
pictures       browser bytes -> PIL picture, PIL picture -> PNG, with errors a person can act on
threads        Worker (does the long work), Pump (sends what changed, at most 30 times a second), claim (re-run cells)
line           Line: the kernel's end of a widget, written once: hello, requests, what is due, still, display, close
undo           what was done step by step, and the way back
cell_log       the lab's log in a notebook: notices as ordinary lines, warnings in red
stills         the picture of a widget that stays in a saved notebook, where no kernel runs
chat/          ChatCell: any callable Document -> iterator of pieces; `conversation`: a tree of `exchange`s; `replying`
               makes them with the `arguments` of the callable, `feed` sends, `exports` and `archive` write files
images/        ReconstructionViewer (`round_trips`), CodebookAtlas (`codebook_study`, `codebook_map`, `sightings`),
               CodeSurgery (`edits`)
infill/        InfillCanvas: parts of a document are hidden and filled by any callable; `draft` knows what is hidden
inspect/       Inspector: a document as a model holds it, from what `lab.inspect` returns; `answers`, `recording`
judge/         Arena: people judge pairs of replies, sheets of questions, safety; a journal on the disk
standalone     one HTML page that needs no kernel, with the views of widgets in it, fed from what was recorded
runs/          RunPanel (`run_feed`), ComparePanel (`compared_runs`, `comparison`)
teach/         Explainer: a model's next token step by step, from what `lab.walk` returns
figures        one run, several, loss against learning rate: matplotlib figures with captions
static/        the bundles, built from ../js by `npm run build` and committed
```
All of it imports only the border of `chameleon_lab` (documents, history, readings, records, vocabulary), no torch.
"""

from chameleon_widgets.cell_log import show_log
from chameleon_widgets.chat.chat_cell import ChatCell
from chameleon_widgets.images.code_surgery import CodeSurgery
from chameleon_widgets.images.codebook_atlas import CodebookAtlas
from chameleon_widgets.images.reconstruction import ReconstructionViewer
from chameleon_widgets.infill.infill_canvas import InfillCanvas
from chameleon_widgets.inspect.inspector import Inspector
from chameleon_widgets.judge.arena import Arena
from chameleon_widgets.runs.compare_panel import ComparePanel
from chameleon_widgets.runs.run_panel import RunPanel
from chameleon_widgets.teach.explainer import Explainer

__all__ = [
    "Arena",
    "ChatCell",
    "CodeSurgery",
    "CodebookAtlas",
    "ComparePanel",
    "Explainer",
    "InfillCanvas",
    "Inspector",
    "ReconstructionViewer",
    "RunPanel",
]

show_log()
