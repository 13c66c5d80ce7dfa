"""Documents under way: rows, the one cache that holds them, and the step that adds a token to each.

The cache holds every row of a batch and, below them, each row's twins for guidance (`guidance`). Nothing is computed
twice: a row is fed what its cache has not seen, a twin catches up when an image starts and keeps what it has in common
with what it saw before. All is state of the object, so that one may stop after any token and go on later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from chameleon_lab.generation.grammar import Mask, Rules, State
from chameleon_lab.generation.settings import Settings
from chameleon_lab.kv_cache import KVCache
from chameleon_lab.recording import sent
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.transformer import ModelConfig, Transformer
from chameleon_lab.vocabulary import Modality

AHEAD = {"cuda": 16}
"""How many codes are picked before the first is looked at, by kind of device; elsewhere one."""
AT_ONCE = 512  # tokens of a prompt that each row is given at a time, which bounds the memory that they take
WORDS_AHEAD = 4  # and words, which end when they like: what was computed after that is lost


class _Wanted(NamedTuple):
    """What may come next in a row, and how much of an image is drawn."""

    mask: Mask
    share: float | None


class Row:
    """One document under way. `limit` bounds its tokens; `shown` is how many of them were told, and the state then;
    `twinned` is how many its twins were told of the image being drawn, None while none is."""

    def __init__(self, tokens: list[int], state: State, limit: int, seed: int) -> None:
        self.tokens, self.state, self.limit = tokens, state, limit
        self.shown = len(tokens), state
        self.twinned: int | None = None
        self._random, self._draws, self._used = np.random.default_rng(seed), list[float](), 0

    def draws(self, count: int) -> list[float]:
        """The next draws, uniform in [0, 1); those not `used` come again."""
        self._draws += [self._random.random() for _ in range(self._used + count - len(self._draws))]
        return self._draws[self._used : self._used + count]

    def used(self, count: int) -> None:
        """So many draws more; below 0, the last ones come again."""
        self._used += count

    @property
    def room(self) -> int:
        return self.limit - len(self.tokens)


class Continuation:
    """Several documents under way at once; each depends on its own seed only.

    Raises ValueError on a prompt that is ill-formed, holds unknown ids or leaves no room to answer, and where the
    cache does not fit into memory. `room` is how many positions the cache gets, by default what the settings allow.
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
    ) -> None:
        self.model, self.tokenizer, self.settings, self.grammar = model, tokenizer, settings, grammar
        self.guide = settings.guide
        self.rows = [self._row(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        self._samplers = settings.text_sampler, settings.image_sampler
        self._twins: list[list[list[int]]] = [
            [[] for _ in self.rows] for _ in range(self.guide.twins if self.guide else 0)
        ]
        self._fed = [0] * (len(self.rows) * (1 + len(self._twins)))
        self._told: deque[tuple[int, int | None, State, int]] = deque()  # yet to be told, with the row's tokens then
        like = model.embedding.weight
        self.ahead = AHEAD.get(like.device.type, 1)
        self._cache = _cache(model.config, len(self._fed), like, room or self._room())
        self._said_BV = None
        if settings.repetition != 1:
            self._said_BV = torch.zeros(len(self.rows), model.config.vocabulary, dtype=torch.bool, device=like.device)

    def tokens(self) -> Iterator[tuple[int, int | None, State]]:
        """(row, token, state after it), step by step over all rows that go on.

        Ends are told by the state, with token None. Leave it whenever you like: another call goes on from there.
        """
        while True:
            while self._told:
                index, token, state, count = self._told.popleft()
                self.rows[index].shown = count, state
                yield index, token, state
            if all(row.state.ended for row in self.rows):
                return
            self._step()

    def append(self, index: int, tokens: np.ndarray) -> None:
        """Puts more of a prompt behind what a row has written, for a new reply; what is cached stays.

        An end of document, or an image left unfinished, is taken back first. Raises what the constructor raises, and
        then changes nothing.
        """
        row = self.rows[index]
        kept, state = row.shown
        if state.place is not None:
            kept -= 1 + state.place
        elif state.ended == "end_document":
            kept -= 1
        whole = np.array([*row.tokens[:kept], *self.tokenizer.vocabulary.check(tokens)])
        fresh = self._row(whole, 0, room=self._cache.room)
        row.tokens, row.state, row.limit, row.shown, row.twinned = (
            fresh.tokens, fresh.state, fresh.limit, fresh.shown, None,
        )  # fmt: skip
        row.used(-sum(each == index and state.ended != "length" for each, _, state, _ in self._told))
        self._told = deque(each for each in self._told if each[0] != index)
        self._rewind(index, min(kept, self._fed[index]))
        if self._said_BV is not None:
            self._said_BV[index] = False

    def _row(self, prompt: np.ndarray, seed: int, room: int | None = None) -> Row:
        prompt = self.tokenizer.vocabulary.check(prompt)
        context = min(self.model.config.context, room or self.model.config.context)
        if seed < 0:
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
        return Row(prompt.tolist(), self.grammar.start(prompt, limit - len(prompt)), limit, seed)

    def _room(self) -> int:
        """Positions that the rows may come to, and their twins, which a negative prompt makes longer."""
        longer, begin = 0, self.tokenizer.vocabulary.begin_image
        for row in self.rows if self._twins and self.grammar.images else ():
            streams = self._streams([*row.tokens, begin])
            longer = max(longer, *(len(stream) - len(row.tokens) - 1 for stream in streams))
        return min(self.model.config.context, max((row.limit for row in self.rows), default=1) + longer)

    def _streams(self, tokens: list[int]) -> list[list[int]]:
        """What the twins of a row see. Raises ValueError for a guidance that breaks its word."""
        assert self.guide is not None
        streams = [[int(token) for token in each] for each in self.guide.streams(np.array(tokens), self.tokenizer)]
        if len(streams) != self.guide.twins or not all(streams):
            raise ValueError(
                f"{type(self.guide).__name__} has {self.guide.twins} twins and gave streams of "
                f"{[len(stream) for stream in streams]} tokens: one for each, none empty."
            )
        return streams

    @torch.inference_mode()
    def _step(self) -> None:
        """More tokens for each row that goes on, put into `_told`: one, or on a GPU several.

        There the next ones are picked before the last ones are known here, as long as the grammar can foresee what may
        come; what comes after it was wrong about a row is forgotten.
        """
        for index, row in enumerate(self.rows):
            if not row.state.ended and row.room <= 0:
                row.state = replace(row.state, ended="length")
                self._told.append((index, None, row.state, len(row.tokens)))
        live = [index for index, row in enumerate(self.rows) if not row.state.ended]
        if not live:
            return
        first = self._wanted(live)
        drawing = [index for index in live if first[index].share is not None]
        logits_SBV, picked = self._logits(drawing), list[Tensor]()
        foreseen = [first, *self._foreseen(first)]
        for place, wanted in enumerate(foreseen):
            if picked:
                logits_SBV = self._logits_after(picked[-1], live, drawing)
            picked.append(self._pick(wanted, place, logits_SBV))
        tokens_PR = torch.stack(picked).tolist()  # the one wait for the device
        for place, (wanted, tokens_R) in enumerate(zip(foreseen, tokens_PR, strict=True)):
            if place and not self._goes_on(wanted):
                return
            for index, token in zip(live, tokens_R, strict=True):
                self._take(index, token)

    def _wanted(self, live: Iterable[int]) -> dict[int, _Wanted]:
        """What may come next in each of these rows, none of which has ended."""
        return {index: self._wanted_in(self.rows[index].state, self.rows[index].room) for index in live}

    def _wanted_in(self, state: State, room: int) -> _Wanted:
        return _Wanted(self.grammar.allowed(state, room), self.grammar.share(state))

    def _foreseen(self, first: dict[int, _Wanted]) -> Iterator[dict[int, _Wanted]]:
        """What may come after what is `first` wanted, and so on, while each row goes on in its modality as usual."""
        ahead = min(self.ahead, 1 + self._cache.room - max(self._fed))
        if any(share is None for _, share in first.values()):
            ahead = min(ahead, WORDS_AHEAD if self._said_BV is None else 1)
        states, wanted = {index: self.rows[index].state for index in first}, first
        for place in range(1, ahead):
            for index, (mask, _) in wanted.items():
                states[index] = self.grammar.advance(states[index], mask.usual(self.tokenizer.vocabulary))
            if any(state.ended or self.rows[index].room <= place for index, state in states.items()):
                return
            wanted = {index: self._wanted_in(state, self.rows[index].room - place) for index, state in states.items()}
            if any((wanted[index].share is None) != (first[index].share is None) for index in first):
                return
            yield wanted

    def _goes_on(self, foreseen: dict[int, _Wanted]) -> bool:
        """Whether all rows stand as was foreseen of them."""
        return not any(self.rows[index].state.ended for index in foreseen) and self._wanted(foreseen) == foreseen

    def _take(self, index: int, token: int) -> None:
        """Puts a picked token behind its row and tells of it."""
        row = self.rows[index]
        row.state = self.grammar.advance(row.state, token)
        row.used(1)
        if row.state.ended != "ill_formed":
            row.tokens.append(token)
        if self._said_BV is not None and self.tokenizer.vocabulary.modality[token] == Modality.TEXT:
            self._said_BV[index, token] = True
        self._told.append((index, None if row.state.ended else token, row.state, len(row.tokens)))

    def _pick(self, wanted: dict[int, _Wanted], place: int, logits_SBV: Tensor) -> Tensor:
        """A token for each of these rows, in their order, with the draw at this place of those they have next."""
        alike: dict[tuple[Mask, bool], list[int]] = {}  # rows of which the same may come
        for index, (mask, share) in wanted.items():
            alike.setdefault((mask, share is not None), []).append(index)
        picked = [self._pick_alike(mask, wanted, place, some, logits_SBV) for (mask, _), some in alike.items()]
        if len(picked) == 1:
            return picked[0]
        order = np.argsort([index for some in alike.values() for index in some])
        return torch.cat(picked)[sent(order, logits_SBV.device)]

    def _pick_alike(
        self, mask: Mask, wanted: dict[int, _Wanted], place: int, some: list[int], logits_SBV: Tensor
    ) -> Tensor:
        """A token for each of some rows of which the same may come: tokens_R."""
        draws = [self.rows[index].draws(place + 1)[place] for index in some]
        drawn = [share for index in some if (share := wanted[index].share) is not None]
        ids_V, logits_SRV = mask.ids(logits_SBV.device), _rows(logits_SBV, some)
        if len(ids_V) == 1:
            return ids_V.expand(len(some))
        if drawn:  # guidance and sampler are given the codes alone
            logits_SRV = logits_SRV.index_select(-1, ids_V)
            logits_RV = self.guide.mix(logits_SRV, drawn) if self.guide else logits_SRV[0]
            return ids_V[self._samplers[1].pick(logits_RV, draws)]
        # Here most of the vocabulary may come: to hide the rest is faster than to gather it.
        logits_RV = logits_SRV[0].masked_fill(mask.hidden(logits_SRV.device), -torch.inf)
        return self._samplers[0].pick(logits_RV, draws, None if self._said_BV is None else _rows(self._said_BV, some))

    def _logits(self, drawing: list[int]) -> Tensor:
        """Feeds rows, and the twins of those that draw, what their cache lacks: the logits that follow, S x B x V.

        S is 1 while no row is guided. Rows that were fed nothing have logits of no meaning. What rows and twins were
        fed beyond their tokens, because it was foreseen wrongly or a step was interrupted, is taken back first.
        """
        count = len(self.rows)
        for index, row in enumerate(self.rows):
            self._rewind(index, len(row.tokens) - 1)  # the last one's logits are wanted
        news = [row.tokens[self._fed[index] :] for index, row in enumerate(self.rows)]
        for index, row in enumerate(self.rows):
            if row.state.ended:
                news[index] = []
            elif index not in drawing:
                row.twinned = None
        if not self._twins or not drawing:
            return self._feed(news)[None]
        for index in drawing:
            self._tell_twins(index)
        for twin, streams in enumerate(self._twins, 1):
            news += [
                stream[self._fed[twin * count + index] :] if index in drawing else []
                for index, stream in enumerate(streams)
            ]
        behind = [new[:-1] for new in news]
        if any(behind):
            start = 0 if any(behind[:count]) else count
            self._run(start, behind[start:])
        return self._feed([new[-1:] for new in news]).unflatten(0, (-1, count))

    def _tell_twins(self, index: int) -> None:
        """Tells the twins of a row that draws what they have to see, and takes back what they saw otherwise."""
        row = self.rows[index]
        if row.twinned is None:
            for twin, wanted in enumerate(self._streams(row.tokens)):
                place = (1 + twin) * len(self.rows) + index
                held = self._twins[twin][index][: self._fed[place]]
                same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(held, wanted[:-1], strict=False)))
                self._twins[twin][index] = wanted
                self._rewind(place, same)
        else:
            for twin, streams in enumerate(self._twins, 1):
                streams[index] += row.tokens[row.twinned :]
                self._rewind(twin * len(self.rows) + index, len(streams[index]) - 1)
        row.twinned = len(row.tokens)
        longest = max(len(streams[index]) for streams in self._twins)
        if longest > self._cache.room:
            raise ValueError(
                f"Guidance needs {longest} positions beside the document and the cache holds {self._cache.room}: "
                "shorten the negative prompt, or what else guidance puts before the image."
            )

    def _logits_after(self, tokens_R: Tensor, live: list[int], drawing: list[int]) -> Tensor:
        """The logits after tokens that only the device knows yet, one for each row that goes on: S x B x V."""
        count, device = len(self.rows), tokens_R.device
        tokens_B = torch.full((count,), self.tokenizer.vocabulary.pad, device=device)
        tokens_B[sent(live, device)] = tokens_R
        twins = len(self._twins) if drawing else 0
        counts = [int(index in live) for index in range(count)] + [
            int(index in drawing) for index in range(count)
        ] * twins
        outputs_BTD = self._forward(0, tokens_B.repeat(1 + twins)[:, None], counts)
        return self.model.logits(outputs_BTD[:, 0], self._cache).unflatten(0, (-1, count))

    def _feed(self, news: list[list[int]]) -> Tensor:
        """Runs the model on each cache row's new tokens; the logits after the last of them."""
        return self.model.logits(self._run(0, news), self._cache)

    def _run(self, start: int, news: list[list[int]]) -> Tensor:
        """Runs the model on new tokens of the cache rows from `start` on, right-padded to one width, `AT_ONCE` of each
        at a time: outputs_BD after each row's last."""
        width, device = max(map(len, news)), self.model.embedding.weight.device
        tokens_BT = torch.tensor([new + [self.tokenizer.vocabulary.pad] * (width - len(new)) for new in news])
        last_BD: Tensor | None = None
        for begin in range(0, width, AT_ONCE):
            part_BT = tokens_BT[:, begin : begin + AT_ONCE].to(device)
            counts = [min(max(len(new) - begin, 0), part_BT.shape[1]) for new in news]
            outputs_BTD = self._forward(start, part_BT, counts)
            if outputs_BTD.shape[1] == 1:
                latest_BD = outputs_BTD[:, 0]
            else:
                places_B = sent([max(count - 1, 0) for count in counts], device)
                latest_BD = outputs_BTD[torch.arange(len(news), device=device), places_B]
            if last_BD is not None:
                fed_B1 = sent([[count > 0] for count in counts], device)
                latest_BD = torch.where(fed_B1, latest_BD, last_BD)
            last_BD = latest_BD
        assert last_BD is not None
        return last_BD

    def _forward(self, start: int, tokens_BT: Tensor, counts: list[int]) -> Tensor:
        """Runs the model on tokens of the cache rows from `start` on, so many of each row: outputs_BTD."""
        stop = start + len(counts)
        cache = self._cache if stop - start == len(self._fed) else self._cache.part(start, stop)
        outputs_BTD = self.model.trunk(tokens_BT, cache)
        cache.advance(counts)
        for place, taken in enumerate(counts, start):
            self._fed[place] += taken
        return outputs_BTD

    def _rewind(self, place: int, length: int) -> None:
        """Sets a row of the cache back to its first `length` positions."""
        if length < self._fed[place]:
            self._fed[place] = length
            self._cache.rewind(place, length)


def _rows(logits: Tensor, some: list[int]) -> Tensor:
    """Some rows of the last but one dimension, without a copy where they are all."""
    return logits if len(some) == logits.shape[-2] else logits.index_select(-2, sent(some, logits.device))


def _cache(config: ModelConfig, rows: int, like: Tensor, room: int) -> KVCache:
    """A cache, or ValueError saying how much memory it would have taken."""
    try:
        return KVCache(config, rows, like, room)
    except RuntimeError as error:  # torch.OutOfMemoryError on a GPU; a plain one, told by its words, on the CPU
        if not (isinstance(error, torch.OutOfMemoryError) or "memory" in str(error) or "overflow" in str(error)):
            raise
        position = 2 * config.layers * config.kv_heads * config.head_width * like.element_size()
        raise ValueError(
            f"Out of memory: the cache takes {rows} rows x {room} positions x {position} bytes = "
            f"{rows * room * position / 2**30:.1f} GiB on {like.device}. Take fewer documents at once, a smaller "
            "max_tokens, no guidance (each of its streams is a row), or a smaller dtype."
        ) from error
