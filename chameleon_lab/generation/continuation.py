"""Documents under way: rows, the one decoder that holds them, and the step that adds a token to each.

The decoder's rows are those of the batch and, behind them, each row's twins for guidance (`guidance`), so that the
weights are read once for all: eight rows cost less than three times what one costs. Nothing is computed twice: a row is
fed what its cache lacks, a twin catches up when an image starts and keeps what its new stream shares with its old one.
All is state of the object, so that a reader may stop after any token and go on later.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from operator import length_hint
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from chameleon_lab import crossovers
from chameleon_lab.generation.compiled_step import CodeRun
from chameleon_lab.generation.decoder import Decoder, first_not_finite
from chameleon_lab.generation.drafts import Draft, agreement_length, guess
from chameleon_lab.generation.grammar import Mask, Rules, State
from chameleon_lab.generation.guidance import Guidance, linear_strengths
from chameleon_lab.generation.handover import Handover
from chameleon_lab.generation.recording import upload
from chameleon_lab.generation.samplers import Sampler
from chameleon_lab.generation.settings import Settings
from chameleon_lab.parts import plain_number
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Modality


class Options(NamedTuple):
    """What may come next in a row, the share of its image that is drawn, None where no code comes next, and whether
    what comes next stands in an image: a grid's side and a delimiter do, and are no codes."""

    mask: Mask
    share: float | None
    inside: bool

    @property
    def guided(self) -> bool | None:
        """As an image (True), as words (False), or not at all."""
        return True if self.share is not None else None if self.inside else False


class Draws:
    """Numbers of a seed, uniform in [0, 1), by their places."""

    def __init__(self, seed: int) -> None:
        self._seed, self._numbers = seed, list[float]()

    def __getitem__(self, place: int) -> float:
        if place >= len(self._numbers):
            # All of them again, and not the next of a generator: one that was interrupted has lost a number.
            self._numbers = np.random.default_rng(self._seed).random(2 * place + 64).tolist()
        return self._numbers[place]


@dataclass(frozen=True)
class ReplyRow:
    """One document under way, as it stands at one moment: a step makes another of it, and changes none.

    `limit` bounds its tokens. The reply begins at token `start`; it is the one with the number `reply` in this row.
    The next of its `draws` is the one at `place`.
    """

    tokens: tuple[int, ...]
    state: State
    limit: int
    start: int
    draws: Draws
    place: int = 0
    reply: int = 0

    @property
    def room(self) -> int:
        return self.limit - len(self.tokens)


class Standing(NamedTuple):
    """All that a continuation is at one moment, so that one assignment takes it to the next.

    `rows` as the last step left them, and the `outcomes` of that step: a row's index, a token, or None where the row
    ended, and the state after it; `after` is the row after each. `rest` are the outcomes not yet yielded, and `before`
    the rows before all of them.
    """

    rows: tuple[ReplyRow, ...]
    before: tuple[ReplyRow, ...]
    outcomes: tuple[tuple[int, int | None, State], ...]
    after: tuple[ReplyRow, ...]
    rest: Iterator[tuple[int, int | None, State]]

    @classmethod
    def of(
        cls,
        rows: Sequence[ReplyRow],
        before: Sequence[ReplyRow],
        outcomes: Sequence[tuple[int, int | None, State]] = (),
        after: Sequence[ReplyRow] = (),
    ) -> Standing:
        return cls(tuple(rows), tuple(before), tuple(outcomes), tuple(after), iter(tuple(outcomes)))

    @property
    def yielded(self) -> list[ReplyRow]:
        """The rows as far as their outcomes were yielded."""
        rows, count = list(self.before), len(self.outcomes) - length_hint(self.rest)
        for (index, _, _), row in zip(self.outcomes[:count], self.after, strict=False):
            rows[index] = row
        return rows


class TwinStream(NamedTuple):
    """What a twin sees. `copied`: number of its row's tokens at the last copy; None while it is not asked. `drawing`:
    whether it was asked for an image or for words."""

    tokens: list[int]
    copied: int | None = None
    drawing: bool = False


class Continuation:
    """Several documents under way at once; each depends on its own seed only.

    `room` is how many positions the cache gets for several replies, one after the other; by default there is one, and
    the cache gets what the settings allow. Each reply begins with the tokens of `prefix`, as if it had written them.
    `passes` counts how often the model was asked for what comes next.
    Raises ValueError on a prompt that is ill-formed, holds unknown ids or leaves no room to answer, on a prefix that
    the grammar forbids or that ends the reply, and where the cache does not fit into memory.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: MixedModalTokenizer,
        prompts: Sequence[np.ndarray],
        settings: Settings,
        seeds: Sequence[int],
        grammar: Rules,
        room: int | None = None,
        prefix: Sequence[int] = (),
    ) -> None:
        self.model, self.tokenizer, self.settings, self.grammar = model, tokenizer, settings, grammar
        self.guides = settings.text_guide, settings.guide  # of words, and of images
        rows = [self._row(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        rows = [self._write(row, prefix) for row in rows] if len(prefix) else rows
        self.moment = Standing.of(rows, rows)
        self._samplers = settings.text_sampler, settings.image_sampler
        twins = max(guide.twins if guide else 0 for guide in (self.guides if grammar.images else self.guides[:1]))
        self._twins = [[TwinStream([])] * len(rows) for _ in range(twins)]
        like = model.embedding.weight
        self.ahead = crossovers.CODES_AHEAD.get(like.device.type, 1)
        count = len(rows) * (1 + len(self._twins))
        self._decoder = Decoder(model, count, room or self._room(), lasting=room is not None)
        self._written_BV = None
        if settings.repetition != 1:
            shape = len(rows), model.config.vocabulary
            self._written_BV = torch.zeros(shape, dtype=torch.bool, device=like.device)
        self.passes = 0
        self._guesses = [dict[int, int]() for _ in rows]  # tokens picked behind drafts that did not hold, by position
        self._marked = [(-1, 0)] * len(rows)  # of each row in `_written_BV`: which reply, and up to which token

    @property
    def worker(self) -> str:
        """Who does the sums: see `Decoder`."""
        return self._decoder.worker

    @property
    def rows(self) -> tuple[ReplyRow, ...]:
        """The rows as the last step left them."""
        return self.moment.rows

    def tokens(self) -> Handover[tuple[int, int | None, State]]:
        """(row, token, state after it), step by step over all rows that go on.

        An end is a state with token None. Leave it, or interrupt it, whenever you like: another call goes on from
        there. If the weights were changed in between, what the rows hold is computed anew. Raises FloatingPointError
        when logits are not finite, naming the layer where that begins.
        """
        return Handover.of(self._steps())

    def _steps(self) -> Generator[Iterator[tuple[int, int | None, State]], None, None]:
        self.begin()
        while True:
            while length_hint(self.moment.rest):
                yield islice(self.moment.rest, 1)
            if all(row.state.ended for row in self.rows):
                return
            self.step()

    def begin(self) -> None:
        """Called where steps begin: looks whether the weights are still those that the rows were computed with."""
        with torch.inference_mode():
            self._decoder.begin()

    def append(self, index: int, tokens: np.ndarray, row: ReplyRow | None = None) -> None:
        """Puts more of a prompt behind what a row has written, for a new reply; what is cached stays.

        `row` is the row as far as its reader has it, by default as far as it was yielded. An end of document, or an
        image left unfinished, is taken back first. Raises what the constructor raises, and then changes nothing.
        """
        yielded = self.moment.yielded
        row = yielded[index] if row is None else row
        count = len(row.tokens)
        if row.state.place is not None:
            count -= 1 + row.state.place
        elif row.state.ended == "end_document":
            count -= 1
        whole = np.array([*row.tokens[:count], *self.tokenizer.vocabulary.check(tokens)])
        fresh = self._row(whole, 0, room=self._decoder.cache.room)
        # Draws of tokens that nobody got come again, so that how far ahead was picked does not show.
        fresh = replace(fresh, draws=row.draws, place=row.place, reply=self.rows[index].reply + 1)
        # Caches go back first: one that lacks something is filled again, one that has too much would be believed.
        self._decoder.rewind(index, count)
        for streams in self._twins:
            streams[index] = streams[index]._replace(copied=None)
        rows, yielded[index] = list(self.rows), fresh
        rows[index] = fresh
        left = len(self.moment.outcomes) - length_hint(self.moment.rest)
        pairs = zip(self.moment.outcomes[left:], self.moment.after[left:], strict=True)
        others = [(outcome, after) for outcome, after in pairs if outcome[0] != index]
        self.moment = Standing.of(rows, yielded, [outcome for outcome, _ in others], [after for _, after in others])

    def _row(self, prompt: np.ndarray, seed: int, room: int | None = None) -> ReplyRow:
        prompt = self.tokenizer.vocabulary.check(prompt)
        context = min(self.model.config.context, room or self.model.config.context)
        if plain_number(seed, "seed", whole=True) < 0:
            raise ValueError(f"seed must be 0 or more, not {seed}.")
        if not len(prompt):
            raise ValueError("A prompt has at least one token, begin_document: there is nothing to go on from.")
        if len(prompt) >= context:
            raise ValueError(
                f"The prompt has {len(prompt)} tokens and the model's context holds {context}: shorten the "
                f"conversation (an image costs {self.tokenizer.image_tokens} tokens) or start a new one."
            )
        most = self.settings.max_tokens
        limit = context if most is None else min(context, len(prompt) + most)
        state = self.grammar.start(prompt, limit - len(prompt))
        return ReplyRow(tuple(prompt.tolist()), state, limit, len(prompt), Draws(int(seed)))

    def _write(self, row: ReplyRow, prefix: Sequence[int]) -> ReplyRow:
        """The row with the tokens with which a reply begins behind its prompt, each as the grammar allows it."""
        for place, token in enumerate(self.tokenizer.vocabulary.check(prefix).tolist()):
            fits = row.room > 0 and self.grammar.allowed(row.state, row.room).allowed_V[token]
            state = self.grammar.advance(row.state, token) if fits else row.state
            if not fits or state.ended:
                ends = fits and state.ended != "length"
                raise ValueError(
                    f"A reply cannot begin with this prefix: token {token} at place {place} of it "
                    + ("ends the reply." if ends else "cannot stand there, or there is no room for what it begins.")
                )
            row = replace(row, tokens=(*row.tokens, token), state=state)
        return row

    def _is_word(self, token: int) -> bool:
        return self.tokenizer.vocabulary.modality[token] == Modality.TEXT

    def _room(self) -> int:
        """Positions that the rows may come to, and their twins, which a negative prompt makes longer."""
        excess, begin = 0, self.tokenizer.vocabulary.begin_image
        text_guide, image_guide = self.guides
        for row in self.rows if self._twins else ():
            for guide, tokens in (
                (text_guide, row.tokens),
                (image_guide if self.grammar.images else None, (*row.tokens, begin)),
            ):
                if guide:
                    streams = self._streams(guide, [*tokens])
                    excess = max(excess, *(len(stream) - len(tokens) for stream in streams))
        return min(self.model.config.context, max((row.limit for row in self.rows), default=1) + excess)

    def _streams(self, guide: Guidance, tokens: list[int]) -> list[list[int]]:
        """What the twins of a row see. Raises ValueError for a guidance that breaks its word."""
        streams = [[int(token) for token in each] for each in guide.streams(np.array(tokens), self.tokenizer)]
        if len(streams) != guide.twins or not all(streams):
            raise ValueError(
                f"{type(guide).__name__} has {guide.twins} twins and gave streams of "
                f"{[len(stream) for stream in streams]} tokens: one for each, none empty."
            )
        return streams

    @torch.inference_mode()
    def step(self) -> None:
        """More tokens for each row that goes on: one, or on a GPU several.

        A GPU works while Python prepares, so long as Python does not ask for a result: the next tokens are picked
        before the last ones are on this side, as long as the grammar can foresee what may come. What follows a wrong
        forecast about a row is forgotten.

        All is computed aside, and then `moment` becomes another in one assignment: a step that is interrupted anywhere
        was not taken. What it leaves behind in caches is told by their lengths, and taken back by the next.
        """
        rows, outcomes, after = list(self.rows), list[tuple[int, int | None, State]](), list[ReplyRow]()

        def become(index: int, token: int | None, row: ReplyRow) -> None:
            rows[index] = row
            outcomes.append((index, token, row.state))
            after.append(row)

        for index, row in enumerate(rows):
            if not row.state.ended and row.room <= 0:
                become(index, None, replace(row, state=replace(row.state, ended="length")))
        live = [index for index, row in enumerate(rows) if not row.state.ended]
        drafts = self._drafts(live, rows) if self.settings.drafts else {}
        if any(draft.tokens for draft in drafts.values()):
            for index, token in self._checked(drafts, rows):
                row = self._with(rows[index], token)
                become(index, None if row.state.ended else token, row)
            self._forget(drafts, rows)
            self.moment = Standing.of(rows, self.rows, outcomes, after)
            return
        for place, (options, tokens_R, sum_) in enumerate(self._picks(live, rows) if live else ()):
            if place and not (math.isfinite(sum_) and self._holds(options, rows)):
                break  # the next step goes on from here, or raises
            if not math.isfinite(sum_):
                raise self._not_finite(live, self._guided(options))
            for index, token in zip(live, tokens_R, strict=True):
                row = self._with(rows[index], token)
                become(index, None if row.state.ended else token, row)
        self.moment = Standing.of(rows, self.rows, outcomes, after)

    def _drafts(self, live: Iterable[int], rows: Sequence[ReplyRow]) -> dict[int, Draft[Options]]:
        """What may come next in each row, and in those that draw, guesses at it and what may come behind them."""
        drafts: dict[int, Draft[Options]] = {}
        for index in live:
            row, state, tokens = rows[index], rows[index].state, list[int]()
            options = [self._options_in(state, row.room)]
            while options[-1].share is not None and len(tokens) < min(self.settings.drafts, row.room - 1):
                before = tokens[-1] if tokens else row.tokens[-1]
                token = guess(options[-1].mask, self._guesses[index].get(len(row.tokens) + len(tokens)), before)
                state = self.grammar.advance(state, token)
                further = None if state.ended else self._options_in(state, row.room - len(tokens) - 1)
                if further is None or further.share is None:
                    break
                tokens.append(token)
                options.append(further)
            drafts[index] = Draft(tuple(tokens), tuple(options))
        return drafts

    def _checked(self, drafts: dict[int, Draft[Options]], rows: Sequence[ReplyRow]) -> Iterator[tuple[int, int]]:
        """(row, token) for the next token of each row, and for those behind it as far as the drafts before them hold.

        Each place is picked with its own draw, from what the model says behind the drafts. A draft holds if it is what
        was picked there, and then the place behind it was looked at rightly: so each token is the one that plain
        sampling picks, but where rounding decides.
        """
        count, first = len(rows), {index: draft.options[0] for index, draft in drafts.items()}
        guided = self._guided(first)
        news = [list(drafts[index].tokens) if index in drafts else [] for index in range(count)]
        logits_SBTV = self._logits(guided, rows, news)
        logits_SKV = logits_SBTV.transpose(1, 2).flatten(1, 2)  # place after place, each with all rows
        places = sorted((place, index) for index, draft in drafts.items() for place in range(len(draft.options)))
        options = {place * count + index: drafts[index].options[place] for place, index in places}
        shifted = [replace(row, place=row.place + place) for place in range(logits_SBTV.shape[2]) for row in rows]
        tokens_K, sum_ = self._pick(options, 0, logits_SKV, shifted)
        if not math.isfinite(float(sum_)):
            raise self._not_finite(list(drafts), guided)
        picked: dict[int, list[int]] = {index: [] for index in drafts}
        for (_, index), token in zip(places, tokens_K.tolist(), strict=True):
            picked[index].append(token)
        for index, tokens in picked.items():
            length, agreed = len(rows[index].tokens), agreement_length(drafts[index].tokens, tokens)
            self._guesses[index] = {length + place: token for place, token in enumerate(tokens) if place >= agreed}
            yield from ((index, token) for token in tokens[:agreed])

    def _forget(self, drafts: Iterable[int], rows: Sequence[ReplyRow]) -> None:
        """Takes drafts that did not hold out of the caches: a later prompt may begin right behind the last token."""
        for index in drafts:
            length, before = len(rows[index].tokens), len(self.rows[index].tokens)
            self._decoder.rewind(index, length - 1)
            for twin, streams in enumerate(self._twins, 1):
                self._decoder.rewind(twin * len(rows) + index, len(streams[index].tokens) + length - before - 1)

    def _picks(
        self, live: list[int], rows: Sequence[ReplyRow]
    ) -> Iterator[tuple[dict[int, Options], list[int], float]]:
        """What may come next, what was picked of it, and the sum of its logits; then what may come after that, and so
        on as far ahead as can be foreseen."""
        first = self._options(live, rows)
        guided = self._guided(first)
        logits_SBV, picked, sums = self._logits(guided, rows), list[Tensor](), list[Tensor]()
        if self.ahead == 1 and (run := self._run_of_codes(first, guided, logits_SBV, rows)):
            return iter(run)
        forecasts = [first, *self._forecasts(first, rows, self.ahead)]
        for place, options in enumerate(forecasts):
            if picked:
                logits_SBV = self._logits_after(picked[-1], live, guided)
            tokens_R, sum_ = self._pick(options, place, logits_SBV, rows)
            picked.append(tokens_R)
            sums.append(sum_)
        # The one wait for the device: tokens and sums together, in float32, which holds ids below 2**24.
        both_PN = torch.cat([torch.stack(picked), torch.stack(sums)[:, None]], 1).tolist()
        picks = [([int(token) for token in tokens], sum_) for *tokens, sum_ in both_PN]
        return ((options, *each) for options, each in zip(forecasts, picks, strict=True))

    def _run_of_codes(
        self, first: dict[int, Options], guided: dict[int, bool], logits_SBV: Tensor, rows: Sequence[ReplyRow]
    ) -> list[tuple[dict[int, Options], list[int], float]] | None:
        """What `_picks` gives, of codes that one call draws; None where there is none, or it knows no such rows.

        A step of a small model takes less time than the way to the next one through Python.
        """
        [mask, *others] = {each.mask for each in first.values()}
        guide, sampler = self.guides[True] if guided else None, self._samplers[True]
        alike = not others and all(each.share is not None for each in first.values()) and len(guided) in (0, len(first))
        if not alike or type(sampler) is not Sampler or len(mask.ids(logits_SBV.device)) == 1:
            return None
        if linear_strengths(guide, 0.0) is None:
            return None
        streams = 1 + guide.twins if guide else 1
        ahead = self._decoder.run_of_codes(streams * len(rows))
        run = [first, *(self._forecasts(first, rows, ahead) if ahead > 1 else ())]
        run = list(takewhile(lambda options: all(each.mask is mask for each in options.values()), run))
        if len(run) == 1:
            return None
        live, numbers = list(first), list[list[tuple[float, float]]]()
        for options in run:
            shares = [share for each in options.values() if (share := each.share) is not None]
            numbers.append([strengths for share in shares if (strengths := linear_strengths(guide, share))])
        quantiles = [[rows[index].draws[rows[index].place + place] for index in live] for place in range(len(run))]
        codes_PR, count = self._decoder.draw(
            CodeRun(
                logits_SBV[:streams],
                live,
                mask.ids(logits_SBV.device),
                sampler,
                np.array(quantiles, np.float32),
                np.array(numbers, np.float32),
                self.tokenizer.vocabulary.pad,
            )
        )
        self.passes += count - 1 if count else 0
        sums = [0.0] * count + [math.nan] * (len(run) - count)
        return list(zip(run, codes_PR, sums, strict=True))

    def _with(self, row: ReplyRow, token: int) -> ReplyRow:
        """The row with a picked token behind it."""
        state = self.grammar.advance(row.state, token)
        tokens = row.tokens if state.ended in ("ill_formed", "length") else (*row.tokens, token)
        spent = state.ended != "length"  # for a picture without room nothing is written, and no draw is spent
        return replace(row, tokens=tokens, state=state, place=row.place + spent)

    def _guided(self, options: dict[int, Options]) -> dict[int, bool]:
        """The rows that have a guidance now, and whether it is that of images."""
        modes = ((index, each.guided) for index, each in options.items())
        return {index: drawing for index, drawing in modes if drawing is not None and self.guides[drawing]}

    def _options(self, live: Iterable[int], rows: Sequence[ReplyRow]) -> dict[int, Options]:
        """What may come next in each of these rows, none of which has ended."""
        return {index: self._options_in(rows[index].state, rows[index].room) for index in live}

    def _options_in(self, state: State, room: int) -> Options:
        return Options(self.grammar.allowed(state, room), self.grammar.share(state), state.place is not None)

    def _forecasts(
        self, first: dict[int, Options], rows: Sequence[ReplyRow], ahead: int
    ) -> Iterator[dict[int, Options]]:
        """What may come after `first`, and so on, while each row goes on in its modality as usual: `ahead` in all."""
        cache = self._decoder.cache
        ahead = min(ahead, 1 + cache.room - int(cache.lengths.max()))
        if any(each.share is None for each in first.values()):
            # A penalty needs the words before, of which nothing is on this side yet.
            ahead = min(ahead, crossovers.WORDS_AHEAD if self._written_BV is None else 1)
        states, options = {index: rows[index].state for index in first}, first
        for place in range(1, ahead):
            for index, each in options.items():
                states[index] = self.grammar.advance(states[index], each.mask.usual(self.tokenizer.vocabulary))
            if any(state.ended or rows[index].room <= place for index, state in states.items()):
                return
            options = {index: self._options_in(state, rows[index].room - place) for index, state in states.items()}
            if any(options[index].guided != first[index].guided for index in first):
                return
            yield options

    def _holds(self, forecast: dict[int, Options], rows: Sequence[ReplyRow]) -> bool:
        """Whether all rows have come to stand as was forecast."""
        return not any(rows[index].state.ended for index in forecast) and self._options(forecast, rows) == forecast

    def _not_finite(self, live: list[int], guided: dict[int, bool]) -> FloatingPointError:
        """What to raise for logits with a NaN or an infinity: the rows are run through the model again to see where.

        A sampler makes one token for ever of them, or an end, which no reader could tell from a reply.
        """
        streams = [list(self.rows[index].tokens) for index in live]
        streams += [twins[index].tokens for twins in self._twins for index in guided if twins[index].tokens]
        device = self.model.embedding.weight.device
        for stream in streams:
            if name := first_not_finite(self.model, torch.tensor(stream, device=device)):
                return FloatingPointError(
                    f"The logits after {len(stream)} tokens are not finite: the first output with a NaN or an infinity "
                    f"is that of {name}. Load the weights anew or go back to an earlier checkpoint; with a 16-bit "
                    "type, try float32."
                )
        if guided:
            guides = {self.guides[drawing] for drawing in guided.values()}
            return FloatingPointError(
                f"The logits after {len(streams[0])} tokens are not finite, though the model gives finite ones: "
                f"{', '.join(map(str, guides))} mixes them into such. Make it weaker, or look at what its mix and its "
                "schedule return."
            )
        return FloatingPointError(
            f"The logits after {len(streams[0])} tokens are not finite, though the model gives finite ones for the "
            f"whole row at once: what computed them ({self.worker}) or its cache is at fault. Please report this, with "
            "the model's config."
        )

    def _pick(
        self, options: dict[int, Options], place: int, logits_SBV: Tensor, rows: Sequence[ReplyRow]
    ) -> tuple[Tensor, Tensor]:
        """A token for each of these rows, in their order, with the draw at this place of those they have next.

        The second is a sum of all logits that were picked from, mixed ones included: finite where each of them is.
        """
        alike: dict[tuple[Mask, bool | None], list[int]] = {}  # rows of which the same may come
        for index, each in options.items():
            alike.setdefault((each.mask, each.guided), []).append(index)
        picked, sums = zip(
            *(
                self._pick_alike(mask, guided, options, place, some, logits_SBV, rows)
                for (mask, guided), some in alike.items()
            ),
            strict=True,
        )
        if len(picked) == 1:
            return picked[0], sums[0]
        order = np.argsort([index for some in alike.values() for index in some])
        return torch.cat(picked)[upload(order, logits_SBV.device)], torch.stack(sums).sum()

    def _pick_alike(
        self,
        mask: Mask,
        guided: bool | None,
        options: dict[int, Options],
        place: int,
        some: list[int],
        logits_SBV: Tensor,
        rows: Sequence[ReplyRow],
    ) -> tuple[Tensor, Tensor]:
        """A token for each of some rows of which the same may come, tokens_R, and the sum of the logits."""
        draws = [rows[index].draws[rows[index].place + place] for index in some]
        shares = [share for index in some if (share := options[index].share) is not None]
        guide, sampler = None if guided is None else self.guides[guided], self._samplers[bool(shares)]
        ids_V, logits_SRV = mask.ids(logits_SBV.device), _select(logits_SBV, some)
        if len(ids_V) == 1:  # nothing to pick, but no less to check
            return ids_V.expand(len(some)), logits_SRV.sum()
        written_BV = None if shares or self._written_BV is None else self._words_written(self._written_BV)
        written_RV = None if written_BV is None else _select(written_BV, some)
        if shares or guide:  # guidance, and the sampler of images, get what may come alone
            streams = logits_SRV[: 1 + guide.twins] if guide else logits_SRV[:1]
            logits_SRV = streams.index_select(-1, ids_V)
            logits_RV, sum_ = logits_SRV[0], logits_SRV.sum()
            if guide:
                logits_RV = guide.mix(logits_SRV, shares or [0.0] * len(some))
                # A guidance may rule tokens out, by -inf, but not all of a row's.
                sum_ = sum_ + logits_RV.masked_fill(logits_RV == -torch.inf, 0).sum() + logits_RV.amax(-1).sum()
            written_RV = None if written_RV is None else written_RV.index_select(-1, ids_V)
            return ids_V[sampler.pick(logits_RV, draws, written_RV)], sum_
        # Here most of the vocabulary may come: to hide the rest is faster than to gather it.
        logits_RV = logits_SRV[0].masked_fill(mask.hidden(logits_SRV.device), -torch.inf)
        return sampler.pick(logits_RV, draws, written_RV), logits_SRV[0].sum()

    def _words_written(self, written_BV: Tensor) -> Tensor:
        """Which words each row's reply holds, brought up to date from the rows themselves."""
        for index, row in enumerate(self.rows):
            reply, count = self._marked[index]
            if reply != row.reply:
                written_BV[index], count = False, row.start
            if words := [token for token in row.tokens[count:] if self._is_word(token)]:
                written_BV[index, words] = True
            self._marked[index] = row.reply, len(row.tokens)
        return written_BV

    def _logits(
        self, guided: dict[int, bool], rows: Sequence[ReplyRow], drafts: list[list[int]] | None = None
    ) -> Tensor:
        """Feeds rows, and twins of those that are guided, what their cache lacks: the logits that follow, S x B x V.

        With `drafts` of each row, they are fed too, and logits follow each of them: S x B x T x V.

        S is 1 while no row is guided. Rows that were fed nothing have logits of no meaning. What rows and twins were
        fed beyond their tokens, by a wrong forecast or because a step was interrupted, is taken back first.
        """
        count, lengths = len(rows), self._decoder.cache.lengths
        self.passes += 1
        for index, row in enumerate(rows):
            self._decoder.rewind(index, len(row.tokens) - 1)  # the next token needs the last one's logits
        news = [list(row.tokens[lengths[index] :]) for index, row in enumerate(rows)]
        for index, row in enumerate(rows):
            if row.state.ended:
                news[index] = []
            elif index not in guided:
                for streams in self._twins:
                    streams[index] = streams[index]._replace(copied=None)
        if not guided and drafts is None:
            return self._decoder.logits(self._feed(0, news))[None]
        for index, drawing in guided.items():
            self._update_twins(index, rows[index], drawing)
        for twin, streams in enumerate(self._twins if guided else (), 1):
            news += [
                stream.tokens[lengths[twin * count + index] :] if index in guided and stream.copied is not None else []
                for index, stream in enumerate(streams)
            ]
        # All but the last tokens first, without the rows when they lack nothing: a twin's whole stream beside one token
        # of its row would otherwise pad the row to the same width.
        behind = [new[:-1] for new in news]
        if any(behind):
            start = 0 if any(behind[:count]) else count
            self._feed(start, behind[start:])
        last = [new[-1:] for new in news]
        if drafts is None:
            return self._decoder.logits(self._feed(0, last)).unflatten(0, (-1, count))
        last = [new and new + drafts[place % count] for place, new in enumerate(last)]
        width, pad = max(map(len, last)), self.tokenizer.vocabulary.pad
        tokens_BT = upload([new + [pad] * (width - len(new)) for new in last], self.model.embedding.weight.device)
        outputs_BTD = self._decoder.feed(tokens_BT, [len(new) for new in last])
        return self._decoder.logits(outputs_BTD).unflatten(0, (-1, count))

    def _update_twins(self, index: int, row: ReplyRow, drawing: bool) -> None:
        """Gives the twins of a row that is guided the tokens they have to see, and takes back those that differ.

        A twin's cache holds its tokens at all places that both have, so it goes back before its tokens change.
        """
        guide, fresh = self.guides[drawing], None
        assert guide is not None
        for twin, streams in enumerate(self._twins):
            (tokens, copied, as_image), place = streams[index], (1 + twin) * len(self.rows) + index
            if twin >= guide.twins:  # the other modality's guidance has more
                streams[index] = streams[index]._replace(copied=None)
                continue
            if copied is None or as_image != drawing:
                fresh = fresh or self._streams(guide, list(row.tokens))
                pairs = zip(tokens[: self._decoder.cache.lengths[place]], fresh[twin][:-1], strict=False)
                self._decoder.rewind(place, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
                tokens = fresh[twin]
            else:
                tokens = tokens + list(row.tokens[copied:])
                self._decoder.rewind(place, len(tokens) - 1)
            streams[index] = TwinStream(tokens, len(row.tokens), drawing)
        longest, room = max(len(streams[index].tokens) for streams in self._twins), self._decoder.cache.room
        if longest > room:
            raise ValueError(
                f"Guidance needs {longest} positions beside the document and the cache holds {room}: "
                "shorten the negative prompt, or what else guidance puts before the image."
            )

    def _logits_after(self, tokens_R: Tensor, live: list[int], guided: dict[int, bool]) -> Tensor:
        """The logits after tokens that are on the device only, one for each row that goes on: S x B x V."""
        count, device = len(self.rows), tokens_R.device
        self.passes += 1
        tokens_B = torch.full((count,), self.tokenizer.vocabulary.pad, device=device)
        tokens_B[upload(live, device)] = tokens_R
        twins = len(self._twins) if guided else 0
        counts = [int(index in live) for index in range(count)]
        for streams in self._twins if guided else ():
            counts += [int(index in guided and stream.copied is not None) for index, stream in enumerate(streams)]
        outputs_BTD = self._decoder.feed(tokens_B.repeat(1 + twins)[:, None], counts)
        return self._decoder.logits(outputs_BTD[:, 0]).unflatten(0, (-1, count))

    def _feed(self, start: int, news: list[list[int]]) -> Tensor:
        """Feeds new tokens to the decoder's rows from `start` on, right-padded to one width, `PROMPT_POSITIONS` of each
        at a time: outputs_BD after each row's last."""
        width, device = max(map(len, news)), self.model.embedding.weight.device
        tokens_BT = torch.tensor([new + [self.tokenizer.vocabulary.pad] * (width - len(new)) for new in news])
        last_BD: Tensor | None = None
        for begin in range(0, width, crossovers.PROMPT_POSITIONS):
            part_BT = upload(tokens_BT[:, begin : begin + crossovers.PROMPT_POSITIONS], device)
            counts = [min(max(len(new) - begin, 0), part_BT.shape[1]) for new in news]
            outputs_BTD = self._decoder.feed(part_BT, counts, start)
            if outputs_BTD.shape[1] == 1:
                latest_BD = outputs_BTD[:, 0]
            else:
                places_B = upload([max(count - 1, 0) for count in counts], device)
                latest_BD = outputs_BTD[torch.arange(len(news), device=device), places_B]
            if last_BD is not None:
                fresh_B1 = upload([[count > 0] for count in counts], device)
                latest_BD = torch.where(fresh_B1, latest_BD, last_BD)
            last_BD = latest_BD
        assert last_BD is not None
        return last_BD


def _select(logits: Tensor, some: list[int]) -> Tensor:
    """Some rows of the last but one dimension, without a copy where they are all."""
    return logits if len(some) == logits.shape[-2] else logits.index_select(-2, upload(some, logits.device))
