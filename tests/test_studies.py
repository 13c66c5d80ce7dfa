"""Studies, journals, and what judgements come to."""

from __future__ import annotations

import csv
import io
import json
import logging
import multiprocessing
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from chameleon_lab.documents import Document
from chameleon_lab.evaluation.intervals import wilson_interval
from chameleon_lab.evaluation.judgement import PAPER_PAIRS, PairCounts
from chameleon_lab.evaluation.verdicts import (
    agreement_table,
    answer_table,
    pair_outcome,
    ratings_of,
    safety_report,
    safety_rows,
    sheet_report,
    sheet_rows,
)
from chameleon_lab.studies import (
    ABSOLUTE_SHEET,
    SAFETY,
    Journal,
    Judgement,
    Study,
    StudyItem,
    StudyQuestion,
    all_judgements,
    gather_judgements,
    read_judgements,
    read_prompts,
    write_judgements,
)

PROMPTS = [Document.of(f"question {number}") for number in range(8)]


def echo(prompt: Document) -> Document:
    return Document.of("a reply to ", prompt, PIL.Image.new("RGB", (4, 4), "red"))


def pairs(checks: int = 2, second: str = "another", names: str = "12345678") -> Study:
    replies = [Document.of(f"{second} {number}") for number in range(len(names))]
    models = {"ours": echo, "theirs": replies}
    return Study.of_pairs("ours or theirs", PROMPTS[: len(names)], models, checks=checks, names=names)


def judged(study: Study, votes: dict[str, str]) -> list[Judgement]:
    """Each annotator's vote for all pairs, "." for none: 1 first, 0 same, 2 second."""
    names = {"1": "first", "0": "same", "2": "second"}
    items = [item for item in study.items if not item.expected]
    return [
        Judgement(person, item.name, {"better": names[vote]})
        for person, string in votes.items()
        for item, vote in zip(items, string, strict=True)
        if vote != "."
    ]


def test_a_study_comes_back_from_its_folder(tmp_path):
    study = pairs()
    study.write(tmp_path)
    back = Study.read(tmp_path)
    assert back == study and back.fingerprint == study.fingerprint
    study.write(tmp_path)  # once more changes nothing
    with pytest.raises(ValueError, match="holds another study"):
        pairs(second="a third").write(tmp_path)
    for change, why in (({"models": "ab"}, "no list of names, but 'ab'"), ({"name": None}, "its name is no text")):
        (tmp_path / "study.json").write_text(json.dumps(study.to_plain() | change))
        with pytest.raises(ValueError, match=f"study.json is damaged: .*{why}"):
            Study.read(tmp_path)


def test_sides_and_order_are_each_annotators_own_and_balanced():
    study = pairs(checks=0)
    orders = {name: study.order(name) for name in ("Ann", "Ben")}
    assert orders["Ann"] == study.order("Ann") != orders["Ben"]
    for order in orders.values():
        assert sorted(place for place, _ in order) == list(range(8))
        assert sum(sides == (1, 0) for _, sides in order) == 4


def test_answers_are_on_the_disk_and_a_new_kernel_goes_on_there(tmp_path):
    pairs().write(tmp_path)
    journal = Journal(tmp_path, "Ann")
    journal.add(Judgement("Ann", "1", {"better": "first"}, 2.5))
    assert [each.item for each in read_judgements(journal.path, journal.study)] == ["1"]
    journal.add(Judgement("Ann", "1", {"better": "same"}))
    with pytest.raises(ValueError, match="judgement is of 'Ben', and the journal of 'Ann'"):
        journal.add(Judgement("Ben", "1", {"better": "first"}))
    journal.close()
    again = Journal(tmp_path, "Ann")
    assert again.judgements == {"1": Judgement("Ann", "1", {"better": "same"})}
    again.close()


def _judge_and_die(folder: Path) -> None:
    import os

    journal = Journal(folder, "Ann")
    journal.add(Judgement("Ann", "1", {"better": "first"}))
    journal._file.write(b'{"item": "2", "ans')
    journal._file.flush()
    os._exit(9)


def test_what_a_killed_kernel_wrote_is_there_and_the_cut_line_is_passed_over(tmp_path, caplog):
    pairs().write(tmp_path)
    process = multiprocessing.get_context("fork").Process(target=_judge_and_die, args=(tmp_path,))
    process.start()
    process.join()
    with caplog.at_level(logging.WARNING):
        journal = Journal(tmp_path, "Ann")
    assert list(journal.judgements) == ["1"] and "line 3, was cut short" in caplog.text
    journal.add(Judgement("Ann", "3", {"better": "second"}))
    journal.close()
    assert [each.item for each in all_judgements(tmp_path)] == ["1", "3"]


def test_a_journal_killed_at_any_byte_goes_on_and_belongs_to_its_study(tmp_path):
    pairs(names="åçé").write(tmp_path / "whole")
    journal = Journal(tmp_path / "whole", "Ann")
    for item in ("å", "ç"):
        journal.add(Judgement("Ann", item, {"better": "first"}))
    journal.close()
    whole = journal.path.read_bytes()
    place = tmp_path / "cut"
    pairs(names="åçé").write(place)
    (place / "judges").mkdir()
    (place / "judges" / "Ann.jsonl").touch()
    another = pairs(second="a third", names="åçé")
    for length in range(len(whole)):
        zeros = b"\0" * (5 * (length % 2))  # as a power cut leaves them
        (place / "judges" / "Ann.jsonl").write_bytes(whole[:length] + zeros)
        again = Journal(place, "Ann")
        lines = whole.split(b"\n")[1:-1]
        answers = [line for line in whole[:length].split(b"\n") if line in lines]
        assert len(again.judgements) == len(answers)
        again.add(Judgement("Ann", "é", {"better": "second"}))
        again.close()
        Journal(place, "Ann").close()  # now that the cut line lies in the middle
        written = again.path.read_bytes()
        assert written.startswith(whole[:length]) and len(all_judgements(place)) == len(answers) + 1
        with pytest.raises(ValueError, match="is of another study"):
            read_judgements(again.path, another)


def test_two_annotators_of_one_name_are_refused(tmp_path):
    pairs().write(tmp_path)
    journal = Journal(tmp_path, "Ann")
    with pytest.raises(ValueError, match="somebody judges as 'Ann' in another cell"):
        Journal(tmp_path, "Ann")
    other = Journal(tmp_path, "Ben")
    journal.close()
    Journal(tmp_path, "Ann").close()
    other.close()
    for name in ("", "../Ann", "a" * 65, "a/b", "Ann ", "Ann.", "Ann\n", "a\0b", None, 7):
        with pytest.raises(ValueError, match="annotator's name"):
            Journal(tmp_path, name)  # pyright: ignore[reportArgumentType]


DAMAGED: dict[str, tuple[Any, str]] = {
    "not JSON": ("nonsense}", r"line 2, is not JSON"),
    "no object": ("[1]", r"line 2, is no judgement: it holds no object"),
    "a column": ({"item": "1", "answers": {"better": "same"}, "mood": 1}, "a column 'mood'"),
    "an item": ({"item": "99", "answers": {"better": "same"}}, "no item '99'"),
    "an answer": ({"item": "1", "answers": {"better": "maybe"}}, "'maybe' is no answer to 'better'"),
    "a question": ({"item": "1", "answers": {"worse": "first"}}, "no question 'worse'"),
    "no answers": ({"item": "1"}, "it lacks 'answers'"),
    "half": ({"item": "1", "answers": {}}, "No answer is given to better"),
    "nobody": ({"item": "1", "answers": {"better": "same"}, "annotator": None}, "annotator is no text, but 'None'"),
    "no time": ({"item": "1", "answers": {"better": "same"}, "seconds": float("nan")}, "no finite number"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_line_is_named_and_nothing_is_lost(kind, tmp_path):
    study, (wrong, why) = pairs(), DAMAGED[kind]
    study.write(tmp_path)
    journal = Journal(tmp_path, "Ann")
    journal.close()
    good = json.dumps({"item": "2", "answers": {"better": "same"}})
    line = wrong if isinstance(wrong, str) else json.dumps(wrong)
    text = f"{journal.path.read_text()}{line}\n{good}\n"
    journal.path.write_text(text)
    with pytest.raises(ValueError, match=why) as caught:
        Journal(tmp_path, "Ann")
    assert "line 2" in str(caught.value) and journal.path.read_text() == text
    journal.path.write_text(text.replace(f"{line}\n", ""))
    assert [each.item for each in all_judgements(tmp_path)] == ["2"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_tables_go_out_and_come_back_and_are_not_another_studys(suffix, tmp_path):
    study = pairs()
    judgements = judged(study, {"Ann": "1102.021", "Ben": "11122000"})
    path = tmp_path / f"table{suffix}"
    write_judgements(judgements, study, path)
    assert read_judgements(path, study) == judgements
    with pytest.raises(ValueError, match="is of another study"):
        read_judgements(path, pairs(second="a third"))
    if suffix == ".jsonl":
        path.write_text(path.read_text().partition("\n")[2])
        with pytest.raises(ValueError, match="line 1, is a judgement, and no line before it says of which study"):
            read_judgements(path, study)
    (tmp_path / "bare.csv").write_text("item,annotator\n1,Ann\n")
    with pytest.raises(ValueError, match="does not name the columns study and item"):
        read_judgements(tmp_path / "bare.csv", study)
    with pytest.raises(ValueError, match=r"written as \.csv or \.jsonl"):
        write_judgements(judgements, study, tmp_path / "table.xlsx")


def pairs_of(source: Any = echo, **about: Any) -> Study:
    return Study.of_pairs("x", PROMPTS, {"a": source, "b": echo}, **about)


BAD_STUDIES: dict[str, tuple[Any, str]] = {
    "twice": (lambda: Study.of_pairs("x", PROMPTS, {"a": echo, "b": echo}, names=["1"] * 8), "Two items .* '1'"),
    "few replies": (lambda: Study.of_pairs("x", PROMPTS, {"a": echo, "b": PROMPTS[:3]}), "'b' has 3 replies to 8"),
    "three": (lambda: Study.of_pairs("x", PROMPTS, {"a": echo, "b": echo, "c": echo}), "of two models, not of 3"),
    "none": (lambda: Study.of_pairs("x", [], {"a": echo, "b": echo}), "needs one item"),
    "few categories": (lambda: pairs_of(categories=["a"]), "1 categories of 8 prompts"),
    "many names": (lambda: pairs_of(names=list("abcdefghij")), "10 names of 8 prompts"),
    "no reply": (lambda: pairs_of(lambda _: None), "the reply of 'a' to prompt 1 is a NoneType"),
    "a number of checks": (lambda: pairs_of(checks=-1), "checks of attention must be a whole number from 0"),
    "a return in a name": (lambda: pairs_of(names=["a\rb", *"1234567"]), "no name in a study"),
    "half a character": (lambda: pairs_of(names=["\ud800", *"1234567"]), "no name in a study"),
    "answers without words": (lambda: StudyQuestion("q", "?", ["yes", "no"]), "words by name"),  # pyright: ignore[reportArgumentType]
    "no answers": (lambda: StudyQuestion("q", "?", {}), "words by name"),
    "another column": (lambda: StudyQuestion("seconds", "?", {"a": "A"}), "another column"),
    "a question twice": (lambda: Study.of_replies("x", PROMPTS, {"a": echo}, SAFETY * 2), "Two questions .* 'safety'"),
    "odd": (lambda: Study("x", ("a",), ABSOLUTE_SHEET, (StudyItem("1", PROMPTS[0], ()),)), "has 0 replies"),
}


@pytest.mark.parametrize("kind", BAD_STUDIES)
def test_a_study_that_cannot_be_is_refused(kind):
    make, why = BAD_STUDIES[kind]
    with pytest.raises(ValueError, match=why):
        make()


def test_texts_numbers_and_iterators_make_a_study_that_is_the_same_once_it_is_read(tmp_path):
    prompts, replies = ("one", "two"), iter(["1 \ud83d", Document.of("2")])
    study = Study.of_pairs("x", prompts, {"a": replies, "b": lambda prompt: prompt.text}, names=[1, 2])  # pyright: ignore[reportArgumentType]
    study.write(tmp_path)
    study.write(tmp_path)
    assert Study.read(tmp_path).fingerprint == study.fingerprint
    assert [item.replies[0].text for item in Study.read(tmp_path).items] == ["1 \ufffd", "2"]
    counts = list[int]()
    Study.of_replies("x", prompts, {"a": lambda prompt: prompt}, progress=counts.append)
    assert counts == [1, 1]


def test_a_model_that_fails_says_at_which_prompt():
    def source(prompt: Document) -> Document:
        return 1 / 0 if "5" in prompt.text else prompt  # pyright: ignore[reportReturnType]

    with pytest.raises(ZeroDivisionError) as caught:
        pairs_of(source)
    assert "'a', asked for its reply to prompt 6 of 8" in caught.value.__notes__[0]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_whatever_items_and_questions_are_called_a_table_of_them_comes_back(suffix, tmp_path):
    names = ["=cmd()", "a,b", 'a"b', "a\nb", "", " a ", "\u2028", "naïve 😀"]
    answers = {name: name for name in ("yes, no", '"', "a\nb")}
    questions = tuple(StudyQuestion(name, "?", answers) for name in ("q,", '"q"', "a\nb"))
    study = Study.of_replies("x", PROMPTS, {"a": echo}, questions, names=names)
    judgements = [
        Judgement("Ann", name, dict(zip([each.name for each in questions], answers, strict=True))) for name in names
    ]
    path = tmp_path / f"table{suffix}"
    write_judgements(judgements, study, path)
    assert read_judgements(path, study) == judgements
    if suffix == ".csv":  # as Excel writes it anew
        rows = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))
        for mark in ",;\t":
            with path.open("w", newline="", encoding="utf-8-sig") as file:
                csv.writer(file, delimiter=mark).writerows(rows)
            assert read_judgements(path, study) == judgements


@pytest.mark.parametrize(
    "summary", [pair_outcome, safety_report, sheet_report, answer_table, agreement_table, ratings_of]
)
def test_judgements_of_something_else_are_one_clear_error(summary):
    study = pairs(0)
    for item, answers, why in (
        ("nope", {"better": "same"}, "'Ann' judged 'nope', and 'ours or theirs' has no such item"),
        ("1", {"better": "perhaps"}, "'perhaps' is no answer"),
        ("1", {"worse": "same"}, "no question 'worse'"),
        ("1", {}, "No answer is given to better"),
    ):
        with pytest.raises(ValueError, match=why):
            summary(study, [Judgement("Ann", item, answers)])
    with pytest.raises(ValueError, match="Nobody has judged"):
        summary(study, [])


def test_a_category_is_a_cell_of_the_report_and_no_markup():
    names = ["a|b", "<img src=x>", "![x](http://there/x.png)", "two\nlines", "`code`"]
    study = Study.of_replies("safe?", PROMPTS[:5], {"ours": echo}, SAFETY, categories=names)
    report = safety_report(study, [Judgement("Ann", item.name, {"safety": "safe"}) for item in study.items])
    lines = report.splitlines()[4:]
    assert len(lines) == 6 and all(len(re.split(r"(?<!\\)\|", line)) == 7 for line in lines)
    assert not re.search(r"(?<!\\)[<\[`]", report)


def test_an_outcome_counts_majorities_and_checks_by_themselves():
    study = pairs()
    judgements = judged(study, {"Ann": "11110002", "Ben": "11100.12", "Cem": "1112021."})
    checks = [item for item in study.items if item.expected]
    judgements += [Judgement("Ann", item.name, item.expected) for item in checks]
    judgements += [Judgement("Ben", item.name, {"better": "same"}) for item in checks]
    outcome = pair_outcome(study, judgements)
    assert outcome.counts == PairCounts.of(ratings_of(study, judgements)) == PairCounts(4, 3, 1, 2)
    assert outcome.attention == {"Ann": (2, 2), "Ben": (0, 2), "Cem": (0, 0)}
    assert "4 won, 3 the same (2 without a majority), 1 lost" in str(outcome)
    assert "checks of attention passed: Ann 2 of 2, Ben 0 of 2" in str(outcome)
    alone = pair_outcome(study, judged(study, {"Ann": "11111111"}))
    assert alone.alpha is None and alone.decided and "ours is better" in str(alone)


def test_the_papers_counts_give_its_rates_through_a_study():
    """1,048 pairs and one judgement each, in the paper's counts: its win rate comes out of the journal's answers."""
    counts = PAPER_PAIRS["GPT-4V+"].counts
    votes = "1" * counts.wins + "0" * counts.ties + "2" * counts.losses
    prompts = [Document.of(str(number)) for number in range(len(votes))]
    study = Study.of_pairs("paper", prompts, {"Chameleon": prompts, "GPT-4V+": prompts})
    outcome = pair_outcome(study, judged(study, {"majority": votes}))
    assert len(votes) == 1048 and round(100 * outcome.counts.win_rate, 1) == PAPER_PAIRS["GPT-4V+"].rate


def test_a_safety_sheet_is_a_row_a_category_by_majority():
    study = Study.of_replies("safe?", PROMPTS[:4], {"ours": echo}, SAFETY, categories=["hate", "hate", "self", "self"])
    verdicts = {"Ann": ("safe", "unsafe", "safe", "unsure"), "Ben": ("safe", "unsafe", "unsafe", "unsure")}
    judgements = [
        Judgement(person, item.name, {"safety": answer})
        for person, answers in verdicts.items()
        for item, answer in zip(study.items, answers, strict=True)
    ]
    rows = {row.category: (row.safe, row.unsafe, row.unsure) for row in safety_rows(study, judgements)}
    assert rows == {"hate": (1, 1, 0), "self": (0, 0, 2), "all": (1, 1, 2)}
    low, high = wilson_interval(0.25, 4)
    assert f"| **all** | 1 | 1 | 2 | 25.00 ({100 * low:.2f} to {100 * high:.2f}) |" in safety_report(study, judgements)
    with pytest.raises(ValueError, match="Nobody has judged"):
        safety_rows(study, [])
    study = Study.of_replies("safe?", PROMPTS[:4], {"ours": echo}, SAFETY, categories=["all", "all", "self", "self"])
    rows = [(row.category, row.n) for row in safety_rows(study, judgements)]
    assert rows == [("all", 2), ("self", 2), ("all", 4)]  # a category may be called as the last row is


def test_the_papers_safety_shares_have_their_intervals():
    """19 of 20,000 is what the paper prints for the 34B, as 0.095 %."""
    low, high = wilson_interval(19 / 20_000, 20_000)
    assert (round(100 * low, 3), round(100 * high, 3)) == (0.061, 0.148)


def test_a_sheet_gives_the_share_of_each_answer():
    study = Study.of_replies("sheet", PROMPTS[:2], {"ours": echo})
    answers = {question.name: next(iter(question.answers)) for question in ABSOLUTE_SHEET}
    table = answer_table(study, [Judgement("Ann", "1", answers), Judgement("Ann", "2", answers | {"accuracy": "no"})])
    assert table["fulfilment"] == {"fully": 1, "partially": 0, "not": 0} and table["accuracy"]["no"] == 0.5
    assert np.isclose(sum(table["accuracy"].values()), 1)


def test_prompts_as_the_released_file_has_them(tmp_path):
    rows = [
        {"id": "a1", "prompt": "What is <img> beside <img>?", "task_type": "Comparison", "image_urls": ["u", "v"]},
        {"id": "a2", "prompt": "Tell a story", "task_type": "Story", "image_urls": None},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (name, document, category), (_, story, _) = read_prompts(path)
    assert (name, category, story) == ("a1", "Comparison", Document.of("Tell a story"))
    assert document == Document.of("What is [picture: u] beside [picture: v]?")
    for wrong, why in (
        ('{"id": 1}', "it lacks 'prompt'"),
        ('{"id": 1, "prompt": "<img>"}', "1 <img> and 0 addresses"),
        ("[]", "no object with id, prompt"),
        ("x", "not JSON"),
        ('{"id": null, "prompt": "a"}', "its id is no text, but 'None'"),
        ('{"id": 1, "prompt": null}', "its prompt is no text, but 'None'"),
        ('{"id": 1, "prompt": " "}', "its prompt is empty"),
        ('{"id": 1, "prompt": "a", "task_type": ["x"]}', "its task_type is no text"),
        ('{"id": 1, "prompt": "<img>", "image_urls": "u"}', "its image_urls are no list of addresses, but 'u'"),
        ('{"id": 1, "prompt": "<img>", "image_urls": [null]}', "its image_urls are no list of addresses"),
        ('{"id": "a2", "prompt": "another"}', "line 1 has its id 'a2', too"),
    ):
        path.write_text(f"{json.dumps(rows[1])}\n{wrong}\n")
        with pytest.raises(ValueError, match=rf"prompts\.jsonl, line 2.*{re.escape(why)}"):
            read_prompts(path)
    path.write_text("")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(path)


def test_a_name_that_is_anothers_but_for_capitals_or_spaces_is_refused(tmp_path):
    pairs().write(tmp_path)
    Journal(tmp_path, "Ann B").close()
    for name in ("ann b", "ANN B", "Ann  B", "Ａnn B"):
        with pytest.raises(ValueError, match=r"are one name .* go on as 'Ann B' if that is you"):
            Journal(tmp_path, name)
    Journal(tmp_path, "Ann B").close()
    assert [path.stem for path in (tmp_path / "judges").iterdir()] == ["Ann B"]


def test_files_of_several_machines_are_gathered_and_two_people_of_one_name_are_named(tmp_path):
    study = pairs()
    tables = {
        "one": {"Ann": "1102.021"},
        "two": {"Ben": "11122000"},
        "again": {"Ann": "1102...."},
        "other": {"ann": "2......."},
    }
    for name, votes in tables.items():
        write_judgements(judged(study, votes), study, tmp_path / f"{name}.csv")
    paths = {name: tmp_path / f"{name}.csv" for name in tables}
    whole = gather_judgements([paths["one"], paths["two"], paths["again"]], study)
    assert sorted(map(str, whole)) == sorted(map(str, judged(study, tables["one"] | tables["two"])))
    with pytest.raises(ValueError, match=r"one\.csv and .*other\.csv both hold an annotator 'ann'.*rename one of them"):
        gather_judgements([paths["one"], paths["other"]], study)
    twice = judged(study, {"Ann": "1......."}) + judged(study, {"Ann": "2......."})
    with pytest.raises(ValueError, match="'Ann' answers 'better' of the item '1' twice"):
        pair_outcome(study, twice)


def test_a_sheet_is_counted_by_majority_with_intervals():
    study = Study.of_replies("sheet", PROMPTS[:4], {"ours": echo})
    usual = {question.name: next(iter(question.answers)) for question in ABSOLUTE_SHEET}
    votes = {"Ann": ("fully", "fully", "not", "fully"), "Ben": ("fully", "not", "not", "partially")}
    votes["Cem"] = ("fully", "partially", "not", "fully")
    judgements = [
        Judgement(person, item.name, usual | {"fulfilment": answer})
        for person, answers in votes.items()
        for item, answer in zip(study.items, answers, strict=True)
    ]
    fulfilment, *others = sheet_rows(study, judgements)
    assert fulfilment.counts == {"fully": 2, "partially": 0, "not": 1} and fulfilment.undecided == 1
    assert fulfilment.share("fully")[1:3] == wilson_interval(0.5, 4) and fulfilment.alpha is not None
    assert all(row.alpha is None and row.n == 4 for row in others)  # all said the same
    assert "| fulfilment | fully 50.0 (" in sheet_report(study, judgements)
    table = agreement_table(study, judgements, "fulfilment").split("\n")
    assert table[2] == "| Ann | 100 | 50 | 75 |" and len(table) == 5
    with pytest.raises(ValueError, match="Nobody has judged"):
        sheet_rows(study, [])


def test_the_papers_fulfilment_comes_out_of_a_sheet():
    """55.2 % of 1,048 prompts: the share of a sheet with as many items fulfilled."""
    prompts = [Document.of(str(number)) for number in range(1048)]
    study = Study.of_replies("paper", prompts, {"Chameleon": prompts}, ABSOLUTE_SHEET[:1])
    answers = ["fully"] * 578 + ["not"] * 470
    judgements = [
        Judgement("majority", item.name, {"fulfilment": answer})
        for item, answer in zip(study.items, answers, strict=True)
    ]
    (row,) = sheet_rows(study, judgements)
    assert round(100 * row.share("fully").value, 1) == 55.2


def test_pictures_of_the_released_prompts_may_be_given_by_address(tmp_path):
    row = {"id": "a", "prompt": "<img>What is <img>this?", "task_type": "", "image_urls": ["u", "v"]}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    PIL.Image.new("RGB", (3, 3), "blue").save(tmp_path / "v.png")
    ((_, document, _),) = read_prompts(tmp_path / "p.jsonl", {"v": tmp_path / "v.png"})
    assert document.text == "[picture: u]What is  this?" and len(document.pictures) == 1
    assert len(read_prompts(tmp_path / "p.jsonl")[0][1]) == 1  # neighbouring words are one text
