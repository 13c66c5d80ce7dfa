"""What a transformer of a person's own data trains on: documents made anew at each step, of codes made beforehand."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chameleon_lab.corpora.own_data import GatheredData, pictures_in
from chameleon_lab.corpora.own_documents import PAIR_WEIGHTS, compose
from chameleon_lab.corpora.packing import Batch, TokenizedDocument, bucket, tokenize
from chameleon_lab.corpora.shards import identities
from chameleon_lab.corpora.views import view_of
from chameleon_lab.files import intact, read_array, read_table, require_numbers
from chameleon_lab.storage import whole_folder, write_file
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.text import TextTokenizer
from chameleon_lab.training.data import Corpus
from chameleon_lab.vocabulary import Modality, Vocabulary, id_dtype

log = logging.getLogger(__name__)

MOST_VIEWS = 64
PICTURES_AT_ONCE = 64

SILENCE_SECONDS = 8.0
"""For which the tokenizing of views says nothing."""

VIEWS_IN_ALL = 2**14
VIEW_FILES = ("card.json", "codes.npy")


TOKENIZE_ANEW = "Delete its folder to have the pictures tokenized anew."


class TokenizedViews:
    """The codes of several views of each picture in a folder: `views(picture, rng)` takes one of them.

    `codes_VPHW`: of view 0 all of the picture as it is, of the others a view each (`view_of`), where it is trained on.
    Raises ValueError, naming the file, for a damaged folder.
    """

    def __init__(self, folder: Path | str) -> None:
        place = Path(folder) / "card.json"
        with intact(place, TOKENIZE_ANEW):
            self.card: dict[str, Any] = read_table(place)
            counts = {"views": (int, 1, MOST_VIEWS), "pictures": (int, 0, 2.0**40)}
            require_numbers(self.card, place, **counts)
            shape = self.card["views"], self.card["pictures"], None, None
            if not isinstance(self.card["tokenizer"], str):
                raise TypeError("it names no tokenizer")
        self.codes_VPHW = read_array(Path(folder) / "codes.npy", *shape, remedy=TOKENIZE_ANEW)

    def __call__(self, picture: int, rng: np.random.Generator) -> np.ndarray:
        return self.codes_VPHW[rng.integers(len(self.codes_VPHW)), picture].astype(np.int64)

    def plain(self, picture: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """The codes of the picture as it is."""
        return self.codes_VPHW[0, picture].astype(np.int64)


def tokenize_views(
    data: GatheredData, tokenizer: MixedModalTokenizer, folder: Path, *, seconds: float | None, seed: int = 0
) -> TokenizedViews:
    """Encodes as many views of each picture as fit into about `seconds`, `MOST_VIEWS` at most and one at least; for
    None as many as make `VIEWS_IN_ALL`, which no clock decides.

    What is in the folder already is taken, where this tokenizer made it and it is whole.
    """
    mark = identities(tokenizer)["image"]
    if (folder / "card.json").is_file() and (views := _whole_views(folder, mark, tokenizer, len(data.pixels))):
        return views
    image, side, started = tokenizer.image, tokenizer.image.config.side, time.monotonic()
    mirrors, trained, before = data.mirrors, data.trained, image.device
    image.to("cuda" if torch.cuda.is_available() else before)
    count = len(data.pixels)
    kind = id_dtype(image.codes)

    def encoded(numbers: list[int], rng: np.random.Generator | None, view: int = 0) -> np.ndarray:
        codes, began, last = list[np.ndarray](), time.monotonic(), time.monotonic()
        for start in range(0, len(numbers), PICTURES_AT_ONCE):
            if (now := time.monotonic()) - last > SILENCE_SECONDS and start:
                last, left = now, (now - began) * (len(numbers) - start) / start
                done = f"{start:,} of {len(numbers):,} pictures"
                log.info("View %d: %s tokenized, %.0f s left", view + 1, done, left)
            chunk = numbers[start : start + PICTURES_AT_ONCE]
            views = [view_of(data.pixels[number], side, rng, mirrors.get(number, False)) for number in chunk]
            codes.append(image.encode_batch(views))
        return np.concatenate(codes).astype(kind) if codes else np.empty((0, *image.grid), kind)

    plain = encoded(list(range(count)), None)
    each = max(1e-3, (time.monotonic() - started) * len(trained) / max(1, count))
    room = VIEWS_IN_ALL // max(1, len(trained)) if seconds is None else seconds / each
    number = int(np.clip(room, 1, MOST_VIEWS)) if trained else 1
    with whole_folder(folder, VIEW_FILES) as hidden:
        if number == 1:
            np.save(hidden / "codes.npy", plain[None])
        else:
            codes_VPHW = np.lib.format.open_memmap(hidden / "codes.npy", "w+", kind, (number, *plain.shape))
            codes_VPHW[:] = plain
            for view in range(1, number):
                codes_VPHW[view, trained] = encoded(trained, np.random.default_rng([seed, 10, view]), view)
            codes_VPHW.flush()
            del codes_VPHW
        write_file(hidden / "card.json", f'{{"tokenizer": "{mark}", "views": {number}, "pictures": {count}}}\n')
    image.to(before)
    log.info("Tokenized %s views of each of %s pictures in %.0f s.", number, f"{count:,}", time.monotonic() - started)
    return TokenizedViews(folder)


def _whole_views(folder: Path, mark: str, tokenizer: MixedModalTokenizer, pictures: int) -> TokenizedViews | None:
    """The views in a folder; None, with a word, for those of another tokenizer or other pictures, and damaged ones."""
    try:
        views = TokenizedViews(folder)
        if (views.card["tokenizer"], views.card["pictures"]) != (mark, pictures):
            return None
        codes, (rows, columns) = views.codes_VPHW, tokenizer.grid
        if codes.shape[2:] != (rows, columns) or (
            codes.size and not 0 <= codes.min() <= codes.max() < tokenizer.image.codes
        ):
            raise ValueError(f"{folder / 'codes.npy'} holds what are no codes of this image tokenizer.")
    except (ValueError, OSError) as error:
        log.warning("%s The pictures are tokenized anew.", error)
        return None
    return views


@dataclass(frozen=True)
class OwnDocuments:
    """Documents of the data gathered in `gathered`, with the codes in `views`, in about `tokens` tokens a step.

    `weights`: the kinds that pairs become. `noise`: share of the image codes that are read which is replaced by others,
    so that a picture is not continued from its own beginning alone. `held_out`: so many pairs at most are looked at.
    """

    gathered: Path
    views: Path
    tokenizer: MixedModalTokenizer
    tokens: int = 2048
    weights: Mapping[str, float] = field(default_factory=lambda: dict(PAIR_WEIGHTS))
    noise: float = 0.1
    held_out: int = 48

    def open(self, seed: int, steps: int | None) -> Corpus:
        data, views = GatheredData(self.gathered), TokenizedViews(self.views)
        batches = OwnBatches(data, views, self, seed)
        return Corpus(self.tokenizer.vocabulary, batches, self.apart(data, views, seed))

    def apart(self, data: GatheredData, views: TokenizedViews, seed: int) -> list[Batch]:
        """Held-out documents as they are asked for and named; what no pair is, as it stands."""
        rng = np.random.default_rng([seed, 11])
        documents = [
            compose(entry, kind, rng, views.plain, entry)
            for entry in data.part(held_out=True)[: self.held_out]
            for kind in (("drawing", "naming") if "captions" in entry else ("",))
        ]
        tokenized = tokenize(documents, self.tokenizer)
        tokenized = [each for each in tokenized if each.learn[1:].any()]
        if not tokenized:
            return []
        total = sum(len(each.tokens) for each in tokenized)
        return bucket(tokenized, max(1, total // self.tokens), self.tokenizer.vocabulary, rng)


class OwnBatches:
    """Batches of documents, a pure function of (seed, step): `batches(step) -> Batch`."""

    POOL = 16
    """Batches whose documents are made at once, so that like lengths share one."""

    def __init__(self, data: GatheredData, views: TokenizedViews, documents: OwnDocuments, seed: int) -> None:
        self._views, self._documents, self._seed = views, documents, seed
        self._entries = data.part()
        if not self._entries:
            raise ValueError(f"{data.folder} holds nothing to train on.")
        self._pairs = [entry for entry in self._entries if "captions" in entry]
        sources = [each["weight"] for each in data.survey["sources"]]
        weights = np.array([sources[entry["source"]] for entry in self._entries], float)
        self._chances = weights / weights.sum()
        rng = np.random.default_rng([seed, 12])
        lengths = [len(self._tokenized(rng, 1)[0].tokens) for _ in range(64)]
        self._count = max(1, round(self.POOL * documents.tokens / float(np.mean(lengths))))
        self._index, self._batches = -1, list[Batch]()

    def __call__(self, step: int) -> Batch:
        index, place = divmod(step, self.POOL)
        if index != self._index:
            rng = np.random.default_rng([self._seed, 13, index])
            vocabulary = self._documents.tokenizer.vocabulary
            filled = bucket(self._tokenized(rng, max(self.POOL, self._count)), self.POOL, vocabulary, rng)
            self._batches = [noisy(batch, self._documents.noise, vocabulary, rng) for batch in filled]
            self._index = index
        return self._batches[place % len(self._batches)]

    def _tokenized(self, rng: np.random.Generator, count: int) -> list[TokenizedDocument]:
        kinds, shares = list(self._documents.weights), np.array(list(self._documents.weights.values()))
        documents = []
        for place in rng.choice(len(self._entries), count, p=self._chances):
            entry, kind = self._entries[int(place)], str(rng.choice(kinds, p=shares / shares.sum()))
            other = self._pairs[int(rng.integers(len(self._pairs)))] if self._pairs else entry
            documents.append(compose(entry, kind, rng, self._views, other))
        return tokenize(documents, self._documents.tokenizer)


def noisy(batch: Batch, share: float, vocabulary: Vocabulary, rng: np.random.Generator) -> Batch:
    """The batch with a share of the image codes that are read replaced at random; targets stay as they are."""
    if not share:
        return batch
    inputs_BT = batch.inputs_BT.numpy().copy()
    codes = np.isin(vocabulary.modality[inputs_BT], [Modality.IMAGE]) & (rng.random(inputs_BT.shape) < share)
    others = rng.integers(vocabulary.codes, size=int(codes.sum()))
    inputs_BT[codes] = vocabulary.tokens_of_codes(others)
    return replace(batch, inputs_BT=torch.from_numpy(inputs_BT))


def needs(data: GatheredData, text: TextTokenizer, image: int) -> Iterator[int]:
    """Tokens of the longest document that each entry of `data` becomes, two turns of its longest caption among them; a
    picture has `image` tokens."""
    for entry in data.entries:
        if "captions" in entry:
            words = max(len(text.encode(words)) for words in entry["captions"])
            yield 2 * (image + words + 16)
        else:
            words = sum(len(text.encode(part.get("text", ""))) + 2 for part in entry["segments"])
            yield words + image * len(pictures_in(entry)) + 2


def longest_need(data: GatheredData, text: TextTokenizer, image: int) -> int:
    """Tokens of the longest document that `data` becomes."""
    return max(needs(data, text, image), default=0)
