"""Alignment as in the paper (arXiv 2405.09818, section 3): a pre-trained model learns to answer, from conversations.

```python
experiment = alignment_on("chats.jsonl", begins_from="tiny", budget=Budget(steps=100))
print(experiment.data.gathered())  # what it holds by category, and what was skipped and why
print(fine_tune(experiment))  # held-out losses before and after
```

The lab's tiny model is aligned by `chameleon-lab train alignment`, on scenes; any model on files by
`chameleon-lab train alignment --data CATEGORY:PATH --begins-from MODEL`.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.alignment import (
    CATEGORIES,
    OPEN_SCENES,
    SCENE_CATEGORIES,
    conversation_tokens,
    picture_policies,
)
from chameleon_lab.corpora.mixture import Mixture, Stage
from chameleon_lab.corpora.own_data import DataSource
from chameleon_lab.corpora.packing import Batch, DocumentColumn, TokenizedDocument, pack
from chameleon_lab.corpora.readers import Skipped
from chameleon_lab.documents import Document
from chameleon_lab.objective import Objective
from chameleon_lab.optimization import Cosine, Recipe
from chameleon_lab.parts import plain_number, require_count
from chameleon_lab.plain import plain_values
from chameleon_lab.stability import Dropout, QueryKeyNorm, ZLoss
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.training.beginning import WeightSource
from chameleon_lab.training.budget import Budget
from chameleon_lab.training.data import Corpus
from chameleon_lab.training.experiments import TINY, Experiment
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Vocabulary

log = logging.getLogger(__name__)


CHAT_KINDS = {**SCENE_CATEGORIES, **OPEN_SCENES}


@dataclass(frozen=True)
class SceneCategory:
    """So many conversations about scenes, of one of `SCENE_CATEGORIES` or of `OPEN_SCENES`."""

    category: str
    count: int

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown category."""
        require_count(self.count, "conversations", 1)
        if self.category not in CHAT_KINDS:
            raise ValueError(f"No category is called {self.category!r}; there are {', '.join(CHAT_KINDS)}.")

    def documents(self, seed: int = 0) -> Iterator[Document]:
        rng = np.random.default_rng([seed, 23, zlib.crc32(self.category.encode())])
        return (CHAT_KINDS[self.category](rng) for _ in range(self.count))


ConversationSource = str | Path | DataSource | SceneCategory | Sequence[Document]
"""Where conversations come from: a file or folder that a reader takes, scenes, or documents made in a cell."""


def source_identities(sources: Mapping[str, ConversationSource]) -> dict[str, Any]:
    """Sources as plain values: a file with how many bytes it has, documents by a digest of what they say."""
    identities: dict[str, Any] = {}
    for name, source in sources.items():
        match source:
            case SceneCategory():
                identities[name] = f"{source.count} of {source.category} about scenes"
            case str() | Path() | DataSource():
                files = DataSource.of(source)
                identities[name] = {"path": str(files.path), "kind": files.kind, "census": files.census()}
            case _:
                digest = xxhash.xxh3_64()
                for document in source:
                    digest.update(document.to_json().encode())
                identities[name] = {"documents": len(source), "content": digest.hexdigest()[:8]}
    return identities


@dataclass(frozen=True)
class GatheredConversations:
    """Conversations as tokens, by source; what was left out, and why; and what of them is held out."""

    vocabulary: Vocabulary
    parts: Mapping[str, Sequence[TokenizedDocument]]
    held_out: Sequence[TokenizedDocument]
    skipped: Mapping[str, Sequence[Skipped]]

    def __str__(self) -> str:
        lines = [f"{name}: {len(part):,} conversations" for name, part in self.parts.items()]
        lines += [f"held out: {len(self.held_out):,}"]
        for name, skips in self.skipped.items():
            lines += [f"{name}: {len(skips):,} skipped, the first for this:"] * bool(skips)
            lines += [f"    {each.name}: {each.reason}" for each in skips[:3]]
        return "\n".join(lines)


@dataclass(frozen=True)
class Conversations:
    """What an alignment trains on: conversations by category or any other name, packed into `rows` rows of `context`
    positions a step, loss on answers alone.

    `tokenizer`: a tokenizer, or the folder or name of a model that has one. `weights`: each source's share of the rows;
    without them each has as many as its conversations fill. `held_out`: the share that is not trained on. Pictures of
    prompts and of answers go through a policy each, by its name in `tokenizers.preparation.preparations`.
    """

    sources: Mapping[str, ConversationSource] = field(metadata={"plain": source_identities})
    tokenizer: str | Path | MixedModalTokenizer = "tiny"
    weights: Mapping[str, float] | None = None
    rows: int = 128
    context: int = 4096
    held_out: float = 0.05
    prompt_pictures: str = "border padding"
    answer_pictures: str = "centre crop"

    def __post_init__(self) -> None:
        """Raises ValueError for no sources, what is no source, and for weights of others or that are no numbers."""
        if not self.sources:
            raise ValueError("There are no conversations: give a source by its category, {'visual chat': PATH}.")
        for name, source in self.sources.items():
            _require_conversations(name, source)
        for name, weight in (self.weights or {}).items():
            plain_number(weight, f"the weight of {name!r}")
        if self.weights is not None and (unknown := self.weights.keys() - self.sources.keys()):
            raise ValueError(f"There is no source {', '.join(sorted(unknown))}; there are {', '.join(self.sources)}.")
        if not 0 <= plain_number(self.held_out, "held_out") < 1:
            raise ValueError(f"held_out is the share that is not trained on, from 0 to below 1, not {self.held_out}.")

    @cached_property
    def _mixed_tokenizer(self) -> MixedModalTokenizer:
        if isinstance(self.tokenizer, MixedModalTokenizer):
            return self.tokenizer
        return Chameleon.load(self.tokenizer, device="cpu").tokenizer

    def gathered(self, seed: int = 0) -> GatheredConversations:
        """All conversations, read and tokenized, in memory: 3 bytes a token for a vocabulary of up to 65,536, which is
        about 400 MB for 100,000 with a picture of 1,024 tokens each. Raises ValueError where a source has none."""
        tokenizer = self._mixed_tokenizer
        policies = picture_policies(tokenizer, self.prompt_pictures, self.answer_pictures)
        parts, apart, skipped = dict[str, DocumentColumn](), list[TokenizedDocument](), {}
        for name, source in self.sources.items():
            tokens, skips = DocumentColumn(tokenizer.vocabulary.size), list[Skipped]()
            for entry in conversation_tokens(_documents(source, seed), tokenizer, self.context, policies):
                (skips if isinstance(entry, Skipped) else tokens).append(entry)  # pyright: ignore[reportArgumentType]
            if not tokens:
                first = f" The first that was skipped: {skips[0].name}: {skips[0].reason}." if skips else ""
                raise ValueError(f"The source {name!r} holds no conversation to learn from.{first}")
            order = np.random.default_rng([seed, 24, zlib.crc32(name.encode())]).permutation(len(tokens))
            count = min(round(self.held_out * len(tokens)), len(tokens) - 1)
            apart += [tokens[place] for place in sorted(order[:count])]
            parts[name] = tokens.chosen(np.sort(order[count:]))
            skipped[name] = tuple(skips)
        return GatheredConversations(tokenizer.vocabulary, parts, apart, skipped)

    def open(self, seed: int, steps: int | None) -> Corpus:
        whole = self.gathered(seed)
        for name, skips in whole.skipped.items():
            if skips:
                log.warning("%s: %d skipped; the first, %s: %s", name, len(skips), *skips[0])
        weights = self.weights
        if weights is None:
            weights = {name: float(sum(len(each.tokens) for each in part)) for name, part in whole.parts.items()}
        vocabulary, held_out = whole.vocabulary, list[Batch]()
        mixture = Mixture(
            whole.parts, (Stage(dict(weights)),), vocabulary, context=self.context, rows=self.rows, seed=seed
        )
        if whole.held_out:
            held_out = pack(whole.held_out, self.context, vocabulary, min(self.rows, 16))
        return Corpus(vocabulary, mixture, held_out, lambda: self._mixed_tokenizer)


def _require_conversations(name: str, source: object) -> None:
    """Raises ValueError for what no conversations come from."""
    if isinstance(source, str | Path | DataSource | SceneCategory):
        return
    if not isinstance(source, Sequence):
        raise ValueError(
            f"The source {name!r} is a file, a folder or a list of documents, and not of type {type(source).__name__}."
        )
    for number, each in enumerate(source, 1):
        if not isinstance(each, Document | Skipped):
            raise ValueError(
                f"The source {name!r} is a list of documents, and its entry {number} is of type "
                f"{type(each).__name__}: Document.from_messages makes one of messages."
            )


def _documents(source: ConversationSource, seed: int) -> Iterator[Document | Skipped]:
    if isinstance(source, SceneCategory):
        return source.documents(seed)
    if isinstance(source, str | Path | DataSource):
        return DataSource.of(source).documents()
    return iter(source)


def with_dropout(fixes: Sequence[Any], rate: float) -> tuple[Any, ...]:
    """A model's fixes with dropout at this rate, whatever it was before."""
    return (*(fix for fix in fixes if not isinstance(fix, Dropout)), Dropout(rate))


SCENE_CONVERSATIONS = Conversations(
    {name: SceneCategory(name, 400) for name in CATEGORIES},
    weights=dict.fromkeys(CATEGORIES, 1.0),
    context=272,
)
"""400 conversations of each category about scenes, as many rows of each. The paper's shares are `category_weights`: in
this small world they would be nine tenths small talk."""

ALIGNMENT = Experiment(
    name="alignment",
    model=replace(TINY.model, fixes=(QueryKeyNorm(), Dropout(0.05))),
    data=SCENE_CONVERSATIONS,
    recipe=Recipe(rate=1e-5, weight_decay=0.1, warm_up=0, schedule=Cosine()),
    objective=Objective(penalties=(ZLoss(1e-5),)),
    budget=Budget(steps=40),
    begins_from="tiny",
    checkpoints=0,
    recompute=True,
)
"""The paper's recipe (section 3.2): a cosine from 1e-5, weight decay 0.1, 128 sequences a step, dropout 0.05, z-loss,
loss on answers alone; no warm-up is stated, nor how many steps. Here it trains the tiny model on scenes, 34,816
positions a step; at a rate for billions of weights that model hardly moves. On a CPU its 128 rows at once took 3.8 GB,
and no step had ended after 104 s of a core: `in_portions` takes as many a step, 8 at once, as `chameleon-lab train
alignment` does there, in 30 s of a core a step and 0.8 GB. With 8 rows in place of 128 (`replace(data, rows=8)`) its 40
steps took 45 s of a core: held-out answers in words went from 9.60 to 8.83 nats a token, pictures and what the model
could do before stayed as they were (0.286)."""


def in_portions(experiment: Experiment, rows: int = 8) -> tuple[Experiment, dict[str, Any]]:
    """An alignment whose steps are of as many rows, `rows` at once, and what its `run` is to be given as `trainer`.

    Raises ValueError where the experiment's rows are no multiple of these.
    """
    assert isinstance(experiment.data, Conversations)
    if experiment.data.rows % rows:
        raise ValueError(f"A step of {experiment.data.rows} rows cannot be taken {rows} at once.")
    times = experiment.data.rows // rows
    return replace(experiment, data=replace(experiment.data, rows=rows)), {"accumulate_grad_batches": times}


ALIGNMENTS: Mapping[str, Experiment] = {ALIGNMENT.name: ALIGNMENT}
"""By name, as `chameleon-lab train` takes them."""


def conversation_sources(words: Sequence[str]) -> tuple[dict[str, ConversationSource], dict[str, float] | None]:
    """Sources by category, and their weights where any is given, of `[CATEGORY:][KIND:]PATH[=WEIGHT]` each; scenes
    where there are none. Raises ValueError for what is not there, and for a category twice."""
    sources, weights = dict[str, ConversationSource](), dict[str, float]()
    for each in words:
        category, colon, rest = each.partition(":")
        name = category if colon and category in CATEGORIES else "conversations"
        if name in sources:
            raise ValueError(f"{name!r} has two sources: put their files into one folder, or name another category.")
        source = DataSource.of(rest if name == category else each)
        sources[name], weights[name] = source, source.weight
    if not sources:
        return dict(SCENE_CONVERSATIONS.sources), dict(SCENE_CONVERSATIONS.weights or {})
    return sources, weights if set(weights.values()) != {1.0} else None


def alignment_on(
    conversations: ConversationSource | Mapping[str, ConversationSource],
    begins_from: WeightSource = "tiny",
    *,
    weights: Mapping[str, float] | None = None,
    rows: int = 128,
    context: int | None = None,
    **changes: Any,
) -> Experiment:
    """`ALIGNMENT` on a person's own conversations, from a model's weights on; `changes` are fields of `Experiment`.

    `conversations`: one source, or several by category, with their `weights`. `context`: positions of a row, the
    model's own unless given. Where 128 rows need more memory than there is, `in_portions` takes few of them at once.

    Raises ValueError for a bare `Transformer`, which has no tokenizer: give `data` then.
    """
    if isinstance(begins_from, str | Path):
        lab = Chameleon.load(begins_from, device="cpu")
        tokenizer: str | Path | MixedModalTokenizer = begins_from
    elif isinstance(begins_from, Chameleon):
        lab, tokenizer = begins_from, begins_from.tokenizer
    else:
        raise ValueError("A bare Transformer has no tokenizer: begin from the folder or the Chameleon that it is of.")
    config = lab.model.config
    sources = conversations if isinstance(conversations, Mapping) else {"conversations": conversations}
    data = Conversations(sources, tokenizer, weights, rows=rows, context=context or config.context)
    model = replace(config, fixes=with_dropout(config.fixes, 0.05))
    return replace(ALIGNMENT, **{"model": model, "data": data, "begins_from": begins_from, **changes})


def save_aligned(model: Transformer, experiment: Experiment, folder: Path | str) -> Chameleon:
    """Writes what came of an alignment beside the tokenizers that it began with, as a model to load."""
    source = experiment.begins_from
    lab = source if isinstance(source, Chameleon) else Chameleon.load(str(source), device="cpu")
    card = {
        "experiment": plain_values(replace(experiment, data=None)),
        "data": plain_values(experiment.data),
        "trained": date.today().isoformat(),
        "notes": [f"aligned on conversations from the weights of {getattr(source, 'name', source)}"],
        "before": lab.card,
        **{name: value for name, value in lab.card.items() if name == "infill"},
    }
    aligned = Chameleon(model, lab.tokenizer, lab.settings, card)
    aligned.save(folder)
    return aligned
