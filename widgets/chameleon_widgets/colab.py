"""Google Colab, which paints what a cell says while it runs, and nothing that a thread says afterwards.

So a widget there shows what it was when its cell ran (colabtools issue 3373), and says so once. The library is the same
everywhere: `lab.generate`, `run.wait()` and figures need no widget.
"""

from __future__ import annotations

import sys
from typing import Any

NOTE = (
    "Colab does not paint what a widget's threads send after its cell: this is the widget as it was then. Run the cell "
    "again to see it now. In JupyterLab and VS Code it is live."
)

_session = {"ready": False}


def note() -> str:
    """What to say below a widget, once in a session on Colab, where its other widgets are switched on too; else ""."""
    output: Any = getattr(sys.modules.get("google.colab"), "output", None)
    if output is None or _session["ready"]:
        return ""
    _session["ready"] = True
    output.enable_custom_widget_manager()
    return NOTE
