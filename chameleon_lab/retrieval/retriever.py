"""`Retriever`: a model with a bank, whose replies are made from what was looked up; `Lookup`: one of them laid open.

```python
retriever = Retriever(lab, bank, encoder)
ChatCell(retriever.stream)  # retriever.last is what was looked up for the latest reply
drawing = retriever.draw(Document.of("draw a small dax at the top on a pink background", EndTurn()))
drawing.swap(0, another)  # the same request and seed, with another document in its place
```
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

from chameleon_lab.chameleon import Chameleon, ModalityChoice
from chameleon_lab.documents import Document, EndTurn
from chameleon_lab.generation.grammar import Rules
from chameleon_lab.generation.settings import Changes, Settings, takes_settings
from chameleon_lab.records import Piece, ReplyProgress
from chameleon_lab.retrieval.bank import Bank
from chameleon_lab.retrieval.encoders import Encoder
from chameleon_lab.retrieval.prompts import WithoutQuery, put_before
from chameleon_lab.retrieval.rules import LOOKUP, Hit, RetrievalRules


@dataclass(frozen=True)
class Lookup:
    """What was looked up for a request, and what came of it: a notebook shows both side by side.

    `hits` stood before the request, the best first; `left_out` says in words which had no room. `reply` is None while
    it is under way.
    """

    request: Document
    hits: tuple[Hit, ...]
    left_out: tuple[str, ...] = ()
    reply: Document | None = None
    redraw: Callable[[Sequence[Hit]], Lookup] | None = field(default=None, repr=False)

    def swap(self, number: int, document: Document) -> Lookup:
        """The reply to the same request, by the same seed and settings, with another document as hit `number`.

        Raises ValueError where there is no such hit.
        """
        if not 0 <= number < len(self.hits) or self.redraw is None:
            raise ValueError(f"There is no hit {number} to swap: {len(self.hits)} documents were retrieved.")
        hits = list(self.hits)
        hits[number] = Hit(document, hits[number].score, None, "hand")
        return self.redraw(hits)

    def _repr_html_(self) -> str:
        """The retrieved documents with their scores, and the reply; words of model and user escaped."""
        hits = [(_provenance_of(hit), hit.document) for hit in self.hits]
        cards = [*hits, *([("reply", self.reply)] if self.reply is not None else [])]
        rows = "".join(
            f'<div style="flex:0 1 9.5em;border:1px solid rgba(128,128,128,.4);border-radius:8px;padding:8px">'
            f'<div style="font-size:.85em;opacity:.75;margin-bottom:4px">{html.escape(title)}</div>'
            f"{document._repr_html_()}</div>"
            for title, document in cards
        )
        notes = "".join(f'<div style="opacity:.75">left out: {html.escape(words)}</div>' for words in self.left_out)
        return (
            f'<div style="margin-bottom:6px">{html.escape(self.request.text)}</div>'
            f'<div style="display:flex;flex-wrap:wrap;gap:10px">{rows}</div>{notes}'
        )


def _provenance_of(hit: Hit) -> str:
    return "put there by hand" if hit.by == "hand" else f"retrieved, score {hit.score:.2f} by {hit.by}"


class Retriever:
    """A model that looks its requests up in a bank, and writes its replies behind what was found.

    The query is the latest turn. Guidance, where there is any, drops the query and keeps the documents. `last` is the
    latest `Lookup`. Raises ValueError for a bank of another encoder, or with codes of another image tokenizer.
    """

    def __init__(self, lab: Chameleon, bank: Bank, encoder: Encoder, rules: RetrievalRules = LOOKUP) -> None:
        bank.require_encoder(encoder)
        bank.require_tokenizer(lab.tokenizer)
        self.lab, self.bank, self.encoder, self.rules = lab, bank, encoder, rules
        self.last: Lookup | None = None

    @property
    def settings(self) -> Settings:
        return self.lab.settings

    def look_up(self, document: Document, seed: int = 0) -> list[Hit]:
        """The documents for the latest turn of a document, best first."""
        turns = document.turns
        return self.rules.choose(self.bank, self.encoder, turns[-1][1] if turns else document, seed)

    @takes_settings
    def stream(
        self,
        document: Document,
        *,
        seed: int = 0,
        settings: Settings | None = None,
        grammar: Rules | None = None,
        modality: ModalityChoice | None = None,
        prefix: Sequence[int] = (),
        progress: Callable[[ReplyProgress], object] | None = None,
        hits: Sequence[Hit] | None = None,
        **changes: Unpack[Changes],
    ) -> Iterator[Piece]:
        """`Chameleon.stream`, with the documents that `look_up` finds before the document, or with these `hits`.

        What does not fit into the model's context with room for an image is left out, the last first; `last.left_out`
        names it.
        """
        prompt, settings = self._prompt(document, seed, settings, hits, changes)
        return self.lab.stream(
            prompt, seed=seed, settings=settings, grammar=grammar, modality=modality, prefix=prefix, progress=progress
        )

    @takes_settings
    def generate(
        self,
        document: Document,
        *,
        seed: int = 0,
        settings: Settings | None = None,
        grammar: Rules | None = None,
        modality: ModalityChoice | None = None,
        prefix: Sequence[int] = (),
        hits: Sequence[Hit] | None = None,
        **changes: Unpack[Changes],
    ) -> Document:
        """The whole reply: what `stream` gives for the same seed."""
        prompt, settings = self._prompt(document, seed, settings, hits, changes)
        reply = self.lab.generate(
            prompt, seed=seed, settings=settings, grammar=grammar, modality=modality, prefix=prefix
        )
        assert self.last is not None
        self.last = replace(self.last, reply=reply)
        return reply

    def draw(self, document: Document, seed: int = 0, hits: Sequence[Hit] | None = None, **keywords: Any) -> Lookup:
        """The reply beside what it was made from; `keywords` are those of `generate`."""
        self.generate(document, seed=seed, hits=hits, **keywords)
        assert self.last is not None
        return replace(self.last, redraw=lambda others: self.draw(document, seed, others, **keywords))

    def prompt(
        self, document: Document, settings: Settings, hits: Sequence[Hit]
    ) -> tuple[Document, Settings, tuple[Hit, ...], tuple[str, ...]]:
        """The document behind the retrieved ones, the settings that fit, the hits that had room, and in words those
        that had none."""
        recent = self.lab.recent(document, settings)
        tokenizer, context = self.lab.tokenizer, self.lab.model.config.context
        room = min(settings.max_tokens or context, tokenizer.image_tokens + 1)
        before = put_before(recent, [hit.document for hit in hits], tokenizer, context, room)
        guide = settings.guide
        if guide is not None and before.places:
            settings = replace(settings, guidance=WithoutQuery(guide, before.tokens))
        settings = replace(settings, window=None)  # it was applied to the conversation alone
        return before.document, settings, tuple(hits[place] for place in before.places), before.left_out

    def _prompt(
        self,
        document: Document,
        seed: int,
        settings: Settings | None,
        hits: Sequence[Hit] | None,
        changes: Changes,
    ) -> tuple[Document, Settings]:
        settings = (settings or self.settings).changed(**changes)
        hits = self.look_up(document, seed) if hits is None else hits
        prompt, settings, hits, left_out = self.prompt(document, settings, hits)
        self.last = Lookup(_latest(document), hits, left_out)
        return prompt, settings


def _latest(document: Document) -> Document:
    turns = document.turns
    return turns[-1][1] + Document.of(EndTurn()) if turns else document
