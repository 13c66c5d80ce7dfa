"""Emoji: ideas that people ask for, drawn by five hands and named in five languages, as documents of every kind.

`Emoji(folder)` reads what `emoji_artwork.build` wrote. What is held out is decided by construction: some drawings
(an idea in one hand's style), and some combinations (a gesture in a tone, a shape in a colour) in all styles.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageChops
import PIL.ImageFilter
import PIL.ImageOps

from chameleon_lab.corpora.conversations import Choice
from chameleon_lab.corpora.emoji_artwork import ARTWORK_SIDE, LANGUAGES, STYLES, Drawn
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.files import intact, read_json_lines, require_regular
from chameleon_lab.parts import require_fields
from chameleon_lab.pictures import decode_picture, on_white

ENGLISH = 0.36  # share of documents; the other languages have equal parts of the rest
ARTICLES = 0.4  # of requests in English
HELD_OUT_DRAWINGS = 8  # of a hundred
HELD_OUT_COMBINATIONS = 15  # of a hundred
WIDEST_SHIFT = 2  # pixels of 64
SMALLEST_SCALE = 0.9
LARGEST_DRAWING = 2**20  # bytes

STYLE_NAMES = {"noto": "noto", "blob": "blob", "flat": "flat", "3d": "3D", "twitter": "twitter"}
DRAW = {
    "en": ("draw {}", "draw {} in {} style"),
    "de": ("zeichne {}", "zeichne {} im {}-Stil"),
    "fr": ("dessine {}", "dessine {} dans le style {}"),
    "es": ("dibuja {}", "dibuja {} al estilo {}"),
    "ja": ("{}を描いて", "{}を描いて、{}風に"),
}
WHAT = {
    "en": "what is this?",
    "de": "was ist das?",
    "fr": "qu'est-ce que c'est ?",
    "es": "¿qué es esto?",
    "ja": "これは何？",
}
ALIKE = {
    "en": "the same in {} style", "de": "dasselbe im {}-Stil", "fr": "le même dans le style {}",
    "es": "lo mismo al estilo {}", "ja": "同じものを{}風に",
}  # fmt: skip
COLOUR_IN = {
    "en": "color this in: {}", "de": "male das aus: {}", "fr": "colorie ceci : {}", "es": "colorea esto: {}",
    "ja": "これに色を塗って: {}",
}  # fmt: skip
PLURALS = {"animal": "animals", "food": "foods", "face": "faces", "heart": "hearts", "transport": "ways to travel"}
KINDS_OF_SKETCH = ("outline", "silhouette", "grey")


Shower = Callable[["Emoji", Drawn, str, str, Choice, bool], Image]
"""(corpus, idea, style, kind of sketch or "", rng, learn) to the image of a document."""


class Emoji:
    """The corpus in a folder. `ideas` in a fixed order; pictures are RGB on white.

    `show` makes a document's images: by default freshly shifted and scaled pictures, at each place another.
    """

    def __init__(self, folder: Path | str, show: Shower | None = None) -> None:
        """Raises ValueError where no corpus was built, or a damaged one is."""
        self.folder, self.show = Path(folder), show or fresh_picture
        if not (self.folder / "sources.json").is_file():
            raise ValueError(
                f"{folder} holds no emoji corpus: `python -m chameleon_lab.corpora.emoji_artwork {folder}` builds one."
            )
        self.ideas = read_ideas(self.folder)
        if not self.drawings():
            raise ValueError(f"{self.folder / 'ideas.jsonl'} has no drawing that is not held out. {BUILD_ANEW}")
        self._drawing = lru_cache(maxsize=None)(self._read)

    def where(self, idea: Drawn, style: str) -> str:
        """On which side of the split a drawing stands: "trainable", "drawing" or "combination"."""
        if idea.parts and _share("/".join(idea.parts)) < HELD_OUT_COMBINATIONS:
            return "combination"
        return "drawing" if _share(f"{idea.idea}/{style}") < HELD_OUT_DRAWINGS else "trainable"

    def drawings(self, where: str = "trainable") -> list[tuple[Drawn, str]]:
        """(idea, style) of every drawing on one side of the split."""
        return [(idea, style) for idea in self.ideas for style in idea.styles if self.where(idea, style) == where]

    def picture(self, idea: Drawn, style: str, rng: Choice | None = None, side: int = 64) -> PIL.Image.Image:
        """A drawing on white; with `rng` a little shifted and made smaller."""
        return self._placed(self._drawing(idea.idea, style), rng, side)

    def sketch(self, idea: Drawn, style: str, kind: str, rng: Choice | None = None, side: int = 64) -> PIL.Image.Image:
        """What there is of a drawing before its colours: its outline, its silhouette, or its greys."""
        drawing = self._drawing(idea.idea, style)
        alpha = drawing.getchannel("A")
        match kind:
            case "silhouette":
                grey = PIL.ImageChops.invert(alpha)
            case "grey":
                grey = on_white(drawing).convert("L")
            case _:
                edges = on_white(drawing).convert("L").filter(PIL.ImageFilter.FIND_EDGES)
                edges = PIL.ImageChops.lighter(edges, alpha.filter(PIL.ImageFilter.FIND_EDGES))
                edges = PIL.ImageOps.expand(PIL.ImageOps.crop(edges, 2), 2)  # the filter draws a frame
                grey = PIL.ImageChops.invert(edges.point([min(255, 3 * value) for value in range(256)]))
        return self._placed(grey.convert("RGB"), rng, side)

    def _placed(self, drawing: PIL.Image.Image, rng: Choice | None, side: int) -> PIL.Image.Image:
        scale = 1.0 if rng is None else rng.uniform(SMALLEST_SCALE, 1.0)
        shift = np.zeros(2) if rng is None else rng.uniform(-WIDEST_SHIFT, WIDEST_SHIFT, 2) * ARTWORK_SIDE / 64
        margin, span = ARTWORK_SIDE // 4, ARTWORK_SIDE / scale
        wide = PIL.Image.new("RGB", (ARTWORK_SIDE + 2 * margin, ARTWORK_SIDE + 2 * margin), "white")
        wide.paste(drawing, (margin, margin), drawing if drawing.mode == "RGBA" else None)
        left, top = margin - (span - ARTWORK_SIDE) / 2 - shift
        return wide.resize((side, side), PIL.Image.Resampling.BICUBIC, box=(left, top, left + span, top + span))

    def _read(self, idea: str, style: str) -> PIL.Image.Image:
        path = self.folder / "pictures" / style / f"{idea}.png"
        with require_regular(path, LARGEST_DRAWING).open("rb") as file:
            drawing = decode_picture(file, str(path))  # transparent, as it was drawn
        if drawing.size != (ARTWORK_SIDE, ARTWORK_SIDE):
            raise ValueError(f"{path} is no drawing: it has {drawing.width} x {drawing.height} pixels. {BUILD_ANEW}")
        return drawing

    # Documents

    @cached_property
    def _trainable(self) -> list[tuple[Drawn, str]]:
        return self.drawings()

    @cached_property
    def _by_idea(self) -> dict[str, list[str]]:
        styles: dict[str, list[str]] = {}
        for idea, style in self._trainable:
            styles.setdefault(idea.idea, []).append(style)
        return styles

    @cached_property
    def _members(self) -> dict[str, list[Drawn]]:
        members: dict[str, list[Drawn]] = {}
        for idea in self.ideas:
            if idea.idea in self._by_idea:
                members.setdefault(idea.family, []).append(idea)
        return members

    KINDS = ("drawing", "naming", "caption", "style", "restyling", "colouring", "category", "list", "free")

    @property
    def kinds(self) -> dict[str, Callable[[Choice], Document]]:
        """The kinds of document, by name: each draws one from what is trainable."""
        return {kind: getattr(self, "list_of" if kind == "list" else kind) for kind in self.KINDS}

    def any(self, rng: Choice) -> tuple[Drawn, str]:
        return self._trainable[int(rng.integers(len(self._trainable)))]

    def _image(self, idea: Drawn, style: str, rng: Choice, learn: bool = True, sketch: str = "") -> Image:
        return self.show(self, idea, style, sketch, rng, learn)

    def drawing(self, rng: Choice) -> Document:
        """A request, and the drawing."""
        (idea, style), language = self.any(rng), _language(rng)
        plain, styled = DRAW[language]
        named = rng.random() < 0.7
        name = with_article(idea.names["en"]) if language == "en" and rng.random() < ARTICLES else idea.names[language]
        request = styled.format(name, STYLE_NAMES[style]) if named else plain.format(name)
        if rng.random() < 0.1:
            request = idea.names[language]
        return _turns([Text(request, learn=False)], [self._image(idea, style, rng)])

    def naming(self, rng: Choice) -> Document:
        """A drawing, and its name in the language of the question."""
        (idea, style), language = self.any(rng), _language(rng)
        question = [self._image(idea, style, rng, learn=False), Text(WHAT[language], learn=False)]
        return _turns(question, [Text(idea.names[language])])

    def caption(self, rng: Choice) -> Document:
        """A name and its drawing, either first."""
        (idea, style), language = self.any(rng), _language(rng)
        pair = [Text(idea.names[language]), self._image(idea, style, rng)]
        return Document(tuple(pair if rng.random() < 0.5 else pair[::-1]))

    def style(self, rng: Choice) -> Document:
        """A drawing, and whose style it has."""
        idea, style = self.any(rng)
        question = [self._image(idea, style, rng, learn=False), Text("in which style?", learn=False)]
        return _turns(question, [Text(STYLE_NAMES[style])])

    def restyling(self, rng: Choice) -> Document:
        """A drawing, and the same idea by another hand."""
        if not any(len(styles) > 1 for styles in self._by_idea.values()):
            raise ValueError(
                f"{self.folder} has no idea that two hands drew, and none can be drawn alike. {BUILD_ANEW}"
            )
        while len(styles := self._by_idea[(idea := self.any(rng)[0]).idea]) < 2:
            continue
        before, after = rng.choice(styles, 2, replace=False)
        request = ALIKE[_language(rng)].format(STYLE_NAMES[after])
        question = [self._image(idea, before, rng, learn=False), Text(request, learn=False)]
        return _turns(question, [self._image(idea, after, rng)])

    def colouring(self, rng: Choice) -> Document:
        """An outline, a silhouette or greys, and the drawing."""
        (idea, style), language = self.any(rng), _language(rng)
        place = int(rng.integers(2**31))  # the sketch and the drawing lie alike
        kind = str(rng.choice(KINDS_OF_SKETCH))
        sketch = self._image(idea, style, np.random.default_rng(place), learn=False, sketch=kind)
        request = Text(COLOUR_IN[language].format(idea.names[language]), learn=False)
        return _turns([sketch, request], [self._image(idea, style, np.random.default_rng(place))])

    def category(self, rng: Choice) -> Document:
        """A drawing, and of which family it is."""
        idea, style = self.any(rng)
        question = [self._image(idea, style, rng, learn=False), Text("what kind of thing is it?", learn=False)]
        return _turns(question, [Text(idea.family)])

    def list_of(self, rng: Choice) -> Document:
        """A request for three of a kind, and each by name with its drawing, all by one hand."""
        family = str(rng.choice(list(PLURALS)))
        style, parts = str(rng.choice(STYLES)), list[Text | Image]()
        members = [idea for idea in self._members.get(family, ()) if style in self._by_idea[idea.idea]]
        if len(members) < 3:
            raise ValueError(f"{self.folder} has only {len(members)} {PLURALS[family]} by {style}. {BUILD_ANEW}")
        for place in rng.choice(len(members), 3, replace=False):
            idea = members[int(place)]
            parts += [Text(idea.names["en"]), self._image(idea, style, rng)]
        return _turns([Text(f"three {PLURALS[family]} in {STYLE_NAMES[style]} style", learn=False)], parts)

    def free(self, rng: Choice) -> Document:
        """A drawing without any words: what guidance compares with."""
        return Document((self._image(*self.any(rng), rng),))


def read_ideas(folder: Path) -> list[Drawn]:
    """The ideas that stand in a corpus' or the shipped model's `ideas.jsonl`, in their order."""
    path = folder / "ideas.jsonl"
    with intact(path, BUILD_ANEW):
        ideas = [_idea_of(each) for each in read_json_lines(path)]
        if not ideas or len({each.idea for each in ideas}) < len(ideas):
            raise ValueError(f"{path} is damaged: it has no ideas, or one twice. {BUILD_ANEW}")
    return ideas


BUILD_ANEW = "Build the corpus anew in another folder."
_POINTS = re.compile(r"[\w-]{1,100}", re.ASCII)


def _idea_of(plain: dict[str, Any]) -> Drawn:
    """The idea of a line. Raises ValueError, TypeError or KeyError for anything else: its words become paths."""
    parts = plain["parts"]
    idea = Drawn(
        plain["idea"], plain["family"], plain["names"], tuple(parts) if parts else None, tuple(plain["styles"])
    )
    require_fields(idea)
    if not _POINTS.fullmatch(idea.idea) or not idea.styles or len({*idea.styles} & {*STYLES}) < len(idea.styles):
        raise ValueError(f"{idea.idea[:60]!r} by {str(idea.styles)[:60]} is no drawing")
    if not all(idea.names[language].strip() for language in LANGUAGES):
        raise ValueError(f"{idea.idea} lacks a name")
    return idea


def fresh_picture(emoji: Emoji, idea: Drawn, style: str, sketch: str, rng: Choice, learn: bool) -> Image:
    picture = emoji.sketch(idea, style, sketch, rng) if sketch else emoji.picture(idea, style, rng)
    return Image(picture, learn=learn)


def _turns(question: list[Text | Image], reply: list[Text | Image]) -> Document:
    return Document((*question, EndTurn(learn=False), *reply, EndTurn()))


def with_article(name: str) -> str:
    """An English name as it stands in a sentence; plurals stay bare."""
    if name.endswith("s") and not name.endswith("ss"):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def as_typed(document: Document, rng: Choice) -> Document:
    """The document with its requests as somebody may type them: with a capital, with a full stop."""
    capital, stop = rng.random() < 0.25, rng.random() < 0.12

    def typed(text: str) -> str:
        text = text[:1].upper() + text[1:] if capital else text
        return text + ("。" if text[-1:] > "\u3000" else ".") if stop and text[-1:].isalnum() else text

    return Document(
        tuple(
            replace(each, text=typed(each.text)) if isinstance(each, Text) and not each.learn else each
            for each in document
        )
    )


def _language(rng: Choice) -> str:
    if rng.random() < ENGLISH:
        return LANGUAGES[0]
    return LANGUAGES[1 + int(rng.integers(len(LANGUAGES) - 1))]


def _share(name: str) -> int:
    """A number from 0 to 99 that is always the same for a name."""
    return zlib.crc32(name.encode()) % 100
