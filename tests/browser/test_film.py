"""The moving picture at the head of README, taken from the shipped model in a real JupyterLab.

CHAMELEON_FILM=docs/first_light.gif .venv/bin/python -m pytest -m slow tests/browser/test_film.py
"""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import PIL.Image
import pytest
from playwright.sync_api import Page, expect

WIDTH = 760  # pixels of the moving picture
LONGEST = 1500  # milliseconds that one frame may stand

CELL = """from chameleon_lab.chameleon import Chameleon
from chameleon_widgets import ChatCell

lab = Chameleon.load("tiny")
ChatCell(lab.stream, inspect=lab.inspect)"""


TURNS = ("draw a large red circle left of a small blue star", "what color is the star?", "make the background pink")


class Film:
    """What a page shows, as its browser paints it."""

    def __init__(self, page: Page) -> None:
        self.frames: list[tuple[float, PIL.Image.Image]] = []
        self._session = page.context.new_cdp_session(page)
        self._session.on("Page.screencastFrame", self._keep)
        self._session.send("Page.startScreencast", {"format": "png", "everyNthFrame": 2})

    def _keep(self, frame: dict) -> None:
        picture = PIL.Image.open(io.BytesIO(base64.b64decode(frame["data"]))).convert("RGB")
        self.frames.append((frame["metadata"]["timestamp"], picture))
        self._session.send("Page.screencastFrameAck", {"sessionId": frame["sessionId"]})

    def write(self, path: Path, box: tuple[int, int, int, int]) -> None:
        """A GIF of the part of the page in `box`, each frame as long as it stood."""
        self._session.send("Page.stopScreencast")
        pictures, lengths = list[PIL.Image.Image](), list[int]()
        ends = [at for at, _ in self.frames[1:]] + [self.frames[-1][0] + 2]
        for (at, picture), until in zip(self.frames, ends, strict=True):
            part = picture.crop(box)
            part = part.resize((WIDTH, round(part.height * WIDTH / part.width)), PIL.Image.Resampling.LANCZOS)
            pictures.append(part.quantize(128, PIL.Image.Quantize.MEDIANCUT, dither=PIL.Image.Dither.NONE))
            lengths.append(max(40, min(LONGEST, round(1000 * (until - at)))))
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=lengths, loop=0, optimize=True)


@pytest.mark.slow
def test_a_conversation_is_filmed(open_notebook, tmp_path: Path) -> None:
    notebook = open_notebook([CELL])
    page: Page = notebook.page
    page.set_viewport_size({"width": 1000, "height": 900})
    notebook.theme("JupyterLab Light")
    notebook.run_all()
    message = page.get_by_role("textbox", name="Message to the model")
    message.click(timeout=120_000)
    film = Film(page)
    lamp = page.locator(".chm-lamp span").last
    for text in TURNS:
        page.keyboard.type(text, delay=45)
        page.wait_for_timeout(300)
        page.keyboard.press("Enter")
        expect(lamp).to_have_text("Ready")
        page.wait_for_timeout(900)
    page.get_by_role("button", name="Look inside").last.click()
    picture = page.get_by_role("figure", name="Image 2")
    expect(picture).to_be_visible()
    place = picture.bounding_box()
    assert place is not None
    for part in (0.3, 0.45, 0.6, 0.75):
        page.mouse.move(place["x"] + place["width"] * part, place["y"] + place["height"] * 0.5)
        page.wait_for_timeout(600)
    whole = page.locator(".jp-Notebook").bounding_box()
    assert whole is not None
    path = Path(os.environ.get("CHAMELEON_FILM", tmp_path / "film.gif"))
    left, top = round(whole["x"]), round(whole["y"])
    film.write(path, (left, top, left + round(whole["width"]), top + round(whole["height"])))
    with PIL.Image.open(path) as written:
        written.seek(20)  # there are that many frames
