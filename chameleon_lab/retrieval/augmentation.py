"""Training documents, each behind what was retrieved for it: a part of a mixture like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chameleon_lab.corpora.packing import TokenizedDocument, tokenize
from chameleon_lab.documents import Document
from chameleon_lab.retrieval.bank import Bank, with_codes
from chameleon_lab.retrieval.encoders import Encoder
from chameleon_lab.retrieval.prompts import put_before
from chameleon_lab.retrieval.rules import CM3LEON_RULES, Hit, RetrievalRules
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer


@dataclass(frozen=True)
class Augmentation:
    """Tokenized documents with the retrieved ones before them, for a `Mixture` or `pack`; the `hits` of each; and
    (number of the document, what of it had no room and why), so that nobody need wonder what the model saw."""

    documents: Sequence[TokenizedDocument]
    hits: Sequence[Sequence[Hit]]
    left_out: Sequence[tuple[int, str]]


def augment(
    documents: Sequence[Document],
    bank: Bank,
    encoder: Encoder,
    tokenizer: MixedModalTokenizer,
    *,
    context: int,
    rules: RetrievalRules = CM3LEON_RULES,
    seed: int = 0,
    learn: bool = False,
) -> Augmentation:
    """Each document behind those that the rules choose for it, a pure function of (seed, place).

    `context`: tokens that all of it may have; see `put_before` for what is left out. `learn`: whether loss is taken on
    the retrieved documents, too, as CM3Leon does. Raises ValueError for a bank of another encoder or image tokenizer,
    and for a document longer than the context alone.
    """
    bank.require_tokenizer(tokenizer)
    seeds = [seed * 1_000_003 + place for place in range(len(documents))]
    chosen = rules.choose_each(bank, encoder, documents, seeds)
    coded = with_codes(documents, tokenizer)
    sources = {hit.place: hit.document for hits in chosen for hit in hits}
    retrieved = dict(zip(sources, with_codes(list(sources.values()), tokenizer), strict=True))
    whole, left_out = list[Document](), list[tuple[int, str]]()
    for place, (document, hits) in enumerate(zip(coded, chosen, strict=True)):
        some = [retrieved[hit.place] for hit in hits]
        before = put_before(document, some, tokenizer, context, room=1, learn=learn)  # the end of the document
        whole.append(before.document)
        left_out += [(place, words) for words in before.left_out]
    return Augmentation(tokenize(whole, tokenizer), chosen, left_out)
