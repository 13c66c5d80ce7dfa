"""A widget in a notebook run without a browser: the conversation is in the saved outputs."""

import nbformat
from nbclient import NotebookClient

SETUP = """
import numpy as np, PIL.Image
from chameleon_lab.records import ImagePiece, StopPiece, TextPiece
from chameleon_widgets import ChatCell

def stream(document, *, seed=None):
    yield TextPiece("here it is")
    yield ImagePiece(PIL.Image.new("RGB", (64, 64), "red"), np.zeros((2, 2), int), 2)
    yield StopPiece("end_turn")
"""


def test_a_reply_that_came_after_the_display_is_in_the_saved_notebook():
    notebook = nbformat.v4.new_notebook()
    sources = [SETUP, "cell = ChatCell(stream)\ncell", "cell.send('draw <it>')\ncell.wait()", "len(cell.document)"]
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    NotebookClient(notebook, timeout=120, store_widget_state=False).execute()
    view, still = notebook.cells[1].outputs
    assert "application/vnd.jupyter.widget-view+json" in view.data
    assert "draw &lt;it&gt;" in still.data["text/html"]
    assert still.data["text/html"].count('<img src="data:image/png;base64,') == 1
    assert "Model: here it is" in still.data["text/plain"]
    assert notebook.cells[3].outputs[0].data["text/plain"] == "5"
