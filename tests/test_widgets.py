"""The widgets without a browser: what is kept, what is sent, when it stops, and whose thread does what."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure
from widget_support import RED, browser_says, eventually, recorder, updates

from chameleon_lab import pictures
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.records import ImagePiece, Piece, Reconstruction, StopPiece, TextPiece
from chameleon_lab.tokenizers.image import ImageTokenizer
from chameleon_lab.tokenizers.preparation import CentreCrop, Preparation, preparations
from chameleon_widgets import ChatCell, ReconstructionViewer, threads
from chameleon_widgets.pictures import data_uri, png
from chameleon_widgets.stills import WIDGET_VIEW
from chameleon_widgets.threads import Pump, Worker

pytestmark = pytest.mark.usefixtures("comms")


class Talker:
    """A stream that says how it ended, and holds before its first piece or within a picture when asked to."""

    def __init__(self, *, hold: str = "", error: Exception | None = None, words: str = "a red circle") -> None:
        self.hold, self.error, self.words = hold, error, words
        self.gate = threading.Event()
        self.reached = threading.Event()
        self.ends: list[str] = []
        self.calls: list[tuple[Document, dict[str, Any]]] = []

    def __call__(self, document: Document, *, temperature: float = 1.0, seed: int | None = None) -> Iterator[Piece]:
        self.calls.append((document, {"temperature": temperature, "seed": seed}))
        try:
            self._pause("start")
            for word in self.words.split():
                yield TextPiece(word + " ")
            for row in range(5):
                if row == 2:
                    self._pause("picture")
                yield ImagePiece(RED, np.full((row, 4), row), 4)
            if self.error is not None:
                raise self.error
            self.ends.append("end_turn")
            yield StopPiece("end_turn")
        except GeneratorExit:
            self.ends.append("closed")
            raise

    def _pause(self, where: str) -> None:
        if self.hold == where:
            self.reached.set()
            assert self.gate.wait(120)


def test_a_reply_becomes_a_turn_of_the_document_with_its_codes():
    cell = ChatCell(Talker())
    cell.send("draw a red circle", RED)
    cell.wait()
    text, picture, end, words, drawn, last = cell.document
    assert (text, picture, end, last) == (Text("draw a red circle"), Image(RED), EndTurn(), EndTurn())
    assert words == Text("a red circle ")
    assert isinstance(drawn, Image) and drawn.codes is not None and drawn.codes.shape == (4, 4)
    assert [role for role, _ in cell.document.turns] == ["user", "model"]


def test_the_stream_gets_the_whole_conversation_ending_in_the_user_turn():
    talker = Talker()
    cell = ChatCell(talker)
    cell.send("one")
    cell.send("two")
    cell.wait()
    document, _ = talker.calls[-1]
    assert [role for role, _ in document.turns] == ["user", "model", "user"]
    assert document.segments[-2:] == (Text("two"), EndTurn())


def test_the_document_survives_json_and_continues_in_another_cell():
    cell = ChatCell(Talker())
    cell.send("draw")
    cell.wait()
    again = Document.from_json(cell.document.to_json())
    assert again == cell.document
    talker = Talker()
    later = ChatCell(talker, document=again)
    assert later.document == again
    later.send("and now?")
    later.wait()
    assert talker.calls[0][0].segments[: len(again)] == again.segments


@pytest.mark.parametrize("where", ["start", "picture"])
def test_stop_shows_at_once_and_closes_the_stream(where: str):
    talker = Talker(hold=where)
    cell = ChatCell(talker)
    browser_says(cell, {"kind": "hello"})
    cell.send("draw")
    assert talker.reached.wait(120)
    browser_says(cell, {"kind": "stop"})
    eventually(lambda: cell.status == "stopped")  # although the stream has not come back yet
    talker.gate.set()
    cell.wait()
    assert talker.ends == ["closed"]
    if where == "picture":
        drawn = cell.document.segments[-2]
        assert isinstance(drawn, Image) and drawn.codes is None, "codes of half a picture are no picture's"
    else:
        assert cell.document == Document.of("draw", EndTurn())


def test_a_message_stopped_before_its_turn_came_is_kept_but_not_answered():
    talker = Talker(hold="start")
    cell = ChatCell(talker)
    cell.send("first")
    cell.send("second")
    assert talker.reached.wait(120)
    cell.stop()
    talker.gate.set()
    cell.wait()
    assert len(talker.calls) == 1
    assert [each.user for each in cell._conversation.exchanges] == [(Text("first"),), (Text("second"),)]


def test_an_error_is_shown_in_one_paragraph_kept_out_of_the_way_and_raised_by_wait():
    cell = ChatCell(Talker(error=RuntimeError("the model\nbroke")))
    cell.send("draw")
    with pytest.raises(RuntimeError, match="the model"):
        cell.wait()
    assert cell.status == "error"
    shown = [news["error"] for update, _ in updates(cell) for news in update["changed"] if news.get("error")]
    assert shown[-1] == "RuntimeError: the model broke"
    assert cell.document.segments[0] == Text("draw"), "nothing of the transcript is lost"


def test_after_an_error_retry_replies_anew():
    talker = Talker(error=RuntimeError("once"))
    cell = ChatCell(talker)
    cell.send("draw")
    with pytest.raises(RuntimeError):
        cell.wait()
    talker.error = None
    browser_says(cell, {"kind": "again", "key": cell._conversation.exchanges[-1].key})
    cell.wait()
    assert [role for role, _ in cell.document.turns] == ["user", "model"]


def test_something_that_is_not_a_piece_is_named():
    cell = ChatCell(lambda document: iter(["text"]))  # type: ignore[arg-type]
    cell.send("hello")
    with pytest.raises(TypeError, match="gave a str"):
        cell.wait()


def test_an_interrupt_of_wait_stops_the_worker_and_goes_on(monkeypatch: pytest.MonkeyPatch):
    talker = Talker(hold="picture")
    cell = ChatCell(talker)
    cell.send("draw")
    assert talker.reached.wait(120)

    def interrupted(timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cell._worker, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cell.wait()
    talker.gate.set()
    cell.wait()
    assert talker.ends == ["closed"]


def test_wait_gives_up_after_its_timeout():
    talker = Talker(hold="start")
    cell = ChatCell(talker)
    cell.send("draw")
    with pytest.raises(TimeoutError, match="stop"):
        cell.wait(0.05)
    talker.gate.set()
    cell.wait()


def test_thousands_of_words_travel_in_few_messages_and_none_is_lost():
    cell = ChatCell(Talker(words="word " * 5000))
    browser_says(cell, {"kind": "hello"})
    started = time.monotonic()
    cell.send("talk")
    cell.wait()
    seconds = time.monotonic() - started
    sent = updates(cell)
    assert len(sent) <= 30 * seconds + 8
    assert [update["number"] for update, _ in sent] == list(range(1, len(sent) + 1))
    text = ""
    for update, _ in sent:
        for news in update["changed"]:
            for part in news.get("reply", ()):
                if "text" in part:
                    text = text[: part["start"]] + part["text"]
    assert text == "word " * 5000


def test_a_view_that_comes_late_gets_everything_in_one_message():
    cell = ChatCell(Talker())
    cell.send("draw")
    cell.wait()
    recorder(cell).custom.clear()
    browser_says(cell, {"kind": "hello", "mark": "me-1"})
    cell._line.settle()
    (update, buffers), *_ = updates(cell)
    assert update["whole"]
    assert recorder(cell).custom[-1][0]["requests"] == {"me": 1}, "after what was asked for"
    (news,) = update["changed"]
    assert news["user"] == [{"at": 0, "start": 0, "text": "draw"}]
    assert news["reply"][1] == {"at": 1, "picture": 0, "row": 4, "rows": 4}
    assert PIL.Image.open(io.BytesIO(buffers[0])).size == (64, 64)


def test_messages_are_sent_by_the_pump_alone_and_the_stream_runs_in_the_worker():
    names: list[str] = []

    def stream(document: Document) -> Iterator[Piece]:
        names.append(threading.current_thread().name)
        yield TextPiece("hello")

    cell = ChatCell(stream)
    browser_says(cell, {"kind": "hello"})
    handler = threading.Thread(
        target=browser_says, args=(cell, {"kind": "send", "parts": [{"text": "from a subshell"}]}), name="subshell-1"
    )
    handler.start()
    handler.join()
    cell.wait()
    assert names == ["chat cell worker"]
    assert recorder(cell).threads == {"chat cell pump"}
    eventually(lambda: not cell._worker.busy)


def test_handlers_return_while_the_stream_is_busy():
    talker = Talker(hold="start")
    cell = ChatCell(talker)
    cell.send("draw")
    assert talker.reached.wait(120)
    for kind in ("hello", "export", "ping", "stop", "send", "clear"):
        browser_says(cell, {"kind": kind, "parts": [{"text": "more"}]})  # would hang here
    talker.gate.set()
    cell.wait()
    assert cell.document == Document()


def test_editing_a_message_forgets_what_came_after_it_and_keeps_its_picture():
    talker = Talker()
    cell = ChatCell(talker)
    cell.send(RED, "what is it?")
    cell.send("and this?")
    cell.wait()
    first = cell._conversation.exchanges[0]
    browser_says(cell, {"kind": "edit", "key": first.key, "parts": [{"text": "name it"}, {"keep": 0}]})
    cell.wait()
    assert cell.document.segments[:3] == (Text("name it"), Image(RED), EndTurn())
    assert len(cell.document.turns) == 2


def test_regenerate_replaces_the_last_reply_with_a_new_seed():
    talker = Talker()
    cell = ChatCell(talker)
    cell.send("draw")
    cell.wait()
    cell.regenerate()
    cell.wait()
    assert len(cell.document.turns) == 2
    (_, first), (_, second) = talker.calls
    assert first["seed"] != second["seed"]


def test_settings_of_the_cell_reach_the_stream_and_are_kept_with_the_reply():
    talker = Talker()
    cell = ChatCell(talker, defaults={"temperature": 0.5, "seed": 7})
    assert cell.settings == {"temperature": 0.5, "seed": 7}
    cell.set_state({"settings": {"temperature": 0.25, "seed": 8}})
    cell.send("draw")
    cell.wait()
    assert talker.calls[0][1] == {"temperature": 0.25, "seed": 8}
    assert "seed 8 · temperature 0.25" in updates(cell)[-1][0]["changed"][-1]["about"]


def test_a_default_the_stream_does_not_take_is_refused_by_name():
    with pytest.raises(ValueError, match="does not take guidance; it takes temperature, seed"):
        ChatCell(Talker(), defaults={"guidance": 3.0})


def test_a_stream_without_settings_is_called_with_the_document_alone():
    cell = ChatCell(lambda document: iter([TextPiece("yes"), StopPiece("end_turn")]))
    cell.send("hello")
    cell.wait()
    assert cell.settings == {} and cell.document == Document.of("hello", EndTurn(), "yes", EndTurn())


def test_nothing_to_say_and_two_turns_at_once_are_refused():
    cell = ChatCell(Talker())
    with pytest.raises(ValueError, match="empty"):
        cell.send("   ")
    with pytest.raises(ValueError, match="one turn"):
        cell.send("one", EndTurn(), "two")


def test_a_broken_picture_from_the_browser_is_an_error_that_keeps_the_words():
    cell = ChatCell(Talker())
    parts = [{"text": "what is this?"}, {"picture": 0}]
    browser_says(cell, {"kind": "send", "parts": parts}, b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match="picture"):
        cell.wait()
    assert cell.document.segments[0] == Text("what is this?")
    assert cell.status == "error"


def test_the_still_shows_the_conversation_and_no_html_of_it_is_alive():
    cell = ChatCell(
        lambda document: iter([TextPiece("<script>alert(1)</script> & more"), ImagePiece(RED, np.ones((2, 2)), 2)])
    )
    cell.send('<img src=x onerror="alert(2)">')
    cell.wait()
    bundle = cell._line.mimebundle()
    page = bundle["text/html"]
    assert "<script" not in page and "onerror=&quot;" in page and "&lt;script&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:image/png;base64,)', page), "the page stands alone"
    assert page.count("<img ") == 1
    assert "Model: <script>" in bundle["text/plain"]
    assert bundle[WIDGET_VIEW]["model_id"] == cell.model_id


def test_traits_hold_little():
    cell = ChatCell(Talker(words="word " * 1000))
    cell.send("talk")
    cell.wait()
    state = {name: value for name, value in cell.get_state().items() if name not in ("_esm", "_css", "layout")}
    assert len(json.dumps(state, default=str)) < 2500


def test_running_a_notebook_cell_again_stops_what_its_last_run_started(monkeypatch: pytest.MonkeyPatch):
    run = {"cell": "cell-1", "run": "run-1"}
    monkeypatch.setattr(threads, "_running_cell", lambda: (run["cell"], run["run"]))
    talkers = [Talker(hold="picture") for _ in range(3)]
    first, beside = ChatCell(talkers[0]), ChatCell(talkers[1])
    for cell in (first, beside):
        cell.send("draw")
    assert talkers[0].reached.wait(120) and talkers[1].reached.wait(120)
    assert not first._pending[0].is_set(), "two chats in one run of a cell live side by side"
    run["run"] = "run-2"
    third = ChatCell(talkers[2])
    for talker in talkers:
        talker.gate.set()
    for cell in (first, beside):
        cell.wait()
    assert talkers[0].ends == talkers[1].ends == ["closed"]
    third.send("draw")
    third.wait()
    assert talkers[2].ends == ["end_turn"]


def test_threads_end_when_there_is_nothing_to_do():
    flushed, rung = list[bool](), threading.Event()
    pump = Pump(lambda: flushed.append(rung.wait(120)), "test pump", linger=0.05)
    worker = Worker("test worker")
    for _ in range(50):
        pump.ring()
        worker.submit(lambda: None)
    rung.set()
    assert pump.drain() and worker.wait(120)
    eventually(lambda: not {"test pump", "test worker"} & {each.name for each in threading.enumerate()})
    assert 1 <= len(flushed) <= 2


def test_an_export_is_the_document_as_json():
    cell = ChatCell(Talker())
    cell.send("draw")
    cell.wait()
    browser_says(cell, {"kind": "export", "format": "document", "use": "copy"})
    assert cell._clerk.wait(120)
    cell._line.settle()
    ((message, buffers),) = [each for each in recorder(cell).custom if each[0]["kind"] == "export"]
    assert Document.from_json(buffers[0].decode()) == cell.document and message["use"] == "copy"


class Codec:
    """Two codes: dark and light."""

    codes = 2

    def prepare(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        return picture.convert("RGB").resize((8, 8))

    def encode(self, picture: PIL.Image.Image) -> np.ndarray:
        return (np.asarray(picture.convert("L").resize((2, 2))) > 127).astype(np.int64)

    def decode(self, codes: np.ndarray) -> PIL.Image.Image:
        return PIL.Image.fromarray((codes * 255).astype(np.uint8)).convert("RGB").resize((8, 8))


class Cells(Codec):
    """Codes of `cell` x `cell` pixels, dark and light, on the grid that a policy gives, else on a square of `side`."""

    def __init__(self, side: int = 16, cell: int = 8) -> None:
        self.side, self.cell = side, cell
        self.encoded: list[tuple[int, int]] = []
        self.gate, self.reached = threading.Event(), threading.Event()
        self.gate.set()

    def prepare(self, picture: PIL.Image.Image, policy: Preparation | None = None) -> PIL.Image.Image:
        return (policy or CentreCrop(self.side)).picture(picture)

    def encode(self, picture: PIL.Image.Image, policy: Preparation | None = None) -> np.ndarray:
        if picture.width % self.cell or picture.height % self.cell:
            raise ValueError(f"{picture.width} x {picture.height} pixels are no cells of {self.cell}.")
        self.encoded.append(picture.size)
        self.reached.set()
        assert self.gate.wait(120)
        grid = picture.convert("L").resize((picture.width // self.cell, picture.height // self.cell))
        return (np.asarray(grid) > 127).astype(np.int64)

    def decode(self, codes: np.ndarray) -> PIL.Image.Image:
        return PIL.Image.fromarray((codes * 255).astype(np.uint8).repeat(self.cell, 0).repeat(self.cell, 1))


def last_result(viewer: ReconstructionViewer) -> tuple[dict[str, Any], list[bytes]]:
    return [(content, buffers) for content, buffers in recorder(viewer).custom if content["kind"] == "result"][-1]


def test_the_viewer_gives_back_a_reconstruction():
    viewer = ReconstructionViewer(Codec(), samples={"white": PIL.Image.new("RGB", (20, 30), "white")})
    assert viewer.reconstruction is not None and np.isinf(viewer.reconstruction.psnr)
    viewer.show(PIL.Image.new("RGB", (9, 9), (60, 60, 60)))
    seen = viewer.reconstruction
    assert seen.original.size == (8, 8) and seen.codes.tolist() == [[0, 0], [0, 0]]
    assert seen.psnr == pytest.approx(10 * np.log10(255**2 / 60**2))
    assert "4 codes × 1 bits = 4 bits" in viewer._line.mimebundle()["text/plain"]


def test_structural_similarity_is_torchmetrics_where_its_window_fits_whole():
    """torchmetrics also averages over a border of reflected pixels; its map without that border is compared."""
    rng = np.random.default_rng(0)
    for height, width in ((11, 11), (40, 23), (64, 64)):
        before = rng.integers(0, 256, (height, width, 3), np.uint8)
        after = np.clip(before + rng.normal(0, rng.uniform(1, 90), before.shape), 0, 255).astype(np.uint8)
        ours = Reconstruction(PIL.Image.fromarray(before), np.zeros((1, 1)), PIL.Image.fromarray(after)).ssim
        x, y = (torch.from_numpy(each).double().permute(2, 0, 1)[None] for each in (before, after))
        _, places = structural_similarity_index_measure(x, y, data_range=255.0, return_full_image=True)
        assert ours == pytest.approx(float(places[..., 5:-5, 5:-5].mean()), abs=1e-9)


def test_structural_similarity_is_one_for_equal_pictures_and_undefined_below_its_window():
    assert Reconstruction(RED, np.zeros((1, 1)), RED).ssim == pytest.approx(1)
    small = RED.resize((10, 64))
    assert np.isnan(Reconstruction(small, np.zeros((1, 1)), small).ssim)
    viewer = ReconstructionViewer(Codec())
    viewer.show(RED)
    assert last_result(viewer)[0]["trips"][0]["ssim"] is None, "nan is no JSON"


def test_the_viewer_tells_of_a_bad_picture_and_keeps_the_last_good_one():
    viewer = ReconstructionViewer(Codec())
    assert viewer.reconstruction is None
    viewer.show(RED)
    browser_says(viewer, {"kind": "picture", "name": "notes.txt"}, b"not a picture at all")
    with pytest.raises(ValueError, match="not a picture"):
        _ = viewer.reconstruction
    message = last_result(viewer)[0]
    assert "“notes.txt” is not a picture" in message["error"]
    assert message["trips"][0]["codes"] == [[0, 0], [0, 0]]
    assert viewer.status == "error"
    viewer.show(RED)
    assert last_result(viewer)[0]["error"] == ""


def test_a_huge_picture_is_refused_before_the_tokenizer_sees_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pictures, "LARGEST_AREA", 4095)
    cells = Cells()
    viewer = ReconstructionViewer(cells)
    with pytest.raises(ValueError, match="64 x 64 pixels, more than 4,095: make it smaller"):
        viewer.show(RED)
    browser_says(viewer, {"kind": "picture", "name": "huge.png"}, png(RED))
    with pytest.raises(ValueError, match=r"“huge\.png” is 64 x 64"):
        _ = viewer.reconstruction
    assert not cells.encoded


def test_the_viewer_takes_pictures_only():
    with pytest.raises(TypeError, match=r"PIL\.Image\.open"):
        ReconstructionViewer(Codec()).show("picture.png")  # type: ignore[arg-type]


def test_the_chosen_policy_prepares_the_picture_and_a_grid_may_be_wider_than_high(image_tokenizer: ImageTokenizer):
    wide = RED.resize((90, 30))
    viewer = ReconstructionViewer(image_tokenizer, samples={"wide": wide}, policies=image_tokenizer.preparations)
    assert viewer.reconstruction is not None and viewer.reconstruction.codes.shape == (4, 4)
    browser_says(viewer, {"kind": "choose", "tokenizers": ["ImageTokenizer"], "policy": "fit to grid"})
    rows, columns = viewer.reconstruction.codes.shape
    assert columns == 3 * rows
    assert viewer.reconstruction.original.size == (4 * columns, 4 * rows)
    message, buffers = last_result(viewer)
    assert message["policy"] == message["trips"][0]["policy"] == "fit to grid"
    assert [PIL.Image.open(io.BytesIO(each)).size for each in buffers] == [(4 * columns, 4 * rows)] * 2


def test_two_tokenizers_are_compared_on_the_same_picture():
    viewer = ReconstructionViewer({"coarse": Cells(16), "fine": Cells(64)})
    viewer.show(RED, "red")
    assert list(viewer.reconstructions) == ["coarse"]
    viewer.choose("coarse", "fine")
    both = viewer.reconstructions
    assert {name: seen.original.size for name, seen in both.items()} == {"coarse": (16, 16), "fine": (64, 64)}
    assert viewer.reconstruction is both["coarse"]
    message, buffers = last_result(viewer)
    assert message["chosen"] == ["coarse", "fine"] and len(buffers) == 4
    assert [trip["psnr"] for trip in message["trips"]] == [both["coarse"].psnr, both["fine"].psnr]
    bundle = viewer._line.mimebundle()
    assert bundle["text/html"].count("<img ") == 3
    assert "coarse: 4 codes" in bundle["text/plain"] and "fine: 64 codes" in bundle["text/plain"]
    viewer.choose("fine")
    assert list(viewer.reconstructions) == ["fine"]


def test_a_policy_that_fits_one_tokenizer_only_leaves_the_others_error_in_its_place():
    viewer = ReconstructionViewer({"eight": Cells(16), "six": Cells(18, 6)}, policies={"to 16": CentreCrop(16)})
    viewer.choose("eight", "six")
    viewer.show(RED)
    assert list(viewer.reconstructions) == ["eight"]
    good, bad = last_result(viewer)[0]["trips"]
    assert good["codes"] == [[0, 0], [0, 0]] and bad["error"] == "16 x 16 pixels are no cells of 6."
    viewer.choose("six")
    with pytest.raises(ValueError, match="no cells of 6"):
        _ = viewer.reconstruction
    message = last_result(viewer)[0]
    assert message["error"] == "six: 16 x 16 pixels are no cells of 6."
    assert [trip["tokenizer"] for trip in message["trips"]] == ["eight", "six"], "the last result stays"


@pytest.mark.parametrize("policy", ["centre crop", "border padding", "fit to grid", "Hugging Face's crop"])
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (16, 16)])
def test_a_policy_of_one_tokenizers_own_stands_for_that_of_each(policy: str, size: tuple[int, int]):
    class Prepared(Cells):
        @property
        def preparations(self) -> dict[str, Preparation]:
            return preparations(self.side, self.cell)

    tokenizers = {"eight": Prepared(16), "six": Prepared(18, 6), "own": Cells(16)}
    policies = {"its own": None, **tokenizers["eight"].preparations, "to 24": CentreCrop(24)}
    viewer = ReconstructionViewer(tokenizers, policies=policies)
    viewer.choose("eight", "six", policy=policy)
    viewer.show(PIL.Image.new("RGB", size, "white"))
    assert list(viewer.reconstructions) == ["eight", "six"]
    viewer.choose("six", "own", policy="to 24")
    viewer.show(PIL.Image.new("RGB", size, "white"))
    assert {each.original.size for each in viewer.reconstructions.values()} == {(24, 24)}, (
        "one's own policy is as it is"
    )


def test_a_choice_that_there_is_not_is_refused_by_name():
    viewer = ReconstructionViewer({"one": Cells(), "two": Cells()}, policies={"crop": CentreCrop(16)})
    with pytest.raises(ValueError, match="'three' here; there is one, two"):
        viewer.choose("three")
    with pytest.raises(ValueError, match="'pad' here; there is crop"):
        viewer.choose("one", policy="pad")
    with pytest.raises(ValueError, match="two different ones; got one, one"):
        viewer.choose("one", "one")
    with pytest.raises(ValueError, match="no image tokenizer"):
        ReconstructionViewer({})
    browser_says(viewer, {"kind": "choose", "tokenizers": ["three"], "policy": "pad"})
    assert viewer.reconstruction is None and viewer._chosen == ("one",)


def test_of_requests_that_pile_up_only_the_last_is_worked_on():
    cells = Cells()
    cells.gate.clear()
    viewer = ReconstructionViewer(cells, samples={str(side): RED.resize((side, side)) for side in (20, 30, 40)})
    assert cells.reached.wait(120)
    for name in ("30", "40", "30", "20"):
        browser_says(viewer, {"kind": "sample", "name": name})
    cells.gate.set()
    assert viewer.reconstruction is not None and len(cells.encoded) == 2
    assert last_result(viewer)[0]["name"] == "20" and viewer.status == "idle"


def test_the_still_of_a_viewer_holds_no_live_html_and_no_nan():
    viewer = ReconstructionViewer({"<b>bold</b>": Cells(), "two": Codec()})
    viewer.choose("<b>bold</b>", "two")
    viewer.show(RED, "<script>alert(1)</script>")
    page = viewer._line.mimebundle()["text/html"]
    assert "<script" not in page and "<b>bold" not in page and "nan" not in page
    assert not re.search(r'(?:src|href)="(?!data:image/png;base64,)', page), "the page stands alone"


def test_a_picture_in_an_address_is_made_small_enough():
    address = data_uri(PIL.Image.new("RGB", (2000, 10)), 500)
    kind, _, data = address.partition(",")
    assert kind == "data:image/png;base64"
    assert PIL.Image.open(io.BytesIO(base64.b64decode(data))).width == 500
