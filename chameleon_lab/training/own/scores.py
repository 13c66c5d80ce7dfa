"""How well a model knows a person's own data: what was held out beside as much of what it trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from chameleon_lab.chameleon import Chameleon
from chameleon_lab.corpora.own_data import GatheredData
from chameleon_lab.corpora.own_documents import QUESTION_WORDS, draw_words
from chameleon_lab.documents import Document, EndTurn, Image
from chameleon_lab.training.own.documents import TokenizedViews
from chameleon_lab.vocabulary import Modality

BLANK = PIL.Image.new("RGB", (1, 1))


def own_scores(
    lab: Chameleon, data: GatheredData, views: TokenizedViews, most: int = 24, seed: int = 0
) -> dict[str, Any]:
    """Of each side of the split: nats a token by modality, how often words pick their picture, how often the name that
    is given is one of the captions, and the reconstruction in dB; of `most` pictures each."""
    rng = np.random.default_rng([seed, 14])
    scores = {}
    for side, held_out in (("held out", True), ("trained on", False)):
        pairs = data.pairs(held_out)
        pairs = [pairs[int(place)] for place in rng.permutation(len(pairs))[:most]]
        if pairs:
            scores[side] = {
                "pictures": len(pairs),
                "psnr": _psnr(lab, data, pairs),
                **_likelihoods(lab, views, pairs),
                "named right": _naming(lab, views, pairs),
            }
    return scores


def _psnr(lab: Chameleon, data: GatheredData, pairs: Sequence[dict[str, Any]]) -> float:
    trips = [
        lab.tokenizer.image.reconstruct(PIL.Image.fromarray(np.asarray(data.pixels[each["picture"]]))) for each in pairs
    ]
    return round(float(np.mean([trip.psnr for trip in trips])), 2)


def _likelihoods(lab: Chameleon, views: TokenizedViews, pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Words pick the picture that they make likelier by most, compared with no words."""
    pictures = [Document((Image(BLANK, views.plain(each["picture"])),)) for each in pairs]

    def image_logs(before: Document | None) -> np.ndarray:
        return np.array([each.of(Modality.IMAGE).total for each in lab.engine.score(pictures, before)])

    alone_P = image_logs(None)
    logs_WP = np.stack([image_logs(Document.of(draw_words(each["captions"][0]), EndTurn())) for each in pairs])
    choices_W = (logs_WP - alone_P).argmax(axis=1)
    same = [each["captions"][0] for each in pairs]
    right = [same[int(choice)] == caption for choice, caption in zip(choices_W, same, strict=True)]
    names = list[float]()
    tokens = 0
    for each, picture in zip(pairs, pictures, strict=True):
        question = picture + Document.of(QUESTION_WORDS[0], EndTurn())
        (score,) = lab.engine.score([Document.of(each["captions"][0])], question)
        names.append(score.total)
        tokens += len(score)
    return {
        "image nats": round(float(-np.diag(logs_WP).mean() / np.prod(lab.tokenizer.grid)), 3),
        "image nats without words": round(float(-alone_P.mean() / np.prod(lab.tokenizer.grid)), 3),
        "text nats": round(-sum(names) / max(1, tokens), 3),
        "words pick their picture": round(float(np.mean(right)), 3),
    }


def _naming(lab: Chameleon, views: TokenizedViews, pairs: Sequence[dict[str, Any]]) -> float:
    questions = [
        Document.of(Image(BLANK, views.plain(each["picture"])), QUESTION_WORDS[0], EndTurn()) for each in pairs
    ]
    settings = lab.settings.changed(temperature=0.0, max_tokens=64)
    replies = lab.engine.generate(questions, settings, range(len(questions)))
    right = [reply.text.strip() in each["captions"] for reply, each in zip(replies, pairs, strict=True)]
    return round(float(np.mean(right)), 3)
