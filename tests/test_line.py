"""The line without a browser: nothing that is due is lost or sent twice, and each request is known to have arrived."""

from __future__ import annotations

import random
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from browser.counter import Counter
from widget_support import browser_says, eventually, recorder

from chameleon_widgets import ComparePanel, colab, line, threads
from chameleon_widgets.line import Part

pytestmark = pytest.mark.usefixtures("comms")


def lines(widget: Any) -> list[dict[str, Any]]:
    return [content for content, _ in recorder(widget).custom if content["kind"] == "line"]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_threads_tell_meanwhile_is_due_once(seed: int, monkeypatch: pytest.MonkeyPatch):
    """Taking away what is due lasts here, so that threads tell in the middle of it: no part is lost or comes twice."""
    counter, flushed, dice = Counter(), list[Part](), random.Random(seed)

    def slowly(parts: set[Part]) -> frozenset[Part]:
        copy = frozenset(parts)
        time.sleep(dice.random() / 500)
        return copy

    monkeypatch.setattr(line, "frozenset", slowly, raising=False)
    monkeypatch.setattr(counter._line, "_flush", lambda due: flushed.extend(due))
    monkeypatch.setattr(counter._line._pump, "_period", 0.0)

    def tell(thread: int) -> None:
        rng = random.Random(100 * seed + thread)
        for part in range(1000 * thread, 1000 * thread + 100):
            counter._line.tell(part, later=rng.random() < 0.3)
            time.sleep(rng.random() / 1000)
        counter._line.ring()

    tellers = [threading.Thread(target=tell, args=(thread,)) for thread in range(4)]
    for teller in tellers:
        teller.start()
    for teller in tellers:
        teller.join(60)
    assert counter._line.settle(60)
    assert sorted(flushed, key=str) == sorted((1000 * each + at for each in range(4) for at in range(100)), key=str)


def test_parts_told_together_or_again_before_a_flush_are_sent_once():
    counter = Counter()
    counter._line.settle()
    for _ in range(50):
        counter._line.tell("count", later=True)
    counter._line.ring()
    counter._line.settle()
    assert [content["kind"] for content, _ in recorder(counter).custom] == ["count"]


@pytest.mark.parametrize("seed", range(3))
def test_every_view_learns_that_its_last_request_has_arrived(seed: int):
    """Requests of several views, from several threads as with subshells: a later one of another view hides none."""
    counter = Counter()

    def view(name: str) -> None:
        rng = random.Random(f"{name}{seed}")
        for number in range(1, 41):
            browser_says(counter, {"kind": "add", "amount": 1, "mark": f"{name}-{number}"})
            time.sleep(rng.random() / 2000)

    views = [threading.Thread(target=view, args=(name,)) for name in ("a", "b", "c")]
    for each in views:
        each.start()
    for each in views:
        each.join()
    assert counter._line.settle()
    arrived: dict[str, int] = {}
    for answer in lines(counter):
        assert all(number > arrived.get(name, 0) for name, number in answer["requests"].items())
        arrived |= answer["requests"]
    assert arrived == {"a": 40, "b": 40, "c": 40}
    kinds = [content["kind"] for content, _ in recorder(counter).custom]
    assert kinds[-1] == "line", "what a request did is sent before the word that it has arrived"


@pytest.mark.parametrize("seed", range(3))
def test_a_request_that_comes_by_both_roads_is_handled_once(seed: int, monkeypatch: pytest.MonkeyPatch):
    """The control channel and the comm are threads that overtake each other, each in the order of the page."""
    monkeypatch.setattr(line, "get_ipython", lambda: SimpleNamespace(kernel=SimpleNamespace(control_handlers=handlers)))
    handlers: dict[str, Any] = {}
    counter = Counter()
    comm_id = counter.get_state()["control_comm"]
    assert comm_id == counter.model_id

    def by_control() -> None:
        rng = random.Random(seed)
        for number in range(1, 41):
            content = {"kind": "add", "amount": 1, "mark": f"me-{number}"}
            message = {"content": {"comm_id": comm_id, "content": content}, "buffers": []}
            handlers[line.CONTROL_MESSAGE](None, None, message)
            time.sleep(rng.random() / 2000)

    def by_comm() -> None:
        rng = random.Random(100 + seed)
        for number in range(1, 41):
            browser_says(counter, {"kind": "add", "amount": 1, "mark": f"me-{number}"})
            time.sleep(rng.random() / 2000)

    roads = [threading.Thread(target=road) for road in (by_control, by_comm)]
    for road in roads:
        road.start()
    for road in roads:
        road.join()
    assert counter._line.settle()
    assert counter.count == 40
    assert max(answer["requests"].get("me", 0) for answer in lines(counter)) == 40
    assert any(answer["control"] == ["me"] for answer in lines(counter)), "the page learns that its road is open"
    counter.close()
    handlers[line.CONTROL_MESSAGE](None, None, {"content": {"comm_id": comm_id, "content": {"kind": "hello"}}})


@pytest.mark.parametrize("mark", ["me-²", "me-٣", "me-", "me-" + "9" * 5000, "-1.5", 7, None, ["me-1"], {}])
def test_a_mark_that_is_no_number_of_a_request_is_none(mark: Any):
    counter = Counter()
    browser_says(counter, {"kind": "add", "amount": 1, "mark": mark})
    assert counter._line.settle()
    assert counter.count == 1, "the request itself is carried out"
    browser_says(counter, {"kind": "add", "amount": 1, "mark": "me-1"})
    assert counter._line.settle()
    assert counter.count == 2
    counter.close()


@pytest.mark.parametrize("shell", [None, SimpleNamespace(), SimpleNamespace(kernel=SimpleNamespace())])
def test_without_a_kernel_that_takes_them_no_control_messages_are_asked_for(
    shell: object, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(line, "get_ipython", lambda: shell)
    assert Counter().get_state()["control_comm"] == ""


def test_a_trait_set_by_a_view_is_passed_on_with_the_number_of_its_request():
    panel = ComparePanel()
    browser_says(panel, {"kind": "set", "traits": {"smoothing": 0.5}, "mark": "me-1"})
    panel._line.settle()
    assert panel.smoothing == 0.5
    answer = next(each for each in lines(panel) if each["requests"])
    assert (answer["requests"], answer["traits"]) == ({"me": 1}, {"smoothing": 0.5})
    script, cases = panel._esm, ({"smoothing": 7}, {"_esm": "x"}, {"comm": None}, {"title": "x"})
    for number, traits in enumerate(cases, 2):
        browser_says(panel, {"kind": "set", "traits": traits, "mark": f"me-{number}"})
        panel._line.settle()
        assert next(iter(traits)) in lines(panel)[-1].get("trouble", "")
    assert (panel.smoothing, panel._esm) == (0.5, script) and panel.comm is not None


def test_a_request_whose_handler_fails_has_arrived_all_the_same_and_says_so():
    counter = Counter()
    browser_says(counter, {"kind": "add", "mark": "me-1"})
    counter._line.settle()
    assert lines(counter)[-1]["requests"] == {"me": 1} and lines(counter)[-1]["trouble"] == "KeyError: 'amount'"
    browser_says(counter, {"kind": "nonsense", "mark": "me-2"})
    counter._line.settle()
    assert lines(counter)[-1]["requests"] == {"me": 2} and "trouble" not in lines(counter)[-1]


def test_a_failure_to_send_says_so_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch):
    counter = Counter()
    with monkeypatch.context() as patch:
        patch.setattr(counter, "count", 10**5000)  # no JSON
        patch.setattr(counter._line, "_flush", lambda due: 1 / 0)
        counter.add(0)
        counter._line.settle()
    assert lines(counter)[-1]["trouble"] == "ZeroDivisionError: division by zero"
    browser_says(counter, {"kind": "hello"})
    counter._line.settle()
    assert recorder(counter).custom[-2][0] == {"kind": "count", "count": 0}


def test_a_handler_whose_work_rings_is_answered_with_its_result():
    counter = Counter()
    counter._line._handlers = {"slow": lambda *_: True}
    browser_says(counter, {"kind": "slow", "mark": "me-1"})
    assert not counter._line._pump._rung and not lines(counter)
    counter.add(1)
    counter._line.settle()
    assert [content["kind"] for content, _ in recorder(counter).custom][:2] == ["count", "line"]


def test_colab_is_told_once_what_it_does_not_paint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    managers = list[bool]()
    output = SimpleNamespace(enable_custom_widget_manager=lambda: managers.append(True))
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(output=output))
    monkeypatch.setitem(colab._session, "ready", False)
    for counter in (Counter(), Counter()):
        counter._line._display()
    assert managers == [True]
    assert capsys.readouterr().out.count("Colab does not paint") == 1


def test_stills_asked_for_while_one_is_drawn_become_one(monkeypatch: pytest.MonkeyPatch):
    counter = Counter()
    gate, drawn = threading.Event(), []

    def still() -> tuple[str, str]:
        drawn.append(counter.count)
        assert gate.wait(120)
        return "", ""

    monkeypatch.setattr(counter._line._still, "_make", still)
    monkeypatch.setattr(counter._line._still, "_displayed", True)
    counter.add(1)
    eventually(lambda: drawn == [1])
    for _ in range(20):
        counter.add(1)
    gate.set()
    counter._line.settle()
    assert drawn == [1, 21], "the last one is of the last state"
    assert lines(counter)[-1]["revision"] == 2
    assert not counter._line.renew_still(rest=60) and counter._line.renew_still()


def test_a_widget_that_is_closed_or_whose_cell_is_run_again_ends(monkeypatch: pytest.MonkeyPatch):
    run = {"id": "first"}
    monkeypatch.setattr(threads, "_running_cell", lambda: ("cell", run["id"]))
    ends: list[str] = []
    closed, rerun = Counter(), Counter()
    for name, counter in (("closed", closed), ("rerun", rerun)):
        monkeypatch.setattr(counter._line, "_end", lambda name=name: ends.append(name))
    closed.close()
    closed.close()
    assert ends == ["closed"] and closed._line.ended and not rerun._line.ended
    run["id"] = "second"
    Counter()
    assert ends[-1] == "rerun" and rerun._line.ended
    browser_says(rerun, {"kind": "hello", "mark": "me-1"})
    rerun._line.settle()
    assert lines(rerun)[-1]["requests"] == {"me": 1}, "a view that is still there is answered"


def test_a_flush_that_follows_something_is_called_until_the_line_ends(monkeypatch: pytest.MonkeyPatch):
    counter = Counter()
    calls: list[int] = []
    monkeypatch.setattr(counter._line, "_flush", lambda due: not calls.append(0))
    counter._line.ring()
    eventually(lambda: len(calls) > 3)
    counter._line.end()
    counter._line._pump.drain()
    count = len(calls)
    counter._line.ring()
    counter._line._pump.drain()
    assert len(calls) == count + 1
