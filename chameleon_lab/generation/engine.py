"""The engine: a model, a tokenizer and a grammar turned into streams of pieces.

One static cache holds every row of a batch and, below them, each row's unconditional twin for guidance. Nothing is
computed twice: the twin catches up when an image starts, and both go on from where they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from chameleon_lab.documents import Document
from chameleon_lab.generation.grammar import Grammar, State
from chameleon_lab.generation.guidance import guided, without_words
from chameleon_lab.generation.samplers import Sampler
from chameleon_lab.records import Piece, StopPiece, StopReason
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer, PieceReader
from chameleon_lab.transformer import KVCache, Transformer


@dataclass(frozen=True)
class Settings:
    """How to sample: per modality, and how strongly images follow the words (`guidance` 1 is not at all guided).

    `max_tokens` bounds the reply; None lets it fill the model's context. `window` is how many tokens of a conversation
    the model is given: older turns are left out (None: none are).
    """

    temperature: float = 0.7
    image_temperature: float = 0.7
    top_p: float = 0.95
    guidance: float = 1.0
    max_tokens: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        _ = self.text_sampler, self.image_sampler
        if not self.guidance >= 0:
            raise ValueError(f"guidance must be 0 or more (1 is none), not {self.guidance}.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be 1 or more, not {self.max_tokens}.")

    @property
    def text_sampler(self) -> Sampler:
        return Sampler(self.temperature, self.top_p)

    @property
    def image_sampler(self) -> Sampler:
        return Sampler(self.image_temperature, self.top_p)

    def changed(
        self,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        max_tokens: int | None = None,
    ) -> Settings:
        """These settings with what is given replaced; `temperature` is set for both modalities."""
        both = {} if temperature is None else {"temperature": temperature, "image_temperature": temperature}
        rest = {"top_p": top_p, "guidance": guidance, "max_tokens": max_tokens}
        return replace(self, **both, **{name: value for name, value in rest.items() if value is not None})


class _Row:
    """One document under way."""

    def __init__(self, prompt: np.ndarray, state: State, seed: int, limit: int) -> None:
        self.tokens, self.state, self.limit = [int(token) for token in prompt], state, limit
        self.random = np.random.default_rng(seed)
        self.twin_fed = 0

    @property
    def room(self) -> int:
        return self.limit - len(self.tokens)


class Engine:
    """Continues documents."""

    def __init__(self, model: Transformer, tokenizer: MixedModalTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    def stream(
        self, document: Document, settings: Settings, seed: int = 0, grammar: Grammar | None = None
    ) -> Iterator[Piece]:
        """Pieces of the continuation as they come, a `StopPiece` last. Close the iterator to stop at once."""
        reader = PieceReader(self.tokenizer)
        reason: StopReason = "stopped"
        for _, token, state in self.tokens([self.tokenizer.encode(document)], settings, [seed], grammar):
            if state.ended:
                reason = state.ended
            if token is not None:
                yield from reader.read(token)
        yield from reader.close()
        yield StopPiece(reason)

    def generate(
        self, documents: Sequence[Document], settings: Settings, seeds: Sequence[int], grammar: Grammar | None = None
    ) -> list[Document]:
        """The continuations of several documents at once; each depends on its own seed only."""
        readers = [PieceReader(self.tokenizer) for _ in documents]
        prompts = [self.tokenizer.encode(document) for document in documents]
        for row, token, _ in self.tokens(prompts, settings, seeds, grammar):
            if token is not None:
                for _ in readers[row].read(token, pictures=False):
                    pass
        return [reader.document() for reader in readers]

    @torch.inference_mode()
    def tokens(
        self, prompts: Sequence[np.ndarray], settings: Settings, seeds: Sequence[int], grammar: Grammar | None = None
    ) -> Iterator[tuple[int, int | None, State]]:
        """(row, token, state after it), step by step over all rows that go on.

        Ends of turn and document are told by the state, with token None; so is a row that ran out of room ("length").
        Raises ValueError on a prompt that is ill-formed or leaves no room to answer.
        """
        grammar = grammar or self.default_grammar()
        rows = [self._row(prompt, grammar, settings, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        twins = len(rows) if settings.guidance != 1 else 0
        room = max(row.limit for row in rows)
        cache = KVCache(self.model.config, len(rows) + twins, self.model.head.weight, room)
        logits_BV = self._step(rows, cache, twins, [row.tokens for row in rows])
        samplers = settings.text_sampler, settings.image_sampler
        while True:
            for index, row in enumerate(rows):
                if row.state.ended:
                    continue
                if row.room <= 0:
                    row.state = replace(row.state, ended="length")
                    yield index, None, row.state
                    continue
                drawing = row.state.codes is not None and row.state.codes < grammar.image_codes
                logits_V = logits_BV[index]
                if drawing and twins:
                    logits_V = guided(logits_V, logits_BV[len(rows) + index], settings.guidance)
                hidden_V = ~torch.from_numpy(grammar.allowed(row.state, row.room)).to(logits_V.device)
                token = samplers[drawing].pick(logits_V.masked_fill(hidden_V, -torch.inf), row.random.random())
                row.tokens.append(token)
                row.state = grammar.advance(row.state, token)
                yield index, None if row.state.ended else token, row.state
            if all(row.state.ended for row in rows):
                return
            logits_BV = self._step(rows, cache, twins, [[] if row.state.ended else row.tokens[-1:] for row in rows])

    def _row(self, prompt: np.ndarray, grammar: Grammar, settings: Settings, seed: int) -> _Row:
        context = self.model.config.context
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, not {seed}.")
        if len(prompt) >= context:
            raise ValueError(
                f"The prompt has {len(prompt)} tokens and the model's context holds {context}: shorten the "
                f"conversation (an image costs {self.tokenizer.image_tokens} tokens) or start a new one."
            )
        limit = context if settings.max_tokens is None else min(context, len(prompt) + settings.max_tokens)
        state = grammar.start(prompt)
        if state.codes is not None and limit - len(prompt) <= grammar.image_codes - state.codes:
            raise ValueError("The prompt ends inside an image, and there is no room to finish it.")
        return _Row(prompt, state, seed, limit)

    def _step(self, rows: list[_Row], cache: KVCache, twins: int, news: list[list[int]]) -> Tensor:
        """Feeds each row its new tokens, and the twins of rows inside an image what they have not yet seen."""
        if not twins or all(row.state.codes is None or row.state.ended for row in rows):
            return self._feed(cache.part(0, len(rows)), news)
        twin_news: list[list[int]] = []
        for row in rows:
            if row.state.ended or row.state.codes is None:
                twin_news.append([])
                continue
            if row.twin_fed and row.state.codes:
                fresh = row.tokens[-1:]
            else:
                fresh = without_words(np.array(row.tokens), self.tokenizer.vocabulary)[row.twin_fed :].tolist()
            row.twin_fed += len(fresh)
            twin_news.append(fresh)
        behind = [new[:-1] for new in twin_news]
        if any(behind):
            self._feed(cache.part(len(rows), 2 * len(rows)), behind)
        return self._feed(cache, news + [new[-1:] for new in twin_news])

    def _feed(self, cache: KVCache, news: list[list[int]]) -> Tensor:
        """Runs the model on each row's new tokens; the logits after the last of them, or junk for a row with none."""
        counts = [len(new) for new in news]
        width = max(counts)
        padded = [new + [self.tokenizer.vocabulary.pad] * (width - len(new)) for new in news]
        outputs_BTD = self.model.trunk(torch.tensor(padded, device=self.model.head.weight.device), cache)
        cache.advance(counts)
        last_B = torch.tensor([max(count - 1, 0) for count in counts], device=outputs_BTD.device)
        return self.model.logits(outputs_BTD[torch.arange(len(news), device=outputs_BTD.device), last_B])

    def default_grammar(self) -> Grammar:
        """Text and images in any order."""
        rows, columns = self.tokenizer.grid
        return Grammar(self.tokenizer.vocabulary, rows * columns)
