"""Scores of the emoji model, by a fixed protocol: prompts and seeds are a function of (measure, n, seed) alone.

Words are judged by exact match, drawings by `evaluation.judge`, unseen combinations by their pixels too.
`python -m chameleon_lab.evaluation.emoji CORPUS --model MODEL` prints the table, `--write` puts it into the card.
"""

from __future__ import annotations

import argparse
import logging
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from chameleon_lab.chameleon import Chameleon, find
from chameleon_lab.checkpoints import native
from chameleon_lab.corpora.emoji import DRAW, STYLE_NAMES, WHAT, Emoji
from chameleon_lab.corpora.emoji_artwork import LANGUAGES, Drawn
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.evaluation.judge import Judge, round_trips
from chameleon_lab.evaluation.results import Result, evaluation_card, item_words, settings_words
from chameleon_lab.evaluation.scenes import Score
from chameleon_lab.signals import exit_code
from chameleon_lab.storage import write_file, write_picture

TRIES = 8
CANDIDATES = 24
GUIDED = 2.0
PARTS = ("judge", "names", "words", "drawings", "held-out drawings", "combinations", "guidance")

log = logging.getLogger(__name__)


def naming(lab: Chameleon, image: Image, names: Sequence[str], language: str = "en") -> list[float]:
    """Log-probabilities of names, in nats, as the model's answer to what a picture is."""
    begin = (image, Text(WHAT[language]), EndTurn())
    documents = [Document((*begin, Text(name), EndTurn())) for name in names]
    return _answers(lab, documents, names)


def _answers(lab: Chameleon, documents: Sequence[Document], names: Sequence[str]) -> list[float]:
    """The log-probability of each document's last words, `names`, and of the turn's end after them."""
    totals = list[float]()
    for start in range(0, len(documents), 48):
        scores = lab.engine.score(documents[start : start + 48])
        for score, name in zip(scores, names[start : start + 48], strict=True):
            totals.append(float(score.logs_T[-len(lab.tokenizer.text.encode(name)) - 1 :].sum()))
    return totals


def best(lab: Chameleon, images: Sequence[Image], name: str, language: str = "en") -> int:
    """The place of the image that the model itself most likely calls so. Raises ValueError for no image."""
    if not images:
        raise ValueError("There is no image to choose among.")
    documents = [Document((image, Text(WHAT[language]), EndTurn(), Text(name), EndTurn())) for image in images]
    return int(np.argmax(_answers(lab, documents, [name] * len(images))))


class BestByName:
    """Chooses among replies to one request for `ChatCell(choose=...)`: the drawing that the model names best.

    Called with documents, each the conversation and a reply. The name is the longest of the ideas' in the last words
    that hold one; where none do, the first reply with a picture is as good as any.
    """

    def __init__(self, lab: Chameleon, ideas: Sequence[Drawn]) -> None:
        self.lab, self.names = lab, [(name, language) for idea in ideas for language, name in idea.names.items()]

    def __call__(self, documents: Sequence[Document]) -> int:
        images = [next((part for part in [*document][::-1] if isinstance(part, Image)), None) for document in documents]
        name, language = self.name_in([*documents[0]])
        places = [place for place, image in enumerate(images) if image is not None]
        if not name or not places:
            return places[0] if places else 0
        return places[best(self.lab, [image for image in images if image is not None], name, language)]

    def name_in(self, parts: Sequence[object]) -> tuple[str, str]:
        """The longest name in the last words that hold one, and its language; ("", "en") where none do."""
        for words in [part.text.lower() for part in parts if isinstance(part, Text)][::-1]:
            if pairs := [(name, language) for name, language in self.names if name in words]:
                return max(pairs, key=lambda each: len(each[0]))
        return "", "en"


class EmojiScores:
    """The protocol's measures of a model, `n` prompts each: every one a `Result`, named by its card's metric."""

    def __init__(self, lab: Chameleon, emoji: Emoji, judge: Judge, n: int = 200, seed: int = 2026) -> None:
        self.lab, self.emoji, self.judge, self.n, self.seed = lab, emoji, judge, n, seed

    @property
    def parts(self) -> dict[str, Callable[[], Iterator[Result]]]:
        """The protocol in parts, each a few minutes' work."""
        return {
            "judge": self.agreement,
            "names": self.names,
            "words": self.words,
            "drawings": lambda: self.drawn("trainable", 6),
            "held-out drawings": lambda: self.drawn("drawing", 7),
            "combinations": lambda: self.combined(8),
            "guidance": lambda: self.guided(6),
        }

    def result(
        self, measure: str, rights: Sequence[bool], items: Sequence[str], how: str, guidance: float | None = None
    ) -> Result:
        """A measure with its protocol; `items`: what was asked, in words."""
        sampled = settings_words(self.lab.settings.changed(guidance=guidance))
        card = evaluation_card(
            measure,
            f"{how}; {sampled}",
            f"{len(self.emoji.ideas)} ideas of emoji",
            items,
            n=len(rights),
            lab=self.lab,
            pictures=True,
            seed=self.seed,
        )
        return Result.of(rights, card)

    def names(self) -> Iterator[Result]:
        yield self.named("named right", "trainable", LANGUAGES[:1], 1)
        yield self.named("named right in a second language", "trainable", LANGUAGES[1:], 2)
        yield self.named("named right, held-out style", "drawing", LANGUAGES[:1], 3)

    def words(self) -> Iterator[Result]:
        yield self.picked("words pick their picture among 24", "trainable", 4)
        yield self.picked("words pick their picture among 24, held-out style", "drawing", 5)

    def agreement(self) -> Iterator[Result]:
        tokenizer, how = self.lab.tokenizer.image, "the judge of the image tokenizer's round trips"
        for where, which in (("trainable", "real artwork's round trips"), ("drawing", "held-out round trips")):
            rows = self.judge.agreement(self.emoji, tokenizer, 2 * self.n, where, self.seed)
            items = [row[0] for row in rows]
            ideas, styles = [row[1] for row in rows], [row[2] for row in rows]
            yield self.result(f"the judge names {which}", ideas, items, how)
            yield self.result(f"the judge tells the style of {which}", styles, items, how)

    def picks(self, where: str, key: int) -> list[tuple[Drawn, str]]:
        """`n` drawings of a side of the split; fewer where there are no more."""
        drawings = self.emoji.drawings(where)
        rng = np.random.default_rng([self.seed, key])
        return [drawings[place] for place in rng.choice(len(drawings), min(self.n, len(drawings)), replace=False)]

    def image(self, idea: Drawn, style: str) -> Image:
        picture = self.emoji.picture(idea, style)
        return Image(picture, self.lab.tokenizer.image.encode(picture))

    def generate(
        self,
        documents: Sequence[Document],
        key: int,
        guidance: float | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Document]:
        settings, replies = self.lab.settings.changed(guidance=guidance), list[Document]()
        seeds = [self.seed + 100_000 * key + each for each in seeds or range(len(documents))]
        for start in range(0, len(documents), 64):
            replies += self.lab.engine.generate(documents[start : start + 64], settings, seeds[start : start + 64])
        return replies

    def named(self, measure: str, where: str, languages: Sequence[str], key: int) -> Result:
        picks = self.picks(where, key)
        choices = [languages[place % len(languages)] for place in range(len(picks))]
        documents = [
            Document((self.image(*pick), Text(WHAT[language]), EndTurn()))
            for pick, language in zip(picks, choices, strict=True)
        ]
        replies = self.generate(documents, key)
        rights = [
            reply.text == idea.names[language]
            for (idea, _), language, reply in zip(picks, choices, replies, strict=True)
        ]
        return self.result(measure, rights, [item_words(each) for each in documents], "the name word for word")

    def picked(self, measure: str, where: str, key: int) -> Result:
        """Whether, of 24 drawings by one hand, the model finds a name likeliest for the one that is so called."""
        rng, rights, items = np.random.default_rng([self.seed, key, 1]), list[bool](), list[str]()
        for idea, style in self.picks(where, key):
            others = [each for each in self.emoji.ideas if style in each.styles and each is not idea]
            chosen = [others[place] for place in rng.choice(len(others), CANDIDATES - 1, replace=False)]
            images = [self.image(each, style) for each in (idea, *chosen)]
            rights.append(best(self.lab, images, idea.names["en"]) == 0)
            items.append(", ".join([style, *(each.idea for each in (idea, *chosen))]))
        return self.result(measure, rights, items, "the likeliest of 24")

    def requests(self, picks: Sequence[tuple[Drawn, str]], tries: int = 1) -> list[Document]:
        return [
            Document.of(DRAW["en"][1].format(idea.names["en"], STYLE_NAMES[style]), EndTurn())
            for idea, style in picks
            for _ in range(tries)
        ]

    def drawn(self, where: str, key: int) -> Iterator[Result]:
        """First tries, the best of eight by the model's own naming, and the style of the first."""
        picks, side = self.picks(where, key), "" if where == "trainable" else ", held-out idea and style"
        replies = self.generate(self.requests(picks, TRIES), key)
        images = [[part for part in reply if isinstance(part, Image)][:1] for reply in replies]
        firsts, bests, styles = list[bool](), list[bool](), list[bool]()
        for place, (idea, style) in enumerate(picks):
            own = images[TRIES * place : TRIES * (place + 1)]
            there = [image for each in own for image in each]
            verdicts = self.judge.verdicts([image.picture for image in there])
            firsts.append(bool(own[0]) and verdicts[0][0] == idea.idea)
            styles.append(bool(own[0]) and verdicts[0][1] == style)
            bests.append(bool(there) and verdicts[best(self.lab, there, idea.names["en"])][0] == idea.idea)
        for measure, rights in (
            ("drawn right at the first try", firsts),
            ("best of eight by its own naming", bests),
            ("the style drawn is the style asked", styles),
        ):
            yield self.result(measure + side, rights, self.prompts_of(picks), "the judge among all ideas")

    def prompts_of(self, picks: Sequence[tuple[Drawn, str]]) -> list[str]:
        return [request.text for request in self.requests(picks)]

    def combined(self, key: int) -> Iterator[Result]:
        """Unseen combinations, first tries: by the judge, and by pixels, among all of the family by the same hand."""
        picks = self.picks("combination", key)
        replies = self.generate(self.requests(picks), key)
        pictures = [reply.pictures[:1] for reply in replies]
        by_judge = [
            bool(own) and self.judge.verdicts(own)[0][0] == idea.idea
            for (idea, _), own in zip(picks, pictures, strict=True)
        ]
        by_pixels = [
            bool(own) and self.nearest(own[0], idea.family, style) == idea.idea
            for (idea, style), own in zip(picks, pictures, strict=True)
        ]
        trips = round_trips(self.lab.tokenizer.image, [self.emoji.picture(*pick) for pick in picks])
        real = [
            self.nearest(trip, idea.family, style) == idea.idea
            for (idea, style), trip in zip(picks, trips, strict=True)
        ]
        pixels, items = "the nearest pixels among the family by the same hand", self.prompts_of(picks)
        judged = "the judge among all ideas"
        yield self.result("unseen combinations, first try, by the judge", by_judge, items, judged)
        yield self.result("unseen combinations, first try, by pixels", by_pixels, items, pixels)
        yield self.result("the pixels name the round trips of these", real, items, pixels)

    def nearest(self, picture: PIL.Image.Image, family: str, style: str) -> str:
        """The idea of a family whose drawing by this hand differs least in its pixels, each moved by up to 4."""
        ideas, pixels_NHWC = self._families[family, style]
        own_HWC = _coarse(picture)
        distances_N = np.full(len(ideas), np.inf)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                moved_HWC = np.roll(own_HWC, (down, right), (0, 1))
                distances_N = np.minimum(distances_N, np.square(pixels_NHWC - moved_HWC).mean((1, 2, 3)))
        return ideas[int(distances_N.argmin())]

    @cached_property
    def _families(self) -> dict[tuple[str, str], tuple[list[str], np.ndarray]]:
        drawings: dict[tuple[str, str], list[Drawn]] = {}
        for idea in self.emoji.ideas:
            for style in idea.styles if idea.parts else ():
                drawings.setdefault((idea.family, style), []).append(idea)
        return {
            key: (
                [idea.idea for idea in ideas],
                np.stack([_coarse(self.emoji.picture(idea, key[1])) for idea in ideas]),
            )
            for key, ideas in drawings.items()
        }

    def guided(self, key: int) -> Iterator[Result]:
        """The same requests and seeds as the first tries, with guidance."""
        picks = self.picks("trainable", key)
        replies = self.generate(self.requests(picks), key, GUIDED, seeds=range(0, TRIES * len(picks), TRIES))
        rights = [
            bool(reply.pictures) and self.judge.verdicts(reply.pictures[:1])[0][0] == idea.idea
            for (idea, _), reply in zip(picks, replies, strict=True)
        ]
        measure, how = f"drawn right at the first try, guidance {GUIDED:g}", "the judge among all ideas"
        yield self.result(measure, rights, self.prompts_of(picks), how, GUIDED)


def _coarse(picture: PIL.Image.Image) -> np.ndarray:
    """Pixels of 16 x 16, in [0, 1]."""
    return np.asarray(picture.convert("RGB").resize((16, 16), PIL.Image.Resampling.BOX), np.float32) / 255


SHEET = ("strawberry", "red heart", "cat", "pizza", "sun", "rocket", "rose", "smiling face with sunglasses")
"""What a contact sheet shows, in English."""


def contact_sheet(lab: Chameleon, emoji: Emoji, font: Path | str | None = None, scale: int = 2) -> PIL.Image.Image:
    """Requests in several languages over what the model draws, the best of eight by its own naming.

    A row is a language, and each of its pictures is asked of another hand. Japanese needs a `font` that has it, and is
    left out without one.
    """
    ideas = {idea.names["en"]: idea for idea in emoji.ideas}
    languages = [language for language in LANGUAGES if font or language != "ja"]
    letters = PIL.ImageFont.truetype(font, 13) if font else PIL.ImageFont.load_default(13)
    side, margin, line = scale * lab.tokenizer.image.config.side, 10, 34
    columns = [ideas[name] for name in SHEET if name in ideas]
    size = (margin + len(columns) * (side + margin), margin + len(languages) * (side + line + margin))
    sheet = PIL.Image.new("RGB", size, "white")
    pen = PIL.ImageDraw.Draw(sheet)
    for row, language in enumerate(languages):
        for column, idea in enumerate(columns):
            style = idea.styles[(row + column) % len(idea.styles)]
            request = DRAW[language][1].format(idea.names[language], STYLE_NAMES[style])
            documents = [Document.of(request, EndTurn())] * TRIES
            replies = lab.engine.generate(documents, lab.settings, range(TRIES))
            images = [part for reply in replies for part in [*reply][:1] if isinstance(part, Image)]
            left, top = margin + column * (side + margin), margin + row * (side + line + margin)
            words = "\n".join(textwrap.wrap(request, 9 if language == "ja" else 20)[:2])
            pen.multiline_text((left, top), words, "#333333", letters, spacing=2)
            if images:
                chosen = images[best(lab, images, idea.names[language], language)]
                sheet.paste(chosen.picture.resize((side, side), PIL.Image.Resampling.LANCZOS), (left, top + line))
    return sheet


def emoji_page(card: dict) -> str:
    """The card as a page to read."""
    lines = [
        "# Model card: emoji",
        "",
        "Reads, names and draws emoji as five hands drew them, asked in English, German, French, Spanish or Japanese.",
        "The weights are Apache-2.0, like the lab.",
        "",
        "- command: `python -m chameleon_lab.training.emoji CORPUS FOLDER`, then",
        "  `python -m chameleon_lab.evaluation.emoji CORPUS --model FOLDER/model --write`",
        f"- trained: {card['trained']}, on {card['machine']}",
        f"- time: {card['minutes']:g} min; the image tokenizer's {card['image tokenizer']['minutes']:g} min on "
        f"{card['image tokenizer']['machine']}",
        f"- transformer: {card['steps']:,} steps, {card['tokens']:,} tokens",
        *(f"- {note}" for note in card["notes"]),
        "",
        "The artwork it learned from:",
        "",
        *(f"- {credit}" for credit in card["artwork"]),
        "",
        "## How often it is right",
        "",
        f"Prompts and seeds were fixed beforehand (seed {card['scores_seed']}); 95 % intervals. Words by exact match.",
        "Drawings by `evaluation/judge.py`, among all ideas; its own first lines say how far it can be trusted.",
        "",
        "| measure | right |",
        "|---|---|",
        *(f"| {name} | {Score(each['share'], each['n'])} |" for name, each in card["scores"].items()),
        "",
    ]
    return "\n".join(lines)


def score_emoji_command(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="what `python -m chameleon_lab.corpora.emoji_artwork` built")
    parser.add_argument("--model", default="emoji", help="a model folder, or a shipped model's name (default: emoji)")
    parser.add_argument("-n", type=int, default=200, help="prompts of each measure (default: 200)")
    parser.add_argument("--seed", type=int, default=2026, help="decides prompts and sampling (default: 2026)")
    parser.add_argument("--part", action="append", help=f"only this: {', '.join(PARTS)}; repeatable (default: all)")
    parser.add_argument("--write", action="store_true", help="write the scores and a README.md into the model folder")
    parser.add_argument("--sheet", type=Path, help="draw a contact sheet into this PNG, instead of scores")
    parser.add_argument("--font", type=Path, help="a font for the sheet that has Japanese")
    options = parser.parse_args(arguments)
    if unknown := sorted({*(options.part or ())} - {*PARTS}):
        raise SystemExit(f"There is no part {', '.join(unknown)}; there are {', '.join(PARTS)}.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    lab, emoji = Chameleon.load(options.model), Emoji(options.corpus)
    if options.sheet:
        write_picture(options.sheet, contact_sheet(lab, emoji, options.font).quantize(128), optimize=True)
        return
    judge = Judge(emoji)
    parts, place = EmojiScores(lab, emoji, judge, options.n, options.seed).parts, find(options.model)
    card = lab.card | {"scores": lab.card.get("scores", {}) if options.part else {}, "scores_seed": options.seed}
    for part in options.part or parts:
        for result in parts[part]():
            measure, score = result.value.card.metric, Score.of(result)
            log.info("%-58s %s", measure, score)
            card["scores"] |= {measure: {"share": round(score.share, 4), "n": score.n}}
        if options.write:
            native.write_card(place, card)
            write_file(place / "README.md", emoji_page(card))


if __name__ == "__main__":
    raise SystemExit(exit_code(score_emoji_command))
