"""Too many pictures, or too few: what a corpus holds of each modality, and how often a model then draws.

Chameleon's authors warn of it: from data out of balance a model learns how likely a picture is whatever is asked, and
so mutes one modality or overproduces it (arXiv 2405.09818, section 3.1). `Composition` counts what a mixture would
teach, before training. `picture_rates` asks a model: prompts that ask for a picture, that do not, and that may be
answered by either. `balance_experiment` is the training of a balance;
`python -m chameleon_lab.evaluation.balance FOLDER` runs all of `BALANCES` over seeds, and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import html
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.alignment import OPEN_REQUESTS
from chameleon_lab.corpora.conversations import draw_request
from chameleon_lab.corpora.packing import TokenizedDocument
from chameleon_lab.corpora.scenes import sample_where
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.evaluation.intervals import Mean
from chameleon_lab.evaluation.scenes import Score, prompts
from chameleon_lab.files import intact, read_json_lines
from chameleon_lab.parts import require_fields
from chameleon_lab.signals import exit_code
from chameleon_lab.storage import write_file
from chameleon_lab.training.alignment import ALIGNMENT, Conversations, SceneCategory
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.experiments import Experiment
from chameleon_lab.training.folder import locks_folder
from chameleon_lab.vocabulary import Modality, Vocabulary

log = logging.getLogger(__name__)

# What a corpus holds


@dataclass(frozen=True)
class Holdings:
    """What a part of a corpus holds: documents, tokens and learned tokens by modality ("text", "image", "special").

    An answer is a turn with something to learn, or a whole document without turns; `drawn` answers have a picture.
    """

    documents: int
    tokens: Mapping[str, int]
    learned: Mapping[str, int]
    answers: int
    drawn: int

    @classmethod
    def of(cls, documents: Sequence[TokenizedDocument], vocabulary: Vocabulary) -> Holdings:
        tokens_M, learned_M, answers, drawn = np.zeros(3, np.int64), np.zeros(3, np.int64), 0, 0
        for tokens, learn in documents:
            kinds = vocabulary.modality[tokens]
            tokens_M += np.bincount(kinds, minlength=3)
            learned_M += np.bincount(kinds[learn], minlength=3)
            turns = np.concatenate([[0], np.cumsum(tokens == vocabulary.end_turn)[:-1]])
            content = learn & (tokens != vocabulary.end_document)
            answers += len(np.unique(turns[content]))
            drawn += len(np.unique(turns[content & (tokens == vocabulary.begin_image)]))
        names = [each.name.lower() for each in Modality]
        tokens, learned = (dict(zip(names, counts.tolist(), strict=True)) for counts in (tokens_M, learned_M))
        return cls(len(documents), tokens, learned, answers, drawn)


@dataclass(frozen=True)
class Composition:
    """What each part of a mixture holds, and its share of what is trained on, by tokens."""

    parts: Mapping[str, Holdings]
    shares: Mapping[str, float]

    @classmethod
    def of(
        cls,
        parts: Mapping[str, Sequence[TokenizedDocument]],
        vocabulary: Vocabulary,
        weights: Mapping[str, float] | None = None,
    ) -> Composition:
        """`parts` as a `Mixture` takes them; without `weights` each has the share that it is of all tokens.

        Raises ValueError where there is nothing to share.
        """
        holdings = {name: Holdings.of(part, vocabulary) for name, part in parts.items()}
        sizes = {name: float(sum(each.tokens.values())) for name, each in holdings.items()}
        chosen = sizes if weights is None else {name: float(weights.get(name, 0.0)) for name in holdings}
        if not sum(chosen.values()) > 0:
            raise ValueError(f"A composition needs parts with tokens and weights; these are {chosen}.")
        return cls(holdings, {name: each / sum(chosen.values()) for name, each in chosen.items()})

    def _expected(self, count: Callable[[Holdings], int]) -> float:
        """How much of something a token that is trained on brings along."""
        return sum(
            self.shares[name] * count(each) / max(1, sum(each.tokens.values())) for name, each in self.parts.items()
        )

    @property
    def drawn_answers(self) -> float:
        """The share of answers with a picture: how often a model that knows no prompt would draw."""
        return self._expected(lambda each: each.drawn) / max(self._expected(lambda each: each.answers), 1e-12)

    def learned(self, modality: str) -> float:
        """The share of one modality among the tokens that are learned: 0 to 1."""
        whole = self._expected(lambda each: sum(each.learned.values()))
        return self._expected(lambda each: each.learned[modality]) / max(whole, 1e-12)

    HEAD = (
        "part",
        "documents",
        "tokens",
        "of what is trained on",
        "learned",
        "of these text",
        "image",
        "answers drawn",
    )

    def rows(self) -> list[tuple[str, ...]]:
        """A table in words: a row a part, and one for all as they are mixed."""
        rows = []
        for name, each in self.parts.items():
            whole, learned = sum(each.tokens.values()), sum(each.learned.values())
            shares = [each.learned[kind] / max(1, learned) for kind in ("text", "image")]
            rows.append(
                (
                    name,
                    f"{each.documents:,}",
                    f"{whole:,}",
                    f"{self.shares[name]:.0%}",
                    f"{learned / max(1, whole):.0%}",
                )
                + (*(f"{share:.0%}" for share in shares), f"{each.drawn / max(1, each.answers):.0%}")
            )
        learned = self._expected(lambda each: sum(each.learned.values()))
        counts = [
            sum(each.documents for each in self.parts.values()),
            sum(sum(each.tokens.values()) for each in self.parts.values()),
        ]
        shares = (self.learned("text"), self.learned("image"), self.drawn_answers)
        rows.append(
            (
                "as mixed",
                *(f"{count:,}" for count in counts),
                "100%",
                f"{learned:.0%}",
                *(f"{each:.0%}" for each in shares),
            )
        )
        return rows

    def __str__(self) -> str:
        table = [self.HEAD, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if not at else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.HEAD)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


# How often a model draws

ASKING = ("{draw}", "i want to see {thing}", "sketch {thing}", "could you paint {thing} for me?")
NOT_ASKING = ("{question}", "how are you?", "what is your name?", "are circles round?", "is red a color?", "good night")
EITHER = tuple(words.format("{thing}") for words in OPEN_REQUESTS)
NEW_EITHER = ("imagine {thing}", "once there was {thing}", "think of {thing}", "{thing}", "do you know {thing}?")

PICTURE_PROMPTS: Mapping[str, tuple[str, ...]] = {
    "asked": ASKING,
    "not asked": NOT_ASKING,
    "either": EITHER,
    "either, in new words": NEW_EITHER,
}
"""Wordings by kind of prompt. Those that are open to either are taught in a training of a balance; new words are not,
nor are all but the first of what asks for a picture and of what does not."""


def balance_prompts(kind: str, n: int, seed: int = 2026) -> list[Document]:
    """The first `n` prompts of a kind of `PICTURE_PROMPTS`, its wordings in turn, about held-out scenes."""
    rng = np.random.default_rng([seed, 25, list(PICTURE_PROMPTS).index(kind)])
    wordings, result = PICTURE_PROMPTS[kind], list[Document]()
    questions = iter(prompts("questions", n, seed))
    for place in range(n):
        scene, wording = sample_where(rng, "held_out", 1), wordings[place % len(wordings)]
        if wording == "{question}":
            result.append(next(questions).document)
            continue
        words = wording.format(draw=draw_request(scene, rng), thing=scene.things[0].phrase(bool(rng.random() < 0.5)))
        result.append(Document.of(words, EndTurn()))
    return result


Replies = Callable[[Sequence[Document]], Sequence[Document]]
"""Documents that end in a user's turn to the model's replies."""


def sampled_replies(lab: Chameleon, seed: int = 2026) -> Replies:
    """Replies drawn from what the model holds likely: temperature 1, nothing cut off, no guidance."""
    settings = lab.settings.changed(temperature=1.0, image_temperature=1.0, top_p=1.0, guidance=1.0)

    def replies(documents: Sequence[Document]) -> list[Document]:
        return lab.engine.generate(documents, settings, range(seed, seed + len(documents)))

    return replies


def picture_rates(
    replies: Replies, kinds: Mapping[str, Sequence[Document]] | None = None, n: int = 100, batch: int = 50
) -> Iterator[tuple[str, Score]]:
    """(kind of prompt, share of its replies that hold a picture) pairs; `kinds` of prompts of one's own, or `n` of each
    of `PICTURE_PROMPTS`."""
    kinds = {kind: balance_prompts(kind, n) for kind in PICTURE_PROMPTS} if kinds is None else kinds
    for kind, documents in kinds.items():
        drawn = 0
        for start in range(0, len(documents), batch):
            drawn += sum(bool(reply.pictures) for reply in replies(documents[start : start + batch]))
        yield kind, Score(drawn / len(documents), len(documents))


@torch.inference_mode()
def picture_chances(lab: Chameleon, documents: Sequence[Document]) -> np.ndarray:
    """How likely each document's reply is to begin with a picture, exactly, from one pass and without sampling."""
    chances, begin = list[float](), lab.vocabulary.begin_image
    device = lab.model.embedding.weight.device
    for document in documents:
        tokens_1T = torch.from_numpy(lab.encode(document))[None].to(device)
        chances.append(float(lab.model(tokens_1T)[0, -1].float().softmax(-1)[begin]))
    return np.array(chances)


# Three balances

BALANCES: Mapping[str, float] = {"few": 0.05, "even": 0.5, "many": 0.95}
"""The share of conversations that are answered by a picture: half of them ask for it, half are open to either. Of those
answered in words a third each is about a picture, small talk and facts, and open to either."""

BALANCE_CONVERSATIONS, BALANCE_STEPS = 1600, 80


def balance_experiment(share: float, seed: int = 0, steps: int = BALANCE_STEPS) -> Experiment:
    """The tiny model aligned on conversations of which this share is answered by a picture, else the paper's recipe.

    The rate is a hundred times the paper's, whose model has two thousand times the weights. Raises ValueError for what
    is no share.
    """
    if not 0 < share < 1:
        raise ValueError(f"A balance is a share between 0 and 1, not {share}.")
    drawings = round(share * BALANCE_CONVERSATIONS)
    halves = {"image generation": drawings, "open, drawn": drawings}
    thirds = dict.fromkeys(("visual chat", "text", "open, in words"), BALANCE_CONVERSATIONS - drawings)
    counts = {name: max(1, count // 2) for name, count in halves.items()}
    counts |= {name: max(1, count // 3) for name, count in thirds.items()}
    sources = {name: SceneCategory(name, count) for name, count in counts.items()}
    return replace(
        ALIGNMENT,
        name=f"balance-{share:g}",
        data=Conversations(sources, rows=8, context=256, held_out=0.0),
        recipe=replace(ALIGNMENT.recipe, rate=1e-3),
        budget=Budget(steps=steps),
        seed=seed,
        monitors=(),
        recompute=False,
    )


@dataclass(frozen=True)
class BalanceOutcome:
    """How often a model drew after one training, by kind of prompt.

    `drawn_answers`, `image_tokens`: shares of pictures among the answers, and among the learned tokens, of the data.
    `pictures`: replies of `n` that held one; `chances`: how likely a reply is to begin with one, the mean over prompts.
    """

    balance: str
    seed: int
    drawn_answers: float
    image_tokens: float
    n: int
    pictures: dict[str, int]
    chances: dict[str, float]

    def __post_init__(self) -> None:
        """Raises ValueError for what is no outcome."""
        require_fields(self)
        for values in (self.pictures, self.chances):
            if missing := [kind for kind in PICTURE_PROMPTS if kind not in values]:
                raise ValueError(f"An outcome lacks prompts of the kind {missing[0]!r}: measure it anew.")

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def balance_outcome(
    lab: Chameleon, balance: str, seed: int, composition: Composition | None, n: int = 120
) -> BalanceOutcome:
    """What a model does with `n` prompts of each kind, as it is recorded."""
    kinds = {kind: balance_prompts(kind, n) for kind in PICTURE_PROMPTS}
    rates = dict(picture_rates(sampled_replies(lab, 1000 * seed), kinds))
    chances = {kind: round(float(picture_chances(lab, some).mean()), 4) for kind, some in kinds.items()}
    pictures = {kind: round(score.share * score.n) for kind, score in rates.items()}
    drawn, images = (composition.drawn_answers, composition.learned("image")) if composition else (0.0, 0.0)
    return BalanceOutcome(balance, seed, round(drawn, 4), round(images, 4), n, pictures, chances)


@locks_folder
def balance_outcomes(folder: Path | str, seeds: Sequence[int] = (0, 1, 2), n: int = 120) -> Iterator[BalanceOutcome]:
    """Trains what is not in the folder's `outcomes.jsonl` yet, seed after seed, and measures it; first the model that
    all begin from, as "before"."""
    place = Path(folder) / "outcomes.jsonl"
    outcomes = read_balances(place) if place.is_file() else []
    finished = {(each.balance, each.seed): each for each in outcomes}
    for seed in seeds:
        for balance in ("before", *BALANCES):
            if (balance, seed) not in finished:
                lab, composition = Chameleon.load("tiny", device="cpu"), None
                if balance != "before":
                    experiment = balance_experiment(BALANCES[balance], seed)
                    assert isinstance(experiment.data, Conversations)
                    whole = experiment.data.gathered(seed)
                    composition = Composition.of(whole.parts, whole.vocabulary)
                    model = experiment.run(Path(folder) / f"{experiment.name}-{seed}").result()
                    lab = Chameleon(model, lab.tokenizer, lab.settings)
                finished[balance, seed] = balance_outcome(lab, balance, seed, composition, n)
                write_file(place, "".join(each.to_json() + "\n" for each in finished.values()))
            yield finished[balance, seed]


def read_balances(path: Path | str) -> list[BalanceOutcome]:
    """The outcomes of a file that `balance_outcomes` wrote. Raises ValueError, naming it, for a damaged one."""
    with intact(path):
        return [BalanceOutcome(**each) for each in read_json_lines(Path(path))]


def chances_by_balance(outcomes: Sequence[BalanceOutcome]) -> dict[str, dict[str, Mean]]:
    """How likely a picture is by balance and kind of prompt, as `interval_figure` draws it: means over seeds."""
    means: dict[str, dict[str, Mean]] = {}
    for balance in dict.fromkeys(each.balance for each in outcomes):
        members = [each for each in outcomes if each.balance == balance]
        means[balance] = {kind: Mean.of_seeds([each.chances[kind] for each in members]) for kind in PICTURE_PROMPTS}
    return means


def rates_by_balance(outcomes: Sequence[BalanceOutcome]) -> dict[str, dict[str, Score]]:
    """The share of replies with a picture, by balance and kind of prompt: of all seeds' replies together."""
    rates: dict[str, dict[str, Score]] = {}
    for balance in dict.fromkeys(each.balance for each in outcomes):
        members = [each for each in outcomes if each.balance == balance]
        total = sum(each.n for each in members)
        rates[balance] = {
            kind: Score(sum(each.pictures[kind] for each in members) / total, total) for kind in PICTURE_PROMPTS
        }
    return rates


def balance_command(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where runs and outcomes.jsonl go")
    parser.add_argument("--seeds", type=int, default=3, help="so many of each balance (default: 3)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for each in balance_outcomes(options.folder, range(options.seeds)):
        words = ", ".join(
            f"{kind} {each.pictures[kind]} of {each.n} ({each.chances[kind]:.0%})" for kind in each.pictures
        )
        log.info("%-6s seed %d: pictures where %s", each.balance, each.seed, words)


if __name__ == "__main__":
    # By its own name: what an experiment names in `__main__` counts as a person's own, and as another one.
    from chameleon_lab.evaluation.balance import balance_command as command

    raise SystemExit(exit_code(command))
