"""The arena without a browser: what it sends, what it writes, and that nobody sees whose reply is whose."""

from __future__ import annotations

import comm
import pytest
from test_studies import pairs
from widget_support import Recorder, browser_says, recorder

from chameleon_lab.studies import Study, all_judgements
from chameleon_widgets import Arena


@pytest.fixture
def open_arena(monkeypatch):
    monkeypatch.setattr(comm, "create_comm", Recorder)
    arenas: list[Arena] = []

    def open_(folder, annotator="Ann", study: Study | None = None) -> Arena:
        arenas.append(Arena(folder, annotator, study))
        arenas[-1]._line.settle()
        return arenas[-1]

    yield open_
    for arena in arenas:
        arena.close()


def items(arena):
    arena._line.settle()
    return [content for content, _ in recorder(arena).custom if content["kind"] == "item"]


def answer(arena, number, **answers):
    browser_says(arena, {"kind": "answer", "number": number, "answers": answers or {"better": "first"}})


def test_an_answer_is_written_by_the_sides_of_the_study_before_the_next_item_shows(tmp_path, open_arena):
    study = pairs()
    arena = open_arena(tmp_path, "Ann", study)
    order = study.order("Ann")
    for number, (place, sides) in enumerate(order):
        answer(arena, number)
        (judgement,) = [each for each in all_judgements(tmp_path) if each.item == study.items[place].name]
        assert judgement.answers == {"better": ("first", "second")[sides[0]]}
    shown = items(arena)
    assert shown[-1]["number"] == shown[-1]["total"] == shown[-1]["judged"] == 10 and not shown[-1]["replies"]
    assert arena.judgements == all_judgements(tmp_path)
    assert arena._line.mimebundle()["text/plain"] == "Ann has judged 10 of 10 in ours or theirs"


def test_nothing_tells_whose_reply_it_is(tmp_path, open_arena):
    arena = open_arena(tmp_path, "Ann", Study.of_pairs("a", pairs().items[0].replies[:1] * 3, {
        "secret one": lambda prompt: prompt, "secret two": lambda prompt: prompt,
    }))  # fmt: skip
    answer(arena, 0)
    assert "secret" not in str(items(arena)) + str(arena._line.mimebundle())


def test_a_second_click_is_not_taken_for_an_answer_to_the_next(tmp_path, open_arena):
    arena = open_arena(tmp_path, "Ann", pairs())
    answer(arena, 0)
    answer(arena, 0, better="second")
    assert len(arena.judgements) == 1 and items(arena)[-1]["number"] == 1


def test_a_new_kernel_goes_on_where_the_last_one_ended(tmp_path, open_arena):
    arena = open_arena(tmp_path, "Ann", pairs())
    answer(arena, 0)
    answer(arena, 1)
    arena._line.end()
    answer(arena, 2)
    arena._line.settle()
    assert "run its cell again" in str(recorder(arena).custom[-1]) and len(all_judgements(tmp_path)) == 2
    assert items(open_arena(tmp_path))[-1]["number"] == 2


def test_one_goes_back_and_changes_ones_mind(tmp_path, open_arena):
    arena = open_arena(tmp_path, "Ann", pairs())
    answer(arena, 0)
    browser_says(arena, {"kind": "back"})
    shown = items(arena)[-1]
    assert (shown["number"], shown["before"]) == (0, {"better": "first"})
    answer(arena, 0, better="same")
    assert [each.answers for each in arena.judgements] == [{"better": "same"}]


@pytest.mark.parametrize("answers", [{"better": "maybe"}, {"worse": "first"}, {}, "first", None])
def test_an_answer_that_is_none_is_an_error_and_not_written(answers, tmp_path, open_arena):
    arena = open_arena(tmp_path, "Ann", pairs())
    browser_says(arena, {"kind": "answer", "number": 0, "answers": answers})
    arena._line.settle()
    assert recorder(arena).custom[-1][0]["trouble"] and not all_judgements(tmp_path)


def test_two_of_one_name_and_another_study_are_refused(tmp_path, open_arena):
    open_arena(tmp_path, "Ann", pairs())
    with pytest.raises(ValueError, match="somebody judges as 'Ann'"):
        open_arena(tmp_path)
    with pytest.raises(ValueError, match="holds another study"):
        open_arena(tmp_path, "Ben", pairs(second="a third"))
