"""A page without a kernel: widgets' views in one HTML file that needs no network, fed with what was recorded of them.

```python
body = '<h1>Why red?</h1><div data-widget="look"></div>'
page = standalone.page("Why red?", body, {"look": inspector.recording()})
```
The views are those of the notebook. A small host (js/src/standalone) stands in for the kernel: it greets a view with
the recorded messages, and answers any request that these do not cover with one line saying that there is no kernel.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chameleon_lab.storage import write_file
from chameleon_widgets.line import assets
from chameleon_widgets.stills import escape

RECORD = "chameleon-record"


@dataclass(frozen=True)
class Recording:
    """What a view without a kernel is fed with: its bundle ("inspector"), and messages with their buffers, in the order
    in which the view is to receive them. `traits` are the values that the view asks its model for."""

    bundle: str
    messages: Sequence[tuple[Mapping[str, Any], Sequence[bytes]]]
    traits: Mapping[str, Any] = field(default_factory=dict)


def page(title: str, body: str, widgets: Mapping[str, Recording]) -> str:
    """One self-contained HTML page: `body`, with a live view in each `<div data-widget="KEY"></div>`.

    `title` is text; `body` is HTML, in which the caller has escaped what came from elsewhere. What stands inside a
    place is what readers without scripts see. The page's policy forbids every connection, and every script but its own.
    Raises ValueError for a place without a recording, and for a recording without a place.
    """
    for key in widgets:
        if f'data-widget="{escape(key)}"' not in body:
            raise ValueError(
                f'The page has no place for {key!r}: its body needs <div data-widget="{escape(key)}"></div>.'
            )
    if (places := body.count("data-widget=")) > len(widgets):
        raise ValueError(f"The page's body has {places} places for widgets, and {len(widgets)} were recorded.")
    bundles = {}
    for name in sorted({recording.bundle for recording in widgets.values()}):
        script, style = (path.read_text("utf-8") for path in assets(name))
        bundles[name] = {"script": script, "style": style}
    content = {
        "bundles": bundles,
        "widgets": {
            key: {
                "bundle": recording.bundle,
                "traits": dict(recording.traits),
                "messages": [
                    (dict(message), [base64.b64encode(buffer).decode() for buffer in buffers])
                    for message, buffers in recording.messages
                ],
            }
            for key, recording in widgets.items()
        },
    }
    # In a data block, nothing but "<" can end the element; as an escape it is the same character to JSON.
    data = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    host, style = (path.read_text("utf-8") for path in assets("standalone"))
    digest = base64.b64encode(hashlib.sha256(host.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}' blob:; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style></head>\n<body>\n{body}\n"
        f'<script type="application/json" id="{RECORD}">{data}</script>\n'
        f'<script type="module">{host}</script>\n</body></html>\n'
    )


def write_page(path: Path | str, text: str) -> None:
    """Writes a page as a file, whole or not at all."""
    write_file(Path(path), text.encode())
