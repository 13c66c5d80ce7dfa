"""The inspector without a browser: what is sent of a document, rows, a token and a knock-out, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image
import pytest
from widget_support import browser_says, eventually, recorder

from chameleon_lab.readings import Contribution, TokenReading
from chameleon_lab.vocabulary import Modality
from chameleon_widgets.inspect import desk
from chameleon_widgets.inspect.inspector import Inspector
from chameleon_widgets.inspect.messages import LensPicture
from chameleon_widgets.inspect.recording import AnswerBook

pytestmark = pytest.mark.usefixtures("comms")
LAYERS, HEADS = 2, 3


class Hall:
    """A look at a document that no model reads: begin, <b>, an image of 2 x 2 (codes 4 to 7), and a last word.

    Every answer says in its numbers what was asked for.
    """

    guide: object | None = None
    depth = (LAYERS, HEADS)

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.rolled = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.broken: Exception | None = None
        self.pace = 1  # tokens of a branch
        names = ["begin_document", "<b>", "begin_image", "code 4", "code 5", "code 6", "code 7", "end_image", "done"]
        kinds = [
            Modality.SPECIAL,
            Modality.TEXT,
            Modality.SPECIAL,
            *[Modality.IMAGE] * 4,
            Modality.SPECIAL,
            Modality.TEXT,
        ]
        self.readings = [
            TokenReading(at, self.token(at), kind, words, *self.cell(at), *self.measures(at))
            for at, (words, kind) in enumerate(zip(names, kinds, strict=True))
        ]

    @staticmethod
    def token(at: int) -> int:
        return 100 + at

    @staticmethod
    def cell(at: int) -> tuple[int | None, int | None, int | None]:
        return (0, *divmod(at - 3, 2)) if 3 <= at < 7 else (None, None, None)

    @staticmethod
    def measures(at: int) -> tuple[float | None, int | None, float | None]:
        return (-at / 2, at, 1.5) if at else (None, None, None)

    def words(self, token: int) -> str:
        return self.readings[token - 100].words

    def alternatives(self, position: int, k: int, without: Sequence[int] = ()) -> list[tuple[int, float]]:
        order = range(8, 2, -1) if len(without) else range(3, 9)
        return [(100 + at, 0.5 / (place + 1)) for place, at in enumerate(order)][: min(k, 4 if k < 9 else 9)]

    def guided(self, position: int, k: int) -> list[tuple[int, float, float]]:
        return [(103, 0.75, 0.5), (104, 0.25, 0.125)]

    def heads(self, layer: int, position: int) -> np.ndarray:
        self.calls.append(("heads", layer, position))
        assert self.gate.wait(120)
        if self.broken:
            raise self.broken
        return np.full((HEADS, position + 1), 1 / (position + 1)) + np.arange(HEADS)[:, None] * 0

    def readers(self, layer: int, head: int, position: int) -> np.ndarray:
        return np.full(len(self.readings) - position, layer + head / 10)

    def rollout(self, position: int) -> np.ndarray:
        return np.eye(1, position + 1, position)[0]

    def rollout_readers(self, position: int) -> np.ndarray:
        return np.eye(1, len(self.readings) - position)[0]

    def rollout_so_far(self, position: int, readers: bool = False) -> tuple[np.ndarray, int]:
        row = self.rollout_readers(position) if readers else self.rollout(position)
        return row / 2, int(self.rolled * LAYERS)

    def rollouts(self) -> np.ndarray:
        rows = np.tril(1.0 + np.arange(81).reshape(9, 9))
        return rows / rows.sum(1, keepdims=True)

    def rollout_steps(self) -> Iterator[float]:
        for share in (0.5, 1.0):
            self.calls.append(("rollout_steps", share))
            assert self.gate.wait(120)
            self.rolled = share
            yield share

    def relevance(self, position: int) -> np.ndarray:
        return np.full(position, 0.25)

    def lens(self, layer: int, positions: slice) -> np.ndarray:
        logits_V = np.zeros(109, np.float32)
        logits_V[103 + layer] = 5
        return logits_V[None]

    def contributions(self, position: int) -> list[Contribution]:
        if position == 8:
            raise ValueError("a branch is no sum of its heads")
        return [
            Contribution("embedding", None, None, 0.5),
            Contribution("head", 1, 2, -1.5),
            Contribution("feed_forward", 0, None, 2.0),
        ]

    def branch(self, position, token=None, *, seed=0, without=(), each=None) -> Hall:
        self.calls.append(("branch", position, token, seed, tuple(without)))
        assert each is not None
        for count in range(1, self.pace + 1):
            each(count)
            time.sleep(0.002)
        if self.broken:
            raise self.broken
        return Hall()

    def image(self, image: int) -> PIL.Image.Image:
        return PIL.Image.new("RGB", (8, 8), (9, 9, 9))

    def picture(self, layer: int, image: int) -> PIL.Image.Image:
        return PIL.Image.new("RGB", (8, 8), (layer, image, 7))

    def swatch(self, token: int, position: int) -> PIL.Image.Image | None:
        return PIL.Image.new("RGB", (4, 4), (token, position, 0)) if 103 <= token < 107 else None

    def knock_out(self, positions: Sequence[int]) -> np.ndarray:
        return np.array([math.nan, *(at - sum(positions) / 10 for at in range(1, 9))])

    def cut(self, layer: int, head: int, source: int, target: int, of: int) -> float:
        assert target == of - 1
        return layer + head / 10 + source / 100 + of / 1000


@pytest.fixture
def hall() -> Hall:
    return Hall()


@pytest.fixture
def inspector(hall: Hall) -> Inspector:
    inspector = Inspector(hall)
    inspector.wait(120)
    return inspector


def answers(inspector: Inspector, kind: str):
    inspector.wait(120)
    return [(content, buffers) for content, buffers in recorder(inspector).custom if content["kind"] == kind]


def kinds_of(inspector: Inspector) -> list[str]:
    """Of the messages so far, without waiting for more."""
    return [content["kind"] for content, _ in recorder(inspector).custom]


def ask(inspector: Inspector, kind: str, **content: object) -> None:
    browser_says(inspector, {"kind": kind, **content})


def pixel(png: bytes) -> object:
    return PIL.Image.open(io.BytesIO(png)).convert("RGB").getpixel((0, 0))


def test_a_view_is_given_the_document_whenever_it_comes(inspector: Inspector):
    before = len(answers(inspector, "document"))
    ask(inspector, "hello")
    content, (logs, entropies) = answers(inspector, "document")[-1]
    assert len(answers(inspector, "document")) == before + 1
    assert [token["words"] for token in content["tokens"]][:2] == ["begin_document", "<b>"]
    assert [token["sink"] for token in content["tokens"]] == [True, False, True, *[False] * 6]
    assert [(token["row"], token["column"]) for token in content["tokens"] if token["image"] == 0] == [
        (0, 0), (0, 1), (1, 0), (1, 1)
    ]  # fmt: skip
    assert (content["layers"], content["heads"], content["images"]) == (LAYERS, HEADS, 1)
    np.testing.assert_array_equal(np.frombuffer(logs, "<f4"), [math.nan, *(-at / 2 for at in range(1, 9))])
    assert np.isnan(np.frombuffer(entropies, "<f4")[0])
    content, (picture,) = answers(inspector, "lens")[-1]
    assert (content["image"], content["layer"], pixel(picture)) == (0, LAYERS, (9, 9, 9))


def test_rows_come_for_all_heads_of_a_layer_and_columns_for_one(inspector: Inspector):
    ask(inspector, "rows", way="from", layer=1, head=2, position=3)
    content, buffers = answers(inspector, "rows")[-1]
    assert (content["layer"], content["position"], content["heads"]) == (1, 3, [0, 1, 2])
    assert [np.frombuffer(row, "<f4").tolist() for row in buffers] == [[0.25] * 4] * HEADS
    ask(inspector, "rows", way="by", layer=1, head=2, position=6)
    content, (column,) = answers(inspector, "rows")[-1]
    assert content["heads"] == [2] and np.allclose(np.frombuffer(column, "<f4"), [1.2] * 3)
    for way, length in (("from", 5), ("by", 5)):
        ask(inspector, "rows", way=way, layer=-1, head=0, position=4)
        content, (row,) = answers(inspector, "rows")[-1]
        assert content["way"] == way and len(np.frombuffer(row, "<f4")) == length


def test_the_document_comes_first_and_the_rest_once_a_page_has_painted(hall: Hall, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(desk, "PAINT_SECONDS", 60.0)
    hall.gate.clear()
    inspector = Inspector(hall)
    eventually(lambda: kinds_of(inspector).count("document") == 1)
    inspector.selected = 3  # is answered, whatever has been painted
    eventually(lambda: ("heads", 0, 3) in hall.calls)
    hall.gate.set()
    eventually(lambda: "detail" in kinds_of(inspector))
    assert "lens" not in kinds_of(inspector) and ("rollout_steps", 0.5) not in hall.calls
    hall.gate.clear()
    ask(inspector, "painted")
    eventually(lambda: ("rollout_steps", 0.5) in hall.calls)
    ask(inspector, "rows", way="from", layer=-1, head=0, position=4)
    ask(inspector, "rows", way="by", layer=-1, head=0, position=5)
    ask(inspector, "rows", way="by", layer=0, head=1, position=2)
    hall.gate.set()
    rows = [(each["layer"], each["position"]) for each, _ in answers(inspector, "rows")]
    assert rows in ([(0, 2)], [(0, 2), (-1, 5)])  # what a newer hover has overtaken need not come
    assert len(answers(inspector, "lens")) == 1 and answers(inspector, "state")[-1][0]["doing"] == ""
    ask(inspector, "rows", way="from", layer=-1, head=0, position=4)
    assert answers(inspector, "rows")[-1][0]["position"] == 4


def test_what_waits_for_rollout_is_answered_when_it_is_there(hall: Hall, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(desk, "PAINT_SECONDS", 60.0)
    hall.gate.clear()
    inspector = Inspector(hall)
    ask(inspector, "hello")
    ask(inspector, "painted")
    eventually(lambda: ("rollout_steps", 0.5) in hall.calls)
    for position in (2, 7):
        ask(inspector, "rows", way="from", layer=-1, head=0, position=position)
    hall.gate.set()
    rows = [(each["position"], each["through"]) for each, _ in answers(inspector, "rows")]
    assert rows[-1] == (7, LAYERS) and set(rows) <= {(7, 1), (7, LAYERS)}  # meanwhile, as far as it has come
    (page,) = [each for each, _ in inspector._book.answers() if each["kind"] == "rows"]
    assert page["through"] == LAYERS  # what a page without a kernel says is no sketch
    assert answers(inspector, "state")[-1][0]["doing"] == ""


def test_without_a_page_the_rest_comes_all_the_same(hall: Hall, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(desk, "PAINT_SECONDS", 0.01)
    inspector = Inspector(hall)
    eventually(lambda: "lens" in kinds_of(inspector) and ("rollout_steps", 1.0) in hall.calls)


def test_of_hovers_that_wait_only_the_newest_is_computed(hall: Hall, inspector: Inspector):
    hall.gate.clear()
    ask(inspector, "rows", way="from", layer=0, head=0, position=1)
    eventually(lambda: ("heads", 0, 1) in hall.calls)
    for position in (2, 3, 4, 5):
        ask(inspector, "rows", way="from", layer=0, head=0, position=position)
    hall.gate.set()
    assert [content["position"] for content, _ in answers(inspector, "rows")] == [1, 5]


def test_the_chosen_token_comes_with_its_alternatives_and_their_looks(hall: Hall, inspector: Inspector):
    ask(inspector, "select", position=8)
    content, looks = answers(inspector, "detail")[-1]
    assert inspector.selected == content["position"] == 8
    assert [each["words"] for each in content["alternatives"]] == ["code 4", "code 5", "code 6", "code 7", "done"]
    assert [each["token"] for each in content["alternatives"]] == [103, 104, 105, 106, 108]
    assert [each["chosen"] for each in content["alternatives"]] == [*[False] * 4, True]
    assert content["alternatives"][-1]["probability"] == pytest.approx(math.exp(-4))
    assert [pixel(look) for look in looks] == [(token, 8, 0) for token in (103, 104, 105, 106, 103, 104)]
    share, own = (value / (math.exp(5) + 108) for value in (math.exp(5), 1))
    assert content["layers"] == [
        {"token": 103 + at, "words": f"code {4 + at}", "probability": pytest.approx(share), "own": pytest.approx(own),
         "swatch": True}
        for at in range(LAYERS)
    ]  # fmt: skip
    assert np.allclose(content["shares"], [[[2 / 9, 4 / 9, 2 / 9, 1 / 9]] * HEADS] * LAYERS, atol=1e-3)
    hall.guide = object()
    inspector.selected = 3
    content, looks = answers(inspector, "detail")[-1]
    assert [(each["probability"], each["guided"]) for each in content["alternatives"]] == [(0.5, 0.75), (0.125, 0.25)]
    inspector.selected = 0
    assert answers(inspector, "detail")[-1][0]["alternatives"] == []
    inspector.selected = None
    assert answers(inspector, "selection")[-1][0]["position"] is None


def test_the_lens_knock_outs_cuts_and_sums_answer_with_what_was_asked(inspector: Inspector):
    ask(inspector, "lens", image=0, layer=1)
    content, (picture,) = answers(inspector, "lens")[-1]
    assert (content["image"], content["layer"], pixel(picture)) == (0, 1, (1, 0, 7))
    ask(inspector, "without", positions=[5, 2, 2], of=8)
    ((content, (changes,)),) = answers(inspector, "knockout")
    assert content["positions"] == [2, 5]
    np.testing.assert_allclose(np.frombuffer(changes, "<f4"), [math.nan, *(at - 0.7 for at in range(1, 9))], rtol=1e-6)
    content, _ = answers(inspector, "knocked")[0]
    assert (content["positions"], content["position"]) == ([2, 5], 8)
    first = content["alternatives"][0]
    assert (first["words"], first["probability"], first["before"]) == ("done", 0.5, pytest.approx(1 / 12))
    ask(inspector, "without", positions=[2], of=None)
    assert len(answers(inspector, "knockout")) == 2 and {
        content["position"] for content, _ in answers(inspector, "knocked")
    } == {8}
    ask(inspector, "cut", layer=1, head=2, source=3, of=8)
    ((content, _),) = answers(inspector, "cut")
    assert content["nats"] == pytest.approx(1.238)
    ask(inspector, "parts", position=4)
    ask(inspector, "parts", position=8)
    (content, _), (refusal, _) = answers(inspector, "parts")
    assert content["heads"] == [[0, 0, 0], [0, 0, -1.5]] and content["feed_forwards"] == [2, 0]
    assert (content["embedding"], content["trouble"], refusal["trouble"]) == (
        0.5,
        "",
        "a branch is no sum of its heads",
    )
    ask(inspector, "rows", way="from", layer=-2, head=0, position=4)
    content, (row,) = answers(inspector, "rows")[-1]
    assert np.frombuffer(row, "<f4").tolist() == [0.25] * 4


def test_looks_of_codes_come_behind_what_is_asked_meanwhile_and_not_for_a_choice_of_the_past(hall, inspector):
    hall.gate.clear()
    ask(inspector, "rows", way="from", layer=0, head=0, position=1)
    eventually(lambda: ("heads", 0, 1) in hall.calls)
    ask(inspector, "select", position=7)
    ask(inspector, "select", position=8)
    ask(inspector, "rows", way="from", layer=0, head=0, position=3)
    hall.gate.set()
    inspector.wait(120)
    kinds = [(content["kind"], len(buffers)) for content, buffers in recorder(inspector).custom]
    kinds = [each for each in kinds if each[0] in ("detail", "rows")]
    assert kinds == [("rows", HEADS), ("detail", 0), ("rows", HEADS), ("detail", 6)]


def test_what_was_answered_is_not_computed_again(hall: Hall, inspector: Inspector):
    for _ in range(2):
        ask(inspector, "select", position=5)
        inspector.wait(120)
    assert len([call for call in hall.calls if call[0] == "heads" and call[2] == 5]) == LAYERS


def test_each_forced_token_draw_and_answer_is_a_branch_that_one_can_leave(hall: Hall, inspector: Inspector):
    ask(inspector, "force", position=4, token=106)
    inspector.wait(120)
    tree, _ = answers(inspector, "branches")[-1]
    assert tree == {
        "kind": "branches",
        "visible": 1,
        "branches": [
            {"parent": None, "position": None, "words": "the document"},
            {"parent": 0, "position": 4, "words": "“code 7” forced"},
        ],
    }
    assert inspector.selected == 4 and inspector.look is not hall
    assert [content["branch"] for content, _ in answers(inspector, "document")][-1] == 1
    ask(inspector, "resample", branch=0, position=5)
    ask(inspector, "answer", branch=0, positions=[1, 8])
    inspector.wait(120)
    assert hall.calls[-2:] == [("branch", 5, None, 1, ()), ("branch", 8, None, 0, (1, 8))]
    tree, _ = answers(inspector, "branches")[-1]
    assert [(each["parent"], each["words"]) for each in tree["branches"][2:]] == [
        (0, "drawn anew, seed 1"),
        (0, "without “<b>”, “done”"),
    ]
    ask(inspector, "show", branch=0)
    assert answers(inspector, "branches")[-1][0]["visible"] == 0 and inspector.look is hall
    ask(inspector, "hello")
    assert [content["branch"] for content, _ in answers(inspector, "document")[-4:]] == [0, 1, 2, 3]


def test_while_a_branch_is_drawn_hovers_are_answered_and_it_can_be_stopped(hall: Hall, inspector: Inspector):
    hall.pace = 10_000
    ask(inspector, "force", position=4, token=106)
    eventually(
        lambda: any(content["drawing"] for content, _ in recorder(inspector).custom if content["kind"] == "state")
    )
    ask(inspector, "rows", way="from", layer=0, head=0, position=3)
    eventually(lambda: ("heads", 0, 3) in hall.calls)
    ask(inspector, "resample", position=4)
    eventually(lambda: "A branch is being drawn" in str(recorder(inspector).custom))
    ask(inspector, "stop")
    assert answers(inspector, "state")[-1][0] == {"kind": "state", "doing": "", "trouble": "", "drawing": None}
    assert len(answers(inspector, "branches")[-1][0]["branches"]) == 1
    hall.pace, hall.broken = 1, ValueError("A reply cannot begin so.")
    ask(inspector, "force", position=4, token=106)
    assert answers(inspector, "state")[-1][0]["trouble"] == "A reply cannot begin so."


def test_branches_go_where_the_maker_says(hall: Hall):
    calls = []
    inspector = Inspector(hall, branch=lambda *request: calls.append(request))
    inspector.wait(120)
    ask(inspector, "force", position=4, token=106)
    ask(inspector, "resample", position=5)
    inspector.wait(120)
    assert calls == [(4, 106, 0), (5, None, 1)] and len(answers(inspector, "branches")[-1][0]["branches"]) == 1


@pytest.mark.parametrize("seed", range(4))
def test_every_act_is_done_on_the_document_whose_position_was_named(monkeypatch: pytest.MonkeyPatch, seed: int):
    """Branches of branches, drawn here or elsewhere: a position never reaches another document than its own."""
    rng, calls = np.random.default_rng(seed), list[tuple]()

    class Numbered(Hall):
        """Says which document was asked."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def branch(self, position, token=None, *, seed=0, without=(), each=None) -> Hall:
            calls.append((self.number, position, token, tuple(without)))
            return Numbered(len(looks) - 1)

        def heads(self, layer, position):
            calls.append((self.number, position))
            return super().heads(layer, position)

    first = Numbered(0)
    looks, elsewhere = [first], bool(seed % 2)
    inspector = Inspector(
        first, branch=(lambda position, token, _: calls.append((0, position, token, ()))) if elsewhere else None
    )
    inspector.wait(120)
    for act in rng.choice(["force", "resample", "answer", "rows", "show"], 40):
        branch, position = int(rng.integers(len(looks))), int(rng.integers(1, 9))
        calls.clear()
        asked = {
            "force": ({"position": position, "token": 105}, (branch, position, 105, ())),
            "resample": ({"position": position}, (branch, position, None, ())),
            "answer": ({"positions": [position]}, (branch, position, None, (position,))),
            "rows": ({"way": "from", "layer": 1, "head": 0, "position": position}, (branch, position)),
            "show": ({}, None),
        }[act]
        if act == "answer" or (act in ("force", "resample") and (branch or not elsewhere)):
            looks.append(looks[branch])
        ask(inspector, act, branch=branch, **asked[0])
        inspector.wait(120)
        assert asked[1] is None or asked[1] in calls
        assert all(call[0] == branch for call in calls if len(call) == 4)
        assert len(inspector._branches) == len(looks)


def test_a_page_holds_the_documents_and_what_was_looked_up(hall: Hall, inspector: Inspector, tmp_path):
    inspector.selected = 8
    ask(inspector, "lens", image=0, layer=1)
    ask(inspector, "force", position=4, token=106)
    inspector.save_page(tmp_path / "look.html")
    page = (tmp_path / "look.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["look.html"]
    data = json.loads(page.split('id="chameleon-record">')[1].split("</script>")[0])
    messages = data["widgets"]["inspector"]["messages"]
    kinds = [message["kind"] for message, _ in messages]
    assert kinds[:7] == ["branches", "document", "document", "lens", "lens", "rollouts", "rollouts"]
    assert kinds.count("detail") == 2 and kinds.count("lens") == 3 and kinds[-1] == "selection"
    most, codes = (base64.b64decode(buffer) for buffer in messages[5][1])
    want = hall.rollouts()
    have = np.zeros((9, 9))
    have[np.tril_indices(9)] = (np.frombuffer(codes, np.uint8) / 255.0) ** 2
    np.testing.assert_allclose(have * np.frombuffer(most, "<f4")[:, None], want, atol=0.005 * want.max())


def test_a_page_of_a_long_document_goes_without_rollout(hall: Hall, inspector: Inspector, monkeypatch):
    monkeypatch.setattr("chameleon_widgets.inspect.recording.ROLLOUT_BYTES", 44)
    assert not [message for message, _ in inspector.recording().messages if message["kind"] == "rollouts"]
    monkeypatch.setattr("chameleon_widgets.inspect.recording.ROLLOUT_BYTES", 45)
    assert [message for message, _ in inspector.recording().messages if message["kind"] == "rollouts"]


def test_the_book_forgets_the_oldest_answers():
    book = AnswerBook(1000)
    for at in range(9):
        book.put(at, (LensPicture(kind="lens", branch=0, image=0, layer=at), [bytes(100)]))
        book.get(0)
    assert [at for at in range(9) if book.get(at)] == [0, 7, 8]


@pytest.mark.parametrize(
    "request_",
    [
        {"kind": "rows", "way": "sideways", "layer": 0, "head": 0, "position": 1},
        {"kind": "rows", "way": "from", "layer": LAYERS, "head": 0, "position": 1},
        {"kind": "rows", "way": "from", "layer": -3, "head": 0, "position": 1},
        {"kind": "rows", "way": "from", "layer": -2, "head": 0, "position": 0},
        {"kind": "rows", "way": "from", "layer": 0, "head": HEADS, "position": 1},
        {"kind": "rows", "way": "from", "layer": 0, "head": 0, "position": 9},
        {"kind": "rows", "way": "from", "layer": 0, "head": 0},
        {"kind": "select", "position": -1},
        {"kind": "select", "position": "<img src=x>"},
        {"kind": "select", "position": True},
        {"kind": "lens", "image": 1, "layer": 0},
        {"kind": "lens", "image": 0, "layer": 0.5},
        {"kind": "without", "positions": 4, "of": 4},
        {"kind": "without", "positions": [], "of": 4},
        {"kind": "without", "positions": [1, 9], "of": 4},
        {"kind": "without", "positions": [1], "of": 9},
        {"kind": "cut", "layer": 0, "head": 0, "source": 3, "of": 4},
        {"kind": "cut", "layer": -1, "head": 0, "source": 1, "of": 4},
        {"kind": "parts", "position": 0},
        {"kind": "force", "position": 0, "token": 101},
        {"kind": "force", "position": 1, "token": "red"},
        {"kind": "resample", "position": 9},
        {"kind": "answer", "positions": ["1"]},
        {"kind": "show", "branch": 1},
        {"kind": "rows", "branch": 1, "way": "from", "layer": 0, "head": 0, "position": 1},
    ],
    ids=str,
)
def test_what_there_is_not_is_refused_in_words_and_computed_by_nobody(hall, inspector, request_):
    calls, count = len(hall.calls), len(recorder(inspector).custom)
    browser_says(inspector, request_)
    inspector.wait(120)
    (line,) = [content for content, _ in recorder(inspector).custom[count:]]
    assert line["kind"] == "line" and re.match(
        "There is no|Attention is read|Say which tokens|A head's edge", line["trouble"]
    )
    assert len(hall.calls) == calls and inspector.selected is None


def test_a_look_that_raises_is_told_and_the_next_answer_takes_that_away(hall: Hall, inspector: Inspector):
    hall.broken = RuntimeError("no more memory")
    ask(inspector, "rows", way="from", layer=0, head=0, position=1)
    assert answers(inspector, "state")[-1][0]["trouble"] == "RuntimeError: no more memory"
    hall.broken = None
    ask(inspector, "rows", way="from", layer=0, head=0, position=1)
    assert answers(inspector, "state")[-1][0]["trouble"] == ""
    assert len(answers(inspector, "rows")) == 1


def test_an_inspector_that_has_ended_computes_nothing_and_still_shows_the_document(hall: Hall, inspector: Inspector):
    inspector._line.end()
    calls = len(hall.calls)
    ask(inspector, "rows", way="from", layer=0, head=0, position=1)
    ask(inspector, "without", positions=[1], of=4)
    ask(inspector, "force", position=1, token=102)
    assert not answers(inspector, "rows") and not answers(inspector, "knockout") and len(hall.calls) == calls
    count = len(answers(inspector, "document"))
    ask(inspector, "hello")
    assert len(answers(inspector, "document")) == count + 1


def test_only_positions_can_be_selected(inspector: Inspector):
    for value in (9, -1):
        with pytest.raises(ValueError, match=f"There is no position {value}: they go from 0 to 8"):
            inspector.selected = value
    with pytest.raises(TypeError):
        inspector.selected = "3"


def test_the_still_shows_words_as_text_and_the_image(inspector: Inspector):
    inspector._line.settle()
    bundle = inspector._line.mimebundle()
    assert "&lt;b&gt;" in bundle["text/html"] and "<b>" not in bundle["text/html"]
    assert bundle["text/html"].count("data:image/png") == 1 and "code 4" not in bundle["text/html"]
    assert bundle["text/plain"].startswith("Inspector. A document of 9 tokens, 2.25 nats a token")


def test_an_image_under_way_has_cells_without_a_look(hall: Hall, monkeypatch: pytest.MonkeyPatch):
    def refuse(image: int) -> PIL.Image.Image:
        raise ValueError(f"Image {image} has 3 of its 4 codes: it is not whole.")

    monkeypatch.setattr(hall, "image", refuse)
    inspector = Inspector(hall)
    ((_, (picture,)),) = answers(inspector, "lens")
    content, _ = answers(inspector, "document")[-1]
    assert picture == b"" and sum(token["image"] == 0 for token in content["tokens"]) == 4
    assert "<img" not in inspector._line.mimebundle()["text/html"]
