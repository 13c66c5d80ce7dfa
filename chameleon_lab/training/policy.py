"""Rollouts, and what is made smaller on them: GRPO (arXiv 2402.03300, section 4.1), with the names of TRL's trainer.

- of each prompt a *group* of rollouts is drawn; a rollout's *advantage* is its reward minus the group's mean, over the
  group's standard deviation (without that: Dr. GRPO, arXiv 2503.20783), and all tokens of a rollout share it
- the loss is -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A) + beta KL, each rollout's a mean over its tokens,
  and a batch's a mean over its rollouts; the ratio is p(token) / p(token when it was drawn)
- KL, to the model that the training began from, is estimated by k3: p_ref / p - log(p_ref / p) - 1

The policy is the distribution that rollouts are drawn from, the softmax of logits / temperature over the tokens that
the grammar allows, and nothing cuts it: no top-p, no guidance. Ratios, KL and entropy are of that distribution. A token
that the grammar forces is no choice, and is not learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from chameleon_lab import crossovers
from chameleon_lab.candidates import Scorer, score_of
from chameleon_lab.corpora.packing import Batch, TokenizedDocument, collate
from chameleon_lab.documents import Document
from chameleon_lab.generation.continuation import Continuation, ReplyRow
from chameleon_lab.generation.grammar import Grammar, Mask
from chameleon_lab.generation.settings import Settings
from chameleon_lab.objective import chunked_sum
from chameleon_lab.stability import Penalty
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer, PieceReader
from chameleon_lab.transformer import Transformer

PromptSource = Callable[[np.random.Generator], Document]
"""A prompt, drawn with these random numbers and nothing else."""


@dataclass(frozen=True)
class PromptRows:
    """The prompts of one step, and the seed of their rollouts."""

    documents: tuple[Document, ...]
    seed: int

    def to(self, device: torch.device | str) -> PromptRows:
        return self


@dataclass(frozen=True)
class PromptBatches:
    """Prompts, `count` a step: a pure function of (seed, step)."""

    prompts: PromptSource
    seed: int
    count: int

    def __call__(self, step: int) -> PromptRows:
        """Raises ValueError where the source gives no document."""
        rng = np.random.default_rng([self.seed, 22, step])
        documents = tuple(self.prompts(rng) for _ in range(self.count))
        for document in documents:
            if not isinstance(document, Document):
                raise ValueError(
                    f"A source of prompts gives a Document, such as Document.of('draw a red circle', EndTurn()), not "
                    f"{document!r}: {self.prompts!r}."
                )
        return PromptRows(documents, int(rng.integers(2**31)))


@dataclass(frozen=True)
class RolloutBatch(Batch):
    """Prompts with what was drawn after them, a rollout a row; learned are the tokens that were chosen.

    `advantages_BT`: each token's; `choices_BT`: which of `masks` was there to choose from. `drawn_logs_BT` and
    `reference_logs_BT`: log-probabilities when they were drawn, and the reference model's; None for what is not
    needed. `figures`: what is recorded of the rollouts.
    """

    advantages_BT: Tensor = field(default_factory=lambda: torch.empty(0))
    choices_BT: Tensor = field(default_factory=lambda: torch.empty(0))
    drawn_logs_BT: Tensor | None = None
    reference_logs_BT: Tensor | None = None
    masks: tuple[Mask, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicyObjective:
    """What a step makes smaller on rollouts: `objective(model, batch)`, the mean over rollouts of their tokens' means.

    Weights and penalties are as in `Objective`: for settings, fixes and monitors it is one.
    """

    temperature: float = 1.0
    epsilon: float = 0.2
    beta: float = 0.0
    text_weight: float = 1.0
    image_weight: float = 1.0
    special_weight: float = 1.0
    penalties: tuple[Penalty, ...] = ()

    def __call__(self, model: Transformer, batch: RolloutBatch) -> dict[str, Tensor]:
        """`loss_with_penalties` (what to descend, once), `policy_loss`, `kl`, `clip_fraction` and `reply_entropy`, the
        latter means over tokens. Raises ValueError when no token of the batch was chosen."""
        learned_BT = batch.learned_BT
        if not bool(learned_BT.any()):
            raise ValueError("Nothing in these rollouts was a choice: the grammar forces every token of theirs.")
        chosen_X, kinds_X = batch.targets_BT[learned_BT], batch.modality_BT[learned_BT]
        outputs_XD = model.trunk(batch.inputs_BT)[learned_BT]
        weights = torch.tensor((self.text_weight, self.image_weight, self.special_weight), device=chosen_X.device)
        shares_X = weights[kinds_X.long()]
        if batch.weights_BT is not None:
            shares_X = shares_X * batch.weights_BT[learned_BT]
        shares_X = shares_X / shares_X.sum().clamp_min(1e-9)
        advantages_X, choices_X = batch.advantages_BT[learned_BT], batch.choices_BT[learned_BT]
        drawn_X = None if batch.drawn_logs_BT is None else batch.drawn_logs_BT[learned_BT]
        reference_X = None if batch.reference_logs_BT is None else batch.reference_logs_BT[learned_BT]
        hidden_KV = torch.stack([mask.hidden(chosen_X.device) for mask in batch.masks])
        kl_X, clipped_X, entropy_X, loss_X = (torch.zeros_like(shares_X) for _ in range(4))

        def term(outputs_XD: Tensor, chunk: slice) -> Tensor:
            logits_XV = model.logits(outputs_XD)
            all_XV = policy_logs(logits_XV, hidden_KV[choices_X[chunk]], self.temperature)
            logs_X = all_XV.gather(-1, chosen_X[chunk, None])[:, 0]
            entropy_X[chunk] = -(all_XV.exp() * all_XV.clamp_min(-1e4)).sum(-1).detach()
            # Where rollouts are used once, they were drawn by this very policy: the ratio is 1 and has its gradient.
            ratio_X = (logs_X - (logs_X.detach() if drawn_X is None else drawn_X[chunk])).exp()
            advantage_X = advantages_X[chunk]
            gain_X = ratio_X * advantage_X
            limit_X = ratio_X.clamp(1 - self.epsilon, 1 + self.epsilon) * advantage_X
            clipped_X[chunk] = (limit_X < gain_X).float()
            term_X = -torch.minimum(gain_X, limit_X)
            if reference_X is not None:
                apart_X = reference_X[chunk] - logs_X
                k3_X = apart_X.exp() - apart_X - 1
                kl_X[chunk] = k3_X.detach()
                term_X = term_X + self.beta * k3_X
            loss_X[chunk] = term_X.detach()
            for penalty in self.penalties:
                term_X = term_X + penalty.penalty(logits_XV)
            return (term_X * shares_X[chunk]).sum()

        rows = chunk_rows(model, outputs_XD)
        loss = chunked_sum(term, outputs_XD, model.parameters(), rows)
        kl = {} if reference_X is None else {"kl": kl_X.mean()}
        return {
            "loss_with_penalties": loss,
            "policy_loss": (loss_X * shares_X).sum(),
            **kl,
            "clip_fraction": clipped_X.mean(),
            "reply_entropy": entropy_X.mean(),
        }

    @torch.no_grad()
    def logs(self, model: Transformer, batch: RolloutBatch) -> Tensor:
        """The policy's log-probability of each token that was chosen: logs_BT, 0 where none was."""
        learned_BT = batch.learned_BT
        outputs_XD = model.trunk(batch.inputs_BT)[learned_BT]
        chosen_X, choices_X = batch.targets_BT[learned_BT], batch.choices_BT[learned_BT]
        hidden_KV = torch.stack([mask.hidden(chosen_X.device) for mask in batch.masks])
        parts, rows = list[Tensor](), chunk_rows(model, outputs_XD)
        for start in range(0, len(outputs_XD), rows):  # chunks as above, so that the sums are the same to the bit
            chunk = slice(start, start + rows)
            hidden_XV = hidden_KV[choices_X[chunk]]
            all_XV = policy_logs(model.logits(outputs_XD[chunk]), hidden_XV, self.temperature)
            parts.append(all_XV.gather(-1, chosen_X[chunk, None])[:, 0])
        logs_BT = torch.zeros(learned_BT.shape, device=learned_BT.device)
        logs_BT[learned_BT] = torch.cat(parts)
        return logs_BT


def policy_logs(logits_XV: Tensor, hidden_XV: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of all tokens, of which hidden ones have -inf."""
    return (logits_XV / temperature).masked_fill(hidden_XV, -torch.inf).log_softmax(-1)


def chunk_rows(model: Transformer, outputs_XD: Tensor) -> int:
    """Positions whose logits are held at once, as in `Objective`."""
    at_once = 2**22 * crossovers.LOGITS_FACTOR.get(outputs_XD.device.type, 1)
    return max(256, at_once // model.config.vocabulary)


LARGEST_REWARD = 1e100
"""The square of a larger one has no room in a double, and every advantage of its group would come out as 0."""


def advantages(rewards_PG: np.ndarray, scaled: bool = True) -> np.ndarray:
    """How much better each of G rollouts did than its group of one prompt: reward - mean, over the standard deviation
    (of a sample, n - 1) where `scaled`. All are 0 where all did alike."""
    apart_PG = rewards_PG - rewards_PG.mean(1, keepdims=True)
    if not scaled:
        return apart_PG
    spread_P1 = rewards_PG.std(1, ddof=1, keepdims=True)
    return apart_PG / (spread_P1 + 1e-4)  # as in TRL: a group of equals is not divided by 0


@dataclass(frozen=True)
class GroupRollouts:
    """Draws a group of replies to each prompt, and has them judged: `rollouts(model, prompts)` gives a batch.

    `reward` gets a document, the prompt and the reply behind it. A reply has at most `max_tokens` tokens; one whose
    reward reaches `right` counts as right.
    """

    tokenizer: MixedModalTokenizer
    grammar: Grammar
    reward: Scorer
    objective: PolicyObjective
    group: int
    max_tokens: int | None
    scaled: bool = True
    right: float = 1.0

    def __call__(self, model: Transformer, prompts: PromptRows) -> RolloutBatch:
        """Raises ValueError for a reward that is no finite number, and what a continuation refuses."""
        rows = self.draw(model, prompts)
        documents = [document for document in prompts.documents for _ in range(self.group)]
        pairs = zip(documents, rows, strict=True)
        wholes = [Document((*document, *self.reply(row))) for document, row in pairs]
        rewards_PG = np.array([self._reward(each) for each in wholes]).reshape(-1, self.group)
        replies = np.array([hash(row.tokens[row.start :]) for row in rows]).reshape(-1, self.group)
        spread_P = rewards_PG.std(1, ddof=1)
        figures = {
            "reward": rewards_PG.mean(),
            "right_share": (rewards_PG >= self.right).mean(),
            "reward_spread": spread_P.mean(),
            "silent_groups": (spread_P == 0).mean(),
            "distinct_share": np.mean([len(set(each)) / self.group for each in replies.tolist()]),
            "reply_tokens": np.mean([len(row.tokens) - row.start for row in rows]),
        }
        batch = self._laid_out(rows, advantages(rewards_PG, self.scaled).flatten())
        return replace(batch, figures={name: float(value) for name, value in figures.items()})

    def draw(self, model: Transformer, prompts: PromptRows) -> tuple[ReplyRow, ...]:
        """The rollouts' tokens, a row each, group after group; each of its own seed."""
        temperature = self.objective.temperature
        settings = Settings(temperature, temperature, top_p=1.0, max_tokens=self.max_tokens)
        encoded = [self.tokenizer.encode(document) for document in prompts.documents]
        tokens = [each for each in encoded for _ in range(self.group)]
        seeds = np.random.default_rng([prompts.seed, 23]).integers(2**62, size=len(tokens))
        continuation = Continuation(model, self.tokenizer, tokens, settings, seeds.tolist(), self.grammar)
        for _ in continuation.tokens():
            pass
        return continuation.rows

    def reply(self, row: ReplyRow) -> Document:
        """What a row wrote behind its prompt, without what ended it; an unfinished picture is left out."""
        tokens = list(row.tokens[row.start :])
        if row.state.ended in ("end_turn", "end_document"):
            tokens = tokens[:-1]
        reader = PieceReader(self.tokenizer)
        reader.read_all(tokens, pictures=False)
        return reader.document()

    def _reward(self, document: Document) -> float:
        reward = score_of(self.reward, document)
        if not abs(reward) < LARGEST_REWARD:
            raise ValueError(
                f"A reward is a finite number, below {LARGEST_REWARD:g}, not {reward}: {self.reward!r} of {document!r}."
            )
        return reward

    def _laid_out(self, rows: Sequence[ReplyRow], advantages_B: np.ndarray) -> RolloutBatch:
        """A rollout a row, as a batch to learn from; forced tokens are not learned."""
        masks, documents, choices = dict[int, tuple[int, Mask]](), list[TokenizedDocument](), list[list[int]]()
        for row in rows:
            learn, places = np.zeros(len(row.tokens), bool), [0] * len(row.tokens)
            state = self.grammar.start(np.array(row.tokens[: row.start]), row.limit - row.start)
            for place in range(row.start, len(row.tokens)):
                mask = self.grammar.allowed(state, row.limit - place)
                places[place] = masks.setdefault(id(mask), (len(masks), mask))[0]
                learn[place] = int(mask.allowed_V.sum()) > 1
                state = self.grammar.advance(state, row.tokens[place])
            documents.append(TokenizedDocument(np.array(row.tokens), learn))
            choices.append(places)
        batch = collate(documents, self.tokenizer.vocabulary)
        choices_BT = torch.zeros(batch.learned_BT.shape, dtype=torch.long)
        for at, places in enumerate(choices):
            choices_BT[at, : len(places) - 1] = torch.tensor(places[1:])
        lengths_B1 = batch.learned_BT.sum(1, keepdim=True).clamp_min(1)
        advantages_B1 = torch.from_numpy(advantages_B).float()[:, None]
        return RolloutBatch(
            batch.inputs_BT,
            batch.targets_BT,
            batch.learned_BT,
            batch.modality_BT,
            real_tokens=batch.real_tokens,
            weights_BT=batch.learned_BT / lengths_B1,
            advantages_BT=advantages_B1 * batch.learned_BT,
            choices_BT=choices_BT,
            masks=tuple(mask for _, mask in masks.values()),
        )
