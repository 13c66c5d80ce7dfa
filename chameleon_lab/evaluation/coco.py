"""FID of pictures drawn for COCO's captions, against documents retrieved: CM3Leon's figure, with data on your disk.

- the paper's protocol (arXiv 2309.02591, section 3.3): 30,000 captions of the validation set of 2014, on which nothing
  was trained; of 8 pictures for each caption CLIP takes one; 0, 1 or 2 documents of a memory bank before the caption
- drawn pictures are PNG files of a folder, so that days of drawing go on where they stopped, and other programs can
  measure the same pictures
- all that a value depends on stands in its `MetricCard`. Values of a paper were measured by programs of its own
- nothing is downloaded: what is not there is an error that says where it is published
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from chameleon_lab.candidates import BestBy, Scorer
from chameleon_lab.chameleon import Chameleon
from chameleon_lab.documents import Document, EndTurn, Segment, Text
from chameleon_lab.evaluation.distances import FrechetDistance
from chameleon_lab.evaluation.metrics import content_hash, preparation_words
from chameleon_lab.evaluation.retrieval import draw_requests
from chameleon_lab.files import absence, intact, read_json, read_table
from chameleon_lab.parts import require_count
from chameleon_lab.pictures import open_picture
from chameleon_lab.plain import plain_values
from chameleon_lab.records import MetricCard, MetricValue
from chameleon_lab.retrieval.retriever import Retriever
from chameleon_lab.storage import write_file
from chameleon_lab.tokenizers.networks import FeatureNetwork, inception
from chameleon_lab.tokenizers.preparation import LANCZOS

log = logging.getLogger(__name__)

COCO_SPLIT, COCO_ANNOTATIONS = "val2014", "annotations/captions_val2014.json"
LARGEST_ANNOTATIONS = 256 * 2**20

PAPER_FID = {0: 10.82, 1: 5.78, 2: 4.88}
"""CM3Leon-7B's, by documents retrieved (arXiv 2309.02591, table 1 and section 3.3)."""

GET_COCO = (
    "Nothing is downloaded from here: fetch val2014.zip (6 GB) and annotations_trainval2014.zip of "
    "https://cocodataset.org/#download once, and unpack both into that folder."
)


class CaptionedFile(NamedTuple):
    """A picture's file, and one of its captions."""

    picture: Path
    caption: str


def coco_captions(folder: Path | str, n: int, seed: int = 0) -> list[CaptionedFile]:
    """`n` pictures of COCO's validation set of 2014 with one caption each, chosen by the seed; in the folder as COCO's
    archives have it.

    Raises ValueError, saying how to get them, where they are not there; for more than there are; for a damaged file.
    """
    folder = Path(folder)
    annotations = folder / COCO_ANNOTATIONS
    if (fault := absence(annotations)) or not (folder / COCO_SPLIT).is_dir():
        there = f"; {annotations} {fault}" if annotations.exists() and fault else ""
        raise ValueError(f"{folder} holds no {COCO_ANNOTATIONS} and {COCO_SPLIT}/{there}. {GET_COCO}")
    plain = read_json(annotations, LARGEST_ANNOTATIONS, GET_COCO)
    captions: dict[int, list[str]] = {}
    with intact(annotations, GET_COCO):
        files = {each["id"]: str(each["file_name"]) for each in plain["images"]}
        for each in plain["annotations"]:
            captions.setdefault(each["image_id"], []).append(" ".join(str(each["caption"]).split()))
    names = sorted(files.keys() & captions.keys())
    require_count(n, "captions", 2)
    if n > len(names):
        raise ValueError(f"{n:,} captions of as many pictures were asked for, and {annotations} has {len(names):,}.")
    rng = np.random.default_rng([seed, 31])
    chosen = sorted(rng.choice(len(names), n, replace=False).tolist())
    picks = [(files[names[at]], captions[names[at]]) for at in chosen]
    pairs = [
        CaptionedFile(folder / COCO_SPLIT / Path(file).name, some[rng.integers(len(some))]) for file, some in picks
    ]
    if missing := [each.picture.name for each in pairs if not each.picture.is_file()]:
        raise ValueError(
            f"{folder / COCO_SPLIT} lacks {len(missing):,} of {n:,} pictures, {missing[0]} first. {GET_COCO}"
        )
    return pairs


@dataclass(frozen=True)
class ZeroShot:
    """How pictures are drawn for captions: of `tries` the best by a scorer; seeds are seed + number + 100,000 x try.

    `turn`: captions are requests, ended by a turn, or else the beginnings of pairs; `template` makes them of captions.
    """

    tries: int = 8
    seed: int = 0
    template: str = "{caption}"
    turn: bool = True
    at_once: int = 16

    def __post_init__(self) -> None:
        for name in ("tries", "at_once"):
            require_count(getattr(self, name), name, 1)
        require_count(self.seed, "the seed", 0)
        if "{caption}" not in self.template:
            raise ValueError(f"The template {self.template!r} has no {{caption}} in it: 'draw {{caption}}', say.")

    def request(self, caption: str) -> Document:
        words: list[Segment] = [Text(self.template.replace("{caption}", caption))]
        return Document(tuple([*words, EndTurn()] if self.turn else words))


PAPER_PROTOCOL = ZeroShot()


def draw_captions(
    lab: Chameleon,
    pairs: Sequence[CaptionedFile],
    folder: Path | str,
    count: int = 0,
    retriever: Retriever | None = None,
    scorer: Scorer | None = None,
    protocol: ZeroShot = PAPER_PROTOCOL,
    report: Callable[[int], object] = lambda done: None,
) -> list[Path]:
    """A picture for each caption, `count` documents before it: PNG files of the folder, numbered. Those that are there
    already are left as they are.

    Raises ValueError where documents are asked for and nothing looks them up, where several tries have no scorer, and
    for a folder of pictures that were drawn otherwise.
    """
    _require_parts(count, retriever, scorer, protocol)
    folder = Path(folder)
    _require_protocol(folder / "protocol.json", lab, pairs, count, scorer, protocol)
    files = [folder / f"{number:06d}.png" for number in range(len(pairs))]
    missing = iter([number for number, file in enumerate(files) if not file.is_file()])
    while numbers := list(islice(missing, protocol.at_once)):
        captions = [pairs[number].caption for number in numbers]
        requests = [*map(protocol.request, captions)]
        replies = list[list[Document]]()
        for place in range(protocol.tries):
            seeds = [protocol.seed + number + 100_000 * place for number in numbers]
            replies.append(_replies(lab, requests, captions, seeds, count, retriever))
        for number, request, *own in zip(numbers, requests, *replies, strict=True):
            best = own[0] if scorer is None else own[BestBy(scorer)([request + each for each in own])]
            content = io.BytesIO()
            best.pictures[0].save(content, "PNG")
            write_file(files[number], content.getvalue())
        report(numbers[-1] + 1)
    return files


def _require_parts(count: int, retriever: Retriever | None, scorer: Scorer | None, protocol: ZeroShot) -> None:
    require_count(count, "documents retrieved", 0)
    if count and retriever is None:
        raise ValueError(
            f"{count} document(s) are to stand before each caption, and there is no bank to look them up in: fill one "
            "of pictures with captions that are not the ones to be drawn, Bank.of(folder, encoder).save(BANK), and "
            "give it with its encoder."
        )
    if protocol.tries > 1 and scorer is None:
        raise ValueError(
            f"Of {protocol.tries} pictures the best is to be taken, and nothing ranks them: give a scorer (CLIP's "
            "folder), or draw one for each caption (tries 1)."
        )


def _replies(
    lab: Chameleon,
    requests: Sequence[Document],
    captions: Sequence[str],
    seeds: Sequence[int],
    count: int,
    retriever: Retriever | None,
) -> list[Document]:
    grammar = lab.engine.grammar_of({"text": False, "min_images": 1, "max_images": 1})
    if not count or retriever is None:
        return lab.engine.generate(requests, lab.settings, seeds, grammar)
    rules = replace(retriever.rules, count=count)
    hits = rules.choose_each(retriever.bank, retriever.encoder, [Document.of(each) for each in captions], seeds)
    return draw_requests(retriever, requests, hits, lab.settings, seeds, grammar)


def _require_protocol(
    path: Path, lab: Chameleon, pairs: Sequence[CaptionedFile], count: int, scorer: Scorer | None, protocol: ZeroShot
) -> None:
    """Writes down how a folder's pictures are drawn, or raises ValueError where that is said otherwise."""
    plain: dict[str, Any] = {
        **asdict(replace(protocol, at_once=1)),
        "documents": count,
        "scorer": _scorer_name(scorer),
        "settings": plain_values(lab.settings),
        "model": lab.tokenizer.source,
        "captions": len(pairs),
        "first": pairs[0].picture.name,
    }
    if path.is_file() and (there := read_table(path)) != json.loads(json.dumps(plain)):
        apart = sorted(name for name in plain if there.get(name) != json.loads(json.dumps(plain[name])))
        raise ValueError(
            f"{path.parent} holds pictures that were drawn with another {', '.join(apart)}: take another folder, or "
            "the same protocol."
        )
    write_file(path, json.dumps(plain, indent=2) + "\n")


def _scorer_name(scorer: Scorer | None) -> str:
    encoder = getattr(scorer, "encoder", None)
    return "" if scorer is None else f"{type(scorer).__name__} {getattr(encoder, 'name', '')}".strip()


def fid(
    lab: Chameleon,
    pairs: Sequence[CaptionedFile],
    files: Sequence[Path],
    network: FeatureNetwork | None = None,
    *,
    drawing: str,
    reference: str = "COCO val2014",
    batch: int = 16,
) -> MetricValue:
    """The Fréchet distance between features of the captions' own pictures, prepared as the model's are, and of those
    that were drawn. `network`: Inception's features unless given; `drawing` says on the card how they were drawn.

    Raises ValueError where Inception's weights are not there, for as many files as captions, and for fewer than two.
    """
    if len(files) != len(pairs) or len(pairs) < 2:
        raise ValueError(f"FID compares as many pictures as captions, two or more: not {len(files)} and {len(pairs)}.")
    distance = FrechetDistance(network or inception())
    policy = lab.tokenizer.image.preparations["centre crop"]
    for start in range(0, len(pairs), batch):
        some = slice(start, start + batch)
        originals = [policy.picture(open_picture(each.picture)) for each in pairs[some]]
        drawn = [open_picture(file) for file in files[some]]
        distance.see(
            *(torch.from_numpy(np.stack([*map(np.asarray, each)])).movedim(-1, 1) for each in (originals, drawn))
        )
    card = MetricCard(
        metric="FID",
        definition="",
        reference=f"{reference}, one caption each of {len(pairs):,} pictures",
        reference_hash=content_hash(policy.picture(open_picture(each.picture)) for each in pairs),
        crop=preparation_words(policy),
        resize=LANCZOS.name,
        n=len(pairs),
        dtype=str(lab.model.embedding.weight.dtype).removeprefix("torch."),
    )
    value = distance.value(card, 0)
    definition = f"pictures of captions against pictures drawn for them ({drawing}); covariance over n - 1"
    return replace(value, card=replace(value.card, metric="FID", definition=definition))


def zero_shot(
    lab: Chameleon,
    pairs: Sequence[CaptionedFile],
    folder: Path | str,
    counts: Sequence[int] = (0, 1, 2),
    retriever: Retriever | None = None,
    scorer: Scorer | None = None,
    network: FeatureNetwork | None = None,
    protocol: ZeroShot = PAPER_PROTOCOL,
) -> Iterator[tuple[int, MetricValue]]:
    """(documents retrieved, FID): the ablation. What would be missing in the end is asked for before anything is drawn.

    Pictures of `count` documents are in `folder/documents-COUNT`. Errors: those of `draw_captions` and `fid`.
    """
    network, folder = network or inception(), Path(folder)
    for count in counts:
        _require_parts(count, retriever, scorer, protocol)
    for count in counts:
        place = folder / f"documents-{count}"

        def say(done: int, count: int = count) -> None:
            log.info("%s document(s): %s of %s pictures drawn", count, f"{done:,}", f"{len(pairs):,}")

        files = draw_captions(lab, pairs, place, count, retriever, scorer, protocol, say)
        words = [f"{count} documents retrieved", f"the best of {protocol.tries} by {_scorer_name(scorer)}"]
        drawing = ", ".join([words[0], words[1] if scorer else "one picture each", f"guidance {lab.settings.guidance}"])
        yield count, fid(lab, pairs, files, network, drawing=drawing)
