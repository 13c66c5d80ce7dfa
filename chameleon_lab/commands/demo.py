"""`chameleon-lab demo`."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chameleon_lab.chameleon import find
from chameleon_lab.checkpoints.formats import open_folder
from chameleon_lab.storage import write_file

log = logging.getLogger(__name__)


def demo_command(options: argparse.Namespace) -> None:
    """Writes a notebook with the chat of a model, and opens it in JupyterLab until that is closed."""
    model = Path(options.model)
    if not (model / "config.json").is_file() and (model / "model").is_dir():
        model /= "model"  # a training's folder
    place = str(model.resolve()) if model.exists() else options.model
    open_folder(find(place), None, None)  # raises now for what is no model, not in the notebook
    if find_spec("jupyterlab") is None:
        raise ValueError("JupyterLab is not installed: pip install jupyterlab.")
    with tempfile.TemporaryDirectory(prefix="chameleon-demo-") as folder:
        notebook = (options.notebook or Path(folder) / "chat.ipynb").absolute()
        if options.notebook is not None and notebook.exists():
            raise ValueError(f"{notebook} is there already: name another file with --notebook.")
        write_file(notebook, json.dumps(demo_notebook(place), indent=1) + "\n")
        command = [sys.executable, "-m", "jupyterlab", str(notebook), "--ServerApp.root_dir", str(notebook.parent)]
        command += ["--no-browser"] * options.no_browser
        log.info("The chat is in %s. Ctrl+C ends JupyterLab.", notebook)
        code = subprocess.run(command, check=False).returncode
    if code:
        raise ValueError(f"JupyterLab ended with exit code {code}: what it said stands above.")


def demo_notebook(model: str) -> dict[str, Any]:
    """A notebook, as JSON, that chats with a model and looks at what its image tokenizer keeps."""
    chat = (
        "from chameleon_lab.chameleon import Chameleon\n"
        "from chameleon_widgets import ChatCell, ReconstructionViewer\n\n"
        f"lab = Chameleon.load({model!r})\n"
        "ChatCell(lab.stream, inspect=lab.inspect)"
    )
    viewer = "ReconstructionViewer(lab.tokenizer.image)"
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "id": "title", "metadata": {}, "source": f"# Chat with {model}"}
    ]
    for name, source in (("chat", chat), ("pictures", viewer)):
        code = {"cell_type": "code", "id": name, "metadata": {}, "source": source}
        cells.append(code | {"execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
