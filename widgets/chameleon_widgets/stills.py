"""The still of a widget: the picture of it that stays in a saved notebook, where no kernel runs.

JupyterLab prefers the widget to any other form of the same output, and shows "model not found" for a widget whose
kernel is gone. So a widget is displayed as two outputs: the live view, and after it the still, which the view hides
while it is connected, and which hides the view's error when the view is dead. The still is an ordinary display with an
id, brought up to date after each result, so that what is saved is the last state.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

STILL_SIDE = 512  # pixels: larger pictures are kept in the notebook made smaller

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

STYLE = """
.chameleon-still{max-width:46rem;padding:.25rem 0;font:14px/1.5 var(--jp-ui-font-family,system-ui,sans-serif);
color:var(--jp-ui-font-color1,inherit)}
.chameleon-still p{margin:.35rem 0;white-space:pre-wrap;overflow-wrap:anywhere}
.chameleon-still img{display:block;max-width:100%;border-radius:8px;margin:.35rem 0}
.chameleon-still .who{font-size:11px;letter-spacing:.02em;opacity:.6;margin:.9rem 0 .1rem}
.chameleon-still .user{padding:.3rem .8rem;border-radius:12px;background:rgba(128,128,128,.14);width:fit-content}
.chameleon-still .note{font-size:11px;opacity:.65;margin:.1rem 0}
.chameleon-still .side{display:inline-block;margin:0 16px 0 0;vertical-align:top}
"""


class Still:
    """The second output of a widget. `make` gives its HTML body and its plain text, when they are needed."""

    def __init__(self, key: str, make: Callable[[], tuple[str, str]]) -> None:
        self.name = "chameleon-still-" + re.sub(r"\W", "", key)
        self.revision = 0
        self._make = make
        self._displayed = False

    def bundle(self) -> dict[str, str]:
        """The still in the forms of a notebook output."""
        body, text = self._make()
        child = ".jp-OutputArea-child"
        orphan = f"{child}:has(+{child} .{self.name}):not(:has(.chameleon-live)){{display:none}}"
        attributes = f'class="chameleon-still {self.name}" data-revision="{self.revision}"'
        return {
            "text/html": f"<div {attributes}><style>{STYLE}{orphan}</style>{body}</div>",
            "text/plain": text,
        }

    def show(self, view: dict[str, object], title: str) -> None:
        """Displays the live view, and the still after it, in the notebook cell now running."""
        from IPython.display import display

        display({**view, "text/plain": title}, raw=True)
        display(self.bundle(), raw=True, display_id=self.name)
        self._displayed = True

    def refresh(self) -> None:
        """Brings every displayed still up to date, from any thread."""
        self.revision += 1
        if self._displayed:
            from IPython.display import display

            display(self.bundle(), raw=True, display_id=self.name, update=True)


def escape(text: str) -> str:
    """Text as HTML that shows it and nothing else."""
    return html.escape(text, quote=True)


def image(uri: str, alt: str, width: int) -> str:
    return f'<img src="{escape(uri)}" alt="{escape(alt)}" width="{width}">'
