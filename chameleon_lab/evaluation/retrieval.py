"""Scores of looking things up: requests for flags that were never trained on, by names that only a document explains.

- name and flag are held out (`corpora.flags`); the document shows the flag on another background than is asked for
- right is a drawn picture whose four fields have the flag's colours; "everything" counts the background, too
- a wrong document, of another name, is the control; documents come by hand, or from a bank by the retriever

`python -m chameleon_lab.evaluation.retrieval MODEL` prints them; `--write` puts them into the model's card.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from chameleon_lab.chameleon import Chameleon, find
from chameleon_lab.checkpoints import native
from chameleon_lab.corpora.flags import Flag, read_flag, sample_flags
from chameleon_lab.corpora.scenes import BACKGROUNDS
from chameleon_lab.documents import Document
from chameleon_lab.evaluation.results import Result, evaluation_card, item_words, settings_words
from chameleon_lab.evaluation.scenes import Score
from chameleon_lab.generation.grammar import Rules
from chameleon_lab.generation.settings import Settings
from chameleon_lab.retrieval.bank import Bank
from chameleon_lab.retrieval.encoders import Encoder, TwoTower
from chameleon_lab.retrieval.retriever import Retriever
from chameleon_lab.retrieval.rules import LOOKUP, Hit
from chameleon_lab.signals import exit_code

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LookupTask:
    """A request for a flag on a background; two documents of it on others, and two of another name and flag."""

    flag: Flag
    background: str
    right: tuple[Document, Document]
    wrong: tuple[Document, Document]

    @property
    def request(self) -> Document:
        return self.flag.request(self.background)


def lookup_tasks(n: int, seed: int = 2026) -> list[LookupTask]:
    """`n` tasks, a pure function of (n, seed), each with a held-out name and flag of its own."""
    rng = np.random.default_rng([seed, 23])
    flags, tasks = sample_flags(rng, n + 1, held_out=True), list[LookupTask]()
    for flag, other in pairwise(flags):
        background, *others = (str(each) for each in rng.permutation(list(BACKGROUNDS))[:3])
        first, second = others
        right = flag.document(first), flag.document(second)
        tasks.append(LookupTask(flag, background, right, (other.document(first), other.document(second))))
    return tasks


NO_DOCUMENT, RIGHT, WRONG = "no document", "the right document", "a wrong document"
TWO_RIGHT, MIXED = "two right documents", "the right document and a wrong one"
ARRANGEMENTS: dict[str, Callable[[LookupTask, int], Sequence[Document]]] = {
    NO_DOCUMENT: lambda task, number: (),
    WRONG: lambda task, number: task.wrong[:1],
    RIGHT: lambda task, number: task.right[:1],
    TWO_RIGHT: lambda task, number: task.right,
    MIXED: lambda task, number: (task.right[0], task.wrong[0])[:: 1 if number % 2 else -1],
}
"""What stands before a request, by hand: of a task and its number, documents in their order."""


def draw_all(
    retriever: Retriever, tasks: Sequence[LookupTask], hits: Sequence[Sequence[Hit]], settings: Settings, seed: int
) -> list[Document]:
    """The replies to tasks, each behind its own documents and by a seed of its own."""
    seeds = [seed + index for index in range(len(tasks))]
    return draw_requests(retriever, [task.request for task in tasks], hits, settings, seeds)


def draw_requests(
    retriever: Retriever,
    requests: Sequence[Document],
    hits: Sequence[Sequence[Hit]],
    settings: Settings,
    seeds: Sequence[int],
    grammar: Rules | None = None,
) -> list[Document]:
    """The replies to requests, each behind its own documents. Those whose documents are equally long go together, since
    guidance has to know where they end."""
    prompts = [retriever.prompt(request, settings, some) for request, some in zip(requests, hits, strict=True)]
    groups: dict[Settings, list[int]] = {}
    for index, (_, chosen, _, _) in enumerate(prompts):
        groups.setdefault(chosen, []).append(index)
    replies = [Document()] * len(requests)
    for chosen, members in groups.items():
        documents = [prompts[index][0] for index in members]
        some = retriever.lab.engine.generate(documents, chosen, [seeds[index] for index in members], grammar)
        for index, reply in zip(members, some, strict=True):
            replies[index] = reply
    return replies


def judge_flags(tasks: Sequence[LookupTask], replies: Sequence[Document]) -> dict[str, Score]:
    """The shares of tasks with a picture whose four fields are right ("flag"), and whose background is, too."""
    verdicts = flag_verdicts(tasks, replies)
    return {measure: Score(sum(rights) / len(tasks), len(tasks)) for measure, rights in verdicts.items()}


def flag_verdicts(tasks: Sequence[LookupTask], replies: Sequence[Document]) -> dict[str, list[bool]]:
    """By measure, whether each task's reply is right."""
    rights, wholes = list[bool](), list[bool]()
    for task, reply in zip(tasks, replies, strict=True):
        colours, background = read_flag(reply.pictures[0]) if len(reply.pictures) == 1 else ((), "")
        rights.append(colours == task.flag.colours)
        wholes.append(rights[-1] and background == task.background)
    return {"flag": rights, "everything": wholes}


def evaluate_retrieval(
    lab: Chameleon, encoder: Encoder, n: int = 200, guidances: Sequence[float] = (1.0, 1.5, 3.0), seed: int = 2026
) -> Iterator[tuple[str, float, dict[str, Score]]]:
    """(what stood before, guidance, scores): each of `ARRANGEMENTS`, then 1 and 2 documents from a bank of all."""
    for name, guidance, results in retrieval_results(lab, encoder, n, guidances, seed):
        yield name, guidance, {measure: Score.of(result) for measure, result in results.items()}


def retrieval_results(
    lab: Chameleon, encoder: Encoder, n: int = 200, guidances: Sequence[float] = (1.0, 1.5, 3.0), seed: int = 2026
) -> Iterator[tuple[str, float, dict[str, Result]]]:
    """What `evaluate_retrieval` gives, each with its protocol and its tasks' verdicts."""
    tasks = lookup_tasks(n, seed)
    bank = Bank.of([document for task in tasks for document in task.right], encoder, lab.tokenizer)
    retriever = Retriever(lab, bank, encoder)
    ways = {
        name: [[Hit(document, 1.0, None, "hand") for document in arrange(task, number)]
               for number, task in enumerate(tasks)]
        for name, arrange in ARRANGEMENTS.items()
    }  # fmt: skip
    for count in (1, 2):
        rules = replace(LOOKUP, count=count)
        requests = [task.request for task in tasks]
        ways[f"{count} looked up"] = rules.choose_each(bank, encoder, requests, range(len(tasks)))
    for name, hits in ways.items():
        for guidance in guidances:
            settings = lab.settings.changed(guidance=guidance)
            verdicts = flag_verdicts(tasks, draw_all(retriever, tasks, hits, settings, seed))
            results = dict[str, Result]()
            for measure, rights in verdicts.items():
                card = evaluation_card(
                    f"{measure}, {name}",
                    f"colours by corpora.flags.read_flag; {settings_words(settings)}",
                    "flags with held-out names",
                    [
                        "\n".join([*(item_words(hit.document) for hit in some), task.request.text])
                        for task, some in zip(tasks, hits, strict=True)
                    ],
                    n=len(rights),
                    lab=lab,
                    pictures=True,
                    seed=seed,
                )
                results[measure] = Result.of(rights, card)
            yield name, guidance, results


def evaluate_retrieval_command(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or name of a model")
    parser.add_argument("--encoder", help="folder of a two-tower encoder (default: the model's folder/encoder)")
    parser.add_argument("-n", type=int, default=200, help="requests (default: 200)")
    parser.add_argument("--guidance", type=float, nargs="+", default=(1.0, 1.5, 3.0), help="(default: 1, 1.5 and 3)")
    parser.add_argument("--write", action="store_true", help="put the scores into the model's card")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder, lab = find(options.model), Chameleon.load(options.model)
    encoder = TwoTower.load(options.encoder or folder / "encoder")
    for name, guidance, scores in evaluate_retrieval(lab, encoder, options.n, options.guidance):
        log.info("%-36s guidance %-4g flag %s   everything %s", name, guidance, *scores.values())
        if options.write:  # at once: to measure all takes minutes
            card = native.read_model_card(folder)
            rows = {f"{name}, guidance {guidance:g}": {key: [each.share, each.n] for key, each in scores.items()}}
            native.write_card(folder, {**card, "retrieval": card.get("retrieval", {}) | rows})


if __name__ == "__main__":
    raise SystemExit(exit_code(evaluate_retrieval_command))
