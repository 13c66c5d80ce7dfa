"""The engine: a model, a tokenizer and a grammar turned into streams of pieces, whole replies, and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chameleon_lab.documents import Document
from chameleon_lab.generation.continuation import Continuation
from chameleon_lab.generation.grammar import Grammar, Mask, Rules, State
from chameleon_lab.generation.infilling import Infilling
from chameleon_lab.generation.session import Session
from chameleon_lab.generation.settings import Settings
from chameleon_lab.records import FilledSegment, Piece, ReplyProgress, TokenScores
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer, PieceReader
from chameleon_lab.transformer import Transformer

SCORED_AT_ONCE = 256  # positions whose logits are held at once when scoring


class Engine:
    """Continues and scores documents. `images`: whether it draws where no grammar is passed."""

    def __init__(self, model: Transformer, tokenizer: MixedModalTokenizer, images: bool = True) -> None:
        self.model, self.tokenizer, self.images = model, tokenizer, images

    def stream(
        self,
        document: Document,
        settings: Settings,
        seed: int = 0,
        grammar: Rules | None = None,
        prefix: Sequence[int] = (),
        progress: Callable[[ReplyProgress], object] | None = None,
    ) -> Iterator[Piece]:
        """Pieces of the continuation as they come, a `StopPiece` last. Close the iterator to stop at once.

        The reply begins with the tokens of `prefix`, which it holds to as if it had written them; `progress` is called
        after each token that follows.
        """
        continuation = self._continuation([self.tokenizer.encode(document)], settings, [seed], grammar, prefix=prefix)
        return Session(continuation, len(prefix)).stream(progress)

    def begin(
        self,
        document: Document,
        settings: Settings,
        seed: int = 0,
        grammar: Rules | None = None,
        prefix: Sequence[int] = (),
    ) -> Session:
        """The document as a session, with a cache for all of the model's context: stream, leave, append, go on."""
        prompt, room = self.tokenizer.encode(document), self.model.config.context
        return Session(self._continuation([prompt], settings, [seed], grammar, room, prefix), len(prefix))

    def generate(
        self,
        documents: Sequence[Document],
        settings: Settings,
        seeds: Sequence[int],
        grammar: Rules | None = None,
        prefix: Sequence[int] = (),
    ) -> list[Document]:
        """The continuations of several documents at once, each of its own seed only; all begin with `prefix`."""
        readers = [PieceReader(self.tokenizer) for _ in documents]
        for reader in readers:
            reader.read_all(map(int, prefix), pictures=False)
        prompts = [self.tokenizer.encode(document) for document in documents]
        for row, token, _ in self.tokens(prompts, settings, seeds, grammar, prefix):
            if token is not None:
                for _ in readers[row].read(token, pictures=False):
                    pass
        return [reader.document() for reader in readers]

    def infill(self, documents: Sequence[Document], settings: Settings, seeds: Sequence[int]) -> list[Document]:
        """Several documents at once with their blanks filled, each of its own seed only."""
        infilling = Infilling(self.model, self.tokenizer, documents, settings, seeds)
        for _ in infilling.tokens():
            pass
        return infilling.documents

    def stream_infill(self, document: Document, settings: Settings, seed: int = 0) -> Iterator[FilledSegment]:
        """The segments of a document as their blanks are filled. Raises ValueError at once for what cannot be."""
        infilling = Infilling(self.model, self.tokenizer, [document], settings, [seed])
        return (segment for _, segment in infilling)

    def tokens(
        self,
        prompts: Sequence[np.ndarray],
        settings: Settings,
        seeds: Sequence[int],
        grammar: Rules | None = None,
        prefix: Sequence[int] = (),
    ) -> Iterator[tuple[int, int | None, State]]:
        """(row, token, state after it), step by step over all rows that go on.

        An end of turn or document, or of the room ("length"), is in the state, with token None.
        Raises ValueError on a prompt that is ill-formed, holds unknown ids, or leaves no room to answer.
        """
        return self._continuation(prompts, settings, seeds, grammar, prefix=prefix).tokens()

    @torch.inference_mode()
    def score(
        self, documents: Sequence[Document], given: Document | None = None, grammar: Rules | None = None
    ) -> list[TokenScores]:
        """How likely each document is, token by token, after `given` (nothing: from the document's begin).

        With a grammar, tokens compete only with those that it allows; the rows' room is the model's context. Raises
        ValueError for a document beyond the context, and for a token that the grammar forbids.
        """
        before = self.tokenizer.encode(given or Document())
        scored = [self.tokenizer.encode(document)[1:] for document in documents]
        context = self.model.config.context
        if (longest := len(before) + max(map(len, scored), default=0)) > context:
            raise ValueError(f"A document has {longest} tokens and the model's context holds {context}: shorten it.")
        masks = [self._masks(before, each, grammar) if grammar else [] for each in scored]
        rows = [np.concatenate([before, each]) for each in scored]
        logs = self.score_tokens(rows, [len(each) for each in scored], masks)
        modality = self.tokenizer.vocabulary.modality
        return [TokenScores(each, logs_T, modality[each]) for each, (logs_T, _) in zip(scored, logs, strict=True)]

    @torch.inference_mode()
    def score_tokens(
        self, rows: Sequence[np.ndarray], counts: Sequence[int], masks: Sequence[Sequence[Mask]] | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of the last `counts` tokens of each row, all rows at once: the log-probability of each given all before it,
        in nats, and whether it was the likeliest.

        A row is at most one token longer than the model's context, and longer than its count. Raises ValueError for
        any other.
        """
        context, device = self.model.config.context, self.model.embedding.weight.device
        for row, count in zip(rows, counts, strict=True):
            if not 0 <= count < len(row) <= context + 1:
                raise ValueError(
                    f"A row of {len(row)} tokens has no {count} scores: it holds more than that, and at most one more "
                    f"than the model's context of {context}."
                )
        inputs = [row[:context] for row in rows]
        tokens_BT = torch.full((len(rows), max(map(len, inputs), default=0)), self.tokenizer.vocabulary.pad)
        for tokens_T, each in zip(tokens_BT, inputs, strict=True):
            tokens_T[: len(each)] = torch.from_numpy(each)
        outputs_BTD = self.model.trunk(tokens_BT.to(device)) if len(rows) else torch.empty(0)
        scores: list[tuple[np.ndarray, np.ndarray]] = []
        for place, (outputs_TD, row, count) in enumerate(zip(outputs_BTD, rows, counts, strict=True)):
            first, targets = len(row) - count - 1, row[len(row) - count :]
            logs, likeliest = list[Tensor](), list[Tensor]()
            for start in range(0, count, SCORED_AT_ONCE):
                stop = min(start + SCORED_AT_ONCE, count)
                logits_TV = self.model.logits(outputs_TD[first:][start:stop])
                if masks is not None and masks[place]:
                    allowed_TV = torch.from_numpy(np.stack([mask.allowed_V for mask in masks[place][start:stop]]))
                    logits_TV = logits_TV.masked_fill(~allowed_TV.to(device), -torch.inf)
                target_T1 = torch.from_numpy(targets[start:stop]).to(device)[:, None]
                logs.append(logits_TV.log_softmax(-1).gather(-1, target_T1)[:, 0])
                likeliest.append(logits_TV.argmax(-1) == target_T1[:, 0])
            logs_T = torch.cat(logs).double().cpu().numpy() if logs else np.empty(0)
            scores.append((logs_T, torch.cat(likeliest).cpu().numpy() if logs else np.empty(0, bool)))
        return scores

    def _masks(self, before: np.ndarray, tokens: np.ndarray, grammar: Rules) -> list[Mask]:
        """What the grammar allows at each of the tokens."""
        context = self.model.config.context
        state, masks = grammar.start(before, context - len(before)), list[Mask]()
        for place, token in enumerate(tokens.tolist(), len(before)):
            mask = grammar.allowed(state, context - place)
            if not mask.allowed_V[token]:
                raise ValueError(
                    f"The grammar forbids token {token} at position {place} of the document: score it without one, or "
                    "with one that allows what the document holds."
                )
            masks.append(mask)
            state = grammar.advance(state, token)
            if state.ended == "end_turn":
                state = State(images=state.images)
        return masks

    def _continuation(
        self,
        prompts: Sequence[np.ndarray],
        settings: Settings,
        seeds: Sequence[int],
        grammar: Rules | None,
        room: int | None = None,
        prefix: Sequence[int] = (),
    ) -> Continuation:
        grammar = grammar or self.default_grammar()
        return Continuation(self.model, self.tokenizer, prompts, settings, seeds, grammar, room, prefix)

    def default_grammar(self) -> Grammar:
        """Text and images in any order, or text alone where the engine is not to draw, or cannot show what is drawn."""
        return self.grammar_of({"images": self.images and self.tokenizer.can_draw})

    def grammar_of(self, switches: Mapping[str, Any]) -> Grammar:
        """A grammar of this model's images, with the switches of a row of `MODALITY_SWITCHES`."""
        rows, columns = self.tokenizer.grid
        return Grammar(self.tokenizer.vocabulary, rows * columns, **switches)
