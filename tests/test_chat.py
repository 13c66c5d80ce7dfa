"""The chat's tree without a browser: what branches, what is kept, what replays, and what files give back."""

from __future__ import annotations

import inspect
import io
import json
import math
import re
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import pytest
from browser.fakes import telling_stream
from support import IN_PLACES, in_place_of
from widget_support import RED, browser_says, eventually, recorder, updates

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Blank, Document, EndTurn, Image, Text
from chameleon_lab.records import ImagePiece, Piece, ReplyProgress, StopPiece, TextPiece
from chameleon_lab.vocabulary import Modality
from chameleon_widgets import ChatCell
from chameleon_widgets.chat.exchange import Exchange

pytestmark = pytest.mark.usefixtures("comms")


def plain(piece: Piece) -> object:
    """A piece as something that compares."""
    if isinstance(piece, ImagePiece):
        return piece.codes.tolist(), piece.rows, np.asarray(piece.picture).tobytes()
    return piece


def assembled(pieces: Sequence[Piece]) -> list[object]:
    """The parts of a reply: text joined, of each picture the last piece."""
    exchange = Exchange()
    for piece in pieces:
        exchange.take(piece)
    return [plain(part) if isinstance(part, ImagePiece) else part.text for part in exchange.reply]  # type: ignore[union-attr]


def parts_of(exchange: Exchange) -> list[object]:
    return [plain(part) if isinstance(part, ImagePiece) else part.text for part in exchange.reply]  # type: ignore[union-attr]


def keys(cell: ChatCell) -> list[int]:
    return [each.key for each in cell._conversation.path]


quick = partial(telling_stream, pause=0.0)


class Halting:
    """A lab's stream that has a cell stop it after some tokens of a reply."""

    def __init__(self, lab: Chameleon) -> None:
        self.stream, self.after = lab.stream, 0
        self.cell: ChatCell | None = None
        self.__signature__ = inspect.signature(lab.stream)

    def __call__(self, document: Document, **keywords: Any) -> Iterator[Piece]:
        note, count = keywords.pop("progress", None), 0

        def progress(each: ReplyProgress) -> None:
            nonlocal count
            count += 1
            if self.cell is not None and count == self.after:
                self.cell.stop()
            if note is not None:
                note(each)

        return self.stream(document, progress=progress, **keywords)


@pytest.mark.parametrize("seed", range(3))
def test_every_reply_of_a_random_tree_replays_exactly(lab, seed):
    """Sends, edits, regenerates, stops, continues, branches and walks at random, and changes settings in between."""
    rng = np.random.default_rng(seed)
    halting = Halting(lab)
    cell = ChatCell(halting, defaults={"max_tokens": 40, "temperature": 1.2})
    halting.cell = cell
    acts = 0
    while acts < 14:
        exchanges = cell._conversation.exchanges
        one = exchanges[rng.integers(len(exchanges))] if exchanges else None
        halting.after = int(rng.integers(1, 60)) if rng.random() < 0.5 else 0
        cell.settings = cell.settings | {
            "temperature": float(rng.uniform(0.5, 2)),
            "modality": str(rng.choice(["free", "interleaved", "picture"])),
            "guidance": float(rng.choice([1.0, 2.0])),
        }
        match rng.integers(6):
            case 0:
                cell.send(f"draw {acts}", RED)
            case 1 if one is not None:
                browser_says(cell, {"kind": "edit", "key": one.key, "parts": [{"text": f"edited {acts}"}, {"keep": 0}]})
            case 2 if one is not None:
                browser_says(cell, {"kind": "again", "key": one.key})
            case 3 if one is not None and one.resumable:
                browser_says(cell, {"kind": "proceed", "key": one.key})
            case 4 if one is not None and len(one.tokens) > 2:
                cell._branch(one, one.tokens[: rng.integers(1, len(one.tokens))], False, int(rng.integers(1000)))
            case 5 if one is not None:
                browser_says(cell, {"kind": "walk", "key": one.key})
                assert one.key in keys(cell)
            case _:
                continue
        acts += 1
        cell._worker.wait(60)
    exchanges = cell._conversation.exchanges
    whole = [each for each in exchanges if each.error is None and each.reason != "stopped"]
    assert len(whole) >= 3
    for each in exchanges:
        if each.error is not None:
            continue
        again = list(cell.replay(each.key))
        if each.reason != "stopped":
            assert assembled(again) == parts_of(each)
            assert isinstance(again[-1], StopPiece) and again[-1].reason == each.reason
        else:  # what there is of it is how the whole reply begins
            tokens: list[int] = list(each.prefix)
            keywords = each.settings | ({"prefix": list(each.prefix)} if each.prefix else {})
            document = cell._conversation.document_to(each, reply=False)
            list(lab.stream(document, progress=lambda step: tokens.append(step.token), **keywords))  # noqa: B023
            assert tokens[: len(each.tokens)] == each.tokens
        for child in each.children:
            assert child.parent is each
    assert any(each.prefix for each in exchanges) or seed


def test_no_act_loses_an_exchange_and_the_document_is_the_path_shown():
    cell = ChatCell(quick, defaults={"seed": 5})
    cell.send("one")
    cell.send("two")
    cell.wait()
    first, second = cell._conversation.exchanges
    assert keys(cell) == [first.key, second.key] and second.parent is first
    one = cell.document
    browser_says(cell, {"kind": "edit", "key": first.key, "parts": [{"text": "another"}]})
    cell.wait()
    assert [turn.text for role, turn in cell.document.turns if role == "user"] == ["another"]
    cell.regenerate()
    cell.best(3)
    cell.wait()
    cell.clear()
    assert cell.document == Document() and cell.status == "idle"
    assert [each["visible"] for each in cell.tree] == [False] * 7
    cell.walk(first.key)
    assert [each["key"] for each in cell.tree if each["visible"]] == [first.key, second.key]
    assert [each["origin"] for each in cell.tree] == ["send", "send", "edit", "regenerate", "best", "best", "best"]
    assert cell.tree[1]["parent"] == first.key and cell.tree[2]["parent"] is None
    assert cell.document == one and len(cell._conversation.exchanges) == 7
    wordings, replies = cell._conversation.variants(first)
    assert [len(wordings), len(replies)] == [2, 1]
    wordings, replies = cell._conversation.variants(wordings[1])
    assert [len(wordings), len(replies)] == [2, 5]


def test_messages_sent_at_once_follow_one_another_wherever_one_walks_meanwhile():
    gate = threading.Event()

    def stream(document: Document) -> Iterator[Piece]:
        assert gate.wait(120)
        yield TextPiece(f"{len(document.turns)}")

    cell = ChatCell(stream)
    for text in ("a", "b", "c"):
        cell.send(text)
    browser_says(cell, {"kind": "clear"})
    gate.set()
    cell._worker.wait(120)
    exchanges = cell._conversation.exchanges
    assert [each.parent for each in exchanges] == [cell._conversation.root, *exchanges[:2]]
    assert cell.document == Document()


def test_a_stopped_picture_is_continued_at_its_next_token(lab):
    halting = Halting(lab)
    cell = ChatCell(halting, defaults={"modality": "interleaved", "max_tokens": 60, "seed": 4})
    halting.cell, halting.after = cell, 7
    cell.send("draw")
    cell.wait()
    stopped = cell._conversation.tip
    assert stopped.reason == "stopped" and len(stopped.tokens) == 7 and stopped.resumable
    halting.after = 0
    cell.proceed()
    cell.wait()
    whole = cell._conversation.tip
    assert whole.prefix == tuple(stopped.tokens) and whole.tokens[:7] == stopped.tokens
    assert whole.parent is stopped.parent and whole.message is stopped.message and stopped.reply is not whole.reply
    document = cell._conversation.document_to(whole, reply=False)
    assert lab.generate(document, prefix=stopped.tokens, **whole.settings).segments == tuple(
        part for part in whole.segments[2:] if not isinstance(part, EndTurn)
    )


def test_a_reply_cut_off_by_length_is_continued_while_there_is_room(lab):
    cell = ChatCell(lab.stream, defaults={"max_tokens": 5, "modality": "words", "temperature": 1.5, "seed": 1})
    cell.send("talk")
    cell.wait()
    first = cell._conversation.tip
    assert first.reason == "length" and len(first.tokens) == 5 and first.resumable
    cell.proceed()
    cell.wait()
    assert len(cell._conversation.tip.tokens) == 10 and cell._conversation.tip.settings["max_tokens"] == 10
    full = ChatCell(lab.stream, defaults={"modality": "words", "temperature": 1.5, "seed": 1})
    while full._conversation.tip.reason != "length":
        full.send("talk") if not full._conversation.exchanges else full.regenerate()
        full.wait()
        full.settings = full.settings | {"seed": full.settings["seed"] + 1}
    with pytest.raises(ValueError, match="stopped or cut off"):
        full.proceed()  # there is no room


def test_what_the_stream_does_not_take_is_not_offered():
    def stream(document: Document, *, temperature: float = 0.5) -> Iterator[Piece]:
        yield TextPiece("words")
        yield StopPiece("length")

    cell = ChatCell(stream)
    cell.send("hello")
    cell.wait()
    (news,) = [each for update, _ in updates(cell) for each in update["changed"] if each.get("about")][-1:]
    assert not any(each.get("resumable") for update, _ in updates(cell) for each in update["changed"])
    assert cell.offers["best"] == 0 and not cell.offers["inspect"] and not cell.offers["modalities"]
    assert "tokens" not in cell.offers["exports"] and "temperature" in dict(news["facts"])
    with pytest.raises(ValueError, match="prefix"):
        cell.proceed()


WRONG: list[dict[str, Any]] = [
    *({"temperature": value} for value in ("hot", [1], {}, True, float("nan"), float("inf"))),
    *({"seed": value} for value in (-1, 2**40, "x", 1e300)),
    *({"modality": value} for value in ("music", 3, ["words"])),
    {"no such setting": 1},
]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_wrong_setting_from_a_front_end_never_loses_the_message(wrong):
    cell = ChatCell(quick)
    cell.set_state({"settings": cell.settings | wrong})
    browser_says(cell, {"kind": "send", "parts": [{"text": "keep me"}]})
    with pytest.raises(ValueError, match=r"temperature|seed|modality|setting"):
        cell.wait()
    assert cell.document.segments[0] == Text("keep me") and cell.status == "error"
    cell.settings = {"temperature": None, "seed": None}
    browser_says(cell, {"kind": "again", "key": cell._conversation.tip.key})
    cell.wait()
    assert len(cell.document.turns) == 2


def damaged_avif() -> bytes:
    written = io.BytesIO()
    RED.save(written, "AVIF")
    return written.getvalue()[:-40]


@pytest.mark.parametrize(
    "part",
    [
        *({"picture": number} for number in (0, 1, -9, "x", None, 10**30, [0], math.inf)),
        *({"keep": number} for number in (0, 99, "x", None)),
        *(7, None, [], {}, True, ["text"], {"text": ["[]"]}),
    ],
    ids=repr,
)
def test_whatever_stands_beside_words_the_words_stay_and_what_was_wrong_is_said(part):
    cell = ChatCell(quick)
    browser_says(cell, {"kind": "send", "parts": [{"text": "keep me"}, part, {"text": "and me"}]}, damaged_avif())
    try:
        cell.wait()
    except ValueError as error:
        assert re.search(r"^The picture cannot be read|^A p\w+ did not arrive", str(error)) and cell.status == "error"
    else:
        assert isinstance(part, dict) and "text" in part
    texts = [each.text for each in cell.document.segments if isinstance(each, Text)]
    assert texts[0] == "keep me" and "and me" in texts


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_best_by_a_choice_is_shown_unless_somebody_has_gone_elsewhere(elsewhere):
    asked, cells = list[list[Document]](), list[ChatCell]()

    def choose(documents):
        asked.append(list(documents))
        return 2

    def stream(document: Document, *, seed: int) -> Iterator[Piece]:
        if elsewhere and seed == 10:
            browser_says(cells[0], {"kind": "walk", "key": cells[0]._conversation.strip[1].key})
        yield TextPiece(f"reply {seed}")
        yield StopPiece("end_turn")

    cells.append(cell := ChatCell(stream, defaults={"seed": 7}, choose=choose))
    assert cell.offers["best"] == 8
    cell.send("draw")
    cell.wait()
    cell.best(4)
    cell.wait()
    assert cell.document.text.endswith("reply 8" if elsewhere else "reply 9")
    assert [[each.text for each in documents] for documents in asked] == (
        [] if elsewhere else [[f"draw reply {seed}" for seed in (7, 8, 9, 10)]]
    )


def test_the_best_of_several_has_a_seed_each_and_a_stop_ends_the_rest():
    cell = ChatCell(quick, defaults={"seed": 7})
    cell.send("draw")
    cell.wait()
    cell.best(4)
    cell.wait()
    strip = cell._conversation.strip
    assert [each.settings["seed"] for each in strip] == [7, 8, 9, 10] and len(
        {str(parts_of(each)) for each in strip}
    ) == 4
    browser_says(cell, {"kind": "walk", "key": strip[2].key})
    assert keys(cell) == [strip[2].key] and cell._conversation.strip == []

    gate, reached = threading.Event(), threading.Event()

    def held(document: Document, *, seed: int) -> Iterator[Piece]:
        reached.set()
        yield TextPiece(f"{seed}")
        assert gate.wait(120)
        yield TextPiece("more")

    slow = ChatCell(held)
    gate.set()
    slow.send("draw")
    slow.wait()
    gate.clear()
    reached.clear()
    slow.best(5)
    assert reached.wait(120)
    slow.stop()
    gate.set()
    slow.wait()
    assert len(slow._conversation.exchanges) == 2, "those that never began are not there"
    for count in (1, 65, "x", None, True):
        with pytest.raises(ValueError, match="2 to 64"):
            slow._best(slow._conversation.tip, count)


def test_a_hundred_thousand_pieces_arrive_in_few_messages():
    cell = ChatCell(lambda document: (TextPiece("word ") for _ in range(100_000)))
    browser_says(cell, {"kind": "hello"})
    cell.send("talk")
    cell.wait()
    text = ""
    for update, _ in updates(cell):
        for news in update["changed"]:
            for part in news.get("reply", ()):
                assert part["start"] == len(text)
                text += part["text"]
    assert text == "word " * 100_000 and len(updates(cell)) < 1000


def test_all_branches_survive_a_file_and_another_cell_replays_them(tmp_path):
    cell = ChatCell(quick, defaults={"seed": 2})
    cell.send("draw <b>it</b>", RED)
    cell.send("again")
    cell.wait()
    cell.best(2)
    browser_says(cell, {"kind": "edit", "key": cell._conversation.exchanges[0].key, "parts": [{"text": "no"}]})
    cell.wait()
    cell.save(tmp_path / "talk.json")
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]
    other = ChatCell(quick)
    other.send("mine")
    other.wait()
    other.load(tmp_path / "talk.json")
    _, *loaded = other._conversation.exchanges
    assert len(loaded) == len(cell._conversation.exchanges) and other.document == cell.document
    for before, after in zip(cell._conversation.exchanges, loaded, strict=True):
        assert cell._conversation.document_to(before) == other._conversation.document_to(after)
        assert (before.settings, before.prefix, before.tokens) == (after.settings, after.prefix, after.tokens)
        if before.reason == "end_turn":
            assert [*map(plain, other.replay(after.key))] == [*map(plain, cell.replay(before.key))]
    assert len({id(each.message) for each in loaded}) == len(
        {id(each.message) for each in cell._conversation.exchanges}
    )
    other.load(tmp_path / "talk.json")
    assert len(other._conversation.exchanges) == 2 * len(loaded) + 1, "nothing is overwritten"


def saved() -> dict[str, Any]:
    cell = ChatCell(quick, defaults={"seed": 2})
    cell.send("one", RED)
    cell.send("two")
    cell.wait()
    return json.loads(cell._export.file("json")[0])


def damages(plain_: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places in a saved conversation."""
    if path:
        yield path
    if len(path) < 4 and isinstance(plain_, dict | list):
        names = plain_ if isinstance(plain_, dict) else range(len(plain_))
        for name in names:
            yield from damages(plain_[name], (*path, name))


def test_a_damaged_or_hostile_file_is_one_clear_line_and_changes_nothing():
    rng = np.random.default_rng(0)
    good = saved()
    text, places = json.dumps(good), list(damages(good))
    cell = ChatCell(quick)
    cell.send("mine")
    cell.wait()
    before, refusals = cell._conversation.exchanges, 0
    values = [None, -1, 10**30, "x", "<script>", [], {}, [[1]], True, 1.5, {"image": "!"}, [None]]
    files = [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"null", b"{}", b"3", text[:-9].encode(), b"PK\x03\x04"]
    for _ in range(250):
        copy = json.loads(text)
        *outer, last = places[rng.integers(len(places))]
        spot = copy
        for name in outer:
            spot = spot[name]
        if rng.random() < 0.3 and isinstance(spot, dict):
            del spot[last]
        else:
            spot[last] = values[rng.integers(len(values))]
        files.append(json.dumps(copy).encode())
    for data in files:
        count = len(cell._conversation.exchanges)
        try:
            cell._merge(data)
        except ValueError as error:
            refusals += 1
            assert "\n" not in str(error) and len(str(error)) < 400
            assert "onversation" in str(error) or "document" in str(error)
            assert len(cell._conversation.exchanges) == count
        assert cell._conversation.exchanges[:1] == before
        cell._conversation.document_to()
        cell._feed.update(whole=True)
        cell._conversation.still()
    assert refusals > 100
    browser_says(cell, {"kind": "load", "first": True, "last": True}, b"<b>nothing</b>")
    assert cell._clerk.wait(120)
    cell._line.settle()
    notices = [content["text"] for content, _ in recorder(cell).custom if content["kind"] == "notice"]
    assert len(notices) == 1 and "not JSON" in notices[0]


@pytest.mark.parametrize("state", [state for state in IN_PLACES if state != "empty"])
def test_what_is_no_file_holds_no_conversation_and_nobody_waits_for_it(tmp_path, state):
    in_place_of(tmp_path / "talk.json", state)
    cell = ChatCell(quick)
    with pytest.raises((ValueError, FileNotFoundError), match=r"talk\.json"):
        cell.load(tmp_path / "talk.json")
    assert not cell.document.segments


def test_a_conversation_that_is_read_has_no_blanks():
    good, cell = saved(), ChatCell(quick)
    cell.send("mine")
    cell.wait()
    blank = json.loads(Document.of("fill ", Blank(3)).to_json())
    for number in range(len(good["messages"])):
        copy = json.loads(json.dumps(good))
        copy["messages"][number] = blank
        with pytest.raises(ValueError, match=r"has blanks, which lab\.infill fills"):
            cell._merge(json.dumps(copy).encode())
    for document in (Document.of("fill ", Blank(3), EndTurn()), Document.of("a", EndTurn(), "b ", Blank(3))):
        with pytest.raises(ValueError, match="blanks"):
            cell._merge(document.to_json().encode())
        with pytest.raises(ValueError, match="blanks"):
            ChatCell(quick, document=document)
    assert len(cell._conversation.exchanges) == 1


def test_a_file_comes_in_parts_and_a_document_is_a_conversation_too():
    source = ChatCell(quick, defaults={"seed": 2})
    source.send("one", RED)
    source.wait()
    data = source.document.to_json().encode()
    cell = ChatCell(quick)
    half = len(data) // 2
    browser_says(cell, {"kind": "load", "first": True, "last": False}, data[:half])
    browser_says(cell, {"kind": "load", "first": False, "last": True}, data[half:])
    assert cell._clerk.wait(120)
    assert cell.document == source.document
    cell.send("go on")
    cell.wait()
    assert len(cell.document.turns) == 4


def test_the_zip_holds_markdown_in_which_no_text_is_markup_and_the_pictures():
    cell = ChatCell(quick, defaults={"seed": 2}, tokens=lambda document: np.arange(len(document)))
    cell.send("# <script>alert(1)</script> [a](b) *c*", RED)
    cell.wait()
    archive = zipfile.ZipFile(io.BytesIO(cell._export.file("markdown")[0]))
    text = archive.read("conversation.md").decode()
    assert r"\# \<script\>alert\(1\)\</script\> \[a\]\(b\) \*c\*" in text
    names = [name for name in archive.namelist() if name.endswith(".png")]
    assert len(names) == 2 and all(f"({name})" in text for name in names)
    assert PIL.Image.open(io.BytesIO(archive.read(names[0]))).size == RED.size
    ids = json.loads(cell._export.file("tokens")[0])
    assert ids["document"] == list(range(len(cell.document)))
    assert ids["replies"][0]["tokens"] == cell._conversation.tip.tokens and len(ids["replies"][0]["tokens"]) == 70


def test_a_picture_comes_with_what_the_model_sees_of_it_and_a_failure_there_is_none_of_the_replys():
    cell = ChatCell(quick, see=lambda picture: picture.convert("L").convert("RGB"))
    browser_says(cell, {"kind": "hello"})
    cell.send("look", RED)
    cell.send("words only")
    cell.regenerate()
    cell.wait()
    news = [part for update, _ in updates(cell) for each in update["changed"] for part in each.get("user", ())]
    assert [part["at"] for part in news if "reconstruction" in part] == [1]

    def broken(picture: PIL.Image.Image) -> PIL.Image.Image:
        raise RuntimeError("no")

    blind = ChatCell(quick, see=broken)
    blind.send("look", RED)
    blind.wait()
    assert len(blind.document.turns) == 2


def test_a_turn_opens_in_an_inspector_with_its_guidance_and_branches_from_there(lab):
    looks: list[Any] = []

    def look_at(document: Document, *, guidance: float | None = None) -> Any:
        looks.append((document, guidance, lab.inspect(document, guidance=guidance)))
        return looks[-1][2]

    cell = ChatCell(lab.stream, inspect=look_at, defaults={"max_tokens": 30, "guidance": 2.0, "modality": "picture"})
    for _ in range(2):
        cell.send("draw")
    cell.wait()
    first, _ = cell._conversation.path
    browser_says(cell, {"kind": "inspect", "key": first.key, "open": True})
    cell.wait()
    ((document, guidance, look),) = looks
    assert document == cell._conversation.document_to(first) and guidance == 2.0
    inspector = cell._inspectors._widgets[first.key]
    inspector.wait(60)
    news = [each for update, _ in updates(cell) for each in update["changed"] if each.get("inspector")]
    assert news[-1]["inspector"] == inspector.model_id

    start = len(lab.encode(cell._conversation.document_to(first, reply=False)))
    position = start + 4
    token = int(np.flatnonzero(lab.vocabulary.modality == Modality.IMAGE)[0])
    with pytest.raises(ValueError, match="not written by the model"):
        cell._inspectors._prefix(first, look, start - 1, None)
    prefix = cell._inspectors._prefix(first, look, position, token)
    assert prefix == [*first.tokens[:4], token] and look.modalities[position] == Modality.IMAGE
    cell._branch(first, prefix, True, 99)
    cell.wait()
    branch = cell._conversation.tip
    assert branch.origin == "force" and branch.parent is first.parent and branch.tokens[:5] == prefix
    assert branch.settings == first.settings | {"seed": 99}
    drawn = branch.segments[2]
    assert isinstance(drawn, Image) and drawn.codes is not None
    browser_says(cell, {"kind": "inspect", "key": first.key, "open": False})
    eventually(lambda: inspector.comm is None)
    with pytest.raises(ValueError, match="inspect=lab"):
        ChatCell(quick)._look_inside(first, True)


def test_a_turn_that_cannot_be_looked_into_is_one_line():
    def look_at(document: Document) -> Any:
        raise ValueError("A document of 5000 tokens cannot be inspected.")

    cell = ChatCell(quick, inspect=look_at)
    cell.send("draw")
    cell.wait()
    browser_says(cell, {"kind": "inspect", "key": cell._conversation.tip.key})
    cell.wait()
    notices = [content["text"] for content, _ in recorder(cell).custom if content["kind"] == "notice"]
    assert notices == ["This turn cannot be looked into: A document of 5000 tokens cannot be inspected."]
    assert not cell._inspectors.ids


@pytest.mark.parametrize("make", [lambda cell: cell._walk, lambda cell: cell._proceed], ids=["walk", "proceed"])
def test_an_unknown_message_is_said(make: Callable[[ChatCell], Any]):
    cell = ChatCell(quick)
    for key in (None, 10**9, "x", [], True):
        with pytest.raises(ValueError, match="no message"):
            make(cell)(cell._named({"key": key}))
