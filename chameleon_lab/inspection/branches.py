"""What the model would have written: a document up to a position, and another reply from there on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self, Unpack

import numpy as np

from chameleon_lab.generation.continuation import Continuation
from chameleon_lab.generation.engine import Engine
from chameleon_lab.generation.settings import Changes, Settings, latest_turns
from chameleon_lab.inspection.likelihood import Likelihood
from chameleon_lab.vocabulary import Modality


class Branches(Likelihood):
    """A document from any token of which another reply can grow."""

    def branch(
        self,
        position: int,
        token: int | None = None,
        *,
        seed: int = 0,
        without: Sequence[int] = (),
        each: Callable[[int], object] | None = None,
        **changes: Unpack[Changes],
    ) -> Self:
        """This document up to `position`, and from there on another: `token`, or what a draw of `seed` puts there, and
        what the model then writes to the end of its turn. A picture under way is gone on with.

        In a user's turn, which has an end of turn behind it, `token` replaces the one that stands there and the rest of
        the turn stays; without a token all of it stays. The reply to it is drawn anew. The tokens of `without` are left
        out of what goes before. Of a long conversation the model is given the latest turns that fit into
        `settings.window`, as when it replies; the branch holds all of them. `changes` are made to the `settings`;
        `each` is called with the number of tokens drawn so far and may raise to stop. Raises ValueError where the
        result would be no well-formed document, for packed rows, and under `changes` of the model, which decoding does
        not know.
        """
        self.require(position, 1)
        if self.changes or self.documents_1T is not None:
            raise ValueError("A branch is drawn by the model as it is, of one document: inspect it without `changes`.")
        settings, engine = self.settings.changed(**changes), Engine(self.model, self.tokenizer, self.images)
        prompt, prefix = self._fork(position, token, without)
        latest, most = self._latest(prompt, settings)
        vocabulary, grammar = self.tokenizer.vocabulary, engine.default_grammar()
        if prefix and prefix[-1] in (vocabulary.end_turn, vocabulary.end_document):
            tokens = np.array([*prompt, *prefix])
            if grammar.syntax.read(tokens[:-1]).place is not None:
                raise ValueError(
                    f"Position {position} lies within a picture, which has to be whole before its turn ends."
                )
        else:
            drawn = settings.changed(max_tokens=most)
            reply = Continuation(self.model, self.tokenizer, [latest], drawn, [seed], grammar, prefix=prefix)
            for count, _ in enumerate(reply.tokens(), 1):
                if each is not None:
                    each(count)
            tokens = np.array([*prompt, *reply.rows[0].tokens[len(latest) :]])
        return type(self)(
            self.model, self.tokenizer, tokens, guide=settings.guide, settings=settings, images=self.images
        )

    def _latest(self, prompt: np.ndarray, settings: Settings) -> tuple[np.ndarray, int | None]:
        """What of a prompt the model is given, and how many tokens may come behind it: the whole has to fit."""
        turns, room = prompt[1:], self.model.config.context - len(prompt)
        ends = np.flatnonzero(turns == self.tokenizer.vocabulary.end_turn) + 1
        start = latest_turns([1] * len(turns), ends.tolist(), settings.window)
        if not start or room <= 0:
            return prompt, settings.max_tokens
        return np.concatenate([prompt[:1], turns[start:]]), min(room, settings.max_tokens or room)

    def _fork(self, position: int, token: int | None, without: Sequence[int]) -> tuple[np.ndarray, list[int]]:
        """The prompt of a branch, and the tokens with which its reply begins."""
        vocabulary = self.tokenizer.vocabulary
        ends = np.flatnonzero(self.tokens == vocabulary.end_turn)
        turn = int((ends < position).sum())
        start = int(ends[turn - 1]) + 1 if turn else 1
        stays = np.ones(len(self), bool)
        for place in without:
            self.require(place, 1)
            if self.modalities[place] != Modality.TEXT:
                raise ValueError(
                    f"Only words can be left out of a document, and position {place} is "
                    f"{self.words(self.tokens[place])!r}. `knock_out` measures what happens without it."
                )
            stays[place] = False
        fresh = [] if token is None else vocabulary.check([token]).tolist()
        if turn % 2 == 0 and turn < len(ends):  # a user's turn
            stop = int(ends[turn])
            rest = [] if fresh == [vocabulary.end_turn] else self.tokens[position:stop][stays[position:stop]].tolist()
            if fresh and position < stop and stays[position]:
                rest = rest[1:]
            before = self.tokens[:position][stays[:position]].tolist()
            words = before + (fresh if fresh != [vocabulary.end_turn] else []) + rest
            return np.array([*words, vocabulary.end_turn]), []
        if turn % 2 == 0:  # a text under way, which the model goes on with
            start = position
        before, prefix = (self.tokens[part][stays[part]] for part in (slice(start), slice(start, position)))
        return before, [*prefix.tolist(), *fresh]
